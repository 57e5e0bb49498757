/**
 * Forwarding between two agents of a service: as the last one did, from the first moment of the next one
 * until that has read its configuration, asked the host about it and has threads for it.
 *
 * The devices are those that the service manager kept, through copies of their descriptors: what the agent
 * and its threads make of theirs meanwhile is not disturbed. How the last agent forwarded is in a file of
 * the state directory: networks as they were when they last changed, entries of the FDB as of half a minute
 * before, or of its stop. What is learned here the agent takes over; what is counted is a line of its log, and
 * in no metric.
 *
 * The main thread forwards: a thread of its own takes Node longer to start than all of this does.
 */
import { randomInt } from "node:crypto";
import { closeSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { Counter, Counters, sumOfDrops, Traffic } from "./counters.ts";
import { Fdb, type FdbRow, LEARNED, NETWORKS } from "./fdb.ts";
import { replaceFile } from "./files.ts";
import { Heartbeats } from "./heartbeats.ts";
import { Remotes } from "./remotes.ts";
import { copyOf, keptBefore } from "./systemd.ts";
import { version } from "./version.ts";
import {
  monotonicSeconds,
  type Plan,
  SOURCE_PORTS,
  socketDescriptor,
  tapDescriptor,
  Vtep,
} from "./vtep.ts";

const FILE = "plan.json";

/** What was learned and not seen for so long is left out, and flooded if it comes. */
const RECENT_SECONDS = 10;
/** Learned entries, at most: more would take longer to read than they are of use. */
const ENTRIES = 4096;

type Shared = Pick<Plan, "fdb" | "counters" | "traffic" | "heartbeats" | "remotes">;

/** A plan as it can be written. */
type Outline = Omit<Plan, keyof Shared | "kept" | "keptOnly">;

/** What one agent leaves to the next. */
interface Legacy {
  /** Of what wrote it: no other has to understand it. */
  readonly version: string;
  readonly plan: Outline;
  /** By index, from 1. */
  readonly remotes: readonly string[];
  readonly entries: readonly FdbRow[];
}

/**
 * For the next agent of the service; where that cannot be, it finds nothing. `latest` are the entries that no frame
 * teaches, then those that were seen since a second of the monotonic clock. Throws what the system says.
 */
export function writePlan(
  directory: string,
  plan: Plan,
  remotes: Remotes,
  latest: (since: number) => Iterable<FdbRow>,
): void {
  const legacy: Legacy = {
    version: version(),
    plan: outlineOf(plan),
    remotes: Array.from({ length: remotes.count }, (_, at) => remotes.address(at + 1)),
    entries: [...few(latest(monotonicSeconds() - RECENT_SECONDS))],
  };
  forgetPlan(directory); // what is not so any more is not to be done
  replaceFile(join(directory, FILE), JSON.stringify(legacy));
}

/** The next agent finds nothing. Throws what the system says. */
export function forgetPlan(directory: string): void {
  rmSync(join(directory, FILE), { force: true });
}

function outlineOf(plan: Plan): Outline {
  const { kept, keptOnly, fdb, counters, traffic, heartbeats, remotes, ...outline } = plan;
  return outline;
}

function* few(rows: Iterable<FdbRow>): Generator<FdbRow> {
  let room = ENTRIES;
  for (const row of rows) {
    // Without one of the others, its MAC would be learned wherever a frame claims it to be.
    if (row.origin === LEARNED && room-- === 0) return;
    yield row;
  }
}

/** What was written last, once: whatever comes of it, a second start does without. */
function take(directory: string): Legacy {
  const file = join(directory, FILE);
  const text = readFileSync(file, "utf8");
  rmSync(file);
  const legacy = JSON.parse(text) as Legacy;
  if (legacy.version !== version()) throw new RangeError(`written by ${legacy.version}`);
  return legacy;
}

/** Memory for a plan, with what was left in it. */
function sharedBy({ plan: { workers, port, networks }, remotes, entries }: Legacy): Shared {
  const known = new Remotes();
  for (const address of remotes) known.add(address, port);
  const fdb = new Fdb(Fdb.allocate(entries.length + ENTRIES, randomInt(2 ** 31)));
  for (const { index } of networks) fdb.setLimit(index, ENTRIES);
  // Ageing wants the one first that was seen longest ago.
  const ordered = entries.toSorted((a, b) => a.seenAt - b.seenAt);
  for (const { network, macHigh, macLow, destination, origin, seenAt } of ordered) {
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
function devicesOf({ networks, local4, local6 }: Outline, worker: number): string[] {
  return [
    ...networks.map(({ tap }) => tapDescriptor(tap, worker)),
    ...(local4 === undefined ? [] : [socketDescriptor(4, worker)]),
    ...(local6 === undefined ? [] : [socketDescriptor(6, worker)]),
  ];
}

/** A station that was seen, where, and at what second of the monotonic clock. */
export interface Seen extends Pick<FdbRow, "macHigh" | "macLow" | "seenAt"> {
  /** A remote's, or "local". */
  readonly address: string;
}

export class Interim {
  readonly #legacy: Legacy;
  readonly #shared: Shared;
  /** In seconds, as `seenAt`. */
  readonly #beganAt: number;
  #vteps: readonly Vtep[];

  /**
   * Forwards until `end` is called, or is undefined where anything is missing or does not fit any more. What
   * was left is used up in either case; the descriptors stay the caller's. Throws nothing.
   */
  static async begin(kept = keptBefore()): Promise<Interim | undefined> {
    const { directory, descriptors = [] } = kept ?? {};
    if (directory === undefined) return undefined;
    const vteps: Vtep[] = [];
    /** Copies that nobody has taken yet. */
    const copies: Record<string, number> = {};
    try {
      const legacy = take(directory);
      const { plan } = legacy;
      const [low, high] = plan.sourcePorts;
      // Or the threads might find none left beside those of here.
      if (high - low + 1 < 2 * SOURCE_PORTS * plan.workers) return undefined;
      const fds = new Map(descriptors.map(({ name, fd }) => [name, fd]));
      const devices = Array.from({ length: plan.workers }, (_, worker) => {
        return devicesOf(plan, worker);
      });
      if (!devices.flat().every((name) => fds.has(name))) return undefined;
      const shared = sharedBy(legacy);
      for (const [worker, names] of devices.entries()) {
        for (const name of names) copies[name] = copyOf(fds.get(name)!);
        const own = { ...plan, ...shared, kept: {}, keptOnly: true };
        vteps.push(await Vtep.open(own, worker, copies));
      }
      const beganAt = monotonicSeconds();
      const untold = () => undefined; // the threads find the same device lost, and tell
      for (const vtep of vteps) vtep.forward(untold, untold);
      return new Interim(legacy, shared, beganAt, vteps);
    } catch {
      for (const vtep of vteps) vtep.close();
      for (const fd of Object.values(copies)) closeSync(fd);
      return undefined;
    }
  }

  private constructor(legacy: Legacy, shared: Shared, beganAt: number, vteps: readonly Vtep[]) {
    this.#legacy = legacy;
    this.#shared = shared;
    this.#beganAt = beganAt;
    this.#vteps = vteps;
  }

  /**
   * Whether devices can be opened for a plan while this forwards: but for networks, the seed and the largest
   * MTU, everything is the same.
   */
  fits(plan: Plan): boolean {
    const rest = (of: Outline) =>
      JSON.stringify({ ...of, networks: [], flowSeed: 0, largestMtu: 0 });
    return rest(outlineOf(plan)) === rest(this.#legacy.plan);
  }

  /** Frames that it has forwarded, and those that it has not, by reason. */
  counts(): { readonly frames: number; readonly drops: Readonly<Record<string, number>> } {
    const { workers, networks } = this.#legacy.plan;
    const counters = new Counters(this.#shared.counters, workers);
    const indices = [0, ...networks.map(({ index }) => index)];
    const frames = indices.map((index) => {
      return counters.get(index, Counter.encapFrames) + counters.get(index, Counter.decapFrames);
    });
    return {
      frames: frames.reduce((sum, count) => sum + count),
      drops: sumOfDrops(indices.map((index) => counters.drops(index))),
    };
  }

  /** What it has learned or seen again, by VNI; of those networks where there is any. */
  learned(): ReadonlyMap<number, readonly Seen[]> {
    const vnis = new Map(this.#legacy.plan.networks.map(({ index, vni }) => [index, vni]));
    const remotes = new Remotes(this.#shared.remotes);
    const learned = new Map<number, Seen[]>();
    for (const row of new Fdb(this.#shared.fdb).rows()) {
      if (row.origin !== LEARNED || row.seenAt < this.#beganAt) continue;
      const { macHigh, macLow, seenAt, destination, network } = row;
      const vni = vnis.get(network)!;
      const seen = learned.get(vni) ?? [];
      seen.push({ macHigh, macLow, seenAt, address: remotes.place(destination) });
      learned.set(vni, seen);
    }
    return learned;
  }

  /** Forwards no more, from now on; returns whether it did until now. */
  end(): boolean {
    const forwarded = this.#vteps.length > 0;
    for (const vtep of this.#vteps) vtep.close();
    this.#vteps = [];
    return forwarded;
  }
}
