/**
 * What wakes a thread is moved before TypeScript has decided on it (native/flows.h). Nobody is to see of that but how
 * soon: here every ping wakes one, and meanwhile whatever such a decision depends on changes.
 */

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { afterAll, describe, expect, test } from "vitest";
import { Client } from "../../src/api/client.ts";
import { broadcast, ethernet, vxlan } from "../lab/frame.ts";
import { Lab } from "../lab/lab.ts";
import type { Namespace } from "../lab/namespace.ts";
import { Probe } from "../lab/probe.ts";
import { reach, send } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import { cli } from "../lab/vtep.ts";

type Family = 4 | 6;
const OUTER: Readonly<Record<Family, number>> = { 4: 20 + 8 + 8, 6: 40 + 8 + 8 };

/** Three hosts, of which ours reaches the others, which are kernel VTEPs, by these families. */
async function drawn(families: readonly [Family, Family]) {
  const lab = await Lab.draw({ hosts: 3 });
  const [ours, second, third] = [lab.host(1), lab.host(2), lab.host(3)];
  const here = await ours.container();
  const there = await second.container();
  await third.container();
  const peers = await Promise.all(
    [second, third].map(async (host, at) => {
      const family = families[at]!;
      const [local, from] =
        family === 4 ? [host.address, ours.address] : [host.address6, ours.address6];
      await host.kernelVxlan({ vni: 42, local, peers: [from] });
      const words = `udp dport 4789 ${family === 4 ? "ip" : "ip6"} saddr ${from} counter`;
      return { address: local, outer: OUTER[family], sent: await host.rule("prerouting", words) };
    }),
  );
  const blue = { vni: 42, peers: peers.map(({ address }) => address), bridge: "br0" };
  const received = await ours.rule("prerouting", "udp dport 4789 counter");
  return { lab, ours, second, third, here, there, peers, blue, received };
}

const ipv4 = await drawn([4, 4]);
const both = await drawn([6, 4]);
const { ours, second, here, there, blue } = ipv4;
const directory = await mkdtemp(join(tmpdir(), "vtep-flows-"));
afterAll(async () => {
  for (const { lab } of [ipv4, both]) await lab[Symbol.asyncDispose]();
  await rm(directory, { recursive: true });
});

/** TCP that asks for segments of 1460 bytes; and of 1410, which is what fits 1450. */
const IPV4 = "4500002c00004000400626000a0100650a010066";
const SYN = `${IPV4}9c40005000000001000000006002fa00ecc70000020405b4`;
const CLAMPED = `${IPV4}9c40005000000001000000006002fa00ecf9000002040582`;

/** Without trains, each of which would be counted as one packet; `offloads`: further ones that are off. */
function start({
  among = ipv4,
  offloads = [],
  args = [],
}: {
  among?: typeof ipv4;
  offloads?: string[];
  args?: readonly string[];
} = {}) {
  const { peers } = among.blue;
  const network = ["--name", "blue", "--vni", "42", "--bridge", "br0", "--peer", ...peers];
  const off = ["gso", ...offloads].map((name) => `${name}=off`);
  return among.ours.vtep(...network, "--offload", off.join(","), ...args).ready();
}

/** Pings until it is disposed of. */
function pinging(from: Namespace, address: string, seconds = 0.007): AsyncDisposable {
  const pings = from.spawn("ping", "-q", "-i", `${seconds}`, address);
  return {
    async [Symbol.asyncDispose]() {
      const gone = new Promise((resolve) => pings.once("close", resolve));
      pings.kill("SIGINT");
      await gone;
    },
  };
}

/** What the agent says that has crossed, less what has. What it refused has crossed. */
async function difference(client: Client, { peers, received }: typeof ipv4) {
  const remotes = await client.remotes();
  const to = await Promise.all(
    peers.map(async ({ address, outer, sent }) => {
      const { packets, bytes } = await sent.counted();
      const { toFrames, toBytes } = remotes.find((remote) => remote.address === address)!;
      return { toFrames, toBytes, packets, bytes: bytes - packets * outer };
    }),
  );
  const { counters, drops } = await client.network("blue");
  const dropped = Object.values(drops).reduce((sum, count) => sum + count, 0);
  const sum = (of: "packets" | "bytes") => to.reduce((all, each) => all + each[of], 0);
  return {
    to: to.map(({ toFrames, toBytes, packets, bytes }) => [toFrames - packets, toBytes - bytes]),
    out: counters.encapFrames! - sum("packets"),
    bytesOut: counters.encapBytes! - sum("bytes"),
    in: counters.decapFrames! + dropped - (await received.count()),
  };
}

describe("while each ping wakes it", () => {
  test("a network goes and comes, and the thread goes on", async () => {
    await using vtep = await start();
    const client = new Client(vtep.socket);
    await reach(here, there.address);
    await using _pings = pinging(here, there.address);
    for (let time = 0; time < 20; time++) {
      await client.removeNetwork("blue");
      await client.putNetwork("blue", blue);
      await reach(here, there.address);
    }
  });

  test.each([
    ["address", "IPv4", [], ipv4],
    ["address6", "IPv4", ["--workers", "2"], ipv4],
    ["address", "IPv6 and IPv4", [], both],
    ["address6", "IPv6 and IPv4", ["--busy-poll", "50"], both],
  ] as const)(
    "entries and peers come and go: at once, and all that crossed is counted, to its %s over %s %j",
    async (family, _, args, among) => {
      const { here, there } = among;
      await using vtep = await start({ among, args });
      const client = new Client(vtep.socket);
      await reach(here, there[family]);
      const before = await difference(client, among);
      type Peer = (typeof among.peers)[number];
      const [second, third] = among.peers as [Peer, Peer];
      /** What has gone elsewhere since goes there no more. */
      const hasTurned = async (from: Peer, to: Peer) => {
        const [left, came] = [await from.sent.count(), await to.sent.count()];
        await until("pings to there", async () => (await to.sent.count()) > came + 3);
        expect(await from.sent.count()).toBe(left);
      };
      {
        await using _pings = pinging(here, there[family]);
        for (let time = 0; time < 6; time++) {
          await client.putFdb("blue", there.mac, third.address);
          await hasTurned(second, third);
          await client.putFdb("blue", there.mac, second.address);
          await hasTurned(third, second);
          await client.removeFdb("blue", there.mac);
          await reach(here, there[family]);
          await client.removePeer("blue", second.address);
          await hasTurned(second, third);
          await client.putPeer("blue", second.address);
          await reach(here, there[family]);
        }
      }
      const isSame = async () => isDeepStrictEqual(await difference(client, among), before);
      await until("all of it counted", isSame).catch(() => {});
      expect(await difference(client, among)).toEqual(before);
    },
  );

  test("it is captured, each frame once and in its order, and forwarded as before", async () => {
    await using vtep = await start();
    await reach(here, there.address);
    await using _pings = pinging(here, there.address);
    const file = join(directory, "file.pcapng");
    for (let time = 0; time < 3; time++) {
      const capture = ["capture", "--socket", vtep.socket, "--count", "200", "--write", file];
      await ours.run("node", cli, ...capture);
      const fields = ["-T", "fields", "-e", "icmp.type", "-e", "icmp.seq"];
      const shown = await ours.run("tshark", "-r", file, "-Y", "icmp", ...fields);
      for (const type of ["8", "0"]) {
        const lines = shown.split("\n").map((line) => line.split("\t"));
        const numbers = lines.filter(([its]) => its === type).map(([, number]) => Number(number));
        expect(numbers.length).toBeGreaterThan(80);
        expect(numbers).toEqual(numbers.map((_, at) => numbers[0]! + at));
      }
    }
  });

  test("stations are seen by what they say, and age when they are silent", async () => {
    await using vtep = await start({ args: ["--age", "1"] });
    await reach(here, there.address);
    const counters = async () => (await vtep.status()).networks[0]!.counters;
    {
      await using _pings = pinging(here, there.address, 0.1);
      await until(
        "pings for four seconds",
        async () => (await counters()).encapFrames > 40,
        10_000,
      );
      expect((await counters()).aged).toBe(0);
    }
    await until("both of them age", async () => (await counters()).aged >= 2, 10_000);
  });
});

test("what is to be changed on its way from now on is", async () => {
  const near = await Probe.attach(ours);
  const far = await Probe.attach(second);
  await using vtep = await start();
  const client = new Client(vtep.socket);
  const [from, to] = ["02:00:00:01:00:01", "02:00:00:01:00:02"];
  const syn = ethernet({ from, to, type: 0x0800, payload: Buffer.from(SYN, "hex") });
  await far.send(ethernet({ from: to, to: broadcast }));
  await until("the station there", async () => (await client.fdb({ mac: to })).length > 0);
  for (let time = 1; time <= 3; time++) {
    await near.send(syn);
    await until("the packet", () => far.count(syn) === time);
  }
  await client.putNetwork("blue", { ...blue, "clamp-mss": true });
  const clamped = ethernet({ from, to, type: 0x0800, payload: Buffer.from(CLAMPED, "hex") });
  await near.send(syn);
  await until("the packet, clamped", () => far.count(clamped) === 1);
  expect(far.count(syn)).toBe(3);
});

test("a datagram that is too long is dropped behind some that were not", async () => {
  await using vtep = await start({ offloads: ["gro"] }); // or all of it is received, and the MTU is the bridge's affair
  const client = new Client(vtep.socket);
  const from = "02:00:00:01:00:03";
  const say = (bytes: number) => {
    const frame = ethernet({ from, to: here.mac, payload: Buffer.alloc(bytes) });
    return send(second, { address: ours.address, port: 4789 }, [vxlan(42, frame)]);
  };
  const got = async () => {
    const [{ stats64 }] = JSON.parse(await ours.run("ip", "-json", "-s", "link", "show", "vtep42"));
    return stats64.rx.bytes as number;
  };
  for (let time = 0; time < 3; time++) {
    const before = await got();
    await say(60);
    await until("the frame", async () => (await got()) > before);
  }
  const before = await got();
  await say(1900);
  const isDropped = async () => ((await client.status()).drops.PKT_TOO_BIG ?? 0) > 0;
  await until("a drop", isDropped);
  expect(await got()).toBeLessThan(before + 1900);
});
