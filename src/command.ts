/** Other programs of this host, run to their end. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { text } from "node:stream/consumers";
import { RAISE_FILES, VtepError } from "./errors.ts";

export interface Ended {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
  /** The first line of that: its own words, where it failed first. */
  readonly refusal: string;
}

/** Throws VtepError LINK when it cannot be run; `from` is the package that has it. */
export async function command(
  words: readonly string[],
  input: string,
  from: string,
): Promise<Ended> {
  // In a session of its own: a terminal's Ctrl-C is for us, and must not end it half-way.
  const child = spawn(words[0]!, words.slice(1), { detached: true });
  const ended = once(child, "close") as Promise<[code: number | null]>;
  try {
    if (child.pid === undefined) await ended; // throws why; it may not even have streams
    child.stdin.on("error", () => undefined); // it may end without having read everything
    child.stdin.end(input);
    const said = Promise.all([text(child.stdout), text(child.stderr)]);
    const [[code], [stdout, stderr]] = await Promise.all([ended, said]);
    return { code, stdout, stderr, refusal: stderr.trim().split("\n")[0]! };
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === "ENOENT") {
      throw new VtepError("LINK", `the command ${words[0]} is missing: install ${from}`, error);
    }
    const full = code === "EMFILE" || code === "ENFILE" ? `: ${RAISE_FILES}` : "";
    throw new VtepError(
      "LINK",
      `the command ${words[0]} could not be run: ${message}${full}`,
      error,
    );
  }
}
