import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { cpus, loadavg, release } from "node:os";

/** What a figure holds for, beside its mode: name → value. */
export function conditions(): Record<string, string> {
  const [cpu] = cpus();
  return {
    date: new Date().toISOString(),
    system: `Linux ${release()}`,
    cpu: `${cpus().length} × ${cpu?.model}`,
    node: process.version,
    commit: commitOf("."),
    "command line": ["npm run bench --", ...process.argv.slice(2)].join(" "),
    MTU: "1500 underlay, 1450 overlay",
    "socket buffers": ["rmem_max", "wmem_max", "rmem_default", "wmem_default"]
      .map((name) => `net.core.${name} ${sysctl(`core/${name}`)}`)
      .join(", "),
    TCP: ["tcp_rmem", "tcp_wmem"].map((name) => `${name} ${sysctl(`ipv4/${name}`)}`).join(", "),
    "congestion control": `cubic by the containers' routes (congctl), so without pacing; the machine's default is ${sysctl("ipv4/tcp_congestion_control")}`,
    sources: `${execFileSync("iperf3", ["--version"], { encoding: "utf8" }).split(" (")[0]} (one thread at either end); bench/blast.c (sendmmsg, recvmmsg)`,
    "load before": loadInWords(loadavg(), cpus().length),
  };
}

/** With a warning where other work has run: whatever it was, a benchmark just before included. */
export function loadInWords(loads: number[], cores: number): string {
  const text = loads.map((load) => load.toFixed(1)).join(" ");
  if (loads[0]! <= cores / 2) return text;
  return `${text}: not idle in the last minute; beside other work kernel VXLAN loses less than a process does`;
}

/** Of a checkout, and whether it has been changed since; what git says where it does not tell. */
export function commitOf(cwd: string): string {
  const git = (...args: string[]) =>
    execFileSync("git", args, { cwd, encoding: "utf8", stdio: "pipe" }).trim();
  try {
    const changed = git("status", "--porcelain") !== "";
    return git("rev-parse", "--short", "HEAD") + (changed ? " with changes" : "");
  } catch (error) {
    // An unpacked archive is no checkout, git may be missing, and it shuns what is another user's.
    const { stderr, message } = error as Error & { stderr?: string };
    return `unknown (${(stderr || message).trim().split("\n")[0]})`;
  }
}

function sysctl(path: string): string {
  return readFileSync(`/proc/sys/net/${path}`, "utf8").trim().replaceAll("\t", " ");
}
