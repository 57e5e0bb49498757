/**
 * What outlives an agent when it is started again: descriptors that the service manager keeps, a snapshot of
 * what was learned, what the API has changed, and the queues of the TAPs, in which frames wait meanwhile.
 */
import { closeSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";
import type { Logger } from "pino";
import { type Config, type NetworkConfig, reached } from "./config.ts";
import { different, type Edited, merge, readEdits, writeEdits } from "./edits.ts";
import { VtepError } from "./errors.ts";
import { linksByName, type Surroundings, surroundings } from "./host.ts";
import { forgetPlan, type Interim, writePlan } from "./interim.ts";
import { resizeQueues } from "./links.ts";
import type { Remotes } from "./remotes.ts";
import {
  type Learned,
  readSnapshot,
  type Snapshot,
  writeLearned,
  writeSnapshot,
} from "./snapshot.ts";
import { judge, type OwnTaps, peersOf, type Survey } from "./survey.ts";
import { forgetDescriptors } from "./systemd.ts";
import { type Plan, socketDescriptor, tapDescriptor } from "./vtep.ts";

/** Frames that a TAP keeps for its reader, at least, while there is none because of a restart. */
const PARKED_FRAMES = 10_000;

/** How often is written down what a restart is not to forget, and which share of the time at most. */
const REMEMBER_MS = 30_000;
const REMEMBER_SHARE = 100;

/** Where an agent finds what was kept over a restart, and keeps it for the next. */
export interface Keeping {
  /** Those that the service manager kept. */
  readonly descriptors: readonly { readonly name: string; readonly fd: number }[];
  /** Of the snapshot and the edits; without it only descriptors are kept. */
  readonly directory: string | undefined;
  /** What forwards until this agent does. */
  readonly interim: Interim | undefined;
}

/** What was kept, as far as it is of use. */
export interface Recollection {
  readonly kept: Readonly<Record<string, number>>;
  readonly snapshot: Snapshot | undefined;
  readonly edited: Edited;
  /** What the service manager is to close: see `forgetAll`. */
  readonly unwanted: readonly string[];
  /** Whether those are to go before anything is opened: they have the names of what is stored then, or the port. */
  readonly haveToGoFirst: boolean;
}

/**
 * Descriptors that are not wanted any more are closed, and the service manager is to do so as well: a TAP goes with
 * its last one, and a socket that nobody reads would go on taking its share of the datagrams.
 */
export function recollect(
  config: Config,
  workers: number,
  keeping: Keeping | undefined,
): Recollection {
  const snapshot = keeping?.directory === undefined ? undefined : readSnapshot(keeping.directory);
  const edited = readEdits(keeping?.directory, config);
  const sameWorkers = snapshot === undefined || snapshot.workers === workers;
  const families = config.underlay === "dgram" ? [] : ([4, 6] as const); // Node opens its own
  const wanted = descriptorsOf(edited.networks, families, sameWorkers ? workers : 0);
  const kept: Record<string, number> = {};
  const unwanted: string[] = [];
  for (const { name, fd } of keeping?.descriptors ?? []) {
    if (wanted.has(name) && !(name in kept)) kept[name] = fd;
    else {
      keeping?.interim?.end(); // which has a copy
      closeSync(fd);
      unwanted.push(name);
    }
  }
  const haveToGoFirst = !sameWorkers || families.length === 0;
  return { kept, snapshot, edited, unwanted, haveToGoFirst };
}

/** What the service manager keeps of so many threads. */
function descriptorsOf(
  networks: readonly NetworkConfig[],
  families: readonly (4 | 6)[],
  workers: number,
): ReadonlySet<string> {
  const threads = Array.from({ length: workers }, (_, worker) => worker);
  return new Set(
    threads.flatMap((worker) => [
      ...families.map((family) => socketDescriptor(family, worker)),
      ...networks.map(({ tap }) => tapDescriptor(tap, worker)),
    ]),
  );
}

/**
 * Closes sockets of a family that nobody is in, for what came to them would wait for the next who is, and TAPs of
 * networks that are not to be started now. Returns those that are left, and the names of the others.
 */
export function withoutIdle(
  kept: Recollection["kept"],
  { config, found }: Pick<Surveyed, "config" | "found">,
  workers: number,
): { readonly kept: Recollection["kept"]; readonly idle: readonly string[] } {
  const families = ([4, 6] as const).filter((family) => found[`local${family}`] !== undefined);
  const used = descriptorsOf(config.networks, families, workers);
  const all = Object.entries(kept);
  const idle = all.filter(([name]) => !used.has(name));
  for (const [, fd] of idle) closeSync(fd);
  return {
    kept: Object.fromEntries(all.filter(([name]) => used.has(name))),
    idle: idle.map(([name]) => name),
  };
}

/** Between two tries, and for how long all of them: one that closes many TAPs may be long behind. */
const FORGET_MS = 10;
const FORGETTING_MS = 10_000;

/** Has the service manager close what it keeps under these names, as fast as it hears. */
export async function forgetAll(names: readonly string[]): Promise<void> {
  const until = performance.now() + FORGETTING_MS;
  for (const name of names) {
    while (forgetDescriptors(name) === "full" && performance.now() < until) {
      await pause(FORGET_MS);
    }
  }
}

/** What is started, and what the host makes of it. */
export interface Surveyed {
  readonly config: Config;
  readonly found: Survey;
  /** Also of networks that are configured and that the API had changed or removed. */
  readonly largestMtu: number;
  /** Why networks are as configured, and not as the API left them, by name. */
  readonly refused: ReadonlyMap<string, string>;
}

/**
 * A configuration as the API left it, but for what the host refuses: an edit keeps nobody from starting, and none
 * keeps another from being done.
 */
export async function surveyEdited(
  given: Config,
  { edited, kept }: Recollection,
): Promise<Surveyed> {
  const all = { ...given, networks: [...given.networks, ...edited.networks] };
  const around = await surroundings(peersOf(all), given);
  const taps = all.networks.map(({ tap }) => tap);
  const there = taps.filter((tap) => tapDescriptor(tap, 0) in kept);
  const own = new Map(there.map((tap) => [tap, around.links.get(tap)?.mtu ?? 0]));
  const attempt = (networks: readonly NetworkConfig[]) => {
    return refusable(() => surveyWithBesides(given, networks, around, own));
  };
  const asLeft = attempt(edited.networks);
  if (!(asLeft instanceof VtepError)) return { ...asLeft, refused: new Map() };

  // Those that are refused by themselves are left out, at sockets that are where they will be,
  const asWritten = attempt(given.networks);
  const bound = asWritten instanceof VtepError ? undefined : asWritten.found;
  const left = new Map(edited.networks.map((network) => [network.name, network]));
  const refused = new Map<string, string>();
  for (const name of edited.kept) {
    const networks = [left.get(name) ?? []].flat();
    const alone = refusable(() => judge({ ...given, networks }, around, own, bound));
    if (alone instanceof VtepError) refused.set(name, alone.message);
  }
  // and the others are done together: all of them, or none.
  const others = edited.kept.filter((name) => !refused.has(name));
  const rest = merge(given.networks, new Map(others.map((name) => [name, left.get(name)])));
  const together = attempt(rest.networks);
  if (!(together instanceof VtepError)) {
    const why = "what is as configured instead has its VNI, TAP, VLAN or gateway";
    for (const name of others) if (!rest.kept.includes(name)) refused.set(name, why);
    return { ...together, refused };
  }
  if (asWritten instanceof VtepError) throw asWritten;
  for (const name of others) refused.set(name, together.message);
  return { ...asWritten, refused };
}

function refusable<T>(attempt: () => T): T | VtepError {
  try {
    return attempt();
  } catch (error) {
    if (error instanceof VtepError) return error;
    throw error;
  }
}

/** Sockets are opened for what is configured otherwise, too, where that can be: a reload brings it back. */
function surveyWithBesides(
  given: Config,
  networks: readonly NetworkConfig[],
  around: Surroundings,
  own: OwnTaps,
): Omit<Surveyed, "refused"> {
  const besides = given.networks.filter((network) => !networks.includes(network));
  const surveyOf = (all: readonly NetworkConfig[]): Survey => {
    const found = judge({ ...given, networks: all }, around, own);
    if ((found.local4 ?? found.local6) !== undefined) return found;
    throw new VtepError("ADDRESS", "no network has a peer: give one with --peer ADDR (peers:)");
  };
  const withAll = refusable(() => surveyOf([...networks, ...besides]));
  const found = withAll instanceof VtepError ? surveyOf(networks) : withAll;
  const bridges = new Set(networks.map(({ bridge }) => bridge));
  const missingBridges = found.missingBridges.filter((bridge) => bridges.has(bridge));
  const peers = new Set(networks.flatMap(reached));
  const astray = found.astray.filter(({ peer }) => peers.has(peer));
  return {
    config: { ...given, networks },
    found: { ...found, mtus: found.mtus.slice(0, networks.length), missingBridges, astray },
    largestMtu: Math.max(...found.mtus),
  };
}

export function tellOfEdits(log: Logger, edited: Edited, refused: Surveyed["refused"]): void {
  const { kept, outdated, unread, fault } = edited;
  if (fault !== undefined) log.error({ reason: fault }, "what the API had changed cannot be read");
  if (unread.length > 0) {
    log.error({ edits: unread }, "this version cannot read what the API had changed");
  }
  if (outdated.length > 0) {
    log.warn({ networks: outdated }, "configured anew: what the API had changed is forgotten");
  }
  for (const [network, reason] of refused) {
    log.error(
      { network, reason },
      "as configured: what the API had changed cannot be done now, and is tried at the next start",
    );
  }
  const done = kept.filter((name) => !refused.has(name));
  if (done.length > 0) log.info({ networks: done }, "as the API left them, until a reload");
}

/** What is written for the next agent, as it is when it is written. */
interface Present {
  readonly remotes: Remotes;
  /** As they are meant to be: while a change is under way, as before. */
  networks(): readonly NetworkConfig[];
  plan(): Plan;
  snapshot(): Parameters<typeof writeSnapshot>[1];
  learned(): Iterable<Learned>;
  latest: Parameters<typeof writePlan>[3];
}

/**
 * What an agent writes for the next one: what it knows, what the API has changed, and how it forwards. Without
 * a directory nothing is written; what cannot be is a line of the log, and keeps nobody from going on.
 */
export class Notes {
  readonly #directory: string | undefined;
  readonly #present: Present;
  readonly #log: Logger;
  /** As the configuration had them when it was last read. */
  #configured: readonly NetworkConfig[];
  /** Of the file of edits, what cannot be done or read here; a reload forgets it, and a newer edit. */
  #otherEdits: readonly unknown[];
  #areEditsWritten: boolean;
  /** Whether anything is forwarded, so that a plan can be true. */
  #hasBegun = false;
  #remembering: NodeJS.Timeout | undefined;
  #hasStopped = false;
  /** What was learned is being written, or has been. */
  #writing: Promise<void> = Promise.resolve();

  /** `before` is what was found of edits, `refused` what of it was not done. */
  constructor(
    directory: string | undefined,
    configured: readonly NetworkConfig[],
    before: Edited,
    refused: Surveyed["refused"],
    present: Present,
    log: Logger,
  ) {
    const { networks, outdated, unread } = before;
    this.#directory = directory;
    this.#configured = configured;
    const undone = different(configured, networks).filter(({ name }) => refused.has(name));
    this.#otherEdits = [...unread, ...undone];
    this.#areEditsWritten = outdated.length === 0;
    this.#present = present;
    this.#log = log;
  }

  /** Frames are forwarded as the plan says; from now on all is written now and then. */
  begin(): void {
    this.#hasBegun = true;
    void this.#writeRegularly();
  }

  /** The more seldom the longer it takes. */
  async #writeRegularly(): Promise<void> {
    const began = performance.now();
    this.remember();
    await this.rememberLearned();
    if (this.#hasStopped) return;
    this.leavePlan();
    const waitMs = Math.max(REMEMBER_MS, REMEMBER_SHARE * (performance.now() - began));
    this.#remembering = setTimeout(() => void this.#writeRegularly(), waitMs).unref();
  }

  stop(): void {
    this.#hasStopped = true;
    clearTimeout(this.#remembering);
  }

  /** What a restart is not to forget, but for what was learned. */
  remember(): void {
    if (this.#directory === undefined) return;
    if (!this.#areEditsWritten) this.rememberEdits();
    try {
      writeSnapshot(this.#directory, this.#present.snapshot());
    } catch (error) {
      this.#log.warn({ reason: (error as Error).message }, "a restart will have to learn anew");
    }
  }

  /** All that was learned, as it is when what is being written of it has been. */
  rememberLearned(): Promise<void> {
    this.#writing = this.#writing.then(() => this.#writeLearned());
    return this.#writing;
  }

  async #writeLearned(): Promise<void> {
    if (this.#directory === undefined) return;
    try {
      await writeLearned(this.#directory, this.#present.learned());
    } catch (error) {
      this.#log.warn({ reason: (error as Error).message }, "a restart will have to learn anew");
    }
  }

  /** What the API has changed, which only a reload takes back. */
  rememberEdits(): void {
    if (this.#directory === undefined) return;
    try {
      const networks = this.#present.networks();
      const others = this.#otherEdits;
      this.#otherEdits = writeEdits(this.#directory, this.#configured, networks, others);
      this.#areEditsWritten = true;
    } catch (error) {
      this.#areEditsWritten = false; // it is tried again
      const reason = (error as Error).message;
      this.#log.warn({ reason }, "a restart now would not find what the API has changed");
    }
  }

  /** A reload has taken back what the API had changed. */
  configuredAnew(networks: readonly NetworkConfig[]): void {
    this.#configured = networks;
    this.#otherEdits = [];
    this.rememberEdits();
  }

  /** How frames are forwarded, for the first moments of the next agent. */
  leavePlan(): void {
    const { remotes, latest } = this.#present;
    this.#leave((directory) => writePlan(directory, this.#present.plan(), remotes, latest));
  }

  /** Until the next `leavePlan` frames are not forwarded as the last one said. */
  withdrawPlan(): void {
    this.#leave(forgetPlan);
  }

  #leave(write: (directory: string) => void): void {
    if (this.#directory === undefined || !this.#hasBegun) return;
    try {
      write(this.#directory);
    } catch (error) {
      this.#log.warn({ reason: (error as Error).message }, "a restart will take longer");
    }
  }
}

/** The queues of TAPs that are longer than they are to be, while nobody reads them. */
export class ParkedQueues {
  readonly #lengths: Map<string, number>;

  /** As `lengths` was before the restart. */
  constructor(lengths: Readonly<Record<string, number>> = {}) {
    this.#lengths = new Map(Object.entries(lengths));
  }

  /** How long they are to be again, by TAP. */
  get lengths(): Record<string, number> {
    return Object.fromEntries(this.#lengths);
  }

  /** What is sent while nobody reads is to wait. */
  async lengthen(taps: ReadonlySet<string>): Promise<void> {
    const links = await linksByName();
    const lengths = [...taps].map((tap) => [tap, links.get(tap)?.txqlen ?? 0] as const);
    const short = lengths.filter(([, length]) => length > 0 && length < PARKED_FRAMES);
    for (const [tap, length] of short) this.#lengths.set(tap, length);
    await resizeQueues(new Map(short.map(([tap]) => [tap, PARKED_FRAMES])));
  }

  /** After a restart: a long queue is a long wait for who shares it with a greedy stream. */
  async restore(taps: ReadonlySet<string>): Promise<void> {
    const own = new Map([...this.#lengths].filter(([tap]) => taps.has(tap)));
    this.#lengths.clear();
    await resizeQueues(own);
  }
}
