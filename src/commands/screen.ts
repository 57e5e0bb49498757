/**
 * What `vtep top` shows: statuses in, lines of text out, and what each key does to them. Nothing here knows
 * a terminal.
 *
 * Rates are differences of counters between two statuses. Where a counter has fallen (the agent was
 * restarted, a network was made anew) there is no rate until the next one.
 */
import { stripVTControlCharacters, styleText } from "node:util";
import { growthOfDrops, sumOfDrops, totalDrops } from "../counters.ts";
import { wrapped } from "../doctor/report.ts";
import type { AgentStatus, Drops, NetworkStatus, RemoteStatus } from "../operations.ts";
import { scaled } from "./table.ts";

export interface Status extends AgentStatus {
  readonly version: string;
  readonly remotes: readonly RemoteStatus[];
}

/** How many lines and columns there are, and what may be used on them. */
export interface Size {
  readonly rows: number;
  readonly columns: number;
  readonly hasColours: boolean;
  readonly isUtf8: boolean;
}

/** What a second of a network or a remote was like. */
interface Rates {
  readonly toFrames: number;
  readonly toBits: number;
  readonly fromFrames: number;
  readonly fromBits: number;
  readonly drops: number;
}

/** As many seconds as the widest terminal has room for. */
const REMEMBERED = 120;

// ---- what was seen

/** The last statuses, boiled down to rates. */
export class History {
  status: Status;
  /** Why there is no newer one. */
  trouble: string | undefined;
  drops: Drops = {};
  readonly #atMs = { before: Number.NaN, now: 0 };
  readonly #before = new Map<string, Counts>();
  readonly #rates = new Map<string, Rates[]>();

  constructor(status: Status, nowMs: number) {
    this.status = status;
    this.add(status, nowMs);
  }

  add(status: Status, nowMs: number): void {
    const reasons = reasonsOf(status);
    const isFirst = Number.isNaN(this.#atMs.before) && this.#atMs.now === 0;
    this.drops = isFirst ? {} : growthOfDrops(reasons, reasonsOf(this.status));
    this.#atMs.before = isFirst ? Number.NaN : this.#atMs.now;
    this.#atMs.now = nowMs;
    this.status = status;
    this.trouble = undefined;
    const all = new Map<string, Counts>();
    for (const network of status.networks) all.set(networkKey(network), countsOf(network));
    for (const remote of status.remotes) all.set(remoteKey(remote), remoteCounts(remote));
    all.set(
      TOTAL,
      sum([...status.networks.map(countsOf), { ...NOTHING, drops: totalDrops(status.drops) }]),
    );
    for (const [key, counts] of all) this.#note(key, counts);
    for (const key of this.#before.keys()) {
      if (all.has(key)) continue;
      this.#before.delete(key);
      this.#rates.delete(key);
    }
  }

  rates(key: string): readonly Rates[] {
    return this.#rates.get(key) ?? [];
  }

  latest(key: string): Rates {
    return this.rates(key).at(-1) ?? { ...NO_RATES };
  }

  #note(key: string, counts: Counts): void {
    const before = this.#before.get(key);
    this.#before.set(key, counts);
    const seconds = (this.#atMs.now - this.#atMs.before) / 1000;
    const rates = this.#rates.get(key) ?? [];
    this.#rates.set(key, rates);
    if (before === undefined || !(seconds > 0)) return;
    const rate = (name: keyof Counts) => (counts[name] - before[name]) / seconds;
    if (COUNTS.some((name) => rate(name) < 0)) return;
    rates.push({
      toFrames: rate("toFrames"),
      toBits: rate("toBytes") * 8,
      fromFrames: rate("fromFrames"),
      fromBits: rate("fromBytes") * 8,
      drops: rate("drops"),
    });
    if (rates.length > REMEMBERED) rates.shift();
  }
}

interface Counts {
  readonly toFrames: number;
  readonly toBytes: number;
  readonly fromFrames: number;
  readonly fromBytes: number;
  readonly drops: number;
}

const COUNTS = ["toFrames", "toBytes", "fromFrames", "fromBytes", "drops"] as const;
const NOTHING: Counts = { toFrames: 0, toBytes: 0, fromFrames: 0, fromBytes: 0, drops: 0 };
const NO_RATES: Rates = { toFrames: 0, toBits: 0, fromFrames: 0, fromBits: 0, drops: 0 };
const TOTAL = "";

function networkKey({ name }: NetworkStatus): string {
  return `network ${name}`;
}

function remoteKey({ address }: RemoteStatus): string {
  return `remote ${address}`;
}

function countsOf({ counters, drops }: NetworkStatus): Counts {
  return {
    toFrames: counters.encapFrames,
    toBytes: counters.encapBytes,
    fromFrames: counters.decapFrames,
    fromBytes: counters.decapBytes,
    drops: totalDrops(drops),
  };
}

function remoteCounts(remote: RemoteStatus): Counts {
  const { toFrames, toBytes, fromFrames, fromBytes } = remote;
  return { toFrames, toBytes, fromFrames, fromBytes, drops: 0 };
}

function sum(all: readonly Counts[]): Counts {
  return all.reduce((one, other) => {
    const names = COUNTS.map((name) => [name, one[name] + other[name]] as const);
    return Object.fromEntries(names) as unknown as Counts;
  }, NOTHING);
}

/** Drops by reason, of all networks and of none. */
function reasonsOf({ drops, networks }: Status): Record<string, number> {
  return sumOfDrops([drops, ...networks.map((network) => network.drops)]);
}

// ---- what is looked at, and what keys do to that

export type Table = "networks" | "remotes";

export interface View {
  readonly focus: Table;
  readonly sort: Readonly<Record<Table, { readonly column: number; readonly isDown: boolean }>>;
  readonly scroll: Readonly<Record<Table, number>>;
  readonly filter: string;
  readonly isTyping: boolean;
  readonly isHelping: boolean;
}

export const FIRST_VIEW: View = {
  focus: "networks",
  sort: { networks: { column: 4, isDown: true }, remotes: { column: 2, isDown: true } },
  scroll: { networks: 0, remotes: 0 },
  filter: "",
  isTyping: false,
  isHelping: false,
};

/** A key as node:readline tells it. */
export interface Key {
  readonly name?: string | undefined;
  readonly sequence?: string | undefined;
  readonly ctrl?: boolean | undefined;
  readonly meta?: boolean | undefined;
}

const HELP = [
  "q, Ctrl-C    quit                       Tab    the other table",
  "s, →         sort by the next column    ↑ ↓    scroll (PgUp, PgDn, Home)",
  "S, ←         sort by the one before     /      show only what contains a text",
  "r            reverse the order          Esc    show all again",
  "",
  "ENCAP is from this host to remotes, DECAP from remotes to this host; bit/s are",
  "of inner frames. DROP/s has its reasons in the third line. TREND is both ways",
  "together, a column a second, in proportion to its own greatest. A path is the",
  "MTU that was learned for it.",
];

/** What is looked at after a key; undefined: nothing any more. */
export function press(view: View, key: Key, history: History): View | undefined {
  if (key.ctrl && key.name === "c") return undefined;
  if (view.isTyping) return type(view, key);
  if (view.isHelping) return { ...view, isHelping: false };
  switch (key.name === undefined || key.sequence === "S" ? key.sequence : key.name) {
    case "q":
      return undefined;
    case "?":
    case "h":
      return { ...view, isHelping: true };
    case "tab":
      return { ...view, focus: view.focus === "networks" ? "remotes" : "networks" };
    case "s":
    case "right":
      return sorted(view, 1);
    case "S":
    case "left":
      return sorted(view, -1);
    case "r": {
      const { column, isDown } = view.sort[view.focus];
      return { ...view, sort: { ...view.sort, [view.focus]: { column, isDown: !isDown } } };
    }
    case "/":
      return { ...view, isTyping: true };
    case "escape":
      return { ...view, filter: "", scroll: FIRST_VIEW.scroll };
    case "up":
      return scrolled(view, -1, history);
    case "down":
      return scrolled(view, 1, history);
    case "pageup":
      return scrolled(view, -10, history);
    case "pagedown":
      return scrolled(view, 10, history);
    case "home":
      return scrolled(view, Number.NEGATIVE_INFINITY, history);
    default:
      return view;
  }
}

function type(view: View, key: Key): View {
  const { filter } = view;
  const scroll = FIRST_VIEW.scroll;
  if (key.name === "return" || key.name === "enter") return { ...view, isTyping: false };
  if (key.name === "escape") return { ...view, isTyping: false, filter: "", scroll };
  if (key.name === "backspace") return { ...view, filter: filter.slice(0, -1), scroll };
  const typed = key.sequence ?? "";
  if (key.ctrl || key.meta || !/^[\x20-\x7e]$/.test(typed)) return view;
  return { ...view, filter: filter + typed, scroll };
}

function sorted(view: View, step: number): View {
  const columns = COLUMNS[view.focus].filter(({ by }) => by !== undefined).length;
  const column = (view.sort[view.focus].column + step + columns) % columns;
  const isDown = COLUMNS[view.focus][column]!.isNumeric;
  return { ...view, sort: { ...view.sort, [view.focus]: { column, isDown } } };
}

function scrolled(view: View, by: number, history: History): View {
  const rows = view.focus === "networks" ? networkRows(history) : remoteRows(history);
  const last = Math.max(0, rows.length - 1);
  const first = Math.min(last, Math.max(0, view.scroll[view.focus] + by));
  return { ...view, scroll: { ...view.scroll, [view.focus]: first } };
}

// ---- how it looks

/** A row to be shown: what it is of, and what is found in it. */
interface Row {
  readonly key: string;
  readonly texts: readonly string[];
  readonly values: Readonly<Record<string, number>>;
}

interface Column {
  readonly title: string;
  readonly width: number;
  readonly isNumeric: boolean;
  /** The value that it shows and is sorted by; a text where it is not numeric. */
  readonly by: string | undefined;
}

const numeric = (title: string, width: number, by: string): Column => {
  return { title, width, isNumeric: true, by };
};
const TREND: Column = { title: "TREND", width: 10, isNumeric: false, by: undefined };

/** At 80 columns; what there is more goes to the name and the trend. */
const COLUMNS: Readonly<Record<Table, readonly Column[]>> = {
  networks: [
    { title: "NETWORK", width: 12, isNumeric: false, by: "name" },
    numeric("VNI", 8, "vni"),
    numeric("FDB", 6, "fdb"),
    numeric("ENCAP/s", 7, "toFrames"),
    numeric("bit/s", 7, "toBits"),
    numeric("DECAP/s", 7, "fromFrames"),
    numeric("bit/s", 7, "fromBits"),
    numeric("DROP/s", 6, "drops"),
    TREND,
  ],
  remotes: [
    { title: "REMOTE", width: 21, isNumeric: false, by: "name" },
    numeric("PATH", 6, "path"),
    numeric("TO/s", 7, "toFrames"),
    numeric("bit/s", 7, "toBits"),
    numeric("FROM/s", 7, "fromFrames"),
    numeric("bit/s", 7, "fromBits"),
    { ...TREND, width: 17 },
  ],
};
const GAP = " ";
const BARS = { utf8: "▁▂▃▄▅▆▇█", ascii: "_.-=+*%#" };

/** The screen, as many lines as there are rows at most. */
export function draw(history: History, view: View, size: Size): string[] {
  const paint = (style: Parameters<typeof styleText>[0], text: string) => {
    if (!size.hasColours || text === "") return text;
    return styleText(style, text, { validateStream: false }); // whether to, is said by the size
  };
  const head = heading(history, size, paint);
  const foot = footing(history, view, size, paint).slice(0, size.rows);
  const above = size.rows - foot.length;
  const room = above - head.length;
  const body = view.isHelping ? ["", ...HELP] : tables(history, view, size, room, paint);
  const filled = [...head, ...body.slice(0, Math.max(0, room))];
  while (filled.length < above) filled.push("");
  return [...filled.slice(0, above), ...foot].map((line) => clipped(line, size.columns));
}

type Paint = (style: Parameters<typeof styleText>[0], text: string) => string;

function heading(history: History, size: Size, paint: Paint): string[] {
  const { version, local, port, underlay, workers, uptimeSeconds, gone } = history.status;
  const about = [
    paint("bold", `vtep ${version}`),
    `${local.join(" ")} port ${port}`,
    `${underlay}, ${workers} ${workers === 1 ? "worker" : "workers"}`,
    `up ${uptime(uptimeSeconds)}`,
  ];
  const now = history.latest(TOTAL);
  const side = Math.max(0, Math.floor((size.columns - 65) / 2));
  const trend = (name: "toBits" | "fromBits") => {
    return sparkline(
      history.rates(TOTAL).map((rates) => rates[name]),
      side,
      size.isUtf8,
    );
  };
  const flow = (name: string, frames: number, bits: number, bars: string) => {
    return `${name} ${brief(frames).padStart(5)} frames/s ${brief(bits).padStart(5)}bit/s ${bars}`;
  };
  const reasons = Object.entries(history.drops)
    .sort(([, one], [, other]) => other - one)
    .map(([reason, count]) => `${reason} ${brief(count)}`);
  const drops = `drops ${brief(now.drops).padStart(5)}/s ${reasons.join(", ")}`;
  // The names last: there may be more of them than a line holds.
  const names = gone.map(({ name }) => name).join(", ");
  const missed = `gone  ${gone.length}, vtep status says why: ${names}`;
  return [
    about.join("  "),
    `${flow("encap", now.toFrames, now.toBits, trend("toBits"))} ${flow("decap", now.fromFrames, now.fromBits, trend("fromBits"))}`,
    now.drops > 0 ? paint("red", drops) : drops,
    ...(gone.length === 0 ? [] : [paint("red", missed)]),
    "",
  ];
}

/** One line, or as many as it takes to say what is to be done about trouble. */
function footing(history: History, view: View, { columns }: Size, paint: Paint): string[] {
  if (view.isTyping) return [`show only what contains: ${view.filter}_`];
  if (history.trouble !== undefined) {
    const lines = wrapped(history.trouble, columns).flatMap((line) => pieces(line, columns));
    return lines.map((line) => paint("red", line));
  }
  const only = view.filter === "" ? "" : `only ${JSON.stringify(view.filter)} (Esc: all)  `;
  if (view.isHelping) return ["any key: back"];
  return [`${only}${paint("dim", "q quit  s sort  r reverse  / filter  Tab other table  ? help")}`];
}

/** A path may be longer than a line. */
function pieces(line: string, columns: number): string[] {
  const starts = Array.from({ length: Math.ceil(line.length / columns) }, (_, at) => at * columns);
  return starts.map((start) => line.slice(start, start + columns));
}

function tables(history: History, view: View, size: Size, room: number, paint: Paint): string[] {
  const networks = networkRows(history);
  const remotes = remoteRows(history);
  // Headings, and a line between; the one in focus may have what the other does not need.
  const space = Math.max(2, room - 3);
  const needed = { networks: networks.length, remotes: remotes.length };
  const other: Table = view.focus === "networks" ? "remotes" : "networks";
  const least = Math.min(needed[other], Math.floor(space / 3));
  const lines = { networks: 0, remotes: 0 };
  lines[view.focus] = Math.min(needed[view.focus], space - least);
  lines[other] = Math.min(needed[other], space - lines[view.focus]);
  return [
    ...table("networks", networks, view, lines.networks, size, history, paint),
    "",
    ...table("remotes", remotes, view, lines.remotes, size, history, paint),
  ];
}

function table(
  kind: Table,
  all: readonly Row[],
  view: View,
  lines: number,
  size: Size,
  history: History,
  paint: Paint,
): string[] {
  const columns = fitted(COLUMNS[kind], size.columns);
  const { column, isDown } = view.sort[kind];
  const shown = ordered(
    all.filter(({ texts }) => contains(texts, view.filter)),
    kind,
    view,
  );
  const first = Math.max(0, Math.min(view.scroll[kind], shown.length - lines));
  const titles = columns.map(({ title, width, isNumeric }, at) => {
    const mark = at === column ? (isDown ? "▾" : "▴") : "";
    const marked = size.isUtf8 ? `${title}${mark}` : mark === "" ? title : `${title}*`;
    return isNumeric ? marked.padStart(width) : marked.padEnd(width);
  });
  const heading = titles.join(GAP).padEnd(size.columns);
  const rows = shown.slice(first, first + lines).map((row) => {
    const line = columns.map((own) => cell(own, row, history, size)).join(GAP);
    return (row.values.drops ?? 0) > 0 ? paint("red", line) : line;
  });
  const hidden = shown.length - rows.length;
  const more = hidden > 0 ? ` ${rows.length} of ${shown.length} ` : "";
  const place = Math.max(0, size.columns - more.length);
  const title = more === "" ? heading : heading.slice(0, place) + more;
  return [paint(kind === view.focus ? "inverse" : "underline", title), ...rows];
}

function cell({ title, width, isNumeric, by }: Column, row: Row, history: History, size: Size) {
  if (title === TREND.title) {
    const values = history.rates(row.key).map(({ toBits, fromBits }) => toBits + fromBits);
    return sparkline(values, width, size.isUtf8);
  }
  if (!isNumeric) return cut(row.texts[0]!, width, size).padEnd(width);
  const value = row.values[by!]!;
  const text = by === "vni" ? `${value}` : by === "path" && value === 0 ? "-" : brief(value);
  return (by === "path" && value > 0 ? `${value}` : text).padStart(width);
}

/** Wider than 80 columns there is more of the name, and of the trend. */
function fitted(columns: readonly Column[], width: number): Column[] {
  const used = columns.reduce((all, each) => all + each.width + GAP.length, -GAP.length);
  const spare = Math.max(0, width - used);
  const name = Math.min(18, Math.floor(spare / 2));
  return columns.map((each, at) => {
    if (at === 0) return { ...each, width: each.width + name };
    return at === columns.length - 1 ? { ...each, width: each.width + spare - name } : each;
  });
}

function networkRows(history: History): Row[] {
  return history.status.networks.map((network) => {
    const { name, vni, fdb } = network;
    const key = networkKey(network);
    const entries = fdb.learned + fdb.control + fdb.static;
    const texts = [name, `${vni}`, network.tap, network.bridge ?? ""];
    return { key, texts, values: { vni, fdb: entries, ...history.latest(key) } };
  });
}

function remoteRows(history: History): Row[] {
  const paths = new Map(history.status.paths.map(({ address, mtu }) => [address, mtu]));
  return history.status.remotes.map((remote) => {
    const key = remoteKey(remote);
    const { drops: _, ...rates } = history.latest(key);
    const path = paths.get(remote.address) ?? 0;
    const name = remote.state === "down" ? `(down) ${remote.address}` : remote.address;
    return { key, texts: [name], values: { path, ...rates } };
  });
}

function contains(texts: readonly string[], filter: string): boolean {
  return texts.some((text) => text.toLowerCase().includes(filter.toLowerCase()));
}

function ordered(rows: readonly Row[], kind: Table, view: View): Row[] {
  const { column, isDown } = view.sort[kind];
  const { by, isNumeric } = COLUMNS[kind][column]!;
  const byName = (one: Row, other: Row) => {
    return one.texts[0]!.localeCompare(other.texts[0]!, "en", { numeric: true });
  };
  const compare = (one: Row, other: Row) => {
    const order = isNumeric ? one.values[by!]! - other.values[by!]! : byName(one, other);
    return (isDown ? -order : order) || byName(one, other);
  };
  return [...rows].sort(compare);
}

/** The last values as bars, each in proportion to the greatest; what is zero has the lowest. */
export function sparkline(values: readonly number[], width: number, isUtf8: boolean): string {
  const bars = isUtf8 ? BARS.utf8 : BARS.ascii;
  const shown = values.slice(Math.max(0, values.length - width));
  const greatest = Math.max(...shown, 1);
  const heights = shown.map((value) => {
    return value === 0 ? 0 : Math.max(1, Math.round((value / greatest) * (bars.length - 1)));
  });
  return heights
    .map((height) => bars[height]!)
    .join("")
    .padStart(width);
}

/** At most five characters. */
export function brief(value: number): string {
  return scaled(value, "");
}

function uptime(seconds: number): string {
  const [days, hours, minutes] = [86_400, 3600, 60].map((unit) => Math.floor(seconds / unit));
  if (days! > 0) return `${days} d ${hours! % 24} h`;
  if (hours! > 0) return `${hours} h ${minutes! % 60} min`;
  return minutes! > 0 ? `${minutes} min` : `${Math.floor(seconds)} s`;
}

function cut(text: string, width: number, { isUtf8 }: Size): string {
  if (text.length <= width) return text;
  return `${text.slice(0, width - 1)}${isUtf8 ? "…" : "~"}`;
}

/** What is too wide is cut, colours and all. */
function clipped(line: string, columns: number): string {
  const plain = stripVTControlCharacters(line);
  return plain.length <= columns ? line : plain.slice(0, columns);
}
