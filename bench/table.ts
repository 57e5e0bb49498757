import { stripVTControlCharacters } from "node:util";

/** Lines with aligned columns, the heading first. Cells may be coloured; numbers stand to the right. */
export function table(heading: string[], rows: string[][]): string {
  const lines = [heading, ...rows];
  const widths = heading.map((_, column) =>
    Math.max(...lines.map((line) => width(line[column] ?? ""))),
  );
  const isNumeric = heading.map((_, column) =>
    rows.every((row) => /^[\d.,–()±% ]*$/.test(stripVTControlCharacters(row[column] ?? ""))),
  );
  const drawn = lines.map((line) =>
    widths
      .map((wanted, column) => {
        const cell = line[column] ?? "";
        const padding = " ".repeat(wanted - width(cell));
        return isNumeric[column] ? padding + cell : cell + padding;
      })
      .join("   "),
  );
  drawn.splice(1, 0, widths.map((wanted) => "─".repeat(wanted)).join("───"));
  return drawn.map((line) => `  ${line}`.trimEnd()).join("\n");
}

function width(cell: string): number {
  return stripVTControlCharacters(cell).length;
}
