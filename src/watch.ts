/**
 * What happens in a running agent, told to whoever listens: what became of MAC addresses, what was
 * dropped, which remotes answer, what the paths to them carry, and which networks are gone.
 *
 * Threads that forward tell nobody: they write to shared memory, where it is looked for. The FDB's
 * journal is read ten times a second while somebody listens; of what it could not hold for so long, the
 * number is told. Drops are told each second, as what was added to the counters.
 *
 * **Up and down.** A remote is up when a frame came from it, and down when an ICMP error said, a second
 * after the last frame or later, that nobody listens there or that no way leads there. One that was silent so far is
 * neither, and silence takes nobody down: VXLAN has no keepalive, and a VTEP whose stations have nothing
 * to say sends nothing. The kernel tells of ICMP errors only the native underlay.
 */
import { type Counters, FROM_REMOTE, growthOfDrops, type Traffic } from "./counters.ts";
import {
  ADDED,
  AGED,
  EVICTED,
  type Fdb,
  type FdbChange,
  LEARNED,
  MOVED,
  ORIGIN_NAMES,
} from "./fdb.ts";
import type { AgentEvent, Drops, RemoteState } from "./operations.ts";
import type { Remotes } from "./remotes.ts";
import { formatMac } from "./wire/ethernet.ts";

const JOURNAL_MS = 100;
const COUNTERS_MS = 1000;

const CHANGES = {
  [ADDED]: "learned",
  [MOVED]: "moved",
  [AGED]: "aged",
  [EVICTED]: "evicted",
} as const;
const LEARNED_NAME = ORIGIN_NAMES[LEARNED];

/** A network, by its row in the FDB and the counters. */
interface Watched {
  readonly index: number;
  readonly name: string;
}

interface Sources {
  readonly fdb: Fdb;
  readonly counters: Counters;
  readonly traffic: Traffic;
  readonly remotes: Remotes;
  readonly networks: () => readonly Watched[];
  /** Networks that are to be, and cannot. */
  readonly gone: () => readonly { readonly name: string; readonly reason: string }[];
}

type PathEvent = Extract<AgentEvent, { event: "path-learned" | "path-forgotten" }>;

/** What was known of a remote when it was last looked at. */
interface Presence {
  readonly state: RemoteState;
  readonly heard: number;
  /** Whether anything came in the second before. */
  readonly isHeard: boolean;
  readonly refused: number;
  readonly pathMtu: number;
}
const UNKNOWN: Presence = { state: "silent", heard: 0, isHeard: false, refused: 0, pathMtu: 0 };

export class Watch {
  readonly #from: Sources;
  readonly #onPath: (event: PathEvent) => void;
  readonly #listeners = new Set<(event: AgentEvent) => void>();
  readonly #looking: NodeJS.Timeout;
  #reading: NodeJS.Timeout | undefined;
  #read = 0;
  /** By index less one. */
  readonly #presences: Presence[] = [];
  readonly #drops = new Growth();
  #gone: ReadonlySet<string> = new Set();

  /** `onPath` is called also while nobody listens. */
  constructor(from: Sources, onPath: (event: PathEvent) => void) {
    this.#from = from;
    this.#onPath = onPath;
    this.#looking = setInterval(() => this.#lookAtCounters(), COUNTERS_MS).unref();
  }

  /** Calls back for every event from now on until what it returned is called. */
  listen(listener: (event: AgentEvent) => void): () => void {
    if (this.#listeners.size === 0) {
      this.#read = this.#from.fdb.written;
      for (const _ of this.#newDrops()); // what was before is nobody's news
      this.#reading = setInterval(() => this.readJournal(), JOURNAL_MS).unref();
    }
    this.#listeners.add(listener);
    return () => {
      this.#listeners.delete(listener);
      if (this.#listeners.size === 0) clearInterval(this.#reading);
    };
  }

  tell(event: AgentEvent): void {
    for (const listener of this.#listeners) listener(event);
  }

  /** A network that has this row from now on counts from zero. */
  forget(index: number): void {
    this.#drops.forget(index);
  }

  /** Whether a remote answers, by its index. */
  stateOf(remote: number): RemoteState {
    return this.#presences[remote - 1]?.state ?? "silent";
  }

  /** To be called also before a network goes, for its entries are told by its name. */
  readJournal(): void {
    if (this.#listeners.size === 0 || this.#from.fdb.written === this.#read) return;
    const names = new Map(this.#from.networks().map(({ index, name }) => [index, name]));
    const { missed, changes, written } = this.#from.fdb.changes(this.#read);
    this.#read = written;
    if (missed > 0) this.tell({ event: "missed", count: missed });
    for (const change of changes) {
      const network = names.get(change.network);
      if (network !== undefined) this.tell(this.#eventOf(change, network));
    }
  }

  /** Likewise. */
  tellDrops(): void {
    if (this.#listeners.size === 0) return;
    for (const { network, drops } of this.#newDrops()) {
      this.tell({ event: "dropped", network: network?.name, drops });
    }
  }

  stop(): void {
    clearInterval(this.#looking);
    clearInterval(this.#reading);
  }

  #eventOf(found: FdbChange, network: string): AgentEvent {
    const { change, macHigh, macLow, destination, before, moves } = found;
    const mac = formatMac(macHigh, macLow);
    const { remotes } = this.#from;
    const place = remotes.place(destination);
    const entry = { network, mac, destination: place, origin: LEARNED_NAME, moves };
    const event = CHANGES[change];
    return event === "moved" ? { event, entry, from: remotes.place(before) } : { event, entry };
  }

  #lookAtCounters(): void {
    this.#lookAtRemotes();
    this.#lookAtGone();
    this.tellDrops();
  }

  /** One that nobody wants any more has not come back. */
  #lookAtGone(): void {
    const before = this.#gone;
    const now = this.#from.gone();
    if (before.size + now.length === 0) return;
    this.#gone = new Set(now.map(({ name }) => name));
    for (const { name: network, reason } of now) {
      if (!before.has(network)) this.tell({ event: "network-gone", network, reason });
    }
    const there = new Set(this.#from.networks().map(({ name }) => name));
    for (const network of before) {
      const isBack = there.has(network) && !this.#gone.has(network); // or it is being tried again
      if (isBack) this.tell({ event: "network-back", network });
    }
  }

  #lookAtRemotes(): void {
    const { remotes, traffic } = this.#from;
    for (let remote = 1; remote <= remotes.count; remote++) {
      const now = {
        heard: traffic.get(remote, FROM_REMOTE).frames,
        refused: remotes.refused(remote),
        pathMtu: remotes.pathMtu(remote),
      };
      const before = this.#presences[remote - 1] ?? UNKNOWN;
      const isHeard = now.heard > before.heard;
      let { state } = before;
      if (isHeard) state = "up";
      // A thread may learn of an error up to a second late: it may be older than a frame heard before.
      else if (now.refused !== before.refused && !before.isHeard) state = "down";
      this.#presences[remote - 1] = { state, isHeard, ...now };
      if (now.pathMtu !== before.pathMtu) this.#tellOfPath(remote, now.pathMtu);
      if (state === before.state) continue;
      const event = state === "up" ? "remote-up" : "remote-down";
      this.tell({ event, remote: remotes.address(remote) });
    }
  }

  #tellOfPath(index: number, mtu: number): void {
    const remote = this.#from.remotes.address(index);
    const event: PathEvent =
      mtu === 0 ? { event: "path-forgotten", remote } : { event: "path-learned", remote, mtu };
    this.#onPath(event);
    this.tell(event);
  }

  #newDrops() {
    return this.#drops.since(this.#from.counters, this.#from.networks());
  }
}

/** What was dropped since it was asked last. */
export class Growth {
  readonly #known = new Map<number, Drops>();

  /** Its counters begin anew. */
  forget(index: number): void {
    this.#known.delete(index);
  }

  /** By network, and for what belongs to none; those that dropped nothing are left out. */
  *since<Each extends Watched>(
    counters: Counters,
    networks: readonly Each[],
  ): Generator<{ network: Each | undefined; drops: Drops }> {
    for (const network of [undefined, ...networks]) {
      const index = network?.index ?? 0;
      const now = counters.drops(index);
      const before = this.#known.get(index) ?? {};
      this.#known.set(index, now);
      const drops = growthOfDrops(now, before);
      if (Object.keys(drops).length > 0) yield { network, drops };
    }
  }
}
