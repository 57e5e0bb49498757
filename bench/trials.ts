/** Rounds, as far as there is time, and measurements taken, or the gaps that they leave. */
import { note, progress } from "./command-line.ts";
import { type Measurement, type Reading, type Scene, together } from "./measurements.ts";
import type { Trial } from "./report.ts";

/**
 * Whether a round, counted from 0, may begin when those of its mode before it have taken `spent` ms, `left` ms
 * are left of all, and `later` modes are to have as many rounds as this one has had so far. The first always may.
 */
export function isTimeFor(
  round: number,
  { spent, left, later }: { spent: number; left: number; later: number },
): boolean {
  return round === 0 || (spent / round) * (1 + round * later) <= left;
}

/** A measurement that fails leaves a gap in the table: the others are worth having. */
export async function take(
  measurement: Measurement,
  scene: Scene,
  where: string,
): Promise<Reading | undefined> {
  try {
    return await measurement.take(scene);
  } catch (error) {
    note(`${where}: no figure for ${measurement.name}: ${(error as Error).message}`);
    process.exitCode = 1;
    return undefined;
  }
}

/** In how many turns a measurement of `seconds` is taken. */
export function turnsOf({ turn: longest }: Pick<Measurement, "turn">, seconds: number): number {
  return longest === undefined ? 1 : Math.ceil(seconds / longest);
}

/** A tunnel that is measured. */
export interface Runner {
  name: string;
  /** It, in what is said of it. */
  where: string;
  scene: Omit<Scene, "seconds">;
}

/**
 * Takes a measurement of `seconds` of each, in its turns, to and fro, so that what drifts favours none of them. By name;
 * whoever has failed once has no reading, and no more turns.
 */
export async function takeInTurns(
  measurement: Measurement,
  runners: Runner[],
  seconds: number,
): Promise<Map<string, Reading>> {
  const { name, figures } = measurement;
  const turns = turnsOf(measurement, seconds);
  const standing = new Map(runners.map((runner) => [runner, [] as Reading[]]));
  for (let turn = 0; turn < turns; turn++) {
    const order = [...standing];
    for (const [runner, readings] of turn % 2 === 0 ? order : order.reverse()) {
      const { where, scene } = runner;
      progress(`${where}: ${name}${turns > 1 ? ` ${turn + 1}/${turns}` : ""}`);
      const reading = await take(measurement, { ...scene, seconds: seconds / turns }, where);
      if (reading) readings.push(reading);
      else standing.delete(runner);
    }
  }
  return new Map([...standing].map(([{ name }, readings]) => [name, together(figures, readings)]));
}

export function trialOf(
  of: Pick<Trial, "mode" | "round" | "subject">,
  measurement: Measurement,
  reading?: Reading,
): Trial {
  return {
    ...{ ...of, measurement: measurement.name },
    values: Object.fromEntries(
      measurement.figures.map(({ name }, i) => [name, reading?.values[i] ?? Number.NaN]),
    ),
    ...(reading?.rtts && { rtts: reading.rtts }),
  };
}
