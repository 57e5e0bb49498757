import { randomBytes } from "node:crypto";
import { afterAll, describe, expect, test } from "vitest";
import { broadcast, ethernet, vxlan } from "../lab/frame.ts";
import { Lab } from "../lab/lab.ts";
import { Probe } from "../lab/probe.ts";
import { Ear, reach, send } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import type { Status, Vtep } from "../lab/vtep.ts";
import { underlays } from "./kinds.ts";

const lab = await Lab.draw({ hosts: 3 });
afterAll(() => lab[Symbol.asyncDispose]());
const [ours, peer, other] = [lab.host(1), lab.host(2), lab.host(3)];
const here = await ours.container();
const there = await peer.container();
const near = await Probe.attach(ours);
const far = await Probe.attach(peer);
const port = 4789;

function start(kind: string, ...args: string[]): Promise<Vtep> {
  const network = ["--vni", "42", "--peer", peer.address, other.address, "--bridge", "br0"];
  return ours.vtep(...network, "--underlay", kind, ...args).ready();
}

function rows({ networks }: Status, origin: string) {
  return networks[0]?.fdb.filter((row) => row.origin === origin) ?? [];
}

function mac(number: number): string {
  const last = number.toString(16).padStart(4, "0");
  return `02:00:00:01:${last.slice(0, 2)}:${last.slice(2)}`;
}

/** A frame of one station to another, or to all: each with a payload of its own. */
function station(number: number, to?: number): Buffer {
  const payload = randomBytes(60);
  return ethernet({ from: mac(number), to: to ? mac(to) : broadcast, payload });
}

/** How often a host without an endpoint hears what was flooded to it. */
function flooded(ear: Ear, frame: Buffer): number {
  return ear.heard.filter(({ payload }) => payload.equals(vxlan(42, frame))).length;
}

describe.each(underlays)("the FDB on the %s underlay", (kind) => {
  test("learns stations on either side, with their ages", async () => {
    await using _kernel = await peer.kernelVxlan({ vni: 42, peers: [ours.address] });
    await using vtep = await start(kind);
    await reach(here, there.address);
    const status = await vtep.status();
    expect(rows(status, "learned")).toEqual(
      expect.arrayContaining([
        expect.objectContaining({ mac: here.mac, destination: "local" }),
        expect.objectContaining({ mac: there.mac, destination: peer.address }),
      ]),
    );
    for (const { ageSeconds } of rows(status, "learned")) expect(ageSeconds).toBeLessThan(20);
  });

  test("sends known unicast to one remote only, and unknown unicast to all", async () => {
    await using _kernel = await peer.kernelVxlan({ vni: 42, peers: [ours.address] });
    await using vtep = await start(kind);
    await using ear = await Ear.open(other, port);
    const [unknown, known, end] = [station(1, 2), station(1, 2), station(1)];
    await near.send(unknown);
    await until("the flooded frame", () => flooded(ear, unknown) === 1 && far.count(unknown) === 1);
    const introduction = station(2);
    await far.send(introduction);
    // Where it is lost, this tells on which side of the agent, and the status why.
    await vtep.waitFor((status) => rows(status, "learned").some((row) => row.mac === mac(2)));
    await until("the other station", () => near.count(introduction) === 1);
    await near.send(known, end);
    await until("what was sent after it", () => flooded(ear, end) === 1 && far.count(end) === 1);
    expect(flooded(ear, known)).toBe(0);
    expect(far.count(known)).toBe(1);
  });

  test("a static entry directs frames without flooding, and never ages", async () => {
    await using _kernel = await peer.kernelVxlan({ vni: 42, peers: [ours.address] });
    await using vtep = await start(kind, "--fdb", `${mac(2)}=${peer.address}`, "--age", "1");
    await using ear = await Ear.open(other, port);
    const [known, end] = [station(1, 2), station(1)];
    await near.send(known, end);
    await until("what was sent after it", () => flooded(ear, end) === 1 && far.count(end) === 1);
    expect(flooded(ear, known)).toBe(0);
    expect(far.count(known)).toBe(1);
    await vtep.waitFor((status) => !rows(status, "learned").some((row) => row.mac === mac(1)));
    expect(rows(await vtep.status(), "static")).toEqual([
      expect.objectContaining({ mac: mac(2), destination: peer.address }),
    ]);
  });

  test("forgets a learned station after --age seconds and counts it", async () => {
    await using vtep = await start(kind, "--age", "1");
    const events = await vtep.events(); // by a status it may have gone before it was seen
    await send(peer, { address: ours.address, port }, [vxlan(42, station(1))]);
    const entry = expect.objectContaining({ mac: mac(1) });
    for (const event of ["learned", "aged"] as const) {
      await until(event, () =>
        events.some((each) => expect.objectContaining({ event, entry }).asymmetricMatch(each)),
      );
    }
    expect(rows(await vtep.status(), "learned").map((row) => row.mac)).not.toContain(mac(1));
    // One status may be of the moment between its going and its being counted.
    await vtep.waitFor(({ networks }) => networks[0]!.counters.aged >= 1);
  });

  test("does not grow beyond --fdb-limit: the oldest learned make room and are counted", async () => {
    await using vtep = await start(kind, "--fdb-limit", "100");
    const newcomers = Array.from({ length: 300 }, (_, i) => vxlan(42, station(i)));
    await send(peer, { address: ours.address, port }, newcomers);
    // A container's own frame may be learned meanwhile: so many are not all of them.
    const status = await vtep.waitFor((status) => {
      const isLast = rows(status, "learned").some((row) => row.mac === mac(299));
      return isLast && status.networks[0]!.counters.evicted >= 200;
    });
    expect(status.networks[0]!.counters.learned).toBeGreaterThanOrEqual(300);
    expect(rows(status, "learned")).toHaveLength(100);
  });
});
