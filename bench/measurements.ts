/**
 * What is measured between two containers: TCP with iperf3, UDP with blast.c, latency with ping.
 *
 * A machine that is shared drifts from one second to the next, so what can be is measured in short turns, of every
 * tunnel in turn (bench/RESULTS.md).
 *
 * One unpaced UDP sender flatters whatever runs in another process: the kernel runs its whole path on
 * the sender's core, so that what it delivers is the sender's speed. So three rates stand together: of
 * one unpaced sender, of two, and the highest paced one that (nearly) all datagrams survive.
 *
 * Neither end of a TCP stream paces itself: the containers' routes say `congctl cubic`.
 * With iperf3's `--congestion cubic` alone, a socket that began with a machine's default of bbr keeps
 * that one's pacing timer, and half of the goodput is gone.
 */
import { readFileSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";
import type { Container } from "../test/lab/host.ts";
import { iperf3 } from "../test/lab/traffic.ts";
import { highest } from "./bisection.ts";
import { type Blast, blast } from "./blast.ts";
import { cpuTime } from "./cpu.ts";
import { percentile } from "./statistics.ts";

export interface Scene {
  /** Containers on hosts 1 and 2. */
  near: Container;
  far: Container;
  /** The tunnel's processes. */
  pids: number[];
  /** From its start on both hosts until a ping was answered through it. */
  startedInMs: number;
  /** How long it is measured at once. */
  seconds: number;
}

export interface Figure {
  name: string;
  unit: string;
  digits: number;
  /** Which is better. One that stands beside another figure, to explain it, has no ratio. */
  better?: "more" | "less";
  /** Which percentile of the round-trip times it is, if it is one. */
  ofRtts?: number;
  /** Of several turns what all have counted, where others have a mean. */
  isCount?: true;
}

export interface Reading {
  /** One for each figure, in their order. */
  values: number[];
  /** Every round-trip time behind them, in ms. */
  rtts?: number[];
}

export interface Measurement {
  name: string;
  figures: Figure[];
  /** Seconds of a turn at most; it is taken as a whole where there is none. */
  turn?: number;
  take(scene: Scene): Promise<Reading>;
}

/** Below 10 ms ping sleeps no more between two, but spins (main_loop in iputils' ping_common.c). */
const PING_INTERVAL_MS = 20;
/** A stream's first half second is slower than the rest (bench/RESULTS.md). iperf3 knows whole ones only. */
const TCP_TURN = 2;
const RTT_TURN = 1;
const UDP_TURN = 0.25;
/** When slow start is over. */
const WARM_MS = 300;

/** Lost datagrams that a rate may have and still count as free of loss. */
const LOSSLESS = 0.001;
/** How long one step of the search for that rate is, in measurements' lengths. */
const STEP = 1 / 4;
/** It is looked for between these parts of what arrived from one unpaced sender, … */
const LEAST = 1 / 4;
const MOST = 3;
/** … in so many steps, the last of which is 1 % wide; 8 % when time is short. */
const STEPS = { long: 8, short: 5 };
/** More than this lost is not a hiccup of the machine's, of some milliseconds, but the tunnel's limit. */
const HICCUP = 0.1;
/** What a source that keeps its pace may miss of it. */
const PACE = 0.97;

export const measurements: Measurement[] = [
  loadedTcp(),
  tcp("tcp1-reverse", "TCP 1 stream, reverse", 1, "reverse"),
  tcp("tcp4", "TCP 4 streams", 4),
  tcp("tcp4-reverse", "TCP 4 streams, reverse", 4, "reverse"),
  {
    name: "rtt",
    turn: RTT_TURN,
    figures: [
      { name: "RTT idle, median", unit: "ms", digits: 3, better: "less", ofRtts: 50 },
      { name: "p99 idle", unit: "ms", digits: 3, better: "less", ofRtts: 99 },
      { name: "pings lost", unit: "%", digits: 1 },
    ],
    async take({ near, far, seconds }) {
      const { rtts, lost } = await roundTrips(near, far, seconds * 1000);
      return { values: [percentile(rtts, 50), percentile(rtts, 99), lost], rtts };
    },
  },
  unpacedUdp("udp64", 64),
  pacedUdp("udp64-paced", 64),
  unpacedUdp("udp1300", 1300),
  pacedUdp("udp1300-paced", 1300),
  {
    name: "footprint",
    figures: [
      { name: "start-up", unit: "ms", digits: 0 },
      { name: "memory (RSS), its processes on both hosts", unit: "MB", digits: 1 },
    ],
    take: async ({ pids, startedInMs }) => ({ values: [startedInMs, residentMegabytes(pids)] }),
  },
];

/** What turns have found, one or more of a measurement, all equally long. */
export function together(figures: Figure[], readings: Reading[]): Reading {
  const rtts = readings.flatMap((reading) => reading.rtts ?? []);
  const values = figures.map(({ ofRtts, isCount }, at) => {
    if (ofRtts) return percentile(rtts, ofRtts);
    const sum = readings.reduce((before, { values }) => before + values[at]!, 0);
    return isCount ? sum : sum / readings.length;
  });
  return { values, ...(rtts.length > 0 && { rtts }) };
}

/** What both ends of every measurement need. */
export async function prepare(end: Container): Promise<void> {
  await end.sysctl({
    // Or a stream would begin where the one before it, through another tunnel, had left off.
    "ipv4/tcp_no_metrics_save": 1,
    // An ARP request that a tunnel was not ready for is repeated soon: its start-up is measured.
    "ipv4/neigh/eth0/retrans_time_ms": 50,
  });
  // Not paced, see above; the sysctl cannot be set in a namespace that is not the machine's first.
  const route = `10.1.0.0/24 dev eth0 proto kernel scope link src ${end.address}`;
  await end.ip(`route change ${route} congctl cubic`);
}

/** One TCP stream, with what it costs and what it does to others. */
function loadedTcp(): Measurement {
  return {
    name: "tcp1",
    turn: TCP_TURN,
    figures: [
      { name: "TCP 1 stream", unit: "Gbit/s", digits: 2, better: "more" },
      { name: "retransmits", unit: "", digits: 0, isCount: true },
      { name: "RTT under it, median", unit: "ms", digits: 3, better: "less", ofRtts: 50 },
      { name: "p99 under it", unit: "ms", digits: 3, better: "less", ofRtts: 99 },
      { name: "pings lost", unit: "%", digits: 1 },
      { name: "CPU per GB, whole system", unit: "s", digits: 2, better: "less" },
      { name: "CPU per GB, tunnel's processes", unit: "s", digits: 2 },
    ],
    async take({ near, far, pids, seconds }) {
      const before = cpuTime(pids);
      const [stream, { rtts, lost }] = await Promise.all([
        tcpStreams(near, far, 1, seconds),
        pause(WARM_MS).then(() => roundTrips(near, far, Math.ceil(seconds) * 1000 - 2 * WARM_MS)),
      ]);
      const after = cpuTime(pids);
      const gigabytes = stream.bytes / 1e9;
      const values = [
        stream.gigabits,
        stream.retransmits,
        percentile(rtts, 50),
        percentile(rtts, 99),
        lost,
        (after.machine - before.machine) / gigabytes,
        (after.processes - before.processes) / gigabytes,
      ];
      return { values, rtts };
    },
  };
}

/** Milliseconds, of each answer that ping tells of. */
export function pingTimes(said: string): number[] {
  return [...said.matchAll(/time=([\d.]+) ms$/gm)].map(([, time]) => Number(time));
}

/** Times in ms of those that were answered, and how many percent of them were not. */
async function roundTrips(
  from: Container,
  to: Container,
  ms: number,
): Promise<{ rtts: number[]; lost: number }> {
  const count = Math.max(10, Math.floor(ms / PING_INTERVAL_MS));
  const interval = `${PING_INTERVAL_MS / 1000}`;
  const args = ["-n", "-c", `${count}`, "-i", interval, "-W", "1", to.address];
  const { stdout } = await from.finish(["ping", ...args]);
  const rtts = pingTimes(stdout);
  if (rtts.length === 0) throw new Error("no ping was answered");
  return { rtts, lost: 100 * (1 - rtts.length / count) };
}

function tcp(name: string, title: string, streams: number, direction = "forward"): Measurement {
  return {
    name,
    turn: TCP_TURN,
    figures: [
      { name: title, unit: "Gbit/s", digits: 2, better: "more" },
      { name: "retransmits", unit: "", digits: 0, isCount: true },
    ],
    async take({ near, far, seconds }) {
      const [from, to] = direction === "forward" ? [near, far] : [far, near];
      const { gigabits, retransmits } = await tcpStreams(from, to, streams, seconds);
      return { values: [gigabits, retransmits] };
    },
  };
}

async function tcpStreams(from: Container, to: Container, streams: number, seconds: number) {
  const args = ["--parallel", `${streams}`];
  const { sent, received } = await iperf3(from, to, { seconds, args });
  return {
    gigabits: received.bits_per_second / 1e9,
    bytes: received.bytes,
    retransmits: sent.retransmits ?? Number.NaN,
  };
}

function unpacedUdp(name: string, size: number): Measurement {
  return {
    name,
    turn: UDP_TURN,
    figures: [
      { name: `UDP ${size} B, one unpaced sender`, unit: "kpps", digits: 1, better: "more" },
      { name: "lost of one", unit: "%", digits: 2 },
      { name: `UDP ${size} B, two unpaced senders`, unit: "kpps", digits: 1, better: "more" },
      { name: "lost of two", unit: "%", digits: 2 },
      { name: "reordered, of either", unit: "%", digits: 2 },
    ],
    async take({ near, far, seconds }) {
      const one = await blast(near, far, { size, seconds });
      const two = await blast(near, far, { size, seconds, senders: 2 });
      const reordered = 100 * ((one.reordered + two.reordered) / (one.received + two.received));
      const values = [one, two].flatMap((run) => [delivered(run), lostPercent(run)]);
      return { values: [...values, reordered] };
    },
  };
}

function pacedUdp(name: string, size: number): Measurement {
  const figures: Figure[] = [
    { name: `UDP ${size} B, paced, < 0.1 % lost`, unit: "kpps", digits: 1, better: "more" },
    { name: "CPU per million, whole system", unit: "s", digits: 2, better: "less" },
    { name: "CPU per million, tunnel's processes", unit: "s", digits: 2 },
    { name: "reordered", unit: "%", digits: 2 },
  ];
  return {
    name,
    figures,
    async take({ near, far, pids, seconds }) {
      const { address } = far;
      const fastest = await blast(near, far, { size, seconds, address });
      const paced = await highestPaced({ near, far, pids, size, seconds, address }, fastest);
      if (paced === undefined) return { values: figures.map(() => Number.NaN) };
      const { run, machine, processes } = paced;
      const millions = run.received / 1e6;
      const reordered = 100 * (run.reordered / run.received);
      return { values: [delivered(run), machine / millions, processes / millions, reordered] };
    },
  };
}

export interface Datagrams extends Pick<Scene, "near" | "far" | "pids" | "seconds"> {
  /** Of a payload. */
  size: number;
  /** One of `far`. */
  address: string;
}

/** The three that stand together: one unpaced sender, two, and the highest paced one. */
export interface PacketRates {
  one: Blast;
  two: Blast;
  /** Undefined when no rate is free of loss. */
  paced: Paced | undefined;
}

/** The run that confirmed a rate, and its CPU time in seconds. */
interface Paced {
  run: Blast;
  machine: number;
  processes: number;
}

export async function packetRates(datagrams: Datagrams): Promise<PacketRates> {
  const { near, far, size, seconds, address } = datagrams;
  const one = await blast(near, far, { size, seconds, address });
  const two = await blast(near, far, { size, seconds, address, senders: 2 });
  return { one, two, paced: await highestPaced(datagrams, one) };
}

/** No pace is above that of `fastest`, one unpaced sender. */
async function highestPaced(
  { near, far, pids, size, seconds, address }: Datagrams,
  fastest: Blast,
): Promise<Paced | undefined> {
  const run = (rate: number, length: number) =>
    blast(near, far, { size, rate, address, seconds: length });
  const length = Math.max(seconds * STEP, 0.15);
  const passes = async (rate: number) => {
    for (let attempt = 1; ; attempt++) {
      const { sent, lost, seconds } = await run(rate, length);
      if (sent / seconds < rate * PACE) return false;
      if (lost < sent * LOSSLESS) return true;
      if (attempt === 2 || lost > sent * HICCUP) return false;
    }
  };
  const confirm = async (rate: number) => {
    const before = cpuTime(pids);
    const trial = await run(rate, seconds);
    const after = cpuTime(pids);
    if (trial.lost >= trial.sent * LOSSLESS) return undefined;
    const machine = after.machine - before.machine;
    return { run: trial, machine, processes: after.processes - before.processes };
  };
  const steps = seconds < 1 ? STEPS.short : STEPS.long;
  const arrived = delivered(fastest) * 1000;
  const pace = fastest.sent / fastest.seconds;
  const high = Math.min(MOST * arrived, 1.1 * pace);
  return highest(passes, confirm, { low: LEAST * arrived, high, steps });
}

/** In thousands per second. What a queue hands over when the sources have ended takes time, too. */
export function delivered({ received, seconds, lasted }: Blast): number {
  return received / Math.max(seconds, lasted) / 1000;
}

function lostPercent({ lost, sent }: Blast): number {
  return (lost / sent) * 100;
}

/** Of all of them together; NaN where there are none. */
export function residentMegabytes(pids: number[]): number {
  if (pids.length === 0) return Number.NaN;
  const kilobytes = pids.map((pid) =>
    Number(/^VmRSS:\s*(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))![1]),
  );
  return kilobytes.reduce((sum, value) => sum + value, 0) / 1000;
}
