/**
 * What the doctor knows of a host before it judges: plain data, so that a fault which reality does not
 * offer can be written down. What could not be looked at says why, and what would help.
 */
import type { Config } from "../config.ts";
import type { Link, Route } from "../host.ts";
import type { AgentStatus, NetworkStatus } from "../operations.ts";
import type { Table } from "./ruleset.ts";

export interface Unseen {
  readonly unseen: string;
  /** What has to be done for it to be seen. */
  readonly remedy: string;
}

export type Seen<What> = What | Unseen;

export function isUnseen(seen: unknown): seen is Unseen {
  return typeof seen === "object" && seen !== null && "unseen" in seen;
}

/** What a running agent says of itself, as far as it matters here. */
export type AgentFacts = Pick<
  AgentStatus,
  "pid" | "local" | "drops" | "paths" | "offloads" | "refusedOffloads" | "gone"
> & {
  readonly networks: readonly Pick<
    NetworkStatus,
    "vni" | "tap" | "bridge" | "gateway" | "mac" | "mtu" | "counters" | "drops"
  >[];
};

export interface Facts {
  readonly config: Config;
  /** Whether that is of a file, and not of flags alone. */
  readonly hasFile: boolean;
  readonly agent: Seen<AgentFacts>;
  /** Remotes that the agent calls down: by ICMP errors, and until a frame comes from there. */
  readonly down: readonly string[];
  /** Why `vtep run` would not start with this configuration, in its words. */
  readonly refusal: string | undefined;
  /** Why an agent could not be asked at the path that is configured, in the words of vtep run. */
  readonly socketRefusal: string | undefined;
  /** Of the doctor's own process, by name (CAP_NET_ADMIN). */
  readonly capabilities: readonly string[];
  readonly isRoot: boolean;
  readonly tun: TunFacts;
  /** Bound to the VXLAN port. */
  readonly sockets: Seen<readonly SocketFacts[]>;
  /** Bound to source ports. */
  readonly sourceSockets: Seen<readonly SocketFacts[]>;
  /** That listen at the TCP port for metrics; none where there is no such port. */
  readonly metricsSockets: Seen<readonly SocketFacts[]>;
  readonly links: ReadonlyMap<string, Link>;
  /** Of this host's interfaces. */
  readonly addresses: readonly string[];
  /** Routes to whom networks reach, by address; one to which none leads is left out. */
  readonly routes: ReadonlyMap<string, Route>;
  readonly filters: Seen<readonly Table[]>;
  /** undefined where the kernel has no conntrack. */
  readonly conntrack: { readonly count: number; readonly max: number } | undefined;
  readonly receiveBufferMax: number | undefined;
  /** Families that are forwarded from any interface to any other. */
  readonly forwarding: readonly (4 | 6)[];
  /** From here on a port takes no privilege. */
  readonly unprivilegedPort: number;
  /** net.ipv4.ip_local_reserved_ports: those that nobody gets who has not asked for them by number. */
  readonly reservedPorts: readonly PortRange[];
  readonly paths: Seen<ReadonlyMap<string, PathFacts>>;
  readonly ports: ReadonlyMap<string, PortFacts>;
  /** Features of the devices that routes leave by, by device and name. */
  readonly features: ReadonlyMap<string, Seen<Features>>;
  /** The sysctls bridge-nf-call-* that are on, by their last word. */
  readonly bridgeFilters: readonly string[];
}

export type TunFacts =
  | { readonly state: "openable" }
  | { readonly state: "missing" }
  | { readonly state: "other"; readonly what: string }
  | { readonly state: "refused"; readonly code: string };

/** Both ends included. */
export type PortRange = readonly [low: number, high: number];

/** A socket that is bound to a port which is wanted here. */
export interface SocketFacts {
  /** Without scope and brackets; "*" for every address of both families. */
  readonly address: string;
  readonly port: number;
  /** Its process, as far as that may be seen. */
  readonly pid?: number;
  readonly command?: string;
  /** That is a VTEP of ours. */
  readonly isAgent: boolean;
  readonly receiveBuffer?: number;
  /** Datagrams that found its buffer full. */
  readonly drops?: number;
}

export type PathFacts =
  | { readonly answers: false; readonly why: string | undefined }
  | { readonly answers: true; readonly mtu: undefined; readonly atLeast: number }
  | {
      readonly answers: true;
      /** Bytes of the longest IP packet that crosses. */
      readonly mtu: number;
      /** Who said that a packet was too big. */
      readonly narrowedBy: string | undefined;
      /** Longer packets vanish, and nobody says so. */
      readonly silently: boolean;
    };

/** blocked: this host does not let the datagram out. */
export type PortFacts = "refused" | "blocked" | "silent";

export type Features = Readonly<
  Record<string, { readonly active: boolean; readonly fixed: boolean }>
>;

/** The networks of the agent, if one answers. */
export function runningNetworks({ agent }: Pick<Facts, "agent">): AgentFacts["networks"] {
  return isUnseen(agent) ? [] : agent.networks;
}

/** Whether an agent runs, as far as can be seen: another user's has at least a TAP of that name. */
export function runs({
  agent,
  sockets,
  config,
  links,
}: Pick<Facts, "agent" | "sockets" | "config" | "links">): boolean {
  if (!isUnseen(agent)) return true;
  if (!isUnseen(sockets) && sockets.some(({ isAgent }) => isAgent)) return true;
  return config.networks.some(({ tap }) => links.get(tap)?.linkinfo?.info_kind === "tun");
}
