import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it, vi } from "vitest";
import { parse, stringify } from "yaml";
import { Counters, Traffic } from "../../src/counters.ts";
import { ALL_OFFLOADS } from "../../src/device.ts";
import { Fdb } from "../../src/fdb.ts";
import { Metrics } from "../../src/metrics.ts";
import { Remotes } from "../../src/remotes.ts";
import { ALERTS, alertRules, metricsIn, panels, queries } from "../lab/monitoring.ts";
import { promtool, samples } from "../lab/prometheus.ts";

/** promtool reads 48 MB of itself from the disk first. */
vi.setConfig({ testTimeout: 60_000 });

const CASES = fileURLToPath(new URL("alerts.yaml", import.meta.url));

/** The names of all samples that an agent tells. */
async function told(): Promise<Set<string>> {
  const remotes = new Remotes();
  remotes.learnPathMtu(remotes.add("192.0.2.2", 4789), 1400);
  const metrics = new Metrics({
    version: "0",
    counters: new Counters(Counters.allocate(1, 1), 1),
    traffic: new Traffic(Traffic.allocate(1), 1),
    fdb: new Fdb(Fdb.allocate(64, 0)),
    remotes,
    networks: () => [{ name: "100", vni: 100, tap: "vtep100", mtu: 1450, index: 1 }],
    gone: () => 0,
    underlay: () => "native",
    offloads: () => ({ wanted: ALL_OFFLOADS, inUse: ALL_OFFLOADS }),
    busySeconds: () => [0],
  });
  const names = [...samples(await metrics.text()).keys()];
  return new Set(names.map((name) => name.replace(/\{.*/, "")));
}

/** What promtool says of a file with these rules. */
async function check(rules: object[]) {
  const scratch = mkdtempSync(join(tmpdir(), "vtep-rules-"));
  try {
    const file = join(scratch, "rules.yaml");
    writeFileSync(file, stringify({ groups: [{ name: "all", rules }] }));
    return await promtool(["check", "rules", file]);
  } finally {
    rmSync(scratch, { recursive: true });
  }
}

describe("the alert rules", () => {
  it("are rules to Prometheus", async () => {
    const { code, output } = await promtool(["check", "rules", ALERTS]);
    expect(output).toContain(`SUCCESS: ${alertRules().length} rules found`);
    expect(code).toBe(0);
  });

  it("ask for metrics that there are", async () => {
    const names = await told();
    for (const { alert, expr } of alertRules()) {
      expect(metricsIn(expr).length, alert).toBeGreaterThan(0);
      expect(
        metricsIn(expr).filter((name) => !names.has(name)),
        alert,
      ).toEqual([]);
    }
  });

  it("fire when they should, with their sentences, and are quiet when they should be", async () => {
    expect(await promtool(["test", "rules", CASES])).toMatchObject({
      code: 0,
      output: expect.stringContaining("SUCCESS"),
    });
  });

  it("have each a case in which it fires and one in which it is quiet", () => {
    const { tests } = parse(readFileSync(CASES, "utf8")) as {
      tests: { alert_rule_test: { alertname: string; exp_alerts: object[] }[] }[];
    };
    const cases = tests.flatMap(({ alert_rule_test: each }) => each);
    for (const { alert } of alertRules()) {
      const expected = cases.filter(({ alertname }) => alertname === alert);
      expect(
        expected.some(({ exp_alerts: alerts }) => alerts.length > 0),
        alert,
      ).toBe(true);
      expect(
        expected.some(({ exp_alerts: alerts }) => alerts.length === 0),
        alert,
      ).toBe(true);
    }
  });
});

describe("the dashboard", () => {
  it("has queries that Prometheus can read", async () => {
    const rules = queries().map(({ expr }, at) => ({ record: `panel:${at}`, expr }));
    expect(rules.length).toBeGreaterThan(30);
    const { code, output } = await check(rules);
    expect(output).toContain(`SUCCESS: ${rules.length} rules found`);
    expect(code).toBe(0);
    expect(await check([{ record: "panel:x", expr: "sum by (rate(x[1m])" }])).toMatchObject({
      code: 1,
    });
  });

  it("asks for metrics that there are", async () => {
    const names = await told();
    for (const { panel, expr } of queries()) {
      expect(metricsIn(expr).length, panel).toBeGreaterThan(0);
      expect(
        metricsIn(expr).filter((name) => !names.has(name)),
        panel,
      ).toEqual([]);
    }
  });

  it("says of each panel what it shows, and has no two in one place", () => {
    const taken = new Set<string>();
    const all = panels();
    expect(new Set(all.map(({ id }) => id)).size).toBe(all.length);
    for (const { type, title, description, gridPos } of all) {
      if (type !== "row") expect(description, title).toMatch(/\.$/);
      for (let x = gridPos.x; x < gridPos.x + gridPos.w; x++) {
        for (let y = gridPos.y; y < gridPos.y + gridPos.h; y++) {
          expect(x, title).toBeLessThan(24);
          expect(taken.has(`${x} ${y}`), title).toBe(false);
          taken.add(`${x} ${y}`);
        }
      }
    }
  });
});
