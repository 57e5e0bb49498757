/**
 * The shapes of what the API takes and gives, from which checks and its OpenAPI description follow. That
 * they are the shapes of `operations.ts` is checked when they are compiled, and what an agent really
 * answers when they are tested. A network's is the configuration's own.
 */
import * as v from "valibot";
import type { Attachment } from "../attachments.ts";
import { WHOLE } from "../capture.ts";
import { Counter, Drop } from "../counters.ts";
import { OFFLOADS } from "../device.ts";
import type { Explanation, Question } from "../explain.ts";
import { ORIGIN_NAMES } from "../fdb.ts";
import type {
  AgentEvent,
  CaptureFilter,
  Changes,
  FdbEntryStatus,
  FdbFilter,
  NetworkStatus,
  RemoteStatus,
} from "../operations.ts";
import { address, LOG_LEVELS, networkEntries } from "../schema.ts";
import { formatMac, isMulticast, isZero, parseMac } from "../wire/ethernet.ts";
import type { ApiStatus } from "./client.ts";

const ORIGINS = Object.values(ORIGIN_NAMES);

/** With a name, it is described once, for all places that have it. */
function named<const Schema extends v.GenericSchema>(name: string, help: string, schema: Schema) {
  return v.pipe(schema, v.description(help), v.metadata({ ref: name }));
}

function counted<const Name extends string>(names: Record<Name, unknown>) {
  const name = v.picklist(Object.keys(names) as Name[]);
  return v.record(name, v.number()) as v.GenericSchema<Readonly<Record<Name, number>>>;
}

function switches<const Name extends string>(...names: readonly Name[]) {
  const entries = names.map((name) => [name, v.boolean()]);
  return v.object(Object.fromEntries(entries) as Record<Name, v.BooleanSchema<undefined>>);
}

// ---- What it gives

const drops = named(
  "Drops",
  "frames that were dropped, by reason",
  counted(Drop) as v.GenericSchema<Partial<Record<keyof typeof Drop, number>>>,
);

export const networkStatus = named(
  "NetworkStatus",
  "a network as it is forwarded",
  v.object({
    name: v.string(),
    vni: v.number(),
    tap: v.string(),
    bridge: v.optional(v.string()),
    vlan: v.optional(v.number()),
    gateway: v.array(v.string()),
    ranges: v.array(v.string()),
    mac: v.string(),
    mtu: v.number(),
    peers: v.array(v.string()),
    counters: counted(Counter),
    drops,
    fdb: v.object({ learned: v.number(), control: v.number(), static: v.number() }),
  }),
) satisfies v.GenericSchema<Given<NetworkStatus>>;

export const agentStatus = named(
  "AgentStatus",
  "the agent, and what it forwards",
  v.object({
    version: v.string(),
    pid: v.number(),
    uptimeSeconds: v.number(),
    local: v.array(v.string()),
    port: v.number(),
    underlay: v.picklist(["native", "dgram"]),
    workers: v.number(),
    capabilities: switches(
      "sourcePortEntropy",
      "dontFragment",
      "zeroChecksum6",
      "countsOverflows",
      "carriesTos",
      "cutsSuperFrames",
    ),
    offloads: switches(...OFFLOADS),
    refusedOffloads: v.array(v.picklist(OFFLOADS)),
    drops,
    refused: v.number(),
    paths: v.array(v.object({ address: v.string(), mtu: v.number() })),
    networks: v.array(networkStatus),
    gone: v.array(
      named(
        "GoneNetwork",
        "a network that the agent is to have, and cannot; it tries again every half minute",
        v.object({ name: v.string(), vni: v.number(), tap: v.string(), reason: v.string() }),
      ),
    ),
  }),
) satisfies v.GenericSchema<Omit<ApiStatus, "networks">>;

export const remoteStatus = named(
  "RemoteStatus",
  "inner frames and bytes that crossed between here and a remote",
  v.object({
    address: v.string(),
    toFrames: v.number(),
    toBytes: v.number(),
    fromFrames: v.number(),
    fromBytes: v.number(),
    refused: v.number(),
    state: v.picklist(["silent", "up", "down"]),
  }),
) satisfies v.GenericSchema<RemoteStatus>;

export const attachment = named(
  "Attachment",
  "a container's interface in a network: on its bridge, or its TAP itself",
  v.object({
    network: v.string(),
    target: v.string(),
    ifname: v.string(),
    mac: v.string(),
    addresses: v.array(v.string()),
    published: v.array(
      v.object({
        protocol: v.picklist(["tcp", "udp"]),
        address: v.exactOptional(v.string()),
        port: v.number(),
        toPort: v.number(),
      }),
    ),
    by: v.string(),
    link: v.string(),
  }),
) satisfies v.GenericSchema<Given<Attachment>>;

export const fdbEntry = named(
  "FdbEntry",
  'where frames for a MAC go: "local", or the address of a remote',
  v.object({
    network: v.string(),
    mac: v.string(),
    destination: v.string(),
    origin: v.picklist(ORIGINS),
    ageSeconds: v.exactOptional(v.number()),
    moves: v.number(),
  }),
) satisfies v.GenericSchema<FdbEntryStatus>;

const strings = v.array(v.string());

export const explanation = named(
  "Explanation",
  "what would become of a frame, in the order in which it is decided",
  v.object({
    network: v.string(),
    direction: v.picklist(["encap", "decap"]),
    steps: strings,
    verdict: v.object({
      outcome: v.picklist(["sent", "delivered", "dropped"]),
      remotes: strings,
      drops: v.array(
        v.object({
          reason: v.picklist(Object.keys(Drop) as (keyof typeof Drop)[]),
          remote: v.exactOptional(v.string()),
        }),
      ),
      sentence: v.string(),
    }),
  }),
) satisfies v.GenericSchema<Explanation>;

export const changes = named(
  "Changes",
  "what a reload did, by names of networks, and the keys that only a restart changes",
  v.object({
    added: v.array(v.string()),
    changed: v.array(v.string()),
    removed: v.array(v.string()),
    restart: v.array(v.string()),
  }),
) satisfies v.GenericSchema<Changes>;

export const event = named(
  "Event",
  "something that happened; of those that were too many for a reader, only their number",
  v.variant("event", [
    v.object({ event: v.picklist(["learned", "aged", "evicted"]), entry: fdbEntry }),
    v.object({ event: v.literal("moved"), entry: fdbEntry, from: v.string() }),
    v.object({ event: v.picklist(["remote-up", "remote-down"]), remote: v.string() }),
    v.object({ event: v.literal("path-learned"), remote: v.string(), mtu: v.number() }),
    v.object({ event: v.literal("path-forgotten"), remote: v.string() }),
    v.object({ event: v.literal("offload-demoted"), offload: v.picklist(OFFLOADS) }),
    v.object({ event: v.literal("network-gone"), network: v.string(), reason: v.string() }),
    v.object({ event: v.literal("network-back"), network: v.string() }),
    v.object({ event: v.literal("dropped"), network: v.optional(v.string()), drops }),
    v.object({ event: v.literal("reloaded"), changes }),
    v.object({ event: v.literal("missed"), count: v.number() }),
  ]),
) satisfies v.GenericSchema<Given<Extract<AgentEvent, { event: "dropped" }>> | AgentEvent>;

export const refusal = named(
  "Refusal",
  "why a call came to nothing",
  v.object({
    code: v.pipe(v.string(), v.description("what kind of fault it is; does not change")),
    message: v.pipe(v.string(), v.description("one sentence, with what helps")),
  }),
);

export const flushed = v.object({ flushed: v.number() });

// ---- What it takes

const mac = v.pipe(
  v.string("must be given once"),
  v.check(
    (text) => parseMac(text) !== undefined,
    (issue) => `${JSON.stringify(issue.input)} is not a MAC address (aa:bb:cc:dd:ee:ff)`,
  ),
  v.transform((text) => {
    const { high, low } = parseMac(text)!;
    return formatMac(high, low);
  }),
);

const unicastMac = v.pipe(
  mac,
  v.check(
    (text) => {
      const { high, low } = parseMac(text)!;
      return !isMulticast(high) && !isZero(high, low);
    },
    (issue) => `${issue.input} is no station's, so its frames are flooded: add a peer instead`,
  ),
);

const networkName = v.pipe(v.string("must be given once"), v.nonEmpty("is empty: name a network"));

const remote = v.union(
  [v.literal("local"), address],
  (issue) => `${JSON.stringify(issue.input)} is neither "local" nor the address of a VTEP`,
);

const origin = v.picklist(
  ORIGINS,
  (issue) => `${JSON.stringify(issue.input)} is none of ${ORIGINS.join(", ")}`,
);

const learnedFilter = {
  network: v.optional(networkName),
  mac: v.optional(mac),
  remote: v.optional(remote),
};

export const flushFilter = v.strictObject(learnedFilter);
export const fdbFilter = v.strictObject({
  ...learnedFilter,
  origin: v.optional(origin),
}) satisfies v.GenericSchema<unknown, FdbFilter>;
export const nothing = v.strictObject({});

/** A frame's header at least, and no more than tcpdump keeps. */
const snaplen = v.pipe(
  v.string("must be given once"),
  v.check(
    (text) => /^\d+$/.test(text) && Number(text) >= 14 && Number(text) <= WHOLE,
    (issue) => `${JSON.stringify(issue.input)} is not a number of bytes from 14 to ${WHOLE}`,
  ),
  v.transform(Number),
);

export const captureFilter = v.strictObject({
  network: v.optional(networkName),
  mac: v.optional(mac),
  remote: v.optional(address),
  snaplen: v.optional(snaplen),
}) satisfies v.GenericSchema<unknown, CaptureFilter>;

const text = (what: string) => v.optional(v.string(`must be ${what}`));
export const question = v.strictObject({
  network: networkName,
  frame: text("a frame in hexadecimal"),
  source: text("a MAC address"),
  destination: text("a MAC address"),
  from: v.optional(address),
}) satisfies v.GenericSchema<unknown, Question>;

export const networkPath = v.object({ name: networkName });
export const fdbPath = v.object({ name: networkName, mac: unicastMac });
export const peerPath = v.object({ name: networkName, address });

export const fdbBody = v.strictObject({ remote: address });
export const levelBody = v.strictObject({
  level: v.picklist(LOG_LEVELS, `must be one of ${LOG_LEVELS.join(", ")}`),
});

/** A network in the shape that a configuration file has, its name being in the path. */
export const networkBody = v.omit(v.strictObject(networkEntries), ["name"]);

/** As JSON carries it: what is undefined is not there. */
type Given<T> = T extends unknown
  ? { [Key in keyof T as undefined extends T[Key] ? never : Key]: T[Key] }
  : never;
