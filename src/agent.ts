/**
 * The agent: takes a configuration, makes the host's links and the forwarding threads that it needs,
 * watches over them, changes networks while the others go on, and removes what it made.
 *
 * What is made is undone in reverse order, when stopping and when a later step fails or is no longer
 * wanted alike. The TAPs would go by themselves: they are not persistent, so they last as long as the
 * descriptors of the threads that opened them, even if the process is killed. They are removed before
 * all the same, because a TAP that closes takes the kernel some 20 ms, and a hundred removed together
 * no longer than two.
 *
 * Changes (`changing.ts`) go one after the other.
 */
import { randomInt } from "node:crypto";
import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { setTimeout as pause, setImmediate } from "node:timers/promises";
import { isDeepStrictEqual } from "node:util";
import type { Logger } from "pino";
import type { Attachment } from "./attachments.ts";
import { Bridges } from "./bridges.ts";
import { Captures } from "./captures.ts";
import { Changing, Undo } from "./changing.ts";
import { asWritten, type Config, type NetworkConfig } from "./config.ts";
import { Containers } from "./containers.ts";
import { Counters, Traffic } from "./counters.ts";
import { Entries, keyOf, macOf } from "./entries.ts";
import { VtepError } from "./errors.ts";
import type { Explanation, Question } from "./explain.ts";
import { Fdb, NETWORKS } from "./fdb.ts";
import { Gateways } from "./gateways.ts";
import { Heartbeats } from "./heartbeats.ts";
import { linksByName, vxlanDeviceOn } from "./host.ts";
import {
  forgetAll,
  type Keeping,
  Notes,
  ParkedQueues,
  type Recollection,
  recollect,
  type Surveyed,
  surveyEdited,
  tellOfEdits,
  withoutIdle,
} from "./keeping.ts";
import { bringUp, hasLeft, leaveBridges, type Own, type TapLink } from "./links.ts";
import { type Live, LiveNetworks } from "./live.ts";
import type {
  AgentEvent,
  AgentStatus,
  CaptureFilter,
  CaptureStream,
  Changes,
  FdbEntryStatus,
  FdbFilter,
  NetworkStatus,
  Operations,
  RemoteStatus,
} from "./operations.ts";
import { addressWords, canonicalAddress, Remotes } from "./remotes.ts";
import type { FdbEntry } from "./schema.ts";
import type { Survey } from "./survey.ts";
import { Telling } from "./telling.ts";
import { type Plan, tapDescriptor } from "./vtep.ts";
import { type Thread, Workers } from "./workers.ts";

/** Entries of all FDBs together: 2 Mi of 32 bytes, of which only those used take memory. */
const LARGEST_FDB = 2 ** 21;
/** At least so many, for networks that are added while it runs. */
const SMALLEST_FDB = 2 ** 18;
/** Where a process may have fewer descriptors, none is for what it can do without. */
const MANY_DESCRIPTORS = 4096;
/** How often is looked whether what was attached is there still: nobody says so when a container dies. */
const LOOK_MS = 30_000;
/** Until what was sent last has left the queue of the core that sent it: another core's is not to overtake it. */
const HANDOVER_MS = 10;
/** When what was kept meanwhile has been read. */
const DRAINED_MS = 2000;
/** Networks that are gone are named in so many lines at a time. */
const GONE_LINES = 20;
/** Drops are logged at most this often: a remote could otherwise fill the log. */
const DROP_REPORT_MS = 10_000;

interface Beginnings {
  readonly given: Config;
  readonly surveyed: Surveyed;
  readonly workers: number;
  readonly log: Logger;
  readonly unwanted: AbortSignal;
  readonly first: Thread;
  readonly before: Recollection;
  readonly keeping: Keeping | undefined;
}

export class Agent implements Operations {
  /** Resolves when forwarding broke down, with the reason; never when it was stopped. */
  readonly lost: Promise<VtepError>;
  /** From now on what is asked for is refused. */
  isStopping = false;
  /** Its networks are those of now. */
  #config: Config;
  readonly #plan: Plan;
  readonly #entries: Entries;
  readonly #workers: Workers;
  readonly #log: Logger;
  readonly #unwanted: AbortSignal;
  readonly #undo = new Undo();
  readonly #live: LiveNetworks;
  /** TAPs that somebody deleted. */
  readonly #renewing = new WeakSet<Live["opened"]>();
  readonly #bridges: Bridges;
  readonly #containers: Containers;
  readonly #telling: Telling;
  readonly #changing: Changing;
  /** The change that is under way, and whatever waits for its end; at first what was learned before is recalled. */
  #turn: Promise<unknown>;
  /** What could not be had is being tried again. */
  #isRegaining = false;
  /** A look at what is attached that has not begun. */
  #look: Promise<readonly Attachment[]> | undefined;
  readonly #keeping: Keeping | undefined;
  readonly #notes: Notes;
  readonly #queues: ParkedQueues;
  /** Which bridges the agent before had given to its TAPs. */
  readonly #portsBefore: Readonly<Record<string, string>>;
  readonly #captures: Captures;

  /**
   * Resolves when frames can cross, or to undefined when `unwanted` is aborted before. `first` is what
   * `startThread` returned. Throws VtepError. Whatever was made is undone in either case.
   */
  static async start(
    given: Config,
    log: Logger,
    unwanted: AbortSignal,
    first: Thread,
    keeping?: Keeping,
  ): Promise<Agent | undefined> {
    const workers = given.workers === "auto" ? suggestedWorkers() : given.workers;
    const recollected = recollect(given, workers, keeping);
    const forgotten = forgetAll(recollected.unwanted);
    if (recollected.haveToGoFirst) await forgotten;
    const surveyed = await surveyEdited(given, recollected);
    if (unwanted.aborted) return undefined;
    const { kept, idle } = withoutIdle(recollected.kept, surveyed, workers);
    void forgotten.then(() => forgetAll(idle));
    const before = { ...recollected, kept };
    tellOfEdits(log, before.edited, surveyed.refused);
    const agent = new Agent({ given, surveyed, workers, log, unwanted, first, before, keeping });
    try {
      await agent.#start(surveyed.found);
      return agent;
    } catch (error) {
      await agent.stop();
      if (error === unwanted.reason) return undefined;
      throw error;
    }
  }

  private constructor(beginnings: Beginnings) {
    const { given, surveyed, workers, log, unwanted, first, before, keeping } = beginnings;
    const { config, found, largestMtu, refused } = surveyed;
    this.#config = config;
    this.#keeping = keeping;
    this.#unwanted = unwanted;
    this.#log = log;
    const limits = config.networks.map(({ fdb, fdbLimit }) => fdb.length + fdbLimit);
    const wanted = limits.reduce((sum, limit) => sum + limit, 0);
    const capacity = Math.min(LARGEST_FDB, Math.max(SMALLEST_FDB, wanted));
    const fdb = new Fdb(Fdb.allocate(capacity, randomInt(2 ** 31)));
    const remotes = new Remotes();
    const endpoint = {
      workers,
      heartbeats: Heartbeats.allocate(workers),
      fdb: fdb.memory,
      counters: Counters.allocate(NETWORKS - 1, workers),
      traffic: Traffic.allocate(workers),
      remotes: remotes.words.buffer as SharedArrayBuffer,
      underlay: config.underlay,
      local4: found.local4,
      local6: found.local6,
      port: config.port,
      sourcePorts: config.sourcePorts,
      df: config.df,
      offloads: config.offloads,
      busyPollUs: config.busyPollUs,
      // Only where half of the cores are left to others.
      paced: workers <= availableParallelism() / 2,
      strict: config.strict,
      flowSeed: randomInt(2 ** 31),
      dscp: config.dscp,
      largestMtu,
      kept: before.kept,
      keptOnly: false,
    };
    this.#bridges = new Bridges(before.snapshot?.bridges ?? [], keeping !== undefined, log);
    this.#queues = new ParkedQueues(before.snapshot?.queues);
    this.#portsBefore = before.snapshot?.ports ?? {};
    const canHaveQueues = endpoint.paced && workers === 1 && mostDescriptors() >= MANY_DESCRIPTORS;
    this.#live = new LiveNetworks(endpoint, remotes, canHaveQueues);
    this.#entries = new Entries(fdb, remotes, config.port, this.#live, setImmediate);
    const local = (found.local4 ?? found.local6)!;
    const gateways = new Gateways(local, config.port, log, before.snapshot?.gateways);
    const remember = () => this.#notes.remember();
    this.#containers = new Containers(this.#live, this.#entries, gateways, remember);
    for (const [at, network] of config.networks.entries()) {
      const live = this.#live.planned(network, at + 1, found.mtus[at]!);
      this.#live.put(live);
      const { tap } = network;
      if (tapDescriptor(tap, 0) in before.kept && !found.links.has(tap)) {
        this.#containers.assume(at + 1, before.snapshot?.direct[tap]);
      }
      this.#entries.configure(live);
    }
    this.#turn = this.#entries.recall(before.snapshot?.learned ?? []);
    this.#plan = { ...endpoint, networks: this.#live.plans() };
    const present = {
      remotes,
      networks: () => this.#config.networks,
      plan: () => ({ ...this.#plan, networks: this.#live.plans() }),
      snapshot: () => ({
        workers,
        bridges: this.#bridges.names,
        ports: Object.fromEntries(
          this.#live
            .rows()
            .flatMap(({ tap, bridge }) => (bridge === undefined ? [] : [[tap, bridge]])),
        ),
        queues: this.#queues.lengths,
        ...this.#containers.traces,
      }),
      learned: () => this.#entries.learned(),
      latest: (since: number) => this.#entries.latest(since),
    };
    const directory = keeping?.directory;
    const { edited } = before;
    this.#notes = new Notes(directory, given.networks, edited, refused, present, log);
    this.#workers = new Workers(this.#plan, first, unwanted, keeping !== undefined);
    this.#captures = new Captures(this.#workers, () => this.#live.called());
    const parts = { networks: this.#live, entries: this.#entries, workers: this.#workers };
    this.#telling = new Telling({ plan: this.#plan, fdb, remotes, ...parts }, log);
    this.#changing = new Changing(
      {
        ...parts,
        plan: this.#plan,
        containers: this.#containers,
        bridges: this.#bridges,
        notes: this.#notes,
        telling: this.#telling,
      },
      log,
    );
    this.#undo.push(() => this.#telling.stop());
    this.lost = this.#workers.lost;
  }

  // what can be asked

  status(): AgentStatus {
    return this.#telling.status();
  }

  network(name: string): NetworkStatus | undefined {
    return this.#telling.network(name);
  }

  async settled(): Promise<void> {
    await this.#turn;
  }

  remotes(): RemoteStatus[] {
    return this.#telling.remotes();
  }

  fdb(filter: FdbFilter): Generator<readonly FdbEntryStatus[]> {
    return this.#entries.list(filter);
  }

  putNetwork(network: NetworkConfig): Promise<boolean> {
    return this.#asked(async () => {
      const isNew = !this.#live.has(network.name);
      await this.#change([network], []);
      this.#log.info({ network: network.name }, isNew ? "network added" : "network changed");
      return isNew;
    });
  }

  removeNetwork(name: string): Promise<boolean> {
    return this.#asked(async () => {
      if (!this.#config.networks.some((network) => network.name === name)) return false;
      await this.#change([], [name]);
      this.#log.info({ network: name }, "network removed");
      return true;
    });
  }

  putPeer(name: string, address: string): Promise<void> {
    const peer = canonicalAddress(address);
    return this.#edit(name, (config) =>
      config.peers.includes(peer) ? config : { ...config, peers: [...config.peers, peer] },
    );
  }

  async removePeer(name: string, address: string): Promise<boolean> {
    const peer = canonicalAddress(address);
    let was = false;
    await this.#edit(name, (config) => {
      was = config.peers.includes(peer);
      const peers = config.peers.filter((other) => other !== peer);
      return was ? { ...config, peers } : config;
    });
    return was;
  }

  putFdb(name: string, mac: string, address: string): Promise<void> {
    const entry = { ...keyOf(mac), address: canonicalAddress(address) };
    return this.#edit(name, (config) => ({
      ...config,
      fdb: [...config.fdb.filter((other) => !isSameMac(other, entry)), entry],
    }));
  }

  async removeFdb(name: string, mac: string): Promise<boolean> {
    const key = keyOf(mac);
    let was = false;
    await this.#edit(name, (config) => {
      const fdb = config.fdb.filter((other) => !isSameMac(other, key));
      was = fdb.length < config.fdb.length;
      if (was) return { ...config, fdb };
      was = this.#entries.unlearn(this.#live.named(name), key);
      return config;
    });
    return was;
  }

  flushFdb(filter: FdbFilter): Promise<number> {
    return this.#asked(async () => {
      const { network, mac, remote } = filter;
      const entries = await this.#entries.flush(filter);
      this.#log.info({ network, mac, remote, entries }, "entries forgotten");
      return entries;
    });
  }

  /** Whoever asks while a look waits for its turn shares it: it sees all that was there by then. */
  attachments(): Promise<readonly Attachment[]> {
    this.#look ??= this.#asked(() => {
      this.#look = undefined;
      return this.#containers.look();
    });
    return this.#look;
  }

  reload(config: Config): Promise<Changes> {
    return this.#asked(async () => {
      const links = await linksByName();
      const before = this.#config.networks;
      const renamed = this.#live.rename(config.networks);
      const names = (networks: readonly NetworkConfig[]) => networks.map(({ name }) => name);
      const wanted = new Set(names(config.networks));
      const removed = names(this.#live.wanted()).filter((name) => !wanted.has(name));
      const gone = new Map(this.#live.gone().map(({ config }) => [config.name, config]));
      const different = config.networks.filter((network) => {
        const { name } = network;
        const live = this.#live.get(name);
        // One that is gone, and to be as it was to be, comes after the others: it would have all of them refused.
        if (!isDeepStrictEqual(live?.config ?? gone.get(name), network)) return true;
        return live !== undefined && hasLeft(live.link, links); // somebody has removed its bridge, perhaps
      });
      const added = names(different).filter((name) => !this.#live.has(name));
      const altered = names(different).filter((name) => this.#live.has(name));
      const changed = [...new Set([...renamed, ...altered])];
      await this.#apply(different, removed).catch((error: unknown) => {
        this.#live.rename(before);
        throw error;
      });
      this.#config = { ...this.#config, networks: config.networks };
      this.#notes.configuredAnew(config.networks);
      await this.#containers.renew();
      this.setLogLevel(config.logLevel);
      const [written, running] = [asWritten(config), asWritten(this.#config)];
      const restart = Object.keys(written).filter(
        (key) => !isDeepStrictEqual(written[key as never], running[key as never]),
      );
      added.push(...(await this.#regainAll()));
      const changes = { added, changed, removed, restart };
      this.#telling.tell({ event: "reloaded", changes });
      return changes;
    });
  }

  setLogLevel(level: Config["logLevel"]): void {
    this.#log.level = level;
    this.#config = { ...this.#config, logLevel: level };
  }

  /** For Prometheus: the media type, and the text. */
  metrics(): Promise<{ readonly type: string; readonly text: string }> {
    return this.#telling.metrics();
  }

  explain(name: string, question: Question): Explanation {
    return this.#telling.explain(this.#live.named(name), question);
  }

  async capture(wanted: CaptureFilter): Promise<CaptureStream> {
    const { network, mac, remote, snaplen } = wanted;
    const plan = network === undefined ? undefined : this.#live.named(network).plan;
    const filter = {
      vni: plan?.vni,
      mac: mac === undefined ? undefined : macOf(mac),
      remote: remote === undefined ? undefined : addressWords(remote),
      snaplen,
    };
    return this.#captures.begin(filter);
  }

  endCapture(): Promise<boolean> {
    return this.#captures.end();
  }

  listen(listener: (event: AgentEvent) => void): () => void {
    return this.#telling.listen(listener);
  }

  /** The status, and the first entries of each FDB: for the log. */
  report() {
    return this.#telling.report();
  }

  /** Whether every forwarding thread still comes round; those that do not are logged, once. */
  forwards(): boolean {
    return this.#telling.forwards();
  }

  /** Ends forwarding and removes what was made. What cannot be removed is logged. */
  async stop(): Promise<void> {
    this.isStopping = true;
    await this.#captures.end();
    await this.#exclusively(() =>
      this.#undo.all((error) => {
        this.#log.warn({ reason: error.message }, "something is left in place");
      }),
    );
  }

  // starting

  async #start(found: Survey): Promise<void> {
    this.#undo.push(() => this.#telling.reportDrops()); // the last, when nobody counts any more
    // Bridges first, so that they go last: one that still has a port is left in place.
    const stays = this.#keeping !== undefined;
    // What stays is forwarded until there is nothing else to do: from then on frames wait for the next agent.
    if (stays) this.#undo.push(() => this.#workers.end());
    this.#undo.push(() => this.#containers.unroute(stays));
    this.#undo.push(() => this.#notes.leavePlan());
    this.#undo.push(() => this.#notes.rememberLearned());
    this.#undo.push(() => this.#notes.remember());
    this.#undo.push(() => this.#bridges.removeIdle(new Set(), stays ? this.#own() : undefined));
    this.#telling.noteAstray(found.astray);
    await this.#bridges.make(found.missingBridges);
    this.#unwanted.throwIfAborted();
    if (!stays) {
      this.#undo.push(() => this.#workers.end());
      this.#undo.push(() => this.#changing.removeTaps(this.#links()));
    }
    const interim = this.#keeping?.interim;
    if (interim?.fits(this.#plan) === false) interim.end();
    await this.#open();
    await this.#containers.confirm();
    // What was kept is up already, where it is to be, and has frames that wait.
    const misplaced = this.#misplaced(found.links);
    const areReady = this.#links().every(({ name, bridge }) => {
      const link = found.links.get(name);
      const isPlaced = bridge === undefined ? !misplaced.includes(name) : link?.master === bridge;
      return link !== undefined && isPlaced;
    });
    if (!areReady) {
      // No bridge is to get a TAP that is forwarded for another one's network still.
      interim?.end();
      await this.#changing.unqueue(this.#links().filter(({ name }) => !found.links.has(name)));
      await leaveBridges(misplaced);
      await bringUp(this.#links());
      await this.#containers.route(found.links);
    }
    if (stays) this.#undo.push(() => this.#queues.lengthen(this.#live.taps()));
    this.#unwanted.throwIfAborted();
    this.#containers.note(found.links);
    const forwarded = interim?.end();
    if (interim !== undefined) this.#entries.catchUp(interim.learned());
    if (forwarded) await pause(HANDOVER_MS);
    await this.#workers.forward(
      (inUse) => this.#telling.noteOffloads(inUse),
      (index, error) => this.#renew(index, error),
    );
    if (interim) this.#log.info(interim.counts(), "forwarded as before meanwhile");
    if (areReady) {
      await bringUp(this.#links());
      await this.#containers.route(found.links);
    }
    this.#telling.noteReady();
    const reporting = setInterval(() => this.#telling.reportDrops(), DROP_REPORT_MS).unref();
    this.#undo.push(() => clearInterval(reporting));
    const looking = setInterval(() => this.#lookRegularly(), LOOK_MS).unref();
    this.#undo.push(() => clearInterval(looking));
    if (stays) {
      const restore = () => this.#exclusively(() => this.#restoreQueues());
      const waiting = setTimeout(() => void restore(), DRAINED_MS).unref();
      this.#undo.push(() => clearTimeout(waiting));
      void this.#exclusively(async () => this.#notes.begin()); // when all is known that is written then
    }
    this.#undo.push(() => this.#notes.stop());
  }

  /** Kept TAPs in a bridge that an agent before gave them, and that they are to have no more. */
  #misplaced(links: Survey["links"]): string[] {
    return this.#links().flatMap(({ name, bridge }) => {
      const { master } = links.get(name) ?? {};
      const isOurs = master !== undefined && master === this.#portsBefore[name];
      return isOurs && bridge === undefined ? [name] : [];
    });
  }

  async #restoreQueues(): Promise<void> {
    await this.#queues.restore(this.#live.taps()).catch(({ message }: Error) => {
      this.#log.warn({ reason: message }, "the queues of the TAPs stay long");
    });
  }

  #lookRegularly(): void {
    void this.#regain();
    this.#exclusively(() => this.#containers.lookAgain()).catch(({ message }: Error) => {
      this.#log.warn({ reason: message }, "what is attached cannot be looked at");
    });
  }

  /** Those that are on this host. */
  #links(): TapLink[] {
    const here = [...this.#live].filter(({ plan }) => !this.#containers.hasTap(plan.index));
    return here.map(({ link }) => link);
  }

  async #open(): Promise<void> {
    const opened = await this.#workers.open().catch(async (error: unknown) => {
      throw await explainHeldPort(error, this.#plan.port);
    });
    this.#telling.noteOpened(opened);
  }

  /** What of bridges the next agent would give them again, but no address of anybody else's. */
  #own(): Own {
    const addresses = this.#containers.traces.gateways?.addresses ?? [];
    return {
      ports: this.#live.taps(),
      addresses: new Set(addresses.map((each) => each.join(" "))),
    };
  }

  // changing

  /** One after the other; a change that was refused keeps nobody waiting. */
  #exclusively<T>(change: () => Promise<T>): Promise<T> {
    const done = this.#turn.then(change);
    this.#turn = done.catch(() => undefined);
    return done;
  }

  /** What somebody asks for. What still waits for its turn when the agent is to stop is refused. */
  #asked<T>(change: () => Promise<T>): Promise<T> {
    return this.#exclusively(() => {
      if (!this.isStopping) return change();
      throw new VtepError("CLOSED", "the agent is stopping: ask again when it has started");
    });
  }

  #edit(name: string, change: (config: NetworkConfig) => NetworkConfig): Promise<void> {
    return this.#asked(async () => {
      const before = this.#live.named(name).config;
      const after = change(before);
      if (after === before) return;
      await this.#change([after], []);
      this.#log.info({ network: name }, "network changed");
    });
  }

  /** What the API changes: until the next reload, and over restarts. */
  async #change(networks: readonly NetworkConfig[], removed: readonly string[]): Promise<void> {
    await this.#apply(networks, removed);
    const touched = new Set([...removed, ...networks.map(({ name }) => name)]);
    // Not those that are live: one that was lost in a change that failed is had again by the next agent.
    const others = this.#config.networks.filter(({ name }) => !touched.has(name));
    this.#config = { ...this.#config, networks: [...others, ...networks] };
    this.#notes.rememberEdits();
  }

  async #apply(networks: readonly NetworkConfig[], removed: readonly string[]): Promise<void> {
    try {
      await this.#changing.apply({ ...this.#config, networks }, removed);
    } catch (error) {
      // What was taken out for it may not have been had again.
      this.#live.noteMissing(this.#config.networks, (error as Error).message);
      throw error;
    }
  }

  /**
   * Tries again what could not be had at last: a change was refused, and what was before it, too, or a TAP. Each has a
   * turn of its own: of many that are gone, who asks for something waits for one.
   */
  async #regain(): Promise<void> {
    if (this.#isRegaining) return;
    this.#isRegaining = true;
    let gone = 0;
    for (const { name: network } of this.#config.networks) {
      if (this.#live.has(network)) continue;
      const reason = await this.#exclusively(() => this.#regained(network));
      if (reason === undefined) continue;
      gone++;
      if (gone <= GONE_LINES) this.#log.error({ network, reason }, "the network is gone");
    }
    const networks = gone - GONE_LINES;
    if (networks > 0) this.#log.error({ networks }, "more networks are gone");
    this.#isRegaining = false;
  }

  /** Whoever reads the file again may have mended what they are gone for. Returns the names of those that are there. */
  async #regainAll(): Promise<string[]> {
    const gone = this.#live.gone().map(({ config }) => config);
    if (gone.length === 0) return [];
    try {
      await this.#apply(gone, []);
      return gone.map(({ name }) => name);
    } catch {
      void this.#regain(); // each by itself: one may be had without the other
      return [];
    }
  }

  /** Why a network cannot be had; undefined where there is nothing more to be tried. */
  async #regained(network: string): Promise<string | undefined> {
    const config = this.#config.networks.find(({ name }) => name === network);
    if (config === undefined || this.isStopping || this.#live.has(network)) return undefined;
    try {
      await this.#apply([config], []);
      this.#log.info({ network }, "the network is there again");
      return undefined;
    } catch (error) {
      const { message } = error as Error;
      this.#live.noteGone(config, message);
      return message;
    }
  }

  /** Where a TAP that somebody deleted cannot be had again, the other networks go on; without any, the agent ends. */
  #renew(index: number, { message }: VtepError): void {
    const lost = [...this.#live].find(({ plan }) => plan.index === index);
    if (lost === undefined || this.isStopping) return; // it was removed here
    const { opened } = lost;
    if (this.#renewing.has(opened)) return; // another thread has told of it
    this.#renewing.add(opened);
    const network = lost.config.name;
    const level = this.#containers.hasTap(index) ? "info" : "error"; // its container has ended
    this.#log[level]({ network, reason: message }, "the TAP is made anew");
    void this.#exclusively(async () => {
      if (await this.#changing.renew(opened)) this.#log.info({ network }, "the TAP is there again");
    }).catch((error: unknown) => {
      const { message: reason } = error as Error;
      this.#log.error({ network, reason }, "the network is gone");
      this.#live.noteMissing(this.#config.networks, reason); // it may have another name by now
      if ([...this.#live].length > 0) return; // see #regain
      this.#workers.giveUp(
        new VtepError("LOST", `network ${network}: ${message}; start again`, error),
      );
    });
  }
}

/** A kernel VXLAN device is listed by no tool that lists sockets' owners, so it is named here. */
async function explainHeldPort(error: unknown, port: number): Promise<unknown> {
  if (!(error instanceof VtepError) || error.code !== "PORT_IN_USE") return error;
  const device = await vxlanDeviceOn(port);
  if (device === undefined) return error;
  return new VtepError(
    "PORT_IN_USE",
    `UDP port ${port} is held by the kernel's VXLAN device ${device}: remove it ("ip link del ${device}") or choose another --port`,
    error,
  );
}

/** As many again are left to what sends and receives the frames: iperf3, containers, the kernel. */
function suggestedWorkers(): number {
  return Math.max(1, Math.floor(availableParallelism() / 2));
}

/** Descriptors that this process may have, as far as is known: Node has raised its soft limit to the hard one. */
function mostDescriptors(): number {
  try {
    const limits = readFileSync("/proc/self/limits", "utf8");
    return Number(/^Max open files +(\d+)/m.exec(limits)?.[1] ?? Infinity);
  } catch {
    return 0; // no /proc here
  }
}

function isSameMac(one: Pick<FdbEntry, "macHigh" | "macLow">, other: typeof one): boolean {
  return one.macHigh === other.macHigh && one.macLow === other.macLow;
}
