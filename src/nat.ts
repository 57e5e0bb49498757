/**
 * The nftables table of the gateways: what masquerades what leaves them, and takes published ports to
 * containers. It is made anew as a whole in one transaction, and is the only table that is ever touched.
 *
 * Forwarding itself is not filtered here: a packet that another table drops stays dropped (nft(8), "base
 * chains"), so nothing here could let it pass.
 */
import type { Published } from "./attachments.ts";

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
  const inward = publications.map(({ protocol, address, port, to, toPort }) => {
    const family = ip(to);
    // Nothing is routed from 127.0.0.1 to elsewhere.
    const loopback = family === "ip6" ? "::1" : "127.0.0.0/8";
    const at = address === undefined ? `!= ${loopback} fib daddr type local` : address;
    const target = family === "ip6" ? `[${to}]` : to;
    return `${family} daddr ${at} ${protocol} dport ${port} dnat ${family} to ${target}:${toPort}`;
  });
  const chains = [
    chain("postrouting", "100", [
      ...(inward.length > 0 ? back : []),
      ...(masqueraded.length > 0 ? outward : []),
    ]),
    chain("prerouting", "-100", inward),
    chain("output", "-100", inward), // what this host itself calls
  ].join("");
  return chains === "" ? head : `${head}table inet ${table} {\n${chains}}\n`;
}

/** Priorities are those of NF_IP_PRI_NAT_SRC and _DST (include/uapi/linux/netfilter_ipv4.h). */
function chain(hook: string, priority: string, rules: readonly string[]): string {
  if (rules.length === 0) return "";
  const type = `type nat hook ${hook} priority ${priority}; policy accept;`;
  return `  chain ${hook} {\n    ${[type, ...rules].join("\n    ")}\n  }\n`;
}

function ip(prefix: string): string {
  return prefix.includes(":") ? "ip6" : "ip";
}
