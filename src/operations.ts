/**
 * What can be asked of a running agent: the contract between it and whatever asks, be that the API,
 * the metrics or a signal. Everything here is plain data, as JSON can carry it.
 *
 * A request that is refused throws VtepError and has changed nothing. Networks go by their name.
 * Changes made here last until the agent reloads, or ends where no service restarts it; the configuration
 * file stays as it is.
 */
import type { Attachment } from "./attachments.ts";
import type { Config, NetworkConfig } from "./config.ts";
import type { Counter, DropReason } from "./counters.ts";
import type { Capabilities, Offloads } from "./device.ts";
import type { Explanation, Question } from "./explain.ts";
import type { ORIGIN_NAMES, Origin } from "./fdb.ts";

export type Counts = Readonly<Record<keyof typeof Counter, number>>;
export type Drops = Readonly<Partial<Record<DropReason, number>>>;

export interface AgentStatus {
  readonly pid: number;
  /** Seconds since frames could cross. */
  readonly uptimeSeconds: number;
  /** Addresses of this VTEP, an IPv4 one first. */
  readonly local: readonly string[];
  readonly port: number;
  readonly underlay: "native" | "dgram";
  readonly workers: number;
  readonly capabilities: Capabilities;
  /** Those in use. */
  readonly offloads: Offloads;
  /** Those that were wanted, and that the kernel refused or the underlay has not. */
  readonly refusedOffloads: readonly (keyof Offloads)[];
  /** Of what belongs to no network. */
  readonly drops: Drops;
  /** ICMP errors about datagrams that had been sent. */
  readonly refused: number;
  /** Remotes whose path was found to be narrower than its interface. */
  readonly paths: readonly { readonly address: string; readonly mtu: number }[];
  readonly networks: readonly NetworkStatus[];
  /** Networks that this agent is to have, and cannot; it tries each again every half minute. */
  readonly gone: readonly GoneNetwork[];
}

export interface GoneNetwork {
  readonly name: string;
  readonly vni: number;
  readonly tap: string;
  readonly reason: string;
}

export interface NetworkStatus {
  readonly name: string;
  readonly vni: number;
  readonly tap: string;
  readonly bridge: string | undefined;
  readonly vlan: number | undefined;
  /** Addresses of this host on its bridge, with their prefix lengths. */
  readonly gateway: readonly string[];
  /** Of addresses that this host gives out: LOW-HIGH/LENGTH. */
  readonly ranges: readonly string[];
  readonly mac: string;
  readonly mtu: number;
  /** Who gets what is flooded. */
  readonly peers: readonly string[];
  readonly counters: Counts;
  readonly drops: Drops;
  readonly fdb: Readonly<Record<FdbOrigin, number>>;
}

/** What crossed between this VTEP and a remote, in all networks. */
export interface RemoteStatus {
  readonly address: string;
  readonly toFrames: number;
  readonly toBytes: number;
  readonly fromFrames: number;
  readonly fromBytes: number;
  /** ICMP errors about datagrams to it. */
  readonly refused: number;
  readonly state: RemoteState;
}

/** "down": what was sent there was refused since a frame came from there; "silent": neither ever happened. */
export type RemoteState = "silent" | "up" | "down";

export type FdbOrigin = (typeof ORIGIN_NAMES)[Origin];

export interface FdbEntryStatus {
  readonly network: string;
  readonly mac: string;
  /** "local" or the address of a remote. */
  readonly destination: string;
  readonly origin: FdbOrigin;
  /** Of learned entries. */
  readonly ageSeconds?: number;
  readonly moves: number;
}

export interface FdbFilter {
  readonly network?: string | undefined;
  readonly mac?: string | undefined;
  /** "local" or the address of a remote. */
  readonly remote?: string | undefined;
  readonly origin?: FdbOrigin | undefined;
}

/** What frames are captured; what is left out excludes nothing. */
export interface CaptureFilter {
  readonly network?: string | undefined;
  /** Source or destination. */
  readonly mac?: string | undefined;
  /** Whom it goes to or comes from, also where that is no remote of any network. */
  readonly remote?: string | undefined;
  /** Bytes of a frame that are kept. */
  readonly snaplen?: number | undefined;
}

/** What is read of a capture, piece by piece. */
export interface CaptureStream {
  /** What has come, or what comes next; undefined when it has ended. */
  read(): Promise<Uint8Array | undefined>;
  /** To be called by whoever has read enough, or for the sake of whom nobody reads on. */
  end(): Promise<void>;
}

/** What a reload did, by names of networks; `restart` are keys that only a restart changes. */
export interface Changes {
  readonly added: readonly string[];
  readonly changed: readonly string[];
  readonly removed: readonly string[];
  readonly restart: readonly string[];
}

export type AgentEvent =
  | { readonly event: "learned" | "aged" | "evicted"; readonly entry: FdbEntryStatus }
  | { readonly event: "moved"; readonly entry: FdbEntryStatus; readonly from: string }
  | { readonly event: "remote-up" | "remote-down"; readonly remote: string }
  /** Of a path that was found to be narrower than its interface, or narrower still, what it carries. */
  | { readonly event: "path-learned"; readonly remote: string; readonly mtu: number }
  | { readonly event: "path-forgotten"; readonly remote: string }
  | { readonly event: "offload-demoted"; readonly offload: keyof Offloads }
  /** It is to be, and cannot. */
  | { readonly event: "network-gone"; readonly network: string; readonly reason: string }
  | { readonly event: "network-back"; readonly network: string }
  /** Since the last event about that network; of no network when it has no name. */
  | { readonly event: "dropped"; readonly network: string | undefined; readonly drops: Drops }
  | { readonly event: "reloaded"; readonly changes: Changes }
  /** Events that came too fast to be told. */
  | { readonly event: "missed"; readonly count: number };

export interface Operations {
  /** Containers' interfaces in networks, as the host has them now. */
  attachments(): Promise<readonly Attachment[]>;
  status(): AgentStatus;
  /** One of the status' networks; undefined: there is none of that name. */
  network(name: string): NetworkStatus | undefined;
  /** When the changes that were asked for have ended. */
  settled(): Promise<void>;
  /** Those that networks name, in the order in which they came to be known. */
  remotes(): readonly RemoteStatus[];
  /** In no order, in lots that may be empty; there may be many, so others are to have a turn between two lots. */
  fdb(filter: FdbFilter): Generator<readonly FdbEntryStatus[]>;
  /** Adds a network, or gives it this configuration; true when it is new. */
  putNetwork(network: NetworkConfig): Promise<boolean>;
  /** False when there is none of that name. */
  removeNetwork(name: string): Promise<boolean>;
  putPeer(network: string, address: string): Promise<void>;
  removePeer(network: string, address: string): Promise<boolean>;
  /** Enters a static entry. */
  putFdb(network: string, mac: string, address: string): Promise<void>;
  /** Removes a static entry, or a learned one. */
  removeFdb(network: string, mac: string): Promise<boolean>;
  /** Forgets what was learned; returns how many entries that were. */
  flushFdb(filter: FdbFilter): Promise<number>;
  /** Applies a configuration: what is the same is not touched. */
  reload(config: Config): Promise<Changes>;
  setLogLevel(level: Config["logLevel"]): void;
  /**
   * What the dataplane would do with a frame; nothing is done. Throws VtepError where the question is
   * none.
   */
  explain(network: string, question: Question): Explanation;
  /** Begins a capture, in pcapng: one at a time, for it costs a copy of every frame that matches. */
  capture(filter: CaptureFilter): Promise<CaptureStream>;
  /** Ends the capture that is under way: what was copied by then can still be read. False: none is. */
  endCapture(): Promise<boolean>;
  /** Calls back for every event until what it returned is called. Slow listeners are the caller's. */
  listen(listener: (event: AgentEvent) => void): () => void;
}
