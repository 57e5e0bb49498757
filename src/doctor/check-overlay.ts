/** Bridges, MAC addresses, and what a running agent has seen of the traffic. */

import { OFFLOADS } from "../device.ts";
import type { Link } from "../host.ts";
import { overlayDevices } from "./check-paths.ts";
import { type AgentFacts, type Facts, isUnseen, runningNetworks } from "./facts.ts";
import { counted, type Finding, listed, unseenFinding } from "./finding.ts";

export function checkOverlay(facts: Facts): Finding[] {
  return [
    ...checkNetworks(facts),
    ...checkTaps(facts),
    ...checkStations(facts),
    checkBridgeFilter(facts),
    ...checkMacs(facts),
    ...checkTraffic(facts),
  ];
}

/** The agent has not read the file since, was told to remove them, or lost them. */
function checkNetworks({ agent, config, hasFile }: Facts): Finding[] {
  if (!hasFile || isUnseen(agent)) return [];
  const known = new Set(agent.networks.map(({ vni }) => vni));
  const reasons = new Map(agent.gone.map(({ vni, reason }) => [vni, reason]));
  const missing = config.networks.filter(({ vni }) => !known.has(vni));
  return missing.map(({ vni, name }) => {
    const reason = reasons.get(vni);
    const [why, remedy] =
      reason === undefined
        ? ["", "have it read the file again, which says why where it cannot"]
        : [
            `: ${reason}`,
            "mend that; it tries again every half minute, and when it reads the file",
          ];
    return {
      check: "network",
      subject: `${vni}`,
      severity: "warning",
      finding: `network ${name} is configured, and the agent does not have it${why}`,
      remedy,
      commands: ["vtep reload"],
    };
  });
}

/**
 * Whether the links are still as the agent made them, which sets them once: whatever else manages links may
 * have changed them since. A TAP that is not here is in its container.
 */
function checkTaps(facts: Facts): Finding[] {
  const taps = runningNetworks(facts).filter((network) => linkOf(network, facts));
  const found = taps.flatMap((network) => {
    const changes = changesOf(network, facts);
    return changes.length > 0 ? changes : checkPort(network, facts);
  });
  if (found.length > 0 || taps.length === 0) return found;
  const finding = `${listed(taps.map(({ tap }) => tap))} ${taps.length === 1 ? "is" : "are"} as the agent made ${taps.length === 1 ? "it" : "them"}`;
  return [{ check: "tap", severity: "ok", finding }];
}

/** A network's TAP as it is called now. */
function linkOf({ tap, mac }: AgentFacts["networks"][0], facts: Facts): Link | undefined {
  const { links } = facts;
  const link = links.get(tap);
  if (link !== undefined) return link;
  const known = new Set(runningNetworks(facts).map((network) => network.tap)); // gateways' have one MAC
  const isRenamed = ({ ifname, address, linkinfo }: Link) => {
    return address === mac && linkinfo?.info_kind === "tun" && !known.has(ifname);
  };
  return [...links.values()].find(isRenamed);
}

/** How a link is not as it was made, and what sets it so again. */
interface Change {
  readonly severity: Finding["severity"];
  readonly finding: string;
  /** Commands without which that cannot be set. */
  readonly before?: readonly string[];
  readonly settings: readonly string[];
}

function changesOf(network: AgentFacts["networks"][0], facts: Facts): Finding[] {
  const { links } = facts;
  const { vni, tap, bridge, mtu, mac } = network;
  const here = linkOf(network, facts)!;
  if (!links.has(tap)) {
    const { ifname } = here;
    const settings = [`${ifname} down`, `${ifname} name ${tap}`, `${tap} up`];
    return [
      {
        check: "tap",
        subject: `${vni}`,
        severity: "warning",
        finding: `network ${vni}: its TAP ${tap} is called ${ifname} now, as which the agent cannot change it`,
        remedy: "call it again what it was, and see what else manages this host's links",
        commands: settings.map((each) => `ip link set dev ${each}`),
      },
    ];
  }
  const port = bridge === undefined ? undefined : links.get(bridge);
  const down = [here, ...(port === undefined ? [] : [port])].filter(({ flags }) => {
    return !flags?.includes("UP");
  });
  const changes: Change[] = [
    ...down.map(({ ifname }) => ({
      severity: "error" as const,
      finding: `${ifname} is down, so nothing crosses`,
      settings: [ifname, "up"],
    })),
    ...(bridge !== undefined && port === undefined
      ? [
          {
            severity: "error" as const,
            finding: `${bridge} was removed, so nothing is in the network by it`,
            before: [`ip link add name ${bridge} up type bridge`],
            settings: [tap, "master", bridge],
          },
        ]
      : []),
    ...(port !== undefined && here.master !== port.ifname
      ? [
          {
            severity: "error" as const,
            finding: `${tap} is no port of ${bridge}, so nothing there is in the network`,
            settings: [tap, "master", port.ifname],
          },
        ]
      : []),
    ...(here.mtu === mtu
      ? []
      : [
          {
            severity: "warning" as const,
            finding: `${tap} has an MTU of ${here.mtu}, and not the ${mtu} that the agent gave it`,
            settings: [tap, "mtu", `${mtu}`],
          },
        ]),
    ...(here.address === undefined || here.address === mac
      ? []
      : [
          {
            severity: "warning" as const,
            finding: `${tap} has the MAC address ${here.address}, and not the ${mac} that the agent gave it: no station of that address is reached here`,
            settings: [tap, "address", mac],
          },
        ]),
  ];
  return changes.map(({ severity, finding, before = [], settings }) => ({
    check: "tap",
    subject: `${vni}`,
    severity,
    finding: `network ${vni}: ${finding}`,
    remedy: "set it again, and see what else manages this host's links",
    commands: [...before, `ip link set dev ${settings.join(" ")}`],
  }));
}

/** A spanning tree keeps a port waiting, and has it block where another way leads to the same bridges. */
function checkPort({ vni, tap }: AgentFacts["networks"][0], { links }: Facts): Finding[] {
  const { master, linkinfo } = links.get(tap)!;
  if (linkinfo?.info_slave_kind !== "bridge") return [];
  const state = linkinfo.info_slave_data?.state ?? "forwarding";
  if (state === "forwarding") return [];
  const finding = `network ${vni}: ${master} forwards nothing from and to ${tap}, whose state there is ${state}`;
  const about = { check: "tap", subject: `${vni}`, severity: "error", finding } as const;
  switch (state) {
    case "disabled": {
      const remedy = "let it forward, and see what else manages this host's links";
      return [{ ...about, remedy, commands: [`bridge link set dev ${tap} state 3`] }];
    }
    case "blocking": {
      const remedy = `${master} has a spanning tree, which has found another way to the same bridges: keep one of both`;
      return [{ ...about, remedy }];
    }
  }
  const remedy = `${master} has a spanning tree, which lets it forward after twice the forward delay: wait, or do without one where there is no loop`;
  return [{ ...about, severity: "warning", remedy }];
}

/** A bridge drops what is longer than the port that it is for takes, and tells nobody. */
function checkStations({ agent, config, links }: Facts): Finding[] {
  const taps = runningNetworks({ agent }).flatMap(({ vni, tap }) => {
    const link = links.get(tap);
    return link?.master === undefined ? [] : [{ vni, tap, mtu: link.mtu, bridge: link.master }];
  });
  const own = new Set(taps.map(({ tap }) => tap));
  const others = [...new Set(links.values())].filter(({ ifname }) => !own.has(ifname));
  return taps.flatMap(({ vni, tap, mtu, bridge }) => {
    const longer = others.filter((link) => link.master === bridge && link.mtu > mtu);
    if (longer.length === 0) return [];
    const clamps = config.networks.some((network) => network.vni === vni && network.clampMss);
    const names = listed(longer.map((link) => `${link.ifname} (${link.mtu})`));
    const what = clamps ? "longer packets but TCP's, which clamp-mss shortens" : "longer packets";
    return [
      {
        check: "tap",
        subject: `${vni}`,
        severity: clamps ? "note" : "warning",
        finding: `network ${vni}: ${tap} has an MTU of ${mtu}, and ${names} a larger one: ${bridge} drops ${what} from there, and tells nobody`,
        remedy: `give what is behind them an MTU of ${mtu} too${clamps ? "" : ", or set clamp-mss for TCP"}`,
      },
    ];
  });
}

function checkBridgeFilter(facts: Facts): Finding {
  const { bridgeFilters, links, config } = facts;
  const check = "bridge-netfilter";
  const bridges = [...overlayDevices(facts)].filter((name) => {
    const kind = links.get(name)?.linkinfo?.info_kind;
    return kind === "bridge" || config.networks.some(({ bridge }) => bridge === name);
  });
  if (bridges.length === 0) return { check, severity: "ok", finding: "no bridge is in use" };
  if (bridgeFilters.length === 0) {
    return { check, severity: "ok", finding: "packet filters leave bridged frames alone" };
  }
  const names = bridgeFilters.map((name) => `bridge-nf-call-${name}`);
  const drops = forwardDrops(facts);
  return {
    check,
    severity: "warning",
    finding: `frames across ${bridges.join(", ")} go through the host's packet filters (${names.join(", ")}), which costs time${drops === undefined ? " and may drop them" : `, and ${drops}`}`,
    remedy: "switch it off, unless something else here (Kubernetes, Docker) relies on it",
    commands: names.map((name) => `sysctl -w net.bridge.${name}=0`),
  };
}

/** Who drops what nobody accepts, of all that is forwarded: Docker, for one, sets it up so. */
function forwardDrops({ filters }: Facts): string | undefined {
  if (isUnseen(filters)) return undefined;
  const chain = filters
    .flatMap(({ family, name, chains }) => {
      return [...chains.values()].map((each) => ({ table: `${family} ${name}`, ...each }));
    })
    .find(({ base }) => base?.hook === "forward" && base.policy === "drop");
  return chain && `the policy of chain ${chain.name} (table ${chain.table}) is to drop them`;
}

/** A bridge takes the address of one of its ports, and so do VLANs of their device. */
function checkMacs(facts: Facts): Finding[] {
  const { config, agent, links } = facts;
  const check = "duplicate-mac";
  const all = [...new Set(links.values())];
  const twice = config.networks.flatMap(({ vni, tap, gateway }): Finding[] => {
    if (gateway.length > 0) return []; // every gateway's TAP and bridge have the same one, on every host
    const running = runningNetworks(facts).find((network) => network.vni === vni);
    const link = running === undefined ? links.get(tap) : linkOf(running, facts);
    const mac = running?.mac ?? link?.address;
    if (mac === undefined) return [];
    const others = all.filter((other) => {
      const related = other.ifname === link?.master || other.link === tap;
      return other.address === mac && other !== link && other.ifname !== tap && !related;
    });
    return others.map(({ ifname }) => ({
      check,
      subject: `${vni}`,
      severity: "warning",
      finding: `${ifname} has the MAC address of the TAP ${tap}, ${mac}`,
      remedy: `give ${ifname} another`,
      commands: [`ip link set dev ${ifname} address ADDRESS`],
    }));
  });
  const heard = runningNetworks(facts).flatMap(({ vni, tap, drops }): Finding[] => {
    const count = drops.LOCAL_MAC ?? 0;
    if (count === 0) return [];
    if (config.networks.some((network) => network.vni === vni && network.gateway.length > 0)) {
      const finding = `network ${vni}: ${counted(count, "frame")} of another host's gateway came by the tunnel, and was kept out`;
      const remedy = "unless its host keeps them, as vtep does, filter them there";
      return [{ check, subject: `${vni}`, severity: "note", finding, remedy }];
    }
    return [
      {
        check,
        subject: `${vni}`,
        severity: "warning",
        finding: `network ${vni}: ${counted(count, "frame")} came from a peer with the MAC address of our own TAP ${tap}`,
        remedy:
          "look for a loop (two ways between the same bridges), or for a host that copied this one's address and --local",
      },
    ];
  });
  const found = [...twice, ...heard];
  if (found.length > 0) return found;
  const scope = isUnseen(agent) ? " among this host's links" : "";
  return [{ check, severity: "ok", finding: `no MAC address of a TAP is seen elsewhere${scope}` }];
}

function checkTraffic({ agent, config: { port } }: Facts): Finding[] {
  const check = "traffic";
  if (isUnseen(agent)) return [unseenFinding(check, "what an agent has counted was", agent)];
  const found = [...checkForeign(agent, port), ...checkReserved(agent), ...checkAgent(agent)];
  if (found.length > 0) return found;
  const finding = "no reserved bits, no foreign VNI and no stranger were seen";
  return [{ check, severity: "ok", finding }];
}

function checkForeign(agent: AgentFacts, port: number): Finding[] {
  const check = "traffic";
  const foreign = agent.drops.VXLAN_VNI_NOT_FOUND ?? 0;
  const broken = agent.drops.VXLAN_INVALID_HDR ?? 0;
  const findings: Finding[] = [];
  if (foreign > 0) {
    findings.push({
      check,
      severity: "warning",
      finding: `${counted(foreign, "datagram")} came with a VNI that no network here has`,
      remedy: "add that network here, or take this host from the peers of the VTEP that sends it",
    });
  }
  if (broken > 0) {
    findings.push({
      check,
      severity: "note",
      finding: `${counted(broken, "datagram")} on UDP port ${port} had no valid VXLAN header`,
      remedy:
        "what else sends to that port: VXLAN-GPE, a scanner, vtep doctor of a peer; under --strict, reserved bits too",
    });
  }
  const strangers = agent.networks.filter(({ drops }) => drops.VXLAN_REMOTE_NOT_ALLOWED);
  return [
    ...findings,
    ...strangers.map(
      ({ vni, drops }): Finding => ({
        check,
        subject: `${vni}`,
        severity: "warning",
        finding: `network ${vni}: ${counted(drops.VXLAN_REMOTE_NOT_ALLOWED ?? 0, "datagram")} came from addresses that are no peers`,
        remedy: "name whom you trust as a peer; the agent's log says who they were",
      }),
    ),
  ];
}

function checkReserved({ networks }: AgentFacts): Finding[] {
  return networks
    .filter(({ counters }) => counters.reservedBits > 0)
    .map(({ vni, counters }) => ({
      check: "traffic",
      subject: `${vni}`,
      severity: "note",
      finding: `network ${vni}: ${counted(counters.reservedBits, "datagram")} had reserved bits of their VXLAN header set`,
      remedy:
        "the peer uses an extension (GBP, GPE, remote checksum offload): switch it off there; Linux would drop these",
    }));
}

/** What the agent has had to do without. */
function checkAgent({ offloads, refusedOffloads, paths }: AgentFacts): Finding[] {
  const configured = OFFLOADS.filter((name) => !offloads[name] && !refusedOffloads.includes(name));
  const without = [
    {
      names: refusedOffloads,
      finding: "which its kernel or its underlay refused",
      remedy: "they make it faster: a newer kernel has more of them, and --underlay dgram has few",
    },
    {
      names: configured,
      finding: "as configured",
      remedy: "they make it faster: leave them out of --offload where nothing speaks against them",
    },
  ];
  const demoted = without
    .filter(({ names }) => names.length > 0)
    .map(
      ({ names, finding, remedy }): Finding => ({
        check: "offloads",
        severity: "note",
        finding: `the agent does without ${names.join(", ")}, ${finding}`,
        remedy,
      }),
    );
  const narrow = paths.map(
    ({ address, mtu }): Finding => ({
      check: "path-mtu",
      subject: address,
      severity: "note",
      finding: `the agent has learned that the path to ${address} carries no more than ${mtu} bytes`,
      remedy: "raise the MTU on the way, or lower that of the network",
    }),
  );
  return [...demoted, ...narrow];
}
