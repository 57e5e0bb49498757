import fc from "fast-check";
import { describe, expect, it } from "vitest";
import * as ip from "../../../src/wire/ip.ts";
import {
  authenticationHeader,
  bytes,
  documentationIpv4,
  extensionHeader,
  fence,
  fragmentHeader,
  ipv4Packet,
  ipv6Packet,
  place,
} from "./frames.ts";

const HOP_BY_HOP = 0;
const ROUTING = 43;
const FRAGMENT = 44;
const ESP = 50;
const AUTHENTICATION = 51;
const NO_NEXT_HEADER = 59;
const DESTINATION_OPTIONS = 60;
const UDP = 17;

describe("an IPv4 header", () => {
  const payload = new Uint8Array(8);

  it("is read field by field", () => {
    const { view, at } = place(
      ipv4Packet({ protocol: UDP, payload, source: documentationIpv4(200) }),
    );
    expect(ip.version(view, at)).toBe(4);
    expect(ip.ipv4HeaderLength(view, at)).toBe(20);
    expect(ip.ipv4Protocol(view, at)).toBe(UDP);
    expect(ip.ipv4Source(view, at)).toBe(0xc00002c8 | 0);
    expect(ip.ipv4Destination(view, at)).toBe(0xc0000202 | 0);
  });

  it("may have options of up to 40 bytes", () => {
    for (let words = 0; words <= 10; words++) {
      const packet = ipv4Packet({ protocol: UDP, payload, options: Array(words * 4).fill(1) });
      const { view, at } = place(packet);
      expect(ip.ipv4HeaderLength(view, at)).toBe(20 + words * 4);
      expect(ip.isIpv4(view, at, packet.length)).toBe(true);
    }
  });

  it("is whole only where all of it lies in the frame, options included", () => {
    const header = ipv4Packet({ protocol: UDP, payload: bytes(), options: [1, 1, 1, 1] });
    for (let length = 0; length <= 30; length++) {
      const packet = bytes(header, new Uint8Array(6)).subarray(0, length);
      expect(ip.isIpv4(fence(packet), 0, length), `${length} bytes`).toBe(length >= 24);
    }
  });

  it("is whole in exactly 20 bytes where it has no options", () => {
    const header = ipv4Packet({ protocol: UDP, payload: bytes() });
    expect(ip.isIpv4(fence(header), 0, 20)).toBe(true);
    expect(ip.isIpv4(fence(header.subarray(0, 19)), 0, 19)).toBe(false);
  });

  it("is none where the version is not 4 or the header claims fewer than 20 bytes", () => {
    for (let first = 0; first < 256; first++) {
      const packet = ipv4Packet({ protocol: UDP, payload: new Uint8Array(60) });
      packet[0] = first;
      const { view, at } = place(packet);
      expect(ip.isIpv4(view, at, packet.length)).toBe(first >> 4 === 4 && (first & 15) >= 5);
    }
  });

  it("is a fragment's where more follow or it has an offset, whatever DF says", () => {
    const fragment = (bits: number) => {
      const { view, at } = place(ipv4Packet({ protocol: UDP, payload, fragment: bits }));
      return ip.ipv4IsFragment(view, at);
    };
    expect(fragment(0x0000)).toBe(false);
    expect(fragment(0x4000)).toBe(false);
    expect(fragment(0x8000)).toBe(false);
    expect(fragment(0x2000)).toBe(true);
    expect(fragment(0x0001)).toBe(true);
    expect(fragment(0x1fff)).toBe(true);
  });
});

describe("an IPv6 header", () => {
  it("is read field by field", () => {
    const { view, at } = place(
      ipv6Packet({ next: UDP, hopLimit: 255, payload: new Uint8Array(300) }),
    );
    expect(ip.version(view, at)).toBe(6);
    expect(ip.ipv6NextHeader(view, at)).toBe(UDP);
    expect(ip.ipv6HopLimit(view, at)).toBe(255);
    expect(ip.ipv6PayloadLength(view, at)).toBe(300);
    view.setUint16(at + 4, 65_535);
    expect(ip.ipv6PayloadLength(view, at)).toBe(65_535);
  });

  it("is whole only where 40 bytes of version 6 lie in the frame", () => {
    const header = ipv6Packet({ next: UDP, payload: bytes() });
    for (let length = 0; length <= 40; length++) {
      expect(ip.isIpv6(fence(header.subarray(0, length)), 0, length)).toBe(length === 40);
    }
    const other = header.with(0, 0x40);
    expect(ip.isIpv6(fence(other), 0, 40)).toBe(false);
  });
});

describe("the upper layer of an IPv6 packet", () => {
  function upper(next: number, payload: Uint8Array): { protocol: number; offset: number } | "none" {
    const packet = ipv6Packet({ next, payload });
    const answer = ip.ipv6UpperLayer(fence(packet), 0, packet.length);
    if (answer === ip.NO_UPPER_LAYER) return "none";
    return { protocol: ip.upperProtocol(answer), offset: ip.upperOffset(answer) };
  }

  it("follows the fixed header where there is no extension header", () => {
    expect(upper(UDP, new Uint8Array(8))).toEqual({ protocol: UDP, offset: 40 });
    expect(upper(ESP, bytes())).toEqual({ protocol: ESP, offset: 40 });
    expect(upper(NO_NEXT_HEADER, bytes())).toEqual({ protocol: NO_NEXT_HEADER, offset: 40 });
    expect(upper(255, bytes())).toEqual({ protocol: 255, offset: 40 });
  });

  it("is found behind any one extension header of any length", () => {
    for (const kind of [HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS, 135, 139, 140]) {
      for (const units of [0, 1, 255]) {
        const offset = 48 + units * 8;
        const payload = bytes(extensionHeader(UDP, units), new Uint8Array(8));
        expect(upper(kind, payload), `header ${kind}`).toEqual({ protocol: UDP, offset });
      }
    }
  });

  it("is found behind an authentication header, whose length counts otherwise", () => {
    const payload = bytes(authenticationHeader(UDP), new Uint8Array(8));
    expect(upper(AUTHENTICATION, payload)).toEqual({ protocol: UDP, offset: 64 });
  });

  it("is found behind the longest chain that RFC 8200 section 4.1 foresees", () => {
    const payload = bytes(
      extensionHeader(DESTINATION_OPTIONS),
      extensionHeader(ROUTING, 1),
      extensionHeader(FRAGMENT, 2),
      fragmentHeader(AUTHENTICATION, 0, false),
      authenticationHeader(DESTINATION_OPTIONS),
      extensionHeader(UDP),
    );
    expect(upper(HOP_BY_HOP, payload)).toEqual({ protocol: UDP, offset: 40 + payload.length });
  });

  it("is 'fragment' for every fragment, the first one included", () => {
    for (const [offset, more] of [
      [0, true],
      [8, true],
      [0xfff8, false],
    ] as const) {
      const payload = bytes(fragmentHeader(UDP, offset, more), new Uint8Array(8));
      expect(upper(FRAGMENT, payload)).toEqual({ protocol: ip.IPV6_FRAGMENT, offset: 40 });
      const behind = bytes(extensionHeader(FRAGMENT), payload);
      expect(upper(HOP_BY_HOP, behind)).toEqual({ protocol: ip.IPV6_FRAGMENT, offset: 48 });
    }
  });

  it("is looked for within an atomic fragment (RFC 6946), whose reserved bits are ignored", () => {
    const header = fragmentHeader(UDP, 0, false);
    expect(upper(FRAGMENT, bytes(header))).toEqual({ protocol: UDP, offset: 48 });
    const reserved = header.with(1, 0xff).with(3, 0x06);
    expect(upper(FRAGMENT, bytes(reserved))).toEqual({ protocol: UDP, offset: 48 });
  });

  it("is none where the chain is cut short, at every length", () => {
    const payload = bytes(
      extensionHeader(FRAGMENT, 1),
      fragmentHeader(AUTHENTICATION, 0, false),
      authenticationHeader(UDP),
    );
    for (let length = 0; length < payload.length; length++) {
      expect(upper(HOP_BY_HOP, payload.subarray(0, length)), `${length} bytes`).toBe("none");
    }
    expect(upper(HOP_BY_HOP, payload)).toEqual({ protocol: UDP, offset: 40 + payload.length });
  });

  it("is not looked for behind more than eight extension headers", () => {
    const chain = (headers: number) =>
      bytes(...Array(headers - 1).fill(extensionHeader(DESTINATION_OPTIONS)), extensionHeader(UDP));
    expect(upper(DESTINATION_OPTIONS, chain(8))).toEqual({ protocol: UDP, offset: 104 });
    expect(upper(DESTINATION_OPTIONS, chain(9))).toBe("none");
  });

  it("never lies outside of the packet nor is looked for there, whatever is in it", () => {
    const headers = fc.constantFrom(HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, 60, 135, UDP);
    const chain = fc
      .array(fc.tuple(headers, fc.nat(3), fc.uint8Array({ minLength: 6, maxLength: 6 })))
      .map((parts) => bytes(...parts.flat()));
    const payloads = fc.oneof(fc.uint8Array({ maxLength: 80 }), chain);
    fc.assert(
      fc.property(headers, payloads, (next, payload) => {
        const answer = upper(next, payload);
        if (answer === "none") return;
        expect(answer.offset).toBeGreaterThanOrEqual(40);
        expect(answer.offset).toBeLessThanOrEqual(40 + payload.length);
      }),
      { numRuns: 2000 },
    );
  });
});
