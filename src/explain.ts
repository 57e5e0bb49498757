/**
 * What the dataplane would do with a frame, and why, in sentences; it is asked, not done: nothing is
 * learned, sent or counted.
 *
 * This is `dataplane.ts` told a second time, in the same order. A property test holds the two together:
 * over any FDB and any frame they come to the same remotes and the same reasons. What only the kernel
 * knows is not foreseen: a full queue, a firewall, a path that has not shown yet what it carries.
 */
import type { Drop, DropReason } from "./counters.ts";
import { VtepError } from "./errors.ts";
import { ADDED, CONTROL, type Fdb, type FdbRow, LEARNED, PASSED, STATIC } from "./fdb.ts";
import { addressWords, canonicalAddress, LOCAL, type Remotes } from "./remotes.ts";
import * as ethernet from "./wire/ethernet.ts";
import { formatMac } from "./wire/ethernet.ts";

/** What a frame's fate depends on. */
export interface Scene {
  readonly fdb: Fdb;
  readonly remotes: Remotes;
  /** Seconds on the dataplane's clock. */
  readonly now: number;
  /** Bytes of the longest frame that is accepted from the underlay. */
  readonly largestFrame: number;
  readonly network: {
    readonly name: string;
    readonly vni: number;
    readonly index: number;
    readonly tap: string;
    readonly mac: { readonly high: number; readonly low: number };
    /** Whether that is every host's gateway's too. */
    readonly hasGateway: boolean;
    readonly vlan: number;
    readonly mtu: number;
    /** Indices of remotes. */
    readonly flood: ArrayLike<number>;
    allows(remote: number): boolean;
  };
}

/** A question as it is put: a frame, or the MACs of one. */
export interface Question {
  /** In hexadecimal. */
  readonly frame?: string | undefined;
  readonly source?: string | undefined;
  readonly destination?: string | undefined;
  /** The remote that it comes from, or else the host. */
  readonly from?: string | undefined;
}

/** A frame that is asked about. */
export interface Asked {
  /** All of it, or an Ethernet header alone where no more is known. */
  readonly frame: Uint8Array;
  readonly isHeaderOnly: boolean;
  /** The remote that it comes from; undefined: it comes from the host's side. */
  readonly from: string | undefined;
}

export interface Explanation {
  readonly network: string;
  readonly direction: "encap" | "decap";
  /** In the order in which they are decided. */
  readonly steps: readonly string[];
  readonly verdict: Verdict;
}

export interface Verdict {
  /** "sent" to remotes, "delivered" to the host; "dropped" when no copy got anywhere. */
  readonly outcome: "sent" | "delivered" | "dropped";
  /** Addresses of the remotes that get it. */
  readonly remotes: readonly string[];
  /** What is dropped, and which remote's copy that is where there are copies. */
  readonly drops: readonly { readonly reason: DropReason; readonly remote?: string }[];
  readonly sentence: string;
}

const ORIGINS = { [LEARNED]: "learned", [CONTROL]: "control-plane", [STATIC]: "static" } as const;

/** Why a frame is dropped, in words. */
const BECAUSE: Partial<Record<DropReason, string>> = {
  PKT_TOO_SMALL: "it is shorter than an Ethernet header",
  PKT_TOO_BIG: "it is too big",
  MAC_INVALID_SOURCE: "no station may send from its source MAC",
  LOCAL_MAC: "it comes from the TAP's own MAC",
  VXLAN_REMOTE_NOT_ALLOWED: "its sender is no remote of this network",
  VXLAN_ENTRY_EXISTS: "its source MAC contradicts an entry that was not learned",
  VXLAN_NO_REMOTE: "there is nobody to send it to",
  VLAN_TAGGED: "the network is a VLAN, which its frames have no tag of between VTEPs",
};

/** Throws VtepError where the question is none. */
export function askedOf({ frame, source, destination, from }: Question): Asked {
  if (frame !== undefined) {
    if (source !== undefined || destination !== undefined) {
      throw new VtepError("USAGE", "a frame has its MACs in it: give either the frame or the MACs");
    }
    const digits = frame.replaceAll(/[\s:.-]/g, "");
    if (!/^(?:[0-9a-f]{2})*$/i.test(digits)) {
      const message =
        "the frame is not written in hexadecimal, two digits a byte (ffffffffffff02…)";
      throw new VtepError("USAGE", message);
    }
    const bytes = digits.match(/../g)?.map((pair) => Number.parseInt(pair, 16)) ?? [];
    return { frame: Uint8Array.from(bytes), isHeaderOnly: false, from };
  }
  const header = new Uint8Array(ethernet.HEADER);
  const view = new DataView(header.buffer);
  const write = (name: string, text: string | undefined, at: number) => {
    if (text === undefined) {
      throw new VtepError(
        "USAGE",
        `the ${name} is missing: give source and destination, or a frame`,
      );
    }
    const mac = ethernet.parseMac(text);
    if (mac === undefined) {
      throw new VtepError("USAGE", `${name} ${text} is not a MAC address (aa:bb:cc:dd:ee:ff)`);
    }
    ethernet.writeMac(view, at, mac.high, mac.low);
  };
  write("source", source, ethernet.SOURCE);
  write("destination", destination, ethernet.DESTINATION);
  return { frame: header, isHeaderOnly: true, from };
}

export function explain(scene: Scene, asked: Asked): Explanation {
  return asked.from === undefined ? encap(scene, asked) : decap(scene, asked, asked.from);
}

function encap(scene: Scene, { frame: whole, isHeaderOnly }: Asked): Explanation {
  const { network, remotes } = scene;
  let frame = whole;
  const steps = [`It comes from the host, through ${network.tap} of network ${named(scene)}.`];
  const done = (verdict: Verdict): Explanation => {
    return { network: network.name, direction: "encap", steps, verdict };
  };
  if (frame.length < ethernet.HEADER) {
    steps.push(`It has ${frame.length} bytes, and an Ethernet header has ${ethernet.HEADER}.`);
    return done(dropped("PKT_TOO_SMALL"));
  }
  if (network.vlan !== 0 && !isHeaderOnly) {
    const view = viewOf(frame);
    if (ethernet.vlan(view, 0, frame.length) !== network.vlan) {
      steps.push(`It has not the tag of VLAN ${network.vlan}, which this network is.`);
      const sentence = "It is another network's, and stays here.";
      return done({ outcome: "dropped", remotes: [], drops: [], sentence });
    }
    steps.push(`It is of VLAN ${network.vlan}, as this network is: the tag is taken off.`);
    frame = Uint8Array.from(frame);
    ethernet.removeTag(viewOf(frame), 0);
    frame = frame.subarray(ethernet.TAG);
    if (ethernet.isTagged(viewOf(frame), 0)) {
      steps.push("It has a second tag, which would lead into another VLAN elsewhere.");
      return done(dropped("VLAN_TAGGED"));
    }
  }
  const { source, destination } = addresses(frame);
  const bad = invalidSource(source);
  if (bad !== undefined) {
    steps.push(bad);
    return done(dropped("MAC_INVALID_SOURCE"));
  }
  if (network.hasGateway && isSame(source, network.mac)) {
    steps.push(
      `Source ${formatMac(source.high, source.low)} is the gateway's, which every host has.`,
    );
    const sentence = "It stays here: what is from the gateway is for this host's own containers.";
    return done({ outcome: "dropped", remotes: [], drops: [], sentence });
  }
  const learning = learn(scene, source, LOCAL);
  steps.push(learning.sentence);

  const entry = entryAfter(scene, destination, source, learning);
  const mac = `Destination ${formatMac(destination.high, destination.low)}`;
  let targets: readonly number[];
  if (entry !== undefined && entry.destination > LOCAL) {
    targets = [entry.destination];
    const { origin, age } = described(scene, entry);
    steps.push(`${mac} has a ${origin} entry: behind ${remotes.address(targets[0]!)}${age}.`);
  } else {
    targets = Array.from(network.flood);
    steps.push(`${mac} ${floodedBecause(destination, entry !== undefined)}.`);
    if (targets.length === 0) {
      steps.push("The flood list is empty: the network has no peers.");
      return done(dropped("VXLAN_NO_REMOTE"));
    }
    const list = targets.map((remote) => remotes.address(remote)).join(", ");
    steps.push(`The flood list has ${counted(targets.length, "remote")}: ${list}.`);
  }

  const tooBig = targets.filter((remote) => {
    if (remotes.pathMtu(remote) === 0) return false;
    const room = remotes.longestFrame(remote);
    const narrow = remotes.isNarrow(remote) ? " and may fragment what is longer" : "";
    const path = `The path to ${remotes.address(remote)} was found to have an MTU of ${remotes.pathMtu(remote)}${narrow}`;
    if (isHeaderOnly) {
      steps.push(`${path}: a frame of more than ${room} bytes would be dropped, PKT_TOO_BIG.`);
      return false;
    }
    const isTooBig = frame.length > room;
    const fits = isTooBig ? "is too long, and its sender is told if it is IP" : "fits";
    steps.push(`${path}, which takes frames of ${room} bytes: one of ${frame.length} ${fits}.`);
    return isTooBig;
  });
  const reached = targets.filter((remote) => !tooBig.includes(remote));
  const to = reached.map((remote) => remotes.address(remote));
  const drops = tooBig.map((remote) => {
    return { reason: "PKT_TOO_BIG" as const, remote: remotes.address(remote) };
  });
  if (to.length === 0) {
    const sentence = `Dropped as PKT_TOO_BIG: it is longer than the path to ${drops.map(({ remote }) => remote).join(", ")} carries.`;
    return done({ outcome: "dropped", remotes: [], drops, sentence });
  }
  const sent = entry !== undefined && entry.destination > LOCAL ? "Sent" : "Flooded";
  const but = drops.length === 0 ? "" : `; ${counted(drops.length, "copy")} dropped as PKT_TOO_BIG`;
  const sentence = `${sent} to ${to.join(", ")}, with VNI ${network.vni}${but}.`;
  return done({ outcome: "sent", remotes: to, drops, sentence });
}

function decap(scene: Scene, { frame }: Asked, from: string): Explanation {
  const { network, remotes } = scene;
  const sender = canonicalAddress(from);
  const steps: string[] = [];
  const done = (verdict: Verdict): Explanation => {
    return { network: network.name, direction: "decap", steps, verdict };
  };
  if (frame.length > scene.largestFrame) {
    steps.push(
      `It has ${frame.length} bytes, and the longest that any network here accepts ${scene.largestFrame}.`,
    );
    return done(dropped("PKT_TOO_BIG"));
  }
  steps.push(`It comes from ${sender}, with VNI ${network.vni}: that is network ${network.name}.`);
  const remote = remotes.find(addressWords(sender), 0);
  if (!network.allows(remote)) {
    steps.push(
      `${sender} is neither a peer of this network nor where a static entry points to, so nobody listens to it.`,
    );
    return done(dropped("VXLAN_REMOTE_NOT_ALLOWED"));
  }
  steps.push(`${sender} is a remote of this network, so it is listened to.`);
  if (frame.length < ethernet.HEADER) {
    steps.push(`It has ${frame.length} bytes, and an Ethernet header has ${ethernet.HEADER}.`);
    return done(dropped("PKT_TOO_SMALL"));
  }
  if (network.vlan !== 0 && ethernet.hasVlan(viewOf(frame), 0, frame.length)) {
    steps.push(`It has a VLAN tag, and this network is VLAN ${network.vlan} itself.`);
    return done(dropped("VLAN_TAGGED"));
  }
  const { source } = addresses(frame);
  const bad = invalidSource(source);
  if (bad !== undefined) {
    steps.push(bad);
    return done(dropped("MAC_INVALID_SOURCE"));
  }
  const mac = formatMac(source.high, source.low);
  if (isSame(source, network.mac)) {
    steps.push(
      `Source ${mac} is the MAC of ${network.tap} itself: a frame came back, or somebody has the same MAC${network.hasGateway ? ", as every host's gateway does" : ""}.`,
    );
    return done(dropped("LOCAL_MAC"));
  }
  const learning = learn(scene, source, remote);
  steps.push(learning.sentence);
  if (learning.isRefused) return done(dropped("VXLAN_ENTRY_EXISTS"));
  if (frame.length > network.mtu + ethernet.HEADER) {
    steps.push(
      `It is longer than the MTU of ${network.tap}, ${network.mtu}: the host may drop it.`,
    );
  }
  const sentence = `Delivered to the host through ${network.tap}.`;
  return done({ outcome: "delivered", remotes: [], drops: [], sentence });
}

interface Mac {
  readonly high: number;
  readonly low: number;
}

/** What learning the source would do. */
interface Learning {
  readonly sentence: string;
  /** An entry that was not learned says otherwise. */
  readonly isRefused: boolean;
  /** Where the MAC is afterwards; undefined: nowhere. */
  readonly destination: number | undefined;
  /** The entry that had to go for it. */
  readonly displaced: FdbRow | undefined;
}

function learn(scene: Scene, mac: Mac, destination: number): Learning {
  const { fdb, network } = scene;
  const entry = fdb.entry(network.index, mac.high, mac.low);
  const source = `Source ${formatMac(mac.high, mac.low)}`;
  const here = placed(scene, destination);
  const nothing = { isRefused: false, destination, displaced: undefined };
  if (entry === undefined) {
    const prospect = fdb.prospect(network.index);
    if (prospect === PASSED) {
      const sentence = `${source} is new, and is not learned: there is no room for learned entries.`;
      return { ...nothing, sentence, destination: undefined };
    }
    if (prospect === ADDED) {
      return { ...nothing, sentence: `${source} is new: it is learned as being ${here}.` };
    }
    const gone = formatMac(prospect.macHigh, prospect.macLow);
    const sentence = `${source} is new: it is learned as being ${here}, and ${gone}, which was not seen for longest, is forgotten for it.`;
    return { ...nothing, sentence, displaced: prospect };
  }
  const { origin, age } = described(scene, entry);
  const there = placed(scene, entry.destination);
  if (entry.destination === destination) {
    return { ...nothing, sentence: `${source} has a ${origin} entry: ${there}${age}.` };
  }
  if (entry.origin === LEARNED) {
    const sentence = `${source} was learned as being ${there}${age}: it has moved, and is now ${here}.`;
    return { ...nothing, sentence };
  }
  const stays = destination === LOCAL ? "stays so, which does not keep the frame" : "stays so";
  const sentence = `${source} has a ${origin} entry, ${there}, and ${stays}.`;
  return { ...nothing, sentence, isRefused: true, destination: entry.destination };
}

/** The destination's entry as it would be once the source is learned, which is on the host's side. */
function entryAfter(
  { fdb, network }: Scene,
  mac: Mac,
  source: Mac,
  learning: Learning,
): Pick<FdbRow, "destination" | "origin" | "seenAt"> | undefined {
  const entry = fdb.entry(network.index, mac.high, mac.low);
  if (isSame(mac, source)) {
    if (learning.destination !== LOCAL) return entry; // not learned: an entry says otherwise, or there is no room
    return { origin: LEARNED, seenAt: 0, destination: LOCAL };
  }
  const gone = learning.displaced;
  return gone?.macHigh === mac.high && gone.macLow === mac.low ? undefined : entry;
}

function floodedBecause({ high, low }: Mac, isLocal: boolean): string {
  if (high === 0xffff && low === -1) return "is broadcast: it is flooded";
  if (isLocal) {
    return "is on the host's side too: it is flooded like an unknown one, since a bridge that knew its port would have kept it";
  }
  if (ethernet.isMulticast(high)) return "is multicast: it is flooded";
  return "is unknown: it is flooded";
}

function isSame(one: Mac, other: Mac): boolean {
  return one.high === other.high && one.low === other.low;
}

function invalidSource({ high, low }: Mac): string | undefined {
  if (ethernet.isValidSource(high, low)) return undefined;
  const kind = ethernet.isZero(high, low) ? "zero" : "a group address";
  return `Source ${formatMac(high, low)} is ${kind}, from which no station may send.`;
}

function dropped(reason: keyof typeof BECAUSE & keyof typeof Drop): Verdict {
  const sentence = `Dropped as ${reason}: ${BECAUSE[reason]}.`;
  return { outcome: "dropped", remotes: [], drops: [{ reason }], sentence };
}

function viewOf(frame: Uint8Array): DataView {
  return new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
}

function addresses(frame: Uint8Array): { source: Mac; destination: Mac } {
  const view = viewOf(frame);
  const at = (offset: number) => {
    return { high: ethernet.macHigh(view, offset), low: ethernet.macLow(view, offset) };
  };
  return { source: at(ethernet.SOURCE), destination: at(ethernet.DESTINATION) };
}

function named({ network }: Scene): string {
  return `${network.name} (VNI ${network.vni})`;
}

function placed({ remotes }: Scene, destination: number): string {
  return destination === LOCAL ? "on the host's side" : `behind ${remotes.address(destination)}`;
}

function described(
  { now }: Scene,
  { origin, seenAt }: Pick<FdbRow, "origin" | "seenAt">,
): { origin: string; age: string } {
  const age =
    origin === LEARNED ? `, seen ${counted(Math.max(0, now - seenAt), "second")} ago` : "";
  return { origin: ORIGINS[origin], age };
}

function counted(count: number, noun: string): string {
  if (count === 1) return `1 ${noun}`;
  return `${count} ${noun.replace(/y$/, "ie")}s`;
}
