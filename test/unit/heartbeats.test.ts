import { once } from "node:events";
import { Worker } from "node:worker_threads";
import { describe, expect, it } from "vitest";
import { Heartbeats, SILENT_SECONDS } from "../../src/heartbeats.ts";

const NOW = 1_000_000;

function threads(count: number): Heartbeats {
  const heartbeats = new Heartbeats(Heartbeats.allocate(count));
  for (let thread = 0; thread < count; thread++) heartbeats.beat(thread, NOW, 0);
  return heartbeats;
}

describe("the threads that are silent", () => {
  it("are none while all of them beat", () => {
    expect(threads(4).stale(NOW)).toEqual([]);
    expect(threads(4).stale(NOW + SILENT_SECONDS)).toEqual([]);
  });

  it("are those that have not beaten for too long, each for itself", () => {
    const heartbeats = threads(4);
    const later = NOW + SILENT_SECONDS + 1;
    heartbeats.beat(0, later, 0);
    heartbeats.beat(3, later - 1, 0);
    expect(heartbeats.stale(later)).toEqual([1, 2]);
    heartbeats.beat(2, later, 0);
    expect(heartbeats.stale(later)).toEqual([1]);
  });

  it("are not those that never began: dgram is one thread, whatever was planned", () => {
    const heartbeats = new Heartbeats(Heartbeats.allocate(2));
    heartbeats.beat(0, 1, 0); // a machine that has just booted
    expect(heartbeats.stale(1)).toEqual([]);
    expect(heartbeats.stale(100)).toEqual([0]);
  });

  it("tell how long each thread was busy", () => {
    const heartbeats = new Heartbeats(Heartbeats.allocate(3));
    heartbeats.beat(1, NOW, 0.5);
    heartbeats.beat(2, NOW, 1.25);
    heartbeats.beat(1, NOW + 1, 0.75);
    expect([0, 1, 2].map((thread) => heartbeats.busySeconds(thread))).toEqual([0, 0.75, 1.25]);
    expect(heartbeats.stale(NOW + 1)).toEqual([]);
  });

  it("are known by what another thread wrote", async () => {
    const heartbeats = new Heartbeats(Heartbeats.allocate(2));
    const source = "new Int32Array(require('node:worker_threads').workerData, 16)[1] = 7";
    await once(new Worker(source, { eval: true, workerData: heartbeats.memory }), "exit");
    expect(heartbeats.stale(7)).toEqual([]);
    expect(heartbeats.stale(7 + SILENT_SECONDS + 1)).toEqual([1]);
  });
});
