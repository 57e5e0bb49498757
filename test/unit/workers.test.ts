import { EventEmitter } from "node:events";
import { setImmediate } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import type { Worker } from "node:worker_threads";
import { expect, test } from "vitest";
import { Heartbeats } from "../../src/heartbeats.ts";
import type { Plan } from "../../src/vtep.ts";
import type { Order, Post, Report } from "../../src/worker.ts";
import { Workers } from "../../src/workers.ts";

setFlagsFromString("--expose-gc");
const collectGarbage: () => void = runInNewContext("gc");

/** A thread that does what it is told. */
class Obedient extends EventEmitter {
  readonly reports: WeakRef<Report>[] = [];

  ref() {}

  postMessage(message: Post | Order) {
    const report =
      "plan" in message
        ? { event: "opened", opened: { underlay: "native" } }
        : { event: "done", id: message.id };
    this.reports.push(new WeakRef(report as Report));
    queueMicrotask(() => this.emit("message", report));
  }
}

test("what was answered is not remembered, however often something is ordered", async () => {
  const thread = new Obedient();
  const first = { worker: thread as unknown as Worker, ended: new Promise<undefined>(() => {}) };
  const plan = { workers: 1, heartbeats: Heartbeats.allocate(1) } as Plan;
  const workers = new Workers(plan, first, new AbortController().signal, false);
  await workers.open();
  for (let times = 0; times < 10; times++) await workers.retire(times);
  await setImmediate();
  collectGarbage();
  expect(thread.reports).toHaveLength(11);
  expect(thread.reports.slice(1).flatMap((report) => report.deref() ?? [])).toEqual([]);
});
