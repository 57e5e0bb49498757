import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { constants } from "node:os";
import { type Endpoint, Host, type KernelOptions, type Kind, type Membership } from "./host.ts";
import { create, Namespace, removeWhere } from "./namespace.ts";

/**
 * `veth` leaves every offload on: a veth then carries 64 KiB super-packets and nobody segments, which
 * no real network does. `wire` makes the underlay behave like a plain NIC: nothing above its MTU
 * crosses, and the receiver does GRO.
 */
export type Mode = "veth" | "wire";

export interface Drawing {
  hosts: number;
  /** MTU of the underlay, 1500 unless told. */
  mtu?: number;
  /** `veth` unless told. */
  mode?: Mode;
  /** Whether a router lies between any two hosts; its links can be narrowed. */
  routed?: boolean;
}

/**
 * Hosts drawn as network namespaces, joined by an underlay that carries IPv4 and IPv6.
 *
 * ```
 *  container ── br0 ── VTEP ── eth0 ══ underlay ══ eth0 ── VTEP ── br0 ── container
 *                  host 1                                      host 2
 * ```
 *
 * Two hosts are joined by a veth pair, more by a bridge in a namespace of its own, and those that are
 * routed by a router in its place. Namespaces are
 * called `lab-PID-RANDOM-…`. A lab is removed when it is disposed of, or when its process ends; if that
 * was by SIGKILL, its processes end at once and its namespaces go when the next lab is drawn.
 */
export class Lab implements AsyncDisposable {
  readonly hosts: Host[];
  readonly #fabric: Namespace;
  readonly #underlay: [namespace: Namespace, device: string][] = [];
  readonly #prefix = `lab-${process.pid}-${randomBytes(2).toString("hex")}-`;

  private constructor(hosts: number) {
    this.hosts = Array.from({ length: hosts }, (_, i) => new Host(this.#prefix, i + 1));
    this.#fabric = new Namespace(`${this.#prefix}fabric`);
  }

  static async draw({ hosts, mtu = 1500, mode = "veth", routed = false }: Drawing): Promise<Lab> {
    if (process.getuid?.() !== 0) throw new Error("drawing network namespaces needs root");
    removeWhere(isAbandoned);
    const lab = new Lab(hosts);
    drawn.add(lab);
    try {
      await lab.#draw(mtu, routed);
      if (mode === "wire") await lab.setMode(mode);
    } catch (error) {
      await lab[Symbol.asyncDispose]();
      throw error;
    }
    return lab;
  }

  /** What lies between the hosts: the router, where they are routed. */
  get router(): Namespace {
    return this.#fabric;
  }

  /** The host of that number, counted from 1 as in its addresses. */
  host(number: number): Host {
    const host = this.hosts[number - 1];
    if (!host) throw new RangeError(`this lab has ${this.hosts.length} hosts, not ${number}`);
    return host;
  }

  async #draw(mtu: number, routed: boolean): Promise<void> {
    await create(...this.hosts);
    if (routed) await this.#joinByRouter(mtu);
    else if (this.hosts.length === 2) await this.#joinPair(mtu);
    else await this.#joinByBridge(mtu);
    for (const host of this.hosts) {
      this.#underlay.push([host, "eth0"]);
      const [length, length6] = routed ? [32, 128] : [24, 64];
      await host.ip(
        `addr add ${host.address}/${length} dev eth0`,
        `addr add ${host.address6}/${length6} dev eth0 nodad`,
        "link set eth0 up",
        ...(routed
          ? GATEWAYS.flatMap((at) => [`route add ${at} dev eth0`, `route add default via ${at}`])
          : []),
      );
      // Bridges, ports and tunnel devices need no addresses, and would announce themselves through
      // the tunnels that are tested.
      await host.sysctl({ "ipv6/conf/default/disable_ipv6": 1 });
    }
  }

  async #joinPair(mtu: number): Promise<void> {
    const peer = `peer name eth0 mtu ${mtu} netns ${this.host(2).name}`;
    await this.host(1).ip(`link add eth0 mtu ${mtu} type veth ${peer}`);
  }

  async #joinByBridge(mtu: number): Promise<void> {
    await create(this.#fabric);
    await this.#fabric.ip("link add fabric type bridge", "link set fabric up");
    for (const host of this.hosts) {
      const port = `h${host.number}`;
      this.#underlay.push([this.#fabric, port]);
      await this.#fabric.ip(
        `link add ${port} mtu ${mtu} type veth peer name eth0 mtu ${mtu} netns ${host.name}`,
        `link set ${port} master fabric up`,
      );
    }
  }

  async #joinByRouter(mtu: number): Promise<void> {
    await create(this.#fabric);
    await this.#fabric.sysctl({ "ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1 });
    for (const host of this.hosts) {
      const port = `h${host.number}`;
      this.#underlay.push([this.#fabric, port]);
      await this.#fabric.ip(
        `link add ${port} mtu ${mtu} type veth peer name eth0 mtu ${mtu} netns ${host.name}`,
        ...GATEWAYS.map((at) => `addr add ${at} dev ${port} nodad`),
        `link set ${port} up`,
        `route add ${host.address} dev ${port}`,
        `route add ${host.address6} dev ${port}`,
      );
    }
  }

  /** Gives the link between the router and a host another MTU, at both of its ends. */
  async setMtu(host: Host, mtu: number): Promise<void> {
    await this.#fabric.ip(`link set h${host.number} mtu ${mtu}`);
    await host.ip(`link set eth0 mtu ${mtu}`);
  }

  /**
   * Joins hosts 1, 2, … to a network, each by an endpoint of the kind given for it and with all the
   * others as its peers. Disposing of the answer ends these endpoints.
   */
  async join(
    kinds: Kind[],
    { vni = 42, family = 4, ...membership }: JoinOptions = {},
  ): Promise<Endpoints> {
    const address = (host: Host) => (family === 4 ? host.address : host.address6);
    const members = this.hosts.slice(0, kinds.length);
    const finished = kinds.some((kind) => kind !== "kernel"); // see there
    const joining = members.map((host, i) => {
      const peers = members.filter((member) => member !== host).map(address);
      return host.join(kinds[i]!, { vni, peers, local: address(host), finished, ...membership });
    });
    const settled = await Promise.allSettled(joining);
    const endpoints = new Endpoints();
    for (const one of settled) if (one.status === "fulfilled") endpoints.push(one.value);
    const failed = settled.find((one) => one.status === "rejected");
    if (failed === undefined) return endpoints;
    await endpoints[Symbol.asyncDispose]();
    throw failed.reason;
  }

  /** Switches the underlay's offloads; the hosts need not be idle. */
  async setMode(mode: Mode): Promise<void> {
    const segmentation = mode === "wire" ? "off" : "on";
    const coalescing = mode === "wire" ? "on" : "off";
    for (const [namespace, device] of this.#underlay) {
      await namespace.run(
        ...["ethtool", "-K", device],
        ...["tso", segmentation],
        ...["tx-udp_tnl-segmentation", segmentation],
        ...["tx-udp_tnl-csum-segmentation", segmentation],
        ...["tx-udp-segmentation", segmentation],
        ...["gro", coalescing],
      );
    }
  }

  /** Ends every process and removes every namespace. May be called twice. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#namespaces().map((namespace) => namespace.quiesce()));
    this.removeNow();
  }

  /** The same for an exit handler, which cannot wait. */
  removeNow(): void {
    if (!drawn.delete(this)) return;
    for (const namespace of this.#namespaces()) namespace.killAll();
    removeWhere((name) => name.startsWith(this.#prefix));
  }

  #namespaces(): Namespace[] {
    return [...this.hosts.flatMap((host) => [host, ...host.guests]), this.#fabric];
  }
}

export interface JoinOptions extends Partial<Membership>, KernelOptions {
  /** Whether peers are named by their IPv4 or their IPv6 address; 4 unless told. */
  family?: 4 | 6;
}

/** One endpoint of a network per host. */
export class Endpoints extends Array<Endpoint> implements AsyncDisposable {
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.map((endpoint) => endpoint[Symbol.asyncDispose]()));
  }
}

/** The router's addresses, the same on all of its links. */
const GATEWAYS = ["10.0.0.254", "fd00::fe"];

const drawn = new Set<Lab>();

function removeAll(): void {
  for (const lab of drawn) lab.removeNow();
}

process.once("exit", removeAll);
process.once("disconnect", removeAll); // a test runner's process whose parent has gone
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  // For good: a second one, as of a terminal and of a parent, would end the process meanwhile.
  process.on(signal, () => {
    removeAll();
    // Not by the signal itself: what else is to be removed is removed at the exit.
    if (process.listenerCount(signal) === 1) process.exit(128 + constants.signals[signal]);
  });
}

/** A lab's name tells the process that drew it: one that is gone cannot remove it any more. */
function isAbandoned(name: string): boolean {
  const pid = /^lab-(\d+)-/.exec(name)?.[1];
  return pid !== undefined && !existsSync(`/proc/${pid}`);
}
