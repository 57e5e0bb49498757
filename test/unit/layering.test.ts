import { readdirSync, readFileSync } from "node:fs";
import { join, posix } from "node:path";
import { describe, expect, it } from "vitest";

/**
 * The layers of `src/`, the highest first (design.md). A file imports files of lower lines, or,
 * where a line is marked so, of its own. What a layer may have from outside is named by line too.
 */
interface Layer {
  readonly name: string;
  readonly files: RegExp;
  /** Whether its files may import each other. */
  readonly mutual: boolean;
  /** Packages and modules of Node that it may import. */
  readonly outside: RegExp;
}

const ANYTHING = /./;
const NOTHING = /^$/;

const LAYERS: readonly Layer[] = [
  { name: "command line", files: /^(cli|program)\.ts$/, mutual: true, outside: ANYTHING },
  { name: "commands", files: /^commands\//, mutual: true, outside: ANYTHING },
  { name: "run", files: /^run\.ts$/, mutual: false, outside: ANYTHING },
  { name: "log", files: /^log\.ts$/, mutual: false, outside: ANYTHING },
  { name: "examination", files: /^doctor\/(examine|probe)\.ts$/, mutual: true, outside: ANYTHING },
  // Facts in, findings out: whatever fault can be written down can be tested.
  { name: "diagnosis", files: /^doctor\/(?!examine|probe)/, mutual: true, outside: /^ipaddr\.js$/ },
  { name: "flags", files: /^flags\.ts$/, mutual: false, outside: /^commander$/ },
  { name: "CNI plugin", files: /^(vtep-cni|cni|cni-plugin)\.ts$/, mutual: true, outside: ANYTHING },
  { name: "Docker driver", files: /^docker\.ts$/, mutual: false, outside: ANYTHING },
  // Asks an agent, and makes the links that the agent may not.
  { name: "attaching", files: /^attach\.ts$/, mutual: false, outside: ANYTHING },
  {
    name: "what may be attached",
    files: /^(wanted|conflicts)\.ts$/,
    mutual: false,
    outside: /^(node:crypto|ipaddr\.js)$/,
  },
  // Serves a running agent's operations, without knowing the agent.
  { name: "API", files: /^api\//, mutual: true, outside: ANYTHING },
  {
    name: "agent",
    files: /^(agent|changing|workers|worker|captures|keeping)\.ts$/,
    mutual: true,
    outside: ANYTHING,
  },
  // What the agent is made of: none of it knows the agent, nor its threads.
  {
    name: "agent's parts",
    files: /^(live|bridges|entries|containers|telling)\.ts$/,
    mutual: true,
    outside: /^pino$/,
  },
  { name: "rehearsal", files: /^rehearsal\.ts$/, mutual: false, outside: NOTHING },
  { name: "interim", files: /^interim\.ts$/, mutual: false, outside: ANYTHING },
  {
    name: "metrics",
    files: /^metrics\.ts$/,
    mutual: false,
    outside: /^(prom-client|node:timers\/promises)$/,
  },
  { name: "watch", files: /^watch\.ts$/, mutual: false, outside: NOTHING },
  { name: "capture", files: /^capture\.ts$/, mutual: false, outside: /^node:timers\/promises$/ },
  { name: "operations", files: /^operations\.ts$/, mutual: false, outside: NOTHING },
  { name: "gateways", files: /^gateways\.ts$/, mutual: false, outside: /^(node:fs|pino)$/ },
  { name: "gateways' rules", files: /^nat\.ts$/, mutual: false, outside: NOTHING },
  {
    name: "attachments",
    files: /^attachments\.ts$/,
    mutual: false,
    outside: /^(node:crypto|ipaddr\.js)$/,
  },
  { name: "survey", files: /^survey\.ts$/, mutual: false, outside: NOTHING },
  { name: "snapshot", files: /^(snapshot|edits)\.ts$/, mutual: false, outside: ANYTHING },
  { name: "version", files: /^version\.ts$/, mutual: false, outside: NOTHING },
  { name: "containers' interfaces", files: /^plug\.ts$/, mutual: false, outside: NOTHING },
  { name: "links", files: /^links\.ts$/, mutual: false, outside: /^node:crypto$/ },
  { name: "host", files: /^host\.ts$/, mutual: false, outside: /^node:fs$/ },
  { name: "iproute2", files: /^iproute\.ts$/, mutual: false, outside: NOTHING },
  { name: "containers' namespaces", files: /^namespace\.ts$/, mutual: false, outside: ANYTHING },
  { name: "other programs", files: /^command\.ts$/, mutual: false, outside: ANYTHING },
  { name: "files as a whole", files: /^files\.ts$/, mutual: false, outside: ANYTHING },
  { name: "service manager", files: /^systemd\.ts$/, mutual: false, outside: ANYTHING },
  { name: "composition root", files: /^vtep\.ts$/, mutual: false, outside: NOTHING },
  // Leaves: they do not know each other, nor the dataplane.
  { name: "control planes", files: /^control\//, mutual: false, outside: ANYTHING },
  { name: "devices", files: /^device\//, mutual: false, outside: ANYTHING },
  { name: "native addon", files: /^device\/native\.ts$/, mutual: false, outside: ANYTHING },
  { name: "dataplane", files: /^dataplane\.ts$/, mutual: false, outside: NOTHING },
  { name: "explanation", files: /^explain\.ts$/, mutual: false, outside: NOTHING },
  // The shape of a configuration is known to those who act on it.
  {
    name: "configuration",
    files: /^(config(-file)?|schema|keys)\.ts$/,
    mutual: true,
    outside: ANYTHING,
  },
  { name: "addresses", files: /^addresses\.ts$/, mutual: false, outside: /^ipaddr\.js$/ },
  {
    name: "memory and contracts",
    files: /^(network|fdb|batch|remotes|counters|heartbeats|device|mirror|errors)\.ts$/,
    mutual: true,
    // Numbers of the system and the text of addresses: nothing that does or asks anything.
    outside: /^(node:os|ipaddr\.js)$/,
  },
  { name: "wire formats", files: /^wire\//, mutual: true, outside: NOTHING },
];

/** Those that lie side by side: neither is above the other. */
const SIDE_BY_SIDE = [
  ["API", "agent"],
  ["API", "agent's parts"],
  ["examination", "API"],
  ["examination", "agent"],
  ["examination", "agent's parts"],
  ["diagnosis", "API"],
  ["diagnosis", "agent"],
  ["diagnosis", "agent's parts"],
  ["control planes", "devices"],
  ["control planes", "native addon"],
  ["control planes", "dataplane"],
  ["devices", "dataplane"],
  ["native addon", "dataplane"],
  ["devices", "configuration"],
  ["native addon", "configuration"],
  ["dataplane", "configuration"],
];

const CONCRETE_DEVICE = /^device\/(?!native\.ts$)/;
/** What only those above the pure layers may do. */
const IMPURE =
  /(?<!\.)\b(process|console|performance|Date|setTimeout|setInterval|setImmediate|queueMicrotask|fetch)\b|Math\.random/;
const PURE = ["diagnosis", "explanation", "dataplane", "memory and contracts", "wire formats"];

/** A tree of sources by path from `src/`. */
type Sources = Readonly<Record<string, string>>;

function read(directory: string): Sources {
  const paths = readdirSync(directory, { recursive: true, encoding: "utf8" });
  const files = paths.filter((path) => path.endsWith(".ts"));
  return Object.fromEntries(
    files.map((path) => [path, readFileSync(join(directory, path), "utf8")]),
  );
}

/** Without comments. */
function code(source: string): string {
  return source.replace(/\/\*[\s\S]*?\*\/|(?<![:"'`\\])\/\/[^\n]*/g, "");
}

/** What a file imports, in whatever way: types, re-exports, `import()`, a worker's entry. */
function imports(path: string, source: string): string[] {
  const text = code(source);
  const ways = [
    /\b(?:import|export)\s[^"'`;]*?\bfrom\s*["']([^"']+)["']/g,
    /\bimport\s*["']([^"']+)["']/g,
    /\bimport\s*\(\s*["'`]([^"'`]+)["'`]/g,
    /\bnew URL\(\s*["'`]([^"'`]+)["'`]\s*,\s*import\.meta\.url/g,
  ];
  const specifiers = ways.flatMap((way) => [...text.matchAll(way)].map((match) => match[1]!));
  return specifiers.map((specifier) => {
    if (!specifier.startsWith(".")) return specifier;
    // From `src/device/x.ts`, "../batch.ts" is "./batch.ts"; what lies outside of src/ begins "..".
    const target = posix.normalize(posix.join(posix.dirname(path), specifier));
    return `./${target.replace(/\.js$/, ".ts")}`;
  });
}

/** The last layer that claims a path: `device/native.ts` is more than a device. */
function layerOf(path: string): Layer | undefined {
  return LAYERS.filter(({ files }) => files.test(path)).at(-1);
}

function mayImport(from: Layer, to: Layer): boolean {
  if (from === to) return from.mutual;
  const beside = ([one, other]: readonly string[]) => {
    return (one === from.name && other === to.name) || (one === to.name && other === from.name);
  };
  if (SIDE_BY_SIDE.some(beside)) return false;
  return LAYERS.indexOf(from) < LAYERS.indexOf(to);
}

/** Each breach of the rules in one line. */
function breaches(sources: Sources): string[] {
  return Object.entries(sources).flatMap(([path, source]) => {
    const layer = layerOf(path);
    if (layer === undefined) return [`${path} is in no layer`];
    const found = imports(path, source).flatMap((target) => {
      if (target.startsWith("./..")) return []; // package.json and build/: no source
      if (!target.startsWith("./")) {
        return layer.outside.test(target) ? [] : [`${path} (${layer.name}) imports ${target}`];
      }
      const other = layerOf(target.slice(2));
      if (other !== undefined && mayImport(layer, other)) return [];
      return [`${path} (${layer.name}) imports ${target.slice(2)} (${other?.name})`];
    });
    const deeds = PURE.includes(layer.name) ? code(source).match(IMPURE) : null;
    return deeds === null ? found : [...found, `${path} (${layer.name}) uses ${deeds[0]}`];
  });
}

/** The files that import what matches. */
function importers(sources: Sources, target: RegExp): string[] {
  return Object.entries(sources)
    .filter(([path, source]) => imports(path, source).some((each) => target.test(each)))
    .map(([path]) => path);
}

/** The files that load an addon, in whatever way. */
function loaders(sources: Sources): string[] {
  const loads = /\.node\b|\bcreateRequire\b|\brequire\s*\(|\bdlopen\b|\bbindings\b/;
  return Object.keys(sources).filter((path) => loads.test(code(sources[path]!)));
}

const sources = read(new URL("../../src", import.meta.url).pathname);

describe("the sources", () => {
  it("import downwards only, and the pure ones do nothing but compute", () => {
    expect(breaches(sources)).toEqual([]);
  });

  it("load the native addon in one module", () => {
    expect(loaders(sources)).toEqual(["device/native.ts"]);
    const beside = importers(sources, /^\.\/device\/native\.ts$/).filter((path) => {
      return !path.startsWith("device/");
    });
    expect(beside).toEqual(["systemd.ts"]); // whose socket is no device, and has no batches
  });

  it("name concrete devices in one file", () => {
    const outside = importers(sources, /^\.\/device\/(?!native\.ts$)/).filter((path) => {
      return !CONCRETE_DEVICE.test(path);
    });
    expect(outside).toEqual(["vtep.ts"]);
  });

  it("are all in a layer, and no layer is empty", () => {
    const names = Object.keys(sources).map((path) => layerOf(path)?.name);
    expect(new Set(names)).toEqual(new Set(LAYERS.map(({ name }) => name)));
  });
});

describe("the rules", () => {
  const PLACES: [path: string, source: string, breach: string][] = [
    [
      "fdb.ts",
      'import { Dataplane } from "./dataplane.ts";',
      "fdb.ts (memory and contracts) imports dataplane.ts (dataplane)",
    ],
    [
      "wire/ip.ts",
      'import type { Batch } from "../batch.ts";',
      "wire/ip.ts (wire formats) imports batch.ts (memory and contracts)",
    ],
    [
      "wire/ip.ts",
      'import { constants } from "node:os";',
      "wire/ip.ts (wire formats) imports node:os",
    ],
    [
      "network.ts",
      'import * as fs from "node:fs";',
      "network.ts (memory and contracts) imports node:fs",
    ],
    ["dataplane.ts", 'import { pino } from "pino";', "dataplane.ts (dataplane) imports pino"],
    [
      "dataplane.ts",
      'export * from "./device/memory.ts";',
      "dataplane.ts (dataplane) imports device/memory.ts (devices)",
    ],
    ["dataplane.ts", "const now = Date.now();", "dataplane.ts (dataplane) uses Date"],
    ["fdb.ts", "console.log(1);", "fdb.ts (memory and contracts) uses console"],
    [
      "device/tap.ts",
      'import {\n  a,\n  b,\n} from "./memory.ts";',
      "device/tap.ts (devices) imports device/memory.ts (devices)",
    ],
    [
      "device/tap.ts",
      'import("../control/static.ts");',
      "device/tap.ts (devices) imports control/static.ts (control planes)",
    ],
    [
      "device/tap.ts",
      'import "../dataplane.ts";',
      "device/tap.ts (devices) imports dataplane.ts (dataplane)",
    ],
    [
      "control/static.ts",
      'import type { Tap } from "../device/tap.ts";',
      "control/static.ts (control planes) imports device/tap.ts (devices)",
    ],
    [
      "control/static.ts",
      'import { Agent } from "../agent.ts";',
      "control/static.ts (control planes) imports agent.ts (agent)",
    ],
    [
      "vtep.ts",
      'new Worker(new URL("./worker.js", import.meta.url));',
      "vtep.ts (composition root) imports worker.ts (agent)",
    ],
    [
      "host.ts",
      'import { survey } from "./survey.ts";',
      "host.ts (host) imports survey.ts (survey)",
    ],
    ["utils.ts", "", "utils.ts is in no layer"],
  ];
  it.each(PLACES)("are broken by %s: %s", (path, source, breach) => {
    expect(breaches({ [path]: source })).toEqual([breach]);
  });

  it.each([
    ["cli.ts", 'import { Agent } from "./agent.ts"; import { pino } from "pino";'],
    ["agent.ts", 'new Worker(new URL("./worker.js", import.meta.url));'],
    ["vtep.ts", 'import { A } from "./device/tap.ts"; import { B } from "./dataplane.ts";'],
    ["device/tap.ts", 'import { A } from "./native.ts"; import { B } from "../device.ts";'],
    ["dataplane.ts", '// Date.now() is "./agent.ts"\nimport type { A } from "./network.ts";'],
    ["counters.ts", 'import { constants } from "node:os"; /* from "node:fs" */'],
  ])("are kept by %s: %s", (path, source) => {
    expect(breaches({ [path]: source })).toEqual([]);
  });

  it.each([
    'const addon = createRequire(import.meta.url)("../build/x");',
    'process.dlopen(module, "x");',
    'load("../../build/Release/vtep.node");',
  ])("know a loader of an addon by %s", (source) => {
    expect(loaders({ "vtep.ts": source, "agent.ts": "// vtep.node" })).toEqual(["vtep.ts"]);
  });

  it("read nearly every import there is: as many as the word occurs", () => {
    for (const [path, source] of Object.entries(sources)) {
      const words = code(source).match(/^(?:import|export)\b[^;]*?\bfrom "|\bimport\(/gm) ?? [];
      expect(imports(path, source).length, path).toBeGreaterThanOrEqual(words.length);
    }
  });
});
