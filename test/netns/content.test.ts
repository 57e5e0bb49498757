import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Container } from "../lab/host.ts";
import { type Endpoints, Lab } from "../lab/lab.ts";
import type { Namespace } from "../lab/namespace.ts";
import { transferTcp, transferUdp } from "../lab/traffic.ts";
import { kinds } from "./kinds.ts";

// Together with the other files more than 2 GB cross a tunnel and are compared, most of it through the
// native underlay; node:dgram is the slower one, and has the same bytes to get wrong.
const MB = 1_000_000;
const megabytes = { kernel: 340, native: 340, dgram: 40 };

const device = "overlay";
const offloads = ["rx", "tx", "sg", "tso", "gso", "gro"];

const lab = await Lab.draw({ hosts: 2 });
afterAll(() => lab[Symbol.asyncDispose]());
const ours = await lab.host(1).container();
const theirs = await lab.host(2).container();

const directions = [
  ["towards the kernel's host", ours, theirs],
  ["from the kernel's host", theirs, ours],
] as const;

async function setOffloads(state: "on" | "off", where: Namespace, link: string): Promise<void> {
  // One that cannot be switched is left as it is: ethtool then complains, and does the others.
  await where.finish(["ethtool", "-K", link, ...offloads.flatMap((offload) => [offload, state])]);
}

/** A container's address in the tunnel that the containers have between them. */
const within = ({ address }: Container) => address.replace("10.1", "10.2");

async function tunnel(): Promise<AsyncDisposable> {
  for (const [, from, to] of directions) {
    await from.ip(
      `link add inner mtu 1400 type vxlan id 7 dstport 4789 local ${from.address} remote ${to.address}`,
      `addr add ${within(from)}/24 dev inner`,
      "link set inner up",
    );
  }
  const removed = async () => {
    for (const [, from] of directions) await from.ip("link del inner");
  };
  return { [Symbol.asyncDispose]: removed };
}

describe.each(kinds)("%s beside kernel VXLAN", (kind) => {
  let endpoints: Endpoints;
  beforeAll(async () => {
    endpoints = await lab.join([kind, "kernel"], { device });
  });
  afterAll(() => endpoints[Symbol.asyncDispose]());

  describe.each(["veth", "wire"] as const)("over an underlay in %s mode", (mode) => {
    beforeAll(() => lab.setMode(mode));

    test.each(directions)("a TCP stream arrives as it was sent, %s", async (_, from, to) => {
      const { sent, received } = await transferTcp(from, to, { bytes: megabytes[kind] * MB });
      expect(received).toEqual(sent);
    });

    // 64 bytes cost the most packets, 1,422 fill the MTU, 8,000 make fragments inside the tunnel.
    test.each([64, 1_422, 8_000])("UDP datagrams of %i bytes arrive as sent", async (size) => {
      const count = Math.min(5_000, Math.round((10 * MB) / size));
      const both = directions.map(([, from, to]) => transferUdp(from, to, { count, size }));
      for (const result of await Promise.all(both)) {
        expect(result).toMatchObject({ sent: count, corrupted: 0, duplicated: 0 });
        expect(result.received).toBeGreaterThan(count * 0.98);
      }
    });
  });

  test("a TCP stream over IPv6 arrives as it was sent, both ways at once", async () => {
    const bytes = (megabytes[kind] / 4) * MB;
    const transfers = await Promise.all([
      transferTcp(ours, theirs, { bytes, address: theirs.address6 }),
      transferTcp(theirs, ours, { bytes, address: ours.address6 }),
    ]);
    for (const { sent, received } of transfers) expect(received).toEqual(sent);
  });

  // Its checksums lie deeper than those of a frame, and the datagrams of its trains are no application's.
  test("a TCP stream through a tunnel within the tunnel arrives as it was sent, both ways", async () => {
    await using _ = await tunnel();
    const bytes = (megabytes[kind] / 10) * MB;
    for (const [, from, to] of directions) {
      const { sent, received } = await transferTcp(from, to, { bytes, address: within(to) });
      expect(received).toEqual(sent);
    }
  });

  describe("with every offload switched off", () => {
    const links: [Namespace, string][] = [
      [lab.host(1), device],
      [lab.host(1), "c1"],
      [ours, "eth0"],
      [theirs, "eth0"],
    ];
    beforeAll(async () => {
      for (const [where, link] of links) await setOffloads("off", where, link);
      const features = await lab.host(1).run("ethtool", "-k", device);
      expect(features).toMatch(/^tx-checksumming: off$/m);
      expect(features).toMatch(/^tcp-segmentation-offload: off$/m);
    });
    afterAll(async () => {
      for (const [where, link] of links) await setOffloads("on", where, link);
    });

    test.each(directions)("TCP and UDP arrive as they were sent, %s", async (_, from, to) => {
      const { sent, received } = await transferTcp(from, to, { bytes: (megabytes[kind] / 4) * MB });
      expect(received).toEqual(sent);
      const udp = await transferUdp(from, to, { count: 2_000, size: 1_422 });
      expect(udp).toMatchObject({ corrupted: 0, duplicated: 0 });
      expect(udp.received).toBeGreaterThan(1_960);
    });
  });
});
