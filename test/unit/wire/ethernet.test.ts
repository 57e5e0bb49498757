import fc from "fast-check";
import { describe, expect, it } from "vitest";
import * as ethernet from "../../../src/wire/ethernet.ts";
import {
  anyMac,
  bytes,
  CUSTOMER_TAG,
  ethernetFrame,
  fence,
  place,
  read,
  SERVICE_TAG,
  surroundings,
} from "./frames.ts";

function pair(mac: number[]): [high: number, low: number] {
  const { view, at } = place(Uint8Array.from(mac));
  return [ethernet.macHigh(view, at), ethernet.macLow(view, at)];
}

describe("a MAC address", () => {
  it("is its first 16 bits and its last 32 bits as a signed int32", () => {
    expect(pair([0x00, 0x00, 0x5e, 0x00, 0x53, 0x01])).toEqual([0x0000, 0x5e005301]);
    expect(pair([0x02, 0xfe, 0xff, 0xff, 0xff, 0xff])).toEqual([0x02fe, -1]);
  });

  it("is read, written and read again the same, and takes six bytes", () => {
    fc.assert(
      fc.property(anyMac, (mac) => {
        const [high, low] = pair(mac);
        const { view, at } = place(new Uint8Array(6));
        ethernet.writeMac(view, at, high, low);
        expect([...read(view, at, 6)]).toEqual(mac);
        expect(surroundings(view, at, 6).every((byte) => byte === 0xa5)).toBe(true);
      }),
    );
  });

  it("is multicast where the lowest bit of its first byte is set, broadcast included", () => {
    expect(ethernet.isMulticast(pair([0x01, 0x00, 0x5e, 0x90, 0x10, 0x01])[0])).toBe(true);
    expect(ethernet.isMulticast(pair([0xff, 0xff, 0xff, 0xff, 0xff, 0xff])[0])).toBe(true);
    expect(ethernet.isMulticast(pair([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff])[0])).toBe(false);
    expect(ethernet.isMulticast(pair([0x00, 0x01, 0x5e, 0x00, 0x53, 0x01])[0])).toBe(false);
  });

  it("is zero only where all of its six bytes are", () => {
    expect(ethernet.isZero(...pair([0, 0, 0, 0, 0, 0]))).toBe(true);
    for (let byte = 0; byte < 6; byte++) {
      const mac = [0, 0, 0, 0, 0, 0].with(byte, 0x80);
      expect(ethernet.isZero(...pair(mac)), `byte ${byte}`).toBe(false);
    }
  });

  it("is a valid source where it is neither a group's nor zero", () => {
    expect(ethernet.isValidSource(...pair([0x00, 0x00, 0x5e, 0x00, 0x53, 0x01]))).toBe(true);
    expect(ethernet.isValidSource(...pair([0x02, 0, 0, 0, 0, 0]))).toBe(true);
    expect(ethernet.isValidSource(...pair([0, 0, 0, 0, 0, 1]))).toBe(true);
    expect(ethernet.isValidSource(...pair([0, 0, 0, 0, 0, 0]))).toBe(false);
    expect(ethernet.isValidSource(...pair([0xff, 0xff, 0xff, 0xff, 0xff, 0xff]))).toBe(false);
    expect(ethernet.isValidSource(...pair([0x01, 0x00, 0x5e, 0x90, 0x10, 0x01]))).toBe(false);
  });
});

describe("the text of a MAC address", () => {
  it("is six pairs of lower-case digits with colons, leading zeros kept", () => {
    expect(ethernet.formatMac(0x0000, 0x5e005301)).toBe("00:00:5e:00:53:01");
    expect(ethernet.formatMac(0xffff, -1)).toBe("ff:ff:ff:ff:ff:ff");
    expect(ethernet.formatMac(0, 0)).toBe("00:00:00:00:00:00");
  });

  it("is read in either case, with colons or dashes", () => {
    const mac = { high: 0x0000, low: 0x5e0053af };
    expect(ethernet.parseMac("00:00:5e:00:53:af")).toEqual(mac);
    expect(ethernet.parseMac("00-00-5E-00-53-AF")).toEqual(mac);
    expect(ethernet.parseMac("02:00:ff:00:00:00")).toEqual({ high: 0x0200, low: -0x0100_0000 });
  });

  it("is refused where it is anything else", () => {
    const refused = [
      "",
      "00:00:5e:00:53",
      "00:00:5e:00:53:01:02",
      "00:00:5e:00:53:1",
      "00:00:5e:00:53:0g",
      "00:00-5e:00:53:01",
      "00005e005301",
      " 00:00:5e:00:53:01",
      "00:00:5e:00:53:01\n",
      "0000:5e:00:53:01",
    ];
    for (const text of refused) expect(ethernet.parseMac(text), text).toBeUndefined();
  });

  it("is read as what was formatted, for every address", () => {
    fc.assert(
      fc.property(anyMac, (mac) => {
        const [high, low] = pair(mac);
        expect(ethernet.parseMac(ethernet.formatMac(high, low))).toEqual({ high, low });
      }),
    );
  });
});

describe("what an Ethernet frame carries", () => {
  const payload = Uint8Array.from([0x45, 0, 0, 20]);
  const stacks = [[], [CUSTOMER_TAG], [SERVICE_TAG], [SERVICE_TAG, CUSTOMER_TAG]];

  it("begins behind the header and up to two tags, and its ethertype lies before it", () => {
    for (const tags of stacks) {
      const { view, at } = place(ethernetFrame({ tags, type: 0x0800, payload }));
      const length = 14 + 4 * tags.length + payload.length;
      const network = ethernet.networkOffset(view, at, length);
      expect(network).toBe(at + 14 + 4 * tags.length);
      expect(ethernet.etherType(view, network)).toBe(ethernet.ETHERTYPE_IPV4);
    }
  });

  it("is not looked for behind a third tag, and the ethertype says so", () => {
    const tags = [SERVICE_TAG, CUSTOMER_TAG, CUSTOMER_TAG];
    const frame = ethernetFrame({ tags, type: 0x0800, payload });
    const { view, at } = place(frame);
    const network = ethernet.networkOffset(view, at, frame.length);
    expect(network).toBe(at + 14 + 8);
    expect(ethernet.isTag(ethernet.etherType(view, network))).toBe(true);
  });

  it("is absent from a frame that ends within its header or its tags, at every length", () => {
    for (const tags of stacks) {
      const header = ethernetFrame({ tags, type: 0x0800, payload: bytes() });
      for (let length = 0; length <= header.length; length++) {
        const network = ethernet.networkOffset(fence(header.subarray(0, length)), 0, length);
        expect(network, `${tags.length} tags, ${length} bytes`).toBe(
          length === header.length ? length : -1,
        );
      }
    }
  });

  it("is found without reading outside of the frame, whatever is in it", () => {
    const tagged = fc.uint8Array({ maxLength: 32 }).map((tail) => {
      return bytes(Array(12).fill(0), CUSTOMER_TAG, SERVICE_TAG, tail);
    });
    const frames = fc.oneof(fc.uint8Array({ maxLength: 32 }), tagged);
    fc.assert(
      fc.property(frames, fc.nat(40), (frame, cut) => {
        const length = Math.min(frame.length, cut);
        const network = ethernet.networkOffset(fence(frame.subarray(0, length)), 0, length);
        expect(network).toBeLessThanOrEqual(length);
      }),
    );
  });
});
