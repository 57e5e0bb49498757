/**
 * Changes to this host's TAPs, bridges and gateways.
 *
 * **One process for many links.** Starting `ip` takes longer than what it does, so whatever concerns
 * several links goes to one `ip -batch`. Links are removed as a group: the kernel then waits for its
 * readers once, and not once a link (60 TAPs: 30 ms in place of 1.2 s).
 *
 * Every function throws VtepError PERMISSION or LINK with one sentence when ip is missing or refuses.
 */
import { randomInt } from "node:crypto";
import { command } from "./command.ts";
import { VtepError } from "./errors.ts";
import { isGiven, type Link, linksByName } from "./host.ts";
import { batch, batchOfEach, done, refused } from "./iproute.ts";

/** A TAP as it is to be. */
export interface TapLink {
  readonly name: string;
  readonly mac: string;
  readonly mtu: number;
  readonly bridge: string | undefined;
}

/** Gives TAPs their addresses and MTUs, joins them to their bridges, and brings them up. */
export async function bringUp(taps: readonly TapLink[]): Promise<void> {
  const changes = taps.flatMap(({ name, mac, mtu, bridge }) => {
    const master = bridge === undefined ? [] : ["master", bridge];
    const joining = bridge === undefined ? "" : ` and joining it to ${bridge}`;
    return [
      {
        does: `setting up TAP ${name}${joining}`,
        words: ["link", "set", "dev", name, "address", mac, "mtu", `${mtu}`, ...master],
      },
      { does: `bringing up TAP ${name}`, words: ["link", "set", "dev", name, "up"] },
    ];
  });
  await done(batch(changes));
}

/**
 * Takes the queueing discipline from TAPs that are new, or new in a namespace. A TAP takes every frame at once, so
 * that none waits in one; but the default one has 256 parts where the TAP may have several queues, each of which
 * takes memory for as many frames as the TAP is to keep: 90 MB a TAP over a restart.
 */
export async function unqueue(taps: readonly string[], namespace?: string): Promise<void> {
  const lines = taps.map((name) => `qdisc replace dev ${name} root noqueue\n`).join("");
  const within = namespace === undefined ? [] : ["nsenter", `--net=${namespace}`];
  const { code, refusal } = await command([...within, "tc", "-batch", "-"], lines, "iproute2");
  if (code !== 0) throw refused("taking the queueing discipline from TAPs", refusal);
}

/** The interface by which this host itself is in a network. */
export interface GatewayLink {
  readonly bridge: string;
  readonly mac: string;
  /** With prefix lengths. */
  readonly addresses: readonly string[];
}

/** Gives bridges the MACs and addresses of gateways; what they have already, they have still. */
export async function setUpGateways(gateways: readonly GatewayLink[]): Promise<void> {
  const changes = gateways.flatMap(({ bridge, mac, addresses }) => [
    {
      does: `giving ${bridge} the MAC of gateways`,
      words: ["link", "set", "dev", bridge, "address", mac],
    },
    ...addresses.map((address) => ({
      does: `giving ${bridge} the address ${address}`,
      words: addressWords("replace", address, bridge),
    })),
  ]);
  await done(batch(changes));
}

/** Takes addresses from bridges, and gives these MACs to bridges. */
export async function tearDownGateways(
  addresses: readonly (readonly [bridge: string, address: string])[],
  macs: readonly (readonly [bridge: string, mac: string])[],
): Promise<void> {
  const changes = [
    ...addresses.map(([bridge, address]) => ({
      does: `taking ${address} from ${bridge}`,
      words: ["addr", "del", address, "dev", bridge],
    })),
    ...macs.map(([bridge, mac]) => ({
      does: `giving ${bridge} its MAC`,
      words: ["link", "set", "dev", bridge, "address", mac],
    })),
  ];
  await done(batch(changes, { options: ["-force"] })); // one that is gone must not keep the others
}

/** An IPv6 address is to be of use at once: nobody else is asked for it. */
export function addressWords(verb: "add" | "replace", address: string, device: string): string[] {
  const detection = address.includes(":") ? ["nodad"] : [];
  return ["addr", verb, address, "dev", device, ...detection];
}

/** Whether a TAP that is to be in a bridge is not in it, by these links. */
export function hasLeft({ name, bridge }: TapLink, links: ReadonlyMap<string, Link>): boolean {
  const link = links.get(name);
  if (bridge === undefined || link === undefined) return false;
  return link.master === undefined || link.master !== links.get(bridge)?.ifname;
}

/**
 * Gives TAPs that are up another MTU or another bridge, each whatever becomes of the others; returns why those failed
 * that did. One that was given no bridge may have one of somebody else's.
 */
export function adjustTaps(
  taps: readonly { readonly before: TapLink; readonly after: TapLink }[],
): Promise<VtepError[]> {
  const changes = taps.map(({ before, after: { name, mtu, bridge } }) => {
    const leaving = before.bridge === undefined ? [] : ["nomaster"];
    const master = bridge === undefined ? leaving : ["master", bridge];
    return {
      does: `changing TAP ${name}`,
      words: ["link", "set", "dev", name, "mtu", `${mtu}`, ...master],
    };
  });
  return batchOfEach(changes);
}

/** Makes links ports of no bridge. */
export async function leaveBridges(names: readonly string[]): Promise<void> {
  const changes = names.map((name) => ({
    does: `taking ${name} out of its bridge`,
    words: ["link", "set", "dev", name, "nomaster"],
  }));
  await done(batch(changes));
}

/** Makes links ports of bridges that they are not in yet. */
export async function movePorts(bridges: ReadonlyMap<string, string>): Promise<void> {
  const changes = [...bridges].map(([name, bridge]) => ({
    does: `moving ${name} to ${bridge}`,
    words: ["link", "set", "dev", name, "master", bridge],
  }));
  await done(batch(changes, { options: ["-force"] })); // one that is gone must not keep the others
}

/** Has the kernel keep so many frames for whoever reads a TAP; one that is to keep fewer drops the rest. */
export async function resizeQueues(frames: ReadonlyMap<string, number>): Promise<void> {
  const changes = [...frames].map(([tap, length]) => ({
    does: `sizing the queue of TAP ${tap}`,
    words: ["link", "set", "dev", tap, "txqueuelen", `${length}`],
  }));
  await done(batch(changes, { options: ["-force"] })); // one that is gone must not keep the others
}

/** Makes bridges and brings them up: all of them, or none and throws. */
export async function createBridges(names: readonly string[]): Promise<void> {
  const failed = await batch([
    ...names.map((name) => ({
      does: `creating bridge ${name}`,
      words: ["link", "add", "name", name, "type", "bridge"],
    })),
    ...names.map((name) => ({
      does: `bringing up bridge ${name}`,
      words: ["link", "set", "dev", name, "up"],
    })),
  ]);
  if (failed === undefined) return;
  const { code, message } = failed.error;
  await removeIdleBridges(names.slice(0, failed.at)).catch((also: Error) => {
    throw new VtepError(code, `${message}, and ${also.message}`, also);
  });
  throw failed.error;
}

/** What is ours of a bridge that may have to outlast us. */
export interface Own {
  readonly ports: ReadonlySet<string>;
  /** With prefix lengths, each after its bridge's name and a space. */
  readonly addresses: ReadonlySet<string>;
}

/**
 * Removes bridges, except those on which ports are left; returns which these are. Where `own` is given, that does
 * not count, but an address does that somebody gave to the bridge.
 */
export async function removeIdleBridges(names: readonly string[], own?: Own): Promise<string[]> {
  const links = await linksByName();
  const ports = [...links.values()].filter(({ ifname }) => !own?.ports.has(ifname));
  const masters = new Set(ports.map(({ master }) => master));
  const there = names.filter((name) => links.get(name)?.linkinfo?.info_kind === "bridge");
  const isInUse = (name: string) =>
    masters.has(name) || (own !== undefined && wasAddressed(links.get(name)!, own));
  await removeLinks(
    there.filter((name) => !isInUse(name)),
    links,
  );
  return there.filter(isInUse);
}

/** Whether somebody else gave it an address. */
function wasAddressed({ ifname, addr_info = [] }: Link, { addresses }: Own): boolean {
  return addr_info.some((address) => {
    return isGiven(address) && !addresses.has(`${ifname} ${address.local}/${address.prefixlen}`);
  });
}

/** Removes those of these TAPs that there are; another link of the same name is left alone. */
export async function removeTaps(taps: readonly TapLink[]): Promise<void> {
  const links = await linksByName();
  const ours = taps.filter(({ name, mac }) => {
    const link = links.get(name);
    return link?.linkinfo?.info_kind === "tun" && link.address === mac;
  });
  await removeLinks(
    ours.map(({ name }) => name),
    links,
  );
}

async function removeLinks(
  names: readonly string[],
  links: ReadonlyMap<string, Link>,
): Promise<void> {
  if (names.length === 0) return;
  const group = unusedGroup(links);
  const changes = [
    ...names.map((name) => ({
      does: `removing ${name}`,
      words: ["link", "set", "dev", name, "group", group],
    })),
    { does: `removing ${names.join(", ")}`, words: ["link", "del", "group", group] },
  ];
  await done(batch(changes, { options: ["-force"] })); // one that is gone must not keep the others
}

function unusedGroup(links: ReadonlyMap<string, Link>): string {
  const used = new Set([...links.values()].map(({ group }) => group));
  for (;;) {
    const group = `${randomInt(2 ** 16, 2 ** 31)}`;
    if (!used.has(group)) return group;
  }
}
