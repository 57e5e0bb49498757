/**
 * `npm run bench`: our VTEP beside kernel VXLAN and beside other tunnels, on this machine, now.
 *
 * ```
 *  container ── br0 ── tunnel ── eth0 ══ veth ══ eth0 ── tunnel ── br0 ── container
 * ```
 *
 * Everything but the tunnel is the same. In a round each tunnel is started between hosts of its own, and then measured
 * beside the others, in turn; what they do when idle counts as the whole system's. What a machine does in absolute
 * figures drifts by tens of percent within seconds: quote the ratios.
 */
import { spawnSync } from "node:child_process";
import { existsSync, rmSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { setImmediate as turn } from "node:timers/promises";
import { Option } from "commander";
import type { Mode } from "../test/lab/lab.ts";
import {
  aboveZero,
  benchmark,
  exitOnSignals,
  note,
  progress,
  say,
  unwritable,
  wholeNumber,
} from "./command-line.ts";
import { conditions } from "./conditions.ts";
import { htmlReport, type Report } from "./html.ts";
import { inWords, type JavaScriptShare, javaScriptShare, whyNoProfile } from "./javascript.ts";
import { type Measurement, measurements } from "./measurements.ts";
import { beside, findings, type Trial, tableOf } from "./report.ts";
import { disposeAll, drawSite, type Subject, started, subjects } from "./subjects.ts";
import { table } from "./table.ts";
import { isTimeFor, type Runner, takeInTurns, trialOf, turnsOf } from "./trials.ts";

const modes: Mode[] = ["wire", "veth"];

const explanations: Record<Mode, string> = {
  wire: "nothing above the MTU crosses the underlay, the receiver does GRO: as a plain NIC behaves",
  veth: "the underlay carries 64 KiB super-packets: kernel VXLAN at its best, and no real network",
};

/** What `--quick` sets where nothing else is said. */
const quick = {
  seconds: 0.5,
  tunnel: ["native"],
  measure: ["tcp1", "tcp4", "rtt", "udp64", "udp64-paced"],
  profile: false,
};

/** How long `--quick` may take unless rounds are asked for: fewer are run then, but one of each mode. */
const QUICK_MS = 84_000;

/** Columns that the names of conditions take. */
const WORDS = 18;

interface Options {
  /** The default, where undefined, is 3; fewer when `--quick` finds that time is short. */
  pairs?: number;
  seconds: number;
  mode: Mode[];
  tunnel: string[];
  measure: string[];
  profile: boolean;
  quick?: true;
  install?: true;
  json?: string;
  html?: string;
}

/** Unless told; of fewer a median and a range say little. */
const ROUNDS = 3;
const [baseline, ...tunnels] = subjects as [Subject, ...Subject[]];
const command = benchmark("npm run bench --")
  .description(`Compares tunnels with ${baseline.name} VXLAN`)
  .option("--pairs <N>", `rounds (default: ${ROUNDS})`, wholeNumber)
  .option("--seconds <N>", "how long each measurement takes; TCP whole ones", aboveZero, 2)
  .addOption(some("--mode <NAME...>", "modes of the underlay", modes))
  .addOption(some("--tunnel <NAME...>", "what to compare", names(tunnels)))
  .addOption(some("--measure <NAME...>", "what to measure", names(measurements)))
  .option("--no-profile", "do not ask perf how much CPU time compiled JavaScript takes")
  .option(
    "--quick",
    `in under 90 s, with fewer rounds if need be: --seconds ${quick.seconds} --no-profile --tunnel ${quick.tunnel.join(" ")} --measure ${quick.measure.join(" ")}`,
  )
  .option("--install", "first install the packaged tunnels that are missing (Debian, as root)")
  .option("--json <FILE>", "also write every single figure to a file")
  .option("--html [FILE]", "also write a report with plots to a file (bench/report.html)");

function some(flags: string, help: string, choices: string[]): Option {
  return new Option(flags, help).choices(choices).default(choices, "all");
}

function names(things: { name: string }[]): string[] {
  return things.map(({ name }) => name);
}

function options(): Options {
  command.parse();
  for (const [name, value] of Object.entries(command.opts().quick ? quick : {})) {
    if (command.getOptionValueSource(name) === "default") command.setOptionValue(name, value);
  }
  const { html, ...rest } = command.opts();
  const named = html === true ? "bench/report.html" : html;
  for (const file of [rest.json, named]) {
    const reason = file === undefined ? undefined : unwritable(file); // "" is none, too
    if (reason) command.error(`what is measured could not be written: ${reason}`);
  }
  if (rest.json && named && resolve(rest.json) === resolve(named)) {
    command.error(`--json and --html name one file, ${named}: give each its own`);
  }
  return { ...rest, ...(named && { html: named }) } as Options;
}

async function main(options: Options): Promise<void> {
  const chosen: Chosen = {
    rounds: options.pairs ?? ROUNDS,
    deadline: options.quick && !options.pairs ? QUICK_MS : Infinity,
    seconds: options.seconds,
    subjects: [baseline, ...available(options)],
    measurements: measurements.filter(({ name }) => options.measure.includes(name)),
    profile: options.profile && canBeProfiled(),
  };
  const circumstances = conditions();
  for (const [name, value] of Object.entries(circumstances)) say(`${name.padEnd(WORDS)} ${value}`);
  const results: Comparison[] = [];
  exitOnSignals(() => {
    const measured = results.filter(({ trials }) => trials.length > 0);
    if (measured.length === 0) return note("bench: interrupted before the first round was whole");
    note("bench: interrupted; what there is of whole rounds follows");
    const last = results.at(-1)!;
    if (measured.includes(last)) show(last, chosen); // those before it were shown
    conclude(measured, circumstances, chosen, options);
  });
  const wanted = modes.filter((mode) => options.mode.includes(mode));
  for (const [at, mode] of wanted.entries()) {
    say(`\n${mode} mode: ${explanations[mode]}`);
    const result: Comparison = { mode, trials: [], tunnels: {}, shares: {} };
    results.push(result);
    await compare(result, chosen, wanted.length - at - 1);
    show(result, chosen);
  }
  conclude(results, circumstances, chosen, options);
}

/** Writes the files that were asked for, and ends what is said on the terminal. */
function conclude(
  results: Comparison[],
  circumstances: Record<string, string>,
  { seconds, subjects, measurements }: Chosen,
  { json, html }: Options,
): void {
  const trials = results.flatMap((result) => result.trials);
  const tcp = measurements.find(({ name }) => name.startsWith("tcp"));
  const turns = tcp ? turnsOf(tcp, seconds) : 1;
  const ofTcp = turns * Math.ceil(seconds / turns);
  const longer = tcp && ofTcp !== seconds ? ` (TCP: ${ofTcp} s)` : "";
  say(`
  Medians of ${roundsOf(trials)} of ${seconds} s${longer} ± half of the range; ↑ more is better, ↓ less. A ratio is taken
  within a round, with the least and the greatest. Absolute figures hold for this run only.`);
  if (results.some(({ trials }) => countOf(trials) < ROUNDS)) {
    say(
      `  Fewer than ${ROUNDS} rounds show little, and one has no range at all: quote no ratio of them.`,
    );
  }
  if (json) {
    const byMode = results.map(({ mode, trials, tunnels, shares }) => {
      const figures = findings(trials, subjects, measurements);
      const what = { underlay: explanations[mode], conditions: tunnels, rounds: countOf(trials) };
      return [mode, { ...what, javascript: shares, figures }];
    });
    const head = { conditions: circumstances, baseline: baseline.name };
    const file = { ...head, modes: Object.fromEntries(byMode), trials };
    write(json, `${JSON.stringify(file, null, 2)}\n`);
  }
  if (html) {
    const of = <T>(part: (result: Comparison) => T) =>
      Object.fromEntries(results.map((result) => [result.mode, part(result)]));
    const report: Report = {
      ...{ conditions: circumstances, tunnels: of(({ tunnels }) => tunnels), explanations },
      ...{ trials, subjects, measurements, javascript: of(({ shares }) => shares) },
    };
    write(html, htmlReport(report));
  }
  if (!json && !html) say("  --json FILE writes every figure to a file, --html a page with plots.");
}

/** A file that cannot be written, say because the disk is full by now, keeps no other from being written. */
function write(file: string, content: string): void {
  try {
    writeFileSync(file, content);
    say(`  Written: ${file}`);
  } catch (error) {
    note(`bench: ${file} could not be written: ${(error as Error).message}`);
    process.exitCode = 1;
  }
}

/** How many there were: of each mode, where they differ. */
function roundsOf(trials: Trial[]): string {
  const counts = modes.map((mode) => countOf(trials.filter((trial) => trial.mode === mode)));
  const numbers = [...new Set(counts)].filter((count) => count > 0).join(" and ");
  return `${numbers} ${numbers === "1" ? "round" : "rounds"}`;
}

function countOf(trials: Trial[]): number {
  return Math.max(0, ...trials.map(({ round }) => round + 1));
}

/** What was asked for and can be started; what cannot is named. */
function available({ tunnel, install: mayInstall }: Options): Subject[] {
  const wanted = tunnels.filter(({ name }) => tunnel.includes(name));
  if (mayInstall) install(wanted.filter((subject) => subject.missing?.()));
  return wanted.filter((subject) => {
    const reason = subject.missing?.();
    if (reason) say(`${subject.name} is left out: ${reason}`);
    return !reason;
  });
}

/** Whether perf can be asked; why not is said. */
function canBeProfiled(): boolean {
  const reason = whyNoProfile();
  if (reason) say(`CPU time in compiled JavaScript is left out: ${reason}`);
  return !reason;
}

function install(missing: Subject[]): void {
  const packages = missing.flatMap(({ packages = [] }) => packages);
  if (packages.length === 0) return;
  say(`apt-get install ${packages.join(" ")}`);
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  const apt = (...args: string[]) => {
    const { status, signal } = spawnSync("apt-get", args, {
      env,
      stdio: ["ignore", "ignore", "inherit"],
    });
    if (signal !== null) throw new Error("apt-get was interrupted");
    return status === 0;
  };
  const all = ["install", "--yes", "--no-install-recommends", ...packages];
  withoutServices(() => {
    if (!apt(...all) && !(apt("update", "-qq") && apt(...all))) {
      throw new Error(`apt-get could not install ${packages.join(" ")}`);
    }
  });
}

/** Packages ask this file whether they may start their services. One that is there stays as it is. */
function withoutServices(work: () => void): void {
  const policy = "/usr/sbin/policy-rc.d";
  const isOurs = !existsSync(policy);
  if (isOurs) writeFileSync(policy, "#!/bin/sh\nexit 101\n", { mode: 0o755 });
  try {
    work();
  } finally {
    if (isOurs) rmSync(policy);
  }
}

interface Chosen {
  rounds: number;
  /** No round but a mode's first begins that would end later, in ms since the start of the process. */
  deadline: number;
  seconds: number;
  subjects: Subject[];
  measurements: Measurement[];
  profile: boolean;
}

/** What has been found out so far, in one mode. */
interface Comparison {
  mode: Mode;
  /** Of whole rounds. */
  trials: Trial[];
  /** By name: how each was started. */
  tunnels: Record<string, string>;
  /** By the name of one of ours. */
  shares: Record<string, JavaScriptShare>;
}

/** Adds to `result`, so that it is there when this is interrupted; so many modes are `later` ones. */
async function compare(result: Comparison, chosen: Chosen, later: number): Promise<void> {
  const { mode } = result;
  const began = performance.now();
  for (let round = 0; round < chosen.rounds; round++) {
    const now = performance.now();
    if (!isTimeFor(round, { spent: now - began, left: chosen.deadline - now, later })) {
      note(`${mode} mode: ${round} of ${chosen.rounds} rounds, as time is short`);
      break;
    }
    try {
      await takeRound(round, result, chosen);
    } catch (error) {
      // Ctrl-C ends what draws hosts, too, and is to be heard first. One turn of the event loop may have looked for it before.
      await turn();
      await turn();
      if (result.trials.length === 0) throw error;
      note(`${mode} mode: round ${round + 1} did not end well: ${(error as Error).message}`);
      process.exitCode = 1;
      break;
    }
  }
  if (chosen.profile) {
    for (const subject of chosen.subjects.filter(({ family }) => family === "vtep")) {
      const where = `${mode} mode, ${subject.name}`;
      progress(`${where}: profile`);
      try {
        result.shares[subject.name] = await javaScriptShare(subject, mode, chosen.seconds);
      } catch (error) {
        note(`${where} could not be profiled: ${(error as Error).message}`);
      }
    }
  }
  progress("");
}

/** A round is drawn anew: what hosts and processes have by chance, they have for as long as they live. */
async function takeRound(round: number, result: Comparison, chosen: Chosen): Promise<void> {
  const { mode, tunnels } = result;
  const trials: Trial[] = [];
  const done: AsyncDisposable[] = [];
  try {
    const runners: Runner[] = [];
    const { subjects } = chosen;
    for (const subject of round % 2 === 0 ? subjects : subjects.toReversed()) {
      const { name } = subject;
      const where = `${mode} mode, round ${round + 1}/${chosen.rounds}, ${name}`;
      progress(`${where}: starting`);
      const site = await drawSite(mode);
      done.push(site);
      try {
        const tunnel = await started(subject, site);
        done.push(tunnel);
        tunnels[name] = tunnel.description;
        runners.push({ name, where, scene: { ...site, ...tunnel } });
      } catch (error) {
        note(`${where} could not be measured: ${(error as Error).message}`);
        process.exitCode = 1;
      }
    }
    for (const measurement of chosen.measurements) {
      const readings = await takeInTurns(measurement, runners, chosen.seconds);
      // Of those that failed, too, so that the others' rounds stay paired.
      for (const { name } of subjects) {
        const of = { mode, round, subject: name };
        trials.push(trialOf(of, measurement, readings.get(name)));
      }
    }
    result.trials.push(...trials); // before the hosts are taken apart, which may be interrupted
  } finally {
    await disposeAll(done);
  }
}

/** Ours beside the kernel, and then beside the packaged tunnels. */
function show({ trials, tunnels, shares }: Comparison, { subjects, measurements }: Chosen): void {
  for (const [name, text] of Object.entries(tunnels)) say(`${name.padEnd(WORDS)} ${text}`);
  const ofOurs = subjects.filter(({ family }) => family !== "packaged");
  say(tableOf(trials, ofOurs, measurements));
  const ours = subjects.find(({ family }) => family === "vtep") ?? baseline;
  if (subjects.some(({ family }) => family === "packaged")) {
    const { heading, rows } = beside(ours, trials, subjects, measurements);
    say(`\n${table(heading, rows)}`);
  }
  for (const [name, share] of Object.entries(shares)) say(sentence(name, share));
}

function sentence(name: string, share: JavaScriptShare): string {
  const parts = Object.entries(share).map(([load, percent]) => `${load} ${inWords(percent)}`);
  return `  ${name}: CPU time in compiled JavaScript: ${parts.join("; ")}`;
}

try {
  await main(options());
} catch (error) {
  note(`bench: ${(error as Error).message}`);
  process.exitCode = 1;
}
