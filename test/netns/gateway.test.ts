import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { afterAll, afterEach, beforeEach, describe, expect, test } from "vitest";
import { Client } from "../../src/api/client.ts";
import { GATEWAY_MAC } from "../../src/gateways.ts";
import { Lab } from "../lab/lab.ts";
import { type Child, create, type Finished, Namespace } from "../lab/namespace.ts";
import { REFUSING, shim } from "../lab/shim.ts";
import { isSilent, reach } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import { cli, type Vtep } from "../lab/vtep.ts";

const lab = await Lab.draw({ hosts: 2 });
afterAll(() => lab[Symbol.asyncDispose]());
const [ours, theirs] = [lab.host(1), lab.host(2)];
const box = new Namespace(`${ours.name}box`);
const neighbour = new Namespace(`${ours.name}box2`);
const remote = new Namespace(`${theirs.name}box`);
/** A machine elsewhere, which knows no way to the network. */
const outside = new Namespace(`${ours.name}out`);
ours.guests.push(box, neighbour, outside);
theirs.guests.push(remote);

const GATEWAY = ["10.9.0.1/24", "fd09::1/64"];
const ELSEWHERE = ["203.0.113.2", "2001:db8:203::2"] as const;

let vteps: readonly Vtep[] = [];
beforeEach(async () => {
  await create(box, neighbour, remote, outside);
  for (const each of [ours, theirs, outside]) {
    await each.sysctl({ "ipv6/conf/*/disable_ipv6": 0 });
  }
  await ours.ip(`link add uplink type veth peer name eth0 netns ${outside.name}`);
  await ours.ip("addr add 203.0.113.1/24 dev uplink", "link set uplink up");
  await ours.ip("addr add 2001:db8:203::1/64 dev uplink nodad");
  await outside.ip("addr add 203.0.113.2/24 dev eth0", "link set eth0 up");
  await outside.ip("addr add 2001:db8:203::2/64 dev eth0 nodad");
  vteps = await Promise.all([
    start(ours, theirs.address, "10.9.0.64-10.9.0.65/24", "fd09::64-fd09::65/64"),
    start(theirs, ours.address, "10.9.0.128-10.9.0.129/24", "fd09::128-fd09::129/64"),
  ]);
});
afterEach(async () => {
  // A process would keep its namespace, and the namespace its links.
  await Promise.all([box, neighbour, remote, outside].map((each) => each.quiesce()));
  for (const { name } of [box, neighbour, remote, outside]) {
    await ours.finish(["ip", "netns", "del", name]);
  }
  for (const host of [ours, theirs]) await until("nothing attached", () => isBare(host));
  for (const vtep of vteps) await vtep[Symbol.asyncDispose]();
});

/** Whether the links of containers, which go some time after their namespaces, are gone. */
async function isBare(host: Namespace): Promise<boolean> {
  const links = await host.links();
  return links.every((link) => !/^(vt(?!ep)|uplink)/.test(link));
}

function start(host: typeof ours, peer: string, ...ranges: string[]): Promise<Vtep> {
  const network = ["--vni", "42", "--name", "blue", "--peer", peer, "--bridge", "br0"];
  const gateway = ["--gateway", ...GATEWAY, "--masquerade"];
  const range = ranges.length === 0 ? [] : ["--range", ...ranges];
  return host.vtep(...network, ...gateway, ...range).ready();
}

/** A command to its end, for the agent of a host. */
function run(host: typeof ours, ...words: string[]): Promise<Finished> {
  const vtep = vteps[host === ours ? 0 : 1]!;
  return host.finish(["node", cli, ...words, "--socket", vtep.socket]);
}

/** Attaches a container, by what its network has to give; returns its IPv4 address. */
async function attach(host: typeof ours, target: Namespace, ...options: string[]): Promise<string> {
  const words = ["attach", target.name, "--network", "blue", "--ip", "auto", "--json"];
  const { code, stdout, stderr } = await run(host, ...words, ...options);
  expect([code, stderr]).toEqual([0, ""]);
  return JSON.parse(stdout).addresses[0].split("/")[0];
}

/** Has a process of a container answer on a TCP port with a word. */
async function serve(target: Namespace, port: number, word: string, at = "::"): Promise<Child> {
  const code = `require("node:net").createServer((s) => s.end("${word}")).listen(${port}, "${at}", () => console.log("ready"))`;
  const server = target.spawn("node", "-e", code);
  await new Promise((resolve) => server.stdout.once("data", resolve));
  return server;
}

/** What answers there; undefined: nobody. */
async function call(from: Namespace, address: string, port: number): Promise<string | undefined> {
  const code = `require("node:net").connect(${port}, "${address}").setTimeout(2000, function () { this.destroy(); }).on("data", (d) => console.log(String(d))).on("error", () => {})`;
  return (await from.finish(["node", "-e", code])).stdout.trim() || undefined;
}

/** Has a process of a container answer datagrams to a port with a word. */
async function answer(target: Namespace, port: number, word: string): Promise<void> {
  const code = `const s = require("node:dgram").createSocket("udp6", (_, { port, address }) => s.send("${word}", port, address)).bind(${port}, () => console.log("ready"))`;
  const server = target.spawn("node", "-e", code);
  await new Promise((resolve) => server.stdout.once("data", resolve));
}

/** Goes on sending datagrams from one port; what each address said last, as it comes. */
async function callOn(from: Namespace, addresses: readonly string[], port: number) {
  const code = `for (const address of ${JSON.stringify(addresses)}) {
    const s = require("node:dgram").createSocket(address.includes(":") ? "udp6" : "udp4", (word) => console.log(address, String(word)));
    s.bind(() => setInterval(() => s.send("", ${port}, address, () => {}), 20));
  }
  console.log("ready")`;
  const heard = new Map<string, string>();
  const caller = from.spawn("node", "-e", code);
  await new Promise((resolve) => caller.stdout.once("data", resolve));
  createInterface(caller.stdout).on("line", (line) => {
    const [address, word] = line.split(" ");
    heard.set(address!, word!);
  });
  return heard;
}

function rules(host: Namespace): Promise<string> {
  return host.run("nft", "list", "ruleset");
}

describe("through the gateway", () => {
  test("a container gets to elsewhere, as its host", async () => {
    expect(await attach(ours, box)).toBe("10.9.0.64");
    for (const address of ELSEWHERE) await reach(box, address);
    // Nobody there could answer 10.9.0.64.
    expect(await outside.run("ip", "route", "show")).not.toContain("10.9");
    expect(await box.run("ip", "route", "show", "default")).toContain("via 10.9.0.1 dev eth0");
    expect(await box.run("ip", "-6", "route", "show", "default")).toContain("via fd09::1 dev eth0");
  });

  test("nobody has to go who is near: it is the same on every host, and never leaves it", async () => {
    await attach(ours, box);
    const there = await attach(theirs, remote);
    expect(there).toBe("10.9.0.128");
    await reach(box, there);
    for (const from of [box, remote]) {
      for (const gateway of ["10.9.0.1", "fd09::1"]) {
        await reach(from, gateway);
        const [entry] = JSON.parse(await from.run("ip", "-json", "neigh", "show", gateway));
        expect(entry).toMatchObject({ lladdr: GATEWAY_MAC });
      }
    }
    for (const vtep of vteps) {
      const [network] = (await vtep.status()).networks;
      expect(network!.counters.gateway).toBeGreaterThan(0);
      expect(network!.counters.moved).toBe(0);
      expect(network!.drops.LOCAL_MAC).toBeUndefined();
    }
  });

  test("a port of the host is a container's, for others, for the host, for its neighbour", async () => {
    const local = await serve(ours, 8080, "own", "127.0.0.1");
    const other = await serve(ours, 8082, "own", "0.0.0.0");
    const published = ["8080:80/tcp", "203.0.113.1:8081:81", "[2001:db8:203::1]:8082:81"];
    await attach(ours, box, "--publish", ...published);
    await attach(ours, neighbour);
    await serve(box, 80, "web");
    await serve(box, 81, "more");
    expect(await call(outside, "203.0.113.1", 8080)).toBe("web");
    expect(await call(outside, "2001:db8:203::1", 8080)).toBe("web");
    expect(await call(outside, "203.0.113.1", 8081)).toBe("more");
    expect(await call(outside, "2001:db8:203::1", 8081)).toBeUndefined();
    expect(await call(ours, "203.0.113.1", 8080)).toBe("web");
    expect(await call(ours, "127.0.0.1", 8080)).toBe("own");
    expect(await call(outside, "203.0.113.1", 8082)).toBe("own");
    expect(await call(outside, "2001:db8:203::1", 8082)).toBe("more");
    local.kill();
    other.kill();
    expect(await call(neighbour, "203.0.113.1", 8080)).toBe("web");
    const again = ["attach", neighbour.name, "--network", "blue", "--ifname", "eth1"];
    again.push("--ip", "10.9.0.70/24", "--gateway", "none");
    expect(await run(ours, ...again, "--publish", "8080:90")).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/port 8080\/tcp is published already, for eth0 of /),
    });
    await run(ours, "detach", box.name);
    expect(await call(outside, "203.0.113.1", 8080)).toBeUndefined();
    expect(await rules(ours)).not.toContain("8080");
  });

  test("datagrams of a flow that goes on get to whoever has the port now, and their errors too", async () => {
    const heard = await callOn(outside, ["203.0.113.1", "2001:db8:203::1"], 9000);
    const hears = (word: string) =>
      until(word, () => heard.size === 2 && [...heard.values()].every((each) => each === word));
    const publish = ["--publish", "9000:90/udp"];
    await attach(ours, box, ...publish);
    await answer(box, 90, "one");
    await hears("one");
    const refuse = "udp sport 9000 reject with icmpx type no-route";
    const chain = `table inet t { chain c { type filter hook input priority 0; ${refuse}; }; }\n`;
    await outside.finish(["nft", "-f", "-"], { input: chain });
    await until("errors about its answers", async () => {
      const counts = await box.run("cat", "/proc/net/snmp", "/proc/net/snmp6");
      const told = /^Icmp: \d+ \d+ \d+ [1-9]/m.test(counts);
      return told && /^Icmp6InDestUnreachs\s+[1-9]/m.test(counts);
    });
    await outside.run("nft", "flush", "ruleset");
    await run(ours, "detach", box.name);
    const other = ["--ip", "10.9.0.70/24", "fd09::70/64", ...publish];
    await run(ours, "attach", neighbour.name, "--network", "blue", ...other);
    await answer(neighbour, 90, "two");
    await hears("two");
  });

  test("a container that died has no port any more", async () => {
    await attach(ours, box, "--publish", "8080:80");
    expect(await rules(ours)).toContain("8080");
    await ours.run("ip", "netns", "del", box.name);
    await until("no such link", async () => {
      return !(await ours.links()).some((link) => /^vt(?!ep)/.test(link));
    });
    await run(ours, "attach", "list");
    expect(await rules(ours)).not.toContain("8080");
  });
});

describe("what was made for it", () => {
  test("goes with the agent, and no other rule is touched", async () => {
    const other =
      "table ip other {\n\tchain forward {\n\t\ttype filter hook forward priority filter; policy accept;\n\t\ttcp dport 22 counter packets 0 bytes 0\n\t}\n}\n";
    await ours.finish(["nft", "-f", "-"], { input: other });
    await attach(ours, box, "--publish", "8080:80");
    expect(await rules(ours)).toContain(`table inet vtep_${ours.address}_4789`);
    await run(ours, "detach", box.name);
    await vteps[0]!.stop();
    expect(await rules(ours)).toBe(other);
    expect(await ours.links()).not.toContain("br0");
    await ours.run("nft", "flush", "ruleset");
  });

  test("is taken from a bridge that stays", async () => {
    await vteps[0]!.stop();
    await ours.ip("link add br0 type bridge", "link set br0 address 02:00:00:00:00:99 up");
    await ours.ip("addr add 192.0.2.9/24 dev br0");
    const vtep = await start(ours, theirs.address);
    const shown = async () => JSON.parse(await ours.run("ip", "-json", "addr", "show", "br0"))[0];
    const addresses = async () =>
      (await shown()).addr_info.map(({ local }: { local: string }) => local);
    expect(await shown()).toMatchObject({ address: GATEWAY_MAC });
    expect(await addresses()).toEqual(expect.arrayContaining(["192.0.2.9", "10.9.0.1", "fd09::1"]));
    const another = theirs.address.replace(/\d+$/, "77");
    await new Client(vtep.socket).putPeer("blue", another); // all of it is gone through again
    await ours.ip("addr del 10.9.0.1/24 dev br0"); // which keeps nothing else from going
    await vtep.stop();
    expect(await shown()).toMatchObject({ address: "02:00:00:00:00:99" });
    expect((await addresses()).filter((each: string) => !each.startsWith("fe80"))).toEqual([
      "192.0.2.9",
    ]);
    await ours.ip("link del br0");
  });

  test("leaves no bridge the MAC of gateways, though an agent that was killed left that", async () => {
    await vteps[0]!.stop();
    await ours.ip(`link add br0 address ${GATEWAY_MAC} type bridge`, "link set br0 up");
    await (await start(ours, theirs.address)).stop();
    const [bridge] = JSON.parse(await ours.run("ip", "-json", "link", "show", "br0"));
    expect(bridge.address).toMatch(/^02:/);
    expect(bridge.address).not.toBe(GATEWAY_MAC);
    await ours.ip("link del br0");
  });

  test("is there again when the bridge was deleted with the TAP", async () => {
    await ours.ip("link del br0", "link del vtep42");
    const [vtep] = vteps;
    await until("a new TAP", () => vtep!.log.some(({ msg }) => msg === "the TAP is there again"));
    const [bridge] = JSON.parse(await ours.run("ip", "-json", "addr", "show", "br0"));
    expect(bridge.address).toBe(GATEWAY_MAC);
    const addresses = bridge.addr_info.map(({ local }: { local: string }) => local);
    expect(addresses).toEqual(expect.arrayContaining(["10.9.0.1", "fd09::1"]));
  });

  test("is there for what is attached while the TAP cannot be had again, until nobody wants it", async () => {
    using other = shim(REFUSING);
    const armed = join(other.directory, "armed");
    await vteps[0]!.stop();
    const words = ["--vni", "43", "--name", "red", "--peer", theirs.address, "--bridge", "br1"];
    const vtep = await ours.vtepBy(["env", other.path], ...words).ready();
    vteps = [vtep, vteps[1]!];
    const client = new Client(vtep.socket);
    const blue = { vni: 42, peers: [theirs.address], bridge: "br0" };
    const gateway = { gateway: GATEWAY, masquerade: true, ranges: ["10.9.0.64-10.9.0.65/24"] };
    await client.putNetwork("blue", { ...blue, ...gateway });
    await attach(ours, box, "--publish", "8080:80");
    await serve(box, 80, "web");
    const attached = await client.attachments();
    expect(attached).toHaveLength(1);
    await writeFile(armed, "");
    await ours.ip("link del vtep42");
    await until("what is gone", async () => (await client.status()).gone.length > 0);
    expect(await client.attachments()).toEqual(attached);
    await rm(armed);
    await client.putPeer("red", "192.0.2.9"); // all of it is gone through again
    await writeFile(armed, "");
    await expect(client.putNetwork("blue", { ...blue, ...gateway })).rejects.toThrow();
    expect((await client.status()).gone).toMatchObject([{ name: "blue" }]);
    expect(await client.attachments()).toEqual(attached);
    await reach(box, ELSEWHERE[0]);
    expect(await call(outside, "203.0.113.1", 8080)).toBe("web");
    expect(vtep.log.filter(({ msg }) => /leaving the bridge/.test(msg))).toEqual([]);
    await rm(armed);
    await client.removeNetwork("blue");
    expect(await client.attachments()).toEqual([]);
    expect(await isSilent(box, "10.9.0.1")).toBe(true);
    expect(await rules(ours)).toBe("");
  });

  test("changes with its network", async () => {
    await attach(ours, box);
    const put = async (...more: string[]) => {
      const same = ["--vni", "42", "--name", "blue", "--peer", theirs.address, "--bridge", "br0"];
      expect(await run(ours, "network", "add", ...same, ...more)).toMatchObject({
        code: 0,
      });
    };
    await ours.sysctl({ "ipv6/conf/all/forwarding": 0 });
    await put("--gateway", "10.9.0.2/24", "fd09::2/64", "--masquerade");
    expect(await ours.run("cat", "/proc/sys/net/ipv6/conf/all/forwarding")).toBe("1\n");
    await box.ip("route replace default via 10.9.0.2");
    await reach(box, ELSEWHERE[0]);
    expect(await isSilent(box, "10.9.0.1")).toBe(true);
    await put();
    expect(await isSilent(box, "10.9.0.2")).toBe(true);
    expect(await rules(ours)).toBe("");
    const [network] = JSON.parse((await run(ours, "network", "list", "--json")).stdout);
    expect(network.mac).not.toBe(GATEWAY_MAC);
    const [tap] = JSON.parse(await ours.run("ip", "-json", "link", "show", network.tap));
    expect(tap.address).toBe(network.mac);
  });

  test("of IPv4 alone lets no container become the router of its host for IPv6", async () => {
    await ours.sysctl({ "ipv6/conf/br0/accept_ra": 1 });
    const same = ["--vni", "42", "--name", "blue", "--peer", theirs.address, "--bridge", "br0"];
    expect(await run(ours, "network", "add", ...same, "--gateway", "10.9.0.2/24")).toMatchObject({
      code: 0,
    });
    expect(await ours.run("cat", "/proc/sys/net/ipv6/conf/br0/accept_ra")).toBe("0\n");
    expect(await run(ours, "network", "add", ...same)).toMatchObject({ code: 0 });
  });
});

describe("a host that forwards from now on", () => {
  const slaac =
    "addr add 2001:db8:204::1/64 dev uplink mngtmpaddr valid_lft 1800 preferred_lft 900";
  const route = "route add default via 2001:db8:203::2 dev uplink proto ra";
  test.each([
    ["routers whose route it has", "1", "2", route],
    ["routers that gave it an address and no route", "1", "2", slaac],
    ["none where it never has", "1", "1", ""],
    ["none where a program hears them in its place", "0", "0", route],
  ])("hears %s", async (_, before, after, heard) => {
    const setting = "ipv6/conf/uplink/accept_ra";
    await ours.sysctl({ "ipv6/conf/all/forwarding": 0, [setting]: before });
    if (heard !== "") await ours.ip(heard);
    const same = ["--vni", "42", "--name", "blue", "--peer", theirs.address, "--bridge", "br0"];
    const put = await run(ours, "network", "add", ...same, "--gateway", "fd09::2/64");
    expect(put).toMatchObject({ code: 0 });
    expect(await ours.run("cat", "/proc/sys/net/ipv6/conf/all/forwarding")).toBe("1\n");
    expect(await ours.run("cat", `/proc/sys/net/${setting}`)).toBe(`${after}\n`);
    expect(await run(ours, "network", "add", ...same)).toMatchObject({ code: 0 });
  });
});

describe("what cannot be is refused:", () => {
  test.each([
    [
      "the gateway's address",
      ["--ip", "10.9.0.1/24"],
      1,
      /10\.9\.0\.1 is the gateway of network blue/,
    ],
    ["the gateway's MAC", ["--mac", GATEWAY_MAC], 1, /is the MAC of the gateway of network blue/],
    [
      "an address outside",
      ["--ip", "10.7.0.5/24"],
      2,
      /10\.7\.0\.5\/24 is in no subnet of network blue/,
    ],
    [
      "the VTEP's own port",
      ["--publish", "4789:80/udp"],
      1,
      /4789\/udp is in use .* by the VTEP itself/,
    ],
    [
      "a port that is listened at",
      ["--publish", "[fd09::1]:7070:80"],
      1,
      /port \[fd09::1\]:7070\/tcp is in use on this host/,
    ],
    ["a port twice", ["--publish", "80:80", "80:81"], 2, /port 80\/tcp is published twice/],
    [
      "a port of this host alone",
      ["--publish", "127.0.0.1:80:80"],
      2,
      /publishes to this host alone/,
    ],
    ["no port", ["--publish", "80"], 2, /publishes no port: give/],
  ])("%s", async (_, options, code, message) => {
    const server = await serve(ours, 7070, "host");
    const words = ["attach", box.name, "--network", "blue"];
    const own = options.includes("--ip") ? [] : ["--ip", "auto"];
    const found = await run(ours, ...words, ...own, ...options);
    expect([found.code, found.stderr]).toEqual([code, expect.stringMatching(message)]);
    server.kill();
    expect(JSON.parse((await run(ours, "attach", "list", "--json")).stdout)).toEqual([]);
  });
});

describe("addresses of a range", () => {
  test("are given once each, and are refused when there are none", async () => {
    const both = await Promise.all([attach(ours, box), attach(ours, neighbour)]);
    expect(both.sort()).toEqual(["10.9.0.64", "10.9.0.65"]);
    const third = [
      "attach",
      box.name,
      "--network",
      "blue",
      "--ifname",
      "eth1",
      "--ip",
      "auto",
      "--gateway",
      "none",
    ];
    expect(await run(ours, ...third)).toMatchObject({
      code: 1,
      stderr:
        "vtep: every address of 10.9.0.64-10.9.0.65/24 is used: detach something, or widen it\n",
    });
    const words = ["attach", box.name, "--network", "blue", "--ip", "auto"];
    expect((await run(ours, ...words)).stdout).toContain("is in network blue already");
    await run(ours, "detach", neighbour.name);
    expect(await run(ours, ...third)).toMatchObject({ code: 0 });
  });
});
