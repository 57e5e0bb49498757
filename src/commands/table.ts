/**
 * Tables for people: aligned columns under a heading, within the width of the terminal.
 *
 * A page of our own: packages for it (cli-table3, columnify, console-table-printer) bring frames, wrapping
 * and wide characters, none of which is wanted here, and fit a width only if each column's is told.
 */
import { styleText } from "node:util";

export interface Column {
  readonly title: string;
  /** Numbers stand to the right. */
  readonly isNumeric?: boolean;
  /** May be cut to fit, with a dot for what is missing; the widest first. */
  readonly shrinks?: boolean;
}

export interface Paper {
  /** Columns of the terminal; infinite where none is. */
  readonly width: number;
  readonly hasColours: boolean;
}

const GAP = "  ";
const LEAST = 6;

/** That of standard output. A terminal on a serial line does not know its size, and says 0. */
export function paper(): Paper {
  const { isTTY, columns } = process.stdout;
  const hasColours = isTTY && process.stdout.hasColors();
  return { width: isTTY ? columns || 80 : Number.POSITIVE_INFINITY, hasColours };
}

/** Lines without a newline at the end. */
export function table(
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
  { width, hasColours }: Paper,
): string {
  const widths = columns.map(({ title }, at) =>
    rows.reduce((most, row) => Math.max(most, row[at]!.length), title.length),
  );
  shrink(widths, columns, width);
  const line = (cells: readonly string[]) =>
    cells
      .map((cell, at) => {
        const wanted = widths[at]!;
        const cut = cell.length > wanted ? `${cell.slice(0, wanted - 1)}…` : cell;
        return columns[at]!.isNumeric ? cut.padStart(wanted) : cut.padEnd(wanted);
      })
      .join(GAP)
      .trimEnd();
  const heading = line(columns.map(({ title }) => title));
  return [hasColours ? styleText("bold", heading) : heading, ...rows.map(line)].join("\n");
}

function shrink(widths: number[], columns: readonly Column[], width: number): void {
  const shrinking = columns.flatMap(({ shrinks }, at) => (shrinks ? [at] : []));
  const excess = () => widths.reduce((sum, each) => sum + each + GAP.length, -GAP.length) - width;
  while (excess() > 0) {
    const widest = shrinking.reduce(
      (most, at) => (widths[at]! > widths[most]! ? at : most),
      shrinking[0] ?? 0,
    );
    if (shrinking.length === 0 || widths[widest]! <= LEAST) return;
    widths[widest] = widths[widest]! - 1;
  }
}

/** 1234567 as 1.23 M. */
export function brief(count: number): string {
  return scaled(count, " ");
}

/** Three digits and, after the gap, a unit; a small number with the one decimal that it may have. */
export function scaled(value: number, gap: string): string {
  const units = ["", "k", "M", "G", "T", "P"];
  let unit = 0;
  let rest = value;
  for (; rest >= 999.5 && unit < units.length - 1; unit++) rest /= 1000;
  if (unit > 0) return `${rest.toPrecision(3)}${gap}${units[unit]}`;
  return rest > 0 && rest < 9.95 ? `${Number(rest.toFixed(1))}` : `${Math.round(rest)}`;
}

/** 93784 seconds as 1 d 2 h. */
export function duration(seconds: number): string {
  const whole = Math.floor(seconds);
  const units: [number, string][] = [
    [86_400, "d"],
    [3600, "h"],
    [60, "min"],
    [1, "s"],
  ];
  const first = units.findIndex(([length]) => whole >= length);
  if (first < 0) return "0 s";
  const parts = units.slice(first, first + 2).map(([length, name], at) => {
    const before = at === 0 ? whole : whole % units[first]![0];
    return [Math.floor(before / length), name] as const;
  });
  return parts
    .filter(([count], at) => at === 0 || count > 0)
    .map(([count, name]) => `${count} ${name}`)
    .join(" ");
}
