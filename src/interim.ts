/**
 * Forwarding between two agents of a service: as the last one did, from the first moment of the next one
 * until that has read its configuration, asked the host about it and has threads for it.
 *
 * The devices are those that the service manager kept, through copies of their descriptors: what the agent
 * and its threads make of theirs meanwhile is not disturbed. How the last agent forwarded is in a file of
 * the state directory, written whenever it changed. What is counted and learned here goes with it.
 *
 * The main thread forwards: a thread of its own takes Node longer to start than all of this does.
 */
import { randomInt } from "node:crypto";
import { closeSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { Counter, Counters, type DropReason, Traffic } from "./counters.ts";
import { Fdb, type FdbRow, LEARNED, NETWORKS } from "./fdb.ts";
import { replaceFile } from "./files.ts";
import { Heartbeats } from "./heartbeats.ts";
import { LOCAL, Remotes } from "./remotes.ts";
import { copyOf, keptBefore } from "./systemd.ts";
import { version } from "./version.ts";
import { monotonicSeconds, type Plan, socketDescriptor, tapDescriptor, Vtep } from "./vtep.ts";

const FILE = "plan.json";

/** What was learned and not seen for so long is left out, and flooded if it comes. */
const RECENT_SECONDS = 10;
/** Entries of the FDB, at most: more would take longer to read than they are of use. */
const ENTRIES = 4096;
/** With fewer source ports the threads might find none left beside those of here. */
const LEAST_PORTS = 1024;

/** A plan as it can be written. */
type Settings = Omit<Plan, "kept" | "fdb" | "counters" | "traffic" | "heartbeats" | "remotes">;

interface Left {
  /** Of what wrote it: no other has to understand it. */
  readonly version: string;
  readonly plan: Settings;
  /** By index, from 1. */
  readonly remotes: readonly string[];
  readonly entries: readonly FdbRow[];
}

/** For the next agent of the service; where that cannot be, it finds nothing. Throws what the system says. */
export function writePlan(
  directory: string,
  plan: Plan,
  remotes: Remotes,
  rows: Iterable<FdbRow>,
): void {
  const left: Left = {
    version: version(),
    plan: settingsOf(plan),
    remotes: Array.from({ length: remotes.count }, (_, at) => remotes.address(at + 1)),
    entries: [...recent(rows)],
  };
  const file = join(directory, FILE);
  rmSync(file, { force: true }); // what is not so any more is not to be done
  replaceFile(file, JSON.stringify(left));
}

function settingsOf(plan: Plan): Settings {
  const { kept, fdb, counters, traffic, heartbeats, remotes, ...rest } = plan;
  return rest;
}

function* recent(rows: Iterable<FdbRow>): Generator<FdbRow> {
  const since = monotonicSeconds() - RECENT_SECONDS;
  let left = ENTRIES;
  for (const row of rows) {
    if (row.origin === LEARNED && row.seenAt < since) continue;
    if (left-- === 0) return;
    yield row;
  }
}

/** What was written last, once: whatever comes of it, a second start does without. */
function take(directory: string): Left {
  const file = join(directory, FILE);
  const text = readFileSync(file, "utf8");
  rmSync(file);
  const left = JSON.parse(text) as Left;
  if (left.version !== version()) throw new RangeError(`written by ${left.version}`);
  return left;
}

type Shared = Pick<Plan, "fdb" | "counters" | "traffic" | "heartbeats" | "remotes">;

/** Memory for a plan, with what was left in it. */
function sharedBy({ plan: { workers, port, networks }, remotes, entries }: Left): Shared {
  const known = new Remotes();
  for (const address of remotes) known.add(address, port);
  const fdb = new Fdb(Fdb.allocate(2 * ENTRIES, randomInt(2 ** 31)));
  for (const { index } of networks) fdb.setLimit(index, ENTRIES);
  for (const { network, macHigh, macLow, destination, origin, seenAt } of entries) {
    if (origin === LEARNED) fdb.learn(network, macHigh, macLow, destination, seenAt);
    else fdb.set(network, macHigh, macLow, destination, origin);
  }
  return {
    fdb: fdb.memory,
    counters: Counters.allocate(NETWORKS - 1, workers),
    traffic: Traffic.allocate(workers),
    heartbeats: Heartbeats.allocate(workers),
    remotes: known.words.buffer as SharedArrayBuffer,
  };
}

/** What the devices of a thread are kept as. */
function devicesOf({ networks, local4, local6 }: Settings, worker: number): string[] {
  return [
    ...networks.map(({ tap }) => tapDescriptor(tap, worker)),
    ...(local4 === undefined ? [] : [socketDescriptor(4, worker)]),
    ...(local6 === undefined ? [] : [socketDescriptor(6, worker)]),
  ];
}

/** A station that was seen, and where. */
export interface Seen extends FdbRow {
  /** A remote's, or "local". */
  readonly address: string;
}

export class Interim {
  readonly #left: Left;
  readonly #shared: Shared;
  readonly #beganAt = monotonicSeconds();
  #vteps: readonly Vtep[];

  /** Forwards, or is undefined where anything is missing or does not fit any more. */
  static async begin(kept = keptBefore()): Promise<Interim | undefined> {
    const { directory, descriptors = [] } = kept ?? {};
    if (directory === undefined) return undefined;
    const vteps: Vtep[] = [];
    const copies: number[] = [];
    try {
      const left = take(directory);
      const { plan } = left;
      const [low, high] = plan.sourcePorts;
      if (high - low < LEAST_PORTS) return undefined;
      const fds = new Map(descriptors.map(({ name, fd }) => [name, fd]));
      const devices = Array.from({ length: plan.workers }, (_, worker) => {
        return devicesOf(plan, worker);
      });
      if (!devices.flat().every((name) => fds.has(name))) return undefined;
      const shared = sharedBy(left);
      for (const [worker, names] of devices.entries()) {
        const kept: { [name: string]: number } = {};
        for (const name of names) {
          const copy = copyOf(fds.get(name)!);
          copies.push(copy);
          kept[name] = copy;
        }
        vteps.push(await Vtep.open({ ...plan, ...shared, kept }, worker, true));
      }
      for (const vtep of vteps)
        vtep.forward(
          () => undefined,
          () => undefined,
        );
      return new Interim(left, shared, vteps);
    } catch {
      for (const vtep of vteps) vtep.close();
      for (const fd of copies) closeIfOpen(fd);
      return undefined;
    }
  }

  private constructor(left: Left, shared: Shared, vteps: readonly Vtep[]) {
    this.#left = left;
    this.#shared = shared;
    this.#vteps = vteps;
  }

  /** Whether it is in nobody's way who opens devices for a plan: only networks may be others. */
  fits(plan: Plan): boolean {
    const settings = (of: Settings) =>
      JSON.stringify({ ...of, networks: [], flowSeed: 0, largestMtu: 0 });
    return settings(settingsOf(plan)) === settings(this.#left.plan);
  }

  /** Frames that it has forwarded, and those that it has not, by reason. */
  counts(): { readonly frames: number; readonly drops: Partial<Record<DropReason, number>> } {
    const { workers, networks } = this.#left.plan;
    const counters = new Counters(this.#shared.counters, workers);
    let frames = 0;
    const drops: Partial<Record<DropReason, number>> = {};
    for (const index of [0, ...networks.map((network) => network.index)]) {
      frames += counters.get(index, Counter.encapFrames) + counters.get(index, Counter.decapFrames);
      for (const [reason, count] of Object.entries(counters.drops(index))) {
        drops[reason as DropReason] = (drops[reason as DropReason] ?? 0) + count;
      }
    }
    return { frames, drops };
  }

  /** What it has learned or seen again, by VNI. */
  learned(): ReadonlyMap<number, readonly Seen[]> {
    const { plan, remotes } = this.#left;
    const byIndex = new Map(plan.networks.map(({ index }) => [index, [] as Seen[]]));
    for (const row of new Fdb(this.#shared.fdb).rows()) {
      if (row.origin !== LEARNED || row.seenAt < this.#beganAt) continue;
      const address = row.destination === LOCAL ? "local" : remotes[row.destination - 1]!;
      byIndex.get(row.network)!.push({ ...row, address });
    }
    return new Map(plan.networks.map(({ vni, index }) => [vni, byIndex.get(index)!]));
  }

  /** Forwards no more, from now on. */
  end(): void {
    for (const vtep of this.#vteps) vtep.close();
    this.#vteps = [];
  }
}

function closeIfOpen(fd: number): void {
  try {
    closeSync(fd);
  } catch {
    // whoever was to have it has closed it
  }
}
