import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { blast } from "../../bench/blast.ts";
import { Lab } from "../lab/lab.ts";
import { iperf3, reach } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import { cli } from "../lab/vtep.ts";

const SCHED_OTHER = 0;
const SCHED_FIFO = 1;
const SCHED_BATCH = 3;

const lab = await Lab.draw({ hosts: 2 });
afterAll(() => lab[Symbol.asyncDispose]());
const near = await lab.host(1).container();
const far = await lab.host(2).container();
const args = ["--vni", "42", "--bridge", "br0", "--peer", lab.host(2).address];

/** The scheduling policies of a process's threads, the main one's first: proc_pid_stat(5). */
function policies(pid: number): number[] {
  return readdirSync(`/proc/${pid}/task`).map((tid) => {
    const stat = readFileSync(`/proc/${pid}/task/${tid}/stat`, "latin1");
    return Number(stat.slice(stat.lastIndexOf(")")).split(" ")[39]);
  });
}

test("a thread runs before others while it carries a stream, and in its turn with single frames", async () => {
  await using vteps = await lab.join(["native", "native"]);
  const pids = vteps.map((vtep) => (vtep as unknown as { pid: number }).pid);
  await reach(near, far.address);
  const first = () => pids.map((pid) => policies(pid).filter((is) => is === SCHED_FIFO).length);
  expect(first()).toEqual([0, 0]);
  const stream = iperf3(near, far, { seconds: 3 });
  await until("both run first", () => first().every((count) => count === 1));
  expect(pids.map((pid) => policies(pid)[0])).toEqual([SCHED_OTHER, SCHED_OTHER]);
  await stream;
  await blast(near, far, { size: 64, seconds: 0.3 });
  expect(first()).toEqual([0, 0]);
});

/** The agent on host 1, by way of another program, while a stream of host 2's kernel crosses it. */
async function streamed(
  way: string[],
  ...more: string[]
): Promise<{ said: string; policies: Set<number> }> {
  await using _ = await lab.host(2).kernelVxlan({ vni: 42, peers: [lab.host(1).address] });
  const socket = ["--socket", join(tmpdir(), `vtep-pace-${process.pid}.sock`)];
  const [command, ...words] = [...way, "node", cli, "run", ...args, ...socket, ...more];
  const child = lab.host(1).spawn(command!, ...words);
  const ended = once(child, "close");
  let said = "";
  child.stdout.on("data", (text) => {
    said += text;
  });
  await until("it is ready", () => said.includes('"msg":"ready"'));
  await reach(near, far.address);
  const seen = new Set<number>();
  const stream = iperf3(far, near, { seconds: 1 });
  let streams = true;
  void stream.finally(() => {
    streams = false;
  });
  await until("it has crossed", () => {
    for (const policy of policies(child.pid!)) seen.add(policy);
    return !streams;
  });
  expect((await stream).received.bytes).toBeGreaterThan(10_000_000);
  child.kill();
  expect(await ended).toEqual([0, null]);
  return { said, policies: seen };
}

const told = "round trips beside a TCP stream take longer than they need";

test("without CAP_SYS_NICE a thread waits for its turn, and the log says what that costs", async () => {
  const { said, policies } = await streamed(["setpriv", "--bounding-set=-sys_nice"]);
  expect(said).toContain(`"reason":"EPERM","msg":"${told}`);
  expect(policies).toEqual(new Set([SCHED_OTHER]));
});

test("a policy of the user's own is left alone", async () => {
  const { said, policies } = await streamed(["chrt", "--batch", "0"]);
  expect(said).not.toContain(told);
  expect(policies).toEqual(new Set([SCHED_BATCH]));
});

test("a thread that polls busily leaves the core to others", async () => {
  const { said, policies } = await streamed(["env"], "--busy-poll", "50");
  expect(said).not.toContain(told);
  expect(policies).toEqual(new Set([SCHED_OTHER]));
});
