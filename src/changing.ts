/**
 * Changes to the networks of a running agent, while the others go on.
 *
 * Each is whole or not at all: what the host would refuse is asked before (`survey`), and steps that were
 * done when one fails are taken back.
 */
import { isDeepStrictEqual } from "node:util";
import type { Logger } from "pino";
import type { Bridges } from "./bridges.ts";
import { type Config, collisions, type NetworkConfig } from "./config.ts";
import type { Containers } from "./containers.ts";
import type { Entries } from "./entries.ts";
import { VtepError } from "./errors.ts";
import { linksByName } from "./host.ts";
import type { Notes } from "./keeping.ts";
import { adjustTaps, bringUp, hasLeft, removeTaps, type TapLink, unqueue } from "./links.ts";
import { isAnew, type Live, type LiveNetworks } from "./live.ts";
import { type Survey, survey } from "./survey.ts";
import type { Telling } from "./telling.ts";
import type { Plan } from "./vtep.ts";
import type { Workers } from "./workers.ts";

/** What was done, last first, and how to take it back. */
export class Undo {
  readonly #steps: (() => void | Promise<void>)[] = [];

  push(step: () => void | Promise<void>): void {
    this.#steps.push(step);
  }

  async all(onError: (error: Error) => void): Promise<void> {
    for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop()) {
      try {
        await step();
      } catch (error) {
        onError(error as Error);
      }
    }
  }
}

/** A network as it is to be. */
interface Wanted {
  readonly config: NetworkConfig;
  readonly mtu: number;
}

interface Change {
  readonly before: Live;
  readonly after: Live;
}

/** What a change concerns. */
interface Parts {
  readonly plan: Plan;
  readonly networks: LiveNetworks;
  readonly entries: Entries;
  readonly workers: Workers;
  readonly containers: Containers;
  readonly bridges: Bridges;
  readonly notes: Notes;
  readonly telling: Telling;
}

export class Changing {
  readonly #of: Parts;
  readonly #log: Logger;

  constructor(of: Parts, log: Logger) {
    this.#of = of;
    this.#log = log;
  }

  /**
   * Makes networks be as `config` gives them, and those of these names not be, also where they are gone; all of it, or
   * nothing and throws VtepError. Others stay as they are.
   */
  async apply(config: Config, unwanted: readonly string[]): Promise<void> {
    const { networks } = config;
    const { networks: live, bridges, containers, notes, plan, telling } = this.#of;
    const found =
      networks.length === 0
        ? undefined
        : this.#bounded(networks, await survey(config, live.mtus(), plan));
    this.#check(networks, unwanted, found);
    const removed = unwanted.filter((name) => live.has(name));
    notes.withdrawPlan(); // until it is as it says again
    const undo = new Undo();
    undo.push(async () => containers.route(await linksByName())); // for the networks as they were
    const missed = live.gone();
    undo.push(() => {
      for (const { config, reason } of missed) live.noteGone(config, reason);
    });
    live.missNoMore(unwanted);
    try {
      // All that are made anew go before any comes: it may want the VNI or the TAP of another.
      const anew = networks.flatMap((network) => {
        const before = live.get(network.name);
        return before !== undefined && isAnew(before.config, network) ? [before] : [];
      });
      await this.#remove([...removed.map((name) => live.named(name)), ...anew], undo);
      const missing = found?.missingBridges ?? [];
      await bridges.make(missing);
      const wanted = networks.map((config, at) => ({ config, mtu: found!.mtus[at]! }));
      const isThere = ({ config }: Wanted) => live.has(config.name);
      const [there, fresh] = [wanted.filter(isThere), wanted.filter((each) => !isThere(each))];
      const relinked = await this.#alter(there, found?.links ?? new Map(), undo);
      await this.#add(fresh, undo);
      // Networks made anew have forgotten what is attached. Thousands of links take longer to list than all of this.
      const areSame = removed.length + missing.length + fresh.length === 0 && !relinked;
      const links = areSame ? found?.links : undefined;
      await containers.route(links ?? (await linksByName()));
      live.missNoMore(networks.map(({ name }) => name));
    } catch (error) {
      await undo.all(this.#tellOfFault);
      throw error;
    } finally {
      await bridges.removeIdle(new Set(live.wanted().map(({ bridge }) => bridge)));
      notes.leavePlan();
    }
    if (found !== undefined) telling.noteAstray(found.astray);
  }

  /**
   * Makes a TAP anew that somebody deleted, and gives its network up to the others. Returns whether it is there:
   * its network may have been removed meanwhile, or the TAP deleted again. Throws VtepError: then the network is gone.
   */
  async renew(opened: Live["opened"]): Promise<boolean> {
    const { bridges, networks, containers } = this.#of;
    const now = [...networks].find((live) => live.opened === opened);
    if (now === undefined) return false;
    await this.#takeOut([now]);
    const { bridge } = now.config;
    if (bridge !== undefined && !(await linksByName()).has(bridge)) await bridges.make([bridge]);
    const anew = await this.#openTap({ config: now.config, mtu: now.plan.mtu });
    try {
      await this.#setUp([anew.link]);
      await containers.route(await linksByName()); // its bridge may be a new one
    } catch (error) {
      if (!(await linksByName()).has(anew.link.name)) return false; // the threads tell of that, too
      await this.#takeOut([anew]);
      throw error;
    }
    return true;
  }

  /** Takes the queueing discipline from TAPs that may have many queues; with one there is little to be spared. */
  async unqueue(links: readonly TapLink[]): Promise<void> {
    const { networks, plan: endpoint } = this.#of;
    const several = new Set<string>();
    for (const { plan } of networks) {
      if (endpoint.workers > 1 || plan.furtherQueues > 0) several.add(plan.tap);
    }
    const names = links.map(({ name }) => name).filter((name) => several.has(name));
    if (names.length === 0) return;
    await unqueue(names).catch(({ message }: Error) => {
      const what = "TAPs keep their queueing disciplines: a restart will take longer, and memory";
      this.#log.warn({ reason: message }, what);
    });
  }

  /** Deletes TAPs before they are closed, which takes the threads no time then. What is left goes when it is. */
  async removeTaps(links: readonly TapLink[]): Promise<void> {
    const kept = (error: Error) => this.#log.debug({ reason: error.message }, "TAPs go singly");
    await removeTaps(links).catch(kept);
  }

  readonly #tellOfFault = ({ message }: Error) => {
    this.#log.error({ reason: message }, "cannot be taken back");
  };

  /**
   * Where an underlay has grown, an MTU that nobody asked for is no reason to refuse what was: it is what the sockets
   * take, and of a container's TAP what that has.
   */
  #bounded(networks: readonly NetworkConfig[], found: Survey): Survey {
    const { networks: live, containers, telling } = this.#of;
    const mtus = networks.map(({ name, mtu }, at) => {
      if (mtu !== "auto") return found.mtus[at]!;
      const plan = live.get(name)?.plan;
      const isOwned = plan !== undefined && containers.ownerOf(plan.index, plan.tap) !== undefined;
      return Math.min(found.mtus[at]!, isOwned ? plan.mtu : telling.largestMtu);
    });
    return { ...found, mtus };
  }

  /** What the sockets that are open cannot do, and what two networks cannot both have. */
  #check(
    networks: readonly NetworkConfig[],
    removed: readonly string[],
    found: Survey | undefined,
  ): void {
    const { plan, networks: live, containers, telling } = this.#of;
    const { largestMtu } = telling;
    for (const family of [6, 4] as const) {
      const local = `local${family}` as const;
      if (found?.[local] === undefined || plan[local] !== undefined) continue;
      throw new VtepError(
        "ADDRESS",
        `no IPv${family} socket is open, because no peer had such an address at the start: restart the agent`,
      );
    }
    const gone = new Set([...removed, ...networks.map(({ name }) => name)]);
    const stay = live.wanted().filter(({ name }) => !gone.has(name));
    const owners = new Map(
      stay.flatMap(({ name, vni, tap }) => [
        [`VNI ${vni}`, name],
        [`TAP ${tap}`, name],
      ]),
    );
    for (const [at, network] of networks.entries()) {
      for (const what of [`VNI ${network.vni}`, `TAP ${network.tap}`]) {
        const other = owners.get(what);
        if (other === undefined) continue;
        const remedy = live.has(other)
          ? "choose another"
          : `it is gone (vtep status says why): choose another, or remove ${other}`;
        throw new VtepError("CONFLICT", `${what} is network ${other}'s: ${remedy}`);
      }
      const before = live.get(network.name);
      const owner = before && containers.ownerOf(before.plan.index, before.plan.tap);
      const isSame = before?.plan.mtu === found!.mtus[at]! && network.bridge === undefined;
      if (owner !== undefined && !isSame) {
        const { ifname, target } = owner;
        const whose = ifname === undefined ? "a container's" : `${ifname} of ${target}`;
        throw new VtepError(
          "CONFLICT",
          `network ${network.name}: the TAP is ${whose}, and can have neither another MTU nor a bridge: detach it first`,
        );
      }
      if (found!.mtus[at]! > largestMtu) {
        throw new VtepError(
          "MTU",
          `network ${network.name}: MTU ${found!.mtus[at]} is more than the ${largestMtu} that the sockets were opened for: restart the agent, or use --mtu ${largestMtu}`,
        );
      }
    }
    const [collision] = collisions([...stay, ...networks]);
    if (collision === undefined) return;
    throw new VtepError("CONFLICT", `${collision.message}: ${collision.remedy}`);
  }

  /** The settings one after the other, the links all at once. Returns whether any of those is another now. */
  async #alter(altered: readonly Wanted[], links: Survey["links"], undo: Undo): Promise<boolean> {
    const { networks, entries } = this.#of;
    const changes = altered.map(({ config, mtu }) => {
      const before = networks.named(config.name);
      const { opened, plan } = before;
      return { before, after: { ...networks.planned(config, plan.index, mtu), opened } };
    });
    const back = changes.map(({ before, after }) => ({ before: after, after: before }));
    undo.push(() => entries.restrict(back));
    for (const { before, after } of changes) {
      undo.push(() => this.#change(before));
      await this.#change(after);
    }
    await entries.restrict(changes);
    undo.push(async () => {
      await this.#relink(back, links, this.#tellOfFault);
    });
    return this.#relink(changes, links, (fault) => {
      throw fault;
    });
  }

  async #change(network: Live): Promise<void> {
    const { networks, entries, workers } = this.#of;
    networks.put(network);
    entries.configure(network);
    await workers.change(network.plan);
  }

  /**
   * The TAPs, also those that by `links` are not where they were, and what is attached beside them. Returns whether
   * there was anything to do.
   */
  async #relink(
    changes: readonly Change[],
    links: Survey["links"],
    onFault: (error: VtepError) => void,
  ): Promise<boolean> {
    const different = changes
      .map(({ before, after }) => ({ before: before.link, after: after.link }))
      .filter(({ before, after }) => !isDeepStrictEqual(before, after) || hasLeft(after, links));
    for (const fault of await adjustTaps(different)) onFault(fault);
    const moved = changes.flatMap(({ before, after }) => {
      const { bridge } = after.link;
      const stays = bridge === undefined || bridge === before.link.bridge;
      return stays ? [] : [[after.config.name, bridge] as const];
    });
    await this.#of.containers.follow(new Map(moved));
    return different.length + moved.length > 0;
  }

  /** All at once: for each of a thousand, programs of the host's would be started in turn. */
  async #add(networks: readonly Wanted[], undo: Undo): Promise<void> {
    if (networks.length === 0) return;
    const opened: Live[] = [];
    undo.push(() => this.#takeOut(opened));
    for (const each of networks) opened.push(await this.#openTap(each));
    await this.#setUp(opened.map(({ link }) => link));
  }

  async #remove(networks: readonly Live[], undo: Undo): Promise<void> {
    if (networks.length === 0) return;
    const again: Live[] = [];
    undo.push(() => this.#setUp(again.map(({ link }) => link)));
    // One that cannot be had again keeps no other from it, nor is what has its name by then set up.
    for (const { config, plan } of networks) {
      undo.push(async () => {
        again.push(await this.#openTap({ config, mtu: plan.mtu }));
      });
    }
    await this.#takeOut(networks);
  }

  /** A network that the threads will not have is none. */
  async #openTap({ config, mtu }: Wanted): Promise<Live> {
    const { networks, entries, workers, telling } = this.#of;
    const live = networks.planned(config, networks.freeIndex(), mtu);
    telling.countAnew(live.plan.index);
    networks.put(live);
    entries.configure(live);
    try {
      await workers.add(live.plan);
    } catch (error) {
      await this.#takeOut([live]).catch(this.#tellOfFault);
      throw error;
    }
    return live;
  }

  async #setUp(links: readonly TapLink[]): Promise<void> {
    await this.unqueue(links);
    await bringUp(links);
  }

  async #takeOut(networks: readonly Live[]): Promise<void> {
    const { networks: live, entries, workers, containers, telling } = this.#of;
    for (const { plan } of networks) await workers.retire(plan.index);
    telling.noteRetired();
    await this.removeTaps(networks.map(({ link }) => link));
    await entries.clear(networks);
    for (const network of networks) {
      await workers.discard(network.plan.index);
      containers.forget(network.plan.index);
      telling.noteLeaving();
      live.remove(network.config.name);
    }
  }
}
