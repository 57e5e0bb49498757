import { readFileSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";
import { Container, type Host, type Kind } from "../test/lab/host.ts";
import { Lab, type Mode } from "../test/lab/lab.ts";
import { reach } from "../test/lab/traffic.ts";
import { until } from "../test/lab/until.ts";
import { Vtep } from "../test/lab/vtep.ts";
import { note } from "./command-line.ts";
import { prepare, type Scene } from "./measurements.ts";
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

/** A container on each of two hosts, ready to be measured. */
export interface Site extends AsyncDisposable {
  lab: Lab;
  near: Container;
  far: Container;
}

/** From its first answer until it is measured: until then a process loads and compiles. */
export const REST_MS = 1000;

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
  direct(),
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
      const end = () => endpoints[Symbol.asyncDispose]();
      try {
        const [host, pid] = [lab.host(1), pids[0]];
        const description = await (pid ? ofProcess(host, pid) : ofDevice(host));
        return { pids, description, [Symbol.asyncDispose]: end };
      } catch (error) {
        await end(); // or it would run beside those that are measured
        throw error;
      }
    },
  };
}

/** The native one without bridge and veth: its TAP is the container's interface meanwhile. */
function direct(): Subject {
  return {
    name: "direct",
    family: "vtep",
    async start(lab) {
      const hosts = [lab.host(1), lab.host(2)];
      const done: (() => Promise<unknown>)[] = [];
      const undo = async () => {
        for (const step of done.splice(0).reverse()) await step();
      };
      const pids: number[] = [];
      try {
        for (const [at, host] of hosts.entries()) {
          const [container] = host.guests.filter((guest) => guest instanceof Container);
          if (container === undefined) throw new Error(`${host.name} has no container`);
          await container.ip("link set eth0 down", "link set eth0 name parked");
          done.push(async () => {
            await container.ip("link set parked name eth0 up");
            await container.ip(`addr replace ${container.address6}/64 dev eth0 nodad`);
            await prepare(container);
          });
          const peer = hosts[1 - at]!.address;
          const vtep = await host.vtep("--vni", "42", "--name", "blue", "--peer", peer).ready();
          done.push(() => vtep[Symbol.asyncDispose]()); // and with it its TAP
          pids.push(vtep.pid);
          const { name, address, mac } = container;
          const agent = ["--network", "blue", "--socket", vtep.socket];
          const own = ["--direct", "--ip", `${address}/24`, "--mac", mac];
          await host.run("node", host.cli, "attach", name, ...agent, ...own);
          await prepare(container);
        }
        const description = await ofProcess(hosts[0]!, pids[0]!);
        return { pids, description, [Symbol.asyncDispose]: undo };
      } catch (error) {
        await undo();
        throw error;
      }
    },
  };
}

/** Draws the hosts and containers that a tunnel is to join. */
export async function drawSite(mode: Mode): Promise<Site> {
  const lab = await Lab.draw({ hosts: 2, mode });
  try {
    const near = await lab.host(1).container();
    const far = await lab.host(2).container();
    for (const end of [near, far]) await prepare(end);
    return { lab, near, far, [Symbol.asyncDispose]: () => lab[Symbol.asyncDispose]() };
  } catch (error) {
    await lab[Symbol.asyncDispose]();
    throw error;
  }
}

/** Starts a tunnel, waits until a ping is answered through it, and lets it come to rest. */
export async function started(
  subject: Subject,
  { lab, near, far }: Site,
): Promise<Tunnel & Pick<Scene, "startedInMs">> {
  // Open vSwitch takes the underlay over, and for seconds after it the hosts do not find each other.
  await reach(lab.host(1), lab.host(2).address, 15_000);
  const began = performance.now();
  const tunnel = await subject.start(lab);
  try {
    const ping = ["ping", "-n", "-c", "1", "-W", "0.1", far.address];
    const answered = async () => (await near.finish(ping)).code === 0;
    await until(`an answer through ${subject.name}`, answered, 15_000);
  } catch (error) {
    await tunnel[Symbol.asyncDispose]();
    throw error;
  }
  const startedInMs = performance.now() - began;
  await pause(REST_MS);
  return { ...tunnel, startedInMs };
}

/** All of them, the last first. What fails is told of, and keeps none of the others. */
export async function disposeAll(things: AsyncDisposable[]): Promise<void> {
  for (const thing of things.toReversed()) {
    try {
      await thing[Symbol.asyncDispose]();
    } catch (error) {
      note((error as Error).message);
      process.exitCode = 1;
    }
  }
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
