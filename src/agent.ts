/**
 * The agent: takes a configuration, makes the host's links and the forwarding threads that it needs,
 * watches over them, and removes what it made.
 *
 * What is made is undone in reverse order, when stopping and when a later step fails or is no longer
 * wanted alike. The TAPs would go by themselves: they are not persistent, so they last as long as the
 * descriptors of the threads that opened them, even if the process is killed. They are removed before
 * all the same, because a TAP that closes takes the kernel some 20 ms, and a hundred removed together
 * no longer than two.
 */
import { createHash, randomInt } from "node:crypto";
import { availableParallelism } from "node:os";
import { setFlagsFromString } from "node:v8";
import { Worker } from "node:worker_threads";
import type { Logger } from "pino";
import type { Config, NetworkConfig } from "./config.ts";
import { writeStaticRoutes } from "./control/static.ts";
import { Counter, Counters, type DropReason } from "./counters.ts";
import { OFFLOADS, type Offloads } from "./device.ts";
import { VtepError } from "./errors.ts";
import { CONTROL, Fdb, LEARNED, STATIC } from "./fdb.ts";
import {
  bringUp,
  createBridges,
  removeIdleBridges,
  removeTaps,
  type TapLink,
  vxlanDeviceOn,
} from "./host.ts";
import { LOCAL, Remotes } from "./remotes.ts";
import { type Survey, survey } from "./survey.ts";
import { monotonicSeconds, type NetworkPlan, type Opened, type Plan } from "./vtep.ts";
import { formatMac } from "./wire/ethernet.ts";
import type { Order, Post, Report } from "./worker.ts";

/** Entries of all FDBs together: 2 Mi of 32 bytes, of which only those used take memory. */
const LARGEST_FDB = 2 ** 21;
/** How long the forwarding threads may take to close their devices before they are ended. */
const STOP_MS = 500;
/** Drops are logged at most this often: a remote could otherwise fill the log. */
const DROP_REPORT_MS = 10_000;
/** Rows of each network's FDB in a status; more are counted only. */
const STATUS_ROWS = 1000;

const ORIGINS = { [LEARNED]: "learned", [CONTROL]: "control", [STATIC]: "static" } as const;

type Drops = Partial<Record<DropReason, number>>;

export class Agent {
  /** Resolves when forwarding broke down, with the reason; never when it was stopped. */
  readonly lost: Promise<VtepError>;
  readonly #plan: Plan;
  readonly #fdb: Fdb;
  readonly #counters: Counters;
  readonly #remotes: Remotes;
  readonly #log: Logger;
  /** What to undo, last first. */
  readonly #undo: (() => void | Promise<void>)[] = [];
  readonly #unwanted: AbortSignal;
  #lose!: (error: VtepError) => void;
  #workers: Worker[] = [];
  #opened: Opened | undefined;
  #reported: Drops[] = [];
  /** Those in use; before it is known, those wanted. */
  #offloads: Offloads;

  /**
   * Resolves when frames can cross, or to undefined when `unwanted` is aborted before. Throws
   * VtepError. Whatever was made is undone in either case.
   */
  static async start(
    config: Config,
    log: Logger,
    unwanted: AbortSignal,
  ): Promise<Agent | undefined> {
    const found = await survey(config);
    if (unwanted.aborted) return undefined;
    const agent = new Agent(config, found, log, unwanted);
    try {
      await agent.#start(config, found);
      return agent;
    } catch (error) {
      await agent.stop();
      if (error === unwanted.reason) return undefined;
      throw error;
    }
  }

  private constructor(config: Config, found: Survey, log: Logger, unwanted: AbortSignal) {
    this.#unwanted = unwanted;
    this.lost = new Promise((resolve) => {
      this.#lose = resolve;
    });
    this.#log = log;
    this.#offloads = config.offloads;
    this.#remotes = new Remotes();
    const limits = config.networks.map(({ fdb, fdbLimit }) => fdb.length + fdbLimit);
    const capacity = Math.min(
      LARGEST_FDB,
      limits.reduce((sum, limit) => sum + limit, 0),
    );
    this.#fdb = new Fdb(Fdb.allocate(capacity, randomInt(2 ** 31)));
    const workers = config.workers === "auto" ? suggestedWorkers() : config.workers;
    this.#counters = new Counters(Counters.allocate(config.networks.length, workers), workers);
    this.#plan = {
      workers,
      fdb: this.#fdb.memory,
      counters: this.#counters.memory,
      remotes: this.#remotes.words.buffer as SharedArrayBuffer,
      underlay: config.underlay,
      local4: found.local4,
      local6: found.local6,
      port: config.port,
      sourcePorts: config.sourcePorts,
      offloads: config.offloads,
      busyPollUs: config.busyPollUs,
      strict: config.strict,
      flowSeed: randomInt(2 ** 31),
      dscp: config.dscp,
      networks: config.networks.map((network, at) =>
        this.#planNetwork(
          network,
          at + 1,
          found.mtus[at]!,
          found.local4 ?? found.local6!,
          config.port,
        ),
      ),
    };
  }

  /** What is forwarded, and how: plain data for people and programs. */
  status() {
    const now = monotonicSeconds();
    const fdbs = this.#fdbRows(now);
    const { local4, local6, port, networks } = this.#plan;
    return {
      local: [local4, local6].filter((local) => local !== undefined),
      port,
      underlay: this.#opened?.underlay,
      workers: this.#workers.length,
      capabilities: this.#opened?.capabilities,
      offloads: this.#offloads,
      drops: this.#counters.drops(0),
      refused: this.#counters.get(0, Counter.refused),
      paths: this.#remotes.paths(),
      networks: networks.map(({ vni, index, tap, mtu, flood }) => ({
        vni,
        tap,
        mtu,
        flood: flood.map((remote) => this.#remotes.address(remote)),
        counters: this.#counters.events(index),
        drops: this.#counters.drops(index),
        fdbEntries: fdbs.get(index)!.entries,
        fdb: fdbs.get(index)!.rows,
      })),
    };
  }

  /** Ends forwarding and removes what was made. What cannot be removed is logged. */
  async stop(): Promise<void> {
    for (let undo = this.#undo.pop(); undo !== undefined; undo = this.#undo.pop()) {
      try {
        await undo();
      } catch (error) {
        this.#log.warn({ reason: (error as Error).message }, "something is left in place");
      }
    }
  }

  async #start(config: Config, found: Survey): Promise<void> {
    this.#undo.push(() => this.#reportDrops()); // the last, when nobody counts any more
    // Bridges first, so that they go last: one that still has a port is left in place.
    await this.#makeBridges(found.missingBridges);
    this.#unwanted.throwIfAborted();
    this.#undo.push(() => this.#endWorkers());
    const taps = this.#plan.networks.map(({ tap, mac, mtu }, at): TapLink => {
      const { bridge } = config.networks[at]!;
      return { name: tap, mac: formatMac(mac.high, mac.low), mtu, bridge };
    });
    this.#undo.push(async () => {
      const kept = (error: Error) => this.#log.debug({ reason: error.message }, "TAPs go singly");
      await removeTaps(taps).catch(kept);
    });
    await this.#openWorkers(config);
    await bringUp(taps);
    this.#unwanted.throwIfAborted();
    await Promise.all(this.#workers.map((worker) => this.#forward(worker)));
    const reporting = setInterval(() => this.#reportDrops(), DROP_REPORT_MS).unref();
    this.#undo.push(() => clearInterval(reporting));
  }

  #planNetwork(
    network: NetworkConfig,
    index: number,
    mtu: number,
    local: string,
    port: number,
  ): NetworkPlan {
    const flood = new Set<number>();
    const allowed = new Set<number>();
    writeStaticRoutes(network, {
      addToFlood: (address) => flood.add(this.#remotes.add(address, port)),
      setStatic: (macHigh, macLow, address) => {
        const remote = this.#remotes.add(address, port);
        allowed.add(remote);
        this.#fdb.set(index, macHigh, macLow, remote, STATIC);
      },
    });
    this.#fdb.setLimit(index, network.fdbLimit);
    return {
      vni: network.vni,
      index,
      tap: network.tap,
      mac: stableMac(local, network.vni),
      mtu,
      clampMss: network.clampMss,
      ageSeconds: network.ageSeconds,
      flood: [...flood],
      allowed: [...allowed],
    };
  }

  /** The first thread finds out whether the port and the names are free; others join it. */
  async #openWorkers(config: Config): Promise<void> {
    // Forwarding allocates next to nothing, which V8 takes for idleness: every half minute it would stop
    // a thread in the middle of its traffic, for 10 to 40 ms, to give back a megabyte.
    setFlagsFromString("--no-memory-reducer");
    try {
      this.#opened = (await this.#reportOf(this.#spawnWorker(), "opened")).opened;
    } catch (error) {
      throw await explainHeldPort(error, config.port);
    }
    if (this.#opened.fallback !== undefined) {
      this.#log.warn({ reason: this.#opened.fallback }, "native underlay refused, using dgram");
    }
    if (this.#opened.underlay === "dgram") return; // sockets of Node 20 share no port
    const others = Array.from({ length: this.#plan.workers - 1 }, () => this.#spawnWorker());
    await Promise.all(others.map((worker) => this.#reportOf(worker, "opened")));
  }

  #spawnWorker(): Worker {
    const workerData: Post = { plan: this.#plan, worker: this.#workers.length };
    const worker = new Worker(new URL("./worker.js", import.meta.url), { workerData });
    worker.on("error", (error) => {
      this.#lose(new VtepError("SYSTEM", `a forwarding thread failed: ${error.message}`, error));
    });
    worker.on("exit", () => {
      if (!this.#workers.includes(worker)) return;
      this.#workers = this.#workers.filter((other) => other !== worker);
      this.#lose(new VtepError("SYSTEM", "a forwarding thread ended by itself"));
    });
    this.#workers.push(worker);
    return worker;
  }

  async #forward(worker: Worker): Promise<void> {
    const reports = Promise.all([
      this.#reportOf(worker, "offloads"),
      this.#reportOf(worker, "forwarding"),
    ]);
    worker.postMessage("forward" satisfies Order);
    const [{ inUse }] = await reports;
    this.#noteOffloads(inUse);
    worker.on("message", (report: Report) => {
      if (report.event === "lost") this.#lose(new VtepError(report.code, report.message));
      if (report.event === "offloads") this.#noteOffloads(report.inUse);
    });
  }

  async #endWorkers(): Promise<void> {
    const workers = this.#workers;
    this.#workers = [];
    // One that is still opening devices would finish first.
    const patience = this.#opened === undefined ? 0 : STOP_MS;
    const ends = workers.map(async (worker) => {
      const gone = new Promise((resolve) => worker.once("exit", resolve));
      worker.postMessage("stop" satisfies Order);
      const impatience = setTimeout(() => void worker.terminate(), patience);
      await gone;
      clearTimeout(impatience);
    });
    await Promise.all(ends);
  }

  /** Waits for one event of the forwarding thread; throws what it failed with instead. */
  async #reportOf<Event extends Report["event"]>(worker: Worker, event: Event) {
    const reported = new Promise<Extract<Report, { event: Event }>>((resolve, reject) => {
      const listen = (report: Report) => {
        if (report.event === event) resolve(report as Extract<Report, { event: Event }>);
        else if (report.event === "failed") reject(new VtepError(report.code, report.message));
        else return;
        worker.off("message", listen);
      };
      worker.on("message", listen);
    });
    const unwanted = new Promise<void>((resolve) => {
      this.#unwanted.addEventListener("abort", () => resolve(), { once: true });
    });
    const report = await Promise.race([reported, this.lost, unwanted]);
    this.#unwanted.throwIfAborted();
    if (report instanceof VtepError) throw report;
    return report!;
  }

  async #makeBridges(names: readonly string[]): Promise<void> {
    await createBridges(names);
    this.#undo.push(async () => {
      for (const bridge of await removeIdleBridges(names)) {
        this.#log.warn({ bridge }, "leaving the bridge in place: other ports are joined to it");
      }
    });
  }

  /** By network: how many entries it has, and the first of them. */
  #fdbRows(now: number) {
    const networks = new Map<number, { entries: number; rows: object[] }>();
    for (const { index } of this.#plan.networks) networks.set(index, { entries: 0, rows: [] });
    for (const row of this.#fdb.rows()) {
      const network = networks.get(row.network)!;
      if (network.entries++ >= STATUS_ROWS) continue;
      const { destination, origin } = row;
      network.rows.push({
        mac: formatMac(row.macHigh, row.macLow),
        destination: destination === LOCAL ? "local" : this.#remotes.address(destination),
        origin: ORIGINS[origin],
        ...(origin === LEARNED && { ageSeconds: now - row.seenAt }),
        moves: row.moves,
      });
    }
    return networks;
  }

  /**
   * One that the kernel did without from the start is worth a line, as is one that it gives up: by any
   * thread, and it counts as refused from then on.
   */
  #noteOffloads(inUse: Offloads): void {
    const refused = OFFLOADS.filter((name) => this.#offloads[name] && !inUse[name]);
    const less = Object.fromEntries(refused.map((name) => [name, false]));
    this.#offloads = { ...this.#offloads, ...less };
    const doneWithout = this.#opened?.underlay === "native" ? refused : []; // dgram has few
    if (doneWithout.length > 0) this.#log.warn({ offloads: doneWithout }, "offloads were refused");
  }

  /** Logs what was dropped since the last report, a line a network. */
  #reportDrops(): void {
    for (const { index, vni } of [{ index: 0, vni: undefined }, ...this.#plan.networks]) {
      const drops = this.#counters.drops(index);
      const since = growth(drops, this.#reported[index] ?? {});
      this.#reported[index] = drops;
      if (Object.keys(since).length === 0) continue;
      const stranger =
        since.VXLAN_REMOTE_NOT_ALLOWED === undefined ? undefined : this.#counters.stranger(index);
      this.#log.warn({ vni, drops: since, stranger }, "frames were dropped");
    }
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

/** The TAP's address: locally administered, and the same after every restart of this VTEP. */
function stableMac(local: string, vni: number): { high: number; low: number } {
  const digest = createHash("sha256").update(`${local} ${vni}`).digest();
  return { high: 0x0200 | digest.readUInt8(0), low: digest.readInt32BE(1) };
}

function growth(now: Drops, before: Drops): Drops {
  const grown = Object.entries(now).map(([reason, count]) => {
    return [reason, count - (before[reason as DropReason] ?? 0)] as const;
  });
  return Object.fromEntries(grown.filter(([, count]) => count > 0));
}
