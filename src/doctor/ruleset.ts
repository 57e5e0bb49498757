/**
 * The rules of the host's packet filters: the JSON of `nft -j list ruleset`, in which nft's terms are
 * kept as they are.
 */

/** An object of nft's JSON: one key that says what it is. */
export type Term = Readonly<Record<string, unknown>>;

export interface Rule {
  readonly terms: readonly Term[];
  readonly handle?: number | undefined;
  /** As its own tool writes it. */
  readonly text: string;
}

export interface Chain {
  readonly name: string;
  readonly rules: readonly Rule[];
  /** Of base chains: those that the kernel calls. */
  readonly base?: {
    readonly hook: string;
    readonly type: string;
    readonly priority: number;
    readonly policy: string;
    /** Of a chain that is called for some devices only; undefined where that is not known. */
    readonly devices?: readonly string[] | undefined;
  };
}

/** The program that rules are changed with. */
export type Tool = "nft" | "iptables" | "ip6tables" | "iptables-legacy" | "ip6tables-legacy";

export type Answer = "yes" | "no" | "maybe";

export interface Table {
  readonly tool: Tool;
  readonly family: string;
  readonly name: string;
  readonly chains: ReadonlyMap<string, Chain>;
  /** Elements by name of a set or map. */
  readonly sets: ReadonlyMap<string, readonly unknown[]>;
  /** Whether the kernel calls its chains: "maybe" where nft does not say. */
  readonly active: Answer;
}

/** A table that is being read. */
export interface Building extends Omit<Table, "chains" | "sets"> {
  readonly chains: Map<string, Omit<Chain, "rules"> & { readonly rules: Rule[] }>;
  readonly sets: Map<string, readonly unknown[]>;
}

export function isTerm(value: unknown): value is Term {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * The tables of `nft -j list ruleset`; rules are spelt as in `nft -a list ruleset`. Throws SyntaxError
 * when it is no JSON.
 */
export function readRuleset(json: string, listing: string): Table[] {
  const spelt = spellings(listing);
  const { nftables } = JSON.parse(json) as { nftables: Record<string, NftObject>[] };
  const tables = new Map<string, Building>();
  for (const object of nftables) {
    const [kind = "", it] = Object.entries(object)[0] ?? [];
    const key = `${it?.family} ${kind === "table" ? it?.name : it?.table}`;
    if (it === undefined) continue;
    if (kind === "table") {
      const { family, name } = it;
      const empty = { chains: new Map(), sets: new Map() };
      tables.set(key, { tool: "nft", family, name, active: isActive(it), ...empty });
    }
    if (kind === "chain") {
      const base = it.hook === undefined ? {} : { base: baseOf(it, it.hook) };
      tables.get(key)?.chains.set(it.name, { name: it.name, rules: [], ...base });
    }
    if (kind === "set" || kind === "map") tables.get(key)?.sets.set(it.name, it.elem ?? []);
    if (kind === "rule") {
      const text = spelt.get(`${key} ${it.chain} ${it.handle}`) ?? JSON.stringify(it.expr);
      const rule = { terms: it.expr ?? [], handle: it.handle, text };
      tables.get(key)?.chains.get(it.chain)?.rules.push(rule);
    }
  }
  return [...tables.values()];
}

interface NftObject {
  family: string;
  table: string;
  name: string;
  chain: string;
  handle: number;
  expr?: Term[];
  elem?: unknown[];
  flags?: string | string[];
  type?: string;
  hook?: string;
  prio?: number;
  policy?: string;
  dev?: string | string[];
}

function baseOf({ type = "", prio = 0, policy = "accept", dev }: NftObject, hook: string) {
  const devices = dev === undefined ? undefined : [dev].flat();
  return { hook, type, priority: prio, policy, devices };
}

/** nft 1.0.6 gives a table's name in place of its flags. */
function isActive({ flags = [], name }: NftObject): Answer {
  const words = [flags].flat();
  if (words.includes("dormant")) return "no";
  return words.includes(name) ? "maybe" : "yes";
}

/** The text of each rule, by table, chain and handle. */
function spellings(listing: string): Map<string, string> {
  const rules = new Map<string, string>();
  let [table, chain] = ["", ""];
  for (const line of listing.split("\n")) {
    const [, family, name] = /^table (\S+) (\S+) \{/.exec(line) ?? [];
    if (family !== undefined) table = `${family} ${name}`;
    chain = /^\tchain (\S+) \{/.exec(line)?.[1] ?? chain;
    const [, text = "", handle] = /^\t\t(.*) # handle (\d+)$/.exec(line) ?? [];
    if (handle !== undefined) rules.set(`${table} ${chain} ${handle}`, text);
  }
  return rules;
}

/** Whether nft shows rules of iptables as names of modules, which `iptables-nft-save` spells out. */
export function isObscure({ family, name, chains }: Table): boolean {
  if (family !== "ip" && family !== "ip6") return false;
  if (!["filter", "nat", "mangle", "raw", "security"].includes(name)) return false;
  const rules = [...chains.values()].flatMap((chain) => chain.rules);
  return rules.some(({ terms }) => terms.some((term) => "xt" in term));
}
