import fc from "fast-check";
import { describe, expect, it } from "vitest";
import * as vxlan from "../../../src/wire/vxlan.ts";
import { hex, place, read, surroundings } from "./frames.ts";

const anyVni = fc.integer({ min: 0, max: vxlan.MAX_VNI });

describe("the VXLAN header (RFC 7348 section 5)", () => {
  it("costs 50 bytes over IPv4 and 70 over IPv6, and is received on port 4789", () => {
    expect(vxlan.HEADER).toBe(8);
    expect(vxlan.OVERHEAD_IPV4).toBe(50);
    expect(vxlan.OVERHEAD_IPV6).toBe(70);
    expect(vxlan.DEFAULT_PORT).toBe(4789);
    expect(vxlan.MAX_VNI).toBe(16_777_215);
  });

  it("is written with the I flag, the VNI and zeros, whatever was there before", () => {
    const { view, at } = place(new Uint8Array(8).fill(0xff));
    vxlan.writeHeader(view, at, 0x123456);
    expect(read(view, at, 8)).toEqual(hex("08000000 12345600"));
  });

  it("is read as it was written, for every VNI, and takes exactly 8 bytes", () => {
    fc.assert(
      fc.property(anyVni, fc.nat(7), (vni, shift) => {
        const { view, at } = place(new Uint8Array(8), 0xff, shift);
        vxlan.writeHeader(view, at, vni);
        expect(vxlan.hasVni(view, at)).toBe(true);
        expect(vxlan.vni(view, at)).toBe(vni);
        expect(vxlan.hasReservedBits(view, at)).toBe(false);
        expect(surroundings(view, at, 8).every((byte) => byte === 0xff)).toBe(true);
      }),
    );
  });

  it("has a VNI only where the I flag is set, no matter which other flags are", () => {
    for (let flags = 0; flags < 256; flags++) {
      const { view, at } = place(Uint8Array.from([flags, 0xff, 0xff, 0xff, 0, 0, 1, 0xff]));
      expect(vxlan.hasVni(view, at)).toBe((flags & 0x08) !== 0);
      expect(vxlan.vni(view, at)).toBe(1);
    }
  });

  it("has reserved bits where any of the 39 bits but I and the VNI is set", () => {
    for (let bit = 0; bit < 64; bit++) {
      const { view, at } = place(hex("08000000 abcdef00"), 0);
      view.setUint8(at + (bit >> 3), view.getUint8(at + (bit >> 3)) ^ (0x80 >> (bit & 7)));
      const isOurs = bit === 4 || (bit >= 32 && bit < 56);
      expect(vxlan.hasReservedBits(view, at), `bit ${bit}`).toBe(!isOurs);
    }
  });
});
