/**
 * The nftables table of the gateways: what masquerades what leaves them, and takes published ports to
 * containers. It is made anew as a whole in one transaction, and is the only table that is ever touched.
 *
 * Forwarding itself is not filtered here: a packet that another table drops stays dropped (nft(8), "base
 * chains"), so nothing here could let it pass.
 */
import { type Published, stableMac } from "./attachments.ts";

/** A network that is routed on this host. */
export interface Routed {
  /** The interface that has the gateway's addresses. */
  readonly bridge: string;
  /** Prefixes. */
  readonly subnets: readonly string[];
  readonly masquerade: boolean;
}

/** A port of this host that is a container's, whose address is `to`. */
export type Publication = Published & { readonly to: string };

/** What `nft -f` has to be given; with nothing to do, that there is no table. */
export function natTable(
  table: string,
  routed: readonly Routed[],
  publications: readonly Publication[],
): string {
  const head = `table inet ${table}\ndelete table inet ${table}\n`;
  const masqueraded = routed
    .filter(({ masquerade }) => masquerade)
    .flatMap(({ subnets }) => subnets);
  const bridges = routed.map(({ bridge }) => `"${bridge}"`).join(", ");
  const outward = [
    `oifname { ${bridges} } return`, // once for all: in each rule they would be their number's square
    ...masqueraded.map((subnet) => `${ip(subnet)} saddr ${subnet} masquerade`),
  ];
  // A container that calls the published port of its neighbour has to hear the answer from here.
  const back = routed
    .flatMap(({ subnets }) => subnets)
    .map(
      (subnet) =>
        `${ip(subnet)} saddr ${subnet} ${ip(subnet)} daddr ${subnet} ct status dnat masquerade`,
    );
  const places = placesOf(publications);
  const inward = places.map((each) => {
    const targets = each.map(({ port, to, toPort }) => `${port} : ${to} . ${toPort}`);
    const [{ protocol, to }] = each;
    return `${portsOf(each)} dnat ${ip(to)} to ${protocol} dport map { ${targets.join(", ")} }`;
  });
  const zones = places.flatMap(zoneRules);
  const chains = [
    chain("prerouting", "filter", -300, zones),
    chain("output", "filter", -300, zones),
    chain("postrouting", "nat", 100, [
      ...(inward.length > 0 ? back : []),
      ...(masqueraded.length > 0 ? outward : []),
    ]),
    chain("prerouting", "nat", -100, inward),
    chain("output", "nat", -100, inward), // what this host itself calls
  ].join("");
  return chains === "" ? head : `${head}table inet ${table} {\n${chains}}\n`;
}

type Publications = readonly [Publication, ...Publication[]];

/**
 * Those of each place, that is protocol and address of this host, the first of each port: a place has a rule with all
 * its ports. With one for each port, every packet of this host would be compared with each of them.
 */
function placesOf(publications: readonly Publication[]): Publications[] {
  const places = new Map<string, Map<number, Publication>>();
  for (const each of publications) {
    const key = `${each.protocol} ${placeOf(each)}`;
    const ports = places.get(key) ?? new Map<number, Publication>();
    places.set(key, ports);
    if (!ports.has(each.port)) ports.set(each.port, each);
  }
  return [...places.values()].map((ports) => [...ports.values()] as unknown as Publications);
}

/** What is sent to their ports: these first, for most of what comes is sent to others. */
function portsOf(publications: Publications): string {
  const [{ protocol, ...at }] = publications;
  const ports = publications.map(({ port }) => port).join(", ");
  return `${protocol} dport { ${ports} } ${placeOf(at)}`;
}

/** What is sent to where it is published. */
function placeOf({ address, to }: Pick<Publication, "address" | "to">): string {
  // Nothing is routed from 127.0.0.1 to elsewhere.
  const loopback = to.includes(":") ? "::1" : "127.0.0.0/8";
  return `${ip(to)} daddr ${address ?? `!= ${loopback} fib daddr type local`}`;
}

/**
 * Conntrack knows a flow of UDP for as long as it goes on, and asks no rule again where that goes: what was sent to
 * a container that is gone, or before there was one, would never get to the one that has the port now. So flows
 * that come for a container are known in a zone of their own, by which others' are not found. Its answers are
 * looked for in none; an ICMP error about one is known by the port in it, 28 or 48 bytes behind its beginning.
 */
function zoneRules(publications: Publications): string[] {
  const [{ protocol, ...at }] = publications;
  if (protocol !== "udp") return [];
  const zones = publications.map(({ port, to, toPort }) => {
    const { low } = stableMac(`${to} ${toPort}`); // a number that is always the same for the same text
    return `${port} : ${1 + ((low >>> 0) % 0xffff)}`; // 0 is that of everything else
  });
  const zone = (port: string) => `ct original zone set ${port} map { ${zones.join(", ")} }`;
  const [icmp, inner, source] = at.to.includes(":") ? ["icmpv6", 112, 384] : ["icmp", 136, 224];
  const about = `meta l4proto ${icmp} @th,${inner},8 17 ${placeOf(at)}`;
  return [`${portsOf(publications)} ${zone("udp dport")}`, `${about} ${zone(`@th,${source},16`)}`];
}

/** Priorities are those of NF_IP_PRI_RAW, _NAT_SRC and _NAT_DST (include/uapi/linux/netfilter_ipv4.h). */
function chain(hook: string, type: string, priority: number, rules: readonly string[]): string {
  if (rules.length === 0) return "";
  const kind = `type ${type} hook ${hook} priority ${priority}; policy accept;`;
  return `  chain ${type}-${hook} {\n    ${[kind, ...rules].join("\n    ")}\n  }\n`;
}

function ip(prefix: string): string {
  return prefix.includes(":") ? "ip6" : "ip";
}
