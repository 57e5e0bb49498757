/**
 * A dataplane on a treadmill: its devices always have the same burst to read, take whatever is
 * written, and neither cost nor allocate anything worth measuring. What is left is the dataplane.
 */
import { ADDRESS_WORDS, Batch, HEADROOM, IN_ROWS } from "../../src/batch.ts";
import { Counters, Traffic } from "../../src/counters.ts";
import { Dataplane } from "../../src/dataplane.ts";
import type { Taps, Underlay, Watch } from "../../src/device.ts";
import { Fdb } from "../../src/fdb.ts";
import { Network } from "../../src/network.ts";
import { addressWords, Remotes } from "../../src/remotes.ts";
import { parseMac } from "../../src/wire/ethernet.ts";
import { PORT, type Row } from "./sim.ts";

/** TAPs (that of the network of index 1), or an underlay, that return one burst for ever. */
export class Treadmill implements Taps, Underlay {
  readonly capabilities = {
    sourcePortEntropy: true,
    dontFragment: true,
    zeroChecksum6: true,
    countsOverflows: true,
    carriesTos: true,
    cutsSuperFrames: false,
  };
  /** The errno that every row of a write fails with; 0: none does. */
  errno = 0;
  /** The one whose burst is in the batch: it need not be written again. */
  static #loaded: Treadmill | undefined;
  readonly #burst = new Batch();
  readonly #rows: number;
  readonly #bytes: Uint8Array;

  constructor(rows: readonly Row[]) {
    if (rows.length > IN_ROWS) throw new RangeError(`${rows.length} rows`);
    const batch = this.#burst;
    let offset = HEADROOM;
    for (const [row, { bytes, from, segment, flags, moved }] of rows.entries()) {
      batch.slab.set(bytes, offset);
      batch.inTap[row] = 1;
      batch.inOffset[row] = offset;
      batch.inLength[row] = bytes.length;
      batch.inSegment[row] = segment ?? bytes.length;
      batch.inFlags[row] = flags ?? 0;
      batch.inTarget[row] = moved ?? 0;
      if (from !== undefined) batch.inAddress.set(addressWords(from), row * ADDRESS_WORDS);
      offset = ((offset + bytes.length + 7) & ~7) + HEADROOM;
    }
    this.#rows = rows.length;
    this.#bytes = batch.slab.subarray(0, offset);
  }

  add(): void {}
  remove(): void {}
  limit(): void {}

  read(batch: Batch): number {
    if (Treadmill.#loaded !== this) {
      batch.columns.set(this.#burst.columns);
      batch.slab.set(this.#bytes);
      Treadmill.#loaded = this;
    }
    return this.#rows;
  }

  receive(batch: Batch): number {
    return this.read(batch);
  }

  write(batch: Batch, count: number): number {
    if (this.errno === 0) return 0;
    batch.outError.fill(this.errno, 0, count);
    return count;
  }

  send(batch: Batch, count: number): number {
    return this.write(batch, count);
  }

  overflows(): number {
    return 0;
  }

  refusals(): number {
    return 0;
  }

  watch(_watch: Watch | (() => void)): void {}
  close(): void {}
}

/** Reads of a device that one call of `encap` or `decap` makes, as dataplane.ts has it. */
export const BURSTS = 4;

/** A dataplane of one network, VNI 100, between two treadmills. */
export function treadmill(options: {
  readonly taps: Treadmill;
  readonly underlay: Treadmill;
  readonly peers: readonly string[];
  readonly limit?: number;
}) {
  const fdb = new Fdb(Fdb.allocate(4096, 0x5eed));
  const remotes = new Remotes();
  const counters = new Counters(Counters.allocate(1, 1), 1);
  const traffic = new Traffic(Traffic.allocate(1), 1);
  const { taps, underlay, peers, limit = 1024 } = options;
  const mac = parseMac("00:00:5e:00:53:f0")!;
  const network = new Network({ vni: 100, index: 1, ageSeconds: 300, mac });
  for (const peer of peers) network.addToFlood(remotes.add(peer, PORT));
  fdb.setLimit(1, limit);
  const dataplane = new Dataplane({
    fdb,
    remotes,
    counters,
    traffic,
    taps,
    underlay,
    strict: false,
    flowSeed: 1,
    dscp: 0,
  });
  dataplane.add(network);
  return {
    fdb,
    remotes,
    counters,
    dataplane,
    encap: () => dataplane.encap(),
    decap: () => dataplane.decap(),
  };
}
