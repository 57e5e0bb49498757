/**
 * `npm run bench:builds -- BUILD...`: builds of this project beside each other, for a change of a few percent.
 *
 * A pair of agents keeps its luck, some 5 %, for as long as it lives, and the machine drifts by more than
 * that within minutes. So there are several pairs of each build, all of them alive at once, each in a lab
 * of its own, and measured in turn for a second; a ratio is taken between neighbours. The same build named
 * twice shows what this cannot tell apart.
 */
import { existsSync } from "node:fs";
import { constants } from "node:os";
import { basename, join, resolve } from "node:path";
import { Command, Option } from "commander";
import { EXIT_USAGE } from "../src/errors.ts";
import { Lab, type Mode } from "../test/lab/lab.ts";
import { measurements, prepare, type Scene } from "./measurements.ts";
import { type Named, type Trial, valuesOf } from "./report.ts";
import { percentile, ratios } from "./statistics.ts";
import { started, subjects } from "./subjects.ts";
import { table } from "./table.ts";
import { aboveZero, note, progress, say, wholeNumber } from "./terminal.ts";

const KERNEL = "kernel";

interface Options {
  mode: Mode;
  tunnel: string;
  measure: string[];
  pairs: number;
  turns: number;
  seconds: number;
}

interface Build extends Named {
  /** What `vtep` is in it; undefined for the kernel's VXLAN. */
  cli?: string;
}

const ours = subjects.filter(({ family }) => family === "vtep").map(({ name }) => name);
const measures = measurements.map(({ name }) => name);
const command = new Command("npm run bench:builds --")
  .description("Compares builds with the first of them, all alive at once and measured in turn")
  .argument("<BUILD...>", `directories in which \`npm run build\` has run, or "${KERNEL}"`)
  .addOption(
    new Option("--mode <NAME>", "of the underlay").choices(["wire", "veth"]).default("wire"),
  )
  .addOption(new Option("--tunnel <NAME>", "which of ours").choices(ours).default("native"))
  .addOption(
    new Option("--measure <NAME...>", "what to measure").choices(measures).default(["tcp1"]),
  )
  .option("--pairs <N>", "of agents of each build", wholeNumber, 3)
  .option("--turns <N>", "of each pair", wholeNumber, 6)
  .option("--seconds <N>", "how long each measurement takes", aboveZero, 1)
  .exitOverride(({ exitCode }) => process.exit(exitCode === 0 ? 0 : EXIT_USAGE));

/** Numbered, since names of directories may be alike. */
function buildsOf(places: string[]): Build[] {
  return places.map((place, at) => {
    const name = `${at + 1} ${place === KERNEL ? KERNEL : basename(resolve(place))}`;
    if (place === KERNEL) return { name, family: "kernel" };
    const cli = join(resolve(place), "dist/cli.js");
    if (!existsSync(cli)) {
      throw new Error(`there is no ${cli}: run \`npm ci && npm run build\` in ${place}`);
    }
    return { name, family: "vtep", cli };
  });
}

/** Two agents, in a lab of their own. */
interface Pair {
  build: Build;
  scene: Scene;
}

async function start(
  done: AsyncDisposable[],
  build: Build,
  { mode, tunnel, seconds }: Options,
): Promise<Pair> {
  const lab = await Lab.draw({ hosts: 2, mode });
  done.push(lab);
  const near = await lab.host(1).container();
  const far = await lab.host(2).container();
  for (const end of [near, far]) await prepare(end);
  for (const host of lab.hosts) if (build.cli) host.cli = build.cli;
  const subject = subjects.find(({ name }) => name === (build.cli ? tunnel : KERNEL))!;
  const running = await started(subject, lab, near, far);
  done.push(running);
  return { build, scene: { near, far, seconds, ...running } };
}

async function compare(builds: Build[], options: Options): Promise<Trial[]> {
  const done: AsyncDisposable[] = [];
  const trials: Trial[] = [];
  const chosen = measurements.filter(({ name }) => options.measure.includes(name));
  try {
    const sets: Pair[][] = [];
    for (let pair = 0; pair < options.pairs; pair++) {
      sets.push([]);
      for (const build of builds) {
        progress(`starting pair ${pair + 1}/${options.pairs} of ${build.name}`);
        sets[pair]!.push(await start(done, build, options));
      }
    }
    for (let turn = 0; turn < options.turns; turn++) {
      for (const [pair, set] of sets.entries()) {
        // To and fro, so that what drifts favours none of them.
        for (const { build, scene } of turn % 2 === 0 ? set : set.toReversed()) {
          const where = `turn ${turn + 1}/${options.turns}, pair ${pair + 1}, ${build.name}`;
          for (const { name: measurement, figures, take } of chosen) {
            progress(`${where}: ${measurement}`);
            const reading = await take(scene).catch((error: Error) => {
              note(`${where}: no figure for ${measurement}: ${error.message}`);
            });
            const values = Object.fromEntries(
              figures.map(({ name }, at) => [name, reading?.values[at] ?? Number.NaN]),
            );
            trials.push({
              ...{ mode: options.mode, round: turn * options.pairs + pair },
              ...{ subject: build.name, measurement, values },
            });
          }
        }
      }
    }
    return trials;
  } finally {
    progress("");
    for (const one of done.reverse()) await one[Symbol.asyncDispose]();
  }
}

/** Medians, and of each ratio the quarters too: what lies between is half of the turns. */
function show(trials: Trial[], builds: Build[], { measure }: Options): void {
  const [first, ...others] = builds as [Build, ...Build[]];
  const heading = ["", "", first.name, ...others.map(({ name }) => `${name} ÷ ${first.name}`)];
  const rows = measurements
    .filter(({ name }) => measure.includes(name))
    .flatMap((measurement) =>
      measurement.figures.map((figure) => {
        const of = (build: Build) => valuesOf(trials, build, measurement, figure);
        const ratioOf = (build: Build) => {
          const all = ratios(of(build), of(first));
          const [low, middle, high] = [25, 50, 75].map((part) => percentile(all, part).toFixed(2));
          return `${middle} (${low}–${high})`;
        };
        const median = percentile(of(first), 50).toFixed(figure.digits);
        const ratio = figure.better ? others.map(ratioOf) : others.map(() => "");
        return [figure.name, figure.unit, median, ...ratio];
      }),
    );
  say(table(heading, rows));
}

async function main(): Promise<void> {
  command.parse();
  const options = command.opts<Options>();
  const builds = buildsOf(command.args);
  show(await compare(builds, options), builds, options);
  const { pairs, turns, seconds } = options;
  say(`
  ${pairs} pairs of each, ${turns} turns of ${seconds} s each; medians, of ratios between neighbours with quarters.`);
}

// The lab's own listeners, which were added first, have removed it by the time that these are called.
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  process.on(signal, () => process.exit(128 + constants.signals[signal]));
}

try {
  await main();
} catch (error) {
  note(`bench: ${(error as Error).message}`);
  process.exitCode = 1;
}
