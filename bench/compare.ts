/**
 * `npm run bench`: our VTEP beside kernel VXLAN, on this machine, now.
 *
 * ```
 *  container ── br0 ── tunnel ── eth0 ══ veth ══ eth0 ── tunnel ── br0 ── container
 * ```
 *
 * Everything but the tunnel is the same. A trial is one start of one tunnel on both hosts, with all
 * measurements taken through it; a round is one trial of every tunnel, one after the other. What a
 * machine does in absolute figures drifts by tens of percent within minutes: quote the ratios.
 */
import { writeFileSync } from "node:fs";
import { Command, InvalidArgumentError, Option } from "commander";
import { EXIT_USAGE } from "../src/errors.ts";
import { Lab, type Mode } from "../test/lab/lab.ts";
import { reach } from "../test/lab/traffic.ts";
import { conditions } from "./conditions.ts";
import { type Measurement, measurements, type Scene } from "./measurements.ts";
import { type Trial, tableOf } from "./report.ts";
import { type Subject, subjects } from "./subjects.ts";

const modes: Mode[] = ["veth", "wire"];

const explanations: Record<Mode, string> = {
  veth: "the underlay carries 64 KiB super-packets: kernel VXLAN at its best, and no real network",
  wire: "nothing above the MTU crosses the underlay, the receiver does GRO: as a plain NIC behaves",
};

/** What `--quick` sets where nothing else is said. */
const quick = {
  seconds: 1,
  tunnel: ["native"],
  measure: ["tcp1", "tcp1-reverse", "tcp4", "rtt", "udp64"],
};

/** Columns that the names of conditions take. */
const WORDS = 15;

interface Options {
  pairs: number;
  seconds: number;
  mode: Mode[];
  tunnel: string[];
  measure: string[];
  json?: string;
}

const [baseline, ...tunnels] = subjects.map(({ name }) => name);
const command = new Command("npm run bench --")
  .description(`Compares tunnels with ${baseline}`)
  .option("--pairs <N>", "rounds", wholeNumber, 3)
  .option("--seconds <N>", "how long each measurement takes", wholeNumber, 3)
  .addOption(some("--mode <NAME...>", "modes of the underlay", modes))
  .addOption(some("--tunnel <NAME...>", "what to compare", tunnels))
  .addOption(
    some(
      "--measure <NAME...>",
      "what to measure",
      measurements.map(({ name }) => name),
    ),
  )
  .option(
    "--quick",
    `--seconds 1 --tunnel ${quick.tunnel.join(" ")} --measure ${quick.measure.join(" ")}`,
  )
  .option("--json <FILE>", "also write every single figure to a file")
  .exitOverride(({ exitCode }) => process.exit(exitCode === 0 ? 0 : EXIT_USAGE));

function some(flags: string, help: string, choices: string[]): Option {
  return new Option(flags, help).choices(choices).default(choices, "all");
}

function wholeNumber(text: string): number {
  if (!/^[1-9]\d*$/.test(text))
    throw new InvalidArgumentError("It must be a whole number above 0.");
  return Number(text);
}

function options(): Options {
  command.parse();
  for (const [name, value] of Object.entries(command.opts().quick ? quick : {})) {
    if (command.getOptionValueSource(name) === "default") command.setOptionValue(name, value);
  }
  return command.opts();
}

async function main(options: Options): Promise<void> {
  const chosen: Chosen = {
    rounds: options.pairs,
    seconds: options.seconds,
    subjects: subjects.filter(({ name }) => name === baseline || options.tunnel.includes(name)),
    measurements: measurements.filter(({ name }) => options.measure.includes(name)),
  };
  const circumstances = conditions();
  for (const [name, value] of Object.entries(circumstances)) say(`${name.padEnd(WORDS)} ${value}`);
  const trials: Trial[] = [];
  for (const mode of modes.filter((mode) => options.mode.includes(mode))) {
    say(`\n${mode} mode: ${explanations[mode]}`);
    const { trials: ofMode, descriptions } = await compare(mode, chosen);
    for (const [name, text] of descriptions) say(`${name.padEnd(WORDS)} ${text}`);
    say(tableOf(ofMode, chosen.subjects, chosen.measurements));
    trials.push(...ofMode);
    Object.assign(circumstances, Object.fromEntries(descriptions));
  }
  say(`
  Medians of ${chosen.rounds} rounds of ${chosen.seconds} s ± half of the range; ↑ more is better, ↓ less. A ratio is taken
  within a round, with the least and the greatest. Absolute figures hold for this run only.`);
  if (options.json) {
    writeFileSync(options.json, JSON.stringify({ conditions: circumstances, trials }, null, 2));
  }
}

interface Chosen {
  rounds: number;
  seconds: number;
  subjects: Subject[];
  measurements: Measurement[];
}

interface Comparison {
  trials: Trial[];
  /** Of the tunnels, by their names. */
  descriptions: Map<string, string>;
}

async function compare(mode: Mode, chosen: Chosen): Promise<Comparison> {
  await using lab = await Lab.draw({ hosts: 2, mode });
  const near = await lab.host(1).container();
  const far = await lab.host(2).container();
  // Or a stream would begin where the one before it, through another tunnel, had left off.
  for (const end of [near, far]) await end.sysctl({ "ipv4/tcp_no_metrics_save": 1 });
  const trials: Trial[] = [];
  const descriptions = new Map<string, string>();
  for (let round = 0; round < chosen.rounds; round++) {
    for (const subject of chosen.subjects) {
      await using tunnel = await subject.start(lab);
      descriptions.set(subject.name, tunnel.description);
      await reach(near, far.address);
      for (const measurement of chosen.measurements) {
        progress(
          `${mode} mode, round ${round + 1}/${chosen.rounds}, ${subject.name}: ${measurement.name}`,
        );
        const scene = { near, far, pids: tunnel.pids, seconds: chosen.seconds };
        const values = await take(measurement, scene);
        trials.push({ mode, round, subject: subject.name, measurement: measurement.name, values });
      }
    }
  }
  progress("");
  return { trials, descriptions };
}

/** A measurement that fails leaves a gap in the table: the others are worth having. */
async function take(measurement: Measurement, scene: Scene): Promise<Trial["values"]> {
  try {
    const values = await measurement.take(scene);
    return Object.fromEntries(measurement.figures.map(({ name }, i) => [name, values[i]!]));
  } catch (error) {
    progress("");
    say(`no figure for ${measurement.name}: ${(error as Error).message}`);
    return {};
  }
}

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}

/** One line that is written over, or a line each where that cannot be done. */
function progress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`);
  else if (text) process.stderr.write(`${text}\n`);
}

try {
  await main(options());
} catch (error) {
  progress("");
  process.stderr.write(`bench: ${(error as Error).message}\n`);
  process.exitCode = 1;
}
