import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { packaged } from "../../bench/tunnels.ts";
import { Lab } from "../lab/lab.ts";
import { isSilent, ping, reach, transferTcp, transferUdp } from "../lab/traffic.ts";
import type { Vtep } from "../lab/vtep.ts";
import { underlays } from "./kinds.ts";

const lab = await Lab.draw({ hosts: 2, mode: "wire" });
afterAll(() => lab[Symbol.asyncDispose]());
const [ours, theirs] = [lab.host(1), lab.host(2)];
const near = await ours.container();
const far = await theirs.container();
// A veth leaves the outer checksum to a network card that is not there. The kernel knows that it is unfinished; Open
// vSwitch's datapath in user space does not, and drops what comes so, of kernel VXLAN too.
await ours.run("ethtool", "-K", "eth0", "tx", "off");

const openVSwitch = packaged.find(({ name }) => name === "ovs")!;
let peer: AsyncDisposable;
beforeAll(async () => {
  peer = await openVSwitch.start(lab, [2]);
});
afterAll(() => peer[Symbol.asyncDispose]());

describe.each(underlays)("%s beside Open vSwitch", (kind) => {
  let vtep: Vtep;
  beforeAll(async () => {
    const network = ["--vni", "42", "--bridge", "br0", "--peer", theirs.address];
    vtep = await ours.vtep(...network, "--underlay", kind).ready();
    await reach(near, far.address);
  });
  afterAll(() => vtep[Symbol.asyncDispose]());

  test.each([56, 1_422, 1_423, 8_000])("pings both ways with %i bytes", async (size) => {
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      for (const address of [to.address, to.address6]) {
        const answered = { sent: 3, received: 3, duplicates: 0 };
        expect(await ping(from, address, { size })).toMatchObject(answered);
      }
    }
  });

  test("content arrives as it was sent, both ways", async () => {
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      const { sent, received } = await transferTcp(from, to, { bytes: 20_000_000 });
      expect(received).toEqual(sent);
      const udp = await transferUdp(from, to, { count: 2_000, size: 1_402 });
      expect(udp).toMatchObject({ corrupted: 0, duplicated: 0, reordered: 0 });
      expect(udp.received).toBeGreaterThan(1_960);
    }
  });

  test("learns what is behind it, and has nothing to drop", async () => {
    await reach(near, far.address);
    expect(await vtep.remoteOf(far.mac)).toBe(theirs.address);
    const { drops, networks } = await vtep.status();
    expect([drops, networks[0]!.drops]).toEqual([{}, {}]);
  });
});

test("what is of another VNI crosses in neither direction", async () => {
  const network = ["--vni", "43", "--bridge", "br0", "--peer", theirs.address];
  await using vtep = await ours.vtep(...network).ready();
  expect(await isSilent(near, far.address)).toBe(true);
  expect(await isSilent(far, near.address)).toBe(true);
  expect((await vtep.status()).drops.VXLAN_VNI_NOT_FOUND).toBeGreaterThan(0);
});
