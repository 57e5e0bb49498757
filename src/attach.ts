/**
 * Attaches a container to a network of a running agent, and detaches it: by whoever may make links, which
 * the agent's own sandbox need not permit, so the agent is only told.
 *
 * Attaching is idempotent, and whole or not at all.
 */
import { setTimeout as pause } from "node:timers/promises";
import type { Client } from "./api/client.ts";
import { type Attachment, aliasOf, attachmentOf, type Published, peerName } from "./attachments.ts";
import {
  attachedHere,
  checkAlone,
  checkPorts,
  checkUnused,
  conflictOf,
  freeAddresses,
} from "./conflicts.ts";
import { VtepError } from "./errors.ts";
import { type Link, linksByName } from "./host.ts";
import {
  addressInside,
  linkInside,
  nameTaken,
  noteAlias,
  pair,
  plug,
  plugDirect,
  unplug,
  unplugDirect,
} from "./plug.ts";
import {
  bridgeOf,
  checkDirect,
  checkedPrefix,
  checkRoutes,
  checkSubnets,
  fitted,
  routesOf,
  type Wanted,
} from "./wanted.ts";

/** What was attached, with what follows from the network. */
export interface Attached extends Attachment {
  readonly mtu: number;
  /** False when it was there already, as it is wanted. */
  readonly isNew: boolean;
}

/**
 * Throws VtepError: NOT_FOUND without such a network or target, USAGE for what cannot be, CONFLICT where
 * something else has the interface or the address or the network was changed meanwhile, LINK and PERMISSION
 * from the host.
 */
export async function attach(client: Client, wanted: Wanted): Promise<Attached> {
  const [{ attachment, place: bridge, mtu: fitting, network, port }, first] = await Promise.all([
    fitted(client, wanted, bridgeOf),
    linksByName(),
  ]);
  const { target, ifname, link: name } = attachment;
  if (!first.has(bridge)) {
    throw new VtepError(
      "NOT_FOUND",
      `${bridge} is no link here: attach from the network namespace that the agent is in, or restart it where somebody removed that link`,
    );
  }
  for (let turn = 1; ; turn++) {
    const links = await settled(name, turn === 1 ? first : await linksByName());
    const before = links.get(name);
    const was = before && attachmentOf(before);
    const isHere = before?.master === bridge;
    if (isHere && was !== undefined)
      attachment.network = was.network; // as it was called then
    else if (before?.master !== undefined && was !== undefined && was.network !== network.name) {
      throw new VtepError(
        "CONFLICT",
        `${ifname} of ${target} is attached already, to network ${was.network}: detach it first`,
      );
    }
    // Unless others are wanted, it keeps the MAC and the addresses that it has, and an MTU that crosses still.
    if (was !== undefined && wanted.mac === undefined) attachment.mac = was.mac;
    const keepsMtu = isHere && wanted.mtu === undefined;
    const mtu = keepsMtu ? Math.min(before.mtu, fitting) : fitting;
    if (wanted.addresses === "auto") {
      attachment.addresses = [...(was?.addresses ?? freeAddresses(network, links, turn))];
    }
    const { addresses, mac } = attachment;
    const routes = routesOf(wanted, addresses, network);
    checkRoutes(routes, addresses);
    const alias = aliasOf(attachment, [mtu, routes]);
    if (isHere) {
      if (before.ifalias === alias) {
        await client.attachments(); // whoever attached it may have been killed before it told
        return { ...attachment, network: network.name, mtu, isNew: false };
      }
      throw new VtepError(
        "CONFLICT",
        `${ifname} of ${target} is attached already, in another way: detach it first`,
      );
    }
    checkAlone(attachment, attachedHere(network, links));
    checkSubnets(attachment, network);
    await checkPorts(client, attachment, port, was);
    // It was not finished, or the network has another bridge now.
    if (before !== undefined) await unplug(name);
    const inside = {
      target,
      namespace: wanted.namespace.path,
      ifname,
      mac,
      mtu,
      addresses,
      routes,
    };
    await plug({ name, bridge, alias, ...inside });
    // Another one may have taken the same address at the same time: whoever sees that tries anew.
    if (
      wanted.addresses === "auto" &&
      conflictOf(attachment, attachedHere(network, await linksByName())) !== undefined
    ) {
      await unplug(name);
      if (turn < AUTO_TURNS) continue;
      throw new VtepError(
        "CONFLICT",
        `others keep taking the addresses of ${network.name}: try again`,
      );
    }
    // Chosen addresses are settled: whoever chose them later has seen ours.
    await tell(client, wanted.addresses === "auto" ? { ...attachment, addresses: [] } : attachment);
    return { ...attachment, mtu, isNew: true };
  }
}

/** For how long one that is not finished may be somebody's who is at it still; afterwards nobody is. */
const UNFINISHED_MS = 2000;
const LOOK_MS = 50;

/** Links, when the one of this name is finished, is gone, or has been left unfinished. */
async function settled(
  name: string,
  links: ReadonlyMap<string, Link>,
): Promise<ReadonlyMap<string, Link>> {
  const until = performance.now() + UNFINISHED_MS;
  let now = links;
  while (now.has(name) && now.get(name)!.master === undefined && performance.now() < until) {
    await pause(LOOK_MS);
    now = await linksByName();
  }
  return now;
}

/** So often an address is chosen that somebody else chose at the same time. */
const AUTO_TURNS = 10;

/**
 * Gives addresses and routes to what `attach` attached without any: who gives out the addresses may have to
 * ask the network by that very interface. Throws as `attach` does; what is done by then is left.
 */
export async function address(
  client: Client,
  attached: Attached,
  wanted: Pick<Wanted, "namespace" | "routes"> & { readonly addresses: readonly string[] },
): Promise<void> {
  const { addresses, routes } = wanted;
  const { path: namespace } = wanted.namespace;
  const { ifname, mac, mtu, link } = attached;
  const attachment = { ...attached, addresses: addresses.map(checkedPrefix) };
  checkRoutes(routes, attachment.addresses);
  const links = await linksByName();
  const network = { name: attached.network, bridge: links.get(link)?.master };
  checkAlone(attachment, attachedHere(network, links));
  await addressInside({ namespace, ifname, mac, addresses: attachment.addresses, routes });
  await noteAlias(link, aliasOf(attachment, [mtu, routes]));
  checkAlone(attachment, await client.attachments());
}

/** The same, the network's TAP becoming the container's interface. */
export async function attachDirect(client: Client, wanted: Wanted): Promise<Attached> {
  const { attachment, mtu, network, port } = await fitted(client, wanted, checkDirect);
  const { target, ifname } = attachment;
  const { path: namespace } = wanted.namespace;
  const { tap, mac: own } = network;
  attachment.link = tap;
  if (wanted.mac === undefined) attachment.mac = own;
  const links = await linksByName();
  const there = await linkInside(namespace, ifname);
  const was = there && attachmentOf(there);
  if (wanted.addresses === "auto") {
    attachment.addresses = [...(was?.addresses ?? freeAddresses(network, links, 1))];
  }
  const { addresses, mac } = attachment;
  const routes = routesOf(wanted, addresses, network);
  checkRoutes(routes, addresses);
  const alias = aliasOf(attachment, [mtu, routes]);
  if (there?.ifalias === alias) return { ...attachment, mtu, isNew: false };
  const here = links.get(tap);
  if (here === undefined) {
    const other = (await client.attachments()).find(({ link }) => link === tap);
    const whose =
      other === undefined
        ? "a container's already, unless the agent is in another network namespace"
        : `${other.ifname} of ${other.target} already`;
    throw new VtepError(
      "CONFLICT",
      `the TAP of network ${network.name} is ${whose}: detach that first, or give the network a bridge`,
    );
  }
  checkUnused(network.name, here);
  if (there !== undefined) throw nameTaken(attachment);
  checkAlone(attachment, attachedHere(network, links));
  await checkPorts(client, attachment, port, was);
  await noteAlias(tap, alias);
  try {
    checkAlone(attachment, await client.attachments()); // as long as the alias can be seen
    const inside = { target, namespace, ifname, mac, mtu, addresses, routes };
    await plugDirect({ name: tap, ...inside });
  } catch (error) {
    await noteAlias(tap, "").catch(() => undefined); // unless it had moved
    await client.attachments().catch(() => undefined);
    throw error;
  }
  // Another one may have noted itself in between, and the agent takes it for that one's.
  if ((await linkInside(namespace, ifname))?.ifalias !== alias) {
    await unplugDirect(namespace, ifname);
    throw new VtepError(
      "CONFLICT",
      `others attach the TAP of network ${network.name} at the same time: try again`,
    );
  }
  return { ...attachment, mtu, isNew: true };
}

/**
 * The same, but for what a container runtime does itself: it moves `peer`, which is here as well, into the
 * container, names it and gives it its addresses. What was left of an earlier try is removed.
 */
export async function attachPair(
  client: Client,
  wanted: Omit<Wanted, "namespace" | "gateways" | "published" | "routes" | "mtu"> & {
    readonly addresses: readonly string[];
  },
): Promise<Attachment & { readonly peer: string }> {
  const whole = { ...wanted, published: [], mtu: undefined };
  const { attachment, place: bridge, mtu, network } = await fitted(client, whole, bridgeOf);
  const { link: name, mac } = attachment;
  const links = await linksByName();
  if (links.has(name)) await unplug(name);
  checkAlone(attachment, attachedHere(network, links));
  checkSubnets(attachment, network);
  const peer = peerName(name);
  await pair({ name, bridge, alias: aliasOf(attachment, mtu), peer, mac, mtu });
  await tell(client, attachment);
  return { ...attachment, peer };
}

/**
 * Gives ports of this host to what `attachPair` attached. Throws VtepError as `attach` does; one of them that
 * another container has is CONFLICT, and changes nothing.
 */
export async function publish(
  client: Client,
  name: string,
  published: readonly Published[],
): Promise<void> {
  const links = await linksByName();
  const link = links.get(name);
  const was = link && attachmentOf(link);
  if (was === undefined) throw new VtepError("NOT_FOUND", `${name} is not attached any more`);
  const attachment = { ...was, published };
  await checkPorts(client, attachment, (await client.status()).port, was);
  await noteAlias(name, aliasOf(attachment, link!.mtu));
  try {
    checkAlone(attachment, await client.attachments());
  } catch (error) {
    await noteAlias(name, link!.ifalias!);
    await client.attachments().catch(() => undefined);
    throw error;
  }
}

/** Takes its ports from what `attachPair` attached, if there is that. The agent may be away. */
export async function unpublish(client: Client, name: string): Promise<void> {
  const link = (await linksByName()).get(name);
  const was = link && attachmentOf(link);
  if (was === undefined || was.published.length === 0) return;
  await noteAlias(name, aliasOf({ ...was, published: [] }, link!.mtu));
  await client.attachments().catch(() => undefined); // it will look when it is back
}

/**
 * Has the agent look at what is attached; nothing is without it, or where it finds something else. Somebody may
 * have taken the same at the same time: whoever sees that gives it up.
 */
async function tell(client: Client, attachment: Attachment): Promise<void> {
  const { link, network } = attachment;
  try {
    const attached = await client.attachments();
    if (!attached.some((each) => each.link === link)) {
      throw new VtepError("CONFLICT", `network ${network} was changed meanwhile: try again`);
    }
    checkAlone(attachment, attached);
  } catch (error) {
    await detach(client, link);
    throw error;
  }
}

/** Detaches what is a network's TAP itself; false when it was not attached so. */
export async function detachDirect(
  client: Client,
  { target, namespace, ifname }: Pick<Wanted, "target" | "namespace" | "ifname">,
): Promise<boolean> {
  const { path } = namespace;
  const there = await linkInside(path, ifname);
  if (isTap(there) && attachmentOf(there) !== undefined) {
    await unplugDirect(path, ifname); // the agent makes the TAP anew
  } else {
    // Whoever was to move it, or to name it there, was killed.
    const attached = await client.attachments().catch(() => []);
    const noted = attached.find((each) => each.target === target && each.ifname === ifname);
    if (noted === undefined) return false;
    const { link } = noted;
    if (isTap(await linkInside(path, link))) await unplugDirect(path, link);
    else if (isTap((await linksByName()).get(link))) await noteAlias(link, "");
    else return false;
  }
  await client.attachments().catch(() => undefined);
  return true;
}

function isTap(link: Link | undefined): link is Link {
  return link?.linkinfo?.info_kind === "tun";
}

/** Detaches by the end that is here (`linkName`); false when it was not attached. The agent may be away. */
export async function detach(client: Client, link: string): Promise<boolean> {
  const was = await unplug(link);
  if (was) await client.attachments().catch(() => undefined); // it will look when it is back
  return was;
}
