/**
 * The schema of the configuration: every key with its flag and its help, and what each value may be by itself.
 *
 * A key has one name: `fdb-limit` in a file is `--fdb-limit` as a flag (lists are singular as
 * flags: `peers` is `--peer`). Keys of the endpoint stand at the top of a file; keys of a network in
 * its `networks` list.
 */

import { closest, distance } from "fastest-levenshtein";
import ipaddr from "ipaddr.js";
import * as v from "valibot";
import { isScoped, parseRange, stationPrefix } from "./addresses.ts";
import { ALL_OFFLOADS, OFFLOADS, type Offloads } from "./device.ts";
import { canonicalAddress } from "./remotes.ts";
import { formatMac, isMulticast, parseMac } from "./wire/ethernet.ts";
import { DEFAULT_PORT, MAX_VNI } from "./wire/vxlan.ts";

export const LOG_LEVELS = ["trace", "debug", "info", "warn", "error", "fatal"] as const;
export const UNDERLAYS = ["auto", "native", "dgram"] as const;
/** Of what ip-link(8) knows of a kernel's VXLAN device; "inherit" would find a narrow path by some frames only. */
export const DF = ["set", "unset"] as const;

/** With the headers of Ethernet and VXLAN just the largest payload of UDP over IPv4, 65,507. */
export const LARGEST_MTU = 65_485;

/** What a key needs besides its schema to be a flag, and to be shown. */
export interface Traits {
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
export const NETWORK_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/;

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
  (issue) => `as ${JSON.stringify(issue.input)}: on or off`,
);

const offloads = v.pipe(
  v.custom<Record<string, unknown>>(
    isMapping,
    `must map names (${OFFLOADS.join(", ")}) to on or off`,
  ),
  v.rawTransform(({ dataset, addIssue, NEVER }): Offloads => {
    const switches: Record<string, boolean> = { ...ALL_OFFLOADS };
    const faults: string[] = [];
    for (const [name, value] of Object.entries(dataset.value)) {
      const wanted = v.safeParse(onOff, value);
      if (!Object.hasOwn(switches, name)) {
        faults.push(`no ${JSON.stringify(name)}${nearest(name, OFFLOADS)}`);
      } else if (wanted.success) switches[name] = wanted.output;
      else faults.push(`${name} ${wanted.issues[0].message}`);
    }
    for (const fault of faults) addIssue({ message: `has ${fault}` });
    if (faults.length > 0) return NEVER;
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

const stationMac = v.pipe(
  v.string(),
  v.check(
    (text) => parseMac(text) !== undefined,
    (issue) => `${JSON.stringify(issue.input)} is not a MAC address (aa:bb:cc:dd:ee:ff)`,
  ),
  v.check(
    (text) => !isMulticast(parseMac(text)!.high),
    (issue) =>
      `has ${issue.input}, a group address, whose frames are flooded: name who is to get them as a peer`,
  ),
);

const fdb = v.pipe(
  v.custom<object>(isMapping, "must map MAC addresses to the addresses of VTEPs"),
  v.record(stationMac, address),
  v.transform((entries) =>
    Object.entries(entries).map(([text, to]): FdbEntry => {
      const { high, low } = parseMac(text)!;
      return { macHigh: high, macLow: low, address: to };
    }),
  ),
  v.check(
    (entries) => repeatedMac(entries) === undefined,
    (issue) => `has ${repeatedMac(issue.input)} twice: ${ONE_PLACE}`,
  ),
  v.title("{ MAC: ADDR, ... }"),
);

/** A text that means something; undefined: it does not, and is not `what`. */
function meaning<Meaning>(mean: (text: string) => Meaning | undefined, what: string) {
  return v.rawTransform<string, Meaning>(({ dataset, addIssue, NEVER }) => {
    const meant = mean(dataset.value);
    if (meant !== undefined) return meant;
    addIssue({ message: `${JSON.stringify(dataset.value)} is not ${what}` });
    return NEVER;
  });
}

const station = v.pipe(
  v.string("must be an address with its prefix length"),
  meaning(stationPrefix, "the address of a station with its prefix length (192.0.2.1/24)"),
  v.title("ADDR/LENGTH"),
);

const addressRange = v.pipe(
  v.string("must be LOW-HIGH/LENGTH"),
  meaning(
    parseRange,
    "LOW-HIGH/LENGTH, two addresses of stations in one subnet (192.0.2.64-192.0.2.127/24)",
  ),
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
    "MTU of the TAP; auto: what the paths to all peers carry, but no less than it has",
    { value: "N|auto" },
    v.optional(wordOr("auto", 68, LARGEST_MTU), "auto"),
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

export const endpointEntries = {
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
export const fileEntries = {
  include: key(
    "directory whose *.yaml and *.yml files are read as well, from where this file is: networks are added, any other key is set once",
    { sample: "conf.d" },
    v.optional(directory),
  ),
};

/** What is wrong with `networks` that are none. */
export const NOT_A_LIST = "must be a list of networks";

export const networkSchema = v.pipe(
  v.custom<Record<string, unknown>>(isMapping, "must be a mapping with a vni"),
  v.strictObject(networkEntries),
);
export const schema = v.strictObject({
  ...endpointEntries,
  ...fileEntries,
  networks: v.pipe(
    v.array(networkSchema, NOT_A_LIST),
    v.minLength(1, "is empty: give one there, or with --vni N --peer ADDR"),
  ),
});

export type NetworkKey = keyof typeof networkEntries;
export type EndpointKey = keyof typeof endpointEntries;
export const NETWORK_KEYS = Object.keys(networkEntries) as NetworkKey[];
export const TOP_KEYS = Object.keys(schema.entries);

export type Parsed = v.InferOutput<typeof schema>;
export type ParsedNetwork = v.InferOutput<typeof networkSchema>;

function isHost(text: string): boolean {
  return !["unspecified", "broadcast"].includes(ipaddr.process(text).range());
}

function isPort(port: number): boolean {
  return port >= 1 && port <= 65_535;
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

/** Names that a refusal lists; more are counted. */
const NAMES_LISTED = 20;

/** `: did you mean "peers"?`, or the list of what is known when nothing is near. */
export function nearest(name: string, known: readonly string[]): string {
  const match = closest(name, known);
  if (distance(name, match) <= Math.max(2, name.length / 3)) return `: did you mean "${match}"?`;
  const more = known.length > NAMES_LISTED ? ` and ${known.length - NAMES_LISTED} more` : "";
  return `: known are ${known.slice(0, NAMES_LISTED).join(", ")}${more}`;
}
