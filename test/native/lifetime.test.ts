/** Nothing is left behind: descriptors, memory, handles of a loop. */
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { addon } from "../../src/device/native.ts";
import { ADDON, child, descriptors, freePort, udpOptions, uniqueName } from "./fixture.ts";

vi.setConfig({ testTimeout: 30_000 }); // child processes take their time on a busy host

/** MiB that a process may grow by through fragmentation and warm-up alone. */
const SLACK = 24;

function resident(): number {
  return process.memoryUsage().rss / 2 ** 20;
}

/** Descriptors and MiB more than at the second tenth, after all cycles. */
function growth(cycles: number, cycle: () => void): { descriptors: number; memory: number } {
  for (let i = 0; i < cycles / 5; i++) cycle();
  const before = { descriptors: descriptors(), memory: resident() };
  for (let i = cycles / 5; i < cycles; i++) cycle();
  return {
    descriptors: descriptors() - before.descriptors,
    memory: resident() - before.memory,
  };
}

describe("10,000 times opened and closed", () => {
  it("a UDP family leaves nothing behind", { timeout: 120_000 }, async () => {
    const options = udpOptions(await freePort());
    const grown = growth(10_000, () => new (addon().Udp)(options).close());
    expect(grown.descriptors).toBe(0);
    expect(grown.memory).toBeLessThan(SLACK);
  });

  // Removing a device takes the kernel some 15 ms; to leave a queue of one that stays, 0.2 ms.
  it("a TAP queue leaves nothing behind", { timeout: 120_000 }, () => {
    const options = {
      name: uniqueName(),
      fd: -1,
      multiQueue: true,
      furtherQueues: 0,
      coalesceTcp: true,
      coalesceUdp: true,
    };
    const first = new (addon().Tap)(options);
    onTestFinished(() => first.close());
    const grown = growth(9_800, () => new (addon().Tap)(options).close());
    expect(grown.descriptors).toBe(0);
    expect(grown.memory).toBeLessThan(SLACK);
  });

  it("a TAP device leaves nothing behind", { timeout: 120_000 }, () => {
    const options = {
      name: uniqueName(),
      fd: -1,
      multiQueue: false,
      furtherQueues: 1,
      coalesceTcp: true,
      coalesceUdp: true,
    };
    expect(growth(200, () => new (addon().Tap)(options).close()).descriptors).toBe(0);
  });

  it("taps that are watched leave nothing behind", { timeout: 120_000 }, async () => {
    const options = {
      name: uniqueName(),
      fd: -1,
      multiQueue: true,
      furtherQueues: 0,
      coalesceTcp: true,
      coalesceUdp: true,
    };
    const first = new (addon().Tap)(options);
    onTestFinished(() => first.close());
    for (let round = 0; round < 100; round++) {
      for (let i = 0; i < 100; i++) {
        const tap = new (addon().Tap)(options);
        const taps = new (addon().Taps)();
        taps.add(i, tap);
        taps.watch(() => {});
        if (i % 2 === 0) taps.unwatch();
        if (i % 3 === 0) taps.remove(i);
        if (i % 5 === 0) taps.close();
        tap.close();
        taps.close();
      }
      await new Promise(setImmediate); // lets the loop close its handles
    }
    const before = descriptors();
    const tap = new (addon().Tap)(options);
    const taps = new (addon().Taps)();
    taps.add(0, tap);
    taps.watch(() => {});
    tap.close();
    taps.close();
    expect(descriptors()).toBe(before);
  });
});

describe("when nobody closes", () => {
  it("the garbage collector does", async () => {
    const port = await freePort();
    const { status, output } = child(
      `
      const fds = () => fs.readdirSync("/proc/self/fd").length;
      const remotes = new Int32Array(new SharedArrayBuffer(65536 * 36));
      const options = { name: "vt" + process.pid, fd: -1, multiQueue: true, furtherQueues: 0, coalesceTcp: true, coalesceUdp: true };
      const first = new addon.Tap(options);
      process.stdout.write(""); // opens a descriptor of its own
      const before = fds();
      function open() {
        for (let i = 0; i < 50; i++) new addon.Tap(options);
        new addon.Udp({ family: 4, address: "127.0.0.1", port: ${port}, sourcePorts: [20000, 30000],
          fd: -1, sharer: -1, fan: 16, slotBytes: 1500, receiveBuffer: 0, sendBuffer: 0, whole: true, segment: true, coalesce: true, remotes });
        const watched = new addon.Taps();
        for (let i = 0; i < 3; i++) watched.add(i, new addon.Tap(options));
        watched.watch(() => {});
        watched.unwatch();
      }
      open();
      console.log(fds() - before);
      (async () => {
        for (let i = 0; i < 5; i++) { gc(); await new Promise(setImmediate); }
        console.log(fds() - before);
        const tap = new addon.Tap(options), watched = new addon.Taps();
        watched.add(0, tap);
        watched.watch(() => {}); // whoever watches wants to go on hearing
        first.close();
        const remaining = fds();
        for (let i = 0; i < 5; i++) { gc(); await new Promise(setImmediate); }
        console.log(fds() - remaining);
        process.exit();
      })();
    `,
      "--expose-gc",
    );
    expect({ status, output }).toEqual({ status: 0, output: "71\n0\n0\n" });
  });
});

describe("a worker that is terminated", () => {
  // Each of them leaves watched devices that are readable all the time, so that the end comes at
  // any moment: before, within and after a callback.
  const worker = (port: number) => `
    const addon = require(${JSON.stringify(ADDON)});
    const { workerData, parentPort } = require("node:worker_threads");
    const remotes = new Int32Array(new SharedArrayBuffer(65536 * 36));
    const udp = new addon.Udp({ family: 4, address: "127.0.0.1", port: ${port}, sourcePorts: [20000, 30000],
      fd: -1, sharer: -1, fan: 4, slotBytes: 1500, receiveBuffer: 0, sendBuffer: 0, whole: true, segment: true, coalesce: true, remotes });
    const tap = new addon.Tap({ name: workerData.name, fd: -1, multiQueue: true, furtherQueues: 0, coalesceTcp: true, coalesceUdp: true });
    const unwatched = new addon.Tap({ name: workerData.name, fd: -1, multiQueue: true, furtherQueues: 0, coalesceTcp: true, coalesceUdp: true });
    const stopped = new addon.Tap({ name: workerData.name, fd: -1, multiQueue: true, furtherQueues: 0, coalesceTcp: true, coalesceUdp: true });
    const taps = new addon.Taps(), stoppedTaps = new addon.Taps();
    taps.add(1, tap);
    stoppedTaps.add(1, stopped);
    let calls = 0;
    udp.watch(() => { calls++; for (let i = 0; i < 1000; i++) calls += i % 2; });
    taps.watch(() => { calls++; });
    stoppedTaps.watch(() => {});
    require("node:dgram").createSocket("udp4").send("x", ${port}, "127.0.0.1", () => {
      parentPort.postMessage("open");
      if (workerData.mode === "exit") process.exit(0);
      if (workerData.mode === "throw") throw new Error("of the worker");
      if (workerData.mode === "close") { udp.close(); tap.close(); stoppedTaps.unwatch(); process.exit(0); }
    });
  `;

  it("leaves no descriptor and crashes nothing, 200 times", { timeout: 120_000 }, async () => {
    const port = await freePort();
    const { status, output } = child(`
      const { Worker } = require("node:worker_threads");
      const fds = () => fs.readdirSync("/proc/self/fd").length;
      const name = "vt" + process.pid;
      const stay = new addon.Tap({ name, fd: -1, multiQueue: true, furtherQueues: 0, coalesceTcp: true, coalesceUdp: true });
      require("node:child_process").execFileSync("ip", ["link", "set", name, "up"]);
      const modes = ["terminate", "exit", "throw", "close"];
      async function run(mode) {
        const worker = new Worker(${JSON.stringify(worker(port))}, { eval: true, workerData: { name, mode } });
        worker.on("error", () => {}); // "of the worker"
        const exited = new Promise((resolve) => worker.once("exit", resolve));
        await Promise.race([exited, new Promise((resolve) => worker.once("message", resolve))]);
        if (mode === "terminate") { await new Promise((r) => setTimeout(r, Math.random() * 4)); worker.terminate(); }
        await exited;
      }
      (async () => {
        for (const mode of modes) await run(mode);
        const before = fds();
        for (let i = 0; i < 200; i++) await run(modes[i % 4]);
        console.log(fds() - before);
        stay.close();
      })();
    `);
    expect({ status, output }).toEqual({ status: 0, output: "0\n" });
  });
});
