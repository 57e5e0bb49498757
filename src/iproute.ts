/**
 * The command ip, run: what it is asked, and changes that it makes, by `host.ts`, `links.ts` and `plug.ts`, which run
 * tc and ss besides. Nothing else in this program asks the kernel about links, addresses and routes, or changes
 * them.
 *
 * Every function throws VtepError PERMISSION or LINK with one sentence when ip is missing.
 */
import { command, type Ended } from "./command.ts";
import { VtepError } from "./errors.ts";

export async function query<Row>(args: readonly string[]): Promise<Row[]> {
  const { stdout, code, refusal } = await ip(["-j", ...args]);
  if (code !== 0) throw new VtepError("LINK", `"ip ${args.join(" ")}" failed: ${refusal}`);
  return parse<Row>(stdout);
}

/** ip prints empty objects for what a filter left out, and nothing at all for an empty list. */
export function parse<Row>(output: string): Row[] {
  const rows = output.trim() === "" ? [] : rowsOf<Row>(output);
  return rows.filter((row) => Object.keys(row as object).length > 0);
}

function rowsOf<Row>(output: string): Row[] {
  try {
    return JSON.parse(output) as Row[];
  } catch (error) {
    const sentence = `the command ip printed no JSON but ${JSON.stringify(output.slice(0, 40))}`;
    throw new VtepError("LINK", `${sentence}: ${WITH_JSON}`, error);
  }
}

const WITH_JSON = "install iproute2 of 4.13 or newer";

export interface Change {
  /** For people: completes "… failed". */
  readonly does: string;
  readonly words: readonly string[];
}

/** Throws where changes failed. */
export async function done(changes: Promise<Failure | undefined>): Promise<void> {
  const failed = await changes;
  if (failed !== undefined) throw failed.error;
}

/** Which of several changes failed first, and why. */
interface Failure {
  readonly at: number;
  readonly error: VtepError;
}

/** How changes are to be made. */
interface Manner {
  /** Of ip. */
  readonly options?: readonly string[];
  readonly inside?: Inside;
}

/** Makes changes in their order until one fails; returns which that is, and why. */
export async function batch(
  changes: readonly Change[],
  manner: Manner = {},
): Promise<Failure | undefined> {
  if (changes.length === 0) return undefined;
  const said = await sayAll(changes, manner);
  if (said.code === 0) return undefined;
  const at = said.line === undefined ? changes.length : said.line - 1;
  return { at, error: refused(changes[at]?.does ?? "changing links", said.refusal) };
}

/** Makes changes, each whatever becomes of the others; returns why those failed that did. */
export async function batchOfEach(changes: readonly Change[]): Promise<VtepError[]> {
  if (changes.length === 0) return [];
  const said = await sayAll(changes, { options: ["-force"] });
  if (said.code === 0) return [];
  const told = [...said.stderr.matchAll(/^(.+)\n(?:.*\n)*?Command failed \S*:(\d+)$/gm)];
  const failures = told.map(([, refusal, line]) => {
    return refused(changes[Number(line) - 1]?.does ?? "changing links", refusal!);
  });
  return failures.length > 0 ? failures : [refused("changing links", said.refusal)];
}

export function refused(does: string, refusal: string): VtepError {
  if (!/not permitted|permission denied/i.test(refusal)) {
    return new VtepError("LINK", `${does} failed: ${refusal}`);
  }
  const sentence = `${does} needs CAP_NET_ADMIN: run as root or with that capability`;
  return new VtepError("PERMISSION", sentence);
}

function sayAll(changes: readonly Change[], manner: Manner): Promise<Said> {
  const lines = changes.map(({ words }) => words);
  if (lines.flat().some((word) => UNWRITABLE.test(word))) return oneByOne(lines, manner);
  return ip([...(manner.options ?? []), "-batch", "-"], lines, manner);
}

/** What a word may hold, and a batch of ip's reads as its end, a comment or a quotation; or that it is empty. */
const UNWRITABLE = /^$|[\s#'"\\]/;

/** As `ip -batch` does it, and tells it. */
async function oneByOne(lines: readonly (readonly string[])[], manner: Manner): Promise<Said> {
  let all: Said = { code: 0, stdout: "", stderr: "", refusal: "", line: undefined };
  for (const [at, words] of lines.entries()) {
    const said = await ip(words, [], manner);
    if (said.code === 0) continue;
    const stderr = `${all.stderr}${said.refusal}\nCommand failed -:${at + 1}\n`;
    all = { ...(all.code === 0 ? { ...said, line: at + 1 } : all), stderr };
    if (!manner.options?.includes("-force")) break;
  }
  return all;
}

/** The namespace of a container, and its interface there, which is to announce its addresses. */
interface Inside {
  readonly namespace: string;
  readonly ifname: string;
}

/** Settings of an interface can be reached from its namespace only. */
const ANNOUNCING = `
for setting in ipv4/conf/$0/arp_notify ipv6/conf/$0/ndisc_notify; do
  echo 1 >/proc/sys/net/$setting
done 2>/dev/null
exec ip "$@"`;

interface Said extends Ended {
  /** From 1: the line of a batch that failed first. */
  readonly line: number | undefined;
}

export async function ip(
  args: readonly string[],
  lines: readonly (readonly string[])[] = [],
  { inside }: Manner = {},
): Promise<Said> {
  const words =
    inside === undefined
      ? ["ip", ...args]
      : ["nsenter", `--net=${inside.namespace}`, "sh", "-c", ANNOUNCING, inside.ifname, ...args];
  const input = lines.map((line) => `${line.join(" ")}\n`).join("");
  const ended = await command(words, input, "iproute2");
  if (ended.refusal.startsWith("BusyBox")) {
    throw new VtepError(
      "LINK",
      `the command ip is that of BusyBox, which has no JSON: ${WITH_JSON}`,
    );
  }
  const line = /^Command failed \S*:(\d+)$/m.exec(ended.stderr)?.[1];
  return { ...ended, line: line === undefined ? undefined : Number(line) };
}
