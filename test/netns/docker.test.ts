/** The network driver for Docker, by Debian's Docker Engine, on two hosts and beside a kernel VXLAN host. */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Host } from "../lab/host.ts";
import { Lab } from "../lab/lab.ts";
import type { Child } from "../lab/namespace.ts";
import { reach } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import { cli, type Vtep } from "../lab/vtep.ts";
import { ROOT } from "../native/fixture.ts";

const ENGINE = join(ROOT, "build/docker/usr");
const PLUGINS = "/run/docker/plugins";

const lab = await Lab.draw({ hosts: 2 });
const scratch = mkdtempSync(join(tmpdir(), "vtep-docker-"));
const [ours, theirs] = [lab.host(1), lab.host(2)] as const;
const there = await theirs.container();
await theirs.kernelVxlan({ vni: 42, peers: [ours.address] });
const prefix = there.address.replace(/\d+$/, "");
const name = `vtep-${process.pid}`;

let vtep: Vtep;
let plugin: Child;
let daemon: Child;
const socket = join(scratch, "docker.sock");
const state = join(scratch, "state.json");

afterAll(async () => {
  daemon?.kill();
  await until("the daemon's end", () => daemon === undefined || daemon.exitCode !== null, 20_000);
  plugin?.kill();
  await until("no socket", () => !existsSync(join(PLUGINS, `${name}.sock`)));
  await lab[Symbol.asyncDispose]();
  rmSync(scratch, { recursive: true, force: true });
});

async function startPlugin(): Promise<void> {
  const where = ["--listen", join(PLUGINS, `${name}.sock`), "--state", state];
  plugin = ours.spawn("node", cli, "docker-plugin", ...where, "--socket", vtep.socket);
  plugin.stdin.end();
  await until("the plugin", () => existsSync(join(PLUGINS, `${name}.sock`)));
}

async function startDaemon(host: Host): Promise<void> {
  const paths = `PATH=${ENGINE}/sbin:${ENGINE}/bin:${process.env.PATH}`;
  const at = (part: string) => join(scratch, part);
  const settings = at("daemon.json");
  writeFileSync(settings, "{}");
  const args = [
    ...["--config-file", settings, "-H", `unix://${socket}`, "-p", at("pid")],
    ...["--data-root", at("root"), "--exec-root", at("exec"), "--bip", "172.29.0.1/24"],
    ...["--oom-score-adjust", "0"],
  ];
  daemon = host.spawn("env", paths, "dockerd", ...args);
  daemon.stdin.end();
  let said = "";
  daemon.stdout.resume();
  daemon.stderr.setEncoding("utf8").on("data", (piece) => {
    said += piece;
  });
  const answers = async () => (await docker("version")).code === 0;
  await until("the daemon", answers, 20_000).catch((error: Error) => {
    throw new Error(`${error.message}: ${said.slice(-3000)}`);
  });
}

function docker(...args: string[]) {
  const client = join(ENGINE, "bin/docker");
  return ours.finish([client, "-H", `unix://${socket}`, ...args], { timeoutMs: 60_000 });
}

async function done(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await docker(...args);
  if (code !== 0) throw new Error(`docker ${args.join(" ")}: ${stderr}`);
  return stdout.trim();
}

/** A call as Docker makes it. */
async function call(method: string, body: unknown): Promise<{ status: number; answer: object }> {
  const path = `/${method}`;
  return new Promise((resolve, reject) => {
    const asked = request(
      { socketPath: join(PLUGINS, `${name}.sock`), method: "POST", path },
      async (response) => {
        const answer = JSON.parse(await text(response));
        resolve({ status: response.statusCode!, answer });
      },
    );
    asked.on("error", reject).end(JSON.stringify(body));
  });
}

async function veths(): Promise<string[]> {
  return (await ours.links()).filter((link) => /^v[tp][0-9a-f]{12}$/.test(link));
}

beforeAll(async () => {
  mkdirSync(PLUGINS, { recursive: true });
  await ours.sysctl({ "ipv4/ip_forward": 1 });
  const network = ["--vni", "42", "--name", "blue", "--peer", theirs.address, "--bridge", "br0"];
  vtep = await ours.vtep(...network).ready();
  await startPlugin();
  await startDaemon(ours);
  const image = join(scratch, "image");
  await ours.run(
    "sh",
    "-euc",
    `mkdir -p ${image}/bin; cp /bin/busybox ${image}/bin/; ln -s busybox ${image}/bin/sh; tar -C ${image} -cf ${image}.tar .`,
  );
  await done("import", `${image}.tar`, "box");
}, 60_000);

const SLEEP = ["box", "/bin/busybox", "sleep", "300"];
const range = ["--subnet", `${prefix}0/24`, "--ip-range", `${prefix}208/28`];
const create = (...options: string[]) => docker("network", "create", "-d", name, ...options, "web");

test.each([
  ["without a network", [], /give one of -o network=NAME and -o vni=N/],
  ["with both names of one", ["-o", "network=blue", "-o", "vni=42"], /give one of/],
  ["with one unknown", ["-o", "vni=7"], /forwards no network of VNI 7: it has blue \(VNI 42\)/],
  ["with an option unknown", ["-o", "colour=red"], /-o colour is no option of this driver/],
])("a network is not created %s", async (_, options, reason) => {
  const { code, stderr } = await create(...range, ...options);
  expect([code, stderr]).toEqual([1, expect.stringMatching(reason)]);
  expect(await done("network", "ls", "-q", "--filter", "name=web")).toBe("");
});

describe("containers", () => {
  test("reach each other, a kernel VXLAN host and the outside, and leave nothing", async () => {
    expect(await create(...range, "-o", "vni=42")).toMatchObject({ code: 0 });
    const mac = "02:00:00:00:00:71";
    await done("run", "-d", "--name", "one", "--network", "web", "--mac-address", mac, ...SLEEP);
    const ip = `${prefix}220`;
    await done("run", "-d", "--name", "two", "--network", "web", "--ip", ip, ...SLEEP);
    await reach(there, ip);
    const inside = (...words: string[]) => done("exec", "one", "/bin/busybox", ...words);
    expect(await inside("ping", "-c", "2", there.address)).toContain("2 packets received");
    expect(await inside("ping", "-c", "2", "two")).toContain("2 packets received");
    expect(await inside("ping", "-c", "2", theirs.address)).toContain("2 packets received");
    const link = await inside("ip", "link", "show", "eth0");
    expect(link).toContain("mtu 1450");
    expect(link).toContain(mac);
    const attached = await ours.run(
      "node",
      cli,
      "attach",
      "list",
      "--json",
      "--socket",
      vtep.socket,
    );
    expect(JSON.parse(attached)).toEqual(
      expect.arrayContaining([
        expect.objectContaining({ network: "blue", mac, by: "docker" }),
        expect.objectContaining({ network: "blue", addresses: [`${ip}/24`], by: "docker" }),
      ]),
    );
    await done("rm", "-f", "one", "two");
    expect(await veths()).toEqual([]);
    await done("network", "rm", "web");
    expect(JSON.parse(readFileSync(state, "utf8"))).toEqual({});
  }, 60_000);

  test("go on when the plugin and the daemon were started again", async () => {
    expect(await create(...range, "-o", "network=blue")).toMatchObject({ code: 0 });
    plugin.kill();
    await until("the plugin's end", () => plugin.exitCode !== null);
    await startPlugin();
    daemon.kill();
    await until("the daemon's end", () => daemon.exitCode !== null, 20_000);
    await startDaemon(ours);
    const ip = `${prefix}221`;
    await done("run", "-d", "--name", "three", "--network", "web", "--ip", ip, ...SLEEP);
    await reach(there, ip);
    await done("restart", "-t", "0", "three");
    await reach(there, ip);
    await done("rm", "-f", "three");
    expect(await veths()).toEqual([]);
    await done("network", "rm", "web");
  }, 90_000);

  test("are not started while the agent is away, in a sentence, and leave nothing", async () => {
    expect(await create(...range, "-o", "network=blue")).toMatchObject({ code: 0 });
    await vtep.stop();
    const { code, stderr } = await docker("run", "--rm", "--network", "web", ...SLEEP);
    expect([code, stderr]).toEqual([125, expect.stringContaining("the agent is not reachable")]);
    expect(await veths()).toEqual([]);
    await done("network", "rm", "web");
  }, 60_000);
});

test("calls that are none are refused", async () => {
  expect(await call("NetworkDriver.Nothing", {})).toEqual({
    status: 404,
    answer: { Err: "there is no call NetworkDriver.Nothing" },
  });
  expect(await call("NetworkDriver.Join", { NetworkID: 7 })).toMatchObject({
    status: 500,
    answer: { Err: expect.stringContaining("NetworkID") },
  });
  expect(await call("Plugin.Activate", {})).toEqual({
    status: 200,
    answer: { Implements: ["NetworkDriver"] },
  });
});
