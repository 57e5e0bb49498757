/**
 * `vtep completion`: a script with which a shell completes command lines.
 *
 * At each TAB it calls `vtep complete -- WORDS`, which walks through commander's tree, so that what is
 * completed is what this very version knows. What may be at a place is told by its placeholder, which the
 * help shows and, for keys of the configuration, the schema has: `<auto|native|dgram>` are words to choose
 * from, `<FILE>` is left to the shell, `<NETWORK>` is asked of the running agent.
 *
 * The answer is what Cobra's is: a line for each word, with a tab and its description, and at the end what
 * the shell is to do. The scripts for zsh and fish are @bomb.sh/tab's; its script for bash has the shell
 * evaluate what was typed, completes no path and nothing after a "=", and needs another package.
 */
import { ShellCompDirective, script } from "@bomb.sh/tab";
import { type Argument, type Command, type Option, Argument as Place } from "commander";
import { Client } from "../api/client.ts";
import { OFFLOADS } from "../device.ts";
import { LOG_LEVELS } from "../schema.ts";
import { DEFAULT_SOCKET } from "./ask.ts";

/** A shell that waits is worse than one that completes nothing. */
const PATIENCE_MS = 300;

/**
 * bash makes several words of what has "=" or ":" in it, so they are read from the line; readline puts a
 * completion in the place of what follows the last of these.
 */
const BASH = `_vtep() {
  local line=\${COMP_LINE:0:COMP_POINT} words word kept answer todo each
  read -ra words <<<"$line"
  [[ $line == *[[:space:]] ]] && words+=("")
  word=\${words[-1]}
  mapfile -t answer < <(vtep complete -- "\${words[@]:1}" 2>/dev/null)
  ((\${#answer[@]})) || return
  todo=\${answer[-1]-} answer=("\${answer[@]::\${#answer[@]}-1}")
  [[ $word == --*=* ]] && word=\${word#*=}
  kept=\${word%"\${word##*[=:]}"}
  COMPREPLY=()
  for each in "\${answer[@]}"; do
    each=\${each%%$'\\t'*}
    [[ $each == "$word"* ]] && COMPREPLY+=("\${each#"$kept"}")
  done
  [[ $todo == :${ShellCompDirective.ShellCompDirectiveDefault} ]] || compopt +o default 2>/dev/null
}
complete -o default -F _vtep vtep
`;

/** To be called when the tree is complete. */
export function addCompletionCommand(vtep: Command): void {
  vtep
    .command("completion")
    .description("Print a script for bash, zsh or fish that completes vtep")
    .addArgument(new Place("<shell>").choices(["bash", "zsh", "fish"]))
    .action((shell: string) => {
      if (shell === "bash") process.stdout.write(BASH);
      else script(shell, "vtep", "vtep");
    });
  vtep
    .command("complete", { hidden: true })
    .argument("[words...]")
    .action(async (words: string[]) => void process.stdout.write(await answer(vtep, words)));
}

/** A word that could be there, and what it means. */
type Candidate = readonly [word: string, description: string];

async function answer(vtep: Command, words: readonly string[]): Promise<string> {
  const { typed, ...there } = placeOf(vtep, words);
  const { place } = there;
  const values = place === undefined ? [] : await valuesOf(place, typed, words);
  const candidates = values === "path" ? [] : [...wordsOf(there), ...values];
  const lines = candidates
    .filter(([word]) => word.startsWith(typed))
    .map(([word, description]) => `${word}\t${description}\n`);
  const { ShellCompDirectiveDefault: files, ShellCompDirectiveNoFileComp: noFiles } =
    ShellCompDirective;
  return `${lines.join("")}:${values === "path" ? files : noFiles}\n`;
}

interface There {
  readonly command: Command;
  /** Whether it may be a flag, or the name of a command. */
  readonly may: "flag" | "command" | undefined;
  /** What it may be a value of. */
  readonly place: Option | Argument | undefined;
  /** The beginning of it. */
  readonly typed: string;
}

/** Where the last of the words is. */
function placeOf(vtep: Command, words: readonly string[]): There {
  let command = vtep;
  let option: Option | undefined; // that has no value yet, or may have another
  let isLacking = false;
  let positionals = 0;
  for (const word of words.slice(0, -1)) {
    if (!isLacking && word.startsWith("-")) {
      const found = optionOf(command, word);
      option = found?.required === true && !word.includes("=") ? found : undefined;
      isLacking = option !== undefined;
    } else if (option !== undefined) {
      isLacking = false;
      if (!option.variadic) option = undefined;
    } else {
      const under = command.commands.find((each) => each.name() === word);
      if (under !== undefined && positionals === 0) command = under;
      else positionals++;
    }
  }
  const typed = words.at(-1) ?? "";
  if (isLacking) return { command, may: undefined, place: option, typed };
  if (typed.startsWith("--") && typed.includes("=")) {
    const value = typed.slice(typed.indexOf("=") + 1);
    return { command, may: undefined, place: optionOf(command, typed), typed: value };
  }
  if (typed.startsWith("-")) return { command, may: "flag", place: undefined, typed };
  if (option !== undefined) return { command, may: undefined, place: option, typed };
  const places = command.registeredArguments;
  const last = places.at(-1);
  const place = places[positionals] ?? (last?.variadic ? last : undefined);
  return { command, may: positionals === 0 ? "command" : undefined, place, typed };
}

function optionOf(command: Command, word: string): Option | undefined {
  const [flag] = word.split("=");
  return command.options.find(({ long, short }) => flag === long || flag === short);
}

/** Commands and flags. */
function wordsOf({ command, may }: Pick<There, "command" | "may">): Candidate[] {
  const help = command.createHelp();
  switch (may) {
    case "flag":
      return help.visibleOptions(command).map(({ long, description }) => [long!, description]);
    case "command":
      return help.visibleCommands(command).map((each) => [each.name(), each.description()]);
    case undefined:
      return [];
  }
}

/** What there is to choose from; "path": whatever files there are. */
async function valuesOf(
  place: Option | Argument,
  typed: string,
  words: readonly string[],
): Promise<Candidate[] | "path"> {
  if (place.argChoices !== undefined) return place.argChoices.map(plain);
  const placeholder = "flags" in place ? (/<(.*)>/.exec(place.flags)?.[1] ?? "") : place.name();
  const shown = placeholder.replace(/\.\.\.$/, "");
  switch (shown) {
    case "FILE":
    case "PATH":
    case "DIR":
      return "path";
    case "NETWORK":
      return (await networks(words)).map((name) => [name, "network"]);
    case "LEVEL":
      return LOG_LEVELS.map(plain);
    case "NAME=off,": {
      const before = typed.slice(0, typed.lastIndexOf(",") + 1);
      const others = OFFLOADS.filter((name) => !before.split(/[,=]/).includes(name));
      return others.map((name) => plain(`${before}${name}=off`));
    }
  }
  const alternatives = shown.split("|");
  if (alternatives.length === 1) return [];
  return alternatives.filter((word) => /^[a-z]/.test(word)).map(plain);
}

function plain(word: string): Candidate {
  return [word, ""];
}

/** Those of the agent that the line is for, if it answers. */
async function networks(words: readonly string[]): Promise<string[]> {
  const at = words.lastIndexOf("--socket");
  const joined = words.findLast((word) => word.startsWith("--socket="))?.slice("--socket=".length);
  const socket = (at < 0 ? joined : words[at + 1]) ?? DEFAULT_SOCKET;
  return new Client(socket, PATIENCE_MS).networks().then(
    (all) => all.map(({ name }) => name),
    () => [],
  );
}
