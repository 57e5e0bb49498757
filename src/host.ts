/**
 * The host's links, routes and addresses, through iproute2. Nothing else in this program asks the
 * kernel about them or changes them.
 *
 * **One process for many links.** Starting `ip` takes longer than what it does, so whatever concerns
 * several links goes to one `ip -batch`. Links are removed as a group: the kernel then waits for its
 * readers once, and not once a link (60 TAPs: 30 ms in place of 1.2 s).
 *
 * Every function throws VtepError PERMISSION or LINK with one sentence when ip is missing or refuses.
 */
import { randomInt } from "node:crypto";
import { readFileSync } from "node:fs";
import { isIn } from "./addresses.ts";
import { command, type Ended } from "./command.ts";
import { VtepError } from "./errors.ts";
import { addressFamily } from "./remotes.ts";

/** The way to an address on the underlay. */
export interface Route {
  readonly device: string;
  readonly source: string;
  /** Bytes of an IP packet: the route's own MTU where it has one, but no more than its device's, of that family. */
  readonly mtu: number;
}

/** An interface, as ip shows it. */
export interface Link {
  readonly ifname: string;
  readonly altnames?: readonly string[];
  readonly mtu: number;
  readonly address?: string;
  /** Name of the bridge, bond or the like that it is a port of. */
  readonly master?: string;
  /** Name of the device that it lies on, or of a veth's other end, if that is on this host. */
  readonly link?: string;
  readonly flags?: readonly string[];
  readonly group?: string;
  readonly txqlen?: number;
  /** What its maker noted about it. */
  readonly ifalias?: string;
  readonly addr_info?: readonly LinkAddress[];
  readonly linkinfo?: {
    readonly info_kind?: string;
    readonly info_data?: { readonly port?: number };
  };
}

export interface LinkAddress {
  readonly local?: string;
  readonly prefixlen?: number;
  readonly scope?: string;
  /** Whether it came by a router's advertisement, or for a time. */
  readonly dynamic?: boolean;
  /** Of IPv6: whether another host has it is not known yet; or one has (RFC 4862, section 5.4). */
  readonly tentative?: boolean;
  readonly dadfailed?: boolean;
  /** It may be used meanwhile (RFC 4429). */
  readonly optimistic?: boolean;
  /** It was made to be forgotten, after a day or a week (RFC 8981). */
  readonly temporary?: boolean;
  /** Nothing new is to be sent from it. */
  readonly deprecated?: boolean;
  /** It is of a prefix that a router advertises; temporary ones may be made beside it (RFC 8981). */
  readonly mngtmpaddr?: boolean;
}

/** What matters of a host to who has peers. */
export interface Surroundings {
  /** Every interface, by each of its names. */
  readonly links: ReadonlyMap<string, Link>;
  /** The addresses of the interfaces, without prefix lengths. */
  readonly addresses: readonly string[];
  /** By address; one to which no route leads is left out. */
  readonly routes: ReadonlyMap<string, Route>;
}

/**
 * Rules may choose another way for what leaves from `local`, where that was said, or goes to UDP `port`, or there may
 * be none for others. A local address that is none of this host's is not asked for.
 */
export async function surroundings(
  peers: readonly string[],
  { local, port }: { readonly local: string | undefined; readonly port: number },
): Promise<Surroundings> {
  const asked = linksByName();
  const from = local !== undefined && addressesOf(await asked).includes(local) ? local : undefined;
  const sourceTo = (peer: string) =>
    from !== undefined && addressFamily(from) === addressFamily(peer) ? from : undefined;
  const [links, rows] = await Promise.all([asked, routeRows(peers, { sourceTo, port })]);
  const routes = rows.map(({ dst, dev, prefsrc, metrics }) => {
    const its = metrics?.find((metric) => metric.mtu !== undefined)?.mtu ?? mtuOfFamily(dst, dev);
    const mtu = Math.min(its, links.get(dev)?.mtu ?? 1500);
    return [dst, { device: dev, source: sourceTo(dst) ?? lasting(prefsrc!, links), mtu }] as const;
  });
  return { links, addresses: addressesOf(links), routes: new Map(routes) };
}

/** What an interface carries of IPv6 may be less, as a router that advertises it says (RFC 4861); ip does not tell. */
function mtuOfFamily(address: string, device: string): number {
  if (addressFamily(address) === 4) return Infinity;
  try {
    return Number(readFileSync(`/proc/sys/net/ipv6/conf/${device}/mtu`, "utf8"));
  } catch {
    return Infinity; // it is gone
  }
}

/** What a VTEP can be known by where the kernel would choose a temporary address: the one that is there beside it. */
function lasting(source: string, links: Surroundings["links"]): string {
  for (const { addr_info = [] } of links.values()) {
    const chosen = addr_info.find(({ local }) => local === source);
    if (!chosen?.temporary) continue;
    const other = addr_info.find((address) => {
      const { local, temporary, deprecated, tentative, optimistic } = address;
      if (local === undefined || temporary || deprecated || (tentative && !optimistic))
        return false;
      return isIn(local, `${source}/${chosen.prefixlen}`);
    });
    if (other !== undefined) return other.local!;
  }
  return source;
}

function addressesOf(links: Surroundings["links"]): string[] {
  return [...new Set(links.values())].flatMap(({ addr_info = [] }) =>
    addr_info.flatMap(({ local }) => local ?? []),
  );
}

export async function linksByName(): Promise<ReadonlyMap<string, Link>> {
  const links = await query<Link>(["-d", "addr", "show"]);
  return new Map(
    links.flatMap((link) => [link.ifname, ...(link.altnames ?? [])].map((name) => [name, link])),
  );
}

/** What rules may ask of a datagram of ours, beside its destination. */
interface Ours {
  /** Where it leaves from; undefined: whichever is chosen. */
  readonly sourceTo: (address: string) => string | undefined;
  readonly port: number;
}

/** As they are configured: what ICMP has told of a path, which anybody can send, is not asked for. */
async function routeRows(addresses: readonly string[], ours: Ours): Promise<RouteRow[]> {
  const rows = await routesTo(addresses, ours);
  const learned = rows.filter(({ expires }) => expires !== undefined).map(({ dst }) => dst);
  const matches = await routesTo(learned, ours, "fibmatch"); // which have other addresses, those of the routes
  const configured = new Map(learned.map((dst, at) => [dst, matches[at]?.metrics]));
  return rows.map((row) =>
    row.expires === undefined ? row : { ...row, metrics: configured.get(row.dst) },
  );
}

async function routesTo(
  addresses: readonly string[],
  { sourceTo, port }: Ours,
  ...how: string[]
): Promise<RouteRow[]> {
  if (addresses.length === 0) return [];
  const words = addresses.map((address) => {
    const source = sourceTo(address);
    const from = source === undefined ? [] : ["from", source];
    return ["route", "get", ...how, address, ...from, "ipproto", "udp", "dport", `${port}`];
  });
  const { stdout, code, refusal } = await ip(["-force", "-j", "-batch", "-"], words);
  // Those that there are are printed all the same. No route is the kernel's answer, not ip's failure.
  if (code !== 0 && !refusal.startsWith(KERNEL_SAYS)) {
    throw new VtepError("LINK", `"ip route get" failed: ${refusal}`);
  }
  return stdout.split("\n").flatMap((line) => parse<RouteRow>(line));
}

/** The name of the kernel VXLAN device that holds UDP `port`, if one does. */
export async function vxlanDeviceOn(port: number): Promise<string | undefined> {
  const devices = await query<Link>(["-d", "link", "show", "type", "vxlan"]);
  return devices.find(({ linkinfo }) => linkinfo?.info_data?.port === port)?.ifname;
}

/** A port of this host that somebody listens at. */
export interface Listener {
  readonly protocol: "tcp" | "udp";
  /** `0.0.0.0` and `::` are any of their family; undefined: any. */
  readonly address?: string;
  readonly port: number;
}

/** Listed, and not tried by binding to them: that asks for rights, and for sockets that a sandbox need not permit. */
export async function listeners(): Promise<Listener[]> {
  const { stdout, code, refusal } = await command(["ss", "-HOnltu"], "", "iproute2");
  if (code !== 0) throw new VtepError("LINK", `"ss" failed: ${refusal}`);
  const local = /^(tcp|udp)\s+\S+\s+\d+\s+\d+\s+\[?(?:::ffff:)?([^\]%\s]+)\]?(?:%\S+)?:(\d+)\s/gm;
  return [...stdout.matchAll(local)].map(([, protocol, address, port]) => ({
    protocol: protocol as "tcp",
    ...(address !== "*" && { address: address! }),
    port: Number(port),
  }));
}

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

/**
 * Interfaces by which a router has advertised itself: there is a route of it (RFC 4861), or an address in a prefix
 * of it (RFC 4862), which is all that one gives that leads nowhere.
 */
export async function advertised(): Promise<string[]> {
  const [routes, links] = await Promise.all([
    query<{ dev?: string }>(["-6", "route", "show", "proto", "ra"]),
    linksByName(),
  ]);
  const addressed = [...links.values()].filter(({ addr_info = [] }) =>
    addr_info.some(({ mngtmpaddr }) => mngtmpaddr),
  );
  const leading = routes.flatMap(({ dev }) => dev ?? []); // one by several interfaces is not the kernel's
  return [...new Set([...leading, ...addressed.map(({ ifname }) => ifname)])];
}

/** Gives a TAP that is up another MTU or another bridge. One that was given none may have one of somebody else's. */
export async function adjustTap(before: TapLink, { name, mtu, bridge }: TapLink): Promise<void> {
  const leaving = before.bridge === undefined ? [] : ["nomaster"];
  const master = bridge === undefined ? leaving : ["master", bridge];
  await done(
    batch([
      {
        does: `changing TAP ${name}`,
        words: ["link", "set", "dev", name, "mtu", `${mtu}`, ...master],
      },
    ]),
  );
}

/** Makes links ports of no bridge. */
export async function leaveBridges(names: readonly string[]): Promise<void> {
  const changes = names.map((name) => ({
    does: `taking ${name} out of its bridge`,
    words: ["link", "set", "dev", name, "nomaster"],
  }));
  await done(batch(changes));
}

/** Makes links ports of a bridge that they are not yet. */
export async function movePorts(names: readonly string[], bridge: string): Promise<void> {
  const changes = names.map((name) => ({
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

/** A veth pair: one end is the port of a bridge here, the other the interface of a container. */
export interface Veth {
  /** Of the end that is here. */
  readonly name: string;
  readonly bridge: string;
  readonly alias: string;
  /** Path of the container's network namespace. */
  readonly namespace: string;
  /** What people call that. */
  readonly target: string;
  readonly ifname: string;
  readonly mac: string;
  readonly mtu: number;
  /** With prefix lengths. */
  readonly addresses: readonly string[];
  readonly routes: readonly RouteInside[];
}

/** Where packets go that leave a container by an interface. */
export interface RouteInside {
  /** Prefix. */
  readonly to: string;
  /** Undefined: straight out. */
  readonly via: string | undefined;
  /** Words of `ip route add`: what else it is to be. */
  readonly more?: readonly string[];
}

/**
 * Makes a veth pair and sets up both of its ends, or leaves nothing and throws.
 *
 * Last of all the container's end is given the MAC that it has: the kernel takes that for a change, and
 * announces the addresses (arp_notify, ndisc_notify). When the interface comes up, the bridge does not
 * forward from its port yet.
 *
 * The end that is here comes up as the bridge's port and not before: until then what the container sends would be
 * for this host, which would take it for its router (RFC 4861), and keep that route.
 */
export async function plug(veth: Veth): Promise<void> {
  const { name, alias, namespace, target, ifname, mac, mtu } = veth;
  const inside = { inside: { namespace, ifname } };
  const made = await batch([
    {
      does: `making ${ifname} in ${target}`,
      words: [
        ...["link", "add", "dev", name, "mtu", `${mtu}`, "type", "veth"],
        ...["peer", "name", ifname, "address", mac, "mtu", `${mtu}`, "netns", namespace],
      ],
    },
    {
      does: `noting what ${name} is`,
      words: ["link", "set", "dev", name, "alias", alias],
    },
  ]);
  if (made?.at === 0) throw made.error;
  const error =
    made?.error ?? (await batch(settingsOf(veth), inside))?.error ?? (await joinAndAnnounce(veth));
  if (error === undefined) return;
  await unplug(name);
  throw error;
}

/** Two steps in two namespaces, for the time of one. */
async function joinAndAnnounce(veth: Veth): Promise<VtepError | undefined> {
  const { name, bridge, namespace, ifname, mac } = veth;
  const steps = `
ip link set dev "$0" master "$1" up || exit 3
exec nsenter --net="$2" ip link set dev "$3" address "$4"`;
  const words = ["sh", "-c", steps, name, bridge, namespace, ifname, mac];
  const { code, refusal } = await command(words, "", "iproute2");
  if (code === 0) return undefined;
  return refused(code === 3 ? `joining ${name} to ${bridge}` : `announcing ${ifname}`, refusal);
}

/** Gives addresses and routes to an interface of a container that has none yet. */
export async function addressInside(
  veth: Pick<Veth, "namespace" | "ifname" | "mac" | "addresses" | "routes">,
): Promise<void> {
  await done(batch([...settingsOf(veth), announcementOf(veth)], { inside: veth }));
}

/** Addresses and routes of a container's interface. */
function settingsOf({
  ifname,
  addresses,
  routes,
}: Pick<Veth, "ifname" | "addresses" | "routes">): Change[] {
  return [
    ...addresses.map((address) => ({
      does: `giving ${ifname} the address ${address}`,
      words: addressWords("add", address, ifname),
    })),
    { does: `bringing up ${ifname}`, words: ["link", "set", "dev", ifname, "up"] },
    ...routes.map(({ to, via, more = [] }) => ({
      does: /^(0\.0\.0\.0|::)\/0$/.test(to)
        ? `giving ${ifname} the default route (--gateway none, where there is one)`
        : `routing ${to} over ${ifname}`,
      words: [
        ...["route", "add", to, ...(via === undefined ? [] : ["via", via])],
        ...["dev", ifname, ...more],
      ],
    })),
  ];
}

/** An IPv6 address is to be of use at once: nobody else is asked for it. */
function addressWords(verb: "add" | "replace", address: string, device: string): string[] {
  const detection = address.includes(":") ? ["nodad"] : [];
  return ["addr", verb, address, "dev", device, ...detection];
}

function announcementOf({ ifname, mac }: Pick<Veth, "ifname" | "mac">): Change {
  return {
    does: `announcing ${ifname}`,
    words: ["link", "set", "dev", ifname, "address", mac],
  };
}

/** A TAP that is to be the interface of a container. */
export type DirectLink = Omit<Veth, "bridge" | "alias">;

/** Notes what a link is. */
export async function noteAlias(name: string, alias: string): Promise<void> {
  const words = ["link", "set", "dev", name, "alias", alias];
  await done(batch([{ does: `noting what ${name} is`, words }]));
}

/** Moves a TAP into a container and sets it up there. Where it has moved and that fails, it is removed. */
export async function plugDirect(tap: DirectLink): Promise<void> {
  const { name, namespace, target, ifname, mac, mtu } = tap;
  const moved = ["link", "set", "dev", name, "netns", namespace];
  await done(batch([{ does: `moving ${name} to ${target}`, words: moved }]));
  const changes = [
    {
      does: `naming ${name} ${ifname} in ${target}`,
      words: ["link", "set", "dev", name, "name", ifname],
    },
    {
      does: `setting up ${ifname}`,
      words: ["link", "set", "dev", ifname, "address", mac, "mtu", `${mtu}`],
    },
    ...settingsOf(tap),
    announcementOf(tap),
  ];
  const failed = await batch(changes, { inside: { namespace, ifname } });
  if (failed === undefined) return unqueue([ifname], namespace).catch(() => undefined); // it takes memory
  await unplugDirect(namespace, failed.at === 0 ? name : ifname);
  throw failed.error;
}

/** Removes a link from a container. */
export async function unplugDirect(namespace: string, ifname: string): Promise<void> {
  const words = ["link", "del", "dev", ifname];
  await done(
    batch([{ does: `removing ${ifname} of the container`, words }], {
      inside: { namespace, ifname },
    }),
  );
}

/** A link of a container; undefined where it has none of that name. */
export async function linkInside(namespace: string, ifname: string): Promise<Link | undefined> {
  const words = ["-j", "-d", "addr", "show", "dev", ifname];
  const { code, stdout } = await ip(words, [], { inside: { namespace, ifname } });
  return code === 0 ? parse<Link>(stdout)[0] : undefined;
}

/** By an interface, of all tables. */
export async function routesInside(namespace: string, ifname: string): Promise<RouteInside[]> {
  const tables = await Promise.all(
    ["-4", "-6"].map((family) =>
      ip([family, "-j", "route", "show", "table", "all", "dev", ifname], [], {
        inside: { namespace, ifname },
      }),
    ),
  );
  return tables.flatMap(({ stdout }, at) => {
    const [everywhere, whole] = at === 0 ? ["0.0.0.0/0", 32] : ["::/0", 128];
    return parse<{ dst: string; gateway?: string }>(stdout).map(({ dst, gateway }) => {
      const to = dst === "default" ? everywhere : dst;
      return { to: to.includes("/") ? to : `${to}/${whole}`, via: gateway };
    });
  });
}

/** Makes a veth pair, one end of which is the port of a bridge; the other is left as it is. Or nothing, and throws. */
export async function pair(
  veth: Pick<Veth, "name" | "bridge" | "alias" | "mac" | "mtu"> & { readonly peer: string },
): Promise<void> {
  const { name, bridge, alias, peer, mac, mtu } = veth;
  const failed = await batch([
    {
      does: `making ${name}`,
      words: [
        ...["link", "add", "dev", name, "mtu", `${mtu}`, "type", "veth"],
        ...["peer", "name", peer, "address", mac, "mtu", `${mtu}`],
      ],
    },
    {
      does: `joining ${name} to ${bridge}`,
      words: ["link", "set", "dev", name, "alias", alias, "master", bridge, "up"],
    },
  ]);
  if (failed === undefined) return;
  if (failed.at > 0) await unplug(name);
  throw failed.error;
}

/** Removes a link, whose other end goes with it; false when there is none. */
export async function unplug(name: string): Promise<boolean> {
  const failed = await batch([{ does: `removing ${name}`, words: ["link", "del", "dev", name] }]);
  if (failed === undefined) return true;
  if (failed.error.message.includes("Cannot find device")) return false;
  throw failed.error;
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

/** Whether somebody else gave it an address: not the kernel, nor a router. */
function wasAddressed({ ifname, addr_info = [] }: Link, { addresses }: Own): boolean {
  return addr_info.some(({ local, prefixlen, scope, dynamic = false }) => {
    return scope !== "link" && !dynamic && !addresses.has(`${ifname} ${local}/${prefixlen}`);
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

interface RouteRow {
  dst: string;
  dev: string;
  /** What would be chosen; where an address was asked from, of IPv4 none, of IPv6 perhaps another one. */
  prefsrc?: string;
  metrics?: { mtu?: number }[] | undefined;
  /** Seconds, of what was learned and not configured. */
  expires?: number;
}

async function query<Row>(args: readonly string[]): Promise<Row[]> {
  const { stdout, code, refusal } = await ip(["-j", ...args]);
  if (code !== 0) throw new VtepError("LINK", `"ip ${args.join(" ")}" failed: ${refusal}`);
  return parse<Row>(stdout);
}

/** ip prints empty objects for what a filter left out, and nothing at all for an empty list. */
function parse<Row>(output: string): Row[] {
  const rows = output.trim() === "" ? [] : rowsOf<Row>(output);
  return rows.filter((row) => Object.keys(row as object).length > 0);
}

function rowsOf<Row>(output: string): Row[] {
  try {
    return JSON.parse(output) as Row[];
  } catch (error) {
    const sentence = `the command ip printed no JSON but ${JSON.stringify(output.slice(0, 40))}`;
    throw new VtepError("LINK", `${sentence}: ${WITH_JSON}`, error);
  }
}

const WITH_JSON = "install iproute2 of 4.13 or newer";

interface Change {
  /** For people: completes "… failed". */
  readonly does: string;
  readonly words: readonly string[];
}

/** Which of several changes failed first, and why. */
interface Failure {
  readonly at: number;
  readonly error: VtepError;
}

/** Throws where changes failed. */
async function done(changes: Promise<Failure | undefined>): Promise<void> {
  const failed = await changes;
  if (failed !== undefined) throw failed.error;
}

/** How changes are to be made. */
interface Manner {
  /** Of ip. */
  readonly options?: readonly string[];
  readonly inside?: Inside;
}

/** Makes changes in their order until one fails; returns which that is, and why. */
async function batch(
  changes: readonly Change[],
  manner: Manner = {},
): Promise<Failure | undefined> {
  if (changes.length === 0) return undefined;
  const lines = changes.map(({ words }) => words);
  const said = lines.flat().some((word) => UNWRITABLE.test(word))
    ? await oneByOne(lines, manner)
    : await ip([...(manner.options ?? []), "-batch", "-"], lines, manner);
  if (said === undefined || said.code === 0) return undefined;
  const at = said.line === undefined ? changes.length : said.line - 1;
  return { at, error: refused(changes[at]?.does ?? "changing links", said.refusal) };
}

function refused(does: string, refusal: string): VtepError {
  if (!/not permitted|permission denied/i.test(refusal)) {
    return new VtepError("LINK", `${does} failed: ${refusal}`);
  }
  const sentence = `${does} needs CAP_NET_ADMIN: run as root or with that capability`;
  return new VtepError("PERMISSION", sentence);
}

/** What a word may hold, and a batch of ip's reads as its end, a comment or a quotation; or that it is empty. */
const UNWRITABLE = /^$|[\s#'"\\]/;

/** As `ip -batch` does it: what the first that failed said. */
async function oneByOne(
  lines: readonly (readonly string[])[],
  manner: Manner,
): Promise<Said | undefined> {
  let first: Said | undefined;
  for (const [at, words] of lines.entries()) {
    const said = await ip(words, [], manner);
    if (said.code === 0) continue;
    first ??= { ...said, line: at + 1 };
    if (!manner.options?.includes("-force")) break;
  }
  return first;
}

const KERNEL_SAYS = "RTNETLINK answers: ";

/** The namespace of a container, and its interface there, which is to announce its addresses. */
interface Inside {
  readonly namespace: string;
  readonly ifname: string;
}

/** Settings of an interface can be reached from its namespace only. */
const ANNOUNCING = `
for setting in ipv4/conf/$0/arp_notify ipv6/conf/$0/ndisc_notify; do
  echo 1 >/proc/sys/net/$setting
done 2>/dev/null
exec ip "$@"`;

interface Said extends Ended {
  /** From 1: the line of a batch that failed first. */
  readonly line: number | undefined;
}

async function ip(
  args: readonly string[],
  lines: readonly (readonly string[])[] = [],
  { inside }: Manner = {},
): Promise<Said> {
  const words =
    inside === undefined
      ? ["ip", ...args]
      : ["nsenter", `--net=${inside.namespace}`, "sh", "-c", ANNOUNCING, inside.ifname, ...args];
  const input = lines.map((line) => `${line.join(" ")}\n`).join("");
  const ended = await command(words, input, "iproute2");
  if (ended.refusal.startsWith("BusyBox")) {
    throw new VtepError(
      "LINK",
      `the command ip is that of BusyBox, which has no JSON: ${WITH_JSON}`,
    );
  }
  const line = /^Command failed \S*:(\d+)$/m.exec(ended.stderr)?.[1];
  return { ...ended, line: line === undefined ? undefined : Number(line) };
}
