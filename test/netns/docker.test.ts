/** The network driver for Docker, by Debian's Docker Engine, on two hosts and beside a kernel VXLAN host. */
import { readFileSync } from "node:fs";
import { request } from "node:http";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Client } from "../../src/api/client.ts";
import { Docker } from "../lab/docker.ts";
import { Lab } from "../lab/lab.ts";
import { reach } from "../lab/traffic.ts";
import { cli, type Vtep } from "../lab/vtep.ts";

const lab = await Lab.draw({ hosts: 2 });
const [ours, theirs] = [lab.host(1), lab.host(2)] as const;
const there = await theirs.container();
await theirs.kernelVxlan({ vni: 42, peers: [ours.address] });
const prefix = there.address.replace(/\d+$/, "");

let vtep: Vtep;
let docker: Docker;

beforeAll(async () => {
  await ours.sysctl({ "ipv4/ip_forward": 1 });
  const network = ["--vni", "42", "--name", "blue", "--peer", theirs.address, "--bridge", "br0"];
  vtep = await ours.vtep(...network).ready();
  docker = await Docker.start(ours, vtep);
}, 60_000);
afterAll(async () => {
  await docker?.[Symbol.asyncDispose]();
  await lab[Symbol.asyncDispose]();
});

const done = (...args: string[]) => docker.done(...args);

/** A call as Docker makes it. */
async function call(method: string, body: unknown): Promise<{ status: number; answer: object }> {
  const path = `/${method}`;
  return new Promise((resolve, reject) => {
    const asked = request({ socketPath: docker.plugin, method: "POST", path }, async (response) => {
      const answer = JSON.parse(await text(response));
      resolve({ status: response.statusCode!, answer });
    });
    asked.on("error", reject).end(JSON.stringify(body));
  });
}

async function veths(): Promise<string[]> {
  return (await ours.links()).filter((link) => /^v[tp][0-9a-f]{12}$/.test(link));
}

const SLEEP = ["box", "/bin/busybox", "sleep", "300"];
const range = ["--subnet", `${prefix}0/24`, "--ip-range", `${prefix}208/28`];
const create = (...options: string[]) =>
  docker.finish("network", "create", "-d", docker.driver, ...options, "web");

test("a network whose gateway is of IPv6 alone leads out by it, and of IPv4 as others of Docker's do", async () => {
  const gateway = ["fd09::1/64"];
  await ours.sysctl({ "ipv6/conf/*/disable_ipv6": 0 });
  const red = { vni: 43, peers: [theirs.address], bridge: "br1", gateway };
  await new Client(vtep.socket).putNetwork("red", red);
  const six = ["--ipv6", "--subnet", "FD09:0::/64", "--gateway", "FD09::0:1"];
  const four = ["--subnet", "10.77.0.0/24"];
  await done("network", "create", "-d", docker.driver, "-o", "network=red", ...six, ...four, "out");
  await done("run", "-d", "--name", "walker", "--network", "out", ...SLEEP);
  const routes = (family: string) =>
    done("exec", "walker", "/bin/busybox", "ip", family, "route", "show", "default");
  expect(await routes("-6")).toMatch(/^default via fd09::1 dev eth0/);
  expect(await routes("-4")).toMatch(/^default via \S+ dev eth1/);
  await done("rm", "-f", "walker");
  await done("network", "rm", "out");
  await new Client(vtep.socket).removeNetwork("red");
});

test.each([
  ["without a network", [], /give one of -o network=NAME and -o vni=N/],
  ["with both names of one", ["-o", "network=blue", "-o", "vni=42"], /give one of/],
  ["with one unknown", ["-o", "vni=7"], /forwards no network of VNI 7: it has blue \(VNI 42\)/],
  ["with an option unknown", ["-o", "colour=red"], /-o colour is no option of this driver/],
  [
    "with an option of other drivers",
    ["-o", "network=blue", "-o", "com.docker.network.driver.mtu=1300"],
    /-o com\.docker\.network\.driver\.mtu is no option of this driver: give network or vni/,
  ],
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
    const macs = await done(
      "inspect",
      "-f",
      "{{.NetworkSettings.Networks.web.MacAddress}}",
      "one",
      "two",
    );
    const its = await done("exec", "two", "/bin/busybox", "cat", "/sys/class/net/eth0/address");
    expect(macs.split("\n")).toEqual([mac, its]);
    await done("rm", "-f", "one", "two");
    expect(await veths()).toEqual([]);
    await done("network", "rm", "web");
    expect(JSON.parse(readFileSync(docker.state, "utf8"))).toEqual({});
  }, 60_000);

  test("go on when the plugin and the daemon were started again", async () => {
    expect(await create(...range, "-o", "network=blue")).toMatchObject({ code: 0 });
    await docker.stopDriver();
    await docker.startDriver(vtep);
    await docker.stopDaemon();
    await docker.startDaemon();
    const ip = `${prefix}221`;
    await done("run", "-d", "--name", "three", "--network", "web", "--ip", ip, ...SLEEP);
    await reach(there, ip);
    await done("restart", "-t", "0", "three");
    await reach(there, ip);
    await done("rm", "-f", "three");
    expect(await veths()).toEqual([]);
    await done("network", "rm", "web");
  }, 90_000);

  test("are not started while the agent is away, in a sentence, but get to other networks, and leave nothing", async () => {
    const green = { vni: 43, peers: [theirs.address], bridge: "br43", gateway: ["192.0.2.1/24"] };
    await new Client(vtep.socket).putNetwork("green", green);
    const subnet = ["--subnet", "192.0.2.0/24", "--gateway", "192.0.2.1"];
    expect(await create(...subnet, "-o", "network=green")).toMatchObject({ code: 0 });
    await done("network", "create", "by-a-bridge"); // Docker prefers what is first by its name
    await done("run", "-d", "--name", "four", "--network", "web", "-p", "8080:80", ...SLEEP);
    await vtep.stop();
    const { code, stderr } = await docker.finish("run", "--rm", "--network", "web", ...SLEEP);
    expect([code, stderr]).toEqual([125, expect.stringContaining("the agent is not reachable")]);
    await done("network", "connect", "by-a-bridge", "four"); // with its port
    await done("network", "disconnect", "web", "four");
    expect(await veths()).toEqual([]);
    await done("rm", "-f", "four");
    await done("network", "rm", "web", "by-a-bridge");
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
