import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { latencies, plots } from "../../bench/html.ts";
import { ROOT } from "../native/fixture.ts";

// Every plot has a figure of these.
const MEASURES = ["tcp1", "rtt", "udp64", "udp1300", "footprint"];
const NAMES = ["kernel", "native"];

const folder = mkdtempSync(join(tmpdir(), "vtep-bench-test-"));
afterAll(() => rmSync(folder, { recursive: true }));
const [jsonFile, htmlFile] = [join(folder, "bench.json"), join(folder, "bench.html")];

let stdout: string;
let stderr: string;
let json: { conditions: Record<string, string>; trials: { subject: string }[] };
let page: string;

beforeAll(async () => {
  const few = ["--tunnel", "native", "--mode", "wire", "--pairs", "1", "--seconds", "0.1"];
  const files = ["--json", jsonFile, "--html", htmlFile];
  const options = [...few, "--measure", ...MEASURES, "--no-profile", ...files];
  const npm = spawn("npm", ["run", "bench", "--", ...options], { cwd: ROOT, stdio: "pipe" });
  npm.stdin.end();
  const closed = once(npm, "close");
  [stdout, stderr] = await Promise.all([text(npm.stdout), text(npm.stderr)]);
  expect(await closed, stderr).toEqual([0, null]);
  json = JSON.parse(readFileSync(jsonFile, "utf8"));
  page = readFileSync(htmlFile, "utf8");
}, 60_000);

/** What is between the tags of that name, without other tags. */
function inside(tag: string, html: string): string[] {
  return all(RegExp(`<${tag}[ >].*?</${tag}>`, "gs"), html).map((element) =>
    element.replace(/<[^>]*>/g, ""),
  );
}

function all(pattern: RegExp, html: string): string[] {
  return [...html.matchAll(pattern)].map(([whole, group]) => group ?? whole);
}

test("progress is shown, and nothing has failed", () => {
  expect(stderr).not.toMatch(/no figure|could not be measured/);
  for (const name of NAMES) {
    for (const measure of MEASURES) {
      expect(stderr).toContain(`wire mode, round 1/1, ${name}: ${measure}\n`);
    }
  }
});

test("what it holds for is on the terminal, in the file and on the page", () => {
  expect(Object.keys(json.conditions)).toEqual(
    expect.arrayContaining(["system", "cpu", "node", "commit", "command line", "MTU"]),
  );
  const terms = inside("dt", page);
  for (const name of Object.keys(json.conditions)) {
    expect(stdout).toMatch(RegExp(`^${name} `, "m"));
    expect(terms).toContain(name);
  }
});

describe("the page", () => {
  test("has every plot, with finite figures of both in each", () => {
    const figures = all(/<figure>.*?<\/figure>/gs, page);
    const titles = figures.map((figure) => /<b>(.*?)<\/b>/.exec(figure)![1]);
    expect(titles).toEqual([...plots, ...latencies].map(({ title }) => title));
    for (const [at, figure] of figures.entries()) {
      const charts = all(/<svg.*?<\/svg>/gs, figure);
      expect(charts.length, titles[at]).toBeGreaterThan(0);
      for (const chart of charts) {
        expect(all(/class="name"[^>]*>(.*?)</g, chart), titles[at]).toEqual(NAMES);
        const values = all(/class="value"[^>]*>(.*?)</g, chart).map(Number);
        expect(values, titles[at]).toHaveLength(NAMES.length);
        expect(values.every(Number.isFinite), `${titles[at]}: ${values}`).toBe(true);
        expect(chart).not.toMatch(/NaN|Infinity|undefined/);
      }
    }
  });

  test("has finite figures of both in every row of its table", () => {
    const [table, ...others] = all(/<table>.*?<\/table>/gs, page);
    expect(others).toEqual([]);
    expect(inside("th", table!)).toEqual(["", "", ...NAMES, "native ÷ kernel"]);
    const rows = all(/<tr[^>]*>(<td>.*?)<\/tr>/gs, table!).map((row) => inside("td", row));
    expect(rows.length).toBeGreaterThan(20);
    for (const [name, , ...cells] of rows) {
      const isOfProcesses = name!.startsWith("memory"); // the kernel has none
      for (const cell of cells.slice(isOfProcesses ? 1 : 0, NAMES.length)) {
        expect(cell, name).toMatch(/^\d+(\.\d+)? ?(±|\()/);
      }
    }
  });

  test("loads nothing from elsewhere", () => {
    expect(page).not.toMatch(/https?:|url\(|@import|\ssrc\s*=|<(script|link|img|iframe)\b/i);
  });
});
