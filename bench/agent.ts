/**
 * `npm run bench:agent`: what an operator of the agent is promised, measured on the built command, with
 * kernel VXLAN at the other end and a real systemd around it where one is needed.
 *
 * `npm run bench:agent -- starts attaches` does these parts only; `--help` names them all.
 *
 * Times are this machine's; beside the start stands that of a bare Node. Streams are paced: what is looked
 * for is what they lose, and for how long nothing arrives, while the agent is busy with something else.
 */
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { Argument, Command } from "commander";
import { Client } from "../src/api/client.ts";
import { EXIT_USAGE } from "../src/errors.ts";
import type { Host } from "../test/lab/host.ts";
import { Lab } from "../test/lab/lab.ts";
import { learnMacs, misuse } from "../test/lab/misuse.ts";
import { create, Namespace } from "../test/lab/namespace.ts";
import { PLUGIN } from "../test/lab/podman.ts";
import { Machine, PACKAGE } from "../test/lab/systemd.ts";
import { hears, iperf3, ping, reach } from "../test/lab/traffic.ts";
import { cli } from "../test/lab/vtep.ts";
import { blast, compiled } from "./blast.ts";
import { exitOnSignals } from "./command-line.ts";
import { cpuTime, threadTimes } from "./cpu.ts";
import { prepare, residentMegabytes } from "./measurements.ts";
import { Scratch } from "./scratch.ts";
import { percentile } from "./statistics.ts";
import { table } from "./table.ts";

const STARTS = 11;
/** When V8 has cleaned up after the start. */
const SETTLED_MS = 30_000;
const IDLE_SECONDS = 30;
const ATTACHMENTS = 40;
const CALLS = 21;
const ENTRIES = 100_000;
const MANY_ENTRIES = 1_000_000;
const NETWORKS = 4_000;
const MINUTE_SECONDS = 60;
/** V8 has compiled by then, and its heaps have their size. */
const WARM_UP_SECONDS = 5;
const IPV6_ROUNDS = 7;
const UDP = { size: 200, rate: 20_000 };
const TCP = ["-b", "1G"];

// Where it is set, every Node reads those certificates when it starts (80 ms here). No service has it.
delete process.env.NODE_EXTRA_CA_CERTS;

const rows: string[][] = [];

function row(what: string, wanted: string, ...found: string[]): void {
  rows.push([what, wanted, found.join(", ")]);
  process.stderr.write(`${what}: ${found.join(", ")}\n`);
}

const parts = [
  starts,
  attaches,
  idles,
  lists,
  isMisused,
  remembers,
  reloads,
  restarts,
  spreads,
  sustains,
  carriesIpv6,
];
const names = parts.map(({ name }) => name);
const [chosen] = new Command("npm run bench:agent --")
  .description("What an operator of the agent is promised, measured beside what is wanted")
  .addArgument(new Argument("[PART...]", "what to measure").choices(names).default(names, "all"))
  .exitOverride(({ exitCode }) => process.exit(exitCode === 0 ? 0 : EXIT_USAGE))
  .parse().processedArgs as [string[]];
exitOnSignals();

await using lab = await Lab.draw({ hosts: 2 });
const [ours, theirs] = [lab.host(1), lab.host(2)] as const;
const near = await ours.container();
const far = await theirs.container();
await theirs.kernelVxlan({ vni: 42, peers: [ours.address] });
const network = ["--vni", "42", "--name", "blue", "--peer", theirs.address, "--bridge", "br0"];
const scratch = Scratch.folder("agent").path;

for (const part of parts) if (chosen.includes(part.name)) await part();
process.stdout.write(`\n${table(["what", "wanted", "found"], rows)}\n`);

async function starts(): Promise<void> {
  const bare: number[] = [];
  const ready: number[] = [];
  const timed = async (host: Host, args: string[], said: string | undefined) => {
    const began = performance.now();
    const child = host.spawn("node", ...args);
    child.stdin.end();
    const gone = once(child, "close");
    if (said !== undefined) await hears(child.stdout, said);
    else await gone;
    const ms = performance.now() - began;
    child.kill();
    await gone;
    return ms;
  };
  const socket = join(scratch, "start.sock");
  for (let start = 0; start < STARTS; start++) {
    bare.push(await timed(ours, ["-e", "0"], undefined));
    ready.push(await timed(ours, [cli, "run", ...network, "--socket", socket], '"ready"'));
  }
  row(
    "start to ready, median and least",
    "300 ms",
    `${ms(percentile(ready, 50))} and ${ms(Math.min(...ready))}`,
    `a bare Node ${ms(percentile(bare, 50))} and ${ms(Math.min(...bare))}`,
  );
}

/** Also as runtimes do it: each call a process, and addresses by another plugin. */
async function attaches(): Promise<void> {
  await using vtep = await ours.vtep(...network).ready();
  const box = new Namespace(`${ours.name}box`);
  ours.guests.push(box);
  await create(box);
  const target = `/run/netns/${box.name}`;
  const module = (name: string) => JSON.stringify(new URL(`../src/${name}`, import.meta.url).href);
  const code = `
    const { attach, detach, namespaceId } = await import(${module("attach.ts")});
    const { linkName } = await import(${module("attachments.ts")});
    const { Client } = await import(${module("api/client.ts")});
    const client = new Client(${JSON.stringify(vtep.socket)});
    const owner = namespaceId(${JSON.stringify(target)});
    const wanted = { network: "blue", target: ${JSON.stringify(target)}, owner, by: "attach", ifname: "eth0", addresses: ["10.1.0.201/24"], gateways: [], routes: [], published: [] };
    const times = [];
    for (let turn = 0; turn < ${ATTACHMENTS}; turn++) {
      const began = performance.now();
      await attach(client, wanted);
      times.push(performance.now() - began);
      await detach(client, linkName(owner, "eth0"));
    }
    console.log(JSON.stringify(times));`;
  const script = ["--import", import.meta.resolve("tsx"), "--input-type=module", "-e", code];
  const times = JSON.parse(await ours.run("node", ...script)) as number[];
  row("attach, median and p95", "60 ms", ms(percentile(times, 50)), ms(percentile(times, 95)));

  const ipam = { type: "host-local", dataDir: scratch, subnet: "10.1.0.0/24" };
  const plugin = { cniVersion: "1.0.0", name: "web", type: "vtep-cni", network: "blue" };
  const input = JSON.stringify({ ...plugin, socket: vtep.socket, ipam });
  const call = async (command: string) => {
    const environment = {
      ...{ CNI_COMMAND: command, CNI_CONTAINERID: "one", CNI_NETNS: target },
      ...{ CNI_IFNAME: "eth0", CNI_PATH: "/usr/lib/cni" },
    };
    const words = Object.entries(environment).map(([name, value]) => `${name}=${value}`);
    const began = performance.now();
    const { code, stdout } = await ours.finish(["env", ...words, "node", PLUGIN], { input });
    if (code !== 0) throw new Error(`${command}: ${stdout}`);
    return performance.now() - began;
  };
  const called: Record<string, number[]> = { ADD: [], VERSION: [], DEL: [] };
  const bare: number[] = [];
  for (let turn = 0; turn < CALLS; turn++) {
    for (const [command, all] of Object.entries(called)) all.push(await call(command));
    const began = performance.now();
    await ours.run("node", "-e", "0");
    bare.push(performance.now() - began);
  }
  const median = (command: string) => ms(percentile(called[command]!, 50));
  const node = `a bare Node ${ms(percentile(bare, 50))}`;
  row("CNI ADD with host-local, median", "250 ms", median("ADD"), node);
  row("CNI VERSION, median", "120 ms", median("VERSION"), node);
}

async function idles(): Promise<void> {
  await using vtep = await ours.vtep(...network).ready();
  await pause(SETTLED_MS);
  const before = cpuTime([vtep.pid]).processes;
  await pause(IDLE_SECONDS * 1000);
  const share = (cpuTime([vtep.pid]).processes - before) / IDLE_SECONDS;
  row("CPU when idle", "0.2 %", `${(100 * share).toFixed(2)} % over ${IDLE_SECONDS} s`);
}

async function lists(): Promise<void> {
  const limits = ["--fdb-limit", `${MANY_ENTRIES}`, "--age", "0"];
  await using vtep = await ours.vtep(...network, ...limits).ready();
  const client = new Client(vtep.socket);
  await learn(client, ENTRIES);
  await reach(near, far.address);
  const rtt = async () => (await ping(near, far.address, { count: 500, intervalMs: 4 })).rttMs;
  const times: number[] = [];
  const ratios: number[] = [];
  for (let round = 0; round < 5; round++) {
    const alone = await rtt();
    let going = true;
    const listing = (async () => {
      while (going) {
        const began = performance.now();
        await text(await client.fdbText());
        times.push(performance.now() - began);
        await pause(200);
      }
    })();
    ratios.push((await rtt()) / alone);
    going = false;
    await listing;
  }
  row(
    `listing ${ENTRIES.toLocaleString("en")} entries, median and longest`,
    "1,000 ms",
    `${ms(percentile(times, 50))} and ${ms(Math.max(...times))}`,
  );
  row(
    "mean round trip beside these lists, times that alone",
    "1",
    percentile(ratios, 50).toFixed(2),
    `rounds ${ratios.map((ratio) => ratio.toFixed(2)).join(" ")}`,
  );
}

async function isMisused(): Promise<void> {
  await using vtep = await ours.vtep(...network).ready();
  await reach(near, far.address);
  const throughput = async () => {
    const { received } = await iperf3(near, far, { seconds: 5, args: TCP });
    return received.bits_per_second;
  };
  const ratios: number[] = [];
  let calls = 0;
  for (let round = 0; round < 3; round++) {
    const alone = await throughput();
    const end = new AbortController();
    const misusing = misuse(vtep.socket, end.signal);
    ratios.push((await throughput()) / alone);
    end.abort();
    const answers = await misusing;
    if (answers.wrong.length > 0) throw new Error(`wrong answers: ${answers.wrong[0]}`);
    calls += answers.calls;
  }
  row(
    "1 Gbit/s of TCP beside clients without manners, times that alone",
    "0.95",
    percentile(ratios, 50).toFixed(2),
    `${calls.toLocaleString("en")} calls`,
  );
}

async function remembers(): Promise<void> {
  const limits = ["--fdb-limit", `${MANY_ENTRIES}`, "--age", "0"];
  await using vtep = await ours.vtep(...network, ...limits).ready();
  await learn(new Client(vtep.socket), MANY_ENTRIES - 10);
  const status = readFileSync(`/proc/${vtep.pid}/status`, "utf8");
  const mib = Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)![1]) / 1024;
  row("resident with 1,000,000 entries", "200 MB", `${(mib * 1.048576).toFixed(0)} MB`);
}

function learn(client: Client, count: number): Promise<void> {
  return learnMacs(ours, client, { network: "blue", tap: "vtep42", count }, 300_000);
}

/** What 20,000 datagrams and 1 Gbit/s of TCP a second go through while something happens. */
async function beside(happens: () => Promise<void>, seconds: number): Promise<string[]> {
  const tcp = iperf3(far, near, { seconds, args: TCP });
  const udp = blast(near, far, { ...UDP, seconds });
  await pause(1500);
  await happens();
  const { sent, lost, silence, reordered } = await udp;
  const { received } = await tcp;
  return [
    `${lost} of ${sent} lost`,
    `silence ${ms(1000 * silence)}`,
    ...(reordered > 0 ? [`${reordered} reordered`] : []),
    `TCP ${(received.bits_per_second / 1e9).toFixed(2)} Gbit/s`,
  ];
}

async function reloads(): Promise<void> {
  const file = join(scratch, "vtep.json"); // which is YAML too
  const red = { vni: 42, bridge: "br0", peers: [theirs.address] };
  const write = (...networks: object[]) => writeFileSync(file, JSON.stringify({ networks }));
  write(red);
  await using vtep = await ours.vtep("--config", file).ready();
  const client = new Client(vtep.socket);
  await reach(near, far.address);
  row("beside nothing", "", ...(await beside(async () => undefined, 8)));
  const reload = async () => {
    for (let at = 0; at < 10; at++) {
      write(red, ...(at % 2 === 0 ? [{ ...red, vni: 43, bridge: "blue" }] : []));
      await client.reload();
      await pause(300);
    }
  };
  row("beside ten reloads", "0 lost", ...(await beside(reload, 8)));
}

async function restarts(): Promise<void> {
  await using machine = await Machine.boot(ours);
  await machine.run("node", `${PACKAGE}/dist/cli.js`, "service", "install");
  await machine.run("mkdir", "-p", "/etc/vtep");
  const file = `networks: [{ vni: 42, peers: [${theirs.address}], bridge: br0 }]`;
  await machine.write("/etc/vtep/vtep.yaml", file);
  await machine.run("systemctl", "start", "vtep");
  await reach(near, far.address);
  const restart = async () => void (await machine.run("systemctl", "restart", "vtep"));
  row("beside systemctl restart", "silence 200 ms", ...(await beside(restart, 8)));
  const kill = async () => {
    await machine.run("systemctl", "kill", "--kill-whom=main", "--signal=SIGKILL", "vtep");
  };
  row("beside SIGKILL", "", ...(await beside(kill, 8)));
  await machine.run("systemctl", "stop", "vtep");
}

/** CPU time of the forwarding thread for a frame of as many flows, each in a network of its own or all in one. */
async function spreads(): Promise<void> {
  const program = compiled("spread");
  const [first, frames, rate] = [1001, 200_000, 40_000];
  const ratios: Record<"in" | "out", number[]> = { in: [], out: [] };
  const costs = async (networks: number) => {
    const file = join(scratch, "networks.json");
    const all = Array.from({ length: networks }, (_, at) => {
      return { vni: first + at, peers: [theirs.address], tap: `t${at + 1}` };
    });
    writeFileSync(file, JSON.stringify({ networks: all }));
    await using vtep = await ours.vtep("--config", file).ready();
    const cost = async (way: "in" | "out") => {
      const [host, where] = way === "in" ? [theirs, ours.address] : [ours, "t"];
      const send = async (count: number) => {
        const args = [where, first, networks, NETWORKS, count, rate].map(String);
        await host.run(program, way, ...args);
      };
      await send(NETWORKS); // each is learned, and V8 has compiled
      const before = threadTimes(vtep.pid);
      await send(frames);
      const after = threadTimes(vtep.pid);
      return Math.max(...[...after].map(([thread, time]) => time - (before.get(thread) ?? 0)));
    };
    return { in: await cost("in"), out: await cost("out") };
  };
  for (let round = 0; round < 3; round++) {
    const [one, many] = [await costs(1), await costs(NETWORKS)];
    for (const way of ["in", "out"] as const) ratios[way].push(many[way] / one[way]);
  }
  for (const way of ["in", "out"] as const) {
    const [least, most] = [Math.min(...ratios[way]), Math.max(...ratios[way])];
    const range = `${least.toFixed(2)} to ${most.toFixed(2)}`;
    const what = way === "in" ? "from the underlay" : "from a TAP";
    row(
      `CPU per frame ${what}, ${NETWORKS} networks`,
      "1.5 times one",
      `${percentile(ratios[way], 50).toFixed(2)} (${range})`,
    );
  }
}

/** The highest rate, for a minute: memory of each agent, and what V8 collects of a thread that forwards. */
async function sustains(): Promise<void> {
  await using wire = await Lab.draw({ hosts: 2, mode: "wire" });
  const [one, other] = [wire.host(1), wire.host(2)];
  const [from, to] = [await one.container(), await other.container()];
  const preload = fileURLToPath(new URL("collections.cjs", import.meta.url));
  const start = (host: Host, peer: Host) => {
    const way = ["env", `NODE_OPTIONS=--require=${preload}`];
    return host.vtepBy(way, "--vni", "42", "--bridge", "br0", "--peer", peer.address).ready();
  };
  await using near = await start(one, other);
  await using far = await start(other, one);
  const agents = [near, far];
  await reach(from, to.address);
  const loads = {
    "a TCP stream": (seconds: number) => iperf3(from, to, { seconds }),
    "64-byte UDP, unpaced": (seconds: number) => blast(from, to, { size: 64, seconds }),
  };
  for (const [name, load] of Object.entries(loads)) {
    await load(WARM_UP_SECONDS);
    const before = agents.map(({ pid, stderr }) => ({ pid, said: stderr.length }));
    const memory = agents.map(({ pid }) => residentMegabytes([pid]));
    await load(MINUTE_SECONDS);
    const said = agents.map(({ stderr }, at) => stderr.slice(before[at]!.said)).join("");
    const collected = (kind: string) =>
      [...said.matchAll(RegExp(`^collected ${kind} [1-9]`, "gm"))].length;
    row(
      `a minute of ${name}`,
      "no growth, no major collection",
      ...agents.map(({ pid }, at) => {
        return `${memory[at]!.toFixed(0)} to ${residentMegabytes([pid]).toFixed(0)} MB`;
      }),
      `${collected("major")} major and ${collected("minor")} minor collections`,
    );
  }
}

/** One TCP stream with IPv6 inside, and with an IPv6 underlay, beside IPv4 in IPv4. */
async function carriesIpv6(): Promise<void> {
  await using wire = await Lab.draw({ hosts: 2, mode: "wire" });
  const [from, to] = [await wire.host(1).container(), await wire.host(2).container()];
  for (const end of [from, to]) await prepare(end);
  const stream = async (family: 4 | 6, address: string) => {
    await using _ = await wire.join(["native", "native"], { family });
    await reach(from, to.address);
    await pause(1000);
    const { received } = await iperf3(from, to, { args: ["--client", address] });
    return received.bits_per_second;
  };
  const inside: number[] = [];
  const underlay: number[] = [];
  for (let round = 0; round < IPV6_ROUNDS; round++) {
    const ipv4 = await stream(4, to.address);
    inside.push((await stream(4, to.address6)) / ipv4);
    underlay.push((await stream(6, to.address)) / ipv4);
  }
  for (const [what, ratios] of Object.entries({ inside, "as underlay": underlay })) {
    const range = `${Math.min(...ratios).toFixed(2)} to ${Math.max(...ratios).toFixed(2)}`;
    row(`TCP, IPv6 ${what}`, "0.8 of IPv4", `${percentile(ratios, 50).toFixed(2)} (${range})`);
  }
}

function ms(time: number): string {
  return `${Math.round(time)} ms`;
}
