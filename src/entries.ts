/**
 * The FDB in words: its entries with MACs and places as people and files write them, by networks' names.
 *
 * What frames teach, the forwarding threads enter. Here is entered what they cannot know: what the
 * configuration says, what is attached to this host, and what was learned before they began.
 */

import { writeStaticRoutes } from "./control/static.ts";
import { VtepError } from "./errors.ts";
import { CONTROL, type Fdb, type FdbRow, LEARNED, LOT, ORIGIN_NAMES, STATIC } from "./fdb.ts";
import type { Seen } from "./interim.ts";
import type { Live, LiveNetworks } from "./live.ts";
import type { FdbEntryStatus, FdbFilter } from "./operations.ts";
import { LOCAL, type Remotes } from "./remotes.ts";
import type { FdbEntry } from "./schema.ts";
import type { Learned } from "./snapshot.ts";
import { monotonicSeconds, type NetworkPlan } from "./vtep.ts";
import { formatMac, parseMac } from "./wire/ethernet.ts";

type Key = Pick<FdbEntry, "macHigh" | "macLow">;

/** Of an entry that is recalled: network, MAC and destination, among many that no object is made for. */
const KEY_WORDS = 4;

export class Entries {
  readonly #fdb: Fdb;
  readonly #remotes: Remotes;
  readonly #port: number;
  readonly #networks: LiveNetworks;
  readonly #turn: () => Promise<unknown>;
  /** Of what is attached here, as it was told last. */
  #attached: ReadonlyMap<string, Key & { readonly index: number }> = new Map();

  /** `port` is where datagrams to remotes go; `networks` are those of now; `turn` is what others have meanwhile. */
  constructor(
    fdb: Fdb,
    remotes: Remotes,
    port: number,
    networks: LiveNetworks,
    turn: () => Promise<unknown>,
  ) {
    this.#fdb = fdb;
    this.#remotes = remotes;
    this.#port = port;
    this.#networks = networks;
    this.#turn = turn;
  }

  // what is known

  *list(filter: FdbFilter): Generator<readonly FdbEntryStatus[]> {
    const called = this.#networks.called();
    for (const rows of this.#fdb.lots()) yield this.#told(rows, filter, called);
  }

  #told(
    rows: Iterable<FdbRow>,
    { network, origin, ...filter }: FdbFilter,
    called: ReturnType<LiveNetworks["called"]>,
  ): FdbEntryStatus[] {
    const now = monotonicSeconds();
    const isWanted = this.#chosenBy(filter);
    const told: FdbEntryStatus[] = [];
    for (const row of rows) {
      const name = called.get(row.network)?.name;
      if (name === undefined || (network !== undefined && name !== network)) continue;
      if (origin !== undefined && ORIGIN_NAMES[row.origin] !== origin) continue;
      if (isWanted(row)) told.push(this.#describe(row, name, now));
    }
    return told;
  }

  #chosenBy({ mac, remote }: Pick<FdbFilter, "mac" | "remote">): (row: FdbRow) => boolean {
    const key = mac === undefined ? undefined : keyOf(mac);
    return ({ macHigh, macLow, destination }) =>
      (key === undefined || (key.macLow === macLow && key.macHigh === macHigh)) &&
      (remote === undefined || this.#remotes.place(destination) === remote);
  }

  /** So many of each network at most, by its name: those that no frame teaches, and those that were seen last. */
  first(most: number): ReadonlyMap<string, readonly FdbEntryStatus[]> {
    const now = monotonicSeconds();
    const networks = [...this.#networks];
    const rows = new Map(networks.map(({ plan }) => [plan.index, [] as FdbRow[]]));
    for (const row of this.#fixed()) rows.get(row.network)!.push(row);
    const told = networks.map(({ config: { name }, plan }) => {
      const first = rows.get(plan.index)!;
      for (const row of this.#fdb.newest(plan.index)) {
        if (first.length >= most) break;
        first.push(row);
      }
      return [name, first.slice(0, most).map((row) => this.#describe(row, name, now))] as const;
    });
    return new Map(told);
  }

  /**
   * Those that no frame teaches, then what was seen at `since` or later: of each network in turn one, what was seen last
   * first. However many entries there are, no others are looked at.
   */
  *latest(since: number): Generator<FdbRow> {
    yield* this.#fixed();
    let networks = [...this.#networks].map(({ plan }) => this.#fdb.newest(plan.index));
    while (networks.length > 0) {
      const rows = networks.map((network) => network.next().value as FdbRow | undefined);
      const areYoung = rows.map((row) => row !== undefined && row.seenAt >= since);
      for (const [at, row] of rows.entries()) if (areYoung[at]) yield row!;
      networks = networks.filter((_, at) => areYoung[at]);
    }
  }

  /** What is configured, and what is attached where nothing is configured. */
  *#fixed(): Generator<FdbRow> {
    for (const { config, plan } of this.#networks) {
      for (const { macHigh, macLow } of config.fdb) {
        const row = this.#fdb.entry(plan.index, macHigh, macLow);
        if (row?.origin === STATIC) yield row;
      }
    }
    for (const { index, macHigh, macLow } of this.#attached.values()) {
      const row = this.#fdb.entry(index, macHigh, macLow);
      if (row?.origin === CONTROL) yield row;
    }
  }

  /** For who is to `recall` them, in lots as they are listed. */
  *learned(): Generator<Learned> {
    const called = this.#networks.called();
    for (const rows of this.#fdb.lots()) {
      const now = monotonicSeconds();
      const learned = new Map<number, Learned[0]["learned"]>();
      for (const { network, origin, macHigh, macLow, destination, seenAt } of rows) {
        if (origin !== LEARNED) continue;
        const entries = learned.get(network) ?? [];
        entries.push([formatMac(macHigh, macLow), this.#remotes.place(destination), now - seenAt]);
        learned.set(network, entries);
      }
      yield [...learned].flatMap(([index, learned]) => {
        const config = called.get(index);
        return config === undefined ? [] : [{ name: config.name, vni: config.vni, learned }];
      });
    }
  }

  #describe(row: FdbRow, network: string, now: number): FdbEntryStatus {
    return {
      network,
      mac: formatMac(row.macHigh, row.macLow),
      destination: this.#remotes.place(row.destination),
      origin: ORIGIN_NAMES[row.origin],
      ...(row.origin === LEARNED && { ageSeconds: now - row.seenAt }),
      moves: row.moves,
    };
  }

  // what is entered

  /** The FDB's part of a network's configuration. */
  configure({ config, plan }: Live): void {
    writeStaticRoutes(config, {
      addToFlood: () => undefined,
      setStatic: (high, low, address) => {
        this.#fdb.set(plan.index, high, low, this.#remotes.add(address, this.#port), STATIC);
      },
    });
    this.#fdb.setLimit(plan.index, config.fdbLimit);
  }

  /** What is attached here, all of it: nobody else can have its MACs. */
  attach(attached: readonly { readonly network: string; readonly mac: string }[]): void {
    const before = this.#attached;
    this.#attached = new Map(
      attached.map(({ network, mac }) => {
        const { index } = this.#networks.named(network).plan;
        return [`${index} ${mac}`, { index, ...keyOf(mac) }];
      }),
    );
    for (const [key, { index, macHigh, macLow }] of before) {
      if (!this.#attached.has(key)) this.#fdb.delete(index, macHigh, macLow, CONTROL);
    }
    for (const { index, macHigh, macLow } of this.#attached.values()) {
      this.#fdb.set(index, macHigh, macLow, LOCAL, CONTROL);
    }
  }

  /**
   * What was learned before a restart, while others have turns and frames may be forwarded: what they teach meanwhile is
   * newer. What was seen last comes first, and each as older than all that is there, as ageing wants it.
   */
  async recall(lots: Iterable<Learned>): Promise<void> {
    const bySecond = await this.#bySecond(lots);
    let entered = 0;
    for (const seenAt of Float64Array.from(bySecond.keys()).sort().reverse()) {
      const keys = bySecond.get(seenAt)!;
      for (let at = 0; at < keys.length; at += KEY_WORDS) {
        this.#fdb.recall(keys[at]!, keys[at + 1]!, keys[at + 2]!, keys[at + 3]!, seenAt);
        if (++entered % LOT === 0) await this.#turn();
      }
    }
  }

  /** What of it is young enough and can be so still, by the second in which it was seen last: sorted with no comparison. */
  async #bySecond(lots: Iterable<Learned>): Promise<ReadonlyMap<number, readonly number[]>> {
    const networks = new Map(
      [...this.#networks].map(({ config, plan }) => {
        return [`${plan.vni} ${config.name}`, { ...plan, known: this.#known(plan) }];
      }),
    );
    const bySecond = new Map<number, number[]>();
    let looked = 0;
    for (const lot of lots) {
      const now = monotonicSeconds();
      for (const { name, vni, learned } of lot) {
        looked += learned.length;
        const network = networks.get(`${vni} ${name}`);
        if (network === undefined) continue;
        const { index, known, ageSeconds } = network;
        for (const [text, to, age] of learned) {
          const destination = known.get(to);
          const mac = parseMac(text);
          const isYoung = ageSeconds === 0 || age <= ageSeconds;
          if (destination === undefined || mac === undefined || !isYoung) continue;
          const keys = bySecond.get(now - age);
          if (keys === undefined) bySecond.set(now - age, [index, mac.high, mac.low, destination]);
          else keys.push(index, mac.high, mac.low, destination);
        }
      }
      if (looked < LOT) continue; // so few are known before anything is forwarded
      looked = 0;
      await this.#turn();
    }
    return bySecond;
  }

  /** What was seen during a restart, by VNI, which is newer than what was learned before. */
  catchUp(seen: ReadonlyMap<number, readonly Seen[]>): void {
    for (const { plan } of this.#networks) {
      const stations = seen.get(plan.vni);
      if (stations === undefined) continue;
      const known = this.#known(plan);
      for (const { macHigh, macLow, address, seenAt } of stations) {
        const destination = known.get(address);
        if (destination !== undefined) {
          this.#fdb.learn(plan.index, macHigh, macLow, destination, seenAt);
        }
      }
    }
  }

  /** Where stations of a network may be, by the names of snapshots. */
  #known({ flood, allowed }: NetworkPlan): ReadonlyMap<string, number> {
    const remotes = [...flood, ...allowed];
    return new Map([
      ["local", LOCAL],
      ...remotes.map((remote) => [this.#remotes.address(remote), remote] as const),
    ]);
  }

  // what is forgotten

  /**
   * What networks' configurations no longer have: static entries, and what was learned behind other remotes. Where they
   * have all that they had, nothing is looked through.
   */
  async restrict(
    changes: readonly { readonly before: Live; readonly after: Live }[],
  ): Promise<void> {
    const rules = new Map<number, ReturnType<typeof ruleOf>>();
    for (const { before, after } of changes) {
      const [had, has] = [ruleOf(before), ruleOf(after)];
      const isLess = !isWithin(had.may, has.may) || !isWithin(had.kept, has.kept);
      if (isLess) rules.set(after.plan.index, has);
    }
    if (rules.size === 0) return;
    await this.#clear(({ network, origin, macHigh, macLow, destination }) => {
      const rule = rules.get(network);
      if (rule === undefined) return false;
      if (origin === STATIC) return !rule.kept.has(numberOf({ macHigh, macLow }));
      return origin === LEARNED && !rule.may.has(destination);
    });
  }

  /** What was learned of a MAC; returns whether anything was. */
  unlearn({ plan }: Live, { macHigh, macLow }: Key): boolean {
    return this.#fdb.delete(plan.index, macHigh, macLow, LEARNED);
  }

  /** What was learned, as far as it is asked for; returns how much that was. Throws VtepError NOT_FOUND. */
  async flush({ network, ...filter }: FdbFilter): Promise<number> {
    const index = network === undefined ? undefined : this.#networks.named(network).plan.index;
    const isWanted = this.#chosenBy(filter);
    return this.#clear(
      (row) =>
        row.origin === LEARNED && (index === undefined || row.network === index) && isWanted(row),
    );
  }

  /** All of these networks'. */
  async clear(networks: readonly Live[]): Promise<void> {
    const indices = new Set(networks.map(({ plan }) => plan.index));
    await this.#clear(({ network }) => indices.has(network));
  }

  /** There may be two million to be looked through: whoever else waits has a turn now and then. */
  async #clear(chosen: (row: FdbRow) => boolean): Promise<number> {
    let removed = 0;
    for (const rows of this.#fdb.lots()) {
      removed += this.#fdb.clear(chosen, rows);
      await this.#turn();
    }
    return removed;
  }
}

/** Where stations of a network may be, and MACs that it has static entries of. */
function ruleOf({ config, plan }: Live): { may: ReadonlySet<number>; kept: ReadonlySet<number> } {
  const may = new Set([LOCAL, ...plan.allowed, ...plan.flood]);
  return { may, kept: new Set(config.fdb.map(numberOf)) };
}

function isWithin(some: ReadonlySet<number>, all: ReadonlySet<number>): boolean {
  return [...some].every((each) => all.has(each));
}

function numberOf({ macHigh, macLow }: Key): number {
  return macHigh * 2 ** 32 + (macLow >>> 0);
}

/** Throws VtepError USAGE. */
export function keyOf(text: string): Key {
  const { high, low } = macOf(text);
  return { macHigh: high, macLow: low };
}

/** Throws VtepError USAGE. */
export function macOf(text: string): { high: number; low: number } {
  const mac = parseMac(text);
  if (mac !== undefined) return mac;
  throw new VtepError("USAGE", `${JSON.stringify(text)} is not a MAC address (aa:bb:cc:dd:ee:ff)`);
}
