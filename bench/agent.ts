/**
 * `npm run bench:agent`: what an operator of the agent is promised, measured on the built command, with
 * kernel VXLAN at the other end and a real systemd around it where one is needed.
 *
 * `npm run bench:agent -- starts attaches` does these parts only; `--help` names them all.
 *
 * `sustains` and `carriesIpv6` are of the dataplane: over a wire, unpaced, ours at both ends.
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
import { Argument } from "commander";
import { Client } from "../src/api/client.ts";
import type { Host } from "../test/lab/host.ts";
import { Lab } from "../test/lab/lab.ts";
import { learnMacs, misuse } from "../test/lab/misuse.ts";
import { create, Namespace, succeeded } from "../test/lab/namespace.ts";
import { PLUGIN } from "../test/lab/podman.ts";
import { Machine, PACKAGE } from "../test/lab/systemd.ts";
import { hears, iperf3, ping, reach } from "../test/lab/traffic.ts";
import { cli, type Vtep } from "../test/lab/vtep.ts";
import { blast, compiled } from "./blast.ts";
import { benchmark, exitOnSignals, note } from "./command-line.ts";
import { conditions } from "./conditions.ts";
import { cpuTime, threadTimes } from "./cpu.ts";
import { delivered, packetRates, pingTimes, residentMegabytes } from "./measurements.ts";
import { Scratch } from "./scratch.ts";
import { percentile } from "./statistics.ts";
import { drawSite, REST_MS } from "./subjects.ts";
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
const REMOTES = 1_000;
/** Of what spread.c sends: the first network, frames, and frames a second. */
const FIRST_VNI = 1001;
const FRAMES = 200_000;
const RATE = 40_000;
/** Frames that are flooded, and so many a second. */
const FLOODED = 1000;
const FLOOD_RATE = 100;
/** Of a station whose MAC nobody knows. */
const PINGS = 100;
const FROM = { in: "from the underlay", out: "from a TAP" } as const;
const MINUTE_SECONDS = 60;
const WARM_UP_SECONDS = 15;
/** Between two looks at the memory. */
const LOOK_MS = 15_000;
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
  scales,
  floods,
  sustains,
  carriesIpv6,
];
const names = parts.map(({ name }) => name);
const [chosen] = benchmark("npm run bench:agent --")
  .description("What an operator of the agent is promised, measured beside what is wanted")
  .addArgument(new Argument("[PART...]", "what to measure").choices(names).default(names, "all"))
  .parse().processedArgs as [string[]];

await using lab = await Lab.draw({ hosts: 2 }).catch(({ message }: Error) => {
  note(`bench: ${message}`);
  process.exit(1);
});
const { system, cpu, node, commit, "load before": load } = conditions();
process.stdout.write(`${system}, ${cpu}, Node ${node}, commit ${commit}, load before: ${load}\n`);
const [ours, theirs] = [lab.host(1), lab.host(2)] as const;
const near = await ours.container();
const far = await theirs.container();
await theirs.kernelVxlan({ vni: 42, peers: [ours.address] });
const network = ["--vni", "42", "--name", "blue", "--peer", theirs.address, "--bridge", "br0"];
const scratch = Scratch.folder("agent").path;

const show = () => process.stdout.write(`\n${table(["what", "wanted", "found"], rows)}\n`);
exitOnSignals(() => {
  if (rows.length === 0) return note("bench: interrupted before anything was measured");
  note("bench: interrupted; what there is follows");
  show();
});

for (const part of parts.filter(({ name }) => chosen.includes(name))) {
  await part().catch(({ message }: Error) => {
    rows.push([part.name, "", "failed"]);
    note(`bench: ${part.name}: ${message}`); // the others are worth having
    process.exitCode = 1;
  });
}
show();

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
    const { attach, detach } = await import(${module("attach.ts")});
    const { HeldNamespace } = await import(${module("namespace.ts")});
    const { linkName } = await import(${module("attachments.ts")});
    const { Client } = await import(${module("api/client.ts")});
    const client = new Client(${JSON.stringify(vtep.socket)});
    const namespace = new HeldNamespace(${JSON.stringify(target)});
    const owner = namespace.id;
    const wanted = { network: "blue", target: ${JSON.stringify(target)}, namespace, owner, by: "attach", ifname: "eth0", addresses: ["10.1.0.201/24"], gateways: [], routes: [], published: [] };
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

type Way = "in" | "out";

interface Flows {
  networks?: number;
  macs: number;
  flows: number;
}

interface Spread extends Flows {
  frames: number;
  rate?: number;
  /** Of the interfaces that frames leave by, with 1, 2, … behind it. */
  prefix?: string;
}

/** Frames of spread.c, from the underlay or by interfaces, which are TAPs unless told. */
async function spread(way: Way, wanted: Spread): Promise<void> {
  const { networks = 1, macs, flows, frames, rate = RATE, prefix = "t" } = wanted;
  const [host, where] = way === "in" ? [theirs, ours.address] : [ours, prefix];
  const args = [way, where, ...[FIRST_VNI, networks, macs, flows, frames, rate].map(String)];
  const finished = await host.finish([compiled("spread"), ...args], { timeoutMs: 120_000 });
  succeeded(`spread ${args.join(" ")}`, finished);
}

/** Seconds of CPU time that the busiest thread takes meanwhile: the one that forwards, or half floods for it. */
async function costOf({ pid }: Vtep, forwards: () => Promise<void>): Promise<number> {
  const before = threadTimes(pid);
  await forwards();
  const after = threadTimes(pid);
  return Math.max(...[...after].map(([thread, time]) => time - (before.get(thread) ?? 0)));
}

/** The same for FRAMES of these flows, when each is learned and V8 has compiled. */
async function costs(vtep: Vtep, of: Flows, learning: { frames: number; rate?: number }) {
  const cost = async (way: Way) => {
    await spread(way, { ...of, ...learning });
    return costOf(vtep, () => spread(way, { ...of, frames: FRAMES }));
  };
  return { in: await cost("in"), out: await cost("out") };
}

function ratio(what: string, wanted: string, all: number[]): void {
  const ratios = all.filter(Number.isFinite);
  if (ratios.length === 0) return row(what, wanted, "–");
  const range = `${Math.min(...ratios).toFixed(2)} to ${Math.max(...ratios).toFixed(2)}`;
  row(what, wanted, `${percentile(ratios, 50).toFixed(2)} (${range})`);
}

/** What a frame costs among many of something, beside one among few. */
async function compareCosts(what: string, wanted: string, few: Costs, many: Costs): Promise<void> {
  const ratios: Record<Way, number[]> = { in: [], out: [] };
  for (let round = 0; round < 3; round++) {
    const [less, more] = [await few(), await many()];
    for (const way of ["in", "out"] as const) ratios[way].push(more[way] / less[way]);
  }
  for (const way of ["in", "out"] as const) {
    ratio(`CPU per frame ${FROM[way]}, ${what}`, wanted, ratios[way]);
  }
}

type Costs = () => ReturnType<typeof costs>;

/** CPU time of the forwarding thread for a frame of as many flows, each in a network of its own or all in one. */
async function spreads(): Promise<void> {
  const among = async (networks: number) => {
    const file = join(scratch, "networks.json");
    const all = Array.from({ length: networks }, (_, at) => {
      return { vni: FIRST_VNI + at, peers: [theirs.address], tap: `t${at + 1}` };
    });
    writeFileSync(file, JSON.stringify({ networks: all }));
    await using vtep = await ours.vtep("--config", file).ready();
    const flows = { networks, macs: NETWORKS, flows: NETWORKS };
    return await costs(vtep, flows, { frames: NETWORKS });
  };
  const many = () => among(NETWORKS);
  await compareCosts(`${NETWORKS} networks`, "1.5 times one", () => among(1), many);
}

/** The same for a frame of one of a million MACs in a network, beside one of ten; of as many flows both. */
async function scales(): Promise<void> {
  const one = ["--vni", `${FIRST_VNI}`, "--peer", theirs.address, "--tap", "t1"];
  const among = async (macs: number) => {
    await using vtep = await ours.vtep(...one, "--fdb-limit", `${2 ** 21}`, "--age", "0").ready();
    const learning = { frames: Math.max(macs, FRAMES), rate: 2 * RATE };
    return await costs(vtep, { macs, flows: MANY_ENTRIES }, learning);
  };
  const many = () => among(MANY_ENTRIES);
  await compareCosts(`${MANY_ENTRIES} MACs`, "1.5 times ten", () => among(10), many);
}

/** Kernel VXLAN of the first network, which floods to these. */
async function kernelFloods(host: Host, peers: string[]): Promise<void> {
  const device = `k1 type vxlan id ${FIRST_VNI} dstport 4789 local ${host.address}`;
  await host.ip(`link add ${device}`, "link set k1 up");
  const entries = peers.map((peer) => `fdb append 00:00:00:00:00:00 dev k1 dst ${peer}`);
  const input = entries.join("\n");
  succeeded("bridge fdb", await host.finish(["bridge", "-batch", "-"], { input }));
}

/**
 * CPU time for a frame that every remote gets, of the busiest thread and of all, and of the machine beside kernel
 * VXLAN's. When the last remote has it a first ping shows, for which a station there is asked for its MAC.
 */
async function floods(): Promise<void> {
  const at = (host: number) => `198.18.${host >> 8}.${host & 0xff}`;
  const peers = [...Array.from({ length: REMOTES - 1 }, (_, host) => at(host)), theirs.address];
  // What receives them is another machine's work.
  const empty = ["link add void type bridge", "link set void arp off up"];
  await ours.ip(...empty, "route add 198.18.0.0/15 dev void");
  await kernelFloods(theirs, [ours.address]);
  await theirs.ip("address add 192.0.2.2/24 dev k1");
  const flood = (prefix: string, frames: number) =>
    spread("out", { prefix, macs: 10, flows: 10, frames, rate: FLOOD_RATE });
  /** Milliseconds for a frame. */
  const each = (seconds: number) => (1000 * seconds) / FLOODED;
  /** Milliseconds, each. */
  const firstPings = async (device: string) => {
    await ours.ip(`address add 192.0.2.1/24 dev ${device}`);
    const one = `ip neigh flush dev ${device} && ping -n -c 1 -W 1 192.0.2.2`;
    const all = `for i in $(seq ${PINGS}); do ${one} || exit; done`;
    return pingTimes(await ours.run("sh", "-c", all));
  };
  const own = async () => {
    const to = peers.flatMap((peer) => ["--peer", peer]);
    await using vtep = await ours.vtep("--vni", `${FIRST_VNI}`, ...to, "--tap", "t1").ready();
    await flood("t", FLOODED / 10); // V8 has compiled
    const before = cpuTime([vtep.pid]);
    const thread = await costOf(vtep, () => flood("t", FLOODED));
    const after = cpuTime([vtep.pid]);
    return {
      thread: each(thread),
      threads: each(after.processes - before.processes),
      machine: each(after.machine - before.machine),
      pings: await firstPings("t1"),
    };
  };
  const kernels = async () => {
    await kernelFloods(ours, peers);
    const before = cpuTime([]).machine;
    await flood("k", FLOODED);
    const after = cpuTime([]).machine;
    const pings = await firstPings("k1");
    await ours.ip("link delete k1");
    return { machine: each(after - before), pings };
  };
  const rounds: {
    vtep: Awaited<ReturnType<typeof own>>;
    beside: Awaited<ReturnType<typeof kernels>>;
  }[] = [];
  for (let round = 0; round < 3; round++)
    rounds.push({ vtep: await own(), beside: await kernels() });
  await theirs.ip("link delete k1");
  const flooded = `a frame flooded to ${REMOTES} remotes`;
  const median = (values: number[]) => `${percentile(values, 50).toFixed(2)} ms`;
  const kernel = median(rounds.map(({ beside }) => beside.machine));
  const [thread, threads] = (["thread", "threads"] as const).map((one) =>
    median(rounds.map(({ vtep }) => vtep[one])),
  );
  row(`the busiest thread's CPU, of ${flooded}`, "1.5 ms", thread!);
  row(`all threads' CPU, of ${flooded}`, "", threads!, `kernel VXLAN's ${kernel}`);
  const machines = rounds.map(({ vtep, beside }) => vtep.machine / beside.machine);
  ratio(`the machine's beside kernel VXLAN's, of ${flooded}`, "", machines);
  const [mine, its] = [
    rounds.flatMap(({ vtep }) => vtep.pings),
    rounds.flatMap(({ beside }) => beside.pings),
  ].map(median);
  const first = `first ping of what is behind the last of ${REMOTES} remotes`;
  row(first, "1.5 ms", mine!, `kernel VXLAN's ${its}`);
}

/** The highest rate, for a minute: memory of each agent, and what V8 collects of a thread that forwards. */
async function sustains(): Promise<void> {
  await using wire = await Lab.draw({ hosts: 2, mode: "wire" });
  const [from, to] = [await wire.host(1).container(), await wire.host(2).container()];
  const preload = fileURLToPath(new URL("collections.cjs", import.meta.url));
  const start = (host: Host, peer: Host) => {
    const way = ["env", `NODE_OPTIONS=--require=${preload}`];
    return host.vtepBy(way, "--vni", "42", "--bridge", "br0", "--peer", peer.address).ready();
  };
  await using one = await start(wire.host(1), wire.host(2));
  await using other = await start(wire.host(2), wire.host(1));
  const agents = [one, other];
  await reach(from, to.address);
  const loads = {
    "a TCP stream": (seconds: number) => iperf3(from, to, { seconds }),
    "64-byte UDP, unpaced": (seconds: number) => blast(from, to, { size: 64, seconds }),
  };
  for (const [name, load] of Object.entries(loads)) {
    await load(WARM_UP_SECONDS);
    for (const agent of agents) agent.stderr = "";
    const memory = agents.map(() => [] as number[]);
    const look = () => {
      for (const [at, { pid }] of agents.entries()) memory[at]!.push(residentMegabytes([pid]));
    };
    look();
    const looking = setInterval(look, LOOK_MS);
    await load(MINUTE_SECONDS).finally(() => clearInterval(looking));
    look();
    const said = agents.map(({ stderr }) => stderr).join("");
    const collected = (kind: string) => said.match(RegExp(`^collected ${kind} [1-9]`, "gm")) ?? [];
    row(
      `a minute of ${name}`,
      "no growth, no major collection",
      ...memory.map((sizes) => `${sizes.map((size) => size.toFixed(1)).join(" → ")} MB`),
      `${collected("major").length} major and ${collected("minor").length} minor collections`,
    );
  }
}

/** One TCP stream and packet rates with IPv6 inside, and with an IPv6 underlay, beside IPv4 in IPv4. */
async function carriesIpv6(): Promise<void> {
  await using site = await drawSite("wire");
  const { lab: wire, near: from, far: to } = site;
  for (const end of [from, to]) {
    await end.ip("route change fd01::/64 dev eth0 proto kernel metric 256 congctl cubic");
  }
  /** By what they are of; NaN where no rate was free of loss. */
  const rates = async (family: 4 | 6, address: string): Promise<Record<string, number>> => {
    await using _ = await wire.join(["native", "native"], { family });
    await reach(from, to.address);
    await pause(REST_MS);
    const { received } = await iperf3(from, to, { address });
    const datagrams = { near: from, far: to, pids: [], size: 64, seconds: 1, address };
    const { one, two, paced } = await packetRates(datagrams);
    return {
      TCP: received.bits_per_second,
      "UDP 64 B, one unpaced sender": delivered(one),
      "UDP 64 B, two unpaced senders": delivered(two),
      "UDP 64 B, paced, < 0.1 % lost": paced ? delivered(paced.run) : Number.NaN,
    };
  };
  const ways = {
    ipv4: () => rates(4, to.address),
    inside: () => rates(4, to.address6),
    underlay: () => rates(6, to.address),
  };
  const rounds: Record<keyof typeof ways, Record<string, number>>[] = [];
  for (let round = 0; round < IPV6_ROUNDS; round++) {
    const order = Object.keys(ways) as (keyof typeof ways)[];
    const found = { ipv4: {}, inside: {}, underlay: {} };
    for (const way of round % 2 === 0 ? order : order.reverse()) found[way] = await ways[way]();
    rounds.push(found);
  }
  const places = { inside: "IPv6 inside", underlay: "IPv6 as underlay" } as const;
  for (const [way, place] of Object.entries(places) as ["inside" | "underlay", string][]) {
    for (const what of Object.keys(rounds[0]!.ipv4)) {
      const wanted = what === "TCP" ? "0.8 of IPv4" : "";
      const ratios = rounds.map((of) => of[way][what]! / of.ipv4[what]!);
      ratio(`${what}, ${place}`, wanted, ratios);
    }
  }
}

function ms(time: number): string {
  return `${Math.round(time)} ms`;
}
