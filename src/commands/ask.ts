/** What all commands have that ask a running agent: its socket, JSON for programs, text for people. */
import type { Command } from "commander";
import { Client } from "../api/client.ts";
import { VtepError } from "../errors.ts";
import { keys } from "../keys.ts";

/** An answer for programs, and the same for people. */
export interface Answer {
  readonly data: unknown;
  readonly text: string;
}

export type Options = Readonly<Record<string, unknown>>;

export const DEFAULT_SOCKET = keys().find(({ key }) => key === "socket")!.otherwise!;

/** A command with commands under it. */
export function group(parent: Command, name: string, description: string): Command {
  return parent.command(name).description(description).helpCommand(false);
}

/**
 * A command that asks the agent, and prints its answer; undefined when it has been printed already.
 * `usage` is its name and arguments as commander has them.
 */
export function ask(
  parent: Command,
  usage: string,
  description: string,
  act: (client: Client, args: readonly string[], options: Options) => Promise<Answer | undefined>,
): Command {
  return parent
    .command(usage)
    .description(description)
    .option("--socket <PATH>", `socket of the agent (default: ${DEFAULT_SOCKET})`)
    .option("--json", "print JSON")
    .action(async (...given: unknown[]) => {
      const command = given.at(-1) as Command;
      const options = command.opts<Options>();
      const values = [
        ...command.registeredArguments.map((each, at) => [each.name(), command.args[at]] as const),
        ...command.options.map((each) => [each.long!, options[each.attributeName()]] as const),
      ];
      // What a script's variable that is not set becomes.
      const empty = values.find(([, value]) => [value].flat().includes(""));
      if (empty !== undefined) throw new VtepError("USAGE", `${empty[0]} is empty: see --help`);
      const socket = (options.socket as string | undefined) ?? DEFAULT_SOCKET;
      const tell = (sentence: string) => process.stderr.write(`vtep: ${sentence}\n`);
      const client = new Client(socket, undefined, tell);
      const answer = await act(client, command.args, options);
      if (answer === undefined) return;
      const text = options.json ? JSON.stringify(answer.data) : answer.text;
      if (text !== "") process.stdout.write(`${text}\n`);
    });
}

/** Prints what comes, as it comes, until whoever reads has had enough; what else stops it, program.ts tells. */
export async function print(pieces: AsyncIterable<string | Uint8Array>): Promise<void> {
  for await (const piece of pieces) {
    const isWritten = await new Promise((resolve) => {
      process.stdout.write(piece, (error) => resolve(!error));
    });
    if (!isWritten) return;
  }
}
