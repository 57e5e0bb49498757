import fc from "fast-check";
import { describe, expect, it } from "vitest";
import * as nd from "../../../src/wire/nd.ts";
import {
  ALL_NODES,
  bytes,
  CUSTOMER_TAG,
  documentationIpv6,
  documentationMac,
  ethernetFrame,
  extensionHeader,
  fence,
  ipv6Packet,
  LINUX_ADVERTISEMENT,
  LINUX_DAD,
  LINUX_SOLICITATION,
  MAC_A,
  MAC_B,
  naiveChecksum,
  place,
  read,
  surroundings,
  UNSPECIFIED,
  u16,
} from "./frames.ts";

const TARGET = documentationIpv6(2);
const SOLICITED_NODE = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 2];

/** The checksum of the ICMPv6 message in a frame with these addresses, by the naive sum. */
function icmpChecksum(source: number[], destination: number[], message: Uint8Array): number {
  const pseudo = bytes(source, destination, [0, 0], u16(message.length), [0, 0, 0, 58]);
  return naiveChecksum(bytes(pseudo, message));
}

function solicitation(message: {
  ethernetSource?: number[];
  source?: number[];
  destination?: number[];
  target?: number[];
  options?: number[];
  type?: number;
  code?: number;
  hopLimit?: number;
  tags?: number[][];
}): Uint8Array {
  const { source = documentationIpv6(1), destination = SOLICITED_NODE, target = TARGET } = message;
  const { options = [], type = 135, code = 0, hopLimit = 255, tags = [] } = message;
  const icmp = bytes([type, code, 0, 0, 0, 0, 0, 0], target, options);
  icmp.set(u16(icmpChecksum(source, destination, icmp)), 2);
  const payload = ipv6Packet({ source, destination, next: 58, hopLimit, payload: icmp });
  const { ethernetSource = MAC_A } = message;
  return ethernetFrame({ source: ethernetSource, tags, type: 0x86dd, payload });
}

function isSolicitation(frame: Uint8Array): boolean {
  return nd.isSolicitation(fence(frame), 0, frame.length);
}

const macOption = (mac: number[], type = 1) => [type, 1, ...mac];
const nonce = [14, 1, 1, 2, 3, 4, 5, 6];

describe("a Neighbour Solicitation (RFC 4861 section 7.1.1)", () => {
  it("is recognised as Linux sends it", () => {
    expect(isSolicitation(LINUX_SOLICITATION)).toBe(true);
    expect(isSolicitation(LINUX_DAD)).toBe(true);
  });

  it("may have no option, several, and padding behind the packet that nothing is read from", () => {
    expect(isSolicitation(solicitation({}))).toBe(true);
    const options = [...nonce, ...macOption(MAC_B), ...nonce];
    expect(isSolicitation(solicitation({ options }))).toBe(true);
    expect(isSolicitation(bytes(LINUX_SOLICITATION, Array(9).fill(0xff)))).toBe(true);
    expect(isSolicitation(bytes(LINUX_DAD, macOption(MAC_A)))).toBe(true);
  });

  it("names the address that asks and the one that is asked for", () => {
    const { view, at } = place(LINUX_SOLICITATION);
    expect([...read(view, nd.sourceOffset(at), 16)]).toEqual(documentationIpv6(1));
    expect([...read(view, nd.targetOffset(at), 16)]).toEqual(TARGET);
  });

  it("is asked by the MAC address in its option, or else by the frame's source", () => {
    const asker = (options: number[]) => {
      const { view, at } = place(solicitation({ options }));
      return [...read(view, nd.askerMacOffset(view, at), 6)];
    };
    expect(asker([])).toEqual(MAC_A);
    expect(asker(nonce)).toEqual(MAC_A);
    expect(asker(macOption(MAC_B, 2))).toEqual(MAC_A);
    expect(asker(macOption(MAC_B))).toEqual(MAC_B);
    expect(asker([...nonce, ...macOption(MAC_B)])).toEqual(MAC_B);
  });

  it("is none where it is cut short, at every length", () => {
    for (const frame of [LINUX_SOLICITATION, LINUX_DAD, solicitation({})]) {
      for (let length = 0; length < frame.length; length++) {
        expect(isSolicitation(frame.subarray(0, length)), `${length} bytes`).toBe(false);
      }
    }
  });

  it("is none where any one bit of the packet is flipped that its checksum covers", () => {
    for (let bit = 22 * 8; bit < LINUX_SOLICITATION.length * 8; bit++) {
      const byte = bit >> 3;
      const flipped = LINUX_SOLICITATION.with(byte, LINUX_SOLICITATION[byte]! ^ (1 << (bit & 7)));
      expect(isSolicitation(flipped), `bit ${bit & 7} of byte ${byte}`).toBe(false);
    }
  });

  it("is none where a router may have passed it on", () => {
    expect(isSolicitation(solicitation({ hopLimit: 254 }))).toBe(false);
  });

  it("is none of another type, code, ethertype, IP version or next header", () => {
    expect(isSolicitation(solicitation({ type: 136 }))).toBe(false);
    expect(isSolicitation(solicitation({ code: 1 }))).toBe(false);
    expect(isSolicitation(LINUX_SOLICITATION.with(12, 0x08))).toBe(false);
    expect(isSolicitation(LINUX_SOLICITATION.with(14, 0x40))).toBe(false);
    expect(isSolicitation(LINUX_SOLICITATION.with(20, 17))).toBe(false);
  });

  it("is none in a VLAN, nor behind an extension header", () => {
    expect(isSolicitation(solicitation({ tags: [CUSTOMER_TAG] }))).toBe(false);
    const message = LINUX_SOLICITATION.subarray(54);
    const payload = bytes(extensionHeader(58), message);
    const packet = ipv6Packet({ next: 0, hopLimit: 255, payload });
    expect(isSolicitation(ethernetFrame({ type: 0x86dd, payload: packet }))).toBe(false);
  });

  it("is none where the target or the source is multicast", () => {
    expect(isSolicitation(solicitation({ target: ALL_NODES }))).toBe(false);
    expect(isSolicitation(solicitation({ source: ALL_NODES }))).toBe(false);
  });

  it("is none where the answer would go to a group or to nobody", () => {
    const group = [0x33, 0x33, 0, 0, 0, 1];
    expect(isSolicitation(solicitation({ ethernetSource: group }))).toBe(false);
    expect(isSolicitation(solicitation({ options: macOption(group) }))).toBe(false);
    expect(isSolicitation(solicitation({ options: macOption(Array(6).fill(0)) }))).toBe(false);
  });

  it("is none where an option is empty, cut short, or a MAC address of another size", () => {
    expect(isSolicitation(solicitation({ options: [14, 0, 1, 2, 3, 4, 5, 6] }))).toBe(false);
    expect(isSolicitation(solicitation({ options: [14, 2, 1, 2, 3, 4, 5, 6] }))).toBe(false);
    expect(isSolicitation(solicitation({ options: [...nonce, 14] }))).toBe(false);
    expect(isSolicitation(solicitation({ options: [...nonce, 14, 1, 0, 0] }))).toBe(false);
    const long = [1, 2, ...MAC_B, 0, 0, 0, 0, 0, 0, 0, 0];
    expect(isSolicitation(solicitation({ options: long }))).toBe(false);
    const unknown = [99, 2, ...Array(14).fill(0)];
    expect(isSolicitation(solicitation({ options: unknown }))).toBe(true);
  });

  it("is none where the header claims fewer bytes than a solicitation has, or more than came", () => {
    for (const claimed of [0, 1, 23, 33, 40, 0xffff]) {
      const frame = LINUX_SOLICITATION.slice();
      frame.set(u16(claimed), 18);
      frame.set([0, 0], 56);
      const pseudo = bytes(frame.subarray(22, 54), [0, 0], u16(claimed), [0, 0, 0, 58]);
      frame.set(u16(naiveChecksum(bytes(pseudo, frame.subarray(54, 54 + claimed)))), 56);
      expect(isSolicitation(frame), `${claimed} bytes`).toBe(false);
    }
  });

  it("is looked for within the frame only, whatever is in it", () => {
    const tails = fc.uint8Array({ maxLength: 60 });
    const garbage = fc
      .tuple(fc.constantFrom(0, 14, 56, 78), fc.nat(64), tails)
      .map(([keep, length, tail]) => {
        const frame = bytes(LINUX_SOLICITATION.subarray(0, keep), tail);
        if (keep > 18) frame[19] = length;
        return frame;
      });
    fc.assert(
      fc.property(garbage, (frame) => {
        if (isSolicitation(frame)) expect(frame.length).toBeGreaterThanOrEqual(78);
      }),
      { numRuns: 2000 },
    );
  });
});

describe("duplicate address detection (RFC 4862 section 5.4)", () => {
  it("is a solicitation without a source address", () => {
    expect(nd.isDad(fence(LINUX_DAD), 0)).toBe(true);
    expect(nd.isDad(fence(LINUX_SOLICITATION), 0)).toBe(false);
    for (let byte = 0; byte < 16; byte++) {
      const frame = solicitation({ source: UNSPECIFIED.with(byte, 1) });
      expect(nd.isDad(fence(frame), 0), `byte ${byte}`).toBe(false);
    }
  });

  it("is valid only to a solicited-node address and without a source link-layer option", () => {
    const source = UNSPECIFIED;
    expect(isSolicitation(solicitation({ source }))).toBe(true);
    expect(isSolicitation(solicitation({ source, options: nonce }))).toBe(true);
    expect(isSolicitation(solicitation({ source, options: macOption(MAC_A) }))).toBe(false);
    expect(isSolicitation(solicitation({ source, destination: TARGET }))).toBe(false);
    expect(isSolicitation(solicitation({ source, destination: ALL_NODES }))).toBe(false);
    for (let byte = 0; byte < 13; byte++) {
      const destination = SOLICITED_NODE.with(byte, SOLICITED_NODE[byte]! ^ 1);
      expect(isSolicitation(solicitation({ source, destination })), `byte ${byte}`).toBe(false);
    }
  });
});

describe("a Neighbour Advertisement (RFC 4861 section 7.2.4)", () => {
  const FLAGS = 58;

  it("is byte for byte what Linux answers", () => {
    const { view, at } = place(bytes(LINUX_SOLICITATION, new Uint8Array(86).fill(0xff)));
    expect(nd.writeAdvertisement(view, at, at + 86, 0, 0x5e005302, false)).toBe(86);
    expect(read(view, at, 86)).toEqual(LINUX_SOLICITATION);
    expect(read(view, at + 86, 86)).toEqual(LINUX_ADVERTISEMENT);
    expect(surroundings(view, at, 172).every((byte) => byte === 0xa5)).toBe(true);
  });

  it("may take the place of its solicitation", () => {
    const { view, at } = place(LINUX_SOLICITATION);
    expect(nd.writeAdvertisement(view, at, at, 0, 0x5e005302, false)).toBe(86);
    expect(read(view, at, 86)).toEqual(LINUX_ADVERTISEMENT);
    expect(surroundings(view, at, 86).every((byte) => byte === 0xa5)).toBe(true);
  });

  it("says that a router is one, and otherwise differs in nothing but the checksum", () => {
    const { view, at } = place(LINUX_SOLICITATION);
    nd.writeAdvertisement(view, at, at, 0, 0x5e005302, true);
    expect(view.getUint8(at + FLAGS)).toBe(0xe0);
    const frame = read(view, at, 86).with(FLAGS, 0x60);
    frame.set(LINUX_ADVERTISEMENT.subarray(56, 58), 56);
    expect(frame).toEqual(LINUX_ADVERTISEMENT);
  });

  it("goes to all nodes, unsolicited, where a duplicate is being detected", () => {
    for (const shift of [0, 86]) {
      const { view, at } = place(bytes(LINUX_DAD, new Uint8Array(86).fill(0xff)));
      nd.writeAdvertisement(view, at, at + shift, 0, 0x5e005303, false);
      const frame = read(view, at + shift, 86);
      expect([...frame.subarray(0, 6)]).toEqual([0x33, 0x33, 0, 0, 0, 1]);
      expect([...frame.subarray(6, 12)]).toEqual(documentationMac(3));
      expect([...frame.subarray(22, 38)]).toEqual(TARGET);
      expect([...frame.subarray(38, 54)]).toEqual(ALL_NODES);
      expect([...frame.subarray(FLAGS, FLAGS + 4)]).toEqual([0x20, 0, 0, 0]);
      expect([...frame.subarray(62, 86)]).toEqual([...TARGET, 2, 1, ...documentationMac(3)]);
      expect(icmpChecksum(TARGET, ALL_NODES, frame.subarray(54))).toBe(0);
    }
  });

  it("is sent to the link-layer address that the option names, not to the frame's source", () => {
    const { view, at } = place(solicitation({ options: macOption(documentationMac(9)) }));
    nd.writeAdvertisement(view, at, at, 0, 0x5e005302, false);
    expect([...read(view, at, 6)]).toEqual(documentationMac(9));
  });

  it("has a correct checksum and its own hop limit for all addresses", () => {
    const address = fc
      .uint8Array({ minLength: 16, maxLength: 16 })
      .map((ip) => [...ip].with(0, 0x20));
    const macs = fc.integer({ min: 0, max: 255 });
    fc.assert(
      fc.property(address, address, macs, fc.boolean(), (source, target, last, isRouter) => {
        const { view, at } = place(solicitation({ source, target, options: nonce }));
        nd.writeAdvertisement(view, at, at, 0, 0x5e005300 | last, isRouter);
        const frame = read(view, at, 86);
        expect(icmpChecksum(target, source, frame.subarray(54))).toBe(0);
        expect([...frame.subarray(22, 54)]).toEqual([...target, ...source]);
        expect(frame[21]).toBe(255);
      }),
    );
  });
});
