/**
 * What outlives an agent when it is started again: descriptors that the service manager keeps, a snapshot of
 * what was learned, what the API has changed, and the queues of the TAPs, in which frames wait meanwhile.
 */
import { closeSync } from "node:fs";
import type { Config } from "./config.ts";
import { type Edited, readEdits } from "./edits.ts";
import { linksByName, resizeQueues } from "./host.ts";
import { readSnapshot, type Snapshot } from "./snapshot.ts";
import { forgetDescriptors } from "./systemd.ts";
import { socketDescriptor, tapDescriptor } from "./vtep.ts";

/** Frames that a TAP keeps for its reader, at least, while there is none because of a restart. */
const PARKED_FRAMES = 10_000;

/** Where an agent finds what was kept over a restart, and keeps it for the next. */
export interface Keeping {
  /** Those that the service manager kept. */
  readonly descriptors: readonly { readonly name: string; readonly fd: number }[];
  /** Of the snapshot and the edits; without it only descriptors are kept. */
  readonly directory: string | undefined;
}

/** What was kept, as far as it is of use. */
export interface Recollection {
  readonly kept: Readonly<Record<string, number>>;
  readonly snapshot: Snapshot | undefined;
  readonly edited: Edited;
}

/**
 * Descriptors that are not wanted any more are closed, also by the service manager: a TAP goes with its
 * last one, and a socket that nobody reads would go on taking its share of the datagrams.
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
  const wanted = new Set(
    threads.flatMap((worker) => [
      socketDescriptor(4, worker),
      socketDescriptor(6, worker),
      ...edited.networks.map(({ tap }) => tapDescriptor(tap, worker)),
    ]),
  );
  const kept: Record<string, number> = {};
  for (const { name, fd } of keeping?.descriptors ?? []) {
    if (wanted.has(name) && !(name in kept)) kept[name] = fd;
    else {
      closeSync(fd);
      forgetDescriptors(name);
    }
  }
  return { kept, snapshot, edited };
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
