/**
 * Lets V8 compile what forwards before there is much to forward.
 *
 * V8 compiles what has run often, on threads of its own, for what it has seen until then. After the start of an
 * agent that took the first two seconds of a TCP stream, which cost a tenth more CPU than later ones. So a thread
 * that has begun to forward and has nothing to do yet forwards frames, of the kinds that most networks carry, from
 * memory to nowhere: for a tenth of a second, or two.
 *
 * That is of use for as long as nothing else is seen later. Where calls go to objects of up to four shapes V8
 * compiles their methods in, and throws the code away when another shape comes along; where there are more, it
 * looks the method up. So there are five shapes of devices here, and none of them is a real device's.
 */
import {
  ADDRESS_WORDS,
  ASKS,
  type Batch,
  HEADROOM,
  REPEATED,
  VNET_GSO_NONE,
  VNET_GSO_TCPV4,
  VNET_GSO_TCPV6,
  VNET_WORDS,
} from "./batch.ts";
import { Counters, Traffic } from "./counters.ts";
import { Dataplane } from "./dataplane.ts";
import type { Capabilities, Taps, Underlay } from "./device.ts";
import { Fdb } from "./fdb.ts";
import { Network } from "./network.ts";
import { addressWords, Remotes } from "./remotes.ts";
import * as vxlan from "./wire/vxlan.ts";

const SHAPES = 5;
/** Each way, of each shape of device. With half of it some functions are compiled later still. */
const TURNS = 600;
/** How many of them between two ticks, each a second of the dataplanes' clock. */
const TICK_TURNS = 100;

/** For how long a frame may wait for a rehearsal, and how soon that goes on after a frame. */
const TURN_MS = 1;
const BUSY_MS = 20;
/** With more of them in that time it may have been a stream: the thread runs before others until its next tick. */
const FEW_BURSTS = 8;
const STREAM_MS = 2000;

const NETWORK = 1;
const VNI = 42;
const PEER = "192.0.2.1";
const PEER_WORDS = addressWords(PEER);
const HERE = [2, 0, 0, 0, 0, 1];
const THERE = [2, 0, 0, 0, 0, 2];
const EVERYBODY = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff];

/** Bytes of TCP's payload in a segment. */
const SEGMENT = 1398;
/** From one frame in the slab to the next. */
const STRIDE = 8192;

interface Frame {
  /** Ethertype, and what follows up to the payload. */
  readonly headers: readonly number[];
  readonly payload: number;
  readonly gso: number;
  readonly isBroadcast: boolean;
}

const u16 = (value: number) => [value >> 8, value & 0xff];
const zeros = (count: number) => new Array<number>(count).fill(0);

const TCP = [...u16(40_000), ...u16(443), ...zeros(8), 0x50, 0x10, ...zeros(6)];
const UDP = [...u16(40_000), ...u16(53), ...u16(8), 0, 0];
const ARP = [8, 6, ...zeros(28)];

function ipv4(protocol: number, transport: number[], payload: number): number[] {
  const length = u16(20 + transport.length + payload);
  const addresses = [10, 0, 0, 1, 10, 0, 0, 2];
  return [8, 0, 0x45, 0, ...length, 0, 0, 0x40, 0, 64, protocol, 0, 0, ...addresses, ...transport];
}

function ipv6(next: number, transport: number[], payload: number): number[] {
  const length = u16(transport.length + payload);
  const addresses = [1, 2].flatMap((host) => [0xfd, ...zeros(14), host]);
  return [0x86, 0xdd, 0x60, 0, 0, 0, ...length, next, 64, ...addresses, ...transport];
}

/** `segments`: of TCP in one frame, that of a TAP. */
function frames(segments: number): Frame[] {
  const payload = segments * SEGMENT;
  const small = (headers: number[], isBroadcast = false): Frame => {
    return { headers, payload: 0, gso: VNET_GSO_NONE, isBroadcast };
  };
  return [
    { headers: ipv4(6, TCP, payload), payload, gso: VNET_GSO_TCPV4, isBroadcast: false },
    small(ipv4(6, TCP, 0)),
    small(ipv4(17, UDP, 0)),
    small(ipv4(1, zeros(8), 0)),
    { headers: ipv6(6, TCP, payload), payload, gso: VNET_GSO_TCPV6, isBroadcast: false },
    small(ipv6(58, zeros(24), 0)),
    small(ARP, true),
  ];
}

/** What arrives at a device: a burst at every second call, of one to four rows. */
abstract class Script {
  #calls = 0;
  #batch: Batch | undefined;
  protected readonly frames: readonly Frame[];

  constructor(frames: readonly Frame[]) {
    this.frames = frames;
  }

  play(batch: Batch): number {
    if (this.#batch !== batch) {
      this.#batch = batch;
      for (const kind of this.frames.keys()) this.place(batch, kind);
    }
    this.#calls++;
    if (this.#calls % 2 === 0) return 0;
    const burst = this.#calls >> 1;
    const rows = 1 + (burst % 4);
    for (let row = 0; row < rows; row++) {
      const kind = (burst * (row > 1 ? row : 1)) % this.frames.length;
      const lone = (burst & 4) === 0 ? ASKS : REPEATED;
      batch.inFlags[row] = rows === 1 ? lone : 0;
      batch.inTarget[row] = NETWORK; // as the peer's index is
      this.fill(batch, row, kind);
    }
    return rows;
  }

  /** Writes a frame to its place in the slab. */
  protected abstract place(batch: Batch, kind: number): void;
  /** Says of a row that it is such a frame. */
  protected abstract fill(batch: Batch, row: number, kind: number): void;
}

function ethernet(to: number[], from: number[], { headers, isBroadcast }: Frame): number[] {
  return [...(isBroadcast ? EVERYBODY : to), ...from, ...headers];
}

class FromTaps extends Script {
  constructor() {
    super(frames(46));
  }

  protected place({ slab }: Batch, kind: number): void {
    slab.set(ethernet(THERE, HERE, this.frames[kind]!), kind * STRIDE + HEADROOM);
  }

  protected fill(batch: Batch, row: number, kind: number): void {
    const { headers, payload, gso } = this.frames[kind]!;
    const vnet = row * VNET_WORDS * 4;
    batch.inOffset[row] = kind * STRIDE + HEADROOM;
    batch.inLength[row] = 12 + headers.length + payload;
    batch.inTap[row] = NETWORK;
    batch.inVnet.setUint8(vnet + 1, gso);
    batch.inVnet.setUint16(vnet + 4, gso === VNET_GSO_NONE ? 0 : SEGMENT, true);
  }
}

/** Trains of two datagrams; behind those of the other way, since a dataplane has one slab for both. */
class FromUnderlay extends Script {
  constructor() {
    super(frames(1));
  }

  protected place({ slab, view }: Batch, kind: number): void {
    const frame = this.frames[kind]!;
    const bytes = ethernet(HERE, THERE, frame);
    const first = (this.frames.length + kind) * STRIDE;
    for (const at of [first, first + vxlan.HEADER + bytes.length + frame.payload]) {
      vxlan.writeHeader(view, at, VNI);
      slab.set(bytes, at + vxlan.HEADER);
    }
  }

  protected fill(batch: Batch, row: number, kind: number): void {
    const { headers, payload } = this.frames[kind]!;
    const length = vxlan.HEADER + 12 + headers.length + payload;
    batch.inOffset[row] = (this.frames.length + kind) * STRIDE;
    batch.inLength[row] = 2 * length;
    batch.inSegment[row] = length;
    batch.inTos[row] = 0;
    batch.inAddress.set(PEER_WORDS, row * ADDRESS_WORDS);
  }
}

const REST = {
  capabilities: {} as Capabilities,
  overflows: () => 0,
  refusals: () => 0,
  add() {},
  remove() {},
  limit() {},
  watch() {},
  close() {},
};

/** Two devices of a shape. Twice the same text, since a function that always comes from one place is compiled in, too. */
function devices(shape: number): { taps: Taps; underlay: Underlay } {
  const own = Object.fromEntries(Array.from({ length: shape }, (_, at) => [`shape${at}`, shape]));
  const said = new FromTaps();
  const heard = new FromUnderlay();
  if (shape % 2 === 0) {
    return {
      taps: { ...own, ...REST, read: (batch) => said.play(batch), write: () => 0 },
      underlay: { ...own, ...REST, receive: (batch) => heard.play(batch), send: () => 0 },
    };
  }
  return {
    taps: { ...own, ...REST, read: (batch) => said.play(batch), write: () => 0 },
    underlay: { ...own, ...REST, receive: (batch) => heard.play(batch), send: () => 0 },
  };
}

function dataplaneOn(shape: number, remotes: Remotes, traffic: Traffic): Dataplane {
  const fdb = new Fdb(Fdb.allocate(16, 1));
  fdb.setLimit(NETWORK, 16);
  const mac = { high: 0x0200, low: 3 };
  const network = new Network({ vni: VNI, index: NETWORK, ageSeconds: 300, mac });
  network.addToFlood(remotes.add(PEER, 4789));
  const dataplane = new Dataplane({
    fdb,
    remotes,
    counters: new Counters(Counters.allocate(NETWORK, 1), 1),
    traffic,
    ...devices(shape),
    strict: false,
    flowSeed: 1,
    dscp: "inherit",
  });
  dataplane.add(network);
  return dataplane;
}

/** Forwards a little each time that it is asked to go on, until it has been enough: 0.1 ms, at first some. */
export function* rehearse(): Generator<void> {
  const remotes = new Remotes();
  const traffic = new Traffic(Traffic.allocate(1), 1);
  // Called from one place, or they would be compiled into this function.
  const ways = [Dataplane.prototype.encap, Dataplane.prototype.decap];
  const all: Dataplane[] = [];
  for (let shape = 0; shape < SHAPES; shape++) {
    all.push(dataplaneOn(shape, remotes, traffic));
    yield;
  }
  for (let turn = 0; turn < TURNS; turn++) {
    for (const dataplane of all) {
      if (turn % TICK_TURNS === 0) dataplane.tick(turn / TICK_TURNS);
      for (const way of ways) way.call(dataplane);
      yield;
    }
  }
}

/** Rehearses a moment at a time, for as long as no frame comes. `taken`: how many bursts of frames the thread has taken. */
export function whileIdle(rehearsal: Iterator<void>, taken: () => number): void {
  const later = (ms: number) => {
    const before = taken();
    setTimeout(() => turn(before), ms).unref();
  };
  const turn = (before: number) => {
    const bursts = taken() - before;
    if (bursts > 0) return later(bursts > FEW_BURSTS ? STREAM_MS : BUSY_MS);
    const end = performance.now() + TURN_MS;
    try {
      while (performance.now() < end) if (rehearsal.next().done) return;
    } catch {
      return; // for want of memory, say: frames are forwarded all the same
    }
    setImmediate(turn, before);
  };
  later(BUSY_MS);
}
