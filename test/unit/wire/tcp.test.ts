import fc from "fast-check";
import { describe, expect, it } from "vitest";
import * as tcp from "../../../src/wire/tcp.ts";
import {
  anyTags,
  authenticationHeader,
  bytes,
  documentationIpv4,
  documentationIpv6,
  ethernetFrame,
  extensionHeader,
  fence,
  fragmentHeader,
  ipv4Packet,
  ipv6Packet,
  naiveChecksum,
  naiveSum,
  place,
  read,
  surroundings,
  u16,
} from "./frames.ts";

const SYN = 0x02;
const ACK = 0x10;
const mss = (size: number) => [2, 4, ...u16(size)];
const NOTHING = [1];

interface Segment {
  readonly version?: 4 | 6;
  readonly flags?: number;
  readonly options?: number[];
  readonly payload?: number[];
  readonly tags?: number[][];
  readonly partial?: boolean;
  /** Whether its checksum is off. */
  readonly wrong?: number;
}

/** An Ethernet frame with a TCP segment, and where the segment lies in it. */
function segment(of: Segment = {}): Uint8Array {
  const { version = 4, flags = SYN, options = mss(1460), payload = [], tags = [] } = of;
  const padded = bytes(options, Array((4 - (options.length % 4)) % 4).fill(0));
  const offset = ((20 + padded.length) / 4) << 4;
  const body = bytes(
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
    [offset, flags, 0xff, 0xff, 0, 0, 0, 0],
  );
  const whole = bytes(body, padded, payload);
  const pseudo = pseudoHeader(version, whole.length);
  const sum = of.partial ? naiveSum(pseudo) : naiveChecksum(bytes(pseudo, whole));
  whole.set(u16((sum + (of.wrong ?? 0)) & 0xffff), 16);
  const packet =
    version === 4
      ? ipv4Packet({ protocol: 6, payload: whole })
      : ipv6Packet({ next: 6, payload: whole });
  return ethernetFrame({ tags, type: version === 4 ? 0x0800 : 0x86dd, payload: packet });
}

function pseudoHeader(version: 4 | 6, length: number): Uint8Array {
  return version === 4
    ? bytes(documentationIpv4(1), documentationIpv4(2), [0, 6], u16(length))
    : bytes(documentationIpv6(1), documentationIpv6(2), [0, 0], u16(length), [0, 0, 0, 6]);
}

/** The frame as it is afterwards; undefined when nothing was changed. */
function clamped(frame: Uint8Array, mtu: number, partial = false): Uint8Array | undefined {
  const { view, at } = place(frame);
  const around = surroundings(view, at, frame.length);
  const did = tcp.clampMss(view, at, frame.length, mtu, partial);
  const after = read(view, at, frame.length);
  expect(surroundings(view, at, frame.length)).toEqual(around);
  if (!did) expect(after).toEqual(frame);
  return did ? after : undefined;
}

describe("the MSS of a SYN", () => {
  it.each([
    ["over IPv4", 4, 1400 - 40],
    ["over IPv6", 6, 1400 - 60],
  ] as const)("that asks for more than the MTU is lowered to what fits: %s", (_, version, fits) => {
    for (const flags of [SYN, SYN | ACK, SYN | 0xc0]) {
      const lowered = segment({ version, flags, options: mss(fits) });
      expect(clamped(segment({ version, flags }), 1400)).toEqual(lowered);
    }
    expect(clamped(segment({ version, options: mss(fits) }), 1400)).toBeUndefined();
    expect(clamped(segment({ version, options: mss(536) }), 1400)).toBeUndefined();
  });

  it("is found among other options, aligned or not", () => {
    for (const before of [
      [],
      NOTHING,
      [...NOTHING, ...NOTHING],
      [4, 2, 3, 3, 7],
      [8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
    ]) {
      const at = (size: number) => [...before, ...mss(size), ...NOTHING, 4, 2];
      expect(clamped(segment({ options: at(1460) }), 1400)).toEqual(segment({ options: at(1360) }));
    }
  });

  it("is left alone where it is not there, cut off, or behind nonsense", () => {
    for (const options of [
      [],
      [1, 1, 1, 1],
      [0, 2, ...mss(1460)],
      [3, 0, ...mss(1460)],
      [3, 1, ...mss(1460)],
      [2, 3, 0xff, 0],
      [2, 6, 0xff, 0xff, 0, 0],
      [1, 1, 2, 4],
      [1, 1, 1, 2],
      [3, 40, ...mss(1460)],
    ]) {
      expect(clamped(segment({ options }), 100)).toBeUndefined();
    }
  });

  it.each([0x88b5, 0x88cc, 0x8847])("is not looked for in what is not IP: ethertype %i", (type) => {
    const frame = segment();
    frame.set(u16(type), 12);
    expect(clamped(frame, 1400)).toBeUndefined();
  });

  it("in a segment without SYN is nothing to us", () => {
    expect(clamped(segment({ flags: ACK }), 1400)).toBeUndefined();
  });

  it("needs no checksum while that is left to us", () => {
    for (const version of [4, 6] as const) {
      const fits = 1400 - (version === 4 ? 40 : 60);
      const lowered = segment({ version, options: mss(fits), partial: true });
      expect(clamped(segment({ version, partial: true }), 1400, true)).toEqual(lowered);
    }
  });

  it("does not repair a checksum that was wrong", () => {
    const after = clamped(segment({ wrong: 0x1234 }), 1400)!;
    const whole = after.subarray(34);
    expect(naiveChecksum(bytes(pseudoHeader(4, whole.length), whole))).not.toBe(0);
  });

  it("is not looked for in fragments, nor where the MTU has no room", () => {
    const whole = segment();
    const fragment = whole.slice();
    fragment.set(u16(0x2000), 14 + 6);
    expect(clamped(fragment, 1400)).toBeUndefined();
    const six = bytes(fragmentHeader(6, 0, true), whole.subarray(34));
    const packet = ipv6Packet({ next: 44, payload: six });
    expect(clamped(ethernetFrame({ type: 0x86dd, payload: packet }), 1400)).toBeUndefined();
    expect(clamped(whole, 40)).toBeUndefined();
    expect(clamped(whole, 41)).toBeDefined();
  });

  it("is found behind extension headers", () => {
    const payload = bytes(extensionHeader(6), segment({ version: 6 }).subarray(54));
    expect(
      clamped(ethernetFrame({ type: 0x86dd, payload: ipv6Packet({ next: 60, payload }) }), 1400),
    ).toBeDefined();
  });

  it("stays as it was signed: by TCP-AO, or an authentication header", () => {
    const signature = [29, 16, 1, 1, ...Array(12).fill(0xaa)];
    for (const version of [4, 6] as const) {
      for (const options of [
        [...mss(1460), ...signature],
        [...signature, ...mss(1460)],
      ]) {
        expect(clamped(segment({ version, options }), 1400)).toBeUndefined();
      }
    }
    // MD5 leaves the options out (RFC 2385, 2.0).
    const options = [...mss(1460), 19, 18, ...Array(16).fill(0xaa)];
    expect(clamped(segment({ options }), 1400)).toBeDefined();
    const behind = bytes(authenticationHeader(6), segment({ version: 6 }).subarray(54));
    for (const [next, payload] of [
      [51, behind],
      [60, bytes(extensionHeader(51), behind)],
      [51, bytes(authenticationHeader(60), extensionHeader(6), behind.subarray(24))],
    ] as const) {
      const packet = ipv6Packet({ next, payload });
      expect(clamped(ethernetFrame({ type: 0x86dd, payload: packet }), 1400)).toBeUndefined();
    }
  });

  it("leaves the checksum right, whatever else is there", () => {
    const before = fc.array(fc.constantFrom(NOTHING, [4, 2], [3, 3, 7], [254, 5, 1, 2, 3]), {
      maxLength: 6,
    });
    const any = fc.record({
      version: fc.constantFrom<(4 | 6)[]>(4, 6),
      before: before.map((options) => options.flat()),
      size: fc.integer({ min: 0, max: 0xffff }),
      payload: fc.array(fc.integer({ min: 0, max: 255 }), { maxLength: 60 }),
      tags: anyTags,
      mtu: fc.integer({ min: 61, max: 0xffff }),
    });
    fc.assert(
      fc.property(any, ({ version, before, size, mtu, ...rest }) => {
        const fits = mtu - (version === 4 ? 40 : 60);
        const frame = (size: number) =>
          segment({ ...rest, version, options: [...before, ...mss(size)] });
        const after = clamped(frame(size), mtu);
        if (size <= fits) expect(after).toBeUndefined();
        else {
          // Equal but for zero, which the one's complement writes in two ways.
          const expected = frame(fits);
          const at = 14 + rest.tags.length * 4 + (version === 4 ? 20 : 40);
          const whole = after!.subarray(at);
          expect(naiveChecksum(bytes(pseudoHeader(version, whole.length), whole))).toBe(0);
          expected.set(after!.subarray(at + 16, at + 18), at + 16);
          expect(after).toEqual(expected);
        }
      }),
    );
  });

  it("is read and written within the frame only", () => {
    for (const options of [
      [...NOTHING, ...mss(1460)],
      [1, 1, 1, 2],
    ]) {
      const frame = segment({ options });
      for (let length = 0; length <= frame.length; length++) {
        const cut = frame.slice(0, length);
        tcp.clampMss(fence(cut), 0, length, 1400, false); // the fence throws
      }
    }
  });
});
