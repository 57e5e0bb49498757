/** What an interface of a container is to be, checked by itself and against its network. */
import ipaddr from "ipaddr.js";
import { bare, isIn, stationPrefix } from "./addresses.ts";
import type { Client } from "./api/client.ts";
import { type Attachment, linkName, type Published, stableMac } from "./attachments.ts";
import { VtepError } from "./errors.ts";
import type { HeldNamespace } from "./namespace.ts";
import type { NetworkStatus } from "./operations.ts";
import type { RouteInside } from "./plug.ts";
import { formatMac, isMulticast, isZero, parseMac } from "./wire/ethernet.ts";

export interface Wanted {
  readonly network: string;
  /** Path of its network namespace, for people. */
  readonly target: string;
  /** Where that is found, whatever the path leads to meanwhile. */
  readonly namespace: HeldNamespace;
  /** Whose it is: what it is detached by. */
  readonly owner: string;
  /** As of `Attachment`. */
  readonly by: string;
  readonly ifname: string;
  /** With prefix lengths; "auto": of each of the network's ranges one that is free on this host. */
  readonly addresses: readonly string[] | "auto";
  /** Where what is for elsewhere goes; undefined: the network's gateways in the subnets of its addresses. */
  readonly gateways: readonly string[] | undefined;
  readonly published: readonly Published[];
  readonly routes: readonly RouteInside[];
  /** Unless told, one that stays the same for the same owner, interface and host. */
  readonly mac: string | undefined;
  /** Unless told, the network's. */
  readonly mtu: number | undefined;
}

/** What is wanted, checked, and with what follows from the network; `placeIn` refuses networks that are unfit. */
export async function fitted<Place>(
  client: Client,
  wanted: Omit<Wanted, "namespace" | "gateways" | "routes">,
  placeIn: (network: NetworkStatus) => Place,
) {
  const { owner, by, ifname, target, published } = wanted;
  const [{ local, port }, network] = await Promise.all([
    client.status(),
    client.network(wanted.network),
  ]);
  const place = placeIn(network);
  const mtu = mtuOf(wanted, network);
  checkInterface(ifname);
  const addresses = wanted.addresses === "auto" ? [] : wanted.addresses.map(checkedPrefix);
  const link = linkName(owner, ifname);
  const mac = macOf(wanted.mac, `${local[0]} ${network.vni} ${link}`);
  const names = { network: network.name, target, ifname };
  const attachment = { ...names, mac, addresses, published, by, link };
  if (published.length > 0 && network.gateway.length === 0) {
    throw new VtepError(
      "USAGE",
      `network ${network.name} has no gateway, by which ports could be published: give it one (gateway: [ADDR/LENGTH])`,
    );
  }
  return { attachment, place, mtu, network, port };
}

function checkUntagged({ name, vlan }: NetworkStatus): void {
  if (vlan === undefined) return;
  throw new VtepError(
    "USAGE",
    `network ${name} is VLAN ${vlan}, and containers send without a tag: give them a network with a bridge of its own`,
  );
}

export function checkDirect(network: NetworkStatus): void {
  checkUntagged(network);
  const { name, bridge, tap } = network;
  if (bridge === undefined) return;
  throw new VtepError(
    "USAGE",
    `${tap} is a port of ${bridge}, by which others are in network ${name}: attach without --direct, or take a network without a bridge`,
  );
}

/** Throws VtepError USAGE where containers cannot be attached by one. */
export function bridgeOf(network: NetworkStatus): string {
  checkUntagged(network);
  const { name, bridge } = network;
  if (bridge !== undefined) return bridge;
  throw new VtepError(
    "USAGE",
    `network ${name} has no bridge that containers could be attached to: give it one (bridge: NAME), or attach the one container with --direct`,
  );
}

function mtuOf({ mtu }: Pick<Wanted, "mtu">, { name, mtu: largest }: NetworkStatus): number {
  if (mtu === undefined) return largest;
  if (mtu <= largest) return mtu;
  throw new VtepError(
    "USAGE",
    `MTU ${mtu} is more than the ${largest} of network ${name}: take that, or less`,
  );
}

/** Throws VtepError USAGE. */
export function checkInterface(name: string): void {
  if (/^(?!\.{1,2}$)[^\s/:%|]{1,15}$/.test(name)) return;
  throw new VtepError(
    "USAGE",
    `${JSON.stringify(name)} cannot name an interface: at most 15 characters, no spaces, "/", ":", "%" or "|"`,
  );
}

/** As given, else one of this host's own, so that another host does not come to the same. */
function macOf(text: string | undefined, otherwise: string): string {
  const mac = text === undefined ? stableMac(otherwise) : parseMac(text);
  if (mac !== undefined && !isMulticast(mac.high) && !isZero(mac.high, mac.low)) {
    return formatMac(mac.high, mac.low);
  }
  throw new VtepError(
    "USAGE",
    `${JSON.stringify(text)} is not the MAC address of a station (02:00:00:00:00:07)`,
  );
}

export function checkedPrefix(text: string): string {
  const prefix = stationPrefix(text);
  if (prefix !== undefined) return prefix;
  throw new VtepError(
    "USAGE",
    `${JSON.stringify(text)} is not the address of a station with its prefix length (192.0.2.7/24)`,
  );
}

/** Those to what is near first, for others may lead through it. */
export function routesOf(
  { routes, gateways }: Pick<Wanted, "routes" | "gateways">,
  addresses: readonly string[],
  network: NetworkStatus,
): Wanted["routes"] {
  const own = network.gateway.filter((each) => addresses.some((address) => isIn(each, address)));
  const families = new Map(own.map((each) => [each.includes(":"), bare(each)]));
  const defaults = (gateways ?? [...families.values()]).map((via) => {
    return { to: via.includes(":") ? "::/0" : "0.0.0.0/0", via };
  });
  return [...routes, ...defaults].sort(
    (one, other) => Number(one.via !== undefined) - Number(other.via !== undefined),
  );
}

/** The kernel would say "Nexthop has invalid gateway". */
export function checkRoutes(routes: Wanted["routes"], addresses: readonly string[]): void {
  // What is routed straight out is near, too.
  const straight = routes.filter(({ to, via }) => via === undefined && ipaddr.isValidCIDR(to));
  const near = [...addresses, ...straight.map(({ to }) => to)];
  const subnets = near.map((address) => ipaddr.parseCIDR(address));
  for (const { to, via } of routes) {
    if (!ipaddr.isValidCIDR(to)) {
      throw new VtepError(
        "USAGE",
        `${JSON.stringify(to)} is not a network to route (192.0.2.0/24)`,
      );
    }
    if (via === undefined) continue;
    if (!ipaddr.isValid(via)) {
      throw new VtepError("USAGE", `${JSON.stringify(via)} is not an address (192.0.2.1)`);
    }
    const gateway = ipaddr.parse(via);
    const isNear = subnets.some(
      (subnet) => subnet[0].kind() === gateway.kind() && gateway.match(subnet),
    );
    if (isNear || (gateway.kind() === "ipv6" && gateway.range() === "linkLocal")) continue;
    const those = addresses.join(", ") || "it has none";
    throw new VtepError(
      "USAGE",
      `${via} is in no subnet of the container's addresses (${those}): give it one in that subnet`,
    );
  }
}

/** What is the gateway's, or lies where the gateway cannot be reached. */
export function checkSubnets(
  { addresses, mac }: Pick<Attachment, "addresses" | "mac">,
  { name, gateway, mac: own }: NetworkStatus,
): void {
  if (gateway.length === 0) return;
  if (mac === own) {
    throw new VtepError(
      "CONFLICT",
      `${mac} is the MAC of the gateway of network ${name}: choose another`,
    );
  }
  for (const address of addresses) {
    const near = gateway.filter((each) => each.includes(":") === address.includes(":"));
    if (near.some((each) => bare(each) === bare(address))) {
      throw new VtepError(
        "CONFLICT",
        `${bare(address)} is the gateway of network ${name}: choose another`,
      );
    }
    if (near.length === 0 || near.some((each) => isIn(address, each))) continue;
    throw new VtepError(
      "USAGE",
      `${address} is in no subnet of network ${name}, whose gateway is ${near.join(", ")}: choose one in its subnet`,
    );
  }
}
