import { describe, expect, it, vi } from "vitest";
import {
  Counter,
  Counters,
  Drop,
  FROM_REMOTE,
  TO_REMOTE,
  Traffic,
  Work,
} from "../../src/counters.ts";
import { ALL_OFFLOADS, type Offloads } from "../../src/device.ts";
import { CONTROL, Fdb, STATIC } from "../../src/fdb.ts";
import { Metrics, NETWORKS_SHOWN, REMOTES_SHOWN } from "../../src/metrics.ts";
import { Remotes } from "../../src/remotes.ts";
import { promtool, samples } from "../lab/prometheus.ts";

/** promtool reads 48 MB of itself from the disk first. */
vi.setConfig({ testTimeout: 60_000 });

const WORKERS = 2;

/** An agent's shared memory, with so many networks and remotes, and the metrics of it. */
function agent({ networks = 1, remotes = 2, gone = 0 } = {}) {
  const memory = Counters.allocate(networks, WORKERS);
  const shared = Traffic.allocate(WORKERS);
  const made = {
    version: "1.2.3",
    counters: new Counters(memory, WORKERS),
    traffic: new Traffic(shared, WORKERS),
    fdb: new Fdb(Fdb.allocate(64, 0x5eed)),
    remotes: new Remotes(),
    inUse: ALL_OFFLOADS,
    busy: [1.5, 0],
  };
  for (let at = 0; at < remotes; at++) made.remotes.add(`198.18.${at >> 8}.${at & 0xff}`, 4789);
  const all = Array.from({ length: networks }, (_, at) => {
    return {
      name: `net${at + 1}`,
      vni: 100 + at,
      tap: `vtep${100 + at}`,
      mtu: 1450,
      index: at + 1,
    };
  });
  const metrics = new Metrics({
    ...made,
    networks: () => all,
    gone: () => gone,
    underlay: () => "native",
    offloads: () => ({ wanted: ALL_OFFLOADS, inUse: made.inUse }),
    busySeconds: () => made.busy,
  });
  return {
    ...made,
    metrics,
    networks: all,
    setOffloads(inUse: Offloads): void {
      made.inUse = inUse;
    },
    /** What the other forwarding thread writes to. */
    second: {
      counters: new Counters(memory, WORKERS, 1),
      traffic: new Traffic(shared, WORKERS, 1),
    },
    scrape: async () => samples(await metrics.text()),
  };
}

describe("a scrape", () => {
  it("is text of a type that Prometheus knows", () => {
    expect(agent().metrics.type).toBe("text/plain; version=0.0.4; charset=utf-8");
  });

  it("has nothing that promtool finds fault with", async () => {
    const made = agent();
    made.remotes.learnPathMtu(1, 1400);
    expect(await promtool(["check", "metrics"], await made.metrics.text())).toEqual({
      code: 0,
      output: "",
    });
  });

  it("has what the agent is, and what is of no network", async () => {
    const made = agent({ networks: 2, gone: 4 });
    made.counters.add(0, Counter.refused, 3);
    made.second.counters.add(0, Work.trains, 5);
    const scrape = await made.scrape();
    const info = `vtep_build_info{version="1.2.3",node="${process.version}"}`;
    expect(scrape.get(info)).toBe(1);
    expect(scrape.get('vtep_underlay_info{underlay="native"}')).toBe(1);
    expect(scrape.get("vtep_refused_total")).toBe(3);
    expect(scrape.get("vtep_trains_total")).toBe(5);
    expect(scrape.get("vtep_networks_gone")).toBe(4);
    expect(scrape.get("vtep_workers")).toBe(WORKERS);
    expect(scrape.get('vtep_network_mtu_bytes{network="net2"}')).toBe(1450);
  });

  it("sums what forwarding threads counted, by network and direction", async () => {
    const made = agent({ networks: 2 });
    made.counters.add(2, Counter.encapFrames, 3);
    made.second.counters.add(2, Counter.encapFrames, 4);
    made.second.counters.add(2, Counter.decapBytes, 2 ** 40);
    made.second.counters.add(2, Counter.toldTooBig, 5);
    const scrape = await made.scrape();
    expect(scrape.get('vtep_frames_total{network="net2",direction="encap"}')).toBe(7);
    expect(scrape.get('vtep_frames_total{network="net1",direction="encap"}')).toBe(0);
    expect(scrape.get('vtep_bytes_total{network="net2",direction="decap"}')).toBe(2 ** 40);
    expect(scrape.get('vtep_told_too_big_total{network="net2"}')).toBe(5);
    expect(scrape.get('vtep_network_info{network="net2",vni="101",tap="vtep101"}')).toBe(1);
  });

  it("tells the same again as long as nothing was counted, and more once there was", async () => {
    const made = agent();
    made.counters.add(1, Counter.learned, 1);
    const learned = 'vtep_fdb_learned_total{network="net1"}';
    expect((await made.scrape()).get(learned)).toBe(1);
    expect((await made.scrape()).get(learned)).toBe(1);
    made.counters.add(1, Counter.learned, 1);
    expect((await made.scrape()).get(learned)).toBe(2);
  });

  it("has every reason for drops from the start, so that the first drop is an increase", async () => {
    const made = agent();
    made.counters.add(0, Drop.VXLAN_VNI_NOT_FOUND, 2);
    made.counters.add(1, Drop.FULL_RING, 1);
    const scrape = await made.scrape();
    for (const reason of Object.keys(Drop)) {
      const nowhere = reason === "VXLAN_VNI_NOT_FOUND" ? 2 : 0;
      expect(scrape.get(`vtep_drops_total{reason="${reason}"}`)).toBe(nowhere);
      const there = reason === "FULL_RING" ? 1 : 0;
      expect(scrape.get(`vtep_drops_total{network="net1",reason="${reason}"}`)).toBe(there);
    }
  });

  it("has the FDB by origin, and its limit", async () => {
    const made = agent();
    made.fdb.setLimit(1, 10);
    for (const last of [1, 2, 3]) made.fdb.learn(1, 0, last, 1, 0);
    made.fdb.set(1, 0, 1, 1, STATIC);
    made.fdb.set(1, 0, 9, 1, CONTROL);
    const scrape = await made.scrape();
    expect(scrape.get('vtep_fdb_entries{network="net1",origin="learned"}')).toBe(2);
    expect(scrape.get('vtep_fdb_entries{network="net1",origin="control"}')).toBe(1);
    expect(scrape.get('vtep_fdb_entries{network="net1",origin="static"}')).toBe(1);
    expect(scrape.get('vtep_fdb_learned_limit{network="net1"}')).toBe(10);
  });

  it("has the traffic of each remote, and the MTU of a path that was found narrow", async () => {
    const made = agent();
    made.second.traffic.add(2, TO_REMOTE, 3, 300);
    made.traffic.add(2, FROM_REMOTE, 1, 60);
    made.remotes.learnPathMtu(1, 1400);
    const scrape = await made.scrape();
    expect(scrape.get('vtep_remote_frames_total{remote="198.18.0.1",direction="encap"}')).toBe(3);
    expect(scrape.get('vtep_remote_bytes_total{remote="198.18.0.1",direction="encap"}')).toBe(300);
    expect(scrape.get('vtep_remote_bytes_total{remote="198.18.0.1",direction="decap"}')).toBe(60);
    expect(scrape.get('vtep_remote_path_mtu_bytes{remote="198.18.0.0"}')).toBe(1400);
    expect(scrape.has('vtep_remote_path_mtu_bytes{remote="198.18.0.1"}')).toBe(false);
  });

  it("has offloads as they are wanted and as they are", async () => {
    const made = agent();
    made.setOffloads({ ...ALL_OFFLOADS, gso: false });
    const scrape = await made.scrape();
    expect(scrape.get('vtep_offload_wanted{offload="gso"}')).toBe(1);
    expect(scrape.get('vtep_offload_in_use{offload="gso"}')).toBe(0);
    expect(scrape.get('vtep_offload_in_use{offload="gro"}')).toBe(1);
  });

  it("has the work of each forwarding thread, its lateness as a histogram", async () => {
    const made = agent();
    made.counters.add(0, Work.encapBatches, 2);
    made.counters.add(0, Work.encapRows, 64);
    made.counters.add(0, Work.decapBatches, 3);
    for (const seconds of [0, 0.02, 7]) made.second.counters.late(seconds);
    const scrape = await made.scrape();
    expect(scrape.get('vtep_batches_total{direction="encap"}')).toBe(2);
    expect(scrape.get('vtep_batch_rows_total{direction="encap"}')).toBe(64);
    expect(scrape.get('vtep_batches_total{direction="decap"}')).toBe(3);
    expect(scrape.get('vtep_worker_busy_seconds_total{worker="0"}')).toBe(1.5);
    const late = "vtep_worker_tick_lateness_seconds";
    const bucket = (le: string) => scrape.get(`${late}_bucket{worker="1",le="${le}"}`);
    expect(["0.005", "0.01", "0.05", "1", "+Inf"].map(bucket)).toEqual([1, 1, 2, 2, 3]);
    expect(scrape.get(`${late}_count{worker="1"}`)).toBe(3);
    expect(scrape.get(`${late}_sum{worker="1"}`)).toBeCloseTo(7.02);
    expect(scrape.get(`${late}_count{worker="0"}`)).toBe(0);
  });

  it("has the CPU time of the process since its start, however late it is asked for", async () => {
    const { user, system } = process.cpuUsage();
    const scrape = await agent().scrape();
    for (const [kind, microseconds] of [
      ["user_seconds", user],
      ["system_seconds", system],
      ["seconds", user + system],
    ] as const) {
      const told = scrape.get(`process_cpu_${kind}_total`)!;
      expect(told).toBeGreaterThanOrEqual(microseconds / 1e6);
      expect(told).toBeLessThan(microseconds / 1e6 + 1);
    }
  });

  it("has the process, but nothing of a runtime that forwards nothing", async () => {
    const names = [...(await agent().scrape()).keys()];
    expect(names).toContain("process_resident_memory_bytes");
    expect(names).toContain("process_open_fds");
    expect(names.filter((name) => name.startsWith("nodejs_"))).toEqual([]);
  });
});

describe("the number of series", () => {
  it("stays bounded: networks and remotes above the limits are summed as other", async () => {
    const few = agent({ networks: NETWORKS_SHOWN, remotes: REMOTES_SHOWN });
    for (let index = 1; index <= REMOTES_SHOWN; index++) few.remotes.learnPathMtu(index, 1400);
    const made = agent({ networks: NETWORKS_SHOWN + 20, remotes: REMOTES_SHOWN + 30 });
    for (const at of [1, 2]) {
      made.counters.add(NETWORKS_SHOWN + at, Counter.encapFrames, 10);
      made.traffic.add(REMOTES_SHOWN + at, FROM_REMOTE, 100, 1000);
      made.fdb.learn(NETWORKS_SHOWN + at, 0, 1, 1, 0);
      made.fdb.setLimit(NETWORKS_SHOWN + at, 7);
      made.fdb.learn(NETWORKS_SHOWN + at, 0, 1, 1, 0);
    }
    made.counters.add(NETWORKS_SHOWN, Counter.encapFrames, 1);
    for (let index = 1; index <= REMOTES_SHOWN + 1; index++) made.remotes.learnPathMtu(index, 1400);
    const scrape = await made.scrape();
    expect(scrape.get('vtep_frames_total{network="other",direction="encap"}')).toBe(20);
    expect(scrape.get('vtep_frames_total{network="net500",direction="encap"}')).toBe(1);
    expect(scrape.get('vtep_fdb_entries{network="other",origin="learned"}')).toBe(2);
    expect(scrape.get('vtep_remote_frames_total{remote="other",direction="decap"}')).toBe(200);
    expect(scrape.get("vtep_remotes")).toBe(REMOTES_SHOWN + 30);
    const ofOther = [...scrape.keys()].filter((name) => name.includes('="other"')).length;
    expect(scrape.size).toBe((await few.scrape()).size + ofOther);
    expect(ofOther).toBeLessThan(40);
  });
});

describe("what is summed as other", () => {
  const other = 'vtep_frames_total{network="other",direction="encap"}';
  const many = () => {
    const made = agent({ networks: NETWORKS_SHOWN + 3 });
    for (const at of [1, 2, 3]) made.counters.add(NETWORKS_SHOWN + at, Counter.encapFrames, 10);
    made.fdb.learn(NETWORKS_SHOWN + 1, 0, 1, 1, 0);
    return made;
  };

  it("does not fall when a network of it goes, nor when one gets series of its own", async () => {
    const made = many();
    expect((await made.scrape()).get(other)).toBe(30);
    made.networks.splice(NETWORKS_SHOWN, 1);
    made.counters.add(NETWORKS_SHOWN + 2, Counter.encapFrames, 1);
    const gone = await made.scrape();
    expect(gone.get(other)).toBe(31);
    expect(gone.get('vtep_fdb_entries{network="other",origin="learned"}')).toBe(0);
    made.networks.shift();
    const risen = await made.scrape();
    expect(risen.get('vtep_frames_total{network="net502",direction="encap"}')).toBe(11);
    expect(risen.get(other)).toBe(31);
  });

  it("grows by what a network counts that was made anew, or had gone for a while", async () => {
    const made = many();
    await made.scrape();
    made.counters.clear(NETWORKS_SHOWN + 3);
    made.counters.add(NETWORKS_SHOWN + 3, Counter.encapFrames, 4);
    expect((await made.scrape()).get(other)).toBe(34);
    const others = made.networks.splice(NETWORKS_SHOWN);
    expect((await made.scrape()).has(other)).toBe(false);
    made.counters.clear(NETWORKS_SHOWN + 1);
    made.counters.add(NETWORKS_SHOWN + 1, Counter.encapFrames, 12);
    made.networks.push(others[0]!);
    expect((await made.scrape()).get(other)).toBe(46);
  });

  it("does not grow by what a network counted under another name, nor with series of its own", async () => {
    const made = many();
    made.counters.add(1, Counter.encapFrames, 5);
    expect((await made.scrape()).get(other)).toBe(30);
    // As a reload renames them: each is the last one then.
    for (const at of [0, NETWORKS_SHOWN]) {
      const [network] = made.networks.splice(at, 1);
      made.networks.push({ ...network!, name: `${network!.name}-anew` });
    }
    made.counters.add(1, Counter.encapFrames, 1);
    expect((await made.scrape()).get(other)).toBe(31);
  });
});

describe("scrapes at the same time", () => {
  it("leave others their turn", async () => {
    const made = agent({ networks: NETWORKS_SHOWN });
    let turns = 0;
    const counting = setInterval(() => turns++, 0);
    await made.metrics.text();
    clearInterval(counting);
    expect(turns).toBeGreaterThan(5);
  });

  it("share one rendering, and the next one is fresh", async () => {
    const made = agent();
    const [one, other] = await Promise.all([made.metrics.text(), made.metrics.text()]);
    expect(other).toBe(one);
    made.counters.add(1, Counter.moved, 1);
    expect((await made.scrape()).get('vtep_fdb_moved_total{network="net1"}')).toBe(1);
  });

  it("go on after one that failed", async () => {
    const made = agent();
    const failing = vi.spyOn(made.fdb, "limit").mockImplementation(() => {
      throw new Error("no");
    });
    await expect(made.metrics.text()).rejects.toThrow("no");
    failing.mockRestore();
    expect((await made.scrape()).get("vtep_workers")).toBe(WORKERS);
  });
});
