import fc from "fast-check";
import { describe, expect, it } from "vitest";
import * as checksum from "../../../src/wire/checksum.ts";
import {
  anyIpv4,
  anyIpv6,
  anyPort,
  bytes,
  ethernetFrame,
  fence,
  hex,
  ipv4Packet,
  ipv6Packet,
  LINUX_PARTIAL_UDP4,
  LINUX_PARTIAL_UDP6,
  LINUX_PING4,
  naiveChecksum,
  naiveSum,
  place,
  read,
  surroundings,
  u16,
} from "./frames.ts";

const TCP = 6;
const UDP = 17;
const IP = 14;

function summed(data: Uint8Array, initial = 0, shift = 0): number {
  const { view, at } = place(data, 0xff, shift);
  return checksum.sum(view, at, data.length, initial);
}

describe("the internet checksum", () => {
  it("sums the example of RFC 1071 section 3 to ddf2", () => {
    expect(summed(hex("0001 f203 f4f5 f6f7"))).toBe(0xddf2);
  });

  it("is right in the headers and messages that Linux sends", () => {
    const { view, at } = place(LINUX_PING4);
    expect(checksum.checksum(view, at + IP, 20, 0)).toBe(0);
    expect(checksum.checksum(view, at + 34, LINUX_PING4.length - 34, 0)).toBe(0);
  });

  it("equals the naive one over bytes of every length from 0 to 200, at every alignment", () => {
    for (let length = 0; length <= 200; length++) {
      const data = Uint8Array.from({ length }, (_, i) => (i * 167 + length * 59 + 13) & 0xff);
      for (let shift = 0; shift < 8; shift++) {
        expect(summed(data, 0, shift), `${length} bytes + ${shift}`).toBe(naiveSum(data));
      }
    }
  });

  it("equals the naive one over any bytes, after any initial sum", () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ maxLength: 2000 }),
        anyPort,
        fc.nat(7),
        (data, initial, shift) => {
          const expected = naiveSum(bytes(u16(initial), data));
          expect(summed(data, initial, shift)).toBe(expected);
          const { view, at } = place(data);
          expect(checksum.checksum(view, at, data.length, initial)).toBe(~expected & 0xffff);
        },
      ),
    );
  });

  it("loses no carry in a range of ones, up to the longest", () => {
    for (const length of [65_535, 65_536, checksum.MAX_RANGE - 1, checksum.MAX_RANGE]) {
      const data = new Uint8Array(length).fill(0xff);
      expect(summed(data, 0xffff), `${length} bytes`).toBe(naiveSum(data));
    }
    expect(checksum.MAX_RANGE).toBe(131_072);
  });

  it("adds the carry that adding a carry gives", () => {
    for (const [words, initial, expected] of [
      ["ffff 0001", 0, 1],
      ["ffff 0000 0001", 0, 1],
      [`${"ffff".repeat(16)} 0001`, 0xffff, 1],
      [`${"ffff0000".repeat(8)} 0001`, 0xffff, 1],
    ] as const) {
      expect(naiveSum(bytes(u16(initial), hex(words)))).toBe(expected);
      expect(summed(hex(words), initial), words).toBe(expected);
    }
  });

  it("is chained over ranges of even length as over one range", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), fc.nat(150), (data, half) => {
        const cut = Math.min(half * 2, data.length & ~1);
        expect(summed(data.subarray(cut), summed(data.subarray(0, cut)))).toBe(naiveSum(data));
      }),
    );
  });

  it("reads nothing outside of its range", () => {
    for (let length = 0; length <= 70; length++) {
      const data = new Uint8Array(length).fill(0x11);
      expect(checksum.sum(fence(data), 0, length, 0)).toBe(naiveSum(data));
    }
  });
});

describe("the checksum of an IPv4 header", () => {
  it("is written into the field, whatever was there, options included", () => {
    fc.assert(
      fc.property(anyIpv4, anyIpv4, fc.nat(10), anyPort, (source, destination, words, junk) => {
        const options = Array(words * 4).fill(1);
        const packet = ipv4Packet({
          source,
          destination,
          protocol: UDP,
          options,
          payload: bytes(),
        });
        const broken = packet.slice();
        broken.set(u16(junk), 10);
        const { view, at } = place(broken);
        checksum.writeIpv4HeaderChecksum(view, at);
        expect(read(view, at, packet.length)).toEqual(packet);
      }),
    );
  });
});

/** The pseudo-header as bytes: RFC 9293 section 3.1 and RFC 8200 section 8.1. */
function pseudoHeader(
  source: number[],
  destination: number[],
  protocol: number,
  length: number,
): Uint8Array {
  const size = source.length === 4 ? u16(length) : [length >> 24, length >> 16, ...u16(length)];
  const zeros = source.length === 4 ? [0] : [0, 0, 0];
  return source.length === 4
    ? bytes(source, destination, zeros, protocol, size)
    : bytes(source, destination, size, zeros, protocol);
}

describe("the sum of an IPv6 pseudo-header", () => {
  it("equals the naive one at every length of the upper layer", () => {
    const lengths = fc.oneof(anyPort, fc.integer({ min: 0x10000, max: 0x20000 }));
    fc.assert(
      fc.property(anyIpv6, anyIpv6, fc.nat(255), lengths, (source, destination, next, length) => {
        const { view, at } = place(ipv6Packet({ source, destination, next, payload: bytes() }));
        const expected = naiveSum(pseudoHeader(source, destination, next, length));
        expect(checksum.ipv6PseudoHeaderSum(view, at, next, length)).toBe(expected);
      }),
    );
  });

  it("is what Linux leaves in the field of a partial checksum", () => {
    const { view, at } = place(LINUX_PARTIAL_UDP6);
    expect(checksum.ipv6PseudoHeaderSum(view, at + IP, UDP, 16)).toBe(0x5b96);
  });
});

describe("a checksum that the kernel left partial", () => {
  /** A frame as a TAP hands it over: the field holds the folded sum of the pseudo-header. */
  function partialFrame(
    source: number[],
    destination: number[],
    protocol: number,
    segment: Uint8Array,
    csumOffset: number,
  ): { frame: Uint8Array; csumStart: number; pseudo: Uint8Array } {
    const payload = segment.slice();
    const pseudo = pseudoHeader(source, destination, protocol, segment.length);
    payload.set(u16(naiveSum(pseudo)), csumOffset);
    const isIpv4 = source.length === 4;
    const packet = isIpv4
      ? ipv4Packet({ source, destination, protocol, payload })
      : ipv6Packet({ source, destination, next: protocol, payload });
    const frame = ethernetFrame({ type: isIpv4 ? 0x0800 : 0x86dd, payload: packet });
    return { frame, csumStart: isIpv4 ? 34 : 54, pseudo };
  }

  it("is completed in the datagrams that Linux left so", () => {
    for (const [frame, csumStart, addresses] of [
      [LINUX_PARTIAL_UDP4, 34, 26],
      [LINUX_PARTIAL_UDP6, 54, 22],
    ] as const) {
      const each = (csumStart - addresses) / 2;
      const source = [...frame.subarray(addresses, addresses + each)];
      const destination = [...frame.subarray(addresses + each, csumStart)];
      const { view, at } = place(frame);
      expect(checksum.completeChecksum(view, at, frame.length, csumStart, 6)).toBe(true);
      const segment = read(view, at + csumStart, frame.length - csumStart);
      const pseudo = pseudoHeader(source, destination, UDP, segment.length);
      expect(naiveChecksum(bytes(pseudo, segment))).toBe(0);
    }
  });

  it("is completed so that a receiver accepts it: TCP and UDP, IPv4 and IPv6, odd lengths too", () => {
    const addresses = fc.oneof(fc.tuple(anyIpv4, anyIpv4), fc.tuple(anyIpv6, anyIpv6));
    const layer = fc.constantFrom([TCP, 16] as const, [UDP, 6] as const);
    const segments = fc.uint8Array({ minLength: 20, maxLength: 1500 });
    fc.assert(
      fc.property(addresses, layer, segments, ([source, destination], [protocol, at], segment) => {
        const partial = partialFrame(source, destination, protocol, segment, at);
        const { frame, csumStart, pseudo } = partial;
        const placed = place(frame);
        const { view } = placed;
        expect(checksum.completeChecksum(view, placed.at, frame.length, csumStart, at)).toBe(true);

        const completed = read(view, placed.at, frame.length);
        expect(naiveChecksum(bytes(pseudo, completed.subarray(csumStart)))).toBe(0);
        completed.set(frame.subarray(csumStart + at, csumStart + at + 2), csumStart + at);
        expect(completed).toEqual(frame);
        const outside = surroundings(view, placed.at, frame.length);
        expect(outside.every((byte) => byte === 0xa5)).toBe(true);
      }),
    );
  });

  it("becomes ffff instead of 0, which in UDP would mean that there is none", () => {
    const segment = bytes(u16(1), u16(2), u16(10), u16(0), u16(0));
    const pseudo = pseudoHeader([192, 0, 2, 1], [192, 0, 2, 2], UDP, 10);
    segment.set(u16(naiveChecksum(bytes(pseudo, segment))), 8);
    const { frame } = partialFrame([192, 0, 2, 1], [192, 0, 2, 2], UDP, segment, 6);
    const { view, at } = place(frame);
    expect(checksum.completeChecksum(view, at, frame.length, 34, 6)).toBe(true);
    expect(view.getUint16(at + 40)).toBe(0xffff);
  });

  it("is refused and nothing is written where the field is not all in the frame", () => {
    const frame = new Uint8Array(60).fill(0x33);
    for (let start = -2; start <= 70; start++) {
      for (const offset of [-1, 0, 6, 16, 0xffff]) {
        const { view, at } = place(frame);
        const fits = start >= 0 && offset >= 0 && start + offset + 2 <= frame.length;
        const completed = checksum.completeChecksum(view, at, frame.length, start, offset);
        expect(completed, `${start} + ${offset}`).toBe(fits);
        if (!fits) expect(read(view, at, frame.length)).toEqual(frame);
        expect(surroundings(view, at, frame.length).every((byte) => byte === 0xa5)).toBe(true);
      }
    }
  });
});
