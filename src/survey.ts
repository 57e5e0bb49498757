/**
 * What the host makes of a configuration: the local address of each family, the MTU of each network,
 * and whether the names asked for are free. It changes nothing, and refuses what could not work
 * with one sentence that says what to do.
 */

import { isScoped } from "./addresses.ts";
import { type Config, type NetworkConfig, reached } from "./config.ts";
import { VtepError } from "./errors.ts";
import { isUsable, type Link, type Route, type Surroundings, surroundings } from "./host.ts";
import { addressFamily, overheadTo } from "./remotes.ts";
import { LARGEST_MTU } from "./schema.ts";

export interface Survey {
  /** Every interface of this host. */
  readonly links: Links;
  readonly local4: string | undefined;
  readonly local6: string | undefined;
  /**
   * MTU of each network's TAP, in the order of the configuration. One that is there is by itself given no less: its
   * stations have the MTU that it has, and a bridge drops, without a word, what is longer than its port takes. Senders
   * to a peer that less gets to are told so instead, and those to others go on.
   */
  readonly mtus: readonly number[];
  /** Bridges that have to be made. */
  readonly missingBridges: readonly string[];
  /** Peers that may know this VTEP by another address than the one that it is at, where that was not said. */
  readonly astray: readonly Astray[];
}

export interface Astray {
  readonly peer: string;
  /** Where this VTEP is, and only there. */
  readonly local: string;
  /** Where the route to the peer begins. */
  readonly source: string;
}

type Locals = Pick<Survey, "local4" | "local6">;
type Links = ReadonlyMap<string, Link>;
type Routes = ReadonlyMap<string, Route>;

/** IPv4's least (RFC 791), which is a TAP's least too (drivers/net/tun.c). */
const SMALLEST_MTU = 68;

/** The TAPs that are there because they are ours, by name, with their MTUs; 0 where that is not known. */
export type OwnTaps = ReadonlyMap<string, number>;

/** `bound` is where sockets are open already. */
export async function survey(
  config: Config,
  own: OwnTaps = new Map(),
  bound?: Locals,
): Promise<Survey> {
  return judge(config, await surroundings(peersOf(config), config), own, bound);
}

/** The same in these surroundings, where every peer of the configuration was asked for. */
export function judge(
  config: Config,
  { links, addresses, routes }: Surroundings,
  own: OwnTaps,
  bound: Locals = { local4: undefined, local6: undefined },
): Survey {
  const { local4, local6 } = localsOf(config, routes, bound, addresses);
  checkLocals([local4, local6], addresses, [bound.local4, bound.local6]);
  if (bound.local6 === undefined) checkDetected(local6, links);
  const missingBridges = new Set<string>();
  for (const network of config.networks) {
    if (!own.has(network.tap)) checkTapName(network, links);
    if (network.bridge !== undefined && !bridgeExists(network, network.bridge, links)) {
      missingBridges.add(network.bridge);
    }
    checkPeers(network, [local4, local6], routes);
  }
  const mtus = config.networks.map((network) => {
    const mtu = mtuOf(network, config, routes);
    return network.mtu === "auto" ? Math.max(mtu, own.get(network.tap) ?? 0) : mtu;
  });
  const astray = astrayOf(config, routes, [local4, local6]);
  return { links, local4, local6, mtus, missingBridges: [...missingBridges], astray };
}

export function peersOf({ networks }: Config): string[] {
  return [...new Set(networks.flatMap(reached))];
}

/** Of each family in use: where we are already, the configured address, or the source of the route to its first peer. */
function localsOf(config: Config, routes: Routes, bound: Locals, ours: readonly string[]): Locals {
  const local = (family: 4 | 6): string | undefined => {
    if (config.local !== undefined && addressFamily(config.local) === family) return config.local;
    const first = peersOf(config).find((address) => addressFamily(address) === family);
    if (first === undefined) return undefined;
    const source = bound[`local${family}`] ?? routes.get(first)?.source;
    if (source === undefined) {
      const isOff = family === 6 && !ours.some((address) => addressFamily(address) === 6);
      const off = "allow IPv6 on this host (sysctl -w net.ipv6.conf.all.disable_ipv6=0), then ";
      const local = config.local === undefined ? ", or say with --local which address is ours" : "";
      throw new VtepError(
        "ADDRESS",
        `no route leads to peer ${first}: ${isOff ? off : ""}add one${local}`,
      );
    }
    if (!isScoped(source)) return source;
    throw new VtepError(
      "ADDRESS",
      `the route to peer ${first} begins at ${source}, which is link-local: give this host another address, or start again when "ip address" calls none that it has tentative`,
    );
  };
  return { local4: local(4), local6: local(6) };
}

/**
 * On a host with several uplinks: a peer is sent to from the local address, by whichever, and is heard only there.
 * `locals` is where this VTEP is.
 */
export function astrayOf(
  config: Config,
  routes: Routes,
  locals: readonly (string | undefined)[],
): Astray[] {
  const peers = peersOf(config).filter((peer) => routes.has(peer));
  return locals.flatMap((local) => {
    if (local === undefined || local === config.local) return [];
    return peers
      .filter((peer) => addressFamily(peer) === addressFamily(local))
      .filter((peer) => routes.get(peer)!.device !== "lo") // which leads to this host itself
      .map((peer) => ({ peer, local, source: routes.get(peer)!.source }))
      .filter(({ source }) => source !== local);
  });
}

/** Where sockets are open already, the host may have been renumbered since. */
function checkLocals(
  locals: readonly (string | undefined)[],
  ours: readonly string[],
  bound: readonly (string | undefined)[],
): void {
  const wrong = locals.find((local) => local !== undefined && !isOurs(local, ours));
  if (wrong === undefined) return;
  if (bound.includes(wrong)) {
    throw new VtepError(
      "ADDRESS",
      `the agent's sockets are at ${wrong}, which is an address of no interface here any more: give one that address again, or restart the agent`,
    );
  }
  const choice = inPlaceOf(wrong, ours);
  const remedy = choice.length === 0 ? "give it to one" : `use one of ${choice.join(", ")}`;
  throw new VtepError("ADDRESS", `${wrong} is an address of no interface here: ${remedy}`);
}

/** Addresses that a VTEP may be at instead of this one. From those of the loopback nothing leaves this host. */
export function inPlaceOf(wrong: string, ours: readonly string[]): string[] {
  const family = addressFamily(wrong);
  return ours.filter((address) => {
    const isLoopback = address === "::1" || address.startsWith("127.");
    return addressFamily(address) === family && !isLoopback && !isScoped(address);
  });
}

/** The kernel lets nobody have an IPv6 address that another host may have. */
function checkDetected(local: string | undefined, links: Links): void {
  if (local === undefined) return;
  const addresses = [...links.values()].flatMap(({ addr_info = [] }) => addr_info);
  const found = addresses.filter((address) => address.local === local);
  if (found.some(isUsable)) return;
  throw new VtepError(
    "ADDRESS",
    found.some(({ dadfailed }) => dadfailed)
      ? `another host has ${local} too (dadfailed in "ip address"): give one of the two another address`
      : `${local} cannot be used yet (tentative in "ip address"), as the kernel asks first whether another host has it: start again in some seconds, and see that its interface is up`,
  );
}

/** All of 127/8 is local although only 127.0.0.1 is listed. */
export function isOurs(address: string, ours: readonly string[]): boolean {
  return ours.includes(address) || address.startsWith("127.");
}

function checkTapName({ vni, tap }: NetworkConfig, links: Links): void {
  const link = links.get(tap);
  if (link === undefined) return;
  const isTap = link.linkinfo?.info_kind === "tun"; // a stale one, perhaps
  const removal = isTap ? `, or remove it with "ip link del ${tap}"` : "";
  throw new VtepError(
    "NAME_IN_USE",
    `network ${vni}: an interface named ${tap} exists already: choose another name with --tap${removal}`,
  );
}

function checkPeers(
  network: NetworkConfig,
  locals: readonly (string | undefined)[],
  routes: Routes,
): void {
  for (const peer of reached(network)) {
    if (locals.includes(peer)) {
      throw new VtepError(
        "USAGE",
        `network ${network.vni}: peer ${peer} is this VTEP's own local address: name the other end`,
      );
    }
    const device = routes.get(peer)?.device;
    if (device !== undefined && device === network.bridge) {
      throw new VtepError(
        "ADDRESS",
        `network ${network.vni}: the way to peer ${peer} leads through ${device}, the overlay itself: route it over the underlay`,
      );
    }
  }
}

function bridgeExists({ vni }: NetworkConfig, name: string, links: Links): boolean {
  const link = links.get(name);
  if (link === undefined || link.linkinfo?.info_kind === "bridge") return link !== undefined;
  throw new VtepError(
    "NAME_IN_USE",
    `network ${vni}: ${name} exists and is no bridge: name another`,
  );
}

/** The MTU asked for if every path carries it, in fragments where that was allowed, or the largest that every path does. */
function mtuOf(network: NetworkConfig, { df }: Config, routes: Routes): number {
  const paths = reached(network).flatMap((peer) => {
    const route = routes.get(peer);
    if (route === undefined) return [];
    const overhead = overheadTo(peer);
    return [{ peer, route, overhead, mtu: route.mtu - overhead }];
  });
  const narrowest = paths.sort((a, b) => a.mtu - b.mtu)[0];
  if (narrowest === undefined) {
    if (network.mtu !== "auto") return network.mtu;
    const [peer, ...others] = reached(network);
    const nobody = others.length === 0 ? `peer ${peer}` : `any peer, as ${peer}`;
    const why = peer === undefined ? "it has no peer" : `no route leads to ${nobody}`;
    throw new VtepError(
      "ADDRESS",
      `network ${network.vni}: ${why}, so its MTU is unknown: give it with --mtu`,
    );
  }
  const largest = Math.min(narrowest.mtu, LARGEST_MTU);
  const carried = df === "unset" ? LARGEST_MTU : largest;
  if (largest < SMALLEST_MTU || (network.mtu !== "auto" && network.mtu > carried)) {
    const { peer, route, overhead } = narrowest;
    throw new VtepError(
      "MTU",
      `network ${network.vni}: MTU ${network.mtu} and ${overhead} bytes of headers do not fit into the ${route.mtu} of ${route.device} towards ${peer}: use --mtu auto, at most ${largest}`,
    );
  }
  return network.mtu === "auto" ? largest : network.mtu;
}
