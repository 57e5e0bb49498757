/**
 * Containers' interfaces in the networks of a running agent, as of the last look at the host's links, and what
 * is theirs for as long as they are: entries of the FDB, ports of this host, gateways.
 *
 * **Those that are not seen.** A TAP may be a container's interface itself, and is then none of this host's
 * links. Whose it is is remembered, by the alias that it had when it was here last.
 */
import { type Attachment, attachmentOf, attachmentsAmong } from "./attachments.ts";
import type { NetworkConfig } from "./config.ts";
import type { Entries } from "./entries.ts";
import type { Gateways } from "./gateways.ts";
import { type Link, linksByName } from "./host.ts";
import { movePorts } from "./links.ts";
import type { LiveNetworks } from "./live.ts";
import type { Snapshot } from "./snapshot.ts";

type Links = ReadonlyMap<string, Link>;

export class Containers {
  readonly #networks: LiveNetworks;
  readonly #entries: Entries;
  readonly #gateways: Gateways;
  readonly #remember: () => void;
  /** The aliases of TAPs that are interfaces of containers, by networks' indices; "": nothing is known. */
  readonly #direct = new Map<number, string>();
  /** How many there were at the last look. */
  #count = 0;

  /** `networks` are those of now; `remember` is called when `traces` are others. */
  constructor(networks: LiveNetworks, entries: Entries, gateways: Gateways, remember: () => void) {
    this.#networks = networks;
    this.#entries = entries;
    this.#gateways = gateways;
    this.#remember = remember;
  }

  /** What the host does not tell the next agent. */
  get traces(): Required<Pick<Snapshot, "gateways" | "direct">> {
    const direct = this.#networks.rows().flatMap(({ index, tap }) => {
      const alias = this.#direct.get(index);
      return alias === undefined ? [] : [[tap, alias] as const];
    });
    return { gateways: this.#gateways.traces, direct: Object.fromEntries(direct) };
  }

  // TAPs that are interfaces of containers

  /** Whether the TAP of the network of this index is in a container, and no link of this host. */
  hasTap(index: number): boolean {
    return this.#direct.has(index);
  }

  /** Whose it is, as far as that is known; undefined: nobody's. */
  ownerOf(index: number, tap: string): Partial<Attachment> | undefined {
    const alias = this.#direct.get(index);
    if (alias === undefined) return undefined;
    return attachmentOf({ ifname: tap, ifalias: alias }) ?? {};
  }

  /** A TAP that was kept over a restart and is not among the links of this host; its alias if that was too. */
  assume(index: number, alias = ""): void {
    this.#direct.set(index, alias);
  }

  /** A kept TAP that is not here is in a container; but for one that was deleted meanwhile, and made anew. */
  async confirm(): Promise<void> {
    if (this.#direct.size === 0) return;
    const links = await linksByName();
    for (const { index, tap } of this.#networks.rows()) {
      if (links.has(tap)) this.#direct.delete(index);
    }
  }

  /** A TAP that is no more. */
  forget(index: number): void {
    this.#direct.delete(index);
  }

  // all of them

  /** What is attached now; ports of this host are theirs from now on. Throws VtepError. */
  async look(): Promise<Attachment[]> {
    const attached = this.note(await linksByName());
    await this.#gateways.publish(attached);
    return attached;
  }

  /** For those that are gone without a word, and for rules that somebody else has flushed. Throws VtepError. */
  async lookAgain(): Promise<void> {
    if (this.#count > 0) await this.look();
    await this.#gateways.renew();
  }

  /** What is attached, by these links; the FDB knows it from now on. */
  note(links: Links): Attachment[] {
    const rows = this.#networks.rows();
    for (const { index, tap } of rows) {
      const link = links.get(tap);
      if (link === undefined) continue; // it is in its container
      if (attachmentOf(link) === undefined) this.#direct.delete(index);
      else {
        this.#direct.set(index, link.ifalias!);
        this.#remember(); // it will not be seen again
      }
    }
    const direct = rows.flatMap(({ index, name, tap }) => {
      const found = attachmentOf({ ifname: tap, ifalias: this.#direct.get(index) ?? "" });
      return found === undefined ? [] : [{ ...found, network: name }];
    });
    const wanted = this.#networks.wanted();
    const bridges = new Map(wanted.map(({ name, bridge }) => [name, bridge] as const));
    const attached = [...attachmentsAmong(links, bridges), ...direct];
    this.#entries.attach(attached.filter(({ network }) => this.#networks.has(network)));
    this.#count = attached.length;
    return attached;
  }

  /**
   * To networks' new bridges, which these are by the networks' names: those of before, and those that have waited on
   * a former one for it to have one again.
   */
  async follow(bridges: ReadonlyMap<string, string>): Promise<void> {
    if (bridges.size === 0) return;
    const moves = [...(await linksByName()).values()].flatMap((link) => {
      const bridge = bridges.get(attachmentOf(link)?.network ?? "");
      const isElsewhere = link.master !== undefined && link.master !== bridge;
      return bridge !== undefined && isElsewhere ? [[link.ifname, bridge] as const] : [];
    });
    await movePorts(new Map(moves));
  }

  // their gateways

  /**
   * Makes gateways be as they are configured, whatever there was; also that of a network that is gone, while its bridge
   * is there: what is attached gets to elsewhere by it, and is got at, without the TAP. Throws VtepError.
   */
  async route(links: Links): Promise<void> {
    const wasIdle = this.#gateways.isIdle;
    const isThere = ({ name, bridge }: NetworkConfig) =>
      this.#networks.has(name) || links.has(bridge ?? "");
    const networks = this.#networks.wanted().filter(isThere);
    await this.#gateways.set(networks, links, this.note(links));
    if (!wasIdle || !this.#gateways.isIdle) this.#remember();
  }

  /** Takes gateways away; but while a bridge stays over a restart, what it has in it is to have its gateway. */
  async unroute(isRestart: boolean): Promise<void> {
    if (this.#gateways.isIdle) return;
    const links = await linksByName();
    const stays =
      isRestart &&
      this.#networks
        .wanted()
        .some(({ gateway, bridge }) => gateway.length > 0 && links.has(bridge!));
    if (!stays) await this.#gateways.set([], links, []);
  }

  /** Rules that somebody else has flushed. Throws VtepError. */
  renew(): Promise<void> {
    return this.#gateways.renew();
  }
}
