/** The CNI plugin: driven as the specification says, with Debian's IPAM plugins, and by podman. */
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeEach, describe, expect, test } from "vitest";
import { Client } from "../../src/api/client.ts";
import { Lab } from "../lab/lab.ts";
import { type Child, create, Namespace } from "../lab/namespace.ts";
import { PLUGIN, Podman } from "../lab/podman.ts";
import { reach } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import type { Vtep } from "../lab/vtep.ts";

/** Debian 12's plugins know the specification up to 1.0.0; what 1.1.0 adds, this one takes part in. */
const UP_TO_DATE = `#!/bin/sh
case $CNI_COMMAND in GC|STATUS) cat >/dev/null; touch "$0.$CNI_COMMAND"; exit 0; esac
sed 's/"cniVersion":"1.1.0"/"cniVersion":"1.0.0"/' | /usr/lib/cni/host-local
`;

const lab = await Lab.draw({ hosts: 2 });
const scratch = mkdtempSync(join(tmpdir(), "vtep-cni-"));
writeFileSync(join(scratch, "host-local-1.1"), UP_TO_DATE, { mode: 0o755 });
afterAll(async () => {
  await lab[Symbol.asyncDispose]();
  rmSync(scratch, { recursive: true });
});
const [ours, theirs] = [lab.host(1), lab.host(2)];
const there = await theirs.container();
await theirs.kernelVxlan({ vni: 42, peers: [ours.address] });
const prefix = there.address.replace(/\d+$/, "");
const box = new Namespace(`${ours.name}box`);
ours.guests.push(box);

let vtep: Vtep;
let leases: string;
beforeEach(async () => {
  await create(box);
  leases = mkdtempSync(join(scratch, "leases-"));
  vtep = await start();
});
afterEach(async () => {
  await vtep[Symbol.asyncDispose]();
  await ours.finish(["ip", "netns", "del", box.name]);
  await until("no veth", async () => (await veths()).length === 0);
});

function start(): Promise<Vtep> {
  const network = ["--vni", "42", "--name", "blue", "--peer", theirs.address, "--bridge", "br0"];
  return ours.vtep(...network).ready();
}

async function veths(): Promise<string[]> {
  return (await ours.links()).filter((link) => /^vt[0-9a-f]{12}$/.test(link));
}

/** Addresses that the IPAM plugin has given out and not got back. */
function leased(): string[] {
  const directory = join(leases, "web");
  const names = readdirSync(leases).includes("web") ? readdirSync(directory) : [];
  return names.filter((name) => /^\d+\./.test(name));
}

function configuration(more: Readonly<Record<string, unknown>> = {}) {
  return {
    cniVersion: "1.0.0",
    name: "web",
    type: "vtep-cni",
    network: "blue",
    socket: vtep.socket,
    ipam: {
      type: more.cniVersion === "1.1.0" ? "host-local-1.1" : "host-local",
      dataDir: leases,
      ranges: [[{ subnet: `${prefix}0/24`, rangeStart: `${prefix}190`, gateway: `${prefix}1` }]],
      routes: [{ dst: "0.0.0.0/0" }],
    },
    ...more,
  };
}

const ENVIRONMENT = {
  CNI_CONTAINERID: "0123456789ab",
  CNI_NETNS: `/run/netns/${box.name}`,
  CNI_IFNAME: "eth0",
  CNI_PATH: `${scratch}:/usr/lib/cni`,
};

/** Whether the IPAM plugin was asked for what is new in 1.1.0. */
function wasAsked(command: "GC" | "STATUS"): boolean {
  return existsSync(join(scratch, `host-local-1.1.${command}`));
}

/** A call as a runtime makes it; the answer is that on standard output. */
async function cni(
  command: string,
  input: object | string,
  environment: Partial<Record<keyof typeof ENVIRONMENT | "CNI_ARGS" | "PATH", string>> = {},
) {
  const variables = { ...ENVIRONMENT, CNI_COMMAND: command, ...environment };
  const settings = Object.entries(variables).map(([name, value]) => `${name}=${value}`);
  const text = typeof input === "string" ? input : JSON.stringify(input);
  const done = await ours.finish(["env", ...settings, "node", PLUGIN], { input: text });
  expect(done.stderr).toBe("");
  return { code: done.code, answer: done.stdout === "" ? undefined : JSON.parse(done.stdout) };
}

const DONE = { code: 0, answer: undefined };

test("says which versions it knows", async () => {
  expect(await cni("VERSION", { cniVersion: "0.4.0" })).toEqual({
    code: 0,
    answer: {
      cniVersion: "0.4.0",
      supportedVersions: ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    },
  });
});

describe("a container", () => {
  test.each([
    ["0.4.0", { version: "4" }, {}],
    ["1.0.0", {}, {}],
    ["1.1.0", {}, { mtu: 1450 }],
  ])("is added, checked and deleted by version %s", async (cniVersion, version, size) => {
    const { code, answer } = await cni("ADD", configuration({ cniVersion }));
    const [link] = await veths();
    const [{ address: mac }] = JSON.parse(await box.run("ip", "-j", "link", "show", "eth0"));
    expect([code, answer]).toEqual([
      0,
      {
        cniVersion,
        interfaces: [
          { name: link, ...size },
          { name: "eth0", mac, ...size, sandbox: ENVIRONMENT.CNI_NETNS },
        ],
        ips: [{ ...version, address: `${prefix}190/24`, gateway: `${prefix}1`, interface: 1 }],
        routes: [{ dst: "0.0.0.0/0" }],
        dns: {},
      },
    ]);
    await reach(box, there.address);
    expect(await box.run("ip", "route", "show", "default")).toContain(`via ${prefix}1 dev eth0`);
    expect(leased()).toEqual([`${prefix}190`]);
    expect(await cni("CHECK", configuration({ cniVersion, prevResult: answer }))).toEqual(DONE);
    expect(await cni("DEL", configuration({ cniVersion }))).toEqual(DONE);
    expect([await veths(), leased()]).toEqual([[], []]);
    expect(await cni("DEL", configuration({ cniVersion }))).toEqual(DONE);
  });

  test("is added and deleted by version 0.3.1, which has the result of 0.4.0, and no CHECK", async () => {
    const { code, answer } = await cni("ADD", configuration({ cniVersion: "0.3.1" }));
    const ips = [{ version: "4", address: `${prefix}190/24`, gateway: `${prefix}1`, interface: 1 }];
    expect([code, answer]).toMatchObject([0, { cniVersion: "0.3.1", ips }]);
    expect(await cni("DEL", configuration({ cniVersion: "0.3.1" }))).toEqual(DONE);
    expect([await veths(), leased()]).toEqual([[], []]);
  });

  test.each([
    ["the runtime's capability", { runtimeConfig: { mac: "02:00:00:00:00:61" } }, ""],
    ["conventional arguments", { args: { cni: { mac: "02:00:00:00:00:61" } } }, ""],
    ["CNI_ARGS", {}, "IgnoreUnknown=1;MAC=02:00:00:00:00:61"],
    [
      "CNI_ARGS, beside none",
      { runtimeConfig: { mac: "" } },
      "IgnoreUnknown=1;MAC=02:00:00:00:00:61",
    ],
  ])("has the MAC that is wanted by %s", async (_, more, CNI_ARGS) => {
    const { answer } = await cni("ADD", configuration(more), { CNI_ARGS });
    expect(answer.interfaces[1]).toMatchObject({ mac: "02:00:00:00:00:61" });
    expect(await cni("DEL", configuration(more), { CNI_ARGS })).toEqual(DONE);
  });

  test("has a fixed address of another IPAM plugin, and an MTU", async () => {
    const ipam = { type: "static", addresses: [{ address: `${prefix}222/24` }] };
    const { answer } = await cni("ADD", configuration({ ipam, mtu: 1300 }));
    expect(answer.ips).toMatchObject([{ address: `${prefix}222/24` }]);
    expect(await box.run("ip", "link", "show", "eth0")).toContain("mtu 1300");
    await reach(there, `${prefix}222`);
    expect(await cni("DEL", configuration({ ipam }))).toEqual(DONE);
  });

  test("has routes as an IPAM plugin wants them: in which table, with which metric and MTU", async () => {
    const routes = [
      { dst: "0.0.0.0/0", priority: 100, mtu: 1400, advmss: 1300 },
      { dst: "203.0.113.0/24", gw: `${prefix}2`, table: 77 },
      { dst: "198.51.100.7/32", scope: 253 },
    ];
    const given = { ips: [{ address: `${prefix}200/24`, gateway: `${prefix}1` }], routes };
    const script = `#!/bin/sh\ncat >/dev/null\necho '${JSON.stringify(given)}'\n`;
    writeFileSync(join(scratch, "routing"), script, { mode: 0o755 });
    const routing = configuration({ ipam: { type: "routing" } });
    const { answer } = await cni("ADD", routing);
    expect(answer.routes).toEqual(routes);
    const shown = async (...which: string[]) =>
      (await box.run("ip", "route", "show", ...which)).split(" \n").filter(Boolean);
    expect(await shown()).toEqual([
      `default via ${prefix}1 dev eth0 metric 100 mtu 1400 advmss 1300`,
      expect.stringContaining(`${prefix}0/24 dev eth0 proto kernel`),
      "198.51.100.7 dev eth0 scope link",
    ]);
    expect(await shown("table", "77")).toEqual([`203.0.113.0/24 via ${prefix}2 dev eth0`]);
    expect(await cni("CHECK", { ...routing, prevResult: answer })).toEqual(DONE);
    await box.run("ip", "route", "flush", "table", "77");
    expect(await cni("CHECK", { ...routing, prevResult: answer })).toMatchObject({
      code: 1,
      answer: { msg: "the route to 203.0.113.0/24 over eth0 is gone" },
    });
    await cni("DEL", routing);
  });

  test("has addresses and routes of IPv6 alone, however they are spelt", async () => {
    const addresses = [{ address: "FD07:0:0::0222/64", gateway: "FD07:0::0:1" }];
    const routes = [
      { dst: "::/0" },
      { dst: "2001:DB8:9:0::7/64" },
      { dst: "2001:DB8::0:9/128", gw: "FD07::0:2" },
    ];
    const alone = configuration({ ipam: { type: "static", addresses, routes } });
    const { answer } = await cni("ADD", alone);
    expect(answer.ips).toMatchObject([{ address: "fd07::222/64", gateway: "fd07::1" }]);
    expect(await cni("CHECK", { ...alone, prevResult: answer })).toEqual(DONE);
    await box.ip("route del 2001:db8:9::/64");
    expect(await cni("CHECK", { ...alone, prevResult: answer })).toMatchObject({
      answer: { msg: "the route to 2001:db8:9::7/64 over eth0 is gone" },
    });
    expect(await cni("DEL", alone)).toEqual(DONE);
  });

  test("has addresses of both families, of use at once, and a default route of each", async () => {
    const addresses = [
      { address: `${prefix}222/24`, gateway: `${prefix}1` },
      { address: "fd07::222/64", gateway: "fd07::1" },
    ];
    const routes = [{ dst: "::/0" }, { dst: "0.0.0.0/0" }];
    const both = configuration({
      cniVersion: "0.4.0",
      ipam: { type: "static", addresses, routes },
    });
    await box.sysctl({ "ipv6/conf/*/accept_dad": 1, "ipv6/conf/*/dad_transmits": 30 }); // seconds
    const { answer } = await cni("ADD", both);
    expect(await box.run("ip", "-6", "addr", "show", "to", "fd07::/64", "tentative")).toBe("");
    expect(answer.ips).toMatchObject([
      { version: "4", ...addresses[0] },
      { version: "6", ...addresses[1] },
    ]);
    expect(await box.run("ip", "route", "show", "default")).toContain(`via ${prefix}1`);
    expect(await box.run("ip", "-6", "route", "show", "default")).toContain("via fd07::1");
    expect(await cni("CHECK", { ...both, prevResult: answer })).toEqual(DONE);
    expect(await cni("DEL", both)).toEqual(DONE);
  });

  test("needs no IPAM plugin, nor a name of the network beside that of the configuration", async () => {
    const alone = configuration({ name: "blue", network: undefined, ipam: undefined });
    const { code, answer } = await cni("ADD", alone);
    expect([code, answer]).toMatchObject([0, { interfaces: [{}, { name: "eth0" }], ips: [] }]);
    await box.ip(`addr add ${prefix}222/24 dev eth0`);
    await reach(box, there.address);
    expect(await cni("CHECK", { ...alone, prevResult: answer })).toEqual(DONE);
    expect(await cni("DEL", alone)).toEqual(DONE);
  });

  test("is added once: a second time is refused, and changes nothing", async () => {
    await cni("ADD", configuration());
    const again = await cni("ADD", configuration());
    expect(again).toMatchObject({
      code: 1,
      answer: { code: 100, msg: expect.stringMatching(/added to this container/) },
    });
    expect([(await veths()).length, leased()]).toEqual([1, [`${prefix}190`]]);
    await reach(box, there.address);
    await cni("DEL", configuration());
  });

  test("is deleted without its namespace, without the agent, and after both", async () => {
    await cni("ADD", configuration());
    await ours.run("ip", "netns", "del", box.name);
    expect(await cni("DEL", configuration(), { CNI_NETNS: "" })).toEqual(DONE);
    expect(leased()).toEqual([]);
    await create(box);
    await cni("ADD", configuration());
    await vtep.stop();
    expect(await cni("DEL", configuration())).toEqual(DONE);
    expect([await veths(), leased()]).toEqual([[], []]);
  });

  test("is not as it was: CHECK says what is different", async () => {
    const { answer } = await cni("ADD", configuration());
    const check = () => cni("CHECK", configuration({ prevResult: answer }));
    await box.run("ip", "addr", "flush", "dev", "eth0");
    expect(await check()).toMatchObject({
      code: 1,
      answer: { msg: expect.stringMatching(/has not the address/) },
    });
    await box.run("ip", "addr", "add", `${prefix}190/24`, "dev", "eth0");
    expect(await check()).toMatchObject({
      code: 1,
      answer: { msg: "the route to 0.0.0.0/0 over eth0 is gone" },
    });
    await box.run("ip", "route", "add", "default", "via", answer.ips[0].gateway, "dev", "eth0");
    await box.run("ip", "link", "set", "eth0", "mtu", "1300"); // as the plugin "tuning" does
    expect(await check()).toEqual(DONE);
    await box.run("ip", "link", "set", "eth0", "mtu", "1451");
    expect(await check()).toMatchObject({
      code: 1,
      answer: { msg: "eth0 has the MTU 1451, and is to have 1450" },
    });
    await box.run("ip", "link", "set", "eth0", "mtu", "1450");
    await box.run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:62");
    expect(await check()).toMatchObject({
      code: 1,
      answer: { msg: expect.stringMatching(/has the MAC 02:00:00:00:00:62/) },
    });
    const upper = structuredClone(answer);
    upper.interfaces[1].mac = "02:00:00:00:00:62".toUpperCase();
    expect(await cni("CHECK", configuration({ prevResult: upper }))).toEqual(DONE);
    await box.run("ip", "link", "set", "eth0", "down");
    expect(await cni("CHECK", configuration({ prevResult: upper }))).toMatchObject({
      code: 1,
      answer: { msg: "eth0 is down" },
    });
    for (const wrong of ["x", { ips: {} }, { interfaces: [null] }]) {
      const found = await cni("CHECK", configuration({ prevResult: wrong }));
      expect(found).toMatchObject({ code: 1, answer: { code: 7 } });
    }
    const [link] = await veths();
    await ours.run("ip", "link", "set", link!, "nomaster");
    expect(await check()).toMatchObject({
      code: 1,
      answer: { msg: expect.stringMatching(/is a port of no bridge/) },
    });
    await ours.run("ip", "link", "del", link!);
    expect(await check()).toMatchObject({ code: 1, answer: { code: 3 } });
    rmSync(join(leases, "web", `${prefix}190`));
    expect(await check()).toMatchObject({
      code: 1,
      answer: { msg: expect.stringMatching(/^host-local CHECK: /) },
    });
    await cni("DEL", configuration());
  });
});

test("attachments that the runtime does not know any more are collected, and no others", async () => {
  const kept = new Namespace(`${ours.name}kept`);
  ours.guests.push(kept);
  await create(kept);
  const mine = { CNI_CONTAINERID: "kept", CNI_NETNS: `/run/netns/${kept.name}` };
  const latest = { cniVersion: "1.1.0" };
  await cni("ADD", configuration(latest));
  await cni("ADD", configuration(latest), mine);
  const another = configuration({ name: "another", ipam: undefined });
  const others = { CNI_IFNAME: "eth1" };
  expect(await cni("ADD", another, others)).toMatchObject({ code: 0 });
  const valid = [{ containerID: "kept", ifname: "eth0" }];
  expect(await cni("GC", configuration({ ...latest, "cni.dev/valid-attachments": valid }))).toEqual(
    DONE,
  );
  expect(wasAsked("GC")).toBe(true);
  expect(await veths()).toHaveLength(2);
  await reach(kept, there.address);
  expect(await box.run("ip", "-br", "link")).not.toContain("eth0");
  await cni("DEL", another, others);
  await cni("DEL", configuration(), mine);
  await ours.run("ip", "netns", "del", kept.name);
});

test("a list of attachments that is none collects nothing", async () => {
  const latest = { cniVersion: "1.1.0" };
  await cni("ADD", configuration(latest));
  for (const valid of [[null], [{}], ["x"], [{ containerID: 5, ifname: "eth0" }], {}]) {
    const found = await cni("GC", configuration({ ...latest, "cni.dev/valid-attachments": valid }));
    expect(found).toMatchObject({ code: 1, answer: { code: 7 } });
  }
  expect(await veths()).toHaveLength(1);
  await cni("DEL", configuration(latest));
});

test("DEL removes the link also when the IPAM plugin fails, and tells of that", async () => {
  const failing = join(scratch, "failing");
  const answers = `#!/bin/sh
[ $CNI_COMMAND = DEL ] || exec sed 's/.*/{"ips":[{"address":"${prefix}240\\/24"}]}/'
echo '{"code":11,"msg":"no"}'; exit 1
`;
  writeFileSync(failing, answers, { mode: 0o755 });
  const ipam = { type: "failing" };
  expect(await cni("ADD", configuration({ ipam }))).toMatchObject({ code: 0 });
  expect(await cni("DEL", configuration({ ipam }))).toMatchObject({
    code: 1,
    answer: { code: 11, msg: "failing DEL: no" },
  });
  expect(await veths()).toEqual([]);
});

test("STATUS tells whether a container could be added", async () => {
  const latest = { cniVersion: "1.1.0" };
  expect(await cni("STATUS", configuration(latest))).toEqual(DONE);
  expect(wasAsked("STATUS")).toBe(true);
  expect(await cni("STATUS", configuration({ ...latest, network: "red" }))).toMatchObject({
    code: 1,
    answer: {
      cniVersion: "1.1.0",
      code: 50,
      msg: expect.stringMatching(/there is no network "red"/),
    },
  });
  await new Client(vtep.socket).putNetwork("green", { vni: 43, peers: [theirs.address] });
  expect(await cni("STATUS", configuration({ ...latest, network: "green" }))).toMatchObject({
    code: 1,
    answer: { code: 50, msg: expect.stringMatching(/network green has no bridge/) },
  });
  await vtep.stop();
  expect(await cni("STATUS", configuration(latest))).toMatchObject({
    code: 1,
    answer: { code: 50 },
  });
});

describe.each([
  ["garbage", "echo hello", /its answer is no JSON object/],
  ["nothing", "true", /gave no address/],
  ["another shape", `echo '{"ips":{}}'`, /has not the shape of a result/],
])("an IPAM plugin that answers %s", (_, answer, message) => {
  test("adds nothing", async () => {
    const script = `#!/bin/sh\ncat >/dev/null\n${answer}\n`;
    writeFileSync(join(scratch, "strange"), script, { mode: 0o755 });
    const found = await cni("ADD", configuration({ ipam: { type: "strange" } }));
    expect([found.code, found.answer.msg]).toEqual([1, expect.stringMatching(message)]);
    expect(await veths()).toEqual([]);
  });
});

describe("what cannot be added is refused with a code, and leaves no link and no lease", () => {
  const host = "/proc/self/ns/net";
  test.each<[string, () => object | string, object, number, RegExp]>([
    ["no JSON", () => "{", {}, 6, /is no JSON object/],
    ["a version unknown", () => configuration({ cniVersion: "0.2.0" }), {}, 1, /use one of 0.3.0/],
    ["a network unknown", () => configuration({ network: "red" }), {}, 7, /no network "red"/],
    ["no name", () => configuration({ name: undefined }), {}, 7, /^name must be/],
    [
      "an MTU too large",
      () => configuration({ mtu: 9000 }),
      {},
      7,
      /MTU 9000 is more than the 1450/,
    ],
    [
      "an IPAM plugin that is not there",
      () => configuration({ ipam: { type: "x" } }),
      {},
      7,
      /CNI_PATH/,
    ],
    [
      "no container",
      () => configuration(),
      { CNI_CONTAINERID: "" },
      4,
      /CNI_CONTAINERID is not set/,
    ],
    ["no interface", () => configuration(), { CNI_IFNAME: "" }, 4, /CNI_IFNAME is not set/],
    [
      "a name too long",
      () => configuration(),
      { CNI_IFNAME: "abcdefghijklmnop" },
      4,
      /cannot name an interface/,
    ],
    [
      "a namespace that is gone",
      () => configuration(),
      { CNI_NETNS: "/run/netns/no" },
      4,
      /is not there/,
    ],
    [
      "a file that was a namespace",
      () => configuration(),
      { CNI_NETNS: "/etc/hostname" },
      4,
      /is no network namespace, or one no more/,
    ],
    ["the host's namespace", () => configuration(), { CNI_NETNS: host }, 4, /the host's own/],
    [
      "no address left",
      () => {
        const range = { subnet: `${prefix}0/24`, rangeStart: `${prefix}9`, rangeEnd: `${prefix}9` };
        const used = { type: "host-local", dataDir: leases, ranges: [[range]] };
        mkdirSync(join(leases, "web"));
        writeFileSync(join(leases, "web", `${prefix}9`), "somebody");
        return configuration({ ipam: used });
      },
      {},
      999,
      /host-local ADD: .*no IP addresses available/,
    ],
  ])("%s", async (_, input, environment, code, message) => {
    const given = input();
    const before = leased();
    const found = await cni("ADD", given, environment);
    expect([found.code, found.answer.code]).toEqual([1, code]);
    expect(found.answer.msg).toMatch(message);
    expect([await veths(), leased()]).toEqual([[], before]);
  });

  test("an agent that is away: try again later", async () => {
    await vtep.stop();
    expect(await cni("ADD", configuration())).toMatchObject({
      code: 1,
      answer: {
        code: 11,
        msg: expect.stringMatching(/, or name its socket with the key "socket"$/),
      },
    });
    expect([await veths(), leased()]).toEqual([[], []]);
  });

  test("an interface that is taken", async () => {
    await box.run("ip", "link", "add", "eth0", "type", "bridge");
    expect(await cni("ADD", configuration())).toMatchObject({ code: 1, answer: { code: 100 } });
    expect([await veths(), leased()]).toEqual([[], []]);
  });
});

test("fifty containers at once are all added, and deleted", async () => {
  const boxes = Array.from({ length: 50 }, (_, at) => new Namespace(`${ours.name}b${at}`));
  ours.guests.push(...boxes);
  await create(...boxes);
  const each = (command: string) =>
    Promise.all(
      boxes.map(({ name }) =>
        cni(command, configuration(), { CNI_CONTAINERID: name, CNI_NETNS: `/run/netns/${name}` }),
      ),
    );
  const added = await each("ADD");
  expect(added.filter(({ code }) => code !== 0)).toEqual([]);
  const addresses = new Set(added.map(({ answer }) => answer.ips[0].address));
  expect(addresses.size).toBe(boxes.length);
  await reach(boxes[0]!, there.address);
  await reach(boxes[49]!, there.address);
  expect((await each("DEL")).filter(({ code }) => code !== 0)).toEqual([]);
  expect([await veths(), leased()]).toEqual([[], []]);
  for (const { name } of boxes) await ours.run("ip", "netns", "del", name);
}, 120_000);

test("an address that a server gives to two containers at once is not both's", async () => {
  const other = new Namespace(`${ours.name}other`);
  ours.guests.push(other);
  await create(other);
  const directory = mkdtempSync(join(scratch, "bin-"));
  const given = JSON.stringify({ cniVersion: "1.0.0", ips: [{ address: `${prefix}200/24` }] });
  const programs = {
    dhcp: `case $CNI_COMMAND in ADD) echo '${given}';; esac`,
    ip: `case "$*" in "-batch -") sleep 1;; esac; PATH=\${PATH#*:} exec ip "$@"`, // both begin before one ends
  };
  for (const [name, script] of Object.entries(programs)) {
    writeFileSync(join(directory, name), `#!/bin/sh\n${script}`, { mode: 0o755 });
  }
  const slowly = { CNI_PATH: directory, PATH: `${directory}:${process.env.PATH}` };
  const asking = configuration({ ipam: { type: "dhcp" } });
  const added = await Promise.all(
    [box, other].map(({ name }) =>
      cni("ADD", asking, { ...slowly, CNI_CONTAINERID: name, CNI_NETNS: `/run/netns/${name}` }),
    ),
  );
  const left = await veths();
  await ours.finish(["ip", "netns", "del", other.name]);
  const refused = added.filter(({ code }) => code !== 0);
  expect(refused[0]?.answer.msg).toContain(`${prefix}200 is used already, by eth0 of `);
  expect(left).toHaveLength(2 - refused.length);
}, 60_000);

describe("an address that is asked for by the interface, with DHCP,", () => {
  const LEASE = 240;
  let daemon: Child;
  let server: Child;
  let socket: string;
  beforeEach(async () => {
    const settings = join(scratch, "udhcpd.conf");
    writeFileSync(join(scratch, "leases"), "");
    const range = [`start ${prefix}${LEASE}`, `end ${prefix}${LEASE}`, "interface eth0"];
    const options = ["option subnet 255.255.255.0", `option router ${prefix}1`];
    const files = [`lease_file ${join(scratch, "leases")}`, `pidfile ${join(scratch, "pid")}`];
    writeFileSync(settings, `${[...range, ...options, ...files].join("\n")}\n`);
    server = there.spawn("busybox", "udhcpd", "-f", settings);
    socket = join(scratch, "dhcp.sock");
    daemon = ours.spawn("/usr/lib/cni/dhcp", "daemon", "-socketpath", socket);
    for (const { stdout, stderr } of [server, daemon])
      for (const out of [stdout, stderr]) out.resume();
    await until("the daemon", () => existsSync(socket));
  });
  afterEach(async () => {
    for (const child of [server, daemon]) child.kill();
    const isOver = ({ exitCode, signalCode }: Child) => (exitCode ?? signalCode) !== null;
    await until("their end", () => [server, daemon].every(isOver));
    rmSync(socket, { force: true });
  });
  const dhcp = () => configuration({ ipam: { type: "dhcp", daemonSocketPath: socket } });

  test("is the container's, until it is deleted", async () => {
    const { answer } = await cni("ADD", dhcp());
    expect(answer.ips).toMatchObject([{ address: `${prefix}${LEASE}/24`, gateway: `${prefix}1` }]);
    await reach(there, `${prefix}${LEASE}`);
    expect(await cni("CHECK", { ...dhcp(), prevResult: answer })).toEqual(DONE);
    expect(await cni("DEL", dhcp())).toEqual(DONE);
    expect(await veths()).toEqual([]);
  }, 30_000);

  test("is not had without its daemon, and nothing is left", async () => {
    daemon.kill();
    await until("its end", () => daemon.signalCode !== null);
    const { code, answer } = await cni("ADD", dhcp());
    expect([code, answer.msg]).toEqual([1, expect.stringMatching(/^dhcp ADD: /)]);
    expect(await veths()).toEqual([]);
  });
});

test("podman's containers reach a kernel VXLAN host, are resolved, and leave nothing", async () => {
  const plugin = { ...configuration(), capabilities: { mac: true, ips: true } };
  const portmap = { type: "portmap", capabilities: { portMappings: true } };
  await using podman = await Podman.start(ours, [plugin, portmap]);
  const sleeping = ["box", "/bin/busybox", "sleep", "300"];
  const mac = "02:00:00:00:00:63";
  await podman.done("run", "-d", "--name", "one", "--mac-address", mac, ...sleeping);
  await podman.done("run", "-d", "--name", "two", "--ip", `${prefix}230`, ...sleeping);
  await reach(there, `${prefix}190`);
  await reach(there, `${prefix}230`);
  const inside = (...words: string[]) => podman.done("exec", "one", "/bin/busybox", ...words);
  expect(await inside("ping", "-c", "2", there.address)).toContain("2 packets received");
  expect(await inside("ping", "-c", "2", `${prefix}230`)).toContain("2 packets received");
  const link = await inside("ip", "link", "show", "eth0");
  expect(link).toContain("mtu 1450");
  expect(link).toContain(mac);
  await podman.done("rm", "--all", "--force", "--time", "0");
  expect([await veths(), leased()]).toEqual([[], []]);
}, 120_000);
