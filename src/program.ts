/** The command line: words in, exit code out. */
import { setTimeout as pause } from "node:timers/promises";
import { Command, CommanderError } from "commander";
import { addRunCommand } from "./commands/run.ts";
import { EXIT_FAILURE, EXIT_USAGE, exitCode, sentenceOf } from "./errors.ts";
import type { Interim } from "./interim.ts";
import { ERROR, isJournal, keptBefore, notifyStatus, priorityPrefix } from "./systemd.ts";
import { version } from "./version.ts";
import type { Thread } from "./workers.ts";

/** Until a service that cannot run is tried again. */
const HASTE_MS = 1000;

async function program(first?: Thread, interim?: Interim): Promise<Command> {
  const vtep = new Command("vtep")
    .description("A VXLAN tunnel endpoint (RFC 7348) in user space, over a TAP device")
    .version(version(), "--version", "print the version")
    .helpOption("--help", "print this help")
    .helpCommand(false)
    .enablePositionalOptions() // a command's options are its own
    .exitOverride()
    .configureOutput({ outputError: () => undefined });
  addRunCommand(vtep, first, interim);
  if (process.argv[2] !== "run") (await import("./commands/every.ts")).addOtherCommands(vtep);
  return vtep;
}

/** Why it ends, for people and, where it is a service, for its manager and the journal. */
function complain(sentence: string): void {
  notifyStatus(sentence);
  const prefix = isJournal(process.stderr.fd) ? priorityPrefix(ERROR) : "";
  process.stderr.write(`${prefix}vtep: ${sentence}\n`);
}

/** The manager starts at once what has failed, for frames may be waiting; what said why need not be so quick. */
async function takeTime(): Promise<void> {
  if (keptBefore() !== undefined && process.exitCode === EXIT_FAILURE) await pause(HASTE_MS);
}

/** Without commander's prefix, and with what it suggests on the same line. */
function usageOf({ message, code }: CommanderError, vtep: Command): string {
  const said = message.replace(/^error: /, "");
  const suggestion = /\n\((.*)\)$/;
  if (suggestion.test(said)) return said.replace(suggestion, ": $1");
  if (code === "commander.invalidArgument") return said;
  const group = vtep.commands.find((each) => each.name() === process.argv[2]);
  const inside = group?.commands.map((each) => each.name()) ?? [];
  if (inside.length === 0 || inside.includes(process.argv[3]!)) {
    return `${said.replace(/\.$/, "")}: see --help`;
  }
  return `${said}: the commands of vtep ${group!.name()} are ${inside.join(", ")}`;
}

/** `first` is the first of the forwarding threads, if there are to be any; `interim` forwards until then. */
export async function main(first?: Thread, interim?: Interim): Promise<void> {
  // Whoever reads may have had enough ("vtep run --help | head"); a disk that is full is another thing.
  process.stdout.on("error", ({ code, message }: NodeJS.ErrnoException) => {
    if (code === "EPIPE") return;
    complain(`standard output cannot be written: ${message}`);
    process.exitCode = EXIT_FAILURE;
  });
  process.stderr.on("error", () => undefined);

  let vtep: Command | undefined;
  try {
    vtep = await program(first, interim);
    await vtep.parseAsync().finally(() => interim?.end());
  } catch (error) {
    const usage = error instanceof CommanderError;
    // Help that was asked for ends with 0; commander prints it also when the command is missing.
    const said = usage && (error.exitCode === 0 || error.code === "commander.help");
    if (!said) complain(usage ? usageOf(error, vtep!) : sentenceOf(error));
    if (!usage) process.exitCode = exitCode(error);
    else if (error.exitCode !== 0) process.exitCode = EXIT_USAGE;
    await takeTime();
  }
}
