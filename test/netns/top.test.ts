import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, afterEach, beforeEach, describe, expect, test } from "vitest";
import { Lab } from "../lab/lab.ts";
import type { Child } from "../lab/namespace.ts";
import { Terminal } from "../lab/terminal.ts";
import { reach } from "../lab/traffic.ts";
import { cli } from "../lab/vtep.ts";
import { ROOT } from "../native/fixture.ts";

const lab = await Lab.draw({ hosts: 2 });
afterAll(() => lab[Symbol.asyncDispose]());
const [ours, theirs] = [lab.host(1), lab.host(2)];
const here = await ours.container();
const there = await theirs.container();
await theirs.kernelVxlan({ vni: 42, peers: [ours.address] });
const blue = ["--vni", "42", "--peer", theirs.address, "--bridge", "br0"];
const vtep = await ours.vtep(...blue).ready();
await reach(here, there.address);

let terminal: Terminal;
let traffic: Child;
beforeEach(async () => {
  traffic = here.spawn("ping", "-q", "-i", "0.005", "-s", "1000", there.address);
  terminal = await Terminal.open();
});
afterEach(async () => {
  traffic.kill();
  await terminal[Symbol.asyncDispose]();
});

const TOP = `node ${cli} top --socket ${vtep.socket}`;
const START = /^vtep \d.*up \d/;
/** A row of the table of networks that has rates both ways, and bars. */
const FLOWS =
  /^vtep42 +42 +\d+ +(?!0 )[\d.]+k? +[\d.]+[kM] +(?!0 )[\d.]+k? +[\d.]+[kM] +0 +[▁▂▃▄▅▆▇█]{3,}$/m;

/** What the terminal was like before: its settings, to be compared: the whole screen. */
async function settings(): Promise<string> {
  await terminal.line("clear");
  await terminal.shows(/^\$\s*$/); // what was there of an earlier time has gone
  await terminal.line("stty -g");
  return terminal.shows(/^[0-9a-f:]{60,}[\s\S]*^\$\s*$/m);
}

test("shows what is forwarded, in 80 columns and 24 rows", async () => {
  await terminal.line(TOP);
  const screen = await terminal.shows(FLOWS, 15_000);
  const lines = screen.trimEnd().split("\n");
  expect(lines[0]).toMatch(START);
  expect(lines[1]).toMatch(/^encap +\d+ frames\/s .*bit\/s +[▁-█]+ decap +\d+ .*bit\/s +[▁-█]+$/);
  expect(lines).toHaveLength(24);
  expect(lines.at(-1)).toMatch(/^q quit/);
  const readme = await readFile(join(ROOT, "README.md"), "utf8");
  const heading = (of: string) => of.split("\n").find((line) => line.startsWith("NETWORK"));
  expect(heading(readme)).toBe(heading(screen));
});

test("does what keys say", async () => {
  await terminal.line(TOP);
  await terminal.shows(/bit\/s▾/);
  await terminal.press("s");
  await terminal.shows(/DECAP\/s▾/);
  await terminal.press("Left", "Left");
  await terminal.shows(/ENCAP\/s▾/);
  await terminal.press("r");
  await terminal.shows(/ENCAP\/s▴/);
  await terminal.press("?");
  await terminal.shows(/sort by the next column[\s\S]*any key: back/);
  await terminal.press("x", "/", "n", "o", "p", "e");
  await terminal.shows(/^show only what contains: nope_/m);
  expect(await terminal.screen()).not.toContain("vtep42");
  await terminal.press("Escape");
  await terminal.shows(/^vtep42/m);
});

test.each([
  [132, 40],
  [60, 12],
  [20, 5],
])("follows the window to %i columns and %i rows", async (columns, rows) => {
  await terminal.line(TOP);
  await terminal.shows(START);
  await terminal.resize(columns, rows);
  const footer = "q quit  s sort  r reverse".slice(0, columns).trimEnd();
  const fits = (screen: string) => {
    const lines = screen.split("\n").slice(0, rows);
    return lines.length === rows && lines.at(-1)!.startsWith(footer);
  };
  await terminal.shows({ test: fits } as RegExp);
});

test("takes a terminal that does not know its size for one of 80 columns and 24 rows", async () => {
  await terminal.line(`stty columns 0 rows 0; ${TOP}`);
  const screen = await terminal.shows(FLOWS, 15_000);
  expect(screen.trimEnd().split("\n")).toHaveLength(24);
});

describe("leaves the terminal as it found it", () => {
  const ends: [how: string, end: () => Promise<void>][] = [
    ["q", () => terminal.press("q")],
    ["Ctrl-C", () => terminal.press("C-c")],
    ...(["SIGINT", "SIGTERM", "SIGHUP"] as const).map((signal): [string, () => Promise<void>] => [
      signal,
      async () => void process.kill(await terminal.foreground(), signal),
    ]),
  ];
  test.each(ends)("after %s", async (_, end) => {
    const [before, modes] = [await settings(), await terminal.modes()];
    await terminal.line(`echo before; ${TOP}`);
    await terminal.shows(START);
    expect(await terminal.modes()).not.toBe(modes);
    await end();
    await terminal.shows(/^before$[\s\S]*^\$\s*$/m);
    expect(await terminal.modes()).toBe(modes);
    expect(await settings()).toBe(before);
  });

  test("after Ctrl-Z, and is back after fg", async () => {
    const modes = await terminal.modes();
    await terminal.line("set -m");
    await terminal.line(TOP);
    await terminal.shows(START);
    await terminal.press("C-z");
    await terminal.shows(/Stopped/);
    expect(await terminal.modes()).toBe(modes);
    await terminal.line("fg");
    await terminal.shows(START);
    await terminal.press("q");
    await terminal.shows(/Stopped[\s\S]*^\$\s*$/m);
    expect(await terminal.modes()).toBe(modes);
  });
});

test("is not begun where there is no agent: exit code 3", async () => {
  await terminal.line(`node ${cli} top --socket /nonexistent; echo code $?`);
  const screen = await terminal.shows(/code \d/);
  expect(screen).toMatch(/the agent is not reachable at \/nonexistent[\s\S]*code 3/);
});

test("says so when the agent goes away, and goes on when it is back", async () => {
  const other = ["--vni", "43", "--peer", theirs.address, "--port", "4790"];
  const first = await ours.vtep(...other).ready();
  await terminal.line(TOP.replace(vtep.socket, first.socket));
  await terminal.shows(/^vtep43/m);
  await first.stop();
  const screen = await terminal.shows(/the agent is not reachable/);
  expect(screen.replaceAll(/\s+/g, " ")).toMatch(/or name its socket with --socket PATH $/);
  await using _ = await ours.vtep(...other, "--socket", first.socket).ready();
  await terminal.shows(/^q quit/m, 10_000);
});

test("is not for a pipe", async () => {
  const { code, stderr } = await ours.finish(["node", cli, "top", "--socket", vtep.socket]);
  expect([code, stderr]).toEqual([
    2,
    "vtep: vtep top draws on a terminal: for a pipe or a file take vtep status --json\n",
  ]);
});
