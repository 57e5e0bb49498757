import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { TRUNCATED } from "../../src/batch.ts";
import { Drop } from "../../src/counters.ts";
import {
  type Asked,
  askedOf,
  explain,
  type Question as Put,
  type Scene,
} from "../../src/explain.ts";
import { CONTROL, LEARNED, STATIC } from "../../src/fdb.ts";
import { parseMac } from "../../src/wire/ethernet.ts";
import { address, BROADCAST, frame, MULTICAST, mac, PORT, script, vxlan } from "./sim.ts";
import { bytes } from "./wire/frames.ts";

const VNI = 100;
const A = mac(0x0a);
const B = mac(0x0b);
const C = mac(0x0c);
const TAP = mac(0xf0);
const ZERO = "00:00:00:00:00:00";
const PEER = address(2);
const OTHER_PEER = address(3);
const ELSEWHERE = address(9);
const STRANGER = "203.0.113.9";
const LARGEST = 1600;
const NOW = 1000;

interface Setting {
  peers: string[];
  limit: number;
  vlan: number;
  hasGateway: boolean;
  entries: { mac: string; remote: string; origin: 1 | 2 | 3; seenAt: number }[];
  paths: { remote: string; mtu: number }[];
}

/** A dataplane with this FDB, and the same as a scene. */
function stage({ peers, limit, vlan, hasGateway, entries, paths }: Setting) {
  const vtep = script([{ vni: VNI, peers, limit, vlan, hasGateway, age: 0 }]);
  const { fdb, remotes } = vtep;
  const [network] = vtep.networks;
  for (const { mac, remote, origin, seenAt } of entries) {
    const { high, low } = parseMac(mac)!;
    const destination = remote === "local" ? 0 : remotes.add(remote, PORT);
    if (origin === LEARNED) fdb.learn(1, high, low, destination, seenAt);
    else {
      network!.allow(destination || remotes.add(ELSEWHERE, PORT));
      fdb.set(1, high, low, destination, origin);
    }
  }
  for (const { remote, mtu } of paths) remotes.learnPathMtu(remotes.add(remote, PORT), mtu);
  vtep.dataplane.tick(NOW);
  const scene: Scene = {
    fdb,
    remotes,
    now: NOW,
    largestFrame: LARGEST,
    network: {
      name: "blue",
      vni: VNI,
      index: 1,
      tap: "vtep100",
      mac: parseMac(TAP)!,
      hasGateway,
      vlan,
      mtu: 1450,
      flood: network!.flood,
      allows: (remote) => network!.allows(remote),
    },
  };
  return { vtep, scene };
}

const ONE: Setting = {
  peers: [PEER, OTHER_PEER],
  limit: 100,
  vlan: 0,
  hasGateway: false,
  entries: [],
  paths: [],
};
const asked = (whole: Uint8Array, from?: string): Asked => {
  return { frame: whole, isHeaderOnly: false, from };
};

/** What the dataplane does, in the words of a verdict. */
function done(vtep: ReturnType<typeof stage>["vtep"], { frame: whole, from }: Asked) {
  if (from === undefined) vtep.encap([whole]);
  else {
    const flags = whole.length > LARGEST ? TRUNCATED : 0;
    vtep.decap({ bytes: vxlan(VNI, whole), from, flags });
  }
  const sent = vtep.underlay.written.map(({ remote }) => vtep.remotes.address(remote));
  const delivered = vtep.taps[0]!.written.length > 0;
  const outcome =
    sent.length > 0 ? "sent" : from !== undefined && delivered ? "delivered" : "dropped";
  return { outcome, remotes: sent, drops: vtep.drops() };
}

interface Question {
  to: string;
  by: string;
  length: number;
  tags: number[];
  from: string | undefined;
}

const VLAN = 10;
const OWN_TAG = [0x81, 0x00, 0xa0, VLAN];
const OTHER_TAG = [0x81, 0x00, 0x00, 20];
const PRIORITY_TAG = [0x81, 0x00, 0xa0, 0x00];
const SERVICE_TAG = [0x88, 0xa8, 0x00, VLAN];

const narrow = { ...ONE, paths: [{ remote: PEER, mtu: 1400 }] };
const fixed = {
  ...ONE,
  entries: [{ mac: C, remote: OTHER_PEER, origin: STATIC, seenAt: 1 }] satisfies Setting["entries"],
};
const vlan = { ...ONE, vlan: VLAN };
const short = { to: B, by: A, length: 60, tags: [], from: undefined };
/** Every way that a frame can go, each with a case of it. */
const WAYS: [way: string, given: Setting, question: Question][] = [
  ["sent ", ONE, short],
  ["sent PKT_TOO_BIG", narrow, { ...short, length: 1450 }],
  ["sent ", { ...narrow, peers: [PEER] }, { ...short, length: 1364 }],
  ["dropped PKT_TOO_BIG", { ...narrow, peers: [PEER] }, { ...short, length: 1365 }],
  ["delivered ", ONE, { ...short, from: PEER }],
  ["delivered ", ONE, { ...short, length: 14, from: PEER }],
  ["delivered ", ONE, { ...short, length: LARGEST, from: PEER }],
  ["dropped PKT_TOO_BIG", ONE, { ...short, length: LARGEST + 1, from: PEER }],
  ["dropped PKT_TOO_SMALL", ONE, { ...short, length: 13 }],
  ["dropped MAC_INVALID_SOURCE", ONE, { ...short, by: MULTICAST }],
  ["dropped LOCAL_MAC", ONE, { ...short, by: TAP, from: PEER }],
  ["dropped VXLAN_NO_REMOTE", { ...ONE, peers: [] }, short],
  ["dropped VXLAN_ENTRY_EXISTS", fixed, { ...short, by: C, from: PEER }],
  ["dropped VXLAN_REMOTE_NOT_ALLOWED", ONE, { ...short, from: STRANGER }],
  ["sent ", vlan, { ...short, tags: OWN_TAG }],
  ["dropped ", vlan, { ...short, tags: OTHER_TAG }],
  ["dropped VLAN_TAGGED", vlan, { ...short, tags: [...OWN_TAG, ...PRIORITY_TAG] }],
  ["delivered ", vlan, { ...short, tags: PRIORITY_TAG, from: PEER }],
  ["dropped VLAN_TAGGED", vlan, { ...short, tags: SERVICE_TAG, from: PEER }],
  ["sent ", ONE, { ...short, by: TAP }],
  ["dropped ", { ...ONE, hasGateway: true }, { ...short, by: TAP }],
];

function tagged(...tags: number[][]): Uint8Array {
  const whole = frame(B, A);
  return bytes(whole.subarray(0, 12), tags.flat(), whole.subarray(12));
}

describe("an explanation", () => {
  const macs = fc.constantFrom(A, A, B, B, C, C, TAP, ZERO, BROADCAST, MULTICAST);
  const remote = fc.constantFrom(PEER, OTHER_PEER, ELSEWHERE);
  const setting: fc.Arbitrary<Setting> = fc.record({
    peers: fc.uniqueArray(fc.constantFrom(PEER, OTHER_PEER), { maxLength: 2 }),
    limit: fc.integer({ min: 0, max: 4 }),
    vlan: fc.constantFrom(0, 0, VLAN),
    hasGateway: fc.boolean(),
    entries: fc.array(
      fc.record({
        mac: fc.constantFrom(A, B, C, mac(1), mac(2), BROADCAST, MULTICAST),
        remote: fc.oneof(remote, fc.constant("local")),
        origin: fc.constantFrom(LEARNED, LEARNED, LEARNED, CONTROL, STATIC),
        seenAt: fc.integer({ min: 1, max: 900 }),
      }),
      { maxLength: 8 },
    ),
    paths: fc.array(fc.record({ remote, mtu: fc.integer({ min: 600, max: 1500 }) }), {
      maxLength: 2,
    }),
  });
  const question: fc.Arbitrary<Question> = fc.record({
    to: macs,
    by: macs,
    length: fc.oneof(fc.constant(60), fc.integer({ min: 0, max: 1700 })),
    tags: fc
      .array(fc.constantFrom(OWN_TAG, OTHER_TAG, PRIORITY_TAG, SERVICE_TAG), { maxLength: 3 })
      .map((tags) => tags.flat()),
    from: fc.constantFrom(undefined, undefined, PEER, OTHER_PEER, ELSEWHERE, STRANGER),
  });

  it("comes to what the dataplane does, and leaves everything as it was", () => {
    const seen = new Set<string>();
    fc.assert(
      fc.property(setting, question, (given, { to, by, length, tags, from }) => {
        const { vtep, scene } = stage(given);
        const before = [...vtep.fdb.rows()];
        const untagged = frame(to, by, { length });
        const whole = bytes(untagged.subarray(0, 12), tags, untagged.subarray(12));
        const one = asked(whole.subarray(0, length), from);
        const { verdict } = explain(scene, one);
        expect([...vtep.fdb.rows()]).toEqual(before);
        const drops: Record<string, number> = {};
        for (const { reason } of verdict.drops) drops[reason] = (drops[reason] ?? 0) + 1;
        const real = done(vtep, one);
        expect({ outcome: verdict.outcome, remotes: verdict.remotes, drops }).toEqual(real);
        seen.add(`${real.outcome} ${Object.keys(real.drops)}`);
      }),
      { numRuns: 250, examples: WAYS.map(([, given, question]) => [given, question]) },
    );
    // Not agreement about nothing: every way there is was gone.
    for (const [way] of WAYS) expect(seen).toContain(way);
  }, 60_000);

  it.each([
    ["the one that goes", B, `Flooded to ${PEER}`],
    ["another one", C, `Sent to ${OTHER_PEER}`],
  ])("foresees whom a full FDB forgets for the source: %s", (_, to, sentence) => {
    const behind = { remote: OTHER_PEER, origin: LEARNED, seenAt: 5 } as const;
    const entries = [B, C].map((mac, at) => ({ ...behind, mac, seenAt: at + 5 }));
    const { vtep, scene } = stage({ ...ONE, peers: [PEER], limit: 2, entries });
    const one = asked(frame(to, A));
    const { steps, verdict } = explain(scene, one);
    expect(steps[1]).toContain(`${B}, which was not seen for longest, is forgotten for it`);
    expect(verdict.sentence).toContain(sentence);
    expect(done(vtep, one).remotes).toEqual(verdict.remotes);
  });

  it("tells a frame's way in order, and ends in a verdict", () => {
    const { scene } = stage({
      ...ONE,
      entries: [{ mac: B, remote: OTHER_PEER, origin: LEARNED, seenAt: NOW - 12 }],
    });
    expect(explain(scene, asked(frame(B, A)))).toEqual({
      network: "blue",
      direction: "encap",
      steps: [
        "It comes from the host, through vtep100 of network blue (VNI 100).",
        `Source ${A} is new: it is learned as being on the host's side.`,
        `Destination ${B} has a learned entry: behind ${OTHER_PEER}, seen 12 seconds ago.`,
      ],
      verdict: {
        outcome: "sent",
        remotes: [OTHER_PEER],
        drops: [],
        sentence: `Sent to ${OTHER_PEER}, with VNI 100.`,
      },
    });
  });

  it("says whom a flooded frame reaches, and whose path is too narrow for it", () => {
    const { scene } = stage({ ...ONE, paths: [{ remote: PEER, mtu: 1400 }] });
    const { steps, verdict } = explain(scene, asked(frame(BROADCAST, A, { length: 1400 })));
    expect(steps.slice(2)).toEqual([
      `Destination ${BROADCAST} is broadcast: it is flooded.`,
      `The flood list has 2 remotes: ${PEER}, ${OTHER_PEER}.`,
      `The path to ${PEER} was found to have an MTU of 1400, which takes frames of 1364 bytes: one of 1400 is too long, and its sender is told if it is IP.`,
    ]);
    expect(verdict).toMatchObject({
      remotes: [OTHER_PEER],
      drops: [{ reason: "PKT_TOO_BIG", remote: PEER }],
      sentence: `Flooded to ${OTHER_PEER}, with VNI 100; 1 copy dropped as PKT_TOO_BIG.`,
    });
  });

  it("tells the way of a frame from a remote, too", () => {
    const { scene } = stage({
      ...ONE,
      entries: [{ mac: B, remote: PEER, origin: LEARNED, seenAt: NOW - 1 }],
    });
    expect(explain(scene, asked(frame(A, B), PEER)).steps).toEqual([
      `It comes from ${PEER}, with VNI 100: that is network blue.`,
      `${PEER} is a remote of this network, so it is listened to.`,
      `Source ${B} has a learned entry: behind ${PEER}, seen 1 second ago.`,
    ]);
  });

  it.each([
    ["02:00:ff:ff:ff:ff", "is unknown"],
    ["ff:ff:00:00:00:01", "is multicast"],
    [MULTICAST, "is multicast"],
    [A, "is on the host's side too"],
  ])("says why a frame is flooded: to %s, which %s", (to, words) => {
    const entry = { mac: A, remote: "local", origin: LEARNED, seenAt: NOW } as const;
    const { scene } = stage({ ...ONE, entries: [entry] });
    const { steps, verdict } = explain(scene, asked(frame(to, A)));
    expect(steps[2]).toContain(`${to} ${words}`);
    expect(verdict.sentence).toMatch(/^Flooded to /);
  });

  it.each([
    ["that is new", ONE, "is new: it is learned", "is on the host's side too"],
    [
      "that there is no room for",
      { ...ONE, limit: 0 },
      "is new, and is not learned: there is no room",
      "is unknown",
    ],
    [
      "that has moved here",
      { ...ONE, entries: [{ mac: C, remote: OTHER_PEER, origin: LEARNED, seenAt: 1 }] },
      `was learned as being behind ${OTHER_PEER}, seen 999 seconds ago: it has moved, and is now on the host's side`,
      "is on the host's side too",
    ],
    [
      "that a static entry has elsewhere",
      fixed,
      `has a static entry, behind ${OTHER_PEER}, and stays so, which does not keep the frame`,
      `has a static entry: behind ${OTHER_PEER}.`,
    ],
  ] as [string, Setting, string, string][])(
    "foresees what becomes of a frame to its own source: one %s",
    (_, given, learning, to) => {
      const { vtep, scene } = stage(given);
      const one = asked(frame(C, C));
      const { steps, verdict } = explain(scene, one);
      expect(steps[1]).toContain(`Source ${C} ${learning}`);
      expect(steps[2]).toContain(`Destination ${C} ${to}`);
      expect(done(vtep, one).remotes).toEqual(verdict.remotes);
    },
  );

  it("warns of a frame that is longer than the host takes", () => {
    const of = (length: number) => {
      return explain(stage(ONE).scene, asked(frame(A, B, { length }), PEER)).steps;
    };
    expect(of(1465).at(-1)).toContain("longer than the MTU of vtep100, 1450");
    expect(of(1464)).toHaveLength(of(1465).length - 1);
  });

  it("of MACs alone says from which length on a path is too narrow", () => {
    const { scene } = stage({ ...ONE, peers: [PEER], paths: [{ remote: PEER, mtu: 1400 }] });
    const header = frame(B, A, { length: 14 });
    const { steps, verdict } = explain(scene, {
      frame: header,
      isHeaderOnly: true,
      from: undefined,
    });
    expect(steps.at(-1)).toBe(
      `The path to ${PEER} was found to have an MTU of 1400: a frame of more than 1364 bytes would be dropped, PKT_TOO_BIG.`,
    );
    expect(verdict.outcome).toBe("sent");
  });

  it("says of a path that it is wide enough, and that it may fragment", () => {
    const of = (mtu: number) => {
      const { scene } = stage({ ...ONE, peers: [PEER], paths: [{ remote: PEER, mtu }] });
      return explain(scene, asked(frame(B, A))).steps.at(-1);
    };
    expect(of(1400)).toMatch(/an MTU of 1400, which takes frames of 1364 bytes: one of 60 fits\.$/);
    expect(of(500)).toContain("an MTU of 500 and may fragment what is longer, which takes frames");
  });

  it("of MACs alone takes for granted that they are of the network's VLAN", () => {
    const given = { source: A, destination: B };
    const { steps, verdict } = explain(stage({ ...ONE, vlan: VLAN }).scene, askedOf(given));
    expect(verdict.outcome).toBe("sent");
    expect(steps[1]).toContain(`Source ${A} is new`);
  });

  it.each<[string, Partial<Setting>, Uint8Array, string]>([
    ["too short", {}, frame(B, A, { length: 13 }), "It has 13 bytes"],
    ["from nobody", {}, frame(B, ZERO), `Source ${ZERO} is zero`],
    ["of the gateway", { hasGateway: true }, frame(B, TAP), `Source ${TAP} is the gateway's`],
    ["that nobody is there for", { peers: [] }, frame(B, A), "The flood list is empty"],
    ["of no VLAN", { vlan: VLAN }, frame(B, A), `It has not the tag of VLAN ${VLAN}`],
    ["of two VLANs", { vlan: VLAN }, tagged(OWN_TAG, OTHER_TAG), "It has a second tag"],
  ])("says why a frame from the host goes nowhere: one %s", (_, given, whole, words) => {
    const { steps, verdict } = explain(stage({ ...ONE, ...given }).scene, asked(whole));
    expect(steps.at(-1)).toContain(words);
    expect(verdict.outcome).toBe("dropped");
  });

  it("takes the tag off that its VLAN has", () => {
    const { steps } = explain(stage(vlan).scene, asked(tagged(OWN_TAG)));
    expect(steps[1]).toBe(`It is of VLAN ${VLAN}, as this network is: the tag is taken off.`);
  });

  it("tells a frame of the TAP's own MAC from one of a MAC that ends so", () => {
    const other = `06${TAP.slice(2)}`;
    expect(explain(stage(ONE).scene, asked(frame(A, other), PEER)).verdict.outcome).toBe(
      "delivered",
    );
    const of = (hasGateway: boolean) => {
      return explain(stage({ ...ONE, hasGateway }).scene, asked(frame(A, TAP), PEER)).steps.at(-1);
    };
    expect(of(true)).toMatch(new RegExp(`Source ${TAP} is .*, as every host's gateway does\\.$`));
    expect(of(false)).toMatch(/the same MAC\.$/);
  });

  it.each([
    ["who is no remote", frame(A, B), STRANGER, "VXLAN_REMOTE_NOT_ALLOWED", "neither a peer"],
    ["with the TAP's own MAC", frame(A, TAP), PEER, "LOCAL_MAC", "came back"],
    ["against a static entry", frame(A, C), PEER, "VXLAN_ENTRY_EXISTS", "stays so"],
    ["from a group", frame(A, MULTICAST), PEER, "MAC_INVALID_SOURCE", `${MULTICAST} is a group`],
    ["too short", frame(A, B, { length: 13 }), PEER, "PKT_TOO_SMALL", "It has 13 bytes"],
    ["too long", frame(A, B, { length: 1601 }), PEER, "PKT_TOO_BIG", "It has 1601 bytes"],
  ] as const)("says why a frame from a remote is dropped: %s", (_, whole, from, reason, words) => {
    const { scene } = stage({
      ...ONE,
      entries: [{ mac: C, remote: OTHER_PEER, origin: STATIC, seenAt: 0 }],
    });
    const { steps, verdict } = explain(scene, asked(whole, from));
    expect(steps.at(-1)).toContain(words);
    expect(verdict).toMatchObject({ outcome: "dropped", drops: [{ reason }] });
    expect(verdict.sentence).toMatch(new RegExp(`^Dropped as ${reason}: .*\\.$`));
  });

  it("names every reason by one that is counted", () => {
    const { scene } = stage(ONE);
    const { verdict } = explain(scene, asked(frame(B, A).subarray(0, 5)));
    expect(Object.keys(Drop)).toContain(verdict.drops[0]!.reason);
  });
});

describe("a question", () => {
  it("is a frame in hexadecimal, however it is spaced, or its MACs", () => {
    const frame = "02:00-5e.00 53 01\n0A0b";
    const whole = [2, 0, 0x5e, 0, 0x53, 1, 10, 11];
    expect(askedOf({ frame, from: PEER })).toEqual(asked(Uint8Array.from(whole), PEER));
    expect(askedOf({ frame: "" }).frame).toHaveLength(0);
    expect(askedOf({ source: A, destination: B, from: PEER })).toEqual({
      frame: bytes(macBytes(B), macBytes(A), [0, 0]),
      isHeaderOnly: true,
      from: PEER,
    });
  });

  it.each<[Put, string]>([
    [{ frame: "00", source: A }, "a frame has its MACs in it"],
    [{ frame: "00", destination: A }, "a frame has its MACs in it"],
    [{ frame: "000" }, "not written in hexadecimal"],
    [{ frame: "0g" }, "not written in hexadecimal"],
    [{ destination: A }, "the source is missing"],
    [{ source: A }, "the destination is missing"],
    [{ source: A, destination: "x" }, "destination x is not a MAC address"],
  ])("is none: %j", (put, why) => {
    expect(() => askedOf(put)).toThrow(why);
  });
});

function macBytes(text: string): number[] {
  return text.split(":").map((byte) => Number.parseInt(byte, 16));
}
