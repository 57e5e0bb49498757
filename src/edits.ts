/**
 * What the control API has changed and the configuration does not say: networks that were added, removed,
 * or given other peers, entries and settings. That lasts until the next reload, and over a restart it is in
 * a file of the state directory: of each such network what the configuration said of it, and how it is.
 *
 * After a restart a network is as the API left it if the configuration still says the same of it. If not,
 * somebody has decided anew meanwhile, and the configuration counts.
 */
import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import * as v from "valibot";
import {
  type Config,
  type NetworkConfig,
  networkAsWritten,
  readNetwork,
  repetitions,
} from "./config.ts";
import { replaceFile } from "./files.ts";

const FILE = "edits.json";

/** As a file would give it; null: no such network. */
const written = v.nullable(v.looseObject({ name: v.string() }));
const schema = v.array(v.object({ name: v.string(), said: written, is: written }));

type Written = v.InferOutput<typeof written>;
type Edits = v.InferOutput<typeof schema>;

export interface Edited {
  readonly networks: readonly NetworkConfig[];
  /** Names of networks that are as the API left them, and of those of which that is forgotten. */
  readonly kept: readonly string[];
  readonly outdated: readonly string[];
}

/** The networks of a configuration as the API left them; without the file, as they are configured. */
export function readEdits(directory: string | undefined, { networks }: Config): Edited {
  let now = networks;
  const [kept, outdated]: [string[], string[]] = [[], []];
  for (const edit of directory === undefined ? [] : parsed(directory)) {
    const then = now.find(({ name }) => name === edit.name);
    const after = isDeepStrictEqual(writtenOf(then), edit.said)
      ? put(now, then, edit.is)
      : undefined;
    (after === undefined ? outdated : kept).push(edit.name);
    now = after ?? now;
  }
  return { networks: now, kept, outdated };
}

/** Throws what the system says. */
export function writeEdits(
  directory: string,
  configured: readonly NetworkConfig[],
  live: readonly NetworkConfig[],
): void {
  const said = byName(configured);
  const are = byName(live);
  const names = [...new Set([...said.keys(), ...are.keys()])];
  const edits: Edits = names
    .map((name) => ({ name, said: said.get(name) ?? null, is: are.get(name) ?? null }))
    .filter((edit) => !isDeepStrictEqual(edit.said, edit.is));
  if (edits.length === 0) rmSync(join(directory, FILE), { force: true });
  else replaceFile(join(directory, FILE), JSON.stringify(edits));
}

/** A file that cannot be read is as good as none. */
function parsed(directory: string): Edits {
  try {
    return v.parse(schema, JSON.parse(readFileSync(join(directory, FILE), "utf8")));
  } catch {
    return [];
  }
}

/** Undefined where the network does not go with the others, or this version does not know it. */
function put(
  networks: readonly NetworkConfig[],
  then: NetworkConfig | undefined,
  is: Written,
): readonly NetworkConfig[] | undefined {
  if (is === null) {
    // Whatever is left says for which addresses and MTU the sockets are opened.
    return networks.length === 1 ? undefined : networks.filter((network) => network !== then);
  }
  try {
    const network = readNetwork(is);
    const after =
      then === undefined
        ? [...networks, network]
        : networks.map((other) => (other === then ? network : other));
    return repetitions(after).length > 0 ? undefined : after;
  } catch {
    return undefined;
  }
}

function byName(networks: readonly NetworkConfig[]): Map<string, Written> {
  return new Map(networks.map((network) => [network.name, writtenOf(network)]));
}

/** As it is read again: without what is undefined. */
function writtenOf(network: NetworkConfig | undefined): Written {
  return network === undefined ? null : JSON.parse(JSON.stringify(networkAsWritten(network)));
}
