/** A benchmark's command line: numbers and signals it is told; results on standard output, progress on standard error. */
import { closeSync, existsSync, openSync, rmSync } from "node:fs";
import { constants } from "node:os";
import { Command, InvalidArgumentError } from "commander";
import { EXIT_USAGE } from "../src/errors.ts";

/** A command whose mistakes end it as those of `vtep` do. */
export function benchmark(name: string): Command {
  // Whoever reads may have had enough ("| head"): what is to be written to files is worth having all the same.
  for (const output of [process.stdout, process.stderr]) {
    output.on("error", (error: NodeJS.ErrnoException) => {
      if (error.code !== "EPIPE") throw error;
    });
  }
  return new Command(name).exitOverride(({ exitCode }) => {
    process.exit(exitCode === 0 ? 0 : EXIT_USAGE);
  });
}

/** Why a file cannot be written, before there is something to write; undefined: it can. */
export function unwritable(file: string): string | undefined {
  try {
    const isNew = !existsSync(file);
    closeSync(openSync(file, "a"));
    if (isNew) rmSync(file);
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
}

export function wholeNumber(text: string): number {
  if (!/^[1-9]\d*$/.test(text))
    throw new InvalidArgumentError("It must be a whole number above 0.");
  return Number(text);
}

export function aboveZero(text: string): number {
  if (!(Number(text) > 0 && Number.isFinite(Number(text))))
    throw new InvalidArgumentError("It must be above 0.");
  return Number(text);
}

export function say(text: string): void {
  process.stdout.write(`${text}\n`);
}

/** A line of its own, between those of the progress. */
export function note(text: string): void {
  progress("");
  process.stderr.write(`${text}\n`);
}

/** One line that is written over, or a line each where that cannot be done. */
export function progress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`);
  else if (text) process.stderr.write(`${text}\n`);
}

/** The lab's own listeners, which were added first, have removed it by the time that `farewell` is called. */
export function exitOnSignals(farewell: () => void): void {
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    process.on(signal, () => {
      farewell();
      process.exit(128 + constants.signals[signal]);
    });
  }
}
