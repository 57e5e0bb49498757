/** What a VTEP needs of its own host: privileges, the TUN device, an address, buffers. */
import { inPlaceOf, isOurs } from "../survey.ts";
import { localAddresses } from "./check-sockets.ts";
import { type Facts, isUnseen, runs } from "./facts.ts";
import { counted, type Finding, inTwo, listed, unseenFinding } from "./finding.ts";

export function checkHost(facts: Facts): Finding[] {
  return [
    ...checkStart(facts),
    ...checkCapabilities(facts),
    checkTun(facts),
    ...checkLocal(facts),
    ...checkReceiveBuffer(facts),
  ];
}

/** What vtep run asks of the host before it makes anything. */
function checkStart({ refusal }: Facts): Finding[] {
  if (refusal === undefined) return [];
  const { finding, remedy } = inTwo(refusal);
  return [
    { check: "start", severity: "error", finding: `vtep run would not start: ${finding}`, remedy },
  ];
}

function checkCapabilities(facts: Facts): Finding[] {
  const { capabilities, config, unprivilegedPort } = facts;
  const ports = [
    { port: config.port, what: `UDP port ${config.port}` },
    { port: config.metricsListen?.port, what: `TCP port ${config.metricsListen?.port}` },
  ].filter(({ port = unprivilegedPort }) => port < unprivilegedPort);
  const needed = [
    { name: "CAP_NET_ADMIN", why: "to create TAP devices" },
    ...(ports.length > 0
      ? [{ name: "CAP_NET_BIND_SERVICE", why: `for ${listed(ports.map(({ what }) => what))}` }]
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

function checkLocal(facts: Facts): Finding[] {
  const { config, addresses } = facts;
  const gone = localAddresses(facts).filter((local) => !isOurs(local, addresses));
  return gone.map((local) => {
    const about = { check: "local-address", severity: "error" } as const;
    const choice = listed(inPlaceOf(local, addresses), 5);
    if (local === config.local) {
      const instead = choice === "" ? "give it to one" : `use one of ${choice} as --local`;
      const remedy = `${instead}, or leave it out`;
      return { ...about, finding: `${local} is an address of no interface here`, remedy };
    }
    const finding = `the agent is at ${local}, which is an address of no interface here any more: nothing gets to it`;
    const remedy = `give an interface that address again, or restart the agent and have its peers name another${choice && ` (${choice})`}`;
    return { ...about, finding, remedy };
  });
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
