import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import { afterEach, beforeEach, expect, test } from "vitest";
import { Notes } from "../../src/keeping.ts";
import { type Learned, readSnapshot, writeLearned, writeSnapshot } from "../../src/snapshot.ts";

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "vtep-snapshot-"));
});
afterEach(() => rmSync(directory, { recursive: true }));

const rest = { workers: 1, bridges: ["br100"], ports: {}, queues: {}, direct: {} };
const lots: Learned[] = Array.from({ length: 20 }, (_, at) => [
  { name: "red", vni: 100, learned: [[`02:00:00:00:00:${10 + at}`, "192.0.2.2", at]] },
]);

test("what was learned is written in lots, between which others have a turn, and read again", async () => {
  writeSnapshot(directory, rest);
  let turns = 0;
  const count = () => {
    turns++;
    counting = setImmediate(count);
  };
  let counting = setImmediate(count);
  const asked = new Set<number>();
  function* each() {
    for (const lot of lots) {
      asked.add(turns);
      yield lot;
    }
  }
  await writeLearned(directory, each());
  clearImmediate(counting);
  expect(asked.size).toBe(lots.length);
  const learned = lots.flat().flatMap((network) => network.learned);
  const networks = [{ name: "red", vni: 100, learned }];
  expect(readSnapshot(directory)).toMatchObject({ ...rest, networks });
});

test("what an agent of before had in the one file is read, too", () => {
  const older = { ...rest, writtenAt: Date.now() - 7000, networks: lots[1] };
  writeFileSync(join(directory, "state.json"), JSON.stringify(older));
  expect(readSnapshot(directory)!.networks[0]!.learned).toEqual([
    ["02:00:00:00:00:11", "192.0.2.2", 8],
  ]);
});

test("a file of entries that cannot be read keeps nothing else from being known", () => {
  writeSnapshot(directory, rest);
  writeFileSync(join(directory, "learned.jsonl"), '{"writtenAt":');
  expect(readSnapshot(directory)).toMatchObject({ ...rest, networks: [] });
});

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
  expect(readSnapshot(directory)!.networks[0]!.learned).toHaveLength(20);
});
