import { randomInt } from "node:crypto";
import { once } from "node:events";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { fileURLToPath } from "node:url";
import type { Container } from "./host.ts";
import type { Child, Finished, Namespace } from "./namespace.ts";
import { until } from "./until.ts";

const stream = fileURLToPath(new URL("stream.mjs", import.meta.url));
const datagram = fileURLToPath(new URL("datagram.mjs", import.meta.url));
const superFrame = fileURLToPath(new URL("super.py", import.meta.url));

export interface PingOptions {
  /** 3 unless told. */
  count?: number;
  /** Bytes of payload, 56 unless told. */
  size?: number;
  intervalMs?: number;
  /** How long to wait for the last reply, 5 s unless told. */
  waitMs?: number;
}

export interface Pings {
  sent: number;
  received: number;
  duplicates: number;
  /** The sequence numbers, from 1, that were answered. */
  answered: number[];
  /** Median of the round-trip times. */
  rttMs: number;
}

/**
 * Pings an address. Not being answered is a result; not being able to send is an error.
 *
 * Left to itself, `ping -c` waits no longer than two round-trip times after the last request, which on
 * a busy machine is too short. With a deadline it waits for as many replies as there were requests, and
 * goes on sending meanwhile: what it sends beyond `count` is not looked at.
 */
export async function ping(
  from: Namespace,
  address: string,
  { count = 3, size = 56, intervalMs = 20, waitMs = 5_000 }: PingOptions = {},
): Promise<Pings> {
  const seconds = Math.ceil((count * intervalMs + waitMs) / 1_000);
  const { code, stdout, stderr } = await from.finish([
    ...["ping", "-n", "-c", `${count}`, "-w", `${seconds}`],
    ...["-s", `${size}`, "-i", `${intervalMs / 1_000}`, address],
  ]);
  if (code === null || code > 1) throw new Error(`ping ${address}: ${stderr}${stdout}`);
  const replies = [...stdout.matchAll(/icmp_seq=(\d+) .*time=([\d.]+) ms$/gm)];
  const answered = replies.map(([, sequence]) => Number(sequence)).filter((at) => at <= count);
  const rtts = replies.map(([, , rtt]) => Number(rtt)).sort((a, b) => a - b);
  return {
    sent: count,
    received: answered.length,
    duplicates: stdout.split("(DUP!)").length - 1,
    answered,
    rttMs: rtts[rtts.length >> 1] ?? Number.NaN,
  };
}

/** Whether nothing answers within a while. Not being able to ask is an error. */
export async function isSilent(from: Namespace, address: string, ms = 300): Promise<boolean> {
  const { code, stdout, stderr } = await pingOnce(from, address, ms);
  if (code !== 0 && code !== 1) throw new Error(`ping ${address}: ${stderr}${stdout}`);
  return code === 1;
}

/** Waits until one ping is answered. There may be no way to the address yet. */
export async function reach(from: Namespace, address: string, deadlineMs = 10_000): Promise<void> {
  const answered = async () => (await pingOnce(from, address, 300)).code === 0;
  await until(`${from.name} reach ${address}`, answered, deadlineMs);
}

function pingOnce(from: Namespace, address: string, ms: number): Promise<Finished> {
  return from.finish(["ping", "-n", "-c", "1", "-W", `${ms / 1_000}`, address]);
}

export interface Sum {
  bytes: number;
  sha256: string;
}

export interface TcpTransfer {
  sent: Sum;
  received: Sum;
  seconds: number;
}

/** One TCP stream of checkable content; nothing may differ between what was sent and received. */
export async function transferTcp(
  from: Namespace,
  to: Namespace & { readonly address: string },
  { bytes, address = to.address }: { bytes: number; address?: string },
): Promise<TcpTransfer> {
  const receiver = new Program(to, stream, "tcp-receive");
  const { port } = (await receiver.next()) as { port: number };
  const began = performance.now();
  const sender = new Program(from, stream, "tcp-send", address, `${port}`, `${bytes}`, seed());
  const [sent, received] = (await Promise.all([sender.next(), receiver.next()])) as [Sum, Sum];
  return { sent, received, seconds: (performance.now() - began) / 1000 };
}

export interface UdpTransfer {
  sent: number;
  received: number;
  /** Arrived, but not as they were sent. */
  corrupted: number;
  duplicated: number;
  reordered: number;
}

/**
 * Numbered datagrams with checksums. Some may be lost; none may be altered. `together`: so many at a
 * time, a multiple of eight, are one super-frame of the sender's, of one size but for the last.
 */
export async function transferUdp(
  from: Container,
  to: Container,
  {
    count,
    size,
    together,
    address = to.address,
  }: { count: number; size: number | number[]; together?: number; address?: string },
): Promise<UdpTransfer> {
  const receiver = new Program(to, stream, "udp-receive");
  const { port } = (await receiver.next()) as { port: number };
  const numbers = [port, count, size].map(String);
  const sender = together
    ? new Program(from, superFrame, address, ...numbers, `${together}`)
    : new Program(from, stream, "udp-send", address, ...numbers, seed());
  const results = await Promise.all([sender.next(), receiver.next()]);
  return Object.assign({}, ...results) as UdpTransfer;
}

/** Sends datagrams as they are; what they cross is the caller's affair. */
export async function send(
  from: Namespace,
  to: { address: string; port: number; source?: string },
  payloads: Uint8Array[],
): Promise<void> {
  const input = payloads.map((payload) => `${Buffer.from(payload).toString("hex")}\n`).join("");
  const args = [to.address, `${to.port}`, ...(to.source ? [to.source] : [])];
  const { code, stderr } = await from.finish(["node", datagram, "send", ...args], { input });
  if (code !== 0) throw new Error(`sending to ${to.address}: ${stderr}`);
}

export interface Heard {
  from: string;
  port: number;
  payload: Buffer;
}

/** Everything that arrives at a UDP port, also for multicast groups. */
export class Ear implements AsyncDisposable {
  readonly heard: Heard[] = [];
  readonly #program: Program;

  private constructor(program: Program) {
    this.#program = program;
  }

  static async open(where: Namespace, port: number, ...groups: string[]): Promise<Ear> {
    const program = new Program(where, datagram, "hear", `${port}`, ...groups);
    await program.next();
    const ear = new Ear(program);
    void ear.#listen();
    return ear;
  }

  async #listen(): Promise<void> {
    for await (const line of this.#program.lines) {
      const { from, port, payload } = JSON.parse(line) as Record<"from" | "payload", string> &
        Record<"port", number>;
      this.heard.push({ from, port, payload: Buffer.from(payload, "hex") });
    }
  }

  /** How often a payload was heard. */
  count(payload: string): number {
    return this.heard.filter((heard) => heard.payload.toString() === payload).length;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#program.end();
  }
}

/** What iperf3 says of one direction. */
export interface Throughput {
  bits_per_second: number;
  bytes: number;
  /** TCP senders only. */
  retransmits?: number;
  /** UDP only. */
  packets?: number;
  lost_percent?: number;
}

/**
 * One run of iperf3 with further arguments, say `["-C", "cubic", "-P", "4"]`: the machine's default
 * congestion control may be any.
 */
export async function iperf3(
  from: Namespace,
  to: Container,
  { seconds = 3, args = [] as string[], address = to.address } = {},
): Promise<{ sent: Throughput; received: Throughput }> {
  const server = to.spawn("iperf3", "--server", "--one-off", "--forceflush");
  server.stdin.end();
  try {
    await hears(server.stdout, "listening");
    const whole = Math.ceil(seconds); // of less than one it takes 0, which is for ever
    const client = ["iperf3", "--client", address, "--time", `${whole}`, "--json", ...args];
    const { code, stdout } = await from.finish(client, { timeoutMs: whole * 1000 + 10_000 });
    if (code === null) throw new Error(`iperf3 to ${address} did not end`);
    const { error, end } = JSON.parse(stdout);
    if (error) throw new Error(`iperf3 to ${address}: ${error}`);
    return { sent: end.sum_sent ?? end.sum, received: end.sum_received ?? end.sum };
  } finally {
    server.kill();
  }
}

/** Waits for a word of a program. Throws when it ends without it. */
export async function hears(output: Readable, word: string): Promise<void> {
  let heard = "";
  for await (const chunk of output.iterator({ destroyOnReturn: false })) {
    heard += chunk;
    if (heard.includes(word)) return void output.resume();
  }
  throw new Error(`it ended before it said "${word}": ${heard}`);
}

/** A program that prints one JSON line for each thing it has to say. */
class Program {
  readonly lines: AsyncIterableIterator<string>;
  readonly #child: Child;
  #stderr = "";

  constructor(where: Namespace, script: string, ...args: string[]) {
    const interpreter = script.endsWith(".py") ? "python3" : "node";
    this.#child = where.spawn(interpreter, script, ...args);
    this.#child.stdin.end();
    this.#child.stderr.setEncoding("utf8").on("data", (text) => {
      this.#stderr += text;
    });
    this.lines = createInterface(this.#child.stdout)[Symbol.asyncIterator]();
  }

  async next(): Promise<unknown> {
    const { value, done } = await this.lines.next();
    if (done) throw new Error(`${this.#child.spawnargs.slice(-6).join(" ")}: ${this.#stderr}`);
    return JSON.parse(value);
  }

  async end(): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      this.#child.kill();
      await once(this.#child, "close");
    }
  }
}

let lastSeed = randomInt(256);

/** Which key stream a transfer carries: no two in a row are alike. */
function seed(): string {
  lastSeed = (lastSeed + 1) % 256;
  return `${lastSeed}`;
}
