/** What one agent leaves and the next one finds: descriptors, a snapshot, and what is said of edits. */
import { closeSync, fstatSync, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Logger } from "pino";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { type Config, parse } from "../../src/config.ts";
import { type Recollection, recollect, tellOfEdits, withoutIdle } from "../../src/keeping.ts";
import { readSnapshot, writeLearned, writeSnapshot } from "../../src/snapshot.ts";
import { socketDescriptor, tapDescriptor } from "../../src/vtep.ts";

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "vtep-keeping-"));
});
afterEach(() => rmSync(directory, { recursive: true }));

function config(given: object = {}): Config {
  const found = parse({ ...given, networks: [{ vni: 100, peers: ["192.0.2.2"] }] });
  if ("faults" in found) throw new Error(found.faults[0]!.message);
  return found.config;
}

const nothing = { bridges: [], ports: {}, queues: {}, direct: {} };
const TAP = tapDescriptor("vtep100", 0);
const OTHER_TAP = tapDescriptor("vtep200", 0);
const UDP4 = socketDescriptor(4, 0);
const UDP6 = socketDescriptor(6, 0);

function open(name: string) {
  return { name, fd: openSync("/dev/null", "r") };
}

/** Whether they are, each as often as it is there; those that are left are closed by then. */
function areOpen(descriptors: readonly { fd: number }[]): boolean[] {
  return descriptors.map(({ fd }) => {
    try {
      fstatSync(fd);
    } catch {
      return false;
    }
    closeSync(fd);
    return true;
  });
}

describe("descriptors that were kept", () => {
  function found(names: string[], given = config(), workers = 1, interim?: { end(): void }) {
    const descriptors = names.map(open);
    const keeping = { descriptors, directory, interim: interim as never };
    const before = recollect(given, workers, keeping);
    const kept = Object.entries(before.kept).map(([name, fd]) => {
      return [name, descriptors.findIndex((each) => each.fd === fd)];
    });
    return { ...before, kept, open: areOpen(descriptors) };
  }

  test("are of use where they are wanted, the first of each name; the others are closed", () => {
    const end = vi.fn();
    expect(found([UDP4, TAP, UDP6], config(), 1, { end })).toMatchObject({ unwanted: [] });
    expect(end).not.toHaveBeenCalled();
    expect(found([UDP4, TAP, UDP4, OTHER_TAP], config(), 1, { end })).toMatchObject({
      kept: [
        [UDP4, 0],
        [TAP, 1],
      ],
      unwanted: [UDP4, OTHER_TAP],
      open: [true, true, false, false],
      haveToGoFirst: false,
    });
    expect(end).toHaveBeenCalled();
  });

  test("are of no use where there were more threads or fewer, and go first then", () => {
    const [second, third] = [1, 2].map((worker) => tapDescriptor("vtep100", worker)) as [
      string,
      string,
    ];
    expect(found([TAP, second, third], config(), 2)).toMatchObject({ unwanted: [third] });
    writeSnapshot(directory, { ...nothing, workers: 2 });
    const all = { unwanted: [], haveToGoFirst: false };
    expect(found([TAP, second, UDP4], config(), 2)).toMatchObject(all);
    const none = { kept: [], unwanted: [TAP, second], open: [false, false], haveToGoFirst: true };
    expect(found([TAP, second], config(), 1)).toMatchObject(none);
  });

  test("are TAPs alone where Node opens the sockets", () => {
    const { kept, unwanted, haveToGoFirst } = found(
      [UDP4, TAP, UDP6],
      config({ underlay: "dgram" }),
    );
    expect([kept, unwanted, haveToGoFirst]).toEqual([[[TAP, 1]], [UDP4, UDP6], true]);
  });

  test("are none where nothing is kept", () => {
    expect(recollect(config(), 1, undefined)).toMatchObject({ kept: {}, snapshot: undefined });
  });

  test("are closed where nobody is in their family, or their network is not to be started", () => {
    const descriptors = [UDP4, UDP6, TAP, OTHER_TAP].map(open);
    const kept = Object.fromEntries(descriptors.map(({ name, fd }) => [name, fd]));
    const surveyed = { config: config(), found: { local4: undefined, local6: "2001:db8::1" } };
    expect(withoutIdle(kept, surveyed as never, 1)).toEqual({
      kept: { [UDP6]: kept[UDP6], [TAP]: kept[TAP] },
      idle: [UDP4, OTHER_TAP],
    });
    expect(areOpen(descriptors)).toEqual([false, true, true, false]);
  });
});

describe("a snapshot", () => {
  afterEach(() => void vi.useRealTimers());
  const written = { ...nothing, workers: 1 };
  const learned = (age: number) => [
    {
      name: "blue",
      vni: 7,
      learned: [["02:00:00:00:00:01", "192.0.2.2", age]] as [string, string, number][],
    },
  ];

  test.each([
    ["on", 9_600, 10],
    ["back", -9_600, 0],
  ])("is read as it was written, its ages as the clock went %s", async (_, ms, more) => {
    vi.useFakeTimers({ now: 1_000_000, toFake: ["Date"] });
    writeSnapshot(directory, written);
    await writeLearned(directory, [learned(7)]);
    vi.setSystemTime(1_000_000 + ms);
    expect([...readSnapshot(directory)!.learned].flat()).toEqual(learned(7 + more));
  });

  test.each(["", "{", "[]", "{}"])("that is damaged is as good as none: %j", (text) => {
    writeFileSync(join(directory, "state.json"), text);
    expect(readSnapshot(directory)).toBeUndefined();
  });

  test("of an older version has what that had not", () => {
    const older = { writtenAt: Date.now(), workers: 1, bridges: [], networks: [] };
    writeFileSync(join(directory, "state.json"), JSON.stringify(older));
    expect(readSnapshot(directory)).toMatchObject({
      workers: 1,
      ports: {},
      queues: {},
      direct: {},
    });
  });
});

test("of edits is said what was done, and of each that was not why", () => {
  const said: unknown[] = [];
  const line = (level: string) => (of: object) => said.push([level, of]);
  const log = { error: line("error"), warn: line("warn"), info: line("info") };
  const tell = (given: Partial<Recollection["edited"]>, refused: [string, string][] = []) => {
    const none = { networks: config().networks, kept: [], outdated: [], unread: [] };
    tellOfEdits(
      log as unknown as Logger,
      { ...none, fault: undefined, ...given },
      new Map(refused),
    );
    return said.splice(0);
  };
  expect(tell({})).toEqual([]);
  expect(tell({ kept: ["red", "blue"] }, [["blue", "no"]])).toEqual([
    ["error", { network: "blue", reason: "no" }],
    ["info", { networks: ["red"] }],
  ]);
  expect(tell({ kept: ["blue"] }, [["blue", "no"]])).toHaveLength(1);
  expect(tell({ fault: "torn", unread: [7], outdated: ["green"] })).toEqual([
    ["error", { reason: "torn" }],
    ["error", { edits: [7] }],
    ["warn", { networks: ["green"] }],
  ]);
});
