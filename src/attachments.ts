/**
 * What is attached to networks: interfaces of containers, each a veth pair whose other end is a port of a
 * network's bridge.
 *
 * **Where that is known.** In the alias of that other end, and nowhere else: it lasts exactly as long as
 * the interface does, whoever removes it, and over restarts of the agent and of whoever attached. The
 * end's name follows from whose it is, so that attaching twice is attaching once.
 *
 * Alias, at most 255 bytes: `vtep|NETWORK|IFNAME|MAC|ADDRESSES|BY|DIGEST|TARGET`, DIGEST being of all else that
 * was wanted. A target that is too long is cut; the rest has to fit.
 */
import { createHash } from "node:crypto";
import { VtepError } from "./errors.ts";
import type { Link } from "./host.ts";

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
  /** Who attached it: "attach", "docker", or "cni:" and the name of the runtime's network. */
  readonly by: string;
  /** The end that is on this host. */
  readonly link: string;
}

/** A MAC that is locally administered, and always the same for the same text. */
export function stableMac(text: string): { high: number; low: number } {
  const digest = createHash("sha256").update(text).digest();
  return { high: 0x0200 | digest.readUInt8(0), low: digest.readInt32BE(1) };
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
  const { network, ifname, mac, addresses, by, target } = attachment;
  const digest = createHash("sha256").update(JSON.stringify(more)).digest("hex").slice(0, 8);
  const fields = [MARK, network, ifname, mac, addresses.join(","), by, digest].join("|");
  if (fields.length + 1 < LONGEST_ALIAS && !/[|\s]/.test(`${ifname}${by}`)) {
    return `${fields}|${target.replace(/\s/g, "?")}`.slice(0, LONGEST_ALIAS);
  }
  throw new VtepError(
    "USAGE",
    `${ifname} with ${addresses.length} addresses in ${network} cannot be noted on the host (255 bytes): give fewer, or shorter names`,
  );
}

/** Those among the links of a host, but for such whose bridge is not their network's any more. */
export function attachmentsAmong(
  links: ReadonlyMap<string, Link>,
  bridges: ReadonlyMap<string, string | undefined>,
): Attachment[] {
  return [...new Set(links.values())].flatMap((link) => {
    const found = attachmentOf(link);
    const bridge = found && bridges.get(found.network);
    return found !== undefined && bridge !== undefined && link.master === bridge ? [found] : [];
  });
}

/** What a link's alias says; undefined where it is none of ours. */
export function attachmentOf({ ifname: link, ifalias = "" }: Link): Attachment | undefined {
  const [mark, ...fields] = ifalias.split("|");
  if (mark !== MARK || fields.length < 7) return undefined;
  const [network, ifname, mac, addresses, by, , ...target] = fields as [
    ...[string, string, string, string, string, string],
  ];
  const list = addresses === "" ? [] : addresses.split(",");
  return { network, ifname, mac, addresses: list, by, target: target.join("|"), link };
}
