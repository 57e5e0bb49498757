/**
 * What a decision costs: the dataplane between devices that cost nothing, and its parts.
 *
 *     npm run bench:micro
 *
 * Times are per frame (or per call where there is no frame): the median of many samples, and their
 * median absolute deviation. Machines differ and drift, so what can be compared is the last column:
 * everything in terms of one lookup in an FDB that fits into the cache, measured in the same run.
 */
import { cpus } from "node:os";
import { Bench } from "tinybench";
import { addon } from "../src/device/native.ts";
import { Fdb, STATIC } from "../src/fdb.ts";
import { completeChecksum } from "../src/wire/checksum.ts";
import { Flows, flowHash } from "../src/wire/flow.ts";
import { vxlan } from "../test/unit/sim.ts";
import { Treadmill, treadmill } from "../test/unit/treadmill.ts";
import { bytes, ethernetFrame, ipv4Packet, ipv6Packet, ports } from "../test/unit/wire/frames.ts";
import { benchmark } from "./command-line.ts";
import { table } from "./table.ts";

/** Milliseconds of a task: so that all of them take half a minute. */
const TIME = 900;
const WARM_UP = 300;
/** Frames in one read of a device; it is read four times a call, as dataplane.ts has it. */
const BURST = 64;
const READS = 4;
/** Calls of a part that are one sample. */
const CALLS = 1024;

const BASE = "FDB lookup, hit, 1,000 entries";
const VNI = 100;
const PEER = "192.0.2.2";
const HIGH = 0x0242;

benchmark("npm run bench:micro --")
  .description(
    "What a decision costs: the dataplane between devices that cost nothing, and its parts",
  )
  .parse();

const bench = new Bench({ time: TIME, warmupTime: WARM_UP, warmup: true });
/** How many frames or calls one run of a task is. */
const perRun = new Map<string, number>();

function task(name: string, units: number, run: () => unknown): void {
  perRun.set(name, units);
  bench.add(name, () => void run());
}

const range = (count: number) => Array.from({ length: count }, (_, index) => index);
/** 02:42:00:00:00:00 and following. */
const macOf = (low: number) => [HIGH >> 8, HIGH & 0xff, 0, 0, low >> 8, low & 0xff];

/** A TCP segment over IPv4 from local MAC 1… to remote MAC 1001…, in flows of its own. */
function tcpFrame(at: number, length: number, from = at, to = 1000 + at): Uint8Array {
  const payload = ports(40_000 + at, 443, length - 14 - 20 - 4);
  return ethernetFrame({
    destination: macOf(to),
    source: macOf(from),
    type: 0x0800,
    payload: ipv4Packet({ protocol: 6, payload }),
  });
}

const NOTHING = new Treadmill([]);

function encap(name: string, length: number, remotes: number): void {
  const isFlood = remotes > 1;
  const frames = range(BURST).map((at) => ({ bytes: tcpFrame(at, length) }));
  const peers = range(remotes).map((at) => `198.18.${at >> 8}.${at & 0xff}`);
  const mill = treadmill({ taps: new Treadmill(frames), underlay: NOTHING, peers });
  const remote = mill.remotes.add(PEER, 4789);
  if (!isFlood) for (const at of range(BURST)) mill.fdb.set(1, HIGH, 1000 + at, remote, STATIC);
  task(name, BURST * READS, mill.encap);
}

function decap(name: string, length: number, train: number): void {
  const rows = range(BURST / train).map((row) => {
    const datagrams = range(train).map((at) => {
      return vxlan(VNI, tcpFrame(at, length, 1000 + row, at));
    });
    return { bytes: bytes(...datagrams), from: PEER, segment: 8 + length };
  });
  const mill = treadmill({ taps: NOTHING, underlay: new Treadmill(rows), peers: [PEER] });
  task(name, BURST * READS, mill.decap);
}

/** A lookup of every entry once, in an order that no cache foresees, before any comes again. */
function lookups(name: string, entries: number, isHit: boolean): void {
  const fdb = new Fdb(Fdb.allocate(entries, 0x5eed));
  fdb.setLimit(1, entries);
  for (let low = 0; low < entries; low++) fdb.learn(1, HIGH, low, 1, 0);
  const network = isHit ? 1 : 2;
  let low = 0;
  task(name, CALLS, () => {
    let sum = 0;
    for (let call = 0; call < CALLS; call++) {
      // A step that shares no factor with the number of entries visits them all.
      low = (low + 618_033_989) % entries;
      sum += fdb.lookup(network, HIGH, low);
    }
    return sum;
  });
}

function learning(name: string, step: number): void {
  const fdb = new Fdb(Fdb.allocate(1024, 0x5eed));
  fdb.setLimit(1, 1000);
  let now = 0;
  task(name, CALLS, () => {
    now += step;
    for (let call = 0; call < CALLS; call++) fdb.learn(1, HIGH, call % 1000, 1, now);
  });
}

function hashing(name: string, frame: Uint8Array): void {
  const view = new DataView(new SharedArrayBuffer(frame.length));
  new Uint8Array(view.buffer).set(frame);
  const flows = new Flows(0x5eed);
  task(name, CALLS, () => {
    let sum = 0;
    for (let call = 0; call < CALLS; call++) {
      view.setInt32(26, call); // of the source address
      sum ^= flowHash(view, 0, frame.length, flows);
    }
    return sum;
  });
}

function checksums(length: number): void {
  const frame = new Uint8Array(new SharedArrayBuffer(length)).fill(0x5a);
  const view = new DataView(frame.buffer);
  const { completeChecksum: native } = addon();
  const calls = length > 10_000 ? 16 : 256;
  task(`checksum of ${length.toLocaleString("en")} B, TypeScript`, calls, () => {
    for (let call = 0; call < calls; call++) completeChecksum(view, 0, length, 34, 16);
  });
  task(`checksum of ${length.toLocaleString("en")} B, native, with its call`, calls, () => {
    for (let call = 0; call < calls; call++) native(frame, 34, 16);
  });
}

lookups(BASE, 1000, true);
lookups("FDB lookup, hit, 100,000 entries", 100_000, true);
lookups("FDB lookup, hit, 1,000,000 entries", 1_000_000, true);
lookups("FDB lookup, miss, 1,000 entries", 1000, false);
lookups("FDB lookup, miss, 1,000,000 entries", 1_000_000, false);
learning("FDB learn, seen in this second", 0);
learning("FDB learn, seen in another second", 1);
hashing("flow hash, TCP over IPv4", tcpFrame(1, 64));
hashing(
  "flow hash, TCP over IPv6",
  ethernetFrame({ type: 0x86dd, payload: ipv6Packet({ next: 6, payload: ports(40_000, 443) }) }),
);
encap("encap, 64 B, known unicast", 64, 1);
encap("encap, 1,400 B, known unicast", 1400, 1);
encap("encap, 64 B, flood to 10", 64, 10);
encap("encap, 64 B, flood to 1,000", 64, 1000);
decap("decap, 64 B, one by one", 64, 1);
decap("decap, 1,400 B, trains of 16", 1400, 16);
for (const length of [64, 1400, 65_000]) checksums(length);

await bench.run();

const timings = bench.tasks.map(({ name, result }) => {
  if (!("latency" in result)) throw new Error(`${name}: ${result.state}`, { cause: result });
  const nanoseconds = (result.latency.p50 * 1e6) / perRun.get(name)!;
  return { name, nanoseconds, spread: result.latency.mad / result.latency.p50 };
});
const base = timings.find(({ name }) => name === BASE)!.nanoseconds;
const rows = timings.map(({ name, nanoseconds, spread }) => [
  name,
  nanoseconds.toFixed(nanoseconds < 100 ? 1 : 0),
  `± ${(spread * 100).toFixed(0)} %`,
  (nanoseconds / base).toFixed(1),
]);
console.log(`\n  Node ${process.version}, ${cpus()[0]?.model.trim()}\n`);
console.log(table(["", "median, ns", "spread", "lookups"], rows));
