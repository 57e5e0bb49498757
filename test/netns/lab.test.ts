import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync } from "node:fs";
import { constants } from "node:os";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { Lab } from "../lab/lab.ts";
import { removeWhere } from "../lab/namespace.ts";
import { isSilent, ping } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";

/** The namespaces of labs that this process, or one that it started, has drawn. */
function namespacesOf(pid: number): string[] {
  return readdirSync("/run/netns").filter((name) => name.startsWith(`lab-${pid}-`));
}

test("a lab that is disposed of leaves no namespace and no process", async () => {
  const lab = await Lab.draw({ hosts: 3 });
  const container = await lab.host(1).container();
  const sleeper = container.spawn("sleep", "60");
  expect(namespacesOf(process.pid)).toHaveLength(5);
  await lab[Symbol.asyncDispose]();
  await lab[Symbol.asyncDispose]();
  expect(namespacesOf(process.pid)).toEqual([]);
  expect(existsSync(`/proc/${sleeper.pid}`)).toBe(false);
});

test("hosts reach each other over IPv4 and IPv6, and know nothing of what is behind", async () => {
  await using lab = await Lab.draw({ hosts: 3 });
  const [first, third] = [lab.host(1), lab.host(3)];
  await third.container();
  expect(await ping(first, third.address)).toMatchObject({ received: 3 });
  expect(await ping(first, third.address6)).toMatchObject({ received: 3 });
  await expect(ping(first, "10.1.0.3", { count: 1 })).rejects.toThrow("unreachable");
  await expect(isSilent(first, "10.1.0.3")).rejects.toThrow("unreachable");
  expect(await isSilent(first, "10.0.0.9")).toBe(true);
});

test("what another process has removed meanwhile is removed", () => {
  const names = ["first", "second"].map((which) => `lab-${process.pid}-${which}`);
  const ip = (does: string, name: string) => execFileSync("ip", ["netns", does, name]);
  for (const name of names) ip("add", name);
  removeWhere((name) => {
    if (name === names[0]) ip("del", name); // listed, and gone before it is its turn
    return names.includes(name);
  });
  expect(namespacesOf(process.pid)).toEqual([]);
});

const drawAndWait = `
  import { Lab } from ${JSON.stringify(fileURLToPath(new URL("../lab/lab.ts", import.meta.url)))};
  const lab = await Lab.draw({ hosts: 2 });
  const sleeper = lab.host(1).spawn("sh", "-c", "echo; exec sleep 60");
  sleeper.stdout.once("data", () => console.log(sleeper.pid)); // it is to end with its parent from now on
  setInterval(() => {}, 1000);
`;

test.concurrent.each(["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"] as const)(
  "a process that is ended by %s leaves no process behind, and no namespace after the next lab",
  async (signal) => {
    const args = ["--import", "tsx", "--input-type=module", "--eval", drawAndWait];
    const drawer = spawn("node", args, { stdio: ["ignore", "pipe", "inherit"] });
    const [sleeper] = await once(createInterface(drawer.stdout), "line");
    expect(namespacesOf(drawer.pid!)).toHaveLength(2);
    drawer.kill(signal);
    // An exit, for what else a process removes then.
    const ended = signal === "SIGKILL" ? [null, signal] : [128 + constants.signals[signal], null];
    expect(await once(drawer, "exit")).toEqual(ended);
    await until("the end of its process", () => !existsSync(`/proc/${sleeper}`));
    if (signal === "SIGKILL") await (await Lab.draw({ hosts: 2 }))[Symbol.asyncDispose]();
    expect(namespacesOf(drawer.pid!)).toEqual([]);
  },
);
