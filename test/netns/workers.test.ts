import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Lab } from "../lab/lab.ts";
import { Ear, reach, transferTcp, transferUdp } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import type { Vtep } from "../lab/vtep.ts";

const WORKERS = 3;
/** Sending sockets that a worker has, so source ports that one alone can show. */
const FAN = 16;

const lab = await Lab.draw({ hosts: 2 });
afterAll(() => lab[Symbol.asyncDispose]());
const here = await lab.host(1).container();
const there = await lab.host(2).container();
const args = ["--vni", "42", "--bridge", "br0", "--peer", lab.host(2).address];
const several = ["--workers", `${WORKERS}`];

/** Sizes of datagrams, of which only the second does not leave in one piece. */
const SOME_FRAGMENTED = [100, 3_000];

/** A broadcast datagram from each of so many addresses. */
const FLOWS = `
  const { createSocket } = require("node:dgram");
  for (let flow = 0; flow < 200; flow++) {
    const socket = createSocket("udp4");
    socket.bind(0, "198.18.0." + flow, () => {
      socket.setBroadcast(true);
      socket.send("x", 9, "10.1.0.255", () => socket.close());
    });
  }`;

describe("several workers", () => {
  let vtep: Vtep;
  beforeAll(async () => {
    vtep = await lab
      .host(1)
      .vtep(...args, ...several, "--busy-poll", "50")
      .ready();
  });
  afterAll(() => vtep[Symbol.asyncDispose]());

  test("have a queue of the TAP and a socket of the port each", async () => {
    expect(await vtep.status()).toMatchObject({ workers: WORKERS });
    const [link] = JSON.parse(
      await lab.host(1).run("ip", "-json", "-details", "link", "show", "vtep42"),
    );
    expect(link.num_tx_queues).toBeGreaterThan(1);
    const sockets = await lab.host(1).run("ss", "--no-header", "-lun", "sport = :4789");
    expect(sockets.trim().split("\n")).toHaveLength(WORKERS);
  });

  test("share the flows among them, and count together", async () => {
    await using ear = await Ear.open(lab.host(2), 4789);
    const before = (await vtep.status()).networks[0]!.counters.flooded;
    await here.ip("route replace local 198.18.0.0/24 dev lo");
    await here.run("node", "-e", FLOWS);
    const flooded = async () => (await vtep.status()).networks[0]!.counters.flooded - before;
    await until("200 frames flooded", async () => (await flooded()) >= 200);
    await until("200 datagrams heard", () => ear.heard.length >= 200);
    expect(new Set(ear.heard.map(({ port }) => port)).size).toBeGreaterThan(FAN);
  });

  test("leave no room on their port for another VTEP", async () => {
    const second = lab.host(1).vtep(...args, ...several, "--tap", "other");
    expect(await second.exited).toBe(1);
    expect(second.stderr).toMatch(/^vtep: UDP port 4789 of 10\.0\.0\.1 is held by another program/);
    expect(await lab.host(1).links()).not.toContain("other");
  });

  test("carry many flows to and from a kernel VTEP as they were sent, in order", async () => {
    await using _ = await lab.host(2).kernelVxlan({ vni: 42, peers: [lab.host(1).address] });
    // What waits for an ARP answer in the sender's kernel is overtaken by what is sent when it comes.
    await reach(here, there.address);
    await reach(there, here.address);
    const ways = [
      [here, there],
      [there, here],
    ] as const;
    const udp = [1_400, 1_400, SOME_FRAGMENTED].flatMap((size) =>
      ways.map(([from, to]) => transferUdp(from, to, { count: 2_000, size })),
    );
    const tcp = ways.map(([from, to]) => transferTcp(from, to, { bytes: 50_000_000 }));
    const [datagrams, streams] = await Promise.all([Promise.all(udp), Promise.all(tcp)]);
    for (const result of datagrams) {
      expect(result).toMatchObject({ corrupted: 0, duplicated: 0, reordered: 0 });
      expect(result.received).toBeGreaterThan(1_900);
    }
    for (const { sent, received } of streams) expect(received).toEqual(sent);
  });

  test("all end when told to", async () => {
    expect(await vtep.stop()).toMatchObject({ code: 0 });
    expect(await lab.host(1).links()).not.toContain("vtep42");
  });
});

test.each(["50000-50002", "4788-4791"])(
  "of a range of few source ports, %s, each worker has one",
  async (range) => {
    const vtep = await lab
      .host(1)
      .vtep(...args, ...several, "--source-ports", range)
      .ready();
    expect(await vtep.stop()).toMatchObject({ code: 0 });
  },
);

test("more workers than source ports are refused, and it is said why", async () => {
  const vtep = lab.host(1).vtep(...args, ...several, "--source-ports", "50000-50001");
  expect(await vtep.exited).toBe(1);
  expect(vtep.stderr).toBe(
    "vtep: no UDP port from 50000 to 50001 is free on 10.0.0.1 for one more worker, each of which needs its own: choose another range\n",
  );
});

test("one worker keeps the order of a flow of which only some datagrams are fragmented", async () => {
  await using _ = await lab.host(2).kernelVxlan({ vni: 42, peers: [lab.host(1).address] });
  await using __ = await lab
    .host(1)
    .vtep(...args)
    .ready();
  for (const to of [there.address, there.address6]) {
    await reach(here, to); // what waits for an answer in the sender's kernel is overtaken
    const transfer = { count: 2_000, size: SOME_FRAGMENTED, address: to };
    expect(await transferUdp(here, there, transfer)).toMatchObject({ corrupted: 0, reordered: 0 });
    expect((await transferUdp(here, there, transfer)).received).toBeGreaterThan(1_900);
  }
});

test("without CAP_BPF, several workers forward all the same, and say what that may do", async () => {
  const way = ["setpriv", "--bounding-set=-bpf,-sys_admin"];
  const vtep = await lab
    .host(1)
    .vtepBy(way, ...args, ...several)
    .ready();
  expect(await vtep.stop()).toMatchObject({ code: 0 });
  expect(vtep.log).toContainEqual(
    expect.objectContaining({
      reason: "EPERM",
      msg: expect.stringMatching(/^frames of a flow may overtake each other/),
    }),
  );
});

test("without CAP_BPF, a single worker says that its TAPs have one queue", async () => {
  const way = ["setpriv", "--bounding-set=-bpf,-sys_admin"];
  const told = {
    reason: "EPERM",
    msg: expect.stringMatching(/^every flow from a TAP waits .*CAP_BPF/),
  };
  for (const [prefix, lines] of [
    [way, [expect.objectContaining(told)]],
    [["env"], []],
  ] as const) {
    const vtep = await lab
      .host(1)
      .vtepBy(prefix, ...args, "--workers", "1")
      .ready();
    expect(await vtep.stop()).toMatchObject({ code: 0 });
    expect(vtep.log.filter(({ msg }) => msg.startsWith("every flow"))).toEqual(lines);
  }
});

test("the underlay of node:dgram has one worker, and says so", async () => {
  const vtep = lab.host(1).vtep(...args, ...several, "--underlay", "dgram");
  expect(await vtep.exited).toBe(2);
  expect(vtep.stderr).toBe(
    "vtep: --workers above 1 needs the native underlay: leave out --underlay dgram\n",
  );
});
