import { afterAll, describe, expect, test } from "vitest";
import { OFFLOADS, type Offloads } from "../../src/device.ts";
import { Lab } from "../lab/lab.ts";
import { reach, transferTcp, transferUdp } from "../lab/traffic.ts";
import { Vtep } from "../lab/vtep.ts";
import { underlays } from "./kinds.ts";

/** csum=off is tso=off and uso=off. */
const isWhole = (off: (keyof Offloads)[]) =>
  !off.includes("csum") || (off.includes("tso") && off.includes("uso"));
const every = Array.from({ length: 2 ** OFFLOADS.length }, (_, bits) =>
  OFFLOADS.filter((_, at) => (bits >> at) & 1),
).filter(isWhole);
const oneOrAll = [...OFFLOADS.map((name) => [name]), [...OFFLOADS]];
/** What crosses in all: `LAB_GIGABYTES=20` for a night's run, and then in every combination of them. */
const asked = process.env.LAB_GIGABYTES;
const gigabytes = Number(asked ?? 0.5);
const combinations = asked ? every : oneOrAll;
const bytes = Math.round((gigabytes * 1e9) / (2 * combinations.length));

const lab = await Lab.draw({ hosts: 2, mode: "wire" });
afterAll(() => lab[Symbol.asyncDispose]());
const [ours, theirs] = [lab.host(1), lab.host(2)];
const here = await ours.container();
const there = await theirs.container();

/** All that was sent arrived, as it was sent and in order. */
const intact = (count: number) => ({
  ...{ sent: count, received: count },
  ...{ corrupted: 0, duplicated: 0, reordered: 0 },
});

describe.each(underlays.filter((kind) => kind === "native"))("%s beside kernel VXLAN", (kind) => {
  test.each(combinations.map((off) => [off.join(", ") || "none", off] as const))(
    "content arrives as it was sent, off: %s",
    async (_, off) => {
      const network = ["--vni", "42", "--peer", theirs.address, "--bridge", "br0"];
      const words = off.map((name) => `${name}=off`).join(",");
      await using _kernel = await theirs.kernelVxlan({ vni: 42, peers: [ours.address] });
      await using vtep = await ours
        .vtep(...network, "--underlay", kind, ...(words ? ["--offload", words] : []))
        .ready();
      await reach(here, there.address);
      const { offloads } = (await vtep.status()) as unknown as { offloads: Offloads };
      const less = new Set([...off, ...(off.includes("csum") ? ["tso", "uso"] : [])]);
      const inUse = Object.fromEntries(OFFLOADS.map((name) => [name, !less.has(name)]));
      expect(offloads).toEqual(inUse);
      for (const [from, to] of [[here, there] as const, [there, here] as const]) {
        const { sent, received } = await transferTcp(from, to, { bytes });
        expect(received).toEqual(sent);
        const udp = await transferUdp(from, to, { count: 500, size: 1_400 });
        expect(udp).toMatchObject({ corrupted: 0, duplicated: 0, reordered: 0 });
        expect(udp.received).toBeGreaterThan(490);
      }
    },
    30_000 + bytes / 10_000, // 10 MB a second, which the slowest of them exceeds
  );
});

describe.each([
  ["native", "kernel"],
  ["native", "native"],
] as const)("%s beside %s", (...kinds) => {
  test.each([
    [4, "address"],
    [6, "address6"],
  ] as const)("super-frames of UDP over IPv%i are cut, one by one", async (_, address) => {
    await using endpoints = await lab.join([...kinds]);
    const vteps = endpoints.filter((endpoint) => endpoint instanceof Vtep);
    await reach(here, there[address]);
    const superFrames = () =>
      Promise.all(
        vteps.map(async (vtep) => (await vtep.metrics()).get("vtep_super_frames_total")!),
      );
    for (const [sender, from, to] of [[0, here, there] as const, [1, there, here] as const]) {
      const before = await superFrames();
      const options = { count: 50 * 24, size: 1_400, together: 24, address: to[address] };
      expect(await transferUdp(from, to, options)).toEqual(intact(50 * 24));
      const cut = before.map((sum, at) => (at === sender ? sum + 50 : sum));
      expect(await superFrames()).toEqual(cut);
    }
  });
});
