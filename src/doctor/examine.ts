/**
 * Gathers what the doctor judges by: from /proc, from iproute2, nft, ethtool and ss, and by asking the
 * peers (`probe.ts`). It changes nothing. What a program that is missing, or refuses, would have told is
 * unseen, with the reason.
 */
import { execFile } from "node:child_process";
import { closeSync, constants, openSync, readFileSync, realpathSync, statSync } from "node:fs";
import { basename } from "node:path";
import { promisify } from "node:util";
import type { Config } from "../config.ts";
import { surroundings } from "../host.ts";
import { isOurs, peersOf, survey } from "../survey.ts";
import type {
  AgentFacts,
  Facts,
  Features,
  PortRange,
  Seen,
  SocketFacts,
  TunFacts,
} from "./facts.ts";
import { isUnseen } from "./facts.ts";
import { readSave } from "./iptables.ts";
import { askPorts, measurePaths } from "./probe.ts";
import { isObscure, readRuleset, type Table, type Tool } from "./ruleset.ts";

/** All paths together. */
const PATHS_MS = 8_000;
const PROGRAM_MS = 10_000;
const LONGEST_OUTPUT = 256 * 1024 * 1024;

/**
 * `known` is what the command knows before: what agents say, above all. Throws VtepError LINK when iproute2 is
 * missing or refuses: without it there is nothing to see.
 */
export async function examine(
  config: Config,
  known: Pick<Facts, "hasFile" | "agent" | "down" | "socketRefusal">,
): Promise<Facts> {
  const peers = peersOf(config);
  const { links, addresses, routes } = await surroundings(peers, config);
  const taps = [...links.values()].filter(({ linkinfo }) => linkinfo?.info_kind === "tun");
  const refusal = survey(config, new Map(taps.map(({ ifname, mtu }) => [ifname, mtu]))).then(
    () => undefined,
    (error: Error) => error.message,
  );
  const targets = peers.flatMap((address) => {
    const route = routes.get(address);
    if (route === undefined) return [];
    return [{ address, source: sourceFor(config, address, addresses), upper: route.mtu }];
  });
  const devices = [...new Set([...routes.values()].map(({ device }) => device))];
  const [low, high] = config.sourcePorts;
  const metricsPort = config.metricsListen?.port;
  const [sockets, sourceSockets, metricsSockets, filters, paths, features] = await Promise.all([
    socketsOn("-uanpm", `sport = :${config.port}`, known.agent),
    socketsOn("-uanpm", `sport >= :${low} and sport <= :${high}`, known.agent),
    metricsPort === undefined ? [] : socketsOn("-tlnpm", `sport = :${metricsPort}`, known.agent),
    packetFilters(),
    measurePaths(targets, PATHS_MS),
    Promise.all(devices.map(async (device) => [device, await featuresOf(device)] as const)),
  ]);
  // Not at once: routers say only once a second that something is out of reach.
  const ports = await askPorts(targets, config.port);
  return {
    config,
    ...known,
    refusal: await refusal,
    capabilities: capabilities(),
    isRoot: process.geteuid?.() === 0,
    tun: tunDevice(),
    sockets,
    sourceSockets,
    metricsSockets,
    links,
    addresses,
    routes,
    filters,
    conntrack: conntrack(),
    receiveBufferMax: number("/proc/sys/net/core/rmem_max"),
    forwarding: ([4, 6] as const).filter((family) => {
      const setting = family === 4 ? "ipv4/ip_forward" : "ipv6/conf/all/forwarding";
      return number(`/proc/sys/net/${setting}`) === 1;
    }),
    unprivilegedPort: number("/proc/sys/net/ipv4/ip_unprivileged_port_start") ?? 1024,
    reservedPorts: reservedPorts(),
    paths,
    ports,
    features: new Map(features),
    bridgeFilters: ["iptables", "ip6tables", "arptables"].filter((name) => {
      return (number(`/proc/sys/net/bridge/bridge-nf-call-${name}`) ?? 0) !== 0;
    }),
  };
}

/** The kernel sends from any; what is answered to one that is not ours goes elsewhere. */
function sourceFor(
  { local }: Config,
  peer: string,
  addresses: readonly string[],
): string | undefined {
  if (local === undefined || !isOurs(local, addresses)) return undefined;
  return local.includes(":") === peer.includes(":") ? local : undefined;
}

// ---- The process

/** Bits of include/uapi/linux/capability.h. */
const CAPABILITIES = {
  10: "CAP_NET_BIND_SERVICE",
  12: "CAP_NET_ADMIN",
  13: "CAP_NET_RAW",
} as const;

function capabilities(): string[] {
  const status = read("/proc/self/status") ?? "";
  const effective = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)/m.exec(status)?.[1] ?? "0"}`);
  return Object.entries(CAPABILITIES)
    .filter(([bit]) => (effective >> BigInt(bit)) & 1n)
    .map(([, name]) => name);
}

const TUN = "/dev/net/tun";
/** The number of the device, 10:200, as stat() packs it. */
const TUN_NUMBER = (10 << 8) | 200;

function tunDevice(): TunFacts {
  try {
    const found = statSync(TUN);
    if (!found.isCharacterDevice()) return { state: "other", what: "no character device" };
    if (found.rdev !== TUN_NUMBER) return { state: "other", what: "another device than 10:200" };
    closeSync(openSync(TUN, constants.O_RDWR));
    return { state: "openable" };
  } catch (error) {
    const { code = "" } = error as NodeJS.ErrnoException;
    return code === "ENOENT" ? { state: "missing" } : { state: "refused", code };
  }
}

// ---- Who holds ports

async function socketsOn(
  kind: "-uanpm" | "-tlnpm",
  ports: string,
  agent: Seen<AgentFacts>,
): Promise<Seen<readonly SocketFacts[]>> {
  const listing = await output("ss", ["-H", "-O", kind, ports], "iproute2");
  if (typeof listing !== "string") return listing;
  const lines = listing.split("\n").filter((line) => line.trim() !== "");
  return lines.map((line): SocketFacts => {
    const local = line.split(/\s+/)[3] ?? "";
    const colon = local.lastIndexOf(":");
    const address = local.slice(0, colon).replace(/%.*$/, "");
    const pid = Number(/\bpid=(\d+)/.exec(line)?.[1]);
    const receiveBuffer = Number(/skmem:\(r\d+,rb(\d+)/.exec(line)?.[1]);
    const drops = Number(/skmem:\([^)]*\bd(\d+)\)/.exec(line)?.[1]);
    return {
      address: address.replace(/^\[(?:::ffff:(?=[\d.]+\]))?|\]$/g, ""),
      port: Number(local.slice(colon + 1)),
      isAgent: false,
      ...(pid > 0 && ownerOf(pid, agent)),
      ...(receiveBuffer > 0 && { receiveBuffer }),
      ...(drops >= 0 && { drops }),
    };
  });
}

function ownerOf(pid: number, agent: Seen<AgentFacts>) {
  const words = (read(`/proc/${pid}/cmdline`) ?? "").split("\0").filter((word) => word !== "");
  const name = (read(`/proc/${pid}/comm`) ?? "").trim();
  const program = [words[0], words[1]].map((word) => basename(word ?? ""));
  const isAgent =
    (!isUnseen(agent) && pid === agent.pid) ||
    program.includes("vtep") ||
    words.some(isThisProgram);
  const command = words.length === 0 ? name : words.join(" ");
  return { pid, command: command || "a process that has gone", isAgent };
}

function isThisProgram(word: string): boolean {
  try {
    return word.endsWith("cli.js") && realpathSync(word) === realpathSync(process.argv[1] ?? "");
  } catch {
    return false;
  }
}

// ---- Packet filters

async function packetFilters(): Promise<Seen<readonly Table[]>> {
  if (process.geteuid?.() !== 0) {
    return { unseen: "only root may read them", remedy: "run vtep doctor as root" };
  }
  const legacy = await legacyTables();
  if (isUnseen(legacy)) return legacy;
  const [json, listing] = await Promise.all([
    output("nft", ["-j", "list", "ruleset"], "nftables"),
    output("nft", ["-a", "list", "ruleset"], "nftables"),
  ]);
  if (typeof json !== "string") return json;
  const tables = readRuleset(json, typeof listing === "string" ? listing : "");
  return [...legacy, ...(await speltOut(tables))];
}

/** iptables-save of the legacy kind would load its modules where they are not in use. */
async function legacyTables(): Promise<Seen<Table[]>> {
  const tools = [
    ["/proc/net/ip_tables_names", "iptables-legacy"],
    ["/proc/net/ip6_tables_names", "ip6tables-legacy"],
  ] as const;
  const tables: Table[] = [];
  for (const [names, tool] of tools) {
    if ((read(names) ?? "").trim() === "") continue;
    const save = await output(`${tool}-save`, [], "iptables");
    if (typeof save !== "string") return save;
    tables.push(...readSave(save, tool));
  }
  return tables;
}

/** The tables, with those of iptables-nft read from its own tool where nft shows less. */
async function speltOut(tables: readonly Table[]): Promise<Table[]> {
  const saved: Table[] = [];
  for (const [family, tool] of [
    ["ip", "iptables"],
    ["ip6", "ip6tables"],
  ] as const) {
    if (!tables.some((table) => table.family === family && isObscure(table))) continue;
    const save = await output(`${tool}-nft-save`, [], "iptables");
    if (typeof save === "string") saved.push(...readSave(save, tool satisfies Tool));
  }
  return tables.map((table) => {
    const better = saved.find(({ family, name }) => family === table.family && name === table.name);
    return isObscure(table) ? (better ?? table) : table;
  });
}

// ---- The kernel's limits, and the devices

/** As in "8080,9000-9010". */
function reservedPorts(): PortRange[] {
  const text = (read("/proc/sys/net/ipv4/ip_local_reserved_ports") ?? "").trim();
  if (text === "") return [];
  return text.split(",").map((part): PortRange => {
    const [low, high = low] = part.split("-").map(Number);
    return [low!, high!];
  });
}

function conntrack(): Facts["conntrack"] {
  const count = number("/proc/sys/net/netfilter/nf_conntrack_count");
  const max = number("/proc/sys/net/netfilter/nf_conntrack_max");
  return count === undefined || max === undefined ? undefined : { count, max };
}

async function featuresOf(device: string): Promise<Seen<Features>> {
  const json = await output("ethtool", ["--json", "--show-features", device], "ethtool");
  if (typeof json !== "string") return json;
  try {
    const [found] = JSON.parse(json) as [
      Record<string, { active?: boolean; fixed?: boolean | null }>,
    ];
    const features = Object.entries(found).filter(([, state]) => typeof state === "object");
    return Object.fromEntries(
      features.map(([name, { active, fixed }]) => [name, { active: !!active, fixed: !!fixed }]),
    );
  } catch {
    return { unseen: "ethtool prints no JSON here", remedy: "install ethtool 5.10 or newer" };
  }
}

// ---- Where it comes from

function read(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
}

function number(path: string): number | undefined {
  const text = read(path);
  return text === undefined ? undefined : Number(text);
}

/** What a program prints, or why it did not. */
async function output(
  program: string,
  args: readonly string[],
  debianPackage: string,
): Promise<Seen<string>> {
  try {
    const limits = { timeout: PROGRAM_MS, maxBuffer: LONGEST_OUTPUT };
    return (await promisify(execFile)(program, args, limits)).stdout;
  } catch (error) {
    const { code, stderr, message } = error as NodeJS.ErrnoException & { stderr?: string };
    if (code === "ENOENT") {
      return { unseen: `the command ${program} is missing`, remedy: `install ${debianPackage}` };
    }
    const said = stderr?.trim().split("\n")[0] || message.split("\n")[0];
    return {
      unseen: `"${[program, ...args].join(" ")}" failed: ${said}`,
      remedy: "run vtep doctor as root",
    };
  }
}
