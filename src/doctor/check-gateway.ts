/** Whether containers get through the gateways of networks, and have addresses that are this host's to give. */
import { bare, formatRange, isWithin, sizeOf } from "../addresses.ts";
import { attachmentOf } from "../attachments.ts";
import type { NetworkConfig } from "../config.ts";
import { toolOf } from "./check-filters.ts";
import { type Facts, isUnseen, runningNetworks, runs } from "./facts.ts";
import { counted, type Finding, listed } from "./finding.ts";
import type { Chain, Rule, Table } from "./ruleset.ts";

/** From this share of a range on it is told that it ends. */
const NEARLY = 0.9;

export function checkGateways(facts: Facts): Finding[] {
  const routed = facts.config.networks.filter(({ gateway }) => gateway.length > 0);
  return [
    ...checkForwarding(facts, routed),
    ...routed.flatMap((network) => checkAddresses(facts, network)),
    ...routed.flatMap((network) => checkFilter(facts, network)),
    ...facts.config.networks.flatMap((network) => checkRanges(facts, network)),
  ];
}

function checkForwarding(facts: Facts, routed: readonly NetworkConfig[]): Finding[] {
  const used = new Set(routed.flatMap(({ gateway }) => gateway.map(familyOf)));
  return [...used].map((family): Finding => {
    const check = "gateway";
    const setting = family === 4 ? "net.ipv4.ip_forward" : "net.ipv6.conf.all.forwarding";
    if (facts.forwarding.includes(family)) {
      return { check, severity: "ok", finding: `IPv${family} is forwarded (${setting})` };
    }
    const off = `IPv${family} is not forwarded (${setting} is 0)`;
    if (!runs(facts)) {
      return { check, severity: "ok", finding: `${off}, which vtep run switches on` };
    }
    return {
      check,
      severity: "error",
      finding: `${off}: containers get no further than the gateway`,
      remedy: "switch it on, here and in /etc/sysctl.d",
      commands: [`sysctl -w ${setting}=1`],
    };
  });
}

/** The agent gives them to the bridge once; what else sets addresses may take them away. */
function checkAddresses(facts: Facts, { vni, bridge, gateway }: NetworkConfig): Finding[] {
  const running = runningNetworks(facts).find((network) => network.vni === vni);
  if (running === undefined) return [];
  const { mac } = running; // every gateway's TAP and bridge have the same
  const { address = mac, addr_info = [] } = facts.links.get(bridge!) ?? {};
  const there = new Set(addr_info.map(({ local, prefixlen }) => `${local}/${prefixlen}`));
  const lost = gateway
    .filter((address) => !there.has(address))
    .map((address) => ({ what: `address ${address}`, words: `addr add ${address} dev ${bridge}` }));
  if (running.gateway.length > 0 && address !== mac) {
    lost.push({ what: `MAC address ${mac}`, words: `link set dev ${bridge} address ${mac}` });
  }
  return lost.map(({ what, words }) => ({
    check: "gateway",
    subject: `${vni}`,
    severity: "error",
    finding: `network ${vni}: ${bridge} has lost the gateway's ${what}`,
    remedy: "give it back, which vtep reload does too, and see what else sets addresses here",
    commands: [`ip ${words}`],
  }));
}

/**
 * Docker, for one, drops all that is forwarded and not its own, and firewalld refuses what none of its zones lets
 * pass. What a table drops, no other lets pass.
 */
function checkFilter({ filters }: Facts, { vni, bridge, gateway }: NetworkConfig): Finding[] {
  if (isUnseen(filters)) return []; // that is told already
  const families = new Set(["inet", ...gateway.map((each) => (each.includes(":") ? "ip6" : "ip"))]);
  return filters.flatMap((table) => {
    const [base] = [...table.chains.values()].filter((chain) => closerOf(chain) !== undefined);
    if (base === undefined || !families.has(table.family) || names(table, bridge!)) return [];
    return {
      check: "gateway",
      subject: `${vni}`,
      severity: "warning",
      finding: `what is forwarded from and to ${bridge} is dropped by ${closerOf(base)} of chain ${base.name} (${toolOf(table)}, table ${table.name}), where no rule names it`,
      ...acceptance(table, base, bridge!),
    };
  });
}

/** What drops whatever no rule lets pass, where a chain has that. */
function closerOf({ base, rules }: Chain): string | undefined {
  if (base?.hook !== "forward") return undefined;
  const last = rules.find((rule) => verdictOnAll(rule) !== undefined);
  if (last === undefined) return base.policy === "drop" ? "the policy" : undefined;
  return verdictOnAll(last) === "accept" ? undefined : `"${last.text}"`;
}

/** What becomes of every packet that gets to a rule; undefined where it has a condition, or others follow. */
function verdictOnAll({ terms }: Rule): string | undefined {
  const words = terms.flatMap((term) => Object.keys(term));
  const [said, ...more] = words.filter((word) => word !== "counter" && word !== "log");
  const isLast = more.length === 0 && ["accept", "drop", "reject"].includes(said!);
  return isLast ? said : undefined;
}

function names({ chains }: Table, bridge: string): boolean {
  const rules = [...chains.values()].flatMap((chain) => chain.rules);
  return rules.some(({ text }) => text.split(/[\s"]+/).includes(bridge));
}

function acceptance(
  table: Table,
  base: Chain,
  bridge: string,
): Pick<Finding, "remedy" | "commands"> {
  if (table.name === "firewalld") {
    // What others put into its table goes with its next reload, or is refused (NftablesTableOwner=).
    const zone = `firewall-cmd --permanent --zone=trusted --add-interface=${bridge}`;
    const remedy = "let it pass, and with it containers to all ports of this host";
    return { remedy, commands: [zone, "firewall-cmd --reload"] };
  }
  const remedy = "let it pass";
  const tool = toolOf(table);
  if (tool === "nft") {
    const rule = `nft insert rule ${table.family} ${table.name} ${base.name}`;
    const commands = ["iifname", "oifname"].map((way) => `${rule} ${way} ${bridge} accept`);
    return { remedy, commands };
  }
  // Docker's own chain for what others want; it keeps that when it starts again.
  const chain = table.chains.has("DOCKER-USER") ? "DOCKER-USER" : base.name;
  const commands = ["-i", "-o"].map((way) => `${tool} -I ${chain} ${way} ${bridge} -j ACCEPT`);
  return { remedy, commands };
}

/** What is in no range of this host may be in another's. */
function checkRanges({ links }: Facts, { name, vni, ranges }: NetworkConfig): Finding[] {
  if (ranges.length === 0) return [];
  const attached = [...new Set(links.values())].flatMap((link) => {
    const found = attachmentOf(link);
    return found?.network === name ? [found] : [];
  });
  const addresses = attached.flatMap((each) => each.addresses.map(bare));
  const strange = addresses.filter((address) => !ranges.some((range) => isWithin(address, range)));
  const outside: Finding[] =
    strange.length === 0
      ? []
      : [
          {
            check: "ranges",
            subject: `${vni}`,
            severity: "warning",
            finding: `network ${vni}: ${listed(strange)} of containers here ${strange.length === 1 ? "is" : "are"} in no range of this host, so another host may give the same`,
            remedy: "attach them with --ip auto, or give this host a range that has them",
          },
        ];
  const usage = ranges.map((range): Finding => {
    const used = addresses.filter((address) => isWithin(address, range)).length;
    const size = sizeOf(range);
    const said = `network ${vni}: ${used} of ${counted(size, "address")} of ${formatRange(range)} in use`;
    const check = "ranges";
    if (used < NEARLY * size) return { check, subject: `${vni}`, severity: "ok", finding: said };
    const severity = used < size ? "warning" : "error";
    return { check, subject: `${vni}`, severity, finding: said, remedy: "widen the range" };
  });
  return [...outside, ...usage];
}

function familyOf(address: string): 4 | 6 {
  return address.includes(":") ? 6 : 4;
}
