/** Where to look for the highest rate that passes. */
export interface Search {
  /** Known, or hoped, to pass. It is never tried unless everything above it fails. */
  low: number;
  /** Known not to be reached. */
  high: number;
  /** How often the range is halved, on a scale of ratios. */
  steps: number;
}

/** What is tried to confirm a rate, until it is: these parts of it. */
const RETREAT = [1, 0.95, 0.9, 0.8, 0.65, 0.5, 0.3];

/**
 * The highest rate that passes, by bisection, which takes for granted that whatever passes does so at
 * every lower rate too. A short trial may pass by luck: so the rate found has to pass a `confirm`ation,
 * which may take longer and whose answer is the answer; where it fails, a lower rate is tried.
 * Undefined when none is confirmed.
 */
export async function highest<T>(
  passes: (rate: number) => Promise<boolean>,
  confirm: (rate: number) => Promise<T | undefined>,
  { low, high, steps }: Search,
): Promise<T | undefined> {
  for (let step = 0; step < steps; step++) {
    const rate = Math.sqrt(low * high);
    if (await passes(rate)) low = rate;
    else high = rate;
  }
  for (const part of RETREAT) {
    const confirmed = await confirm(low * part);
    if (confirmed !== undefined) return confirmed;
  }
  return undefined;
}
