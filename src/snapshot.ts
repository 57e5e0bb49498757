/**
 * What an agent knows that its configuration does not, in two files of its state directory, so that a
 * restart forgets nothing: the FDB's learned entries with their age in one; in the other the bridges that were
 * made here, how long the queues of the TAPs are to be again, and what else is soon written.
 *
 * They are written when the agent stops and now and then before, for when it is killed; each as a whole or not
 * at all. Of entries there may be two million: they are written a line a lot, between which others have a turn.
 * Ages are as of the time of writing, by the clock on the wall: only that one goes on while
 * nobody runs. A file that cannot be read is no reason not to start, and is as good as none.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { replaceFile, replaceFileInPieces } from "./files.ts";

const FILE = "state.json";
const LEARNED_FILE = "learned.jsonl";

const learnedBy = v.object({
  name: v.string(),
  vni: v.number(),
  /** MAC, "local" or the address of a remote, and seconds since it was last seen. */
  learned: v.array(v.tuple([v.string(), v.string(), v.number()])),
});
const learnedSchema = v.object({ writtenAt: v.number(), networks: v.array(learnedBy) });

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
  networks: v.array(learnedBy),
});

export type Snapshot = v.InferOutput<typeof schema>;

/** By network. */
export type Learned = Snapshot["networks"];

/** The snapshot in a directory, its ages as of now; undefined where there is none that can be read. */
export function readSnapshot(directory: string): Snapshot | undefined {
  try {
    const snapshot = v.parse(schema, JSON.parse(readFileSync(join(directory, FILE), "utf8")));
    return { ...snapshot, networks: together([...asOfNow(snapshot), ...readLearned(directory)]) };
  } catch {
    return undefined;
  }
}

function readLearned(directory: string): Learned {
  try {
    const lines = readFileSync(join(directory, LEARNED_FILE), "utf8").trimEnd().split("\n");
    return lines.flatMap((line) => asOfNow(v.parse(learnedSchema, JSON.parse(line))));
  } catch {
    return [];
  }
}

/** Every network once: there may be thousands, each of them in hundreds of lots. */
function together(lots: Learned): Learned {
  const networks = new Map<string, Learned[0]>();
  for (const { name, vni, learned } of lots) {
    const network = networks.get(`${vni} ${name}`) ?? { name, vni, learned: [] };
    for (const entry of learned) network.learned.push(entry);
    networks.set(`${vni} ${name}`, network);
  }
  return [...networks.values()];
}

function asOfNow({ writtenAt, networks }: v.InferOutput<typeof learnedSchema>): Learned {
  const since = Math.max(0, Math.round((Date.now() - writtenAt) / 1000));
  return networks.map((network) => ({
    ...network,
    learned: network.learned.map(
      ([mac, to, age]) => [mac, to, age + since] as (typeof network.learned)[0],
    ),
  }));
}

export function writeSnapshot(
  directory: string,
  snapshot: Omit<Snapshot, "writtenAt" | "networks">,
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
