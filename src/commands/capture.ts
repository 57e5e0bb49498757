/**
 * `vtep capture`: frames of a running agent, as pcapng to a file or to another program. What it counts goes
 * to standard error, for standard output may be the capture.
 */
import { createWriteStream } from "node:fs";
import type { IncomingMessage } from "node:http";
import { Readable, type Writable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { type Command, Option } from "commander";
import { Client } from "../api/client.ts";
import { VtepError } from "../errors.ts";
import { once } from "../flags.ts";
import * as pcapng from "../wire/pcapng.ts";
import { DEFAULT_SOCKET } from "./ask.ts";

const EXAMPLES = `
Frames are as the host or the underlay handed them over: a super-frame is one frame. Each has a
comment that says where it went or came from, and why it was dropped if it was.

Examples:
  vtep capture --network blue | wireshark -k -i -
  vtep capture --write lost.pcapng --remote 192.0.2.2
  tshark -r lost.pcapng -Y 'frame.comment contains "dropped"' -T fields -e frame.comment
`;

interface Options {
  readonly network?: string;
  readonly mac?: string;
  readonly remote?: string;
  readonly snaplen?: number;
  readonly count?: number;
  readonly write: string;
  readonly socket: string;
}

export function addCaptureCommand(vtep: Command): void {
  const single = (flags: string, help: string) => {
    const option = new Option(flags, help);
    return option.argParser(once(option.long!, "one capture has one of it"));
  };
  vtep
    .command("capture")
    .description("Write frames of a running agent as pcapng, for Wireshark, until interrupted")
    .addOption(single("--network <NETWORK>", "only frames of that network"))
    .addOption(single("--mac <MAC>", "only frames from or to that MAC"))
    .addOption(single("--remote <ADDR>", "only frames from or to that address"))
    .option("--count <N>", "end after so many frames", number)
    .option("--snaplen <BYTES>", "keep so many bytes of each frame (default: all)", number)
    .option("--write <FILE>", 'write to a file, or to standard output ("-")', "-")
    .option("--socket <PATH>", "socket of the agent", DEFAULT_SOCKET)
    .addHelpText("after", EXAMPLES)
    .action(capture);
}

async function capture(options: Options): Promise<void> {
  const { network, mac, remote, snaplen, count = Number.POSITIVE_INFINITY, write } = options;
  const isFile = write !== "-";
  if (!isFile && process.stdout.isTTY) {
    const message =
      "a capture is nothing to read on a terminal: give a file (--write FILE), or pass it on (vtep capture | wireshark -k -i -)";
    throw new VtepError("USAGE", message);
  }
  // Asked first: if there is nothing to write, a file that is there stays as it is.
  const client = new Client(options.socket);
  const answer = await client.capture({ network, mac, remote, snaplen });
  const taking = new Taking(answer, count);
  const end = () => taking.end(client);
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, end);
  const out: Writable = isFile ? createWriteStream(write) : process.stdout;
  try {
    await pipeline(Readable.from(taking.blocks()), out, { end: isFile });
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    // Who reads it has seen enough.
    if (code !== "EPIPE") throw new VtepError("SYSTEM", `writing the capture: ${message}`, error);
  } finally {
    answer.destroy();
    for (const signal of ["SIGINT", "SIGTERM"] as const) process.off(signal, end);
  }
  process.stderr.write(`vtep: ${taking.summary()}\n`);
  if (taking.isCutOff) {
    const message =
      "the agent ended while it was captured, or nothing was read of it for 30 s: what came until then was written; capture again";
    throw new VtepError("UNREACHABLE", message);
  }
}

/** A capture that comes from the agent, cut into blocks, so that it ends between two of them. */
class Taking {
  readonly #answer: IncomingMessage;
  readonly #count: number;
  readonly #interfaces: { captured: number; missed: number }[] = [];
  #frames = 0;
  #isEnding = false;
  #isEndedElsewhere = false;
  /** Whether the agent has not said how it ended. */
  #isOpen = false;
  isCutOff = false;

  constructor(answer: IncomingMessage, count: number) {
    this.#answer = answer;
    this.#count = count;
  }

  /** Takes what has been captured still; asked again, or where the agent says nothing, leaves it. */
  end(client: Client): void {
    const leave = () => this.#answer.destroy();
    if (this.#isEnding) return void leave();
    this.#isEnding = true;
    client.endCapture().catch(leave);
  }

  async *blocks(): AsyncGenerator<Buffer> {
    let rest: Buffer = Buffer.alloc(0);
    try {
      for await (const piece of this.#answer) {
        const { blocks, rest: begun } = pcapng.cut(Buffer.concat([rest, piece as Buffer]));
        rest = begun;
        const taken = blocks.slice(0, this.#cutAt(blocks));
        if (taken.length > 0) yield Buffer.concat(taken.map(({ bytes }) => bytes));
        if (this.#frames >= this.#count) return yield this.#statistics();
      }
      this.#isEndedElsewhere = !this.#isEnding;
    } catch (error) {
      if (error instanceof RangeError) throw error;
      this.isCutOff = !this.#isEnding;
      this.#isOpen = true;
      return; // what was missed since its last statistics, the agent alone knows
    }
    yield this.#statistics();
  }

  summary(): string {
    const missed = this.#interfaces.reduce((sum, own) => sum + own.missed, 0);
    const frames = this.#frames === 1 ? "1 frame" : `${this.#frames} frames`;
    const why =
      missed === 0 ? "" : ": filter (--network, --mac, --remote) or keep less (--snaplen)";
    const end = this.#isEndedElsewhere ? "; somebody else ended it" : "";
    const many = this.#isOpen ? `${missed} or more` : `${missed}`;
    return `${frames} captured, ${many} missed${why}${end}`;
  }

  /** Notes what blocks say; returns how many of them are wanted. */
  #cutAt(blocks: readonly pcapng.Block[]): number {
    for (const [at, block] of blocks.entries()) {
      if (block.type === "interface") this.#interfaces.push({ captured: 0, missed: 0 });
      if (block.type === "statistics") this.#interfaces[block.interface]!.missed = block.missed;
      if (block.type !== "packet") continue;
      this.#interfaces[block.interface]!.captured++;
      if (++this.#frames >= this.#count) return at + 1;
    }
    return blocks.length;
  }

  /** The last word on every interface. */
  #statistics(): Buffer {
    const timeMs = Date.now();
    const all = this.#interfaces.map(({ captured, missed }, at) => {
      const received = captured + missed;
      return pcapng.statistics({ interface: at, timeMs, received, missed, captured });
    });
    return Buffer.concat(all);
  }
}

function number(text: string): number {
  if (/^[1-9]\d{0,8}$/.test(text)) return Number(text);
  throw new VtepError("USAGE", `${JSON.stringify(text)} is not a number: give one from 1 on`);
}
