/**
 * What a packet filter does to one datagram, judged from its rules without sending any.
 *
 * Every condition has one of three answers: it holds, it does not, or that cannot be told from here
 * (marks, rates, counters, chance, time, matches of other modules). A rule drops for certain if it is
 * reached for certain and all its conditions hold; else, unless one does not hold, it may.
 *
 * The datagram is the first of its flow, and as good as every later one: the answers of a peer come
 * from ports of their own (RFC 7348, section 5), so conntrack takes each direction for a new flow that
 * nobody ever answers, and "ct state established" never lets VXLAN in.
 *
 * Assumed: that the datagrams of a peer arrive on the device by which those to it leave. Not looked at:
 * tables of the bridge family, tc, XDP and other BPF programs, offloaded flows.
 */
import ipaddr from "ipaddr.js";
import { type Answer, type Chain, isTerm, type Rule, type Table, type Term } from "./ruleset.ts";

/** A datagram of VXLAN as the host's filters meet it. */
export interface Datagram {
  readonly direction: "in" | "out";
  readonly source: string;
  readonly destination: string;
  readonly device: string;
  /** The port is one of these. */
  readonly sourcePorts: readonly [low: number, high: number];
  readonly port: number;
}

export interface Obstacle {
  /** divert: sent elsewhere than to where it was addressed. */
  readonly kind: "drop" | "divert";
  /** Else whether it comes to that cannot be told from here. */
  readonly sure: boolean;
  readonly table: Table;
  /** The base chain by which it was reached. */
  readonly base: Chain;
  /** Where it stands, and its rule, if it is no chain's policy. */
  readonly chain: Chain;
  readonly rule: Rule | undefined;
}

export interface Passage {
  readonly obstacles: readonly Obstacle[];
  /** Whether conntrack makes an entry of it, where conntrack is at work. */
  readonly tracked: Answer;
}

const HOOKS = { in: ["ingress", "prerouting", "input"], out: ["output", "postrouting", "egress"] };
/** Where conntrack looks at packets first, at these hooks (NF_IP_PRI_CONNTRACK). */
const CONNTRACK = -200;
const TRACKING = ["prerouting", "output"];

/** Every obstacle is told of, also those behind one that drops for certain: all have to go. */
export function pass(tables: readonly Table[], datagram: Datagram): Passage {
  const family = ipaddr.parse(datagram.source).kind();
  const ways = tables
    .filter((table) => table.family === "inet" || table.family === "netdev" || isOf(table, family))
    .flatMap((table) => [...table.chains.values()].map((chain) => ({ table, chain })));
  const obstacles: Obstacle[] = [];
  let tracked: Answer = "yes";
  for (const hook of HOOKS[datagram.direction]) {
    const called = ways
      .filter(({ chain }) => chain.base?.hook === hook)
      .sort((a, b) => a.chain.base!.priority - b.chain.base!.priority);
    for (const { table, chain } of called) {
      const { type, devices, priority } = chain.base!;
      if (type === "nat" && tracked === "no") continue;
      const applies = both(table.active, isCalledFor(table, devices, datagram.device));
      if (applies === "no") continue;
      const isEarly = hook === "ingress" || (TRACKING.includes(hook) && priority <= CONNTRACK);
      const state = isEarly ? undefined : stateOf(tracked);
      const walk = new Walk(table, chain, datagram, hook, state);
      walk.from(chain, applies === "yes");
      obstacles.push(...walk.obstacles);
      // What conntrack has seen stays tracked (nft_notrack_eval), and what is not tracked stays so.
      if (isEarly) tracked = both(tracked, not(walk.untracked));
    }
  }
  return { obstacles, tracked };
}

function isOf(table: Table, family: "ipv4" | "ipv6"): boolean {
  return table.family === (family === "ipv4" ? "ip" : "ip6");
}

function isCalledFor(table: Table, devices: readonly string[] | undefined, device: string): Answer {
  if (devices !== undefined) return devices.includes(device) ? "yes" : "no";
  return table.family === "netdev" ? "maybe" : "yes";
}

function stateOf(tracked: Answer): string | undefined {
  if (tracked === "maybe") return undefined;
  return tracked === "yes" ? "new" : "untracked";
}

/** Statements that neither decide nor ask anything. */
const INDIFFERENT = new Set(
  "counter,log,mangle,set,map,dup,flow,last,ct helper,ct timeout,ct expectation".split(","),
);
const DIVERTS = new Set(["dnat", "redirect", "tproxy", "fwd"]);
const ACCEPTS = new Set(["accept", "masquerade", "snat"]);

/** What has become of a datagram after a rule or a chain. */
interface End {
  /** Where it certainly goes no further: in this chain, in this hook; or it may go on. */
  readonly ends: "hook" | "chain" | "not";
  /** It may have got past what follows, without having been dropped. */
  readonly escapes: boolean;
}

const GOES_ON: End = { ends: "not", escapes: false };
/** A chain that is not there, a verdict that is not known. */
const LOST: End = { ends: "not", escapes: true };

class Walk {
  readonly obstacles: Obstacle[] = [];
  untracked: Answer = "no";
  readonly #table: Table;
  readonly #base: Chain;
  readonly #fields: Fields;
  /** Chains that are being walked through: nft refuses loops, but its output is only text to us. */
  readonly #within = new Set<Chain>();

  constructor(
    table: Table,
    base: Chain,
    datagram: Datagram,
    hook: string,
    state: string | undefined,
  ) {
    this.#table = table;
    this.#base = base;
    this.#fields = new Fields(datagram, hook, state);
  }

  from(chain: Chain, sure: boolean): End {
    if (this.#within.has(chain)) return LOST;
    this.#within.add(chain);
    const end = this.#through(chain, sure);
    this.#within.delete(chain);
    return end;
  }

  #through(chain: Chain, reached: boolean): End {
    let escapes = false;
    for (const rule of chain.rules) {
      const end = this.#obey(chain, rule, reached && !escapes);
      escapes ||= end.escapes;
      if (end.ends === "hook") return { ends: "hook", escapes };
      if (end.ends === "chain") break;
    }
    if (chain.base?.policy === "drop") this.#meet("drop", reached && !escapes, chain, undefined);
    return { ends: "not", escapes };
  }

  #obey(chain: Chain, rule: Rule, reached: boolean): End {
    let holds: Answer = "yes";
    for (const term of rule.terms) {
      const [name = "", value] = Object.entries(term)[0] ?? [];
      if (INDIFFERENT.has(name)) continue;
      if (name === "notrack") this.#untrack(holds === "yes" && reached);
      else if (name === "vmap") return this.#choose(chain, rule, value as Term, holds, reached);
      else if (isVerdict(term)) return this.#verdict(chain, rule, term, holds === "yes", reached);
      else holds = both(holds, this.#condition(name, value));
      if (holds === "no") break;
    }
    return GOES_ON;
  }

  #untrack(sure: boolean): void {
    if (this.untracked !== "yes") this.untracked = sure ? "yes" : "maybe";
  }

  /** What a verdict leads to where the rule's conditions hold: for certain, or perhaps. */
  #verdict(chain: Chain, rule: Rule, verdict: Term, holds: boolean, reached: boolean): End {
    const [name = "", value] = Object.entries(verdict)[0]!;
    const ends = holds ? "hook" : "not";
    switch (name) {
      case "drop":
      case "reject":
        this.#meet("drop", reached && holds, chain, rule);
        return { ends, escapes: false };
      case "continue":
        return GOES_ON;
      case "return":
        return holds ? { ends: "chain", escapes: false } : LOST;
      case "jump":
      case "goto":
        return this.#call(value as { target: string }, name === "goto", holds, reached);
      case "queue": // a program decides
      case "xt": // a target that nft does not spell out
        this.#meet("drop", false, chain, rule);
        return { ends: holds && name === "queue" ? "hook" : "not", escapes: true };
    }
    if (DIVERTS.has(name)) this.#meet("divert", reached && holds, chain, rule);
    return { ends, escapes: true };
  }

  #call({ target }: { target: string }, forGood: boolean, holds: boolean, reached: boolean): End {
    const callee = this.#table.chains.get(target);
    const end = callee === undefined ? LOST : this.from(callee, reached && holds);
    if (!holds) return { ends: "not", escapes: end.escapes || forGood };
    const back = forGood ? "chain" : "not";
    return { ends: end.ends === "hook" ? "hook" : back, escapes: end.escapes };
  }

  /** A verdict map: that of the element which the key is, or those of all that it may be. */
  #choose(chain: Chain, rule: Rule, vmap: Term, holds: Answer, reached: boolean): End {
    const key = this.#fields.value(vmap.key);
    let escapes = false;
    for (const pair of this.#elements(vmap.data)) {
      const [element, verdict] = pair as [unknown, Term];
      const chosen = both(holds, isOne(key, element));
      if (chosen === "no") continue;
      const end = this.#verdict(chain, rule, verdict, chosen === "yes", reached && !escapes);
      escapes ||= end.escapes;
      if (chosen === "yes") return { ends: end.ends, escapes };
    }
    return { ends: "not", escapes };
  }

  #condition(name: string, value: unknown): Answer {
    if (name === "xt")
      return (value as { name?: string } | null)?.name === "comment" ? "yes" : "maybe";
    if (name !== "match") return "maybe"; // rates, quotas and the like
    const { op, left, right } = value as { op: string; left: unknown; right: unknown };
    const known = this.#fields.value(left);
    if (known === undefined) return "maybe";
    if (known === ABSENT) return "no";
    if (op === "==" || op === "in") return this.#isAmong(known, right);
    if (op === "!=") return not(this.#isAmong(known, right));
    return compare(known, op, right);
  }

  #isAmong(known: Known, right: unknown): Answer {
    const choices = this.#elements(right);
    return choices.reduce<Answer>((found, element) => either(found, isOne(known, element)), "no");
  }

  /** The elements of a set in place, of one by name, of a list; or the single value. */
  #elements(right: unknown): readonly unknown[] {
    if (Array.isArray(right)) return right;
    if (typeof right === "string" && right.startsWith("@")) {
      return this.#table.sets.get(right.slice(1)) ?? [UNKNOWN];
    }
    const set = isTerm(right) ? right.set : undefined;
    return Array.isArray(set) ? set : [right];
  }

  #meet(kind: Obstacle["kind"], sure: boolean, chain: Chain, rule: Rule | undefined): void {
    const where = { table: this.#table, base: this.#base, chain, rule };
    this.obstacles.push({ kind, sure, ...where });
  }
}

/** In place of the elements of a set that is not there. */
const UNKNOWN = { unknown: null };

const OTHER_VERDICTS = /^(drop|reject|continue|return|jump|goto|queue)$/;

function isVerdict(term: Term): boolean {
  const [name = "", value] = Object.entries(term)[0] ?? [];
  if (name === "xt") return isTerm(value) && value.type === "target";
  return OTHER_VERDICTS.test(name) || DIVERTS.has(name) || ACCEPTS.has(name);
}

/**
 * What is known of a field: a number between two, a text in each of its spellings, parts of a
 * concatenation. ABSENT: there is no such header, so whatever asks about it does not match.
 */
type Known =
  | { readonly low: bigint; readonly high: bigint }
  | { readonly spellings: readonly unknown[] }
  | { readonly parts: readonly (Known | typeof ABSENT | undefined)[] };
const ABSENT = "absent";
type Value = Known | typeof ABSENT | undefined;

const OTHER_PROTOCOLS = /^(tcp|sctp|dccp|udplite|icmp|icmpv6|igmp|esp|ah|comp|arp|tcp option)$/;

/** The fields of a datagram, by the terms with which nft asks for them. */
class Fields {
  readonly #datagram: Datagram;
  readonly #hook: string;
  readonly #state: string | undefined;
  readonly #is6: boolean;

  constructor(datagram: Datagram, hook: string, state: string | undefined) {
    this.#datagram = datagram;
    this.#hook = hook;
    this.#state = state;
    this.#is6 = ipaddr.parse(datagram.source).kind() === "ipv6";
  }

  value(left: unknown): Value {
    if (!isTerm(left)) return undefined;
    const [name = "", of] = Object.entries(left)[0] ?? [];
    if (name === "concat") return { parts: (of as unknown[]).map((part) => this.value(part)) };
    if (name === "&") return masked(this.value((of as unknown[])[0]), (of as unknown[])[1]);
    if (!isTerm(of)) return undefined;
    if (name === "payload") return this.#payload(String(of.protocol), String(of.field));
    if (name === "meta") return this.#meta(String(of.key));
    if (name === "ct") return this.#ct(String(of.key));
    if (name === "fib") return this.#fib(of);
    if (name === "tcp option") return ABSENT;
    return undefined;
  }

  #payload(protocol: string, field: string): Value {
    const { source, destination, port, sourcePorts } = this.#datagram;
    if (OTHER_PROTOCOLS.test(protocol)) return ABSENT;
    if (protocol === "udp" || protocol === "th") {
      if (field === "dport") return between(port, port);
      return field === "sport" ? between(...sourcePorts) : undefined;
    }
    if (protocol !== "ip" && protocol !== "ip6") return undefined;
    if ((protocol === "ip6") !== this.#is6) return ABSENT;
    switch (field) {
      case "saddr":
        return numeric(source);
      case "daddr":
        return numeric(destination);
      case "protocol":
      case "nexthdr":
        return UDP;
      case "frag-off":
        return between(DONT_FRAGMENT, DONT_FRAGMENT);
    }
    return undefined;
  }

  #meta(key: string): Value {
    const { direction, device } = this.#datagram;
    switch (key) {
      case "l4proto":
        return UDP;
      case "nfproto":
        return this.#is6 ? { spellings: ["ipv6", 10] } : { spellings: ["ipv4", 2] };
      case "protocol":
        return this.#is6 ? { spellings: ["ip6"] } : { spellings: ["ip"] };
      case "pkttype":
        return direction === "in" ? { spellings: ["host", "unicast", 0] } : undefined;
      case "iif":
      case "iifname":
        return { spellings: [direction === "in" ? device : ""] };
      case "oif":
      case "oifname":
        return { spellings: [direction === "out" ? device : ""] };
    }
    return undefined;
  }

  #ct(key: string): Value {
    if (key === "state" && this.#state !== undefined) return { spellings: [this.#state] };
    return key === "direction" ? { spellings: ["original", 0] } : undefined;
  }

  #fib({ result, flags }: Term): Value {
    const asked = [flags].flat();
    if (result !== "type" || this.#hook === "ingress") return undefined;
    const isOurs = asked.includes("daddr") === (this.#datagram.direction === "in");
    return { spellings: [isOurs ? "local" : "unicast"] };
  }
}

const UDP: Known = { spellings: ["udp", 17] };
/** Of what is not to be fragmented, as most is not; of fragments nothing is foretold. */
const DONT_FRAGMENT = 0x4000;

function between(low: number, high: number): Known {
  return { low: BigInt(low), high: BigInt(high) };
}

function numeric(address: string): Known {
  const value = addressValue(address);
  return { low: value, high: value };
}

function masked(value: Value, mask: unknown): Value {
  if (typeof value !== "object" || !("low" in value) || value.low !== value.high) return undefined;
  if (typeof mask !== "number") return undefined;
  const bits = value.low & BigInt(mask);
  return { low: bits, high: bits };
}

function addressValue(address: string): bigint {
  return BigInt(`0x${Buffer.from(ipaddr.parse(address).toByteArray()).toString("hex")}`);
}

/** Whether a field is an element of a set: a value, a range, a prefix, or one of these with an age. */
function isOne(known: Value, element: unknown): Answer {
  if (known === undefined) return "maybe";
  if (known === ABSENT) return "no";
  if (isTerm(element) && isTerm(element.elem)) return isOne(known, element.elem.val);
  if (element === "*") return "yes";
  if ("parts" in known) {
    const parts = isTerm(element) ? element.concat : undefined;
    if (!Array.isArray(parts)) return "maybe";
    return known.parts.reduce<Answer>((all, part, at) => both(all, isOne(part, parts[at])), "yes");
  }
  if ("spellings" in known) return isSpelt(known.spellings, element);
  const bounds = boundsOf(element);
  if (bounds === undefined) return "maybe";
  if (bounds.low <= known.low && known.high <= bounds.high) return "yes";
  return known.high < bounds.low || bounds.high < known.low ? "no" : "maybe";
}

function isSpelt(spellings: readonly unknown[], element: unknown): Answer {
  if (typeof element !== "string") {
    return typeof element === "number" ? yesOrNo(spellings.includes(element)) : "maybe";
  }
  if (!element.endsWith("*")) return yesOrNo(spellings.includes(element));
  const start = element.slice(0, -1);
  return yesOrNo(spellings.some((text) => typeof text === "string" && text.startsWith(start)));
}

function compare(known: Known, op: string, right: unknown): Answer {
  const bounds = boundsOf(right);
  if (!("low" in known) || bounds === undefined) return "maybe";
  const { low, high } = known;
  switch (op) {
    case "<":
      return high < bounds.low ? "yes" : low >= bounds.low ? "no" : "maybe";
    case "<=":
      return high <= bounds.low ? "yes" : low > bounds.low ? "no" : "maybe";
    case ">":
      return low > bounds.low ? "yes" : high <= bounds.low ? "no" : "maybe";
    case ">=":
      return low >= bounds.low ? "yes" : high < bounds.low ? "no" : "maybe";
  }
  return "maybe";
}

interface Bounds {
  readonly low: bigint;
  readonly high: bigint;
}

function boundsOf(element: unknown): Bounds | undefined {
  if (typeof element === "number") return { low: BigInt(element), high: BigInt(element) };
  if (typeof element === "string") {
    if (!ipaddr.isValid(element)) return undefined;
    const value = addressValue(element);
    return { low: value, high: value };
  }
  if (!isTerm(element)) return undefined;
  if (Array.isArray(element.range)) {
    const [low, high] = element.range.map(boundsOf);
    return low && high && { low: low.low, high: high.high };
  }
  if (!isTerm(element.prefix)) return undefined;
  const { addr, len } = element.prefix as { addr: string; len: number };
  const first = boundsOf(addr);
  if (first === undefined) return undefined;
  const bits = ipaddr.parse(addr).kind() === "ipv4" ? 32 : 128;
  const span = (1n << BigInt(bits - len)) - 1n;
  return { low: first.low & ~span, high: first.low | span };
}

function yesOrNo(holds: boolean): Answer {
  return holds ? "yes" : "no";
}

function both(one: Answer, other: Answer): Answer {
  if (one === "no" || other === "no") return "no";
  return one === "yes" ? other : one;
}

function either(one: Answer, other: Answer): Answer {
  if (one === "yes" || other === "yes") return "yes";
  return one === "no" ? other : one;
}

function not(answer: Answer): Answer {
  return answer === "maybe" ? answer : yesOrNo(answer === "no");
}
