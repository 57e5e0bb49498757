/**
 * What the control API has changed and the configuration does not say: networks that were added, removed,
 * or given other peers, entries and settings. That lasts until the next reload, and over a restart it is in
 * a file of the state directory: of each such network what the configuration said of it, and how it is.
 *
 * After a restart a network is as the API left it if the configuration still says the same of it. If not,
 * somebody has decided anew meanwhile, and the configuration counts. What this version cannot read is
 * kept for one that can.
 */
import { readFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import {
  type Config,
  collisions,
  type NetworkConfig,
  networkAsWritten,
  readNetwork,
} from "./config.ts";
import { replaceFile } from "./files.ts";

const FILE = "edits.json";

/** A network as a file would give it; null: no such network. */
const written = v.nullable(v.looseObject({}));
const schema = v.object({ name: v.string(), said: written, is: written });

interface Edit {
  readonly name: string;
  readonly said: NetworkConfig | undefined;
  readonly is: NetworkConfig | undefined;
}

export interface Edited {
  readonly networks: readonly NetworkConfig[];
  /** Names of networks that are as the API left them. */
  readonly kept: readonly string[];
  /** Names of those of which that is forgotten: the configuration says otherwise of them, or of their VNI. */
  readonly outdated: readonly string[];
  /** Entries of the file that cannot be read. */
  readonly unread: readonly unknown[];
  /** Why the file cannot be, and where it is now. */
  readonly fault: string | undefined;
}

/** The networks of a configuration as the API left them; without the file, as they are configured. */
export function readEdits(directory: string | undefined, { networks }: Config): Edited {
  const { entries, fault } = directory === undefined ? NONE : entriesIn(join(directory, FILE));
  const read = entries.map((entry) => [entry, readEdit(entry)] as const);
  const unread = read.flatMap(([entry, edit]) => (edit === undefined ? [entry] : []));
  const edits = read.flatMap(([, edit]) => (edit === undefined ? [] : [edit]));
  const configured = byName(networks);
  const current = edits.filter(({ name, said }) => isSame(configured.get(name), said));
  const merged = merge(networks, new Map(current.map(({ name, is }) => [name, is])));
  const outdated = edits.map(({ name }) => name).filter((name) => !merged.kept.includes(name));
  return { ...merged, outdated, unread, fault };
}

/** Networks that are to be otherwise than configured, by name; undefined: not at all. Newest first. */
export type Changes = ReadonlyMap<string, NetworkConfig | undefined>;

/** The networks with those changes, as far as they do not collide: then the oldest is left out. */
export function merge(
  networks: readonly NetworkConfig[],
  changes: Changes,
): Pick<Edited, "networks" | "kept"> {
  const configured = byName(networks);
  const kept = new Map(changes);
  for (;;) {
    const merged = withChanges(configured, kept);
    const culprit = colliding(merged, kept);
    if (culprit === undefined) return { networks: merged, kept: [...kept.keys()] };
    kept.delete(culprit);
  }
}

/**
 * Writes what is different, and those other entries of which nothing newer is known, which it returns. Throws
 * what the system says.
 */
export function writeEdits(
  directory: string,
  configured: readonly NetworkConfig[],
  live: readonly NetworkConfig[],
  others: readonly unknown[],
): readonly unknown[] {
  const edits = different(configured, live);
  const names = new Set(edits.map(({ name }) => name));
  const older = others.filter(
    (entry) => !names.has((entry as { name: string } | null)?.name ?? ""),
  );
  const file = join(directory, FILE);
  const entries = [...edits, ...older];
  if (entries.length === 0) rmSync(file, { force: true });
  else replaceFile(file, JSON.stringify(entries));
  return older;
}

/** An entry of the file for each network that is not as it is configured. */
export function different(
  configured: readonly NetworkConfig[],
  live: readonly NetworkConfig[],
): readonly { readonly name: string; readonly said: unknown; readonly is: unknown }[] {
  const said = byName(configured);
  const are = byName(live);
  return [...new Set([...said.keys(), ...are.keys()])].flatMap((name) => {
    const [before, after] = [said.get(name), are.get(name)];
    if (before === after) return [];
    const edit = { name, said: writtenOf(before), is: writtenOf(after) };
    return JSON.stringify(edit.said) === JSON.stringify(edit.is) ? [] : [edit];
  });
}

const NONE = { entries: [], fault: undefined };

function entriesIn(file: string): { entries: readonly unknown[]; fault: string | undefined } {
  try {
    const entries: unknown = JSON.parse(readFileSync(file, "utf8"));
    if (Array.isArray(entries)) return { entries, fault: undefined };
    throw new TypeError(`${file} is no list`);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return NONE;
    return { entries: [], fault: `${(error as Error).message}; ${putAside(file)}` };
  }
}

/** So that the next edit does not overwrite it. */
function putAside(file: string): string {
  try {
    renameSync(file, `${file}.bad`);
    return `it is ${file}.bad now`;
  } catch (error) {
    return (error as Error).message;
  }
}

function readEdit(entry: unknown): Edit | undefined {
  const { success, output } = v.safeParse(schema, entry);
  if (!success) return undefined;
  try {
    const [said, is] = [output.said, output.is].map((network) => {
      return network === null ? undefined : readNetwork(network);
    });
    return { name: output.name, said, is };
  } catch {
    return undefined;
  }
}

function withChanges(
  configured: ReadonlyMap<string, NetworkConfig>,
  changes: Changes,
): readonly NetworkConfig[] {
  const networks = new Map([...configured, ...changes]);
  return [...networks.values()].filter((network) => network !== undefined);
}

/** Of the oldest change, which is the last, without which one collision less would be. */
function colliding(networks: readonly NetworkConfig[], changes: Changes): string | undefined {
  const places = collisions(networks).flatMap(({ path, other }) => [path, other ?? path]);
  const names = places.map(([, at]) => networks[at as number]!.name);
  return [...changes.keys()].findLast((name) => names.includes(name));
}

function byName(networks: readonly NetworkConfig[]): Map<string, NetworkConfig> {
  return new Map(networks.map((network) => [network.name, network]));
}

function isSame(one: NetworkConfig | undefined, other: NetworkConfig | undefined): boolean {
  return one === other || JSON.stringify(writtenOf(one)) === JSON.stringify(writtenOf(other));
}

function writtenOf(network: NetworkConfig | undefined): unknown {
  return network === undefined ? null : networkAsWritten(network);
}
