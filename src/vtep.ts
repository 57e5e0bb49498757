/**
 * The composition root: the one file that names concrete devices. From a plan, which is plain data
 * and shared memory and so can be handed to a worker thread, it opens the devices and wires them to
 * a dataplane on the event loop of the thread it is called in.
 */
import { Counters } from "./counters.ts";
import { Dataplane } from "./dataplane.ts";
import { DgramUnderlay } from "./device/dgram-underlay.ts";
import { NativeUnderlay } from "./device/native-underlay.ts";
import { NativeTap } from "./device/tap.ts";
import { type Capabilities, OFFLOADS, type Offloads, type Underlay } from "./device.ts";
import { VtepError } from "./errors.ts";
import { Fdb } from "./fdb.ts";
import { Network } from "./network.ts";
import { Remotes } from "./remotes.ts";
import { HEADER as ETHERNET_HEADER, TAG } from "./wire/ethernet.ts";
import { HEADER as VXLAN_HEADER } from "./wire/vxlan.ts";

export interface NetworkPlan {
  readonly vni: number;
  /** Row in the FDB and in the counters, from 1. */
  readonly index: number;
  readonly tap: string;
  /** Address that the TAP is given. */
  readonly mac: { readonly high: number; readonly low: number };
  readonly mtu: number;
  readonly clampMss: boolean;
  readonly ageSeconds: number;
  /** Indices of remotes: those that get a copy of what is flooded, and those that may send. */
  readonly flood: readonly number[];
  readonly allowed: readonly number[];
}

export interface Plan {
  /** Threads that forward, each with a queue of every TAP and sockets of its own. */
  readonly workers: number;
  readonly fdb: SharedArrayBuffer;
  readonly counters: SharedArrayBuffer;
  readonly remotes: SharedArrayBuffer;
  readonly underlay: "auto" | "native" | "dgram";
  readonly local4: string | undefined;
  readonly local6: string | undefined;
  readonly port: number;
  readonly sourcePorts: readonly [low: number, high: number];
  readonly offloads: Offloads;
  /** Microseconds for which a thread, once it was woken, asks for more before it sleeps. */
  readonly busyPollUs: number;
  readonly strict: boolean;
  readonly flowSeed: number;
  readonly dscp: number | "inherit";
  readonly networks: readonly NetworkPlan[];
}

/** What was opened. */
export interface Opened {
  readonly underlay: "native" | "dgram";
  readonly capabilities: Capabilities;
  /** Why "auto" did not become "native". */
  readonly fallback: string | undefined;
}

/** Seconds on a clock that all threads share and that never goes back. */
export function monotonicSeconds(): number {
  return process.hrtime()[0];
}

export class Vtep {
  readonly opened: Opened;
  readonly #underlay: Underlay;
  readonly #networks: readonly Network[];
  readonly #dataplane: Dataplane;
  readonly #wanted: Offloads;
  #ticking: NodeJS.Timeout | undefined;

  /**
   * Opens the devices of one forwarding thread of a plan, `worker` from 0, which is to be the first;
   * throws VtepError, having closed again what it opened.
   */
  static async open(plan: Plan, worker: number): Promise<Vtep> {
    const remotes = new Remotes(plan.remotes);
    const { underlay, opened } = await openUnderlay(plan, worker, remotes);
    const networks: Network[] = [];
    const whole = underlay.capabilities.cutsSuperFrames;
    const { tso, uso } = plan.offloads;
    const offloads = { ...plan.offloads, tso: tso && whole, uso: uso && whole };
    try {
      for (const network of plan.networks) networks.push(openNetwork(network, plan, offloads));
    } catch (error) {
      for (const { tap } of networks) tap.close();
      underlay.close();
      throw error;
    }
    const counters = new Counters(plan.counters, plan.workers, worker);
    return new Vtep(plan, remotes, counters, opened, underlay, networks);
  }

  private constructor(
    plan: Plan,
    remotes: Remotes,
    counters: Counters,
    opened: Opened,
    underlay: Underlay,
    networks: readonly Network[],
  ) {
    this.opened = opened;
    this.#wanted = plan.offloads;
    this.#underlay = underlay;
    this.#networks = networks;
    this.#dataplane = new Dataplane({
      fdb: new Fdb(plan.fdb),
      remotes,
      counters,
      underlay,
      networks,
      strict: plan.strict,
      flowSeed: plan.flowSeed,
      dscp: plan.dscp,
    });
  }

  /**
   * Begins to forward. `onLost` is told of every device that goes away, `onOffloads` which offloads are
   * in use: at once, and again when the kernel has refused one.
   */
  forward(onLost: (error: VtepError) => void, onOffloads: (inUse: Offloads) => void): void {
    const dataplane = this.#dataplane;
    let told = "";
    const tick = () => {
      dataplane.tick(monotonicSeconds());
      const inUse = this.#offloads();
      if (JSON.stringify(inUse) === told) return;
      told = JSON.stringify(inUse);
      onOffloads(inUse);
    };
    tick();
    this.#ticking = setInterval(tick, 1000);
    this.#underlay.watch({
      onReadable: () => dataplane.decap(),
      onUnsent: (errno) => dataplane.unsent(errno),
      onLost,
    });
    for (const network of this.#networks) {
      network.tap.watch({ onReadable: () => dataplane.encap(network), onLost });
    }
  }

  close(): void {
    clearInterval(this.#ticking);
    for (const { tap } of this.#networks) tap.close();
    this.#underlay.close();
  }

  /** One that any device does without counts as not in use. */
  #offloads(): Offloads {
    const none = { gso: false, gro: false };
    const underlay = this.#underlay instanceof NativeUnderlay ? this.#underlay.offloads() : none;
    const taps = this.#networks.map(({ tap }) => (tap as NativeTap).offloads());
    const used = [this.#wanted, underlay, ...taps] as Partial<Offloads>[];
    const all = OFFLOADS.map((name) => [name, used.every((use) => use[name] ?? true)]);
    return Object.fromEntries(all) as Offloads;
  }
}

function openNetwork(own: NetworkPlan, plan: Plan, offloads: Offloads): Network {
  const { busyPollUs, workers } = plan;
  const tap = new NativeTap({ name: own.tap, offloads, busyPollUs, multiQueue: workers > 1 });
  const clampMtu = own.clampMss ? own.mtu : 0;
  const network = new Network({ ...own, tap, clampMtu });
  for (const remote of own.flood) network.addToFlood(remote);
  for (const remote of own.allowed) network.allow(remote);
  return network;
}

async function openUnderlay(
  plan: Plan,
  worker: number,
  remotes: Remotes,
): Promise<{ underlay: Underlay; opened: Opened }> {
  const options = {
    local4: plan.local4,
    local6: plan.local6,
    port: plan.port,
    remotes,
    sourcePorts: plan.sourcePorts,
    offloads: plan.offloads,
    busyPollUs: plan.busyPollUs,
    sharer: plan.workers > 1 ? worker : -1,
    largestDatagram: largestDatagram(plan.networks),
  };
  let fallback: string | undefined;
  if (plan.underlay !== "dgram") {
    try {
      const underlay = new NativeUnderlay(options);
      const { capabilities } = underlay;
      return { underlay, opened: { underlay: "native", capabilities, fallback } };
    } catch (error) {
      // What another kind of socket would be refused as well is no reason to try one.
      if (plan.underlay === "native" || !(error instanceof VtepError)) throw error;
      if (error.code !== "SYSTEM") throw error;
      fallback = error.message;
    }
  }
  const underlay = await DgramUnderlay.open(options);
  const { capabilities } = underlay;
  return { underlay, opened: { underlay: "dgram", capabilities, fallback } };
}

/** A peer may tag its frames with one VLAN more than ours, and its MTU may be a little larger. */
function largestDatagram(networks: readonly NetworkPlan[]): number {
  const mtu = Math.max(...networks.map((network) => network.mtu));
  return VXLAN_HEADER + ETHERNET_HEADER + 2 * TAG + mtu;
}
