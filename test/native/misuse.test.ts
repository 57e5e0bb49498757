/**
 * What no caller should do. Each mistake is an exception with a code; none may crash the process or
 * touch memory that is not the batch's. What is most likely to crash runs in a process of its own.
 */
import { afterAll, beforeAll, beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import {
  Batch,
  IN_ROWS,
  LAYOUT,
  OUT_ROWS,
  SLAB_BYTES,
  VNET_GSO_TCPV4,
  VNET_NEEDS_CSUM,
} from "../../src/batch.ts";
import {
  addon,
  numberOf,
  type TapQueue,
  type TapQueues,
  type UdpFamily,
} from "../../src/device/native.ts";
import { REMOTE_LAYOUT, Remotes } from "../../src/remotes.ts";
import { ALONE, child, fillRows, freePort, setRow, udpOptions, uniqueName } from "./fixture.ts";

vi.setConfig({ testTimeout: 30_000 }); // child processes take their time on a busy host

const EINVAL = 22;
const { COLUMN_WORDS } = LAYOUT;
// biome-ignore lint/suspicious/noExplicitAny: the mistakes are those a type checker would catch
type Any = any;

const INVALID = { name: "TypeError", code: "ERR_INVALID_ARG_TYPE" };
const RANGE = { name: "RangeError", code: "ERR_OUT_OF_RANGE" };
const CLOSED = { name: "Error", code: "ERR_CLOSED" };
const throwing = (fields: object) => expect.objectContaining(fields);

const NOT_NUMBERS = [undefined, null, "1", {}, [], true, 1n, Symbol("1"), () => 1];
const NOT_COUNTS = [Number.NaN, Infinity, -Infinity, -1, 0.5, 2 ** 31, 2 ** 32, 2 ** 53, 1e300];
/** Where −1 is for none. */
const NOT_OR_NONE = [...NOT_COUNTS.filter((wrong) => wrong !== -1), -2];
const NOT_OBJECTS = [undefined, null, 1, "1", true, Symbol("1")];

let tap: TapQueue;
let taps: TapQueues;
let udp: UdpFamily;
let remote4: number;
let remote6: number;
const remotes = new Remotes();
let batch: Batch;

function openTap(): TapQueue {
  return new (addon().Tap)({
    name: uniqueName(),
    fd: -1,
    multiQueue: false,
    furtherQueues: 0,
    coalesceTcp: true,
    coalesceUdp: true,
  });
}

beforeAll(async () => {
  const port = await freePort();
  remote4 = remotes.add("127.0.0.1", await freePort());
  remote6 = remotes.add("::1", 9);
  tap = openTap();
  taps = new (addon().Taps)();
  taps.add(ALONE, tap);
  udp = new (addon().Udp)(udpOptions(port, { remotes: remotes.words }));
});

afterAll(() => {
  taps.close();
  tap.close();
  udp.close();
});

beforeEach(() => {
  batch = new Batch();
});

describe("constructors", () => {
  const construct = (name: "Batch" | "FlowTable" | "Tap" | "Taps" | "Udp", ...given: Any[]) => {
    const Class = addon()[name] as Any;
    return () => new Class(...given);
  };

  it.each(["Batch", "FlowTable", "Tap", "Taps", "Udp"] as const)("%s needs new", (name) => {
    const Class = addon()[name] as Any;
    const wanted = throwing({ name: "TypeError", code: "ERR_CONSTRUCT_CALL_REQUIRED" });
    expect(() => Class({})).toThrow(wanted);
    expect(() => Class.call(tap, {})).toThrow(wanted);
    const own = new (addon().Batch)(batch.columns, batch.slab);
    expect(() => Class.call(own, batch.columns, batch.slab)).toThrow(wanted);
  });

  it.each(["Batch", "FlowTable", "Tap", "Udp"] as const)(
    "%s refuses what is not its argument",
    (name) => {
      for (const wrong of NOT_OBJECTS) {
        expect(construct(name, wrong, wrong)).toThrow(throwing(INVALID));
      }
      expect(construct(name)).toThrow(throwing(INVALID));
      expect(construct(name, {}, {})).toThrow(throwing(INVALID));
      expect(construct(name, [], [])).toThrow(throwing(INVALID));
      expect(construct(name, () => 1)).toThrow(throwing(INVALID));
    },
  );

  it("Batch refuses memory that could go away", () => {
    const { columns, slab } = batch;
    const unshared = [new Int32Array(COLUMN_WORDS), new Uint8Array(SLAB_BYTES)] as const;
    expect(construct("Batch", unshared[0], slab)).toThrow(throwing(INVALID));
    expect(construct("Batch", columns, unshared[1])).toThrow(throwing(INVALID));
    const detached = new Int32Array(COLUMN_WORDS);
    structuredClone(detached.buffer, { transfer: [detached.buffer] });
    expect(construct("Batch", detached, slab)).toThrow(throwing(INVALID));
    expect(construct("Batch", Buffer.alloc(COLUMN_WORDS * 4), slab)).toThrow(throwing(INVALID));
  });

  it("Batch refuses other types and sizes", () => {
    const { columns, slab } = batch;
    const shared = (bytes: number) => new SharedArrayBuffer(bytes);
    expect(construct("Batch", slab, columns)).toThrow(throwing(INVALID));
    expect(construct("Batch", new Uint32Array(columns.buffer, 0, COLUMN_WORDS), slab)).toThrow(
      throwing(INVALID),
    );
    expect(construct("Batch", columns, batch.view)).toThrow(throwing(INVALID));
    expect(construct("Batch", columns, new Uint8ClampedArray(shared(SLAB_BYTES)))).toThrow(
      throwing(INVALID),
    );
    for (const change of [-1, 1]) {
      const words = new Int32Array(shared((COLUMN_WORDS + change) * 4));
      expect(construct("Batch", words, slab)).toThrow(throwing(RANGE));
      const bytes = new Uint8Array(shared(SLAB_BYTES + change));
      expect(construct("Batch", columns, bytes)).toThrow(throwing(RANGE));
    }
    expect(construct("Batch", new Int32Array(shared(0)), slab)).toThrow(throwing(RANGE));
  });

  it("FlowTable refuses guards that could go away, of other types, and too few", () => {
    const shared = new SharedArrayBuffer(64);
    const detached = new Int32Array(16);
    structuredClone(detached.buffer, { transfer: [detached.buffer] });
    for (const wrong of [
      new Int32Array(16),
      detached,
      shared,
      new Uint32Array(shared),
      new Uint8Array(shared),
      new DataView(shared),
      batch.slab,
    ]) {
      expect(construct("FlowTable", wrong)).toThrow(throwing(INVALID));
    }
    for (const words of [0, 1, 3]) {
      expect(construct("FlowTable", new Int32Array(shared, 0, words))).toThrow(throwing(RANGE));
    }
    expect(construct("FlowTable", new Int32Array(shared, 0, 4))).not.toThrow();
  });

  it("Taps and Udp refuse flows that are none", () => {
    const flows = new (addon().FlowTable)(batch.columns);
    const failed = Object.create(Object.getPrototypeOf(flows));
    for (const wrong of [null, 1, "1", true, {}, [], batch.columns, tap, taps, udp, failed]) {
      expect(construct("Taps", wrong)).toThrow(throwing(INVALID));
      expect(construct("Udp", { ...udpOptions(4), flows: wrong })).toThrow(throwing(INVALID));
    }
  });

  const tapOptions = {
    name: uniqueName(),
    fd: -1,
    multiQueue: false,
    furtherQueues: 0,
    coalesceTcp: true,
    coalesceUdp: true,
  };
  it.each([
    ["name", [undefined, 1, {}, null], INVALID],
    ["name", ["", "a".repeat(16), "a\0b", "é".repeat(8)], RANGE],
    ["fd", NOT_NUMBERS, INVALID],
    ["fd", NOT_OR_NONE, RANGE],
    ["multiQueue", [undefined, 1, 0, "true", null], INVALID],
    ["furtherQueues", NOT_NUMBERS, INVALID],
    ["furtherQueues", [...NOT_COUNTS, 256], RANGE],
    ["coalesceTcp", [undefined, 1, 0, "true", null], INVALID],
    ["coalesceUdp", [undefined, 1, 0, "true", null], INVALID],
  ] as const)("Tap checks %s", (key, values, wanted) => {
    for (const value of values) {
      expect(construct("Tap", { ...tapOptions, [key]: value })).toThrow(throwing(wanted));
    }
  });

  it("Tap says what the system refused", () => {
    const bad = throwing({ name: "Error", code: "EINVAL", syscall: "ioctl(TUNSETIFF)" });
    expect(construct("Tap", { ...tapOptions, name: "a/b" })).toThrow(bad);
  });

  const shortRemotes = new Int32Array(new SharedArrayBuffer(65_536 * 36 - 4));
  it.each([
    ["family", NOT_NUMBERS, INVALID],
    ["family", [...NOT_COUNTS, 5, 0], RANGE],
    ["address", [undefined, 1, {}], INVALID],
    ["address", ["", "1".repeat(100), "127.0.0.1\0"], RANGE],
    ["port", NOT_NUMBERS, INVALID],
    ["port", [...NOT_COUNTS, 0, 65_536], RANGE],
    ["sourcePorts", [undefined, 1, "1,2", {}, [], [1], ["1", 2]], INVALID],
    [
      "sourcePorts",
      [
        [0, 1],
        [2, 1],
        [1, 65_536],
        [Number.NaN, 2],
      ],
      RANGE,
    ],
    ["sharer", NOT_NUMBERS, INVALID],
    ["sharer", [...NOT_OR_NONE, 256], RANGE],
    ["fd", NOT_NUMBERS, INVALID],
    ["fd", NOT_OR_NONE, RANGE],
    ["fan", NOT_NUMBERS, INVALID],
    ["fan", [...NOT_COUNTS, 0, 65], RANGE],
    ["slotBytes", NOT_NUMBERS, INVALID],
    ["slotBytes", [...NOT_COUNTS, 0, 65_537], RANGE],
    ["segment", [undefined, 1, 0, "true", null], INVALID],
    ["coalesce", [undefined, 1, 0, "true", null], INVALID],
    ["receiveBuffer", NOT_NUMBERS, INVALID],
    ["receiveBuffer", NOT_COUNTS, RANGE],
    ["sendBuffer", NOT_NUMBERS, INVALID],
    ["sendBuffer", NOT_COUNTS, RANGE],
    ["remotes", [undefined, [], new Int32Array(65_536 * 8), new Remotes()], INVALID],
    ["remotes", [shortRemotes], RANGE],
  ] as const)("Udp checks %s", (key, values, wanted) => {
    for (const value of values) {
      expect(construct("Udp", { ...udpOptions(4), [key]: value })).toThrow(throwing(wanted));
    }
  });

  it("Udp says what the system refused", () => {
    const refused = (changes: object) => construct("Udp", { ...udpOptions(4999), ...changes });
    expect(refused({ address: "192.0.2.1" })).toThrow(
      throwing({ name: "Error", code: "EADDRNOTAVAIL", syscall: "bind" }),
    );
    const unparsed = throwing({ code: "EINVAL", syscall: "inet_pton" });
    for (const address of ["::1", "localhost", "127.0.0.1.1", "127.0.0.1%lo"]) {
      expect(refused({ address })).toThrow(unparsed);
    }
    expect(refused({ family: 6 })).toThrow(unparsed);
    expect(refused({ family: 6, address: `fe80::1%${uniqueName()}` })).toThrow(
      throwing({ code: "ENODEV" }),
    );
  });

  it("lets through what a getter of the options throws", () => {
    const options = {
      get name(): string {
        throw new Error("of the getter's own");
      },
    };
    expect(construct("Tap", options)).toThrow("of the getter's own");
  });
});

describe("methods", () => {
  it("refuse a batch that is none", () => {
    const number = numberOf(batch);
    const own = new (addon().Batch)(batch.columns, batch.slab);
    const none = [
      -1,
      -0.5,
      number + 0.5,
      own.number + 1,
      2 ** 32,
      2 ** 64,
      Number.NaN,
      Infinity,
      `${number}`,
    ];
    for (const value of [
      ...NOT_OBJECTS.filter((one) => one !== 1),
      {},
      [],
      batch,
      own,
      ...none,
    ] as Any[]) {
      expect(() => taps.read(value)).toThrow(throwing(INVALID));
      expect(() => taps.write(value, 0)).toThrow(throwing(INVALID));
      expect(() => udp.receive(value)).toThrow(throwing(INVALID));
      expect(() => udp.send(value, 0)).toThrow(throwing(INVALID));
    }
    expect(() => (taps as Any).read()).toThrow(throwing(INVALID));
  });

  it("refuse counts that are none", () => {
    const number = numberOf(batch);
    for (const wrong of NOT_NUMBERS as Any[]) {
      expect(() => taps.write(number, wrong)).toThrow(throwing(INVALID));
      expect(() => taps.add(wrong, tap)).toThrow(throwing(INVALID));
      expect(() => taps.remove(wrong)).toThrow(throwing(INVALID));
      expect(() => taps.limit(wrong, 1)).toThrow(throwing(INVALID));
      expect(() => taps.limit(ALONE, wrong)).toThrow(throwing(INVALID));
      expect(() => udp.send(number, wrong)).toThrow(throwing(INVALID));
    }
    for (const wrong of [...NOT_COUNTS, OUT_ROWS + 1]) {
      expect(() => taps.write(number, wrong)).toThrow(throwing(RANGE));
      expect(() => udp.send(number, wrong)).toThrow(throwing(RANGE));
    }
    for (const wrong of [...NOT_COUNTS, 65_536]) {
      expect(() => taps.add(wrong, tap)).toThrow(throwing(RANGE));
      expect(() => taps.remove(wrong)).toThrow(throwing(RANGE));
      expect(() => taps.limit(wrong, 1)).toThrow(throwing(RANGE));
    }
    for (const wrong of [...NOT_COUNTS, 0, IN_ROWS + 1]) {
      expect(() => taps.limit(ALONE, wrong)).toThrow(throwing(RANGE));
    }
  });

  it("refuse a this of another class, or have no need of it", () => {
    const others = [{}, null, undefined, 1, Object.create(tap), new Proxy(tap, {})];
    for (const self of [...others, udp] as Any[]) {
      expect(taps.write.call(self, numberOf(batch), 0)).toBe(0);
      expect(() => taps.watch.call(self, () => {})).toThrow(TypeError);
      expect(() => tap.close.call(self)).toThrow(TypeError);
    }
    for (const self of [...others, tap] as Any[]) {
      expect(udp.send.call(self, numberOf(batch), 0)).toBe(0);
      expect(() => udp.fd.call(self)).toThrow(TypeError);
    }
    expect(udp.fd()).toBeGreaterThan(2);
  });

  it("take offloads as bits, and say which the kernel does not know", () => {
    for (const wrong of NOT_NUMBERS as Any[]) {
      expect(() => tap.setOffloads(wrong)).toThrow(throwing(INVALID));
    }
    for (const wrong of NOT_COUNTS) expect(() => tap.setOffloads(wrong)).toThrow(throwing(RANGE));
    expect(tap.setOffloads(0x8000)).toBe(-EINVAL);
    expect(tap.setOffloads(0x02)).toBe(-EINVAL); // segments without their checksums
    expect(tap.setOffloads(0x0f)).toBe(0);
    expect(tap.setOffloads(0)).toBe(0);
    expect(tap.coalesces()).toEqual({ tcp: true, udp: true });
  });

  it("refuse a callback that is none, and a second watch", () => {
    for (const wrong of [...NOT_OBJECTS, {}] as Any[]) {
      expect(() => taps.watch(wrong)).toThrow(throwing(INVALID));
    }
    taps.watch(() => {});
    expect(() => taps.watch(() => {})).toThrow(throwing({ code: "ERR_WATCHED" }));
    taps.unwatch();
    taps.unwatch();
    taps.watch(() => {});
    taps.unwatch();
  });

  it("refuse what is no TAP, a slot that is taken, and a TAP that has one", async () => {
    for (const wrong of [...NOT_OBJECTS, {}, taps, udp, Object.create(tap)] as Any[]) {
      expect(() => taps.add(2, wrong)).toThrow(throwing(INVALID));
    }
    const taken = throwing({ code: "EEXIST" });
    expect(() => taps.add(2, tap)).toThrow(taken);
    const other = openTap();
    expect(() => taps.add(ALONE, other)).toThrow(taken);
    taps.add(2, other);
    other.close();
    expect(() => taps.add(2, other)).toThrow(throwing(CLOSED));
    taps.remove(2);
    taps.remove(65_535);
    taps.add(2, openTap()); // which nobody closes
  });

  it("refuse to work after close, however often it is closed", async () => {
    const closedTap = openTap();
    const closedUdp = new (addon().Udp)(udpOptions(await freePort()));
    const closedTaps = new (addon().Taps)();
    closedTaps.add(0, closedTap);
    for (const device of [closedTaps, closedUdp]) {
      device.watch(() => {});
      device.close();
      device.close();
      device.unwatch();
      expect(device.fd()).toBe(-1);
      expect(() => device.watch(() => {})).toThrow(throwing(CLOSED));
    }
    closedTap.close();
    closedTap.close();
    expect(closedTap.fd()).toBe(-1);
    const number = numberOf(batch);
    expect(() => closedTaps.read(number)).toThrow(throwing(CLOSED));
    expect(() => closedTaps.write(number, 1)).toThrow(throwing(CLOSED));
    expect(() => closedTaps.add(0, tap)).toThrow(throwing(CLOSED));
    expect(() => closedTaps.remove(0)).toThrow(throwing(CLOSED));
    expect(() => closedTaps.limit(0, 1)).toThrow(throwing(CLOSED));
    expect(() => closedTaps.gather()).toThrow(throwing(CLOSED));
    expect(() => closedTap.setOffloads(0)).toThrow(throwing(CLOSED));
    expect(() => closedTap.coalesces()).toThrow(throwing(CLOSED));
    expect(() => closedUdp.receive(number)).toThrow(throwing(CLOSED));
    expect(() => closedUdp.send(number, 1)).toThrow(throwing(CLOSED));
    expect(() => closedUdp.overflows()).toThrow(throwing(CLOSED));
    expect(() => closedUdp.refusals()).toThrow(throwing(CLOSED));
    expect(() => closedUdp.trains()).toThrow(throwing(CLOSED));
  });
});

describe("rows", () => {
  const OUTSIDE = [
    [-1, 60],
    [0, -1],
    [-(2 ** 31), 60],
    [0, -(2 ** 31)],
    [0, SLAB_BYTES + 1],
    [1, SLAB_BYTES],
    [SLAB_BYTES - 59, 60],
    [SLAB_BYTES + 1, 0],
    [2 ** 31 - 1, 2 ** 31 - 1],
    [2 ** 31 - 1, 1],
  ] as const;

  it.each(OUTSIDE)("outside of the slab are EINVAL: offset %i, length %i", (offset, length) => {
    setRow(batch, 0, { offset, length, remote: remote4 });
    setRow(batch, 1, { offset: 0, length: 60, remote: remote4 });
    expect(udp.send(numberOf(batch), 2)).toBe(1);
    expect([...batch.outError.subarray(0, 2)]).toEqual([EINVAL, 0]);
    expect(taps.write(numberOf(batch), 1)).toBe(1);
    expect(batch.outError[0]).toBe(EINVAL);
  });

  it.each([-1, IN_ROWS, 2 ** 31 - 1, -(2 ** 31)])("of in row %i are EINVAL", (inRow) => {
    setRow(batch, 0, { offset: 0, length: 60, remote: remote4, inRow });
    expect(udp.send(numberOf(batch), 1)).toBe(0);
    expect(batch.outError[0]).toBe(EINVAL);
  });

  it("of no remote, or of one of another family, are left alone", () => {
    // What lies behind the last one is how often each has refused something: say, as often as its family.
    const { REMOTE_REFUSED, REMOTE_WORDS } = REMOTE_LAYOUT;
    const behind = remotes.words.subarray(REMOTE_REFUSED, REMOTE_REFUSED + REMOTE_WORDS).fill(4);
    onTestFinished(() => void behind.fill(0));
    const others = [0, -1, 65_535, 65_536, 2 ** 31 - 1, -(2 ** 31), remote6];
    for (const [row, remote] of others.entries())
      setRow(batch, row, { offset: 0, length: 60, remote });
    expect(udp.send(numberOf(batch), others.length)).toBe(0);
    expect(others.every((_, row) => batch.outError[row] === -1)).toBe(true);
  });

  it.each([...OUTSIDE, [0, 1], [SLAB_BYTES - 60, 60]] as const)(
    "whose partial checksum cannot be completed are EINVAL: offset %i, length %i",
    (offset, length) => {
      setRow(batch, 0, { offset: 0, length: 60, remote: remote4, inRow: 3 });
      batch.inOffset[3] = offset;
      batch.inLength[3] = length;
      batch.inVnet.setUint8(3 * 16, VNET_NEEDS_CSUM);
      batch.inVnet.setUint16(3 * 16 + 6, 50, true);
      batch.inVnet.setUint16(3 * 16 + 8, 9, true);
      expect(udp.send(numberOf(batch), 1)).toBe(0);
      expect(batch.outError[0]).toBe(EINVAL);
      expect(batch.inVnet.getUint8(3 * 16)).toBe(VNET_NEEDS_CSUM);
    },
  );

  it.each([-(2 ** 31), -1, SLAB_BYTES, 2 ** 31 - 1])(
    "whose super-frame does not lie behind their beginning are EINVAL: at %i",
    (offset) => {
      setRow(batch, 0, { offset: 256, length: 100, remote: remote4, inRow: 3 });
      batch.inOffset[3] = offset;
      batch.inVnet.setUint8(3 * 16 + 1, VNET_GSO_TCPV4);
      expect(udp.send(numberOf(batch), 1)).toBe(0);
      expect(batch.outError[0]).toBe(EINVAL);
    },
  );

  it("of random numbers crash nothing", () => {
    const number = numberOf(batch);
    let state = 1;
    const random = () => {
      state = Math.imul(state, 1_664_525) + 1_013_904_223;
      return state & 0x8000 ? state : state >> (state & 31);
    };
    for (let round = 0; round < 200; round++) {
      for (let word = 0; word < COLUMN_WORDS; word++) batch.columns[word] = random();
      for (let row = 0; row < OUT_ROWS; row += 2) batch.outRemote[row] = remote4;
      udp.send(number, OUT_ROWS);
      taps.write(number, OUT_ROWS);
      udp.receive(number);
      taps.read(number);
    }
  });

  it("sends all rows there are", () => {
    fillRows(batch, new Array(OUT_ROWS).fill(100), remote4);
    expect(udp.send(numberOf(batch), OUT_ROWS)).toBe(OUT_ROWS);
  });
});

describe("in a process of its own", () => {
  const setUp = `
    const name = "vt" + process.pid, options = { name, fd: -1, multiQueue: false, furtherQueues: 0, coalesceTcp: true, coalesceUdp: true };
    const sab = (bytes) => new SharedArrayBuffer(bytes);
    const batch = new addon.Batch(new Int32Array(sab(${COLUMN_WORDS * 4})), new Uint8Array(sab(${SLAB_BYTES})));
    const { execFileSync } = require("node:child_process");
    const up = () => execFileSync("ip", ["link", "set", name, "up"]); // the kernel sends a few frames
  `;

  it("frames that throw, or are not there, are exceptions", () => {
    const { status, output } = child(`
      const frames = [1];
      Object.defineProperty(frames, 0, { get() { throw new Error("of the getter's own"); } });
      for (const none of [frames, new Array(2 ** 32 - 1)]) {
        try { addon.coalesce(none, true, true); } catch ({ message }) { console.log(message); }
      }
    `);
    const told = "of the getter's own\na Uint8Array is wanted\n";
    expect({ status, output }).toEqual({ status: 0, output: told });
  });

  it("closing inside of the callback ends it all", () => {
    const { status, output } = child(`${setUp}
      const tap = new addon.Tap(options), taps = new addon.Taps();
      taps.add(1, tap);
      let calls = 0;
      taps.watch(function (status) {
        calls++;
        tap.close();
        this.close();
        this.close();
        try { taps.read(batch); } catch ({ code }) { console.log(this === taps, status, code); }
      });
      up();
      process.on("exit", () => console.log("calls", calls));
    `);
    expect({ status, output }).toEqual({ status: 0, output: "true 0 ERR_CLOSED\ncalls 1\n" });
  });

  it("watching and unwatching inside of the callback works", () => {
    const { status, output } = child(`${setUp}
      const tap = new addon.Tap(options), taps = new addon.Taps();
      taps.add(1, tap);
      let calls = 0;
      const onReadable = () => {
        taps.unwatch();
        if (++calls < 100) taps.watch(onReadable);
        else console.log("calls", calls);
      };
      taps.watch(onReadable);
      up();
    `);
    expect({ status, output }).toEqual({ status: 0, output: "calls 100\n" });
  });

  it("an exception of the callback is an uncaught exception", () => {
    const code = `${setUp}
      const tap = new addon.Tap(options), taps = new addon.Taps();
      taps.add(1, tap);
      taps.watch(() => { throw new Error("of the callback"); });
      up();
    `;
    const uncaught = child(code);
    expect(uncaught.status).toBe(1);
    expect(uncaught.output).toContain("Error: of the callback");
    const caught = child(`${code}
      process.on("uncaughtException", ({ message }) => { console.log(message); taps.close(); tap.close(); });
    `);
    expect(caught).toEqual({ status: 0, output: "of the callback\n" });
  });

  it("exit with everything open is an exit like any other", () => {
    const exits = ["process.exit(3)", "process.nextTick(() => process.exit(3))"];
    for (const exit of [
      ...exits,
      "taps.watch(() => {}); up(); setTimeout(() => process.exit(3), 50)",
    ]) {
      const { status, output } = child(`${setUp}
        const tap = new addon.Tap(options), taps = new addon.Taps();
        taps.add(1, tap);
        ${exit.includes("watch") ? "" : "taps.watch(() => {});"}
        ${exit};
      `);
      expect({ status, output }).toEqual({ status: 3, output: "" });
    }
  });

  it("a number that is guessed while its batch is refused is none", () => {
    const { status, output } = child(`${setUp}
      const taps = new addon.Taps();
      let caught = "nothing";
      const set = () => {
        delete TypeError.prototype.code;
        try {
          taps.write(batch.number + 1, 1);
        } catch ({ message }) {
          caught = message;
        }
      };
      Object.defineProperty(TypeError.prototype, "code", { configurable: true, set });
      try {
        new addon.Batch(1, 2);
      } catch {}
      console.log(caught);
      taps.close();
    `);
    expect({ status, output }).toEqual({
      status: 0,
      output: "batch must be the number of a Batch\n",
    });
  });

  it("a subclass, a lost reference and a batch collected early do no harm", () => {
    const { status, output } = child(
      `${setUp}
      class Sub extends addon.Tap {}
      const tap = new Sub(options), taps = new addon.Taps();
      taps.add(1, tap);
      up();
      const { read } = taps;
      let number;
      for (let i = 0; i < 1000; i++) {
        ({ number } = new addon.Batch(new Int32Array(sab(${COLUMN_WORDS * 4})), new Uint8Array(sab(${SLAB_BYTES}))));
        read(number);
        if (i % 100 === 0) gc();
      }
      console.log(tap instanceof addon.Tap, tap.name === name, number);
      const codeOf = (call) => {
        try {
          return String(call());
        } catch ({ code }) {
          return code;
        }
      };
      setImmediate(() => {
        gc();
        setImmediate(() => {
          console.log(codeOf(() => read(number)));
          taps.close();
          console.log(codeOf(() => read(batch.number)));
          tap.close();
        });
      });
    `,
      "--expose-gc",
    );
    const told = ["true true 1000", "ERR_INVALID_ARG_TYPE", "ERR_CLOSED"];
    expect({ status, output: output.trimEnd().split("\n") }).toEqual({ status: 0, output: told });
  });
});
