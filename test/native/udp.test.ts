/** UDP beyond what every `Underlay` does: what the kernel's sockets add, over loopback. */
import { execFileSync } from "node:child_process";
import type dgram from "node:dgram";
import { readFileSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";
import { beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import {
  Batch,
  HEADROOM,
  IN_ROWS,
  SLAB_BYTES,
  TRUNCATED,
  VNET_GSO_NONE,
  VNET_WORDS,
} from "../../src/batch.ts";
import { addon, numberOf, type UdpFamily, type UdpFamilyOptions } from "../../src/device/native.ts";
import { NativeUnderlay } from "../../src/device/native-underlay.ts";
import type { VtepError } from "../../src/errors.ts";
import { addressWords, REMOTE_WORDS, Remotes } from "../../src/remotes.ts";
import { preload } from "../lab/preload.ts";
import { until } from "../lab/until.ts";
import {
  descriptors,
  fillRows,
  freePort,
  moduleChild,
  receiver,
  setRow,
  udpOptions,
  uniqueName,
} from "./fixture.ts";
import { frameOf, type Segment, vnetOf } from "./segments.ts";

vi.setConfig({ testTimeout: 30_000 }); // child processes take their time on a busy host

const EAGAIN = 11;
const EINVAL = 22;
const EMSGSIZE = 90;
const ENOBUFS = 105;
const EHOSTUNREACH = 113;
const EPERM = 1;
const EAFNOSUPPORT = 97;
const ENETDOWN = 100;

let remotes: Remotes;
let batch: Batch;

beforeEach(() => {
  remotes = new Remotes();
  batch = new Batch();
});

/** A family; `toItself` is its own index in `remotes`, which know one port of an address. */
async function open(changes: Partial<UdpFamilyOptions> = {}) {
  const address = changes.address ?? "127.0.0.1";
  const port = await freePort(address);
  const udp = new (addon().Udp)(udpOptions(port, { remotes: remotes.words, ...changes }));
  onTestFinished(() => udp.close());
  return { udp, port, address, toItself: () => remotes.add(address, port) };
}

const IPV6 = { family: 6, address: "::1" } as const;

/** Receives until so many datagrams were there; only the last batch remains. */
async function receive(udp: UdpFamily, count: number): Promise<number> {
  let rows = 0;
  await until(`${count} datagrams`, () => {
    rows += udp.receive(numberOf(batch));
    return rows >= count;
  });
  return rows;
}

interface Arrived {
  payload: Uint8Array;
  flags: number;
  /** Of the row that it came in, which may have been a train. */
  row: { offset: number; length: number; segment: number; address: number[] };
}

/** Receives so many datagrams, each out of its row. */
async function collect(udp: UdpFamily, count: number): Promise<Arrived[]> {
  const arrived: Arrived[] = [];
  await until(`${count} datagrams`, () => {
    const rows = udp.receive(numberOf(batch));
    for (let row = 0; row < rows; row++) arrived.push(...datagramsOf(row));
    return arrived.length >= count;
  });
  return arrived;
}

function datagramsOf(row: number): Arrived[] {
  const [offset, length] = [batch.inOffset[row]!, batch.inLength[row]!];
  const [segment, flags] = [batch.inSegment[row]!, batch.inFlags[row]!];
  const address = [...batch.inAddress.subarray(row * 4, row * 4 + 4)];
  const count = length === 0 ? 1 : Math.ceil(length / segment);
  return Array.from({ length: count }, (_, at) => {
    const end = Math.min(offset + (at + 1) * segment, offset + length);
    const payload = batch.slab.slice(offset + at * segment, end);
    return { payload, flags, row: { offset, length, segment, address } };
  });
}

async function listener(address = "127.0.0.1") {
  const socket = await receiver(address);
  onTestFinished(() => void socket.close());
  const got: { payload: Buffer; port: number }[] = [];
  socket.on("message", (payload, { port }) => got.push({ payload, port }));
  return { socket, got, remote: remotes.add(address, socket.address().port) };
}

describe.each([
  ["IPv4", {}],
  ["IPv6", IPV6],
] as const)("over %s", (_, family) => {
  it("a full batch crosses, each datagram with its length, content and sender", async () => {
    const { udp, toItself, address } = await open(family);
    const lengths = Array.from({ length: IN_ROWS }, (_, row) => 1 + ((row * 37) % 1500));
    fillRows(batch, lengths, toItself());
    expect(udp.send(numberOf(batch), IN_ROWS)).toBe(IN_ROWS);
    expect(batch.outError.subarray(0, IN_ROWS).every((error) => error === 0)).toBe(true);
    batch.slab.fill(0xee);
    const arrived = await collect(udp, IN_ROWS);
    expect(arrived.map(({ payload }) => payload.length)).toEqual(lengths);
    const words = [...addressWords(address)];
    for (const [at, { payload, flags, row }] of arrived.entries()) {
      expect(row.offset % 16).toBe(2);
      expect(row.address).toEqual(words);
      expect(flags).toBe(0);
      expect(payload.every((byte) => byte === at)).toBe(true);
    }
  });

  it("source ports are stable by hash, many, and of the range", async () => {
    const { udp, port } = await open({ ...family, sourcePorts: [20_000, 20_100] });
    const { got, remote } = await listener(family === IPV6 ? "::1" : "127.0.0.1");
    for (let round = 1; round <= 3; round++) {
      for (let row = 0; row < 256; row++) {
        batch.slab[row] = row;
        setRow(batch, row, { offset: row, length: 1, remote, hash: row * 0x01_01_01_01 });
      }
      expect(udp.send(numberOf(batch), 256)).toBe(256);
      await until("all datagrams", () => got.length === 256 * round);
    }
    const ports = new Map<number, Set<number>>();
    for (const { payload, port: source } of got) {
      const flow = payload[0]!;
      ports.set(flow, (ports.get(flow) ?? new Set()).add(source));
    }
    expect([...ports.values()].every((sources) => sources.size === 1)).toBe(true);
    const shares = new Map<number, number>();
    for (const [source] of ports.values()) shares.set(source!, (shares.get(source!) ?? 0) + 1);
    expect(shares.size).toBe(16);
    expect(Math.max(...shares.values())).toBeLessThan(32); // 16 would be perfectly even
    for (const source of shares.keys()) {
      expect(source).toBeGreaterThanOrEqual(20_000);
      expect(source).toBeLessThanOrEqual(20_100);
      expect(source).not.toBe(port);
    }
  });

  it("flows that have little to send leave before those that have much", async () => {
    const { udp } = await open({ ...family, fan: 2 });
    const { got, remote } = await listener(family === IPV6 ? "::1" : "127.0.0.1");
    const send = async (hashes: number[], length: number, sent: number) => {
      for (const [row, hash] of hashes.entries()) {
        setRow(batch, row, { offset: row, length: row === 0 ? length : 1, remote, hash });
      }
      expect(udp.send(numberOf(batch), hashes.length)).toBe(hashes.length);
      await until("them", () => got.length === sent);
    };
    const hashes = Array.from({ length: 16 }, (_, hash) => hash);
    batch.slab.set(hashes);
    await send(hashes, 1, 16);
    const portOf = new Map(got.map(({ payload, port }) => [payload[0]!, port]));
    const other = hashes.find((hash) => portOf.get(hash) !== portOf.get(0))!;
    await send([0, other], 1000, 18);
    await send([other, 0], 1000, 20);
    expect(got.slice(16).map(({ payload }) => payload.length)).toEqual([1, 1000, 1, 1000]);
  });

  it("order is kept within a hash", async () => {
    const { udp } = await open(family);
    const { got, remote } = await listener(family === IPV6 ? "::1" : "127.0.0.1");
    for (let row = 0; row < 250; row++) {
      batch.slab[2 * row] = row % 7;
      batch.slab[2 * row + 1] = row;
      setRow(batch, row, { offset: 2 * row, length: 2, remote, hash: (row % 7) * 0x9e37 });
    }
    expect(udp.send(numberOf(batch), 250)).toBe(250);
    await until("all datagrams", () => got.length === 250);
    const last = new Map<number, number>();
    for (const { payload } of got) {
      expect(payload[1]!).toBeGreaterThan(last.get(payload[0]!) ?? -1);
      last.set(payload[0]!, payload[1]!);
    }
  });

  it("a datagram longer than its slot is flagged, its neighbours are whole", async () => {
    const { udp, toItself } = await open({ ...family, slotBytes: 100, coalesce: false });
    fillRows(batch, [100, 101, 5000, 0, 99], toItself());
    expect(udp.send(numberOf(batch), 5)).toBe(5);
    batch.slab.fill(0xee);
    const arrived = await collect(udp, 5);
    expect(arrived.map(({ payload }) => payload.length)).toEqual([100, 100, 100, 0, 99]);
    expect(arrived.map(({ flags }) => flags)).toEqual([0, TRUNCATED, TRUNCATED, 0, 0]);
  });

  it("where trains are received whatever comes is whole, however much longer than asked for", async () => {
    const { udp, toItself } = await open({ ...family, slotBytes: 100 });
    const lengths = [300, 300, 300, 101, 65_000, 7];
    fillRows(batch, lengths, toItself());
    expect(udp.send(numberOf(batch), lengths.length)).toBe(lengths.length);
    batch.slab.fill(0xee);
    const arrived = await collect(udp, lengths.length);
    expect(arrived.map(({ payload }) => payload.length)).toEqual(lengths);
    for (const [at, { payload, flags }] of arrived.entries()) {
      expect(flags).toBe(0);
      expect(payload.every((byte) => byte === at)).toBe(true);
    }
  });

  it.each([
    ["of one length leave together, until a shorter one", [500, 500, 500, 200, 500], [1700, 500]],
    ["of which each is longer than the one before leave apart", [10, 11, 12], [10, 11, 12]],
    ["that are empty leave apart", [0, 0, 7, 7], [0, 0, 14]],
    ["leave 64 at a time", new Array(150).fill(10), [640, 640, 220]],
    ["leave 65,000 bytes at a time", new Array(50).fill(1310), [64_190, 1310]],
  ])("datagrams %s", async (_, lengths, rows) => {
    const { udp, toItself } = await open(family);
    fillRows(batch, lengths, toItself());
    expect(udp.send(numberOf(batch), lengths.length)).toBe(lengths.length);
    const arrived = await collect(udp, lengths.length);
    expect(arrived.map(({ payload }) => payload.length)).toEqual(lengths);
    expect(arrived.every(({ payload }, at) => payload.every((byte) => byte === at))).toBe(true);
    const first = arrived.filter(({ row }, at) => row.offset !== arrived[at - 1]?.row.offset);
    expect(first.map(({ row }) => row.length)).toEqual(rows);
  });

  it("datagrams leave together with their TOS, and apart from those with another", async () => {
    const { udp, toItself } = await open(family);
    fillRows(batch, [500, 500, 500], toItself());
    batch.outTos.set([0xb8, 0xb8, 0xba]);
    expect(udp.send(numberOf(batch), 3)).toBe(3);
    const arrived = await collect(udp, 3);
    expect(arrived.map(({ row }) => row.length)).toEqual([1000, 1000, 500]);
    expect(udp.trains().segment).toBe(true);
  });

  it("too long a datagram is the row's error, and the neighbours go out", async () => {
    const { udp } = await open(family);
    const { got, remote } = await listener(family === IPV6 ? "::1" : "127.0.0.1");
    const lengths = [10, 65_536, 20, 65_536, 65_536, 30];
    for (const [row, length] of lengths.entries())
      setRow(batch, row, { offset: row, length, remote });
    onTestFinished(() => remotes.learnPathMtu(remote, 0));
    // Also where whatever is too long for the path may be fragmented.
    for (const mtu of [0, 500]) {
      remotes.learnPathMtu(remote, mtu);
      expect(udp.send(numberOf(batch), lengths.length)).toBe(3);
      expect([...batch.outError.subarray(0, 6)]).toEqual([0, EMSGSIZE, 0, EMSGSIZE, EMSGSIZE, 0]);
      await until("the others", () => got.length === 3);
      expect(got.splice(0).map(({ payload }) => payload.length)).toEqual([10, 20, 30]);
    }
  });

  it("a socket that was kept delivers no trains where none are wanted any more", async () => {
    const before = await open(family);
    const fd = addon().duplicate(before.udp.fd());
    before.udp.close();
    const options = { ...family, remotes: remotes.words, fd, coalesce: false };
    const udp = new (addon().Udp)(udpOptions(before.port, options));
    onTestFinished(() => udp.close());
    fillRows(batch, [1400, 1400, 1400, 900], before.toItself());
    expect(udp.send(numberOf(batch), 4)).toBe(4);
    const arrived = await collect(udp, 4);
    expect(arrived.map(({ row }) => row.length)).toEqual([1400, 1400, 1400, 900]);
    expect(arrived.map(({ flags }) => flags)).toEqual([0, 0, 0, 0]);
  });

  it("a socket that was kept is of no use for another port, address or family", async () => {
    const { udp, port, address } = await open(family);
    const adopt = (changes: Partial<UdpFamilyOptions>) => () => {
      const fd = addon().duplicate(udp.fd());
      return new (addon().Udp)(udpOptions(port, { ...family, fd, ...changes }));
    };
    const others: Partial<UdpFamilyOptions>[] = [
      { port: await freePort(address) },
      { address: family === IPV6 ? "::" : "127.0.0.2" },
      family === IPV6 ? { family: 4, address: "127.0.0.1" } : IPV6,
    ];
    const before = descriptors();
    for (const changes of others) {
      expect(adopt(changes)).toThrow(expect.objectContaining({ code: "EADDRNOTAVAIL" }));
    }
    const nowhere = { ...IPV6, address: `fe80::1%${uniqueName()}` };
    expect(adopt(nowhere)).toThrow(expect.objectContaining({ code: "ENODEV" }));
    expect(descriptors()).toBe(before);
  });

  it("an outer checksum of zero is accepted", async () => {
    const { udp, port, address } = await open(family);
    const option = family === IPV6 ? "s.IPPROTO_UDP, 101" : "s.SOL_SOCKET, 11"; // UDP_NO_CHECK6_TX, SO_NO_CHECK
    execFileSync("python3", [
      "-c",
      `import socket as s
u = s.socket(s.AF_INET${family === IPV6 ? "6" : ""}, s.SOCK_DGRAM)
u.setsockopt(${option}, 1)
u.sendto(b"zero", ("${address}", ${port}))`,
    ]);
    expect(await receive(udp, 1)).toBe(1);
    const offset = batch.inOffset[0]!;
    expect(Buffer.from(batch.slab.subarray(offset, offset + 4)).toString()).toBe("zero");
  });

  it("what strangers send to a sending socket is not queued", async () => {
    const { udp, address } = await open(family);
    const { got, socket, remote } = await listener(address);
    setRow(batch, 0, { offset: 0, length: 10, remote });
    expect(udp.send(numberOf(batch), 1)).toBe(1);
    await until("the datagram", () => got.length === 1);
    const source = got[0]!.port;
    for (let i = 0; i < 100; i++) await send(socket, "strange", source, address);
    await until("all of them dropped", () => socketOf(source, family === IPV6).drops === 100);
    expect(socketOf(source, family === IPV6).queued).toBe(0);
    expect(udp.receive(numberOf(batch))).toBe(0);
    expect(udp.overflows()).toBe(0);
  });

  it("a held port is not shared", async () => {
    const { port, address } = await open(family);
    const options = udpOptions(port, { ...family, remotes: remotes.words });
    const refused = expect.objectContaining({ code: "EADDRINUSE", syscall: "bind" });
    expect(() => new (addon().Udp)(options)).toThrow(refused);
    const wildcard = family === IPV6 ? "::" : "0.0.0.0";
    expect(() => new (addon().Udp)({ ...options, address: wildcard })).toThrow(refused);
    await expect(receiver(address, port)).rejects.toMatchObject({ code: "EADDRINUSE" });
  });

  it("datagrams that found the buffer full are counted", async () => {
    const { udp, port, toItself } = await open({ ...family, receiveBuffer: 4096 });
    let sent = 0;
    for (let round = 0; round < 4; round++) {
      fillRows(batch, new Array(IN_ROWS).fill(1000), toItself());
      sent += udp.send(numberOf(batch), IN_ROWS);
    }
    let received = 0;
    await until("nothing more", () => {
      const rows = udp.receive(numberOf(batch));
      received += rows;
      return rows === 0;
    });
    expect(udp.overflows()).toBeGreaterThan(0);
    expect(received).toBeGreaterThan(0);
    expect(received + udp.overflows()).toBeLessThanOrEqual(sent);
    const fd = addon().duplicate(udp.fd());
    udp.close();
    const kept = new (addon().Udp)(udpOptions(port, { ...family, remotes: remotes.words, fd }));
    onTestFinished(() => kept.close());
    expect(kept.overflows(), "once").toBe(0);
  });
});

describe("super-frames", () => {
  const MSS = 1398;

  /** Fills a row in and a row out with a frame of TCP in so many segments of MSS and a rest. */
  function fillSuperFrame(row: number, segments: number, rest: number, remote: number) {
    return fill(row, { payload: new Uint8Array(segments * MSS + rest).fill(row + 1) }, MSS, remote);
  }

  /** Returns its segments. */
  function fill(row: number, given: Partial<Segment>, size: number, remote: number): Buffer[] {
    const frame = frameOf(given, "partial");
    const offset = row === 0 ? HEADROOM : batch.inOffset[row - 1]! + batch.inLength[row - 1]! + 64;
    batch.slab.set(frame, offset);
    const vnet = vnetOf(given, size);
    for (const [at, byte] of vnet.entries()) batch.inVnet.setUint8(row * VNET_WORDS * 4 + at, byte);
    batch.inOffset[row] = offset;
    batch.inLength[row] = frame.length;
    setRow(batch, row, { offset: offset - 8, length: frame.length + 8, remote, inRow: row });
    return addon().segment(frame, vnet) as Buffer[];
  }

  /** How many datagrams each had that they came in, in order. */
  function trainsOf(arrived: Arrived[]): number[] {
    const sizes: number[] = [];
    for (let at = 0; at < arrived.length; at += sizes.at(-1)!) {
      const { length, segment } = arrived[at]!.row;
      sizes.push(Math.ceil(length / segment));
    }
    return sizes;
  }

  it.each([
    ["one", [[46, 0]], [23, 23]],
    [
      "128 KiB of TCP",
      [
        [46, 0],
        [46, 0],
        [1, 1058],
      ],
      [32, 32, 30],
    ],
    [
      "one behind a short end",
      [
        [20, 5],
        [30, 0],
      ],
      [21, 30],
    ],
  ])("leave in equal trains: %s", async (_, frames, expected) => {
    const { udp, toItself } = await open();
    const remote = toItself();
    const segments = frames.flatMap(([whole, rest], row) =>
      fillSuperFrame(row, whole!, rest!, remote),
    );
    expect(udp.send(numberOf(batch), frames.length)).toBe(frames.length);
    const arrived = await collect(udp, segments.length);
    expect(arrived.map(({ payload }) => payload.subarray(8))).toEqual(
      segments.map((s) => new Uint8Array(s)),
    );
    expect(trainsOf(arrived)).toEqual(expected);
  });

  it("leave whole, however much is to be written for them", async () => {
    const { udp, toItself } = await open({ receiveBuffer: 1 << 22 });
    const payload = Uint8Array.from({ length: 60_000 }, (_, at) => at >> 8);
    const segments = fill(0, { v6: true, extension: 2048, payload }, 300, toItself());
    expect(udp.send(numberOf(batch), 1)).toBe(1);
    const arrived = await collect(udp, 200);
    expect(arrived.map(({ payload }) => payload.subarray(8))).toEqual(
      segments.map((s) => new Uint8Array(s)),
    );
  });

  it.each([true, false])("leave whole, however many they are, trains: %s", async (segment) => {
    const { udp, toItself } = await open({ segment, receiveBuffer: 1 << 22 });
    const remote = toItself();
    const segments = fill(0, { payload: new Uint8Array(1800).fill(1) }, 1, remote);
    setRow(batch, 2, { offset: batch.outOffset[0]!, length: batch.outLength[0]!, remote });
    for (const row of [0, 1]) setRow(batch, row, { offset: 0, length: 1, remote, inRow: 1 });
    expect(udp.send(numberOf(batch), 3)).toBe(3);
    const arrived = await collect(udp, 1802);
    expect(arrived.slice(2).map(({ payload }) => payload.subarray(8))).toEqual(
      segments.map((s) => new Uint8Array(s)),
    );
  });

  /** Has frames sent, a row for each remote that one is to go to. */
  function flood(udp: UdpFamily, to: readonly { inRow: number; remote: number }[]) {
    const rows = to.map(({ inRow, remote }) => {
      const [offset, length] = [batch.outOffset[inRow]!, batch.outLength[inRow]!];
      return { offset, length, remote, inRow };
    });
    for (const [at, row] of rows.entries()) setRow(batch, at, row);
    expect(udp.send(numberOf(batch), rows.length)).toBe(rows.length);
  }

  async function listeners(count: number) {
    const addresses = Array.from(
      { length: count },
      (_, at) => `127.0.${1 + (at >> 7)}.${1 + (at & 127)}`,
    );
    return Promise.all(addresses.map(listener));
  }

  const hex = (segments: Uint8Array[]) => segments.map((one) => Buffer.from(one).toString("hex"));

  /** In the order in which it came; what has been told is forgotten. */
  async function gotBy({ got }: { got: { payload: Buffer }[] }, count: number): Promise<string[]> {
    await until("all of it", () => got.length >= count);
    return hex(got.splice(0).map(({ payload }) => payload.subarray(8)));
  }

  // Of 1,024 at most that leave at once: of 34 each the second is divided where it is cut, of 40 the first for its
  // 26th remote. Of 300 remotes a second thread takes some.
  it.each([
    [1, 30],
    [2, 30],
    [2, 300],
    [34, 30],
    [40, 30],
  ])("of %i segments each reach all of %i remotes", async (count, remotes) => {
    const { udp } = await open();
    const there = await listeners(remotes);
    // The second time another one comes in the row that was the last.
    for (const order of [
      [0, 1],
      [1, 0],
    ]) {
      const frames = [0, 1].map((row) => fillSuperFrame(row, count - 1, 7 + order[row]!, 0));
      flood(
        udp,
        order.flatMap((inRow) => there.map(({ remote }) => ({ inRow, remote }))),
      );
      const segments = hex(order.flatMap((inRow) => frames[inRow]!));
      for (const one of there) expect(await gotBy(one, segments.length)).toEqual(segments);
    }
  });

  it("reach a remote behind another one that was divided", async () => {
    const { udp } = await open();
    const there = await listeners(27);
    const frames = [0, 1].map((row) => fillSuperFrame(row, 39, 7 + row, 0));
    const inRows = there.map((_, at) => (at === 25 ? 1 : 0));
    flood(
      udp,
      there.map(({ remote }, at) => ({ inRow: inRows[at]!, remote })),
    );
    for (const [at, one] of there.entries()) {
      expect(await gotBy(one, 40)).toEqual(hex(frames[inRows[at]!]!));
    }
  });

  it.each([
    ["as long as a segment", 8 + 54 + MSS],
    ["longer", 1490],
  ])("leave in equal trains behind a frame that is none, %s", async (_, length) => {
    const { udp, toItself } = await open();
    const remote = toItself();
    fillSuperFrame(0, 46, 0, remote);
    setRow(batch, 1, {
      offset: batch.outOffset[0]!,
      length: batch.outLength[0]!,
      remote,
      inRow: 0,
    });
    setRow(batch, 0, { offset: 100_000, length, remote, inRow: 1 });
    expect(udp.send(numberOf(batch), 2)).toBe(2);
    expect(trainsOf(await collect(udp, 47))).toEqual([1, 23, 23]);
  });

  it("share their last train with a frame that is none, if there is room", async () => {
    const { udp, toItself } = await open();
    const remote = toItself();
    fillSuperFrame(0, 45, 0, remote); // two trains, and room for one more in the second
    for (const row of [1, 2]) setRow(batch, row, { offset: 0, length: 100, remote, inRow: row });
    expect(udp.send(numberOf(batch), 3)).toBe(3);
    expect(trainsOf(await collect(udp, 47))).toEqual([23, 23, 1]);
  });

  it.each<[string, Partial<Segment>, number, number]>([
    ["size", {}, MSS - 1, 0],
    ["headers", { v6: true }, MSS, 0],
    ["TOS", {}, MSS, 4],
  ])("of another %s are cut by themselves", async (_, given, size, tos) => {
    const { udp, toItself } = await open();
    const remote = toItself();
    fillSuperFrame(0, 20, 0, remote);
    fill(1, { ...given, payload: new Uint8Array(30 * size).fill(1) }, size, remote);
    batch.outTos.set([0, tos]);
    expect(udp.send(numberOf(batch), 2)).toBe(2);
    expect(trainsOf(await collect(udp, 50))).toEqual([20, 30]);
  });

  it("are refused with more in front of them than a batch has room for", async () => {
    const { udp, toItself } = await open();
    const remote = toItself();
    for (const row of [0, 1, 2]) fillSuperFrame(row, 2, 0, remote);
    for (const [row, more] of [
      [1, HEADROOM - 8],
      [2, HEADROOM - 7],
    ] as const) {
      batch.outOffset[row]! -= more;
      batch.outLength[row]! += more;
    }
    expect(udp.send(numberOf(batch), 3)).toBe(2);
    expect([...batch.outError.subarray(0, 3)]).toEqual([0, 0, EINVAL]);
  });

  it("to several remotes leave in trains of each", async () => {
    const { udp, toItself } = await open();
    const other = await listener("127.0.0.2"); // an address has one port
    const remote = toItself();
    fillSuperFrame(0, 4, 0, remote);
    fillSuperFrame(1, 4, 0, other.remote);
    fillSuperFrame(2, 4, 0, remote);
    expect(udp.send(numberOf(batch), 3)).toBe(3);
    const arrived = await collect(udp, 8);
    expect(trainsOf(arrived)).toEqual([4, 4]);
    await until("what went to the other", () => other.got.length >= 4);
  });
});

it("completes a checksum once, however many remotes its frame goes to", async () => {
  const { udp, toItself } = await open();
  const frame = frameOf({}, "partial");
  batch.slab.set(frame, HEADROOM);
  batch.inOffset[0] = HEADROOM;
  batch.inLength[0] = frame.length;
  for (const [at, byte] of vnetOf({}, 0).entries()) batch.inVnet.setUint8(at, byte);
  batch.inVnet.setUint8(1, VNET_GSO_NONE);
  const remote = toItself();
  for (const row of [0, 1]) setRow(batch, row, { offset: 2, length: frame.length + 8, remote });
  expect(udp.send(numberOf(batch), 2)).toBe(2);
  for (const { payload } of await collect(udp, 2)) expect(payload.subarray(8)).toEqual(frameOf({}));
});

describe("slots", () => {
  it("of 64 KiB stay within the slab, and an odd number of cache lines apart", async () => {
    const { udp, toItself } = await open({ slotBytes: 65_507 });
    let rows = 0;
    await until("as many at once as there are slots", () => {
      const lengths = Array.from({ length: 9 }, (_, row) => 65_400 + row);
      fillRows(batch, lengths, toItself());
      udp.send(numberOf(batch), 9);
      rows = udp.receive(numberOf(batch));
      return rows >= 9;
    });
    expect(rows).toBe(9);
    const stride = batch.inOffset[1]! - batch.inOffset[0]!;
    expect(stride).toBeGreaterThanOrEqual(65_536);
    expect((stride / 64) % 2).toBe(1);
    expect(batch.inOffset[8]! + 65_536).toBeLessThanOrEqual(SLAB_BYTES);
  });
});

describe("source ports", () => {
  it("that are taken are passed over", async () => {
    const taken = await receiver("127.0.0.1");
    onTestFinished(() => void taken.close());
    const { port } = taken.address();
    const { udp } = await open({ sourcePorts: [port, port + 2] });
    const { got, remote } = await listener();
    for (let row = 0; row < 64; row++) {
      setRow(batch, row, { offset: 0, length: 1, remote, hash: row });
    }
    expect(udp.send(numberOf(batch), 64)).toBe(64);
    await until("all datagrams", () => got.length === 64);
    expect(got.every((datagram) => datagram.port !== port)).toBe(true);
  });

  it("none of which is free are said to be in use", async () => {
    const { port } = await open();
    const [local4, low] = ["127.0.0.1", port];
    const other = await freePort();
    const create = () =>
      new NativeUnderlay({
        local4,
        port: other,
        remotes,
        sourcePorts: [low, low],
        largestDatagram: 1500,
      });
    expect(create).toThrow(
      expect.objectContaining({
        code: "PORT_IN_USE",
        message: `no UDP port from ${low} to ${low} is free on 127.0.0.1: choose another range`,
      }),
    );
    (await receiver(local4, other)).close(); // and nothing stays open
  });
});

describe("the native underlay", () => {
  async function underlay(families: { local4?: string; local6?: string }) {
    const port = await freePort("::1");
    const opened = new NativeUnderlay({ ...families, port, remotes, largestDatagram: 1500 });
    onTestFinished(() => opened.close());
    return { opened, port };
  }

  it("serves both families in turn, so that neither starves the other", async () => {
    const { opened, port } = await underlay({ local4: "127.0.0.1", local6: "::1" });
    const both = [remotes.add("127.0.0.1", port), remotes.add("::1", port)];
    for (let round = 0; round < 4; round++) {
      for (let row = 0; row < 2 * IN_ROWS; row++) {
        setRow(batch, row, { offset: 0, length: 60, remote: both[row % 2]! });
      }
      expect(opened.send(batch, 2 * IN_ROWS)).toBe(0);
    }
    await pause(50); // loopback delivers a little later when the host is busy
    const turns: number[] = [];
    let datagrams = 0;
    for (let rows = opened.receive(batch); rows > 0; rows = opened.receive(batch)) {
      for (let row = 0; row < rows; row++) datagrams += datagramsOf(row).length;
      turns.push(batch.inAddress[0] === 0 && batch.inAddress[2] === 0 ? 6 : 4);
    }
    expect(datagrams).toBe(8 * IN_ROWS);
    expect(turns).toEqual([4, 6, 4, 6]); // 16 trains of 64 a family, 9 of them at once
  });

  it.each(["127.0.0.1", "::1"])(
    "sends on when ICMP tells of others, and counts: %s",
    async (at) => {
      const { opened, port } = await underlay({ [at === "::1" ? "local6" : "local4"]: at });
      const closedPort = await freePort(at);
      const other = remotes.add(at === "::1" ? "2001:db8::1" : "192.0.2.1", closedPort);
      const open = remotes.add(at, port);
      const closed = remotes.add("192.0.2.9", port); // made the same address, on another port
      const words = remotes.words.subarray(REMOTE_WORDS * open, REMOTE_WORDS * closed);
      remotes.words.set(words, REMOTE_WORDS * closed);
      remotes.words[REMOTE_WORDS * closed + 1] = closedPort;
      let received = 0;
      for (let round = 0; round < 50; round++) {
        for (let row = 0; row < 20; row++) {
          const remote = row % 5 === 0 ? closed : open;
          setRow(batch, row, { offset: 0, length: 60, remote, hash: row >> 2 });
        }
        expect(opened.send(batch, 20)).toBe(0);
        await until("the datagrams", () => {
          for (let rows = opened.receive(batch); rows > 0; rows = opened.receive(batch)) {
            for (let row = 0; row < rows; row++) received += datagramsOf(row).length;
          }
          return received === 16 * (round + 1);
        });
      }
      await until("ICMP errors", () => opened.refusals() > 0);
      expect(opened.refusals()).toBeLessThanOrEqual(200);
      const refused = [other, open, closed].map((remote) => remotes.refused(remote));
      expect(refused).toEqual([0, 0, opened.refusals()]);
      expect([remotes.pathMtu(open), remotes.pathMtu(closed)]).toEqual([0, 0]);
    },
  );

  it("says of rows whose family it lacks that it lacks it", async () => {
    const { opened, port } = await underlay({ local4: "127.0.0.1" });
    const both = [remotes.add("127.0.0.1", port), remotes.add("::1", port), 0, 70_000];
    for (const [row, remote] of both.entries())
      setRow(batch, row, { offset: 0, length: 60, remote });
    expect(opened.send(batch, 4)).toBe(3);
    expect([...batch.outError.subarray(0, 4)]).toEqual([
      0,
      EAFNOSUPPORT,
      EAFNOSUPPORT,
      EAFNOSUPPORT,
    ]);
  });

  it("survives a socket error that somebody else caused", async () => {
    const { opened, port } = await underlay({ local4: "127.0.0.1" });
    const remote = remotes.add("127.0.0.1", port);
    const lost: unknown[] = [];
    let received = 0;
    opened.watch({
      onReadable() {
        received += opened.receive(batch);
      },
      onLost: (error) => lost.push(error),
    });
    for (let round = 1; round <= 40; round++) {
      execFileSync("ss", ["--kill", "-aunH", "sport", "=", `:${port}`]); // ECONNABORTED, POLLERR
      await pause(1);
      setRow(batch, 0, { offset: 0, length: 60, remote, hash: round });
      expect(opened.send(batch, 1)).toBe(0);
      await until("the datagram", () => received === round);
    }
    expect(lost).toEqual([]);
  });

  it("is lost when its socket fails again and again, and says so once", async () => {
    const { opened, port } = await underlay({ local4: "127.0.0.1" });
    const remote = remotes.add("127.0.0.1", port);
    const lost: VtepError[] = [];
    opened.watch({
      onReadable: () => expect(opened.receive(batch)).toBe(0),
      onLost: (error) => lost.push(error),
    });
    await until("the loss", () => {
      execFileSync("ss", ["--kill", "-aunH", "sport", "=", `:${port}`]);
      return lost.length > 0;
    });
    await pause(20);
    expect(lost).toHaveLength(1);
    expect(lost[0]).toMatchObject({ name: "VtepError", code: "LOST" });
    setRow(batch, 0, { offset: 0, length: 60, remote });
    expect(opened.send(batch, 1)).toBe(1);
    expect(batch.outError[0]).toBe(ENETDOWN);
    expect(opened.receive(batch)).toBe(0);
  });

  it("refuses what it cannot open, with a remedy, and leaves nothing open", async () => {
    const held = await receiver("::1");
    onTestFinished(() => void held.close());
    const { port } = held.address();
    const options = { port, remotes, largestDatagram: 1500 };
    const refused = (code: string, message: RegExp) =>
      expect.objectContaining({ name: "VtepError", code, message: expect.stringMatching(message) });
    expect(() => new NativeUnderlay({ ...options, local4: "127.0.0.1", local6: "::1" })).toThrow(
      refused("PORT_IN_USE", new RegExp(`^UDP port ${port} of ::1 is held .*: find it with`)),
    );
    (await receiver("127.0.0.1", port)).close(); // IPv4 was opened first
    for (const address of [{ local4: "192.0.2.1" }, { local6: "2001:db8::1" }]) {
      expect(() => new NativeUnderlay({ ...options, ...address })).toThrow(
        refused("ADDRESS", /is no address of this host: choose one/),
      );
    }
    const nowhere = { ...options, local6: `fe80::1%${uniqueName()}` };
    expect(() => new NativeUnderlay(nowhere)).toThrow(refused("ADDRESS", /fe80::1%/));
    expect(() => new NativeUnderlay(options)).toThrow(TypeError);
  });

  // Such as a sandbox does.
  it.each([
    ["socket", "EPERM", /^SYSTEM UDP over ::1 could not be opened: EPERM.* socket$/],
    ["socket", "EAFNOSUPPORT", /^ADDRESS no IPv6 socket can be had for ::1: allow them/],
    ["setsockopt", "EPERM", /^SYSTEM UDP over ::1 could not be opened: EPERM.* setsockopt$/],
    ["setsockopt", "EINVAL", /^SYSTEM UDP over ::1 could not be opened: EINVAL.* setsockopt$/],
    ["bind", "EPERM", /^SYSTEM UDP over ::1 could not be opened: EPERM.* bind$/],
    ["bind", "EACCES", /^PERMISSION UDP port 4789 needs CAP_NET_BIND_SERVICE/],
  ] as const)(
    "blames neither address nor port for what is refused by itself: %s, %s",
    (call, errno, said) => {
      const parameters = {
        socket: "int family, int type, int protocol",
        setsockopt: "int fd, int level, int option, const void *value, socklen_t bytes",
        bind: "int fd, const sockaddr *name, socklen_t bytes",
      }[call];
      const words = {
        socket: ["family == AF_INET6", "family, type, protocol"],
        setsockopt: ["level == 41", "fd, level, option, value, bytes"], // IPPROTO_IPV6
        bind: ["name->sa_family == AF_INET6", "fd, name, bytes"],
      }[call];
      using refusing = preload(`#include <sys/socket.h>
      extern "C" int ${call}(${parameters}) {
        if (${words[0]}) return errno = ${errno}, -1;
        return next(${call}, "${call}")(${words[1]});
      }`);
      const { output } = moduleChild(
        `import { NativeUnderlay } from "./src/device/native-underlay.ts";
       import { Remotes } from "./src/remotes.ts";
       try {
         new NativeUnderlay({ local6: "::1", port: 4789, remotes: new Remotes(), largestDatagram: 1500 });
       } catch ({ code, message }) {
         console.log(code, message);
       }`,
        [...refusing.way],
      );
      expect(output.trim()).toMatch(said);
    },
  );
});

describe("in a namespace of its own", () => {
  // Datagrams to a neighbour that does not answer wait for it, and the sender pays for their memory.
  it("a full socket drops the rest of its rows with EAGAIN, without waiting", () => {
    const { output } = moduleChild(
      `import { execFileSync } from "node:child_process";
       import { Batch } from "./src/batch.ts";
       import { NativeTap } from "./src/device/tap.ts";
       import { addon, numberOf } from "./src/device/native.ts";
       import { Remotes } from "./src/remotes.ts";
       const tap = new NativeTap({ name: "vtep7" });
       const ip = (line) => execFileSync("ip", line.split(" "));
       ip("address add 192.0.2.1/24 dev vtep7");
       ip("link set vtep7 up");
       const remotes = new Remotes();
       const remote = remotes.add("192.0.2.2", 4789);
       const udp = new (addon().Udp)({ family: 4, address: "192.0.2.1", port: 4789, sourcePorts: [50000, 50010],
         fd: -1, sharer: -1, fan: 2, slotBytes: 1500, receiveBuffer: 0, sendBuffer: 20000, whole: true, segment: true, coalesce: true, remotes: remotes.words });
       const batch = new Batch();
       for (let row = 0; row < 1000; row++) {
         batch.outLength[row] = 1000; batch.outRemote[row] = remote; batch.outHash[row] = row % 2; 
       }
       const sent = udp.send(numberOf(batch), 1000);
       const errors = [...batch.outError.subarray(0, 1000)];
       console.log(JSON.stringify({ sent, ok: errors.filter((e) => e === 0).length, kinds: [...new Set(errors)] }));
       udp.close();
       tap.close();`,
      ["unshare", "--net"],
    );
    const { sent, ok, kinds } = JSON.parse(output);
    expect(sent).toBeGreaterThan(0);
    expect(sent).toBeLessThan(200);
    expect(ok).toBe(sent);
    expect(kinds).toEqual([0, EAGAIN]);
  });

  /**
   * Sends 60 datagrams of a length over a TAP that takes uncut trains, and tells the lengths of what came out there.
   */
  const trains = `import { execFileSync } from "node:child_process";
    import { Batch } from "./src/batch.ts";
    import { addon, numberOf } from "./src/device/native.ts";
    import { Remotes } from "./src/remotes.ts";
    const tap = new (addon().Tap)({ name: "vtep7", fd: -1, multiQueue: false, furtherQueues: 0, coalesceTcp: true, coalesceUdp: true });
    const taps = new (addon().Taps)();
    taps.add(1, tap);
    tap.setOffloads(0x61); // TUN_F_CSUM, TUN_F_USO4, TUN_F_USO6
    const run = (line) => execFileSync(...((words) => [words[0], words.slice(1)])(line.split(" ")));
    run("ip address add 192.0.2.1/24 dev vtep7");
    run("ip link set vtep7 up");
    run("ip neighbour add 192.0.2.2 lladdr 00:00:5e:00:53:02 dev vtep7");
    const remotes = new Remotes();
    const remote = remotes.add("192.0.2.2", 4789);
    const udp = new (addon().Udp)({ family: 4, address: "192.0.2.1", port: 4789, sourcePorts: [50000, 50010],
      fd: -1, sharer: -1, fan: 1, slotBytes: 1500, receiveBuffer: 0, sendBuffer: 1 << 20, whole: true, segment: true, coalesce: true, remotes: remotes.words });
    const [batch, out] = [new Batch(), new Batch()];
    const send = (length) => {
      batch.outLength.fill(length); batch.outRemote.fill(remote); batch.outError.fill(-1);
      const sent = udp.send(numberOf(batch), 60);
      const frames = [];
      for (let rows = 1; rows > 0; ) {
        rows = taps.read(numberOf(out));
        frames.push(...out.inLength.subarray(0, rows));
      }
      const lengths = frames.filter((bytes) => bytes > length);
      return { sent, errors: [...new Set(batch.outError.subarray(0, 60))], lengths };
    };`;

  // Linux 6.11 and newer cut in software for any device, so the kernel's refusal has to be played.
  it("where trains are refused, none is sent any more, and nothing is lost", () => {
    using refusing = preload(`#include <sys/socket.h>
      static bool refused = false;
      extern "C" int sendmmsg(int fd, mmsghdr *messages, unsigned count, int flags) {
        if (!refused && messages->msg_hdr.msg_control != nullptr) {
          refused = true;
          errno = EIO;
          return -1;
        }
        return next(sendmmsg, "sendmmsg")(fd, messages, count, flags);
      }`);
    const { output } = moduleChild(
      `${trains} console.log(JSON.stringify([send(1000), send(1000)]));`,
      ["unshare", "--net", ...refusing.way],
    );
    const apart = { sent: 60, errors: [0], lengths: new Array(60).fill(14 + 20 + 8 + 1000) };
    expect(JSON.parse(output)).toEqual([apart, apart]);
  });

  it.each([
    ["all of them leave", 0, [0, 0]],
    ["a segment does not", 3, [EPERM, 0]],
    ["what rode behind them does not", 64, [0, EPERM]],
  ])(
    "sends segments in one piece, and a train of them that is refused as what they were: %s",
    (_, failing, errors) => {
      using refusing = preload(`#include <sys/socket.h>
      static int left = -1;
      extern "C" int sendmmsg(int, mmsghdr *messages, unsigned, int) {
        bool first = left < 0;
        if (first) left = ${failing};
        return errno = messages->msg_hdr.msg_iovlen == (first ? 1 : 2) ? EIO : ENOBUFS, -1;
      }
      extern "C" ssize_t sendmsg(int fd, const msghdr *message, int flags) {
        if (left > 0 && --left == 0) return errno = EPERM, -1;
        return next(sendmsg, "sendmsg")(fd, message, flags);
      }`);
      const { output } = moduleChild(
        `${trains} import { frameOf, segmentsOf, vnetOf } from "./test/native/segments.ts";
       import { setRow } from "./test/native/fixture.ts";
       const given = { payload: Uint8Array.from({ length: 63_000 }, (_, at) => at + (at >> 8)) };
       const frame = frameOf(given, "partial");
       batch.slab.set(frame, 10);
       for (const [at, byte] of vnetOf(given, 1000).entries()) batch.inVnet.setUint8(at, byte);
       batch.inOffset[0] = 10; batch.inLength[0] = frame.length;
       setRow(batch, 0, { offset: 2, length: frame.length + 8, remote });
       batch.slab.fill(9, 100_000, 100_100);
       setRow(batch, 1, { offset: 100_000, length: 100, remote, inRow: 1 }); // there is room in the second of two trains
       udp.send(numberOf(batch), 2);
       const arrived = [];
       for (let rows = 1; rows > 0; ) {
         rows = taps.read(numberOf(out));
         for (let row = 0; row < rows; row++) {
           const [begin, end] = [out.inOffset[row], out.inOffset[row] + out.inLength[row]];
           const isIpv4 = out.slab[begin + 12] === 8;
           if (isIpv4) arrived.push(Buffer.from(out.slab.slice(begin + 14 + 20 + 8, end)).toString("hex"));
         }
       }
       const sent = segmentsOf(given, 1000).map((one) => "0".repeat(16) + Buffer.from(one).toString("hex"));
       const whole = [...sent, "09".repeat(100)];
       console.log(JSON.stringify([[...batch.outError.subarray(0, 2)], arrived.map((one) => whole.indexOf(one))]));`,
        ["unshare", "--net", ...refusing.way],
      );
      const order = [...Array(64).keys()].filter((at) => at !== failing - 1);
      expect(JSON.parse(output)).toEqual([errors, order]);
    },
  );

  it("sends again what was not for what ICMP had told of others, whatever that was", () => {
    const told =
      "EMSGSIZE, ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, EHOSTDOWN, ENONET, ENOPROTOOPT, EOPNOTSUPP, EPROTO, EACCES";
    using telling = preload(`#include <sys/socket.h>
      static const int told[] = {${told}};
      static unsigned calls = 0;
      extern "C" int sendmmsg(int fd, mmsghdr *messages, unsigned count, int flags) {
        unsigned call = calls++;
        if (call % 2 == 0) return errno = told[call / 2], -1;
        return next(sendmmsg, "sendmmsg")(fd, messages, count, flags);
      }`);
    const count = told.split(",").length;
    const { output } = moduleChild(
      `${trains} console.log(JSON.stringify(Array.from({ length: ${count} }, () => send(1000))));`,
      ["unshare", "--net", ...telling.way],
    );
    const train = { sent: 60, errors: [0], lengths: [14 + 20 + 8 + 60_000] };
    expect(JSON.parse(output)).toEqual(new Array(count).fill(train));
  });

  it("sends a datagram of a refused train again, too, but nothing for ever", () => {
    using telling = preload(`#include <sys/socket.h>
      static unsigned calls = 0;
      static bool refused = false, always = false; // and not of other programs, which are started too
      extern "C" int sendmmsg(int, mmsghdr *messages, unsigned, int) {
        refused = true;
        always = messages->msg_hdr.msg_iovlen == 2;
        return errno = always ? EHOSTUNREACH : EIO, -1;
      }
      extern "C" ssize_t sendmsg(int fd, const msghdr *message, int flags) {
        if (refused && (always || calls++ % 2 == 0)) return errno = EHOSTUNREACH, -1;
        return next(sendmsg, "sendmsg")(fd, message, flags);
      }`);
    const { output } = moduleChild(
      `${trains} batch.outLength.fill(1000); batch.outRemote.fill(remote, 0, 2);
       const never = udp.send(numberOf(batch), 2);
       console.log(JSON.stringify([never, [...batch.outError.subarray(0, 2)], send(1000)]));`,
      ["unshare", "--net", ...telling.way],
    );
    const apart = { sent: 60, errors: [0], lengths: new Array(60).fill(14 + 20 + 8 + 1000) };
    expect(JSON.parse(output)).toEqual([0, [EHOSTUNREACH, EHOSTUNREACH], apart]);
  });

  it.each([
    [0, "EINVAL", 60],
    [0, "EMSGSIZE", 1],
    [500, "EINVAL", 1],
  ])(
    "does without trains, the path's MTU being %i, once one is refused with %s: %i",
    (mtu, error, count) => {
      using refusing = preload(`#include <sys/socket.h>
      static bool refused = false;
      extern "C" int sendmmsg(int fd, mmsghdr *messages, unsigned count, int flags) {
        if (!refused) return refused = true, errno = ${error}, -1;
        return next(sendmmsg, "sendmmsg")(fd, messages, count, flags);
      }`);
      const { output } = moduleChild(
        `${trains} remotes.learnPathMtu(remote, ${mtu});
       const { sent } = send(1000);
       remotes.learnPathMtu(remote, 0);
       console.log(JSON.stringify([sent, send(1000).lengths.length]));`,
        ["unshare", "--net", ...refusing.way],
      );
      expect(JSON.parse(output)).toEqual([60, count]);
    },
  );

  it("drops as a whole the train for which an interface has no room", () => {
    using full = preload(`#include <sys/socket.h>
      extern "C" int sendmmsg(int, mmsghdr *, unsigned, int) { return errno = ENOBUFS, -1; }`);
    const { output } = moduleChild(`${trains} console.log(JSON.stringify(send(1000)));`, [
      "unshare",
      "--net",
      ...full.way,
    ]);
    expect(JSON.parse(output)).toEqual({ sent: 0, errors: [ENOBUFS], lengths: [] });
  });

  it("a train of datagrams that the path does not carry fails row by row, and others go on", () => {
    const { output } = moduleChild(
      `${trains} console.log(JSON.stringify([send(1500), send(1000)]));`,
      ["unshare", "--net"],
    );
    expect(JSON.parse(output)).toEqual([
      { sent: 0, errors: [EMSGSIZE], lengths: [] },
      { sent: 60, errors: [0], lengths: [14 + 20 + 8 + 60_000] },
    ]);
  });

  it("learns what the path carries from a train too, and of the remote that it went to", () => {
    const { output } = moduleChild(
      `import { REMOTE_WORDS } from "./src/remotes.ts";
       ${trains} const other = remotes.add("192.0.2.3", 4789);
       run("ip route add 192.0.2.2/32 dev vtep7 mtu 1400");
       const learnedAt = REMOTE_WORDS * remote + 7;
       remotes.words[learnedAt] = 1; // another time, long ago
       const { sent, errors } = send(1400);
       const mtus = [remote, other].map((one) => remotes.pathMtu(one));
       console.log(JSON.stringify([sent, errors, ...mtus, remotes.words[learnedAt]]));`,
      ["unshare", "--net"],
    );
    expect(JSON.parse(output)).toEqual([0, [EMSGSIZE], 1400, 0, 0]);
  });

  it("sends what may be fragmented all the same, from the train on by which the path was found to be narrow, and nothing else", () => {
    const { output } = moduleChild(
      `${trains} run("ip route add 192.0.2.2/32 dev vtep7 mtu 600");
       const [first, second] = [send(1300), send(1300)];
       batch.outRemote.fill(remotes.add("192.0.2.3", 4789));
       batch.outLength.fill(1500);
       const others = udp.send(numberOf(batch), 60);
       batch.outRemote.fill(remote, 0, 30);
       const both = [udp.send(numberOf(batch), 60), batch.outError[0], batch.outError[30]];
       console.log(JSON.stringify([first.sent, first.errors, second, remotes.pathMtu(remote), others, both]));`,
      ["unshare", "--net"],
    );
    const train = { sent: 60, errors: [0], lengths: [14 + 20 + 8 + 65_000, 14 + 20 + 8 + 13_000] };
    expect(JSON.parse(output)).toEqual([60, [0], train, 600, 0, [30, 0, EMSGSIZE]]);
  });

  // A train the qdisc cuts for itself, and drops of it what it likes: here each leaves alone.
  it("tells of what a full interface dropped with ENOBUFS", () => {
    const { output } = moduleChild(
      `${trains} run("tc qdisc add dev vtep7 root tbf rate 8kbit burst 4000 limit 4000");
       for (let row = 0; row < 60; row++) { batch.outLength[row] = 1000 + row; batch.outRemote[row] = remote; }
       const sent = udp.send(numberOf(batch), 60);
       console.log(JSON.stringify([sent, [...batch.outError.subarray(0, 60)]]));`,
      ["unshare", "--net"],
    );
    const [sent, errors] = JSON.parse(output);
    expect(sent).toBeGreaterThan(2);
    expect(sent).toBeLessThan(12);
    expect(new Set(errors)).toEqual(new Set([0, ENOBUFS]));
  });

  it("link-local addresses reach each other by the interface of the local one", () => {
    const { output } = moduleChild(
      `import { execFileSync } from "node:child_process";
       import { Batch } from "./src/batch.ts";
       import { NativeUnderlay } from "./src/device/native-underlay.ts";
       import { Remotes } from "./src/remotes.ts";
       for (const line of ["link set lo up", "link add near type veth peer name far",
         "address add fe80::1/64 dev near nodad", "address add fe80::2/64 dev far nodad",
         "link set near up", "link set far up"]) execFileSync("ip", line.split(" "));
       const remotes = new Remotes();
       const remote = remotes.add("fe80::2", 4789);
       const open = (local6) => new NativeUnderlay({ local6, port: 4789, remotes, largestDatagram: 1500 });
       const [a, b] = [open("fe80::1%near"), open("fe80::2%far")];
       const batch = new Batch();
       batch.outLength[0] = 60;
       batch.outRemote[0] = remote;
       console.log(a.send(batch, 1), batch.outError[0]);
       a.close();
       b.close();`,
      ["unshare", "--net"],
    );
    expect(output).toBe("0 0\n");
  });

  it("a link-local socket that was kept is of no use once its interface was made anew", () => {
    const { output } = moduleChild(
      `import { execFileSync } from "node:child_process";
       import { Batch } from "./src/batch.ts";
       import { addon } from "./src/device/native.ts";
       import { NativeUnderlay } from "./src/device/native-underlay.ts";
       import { Remotes } from "./src/remotes.ts";
       const ip = (...lines) => { for (const line of lines) execFileSync("ip", line.split(" ")); };
       const makeLinks = () => ip("link add near type veth peer name far", "address add fe80::1/64 dev near nodad",
         "address add fe80::2/64 dev far nodad", "link set near up", "link set far up");
       const remotes = new Remotes();
       const options = { port: 4789, remotes, largestDatagram: 1500 };
       const near = (fd) => new NativeUnderlay({ ...options, local6: "fe80::1%near", kept: () => fd, sourcePorts: [50000, 50010] });
       makeLinks();
       const former = near(undefined);
       const fd = addon().duplicate(former.fds[6]);
       former.close();
       ip("link delete near");
       makeLinks();
       const [a, b] = [near(fd), new NativeUnderlay({ ...options, local6: "fe80::2%far" })];
       const batch = new Batch();
       batch.outLength[0] = 60;
       batch.outRemote[0] = remotes.add("fe80::1", 4789);
       const failed = b.send(batch, 1);
       let received = 0;
       // Neighbour solicitations are sent again after a second each.
       for (let turn = 0; received === 0 && turn < 500; turn++) {
         await new Promise((resolve) => setTimeout(resolve, 10));
         received = a.receive(batch);
       }
       console.log(failed, received);
       a.close();
       b.close();`,
      ["unshare", "--net"],
    );
    expect(output).toBe("0 1\n");
  });

  it("a super-frame fails when any of its segments does, in whichever message", () => {
    // 1,025 segments take two messages' room; only the last, in the second one, passes the filter.
    const { output } = moduleChild(
      `import { execFileSync } from "node:child_process";
       import { Batch, HEADROOM } from "./src/batch.ts";
       import { NativeTap, NativeTaps } from "./src/device/tap.ts";
       import { NativeUnderlay } from "./src/device/native-underlay.ts";
       import { Remotes } from "./src/remotes.ts";
       import { frameOf, vnetOf } from "./test/native/segments.ts";
       const tap = new NativeTap({ name: "vtep7" });
       const taps = new NativeTaps();
       taps.add(1, tap, () => {});
       for (const line of ["link set vtep7 addrgenmode none", "link set vtep7 up", "address add 192.0.2.1/24 dev vtep7",
         "neighbour add 192.0.2.2 lladdr 02:00:00:00:00:02 dev vtep7"]) execFileSync("ip", line.split(" "));
       const chain = "chain c { type filter hook output priority 0; udp length > 100 drop; };";
       execFileSync("nft", ["table ip t { " + chain + " }"]);
       const remotes = new Remotes();
       const remote = remotes.add("192.0.2.2", 4789);
       const udp = new NativeUnderlay({ local4: "192.0.2.1", port: 4789, remotes, largestDatagram: 1500 });
       const batch = new Batch();
       const payload = new Uint8Array(63 * 1024 + 5);
       const frame = frameOf({ payload }, "partial");
       batch.slab.set(frame, HEADROOM);
       batch.inOffset[0] = HEADROOM;
       batch.inLength[0] = frame.length;
       for (const [at, byte] of vnetOf({ payload }, 63).entries()) batch.inVnet.setUint8(at, byte);
       batch.outOffset[0] = HEADROOM - 8;
       batch.outLength[0] = frame.length + 8;
       batch.outRemote[0] = remote;
       const failed = udp.send(batch, 1);
       const error = batch.outError[0];
       console.log(JSON.stringify({ failed, error, arrived: taps.read(batch) }));
       udp.close();
       tap.close();`,
      ["unshare", "--net"],
    );
    expect(JSON.parse(output)).toEqual({ failed: 1, error: EPERM, arrived: 1 });
  });

  it("does not fragment: what the path does not carry is EMSGSIZE, over both families", () => {
    const { output } = moduleChild(
      `import { execFileSync } from "node:child_process";
       import { Batch } from "./src/batch.ts";
       import { NativeTap, NativeTaps } from "./src/device/tap.ts";
       import { NativeUnderlay } from "./src/device/native-underlay.ts";
       import { Remotes } from "./src/remotes.ts";
       const tap = new NativeTap({ name: "vtep7", offloads: { csum: false } });
       const taps = new NativeTaps();
       taps.add(1, tap, () => {});
       for (const line of ["link set vtep7 up", "address add 192.0.2.1/24 dev vtep7",
         "address add 2001:db8::1/64 dev vtep7 nodad",
         "neighbour add 192.0.2.2 lladdr 02:00:00:00:00:02 dev vtep7",
         "neighbour add 2001:db8::2 lladdr 02:00:00:00:00:02 dev vtep7"]) execFileSync("ip", line.split(" "));
       const remotes = new Remotes();
       const [r4, r6] = [remotes.add("192.0.2.2", 4789), remotes.add("2001:db8::2", 4789)];
       const udp = new NativeUnderlay({ local4: "192.0.2.1", local6: "2001:db8::1", port: 4789, remotes, largestDatagram: 1500 });
       const batch = new Batch();
       [[r4, 1472], [r4, 1473], [r6, 1452], [r6, 1453], [r4, 10], [r6, 10]].forEach(([remote, length], row) => {
         batch.outLength[row] = length; batch.outRemote[row] = remote;
       });
       const failed = udp.send(batch, 6);
       const errors = [...batch.outError.subarray(0, 6)];
       const mtus = [remotes.pathMtu(r4), remotes.pathMtu(r6)];
       const frames = [];
       for (let rows = taps.read(batch); rows > 0; rows = taps.read(batch)) {
         for (let row = 0; row < rows; row++) {
           const at = batch.inOffset[row], type = batch.view.getUint16(at + 12);
           const protocol = batch.slab[at + (type === 0x800 ? 23 : 20)];
           if (protocol !== 17) continue;
           const fragment = type === 0x800 ? batch.view.getUint16(at + 20) : null;
           const udpAt = at + (type === 0x800 ? 34 : 54);
           frames.push([batch.inLength[row], fragment, batch.view.getUint16(udpAt + 6) !== 0]);
         }
       }
       console.log(JSON.stringify({ failed, errors, mtus, frames }));
       udp.close();
       tap.close();`,
      ["unshare", "--net"],
    );
    const DF = 0x4000;
    expect(JSON.parse(output)).toEqual({
      failed: 2,
      errors: [0, EMSGSIZE, 0, EMSGSIZE, 0, 0],
      mtus: [1500, 1500], // learned from the refusals
      frames: [
        [1514, DF, true],
        [52, DF, true],
        [1514, null, true],
        [72, null, true],
      ],
    });
  });
});

function send(socket: dgram.Socket, text: string, port: number, address: string): Promise<void> {
  return new Promise((sent, failed) => {
    socket.send(text, port, address, (error) => (error ? failed(error) : sent()));
  });
}

/** What /proc says of the socket on this port: bytes in its receive queue, and its drops. */
function socketOf(port: number, v6: boolean): { queued: number; drops: number } {
  const hex = port.toString(16).toUpperCase().padStart(4, "0");
  const lines = readFileSync(`/proc/net/udp${v6 ? "6" : ""}`, "latin1").split("\n");
  const fields = lines.map((line) => line.trim().split(/\s+/));
  const found = fields.find((field) => field[1]?.endsWith(`:${hex}`))!;
  return { queued: Number.parseInt(found[4]!.split(":")[1]!, 16), drops: Number(found.at(-1)) };
}
