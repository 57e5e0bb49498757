import { constants } from "node:os";
import { describe, expect, it } from "vitest";
import { VNET_GSO_UDP_L4 } from "../../src/batch.ts";
import {
  Counters,
  Drop,
  FROM_REMOTE,
  Strangers,
  TO_REMOTE,
  Traffic,
  Work,
} from "../../src/counters.ts";
import { addressWords } from "../../src/remotes.ts";
import { address, BROADCAST, frame, type Host, mac, script, vxlan, World } from "./sim.ts";
import { bytes, ethernetFrame, ipv4Packet, ports } from "./wire/frames.ts";

const [A, B, C] = [mac(0x0a), mac(0x0b), mac(0x0c)];
const [PEER, OTHER_PEER] = [address(2), address(3)];
const { EAGAIN } = constants.errno;

function vtep() {
  const made = script([{ vni: 100, peers: [PEER, OTHER_PEER], fdb: [[C, OTHER_PEER]] }]);
  const traffic = (way: typeof TO_REMOTE | typeof FROM_REMOTE) => {
    return [PEER, OTHER_PEER].map((peer) => made.traffic.get(made.remotes.add(peer, 0), way));
  };
  return { ...made, to: () => traffic(TO_REMOTE), from: () => traffic(FROM_REMOTE) };
}

describe("traffic by remote", () => {
  it("is what was sent to each: one's own frames and copies of what is flooded", () => {
    const made = vtep();
    const flooded = frame(BROADCAST, A, { length: 100 });
    made.encap([frame(C, A, { length: 60 }), flooded, frame(C, B, { length: 70 })]);
    expect(made.to()).toEqual([
      { frames: 1, bytes: 100 },
      { frames: 3, bytes: 230 },
    ]);
    expect(made.events()).toMatchObject({ encapFrames: 4, encapBytes: 330 });
  });

  it("is what each sent, in trains and alone", () => {
    const made = vtep();
    const one = vxlan(100, frame(B, A, { length: 100 }));
    made.decap(
      { bytes: bytes(one, one, one), from: PEER, segment: one.length },
      { bytes: vxlan(100, frame(B, C, { length: 80 })), from: OTHER_PEER },
      { bytes: one, from: PEER },
    );
    expect(made.from()).toEqual([
      { frames: 4, bytes: 400 },
      { frames: 1, bytes: 80 },
    ]);
    expect(made.events()).toMatchObject({ decapFrames: 5, decapBytes: 480 });
  });

  it("does not count what was refused, on either way", () => {
    const made = vtep();
    made.underlay.errnoOf = (nth) => (nth === 0 ? EAGAIN : 0);
    made.encap([frame(BROADCAST, A, { length: 100 })]);
    expect(made.to()).toEqual([
      { frames: 0, bytes: 0 },
      { frames: 1, bytes: 100 },
    ]);
    made.taps[0]!.errnoOf = (nth) => (nth === 1 ? EAGAIN : 0);
    const datagram = (from: string) => vxlan(100, frame(B, from, { length: 90 }));
    made.decap(
      { bytes: datagram(A), from: PEER },
      { bytes: datagram(A), from: PEER },
      { bytes: datagram(C), from: OTHER_PEER },
    );
    expect(made.from()).toEqual([
      { frames: 1, bytes: 90 },
      { frames: 1, bytes: 90 },
    ]);
    expect(made.drops()).toEqual({ FULL_RING: 2 });
  });
});

describe("how a thread works", () => {
  it("is told by reads that found something, and what they found", () => {
    const made = vtep();
    made.encap([frame(C, A), frame(C, B)]);
    made.encap([frame(C, A)]);
    made.encap([]);
    made.decap({ bytes: vxlan(100, frame(B, A)), from: PEER });
    const work = (column: number) => made.counters.get(0, column);
    expect(work(Work.encapBatches)).toBe(2);
    expect(work(Work.encapRows)).toBe(3);
    expect(work(Work.decapBatches)).toBe(1);
    expect(work(Work.decapRows)).toBe(1);
    expect(work(Work.trains)).toBe(0);
    expect(work(Work.superFrames)).toBe(0);
  });

  it("is told by trains and the datagrams in them", () => {
    const made = vtep();
    const one = vxlan(100, frame(B, A));
    made.decap(
      { bytes: bytes(one, one, one.subarray(0, 40)), from: PEER, segment: one.length },
      { bytes: bytes(one, one), from: PEER, segment: one.length },
      { bytes: one, from: PEER },
    );
    expect(made.counters.get(0, Work.trains)).toBe(2);
    expect(made.counters.get(0, Work.datagrams)).toBe(5);
  });

  it("is told by super-frames and their segments", () => {
    const world = new World();
    const [first] = world.mesh(2) as [Host];
    const payload = ports(1000, 2000, 4 + 2500);
    const whole = ethernetFrame({ type: 0x0800, payload: ipv4Packet({ protocol: 17, payload }) });
    first.tap().transmit(whole, { gsoType: VNET_GSO_UDP_L4, gsoSize: 1000, hdrLen: 42 });
    first.tap().transmit(frame(B, A));
    world.run();
    expect(first.counters.get(0, Work.superFrames)).toBe(1);
    expect(first.counters.get(0, Work.segments)).toBe(3);
    expect(first.counters.get(0, Work.encapRows)).toBe(2);
  });

  it("counts one segment of a super-frame that is refused for how many it would make", () => {
    const segmentsOf = (datagrams: number) => {
      const [first] = new World().mesh(2) as [Host];
      const payload = ports(1000, 2000, 4 + datagrams);
      const whole = ethernetFrame({ type: 0x0800, payload: ipv4Packet({ protocol: 17, payload }) });
      first.tap().transmit(whole, { gsoType: VNET_GSO_UDP_L4, gsoSize: 1, hdrLen: 42 });
      first.dataplane.encap();
      return first.counters.get(0, Work.segments);
    };
    expect(segmentsOf(8192)).toBe(8192);
    expect(segmentsOf(8193)).toBe(1);
  });
});

describe("several forwarding threads", () => {
  it("count each for itself, and are read as one", () => {
    const memory = Counters.allocate(1, 3);
    const shared = Traffic.allocate(3);
    for (const worker of [0, 1, 2]) {
      new Counters(memory, 3, worker).add(1, 0, 10 ** worker);
      new Traffic(shared, 3, worker).add(65_535, FROM_REMOTE, 10 ** worker, 2 * 10 ** worker);
    }
    expect(new Counters(memory, 3).get(1, 0)).toBe(111);
    const traffic = new Traffic(shared, 3);
    expect(traffic.get(65_535, FROM_REMOTE)).toEqual({ frames: 111, bytes: 222 });
    expect(traffic.get(65_535, TO_REMOTE)).toEqual({ frames: 0, bytes: 0 });
  });

  it("start a network's row anew together, all of it and no other", () => {
    const memory = Counters.allocate(3, 2);
    new BigInt64Array(memory).fill(-1n);
    new Counters(memory, 2).clear(2);
    const isClear = Array.from(new BigInt64Array(memory), (word) => word === 0n);
    const row = isClear.length / 8;
    const ofRows = Array.from({ length: 8 }, (_, at) => isClear.slice(at * row, (at + 1) * row));
    const wanted = [0, 0, 1, 0, 0, 0, 1, 0].map((clear) => Array(row).fill(clear === 1));
    expect(ofRows).toEqual(wanted);
  });

  it("are late each for itself, by class, the bounds included", () => {
    const memory = Counters.allocate(1, 2);
    const second = new Counters(memory, 2, 1);
    for (const seconds of [0, 0.005, 0.006, 0.75, 1, 1.5, 30]) second.late(seconds);
    const counters = new Counters(memory, 2);
    expect(counters.lateness(0)).toEqual({ classes: [0, 0, 0, 0, 0, 0], sum: 0 });
    const { classes, sum } = counters.lateness(1);
    expect(classes).toEqual([2, 1, 0, 0, 2, 2]);
    expect(sum).toBeCloseTo(33.261);
    expect(counters.drops(0)).toEqual({});
    expect(counters.stranger(0)).toBeUndefined();
  });
});

describe("who was refused", () => {
  const refuse = (counters: Counters, address: string, times: number) => {
    const words = addressWords(address);
    for (let time = 0; time < times; time++) {
      counters.setStranger(1, words, 0);
      counters.add(1, Drop.VXLAN_REMOTE_NOT_ALLOWED, 1);
    }
  };

  it("is of what was refused since it was asked last, by whichever thread", () => {
    const memory = Counters.allocate(1, 2);
    const [first, second] = [0, 1].map((worker) => new Counters(memory, 2, worker));
    const strangers = new Strangers();
    expect(strangers.since(first!, 1)).toBeUndefined();
    refuse(first!, "192.0.2.66", 9);
    expect(strangers.since(first!, 1)).toBe("192.0.2.66");
    refuse(second!, "192.0.2.67", 3);
    expect(strangers.since(first!, 1)).toBe("192.0.2.67");
    refuse(first!, "192.0.2.68", 1);
    refuse(second!, "192.0.2.67", 2);
    expect(strangers.since(first!, 1)).toBe("192.0.2.67");
    first!.clear(1);
    strangers.forget(1);
    refuse(second!, "192.0.2.69", 1);
    expect(strangers.since(first!, 1)).toBe("192.0.2.69");
  });
});
