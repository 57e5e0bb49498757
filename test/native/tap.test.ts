/**
 * A TAP beyond what every `Tap` does: what the kernel makes of it. The device is moved to a network
 * namespace of the test's own (its queue stays with us), so that addresses and frames disturb nobody.
 */
import { execFileSync } from "node:child_process";
import { closeSync, openSync, readdirSync, readlinkSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";
import {
  afterAll,
  afterEach,
  beforeAll,
  beforeEach,
  describe,
  expect,
  it,
  onTestFinished,
  vi,
} from "vitest";
import { Batch, HEADROOM, IN_ROWS, TURN_BYTES, VNET_NEEDS_CSUM } from "../../src/batch.ts";
import { addon } from "../../src/device/native.ts";
import { NativeTap, NativeTaps, type TapOffloads } from "../../src/device/tap.ts";
import type { VtepError } from "../../src/errors.ts";
import { until } from "../lab/until.ts";
import { alone, ip, moduleChild, setRow, uniqueName } from "./fixture.ts";

vi.setConfig({ testTimeout: 30_000 }); // child processes take their time on a busy host

const EIO = 5;
const ENODEV = 19;
const EBADFD = 77;
/** The kernel then completes and segments everything itself. */
const NONE = { csum: false };

/** A station behind the TAP, at 192.0.2.2. */
const STATION = Buffer.from("020000000002", "hex");
const ARP_REQUEST = Buffer.concat([
  Buffer.from("ffffffffffff", "hex"),
  STATION,
  Buffer.from("0806" + "0001080006040001", "hex"),
  STATION,
  Buffer.from([192, 0, 2, 2, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1]),
]);

describe("in a namespace of its own", () => {
  let namespace: string;
  let batch: Batch;

  beforeEach(() => {
    namespace = uniqueName();
    batch = new Batch();
    ip("netns", "add", namespace);
  });

  afterEach(() => ip("netns", "delete", namespace));

  function within(...words: string[]): string {
    return execFileSync("nsenter", [`--net=/run/netns/${namespace}`, ...words], {
      encoding: "utf8",
      stdio: "pipe",
    });
  }

  /** Up, at 192.0.2.1/24. */
  function open(offloads: Partial<TapOffloads>, { mtu = 1500, furtherQueues = 0 } = {}): NativeTap {
    const tap = new NativeTap({ name: uniqueName(), offloads, furtherQueues });
    onTestFinished(() => tap.close());
    ip("link", "set", tap.name, "netns", namespace);
    within("sh", "-c", `echo 1 >/proc/sys/net/ipv6/conf/${tap.name}/disable_ipv6`);
    within("ip", "link", "set", tap.name, "mtu", `${mtu}`, "up");
    within("ip", "address", "add", "192.0.2.1/24", "dev", tap.name);
    within("ip", "neighbour", "add", "192.0.2.2", "lladdr", mac(STATION), "dev", tap.name);
    return tap;
  }

  /** Two queues of one device, up, with an address. */
  function openTwo(address: string): { name: string; queues: NativeTap[] } {
    const name = uniqueName();
    const queues = [1, 2].map(() => new NativeTap({ name, multiQueue: true }));
    onTestFinished(() => {
      for (const queue of queues) queue.close();
    });
    ip("link", "set", name, "netns", namespace);
    within("ip", "link", "set", name, "up");
    within("ip", "address", "add", address, "dev", name, "nodad");
    return { name, queues };
  }

  /** UDP datagrams of these sizes from the kernel to 192.0.2.2, out of one process. */
  function transmit(...sizes: number[]): void {
    within(
      process.execPath,
      "-e",
      `const socket = require("node:dgram").createSocket("udp4");
       const send = (sizes) => sizes.length === 0 ? socket.close()
         : socket.send(Buffer.alloc(sizes[0], 7), 4789, "192.0.2.2", (error) => {
             if (error) throw error;
             send(sizes.slice(1));
           });
       send(${JSON.stringify(sizes)});`,
    );
  }

  function write(tap: NativeTap, frame: Uint8Array): number {
    batch.slab.set(frame, HEADROOM);
    setRow(batch, 0, { offset: HEADROOM, length: frame.length });
    alone(tap).write(batch, 1);
    return batch.outError[0]!;
  }

  it("the kernel answers an ARP request that is written to it", async () => {
    const tap = open(NONE);
    within("ip", "neighbour", "flush", "all");
    expect(write(tap, ARP_REQUEST)).toBe(0);
    await until("an answer", () => alone(tap).read(batch) === 1);
    const reply = Buffer.from(batch.slab.subarray(batch.inOffset[0]!)).subarray(0, 42);
    expect(batch.inLength[0]).toBe(42);
    expect(mac(reply)).toBe(mac(STATION));
    expect(reply.readUInt16BE(20)).toBe(2);
    expect([...reply.subarray(28, 32)]).toEqual([192, 0, 2, 1]);
    expect(within("ip", "link", "show", tap.name)).toContain(mac(reply.subarray(6)));
  });

  it("frames of 14 bytes to 64 KiB are packed at 10 modulo 16, none touching another", () => {
    const tap = open(NONE, { mtu: 65_521 });
    const sizes = [1, 2, 17, 65_000, 1000, 65_493, 3, 64_999, 31, 100];
    transmit(...sizes);
    expect(alone(tap).read(batch)).toBe(sizes.length);
    let end = 0;
    sizes.forEach((size, row) => {
      const offset = batch.inOffset[row]!;
      expect(offset % 16).toBe(10);
      expect(offset - HEADROOM).toBeGreaterThanOrEqual(end);
      expect(offset - HEADROOM - end).toBeLessThan(16);
      expect(batch.inLength[row]).toBe(size + 42);
      expect(batch.inFlags[row]).toBe(0);
      end = offset + size + 42;
      expect(batch.slab.subarray(offset + 42, end).every((byte) => byte === 7)).toBe(true);
    });
  });

  it("a read stops when it has brought a turn's bytes", () => {
    const tap = open(NONE, { mtu: 65_521 });
    const most = Math.ceil(TURN_BYTES / 65_536);
    transmit(...new Array(most + 3).fill(65_493));
    expect(alone(tap).read(batch)).toBe(most);
    expect(alone(tap).read(batch)).toBe(3);
    expect(alone(tap).read(batch)).toBe(0);
  });

  it("a read stops when what it has brought would leave as many datagrams as there are rows", () => {
    const tap = open({});
    const script = `import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_UDP, 103, 1)  # UDP_SEGMENT
for _ in range(5): s.sendto(bytes(64), ("192.0.2.2", 9))`;
    within("python3", "-c", script);
    expect([1, 2, 3].map(() => alone(tap).read(batch))).toEqual([3, 2, 0]);
    expect(batch.segments(0)).toBe(64);
  });

  it.each([
    [NONE, 0],
    [{}, VNET_NEEDS_CSUM],
  ])("with offloads %j the kernel leaves checksums so: flags %i", (offloads, flags) => {
    const tap = open(offloads);
    const sizes = [1, 2, 3, 100, 1001, 1472];
    transmit(...sizes);
    expect(alone(tap).read(batch)).toBe(sizes.length);
    sizes.forEach((_, row) => {
      expect(batch.inVnet.getUint8(row * 16)).toBe(flags);
      expect(batch.inVnet.getUint8(row * 16 + 1)).toBe(0);
      const frame = frameOf(batch, row);
      if (flags !== 0) {
        const start = batch.inVnet.getUint16(row * 16 + 6, true);
        const offset = batch.inVnet.getUint16(row * 16 + 8, true);
        expect([start, offset]).toEqual([34, 6]);
        expect(addon().completeChecksum(frame, start, offset)).toBe(0);
      }
      expect(udpSum(frame)).toBe(0xffff);
    });
  });

  it("while the interface is down, writing is EIO, and it works again when it is up", async () => {
    const tap = open(NONE);
    const lost: VtepError[] = [];
    alone(tap, (error) => lost.push(error)).watch(() => {});
    within("ip", "link", "set", tap.name, "down");
    expect(write(tap, ARP_REQUEST)).toBe(EIO);
    expect(alone(tap).read(batch)).toBe(0);
    within("ip", "link", "set", tap.name, "up");
    expect(write(tap, ARP_REQUEST)).toBe(0);
    await until("an answer", () => alone(tap).read(batch) > 0);
    expect(lost).toEqual([]);
  });

  it("a frame shorter than an Ethernet header is the row's error, its neighbours go on", async () => {
    const tap = open(NONE);
    batch.slab.set(ARP_REQUEST, 0);
    setRow(batch, 0, { offset: 0, length: 13 });
    setRow(batch, 1, { offset: 0, length: ARP_REQUEST.length });
    setRow(batch, 2, { offset: 0, length: 0 });
    expect(alone(tap).write(batch, 3)).toBe(2);
    expect(batch.outError[0]).toBeGreaterThan(0);
    expect(batch.outError[1]).toBe(0);
    expect(batch.outError[2]).toBeGreaterThan(0);
    await until("an answer", () => alone(tap).read(batch) === 1);
  });

  it.each([
    ["IPv4", "192.0.2.1/24", "192.0.2.2"],
    ["IPv6", "2001:db8::1/64", "2001:db8::2"],
  ])("spreads TCP over %s over several queues by its ports", async (_, own, other) => {
    const { name, queues } = openTwo(own);
    within("ip", "neighbour", "add", other, "lladdr", mac(STATION), "dev", name);
    // Even ones, as the kernel gives to who connects.
    const script = `for (let localPort = 20000; localPort < 20064; localPort += 2) {
      require("node:net").connect({ host: "${other}", port: 9, localPort }).on("error", () => {});
    }
    setImmediate(() => process.exit());`; // long before any is sent again
    within(process.execPath, "-e", script);
    const perQueue = queues.map((queue) => {
      const rows = alone(queue).read(batch);
      const frames = Array.from({ length: rows }, (_, row) =>
        batch.slab.subarray(batch.inOffset[row]!, batch.inOffset[row]! + 14),
      );
      return frames.filter((frame) => STATION.equals(frame.subarray(0, 6))).length;
    });
    expect(perQueue[0]! + perQueue[1]!).toBe(32);
    for (const frames of perQueue) expect(frames).toBeGreaterThan(4);
  });

  /** 64 frames of 77 bytes that differ in one byte, or two: that many queues of two have them. */
  async function queuesOf(differing: number, header: string): Promise<number> {
    const { name, queues } = openTwo("192.0.2.1/24");
    const frames = Array.from({ length: 64 }, (_, at) => {
      const frame = Buffer.alloc(77);
      frame.write(header.replaceAll(" ", ""), "hex");
      frame[differing] = 2 * at;
      return frame.toString("hex");
    });
    const script = `import socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("${name}", 0))
for frame in "${frames.join(" ")}".split(): s.send(bytes.fromhex(frame))`;
    within("python3", "-c", script);
    const had = [0, 0];
    await until("all of them", () => {
      for (const [at, queue] of queues.entries()) {
        const rows = alone(queue).read(batch);
        had[at]! += batch.inLength.subarray(0, rows).filter((length) => length === 77).length;
      }
      return had[0]! + had[1]! === 64;
    });
    return had.filter((count) => count > 0).length;
  }

  const MACS = "020000000002 020000000001";
  const ipv4 = (protocol: string, fragment = "0000") => {
    return `0800 4500003f0000${fragment}40${protocol}0000 c0000201 c0000202`;
  };
  const TCP = "06";
  type Row = [what: string, at: number, header: string, count: number];
  const of6 = (what: string, at: number, protocol: string, count: number): Row => {
    const header = `${MACS} 86dd 60000000 0017 ${protocol} 40 ${"20010db8".repeat(8)}`;
    return [what, at, header, count];
  };
  const rows: Row[] = [
    ["stations that it is for", 5, `${MACS} 88b5`, 2],
    ["stations that it is of", 11, `${MACS} 88b5`, 2],
    ["what is no address, of no protocol", 20, `${MACS} 88b5`, 1],
    ["sources of IPv4", 29, `${MACS} ${ipv4(TCP)}`, 2],
    ["destinations of IPv4", 33, `${MACS} ${ipv4(TCP)}`, 2],
    ["ports of TCP", 35, `${MACS} ${ipv4(TCP)}`, 2],
    ["ports of SCTP", 35, `${MACS} ${ipv4("84")}`, 2],
    ["ports of UDP", 35, `${MACS} ${ipv4("11")}`, 1],
    ["what is in the place of ports in a first fragment", 35, `${MACS} ${ipv4(TCP, "2000")}`, 1],
    ["what is in the place of ports in a last fragment", 35, `${MACS} ${ipv4(TCP, "0001")}`, 1],
    ["ports behind options of IPv4", 39, `${MACS} ${ipv4(TCP).replace("4500", "4600")}`, 2],
    ["options of IPv4", 35, `${MACS} ${ipv4(TCP).replace("4500", "4600")}`, 1],
    ...[25, 29, 33, 37].map((at) => of6(`sources of IPv6, byte ${at - 22}`, at, TCP, 2)),
    ...[41, 45, 49, 53].map((at) => of6(`destinations of IPv6, byte ${at - 38}`, at, TCP, 2)),
    of6("ports of TCP over IPv6", 55, TCP, 2),
    of6("ports of UDP over IPv6", 55, "11", 1),
    of6("what is in the place of ports behind another header of IPv6", 55, "2c", 1),
    ["ports of TCP in a VLAN", 39, `${MACS} 8100 0007 ${ipv4(TCP)}`, 2],
    ["ports of TCP in a service's VLAN", 39, `${MACS} 88a8 0007 ${ipv4(TCP)}`, 2],
    ["ports of UDP in a VLAN", 39, `${MACS} 8100 0007 ${ipv4("11")}`, 1],
  ];
  it.each(rows)(
    "gives what differs in %s to so many queues",
    async (_, differing, header, count) => {
      expect(await queuesOf(differing, header)).toBe(count);
    },
  );

  describe("with further queues", () => {
    const FLOWS = 16;
    const BULK = IN_ROWS + 44; // more than one read returns

    /** The ports of UDP datagrams that one read returns, in their order, and a number that each carries. */
    function readOnce(tap: NativeTap): { port: number; number: number }[] {
      const rows = Array.from({ length: alone(tap).read(batch) }, (_, row) => {
        return new DataView(batch.slab.buffer, batch.slab.byteOffset + batch.inOffset[row]!);
      });
      return rows
        .filter((view) => view.getUint16(36) === 9)
        .map((view) => ({ port: view.getUint16(34), number: view.getUint16(42) }));
    }

    function kindOf(offset: number): string {
      const view = new DataView(batch.slab.buffer, batch.slab.byteOffset + offset);
      const type = view.getUint16(12);
      if (type === 0x0806) return "ARP";
      if (type === 0x86dd) return view.getUint8(20) === 58 ? "ICMPv6" : "other";
      return { 1: "ICMP", 17: "UDP" }[view.getUint8(23)] ?? "other";
    }

    /** As much of that as waits. */
    function readAll(tap: NativeTap): { port: number; number: number }[] {
      const read = [readOnce(tap)];
      while (read.at(-1)!.length > 0) read.push(readOnce(tap));
      return read.flat();
    }

    /** A flow that sends all it has, and after it one datagram each of others; each has an address, and a port to tell. */
    function transmitFlows(bulk = BULK, flows = FLOWS): void {
      within("ip", "route", "replace", "local", "198.18.0.0/16", "dev", "lo");
      const script = `
        const { createSocket } = require("node:dgram");
        const sent = async (port, count) => {
          const socket = createSocket("udp4");
          const own = "198.18." + (port >> 8) + "." + (port & 255);
          await new Promise((resolve) => socket.bind(port, own, resolve));
          for (let number = 0; number < count; number++) {
            const bytes = Buffer.from([number >> 8, number & 255]);
            await new Promise((resolve) => socket.send(bytes, 9, "192.0.2.2", resolve));
          }
          socket.close();
        };
        (async () => {
          await sent(20000, ${bulk});
          for (let port = 20001; port <= 20000 + ${flows}; port++) await sent(port, 1);
        })();`;
      within(process.execPath, "-e", script);
    }

    const bulk = Array.from({ length: BULK }, (_, number) => ({ port: 20_000, number }));
    const others = Array.from({ length: FLOWS }, (_, at) => ({ port: 20_001 + at, number: 0 }));

    function expectAll(read: { port: number; number: number }[]): void {
      expect(read.filter(({ port }) => port === 20_000)).toEqual(bulk);
      const rest = read.filter(({ port }) => port !== 20_000);
      expect(rest.sort((a, b) => a.port - b.port)).toEqual(others);
    }

    it("a flow does not wait until another one has sent all it has", () => {
      const tap = open(NONE, { furtherQueues: 7 });
      transmitFlows();
      const read = readAll(tap);
      const last = read.findLastIndex(({ port }) => port === 20_000);
      const before = new Set(read.slice(0, last).map(({ port }) => port));
      expect(before.size).toBeGreaterThan(FLOWS / 2);
      expectAll(read);
    });

    it("ARP, ICMP and ICMPv6 do not wait behind any flow", () => {
      const tap = open(NONE, { furtherQueues: 1 });
      within("ip", "link", "set", tap.name, "txqueuelen", "5000");
      const flows = 2 * IN_ROWS + FLOWS; // more than one read returns of any half of them
      transmitFlows(BULK, flows);
      within("sh", "-c", `echo 0 >/proc/sys/net/ipv6/conf/${tap.name}/disable_ipv6`);
      within("ip", "address", "add", "2001:db8::1/64", "dev", tap.name, "nodad");
      const [known, unresolved, unresolved6] = ["192.0.2.2", "192.0.2.3", "2001:db8::3"];
      for (const target of [known, unresolved, unresolved6]) {
        within("sh", "-c", `ping -n -c 1 -W 0.01 ${target} || true`);
      }
      const kinds: string[] = [];
      for (let rows = alone(tap).read(batch); rows > 0; rows = alone(tap).read(batch)) {
        for (let row = 0; row < rows; row++) kinds.push(kindOf(batch.inOffset[row]!));
      }
      expect(kinds.filter((kind) => kind === "UDP")).toHaveLength(BULK + flows);
      for (const kind of ["ARP", "ICMP", "ICMPv6"]) {
        expect(kinds).toContain(kind);
        expect(kinds.indexOf(kind)).toBeLessThan(2 * IN_ROWS); // some come again later
      }
    });

    it("what has come meanwhile is read before more of a flow that had more than a turn", () => {
      const tap = open(NONE, { furtherQueues: 7 });
      transmitFlows(3 * IN_ROWS, 0);
      expect(readOnce(tap)).toHaveLength(IN_ROWS);
      transmitFlows(0);
      const read = readOnce(tap).map(({ port }) => port);
      expect(read.indexOf(20_000)).toBeGreaterThan(FLOWS / 2); // some of them share its queue
      expect(read.lastIndexOf(20_000)).toBe(IN_ROWS - 1);
    });

    it("a flow that had more than a turn waits behind those that have little, but not for ever", () => {
      const tap = open(NONE, { furtherQueues: 255 });
      transmitFlows(3 * IN_ROWS, 0);
      expect(readOnce(tap)).toHaveLength(IN_ROWS);
      const isRead = () => readOnce(tap).some(({ port }) => port === 20_000);
      let turns = 0;
      do {
        transmitFlows(0, 30 * FLOWS); // more than a turn of them
        turns++;
      } while (!isRead() && turns < 20);
      expect(turns).toBeGreaterThan(8);
      expect(turns).toBeLessThan(20);
    });

    it("the one that is kept gets all when the others are closed", () => {
      const tap = open(NONE, { furtherQueues: 7 });
      const fd = addon().duplicate(tap.fd);
      tap.close();
      const kept = new NativeTap({ name: tap.name, fd, keptOnly: true });
      onTestFinished(() => kept.close());
      transmitFlows();
      expectAll(readAll(kept));
    });

    it("a device that is elsewhere by now is not made anew for them", () => {
      const tap = open(NONE, { furtherQueues: 7 });
      const fd = addon().duplicate(tap.fd);
      tap.close();
      const kept = new NativeTap({ name: tap.name, fd, furtherQueues: 7 });
      onTestFinished(() => kept.close());
      expect(links()).not.toContain(`${tap.name}:`);
      transmitFlows();
      expectAll(readAll(kept));
    });

    it("what waits in them when the one is left to somebody else comes before what is sent then", () => {
      const tap = open(NONE, { furtherQueues: 7 });
      const fd = addon().duplicate(tap.fd);
      transmitFlows();
      alone(tap).gather();
      transmitFlows();
      const before = readAll(tap);
      expect(before.length).toBeGreaterThan(FLOWS / 2);
      tap.close();
      const kept = new NativeTap({ name: tap.name, fd, keptOnly: true });
      onTestFinished(() => kept.close());
      const read = [...before, ...readAll(kept)];
      for (const { port } of [bulk[0]!, ...others]) {
        const numbers = read
          .filter((datagram) => datagram.port === port)
          .map(({ number }) => number);
        const sent = port === 20_000 ? bulk.map(({ number }) => number) : [0];
        expect(numbers, `port ${port}`).toEqual([...sent, ...sent]);
        const early = before.filter((datagram) => datagram.port === port);
        expect([0, sent.length], `port ${port}`).toContain(early.length);
      }
    });

    it("are nobody else's", () => {
      const name = uniqueName();
      const tap = new NativeTap({ name, furtherQueues: 7 });
      onTestFinished(() => tap.close());
      for (const furtherQueues of [0, 7]) {
        expect(() => new NativeTap({ name, furtherQueues })).toThrow(/is in use/);
      }
    });

    it("of a device that is kept are opened when what waits there has been read", async () => {
      const name = uniqueName();
      const tap = new NativeTap({ name, furtherQueues: 7 });
      const before = descriptorsOf("/dev/net/tun") - 8;
      const queues = () => descriptorsOf("/dev/net/tun") - before;
      expect(queues()).toBe(8);
      const fd = addon().duplicate(tap.fd);
      tap.close();
      expect(queues()).toBe(1);
      const kept = new NativeTap({ name, fd, furtherQueues: 7 });
      onTestFinished(() => kept.close());
      const taps = alone(kept);
      expect(queues()).toBe(1);
      ip("link", "set", name, "up");
      await until("what the kernel sends by itself", () => taps.read(batch) > 0);
      expect(queues()).toBe(8);
    });

    it("of a device that is kept are opened beside a stream without one frame overtaking another", () => {
      const tap = open(NONE, { furtherQueues: 7, mtu: 65_521 });
      // What sends is read within its namespace: elsewhere no queue would be opened.
      const code = `
        import { spawn } from "node:child_process";
        import { Batch } from "./src/batch.ts";
        import { addon } from "./src/device/native.ts";
        import { NativeTap, NativeTaps } from "./src/device/tap.ts";
        const sender = spawn(process.execPath, ["-e", ${JSON.stringify(`
          const socket = require("node:dgram").createSocket("udp4");
          const payload = Buffer.alloc(60_000);
          let number = 0;
          socket.connect(9, "192.0.2.2", function send() {
            for (let burst = 0; burst < 16; burst++) {
              payload.writeUInt32BE(number++);
              socket.send(payload);
            }
            setImmediate(send);
          });`)}]);
        const batch = new Batch();
        let [frames, overtaken] = [0, 0];
        for (let turn = 0; turn < 20; turn++) {
          const kept = new NativeTap({ name: "${tap.name}", fd: addon().duplicate(3), furtherQueues: 7 });
          const taps = new NativeTaps();
          taps.add(1, kept, (error) => { throw error; });
          let last = -1;
          const [end, enough] = [performance.now() + 100, frames + 500];
          while (performance.now() < end || frames < enough) {
            const rows = taps.read(batch);
            for (let row = 0; row < rows; row++) {
              const number = batch.view.getUint32(batch.inOffset[row] + 42);
              if (batch.inLength[row] < 60_000) continue;
              frames++;
              if (number < last) overtaken++;
              last = number;
            }
          }
          taps.gather();
          taps.close();
          kept.close();
          await new Promise(setImmediate);
        }
        sender.kill();
        console.log(overtaken);`;
      const fd = addon().duplicate(tap.fd);
      onTestFinished(() => closeSync(fd));
      tap.close();
      const prefix = ["nsenter", `--net=/run/netns/${namespace}`];
      const { output } = moduleChild(code, prefix, [fd]);
      expect(output).toBe("0\n");
    });

    it("they go with the device, which is told of once", async () => {
      const tap = open(NONE, { furtherQueues: 7 });
      const taps = new NativeTaps();
      onTestFinished(() => taps.close());
      const lost: VtepError[] = [];
      taps.add(1, tap, (error) => lost.push(error));
      within("ip", "link", "delete", tap.name);
      await until("it is told of", () => {
        taps.read(batch);
        return lost.length > 0;
      });
      expect(taps.read(batch)).toBe(0);
      await pause(0);
      expect(lost).toHaveLength(1);
    });
  });

  it("gives several queues each flow by what its frames are, not by where its answers were written", async () => {
    const { queues } = openTwo("192.0.2.1/24");
    /** Asks for the kernel's address as one of many stations; which queue it answers to. */
    const asked = async (station: number, by: NativeTap): Promise<number> => {
      batch.slab.set(ARP_REQUEST, 0);
      for (const at of [11, 27, 31]) batch.slab[at] = station; // its MAC twice, and its address
      setRow(batch, 0, { offset: 0, length: ARP_REQUEST.length });
      expect(alone(by).write(batch, 1)).toBe(0);
      let answered = -1;
      await until(`an answer to ${station}`, () => {
        for (const [at, queue] of queues.entries()) {
          for (let row = alone(queue).read(batch) - 1; row >= 0; row--) {
            const frame = batch.slab.subarray(batch.inOffset[row]!);
            const isArp = frame[12] === 0x08 && frame[13] === 0x06;
            if (isArp && frame[5] === station) answered = at;
          }
        }
        return answered >= 0;
      });
      return answered;
    };
    const used = new Set<number>();
    for (let station = 2; station < 34; station++) {
      const [first, second] = [await asked(station, queues[0]!), await asked(station, queues[1]!)];
      expect(second, `station ${station}`).toBe(first);
      used.add(first);
    }
    expect(used.size).toBe(2);
  });
});

describe("several queues of one device", () => {
  it("are queues of the same, which stays until the last is closed", () => {
    const name = uniqueName();
    const first = new NativeTap({ name, multiQueue: true });
    const second = new NativeTap({ name, multiQueue: true });
    onTestFinished(() => {
      first.close();
      second.close();
    });
    expect(second.name).toBe(name);
    expect(links()).toContain(`${name}:`);
    first.close();
    expect(links()).toContain(`${name}:`);
    expect(alone(second).read(new Batch())).toBe(0);
    second.close();
    expect(links()).not.toContain(`${name}:`);
  });

  it("no other user joins them who has no capability, though everybody may open /dev/net/tun", () => {
    const name = uniqueName();
    const tap = new NativeTap({ name, multiQueue: true });
    onTestFinished(() => tap.close());
    expect(joinAsNobody(name)).toBe("EPERM\n");
  });

  it("nor when they were kept, and another user's before", () => {
    const name = uniqueName();
    const former = new NativeTap({ name, multiQueue: true });
    const fd = addon().duplicate(former.fd);
    former.close();
    execFileSync("python3", ["-c", GIVE_TO_NOBODY], {
      stdio: ["ignore", "inherit", "inherit", fd],
    });
    const kept = new NativeTap({ name, fd, multiQueue: true });
    onTestFinished(() => kept.close());
    expect(joinAsNobody(name)).toBe("EPERM\n");
  });

  it("both write, and between them read all that the kernel sends", async () => {
    const name = uniqueName();
    const queues = [1, 2].map(() => new NativeTap({ name, multiQueue: true }));
    onTestFinished(() => {
      for (const queue of queues) queue.close();
    });
    const batch = new Batch();
    ip("link", "set", name, "up");
    batch.slab.set(ARP_REQUEST, 0);
    setRow(batch, 0, { offset: 0, length: ARP_REQUEST.length });
    for (const queue of queues) expect(alone(queue).write(batch, 1)).toBe(0);
    expect(statistic(name, "rx_packets")).toBe(2);
    let read = 0;
    await until("what the kernel sends by itself", () => {
      for (const queue of queues) read += alone(queue).read(batch);
      return read > 0 && read === statistic(name, "tx_packets");
    });
  });
});

describe("the TAPs of a thread", () => {
  const namespace = uniqueName();
  beforeAll(() => ip("netns", "add", namespace));
  afterAll(() => ip("netns", "delete", namespace));

  /** So many, up, in slots 10, 20, 30, …; who of them was lost. */
  function open(count: number) {
    const taps = new NativeTaps();
    const lost: number[] = [];
    const members = new Map<number, NativeTap>();
    onTestFinished(() => {
      taps.close();
      for (const tap of members.values()) tap.close();
    });
    for (let slot = 10; slot <= 10 * count; slot += 10) {
      const tap = new NativeTap({ name: uniqueName() });
      members.set(slot, tap);
      taps.add(slot, tap, () => lost.push(slot));
      ip("link", "set", tap.name, "netns", namespace);
    }
    const lines = [...members.values()].flatMap(({ name }) => [
      `address add 192.0.2.1/24 dev ${name}`,
      `link set ${name} up`,
    ]);
    const input = lines.join("\n");
    execFileSync("ip", ["-netns", namespace, "-batch", "-"], { input });
    return { taps, lost, members, slots: [...members.keys()] };
  }

  const batch = new Batch();

  /** Asks for the kernel's address by each of these TAPs, in this order; how many were not written. */
  function ask(taps: NativeTaps, slots: readonly number[]): number {
    batch.slab.set(ARP_REQUEST, HEADROOM);
    for (const [row, slot] of slots.entries()) {
      setRow(batch, row, { offset: HEADROOM, length: ARP_REQUEST.length, tap: slot });
    }
    return taps.write(batch, slots.length);
  }

  /** The slots of the answers that one read brings. */
  function answers(taps: NativeTaps): number[] {
    const rows = Array.from({ length: taps.read(batch) }, (_, row) => row);
    const isArp = (row: number) => batch.slab[batch.inOffset[row]! + 13] === 0x06;
    return rows.filter(isArp).map((row) => batch.inTap[row]!);
  }

  it("are written by one call, each its own frames, and read by one, each in its turn", async () => {
    const { taps, slots } = open(5);
    expect(ask(taps, [30, 10, 10, 50, 20, 40, 10])).toBe(0);
    const got: number[] = [];
    await until("the answers", () => {
      got.push(...answers(taps));
      return got.length === 7;
    });
    expect([...got].sort()).toEqual([10, 10, 10, 20, 30, 40, 50]);
    // A frame each, over and over: who had one was asked for one, and none is forgotten for it.
    for (let round = 0; round < 3; round++) {
      expect(ask(taps, [...slots, ...slots])).toBe(0);
      const again: number[] = [];
      await until("two answers each", () => {
        again.push(...answers(taps));
        return again.length === 10;
      });
      for (const slot of slots) expect(again.filter((one) => one === slot)).toHaveLength(2);
    }
    expect(answers(taps)).toEqual([]);
  });

  it("are asked each before one is asked again, however much waits there", async () => {
    const { taps, slots } = open(3);
    const first = slots[0]!;
    for (let burst = 0; burst < 3; burst++) ask(taps, new Array(250).fill(first));
    ask(taps, [20, 30]);
    const order: number[] = [];
    await until("every answer", () => {
      order.push(...answers(taps));
      return order.length === 752;
    });
    const others = [20, 30].map((slot) => order.indexOf(slot));
    for (const at of others) expect(at).toBeLessThan(2 * IN_ROWS);
  });

  it("each get their part again as soon as they have more than a frame", async () => {
    const { taps, slots } = open(2);
    const all = async (count: number) => {
      const reads: number[][] = [];
      await until("every answer", () => {
        const got = answers(taps);
        if (got.length > 0) reads.push(got);
        return reads.flat().length === count;
      });
      return reads;
    };
    ask(taps, slots);
    await all(2); // each had one: each is asked for one
    const burst = slots.flatMap((slot) => new Array<number>(400).fill(slot));
    ask(taps, burst);
    const reads = await all(800);
    expect(reads.length).toBeLessThan(10);
    // What one TAP has is no reason to take little of the other.
    const last = reads.findIndex((got) => got.includes(20));
    expect(last).toBeLessThan(4);
  });

  it.each([0, 1])(
    "are not woken for who has left and is open still: %i further queues",
    async (furtherQueues) => {
      const name = uniqueName();
      const taps = new NativeTaps();
      const tap = new NativeTap({ name, furtherQueues });
      const fd = addon().duplicate(tap.fd);
      taps.add(1, tap, () => {});
      let calls = 0;
      taps.watch(() => calls++);
      if (furtherQueues > 0) taps.remove(1);
      else tap.close();
      const still = furtherQueues > 0 ? tap : new NativeTap({ name, fd });
      onTestFinished(() => {
        taps.close();
        still.close();
        if (furtherQueues > 0) closeSync(fd);
      });
      ip("link", "set", name, "up");
      await until("what the kernel sends by itself", () => alone(still).read(batch) > 0);
      expect(calls).toBe(0);
    },
  );

  it("lose no frame that was read before it turned out that one of them is gone", async () => {
    const { taps, lost, members } = open(3);
    expect(ask(taps, [10, 30])).toBe(0);
    ip("-netns", namespace, "link", "delete", members.get(20)!.name);
    const got: number[] = [];
    await until("the answers of the others", () => {
      got.push(...answers(taps));
      return got.length === 2 && lost.length === 1;
    });
    expect([...got].sort()).toEqual([10, 30]);
  });

  it("go on when one of them is lost, or leaves", async () => {
    const { taps, lost, members } = open(4);
    ip("-netns", namespace, "link", "delete", members.get(20)!.name);
    taps.remove(40);
    expect(ask(taps, [10, 20, 30, 40])).toBe(2);
    expect([...batch.outError.subarray(0, 4)]).toEqual([0, EBADFD, 0, ENODEV]);
    const got: number[] = [];
    await until("the answers of the others", () => {
      got.push(...answers(taps));
      return got.length === 2;
    });
    expect([...got].sort()).toEqual([10, 30]);
    expect(lost).toEqual([20]);
    expect(ask(taps, [20])).toBe(1);
    expect(batch.outError[0]).toBe(ENODEV);
  });
});

describe("a device that is deleted", () => {
  /** An open TAP, its watch's errors, and how often it was readable. */
  function watched() {
    const tap = new NativeTap({ name: uniqueName() });
    onTestFinished(() => tap.close());
    const lost: VtepError[] = [];
    const taps = alone(tap, (error) => lost.push(error));
    taps.watch(() => taps.read(new Batch()));
    return { tap, taps, lost };
  }

  it("is told once, by the event loop", async () => {
    const { tap, taps, lost } = watched();
    ip("link", "delete", tap.name);
    await until("the loss", () => lost.length > 0);
    const batch = new Batch();
    setRow(batch, 0, { offset: 0, length: 60 });
    expect(taps.read(batch)).toBe(0);
    expect(taps.write(batch, 1)).toBe(1);
    expect(batch.outError[0]).toBe(ENODEV);
    await pause(20);
    expect(lost).toHaveLength(1);
    expect(lost[0]).toMatchObject({ name: "VtepError", code: "LOST" });
    expect(lost[0]!.message).toContain(tap.name);
  });

  it.each(["read", "write"] as const)("is told once, after a %s, not during it", async (method) => {
    const { tap, taps, lost } = watched();
    ip("link", "delete", tap.name);
    const batch = new Batch();
    setRow(batch, 0, { offset: 0, length: 60 });
    if (method === "read") expect(taps.read(batch)).toBe(0);
    else expect(taps.write(batch, 1)).toBe(1);
    expect(lost).toHaveLength(0);
    await pause(20);
    expect(lost).toHaveLength(1);
  });

  it("is not told to who has closed it", async () => {
    const { tap, lost } = watched();
    ip("link", "delete", tap.name);
    alone(tap).read(new Batch());
    tap.close();
    await pause(20);
    expect(lost).toHaveLength(0);
  });

  it("may be closed in onLost", async () => {
    const tap = new NativeTap({ name: uniqueName() });
    const closed = new Promise<string>((resolve) => {
      const taps = alone(tap, ({ code }) => {
        tap.close();
        resolve(code);
      });
      taps.watch(() => taps.read(new Batch()));
    });
    ip("link", "delete", tap.name);
    expect(await closed).toBe("LOST");
  });
});

describe("what cannot be opened", () => {
  const refused = (code: string, message: RegExp) =>
    expect.objectContaining({
      name: "VtepError",
      code,
      message: expect.stringMatching(message),
      cause: expect.objectContaining({ syscall: expect.any(String) }),
    });

  it("has the name of an interface that is no TAP", () => {
    const open = () => new NativeTap({ name: "lo" });
    expect(open).toThrow(refused("NAME_IN_USE", /^interface lo exists .*: choose another name/));
  });

  it("has the name of a TAP in use", () => {
    const name = uniqueName();
    const tap = new NativeTap({ name });
    onTestFinished(() => tap.close());
    expect(() => new NativeTap({ name })).toThrow(refused("NAME_IN_USE", /is in use/));
    const several = () => new NativeTap({ name, multiQueue: true });
    expect(several).toThrow(refused("NAME_IN_USE", new RegExp(`^interface ${name} exists`)));
    expect(links()).toContain(`${name}:`);
  });

  it.each(["", "sixteen-letters!", "a/b", "a b", "a:b", ".", "..", "tap%d", "ü".repeat(8)])(
    "has a name that no interface can have: %j",
    (name) => {
      expect(() => new NativeTap({ name })).toThrow(RangeError);
    },
  );

  /** What opening says in a process that `prefix` has restricted. */
  function openWithin(...prefix: string[]): string {
    return moduleChild(
      `import { NativeTap } from "./src/device/tap.ts";
       try { new NativeTap({ name: "vtep7" }).close(); console.log("opened"); }
       catch ({ code, message, cause }) { console.log(code, cause.code, message); }`,
      prefix,
    ).output;
  }

  it("needs a capability", () => {
    const wanted = "creating TAP vtep7 needs CAP_NET_ADMIN: run as root or with that capability\n";
    const without = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"];
    expect(openWithin(...without)).toBe(`PERMISSION EPERM ${wanted}`);
  });

  it("needs to be let in by /dev/net/tun, whatever its capabilities", () => {
    const keep = 'mount -t tmpfs none /dev/net && mknod -m 600 /dev/net/tun c 10 200 && exec "$@"';
    const nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    const able = [...nobody, "--inh-caps=+net_admin", "--ambient-caps=+net_admin"];
    expect(openWithin("unshare", "--mount", "sh", "-c", keep, "sh", ...able)).toMatch(
      /^PERMISSION EACCES \/dev\/net\/tun cannot be opened \(EACCES\): run as root, or with CAP_NET_ADMIN where its mode/,
    );
  });

  it("needs /dev/net/tun", () => {
    const hide = 'mount -t tmpfs none /dev/net && exec "$@"';
    expect(openWithin("unshare", "--mount", "sh", "-c", hide, "sh")).toMatch(
      /^TUN_MISSING ENOENT there is no \/dev\/net\/tun: load the module/,
    );
    const empty = 'mount -t tmpfs none /dev/net && mknod /dev/net/tun c 10 251 && exec "$@"';
    expect(openWithin("unshare", "--mount", "sh", "-c", empty, "sh")).toMatch(/^TUN_MISSING EN/);
  });
});

/** By a user without rights, TUNSETIFF of <linux/if_tun.h> on descriptor 3, with IFF_TAP, IFF_NO_PI, IFF_VNET_HDR and IFF_MULTI_QUEUE. */
const JOIN = `
import errno, fcntl, os, struct, sys
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
try:
    fcntl.ioctl(3, 0x400454ca, struct.pack("16sH22x", sys.argv[1].encode(), 0x5102))
    print("joined")
except OSError as error:
    print(errno.errorcode[error.errno])`;
/** TUNSETOWNER. */
const GIVE_TO_NOBODY = "import fcntl; fcntl.ioctl(3, 0x400454cc, 65534)";

/** What joining says to a user without rights, who has opened /dev/net/tun, as udev lets everybody. */
function joinAsNobody(name: string): string {
  const fd = openSync("/dev/net/tun", "r+");
  try {
    return execFileSync("python3", ["-c", JOIN, name], {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "inherit", fd],
    });
  } finally {
    closeSync(fd);
  }
}

function links(): string {
  return execFileSync("ip", ["-brief", "link"], { encoding: "utf8" }).replaceAll(/ +/g, ": ");
}

function descriptorsOf(file: string): number {
  const folder = "/proc/self/fd";
  return readdirSync(folder).filter((fd) => {
    try {
      return readlinkSync(`${folder}/${fd}`) === file;
    } catch {
      return false; // the one that reads the folder
    }
  }).length;
}

function statistic(name: string, counter: string): number {
  const file = `/sys/class/net/${name}/statistics/${counter}`;
  return Number(execFileSync("cat", [file], { encoding: "utf8" }));
}

function mac(bytes: Uint8Array): string {
  return [...bytes.subarray(0, 6)].map((byte) => byte.toString(16).padStart(2, "0")).join(":");
}

function frameOf(batch: Batch, row: number): Buffer {
  const offset = batch.inOffset[row]!;
  return Buffer.from(batch.slab.subarray(offset, offset + batch.inLength[row]!));
}

/** The sum over pseudo header and datagram: 0xffff when its checksum is right. */
function udpSum(frame: Buffer): number {
  const datagram = frame.subarray(34);
  const length = Buffer.from([0, 17, datagram.length >> 8, datagram.length & 0xff]);
  const summed = Buffer.concat([frame.subarray(26, 34), length, datagram, Buffer.alloc(1)]);
  let sum = 0;
  for (let at = 0; at + 1 < summed.length; at += 2) {
    sum += summed.readUInt16BE(at);
    if (sum > 0xffff) sum -= 0xffff;
  }
  return sum;
}
