import { constants } from "node:os";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { TRUNCATED } from "../../src/batch.ts";
import { Drop } from "../../src/counters.ts";
import { Mirror, type Mirrored, type MirrorFilter, MirrorReader } from "../../src/mirror.ts";
import { addressWords, formatAddress } from "../../src/remotes.ts";
import { parseMac } from "../../src/wire/ethernet.ts";
import { address, BROADCAST, frame, MULTICAST, mac, type Row, script, vxlan } from "./sim.ts";
import { bytes, ipv4Packet } from "./wire/frames.ts";

const VNI = 100;
const A = mac(0x0a);
const B = mac(0x0b);
const C = mac(0x0c);
const PEER = address(2);
const OTHER_PEER = address(3);
const STRANGER = "203.0.113.9";
const NETWORK = { vni: VNI, peers: [PEER, OTHER_PEER], fdb: [[C, OTHER_PEER]] as const };
const NOW = 1_700_000_000_123.5;
const EVERYTHING: MirrorFilter = {
  vni: undefined,
  mac: undefined,
  remote: undefined,
  snaplen: 262_144,
};

/** A dataplane that somebody captures, and what was captured. */
function captured(filter: Partial<MirrorFilter> = {}, ring = 1 << 20, networks = [NETWORK]) {
  const vtep = script(networks);
  const memory = Mirror.allocate(ring);
  // Shortly before its positions run over.
  new Int32Array(memory).fill(0x7fff_f000, 0, 2);
  const { dataplane, remotes } = vtep;
  dataplane.mirrorTo(new Mirror(memory, { ...EVERYTHING, ...filter }, remotes, () => NOW));
  const reader = new MirrorReader(memory);
  const read = () => {
    const frames: Mirrored[] = [];
    for (let next = reader.next(); next !== undefined; next = reader.next()) {
      frames.push({ ...next, bytes: next.bytes.slice() });
      reader.advance();
    }
    return frames;
  };
  return { ...vtep, reader, read };
}

const outcome = ({ direction, network, reason, copies, failed }: Mirrored) => {
  return { direction, network, reason, copies, failed };
};
const nameOf = ({ address }: Mirrored) => formatAddress(address, 0);

describe("a mirror", () => {
  it("shows a frame from the TAP as it was, with where it goes", () => {
    const vtep = captured();
    const sent = [frame(C, A), frame(BROADCAST, B, { length: 700 })];
    vtep.encap(sent);
    const seen = vtep.read();
    expect(seen.map(({ bytes }) => bytes)).toEqual(sent);
    expect(seen.map(outcome)).toEqual([
      { direction: "encap", network: 1, reason: 0, copies: 1, failed: 0 },
      { direction: "encap", network: 1, reason: 0, copies: 2, failed: 0 },
    ]);
    expect(seen.map(nameOf)).toEqual([OTHER_PEER, PEER]);
    expect(seen.map(({ timeMs }) => timeMs)).toEqual([NOW, NOW]);
  });

  it("shows each datagram of a train without its VXLAN header, with who sent it", () => {
    const vtep = captured();
    const inner = [frame(A, B), frame(A, B, { mark: 1 }), frame(A, B, { length: 30 })];
    const train = bytes(...inner.map((one) => vxlan(VNI, one)));
    vtep.decap({ bytes: train, from: PEER, segment: 68 });
    const seen = vtep.read();
    expect(seen.map(({ bytes }) => bytes)).toEqual(inner);
    expect(seen.map(nameOf)).toEqual([PEER, PEER, PEER]);
    expect(seen.map(outcome)).toEqual(
      Array(3).fill({ direction: "decap", network: 1, reason: 0, copies: 0, failed: 0 }),
    );
    expect(vtep.taps[0]!.written.map(({ bytes }) => bytes)).toEqual(inner);
  });

  it("shows every datagram, however many are read at once", () => {
    const vtep = captured();
    const datagram = vxlan(VNI, frame(A, B));
    const train = bytes(...Array(100).fill(datagram));
    vtep.decap(...Array(30).fill({ bytes: train, from: PEER, segment: datagram.length }));
    expect(vtep.read()).toHaveLength(3000);
  });

  it("shows what belongs to no network with its VXLAN header", () => {
    const vtep = captured();
    const foreign = vxlan(VNI + 1, frame(A, B));
    vtep.decap({ bytes: foreign, from: STRANGER });
    const [seen] = vtep.read();
    expect(seen).toMatchObject({ network: 0, reason: Drop.VXLAN_VNI_NOT_FOUND, bytes: foreign });
  });

  const datagram = ipv4Packet({ protocol: 17, payload: new Uint8Array(8) });
  const packet = bytes(frame(A, B).subarray(0, 12), [0x08, 0x00], datagram);
  const DROPS: [name: keyof typeof Drop, row: Row][] = [
    ["PKT_TOO_SMALL", { bytes: vxlan(VNI, new Uint8Array(13)), from: PEER }],
    ["PKT_TOO_BIG", { bytes: vxlan(VNI, frame(A, B)), from: PEER, flags: TRUNCATED }],
    ["MAC_INVALID_SOURCE", { bytes: vxlan(VNI, frame(A, MULTICAST)), from: PEER }],
    ["LOCAL_MAC", { bytes: vxlan(VNI, frame(A, mac(0xf0))), from: PEER }],
    ["VXLAN_INVALID_HDR", { bytes: vxlan(VNI, frame(A, B), 0), from: PEER }],
    ["VXLAN_VNI_NOT_FOUND", { bytes: vxlan(7, frame(A, B)), from: PEER }],
    ["VXLAN_REMOTE_NOT_ALLOWED", { bytes: vxlan(VNI, frame(A, B)), from: STRANGER }],
    ["VXLAN_ENTRY_EXISTS", { bytes: vxlan(VNI, frame(A, C)), from: PEER }],
    ["IP_TUNNEL_ECN", { bytes: vxlan(VNI, packet), from: PEER, tos: 3 }],
  ];
  it.each(DROPS)("says that a datagram was dropped: %s", (name, row) => {
    const vtep = captured();
    vtep.decap({ bytes: vxlan(VNI, frame(A, B)), from: PEER }, row);
    expect(vtep.read().map(({ reason }) => reason)).toEqual([0, Drop[name]]);
    expect(vtep.drops()).toEqual({ [name]: 1 });
  });

  it("says that a frame from the TAP was dropped, and of a flooded one how many copies", () => {
    const vtep = captured();
    vtep.underlay.errnoOf = (nth) => (nth === 1 ? constants.errno.EAGAIN : 0);
    vtep.remotes.learnPathMtu(vtep.remotes.add(OTHER_PEER, 4789), 1300);
    vtep.encap([
      frame(BROADCAST, MULTICAST),
      frame(BROADCAST, A, { length: 1400 }),
      frame(BROADCAST, A),
      frame(C, A, { length: 1400 }),
      frame(C, A).subarray(0, 13),
    ]);
    const seen = vtep.read();
    expect(seen.map(outcome)).toMatchObject([
      { reason: Drop.MAC_INVALID_SOURCE, copies: 0, failed: 0 },
      { reason: Drop.PKT_TOO_BIG, copies: 2, failed: 1 },
      { reason: Drop.FULL_RING, copies: 2, failed: 1 },
      { reason: Drop.PKT_TOO_BIG, copies: 1, failed: 1 },
      { reason: Drop.PKT_TOO_SMALL, copies: 0, failed: 0 },
    ]);
  });

  it("says that the TAP refused a frame, also when its train was written in parts", () => {
    const vtep = captured({}, 1 << 20, [NETWORK, { vni: 200, peers: [PEER], fdb: [] as never }]);
    vtep.taps[0]!.errnoOf = (nth) => (nth === 1 ? constants.errno.EIO : 0);
    const row = (vni: number): Row => ({ bytes: vxlan(vni, frame(A, B)), from: PEER });
    vtep.decap(row(VNI), row(200), row(VNI), row(VNI));
    expect(vtep.read().map(({ network, reason }) => [network, reason])).toEqual([
      [1, 0],
      [2, 0],
      [1, Drop.DEV_READY],
      [1, 0],
    ]);
  });

  it("keeps of a frame what is asked for, and says how long it was", () => {
    const vtep = captured({ snaplen: 21 });
    vtep.encap([frame(C, A, { length: 1000 })]);
    vtep.decap({ bytes: vxlan(VNI, frame(A, B)), from: PEER });
    expect(vtep.read().map(({ bytes, length }) => [bytes.length, length])).toEqual([
      [21, 1000],
      [21, 60],
    ]);
  });

  it("shows the frames of one network, and datagrams with its VNI that belong to none", () => {
    const vtep = captured({ vni: 200 }, 1 << 20, [
      NETWORK,
      { vni: 200, peers: [PEER], fdb: [] as never },
    ]);
    vtep.encap([frame(B, A)], 0);
    vtep.encap([frame(B, A)], 1);
    vtep.decap(
      { bytes: vxlan(VNI, frame(A, B)), from: PEER },
      { bytes: vxlan(200, frame(A, B)), from: PEER },
      { bytes: vxlan(200, frame(A, B)), from: STRANGER },
      { bytes: new Uint8Array(3), from: PEER },
    );
    expect(vtep.read().map(({ network, reason }) => [network, reason])).toEqual([
      [2, 0],
      [2, 0],
      [2, Drop.VXLAN_REMOTE_NOT_ALLOWED],
    ]);
  });

  it("shows the frames from or to one MAC", () => {
    const vtep = captured({ mac: parseMac(B)! });
    vtep.encap([frame(B, A), frame(C, A), frame(C, B), frame(C, A).subarray(0, 9)]);
    vtep.decap(
      { bytes: vxlan(VNI, frame(A, B)), from: PEER },
      { bytes: vxlan(VNI, frame(A, C)), from: OTHER_PEER },
    );
    expect(vtep.read().map(({ bytes }) => bytes)).toEqual([frame(B, A), frame(C, B), frame(A, B)]);
  });

  it("shows what goes to one remote or comes from it, a stranger too", () => {
    const vtep = captured({ remote: addressWords(OTHER_PEER) });
    vtep.encap([frame(C, A), frame(BROADCAST, A), frame(B, MULTICAST)]);
    vtep.decap(
      { bytes: vxlan(VNI, frame(A, B)), from: OTHER_PEER },
      { bytes: vxlan(VNI, frame(A, mac(1))), from: PEER },
    );
    vtep.encap([frame(B, A), frame(mac(1), A)]);
    const seen = vtep.read();
    expect(seen.map(({ copies }) => copies)).toEqual([1, 2, 0, 1]);
    expect(seen.map(nameOf)).toEqual(Array(4).fill(OTHER_PEER));

    const strange = captured({ remote: addressWords(STRANGER) });
    strange.decap({ bytes: vxlan(VNI, frame(A, B)), from: STRANGER });
    expect(strange.read()).toMatchObject([{ reason: Drop.VXLAN_REMOTE_NOT_ALLOWED }]);
  });

  it("counts what found no room, by network, and goes on when there is some again", () => {
    const vtep = captured({ snaplen: 64 }, 4096);
    const frames = Array.from({ length: 100 }, (_, mark) => frame(C, A, { mark }));
    vtep.encap(frames);
    const seen = vtep.read();
    expect(seen.map(({ bytes }) => bytes)).toEqual(frames.slice(0, seen.length));
    expect(seen.length).toBe(4096 / 128);
    expect(vtep.reader.missed(1)).toBe(100 - seen.length);
    expect(vtep.underlay.written).toHaveLength(100);
    vtep.encap(frames.slice(0, 5));
    expect(vtep.read()).toHaveLength(5);
  });

  it("counts as missed by remote only what went there", () => {
    const vtep = captured({ remote: addressWords(OTHER_PEER) }, 256);
    vtep.encap([frame(B, A), ...Array.from({ length: 10 }, () => frame(C, A)), frame(B, A)]);
    const seen = vtep.read();
    expect(seen.length + vtep.reader.missed(1)).toBe(12); // B is flooded, to that one too
    const unicast = captured({ remote: addressWords(PEER) }, 256);
    unicast.encap(Array.from({ length: 10 }, () => frame(C, A)));
    expect([unicast.read().length, unicast.reader.missed(1)]).toEqual([0, 0]);
  });

  it("looks for a VNI or a MAC where there is one only", () => {
    const vni = captured({ vni: VNI });
    const whole = vxlan(VNI, frame(A, B));
    vni.decap({ bytes: vxlan(VNI, frame(A, B), 0), from: PEER });
    vni.decap({ bytes: whole.subarray(0, 7), from: PEER });
    expect(vni.read()).toEqual([]);
    const macs = captured({ mac: parseMac(A)! });
    macs.encap([frame(C, A).subarray(0, 13)]);
    macs.decap({ bytes: whole.subarray(0, 8 + 13), from: PEER });
    expect(macs.read()).toEqual([]);
  });

  it("says of no frame what was so of another, of its row or of its place in the ring", () => {
    const vtep = captured({ mac: parseMac(A)! }, 256);
    vtep.underlay.errnoOf = (nth) => (nth < 4 ? constants.errno.EAGAIN : 0);
    const other = { direction: "encap", network: 1, reason: 0, copies: 1, failed: 0 };
    vtep.encap([frame(BROADCAST, A), frame(BROADCAST, A)]);
    const refused = { ...other, reason: Drop.FULL_RING, copies: 2, failed: 2 };
    expect(vtep.read().map(outcome)).toEqual([refused, refused]);
    vtep.encap([frame(C, B), frame(C, A)]);
    expect(vtep.read().map(outcome)).toEqual([other]);
  });

  it("keeps whole what is copied lap after lap, whatever the lengths", () => {
    fc.assert(
      fc.property(
        fc.array(fc.array(fc.integer({ min: 14, max: 900 }), { maxLength: 12 }), { maxLength: 40 }),
        (bursts) => {
          const vtep = captured({}, 4096);
          let mark = 0;
          let missed = 0;
          for (const lengths of bursts) {
            const frames = lengths.map((length) => frame(C, A, { mark: mark++ & 0xff, length }));
            vtep.encap(frames);
            const seen = vtep.read();
            expect(seen.map(({ bytes }) => bytes)).toEqual(
              frames.filter((one) => seen.some(({ bytes }) => Buffer.compare(bytes, one) === 0)),
            );
            missed += frames.length - seen.length;
            expect(vtep.reader.missed(1)).toBe(missed);
          }
        },
      ),
      { numRuns: 30 },
    );
  });

  it("changes nothing of what happens", () => {
    const macs = fc.constantFrom(A, B, C, mac(0xf0), MULTICAST, BROADCAST);
    const inner = fc
      .tuple(macs, macs, fc.integer({ min: 10, max: 90 }))
      .map(([to, from, length]) => frame(to, from, { length }));
    const vni = fc.constantFrom(VNI, 200, 7);
    const datagram = fc
      .tuple(vni, inner, fc.constantFrom(0x08, 0x08, 0, 0x88))
      .map(([vni, inner, flags]) => vxlan(vni, inner, flags));
    const row: fc.Arbitrary<Row> = fc.record({
      bytes: fc.array(datagram, { maxLength: 4 }).map((all) => bytes(...all)),
      from: fc.constantFrom(PEER, OTHER_PEER, STRANGER),
      segment: fc.integer({ min: 30, max: 98 }),
      flags: fc.constantFrom(0, 0, 0, TRUNCATED),
      tos: fc.integer({ min: 0, max: 3 }),
    });
    const step = fc.oneof(
      fc.record({ at: fc.constantFrom(0, 1), frames: fc.array(inner, { maxLength: 6 }) }),
      fc.record({ rows: fc.array(row, { maxLength: 6 }) }),
    );
    const networks = [NETWORK, { vni: 200, peers: [PEER], fdb: [] as never }];
    fc.assert(
      fc.property(fc.array(step, { maxLength: 20 }), (steps) => {
        const watched = captured({}, 1 << 20, networks);
        const plain = script(networks);
        for (const vtep of [watched, plain]) {
          vtep.underlay.errnoOf = (nth) => (nth % 5 === 4 ? constants.errno.ENOBUFS : 0);
          for (const tap of vtep.taps) tap.errnoOf = (nth) => (nth % 7 === 6 ? 5 : 0);
          for (const one of steps) {
            if ("rows" in one) vtep.decap(...one.rows);
            else vtep.encap(one.frames, one.at);
          }
        }
        expect(watched.underlay.written).toEqual(plain.underlay.written);
        for (const at of [0, 1]) {
          expect(watched.taps[at]!.written).toEqual(plain.taps[at]!.written);
          expect(watched.events(at)).toEqual(plain.events(at));
          expect(watched.drops(at)).toEqual(plain.drops(at));
        }
        expect([...watched.fdb.rows()]).toEqual([...plain.fdb.rows()]);
        // And what it says of drops is what was counted.
        const counted = { ...plain.counters.drops(0) } as Record<string, number>;
        for (const at of [0, 1]) {
          for (const [name, count] of Object.entries(plain.counters.drops(at + 1))) {
            counted[name] = (counted[name] ?? 0) + count;
          }
        }
        const said: Record<string, number> = {};
        for (const { reason, failed } of watched.read()) {
          const name = Object.entries(Drop).find(([, column]) => column === reason)?.[0];
          if (name !== undefined) said[name] = (said[name] ?? 0) + Math.max(1, failed);
        }
        expect(said).toEqual(counted);
      }),
      { numRuns: 30 },
    );
  });
});
