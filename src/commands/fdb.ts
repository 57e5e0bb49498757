/** `vtep fdb`: where frames for a MAC go. */
import type { Command } from "commander";
import type { Client } from "../api/client.ts";
import type { FdbFilter } from "../operations.ts";
import { type Answer, ask, group, type Options, print } from "./ask.ts";
import { duration, paper, table } from "./table.ts";

export function addFdbCommands(vtep: Command): void {
  const fdb = group(vtep, "fdb", "List, add and remove entries of the FDB of a running agent");
  filtered(ask(fdb, "list", "list entries", list)).option(
    "--origin <learned|control|static>",
    "only those of that origin",
  );
  ask(fdb, "add <NETWORK> <MAC> <ADDR>", "enter a static entry", add);
  ask(fdb, "remove <NETWORK> <MAC>", "remove an entry, static or learned", remove);
  filtered(ask(fdb, "flush", "forget what was learned", flush));
}

function filtered(command: Command): Command {
  return command
    .option("--network <NETWORK>", "only entries of that network")
    .option("--mac <MAC>", "only the entry of that MAC")
    .option("--remote <ADDR|local>", "only those behind that VTEP, or behind this one");
}

function filterOf({ network, mac, remote, origin }: Options): FdbFilter {
  return { network, mac, remote, origin } as FdbFilter;
}

async function list(client: Client, _: unknown, options: Options): Promise<Answer | undefined> {
  if (options.json) {
    // As it comes: there may be a million.
    await print(client.fdbText(filterOf(options)));
    return undefined;
  }
  const data = await client.fdb(filterOf(options));
  const columns = [
    { title: "NETWORK", shrinks: true },
    { title: "MAC" },
    { title: "DESTINATION" },
    { title: "ORIGIN" },
    { title: "AGE", isNumeric: true },
    { title: "MOVES", isNumeric: true },
  ];
  const rows = data
    .map(({ network, mac, destination, origin, ageSeconds, moves }) => {
      const age = ageSeconds === undefined ? "-" : duration(ageSeconds);
      return [network, mac, destination, origin, age, `${moves}`];
    })
    .sort(byCells);
  return { data, text: table(columns, rows, paper()) };
}

function byCells(one: readonly string[], other: readonly string[]): number {
  const at = one.findIndex((cell, column) => cell !== other[column]);
  return at < 0 ? 0 : one[at]! < other[at]! ? -1 : 1;
}

async function add(client: Client, [network, mac, to]: readonly string[]): Promise<Answer> {
  const data = await client.putFdb(network!, mac!, to!);
  return { data, text: `frames for ${data.mac} go to ${data.destination}` };
}

async function remove(client: Client, [network, mac]: readonly string[]): Promise<Answer> {
  await client.removeFdb(network!, mac!);
  return { data: { removed: mac }, text: `there is no entry for ${mac} any more` };
}

async function flush(client: Client, _: unknown, options: Options): Promise<Answer> {
  const { origin: _origin, ...filter } = filterOf(options);
  const data = await client.flushFdb(filter);
  const what = data.flushed === 1 ? "1 entry is" : `${data.flushed} entries are`;
  return { data, text: `${what} forgotten` };
}
