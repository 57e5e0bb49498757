/**
 * The configuration: one schema, from which flags, `--help`, the reference, the example and the checks
 * of files, of the command line and of the API all follow.
 *
 * A key has one name: `fdb-limit` in a file is `--fdb-limit` as a flag (lists are singular as
 * flags: `peers` is `--peer`). Keys of the endpoint stand at the top of a file; keys of a network in
 * its `networks` list.
 *
 * Everything that can be known without asking the host is checked here; `survey.ts` asks the host, and
 * `config-file.ts` reads files.
 */
import { closest, distance } from "fastest-levenshtein";
import ipaddr from "ipaddr.js";
import * as v from "valibot";
import {
  bare,
  formatRange,
  isIn,
  isWithin,
  parseRange,
  type Range,
  stationPrefix,
  subnetOf,
} from "./addresses.ts";
import { ALL_OFFLOADS, OFFLOADS, type Offloads } from "./device.ts";
import { VtepError } from "./errors.ts";
import { canonicalAddress } from "./remotes.ts";
import { formatMac, isMulticast, parseMac } from "./wire/ethernet.ts";
import { DEFAULT_PORT, MAX_VNI } from "./wire/vxlan.ts";

export const LOG_LEVELS = ["trace", "debug", "info", "warn", "error", "fatal"] as const;
export const UNDERLAYS = ["auto", "native", "dgram"] as const;
/** Of what ip-link(8) knows of a kernel's VXLAN device; "inherit" would find a narrow path by some frames only. */
const DF = ["set", "unset"] as const;

/** What a key needs besides its schema to be a flag, and to be shown. */
interface Traits {
  /** Placeholder of its value in `--help`, with dots where several may follow; absent: a switch. */
  readonly value?: string;
  /** Name of the flag where it is not the key's. */
  readonly name?: string;
  /** The default, for people, where it is not a plain value of the schema. */
  readonly otherwise?: string;
  /** A value that shows how it is written, where no default does. */
  readonly sample?: unknown;
}

/** A number written as such or as text, as flags are. */
function integer(
  low: number,
  high: number,
  message = `must be a whole number from ${low} to ${high}`,
) {
  return v.pipe(
    v.union([v.number(), v.pipe(v.string(), v.regex(/^\d+$/), v.transform(Number))], message),
    v.integer(message),
    v.minValue(low, message),
    v.maxValue(high, message),
    v.title(`${low} to ${high}`),
  );
}

function wordOr<Word extends string>(word: Word, low: number, high: number) {
  const message = `must be ${word} or a whole number from ${low} to ${high}`;
  return v.union([v.literal(word), integer(low, high, message)], message);
}

export const address = v.pipe(
  v.string("must be an IPv4 or IPv6 address"),
  v.transform((text) => text.replace(/^(fe[89ab].*)%.+$/i, "$1")), // which is refused below, with its own words
  v.check(isAddress, (issue) => `${JSON.stringify(issue.input)} is not an IPv4 or IPv6 address`),
  v.transform(canonicalAddress),
  v.check(
    (text) => ipaddr.process(text).range() !== "multicast",
    (issue) =>
      `${issue.input} is a multicast group, which no VTEP joins here: name each VTEP that is in it`,
  ),
  v.check(isHost, (issue) => `${issue.input} is not the unicast address of a host`),
  v.check(
    (text) => !isScoped(text),
    (issue) =>
      `${issue.input} is link-local, which no VTEP can be known by here: give another address of it`,
  ),
  v.title("ADDR"),
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
  v.title("NAME of at most 15 characters"),
);

/** Safe in the path of a URL, as the name of a file, and as the label of a metric. */
const NETWORK_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/;

const networkName = v.pipe(
  v.string("must be a name"),
  v.regex(
    NETWORK_NAME,
    (issue) =>
      `${JSON.stringify(issue.input)} cannot name a network: at most 63 letters, digits, "-", "_" and ".", a letter or digit first`,
  ),
  v.title('NAME of at most 63 letters, digits, "-", "_" and "."'),
);

/** Longer ones do not fit into a sockaddr_un. */
const LONGEST_SOCKET_PATH = 107;

const socketPath = v.pipe(
  v.string("must be the path of a socket"),
  v.check(
    (path) => /^\/[^\0]*[^\0/]$/.test(path) && Buffer.byteLength(path) <= LONGEST_SOCKET_PATH,
    (issue) =>
      `${JSON.stringify(issue.input)} cannot be the path of a socket: absolute, and at most ${LONGEST_SOCKET_PATH} bytes`,
  ),
  v.title("PATH"),
);

/** Where to listen: what `ADDR:PORT` means. */
export interface ListenAddress {
  readonly address: string;
  readonly port: number;
}

const listenAddress = v.pipe(
  v.string("must be ADDR:PORT"),
  v.rawTransform(({ dataset, addIssue, NEVER }): ListenAddress => {
    const [, inBrackets, plain, port] =
      /^(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})$/.exec(dataset.value) ?? [];
    const text = inBrackets ?? plain ?? "";
    const bracketed = inBrackets !== undefined;
    if (isAddress(text) && text.includes(":") === bracketed && isPort(Number(port))) {
      return { address: canonicalAddress(text), port: Number(port) };
    }
    addIssue({ message: `must be ADDR:PORT, as in 127.0.0.1:9469 or [::1]:9469` });
    return NEVER;
  }),
  v.title("ADDR:PORT"),
);

export const ONE_PLACE = "a MAC is behind one VTEP, and more that get what is flooded are peers";

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
  v.title("LOW-HIGH within 1024-65535"),
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
    const switches: Record<string, boolean> = { ...ALL_OFFLOADS };
    for (const [name, value] of Object.entries(dataset.value)) {
      const wanted = v.safeParse(onOff, value);
      const fault = Object.hasOwn(switches, name)
        ? wanted.issues?.[0].message
        : `no ${JSON.stringify(name)}${nearest(name, OFFLOADS)}`;
      if (fault !== undefined) {
        addIssue({ message: `has ${fault}` });
        return NEVER;
      }
      switches[name] = wanted.output as boolean;
    }
    if (switches.csum) return switches as Offloads;
    // The kernel leaves no segments without leaving their checksums.
    for (const name of ["tso", "uso"]) {
      if (Object.hasOwn(dataset.value, name) && switches[name]) {
        addIssue({ message: `has ${name} on and csum off: ${name} needs csum` });
        return NEVER;
      }
      switches[name] = false;
    }
    return switches as Offloads;
  }),
  v.title("{ NAME: on or off, ... }"),
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
  v.title("{ MAC: ADDR, ... }"),
);

const station = v.pipe(
  v.string("must be an address with its prefix length"),
  v.rawTransform(({ dataset, addIssue, NEVER }): string => {
    const prefix = stationPrefix(dataset.value);
    if (prefix !== undefined) return prefix;
    addIssue({
      message: `${JSON.stringify(dataset.value)} is not the address of a station with its prefix length (192.0.2.1/24)`,
    });
    return NEVER;
  }),
  v.title("ADDR/LENGTH"),
);

const addressRange = v.pipe(
  v.string("must be LOW-HIGH/LENGTH"),
  v.rawTransform(({ dataset, addIssue, NEVER }): Range => {
    const range = parseRange(dataset.value);
    if (range !== undefined) return range;
    addIssue({
      message: `${JSON.stringify(dataset.value)} is not LOW-HIGH/LENGTH, two addresses of stations in one subnet (192.0.2.64-192.0.2.127/24)`,
    });
    return NEVER;
  }),
  v.title("LOW-HIGH/LENGTH"),
);

const directory = v.pipe(
  v.string("must be the path of a directory"),
  v.nonEmpty("names no directory: give the path of one"),
  v.title("PATH"),
);

const aSwitch = v.boolean("must be true or false");

function key<const Schema extends v.GenericSchema>(help: string, traits: Traits, schema: Schema) {
  return v.pipe(schema, v.description(help), v.metadata({ ...traits }));
}

export const networkEntries = {
  vni: key("VXLAN network identifier", { value: "N", sample: 100 }, integer(0, MAX_VNI)),
  name: key(
    "name of the network for the API, the command line and metrics",
    {
      value: "NAME",
      otherwise: "the TAP's, or vtep<VNI> where that has other characters",
      sample: "blue",
    },
    v.optional(networkName),
  ),
  peers: key(
    "VTEPs that get a copy of broadcast, unknown and multicast frames",
    { name: "peer", value: "ADDR...", sample: ["192.0.2.2", "2001:db8::3"] },
    v.optional(v.array(address, "must be a list of addresses"), []),
  ),
  tap: key(
    "name of the TAP device to create",
    { value: "NAME", otherwise: "vtep<VNI>", sample: "vtep100" },
    v.optional(interfaceName),
  ),
  bridge: key(
    "bridge that the TAP joins, created if it is missing",
    { value: "NAME", sample: "br100" },
    v.optional(interfaceName),
  ),
  vlan: key(
    "VLAN of the bridge that the network is: its frames have that tag at the TAP, and none on the wire; without a gateway",
    { value: "ID", sample: 10 },
    v.optional(integer(1, 4094)),
  ),
  gateway: key(
    "addresses of the bridge, the same on every host, through which its own containers get to other networks",
    { value: "ADDR/LENGTH...", sample: ["192.0.2.1/24", "2001:db8:100::1/64"] },
    v.optional(v.array(station, "must be a list of addresses"), []),
  ),
  masquerade: key(
    "give what leaves by the gateway, for elsewhere than such networks, this host's own address",
    {},
    v.optional(aSwitch, false),
  ),
  ranges: key(
    "addresses that this host gives to containers that ask for none (attach --ip auto): a part of its own",
    { name: "range", value: "LOW-HIGH/LENGTH...", sample: ["192.0.2.64-192.0.2.127/24"] },
    v.optional(v.array(addressRange, "must be a list of ranges"), []),
  ),
  mtu: key(
    "MTU of the TAP; auto: what the paths to all peers carry",
    { value: "N|auto" },
    v.optional(wordOr("auto", 68, 65_521), "auto"),
  ),
  "clamp-mss": key(
    "lower the segment size that TCP connections ask for to what the MTU, or a narrower path, carries",
    {},
    v.optional(aSwitch, false),
  ),
  fdb: key(
    "static entries: frames for MAC go to the VTEP at ADDR, which 00:00:00:00:00:00 makes a peer",
    { value: "MAC=ADDR...", sample: { "00:00:5e:00:53:07": "192.0.2.9" } },
    v.optional(fdb, {}),
  ),
  age: key(
    "seconds after which a learned MAC that is not seen again is forgotten; 0: never",
    { value: "SECONDS" },
    v.optional(integer(0, 86_400 * 365), 300),
  ),
  "fdb-limit": key(
    "most learned MACs; at the limit the one not seen for longest makes room",
    { value: "N" },
    v.optional(integer(1, 2 ** 21), 65_536),
  ),
};

const endpointEntries = {
  local: key(
    "address of this VTEP",
    { value: "ADDR", otherwise: "source of the route to the first peer", sample: "192.0.2.1" },
    v.optional(address),
  ),
  port: key(
    "UDP port of this VTEP and of its peers",
    { value: "N" },
    v.optional(integer(1, 65_535), DEFAULT_PORT),
  ),
  underlay: key(
    "how datagrams are sent and received: auto and native use batched sockets, dgram node:dgram",
    { value: UNDERLAYS.join("|") },
    v.optional(v.picklist(UNDERLAYS, `must be one of ${UNDERLAYS.join(", ")}`), "auto"),
  ),
  "source-ports": key(
    "range of outer source ports, chosen by inner flow; native underlay only",
    { value: "LOW-HIGH" },
    v.optional(portRange, "49152-65535"),
  ),
  dscp: key(
    "DSCP of what is sent, 0 to 63, or inherit: the inner packet's; ECN always crosses (native only)",
    { value: "N|inherit" },
    v.optional(wordOr("inherit", 0, 63), 0),
  ),
  df: key(
    "the outer header's don't-fragment bit: set, so that what a path carries is found and senders are told; unset, for paths that lose what is longer and say nothing: routers of IPv4 fragment it then, and this host what is longer by an --mtu that was given (native only)",
    { value: DF.join("|") },
    v.optional(v.picklist(DF, `must be one of ${DF.join(", ")}`), "set"),
  ),
  offload: key(
    "offloads to do without, all on unless the kernel refuses: csum (checksums of the host's frames are left to us), tso, uso (and their cutting to the MTU, of TCP and UDP; both need csum), gso, gro (datagrams leave, arrive in trains), coalesce-tcp, coalesce-udp (so do frames for the host)",
    { value: "NAME=off,...", sample: { tso: "off" } },
    v.optional(offloads, {}),
  ),
  workers: key(
    "threads that forward, each with a queue of every TAP, to which TCP goes by addresses and ports, UDP by addresses; auto: one for every two cores (native only)",
    { value: "N|auto" },
    v.optional(wordOr("auto", 1, 64), "auto"),
  ),
  "busy-poll": key(
    "once frames have come, keep asking for more for so long before sleeping: quicker answers for a core's time, while nobody else wants it (native only)",
    { value: "MICROSECONDS" },
    v.optional(integer(0, 1_000_000), 0),
  ),
  strict: key(
    "drop datagrams whose reserved VXLAN bits are set, as Linux does, instead of ignoring the bits",
    {},
    v.optional(aSwitch, false),
  ),
  "log-level": key(
    `least level that is logged, of ${LOG_LEVELS.join(", ")}`,
    { value: "LEVEL" }, // the words would be wider than what all other flags leave for their help
    v.optional(v.picklist(LOG_LEVELS, `must be one of ${LOG_LEVELS.join(", ")}`), "info"),
  ),
  socket: key(
    "path of the socket through which the agent is asked and told",
    { value: "PATH" },
    v.optional(socketPath, "/run/vtep/vtep.sock"),
  ),
  "metrics-listen": key(
    "where metrics are served over TCP as well",
    { value: "ADDR:PORT", sample: "127.0.0.1:9469" },
    v.optional(listenAddress),
  ),
};

/** What only a file can say. `config-file.ts` acts on it. */
const fileEntries = {
  include: key(
    "directory whose *.yaml and *.yml files are read as well, from where this file is: networks are added, any other key is set once",
    { sample: "conf.d" },
    v.optional(directory),
  ),
};

/** What is wrong with `networks` that are none. */
export const NOT_A_LIST = "must be a list of networks";

const networkSchema = v.pipe(
  v.custom<Record<string, unknown>>(isMapping, "must be a mapping with a vni"),
  v.strictObject(networkEntries),
);
const schema = v.strictObject({
  ...endpointEntries,
  ...fileEntries,
  networks: v.pipe(
    v.array(networkSchema, NOT_A_LIST),
    v.minLength(1, "is empty: give one there, or with --vni N --peer ADDR"),
  ),
});

export type NetworkKey = keyof typeof networkEntries;
export type EndpointKey = keyof typeof endpointEntries;
const NETWORK_KEYS = Object.keys(networkEntries) as NetworkKey[];
const TOP_KEYS = Object.keys(schema.entries);

type Parsed = v.InferOutput<typeof schema>;
type ParsedNetwork = v.InferOutput<typeof networkSchema>;

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

// ---- Keys, as people are told of them

/** A key of the configuration, for help, reference and example. */
export interface Key {
  readonly key: string;
  /** Where it stands: at the top of a file, with or without a flag, or in a network. */
  readonly of: "network" | "endpoint" | "file";
  /** What it may be, as a file has it. */
  readonly values: string;
  readonly required: boolean;
  /** The default, for people; undefined: without it, there is none of it. */
  readonly otherwise: string | undefined;
  /** A value that shows how it is written: the default where there is one. */
  readonly sample: unknown;
  /** One sentence, without a full stop. */
  readonly help: string;
}

/** A key as a flag of `vtep run`. */
export interface FlagHelp {
  readonly key: string;
  /** As `--help` shows it: `--peer <ADDR...>`. */
  readonly syntax: string;
  readonly help: string;
  readonly otherwise: string | undefined;
}

type Entry = v.GenericSchema & { readonly default?: unknown };

/** Every key, in the order of the schema. */
export function keys(): Key[] {
  const sections = { network: networkEntries, endpoint: endpointEntries, file: fileEntries };
  return Object.entries(sections).flatMap(([of, entries]) =>
    Object.entries<Entry>(entries).map(([key, entry]): Key => {
      const { otherwise, sample }: Traits = v.getMetadata(entry);
      return {
        key,
        of: of as Key["of"],
        values: valuesOf(entry),
        required: entry.type !== "optional",
        otherwise: otherwise ?? (isPlain(entry.default) ? String(entry.default) : undefined),
        sample: sample ?? entry.default,
        help: v.getDescription(entry) ?? "",
      };
    }),
  );
}

/** The flags of a network, then those of the endpoint, or one of both, in the order of the schema. */
export function flags(of?: "network" | "endpoint"): FlagHelp[] {
  const kinds = { network: networkEntries, endpoint: endpointEntries };
  const entries: Record<string, Entry> =
    of === undefined ? { ...networkEntries, ...endpointEntries } : kinds[of];
  return keys().flatMap(({ key, help, otherwise }) => {
    const entry = entries[key];
    if (entry === undefined) return [];
    const { name = key, value }: Traits = v.getMetadata(entry);
    const syntax = value === undefined ? `--${name}` : `--${name} <${value}>`;
    const several = value?.endsWith("...") && !value.endsWith(",...");
    const isSwitch = otherwise === "false";
    return {
      key,
      syntax,
      help: several ? `${help}; several may follow` : help,
      otherwise: isSwitch ? undefined : otherwise,
    };
  });
}

function isPlain(value: unknown): boolean {
  return ["string", "number", "boolean"].includes(typeof value);
}

/** What a schema accepts, in a few words. Numbers as text are for flags only, so they are not told. */
function valuesOf(schema: v.GenericSchema): string {
  const title = v.getTitle(schema);
  if (title !== undefined) return title;
  const { wrapped, item, options, literal } = schema as Partial<{
    wrapped: v.GenericSchema;
    item: v.GenericSchema;
    options: readonly (v.GenericSchema | string)[];
    literal: string;
  }>;
  if (wrapped !== undefined) return valuesOf(wrapped);
  if (item !== undefined) return `[${valuesOf(item)}, ...]`;
  if (options !== undefined) {
    const said = options.map((each) => (typeof each === "string" ? each : valuesOf(each)));
    return `${said.slice(0, -1).join(", ")} or ${said.at(-1)}`;
  }
  return literal ?? (schema.type === "boolean" ? "true or false" : schema.type);
}

// ---- Checks

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
  readonly remedy: string | undefined;
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

/** Throws VtepError USAGE unless what it has goes together. */
export function checkConfig(config: Config): void {
  refuseConflicts(conflicts(config));
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
  const refuse = (key: NetworkKey | undefined, message: string, remedy?: string) => {
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
    return [{ path, ...place, message, remedy: undefined }];
  });
  return [...confused, ...repetitions(networks)];
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
    const repeated = own.find(([, said]) => first.has(said));
    for (const [, said] of own) if (!first.has(said)) first.set(said, at);
    if (repeated === undefined) return [];
    const [key, said] = repeated;
    return {
      path: ["networks", at, key],
      other: ["networks", first.get(said)!, key],
      message: `${said} is given to two networks`,
      remedy: "each needs its own",
    };
  });
}

function refuseConflicts([first]: readonly Conflict[]): void {
  if (first === undefined) return;
  const { message, remedy } = first;
  throw new VtepError("USAGE", remedy === undefined ? message : `${message}: ${remedy}`);
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
  const path = (issue.path ?? []).map(({ key }) => key as string | number);
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

/** `: did you mean "peers"?`, or the list of what is known when nothing is near. */
export function nearest(name: string, known: readonly string[]): string {
  const match = closest(name, known);
  if (distance(name, match) <= Math.max(2, name.length / 3)) return `: did you mean "${match}"?`;
  return `: known are ${known.join(", ")}`;
}

// ---- Between the shape of a file and that of the program

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

function isHost(text: string): boolean {
  return !["unspecified", "broadcast"].includes(ipaddr.process(text).range());
}

function isPort(port: number): boolean {
  return port >= 1 && port <= 65_535;
}

/** Needs an interface beside it; IPv4's link-local addresses are routed like any other. */
export function isScoped(text: string): boolean {
  const parsed = ipaddr.process(text);
  return parsed.kind() === "ipv6" && parsed.range() === "linkLocal";
}

/** A list is none, although YAML's and JavaScript's objects would let it pass for one. */
export function isMapping(value: unknown): value is Record<string, unknown> {
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
