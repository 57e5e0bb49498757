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
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import type { Logger } from "pino";
import { subnetOf } from "./addresses.ts";
import type { Attachment } from "./attachments.ts";
import { command } from "./command.ts";
import type { NetworkConfig } from "./config.ts";
import { VtepError } from "./errors.ts";
import { type GatewayLink, type Link, setUpGateways, tearDownGateways } from "./host.ts";
import { natTable, type Publication } from "./nat.ts";

/** Locally administered, and the same for every gateway on every host. */
export const GATEWAY_MAC = "02:76:74:65:70:01";

type Links = ReadonlyMap<string, Link>;
type Gateway = GatewayLink & Pick<NetworkConfig, "masquerade">;

export class Gateways {
  readonly #table: string;
  readonly #log: Logger;
  #gateways: readonly Gateway[] = [];
  #publications: readonly Publication[] = [];
  /** What bridges had before. */
  readonly #macs = new Map<string, string>();
  /** As the kernel has it; undefined: nothing is known of it. */
  #natTable: string | undefined;

  /** `port` is the endpoint's: what tells two agents of one host apart. */
  constructor(port: number, log: Logger) {
    this.#table = `vtep_${port}`;
    this.#log = log;
  }

  /** Makes the gateways be those of these networks, whose bridges there are. Throws VtepError. */
  async set(networks: readonly NetworkConfig[], links: Links): Promise<void> {
    const before = this.#gateways;
    const wanted = networks.filter(({ gateway }) => gateway.length > 0).map(gatewayOf);
    if (before.length + wanted.length === 0) return;
    const addresses = new Set(wanted.flatMap(named));
    const surplus = before.map((gateway) => {
      const rest = gateway.addresses.filter((each) => !addresses.has(`${gateway.bridge} ${each}`));
      return { ...gateway, addresses: rest };
    });
    for (const { bridge } of wanted) {
      const mac = links.get(bridge)?.address;
      if (mac !== undefined && mac !== GATEWAY_MAC && !this.#macs.has(bridge)) {
        this.#macs.set(bridge, mac);
      }
    }
    const bridges = new Set(wanted.map(({ bridge }) => bridge));
    const idle = new Map([...this.#macs].filter(([bridge]) => !bridges.has(bridge)));
    await tearDownGateways(
      surplus.filter(({ bridge }) => links.has(bridge)),
      idle,
    ).catch(({ message }: Error) => this.#log.debug({ reason: message }, "a gateway was gone"));
    for (const bridge of idle.keys()) this.#macs.delete(bridge);
    await setUpGateways(wanted);
    this.#gateways = wanted;
    if (wanted.length > 0) this.#allowForwarding();
    await this.#filter();
  }

  /** Takes ports of this host to containers, and no others. Throws VtepError. */
  async publish(attached: readonly Attachment[]): Promise<void> {
    this.#publications = attached.flatMap(publicationsOf);
    await this.#filter();
  }

  /** Takes away what is on bridges that there are still, and the rules. */
  async remove(links: Links): Promise<void> {
    await this.set([], links);
    await this.publish([]);
  }

  async #filter(): Promise<void> {
    const routed = this.#gateways.map(({ bridge, addresses, masquerade }) => {
      return { bridge, subnets: addresses.map(subnetOf), masquerade };
    });
    const wanted = natTable(this.#table, routed, this.#publications);
    const isNone = wanted === natTable(this.#table, [], []);
    // An agent that never needed a table needs no nft either.
    if (wanted === this.#natTable || (isNone && this.#natTable === undefined)) return;
    const { code, refusal } = await command(["nft", "-f", "-"], wanted, "nftables");
    if (code !== 0) throw new VtepError("LINK", `"nft" refused the rules of gateways: ${refusal}`);
    this.#natTable = isNone ? undefined : wanted;
  }

  /** Where it may not be switched on here, somebody else has to. */
  #allowForwarding(): void {
    const addresses = this.#gateways.flatMap((gateway) => gateway.addresses);
    const families = new Set(addresses.map((address) => (address.includes(":") ? 6 : 4)));
    for (const family of families) {
      const setting = family === 4 ? "net/ipv4/ip_forward" : "net/ipv6/conf/all/forwarding";
      try {
        if (readSetting(setting) === "1") continue;
        if (family === 6) keepAdvertisements();
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
      .map((address) => address.split("/")[0]!)
      .filter((to) => port.address === undefined || port.address.includes(":") === to.includes(":"))
      .map((to) => ({ ...port, to })),
  );
}

function readSetting(setting: string): string {
  return readFileSync(`/proc/sys/${setting}`, "utf8").trim();
}

/** A host that forwards IPv6 hears no router advertisements any more, unless it is told to (accept_ra = 2). */
function keepAdvertisements(): void {
  for (const link of readdirSync("/proc/sys/net/ipv6/conf")) {
    const setting = `net/ipv6/conf/${link}/accept_ra`;
    if (link !== "all" && readSetting(setting) === "1") writeFileSync(`/proc/sys/${setting}`, "2");
  }
}
