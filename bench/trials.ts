/** Rounds, as far as there is time, and a measurement taken, or the gap that it leaves. */
import { note } from "./command-line.ts";
import type { Measurement, Reading, Scene } from "./measurements.ts";
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
