import { readdirSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeEach, describe, expect, onTestFinished, test } from "vitest";
import { Client } from "../../src/api/client.ts";
import type { KernelVxlan } from "../lab/host.ts";
import { Lab } from "../lab/lab.ts";
import { shim } from "../lab/shim.ts";
import { isSilent, reach, transferTcp, transferUdp } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import type { LogLine, Vtep } from "../lab/vtep.ts";

const lab = await Lab.draw({ hosts: 2 });
const directory = await mkdtemp(join(tmpdir(), "vtep-reload-"));
afterAll(async () => {
  await lab[Symbol.asyncDispose]();
  await rm(directory, { recursive: true });
});
const [ours, theirs] = [lab.host(1), lab.host(2)];
const here = await ours.container();
const there = await theirs.container();
const blue = { bridge: "blue", number: 7 };
const [blueHere, blueThere] = [
  await ours.container(blue),
  await theirs.container({ ...blue, number: 8 }),
];

const RED = { vni: 42, bridge: "br0", peers: [theirs.address] };
const BLUE = { vni: 43, bridge: "blue", peers: [theirs.address] };
const file = join(directory, "vtep.yaml");

function write(...networks: object[]): Promise<void> {
  return writeFile(file, JSON.stringify({ networks })); // which is YAML too
}

let vtep: Vtep;
let kernel: KernelVxlan[];
beforeEach(async () => {
  kernel = [
    await theirs.kernelVxlan({ vni: 42, peers: [ours.address] }),
    await theirs.kernelVxlan({ vni: 43, peers: [ours.address], bridge: "blue", device: "vx43" }),
  ];
  await write(RED);
  vtep = await ours.vtep("--config", file).ready();
  await reach(here, there.address);
});
afterEach(async () => {
  await vtep[Symbol.asyncDispose]();
  for (const device of kernel) await device[Symbol.asyncDispose]();
});

/** Reads the file again; returns what the log says of it. */
async function reload(): Promise<LogLine> {
  const before = vtep.log.length;
  process.kill(vtep.pid, "SIGHUP");
  const said = () =>
    vtep.log.slice(before).find(({ msg }) => msg === "reloaded" || msg === "nothing was changed");
  return until("an answer to SIGHUP", said);
}

const NOTHING = { added: [], changed: [], removed: [], restart: [] };

describe("a file that is read again", () => {
  test("adds networks and removes them, while the others go on", async () => {
    await write(RED, BLUE);
    expect(await reload()).toMatchObject({ ...NOTHING, added: ["vtep43"] });
    await reach(blueHere, blueThere.address);
    await write(BLUE);
    expect(await reload()).toMatchObject({ ...NOTHING, removed: ["vtep42"] });
    expect(await isSilent(here, there.address)).toBe(true);
    await reach(blueHere, blueThere.address);
    expect(await ours.links()).not.toContain("vtep42");
    expect((await vtep.status()).networks.map(({ vni }) => vni)).toEqual([43]);
  });

  test("changes what a network may be changed in, and keeps the rest of it", async () => {
    const { counters } = (await vtep.status()).networks[0]!;
    await write({
      ...RED,
      mtu: 1300,
      age: 60,
      "fdb-limit": 1,
      fdb: { "02:00:00:00:00:63": theirs.address },
    });
    expect(await reload()).toMatchObject({ ...NOTHING, changed: ["vtep42"] });
    const { networks } = await vtep.status();
    expect(networks[0]).toMatchObject({ mtu: 1300 });
    expect(networks[0]!.counters.encapFrames).toBeGreaterThanOrEqual(counters.encapFrames);
    expect(networks[0]!.fdb.filter(({ origin }) => origin === "learned").length).toBeLessThan(2);
    expect(await vtep.remoteOf("02:00:00:00:00:63")).toBe(theirs.address);
    const [{ mtu }] = JSON.parse(await ours.run("ip", "-json", "link", "show", "vtep42"));
    expect(mtu).toBe(1300);
    await write(RED);
    await reload();
    expect(await vtep.remoteOf("02:00:00:00:00:63")).toBeUndefined();
    await reach(here, there.address);
  });

  test("leaves a TAP in the bridge that somebody else has put it into", async () => {
    const { bridge, ...alone } = RED;
    await write(alone);
    await reload();
    expect(await isSilent(here, there.address)).toBe(true);
    await ours.ip(`link set vtep42 master ${bridge}`);
    await reach(here, there.address);
    await write({ ...alone, mtu: 1400 });
    expect(await reload()).toMatchObject({ ...NOTHING, changed: ["vtep42"] });
    await reach(here, there.address);
  });

  test.each([
    ["was removed", "link del green"],
    ["it was taken out of", "link set vtep43 nomaster"],
  ])("has a TAP in its bridge again that %s, and of others nothing", async (_, done) => {
    const green = { ...BLUE, bridge: "green" };
    await write(RED, green);
    await reload();
    await ours.ip(done);
    expect(await reload()).toMatchObject({ ...NOTHING, changed: ["vtep43"] });
    const [link] = JSON.parse(await ours.run("ip", "-json", "link", "show", "vtep43"));
    expect(link).toMatchObject({ master: "green", operstate: "UNKNOWN" });
    expect(await reload()).toMatchObject(NOTHING);
  });

  test("gives a network the MTU of an underlay that has grown since the start, and all of it crosses", async () => {
    const mtu = 8950;
    const underlay = (bytes: number) => {
      return Promise.all([ours, theirs].map((host) => host.ip(`link set eth0 mtu ${bytes}`)));
    };
    await underlay(9000);
    onTestFinished(() => underlay(1500).then(() => undefined));
    await theirs.ip(`link set vx42 mtu ${mtu}`);
    const near = await ours.container({ mtu, number: 9 });
    const far = await theirs.container({ mtu, number: 10 });
    await write({ ...RED, mtu });
    expect(await reload()).toMatchObject({ ...NOTHING, changed: ["vtep42"] });
    await reach(near, far.address);
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      const long = ["-c", "3", "-i", "0.05", "-M", "do", "-s", `${mtu - 28}`];
      expect((await from.finish(["ping", ...long, to.address])).stdout).toContain("3 received");
      const { sent, received } = await transferTcp(from, to, { bytes: 2_000_000 });
      expect(received).toEqual(sent);
    }
  });

  test("stops a peer that it names no more from sending, and forgets what is behind it", async () => {
    await vtep.waitFor(({ networks }) => networks[0]!.fdb.some(({ mac }) => mac === there.mac));
    await write({ ...RED, peers: ["10.0.0.77"] });
    expect(await reload()).toMatchObject({ changed: ["vtep42"] });
    expect(await isSilent(here, there.address)).toBe(true);
    expect(await vtep.remoteOf(there.mac)).toBeUndefined();
    expect(await isSilent(there, here.address)).toBe(true);
    await vtep.waitFor(({ networks }) => networks[0]!.drops.VXLAN_REMOTE_NOT_ALLOWED! > 0);
  });

  test("has a network whose VNI changed begin anew", async () => {
    await write({ ...RED, tap: "vtep42", vni: 43, bridge: "blue" });
    expect(await reload()).toMatchObject({ ...NOTHING, changed: ["vtep42"] });
    await reach(blueHere, blueThere.address);
    expect(await isSilent(here, there.address)).toBe(true);
  });

  test("gives a network another name, and keeps the rest of it", async () => {
    await ours.run("ip", "addr", "add", "172.20.0.1/24", "dev", "vtep42");
    const { counters } = (await vtep.status()).networks[0]!;
    await write({ ...RED, name: "red" });
    expect(await reload()).toMatchObject({ ...NOTHING, changed: ["red"] });
    const [network] = (await vtep.status()).networks;
    expect(network).toMatchObject({ name: "red" });
    expect(network!.counters.encapFrames).toBeGreaterThanOrEqual(counters.encapFrames);
    expect(await ours.run("ip", "addr", "show", "vtep42")).toContain("172.20.0.1/24");
    await reach(here, there.address);
  });

  test("removes a network whose VNI and TAP another one has from now on", async () => {
    const one = { ...RED, name: "one", tap: "one" };
    const other = { ...BLUE, name: "other", tap: "other" };
    await write(one, other);
    await reload();
    await write({ ...one, name: "other" });
    expect(await reload()).toMatchObject({ ...NOTHING, changed: ["other"], removed: ["one"] });
    await reach(here, there.address);
    expect((await vtep.status()).networks).toMatchObject([{ name: "other", vni: 42 }]);
    expect(await ours.links()).not.toContain("other");
  });

  test("has two networks exchange their VNIs, or their TAPs", async () => {
    const one = { ...RED, name: "one", tap: "one" };
    const other = { ...BLUE, name: "other", tap: "other" };
    await write(one, other);
    await reload();
    await reach(blueHere, blueThere.address);
    await write({ ...one, vni: 43 }, { ...other, vni: 42 });
    expect(await reload()).toMatchObject({ ...NOTHING, changed: ["one", "other"] });
    await reach(here, blueThere.address);
    await reach(blueHere, there.address);
    await write({ ...one, vni: 43, tap: "other" }, { ...other, vni: 42, tap: "one" });
    expect(await reload()).toMatchObject({ ...NOTHING, changed: ["one", "other"] });
    await reach(here, blueThere.address);
    await reach(blueHere, there.address);
  });

  test.each([
    ["is no YAML", "networks: [", /^.*vtep.yaml cannot be read/],
    ["has an unknown key", '{"networks":[{"vni":42,"colour":1}]}', /colour is no key of a network/],
    [
      "names an interface that exists",
      JSON.stringify({ networks: [RED, { ...BLUE, tap: "eth0" }] }),
      /eth0 exists already/,
    ],
    [
      "asks for too large an MTU",
      JSON.stringify({ networks: [{ ...BLUE, mtu: 1451 }] }),
      /do not fit/,
    ],
  ])("changes nothing when it %s, and the log says so", async (_, text, reason) => {
    const before = (await vtep.status()).networks[0]!;
    await writeFile(file, text);
    expect(await reload()).toMatchObject({
      msg: "nothing was changed",
      reason: expect.stringMatching(reason),
    });
    expect((await vtep.status()).networks[0]).toMatchObject({ tap: before.tap, mtu: before.mtu });
    await reach(here, there.address);
  });

  test("says what only a restart changes", async () => {
    await writeFile(file, JSON.stringify({ port: 4790, strict: true, networks: [RED] }));
    expect(await reload()).toMatchObject({ ...NOTHING, restart: ["port", "strict"] });
    await reach(here, there.address);
  });

  test("loses no frame of a network that stays as it is", async () => {
    const udp = transferUdp(here, there, { count: 20_000, size: 200 });
    const tcp = transferTcp(there, here, { bytes: 200_000_000 });
    let done = false;
    void Promise.all([udp, tcp]).then(() => {
      done = true;
    });
    let reloads = 0;
    while (!done) {
      await write(RED, ...(reloads++ % 2 === 0 ? [BLUE] : []));
      await reload();
    }
    expect(reloads).toBeGreaterThan(2);
    expect(await udp).toMatchObject({ sent: 20_000, received: 20_000, reordered: 0 });
    const { sent, received } = await tcp;
    expect(received).toEqual(sent);
  }, 60_000);

  test("forty times leaves no link, no descriptor and no entry behind", async () => {
    const descriptors = () => readdirSync(`/proc/${vtep.pid}/fd`).length;
    const state = async () => ({ links: (await ours.links()).sort(), descriptors: descriptors() });
    await write(RED, BLUE);
    await reload();
    await write(RED);
    await reload();
    const before = await state();
    for (let turn = 0; turn < 20; turn++) {
      await write(RED, {
        ...BLUE,
        bridge: `br-${turn}`,
        fdb: { "02:00:00:00:00:63": theirs.address },
      });
      await reload();
      await write(RED);
      await reload();
    }
    expect(await state()).toEqual(before);
    await write(RED, BLUE);
    await reload();
    const client = new Client(vtep.socket);
    const anew = (await client.networks()).find(({ vni }) => vni === 43)!;
    const entries = await client.fdb({ network: anew.name });
    expect(entries.filter(({ origin }) => origin === "static")).toEqual([]); // others may have spoken by now
  }, 60_000);
});

test("replaces many networks by as many programs of the host's as a few, or none of them", async () => {
  await vtep[Symbol.asyncDispose]();
  const script = `
echo \${0##*/} >>$here/runs
input=$(cat)
case "$input" in *"$(cat $here/refused)"*) echo refused >&2; exit 2 ;; esac
printf '%s\\n' "$input" | real "$@"`;
  using watched = shim(script, ["ip", "tc"]);
  const [runs, refused] = [join(watched.directory, "runs"), join(watched.directory, "refused")];
  await writeFile(refused, "nothing");
  const some = (first: number, count: number) =>
    Array.from({ length: count }, (_, at) => ({ vni: first + at, peers: [theirs.address] }));
  const up = async () => {
    const shown = JSON.parse(await ours.run("ip", "-json", "link", "show", "up"));
    const names: string[] = shown.map(({ ifname }: { ifname: string }) => ifname);
    return names.filter((name) => /^vtep[12]/.test(name)).sort();
  };
  await write(RED, ...some(1000, 3), ...some(2000, 30));
  vtep = await ours.vtepBy(["env", watched.path], "--config", file).ready();
  const ready = vtep.log.find(({ msg }) => msg === "ready");
  expect(ready).toMatchObject({ networks: { length: 8 }, more: 26 });
  const told = async (...networks: object[]) => {
    await write(RED, ...networks);
    await writeFile(runs, "");
    return { ...(await reload()), runs: (await readFile(runs, "utf8")).split("\n").sort() };
  };
  const few = await told(...some(1100, 3), ...some(2000, 30));
  const many = await told(...some(1100, 3), ...some(2100, 30));
  expect([few.msg, many.msg]).toEqual(["reloaded", "reloaded"]);
  expect(many.runs).toEqual(few.runs);
  const taps = [...some(1100, 3), ...some(2100, 30)].map(({ vni }) => `vtep${vni}`);
  expect(await up()).toEqual(taps);
  await writeFile(refused, "vtep2220 up");
  expect(await told(...some(1100, 3), ...some(2200, 30))).toMatchObject({
    msg: "nothing was changed",
    reason: expect.stringContaining("refused"),
  });
  expect(await up()).toEqual(taps);
  expect(await ours.links()).not.toContain("vtep2200");
  await reach(here, there.address);
}, 30_000);

test("gives many networks another MTU and bridge by as many programs of the host's as one, and tells which refuses", async () => {
  await vtep[Symbol.asyncDispose]();
  using watched = shim(`
echo ip >>$here/runs
case "$*" in *batch*) ;; *) real "$@"; exit ;; esac
sed "s/^.*$(cat $here/refused).*/link set dev nobody up/" | real "$@"`);
  const [runs, refused] = [join(watched.directory, "runs"), join(watched.directory, "refused")];
  await writeFile(refused, "nothing");
  const some = (count: number, settings: object) =>
    Array.from({ length: count }, (_, at) => ({
      ...{ vni: 1000 + at, peers: [theirs.address], mtu: 1400, bridge: "br-one" },
      ...settings,
    }));
  await write(RED, ...some(30, {}));
  vtep = await ours.vtepBy(["env", watched.path], "--config", file).ready();
  const told = async (...networks: object[]) => {
    await write(RED, ...networks);
    await writeFile(runs, "");
    return { ...(await reload()), runs: (await readFile(runs, "utf8")).length };
  };
  const shown = async () => {
    const links: { ifname: string; mtu: number; master?: string }[] = JSON.parse(
      await ours.run("ip", "-json", "link", "show"),
    );
    const taps = links.filter(({ ifname }) => /^vtep10/.test(ifname));
    const known = (await vtep.status()).networks.filter(({ vni }) => vni !== RED.vni);
    const as = taps.map(({ mtu, master }) => `${mtu} ${master}`);
    return [...new Set([...as, ...known.map(({ mtu, bridge }) => `${mtu} ${bridge}`)])];
  };
  const other = { mtu: 1300, bridge: "br-two" };
  const rest = some(30, {}).slice(1);
  await told(...some(1, other), ...rest);
  const one = await told(...some(1, { mtu: 1250, bridge: "br-alone" }), ...rest);
  const many = await told(...some(30, { mtu: 1200, bridge: "br-three" }));
  expect([one.msg, many.msg]).toEqual(["reloaded", "reloaded"]);
  expect(many.runs).toBe(one.runs);
  expect(await shown()).toEqual(["1200 br-three"]);

  await writeFile(refused, "dev vtep101[79] .*master br-\\(two\\|three\\)");
  expect(await told(...some(30, other))).toMatchObject({
    msg: "nothing was changed",
    reason: expect.stringMatching(/^changing TAP vtep1017 failed: .*nobody/),
  });
  const left = vtep.log.filter(({ msg }) => msg === "cannot be taken back");
  expect(left.map(({ reason }) => reason)).toEqual([
    expect.stringMatching(/^changing TAP vtep1017 failed/),
    expect.stringMatching(/^changing TAP vtep1019 failed/),
  ]);
  expect(await shown()).toEqual(["1200 br-three"]);
  await writeFile(refused, "nothing");
  expect((await told(...some(30, other))).msg).toBe("reloaded");
  expect(await shown()).toEqual(["1300 br-two"]);
  await reach(here, there.address);
}, 30_000);

test.each([
  ["is another link's by then, which is left alone", ":", false],
  ["is nobody's any more", "real link del vtep1001 2>&-", undefined],
])("networks come back without one whose name %s", async (_, then, another) => {
  await vtep[Symbol.asyncDispose]();
  using other = shim(`
input=$(cat)
case "$input" in
*"vtep1100 up"*) real link add vtep1001 type veth peer name other; echo refused >&2; exit 2 ;;
*"vtep1000 up"*) [ -e $here/ready ] && ${then} ;;
esac
printf '%s\\n' "$input" | real "$@"`);
  const names = ["vtep1000", "vtep1001", "vtep1002"];
  await write(RED, ...[1000, 1001, 1002].map((vni) => ({ vni, peers: [theirs.address] })));
  vtep = await ours.vtepBy(["env", other.path], "--config", file).ready();
  await writeFile(join(other.directory, "ready"), "");
  await write(RED, { vni: 1100, peers: [theirs.address] });
  expect(await reload()).toMatchObject({ msg: "nothing was changed" });
  const shown: { ifname: string; flags: string[] }[] = JSON.parse(
    await ours.run("ip", "-json", "link", "show"),
  );
  await ours.finish(["ip", "link", "del", "vtep1001"]);
  const isUp = new Map(shown.map(({ ifname, flags }) => [ifname, flags.includes("UP")]));
  expect(names.map((name) => isUp.get(name))).toEqual([true, another, true]);
  const left = vtep.log.filter(({ msg }) => msg === "cannot be taken back");
  expect(left).toMatchObject([{ reason: expect.stringContaining("vtep1001") }]);
  await write(RED, ...[1000, 1001, 1002].map((vni) => ({ vni, peers: [theirs.address] })));
  expect(await reload()).toMatchObject({ msg: "reloaded", added: ["vtep1001"], changed: [] });
  expect(await ours.run("ip", "link", "show", "vtep1001")).toContain("UP");
});

test("without a file there is nothing to read again", async () => {
  await vtep.stop();
  vtep = await ours.vtep("--vni", "42", "--peer", theirs.address, "--bridge", "br0").ready();
  process.kill(vtep.pid, "SIGHUP");
  const said = () => vtep.log.find(({ msg }) => msg === "nothing was changed");
  expect(await until("a word about it", said)).toMatchObject({
    reason: expect.stringMatching(/no file to read again/),
  });
  await reach(here, there.address);
});
