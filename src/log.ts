/**
 * Where the log goes, which must stop nobody: neither frames nor the agent wait for who reads it.
 *
 * To a pipe or a socket, the journal's too, lines are written without waiting. When the reader has stalled
 * and MOST_WAITING bytes wait for it, further lines are left out, and counted in its next one. To a file
 * they are written at once; if it is full, they are lost. A terminal has colours, but for NO_COLOR.
 */
import { fstatSync } from "node:fs";
import { setTimeout } from "node:timers/promises";
import { type DestinationStream, pino } from "pino";
import { isJournal, journalStream } from "./systemd.ts";

const MOST_WAITING = 1 << 20;
/** How long the last lines are waited for. */
const LAST_MS = 500;
const LOOK_MS = 10;

export async function logStream(): Promise<DestinationStream> {
  if (process.stdout.isTTY) {
    const { default: pretty } = await import("pino-pretty");
    return pretty({ colorize: process.stdout.hasColors(), ignore: "pid,hostname", sync: true });
  }
  const { fd } = process.stdout;
  const lines = canStall(fd)
    ? new Lines(process.stdout)
    : pino.destination({ sync: true }).on("error", () => undefined);
  return isJournal(fd) ? journalStream(lines) : lines;
}

/** Waits for what is still to be written; false when nobody reads it, and it would keep this process. */
export async function isLogWritten(): Promise<boolean> {
  for (let waited = 0; process.stdout.writableLength > 0; waited += LOOK_MS) {
    if (waited >= LAST_MS) return false;
    await setTimeout(LOOK_MS);
  }
  return true;
}

/** As far as a writer can know: a file and /dev/null take what they are given. */
function canStall(fd: number): boolean {
  try {
    const stats = fstatSync(fd);
    return stats.isFIFO() || stats.isSocket();
  } catch {
    return false; // it is closed
  }
}

class Lines {
  readonly #to: NodeJS.WriteStream;
  #leftOut = 0;

  constructor(to: NodeJS.WriteStream) {
    this.#to = to;
  }

  write(line: string): void {
    if (this.#to.writableLength > MOST_WAITING) {
      this.#leftOut++;
      return;
    }
    const count = this.#leftOut;
    this.#leftOut = 0;
    const told = count === 0 ? line : line.replace(/\}\n$/, `,"linesLeftOut":${count}}\n`);
    this.#to.write(told, () => undefined); // a reader that has gone is told of by "error"
  }
}
