/**
 * `npm run bench:builds -- BUILD BUILD...`: builds of this project beside each other, for a change of some percent.
 *
 * A pair of agents keeps its luck, some 5 %, for as long as it lives, and the machine drifts by more than
 * that within minutes. So there are several pairs of each build, all of them alive at once, each in a lab
 * of its own, and measured in turn; a ratio is taken within a turn. Look at what each pair says: where they
 * differ, the median of all has shown little. The same build named twice shows what this cannot tell apart.
 */
import { statSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { Option } from "commander";
import type { Mode } from "../test/lab/lab.ts";
import { benchmark, exitOnSignals, note, progress, say, wholeNumber } from "./command-line.ts";
import { commitOf, conditions } from "./conditions.ts";
import { type Measurement, measurements, type Scene } from "./measurements.ts";
import { betweenBuilds, type Trial } from "./report.ts";
import { disposeAll, drawSite, started, subjects } from "./subjects.ts";
import { table } from "./table.ts";
import { take, trialOf } from "./trials.ts";

const KERNEL = "kernel";

interface Options {
  mode: Mode;
  tunnel: string;
  measure: string[];
  pairs: number;
  turns: number;
  seconds: number;
}

interface Build {
  name: string;
  /** What `vtep` is in it; undefined for the kernel's VXLAN. */
  cli?: string;
  commit: string;
}

const tunnels = subjects.filter(({ family }) => family === "vtep").map(({ name }) => name);
const measures = measurements.map(({ name }) => name);
const some = (flags: string, help: string, choices: string[]) =>
  new Option(flags, help).choices(choices);
const command = benchmark("npm run bench:builds --")
  .description("Compares builds with the first of them, all alive at once and measured in turn")
  .usage("BUILD BUILD... [options]")
  .argument("<BUILD>", `a directory in which \`npm run build\` has run, or "${KERNEL}"`)
  .argument("<BUILD...>", "others, which are compared with it")
  .addOption(some("--mode <NAME>", "of the underlay", ["wire", "veth"]).default("wire"))
  .addOption(some("--tunnel <NAME>", "which of ours", tunnels).default("native"))
  .addOption(some("--measure <NAME...>", "what to measure", measures).default(["tcp1"]))
  .option("--pairs <N>", "of agents of each build", wholeNumber, 4)
  .option("--turns <N>", "of each pair", wholeNumber, 5)
  .option("--seconds <N>", "how long each measurement takes", wholeNumber, 1);

/** Numbered, since names of directories may be alike. */
function buildOf(place: string, at: number): Build {
  const name = `${at + 1} ${place === KERNEL ? KERNEL : basename(resolve(place))}`;
  if (place === KERNEL) return { name, commit: "the kernel's VXLAN" };
  const isDirectory = statSync(place, { throwIfNoEntry: false })?.isDirectory();
  if (!isDirectory)
    command.error(`there is no directory ${JSON.stringify(place)}: name a checkout`);
  const cli = join(resolve(place), "dist/cli.js");
  if (!statSync(cli, { throwIfNoEntry: false })?.isFile()) {
    command.error(`${place} is not built: run \`npm ci && npm run build\` there`);
  }
  return { name, cli, commit: commitOf(place) };
}

/** Two agents of a build, in a lab of their own. */
interface Pair {
  build: Build;
  scene: Scene;
}

/** What is to be removed again is added to `done`, also when it fails. */
async function start(done: AsyncDisposable[], build: Build, options: Options): Promise<Pair> {
  const { mode, tunnel, seconds } = options;
  const site = await drawSite(mode);
  done.push(site);
  for (const host of site.lab.hosts) if (build.cli) host.cli = build.cli;
  const subject = subjects.find(({ name }) => name === (build.cli ? tunnel : KERNEL))!;
  const running = await started(subject, site).catch((error: Error) => {
    throw new Error(`${build.name} does not start: ${error.message.trim()}`);
  });
  done.push(running);
  return { build, scene: { ...site, ...running, seconds } };
}

/** Whole rounds are added to `trials`. */
async function compare(
  builds: Build[],
  chosen: Measurement[],
  options: Options,
  trials: Trial[],
): Promise<void> {
  const done: AsyncDisposable[] = [];
  try {
    const pairs: Pair[][] = [];
    for (let pair = 0; pair < options.pairs; pair++) {
      const one: Pair[] = [];
      for (const build of builds) {
        progress(`starting pair ${pair + 1}/${options.pairs} of ${build.name}`);
        one.push(await start(done, build, options));
      }
      pairs.push(one);
    }
    for (let round = 0; round < options.turns * options.pairs; round++) {
      const pair = round % options.pairs;
      const turn = Math.floor(round / options.pairs);
      const ofRound: Trial[] = [];
      for (const measurement of chosen) {
        // To and fro, so that what drifts favours none of them.
        for (const { build, scene } of turn % 2 === 0 ? pairs[pair]! : pairs[pair]!.toReversed()) {
          const where = `turn ${turn + 1}/${options.turns}, pair ${pair + 1}, ${build.name}`;
          progress(`${where}: ${measurement.name}`);
          const of = { mode: options.mode, round, subject: build.name };
          ofRound.push(trialOf(of, measurement, await take(measurement, scene, where)));
        }
      }
      trials.push(...ofRound);
    }
  } finally {
    progress("");
    await disposeAll(done);
  }
}

async function main(): Promise<void> {
  command.parse();
  const options = command.opts<Options>();
  const { pairs, turns, seconds } = options;
  const builds = command.args.map(buildOf);
  const chosen = measurements.filter(({ name }) => options.measure.includes(name));
  const { system, cpu, node, "load before": load } = conditions();
  say(`${system}, ${cpu}, Node ${node}, load before: ${load}`);
  say(`${options.mode} mode, ${options.tunnel}`);
  for (const { name, commit } of builds) say(`${name}: ${commit}`);
  const trials: Trial[] = [];
  const show = () => {
    const { heading, rows } = betweenBuilds(trials, builds, chosen, pairs);
    say(`\n${table(heading, rows)}`);
    const counted = `pairs of each: ${pairs}, turns of each pair: ${turns}, seconds of each: ${seconds}`;
    say(
      `\n  Medians (${counted}); ↑ more is better, ↓ less. Behind a ratio the quarters, and each pair's own.`,
    );
  };
  exitOnSignals(() => {
    if (trials.length === 0) return note("bench: interrupted before the first round was whole");
    note("bench: interrupted; what there is of whole rounds follows");
    show();
  });
  await compare(builds, chosen, options, trials);
  show();
}

try {
  await main();
} catch (error) {
  note(`bench: ${(error as Error).message}`);
  process.exit(1);
}
