import { formatRange } from "../../src/addresses.ts";
import type { Attachment } from "../../src/attachments.ts";
import type { Config, NetworkConfig } from "../../src/config.ts";
import { Counter } from "../../src/counters.ts";
import { ALL_OFFLOADS } from "../../src/device.ts";
import { VtepError } from "../../src/errors.ts";
import type { Explanation, Question } from "../../src/explain.ts";
import { LOT } from "../../src/fdb.ts";
import type {
  AgentEvent,
  AgentStatus,
  CaptureFilter,
  CaptureStream,
  Changes,
  Counts,
  FdbEntryStatus,
  FdbFilter,
  GoneNetwork,
  NetworkStatus,
  Operations,
  RemoteStatus,
} from "../../src/operations.ts";
import { formatMac } from "../../src/wire/ethernet.ts";
import { sectionHeader } from "../../src/wire/pcapng.ts";

const NOTHING = Object.fromEntries(Object.keys(Counter).map((name) => [name, 0])) as Counts;

/** What can be asked of an agent, of one that forwards nothing: networks and entries in memory. */
export class MemoryOperations implements Operations {
  readonly configs = new Map<string, NetworkConfig>();
  readonly gone: GoneNetwork[] = [];
  readonly entries: FdbEntryStatus[] = [];
  logLevel: Config["logLevel"] = "info";
  readonly listeners = new Set<(event: AgentEvent) => void>();

  status(): AgentStatus {
    return {
      pid: process.pid,
      uptimeSeconds: 1,
      local: ["192.0.2.1"],
      port: 4789,
      underlay: "native",
      workers: 1,
      capabilities: {
        sourcePortEntropy: true,
        dontFragment: true,
        zeroChecksum6: true,
        countsOverflows: true,
        carriesTos: true,
        cutsSuperFrames: true,
      },
      offloads: ALL_OFFLOADS,
      refusedOffloads: [],
      drops: { VXLAN_VNI_NOT_FOUND: 3 },
      refused: 0,
      paths: [{ address: "192.0.2.2", mtu: 1400 }],
      networks: [...this.configs.values()].map((config) => this.#status(config)),
      gone: this.gone,
    };
  }

  network(name: string): NetworkStatus | undefined {
    const config = this.configs.get(name);
    return config && this.#status(config);
  }

  async settled(): Promise<void> {}

  #status({
    name,
    vni,
    tap,
    bridge,
    vlan,
    gateway,
    ranges,
    mtu,
    peers,
  }: NetworkConfig): NetworkStatus {
    return {
      name,
      vni,
      tap,
      bridge,
      vlan,
      gateway,
      ranges: ranges.map(formatRange),
      mac: "02:00:00:00:00:01",
      mtu: mtu === "auto" ? 1450 : mtu,
      peers,
      counters: NOTHING,
      drops: {},
      fdb: { learned: this.entries.length, control: 0, static: 0 }, // the agent tells them apart
    };
  }

  async attachments(): Promise<Attachment[]> {
    const container = {
      target: "/run/netns/web",
      ifname: "eth0",
      by: "attach",
      link: "vt0123456789ab",
    };
    const addresses = { mac: "02:00:00:00:00:09", addresses: ["192.0.2.9/24"] };
    const published = [{ protocol: "tcp" as const, port: 8080, toPort: 80 }];
    return [{ network: "blue", ...container, ...addresses, published }];
  }

  remotes(): RemoteStatus[] {
    const nothing = { toFrames: 0, toBytes: 0, fromFrames: 0, fromBytes: 0 };
    return [{ address: "192.0.2.2", ...nothing, refused: 0, state: "silent" }];
  }

  readonly captures: { filter: CaptureFilter; isOver: boolean }[] = [];

  explain(network: string, { from, ...asked }: Question): Explanation {
    const sentence = JSON.stringify(asked);
    const direction = from === undefined ? "encap" : "decap";
    const verdict = { outcome: "dropped", remotes: [], drops: [], sentence } as const;
    return { network, direction, steps: [], verdict };
  }

  /** Of nothing: a section, and again and again nothing more. */
  async capture(filter: CaptureFilter): Promise<CaptureStream> {
    const own = { filter, isOver: false };
    this.captures.push(own);
    const pieces = [sectionHeader("memory")];
    return {
      read: async () => pieces.shift() ?? (await new Promise(() => undefined)),
      end: async () => {
        own.isOver = true;
      },
    };
  }

  async endCapture(): Promise<boolean> {
    const running = this.captures.find(({ isOver }) => !isOver);
    if (running !== undefined) running.isOver = true;
    return running !== undefined;
  }

  *fdb({ network, mac, remote, origin }: FdbFilter): Generator<readonly FdbEntryStatus[]> {
    for (let at = 0; at < this.entries.length; at += LOT) {
      yield this.entries
        .slice(at, at + LOT)
        .filter(
          (entry) =>
            (network === undefined || entry.network === network) &&
            (mac === undefined || entry.mac === mac) &&
            (remote === undefined || entry.destination === remote) &&
            (origin === undefined || entry.origin === origin),
        );
    }
  }

  async putNetwork(network: NetworkConfig): Promise<boolean> {
    for (const [name, { vni }] of this.configs) {
      if (vni === network.vni && name !== network.name) {
        throw new VtepError("CONFLICT", `VNI ${vni} is given to two networks: each needs its own`);
      }
    }
    const isNew = !this.configs.has(network.name);
    this.configs.set(network.name, network);
    return isNew;
  }

  async removeNetwork(name: string): Promise<boolean> {
    return this.configs.delete(name);
  }

  async putPeer(network: string, address: string): Promise<void> {
    const config = this.configs.get(network)!;
    this.configs.set(network, { ...config, peers: [...new Set([...config.peers, address])] });
  }

  async removePeer(network: string, address: string): Promise<boolean> {
    const config = this.configs.get(network)!;
    this.configs.set(network, {
      ...config,
      peers: config.peers.filter((peer) => peer !== address),
    });
    return config.peers.includes(address);
  }

  async putFdb(network: string, mac: string, address: string): Promise<void> {
    await this.removeFdb(network, mac);
    this.entries.push({ network, mac, destination: address, origin: "static", moves: 0 });
  }

  async removeFdb(network: string, mac: string): Promise<boolean> {
    const at = this.entries.findIndex((entry) => entry.network === network && entry.mac === mac);
    return at >= 0 && this.entries.splice(at, 1).length > 0;
  }

  async flushFdb(filter: FdbFilter): Promise<number> {
    const gone = [...this.fdb({ ...filter, origin: "learned" })].flat();
    for (const entry of gone) this.entries.splice(this.entries.indexOf(entry), 1);
    return gone.length;
  }

  async reload(): Promise<Changes> {
    const changes = { added: ["blue"], changed: [], removed: [], restart: ["port"] };
    this.tell({ event: "reloaded", changes });
    return changes;
  }

  setLogLevel(level: Config["logLevel"]): void {
    this.logLevel = level;
  }

  listen(listener: (event: AgentEvent) => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  // ---- What a test makes happen

  tell(event: AgentEvent): void {
    for (const listener of this.listeners) listener(event);
  }

  learn(network: string, count: number): void {
    for (let at = 0; at < count; at++) {
      const mac = formatMac(0x0200, at);
      const destination = `192.0.2.${2 + (at % 2)}`;
      this.entries.push({ network, mac, destination, origin: "learned", ageSeconds: 5, moves: 0 });
    }
  }
}
