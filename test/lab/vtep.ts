import { once } from "node:events";
import { mkdirSync, rmSync } from "node:fs";
import { get, type IncomingMessage } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { threadId } from "node:worker_threads";
import type { AgentEvent } from "../../src/operations.ts";
import type { Endpoint, Host } from "./host.ts";
import type { Child } from "./namespace.ts";
import { samples } from "./prometheus.ts";
import { until } from "./until.ts";

export const cli = fileURLToPath(new URL("../../dist/cli.js", import.meta.url));

/** Paths are not of a network namespace: the agents of a lab share the machine's. */
const sockets = join(tmpdir(), "vtep-lab");
mkdirSync(sockets, { recursive: true });
let started = 0;
/** What is killed when this process ends leaves its socket. */
process.on("exit", () => {
  for (let one = 1; one <= started; one++) rmSync(socketOf(one), { force: true });
});

function socketOf(agent: number): string {
  return join(sockets, `${process.pid}-${threadId}-${agent}.sock`);
}

/** One line of the log. */
export interface LogLine {
  level: number;
  time: number;
  msg: string;
  [field: string]: unknown;
}

/** What SIGUSR2 makes it log. */
export interface Status {
  networks: NetworkStatus[];
  /** Drops before the network was known, by reason. */
  drops: Record<string, number>;
  /** MTUs of paths, as learned. */
  paths: { address: string; mtu: number }[];
}

export interface NetworkStatus {
  vni: number;
  tap: string;
  bridge?: string;
  mtu: number;
  counters: Record<Counter, number>;
  /** By reason. */
  drops: Record<string, number>;
  fdbEntries: number;
  /** The first 1,000 of them. */
  fdb: FdbRow[];
}

export type Counter =
  | "encapFrames"
  | "encapBytes"
  | "decapFrames"
  | "decapBytes"
  | "flooded"
  | "learned"
  | "moved"
  | "aged"
  | "evicted"
  | "reservedBits"
  | "gateway"
  | "otherVlan"
  | "toldTooBig"
  | "refused";

export interface FdbRow {
  mac: string;
  /** "local" or an underlay address. */
  destination: string;
  origin: "learned" | "static" | "control";
  ageSeconds: number;
}

export interface Exit {
  code: number | null;
  /** From the request to stop to the end. */
  ms: number;
}

/** A `vtep run` of the built command, in a host. */
export class Vtep implements Endpoint {
  /** Every line it has logged. */
  readonly log: LogLine[] = [];
  /** Everything it has said on standard error. */
  stderr = "";
  /** Its exit code, null if a signal ended it. */
  readonly exited: Promise<number | null>;
  /** Where it is asked: a path of its own, unless the arguments say otherwise. */
  readonly socket: string;
  readonly #child: Child;
  #running = true;

  /** `way`: a program that runs it, and that one's arguments. */
  constructor(host: Host, args: string[], way: readonly string[] = []) {
    const given = args.indexOf("--socket");
    this.socket = given < 0 ? socketOf(++started) : args[given + 1]!;
    const place = given < 0 ? ["--socket", this.socket] : [];
    const [command, ...words] = [...way, "node", host.cli, "run", ...args, ...place];
    this.#child = host.spawn(command!, ...words);
    this.#child.stdin.end();
    this.#child.stderr.setEncoding("utf8").on("data", (text) => {
      this.stderr += text;
    });
    createInterface(this.#child.stdout).on("line", (line) => {
      try {
        const said = JSON.parse(line) as LogLine;
        this.log.push(said);
        if (JSON.stringify(said).length < line.length)
          this.stderr += `a key comes twice: ${line}\n`;
      } catch {
        this.stderr += `not a JSON line on standard output: ${line}\n`;
      }
    });
    this.exited = once(this.#child, "close").then(([code]) => {
      this.#running = false;
      return code as number | null;
    });
  }

  get pid(): number {
    return this.#child.pid!;
  }

  /** Waits until frames can cross. Throws what it said if it ends instead. */
  async ready(): Promise<this> {
    await this.#logged("ready", 0);
    return this;
  }

  async status(): Promise<Status> {
    const before = this.log.length;
    this.#child.kill("SIGUSR2");
    return (await this.#logged("status", before)) as LogLine & Status;
  }

  /** The first status that satisfies the predicate. */
  async waitFor(predicate: (status: Status) => boolean, deadlineMs?: number): Promise<Status> {
    let last: Status | undefined;
    const satisfying = async () => {
      last = await this.status();
      return predicate(last) ? last : undefined;
    };
    try {
      return await until(`a status where ${predicate}`, satisfying, deadlineMs);
    } catch (error) {
      throw new Error(`${(error as Error).message}; the last was ${JSON.stringify(last)}`);
    }
  }

  async remoteOf(mac: string): Promise<string | undefined> {
    const { networks } = await this.status();
    return networks[0]?.fdb.find((row) => row.mac === mac)?.destination;
  }

  /** Its metrics as they are now: name with labels as written, and value. */
  async metrics(): Promise<Map<string, number>> {
    return samples(await text(await this.#answer("/metrics")));
  }

  /** A list that grows by whatever happens from now on. */
  async events(): Promise<AgentEvent[]> {
    const events: AgentEvent[] = [];
    const lines = createInterface(await this.#answer("/v1/events"));
    lines.on("line", (line) => {
      if (line.startsWith("data: ")) events.push(JSON.parse(line.slice("data: ".length)));
    });
    lines.on("error", () => {}); // it ends with the agent
    return events;
  }

  /** Asks it to stop and waits until it has. */
  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<Exit> {
    const asked = performance.now();
    this.#child.kill(signal);
    return { code: await this.exited, ms: performance.now() - asked };
  }

  /** Ends it without asking. */
  async kill(): Promise<void> {
    await this.stop("SIGKILL");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#running) await this.stop();
  }

  async #answer(path: string): Promise<IncomingMessage> {
    const [answer] = await once(get({ socketPath: this.socket, path }), "response");
    return answer as IncomingMessage;
  }

  async #logged(msg: string, from: number): Promise<LogLine> {
    const logged = () => {
      const line = this.log.slice(from).find((line) => line.msg === msg);
      if (line || this.#running) return line;
      throw new Error(`vtep ended before it logged "${msg}": ${this.stderr}`);
    };
    return until(`"${msg}" in the log`, logged, 10_000);
  }
}
