/**
 * What an agent knows that its configuration does not, in a file of its state directory, so that a
 * restart forgets nothing: the FDB's learned entries with their age, the bridges that were made here, and
 * how long the queues of the TAPs are to be again.
 *
 * It is written when the agent stops and now and then before, for when it is killed; as a whole or not
 * at all. Ages are as of the time of writing, by the clock on the wall: only that one goes on while
 * nobody runs. A file that cannot be read is no reason not to start, and is as good as none.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { replaceFile } from "./files.ts";

const FILE = "state.json";

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
  networks: v.array(
    v.object({
      name: v.string(),
      vni: v.number(),
      /** MAC, "local" or the address of a remote, and seconds since it was last seen. */
      learned: v.array(v.tuple([v.string(), v.string(), v.number()])),
    }),
  ),
});

export type Snapshot = v.InferOutput<typeof schema>;

/** The snapshot in a directory, its ages as of now; undefined where there is none that can be read. */
export function readSnapshot(directory: string): Snapshot | undefined {
  try {
    const snapshot = v.parse(schema, JSON.parse(readFileSync(join(directory, FILE), "utf8")));
    const since = Math.max(0, Math.round((Date.now() - snapshot.writtenAt) / 1000));
    const networks = snapshot.networks.map((network) => ({
      ...network,
      learned: network.learned.map(
        ([mac, to, age]) => [mac, to, age + since] as (typeof network.learned)[0],
      ),
    }));
    return { ...snapshot, networks };
  } catch {
    return undefined;
  }
}

export function writeSnapshot(directory: string, snapshot: Omit<Snapshot, "writtenAt">): void {
  const text = JSON.stringify({ writtenAt: Date.now(), ...snapshot });
  replaceFile(join(directory, FILE), text);
}
