/**
 * The metrics, as Prometheus recommends them: base units, counters that end in `_total`, one sentence
 * of help each. They are read from shared memory when somebody asks, on the thread that is asked:
 * forwarding threads neither wait nor hear of it.
 *
 * **Ways.** `direction` is encap (TAP → underlay) or decap (underlay → TAP). A super-frame counts as
 * one frame, as it does for the host; `vtep_super_frame_segments_total` says what became of it.
 *
 * **How many series.** A network has some 35, a remote 4. The first NETWORKS_SHOWN networks and the
 * first REMOTES_SHOWN remotes, in the order in which the agent came to know them, have series of their
 * own; the rest is summed under the name `other`, where what a network had counted stays when it leaves
 * them. Nothing that a stranger sends makes a series: who is no remote is counted by reason only.
 */
import { setImmediate } from "node:timers/promises";
import { Counter, collectDefaultMetrics, Gauge, type Metric, Registry } from "prom-client";
import {
  Counter as Column,
  type Counters,
  Drop,
  type DropReason,
  FROM_REMOTE,
  LATENESS_BOUNDS,
  TO_REMOTE,
  type Traffic,
  Work,
} from "./counters.ts";
import { OFFLOADS, type Offloads } from "./device.ts";
import { CONTROL, type Fdb, LEARNED, ORIGIN_NAMES, STATIC } from "./fdb.ts";
import type { Remotes } from "./remotes.ts";

/** Networks, and remotes, that have series of their own. */
export const NETWORKS_SHOWN = 500;
export const REMOTES_SHOWN = 500;
/** The name under which the others are summed. */
const OTHER = "other";

/** What is told of. Whatever changes while the agent runs is asked for each time. */
export interface Sources {
  readonly version: string;
  readonly counters: Counters;
  readonly traffic: Traffic;
  readonly fdb: Fdb;
  readonly remotes: Remotes;
  networks(): readonly NetworkSource[];
  /** How many networks there are to be, and are not. */
  gone(): number;
  underlay(): string;
  offloads(): { readonly wanted: Offloads; readonly inUse: Offloads };
  /** Seconds that each forwarding thread has worked, by worker; what it did not is waiting. */
  busySeconds(): readonly number[];
}

export interface NetworkSource {
  readonly name: string;
  readonly vni: number;
  readonly tap: string;
  readonly mtu: number;
  /** Row in the FDB and in the counters. */
  readonly index: number;
}

/** Labels and a value. Those of the same labels are summed. */
type Sample = readonly [labels: Readonly<Record<string, string | number>>, value: number];
type Samples = () => Iterable<Sample>;
type SamplesOf = (network: NetworkSource) => readonly Sample[];
/** Of every network, by its VNI, the values of its samples. */
type Values = ReadonlyMap<number, readonly number[]>;

const DIRECTIONS = [
  ["encap", Column.encapFrames, Column.encapBytes, TO_REMOTE],
  ["decap", Column.decapFrames, Column.decapBytes, FROM_REMOTE],
] as const;
const ORIGINS = [LEARNED, CONTROL, STATIC] as const;
const REASONS = Object.keys(Drop) as DropReason[];
/** A timer that never fires; as long as one can be. */
const NEVER_MS = 2 ** 31 - 1;

export class Metrics {
  readonly #register = new Registry();
  readonly #from: Sources;
  #rendering: Promise<string> | undefined;
  #turn: Promise<void> = Promise.resolve();

  constructor(from: Sources) {
    this.#from = from;
    this.#addEndpoint();
    this.#addNetworks();
    this.#addRemotes();
    this.#addWorkers();
    this.#addProcess();
  }

  /** The media type of the text. */
  get type(): string {
    return this.#register.contentType;
  }

  /** In Prometheus' text format, 0.0.4. Who asks while somebody is being answered gets that answer. */
  text(): Promise<string> {
    this.#rendering ??= this.#register.metrics().finally(() => {
      this.#rendering = undefined;
    });
    return this.#rendering;
  }

  #addEndpoint(): void {
    const { version, counters } = this.#from;
    this.#gauge("vtep_build_info", "Which vtep and Node.js this is, always 1.", () => [
      [{ version, node: process.version }, 1],
    ]);
    this.#gauge("vtep_underlay_info", "How datagrams are sent and received, always 1.", () => [
      [{ underlay: this.#from.underlay() }, 1],
    ]);
    const offloads = (kind: "wanted" | "inUse"): Samples => {
      return () => OFFLOADS.map((name) => [{ offload: name }, +this.#from.offloads()[kind][name]]);
    };
    this.#gauge(
      "vtep_offload_wanted",
      "Whether the configuration asks for this offload, 1 or 0.",
      offloads("wanted"),
    );
    this.#gauge(
      "vtep_offload_in_use",
      "Whether every device uses this offload, 1 or 0; one that was refused or given up is 0.",
      offloads("inUse"),
    );
    this.#counter(
      "vtep_refused_total",
      "ICMP errors about datagrams that had been sent: nobody listens there, or no way leads there.",
      () => [[{}, counters.get(0, Column.refused)]],
    );
  }

  #addNetworks(): void {
    const { counters, fdb } = this.#from;
    this.#gauge(
      "vtep_network_info",
      "The VNI and the TAP that a network has, always 1; of networks with series of their own.",
      () =>
        shown(this.#from.networks()).map(({ name, vni, tap }) => [{ network: name, vni, tap }, 1]),
    );
    this.#gauge(
      "vtep_networks_gone",
      "Networks that are to be and cannot be had; each is tried again every half minute.",
      () => [[{}, this.#from.gone()]],
    );
    this.#gauge(
      "vtep_network_mtu_bytes",
      "MTU of a network's TAP; of networks with series of their own.",
      () => shown(this.#from.networks()).map(({ name, mtu }) => [{ network: name }, mtu]),
    );
    this.#counter(
      "vtep_frames_total",
      "Frames that crossed, by network and direction; each copy of a flooded frame counts.",
      this.#countedByNetwork(({ index }) =>
        DIRECTIONS.map(([direction, frames]) => [{ direction }, counters.get(index, frames)]),
      ),
    );
    this.#counter(
      "vtep_bytes_total",
      "Bytes of the frames that crossed, Ethernet headers included and tunnel headers not.",
      this.#countedByNetwork(({ index }) =>
        DIRECTIONS.map(([direction, , bytes]) => [{ direction }, counters.get(index, bytes)]),
      ),
    );
    const dropsOf = (index: number) =>
      REASONS.map((reason): Sample => [{ reason }, counters.get(index, Drop[reason])]);
    const drops = this.#countedByNetwork(({ index }) => dropsOf(index));
    this.#counter(
      "vtep_drops_total",
      "Frames and datagrams dropped, by network and reason; without a network where none was known.",
      () => [...dropsOf(0), ...drops()],
    );
    this.#gauge(
      "vtep_fdb_entries",
      "Entries of the forwarding database, by network and origin.",
      this.#byNetwork(({ index }) =>
        ORIGINS.map((origin) => [{ origin: ORIGIN_NAMES[origin] }, fdb.count(index, origin)]),
      ),
    );
    this.#gauge(
      "vtep_fdb_learned_limit",
      "Learned entries that a network may have before the oldest makes room.",
      this.#byNetwork(({ index }) => [[{}, fdb.limit(index)]]),
    );
    for (const [name, help, column] of [
      ["flooded_frames", "Frames from the TAP that went to the flood list.", Column.flooded],
      ["fdb_learned", "MAC addresses learned that were not known.", Column.learned],
      [
        "fdb_moved",
        "MAC addresses that were learned behind another place than before.",
        Column.moved,
      ],
      ["fdb_aged", "Learned entries that were forgotten because of their age.", Column.aged],
      ["fdb_evicted", "Learned entries that made room for new ones at the limit.", Column.evicted],
      [
        "told_too_big",
        "Senders that were told that a frame is too big for a path, and what that carries.",
        Column.toldTooBig,
      ],
      ["gateway_frames", "Frames of the gateway, which stay on their host.", Column.gateway],
      [
        "other_vlan_frames",
        "Frames from the TAP that are of another VLAN than the network is.",
        Column.otherVlan,
      ],
      [
        "reserved_fields",
        "Datagrams accepted although a reserved field of their VXLAN header was set.",
        Column.reservedBits,
      ],
    ] as const) {
      const samples = this.#countedByNetwork(({ index }) => [[{}, counters.get(index, column)]]);
      this.#counter(`vtep_${name}_total`, help, samples);
    }
  }

  #addRemotes(): void {
    const { remotes, traffic } = this.#from;
    this.#gauge(
      "vtep_remotes",
      "Remote VTEPs that were named to this one since it started.",
      () => [[{}, remotes.count]],
    );
    for (const unit of ["frames", "bytes"] as const) {
      this.#counter(
        `vtep_remote_${unit}_total`,
        unit === "frames"
          ? "Frames that crossed, by remote and direction."
          : "Bytes of the frames that crossed, by remote and direction.",
        this.#byRemote((index) =>
          DIRECTIONS.map(([direction, , , way]) => [{ direction }, traffic.get(index, way)[unit]]),
        ),
      );
    }
    this.#gauge(
      "vtep_remote_path_mtu_bytes",
      "MTU of the path to a remote that was found to be narrower than its interface.",
      () =>
        remotes
          .paths()
          .slice(0, REMOTES_SHOWN)
          .map(({ address, mtu }) => [{ remote: address }, mtu]),
    );
  }

  #addWorkers(): void {
    const { counters } = this.#from;
    this.#gauge("vtep_workers", "Threads that forward.", () => [
      [{}, this.#from.busySeconds().length],
    ]);
    this.#counter(
      "vtep_worker_busy_seconds_total",
      "Seconds that a forwarding thread did not wait for something to do.",
      () => this.#from.busySeconds().map((seconds, worker) => [{ worker }, seconds]),
    );
    this.#addLateness();
    for (const [name, help, encap, decap] of [
      ["batches", "Reads of a device that found something.", Work.encapBatches, Work.decapBatches],
      [
        "batch_rows",
        "Frames (encap) or datagrams and trains of them (decap) that these reads found.",
        Work.encapRows,
        Work.decapRows,
      ],
    ] as const) {
      this.#counter(`vtep_${name}_total`, help, () => [
        [{ direction: "encap" }, counters.get(0, encap)],
        [{ direction: "decap" }, counters.get(0, decap)],
      ]);
    }
    for (const [name, help, column] of [
      ["super_frames", "Frames from TAPs that had to be cut into segments.", Work.superFrames],
      ["super_frame_segments", "Segments that super-frames were made of.", Work.segments],
      ["trains", "Datagrams received that the kernel had joined into one buffer.", Work.trains],
      ["train_datagrams", "Datagrams that such trains consisted of.", Work.datagrams],
    ] as const) {
      this.#counter(`vtep_${name}_total`, help, () => [[{}, counters.get(0, column)]]);
    }
  }

  /** prom-client's histograms count what they observe; this one was counted elsewhere. */
  #addLateness(): void {
    const name = "vtep_worker_tick_lateness_seconds";
    const ofWorker = (worker: number) => {
      const { classes, sum } = this.#from.counters.lateness(worker);
      let total = 0;
      const buckets = classes.map((times, at) => {
        total += times;
        const labels = { worker, le: LATENESS_BOUNDS[at] ?? "+Inf" };
        return { metricName: `${name}_bucket`, labels, value: total };
      });
      return [
        ...buckets,
        { metricName: `${name}_sum`, labels: { worker }, value: sum },
        { metricName: `${name}_count`, labels: { worker }, value: total },
      ];
    };
    const metric = {
      name,
      help: "How late a forwarding thread comes to what it does each second: a sample of the delay of its event loop.",
      type: "histogram",
      get: async () => ({
        ...metric,
        values: this.#from.busySeconds().flatMap((_, worker) => ofWorker(worker)),
      }),
    };
    // All that a registry asks of a metric is here; its type wants a class of prom-client.
    this.#register.registerMetric(metric as unknown as Metric);
  }

  /**
   * CPU, memory and descriptors of the process. What prom-client tells of the runtime is of the main
   * thread, which forwards nothing, and its timer would wake that a hundred times a second. CPU time it
   * counts from this call on: what the process took before is added.
   */
  #addProcess(): void {
    const register = this.#register;
    const { user, system } = process.cpuUsage();
    collectDefaultMetrics({ register, eventLoopMonitoringPrecision: NEVER_MS });
    const before = { user_seconds: user, system_seconds: system, seconds: user + system };
    for (const [kind, microseconds] of Object.entries(before)) {
      const counter = register.getSingleMetric(`process_cpu_${kind}_total`) as Counter;
      counter.inc(microseconds / 1e6);
    }
    for (const { name } of register.getMetricsAsArray()) {
      if (name.startsWith("nodejs_")) register.removeSingleMetric(name);
    }
  }

  #countedByNetwork(samples: SamplesOf): Samples {
    const counts = new OtherCounts();
    return this.#byNetwork(samples, (values) => counts.add(values));
  }

  /** Of every network `samples` has the same labels, in the same order. `sum` yields what the others have together. */
  #byNetwork(samples: SamplesOf, sum = sumOfOthers): Samples {
    return () => {
      const networks = this.#from.networks();
      const found = networks.map(samples);
      const named = shown(networks).flatMap(({ name }, at) =>
        found[at]!.map(([labels, value]) => [{ network: name, ...labels }, value]),
      ) as Sample[];
      // Summed here: prom-client would look the labels up for each of thousands.
      const values = found.map((each) => each.map(([, value]) => value));
      const sums = sum(new Map(networks.map(({ vni }, at) => [vni, values[at]!])));
      const summed = (found[NETWORKS_SHOWN] ?? []).map(
        ([labels], at): Sample => [{ network: OTHER, ...labels }, sums[at]!],
      );
      return [...named, ...summed];
    };
  }

  #byRemote(samples: (index: number) => readonly Sample[]): Samples {
    const { remotes } = this.#from;
    return function* () {
      for (let index = 1; index <= remotes.count; index++) {
        const remote = index <= REMOTES_SHOWN ? remotes.address(index) : OTHER;
        for (const [labels, value] of samples(index)) yield [{ remote, ...labels }, value];
      }
    };
  }

  #counter(name: string, help: string, samples: Samples): void {
    const metric: Counter = new Counter({
      ...{ name, help, registers: [this.#register] },
      labelNames: LABELS,
      collect: () => this.#filled(metric, samples),
    });
  }

  #gauge(name: string, help: string, samples: Samples): void {
    const metric: Gauge = new Gauge({
      ...{ name, help, registers: [this.#register] },
      labelNames: LABELS,
      collect: () => this.#filled(metric, samples),
    });
  }

  /** One metric after the other, and between two of them who else waits has a turn. */
  #filled(metric: Counter | Gauge, samples: Samples): Promise<void> {
    const filled = this.#turn.then(() => setImmediate()).then(() => fill(metric, samples));
    this.#turn = filled.catch(() => undefined);
    return filled;
  }
}

const LABELS = ["network", "remote", "direction", "reason", "origin", "offload", "worker"].concat([
  ...["vni", "tap", "version", "node", "underlay"],
]);

function fill(metric: Counter | Gauge, samples: Samples): void {
  metric.reset();
  for (const [labels, value] of samples()) metric.inc(labels, value);
}

function shown<Each>(all: readonly Each[]): readonly Each[] {
  return all.slice(0, NETWORKS_SHOWN);
}

function sumOfOthers(values: Values): readonly number[] {
  const others = [...values.values()].slice(NETWORKS_SHOWN);
  return (others[0] ?? []).map((_, at) => others.reduce((sum, each) => sum + each[at]!, 0));
}

/**
 * What networks count while they have no series of their own. One that goes, or gets a series, leaves in the sums what
 * it had counted: of a sum that fell Prometheus would take all that is left for growth. One that is renamed keeps its
 * VNI, and adds nothing twice.
 */
class OtherCounts {
  readonly #sums: number[] = [];
  /** As of the last scrape. */
  #known: Values = new Map();

  add(counted: Values): readonly number[] {
    for (const [vni, counts] of [...counted].slice(NETWORKS_SHOWN)) {
      const known = this.#known.get(vni);
      for (const [at, count] of counts.entries()) {
        const before = known?.[at] ?? 0;
        const isAnew = count < before; // removed, and added again
        this.#sums[at] = (this.#sums[at] ?? 0) + (isAnew ? count : count - before);
      }
    }
    this.#known = counted;
    return this.#sums;
  }
}
