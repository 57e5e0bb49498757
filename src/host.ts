/**
 * What there is on this host, as iproute2 tells: links, addresses, routes, listeners.
 *
 * Every function throws VtepError PERMISSION or LINK with one sentence when a program is missing or refuses.
 */
import { readFileSync } from "node:fs";
import { isIn } from "./addresses.ts";
import { command } from "./command.ts";
import { VtepError } from "./errors.ts";
import { ip, parse, query } from "./iproute.ts";
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
    /** What the link is a port of; bonds have states of other names. */
    readonly info_slave_kind?: string;
    /** Of a port of a bridge, whether that forwards: "forwarding", or why not yet or not at all. */
    readonly info_slave_data?: { readonly state?: string };
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
      const { local, temporary, deprecated } = address;
      if (local === undefined || temporary || deprecated || !isUsable(address)) return false;
      return isIn(local, `${source}/${chosen.prefixlen}`);
    });
    if (other !== undefined) return other.local!;
  }
  return source;
}

/** Whether the kernel lets anybody send from it already. */
export function isUsable({ tentative = false, optimistic = false }: LinkAddress): boolean {
  return !tentative || optimistic;
}

/** Whether somebody gave it to its interface: not the kernel, nor a router. */
export function isGiven({ scope, dynamic = false }: LinkAddress): boolean {
  return scope !== "link" && !dynamic;
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

const KERNEL_SAYS = "RTNETLINK answers: ";

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

interface RouteRow {
  dst: string;
  dev: string;
  /** What would be chosen; where an address was asked from, of IPv4 none, of IPv6 perhaps another one. */
  prefsrc?: string;
  metrics?: { mtu?: number }[] | undefined;
  /** Seconds, of what was learned and not configured. */
  expires?: number;
}
