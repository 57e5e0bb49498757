/**
 * What a running agent tells: to those who ask, to those who listen (`watch.ts`), and the log. All of it is
 * read from shared memory and from what the agent notes here: no forwarding thread is asked, nor waits.
 */
import type { Logger } from "pino";
import { formatRange } from "./addresses.ts";
import {
  Counter,
  Counters,
  FROM_REMOTE,
  Strangers,
  sumOfDrops,
  TO_REMOTE,
  Traffic,
} from "./counters.ts";
import { OFFLOADS, type Offloads } from "./device.ts";
import type { Entries } from "./entries.ts";
import { askedOf, type Explanation, explain, type Question } from "./explain.ts";
import { CONTROL, type Fdb, LEARNED, STATIC } from "./fdb.ts";
import { Heartbeats } from "./heartbeats.ts";
import type { Live, LiveNetworks } from "./live.ts";
import type { Metrics } from "./metrics.ts";
import type { AgentEvent, AgentStatus, NetworkStatus, RemoteStatus } from "./operations.ts";
import type { Remotes } from "./remotes.ts";
import { LARGEST_MTU } from "./schema.ts";
import type { Astray } from "./survey.ts";
import { version } from "./version.ts";
import { largestFrame, monotonicSeconds, type Opened, type Plan } from "./vtep.ts";
import { Growth, Watch } from "./watch.ts";
import { formatMac } from "./wire/ethernet.ts";

/** Networks that one report of drops names; a remote can make every network drop something. */
const DROP_LINES = 20;
/** Rows of each network's FDB in a report; more are counted only. */
const REPORT_ROWS = 1000;

/** What is told of. */
interface Sources {
  readonly plan: Plan;
  readonly fdb: Fdb;
  readonly remotes: Remotes;
  /** Those of now. */
  readonly networks: LiveNetworks;
  readonly entries: Entries;
  /** The threads that forward. */
  readonly workers: { readonly count: number; busySeconds(): readonly number[] };
}

export class Telling {
  readonly #from: Sources;
  readonly #log: Logger;
  readonly #counters: Counters;
  readonly #traffic: Traffic;
  readonly #heartbeats: Heartbeats;
  readonly #watch: Watch;
  #metrics: Promise<Metrics> | undefined;
  #opened: Opened | undefined;
  #readyAt = 0;
  #forwarded = true;
  /** What was dropped since it was logged. */
  readonly #logged = new Growth();
  readonly #strangers = new Strangers();
  /** Those in use; before it is known, those wanted. */
  #offloads: Offloads;
  /** Peers that may know another address of this VTEP, which was told. */
  readonly #astray = new Set<string>();

  constructor(from: Sources, log: Logger) {
    const { plan, fdb, remotes, networks } = from;
    this.#from = from;
    this.#log = log;
    this.#offloads = plan.offloads;
    this.#counters = new Counters(plan.counters, plan.workers);
    this.#traffic = new Traffic(plan.traffic, plan.workers);
    this.#heartbeats = new Heartbeats(plan.heartbeats);
    const sources = {
      fdb,
      counters: this.#counters,
      traffic: this.#traffic,
      remotes,
      networks: () => networks.rows(),
      gone: () => networks.gone().map(({ config: { name }, reason }) => ({ name, reason })),
    };
    this.#watch = new Watch(sources, ({ event, ...path }) => {
      const learned = "the path to a remote is narrower than its interface";
      log.info(path, event === "path-learned" ? learned : "what a path carries is forgotten");
    });
  }

  /** Looks at nothing any more; what was told last is told still. */
  stop(): void {
    this.#watch.stop();
  }

  // what is noted

  /** The devices are open; what they cannot do is logged, with what would help. */
  noteOpened(opened: Opened & { readonly paceFault: string | undefined }): void {
    this.#opened = opened;
    if (opened.fallback !== undefined) {
      this.#log.warn({ reason: opened.fallback }, "native underlay refused, using dgram");
    }
    if (opened.unsteered !== undefined && this.#from.plan.workers === 1) {
      this.#log.info(
        { reason: opened.unsteered },
        "every flow from a TAP waits behind the one that has most to send: give vtep CAP_BPF and bpf(2)",
      );
    } else if (opened.unsteered !== undefined) {
      this.#log.warn(
        { reason: opened.unsteered },
        "frames of a flow may overtake each other when it is first answered: give vtep CAP_BPF and bpf(2), or --workers 1",
      );
    }
    if (opened.paceFault !== undefined) {
      this.#log.info(
        { reason: opened.paceFault },
        "round trips beside a TCP stream take longer than they need: give vtep CAP_SYS_NICE or LimitRTPRIO=1 (ulimit -r 1)",
      );
    }
  }

  /** Frames can cross. */
  noteReady(): void {
    this.#readyAt = monotonicSeconds();
  }

  /**
   * An offload that the kernel did without from the start is worth a line, as is one that it gives up: by any
   * thread, and it counts as refused from then on.
   */
  noteOffloads(inUse: Offloads): void {
    const refused = OFFLOADS.filter((name) => this.#offloads[name] && !inUse[name]);
    const less = Object.fromEntries(refused.map((name) => [name, false]));
    this.#offloads = { ...this.#offloads, ...less };
    const doneWithout = this.#opened?.underlay === "native" ? refused : []; // dgram has few
    if (doneWithout.length > 0) this.#log.warn({ offloads: doneWithout }, "offloads were refused");
    for (const offload of doneWithout) this.#watch.tell({ event: "offload-demoted", offload });
  }

  /** Where routes to peers begin at another address than this VTEP's. */
  noteAstray(routes: readonly Astray[]): void {
    for (const { peer, local, source } of routes) {
      if (this.#astray.has(peer)) continue;
      this.#astray.add(peer);
      this.#log.warn(
        { peer, local, source },
        "the route to a peer begins at another address than this VTEP's, which is the one that peer has to name: say with --local which it is",
      );
    }
  }

  /** A network that has this row from now on counts from zero. */
  countAnew(index: number): void {
    this.#counters.clear(index);
    this.#logged.forget(index);
    this.#strangers.forget(index);
    this.#watch.forget(index);
  }

  /** To be called when no thread counts any more for networks that go: what they dropped is told by their names. */
  noteRetired(): void {
    this.#watch.tellDrops();
    this.reportDrops();
  }

  /** To be called before a network goes: what became of its entries is told by its name. */
  noteLeaving(): void {
    this.#watch.readJournal();
  }

  // to those who ask

  status(): AgentStatus {
    const { plan, remotes, networks, workers } = this.#from;
    const { local4, local6, port } = plan;
    return {
      pid: process.pid,
      uptimeSeconds: monotonicSeconds() - this.#readyAt,
      local: [local4, local6].filter((local) => local !== undefined),
      port,
      underlay: this.#opened!.underlay,
      workers: workers.count,
      capabilities: this.#opened!.capabilities,
      offloads: this.#offloads,
      refusedOffloads: OFFLOADS.filter((name) => plan.offloads[name] && !this.#offloads[name]),
      drops: this.#counters.drops(0),
      refused: this.#counters.get(0, Counter.refused),
      paths: remotes.paths(),
      networks: [...networks].map((live) => this.#statusOf(live)),
      gone: networks.gone().map(({ config: { name, vni, tap }, reason }) => {
        return { name, vni, tap, reason };
      }),
    };
  }

  network(name: string): NetworkStatus | undefined {
    const live = this.#from.networks.get(name);
    return live && this.#statusOf(live);
  }

  #statusOf({ config, plan }: Live): NetworkStatus {
    const { fdb, remotes } = this.#from;
    const { vni, index, tap, mac, mtu, flood } = plan;
    return {
      name: config.name,
      vni,
      tap,
      bridge: config.bridge,
      vlan: config.vlan,
      gateway: config.gateway,
      ranges: config.ranges.map(formatRange),
      mac: formatMac(mac.high, mac.low),
      mtu,
      peers: flood.map((remote) => remotes.address(remote)),
      counters: this.#counters.events(index),
      drops: this.#counters.drops(index),
      fdb: {
        learned: fdb.count(index, LEARNED),
        control: fdb.count(index, CONTROL),
        static: fdb.count(index, STATIC),
      },
    };
  }

  /** Those that networks name now, in the order in which they came to be known. */
  remotes(): RemoteStatus[] {
    const { remotes, networks } = this.#from;
    const named = new Set<number>();
    for (const { plan } of networks) {
      for (const remote of plan.flood) named.add(remote);
      for (const remote of plan.allowed) named.add(remote);
    }
    return [...named]
      .sort((one, other) => one - other)
      .map((remote) => {
        const to = this.#traffic.get(remote, TO_REMOTE);
        const from = this.#traffic.get(remote, FROM_REMOTE);
        return {
          address: remotes.address(remote),
          toFrames: to.frames,
          toBytes: to.bytes,
          fromFrames: from.frames,
          fromBytes: from.bytes,
          refused: remotes.refused(remote),
          state: this.#watch.stateOf(remote),
        };
      });
  }

  /** Of a network whose frames the sockets that are open take whole: where they take trains, of any. */
  get largestMtu(): number {
    const takesAny = this.#opened?.underlay === "native" && this.#offloads.gro;
    return takesAny ? LARGEST_MTU : this.#from.plan.largestMtu;
  }

  /** What would become of a frame in this network. Throws VtepError where the question is none. */
  explain({ config, plan }: Live, question: Question): Explanation {
    const may = new Set([...plan.flood, ...plan.allowed]);
    const scene = {
      fdb: this.#from.fdb,
      remotes: this.#from.remotes,
      now: monotonicSeconds(),
      largestFrame: largestFrame(this.largestMtu),
      network: { ...plan, name: config.name, allows: (remote: number) => may.has(remote) },
    };
    return explain(scene, askedOf(question));
  }

  /** For Prometheus: the media type, and the text. */
  async metrics(): Promise<{ readonly type: string; readonly text: string }> {
    this.#metrics ??= this.#makeMetrics().catch((error: unknown) => {
      this.#metrics = undefined; // whoever asks next tries again
      throw error;
    });
    const metrics = await this.#metrics;
    return { type: metrics.type, text: await metrics.text() };
  }

  /** Only for who asks: prom-client takes longer to load than everything else together. */
  async #makeMetrics(): Promise<Metrics> {
    const { Metrics } = await import("./metrics.ts");
    const { plan, fdb, remotes, networks, workers } = this.#from;
    return new Metrics({
      version: version(),
      counters: this.#counters,
      traffic: this.#traffic,
      fdb,
      remotes,
      networks: () => networks.rows(),
      gone: () => networks.gone().length,
      underlay: () => this.#opened?.underlay ?? plan.underlay,
      offloads: () => ({ wanted: plan.offloads, inUse: this.#offloads }),
      busySeconds: () => workers.busySeconds(),
    });
  }

  // to those who listen

  /** Calls back for every event until what it returned is called. */
  listen(listener: (event: AgentEvent) => void): () => void {
    return this.#watch.listen(listener);
  }

  tell(event: AgentEvent): void {
    this.#watch.tell(event);
  }

  // to the log

  /** The status, and the first entries of each FDB; each line has the process already. */
  report() {
    const { pid: _, ...status } = this.status();
    const entries = this.#from.entries.first(REPORT_ROWS);
    const networks = status.networks.map((network) => {
      const { learned, control, static: fixed } = network.fdb;
      return { ...network, fdbEntries: learned + control + fixed, fdb: entries.get(network.name)! };
    });
    return { ...status, networks };
  }

  /** Whether every forwarding thread still comes round; those that do not are logged, once. */
  forwards(): boolean {
    const threads = this.#heartbeats.stale(monotonicSeconds());
    const forwards = threads.length === 0;
    if (this.#forwarded && !forwards) this.#log.error({ threads }, "forwarding threads are stuck");
    this.#forwarded = forwards;
    return forwards;
  }

  /** Logs what was dropped since the last report, a line a network, and one for those beyond. */
  reportDrops(): void {
    const grown = [...this.#logged.since(this.#counters, this.#from.networks.rows())];
    for (const { network, drops } of grown.slice(0, DROP_LINES)) {
      const stranger =
        network === undefined || drops.VXLAN_REMOTE_NOT_ALLOWED === undefined
          ? undefined
          : this.#strangers.since(this.#counters, network.index);
      this.#log.warn({ vni: network?.vni, drops, stranger }, "frames were dropped");
    }
    const beyond = grown.slice(DROP_LINES).map(({ drops }) => drops);
    if (beyond.length === 0) return;
    const more = { networks: beyond.length, drops: sumOfDrops(beyond) };
    this.#log.warn(more, "more networks dropped frames");
  }
}
