import fc from "fast-check";
import { describe, expect, it } from "vitest";
import * as arp from "../../../src/wire/arp.ts";
import {
  anyIpv4,
  anyMac,
  bytes,
  CUSTOMER_TAG,
  documentationIpv4,
  ethernetFrame,
  fence,
  LINUX_ARP_REPLY,
  LINUX_ARP_REQUEST,
  MAC_A,
  place,
  read,
  surroundings,
  u16,
} from "./frames.ts";

const BROADCAST = Array(6).fill(0xff);
const NOBODY = [0, 0, 0, 0];

function arpFrame(packet: {
  operation?: number;
  sender?: number[];
  senderIp?: number[];
  targetIp?: number[];
  tags?: number[][];
}): Uint8Array {
  const { operation = arp.REQUEST, sender = MAC_A, tags = [] } = packet;
  const { senderIp = documentationIpv4(1), targetIp = documentationIpv4(2) } = packet;
  const payload = bytes(
    u16(1),
    u16(0x0800),
    [6, 4],
    u16(operation),
    sender,
    senderIp,
    Array(6).fill(0),
    targetIp,
  );
  return ethernetFrame({ destination: BROADCAST, source: sender, tags, type: 0x0806, payload });
}

function isRequest(frame: Uint8Array): boolean {
  return arp.isRequest(fence(frame), 0, frame.length);
}

describe("an ARP request", () => {
  it("is recognised as Linux sends it, padded to 60 bytes too", () => {
    expect(isRequest(LINUX_ARP_REQUEST)).toBe(true);
    expect(isRequest(bytes(LINUX_ARP_REQUEST, Array(18).fill(0)))).toBe(true);
  });

  it("names who asks and who is asked for", () => {
    const { view, at } = place(LINUX_ARP_REQUEST);
    expect(arp.senderIp(view, at)).toBe(0xc0000201 | 0);
    expect(arp.targetIp(view, at)).toBe(0xc0000202 | 0);
    expect([...read(view, at + arp.SENDER_MAC, 6)]).toEqual(MAC_A);
    expect(arp.operation(view, at)).toBe(arp.REQUEST);
  });

  it("is none where it is cut short, at every length", () => {
    for (let length = 0; length < 42; length++) {
      expect(isRequest(LINUX_ARP_REQUEST.subarray(0, length)), `${length} bytes`).toBe(false);
    }
  });

  it("is none where any byte of type, lengths or operation differs", () => {
    for (let byte = 12; byte < 22; byte++) {
      const frame = LINUX_ARP_REQUEST.with(byte, LINUX_ARP_REQUEST[byte]! ^ 0x40);
      expect(isRequest(frame), `byte ${byte}`).toBe(false);
    }
  });

  it("is none where it is a reply, which is an ARP packet all the same", () => {
    expect(isRequest(LINUX_ARP_REPLY)).toBe(false);
    expect(arp.isPacket(fence(LINUX_ARP_REPLY), 0, 42)).toBe(true);
    expect(arp.operation(fence(LINUX_ARP_REPLY), 0)).toBe(arp.REPLY);
  });

  it("is none in a VLAN, which is another network", () => {
    expect(isRequest(arpFrame({ tags: [CUSTOMER_TAG] }))).toBe(false);
  });

  it("is none where the reply would go to a group or to nobody", () => {
    expect(isRequest(arpFrame({}))).toBe(true);
    expect(isRequest(arpFrame({ sender: BROADCAST }))).toBe(false);
    expect(isRequest(arpFrame({ sender: [1, 0, 0x5e, 0x90, 0x10, 1] }))).toBe(false);
    expect(isRequest(arpFrame({ sender: Array(6).fill(0) }))).toBe(false);
  });

  it("is looked for within the frame only, whatever is in it", () => {
    const garbage = fc
      .tuple(fc.uint8Array({ maxLength: 60 }), fc.boolean())
      .map(([tail, header]) => (header ? bytes(LINUX_ARP_REQUEST.subarray(0, 20), tail) : tail));
    fc.assert(
      fc.property(garbage, (frame) => {
        if (isRequest(frame)) expect(frame.length).toBeGreaterThanOrEqual(42);
      }),
    );
  });
});

describe("ARP that is no plain question (RFC 5227)", () => {
  const kind = (frame: Uint8Array) => {
    const { view, at } = place(frame);
    return { probe: arp.isProbe(view, at), gratuitous: arp.isGratuitous(view, at) };
  };

  it("is a probe where the sender has no address yet", () => {
    expect(kind(arpFrame({ senderIp: NOBODY }))).toEqual({ probe: true, gratuitous: false });
  });

  it("is gratuitous where a sender announces itself, as a request or as a reply", () => {
    const senderIp = documentationIpv4(2);
    expect(kind(arpFrame({ senderIp }))).toEqual({ probe: false, gratuitous: true });
    const announcement = arpFrame({ senderIp, operation: arp.REPLY });
    expect(kind(announcement)).toEqual({ probe: false, gratuitous: true });
  });

  it("is neither in a plain request, nor in a reply to a probe", () => {
    expect(kind(LINUX_ARP_REQUEST)).toEqual({ probe: false, gratuitous: false });
    const reply = arpFrame({ operation: arp.REPLY, senderIp: NOBODY });
    expect(kind(reply).probe).toBe(false);
    expect(kind(arpFrame({ senderIp: NOBODY, targetIp: NOBODY })).gratuitous).toBe(false);
  });
});

describe("an ARP reply", () => {
  it("is byte for byte what Linux answers", () => {
    const { view, at } = place(bytes(LINUX_ARP_REQUEST, new Uint8Array(42)));
    expect(arp.writeReply(view, at, at + 42, 0x0000, 0x5e005302)).toBe(42);
    expect(read(view, at, 42)).toEqual(LINUX_ARP_REQUEST);
    expect(read(view, at + 42, 42)).toEqual(LINUX_ARP_REPLY);
    expect(surroundings(view, at, 84).every((byte) => byte === 0xa5)).toBe(true);
  });

  it("may take the place of its request", () => {
    const { view, at } = place(LINUX_ARP_REQUEST);
    expect(arp.writeReply(view, at, at, 0x0000, 0x5e005302)).toBe(42);
    expect(read(view, at, 42)).toEqual(LINUX_ARP_REPLY);
    expect(surroundings(view, at, 42).every((byte) => byte === 0xa5)).toBe(true);
  });

  it("answers a probe with 0.0.0.0 as target, as RFC 5227 expects", () => {
    const { view, at } = place(arpFrame({ senderIp: NOBODY }));
    arp.writeReply(view, at, at, 0x0000, 0x5e005302);
    expect(arp.targetIp(view, at)).toBe(0);
    expect(arp.senderIp(view, at)).toBe(0xc0000202 | 0);
  });

  it("goes to the asker's hardware address, from the given one, with addresses exchanged", () => {
    fc.assert(
      fc.property(anyMac, anyMac, anyIpv4, anyIpv4, (sender, mac, senderIp, targetIp) => {
        const owner = Uint8Array.from(mac);
        const { view, at } = place(arpFrame({ sender, senderIp, targetIp }));
        const ownerView = fence(owner);
        arp.writeReply(view, at, at, ownerView.getUint16(0), ownerView.getInt32(2));
        const expected = bytes(
          [sender, mac, u16(0x0806), u16(1), u16(0x0800), [6, 4], u16(2)].flat(),
          [mac, targetIp, sender, senderIp].flat(),
        );
        expect(read(view, at, 42)).toEqual(expected);
      }),
    );
  });
});
