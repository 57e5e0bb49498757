/**
 * The composition root: the one file that names concrete devices. From a plan, which is plain data
 * and shared memory and so can be handed to a worker thread, it opens the devices and wires them to
 * a dataplane on the event loop of the thread it is called in.
 */
import { Counters, Traffic, Work } from "./counters.ts";
import { Dataplane } from "./dataplane.ts";
import { DgramUnderlay } from "./device/dgram-underlay.ts";
import { FAN, NativeUnderlay } from "./device/native-underlay.ts";
import {
  beginPace,
  demotions,
  type FlowTable,
  flowTable,
  NativeTap,
  NativeTaps,
  secondsAsleep,
  steeringFault,
} from "./device/tap.ts";
import { type Capabilities, OFFLOADS, type Offloads, type Underlay } from "./device.ts";
import { remedied, VtepError } from "./errors.ts";
import { Fdb } from "./fdb.ts";
import { Heartbeats } from "./heartbeats.ts";
import { Mirror, type MirrorFilter } from "./mirror.ts";
import { Network, type Settings } from "./network.ts";
import { Remotes } from "./remotes.ts";
import { HEADER as ETHERNET_HEADER, TAG } from "./wire/ethernet.ts";
import { HEADER as VXLAN_HEADER } from "./wire/vxlan.ts";

export interface NetworkPlan {
  readonly vni: number;
  /** Row in the FDB and in the counters, from 1; a network keeps it for as long as it is. */
  readonly index: number;
  readonly tap: string;
  /** `NativeTapOptions`. */
  readonly furtherQueues: number;
  /** Address that the TAP is given. */
  readonly mac: { readonly high: number; readonly low: number };
  /** Whether that is every host's gateway's too. */
  readonly hasGateway: boolean;
  /** The VLAN whose tag its frames have at the TAP; 0: none. */
  readonly vlan: number;
  readonly mtu: number;
  readonly clampMss: boolean;
  readonly ageSeconds: number;
  /** Indices of remotes: those that get a copy of what is flooded, and those that may send. */
  readonly flood: readonly number[];
  readonly allowed: readonly number[];
}

export interface Plan {
  /** Threads that forward, each with queues of every TAP and sockets of its own. */
  readonly workers: number;
  readonly fdb: SharedArrayBuffer;
  readonly counters: SharedArrayBuffer;
  readonly traffic: SharedArrayBuffer;
  readonly heartbeats: SharedArrayBuffer;
  readonly remotes: SharedArrayBuffer;
  readonly underlay: "auto" | "native" | "dgram";
  readonly local4: string | undefined;
  readonly local6: string | undefined;
  readonly port: number;
  readonly sourcePorts: readonly [low: number, high: number];
  /** Whether datagrams leave whole, or may be fragmented on the way. */
  readonly df: "set" | "unset";
  readonly offloads: Offloads;
  /** Microseconds for which a thread, once it was woken, asks for more before it sleeps. */
  readonly busyPollUs: number;
  /** Whether a thread runs before other processes while it carries streams, if it may. */
  readonly paced: boolean;
  readonly strict: boolean;
  readonly flowSeed: number;
  readonly dscp: number | "inherit";
  /** Descriptors that were kept open over a restart, by what `descriptors` calls them. */
  readonly kept: Readonly<Record<string, number>>;
  /** Whether no device is opened in place of one that was kept and is of no use. */
  readonly keptOnly: boolean;
  /** What the sockets are opened for: where they take no trains no network's MTU is ever larger. */
  readonly largestMtu: number;
  /** Those to begin with. */
  readonly networks: readonly NetworkPlan[];
}

/** What was opened. */
export interface Opened {
  readonly underlay: "native" | "dgram";
  readonly capabilities: Capabilities;
  /** Why "auto" did not become "native". */
  readonly fallback: string | undefined;
  /**
   * Why a flow from a TAP may change its thread, and a few of its frames their order, as it is answered; or, of a
   * single thread, why TAPs have no further queues.
   */
  readonly unsteered: string | undefined;
}

/** What frames are to be shown to whom. */
export interface Mirroring {
  readonly ring: SharedArrayBuffer;
  readonly filter: MirrorFilter;
}

/** Seconds on a clock that all threads share and that never goes back. */
export function monotonicSeconds(): number {
  return process.hrtime()[0];
}

/**
 * Lets the calling thread, one of the plan's, run before other processes while it carries streams. Returns why it
 * may not; undefined: it does, or is not to.
 */
export function pace({ paced }: Plan): string | undefined {
  return paced ? beginPace() : undefined;
}

/** Hears of a device that went away; `index` is that of the network, if it was a network's TAP. */
type OnLost = (error: VtepError, index?: number) => void;

/** How many source ports a thread has of each family. */
export const SOURCE_PORTS = FAN;

/** After which no queue has what was sent before the last: of small frames one turn takes a queue's 1,000. */
const LAST_TURNS = 64;
/** How often a thread does what is not done per frame. */
const TICK_MS = 1000;

export class Vtep {
  readonly opened: Opened;
  readonly #plan: Plan;
  readonly #worker: number;
  /** Descriptors that nobody has taken yet. */
  readonly #kept: Record<string, number>;
  readonly #underlay: Underlay;
  readonly #remotes: Remotes;
  readonly #flows: FlowTable;
  readonly #taps: NativeTaps;
  /** By index. */
  readonly #networks = new Map<number, { readonly network: Network; readonly tap: NativeTap }>();
  readonly #counters: Counters;
  readonly #dataplane: Dataplane;
  readonly #beat: (now: number) => void;
  #ticking: NodeJS.Timeout | undefined;
  /** Of all TAPs, as of so many demotions: asking thousands each second would hold frames up for milliseconds. */
  #tapOffloads: Partial<Offloads> = {};
  #demotions: number | undefined;
  #onLost: OnLost | undefined;

  /**
   * Opens the devices of one forwarding thread of a plan, `worker` from 0, which is to be the first;
   * throws VtepError, having closed again what it opened. What it uses of `kept`, descriptors as the plan has them,
   * it takes out of there, and closes too.
   */
  static async open(plan: Plan, worker: number, kept = { ...plan.kept }): Promise<Vtep> {
    const remotes = new Remotes(plan.remotes);
    const fdb = new Fdb(plan.fdb);
    const flows = flowTable(fdb.words);
    const taps = new NativeTaps(plan.busyPollUs, flows);
    let vtep: Vtep | undefined;
    try {
      const { underlay, opened } = await openUnderlay(plan, worker, remotes, flows, kept);
      vtep = new Vtep(plan, worker, fdb, remotes, opened, flows, taps, underlay, kept);
      for (const network of plan.networks) vtep.add(network);
      return vtep;
    } catch (error) {
      (vtep ?? taps).close();
      throw error;
    }
  }

  private constructor(
    plan: Plan,
    worker: number,
    fdb: Fdb,
    remotes: Remotes,
    opened: Opened,
    flows: FlowTable,
    taps: NativeTaps,
    underlay: Underlay,
    kept: Record<string, number>,
  ) {
    this.opened = opened;
    this.#plan = plan;
    this.#worker = worker;
    this.#kept = kept;
    const heartbeats = new Heartbeats(plan.heartbeats);
    this.#beat = (now) => {
      const { active } = performance.eventLoopUtilization();
      heartbeats.beat(worker, now, active / 1000 - secondsAsleep());
    };
    this.#underlay = underlay;
    this.#counters = new Counters(plan.counters, plan.workers, worker);
    this.#remotes = remotes;
    this.#flows = flows;
    this.#taps = taps;
    this.#dataplane = new Dataplane({
      fdb,
      remotes,
      counters: this.#counters,
      traffic: new Traffic(plan.traffic, plan.workers, worker),
      taps: this.#taps,
      underlay,
      strict: plan.strict,
      flowSeed: plan.flowSeed,
      dscp: plan.dscp,
    });
  }

  /**
   * Begins to forward. `onLost` is told of every device that goes away, and of a TAP whose network it was,
   * `onOffloads` which offloads are in use: at once, and again when the kernel has refused one.
   */
  forward(onLost: OnLost, onOffloads: (inUse: Offloads) => void): void {
    const dataplane = this.#dataplane;
    let told = "";
    const tick = () => {
      this.#settle(); // or who has just spoken would age
      const now = monotonicSeconds();
      dataplane.tick(now);
      this.#beat(now);
      const inUse = this.#offloads();
      if (JSON.stringify(inUse) === told) return;
      told = JSON.stringify(inUse);
      onOffloads(inUse);
    };
    tick();
    let last = performance.now();
    this.#ticking = setInterval(() => {
      const now = performance.now();
      this.#counters.late(Math.max(0, now - last - TICK_MS) / 1000);
      last = now;
      tick();
    }, TICK_MS);
    // After a whole turn the event loop might well ask for another one of the same way.
    this.#underlay.watch({
      onReadable: () => {
        if (dataplane.decap()) dataplane.encap();
      },
      onUnsent: (errno) => dataplane.unsent(errno),
      onLost: (error) => onLost(error),
    });
    this.#onLost = onLost;
    this.#taps.watch(() => {
      if (dataplane.encap()) dataplane.decap();
    });
  }

  /** Opens the queues of a network's TAP and joins it to what is forwarded. Throws VtepError. */
  add(own: NetworkPlan): void {
    const { offloads, workers, keptOnly } = this.#plan;
    const whole = this.opened.capabilities.cutsSuperFrames;
    const { tso, uso } = offloads;
    const tap = new NativeTap({
      name: own.tap,
      offloads: { ...offloads, tso: tso && whole, uso: uso && whole },
      multiQueue: workers > 1,
      furtherQueues: keptOnly ? 0 : own.furtherQueues,
      fd: taken(this.#kept, tapDescriptor(own.tap, this.#worker)),
      keptOnly,
    });
    try {
      this.#taps.add(own.index, tap, (error) => this.#onLost?.(error, own.index));
    } catch (error) {
      tap.close();
      throw error;
    }
    const network = new Network(own);
    network.apply(settingsOf(own));
    this.#networks.set(own.index, { network, tap });
    this.#demotions = undefined;
    this.#dataplane.add(network);
  }

  /** How many bursts of frames this thread has taken, either way. */
  bursts(): number {
    return this.#counters.own(0, Work.encapBatches) + this.#counters.own(0, Work.decapBatches);
  }

  /** Gives a network other settings, from the next burst on. */
  change(own: NetworkPlan): void {
    this.#settle();
    this.#networks.get(own.index)?.network.apply(settingsOf(own));
    this.#flows.forget();
  }

  /** Forwards no more of a network; its TAP stays open, so that it can be deleted in a moment. */
  retire(index: number): void {
    const open = this.#networks.get(index);
    if (open === undefined) return;
    this.#settle();
    this.#taps.remove(index);
    this.#dataplane.remove(open.network);
  }

  /** Closes the TAP of a network that was retired. */
  discard(index: number): void {
    this.#networks.get(index)?.tap.close();
    this.#networks.delete(index);
    this.#demotions = undefined;
  }

  /** The descriptors without which frames would be lost while nobody runs, by name. */
  descriptors(): Record<string, number> {
    const taps = [...this.#networks.values()].map(({ tap }) => {
      return [tapDescriptor(tap.name, this.#worker), tap.fd] as const;
    });
    const fds = this.#underlay instanceof NativeUnderlay ? this.#underlay.fds : {};
    const sockets = ([4, 6] as const).flatMap((family) => {
      const fd = fds[family];
      return fd === undefined ? [] : [[socketDescriptor(family, this.#worker), fd] as const];
    });
    return Object.fromEntries([...taps, ...sockets]);
  }

  /** Those of one network, if there is any. */
  descriptorsOf(index: number): Record<string, number> {
    const tap = this.#networks.get(index)?.tap;
    return tap === undefined ? {} : { [tapDescriptor(tap.name, this.#worker)]: tap.fd };
  }

  /** Shows frames from now on, or to nobody. */
  mirror(mirroring: Mirroring | undefined): void {
    this.#settle();
    this.#flows.forget();
    if (mirroring === undefined) return this.#dataplane.mirrorTo(undefined);
    const { ring, filter } = mirroring;
    // The wall clock as of now: one that is set meanwhile would put frames out of order.
    const began = Date.now() - performance.now();
    const clock = () => began + performance.now();
    this.#dataplane.mirrorTo(new Mirror(ring, filter, this.#remotes, clock));
  }

  /** After a turn either way, what is for the TAPs waits in descriptors that are kept. */
  close(): void {
    this.#settle();
    if (this.#ticking !== undefined) {
      this.#taps.gather();
      for (let turn = 0; turn < LAST_TURNS && this.#dataplane.encap(); turn++);
    }
    clearInterval(this.#ticking);
    this.#taps.close();
    for (const { tap } of this.#networks.values()) tap.close();
    this.#underlay.close();
  }

  /** What the devices have done by themselves is counted by the settings they did it by; whatever else waits has a turn. */
  #settle(): void {
    if (this.#ticking === undefined) return; // it does not forward yet
    this.#dataplane.decap();
    this.#dataplane.encap();
  }

  #offloads(): Offloads {
    const none = { gso: false, gro: false };
    const underlay = this.#underlay instanceof NativeUnderlay ? this.#underlay.offloads() : none;
    if (this.#demotions !== demotions()) {
      this.#demotions = demotions();
      this.#tapOffloads = common([...this.#networks.values()].map(({ tap }) => tap.offloads()));
    }
    return common([this.#plan.offloads, underlay, this.#tapOffloads]);
  }
}

/** One that any device does without counts as not in use. */
function common(used: readonly Partial<Offloads>[]): Offloads {
  const all = OFFLOADS.map((name) => [name, used.every((use) => use[name] ?? true)]);
  return Object.fromEntries(all) as Offloads;
}

/** A descriptor, which is the caller's from now on; undefined where there is none. */
function taken(kept: Record<string, number>, name: string): number | undefined {
  const fd = kept[name];
  delete kept[name];
  return fd;
}

export function tapDescriptor(tap: string, worker: number): string {
  return `tap-${worker}-${tap}`;
}

export function socketDescriptor(family: 4 | 6, worker: number): string {
  return `udp${family}-${worker}`;
}

function settingsOf({ vlan, clampMss, mtu, ...plan }: NetworkPlan): Settings {
  const { ageSeconds, flood, allowed } = plan;
  return { vlan, clampMtu: clampMss ? mtu : 0, ageSeconds, flood, allowed };
}

/** Sending sockets of a thread, so that the first ones of a narrow range leave the others theirs. */
function fanOf({ sourcePorts: [low, high], port, workers }: Plan): number {
  const ports = high - low + 1 - (low <= port && port <= high ? 1 : 0);
  return Math.max(1, Math.min(FAN, Math.floor(ports / workers)));
}

async function openUnderlay(
  plan: Plan,
  worker: number,
  remotes: Remotes,
  flows: FlowTable,
  kept: Record<string, number>,
): Promise<{ underlay: Underlay; opened: Opened }> {
  const options = {
    local4: plan.local4,
    local6: plan.local6,
    port: plan.port,
    remotes,
    flows,
    sourcePorts: plan.sourcePorts,
    fan: fanOf(plan),
    df: plan.df,
    offloads: plan.offloads,
    busyPollUs: plan.busyPollUs,
    sharer: plan.workers > 1 ? worker : -1,
    kept: (family: 4 | 6) => taken(kept, socketDescriptor(family, worker)),
    keptOnly: plan.keptOnly,
    largestDatagram: largestDatagram(plan.largestMtu),
  };
  let fallback: string | undefined;
  if (plan.underlay !== "dgram") {
    try {
      const underlay = new NativeUnderlay(options);
      const { capabilities } = underlay;
      const steers =
        plan.workers > 1 || plan.networks.some(({ furtherQueues }) => furtherQueues > 0);
      const unsteered = steers ? steeringFault() : undefined;
      return { underlay, opened: { underlay: "native", capabilities, fallback, unsteered } };
    } catch (error) {
      // What another kind of socket would be refused as well is no reason to try one.
      if (plan.underlay === "native" || plan.keptOnly) throw error;
      if (worker > 0) throw error; // the port is the first one's already, and shared with none of Node's sockets
      if (!(error instanceof VtepError) || error.code !== "SYSTEM") throw error;
      fallback = remedied(error.message);
    }
  }
  const underlay = await DgramUnderlay.open(options);
  const { capabilities } = underlay;
  return { underlay, opened: { underlay: "dgram", capabilities, fallback, unsteered: undefined } };
}

function largestDatagram(mtu: number): number {
  return VXLAN_HEADER + largestFrame(mtu);
}

/** A peer may tag its frames with one VLAN more than ours, and its MTU may be a little larger. */
export function largestFrame(mtu: number): number {
  return ETHERNET_HEADER + 2 * TAG + mtu;
}
