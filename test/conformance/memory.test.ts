/** What the in-memory devices do beyond the suites that all devices share: a network in a process. */
import { constants } from "node:os";
import { getHeapStatistics, setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import fc from "fast-check";
import { beforeEach, describe, expect, test } from "vitest";
import { Batch, IN_ROWS } from "../../src/batch.ts";
import { MemoryTap, MemoryTaps, MemoryUnderlay, MemoryWire } from "../../src/device/memory.ts";
import { Remotes } from "../../src/remotes.ts";
import { until } from "../lab/until.ts";

const { EAGAIN, ENETDOWN, ENETUNREACH } = constants.errno;
const PORT = 4789;

let wire: MemoryWire;

beforeEach(() => {
  wire = new MemoryWire();
});

/** A host that hears everything and sends what it is told to. */
class Host {
  readonly heard: string[] = [];
  readonly underlay: MemoryUnderlay;
  readonly remotes = new Remotes();
  readonly #batch = new Batch();

  constructor(local4: string, queueRows?: number) {
    const options = { wire, local4, port: PORT, remotes: this.remotes, largestDatagram: 9000 };
    this.underlay = new MemoryUnderlay({ ...options, ...(queueRows && { queueRows }) });
  }

  /** Answers to whatever it hears with the result of `answer`. */
  listen(answer?: (text: string) => { to: string; text: string } | undefined): this {
    const batch = new Batch();
    const onReadable = () => {
      const rows = this.underlay.receive(batch);
      for (let row = 0; row < rows; row++) {
        const start = batch.inOffset[row]!;
        const text = `${Buffer.from(batch.slab.slice(start, start + batch.inLength[row]!))}`;
        this.heard.push(text);
        const reply = answer?.(text);
        if (reply !== undefined) this.say(reply.to, reply.text);
      }
    };
    this.underlay.watch({ onReadable, onLost() {} });
    return this;
  }

  /** Returns the row's errno. */
  say(to: string, text: string): number {
    const bytes = Buffer.from(text);
    this.#batch.slab.set(bytes);
    this.#batch.outLength[0] = bytes.length;
    this.#batch.outRemote[0] = this.remotes.add(to, PORT);
    this.underlay.send(this.#batch, 1);
    return this.#batch.outError[0]!;
  }
}

describe("a wire", () => {
  test("tells nobody before it runs, and then runs until nothing waits", () => {
    // A relay of five, each of which passes on what it hears.
    const hosts = [1, 2, 3, 4, 5].map((number) =>
      new Host(`192.0.2.${number}`).listen((text) =>
        number < 5 ? { to: `192.0.2.${number + 1}`, text: text + number } : undefined,
      ),
    );
    hosts[4]!.say("192.0.2.1", "x");
    expect(hosts[0]!.heard).toEqual([]);
    wire.run();
    expect(hosts.map(({ heard }) => heard)).toEqual([["x"], ["x1"], ["x12"], ["x123"], ["x1234"]]);
    expect(wire.run()).toBe(0);
  });

  test("finds that something goes in circles", () => {
    const a = new Host("192.0.2.1").listen((text) => ({ to: "192.0.2.2", text }));
    new Host("192.0.2.2").listen((text) => ({ to: "192.0.2.1", text }));
    a.say("192.0.2.2", "again");
    expect(() => wire.run()).toThrow("circles");
    expect(() => wire.run(20)).toThrow("after 20 turns");
  });

  test("loses what it is told to lose", () => {
    const a = new Host("192.0.2.1");
    const b = new Host("192.0.2.2").listen();
    const seen: string[][] = [];
    wire.loses = (payload, from, to) => {
      seen.push([`${Buffer.from(payload)}`, from, to]);
      return payload.length === 4;
    };
    expect(["one", "four", "five", "two"].map((text) => a.say("192.0.2.2", text))).toEqual([
      0, 0, 0, 0,
    ]);
    wire.run();
    expect(b.heard).toEqual(["one", "two"]);
    expect(seen[1]).toEqual(["four", "192.0.2.1", "192.0.2.2"]);
  });

  test("knows no way to an address that nobody has had", () => {
    const a = new Host("192.0.2.1");
    expect(a.say("192.0.2.2", "x")).toBe(ENETUNREACH);
    const b = new Host("192.0.2.2").listen();
    expect(a.say("192.0.2.2", "y")).toBe(0);
    wire.run();
    expect(b.heard).toEqual(["y"]);
  });

  test("carries to whoever has the address now", () => {
    const a = new Host("192.0.2.1");
    const before = new Host("192.0.2.2").listen();
    a.say("192.0.2.2", "first");
    before.underlay.close();
    expect(a.say("192.0.2.2", "lost, since nobody is there")).toBe(0);
    const after = new Host("192.0.2.2").listen();
    a.say("192.0.2.2", "second");
    wire.run();
    expect(before.heard).toEqual([]);
    expect(after.heard).toEqual(["second"]);
  });
});

describe("an underlay in memory", () => {
  test("drops what its queue has no room for, and counts it exactly", () => {
    const a = new Host("192.0.2.1");
    const b = new Host("192.0.2.2", 10).listen();
    for (let index = 0; index < 25; index++) expect(a.say("192.0.2.2", `${index}`)).toBe(0);
    expect(b.underlay.overflows()).toBe(15);
    wire.run();
    expect(b.heard).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9].map(String));
    expect(a.say("192.0.2.2", "again")).toBe(0);
    wire.run();
    expect(b.heard.at(-1)).toBe("again");
    expect(b.underlay.overflows()).toBe(15);
  });

  test("can be congested", () => {
    const a = new Host("192.0.2.1");
    const b = new Host("192.0.2.2").listen();
    a.underlay.congested = true;
    expect(a.say("192.0.2.2", "x")).toBe(EAGAIN);
    a.underlay.congested = false;
    expect(a.say("192.0.2.2", "y")).toBe(0);
    wire.run();
    expect(b.heard).toEqual(["y"]);
  });

  test("can be lost, and tells once", () => {
    const a = new Host("192.0.2.1");
    const errors: unknown[] = [];
    a.underlay.watch({ onReadable() {}, onLost: (error) => errors.push(error) });
    a.underlay.lose();
    a.underlay.lose();
    expect(errors).toEqual([expect.objectContaining({ code: "LOST" })]);
    expect(a.say("192.0.2.1", "x")).toBe(ENETDOWN);
    expect(a.underlay.receive(new Batch())).toBe(0);
    a.underlay.close();
  });
});

describe("a TAP in memory", () => {
  const batch = new Batch();

  test("drops what its queues have no room for, the host's and the VTEP's", () => {
    const tap = new MemoryTap({ wire, name: "vtep7", queueRows: 3 });
    const frame = new Uint8Array(60);
    expect([1, 2, 3, 4, 5].map(() => tap.transmit(frame))).toEqual([
      true,
      true,
      true,
      false,
      false,
    ]);
    expect(tap.dropped).toBe(2);
    const taps = new MemoryTaps();
    taps.add(1, tap, () => undefined);
    expect(taps.read(batch)).toBe(3);
    for (let row = 0; row < 5; row++) batch.outLength[row] = 60;
    batch.outTap.fill(1, 0, 5);
    expect(taps.write(batch, 5)).toBe(2);
    expect([...batch.outError.subarray(0, 5)]).toEqual([0, 0, 0, EAGAIN, EAGAIN]);
    expect(tap.receivedCount).toBe(3);
    tap.clear();
    expect(tap.received).toEqual([]);
    expect(taps.write(batch, 3)).toBe(0);
  });

  test("passes on all of a virtio_net_hdr", () => {
    const tap = new MemoryTap({ wire, name: "vtep7" });
    const vnet = { flags: 1, gsoType: 4, hdrLen: 66, gsoSize: 1386, csumStart: 34, csumOffset: 16 };
    tap.transmit(new Uint8Array(60));
    tap.transmit(new Uint8Array(60), vnet);
    expect(tap.read(batch, 1, 0, IN_ROWS)).toBe(2);
    const at = batch.inVnet.byteOffset;
    expect([...new Uint16Array(batch.inVnet.buffer, at, 5)]).toEqual([0, 0, 0, 0, 0]);
    expect([...new Uint16Array(batch.inVnet.buffer, at + 16, 5)]).toEqual([
      ...new Uint16Array(Uint8Array.of(1, 4).buffer),
      66,
      1386,
      34,
      16,
    ]);
  });

  test("refuses what is no frame", () => {
    const tap = new MemoryTap({ wire, name: "vtep7" });
    expect(() => tap.transmit(new Uint8Array(13))).toThrow(RangeError);
    expect(() => tap.transmit(new Uint8Array(65_550))).toThrow(RangeError);
    expect(tap.transmit(new Uint8Array(65_549))).toBe(true);
  });

  test("keeps frames whole and in order, however its ring turns", () => {
    const size = fc.oneof(
      fc.integer({ min: 14, max: 2000 }),
      fc.integer({ min: 20_000, max: 65_549 }),
    );
    const property = fc.property(fc.array(size, { minLength: 1, maxLength: 8 }), (sizes) => {
      const tap = new MemoryTap({ wire, name: "vtep7" });
      const held: Buffer[] = [];
      let sent = 0;
      for (let round = 0; round < 8; round++) {
        // Filled to the brim, then read once, which frees a part of the ring.
        for (;;) {
          const frame = Buffer.alloc(sizes[sent % sizes.length]!, sent);
          if (!tap.transmit(frame)) break;
          held.push(frame);
          sent++;
        }
        // A ring that keeps its rows whole may refuse early, but not by much more than a row.
        const bytes = held.reduce((sum, { length }) => sum + length, 0);
        if (held.length < 1000) expect(bytes).toBeGreaterThan(1024 * 1024 - 2 * 65_549);
        const rows = tap.read(batch, 1, 0, IN_ROWS);
        expect(rows).toBeGreaterThan(0);
        for (const [row, frame] of held.splice(0, rows).entries()) {
          const start = batch.inOffset[row]!;
          const got = batch.slab.subarray(start, start + batch.inLength[row]!);
          expect(frame.equals(got)).toBe(true);
        }
      }
    });
    fc.assert(property, { numRuns: 20 });
  });
});

test("a frame's way through TAP, wire and TAP allocates nothing", async () => {
  const remotes = new Remotes();
  const options = { wire, port: PORT, remotes, largestDatagram: 9000 };
  const here = new MemoryUnderlay({ ...options, local4: "192.0.2.1" });
  const there = new MemoryUnderlay({ ...options, local4: "192.0.2.2" });
  const [from, to] = ["a", "b"].map((name) => new MemoryTap({ wire, name }));
  const batch = new Batch();
  const remote = remotes.add("192.0.2.2", PORT);
  const taps = new MemoryTaps();
  taps.add(1, from!, () => undefined);
  taps.add(2, to!, () => undefined);
  taps.watch(() => {
    const rows = taps.read(batch);
    for (let row = 0; row < rows; row++) {
      batch.outOffset[row] = batch.inOffset[row]! - 8;
      batch.outLength[row] = batch.inLength[row]! + 8;
      batch.outRow[row] = row;
      batch.outRemote[row] = remote;
    }
    here.send(batch, rows);
  });
  there.watch({
    onReadable() {
      const rows = there.receive(batch);
      for (let row = 0; row < rows; row++) {
        batch.outOffset[row] = batch.inOffset[row]! + 8;
        batch.outLength[row] = batch.inLength[row]! - 8;
      }
      batch.outTap.fill(2, 0, rows);
      taps.write(batch, rows);
    },
    onLost() {},
  });
  const frame = new Uint8Array(200).fill(7);
  const bursts = 200;
  let delivered = 0;
  const work = () => {
    for (let burst = 0; burst < bursts; burst++) {
      for (let row = 0; row < IN_ROWS; row++) from!.transmit(frame);
      wire.run();
      delivered += to!.receivedCount;
      to!.clear();
    }
  };

  setFlagsFromString("--expose-gc");
  const gc = runInNewContext("gc") as () => void;
  const allocatedBy = (job: () => void) => {
    gc();
    const before = getHeapStatistics().used_heap_size;
    job();
    return getHeapStatistics().used_heap_size - before;
  };

  // Measuring works: an object per frame would show.
  const kept: object[] = [];
  const control = allocatedBy(() => {
    for (let index = 0; index < bursts * IN_ROWS; index++) kept.push({ index });
  });
  expect(control).toBeGreaterThan(bursts * IN_ROWS * 16);

  // Code that is not compiled yet allocates, and compiling takes its time on a busy host.
  const perFrame = () => allocatedBy(work) / (bursts * IN_ROWS);
  await until("less than half a byte a frame", () => Math.abs(perFrame()) < 0.5, 20_000);
  expect(delivered % (bursts * IN_ROWS)).toBe(0);
  expect(delivered).toBeGreaterThan(0);
}, 30_000);
