/**
 * A capture: what the forwarding threads' mirrors show, as a stream of pcapng.
 *
 *     forwarding thread ─ Mirror ─ ring ─┐
 *     forwarding thread ─ Mirror ─ ring ─┴─ Capture (main thread) ─ pcapng ─ whoever reads
 *
 * A network is an interface; what belongs to none is one more, on which datagrams are captured whole,
 * VXLAN header and all, as Wireshark dissects it. Each frame has its direction, and a comment that
 * says where it went or came from, and why it was dropped if it was. Frames of several threads are merged by time
 * as far as they wait at the same moment. A reader that is slow lets the rings fill: what they had no
 * room for is missed, never waited for, and counted in the statistics that follow.
 *
 * The answers that this VTEP gives by itself (that a packet is too big) are not captured.
 */
import { setTimeout } from "node:timers/promises";
import { Drop } from "./counters.ts";
import { type Mirrored, MirrorReader } from "./mirror.ts";
import { formatAddress } from "./remotes.ts";
import * as pcapng from "./wire/pcapng.ts";
import { DEFAULT_PORT } from "./wire/vxlan.ts";

/** What a network is called. */
export interface CapturedNetwork {
  readonly name: string;
  readonly vni: number;
}

/** By their row in the FDB and the counters. */
export type CapturedNetworks = ReadonlyMap<number, CapturedNetwork>;

/** Frames are kept whole unless told: as tcpdump has it. */
export const WHOLE = 262_144;

/** How long nothing may have come before the rings are looked at again. */
const IDLE_MS = 20;
/** After so long without a frame there are statistics, lest either end takes the other for dead. */
const SIGN_OF_LIFE_MS = 10_000;
/** As much of the rings as is turned into pcapng at once: the main thread has more to do. */
const TAKEN_BYTES = 256 * 1024;
/** The row of what belongs to no network, as the dataplane has it. */
const NO_NETWORK = 0;

const REASONS = new Map(Object.entries(Drop).map(([name, column]) => [column as number, name]));

/** What is known of an interface of the file. */
interface Interface {
  readonly number: number;
  readonly called: CapturedNetwork | undefined;
  captured: number;
  /** As of the last statistics, and under the name that its network had before. */
  missed: number;
  readonly missedBefore: number;
}

export class Capture {
  readonly #readers: readonly MirrorReader[];
  readonly #heads: (Mirrored | undefined)[];
  readonly #networks: () => CapturedNetworks;
  /** Those of the last look. */
  #called: CapturedNetworks = new Map();
  readonly #snaplen: number;
  /** By index of the network. */
  readonly #interfaces = new Map<number, Interface>();
  /** Of networks that are to be described anew: what was missed under the name before. */
  readonly #missedBefore = new Map<number, number>();
  #described = 0;
  #written: Buffer[] = [];

  /** Reads these rings; `networks` says what networks are called now. */
  constructor(
    rings: readonly SharedArrayBuffer[],
    networks: () => CapturedNetworks,
    snaplen: number,
  ) {
    this.#readers = rings.map((ring) => new MirrorReader(ring));
    this.#heads = rings.map(() => undefined);
    this.#networks = networks;
    this.#snaplen = snaplen;
  }

  /** The file until `signal` is aborted. It takes no more from the rings than is read of it. */
  async *stream(
    networks: readonly number[],
    signal: AbortSignal,
    signOfLifeMs = SIGN_OF_LIFE_MS,
  ): AsyncGenerator<Buffer> {
    yield this.begin(networks);
    let silentMs = 0;
    while (!signal.aborted) {
      const taken = silentMs < signOfLifeMs ? this.take() : this.#statistics();
      silentMs = taken.length > 0 ? 0 : silentMs + IDLE_MS;
      if (taken.length > 0) yield taken;
      else await setTimeout(IDLE_MS, undefined, { signal }).catch(() => undefined);
    }
    yield this.end();
  }

  /** How the file begins: these networks' interfaces, by their index. */
  begin(networks: readonly number[]): Buffer {
    this.#called = this.#networks();
    this.#written.push(pcapng.sectionHeader("vtep"));
    for (const network of networks) this.#interface(network);
    return this.#flush();
  }

  /** What waits, or much of it; nothing when nothing waits. */
  take(): Buffer {
    this.#called = this.#networks();
    // A network that was made anew meanwhile may have the index of another one.
    for (const [network, own] of this.#interfaces) {
      const called = this.#called.get(network);
      if (called === undefined) continue;
      if (called.name !== own.called?.name || called.vni !== own.called.vni) {
        if (this.#missed(network) !== own.missed) this.#writeStatistics(network, own);
        this.#missedBefore.set(network, own.missed);
        this.#interfaces.delete(network);
      }
    }
    let bytes = 0;
    while (bytes < TAKEN_BYTES) {
      const frame = this.#next();
      if (frame === undefined) break;
      bytes += this.#write(frame);
    }
    if (this.#missed(NO_NETWORK) > 0) this.#interface(NO_NETWORK);
    for (const [network, own] of this.#interfaces) {
      if (this.#missed(network) !== own.missed) this.#writeStatistics(network, own);
    }
    return this.#flush();
  }

  /** How the file ends: all that waits, and the statistics of every interface. */
  end(): Buffer {
    const rest: Buffer[] = [];
    for (let taken = this.take(); taken.length > 0; taken = this.take()) rest.push(taken);
    return Buffer.concat([...rest, this.#statistics()]);
  }

  #statistics(): Buffer {
    if (this.#interfaces.size === 0) this.#interface(NO_NETWORK);
    for (const [network, own] of this.#interfaces) this.#writeStatistics(network, own);
    return this.#flush();
  }

  /** The oldest frame that waits in any ring; copied, so that its room is free again. */
  #next(): Mirrored | undefined {
    let oldest = -1;
    for (const [at, reader] of this.#readers.entries()) {
      const head = this.#heads[at] ?? reader.next();
      this.#heads[at] = head;
      if (head === undefined) continue;
      if (oldest < 0 || head.timeMs < this.#heads[oldest]!.timeMs) oldest = at;
    }
    if (oldest < 0) return undefined;
    const head = this.#heads[oldest]!;
    const frame = { ...head, bytes: head.bytes.slice() };
    this.#heads[oldest] = undefined;
    this.#readers[oldest]!.advance();
    return frame;
  }

  #write(frame: Mirrored): number {
    const own = this.#interface(frame.network);
    own.captured++;
    const bytes =
      frame.network === NO_NETWORK
        ? pcapng.udpPayload(DEFAULT_PORT, frame.bytes) // where Wireshark expects VXLAN
        : frame.bytes;
    const block = pcapng.packet({
      interface: own.number,
      timeMs: frame.timeMs,
      bytes,
      length: frame.length + bytes.length - frame.bytes.length,
      direction: frame.direction === "encap" ? pcapng.OUTBOUND : pcapng.INBOUND,
      comment: comment(frame),
    });
    this.#written.push(block);
    return block.length;
  }

  /** The interface of a network, described when it is first seen. */
  #interface(network: number): Interface {
    const known = this.#interfaces.get(network);
    if (known !== undefined) return known;
    const called = this.#called.get(network);
    const missed = this.#missedBefore.get(network) ?? 0;
    const own = { number: this.#described++, called, captured: 0, missed, missedBefore: missed };
    this.#interfaces.set(network, own);
    this.#written.push(
      pcapng.interfaceDescription(
        network === NO_NETWORK
          ? {
              name: "underlay",
              description: "VXLAN datagrams that belong to no network here",
              linkType: pcapng.LINKTYPE_UPPER_PDU,
              snaplen: WHOLE,
            }
          : {
              name: called?.name ?? `network-${network}`,
              description: called === undefined ? "removed meanwhile" : `VNI ${called.vni}`,
              linkType: pcapng.LINKTYPE_ETHERNET,
              snaplen: this.#snaplen,
            },
      ),
    );
    return own;
  }

  #missed(network: number): number {
    return this.#readers.reduce((sum, reader) => sum + reader.missed(network), 0);
  }

  #writeStatistics(network: number, own: Interface): void {
    own.missed = this.#missed(network);
    const { number, captured } = own;
    const missed = own.missed - own.missedBefore;
    const received = captured + missed;
    const timeMs = Date.now();
    this.#written.push(
      pcapng.statistics({ interface: number, timeMs, received, missed, captured }),
    );
  }

  #flush(): Buffer {
    const written = Buffer.concat(this.#written);
    this.#written = [];
    return written;
  }
}

/** What became of a frame, in words that a display filter can look for. */
function comment(frame: Mirrored): string {
  const { direction, reason, copies, failed, segment, partialChecksum } = frame;
  const address = frame.address.some((word) => word !== 0) ? formatAddress(frame.address, 0) : "";
  const parts: string[] = [];
  if (direction === "decap") parts.push(`from ${address}`);
  if (direction === "encap" && copies === 1) parts.push(`to ${address}`);
  if (copies > 1) parts.push(`flooded to ${copies} remotes, ${address} among them`);
  if (reason !== 0) {
    const some = copies > 1 ? `${failed} copies ` : "";
    parts.push(`${some}dropped: ${REASONS.get(reason)}`);
  }
  if (segment !== 0) parts.push(`super-frame, to be cut into segments of ${segment} bytes`);
  if (partialChecksum) parts.push("checksum left to the VTEP");
  return parts.join("; ");
}
