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
  const inward = publications.map((each) => {
    const target = each.to.includes(":") ? `[${each.to}]` : each.to;
    return `${portOf(each)} dnat ${ip(each.to)} to ${target}:${each.toPort}`;
  });
  const zones = publications.filter(({ protocol }) => protocol === "udp").flatMap(zoneRules);
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

/** What is sent to the port. */
function portOf({ protocol, port, ...at }: Publication): string {
  return `${placeOf(at)} ${protocol} dport ${port}`;
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
function zoneRules(publication: Publication): string[] {
  const { to, toPort, port } = publication;
  const { low } = stableMac(`${to} ${toPort}`); // a number that is always the same for the same text
  const zone = `ct original zone set ${1 + ((low >>> 0) % 0xffff)}`; // 0 is that of everything else
  const [icmp, protocol, source] = to.includes(":") ? ["icmpv6", 112, 384] : ["icmp", 136, 224];
  const about = `meta l4proto ${icmp} @th,${protocol},8 17 @th,${source},16 ${port}`;
  return [`${portOf(publication)} ${zone}`, `${placeOf(publication)} ${about} ${zone}`];
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
