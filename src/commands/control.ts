/** `vtep events`, `vtep reload` and `vtep log-level`: what happens in a running agent. */
import type { Command } from "commander";
import type { Client } from "../api/client.ts";
import type { AgentEvent, Changes, Drops } from "../operations.ts";
import { type Answer, ask, type Options, print } from "./ask.ts";

export function addControlCommands(vtep: Command): void {
  ask(vtep, "events", "Print what happens in a running agent, until interrupted", events).option(
    "--network <NETWORK>",
    "only what happens in that network",
  );
  ask(vtep, "reload", "Have a running agent read its configuration again", reload);
  ask(vtep, "log-level <LEVEL>", "Set the least level that a running agent logs", setLogLevel);
}

async function events(client: Client, _: unknown, options: Options): Promise<undefined> {
  await print(lines(client, options));
}

async function* lines(client: Client, { network, json }: Options): AsyncGenerator<string> {
  if (network !== undefined) await client.network(network as string); // or it would wait in vain
  for await (const event of client.events()) {
    if (network !== undefined && ![network, undefined].includes(networkOf(event))) continue;
    yield json ? `${JSON.stringify(event)}\n` : `${clock()}  ${eventText(event)}\n`;
  }
}

/** Undefined for what concerns all of them. */
function networkOf(event: AgentEvent): string | undefined {
  if ("entry" in event) return event.entry.network;
  return "network" in event ? (event.network ?? "") : undefined;
}

function clock(): string {
  return new Date().toTimeString().slice(0, 8);
}

function eventText(event: AgentEvent): string {
  switch (event.event) {
    case "learned":
      return `${event.entry.network}: ${event.entry.mac} learned behind ${event.entry.destination}`;
    case "moved":
      return `${event.entry.network}: ${event.entry.mac} moved from ${event.from} to ${event.entry.destination}`;
    case "aged":
      return `${event.entry.network}: ${event.entry.mac} not seen any more behind ${event.entry.destination}`;
    case "evicted":
      return `${event.entry.network}: ${event.entry.mac} forgotten at the limit, was behind ${event.entry.destination}`;
    case "remote-up":
      return `remote ${event.remote} is up`;
    case "remote-down":
      return `remote ${event.remote} is down: it refuses what is sent there, or cannot be reached`;
    case "path-learned":
      return `the path to ${event.remote} has an MTU of ${event.mtu}: less than its interface`;
    case "path-forgotten":
      return `the path to ${event.remote} is taken for as wide as its interface again`;
    case "offload-demoted":
      return `offload ${event.offload} was refused: going on without`;
    case "network-gone":
      return `${event.network}: the network is gone: ${event.reason}`;
    case "network-back":
      return `${event.network}: the network is there again`;
    case "dropped":
      return `${event.network ?? "no network"}: dropped ${dropsText(event.drops)}`;
    case "reloaded":
      return `reloaded: ${changesText(event.changes)}`;
    case "missed":
      return `(${event.count} events were missed: too many to print)`;
  }
}

function dropsText(drops: Drops): string {
  return Object.entries(drops)
    .map(([reason, count]) => `${count} ${reason}`)
    .join(", ");
}

async function reload(client: Client): Promise<Answer> {
  const data = await client.reload();
  return { data, text: changesText(data) };
}

function changesText({ added, changed, removed, restart }: Changes): string {
  const parts = Object.entries({ added, changed, removed })
    .filter(([, names]) => names.length > 0)
    .map(([what, names]) => `${what} ${names.join(", ")}`);
  const done = parts.length === 0 ? "no network has changed" : parts.join("; ");
  return restart.length === 0 ? done : `${done}; only a restart changes ${restart.join(", ")}`;
}

async function setLogLevel(client: Client, [level]: readonly string[]): Promise<Answer> {
  const data = await client.setLogLevel(level!);
  return { data, text: `logging ${data.level} and above` };
}
