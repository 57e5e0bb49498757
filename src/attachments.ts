/**
 * What is attached to networks: interfaces of containers, each a veth pair whose other end is a port of a
 * network's bridge, or a network's TAP itself.
 *
 * **Where that is known.** In the alias of that other end, and nowhere else: it lasts exactly as long as
 * the interface does, whoever removes it, and over restarts of the agent and of whoever attached. The
 * end's name follows from whose it is, so that attaching twice is attaching once.
 *
 * A TAP takes its alias along into the container, where the agent does not look: it remembers it.
 *
 * Alias, at most 255 bytes: `vtep|NETWORK|IFNAME|MAC|ADDRESSES|PUBLISHED|BY|DIGEST|TARGET`, DIGEST being of
 * all else that was wanted. A target that is too long is cut; the rest has to fit.
 */
import { createHash } from "node:crypto";
import ipaddr from "ipaddr.js";
import { VtepError } from "./errors.ts";
import type { Link } from "./host.ts";

/** A port of this host that is to be a container's. */
export interface Published {
  readonly protocol: "tcp" | "udp";
  /** Of this host; undefined: any. */
  readonly address?: string;
  readonly port: number;
  /** Of the container. */
  readonly toPort: number;
}

/** An interface of a container. */
export interface Attachment {
  /** Of the network. */
  readonly network: string;
  /** The container's network namespace, as it was called when it was attached. */
  readonly target: string;
  readonly ifname: string;
  readonly mac: string;
  /** With prefix lengths. */
  readonly addresses: readonly string[];
  readonly published: readonly Published[];
  /** Who attached it: "attach", "docker", or "cni:" and the name of the runtime's network. */
  readonly by: string;
  /** The end that is on this host, or the TAP's name as it was here. */
  readonly link: string;
}

/** A MAC that is locally administered, and always the same for the same text. */
export function stableMac(text: string): { high: number; low: number } {
  const digest = createHash("sha256").update(text).digest();
  return { high: 0x0200 | digest.readUInt8(0), low: digest.readInt32BE(1) };
}

/** `[ADDR:]PORT:TO[/tcp|/udp]`. Throws VtepError USAGE. */
export function parsePublished(text: string): Published {
  const [, inBrackets, plain, port, toPort, protocol = "tcp"] =
    /^(?:(?:\[([^\]]+)\]|([^:]+)):)?(\d{1,5}):(\d{1,5})(?:\/(tcp|udp))?$/.exec(text) ?? [];
  const address = inBrackets ?? plain;
  const isAddress =
    address === undefined ||
    (inBrackets === undefined
      ? ipaddr.IPv4.isValidFourPartDecimal(address)
      : ipaddr.IPv6.isValid(address) && !address.includes("%"));
  if (isAddress && address !== undefined && ipaddr.parse(address).range() === "loopback") {
    throw new VtepError(
      "USAGE",
      `${JSON.stringify(text)} publishes to this host alone, which the kernel does not route: leave ${address} out`,
    );
  }
  if (isAddress && isPort(port) && isPort(toPort)) {
    const isAny = address === undefined || ipaddr.parse(address).range() === "unspecified";
    const at = isAny ? {} : { address: ipaddr.parse(address).toString() };
    return { protocol: protocol as "tcp", ...at, port: Number(port), toPort: Number(toPort) };
  }
  throw new VtepError(
    "USAGE",
    `${JSON.stringify(text)} publishes no port: give [ADDR:]PORT:CONTAINER-PORT[/tcp|/udp] (8080:80/tcp)`,
  );
}

export function formatPublished({ protocol, address, port, toPort }: Published): string {
  const host = address?.includes(":") ? `[${address}]` : address;
  return `${host === undefined ? "" : `${host}:`}${port}:${toPort}/${protocol}`;
}

function isPort(text: string | undefined): boolean {
  return Number(text) >= 1 && Number(text) <= 65_535;
}

const MARK = "vtep";
/** IFALIASZ, less its final zero. */
const LONGEST_ALIAS = 255;

/** The name of the end that is here, by whose it is. */
export function linkName(owner: string, ifname: string): string {
  const digest = createHash("sha256").update(`${owner}\0${ifname}`).digest("hex");
  return `vt${digest.slice(0, 12)}`;
}

/** The other end's, until it has moved into its container. */
export function peerName(link: string): string {
  return link.replace(/^vt/, "vp");
}

/** `more` is what else was wanted. Throws VtepError USAGE where it cannot be noted. */
export function aliasOf(attachment: Attachment, more: unknown): string {
  const { network, ifname, mac, addresses, published, by, target } = attachment;
  const digest = createHash("sha256").update(JSON.stringify(more)).digest("hex").slice(0, 8);
  const lists = [addresses.join(), published.map(formatPublished).join()];
  const fields = [MARK, network, ifname, mac, ...lists, by, digest].join("|");
  if (fields.length + 1 < LONGEST_ALIAS && !/[|\s]/.test(`${ifname}${by}`)) {
    return `${fields}|${target.replace(/\s/g, "?")}`.slice(0, LONGEST_ALIAS);
  }
  throw new VtepError(
    "USAGE",
    `${ifname} with ${addresses.length} addresses and ${published.length} ports in ${network} cannot be noted on the host (255 bytes): give fewer, or shorter names`,
  );
}

/**
 * Those among the links of a host, but for such whose bridge is not their network's any more. One whose
 * network has another name by now is known by its bridge.
 */
export function attachmentsAmong(
  links: ReadonlyMap<string, Link>,
  bridges: ReadonlyMap<string, string | undefined>,
): Attachment[] {
  return [...new Set(links.values())].flatMap((link) => {
    const found = attachmentOf(link);
    if (found === undefined || link.master === undefined) return [];
    if (bridges.get(found.network) === link.master) return [found];
    const others = [...bridges].filter(([, bridge]) => bridge === link.master);
    const isRenamed = !bridges.has(found.network) && others.length === 1;
    return isRenamed ? [{ ...found, network: others[0]![0] }] : [];
  });
}

/** What a link's alias says; undefined where it is none of ours. */
export function attachmentOf({
  ifname: link,
  ifalias = "",
}: Pick<Link, "ifname" | "ifalias">): Attachment | undefined {
  const [mark, ...fields] = ifalias.split("|");
  if (mark !== MARK || fields.length < 8) return undefined;
  const [network, ifname, mac, addresses, published, by, , ...rest] = fields as [
    ...[string, string, string, string, string, string, string],
  ];
  const target = rest.join("|");
  try {
    const ports = listOf(published).map(parsePublished);
    return {
      network,
      ifname,
      mac,
      addresses: listOf(addresses),
      published: ports,
      by,
      target,
      link,
    };
  } catch {
    return undefined; // somebody else's, or another version's
  }
}

function listOf(text: string): string[] {
  return text === "" ? [] : text.split(",");
}
