import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { text } from "node:stream/consumers";
import { expect, onTestFinished, test } from "vitest";
import { carry } from "../../bench/carry.ts";
import { unlessGone } from "../lab/gone.ts";
import { Lab } from "../lab/lab.ts";
import { until } from "../lab/until.ts";
import { ROOT } from "../native/fixture.ts";

/** The namespaces that processes of this session drew: a lab's name tells who drew it. */
function drawnBy(session: number): string[] {
  return readdirSync("/run/netns").filter((name) => {
    const stat = `/proc/${/^lab-(\d+)-/.exec(name)?.[1]}/stat`;
    const fields = unlessGone(() => readFileSync(stat, "utf8").split(" "));
    return Number(fields?.[5]) === session;
  });
}

// npm passes a signal on to the shell that it runs, and to nobody else.
test("npm run demo stops when npm is told to, and removes what it drew", async () => {
  const npm = spawn("npm", ["run", "demo"], { cwd: ROOT, detached: true, stdio: "ignore" });
  const session = npm.pid!;
  onTestFinished(() => {
    try {
      process.kill(-session, "SIGKILL");
    } catch {} // as it should be: nobody of it is left
  });
  const ended = once(npm, "close");
  const [name] = await until(
    "a namespace",
    () => drawnBy(session).length > 0 && drawnBy(session),
    20_000,
  );
  const prefix = /^lab-\d+-/.exec(name!)![0];
  npm.kill("SIGTERM");
  await ended;
  const left = () => readdirSync("/run/netns").filter((name) => name.startsWith(prefix));
  await until("none left", () => left().length === 0);
});

test("a demo that is asked for help, or for what it does not know, draws nothing", () => {
  const demo = (...args: string[]) => {
    const command = ["--import", "tsx", "bench/demo.ts", ...args];
    return spawnSync("node", command, { cwd: ROOT, encoding: "utf8", timeout: 20_000 });
  };
  const help = demo("--help");
  expect(help.stdout).toMatch(/^Usage: npm run demo -- \[options\]$/m);
  expect(help.status).toBe(0);
  const unknown = demo("--quick");
  expect(unknown).toMatchObject({ stdout: "", stderr: "error: unknown option '--quick'\n" });
  expect(unknown.status).toBe(2);
});

test("a demo of which nobody reads the end goes on", async () => {
  const args = ["--import", "tsx", "bench/demo.ts"];
  const demo = spawn("node", args, { cwd: ROOT, stdio: "pipe", detached: true });
  onTestFinished(() => void demo.kill("SIGTERM"));
  const ended = once(demo, "close");
  demo.stdout.destroy();
  const stderr = text(demo.stderr);
  const all = () => drawnBy(demo.pid!).length >= 6;
  await Promise.race([ended, until("three hosts and their containers", all, 20_000)]);
  demo.kill("SIGTERM");
  expect(await ended).toEqual([143, null]);
  expect(await stderr).toBe("\nInterrupted: everything was removed.\n");
});

test("a file that its receiver cannot keep is told of in the receiver's words", async () => {
  await using lab = await Lab.draw({ hosts: 2 });
  const near = await lab.host(1).container();
  const far = await lab.host(2).container();
  await using _ = await lab.join(["kernel", "kernel"]);
  const carried = carry(near, far, process.execPath, "/dev/full");
  await expect(carried).rejects.toThrow(/^receiving \/dev\/full: exit 1: ENOSPC: [^\n]*\n$/);
});
