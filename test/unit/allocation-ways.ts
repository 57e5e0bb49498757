/**
 * The program that `allocation.test.ts` runs in a process of its own: takes each way of a frame for
 * a million frames and prints, a line of JSON each, how much the heap grew meanwhile.
 *
 *     node --expose-gc --min-semi-space-size=64 --max-semi-space-size=64 --import tsx …
 *
 * The young generation is large enough that a window in which nothing is wasted ends before it is
 * collected: then growth is what was allocated, to the byte. A window with a collection in it is
 * itself the proof of waste.
 */
import { constants } from "node:os";
import { PerformanceObserver, performance } from "node:perf_hooks";
import { setTimeout } from "node:timers/promises";
import type { Batch } from "../../src/batch.ts";
import { ASKS, REPEATED, TRUNCATED } from "../../src/batch.ts";
import { STATIC } from "../../src/fdb.ts";
import { Mirror } from "../../src/mirror.ts";
import { address, BROADCAST, frame, MULTICAST, mac, type Row, vxlan } from "./sim.ts";
import { BURSTS, Treadmill, treadmill } from "./treadmill.ts";
import {
  bytes,
  documentationMac,
  ethernetFrame,
  fragmentHeader,
  ipv4Packet,
  ipv6Packet,
  ports,
} from "./wire/frames.ts";

/** What was found of one way. */
export interface Growth {
  readonly way: string;
  readonly frames: number;
  readonly bytesPerFrame: number;
  readonly collections: number;
}

const FRAMES = 1_000_000;
const WARM_UP = 400_000;
/** Windows that may be had until one is quiet. */
const WINDOWS = 6;
/** Frames between two ticks of the clock. */
const TICK = 20_000;

/** Allocates one object for every frame that it writes: what this program has to catch. */
class Wasteful extends Treadmill {
  last: { readonly row: number } = { row: 0 };

  override write(batch: Batch, count: number): number {
    for (let row = 0; row < count; row++) this.last = { row };
    return super.write(batch, count);
  }
}

/** Allocates a number with a fraction for every frame: the smallest object there is. */
class Boxing extends Treadmill {
  readonly last: unknown[] = ["no number, so that numbers in here are objects"];

  override write(batch: Batch, count: number): number {
    for (let row = 0; row < count; row++) this.last[0] = row + 0.5;
    return super.write(batch, count);
  }
}

const range = (count: number) => Array.from({ length: count }, (_, index) => index);
const PEER = address(2);
const PEERS = range(10).map((index) => address(2 + index));
const LOCALS = range(16).map((index) => mac(0x10 + index));
const REMOTES = range(16).map((index) => mac(0x40 + index));
const NOTHING = new Treadmill([]);

const toRemotes = REMOTES.map((to, at) => ({ bytes: frame(to, LOCALS[at]!) }));
const toAll = [BROADCAST, MULTICAST, mac(0xee)].map((to) => ({ bytes: frame(to, LOCALS[0]!) }));
const tooBig = range(4).map((at) => {
  const link = { destination: documentationMac(0x40 + at), source: documentationMac(0x10 + at) };
  const payload = new Uint8Array(1400);
  const [v4, v6] = [ipv4Packet({ protocol: 17, payload }), ipv6Packet({ next: 17, payload })];
  const packet = at < 2 ? { type: 0x0800, payload: v4 } : { type: 0x86dd, payload: v6 };
  return { bytes: ethernetFrame({ ...link, ...packet }) };
});
/** First and later ones of datagrams, in turn. */
const fragments = range(16).map((at) => {
  const link = { destination: documentationMac(0x40 + at), source: documentationMac(0x10 + at) };
  const isFirst = at % 2 === 0;
  const fragment = { id: 0xd000 + (at >> 1) * 0x101, fragment: isFirst ? 0x2000 : 3 };
  const v4 = ipv4Packet({ ...fragment, protocol: 17, payload: ports(53, 1000 + at) });
  const behind = bytes(fragmentHeader(17, isFirst ? 0 : 24, isFirst), ports(53, 1000 + at));
  const v6 = ipv6Packet({ next: 44, payload: behind });
  const packet = at < 8 ? { type: 0x0800, payload: v4 } : { type: 0x86dd, payload: v6 };
  return { bytes: ethernetFrame({ ...link, ...packet }) };
});
const fromRemotes = REMOTES.map(
  (from, at): Row => ({
    bytes: vxlan(100, frame(LOCALS[at]!, from)),
    from: PEER,
  }),
);
const trains = REMOTES.slice(0, 4).map(
  (from): Row => ({
    bytes: bytes(...range(16).map(() => vxlan(100, frame(LOCALS[0]!, from)))),
    from: PEER,
    segment: 68,
  }),
);
const bad: Row[] = [
  { bytes: new Uint8Array(0), from: PEER },
  { bytes: vxlan(100, frame(LOCALS[0]!, REMOTES[0]!)), from: PEER, flags: TRUNCATED },
  { bytes: vxlan(100, frame(LOCALS[0]!, REMOTES[0]!), 0), from: PEER },
  { bytes: vxlan(100, frame(LOCALS[0]!, REMOTES[0]!), 0x88), from: PEER },
  { bytes: vxlan(101, frame(LOCALS[0]!, REMOTES[0]!)), from: PEER },
  { bytes: vxlan(100, frame(LOCALS[0]!, REMOTES[0]!)), from: "203.0.113.9" },
  { bytes: vxlan(100, new Uint8Array(13)), from: PEER },
  { bytes: vxlan(100, frame(LOCALS[0]!, MULTICAST)), from: PEER },
  { bytes: vxlan(100, frame(LOCALS[0]!, mac(0xf0))), from: PEER },
  { bytes: vxlan(100, frame(LOCALS[0]!, REMOTES[15]!)), from: PEER },
];
const moving = range(64).map(
  (at): Row => ({
    bytes: vxlan(100, frame(LOCALS[0]!, REMOTES[(at >> 1) % 16]!)),
    from: PEERS[at % 2]!,
  }),
);

type Mill = ReturnType<typeof treadmill>;

function mill(tap: Treadmill, underlay: Treadmill, { peers = PEERS, limit = 1024 } = {}): Mill {
  const made = treadmill({ taps: tap, underlay, peers, limit });
  // The remotes' MACs, so that encap finds them; the last one behind somebody else than PEER.
  for (let at = 0; at < 16; at++) {
    if (at === 15) made.fdb.set(1, 0, 0x5e005340 + at, made.remotes.add(PEERS[9]!, 4789), STATIC);
    else if (tap !== NOTHING)
      made.fdb.learn(1, 0, 0x5e005340 + at, made.remotes.add(PEER, 4789), 0);
  }
  return made;
}

function narrow(made: Mill): Mill {
  made.remotes.learnPathMtu(made.remotes.add(PEER, 4789), 1300);
  return made;
}

function failing(device: Treadmill): Treadmill {
  device.errno = constants.errno.EAGAIN;
  return device;
}

/** Somebody captures, and reads so fast that the ring is always empty again. */
function captured(made: Mill): Mill {
  const memory = Mirror.allocate();
  const filter = { vni: undefined, mac: undefined, remote: undefined, snaplen: 96 };
  made.dataplane.mirrorTo(new Mirror(memory, filter, made.remotes, () => 0));
  const positions = new Int32Array(memory, 0, 2);
  const emptying = (run: () => boolean) => () => {
    const more = run();
    positions[1] = positions[0]!;
    return more;
  };
  return { ...made, encap: emptying(made.encap), decap: emptying(made.decap) };
}

/** A device would do by itself what is decided on it. */
function asked(row: Row): Row {
  return { ...row, flags: ASKS };
}

/** It has done so: for the remote, or the network, of this index. */
function repeated(row: Row, moved: number): Row {
  return { ...row, flags: REPEATED, moved };
}

/** Name, the dataplane, whether from the TAP, and how many frames there are in a burst. */
const WAYS: [name: string, mill: Mill, encap: boolean, frames: number][] = [
  ["encap, known unicast", mill(new Treadmill(toRemotes), NOTHING), true, 16],
  ["encap, flood to ten", mill(new Treadmill(toAll), NOTHING), true, 3],
  ["encap, nowhere to go", mill(new Treadmill(toAll), NOTHING, { peers: [] }), true, 3],
  ["encap, refused", mill(new Treadmill(toRemotes), failing(new Treadmill([]))), true, 16],
  ["encap, too big", narrow(mill(new Treadmill(tooBig), NOTHING)), true, 4],
  ["encap, fragments", mill(new Treadmill(fragments), NOTHING), true, 16],
  ["decap, known", mill(NOTHING, new Treadmill(fromRemotes)), false, 16],
  ["decap, trains", mill(NOTHING, new Treadmill(trains)), false, 64],
  ["decap, dropped", mill(NOTHING, new Treadmill(bad)), false, 10],
  ["decap, refused", mill(failing(new Treadmill([])), new Treadmill(fromRemotes)), false, 16],
  ["decap, moving", mill(NOTHING, new Treadmill(moving)), false, 64],
  ["decap, evicting", mill(NOTHING, new Treadmill(fromRemotes), { limit: 4 }), false, 16],
  ["encap, asked about", mill(new Treadmill([asked(toRemotes[0]!)]), NOTHING), true, 1],
  ["decap, asked about", mill(NOTHING, new Treadmill([asked(fromRemotes[0]!)])), false, 1],
  ["encap, repeated", mill(new Treadmill([repeated(toRemotes[0]!, 1)]), NOTHING), true, 1],
  ["decap, repeated", mill(NOTHING, new Treadmill([repeated(fromRemotes[0]!, 1)])), false, 1],
  ["encap, captured", captured(mill(new Treadmill(toRemotes), NOTHING)), true, 16],
  ["decap, captured", captured(mill(NOTHING, new Treadmill(trains))), false, 64],
  ["wasteful", mill(new Treadmill(toRemotes), new Wasteful([])), true, 16],
  ["boxing", mill(new Treadmill(toRemotes), new Boxing([])), true, 16],
];

const collections: number[] = [];
const observer = new PerformanceObserver((list) => {
  for (const { startTime } of list.getEntries()) collections.push(startTime);
});
observer.observe({ entryTypes: ["gc"] });

let now = 0;
function run({ dataplane, encap, decap }: Mill, isEncap: boolean, burst: number, total: number) {
  let sinceTick = 0;
  for (let frames = 0; frames < total; frames += burst * BURSTS) {
    if (isEncap) encap();
    else decap();
    sinceTick += burst * BURSTS;
    if (sinceTick < TICK) continue;
    sinceTick = 0;
    dataplane.tick(++now);
  }
}

/** The least of some windows: the compiler works in one, but what a frame needs it needs in all. */
async function grow(way: string, made: Mill, isEncap: boolean, burst: number): Promise<Growth> {
  for (let part = 0; part < 4; part++) {
    run(made, isEncap, burst, WARM_UP / 4);
    await setTimeout(20); // compiled code is put in place on the event loop
  }
  let least = await growth(way, made, isEncap, burst);
  for (let again = 0; again < WINDOWS - 1 && least.bytesPerFrame > 0.05; again++) {
    const next = await growth(way, made, isEncap, burst);
    if (next.bytesPerFrame < least.bytesPerFrame) least = next;
  }
  return least;
}

async function growth(way: string, made: Mill, isEncap: boolean, burst: number): Promise<Growth> {
  gc!();
  await setTimeout(1);
  const begin = performance.now();
  const before = process.memoryUsage().heapUsed;
  run(made, isEncap, burst, FRAMES);
  const after = process.memoryUsage().heapUsed;
  const end = performance.now();
  await setTimeout(20); // the observer is told on the event loop, too
  const within = collections.filter((at) => at >= begin && at <= end).length;
  return { way, frames: FRAMES, bytesPerFrame: (after - before) / FRAMES, collections: within };
}

for (const [way, made, isEncap, burst] of WAYS) {
  process.stdout.write(`${JSON.stringify(await grow(way, made, isEncap, burst))}\n`);
}
observer.disconnect();
