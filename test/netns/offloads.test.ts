import { randomBytes } from "node:crypto";
import { afterAll, describe, expect, test } from "vitest";
import { Client } from "../../src/api/client.ts";
import { OFFLOADS, type Offloads } from "../../src/device.ts";
import type { AgentEvent } from "../../src/operations.ts";
import { Lab } from "../lab/lab.ts";
import { preload } from "../lab/preload.ts";
import { Probe } from "../lab/probe.ts";
import { Ear, reach, transferTcp, transferUdp } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import { cli, Vtep } from "../lab/vtep.ts";
import { frameOf } from "../native/segments.ts";
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
const [nearProbe, farProbe] = [await Probe.attach(ours), await Probe.attach(theirs)];
// Where the frames of segments.ts go.
for (const end of [here, there]) {
  await end.ip("addr add 192.0.2.2/24 dev eth0", "addr add 2001:db8::2/64 dev eth0 nodad");
}

const network = ["--vni", "42", "--peer", theirs.address, "--bridge", "br0"];

/** All that was sent arrived, as it was sent and in order. */
const intact = (count: number) => ({
  ...{ sent: count, received: count },
  ...{ corrupted: 0, duplicated: 0, reordered: 0 },
});

describe.each(underlays.filter((kind) => kind === "native"))("%s beside kernel VXLAN", (kind) => {
  test.each(combinations.map((off) => [off.join(", ") || "none", off] as const))(
    "content arrives as it was sent, off: %s",
    async (_, off) => {
      const words = off.map((name) => `${name}=off`).join(",");
      await using _kernel = await theirs.kernelVxlan({ vni: 42, peers: [ours.address] });
      await using vtep = await ours
        .vtep(...network, "--underlay", kind, ...(words ? ["--offload", words] : []))
        .ready();
      await reach(here, there.address);
      const { offloads, refusedOffloads } = await new Client(vtep.socket).status();
      const less = new Set([...off, ...(off.includes("csum") ? ["tso", "uso"] : [])]);
      const inUse = Object.fromEntries(OFFLOADS.map((name) => [name, !less.has(name)]));
      expect(offloads).toEqual(inUse);
      expect(refusedOffloads).toEqual([]);
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

  test.each([
    [4, "UdpInCsumErrors"],
    [6, "Udp6InCsumErrors"],
  ] as const)("what is spoilt within a train stays so, over IPv%i", async (family, errors) => {
    await using endpoints = await lab.join([...kinds]);
    const agents = endpoints.filter((endpoint) => endpoint instanceof Vtep).map(({ pid }) => pid);
    await reach(here, there.address);
    for (const [probe, to] of [[nearProbe, there] as const, [farProbe, here] as const]) {
      const destination = [...Buffer.from(to.mac.replaceAll(":", ""), "hex")];
      const payloads = Array.from({ length: 60 }, () => randomBytes(500));
      const frames = payloads.map((payload, id) =>
        Buffer.from(frameOf({ v6: family === 6, tcp: false, destination, id, payload })),
      );
      const isSpoilt = (at: number) => at % 10 === 7;
      for (const [at, frame] of frames.entries()) if (isSpoilt(at)) frame[frame.length - 1]! ^= 1;
      await using ear = await Ear.open(to, 443, "ff02::1"); // IPv4 as well
      const before = await to.counted(errors);
      const spoilt = async () => (await to.counted(errors)) - before;
      // Agents that find all of them waiting make trains of them.
      for (const pid of agents) process.kill(pid, "SIGSTOP");
      await probe.send(...frames).finally(() => {
        for (const pid of agents) process.kill(pid, "SIGCONT");
      });
      const all = async () => ear.heard.length + (await spoilt()) >= frames.length;
      await until("all of them", all);
      expect(await spoilt()).toBe(6);
      const others = payloads.filter((_, at) => !isSpoilt(at));
      expect(ear.heard.map(({ payload }) => payload)).toEqual(others);
    }
  });
});

describe("what the kernel refuses is done without", () => {
  /** Every way in which an agent tells of it, once an event has come; it ends then. */
  async function toldBy(vtep: Vtep, events: AgentEvent[]) {
    const told = () => events.filter(({ event }) => event === "offload-demoted");
    await until("an event", () => told().length > 0);
    const { offloads } = await new Client(vtep.socket).status();
    const { stdout } = await ours.finish(["node", cli, "status", "--socket", vtep.socket]);
    const metrics = await vtep.metrics();
    await vtep.stop();
    const lines = vtep.log.filter(({ msg }) => msg === "offloads were refused");
    return {
      status: OFFLOADS.filter((name) => !offloads[name]),
      words: /^offloads +(.*)$/m.exec(stdout)?.[1],
      metric: OFFLOADS.filter((name) => !metrics.get(`vtep_offload_in_use{offload="${name}"}`)),
      lines: lines.map(({ level, offloads }) => ({ level, offloads })),
      events: told(),
    };
  }
  const warning = (...offloads: string[]) => ({ level: 40, offloads });
  const demoted = (offload: string) => ({ event: "offload-demoted", offload });

  test("trains of datagrams, by any thread, and it is told once", async () => {
    using refusing = preload(`#include <netinet/udp.h>
      #include <sys/socket.h>
      static bool is_train(msghdr *of) {
        for (cmsghdr *c = CMSG_FIRSTHDR(of); c; c = CMSG_NXTHDR(of, c))
          if (c->cmsg_level == SOL_UDP && c->cmsg_type == UDP_SEGMENT) return true;
        return false;
      }
      extern "C" int sendmmsg(int fd, mmsghdr *messages, unsigned count, int flags) {
        for (unsigned i = 0; i < count; i++) if (is_train(&messages[i].msg_hdr)) count = i;
        if (count == 0) return errno = EIO, -1;
        return next(sendmmsg, "sendmmsg")(fd, messages, count, flags);
      }`);
    await using _kernel = await theirs.kernelVxlan({ vni: 42, peers: [ours.address] });
    await using vtep = await ours.vtepBy(refusing.way, ...network, "--workers", "2").ready();
    const events = await vtep.events();
    await reach(here, there.address);
    const streams = Array.from({ length: 4 }, () => transferTcp(here, there, { bytes: 5e6 }));
    for (const { sent, received } of await Promise.all(streams)) expect(received).toEqual(sent);
    const superFrames = { count: 20 * 24, size: 1_400, together: 24 };
    expect(await transferUdp(here, there, superFrames)).toEqual(intact(20 * 24));
    expect(await toldBy(vtep, events)).toEqual({
      status: ["gso"],
      words: "without gso (refused)",
      metric: ["gso"],
      lines: [warning("gso")],
      events: [demoted("gso")],
    });
  });

  test("super-frames of UDP in either direction, as before Linux 6.2", async () => {
    using old = preload(`#include <cstdarg>
      #include <linux/if_tun.h>
      #include <sys/ioctl.h>
      #include <sys/uio.h>
      extern "C" int ioctl(int fd, unsigned long request, ...) {
        va_list rest;
        va_start(rest, request);
        unsigned long word = va_arg(rest, unsigned long);
        va_end(rest);
        // TUN_F_USO4 and TUN_F_USO6, which headers this old do not know either
        if (request == TUNSETOFFLOAD && (word & 0x60) != 0) return errno = EINVAL, -1;
        return next(ioctl, "ioctl")(fd, request, word);
      }
      extern "C" ssize_t writev(int fd, const iovec *parts, int count) {
        const unsigned char *vnet = static_cast<unsigned char *>(parts->iov_base);
        if (parts->iov_len == 10 && vnet[1] == 5) return errno = EINVAL, -1;
        return next(writev, "writev")(fd, parts, count);
      }`);
    await using _kernel = await theirs.kernelVxlan({ vni: 42, peers: [ours.address] });
    await using vtep = await ours.vtepBy(old.way, ...network).ready();
    const events = await vtep.events();
    await reach(here, there.address);
    const superFrames = { count: 20 * 24, size: 1_400, together: 24 };
    for (const [from, to] of [[here, there] as const, [there, here] as const]) {
      expect(await transferUdp(from, to, superFrames)).toEqual(intact(20 * 24));
    }
    expect((await vtep.metrics()).get("vtep_super_frames_total")).toBe(0);
    const { sent, received } = await transferTcp(there, here, { bytes: 5e6 });
    expect(received).toEqual(sent);
    expect(await toldBy(vtep, events)).toEqual({
      status: ["uso", "coalesce-udp"],
      words: "without uso (refused), coalesce-udp (refused)",
      metric: ["uso", "coalesce-udp"],
      lines: [warning("uso"), warning("coalesce-udp")],
      events: [demoted("coalesce-udp")], // nobody could listen yet when the TAP was opened
    });
  });
});
