import { describe, expect, it } from "vitest";
import { ANSWERED, ASKS, REPEATED, TRUNCATED } from "../../src/batch.ts";
import { STATIC } from "../../src/fdb.ts";
import { Mirror } from "../../src/mirror.ts";
import { parseMac } from "../../src/wire/ethernet.ts";
import {
  address,
  BROADCAST,
  byMac,
  frame,
  type Guard,
  mac,
  type NetworkOptions,
  PORT,
  type Row,
  script,
  vxlan,
} from "./sim.ts";

const PEER = address(2);
const [HERE, THERE, UNKNOWN] = [mac(1), mac(2), mac(9)];
const KNOWN: NetworkOptions = { vni: 100, peers: [PEER], fdb: [[THERE, PEER]] };

/** With the tag of VLAN 7. */
function tagged(bytes: Uint8Array): Uint8Array {
  return Buffer.concat([bytes.subarray(0, 12), Buffer.from("81000007", "hex"), bytes.subarray(12)]);
}

/** Hands a burst over of which the device asks what is decided. */
function asksOfTap(vtep: ReturnType<typeof script>, ...frames: Uint8Array[]): void {
  vtep.taps[0]!.bursts.push(frames.map((bytes) => ({ bytes, flags: ASKS })));
  vtep.dataplane.encap();
}

function asksOfUnderlay(vtep: ReturnType<typeof script>, ...rows: Partial<Row>[]): void {
  const datagram = { bytes: vxlan(100, frame(HERE, THERE)), from: PEER, flags: ASKS };
  vtep.decap(...rows.map((row) => ({ ...datagram, ...row })));
}

describe("what a device may repeat", () => {
  it("is what goes to a single remote, as the FDB says at that place", () => {
    const vtep = script([KNOWN]);
    asksOfTap(vtep, frame(THERE, HERE));
    const [{ at, words }, sender] = vtep.underlay.offers[0]! as [Guard, Guard];
    const now = (from = at) => [...vtep.fdb.words.subarray(from, from + 3)];
    expect(now()).toEqual(words);
    expect(now(sender.at)).toEqual(sender.words);
    vtep.decap({ bytes: vxlan(100, frame(BROADCAST, HERE)), from: PEER });
    expect(now(sender.at), "of a sender that is elsewhere").not.toEqual(sender.words);
    const { high, low } = parseMac(THERE)!;
    vtep.fdb.set(1, high, low, vtep.remotes.add(address(3), PORT), STATIC);
    expect(now(), "moved").not.toEqual(words);
    vtep.fdb.set(1, high, low, vtep.remotes.add(PEER, PORT), STATIC);
    expect(now(), "moved back").toEqual(words);
    vtep.fdb.delete(1, high, low, STATIC);
    expect(now(), "removed").not.toEqual(words);
    vtep.fdb.set(1, high, low, vtep.remotes.add(PEER, PORT), STATIC);
    expect(now(), "entered anew").not.toEqual(words);
  });

  it("is what comes from where the FDB has its sender", () => {
    const vtep = script([{ vni: 100, peers: [PEER] }]);
    asksOfUnderlay(vtep, {});
    const [{ at, words }] = vtep.taps[0]!.offers[0]! as [Guard];
    expect([...vtep.fdb.words.subarray(at, at + 3)]).toEqual(words);
    vtep.decap({ bytes: vxlan(100, frame(HERE, THERE)), from: PEER });
    expect([...vtep.fdb.words.subarray(at, at + 3)], "seen again").toEqual(words);
    vtep.encap([frame(BROADCAST, THERE)]);
    expect([...vtep.fdb.words.subarray(at, at + 3)], "it is here now").not.toEqual(words);
  });

  it.each<[string, NetworkOptions, Uint8Array[]]>([
    ["is unknown", KNOWN, [frame(UNKNOWN, HERE)]],
    ["is for all", KNOWN, [frame(BROADCAST, HERE)]],
    ["is for a MAC that was learned here", KNOWN, [frame(HERE, HERE)]],
    ["has no source", KNOWN, [frame(THERE, BROADCAST)]],
    ["is too short", KNOWN, [frame(THERE, HERE, { length: 13 })]],
    ["is in a VLAN", { ...KNOWN, vlan: 7 }, [tagged(frame(THERE, HERE))]],
    ["may be clamped", { ...KNOWN, clampMtu: 1400 }, [frame(THERE, HERE)]],
    ["is the gateway's", { ...KNOWN, tapMac: HERE, hasGateway: true }, [frame(THERE, HERE)]],
    ["is of one that may not be learned", { ...KNOWN, limit: 0 }, [frame(THERE, HERE)]],
    ["is not alone", KNOWN, [frame(THERE, HERE), frame(THERE, HERE)]],
  ])("is no frame that %s", (_, options, frames) => {
    const vtep = script([options]);
    asksOfTap(vtep, ...frames);
    expect(vtep.underlay.offers).toEqual([]);
  });

  it.each<[string, NetworkOptions, Partial<Row>[]]>([
    ["has another VNI", KNOWN, [{ bytes: vxlan(101, frame(HERE, THERE)) }]],
    ["has reserved bits set", KNOWN, [{ bytes: vxlan(100, frame(HERE, THERE), 0x88) }]],
    ["comes from a stranger", KNOWN, [{ from: "203.0.113.9" }]],
    ["comes from elsewhere", { ...KNOWN, peers: [PEER, address(3)] }, [{ from: address(3) }]],
    ["is cut off", KNOWN, [{ flags: ASKS | TRUNCATED }]],
    ["is for a VLAN", { ...KNOWN, vlan: 7 }, [{}]],
    ["may be clamped", { ...KNOWN, clampMtu: 1400 }, [{}]],
    ["is of the TAP's own MAC", { ...KNOWN, tapMac: THERE }, [{}]],
    ["is not alone", KNOWN, [{}, {}]],
    ["was not alone", KNOWN, [{ from: "203.0.113.9", flags: ASKS }, { flags: 0 }]],
    [
      "is a train",
      KNOWN,
      [{ bytes: Buffer.concat(Array(2).fill(vxlan(100, frame(HERE, THERE)))), segment: 68 }],
    ],
  ])("is no datagram that %s", (_, options, rows) => {
    const vtep = script([options]);
    asksOfUnderlay(vtep, ...rows);
    expect(vtep.taps[0]!.offers).toEqual([]);
  });

  it("is nothing that is captured, nor what nobody asked for", () => {
    const vtep = script([KNOWN]);
    vtep.encap([frame(THERE, HERE)]);
    vtep.decap({ bytes: vxlan(100, frame(HERE, THERE)), from: PEER });
    const all = { vni: undefined, mac: undefined, remote: undefined, snaplen: 64 };
    vtep.dataplane.mirrorTo(new Mirror(Mirror.allocate(), all, vtep.remotes, () => 0));
    asksOfTap(vtep, frame(THERE, HERE));
    asksOfUnderlay(vtep, {});
    expect(vtep.underlay.offers).toEqual([]);
    expect(vtep.taps[0]!.offers).toEqual([]);
    vtep.dataplane.mirrorTo(undefined);
    asksOfTap(vtep, frame(THERE, HERE));
    expect(vtep.underlay.offers).toHaveLength(1);
  });
});

it("takes its turn with the TAPs where a datagram was answered", () => {
  const vtep = script([KNOWN]);
  const datagram = { bytes: vxlan(100, frame(HERE, THERE)), from: PEER };
  vtep.underlay.bursts.push([{ ...datagram, flags: ANSWERED }], [datagram], []);
  expect(vtep.dataplane.decap()).toBe(true);
  vtep.underlay.bursts.push([datagram], []);
  expect(vtep.dataplane.decap()).toBe(false);
});

describe("what a device has moved", () => {
  const moved = (bytes: Uint8Array, to: number): Row => ({ bytes, flags: REPEATED, moved: to });

  it("goes where it has gone, whatever the FDB says by now, and is counted there", () => {
    const vtep = script([{ ...KNOWN, peers: [PEER, address(3)] }]);
    const other = vtep.remotes.add(address(3), PORT);
    vtep.taps[0]!.bursts.push([moved(frame(THERE, HERE), other)]);
    vtep.dataplane.encap();
    expect(vtep.underlay.written.map(({ remote }) => remote)).toEqual([other]);
    vtep.decap({ ...moved(vxlan(100, frame(HERE, THERE)), 1), from: address(3) });
    expect(vtep.taps[0]!.written.map(({ remote }) => remote)).toEqual([other]);
    expect(vtep.events()).toMatchObject({ encapFrames: 1, decapFrames: 1 });
    expect(vtep.drops()).toEqual({});
  });

  it("has its sender seen again where that still is, and is no news of it", () => {
    const vtep = script([{ vni: 100, peers: [PEER], age: 10 }]);
    const seenAt = (text: string) => byMac(vtep.fdb.rows())[text]?.seenAt;
    vtep.encap([frame(THERE, HERE)]);
    vtep.decap({ bytes: vxlan(100, frame(HERE, THERE)), from: PEER });
    vtep.dataplane.tick(7);
    vtep.taps[0]!.bursts.push([moved(frame(THERE, HERE), 1)]);
    vtep.dataplane.encap();
    vtep.decap({ ...moved(vxlan(100, frame(HERE, THERE)), 1), from: PEER });
    expect([HERE, THERE].map(seenAt)).toEqual([7, 7]);
    vtep.decap({ bytes: vxlan(100, frame(BROADCAST, HERE)), from: PEER });
    vtep.encap([frame(BROADCAST, THERE)]);
    vtep.taps[0]!.bursts.push([moved(frame(THERE, HERE), 1)]);
    vtep.dataplane.encap();
    vtep.decap({ ...moved(vxlan(100, frame(HERE, THERE)), 1), from: PEER });
    expect(vtep.knows(HERE)).toBe(PEER);
    expect(vtep.knows(THERE)).toBe("local");
    vtep.taps[0]!.bursts.push([moved(frame(THERE, UNKNOWN), 1)]);
    vtep.dataplane.encap();
    expect(vtep.knows(UNKNOWN)).toBeUndefined();
  });
});
