/**
 * What outlives an agent when it is started again: descriptors that the service manager keeps, a snapshot of
 * what was learned, what the API has changed, and the queues of the TAPs, in which frames wait meanwhile.
 */
import { closeSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";
import type { Logger } from "pino";
import { type Config, type NetworkConfig, reached } from "./config.ts";
import { different, type Edited, readEdits, writeEdits } from "./edits.ts";
import { VtepError } from "./errors.ts";
import type { Fdb } from "./fdb.ts";
import { linksByName, resizeQueues } from "./host.ts";
import { forgetPlan, type Interim, writePlan } from "./interim.ts";
import type { Remotes } from "./remotes.ts";
import { readSnapshot, type Snapshot, writeSnapshot } from "./snapshot.ts";
import { type Survey, survey } from "./survey.ts";
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
  const threads = Array.from({ length: sameWorkers ? workers : 0 }, (_, worker) => worker);
  const families = config.underlay === "dgram" ? [] : ([4, 6] as const); // Node opens its own
  const wanted = new Set(
    threads.flatMap((worker) => [
      ...families.map((family) => socketDescriptor(family, worker)),
      ...edited.networks.map(({ tap }) => tapDescriptor(tap, worker)),
    ]),
  );
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

/**
 * Closes sockets of a family that nobody is in: what came to them would wait for the next who is. Returns those
 * that are left, and the names of the others.
 */
export function withoutIdle(
  kept: Recollection["kept"],
  found: Pick<Survey, "local4" | "local6">,
): { readonly kept: Recollection["kept"]; readonly idle: readonly string[] } {
  const families = ([4, 6] as const).filter((family) => found[`local${family}`] === undefined);
  const isIdle = (name: string) => families.some((family) => name.startsWith(`udp${family}-`));
  const all = Object.entries(kept);
  const idle = all.filter(([name]) => isIdle(name));
  for (const [, fd] of idle) closeSync(fd);
  return {
    kept: Object.fromEntries(all.filter(([name]) => !isIdle(name))),
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
  /** Why it is as configured, and not as the API left it. */
  readonly refusal: VtepError | undefined;
}

/**
 * A configuration as the API left it, or as it is written where that cannot be: an edit keeps nobody from
 * starting. Sockets are opened for both, because a reload brings back what is written.
 */
export async function surveyEdited(
  given: Config,
  { edited, kept }: Recollection,
): Promise<Surveyed> {
  const { networks } = edited;
  const changed = given.networks.filter((network) => !networks.includes(network));
  const asLeft = [
    { networks, besides: changed },
    { networks, besides: [] },
  ];
  const asWritten = { networks: given.networks, besides: [] };
  let refusal: VtepError | undefined;
  for (const { networks, besides } of [...(edited.kept.length > 0 ? asLeft : []), asWritten]) {
    const all = { ...given, networks: [...networks, ...besides] };
    const own = all.networks.map(({ tap }) => tap).filter((tap) => tapDescriptor(tap, 0) in kept);
    try {
      const found = await survey(all, new Set(own));
      if ((found.local4 ?? found.local6) === undefined) {
        throw new VtepError("ADDRESS", "no network has a peer: give one with --peer ADDR (peers:)");
      }
      const bridges = new Set(networks.map(({ bridge }) => bridge));
      const missingBridges = found.missingBridges.filter((bridge) => bridges.has(bridge));
      const peers = new Set(networks.flatMap(reached));
      const astray = found.astray.filter(({ peer }) => peers.has(peer));
      return {
        config: { ...given, networks },
        found: { ...found, mtus: found.mtus.slice(0, networks.length), missingBridges, astray },
        largestMtu: Math.max(...found.mtus),
        refusal: networks === given.networks ? refusal : undefined,
      };
    } catch (error) {
      if (!(error instanceof VtepError)) throw error;
      refusal = error;
    }
  }
  throw refusal!;
}

export function tellOfEdits(log: Logger, edited: Edited, refusal: VtepError | undefined): void {
  const { kept, outdated, unread, fault } = edited;
  if (fault !== undefined) log.error({ reason: fault }, "what the API had changed cannot be read");
  if (unread.length > 0) {
    log.error({ edits: unread }, "this version cannot read what the API had changed");
  }
  if (outdated.length > 0) {
    log.warn({ networks: outdated }, "configured anew: what the API had changed is forgotten");
  }
  if (refusal !== undefined) {
    log.error(
      { networks: kept, reason: refusal.message },
      "as configured: what the API had changed cannot be done now, and is tried at the next start",
    );
  } else if (kept.length > 0) {
    log.info({ networks: kept }, "as the API left them, until a reload");
  }
}

/** What is written for the next agent, as it is when it is written. */
interface Present {
  readonly fdb: Fdb;
  readonly remotes: Remotes;
  /** As they are meant to be: while a change is under way, as before. */
  networks(): readonly NetworkConfig[];
  plan(): Plan;
  snapshot(): Parameters<typeof writeSnapshot>[1];
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

  /** `before` is what was found of edits; `isRefused`: networks are as configured all the same. */
  constructor(
    directory: string | undefined,
    configured: readonly NetworkConfig[],
    before: Edited,
    isRefused: boolean,
    present: Present,
    log: Logger,
  ) {
    const { networks, outdated, unread } = before;
    this.#directory = directory;
    this.#configured = configured;
    this.#otherEdits = [...unread, ...(isRefused ? different(configured, networks) : [])];
    this.#areEditsWritten = outdated.length === 0;
    this.#present = present;
    this.#log = log;
  }

  /** Frames are forwarded as the plan says; from now on all is written now and then. */
  begin(): void {
    this.#hasBegun = true;
    this.#writeRegularly();
  }

  /** The more seldom the longer it takes. */
  #writeRegularly(): void {
    const began = performance.now();
    this.remember();
    this.leavePlan();
    const waitMs = Math.max(REMEMBER_MS, REMEMBER_SHARE * (performance.now() - began));
    this.#remembering = setTimeout(() => this.#writeRegularly(), waitMs).unref();
  }

  stop(): void {
    clearTimeout(this.#remembering);
  }

  /** What a restart is not to forget. */
  remember(): void {
    if (this.#directory === undefined) return;
    if (!this.#areEditsWritten) this.rememberEdits();
    try {
      writeSnapshot(this.#directory, this.#present.snapshot());
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
    const { remotes, fdb } = this.#present;
    this.#leave((directory) => {
      writePlan(directory, this.#present.plan(), remotes, fdb.rows());
    });
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
