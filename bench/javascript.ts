import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { Mode } from "../test/lab/lab.ts";
import { iperf3, reach } from "../test/lab/traffic.ts";
import { blast } from "./blast.ts";
import { Scratch } from "./scratch.ts";
import { drawSite, type Subject } from "./subjects.ts";

/** Percent of a VTEP's CPU time that it spends in compiled JavaScript, by the load that it carries; NaN: not known. */
export type JavaScriptShare = Record<"TCP 1 stream" | "UDP 64 B, one unpaced sender", number>;

/** Where V8 writes what it compiled, for perf to read. */
const mapOf = (pid: number) => `/tmp/perf-${pid}.map`;

/** Why perf cannot look at processes here, and what to do about it; undefined: it can. */
export function whyNoProfile(): string | undefined {
  try {
    execFileSync("perf", ["record", "-q", "-o", "/dev/null", "true"], { stdio: "ignore" });
    return undefined;
  } catch (error) {
    const isMissing = (error as NodeJS.ErrnoException).code === "ENOENT";
    return isMissing
      ? "perf is not installed: apt-get install linux-perf"
      : "perf cannot record here: try `perf record true`";
  }
}

/**
 * Profiles one of ours under two loads, for so many seconds each (TCP: whole ones). It is started for this alone: to
 * tell perf what it compiled, V8 does more than it otherwise would, so no other figure is taken meanwhile.
 */
export async function javaScriptShare(
  subject: Subject,
  mode: Mode,
  seconds: number,
): Promise<JavaScriptShare> {
  await using site = await drawSite(mode);
  const { lab, near, far } = site;
  using scratch = Scratch.folder("perf");
  const before = process.env.NODE_OPTIONS;
  process.env.NODE_OPTIONS = `${before ?? ""} --perf-basic-prof`;
  const written: Scratch[] = [];
  // Of whatever has these options: not only of the agents, and not only when they come to be measured.
  const profiled = new Set<string>();
  // V8 begins a log of its own, too, where it was started, and nothing that NODE_OPTIONS may say keeps it from that.
  const removeLogs = () => {
    for (const name of readdirSync(".")) {
      const pid = /^isolate-.*-(\d+)-v8\.log$/.exec(name)?.[1] ?? "";
      if (profiled.has(pid)) rmSync(name, { force: true });
    }
  };
  process.once("exit", removeLogs); // when it is interrupted
  for (const host of lab.hosts) {
    host.onSpawn = ({ pid }) => {
      profiled.add(`${pid}`);
      written.push(new Scratch(mapOf(pid!)));
    };
  }
  try {
    await using tunnel = await subject.start(lab).finally(() => {
      if (before === undefined) delete process.env.NODE_OPTIONS;
      else process.env.NODE_OPTIONS = before;
    });
    const { pids } = tunnel;
    await reach(near, far.address);
    const during = async (load: () => Promise<unknown>) => {
      await load(); // what is hot gets compiled
      return share(pids, join(scratch.path, "data"), load);
    };
    return {
      "TCP 1 stream": await during(() => iperf3(near, far, { seconds })),
      "UDP 64 B, one unpaced sender": await during(() => blast(near, far, { size: 64, seconds })),
    };
  } finally {
    process.off("exit", removeLogs);
    removeLogs();
    for (const map of written) map[Symbol.dispose]();
  }
}

/** Of 2 s it takes some 8,000 samples, of which chance makes a quarter of a percent to either side. */
async function share(pids: number[], file: string, load: () => Promise<unknown>): Promise<number> {
  const args = ["record", "--quiet", "--freq", "3999", "--output", file, "--pid", pids.join(",")];
  const perf = spawn("perf", args, { stdio: "ignore" });
  const closed = once(perf, "close");
  try {
    await load();
  } finally {
    perf.kill("SIGINT");
    await closed;
  }
  const report = ["report", "--stdio", "--sort", "dso", "--input", file];
  return percentInMaps(execFileSync("perf", report, { encoding: "utf8", stdio: "pipe" }));
}

/** One of its parts in words. */
export function inWords(percent: number): string {
  return Number.isFinite(percent) ? `${percent.toFixed(1)} %` : "unknown";
}

/** Of perf's report by object: compiled JavaScript is what it found in a map, or in no file at all. */
export function percentInMaps(report: string): number {
  const rows = [...report.matchAll(/^\s*([\d.]+)%\s+(\S.*?)\s*$/gm)];
  if (rows.length === 0) return Number.NaN;
  return rows
    .filter(([, , object]) => /^(perf-\d+\.map|\[JIT\].*|\/\/anon)$/.test(object!))
    .reduce((sum, [, percent]) => sum + Number(percent), 0);
}
