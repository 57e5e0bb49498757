/**
 * What an agent knows that its configuration does not, in two files of its state directory, so that a
 * restart forgets nothing: the FDB's learned entries with their age in one; in the other the bridges that were
 * made here, how long the queues of the TAPs are to be again, and what else is soon written.
 *
 * They are written when the agent stops and now and then before, for when it is killed; each as a whole or not
 * at all. Of entries there may be two million: they are written a line a lot, between which others have a turn, and
 * read so again.
 * Ages are as of the time of writing, by the clock on the wall: only that one goes on while
 * nobody runs. A file that cannot be read is no reason not to start, and is as good as none.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { replaceFile, replaceFileInPieces } from "./files.ts";

const FILE = "state.json";
const LEARNED_FILE = "learned.jsonl";

/** By network. */
export type Learned = readonly {
  readonly name: string;
  readonly vni: number;
  /** MAC, "local" or the address of a remote, and seconds since it was last seen. */
  readonly learned: [mac: string, to: string, age: number][];
}[];

/** Not a schema for each of millions. */
const learned = v.custom<Learned>(isLearned, "this is not what was learned");
const lotSchema = v.object({ writtenAt: v.number(), networks: learned });

const schema = v.object({
  /** Milliseconds since 1970. */
  writtenAt: v.number(),
  /** Forwarding threads: a TAP of one queue cannot become one of several. */
  workers: v.number(),
  bridges: v.array(v.string()),
  /** Of which bridges we have made TAPs ports, by the TAPs' names. */
  ports: v.optional(v.record(v.string(), v.string()), {}),
  /** Frames that the TAPs, by their names, keep for their readers, where it is more until a restart is over. */
  queues: v.optional(v.record(v.string(), v.number()), {}),
  /** The aliases of TAPs that are in containers, by their names here. */
  direct: v.optional(v.record(v.string(), v.string()), {}),
  /** Of gateways: see Traces. */
  gateways: v.optional(
    v.object({
      addresses: v.array(v.tuple([v.string(), v.string()])),
      macs: v.record(v.string(), v.string()),
      hasTable: v.boolean(),
    }),
  ),
  /** Empty: an agent of before had here what was learned, and asks for it. */
  networks: learned,
});

type Written = v.InferOutput<typeof schema>;

export interface Snapshot extends Omit<Written, "writtenAt" | "networks"> {
  /** In lots, their ages as of when they are asked for; once. */
  readonly learned: Iterable<Learned>;
}

/** The snapshot in a directory; undefined where there is none that can be read. */
export function readSnapshot(directory: string): Snapshot | undefined {
  try {
    const text = readFileSync(join(directory, FILE), "utf8");
    const { writtenAt, networks, ...rest } = v.parse(schema, JSON.parse(text));
    return { ...rest, learned: lotsIn(directory, { writtenAt, networks }) };
  } catch {
    return undefined;
  }
}

function* lotsIn(directory: string, older: v.InferOutput<typeof lotSchema>): Generator<Learned> {
  yield asOfNow(older);
  try {
    const file = readFileSync(join(directory, LEARNED_FILE));
    for (let from = 0, end = 0; from < file.length; from = end + 1) {
      end = file.indexOf(NEWLINE, from);
      if (end < 0) end = file.length;
      yield asOfNow(v.parse(lotSchema, JSON.parse(file.toString("utf8", from, end))));
    }
  } catch {
    // what is left cannot be read
  }
}

const NEWLINE = 10;

/** Of a lot that nobody else has. */
function asOfNow({ writtenAt, networks }: v.InferOutput<typeof lotSchema>): Learned {
  const since = Math.max(0, Math.round((Date.now() - writtenAt) / 1000));
  for (const { learned } of networks) for (const entry of learned) entry[2] += since;
  return networks;
}

function isLearned(networks: unknown): boolean {
  return Array.isArray(networks) && networks.every(isOfNetwork);
}

function isOfNetwork(network: Partial<Learned[0]> | null): boolean {
  const isNamed = typeof network?.name === "string" && typeof network.vni === "number";
  return isNamed && Array.isArray(network.learned) && network.learned.every(isEntry);
}

function isEntry(entry: unknown): boolean {
  if (!Array.isArray(entry)) return false;
  const [mac, to, age] = entry;
  return typeof mac === "string" && typeof to === "string" && typeof age === "number";
}

export function writeSnapshot(
  directory: string,
  snapshot: Omit<Written, "writtenAt" | "networks">,
): void {
  const text = JSON.stringify({ writtenAt: Date.now(), ...snapshot, networks: [] });
  replaceFile(join(directory, FILE), text);
}

/** What was learned, in lots; not to be called again before it has resolved. Throws what the system says. */
export async function writeLearned(directory: string, lots: Iterable<Learned>): Promise<void> {
  await replaceFileInPieces(join(directory, LEARNED_FILE), linesOf(lots));
}

function* linesOf(lots: Iterable<Learned>): Generator<string> {
  for (const networks of lots) {
    if (networks.length > 0) yield `${JSON.stringify({ writtenAt: Date.now(), networks })}\n`;
  }
}
