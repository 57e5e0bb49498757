/**
 * The protocols of a service manager, against a receiver of datagrams that is not ours. That systemd
 * understands them is shown in test/netns/service.test.ts.
 */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { closeSync, fstatSync, mkdtempSync, openSync, readlinkSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { pino } from "pino";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { addon } from "../../src/device/native.ts";
import {
  feedWatchdog,
  forgetDescriptors,
  handedOver,
  isJournal,
  journalStream,
  notifyReady,
  notifyReloading,
  notifyStatus,
  notifyStopping,
  priorityPrefix,
  storeDescriptors,
  watchdogMs,
} from "../../src/systemd.ts";
import { until } from "../lab/until.ts";
import { descriptors, ROOT } from "./fixture.ts";

const MANAGER = fileURLToPath(new URL("../lab/manager.py", import.meta.url));

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "vtep-manager-"));
});
afterAll(() => rmSync(directory, { recursive: true }));

interface Message {
  lines: string[];
  files: string[];
}

/** Listens where NOTIFY_SOCKET says, in a process of its own. */
class Manager {
  readonly heard: Message[] = [];
  readonly #process: ChildProcess;

  private constructor(process: ChildProcess) {
    this.#process = process;
  }

  static async listen(socket: string, ...options: string[]): Promise<Manager> {
    vi.stubEnv("NOTIFY_SOCKET", socket);
    const child = spawn("python3", [MANAGER, socket, ...options], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    const manager = new Manager(child);
    const lines = createInterface(child.stdout);
    await once(lines, "line");
    lines.on("line", (line) => manager.heard.push(JSON.parse(line)));
    return manager;
  }

  async hears(count: number): Promise<Message[]> {
    await until(`${count} messages`, () => this.heard.length >= count);
    return this.heard;
  }

  /** Makes one that is slow read. */
  wake(): void {
    this.#process.stdin!.end("\n");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill();
    await once(this.#process, "close");
  }
}

let number = 0;
const newSocket = () => join(directory, `${number++}`);
const newAbstractSocket = () => `@vtep-test-${process.pid}-${number++}`;

beforeEach(() => vi.stubEnv("NOTIFY_SOCKET", undefined));
afterEach(() => vi.unstubAllEnvs());

describe.each([
  ["a path", newSocket],
  ["an abstract name", newAbstractSocket],
])("a manager at %s", (_, socket) => {
  it("is told each state, in the order in which it was entered", async () => {
    await using manager = await Manager.listen(socket());
    const before = process.hrtime.bigint() / 1000n;
    notifyReady("forwarding");
    notifyReloading();
    notifyReady("forwarding\nmore");
    notifyStatus("all is well");
    notifyStopping();
    const messages = (await manager.hears(5)).map(({ lines }) => lines);
    const [, usec] = messages[1]![1]!.split("=");
    expect(messages).toEqual([
      ["READY=1", "STATUS=forwarding"],
      ["RELOADING=1", `MONOTONIC_USEC=${usec}`],
      ["READY=1", "STATUS=forwarding more"],
      ["STATUS=all is well"],
      ["STOPPING=1", "STATUS=stopping"],
    ]);
    const since = BigInt(usec!) - before;
    expect(since).toBeGreaterThanOrEqual(0n);
    expect(since).toBeLessThan(5_000_000n);
  });

  it("is given descriptors by name, and they stay open here", async () => {
    await using manager = await Manager.listen(socket());
    const fds = [openSync("/dev/null", "r"), openSync(MANAGER, "r")];
    const files = fds.map((fd) => readlinkSync(`/proc/self/fd/${fd}`));
    expect(storeDescriptors("tap-vtep42", fds)).toBe("said");
    expect(forgetDescriptors("tap-vtep42")).toBe("said");
    expect(fds.map((fd) => readlinkSync(`/proc/self/fd/${fd}`))).toEqual(files);
    fds.forEach(closeSync);
    expect(await manager.hears(2)).toEqual([
      { lines: ["FDSTORE=1", "FDNAME=tap-vtep42", "FDPOLL=0"], files },
      { lines: ["FDSTOREREMOVE=1", "FDNAME=tap-vtep42"], files: [] },
    ]);
  });
});

describe("a manager that is behind", () => {
  it("holds nothing up, and hears states later", async () => {
    await using manager = await Manager.listen(newSocket(), "slow");
    let filled = 0;
    const { NOTIFY_SOCKET = "" } = process.env;
    while (addon().notify(NOTIFY_SOCKET, "STATUS=filling", []) === 0) filled++;
    expect(filled).toBeGreaterThan(0);
    notifyReady("forwarding"); // who waited would do so for ever: it reads only after this
    notifyStatus("after that");
    expect(storeDescriptors("x", [0])).toBe("full"); // its caller has to know at once
    manager.wake();
    const messages = (await manager.hears(filled + 2)).slice(filled);
    expect(messages.map(({ lines }) => lines)).toEqual([
      ["READY=1", "STATUS=forwarding"],
      ["STATUS=after that"],
    ]);
  });
});

describe("a manager that is missing", () => {
  it.each([
    ["was never there", undefined],
    ["has an empty name", ""],
    ["has gone", "/nonexistent/notify"],
    ["has an abstract name that nobody has", "@vtep-test-nobody"],
    ["has a name that is too long", `/${"x".repeat(200)}`],
    ["is of a kind that is not known", "vsock:2:1234"],
  ])("because it %s, is told nothing and nothing is thrown", (_, socket) => {
    vi.stubEnv("NOTIFY_SOCKET", socket);
    notifyReady("forwarding");
    notifyReloading();
    notifyStopping();
    expect(storeDescriptors("x", [0])).toBe("unheard");
    expect(forgetDescriptors("x")).toBe("unheard");
  });

  it("is answered for by the addon with an errno, whatever it is given", () => {
    const { notify } = addon();
    const errno = (code: number) => -code;
    const fds = (count: number) => Array.from({ length: count }, () => 0);
    const before = descriptors();
    for (const path of ["", "@", `/${"x".repeat(107)}`])
      expect(notify(path, "", [])).toBe(errno(22));
    expect(notify(`/${"x".repeat(106)}`, "", [])).toBe(errno(2));
    expect(notify("/nonexistent", "READY=1", [])).toBe(errno(2));
    expect(notify("/nonexistent", "READY=1", [9999])).toBe(errno(9));
    expect(notify("/nonexistent", "READY=1", [Number.NaN])).toBe(errno(9));
    expect(notify("/nonexistent", "READY=1", [-1])).toBe(errno(9));
    expect(notify("/nonexistent", "READY=1", fds(253))).toBe(errno(2));
    expect(notify("/nonexistent", "READY=1", fds(254))).toBe(errno(22));
    expect(descriptors()).toBe(before);
    // biome-ignore lint/suspicious/noExplicitAny: what a type checker would catch
    const wrong = notify as any;
    for (const given of [[], ["a", "b"], [1, "b", []], ["a", 1, []], ["a", "b", ["0"]]]) {
      expect(() => wrong(...given)).toThrow(TypeError);
    }
  });
});

describe("the watchdog", () => {
  const pid = `${process.pid}`;
  it.each([
    [{}, undefined],
    [{ WATCHDOG_USEC: "10000000" }, 10_000],
    [{ WATCHDOG_USEC: "10000000", WATCHDOG_PID: pid }, 10_000],
    [{ WATCHDOG_USEC: "10000000", WATCHDOG_PID: "1" }, undefined],
    [{ WATCHDOG_USEC: "0" }, undefined],
    [{ WATCHDOG_USEC: "soon" }, undefined],
  ])("by %j is to be fed within %s ms", (env, ms) => {
    expect(watchdogMs(env)).toBe(ms);
  });

  it("is fed twice as often as it wants, while there is proof, and again when there is", async () => {
    await using manager = await Manager.listen(newSocket());
    vi.stubEnv("WATCHDOG_USEC", "400000");
    let alive = true;
    const asked: number[] = [];
    const stop = feedWatchdog(() => {
      asked.push(performance.now());
      return alive;
    });
    await manager.hears(3);
    // A timer counts from when the loop last looked at the clock: a busy host makes that less than 200.
    for (const [at, time] of asked.slice(1, 3).entries()) {
      expect(time - asked[at]!).toBeGreaterThan(120);
    }
    alive = false;
    const fed = asked.length; // of which the last may not have been heard yet
    await until("it to ask again", () => asked.length > fed + 4);
    expect(await manager.hears(fed)).toHaveLength(fed);
    alive = true;
    await manager.hears(fed + 1);
    stop();
    const ended = asked.length;
    await new Promise((resolve) => setTimeout(resolve, 300)); // more than its interval
    expect(asked.length).toBe(ended);
    expect(new Set(manager.heard.flatMap(({ lines }) => lines))).toEqual(new Set(["WATCHDOG=1"]));
  });

  it("that is none asks for no proof", () => {
    const stop = feedWatchdog(() => {
      throw new Error("asked");
    });
    stop();
  });
});

describe("the descriptors that were handed over", () => {
  const LISTEN_PID = `${process.pid}`;
  it.each([
    ["none", {}, []],
    ["none that are meant for another process", { LISTEN_PID: "1", LISTEN_FDS: "1" }, []],
    ["none where there is no number", { LISTEN_PID, LISTEN_FDS: "x" }, []],
    ["none where the number is negative", { LISTEN_PID, LISTEN_FDS: "-1" }, []],
    ["one without a name", { LISTEN_PID, LISTEN_FDS: "1" }, [{ name: "unknown", fd: 3 }]],
    [
      "each by its name",
      { LISTEN_PID, LISTEN_FDS: "4", LISTEN_FDNAMES: "api:tap-vtep42::tap-vtep42" },
      [
        { name: "api", fd: 3 },
        { name: "tap-vtep42", fd: 4 },
        { name: "unknown", fd: 5 },
        { name: "tap-vtep42", fd: 6 },
      ],
    ],
  ])("are %s", (_, env, expected) => {
    expect(handedOver(env)).toEqual(expected);
  });

  it("are open in the process that was started, and closed in its children", () => {
    const script = `
      import { execFileSync } from "node:child_process";
      import { readlinkSync } from "node:fs";
      import { handedOver } from ${JSON.stringify(`${ROOT}src/systemd.ts`)};
      const [api] = handedOver();
      const inherited = execFileSync("ls", ["/proc/self/fd"], { encoding: "utf8" }).split("\\n");
      const file = readlinkSync("/proc/self/fd/" + api.fd);
      console.log(JSON.stringify({ ...api, file, inherited: inherited.includes("9") }));`;
    // Descriptor 9 is out of the way of those that ls opens itself.
    const shell =
      'exec 3<"$1" 9<"$1"; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=api exec "$2" --import tsx --input-type=module -e "$3"';
    const started = spawnSync("sh", ["-c", shell, "sh", MANAGER, process.execPath, script], {
      encoding: "utf8",
      cwd: ROOT,
    });
    expect(started.stderr).toBe("");
    expect(JSON.parse(started.stdout)).toEqual({
      name: "api",
      fd: 3,
      file: MANAGER,
      inherited: false,
    });
  });
});

describe("the journal", () => {
  it("is where its variable says that this very descriptor goes", () => {
    const fd = openSync(MANAGER, "r");
    const { dev, ino } = fstatSync(fd);
    expect(isJournal(fd, { JOURNAL_STREAM: `${dev}:${ino}` })).toBe(true);
    expect(isJournal(fd, { JOURNAL_STREAM: `${dev}:${ino + 1}` })).toBe(false);
    expect(isJournal(fd, { JOURNAL_STREAM: "" })).toBe(false);
    expect(isJournal(fd, {})).toBe(false);
    closeSync(fd);
    expect(isJournal(fd, { JOURNAL_STREAM: `${dev}:${ino}` })).toBe(false);
  });

  it("is given the priority of each line, and JSON after that", () => {
    let written = "";
    const write = (line: string) => {
      written += line;
    };
    const log = pino({ level: "trace" }, journalStream({ write }));
    log.fatal("fatal");
    log.error("error");
    log.warn("warn");
    log.info("info");
    log.child({ of: "another" }).debug("debug");
    log.trace("trace");
    const lines = written.trimEnd().split("\n");
    const split = lines.map((line) => [line.slice(0, 3), JSON.parse(line.slice(3)).msg]);
    expect(split).toEqual([
      ["<2>", "fatal"],
      ["<3>", "error"],
      ["<4>", "warn"],
      ["<6>", "info"],
      ["<7>", "debug"],
      ["<7>", "trace"],
    ]);
    expect(priorityPrefix(50)).toBe("<3>");
  });
});
