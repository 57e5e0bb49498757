import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { Client } from "../../src/api/client.ts";
import type { Endpoint } from "../lab/host.ts";
import { type Endpoints, Lab } from "../lab/lab.ts";
import { ping, reach, transferTcp, transferUdp } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import type { Vtep } from "../lab/vtep.ts";
import { kinds, underlays } from "./kinds.ts";

const lab = await Lab.draw({ hosts: 3, mode: "wire" });
afterAll(() => lab[Symbol.asyncDispose]());
const [h1, h2, h3] = [lab.host(1), lab.host(2), lab.host(3)];
// IPv6 takes 20 bytes more of the underlay's MTU.
const ours = await h1.container({ mtu: 1430 });
const second = await h2.container({ mtu: 1430 });
const third = await h3.container({ mtu: 1430 });

const bytes = { kernel: 80_000_000, native: 80_000_000, dgram: 15_000_000 };
const answered = { sent: 3, received: 3, duplicates: 0 };

describe.each(kinds)("%s over an IPv6 underlay", (kind) => {
  let endpoints: Endpoints;
  beforeAll(async () => {
    endpoints = await lab.join([kind, "kernel"], { family: 6 });
  });
  afterAll(() => endpoints[Symbol.asyncDispose]());

  test.each([56, 1_402, 1_403, 8_000])("pings both ways with %i bytes", async (size) => {
    expect(await ping(ours, second.address, { size })).toMatchObject(answered);
    expect(await ping(second, ours.address, { size })).toMatchObject(answered);
    expect(await ping(ours, second.address6, { size })).toMatchObject(answered);
    expect(await ping(second, ours.address6, { size })).toMatchObject(answered);
  });

  test("content arrives as it was sent, both ways", async () => {
    for (const [from, to] of [
      [ours, second],
      [second, ours],
    ] as const) {
      const { sent, received } = await transferTcp(from, to, { bytes: bytes[kind] });
      expect(received).toEqual(sent);
      const udp = await transferUdp(from, to, { count: 2_000, size: 1_402 });
      expect(udp).toMatchObject({ corrupted: 0, duplicated: 0 });
      expect(udp.received).toBeGreaterThan(1_960);
    }
  });

  test("learns the IPv6 address behind which a container is", async () => {
    await reach(ours, second.address);
    expect(await endpoints[0]?.remoteOf(second.mac)).toBe(h2.address6);
  });
});

describe.each(underlays)("%s beside a kernel that sends outer checksums of zero", (kind) => {
  const zeros = [
    [4, ["noudpcsum"]],
    [6, ["udp6zerocsumtx", "udp6zerocsumrx"]],
  ] as const;
  // node:dgram cannot ask for them over IPv6.
  const heard = zeros.filter(([family]) => family === 4 || kind === "native");
  test.each(heard)(
    "content arrives as it was sent, both ways, over IPv%i",
    async (family, options) => {
      await using endpoints = await lab.join([kind, "kernel"], { family, options: [...options] });
      const vtep = endpoints[0] as Vtep;
      const directions = [[ours, second] as const, [second, ours] as const];
      await reach(ours, second.address);
      await using rule = await h1.rule("prerouting", "udp dport 4789 udp checksum 0 counter");
      for (const [from, to] of directions) {
        const udp = await transferUdp(from, to, { count: 500, size: 1_402 });
        expect(udp).toMatchObject({ received: 500, corrupted: 0, duplicated: 0 });
      }
      expect(await rule.count()).toBeGreaterThan(0);
      const { drops, networks } = await vtep.status();
      expect([drops, networks[0]?.drops]).toEqual([{}, {}]);
      for (const [from, to] of directions) {
        const { sent, received } = await transferTcp(from, to, { bytes: 10_000_000 });
        expect(received).toEqual(sent);
      }
    },
  );
});

describe.each(underlays)("%s with an IPv4 and an IPv6 peer in one network", (kind) => {
  let endpoints: Endpoint[];
  beforeAll(async () => {
    endpoints = [
      await h2.join("kernel", { vni: 42, peers: [h1.address] }),
      await h3.join("kernel", { vni: 42, peers: [h1.address6], local: h3.address6 }),
      await h1
        .vtep(
          "--vni",
          "42",
          "--peer",
          h2.address,
          h3.address6,
          "--bridge",
          "br0",
          "--underlay",
          kind,
        )
        .ready(),
    ];
  });
  afterAll(async () => {
    for (const endpoint of endpoints) await endpoint[Symbol.asyncDispose]();
  });

  test.each([56, 1_402, 4_000])("pings both ways with %i bytes", async (size) => {
    for (const theirs of [second, third]) {
      expect(await ping(ours, theirs.address, { size })).toMatchObject(answered);
      expect(await ping(theirs, ours.address, { size })).toMatchObject(answered);
    }
  });

  test("content arrives as it was sent, to both at once", async () => {
    const half = bytes[kind] / 4;
    const transfers = await Promise.all(
      [second, third].map((theirs) => transferTcp(ours, theirs, { bytes: half })),
    );
    for (const { sent, received } of transfers) expect(received).toEqual(sent);
  });

  test("keeps the MTU that the wider header leaves", async () => {
    const [link] = JSON.parse(await h1.run("ip", "-json", "link", "show", "vtep42"));
    expect(link).toMatchObject({ mtu: 1430 });
  });
});

describe("a host with several uplinks", () => {
  async function secondUplink(): Promise<void> {
    await h1.ip("addr add 10.8.0.1/24 dev eth0");
    onTestFinished(() => h1.ip("addr del 10.8.0.1/24 dev eth0"));
  }

  test.each([
    { number: 1, rule: "from 10.9.1.1" },
    { number: 2, rule: "ipproto udp dport 4789" },
  ])("takes the way, and its MTU, that a rule says: $rule", async ({ number, rule }) => {
    const [from, to] = [`10.9.${number}.1`, `10.9.${number}.2`];
    await h1.ip(
      `addr add ${from}/32 dev lo`,
      `rule add ${rule} table 77`,
      `route add ${to}/32 via ${h2.address} mtu 1400 table 77`,
    );
    await h2.ip(`addr add ${to}/32 dev lo`, `route add ${from}/32 via ${h1.address}`);
    await using _there = await h2.join("kernel", { vni: 42, peers: [from], local: to, mtu: 1350 });
    const words = ["--vni", "42", "--bridge", "br0", "--local", from, "--peer", to];
    await using here = await h1.vtep(...words).ready();
    expect((await here.status()).networks[0]!.mtu).toBe(1350);
    expect(await ping(ours, second.address, { size: 1_322 })).toMatchObject(answered);
    await h1.ip(`rule del ${rule} table 77`);
  });

  test("tells whom it is not sent to where the route to them begins", async () => {
    await secondUplink();
    const peers = [h2.address, "10.8.0.3"];
    await using vtep = await h1.vtep("--vni", "42", "--name", "blue", "--peer", ...peers).ready();
    const told = () =>
      vtep.log.flatMap(({ peer, local, source }) => (peer ? [{ peer, local, source }] : []));
    const where = { local: h1.address, source: "10.8.0.1" };
    expect(told()).toEqual([{ peer: "10.8.0.3", ...where }]);
    await new Client(vtep.socket).putPeer("blue", "10.8.0.4");
    await until("the other one", () => told().length > 1);
    expect(told().slice(1)).toEqual([{ peer: "10.8.0.4", ...where }]);
  });

  test("is itself where it has been since the start, wherever the peers of a later network are", async () => {
    await secondUplink();
    await using vtep = await h1.vtep("--vni", "42", "--peer", h2.address).ready();
    const put = new Client(vtep.socket).putNetwork("later", {
      vni: 43,
      peers: ["10.8.0.3", h1.address],
    });
    await expect(put).rejects.toThrow(`peer ${h1.address} is this VTEP's own local address`);
  });
});

test("a host that prefers temporary addresses is a VTEP at the one that they are made beside", async () => {
  await h1.sysctl({ "ipv6/conf/eth0/use_tempaddr": 2 });
  const both = "fd08::1/64 dev eth0 mngtmpaddr valid_lft 3000 preferred_lft 2000";
  await h1.ip(`addr add ${both} nodad`);
  onTestFinished(async () => {
    await h1.sysctl({ "ipv6/conf/eth0/use_tempaddr": 0 });
    await h1.ip("addr del fd08::1/64 dev eth0");
  });
  const source = async () => {
    const [route] = JSON.parse(await h1.run("ip", "-json", "route", "get", "fd08::2"));
    return route.prefsrc;
  };
  await until("a temporary address", async () => (await source()) !== "fd08::1");
  await using vtep = await h1.vtep("--vni", "42", "--peer", "fd08::2").ready();
  expect((await new Client(vtep.socket).status()).local).toEqual(["fd08::1"]);
});
