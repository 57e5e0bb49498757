import { constants } from "node:os";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { OUT_ROWS, TRUNCATED, VNET_GSO_UDP_L4 } from "../../src/batch.ts";
import { Counter, type DropReason, FROM_REMOTE, TO_REMOTE } from "../../src/counters.ts";
import { STATIC } from "../../src/fdb.ts";
import {
  address,
  BROADCAST,
  byMac,
  frame,
  type Host,
  MULTICAST,
  mac,
  type NetworkOptions,
  script,
  vxlan,
  World,
} from "./sim.ts";
import { bytes, ethernetFrame, ipv4Packet, ipv6Packet, ports } from "./wire/frames.ts";

const VNI = 100;
const A = mac(0x0a);
const B = mac(0x0b);
const C = mac(0x0c);
const PEER = address(2);
const OTHER_PEER = address(3);
const STRANGER = "203.0.113.9";
const NOBODY = "00:00:00:00:00:00";
const ONE_PEER: NetworkOptions = { vni: VNI, peers: [PEER] };

function mesh(count: number, options?: Partial<NetworkOptions>): [World, ...Host[]] {
  const world = new World();
  return [world, ...world.mesh(count, options)];
}

describe("a frame from the TAP", () => {
  it.each([
    ["broadcast", BROADCAST],
    ["multicast", MULTICAST],
    ["unknown unicast", B],
  ])("goes to every remote exactly once, unchanged, when it is %s", (_, to) => {
    const [world, first, ...others] = mesh(5);
    const sent = frame(to, A, { length: 700 });
    world.transmit(first!, sent);
    for (const other of others) expect(other.tap().received).toEqual([sent]);
    expect(first!.tap().receivedCount).toBe(0);
    expect(world.crossings.map(({ to }) => to)).toEqual(others.map(({ address }) => address));
    expect(first!.events()).toMatchObject({ encapFrames: 4, encapBytes: 2800, flooded: 1 });
    expect(others[0]!.events()).toMatchObject({ decapFrames: 1, decapBytes: 700, flooded: 0 });
  });

  it("goes to the one remote where its destination is known to be", () => {
    const [world, first, second] = mesh(4);
    world.transmit(second!, frame(BROADCAST, B));
    world.clear();
    world.transmit(first!, frame(B, A));
    expect(world.received()).toEqual({ [second!.address]: 1 });
    expect(first!.events()).toMatchObject({ encapFrames: 1, flooded: 0 });
  });

  it("is sent behind a VXLAN header that has the VNI and nothing else set", () => {
    const vtep = script([{ vni: 0xabcdef, peers: [PEER] }]);
    vtep.encap([frame(B, A)]);
    const [sent] = vtep.underlay.written;
    expect(sent!.bytes).toEqual(bytes([0x08, 0, 0, 0, 0xab, 0xcd, 0xef, 0], frame(B, A)));
  });

  it("is told apart from the frames of other flows, for the outer source port", () => {
    const vtep = script([ONE_PEER]);
    vtep.encap([frame(B, A), frame(B, C), frame(B, A, { mark: 1 })]);
    const [one, other, again] = vtep.underlay.written.map(({ hash }) => hash);
    expect(again).toBe(one);
    expect(other).not.toBe(one);
  });

  it("keeps its place among the frames that were read with it", () => {
    const vtep = script([{ ...ONE_PEER, fdb: [[C, OTHER_PEER]] }]);
    const frames = [frame(C, A), frame(B, A), frame(C, B), frame(B, C, { length: 1514 })];
    vtep.encap(frames);
    const sent = vtep.underlay.written;
    expect(sent.map(({ bytes }) => bytes.subarray(8))).toEqual(frames);
    const peers = sent.map(({ remote }) => vtep.remotes.address(remote));
    expect(peers).toEqual([OTHER_PEER, PEER, OTHER_PEER, PEER]);
  });

  it("has the fate that it would have alone, whatever it was read with", () => {
    const station = (text: string) => [...Buffer.from(text.replaceAll(":", ""), "hex")];
    const ip = (to: string, from: string, packet: Parameters<typeof ipv4Packet>[0], tos = 0) => {
      const payload = ipv4Packet(packet);
      payload[1] = tos;
      const [destination, source] = [station(to), station(from)];
      return ethernetFrame({ destination, source, type: 0x0800, payload });
    };
    const udp = { protocol: 17, payload: ports(1, 2) };
    const pool = [
      ip(B, A, udp),
      ip(B, A, { ...udp, payload: ports(1, 3) }),
      ip(B, A, udp, 0xb8),
      ip(B, A, { ...udp, protocol: 6 }),
      ip(C, A, udp),
      ip(BROADCAST, A, udp),
      ip(A, B, udp),
      ip(B, MULTICAST, udp),
      ip(B, A, udp).subarray(0, 30),
      ...[1, 2].map((port) =>
        ethernetFrame({
          destination: station(B),
          source: station(A),
          type: 0x86dd,
          payload: ipv6Packet({ next: 17, payload: ports(port, 9) }),
        }),
      ),
      frame(B, A),
    ];
    const options: NetworkOptions = {
      ...ONE_PEER,
      peers: [PEER, address(4)],
      fdb: [[C, OTHER_PEER]],
    };
    const fates = (bursts: Uint8Array[][]) => {
      const vtep = script([options]);
      for (const burst of bursts) vtep.encap(burst);
      const sent = vtep.underlay.written.map(({ bytes, hash, remote, tos }) => {
        return { bytes: Buffer.from(bytes).toString("hex"), hash, remote, tos };
      });
      return { sent, events: vtep.events(), drops: vtep.drops() };
    };
    fc.assert(
      fc.property(fc.array(fc.constantFrom(...pool), { maxLength: 30 }), (frames) => {
        expect(fates([frames])).toEqual(fates(frames.map((each) => [each])));
      }),
      { numRuns: 60 },
    );
  });

  it("for a MAC that was seen on the same side is flooded: it may have moved away", () => {
    const [world, first, ...others] = mesh(3);
    world.transmit(first!, frame(BROADCAST, A));
    world.clear();
    world.transmit(first!, frame(A, B));
    expect(first!.knows(A)).toBe("local");
    expect(world.crossings).toHaveLength(others.length);
  });

  it("as large as the largest is passed whole, and as small as a header too", () => {
    const vtep = script([ONE_PEER]);
    const frames = [frame(B, A, { length: 65_549 }), frame(B, A, { length: 14 })];
    vtep.encap(frames);
    expect(vtep.underlay.written.map(({ bytes }) => bytes.length)).toEqual([65_557, 22]);
    expect(vtep.events()).toMatchObject({ encapFrames: 2, encapBytes: 65_563 });
  });

  it("is copied to more remotes than a batch has rows, each once, with one hash", () => {
    const peers = Array.from({ length: 1500 }, (_, i) => `198.51.${100 + (i >> 8)}.${i & 0xff}`);
    const vtep = script([{ vni: VNI, peers }]);
    vtep.encap([frame(BROADCAST, A), frame(B, A)]);
    expect(vtep.underlay.writes).toEqual([OUT_ROWS, OUT_ROWS, 3000 - 2 * OUT_ROWS]);
    const { written } = vtep.underlay;
    const reached = written.map(({ remote }) => vtep.remotes.address(remote));
    expect(reached).toEqual([...peers, ...peers]);
    expect(written.every(({ bytes: sent }, at) => sent[8] === (at < 1500 ? 0xff : 0x00))).toBe(
      true,
    );
    expect(new Set(written.map(({ hash }) => hash)).size).toBe(2);
    expect(vtep.events()).toMatchObject({ encapFrames: 3000, encapBytes: 180_000, flooded: 2 });
  });

  it("waits no longer than four bursts take, so that other devices have their turn", () => {
    const vtep = script([ONE_PEER]);
    for (let burst = 0; burst < 10; burst++) vtep.taps[0]!.bursts.push([{ bytes: frame(B, A) }]);
    expect(vtep.dataplane.encap()).toBe(true); // it is not over for want of frames
    expect(vtep.underlay.written).toHaveLength(4);
    for (let burst = 0; burst < 10; burst++) {
      vtep.underlay.bursts.push([{ bytes: vxlan(VNI, frame(A, B)), from: PEER }]);
    }
    expect(vtep.dataplane.decap()).toBe(true);
    expect(vtep.taps[0]!.written).toHaveLength(4);
  });

  it("waits for few of those that are flooded to many", () => {
    const peers = Array.from({ length: 100 }, (_, at) => address(2 + at));
    const vtep = script([{ vni: VNI, peers }]);
    const tap = vtep.taps[0]!;
    const left = () => tap.bursts.reduce((sum, burst) => sum + burst.length, 0);
    tap.bursts.push(Array.from({ length: 300 }, () => ({ bytes: frame(BROADCAST, A) })));
    vtep.dataplane.encap(); // nothing is known of them yet
    expect(left()).toBe(300 - 256);
    vtep.dataplane.encap();
    expect(left()).toBe(300 - 256 - (10 + 11));
    expect(vtep.events()).toMatchObject({ flooded: 277, encapFrames: 27_700 });
    tap.bursts.length = 0;
    for (let burst = 0; burst < 300; burst++) tap.bursts.push([{ bytes: frame(B, A) }]);
    vtep.networks[0]!.apply({
      ...ONE_PEER,
      vlan: 0,
      clampMtu: 0,
      ageSeconds: 0,
      flood: [1],
      allowed: [1],
    });
    for (let turn = 0; turn < 75; turn++) vtep.dataplane.encap();
    tap.bursts.push(Array.from({ length: 300 }, () => ({ bytes: frame(B, A) })));
    vtep.dataplane.encap();
    expect(left(), "as many as ever, by and by").toBe(0);
  });

  it("of a network that floods does not cost others their frames of a burst", () => {
    const peers = Array.from({ length: 100 }, (_, at) => address(2 + at));
    const vtep = script([
      { vni: VNI, peers },
      { ...ONE_PEER, vni: VNI + 1 },
    ]);
    const rows = [1, 2].flatMap((tap) => {
      return Array.from({ length: 128 }, () => ({ bytes: frame(BROADCAST, A), tap }));
    });
    vtep.taps[0]!.bursts.push(rows);
    vtep.dataplane.encap();
    expect(vtep.taps.map(({ most }) => most)).toEqual([((128 * 1024) / (128 * 101)) | 0, 256]);
    vtep.dataplane.remove(vtep.networks[0]!);
    vtep.encap([frame(B, A)], 1);
    expect(vtep.taps[1]!.most).toBe(256);
  });

  it("of many small segments goes to few remotes, and not to many: each would get thousands", () => {
    const floodTo = (remotes: number, segments: number) => {
      const [, first] = mesh(remotes + 1);
      const payload = ports(1000, 2000, 4 + segments);
      const content = { type: 0x0800, payload: ipv4Packet({ protocol: 17, payload }) };
      first!.tap().transmit(ethernetFrame(content), { gsoType: VNET_GSO_UDP_L4, gsoSize: 1 });
      first!.dataplane.encap();
      return { flooded: first!.events().flooded, ...first!.drops() };
    };
    expect(floodTo(1, 8192)).toEqual({ flooded: 1 });
    expect(floodTo(8, 1024)).toEqual({ flooded: 1 });
    expect(floodTo(8, 1025)).toEqual({ flooded: 0, PKT_TOO_BIG: 1 });
    expect(floodTo(70, 128), "what senders do make, to any number").toEqual({ flooded: 1 });
    expect(floodTo(70, 129)).toEqual({ flooded: 0, PKT_TOO_BIG: 1 });
  });

  it("waits no longer than it takes to pass on what a turn's bytes are", () => {
    const vtep = script([ONE_PEER]);
    const superFrame = { bytes: frame(B, A, { length: 64_000 }) };
    const train = { bytes: vxlan(VNI, frame(A, B, { length: 64_000 })), from: PEER };
    for (let burst = 0; burst < 4; burst++) {
      vtep.taps[0]!.bursts.push(Array(3).fill(superFrame));
      vtep.underlay.bursts.push(Array(3).fill(train));
    }
    for (const passed of [6, 12]) {
      expect(vtep.dataplane.encap()).toBe(true);
      expect(vtep.underlay.written).toHaveLength(passed); // of three it is short
      expect(vtep.dataplane.decap()).toBe(true);
      expect(vtep.taps[0]!.written).toHaveLength(passed);
    }
    expect([vtep.dataplane.encap(), vtep.dataplane.decap()]).toEqual([false, false]);
  });

  it("of none is nothing to send", () => {
    const vtep = script([ONE_PEER]);
    vtep.encap([]);
    vtep.decap();
    expect([vtep.underlay.writes, vtep.taps[0]!.writes]).toEqual([[], []]);
  });
});

describe("MAC addresses", () => {
  it("are learned from both sides, and forgotten when their age has passed", () => {
    const [world, first, second, third] = mesh(3, { age: 10 });
    world.transmit(first!, frame(BROADCAST, A));
    expect([first, second, third].map((host) => host!.knows(A))).toEqual([
      "local",
      first!.address,
      first!.address,
    ]);
    expect(second!.events()).toMatchObject({ learned: 1, aged: 0 });

    world.pass(10);
    world.clear();
    world.transmit(second!, frame(A, B));
    expect(world.received()).toEqual({ [first!.address]: 1 });

    world.pass(1);
    expect(second!.knows(A)).toBeUndefined();
    expect(second!.knows(B)).toBe("local");
    expect(second!.events()).toMatchObject({ aged: 1 });
    world.clear();
    world.transmit(second!, frame(A, B));
    expect(world.received()).toEqual({ [first!.address]: 1, [third!.address]: 1 });
  });

  it("stay known as long as they are seen, and for ever when their age is 0", () => {
    const [world, first, second] = mesh(2, { age: 2 });
    const [eternal, one, two] = mesh(2, { age: 0 });
    eternal.transmit(one!, frame(BROADCAST, A));
    for (let second = 0; second < 10; second++) {
      world.transmit(first!, frame(BROADCAST, A));
      world.pass(2);
    }
    eternal.pass(2 ** 30);
    expect(second!.knows(A)).toBe(first!.address);
    expect(two!.knows(A)).toBe(one!.address);
    expect(second!.events()).toMatchObject({ learned: 1, aged: 0 });
  });

  it("move at once: between remotes, from here to a remote, and back", () => {
    const [world, here, second, third] = mesh(3);
    for (const [at, host] of [second!, third!, here!, second!, here!].entries()) {
      world.transmit(host, frame(BROADCAST, A));
      for (const other of world.hosts) {
        expect(other.knows(A)).toBe(other === host ? "local" : host.address);
        const rows = byMac(other.fdb.rows());
        expect(rows[A]).toMatchObject({ moves: at });
        expect(other.events().moved).toBe(at + (rows[B]?.moves ?? 0));
      }
      world.clear();
      const other = host === third ? second! : third!;
      world.transmit(other, frame(A, B));
      expect(world.received()).toEqual({ [host.address]: 1 });
    }
  });

  it("over the limit push out the one not seen for longest, which is flooded again", () => {
    const [world, first, second, third] = mesh(3, { limit: 2 });
    for (const source of [A, B, A, C]) {
      world.transmit(first!, frame(BROADCAST, source));
      world.pass(1);
    }
    expect(second!.events()).toMatchObject({ learned: 3, evicted: 1 });
    expect([A, B, C].map((text) => second!.knows(text))).toEqual([
      first!.address,
      undefined,
      first!.address,
    ]);
    world.clear();
    world.transmit(second!, frame(B, mac(0x0d)));
    expect(world.received()).toEqual({ [first!.address]: 1, [third!.address]: 1 });
  });

  it("are not learned from frames that are dropped", () => {
    const vtep = script([{ ...ONE_PEER, tapMac: C }]);
    vtep.encap([frame(B, A, { length: 13 }), frame(B, MULTICAST)]);
    vtep.decap(
      { bytes: vxlan(VNI, frame(B, A)), from: STRANGER },
      { bytes: vxlan(VNI + 1, frame(B, A)), from: PEER },
      { bytes: vxlan(VNI, frame(B, A, { length: 13 })), from: PEER },
      { bytes: vxlan(VNI, frame(B, C)), from: PEER },
    );
    expect([...vtep.fdb.rows()]).toEqual([]);
    expect(vtep.events()).toMatchObject({ learned: 0 });
  });
});

describe("static entries", () => {
  it("decide where a MAC is, without flooding, and allow that remote to send", () => {
    const vtep = script([{ vni: VNI, peers: [], fdb: [[B, OTHER_PEER]] }]);
    vtep.encap([frame(B, A)]);
    expect(vtep.underlay.written.map(({ remote }) => vtep.remotes.address(remote))).toEqual([
      OTHER_PEER,
    ]);
    vtep.decap({ bytes: vxlan(VNI, frame(A, B)), from: OTHER_PEER });
    expect(vtep.taps[0]!.written).toHaveLength(1);
    expect(vtep.drops()).toEqual({});
    expect(byMac(vtep.fdb.rows())[B]).toMatchObject({ origin: STATIC });
  });

  it("for the all-zero MAC are the flood list", () => {
    const fdb = [[NOBODY, PEER] as const];
    const vtep = script([
      { vni: VNI, peers: [OTHER_PEER, PEER], fdb },
      { vni: 101, peers: [], fdb },
    ]);
    vtep.encap([frame(BROADCAST, A)]);
    vtep.encap([frame(BROADCAST, A)], 1);
    const reached = vtep.underlay.written.map(({ remote }) => vtep.remotes.address(remote));
    expect(reached).toEqual([OTHER_PEER, PEER, PEER]);
    vtep.decap({ bytes: vxlan(101, frame(A, B)), from: PEER });
    expect(vtep.taps[1]!.written).toHaveLength(1);
    expect(byMac(vtep.fdb.rows())[NOBODY]).toBeUndefined();
  });

  it("outlast their age and the moves of others", () => {
    const [world, first, second, third] = mesh(3, { age: 5 });
    first!.fdb.set(1, 0x0000, 0x5e00530b, first!.remotes.add(second!.address, 4789), STATIC);
    world.transmit(third!, frame(BROADCAST, B));
    world.pass(100);
    expect(first!.knows(B)).toBe(second!.address);
    expect(first!.drops()).toEqual({ VXLAN_ENTRY_EXISTS: 1 });
    expect(second!.drops()).toEqual({});
  });
});

describe("a read that brings frames of several networks", () => {
  const RED = 200;
  const networks = [ONE_PEER, { vni: RED, peers: [OTHER_PEER] }, { vni: 300, peers: [] }];

  it("sends each of them in its own, also where neighbours are alike", () => {
    const vtep = script(networks);
    const payload = ipv4Packet({ protocol: 17, payload: ports(5000, 5001) });
    const sent = ethernetFrame({ type: 0x0800, payload }); // of a flow, which runs are of
    vtep.taps[0]!.bursts.push([1, 2, 2, 1, 3, 1].map((tap) => ({ bytes: sent, tap })));
    vtep.dataplane.encap();
    const written = vtep.underlay.written.map(({ bytes, remote }) => [
      vtep.remotes.address(remote),
      bytes,
    ]);
    const [blue, red] = [
      [PEER, vxlan(VNI, sent)],
      [OTHER_PEER, vxlan(RED, sent)],
    ];
    expect(written).toEqual([blue, red, red, blue, blue]);
    expect(vtep.underlay.writes).toEqual([5]);
    expect(vtep.events(0)).toMatchObject({ encapFrames: 3, encapBytes: 3 * sent.length });
    expect(vtep.events(1)).toMatchObject({ encapFrames: 2, encapBytes: 2 * sent.length });
    expect([0, 1, 2].map((at) => vtep.drops(at))).toEqual([{}, {}, { VXLAN_NO_REMOTE: 1 }]);
    const learned = [...vtep.fdb.rows()].map(({ network }) => network).sort();
    expect(learned).toEqual([1, 2, 3]);
  });

  it("counts by network and remote what left, and what did not by its reason", () => {
    const vtep = script(networks);
    vtep.underlay.errnoOf = (nth) => (nth === 0 || nth === 3 ? constants.errno.ENETUNREACH : 0);
    vtep.taps[1]!.bursts.push([1, 1, 2, 2].map((tap) => ({ bytes: frame(B, A), tap })));
    vtep.dataplane.encap();
    expect([0, 1].map((at) => vtep.events(at).encapFrames)).toEqual([1, 1]);
    expect([0, 1].map((at) => Object.values(vtep.drops(at)))).toEqual([[1], [1]]);
    for (const peer of [PEER, OTHER_PEER]) {
      const remote = vtep.remotes.add(peer, 0);
      expect(vtep.traffic.get(remote, TO_REMOTE).frames).toBe(1);
    }
  });

  it("delivers the datagrams of several networks by one write, each to its own TAP", () => {
    const vtep = script(networks);
    const got = frame(A, B);
    const [blue, red] = [
      { bytes: vxlan(VNI, got), from: PEER },
      { bytes: vxlan(RED, got), from: OTHER_PEER },
    ];
    vtep.decap(blue, red, red, blue, { bytes: vxlan(RED, got), from: PEER });
    expect(vtep.taps.map(({ written }) => written.length)).toEqual([2, 2, 0]);
    expect([0, 1].map((at) => vtep.events(at).decapFrames)).toEqual([2, 2]);
    expect(vtep.drops(1)).toEqual({ VXLAN_REMOTE_NOT_ALLOWED: 1 });
  });
});

describe("a datagram from the underlay", () => {
  it("is never answered or passed on to the underlay, whatever it holds", () => {
    const [world, first, second] = mesh(4);
    world.transmit(second!, frame(BROADCAST, B));
    world.clear();
    // For a MAC behind the sender, behind a third one, behind nobody, and for everybody.
    const send = world.sender(address(77));
    first!.network().allow(first!.remotes.add(address(77), 4789));
    for (const to of [A, B, C, BROADCAST, MULTICAST]) {
      send(first!.address, vxlan(VNI, frame(to, mac(0x77))));
    }
    expect(world.crossings.filter(({ from }) => from !== address(77))).toEqual([]);
    expect(first!.tap().receivedCount).toBe(5);
    expect(first!.events()).toMatchObject({ encapFrames: 0, flooded: 0 });
  });

  it("may hold many: every datagram of a train is a frame of its own, the last may be shorter", () => {
    const vtep = script([ONE_PEER]);
    const frames = [0, 1, 2, 3].map((at) => frame(A, mac(at + 1), { mark: at, length: 100 }));
    const last = frame(A, B, { length: 30 });
    const train = bytes(...[...frames, last].map((one) => vxlan(VNI, one)));
    vtep.decap({ bytes: train, from: PEER, segment: 108 });
    expect(vtep.taps[0]!.written.map(({ bytes }) => bytes)).toEqual([...frames, last]);
    expect(vtep.events()).toMatchObject({ decapFrames: 5, decapBytes: 430, learned: 5 });
  });

  it("of a train is judged alone: the bad ones are dropped, each by its reason", () => {
    const vtep = script([ONE_PEER]);
    const good = frame(A, B, { length: 60 });
    const train = bytes(
      vxlan(VNI, good),
      vxlan(VNI, good, 0),
      vxlan(VNI + 1, good),
      vxlan(VNI, frame(A, BROADCAST)),
      vxlan(VNI, good),
      [0x08, 0, 0],
    );
    vtep.decap({ bytes: train, from: PEER, segment: 68 });
    expect(vtep.taps[0]!.written).toHaveLength(2);
    expect(vtep.drops()).toEqual({
      VXLAN_INVALID_HDR: 2,
      VXLAN_VNI_NOT_FOUND: 1,
      MAC_INVALID_SOURCE: 1,
    });
  });

  it("reaches the TAP in the order of its arrival, in bursts of more than a batch has rows", () => {
    const vtep = script([ONE_PEER]);
    const train = (first: number) => {
      const frames = Array.from({ length: 64 }, (_, at) => frame(A, B, { mark: at, length: 15 }));
      for (const one of frames) one[13] = first;
      return { bytes: bytes(...frames.map((one) => vxlan(VNI, one))), from: PEER, segment: 23 };
    };
    vtep.decap(...Array.from({ length: 40 }, (_, at) => train(at)));
    const tap = vtep.taps[0]!;
    expect(tap.writes).toEqual([1024, 1024, 512]);
    const order = tap.written.map(({ bytes }) => bytes[13]! * 64 + bytes[14]!);
    expect(order).toEqual(Array.from({ length: 2560 }, (_, at) => at));
  });
});

describe("several networks on one underlay", () => {
  const TWO = [
    { vni: 100, peers: [PEER, OTHER_PEER] },
    { vni: 200, peers: [PEER] },
  ];

  it("are kept apart: the same MAC is in each where it was seen in each", () => {
    const world = new World();
    const [one, two, three] = [1, 2, 3].map((last) => {
      const peers = [1, 2, 3].filter((other) => other !== last).map(address);
      const networks = [100, 200].map((vni) => ({ vni, peers }));
      return world.host({ address: address(last), networks });
    });
    two!.tap(100).transmit(frame(BROADCAST, B));
    three!.tap(200).transmit(frame(BROADCAST, B));
    world.run();
    expect([one!.knows(B, 100), one!.knows(B, 200)]).toEqual([two!.address, three!.address]);
    expect([one!.tap(100).receivedCount, one!.tap(200).receivedCount]).toEqual([1, 1]);

    world.clear();
    one!.tap(200).transmit(frame(B, A));
    world.run();
    expect(three!.tap(200).receivedCount).toBe(1);
    expect(three!.tap(100).receivedCount + two!.tap(100).receivedCount).toBe(0);
    expect(two!.tap(200).receivedCount).toBe(0);
    expect(one!.events(100)).toMatchObject({ encapFrames: 0, learned: 1 });
    expect(one!.events(200)).toMatchObject({ encapFrames: 1, learned: 2 });
  });

  it("get each its own frames, in order, of one burst in which they alternate", () => {
    const vtep = script(TWO);
    const vnis = [100, 200, 200, 100, 300, 100, 200];
    const frames = vnis.map((_, at) => frame(A, B, { mark: at }));
    const train = bytes(vxlan(200, frame(A, C, { mark: 7 })), vxlan(100, frame(A, C, { mark: 8 })));
    vtep.decap(...vnis.map((vni, at) => ({ bytes: vxlan(vni, frames[at]!), from: PEER })), {
      bytes: train,
      from: PEER,
      segment: 68,
    });
    const marks = vtep.taps.map(({ written }) => written.map(({ bytes }) => bytes[20]));
    expect(marks).toEqual([
      [0, 3, 5, 8],
      [1, 2, 6, 7],
    ]);
    expect(vtep.drops()).toEqual({ VXLAN_VNI_NOT_FOUND: 1 });
    expect([vtep.events(0).decapFrames, vtep.events(1).decapFrames]).toEqual([4, 4]);
  });

  it("each have their own remotes: one network's may not send in another", () => {
    const vtep = script(TWO);
    vtep.decap({ bytes: vxlan(200, frame(A, B)), from: OTHER_PEER });
    vtep.decap({ bytes: vxlan(100, frame(A, B)), from: OTHER_PEER });
    expect(vtep.taps.map(({ written }) => written.length)).toEqual([1, 0]);
    expect(vtep.drops(1)).toEqual({ VXLAN_REMOTE_NOT_ALLOWED: 1 });
    expect(vtep.counters.stranger(2)).toBe(OTHER_PEER);
    expect(vtep.counters.stranger(1)).toBeUndefined();
  });

  it("no longer take what a remote sends that is taken from them", () => {
    const vtep = script(TWO);
    const datagram = { bytes: vxlan(100, frame(A, B)), from: OTHER_PEER };
    vtep.decap(datagram);
    const settings = { vlan: 0, clampMtu: 0, ageSeconds: 0, flood: [], allowed: [] };
    vtep.networks[0]!.apply(settings);
    vtep.decap(datagram);
    expect(vtep.taps[0]!.written).toHaveLength(1);
    expect(vtep.drops(0)).toEqual({ VXLAN_REMOTE_NOT_ALLOWED: 1 });
  });

  it("may be any VNI, the first and the last included", () => {
    const vnis = [0, 1, 0x7fffff, 0x800000, 0xffffff];
    const vtep = script(vnis.map((vni) => ({ vni, peers: [PEER] })));
    vtep.decap(...vnis.map((vni) => ({ bytes: vxlan(vni, frame(A, B)), from: PEER })));
    expect(vtep.taps.map(({ written }) => written.length)).toEqual([1, 1, 1, 1, 1]);
  });
});

describe("reserved bits of the VXLAN header", () => {
  const odd = [
    vxlan(VNI, frame(A, B), 0x88),
    vxlan(VNI, frame(A, B), 0x08, 1),
    vxlan(VNI, frame(A, B), 0xff, 0xff),
  ].map((payload) => ({ bytes: payload, from: PEER }));

  it("are ignored as RFC 7348 demands, and counted", () => {
    const vtep = script([ONE_PEER]);
    vtep.decap(...odd, { bytes: vxlan(VNI, frame(A, B)), from: PEER });
    expect(vtep.taps[0]!.written).toHaveLength(4);
    expect(vtep.events()).toMatchObject({ reservedBits: 3, decapFrames: 4 });
    expect(vtep.drops()).toEqual({});
  });

  it("are a reason to drop in strict mode, as in Linux", () => {
    const vtep = script([ONE_PEER], { strict: true });
    vtep.decap(...odd, { bytes: vxlan(VNI, frame(A, B)), from: PEER });
    expect(vtep.taps[0]!.written).toHaveLength(1);
    expect(vtep.events()).toMatchObject({ reservedBits: 0, decapFrames: 1 });
    expect(vtep.drops()).toEqual({ VXLAN_INVALID_HDR: 3 });
  });
});

describe("congestion and service class", () => {
  const packet = (tos: number) => {
    const payload = ipv4Packet({ protocol: 17, payload: ports(1, 2) });
    payload.set([tos, 0, 0], 1);
    return ethernetFrame({ type: 0x0800, payload });
  };
  const known = (tos: number) => {
    const inner = packet(tos);
    return { inner, row: { bytes: vxlan(VNI, inner), from: PEER, tos: 0 } };
  };

  it.each([
    [0, 0xff, 3],
    [0, 0xb8, 0],
    [46, 0x02, 0xba],
    [46, 0xfc, 0xb8],
    ["inherit" as const, 0xb9, 0xb9],
  ])("with --dscp %s a TOS of %i is sent with TOS %i, to every remote", (dscp, inner, outer) => {
    const vtep = script([{ vni: VNI, peers: [PEER, OTHER_PEER] }], { dscp });
    vtep.encap([packet(inner), frame(BROADCAST, A)]);
    const bare = dscp === "inherit" ? 0 : dscp << 2;
    expect(vtep.underlay.written.map(({ tos }) => tos)).toEqual([outer, outer, bare, bare]);
  });

  it("follows the table of RFC 6040, and drops are counted", () => {
    const vtep = script([ONE_PEER]);
    const { inner, row } = known(0x02);
    vtep.decap(
      row,
      { ...row, tos: 0xb9 },
      { ...row, tos: 0xbb },
      { ...row, bytes: vxlan(VNI, packet(0)), tos: 3 },
    );
    const tos = vtep.taps[0]!.written.map(({ bytes }) => bytes[15]);
    expect(tos).toEqual([2, 1, 3]);
    expect(vtep.taps[0]!.written[0]!.bytes).toEqual(inner);
    expect(vtep.drops()).toEqual({ IP_TUNNEL_ECN: 1 });
  });

  it("is each datagram's own affair in a train", () => {
    const vtep = script([ONE_PEER]);
    const one = [packet(2), packet(0), packet(3), packet(1)].map((inner) => vxlan(VNI, inner));
    vtep.decap({ bytes: bytes(...one), from: PEER, segment: one[0]!.length, tos: 3 });
    expect(vtep.taps[0]!.written.map(({ bytes }) => bytes[15])).toEqual([3, 3, 3]);
    expect(vtep.drops()).toEqual({ IP_TUNNEL_ECN: 1 });
    expect(vtep.events()).toMatchObject({ decapFrames: 3 });
  });
});

describe("a frame that cannot be passed on", () => {
  /** Drops one frame and expects it counted by this reason, once, and nothing passed or learned. */
  function expectDropped(vtep: ReturnType<typeof script>, reason: DropReason, ofNetwork: boolean) {
    expect(vtep.taps[0]!.written).toEqual([]);
    expect(vtep.underlay.written).toEqual([]);
    expect(vtep.counters.drops(ofNetwork ? 1 : 0)).toEqual({ [reason]: 1 });
    expect(vtep.counters.drops(ofNetwork ? 0 : 1)).toEqual({});
    const { encapFrames, encapBytes, decapFrames, decapBytes } = vtep.events();
    expect([encapFrames, encapBytes, decapFrames, decapBytes]).toEqual([0, 0, 0, 0]);
  }

  it("is dropped when the TAP had no room for all of it", () => {
    const vtep = script([ONE_PEER]);
    vtep.taps[0]!.bursts.push([{ bytes: frame(BROADCAST, A), flags: TRUNCATED }]);
    vtep.dataplane.encap();
    expectDropped(vtep, "PKT_TOO_BIG", true);
  });

  const tooSmall = [0, 1, 13].map((length) => frame(B, A, { length }));

  it.each(tooSmall)("from the TAP is dropped when it is shorter than its header (%#)", (sent) => {
    const vtep = script([ONE_PEER]);
    vtep.encap([sent]);
    expectDropped(vtep, "PKT_TOO_SMALL", true);
  });

  it.each([
    ["zero", NOBODY],
    ["multicast", MULTICAST],
    ["broadcast", BROADCAST],
  ])("is dropped from either side when its source is %s", (_, source) => {
    const out = script([ONE_PEER]);
    out.encap([frame(B, source)]);
    expectDropped(out, "MAC_INVALID_SOURCE", true);
    const back = script([ONE_PEER]);
    back.decap({ bytes: vxlan(VNI, frame(B, source)), from: PEER });
    expectDropped(back, "MAC_INVALID_SOURCE", true);
  });

  it.each([
    ["unknown", B],
    ["broadcast", BROADCAST],
  ])("is dropped when its destination is %s and the flood list is empty", (_, to) => {
    const vtep = script([{ vni: VNI, peers: [], fdb: [[C, PEER]] }]);
    vtep.encap([frame(to, A)]);
    expectDropped(vtep, "VXLAN_NO_REMOTE", true);
    expect(vtep.events()).toMatchObject({ flooded: 0 });
  });

  const { errno } = constants;
  const REASONS = [
    ["EMSGSIZE", "PKT_TOO_BIG"],
    ["EAGAIN", "FULL_RING"],
    ["ENOBUFS", "FULL_RING"],
    ["ENOMEM", "FULL_RING"],
    ["ENETUNREACH", "IP_OUTNOROUTES"],
    ["EHOSTUNREACH", "IP_OUTNOROUTES"],
    ["ENETDOWN", "IP_OUTNOROUTES"],
    ["EPERM", "NETFILTER_DROP"],
    ["EACCES", "NETFILTER_DROP"],
    ["EIO", "DEV_READY"],
    ["EINVAL", "DEV_READY"],
  ] as const;

  it.each(REASONS)("by the underlay is counted: %s is %s, and not counted as sent", (name, why) => {
    const vtep = script([ONE_PEER]);
    vtep.underlay.errnoOf = () => errno[name];
    vtep.encap([frame(B, A)]);
    expectDropped(vtep, why, true);
  });

  it.each(REASONS)("by the TAP is counted: %s is %s, and not counted as sent", (name, why) => {
    const vtep = script([ONE_PEER]);
    vtep.taps[0]!.errnoOf = () => errno[name];
    vtep.decap({ bytes: vxlan(VNI, frame(A, B)), from: PEER });
    expectDropped(vtep, why, true);
  });

  it("does not keep the others of its burst: each is counted for what became of it", () => {
    const vtep = script([ONE_PEER]);
    const errors = [0, errno.EMSGSIZE, 0, errno.EAGAIN, 0, errno.EAGAIN];
    const frames = errors.map((_, at) => frame(A, B, { length: 100 + at }));
    vtep.underlay.errnoOf = (nth) => errors[nth]!;
    vtep.taps[0]!.errnoOf = (nth) => errors[nth]!;
    vtep.encap(frames);
    expect(vtep.events()).toMatchObject({ encapFrames: 3, encapBytes: 306 });
    expect(vtep.drops()).toEqual({ PKT_TOO_BIG: 1, FULL_RING: 2 });
    vtep.decap(...frames.map((one) => ({ bytes: vxlan(VNI, one), from: PEER })));
    expect(vtep.events()).toMatchObject({ decapFrames: 3, decapBytes: 306 });
    expect(vtep.drops()).toEqual({ PKT_TOO_BIG: 2, FULL_RING: 4 });
  });

  it("in one burst does not look failed in the next because of what was left there", () => {
    const vtep = script([ONE_PEER]);
    vtep.underlay.errnoOf = (nth) => (nth === 0 ? errno.EIO : 0);
    vtep.encap([frame(B, A)]);
    vtep.encap([frame(B, A), frame(B, A)]);
    expect(vtep.events()).toMatchObject({ encapFrames: 2, encapBytes: 120 });
    expect(vtep.drops()).toEqual({ DEV_READY: 1 });
  });

  it.each([
    ["empty", new Uint8Array(0)],
    ["shorter than a VXLAN header", vxlan(VNI, new Uint8Array(0)).subarray(0, 7)],
    ["without the I flag", vxlan(VNI, frame(A, B), 0xf7)],
  ])("is no VXLAN: a datagram that is %s", (_, payload) => {
    const vtep = script([ONE_PEER]);
    vtep.decap({ bytes: payload, from: PEER });
    expectDropped(vtep, "VXLAN_INVALID_HDR", false);
  });

  it("is counted once each when empty datagrams come in a crowd", () => {
    const vtep = script([ONE_PEER]);
    vtep.decap(...Array.from({ length: 256 }, () => ({ bytes: new Uint8Array(0), from: PEER })));
    expect(vtep.drops()).toEqual({ VXLAN_INVALID_HDR: 256 });
  });

  it("is dropped when its VNI is unknown", () => {
    const vtep = script([ONE_PEER]);
    vtep.decap({ bytes: vxlan(VNI + 1, frame(A, B)), from: PEER });
    expectDropped(vtep, "VXLAN_VNI_NOT_FOUND", false);
  });

  it("is dropped when its sender is unknown, who is remembered as the last stranger", () => {
    const vtep = script([ONE_PEER]);
    expect(vtep.counters.stranger(1)).toBeUndefined();
    vtep.decap({ bytes: vxlan(VNI, frame(A, B)), from: STRANGER });
    expectDropped(vtep, "VXLAN_REMOTE_NOT_ALLOWED", true);
    expect(vtep.counters.stranger(1)).toBe(STRANGER);
    const datagram = vxlan(VNI, frame(A, B));
    vtep.decap({ bytes: datagram, from: PEER }, { bytes: datagram, from: "2001:db8::9" });
    expect(vtep.counters.stranger(1)).toBe("2001:db8::9");
  });

  it.each([0, 1, 13])("is dropped when its inner frame has %i bytes", (length) => {
    const vtep = script([ONE_PEER]);
    vtep.decap({ bytes: vxlan(VNI, frame(A, B, { length })), from: PEER });
    expectDropped(vtep, "PKT_TOO_SMALL", true);
  });

  it("is dropped when it comes from the underlay with the TAP's own address", () => {
    const vtep = script([{ ...ONE_PEER, tapMac: C }]);
    vtep.decap({ bytes: vxlan(VNI, frame(A, C)), from: PEER });
    expectDropped(vtep, "LOCAL_MAC", true);
    vtep.encap([frame(B, C)]);
    expect(vtep.underlay.written, "which may well send itself").toHaveLength(1);
  });

  it("is dropped when it contradicts a static entry, which stays", () => {
    const vtep = script([{ ...ONE_PEER, fdb: [[B, OTHER_PEER]] }]);
    vtep.decap({ bytes: vxlan(VNI, frame(A, B)), from: PEER });
    expectDropped(vtep, "VXLAN_ENTRY_EXISTS", true);
    expect(vtep.knows(B)).toBe(OTHER_PEER);
  });

  it("is dropped when it did not fit into the receive buffer, with all of its train", () => {
    const vtep = script([ONE_PEER]);
    const train = bytes(vxlan(VNI, frame(A, B)), vxlan(VNI, frame(A, B)));
    vtep.decap({ bytes: train, segment: 68, from: PEER, flags: TRUNCATED });
    expect(vtep.drops()).toEqual({ PKT_TOO_BIG: 2 });
    vtep.decap({ bytes: train.subarray(0, 69), segment: 68, from: PEER, flags: TRUNCATED });
    expect(vtep.drops()).toEqual({ PKT_TOO_BIG: 4 });
    vtep.decap({ bytes: train.subarray(0, 0), segment: 0, from: PEER, flags: TRUNCATED });
    expect(vtep.drops()).toEqual({ PKT_TOO_BIG: 5 });
  });

  it("because a socket's buffer was full is counted when the clock ticks, once", () => {
    const vtep = script([ONE_PEER]);
    vtep.underlay.overflowed = 7;
    vtep.dataplane.tick(1);
    vtep.dataplane.tick(2);
    expect(vtep.drops()).toEqual({ SOCKET_RCVBUFF: 7 });
    vtep.underlay.overflowed = 9;
    vtep.dataplane.tick(3);
    expect(vtep.drops()).toEqual({ SOCKET_RCVBUFF: 9 });
    // The kernel counts with 32 bits, and once it could not be asked.
    for (const total of [2 ** 31, 0, 2 ** 32 - 1, 1]) {
      vtep.underlay.overflowed = total;
      vtep.dataplane.tick(4);
    }
    expect(vtep.drops()).toEqual({ SOCKET_RCVBUFF: 2 ** 32 + 1 });
  });

  it("because a remote refused it is counted when the clock ticks, once", () => {
    const vtep = script([ONE_PEER]);
    for (const [at, total] of [7, 7, 9].entries()) {
      vtep.underlay.refused = total;
      vtep.dataplane.tick(at);
    }
    expect(vtep.counters.get(0, Counter.refused)).toBe(9);
  });

  it("because queues are full is counted at both ends of the wire", () => {
    const world = new World();
    const networks = [{ vni: VNI, peers: [address(2)] }];
    const first = world.host({ address: address(1), networks });
    const second = world.host({
      address: address(2),
      networks: [{ vni: VNI, peers: [address(1)] }],
      queueRows: 4,
    });
    for (let at = 0; at < 10; at++) first.tap().transmit(frame(B, A));
    world.run();
    world.pass(1);
    expect(second.tap().receivedCount).toBe(4);
    expect(second.drops()).toEqual({ SOCKET_RCVBUFF: 6 });
    first.underlay.congested = true;
    world.transmit(first, frame(B, A));
    expect(first.drops()).toEqual({ FULL_RING: 1 });
    expect(first.events()).toMatchObject({ encapFrames: 10 });
  });

  it("because nothing leads to its remote is counted, and the other copies go on", () => {
    const world = new World();
    const networks = [{ vni: VNI, peers: ["198.51.100.1", address(2), "2001:db8::1"] }];
    const first = world.host({ address: address(1), networks });
    const second = world.host({
      address: address(2),
      networks: [{ vni: VNI, peers: [address(1)] }],
    });
    world.transmit(first, frame(BROADCAST, A));
    expect(second.tap().receivedCount).toBe(1);
    expect(first.drops()).toEqual({ IP_OUTNOROUTES: 1, DEV_READY: 1 });
    expect(first.events()).toMatchObject({ encapFrames: 1, encapBytes: 60, flooded: 1 });
  });
});

describe("any number of VTEPs, wired at random", () => {
  const MACS = [A, B, C, mac(0x0d)];
  const DESTINATIONS = [...MACS, BROADCAST, MULTICAST];
  const HOSTS = 5;

  const host = fc.nat(HOSTS - 1);
  const network = fc.record({
    /** Its flood list: any of the others, in any order, itself never. */
    peers: fc.uniqueArray(host),
    /** Static entries, which may send anybody's frames anywhere, in circles too. */
    entries: fc.array(fc.tuple(fc.constantFrom(...MACS), host), { maxLength: 3 }),
    age: fc.nat(3),
    limit: fc.integer({ min: 1, max: 3 }),
  });
  const topology = fc.array(fc.tuple(network, network), { minLength: HOSTS, maxLength: HOSTS });
  const vni = fc.constantFrom(100, 200);
  const step = fc.oneof(
    fc.record({
      kind: fc.constant("transmit" as const),
      at: host,
      vni,
      to: fc.constantFrom(...DESTINATIONS),
      from: fc.constantFrom(...MACS),
    }),
    fc.record({
      kind: fc.constant("inject" as const),
      at: host,
      vni,
      to: fc.constantFrom(...DESTINATIONS),
      from: fc.constantFrom(...MACS),
      flags: fc.constantFrom(0x08, 0x88, 0),
    }),
    fc.record({ kind: fc.constant("pass" as const), seconds: fc.nat(3) }),
  );

  it("send a frame once from where it entered, never again, and account for every datagram", () => {
    fc.assert(
      fc.property(topology, fc.array(step, { maxLength: 40 }), (hosts, steps) => {
        const world = new World();
        for (const [at, pair] of hosts.entries()) {
          const networks = pair.map(({ peers, entries, age, limit }, index) => ({
            vni: index === 0 ? 100 : 200,
            peers: peers.filter((peer) => peer !== at).map((peer) => address(peer + 1)),
            fdb: entries
              .filter(([, to]) => to !== at)
              .map(([text, to]) => [text, address(to + 1)] as const),
            age,
            limit,
          }));
          world.host({ address: address(at + 1), networks });
        }
        // An attacker at an address that everybody takes for a peer.
        const attacker = address(99);
        const attack = world.sender(attacker);
        for (const one of world.hosts) {
          for (const each of one.networks) each.allow(one.remotes.add(attacker, 4789));
        }

        let lured = 0;
        for (const [mark, move] of steps.entries()) {
          world.crossings.length = 0;
          if (move.kind === "pass") {
            world.pass(move.seconds);
            expect(world.crossings).toEqual([]);
            continue;
          }
          const at = world.hosts[move.at]!;
          const sent = frame(move.to, move.from, { mark });
          if (move.kind === "inject") {
            attack(at.address, vxlan(move.vni, sent, move.flags));
            expect(world.crossings.map(({ from, to }) => [from, to])).toEqual([
              [attacker, at.address],
            ]);
            continue;
          }
          at.tap(move.vni).transmit(sent);
          world.run();
          const flood = at.network(move.vni).flood.length;
          expect(world.crossings.length).toBeLessThanOrEqual(Math.max(1, flood));
          expect(new Set(world.crossings.map(({ to }) => to)).size).toBe(world.crossings.length);
          for (const { from, payload } of world.crossings) {
            expect(from).toBe(at.address);
            expect(payload).toEqual(vxlan(move.vni, sent));
          }
          // A MAC that the attacker has used is behind the attacker.
          lured += world.crossings.filter(({ to }) => to === attacker).length;
        }

        const sum = (counts: Record<string, number>) => {
          return Object.values(counts).reduce((total, count) => total + count, 0);
        };
        for (const one of world.hosts) {
          for (const vni of [100, 200]) {
            expect(one.events(vni).decapFrames).toBe(one.tap(vni).receivedCount);
          }
        }
        // What each remote had is what the networks had.
        for (const one of world.hosts) {
          const remotes = [...Array(HOSTS + 2).keys()];
          for (const [way, event] of [
            [TO_REMOTE, "encap"],
            [FROM_REMOTE, "decap"],
          ] as const) {
            const each = remotes.map((remote) => one.traffic.get(remote, way));
            const both = [100, 200].map((vni) => one.events(vni));
            for (const unit of ["Frames", "Bytes"] as const) {
              const by = unit === "Frames" ? "frames" : "bytes";
              expect(each.reduce((total, row) => total + row[by], 0)).toBe(
                both.reduce((total, row) => total + row[`${event}${unit}`], 0),
              );
            }
          }
        }
        const injected = steps.filter(({ kind }) => kind === "inject").length;
        const totals = world.hosts.flatMap((one) => [100, 200].map((vni) => one.events(vni)));
        const sent = totals.reduce((total, { encapFrames }) => total + encapFrames, 0);
        const got = totals.reduce((total, { decapFrames }) => total + decapFrames, 0);
        const dropped = world.hosts.reduce((total, { counters }) => {
          // What had nowhere to go was never a datagram.
          const drops = [0, 1, 2].map((row) => ({ ...counters.drops(row), VXLAN_NO_REMOTE: 0 }));
          return total + drops.reduce((each, counts) => each + sum(counts), 0);
        }, 0);
        expect(got + dropped + lured).toBe(sent + injected);
      }),
      { numRuns: 60 },
    );
  }, 60_000);
});

describe("a network that is a VLAN", () => {
  const VLAN: NetworkOptions = { ...ONE_PEER, vlan: 10 };
  /** A frame with the tag of a VLAN, and a priority that nobody asks for. */
  const tagged = (id: number, inner: Uint8Array, priority = 0) =>
    bytes(
      inner.subarray(0, 12),
      [0x81, 0x00, (priority << 5) | (id >> 8), id & 0xff],
      inner.subarray(12),
    );

  it("has its frames tagged at the TAP, and nowhere else", () => {
    const vtep = script([VLAN]);
    const frames = [frame(B, A), frame(BROADCAST, A, { length: 1514 })];
    vtep.encap([tagged(10, frames[0]!), tagged(10, frames[1]!, 7)]);
    expect(vtep.underlay.written.map(({ bytes: sent }) => sent)).toEqual(
      frames.map((each) => vxlan(VNI, each)),
    );
    vtep.decap({ from: PEER, bytes: vxlan(VNI, frame(A, B)) });
    expect(vtep.taps[0]!.written.map(({ bytes: got }) => got)).toEqual([tagged(10, frame(A, B))]);
  });

  it.each([
    ["no tag", frame(B, A)],
    ["the tag of another", tagged(11, frame(B, A))],
    [
      "a service tag",
      bytes(frame(B, A).subarray(0, 12), [0x88, 0xa8, 0, 10], frame(B, A).subarray(12)),
    ],
    ["half a tag", tagged(10, frame(B, A)).subarray(0, 15)],
  ])("leaves a frame from the TAP with %s to others", (_, strange) => {
    const vtep = script([VLAN]);
    vtep.encap([strange]);
    expect(vtep.underlay.written).toEqual([]);
    expect(vtep.events()).toMatchObject({ otherVlan: 1, learned: 0, encapFrames: 0 });
    expect(vtep.drops()).toEqual({});
  });

  it.each([0x8100, 0x88a8])(
    "drops what comes from the TAP with a second tag, of type %i",
    (type) => {
      const vtep = script([VLAN]);
      const inner = tagged(20, frame(B, A));
      inner.set([type >> 8, type & 0xff], 12);
      vtep.encap([tagged(10, inner)]);
      expect(vtep.underlay.written).toEqual([]);
      expect(vtep.drops()).toEqual({ VLAN_TAGGED: 1 });
    },
  );

  it.each([10, 20])("drops what comes from a remote with a tag, be it of VLAN %d", (id) => {
    const vtep = script([VLAN]);
    vtep.decap({ from: PEER, bytes: vxlan(VNI, tagged(id, frame(A, B))) });
    expect(vtep.taps[0]!.written).toEqual([]);
    expect(vtep.drops()).toEqual({ VLAN_TAGGED: 1 });
  });

  it("drops it in a train as well, after one that was dropped for congestion", () => {
    const vtep = script([VLAN]);
    const station = (text: string) => [...Buffer.from(text.replaceAll(":", ""), "hex")];
    const [destination, source] = [station(A), station(B)];
    const payload = ipv4Packet({ protocol: 17, payload: ports(1, 2) });
    const notEct = vxlan(VNI, ethernetFrame({ destination, source, type: 0x0800, payload }));
    const other = vxlan(VNI, tagged(20, frame(A, B, { length: notEct.length - 12 })));
    vtep.decap({ from: PEER, bytes: bytes(notEct, other), segment: notEct.length, tos: 3 });
    expect(vtep.taps[0]!.written).toEqual([]);
    expect(vtep.drops()).toEqual({ IP_TUNNEL_ECN: 1, VLAN_TAGGED: 1 });
  });

  it("keeps the priority of what comes from a remote with a tag of no VLAN", () => {
    const vtep = script([VLAN]);
    const row = (inner: Uint8Array) => ({ from: PEER, bytes: vxlan(VNI, inner) });
    vtep.decap(row(tagged(0, frame(A, B), 5)), row(tagged(0, frame(A, B))));
    expect(vtep.taps[0]!.written.map(({ bytes: got }) => got)).toEqual([
      tagged(10, frame(A, B), 5),
      tagged(10, frame(A, B)),
    ]);
    vtep.decap(
      row(tagged(0, tagged(20, frame(A, B)))),
      row(tagged(0, frame(A, B)).subarray(0, 17)),
    );
    expect(vtep.taps[0]!.written).toHaveLength(2);
    expect(vtep.drops()).toEqual({ VLAN_TAGGED: 2 });
  });

  it("tags every frame of a train", () => {
    const vtep = script([VLAN]);
    const one = vxlan(VNI, frame(A, B));
    const other = vxlan(VNI, frame(A, B, { mark: 7 }));
    vtep.decap({ from: PEER, bytes: bytes(one, other, one), segment: one.length });
    expect(vtep.taps[0]!.written.map(({ bytes: got }) => got)).toEqual(
      [one, other, one].map((each) => tagged(10, each.subarray(8))),
    );
  });
});

describe("the gateway, which every host has", () => {
  const GATEWAY = mac(0xf0); // the TAP's own
  const NETWORK: NetworkOptions = { ...ONE_PEER, tapMac: GATEWAY, hasGateway: true };

  it("is not heard on other hosts", () => {
    const vtep = script([NETWORK]);
    vtep.encap([frame(BROADCAST, GATEWAY), frame(B, GATEWAY), frame(B, A)]);
    expect(vtep.underlay.written.map(({ bytes: sent }) => sent)).toEqual([vxlan(VNI, frame(B, A))]);
    expect(vtep.events()).toMatchObject({ gateway: 2, encapFrames: 1, learned: 1 });
    expect(vtep.drops()).toEqual({});
  });

  it("of another host is not let in", () => {
    const vtep = script([NETWORK]);
    vtep.decap({ from: PEER, bytes: vxlan(VNI, frame(BROADCAST, GATEWAY)) });
    expect(vtep.taps[0]!.written).toEqual([]);
    expect(vtep.drops()).toEqual({ LOCAL_MAC: 1 });
  });
});
