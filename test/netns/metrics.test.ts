import { once } from "node:events";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { stringify } from "yaml";
import { Lab } from "../lab/lab.ts";
import { ALERTS, alertRules, queries } from "../lab/monitoring.ts";
import { prometheusProgram, promtool, samples } from "../lab/prometheus.ts";
import { iperf3, ping, reach } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import type { Vtep } from "../lab/vtep.ts";

/** A TCP stream. */
const BRIEF = { seconds: 1, args: ["-C", "cubic"] };
const AGENT = "127.0.0.1:9469";
const PROMETHEUS = "127.0.0.1:9090";
/** Panels about faults, of which there should be none here. */
const OF_FAULTS = ["Drops by reason", "Narrow paths"];

const lab = await Lab.draw({ hosts: 2 });
afterAll(() => lab[Symbol.asyncDispose]());
const here = await lab.host(1).container();
const there = await lab.host(2).container();
const peer = lab.host(2).address;
await lab.host(2).kernelVxlan({ vni: 42, peers: [lab.host(1).address] });
let vtep: Vtep;

beforeAll(async () => {
  const network = ["--vni", "42", "--bridge", "br0", "--peer", peer];
  vtep = await lab
    .host(1)
    .vtep(...network, "--workers", "2", "--metrics-listen", AGENT)
    .ready();
  await reach(here, there.address);
});
afterAll(() => vtep[Symbol.asyncDispose]());

/** The answers of a server on this host's loopback, to as many requests one after the other. */
async function ask(url: string, times = 1): Promise<string> {
  const program = `
    let answer;
    for (let time = 0; time < ${times}; time++) {
      const response = await fetch(${JSON.stringify(url)});
      if (!response.ok) throw new Error(response.status + " " + await response.text());
      answer = await response.text();
    }
    process.stdout.write(answer);`;
  return lab.host(1).run("node", "--input-type=module", "-e", program);
}

async function scrape(times = 1): Promise<Map<string, number>> {
  return samples(await ask(`http://${AGENT}/metrics`, times));
}

function busy(found: Map<string, number>): number {
  const [one, other] = [0, 1].map((worker) => {
    return found.get(`vtep_worker_busy_seconds_total{worker="${worker}"}`)!;
  });
  return one! + other!;
}

/** Seconds on a CPU, by thread of the agent. */
function cpuSeconds(): Map<number, number> {
  const threads = readdirSync(`/proc/${vtep.pid}/task`);
  return new Map(
    threads.map((id) => {
      const [nanoseconds] = readFileSync(`/proc/${vtep.pid}/task/${id}/schedstat`, "utf8").split(
        " ",
      );
      return [Number(id), Number(nanoseconds) / 1e9];
    }),
  );
}

function spent(before: Map<number, number>, after: Map<number, number>, thread: number): number {
  return after.get(thread)! - (before.get(thread) ?? 0);
}

/** What has crossed, by the one network and by the one remote. */
function crossed(found: Map<string, number>, counted: "bytes" | "frames", direction: string) {
  return {
    byNetwork: found.get(`vtep_${counted}_total{network="vtep42",direction="${direction}"}`)!,
    byRemote: found.get(`vtep_remote_${counted}_total{remote="${peer}",direction="${direction}"}`)!,
  };
}

/** A scrape within which no frame was counted: bridges speak at any time, one of the two totals is read first. */
function scrapeBetweenFrames(): Promise<Map<string, number>> {
  let last: object | undefined;
  const wanted = until("the same totals by network and by remote", async () => {
    const found = await scrape();
    for (const counted of ["frames", "bytes"] as const) {
      for (const direction of ["encap", "decap"]) {
        const { byNetwork, byRemote } = crossed(found, counted, direction);
        last = { counted, direction, byNetwork, byRemote };
        if (byNetwork !== byRemote) return false;
      }
    }
    return found;
  });
  return wanted.catch(({ message }: Error) => {
    throw new Error(`${message}: ${JSON.stringify(last)}`);
  });
}

test("what is told is what crossed, by network and by remote", async () => {
  const told = await ask(`http://${AGENT}/metrics`);
  expect(await promtool(["check", "metrics"], told)).toEqual({ code: 0, output: "" });
  const before = await scrapeBetweenFrames();
  expect(await ping(here, there.address, { count: 20, size: 1000 })).toMatchObject({
    received: 20,
  });
  const after = await scrapeBetweenFrames();
  const grown = (name: string) => after.get(name)! - before.get(name)!;
  for (const direction of ["encap", "decap"]) {
    for (const [counted, least] of [
      ["frames", 20],
      ["bytes", 20 * (14 + 20 + 8 + 1000)],
    ] as const) {
      const earlier = crossed(before, counted, direction);
      const later = crossed(after, counted, direction);
      expect(later.byNetwork - earlier.byNetwork).toBeGreaterThanOrEqual(least);
    }
    expect(grown(`vtep_batches_total{direction="${direction}"}`)).toBeGreaterThan(0);
  }
  await until("as many entries as there are", async () => {
    const told = (await scrape()).get('vtep_fdb_entries{network="vtep42",origin="learned"}')!;
    const { fdbEntries } = (await vtep.status()).networks[0]!;
    return told >= 2 && told === fdbEntries; // bridges have MACs too, and may speak at any time
  });
  expect(after.get("vtep_workers")).toBe(2);
});

test("the socket of the API has the same metrics", async () => {
  const asked = request({ socketPath: vtep.socket, path: "/metrics" }).end();
  const [response] = await once(asked, "response");
  expect(response.headers["content-type"]).toBe("text/plain; version=0.0.4; charset=utf-8");
  const names = [...samples(await text(response)).keys()];
  expect(names).toEqual([...(await scrape()).keys()]);
});

test("super-frames, their segments, and what forwarding threads do", async () => {
  const before = await scrape();
  const { sent } = await iperf3(here, there, BRIEF);
  // Each thread notes once a second how late it was.
  const late = (found: Map<string, number>, worker: number) => {
    return found.get(`vtep_worker_tick_lateness_seconds_count{worker="${worker}"}`)!;
  };
  const after = await until("a tick of each thread", async () => {
    const found = await scrape();
    return [0, 1].every((worker) => late(found, worker) > late(before, worker)) && found;
  });
  const grown = (name: string) => after.get(name)! - before.get(name)!;
  const whole = grown("vtep_super_frames_total");
  expect(whole).toBeGreaterThan(0);
  const segments = grown("vtep_super_frame_segments_total");
  expect(segments).toBeGreaterThan(2 * whole);
  // Of 1,398 bytes each; a few are no part of a super-frame, and a few are sent again.
  expect(segments / (sent.bytes / 1398)).toBeGreaterThan(0.7);
  expect(segments / (sent.bytes / 1398)).toBeLessThan(1.2);
  expect(busy(after)).toBeGreaterThan(busy(before));
});

test("scraping costs a forwarding thread nothing, however often", async () => {
  const idle = cpuSeconds();
  await iperf3(here, there, BRIEF);
  const forwarded = cpuSeconds();
  // The thread that worked most of all, the main thread left out.
  const [thread] = [...forwarded.keys()]
    .filter((id) => id !== vtep.pid)
    .sort((one, other) => spent(idle, forwarded, other) - spent(idle, forwarded, one));
  expect(spent(idle, forwarded, thread!)).toBeGreaterThan(0.1);

  const before = cpuSeconds();
  const began = performance.now();
  await scrape(300);
  const seconds = (performance.now() - began) / 1000;
  const after = cpuSeconds();
  expect(spent(before, after, vtep.pid)).toBeGreaterThan(0.1);
  expect(spent(before, after, thread!) / seconds).toBeLessThan(0.01);
});

describe("a Prometheus that scrapes it", () => {
  const scratch = mkdtempSync(join(tmpdir(), "vtep-prometheus-"));
  afterAll(() => rmSync(scratch, { recursive: true }));

  beforeAll(async () => {
    const file = join(scratch, "prometheus.yaml");
    const scrape = {
      job_name: "hosts",
      scrape_interval: "1s",
      static_configs: [{ targets: [AGENT] }],
    };
    const global = { evaluation_interval: "1s" };
    writeFileSync(file, stringify({ global, rule_files: [ALERTS], scrape_configs: [scrape] }));
    const server = lab
      .host(1)
      .spawn(
        prometheusProgram("prometheus"),
        ...[`--config.file=${file}`, `--storage.tsdb.path=${scratch}/data`],
        `--web.listen-address=${PROMETHEUS}`,
      );
    let said = "";
    server.stdout.resume();
    server.stderr.on("data", (chunk) => {
      said += chunk;
    });
    await until(
      "Prometheus ready",
      async () => {
        if (server.exitCode !== null) throw new Error(said);
        return ask(`http://${PROMETHEUS}/-/ready`).then(
          () => true,
          () => false,
        );
      },
      30_000,
    );
  }, 60_000);

  /** The results of queries, by query. */
  async function evaluate(all: readonly string[]): Promise<Map<string, unknown[]>> {
    const program = `
      const results = [];
      for (const query of ${JSON.stringify(all)}) {
        const body = new URLSearchParams({ query });
        const response = await fetch("http://${PROMETHEUS}/api/v1/query", { method: "POST", body });
        const answer = await response.json();
        if (answer.status !== "success") throw new Error(query + ": " + answer.error);
        results.push([query, answer.data.result]);
      }
      process.stdout.write(JSON.stringify(results));`;
    return new Map(JSON.parse(await lab.host(1).run("node", "--input-type=module", "-e", program)));
  }

  test("has an answer for every panel of the dashboard", async () => {
    const all = queries().filter(({ panel }) => !OF_FAULTS.includes(panel));
    // Trains: the kernel coalesces what a kernel VTEP sent, so let it send.
    await iperf3(there, here, BRIEF);
    await iperf3(here, there, BRIEF);
    let empty: string[] = [];
    await until(
      "an answer to each query",
      async () => {
        const results = await evaluate(all.map(({ expr }) => expr));
        empty = all.filter(({ expr }) => results.get(expr)!.length === 0).map(({ panel }) => panel);
        return empty.length === 0;
      },
      30_000,
    ).catch((error) => {
      throw new Error(`${error.message}: ${empty}`);
    });
    await evaluate(queries().map(({ expr }) => expr));
  }, 60_000);

  test("evaluates every alert, and none fires while all is well", async () => {
    const evaluated = async () => {
      const answer = JSON.parse(await ask(`http://${PROMETHEUS}/api/v1/rules`));
      const rules = answer.data.groups[0].rules as {
        health: string;
        lastError?: string;
        state: string;
        name: string;
      }[];
      return rules.every(({ health }) => health !== "unknown") && rules;
    };
    const rules = await until("every rule evaluated", evaluated, 30_000);
    expect(rules.map(({ name }) => name)).toEqual(alertRules().map(({ alert }) => alert));
    expect(rules.filter(({ health }) => health !== "ok")).toEqual([]);
    expect(rules.filter(({ state }) => state === "firing")).toEqual([]);
  }, 60_000);
});

test("stops being served when the agent stops, and what is in its way is told", async () => {
  const other = lab
    .host(1)
    .vtep("--vni", "43", "--peer", peer, "--port", "4790", "--metrics-listen", AGENT);
  expect(await other.exited).toBe(1);
  expect(other.stderr).toBe(
    `vtep: TCP ${AGENT} for metrics is held by another program: choose another metrics-listen\n`,
  );
  expect(await lab.host(1).links()).not.toContain("vtep43");
  expect(await vtep.stop()).toMatchObject({ code: 0 });
  await expect(ask(`http://${AGENT}/metrics`)).rejects.toThrow("ECONNREFUSED");
});
