/**
 * A router of the underlay marks datagrams instead of dropping them; the ends of the inner flow must
 * hear of it, through segmentation, trains and coalescing (RFC 6040). Native only: node:dgram neither
 * sends nor tells a TOS.
 */
import { afterAll, describe, expect, test } from "vitest";
import { Lab } from "../lab/lab.ts";
import { reach, transferTcp } from "../lab/traffic.ts";
import { kinds } from "./kinds.ts";

const MB = 1_000_000;

const lab = await Lab.draw({ hosts: 2, mode: "wire", routed: true });
afterAll(() => lab[Symbol.asyncDispose]());
const [ours, theirs] = [lab.host(1), lab.host(2)];
const here = await ours.container({ mtu: 1430 });
const there = await theirs.container({ mtu: 1430 });
for (const end of [here, there]) {
  // A window of so little that no queue overflows: what was marked and lost, nobody would hear of.
  await end.sysctl({ "ipv4/tcp_ecn": 1, "ipv4/tcp_rmem": "4096 131072 131072" });
}
// Or the router would mark trains of them at a time.
for (const link of ["h1", "h2"]) await lab.router.run("ethtool", "-K", link, "gro", "off");

const pairs = kinds
  .filter((kind) => kind !== "dgram")
  .flatMap((kind) => [[kind, "kernel"] as const, ["kernel", kind] as const, [kind, kind] as const]);

describe.each(pairs)("from %s to %s", (...ends) => {
  test.each([
    [4, "ip", "address", "IpExtInCEPkts"],
    [6, "ip6", "address6", "Ip6InCEPkts"],
  ] as const)(
    "every mark arrives, and its sender hears of it, over IPv%i",
    async (family, ip, address, marks) => {
      await using _endpoints = await lab.join([...ends], { family });
      await reach(here, there[address]);
      const rule = `udp dport 4789 ${ip} ecn ect0 numgen inc mod 50 == 0 counter ${ip} ecn set ce`;
      await using router = await lab.router.rule("forward", rule);
      const arrived = () => there.counted(marks);
      const heard = () => here.counted("TcpExtTCPDeliveredCE");
      const [arrivedBefore, heardBefore] = [await arrived(), await heard()];
      const stream = { bytes: 10 * MB, address: there[address] };
      const { sent, received } = await transferTcp(here, there, stream);
      expect(received).toEqual(sent);
      const marked = await router.count();
      expect(marked).toBeGreaterThan(100);
      expect((await arrived()) - arrivedBefore).toBe(marked);
      expect(await heard()).toBeGreaterThan(heardBefore);
    },
  );
});

describe.each(kinds.filter((kind) => kind === "native"))("%s beside kernel VXLAN", (kind) => {
  test("--dscp inherit carries the inner class, and without it none", async () => {
    for (const [args, wanted] of [
      [["--dscp", "inherit"], 0xb8],
      [[], 0],
      [["--dscp", "10"], 0x28],
    ] as const) {
      const network = ["--vni", "42", "--peer", theirs.address, "--bridge", "br0"];
      await using _kernel = await theirs.kernelVxlan({ vni: 42, peers: [ours.address] });
      await using _vtep = await ours.vtep(...network, "--underlay", kind, ...args).ready();
      const words = `udp dport 4789 ip dscp ${wanted >> 2} counter`;
      await using rule = await theirs.rule("prerouting", words);
      const pings = ["ping", "-c", "5", "-i", "0.02", "-Q", "0xb8", there.address];
      expect((await here.finish(pings)).code).toBe(0);
      expect(await rule.count()).toBeGreaterThanOrEqual(5);
    }
  });
});
