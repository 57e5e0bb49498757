import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { CE, decapsulate, ECT_0, ECT_1, ecnOf, innerTos, NOT_ECT } from "../../../src/wire/ecn.ts";
import {
  anyTags,
  bytes,
  ethernetFrame,
  fence,
  ipv4Packet,
  ipv6Packet,
  naiveChecksum,
  ports,
  read,
} from "./frames.ts";

const DROP = "drop";
/** RFC 6040, section 4.2: by inner ECN, what each outer one makes of it. */
const TABLE: Record<number, (number | typeof DROP)[]> = {
  [NOT_ECT]: [NOT_ECT, NOT_ECT, NOT_ECT, DROP],
  [ECT_1]: [ECT_1, ECT_1, ECT_1, CE],
  [ECT_0]: [ECT_0, ECT_1, ECT_0, CE],
  [CE]: [CE, CE, CE, CE],
};

type Version = 4 | 6;

function packet(version: Version, tos: number): Uint8Array {
  if (version === 6) {
    const made = ipv6Packet({ next: 17, payload: ports(1, 2) });
    made.set([0x60 | (tos >> 4), ((tos & 0xf) << 4) | 0xa], 0); // and of the flow label its first bits
    return made;
  }
  const made = ipv4Packet({ protocol: 17, payload: ports(1, 2) });
  made.set([tos, 0, 0], 1);
  made.set([made.length >> 8, made.length & 0xff], 2);
  made.set([0, 0], 10);
  const sum = naiveChecksum(made.subarray(0, 20));
  made.set([sum >> 8, sum & 0xff], 10);
  return made;
}

function frameOf(version: Version, tos: number, tags: number[][] = []): Uint8Array {
  const type = version === 4 ? 0x0800 : 0x86dd;
  return ethernetFrame({ tags, type, payload: packet(version, tos) });
}

describe.each<Version>([4, 6])("the table of RFC 6040 over IPv%i", (version) => {
  const rows = Object.entries(TABLE).flatMap(([inner, row]) =>
    row.map((becomes, outer) => [Number(inner), outer, becomes] as const),
  );

  it.each(rows)("inner %i, outer %i: %s", (inner, outer, becomes) => {
    fc.assert(
      fc.property(fc.nat(63), anyTags, (dscp, tags) => {
        const frame = frameOf(version, (dscp << 2) | inner, tags);
        const view = fence(frame);
        expect(decapsulate(view, 0, frame.length, outer)).toBe(becomes !== DROP);
        const wanted = becomes === DROP ? frame : frameOf(version, (dscp << 2) | becomes, tags);
        expect(read(view, 0, frame.length)).toEqual(wanted);
      }),
      { numRuns: 50 },
    );
  });
});

describe("a TOS", () => {
  it("is the inner packet's, of either version and behind tags", () => {
    fc.assert(
      fc.property(fc.constantFrom<Version>(4, 6), fc.nat(255), anyTags, (version, tos, tags) => {
        const frame = frameOf(version, tos, tags);
        expect(innerTos(fence(frame), 0, frame.length)).toBe(tos);
        expect(ecnOf(tos)).toBe(tos % 4);
      }),
    );
  });

  it("is 0 where there is no packet, and whatever is around such a frame does nothing to it", () => {
    const arp = ethernetFrame({ type: 0x0806, payload: new Uint8Array(28).fill(0xff) });
    const cut = frameOf(4, 0xff).subarray(0, 20);
    const other = ethernetFrame({ type: 0x0800, payload: bytes(0x65, new Uint8Array(40)) });
    for (const frame of [arp, cut, other, frameOf(6, 0xff).subarray(0, 30)]) {
      const view = fence(frame);
      expect(innerTos(view, 0, frame.length)).toBe(0);
      for (const outer of [NOT_ECT, ECT_1, ECT_0, CE]) {
        expect(decapsulate(view, 0, frame.length, outer)).toBe(true);
      }
      expect(read(view, 0, frame.length)).toEqual(Uint8Array.from(frame));
    }
  });
});
