export interface Summary {
  least: number;
  median: number;
  greatest: number;
}

/** Of the finite values; undefined when there is none. */
export function summary(values: number[]): Summary | undefined {
  const sorted = ascending(values);
  const [least, greatest] = [sorted[0], sorted.at(-1)];
  if (least === undefined || greatest === undefined) return undefined;
  const median = (sorted[(sorted.length - 1) >> 1]! + sorted[sorted.length >> 1]!) / 2;
  return { least, median, greatest };
}

/** The least value that at least `percent` of the values do not exceed; NaN when there is none. */
export function percentile(values: number[], percent: number): number {
  const sorted = ascending(values);
  return sorted[Math.max(0, Math.ceil((percent / 100) * sorted.length) - 1)] ?? Number.NaN;
}

/** Of values taken in the same rounds, round by round. */
export function ratios(values: number[], references: number[]): number[] {
  return values.map((value, round) => value / (references[round] ?? Number.NaN));
}

function ascending(values: number[]): number[] {
  return values.filter(Number.isFinite).sort((a, b) => a - b);
}
