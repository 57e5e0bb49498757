/** Findings as people read them: grouped, the wrong ones with what to do, at 80 columns. */
import {
  type Check,
  counted,
  type Finding,
  SEVERITIES,
  type Severity,
  worstOf,
} from "./finding.ts";

/** The heading under which each is told, in this order. */
const HEADINGS: Readonly<Record<Check, string>> = {
  start: "This host",
  capabilities: "This host",
  tun: "This host",
  "local-address": "This host",
  port: "This host",
  "source-ports": "This host",
  socket: "This host",
  "metrics-listen": "This host",
  "receive-buffer": "This host",
  firewall: "Packet filters",
  conntrack: "Packet filters",
  route: "Ways to the peers",
  "self-route": "Ways to the peers",
  reachability: "Ways to the peers",
  "path-mtu": "Ways to the peers",
  offloads: "Interfaces",
  network: "Overlay",
  tap: "Overlay",
  "bridge-netfilter": "Overlay",
  "duplicate-mac": "Overlay",
  traffic: "Overlay",
  gateway: "Containers",
  ranges: "Containers",
};
const CHECKS = Object.keys(HEADINGS) as Check[];

const WIDTH = 80;
const MARGIN = " ".repeat(11);
/** More of the same good news in a row are counted only. */
const MOST_ALIKE = 4;

/** Of the foreground (ECMA-48, SGR): green, blue, yellow, red. */
const COLOURS: Readonly<Record<Severity, number>> = { ok: 32, note: 34, warning: 33, error: 31 };

export function report(findings: readonly Finding[], coloured: boolean): string {
  const paint = (text: string, code: number) => (coloured ? `\x1b[${code}m${text}\x1b[0m` : text);
  const lines: string[] = [];
  for (const heading of new Set(Object.values(HEADINGS))) {
    const group = findings.filter(({ check }) => HEADINGS[check] === heading);
    if (group.length === 0) continue;
    lines.push(paint(heading, 1));
    for (const check of CHECKS) lines.push(...ofCheck(group, check, paint));
    lines.push("");
  }
  return `${[...lines, summary(findings)].join("\n")}\n`;
}

type Paint = (text: string, code: number) => string;

function ofCheck(group: readonly Finding[], check: Check, paint: Paint): string[] {
  const findings = group.filter((finding) => finding.check === check);
  const good = findings.filter(({ severity }) => severity === "ok");
  const hidden = good.length > MOST_ALIKE ? good.slice(MOST_ALIKE - 1) : [];
  const shown = findings.filter((finding) => !hidden.includes(finding));
  const lines = shown.flatMap((finding) => ofFinding(finding, paint));
  if (hidden.length === 0) return lines;
  return [...lines, `${MARGIN}… and ${hidden.length} more like these (--json has them)`];
}

function ofFinding({ severity, finding, remedy, commands = [] }: Finding, paint: Paint): string[] {
  const room = WIDTH - MARGIN.length;
  const [first = "", ...rest] = wrapped(harmless(finding), room);
  const label = `  ${paint(severity, COLOURS[severity])}${" ".repeat(9 - severity.length)}`;
  const lines = [label + first, ...rest.map((line) => MARGIN + line)];
  const [todo, ...more] = remedy === undefined ? [] : wrapped(harmless(remedy), room - 2);
  if (todo !== undefined)
    lines.push(`${MARGIN}→ ${todo}`, ...more.map((line) => `${MARGIN}  ${line}`));
  // As they are: whoever copies them must not find them cut.
  return [...lines, ...commands.map((line) => `${MARGIN}    ${harmless(line)}`)];
}

/** Others of this host choose their command lines, which are not to tell root's terminal what to do. */
function harmless(text: string): string {
  return text.replaceAll(/\p{Cc}/gu, "?");
}

/** Lines of words; a word that is longer than a line has one to itself. */
export function wrapped(text: string, room: number): string[] {
  const lines: string[] = [];
  for (const word of text.split(" ")) {
    const longer = `${lines.at(-1) ?? ""} ${word}`;
    if (lines.length > 0 && longer.length <= room) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}

function summary(findings: readonly Finding[]): string {
  if (worstOf(findings) === "ok") return "All is well.";
  const counts = [...SEVERITIES].reverse().flatMap((severity) => {
    const count = findings.filter((finding) => finding.severity === severity).length;
    if (count === 0 || severity === "ok") return [];
    return counted(count, severity);
  });
  return `${counts.join(", ")}.`;
}
