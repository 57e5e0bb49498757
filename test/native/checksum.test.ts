import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { addon } from "../../src/device/native.ts";

const EINVAL = 22;

/** RFC 1071 as written: 16-bit words in network order, end-around carry, complement. */
function naive(frame: Uint8Array, start: number): number {
  let sum = 0;
  for (let at = start; at < frame.length; at += 2) {
    sum += frame[at]! * 256 + (frame[at + 1] ?? 0);
    if (sum > 0xffff) sum -= 0xffff;
  }
  return ~sum & 0xffff || 0xffff;
}

function expectCompleted(frame: Uint8Array, start: number, offset: number): void {
  const expected = Uint8Array.from(frame);
  const sum = naive(frame, start);
  expected[start + offset] = sum >> 8;
  expected[start + offset + 1] = sum & 0xff;
  expect(addon().completeChecksum(frame, start, offset)).toBe(0);
  expect(Buffer.compare(frame, expected)).toBe(0);
}

/** A frame at any alignment, with a checksum field anywhere in it. */
const placed = fc
  .tuple(fc.uint8Array({ minLength: 2, maxLength: 2000 }), fc.nat(15), fc.nat(), fc.nat())
  .map(([bytes, alignment, first, second]) => {
    const frame = new Uint8Array(new ArrayBuffer(bytes.length + alignment), alignment);
    frame.set(bytes);
    const start = first % (frame.length - 1);
    return { frame, start, offset: second % (frame.length - start - 1) };
  });

describe("checksum completion", () => {
  it("agrees with the definition for every start, offset, length and alignment", () => {
    fc.assert(
      fc.property(placed, ({ frame, start, offset }) => expectCompleted(frame, start, offset)),
      { numRuns: 5000 },
    );
  });

  it("agrees for every short frame", () => {
    for (let length = 2; length <= 40; length++) {
      for (let start = 0; start <= length - 2; start++) {
        const frame = Uint8Array.from({ length }, (_, i) => 255 - i * 7);
        expectCompleted(frame, start, length - start - 2);
      }
    }
  });

  it("does not overflow over 64 KiB of ones", () => {
    expectCompleted(new Uint8Array(65_535).fill(0xff), 0, 65_533);
    expectCompleted(new Uint8Array(65_549).fill(0xff), 34, 6);
  });

  it("writes 0xffff for zero, which in UDP would mean that there is none", () => {
    const frame = Uint8Array.of(0xff, 0xff, 0, 0);
    expect(addon().completeChecksum(frame, 0, 2)).toBe(0);
    expect([...frame]).toEqual([0xff, 0xff, 0xff, 0xff]);
  });

  it.each([
    [10, 0, 9],
    [10, 9, 0],
    [10, 10, 0],
    [10, 11, 0],
    [10, 0, 65_535],
    [10, 65_535, 65_535],
    [1, 0, 0],
    [0, 0, 0],
  ])(
    "refuses a field outside of the frame: length %i, start %i, offset %i",
    (length, start, offset) => {
      const frame = new Uint8Array(length).fill(1);
      expect(addon().completeChecksum(frame, start, offset)).toBe(-EINVAL);
      expect(frame.every((byte) => byte === 1)).toBe(true);
    },
  );
});
