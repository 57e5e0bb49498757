/**
 * The configuration: one schema, from which flags, `--help`, the checking of YAML files and of the
 * command line all follow.
 *
 * A key has one name: `fdb-limit` in a file is `--fdb-limit` as a flag (lists are singular as
 * flags: `peers` is `--peer`). Keys of the endpoint stand at the top of a file; keys of a network in
 * its `networks` list. Flags of a network describe one network, which joins those of the file.
 *
 * Everything that can be known without asking the host is checked here; `survey.ts` asks the host.
 */
import { readFileSync } from "node:fs";
import { closest, distance } from "fastest-levenshtein";
import ipaddr from "ipaddr.js";
import * as v from "valibot";
import { parse as parseYaml } from "yaml";
import { OFFLOADS, type Offloads } from "./device.ts";
import { VtepError } from "./errors.ts";
import { canonicalAddress } from "./remotes.ts";
import { formatMac, isMulticast, parseMac } from "./wire/ethernet.ts";
import { DEFAULT_PORT, MAX_VNI } from "./wire/vxlan.ts";

export const LOG_LEVELS = ["trace", "debug", "info", "warn", "error", "fatal"] as const;
export const UNDERLAYS = ["auto", "native", "dgram"] as const;

/** What a key needs besides its schema to be a flag. */
interface Flag {
  /** Placeholder of its value in `--help`; absent: a switch. */
  readonly value?: string;
  /** Name of the flag where it is not the key's. */
  readonly name?: string;
  /** The default, for people. */
  readonly otherwise?: string;
}

/** A number written as such or as text, as flags are. */
function integer(low: number, high: number) {
  const message = `must be a whole number from ${low} to ${high}`;
  return v.pipe(
    v.union([v.number(), v.pipe(v.string(), v.regex(/^\d+$/), v.transform(Number))], message),
    v.integer(message),
    v.minValue(low, message),
    v.maxValue(high, message),
  );
}

const address = v.pipe(
  v.string("must be an IPv4 or IPv6 address"),
  v.check(isAddress, (issue) => `${JSON.stringify(issue.input)} is not an IPv4 or IPv6 address`),
  v.transform(canonicalAddress),
  v.check(isUnicast, (issue) => `${issue.input} is not the unicast address of a host`),
  v.check(
    (text) => !isScoped(text),
    (issue) =>
      `${issue.input} is link-local, so it means nothing without an interface: give another address of that VTEP`,
  ),
);

const interfaceName = v.pipe(
  v.string("must be the name of an interface"),
  v.regex(
    /^(?!\.{1,2}$)[^\s/:%]{1,15}$/,
    (issue) =>
      `${JSON.stringify(issue.input)} cannot name an interface: at most 15 characters, no spaces, "/", ":" or "%"`,
  ),
  v.check(
    (name) => name !== "all" && name !== "default",
    (issue) =>
      `${JSON.stringify(issue.input)} cannot name an interface: the kernel keeps it for settings (/proc/sys/net), choose another`,
  ),
);

const ONE_PLACE = "a MAC is behind one VTEP, and more that get what is flooded are peers";

/** One entry of the FDB as configuration gives it. */
export interface FdbEntry {
  readonly macHigh: number;
  readonly macLow: number;
  readonly address: string;
}

const portRange = v.pipe(
  v.string("must be LOW-HIGH"),
  v.regex(/^\d+-\d+$/, "must be LOW-HIGH, as in 49152-65535"),
  v.transform((text) => text.split("-").map(Number) as [number, number]),
  v.check(
    ([low, high]) => low >= 1024 && high <= 65535 && low <= high,
    "must be LOW-HIGH within 1024-65535",
  ),
);

const onOff = v.union(
  [
    v.boolean(),
    v.pipe(
      v.picklist(["on", "off"]),
      v.transform((text) => text === "on"),
    ),
  ],
  (issue) => `a switch that is ${JSON.stringify(issue.input)}: on or off`,
);

const offloads = v.pipe(
  v.custom<Record<string, unknown>>(
    isMapping,
    `must map names (${OFFLOADS.join(", ")}) to on or off`,
  ),
  v.rawTransform(({ dataset, addIssue, NEVER }): Offloads => {
    const switches: Record<string, boolean> = Object.fromEntries(
      OFFLOADS.map((name) => [name, true]),
    );
    for (const [name, value] of Object.entries(dataset.value)) {
      const wanted = v.safeParse(onOff, value);
      const fault =
        name in switches
          ? wanted.issues?.[0].message
          : `no ${JSON.stringify(name)}${nearest(name, OFFLOADS)}`;
      if (fault !== undefined) {
        addIssue({ message: `has ${fault}` });
        return NEVER;
      }
      switches[name] = wanted.output as boolean;
    }
    return switches as Offloads;
  }),
);

const fdb = v.pipe(
  v.custom<object>(isMapping, "must map MAC addresses to the addresses of VTEPs"),
  v.record(v.string(), address),
  v.rawTransform(({ dataset, addIssue }): FdbEntry[] =>
    Object.entries(dataset.value).flatMap(([text, to]) => {
      const mac = parseMac(text);
      if (mac !== undefined && !isMulticast(mac.high)) {
        return [{ macHigh: mac.high, macLow: mac.low, address: to }];
      }
      const message =
        mac === undefined
          ? `${JSON.stringify(text)} is not a MAC address (aa:bb:cc:dd:ee:ff)`
          : `has ${text}, a group address, whose frames are flooded: name who is to get them as a peer`;
      addIssue({ message });
      return [];
    }),
  ),
  v.check(
    (entries) => repeatedMac(entries) === undefined,
    (issue) => `has ${repeatedMac(issue.input)} twice: ${ONE_PLACE}`,
  ),
);

function key<const Schema extends v.GenericSchema>(help: string, flag: Flag, schema: Schema) {
  return v.pipe(schema, v.description(help), v.metadata({ ...flag }));
}

const networkEntries = {
  vni: key("VXLAN network identifier", { value: "N" }, integer(0, MAX_VNI)),
  peers: key(
    "VTEP that gets a copy of broadcast, unknown and multicast frames; several may follow",
    { name: "peer", value: "ADDR..." },
    v.optional(v.array(address, "must be a list of addresses"), []),
  ),
  tap: key(
    "name of the TAP device to create",
    { value: "NAME", otherwise: "vtep<VNI>" },
    v.optional(interfaceName),
  ),
  bridge: key(
    "bridge that the TAP joins, created if it is missing",
    { value: "NAME" },
    v.optional(interfaceName),
  ),
  mtu: key(
    "MTU of the TAP; auto: what the paths to all peers carry",
    { value: "N|auto", otherwise: "auto" },
    v.optional(v.union([v.literal("auto"), integer(68, 65_521)], mtuMessage), "auto"),
  ),
  "clamp-mss": key(
    "lower the segment size that TCP connections ask for to what the MTU, or a narrower path, carries",
    {},
    v.optional(v.boolean("must be true or false"), false),
  ),
  fdb: key(
    "static entry: frames for MAC go to the VTEP at ADDR, which 00:00:00:00:00:00 makes a peer; several may follow",
    { value: "MAC=ADDR..." },
    v.optional(fdb, {}),
  ),
  age: key(
    "seconds after which a learned MAC that is not seen again is forgotten; 0: never",
    { value: "SECONDS", otherwise: "300" },
    v.optional(integer(0, 86_400 * 365), 300),
  ),
  "fdb-limit": key(
    "most learned MACs; at the limit the one not seen for longest makes room",
    { value: "N", otherwise: "65536" },
    v.optional(integer(1, 2 ** 21), 65_536),
  ),
};

function mtuMessage(): string {
  return "must be auto or a whole number from 68 to 65521";
}

const endpointEntries = {
  local: key(
    "address of this VTEP",
    { value: "ADDR", otherwise: "source of the route to the first peer" },
    v.optional(address),
  ),
  port: key(
    "UDP port of this VTEP and of its peers",
    { value: "N", otherwise: String(DEFAULT_PORT) },
    v.optional(integer(1, 65_535), DEFAULT_PORT),
  ),
  underlay: key(
    "how datagrams are sent and received: auto and native use batched sockets, dgram node:dgram",
    { value: UNDERLAYS.join("|"), otherwise: "auto" },
    v.optional(v.picklist(UNDERLAYS, `must be one of ${UNDERLAYS.join(", ")}`), "auto"),
  ),
  "source-ports": key(
    "range of outer source ports, chosen by inner flow; native underlay only",
    { value: "LOW-HIGH", otherwise: "49152-65535" },
    v.optional(portRange, "49152-65535"),
  ),
  dscp: key(
    "DSCP of what is sent, 0 to 63, or inherit: the inner packet's; ECN always crosses (native only)",
    { value: "N|inherit", otherwise: "0" },
    v.optional(
      v.union(
        [v.literal("inherit"), integer(0, 63)],
        "must be inherit or a whole number from 0 to 63",
      ),
      0,
    ),
  ),
  offload: key(
    `offloads to do without, all on unless the kernel refuses: ${OFFLOADS.join(", ")}`,
    { value: "NAME=off,..." },
    v.optional(offloads, {}),
  ),
  workers: key(
    "threads that forward, each with a queue of every TAP; auto: one for every two cores (native only)",
    { value: "N|auto", otherwise: "auto" },
    v.optional(
      v.union([v.literal("auto"), integer(1, 64)], "must be auto or a whole number from 1 to 64"),
      "auto",
    ),
  ),
  "busy-poll": key(
    "once frames have come, keep asking for more for so long before sleeping: quicker, but it takes a core",
    { value: "MICROSECONDS", otherwise: "0" },
    v.optional(integer(0, 1_000_000), 0),
  ),
  strict: key(
    "drop datagrams whose reserved VXLAN bits are set, as Linux does, instead of ignoring the bits",
    {},
    v.optional(v.boolean("must be true or false"), false),
  ),
  "log-level": key(
    "least level that is logged",
    { value: LOG_LEVELS.join("|"), otherwise: "info" },
    v.optional(v.picklist(LOG_LEVELS, `must be one of ${LOG_LEVELS.join(", ")}`), "info"),
  ),
};

const networkSchema = v.strictObject(networkEntries, "must be a mapping with a vni");
const schema = v.strictObject({
  ...endpointEntries,
  networks: v.pipe(
    v.array(networkSchema, "must be a list of networks"),
    v.minLength(1, "is empty: give one there, or with --vni N --peer ADDR"),
  ),
});

type Parsed = v.InferOutput<typeof schema>;

/** One network, complete: every default applied. */
export interface NetworkConfig {
  readonly name: string;
  readonly vni: number;
  readonly peers: readonly string[];
  readonly tap: string;
  readonly bridge: string | undefined;
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
  readonly offloads: Offloads;
  readonly workers: number | "auto";
  readonly busyPollUs: number;
  readonly strict: boolean;
  readonly logLevel: (typeof LOG_LEVELS)[number];
  readonly networks: readonly NetworkConfig[];
}

/** A key as a flag of `vtep run`. */
export interface FlagHelp {
  readonly key: string;
  /** As `--help` shows it: `--peer <ADDR...>`. */
  readonly syntax: string;
  readonly help: string;
  readonly otherwise: string | undefined;
}

/** The flags of a network, then those of the endpoint, in the order of the schema. */
export function flags(): FlagHelp[] {
  return Object.entries({ ...networkEntries, ...endpointEntries }).map(([key, entry]) => {
    const { name = key, value, otherwise }: Flag = v.getMetadata(entry);
    const syntax = value === undefined ? `--${name}` : `--${name} <${value}>`;
    return { key, syntax, help: v.getDescription(entry) ?? "", otherwise };
  });
}

/** What the command line gives: values by key, as text. */
export type FlagValues = Record<string, unknown>;

/**
 * The configuration from a file's text (if there is one) and flags. Flags of the endpoint override
 * the file; flags of a network add one. Throws VtepError USAGE with one sentence.
 */
export function configure(file: string | undefined, given: FlagValues): Config {
  const raw = file === undefined ? {} : readYaml(file);
  const fromFile = raw.networks ?? [];
  const network = only(given, networkEntries);
  const networks =
    Object.keys(network).length === 0 || !Array.isArray(fromFile)
      ? fromFile
      : [...fromFile, flagNetwork(network)];
  const merged = { ...raw, ...flagEndpoint(only(given, endpointEntries)), networks };
  const parsed = v.safeParse(schema, merged, { abortPipeEarly: true });
  if (parsed.success) return complete(parsed.output);
  const fileNetworks = Array.isArray(fromFile) ? fromFile.length : 0;
  // A key that is misspelt is missing too, and its near name helps more.
  const issue = parsed.issues.find(isUnknownKey) ?? parsed.issues[0];
  throw new VtepError("USAGE", sentence(issue, file, fileNetworks, given));
}

function readYaml(file: string): Record<string, unknown> {
  const content = parsedYaml(file);
  if (isMapping(content)) return content;
  throw new VtepError("USAGE", `${file} must hold a mapping with a list of networks`);
}

function parsedYaml(file: string): unknown {
  if (file === "") throw new VtepError("USAGE", "--config names no file: give the path of one");
  try {
    return parseYaml(readFileSync(file, "utf8"));
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const fault = code === "ENOENT" ? "there is no such file" : message.split("\n")[0];
    throw new VtepError("USAGE", `${file} cannot be read: ${fault?.replace(/:$/, "")}`, error);
  }
}

function only(given: FlagValues, entries: object): FlagValues {
  return Object.fromEntries(Object.entries(given).filter(([name]) => name in entries));
}

/** The flags of the endpoint in the shape that a file has: only `--offload` is written differently. */
function flagEndpoint(endpoint: FlagValues): FlagValues {
  const { offload, ...rest } = endpoint;
  if (typeof offload !== "string") return endpoint;
  const pairs = offload.split(",").map((pair) => pair.split("="));
  const wrong = pairs.find(([name, value, ...more]) => !name || !value || more.length > 0);
  if (wrong === undefined) return { ...rest, offload: Object.fromEntries(pairs) };
  throw new VtepError(
    "USAGE",
    `--offload ${JSON.stringify(wrong.join("="))} must be NAME=on or NAME=off`,
  );
}

/** The flags of a network in the shape that a file has: only `--fdb` is written differently. */
function flagNetwork(network: FlagValues): FlagValues {
  const { fdb: pairs, ...rest } = network;
  return pairs === undefined ? rest : { ...rest, fdb: fdbFromFlag(pairs as string[]) };
}

function fdbFromFlag(pairs: readonly string[]): Record<string, string> {
  const entries: Record<string, string> = {};
  for (const pair of pairs) {
    const [mac, to, ...more] = pair.split("=");
    if (!mac || !to || more.length > 0) {
      throw new VtepError("USAGE", `--fdb ${JSON.stringify(pair)} must be MAC=ADDR`);
    }
    if (mac in entries) throw new VtepError("USAGE", `--fdb has ${mac} twice: ${ONE_PLACE}`);
    entries[mac] = to;
  }
  return entries;
}

function isUnknownKey(issue: v.InferIssue<typeof schema>): boolean {
  return issue.type === "strict_object" && issue.expected === "never";
}

/** One sentence for what the schema found, naming the flag or the place in the file. */
function sentence(
  issue: v.InferIssue<typeof schema>,
  file: string | undefined,
  fileNetworks: number,
  given: FlagValues,
): string {
  const path = (issue.path ?? []).map((item) => item.key as string | number);
  const name = String(path[2] ?? path[0] ?? "");
  const byFlag = path[0] === "networks" ? Number(path[1]) >= fileNetworks : name in given;
  const where = byFlag || file === undefined ? flagOf(name) : `${file}: ${placeOf(path)}`;
  if (isUnknownKey(issue)) {
    const known = Object.keys(
      path.length > 1 ? networkEntries : { ...endpointEntries, networks: 0 },
    );
    return `${where} is no key of ${path.length > 1 ? "a network" : "the configuration"}${nearest(name, known)}`;
  }
  if (issue.type === "min_length" && file === undefined) {
    return "no network is given: name one with --vni N --peer ADDR, or a file with --config FILE";
  }
  if (issue.received === "undefined") {
    const needs = `${where} is missing`;
    return byFlag || file === undefined ? `${needs}: vtep run --vni N --peer ADDR` : needs;
  }
  return `${where} ${issue.message}`;
}

function flagOf(name: string): string {
  const flag = flags().find(({ key }) => key === name);
  return flag === undefined ? name : flag.syntax.split(" ")[0]!;
}

function placeOf(path: readonly (string | number)[]): string {
  return path
    .map((at) => (typeof at === "number" ? `[${at}]` : `.${at}`))
    .join("")
    .slice(1);
}

/** `: did you mean "peers"?`, or the list of what is known when nothing is near. */
function nearest(name: string, known: readonly string[]): string {
  const match = closest(name, known);
  if (distance(name, match) <= Math.max(2, name.length / 3)) return `: did you mean "${match}"?`;
  return `: known are ${known.join(", ")}`;
}

function complete(parsed: Parsed): Config {
  const config: Config = {
    local: parsed.local,
    port: parsed.port,
    underlay: parsed.underlay,
    sourcePorts: parsed["source-ports"],
    dscp: parsed.dscp,
    offloads: parsed.offload,
    workers: parsed.workers,
    busyPollUs: parsed["busy-poll"],
    strict: parsed.strict,
    logLevel: parsed["log-level"],
    networks: parsed.networks.map((network) => ({
      name: network.tap ?? `vtep${network.vni}`,
      vni: network.vni,
      peers: [...new Set(network.peers)],
      tap: network.tap ?? `vtep${network.vni}`,
      bridge: network.bridge,
      mtu: network.mtu,
      clampMss: network["clamp-mss"],
      fdb: network.fdb,
      ageSeconds: network.age,
      fdbLimit: network["fdb-limit"],
    })),
  };
  if (config.underlay === "dgram" && Number(config.workers) > 1) {
    throw new VtepError(
      "USAGE",
      "--workers above 1 needs the native underlay: leave out --underlay dgram",
    );
  }
  checkNetworks(config);
  return config;
}

/** What no single key can know: names and VNIs used twice, a network that reaches nobody. */
function checkNetworks({ networks, local }: Config): void {
  refuseTwice(networks.map(({ vni }) => `VNI ${vni}`));
  refuseTwice(networks.map(({ tap }) => `TAP ${tap}`));
  for (const { vni, peers, fdb, tap } of networks) {
    if (networks.some(({ bridge }) => bridge === tap)) {
      throw new VtepError("USAGE", `network ${vni}: ${tap} cannot name both a TAP and a bridge`);
    }
    if (peers.length + fdb.length === 0) {
      throw new VtepError(
        "USAGE",
        `network ${vni} has no peer: give one with --peer ADDR (peers:)`,
      );
    }
    if (local !== undefined && reached({ peers, fdb }).includes(local)) {
      throw new VtepError(
        "USAGE",
        `network ${vni}: peer ${local} is this VTEP's own local address: name the other end`,
      );
    }
  }
}

/** Every address that a network's frames may go to: its peers first. */
export function reached(network: Pick<NetworkConfig, "peers" | "fdb">): string[] {
  return [...new Set([...network.peers, ...network.fdb.map((entry) => entry.address)])];
}

function refuseTwice(names: readonly string[]): void {
  const twice = names.find((name, at) => names.indexOf(name) !== at);
  if (twice === undefined) return;
  throw new VtepError("USAGE", `${twice} is given to two networks: each needs its own`);
}

function isUnicast(text: string): boolean {
  const range = ipaddr.process(text).range();
  return !["unspecified", "broadcast", "multicast"].includes(range);
}

/** Needs an interface beside it; IPv4's link-local addresses are routed like any other. */
function isScoped(text: string): boolean {
  const parsed = ipaddr.process(text);
  return parsed.kind() === "ipv6" && parsed.range() === "linkLocal";
}

/** A list is none, although YAML's and JavaScript's objects would let it pass for one. */
function isMapping(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Neither the short and octal spellings of inet_aton(3), nor a scope: that is an interface's. */
function isAddress(text: string): boolean {
  return (
    ipaddr.IPv4.isValidFourPartDecimal(text) || (ipaddr.IPv6.isValid(text) && !text.includes("%"))
  );
}

/** The first MAC that has two entries, in whatever spelling. */
function repeatedMac(entries: readonly FdbEntry[]): string | undefined {
  const macs = entries.map(({ macHigh, macLow }) => formatMac(macHigh, macLow));
  const seen = new Set<string>();
  return macs.find((mac) => seen.size === seen.add(mac).size);
}
