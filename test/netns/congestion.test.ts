/**
 * A router of the underlay marks datagrams instead of dropping them; the ends of the inner flow must
 * hear of it, through segmentation, trains and coalescing (RFC 6040). Native only: node:dgram neither
 * sends nor tells a TOS.
 */
import { afterAll, describe, expect, test } from "vitest";
import type { Container, Host } from "../lab/host.ts";
import { Lab } from "../lab/lab.ts";
import { reach, transferTcp } from "../lab/traffic.ts";
import { underlays } from "./kinds.ts";

const MB = 1_000_000;

const lab = await Lab.draw({ hosts: 2, mode: "wire" });
afterAll(() => lab[Symbol.asyncDispose]());
const [ours, theirs] = [lab.host(1), lab.host(2)];
const here = await ours.container();
const there = await theirs.container();
for (const end of [here, there]) await end.sysctl({ "ipv4/tcp_ecn": 1 });

/** Marks one in so many of the datagrams that arrive at a host from ECN-capable senders. */
async function congest(host: Host, oneIn: number): Promise<void> {
  const rule = `udp dport 4789 ip ecn ect0 numgen inc mod ${oneIn} == 0 ip ecn set ce`;
  const input = `table inet congested { chain c { type filter hook prerouting priority -300; ${rule}\n}\n}`;
  const { code, stderr } = await host.finish(["nft", "-f", "-"], { input });
  if (code !== 0) throw new Error(`nft: ${stderr}`);
}

async function relieve(host: Host): Promise<void> {
  await host.run("nft", "delete", "table", "inet", "congested");
}

/** Packets that a container got with CE. */
async function marked(container: Container): Promise<number> {
  const lines = (await container.run("cat", "/proc/net/netstat")).split("\n");
  const [names, values] = lines
    .filter((line) => line.startsWith("IpExt:"))
    .map((line) => line.split(" "));
  return Number(values![names!.indexOf("InCEPkts")]);
}

describe.each(underlays.filter((kind) => kind === "native"))("%s beside kernel VXLAN", (kind) => {
  test.each([
    ["towards the kernel's host", here, there, theirs],
    ["from the kernel's host", there, here, ours],
  ] as const)("a TCP stream hears of congestion, %s", async (_, from, to, host) => {
    await using _endpoints = await lab.join([kind, "kernel"]);
    await reach(from, to.address);
    const before = await marked(to);
    const calm = await transferTcp(from, to, { bytes: 10 * MB });
    expect(calm.received).toEqual(calm.sent);
    expect(await marked(to)).toBe(before);
    await congest(host, 100);
    try {
      const { sent, received } = await transferTcp(from, to, { bytes: 20 * MB });
      expect(received).toEqual(sent);
      expect(await marked(to)).toBeGreaterThan(before);
    } finally {
      await relieve(host);
    }
  });

  test("--dscp inherit carries the inner class, and without it none", async () => {
    for (const [args, wanted] of [
      [["--dscp", "inherit"], "0xb8"],
      [[], "0x00"],
      [["--dscp", "10"], "0x28"],
    ] as const) {
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
      await using _vtep = await ours.vtep(...network, ...args).ready();
      const chain = "type filter hook prerouting priority -300;";
      const rules = `udp dport 4789 ip dscp ${Number(wanted) >> 2} counter`;
      const table = `table inet class { chain c { ${chain} ${rules}\n}\n}`;
      const { code, stderr } = await theirs.finish(["nft", "-f", "-"], { input: table });
      expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
      const { code: pinged } = await here.finish([
        "ping",
        "-c",
        "5",
        "-i",
        "0.02",
        "-Q",
        "0xb8",
        there.address,
      ]);
      expect(pinged).toBe(0);
      const counted = await theirs.run("nft", "list", "table", "inet", "class");
      expect(Number(/counter packets (\d+)/.exec(counted)?.[1])).toBeGreaterThanOrEqual(5);
      await theirs.run("nft", "delete", "table", "inet", "class");
    }
  });
});
