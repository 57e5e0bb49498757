/**
 * One suite for every `Underlay`. Real sockets stay on loopback:
 *
 *     a  127.x.y.1 and ::1  ──►  b  127.x.y.2 and ::1, on another port
 *
 * Where an underlay may differ, its declared capabilities say so; nothing else is excepted.
 */
import { randomInt } from "node:crypto";
import dgram from "node:dgram";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { setImmediate as turn } from "node:timers/promises";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import {
  Batch,
  HEADROOM,
  IN_ROWS,
  OUT_ROWS,
  SLAB_BYTES,
  TRUNCATED,
  VNET_NEEDS_CSUM,
  VNET_WORDS,
} from "../../src/batch.ts";
import { DgramUnderlay } from "../../src/device/dgram-underlay.ts";
import { MemoryUnderlay, MemoryWire } from "../../src/device/memory.ts";
import { NativeUnderlay } from "../../src/device/native-underlay.ts";
import type { Underlay } from "../../src/device.ts";
import { VtepError } from "../../src/errors.ts";
import { formatAddress, LOCAL, Remotes } from "../../src/remotes.ts";
import { until } from "../lab/until.ts";
import { frameOf, segmentsOf, vnetOf } from "../native/segments.ts";

const LARGEST_DATAGRAM = 9000;
const NO_TRAINS = { offloads: { gro: false } };
const SOURCE_PORTS = [49_152, 65_535] as const;
/** From a loopback address, the kernel refuses to send here; on a wire, nobody has it. */
const UNREACHABLE = "203.0.113.1";

interface Options {
  readonly local4?: string | undefined;
  readonly local6?: string | undefined;
  readonly port: number;
  readonly remotes: Remotes;
  readonly largestDatagram: number;
  /** Only the native one has them, and receives whatever comes whole with gro. */
  readonly offloads?: { readonly gro: boolean };
}

/** What it takes to run the suite on one implementation. */
interface Rig {
  open(options: Options): Promise<Underlay>;
  /** An address that cannot be opened here. */
  readonly foreign: string;
  /** Whether datagrams can be seen from outside, by a socket of the test's own. */
  readonly real: boolean;
  /** Lets pass what the event loop does by itself for real sockets. */
  turn(): void;
}

const rigs: Record<string, () => Rig> = {
  native: () => ({
    open: async (options) => new NativeUnderlay({ ...options, sourcePorts: SOURCE_PORTS }),
    foreign: "203.0.113.2",
    real: true,
    turn: () => {},
  }),
  dgram: () => ({
    open: (options) => DgramUnderlay.open(options),
    foreign: "203.0.113.2",
    real: true,
    turn: () => {},
  }),
  memory: () => {
    const wire = new MemoryWire();
    return {
      open: async (options) => new MemoryUnderlay({ wire, ...options }),
      foreign: "239.0.0.2",
      real: false,
      turn: () => wire.turn(),
    };
  },
};

// ---- ends, bursts, datagrams

interface Datagram {
  readonly payload: Uint8Array;
  readonly from: string;
  readonly truncated: boolean;
}

interface Marked {
  readonly payload: Uint8Array;
  readonly tos: number;
}

/** An underlay that keeps all it receives. */
class End {
  readonly datagrams: Datagram[] = [];
  /** The TOS that each of them came with. */
  readonly marked: Marked[] = [];
  /** The number of rows of each receive that returned some. */
  readonly reads: number[] = [];
  /** Reasons of datagrams that `send` had taken and that were dropped afterwards. */
  readonly unsent: number[] = [];
  readonly #batch = new Batch();
  readonly underlay: Underlay;
  readonly options: Options;

  constructor(underlay: Underlay, options: Options) {
    this.underlay = underlay;
    this.options = options;
  }

  listen(onReadable = () => this.drain()): void {
    const watch = {
      onReadable,
      onLost: (error: VtepError) => {
        throw error;
      },
      onUnsent: (errno: number) => {
        this.unsent.push(errno);
      },
    };
    this.underlay.watch(watch);
  }

  drain(): void {
    while (this.read() > 0);
  }

  read(): number {
    const batch = this.#batch;
    const rows = this.underlay.receive(batch);
    if (rows > 0) this.reads.push(rows);
    for (let row = 0; row < rows; row++) {
      const start = batch.inOffset[row]!;
      const end = start + batch.inLength[row]!;
      const segment = batch.inSegment[row]! || 1;
      const from = formatAddress(batch.inAddress, row * 4);
      const truncated = (batch.inFlags[row]! & TRUNCATED) !== 0;
      let at = start;
      do {
        const payload = batch.slab.slice(at, Math.min(at + segment, end));
        this.datagrams.push({ payload, from, truncated });
        this.marked.push({ payload, tos: batch.inTos[row]! });
        at += segment;
      } while (at < end);
    }
    return rows;
  }

  /** The index of another end's address here. */
  to(other: End, family: 4 | 6 = 4): number {
    const address = family === 4 ? other.options.local4 : other.options.local6;
    return this.options.remotes.add(address!, other.options.port);
  }
}

/** Lays payloads behind each other in a batch, an in row and an out row each. */
class Burst {
  readonly batch = new Batch();
  out = 0;
  #in = 0;
  #end = 0;

  /** Returns the out row. */
  add(payload: Uint8Array, remote: number, hash = 0): number {
    const offset = this.#end + HEADROOM;
    this.batch.slab.set(payload, offset);
    this.batch.inOffset[this.#in] = offset;
    this.batch.inLength[this.#in] = payload.length;
    this.#end = offset + payload.length;
    this.batch.outOffset[this.out] = offset;
    this.batch.outLength[this.out] = payload.length;
    this.batch.outRow[this.out] = this.#in++;
    return this.#to(remote, hash);
  }

  /** The bytes of the last out row to another remote. */
  again(remote: number, hash = 0): number {
    for (const column of [this.batch.outOffset, this.batch.outLength, this.batch.outRow]) {
      column[this.out] = column[this.out - 1]!;
    }
    return this.#to(remote, hash);
  }

  #to(remote: number, hash: number): number {
    this.batch.outRemote[this.out] = remote;
    this.batch.outHash[this.out] = hash;
    this.batch.outError[this.out] = 999;
    return this.out++;
  }

  /** A frame of which an 8-byte header precedes, whose checksum the kernel left to the device. */
  addPartial(frame: Frame, remote: number, hash = 0): number {
    const row = this.add(frame.bytes, remote, hash);
    const inRow = this.batch.outRow[row]!;
    this.batch.outOffset[row] = this.batch.outOffset[row]! - 8;
    this.batch.outLength[row] = this.batch.outLength[row]! + 8;
    const vnet = inRow * VNET_WORDS * 4;
    const host = new Uint16Array(this.batch.inVnet.buffer, this.batch.inVnet.byteOffset + vnet, 5);
    host.fill(0);
    this.batch.inVnet.setUint8(vnet, VNET_NEEDS_CSUM);
    host[3] = frame.csumStart;
    host[4] = frame.csumOffset;
    return row;
  }

  /** Sends all rows, and overwrites the slab at once, as the dataplane's next read would. */
  send(end: End): number {
    const failed = end.underlay.send(this.batch, this.out);
    this.batch.slab.fill(0xee);
    return failed;
  }

  get errors(): number[] {
    return [...this.batch.outError.subarray(0, this.out)];
  }
}

/** Bytes that differ from place to place and from one `seed` to the next. */
function bytes(length: number, seed: number): Uint8Array {
  return Uint8Array.from({ length }, (_, index) => (index * 7 + (index >> 8) + seed * 31) & 0xff);
}

// ---- frames with a partial checksum, built and judged without any code of the product

interface Frame {
  readonly bytes: Uint8Array;
  readonly csumStart: number;
  readonly csumOffset: number;
}

/** Of an upper layer's bytes, in the naive way: 16 bits at a time, folding after each. */
function naiveSum(data: readonly number[]): number {
  let sum = 0;
  for (let index = 0; index < data.length; index += 2) {
    sum += data[index]! * 256 + (data[index + 1] ?? 0);
    if (sum > 0xffff) sum -= 0xffff;
  }
  return sum;
}

function pseudoHeader(addresses: Uint8Array, protocol: number, length: number): number[] {
  return [...addresses, length >> 8, length & 0xff, 0, protocol];
}

/** UDP over IPv4, or TCP over IPv6. */
function partialFrame(family: 4 | 6, payload: Uint8Array): Frame {
  const ip = family === 4 ? [0x45, ...bytes(19, 3)] : [0x60, ...bytes(39, 4)];
  const addresses = Uint8Array.from(ip.slice(family === 4 ? 12 : 8));
  const [protocol, csumOffset, header] = family === 4 ? [17, 6, 8] : [6, 16, 20];
  const upper = [...bytes(header, 5), ...payload];
  const sum = naiveSum(pseudoHeader(addresses, protocol, upper.length));
  upper[csumOffset] = sum >> 8;
  upper[csumOffset + 1] = sum & 0xff;
  const csumStart = 14 + ip.length;
  return { bytes: Uint8Array.from([...bytes(14, 6), ...ip, ...upper]), csumStart, csumOffset };
}

/** What a receiver sums: 0xffff when the checksum is right (RFC 1071). */
function receiverSum(family: 4 | 6, frame: Uint8Array): number {
  const addresses = family === 4 ? frame.subarray(14 + 12, 34) : frame.subarray(14 + 8, 54);
  const upper = [...frame.subarray(14 + (family === 4 ? 20 : 40))];
  const protocol = family === 4 ? 17 : 6;
  return naiveSum([...pseudoHeader(addresses, protocol, upper.length), ...upper]);
}

// ---- the suite

let nextPort = 20_000 + randomInt(10_000);
const net = `127.${randomInt(256)}.${randomInt(256)}`;

describe.each(Object.entries(rigs))("underlay %s", (name, makeRig) => {
  let rig: Rig;
  let ends: End[];

  beforeEach(() => {
    rig = makeRig();
    ends = [];
  });

  afterEach(() => {
    for (const { underlay } of ends) underlay.close();
  });

  /** Opens the next end; it listens unless told otherwise. */
  async function open(
    changes: Partial<Options> = {},
    listen: "listen" | "deaf" = "listen",
  ): Promise<End> {
    const defaults = {
      local4: `${net}.${ends.length + 1}`,
      local6: "::1",
      remotes: new Remotes(),
      largestDatagram: LARGEST_DATAGRAM,
    };
    const open = async (): Promise<End> => {
      const options: Options = { ...defaults, port: nextPort++, ...changes };
      return new End(await rig.open(options), options);
    };
    // Other programs use ports too: unless a test wants this very one, another will do.
    const elsewhere = () => {
      nextPort = 20_000 + randomInt(10_000);
      return open();
    };
    const end = await (changes.port === undefined ? open().catch(elsewhere) : open());
    ends.push(end);
    if (listen === "listen") end.listen();
    return end;
  }

  const eventually = (what: string, ask: () => boolean) =>
    until(what, () => {
      rig.turn();
      return ask();
    });

  const arrived = (end: End, count: number) =>
    eventually(`${count} datagrams`, () => end.datagrams.length >= count);

  /** What was sent before has arrived when this has: for what must not arrive, or not twice. */
  async function barrier(from: End, to: End): Promise<void> {
    const before = to.datagrams.length;
    const mark = bytes(13, 99);
    const burst = new Burst();
    burst.add(mark, from.to(to));
    expect(burst.send(from)).toBe(0);
    await eventually("the last datagram", () =>
      to.datagrams.slice(before).some(({ payload }) => Buffer.compare(payload, mark) === 0),
    );
  }

  describe("carries", () => {
    test.each([1, 2, 63, 64, 65, IN_ROWS])("a burst of %i datagrams", async (count) => {
      const [a, b] = [await open(), await open()];
      const payloads = Array.from({ length: count }, (_, row) => bytes(60 + (row % 7), row));
      const burst = new Burst();
      for (const payload of payloads) burst.add(payload, a.to(b), 5);
      expect(burst.send(a)).toBe(0);
      expect(burst.errors).toEqual(payloads.map(() => 0));
      await arrived(b, count);
      const from = a.options.local4;
      expect(b.datagrams).toEqual(payloads.map((payload) => ({ payload, from, truncated: false })));
    });

    test("a burst longer than what one receive returns", async () => {
      const [a, b] = [await open(), await open()];
      const count = IN_ROWS + 60;
      for (const rows of [IN_ROWS, 60]) {
        const burst = new Burst();
        // No two lengths alike in a row, so that nothing is coalesced to one in row.
        for (let row = 0; row < rows; row++) burst.add(bytes(30 + (row % 2), row), a.to(b));
        expect(burst.send(a)).toBe(0);
      }
      await arrived(b, count);
      expect(b.datagrams).toHaveLength(count);
      expect(Math.max(...b.reads)).toBeLessThanOrEqual(IN_ROWS);
    });

    test("IPv4 and IPv6 in one send", async () => {
      const [a, b] = [await open(), await open()];
      const burst = new Burst();
      for (let row = 0; row < 20; row++) burst.add(bytes(100, row), a.to(b, row % 2 ? 6 : 4), row);
      expect(burst.send(a)).toBe(0);
      await arrived(b, 20);
      for (const family of [4, 6] as const) {
        const from = family === 4 ? a.options.local4 : "::1";
        const seeds = b.datagrams
          .filter((datagram) => datagram.from === from)
          .map(({ payload }) => payload);
        const sent = Array.from({ length: 10 }, (_, index) =>
          bytes(100, 2 * index + (family === 4 ? 0 : 1)),
        );
        expect(seeds.map(hex).sort()).toEqual(sent.map(hex).sort());
      }
    });

    test.each([4, 6] as const)(
      "over IPv%i, from an end that has no other family",
      async (family) => {
        const only = family === 4 ? { local6: undefined } : { local4: undefined };
        const [a, b] = [await open(only), await open(only)];
        const burst = new Burst();
        burst.add(bytes(33, 1), a.to(b, family));
        expect(burst.send(a)).toBe(0);
        await arrived(b, 1);
        expect(b.datagrams[0]?.from).toBe(family === 4 ? a.options.local4 : "::1");
      },
    );

    const families = [4, 6] as const;
    const sizes = [0, 1, 8, 1500, LARGEST_DATAGRAM];
    test.each(families.flatMap((family) => sizes.map((size) => [size, family] as const)))(
      "%i bytes over IPv%i",
      async (size, family) => {
        const [a, b] = [await open(), await open()];
        const burst = new Burst();
        burst.add(bytes(size, 1), a.to(b, family));
        expect(burst.send(a)).toBe(0);
        await arrived(b, 1);
        expect(b.datagrams).toHaveLength(1);
        expect(b.datagrams[0]?.truncated).toBe(false);
        expect(hex(b.datagrams[0]!.payload)).toBe(hex(bytes(size, 1)));
      },
    );

    test.each([LARGEST_DATAGRAM + 1, 20_000, 65_400])(
      "the beginning of %i bytes, flagged, and the datagrams around it whole",
      async (size) => {
        const [a, b] = [await open(), await open(NO_TRAINS)];
        const burst = new Burst();
        burst.add(bytes(77, 1), a.to(b));
        burst.add(bytes(size, 2), a.to(b));
        burst.add(bytes(78, 3), a.to(b));
        expect(burst.send(a)).toBe(0);
        await arrived(b, 3);
        expect(b.datagrams.map(({ truncated }) => truncated)).toEqual([false, true, false]);
        expect(b.datagrams.map(({ payload }) => hex(payload))).toEqual([
          hex(bytes(77, 1)),
          hex(bytes(size, 2).subarray(0, LARGEST_DATAGRAM)),
          hex(bytes(78, 3)),
        ]);
      },
    );

    test("every one of many that are too long, flagged, and those after them whole", async () => {
      const [a, b] = [await open(), await open(NO_TRAINS)];
      const long = 40; // more than fit into one train
      for (let sent = 0; sent < long; sent += 20) {
        const burst = new Burst();
        for (let i = 0; i < 20; i++) burst.add(bytes(LARGEST_DATAGRAM + 1, i), a.to(b));
        burst.add(bytes(79, 4), a.to(b));
        expect(burst.send(a)).toBe(0);
        await arrived(b, (sent / 20 + 1) * 21);
      }
      const [cut, whole] = [true, false].map((is) => b.datagrams.filter((d) => d.truncated === is));
      expect(cut).toHaveLength(long);
      expect(whole!.map(({ payload }) => hex(payload))).toEqual([
        hex(bytes(79, 4)),
        hex(bytes(79, 4)),
      ]);
    });

    test("one in row to many remotes", async () => {
      const a = await open();
      const others = [];
      for (let index = 0; index < 12; index++) others.push(await open());
      const burst = new Burst();
      burst.add(bytes(500, 1), a.to(others[0]!));
      for (const [index, other] of others.entries()) {
        // ::1 is one address for all of them, and a remote is known by its address.
        if (index > 0) burst.again(a.to(other, index === 3 ? 6 : 4));
      }
      burst.add(bytes(20, 2), a.to(others[3]!, 6));
      expect(burst.send(a)).toBe(0);
      for (const [index, other] of others.entries()) {
        await arrived(other, index === 3 ? 2 : 1);
        expect(hex(other.datagrams[0]!.payload)).toBe(hex(bytes(500, 1)));
        expect(other.datagrams).toHaveLength(index === 3 ? 2 : 1);
      }
    });

    test("as many out rows as there are", async () => {
      const [a, b, c] = [await open(), await open(), await open()];
      const burst = new Burst();
      burst.add(bytes(40, 1), a.to(b), 0);
      while (burst.out < OUT_ROWS) {
        // A socket buffer of the kernel's default size would not hold them all.
        const remote = burst.out % 4 === 0 ? a.to(b) : burst.out % 4 === 1 ? a.to(c) : LOCAL;
        burst.again(remote, burst.out);
      }
      expect(burst.send(a)).toBe(OUT_ROWS / 2);
      await arrived(b, OUT_ROWS / 4);
      await arrived(c, OUT_ROWS / 4);
      expect(burst.errors.filter((error) => error === 0)).toHaveLength(OUT_ROWS / 2);
    });

    test("to itself", async () => {
      const a = await open();
      const burst = new Burst();
      burst.add(bytes(64, 1), a.to(a));
      expect(burst.send(a)).toBe(0);
      await arrived(a, 1);
      expect(hex(a.datagrams[0]!.payload)).toBe(hex(bytes(64, 1)));
    });

    test("any burst: everything once, unchanged, in order within a hash", async () => {
      const [a, b, c] = [await open(), await open(), await open()];
      const row = fc.record({
        length: fc.oneof(fc.integer({ min: 0, max: 1500 }), fc.constantFrom(100, 100, 1400)),
        hash: fc.integer({ min: 0, max: 5 }),
        to: fc.constantFrom<["b" | "c", 4 | 6]>(["b", 4], ["b", 6], ["c", 4]),
        copies: fc.integer({ min: 1, max: 3 }),
      });
      const property = fc.asyncProperty(
        fc.array(row, { minLength: 1, maxLength: 60 }),
        async (rows) => {
          for (const end of [b, c]) end.datagrams.length = 0;
          const sent = { b: [] as string[], c: [] as string[] };
          const burst = new Burst();
          for (const [seq, { length, hash, to, copies }] of rows.entries()) {
            const [name, family] = to;
            const payload = Uint8Array.from([hash, seq, family, ...bytes(length, seq)]);
            const remote = a.to(name === "b" ? b : c, family);
            for (let copy = 0; copy < copies; copy++) {
              if (copy === 0) burst.add(payload, remote, hash);
              else burst.again(remote, hash);
              sent[name].push(hex(payload));
            }
          }
          expect(burst.send(a)).toBe(0);
          for (const [end, name] of [
            [b, "b"],
            [c, "c"],
          ] as const) {
            await arrived(end, sent[name].length);
            const got = end.datagrams.map(({ payload }) => hex(payload));
            expect(got.toSorted()).toEqual(sent[name].toSorted());
            expect(byFlow(got)).toEqual(byFlow(sent[name]));
          }
        },
      );
      await fc.assert(property, { numRuns: 40 });
    });
  });

  describe("receives", () => {
    test("no rows while nothing waits", async () => {
      const [a, b] = [await open(), await open({}, "deaf")];
      expect(b.read()).toBe(0);
      const burst = new Burst();
      burst.add(bytes(10, 1), a.to(b));
      burst.send(a);
      await eventually("a datagram", () => b.read() === 1);
      expect(b.read()).toBe(0);
    });

    test("what came before anybody watched", async () => {
      const [a, b] = [await open(), await open({}, "deaf")];
      const burst = new Burst();
      burst.add(bytes(10, 1), a.to(b));
      burst.send(a);
      await barrier(a, await open());
      b.listen();
      await arrived(b, 1);
    });

    test("from many senders, each by its own address", async () => {
      const b = await open();
      const senders = [];
      for (let index = 0; index < 8; index++) senders.push(await open());
      for (const [index, sender] of senders.entries()) {
        const burst = new Burst();
        burst.add(bytes(20, index), sender.to(b));
        expect(burst.send(sender)).toBe(0);
      }
      await arrived(b, senders.length);
      const from = b.datagrams.map((datagram) => [hex(datagram.payload), datagram.from]);
      expect(from.sort()).toEqual(
        senders.map((sender, index) => [hex(bytes(20, index)), sender.options.local4]).sort(),
      );
    });

    test("within the slab and the rows, whatever waits", async () => {
      // Slots of the largest size: not all of them fit at once.
      const largestDatagram = 65_000;
      const [a, b] = [await open(), await open({ largestDatagram }, "deaf")];
      for (let index = 0; index < 3; index++) {
        const burst = new Burst();
        for (let row = 0; row < 8; row++) burst.add(bytes(3000, index * 8 + row), a.to(b));
        expect(burst.send(a)).toBe(0);
      }
      await eventually("24 datagrams", () => {
        b.read();
        return b.datagrams.length === 24;
      });
      expect(b.datagrams.map(({ payload }) => hex(payload))).toEqual(
        Array.from({ length: 24 }, (_, index) => hex(bytes(3000, index))),
      );
    });

    test("by onReadable, again and again as long as something waits", async () => {
      const [a, b] = [await open(), await open({}, "deaf")];
      const burst = new Burst();
      for (let row = 0; row < 10; row++) burst.add(bytes(50, row), a.to(b));
      expect(burst.send(a)).toBe(0);
      let calls = 0;
      b.listen(() => {
        calls++;
        if (calls > 3) b.drain();
      });
      await arrived(b, 10);
      expect(calls).toBeGreaterThan(3);
      // And no more once it has been read.
      const before = calls;
      await barrier(a, await open());
      expect(calls).toBe(before);
    });

    test("again after a drain", async () => {
      const [a, b] = [await open(), await open()];
      for (let round = 1; round <= 20; round++) {
        const burst = new Burst();
        burst.add(bytes(50, round), a.to(b));
        burst.send(a);
        await arrived(b, round);
      }
      expect(b.reads).toHaveLength(20);
    });

    test("what it has room for: the rest is dropped and counted", async () => {
      const [a, b] = [await open(), await open({}, "deaf")];
      expect(b.underlay.capabilities.countsOverflows).toBe(true);
      expect(b.underlay.overflows()).toBe(0);
      const backlogDrops = backlogDropsOfHost();
      const burst = new Burst();
      burst.add(bytes(4096, 0), a.to(b));
      // Each longer than the one before, so that no train forms: a lost train counts as one.
      while (burst.out < OUT_ROWS) {
        burst.batch.outLength[burst.again(a.to(b))] = 4096 - OUT_ROWS + burst.out;
      }
      burst.batch.outLength[0] = 4096 - OUT_ROWS;
      let sent = 0;
      for (let round = 0; round < 8; round++) {
        sent += burst.out - a.underlay.send(burst.batch, burst.out);
      }
      await eventually("an overflow", () => b.underlay.overflows() > 0);
      b.listen();
      await arrived(b, 100); // now there is room again
      await barrier(a, b);
      const received = b.datagrams.length - 1;
      const accounted = received + b.underlay.overflows();
      expect(accounted).toBeLessThanOrEqual(sent);
      expect(accounted + backlogDropsOfHost() - backlogDrops).toBeGreaterThanOrEqual(sent);
    });
  });

  describe("sends", () => {
    test("nothing of an empty burst", async () => {
      const a = await open();
      expect(new Burst().send(a)).toBe(0);
    });

    test("from a slab that may be overwritten at once", async () => {
      const [a, b] = [await open(), await open()];
      const burst = new Burst();
      for (let row = 0; row < 30; row++) {
        burst.add(bytes(1400, row), a.to(b, row % 2 ? 4 : 6), row);
      }
      expect(burst.send(a)).toBe(0); // overwrites
      await arrived(b, 30);
      expect(b.datagrams.map(({ payload }) => hex(payload)).sort()).toEqual(
        Array.from({ length: 30 }, (_, row) => hex(bytes(1400, row))).sort(),
      );
    });

    test.each([4, 6] as const)("a partial checksum completed, IPv%i inside", async (family) => {
      const [a, b] = [await open(), await open()];
      const burst = new Burst();
      const lengths = [0, 1, 2, 3, 100, 1357, 8000];
      const frames = lengths.map((length) => partialFrame(family, bytes(length, length)));
      for (const frame of frames) burst.addPartial(frame, a.to(b));
      expect(burst.send(a)).toBe(0);
      await arrived(b, frames.length);
      for (const [index, { payload }] of b.datagrams.entries()) {
        const frame = payload.subarray(8);
        expect(frame).toHaveLength(frames[index]!.bytes.length);
        expect(receiverSum(family, frame)).toBe(0xffff);
        expect(receiverSum(family, frames[index]!.bytes)).not.toBe(0xffff);
        const checksum = frames[index]!.csumStart + frames[index]!.csumOffset;
        const elsewhere = (data: Uint8Array) =>
          hex(data.map((byte, at) => (at >> 1 === checksum >> 1 ? 0 : byte)));
        expect(elsewhere(frame)).toBe(elsewhere(frames[index]!.bytes));
      }
    });

    test.each([4, 6] as const)("TOS over IPv%i as it is asked, or none", async (family) => {
      const [a, b] = [await open(), await open()];
      const burst = new Burst();
      // Equally long and to one remote, so that only the TOS keeps them from riding together.
      const tos = [0, 0, 3, 3, 1, 0xb8, 0xba, 2, 0, 0xff];
      const payloads = tos.map((_, row) => bytes(200, row));
      for (const [row, payload] of payloads.entries()) {
        burst.batch.outTos[burst.add(payload, a.to(b, family))] = tos[row]!;
      }
      expect(burst.send(a)).toBe(0);
      await arrived(b, tos.length);
      const wanted = a.underlay.capabilities.carriesTos ? tos : tos.map(() => 0);
      expect(b.marked).toEqual(payloads.map((payload, row) => ({ payload, tos: wanted[row]! })));
    });

    test("a super-frame cut into its segments, to many remotes, where it can", async () => {
      const [a, b, c] = [await open(), await open(), await open()];
      const burst = new Burst();
      const payload = bytes(30_000, 5);
      const segments = segmentsOf({ payload }, 1300);
      const frame = frameOf({ payload }, "partial");
      const row = burst.addPartial({ bytes: frame, csumStart: 34, csumOffset: 16 }, a.to(b));
      burst.again(a.to(c, 6));
      burst.add(bytes(99, 1), a.to(b));
      for (const [at, byte] of vnetOf({ payload }, 1300).entries()) {
        burst.batch.inVnet.setUint8(burst.batch.outRow[row]! * VNET_WORDS * 4 + at, byte);
      }
      const { cutsSuperFrames } = a.underlay.capabilities;
      expect(cutsSuperFrames).toBe(name === "native");
      if (!cutsSuperFrames) return; // then no TAP reads any: vtep.ts
      expect(burst.send(a)).toBe(0);
      await arrived(b, segments.length + 1);
      await arrived(c, segments.length);
      const prefix = hex(new Uint8Array(8));
      const frames = (end: End) =>
        end.datagrams.slice(0, segments.length).map(({ payload }) => hex(payload));
      for (const end of [b, c])
        expect(frames(end)).toEqual(segments.map((one) => prefix + hex(one)));
    });

    test("a partial checksum completed once, however many remotes the frame goes to", async () => {
      const [a, b, c, d] = [await open(), await open(), await open(), await open()];
      const burst = new Burst();
      const frame = partialFrame(4, bytes(99, 1));
      burst.addPartial(frame, a.to(b));
      burst.again(a.to(c, 6), 1);
      burst.add(bytes(30, 7), a.to(d));
      burst.addPartial(frame, a.to(b));
      burst.again(a.to(d), 2);
      expect(burst.send(a)).toBe(0);
      for (const end of [b, c, d]) {
        await arrived(end, end === c ? 1 : 2);
        const frames = end.datagrams.filter(({ payload }) => payload.length !== 30);
        for (const { payload } of frames) expect(receiverSum(4, payload.subarray(8))).toBe(0xffff);
      }
    });

    test("frames whose checksum is complete as they are", async () => {
      const [a, b] = [await open(), await open()];
      const burst = new Burst();
      const { bytes: frame } = partialFrame(4, bytes(99, 1));
      const row = burst.add(frame, a.to(b));
      // DATA_VALID, which is not NEEDS_CSUM, with fields that would matter to the latter.
      burst.batch.inVnet.setUint8(burst.batch.outRow[row]! * VNET_WORDS * 4, 2);
      expect(burst.send(a)).toBe(0);
      await arrived(b, 1);
      expect(hex(b.datagrams[0]!.payload)).toBe(hex(frame));
    });

    test("no frame whose partial checksum is not in it, and its neighbours", async () => {
      const [a, b] = [await open(), await open()];
      const good = partialFrame(4, bytes(50, 1));
      const size = good.bytes.length;
      const burst = new Burst();
      burst.addPartial(good, a.to(b));
      const bad = [
        burst.addPartial({ ...good, csumStart: size }, a.to(b)),
        burst.addPartial({ ...good, csumStart: size - 1, csumOffset: 0 }, a.to(b)),
        burst.addPartial({ ...good, csumStart: 65_535, csumOffset: 65_535 }, a.to(b)),
      ];
      burst.addPartial(good, a.to(b));
      expect(burst.send(a)).toBe(bad.length);
      for (const row of bad) expect(burst.errors[row]).not.toBe(0);
      await arrived(b, 2);
      await barrier(a, b);
      expect(b.datagrams).toHaveLength(3);
      for (const { payload } of b.datagrams.slice(0, 2)) {
        expect(receiverSum(4, payload.subarray(8))).toBe(0xffff);
      }
    });

    test("what it can: a row that fails does not harm its neighbours", async () => {
      const [a, b] = [await open({ local6: undefined }), await open()];
      const burst = new Burst();
      const good: number[] = [];
      const bad: Record<string, number> = {};
      const addGood = () => good.push(burst.add(bytes(40, good.length), a.to(b)));
      addGood();
      bad["a family without a socket"] = burst.add(bytes(10, 0), a.to(b, 6));
      addGood();
      bad["more than UDP carries"] = burst.add(bytes(65_508, 0), a.to(b));
      addGood();
      bad["no port"] = burst.add(bytes(10, 0), a.options.remotes.add(`${net}.99`, 0));
      bad["no remote"] = burst.add(bytes(10, 0), LOCAL);
      bad["bytes beyond the slab"] = burst.add(bytes(10, 0), a.to(b));
      burst.batch.outOffset[burst.out - 1] = SLAB_BYTES - 5;
      bad["bytes before the slab"] = burst.add(bytes(10, 0), a.to(b));
      burst.batch.outOffset[burst.out - 1] = -1;
      for (const inRow of [IN_ROWS, -1]) {
        bad[`in row ${inRow}`] = burst.add(bytes(10, 0), a.to(b));
        burst.batch.outRow[burst.out - 1] = inRow;
      }
      addGood();
      bad["an in row beyond the slab"] = burst.addPartial(partialFrame(4, bytes(9, 9)), a.to(b));
      burst.batch.inOffset[burst.batch.outRow[burst.out - 1]!] = SLAB_BYTES - 20;
      addGood();
      const unreachable = burst.add(bytes(10, 0), a.options.remotes.add(UNREACHABLE, 4789));
      addGood();

      const failed = burst.send(a);
      const { errors } = burst;
      expect(failed).toBe(errors.filter((error) => error !== 0).length);
      for (const [why, row] of Object.entries(bad)) expect(errors[row], why).toBeGreaterThan(0);
      for (const row of good) expect(errors[row]).toBe(0);
      await arrived(b, good.length);
      expect(b.datagrams.map(({ payload }) => hex(payload))).toEqual(
        good.map((_, index) => hex(bytes(40, index))),
      );
      // Told by the row, or afterwards by an underlay that cannot know sooner.
      await eventually(
        "why there is no way",
        () => errors[unreachable]! > 0 || a.unsent.length > 0,
      );
      expect(a.unsent.length + failed).toBe(Object.keys(bad).length + 1);
    });

    test("by source ports that follow the hash, or from its one port", async () => {
      const a = await open();
      const { sourcePortEntropy } = a.underlay.capabilities;
      if (!rig.real) return expect(sourcePortEntropy).toBe(false);
      const observer = dgram.createSocket("udp4");
      const ports = new Map<number, Set<number>>();
      let seen = 0;
      observer.on("message", (payload, { port }) => {
        const flow = payload[0]!;
        ports.set(flow, (ports.get(flow) ?? new Set()).add(port));
        seen++;
      });
      observer.bind(0, `${net}.200`);
      await once(observer, "listening");
      try {
        const remote = a.options.remotes.add(`${net}.200`, observer.address().port);
        const hashes = Int32Array.from({ length: 64 }, () => randomInt(2 ** 32) | 0);
        for (let round = 0; round < 2; round++) {
          const burst = new Burst();
          for (const [flow, hash] of hashes.entries()) {
            burst.add(Uint8Array.of(flow), remote, hash);
          }
          expect(burst.send(a)).toBe(0);
        }
        await eventually("every datagram", () => seen === 128);
        for (const of of ports.values()) expect(of.size).toBe(1);
        const distinct = new Set([...ports.values()].flatMap((of) => [...of]));
        if (sourcePortEntropy) {
          expect(distinct.size).toBeGreaterThanOrEqual(6);
          for (const port of distinct) {
            expect(port).toBeGreaterThanOrEqual(SOURCE_PORTS[0]);
            expect(port).toBeLessThanOrEqual(SOURCE_PORTS[1]);
          }
        } else {
          expect([...distinct]).toEqual([a.options.port]);
        }
      } finally {
        observer.close();
      }
    });
  });

  describe("opens", () => {
    /** The code of the error with which it does not open. */
    const refusal = (changes: Partial<Options>): Promise<string> =>
      open(changes).then(
        () => "it opened",
        (error) => (error instanceof VtepError ? error.code : `${error}`),
      );

    test("no port that is in use", async () => {
      const a = await open();
      const { local4, port } = a.options;
      expect(await refusal({ local4, port })).toBe("PORT_IN_USE");
      expect(await refusal({ local4: undefined, port })).toBe("PORT_IN_USE");
      a.underlay.close();
      await open({ local4, port });
    });

    test("both families or nothing", async () => {
      const a = await open({ local4: undefined });
      const { port } = a.options;
      const local4 = `${net}.77`;
      expect(await refusal({ local4, port })).toBe("PORT_IN_USE");
      await open({ local4, port, local6: undefined });
    });

    test("no address of another host, and says what to do", async () => {
      const changes = { local4: rig.foreign, local6: undefined };
      expect(await refusal(changes)).toBe("ADDRESS");
      const { message } = await open(changes).catch((error) => error);
      expect(message).toContain(rig.foreign);
      expect(message).toMatch(/[:;] \S.*[^.]$/);
    });
  });

  describe("closes", () => {
    test("twice", async () => {
      const { underlay } = await open();
      underlay.close();
      underlay.close();
    });

    test("for good: everything else throws CLOSED", async () => {
      const { underlay } = await open();
      underlay.close();
      const batch = new Batch();
      const closed = expect.objectContaining({ name: "VtepError", code: "CLOSED" });
      expect(() => underlay.receive(batch)).toThrow(closed);
      expect(() => underlay.send(batch, 0)).toThrow(closed);
      expect(() => underlay.overflows()).toThrow(closed);
      expect(() => underlay.watch({ onReadable() {}, onLost() {} })).toThrow(closed);
    });

    test("in silence, also with datagrams waiting and on their way", async () => {
      const [a, b, c] = [await open(), await open({}, "deaf"), await open()];
      let calls = 0;
      b.listen(() => {
        calls++;
      });
      const burst = new Burst();
      for (let row = 0; row < 50; row++) burst.add(bytes(500, row), a.to(b));
      burst.send(a);
      await eventually("readiness", () => calls > 0);
      b.underlay.close();
      const before = calls;
      burst.send(a);
      await barrier(a, c);
      await turn();
      expect(calls).toBe(before);
    });

    test("out of its own onReadable", async () => {
      const [a, b] = [await open(), await open({}, "deaf")];
      let calls = 0;
      b.listen(() => {
        calls++;
        b.underlay.close();
      });
      const burst = new Burst();
      for (let row = 0; row < 5; row++) burst.add(bytes(500, row), a.to(b));
      burst.send(a);
      await eventually("readiness", () => calls > 0);
      await barrier(a, await open());
      expect(calls).toBe(1);
    });
  });
});

/** Packets that the host dropped between loopback's two sides: no socket's fault, and rare. */
function backlogDropsOfHost(): number {
  const cpus = readFileSync("/proc/net/softnet_stat", "latin1").trim().split("\n");
  return cpus.reduce((sum, cpu) => sum + Number.parseInt(cpu.split(" ")[1]!, 16), 0);
}

function hex(data: Uint8Array): string {
  return Buffer.from(data).toString("hex");
}

/** Payloads begin with a hash, a sequence number and a family: what must stay in order, by flow. */
function byFlow(payloads: string[]): Map<string, string[]> {
  const flows = new Map<string, string[]>();
  for (const payload of payloads) {
    const flow = payload.slice(0, 2) + payload.slice(4, 6);
    flows.set(flow, [...(flows.get(flow) ?? []), payload.slice(2, 4)]);
  }
  return flows;
}
