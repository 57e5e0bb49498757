import { isDeepStrictEqual } from "node:util";
import { afterAll, afterEach, beforeEach, describe, expect, test } from "vitest";
import type { Container } from "../lab/host.ts";
import { type Endpoints, Lab } from "../lab/lab.ts";
import { reach, transferTcp, transferUdp } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import { cli, type Status, type Vtep } from "../lab/vtep.ts";

/*
 *  ours ── br0 ── VTEP ── eth0 ══ router ══ eth0 ── VXLAN ── br0 ── theirs
 *              host 1       1500        1500, then less      host 2, the kernel's
 */
const lab = await Lab.draw({ hosts: 2, routed: true });
afterAll(() => lab[Symbol.asyncDispose]());
const [h1, h2] = [lab.host(1), lab.host(2)];
const MB = 1_000_000;

let number = 10;
let ours: Container;
let theirs: Container;

/** Two stations that nobody, and they of nobody, have ever known anything of. */
async function newcomers(mtu: number): Promise<void> {
  number++;
  ours = await h1.container({ mtu, number });
  theirs = await h2.container({ mtu, number: number + 100 });
  await reach(ours, theirs.address);
  await reach(theirs, ours.address6);
}

/** What pings of `bytes` with DF set were told, each answer once, in order: five, or an error that ends them. */
async function pings(
  from: Container,
  address: string,
  bytes: number,
  interval = 0.02,
): Promise<string[]> {
  const size = bytes - (address.includes(":") ? 48 : 28);
  // With a deadline they go on until then, however long it takes until what is lost is known.
  const times = ["-c", "5", "-i", `${interval}`, "-w", "5"];
  const { stdout } = await from.finish([
    "ping",
    "-n",
    "-M",
    "do",
    ...times,
    "-s",
    `${size}`,
    address,
  ]);
  const lines = stdout.matchAll(/^(?:From (\S+) \S+ )?(.*mtu ?= ?\d+\)?|\d+ bytes from)/gm);
  return [...new Set([...lines].map(([, who = "", what]) => `${who} ${what}`.trim()))];
}

const fragNeeded = (by: Container, mtu: number) =>
  `${by.address} Frag needed and DF set (mtu = ${mtu})`;
const packetTooBig = (by: Container, mtu: number) => `${by.address6} Packet too big: mtu=${mtu}`;
const ANSWERED = [expect.stringMatching(/^\d+ bytes from$/)];

/** Bytes that a container's eth0 has sent. */
async function sentBytes(by: Container): Promise<number> {
  const [link] = JSON.parse(await by.run("ip", "-json", "-s", "link", "show", "eth0"));
  return link.stats64.tx.bytes;
}

/** Narrows the router's link towards host 2 while a stream crosses, of which nothing may be lost. */
async function streamMeanwhile(bytes: number, address: string, narrow: number): Promise<void> {
  const before = await sentBytes(ours);
  const transfer = transferTcp(ours, theirs, { bytes, address });
  await until("a stream under way", async () => (await sentBytes(ours)) > before + bytes / 20);
  await lab.setMtu(h2, narrow);
  expect(await sentBytes(ours)).toBeLessThan(before + bytes); // it was in the middle
  const { sent, received } = await transfer;
  expect(received).toEqual(sent);
}

/**
 * The router tells host 1 that the path to an address carries as little as may be, about an answer that nobody has
 * sent: no port is to be guessed for that.
 */
async function lie(from: string, to: string): Promise<void> {
  const script = `import socket, struct, sys
here, there = sys.argv[1:]
v6 = ":" in here
a, b = (socket.inet_pton(socket.AF_INET6 if v6 else socket.AF_INET, each) for each in (here, there))
quoted = struct.pack("!IHBB", 6 << 28, 8, 58, 64) + a + b + struct.pack("!BBHHH", 129, 0, 0, 1, 1) if v6 else \
  struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0x4000, 64, 1, 0) + a + b + struct.pack("!BBHHH", 0, 0, 0, 1, 1)
told = lambda sum: struct.pack("!BBHI", *((2, 0) if v6 else (3, 4)), sum, 1280 if v6 else 68) + quoted
total = sum(struct.unpack("!%dH" % (len(told(0)) // 2), told(0)))
while total >> 16: total = (total & 0xffff) + (total >> 16)
family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if v6 else (socket.AF_INET, socket.IPPROTO_ICMP)
socket.socket(family, socket.SOCK_RAW, protocol).sendto(told(~total & 0xffff), (here, 0))`;
  await lab.router.run("python3", "-c", script, from, to);
  await until("host 1 believes it", async () => {
    return (await h1.run("ip", "route", "get", to)).includes(from.includes(":") ? "1280" : "552");
  });
}

/** Of both families, of which nothing may be lost. */
async function streams(bytes: number): Promise<void> {
  for (const address of [theirs.address, theirs.address6]) {
    const { sent, received } = await transferTcp(ours, theirs, { bytes, address });
    expect(received).toEqual(sent);
  }
}

/** As it was, and forgotten that it was not. */
async function widen(): Promise<void> {
  await lab.setMtu(h2, 1500);
  for (const family of ["-4", "-6"]) await h1.run("ip", family, "route", "flush", "cache");
}

describe.each([
  { family: 4, overhead: 50 },
  { family: 6, overhead: 70 },
] as const)(
  "native, over IPv$family, when a link in the middle of the path is narrowed",
  (path) => {
    const { family, overhead } = path;
    const remote = family === 4 ? h2.address : h2.address6;
    let endpoints: Endpoints;
    const status = () => (endpoints[0] as Vtep).status();
    const tooBig = ({ networks }: Status) => networks[0]!.drops.PKT_TOO_BIG ?? 0;

    beforeEach(async () => {
      endpoints = await lab.join(["native", "kernel"], { family });
      await newcomers(1500 - overhead);
    });
    afterEach(async () => {
      await endpoints[Symbol.asyncDispose]();
      await lab.setMtu(h2, 1500);
      await h1.ip("link set eth0 mtu 1500");
      for (const family of ["-4", "-6"]) await h1.run("ip", family, "route", "flush", "cache");
    });

    test("a ping that does not fit any more is told what does, and that fits", async () => {
      const events = await (endpoints[0] as Vtep).events();
      expect(await pings(ours, theirs.address, 1500 - overhead)).toEqual(ANSWERED);
      await lab.setMtu(h2, 1400);
      expect(await pings(ours, theirs.address6, 1500 - overhead)).toEqual([
        packetTooBig(theirs, 1400 - overhead),
      ]);
      expect(await pings(ours, theirs.address6, 1400 - overhead)).toEqual(ANSWERED);
      expect((await status()).paths).toEqual([{ address: remote, mtu: 1400 }]);
      const learned = { event: "path-learned", remote, mtu: 1400 };
      await until("an event", () => events.some((event) => isDeepStrictEqual(event, learned)));
      await until("a line about it", () =>
        (endpoints[0] as Vtep).log.some((line) => {
          return line.remote === remote && line.mtu === 1400 && line.msg.includes("narrower");
        }),
      );
      await lab.setMtu(h2, 1360);
      // What has just fitted is lost once: the router says so, and then it is known.
      expect(await pings(ours, theirs.address, 1400 - overhead)).toEqual([
        fragNeeded(theirs, 1360 - overhead),
      ]);
      expect(await pings(ours, theirs.address, 1360 - overhead)).toEqual(ANSWERED);
      expect((await status()).paths).toEqual([{ address: remote, mtu: 1360 }]);
      expect(tooBig(await status())).toBeGreaterThan(0);
    });

    test.each(["veth", "wire"] as const)("a TCP stream goes on, in %s mode", async (mode) => {
      await lab.setMode(mode);
      await streamMeanwhile(200 * MB, theirs.address, 1360);
      const { networks } = await status();
      expect(networks[0]!.counters.toldTooBig).toBeGreaterThan(0);
      expect((await status()).paths).toEqual([{ address: remote, mtu: 1360 }]);
    });

    // Of a datagram in fragments none has DF set: the kernel would have the outer ones fragmented.
    test("datagrams that their sender cuts to the MTU are cut to what fits", async () => {
      await lab.setMtu(h2, 1360);
      const result = await transferUdp(ours, theirs, { count: 500, size: 4_000 });
      expect(result).toMatchObject({ corrupted: 0, duplicated: 0 });
      expect(result.received).toBeGreaterThan(400);
    });

    // Stations are told 1280 at least, and what is longer then is fragmented on the way.
    test("to less than a station may be told, TCP goes on", async () => {
      const narrow = 1280 + overhead - 20; // with less than 1280 Linux takes IPv6 from a link
      await lab.setMtu(h2, narrow);
      await streams(MB);
      expect((await status()).paths).toEqual([{ address: remote, mtu: narrow }]);
    });

    test("or the host's own, by as much, TCP goes on", async () => {
      await h1.ip("link set eth0 mtu 1300");
      await streams(MB);
      expect((await status()).paths).toEqual([{ address: remote, mtu: 1300 }]);
    });

    test("and that is a lie, TCP goes on", async () => {
      const [own, told] = family === 4 ? [h1.address, 552] : [h1.address6, 1280];
      await lie(own, remote);
      await streams(MB);
      expect((await status()).paths).toEqual([{ address: remote, mtu: told }]);
    });

    test("a TCP stream over IPv6 goes on", async () => {
      await streamMeanwhile(200 * MB, theirs.address6, 1400);
      expect((await status()).paths).toEqual([{ address: remote, mtu: 1400 }]);
    });
  },
);

test("where a router says nothing, --df unset has it fragment, and TCP goes on", async () => {
  const rules =
    "table ip t { chain c { type filter hook output priority 0; icmp type destination-unreachable drop; }; }";
  await lab.router.run("nft", rules);
  await using vtep = await h1
    .vtep("--vni", "42", "--bridge", "br0", "--peer", h2.address, "--df", "unset")
    .ready();
  await using _ = await h2.join("kernel", { vni: 42, peers: [h1.address] });
  await newcomers(1450);
  await lab.setMtu(h2, 1360);
  await streams(MB);
  expect(await vtep.status()).toMatchObject({ capabilities: { dontFragment: false }, paths: [] });
  await lab.router.run("nft", "delete table ip t");
  await widen();
});

test("what somebody says of a path is no reason to start with another MTU than that of the route", async () => {
  const [route] = JSON.parse(await h1.run("ip", "-json", "route", "get", h2.address));
  await h1.ip(`route add ${h2.address} via ${route.gateway} mtu 1400`);
  await lie(h1.address, h2.address);
  await using vtep = await h1.vtep("--vni", "42", "--tap", "t1", "--peer", h2.address).ready();
  expect((await vtep.status()).networks[0]!.mtu).toBe(1350);
  await h1.ip(`route del ${h2.address}`);
  await widen();
});

// Its sender finds out by itself what the path carries (IP_PMTUDISC_PROBE), or has given up on that.
const HEEDLESS = `import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, 10, 3)
s.connect((sys.argv[1], 9))
while True:
  try: s.send(bytes(1422))
  except OSError: pass`;

test("beside a flow that heeds no answer, a TCP stream goes on", async () => {
  await using vtep = await h1.vtep("--vni", "42", "--bridge", "br0", "--peer", h2.address).ready();
  await using _ = await h2.join("kernel", { vni: 42, peers: [h1.address] });
  await newcomers(1450);
  const heedless = await h1.container({ number: 99 });
  await lab.setMtu(h2, 1360);
  const blast = heedless.spawn("python3", "-c", HEEDLESS, theirs.address);
  await vtep.waitFor(({ networks: [network] }) => (network!.drops.PKT_TOO_BIG ?? 0) > 5_000);
  const { sent, received } = await transferTcp(ours, theirs, { bytes: MB });
  expect(received).toEqual(sent);
  blast.kill("SIGKILL");
  await widen();
});

// A bridge would drop what its stations send, to all peers, if the TAP were given less under them.
test("a peer that less gets to takes nothing from the others", async () => {
  await using vtep = await h1
    .vtep("--vni", "42", "--name", "blue", "--bridge", "br0", "--peer", h2.address)
    .ready();
  await using _ = await h2.join("kernel", { vni: 42, peers: [h1.address] });
  await newcomers(1450);
  const [route] = JSON.parse(await h1.run("ip", "-json", "route", "get", h2.address));
  await h1.ip(`route add 10.0.0.9 via ${route.gateway} mtu 1300`);
  await h1.run("node", cli, "peer", "add", "blue", "10.0.0.9", "--socket", vtep.socket);
  expect(await pings(ours, theirs.address, 1450)).toEqual(ANSWERED);
  expect((await vtep.status()).networks[0]!.mtu).toBe(1450);
  await h1.ip("route del 10.0.0.9");
});

describe("where the underlay has grown, a network whose MTU nobody asked for", () => {
  const run = (vtep: Vtep, ...words: string[]) =>
    h1.finish(["node", cli, ...words, "--socket", vtep.socket]);
  const grow = async (mtu: number) => {
    for (const host of [h1, h2]) await lab.setMtu(host, mtu);
  };
  afterEach(() => grow(1500));

  test.each([
    { what: "gro off", flags: ["--offload", "gro=off"] },
    { what: "dgram", flags: ["--underlay", "dgram"] },
  ])("is changed all the same, with $what, and has what the sockets take", async ({ flags }) => {
    await using vtep = await h1
      .vtep("--vni", "42", "--name", "blue", "--peer", h2.address, ...flags)
      .ready();
    await grow(3000);
    const edits = [
      ["peer", "add", "blue", "10.0.0.9"],
      ["network", "add", "--vni", "43", "--name", "red", "--peer", h2.address],
    ];
    for (const words of edits)
      expect(await run(vtep, ...words)).toMatchObject({ stderr: "", code: 0 });
    expect((await vtep.status()).networks.map(({ mtu }) => mtu)).toEqual([1450, 1450]);
    expect(await run(vtep, "network", "add", ...edits[1]!.slice(2), "--mtu", "2000")).toMatchObject(
      {
        code: 1,
        stderr: expect.stringContaining("more than the 1450 that the sockets were opened for"),
      },
    );
  });

  test("is changed all the same while its TAP is a container's", async () => {
    const box = await h1.container({ number: 98 });
    await using vtep = await h1.vtep("--vni", "42", "--name", "blue", "--peer", h2.address).ready();
    const attached = await run(
      vtep,
      ...["attach", box.name, "--network", "blue", "--direct", "--ifname", "vtep0"],
    );
    expect(attached).toMatchObject({ code: 0, stderr: "" });
    await grow(3000);
    expect(await run(vtep, "peer", "add", "blue", "10.0.0.9")).toMatchObject({
      stderr: "",
      code: 0,
    });
    expect((await vtep.status()).networks[0]!.mtu).toBe(1450);
    await run(vtep, "detach", box.name, "--ifname", "vtep0");
  });
});

// The kernel believes no router then, and would send whatever the sockets give it for good.
test.each([
  { family: 4, overhead: 50 },
  { family: 6, overhead: 70 },
] as const)(
  "a path behind a route of IPv$family whose MTU is locked is learned too",
  async ({ family, overhead }) => {
    const remote = family === 4 ? h2.address : h2.address6;
    const [route] = JSON.parse(await h1.run("ip", "-json", "route", "get", remote));
    await h1.ip(`route add ${remote} via ${route.gateway} mtu lock 1500`);
    await using endpoints = await lab.join(["native", "kernel"], { family });
    await newcomers(1500 - overhead);
    await lab.setMtu(h2, 1400);
    // So rarely that each finds the thread cold, and has left before TypeScript sees it (native/flows.h).
    expect(await pings(ours, theirs.address, 1500 - overhead, 0.2)).toEqual([
      fragNeeded(theirs, 1400 - overhead),
    ]);
    expect((await (endpoints[0] as Vtep).status()).paths).toEqual([{ address: remote, mtu: 1400 }]);
    await streams(MB);
    await h1.ip(`route del ${remote}`);
    await widen();
  },
);

test("a route that promises more than its interface carries is not believed", async () => {
  const [route] = JSON.parse(await h1.run("ip", "-json", "route", "get", h2.address));
  await h1.ip(`route add ${h2.address} via ${route.gateway} mtu 9000`);
  await using vtep = await h1.vtep("--vni", "42", "--tap", "t1", "--peer", h2.address).ready();
  expect((await vtep.status()).networks[0]!.mtu).toBe(1450);
  await h1.ip(`route del ${h2.address}`);
});

test("an interface that carries less of IPv6, as a router may say, is believed", async () => {
  await h1.sysctl({ "ipv6/conf/eth0/mtu": 1400 });
  const words = ["--vni", "42", "--tap", "t1", "--peer"];
  const mtuTo = async (peer: string) => {
    await using vtep = await h1.vtep(...words, peer).ready();
    return (await vtep.status()).networks[0]!.mtu;
  };
  expect([await mtuTo(h2.address6), await mtuTo(h2.address)]).toEqual([1330, 1450]);
  await h1.sysctl({ "ipv6/conf/eth0/mtu": 1500 });
});

test("with --df unset an MTU may be more than the path carries, as kernel VXLAN's: everything crosses in fragments", async () => {
  const words = ["--vni", "42", "--bridge", "br0", "--peer", h2.address, "--mtu", "1500"];
  await using _here = await h1.vtep(...words, "--df", "unset").ready();
  await using _there = await h2.join("kernel", { vni: 42, peers: [h1.address], mtu: 1500 });
  await newcomers(1500);
  expect(await pings(ours, theirs.address, 1500)).toEqual(ANSWERED);
  await streams(MB);
});

// It cannot forbid fragmentation, and says so (dontFragment in its capabilities): nothing is too big.
describe.each([
  { family: 4, overhead: 50 },
  { family: 6, overhead: 70 },
] as const)("dgram, over IPv$family, when a link in the middle of the path is narrowed", (path) => {
  test("everything goes on, in fragments", async () => {
    await using _ = await lab.join(["dgram", "kernel"], { family: path.family });
    await newcomers(1500 - path.overhead);
    await streamMeanwhile(40 * MB, theirs.address, 1360);
    // One way only: back, the kernel's device loses over IPv6 what it may not answer.
    const size = 1500 - path.overhead - 48;
    for (const address of [theirs.address, theirs.address6]) {
      const { received } = await transferUdp(ours, theirs, { count: 500, size, address });
      expect(received).toBeGreaterThan(490);
    }
    await widen();
  });
});

// A bridge drops what is longer than the TAP's MTU, without a word: that is what clamping is for.
describe("a TAP whose MTU is less than that of the stations behind its bridge", () => {
  const join = async (...args: string[]) => {
    const endpoint = h1.vtep(
      "--vni",
      "42",
      "--bridge",
      "br0",
      "--peer",
      h2.address,
      "--mtu",
      "1400",
      ...args,
    );
    return [
      await endpoint.ready(),
      await h2.join("kernel", { vni: 42, peers: [h1.address] }),
    ] as const;
  };

  test.each(["native", "dgram"])("carries TCP with --clamp-mss, on %s", async (kind) => {
    const [here, there] = await join("--clamp-mss", "--underlay", kind);
    await newcomers(1450);
    for (const address of [theirs.address, theirs.address6]) {
      const { sent, received } = await transferTcp(ours, theirs, { bytes: 20 * MB, address });
      expect(received).toEqual(sent);
    }
    const { sent, received } = await transferTcp(theirs, ours, { bytes: 20 * MB });
    expect(received).toEqual(sent);
    for (const endpoint of [here, there]) await endpoint[Symbol.asyncDispose]();
  });
});
