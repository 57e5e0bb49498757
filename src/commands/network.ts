/** `vtep status`, `vtep network` and `vtep peer`: what is forwarded, and between whom. */
import type { Command } from "commander";
import type { ApiStatus, Client } from "../api/client.ts";
import { load, networkOf } from "../config-file.ts";
import { totalDrops } from "../counters.ts";
import { OFFLOADS } from "../device.ts";
import { VtepError } from "../errors.ts";
import { addFlags, valuesByKey } from "../flags.ts";
import type { Drops, NetworkStatus } from "../operations.ts";
import { type Answer, ask, group, type Options } from "./ask.ts";
import { brief, duration, paper, table } from "./table.ts";

export function addNetworkCommands(vtep: Command): void {
  ask(vtep, "status", "Say what a running agent is and does", status);

  const network = group(vtep, "network", "List, add and remove networks of a running agent");
  ask(network, "list", "list the networks", list);
  ask(network, "show <NETWORK>", "show all that is known of a network", show);
  addFlags(
    ask(network, "add", "add a network, or give one of that name this configuration", add),
    "network",
  );
  ask(network, "remove <NETWORK>", "end a network", remove);

  const peer = group(vtep, "peer", "List, add and remove peers of a network");
  ask(peer, "list [NETWORK]", "list who gets what is flooded", listPeers);
  ask(peer, "add <NETWORK> <ADDR>", "add a peer", addPeer);
  ask(peer, "remove <NETWORK> <ADDR>", "remove a peer", removePeer);
}

async function status(client: Client): Promise<Answer> {
  const data = await client.status();
  return { data, text: `${agentText(data)}\n\n${trafficTable(data.networks)}` };
}

function agentText(agent: ApiStatus): string {
  const { version, pid, uptimeSeconds, local, port, underlay, workers, drops, paths, gone } = agent;
  const narrow = paths.map(({ address, mtu }) => `${address} (${mtu})`);
  const lines = [
    ["agent", `vtep ${version}, process ${pid}, for ${duration(uptimeSeconds)}`],
    ["local", `${local.join(" and ")}, port ${port}`],
    ["underlay", `${underlay}, ${workers} ${workers === 1 ? "worker" : "workers"}`],
    ["offloads", offloadsText(agent)],
    ["narrow paths", narrow.join(", ")],
    ["refused by", agent.refused === 0 ? "" : `${brief(agent.refused)} ICMP errors`],
    ["dropped", dropsText(drops)],
    ...gone.map(({ name, vni, reason }) => ["gone", `${name} (VNI ${vni}): ${reason}`]),
  ];
  return pairs(lines);
}

function offloadsText({ offloads, refusedOffloads }: ApiStatus): string {
  const without = OFFLOADS.filter((name) => !offloads[name]).map((name) => {
    return `${name} (${refusedOffloads.includes(name) ? "refused" : "switched off"})`;
  });
  return without.length === 0 ? "all in use" : `without ${without.join(", ")}`;
}

/** Names and values in two columns, without those that have none. */
function pairs(lines: readonly (readonly string[])[]): string {
  const shown = lines.filter(([, value]) => value !== "");
  const width = Math.max(...shown.map(([name]) => name!.length));
  return shown.map(([name, value]) => `${name!.padEnd(width)}  ${value}`).join("\n");
}

function dropsText(drops: Drops): string {
  return Object.entries(drops)
    .sort(([, one], [, other]) => other - one)
    .map(([reason, count]) => `${reason} ${brief(count)}`)
    .join(", ");
}

function trafficTable(networks: readonly NetworkStatus[]): string {
  const columns = [
    { title: "NETWORK", shrinks: true },
    { title: "VNI", isNumeric: true },
    { title: "BRIDGE", shrinks: true },
    { title: "PEERS", isNumeric: true },
    { title: "FDB", isNumeric: true },
    { title: "ENCAP", isNumeric: true },
    { title: "DECAP", isNumeric: true },
    { title: "DROPPED", isNumeric: true },
  ];
  const rows = networks.map(({ name, vni, bridge, peers, fdb, counters, drops }) => {
    const numbers = [counters.encapFrames, counters.decapFrames, totalDrops(drops)].map(brief);
    const entries = fdb.learned + fdb.control + fdb.static;
    return [name, `${vni}`, bridge ?? "-", `${peers.length}`, brief(entries), ...numbers];
  });
  return table(columns, rows, paper());
}

async function list(client: Client): Promise<Answer> {
  const data = await client.networks();
  const columns = [
    { title: "NETWORK", shrinks: true },
    { title: "VNI", isNumeric: true },
    { title: "TAP", shrinks: true },
    { title: "BRIDGE", shrinks: true },
    { title: "MAC" },
    { title: "MTU", isNumeric: true },
    { title: "PEERS", isNumeric: true },
  ];
  const rows = data.map(({ name, vni, tap, bridge, mac, mtu, peers }) => {
    return [name, `${vni}`, tap, bridge ?? "-", mac, `${mtu}`, `${peers.length}`];
  });
  return { data, text: table(columns, rows, paper()) };
}

async function show(client: Client, [name]: readonly string[]): Promise<Answer> {
  const data = await client.network(name!);
  return { data, text: networkText(data) };
}

function networkText({ fdb, counters, drops, ...network }: NetworkStatus): string {
  const { encapFrames, encapBytes, decapFrames, decapBytes, ...events } = counters;
  const happened = Object.entries(events).filter(([, count]) => count > 0);
  return pairs([
    ["network", network.name],
    ["vni", `${network.vni}`],
    ["tap", `${network.tap} (${network.mac}, MTU ${network.mtu})`],
    ["bridge", network.bridge ?? ""],
    ["peers", network.peers.join(", ")],
    ["fdb", `${fdb.learned} learned, ${fdb.control} control, ${fdb.static} static`],
    ["encap", `${encapFrames} frames, ${encapBytes} bytes`],
    ["decap", `${decapFrames} frames, ${decapBytes} bytes`],
    ...happened.map(([name, count]) => [name, `${count}`]),
    ["dropped", dropsText(drops)],
  ]);
}

/** A network in the words of `vtep run`, checked before the agent is asked. */
async function add(client: Client, _: unknown, options: Options): Promise<Answer> {
  const given = valuesByKey(options, "network");
  if (Object.keys(given).length === 0) {
    throw new VtepError("USAGE", "no network is given: name one with --vni N --peer ADDR");
  }
  const { name } = load(undefined, given).config.networks[0]!;
  const { name: _name, ...described } = networkOf(given);
  const { isNew, ...data } = await client.putNetwork(name, described);
  const was = isNew ? "" : " was there, has this configuration in place of its own, and";
  return { data, text: `network ${name}${was} is forwarded through ${data.tap}, MTU ${data.mtu}` };
}

async function remove(client: Client, [name]: readonly string[]): Promise<Answer> {
  await client.removeNetwork(name!);
  return { data: { removed: name }, text: `network ${name} has ended` };
}

async function listPeers(client: Client, [name]: readonly string[]): Promise<Answer> {
  const networks = name === undefined ? await client.networks() : [await client.network(name)];
  const data = networks.flatMap(({ name, peers }) =>
    peers.map((address) => ({ network: name, address })),
  );
  const columns = [{ title: "NETWORK", shrinks: true }, { title: "PEER" }];
  const rows = data.map(({ network, address }) => [network, address]);
  return { data, text: table(columns, rows, paper()) };
}

async function addPeer(client: Client, [name, address]: readonly string[]): Promise<Answer> {
  const data = await client.putPeer(name!, address!);
  return { data, text: `${address} is a peer of network ${name}` };
}

async function removePeer(client: Client, [name, address]: readonly string[]): Promise<Answer> {
  await client.removePeer(name!, address!);
  return { data: { removed: address }, text: `${address} is no peer of network ${name} any more` };
}
