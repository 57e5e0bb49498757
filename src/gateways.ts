/**
 * The gateways of networks: addresses of this host on their bridges, by which containers here get to
 * elsewhere; forwarding, masquerading, published ports.
 *
 * **Anycast.** On every host a gateway has the same addresses and the same MAC, so that a container keeps
 * it wherever it runs. Its frames therefore neither leave this host through a tunnel nor come in by one
 * (dataplane.ts): it serves the containers of its own host only.
 *
 * **What is left alone.** Forwarding that was switched on stays on, because others may count on it since.
 * No other table is touched: what their rules drop stays dropped.
 */
import { readFileSync, writeFileSync } from "node:fs";
import type { Logger } from "pino";
import { bare, subnetOf } from "./addresses.ts";
import { type Attachment, stableMac } from "./attachments.ts";
import { command, type Ended } from "./command.ts";
import type { NetworkConfig } from "./config.ts";
import { VtepError } from "./errors.ts";
import { advertised, type Link } from "./host.ts";
import { type GatewayLink, setUpGateways, tearDownGateways } from "./links.ts";
import { natTable, type Publication } from "./nat.ts";
import { formatMac } from "./wire/ethernet.ts";

/** Locally administered, and the same for every gateway on every host. */
export const GATEWAY_MAC = "02:76:74:65:70:01";

type Links = ReadonlyMap<string, Link>;
type Gateway = GatewayLink & Pick<NetworkConfig, "masquerade">;

/** What was made, for whoever is to take it away. */
export interface Traces {
  /** Addresses by bridge, with prefix lengths: those that were not there before. */
  readonly addresses: [bridge: string, address: string][];
  /** The MACs that bridges had before. */
  readonly macs: Record<string, string>;
  readonly hasTable: boolean;
}

/** Of a table that somebody before this agent made. */
const UNKNOWN = "";

export class Gateways {
  readonly #table: string;
  readonly #log: Logger;
  #gateways: readonly Gateway[] = [];
  #publications: readonly Publication[] = [];
  /** Of `Traces`, as "BRIDGE ADDRESS". */
  readonly #addresses: Set<string>;
  readonly #macs: Map<string, string>;
  /** As the kernel has it; undefined: there is none. */
  #natTable: string | undefined;

  /**
   * Address and port of the endpoint are what tells two agents of one host apart; `before` is what an
   * earlier one has left to this one.
   */
  constructor(local: string, port: number, log: Logger, before?: Traces) {
    this.#table = `vtep_${local.replaceAll(":", "-")}_${port}`;
    this.#log = log;
    this.#addresses = new Set(before?.addresses.map((pair) => pair.join(" ")));
    this.#macs = new Map(Object.entries(before?.macs ?? {}));
    this.#natTable = before?.hasTable ? UNKNOWN : undefined;
  }

  get traces(): Traces {
    return {
      addresses: [...this.#addresses].map((each) => each.split(" ") as [string, string]),
      macs: Object.fromEntries(this.#macs),
      hasTable: this.#natTable !== undefined,
    };
  }

  /** Whether nothing was made. */
  get isIdle(): boolean {
    return this.#addresses.size + this.#macs.size === 0 && this.#natTable === undefined;
  }

  /**
   * Makes the gateways be those of these networks, whose bridges there are, and takes ports of this host to
   * what is attached. Throws VtepError; what was made by then is known, so that it can be taken back.
   */
  async set(
    networks: readonly NetworkConfig[],
    links: Links,
    attached: readonly Attachment[],
  ): Promise<void> {
    const routed = networks.filter(({ gateway }) => gateway.length > 0).map(gatewayOf);
    const isNew = routed.length > this.#gateways.length;
    if (routed.length > 0 || !this.isIdle) {
      await this.#takeAway(routed, links);
      this.#note(routed, links);
      await setUpGateways(routed);
      this.#gateways = routed;
      for (const { bridge } of routed) beDeafTo(bridge, this.#log);
      await this.#allowForwarding();
    }
    await this.publish(attached);
    if (isNew) await this.#warnOfPolicies();
  }

  /** What is not to be any more, on bridges that there are still. */
  async #takeAway(routed: readonly Gateway[], links: Links): Promise<void> {
    const wanted = new Set(routed.flatMap(named));
    const bridges = new Set(routed.map(({ bridge }) => bridge));
    const surplus = [...this.#addresses].filter((each) => !wanted.has(each));
    const idle = [...this.#macs].filter(([bridge]) => !bridges.has(bridge));
    for (const each of surplus) this.#addresses.delete(each);
    for (const [bridge] of idle) this.#macs.delete(bridge);
    await tearDownGateways(
      surplus
        .map((each) => each.split(" ") as [string, string])
        .filter(([bridge]) => links.has(bridge)),
      idle.filter(([bridge]) => links.has(bridge)),
    ).catch(({ message }: Error) => this.#log.debug({ reason: message }, "a gateway was gone"));
  }

  /** What a bridge has already is not ours to take away. */
  #note(routed: readonly Gateway[], links: Links): void {
    for (const { bridge, addresses } of routed) {
      const { address: mac, addr_info = [] } = links.get(bridge) ?? {};
      const had = new Set(addr_info.map(({ local, prefixlen }) => `${local}/${prefixlen}`));
      for (const each of addresses) if (!had.has(each)) this.#addresses.add(`${bridge} ${each}`);
      if (this.#macs.has(bridge)) continue;
      const other = stableMac(`${this.#table} ${bridge}`); // one of its own, where none is known
      const isOwn = mac !== undefined && mac !== GATEWAY_MAC;
      this.#macs.set(bridge, isOwn ? mac : formatMac(other.high, other.low));
    }
  }

  /** Others may have flushed what they did not make. Throws VtepError. */
  async renew(): Promise<void> {
    if (this.#natTable === undefined) return;
    const { code, refusal } = await this.#nft(["list", "table", "inet", this.#table]);
    if (code === 0) return;
    this.#log.warn({ table: this.#table, reason: refusal }, "the rules of gateways were gone");
    this.#natTable = UNKNOWN;
    await this.#setTable();
  }

  /** Takes ports of this host to containers, and no others. Throws VtepError. */
  async publish(attached: readonly Attachment[]): Promise<void> {
    this.#publications = attached.flatMap(publicationsOf);
    await this.#setTable();
  }

  async #setTable(): Promise<void> {
    const routed = this.#gateways.map(({ bridge, addresses, masquerade }) => {
      return { bridge, subnets: addresses.map(subnetOf), masquerade };
    });
    const wanted = natTable(this.#table, routed, this.#publications);
    const isNone = wanted === natTable(this.#table, [], []);
    // An agent that never needed a table needs no nft either.
    if (wanted === this.#natTable || (isNone && this.#natTable === undefined)) return;
    const { code, refusal } = await this.#nft(["-f", "-"], wanted);
    if (code !== 0) throw new VtepError("LINK", `"nft" refused the rules of gateways: ${refusal}`);
    this.#natTable = isNone ? undefined : wanted;
  }

  #nft(words: readonly string[], input = ""): Promise<Ended> {
    return command(["nft", ...words], input, "nftables");
  }

  /** What a table drops, ours cannot let pass: Docker's does, where Docker was the first to forward. */
  async #warnOfPolicies(): Promise<void> {
    const { stdout } = await this.#nft(["list", "chains"]).catch(() => ({ stdout: "" }));
    if (!/hook forward [^}]*policy drop/.test(stdout)) return;
    const remedy = "vtep doctor says whose policy that is, and what lets them pass";
    this.#log.warn({ remedy }, "packets of containers may be dropped where they are forwarded");
  }

  /** Where it may not be switched on here, somebody else has to. */
  async #allowForwarding(): Promise<void> {
    const addresses = this.#gateways.flatMap((gateway) => gateway.addresses);
    const families = new Set(addresses.map((address) => (address.includes(":") ? 6 : 4)));
    for (const family of families) {
      const setting = family === 4 ? "net/ipv4/ip_forward" : "net/ipv6/conf/all/forwarding";
      try {
        if (readSetting(setting) === "1") continue;
        if (family === 6) await goOnHearing();
        writeFileSync(`/proc/sys/${setting}`, "1");
        this.#log.info({ setting }, "IP forwarding was switched on");
      } catch (error) {
        const remedy = `sysctl -w ${setting.replaceAll("/", ".")}=1, and in /etc/sysctl.d for the next start`;
        const { message: reason } = error as Error;
        this.#log.warn({ reason, remedy }, "IP forwarding cannot be switched on from here");
      }
    }
  }
}

function gatewayOf({ bridge, gateway, masquerade }: NetworkConfig): Gateway {
  return { bridge: bridge!, mac: GATEWAY_MAC, addresses: gateway, masquerade };
}

function named({ bridge, addresses }: GatewayLink): string[] {
  return addresses.map((address) => `${bridge} ${address}`);
}

function publicationsOf({ published, addresses }: Attachment): Publication[] {
  return published.flatMap((port) =>
    addresses
      .map(bare)
      .filter((to) => port.address === undefined || port.address.includes(":") === to.includes(":"))
      .map((to) => ({ ...port, to })),
  );
}

function readSetting(setting: string): string {
  return readFileSync(`/proc/sys/${setting}`, "utf8").trim();
}

/**
 * Where the kernel has heard routers, it is to hear them still, or what it has of them expires. Where it is to hear
 * none, a program does that in its place (systemd-networkd, NetworkManager), and of both there would be two.
 */
async function goOnHearing(): Promise<void> {
  for (const link of await advertised()) {
    if (readSetting(`net/ipv6/conf/${link}/accept_ra`) === "1") hear(link, "2");
  }
}

/** Whoever is in the network of a bridge could else make itself the router of a host that does not forward. */
export function beDeafTo(bridge: string, log: Logger): void {
  try {
    hear(bridge, "0");
  } catch (error) {
    const { code, message: reason } = error as NodeJS.ErrnoException;
    if (code === "ENOENT") return; // no IPv6 here
    const remedy = `sysctl -w net.ipv6.conf.${bridge.replaceAll(".", "/")}.accept_ra=0`;
    log.warn({ reason, remedy }, "a container may make itself the router of this host");
  }
}

/**
 * What an interface makes of router advertisements: a host that forwards hears none any more, unless the setting
 * is 2; and none that a container sends is to make it the router of this host.
 */
function hear(link: string, accept: "0" | "2"): void {
  writeFileSync(`/proc/sys/net/ipv6/conf/${link}/accept_ra`, accept);
}
