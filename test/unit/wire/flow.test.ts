import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { innerTos } from "../../../src/wire/ecn.ts";
import { continuesFlow, Flows, flowHash, tellsOfFlow } from "../../../src/wire/flow.ts";
import {
  anyInt32,
  anyIpv4,
  anyIpv6,
  anyMac,
  anyPort,
  anyTags,
  authenticationHeader,
  bytes,
  documentationIpv4,
  documentationMac,
  ethernetFrame,
  extensionHeader,
  fence,
  fragmentHeader,
  ipv4Packet,
  ipv6Packet,
  LINUX_ARP_REQUEST,
  LINUX_DAD,
  LINUX_PARTIAL_UDP6,
  LINUX_PING4,
  place,
  ports,
  u16,
} from "./frames.ts";

const SEED = 0x5eed;
const UDP = 17;
const anyWithPorts = fc.constantFrom(6, 17, 132);

function hash(frame: Uint8Array, flows = new Flows(SEED)): number {
  return flowHash(fence(frame), 0, frame.length, flows);
}

function hash4(
  packet: Parameters<typeof ipv4Packet>[0],
  tags: number[][] = [],
  flows?: Flows,
): number {
  return hash(ethernetFrame({ tags, type: 0x0800, payload: ipv4Packet(packet) }), flows);
}

function hash6(
  packet: Parameters<typeof ipv6Packet>[0],
  tags: number[][] = [],
  flows?: Flows,
): number {
  return hash(ethernetFrame({ tags, type: 0x86dd, payload: ipv6Packet(packet) }), flows);
}

describe("frames of one flow", () => {
  it("hash the same over IPv4, whatever else differs: MACs, tags, options, id, payload", () => {
    const flow = fc.record({
      source: anyIpv4,
      destination: anyIpv4,
      protocol: anyWithPorts,
      from: anyPort,
      to: anyPort,
    });
    const frames = fc.record({
      macs: fc.tuple(anyMac, anyMac),
      tags: anyTags,
      options: fc.nat(10).map((words) => Array(words * 4).fill(1)),
      id: anyPort,
      rest: fc.nat(100),
    });
    fc.assert(
      fc.property(flow, frames, frames, (of, one, other) => {
        const [first, second] = [one, other].map(({ macs, tags, options, id, rest }) => {
          const payload = ports(of.from, of.to, rest);
          const packet = ipv4Packet({ ...of, options, id, payload });
          const [destination, source] = macs;
          return hash(ethernetFrame({ destination, source, tags, type: 0x0800, payload: packet }));
        });
        expect(first).toBe(second);
      }),
    );
  });

  it("hash the same over IPv6, whichever extension headers stand before the ports", () => {
    const flow = fc.record({ source: anyIpv6, destination: anyIpv6, from: anyPort, to: anyPort });
    const chains = fc.array(fc.constantFrom(0, 43, 44, 51, 60, 135), { maxLength: 8 });
    fc.assert(
      fc.property(flow, anyWithPorts, chains, anyTags, (of, protocol, kinds, tags) => {
        const chain = kinds.map((kind, i) => {
          const next = kinds[i + 1] ?? protocol;
          if (kind === 44) return fragmentHeader(next, 0, false);
          return kind === 51 ? authenticationHeader(next) : extensionHeader(next, i);
        });
        const behind = bytes(...chain, ports(of.from, of.to));
        const plain = hash6({ ...of, next: protocol, payload: ports(of.from, of.to, 99) });
        expect(hash6({ ...of, next: kinds[0] ?? protocol, payload: behind }, tags)).toBe(plain);
      }),
    );
  });

  it("hash the same without IP: by MAC addresses and ethertype", () => {
    const tails = fc.uint8Array({ maxLength: 60 });
    fc.assert(
      fc.property(anyMac, anyMac, tails, tails, (destination, source, one, other) => {
        const [first, second] = [one, other].map((payload) =>
          hash(ethernetFrame({ destination, source, type: 0x88cc, payload })),
        );
        expect(first).toBe(second);
      }),
    );
  });

  it("hash the same as IEEE 802.3 frames of different lengths, whose type field is a length", () => {
    const frame = (type: number) => hash(ethernetFrame({ type, payload: bytes(0x42, 0x42, 3) }));
    expect(frame(3)).toBe(frame(1500));
    expect(frame(3)).not.toBe(frame(0x600));
  });

  it("hash as a signed int32", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 80 }), anyInt32, (frame, seed) => {
        const value = hash(frame, new Flows(seed));
        expect(value | 0).toBe(value);
      }),
    );
  });
});

describe("frames of different flows", () => {
  const base = {
    source: documentationIpv4(1),
    destination: documentationIpv4(2),
    protocol: UDP,
    payload: ports(1000, 2000),
  };

  it("hash differently where an address, the protocol or a port differs", () => {
    const hashes = [
      hash4(base),
      hash4({ ...base, source: documentationIpv4(3) }),
      hash4({ ...base, destination: documentationIpv4(3) }),
      hash4({ ...base, protocol: 6 }),
      hash4({ ...base, protocol: 132 }),
      hash4({ ...base, protocol: 1 }),
      hash4({ ...base, payload: ports(1001, 2000) }),
      hash4({ ...base, payload: ports(1000, 2001) }),
      hash4({ ...base, payload: ports(2000, 1000) }),
      hash4({ ...base, source: base.destination, destination: base.source }),
    ];
    expect(new Set(hashes).size).toBe(hashes.length);
  });

  it("hash differently where any byte of an IPv6 address differs", () => {
    const packet = ipv6Packet({ next: UDP, payload: ports(1000, 2000) });
    const hashes = new Set([hash(ethernetFrame({ type: 0x86dd, payload: packet }))]);
    for (let byte = 8; byte < 40; byte++) {
      const other = packet.with(byte, packet[byte]! ^ 1);
      hashes.add(hash(ethernetFrame({ type: 0x86dd, payload: other })));
    }
    expect(hashes.size).toBe(33);
  });

  it("hash differently over IPv6 where the protocol or a port differs, extension headers or not", () => {
    const base6 = { next: UDP, payload: ports(1000, 2000) };
    const behind = (payload: Uint8Array) => bytes(extensionHeader(UDP), payload);
    const hashes = [
      hash6(base6),
      hash6({ ...base6, next: 6 }),
      hash6({ ...base6, next: 132 }),
      hash6({ ...base6, next: 58 }),
      hash6({ ...base6, payload: ports(1001, 2000) }),
      hash6({ ...base6, payload: ports(1000, 2001) }),
      hash6({ next: 60, payload: behind(ports(1001, 2001)) }),
      hash6({ next: 60, payload: behind(ports(1002, 2001)) }),
    ];
    expect(new Set(hashes).size).toBe(hashes.length);
  });

  it("hash differently without IP where any byte of the MACs or the ethertype differs", () => {
    const frame = ethernetFrame({ type: 0x88cc, payload: new Uint8Array(46) });
    const hashes = new Set([hash(frame)]);
    for (let byte = 0; byte < 14; byte++) hashes.add(hash(frame.with(byte, frame[byte]! ^ 2)));
    expect(hashes.size).toBe(15);
  });

  it("hash differently under another seed", () => {
    const frame = ethernetFrame({ type: 0x0800, payload: ipv4Packet(base) });
    const hashes = Array.from({ length: 100 }, (_, seed) => hash(frame, new Flows(seed)));
    expect(new Set(hashes).size).toBe(100);
  });

  it("do not take what is no port for one: ICMP, and protocols that have none", () => {
    for (const protocol of [1, 47, 50, 58]) {
      const one = hash4({ ...base, protocol, payload: ports(1, 2) });
      expect(hash4({ ...base, protocol, payload: ports(3, 4) })).toBe(one);
      const six = hash6({ next: protocol, payload: ports(1, 2) });
      expect(hash6({ next: protocol, payload: ports(3, 4) })).toBe(six);
    }
  });

  it("spread evenly over buckets, by low bits and by high bits, though only one port differs", () => {
    const flows = 64 * 1024;
    const low = new Array<number>(64).fill(0);
    const high = new Array<number>(64).fill(0);
    const frame = ethernetFrame({ type: 0x0800, payload: ipv4Packet(base) });
    const view = fence(frame);
    for (let port = 0; port < flows; port++) {
      view.setUint16(14 + 20, port);
      const value = flowHash(view, 0, frame.length, new Flows(SEED));
      low[value & 63]!++;
      high[value >>> 26]!++;
    }
    // Chi-squared with 63 degrees of freedom: 63 on average; one in ten million exceeds 137.
    const chiSquared = (buckets: number[]) =>
      buckets.reduce((sum, n) => sum + (n - flows / 64) ** 2 / (flows / 64), 0);
    expect(chiSquared(low)).toBeLessThan(137);
    expect(chiSquared(high)).toBeLessThan(137);
  });

  it("flip each bit of the hash half of the time, whichever bit of the flow is flipped", () => {
    const samples = 1000;
    const positions = [26 * 8, 29 * 8 + 7, 33 * 8 + 7, 34 * 8, 35 * 8 + 7, 37 * 8 + 7];
    for (const bit of positions) {
      const flips = new Array<number>(32).fill(0);
      for (let sample = 0; sample < samples; sample++) {
        const payload = ports((sample * 7919) & 0xffff, sample);
        const source = documentationIpv4(sample & 0xff);
        const packet = ipv4Packet({ ...base, source, payload });
        const frame = ethernetFrame({ type: 0x0800, payload: packet });
        const other = frame.with(bit >> 3, frame[bit >> 3]! ^ (0x80 >> (bit & 7)));
        const difference = hash(frame) ^ hash(other);
        for (let out = 0; out < 32; out++) flips[out]! += (difference >>> out) & 1;
      }
      for (const n of flips) {
        expect(n / samples).toBeGreaterThan(0.4);
        expect(n / samples).toBeLessThan(0.6);
      }
    }
  });
});

describe("the mixing", () => {
  /** MurmurHash3_x86_32 of whole words, by its reference and with integers of any size. */
  function murmur3(words: number[], seed: number, length: number): number {
    const m = (value: bigint) => value & 0xffff_ffffn;
    const rotate = (value: bigint, by: bigint) => m(value << by) | (value >> (32n - by));
    let h = m(BigInt(seed));
    for (const word of words) {
      const k = m(rotate(m(m(BigInt(word)) * 0xcc9e2d51n), 15n) * 0x1b873593n);
      h = m(rotate(h ^ k, 13n) * 5n + 0xe6546b64n);
    }
    h ^= BigInt(length);
    h = m((h ^ (h >> 16n)) * 0x85ebca6bn);
    h = m((h ^ (h >> 13n)) * 0xc2b2ae35n);
    return Number(h ^ (h >> 16n)) | 0;
  }

  it("is MurmurHash3's, whose published results the reference here gives", () => {
    expect(murmur3([], 1, 0)).toBe(0x514e28b7);
    expect(murmur3([], -1, 0)).toBe(0x81f16f39 | 0);
    expect(murmur3([-1], 0, 4)).toBe(0x76293b50);
    expect(murmur3([0x87654321], 0x5082edee, 4)).toBe(0x2362f9de);
  });

  it("takes the words of a flow in their order, and no length", () => {
    fc.assert(
      fc.property(
        anyIpv4,
        anyIpv4,
        anyPort,
        anyPort,
        anyInt32,
        (source, destination, a, b, seed) => {
          const word = (address: number[]) => fence(Uint8Array.from(address)).getInt32(0);
          const packet = ipv4Packet({ source, destination, protocol: UDP, payload: ports(a, b) });
          const expected = [word(source), word(destination), UDP, (a << 16) | b];
          const frame = ethernetFrame({ type: 0x0800, payload: packet });
          expect(hash(frame, new Flows(seed))).toBe(murmur3(expected, seed, 0));
        },
      ),
    );
  });

  it("takes the MAC addresses and the type where there is no IP, and 0 for an IEEE 802.3 length", () => {
    const payload = new Uint8Array(46);
    const macs = [0x00005e00, 0x53020000, 0x5e005301];
    for (const [type, word] of [
      [0x88cc, 0x88cc],
      [0x0600, 0x0600],
      [0x05ff, 0],
      [46, 0],
    ] as const) {
      expect(hash(ethernetFrame({ type, payload }))).toBe(murmur3([...macs, word], SEED, 0));
    }
    const cut = ethernetFrame({ tags: [[0x81, 0, 0, 1]], type: 0x0800, payload }).subarray(0, 16);
    expect(hash(cut)).toBe(murmur3([...macs, 0], SEED, 0));
    expect(hash(cut.subarray(0, 13))).toBe(murmur3([], SEED, 0));
  });
});

describe("fragments of one datagram", () => {
  it("hash as the whole one would over IPv4, though only the first has ports", () => {
    fc.assert(
      fc.property(anyWithPorts, anyPort, anyPort, anyTags, (protocol, from, to, tags) => {
        const flows = new Flows(SEED);
        const packet = (fragment: number, payload: Uint8Array) =>
          hash4({ protocol, fragment, payload }, tags, flows);
        const whole = packet(0x4000, ports(from, to));
        expect(packet(0x2000, ports(from, to))).toBe(whole);
        expect(packet(0x2003, ports(1, 2))).toBe(whole);
        expect(packet(0x0006, bytes(9))).toBe(whole);
      }),
    );
  });

  it("are told from those of others on their way by their identification", () => {
    const flows = new Flows(SEED);
    const packet = (id: number, fragment: number, payload: Uint8Array) =>
      hash4({ protocol: UDP, id, fragment, payload }, [], flows);
    const [one, other] = [1, 2].map((id) => packet(id, 0x2000, ports(id, id)));
    expect(one).not.toBe(other);
    packet(1, 0x4000, ports(3, 3)); // of a whole one it means nothing (RFC 6864)
    expect([packet(1, 3, bytes(9)), packet(2, 3, bytes(9))]).toEqual([one, other]);
  });

  it("hash so over IPv6, even where their next headers differ (RFC 8200 section 4.5)", () => {
    fc.assert(
      fc.property(anyWithPorts, anyPort, anyPort, anyTags, (protocol, from, to, tags) => {
        const flows = new Flows(SEED);
        const packet = (chain: number[], payload: Uint8Array) =>
          hash6({ next: 0, payload: bytes(chain, payload) }, tags, flows);
        const fragment = (next: number, offset: number, more: boolean, payload: Uint8Array) => {
          const chain = [...extensionHeader(44), ...fragmentHeader(next, offset, more)];
          return packet(chain, payload);
        };
        const whole = packet([...extensionHeader(protocol)], ports(from, to));
        expect(fragment(protocol, 0, true, ports(from, to))).toBe(whole);
        expect(fragment(protocol, 24, true, ports(1, 2))).toBe(whole);
        expect(fragment(59, 48, false, bytes(9))).toBe(whole);
      }),
    );
  });

  it("hash all alike where the first was not seen", () => {
    const later = (fragment: number, id: number, payload: Uint8Array) =>
      hash4({ protocol: UDP, id, fragment, payload });
    expect(later(0x2003, 1, ports(1, 2))).toBe(later(0x0006, 2, bytes(9)));
  });

  it("hash by addresses still", () => {
    const payload = bytes(fragmentHeader(UDP, 0, true), ports(1, 2));
    expect(hash6({ next: 44, payload })).not.toBe(
      hash6({ next: 44, payload, source: [...payload.subarray(0, 16)] }),
    );
  });
});

describe("what is hashed lies in the frame", () => {
  const whole = [
    LINUX_PING4,
    LINUX_PARTIAL_UDP6,
    LINUX_DAD,
    LINUX_ARP_REQUEST,
    ethernetFrame({
      tags: [[0x81, 0, 0, 1]],
      type: 0x86dd,
      payload: ipv6Packet({
        next: 0,
        payload: bytes(extensionHeader(44, 1), fragmentHeader(UDP, 0, false), ports(1, 2)),
      }),
    }),
    ethernetFrame({
      type: 0x0800,
      payload: ipv4Packet({ protocol: UDP, options: [1, 1, 1, 1], payload: ports(1, 2) }),
    }),
  ];

  it("at every length that a frame may be cut to, whatever lies around it", () => {
    for (const frame of whole) {
      for (let length = 0; length <= frame.length; length++) {
        const cut = frame.subarray(0, length);
        const expected = hash(cut);
        for (const poison of [0x00, 0x45, 0x60, 0x81, 0xff]) {
          const { view, at } = place(cut, poison);
          expect(flowHash(view, at, length, new Flows(SEED)), `${length} bytes`).toBe(expected);
        }
      }
    }
  });

  it("for any garbage, behind any valid beginning", () => {
    const tails = fc.uint8Array({ maxLength: 64 });
    const frames = fc
      .tuple(fc.constantFrom(...whole), fc.nat(100), tails)
      .map(([frame, keep, tail]) => bytes(frame.subarray(0, keep), tail));
    fc.assert(
      fc.property(frames, fc.nat(255), (frame, poison) => {
        const { view, at } = place(frame, poison);
        expect(flowHash(view, at, frame.length, new Flows(SEED))).toBe(hash(frame));
      }),
      { numRuns: 2000 },
    );
  });

  it("and falls back to MAC addresses where a network header is not whole", () => {
    const short = (source: number[], type: number) =>
      hash(ethernetFrame({ source, type, payload: bytes(u16(0x4500), Array(10).fill(1)) }));
    for (const type of [0x0800, 0x86dd, 0x8100]) {
      expect(short(documentationMac(1), type)).toBe(short(documentationMac(1), type));
      expect(short(documentationMac(1), type)).not.toBe(short(documentationMac(9), type));
    }
  });
});

describe("a frame that continues a flow", () => {
  /** The two as they lie in a slab, one after the other. */
  function continues(before: Uint8Array, frame: Uint8Array): boolean {
    const view = fence(bytes(before, frame));
    return (
      tellsOfFlow(view, 0, before.length) && continuesFlow(view, before.length, frame.length, 0)
    );
  }
  const decisive = (frame: Uint8Array) => {
    const view = fence(frame);
    return [frame.subarray(0, 12), hash(frame), innerTos(view, 0, frame.length)];
  };
  const payload = bytes(ports(1, 2), Array(30).fill(7));
  const plain = {
    4: ethernetFrame({ type: 0x0800, payload: ipv4Packet({ protocol: UDP, payload }) }),
    6: ethernetFrame({ type: 0x86dd, payload: ipv6Packet({ next: UDP, payload }) }),
  };

  it.each([
    [4, [16, 17, 18, 19, 24, 25], 38],
    [6, [16, 17, 18, 19], 58],
  ] as const)(
    "is any of IPv%d that only differs in what tells of no flow",
    (version, free, end) => {
      const frame = plain[version];
      expect(continues(frame, frame)).toBe(true);
      for (let at = 0; at < frame.length; at++) {
        const other = frame.slice();
        other[at]! ^= 0x10;
        const isFree = (free as readonly number[]).includes(at) || at >= end;
        expect(continues(frame, other), `byte ${at}`).toBe(isFree);
      }
      for (let length = 0; length <= frame.length; length++) {
        expect(continues(frame, frame.subarray(0, length)), `${length} bytes`).toBe(length >= end);
        expect(continues(frame.subarray(0, length), frame), `${length} bytes`).toBe(length >= end);
      }
    },
  );

  it("is none behind a fragment: the next one may be another datagram's", () => {
    for (const fragment of [0x2000, 0x2003, 0x0003]) {
      const frame = ethernetFrame({
        type: 0x0800,
        payload: ipv4Packet({ protocol: UDP, fragment, payload }),
      });
      expect(continues(frame, frame)).toBe(false);
    }
  });

  it("is none that would be decided on differently", () => {
    const optioned = ipv4Packet({ protocol: UDP, options: [1, 1, 1, 1], payload });
    const extended = ipv6Packet({ next: 0, payload: bytes(extensionHeader(UDP), payload) });
    const versions = fc.constantFrom(
      ...Object.values(plain),
      ethernetFrame({ type: 0x0800, payload: optioned }),
      ethernetFrame({ type: 0x86dd, payload: extended }),
    );
    const changes = fc.array(
      fc.tuple(fc.nat(67), fc.oneof(fc.nat(255), fc.constantFrom(0x45, 0x46, 0x60, 0, 6, 17, 44))),
      { maxLength: 3 },
    );
    const changed = (frame: Uint8Array, list: [number, number][]) => {
      const other = frame.slice();
      for (const [at, value] of list) other[at] = value;
      return other;
    };
    fc.assert(
      fc.property(versions, changes, changes, (frame, first, second) => {
        const before = changed(frame, first);
        const after = changed(before, second);
        if (continues(before, after)) expect(decisive(after)).toEqual(decisive(before));
      }),
      { numRuns: 5000 },
    );
  });
});
