import { readFileSync } from "node:fs";
import type { Host, Kind } from "../test/lab/host.ts";
import type { Lab } from "../test/lab/lab.ts";
import { Vtep } from "../test/lab/vtep.ts";
import { packaged } from "./tunnels.ts";

/** A tunnel that can be compared: it joins the bridges of hosts 1 and 2 of a lab. */
export interface Subject {
  name: string;
  /** `vtep`: one of ours; `packaged`: another tunnel, as Debian has it. */
  family: "kernel" | "vtep" | "packaged";
  /** Why it cannot be started here, and what to do about it. */
  missing?(): string | undefined;
  /** The Debian packages without which it is missing. */
  packages?: string[];
  start(lab: Lab): Promise<Tunnel>;
}

export interface Tunnel extends AsyncDisposable {
  /** Its processes in user space, on both hosts. */
  pids: number[];
  /** How it was started on host 1, and what the host made of it. */
  description: string;
}

/** The first is what the others are compared with. */
export const subjects: Subject[] = [
  vxlan("kernel"),
  vxlan("native"),
  vxlan("dgram"),
  ...packaged.map((tunnel): Subject => ({ family: "packaged", ...tunnel })),
];

function vxlan(kind: Kind): Subject {
  return {
    name: kind,
    family: kind === "kernel" ? "kernel" : "vtep",
    async start(lab) {
      const endpoints = await lab.join([kind, kind]);
      const vteps = endpoints.filter((endpoint) => endpoint instanceof Vtep);
      const pids = vteps.map(({ pid }) => pid);
      const description = await (pids[0] ? ofProcess(lab.host(1), pids[0]) : ofDevice(lab.host(1)));
      const end = () => endpoints[Symbol.asyncDispose]();
      return { pids, description, [Symbol.asyncDispose]: end };
    },
  };
}

async function ofProcess(host: Host, pid: number): Promise<string> {
  const command = readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ").trim();
  const sockets = await host.run("ss", "--no-header", "--udp", "--all", "--numeric", "--memory");
  const largest = (buffer: string) =>
    Math.max(...[...sockets.matchAll(RegExp(`\\b${buffer}(\\d+)`, "g"))].map(([, n]) => Number(n)));
  return `${command} (socket buffers: receive ${largest("rb")}, send ${largest("tb")})`;
}

async function ofDevice(host: Host): Promise<string> {
  const device = await host.run("ip", "-details", "link", "show", "type", "vxlan");
  return /vxlan id .*?(?= addrgenmode| ?\n)/.exec(device)?.[0] ?? device;
}
