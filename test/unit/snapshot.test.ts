import { appendFileSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Notes } from "../../src/keeping.ts";
import { type Learned, readSnapshot, writeLearned, writeSnapshot } from "../../src/snapshot.ts";
import { Turns } from "./turns.ts";

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "vtep-snapshot-"));
  vi.useFakeTimers({ toFake: ["Date"] }); // nothing ages meanwhile
});
afterEach(() => {
  vi.useRealTimers();
  rmSync(directory, { recursive: true });
});

const rest = { workers: 1, bridges: ["br100"], ports: {}, queues: {}, direct: {} };
const lots: Learned[] = Array.from({ length: 20 }, (_, at) => [
  { name: "red", vni: 100, learned: [[`02:00:00:00:00:${10 + at}`, "192.0.2.2", at]] },
]);

const found = () => [...readSnapshot(directory)!.learned].flat().flatMap(({ learned }) => learned);

test("what was learned is written in lots, between which others have a turn, and read again", async () => {
  writeSnapshot(directory, rest);
  using turns = new Turns();
  const asked = new Set<number>();
  function* each() {
    for (const lot of lots) {
      asked.add(turns.count);
      yield lot;
    }
  }
  await writeLearned(directory, each());
  expect(asked.size).toBe(lots.length);
  const { learned, ...others } = readSnapshot(directory)!;
  expect(others).toEqual(rest);
  expect([...learned].filter((lot) => lot.length > 0)).toEqual(lots);
});

test("what an agent of before had in the one file is read, too", () => {
  const older = { ...rest, writtenAt: Date.now() - 7000, networks: lots[1] };
  writeFileSync(join(directory, "state.json"), JSON.stringify(older));
  expect(found()).toEqual([["02:00:00:00:00:11", "192.0.2.2", 8]]);
});

test.each([
  '{"writtenAt":',
  "7",
  '{"writtenAt":0,"networks":{}}',
  ...[null, {}, ["a", "b"], ["a", "b", "c"], ["a", 1, 2], [1, "b", 2]].map((entry) =>
    JSON.stringify({ writtenAt: 0, networks: [{ name: "red", vni: 100, learned: [entry] }] }),
  ),
  ...[
    null,
    { name: "red", vni: "100", learned: [] },
    { vni: 100, learned: [] },
    { name: "a", vni: 1 },
  ].map((network) => JSON.stringify({ writtenAt: 0, networks: [network] })),
])(
  "entries that cannot be read keep nothing else from being known, nor those before: %s",
  async (line) => {
    writeSnapshot(directory, rest);
    await writeLearned(directory, lots.slice(0, 1));
    appendFileSync(join(directory, "learned.jsonl"), line);
    expect(readSnapshot(directory)).toMatchObject(rest);
    expect(found()).toEqual([["02:00:00:00:00:10", "192.0.2.2", 0]]);
  },
);

test("what was learned is written once at a time, the last time as it is then", async () => {
  let times = 0;
  const present = { learned: () => lots.slice(0, 18 + ++times) } as never;
  const edited = { networks: [], kept: [], outdated: [], unread: [], fault: undefined };
  const warnings: string[] = [];
  const log = pino({ level: "warn" }, { write: (line) => void warnings.push(line) });
  const notes = new Notes(directory, [], edited, new Map(), present, log);
  writeSnapshot(directory, rest);
  await Promise.all([notes.rememberLearned(), notes.rememberLearned()]);
  expect(warnings).toEqual([]);
  expect(readdirSync(directory).toSorted()).toEqual(["learned.jsonl", "state.json"]);
  expect(found()).toHaveLength(20);
});
