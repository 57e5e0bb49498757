import { Worker } from "node:worker_threads";
import fc from "fast-check";
import { afterEach, describe, expect, it, vi } from "vitest";
import {
  ADDED,
  AGED,
  CONTROL,
  EVICTED,
  Fdb,
  type FdbRow,
  JOURNAL_ROWS,
  LEARNED,
  type Learnt,
  MOVED,
  type Origin,
  PASSED,
  REFUSED,
  SEEN,
  STATIC,
} from "../../src/fdb.ts";
import { LOCAL } from "../../src/remotes.ts";
import type { Churn, ChurnResult } from "./fdb-churn.ts";

/** 00:00:5e:00:53:00, the first of the addresses for documentation (RFC 7042). */
const HIGH = 0x0000;
const LOW = 0x5e00_5300;
const NET = 1;
const OTHER_NET = 2;
/** Remotes. */
const A = 1;
const B = 2;

function fdbOf({ capacity = 64, limit = 64, seed = 0x5eed } = {}): Fdb {
  const fdb = new Fdb(Fdb.allocate(capacity, seed));
  for (const network of [NET, OTHER_NET, 3]) fdb.setLimit(network, limit);
  return fdb;
}

/** The MAC 00:00:5e:00:53:`last`, and on into addresses that no document has. */
function learn(fdb: Fdb, last: number, to: number, now = 0, network = NET): Learnt {
  return fdb.learn(network, HIGH, LOW + last, to, now);
}

function lookup(fdb: Fdb, last: number, network = NET): number {
  return fdb.lookup(network, HIGH, LOW + last);
}

function set(fdb: Fdb, last: number, to: number, origin: 2 | 3, network = NET): boolean {
  return fdb.set(network, HIGH, LOW + last, to, origin);
}

function remove(fdb: Fdb, last: number, origin: Origin, network = NET): boolean {
  return fdb.delete(network, HIGH, LOW + last, origin);
}

function row(fdb: Fdb, last: number, network = NET): FdbRow | undefined {
  return [...fdb.rows()].find((row) => row.network === network && row.macLow === LOW + last);
}

/** Last bytes of the MACs that a network has. */
function macs(fdb: Fdb, network = NET): number[] {
  const rows = [...fdb.rows()].filter((row) => row.network === network);
  return rows.map(({ macLow }) => macLow - LOW).sort((a, b) => a - b);
}

/** Whether every entry of the pool is in one list only: listed, found, and free to be used again. */
function expectConsistent(fdb: Fdb, capacity: number, networks: readonly number[]): void {
  const rows = [...fdb.rows()];
  const keys = rows.map(({ network, macHigh, macLow }) => `${network} ${macHigh} ${macLow}`);
  expect(new Set(keys).size).toBe(keys.length);
  for (const { network, macHigh, macLow, destination } of rows) {
    expect(fdb.lookup(network, macHigh, macLow)).toBe(destination);
  }
  for (const network of networks) {
    const learned = rows.filter((row) => row.network === network && row.origin === LEARNED);
    expect(fdb.expire(network, 2 ** 30, 0, capacity + 1)).toBe(learned.length);
  }
  const left = [...fdb.rows()];
  expect(left.every(({ origin }) => origin !== LEARNED)).toBe(true);
  for (let entry = left.length; entry < capacity; entry++) {
    expect(fdb.set(3, 0x0200, entry, A, CONTROL)).toBe(true);
  }
  expect(fdb.set(3, 0x0200, capacity, A, CONTROL)).toBe(false);
}

describe("the journal", () => {
  /** What a reader is told, with MACs by their last byte. */
  const told = (fdb: Fdb, since: number) => {
    return fdb
      .changes(since)
      .changes.map(({ change, macLow, before, destination }) => [
        change,
        macLow - LOW,
        before,
        destination,
      ]);
  };

  it("tells what was learned, moved, aged and evicted, in that order", () => {
    const fdb = fdbOf({ limit: 2 });
    learn(fdb, 9, A, 0);
    const since = fdb.written;
    learn(fdb, 1, A, 1);
    learn(fdb, 1, A, 2); // seen again is no change
    learn(fdb, 1, B, 2);
    learn(fdb, 2, LOCAL, 3);
    fdb.expire(NET, 300, 297, 10);
    expect(told(fdb, since)).toEqual([
      [ADDED, 1, A, A],
      [MOVED, 1, A, B],
      [EVICTED, 9, A, A],
      [ADDED, 2, LOCAL, LOCAL],
      [AGED, 1, B, B],
    ]);
    expect(fdb.changes(since).changes[1]).toMatchObject({ network: NET, macHigh: HIGH, moves: 1 });
    expect(told(fdb, fdb.written)).toEqual([]);
  });

  it("tells what went because of a lower limit, and not what the agent removed", () => {
    const fdb = fdbOf();
    for (const last of [1, 2]) learn(fdb, last, A, last);
    const since = fdb.written;
    fdb.setLimit(NET, 1);
    remove(fdb, 2, LEARNED);
    set(fdb, 3, A, STATIC);
    expect(told(fdb, since)).toEqual([[EVICTED, 1, A, A]]);
  });

  it("counts what was overwritten before it was read, also where its own count begins anew", () => {
    const memory = Fdb.allocate(64, 1);
    const fdb = new Fdb(memory);
    fdb.setLimit(NET, 64);
    new Int32Array(memory)[5] = -5; // WRITTEN
    learn(fdb, 1, A);
    const since = fdb.written;
    const moves = JOURNAL_ROWS + 9;
    for (let move = 1; move <= moves; move++) learn(fdb, 1, move % 2 === 0 ? A : B);
    const { missed, changes, written } = fdb.changes(since);
    expect(missed + changes.length).toBe(moves);
    expect(missed).toBe(25); // 16 more than were overwritten: they may be in part
    expect(changes.map(({ moves }) => moves)).toEqual(changes.map((_, at) => at + 26));
    expect(fdb.changes(written)).toEqual({ missed: 0, changes: [], written });
  });
});

describe("learning", () => {
  it("knows nothing at first", () => {
    const fdb = fdbOf();
    expect(lookup(fdb, 1)).toBe(-1);
    expect([...fdb.rows()]).toEqual([]);
  });

  it("adds a MAC behind the destination that it was seen behind", () => {
    const fdb = fdbOf();
    expect(learn(fdb, 1, A)).toBe(ADDED);
    expect(lookup(fdb, 1)).toBe(A);
    expect(lookup(fdb, 2)).toBe(-1);
  });

  it("can learn that a MAC is behind this VTEP's own TAP, which is not to be unknown", () => {
    const fdb = fdbOf();
    expect(learn(fdb, 1, LOCAL)).toBe(ADDED);
    expect(lookup(fdb, 1)).toBe(LOCAL);
    expect(row(fdb, 1)).toMatchObject({ destination: LOCAL, origin: LEARNED });
  });

  it("sees a known MAC again without a change, in the same second and later", () => {
    const fdb = fdbOf();
    learn(fdb, 1, A, 5);
    expect(learn(fdb, 1, A, 5)).toBe(SEEN);
    expect(learn(fdb, 1, A, 6)).toBe(SEEN);
    expect(row(fdb, 1)).toMatchObject({ destination: A, seenAt: 6, moves: 0 });
  });

  it("moves a MAC to a new destination at once, and counts the moves", () => {
    const fdb = fdbOf();
    learn(fdb, 1, A);
    expect(learn(fdb, 1, B)).toBe(MOVED);
    expect(lookup(fdb, 1)).toBe(B);
    expect(learn(fdb, 1, LOCAL)).toBe(MOVED);
    expect(learn(fdb, 1, LOCAL)).toBe(SEEN);
    expect(learn(fdb, 1, A)).toBe(MOVED);
    expect(row(fdb, 1)).toMatchObject({ destination: A, moves: 3 });
  });

  it("counts more moves than 31 bits hold", () => {
    const memory = Fdb.allocate(64, 1);
    const fdb = new Fdb(memory);
    fdb.setLimit(NET, 64);
    learn(fdb, 1, A);
    const words = new Int32Array(memory);
    words[words.lastIndexOf(LOW + 1) + 4] = 2 ** 31 - 1; // MOVES
    const since = fdb.written;
    learn(fdb, 1, B);
    expect(row(fdb, 1)).toMatchObject({ moves: 2 ** 31 });
    expect(fdb.changes(since).changes).toMatchObject([{ change: MOVED, moves: 2 ** 31 }]);
  });

  it("counts the moves of an entry anew when the MAC was forgotten in between", () => {
    const fdb = fdbOf();
    learn(fdb, 1, A);
    learn(fdb, 1, B);
    remove(fdb, 1, LEARNED);
    learn(fdb, 1, A);
    expect(row(fdb, 1)).toMatchObject({ moves: 0 });
  });

  it("takes every MAC and every index of a remote for what it is", () => {
    const fdb = fdbOf();
    const edges = [
      [0x0000, 1],
      [0x0000, -1],
      [0x0000, -0x8000_0000],
      [0xfeff, 0x7fff_ffff],
      [0xfeff, -1],
      [0x8000, 0],
    ] as const;
    for (const [high, low] of edges) {
      expect(fdb.learn(65_535, high, low, 65_535, 0)).toBe(PASSED); // no limit was set: 0
      expect(fdb.set(65_535, high, low, 65_535, CONTROL)).toBe(true);
      expect(fdb.lookup(65_535, high, low)).toBe(65_535);
      expect(fdb.lookup(1, high, low)).toBe(-1);
    }
    const listed = [...fdb.rows()].map(({ macHigh, macLow }) => [macHigh, macLow]);
    expect(listed).toEqual(edges.map((edge) => [...edge]));
  });
});

describe("networks", () => {
  it("may each have the same MAC somewhere else", () => {
    const capacity = 5000;
    const fdb = new Fdb(Fdb.allocate(capacity, 1));
    for (let network = 1; network <= capacity; network++) {
      fdb.setLimit(network, 1);
      expect(learn(fdb, 1, network, 0, network)).toBe(ADDED);
    }
    for (let network = 1; network <= capacity; network++) {
      expect(lookup(fdb, 1, network)).toBe(network);
    }
    remove(fdb, 1, LEARNED, 77);
    expect(lookup(fdb, 1, 77)).toBe(-1);
    expect(lookup(fdb, 1, 78)).toBe(78);
  });

  it("age, fill and evict apart", () => {
    const fdb = fdbOf({ limit: 1 });
    learn(fdb, 1, A, 0, NET);
    learn(fdb, 1, A, 0, OTHER_NET);
    expect(learn(fdb, 2, A, 1, NET)).toBe(EVICTED);
    expect(macs(fdb, NET)).toEqual([2]);
    expect(macs(fdb, OTHER_NET)).toEqual([1]);
    expect(fdb.expire(NET, 100, 10, 10)).toBe(1);
    expect(macs(fdb, OTHER_NET)).toEqual([1]);
  });
});

describe("precedence", () => {
  const ways = [
    ["a static entry", STATIC],
    ["an entry of the control plane", CONTROL],
  ] as const;

  it.each(ways)("refuses a frame that contradicts %s, and keeps the entry", (_, origin) => {
    const fdb = fdbOf();
    expect(set(fdb, 1, A, origin)).toBe(true);
    expect(learn(fdb, 1, B)).toBe(REFUSED);
    expect(learn(fdb, 1, LOCAL)).toBe(REFUSED);
    expect(row(fdb, 1)).toMatchObject({ destination: A, origin, moves: 0 });
  });

  it.each(ways)("passes a frame that agrees with %s, which stays what it is", (_, origin) => {
    const fdb = fdbOf();
    set(fdb, 1, A, origin);
    expect(learn(fdb, 1, A)).toBe(SEEN);
    expect(row(fdb, 1)).toMatchObject({ destination: A, origin });
  });

  it.each(ways)("lets %s take over what was learned", (_, origin) => {
    const fdb = fdbOf({ limit: 2 });
    learn(fdb, 1, A);
    learn(fdb, 2, A);
    expect(set(fdb, 1, B, origin)).toBe(true);
    expect(row(fdb, 1)).toMatchObject({ destination: B, origin });
    expect(learn(fdb, 3, A), "it does not count any more").toBe(ADDED);
    expect(fdb.expire(NET, 1000, 1, 10), "nor does it age").toBe(2);
    expect(macs(fdb)).toEqual([1]);
  });

  it("lets a static entry take over one of the control plane, but not the other way round", () => {
    const fdb = fdbOf();
    set(fdb, 1, A, CONTROL);
    expect(set(fdb, 1, B, STATIC)).toBe(true);
    expect(set(fdb, 1, A, CONTROL)).toBe(false);
    expect(row(fdb, 1)).toMatchObject({ destination: B, origin: STATIC });
  });

  it.each(ways)("replaces %s by another of the same origin", (_, origin) => {
    const fdb = fdbOf();
    set(fdb, 1, A, origin);
    expect(set(fdb, 1, B, origin)).toBe(true);
    expect(lookup(fdb, 1)).toBe(B);
    expect(macs(fdb)).toEqual([1]);
  });

  it("deletes an entry only for its own origin; then the MAC may be learned", () => {
    const fdb = fdbOf();
    set(fdb, 1, A, STATIC);
    expect(remove(fdb, 1, CONTROL)).toBe(false);
    expect(remove(fdb, 1, LEARNED)).toBe(false);
    expect(lookup(fdb, 1)).toBe(A);
    expect(remove(fdb, 1, STATIC)).toBe(true);
    expect(remove(fdb, 1, STATIC)).toBe(false);
    expect(lookup(fdb, 1)).toBe(-1);
    expect(learn(fdb, 1, B)).toBe(ADDED);
  });
});

describe("ageing", () => {
  it("forgets a learned MAC when more than its age has passed, and not a second before", () => {
    const fdb = fdbOf();
    learn(fdb, 1, A, 100);
    expect(fdb.expire(NET, 400, 300, 10)).toBe(0);
    expect(lookup(fdb, 1)).toBe(A);
    expect(fdb.expire(NET, 401, 300, 10)).toBe(1);
    expect(lookup(fdb, 1)).toBe(-1);
  });

  it("counts from when a MAC was seen last, there or elsewhere", () => {
    const fdb = fdbOf();
    for (const last of [1, 2, 3]) learn(fdb, last, A, 0);
    learn(fdb, 1, A, 50);
    learn(fdb, 2, B, 60);
    expect(fdb.expire(NET, 101, 100, 10)).toBe(1);
    expect(macs(fdb)).toEqual([1, 2]);
    expect(fdb.expire(NET, 151, 100, 10)).toBe(1);
    expect(macs(fdb)).toEqual([2]);
    expect(fdb.expire(NET, 160, 100, 10)).toBe(0);
    expect(fdb.expire(NET, 161, 100, 10)).toBe(1);
  });

  it("never takes a static or control-plane entry, however old", () => {
    const fdb = fdbOf();
    set(fdb, 1, A, STATIC);
    set(fdb, 2, A, CONTROL);
    expect(fdb.expire(NET, 2 ** 30, 0, 10)).toBe(0);
    expect(macs(fdb)).toEqual([1, 2]);
  });

  it("takes as many as its budget allows, the oldest first, and the others next time", () => {
    const fdb = fdbOf();
    for (let last = 0; last < 10; last++) learn(fdb, last, A, last);
    expect(fdb.expire(NET, 100, 1, 4)).toBe(4);
    expect(macs(fdb)).toEqual([4, 5, 6, 7, 8, 9]);
    expect(fdb.expire(NET, 100, 1, 4)).toBe(4);
    expect(fdb.expire(NET, 100, 1, 4)).toBe(2);
    expect(fdb.expire(NET, 100, 1, 4)).toBe(0);
  });
});

describe("the limit of a network", () => {
  it("makes room by the learned MAC that was not seen for longest", () => {
    const fdb = fdbOf({ limit: 3 });
    learn(fdb, 1, A, 0);
    learn(fdb, 2, A, 1);
    learn(fdb, 3, A, 2);
    learn(fdb, 1, A, 3);
    expect(learn(fdb, 4, A, 4)).toBe(EVICTED);
    expect(macs(fdb)).toEqual([1, 3, 4]);
    expect(learn(fdb, 5, A, 5)).toBe(EVICTED);
    expect(macs(fdb)).toEqual([1, 4, 5]);
  });

  it("holds for learned MACs alone", () => {
    const fdb = fdbOf({ limit: 1 });
    for (let last = 10; last < 20; last++) set(fdb, last, A, last % 2 === 0 ? STATIC : CONTROL);
    expect(learn(fdb, 1, A)).toBe(ADDED);
    expect(learn(fdb, 2, A)).toBe(EVICTED);
    expect(macs(fdb)).toEqual([2, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]);
  });

  it("of none learns nothing", () => {
    const fdb = fdbOf({ limit: 0 });
    expect(learn(fdb, 1, A)).toBe(PASSED);
    expect(lookup(fdb, 1)).toBe(-1);
    expect(set(fdb, 1, A, STATIC)).toBe(true);
  });
});

describe("the pool", () => {
  it("when it is used up, gives a new MAC the place of its network's oldest learned one", () => {
    const fdb = fdbOf({ capacity: 3 });
    learn(fdb, 1, A, 0, OTHER_NET);
    learn(fdb, 1, A, 1);
    learn(fdb, 2, A, 2);
    expect(learn(fdb, 3, A, 3)).toBe(EVICTED);
    expect(macs(fdb)).toEqual([2, 3]);
    expect(set(fdb, 4, A, STATIC)).toBe(true);
    expect(macs(fdb)).toEqual([3, 4]);
    expect(macs(fdb, OTHER_NET)).toEqual([1]);
  });

  it("when it is used up by others, has no place for what a network without learned MACs learns", () => {
    const fdb = fdbOf({ capacity: 2 });
    learn(fdb, 1, A);
    set(fdb, 2, A, STATIC, OTHER_NET);
    expect(learn(fdb, 3, A, 0, OTHER_NET)).toBe(PASSED);
    expect(lookup(fdb, 3, OTHER_NET)).toBe(-1);
    expect(macs(fdb)).toEqual([1]);
  });

  it("when it is used up by others, gives an entry of higher origin a place of who has learned most", () => {
    const fdb = fdbOf({ capacity: 4 });
    learn(fdb, 1, A);
    for (const last of [2, 3, 4]) learn(fdb, last, A, last, OTHER_NET);
    expect(set(fdb, 5, B, STATIC, 3)).toBe(true);
    expect(set(fdb, 6, B, CONTROL, 3)).toBe(true);
    expect([macs(fdb), macs(fdb, OTHER_NET), macs(fdb, 3)]).toEqual([[1], [4], [5, 6]]);
    for (const last of [7, 8]) expect(set(fdb, last, B, STATIC, 3)).toBe(true);
    expect(set(fdb, 9, B, STATIC, 3)).toBe(false);
  });

  it("of one entry is a whole FDB", () => {
    const fdb = fdbOf({ capacity: 1 });
    for (let last = 0; last < 5; last++) {
      expect(learn(fdb, last, A, last)).toBe(last === 0 ? ADDED : EVICTED);
      expect(macs(fdb)).toEqual([last]);
    }
  });

  it("gives every entry out again that was aged out, evicted, deleted or taken over", () => {
    const capacity = 100;
    const fdb = fdbOf({ capacity, limit: 40 });
    for (let round = 0; round < 50; round++) {
      for (let last = 0; last < 60; last++) learn(fdb, round + last, A, round);
      for (let last = 0; last < 20; last++) set(fdb, round + 2 * last, B, CONTROL);
      for (let last = 0; last < 20; last++) remove(fdb, round + 2 * last, CONTROL);
      if (round % 3 === 0) fdb.expire(NET, round + 1, 0, 25);
    }
    expectConsistent(fdb, capacity, [NET]);
  });
});

describe("what was learned before all else", () => {
  const recall = (fdb: Fdb, last: number, to: number, seenAt: number) =>
    fdb.recall(NET, HIGH, LOW + last, to, seenAt);

  it("is found, ages first, and is no news", () => {
    const fdb = fdbOf();
    learn(fdb, 1, A, 50);
    const { written } = fdb;
    expect([recall(fdb, 2, B, 40), recall(fdb, 3, B, 30)]).toEqual([true, true]);
    expect(lookup(fdb, 2)).toBe(B);
    expect([...fdb.newest(NET)].map(({ macLow, seenAt }) => [macLow - LOW, seenAt])).toEqual([
      [1, 50],
      [2, 40],
      [3, 30],
    ]);
    expect(fdb.written).toBe(written);
    expect(fdb.expire(NET, 100, 65, 10)).toBe(1);
    expect(macs(fdb)).toEqual([1, 2]);
    learn(fdb, 2, B, 101);
    expect(fdb.expire(NET, 120, 65, 10)).toBe(1);
    expect(macs(fdb)).toEqual([2]);
    expectConsistent(fdb, 64, [NET]);
  });

  it("may be the first that there is", () => {
    const fdb = fdbOf();
    recall(fdb, 1, A, 40);
    learn(fdb, 2, A, 50);
    expect([...fdb.newest(NET)].map(({ macLow }) => macLow - LOW)).toEqual([2, 1]);
    expectConsistent(fdb, 64, [NET]);
  });

  it("overrides nothing that is known, of whatever origin", () => {
    const fdb = fdbOf();
    learn(fdb, 1, A, 50);
    set(fdb, 2, LOCAL, CONTROL);
    set(fdb, 3, A, STATIC);
    const before = [...fdb.rows()];
    expect([1, 2, 3].map((last) => recall(fdb, last, B, 40))).toEqual([false, false, false]);
    expect([...fdb.rows()]).toEqual(before);
  });

  it("takes no other's place: neither at the limit, nor where the pool is used up", () => {
    const limited = fdbOf({ limit: 1 });
    learn(limited, 1, A, 50);
    expect(recall(limited, 2, A, 40)).toBe(false);
    const full = fdbOf({ capacity: 2 });
    learn(full, 1, A, 50);
    learn(full, 2, A, 50);
    expect(recall(full, 3, A, 40)).toBe(false);
    expect([macs(limited), macs(full)]).toEqual([[1], [1, 2]]);
    remove(full, 1, LEARNED);
    expect(recall(full, 3, A, 40)).toBe(true);
  });
});

describe("a listing", () => {
  it("shows every entry of every network once, with all that is known of it", () => {
    const fdb = fdbOf();
    learn(fdb, 1, A, 7);
    learn(fdb, 1, B, 8);
    set(fdb, 2, LOCAL, CONTROL, OTHER_NET);
    set(fdb, 3, A, STATIC);
    remove(fdb, 3, STATIC);
    const key = (last: number, network = NET) => ({ network, macHigh: HIGH, macLow: LOW + last });
    expect([...fdb.rows()]).toEqual([
      { ...key(1), destination: B, origin: LEARNED, seenAt: 8, moves: 1 },
      { ...key(2, OTHER_NET), destination: LOCAL, origin: CONTROL, seenAt: 0, moves: 0 },
    ]);
  });

  it("may be read while entries come and go", () => {
    const fdb = fdbOf();
    for (let last = 0; last < 20; last++) learn(fdb, last, A);
    const seen: number[] = [];
    for (const { macLow } of fdb.rows()) {
      seen.push(macLow - LOW);
      remove(fdb, macLow - LOW + 1, LEARNED);
    }
    expect(seen).toEqual([0, 2, 4, 6, 8, 10, 12, 14, 16, 18]);
  });
});

describe("chains", () => {
  /** Learns all, then says how many of them are not found: those beyond the end of a chain. */
  function lost(seed: number, keys: readonly (readonly [high: number, low: number])[]): number {
    const fdb = new Fdb(Fdb.allocate(keys.length, seed));
    fdb.setLimit(NET, keys.length);
    for (const [high, low] of keys) fdb.learn(NET, high, low, A, 0);
    return keys.filter(([high, low]) => fdb.lookup(NET, high, low) !== A).length;
  }
  const seeds = [0, 1, 0x5eed, 0x7fff_ffff, -1];
  const range = (count: number) => Array.from({ length: count }, (_, index) => index);

  const families = {
    "count up": (i: number) => [0x0242, 0xac11_0000 | i | 0] as const,
    "count down in the first bytes": (i: number) => [0xfe00 - ((i << 9) & 0xfe00), i >> 7] as const,
    "count in steps of 2^16": (i: number) => [0x0200 + (i >> 16), i << 16] as const,
    "count in steps of 2^20": (i: number) => [0x0200 + ((i >> 12) & 0xff), i << 20] as const,
    "have bits reversed": (i: number) => [0x0200, reversed(i)] as const,
    "repeat one half in the other": (i: number) => [i & 0xfeff, (i << 16) | i] as const,
  };
  it.each(Object.entries(families))("stay short for MACs that %s", (_, family) => {
    for (const seed of seeds) {
      const keys = [...new Map(range(16_384).map((i) => [family(i).join(), family(i)])).values()];
      expect(lost(seed, keys)).toBe(0);
    }
  });

  it("stay short for MACs whose top bits cancel each other in a multiplying hash", () => {
    // With h = (high ^ seed) * odd, a change to the seven top bits of `high` changes just the seven
    // top bits of h, and h ^ h >>> shift has only 128 such changes: so a 128th of these MACs has one
    // hash, under every seed. It is how the first hash of this table was broken.
    for (const shift of [13, 15, 16]) {
      const keys = range(128).flatMap((high) =>
        range(128).map((top) => {
          const change = top << 25;
          return [high << 9, 0x5e00_5300 ^ change ^ (change >>> shift)] as const;
        }),
      );
      for (const seed of seeds) expect(lost(seed, keys)).toBe(0);
    }
  });

  it("do not hide a MAC from the network that has it when thousands of networks have it", () => {
    const capacity = 16_384;
    const fdb = new Fdb(Fdb.allocate(capacity, 9));
    for (let network = 1; network <= capacity; network++) set(fdb, 1, A, CONTROL, network);
    for (let network = 1; network <= capacity; network++) expect(lookup(fdb, 1, network)).toBe(A);
  });
});

function reversed(word: number): number {
  let out = 0;
  for (let bit = 0; bit < 32; bit++) out |= ((word >>> bit) & 1) << (31 - bit);
  return out;
}

describe("random operations", () => {
  interface Entry {
    to: number;
    origin: Origin;
    seenAt: number;
    moves: number;
  }

  /** The FDB as a Map: its order of insertion is the order in which learned MACs were last seen. */
  class Model {
    readonly entries = new Map<string, Entry>();
    readonly #capacity: number;
    readonly #limits: ReadonlyMap<number, number>;

    constructor(capacity: number, limits: ReadonlyMap<number, number>) {
      this.#capacity = capacity;
      this.#limits = limits;
    }

    #learned(network: number): string[] {
      const all = [...this.entries].filter(([key, { origin }]) => {
        return origin === LEARNED && key.startsWith(`${network} `);
      });
      return all.map(([key]) => key);
    }

    learn(network: number, last: number, to: number, now: number): Learnt {
      const key = `${network} ${last}`;
      const entry = this.entries.get(key);
      if (entry === undefined) return this.#add(network, key, to, now);
      if (entry.origin !== LEARNED) return entry.to === to ? SEEN : REFUSED;
      const moved = entry.to !== to;
      // To the second: twice within one is once.
      if (!moved && entry.seenAt === now) return SEEN;
      this.entries.delete(key);
      this.entries.set(key, { ...entry, to, seenAt: now, moves: entry.moves + (moved ? 1 : 0) });
      return moved ? MOVED : SEEN;
    }

    #add(network: number, key: string, to: number, now: number): Learnt {
      const limit = this.#limits.get(network)!;
      const learned = this.#learned(network);
      if (limit === 0) return PASSED;
      const full = learned.length >= limit || this.entries.size === this.#capacity;
      if (full && learned.length === 0) return PASSED;
      if (full) this.entries.delete(learned[0]!);
      this.entries.set(key, { to, origin: LEARNED, seenAt: now, moves: 0 });
      return full ? EVICTED : ADDED;
    }

    set(network: number, last: number, to: number, origin: Origin): boolean {
      const key = `${network} ${last}`;
      const entry = this.entries.get(key);
      if (entry !== undefined) {
        if (entry.origin > origin) return false;
        Object.assign(entry, { to, origin });
        return true;
      }
      if (this.entries.size === this.#capacity) {
        const own = this.#learned(network);
        const oldest = (own.length > 0 ? own : this.#learned(network === NET ? OTHER_NET : NET))[0];
        if (oldest === undefined) return false;
        this.entries.delete(oldest);
      }
      this.entries.set(key, { to, origin, seenAt: 0, moves: 0 });
      return true;
    }

    remove(network: number, last: number, origin: Origin): boolean {
      const key = `${network} ${last}`;
      return this.entries.get(key)?.origin === origin && this.entries.delete(key);
    }

    expire(network: number, now: number, age: number, budget: number): number {
      const old = this.#learned(network).filter((key) => now - this.entries.get(key)!.seenAt > age);
      const aged = old.slice(0, budget);
      for (const key of aged) this.entries.delete(key);
      return aged.length;
    }
  }

  const network = fc.constantFrom(NET, OTHER_NET);
  const mac = fc.nat(7);
  const destination = fc.nat(3);
  const operation = fc.oneof(
    { arbitrary: fc.tuple(fc.constant("learn"), network, mac, destination), weight: 6 },
    {
      arbitrary: fc.tuple(fc.constant("set"), network, mac, destination, fc.constantFrom(2, 3)),
      weight: 2,
    },
    {
      arbitrary: fc.tuple(fc.constant("remove"), network, mac, fc.constantFrom(1, 2, 3)),
      weight: 2,
    },
    { arbitrary: fc.tuple(fc.constant("expire"), network, fc.nat(4), fc.nat(3)), weight: 1 },
    { arbitrary: fc.tuple(fc.constant("pass"), fc.nat(2)), weight: 2 },
  ) as fc.Arbitrary<[string, number, number, number, number]>;

  it("leave the FDB and a plain Map in the same state, whatever their order", () => {
    const pools = fc.record({
      capacity: fc.integer({ min: 1, max: 12 }),
      limits: fc.tuple(fc.nat(6), fc.nat(6)),
      seed: fc.integer(),
    });
    fc.assert(
      fc.property(pools, fc.array(operation, { maxLength: 120 }), (pool, operations) => {
        const { capacity, limits, seed } = pool;
        const fdb = new Fdb(Fdb.allocate(capacity, seed));
        fdb.setLimit(NET, limits[0]);
        fdb.setLimit(OTHER_NET, limits[1]);
        const model = new Model(
          capacity,
          new Map([
            [NET, limits[0]],
            [OTHER_NET, limits[1]],
          ]),
        );
        let now = 0;
        for (const [name, a, b, c, d] of operations) {
          if (name === "pass") now += a;
          else if (name === "learn")
            expect(learn(fdb, b, c, now, a)).toBe(model.learn(a, b, c, now));
          else if (name === "set") {
            expect(set(fdb, b, c, d as 2 | 3, a)).toBe(model.set(a, b, c, d as Origin));
          } else if (name === "remove") {
            expect(remove(fdb, b, c as Origin, a)).toBe(model.remove(a, b, c as Origin));
          } else expect(fdb.expire(a, now, b, c)).toBe(model.expire(a, now, b, c));
          expectEqual(fdb, model);
        }
        expectConsistent(fdb, capacity, [NET, OTHER_NET]);
      }),
      { numRuns: 300 },
    );
  });

  function expectEqual(fdb: Fdb, model: Model): void {
    for (const network of [NET, OTHER_NET]) {
      for (const origin of [LEARNED, CONTROL, STATIC] as const) {
        const those = [...fdb.rows()].filter((row) => {
          return row.network === network && row.origin === origin;
        });
        expect(fdb.count(network, origin)).toBe(those.length);
      }
    }
    const rows = [...fdb.rows()].map(
      ({ network, macLow, destination: to, origin, seenAt, moves }) => {
        const key = `${network} ${macLow - LOW}`;
        return origin === LEARNED ? [key, to, origin, seenAt, moves] : [key, to, origin];
      },
    );
    const entries = [...model.entries].map(([key, { to, origin, seenAt, moves }]) => {
      return origin === LEARNED ? [key, to, origin, seenAt, moves] : [key, to, origin];
    });
    expect(rows.sort()).toEqual(entries.sort());
    for (const network of [NET, OTHER_NET]) {
      for (let last = 0; last < 8; last++) {
        const known = model.entries.get(`${network} ${last}`)?.to ?? -1;
        expect(lookup(fdb, last, network)).toBe(known);
      }
    }
  }
});

describe("a writer that was put to sleep with the lock", () => {
  afterEach(() => void vi.restoreAllMocks());

  /** Runs `others` at the moment when `write` holds the lock and has written nothing yet. */
  function within(write: () => void, others: () => void): void {
    const { compareExchange } = Atomics;
    const spy = vi.spyOn(Atomics, "compareExchange").mockImplementation((...args) => {
      const before = (compareExchange as (...args: unknown[]) => number)(...args);
      spy.mockRestore();
      if (before === 0) others();
      return before as never;
    });
    write();
  }

  it("keeps no frame waiting: it is not learned from, and what is known is looked up", () => {
    const fdb = fdbOf();
    const same = new Fdb(fdb.memory);
    learn(fdb, 1, A, 0);
    set(fdb, 2, A, STATIC);
    within(
      () => set(fdb, 3, A, STATIC),
      () => {
        expect(lookup(same, 1)).toBe(A);
        expect(learn(same, 1, A, 0)).toBe(SEEN);
        expect(learn(same, 2, B, 0), "which needs no lock").toBe(REFUSED);
        expect(learn(same, 1, A, 1)).toBe(PASSED);
        expect(learn(same, 1, B, 0)).toBe(PASSED);
        expect(learn(same, 4, A, 0)).toBe(PASSED);
        expect(same.expire(NET, 1000, 1, 10)).toBe(0);
      },
    );
    expect(learn(same, 4, A, 0)).toBe(ADDED);
    expect(macs(fdb)).toEqual([1, 2, 3, 4]);
    expect(row(fdb, 1)).toMatchObject({ destination: A, seenAt: 0 });
  });
});

describe("a lookup while its entry is recycled", () => {
  afterEach(() => void vi.restoreAllMocks());

  /** The words behind the header and the networks, which are all that a lookup reads. */
  const TAIL = 32;
  type State = Int32Array;

  /** The states that memory goes through while `write` runs: one after each atomic store. */
  function states(fdb: Fdb, write: () => void): State[] {
    const words = new Int32Array(fdb.memory);
    const seen: State[] = [words.slice(-TAIL)];
    const { store } = Atomics;
    const spy = vi.spyOn(Atomics, "store").mockImplementation((...args) => {
      const value = (store as (...args: unknown[]) => number)(...args);
      seen.push(words.slice(-TAIL));
      return value as never;
    });
    write();
    spy.mockRestore();
    return seen;
  }

  /**
   * Runs `read` once for each way in which a writer can get on while it does: up to `jumps` times,
   * before any of its loads, memory goes on to any later state.
   */
  function interleave(fdb: Fdb, all: State[], jumps: number, read: () => void): number {
    const words = new Int32Array(fdb.memory);
    const { load } = Atomics;
    let loads = 0;
    let plan: ReadonlyMap<number, State> = new Map();
    const spy = vi.spyOn(Atomics, "load").mockImplementation((...args) => {
      const state = plan.get(loads++);
      if (state !== undefined) words.set(state, words.length - TAIL);
      return (load as (...args: unknown[]) => number)(...args) as never;
    });
    let runs = 0;
    const go = (schedule: ReadonlyMap<number, State>) => {
      words.set(all[0]!, words.length - TAIL);
      plan = schedule;
      loads = 0;
      read();
      runs++;
    };
    const extend = (schedule: ReadonlyMap<number, State>, load: number, state: number) => {
      go(schedule);
      const longest = loads;
      if (schedule.size === jumps) return;
      for (let at = load; at < longest; at++) {
        for (let next = state; next < all.length; next++) {
          extend(new Map([...schedule, [at, all[next]!]]), at + 1, next + 1);
        }
      }
    };
    extend(new Map(), 0, 1);
    spy.mockRestore();
    return runs;
  }

  it.each([
    ["another MAC of its network", NET, 2],
    ["the same MAC of another network", OTHER_NET, 1],
    ["another MAC of another network", OTHER_NET, 2],
  ])("never yields the route of %s, however the two threads interleave", (_, network, last) => {
    const fdb = new Fdb(Fdb.allocate(2, 1));
    set(fdb, 1, A, CONTROL);
    const all = states(fdb, () => {
      for (let round = 0; round < 2; round++) {
        remove(fdb, 1, CONTROL);
        set(fdb, last, B, CONTROL, network);
        remove(fdb, last, CONTROL, network);
        set(fdb, 1, A, CONTROL);
      }
    });
    const found = new Set<number>();
    const runs = interleave(fdb, all, 3, () => found.add(lookup(fdb, 1)));
    expect(runs).toBeGreaterThan(10_000);
    expect([...found].sort()).toEqual([-1, A]);
  });

  it("yields the old or the new route of a MAC that moves", () => {
    const fdb = new Fdb(Fdb.allocate(2, 1));
    fdb.setLimit(NET, 2);
    learn(fdb, 1, A);
    const all = states(fdb, () => {
      learn(fdb, 1, B, 1);
      set(fdb, 1, 3, STATIC);
    });
    const found = new Set<number>();
    interleave(fdb, all, 3, () => found.add(lookup(fdb, 1)));
    expect([...found].sort()).toEqual([A, B, 3]);
  });
});

describe("threads on one memory", () => {
  /** What a thread does is in `fdb-churn.ts`; a worker has no loader for TypeScript of its own. */
  function churn(data: Churn): Promise<ChurnResult> {
    const entry = new URL("./fdb-churn.ts", import.meta.url).href;
    const code = `import(${JSON.stringify(import.meta.resolve("tsx/esm/api"))})
      .then(({ register }) => { register(); return import(${JSON.stringify(entry)}); })`;
    const worker = new Worker(code, { eval: true, workerData: data });
    return new Promise((resolve, reject) => {
      worker.once("message", resolve);
      worker.once("error", reject);
    });
  }

  it("look up nothing but what was written for that MAC, and leave every list in order", async () => {
    const capacity = 12;
    const fdb = new Fdb(Fdb.allocate(capacity, 0x5eed));
    for (const network of [NET, OTHER_NET]) fdb.setLimit(network, 8);
    const roles = ["look", "look", "learn", "edit"] as const;
    const start = new Int32Array(new SharedArrayBuffer(4));
    const results = await Promise.all(
      roles.map((role, at) => {
        return churn({
          memory: fdb.memory,
          start,
          threads: roles.length,
          role,
          seed: at + 1,
          milliseconds: 1000,
        });
      }),
    );
    expect(results.map(({ wrong }) => wrong)).toEqual([[], [], [], []]);
    for (const { operations, changes } of results) {
      expect(operations).toBeGreaterThan(10_000);
      expect(changes).toBeGreaterThan(1000);
    }
    expectConsistent(fdb, capacity, [NET, OTHER_NET]);
  }, 30_000);
});
