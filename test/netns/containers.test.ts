/**
 * One network over three hosts as people have it: podman on the first, Docker on the second, and on the
 * third, which has the kernel's VXLAN and none of ours, a container made by hand.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { GATEWAY_MAC } from "../../src/gateways.ts";
import { Docker } from "../lab/docker.ts";
import type { Host } from "../lab/host.ts";
import { Lab } from "../lab/lab.ts";
import { create, Namespace } from "../lab/namespace.ts";
import { Podman } from "../lab/podman.ts";
import { ping, reach, transferTcp } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import { cli, type Vtep } from "../lab/vtep.ts";
import { ROOT } from "../native/fixture.ts";

const lab = await Lab.draw({ hosts: 3 });
const [first, second, third] = [lab.host(1), lab.host(2), lab.host(3)];
const leases = mkdtempSync(join(tmpdir(), "vtep-containers-"));
const GATEWAY = "10.1.0.254";
const OUTSIDE = "203.0.113.2";
const SLEEP = ["box", "/bin/busybox", "sleep", "600"];
const peersOf = (host: Host) => lab.hosts.filter((each) => each !== host);

const vteps: Vtep[] = [];
let podman: Podman;
let docker: Docker;
/** One of each host, in their order. */
const containers: (Namespace & { readonly address: string })[] = [];

beforeAll(async () => {
  for (const host of lab.hosts) {
    const outside = new Namespace(`${host.name}out`);
    host.guests.push(outside);
    await create(outside);
    await host.ip(
      `link add uplink type veth peer name eth0 netns ${outside.name}`,
      "addr add 203.0.113.1/24 dev uplink",
      "link set uplink up",
    );
    await outside.ip(`addr add ${OUTSIDE}/24 dev eth0`, "link set eth0 up");
  }
  for (const host of [first, second]) {
    const peers = peersOf(host).flatMap(({ address }) => ["--peer", address]);
    const network = ["--vni", "42", "--name", "blue", "--bridge", "br0", ...peers];
    const gateway = ["--gateway", `${GATEWAY}/24`, "--masquerade"];
    vteps.push(await host.vtep(...network, ...gateway).ready());
  }

  const ipam = {
    type: "host-local",
    dataDir: leases,
    ranges: [[{ subnet: "10.1.0.0/24", rangeStart: "10.1.0.64", gateway: GATEWAY }]],
    routes: [{ dst: "0.0.0.0/0" }],
  };
  podman = await Podman.start(first, [
    { type: "vtep-cni", network: "blue", socket: vteps[0]!.socket, ipam },
    { type: "portmap", capabilities: { portMappings: true } },
  ]);
  await podman.done("run", "-d", "--name", "one", ...SLEEP);

  docker = await Docker.start(second, vteps[1]!);
  const own = ["--subnet", "10.1.0.0/24", "--ip-range", "10.1.0.128/26", "--gateway", GATEWAY];
  const create42 = ["network", "create", "-d", docker.driver, "-o", "network=blue"];
  await docker.done(...create42, ...own, "web");
  await docker.done("run", "-d", "--name", "two", "--network", "web", "-p", "8080:80", ...SLEEP);

  // What an operator types there, without us.
  const byHand = await third.container();
  await third.kernelVxlan({ vni: 42, peers: peersOf(third).map(({ address }) => address) });
  await third.ip(`link set br0 address ${GATEWAY_MAC}`, `addr add ${GATEWAY}/24 dev br0`);
  await third.sysctl({ "ipv4/ip_forward": 1 });
  const nat = "type nat hook postrouting priority srcnat; oifname uplink masquerade;";
  await third.finish(["nft", "-f", "-"], { input: `table ip nat { chain out { ${nat} }; }\n` });
  await byHand.ip(`route add default via ${GATEWAY}`);

  const running = [
    [first, await podman.done("inspect", "--format", "{{.State.Pid}}", "one"), "10.1.0.64"],
    [second, await docker.done("inspect", "--format", "{{.State.Pid}}", "two"), "10.1.0.128"],
  ] as const;
  for (const [host, pid, address] of running) {
    const container = new Namespace(`${host.name}run`);
    host.guests.push(container);
    await host.run("ip", "netns", "attach", container.name, pid);
    containers.push(Object.assign(container, { address }));
  }
  containers.push(byHand);
}, 120_000);

afterAll(async () => {
  await podman?.[Symbol.asyncDispose]();
  await docker?.[Symbol.asyncDispose]();
  await lab[Symbol.asyncDispose]();
  rmSync(leases, { recursive: true });
});

const PAIRS = [
  ["podman's", "Docker's", 0, 1],
  ["Docker's", "the kernel's", 1, 2],
  ["the kernel's", "podman's", 2, 0],
] as const;

describe.each(PAIRS)("%s container and %s", (_, __, from, to) => {
  test("have the MTU that crosses whole, and reach each other", async () => {
    const [here, there] = [containers[from]!, containers[to]!.address];
    await reach(here, there);
    const [link] = JSON.parse(await here.run("ip", "-json", "link", "show", "eth0"));
    expect(link.mtu).toBe(1450);
    const whole = await ping(here, there, { size: 1422 });
    expect(whole).toMatchObject({ received: 3 });
  });

  test("transfer a gigabyte, byte for byte", async () => {
    const bytes = 2 ** 30;
    const { sent, received } = await transferTcp(containers[from]!, containers[to]!, { bytes });
    expect(sent.bytes).toBe(bytes);
    expect(received).toEqual(sent);
  }, 120_000);
});

describe.each([
  ["podman's", 0],
  ["Docker's", 1],
  ["the kernel's", 2],
] as const)("%s container", (_, at) => {
  test("gets to the outside of its own host, through the gateway that all have", async () => {
    await reach(containers[at]!, OUTSIDE);
    const route = await containers[at]!.run("ip", "route", "get", OUTSIDE);
    expect(route).toContain(`via ${GATEWAY} dev eth0`);
    const neighbours = await containers[at]!.run("ip", "neigh", "show", GATEWAY);
    expect(neighbours).toContain(GATEWAY_MAC);
  });
});

test("a port that Docker publishes is the container's", async () => {
  const outside = second.guests.find(({ name }) => name.endsWith("out"))!;
  const web = ["/bin/busybox", "nc", "-l", "-p", "80", "-e", "/bin/busybox", "echo", "web"];
  await docker.done("exec", "-d", "two", ...web);
  const answer = await until("an answer", async () => {
    const words = ["busybox", "nc", "-w", "2", "203.0.113.1", "8080"];
    const { stdout } = await outside.finish(words);
    return stdout === "" ? undefined : stdout;
  });
  expect(answer).toBe("web\n");
  const list = await second.run("node", cli, "attach", "list", "--socket", vteps[1]!.socket);
  expect(list).toContain("8080:80/tcp");
});

test("a port goes along when a container goes outward by another network of Docker's, and comes back", async () => {
  const published = async () => {
    const list = ["attach", "list", "--json", "--socket", vteps[1]!.socket];
    return JSON.parse(await second.run("node", cli, ...list))[0].published;
  };
  const before = await published();
  expect(before).toMatchObject([{ port: 8080 }]);
  await docker.done("network", "create", "by-a-bridge"); // Docker prefers what is first by its name
  await docker.done("network", "connect", "by-a-bridge", "two");
  expect(await published()).toEqual([]);
  await docker.done("network", "disconnect", "by-a-bridge", "two");
  expect(await published()).toEqual(before);
  await docker.done("network", "rm", "by-a-bridge");
});

test("a network of Docker's has the gateway of ours, or is not created", async () => {
  await docker.done("rm", "-f", "two");
  await docker.done("network", "rm", "web");
  const wrong = ["network", "create", "-d", docker.driver, "-o", "network=blue"];
  const found = await docker.finish(...wrong, "--subnet", "10.1.0.0/24", "web");
  expect([found.code, found.stderr]).toEqual([
    1,
    expect.stringContaining(`network blue has the gateway ${GATEWAY}: create it with --gateway`),
  ]);
});

test("the compose example comes up as it is, but for names and addresses of this lab", async () => {
  const example = readFileSync(join(ROOT, "examples/compose.yaml"), "utf8");
  const file = join(leases, "compose.yaml");
  const ours = example
    .replace("driver: vtep", `driver: ${docker.driver}`)
    .replace("192.0.2.64/26", "10.1.0.128/26")
    .replace("192.0.2.0/24", "10.1.0.0/24")
    .replace("gateway: 192.0.2.1", `gateway: ${GATEWAY}`);
  writeFileSync(file, ours);
  await docker.done("tag", "box", "busybox");
  const compose = (...words: string[]) => {
    const command = ["docker-compose", "-H", `unix://${docker.socket}`, "-f", file, "-p", "lab"];
    return second.finish([...command, ...words], { timeoutMs: 60_000 });
  };
  expect(await compose("up", "-d")).toMatchObject({ code: 0 });
  const get = ["busybox", "wget", "-q", "-O", "-"];
  const inside = await compose("exec", "-T", "client", ...get, "http://web/");
  expect([inside.code, inside.stderr]).toEqual([0, ""]);
  const outside = second.guests.find(({ name }) => name.endsWith("out"))!;
  expect(await outside.run(...get, "http://203.0.113.1:8080/")).toBe(inside.stdout);
  expect(await compose("down", "-t", "0")).toMatchObject({ code: 0 });
}, 120_000);

test("all of it goes, and nothing is left", async () => {
  await podman.done("rm", "--all", "--force", "--time", "0");
  for (const host of [first, second]) {
    const links = await host.links();
    expect(links.filter((link) => /^v[tp][0-9a-f]{12}$/.test(link))).toEqual([]);
  }
  expect(
    await second.run("nft", "list", "table", "inet", `vtep_${second.address}_4789`),
  ).not.toContain("8080");
  for (const vtep of vteps) {
    const [network] = (await vtep.status()).networks;
    expect(network!.fdb.filter(({ origin }) => origin === "control")).toEqual([]);
    await vtep.stop();
  }
  expect(await first.run("nft", "list", "tables")).not.toContain("vtep");
  expect(await second.run("nft", "list", "tables")).not.toContain("vtep");
});
