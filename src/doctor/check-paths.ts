/** The way to each peer: its route, its MTU, whether it answers, the device that it leaves by. */
import { type Config, type NetworkConfig, reached } from "../config.ts";
import type { Link } from "../host.ts";
import { addressFamily, overheadTo } from "../remotes.ts";
import { LARGEST_MTU } from "../schema.ts";
import { astrayOf, isOurs, peersOf } from "../survey.ts";
import { localAddresses } from "./check-sockets.ts";
import { type Facts, type Features, isUnseen, type PathFacts, runningNetworks } from "./facts.ts";
import { type Finding, listed, unseenFinding } from "./finding.ts";

export function checkPaths(facts: Facts): Finding[] {
  const { config, routes, paths } = facts;
  const unmeasured = isUnseen(paths) ? [unseenFinding("path-mtu", "paths were", paths)] : [];
  return [
    ...unmeasured,
    ...peersOf(config).flatMap((peer) => {
      if (!routes.has(peer)) return [noRoute(peer)];
      const loop = checkSelfRoute(facts, peer);
      if (loop !== undefined) return [loop];
      const own = checkOwn(facts, peer);
      if (own?.severity === "error") return [own];
      return [...(own ? [own] : []), ...checkReachability(facts, peer), ...checkMtu(facts, peer)];
    }),
    ...checkSources(facts),
    ...checkOffloads(facts),
  ];
}

function noRoute(peer: string): Finding {
  return {
    check: "route",
    subject: peer,
    severity: "error",
    finding: `no route leads to peer ${peer}`,
    remedy: "add one, or correct the peer's address",
  };
}

/** An address of this host, at which only another VTEP of its own could be: ours is at one, and refuses that. */
function checkOwn(facts: Facts, peer: string): Finding | undefined {
  const { addresses, sockets, config } = facts;
  if (!isOurs(peer, addresses)) return undefined;
  const what = `peer ${peer} is an address of this host itself`;
  const about = { check: "route", subject: peer } as const;
  const others = isUnseen(sockets) || localAddresses(facts).includes(peer) ? [] : sockets;
  if (others.some(({ address }) => address === peer)) {
    const finding = `${what}, where another program has UDP port ${config.port}`;
    return { ...about, severity: "note", finding };
  }
  const remedy = "name the other end";
  return { ...about, severity: "error", finding: `${what}: nothing would leave it`, remedy };
}

/** A ping leaves from where the route begins, and is answered there: it does not tell. */
function checkSources(facts: Facts): Finding[] {
  const { config, routes } = facts;
  return astrayOf(config, routes, localAddresses(facts)).map(({ peer, local, source }) => ({
    check: "route",
    subject: peer,
    severity: "warning",
    finding: `the route to peer ${peer} begins at ${source}, but this VTEP is at ${local} alone, as by the first peer`,
    remedy: `have that peer name ${local}, with a route there, or say with --local which address all peers are to name`,
  }));
}

/**
 * A route through one of our TAPs or their bridges, or through what lies on top of these (VLAN, macvlan,
 * a veth whose other end is a port): every datagram would become a frame that becomes a datagram.
 */
function checkSelfRoute(facts: Facts, peer: string): Finding | undefined {
  const { device } = facts.routes.get(peer)!;
  const overlay = overlayDevices(facts);
  const through = below(device, facts.links).find((link) => {
    return overlay.has(link.ifname) || (link.master !== undefined && overlay.has(link.master));
  });
  if (through === undefined && !overlay.has(device)) return undefined;
  const by =
    through === undefined || through.ifname === device ? "" : `, which lies on ${through.ifname}`;
  return {
    check: "self-route",
    subject: peer,
    severity: "error",
    finding: `the way to peer ${peer} leads through ${device}${by}: the overlay is routed through itself`,
    remedy: "give the peer a route by an interface of the underlay",
    commands: [`ip route replace ${peer} via GATEWAY dev UNDERLAY`],
  };
}

/** The TAPs of our networks, and the bridges that they are joined to. */
export function overlayDevices(facts: Facts): ReadonlySet<string> {
  const { config, links } = facts;
  const networks = [...config.networks, ...runningNetworks(facts)];
  const devices = networks.flatMap(({ tap, bridge }) => [tap, bridge, links.get(tap)?.master]);
  return new Set(devices.filter((device) => device !== undefined));
}

/** The device, and those that it lies on. */
function below(device: string, links: ReadonlyMap<string, Link>): Link[] {
  const found = new Set<Link>();
  for (let link = links.get(device); link !== undefined && !found.has(link); ) {
    found.add(link);
    link = link.link === undefined ? undefined : links.get(link.link);
  }
  return [...found];
}

function checkReachability(facts: Facts, peer: string): Finding[] {
  const { ports, paths, config, down } = facts;
  const path = isUnseen(paths) ? undefined : paths.get(peer);
  const about = { check: "reachability", subject: peer } as const;
  switch (ports.get(peer)) {
    case "refused":
      return [
        {
          ...about,
          severity: "error",
          finding: `${peer} is up, but nothing listens on its UDP port ${config.port}`,
          remedy: "start its VTEP, or give the port that it uses with --port",
        },
      ];
    case "blocked":
      return [
        {
          ...about,
          severity: "error",
          finding: `this host's packet filter lets nothing out to UDP port ${config.port} of ${peer}`,
          remedy: "see what is said of the firewall",
        },
      ];
  }
  // Where frames go, the one refusal a second that Linux tells (icmp_ratelimit) is of one of them.
  if ((path === undefined || path.answers) && down.includes(peer)) {
    const finding = `the agent was told that nobody listens on UDP port ${config.port} of ${peer}, or that no way leads there, and no frame has come from there since`;
    const remedy =
      "see whether its VTEP runs, uses that port, and is let through its packet filter; one that is back may have had nothing to send";
    return [{ ...about, severity: "warning", finding, remedy }];
  }
  if (path?.answers) return [{ ...about, severity: "ok", finding: `${peer} answers` }];
  if (path === undefined) {
    const finding = `${peer} has not refused VXLAN, which it also would not if it were down`;
    return [{ ...about, severity: "note", finding }];
  }
  if (path.why !== undefined) {
    const remedy = "see whether the peer is up, and the routes on the way to it";
    return [
      { ...about, severity: "error", finding: `${peer} cannot be reached: ${path.why}`, remedy },
    ];
  }
  return [
    {
      ...about,
      severity: "warning",
      finding: `${peer} answers no ICMP echo: it is down, or something on the way drops ICMP`,
      remedy:
        "see whether it is up; let ICMP pass, or the MTU of the path cannot be learned either",
    },
  ];
}

function checkMtu(facts: Facts, peer: string): Finding[] {
  const { paths } = facts;
  const path = isUnseen(paths) ? undefined : paths.get(peer);
  if (path === undefined || !path.answers) return [];
  const overhead = overheadTo(peer);
  const networks = facts.config.networks
    .filter((network) => reached(network).includes(peer))
    .map((network) => ({ ...network, mtu: mtuOf(facts, network) }))
    .sort((a, b) => b.mtu - a.mtu);
  const { vni, mtu } = networks[0]!;
  const needed = mtu + overhead;
  const about = { check: "path-mtu", subject: peer } as const;
  const needs = `network ${vni} with its MTU of ${mtu} needs ${needed}`;
  if (path.mtu === undefined) {
    return [
      {
        ...about,
        severity: "note",
        finding: `the path to ${peer} carries ${path.atLeast} bytes at least; time was up before more was known, and ${needs}`,
        remedy: "run vtep doctor again, or with fewer peers",
      },
    ];
  }
  const carries = `the path to ${peer} carries ${path.mtu} bytes`;
  if (path.mtu >= needed) return [{ ...about, severity: "ok", finding: `${carries}; ${needs}` }];
  const canFragment = addressFamily(peer) === 4 && facts.config.underlay !== "dgram"; // as no router of IPv6 does
  return [
    {
      ...about,
      ...tooNarrow(path, carries, needs, canFragment && facts.config.df === "unset"),
      ...narrowed(facts.config, path.mtu - overhead, path.silently && canFragment),
    },
  ];
}

/** With ICMP it is learned at the first loss; without it, it never is. */
function tooNarrow(
  { narrowedBy, silently }: Extract<PathFacts, { mtu: number }>,
  carries: string,
  needs: string,
  fragments: boolean,
): Pick<Finding, "severity" | "finding"> {
  if (fragments) {
    return {
      severity: "warning",
      finding: `${carries}, and ${needs}; longer ones are fragmented, for df is unset`,
    };
  }
  if (silently) {
    return {
      severity: "error",
      finding: `${carries}, and ${needs}; longer ones vanish without a word, so that nobody learns why`,
    };
  }
  const by = narrowedBy === undefined ? "" : ` (${narrowedBy} says so)`;
  return { severity: "warning", finding: `${carries}${by}, and ${needs}` };
}

function narrowed(
  { networks, df }: Config,
  mtu: number,
  mayFragment: boolean,
): Pick<Finding, "remedy"> {
  const fragment = mayFragment && df === "set" ? ", or have it fragmented with --df unset" : "";
  const where = networks.length > 1 ? `mtu: ${mtu} for that network` : `--mtu ${mtu}`;
  return {
    remedy: `raise the MTU on the way, or set ${where} and the same behind its bridge; let ICMP pass${fragment}`,
  };
}

/** That of the TAP: of the agent's, of the one that is there, or of the one that there would be. */
function mtuOf(facts: Facts, network: NetworkConfig): number {
  const { links, routes } = facts;
  const running = runningNetworks(facts).find(({ vni }) => vni === network.vni)?.mtu;
  const found = running ?? links.get(network.tap)?.mtu;
  if (found !== undefined) return found;
  if (network.mtu !== "auto") return network.mtu;
  const carried = reached(network).flatMap((peer) => {
    const route = routes.get(peer);
    return route === undefined ? [] : [route.mtu - overheadTo(peer)];
  });
  return Math.min(LARGEST_MTU, ...carried);
}

/** What is lost without a feature of a device; by ethtool's name of it. */
const WANTED: readonly {
  readonly feature: string;
  readonly option: string;
  readonly severity: "note" | "warning";
  readonly loss: string;
}[] = [
  {
    feature: "tx-checksumming",
    option: "tx",
    severity: "warning",
    loss: "checksums are computed in software, and before Linux 6.10 no trains of datagrams leave",
  },
  {
    feature: "tx-udp-segmentation",
    option: "tx-udp-segmentation",
    severity: "note",
    loss: "trains of datagrams are cut in software",
  },
  {
    feature: "generic-receive-offload",
    option: "gro",
    severity: "warning",
    loss: "datagrams arrive one by one instead of in trains",
  },
];

function checkOffloads({ features, links }: Facts): Finding[] {
  return [...features].flatMap(([device, found]): Finding[] => {
    if (isUnseen(found)) return [unseenFinding("offloads", `features of ${device} were`, found)];
    const isVeth = links.get(device)?.linkinfo?.info_kind === "veth";
    const lacking = WANTED.filter(({ feature }) => found[feature]?.active === false);
    const names = WANTED.map(({ feature }) => feature);
    if (lacking.length === 0) {
      const finding = `${device} has ${listed(names)} on`;
      return [{ check: "offloads", subject: device, severity: "ok", finding }];
    }
    return lacking.map(({ feature, option, severity, loss }) => ({
      check: "offloads",
      subject: device,
      // What crosses a veth was never cut.
      severity: isVeth && option === "gro" ? "note" : severity,
      finding: `${feature} of ${device} is off: ${loss}`,
      ...switchOn(found, feature, device, option),
    }));
  });
}

function switchOn(
  features: Features,
  feature: string,
  device: string,
  option: string,
): Pick<Finding, "remedy" | "commands"> {
  if (features[feature]?.fixed) return { remedy: "the device does not offer it" };
  return { remedy: "switch it on", commands: [`ethtool -K ${device} ${option} on`] };
}
