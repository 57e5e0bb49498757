/**
 * Attaches a container to a network of a running agent, and detaches it: by whoever may make links, which
 * the agent's own sandbox need not permit, so the agent is only told.
 *
 * Attaching is idempotent, and whole or not at all.
 */
import { randomInt } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import ipaddr from "ipaddr.js";
import { bare, freeIn, isIn, parseRange, stationPrefix } from "./addresses.ts";
import type { Client } from "./api/client.ts";
import {
  type Attachment,
  aliasOf,
  attachmentOf,
  formatPublished,
  linkName,
  type Published,
  peerName,
  stableMac,
} from "./attachments.ts";
import { VtepError } from "./errors.ts";
import { type Link, type Listener, linksByName, listeners } from "./host.ts";
import type { HeldNamespace } from "./namespace.ts";
import type { NetworkStatus } from "./operations.ts";
import {
  addressInside,
  linkInside,
  noteAlias,
  pair,
  plug,
  plugDirect,
  type RouteInside,
  unplug,
  unplugDirect,
} from "./plug.ts";
import { formatMac, isMulticast, isZero, parseMac } from "./wire/ethernet.ts";

/** What an interface of a container is to be. */
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

/** What was attached, with what follows from the network. */
export interface Attached extends Attachment {
  readonly mtu: number;
  /** False when it was there already, as it is wanted. */
  readonly isNew: boolean;
}

/**
 * Throws VtepError: NOT_FOUND without such a network or target, USAGE for what cannot be, CONFLICT where
 * something else has the interface or the address or the network was changed meanwhile, LINK and PERMISSION
 * from the host.
 */
export async function attach(client: Client, wanted: Wanted): Promise<Attached> {
  const [{ attachment, place: bridge, mtu, network, port }, first] = await Promise.all([
    fitted(client, wanted, bridgeOf),
    linksByName(),
  ]);
  const { target, ifname, link: name } = attachment;
  for (let turn = 1; ; turn++) {
    const links = await settled(name, turn === 1 ? first : await linksByName());
    const before = links.get(name);
    const was = before && attachmentOf(before);
    const isHere = before?.master === bridge;
    if (isHere && was !== undefined)
      attachment.network = was.network; // as it was called then
    else if (before?.master !== undefined && was !== undefined && was.network !== network.name) {
      throw new VtepError(
        "CONFLICT",
        `${ifname} of ${target} is attached already, to network ${was.network}: detach it first`,
      );
    }
    // Unless others are wanted, it keeps the MAC and the addresses that it has.
    if (was !== undefined && wanted.mac === undefined) attachment.mac = was.mac;
    if (wanted.addresses === "auto") {
      attachment.addresses = [...(was?.addresses ?? freeAddresses(network, links, turn))];
    }
    const { addresses, mac } = attachment;
    const routes = routesOf(wanted, addresses, network);
    checkRoutes(routes, addresses);
    const alias = aliasOf(attachment, [mtu, routes]);
    if (isHere) {
      if (before.ifalias === alias) {
        await client.attachments(); // whoever attached it may have been killed before it told
        return { ...attachment, network: network.name, mtu, isNew: false };
      }
      throw new VtepError(
        "CONFLICT",
        `${ifname} of ${target} is attached already, in another way: detach it first`,
      );
    }
    checkAlone(attachment, attachedHere(network, links));
    checkSubnets(attachment, network);
    await checkPorts(client, attachment, port, was);
    // It was not finished, or the network has another bridge now.
    if (before !== undefined) await unplug(name);
    const inside = {
      target,
      namespace: wanted.namespace.path,
      ifname,
      mac,
      mtu,
      addresses,
      routes,
    };
    await plug({ name, bridge, alias, ...inside });
    // Another one may have taken the same address at the same time: whoever sees that tries anew.
    if (
      wanted.addresses === "auto" &&
      conflictOf(attachment, attachedHere(network, await linksByName())) !== undefined
    ) {
      await unplug(name);
      if (turn < AUTO_TURNS) continue;
      throw new VtepError(
        "CONFLICT",
        `others keep taking the addresses of ${network.name}: try again`,
      );
    }
    // Chosen addresses are settled: whoever chose them later has seen ours.
    await tell(client, wanted.addresses === "auto" ? { ...attachment, addresses: [] } : attachment);
    return { ...attachment, mtu, isNew: true };
  }
}

/** For how long one that is not finished may be somebody's who is at it still; afterwards nobody is. */
const UNFINISHED_MS = 2000;
const LOOK_MS = 50;

/** Links, when the one of this name is finished, is gone, or has been left unfinished. */
async function settled(
  name: string,
  links: ReadonlyMap<string, Link>,
): Promise<ReadonlyMap<string, Link>> {
  const until = performance.now() + UNFINISHED_MS;
  let now = links;
  while (now.has(name) && now.get(name)!.master === undefined && performance.now() < until) {
    await pause(LOOK_MS);
    now = await linksByName();
  }
  return now;
}

/** So often an address is chosen that somebody else chose at the same time. */
const AUTO_TURNS = 10;

/** Of each range one that no container here has: the lowest, or any when others are choosing as well. */
function freeAddresses(
  { name, bridge, ranges }: NetworkStatus,
  links: ReadonlyMap<string, Link>,
  turn: number,
): string[] {
  if (ranges.length === 0) {
    throw new VtepError(
      "USAGE",
      `network ${name} has no range of addresses to choose from: give it one (ranges:), or an address with --ip`,
    );
  }
  const here = attachedHere({ name, bridge }, links).filter((each) => each.network === name);
  const used = new Set(here.flatMap(({ addresses }) => addresses.map(bare)));
  return ranges.map((text) => {
    const range = parseRange(text)!;
    const free = freeIn(range, used);
    const skipped = turn === 1 ? 0 : randomInt(4 ** turn);
    let chosen = free.next().value as string | undefined;
    for (let at = 0; at < skipped && chosen !== undefined; at++) {
      chosen = (free.next().value as string | undefined) ?? chosen;
    }
    if (chosen !== undefined) return chosen;
    throw new VtepError(
      "CONFLICT",
      `every address of ${text} is used: detach something, or widen it`,
    );
  });
}

/** Those to what is near first, for others may lead through it. */
function routesOf(
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

/**
 * Gives addresses and routes to what `attach` attached without any: who gives out the addresses may have to
 * ask the network by that very interface. Throws as `attach` does; what is done by then is left.
 */
export async function address(
  client: Client,
  attached: Attached,
  wanted: Pick<Wanted, "namespace" | "routes"> & { readonly addresses: readonly string[] },
): Promise<void> {
  const { addresses, routes } = wanted;
  const { path: namespace } = wanted.namespace;
  const { ifname, mac, mtu, link } = attached;
  const attachment = { ...attached, addresses: addresses.map(checkedPrefix) };
  checkRoutes(routes, attachment.addresses);
  const links = await linksByName();
  const network = { name: attached.network, bridge: links.get(link)?.master };
  checkAlone(attachment, attachedHere(network, links));
  await addressInside({ namespace, ifname, mac, addresses: attachment.addresses, routes });
  await noteAlias(link, aliasOf(attachment, [mtu, routes]));
  checkAlone(attachment, await client.attachments());
}

/** The same, the network's TAP becoming the container's interface. */
export async function attachDirect(client: Client, wanted: Wanted): Promise<Attached> {
  const { attachment, mtu, network, port } = await fitted(client, wanted, checkDirect);
  const { target, ifname } = attachment;
  const { path: namespace } = wanted.namespace;
  const { tap, mac: own } = network;
  attachment.link = tap;
  if (wanted.mac === undefined) attachment.mac = own;
  const links = await linksByName();
  const there = await linkInside(namespace, ifname);
  const was = there && attachmentOf(there);
  if (wanted.addresses === "auto") {
    attachment.addresses = [...(was?.addresses ?? freeAddresses(network, links, 1))];
  }
  const { addresses, mac } = attachment;
  const routes = routesOf(wanted, addresses, network);
  checkRoutes(routes, addresses);
  const alias = aliasOf(attachment, [mtu, routes]);
  if (there?.ifalias === alias) return { ...attachment, mtu, isNew: false };
  if (!links.has(tap)) {
    const other = (await client.attachments()).find(({ link }) => link === tap);
    const whose = other === undefined ? "a container's" : `${other.ifname} of ${other.target}`;
    throw new VtepError(
      "CONFLICT",
      `the TAP of network ${network.name} is ${whose} already: detach that first, or give the network a bridge`,
    );
  }
  checkAlone(attachment, attachedHere(network, links));
  await checkPorts(client, attachment, port, was);
  await noteAlias(tap, alias);
  try {
    checkAlone(attachment, await client.attachments()); // as long as the alias can be seen
    const inside = { target, namespace, ifname, mac, mtu, addresses, routes };
    await plugDirect({ name: tap, ...inside });
  } catch (error) {
    await noteAlias(tap, "").catch(() => undefined); // unless it had moved
    await client.attachments().catch(() => undefined);
    throw error;
  }
  // Another one may have noted itself in between, and the agent takes it for that one's.
  if ((await linkInside(namespace, ifname))?.ifalias !== alias) {
    await unplugDirect(namespace, ifname);
    throw new VtepError(
      "CONFLICT",
      `others attach the TAP of network ${network.name} at the same time: try again`,
    );
  }
  return { ...attachment, mtu, isNew: true };
}

/**
 * The same, but for what a container runtime does itself: it moves `peer`, which is here as well, into the
 * container, names it and gives it its addresses. What was left of an earlier try is removed.
 */
export async function attachPair(
  client: Client,
  wanted: Omit<Wanted, "namespace" | "gateways" | "routes" | "mtu"> & {
    readonly addresses: readonly string[];
  },
): Promise<Attachment & { readonly peer: string }> {
  const whole = { ...wanted, mtu: undefined };
  const { attachment, place: bridge, mtu, network } = await fitted(client, whole, bridgeOf);
  const { link: name, mac } = attachment;
  const links = await linksByName();
  if (links.has(name)) await unplug(name);
  checkAlone(attachment, attachedHere(network, links));
  checkSubnets(attachment, network);
  const peer = peerName(name);
  await pair({ name, bridge, alias: aliasOf(attachment, mtu), peer, mac, mtu });
  await tell(client, attachment);
  return { ...attachment, peer };
}

/**
 * Gives ports of this host to what `attachPair` attached. Throws VtepError as `attach` does; one of them that
 * another container has is CONFLICT, and changes nothing.
 */
export async function publish(
  client: Client,
  name: string,
  published: readonly Published[],
): Promise<void> {
  const links = await linksByName();
  const link = links.get(name);
  const was = link && attachmentOf(link);
  if (was === undefined) throw new VtepError("NOT_FOUND", `${name} is not attached any more`);
  const attachment = { ...was, published };
  await checkPorts(client, attachment, (await client.status()).port, was);
  await noteAlias(name, aliasOf(attachment, link!.mtu));
  try {
    checkAlone(attachment, await client.attachments());
  } catch (error) {
    await noteAlias(name, link!.ifalias!);
    await client.attachments().catch(() => undefined);
    throw error;
  }
}

/** Takes its ports from what `attachPair` attached, if there is that. The agent may be away. */
export async function unpublish(client: Client, name: string): Promise<void> {
  const link = (await linksByName()).get(name);
  const was = link && attachmentOf(link);
  if (was === undefined || was.published.length === 0) return;
  await noteAlias(name, aliasOf({ ...was, published: [] }, link!.mtu));
  await client.attachments().catch(() => undefined); // it will look when it is back
}

/** What is wanted, checked, and with what follows from the network; `placeIn` refuses networks that are unfit. */
async function fitted<Place>(
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

/**
 * Has the agent look at what is attached; nothing is without it, or where it finds something else. Somebody may
 * have taken the same at the same time: whoever sees that gives it up.
 */
async function tell(client: Client, attachment: Attachment): Promise<void> {
  const { link, network } = attachment;
  try {
    const attached = await client.attachments();
    if (!attached.some((each) => each.link === link)) {
      throw new VtepError("CONFLICT", `network ${network} was changed meanwhile: try again`);
    }
    checkAlone(attachment, attached);
  } catch (error) {
    await detach(client, link);
    throw error;
  }
}

/** Detaches what is a network's TAP itself; false when it was not attached so. */
export async function detachDirect(
  client: Client,
  { target, namespace, ifname }: Pick<Wanted, "target" | "namespace" | "ifname">,
): Promise<boolean> {
  const { path } = namespace;
  const there = await linkInside(path, ifname);
  if (isTap(there) && attachmentOf(there) !== undefined) {
    await unplugDirect(path, ifname); // the agent makes the TAP anew
  } else {
    // Whoever was to move it, or to name it there, was killed.
    const attached = await client.attachments().catch(() => []);
    const noted = attached.find((each) => each.target === target && each.ifname === ifname);
    if (noted === undefined) return false;
    const { link } = noted;
    if (isTap(await linkInside(path, link))) await unplugDirect(path, link);
    else if (isTap((await linksByName()).get(link))) await noteAlias(link, "");
    else return false;
  }
  await client.attachments().catch(() => undefined);
  return true;
}

function isTap(link: Link | undefined): link is Link {
  return link?.linkinfo?.info_kind === "tun";
}

/** Detaches by the end that is here (`linkName`); false when it was not attached. The agent may be away. */
export async function detach(client: Client, link: string): Promise<boolean> {
  const was = await unplug(link);
  if (was) await client.attachments().catch(() => undefined); // it will look when it is back
  return was;
}

function checkUntagged({ name, vlan }: NetworkStatus): void {
  if (vlan === undefined) return;
  throw new VtepError(
    "USAGE",
    `network ${name} is VLAN ${vlan}, and containers send without a tag: give them a network with a bridge of its own`,
  );
}

function checkDirect(network: NetworkStatus): void {
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
  throw new VtepError("USAGE", `MTU ${mtu} is more than the ${largest} of network ${name}`);
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
  throw new VtepError("USAGE", `${JSON.stringify(text)} is not the MAC address of a station`);
}

function checkedPrefix(text: string): string {
  const prefix = stationPrefix(text);
  if (prefix !== undefined) return prefix;
  throw new VtepError(
    "USAGE",
    `${JSON.stringify(text)} is not the address of a station with its prefix length (192.0.2.7/24)`,
  );
}

/** The kernel would say "Nexthop has invalid gateway". */
function checkRoutes(routes: Wanted["routes"], addresses: readonly string[]): void {
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
      throw new VtepError("USAGE", `${JSON.stringify(via)} is not an address`);
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

/** Throws CONFLICT where it has what another one has already, of those that are attached. */
function checkAlone(own: Attachment, attached: readonly Attachment[]): void {
  const conflict = conflictOf(own, attached);
  if (conflict !== undefined) throw new VtepError("CONFLICT", conflict);
}

/** What it has that is another one's, in a sentence: a port, or in its network the MAC or an address. */
function conflictOf(own: Attachment, attached: readonly Attachment[]): string | undefined {
  const used = new Set(own.addresses.map(bare));
  for (const other of attached) {
    if (other.link === own.link) continue;
    const whose = `${other.ifname} of ${other.target}`;
    const port = other.published.find((each) => own.published.some((one) => isSame(one, each)));
    if (port !== undefined) return `port ${hostPort(port)} is published already, for ${whose}`;
    if (other.network !== own.network) continue;
    if (other.mac === own.mac) return `${own.mac} is the MAC of ${whose}`;
    const address = other.addresses.map(bare).find((each) => used.has(each));
    if (address !== undefined) return `${address} is used already, by ${whose}`;
  }
  return undefined;
}

/**
 * What is attached by the links of this host, also what is not finished yet, which the agent does not count.
 * What is on the network's bridge is in that network, whatever it was called then.
 */
function attachedHere(
  { name, bridge }: Pick<NetworkStatus, "name" | "bridge">,
  links: ReadonlyMap<string, Link>,
): Attachment[] {
  return [...new Set(links.values())].flatMap((link) => {
    const found = attachmentOf(link);
    if (found === undefined) return [];
    const isThere = bridge !== undefined && link.master === bridge;
    return [isThere ? { ...found, network: name } : found];
  });
}

/** What is the gateway's, or lies where the gateway cannot be reached. */
function checkSubnets(
  { addresses, mac }: Pick<Attachment, "addresses" | "mac">,
  { name, gateway, mac: own }: NetworkStatus,
): void {
  if (gateway.length === 0) return;
  if (mac === own) {
    throw new VtepError("CONFLICT", `${mac} is the MAC of the gateway of network ${name}`);
  }
  for (const address of addresses) {
    const near = gateway.filter((each) => each.includes(":") === address.includes(":"));
    if (near.some((each) => bare(each) === bare(address))) {
      throw new VtepError("CONFLICT", `${bare(address)} is the gateway of network ${name}`);
    }
    if (near.length === 0 || near.some((each) => isIn(address, each))) continue;
    throw new VtepError(
      "USAGE",
      `${address} is in no subnet of network ${name}, whose gateway is ${near.join(", ")}`,
    );
  }
}

/** Ports that somebody on this host listens at would be taken from them. `own` is the agent's. */
async function checkPorts(
  client: Client,
  attachment: Attachment,
  own: number,
  was: Attachment | undefined,
): Promise<void> {
  const { addresses, published, link } = attachment;
  if (published.length === 0) return;
  if (addresses.length === 0) {
    throw new VtepError("USAGE", "ports are published to an address: give one with --ip");
  }
  const twice = published.find((each, at) =>
    published.slice(0, at).some((one) => isSame(one, each)),
  );
  if (twice !== undefined) {
    throw new VtepError("USAGE", `port ${hostPort(twice)} is published twice`);
  }
  // TAPs in containers have some too. Addresses are settled elsewhere.
  checkAlone({ ...attachment, addresses: [] }, await client.attachments());
  const had = new Set(was?.link === link ? was.published.map(hostPort) : []);
  // What calls 127.0.0.1 is taken from nobody (nat.ts).
  const listening = (await listeners()).filter(
    ({ address }) => address === undefined || ipaddr.parse(address).range() !== "loopback",
  );
  for (const wanted of published) {
    if (had.has(hostPort(wanted))) continue;
    const isOwn = wanted.protocol === "udp" && wanted.port === own;
    if (!isOwn && !listening.some((each) => isSame(each, wanted))) continue;
    throw new VtepError(
      "CONFLICT",
      `port ${hostPort(wanted)} is in use on this host${isOwn ? ", by the VTEP itself" : ""}: publish another`,
    );
  }
}

/** Whether both are for packets that may be the same. */
function isSame(one: Listener, other: Listener): boolean {
  const isNear = isAmong(one.address, other.address) || isAmong(other.address, one.address);
  return one.protocol === other.protocol && one.port === other.port && isNear;
}

/** Of addresses as a `Listener` has them. */
function isAmong(address: string | undefined, all: string | undefined): boolean {
  if (all === undefined || all === address) return true;
  return address !== undefined && all === (address.includes(":") ? "::" : "0.0.0.0");
}

function hostPort(published: Published): string {
  return formatPublished(published).replace(/:\d+\//, "/");
}
