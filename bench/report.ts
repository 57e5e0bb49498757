import type { Mode } from "../test/lab/lab.ts";
import type { Figure, Measurement } from "./measurements.ts";
import type { Subject } from "./subjects.ts";
import { table } from "./table.ts";

/** One measurement of one subject; a round is one trial of every subject, one after the other. */
export interface Trial {
  mode: Mode;
  round: number;
  subject: string;
  measurement: string;
  /** By the name of the figure; empty when the measurement failed. */
  values: Record<string, number>;
}

/**
 * One row for each figure. A ratio is taken between two trials of one round, so that what drifts in
 * between has drifted for both.
 */
export function tableOf(trials: Trial[], subjects: Subject[], measurements: Measurement[]): string {
  const [baseline, ...others] = subjects as [Subject, ...Subject[]];
  const heading = ["", "", baseline.name];
  for (const { name } of others) heading.push(name, `${name} ÷ ${baseline.name}`);
  const rows: string[][] = [];
  for (const measurement of measurements) {
    const taken = trials.filter((trial) => trial.measurement === measurement.name);
    for (const [i, figure] of measurement.figures.entries()) {
      const valuesOf = (subject: Subject) =>
        taken
          .filter((trial) => trial.subject === subject.name)
          .map((trial) => trial.values[figure.name] ?? Number.NaN);
      const reference = valuesOf(baseline);
      const name = i === 0 ? figure.name : `  ${figure.name}`;
      const row = [name, unitOf(figure), cellOf(reference, figure)];
      for (const other of others) {
        const values = valuesOf(other);
        const ratios = values.map((value, round) => value / reference[round]!);
        row.push(cellOf(values, figure), figure.better ? range(ratios) : "");
      }
      rows.push(row);
    }
  }
  return table(heading, rows);
}

function unitOf({ unit, better }: Figure): string {
  if (!better) return unit;
  return `${unit} ${better === "more" ? "↑" : "↓"}`;
}

function cellOf(values: number[], { better, digits }: Figure): string {
  return better ? deviation(values, digits) : range(values, digits);
}

/** Median ± half of the range. */
function deviation(values: number[], digits: number): string {
  const { least, median, greatest } = summary(values);
  if (median === undefined) return "–";
  const percent = ((greatest - least) / 2 / median) * 100;
  return `${median.toFixed(digits)} ±${percent.toFixed(0).padStart(2)}%`;
}

/** Median (least–greatest), with about three digits unless told how many decimals. */
function range(values: number[], digits?: number): string {
  const { least, median, greatest } = summary(values);
  if (median === undefined) return "–";
  const places = digits ?? (median < 1 ? 3 : median < 10 ? 2 : median < 100 ? 1 : 0);
  const [low, middle, high] = [least, median, greatest].map((value) => value.toFixed(places));
  return `${middle} (${low}–${high})`;
}

type Summary =
  | { least: number; median: number; greatest: number }
  | { least?: never; median?: never; greatest?: never };

function summary(values: number[]): Summary {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  const [least, greatest] = [sorted[0], sorted.at(-1)];
  if (least === undefined || greatest === undefined) return {};
  const median = (sorted[(sorted.length - 1) >> 1]! + sorted[sorted.length >> 1]!) / 2;
  return { least, median, greatest };
}
