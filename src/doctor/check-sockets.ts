/** What a VTEP opens: its port, source ports, the socket of its API, and where it serves metrics. */
import { isScoped } from "../addresses.ts";
import { addressFamily } from "../remotes.ts";
import { isOurs, peersOf } from "../survey.ts";
import { type Facts, isUnseen, type PortRange, runs, type SocketFacts } from "./facts.ts";
import { type Check, counted, type Finding, inTwo, listed, unseenFinding } from "./finding.ts";

export function checkSockets(facts: Facts): Finding[] {
  return [
    ...checkPort(facts),
    ...checkSourcePorts(facts),
    checkSocket(facts),
    ...checkMetrics(facts),
  ];
}

// ---- the port

/** Sockets of the kernel's VXLAN are its own business: no tool that lists sockets shows them. */
function checkPort(facts: Facts): Finding[] {
  const { sockets, config } = facts;
  const what = `UDP port ${config.port}`;
  const remedy = "end it, or choose another --port here and at every peer";
  const wanted: Wanted = { check: "port", what, addresses: localAddresses(facts), remedy };
  const findings = [...kernelHolders(facts), ...holders(sockets, facts, wanted)];
  if (findings.length > 0) return findings;
  return [{ check: "port", severity: "ok", finding: `nobody else holds ${what}` }];
}

function kernelHolders({ links, config: { port } }: Facts): Finding[] {
  const devices = [...new Set(links.values())].filter(({ linkinfo }) => {
    return linkinfo?.info_kind === "vxlan" && linkinfo.info_data?.port === port;
  });
  return devices.map(({ ifname, flags = [] }): Finding => {
    const up = flags.includes("UP");
    return {
      check: "port",
      subject: ifname,
      severity: up ? "error" : "warning",
      finding: up
        ? `UDP port ${port} is held by the kernel's VXLAN device ${ifname}`
        : `the kernel's VXLAN device ${ifname} takes UDP port ${port} when it is brought up`,
      remedy: "remove that device, or choose another --port here and at every peer",
      commands: [`ip link del ${ifname}`],
    };
  });
}

/** A port that others may hold, and at which addresses that would matter. */
interface Wanted {
  readonly check: Check;
  readonly what: string;
  readonly addresses: readonly string[];
  readonly remedy: string;
}

function holders(sockets: Facts["sockets"], facts: Facts, wanted: Wanted): Finding[] {
  if (isUnseen(sockets)) return [unseenFinding(wanted.check, "sockets were", sockets)];
  const told = new Map<string, Finding>();
  for (const socket of sockets) {
    const found = holder(socket, facts, wanted);
    told.set(found.finding, found);
  }
  return [...told.values()];
}

function holder(
  { address, pid, command = "?", isAgent }: SocketFacts,
  facts: Facts,
  { check, what, addresses, remedy }: Wanted,
): Finding {
  if (isAgent) {
    return { check, severity: "ok", finding: `${what} is held by our own agent (pid ${pid})` };
  }
  const asRoot = "run vtep doctor as root to see whose it is";
  if (pid === undefined && runs(facts)) {
    const finding = `${what} is held, by all appearance by our own agent, whose TAP is there`;
    return { check, severity: "note", finding, remedy: asRoot };
  }
  const who = pid === undefined ? "a program" : `pid ${pid} (${shortened(command)})`;
  if (!overlaps(address, addresses)) {
    const finding = `${what} of ${address}, not used here, is held by ${who}`;
    return { check, severity: "note", finding };
  }
  return {
    check,
    severity: "error",
    finding: `${what} is held by ${who}`,
    remedy: pid === undefined && !facts.isRoot ? `${remedy}; ${asRoot}` : remedy,
  };
}

/** The addresses that a VTEP is bound to, one of each family in use: the agent's, or as `survey.ts` finds them. */
export function localAddresses({
  config,
  routes,
  agent,
}: Pick<Facts, "config" | "routes" | "agent">): string[] {
  const known = [config.local ?? [], isUnseen(agent) ? [] : agent.local].flat();
  return ([4, 6] as const).flatMap((family) => {
    const isOf = (address: string) => addressFamily(address) === family;
    const peer = peersOf(config).find(isOf) ?? "";
    return known.find(isOf) ?? routes.get(peer)?.source ?? [];
  });
}

const EVERY = ["*", "0.0.0.0", "::"];

function overlaps(bound: string, wanted: readonly string[]): boolean {
  if (bound === "*") return true;
  return wanted.some((address) => {
    if (address === bound || address === "*") return true;
    const alike = address.includes(":") === bound.includes(":");
    return alike && (EVERY.includes(bound) || EVERY.includes(address));
  });
}

function shortened(command: string): string {
  return command.length > 60 ? `${command.slice(0, 59)}…` : command;
}

// ---- source ports

/** Of each family a forwarding thread opens so many (`native-underlay.ts`), or as many as it gets. */
const FAN = 16;

function checkSourcePorts(facts: Facts): Finding[] {
  const { config } = facts;
  if (config.underlay === "dgram") return []; // which sends from its port
  const [low, high] = config.sourcePorts;
  const threads = config.workers === "auto" ? 1 : config.workers;
  const free = high - low + 1 - heldPorts(facts).size;
  const had = `${counted(free, "source port")} of ${low}-${high} can be had`;
  const check = "source-ports";
  const findings = [...checkOwnPort(facts), ...checkReserved(facts, FAN * threads)];
  if (free < threads) {
    const finding = `${had}, and every forwarding thread needs one`;
    const remedy = "choose another range with --source-ports, or free some";
    return [...findings, { check, severity: "error", finding, remedy }];
  }
  if (free < FAN * threads) {
    const finding = `${had}, less than the ${FAN} over which every forwarding thread spreads its flows`;
    const remedy = "choose a wider range with --source-ports";
    return [...findings, { check, severity: "warning", finding, remedy }];
  }
  return findings.length > 0 ? findings : [{ check, severity: "ok", finding: had }];
}

/** Those of the range that an agent would not get. */
function heldPorts(facts: Facts): Set<number> {
  const { config, sourceSockets: sockets } = facts;
  const [low, high] = config.sourcePorts;
  const locals = localAddresses(facts);
  const others = (isUnseen(sockets) ? [] : sockets).filter(({ address, pid, isAgent }) => {
    return !isAgent && !(pid === undefined && runs(facts)) && overlaps(address, locals);
  });
  const held = [config.port, ...others.map(({ port }) => port)];
  return new Set(held.filter((port) => port >= low && port <= high));
}

function checkOwnPort({ config: { port, sourcePorts } }: Facts): Finding[] {
  const [low, high] = sourcePorts;
  if (port < low || port > high) return [];
  return [
    {
      check: "source-ports",
      severity: "note",
      finding: `the source ports ${low}-${high} include the VXLAN port ${port}, which is for receiving`,
      remedy: "choose a range beside it with --source-ports",
    },
  ];
}

/**
 * The kernel gives these to nobody who does not ask for them by number, as the underlay does. Where all of
 * the range is reserved, that was done for us.
 */
function checkReserved({ config, reservedPorts }: Facts, needed: number): Finding[] {
  const [low, high] = config.sourcePorts;
  const inside = reservedPorts.flatMap(([first, last]): PortRange[] => {
    const [from, to] = [Math.max(first, low), Math.min(last, high)];
    return from <= to ? [[from, to]] : [];
  });
  const count = inside.reduce((sum, [from, to]) => sum + to - from + 1, 0);
  if (count === 0 || count === high - low + 1) return [];
  const names = inside.map(([from, to]) => (from === to ? `${from}` : `${from}-${to}`));
  const [from, to] = widestGap(config.sourcePorts, [...inside, [config.port, config.port]]);
  const such = to - from + 1 >= needed ? `, such as ${from}-${to}` : "";
  return [
    {
      check: "source-ports",
      severity: "warning",
      finding: `the source ports ${low}-${high} include ${listed(names)}, which net.ipv4.ip_local_reserved_ports keeps for others: the agent may take one that its owner then does not get`,
      remedy: `choose a range beside them with --source-ports${such}`,
    },
  ];
}

/** The longest part of a range that has none of those in it; it may be empty. */
function widestGap([low, high]: PortRange, taken: readonly PortRange[]): PortRange {
  let widest: PortRange = [low, low - 1];
  let from = low;
  const sorted = taken.filter(([first]) => first >= low).sort(([one], [other]) => one - other);
  for (const [first, last] of [...sorted, [high + 1, high + 1] as const]) {
    const to = Math.min(first - 1, high);
    if (to - from > widest[1] - widest[0]) widest = [from, to];
    from = Math.max(from, last + 1);
  }
  return widest;
}

// ---- where it is asked

function checkSocket(facts: Facts): Finding {
  const { agent, config, socketRefusal: refusal, isRoot } = facts;
  const { socket, networks } = config;
  const check = "socket";
  if (!isUnseen(agent)) {
    const who = `the agent (pid ${agent.pid})`;
    const forwarded = new Set(agent.networks.map(({ vni }) => vni));
    if (networks.some(({ vni }) => forwarded.has(vni))) {
      return { check, severity: "ok", finding: `${who} answers at ${socket}` };
    }
    return {
      check,
      severity: "note",
      finding: `${who} that answers at ${socket} forwards none of these networks`,
      remedy:
        "add them to it (vtep network add), or give another agent a path of its own with --socket",
    };
  }
  if (refusal === undefined) {
    return { check, severity: "ok", finding: `${socket} is free for the API's socket` };
  }
  // Whoever started the agent that runs could; root would be able to as well.
  const severity = !runs(facts) ? "error" : isRoot ? "warning" : "note";
  return { check, severity, ...inTwo(refusal) };
}

function checkMetrics(facts: Facts): Finding[] {
  const { config, addresses, metricsSockets } = facts;
  if (config.metricsListen === undefined) return [];
  const { address, port } = config.metricsListen;
  const check = "metrics-listen";
  if (!EVERY.includes(address) && !isOurs(address, addresses)) {
    return [
      {
        check,
        severity: "error",
        finding: `${address}, for metrics, is an address of no interface here`,
        remedy: `choose one of ${listed(
          addresses.filter((each) => !isScoped(each)),
          5,
        )} for --metrics-listen`,
      },
    ];
  }
  const what = `TCP port ${port} (metrics)`;
  const remedy = "end it, or choose another --metrics-listen";
  // Node's "::" is every address of both families.
  const wanted = { check, what, addresses: [address === "::" ? "*" : address], remedy } as const;
  const found = holders(metricsSockets, facts, wanted);
  if (found.length > 0) return found;
  return [{ check, severity: "ok", finding: `${what} is free` }];
}
