import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { blast } from "../../bench/blast.ts";
import { type Endpoints, Lab } from "../lab/lab.ts";
import { iperf3, ping, reach, send } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import type { LogLine, Vtep } from "../lab/vtep.ts";

const SCHED_OTHER = 0;
const SCHED_FIFO = 1;
const SCHED_BATCH = 3;

const lab = await Lab.draw({ hosts: 2 });
afterAll(() => lab[Symbol.asyncDispose]());
const near = await lab.host(1).container();
const far = await lab.host(2).container();
const args = ["--vni", "42", "--bridge", "br0", "--peer", lab.host(2).address];

/** A thread's scheduling policy: proc_pid_stat(5). */
function policy(pid: number, tid: number | string): number {
  const stat = readFileSync(`/proc/${pid}/task/${tid}/stat`, "latin1");
  return Number(stat.slice(stat.lastIndexOf(")")).split(" ")[39]);
}

function policies(pid: number): number[] {
  return readdirSync(`/proc/${pid}/task`).map((tid) => policy(pid, tid));
}

describe("between two hosts", () => {
  let vteps: Endpoints;
  let pids: number[];
  beforeAll(async () => {
    vteps = await lab.join(["native", "native"]);
    pids = vteps.map((vtep) => (vtep as Vtep).pid);
    await reach(near, far.address);
  });
  afterAll(() => vteps[Symbol.asyncDispose]());

  /** How many threads of each process run before others. */
  function first(): number[] {
    return pids.map((pid) => policies(pid).filter((is) => is === SCHED_FIFO).length);
  }

  /** What is done beside a stream, once both threads that forward run before others. */
  async function beside(act: () => Promise<unknown>): Promise<void> {
    expect(first()).toEqual([0, 0]);
    const stream = iperf3(near, far, { seconds: 2 });
    await until("both run first", () => first().every((count) => count === 1));
    expect(pids.map((pid) => policy(pid, pid))).toEqual([SCHED_OTHER, SCHED_OTHER]);
    await stream;
    await act();
  }

  test("threads run before others while they carry a stream, and then no more", async () => {
    await beside(() => until("none does", () => first().every((count) => count === 0)));
  });

  test("threads have their turn as soon as single frames come in numbers", async () => {
    await beside(() => blast(near, far, { size: 64, seconds: 0.3 }));
    expect(first()).toEqual([0, 0]);
  });

  test("a thread has its turn while it does nothing but refuse", async () => {
    const header = Buffer.from("0800000000000700", "hex"); // a VNI that is nobody's
    const strays = Array.from({ length: 2_000 }, () => Buffer.concat([header, Buffer.alloc(60)]));
    await beside(() => send(lab.host(2), { address: lab.host(1).address, port: 4789 }, strays));
    expect(first()[0]).toBe(0);
  });

  test("what a thread lets gather is no work of its own", async () => {
    const [vtep] = vteps as unknown as Vtep[];
    const busy = async () =>
      (await vtep!.metrics()).get('vtep_worker_busy_seconds_total{worker="0"}')!;
    const before = await busy();
    await iperf3(near, far, { seconds: 3, args: ["--bitrate", "2500M"] });
    expect((await busy()) - before).toBeLessThan(0.75 * 3);
  });
});

/** An agent on host 1, by way of another program, while a stream to host 2's kernel crosses it. */
async function streamed(
  way: string[],
  ...more: string[]
): Promise<{ said: LogLine[]; policies: Set<number> }> {
  await using _ = await lab.host(2).kernelVxlan({ vni: 42, peers: [lab.host(1).address] });
  await using vtep = await lab
    .host(1)
    .vtepBy(way, ...args, ...more)
    .ready();
  await reach(near, far.address);
  const seen = new Set<number>();
  const stream = iperf3(near, far, { seconds: 1 });
  let streams = true;
  void stream.finally(() => {
    streams = false;
  });
  await until("it has crossed", () => {
    for (const policy of policies(vtep.pid)) seen.add(policy);
    return !streams;
  });
  expect((await stream).received.bytes).toBeGreaterThan(10_000_000);
  expect(await vtep.stop()).toMatchObject({ code: 0 });
  return { said: vtep.log, policies: seen };
}

const msg = expect.stringMatching(/^round trips beside a TCP stream take longer than they need/);
const told = expect.objectContaining({ msg });

// A turn of four reads of them would be 65,536 datagrams, a tenth of a second of work.
test("nobody waits for a container whose super-frames are of tiny datagrams", async () => {
  await using vteps = await lab.join(["native", "native"]);
  const flooder = await lab.host(1).container();
  await reach(near, far.address);
  await reach(flooder, far.address);
  const script = `import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_UDP, 103, 1)  # UDP_SEGMENT
while True:
  for _ in range(50): s.sendto(bytes(64), ("${far.address}", 9))
  time.sleep(0.001)`;
  const floods = flooder.spawn("timeout", "20", "python3", "-c", script);
  const counted = async () => (await (vteps[0] as Vtep).status()).networks[0]!.counters.encapFrames;
  try {
    await until("they are forwarded", async () => (await counted()) > 10_000);
    const { rttMs } = await ping(near, far.address, { count: 20 });
    expect(rttMs).toBeLessThan(10);
  } finally {
    floods.kill("SIGTERM");
    await once(floods, "close");
  }
});

test("a thread that may, does", async () => {
  const { said, policies } = await streamed([]);
  expect(said).not.toContainEqual(told);
  expect(policies).toContain(SCHED_FIFO);
});

test("without CAP_SYS_NICE a thread waits for its turn, and the log says what that costs", async () => {
  const { said, policies } = await streamed(["setpriv", "--bounding-set=-sys_nice"]);
  expect(said).toContainEqual(expect.objectContaining({ reason: "EPERM", msg }));
  expect(policies).toEqual(new Set([SCHED_OTHER]));
});

test("who was made nice stays so", async () => {
  const { said, policies } = await streamed(["nice", "-n", "5"]);
  expect(said).not.toContainEqual(told);
  expect(policies).toEqual(new Set([SCHED_OTHER]));
});

test("a policy of the user's own is left alone", async () => {
  const { said, policies } = await streamed(["chrt", "--batch", "0"]);
  expect(said).not.toContainEqual(told);
  expect(policies).toEqual(new Set([SCHED_BATCH]));
});

test("a thread that polls busily runs before others while it streams, as any does", async () => {
  const { said, policies } = await streamed([], "--busy-poll", "1000000");
  expect(said).not.toContainEqual(told);
  expect(policies).toContain(SCHED_FIFO);
});

/** How often threads of a process have gone to sleep, other than its first: proc(5). */
function sleeps(pid: number): number {
  const threads = readdirSync(`/proc/${pid}/task`).filter((tid) => tid !== `${pid}`);
  return threads.reduce((sum, tid) => {
    const status = readFileSync(`/proc/${pid}/task/${tid}/status`, "latin1");
    return sum + Number(/^voluntary_ctxt_switches:\s+(\d+)/m.exec(status)![1]);
  }, 0);
}

test("a thread that polls busily sleeps when nothing has come for so long", async () => {
  await using _ = await lab.host(2).kernelVxlan({ vni: 42, peers: [lab.host(1).address] });
  await using vtep = await lab
    .host(1)
    .vtepBy(["chrt", "--rr", "1"], ...args, "--busy-poll", "100") // whoever else has work to do
    .ready();
  await reach(near, far.address);
  const before = sleeps(vtep.pid);
  expect((await ping(near, far.address, { count: 40, intervalMs: 50 })).received).toBe(40);
  expect(sleeps(vtep.pid) - before).toBeGreaterThan(0.75 * 40);
});

test("a thread polls busily while its core is idle, and sleeps beside who works on it", async () => {
  await using _ = await lab.host(2).kernelVxlan({ vni: 42, peers: [lab.host(1).address] });
  const allowed = /^Cpus_allowed_list:\s+(\d+)/m.exec(readFileSync("/proc/self/status", "latin1"));
  const only = ["-c", allowed![1]!];
  await using vtep = await lab
    .host(1)
    .vtepBy(["taskset", ...only], ...args, "--busy-poll", "1000000")
    .ready();
  await reach(near, far.address);
  // Of few pings, while it polls: for 0.3 s after the machine's host has taken the core it does not.
  const slept = async (count: number) => {
    const before = sleeps(vtep.pid);
    expect((await ping(near, far.address, { count, intervalMs: 50 })).received).toBe(count);
    return sleeps(vtep.pid) - before;
  };
  await until("it polls", async () => (await slept(10)) < 0.75 * 10, 20_000);
  const works = near.spawn("taskset", ...only, "sh", "-c", "while :; do :; done");
  try {
    expect(await slept(40)).toBeGreaterThan(0.75 * 40);
  } finally {
    works.kill("SIGKILL");
    await once(works, "close");
  }
});
