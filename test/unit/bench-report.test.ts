import { mkdtempSync, rmdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { commitOf, loadInWords } from "../../bench/conditions.ts";
import { htmlReport, latencies, plots, type Report, ticks } from "../../bench/html.ts";
import { percentInMaps } from "../../bench/javascript.ts";
import { measurements as real } from "../../bench/measurements.ts";
import {
  beside,
  betweenBuilds,
  comparison,
  findings,
  type Trial,
  tableOf,
} from "../../bench/report.ts";
import { percentile, ratios, summary } from "../../bench/statistics.ts";
import { table } from "../../bench/table.ts";
import { isTimeFor } from "../../bench/trials.ts";

const subjects: Report["subjects"] = [
  { name: "kernel", family: "kernel" },
  { name: "native", family: "vtep" },
  { name: "slow & <odd>", family: "packaged" },
  { name: "slower", family: "packaged" },
];

const measurements: Report["measurements"] = [
  {
    name: "tcp1",
    figures: [
      { name: "TCP 1 stream", unit: "Gbit/s", digits: 2, better: "more" },
      { name: "retransmits", unit: "", digits: 0 },
      { name: "CPU per GB, whole system", unit: "s", digits: 2, better: "less" },
      { name: "CPU per GB, tunnel's processes", unit: "s", digits: 2 },
    ],
  },
  {
    name: "rtt",
    figures: [{ name: "RTT idle, median", unit: "ms", digits: 3, better: "less" }],
  },
  {
    name: "udp64",
    figures: [{ name: "UDP 64 B, one unpaced sender", unit: "kpps", digits: 1, better: "more" }],
  },
];

/** Three rounds in which the second is half as fast for everyone. */
function trials(): Trial[] {
  const speeds: Record<string, number> = { kernel: 8, native: 12, "slow & <odd>": 1, slower: 0.5 };
  return [1, 0.5, 1.1].flatMap((drift, round) =>
    Object.entries(speeds).flatMap(([subject, speed]): Trial[] => {
      const of = { mode: "wire" as const, round, subject };
      const rtts = Array.from({ length: 100 }, (_, i) => (0.1 + i / 1000) / (speed * drift));
      return [
        {
          ...{ ...of, measurement: "tcp1" },
          values: {
            "TCP 1 stream": speed * drift,
            retransmits: 7 * round,
            "CPU per GB, whole system": 16 / speed / drift,
            "CPU per GB, tunnel's processes": 8 / speed / drift,
          },
          rtts,
        },
        { ...of, measurement: "rtt", values: { "RTT idle, median": percentile(rtts, 50) }, rtts },
        { ...of, measurement: "udp64", values: {} },
      ];
    }),
  );
}

describe("builds, of which two pairs were measured in turn", () => {
  const measured = [measurements[0]!, measurements[2]!];
  /** The second build is by 1.1, 1.2, 1.3 and 1.6 times as fast, its pairs in turn; one trial of each failed. */
  const ofBuilds = [1.1, 1.2, 1.3, 1.6, Number.NaN].flatMap((factor, round): Trial[] => {
    const drift = 1 + round;
    return ["1 old", "2 new"].flatMap((subject, at): Trial[] => {
      const speed = drift * (at === 0 ? 4 : 4 * factor);
      const of = { mode: "wire" as const, round, subject };
      const values = { "TCP 1 stream": speed, retransmits: 3 * at + round };
      return [
        { ...of, measurement: "tcp1", values },
        { ...of, measurement: "udp64", values: {} },
      ];
    });
  });
  const builds = [{ name: "1 old" }, { name: "2 new" }];
  const { heading, rows } = betweenBuilds(ofBuilds, builds, measured, 2);

  it("have the median of ratios within a turn, its quarters, and each pair's own", () => {
    expect(heading).toEqual(["", "", "1 old", "2 new", "÷ 1 old", "by pair"]);
    expect(rows[0]).toEqual([
      ...["TCP 1 stream", "Gbit/s ↑", "12.00", "12.60"],
      ...["1.25 (1.10–1.30)", "1.20 1.40"],
    ]);
  });

  it("have no ratio of what is neither better nor worse, and a dash for what was not measured", () => {
    expect(rows[1]).toEqual(["  retransmits", "", "2", "5", "", ""]);
    expect(rows.at(-1)).toEqual([
      ...["UDP 64 B, one unpaced sender", "kpps ↑", "–", "–", "–", "– –"],
    ]);
  });
});

describe("rounds when time is short", () => {
  /** How many of at most three each mode gets, of so many seconds each, before that is over. */
  const rounds = (seconds: number[], deadline: number) => {
    let now = 0;
    return seconds.map((length, at) => {
      const began = now;
      const later = seconds.length - at - 1;
      let round = 0;
      while (round < 3 && isTimeFor(round, { spent: now - began, left: deadline - now, later })) {
        now += length;
        round++;
      }
      return round;
    });
  };

  it("are as many as fit into the time of all modes together, the first before the second", () => {
    expect(rounds([14, 14], 84)).toEqual([3, 3]);
    expect(rounds([15, 15], 84)).toEqual([3, 2]);
    expect(rounds([15, 11], 84)).toEqual([3, 3]);
    expect(rounds([20, 20], 84)).toEqual([2, 2]);
    expect(rounds([25], 84)).toEqual([3]);
  });

  it("are one of each mode at least, and three where there is no deadline", () => {
    expect(rounds([60, 60], 84)).toEqual([1, 1]);
    expect(rounds([60, 60], Infinity)).toEqual([3, 3]);
  });
});

describe("statistics", () => {
  it("leave out what is not a number", () => {
    expect(summary([3, Number.NaN, 1])).toEqual({ least: 1, median: 2, greatest: 3 });
    expect(summary([Number.NaN])).toBeUndefined();
    expect(percentile([], 50)).toBeNaN();
  });

  it("have a percentile be one of the values", () => {
    const values = Array.from({ length: 200 }, (_, i) => 200 - i);
    expect(percentile(values, 50)).toBe(100);
    expect(percentile(values, 99)).toBe(198);
    expect(percentile(values, 0)).toBe(1);
    expect(percentile([7], 99)).toBe(7);
  });

  it("take a ratio within a round, so that a gap costs that round alone", () => {
    expect(ratios([2, Number.NaN, 9], [1, 5, 3])).toEqual([2, Number.NaN, 3]);
  });
});

describe("the comparison", () => {
  it("is not moved by drift that both sides had", () => {
    const { heading, rows } = comparison(trials(), subjects.slice(0, 2), measurements);
    expect(heading).toEqual(["", "", "kernel", "native", "native ÷ kernel"]);
    expect(rows[0]).toEqual([
      "TCP 1 stream",
      "Gbit/s ↑",
      "8.00 ±30%",
      "12.00 ±30%",
      "1.50 (1.50–1.50)",
    ]);
  });

  it("gives no ratio of what only explains another figure, and a dash for what is missing", () => {
    const { rows } = comparison(trials(), subjects.slice(0, 2), measurements);
    expect(rows[1]).toEqual(["  retransmits", "", "7 (0–14)", "7 (0–14)", ""]);
    expect(rows.at(-1)!.slice(2)).toEqual(["–", "–", "–"]);
  });

  it("gives the range of what is mostly nothing, for there is no part of that", () => {
    const rounds = [0, 0, 3].map((value, round): Trial => {
      const of = { mode: "wire" as const, round, subject: "kernel" };
      return { ...of, measurement: "tcp1", values: { "TCP 1 stream": value } };
    });
    const { rows } = comparison(rounds, subjects.slice(0, 1), measurements);
    expect(rows[0]![2]).toBe("0.00 (0.00–3.00)");
  });

  it("compares with the best packaged tunnel, whichever that is for a figure", () => {
    const { heading, rows } = beside(subjects[1]!, trials(), subjects, measurements);
    expect(heading).toEqual(["", "", "native", "slow & <odd>", "slower", "native ÷ best"]);
    expect(rows[0]!.slice(2)).toEqual(["12.00", "1.00", "0.50", "12.0 (12.0–12.0)"]);
    expect(rows[2]!.slice(2)).toEqual(["1.33", "16.00", "32.00", "0.083 (0.083–0.083)"]);
    expect(rows.at(-1)!.slice(2)).toEqual(["–", "–", "–", ""]);
  });

  it("compares with the best packaged tunnel within a round, and leaves out a round it has a gap in", () => {
    const rounds: Record<string, number[]> = {
      native: [10, 20, 90],
      "slow & <odd>": [5, 2, Number.NaN],
      slower: [1, 3, 4],
    };
    const drifting = Object.entries(rounds).flatMap(([subject, values]) =>
      values.map((value, round): Trial => {
        const of = { mode: "wire" as const, round, subject };
        return { ...of, measurement: "tcp1", values: { "TCP 1 stream": value } };
      }),
    );
    const { rows } = beside(subjects[1]!, drifting, subjects, measurements);
    expect(rows[0]!.slice(2)).toEqual(["20.00", "3.50", "3.00", "6.00 (2.00–10.00)"]);
  });

  it("is drawn with its numbers to the right and its words to the left", () => {
    const rows = [
      ["one", "1.0"],
      ["three", "10.0"],
    ];
    const lines = ["            of", "  ────────────", "  one      1.0", "  three   10.0"];
    expect(table(["", "of"], rows)).toBe(lines.join("\n"));
  });

  it("has a line for each figure, as wide as the heading", () => {
    const lines = tableOf(trials(), subjects.slice(0, 2), measurements).split("\n");
    expect(lines).toHaveLength(2 + 6);
    expect(lines[1]).toHaveLength(lines[0]!.length);
  });
});

describe("the findings of a report for programs", () => {
  const found = findings(trials(), subjects.slice(0, 2), measurements);
  const figure = (wanted: string) => found.find((one) => one.figure === wanted)!;

  it("have each figure's unit, which of it is better, medians, and ratios within a round", () => {
    const same = (value: number) => ({ least: value, median: value, greatest: value });
    expect(figure("TCP 1 stream")).toEqual({
      ...{ measurement: "tcp1", figure: "TCP 1 stream", unit: "Gbit/s", better: "more" },
      subjects: {
        kernel: { least: 4, median: 8, greatest: 8.8 },
        native: { least: 6, median: 12, greatest: 12 * 1.1, ratio: same(1.5) },
      },
    });
    expect(figure("CPU per GB, whole system").better).toBe("less");
  });

  it("have no ratio of what only explains another figure, and nothing of what is missing", () => {
    const { better, subjects } = figure("retransmits");
    const counts = { least: 0, median: 7, greatest: 14 };
    expect({ better, subjects }).toEqual({
      better: "neither",
      subjects: { kernel: counts, native: counts },
    });
    expect(figure("UDP 64 B, one unpaced sender").subjects).toEqual({});
  });
});

describe("the page", () => {
  const report: Report = {
    conditions: { date: "2026-01-02", commit: '"<b>" & more' },
    tunnels: { wire: { kernel: "vxlan id 42", native: "node cli.js" } },
    explanations: { wire: "as a plain NIC", veth: "super-packets" },
    trials: trials(),
    subjects,
    measurements,
    javascript: {
      wire: { native: { "TCP 1 stream": 3.2, "UDP 64 B, one unpaced sender": Number.NaN } },
    },
  };
  const page = htmlReport(report);

  it("needs nothing from outside and runs nothing", () => {
    expect(page).not.toMatch(/https?:|\/\/[a-z]|url\(|@import|@font-face/i);
    expect(page).not.toMatch(/<(script|link|img|iframe|object|embed|use|image)\b/i);
    expect(page).not.toMatch(/\s(src|href|srcset|xlink:href|on\w+)\s*=/i);
  });

  it("has every figure of every table", () => {
    const cells = new Set([...page.matchAll(/<td>(.*?)<\/td>/g)].map(([, cell]) => cell));
    const tables = [
      comparison(report.trials, subjects.slice(0, 2), measurements),
      beside(subjects[1]!, report.trials, subjects, measurements),
    ];
    for (const cell of tables.flatMap(({ rows }) => rows.flat())) {
      expect(cells).toContain(cell.trim());
    }
    for (const share of ["3.2 %", "unknown"]) expect(cells).toContain(share);
  });

  it("plots throughput, CPU time and both latencies, each subject in a row of its own", () => {
    for (const title of ["Throughput", "CPU time", "Latency, idle", "Latency under one TCP"]) {
      expect(page).toContain(`<b>${title}`);
    }
    const names = [...page.matchAll(/class="name"[^>]*>(.*?)</g)].map(([, name]) => name);
    expect(names.filter((name) => name === "slower")).toHaveLength(4);
    expect(page).not.toContain("NaN");
  });

  it("says how each tunnel was started, in each mode", () => {
    expect(page).toContain("<h3>wire mode</h3>\n<dl><dt>kernel</dt><dd>vxlan id 42</dd>");
  });

  it("leaves out a plot of what was not measured, and a mode that was not run", () => {
    expect(page).not.toContain("Packet rate");
    expect(page).not.toContain("veth mode");
  });

  it("escapes names", () => {
    expect(page).toContain("slow &amp; &lt;odd&gt;");
    expect(page).toContain("&quot;&lt;b&gt;&quot; &amp; more");
    expect(page).not.toContain("<odd>");
  });

  it("closes what it opens", () => {
    for (const tag of ["svg", "figure", "table", "tr", "td", "section", "text", "li"]) {
      const opened = page.match(RegExp(`<${tag}[ >]`, "g"))?.length;
      expect(page.match(RegExp(`</${tag}>`, "g"))?.length, tag).toBe(opened);
    }
  });

  it("follows the reader's preference for light or dark", () => {
    expect(page).toContain("prefers-color-scheme: dark");
    const svgs = [...page.matchAll(/<svg.*?<\/svg>/gs)].join("");
    expect(svgs).not.toMatch(/fill=|stroke=|#[0-9a-f]{3}/i);
  });
});

describe("the load before", () => {
  it.each([
    { loads: [1, 9.04, 9], cores: 2, text: "1.0 9.0 9.0" },
    { loads: [7.4, 4.2, 6.9], cores: 16, text: "7.4 4.2 6.9" },
  ])("of $loads on $cores cores is told as it is", ({ loads, cores, text }) => {
    expect(loadInWords(loads, cores)).toBe(text);
  });

  it("has a warning where other work takes more than half of the cores", () => {
    expect(loadInWords([1.2, 0, 0], 2)).toMatch(/^1\.2 0\.0 0\.0: not idle in the last minute; /);
  });
});

describe("the plots", () => {
  const named = (wanted: string) => real.find(({ name }) => name === wanted);

  it.each(plots)("$title has a figure of each of its measurements", ({ measurements, figures }) => {
    for (const name of measurements) {
      const matching = named(name)?.figures.filter((figure) => figures.test(figure.name)) ?? [];
      expect(matching, name).not.toEqual([]);
    }
  });

  it("have every figure of which more or less is better", () => {
    const plotted = real.flatMap(({ name, figures }) => {
      const patterns = plots.filter((plot) => plot.measurements.includes(name));
      const isLatency = latencies.some(({ measurement }) => measurement === name);
      return figures.filter(
        (figure) =>
          patterns.some((plot) => plot.figures.test(figure.name)) ||
          (isLatency && figure.unit === "ms"),
      );
    });
    const better = real.flatMap(({ figures }) => figures.filter((figure) => figure.better));
    expect(better.filter((figure) => !plotted.includes(figure))).toEqual([]);
  });

  it("of CPU time know the part of the tunnel's processes", () => {
    for (const { figures } of real) {
      const names = figures.map(({ name }) => name);
      for (const name of names.filter((name) => name.includes("whole system"))) {
        expect(names).toContain(name.replace("whole system", "tunnel's processes"));
      }
    }
  });
});

describe("an axis of logarithms", () => {
  it("has 1, 2 and 5 where there is room for them", () => {
    expect(ticks(-1.05, 0.1)).toEqual([0.1, 0.2, 0.5, 1]);
    expect(ticks(-2.2, 1.3)).toEqual([0.01, 0.1, 1, 10]);
  });
});

describe("perf's report", () => {
  it("tells compiled JavaScript from objects with a file of their own", () => {
    const report = `
# Overhead  Shared Object
    71.20%  [kernel.kallsyms]
    20.00%  vtep.node
     4.50%  perf-4711.map
     2.25%  [JIT] tid 4711
     1.05%  node
     0.50%  //anon
     0.50%  [unknown]
`;
    expect(percentInMaps(report)).toBeCloseTo(7.25);
    expect(percentInMaps("# nothing was sampled")).toBeNaN();
  });
});

it("says of what is no checkout that its commit is unknown, and why", () => {
  const folder = mkdtempSync(join(tmpdir(), "vtep-no-checkout-"));
  try {
    expect(commitOf(folder)).toMatch(/^unknown \(.+\)$/);
  } finally {
    rmdirSync(folder);
  }
});
