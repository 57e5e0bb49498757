import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { broadcast, ethernet, vxlan } from "../lab/frame.ts";
import type { KernelVxlan } from "../lab/host.ts";
import { Lab } from "../lab/lab.ts";
import { Ear, type Heard, ping, send } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import { cli, type Status, type Vtep } from "../lab/vtep.ts";
import { underlays } from "./kinds.ts";

const lab = await Lab.draw({ hosts: 4 });
afterAll(() => lab[Symbol.asyncDispose]());
const [ours, peer, other, stranger] = [lab.host(1), lab.host(2), lab.host(3), lab.host(4)];
const here = await ours.container();
const there = await peer.container();

const vni = 42;
const port = 4789;
const pinned = "02:00:00:00:00:63"; // lives behind `other`, says the configuration

function frameFrom(mac: string, payload?: Buffer): Buffer {
  return ethernet({ to: broadcast, from: mac, ...(payload && { payload }) });
}
const frame = frameFrom("02:00:00:00:00:77");
type Bad = [what: string, reason: string, payloads: Buffer[]];
const times = <T>(count: number, make: (i: number) => T): T[] =>
  Array.from({ length: count }, (_, i) => make(i));

function start(kind: string, ...args: string[]): Promise<Vtep> {
  const network = ["--vni", `${vni}`, "--peer", peer.address, other.address, "--bridge", "br0"];
  const entry = ["--fdb", `${pinned}=${other.address}`];
  return ours.vtep(...network, ...entry, "--underlay", kind, ...args).ready();
}

const invalid = "endpoint VXLAN_INVALID_HDR";
const unknown = "endpoint VXLAN_VNI_NOT_FOUND";
const tooBig = "endpoint PKT_TOO_BIG";

/** Random bytes, of which only the I flag is not left to chance: with it set they name some VNI. */
function garbage(length: number): Buffer {
  const bytes = randomBytes(length);
  bytes[0]! &= 0xf7;
  return bytes;
}

/** The endpoint's drops, the network's drops and its counters, as one number per name. */
function counts({ drops, networks: [network] }: Status): Record<string, number> {
  const named = (scope: string, values: Record<string, number> = {}) =>
    Object.entries(values).map(([name, value]) => [`${scope} ${name}`, value] as const);
  return Object.fromEntries([
    ...named("endpoint", drops),
    ...named("network", network?.drops),
    ...named("network", network?.counters),
  ]);
}

describe.each(underlays)("%s receives", (kind) => {
  let vtep: Vtep;
  let kernel: KernelVxlan;
  let tapMac = "";
  beforeAll(async () => {
    vtep = await start(kind);
    kernel = await peer.kernelVxlan({ vni, peers: [ours.address] });
    const [tap] = JSON.parse(await ours.run("ip", "-json", "link", "show", `vtep${vni}`));
    tapMac = tap.address;
  });
  afterAll(async () => {
    await vtep[Symbol.asyncDispose]();
    await kernel[Symbol.asyncDispose]();
  });

  /** Sends to our port and expects exactly so many more of what is to be counted. */
  async function expectCounted(name: string, payloads: Buffer[], from = peer): Promise<void> {
    const before = counts(await vtep.status())[name] ?? 0;
    await send(from, { address: ours.address, port }, payloads);
    const sum = (status: Status) => (counts(status)[name] ?? 0) - before;
    await vtep.waitFor((status) => sum(status) >= payloads.length, 2_000);
    expect(sum(await vtep.status())).toBe(payloads.length);
  }

  describe.each([
    ["a known peer", peer],
    ["a stranger", stranger],
  ])("from %s", (_, from) => {
    const huge = frameFrom("02:00:00:00:00:77", randomBytes(65_485));
    const bad: Bad[] = [
      ["a header cut short", invalid, times(8, (n) => vxlan(vni, frame).subarray(0, n))],
      ["the I flag clear", invalid, times(5, () => vxlan(vni, frame, { flags: 0xf7 }))],
      ["garbage", invalid, times(20, (n) => garbage(50 * n + 1))],
      ["an unknown VNI", unknown, times(5, (n) => vxlan(vni + 1 + n, frame))],
      ...(kind === "dgram" ? [["65 kB", tooBig, times(3, () => vxlan(vni, huge))] as Bad] : []),
    ];
    test.each(bad)("datagrams with %s and counts them as %s", async (_, reason, payloads) => {
      await expectCounted(reason, payloads, from);
    });
  });

  test("datagrams of a stranger to the network and counts them", async () => {
    await expectCounted(
      "network VXLAN_REMOTE_NOT_ALLOWED",
      times(5, () => vxlan(vni, frame)),
      stranger,
    );
    const { networks } = await vtep.status();
    expect(networks[0]?.fdb.map(({ mac }) => mac)).not.toContain("02:00:00:00:00:77");
  });

  test("frames that no station can have sent and counts them by reason", async () => {
    const from = (mac: string) => [vxlan(vni, frameFrom(mac))];
    await expectCounted(
      "network PKT_TOO_SMALL",
      times(14, (n) => vxlan(vni, frame.subarray(0, n))),
    );
    await expectCounted("network MAC_INVALID_SOURCE", from("00:00:00:00:00:00"));
    await expectCounted("network MAC_INVALID_SOURCE", from("01:00:5e:00:00:01"));
    await expectCounted("network MAC_INVALID_SOURCE", from(broadcast));
    await expectCounted("network LOCAL_MAC", from(tapMac));
  });

  test("a frame that contradicts a static entry, counts it and keeps the entry", async () => {
    await expectCounted("network VXLAN_ENTRY_EXISTS", [vxlan(vni, frameFrom(pinned))]);
    expect(await vtep.remoteOf(pinned)).toBe(other.address);
    // What the kernel's host has to say of its own may arrive as well.
    const before = counts(await vtep.status())["network decapFrames"] ?? 0;
    await send(other, { address: ours.address, port }, [vxlan(vni, frameFrom(pinned))]);
    await vtep.waitFor((status) => (counts(status)["network decapFrames"] ?? 0) > before, 2_000);
    expect(counts(await vtep.status())["network VXLAN_ENTRY_EXISTS"]).toBe(1);
  });

  test("reserved bits, ignores them as RFC 7348 says, and counts them", async () => {
    const payloads = [
      vxlan(vni, frame, { reserved: 1 }),
      vxlan(vni, frame, { trailing: 0x80 }),
      vxlan(vni, frame, { flags: 0xff, reserved: 0xffffff, trailing: 0xff }),
    ];
    await expectCounted("network reservedBits", payloads);
  });

  test("all of this and still forwards", async () => {
    expect(await ping(here, there.address)).toMatchObject({ received: 3, duplicates: 0 });
    expect(await ping(there, here.address)).toMatchObject({ received: 3, duplicates: 0 });
    expect(vtep.stderr).toBe("");
  });
});

describe.each(underlays)("%s with --strict", (kind) => {
  test("drops what has reserved bits set, as the kernel does", async () => {
    await using vtep = await start(kind, "--strict");
    await send(peer, { address: ours.address, port }, [
      vxlan(vni, frame, { reserved: 1 }),
      vxlan(vni, frame, { trailing: 0x80 }),
      vxlan(vni, frame, { flags: 0x88 }),
      vxlan(vni, frame),
    ]);
    const status = await vtep.waitFor(({ networks }) => networks[0]?.counters.decapFrames === 1);
    expect(counts(status)).toMatchObject({ "endpoint VXLAN_INVALID_HDR": 3 });
  });
});

describe.each(underlays)("%s sends", (kind) => {
  /** What the peer hears of twelve flows: each comes from a source port of its own. */
  async function datagramsOf(...args: string[]): Promise<Heard[]> {
    await using _vtep = await start(kind, ...args);
    await using ear = await Ear.open(peer, port);
    for (let flow = 0; flow < 12; flow++) {
      await send(here, { address: "10.1.0.255", port: 7_000 }, [Buffer.from("flow")]);
    }
    const flows = () => ear.heard.filter(({ payload }) => payload.includes("flow"));
    await until("every flow", () => flows().length >= 12);
    return flows();
  }

  test("a valid VXLAN header with every reserved bit zero", async () => {
    for (const { from, payload } of await datagramsOf()) {
      expect(from).toBe(ours.address);
      expect(payload.subarray(0, 8)).toEqual(vxlan(vni, Buffer.of()));
    }
  });

  if (kind !== "native") return; // node:dgram declares that it has one source port
  test.each([
    ["49152-65535", []],
    ["50000-50003", ["--source-ports", "50000-50003"]],
  ])("flows from different source ports within %s", async (range, args) => {
    const [low, high] = range.split("-").map(Number) as [number, number];
    const ports = new Set((await datagramsOf(...args)).map((heard) => heard.port));
    expect(ports.size).toBeGreaterThan(1);
    expect(Math.min(...ports)).toBeGreaterThanOrEqual(low);
    expect(Math.max(...ports)).toBeLessThanOrEqual(high);
  });
});

test("what a stranger has dropped in many networks takes few lines of the log", async () => {
  const networks = times(30, (at) => `{ vni: ${100 + at}, peers: [${peer.address}] }`);
  const file = join(mkdtempSync(join(tmpdir(), "vtep-drops-")), "vtep.yaml");
  writeFileSync(file, `networks: [${networks}]`);
  try {
    const vtep = await ours.vtep("--config", file).ready();
    const datagrams = times(30, (at) => vxlan(100 + at, frame));
    await send(stranger, { address: ours.address, port }, [...datagrams, ...datagrams]);
    const refused = (status: Status) => {
      const drops = status.networks.map((network) => network.drops.VXLAN_REMOTE_NOT_ALLOWED ?? 0);
      return drops.reduce((sum, each) => sum + each, 0);
    };
    await vtep.waitFor((status) => refused(status) === 60);
    await vtep.stop();
    const named = vtep.log.filter(({ msg }) => msg === "frames were dropped");
    const beyond = vtep.log.filter(({ msg }) => msg === "more networks dropped frames");
    // A report may have been due while the datagrams came: then there are two.
    expect(named.length).toBeLessThanOrEqual(40);
    expect(named[0]).toMatchObject({ stranger: stranger.address });
    expect(beyond[0]).toMatchObject({ networks: expect.any(Number) });
    const lines = [...named, ...beyond] as unknown as { drops: Record<string, number> }[];
    const logged = lines.reduce((sum, { drops }) => sum + drops.VXLAN_REMOTE_NOT_ALLOWED!, 0);
    expect(logged).toBe(60);
  } finally {
    rmSync(dirname(file), { recursive: true });
  }
});

test("what a network dropped is told of one that is removed", async () => {
  const vtep = await ours.vtep("--vni", "100", "--peer", peer.address).ready();
  const events = await vtep.events();
  await send(stranger, { address: ours.address, port }, Array(5).fill(vxlan(100, frame)));
  await vtep.waitFor(({ networks }) => networks[0]!.drops.VXLAN_REMOTE_NOT_ALLOWED === 5);
  await ours.run("node", cli, "network", "remove", "vtep100", "--socket", vtep.socket);
  const sum = (told: readonly object[]) => {
    const drops = told.map((each) => (each as Partial<Status>).drops ?? {});
    return drops.reduce((all, { VXLAN_REMOTE_NOT_ALLOWED: refused = 0 }) => all + refused, 0);
  };
  await until("all of it among the events", () => sum(events) === 5);
  await vtep.stop();
  const reports = vtep.log.filter(({ msg }) => msg === "frames were dropped");
  expect(sum(reports)).toBe(5);
  expect(reports[0]).toMatchObject({ vni: 100, stranger: stranger.address });
});

test.each(underlays)(
  "%s logs when it stops what was dropped since the last report",
  async (kind) => {
    const vtep = await start(kind);
    await send(peer, { address: ours.address, port }, [garbage(100)]);
    await vtep.waitFor(({ drops }) => drops.VXLAN_INVALID_HDR === 1);
    await vtep.stop();
    const reports = vtep.log.filter(({ msg }) => msg === "frames were dropped");
    expect(reports).toEqual([expect.objectContaining({ drops: { VXLAN_INVALID_HDR: 1 } })]);
  },
);
