/**
 * The networks of a running agent by name: which there are now, which it is to have and cannot, and what the
 * configuration of one becomes. Here they are only known: the agent makes them and takes them out.
 */
import { stableMac } from "./attachments.ts";
import type { NetworkConfig } from "./config.ts";
import { writeStaticRoutes } from "./control/static.ts";
import { networkGone, VtepError } from "./errors.ts";
import { NETWORKS } from "./fdb.ts";
import { GATEWAY_MAC } from "./gateways.ts";
import type { TapLink } from "./links.ts";
import type { Remotes } from "./remotes.ts";
import type { NetworkPlan, Plan } from "./vtep.ts";
import { formatMac, parseMac } from "./wire/ethernet.ts";

/**
 * Of so many networks a thread that is the only one has more queues of the TAP, so many each: no flow is to wait behind
 * the one that streams, but each takes a descriptor, and memory of the kernel's.
 */
const NETWORKS_WITH_QUEUES = 16;
const FURTHER_QUEUES = 15;

/** A network that is forwarded. */
export interface Live {
  readonly config: NetworkConfig;
  readonly plan: NetworkPlan;
  readonly link: TapLink;
  /** The TAP that the threads have open: the same object for as long as that is, whatever else changes. */
  readonly opened: object;
}

/** A network that is to be, and cannot: a TAP that is not to be had again, say. */
interface Gone {
  readonly config: NetworkConfig;
  readonly reason: string;
}

export class LiveNetworks implements Iterable<Live> {
  readonly #byName = new Map<string, Live>();
  readonly #gone = new Map<string, Gone>();
  /** Rows that are in use. */
  readonly #indices = new Set<number>();
  readonly #remotes: Remotes;
  readonly #endpoint: Pick<Plan, "local4" | "local6" | "port">;
  readonly #furtherQueues: number;

  /** `hasQueues`: whether there are descriptors and time for further queues of TAPs. */
  constructor(
    endpoint: Pick<Plan, "local4" | "local6" | "port">,
    remotes: Remotes,
    hasQueues: boolean,
  ) {
    this.#endpoint = endpoint;
    this.#remotes = remotes;
    this.#furtherQueues = hasQueues ? FURTHER_QUEUES : 0;
  }

  [Symbol.iterator](): Iterator<Live> {
    return this.#byName.values();
  }

  has(name: string): boolean {
    return this.#byName.has(name);
  }

  get(name: string): Live | undefined {
    return this.#byName.get(name);
  }

  /** Throws VtepError NOT_FOUND, and LOST for one that is gone. */
  named(name: string): Live {
    const live = this.#byName.get(name);
    if (live !== undefined) return live;
    const gone = this.#gone.get(name);
    if (gone !== undefined) throw networkGone(name, gone.reason);
    const known = [...this.#byName.keys()].join(", ");
    throw new VtepError("NOT_FOUND", `there is no network ${name}: known are ${known || "none"}`);
  }

  /** One that is being tried again is among both meanwhile. */
  gone(): Gone[] {
    return [...this.#gone.values()];
  }

  /** Of one that cannot be, why. */
  noteGone(config: NetworkConfig, reason: string): void {
    this.#gone.set(config.name, { config, reason });
  }

  /** Those that are there again, or that nobody wants any more. */
  missNoMore(names: readonly string[]): void {
    for (const name of names) this.#gone.delete(name);
  }

  /** Those of these that nobody can use, but of which it is not known why, have this reason. */
  noteMissing(networks: readonly NetworkConfig[], reason: string): void {
    for (const config of networks) {
      const { name } = config;
      if (!this.#byName.has(name) && !this.#gone.has(name)) this.noteGone(config, reason);
    }
  }

  configs(): NetworkConfig[] {
    return [...this].map(({ config }) => config);
  }

  /** Also of those that are gone, whose bridges may be there still. */
  wanted(): NetworkConfig[] {
    const missed = this.gone().map(({ config }) => config);
    return [...this.configs(), ...missed.filter(({ name }) => !this.#byName.has(name))];
  }

  plans(): NetworkPlan[] {
    return [...this].map(({ plan }) => plan);
  }

  /** Each with its row in the FDB and the counters; where a plan says more than what is configured, as planned. */
  rows() {
    return [...this].map(({ config, plan }) => ({ ...config, ...plan }));
  }

  /** What each is called, by its row: for who asks many times a second. */
  called() {
    return new Map(
      [...this].map(({ config: { name }, plan: { vni, index } }) => [index, { name, vni }]),
    );
  }

  taps(): Set<string> {
    return new Set([...this].map(({ plan }) => plan.tap));
  }

  /** Of the TAPs, by their names. */
  mtus(): Map<string, number> {
    return new Map([...this].map(({ plan }) => [plan.tap, plan.mtu]));
  }

  /** A row that no network has. Throws VtepError CONFLICT where each has one. */
  freeIndex(): number {
    for (let index = 1; index < NETWORKS; index++) if (!this.#indices.has(index)) return index;
    throw new VtepError(
      "CONFLICT",
      `there are ${NETWORKS - 1} networks, and no more can be had: remove one`,
    );
  }

  /** A network as it is to be, its remotes entered; neither the FDB has heard of it, nor is it one of these. */
  planned(config: NetworkConfig, index: number, mtu: number): Live {
    const { local4, local6, port } = this.#endpoint;
    const flood = new Set<number>();
    const allowed = new Set<number>();
    writeStaticRoutes(config, {
      addToFlood: (address) => flood.add(this.#remotes.add(address, port)),
      setStatic: (_high, _low, address) => allowed.add(this.#remotes.add(address, port)),
    });
    const { vni, tap, bridge, vlan = 0, clampMss, ageSeconds } = config;
    const hasGateway = config.gateway.length > 0;
    // The TAP's address stays the same over restarts of this VTEP. A gateway's is nobody else's, so that
    // its frames are known by it.
    const mac = hasGateway ? parseMac(GATEWAY_MAC)! : stableMac(`${local4 ?? local6} ${vni}`);
    const link = { name: tap, mac: formatMac(mac.high, mac.low), mtu, bridge };
    const remotes = { flood: [...flood], allowed: [...allowed] };
    const furtherQueues = index <= NETWORKS_WITH_QUEUES ? this.#furtherQueues : 0;
    const plan = {
      vni,
      index,
      tap,
      furtherQueues,
      mac,
      hasGateway,
      vlan,
      mtu,
      clampMss,
      ageSeconds,
      ...remotes,
    };
    return { config, link, plan, opened: {} };
  }

  /** From now on it is one of these, in place of another of its name. */
  put(live: Live): void {
    this.#byName.set(live.config.name, live);
    this.#indices.add(live.plan.index);
  }

  remove(name: string): void {
    const live = this.#byName.get(name);
    if (live !== undefined) this.#indices.delete(live.plan.index);
    this.#byName.delete(name);
  }

  /**
   * A network that has only another name is the same network. Nothing but that is changed; returns the
   * new names.
   */
  rename(networks: readonly NetworkConfig[]): string[] {
    const renamed: string[] = [];
    const names = new Set(networks.map(({ name }) => name));
    for (const [name, live] of [...this.#byName]) {
      if (names.has(name)) continue;
      const same = networks.find((network) => !isAnew(live.config, network));
      if (same === undefined || this.has(same.name)) continue;
      this.remove(name);
      this.put({ ...live, config: { ...live.config, name: same.name } });
      renamed.push(same.name);
    }
    return renamed;
  }
}

/** Whether a network has to be removed and added for what is different. */
export function isAnew(before: NetworkConfig, after: NetworkConfig): boolean {
  const gateways = [before, after].map(({ gateway }) => gateway.length > 0); // they have another MAC
  return before.vni !== after.vni || before.tap !== after.tap || gateways[0] !== gateways[1];
}
