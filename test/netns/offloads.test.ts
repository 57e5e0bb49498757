import { afterAll, describe, expect, test } from "vitest";
import { OFFLOADS } from "../../src/device.ts";
import { Lab } from "../lab/lab.ts";
import { reach, transferTcp, transferUdp } from "../lab/traffic.ts";
import { underlays } from "./kinds.ts";

const MB = 1_000_000;
/** What crosses in all: `LAB_GIGABYTES=20` for a night's run, half a gigabyte unless told. */
const ways = 2 * (OFFLOADS.length + 1);
const bytes = Math.round((Number(process.env.LAB_GIGABYTES ?? 0.5) * 1000 * MB) / ways);

const lab = await Lab.draw({ hosts: 2, mode: "wire" });
afterAll(() => lab[Symbol.asyncDispose]());
const [ours, theirs] = [lab.host(1), lab.host(2)];
const here = await ours.container();
const there = await theirs.container();

describe.each(underlays.filter((kind) => kind === "native"))("%s beside kernel VXLAN", (kind) => {
  const all = OFFLOADS.join("=off,");
  test.each([...OFFLOADS, all])(
    "content arrives as it was sent with --offload %s=off",
    async (off) => {
      const network = [
        "--vni",
        "42",
        "--peer",
        theirs.address,
        "--bridge",
        "br0",
        "--underlay",
        kind,
      ];
      await using _kernel = await theirs.kernelVxlan({ vni: 42, peers: [ours.address] });
      await using vtep = await ours.vtep(...network, "--offload", `${off}=off`).ready();
      await reach(here, there.address);
      const { offloads } = (await vtep.status()) as unknown as {
        offloads: Record<string, boolean>;
      };
      for (const name of off.split("=off,")) expect(offloads[name]).toBe(false);
      // The kernel leaves no segments without leaving their checksums.
      const others = OFFLOADS.filter((name) => !off.includes(name) && off !== "csum");
      for (const name of others) expect(offloads[name]).toBe(true);
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
