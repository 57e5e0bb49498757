/** What an agent tells of networks that come, change and go, by its memory alone: no thread forwards. */
import { setImmediate as turn } from "node:timers/promises";
import { pino } from "pino";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { networkConfig } from "../../src/config.ts";
import { Counter, Counters, Drop, FROM_REMOTE, TO_REMOTE, Traffic } from "../../src/counters.ts";
import { ALL_OFFLOADS } from "../../src/device.ts";
import { Entries } from "../../src/entries.ts";
import { Fdb } from "../../src/fdb.ts";
import { Heartbeats, SILENT_SECONDS } from "../../src/heartbeats.ts";
import { type Live, LiveNetworks } from "../../src/live.ts";
import type { AgentEvent } from "../../src/operations.ts";
import { addressWords, LOCAL, Remotes } from "../../src/remotes.ts";
import { Telling } from "../../src/telling.ts";
import { monotonicSeconds, type Plan } from "../../src/vtep.ts";

const PORT = 4789;
const OPENED = {
  ...{ underlay: "native", capabilities: {}, fallback: undefined, unsteered: undefined },
  paceFault: undefined,
} as unknown as Parameters<Telling["noteOpened"]>[0];

let fdb: Fdb;
let remotes: Remotes;
let networks: LiveNetworks;
let counters: Counters;
let traffic: Traffic;
let heartbeats: Heartbeats;
let telling: Telling;
let lines: { level: number; msg: string }[];
beforeEach(() => {
  vi.useFakeTimers({ toFake: ["setInterval", "clearInterval"] });
  fdb = new Fdb(Fdb.allocate(64, 1));
  remotes = new Remotes();
  const endpoint = { local4: "192.0.2.1", local6: undefined, port: PORT };
  networks = new LiveNetworks(endpoint, remotes, false);
  const memory = {
    counters: Counters.allocate(40, 1),
    traffic: Traffic.allocate(1),
    heartbeats: Heartbeats.allocate(1),
  };
  counters = new Counters(memory.counters, 1);
  traffic = new Traffic(memory.traffic, 1);
  heartbeats = new Heartbeats(memory.heartbeats);
  const offloads = { ...ALL_OFFLOADS, uso: false };
  const plan = { ...endpoint, ...memory, workers: 1, offloads, largestMtu: 1450 } as Plan;
  const entries = new Entries(fdb, remotes, PORT, networks, turn);
  const workers = { count: 1, busySeconds: () => [0] };
  lines = [];
  const log = pino({}, { write: (line) => lines.push(JSON.parse(line)) });
  telling = new Telling({ plan, fdb, remotes, networks, entries, workers }, log);
  telling.noteOpened(OPENED);
});
afterEach(() => {
  telling.stop();
  vi.useRealTimers();
});

function add(given: object): Live {
  const config = networkConfig({ peers: ["192.0.2.2"], ...given });
  const live = networks.planned(config, networks.freeIndex(), 1450);
  networks.put(live);
  fdb.setLimit(live.plan.index, 16);
  return live;
}

test("a network that has the row of another begins at zero, for whoever asks, listens or reads the log", () => {
  const heard: AgentEvent[] = [];
  telling.listen((event) => heard.push(event));
  const drop = ({ plan }: Live) => {
    counters.add(plan.index, Drop.VXLAN_REMOTE_NOT_ALLOWED, 1);
    telling.reportDrops();
    vi.advanceTimersByTime(1000);
  };
  for (const name of ["red", "blue"]) {
    const live = add({ vni: 1, name });
    telling.countAnew(live.plan.index);
    expect(telling.network(name)!.drops).toEqual({});
    drop(live);
    expect(telling.network(name)!.drops).toEqual({ VXLAN_REMOTE_NOT_ALLOWED: 1 });
    networks.remove(name);
  }
  const drops = { VXLAN_REMOTE_NOT_ALLOWED: 1 };
  expect(lines).toMatchObject([{ drops }, { drops }]);
  expect(heard.filter(({ event }) => event === "dropped")).toEqual([
    { event: "dropped", network: "red", drops },
    { event: "dropped", network: "blue", drops },
  ]);
});

test("what a network that goes has dropped, and what becomes of its entries, is told by its name", () => {
  const heard: AgentEvent[] = [];
  telling.listen((event) => heard.push(event));
  const red = add({ vni: 1, name: "red" });
  fdb.learn(red.plan.index, 0x0200, 1, LOCAL, 0);
  counters.add(red.plan.index, Drop.PKT_TOO_SMALL, 1);
  telling.noteRetired();
  telling.noteLeaving();
  networks.remove("red");
  telling.countAnew(add({ vni: 2, name: "blue" }).plan.index);
  vi.advanceTimersByTime(1000);
  telling.reportDrops();
  const drops = { PKT_TOO_SMALL: 1 };
  expect(heard).toMatchObject([
    { event: "dropped", network: "red", drops },
    { event: "learned", entry: { network: "red" } },
  ]);
  expect(lines).toMatchObject([{ vni: 1, drops }]);
});

test("a remote is told of that a network floods to, or only an entry names, and no other", () => {
  remotes.add("192.0.2.9", PORT); // of a network that is gone
  add({ vni: 1, peers: ["192.0.2.4"], fdb: { "00:00:5e:00:53:07": "192.0.2.3" } });
  const own = remotes.add("192.0.2.3", PORT);
  traffic.add(own, TO_REMOTE, 2, 200);
  traffic.add(own, FROM_REMOTE, 3, 300);
  vi.advanceTimersByTime(1000);
  const nothing = { toFrames: 0, toBytes: 0, fromFrames: 0, fromBytes: 0, refused: 0 };
  expect(telling.remotes()).toEqual([
    { address: "192.0.2.4", ...nothing, state: "silent" },
    {
      ...{ address: "192.0.2.3", toFrames: 2, toBytes: 200, fromFrames: 3, fromBytes: 300 },
      ...{ refused: 0, state: "up" },
    },
  ]);
});

test("remotes are told of in the order in which they came to be known, however many", () => {
  const peers = Array.from({ length: 12 }, (_, at) => `192.0.2.${40 - at}`);
  for (const peer of peers) remotes.add(peer, PORT);
  add({ vni: 1, peers: peers.toReversed() });
  expect(telling.remotes().map(({ address }) => address)).toEqual(peers);
});

test("a frame is explained by all who may send: those that are flooded to, and those that an entry names", () => {
  const live = add({ vni: 1, peers: ["192.0.2.4"], fdb: { "00:00:5e:00:53:07": "192.0.2.3" } });
  const outcome = (from: string) =>
    telling.explain(live, { from, source: "00:00:5e:00:53:08", destination: "00:00:5e:00:53:09" })
      .verdict.outcome;
  const outcomes = ["192.0.2.4", "192.0.2.3", "192.0.2.9"].map(outcome);
  expect(outcomes).toEqual(["delivered", "delivered", "dropped"]);
});

test("an offload that is given up is told of once, and counts as refused from then on", () => {
  const heard: AgentEvent[] = [];
  telling.listen((event) => heard.push(event));
  const less = { ...ALL_OFFLOADS, uso: false, gro: false };
  for (const inUse of [less, less, { ...ALL_OFFLOADS, uso: false }]) telling.noteOffloads(inUse);
  expect(heard).toEqual([{ event: "offload-demoted", offload: "gro" }]);
  expect(lines).toMatchObject([{ offloads: ["gro"], msg: "offloads were refused" }]);
  expect(telling.status()).toMatchObject({ refusedOffloads: ["gro"], offloads: less });
});

test("the status counts errors of ICMP, whichever network's datagrams they were for", () => {
  counters.add(0, Counter.refused, 3);
  expect(telling.status().refused).toBe(3);
});

test("the sockets take what they were opened for, and whatever comes where they take trains", () => {
  expect(telling.largestMtu).toBeGreaterThan(9000);
  telling.noteOffloads({ ...ALL_OFFLOADS, gro: false });
  expect(telling.largestMtu).toBe(1450);
});

test("the offloads of node:dgram are few, which is no news", () => {
  telling.noteOpened({ ...OPENED, underlay: "dgram" });
  expect(telling.largestMtu).toBe(1450);
  telling.noteOffloads({ ...ALL_OFFLOADS, gro: false });
  expect(lines).toEqual([]);
});

test("where the route to a peer begins elsewhere is logged once a peer", () => {
  const astray = (peer: string) => ({ peer, local: "192.0.2.1", source: "192.0.2.8" });
  telling.noteAstray([astray("192.0.2.2")]);
  telling.noteAstray([astray("192.0.2.2"), astray("192.0.2.3")]);
  expect(lines).toMatchObject([astray("192.0.2.2"), astray("192.0.2.3")]);
});

test("a thread that stands still is logged once, and again when it has gone on meanwhile", () => {
  const past = monotonicSeconds() - SILENT_SECONDS - 2;
  for (const beat of [past, past, monotonicSeconds(), past]) {
    heartbeats.beat(0, beat, 0);
    expect(telling.forwards()).toBe(beat !== past);
  }
  expect(lines).toMatchObject([{ threads: [0] }, { threads: [0] }]);
});

test("a report of drops names twenty networks, what belongs to none among them, and counts the rest", () => {
  for (let vni = 1; vni <= 22; vni++) {
    counters.add(add({ vni }).plan.index, Drop.PKT_TOO_SMALL, vni);
  }
  counters.add(0, Drop.VXLAN_VNI_NOT_FOUND, 1);
  telling.reportDrops();
  expect(lines).toHaveLength(21);
  expect(lines[0]).not.toHaveProperty("vni");
  expect(lines[19]).toMatchObject({ vni: 19, drops: { PKT_TOO_SMALL: 19 } });
  expect(lines[20]).toMatchObject({ networks: 3, drops: { PKT_TOO_SMALL: 20 + 21 + 22 } });
  telling.reportDrops();
  expect(lines).toHaveLength(21);
});

test("a report of drops names who was refused, where anybody was", () => {
  const { index } = add({ vni: 1 }).plan;
  counters.setStranger(index, addressWords("192.0.2.66"), 0);
  for (const reason of [Drop.VXLAN_REMOTE_NOT_ALLOWED, Drop.PKT_TOO_SMALL]) {
    counters.add(index, reason, 1);
    telling.reportDrops();
  }
  expect(lines[0]).toMatchObject({ vni: 1, stranger: "192.0.2.66" });
  expect(lines[1]).not.toHaveProperty("stranger");
});
