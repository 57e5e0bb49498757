/**
 * The report as one page that needs nothing else: no script, no font, no picture from outside.
 *
 * Top down, as it is read: what our first subject reaches of the kernel's figures; then for each mode
 * plots of throughput, packet rate, latency and CPU time; then every figure in tables; then what it
 * all holds for. Plots are inline SVG whose colours are the style sheet's, so that they follow the
 * reader's preference for light or dark. In all of them a subject is a row that carries its name, and
 * colours only tell families apart: nothing has to be looked up in a legend.
 */
import type { Mode } from "../test/lab/lab.ts";
import { inWords, type JavaScriptShare } from "./javascript.ts";
import type { Figure } from "./measurements.ts";
import {
  beside,
  comparison,
  type Measured,
  type Named,
  type Rows,
  type Trial,
  valuesOf,
} from "./report.ts";
import { percentile, ratios, summary } from "./statistics.ts";

export interface Report {
  /** Of the run, by name. */
  conditions: Record<string, string>;
  /** By mode and subject: how it was started. A mode that was not measured has none. */
  tunnels: Partial<Record<Mode, Record<string, string>>>;
  /** What each mode means. */
  explanations: Record<Mode, string>;
  trials: Trial[];
  /** The first is what the others are compared with. */
  subjects: Named[];
  measurements: Measured[];
  javascript?: Partial<Record<Mode, Record<string, JavaScriptShare>>>;
}

/** Plots of figures, by the name of their measurement; a measurement that was not taken has none. */
export const plots: { title: string; remark: string; measurements: string[]; figures: RegExp }[] = [
  {
    title: "Throughput",
    remark: "TCP goodput, iperf3. More is better.",
    measurements: ["tcp1", "tcp1-reverse", "tcp4", "tcp4-reverse"],
    figures: /^TCP/,
  },
  {
    title: "Packet rate, 64 bytes",
    remark:
      "Delivered. One unpaced sender is held back by the kernel's own path; read the three together.",
    measurements: ["udp64", "udp64-paced"],
    figures: /^UDP/,
  },
  {
    title: "Packet rate, 1,300 bytes",
    remark: "Delivered, as above.",
    measurements: ["udp1300", "udp1300-paced"],
    figures: /^UDP/,
  },
  {
    title: "CPU time per byte and packet",
    remark: "Of the whole system; the dark part is that of the tunnel's processes. Less is better.",
    measurements: ["tcp1", "udp64-paced", "udp1300-paced"],
    figures: /^CPU.*whole system/,
  },
];

/** Plots of the round-trip times of a measurement. */
export const latencies = [
  { title: "Latency, idle", measurement: "rtt" },
  { title: "Latency under one TCP stream", measurement: "tcp1" },
];

export function htmlReport(report: Report): string {
  const modes = (Object.keys(report.explanations) as Mode[]).filter((mode) =>
    report.trials.some((trial) => trial.mode === mode),
  );
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escaped(title(report))}</title>
<style>${style}</style>
</head>
<body>
<header>
<h1>${escaped(title(report))}</h1>
<p>${escaped(["date", "system", "cpu", "node", "commit"].flatMap((name) => report.conditions[name] ?? []).join(" · "))}</p>
</header>
<main>
${modes.map((mode) => section(report, mode)).join("\n")}
<section>
<h2>Conditions</h2>
<p>Ratios are taken within a round, in which all are measured in turn. Absolute figures hold for this run only.</p>
${terms(report.conditions)}
${modes.map((mode) => `<h3>${escaped(mode)} mode</h3>\n${terms(report.tunnels[mode] ?? {})}`).join("\n")}
</section>
</main>
</body>
</html>
`;
}

function title({ subjects: [baseline, ...others] }: Report): string {
  const names = others.map(({ name, family }) => (family === "vtep" ? `vtep ${name}` : name));
  const last = names.pop() ?? "nothing";
  const list = names.length > 0 ? `${names.join(", ")} and ${last}` : last;
  return `${list}, beside ${baseline!.name} VXLAN`;
}

function section(report: Report, mode: Mode): string {
  const ofMode = { ...report, trials: report.trials.filter((trial) => trial.mode === mode) };
  const { trials, subjects, measurements } = ofMode;
  const ours = subjects.find(({ family }) => family === "vtep");
  const cards = [
    ...plots.map((plot) => barCard(plot, ofMode)),
    ...latencies.map((latency) => latencyCard(latency, ofMode)),
  ].filter(Boolean);
  const plain = subjects.filter(({ family }) => family !== "packaged");
  const tables = [comparison(trials, plain, measurements)];
  if (plain.length < subjects.length) {
    tables.push(beside(ours ?? subjects[0]!, trials, subjects, measurements));
  }
  return `<section>
<h2>${escaped(mode)} mode</h2>
<p>${escaped(report.explanations[mode])}.</p>
${ours ? tiles(ofMode, ours) : ""}
<div class="cards">
${cards.join("\n")}
</div>
<details open>
<summary>Every figure</summary>
${tables.map(tableElement).join("\n")}
${shares(report.javascript?.[mode])}
</details>
</section>`;
}

/** What one of ours reaches of the baseline's figures. */
function tiles({ trials, subjects, measurements }: Report, ours: Named): string {
  const of = measurements.flatMap((measurement) =>
    measurement.figures
      .filter(({ better }) => better)
      .map((figure) => {
        const values = [ours, subjects[0]!].map((s) => valuesOf(trials, s, measurement, figure));
        return { figure, ratio: summary(ratios(values[0]!, values[1]!))?.median };
      }),
  );
  const tile = ({ figure, ratio }: { figure: Figure; ratio: number | undefined }) => {
    if (ratio === undefined) return "";
    const isBetter = figure.better === "more" ? ratio >= 1 : ratio <= 1;
    return `<li class="${isBetter ? "better" : "worse"}"><b>×${significant(ratio)}</b>${escaped(figure.name)}<i>${figure.better === "more" ? "more" : "less"} is better</i></li>`;
  };
  const heading = `${ours.name} ÷ ${subjects[0]!.name}, medians`;
  return `<h3>${escaped(heading)}</h3>\n<ul class="tiles">${of.map(tile).join("")}</ul>`;
}

// ---- plots

/** In user units; a card is as wide as its column. */
const WIDTH = 480;
const LABEL = 74;
const VALUE = 92;
const ROW = 24;
const AXIS = 26;

function barCard(
  { title, remark, measurements: names, figures }: (typeof plots)[number],
  report: Report,
): string {
  const charts = report.measurements
    .filter(({ name }) => names.includes(name))
    .flatMap((measurement) =>
      measurement.figures
        .filter(({ name }) => figures.test(name))
        .map((figure) => barChart(report, measurement, figure)),
    )
    .filter(Boolean);
  if (charts.length === 0) return "";
  return `<figure><figcaption><b>${escaped(title)}</b>${escaped(remark)}</figcaption>${charts.join("\n")}</figure>`;
}

/** A bar to the median, a line from the least to the greatest, the median and its ratio in words. */
function barChart({ trials, subjects }: Report, measurement: Measured, figure: Figure): string {
  const part = measurement.figures.find(
    ({ name }) => name === figure.name.replace("whole system", "tunnel's processes"),
  );
  const reference = valuesOf(trials, subjects[0]!, measurement, figure);
  const bars = subjects.flatMap((subject) => {
    const values = valuesOf(trials, subject, measurement, figure);
    const of = summary(values);
    if (!of) return [];
    const ratio = summary(ratios(values, reference))?.median;
    const own = part && part !== figure ? valuesOf(trials, subject, measurement, part) : [];
    return [{ subject, ...of, ratio, part: summary(own)?.median }];
  });
  if (bars.length === 0) return "";
  const most = Math.max(...bars.map(({ greatest }) => greatest)) || 1;
  const scale = (WIDTH - LABEL - VALUE) / most;
  const rows = bars.map(({ subject, least, median, greatest, ratio, part }, i) => {
    const middle = i * ROW + ROW / 2;
    const x = (value: number) => round(LABEL + value * scale);
    const comparison = i > 0 && ratio !== undefined ? ` ×${significant(ratio)}` : "";
    return [
      `<text class="name" x="${LABEL - 8}" y="${middle}">${escaped(subject.name)}</text>`,
      `<rect class="${subject.family}" x="${LABEL}" y="${middle - 7}" width="${round(median * scale)}" height="14" rx="2"/>`,
      part
        ? `<rect class="part" x="${LABEL}" y="${middle - 7}" width="${round(part * scale)}" height="14" rx="2"/>`
        : "",
      least < greatest
        ? `<path class="range" d="M${x(least)} ${middle}H${x(greatest)}m0 -3v6M${x(least)} ${middle - 3}v6"/>`
        : "",
      `<text class="value" x="${x(greatest) + 8}" y="${middle}">${median.toFixed(figure.digits)}<tspan>${comparison}</tspan></text>`,
    ].join("");
  });
  const unit = figure.unit ? `, ${figure.unit}` : "";
  return `<h4>${escaped(`${figure.name}${unit}`)}</h4>${svg(bars.length * ROW, rows.join(""), figure.name)}`;
}

/** Steps of a histogram, in equal ratios. */
const BINS = 96;

/**
 * For each subject how its round-trip times are distributed, over one logarithmic axis, with the
 * median and the 99th percentile marked. The times of all rounds are taken together.
 */
function latencyCard(
  { title, measurement }: (typeof latencies)[number],
  { trials, subjects }: Report,
): string {
  const rows = subjects.flatMap((subject) => {
    const rtts = trials
      .filter((trial) => trial.measurement === measurement && trial.subject === subject.name)
      .flatMap(({ rtts = [] }) => rtts)
      .filter((rtt) => rtt > 0);
    return rtts.length > 0 ? [{ subject, rtts }] : [];
  });
  if (rows.length === 0) return "";
  const all = rows.flatMap(({ rtts }) => rtts);
  const low = Math.log10(percentile(all, 0)) - 0.05;
  const high = Math.log10(percentile(all, 100)) + 0.05;
  const scale = (WIDTH - LABEL - VALUE) / (high - low);
  const x = (ms: number) => round(LABEL + (Math.log10(ms) - low) * scale);
  const height = ROW * 1.5;
  const ridges = rows.map(({ subject, rtts }, i) => {
    const base = round((i + 1) * height - 4);
    const bins = new Array<number>(BINS).fill(0);
    for (const rtt of rtts) {
      const bin = ((Math.log10(rtt) - low) / (high - low)) * BINS;
      bins[Math.min(BINS - 1, Math.max(0, Math.floor(bin)))]!++;
    }
    const tallest = Math.max(...bins);
    const step = (WIDTH - LABEL - VALUE) / BINS;
    const outline = bins.map(
      (count, bin) =>
        `V${round(base - (count / tallest) * (height - 10))}H${round(LABEL + (bin + 1) * step)}`,
    );
    const [median, p99] = [percentile(rtts, 50), percentile(rtts, 99)];
    return [
      `<text class="name" x="${LABEL - 8}" y="${base - 7}">${escaped(subject.name)}</text>`,
      `<path class="${subject.family}" d="M${LABEL} ${base}${outline.join("")}V${base}Z"/>`,
      `<path class="range" d="M${x(median)} ${base}v${10 - height}M${x(p99)} ${base}v-12"/>`,
      `<text class="value" x="${WIDTH - VALUE + 8}" y="${base - 7}">${significant(median)}<tspan> p99 ${significant(p99)}</tspan></text>`,
    ].join("");
  });
  const bottom = rows.length * height;
  const axis = ticks(low, high).map(
    (ms) =>
      `<path class="grid" d="M${x(ms)} 0V${bottom}"/><text class="tick" x="${x(ms)}" y="${bottom + 14}">${ms}</text>`,
  );
  return `<figure><figcaption><b>${escaped(title)}</b>How round-trip times are distributed, in ms; marked are the median and the 99th percentile. Further left is better.</figcaption>
${svg(bottom + AXIS, axis.join("") + ridges.join(""), title)}</figure>`;
}

/** 1, 2 and 5 of each decade between two logarithms, or the decades alone when there are many. */
export function ticks(low: number, high: number): number[] {
  const leading = high - low > 1.6 ? [1] : [1, 2, 5];
  const decades = Array.from(
    { length: Math.ceil(high) - Math.floor(low) + 1 },
    (_, i) => Math.floor(low) + i,
  );
  return decades
    .flatMap((decade) => leading.map((digit) => Number(`${digit}e${decade}`)))
    .filter((value) => Math.log10(value) >= low && Math.log10(value) <= high);
}

function svg(height: number, content: string, label: string): string {
  return `<svg viewBox="0 0 ${WIDTH} ${height}" role="img" aria-label="${escaped(label)}">${content}</svg>`;
}

// ---- words

function tableElement({ heading, rows }: Rows): string {
  const row = (tag: string, cells: string[]) =>
    `<tr>${cells.map((cell) => `<${tag}>${escaped(cell.trim())}</${tag}>`).join("")}</tr>`;
  const body = rows.map((cells) => {
    const isFurther = cells[0]!.startsWith(" ");
    return row("td", cells).replace("<tr>", isFurther ? '<tr class="further">' : "<tr>");
  });
  return `<div class="scroll"><table><thead>${row("th", heading)}</thead><tbody>${body.join("\n")}</tbody></table></div>`;
}

function terms(of: Record<string, string>): string {
  const all = Object.entries(of).map(
    ([name, value]) => `<dt>${escaped(name)}</dt><dd>${escaped(value)}</dd>`,
  );
  return `<dl>${all.join("\n")}</dl>`;
}

function shares(ofMode: Record<string, JavaScriptShare> = {}): string {
  const rows = Object.entries(ofMode).flatMap(([name, share]) =>
    Object.entries(share).map(([load, percent]) => [name, load, inWords(percent)]),
  );
  if (rows.length === 0) return "";
  return tableElement({ heading: ["CPU time in compiled JavaScript", "under", ""], rows });
}

/** With about two digits behind the point of what is near 1, so that it is as short as it is sure. */
function significant(value: number): string {
  return value < 0.1 ? value.toFixed(3) : value < 10 ? value.toFixed(2) : value.toFixed(0);
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}

const entities: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };

function escaped(text: string): string {
  return text.replace(/[&<>"]/g, (character) => entities[character]!);
}

const style = `
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #fff; --ink: #1b2230; --soft: #5d6778; --line: #e2e6ec;
  --kernel: #8b95a5; --vtep: #2f6fed; --packaged: #c59bd8; --good: #12805c; --bad: #b4541a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161d; --card: #1a2029; --ink: #e6eaf1; --soft: #98a3b5; --line: #2b3340;
    --kernel: #77839a; --vtep: #5b93ff; --packaged: #9a70b3; --good: #46c79a; --bad: #f0935a;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
header, main { max-width: 1180px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 40px; }
h1 { font-size: 28px; line-height: 1.25; margin: 0 0 6px; letter-spacing: -0.01em; text-wrap: balance; }
h2 { font-size: 21px; margin: 48px 0 2px; }
h3 { font-size: 14px; margin: 22px 0 8px; color: var(--soft); font-weight: 600; }
h4 { font-size: 13px; margin: 14px 0 2px; font-weight: 600; }
p { margin: 0 0 4px; color: var(--soft); max-width: 75ch; }
.tiles { list-style: none; margin: 0; padding: 0; display: grid; gap: 10px;
  grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
.tiles li { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 10px 12px; font-size: 12.5px; line-height: 1.35; display: flex; flex-direction: column; }
.tiles b { font-size: 22px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tiles .better b { color: var(--good); }
.tiles .worse b { color: var(--bad); }
.tiles i { color: var(--soft); font-style: normal; font-size: 11.5px; margin-top: auto; padding-top: 4px; }
.cards { columns: 2 440px; column-gap: 16px; margin: 18px 0 2px; }
figure { margin: 0 0 16px; break-inside: avoid; background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 16px 18px; }
figcaption { color: var(--soft); font-size: 12.5px; }
figcaption b { display: block; color: var(--ink); font-size: 15.5px; }
figcaption + svg { margin-top: 14px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-size: 12px; fill: var(--ink); dominant-baseline: central; font-variant-numeric: tabular-nums; }
svg .name { text-anchor: end; }
svg .value tspan, svg .tick { fill: var(--soft); }
svg .tick { text-anchor: middle; font-size: 11px; }
svg .kernel { fill: var(--kernel); }
svg .vtep { fill: var(--vtep); }
svg .packaged { fill: var(--packaged); }
svg .part { fill: #000; opacity: 0.3; }
svg .range { stroke: var(--ink); stroke-width: 1.2; fill: none; opacity: 0.75; }
svg .grid { stroke: var(--line); }
details { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 12px 18px; }
summary { font-weight: 600; cursor: pointer; }
.scroll { overflow-x: auto; margin: 10px 0; }
table { border-collapse: collapse; font-size: 12.5px; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: 4px 14px 4px 0; text-align: right; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
:is(th, td):nth-child(-n + 2) { text-align: left; }
.further td { color: var(--soft); }
.further td:first-child { padding-left: 14px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; font-size: 13px; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 560px) { dl { grid-template-columns: 1fr; } header, main { padding-inline: 14px; } }
`;
