/**
 * The configuration in the shape that the program has, read by the schema of `schema.ts`, from which flags, `--help`,
 * the reference, the example and the checks of files, of the command line and of the API all follow.
 *
 * Everything that can be known without asking the host is checked; `survey.ts` asks the host, and
 * `config-file.ts` reads files.
 */
import * as v from "valibot";
import { bare, formatRange, isIn, isScoped, isWithin, type Range, subnetOf } from "./addresses.ts";
import { OFFLOADS, type Offloads } from "./device.ts";
import { VtepError } from "./errors.ts";
import {
  type DF,
  type EndpointKey,
  endpointEntries,
  type FdbEntry,
  fileEntries,
  isMapping,
  type ListenAddress,
  type LOG_LEVELS,
  NETWORK_KEYS,
  NETWORK_NAME,
  type NetworkKey,
  nearest,
  networkSchema,
  type Parsed,
  type ParsedNetwork,
  schema,
  TOP_KEYS,
  type UNDERLAYS,
} from "./schema.ts";
import { formatMac } from "./wire/ethernet.ts";

/** One network, complete: every default applied. */
export interface NetworkConfig {
  readonly name: string;
  readonly vni: number;
  readonly peers: readonly string[];
  readonly tap: string;
  readonly bridge: string | undefined;
  readonly vlan: number | undefined;
  /** With prefix lengths. */
  readonly gateway: readonly string[];
  readonly masquerade: boolean;
  readonly ranges: readonly Range[];
  readonly mtu: number | "auto";
  readonly clampMss: boolean;
  readonly fdb: readonly FdbEntry[];
  readonly ageSeconds: number;
  readonly fdbLimit: number;
}

/** The whole configuration, complete: every default applied. */
export interface Config {
  readonly local: string | undefined;
  readonly port: number;
  readonly underlay: (typeof UNDERLAYS)[number];
  readonly sourcePorts: readonly [low: number, high: number];
  readonly dscp: number | "inherit";
  readonly df: (typeof DF)[number];
  readonly offloads: Offloads;
  readonly workers: number | "auto";
  readonly busyPollUs: number;
  readonly strict: boolean;
  readonly logLevel: (typeof LOG_LEVELS)[number];
  readonly socket: string;
  readonly metricsListen: ListenAddress | undefined;
  readonly networks: readonly NetworkConfig[];
}

/** Steps from the top of a configuration to one of its values: `networks`, 1, `peers`, 0. */
export type Path = readonly (string | number)[];

/** What is wrong with a value by itself. */
export interface Fault {
  readonly path: Path;
  readonly kind: "missing" | "unknown" | "wrong";
  /** What follows the place or the name of the value: "is missing". */
  readonly message: string;
}

/** What is wrong with values that are each fine, or with what is between them. */
export interface Conflict {
  readonly path: Path;
  /** The other place, of two that have what only one may have. */
  readonly other?: Path;
  readonly message: string;
  readonly remedy: string;
}

/** One network in the shape that a file has, complete. Throws VtepError USAGE with one sentence. */
export function networkConfig(value: unknown): NetworkConfig {
  if (!isMapping(value)) throw new VtepError("USAGE", "a network must be a mapping with a vni");
  const network = readNetwork(value);
  refuseConflicts([...collisions([network]), ...networkConflicts(network, undefined, [])]);
  return network;
}

/** The same, whether or not it goes together. */
export function readNetwork(value: Record<string, unknown>): NetworkConfig {
  const { output, faults } = examine(networkSchema, value, () => NETWORK_KEYS);
  if (output !== undefined) return completeNetwork(output);
  const { path, message } = faults[0]!;
  throw new VtepError("USAGE", `${placeOf(path)} ${message}`);
}

/** What is wrong with the value of `include`. */
export function includeFault(value: unknown): string | undefined {
  return v.safeParse(fileEntries.include, value).issues?.[0].message;
}

/** A whole configuration in the shape that a file has, or all that is wrong with its values. */
export function parse(raw: unknown): { config: Config } | { faults: readonly Fault[] } {
  const { output, faults } = examine(schema, raw, (mapping) =>
    mapping.length === 0 ? TOP_KEYS : NETWORK_KEYS,
  );
  return output === undefined ? { faults } : { config: complete(output) };
}

/** What no single key can know: names and VNIs used twice, a network that reaches nobody. */
export function conflicts(config: Config): Conflict[] {
  const { networks, local } = config;
  const found = config.underlay === "dgram" ? nativeOnly(config) : [];
  const all = networks.map((network, at) => networkConflicts(network, local, ["networks", at]));
  return [...found, ...collisions(networks), ...all.flat()];
}

/** What the underlay of node:dgram would leave undone. */
function nativeOnly({ workers, dscp, df, sourcePorts, busyPollUs }: Config): Conflict[] {
  const usual = v.getDefaults(v.object(endpointEntries))["source-ports"];
  const wanted: [EndpointKey, boolean, string][] = [
    ["workers", Number(workers) > 1, "--workers above 1"],
    ["dscp", dscp !== 0, "--dscp"],
    ["df", df !== "set", "--df unset"],
    ["source-ports", sourcePorts.join("-") !== usual, "--source-ports"],
    ["busy-poll", busyPollUs > 0, "--busy-poll"],
  ];
  return wanted
    .filter(([, isWanted]) => isWanted)
    .map(([key, , flag]) => ({
      path: [key],
      message: `${flag} needs the native underlay`,
      remedy: "leave out --underlay dgram",
    }));
}

function networkConflicts(
  network: NetworkConfig,
  local: string | undefined,
  path: Path,
): Conflict[] {
  const { vni, peers, fdb, bridge, vlan, gateway, ranges } = network;
  const found: Conflict[] = [];
  const refuse = (key: NetworkKey | undefined, message: string, remedy: string) => {
    const where = key === undefined ? path : [...path, key];
    found.push({ path: where, message: `network ${vni}${message}`, remedy });
  };
  if (gateway.length > 0 && bridge === undefined) {
    refuse("gateway", " has a gateway and no bridge", "give one with --bridge NAME (bridge:)");
  }
  if (gateway.length > 0 && vlan !== undefined) {
    refuse("gateway", " has a gateway, which knows no VLAN", "give it a bridge of its own instead");
  }
  if (network.masquerade && gateway.length === 0) {
    refuse("masquerade", " has no gateway", "give one with --gateway ADDR/LENGTH (gateway:)");
  }
  for (const range of ranges) {
    const inside = gateway.find((address) => isWithin(address, range));
    if (inside !== undefined) {
      refuse(
        "ranges",
        `: ${formatRange(range)} has the gateway ${bare(inside)} in it`,
        "leave it out",
      );
    }
    const isV6 = range.low.includes(":");
    const same = gateway.filter((address) => address.includes(":") === isV6);
    const subnets = same.filter((address) => isIn(range.low, address));
    if (subnets.some((address) => address.endsWith(`/${range.length}`)) || same.length === 0)
      continue;
    refuse(
      "ranges",
      `: ${formatRange(range)} is no part of its gateway's subnet`,
      `its gateway is ${same.join(", ")}`,
    );
  }
  if (peers.length + fdb.length === 0) {
    refuse(undefined, " has no peer", "give one with --peer ADDR (peers:)");
  }
  if (local !== undefined && reached({ peers, fdb }).includes(local)) {
    const message = `: peer ${local} is this VTEP's own local address`;
    refuse(peers.includes(local) ? "peers" : "fdb", message, "name the other end");
  }
  return found;
}

/**
 * Networks that have what one before them has: of one VNI, TAP and name, because the others follow from
 * it where they are not given. And TAPs that are called what a bridge is.
 */
export function collisions(networks: readonly NetworkConfig[]): Conflict[] {
  const bridges = new Map(networks.map(({ bridge }, at) => [bridge, at]));
  const confused = networks.flatMap(({ vni, tap }, at): Conflict[] => {
    const other = bridges.get(tap);
    if (other === undefined) return [];
    const message = `network ${vni}: ${tap} cannot name both a TAP and a bridge`;
    const path = ["networks", at, "tap"];
    const place = other === at ? {} : { other: ["networks", other, "bridge"] };
    return [{ path, ...place, message, remedy: "choose another" }];
  });
  return [...confused, ...repetitions(networks)];
}

/** Whether that is given twice because something else is, from which it follows where it is not given. */
function follows(
  key: NetworkKey,
  { vni, tap, name, bridge }: NetworkConfig,
  repeated: readonly (readonly [NetworkKey, string])[],
): boolean {
  const isRepeated = (other: NetworkKey) => repeated.some(([each]) => each === other);
  const ofVni = `vtep${vni}`;
  if (key === "tap") return isRepeated("vni") && tap === ofVni;
  if (key === "name") {
    return (isRepeated("vni") && name === ofVni) || (isRepeated("tap") && name === tap);
  }
  return key === "vlan" && bridge === undefined && isRepeated("tap");
}

function repetitions(networks: readonly NetworkConfig[]): Conflict[] {
  const first = new Map<string, number>();
  return networks.flatMap((network, at) => {
    const own: [NetworkKey, string][] = [
      ["vni", `VNI ${network.vni}`],
      ["tap", `TAP ${network.tap}`],
      ["name", `the name ${network.name}`],
    ];
    // It has the MAC of its gateway.
    if (network.gateway.length > 0) own.push(["gateway", `the gateway of ${network.bridge}`]);
    for (const each of network.gateway) own.push(["gateway", `the gateway ${bare(each)}`]);
    // The kernel would send what is for the second one's containers to the first's.
    const routed = network.gateway.filter((each) => !isScoped(bare(each)));
    for (const each of routed) own.push(["gateway", `the gateway's subnet ${subnetOf(each)}`]);
    if (network.vlan !== undefined) {
      own.push(["vlan", `VLAN ${network.vlan} of ${network.bridge ?? network.tap}`]);
    }
    const repeated = own.filter(([, said]) => first.has(said));
    const found = repeated.filter(([key], nth) => {
      return (
        repeated.findIndex(([other]) => other === key) === nth && !follows(key, network, repeated)
      );
    });
    const conflicts = found.map(([key, said]) => ({
      path: ["networks", at, key],
      other: ["networks", first.get(said)!, key],
      message: `${said} is given to two networks`,
      remedy: "each needs its own",
    }));
    for (const [, said] of own) if (!first.has(said)) first.set(said, at);
    return conflicts;
  });
}

function refuseConflicts([first]: readonly Conflict[]): void {
  if (first === undefined) return;
  throw new VtepError("USAGE", `${first.message}: ${first.remedy}`);
}

/** Every address that a network's frames may go to: its peers first. */
export function reached(network: Pick<NetworkConfig, "peers" | "fdb">): string[] {
  return [...new Set([...network.peers, ...network.fdb.map((entry) => entry.address)])];
}

/** What the schema makes of a value, or all that it finds. `known` are the keys of a mapping. */
function examine<Schema extends v.GenericSchema>(
  schema: Schema,
  value: unknown,
  known: (mapping: Path) => readonly string[],
) {
  const parsed = v.safeParse(schema, value, { abortPipeEarly: true });
  if (parsed.success) return { output: parsed.output, faults: [] };
  const faults = parsed.issues.flatMap((issue) => faultsOf(issue, known));
  // A key that is misspelt is missing too, and its near name helps more.
  const mappingOf = ({ path }: Fault) => placeOf(path.slice(0, -1));
  const misspelt = new Set(faults.filter(({ kind }) => kind === "unknown").map(mappingOf));
  const told = faults.filter((each) => each.kind !== "missing" || !misspelt.has(mappingOf(each)));
  return { output: undefined, faults: told };
}

function faultsOf(
  issue: v.BaseIssue<unknown>,
  known: (mapping: Path) => readonly string[],
): Fault[] {
  // What is wrong with a MAC names it.
  const steps = (issue.path ?? []).filter(({ origin }) => {
    return issue.kind !== "validation" || origin !== "key";
  });
  const path = steps.map(({ key }) => key as string | number);
  if (issue.received === "undefined") return [{ path, kind: "missing", message: "is missing" }];
  if (issue.type !== "strict_object" || issue.expected !== "never") {
    return [{ path, kind: "wrong", message: issue.message }];
  }
  // The schema names the first of several.
  const mapping = path.slice(0, -1);
  const names = known(mapping);
  const whose = names === NETWORK_KEYS ? "a network" : "the configuration";
  const strange = Object.keys(issue.path!.at(-1)!.input as object);
  return strange
    .filter((key) => !names.includes(key))
    .map((key) => ({
      path: [...mapping, key],
      kind: "unknown",
      message: `is no key of ${whose}${nearest(key, names)}`,
    }));
}

/** `networks[1].peers[0]` */
export function placeOf(path: Path): string {
  return path
    .map((at) => (typeof at === "number" ? `[${at}]` : `.${at}`))
    .join("")
    .slice(1);
}

function complete(parsed: Parsed): Config {
  return {
    local: parsed.local,
    port: parsed.port,
    underlay: parsed.underlay,
    sourcePorts: parsed["source-ports"],
    dscp: parsed.dscp,
    df: parsed.df,
    offloads: parsed.offload,
    workers: parsed.workers,
    busyPollUs: parsed["busy-poll"],
    strict: parsed.strict,
    logLevel: parsed["log-level"],
    socket: parsed.socket,
    metricsListen: parsed["metrics-listen"],
    networks: parsed.networks.map(completeNetwork),
  };
}

function completeNetwork(parsed: ParsedNetwork): NetworkConfig {
  const tap = parsed.tap ?? `vtep${parsed.vni}`;
  return {
    name: parsed.name ?? (NETWORK_NAME.test(tap) ? tap : `vtep${parsed.vni}`),
    vni: parsed.vni,
    peers: [...new Set(parsed.peers)],
    tap,
    bridge: parsed.bridge,
    vlan: parsed.vlan,
    gateway: [...new Set(parsed.gateway)],
    masquerade: parsed.masquerade,
    ranges: parsed.ranges,
    mtu: parsed.mtu,
    clampMss: parsed["clamp-mss"],
    fdb: parsed.fdb,
    ageSeconds: parsed.age,
    fdbLimit: parsed["fdb-limit"],
  };
}

/** The keys of the endpoint as a file would give them; undefined where there is no value. */
export function asWritten(config: Config): Record<EndpointKey, unknown> {
  const { metricsListen: listen, offloads } = config;
  const host = listen?.address.includes(":") ? `[${listen.address}]` : listen?.address;
  return {
    local: config.local,
    port: config.port,
    underlay: config.underlay,
    "source-ports": config.sourcePorts.join("-"),
    dscp: config.dscp,
    df: config.df,
    offload: Object.fromEntries(OFFLOADS.map((name) => [name, offloads[name] ? "on" : "off"])),
    workers: config.workers,
    "busy-poll": config.busyPollUs,
    strict: config.strict,
    "log-level": config.logLevel,
    socket: config.socket,
    "metrics-listen": listen && `${host}:${listen.port}`,
  };
}

/** A network as a file would give it; undefined where there is no value. */
export function networkAsWritten(network: NetworkConfig): Record<NetworkKey, unknown> {
  const entries = network.fdb.map(({ macHigh, macLow, address }) => {
    return [formatMac(macHigh, macLow), address];
  });
  return {
    vni: network.vni,
    name: network.name,
    peers: network.peers,
    tap: network.tap,
    bridge: network.bridge,
    vlan: network.vlan,
    gateway: network.gateway,
    masquerade: network.masquerade,
    ranges: network.ranges.map(formatRange),
    mtu: network.mtu,
    "clamp-mss": network.clampMss,
    fdb: Object.fromEntries(entries),
    age: network.ageSeconds,
    "fdb-limit": network.fdbLimit,
  };
}
