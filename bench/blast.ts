import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, statSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { Container } from "../test/lab/host.ts";
import { succeeded } from "../test/lab/namespace.ts";

const folder = fileURLToPath(new URL("../build/bench", import.meta.url));

export interface Blast {
  sent: number;
  received: number;
  /** How long the sources took. */
  seconds: number;
  /** How long it took until the last of them arrived. */
  lasted: number;
  lost: number;
  reordered: number;
  /** The longest time, in seconds, in which nothing arrived. */
  silence: number;
}

export interface BlastOptions {
  /** Of a payload. */
  size: number;
  seconds: number;
  /** Threads, each with a source port of its own; 1 unless told. */
  senders?: number;
  /** Of the sink: its IPv4 one unless told. */
  address?: string;
  /** Datagrams per second of all senders together; as many as they can unless told. */
  rate?: number;
}

/** Datagrams from a source with sendmmsg to a sink with recvmmsg: what blast.c does. */
export async function blast(
  from: Container,
  to: Container,
  { size, seconds, senders = 1, rate = 0, address = to.address }: BlastOptions,
): Promise<Blast> {
  const program = compiled("blast");
  const args = [`/run/netns/${to.name}`, address, ...[size, seconds, rate, senders].map(String)];
  const command = [program, ...args];
  const finished = await from.finish(command, { timeoutMs: seconds * 1000 + 10_000 });
  return JSON.parse(succeeded(command.join(" "), finished)) as Blast;
}

/** The path of a program of this folder, compiled with the C compiler that the addon needs anyway if it is older. */
export function compiled(name: "blast" | "spread"): string {
  const source = fileURLToPath(new URL(`${name}.c`, import.meta.url));
  const program = `${folder}/${name}`;
  if (existsSync(program) && statSync(program).mtimeMs > statSync(source).mtimeMs) return program;
  mkdirSync(folder, { recursive: true });
  const flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread"];
  execFileSync("cc", [...flags, "-o", program, source], { stdio: ["ignore", "ignore", "inherit"] });
  return program;
}
