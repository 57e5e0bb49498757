/** What a container may not have since another one, or somebody else on this host, has it; and what is free. */
import { randomInt } from "node:crypto";
import ipaddr from "ipaddr.js";
import { bare, freeIn, parseRange } from "./addresses.ts";
import type { Client } from "./api/client.ts";
import { type Attachment, attachmentOf, formatPublished, type Published } from "./attachments.ts";
import { VtepError } from "./errors.ts";
import { isGiven, type Link, type Listener, listeners } from "./host.ts";
import type { NetworkStatus } from "./operations.ts";

/** Of each range one that no container here has: the lowest, or any when others are choosing as well. */
export function freeAddresses(
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
    for (let at = 0; at < skipped; at++) {
      chosen = (free.next().value as string | undefined) ?? chosen;
    }
    if (chosen !== undefined) return chosen;
    throw new VtepError(
      "CONFLICT",
      `every address of ${text} is used: detach something, or widen it`,
    );
  });
}

/**
 * What is attached by the links of this host, also what is not finished yet, which the agent does not count.
 * What is on the network's bridge is in that network, whatever it was called then.
 */
export function attachedHere(
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

/** Throws CONFLICT where this host is in the network by its TAP, or others are: with it they would lose what they have. */
export function checkUnused(network: string, tap: Link): void {
  const { ifname, master, addr_info = [] } = tap;
  const remedy = "or give the network a bridge and attach without --direct";
  if (master !== undefined) {
    throw new VtepError(
      "CONFLICT",
      `${ifname} is a port of ${master}, by which others are in network ${network}: take it out ("ip link set ${ifname} nomaster"), ${remedy}`,
    );
  }
  const own = addr_info.find(isGiven);
  if (own === undefined) return;
  const address = `${own.local}/${own.prefixlen}`;
  throw new VtepError(
    "CONFLICT",
    `${ifname} has the address ${address}, by which this host is in network ${network}: take it away ("ip addr del ${address} dev ${ifname}"), ${remedy}`,
  );
}

/** Throws CONFLICT where it has what another one has already, of those that are attached. */
export function checkAlone(own: Attachment, attached: readonly Attachment[]): void {
  const conflict = conflictOf(own, attached);
  if (conflict !== undefined) throw new VtepError("CONFLICT", conflict);
}

/** What it has that is another one's, in a sentence: a port, or in its network the MAC or an address. */
export function conflictOf(own: Attachment, attached: readonly Attachment[]): string | undefined {
  const used = new Set(own.addresses.map(bare));
  for (const other of attached) {
    if (other.link === own.link) continue;
    const whose = `${other.ifname} of ${other.target}`;
    const port = other.published.find((each) => own.published.some((one) => isSame(one, each)));
    if (port !== undefined)
      return `port ${hostPort(port)} is published already, for ${whose}: publish another`;
    if (other.network !== own.network) continue;
    if (other.mac === own.mac) return `${own.mac} is the MAC of ${whose}: choose another`;
    const address = other.addresses.map(bare).find((each) => used.has(each));
    if (address !== undefined) return `${address} is used already, by ${whose}: choose another`;
  }
  return undefined;
}

/** Ports that somebody on this host listens at would be taken from them. `own` is the agent's. */
export async function checkPorts(
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
    throw new VtepError("USAGE", `port ${hostPort(twice)} is published twice: publish it once`);
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
