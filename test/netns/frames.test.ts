import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { broadcast, type Ethernet, ethernet } from "../lab/frame.ts";
import { type Endpoints, Lab } from "../lab/lab.ts";
import { Probe } from "../lab/probe.ts";
import { Ear, send } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import { kinds } from "./kinds.ts";

const lab = await Lab.draw({ hosts: 3 });
afterAll(() => lab[Symbol.asyncDispose]());
const ours = await lab.host(1).container();
const second = await lab.host(2).container();
const third = await lab.host(3).container();
const containers = [ours, second, third];

const port = 5_000;

const near = await Probe.attach(lab.host(1));
const far = await Probe.attach(lab.host(2));
const probes = [near, far, await Probe.attach(lab.host(3))];

/** A frame from one probe to the other. */
const crossing = { to: "02:00:00:00:0b:02", from: "02:00:00:00:0b:01" };
const returning = { to: crossing.from, from: crossing.to };

// The underlay's MTU leaves room for frames of 1,464 bytes, tags included.
const frames: [string, Partial<Ethernet>][] = [
  ["a VLAN tag", { tags: [[0x8100, 10]] }],
  ["a VLAN tag of priority 7 and VLAN 4,094", { tags: [[0x8100, 0xeffe]] }],
  ["a priority tag", { tags: [[0x8100, 0x6000]] }],
  ["a VLAN tag and as much as fits", { tags: [[0x8100, 10]], payload: randomBytes(1_446) }],
  [
    "a service tag and a VLAN tag",
    {
      tags: [
        [0x88a8, 20],
        [0x8100, 10],
      ],
    },
  ],
  ["an unknown protocol and as much as fits", { payload: randomBytes(1_450) }],
  ["no payload", { payload: randomBytes(0) }],
  ["a length in place of a type", { type: 46 }],
  ["a multicast address that is no IP group's", { to: "03:00:00:00:00:01" }],
];

describe.each(kinds)("%s beside two hosts with kernel VXLAN", (kind) => {
  let endpoints: Endpoints;
  beforeAll(async () => {
    endpoints = await lab.join([kind, "kernel", "kernel"]);
  });
  afterAll(() => endpoints[Symbol.asyncDispose]());

  test.each(frames)("a frame with %s crosses both ways, byte for byte", async (_, more) => {
    const payload = randomBytes(46);
    for (const [from, to, addresses] of [
      [near, far, crossing],
      [far, near, returning],
    ] as const) {
      const frame = ethernet({ ...addresses, payload, ...more });
      const before = to.count(frame);
      await from.send(frame);
      await until("the frame", () => to.count(frame) === before + 1);
    }
  });

  test.each([
    ["broadcast", broadcast],
    ["multicast", "01:00:5e:01:01:07"],
    ["unknown unicast", "02:00:00:00:0b:ff"],
  ])("a %s reaches every other host once, and never comes back", async (_, to) => {
    const spoken = probes.map((_, i) => {
      const from = `02:00:00:00:0c:0${i}`;
      return Array.from({ length: 10 }, () => ethernet({ to, from, payload: randomBytes(60) }));
    });
    await Promise.all(probes.map((probe, i) => probe.send(...spoken[i]!)));
    const isHeard = (frames: Buffer[], i: number) => {
      const rest = probes.filter((_, j) => i !== j);
      return rest.every((probe) => frames.every((frame) => probe.count(frame) > 0));
    };
    await until("all of them", () => spoken.every(isHeard));
    // What came back through the underlay would do so before this.
    const end = ethernet({ to: broadcast, from: crossing.from, payload: randomBytes(60) });
    await near.send(end);
    const others = probes.slice(1);
    await until("the end", () => others.every((probe) => probe.count(end) === 1));
    for (const [i, frames] of spoken.entries()) {
      for (const [j, probe] of probes.entries()) {
        for (const frame of frames) expect(probe.count(frame)).toBe(i === j ? 0 : 1);
      }
    }
  });

  test.each([
    ["an IPv4 broadcast", "10.1.0.255", []],
    ["an IPv4 multicast group", "239.1.1.7", ["239.1.1.7"]],
    ["an IPv6 multicast group", "ff05::8%eth0", ["ff05::8"]],
  ])("datagrams to %s are heard once by all who listen", async (what, address, groups) => {
    const ears = await Promise.all(containers.map((one) => Ear.open(one, port, ...groups)));
    const words = (i: number) => `${what} from ${i}`;
    for (const [i, container] of containers.entries()) {
      await send(container, { address, port }, [Buffer.from(words(i))]);
    }
    // A machine hears its own words too, without any network.
    const all = containers.map((_, i) => words(i)).sort();
    await until("all words", () => ears.every((ear) => ear.heard.length >= all.length));
    for (const ear of ears) {
      expect(ear.heard.map(({ payload }) => `${payload}`).sort()).toEqual(all);
      await ear[Symbol.asyncDispose]();
    }
  });
});
