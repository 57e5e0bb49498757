/** Other programs of this host, run to their end. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { text } from "node:stream/consumers";
import { remedied, VtepError } from "./errors.ts";

export interface Ended {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
  /** The first line of that: its own words, where it failed first. */
  readonly refusal: string;
}

/**
 * How long a program may take, and how much longer for each line of its input: changes wait for one another, and
 * stopping for them, so one that never ends would be the last. To set up 4,000 links takes ip seconds.
 */
const PATIENCE_MS = 60_000;
const LINE_MS = 50;

/**
 * Throws VtepError LINK when it cannot be run, or has not ended after `patienceMs`; `from` is the package that
 * has it.
 */
export async function command(
  words: readonly string[],
  input: string,
  from: string,
  patienceMs = PATIENCE_MS + LINE_MS * input.split("\n").length,
): Promise<Ended> {
  // In a session of its own: a terminal's Ctrl-C is for us, and must not end it half-way.
  const child = spawn(words[0]!, words.slice(1), { detached: true });
  const ended = once(child, "close") as Promise<[number | null, NodeJS.Signals | null]>;
  let patience: NodeJS.Timeout | undefined;
  try {
    if (child.pid === undefined) await ended; // throws why; it may not even have streams
    child.stdin.on("error", () => undefined); // it may end without having read everything
    child.stdin.end(input);
    const said = Promise.all([text(child.stdout), text(child.stderr)]);
    // Not waited for once it is killed: where the kernel has it, it may not even end then.
    const late = new Promise<never>((_, reject) => {
      patience = setTimeout(() => {
        killAll(child.pid!);
        reject(new VtepError("LINK", lateness(words[0]!, patienceMs)));
      }, patienceMs);
    });
    const [[code, signal], [stdout, stderr]] = await Promise.race([
      Promise.all([ended, said]),
      late,
    ]);
    const killed = signal === null ? "" : `it was ended by ${signal}`;
    return { code, stdout, stderr, refusal: stderr.trim().split("\n")[0] || killed };
  } catch (error) {
    if (error instanceof VtepError) throw error;
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === "ENOENT") {
      throw new VtepError("LINK", `the command ${words[0]} is missing: install ${from}`, error);
    }
    const sentence = `the command ${words[0]} could not be run: ${message}`;
    throw new VtepError("LINK", remedied(sentence), error);
  } finally {
    clearTimeout(patience);
  }
}

/** With what it has started: each has a session of its own, and so a process group. */
function killAll(pid: number): void {
  try {
    process.kill(-pid, "SIGKILL");
  } catch {
    // it has just ended
  }
}

function lateness(program: string, patienceMs: number): string {
  const seconds = Math.round(patienceMs / 1000);
  return `the command ${program} had not ended after ${seconds} s, and was killed: see what holds it up (ps, dmesg), then try again`;
}
