/**
 * Reads a configuration from a file, from the directories that it includes and from flags, and keeps
 * where each value came from.
 *
 * An included file is written like the first one, may include in its turn, and adds its networks. Every
 * other key may be set once in all of them, because which of two wins would hang on the names of files.
 * A flag of the endpoint overrides files; flags of a network describe one, which joins the others.
 */
import { readdirSync, readFileSync, realpathSync, statSync } from "node:fs";
import { dirname, isAbsolute, join, resolve } from "node:path";
import {
  type Document,
  isAlias,
  isMap,
  isScalar,
  isSeq,
  LineCounter,
  parseDocument,
  visit,
} from "yaml";
import {
  type Config,
  type Conflict,
  conflicts,
  type Fault,
  includeFault,
  type Path,
  parse,
  placeOf,
} from "./config.ts";
import { VtepError } from "./errors.ts";
import { flags, keys } from "./keys.ts";
import { type EndpointKey, isMapping, type NetworkKey, NOT_A_LIST, ONE_PLACE } from "./schema.ts";

/** What `vtep run` reads when it is told of no other file and of no network. */
export const DEFAULT_FILE = "/etc/vtep/vtep.yaml";

/** Where a value came from. */
export type Source =
  | { readonly from: "default" }
  | { readonly from: "flag"; readonly flag: string }
  | {
      readonly from: "file";
      readonly file: string;
      readonly line: number;
      readonly column: number;
    };

export interface Sources {
  readonly endpoint: Readonly<Record<EndpointKey, Source>>;
  /** In the order of the configuration's networks. */
  readonly networks: readonly Readonly<Record<NetworkKey, Source>>[];
}

export interface Loaded {
  readonly config: Config;
  readonly sources: Sources;
  /** Those that were read, the first one first. */
  readonly files: readonly string[];
}

/** What the command line gives: values by key, as text. */
export type FlagValues = Readonly<Record<string, unknown>>;

/** As many networks may share their peers; what aliases of aliases make beyond that is no configuration. */
const MOST_ALIASES = 100_000;

const DEFAULT: Source = { from: "default" };
const USUAL_FLAGS = "vtep run --vni N --peer ADDR";

/** The configuration. Throws VtepError USAGE with one sentence. */
export function load(file: string | undefined, given: FlagValues): Loaded {
  const { loaded, faults } = check(file, given);
  if (loaded === undefined) throw new VtepError("USAGE", faults[0]!);
  return loaded;
}

/** The file that is meant where none is named; none where flags name a network. */
export function defaultFile(given: FlagValues): string | undefined {
  if (Object.keys(only(given, "network")).length > 0) return undefined;
  try {
    return statSync(DEFAULT_FILE, { throwIfNoEntry: false }) && DEFAULT_FILE;
  } catch {
    return DEFAULT_FILE; // it may be there; reading it will say what is the matter
  }
}

/** `FILE:LINE`, `--flag` or `default`. */
export function sourceText(source: Source): string {
  return source.from === "file" ? `${source.file}:${source.line}` : placeText(source);
}

/** As compilers say it, which editors know how to go to: `FILE:LINE:COLUMN`. */
function placeText(source: Source): string {
  if (source.from === "default") return "default";
  if (source.from === "flag") return source.flag;
  return `${source.file}:${source.line}:${source.column}`;
}

// ---- Reading

/** One of those that a configuration is made of, and where each of its values stands. */
interface Layer {
  readonly data: Readonly<Record<string, unknown>>;
  source(path: Path, of: "key" | "value"): Source;
}

class YamlFile implements Layer {
  readonly name: string;
  readonly data: Readonly<Record<string, unknown>>;
  readonly #document: Document;
  readonly #lines: LineCounter;

  /** Throws VtepError. */
  constructor(name: string, included: boolean) {
    this.name = name;
    this.#lines = new LineCounter();
    let data: unknown;
    try {
      if (included && statSync(name).isFIFO()) {
        throw new Error(
          "it is a pipe, and a reload would wait for who writes to it: put a file there",
        );
      }
      const text = readFileSync(name, "utf8");
      // That keys are unique the library finds out by comparing each with all before it, for minutes of 100,000.
      this.#document = parseDocument(text, { lineCounter: this.#lines, uniqueKeys: false });
      const [fault] = [...this.#document.errors, ...this.#document.warnings];
      if (fault !== undefined) throw fault;
      this.#refuseRepetition();
      data = this.#document.toJS({ maxAliasCount: MOST_ALIASES });
    } catch (error) {
      throw new VtepError("USAGE", `${name} cannot be read: ${reasonOf(error)}`, error);
    }
    // One that only holds comments is nothing to complain of where it is not the only one.
    if (included && data === null) data = {};
    if (!isMapping(data)) {
      throw new VtepError("USAGE", `${name} must hold a mapping with a list of networks`);
    }
    this.data = data;
  }

  #refuseRepetition(): void {
    visit(this.#document, {
      Map: (_, { items }) => {
        const seen = new Set<unknown>();
        for (const { key } of items) {
          if (!isScalar(key)) continue;
          if (seen.has(key.value)) {
            const { line, col } = this.#lines.linePos(startOf(key) ?? 0);
            throw new Error(`Map keys must be unique at line ${line}, column ${col}`);
          }
          seen.add(key.value);
        }
      },
    });
  }

  /** Of the value itself or, where the file does not have it, of the nearest that it is missing in. */
  source(path: Path, of: "key" | "value"): Source {
    let node: unknown = this.#document.contents;
    let offset = 0;
    for (const [at, step] of path.entries()) {
      const inside = isAlias(node) ? node.resolve(this.#document) : node;
      if (isMap(inside)) {
        const pair = inside.items.find(({ key }) => isScalar(key) && String(key.value) === step);
        if (pair === undefined) break;
        node = pair.value;
        const named = of === "key" && at === path.length - 1;
        offset = startOf(named ? pair.key : pair.value) ?? startOf(pair.key) ?? offset;
      } else {
        if (!isSeq(inside)) break;
        node = inside.items[Number(step)];
        offset = startOf(node) ?? offset;
      }
    }
    const { line, col } = this.#lines.linePos(offset);
    return { from: "file", file: this.name, line, column: col };
  }
}

function startOf(node: unknown): number | undefined {
  return (node as { range?: readonly number[] | null } | null)?.range?.[0];
}

function reasonOf(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException;
  if (code === "ENOENT")
    return "there is no such file: vtep config example prints one to begin with";
  if (code === "EISDIR") return "it is a directory: name a file in it";
  if (code === "EACCES") return "this user may not: run as root, or let it";
  if (code === "MULTIPLE_DOCS") return "it holds several documents (---): keep one";
  return message.split("\n")[0]!.replace(/:$/, "");
}

/** By their real paths, in the order in which they were read. */
type Files = Map<string, YamlFile>;

/** Reads a file and what it includes into `files`; what is wrong is added to `faults`. */
function read(file: string, files: Files, faults: string[]): void {
  const layer = attemptTo(() => new YamlFile(file, files.size > 0), faults);
  if (layer === undefined) return;
  files.set(realPath(file), layer);
  if (!("include" in layer.data)) return;
  const { include } = layer.data;
  const place = placeText(layer.source(["include"], "value"));
  const refuse = (message: string) => faults.push(`${place}: include ${message}`);
  const wrong = includeFault(include);
  if (wrong !== undefined) {
    refuse(wrong);
    return;
  }
  const directory = isAbsolute(include as string)
    ? (include as string)
    : join(dirname(file), include as string);
  const found = filesIn(directory);
  if (typeof found === "string") {
    refuse(found);
    return;
  }
  for (const each of found) {
    const before = files.get(realPath(each));
    if (before === undefined) read(each, files, faults);
    else refuse(`leads to ${before.name} again: name a directory without it, and none twice`);
  }
}

/** Those of the directory in the order of their names; what keeps them from being listed. */
function filesIn(directory: string): string[] | string {
  try {
    // Names with a dot are what editors and package managers leave for a moment.
    const names = readdirSync(directory).filter((name) => /^[^.].*\.ya?ml$/.test(name));
    return names.sort().map((name) => join(directory, name));
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === "ENOENT") {
      return `names ${directory}, which is not there: create it, or leave the key out`;
    }
    if (code === "ENOTDIR") {
      return `names ${directory}, which is no directory: name the one that holds the files`;
    }
    return `names ${directory}, which cannot be read: ${message}`;
  }
}

function realPath(file: string): string {
  try {
    return realpathSync(file);
  } catch {
    return file; // reading it will say what is the matter
  }
}

function attemptTo<Result>(act: () => Result, faults: string[]): Result | undefined {
  try {
    return act();
  } catch (error) {
    if (!(error instanceof VtepError)) throw error;
    faults.push(error.message);
    return undefined;
  }
}

// ---- Flags

/** Flags have no places but their names. */
class Flags implements Layer {
  readonly data: Readonly<Record<string, unknown>>;
  readonly #network: Readonly<Record<string, unknown>>;

  constructor(given: FlagValues) {
    const endpoint = endpointOf(only(given, "endpoint"));
    this.#network = networkOf(only(given, "network"));
    const isGiven = Object.keys(this.#network).length > 0;
    this.data = isGiven ? { ...endpoint, networks: [this.#network] } : endpoint;
  }

  source([first, , key]: Path): Source {
    // What follows from the VNI is named by that.
    const ofNetwork = typeof key === "string" && key in this.#network ? key : "vni";
    const name = first === "networks" ? ofNetwork : first;
    const flag = flags()
      .find((each) => each.key === name)!
      .syntax.split(" ")[0]!;
    return { from: "flag", flag };
  }
}

function only(given: FlagValues, of: "network" | "endpoint"): Record<string, unknown> {
  const wanted = keysOf(of);
  return Object.fromEntries(Object.entries(given).filter(([key]) => wanted.includes(key)));
}

function keysOf(of: "network" | "endpoint"): string[] {
  return keys().flatMap((each) => (each.of === of ? [each.key] : []));
}

/** In the shape that a file has: `--offload` is written differently, `--socket` relative to here. */
function endpointOf({ offload, socket, ...rest }: Record<string, unknown>) {
  const shaped: Record<string, unknown> = rest;
  if (socket !== undefined) shaped.socket = socket === "" ? "" : resolve(socket as string);
  if (offload === undefined) return shaped;
  const pairs = (offload as string).split(",");
  const shape = "NAME=on or NAME=off";
  return { ...shaped, offload: pairsOf("--offload", pairs, shape, "leave one out") };
}

/** In the shape that a file has: only `--fdb` is written differently. */
export function networkOf({ fdb, ...rest }: Record<string, unknown>): Record<string, unknown> {
  if (fdb === undefined) return rest;
  return { ...rest, fdb: pairsOf("--fdb", fdb as string[], "MAC=ADDR", ONE_PLACE) };
}

/** What a flag's pairs say, in the shape that a file has. Throws VtepError USAGE where they are none, or one name is there twice. */
function pairsOf(
  flag: string,
  pairs: readonly string[],
  shape: string,
  remedy: string,
): Record<string, string> {
  const values = new Map<string, string>();
  for (const pair of pairs) {
    const [name, value, ...more] = pair.split("=");
    if (!name || !value || more.length > 0) {
      throw new VtepError("USAGE", `${flag} ${JSON.stringify(pair)} must be ${shape}`);
    }
    if (values.has(name)) throw new VtepError("USAGE", `${flag} has ${name} twice: ${remedy}`);
    values.set(name, value);
  }
  return Object.fromEntries(values);
}

// ---- Putting together

/** What can be loaded, or a sentence for everything that keeps it from being loaded. */
export function check(
  file: string | undefined,
  given: FlagValues,
): { readonly loaded?: Loaded; readonly faults: readonly string[] } {
  if (file === "") throw new VtepError("USAGE", "--config names no file: give the path of one");
  const faults: string[] = [];
  const files: Files = new Map();
  if (file !== undefined) read(file, files, faults);
  const merged = new Merged();
  for (const layer of files.values()) faults.push(...merged.add(layer));
  merged.override(new Flags(given));
  const parsed = parse(merged.raw());
  if ("faults" in parsed) {
    const known = parsed.faults.filter(({ path }) => path.length !== 1 || path[0] !== "networks");
    const told = known.map((fault) => merged.ofFault(fault));
    faults.push(...inOrder([...told, ...conflictsOfRest(merged.without(known))], files));
    // They may be where something could not be read, or under a key that is misspelt.
    if (faults.length === 0) faults.push(noNetwork([...files.values()][0]));
    return { faults };
  }
  faults.push(...inOrder(merged.ofConflicts(parsed.config), files));
  if (faults.length > 0) return { faults };
  const { config } = parsed;
  return {
    loaded: {
      config,
      sources: merged.sources(),
      files: [...files.values()].map(({ name }) => name),
    },
    faults,
  };
}

/** What does not go together, of what is left of a configuration without its faults. */
function conflictsOfRest(rest: Merged): Complaint[] {
  const parsed = parse(rest.raw());
  return "faults" in parsed ? [] : rest.ofConflicts(parsed.config);
}

/** A sentence, and the place that it is about. */
interface Complaint {
  readonly source: Source;
  readonly sentence: string;
}

/** As one reads: flags, then files in their order, from the top of each down. */
function inOrder(complaints: readonly Complaint[], files: Files): string[] {
  const names = [...files.values()].map(({ name }) => name);
  const placed = complaints.map(({ source, sentence }) => {
    const isFile = source.from === "file";
    const place = isFile ? [names.indexOf(source.file), source.line, source.column] : [-1];
    return { place, sentence };
  });
  placed.sort((a, b) => {
    const differs = a.place.findIndex((part, at) => part !== b.place[at]);
    return differs < 0 ? 0 : a.place[differs]! - (b.place[differs] ?? -1);
  });
  return placed.map(({ sentence }) => sentence);
}

function noNetwork(file: YamlFile | undefined): string {
  if (file === undefined) {
    return `no network is given: name one with --vni N --peer ADDR, or some in ${DEFAULT_FILE} or another file (--config FILE)`;
  }
  const isThere = "networks" in file.data;
  const where = isThere ? placeText(file.source(["networks"], "key")) : file.name;
  return `${where}: networks is empty: give one there, or with --vni N --peer ADDR`;
}

/** A network as its layer has it. */
interface OfLayer {
  readonly layer: Layer;
  readonly at: number;
  readonly data: unknown;
  /** Whether something that it has there was wrong, and is left out. */
  readonly lacks: boolean;
}

/** Keys of a network from which others follow. */
const TELLING_APART: Path = ["vni", "name", "tap", "bridge"];

/** Layers as one configuration in the shape that a file has, which knows whose each part is. */
class Merged {
  readonly #setBy = new Map<string, Layer>();
  readonly #networks: OfLayer[] = [];

  /** Adds a file. Returns a sentence for each key that cannot be had. */
  add(layer: Layer): string[] {
    const faults: string[] = [];
    for (const key of Object.keys(layer.data)) {
      const before = this.#setBy.get(key);
      if (key === "include") continue;
      if (key === "networks") faults.push(...this.#addNetworks(layer));
      else if (before === undefined) this.#setBy.set(key, layer);
      else {
        const [here, there] = [layer, before].map((each) => placeText(each.source([key], "key")));
        faults.push(`${here}: ${key} is set already, at ${there}: keep one of the two`);
      }
    }
    return faults;
  }

  override(layer: Layer): void {
    for (const key of Object.keys(layer.data)) {
      if (key === "networks") this.#addNetworks(layer);
      else this.#setBy.set(key, layer);
    }
  }

  /** Without the values that are wrong, and without the networks that are told from others by one of these. */
  without(faults: readonly Fault[]): Merged {
    const rest = new Merged();
    for (const [key, layer] of this.#setBy) {
      if (!faults.some(({ path }) => path[0] === key)) rest.#setBy.set(key, layer);
    }
    for (const [index, network] of this.#networks.entries()) {
      const ofIt = faults.filter(({ path }) => path[0] === "networks" && path[1] === index);
      const wrong = ofIt.map(({ path }) => path[2]);
      if (wrong.some((key) => key === undefined || TELLING_APART.includes(key))) continue;
      const own = Object.entries(network.data as object).filter(([key]) => !wrong.includes(key));
      rest.#networks.push({ ...network, data: Object.fromEntries(own), lacks: ofIt.length > 0 });
    }
    return rest;
  }

  raw(): Record<string, unknown> {
    const keys = [...this.#setBy].map(([key, { data }]) => [key, data[key]]);
    return { ...Object.fromEntries(keys), networks: this.#networks.map(({ data }) => data) };
  }

  sources(): Sources {
    const endpoint = keysOf("endpoint").map((key) => {
      return [key, this.#setBy.get(key)?.source([key], "key") ?? DEFAULT];
    });
    const ofNetwork = keysOf("network");
    const networks = this.#networks.map(({ layer, at, data }) => {
      const sources = ofNetwork.map((key) => {
        const isSet = Object.hasOwn(data as object, key);
        return [key, isSet ? layer.source(["networks", at, key], "key") : DEFAULT];
      });
      return Object.fromEntries(sources);
    });
    return { endpoint: Object.fromEntries(endpoint), networks };
  }

  ofFault({ path, kind, message }: Fault): Complaint {
    const { source, inLayer } = this.#locate(path, kind === "unknown" ? "key" : "value");
    const place = placeText(source);
    if (source.from === "file") {
      return { source, sentence: `${place}: ${placeOf(inLayer)} ${message}` };
    }
    const remedy = kind === "missing" ? `: ${USUAL_FLAGS}` : "";
    return { source, sentence: `${place} ${message}${remedy}` };
  }

  ofConflicts(config: Config): Complaint[] {
    const all = conflicts(config).filter(({ path: [first, index], other }) => {
      return first !== "networks" || other !== undefined || !this.#networks[index as number]!.lacks;
    });
    return all.map((conflict) => this.#ofConflict(conflict));
  }

  #ofConflict({ path, other, message, remedy }: Conflict): Complaint {
    const { source } = this.#locate(path, "value");
    const inFile = source.from === "file";
    const here = inFile ? "here" : `by ${placeText(source)}`;
    const there = other && placeText(this.#locate(other, "value").source);
    const both = there === undefined ? "" : `, ${here} and at ${there}`;
    const where = inFile ? `${placeText(source)}: ` : "";
    return { source, sentence: `${where}${message}${both}: ${remedy}` };
  }

  #addNetworks(layer: Layer): string[] {
    const { networks } = layer.data;
    if (networks === null) return [];
    if (!Array.isArray(networks)) {
      return [`${placeText(layer.source(["networks"], "value"))}: networks ${NOT_A_LIST}`];
    }
    this.#networks.push(...networks.map((data, at) => ({ layer, at, data, lacks: false })));
    return [];
  }

  /** Where a value stands that the whole has at a path, and its path there. */
  #locate(path: Path, of: "key" | "value"): { source: Source; inLayer: Path } {
    const [first, index, ...rest] = path;
    const network = first === "networks" ? this.#networks[index as number] : undefined;
    const inLayer = network === undefined ? path : ["networks", network.at, ...rest];
    const layer = network?.layer ?? this.#setBy.get(first as string);
    return { source: layer?.source(inLayer, of) ?? DEFAULT, inLayer };
  }
}
