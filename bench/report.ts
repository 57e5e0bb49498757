import type { Mode } from "../test/lab/lab.ts";
import type { Figure, Measurement } from "./measurements.ts";
import { percentile, ratios, type Summary, summary } from "./statistics.ts";
import type { Subject } from "./subjects.ts";
import { table } from "./table.ts";

/** One measurement of one subject; in a round, every subject's are taken in turn. */
export interface Trial {
  mode: Mode;
  round: number;
  subject: string;
  measurement: string;
  /** By the name of the figure; empty when the measurement failed. */
  values: Record<string, number>;
  /** Every round-trip time behind them, in ms. */
  rtts?: number[];
}

/** What a report says of a subject. */
export type Named = Pick<Subject, "name" | "family">;
type Build = Pick<Named, "name">;

/** What a report says of a measurement. */
export type Measured = Pick<Measurement, "name" | "figures">;

/** A table before it is drawn: text or HTML. */
export interface Rows {
  heading: string[];
  rows: string[][];
}

export function tableOf(trials: Trial[], subjects: Named[], measurements: Measured[]): string {
  const { heading, rows } = comparison(trials, subjects, measurements);
  return table(heading, rows);
}

/**
 * One row for each figure. A ratio is taken between two trials of one round, so that what drifts in
 * between has drifted for both.
 */
export function comparison(trials: Trial[], subjects: Named[], measurements: Measured[]): Rows {
  const [baseline, ...others] = subjects as [Named, ...Named[]];
  const heading = ["", "", baseline.name];
  for (const { name } of others) heading.push(name, `${name} ÷ ${baseline.name}`);
  const rows = eachFigure(measurements, (figure, measurement, label) => {
    const reference = valuesOf(trials, baseline, measurement, figure);
    const row = [label, unitOf(figure), cellOf(reference, figure)];
    for (const other of others) {
      const values = valuesOf(trials, other, measurement, figure);
      row.push(cellOf(values, figure), figure.better ? range(ratios(values, reference)) : "");
    }
    return row;
  });
  return { heading, rows };
}

/** A figure of several subjects in one mode. */
export interface Finding {
  measurement: string;
  figure: string;
  /** Empty for a count. */
  unit: string;
  better: "more" | "less" | "neither";
  /** By name, over all rounds; one without a value is left out. */
  subjects: Record<string, Summary & { ratio?: Summary }>;
}

/** The same for a program: ratios are to the first subject, within a round, where more or less is better. */
export function findings(trials: Trial[], subjects: Named[], measurements: Measured[]): Finding[] {
  const [baseline] = subjects as [Named, ...Named[]];
  return measurements.flatMap((measurement) =>
    measurement.figures.map((figure): Finding => {
      const reference = valuesOf(trials, baseline, measurement, figure);
      const found = subjects.flatMap((subject) => {
        const values = valuesOf(trials, subject, measurement, figure);
        const of = summary(values);
        if (!of) return [];
        const hasRatio = figure.better && subject !== baseline;
        const ratio = hasRatio ? summary(ratios(values, reference)) : undefined;
        return [[subject.name, { ...of, ...(ratio && { ratio }) }] as const];
      });
      const { name, unit, better = "neither" } = figure;
      const what = { measurement: measurement.name, figure: name, unit };
      return { ...what, better, subjects: Object.fromEntries(found) };
    }),
  );
}

/**
 * One row for each figure of builds, of which several pairs of agents were measured in turn: medians, and ratios
 * to the first build, each taken within a turn, their median with the quarters, and behind it that of each pair.
 * A round is one turn of one of `pairs`, which follow each other.
 */
export function betweenBuilds(
  trials: Trial[],
  builds: Build[],
  measurements: Measured[],
  pairs: number,
): Rows {
  const [first, ...others] = builds as [Build, ...Build[]];
  const heading = ["", "", first.name];
  for (const { name } of others) heading.push(name, `÷ ${first.name}`, "by pair");
  const rows = eachFigure(measurements, (figure, measurement, label) => {
    const values = (build: Build) => valuesOf(trials, build, measurement, figure);
    const row = [label, unitOf(figure), number(median(values(first)), figure.digits)];
    for (const other of others) {
      row.push(number(median(values(other)), figure.digits));
      const all = ratios(values(other), values(first)); // by round
      const byPair = Array.from({ length: pairs }, (_, pair) =>
        number(median(all.filter((_, round) => round % pairs === pair)), 2),
      );
      row.push(...(figure.better ? [quarters(all), byPair.join(" ")] : ["", ""]));
    }
    return row;
  });
  return { heading, rows };
}

/** NaN when there is none. */
function median(values: number[]): number {
  return summary(values)?.median ?? Number.NaN;
}

/** Median (between the quarters lies half of them). */
function quarters(values: number[]): string {
  const of = summary(values);
  if (!of) return "–";
  const [low, high] = [25, 75].map((part) => percentile(values, part).toFixed(2));
  return `${of.median.toFixed(2)} (${low}–${high})`;
}

/**
 * Medians of the packaged tunnels, and beside them how `ours` compares with the best of them, which is
 * another one for each figure: the one with the best median, in ratios within a round.
 */
export function beside(
  ours: Named,
  trials: Trial[],
  subjects: Named[],
  measurements: Measured[],
): Rows {
  const packaged = subjects.filter(({ family }) => family === "packaged");
  const heading = ["", "", ours.name, ...packaged.map(({ name }) => name), `${ours.name} ÷ best`];
  const rows = eachFigure(measurements, (figure, measurement, label) => {
    const of = (subject: Named) => valuesOf(trials, subject, measurement, figure);
    const [own, others] = [of(ours), packaged.map(of)];
    const best = bestOf(others, figure);
    return [
      label,
      unitOf(figure),
      ...[own, ...others].map((values) => number(median(values), figure.digits)),
      best ? range(ratios(own, best)) : "",
    ];
  });
  return { heading, rows };
}

/** Of several subjects' values those with the best median; undefined when there is none, or nothing is better. */
function bestOf(all: number[][], { better }: Figure): number[] | undefined {
  const sign = better === "more" ? -1 : 1;
  const known = all.filter((values) => better && Number.isFinite(median(values)));
  return known.sort((a, b) => sign * (median(a) - median(b)))[0];
}

function eachFigure(
  measurements: Measured[],
  row: (figure: Figure, measurement: Measured, label: string) => string[],
): string[][] {
  return measurements.flatMap((measurement) =>
    measurement.figures.map((figure, i) =>
      row(figure, measurement, i === 0 ? figure.name : `  ${figure.name}`),
    ),
  );
}

/** One for each round, NaN where there is none. */
export function valuesOf(
  trials: Trial[],
  subject: Pick<Named, "name">,
  measurement: Measured,
  figure: Figure,
): number[] {
  return trials
    .filter((trial) => trial.measurement === measurement.name && trial.subject === subject.name)
    .map((trial) => trial.values[figure.name] ?? Number.NaN);
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
  const of = summary(values);
  if (!of) return "–";
  if (of.median === 0) return range(values, digits); // of which there is no part
  const percent = ((of.greatest - of.least) / 2 / of.median) * 100;
  return `${of.median.toFixed(digits)} ±${percent.toFixed(0).padStart(2)}%`;
}

/** Median (least–greatest), with about three digits unless told how many decimals. */
function range(values: number[], digits?: number): string {
  const of = summary(values);
  if (!of) return "–";
  const places = digits ?? placesOf(of.median);
  const [low, middle, high] = [of.least, of.median, of.greatest].map((v) => v.toFixed(places));
  return `${middle} (${low}–${high})`;
}

function number(value: number, digits = placesOf(value)): string {
  return Number.isFinite(value) ? value.toFixed(digits) : "–";
}

/** For about three digits. */
function placesOf(value: number): number {
  return value < 1 ? 3 : value < 10 ? 2 : value < 100 ? 1 : 0;
}
