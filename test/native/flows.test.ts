/**
 * The flow table: by what a flow is known, as a pure function; and with a TAP and sockets what is moved before the
 * callback, what is not, and that it is handed over all the same. A TAP's other end is another TAP, with a hub between
 * them in a namespace of the test's own; that of the underlay's socket is another socket on loopback.
 */
import { execFileSync } from "node:child_process";
import { readSync, writeSync } from "node:fs";
import { setImmediate as comeRound, setTimeout as pause } from "node:timers/promises";
import fc from "fast-check";
import {
  afterAll,
  afterEach,
  beforeAll,
  beforeEach,
  describe,
  expect,
  it,
  onTestFinished,
  vi,
} from "vitest";
import {
  ANSWERED,
  ASKS,
  Batch,
  GUARD_WORDS,
  OUT_ROWS,
  REPEATED,
  TRUNCATED,
  VNET_NEEDS_CSUM,
} from "../../src/batch.ts";
import { addon, numberOf, type UdpFamily } from "../../src/device/native.ts";
import { NativeUnderlay } from "../../src/device/native-underlay.ts";
import { type FlowTable, flowTable, NativeTap, NativeTaps } from "../../src/device/tap.ts";
import { Fdb, STATIC } from "../../src/fdb.ts";
import { LOCAL, Remotes } from "../../src/remotes.ts";
import { innerTos } from "../../src/wire/ecn.ts";
import { Flows, flowHash } from "../../src/wire/flow.ts";
import { until } from "../lab/until.ts";
import {
  anyIpv4,
  anyIpv6,
  anyMac,
  anyPort,
  anyTags,
  authenticationHeader,
  bytes,
  ethernetFrame,
  extensionHeader,
  fence,
  fragmentHeader,
  ipv4Packet,
  ipv6Packet,
  LINUX_ARP_REQUEST,
  LINUX_PARTIAL_UDP4,
  LINUX_PARTIAL_UDP6,
  LINUX_PING4,
  LINUX_SOLICITATION,
  MAC_A,
  MAC_B,
  naiveChecksum,
  ports,
  u16,
} from "../unit/wire/frames.ts";
import { freePort, ip, receiver, udpOptions, uniqueName } from "./fixture.ts";
import { frameOf, type Segment, vnetOf } from "./segments.ts";

vi.setConfig({ testTimeout: 30_000, hookTimeout: 30_000 });

const TCP = 6;
const UDP = 17;

describe("the key of a frame", () => {
  const hashed = new Flows(0x5eed);
  const keyOf = (frame: Uint8Array) => addon().flowKey(frame)?.toString("hex");

  /** What TypeScript decides by. */
  function toldBy(frame: Uint8Array): string {
    const view = fence(frame);
    const hash = flowHash(view, 0, frame.length, hashed);
    const macs = Buffer.from(frame.subarray(0, 12)).toString("hex");
    return `${hash} ${innerTos(view, 0, frame.length)} ${macs}`;
  }

  /** Mostly what most frames are like. */
  function plainly<T>(plain: fc.Arbitrary<T>, odd: fc.Arbitrary<T>): fc.Arbitrary<T> {
    return fc.oneof({ weight: 4, arbitrary: plain }, { weight: 1, arbitrary: odd });
  }

  const anyProtocol = plainly(fc.constantFrom(1, TCP, UDP, 58, 132), fc.nat(255));
  const anyUpper = fc
    .tuple(anyPort, anyPort, fc.nat(20))
    .map(([from, to, rest]) => ports(from, to, rest));
  const anyFragment = fc.constantFrom(0, 0x4000, 0x8000, 0x2000, 0x0001, 0x2001, 0x1fff);

  const anyIpv4Packet = fc
    .record({
      source: anyIpv4,
      destination: anyIpv4,
      protocol: anyProtocol,
      payload: anyUpper,
      options: plainly(fc.constant(0), fc.nat(10)).map((words) => Array<number>(4 * words).fill(1)),
      id: anyPort,
      fragment: plainly(fc.constantFrom(0, 0x4000), anyFragment),
      tos: fc.nat(255),
      ttl: fc.nat(255),
    })
    .map(({ tos, ttl, ...packet }) => ipv4Packet(packet).with(1, tos).with(8, ttl));

  const anyIpv6Packet = fc
    .record({
      source: anyIpv6,
      destination: anyIpv6,
      protocol: anyProtocol,
      chain: plainly(
        fc.constant<number[]>([]),
        fc.array(fc.constantFrom(0, 43, 44, 51, 60, 135), { maxLength: 3 }),
      ),
      fragment: fc.constantFrom<[number, boolean]>([0, false], [0, true], [8, true], [8, false]),
      payload: anyUpper,
      hopLimit: fc.nat(255),
      classAndLabel: fc.uint8Array({ minLength: 3, maxLength: 3 }),
    })
    .map(({ protocol, chain, fragment, payload, classAndLabel, ...packet }) => {
      const headers = chain.map((kind, at) => {
        const next = chain[at + 1] ?? protocol;
        if (kind === 44) return fragmentHeader(next, ...fragment);
        return kind === 51 ? authenticationHeader(next) : extensionHeader(next, at);
      });
      const behind = bytes(...headers, payload);
      const whole = ipv6Packet({ ...packet, next: chain[0] ?? protocol, payload: behind });
      whole.set(classAndLabel, 1);
      whole[0] = 0x60 | (classAndLabel[2]! & 15);
      return whole;
    });

  const anyFrame = fc
    .record({
      macs: fc.tuple(anyMac, anyMac),
      tags: plainly(fc.constant<number[][]>([]), anyTags),
      packet: fc.oneof(
        anyIpv4Packet.map((payload) => ({ type: 0x0800, payload })),
        anyIpv6Packet.map((payload) => ({ type: 0x86dd, payload })),
        fc.uint8Array({ maxLength: 60 }).map((payload) => ({ type: 0x0806, payload })),
      ),
      trailer: fc.uint8Array({ maxLength: 6 }),
      length: plainly(fc.constant(Infinity), fc.nat(90)),
    })
    .map(({ macs: [destination, source], tags, packet, trailer, length }) => {
      const frame = ethernetFrame({ destination, source, tags, ...packet });
      return bytes(frame, trailer).subarray(0, length).slice();
    });

  it("tells hash, TOS and MACs, whichever byte of a frame is another one, or missing", () => {
    const told = new Map<string, string>();
    let alike = 0;
    const look = (frame: Uint8Array) => {
      const key = keyOf(frame);
      if (key === undefined) return;
      const now = toldBy(frame);
      const before = told.get(key);
      if (before !== undefined) alike++;
      else told.set(key, now);
      if (before !== undefined && before !== now) {
        throw new Error(`${Buffer.from(frame).toString("hex")}: ${now}, another one's: ${before}`);
      }
    };
    fc.assert(
      fc.property(anyFrame, fc.integer({ min: 1, max: 255 }), (frame, change) => {
        told.clear();
        look(frame);
        for (let at = 0; at < frame.length; at++) {
          for (const flip of [change, 1, 0x10, 0x80]) look(frame.with(at, frame[at]! ^ flip));
          look(frame.slice(0, at));
        }
        look(bytes(frame, change));
      }),
      { numRuns: 2000 },
    );
    expect(alike).toBeGreaterThan(20_000);
  });

  it("is another one where a byte is that TypeScript decides by, and the same where none is", () => {
    for (const [frame, others] of [
      // Which bytes change from one frame of a flow to the next.
      [frameOf({ tcp: true }), [16, 17, 18, 19, 22, 24, 25, 38, 40, 60]],
      [frameOf({ v6: true, tcp: true }), [15, 16, 17, 18, 19, 21, 58, 70]],
    ] as const) {
      for (let at = 0; at < frame.length; at++) {
        const other = frame.with(at, frame[at]! ^ 1);
        const same = keyOf(other) === keyOf(frame);
        if (same) expect(toldBy(other)).toBe(toldBy(frame));
        if ((others as readonly number[]).includes(at)) expect(same, `byte ${at}`).toBe(true);
      }
    }
  });

  const known: [string, Uint8Array][] = [
    ["a ping over IPv4", LINUX_PING4],
    [
      "a ping over IPv6",
      ethernetFrame({
        type: 0x86dd,
        payload: ipv6Packet({ next: 58, payload: bytes([128, 0, 0, 0, 0, 1, 0, 1]) }),
      }),
    ],
    ["a solicitation", LINUX_SOLICITATION],
    ["UDP over IPv4", LINUX_PARTIAL_UDP4],
    ["UDP over IPv6", LINUX_PARTIAL_UDP6],
    ["TCP over IPv4", frameOf({ tcp: true })],
    ["TCP over IPv6", frameOf({ v6: true, tcp: true })],
    [
      "SCTP over IPv4",
      ethernetFrame({ type: 0x0800, payload: ipv4Packet({ protocol: 132, payload: ports(1, 2) }) }),
    ],
  ];
  it.each(known)("is had by %s", (_, frame) => expect(keyOf(frame)).toBeDefined());

  const unknown: [string, Uint8Array][] = [
    ["ARP", LINUX_ARP_REQUEST],
    ["what has a tag", frameOf({ tags: [0x81, 0, 0, 7] })],
    ["a fragment", frameOf({ fragment: 0x2000 })],
    ["what has options of IPv4", frameOf({ ipOptions: [1, 1, 1, 1] })],
    ["what has extensions of IPv6", frameOf({ v6: true, extension: 8 })],
    ["what ends before its ports", frameOf({}).slice(0, 37)],
    ["nothing", bytes()],
  ];
  it.each(unknown)("is not had by %s", (_, frame) => expect(keyOf(frame)).toBeUndefined());
});

/** Of TAP and FDB. */
const NETWORK = 1;
const OWN = "127.0.0.1";
const HEADER = bytes([8, 0, 0, 0, 0, 0, 42, 0]);
const OTHER_HEADER = HEADER.with(6, 43);
/** More than is held, less than the MTU. */
const LONG = 4000;
/** As many as are held at once (`native/flows.h`). */
const MOST_HELD = 8;

let namespace: string;
/** What is written to one of them can be read from the other. Frames of the first are forwarded. */
let near: NativeTap;
let far: NativeTap;
/** Of the hub, whose kernel has 192.0.2.9, and sends what is for 192.0.2.1 to MAC_A. */
const MAC_HUB = [0x00, 0x00, 0x5e, 0x00, 0x53, 0x09];

beforeAll(() => {
  namespace = uniqueName();
  ip("netns", "add", namespace);
  near = new NativeTap({ name: uniqueName() });
  far = new NativeTap({ name: uniqueName() });
  for (const { name } of [near, far]) ip("link", "set", name, "netns", namespace);
  const text = (mac: number[]) => mac.map((byte) => byte.toString(16).padStart(2, "0")).join(":");
  const script = `
    echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6
    echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6
    ip link add hub mtu 9000 address ${text(MAC_HUB)} type bridge ageing_time 0 mcast_snooping 0
    for hook in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $hook ] || echo 0 >$hook; done
    for tap in ${near.name} ${far.name}; do ip link set $tap mtu 9000 master hub up; done
    ip link set hub mtu 9000 up
    ip address add 192.0.2.9/24 dev hub
    ip neighbour add 192.0.2.1 lladdr ${text(MAC_A)} dev hub`;
  execFileSync("nsenter", [`--net=/run/netns/${namespace}`, "sh", "-ec", script]);
});

afterAll(() => {
  near.close();
  far.close();
  ip("netns", "delete", namespace);
});

function writeFrame(frame: Uint8Array, vnet: Uint8Array = new Uint8Array(10)): void {
  writeSync(far.fd, bytes(vnet, frame));
}

/** The next frame that was written to the near TAP. */
function readFrame(): Uint8Array | undefined {
  const into = Buffer.alloc(80_000);
  try {
    return Uint8Array.from(into.subarray(10, readSync(far.fd, into)));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EAGAIN") return undefined;
    throw error;
  }
}

interface Handed {
  bytes: Uint8Array;
  flags: number;
  moved: number;
  tap: number;
  tos: number;
  /** The virtio_net_hdr's flags and gso_type. */
  vnet: [flags: number, type: number];
}

interface Arrived {
  payload: Uint8Array;
  tos: number;
}

/** The other end of the underlay. */
class Peer {
  readonly udp: UdpFamily;
  readonly port: number;
  readonly address: string;
  readonly #batch = new Batch();

  readonly #remotes = new Remotes();

  static async open(address: string): Promise<Peer> {
    return new Peer(address, await freePort(address));
  }

  private constructor(address: string, port: number) {
    this.address = address;
    this.port = port;
    const { words } = this.#remotes;
    this.udp = new (addon().Udp)(udpOptions(port, { address, remotes: words }));
    onTestFinished(() => this.udp.close());
  }

  /** Datagrams of one flow to a port, all at once: a train where they are equally long. */
  send(port: number, payloads: readonly Uint8Array[], tos = 0): void {
    const batch = this.#batch;
    const remote = this.#remotes.add(OWN, port);
    let offset = 0;
    payloads.forEach((payload, row) => {
      batch.slab.set(payload, offset);
      batch.outOffset[row] = offset;
      batch.outLength[row] = payload.length;
      batch.outRow[row] = batch.outHash[row] = 0;
      batch.outRemote[row] = remote;
      batch.outTos[row] = tos;
      offset += payload.length;
    });
    expect(this.udp.send(numberOf(batch), payloads.length)).toBe(payloads.length);
  }

  /** As much as waits. */
  receive(): Arrived[] {
    const batch = this.#batch;
    const arrived: Arrived[] = [];
    for (
      let rows = this.udp.receive(numberOf(batch));
      rows > 0;
      rows = this.udp.receive(numberOf(batch))
    ) {
      for (let row = 0; row < rows; row++) {
        const [offset, length, segment] = [
          batch.inOffset[row]!,
          batch.inLength[row]!,
          batch.inSegment[row]!,
        ];
        for (let at = 0; at < length; at += segment) {
          const payload = batch.slab.slice(offset + at, offset + Math.min(at + segment, length));
          arrived.push({ payload, tos: batch.inTos[row]! });
        }
      }
    }
    return arrived;
  }
}

describe("a lone frame", () => {
  const PLAIN: Partial<Segment> = { tcp: false };
  const FRAME = frameOf(PLAIN);

  let remotes: Remotes;
  let fdb: Fdb;
  let flows: FlowTable;
  let taps: NativeTaps;
  let underlay: NativeUnderlay;
  let batch: Batch;
  let peer: Peer;
  let remote: number;
  /** The underlay's. */
  let port: number;
  /** What TypeScript was handed, in its order, and what it does with it when it is. */
  let frames: Handed[];
  let datagrams: Handed[];
  let callbacks: number;
  let encap: (rows: number) => void;
  let decap: (rows: number) => void;
  let outTos: number;
  /** Where in the FDB those are which were offered last. */
  let entries: number[];
  /** Changes what is offered. */
  let guard: ((repeat: Int32Array) => void) | undefined;
  /** Rows that a device refused. */
  let failures: number;

  async function open(options: { gro?: boolean; largestDatagram?: number } = {}): Promise<void> {
    const { gro = true, largestDatagram = 9100 } = options;
    port = await freePort();
    underlay = new NativeUnderlay({
      local4: OWN,
      port,
      remotes,
      flows,
      fan: 4,
      sourcePorts: [30_001, 40_000],
      largestDatagram,
      offloads: { gro },
    });
    underlay.watch({
      onReadable: () => {
        callbacks++;
        for (let rows = underlay.receive(batch); rows > 0; rows = underlay.receive(batch)) {
          datagrams.push(...handed(rows));
          decap(rows);
        }
      },
      onLost: (error) => {
        throw error;
      },
    });
  }

  beforeEach(async () => {
    remotes = new Remotes();
    fdb = new Fdb(Fdb.allocate(64, 1));
    flows = flowTable(fdb.words);
    batch = new Batch();
    frames = [];
    datagrams = [];
    callbacks = failures = outTos = 0;
    encap = forward;
    decap = deliver;
    guard = undefined;
    peer = await Peer.open("127.0.0.2");
    remote = remotes.add(peer.address, peer.port);
    place(MAC_A, remote);
    place(MAC_B, remote);
    place(MAC_HUB, LOCAL);
    taps = new NativeTaps(0, flows);
    join();
    while (taps.read(batch) > 0 || readFrame() !== undefined);
    await open();
    taps.watch(() => {
      callbacks++;
      readTaps();
    });
  });

  afterEach(() => {
    taps.close();
    underlay.close();
  });

  function join(): void {
    taps.add(NETWORK, near, () => {});
  }

  function readTaps(): void {
    for (let rows = taps.read(batch); rows > 0; rows = taps.read(batch)) {
      frames.push(...handed(rows));
      encap(rows);
    }
  }

  function place(mac: readonly number[], destination: number): void {
    const low = Buffer.from(mac).readInt32BE(2);
    fdb.set(NETWORK, (mac[0]! << 8) | mac[1]!, low, destination, STATIC);
  }

  function handed(rows: number): Handed[] {
    return Array.from({ length: rows }, (_, row) => {
      const offset = batch.inOffset[row]!;
      return {
        bytes: batch.slab.slice(offset, offset + batch.inLength[row]!),
        flags: batch.inFlags[row]!,
        moved: batch.inTarget[row]!,
        tap: batch.inTap[row]!,
        tos: batch.inTos[row]!,
        vnet: [batch.inVnet.getUint8(row * 16), batch.inVnet.getUint8(row * 16 + 1)],
      };
    });
  }

  function offer(rows: number, mac: number, sender?: number): void {
    if (rows !== 1 || (batch.inFlags[0]! & ASKS) === 0) return;
    const { view, repeat } = batch;
    const say = (mac: number, destination: number, at: number) =>
      fdb.guard(NETWORK, view.getUint16(mac), view.getInt32(mac + 2), destination, repeat, at);
    if (sender !== undefined) say(sender, LOCAL, GUARD_WORDS);
    say(mac, remote, 0);
    guard?.(repeat);
    entries = [repeat[0]!, repeat[GUARD_WORDS]!];
  }

  /** What TypeScript does with frames that have the same fate. */
  function forward(rows: number): void {
    for (let row = 0; row < rows; row++) {
      batch.outOffset[row] = batch.inOffset[row]! - HEADER.length;
      batch.outLength[row] = batch.inLength[row]! + HEADER.length;
      batch.slab.set(HEADER, batch.outOffset[row]);
      batch.outRow[row] = row;
      batch.outTap[row] = batch.inTap[row]!;
      batch.outRemote[row] = remote;
      batch.outHash[row] = 7;
      batch.outTos[row] = outTos;
    }
    offer(rows, batch.inOffset[0]!, batch.inOffset[0]! + 6);
    failures += underlay.send(batch, rows);
  }

  function deliver(rows: number): void {
    let out = 0;
    for (let row = 0; row < rows; row++) {
      const end = batch.inOffset[row]! + batch.inLength[row]!;
      for (let at = batch.inOffset[row]!; at < end; at += batch.inSegment[row]!) {
        batch.outOffset[out] = at + HEADER.length;
        batch.outLength[out] = Math.min(batch.inSegment[row]!, end - at) - HEADER.length;
        batch.outTap[out++] = NETWORK;
      }
    }
    expect(out).toBeLessThan(OUT_ROWS);
    offer(rows, batch.inOffset[0]! + HEADER.length + 6);
    failures += taps.write(batch, out);
  }

  /** It does nothing: what leaves then has been moved before. */
  const keep = () => {};

  /** Longer than the thread has to sleep to be cold. */
  const cool = () => pause(3);

  const END = bytes([0xff]);

  /** What has arrived at the peer, nothing being on its way any more. */
  async function arrivals(): Promise<Arrived[]> {
    const marker = new Batch();
    marker.slab.set(END);
    marker.outLength[0] = END.length;
    marker.outRemote[0] = remote;
    expect(underlay.send(marker, 1)).toBe(0);
    const arrived: Arrived[] = [];
    await until("the last of them", () => {
      arrived.push(...peer.receive());
      return arrived.some(({ payload }) => payload.length === END.length);
    });
    return arrived.filter(({ payload }) => payload.length !== END.length);
  }

  /** To a thread that is cold: what of them arrives at the peer, and what TypeScript is handed. */
  async function send(...given: (Uint8Array | [Uint8Array, vnet: Uint8Array])[]) {
    await cool();
    frames = [];
    for (const one of given) {
      if (one instanceof Uint8Array) writeFrame(one);
      else writeFrame(...one);
    }
    await until("all frames", () => frames.length >= given.length);
    return { arrived: await arrivals(), handed: frames };
  }

  const framed = (frame: Uint8Array, header = HEADER) => bytes(header, frame);
  const payloads = (arrived: readonly Arrived[]) => arrived.map(({ payload }) => hex(payload));
  const hex = (of: Uint8Array) => Buffer.from(of).toString("hex");
  const contents = (of: readonly Handed[]) => of.map((one) => hex(one.bytes));

  /** A frame of the same flow, to be told from others. */
  const numbered = (number: number, length = 100) =>
    frameOf({ ...PLAIN, payload: new Uint8Array(length).fill(number) });

  async function learn(frame = FRAME): Promise<void> {
    expect((await send(frame)).handed[0]!.flags).toBe(ASKS);
  }

  async function expectMoved(frame = FRAME): Promise<void> {
    encap = keep;
    const { arrived, handed } = await send(frame);
    encap = forward;
    expect(payloads(arrived)).toEqual([hex(framed(frame))]);
    expect(contents(handed)).toEqual([hex(frame)]);
    expect(handed[0]).toMatchObject({ flags: REPEATED, moved: remote, tap: NETWORK });
  }

  async function expectAsked(frame = FRAME, flags = ASKS): Promise<void> {
    encap = keep;
    const { arrived, handed } = await send(frame);
    encap = forward;
    expect(arrived).toEqual([]);
    expect(contents(handed)).toEqual([hex(frame)]);
    expect(handed[0]!.flags).toBe(flags);
  }

  describe("of a TAP", () => {
    beforeEach(() => place(MAC_A, LOCAL));

    it("that is the first asks, and again until it is offered", async () => {
      await expectAsked();
      await expectAsked();
      await learn();
      await expectMoved();
    });

    it("that is not offered is no flow by what was offered of the one before", async () => {
      const other = frameOf({ ...PLAIN, port: 40_001 });
      await learn();
      encap = (rows) => {
        batch.inFlags[0] = 0;
        forward(rows);
      };
      expect((await send(other)).arrived).toHaveLength(1);
      await expectAsked(other);
    });

    it("leaves before the callback, by the socket of its flow, and afterwards is not sent again", async () => {
      const socket = await receiver("127.0.0.4");
      onTestFinished(() => void socket.close());
      const sources: number[] = [];
      socket.on("message", (_, { port }) => sources.push(port));
      remote = remotes.add("127.0.0.4", socket.address().port);
      place(MAC_B, remote);
      const toSocket = async (frame: Uint8Array, sent: number) => {
        await cool();
        frames = [];
        writeFrame(frame);
        await until("a callback", () => frames.length > 0);
        await until("it", () => sources.length >= sent);
        return frames;
      };
      expect((await toSocket(FRAME, 1))[0]!.flags).toBe(ASKS);
      encap = keep;
      expect((await toSocket(FRAME, 2))[0]!.flags).toBe(REPEATED);
      encap = forward;
      expect(await toSocket(FRAME, 3)).toHaveLength(1);
      expect([failures, batch.outError[0]]).toEqual([0, 0]);
      encap = keep;
      await toSocket(FRAME, 4); // behind what would have been sent twice
      expect(sources).toHaveLength(4);
      expect(new Set(sources).size).toBe(1);
    });

    it("that was moved is not sent again to that remote, and is to another one", async () => {
      const other = await Peer.open("127.0.0.3");
      const toOther = remotes.add(other.address, other.port);
      await learn();
      encap = (rows) => {
        forward(rows);
        batch.outRemote[0] = toOther;
        failures += underlay.send(batch, 1);
        batch.outRemote[0] = remote;
        failures += underlay.send(batch, 1);
      };
      expect(payloads((await send(numbered(1))).arrived)).toEqual([hex(framed(numbered(1)))]);
      const copies: Arrived[] = [];
      await until("the other one's", () => {
        copies.push(...other.receive());
        return copies.length > 0;
      });
      expect(payloads(copies)).toEqual([hex(framed(numbered(1)))]);
      expect(failures).toBe(0);
    });

    it("that another batch has at the same place is sent", async () => {
      await learn();
      const other = new Batch();
      encap = (rows) => {
        other.columns.set(batch.columns);
        other.slab.set(batch.slab);
        other.outOffset[0] = other.inOffset[0]! - HEADER.length;
        other.outRow[0] = 0;
        failures += underlay.send(other, rows);
      };
      expect((await send(numbered(1))).arrived).toHaveLength(2);
      expect(failures).toBe(0);
    });

    it("is moved whatever is behind its ports, and however long it is", async () => {
      await learn();
      await expectMoved(numbered(1));
      await expectMoved(numbered(2, 1));
      await expectMoved(numbered(3, 1400));
      await expectMoved(frameOf({ ...PLAIN, id: 77, ttl: 3 }));
    });

    const kinds: [string, Partial<Segment>][] = [
      ["TCP over IPv4", { tcp: true }],
      ["UDP over IPv6", { tcp: false, v6: true }],
      ["TCP over IPv6", { tcp: true, v6: true }],
    ];
    it.each(kinds)("is moved where it is %s", async (_, kind) => {
      await learn(frameOf(kind));
      await expectMoved(frameOf({ ...kind, ttl: 3 }));
      await expectAsked();
    });

    it.each([0, 1, 2, 3, 4, 5])(
      "asks again when word %i of what was offered says something else",
      async (word) => {
        await learn();
        await expectMoved();
        const at = entries[word < 3 ? 0 : 1]! + (word % 3);
        fdb.words[at]! ^= 1 << 20;
        await expectAsked();
        fdb.words[at]! ^= 1 << 20;
        await expectMoved();
      },
    );

    it("is moved out of any queue, once what came to the first before is read", async () => {
      const tap = new NativeTap({ name: uniqueName(), furtherQueues: 7 });
      onTestFinished(() => tap.close());
      ip("link", "set", tap.name, "netns", namespace);
      const words = ["link", "set", tap.name, "mtu", "9000", "master", "hub", "up"];
      execFileSync("nsenter", [`--net=/run/netns/${namespace}`, "ip", ...words]);
      taps.remove(NETWORK);
      taps.add(NETWORK, tap, () => {});
      for (const port of [40_001, 40_002, 40_003]) {
        await learn(frameOf({ ...PLAIN, port }));
        await expectMoved(frameOf({ ...PLAIN, port }));
      }
    });

    it("asks again when its MAC is elsewhere", async () => {
      await learn();
      const elsewhere = remotes.add("127.0.0.5", 9);
      place(MAC_B, elsewhere);
      await expectAsked();
    });

    it("asks again after all was forgotten, or a TAP has left", async () => {
      await learn();
      flows.forget();
      await expectAsked();
      await learn();
      await expectMoved();
      taps.remove(NETWORK);
      join();
      await expectAsked();
    });

    it("asks again when the underlay was opened anew", async () => {
      await learn();
      underlay.close();
      await open();
      await expectAsked();
      await learn();
      await expectMoved();
    });

    const others: [string, Uint8Array][] = [
      ["another TOS", frameOf({ ...PLAIN, tos: 4 })],
      ["an ECN mark", frameOf({ ...PLAIN, tos: 3 })],
      ["another destination", frameOf({ ...PLAIN, destination: MAC_HUB.with(5, 0x55) })],
      ["another source", FRAME.with(11, 0x77)],
      ["another port of its own", frameOf({ ...PLAIN, port: 40_001 })],
      ["another port", FRAME.with(37, FRAME[37]! ^ 1)],
      ["another address of its own", FRAME.with(29, 7)],
      ["another address", FRAME.with(33, 7)],
      ["another protocol", frameOf({ tcp: true })],
    ];
    it.each(others)("asks where it has %s", async (_, other) => {
      await learn();
      await expectAsked(other);
      await expectMoved();
    });

    it("asks where it is another TAP's", async () => {
      const tap = new NativeTap({ name: uniqueName() });
      onTestFinished(() => tap.close());
      ip("link", "set", tap.name, "netns", namespace);
      const inside = (...words: string[]) =>
        execFileSync("nsenter", [`--net=/run/netns/${namespace}`, "ip", "link", "set", ...words]);
      taps.add(NETWORK + 1, tap, () => {});
      await learn();
      inside(near.name, "nomaster");
      inside(tap.name, "mtu", "9000", "master", "hub", "up");
      onTestFinished(() => void inside(near.name, "master", "hub"));
      await expectAsked();
      expect(frames[0]!.tap).toBe(NETWORK + 1);
    });

    it("asks where another flow has its place, and has it from then on", async () => {
      const place = (frame: Uint8Array) => {
        const key = addon().flowKey(frame)!;
        key.writeInt32LE(NETWORK); // flowKey() knows of no TAP
        let hash = 2166136261;
        for (const byte of key) hash = Math.imul(hash ^ byte, 16777619);
        return (hash ^ (hash >>> 16)) & 255;
      };
      let other = FRAME;
      for (let port = 40_001; other === FRAME || place(other) !== place(FRAME); port++) {
        other = frameOf({ ...PLAIN, port });
      }
      await learn();
      await learn(other);
      await expectMoved(other);
      await expectAsked();
    });

    const unlike: [string, Uint8Array][] = [
      ["a tag", frameOf({ ...PLAIN, tags: [0x81, 0, 0, 7] })],
      ["options", frameOf({ ...PLAIN, ipOptions: [1, 1, 1, 1] })],
      ["more fragments behind it", frameOf({ ...PLAIN, fragment: 0x2000 })],
    ];
    it.each(unlike)("is TypeScript's where it has %s", async (_, other) => {
      await learn();
      await expectAsked(other, 0);
      await expectMoved();
    });

    const nowhere: [string, (end: number) => number][] = [
      ["before all of them", () => -1],
      ["at the first, which says nothing", () => 0],
      ["in part behind all of them", (end) => end - 2],
      ["behind all of them", (end) => end],
      ["far behind", () => 2 ** 31 - 1],
      ["far before", () => -(2 ** 31)],
    ];
    const each = nowhere.flatMap((one) =>
      [0, GUARD_WORDS].map((which) => [...one, which] as const),
    );
    it.each(each)("asks again where what is offered is %s", async (_, where, which) => {
      const at = where(fdb.words.length);
      const offered = [0, 1, 2].map((word) => fdb.words[at + word] ?? 0);
      guard = (repeat) => repeat.set([at, ...offered], which);
      await learn();
      await expectAsked();
    });

    it("is not moved while the path to its remote may be narrower", async () => {
      await learn();
      remotes.learnPathMtu(remote, 1400);
      await expectAsked();
      remotes.learnPathMtu(remote, 0);
      await expectMoved();
    });

    it.each([
      ["IPv4", false],
      ["IPv6", true],
    ])("has its checksum completed over %s", async (_, v6) => {
      const vnet = new Uint8Array(vnetOf({ tcp: false, v6 }, 0));
      vnet[1] = 0;
      const frame = (number: number, sum: "partial" | "whole") =>
        frameOf({ tcp: false, v6, payload: new Uint8Array(31).fill(number) }, sum);
      const [asked, moved] = [
        await send([frame(1, "partial"), vnet]),
        await send([frame(2, "partial"), vnet]),
      ];
      expect(asked.handed[0]!.vnet).toEqual([VNET_NEEDS_CSUM, 0]);
      expect(payloads(asked.arrived)).toEqual([hex(framed(frame(1, "whole")))]);
      expect(payloads(moved.arrived)).toEqual([hex(framed(frame(2, "whole")))]);
      expect(moved.handed[0]!.vnet).toEqual([0, 0]);
      expect(contents(moved.handed)).toEqual([hex(frame(2, "whole"))]);
    });

    it("carries the TOS that it was decided to have", async () => {
      outTos = 0xb9;
      await learn();
      encap = keep;
      expect((await send(FRAME)).arrived.map(({ tos }) => tos)).toEqual([0xb9]);
    });

    const SUPER: Partial<Segment> = { tcp: true, payload: new Uint8Array(LONG * 10).fill(9) };
    const SMALL: Partial<Segment> = { tcp: true, payload: new Uint8Array(1800).fill(9) };
    const long: [string, Uint8Array, Uint8Array, number][] = [
      ["small super-frame", frameOf(SMALL, "partial"), new Uint8Array(vnetOf(SMALL, 600)), 3],
      ["super-frame", frameOf(SUPER, "partial"), new Uint8Array(vnetOf(SUPER, 1000)), 40],
      ["frame that is longer than is held", numbered(9, LONG), new Uint8Array(10), 1],
    ];
    it.each(long)(
      "a %s is handed over whole, and what is behind it stays there",
      async (_, frame, vnet, count) => {
        const small = (number: number) => frame.slice(0, 60).with(59, number);
        await learn(small(0));
        const first = await send([frame, vnet]);
        expect(contents(first.handed)).toEqual([hex(frame)]);
        expect(first.handed[0]!.flags).toBe(0);
        expect(first.arrived).toHaveLength(count);
        const { arrived, handed } = await send(small(1), [frame, vnet], small(2));
        expect(contents(handed)).toEqual([small(1), frame, small(2)].map(hex));
        expect(handed.map(({ flags }) => flags)).toEqual([REPEATED, 0, 0]);
        expect(arrived).toHaveLength(count + 2);
        expect(payloads([arrived[0]!, arrived.at(-1)!])).toEqual(
          [small(1), small(2)].map((one) => hex(framed(one))),
        );
      },
    );

    it.each([MOST_HELD - 1, MOST_HELD, MOST_HELD + 1, 3 * MOST_HELD])(
      "and %i like it keep their order",
      async (count) => {
        await learn();
        const given = Array.from({ length: count }, (_, at) => numbered(at));
        const { arrived, handed } = await send(...given);
        expect(contents(handed)).toEqual(given.map(hex));
        expect(payloads(arrived)).toEqual(given.map((one) => hex(framed(one))));
        expect(failures).toBe(0);
      },
    );

    it("is moved while it is held that others were, until there is no room", async () => {
      await learn();
      encap = keep;
      const given = Array.from({ length: 3 * MOST_HELD }, (_, at) => numbered(at));
      const { arrived } = await send(...given);
      expect(payloads(arrived)).toEqual(given.slice(0, MOST_HELD).map((one) => hex(framed(one))));
    });
  });

  describe("in a datagram", () => {
    const DATAGRAM = framed(FRAME);

    async function receive(...given: Uint8Array[]) {
      return receiveFrom(peer, given);
    }

    async function receiveFrom(sender: Peer, given: Uint8Array[], tos = 0) {
      await cool();
      datagrams = [];
      sender.send(port, given, tos);
      const wanted = given.reduce((sum, { length }) => sum + length, 0);
      await until("all datagrams", () => {
        return datagrams.reduce((sum, one) => sum + one.bytes.length, 0) >= wanted;
      });
      return { written: written(), handed: datagrams };
    }

    /** What was written to the TAP; that is done when the call returns. */
    function written(): string[] {
      const read: string[] = [];
      for (let frame = readFrame(); frame !== undefined; frame = readFrame()) read.push(hex(frame));
      return read;
    }

    async function learnDatagram(datagram = DATAGRAM): Promise<void> {
      expect((await receive(datagram)).handed[0]!.flags).toBe(ASKS);
    }

    async function expectDelivered(datagram = DATAGRAM, tos = 0): Promise<void> {
      decap = keep;
      const { written, handed } = await receiveFrom(peer, [datagram], tos);
      decap = deliver;
      expect(written).toEqual([hex(datagram.subarray(HEADER.length))]);
      expect(contents(handed)).toEqual([hex(datagram)]);
      expect(handed[0]).toMatchObject({ flags: REPEATED, moved: NETWORK });
    }

    async function expectLeft(
      datagram = DATAGRAM,
      flags = ASKS,
      tos = 0,
      sender = peer,
    ): Promise<void> {
      decap = keep;
      const { written, handed } = await receiveFrom(sender, [datagram], tos);
      decap = deliver;
      expect(written).toEqual([]);
      expect(contents(handed)).toEqual([hex(datagram)]);
      expect(handed[0]).toMatchObject({ flags, tos });
    }

    it("asks until it is offered, and then is delivered before the callback, and once", async () => {
      await expectLeft();
      await learnDatagram();
      await expectDelivered();
      const { written, handed } = await receive(framed(numbered(1)));
      expect(written).toEqual([hex(numbered(1))]);
      expect(handed).toHaveLength(1);
      expect([failures, batch.outError[0]]).toEqual([0, 0]);
    });

    it("is delivered whatever the frame is, and with a DSCP", async () => {
      await learnDatagram();
      await expectDelivered(framed(numbered(1, 1400)));
      await expectDelivered(framed(frameOf({ v6: true, tos: 3 })));
      await expectDelivered(DATAGRAM, 0xb8);
      await expectDelivered(DATAGRAM.slice(0, 8 + 14));
    });

    it.each([1, 2, 3])("is TypeScript's where it has ECN mark %i", async (mark) => {
      await learnDatagram();
      await expectLeft(DATAGRAM, 0, mark);
      await expectLeft(DATAGRAM, 0, 0xb8 | mark);
      await expectDelivered();
    });

    it("asks where it is from another address", async () => {
      const other = await Peer.open("127.0.0.3");
      await learnDatagram();
      await expectLeft(DATAGRAM, ASKS, 0, other);
      await expectDelivered();
    });

    const others: [string, Uint8Array][] = [
      ["another VNI", framed(FRAME, OTHER_HEADER)],
      ["reserved bits", framed(FRAME, HEADER.with(7, 1))],
      ["no VNI", framed(FRAME, HEADER.with(0, 0))],
      ["another destination", DATAGRAM.with(13, 0x55)],
      ["another source", DATAGRAM.with(19, 0x55)],
    ];
    it.each(others)("asks where it has %s", async (_, other) => {
      await learnDatagram();
      await expectLeft(other);
      await expectDelivered();
    });

    it.each([0, 1, 21])("is TypeScript's where it is %i bytes long", async (length) => {
      await learnDatagram();
      await cool();
      datagrams = [];
      decap = keep;
      peer.send(port, [DATAGRAM.slice(0, length)]);
      await until("it", () => datagrams.length > 0);
      expect(datagrams.map(({ bytes, flags }) => [bytes.length, flags])).toEqual([[length, 0]]);
    });

    it.each([0, 1, 2])(
      "asks again when word %i of what was offered says something else",
      async (word) => {
        await learnDatagram();
        fdb.words[entries[0]! + word]! ^= 1 << 20;
        await expectLeft();
        fdb.words[entries[0]! + word]! ^= 1 << 20;
        await expectDelivered();
      },
    );

    it("asks again after all was forgotten, or a TAP has left", async () => {
      await learnDatagram();
      flows.forget();
      await expectLeft();
      await learnDatagram();
      taps.remove(NETWORK);
      join();
      await expectLeft();
    });

    it("in a train is handed over whole, and so is one that is longer than is held", async () => {
      await learnDatagram();
      decap = keep;
      const train = [1, 2, 3].map((number) => framed(numbered(number)));
      const { written, handed } = await receive(...train);
      expect(written).toEqual([]);
      expect(contents(handed)).toEqual([hex(bytes(...train))]);
      expect(handed[0]!.flags).toBe(0);
      await expectLeft(framed(numbered(9, LONG)), 0);
      await expectDelivered();
    });

    it("that is longer than any that is wanted is not delivered", async () => {
      underlay.close();
      await open({ gro: false, largestDatagram: 200 });
      await learnDatagram();
      decap = keep;
      await cool();
      datagrams = [];
      peer.send(port, [framed(numbered(9, 300))]);
      await until("it", () => datagrams.length > 0);
      expect(written()).toEqual([]);
      expect(datagrams[0]!.flags & TRUNCATED).toBe(TRUNCATED);
    });

    it("and others like it keep their order", async () => {
      await learnDatagram();
      // Each longer than the one before, so that they are no train.
      const given = Array.from({ length: 3 * MOST_HELD }, (_, at) =>
        framed(numbered(at, 100 + at)),
      );
      const { written, handed } = await receive(...given);
      expect(contents(handed)).toEqual(given.map(hex));
      expect(written).toEqual(given.map((one) => hex(one.subarray(HEADER.length))));
    });

    /** An echo request to the hub, whose answer comes at once. */
    function ping(number: number): Uint8Array {
      const echo = bytes([8, 0, 0, 0, 0, 7], u16(number), Array(40).fill(number));
      echo.set(u16(naiveChecksum(echo)), 2);
      const payload = ipv4Packet({ destination: [192, 0, 2, 9], protocol: 1, payload: echo });
      return framed(ethernetFrame({ destination: MAC_HUB, type: 0x0800, payload }));
    }

    it("that is answered has its answer leave, too, and says so", async () => {
      await receive(ping(1));
      await until("its answer", () => frames.length > 0);
      expect(frames[0]!.flags).toBe(ASKS);
      await arrivals();
      for (const number of [2, 3]) {
        frames = [];
        encap = keep;
        decap = (rows) => {
          expect(rows).toBe(1);
          if (number === 3) deliver(rows);
        };
        const { handed } = await receive(ping(number));
        expect(handed.map(({ flags }) => flags)).toEqual([ANSWERED | REPEATED]);
        const arrived = await arrivals();
        expect(arrived).toHaveLength(1);
        expect([...arrived[0]!.payload.subarray(8, 14)]).toEqual(MAC_A);
        expect(arrived[0]!.payload.at(-1)).toBe(number);
        readTaps();
        expect(frames.map(({ flags }) => flags)).toEqual([REPEATED]);
      }
    });

    it("whose answer has no flow leaves that to TypeScript", async () => {
      decap = (rows) => {
        deliver(rows);
      };
      encap = keep;
      await receive(ping(1));
      await until("its answer", () => frames.length > 0);
      frames = [];
      const { handed } = await receive(ping(2));
      expect(handed.map(({ flags }) => flags)).toEqual([ANSWERED | REPEATED]);
      readTaps();
      expect(frames.map(({ flags }) => flags)).toEqual([ASKS]);
      expect(await arrivals()).toEqual([]);
    });
  });

  describe("that is held", () => {
    const BACK = framed(bytes(MAC_A, MAC_B, FRAME.subarray(12)));
    beforeEach(() => place(MAC_A, LOCAL));

    /** A frame each way has been moved, and none of the callbacks has come yet. */
    async function hold(): Promise<void> {
      await learn();
      await cool();
      peer.send(port, [BACK]);
      await until("it", () => datagrams.length > 0);
      await until("both of them held", async () => {
        await cool();
        peer.receive();
        readFrame();
        callbacks = 0;
        writeFrame(FRAME);
        peer.send(port, [BACK]);
        const moved = { out: false, in: false };
        while (callbacks === 0 && !(moved.out && moved.in)) {
          await comeRound();
          moved.out ||= peer.receive().length > 0;
          moved.in ||= readFrame() !== undefined;
        }
        return callbacks === 0;
      });
    }

    const closed: [string, () => void][] = [
      ["the TAPs are closed", () => taps.close()],
      ["the underlay is", () => underlay.close()],
    ];
    it.each([
      [...closed[0]!, ...closed[1]!],
      [...closed[1]!, ...closed[0]!],
    ] as const)("while %s, and then $2, crashes nothing", async (_, one, __, other) => {
      await hold();
      one();
      expect(() => (one === closed[0]![1] ? taps.read(batch) : underlay.receive(batch))).toThrow();
      const rows = one === closed[0]![1] ? underlay.receive(batch) : taps.read(batch);
      expect(rows).toBe(1);
      if (one === closed[1]![1]) expect(batch.inTap[0]).toBe(NETWORK);
      other();
      await cool();
      expect(callbacks).toBe(0);
    });

    it("is nothing to those that are opened after", async () => {
      await hold();
      taps.close();
      underlay.close();
      taps = new NativeTaps(0, flows);
      join();
      await open();
      taps.watch(readTaps);
      await expectAsked();
    });

    it("when its TAP leaves is handed over all the same", async () => {
      await learn();
      encap = keep;
      await cool();
      frames = [];
      writeFrame(FRAME);
      await comeRound();
      taps.remove(NETWORK);
      expect(frames).toEqual([]);
      expect(taps.read(batch)).toBe(1);
      expect(batch.inFlags[0]).toBe(REPEATED);
      join();
      await send(numbered(1));
      expect(contents(frames)).toEqual([hex(numbered(1))]);
    });
  });
});
