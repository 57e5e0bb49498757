/** What the host's packet filters and conntrack do to VXLAN. */
import { peersOf } from "../survey.ts";
import { localAddresses } from "./check-sockets.ts";
import { type Facts, isUnseen } from "./facts.ts";
import { type Finding, listed, unseenFinding } from "./finding.ts";
import { type Datagram, type Obstacle, type Passage, pass } from "./firewall.ts";
import type { Table, Tool } from "./ruleset.ts";

/** Peers whose datagrams are judged: rules times peers is a long time on large hosts. */
const MOST_PEERS = 64;

type FilterFacts = Pick<Facts, "config" | "agent" | "routes" | "filters" | "conntrack">;

export function checkFilters(facts: FilterFacts): Finding[] {
  const { filters } = facts;
  if (isUnseen(filters)) {
    return [unseenFinding("firewall", "packet filters were", filters), checkConntrack(facts, [])];
  }
  const datagrams = datagramsOf(facts);
  const passages = datagrams.map((datagram) => ({ datagram, ...pass(filters, datagram) }));
  return [...checkFirewall(facts, passages), checkConntrack(facts, passages)];
}

type Judged = Passage & { readonly datagram: Datagram };

function datagramsOf(facts: FilterFacts): Datagram[] {
  const { config, routes } = facts;
  const { port, underlay } = config;
  const locals = localAddresses(facts);
  const peers = peersOf(config).filter((peer) => routes.has(peer));
  return peers.slice(0, MOST_PEERS).flatMap((peer): Datagram[] => {
    const { device, source } = routes.get(peer)!;
    const local = locals.find((each) => each.includes(":") === peer.includes(":")) ?? source;
    return [
      { direction: "in", source: peer, destination: local, sourcePorts: [1, 65_535], device, port },
      {
        direction: "out",
        source: local,
        destination: peer,
        sourcePorts: underlay === "dgram" ? [port, port] : config.sourcePorts,
        device,
        port,
      },
    ];
  });
}

/** One finding a rule, whomever it concerns. */
function checkFirewall({ config: { port } }: FilterFacts, passages: readonly Judged[]): Finding[] {
  const met = new Map<string, { obstacle: Obstacle; datagrams: Datagram[] }>();
  for (const { datagram, obstacles } of passages) {
    for (const obstacle of obstacles) {
      const { table, base, chain, rule, sure, kind } = obstacle;
      const place = [table.tool, table.family, table.name, base.name, chain.name];
      const which = rule?.handle ?? rule?.text ?? "policy";
      const key = [...place, which, sure, kind, datagram.direction].join(" ");
      const entry = met.get(key) ?? { obstacle, datagrams: [] };
      entry.datagrams.push(datagram);
      met.set(key, entry);
    }
  }
  const findings = [...met.values()].map(({ obstacle, datagrams }) => {
    return firewallFinding(obstacle, datagrams, port);
  });
  if (findings.some(({ severity }) => severity !== "note")) return findings;
  const finding = `no rule of nft or iptables is seen to keep UDP port ${port} from the peers (tc, XDP and bridge tables not looked at)`;
  return [{ check: "firewall", severity: "ok", finding }, ...findings];
}

function firewallFinding(obstacle: Obstacle, datagrams: Datagram[], port: number): Finding {
  const { kind, sure, table, base, chain, rule } = obstacle;
  const inwards = datagrams[0]!.direction === "in";
  const whom = datagrams.map(({ source, destination }) => (inwards ? source : destination));
  const who = `VXLAN ${inwards ? "from" : "to"} ${listed(whom)}`;
  const fate = kind === "drop" ? "dropped" : "sent elsewhere";
  const where = `${toolOf(table)}, ${nameOf(table)}, chain ${chain.name}`;
  const what = rule === undefined ? `the policy of ${where}` : `"${rule.text}" (${where})`;
  const finding = `${who} ${sure ? "is" : "may be"} ${fate} by ${what}`;
  return {
    check: "firewall",
    subject: base.name,
    severity: sure ? "error" : isAboutPort(obstacle) ? "warning" : "note",
    finding: sure ? finding : `${finding}; its conditions cannot all be judged from here`,
    remedy: sure ? "let it pass before that" : "look at it; this lets VXLAN pass before that",
    commands: [acceptance(obstacle, port)],
  };
}

/** Rules that ask for a port concern VXLAN, as others hardly do, and policies whatever was not let in. */
function isAboutPort({ rule }: Obstacle): boolean {
  return rule === undefined || /"field":"dport"/.test(JSON.stringify(rule.terms));
}

/** The tables that iptables-nft makes are nft's too, but are to be changed with iptables. */
export function toolOf({ tool, family, name, chains }: Table): Tool {
  const builtIn = ["INPUT", "OUTPUT", "PREROUTING", "POSTROUTING"];
  const standard = ["filter", "nat", "mangle", "raw", "security"].includes(name);
  if (tool !== "nft" || !standard || !builtIn.some((chain) => chains.has(chain))) return tool;
  if (family !== "ip" && family !== "ip6") return tool;
  return family === "ip" ? "iptables" : "ip6tables";
}

function nameOf(table: Table): string {
  return toolOf(table) === "nft" ? `table ${table.family} ${table.name}` : `table ${table.name}`;
}

function acceptance({ table, base }: Obstacle, port: number): string {
  const tool = toolOf(table);
  if (tool === "nft") {
    return `nft insert rule ${table.family} ${table.name} ${base.name} udp dport ${port} accept`;
  }
  const of = table.name === "filter" ? "" : ` -t ${table.name}`;
  return `${tool}${of} -I ${base.name} -p udp --dport ${port} -j ACCEPT`;
}

/** At these shares of its table, conntrack is near to dropping what is new. */
const CROWDED = 0.7;
const FULL = 0.9;

/** Each inner flow has a source port of its own, so each takes an entry, one a direction. */
function checkConntrack({ conntrack, config }: FilterFacts, passages: readonly Judged[]): Finding {
  const check = "conntrack";
  if (conntrack === undefined || conntrack.count === 0) {
    return { check, severity: "ok", finding: "conntrack tracks nothing here" };
  }
  const { count, max } = conntrack;
  const share = count / max;
  const fill = `conntrack holds ${count} of at most ${max} entries`;
  if (passages.length > 0 && passages.every(({ tracked }) => tracked === "no")) {
    const crowded = share >= CROWDED;
    if (!crowded)
      return { check, severity: "ok", finding: `${fill}, none of them VXLAN's (NOTRACK)` };
    return {
      check,
      severity: "warning",
      finding: `${fill}; VXLAN is not tracked (NOTRACK), but what else is new will be dropped`,
      remedy: "raise the limit",
      commands: [`sysctl -w net.netfilter.nf_conntrack_max=${2 * max}`],
    };
  }
  return {
    check,
    severity: share >= FULL ? "error" : share >= CROWDED ? "warning" : "note",
    finding: `${fill}; every inner flow takes more, which no answer ever confirms`,
    remedy: "do not track VXLAN",
    commands: notrack(config.port),
  };
}

function notrack(port: number): string[] {
  const chain = (hook: string) =>
    `  chain ${hook} { type filter hook ${hook} priority raw; udp dport ${port} notrack; }`;
  return [
    "nft -f - <<END",
    "table inet vtep_notrack {",
    chain("prerouting"),
    chain("output"),
    "}",
    "END",
  ];
}
