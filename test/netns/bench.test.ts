import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  watch,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { blast } from "../../bench/blast.ts";
import { latencies, plots } from "../../bench/html.ts";
import { delivered, measurements } from "../../bench/measurements.ts";
import type { Finding } from "../../bench/report.ts";
import { unlessGone } from "../lab/gone.ts";
import type { Container } from "../lab/host.ts";
import { Lab } from "../lab/lab.ts";
import { hears, reach } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import { ROOT } from "../native/fixture.ts";

// Every plot has a figure of these.
const MEASURES = ["tcp1", "rtt", "udp64", "udp64-paced", "udp1300", "udp1300-paced", "footprint"];
const NAMES = ["kernel", "native"];

const folder = mkdtempSync(join(tmpdir(), "vtep-bench-test-"));
afterAll(() => rmSync(folder, { recursive: true }));
const [jsonFile, htmlFile] = [join(folder, "bench.json"), join(folder, "bench.html")];

let stdout: string;
let stderr: string;
let json: {
  conditions: Record<string, string>;
  baseline: string;
  modes: { wire: { conditions: Record<string, string>; rounds: number; figures: Finding[] } };
};
let page: string;
const interrupted = { file: join(folder, "interrupted.json"), stdout: "", closed: [] as unknown[] };

const broken = { stderr: "", page: "", maps: [] as string[], closed: [] as unknown[] };

const running: ChildProcess[] = [];
afterAll(() => {
  for (const { pid, exitCode } of running) if (exitCode === null) process.kill(-pid!, "SIGTERM");
});

const NATIVE = ["--no-profile", "--tunnel", "native"];

/** Starts it for as short as it can be. */
function bench(...options: string[]) {
  const few = ["--mode", "wire", "--seconds", "0.1"];
  const args = ["run", "bench", "--", ...few, ...options];
  const env = { ...process.env, PATH: `${folder}:${process.env.PATH}` };
  const npm = spawn("npm", args, { cwd: ROOT, env, stdio: "pipe", detached: true });
  npm.stdin.end();
  running.push(npm);
  return { npm, closed: once(npm, "close") };
}

async function wholeRun(): Promise<void> {
  const files = ["--json", jsonFile, "--html", htmlFile];
  const few = ["--pairs", "1", "--measure", ...MEASURES];
  const { npm, closed } = bench(...NATIVE, ...few, ...files);
  [stdout, stderr] = await Promise.all([text(npm.stdout), text(npm.stderr)]);
  expect(await closed, stderr).toEqual([0, null]);
  json = JSON.parse(readFileSync(jsonFile, "utf8"));
  page = readFileSync(htmlFile, "utf8");
}

async function interruptedRun(): Promise<void> {
  const few = ["--measure", "footprint", "--json", interrupted.file];
  const { npm, closed } = bench(...NATIVE, ...few);
  const stdout = text(npm.stdout);
  await hears(npm.stderr, "round 2/3");
  process.kill(-npm.pid!, "SIGINT"); // to all of them, as a terminal does
  interrupted.closed = await closed;
  interrupted.stdout = await stdout;
}

/** With a tunnel that cannot be started, a perf that cannot report, a full disk, and nobody who reads. */
async function brokenRun(): Promise<void> {
  const install = (name: string, script: string) =>
    writeFileSync(join(folder, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  install("fastd", "exit 1");
  install("perf", "[ $1 = record ]");
  const before = [...perfMaps(), ...v8Logs()];
  const html = join(folder, "broken.html");
  const files = ["--json", "/dev/full", "--html", html];
  const few = ["--pairs", "2", "--measure", "footprint", ...files];
  const { npm, closed } = bench("--tunnel", "direct", "fastd", ...few);
  npm.stdout.destroy();
  broken.stderr = await text(npm.stderr);
  broken.maps = [...perfMaps(), ...v8Logs()].filter((name) => !before.includes(name));
  broken.closed = await closed;
  broken.page = readFileSync(html, "utf8");
}

/** What V8 has written for perf, of this checkout's code. */
function perfMaps(): string[] {
  const all = readdirSync("/tmp").filter((name) => /^perf-\d+\.map$/.test(name));
  const text = (name: string) => unlessGone(() => readFileSync(join("/tmp", name), "utf8"));
  return all.filter((name) => text(name)?.includes(ROOT));
}

/** What V8 logs beside that, of any process of this checkout's. */
function v8Logs(): string[] {
  return readdirSync(ROOT).filter((name) => /^isolate-.*-v8\.log$/.test(name));
}

/** The first hosts that each run drew, by its process group. */
const drawn = new Map<number, Set<string>>();

// At once, as nobody judges their figures: one after the other they take 10 s more.
beforeAll(async () => {
  const names = "/run/netns"; // where `ip netns add` keeps them
  mkdirSync(names, { recursive: true });
  const watcher = watch(names, (_event, name) => {
    const [, pid] = /^lab-(\d+)-.*-h1$/.exec(name ?? "") ?? [];
    const stat = pid && unlessGone(() => readFileSync(`/proc/${pid}/stat`, "utf8"));
    if (!stat) return; // somebody's whom a signal has ended, removed
    const group = Number(stat.slice(stat.lastIndexOf(")")).split(" ")[3]); // pgrp of proc(5)
    drawn.set(group, (drawn.get(group) ?? new Set()).add(name!));
  });
  try {
    await Promise.all([wholeRun(), interruptedRun(), brokenRun()]);
  } finally {
    watcher.close();
  }
}, 60_000);

test("every tunnel of a round has hosts of its own, and so has a profile", () => {
  const [whole, , broken] = running.map(({ pid }) => drawn.get(pid!)?.size);
  expect(whole).toBe(2);
  expect(broken).toBe(2 * 3 + 1);
});

/** What is between the tags of that name, without other tags. */
function inside(tag: string, html: string): string[] {
  return all(RegExp(`<${tag}[ >].*?</${tag}>`, "gs"), html).map((element) =>
    element.replace(/<[^>]*>/g, ""),
  );
}

function all(pattern: RegExp, html: string): string[] {
  return [...html.matchAll(pattern)].map(([whole, group]) => group ?? whole);
}

test("progress is shown, and nothing has failed", () => {
  expect(stderr).not.toMatch(/no figure|could not be measured/);
  for (const name of NAMES) {
    for (const measure of MEASURES) {
      expect(stderr).toContain(`wire mode, round 1/1, ${name}: ${measure}\n`);
    }
  }
});

test("that one round shows little is said, and for how long TCP was measured", () => {
  expect(stdout).toContain("Medians of 1 round of 0.1 s (TCP: 1 s) ±");
  expect(stdout).toContain("Fewer than 3 rounds show little");
});

test("what it holds for is on the terminal, in the file and on the page", () => {
  expect(Object.keys(json.conditions)).toEqual(
    expect.arrayContaining(["system", "cpu", "node", "commit", "command line", "MTU"]),
  );
  const { conditions } = json.modes.wire;
  expect(Object.keys(conditions)).toEqual(NAMES);
  const terms = inside("dt", page);
  for (const name of Object.keys({ ...json.conditions, ...conditions })) {
    expect(stdout).toMatch(RegExp(`^${name} `, "m"));
    expect(terms).toContain(name);
  }
});

test("the file has medians of both, and ratios of what is better or worse", () => {
  const { rounds, figures } = json.modes.wire;
  expect(rounds).toBe(1);
  expect(json.baseline).toBe("kernel");
  const measured = new Set(figures.map(({ measurement }) => measurement));
  expect([...measured]).toEqual(MEASURES);
  for (const { figure, better, subjects } of figures) {
    const { kernel, native } = subjects;
    if (!figure.startsWith("memory")) expect(kernel?.median, figure).toBeTypeOf("number");
    expect(native?.median, figure).toBeTypeOf("number");
    if (better === "neither") expect(native?.ratio, figure).toBeUndefined();
    else expect(native?.ratio?.median, figure).toBeCloseTo(native!.median / kernel!.median);
  }
});

describe("the page", () => {
  test("has every plot, with finite figures of both in each", () => {
    const figures = all(/<figure>.*?<\/figure>/gs, page);
    const titles = figures.map((figure) => /<b>(.*?)<\/b>/.exec(figure)![1]);
    expect(titles).toEqual([...plots, ...latencies].map(({ title }) => title));
    for (const [at, figure] of figures.entries()) {
      const charts = all(/<svg.*?<\/svg>/gs, figure);
      expect(charts.length, titles[at]).toBeGreaterThan(0);
      for (const chart of charts) {
        expect(all(/class="name"[^>]*>(.*?)</g, chart), titles[at]).toEqual(NAMES);
        const values = all(/class="value"[^>]*>(.*?)</g, chart).map(Number);
        expect(values, titles[at]).toHaveLength(NAMES.length);
        expect(values.every(Number.isFinite), `${titles[at]}: ${values}`).toBe(true);
        expect(chart).not.toMatch(/NaN|Infinity|undefined/);
      }
    }
  });

  test("has finite figures of both in every row of its table", () => {
    const [table, ...others] = all(/<table>.*?<\/table>/gs, page);
    expect(others).toEqual([]);
    expect(inside("th", table!)).toEqual(["", "", ...NAMES, "native ÷ kernel"]);
    const rows = all(/<tr[^>]*>(<td>.*?)<\/tr>/gs, table!).map((row) => inside("td", row));
    expect(rows.length).toBeGreaterThan(20);
    for (const [name, , ...cells] of rows) {
      const isOfProcesses = name!.startsWith("memory"); // the kernel has none
      for (const cell of cells.slice(isOfProcesses ? 1 : 0, NAMES.length)) {
        expect(cell, name).toMatch(/^\d+(\.\d+)? ?(±|\()/);
      }
    }
  });

  test("loads nothing from elsewhere", () => {
    expect(page).not.toMatch(/https?:|url\(|@import|\ssrc\s*=|<(script|link|img|iframe)\b/i);
  });
});

test("a tunnel that does not work leaves a gap, and no other does", () => {
  const gaps = broken.stderr.match(/^.*(?= could not be measured: )/gm);
  expect(gaps).toEqual([1, 2].map((round) => `wire mode, round ${round}/2, fastd`));
});

test("a profile that cannot be taken is left out, and leaves nothing behind", () => {
  expect(broken.stderr).toContain("wire mode, direct could not be profiled: ");
  expect(inside("th", broken.page)).toContain("direct");
  expect(broken.page).not.toContain("compiled JavaScript");
  expect(broken.maps).toEqual([]);
});

test("Ctrl-C in a profile leaves nothing of it behind", async () => {
  const before = [...perfMaps(), ...v8Logs()];
  const few = ["--tunnel", "native", "--pairs", "1", "--measure", "footprint"];
  const { npm, closed } = bench(...few); // with the perf above
  npm.stdout.resume();
  await hears(npm.stderr, "native: profile");
  await until("a log of V8's", () => v8Logs().length > before.length, 10_000);
  process.kill(-npm.pid!, "SIGINT");
  expect(await closed).toEqual([130, null]);
  expect([...perfMaps(), ...v8Logs()]).toEqual(before);
});

test("a file that cannot be written costs no other, whether or not anybody reads the table", () => {
  expect(broken.stderr).toContain("bench: /dev/full could not be written: ENOSPC");
  expect(broken.stderr).not.toContain("EPIPE");
  expect(broken.page).toContain("start-up");
  expect(broken.closed).toEqual([1, null]);
});

test.each(["compare.ts", "builds.ts", "agent.ts"])(
  "%s says in a sentence that it needs root",
  (file) => {
    const args = file === "builds.ts" ? ["kernel", "kernel"] : [];
    const command = ["--user", "node", "--import", "tsx", `bench/${file}`, ...args];
    const { status, stderr } = spawnSync("unshare", command, { cwd: ROOT, encoding: "utf8" });
    expect(status).toBe(1);
    expect(stderr).toMatch(/^bench: drawing network namespaces needs root$/m);
    expect(stderr).not.toContain("    at ");
  },
);

/** What a benchmark shows that is interrupted when it says this. */
async function shownAtInterrupt(args: string[], when: string, env = process.env): Promise<string> {
  const options = { cwd: ROOT, env, stdio: "pipe", detached: true } as const;
  const bench = spawn(process.execPath, args, options);
  running.push(bench);
  const closed = once(bench, "close");
  const stdout = text(bench.stdout);
  await hears(bench.stderr, when);
  bench.kill("SIGINT");
  expect(await closed).toEqual([130, null]);
  return stdout;
}

test("builds that are compared are shown as far as they were when it is interrupted", async () => {
  const few = ["--measure", "footprint", "--pairs", "1"];
  const args = ["--import", "tsx", "bench/builds.ts", "kernel", "kernel", ...few];
  expect(await shownAtInterrupt(args, "turn 2/")).toContain("÷ 1 kernel");
});

test("what could not be measured shows in the exit code, too", async () => {
  const { npm, closed } = bench("--tunnel", "fastd", "--measure", "footprint", "--pairs", "1");
  npm.stdout.resume();
  expect(await text(npm.stderr)).toContain("fastd could not be measured: ");
  expect(await closed).toEqual([1, null]);
});

test("a tunnel that cannot be described is not left beside the next one", async () => {
  writeFileSync(join(folder, "ss"), "#!/bin/sh\nexit 7\n", { mode: 0o755 });
  const { npm, closed } = bench(...NATIVE, "--measure", "footprint", "--pairs", "2");
  npm.stdout.resume();
  const reasons = (await text(npm.stderr)).match(/could not be measured: .*/g);
  rmSync(join(folder, "ss"));
  await closed;
  const reason = expect.stringMatching(/: ss .*: exit 7/);
  expect(reasons).toEqual([reason, reason]);
});

/** Two containers that reach each other by kernel VXLAN. */
async function kernelPair(lab: Lab): Promise<[Container, Container]> {
  const near = await lab.host(1).container();
  const far = await lab.host(2).container();
  await lab.join(["kernel", "kernel"]); // goes with the lab
  await reach(near, far.address);
  return [near, far];
}

test("pings that are lost are told of", async () => {
  await using lab = await Lab.draw({ hosts: 2 });
  const [near, far] = await kernelPair(lab);
  await using _rule = await far.rule(
    "prerouting",
    "icmp type echo-request numgen inc mod 4 0 drop",
  );
  const { figures, take } = measurements.find(({ name }) => name === "rtt")!;
  const { values } = await take({ near, far, pids: [], startedInMs: 0, seconds: 0.4 });
  expect(values[figures.findIndex(({ name }) => name === "pings lost")]).toBe(25);
});

test("a slow link's rate is told, however much its queue takes meanwhile", async () => {
  await using lab = await Lab.draw({ hosts: 2 });
  const [near, far] = await kernelPair(lab);
  const shaper = "tbf rate 80mbit burst 64k limit 30m";
  await lab.host(1).run(...`tc qdisc add dev eth0 root ${shaper}`.split(" "));
  const run = await blast(near, far, { size: 1300, seconds: 0.5, rate: 12_000 });
  expect(run.lost).toBe(0);
  const megabits = (delivered(run) * 1000 * 1300 * 8) / 1e6;
  expect(megabits).toBeGreaterThan(20);
  expect(megabits).toBeLessThan(80);
});

test("a part of bench:agent that fails is named, and costs no other", () => {
  const bin = join(folder, "broken"); // a Node that does not start
  mkdirSync(bin);
  writeFileSync(join(bin, "node"), "#!/bin/sh\nexit 1\n", { mode: 0o755 });
  const env = { ...process.env, PATH: `${bin}:${process.env.PATH}` };
  const args = ["--import", "tsx", "bench/agent.ts", "starts"];
  const options = { cwd: ROOT, env, encoding: "utf8" } as const;
  const { status, stdout, stderr } = spawnSync(process.execPath, args, options);
  expect(status).toBe(1);
  expect(stderr).toMatch(/^bench: starts: it ended before/);
  expect(stderr).not.toContain("    at ");
  expect(stdout).toMatch(/starts +failed/);
  expect(stdout).toMatch(/^Linux .*, Node v.*, load before: \d/m);
});

test("what bench:agent has measured is shown when it is interrupted", async () => {
  const bin = join(folder, "stuck"); // a Node that twice does not start, and then says nothing
  mkdirSync(bin);
  const script = "echo >>$0.log; [ $(wc -l <$0.log) -gt 2 ] && exec sleep 60; exit 1";
  writeFileSync(join(bin, "node"), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  const env = { ...process.env, PATH: `${bin}:${process.env.PATH}` };
  const args = ["--import", "tsx", "bench/agent.ts", "starts", "idles"];
  expect(await shownAtInterrupt(args, "bench: starts:", env)).toMatch(/^ +starts +failed$/m);
});

test("an installation that is interrupted is not begun again", () => {
  const bin = join(folder, "bin"); // there is no tunnel in it
  mkdirSync(bin);
  writeFileSync(join(bin, "apt-get"), "#!/bin/sh\necho $1 >&2\nkill $$\n", { mode: 0o755 });
  const args = ["--import", "tsx", "bench/compare.ts", "--install", "--tunnel", "socat"];
  const env = { ...process.env, PATH: bin };
  const { status, stderr } = spawnSync(process.execPath, args, {
    cwd: ROOT,
    env,
    encoding: "utf8",
  });
  expect({ status, stderr }).toEqual({
    status: 1,
    stderr: "install\nbench: apt-get was interrupted\n",
  });
});

test("both files have to be of different names", () => {
  const files = ["--json", "bench.out", "--html", "./bench.out"];
  const args = ["--import", "tsx", "bench/compare.ts", ...files];
  const { status, stderr } = spawnSync("node", args, { cwd: ROOT, encoding: "utf8" });
  expect({ status, stderr }).toEqual({
    status: 2,
    stderr: "--json and --html name one file, ./bench.out: give each its own\n",
  });
});

test.each(["--json", "--html"])(
  "%s with an empty name is refused before anything is measured",
  (option) => {
    const args = ["--import", "tsx", "bench/compare.ts", option, ""];
    const options = { cwd: ROOT, encoding: "utf8", timeout: 20_000 } as const;
    const { status, stdout, stderr } = spawnSync("node", args, options);
    expect({ status, stdout }).toEqual({ status: 2, stdout: "" });
    expect(stderr).toMatch(/^what is measured could not be written: ENOENT: .*, open ''$/m);
  },
);

test("Ctrl-C in the second round has the first one shown and written", () => {
  expect(interrupted.closed).toEqual([130, null]);
  expect(interrupted.stdout).toContain("Medians of 1 round");
  const { rounds, figures } = JSON.parse(readFileSync(interrupted.file, "utf8")).modes.wire;
  expect(rounds).toBe(1);
  expect(figures[0].subjects.native.median).toBeGreaterThan(0);
});
