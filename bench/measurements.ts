/**
 * What is measured, all of it with iperf3 and ping between two containers.
 *
 * iperf3 is one thread at either end, and sends its datagrams one by one: its unpaced UDP source
 * is slower than one with sendmmsg would be, and the kernel's tunnel, which runs on the sender's
 * core, slows it down further. So read a delivered rate only beside the loss.
 */
import { readFileSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";
import type { Container } from "../test/lab/host.ts";
import { iperf3, ping } from "../test/lab/traffic.ts";
import { cpuTime } from "./cpu.ts";

export interface Scene {
  /** Containers on hosts 1 and 2. */
  near: Container;
  far: Container;
  /** The tunnel's processes. */
  pids: number[];
  seconds: number;
}

export interface Figure {
  name: string;
  unit: string;
  digits: number;
  /** Which is better. One that stands beside another figure, to explain it, has no ratio. */
  better?: "more" | "less";
}

export interface Measurement {
  name: string;
  figures: Figure[];
  /** One value for each figure, in their order. */
  take(scene: Scene): Promise<number[]>;
}

const PING_INTERVAL_MS = 20;
/** When slow start is over. */
const WARM_MS = 300;

/** Datagrams per second of a paced source: about half of what kernel VXLAN passes without loss. */
const PACED = 50_000;

export const measurements: Measurement[] = [
  loadedTcp(),
  tcp("tcp1-reverse", "TCP 1 stream, reverse", 1, "reverse"),
  tcp("tcp4", "TCP 4 streams", 4),
  tcp("tcp4-reverse", "TCP 4 streams, reverse", 4, "reverse"),
  {
    name: "rtt",
    figures: [{ name: "RTT idle", unit: "ms", digits: 3, better: "less" }],
    async take({ near, far, seconds }) {
      const count = seconds * 50;
      return [(await ping(near, far.address, { count, intervalMs: 10 })).rttMs];
    },
  },
  udp("udp64", 64),
  udp("udp64-paced", 64, PACED),
  udp("udp1300", 1300),
  udp("udp1300-paced", 1300, PACED),
];

/** One TCP stream, with what it costs and what it does to others. */
function loadedTcp(): Measurement {
  return {
    name: "tcp1",
    figures: [
      { name: "TCP 1 stream", unit: "Gbit/s", digits: 2, better: "more" },
      { name: "retransmits", unit: "", digits: 0 },
      { name: "RTT under it", unit: "ms", digits: 3, better: "less" },
      { name: "CPU, whole system", unit: "s/GB", digits: 2, better: "less" },
      { name: "CPU, tunnel's processes", unit: "s/GB", digits: 2 },
    ],
    async take({ near, far, pids, seconds }) {
      const before = cpuTime(pids);
      const [stream, rttMs] = await Promise.all([
        tcpStreams(near, far, 1, seconds),
        rttUnderLoad(near, far, seconds),
      ]);
      const after = cpuTime(pids);
      const gigabytes = stream.bytes / 1e9;
      return [
        stream.gigabits,
        stream.retransmits,
        rttMs,
        (after.machine - before.machine) / gigabytes,
        (after.processes - before.processes) / gigabytes,
      ];
    },
  };
}

/** Pings once slow start is over, and until just before the stream ends. */
async function rttUnderLoad(from: Container, to: Container, seconds: number): Promise<number> {
  await pause(WARM_MS);
  const count = Math.floor((seconds * 1000 - 2 * WARM_MS) / PING_INTERVAL_MS);
  return (await ping(from, to.address, { count, intervalMs: PING_INTERVAL_MS })).rttMs;
}

function tcp(name: string, title: string, streams: number, direction = "forward"): Measurement {
  return {
    name,
    figures: [
      { name: title, unit: "Gbit/s", digits: 2, better: "more" },
      { name: "retransmits", unit: "", digits: 0 },
    ],
    async take({ near, far, seconds }) {
      const [from, to] = direction === "forward" ? [near, far] : [far, near];
      const { gigabits, retransmits } = await tcpStreams(from, to, streams, seconds);
      return [gigabits, retransmits];
    },
  };
}

async function tcpStreams(from: Container, to: Container, streams: number, seconds: number) {
  // The machine's default may be bbr, which paces: then iperf3 would measure that.
  const args = ["--congestion", "cubic", "--parallel", `${streams}`];
  const { sent, received } = await iperf3(from, to, { seconds, args });
  return {
    gigabits: received.bits_per_second / 1e9,
    bytes: received.bytes,
    retransmits: sent.retransmits ?? Number.NaN,
  };
}

function udp(name: string, size: number, packetsPerSecond?: number): Measurement {
  const source = packetsPerSecond ? `at ${packetsPerSecond / 1000} kpps` : "unpaced";
  return {
    name,
    figures: [
      { name: `UDP ${size} B ${source}`, unit: "kpps", digits: 1, better: "more" },
      { name: "lost", unit: "%", digits: 2 },
    ],
    async take({ near, far, seconds }) {
      const args = [
        ...["--udp", "--length", `${size}`, "--window", `${socketBuffer}`],
        ...["--bitrate", `${(packetsPerSecond ?? 0) * size * 8}`],
      ];
      const { received } = await iperf3(near, far, { seconds, args });
      return [received.bits_per_second / (size * 8) / 1000, received.lost_percent ?? Number.NaN];
    },
  };
}

/** What a program may ask for: with less, iperf3 loses datagrams that the tunnel has delivered. */
const socketBuffer = Math.min(
  ...["rmem_max", "wmem_max"].map((name) =>
    Number(readFileSync(`/proc/sys/net/core/${name}`, "utf8")),
  ),
);
