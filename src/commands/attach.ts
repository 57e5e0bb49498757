/** `vtep attach` and `vtep detach`: containers on the networks of a running agent. */
import type { Command } from "commander";
import type { Client } from "../api/client.ts";
import { attach, attachDirect, detach, detachDirect } from "../attach.ts";
import { formatPublished, linkName, parsePublished } from "../attachments.ts";
import { VtepError } from "../errors.ts";
import { HeldNamespace, namespaceId } from "../namespace.ts";
import { type Answer, ask, type Options } from "./ask.ts";
import { paper, table } from "./table.ts";

const TARGET = `
TARGET is the network namespace of a container: a name that "ip netns" knows, a path, or the ID of one of
its processes.`;
const MORE = `${TARGET}

A container that has a default route already, by another interface, needs --gateway none. What --direct
attaches lasts as long as the agent, and over restarts of the service.`;

export function addAttachCommands(vtep: Command): void {
  const command = ask(
    vtep,
    "attach <TARGET>",
    "Give a container an interface in a network of a running agent",
    add,
  )
    .option("--network <NETWORK>", "the network, which needs a bridge, or none with --direct")
    .option("--ifname <NAME>", "name of the interface in the container", "eth0")
    .option(
      "--ip <CIDR|auto...>",
      "addresses of the interface with their prefix lengths, or auto: from the network's ranges",
    )
    .option(
      "--gateway <ADDR|none...>",
      "where what is for elsewhere goes, of each family one, or none (default: the network's gateway)",
    )
    .option(
      "--publish <PORTS...>",
      "ports of this host that are to be the container's: [ADDR:]PORT:CONTAINER-PORT[/udp]",
    )
    .option("--route <CIDR=VIA...>", "what goes elsewhere than that; without =VIA, straight out")
    .option("--mac <MAC>", "its MAC address (default: one that follows from its namespace)")
    .option("--mtu <N|auto>", "its MTU, auto: the network's")
    .option(
      "--direct",
      "no veth pair and no bridge: the network's TAP becomes the interface, for one container",
    )
    .addHelpText("after", MORE)
    .enablePositionalOptions(); // those of "list" are its own
  ask(command, "list", "list what is attached", list);
  ask(vtep, "detach <TARGET>", "Take such an interface away again", remove)
    .option("--ifname <NAME>", "name of the interface in the container", "eth0")
    .addHelpText("after", TARGET);
}

async function add(client: Client, [target]: readonly string[], options: Options): Promise<Answer> {
  const { network, ifname, ip = [], gateway, route = [], publish = [], mac, mtu } = options;
  if (network === undefined) {
    throw new VtepError("USAGE", "--network is missing: name one of those that the agent forwards");
  }
  const path = namespaceOf(target!);
  using namespace = new HeldNamespace(path);
  const owner = namespace.id;
  if (owner === namespaceId("/proc/self/ns/net")) {
    throw new VtepError(
      "USAGE",
      `${target} is in this host's own network namespace, whose routes would change: name a container with one of its own`,
    );
  }
  const attached = await (options.direct ? attachDirect : attach)(client, {
    network: network as string,
    target: path,
    namespace,
    owner,
    by: "attach",
    ifname: ifname as string,
    addresses: alone(ip as string[], "auto", "--ip") ? "auto" : (ip as string[]),
    gateways: alone(gateway as string[] | undefined, "none", "--gateway")
      ? []
      : (gateway as string[] | undefined),
    published: (publish as string[]).map(parsePublished),
    routes: (route as string[]).map(routeOf),
    mac: mac as string | undefined,
    mtu: mtu === undefined ? undefined : mtuOf(mtu as string),
  });
  const { isNew, ...data } = attached;
  const addresses = data.addresses.length === 0 ? "" : `, ${data.addresses.join(", ")}`;
  const what = `${data.ifname} of ${target} is in network ${data.network}`;
  return {
    data,
    text: `${what}${isNew ? "" : " already"}: ${data.mac}, MTU ${data.mtu}${addresses}`,
  };
}

async function list(client: Client): Promise<Answer> {
  const data = await client.attachments();
  const columns = [
    { title: "NETWORK", shrinks: true },
    { title: "TARGET", shrinks: true },
    { title: "INTERFACE" },
    { title: "MAC" },
    { title: "ADDRESSES", shrinks: true },
    { title: "PUBLISHED", shrinks: true },
    { title: "BY" },
    { title: "LINK" },
  ];
  const rows = data.map(({ network, target, ifname, mac, addresses, published, by, link }) => {
    const ports = published.map(formatPublished).join(" ");
    return [network, target, ifname, mac, addresses.join(" ") || "-", ports || "-", by, link];
  });
  return { data, text: table(columns, rows.sort(), paper()) };
}

async function remove(
  client: Client,
  [target]: readonly string[],
  { ifname }: Options,
): Promise<Answer> {
  const path = namespaceOf(target!);
  using namespace = new HeldNamespace(path);
  const inside = { target: path, namespace, ifname: ifname as string };
  const detached =
    (await detach(client, linkName(namespace.id, inside.ifname))) ||
    (await detachDirect(client, inside));
  const text = detached ? "is detached" : "was not attached";
  return { data: { detached }, text: `${ifname} of ${target} ${text}` };
}

function namespaceOf(target: string): string {
  if (/^\d+$/.test(target)) return `/proc/${target}/ns/net`;
  return target.includes("/") ? target : `/run/netns/${target}`;
}

/** Whether a word stands in place of all others that could be given. */
function alone(given: readonly string[] | undefined, word: string, flag: string): boolean {
  if (!given?.includes(word)) return false;
  if (given.length === 1) return true;
  throw new VtepError("USAGE", `${flag} ${word} says it all: give no other ${flag} beside it`);
}

function routeOf(text: string): { to: string; via: string | undefined } {
  const [to = "", via, ...more] = text.split("=");
  if (more.length === 0) return { to, via };
  throw new VtepError("USAGE", `--route ${JSON.stringify(text)} must be CIDR or CIDR=VIA`);
}

function mtuOf(text: string): number | undefined {
  if (text === "auto") return undefined;
  const mtu = Number(text);
  if (/^\d+$/.test(text) && mtu >= 68) return mtu;
  throw new VtepError("USAGE", `--mtu ${text} must be a whole number from 68`);
}
