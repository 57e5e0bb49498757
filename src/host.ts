/**
 * The host's links, routes and addresses, through iproute2. Nothing else in this program asks the
 * kernel about them or changes them. Every function throws VtepError LINK with ip's own words when
 * ip refuses.
 */
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { VtepError } from "./errors.ts";

const run = promisify(execFile);

/** The way to an address on the underlay. */
export interface Route {
  readonly device: string;
  readonly source: string;
  /** Bytes of an IP packet: the route's own MTU where it has one, else its device's. */
  readonly mtu: number;
}

/** The route to `address`; undefined when there is none. */
export async function routeTo(address: string): Promise<Route | undefined> {
  const [route] = await query<RouteRow>(["route", "get", address]).catch(() => []);
  if (route === undefined) return undefined;
  const mtu = route.metrics?.find((metric) => metric.mtu !== undefined)?.mtu;
  return {
    device: route.dev,
    source: route.prefsrc,
    mtu: mtu ?? (await linkNamed(route.dev))?.mtu ?? 1500,
  };
}

/** An interface, or undefined when there is none of that name. */
export async function linkNamed(name: string): Promise<Link | undefined> {
  const links = await query<Link>(["-d", "link", "show", "dev", name]).catch(() => []);
  return links[0];
}

/** The addresses of this host's interfaces, without prefix lengths. */
export async function localAddresses(): Promise<string[]> {
  const links = await query<{ addr_info?: { local?: string }[] }>(["addr", "show"]);
  return links.flatMap(({ addr_info = [] }) => addr_info.flatMap(({ local }) => local ?? []));
}

/** The name of the kernel VXLAN device that holds UDP `port`, if one does. */
export async function vxlanDeviceOn(port: number): Promise<string | undefined> {
  const devices = await query<Link>(["-d", "link", "show", "type", "vxlan"]).catch(() => []);
  return devices.find(({ linkinfo }) => linkinfo?.info_data?.port === port)?.ifname;
}

/** Gives a TAP its address and MTU, joins it to a bridge, and brings it up. */
export async function bringUp(tap: {
  name: string;
  mac: string;
  mtu: number;
  bridge: string | undefined;
}): Promise<void> {
  const master = tap.bridge === undefined ? [] : ["master", tap.bridge];
  await ip(["link", "set", "dev", tap.name, "address", tap.mac, "mtu", `${tap.mtu}`, ...master]);
  await ip(["link", "set", "dev", tap.name, "up"]);
}

/** Makes a bridge and brings it up. */
export async function createBridge(name: string): Promise<void> {
  await ip(["link", "add", "name", name, "type", "bridge"]);
  await ip(["link", "set", "dev", name, "up"]);
}

/** Removes a bridge unless ports are left on it; returns whether it is gone. */
export async function removeIdleBridge(name: string): Promise<boolean> {
  const ports = await query(["link", "show", "master", name]).catch(() => []);
  if (ports.length > 0) return false;
  await ip(["link", "del", "dev", name]).catch(() => undefined);
  return true;
}

interface RouteRow {
  dev: string;
  prefsrc: string;
  metrics?: { mtu?: number }[];
}

interface Link {
  ifname: string;
  mtu: number;
  linkinfo?: { info_kind?: string; info_data?: { port?: number } };
}

async function query<Row>(args: readonly string[]): Promise<Row[]> {
  const output = await ip(["-j", ...args]);
  // ip prints empty objects for what a filter left out, and nothing at all for an empty list.
  const rows = output.trim() === "" ? [] : (JSON.parse(output) as Row[]);
  return rows.filter((row) => Object.keys(row as object).length > 0);
}

async function ip(args: readonly string[]): Promise<string> {
  try {
    return (await run("ip", args)).stdout;
  } catch (error) {
    const { code, stderr } = error as { code?: unknown; stderr?: string };
    if (code === "ENOENT") {
      throw new VtepError("LINK", "the command ip is missing: install iproute2", error);
    }
    const reason = (stderr ?? "").trim().split("\n")[0];
    throw new VtepError("LINK", `"ip ${args.join(" ")}" failed: ${reason}`, error);
  }
}
