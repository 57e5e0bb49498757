import { setImmediate as turn } from "node:timers/promises";
import { beforeEach, describe, expect, onTestFinished, test, vi } from "vitest";
import { networkConfig } from "../../src/config.ts";
import { Entries } from "../../src/entries.ts";
import { Fdb, LEARNED, LOT } from "../../src/fdb.ts";
import type { Live } from "../../src/live.ts";
import { LiveNetworks } from "../../src/live.ts";
import { LOCAL, Remotes } from "../../src/remotes.ts";
import { monotonicSeconds } from "../../src/vtep.ts";
import { formatMac } from "../../src/wire/ethernet.ts";
import { Turns } from "./turns.ts";

const PORT = 4789;
const PEER = "192.0.2.2";
const STATION = "192.0.2.3";
const STRANGER = "192.0.2.9";
const mac = (last: number) => `00:00:5e:00:53:0${last}`;

let fdb: Fdb;
let remotes: Remotes;
let networks: LiveNetworks;
let entries: Entries;
let red: Live;
let blue: Live;
beforeEach(() => {
  fdb = new Fdb(Fdb.allocate(64, 0x5eed));
  remotes = new Remotes();
  const endpoint = { local4: "192.0.2.1", local6: undefined, port: PORT };
  networks = new LiveNetworks(endpoint, remotes, false);
  entries = new Entries(fdb, remotes, PORT, networks, turn);
  red = add({ vni: 1, name: "red", fdb: { [mac(9)]: STATION } });
  blue = add({ vni: 2, name: "blue", age: 0 });
});

function add(given: object): Live {
  const config = networkConfig({ peers: [PEER], ...given });
  const live = networks.planned(config, networks.freeIndex(), 1450);
  networks.put(live);
  entries.configure(live);
  return live;
}

function learn({ plan }: Live, last: number, to: string): void {
  const destination = to === "local" ? LOCAL : remotes.add(to, PORT);
  fdb.learn(plan.index, 0, 0x5e005300 + last, destination, monotonicSeconds());
}

/** The networks, MACs and destinations of those that there are. */
const known = (origin?: "learned" | "control" | "static") =>
  [...entries.list(origin === undefined ? {} : { origin })]
    .flat()
    .map(({ network, mac, destination }) => `${network} ${mac.at(-1)} ${destination}`)
    .sort();

describe("what was learned before a restart", () => {
  type Row = [last: number, to: string, age: number];
  const learned = (name: string, vni: number, ...rows: Row[]) => [
    {
      name,
      vni,
      learned: rows.map(([last, to, age]): [string, string, number] => [mac(last), to, age]),
    },
  ];
  const recall = (...rows: Row[]) => entries.recall([learned("red", 1, ...rows)]);

  test("is known again where it may be: here, behind a peer, and where static entries lead", async () => {
    await recall([1, "local", 1], [2, PEER, 1], [3, STATION, 1], [4, STRANGER, 1], [9, PEER, 1]);
    expect(known("learned")).toEqual(["red 1 local", `red 2 ${PEER}`, `red 3 ${STATION}`]);
    expect(known("static")).toEqual([`red 9 ${STATION}`]);
  });

  test("is not, of a network that has another VNI or another name, nor with a MAC that is none", async () => {
    await entries.recall([learned("red", 2, [1, PEER, 1]), learned("blue", 1, [1, PEER, 1])]);
    await entries.recall([[{ name: "red", vni: 1, learned: [["02:00", PEER, 1]] }]]);
    expect(known("learned")).toEqual([]);
  });

  test("is too old after the network's time, where that ends", async () => {
    const { ageSeconds } = red.config;
    const rows: Row[] = [
      [1, PEER, ageSeconds],
      [2, PEER, ageSeconds + 1],
    ];
    await entries.recall([learned("red", 1, ...rows), learned("blue", 2, ...rows)]);
    expect(known("learned")).toEqual([`blue 1 ${PEER}`, `blue 2 ${PEER}`, `red 1 ${PEER}`]);
  });

  test("has only as much room as there is, what was seen last first", async () => {
    fdb.setLimit(red.plan.index, 2);
    await recall([1, PEER, 5], [2, PEER, 9], [3, PEER, 1]);
    expect(known("learned")).toEqual([`red 1 ${PEER}`, `red 3 ${PEER}`]);
  });

  test("is overtaken by what was seen meanwhile, where that may be", async () => {
    await recall([1, PEER, 5]);
    const seen = (last: number, address: string) => {
      const macLow = 0x5e005300 + last;
      return { macHigh: 0, macLow, seenAt: monotonicSeconds(), address };
    };
    entries.catchUp(new Map([[1, [seen(1, STATION), seen(2, STRANGER)]]]));
    expect(known("learned")).toEqual([`red 1 ${STATION}`]);
  });

  test("comes in lots, between which others have a turn, before what is learned meanwhile, and ages first", async () => {
    const LOTS = 6;
    fdb = new Fdb(Fdb.allocate(LOTS * LOT, 0x5eed));
    let turns = 0;
    const macLow = (at: number) => (at * 0x9e3779b1) | 0;
    const lots = Array.from({ length: LOTS }, (_, lot) => {
      const rows = Array.from({ length: LOT }, (_, at) => lot * LOT + at);
      const learned = rows.map((at) => [formatMac(2, macLow(at)), PEER, at % 100]) as never;
      return [{ name: "red", vni: 1, learned }];
    });
    const meanwhile = async () => {
      // What is recalled last was seen longest ago: this has moved, and is newer.
      fdb.learn(red.plan.index, 2, macLow(99), LOCAL, monotonicSeconds());
      turns++;
    };
    entries = new Entries(fdb, remotes, PORT, networks, meanwhile);
    entries.configure(red);
    fdb.setLimit(red.plan.index, LOTS * LOT - 2);
    await entries.recall(lots);
    expect(turns).toBe(2 * LOTS);
    expect(fdb.lookup(red.plan.index, 2, macLow(99))).toBe(LOCAL);
    const seen = [...fdb.newest(red.plan.index)].map(({ seenAt }) => seenAt);
    expect(seen).toEqual(seen.toSorted((one, other) => other - one));
    expect(fdb.count(red.plan.index, LEARNED)).toBe(LOTS * LOT - 2);
    expect(monotonicSeconds() - seen.at(-1)!).toBeGreaterThanOrEqual(99);
  });
});

describe("what a changed configuration has no more", () => {
  test("is forgotten, and nothing else", async () => {
    entries.configure(add({ vni: 3, name: "green", fdb: { [mac(8)]: STATION } }));
    entries.attach([{ network: "red", mac: mac(7) }]);
    for (const [last, to] of [
      [1, "local"],
      [2, PEER],
      [3, STATION],
    ] as const) {
      for (const network of [red, blue]) learn(network, last, to);
    }
    const config = networkConfig({ vni: 1, name: "red", peers: [STATION] });
    const after = networks.planned(config, red.plan.index, 1450);
    await entries.restrict([{ before: red, after }]);
    expect(known()).toEqual([
      "blue 1 local",
      `blue 2 ${PEER}`,
      `blue 3 ${STATION}`,
      `green 8 ${STATION}`,
      "red 1 local",
      `red 3 ${STATION}`,
      "red 7 local",
    ]);
  });
});

describe("a configuration that has all that it had", () => {
  test.each([
    ["another peer", { peers: [PEER, STRANGER] }, 0],
    ["another entry", { fdb: { [mac(9)]: STATION, [mac(8)]: PEER } }, 0],
    ["a peer for another", { peers: [STRANGER] }, 1],
    ["an entry for another", { fdb: { [mac(8)]: STATION } }, 1],
  ])("with %s: how often is all looked through", async (_, given, times) => {
    const before = { peers: [PEER], fdb: { [mac(9)]: STATION } };
    const config = networkConfig({ vni: 1, name: "red", ...before, ...given });
    const after = networks.planned(config, red.plan.index, 1450);
    const lots = vi.spyOn(fdb, "lots");
    await entries.restrict([
      { before: red, after },
      { before: blue, after: blue },
    ]);
    expect(lots).toHaveBeenCalledTimes(times);
    await entries.restrict([{ before: after, after: red }]); // it is taken back
    expect(lots).toHaveBeenCalledTimes(times + 1);
  });
});

describe("what is attached", () => {
  test("is here until it is not, and what else is known of that network stays", () => {
    learn(red, 1, PEER);
    entries.attach([
      { network: "red", mac: mac(6) },
      { network: "blue", mac: mac(6) },
    ]);
    expect(known("control")).toEqual(["blue 6 local", "red 6 local"]);
    entries.attach([{ network: "blue", mac: mac(6) }]);
    expect(known()).toEqual(["blue 6 local", `red 1 ${PEER}`, `red 9 ${STATION}`]);
  });
});

describe("a flush", () => {
  beforeEach(() => {
    for (const network of [red, blue]) learn(network, 1, "local");
    for (const network of [red, blue]) learn(network, 2, PEER);
  });

  test.each<[Parameters<Entries["flush"]>[0], string[]]>([
    [{}, []],
    [{ network: "red" }, ["blue 1 local", `blue 2 ${PEER}`]],
    [{ mac: mac(1) }, [`blue 2 ${PEER}`, `red 2 ${PEER}`]],
    [{ remote: PEER }, ["blue 1 local", "red 1 local"]],
    [{ network: "blue", remote: "local" }, [`blue 2 ${PEER}`, "red 1 local", `red 2 ${PEER}`]],
  ])("of %j forgets that and no more", async (filter, left) => {
    expect(await entries.flush(filter)).toBe(4 - left.length);
    expect(known("learned")).toEqual(left);
    expect(known("static")).toEqual([`red 9 ${STATION}`]);
  });
});

describe("of many entries", () => {
  const now = monotonicSeconds();
  /** What of the FDB's memory is read meanwhile. */
  function reads(of: () => unknown): number {
    const load = vi.spyOn(Atomics, "load");
    onTestFinished(() => load.mockRestore());
    of();
    return load.mock.calls.length;
  }

  beforeEach(() => {
    fdb = new Fdb(Fdb.allocate(10 * LOT, 0x5eed));
    entries = new Entries(fdb, remotes, PORT, networks, turn);
    for (const network of networks) entries.configure(network);
    entries.attach([{ network: "blue", mac: mac(7) }]);
    for (const { plan } of [red, blue]) {
      fdb.setLimit(plan.index, 5 * LOT);
      for (let at = 0; at < 4 * LOT; at++) fdb.learn(plan.index, 2, at, LOCAL, now - 4 * LOT + at);
    }
  });

  test("those that no frame teaches and those that were seen last are told first, and no others looked at", () => {
    let first: ReturnType<Entries["first"]> | undefined;
    expect(reads(() => (first = entries.first(3)))).toBeLessThan(LOT / 8);
    const told = [...first!].map(([name, all]) => [name, ...all.map((each) => each.mac.slice(-5))]);
    expect(told).toEqual([
      ["red", "53:09", "1f:ff", "1f:fe"],
      ["blue", "53:07", "1f:ff", "1f:fe"],
    ]);
  });

  test("the latest are found, of each network in turn, and no others looked at", () => {
    let latest: [network: number, macLow: number][] = [];
    const find = () => {
      latest = [...entries.latest(now - 3)].map(({ network, macLow }) => [network, macLow]);
    };
    expect(reads(find)).toBeLessThan(LOT / 8);
    expect(latest).toEqual([
      [1, 0x5e005309],
      [2, 0x5e005307],
      ...[1, 2, 3].flatMap((back) => [1, 2].map((network) => [network, 4 * LOT - back])),
    ]);
  });
});

test("many entries are forgotten in lots, between which others have a turn", async () => {
  fdb = new Fdb(Fdb.allocate(10 * LOT, 0x5eed));
  entries = new Entries(fdb, remotes, PORT, networks, turn);
  fdb.setLimit(red.plan.index, 10 * LOT);
  for (let low = 0; low < 10 * LOT; low++) fdb.learn(red.plan.index, 2, low, LOCAL, 0);
  using turns = new Turns();
  expect(await entries.flush({})).toBe(10 * LOT);
  expect(turns.count).toBeGreaterThan(8);
});

test("a removed network leaves nothing, and the others all", async () => {
  for (const network of [red, blue]) learn(network, 1, PEER);
  await entries.clear([red]);
  expect(known()).toEqual([`blue 1 ${PEER}`]);
  expect(entries.unlearn(blue, { macHigh: 0, macLow: 0x5e005301 })).toBe(true);
  expect(fdb.count(blue.plan.index, LEARNED)).toBe(0);
});
