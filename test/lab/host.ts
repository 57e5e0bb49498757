import { create, Namespace } from "./namespace.ts";
import { cli, Vtep } from "./vtep.ts";

/** Which tunnel endpoint a host runs: the kernel's, or ours on one of its underlays. */
export type Kind = "kernel" | "native" | "dgram";

/** What a host and a network need to know of each other, whichever endpoint joins them. */
export interface Membership {
  vni: number;
  /** Underlay addresses that get a copy of what has no known destination. */
  peers: string[];
  /** The host's address in the underlay, `address` unless told. */
  local?: string;
  /** `br0` unless told. */
  bridge?: string;
  /** The host's interface into the network; each kind has its default. */
  device?: string;
  port?: number;
}

/** A tunnel endpoint that runs. */
export interface Endpoint extends AsyncDisposable {
  /** The underlay address behind which a MAC was learned, undefined while it is not known. */
  remoteOf(mac: string): Promise<string | undefined>;
}

/** A machine with an address in the underlay and containers behind a bridge. */
export class Host extends Namespace {
  readonly number: number;
  readonly address: string;
  readonly address6: string;
  /** The namespaces behind its bridges, which go with it. */
  readonly guests: Namespace[] = [];
  /** The `vtep` that is installed here. */
  cli = cli;

  constructor(prefix: string, number: number) {
    super(`${prefix}h${number}`);
    this.number = number;
    this.address = `10.0.0.${number}`;
    this.address6 = `fd00::${number}`;
  }

  /** Creates the bridge unless it is there. */
  async bridge(name = "br0"): Promise<void> {
    if ((await this.links()).includes(name)) return;
    await this.ip(`link add ${name} type bridge`, `link set ${name} up`);
  }

  /** Adds a container, joined by a veth pair to the bridge, which is created unless it is there. */
  async container(options: ContainerOptions = {}): Promise<Container> {
    const { mtu = 1450, bridge = "br0" } = options;
    const port = `c${this.guests.length + 1}`;
    const container = new Container(this, port, options);
    this.guests.push(container);
    await create(container);
    await this.bridge(bridge);
    const eth0 = `name eth0 address ${container.mac} mtu ${mtu} netns ${container.name}`;
    await this.ip(
      `link add ${port} mtu ${mtu} type veth peer ${eth0}`,
      `link set ${port} master ${bridge} up`,
    );
    await container.ip(
      `addr add ${container.address}/24 broadcast + dev eth0`,
      `addr add ${container.address6}/64 dev eth0 nodad`,
      "link set eth0 up",
      "route add 224.0.0.0/4 dev eth0",
    );
    return container;
  }

  /** Joins a network by an endpoint of that kind; returns when frames can cross. */
  async join(kind: Kind, membership: Membership & KernelOptions): Promise<Vtep | KernelVxlan> {
    if (kind === "kernel") return this.kernelVxlan(membership);
    const { vni, peers, local, bridge = "br0", device, port } = membership;
    return this.vtep(
      ...["--underlay", kind, "--vni", `${vni}`, "--bridge", bridge],
      ...peers.flatMap((peer) => ["--peer", peer]),
      ...(local ? ["--local", local] : []),
      ...(device ? ["--tap", device] : []),
      ...(port ? ["--port", `${port}`] : []),
    ).ready();
  }

  /** Starts `vtep run` with these arguments. */
  vtep(...args: string[]): Vtep {
    return new Vtep(this, args);
  }

  /** Starts it by way of another program, such as setpriv. */
  vtepBy(way: readonly string[], ...args: string[]): Vtep {
    return new Vtep(this, args, way);
  }

  /** Creates a kernel VXLAN device; `options` are further words for `ip link add … type vxlan`. */
  async kernelVxlan(membership: Membership & KernelOptions): Promise<KernelVxlan> {
    const { vni, peers, local = this.address, bridge = "br0", port = 4789 } = membership;
    const { device = `vx${vni}`, mtu = local.includes(":") ? 1430 : 1450 } = membership;
    const options = membership.options?.join(" ") ?? "";
    await this.bridge(bridge);
    await this.ip(
      `link add ${device} mtu ${mtu} type vxlan id ${vni} dstport ${port} local ${local} ${options}`,
      `link set ${device} master ${bridge} up`,
    );
    if (membership.finished ?? true) await this.run("ethtool", "-K", device, "tx", "off");
    for (const peer of peers) {
      await this.run("bridge", "fdb", "append", "00:00:00:00:00:00", "dev", device, "dst", peer);
    }
    return new KernelVxlan(this, device);
  }
}

export interface KernelOptions {
  mtu?: number;
  /**
   * Whether inner checksums and TCP segments are finished before a datagram leaves, as every network
   * card does; true unless told. A veth does not: it hands a datagram over as it is, and only another
   * VXLAN device of the kernel's learns what is left to do; a UDP socket sees an inner checksum field
   * that holds no more than the sum of the pseudo-header, and inner TCP of up to 64 KiB in one piece.
   */
  finished?: boolean;
  options?: string[];
}

/** A VXLAN device of the kernel: the oracle for whatever ours does. */
export class KernelVxlan implements Endpoint {
  readonly device: string;
  readonly #host: Host;

  constructor(host: Host, device: string) {
    this.#host = host;
    this.device = device;
  }

  async remoteOf(mac: string): Promise<string | undefined> {
    const rows = await this.#host.run("bridge", "-json", "fdb", "show", "dev", this.device);
    const fdb = JSON.parse(rows) as { mac: string; dst?: string }[];
    return fdb.find((row) => row.mac === mac && row.dst)?.dst;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#host.ip(`link del ${this.device}`);
  }
}

export interface ContainerOptions {
  /** The last part of its addresses and of its MAC; the host's number unless told. */
  number?: number;
  /** MTU of its interface, 1450 unless told. */
  mtu?: number;
  /** The bridge it is joined to, `br0` unless told. */
  bridge?: string;
}

/** A machine behind a bridge, which knows nothing of tunnels. Its interface is `eth0`. */
export class Container extends Namespace {
  readonly address: string;
  readonly address6: string;
  readonly mac: string;

  constructor(host: Host, port: string, { number = host.number }: ContainerOptions) {
    super(`${host.name}${port}`);
    this.address = `10.1.0.${number}`;
    this.address6 = `fd01::${number}`;
    this.mac = `02:00:00:00:00:${number.toString(16).padStart(2, "0")}`;
  }

  /** Forgets its neighbours, so that the next packet needs ARP or neighbour discovery. */
  async forgetNeighbours(): Promise<void> {
    await this.ip("neigh flush dev eth0");
  }

  /** The MAC it resolved an address to, undefined while it has not. */
  async neighbour(address: string): Promise<string | undefined> {
    const rows = await this.run("ip", "-json", "neigh", "show", address, "dev", "eth0");
    return (JSON.parse(rows) as { lladdr?: string }[])[0]?.lladdr;
  }
}
