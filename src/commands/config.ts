/** `vtep config`: checks, shows and explains configurations, without running anything. */
import type { Command } from "commander";
import { stringify } from "yaml";
import { asWritten, networkAsWritten } from "../config.ts";
import {
  check,
  DEFAULT_FILE,
  defaultFile,
  type FlagValues,
  type Loaded,
  load,
  type Source,
  sourceText,
} from "../config-file.ts";
import { counted } from "../doctor/finding.ts";
import { wrapped } from "../doctor/report.ts";
import { EXIT_USAGE } from "../errors.ts";
import { addFlags, valuesByKey } from "../flags.ts";
import { type Key, keys } from "../keys.ts";
import { group } from "./ask.ts";

const FILE = [
  "[FILE]",
  `the configuration (default: ${DEFAULT_FILE}, unless flags give a network)`,
] as const;

export function addConfigCommand(vtep: Command): void {
  const config = group(vtep, "config", "Check, show and explain configurations");
  const ofFile = (name: string, description: string) => {
    const command = config.command(name).description(description);
    return command.argument(...FILE);
  };
  addFlags(ofFile("check", "Say what is wrong with a configuration, a line for each fault")).action(
    (file: string | undefined, options) => checkFile(file, valuesByKey(options)),
  );
  addFlags(
    ofFile("show", "Print what `vtep run` would run with, and where each value came from").option(
      "--json",
      "print it for programs",
    ),
  ).action((file: string | undefined, { json, ...options }) => {
    const given = valuesByKey(options);
    const loaded = load(file ?? defaultFile(given), given);
    print(json ? `${JSON.stringify(asJson(loaded), null, 2)}\n` : shown(loaded));
  });
  config
    .command("example")
    .description("Print a commented configuration to begin with")
    .action(() => print(example()));
  config
    .command("reference")
    .description("Print a table of every key, as Markdown")
    .action(() => print(reference()));
}

function print(text: string): void {
  process.stdout.write(text);
}

// ---- check

function checkFile(named: string | undefined, given: FlagValues): void {
  const file = named ?? defaultFile(given);
  const { loaded, faults } = check(file, given);
  for (const fault of faults) process.stderr.write(`vtep: ${fault}\n`);
  if (loaded === undefined) {
    process.exitCode = EXIT_USAGE;
    return;
  }
  const networks = counted(loaded.config.networks.length, "network");
  const files = loaded.files.length > 1 ? ` in ${loaded.files.length} files` : "";
  print(`${file ?? "the flags"}: fine, ${networks}${files}\n`);
}

// ---- show

/** Width up to which a list stays on the line of its key. */
const WIDTH = 60;

/** A key and its value, over one line or several, and what stands beside the first. */
interface Row {
  readonly text: string;
  readonly source: string;
}

/** YAML that is a configuration itself, the same one, with the source of each value beside it. */
export function shown({ config, sources }: Loaded): string {
  const rows = rowsOf(asWritten(config), sources.endpoint);
  rows.push({ text: "networks:", source: "" });
  for (const [at, network] of config.networks.entries()) {
    const own = rowsOf(networkAsWritten(network), sources.networks[at]!);
    const indented = own.map(({ text, source }, line) => {
      const lines = text.replaceAll(/^/gm, "    ");
      return { text: line === 0 ? lines.replace("    ", "  - ") : lines, source };
    });
    rows.push(...indented);
  }
  return aligned(rows);
}

/** What has no value is a comment: YAML has no other way to leave it away. */
function rowsOf(
  values: Readonly<Record<string, unknown>>,
  sources: Readonly<Record<string, Source>>,
): Row[] {
  return Object.entries(values).map(([key, value]) => {
    const without = keys().find((each) => each.key === key)?.otherwise ?? "none";
    const text = value === undefined ? `# ${key}: ${without}` : setting(key, value);
    return { text, source: sourceText(sources[key]!) };
  });
}

function setting(key: string, value: unknown): string {
  const inline = stringify(value, { collectionStyle: "flow", lineWidth: 0 }).trimEnd();
  const line = `${key}: ${inline}`;
  if (line.length <= WIDTH && !line.includes("\n")) return line;
  return stringify({ [key]: value }, { lineWidth: 0 }).trimEnd();
}

function aligned(rows: readonly Row[]): string {
  const firsts = rows.map(({ text }) => text.split("\n")[0]!);
  const width = Math.max(...firsts.map(({ length }) => length));
  const lines = rows.map(({ text, source }, at) => {
    if (source === "") return text;
    const first = firsts[at]!;
    return text.replace(first, () => `${first.padEnd(width)}  # ${source}`);
  });
  return `${lines.join("\n")}\n`;
}

/** `{ port: { value, source }, ..., networks: [{ vni: { value, source }, ... }] }` */
function asJson({ config, sources }: Loaded) {
  const beside = (values: Record<string, unknown>, from: Readonly<Record<string, Source>>) =>
    Object.fromEntries(
      Object.entries(values).map(([key, value]) => [
        key,
        { value: value ?? null, source: from[key] },
      ]),
    );
  return {
    ...beside(asWritten(config), sources.endpoint),
    networks: config.networks.map((network, at) =>
      beside(networkAsWritten(network), sources.networks[at]!),
    ),
  };
}

// ---- example and reference

const COMMENT_WIDTH = 96;

const HEAD = `# Configuration of vtep: "vtep run" reads ${DEFAULT_FILE}, or another with --config FILE.
# "vtep config check" says what is wrong with it, "vtep config show" what it amounts to.
# Lines that begin with "#" and a key are off: remove the "#" where you want another value.
`;

/** Only what has to be said is said; everything else is there as a comment. */
export function example(): string {
  const blocks = (of: Key["of"]) => keys().flatMap((each) => (each.of === of ? [block(each)] : []));
  const network = blocks("network")
    .join("\n")
    .trimEnd()
    .replaceAll(/^(?=.)/gm, "    ");
  // Comments before the dash would belong to no network.
  const list = `networks:\n  -\n${network}\n`;
  return [HEAD, ...blocks("endpoint"), ...blocks("file"), list].join("\n");
}

/** A key with its explanation above it, as a setting that can be switched on where it is optional. */
function block({ key, help, values, otherwise, required, sample }: Key): string {
  const line = setting(key, sample);
  const without = required ? "required" : `default: ${otherwise ?? "none"}`;
  // Peers are not required, because entries of the FDB will do, but nobody begins with those.
  const isOn = required || key === "peers";
  const comment = [sentence(help), `${values}; ${without}`].flatMap((text) =>
    wrapped(text, COMMENT_WIDTH),
  );
  return `${comment.map((text) => `# ${text}\n`).join("")}${isOn ? line : `#${line}`}\n`;
}

export function reference(): string {
  const table = (of: Key["of"]) => {
    const rows = keys().filter((each) => each.of === of);
    return [
      row(["key", "values", "default", "what it is"]),
      row(Array(4).fill("---")),
      ...rows.map(({ key, values, required, otherwise, help }) =>
        row([`\`${key}\``, values, required ? "required" : (otherwise ?? "none"), sentence(help)]),
      ),
    ].join("\n");
  };
  return `# Configuration of vtep

Keys at the top of a file, each of them also a flag of \`vtep run\`:

${table("endpoint")}

Keys at the top of a file that are no flag:

${table("file")}
${row(["`networks`", "[NETWORK, ...]", "required", "The networks."])}

Keys of a network, of which flags of \`vtep run\` give one (\`peers\` is \`--peer\` there,
\`ranges\` is \`--range\`):

${table("network")}
`;
}

function row(cells: readonly string[]): string {
  return `| ${cells.map((cell) => cell.replaceAll(/[|<]/g, "\\$&")).join(" | ")} |`;
}

function sentence(help: string): string {
  return `${help[0]!.toUpperCase()}${help.slice(1)}.`;
}
