/**
 * `vtep completion`: a script with which a shell completes command lines.
 *
 * The script is @bomb.sh/tab's, which walks through commander's tree: at each TAB the shell calls
 * `vtep complete -- WORDS`, so what is completed is what this very version knows, names of networks of the
 * running agent included.
 */
import tab from "@bomb.sh/tab/commander";
import type { Command } from "commander";
import { Client } from "../api/client.ts";
import { DEFAULT_SOCKET } from "./ask.ts";

/** A shell that waits is worse than one that completes nothing. */
const PATIENCE_MS = 300;

/** The script counts on a function of the package bash-completion, which may not be installed. */
const WITHOUT_BASH_COMPLETION = `
declare -F _get_comp_words_by_ref >/dev/null || _get_comp_words_by_ref() {
  words=("\${COMP_WORDS[@]}") cword=$COMP_CWORD
  cur=\${COMP_WORDS[COMP_CWORD]} prev=\${COMP_WORDS[COMP_CWORD - 1]}
}
`;

/** To be called when the tree is complete. */
export function addCompletionCommand(vtep: Command): void {
  const completed = tab(vtep, { completionCommandName: "completion" });
  const named = (name: string) => vtep.commands.find((command) => command.name() === name)!;
  named("completion")
    .description("Print a script for bash, zsh or fish that completes vtep")
    .hook("preAction", (_, { args }) => {
      if (args[0] === "bash") process.stdout.write(WITHOUT_BASH_COMPLETION);
    });

  let networks: readonly string[] = [];
  named("complete").hook("preAction", async (_, { args }) => {
    const at = args.lastIndexOf("--socket");
    const socket = at < 0 ? DEFAULT_SOCKET : (args[at + 1] ?? DEFAULT_SOCKET);
    networks = await new Client(socket, PATIENCE_MS).networks().then(
      (all) => all.map(({ name }) => name),
      () => [],
    );
  });
  for (const command of completed.commands.values()) {
    const places = [command.arguments.get("NETWORK"), command.options.get("network")];
    for (const place of places) {
      if (place === undefined) continue;
      place.handler = (complete) => {
        for (const name of networks) complete(name, "network");
      };
    }
  }
}
