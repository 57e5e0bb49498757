/** Paths that carry less than the TAP's MTU, and frames that are too big for them. */
import { constants } from "node:os";
import { describe, expect, it } from "vitest";
import {
  Batch,
  VNET_GSO_ECN,
  VNET_GSO_TCPV4,
  VNET_GSO_TCPV6,
  VNET_GSO_UDP_L4,
} from "../../src/batch.ts";
import { Remotes } from "../../src/remotes.ts";
import { address, BROADCAST, frame, type Host, mac, script, World } from "./sim.ts";
import {
  bytes,
  CUSTOMER_TAG,
  documentationMac,
  ethernetFrame,
  ipv4Packet,
  ipv6Packet,
  naiveSum,
  ports,
  u16,
} from "./wire/frames.ts";

const [A, B] = [0x0a, 0x0b];

/** An Ethernet frame of `length` bytes from A to B, or to `to`. */
function udp4(length: number, { to = documentationMac(B), tags = [] as number[][] } = {}) {
  const payload = ports(7, 9, length - 14 - tags.length * 4 - 20 - 4);
  const packet = ipv4Packet({ protocol: 17, payload });
  const link = { destination: to, source: documentationMac(A), tags };
  return ethernetFrame({ ...link, type: 0x0800, payload: packet });
}

function udp6(length: number, tags: number[][] = []) {
  const rest = length - 14 - tags.length * 4 - 40 - 4;
  const packet = ipv6Packet({ next: 17, payload: ports(7, 9, rest) });
  const link = { destination: documentationMac(B), source: documentationMac(A), tags };
  return ethernetFrame({ ...link, type: 0x86dd, payload: packet });
}

/** A TCP super-frame. */
function tcp(payload: number, options: number, type: 4 | 6) {
  const offset = ((20 + options) / 4) << 4;
  const header = bytes(Array(12).fill(0), [offset, 0x10], Array(6 + options).fill(0));
  const segment = bytes(header, new Uint8Array(payload));
  const packet =
    type === 4
      ? ipv4Packet({ protocol: 6, payload: segment })
      : ipv6Packet({ next: 6, payload: segment });
  const link = { destination: documentationMac(B), source: documentationMac(A) };
  return ethernetFrame({ ...link, type: type === 4 ? 0x0800 : 0x86dd, payload: packet });
}

/** The MTU that the host was told of, from the answers that its TAP was given. */
function told(host: Host): number[] {
  return host.tap().received.map((answer) => {
    const view = new DataView(answer.buffer, answer.byteOffset);
    let type = 12;
    while ([0x8100, 0x88a8].includes(view.getUint16(type))) type += 4;
    return view.getUint16(type) === 0x86dd ? view.getUint32(type + 46) : view.getUint16(type + 28);
  });
}

/** A SYN from A to B that asks for segments of `mss` bytes; what one asks for. */
function syn(mss: number, { from = A, to = B } = {}) {
  const header = bytes(Array(12).fill(0), [0x60, 0x02, 0, 0, 0, 0, 0, 0, 2, 4], u16(mss));
  const packet = ipv4Packet({ protocol: 6, payload: header });
  const link = { destination: documentationMac(to), source: documentationMac(from) };
  return ethernetFrame({ ...link, type: 0x0800, payload: packet });
}
const mssOf = (frame: Uint8Array) => (frame[56]! << 8) | frame[57]!;

/** Hosts of one network, which know B behind the second of them; `mtus` of the paths from the first. */
function world(mtus: readonly number[]): [World, ...Host[]] {
  const made = new World();
  const hosts = made.mesh(mtus.length + 1);
  made.transmit(hosts[1]!, frame(BROADCAST, mac(B)));
  made.wire.carries = (_, to) => mtus[Number(to.split(".")[3]) - 2] ?? 65_535;
  made.clear();
  return [made, ...hosts];
}

describe("a frame that the path to its remote does not carry", () => {
  it("is answered to its sender, already the first one, and is counted", () => {
    const [made, first, second] = world([1340]);
    made.transmit(first!, udp4(1304), udp4(1305));
    expect(second!.tap().received).toEqual([udp4(1304)]);
    expect(told(first!)).toEqual([1290]);
    expect(first!.drops()).toEqual({ PKT_TOO_BIG: 1 });
    expect(first!.events()).toMatchObject({ encapFrames: 1, encapBytes: 1304, toldTooBig: 1 });
    expect(first!.remotes.paths()).toEqual([{ address: second!.address, mtu: 1340 }]);
  });

  it("is not even tried once that is known", () => {
    const [made, first, second] = world([1340]);
    made.transmit(first!, udp4(1305));
    made.wire.carries = undefined; // whatever is sent now arrives
    made.transmit(first!, udp4(1305), udp4(1304), udp4(1514));
    expect(second!.tap().received).toEqual([udp4(1304)]);
    expect(told(first!)).toEqual([1290, 1290, 1290]);
    expect(first!.drops()).toEqual({ PKT_TOO_BIG: 3 });
  });

  it("is told of over IPv6 too", () => {
    const [made, first] = world([1400]);
    made.transmit(first!, udp6(1364), udp6(1365));
    expect(told(first!)).toEqual([1350]);
  });

  it("is one of more than 1280 bytes of packet behind two tags, however little the path is said to carry", () => {
    const [made, first, second] = world([600]);
    const tags = [CUSTOMER_TAG, CUSTOMER_TAG];
    const [fits, tagged] = [udp6(1294), udp6(1302, tags)];
    made.transmit(first!, udp4(1302), udp4(1303), fits, tagged, udp6(1303, tags), udp6(1303));
    expect(second!.tap().received).toEqual([udp4(1302), fits, tagged]);
    expect(told(first!)).toEqual([1288, 1280, 1288]);
    expect(first!.remotes.paths()).toEqual([{ address: second!.address, mtu: 600 }]);
    expect(first!.remotes.isNarrow(1)).toBe(true);
  });

  it("is smaller by its VLAN tags, which its answer has as well", () => {
    const [made, first, second] = world([1340]);
    const tags = [CUSTOMER_TAG];
    made.transmit(first!, udp4(1304, { tags }), udp4(1305, { tags }));
    expect(second!.tap().received).toEqual([udp4(1304, { tags })]);
    const [answer] = first!.tap().received;
    expect(answer!.subarray(0, 18)).toEqual(
      bytes(documentationMac(A), documentationMac(B), CUSTOMER_TAG, [0x08, 0]),
    );
    expect(answer!.subarray(18 + 26, 18 + 28)).toEqual(bytes(u16(1286)));
  });

  it("is only counted when there is nobody to tell", () => {
    const [made, first] = world([1340]);
    made.transmit(first!, frame(mac(B), mac(A), { length: 1400 }));
    expect(first!.tap().received).toEqual([]);
    expect(first!.drops()).toEqual({ PKT_TOO_BIG: 1 });
    expect(first!.events()).toMatchObject({ toldTooBig: 0 });
  });

  it("is answered where it was refused for that, and no other of its burst", () => {
    const made = script([{ vni: 100, peers: [address(2)] }]);
    made.underlay.errnoOf = () => constants.errno.EMSGSIZE;
    made.encap([udp4(1500)]); // of a path that is not known
    expect(made.events().toldTooBig).toBe(0);
    let nth = 0;
    made.underlay.errnoOf = () => {
      if (nth++ === 0) return 0; // it left before the path was learned
      made.remotes.learnPathMtu(1, 1340);
      return nth === 2 ? constants.errno.EAGAIN : constants.errno.EMSGSIZE;
    };
    made.encap([udp4(1500), udp4(1501), udp4(1502), udp4(1304)]);
    const { PKT_TOO_BIG, FULL_RING } = made.drops();
    expect([PKT_TOO_BIG, FULL_RING, made.events().toldTooBig]).toEqual([3, 1, 1]);
    const [answer] = made.taps[0]!.written;
    expect(answer!.bytes.subarray(14 + 20 + 8 + 2, 14 + 20 + 8 + 4)).toEqual(bytes(u16(1488)));
  });

  it("is tried again ten minutes after the path was learned", () => {
    const [made, first, second] = world([1340]);
    made.transmit(first!, udp4(1500));
    made.wire.carries = undefined;
    made.pass(1);
    made.transmit(second!, frame(BROADCAST, mac(B)));
    for (let minute = 0; minute < 9; minute++) {
      made.pass(60);
      made.transmit(second!, frame(BROADCAST, mac(B)));
    }
    made.clear();
    made.transmit(first!, udp4(1500));
    expect(second!.tap().receivedCount).toBe(0);
    made.pass(60);
    made.transmit(first!, udp4(1500));
    expect(second!.tap().received).toEqual([udp4(1500)]);
    expect(first!.remotes.paths()).toEqual([]);
  });

  it("is answered as often a second as its flow's share and its station's allow, and then again", () => {
    const [made, first] = world([1340]);
    made.transmit(first!, udp4(1500));
    made.clear();
    const answers = (frames: number) => {
      first!.tap().clear();
      made.transmit(first!, ...Array<Uint8Array>(frames).fill(udp4(1500)));
      return first!.tap().receivedCount;
    };
    expect([answers(10), answers(600)]).toEqual([10, 5]);
    made.pass(1);
    expect(answers(2)).toBe(2);
    expect(first!.drops()).toEqual({ PKT_TOO_BIG: 613 });
  });

  it("is answered however many of other flows and stations are, a thousand times a second at most", () => {
    const [made, first] = world([1340]);
    const long = udp4(1500);
    const answers = (
      count: number,
      flow: (at: number) => number,
      station: (at: number) => number,
    ) => {
      const frames = Array.from({ length: count }, (_, at) => {
        const sent = long.slice();
        sent.set(u16(flow(at)), 14 + 20); // the port it is from
        sent[11] = station(at);
        return sent;
      });
      let given = 0;
      for (let at = 0; at < count; at += 500) {
        first!.tap().clear(); // it keeps a thousand
        made.transmit(first!, ...frames.slice(at, at + 500));
        given += first!.tap().receivedCount;
      }
      return given;
    };
    const [same, any] = [() => 7, (at: number) => at % 256];
    expect(answers(100, same, same)).toBe(16);
    expect(answers(1, () => 8, same)).toBe(1);
    expect(answers(1500, (at) => at, same)).toBeLessThan(64 * 8);
    expect(answers(1, same, () => 8)).toBe(1);
    made.pass(1);
    expect(answers(2000, (at) => at, any)).toBe(1024);
  });
});

describe("a flooded frame", () => {
  const UNKNOWN = documentationMac(0x77);

  it("goes to the remotes that can get it, and is counted for the others", () => {
    const [made, first, ...others] = world([1500, 1340, 1500]);
    for (let time = 0; time < 2; time++) {
      made.transmit(first!, udp4(1400, { to: UNKNOWN }));
      expect(others.map((other) => other.tap().receivedCount)).toEqual([1, 0, 1]);
      expect(first!.drops()).toEqual({ PKT_TOO_BIG: time + 1 });
      made.clear();
    }
  });

  it("is answered once when it is for one station, however many paths are narrow", () => {
    const [made, first] = world([1340, 1340, 1400]);
    made.transmit(first!, udp4(1450, { to: UNKNOWN }));
    expect(told(first!)).toEqual([1290]);
    made.transmit(first!, udp4(1450, { to: UNKNOWN }));
    expect(told(first!)).toEqual([1290, 1290]);
    expect(first!.drops()).toEqual({ PKT_TOO_BIG: 6 });
  });

  it("is never answered when it is for all", () => {
    const [made, first] = world([1340]);
    made.transmit(first!, udp4(1400, { to: [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] }));
    expect(first!.tap().received).toEqual([]);
    expect(first!.drops()).toEqual({ PKT_TOO_BIG: 1 });
  });
});

describe("a super-frame", () => {
  // 1340 − 36 bytes of frame, of which 14 + 20 + 32 or 14 + 40 + 32 are headers.
  it.each([
    ["TCP over IPv4", tcp(20_000, 12, 4), VNET_GSO_TCPV4, 1304 - 66],
    ["TCP over IPv4 with CWR", tcp(20_000, 12, 4), VNET_GSO_TCPV4 | VNET_GSO_ECN, 1304 - 66],
    ["TCP over IPv6", tcp(20_000, 12, 6), VNET_GSO_TCPV6, 1304 - 86],
    ["UDP over IPv4", udp4(20_000), VNET_GSO_UDP_L4, 1304 - 42],
    ["UDP over IPv6", udp6(20_000), VNET_GSO_UDP_L4, 1304 - 62],
  ])("is as big as its segments: %s", (_, whole, gsoType, fits) => {
    const [made, first, second] = world([1340]);
    first!.remotes.learnPathMtu(first!.remotes.add(second!.address, 4789), 1340);
    made.wire.carries = undefined;
    first!.tap().transmit(whole, { gsoType, gsoSize: fits, hdrLen: 7 });
    first!.tap().transmit(whole, { gsoType, gsoSize: fits + 1, hdrLen: 7 });
    made.run();
    expect(made.crossings).toHaveLength(1);
    expect(first!.drops()).toEqual({ PKT_TOO_BIG: 1 });
    expect(first!.tap().receivedCount).toBe(1);
  });

  it("of one segment is as big as itself, and so is one whose headers cannot be read", () => {
    const batch = new Batch();
    batch.inOffset[0] = 64;
    const longest = (whole: Uint8Array, type: number) => {
      batch.slab.set(whole, 64);
      batch.inLength[0] = whole.length;
      batch.inVnet.setUint8(1, type);
      batch.inVnet.setUint16(4, 1000, new Uint8Array(Uint16Array.of(1).buffer)[0] === 1);
      return batch.longestFrame(0);
    };
    expect(longest(tcp(999, 12, 4), VNET_GSO_TCPV4)).toBe(66 + 999);
    expect(longest(tcp(5000, 12, 4), VNET_GSO_TCPV4)).toBe(66 + 1000);
    expect(longest(frame(mac(B), mac(A), { length: 5000 }), VNET_GSO_TCPV4)).toBe(5000);
    expect(longest(tcp(5000, 12, 4).subarray(0, 40), VNET_GSO_TCPV4)).toBe(40);
    const lying = tcp(5000, 12, 4);
    lying[14 + 20 + 12] = 0x10; // a header of 4 bytes
    expect(longest(lying, VNET_GSO_TCPV4)).toBe(lying.length);
  });
});

describe("the MSS of TCP connections", () => {
  it("is lowered on both ways to what the TAP carries, where that is wanted", () => {
    const made = new World();
    const [first, second] = made.mesh(2, { clampMtu: 1400 });
    made.transmit(first!, syn(1460));
    expect(second!.tap().received.map(mssOf)).toEqual([1360]);
    const [plain, wanted] = [new World(), new World()];
    const [from, to] = plain.mesh(2);
    plain.transmit(from!, syn(1460));
    expect(to!.tap().received).toEqual([syn(1460)]);
    const there = wanted.host({
      address: address(1),
      networks: [{ vni: 100, peers: [address(2)] }],
    });
    const here = wanted.host({
      address: address(2),
      networks: [{ vni: 100, peers: [address(1)], clampMtu: 1400 }],
    });
    wanted.transmit(there, syn(1460));
    expect(here.tap().received.map(mssOf)).toEqual([1360]);
  });

  it("is lowered to what a narrower path carries, on both ways", () => {
    const made = new World();
    const [first, second] = made.mesh(2, { clampMtu: 1450 });
    made.transmit(second!, frame(BROADCAST, mac(B)));
    first!.remotes.learnPathMtu(first!.remotes.add(second!.address, 4789), 1340);
    made.clear();
    made.transmit(first!, syn(1460));
    expect(second!.tap().received.map(mssOf)).toEqual([1250]);
    made.transmit(second!, syn(1460, { from: B, to: A }));
    expect(first!.tap().received.map(mssOf)).toEqual([1250]);
  });

  it("needs no checksum where that is left to us", () => {
    const made = new World();
    const [first, second] = made.mesh(2, { clampMtu: 1400 });
    const [asked, lowered] = [syn(1460), syn(1360)];
    first!.tap().transmit(asked, { flags: 1, csumStart: 34, csumOffset: 16 });
    made.run();
    const sum = ~naiveSum(lowered.subarray(34)) & 0xffff;
    lowered.set(u16(sum), 50);
    expect(second!.tap().received).toEqual([lowered]);
  });
});

describe("what is known of a path", () => {
  it("is of one remote only, takes the outer headers of its family, and can be learned anew", () => {
    const remotes = new Remotes();
    const [four, six] = [remotes.add(address(2), 4789), remotes.add("2001:db8::2", 4789)];
    remotes.learnPathMtu(four, 1400);
    expect([remotes.pathMtu(four), remotes.pathMtu(six)]).toEqual([1400, 0]);
    remotes.learnPathMtu(six, 1400);
    expect([remotes.longestFrame(four), remotes.longestFrame(six)]).toEqual([1364, 1344]);
    for (const now of [1, 600]) remotes.forgetPaths(now);
    remotes.learnPathMtu(four, 1340);
    remotes.forgetPaths(601);
    expect(remotes.paths()).toEqual([{ address: address(2), mtu: 1340 }]);
    remotes.forgetPaths(1201);
    expect(remotes.paths()).toEqual([]);
    expect(remotes.address(four)).toBe(address(2));
  });
});
