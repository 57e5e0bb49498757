import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Counters, Drop, FROM_REMOTE, Traffic } from "../../src/counters.ts";
import { Fdb, JOURNAL_ROWS } from "../../src/fdb.ts";
import type { AgentEvent } from "../../src/operations.ts";
import { LOCAL, REMOTE_LAYOUT, Remotes } from "../../src/remotes.ts";
import { Watch } from "../../src/watch.ts";

const NET = 1;
const A = "192.0.2.2";
const B = "2001:db8::2";

let fdb: Fdb;
let counters: Counters;
let traffic: Traffic;
let remotes: Remotes;
let watch: Watch;
let events: AgentEvent[];
let logged: AgentEvent[];
let leave: () => void;
let networks: { index: number; name: string }[];
let gone: { name: string; reason: string }[];

beforeEach(() => {
  vi.useFakeTimers();
  fdb = new Fdb(Fdb.allocate(64, 1));
  fdb.setLimit(NET, 64);
  counters = new Counters(Counters.allocate(2, 1), 1);
  traffic = new Traffic(Traffic.allocate(1), 1);
  remotes = new Remotes();
  for (const address of [A, B]) remotes.add(address, 4789);
  networks = [{ index: NET, name: "blue" }];
  gone = [];
  logged = [];
  const sources = { fdb, counters, traffic, remotes, networks: () => networks, gone: () => gone };
  watch = new Watch(sources, (event) => logged.push(event));
  events = [];
  leave = watch.listen((event) => events.push(event));
});
afterEach(() => {
  watch.stop();
  vi.useRealTimers();
});

/** As native code does. */
function refuse(remote: number): void {
  remotes.words[REMOTE_LAYOUT.REMOTE_REFUSED + remote]!++;
}

describe("a listener", () => {
  const mac = "02:00:00:00:00:01";
  const entry = { network: "blue", mac, origin: "learned", moves: 0 };

  it("hears within 100 ms what became of a MAC", () => {
    fdb.learn(NET, 0x0200, 1, LOCAL, 0);
    fdb.learn(NET, 0x0200, 1, 2, 0);
    vi.advanceTimersByTime(100);
    const moved = { ...entry, destination: B, moves: 1 };
    expect(events).toEqual([
      { event: "learned", entry: { ...entry, destination: "local" } },
      { event: "moved", entry: moved, from: "local" },
    ]);
    fdb.expire(NET, 301, 300, 1);
    vi.advanceTimersByTime(100);
    expect(events.slice(2)).toEqual([{ event: "aged", entry: moved }]);
  });

  it("hears nothing of what was before, nor after it left", () => {
    leave();
    fdb.learn(NET, 0x0200, 1, 1, 0);
    counters.add(NET, Drop.MAC_INVALID_SOURCE, 1);
    vi.advanceTimersByTime(1000);
    const later: AgentEvent[] = [];
    watch.listen((event) => later.push(event));
    vi.advanceTimersByTime(1000);
    expect([events, later]).toEqual([[], []]);
  });

  it("hears what it did while others came and left", () => {
    fdb.learn(NET, 0x0200, 1, LOCAL, 0);
    const leaveToo = watch.listen(() => undefined);
    vi.advanceTimersByTime(100);
    leaveToo();
    fdb.learn(NET, 0x0200, 1, 2, 0);
    vi.advanceTimersByTime(100);
    expect(events.map(({ event }) => event)).toEqual(["learned", "moved"]);
  });

  it("leaves nothing that goes on", () => {
    expect(vi.getTimerCount()).toBe(2);
    leave();
    expect(vi.getTimerCount()).toBe(1);
    watch.listen(() => undefined);
    watch.stop();
    expect(vi.getTimerCount()).toBe(0);
  });

  it.each([1, 20])("hears how much it was too much to hear: %i", (count) => {
    const held = JOURNAL_ROWS - 16;
    for (let at = 0; at < held + count; at++) fdb.learn(NET, 0x0200, 1, at % 2, 0);
    vi.advanceTimersByTime(100);
    expect(events[0]).toEqual({ event: "missed", count });
    expect(events).toHaveLength(1 + held);
  });

  it("hears of a network that goes what it did before, and nothing of none", () => {
    fdb.learn(NET, 0x0200, 1, 1, 0);
    watch.readJournal();
    networks = [];
    fdb.learn(NET, 0x0200, 2, 1, 0);
    vi.advanceTimersByTime(100);
    expect(events).toEqual([{ event: "learned", entry: { ...entry, destination: A } }]);
  });

  it("hears of a network that goes what it dropped", () => {
    counters.add(NET, Drop.MAC_INVALID_SOURCE, 3);
    watch.tellDrops();
    networks = [];
    vi.advanceTimersByTime(1000);
    expect(events).toEqual([
      { event: "dropped", network: "blue", drops: { MAC_INVALID_SOURCE: 3 } },
    ]);
  });

  it("hears once of a network that is gone, and that it is back, but not when nobody wants it any more", () => {
    const both = networks;
    networks = [];
    gone = ["blue", "red"].map((name) => ({ name, reason: `no ${name}` }));
    vi.advanceTimersByTime(1000);
    gone[0]!.reason = "another";
    networks = both; // it is tried
    vi.advanceTimersByTime(1000);
    gone = [];
    vi.advanceTimersByTime(2000);
    expect(events).toEqual([
      { event: "network-gone", network: "blue", reason: "no blue" },
      { event: "network-gone", network: "red", reason: "no red" },
      { event: "network-back", network: "blue" },
    ]);
  });

  it("hears each second what was dropped since, by network", () => {
    counters.add(NET, Drop.MAC_INVALID_SOURCE, 3);
    counters.add(0, Drop.VXLAN_VNI_NOT_FOUND, 2);
    vi.advanceTimersByTime(1000);
    counters.add(NET, Drop.MAC_INVALID_SOURCE, 1);
    vi.advanceTimersByTime(2000);
    expect(events).toEqual([
      { event: "dropped", network: undefined, drops: { VXLAN_VNI_NOT_FOUND: 2 } },
      { event: "dropped", network: "blue", drops: { MAC_INVALID_SOURCE: 3 } },
      { event: "dropped", network: "blue", drops: { MAC_INVALID_SOURCE: 1 } },
    ]);
  });
});

it("a network that has another's row counts from zero", () => {
  counters.add(NET, Drop.MAC_INVALID_SOURCE, 3);
  vi.advanceTimersByTime(1000);
  counters.clear(NET);
  watch.forget(NET);
  counters.add(NET, Drop.MAC_INVALID_SOURCE, 5);
  vi.advanceTimersByTime(1000);
  expect(events[1]).toEqual({
    event: "dropped",
    network: "blue",
    drops: { MAC_INVALID_SOURCE: 5 },
  });
});

it("what a path carries is told as it is learned, as it is less still, and as it is forgotten", () => {
  remotes.learnPathMtu(2, 1400);
  vi.advanceTimersByTime(2000);
  remotes.learnPathMtu(2, 1360);
  remotes.forgetPaths(1);
  vi.advanceTimersByTime(1000);
  leave();
  remotes.forgetPaths(601);
  vi.advanceTimersByTime(1000);
  const told = [
    { event: "path-learned", remote: B, mtu: 1400 },
    { event: "path-learned", remote: B, mtu: 1360 },
  ];
  expect([events, logged]).toEqual([told, [...told, { event: "path-forgotten", remote: B }]]);
});

describe("a remote", () => {
  it("is silent, up when a frame came from it, and down when it refused since", () => {
    const states: string[] = [];
    const second = () => {
      vi.advanceTimersByTime(1000);
      states.push(watch.stateOf(1));
    };
    expect(watch.stateOf(1)).toBe("silent");
    second();
    traffic.add(1, FROM_REMOTE, 1, 60);
    second();
    second(); // silence changes nothing
    refuse(1);
    second();
    refuse(1);
    second();
    refuse(1);
    traffic.add(1, FROM_REMOTE, 1, 60);
    second();
    expect(states).toEqual(["silent", "up", "up", "down", "down", "up"]);
    expect(events).toEqual([
      { event: "remote-up", remote: A },
      { event: "remote-down", remote: A },
      { event: "remote-up", remote: A },
    ]);
    expect(watch.stateOf(2)).toBe("silent");
  });

  it("is not taken down by an error that may be older than what it said", () => {
    traffic.add(1, FROM_REMOTE, 1, 60);
    vi.advanceTimersByTime(1000);
    refuse(1);
    vi.advanceTimersByTime(1000);
    expect(watch.stateOf(1)).toBe("up");
    refuse(1);
    vi.advanceTimersByTime(1000);
    expect(watch.stateOf(1)).toBe("down");
  });

  it("is looked at also while nobody listens", () => {
    leave();
    refuse(2);
    vi.advanceTimersByTime(1000);
    expect(watch.stateOf(2)).toBe("down");
  });
});
