import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, expect, test } from "vitest";
import { broadcast, ethernet } from "../lab/frame.ts";
import { Lab } from "../lab/lab.ts";
import { Probe } from "../lab/probe.ts";
import { until } from "../lab/until.ts";
import { cli, type Vtep } from "../lab/vtep.ts";
import { segmentsOf } from "../native/segments.ts";

const lab = await Lab.draw({ hosts: 3 });
afterAll(() => lab[Symbol.asyncDispose]());
const [ours, second, third] = [lab.host(1), lab.host(2), lab.host(3)];
// The kernel at the other ends knows nothing of VLANs.
await second.kernelVxlan({ vni: 42, peers: [ours.address] });
await third.kernelVxlan({ vni: 43, peers: [ours.address] });
const trunk = await Probe.attach(ours);
const blue = await Probe.attach(second);
const red = await Probe.attach(third);

let vtep: Vtep;
beforeAll(async () => {
  const network = (vni: string, vlan: string, peer: string) => {
    return ["--vni", vni, "--vlan", vlan, "--bridge", "br0", "--peer", peer];
  };
  vtep = await ours.vtep(...network("42", "10", second.address)).ready();
  const more = network("43", "20", third.address);
  await ours.run("node", cli, "network", "add", ...more, "--socket", vtep.socket);
});
afterAll(() => vtep[Symbol.asyncDispose]());

const tag = (id: number): { tags: [number, number][] } => ({ tags: [[0x8100, id]] });

test("frames have the tag of their VLAN on the bridge, and none between VTEPs", async () => {
  for (const [id, far, mac] of [
    [10, blue, "02:00:00:00:0d:01"],
    [20, red, "02:00:00:00:0d:02"],
  ] as const) {
    const payload = randomBytes(60);
    await trunk.send(ethernet({ to: broadcast, from: mac, payload, ...tag(id) }));
    const bare = ethernet({ to: broadcast, from: mac, payload });
    await until(`VLAN ${id}`, () => far.count(bare) === 1);
    const other = far === blue ? red : blue;
    expect(other.count(bare)).toBe(0);
    const answer = { to: mac, from: "02:00:00:00:0d:99", payload: randomBytes(1450) };
    await far.send(ethernet(answer));
    await until("the answer", () => trunk.count(ethernet({ ...answer, ...tag(id) })) === 1);
    expect(trunk.count(ethernet(answer))).toBe(0);
  }
});

test("segments that were joined for the TAP come out one by one, each with the tag", async () => {
  const stream = { payload: randomBytes(40_000), tcp: true, port: 5000 };
  const segments = segmentsOf(stream, 1000);
  await blue.send(...segments);
  const tagged = segments.map((frame) =>
    Buffer.concat([frame.subarray(0, 12), Buffer.from([0x81, 0, 0, 10]), frame.subarray(12)]),
  );
  await until("all of them", () => tagged.every((frame) => trunk.count(frame) === 1));
});

test("what has another tag, or none, is none of theirs, and so is a tag from a remote", async () => {
  const from = "02:00:00:00:0d:03";
  const strange = [
    ethernet({ to: broadcast, from, payload: randomBytes(60) }),
    ethernet({ to: broadcast, from, payload: randomBytes(60), ...tag(30) }),
  ];
  await trunk.send(...strange);
  const inner = ethernet({ to: broadcast, from, payload: randomBytes(60), ...tag(10) });
  await blue.send(inner);
  await vtep.waitFor(({ networks: [first] }) => {
    return first!.counters.otherVlan >= strange.length && first!.drops.VLAN_TAGGED === 1;
  });
  expect([blue, red].map((far) => strange.filter((frame) => far.count(frame) > 0))).toEqual([
    [],
    [],
  ]);
  expect(trunk.count(inner)).toBe(0);
});
