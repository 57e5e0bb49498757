/**
 * The rules of iptables, as `iptables-save` writes them, in the terms of nft, so that one judge
 * (`firewall.ts`) knows both. Options that are not translated become conditions that cannot be told.
 */
import type { Building, Chain, Table, Term, Tool } from "./ruleset.ts";

/** Which hook a chain is called by, and when: NF_IP_PRI_ of include/uapi/linux/netfilter_ipv4.h. */
const HOOKS: Readonly<Record<string, string>> = {
  PREROUTING: "prerouting",
  INPUT: "input",
  FORWARD: "forward",
  OUTPUT: "output",
  POSTROUTING: "postrouting",
};
const PRIORITIES: Readonly<Record<string, number>> = {
  raw: -300,
  mangle: -150,
  nat: -100,
  filter: 0,
  security: 50,
};

/** The tables of one `iptables-save`. */
export function readSave(save: string, tool: Tool): Table[] {
  const family = tool.startsWith("ip6") ? "ip6" : "ip";
  const tables: Building[] = [];
  for (const line of save.split("\n")) {
    const chains = tables.at(-1)?.chains;
    const name = /^\*(\S+)/.exec(line)?.[1];
    if (name !== undefined) {
      tables.push({ tool, family, name, chains: new Map(), sets: new Map(), active: "yes" });
    }
    const [, chain = "", policy = ""] = /^:(\S+) (\S+)/.exec(line) ?? [];
    if (chain !== "") {
      chains?.set(chain, { name: chain, rules: [], ...baseOf(tables.at(-1)!.name, chain, policy) });
    }
    const [, at = "", text = ""] = /^-A (\S+) ?(.*)$/.exec(line) ?? [];
    if (at !== "") chains?.get(at)?.rules.push({ terms: termsOf(text), text: `-A ${at} ${text}` });
  }
  return tables;
}

function baseOf(table: string, chain: string, policy: string): Pick<Chain, "base"> {
  const hook = HOOKS[chain];
  if (hook === undefined) return {};
  const priority = PRIORITIES[table] ?? 0;
  const type = table === "nat" ? "nat" : "filter";
  return { base: { hook, type, priority, policy: policy.toLowerCase() } };
}

/** The conditions of a rule in their order, then its verdict; what follows that only says how. */
function termsOf(text: string): Term[] {
  const words = wordsOf(text.replace(COMMENT, ""));
  const terms: Term[] = [];
  for (let at = 0; at < words.length; ) {
    const negated = words[at] === "!";
    const start = at + (negated ? 2 : 1);
    const option = words[start - 1]!;
    at = start;
    while (at < words.length && !/^(!$|--?[a-zA-Z])/.test(words[at]!)) at++;
    const value = words.slice(start, at).join(" ");
    if (option === "-j") return [...terms, verdictOf(value, words)];
    if (option === "-g") return [...terms, { goto: { target: value } }];
    if (option !== "-m") terms.push(conditionOf(option, value, negated));
  }
  return terms;
}

const COMMENT = /--comment ("(?:[^"\\]|\\.)*"|\S+)/;

function verdictOf(target: string, words: readonly string[]): Term {
  switch (target) {
    case "ACCEPT":
    case "DROP":
    case "REJECT":
    case "RETURN":
    case "DNAT":
    case "REDIRECT":
    case "TPROXY":
      return { [target.toLowerCase()]: null };
    case "SNAT":
    case "MASQUERADE":
      return { masquerade: null };
    case "NFQUEUE":
    case "QUEUE":
      return { queue: null };
    case "NOTRACK":
      return { notrack: null };
    case "CT":
      return words.includes("--notrack") ? { notrack: null } : { counter: null };
  }
  return INDIFFERENT_TARGETS.test(target) ? { log: null } : { jump: { target } };
}

const INDIFFERENT_TARGETS =
  /^(LOG|NFLOG|ULOG|MARK|CONNMARK|CLASSIFY|TOS|DSCP|TTL|HL|TEE|TRACE|AUDIT|TCPMSS|CHECKSUM|SECMARK|CONNSECMARK|RATEEST|SET)$/;

function conditionOf(option: string, value: string, negated: boolean): Term {
  const family = value.includes(":") ? "ip6" : "ip";
  switch (option) {
    case "-p":
    case "--protocol":
      return match(
        { meta: { key: "l4proto" } },
        /^\d+$/.test(value) ? Number(value) : value,
        negated,
      );
    case "-s":
      return match(payload(family, "saddr"), prefix(value), negated);
    case "-d":
      return match(payload(family, "daddr"), prefix(value), negated);
    case "-i":
      return match({ meta: { key: "iifname" } }, device(value), negated);
    case "-o":
      return match({ meta: { key: "oifname" } }, device(value), negated);
    case "--dport":
    case "--dports":
      return match(payload("th", "dport"), ports(value), negated);
    case "--sport":
    case "--sports":
      return match(payload("th", "sport"), ports(value), negated);
    case "--ctstate":
    case "--state":
      return match({ ct: { key: "state" } }, value.toLowerCase().split(","), negated);
    case "--dst-type":
    case "--src-type": {
      const flags = option === "--dst-type" ? "daddr" : "saddr";
      const types = value.toLowerCase().split(",");
      return match({ fib: { result: "type", flags: [flags] } }, types, negated);
    }
  }
  return { match: { op: "==", left: { option }, right: value } };
}

function match(left: Term, right: unknown, negated: boolean): Term {
  return { match: { op: negated ? "!=" : "==", left, right } };
}

function payload(protocol: string, field: string): Term {
  return { payload: { protocol, field } };
}

function prefix(value: string): unknown {
  const [addr, length] = value.split("/");
  if (length === undefined) return addr;
  if (/^\d+$/.test(length)) return { prefix: { addr, len: Number(length) } };
  return { mask: value }; // 10.0.0.1/255.0.0.255: not judged
}

/** iptables' wildcard is nft's. */
function device(value: string): string {
  return value.endsWith("+") ? `${value.slice(0, -1)}*` : value;
}

function ports(value: string): unknown {
  const choices = value.split(",").map((choice) => {
    const [low = "", high] = choice.split(":");
    if (high === undefined) return Number(low);
    return { range: [Number(low || 0), Number(high || 65_535)] };
  });
  return { set: choices };
}

/** Words, those in double quotes as one, with their backslashes undone. */
function wordsOf(text: string): string[] {
  const words = text.matchAll(/"((?:[^"\\]|\\.)*)"|(\S+)/g);
  return [...words].map(([, quoted, plain]) => quoted?.replace(/\\(.)/g, "$1") ?? plain!);
}
