import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { constants, tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it, vi } from "vitest";
import { VNET_GSO_UDP_L4 } from "../../src/batch.ts";
import { Capture, WHOLE } from "../../src/capture.ts";
import { Captures } from "../../src/captures.ts";
import { Mirror, type MirrorFilter } from "../../src/mirror.ts";
import { cut } from "../../src/wire/pcapng.ts";
import type { Workers } from "../../src/workers.ts";
import { address, BROADCAST, frame, mac, script, vxlan, World } from "./sim.ts";
import { ethernetFrame, ipv4Packet, ports } from "./wire/frames.ts";

const A = mac(0x0a);
const B = mac(0x0b);
const C = mac(0x0c);
const PEER = address(2);
const OTHER_PEER = address(3);
const NETWORKS = [
  { vni: 100, peers: [PEER, OTHER_PEER], fdb: [[C, OTHER_PEER]] as const },
  { vni: 200, peers: [] },
];
const NAMES = new Map([
  [1, { name: "blue", vni: 100 }],
  [2, { name: "red", vni: 200 }],
]);
const T0 = 1_700_000_000_000.25;

/** A dataplane with a mirror for each of some threads, of which the first one is its own. */
function capture({ ring = 1 << 20, threads = 1, snaplen = WHOLE, names = NAMES } = {}) {
  const vtep = script(NETWORKS);
  const filter: MirrorFilter = { vni: undefined, mac: undefined, remote: undefined, snaplen };
  const rings = Array.from({ length: threads }, () => Mirror.allocate(ring));
  const clock = { now: T0 };
  const mirrors = rings.map((memory) => {
    return new Mirror(memory, filter, vtep.remotes, () => clock.now);
  });
  vtep.dataplane.mirrorTo(mirrors[0]!);
  const capture = new Capture(rings, () => names, snaplen);
  return { vtep, capture, rings, mirrors, clock };
}

const directory = mkdtempSync(join(tmpdir(), "vtep-capture-"));
afterAll(() => rmSync(directory, { recursive: true }));

/** What Wireshark reads of a file: a row a frame, a column a field. */
function tshark(file: Buffer, ...fields: string[]): string[][] {
  const columns = fields.flatMap((field) => ["-e", field]);
  const path = join(directory, "file.pcapng");
  writeFileSync(path, file);
  const out = execFileSync("tshark", ["-r", path, "-T", "fields", ...columns], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"],
  });
  return out
    .split("\n")
    .filter(Boolean)
    .map((line) => line.split("\t"));
}

describe("a capture, as Wireshark reads it,", { timeout: 30_000 }, () => {
  it("has networks as interfaces, directions, and comments that say what became of a frame", () => {
    const { vtep, capture: own } = capture();
    const head = own.begin([1, 2]);
    vtep.encap([frame(C, A), frame(BROADCAST, A)]);
    vtep.encap([frame(B, A)], 1);
    vtep.decap(
      { bytes: vxlan(100, frame(A, B)), from: PEER },
      { bytes: vxlan(100, frame(A, B)), from: "203.0.113.9" },
    );
    const file = Buffer.concat([head, own.end()]);
    const fields = ["frame.interface_name", "frame.packet_flags_direction", "frame.comment"];
    const [IN, OUT] = ["0x00000001", "0x00000002"];
    expect(tshark(file, ...fields, "eth.dst")).toEqual([
      ["blue", OUT, `to ${OTHER_PEER}`, C],
      ["blue", OUT, `flooded to 2 remotes, ${PEER} among them`, BROADCAST],
      ["red", OUT, "dropped: VXLAN_NO_REMOTE", B],
      ["blue", IN, `from ${PEER}`, A],
      ["blue", IN, "from 203.0.113.9; dropped: VXLAN_REMOTE_NOT_ALLOWED", A],
    ]);
    const [first] = tshark(file, "frame.interface_description", "frame.time_epoch");
    expect(first).toEqual(["VNI 100", "1700000000.000250000"]);
  });

  it("has what belongs to no network as VXLAN", () => {
    const { vtep, capture: own } = capture();
    const head = own.begin([1]);
    vtep.decap({ bytes: vxlan(0xabcde, frame(A, B)), from: PEER });
    const file = Buffer.concat([head, own.end()]);
    expect(tshark(file, "frame.interface_name", "vxlan.vni", "eth.src", "frame.comment")).toEqual([
      ["underlay", "703710", B, `from ${PEER}; dropped: VXLAN_VNI_NOT_FOUND`],
    ]);
    const [[kept, length]] = tshark(file, "frame.cap_len", "frame.len") as [string[]];
    expect(kept).toBe(length);
  });

  it("says which copies were dropped, and what is still to be done to a frame", () => {
    const { vtep, capture: own, mirrors } = capture();
    const head = own.begin([1]);
    vtep.underlay.errnoOf = (nth) => (nth === 1 ? constants.errno.EAGAIN : 0);
    vtep.encap([frame(BROADCAST, A)]);
    const made = new World();
    const [host] = made.mesh(2);
    host!.dataplane.mirrorTo(mirrors[0]!);
    const payload = ports(40_000, 443, 3000);
    const whole = ethernetFrame({ type: 0x0800, payload: ipv4Packet({ protocol: 17, payload }) });
    const offload = { flags: 1, csumStart: 34, csumOffset: 6 };
    host!
      .tap()
      .transmit(whole, { ...offload, gsoType: VNET_GSO_UDP_L4, gsoSize: 1000, hdrLen: 42 });
    made.run();
    const file = Buffer.concat([head, own.end()]);
    expect(tshark(file, "frame.comment")).toEqual([
      [`flooded to 2 remotes, ${PEER} among them; 1 copies dropped: FULL_RING`],
      [`to ${PEER}; super-frame, to be cut into segments of 1000 bytes; checksum left to the VTEP`],
    ]);
  });

  it("has the beginning of what was longer than is kept", () => {
    const { vtep, capture: own } = capture({ snaplen: 60 });
    const head = own.begin([1]);
    const payload = ports(40_000, 443, 1000);
    vtep.encap([ethernetFrame({ type: 0x0800, payload: ipv4Packet({ protocol: 17, payload }) })]);
    const file = Buffer.concat([head, own.end()]);
    const [row] = tshark(file, "frame.cap_len", "frame.len", "udp.dstport");
    expect(row?.[0]).toBe("60");
    expect(Number(row?.[1])).toBeGreaterThan(1000);
    expect(row?.[2]).toBe("443");
  });
});

describe("a capture", () => {
  it("says what was missed: at once, and of every interface when it ends", () => {
    const { vtep, capture: own } = capture({ ring: 1024 });
    own.begin([1, 2]);
    vtep.encap(Array.from({ length: 20 }, () => frame(C, A)));
    const missed = (file: Buffer) =>
      cut(file)
        .blocks.filter(({ type }) => type === "statistics")
        .map((block) => [block.interface, block.missed]);
    const first = own.take();
    const captured = cut(first).blocks.filter(({ type }) => type === "packet").length;
    expect(missed(first)).toEqual([[0, 20 - captured]]);
    const told = cut(first).blocks.find(({ type }) => type === "statistics")!;
    expect(told.bytes.readBigUInt64LE(24)).toBe(20n); // isb_ifrecv, those that were missed among them
    expect(missed(own.take())).toEqual([]);
    expect(missed(own.end())).toEqual([
      [0, 20 - captured],
      [1, 0],
    ]);
  });

  it("describes a network anew that has another name or VNI, and tells of each what was missed", () => {
    const names = new Map(NAMES);
    const { vtep, capture: own } = capture({ ring: 1024, names });
    const seen = (file: Buffer) =>
      cut(file).blocks.flatMap(({ type, interface: at, missed }): unknown[] => {
        return type === "statistics" ? [[at, missed]] : type === "interface" ? ["new"] : [];
      });
    const send = (count: number) => vtep.encap(Array.from({ length: count }, () => frame(C, A)));
    const room = 1024 / 128;
    own.begin([1]);
    send(room + 5);
    expect(seen(own.take())).toEqual([[0, 5]]);
    names.delete(1);
    send(room + 1);
    expect(seen(own.take())).toEqual([[0, 6]]);
    send(room + 2);
    names.set(1, { name: "blue", vni: 101 });
    expect(seen(own.take())).toEqual([[0, 8], "new"]);
    send(room + 3);
    expect(seen(own.take())).toEqual([[1, 3]]);
    names.set(1, { name: "green", vni: 101 });
    send(1);
    expect(seen(own.end())).toEqual(["new", [2, 0]]);
  });

  it("says what was missed also when that is more than 31 bits hold", () => {
    const { vtep, capture: own, rings } = capture({ ring: 1024 });
    const many = 2 ** 31 - 1;
    new Float64Array(rings[0]!)[8 + 1] = many; // MISSED, of the first network
    own.begin([1]);
    vtep.encap(Array.from({ length: 20 }, () => frame(C, A)));
    const [found] = cut(own.take()).blocks.filter(({ type }) => type === "statistics");
    expect(found?.missed).toBe(many + 12);
  });

  it("that breaks is over: there may be another", async () => {
    const workers = { count: 1, mirror: async () => {}, unmirror: vi.fn(async () => {}) };
    let isBroken = false;
    const captures = new Captures(workers as unknown as Workers, () => {
      if (isBroken) throw new RangeError("broken");
      return NAMES;
    });
    const everything = { vni: undefined, mac: undefined, remote: undefined, snaplen: undefined };
    const { read } = await captures.begin(everything);
    await read();
    isBroken = true;
    await expect(read()).rejects.toThrow("broken");
    expect(workers.unmirror).toHaveBeenCalledOnce();
    isBroken = false;
    await captures.begin(everything);
  });

  it("of one network describes no other", async () => {
    const workers = { count: 1, mirror: async () => {} };
    const captures = new Captures(workers as unknown as Workers, () => NAMES);
    const wanted = { vni: 200, mac: undefined, remote: undefined, snaplen: undefined };
    const { read } = await captures.begin(wanted);
    const types = cut((await read()) as Buffer).blocks.map(({ type }) => type);
    expect(types).toEqual(["section", "interface"]);
  });

  it("that cannot begin, or whose threads are gone when it ends, is over: there may be another", async () => {
    const gone = (): Promise<void> => Promise.reject(new RangeError("gone"));
    const workers = { count: 1, mirror: gone, unmirror: gone };
    const captures = new Captures(workers as unknown as Workers, () => NAMES);
    const everything = { vni: undefined, mac: undefined, remote: undefined, snaplen: undefined };
    await expect(captures.begin(everything)).rejects.toThrow("gone");
    workers.mirror = async () => {};
    const { read } = await captures.begin(everything);
    expect(await captures.end()).toBe(true);
    while ((await read()) !== undefined);
    expect(await captures.end()).toBe(false);
    await captures.begin(everything);
  });

  it("says what was missed of no network, though all of it was", () => {
    const { vtep, capture: own } = capture({ ring: 1024 });
    own.begin([]);
    vtep.encap(Array.from({ length: 20 }, () => frame(C, A)));
    vtep.decap({ bytes: vxlan(0xabcde, frame(A, B)), from: PEER });
    const found = cut(own.take()).blocks.filter(({ type }) => type === "statistics");
    expect(found.map(({ missed }) => missed)).toEqual([12, 1]);
  });

  it("of no network has statistics nevertheless, lest it be taken for dead", () => {
    const { capture: own } = capture();
    own.begin([]);
    expect(cut(own.end()).blocks.map(({ type }) => type)).toEqual(["interface", "statistics"]);
  });

  it("takes a part of what waits at once, and all when it ends", () => {
    const { vtep, capture: own } = capture();
    own.begin([1]);
    const count = 600;
    for (let sent = 0; sent < count; sent += 50) {
      vtep.encap(Array.from({ length: 50 }, () => frame(C, A, { length: 1400 })));
    }
    const packets = (file: Buffer) => cut(file).blocks.filter(({ type }) => type === "packet");
    const first = own.take();
    expect(first.length).toBeLessThan(300 * 1024);
    expect(packets(first).length + packets(own.end()).length).toBe(count);
  });

  it("describes a network that is added meanwhile, and one that it does not know", () => {
    const { vtep, capture: own } = capture();
    own.begin([1]);
    vtep.encap([frame(B, A)], 1);
    const types = cut(own.take()).blocks.map(({ type }) => type);
    expect(types).toEqual(["interface", "packet"]);
  });

  it("asks what networks are called once a look, however many there are", () => {
    const called = new Map(
      Array.from({ length: 100 }, (_, at) => [at + 1, { name: `net${at}`, vni: at }]),
    );
    const ask = vi.fn(() => called);
    const own = new Capture([Mirror.allocate(1024)], ask, WHOLE);
    own.begin([...called.keys()]);
    own.take();
    expect(ask).toHaveBeenCalledTimes(2);
  });

  it("merges what several threads saw by time", { timeout: 30_000 }, () => {
    const { vtep, capture: own, mirrors, clock } = capture({ threads: 3 });
    const head = own.begin([1]);
    for (const [step, thread] of [2, 0, 1, 0, 2].entries()) {
      clock.now = T0 + step;
      vtep.dataplane.mirrorTo(mirrors[thread]!);
      vtep.encap([frame(C, A, { mark: step })]);
    }
    const times = tshark(Buffer.concat([head, own.end()]), "frame.time_delta");
    expect(times.map(([delta]) => Number(delta))).toEqual([0, 0.001, 0.001, 0.001, 0.001]);
  });

  it("streams until it is told to end", async () => {
    const { vtep, capture: own } = capture();
    const done = new AbortController();
    const stream = own.stream([1], done.signal);
    const read = async () => cut((await stream.next()).value as Buffer).blocks.map((b) => b.type);
    expect(await read()).toEqual(["section", "interface"]);
    const waiting = read();
    vtep.encap([frame(C, A)]);
    expect(await waiting).toEqual(["packet"]);
    done.abort();
    expect(await read()).toEqual(["statistics"]);
    expect((await stream.next()).done).toBe(true);
  });

  it("shows a sign of life when nothing comes for long, and then what comes", async () => {
    const { vtep, capture: own } = capture();
    const stream = own.stream([1], new AbortController().signal, 50);
    const read = async () => cut((await stream.next()).value as Buffer).blocks.map((b) => b.type);
    await read();
    expect(await read()).toEqual(["statistics"]);
    vtep.encap([frame(C, A)]);
    expect(await read()).toEqual(["packet"]);
  });

  it("is cut into blocks wherever its stream was broken", () => {
    const { vtep, capture: own } = capture();
    const parts = [own.begin([1, 2])];
    vtep.encap([frame(C, A), frame(B, A, { length: 1501 })]);
    const file = Buffer.concat([...parts, own.end()]);
    const whole = cut(file).blocks.map(({ type }) => type);
    for (const size of [1, 7, 64, 1000]) {
      let rest: Buffer = Buffer.alloc(0);
      const types: string[] = [];
      for (let at = 0; at < file.length; at += size) {
        const found = cut(Buffer.concat([rest, file.subarray(at, at + size)]));
        types.push(...found.blocks.map(({ type }) => type));
        rest = found.rest;
      }
      expect(types).toEqual(whole);
      expect(rest).toHaveLength(0);
    }
    expect(() => cut(Buffer.from("HTTP/1.1 404 Not Found"))).toThrow(RangeError);
  });
});
