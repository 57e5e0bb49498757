import fc from "fast-check";
import { describe, expect, it } from "vitest";
import * as icmp from "../../../src/wire/icmp.ts";
import {
  anyIpv4,
  anyIpv6,
  anyMac,
  anyTags,
  bytes,
  documentationIpv4,
  documentationIpv6,
  ethernetFrame,
  extensionHeader,
  fence,
  fragmentHeader,
  ipv4Packet,
  ipv6Packet,
  LINUX_ARP_REQUEST,
  MAC_A,
  MAC_B,
  naiveChecksum,
  ports,
  read,
  u16,
} from "./frames.ts";

const ROOM = 1300 - 36;
const MARGIN = 32;

/** The answer to a frame; undefined when there is none. Nothing beside it may be touched. */
function answer(frame: Uint8Array, room = ROOM): Uint8Array | undefined {
  const to = new Uint8Array(icmp.LONGEST_ANSWER + 2 * MARGIN).fill(0xa5);
  const view = new DataView(to.buffer);
  const before = frame.slice();
  const at = fence(frame);
  const length = icmp.writeTooBig(at, 0, frame.length, room, view, MARGIN);
  expect(read(at, 0, frame.length)).toEqual(before);
  const untouched = [...to.subarray(0, MARGIN), ...to.subarray(MARGIN + length)];
  expect(untouched.every((byte) => byte === 0xa5)).toBe(true);
  return length === 0 ? undefined : to.slice(MARGIN, MARGIN + length);
}

const udp = (length = 1400) => bytes(ports(1000, 2000, length - 4));
const v4 = (packet: Partial<Parameters<typeof ipv4Packet>[0]> = {}, frame = {}) =>
  ethernetFrame({
    type: 0x0800,
    payload: ipv4Packet({ protocol: 17, payload: udp(), ...packet }),
    ...frame,
  });
const v6 = (packet: Partial<Parameters<typeof ipv6Packet>[0]> = {}, frame = {}) =>
  ethernetFrame({
    type: 0x86dd,
    payload: ipv6Packet({ next: 17, payload: udp(), ...packet }),
    ...frame,
  });

describe("the answer to an IPv4 packet that is too big", () => {
  it("is ICMP fragmentation needed, from where the packet was to go, with the MTU", () => {
    const frame = v4();
    const packet = bytes(
      [0x45, 0, ...u16(576), 0, 0, 0x40, 0, 64, 1, 0, 0],
      documentationIpv4(2),
      documentationIpv4(1),
      [3, 4, 0, 0, 0, 0, ...u16(1250)],
      frame.subarray(14, 14 + 548),
    );
    packet.set(u16(naiveChecksum(packet.subarray(0, 20))), 10);
    packet.set(u16(naiveChecksum(packet.subarray(20))), 22);
    expect(answer(frame)).toEqual(
      ethernetFrame({ destination: MAC_A, source: MAC_B, type: 0x0800, payload: packet }),
    );
  });

  it("is given whether or not DF is set, and to the first fragment", () => {
    for (const fragment of [0x4000, 0, 0x2000, 0x6000]) {
      expect(answer(v4({ fragment }))).toBeDefined();
    }
    for (const fragment of [0x0001, 0x2001, 0x1fff]) {
      expect(answer(v4({ fragment }))).toBeUndefined();
    }
  });

  it("is never given to an ICMP error, and to other ICMP it is", () => {
    const to = (type: number) => answer(v4({ protocol: 1, payload: bytes([type], udp()) }));
    for (const type of [3, 4, 5, 11, 12]) expect(to(type)).toBeUndefined();
    for (const type of [0, 8, 13, 14]) expect(to(type)).toBeDefined();
    expect(answer(v4({ protocol: 1, payload: bytes() }))).toBeUndefined();
  });

  it.each([
    ["broadcast", [255, 255, 255, 255]],
    ["multicast", [239, 1, 2, 3]],
    ["multicast", [224, 0, 0, 1]],
    ["loopback", [127, 0, 0, 1]],
    ["unspecified", [0, 0, 0, 0]],
  ])("is not given where either end is %s", (_, address) => {
    expect(answer(v4({ source: address }))).toBeUndefined();
    expect(answer(v4({ destination: address }))).toBeUndefined();
  });

  it("is for stations at the edges of those ranges", () => {
    for (const first of [1, 126, 128, 223, 240]) {
      expect(answer(v4({ source: [first, 0, 0, 1], destination: [first, 0, 0, 2] }))).toBeDefined();
    }
  });

  it("is none where the path carries less than any IPv4 link", () => {
    expect(answer(v4(), 14 + 68)).toBeDefined();
    expect(answer(v4(), 14 + 67)).toBeUndefined();
  });
});

describe("the answer to an IPv6 packet that is too big", () => {
  it("is ICMPv6 packet too big, from where the packet was to go, with the MTU", () => {
    const frame = v6();
    const message = bytes([2, 0, 0, 0, 0, 0, ...u16(1350)], frame.subarray(14, 14 + 1232));
    const ends = bytes(documentationIpv6(2), documentationIpv6(1));
    const pseudo = bytes(ends, [0, 0], u16(1240), [0, 0, 0, 58]);
    message.set(u16(naiveChecksum(bytes(pseudo, message))), 2);
    const payload = bytes([0x60, 0, 0, 0, ...u16(1240), 58, 64], ends, message);
    expect(answer(frame, 1350 + 14)).toEqual(
      ethernetFrame({ destination: MAC_A, source: MAC_B, type: 0x86dd, payload }),
    );
  });

  it("never tells less than 1280 bytes", () => {
    expect(answer(v6(), 1280 + 13)!.subarray(58, 62)).toEqual(bytes([0, 0, 5, 0]));
    expect(answer(v6(), 1281 + 14)!.subarray(58, 62)).toEqual(bytes([0, 0, 5, 1]));
  });

  it("is never given to an ICMPv6 error or a redirect, and to other ICMPv6 it is", () => {
    const icmp6 = (type: number) => bytes([type], udp());
    const behind = (type: number) => bytes(extensionHeader(58), icmp6(type));
    const first = (type: number) => bytes(fragmentHeader(58, 0, true), icmp6(type));
    const ways = (type: number) => [
      v6({ next: 58, payload: icmp6(type) }),
      v6({ next: 60, payload: behind(type) }),
      v6({ next: 44, payload: first(type) }),
    ];
    for (const type of [1, 2, 3, 4, 127, 137]) {
      for (const frame of ways(type)) expect(answer(frame)).toBeUndefined();
    }
    for (const type of [128, 129, 135, 255]) {
      for (const frame of ways(type)) expect(answer(frame)).toBeDefined();
    }
  });

  it("is given to the first fragment only, and to none whose headers do not end", () => {
    const fragment = (offset: number, more: boolean) =>
      v6({ next: 44, payload: bytes(fragmentHeader(17, offset, more), udp()) });
    expect(answer(fragment(0, true))).toBeDefined();
    expect(answer(fragment(8, true))).toBeUndefined();
    expect(answer(fragment(1208, false))).toBeUndefined();
    const endless = bytes(extensionHeader(17, 200)).subarray(0, 1400);
    expect(answer(v6({ next: 60, payload: endless }))).toBeUndefined();
  });

  it.each([
    ["::", Array(16).fill(0)],
    ["::1", [...Array(15).fill(0), 1]],
    ["multicast", [0xff, 2, ...Array(13).fill(0), 1]],
  ])("is not given where either end is %s", (_, address) => {
    expect(answer(v6({ source: address }))).toBeUndefined();
    expect(answer(v6({ destination: address }))).toBeUndefined();
  });
});

describe("what is no IP packet for a single station", () => {
  it.each([
    ["ARP", LINUX_ARP_REQUEST],
    ["of another type", ethernetFrame({ type: 0x88b5, payload: udp() })],
    ["IPv6 by type and IPv4 by version", v4({}, { type: 0x86dd })],
    ["to a group's MAC", v4({}, { destination: [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] })],
    ["shorter than its headers", v4().subarray(0, 33)],
    ["shorter than its headers", v6().subarray(0, 53)],
    ["shorter than Ethernet", v4().subarray(0, 13)],
    ["empty", bytes()],
  ])("is not answered: %s", (_, frame) => {
    expect(answer(frame)).toBeUndefined();
  });
});

describe("whatever the packet", () => {
  const packet = fc.record({
    source: anyMac,
    destination: anyMac.map(([first, ...rest]) => [first! & 0xfe, ...rest]),
    tags: anyTags,
    length: fc.integer({ min: 0, max: 4000 }),
    room: fc.integer({ min: 500, max: 70_000 }),
  });

  it("an IPv4 answer is well formed, and quotes it", () => {
    const ends = fc.tuple(anyIpv4, anyIpv4);
    const options = fc.constantFrom([], [1, 1, 1, 0], Array(40).fill(1));
    fc.assert(
      fc.property(packet, ends, options, (link, [source, destination], options) => {
        const payload = ipv4Packet({
          source,
          destination,
          protocol: 17,
          options,
          payload: new Uint8Array(link.length).fill(0x5a),
        });
        const written = answer(ethernetFrame({ ...link, type: 0x0800, payload }), link.room);
        if (written === undefined) return;
        const at = 14 + link.tags.length * 4;
        expect(written.subarray(0, 12)).toEqual(bytes(link.source, link.destination));
        expect(written.subarray(12, at)).toEqual(bytes(link.tags.flat(), [0x08, 0]));
        const ip = written.subarray(at);
        expect(ip.subarray(2, 4)).toEqual(bytes(u16(ip.length)));
        expect(naiveChecksum(ip.subarray(0, 20))).toBe(0);
        expect(naiveChecksum(ip.subarray(20))).toBe(0);
        expect(ip.subarray(12, 20)).toEqual(bytes(destination, source));
        expect(ip.subarray(26, 28)).toEqual(bytes(u16(Math.min(link.room - at, 65_535))));
        expect(ip.subarray(28)).toEqual(payload.subarray(0, 548));
      }),
    );
  });

  it("an IPv6 answer is well formed, and quotes it", () => {
    const ends = fc.tuple(anyIpv6, anyIpv6);
    fc.assert(
      fc.property(packet, ends, (link, [source, destination]) => {
        const payload = ipv6Packet({
          source,
          destination,
          next: 17,
          payload: new Uint8Array(link.length).fill(0x5a),
        });
        const written = answer(ethernetFrame({ ...link, type: 0x86dd, payload }), link.room);
        if (written === undefined) return;
        const at = 14 + link.tags.length * 4;
        expect(written.subarray(0, 12)).toEqual(bytes(link.source, link.destination));
        expect(written.subarray(12, at)).toEqual(bytes(link.tags.flat(), [0x86, 0xdd]));
        const ip = written.subarray(at);
        const length = u16(ip.length - 40);
        expect(ip.subarray(4, 6)).toEqual(bytes(length));
        expect(ip.subarray(8, 40)).toEqual(bytes(destination, source));
        const pseudo = bytes(ip.subarray(8, 40), [0, 0], length, [0, 0, 0, 58]);
        expect(naiveChecksum(bytes(pseudo, ip.subarray(40)))).toBe(0);
        expect(ip.subarray(48)).toEqual(payload.subarray(0, 1232));
      }),
    );
  });

  it("nothing is read outside of the frame", () => {
    const noise = fc.uint8Array({ maxLength: 120 });
    const types = fc.constantFrom(
      [0x08, 0x00, 0x45],
      [0x86, 0xdd, 0x60],
      [0x81, 0x00, 0x00],
      [0, 0, 0],
    );
    fc.assert(
      fc.property(noise, types, (frame, type) => {
        frame.set(type.slice(0, Math.max(0, frame.length - 12)), Math.min(12, frame.length));
        answer(frame); // the fence throws
      }),
      { numRuns: 1000 },
    );
  });
});
