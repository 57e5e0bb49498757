import { existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { afterAll, afterEach, beforeEach, describe, expect, onTestFinished, test } from "vitest";
import { Client } from "../../src/api/client.ts";
import type { Attachment } from "../../src/attachments.ts";
import { Lab } from "../lab/lab.ts";
import { create, type Finished, Namespace, succeeded } from "../lab/namespace.ts";
import { shim } from "../lab/shim.ts";
import { ping, reach } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import { cli, type Vtep } from "../lab/vtep.ts";

const lab = await Lab.draw({ hosts: 2 });
afterAll(() => lab[Symbol.asyncDispose]());
const [ours, theirs] = [lab.host(1), lab.host(2)];
const there = await theirs.container(); // 192.168.0.x of the lab's own
await theirs.kernelVxlan({ vni: 42, peers: [ours.address] });
const prefix = there.address.replace(/\d+$/, "");
const ADDRESS = `${prefix}201`;

const box = new Namespace(`${ours.name}box`);
const other = new Namespace(`${ours.name}box2`);
ours.guests.push(box, other);

let vtep: Vtep;
beforeEach(async () => {
  await create(box, other);
  vtep = await start();
});
afterEach(async () => {
  await vtep[Symbol.asyncDispose]();
  for (const { name } of [box, other]) await ours.finish(["ip", "netns", "del", name]);
  await until("no veth", async () => (await ours.links()).every((link) => !link.startsWith("vt")));
});

function start(...more: string[]): Promise<Vtep> {
  const network = ["--vni", "42", "--name", "blue", "--peer", theirs.address, "--bridge", "br0"];
  return ours.vtep(...network, ...more).ready();
}

/** A command of ours to its end. */
function run(...words: string[]): Promise<Finished> {
  return ours.finish(["node", cli, ...words, "--socket", vtep.socket]);
}

async function attach(target: string, ...options: string[]): Promise<Finished> {
  return run("attach", target, "--network", "blue", ...options);
}

async function attached(): Promise<Attachment[]> {
  return JSON.parse((await run("attach", "list", "--json")).stdout);
}

/** What the agent was told of, without having it look: its entries of the FDB. */
async function known(): Promise<unknown[]> {
  return JSON.parse((await run("fdb", "list", "--origin", "control", "--json")).stdout);
}

/** Attaches by another `ip`, which is to end as that would. */
function attachBy(script: string, target: string, ...options: string[]) {
  const other = shim(`began=$here/began PATH=\${PATH#*:}\n${script}`);
  onTestFinished(() => other[Symbol.dispose]());
  const words = ["attach", target, "--network", "blue", ...options, "--socket", vtep.socket];
  const ended = ours.finish(["env", other.path, "node", cli, ...words]);
  const began = until("it to begin", () => existsSync(join(other.directory, "began")));
  began.catch(() => undefined);
  return { ended, began, directory: other.directory };
}

/** Attaches by a path that leads to a container, and to another one as soon as anything is done with it. */
async function attachMoving(...options: string[]): Promise<Finished> {
  const directory = mkdtempSync(join(tmpdir(), "vtep-place-"));
  onTestFinished(() => rmSync(directory, { recursive: true }));
  const place = join(directory, "place");
  symlinkSync(`/run/netns/${box.name}`, place);
  const script = `ln -sfn /run/netns/${other.name} ${place}; touch $began; exec ip "$@"`;
  const { ended, began } = attachBy(script, place, "--ip", `${ADDRESS}/24`, ...options);
  await began;
  return ended;
}

/** The same, but that each batch of changes to links takes a second to begin. */
function attachSlowly(target: string, ...options: string[]) {
  const script = 'case "$*" in "-batch -") touch $began; sleep 1;; esac; exec ip "$@"';
  return attachBy(script, target, ...options);
}

/** Waits until who has known the address behind another MAC has heard of this container's, and then reaches it. */
async function announced(container: Namespace): Promise<void> {
  const [{ address }] = JSON.parse(await container.run("ip", "-json", "link", "show", "eth0"));
  await until("the announcement", async () => (await there.neighbour(ADDRESS)) === address);
  expect(await ping(there, ADDRESS, { count: 3 })).toMatchObject({ received: 3 });
}

/** Says to all hosts that it is a router, for half an hour (RFC 4861, section 4.2). */
const ROUTER = `
import socket, sys
icmp = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
icmp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
icmp.sendto(bytes([134, 0, 0, 0, 64, 0, 7, 8]) + bytes(8), (sys.argv[2], 0, 0, socket.if_nametoindex(sys.argv[1])))`;

/** What is left of an attachment. */
async function remains() {
  const inside = await box.finish(["ip", "-json", "link", "show", "type", "veth"]);
  const links = (await ours.links()).filter((link) => link.startsWith("vt") && link !== "vtep42");
  return { links, inside: JSON.parse(inside.stdout || "[]").length, attached: await attached() };
}
const NOTHING = { links: [], inside: 0, attached: [] };

describe("a container that is attached", () => {
  test.each([
    ["by the name of its namespace", () => box.name],
    ["by a path", () => `/run/netns/${box.name}`],
  ])("%s, reaches whoever is in the network", async (_, target) => {
    const options = ["--ip", `${ADDRESS}/24`, "fd07::201/64", "--gateway", `${prefix}1`];
    const { code, stdout, stderr } = await attach(target(), ...options);
    expect([code, stderr]).toEqual([0, ""]);
    expect(stdout).toMatch(/^eth0 of \S+ is in network blue: 0[2367ae]:\S+, MTU 1450, /);
    await reach(box, there.address);
    const [link] = JSON.parse(await box.run("ip", "-json", "addr", "show", "eth0"));
    expect(link).toMatchObject({ mtu: 1450, operstate: "UP" });
    const [here] = await attached();
    expect(here).toMatchObject({
      network: "blue",
      ifname: "eth0",
      mac: link.address,
      addresses: [`${ADDRESS}/24`, "fd07::201/64"],
    });
    expect(await box.run("ip", "route", "show", "default")).toContain(`via ${prefix}1 dev eth0`);
    expect((await run("detach", target())).code).toBe(0);
    expect(await remains()).toEqual(NOTHING);
  });

  test("by the ID of one of its processes, under a name of its own", async () => {
    const process = box.spawn("sleep", "60");
    try {
      const pid = `${process.pid}`;
      const options = ["--ifname", "net7", "--mac", "02:00:00:00:00:77", "--mtu", "1400"];
      const first = await attach(pid, ...options, "--ip", `${ADDRESS}/24`);
      expect(first).toMatchObject({ code: 0, stderr: "" });
      const [link] = JSON.parse(await box.run("ip", "-json", "link", "show", "net7"));
      expect(link).toMatchObject({ address: "02:00:00:00:00:77", mtu: 1400 });
      await reach(box, there.address);
      // The same namespace, by another of its names.
      expect(await run("detach", box.name, "--ifname", "net7")).toMatchObject({ code: 0 });
      expect(await remains()).toEqual(NOTHING);
    } finally {
      process.kill();
    }
  });

  test("does not become the router of the host while it is joined to its bridge", async () => {
    const ipv6 = (off: 0 | 1) => ours.sysctl({ "ipv6/conf/default/disable_ipv6": off });
    await ipv6(0); // which a lab switches off
    onTestFinished(() => ipv6(1));
    const advertises = `nsenter --net=/run/netns/${box.name} sh -c '
      ip addr add fe80::66/64 dev eth0 nodad; exec python3 -c "${ROUTER}" eth0 ff02::1'`;
    const script = `case "$*" in *master*) touch $began; ${advertises};; esac; exec ip "$@"`;
    const { ended, began } = attachBy(script, box.name, "--ip", "fd07::201/64");
    expect((await ended).code).toBe(0);
    await began;
    expect(await ours.run("ip", "-6", "route", "show", "default")).toBe("");
  });

  test("is the one that was found, wherever its path leads by then", async () => {
    expect(await attachMoving()).toMatchObject({ code: 0, stderr: "" });
    await reach(box, there.address);
    expect(await other.run("ip", "-br", "link")).not.toContain("eth0");
  });

  test("is announced to who has known its address behind another MAC", async () => {
    await attach(box.name, "--ip", `${ADDRESS}/24`);
    await reach(there, ADDRESS);
    await run("detach", box.name);
    await attach(other.name, "--ip", `${ADDRESS}/24`);
    await announced(other);
  });

  test("is announced when the bridge forwards from its port, and not before", async () => {
    await attach(box.name, "--ip", `${ADDRESS}/24`);
    await reach(there, ADDRESS);
    await run("detach", box.name);
    // A port of a bridge that is down is what one is until the kernel has heeded its carrier.
    const script = `case "$*" in
      *"master br0 up") ip link set br0 down ;;
      "-d link show"*) echo >>$here/looks; [ $(wc -l <$here/looks) -lt 4 ] || ip link set br0 up ;;
    esac
    exec ip "$@"`;
    expect((await attachBy(script, other.name, "--ip", `${ADDRESS}/24`).ended).code).toBe(0);
    await ours.run("ip", "link", "set", "br0", "up");
    await announced(other);
  });

  test("is attached soon to a bridge that stays down", async () => {
    await ours.ip("link set br0 down");
    onTestFinished(() => ours.ip("link set br0 up"));
    const script = 'case "$*" in "-d link show"*) echo >>$here/looks;; esac; exec ip "$@"';
    const { ended, directory } = attachBy(script, box.name, "--ip", `${ADDRESS}/24`);
    expect((await ended).code).toBe(0);
    expect(readFileSync(join(directory, "looks"), "utf8").length).toBe(20); // each a program's start and 50 ms
    await ours.ip("link set br0 up");
    await reach(box, there.address);
  });

  test("has a MAC that no remote can take over", async () => {
    await attach(box.name, "--ip", `${ADDRESS}/24`);
    const [{ mac }] = (await attached()) as [Attachment];
    const entry = async () => JSON.parse((await run("fdb", "list", "--mac", mac, "--json")).stdout);
    expect(await entry()).toMatchObject([{ destination: "local", origin: "control" }]);
    await ours.ip("link del vtep42");
    await until("the TAP", () => vtep.log.some(({ msg }) => msg === "the TAP is there again"));
    expect(await entry()).toMatchObject([{ destination: "local", origin: "control" }]);
    await run("detach", box.name);
    expect(
      (await entry()).filter(({ origin }: { origin: string }) => origin === "control"),
    ).toEqual([]);
  });

  test("twice is attached once, and stays the same", async () => {
    await attach(box.name, "--ip", `${ADDRESS}/24`);
    const before = await attached();
    const again = await attach(box.name, "--ip", `${ADDRESS}/24`);
    expect(again).toMatchObject({
      code: 0,
      stdout: expect.stringContaining("network blue already"),
    });
    expect(await attached()).toEqual(before);
    expect(await attach(box.name, "--ip", `${prefix}202/24`)).toMatchObject({
      code: 1,
      stderr: `vtep: eth0 of /run/netns/${box.name} is attached already, in another way: detach it first\n`,
    });
    expect(await attached()).toEqual(before);
  });

  test("is known to the agent the second time, when who attached it was killed the first", async () => {
    const script = 'ip "$@"; case "$*" in *address*) kill -9 $PPID;; esac'; // the last change of all
    expect((await attachBy(script, box.name).ended).code).toBe(null);
    expect(await known()).toHaveLength(0);
    expect((await attach(box.name)).stdout).toContain("is in network blue already");
    expect(await known()).toHaveLength(1);
  });

  test("twice at once is attached, and only once", async () => {
    const { ended } = attachSlowly(box.name, "--ip", `${ADDRESS}/24`);
    await until("it to begin", async () => (await remains()).links.length > 0);
    const second = await attach(box.name, "--ip", `${ADDRESS}/24`);
    expect([second.code, (await ended).code]).toEqual([0, 0]);
    expect(second.stdout).toContain("is in network blue already");
    await reach(box, there.address);
  });

  test("is made anew when it was not finished, or its network has another bridge", async () => {
    await attach(box.name, "--ip", `${ADDRESS}/24`);
    const [{ link, mac }] = (await attached()) as [Attachment];
    await ours.run("ip", "link", "set", link, "nomaster"); // as if it had been killed before
    expect(await attached()).toEqual([]);
    expect((await attach(box.name, "--ip", `${ADDRESS}/24`)).code).toBe(0);
    await reach(box, there.address);
    expect(await attached()).toMatchObject([{ link, mac }]);
    for (const other of [
      ["--mtu", "1300"],
      ["--route", "10.50.0.0/16"],
      ["--gateway", `${prefix}1`],
    ]) {
      const again = await attach(box.name, "--ip", `${ADDRESS}/24`, ...other);
      expect([again.code, again.stderr]).toEqual([1, expect.stringContaining("in another way")]);
    }
  });

  test("twice is attached once, also if its network carries more by then, and not if less", async () => {
    const network = ["--vni", "42", "--name", "blue", "--peer", theirs.address, "--bridge", "br0"];
    const change = (mtu: string) => run("network", "add", ...network, "--mtu", mtu);
    await change("1400");
    await attach(box.name, "--ip", `${ADDRESS}/24`);
    await change("1450");
    const again = await attach(box.name, "--ip", `${ADDRESS}/24`, "--json");
    expect(again).toMatchObject({ code: 0, stderr: "" });
    expect(JSON.parse(again.stdout)).toMatchObject({ mtu: 1400 });
    await change("1300");
    const less = await attach(box.name, "--ip", `${ADDRESS}/24`);
    expect([less.code, less.stderr]).toEqual([1, expect.stringContaining("in another way")]);
  });

  test("goes along when its network moves to another bridge", async () => {
    await attach(box.name, "--ip", `${ADDRESS}/24`);
    const before = await attached();
    const moved = ["--vni", "42", "--name", "blue", "--peer", theirs.address, "--bridge", "br9"];
    expect(await run("network", "add", ...moved)).toMatchObject({ code: 0 });
    expect(await attached()).toEqual(before);
    await reach(box, there.address);
    expect(await ours.run("ip", "link", "show", "master", "br9")).toContain(before[0]!.link);
  });

  test("may have a gateway that is routed straight out", async () => {
    const gateway = ["--route", "169.254.1.1/32", "--gateway", "169.254.1.1"];
    expect(await attach(box.name, "--ip", `${ADDRESS}/32`, ...gateway)).toMatchObject({ code: 0 });
    expect(await box.run("ip", "route", "show", "default")).toContain("via 169.254.1.1 dev eth0");
  });

  test("is known to an agent that was started again, and gone with its namespace", async () => {
    await attach(box.name, "--ip", `${ADDRESS}/24`);
    const before = await attached();
    await vtep.stop();
    expect((await ours.links()).some((link) => link === before[0]!.link)).toBe(true);
    vtep = await start();
    expect(await attached()).toEqual(before);
    await reach(box, there.address);
    await ours.run("ip", "netns", "del", box.name);
    await until("nothing attached", async () => (await attached()).length === 0);
    expect(existsSync(`/run/netns/${box.name}`)).toBe(false);
  });
});

describe("a network that has another name since", () => {
  test("has what was attached to it, and its addresses are used", async () => {
    await attach(box.name, "--ip", `${ADDRESS}/24`);
    await vtep.stop();
    const renamed = ["--vni", "42", "--name", "azure", "--peer", theirs.address, "--bridge", "br0"];
    vtep = await ours.vtep(...renamed).ready();
    expect(await attached()).toMatchObject([{ network: "azure", addresses: [`${ADDRESS}/24`] }]);
    const same = await run("attach", box.name, "--network", "azure", "--ip", `${ADDRESS}/24`);
    expect(same.stdout).toContain("is in network azure already");
    const again = await run("attach", other.name, "--network", "azure", "--ip", `${ADDRESS}/24`);
    expect([again.code, again.stderr]).toEqual([1, expect.stringContaining("is used already")]);
  });
});

test("an interface that is attached to another network is not taken from that", async () => {
  const red = ["--vni", "43", "--name", "red", "--peer", theirs.address, "--bridge", "br43"];
  expect(await run("network", "add", ...red)).toMatchObject({ code: 0 });
  await attach(box.name, "--ip", `${ADDRESS}/24`);
  const before = await attached();
  const found = await run("attach", box.name, "--network", "red", "--ip", "192.0.2.7/24");
  expect([found.code, found.stderr]).toEqual([
    1,
    `vtep: eth0 of /run/netns/${box.name} is attached already, to network blue: detach it first\n`,
  ]);
  expect(await attached()).toEqual(before);
});

test("an alias that is not to be understood is somebody else's", async () => {
  await ours.ip("link add odd type bridge", "link set odd alias vtep|a|b|c|d|notaport|x|y|z");
  expect(await attach(box.name, "--ip", `${ADDRESS}/24`)).toMatchObject({ code: 0 });
  expect(await attached()).toHaveLength(1);
  await ours.ip("link del odd");
});

describe("what cannot be is refused, and leaves nothing", () => {
  test.each([
    ["a network unknown", ["--network", "red"], 1, /^vtep: there is no network "red"/],
    ["a name too long", ["--ifname", "abcdefghijklmnop"], 2, /cannot name an interface/],
    ["no address", ["--ip", "x/24"], 2, /"x\/24" is not the address of a station/],
    ...[
      "224.0.0.1/24",
      "127.0.0.1/8",
      "10.77.0.0/24",
      "10.77.0.255/24",
      "10.77.40/24",
      "010.77.0.1/24",
    ].map((address): [string, string[], number, RegExp] => [
      `no station's address, ${address},`,
      ["--ip", address],
      2,
      /is not the address of a station/,
    ]),
    [
      "more addresses than can be noted",
      [
        "--ip",
        ...Array.from({ length: 9 }, (_, at) => `2001:db8:1111:2222:3333:4444:5555:${at + 1}/64`),
      ],
      2,
      /cannot be noted on the host/,
    ],
    ["an MTU too large", ["--mtu", "1451"], 2, /MTU 1451 is more than the 1450 of network blue/],
    ["no MTU", ["--mtu", "x"], 2, /must be a whole number from 68/],
    ["a group's MAC", ["--mac", "01:00:5e:00:00:01"], 2, /is not the MAC address of a station/],
    ["a gateway elsewhere", ["--ip", "10.9.9.9/24", "--gateway", "10.8.8.8"], 2, /is in no subnet/],
    ["no route", ["--route", "x=y=z"], 2, /must be CIDR or CIDR=VIA/],
  ])("%s", async (_, options, code, message) => {
    const found = await attach(box.name, ...options);
    expect([found.code, found.stdout]).toEqual([code, ""]);
    expect(found.stderr).toMatch(message);
    expect(await remains()).toEqual(NOTHING);
  });

  test.each<[string, (client: Client) => Promise<unknown>]>([
    ["removed", (client) => client.removeNetwork("blue")],
    [
      "given another bridge",
      (client) =>
        client.putNetwork("blue", { vni: 42, peers: [theirs.address], bridge: "elsewhere" }),
    ],
  ])("a network that is %s meanwhile", async (_, change) => {
    await ours.ip("link add port type veth peer peer", "link set port master br0"); // br0 stays
    onTestFinished(() => ours.ip("link del port", "link del br0"));
    const { ended, began } = attachSlowly(box.name);
    await began;
    await change(new Client(vtep.socket));
    expect(await ended).toMatchObject({
      code: 1,
      stderr: "vtep: network blue was changed meanwhile: try again\n",
    });
    expect(await remains()).toEqual(NOTHING);
  });

  test("a namespace that is gone", async () => {
    const found = await attach("nowhere");
    expect(found).toMatchObject({
      code: 1,
      stderr: "vtep: /run/netns/nowhere is not there: name a network namespace\n",
    });
  });

  test("something that is no namespace", async () => {
    const found = await attach("/etc/hostname");
    const message = "vtep: /etc/hostname is no network namespace, or one no more: name one\n";
    expect(found).toMatchObject({ code: 1, stderr: message });
    expect(await remains()).toEqual(NOTHING);
  });

  test("a process without a namespace of its own, whose routes would be the host's", async () => {
    const process = ours.spawn("sleep", "60");
    onTestFinished(() => void process.kill());
    const found = await attach(`${process.pid}`);
    const message = expect.stringMatching(/is in this host's own network namespace/);
    expect(found).toMatchObject({ code: 2, stderr: message });
    expect(await remains()).toEqual(NOTHING);
  });

  test("an interface that is taken", async () => {
    await box.run("ip", "link", "add", "eth0", "type", "bridge");
    const found = await attach(box.name);
    const message = `vtep: /run/netns/${box.name} has an interface eth0 already: choose another name (--ifname)\n`;
    expect(found).toMatchObject({ code: 1, stderr: message });
    expect(await remains()).toEqual(NOTHING);
  });

  test("where the agent's links are not", async () => {
    const words = ["attach", box.name, "--network", "blue", "--ip", `${ADDRESS}/24`];
    const found = await other.finish(["node", cli, ...words, "--socket", vtep.socket]);
    const message = /^vtep: br0 is no link here: attach from the network namespace/;
    expect(found).toMatchObject({ code: 1, stderr: expect.stringMatching(message) });
    expect(await remains()).toEqual(NOTHING);
  });

  test("an address, or a MAC, that another container has", async () => {
    const mac = "02:00:00:00:00:77";
    await attach(box.name, "--ip", `${ADDRESS}/24`, "--mac", mac);
    const before = await attached();
    const first = await attach(other.name, "--ip", `${ADDRESS}/24`);
    expect([first.code, first.stderr]).toEqual([
      1,
      expect.stringContaining("is used already, by eth0"),
    ]);
    const second = await attach(other.name, "--mac", mac);
    expect([second.code, second.stderr]).toEqual([
      1,
      expect.stringContaining(`${mac} is the MAC of eth0`),
    ]);
    expect(await attached()).toEqual(before);
  });

  test("an address that another container is given at the same time", async () => {
    const ip = ["--ip", `${ADDRESS}/24`];
    const both = [box, other].map(({ name }) => attachSlowly(name, ...ip).ended);
    const codes = (await Promise.all(both)).map(({ code }) => code);
    const rest = codes.filter((code) => code === 0);
    expect(rest.length).toBeLessThan(2);
    expect(await known()).toHaveLength(rest.length);
    expect(await attached()).toHaveLength(rest.length);
  });

  test("half-way: an address that the kernel refuses", async () => {
    const found = await attach(box.name, "--ip", `${ADDRESS}/24`, `${ADDRESS}/24`);
    expect([found.code, found.stderr]).toEqual([
      1,
      expect.stringContaining("giving eth0 the address"),
    ]);
    expect(await remains()).toEqual(NOTHING);
  });

  test("an agent that is away: exit code 3, but detaching goes on", async () => {
    await attach(box.name, "--ip", `${ADDRESS}/24`);
    await vtep.stop();
    expect((await attach(other.name)).code).toBe(3);
    expect(await run("detach", box.name)).toMatchObject({ code: 0 });
    expect(await run("detach", box.name)).toMatchObject({
      code: 0,
      stdout: `eth0 of ${box.name} was not attached\n`,
    });
  });

  test("a network without a bridge", async () => {
    await vtep.stop();
    const alone = ["--vni", "42", "--name", "blue", "--peer", theirs.address];
    vtep = await ours.vtep(...alone).ready();
    const found = await attach(box.name);
    expect([found.code, found.stderr]).toEqual([2, expect.stringContaining("blue has no bridge")]);
  });
});

test("two hundred times leaves no link and no entry behind", async () => {
  const module = (name: string) =>
    JSON.stringify(new URL(`../../src/${name}`, import.meta.url).href);
  const code = `
    const { attach, detach } = await import(${module("attach.ts")});
    const { HeldNamespace } = await import(${module("namespace.ts")});
    const { linkName } = await import(${module("attachments.ts")});
    const { Client } = await import(${module("api/client.ts")});
    const client = new Client(${JSON.stringify(vtep.socket)});
    const target = "/run/netns/${box.name}";
    const namespace = new HeldNamespace(target);
    const wanted = { network: "blue", target, namespace, owner: namespace.id, by: "attach", ifname: "eth0", addresses: ["${ADDRESS}/24"], gateways: [], routes: [], published: [] };
    for (let turn = 0; turn < 200; turn++) {
      await attach(client, wanted);
      if (!(await detach(client, linkName(wanted.owner, "eth0")))) throw new Error("it was not attached");
    }`;
  const words = ["node", "--import", import.meta.resolve("tsx"), "--input-type=module", "-e", code];
  succeeded("attaching", await ours.finish(words, { timeoutMs: 100_000 }));
  expect(await remains()).toEqual(NOTHING);
  const entries = JSON.parse((await run("fdb", "list", "--origin", "control", "--json")).stdout);
  expect(entries).toEqual([]);
}, 120_000);

describe("without a bridge, the TAP itself", () => {
  beforeEach(async () => {
    await vtep.stop();
    vtep = await ours.vtep("--vni", "42", "--name", "blue", "--peer", theirs.address).ready();
  });

  const direct = (target: string, ...more: string[]) =>
    attach(target, "--direct", "--ip", `${ADDRESS}/24`, ...more);

  test("is that of the container that was found, wherever its path leads by then", async () => {
    expect(await attachMoving("--direct")).toMatchObject({ code: 0, stderr: "" });
    await reach(box, there.address);
  });

  test("is the container's interface, and here again when that is detached", async () => {
    const found = await direct(box.name, "fd07::201/64", "--gateway", `${prefix}1`);
    expect([found.code, found.stderr]).toEqual([0, ""]);
    await reach(box, there.address);
    const [link] = JSON.parse(await box.run("ip", "-json", "-details", "addr", "show", "eth0"));
    expect(link).toMatchObject({ mtu: 1450, linkinfo: { info_kind: "tun" } });
    expect(await ours.links()).not.toContain("vtep42");
    expect(await box.run("ip", "route", "show", "default")).toContain(`via ${prefix}1 dev eth0`);
    expect(await attached()).toMatchObject([
      { network: "blue", ifname: "eth0", mac: link.address, link: "vtep42" },
    ]);
    const again = await direct(box.name, "fd07::201/64", "--gateway", `${prefix}1`);
    expect(again.stdout).toContain("is in network blue already");
    expect(await direct(other.name, "--ifname", "eth1")).toMatchObject({
      code: 1,
      stderr: `vtep: the TAP of network blue is eth0 of /run/netns/${box.name} already: detach that first, or give the network a bridge\n`,
    });
    expect(await run("detach", box.name)).toMatchObject({ code: 0 });
    await until("the TAP", async () => (await ours.links()).includes("vtep42"));
    expect(await attached()).toEqual([]);
    expect((await direct(other.name)).code).toBe(0);
    await reach(other, there.address);
  });

  test("is never one container's while the agent takes it for another's", async () => {
    const targets = [box.name, other.name];
    const attaching = targets.map(async (target, at) => {
      await pause(500 * at); // the second notes itself before the first moves the TAP
      return attachSlowly(target, "--direct", "--ip", `${ADDRESS}/24`).ended;
    });
    const ended = await Promise.all(attaching);
    const those = targets.filter((_, at) => ended[at]!.code === 0);
    await until("what was said", async () => {
      const found = (await attached()).map(({ target }) => target);
      return found.join() === those.map((target) => `/run/netns/${target}`).join();
    });
  });

  test.each([
    ["noted, and not moved", 1],
    ["moved, and not named", 2],
  ])("is detached also where it was %s", async (_, steps) => {
    const script = `case "$*" in "-batch -")
  echo >>$began
  if [ $(wc -l <$began) -gt ${steps} ]; then kill -9 $PPID; exit; fi;;
esac
exec ip "$@"`;
    expect((await attachBy(script, box.name, "--direct").ended).code).toBe(null);
    expect(await attached()).toMatchObject([{ target: `/run/netns/${box.name}` }]);
    expect((await run("detach", box.name)).stdout).toContain("is detached");
    expect(await attached()).toEqual([]);
    await until("the TAP", async () => (await ours.links()).includes("vtep42"));
  });

  test("comes back when the container dies, while the agent goes on", async () => {
    await direct(box.name);
    await reach(box, there.address);
    await ours.run("ip", "netns", "del", box.name);
    await until("the TAP", async () => (await ours.links()).includes("vtep42"));
    expect(await attached()).toEqual([]);
    expect((await direct(other.name)).code).toBe(0);
    await reach(other, there.address);
    expect(vtep.log.filter(({ level }) => level >= 50)).toEqual([]);
  });

  test.each([
    [
      "an interface that is taken",
      ["--ifname", "taken"],
      /has an interface taken already: choose another name/,
    ],
    ["an address that is refused", ["fe80::1/64", "fe80::1/64"], /giving eth0 the address/],
    [
      "a MAC that nobody may have",
      ["--mac", "01:00:5e:00:00:01"],
      /is not the MAC address of a st/,
    ],
  ])("stays or comes back after %s", async (_, options, message) => {
    await box.run("ip", "link", "add", "taken", "type", "bridge");
    const found = await direct(box.name, ...options);
    expect([found.code === 0, found.stderr]).toEqual([false, expect.stringMatching(message)]);
    await until("the TAP", async () => (await ours.links()).includes("vtep42"));
    expect(await attached()).toEqual([]);
    expect((await direct(box.name)).code).toBe(0);
  });

  test.each([
    [
      "this host's, by its address",
      "addr add 192.0.2.1/24 dev vtep42",
      /has the address 192\.0\.2\.1\/24, by which this host is in network blue: take it away \("(.+)"\)/,
    ],
    [
      "others', by a bridge that it was put into",
      "link set vtep42 master br7",
      /is a port of br7, by which others are in network blue: take it out \("(.+)"\)/,
    ],
    [
      "the network's, where the name is taken",
      `netns exec ${box.name} ip link add eth0 type bridge`,
      /has an interface eth0 already/,
    ],
  ])("stays %s", async (_, given, message) => {
    await ours.ip("link add br7 type bridge");
    onTestFinished(() => ours.ip("link del br7").then(() => undefined));
    await ours.ip(given);
    const state = async () => {
      const shown = await ours.run("ip", "-json", "addr", "show", "vtep42");
      const [{ ifindex, master, addr_info }] = JSON.parse(shown);
      const given = addr_info.filter(({ scope }: { scope: string }) => scope !== "link");
      return { ifindex, master, given };
    };
    const before = await state();
    const { code, stderr } = await direct(box.name);
    expect([code, stderr]).toEqual([1, expect.stringMatching(message)]);
    expect(await state()).toEqual(before);
    const remedy = message.exec(stderr)?.[1];
    if (remedy === undefined) return;
    await ours.run("sh", "-c", remedy);
    expect(await direct(box.name)).toMatchObject({ code: 0, stderr: "" });
  });

  test("keeps its MTU and gets no bridge while it is a container's, and else is changed", async () => {
    expect((await direct(box.name)).code).toBe(0);
    const client = new Client(vtep.socket);
    const put = (more: object) =>
      client.putNetwork("blue", { vni: 42, peers: [theirs.address], ...more });
    const message = expect.stringContaining("detach it first");
    for (const more of [{ mtu: 1400 }, { bridge: "br7" }]) {
      await expect(put(more)).rejects.toMatchObject({ code: "CONFLICT", message });
    }
    await put({ "fdb-limit": 7 });
    await reach(box, there.address);
  });

  test("is refused where others need it", async () => {
    await vtep.stop();
    vtep = await start();
    const found = await direct(box.name);
    expect([found.code, found.stderr]).toEqual([2, expect.stringContaining("is a port of br0")]);
  });
});
