/** What a VTEP needs of its own host: privileges, the TUN device, the port, buffers. */
import { type Facts, isUnseen, type SocketFacts } from "./facts.ts";
import { counted, type Finding, listed, unseenFinding } from "./finding.ts";

export function checkHost(facts: Facts): Finding[] {
  return [
    ...checkStart(facts),
    ...checkCapabilities(facts),
    checkTun(facts),
    ...checkLocal(facts),
    ...checkPort(facts),
    ...checkReceiveBuffer(facts),
  ];
}

/** Whether an agent runs, as far as can be seen: another user's has at least a TAP of that name. */
function runs({ agent, sockets, config, links }: Facts): boolean {
  if (!isUnseen(agent)) return true;
  if (!isUnseen(sockets) && sockets.some(({ isAgent }) => isAgent)) return true;
  return config.networks.some(({ tap }) => links.get(tap)?.linkinfo?.info_kind === "tun");
}

/** What vtep run asks of the host before it makes anything. */
function checkStart({ refusal }: Facts): Finding[] {
  if (refusal === undefined) return [];
  const remedy = refusal.lastIndexOf(": ");
  return [
    {
      check: "start",
      severity: "error",
      finding: `vtep run would not start: ${refusal.slice(0, remedy)}`,
      remedy: refusal.slice(remedy + 2),
    },
  ];
}

function checkCapabilities(facts: Facts): Finding[] {
  const { capabilities, config, unprivilegedPort } = facts;
  const needed = [
    { name: "CAP_NET_ADMIN", why: "to create TAP devices" },
    ...(config.port < unprivilegedPort
      ? [{ name: "CAP_NET_BIND_SERVICE", why: `for UDP port ${config.port}` }]
      : []),
  ];
  const missing = needed.filter(({ name }) => !capabilities.includes(name));
  if (missing.length === 0) {
    const finding = `${needed.map(({ name }) => name).join(" and ")} ${needed.length > 1 ? "are" : "is"} there`;
    return [{ check: "capabilities", severity: "ok", finding }];
  }
  return missing.map(({ name, why }) => ({
    check: "capabilities",
    // Whoever started the agent that runs had them.
    severity: runs(facts) ? "note" : "error",
    finding: `whoever runs this lacks ${name}, which vtep run needs ${why}`,
    remedy: "run as root or with that capability (AmbientCapabilities= in a systemd unit)",
  }));
}

function checkTun(facts: Facts): Finding {
  const { tun } = facts;
  const check = "tun";
  switch (tun.state) {
    case "openable":
      return { check, severity: "ok", finding: "/dev/net/tun can be opened" };
    case "missing":
      return {
        check,
        severity: "error",
        finding: "/dev/net/tun is missing, so there can be no TAP",
        remedy:
          "load the module (modprobe tun); into a container hand it in (--device /dev/net/tun)",
      };
    case "other":
      return {
        check,
        severity: "error",
        finding: `/dev/net/tun is ${tun.what}`,
        remedy: "make it anew",
        commands: ["rm /dev/net/tun && mknod -m 666 /dev/net/tun c 10 200"],
      };
    case "refused":
      return {
        check,
        severity: runs(facts) ? "note" : "error", // as of capabilities
        finding: `/dev/net/tun cannot be opened (${tun.code})`,
        remedy:
          tun.code === "EACCES" || tun.code === "EPERM"
            ? "run as root, or let this user (chmod 666 /dev/net/tun), its unit (DeviceAllow=/dev/net/tun rw) or its container (--device /dev/net/tun) open it"
            : "load the module: modprobe tun",
      };
  }
}

function checkLocal({ config: { local }, addresses }: Facts): Finding[] {
  // Of 127/8 only one is listed.
  if (local === undefined || local.startsWith("127.") || addresses.includes(local)) return [];
  const family = addresses.filter((address) => address.includes(":") === local.includes(":"));
  return [
    {
      check: "local-address",
      severity: "error",
      finding: `${local} is an address of no interface here`,
      remedy: `use one of ${listed(family, 5) || "another family"} as --local, or leave it out`,
    },
  ];
}

/** Sockets of the kernel's VXLAN are its own business: no tool that lists sockets shows them. */
function checkPort(facts: Facts): Finding[] {
  const { port } = facts.config;
  const findings = [...kernelHolders(facts), ...socketHolders(facts)];
  if (findings.length > 0) return findings;
  return [{ check: "port", severity: "ok", finding: `nobody else holds UDP port ${port}` }];
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

function socketHolders(facts: Facts): Finding[] {
  const { sockets } = facts;
  if (isUnseen(sockets)) return [unseenFinding("port", "sockets were", sockets)];
  const locals = localAddresses(facts);
  const told = new Map<string, Finding>();
  for (const socket of sockets) {
    const found = socketHolder(socket, facts, locals);
    told.set(found.finding, found);
  }
  return [...told.values()];
}

function socketHolder(
  { address, pid, command = "?", isAgent }: SocketFacts,
  facts: Facts,
  locals: readonly string[],
): Finding {
  const check = "port";
  const port = `UDP port ${facts.config.port}`;
  if (isAgent) {
    return { check, severity: "ok", finding: `${port} is held by our own agent (pid ${pid})` };
  }
  const asRoot = "run vtep doctor as root to see whose it is";
  if (pid === undefined && runs(facts)) {
    const finding = `${port} is held, by all appearance by our own agent, whose TAP is there`;
    return { check, severity: "note", finding, remedy: asRoot };
  }
  const who = pid === undefined ? "a program" : `pid ${pid} (${shortened(command)})`;
  if (!overlaps(address, locals)) {
    const finding = `${port} of ${address}, not used here, is held by ${who}`;
    return { check, severity: "note", finding };
  }
  const remedy = "end it, or choose another --port here and at every peer";
  return {
    check,
    severity: "error",
    finding: `${port} is held by ${who}`,
    remedy: pid === undefined && !facts.isRoot ? `${remedy}; ${asRoot}` : remedy,
  };
}

/** The addresses that a VTEP is bound to. */
function localAddresses({ config, routes }: Facts): string[] {
  const sources = [...routes.values()].map(({ source }) => source);
  return config.local === undefined ? sources : [config.local, ...sources];
}

function overlaps(bound: string, locals: readonly string[]): boolean {
  if (bound === "*") return true;
  if (bound === "0.0.0.0") return locals.some((local) => !local.includes(":"));
  if (bound === "::") return locals.some((local) => local.includes(":"));
  return locals.includes(bound);
}

function shortened(command: string): string {
  return command.length > 60 ? `${command.slice(0, 59)}…` : command;
}

/** What every underlay asks for. With CAP_NET_ADMIN, native gets it; Node's sockets, only what the limit allows. */
const WANTED_BUFFER = 8 * 1024 * 1024;

function checkReceiveBuffer(facts: Facts): Finding[] {
  const { sockets, capabilities, receiveBufferMax: max, config } = facts;
  const check = "receive-buffer";
  const wanted = `${WANTED_BUFFER / 2 ** 20} MiB`;
  const raise = {
    remedy: "raise the limit, for good in /etc/sysctl.d, then start again",
    commands: [`sysctl -w net.core.rmem_max=${WANTED_BUFFER}`],
  };
  const presumed = runs(facts);
  const ours = isUnseen(sockets)
    ? []
    : sockets.filter(({ isAgent, pid }) => isAgent || (presumed && pid === undefined));
  const findings: Finding[] = [];
  const drops = ours.reduce((sum, socket) => sum + (socket.drops ?? 0), 0);
  if (drops > 0) {
    findings.push({
      check,
      severity: "warning",
      finding: `${counted(drops, "datagram")} found the agent's receive buffer full`,
      remedy: "give it more threads (--workers), or time on its cores",
    });
  }
  if (ours.length > 0) {
    // The kernel reports twice what was asked for (man 7 socket, SO_RCVBUF).
    const bytes =
      Math.min(...ours.map(({ receiveBuffer = 2 * WANTED_BUFFER }) => receiveBuffer)) / 2;
    const text = `the agent's receive buffers are ${kib(bytes)} each`;
    const enough = bytes >= WANTED_BUFFER;
    if (enough) return [...findings, { check, severity: "ok", finding: text }];
    const finding = `${text}, less than ${wanted}: a burst overflows them`;
    return [...findings, { check, severity: "warning", finding, ...raise }];
  }
  if (config.underlay !== "dgram" && capabilities.includes("CAP_NET_ADMIN")) {
    const finding = `CAP_NET_ADMIN allows receive buffers of ${wanted}, whatever net.core.rmem_max is`;
    return [{ check, severity: "ok", finding }];
  }
  if (max === undefined) {
    const reason = { unseen: "net.core.rmem_max is not shown here", remedy: "ask the host itself" };
    return [unseenFinding(check, "limits of receive buffers were", reason)];
  }
  if (max >= WANTED_BUFFER) {
    return [{ check, severity: "ok", finding: `net.core.rmem_max allows ${kib(max)}` }];
  }
  const finding = `net.core.rmem_max allows ${kib(max)}, less than the ${wanted} that a burst needs, and only CAP_NET_ADMIN passes it`;
  return [{ check, severity: "warning", finding, ...raise }];
}

function kib(bytes: number): string {
  return bytes < 2 ** 20
    ? `${Math.round(bytes / 1024)} KiB`
    : `${+(bytes / 2 ** 20).toFixed(1)} MiB`;
}
