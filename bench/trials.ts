/** A measurement taken, or the gap that it leaves. */
import { note } from "./command-line.ts";
import type { Measurement, Reading, Scene } from "./measurements.ts";
import type { Trial } from "./report.ts";

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
