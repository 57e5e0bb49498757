/**
 * The switch: the two ways of a frame.
 *
 *     encap   TAP → learn the source → look up the destination → VXLAN header, TOS → underlay
 *     decap   underlay → header, VNI, remote → learn the source → ECN → TAP
 *
 * **Split horizon** needs no check: decap writes to a TAP and to nothing else, so what came from the
 * underlay cannot return to it, whatever the FDB says.
 *
 * **Turns.** A device that is readable is read until nothing waits, for BURSTS reads at most, and until TURN_BYTES
 * have come, or TURN_DATAGRAMS left; then the other way has its turn, and the event loop. What a frame is copied to is
 * known too late for that: after a burst that was flooded to many the next ones have fewer frames of the networks that
 * flooded, and of the others as many as before, so that these wait for one turn and not for their share of turns.
 *
 * **Rows of many.** One read fills rows from every TAP that has something, and one write empties rows to any of
 * them: a frame of one in a thousand networks costs no call of its own.
 *
 * **Runs.** What is read at once is mostly of few flows: a frame that continues the flow of the one before it
 * has the same fate, and is not looked up again. So is a datagram of a train that begins like the last.
 *
 * **Repeated.** What is decided on a lone frame a device may ask to do again (`ASKS`, device.ts), for others like it. Of
 * those (`REPEATED`) the sender is seen again, and the frame is written to where it has gone, which counts it and no more.
 * Nothing is offered where frames are changed on their way, flooded or captured.
 *
 * **Too big.** A frame longer than the path to its remote, as far as that is known, is not sent; its
 * sender is told what the path carries (wire/icmp.ts), as by kernel VXLAN. So is the sender of a frame
 * that the underlay refused for its length, from which it has just learned. A flooded frame goes to
 * those remotes that can get it, and is answered once if it is for a single station. Answers are
 * limited by network, not by sender: one that heeds none can use them up.
 *
 * **Rules.** Nothing here allocates, throws, logs or waits per frame, and every frame that is not
 * passed on is counted by one reason. Numbers stay within int32, because V8 would put a larger one
 * on the heap. `test/unit/allocation.test.ts` holds this file to it.
 *
 * **Captured.** While somebody captures, a mirror is shown every frame before it is decided on; of the underlay,
 * by a second loop, datagram by datagram. Otherwise that costs a question a frame from a TAP, one a burst from
 * the underlay, and one a frame that is dropped.
 *
 * **What it does not do.** It neither segments, coalesces nor completes checksums (the devices do),
 * and knows no address families (an address is 16 bytes).
 */
import {
  ADDRESS_WORDS,
  ANSWERED,
  ASKS,
  Batch,
  GUARD_WORDS,
  HEADROOM,
  IN_ROWS,
  MOST_SEGMENTS,
  OUT_ROWS,
  REPEATED,
  TRUNCATED,
  TURN_BYTES,
} from "./batch.ts";
import {
  Counter,
  type Counters,
  Drop,
  dropOfErrno,
  FROM_REMOTE,
  TO_REMOTE,
  type Traffic,
  type Way,
  Work,
} from "./counters.ts";
import type { Taps, Underlay } from "./device.ts";
import { ADDED, EVICTED, type Fdb, type Learnt, MOVED, REFUSED, SEEN } from "./fdb.ts";
import type { Mirror } from "./mirror.ts";
import type { Network } from "./network.ts";
import { LOCAL, type Remotes } from "./remotes.ts";
import { decapsulate, ECN_MASK, ecnOf, innerTos, NOT_ECT } from "./wire/ecn.ts";
import * as ethernet from "./wire/ethernet.ts";
import { continuesFlow, Flows, flowHash, sameWords, tellsOfFlow } from "./wire/flow.ts";
import * as icmp from "./wire/icmp.ts";
import * as tcp from "./wire/tcp.ts";
import * as vxlan from "./wire/vxlan.ts";

/** Reads of one device in a turn. */
const BURSTS = 4;
/** Datagrams that leave in a turn, more or less. */
const TURN_DATAGRAMS = BURSTS * IN_ROWS;
/**
 * Of a super-frame that is flooded, whatever its copies make: what TCP with segments of 512 bytes has, and UDP at most
 * (UDP_MAX_SEGMENTS). One that has more is flooded only where all copies together make MOST_SEGMENTS.
 */
const MOST_COPIED_SEGMENTS = 128;
/** Entries of one network that may age out in one tick. */
const AGED_PER_TICK = 4096;
/** What a datagram's fate depends on: the VXLAN header and the Ethernet header behind it. */
const DECISIVE = vxlan.HEADER + ethernet.HEADER;
/** The row of the counters for what belongs to no network. */
const NO_NETWORK = 0;
const NO_ROW = -1;

export class Dataplane {
  readonly #batch = new Batch();
  readonly #fdb: Fdb;
  readonly #remotes: Remotes;
  readonly #counters: Counters;
  readonly #traffic: Traffic;
  readonly #taps: Taps;
  readonly #underlay: Underlay;
  /** By VNI. */
  readonly #networks = new Map<number, Network>();
  readonly #byIndex: (Network | undefined)[] = [];
  readonly #strict: boolean;
  readonly #flows: Flows;
  /** Of the inner TOS, what the outer one takes over; and what is added to that. */
  readonly #tosMask: number;
  readonly #tosBits: number;
  /** Seconds on the owner's clock, as of the last tick. */
  #now = 0;
  #overflows = 0;
  #refusals = 0;
  /** Out rows filled and not yet written. */
  #out = 0;
  /** Bursts from the TAPs, modulo 2^32. */
  #bursts = 0;
  /** Networks of which fewer frames than IN_ROWS are read at once. */
  #limited = 0;
  /** Datagrams that this burst leaves as. */
  #datagrams = 0;
  /** Where answers are written, one at a time. */
  readonly #answer = new Batch();
  /** Where the frame of this burst begins that was decided on last, or −1; and what was decided. */
  #decided = -1;
  #decidedHash = 0;
  #decidedTos = 0;
  #decidedDestination = LOCAL;
  /** The in row whose sender was told last that it is too big. */
  #answered = NO_ROW;
  /** Who is shown every frame. */
  #mirror: Mirror | undefined;

  constructor(options: {
    fdb: Fdb;
    remotes: Remotes;
    counters: Counters;
    traffic: Traffic;
    taps: Taps;
    underlay: Underlay;
    /** Drop datagrams with reserved bits set, as Linux does, instead of ignoring the bits. */
    strict: boolean;
    flowSeed: number;
    /** DSCP of what is sent: 0 to 63, or the inner packet's. */
    dscp: number | "inherit";
  }) {
    this.#fdb = options.fdb;
    this.#remotes = options.remotes;
    this.#counters = options.counters;
    this.#traffic = options.traffic;
    this.#taps = options.taps;
    this.#underlay = options.underlay;
    this.#strict = options.strict;
    this.#flows = new Flows(options.flowSeed);
    this.#tosMask = options.dscp === "inherit" ? 0xff : ECN_MASK;
    this.#tosBits = options.dscp === "inherit" ? 0 : options.dscp << 2;
  }

  /** From now on datagrams of this VNI are the network's. */
  add(network: Network): void {
    this.#networks.set(network.vni, network);
    this.#byIndex[network.index] = network;
  }

  /** Neither learns nor delivers for this network any more. */
  remove(network: Network): void {
    if (this.#networks.delete(network.vni) && network.most < IN_ROWS) this.#limited--;
    this.#byIndex[network.index] = undefined;
  }

  /** Takes what waits on the TAPs to the underlay, for one turn. Whether that ended before nothing waited. */
  encap(): boolean {
    const { inOffset, inLength, inFlags } = this.#batch;
    let bytes = 0;
    let datagrams = 0;
    for (let burst = 0; burst < BURSTS; burst++) {
      const rows = this.#taps.read(this.#batch);
      if (rows === 0) return false;
      this.#answered = NO_ROW;
      this.#bursts = (this.#bursts + 1) | 0;
      this.#datagrams = this.#countRead(rows);
      this.#encapBurst(rows);
      if (rows === 1 && (inFlags[0]! & ASKS) !== 0) this.#offerEncap();
      this.#send();
      this.#mirror?.publish();
      if (this.#datagrams > TURN_DATAGRAMS || this.#limited > 0) this.#limitFrames(rows);
      bytes += inOffset[rows - 1]! + inLength[rows - 1]!;
      datagrams += this.#datagrams;
      if (bytes >= TURN_BYTES || datagrams >= TURN_DATAGRAMS) return true;
    }
    return true;
  }

  /** Takes what waits on the underlay to the TAPs, as `encap`; true also where frames of the TAPs are said to wait. */
  decap(): boolean {
    const { inFlags } = this.#batch;
    let bytes = 0;
    let isAnswered = false;
    for (let burst = 0; burst < BURSTS; burst++) {
      const rows = this.#underlay.receive(this.#batch);
      if (rows === 0) return isAnswered;
      isAnswered ||= (inFlags[0]! & ANSWERED) !== 0;
      bytes += this.#countReceived(rows);
      if (this.#mirror === undefined) this.#decapBurst(rows);
      else this.#mirrorDecap(rows, this.#mirror);
      if (bytes >= TURN_BYTES) return true;
    }
    return true;
  }

  /** Shows every frame to a mirror from now on, or to none. */
  mirrorTo(mirror: Mirror | undefined): void {
    this.#mirror = mirror;
  }

  /** Counts a datagram of which the underlay learned only later that it could not leave. */
  unsent(errno: number): void {
    this.#drop(NO_NETWORK, dropOfErrno(errno));
  }

  /** To be called about once a second, with the seconds of a clock that never goes back. */
  tick(now: number): void {
    const seconds = (now | 0) - this.#now;
    this.#now = now | 0;
    this.#remotes.forgetPaths(this.#now);
    for (const network of this.#networks.values()) {
      network.refillAnswers(seconds);
      if (network.ageSeconds === 0) continue;
      const aged = this.#fdb.expire(network.index, this.#now, network.ageSeconds, AGED_PER_TICK);
      this.#counters.add(network.index, Counter.aged, aged);
    }
    const overflows = this.#underlay.overflows();
    if (hasGrown(overflows, this.#overflows)) {
      this.#counters.add(NO_NETWORK, Drop.SOCKET_RCVBUFF, (overflows - this.#overflows) >>> 0);
      this.#overflows = overflows;
    }
    const refusals = this.#underlay.refusals();
    this.#counters.add(NO_NETWORK, Counter.refused, (refusals - this.#refusals) >>> 0);
    this.#refusals = refusals;
  }

  // encap

  /** Returns how many datagrams they are cut into. */
  #countRead(rows: number): number {
    this.#counters.add(NO_NETWORK, Work.encapBatches, 1);
    this.#counters.add(NO_NETWORK, Work.encapRows, rows);
    let superFrames = 0;
    let segments = 0;
    for (let row = 0; row < rows; row++) {
      if (!this.#batch.isSuperFrame(row)) continue;
      superFrames++;
      segments += this.#batch.segments(row);
    }
    if (superFrames === 0) return rows;
    this.#counters.add(NO_NETWORK, Work.superFrames, superFrames);
    this.#counters.add(NO_NETWORK, Work.segments, segments);
    return rows - superFrames + segments;
  }

  /** A burst that left as too many datagrams limits the networks that were in it, any other one does so less. */
  #limitFrames(rows: number): void {
    const { inTap } = this.#batch;
    for (let row = 0; row < rows; row++) this.#byIndex[inTap[row]!]!.frames++;
    for (let row = 0; row < rows; row++) {
      const network = this.#byIndex[inTap[row]!]!;
      if (network.frames > 0) this.#limit(network);
      network.frames = 0;
    }
  }

  /** Those whose frames were mostly copied have as many fewer as the burst was too large; less, and it is one more. */
  #limit(network: Network): void {
    const before = network.most;
    const copies = network.copiedIn === this.#bursts ? network.copies : 0;
    if (this.#datagrams <= TURN_DATAGRAMS) network.most = Math.min(before + 1, IN_ROWS);
    else if (copies > network.frames) {
      network.most = Math.max(1, ((network.frames * TURN_DATAGRAMS) / this.#datagrams) | 0);
    }
    if (network.most === before) return;
    if (before === IN_ROWS) this.#limited++;
    else if (network.most === IN_ROWS) this.#limited--;
    this.#taps.limit(network.index, network.most);
  }

  #encapBurst(rows: number): void {
    const { inTap } = this.#batch;
    const mirror = this.#mirror;
    let tap = NO_NETWORK;
    let network: Network | undefined;
    for (let row = 0; row < rows; row++) {
      if (inTap[row] !== tap) {
        tap = inTap[row]!;
        network = this.#byIndex[tap];
        this.#decided = -1;
      }
      mirror?.fromTap(this.#batch, row, network!);
      this.#encapFrame(network!, row);
    }
  }

  #encapFrame(network: Network, row: number): void {
    const { view, inOffset, inLength, inFlags, inTarget } = this.#batch;
    if ((inFlags[row]! & REPEATED) !== 0) {
      this.#seeAgain(network, inOffset[row]!, LOCAL);
      return this.#write(network, row, inTarget[row]!, 0, 0);
    }
    if ((inFlags[row]! & TRUNCATED) !== 0) return this.#drop(network.index, Drop.PKT_TOO_BIG);
    if (inLength[row]! < ethernet.HEADER) return this.#drop(network.index, Drop.PKT_TOO_SMALL);
    if (network.vlan !== 0) {
      if (ethernet.vlan(view, inOffset[row]!, inLength[row]!) !== network.vlan) {
        return this.#counters.add(network.index, Counter.otherVlan, 1);
      }
      this.#batch.removeTag(row);
      if (ethernet.isTagged(view, inOffset[row]!)) {
        return this.#drop(network.index, Drop.VLAN_TAGGED);
      }
    }
    const offset = inOffset[row]!;
    const length = inLength[row]!;
    if (this.#decided < 0 || !continuesFlow(view, offset, length, this.#decided)) {
      this.#decided = -1;
      if (!this.#decide(network, offset, length)) return;
      if (tellsOfFlow(view, offset, length)) this.#decided = offset;
    }
    vxlan.writeHeader(view, offset - vxlan.HEADER, network.vni);
    const hash = this.#decidedHash;
    const tos = this.#decidedTos;
    const destination = this.#decidedDestination;
    if (network.clampMtu !== 0) {
      const mtu = this.#clampMtu(network, destination);
      tcp.clampMss(view, offset, length, mtu, this.#batch.needsChecksum(row));
    }
    // A MAC that was learned here is flooded like an unknown one: a bridge would not have given us
    // the frame if it still knew its port, so the MAC may have moved away without a word.
    if (destination > LOCAL) this.#toRemote(network, row, destination, hash, tos);
    else this.#flood(network, row, hash, tos);
  }

  /** Learns the source, and decides for this frame and those like it; false when it was dropped. */
  #decide(network: Network, offset: number, length: number): boolean {
    const { view } = this.#batch;
    const sourceHigh = ethernet.macHigh(view, offset + ethernet.SOURCE);
    const sourceLow = ethernet.macLow(view, offset + ethernet.SOURCE);
    if (!ethernet.isValidSource(sourceHigh, sourceLow)) {
      this.#drop(network.index, Drop.MAC_INVALID_SOURCE);
      return false;
    }
    if (network.hasGateway && sourceLow === network.macLow && sourceHigh === network.macHigh) {
      this.#counters.add(network.index, Counter.gateway, 1);
      return false;
    }
    this.#learn(network, sourceHigh, sourceLow, LOCAL);
    this.#decidedHash = flowHash(view, offset, length, this.#flows);
    this.#decidedTos = (innerTos(view, offset, length) & this.#tosMask) | this.#tosBits;
    this.#decidedDestination = this.#fdb.lookup(
      network.index,
      ethernet.macHigh(view, offset + ethernet.DESTINATION),
      ethernet.macLow(view, offset + ethernet.DESTINATION),
    );
    return true;
  }

  /** Offers to have done for others what was decided on the only frame of this burst, if that goes to a single remote. */
  #offerEncap(): void {
    const { inOffset, inTap } = this.#batch;
    const network = this.#byIndex[inTap[0]!]!;
    const destination = this.#decidedDestination;
    if (this.#out !== 1 || destination <= LOCAL || !this.#isRepeatable(network)) return;
    const frame = inOffset[0]!;
    if (!this.#guard(network, frame + ethernet.SOURCE, LOCAL, GUARD_WORDS)) return;
    this.#guard(network, frame + ethernet.DESTINATION, destination, 0);
  }

  #flood(network: Network, row: number, hash: number, tos: number): void {
    const remotes = network.flood;
    if (remotes.length === 0) return this.#drop(network.index, Drop.VXLAN_NO_REMOTE);
    const segments = this.#batch.segments(row);
    if (segments > MOST_COPIED_SEGMENTS && segments * remotes.length > MOST_SEGMENTS) {
      return this.#drop(network.index, Drop.PKT_TOO_BIG);
    }
    this.#counters.add(network.index, Counter.flooded, 1);
    const copies = (remotes.length - 1) * segments;
    this.#datagrams += copies;
    network.copies = (network.copiedIn === this.#bursts ? network.copies : 0) + copies;
    network.copiedIn = this.#bursts;
    for (let i = 0; i < remotes.length; i++) this.#toRemote(network, row, remotes[i]!, hash, tos);
  }

  #toRemote(network: Network, row: number, remote: number, hash: number, tos: number): void {
    if (this.#remotes.pathMtu(remote) !== 0 && this.#isTooBig(row, remote)) {
      this.#drop(network.index, Drop.PKT_TOO_BIG);
      this.#mirror?.dropCopy(remote);
      this.#tellTooBig(network, row, remote, hash);
      return;
    }
    this.#write(network, row, remote, hash, tos);
  }

  #write(network: Network, row: number, remote: number, hash: number, tos: number): void {
    const batch = this.#batch;
    if (this.#out === OUT_ROWS) this.#send();
    const out = this.#out++;
    batch.outOffset[out] = batch.inOffset[row]! - vxlan.HEADER;
    batch.outLength[out] = batch.inLength[row]! + vxlan.HEADER;
    batch.outRow[out] = row;
    batch.outTap[out] = network.index;
    batch.outRemote[out] = remote;
    batch.outHash[out] = hash;
    batch.outTos[out] = tos;
  }

  #send(): void {
    if (this.#out === 0) return;
    const failed = this.#underlay.send(this.#batch, this.#out);
    this.#countWritten(TO_REMOTE, vxlan.HEADER, failed);
    if (failed > 0) this.#tellOfFailed();
    this.#mirror?.sent(this.#batch, this.#out, failed);
    this.#out = 0;
  }

  /** What the underlay refused for its length, it has learned from. */
  #tellOfFailed(): void {
    const { outError, outRow, outRemote, outTap, outHash } = this.#batch;
    for (let out = 0; out < this.#out; out++) {
      if (dropOfErrno(outError[out]!) !== Drop.PKT_TOO_BIG) continue;
      const row = outRow[out]!;
      const remote = outRemote[out]!;
      if (this.#remotes.pathMtu(remote) === 0 || !this.#isTooBig(row, remote)) continue;
      this.#tellTooBig(this.#byIndex[outTap[out]!]!, row, remote, outHash[out]!);
    }
  }

  #isTooBig(row: number, remote: number): boolean {
    return this.#batch.longestFrame(row) > this.#remotes.longestFrame(remote);
  }

  /** Tells a frame's sender what the path carries: once, as often as it was to be copied. */
  #tellTooBig(network: Network, row: number, remote: number, hash: number): void {
    if (row === this.#answered) return;
    const { view, inOffset, inLength } = this.#batch;
    const station = ethernet.macLow(view, inOffset[row]! + ethernet.SOURCE);
    const share = network.answerShare(hash, station);
    if (share < 0) return;
    const answer = this.#answer;
    const room = this.#remotes.longestFrame(remote);
    answer.outOffset[0] = HEADROOM;
    answer.outLength[0] = icmp.writeTooBig(
      view,
      inOffset[row]!,
      inLength[row]!,
      room,
      answer.view,
      HEADROOM,
    );
    if (answer.outLength[0] === 0) return;
    if (network.vlan !== 0) {
      answer.outOffset[0] = HEADROOM - ethernet.TAG;
      answer.outLength[0] += ethernet.TAG;
      ethernet.addTag(answer.view, HEADROOM - ethernet.TAG, network.vlan);
    }
    this.#answered = row;
    network.answers[share]!--;
    answer.outTap[0] = network.index;
    if (this.#taps.write(answer, 1) === 0) {
      this.#counters.add(network.index, Counter.toldTooBig, 1);
    }
  }

  // decap

  /** Returns how many bytes it is. */
  #countReceived(rows: number): number {
    const { inLength, inSegment } = this.#batch;
    this.#counters.add(NO_NETWORK, Work.decapBatches, 1);
    this.#counters.add(NO_NETWORK, Work.decapRows, rows);
    let bytes = 0;
    let trains = 0;
    let datagrams = 0;
    for (let row = 0; row < rows; row++) {
      bytes += inLength[row]!;
      if (inLength[row]! <= inSegment[row]!) continue;
      trains++;
      datagrams += this.#datagramsIn(row);
    }
    if (trains === 0) return bytes;
    this.#counters.add(NO_NETWORK, Work.trains, trains);
    this.#counters.add(NO_NETWORK, Work.datagrams, datagrams);
    return bytes;
  }

  #decapBurst(rows: number): void {
    const { inFlags, inAddress } = this.#batch;
    for (let row = 0; row < rows; row++) {
      if ((inFlags[row]! & TRUNCATED) !== 0) {
        this.#counters.add(NO_NETWORK, Drop.PKT_TOO_BIG, this.#datagramsIn(row));
        continue;
      }
      this.#decapRow(row, this.#remotes.find(inAddress, row * ADDRESS_WORDS));
    }
    if (rows === 1 && (inFlags[0]! & ASKS) !== 0) this.#offerDecap();
    this.#deliver();
  }

  /** As `#offerEncap`, of a datagram whose sender is where the FDB has its MAC. */
  #offerDecap(): void {
    const { view, inOffset, outTap, outRemote } = this.#batch;
    if (this.#out !== 1 || vxlan.hasReservedBits(view, inOffset[0]!)) return;
    const network = this.#byIndex[outTap[0]!]!;
    if (!this.#isRepeatable(network)) return;
    this.#guard(network, inOffset[0]! + vxlan.HEADER + ethernet.SOURCE, outRemote[0]!, 0);
  }

  /**
   * A row is one datagram, or a train of them, and a train is mostly one flow: a datagram that begins
   * like the one before it, up to the MACs, has the same fate. Returns the network that the last one went to.
   */
  #decapRow(row: number, remote: number): Network | undefined {
    const { inOffset, inLength, inSegment, inTos, inFlags, view } = this.#batch;
    if ((inFlags[row]! & REPEATED) !== 0) return this.#decapMoved(row, remote);
    const ecn = ecnOf(inTos[row]!);
    const end = inOffset[row]! + inLength[row]!;
    const segment = inSegment[row]!;
    let offset = inOffset[row]!;
    let network: Network | undefined;
    let decided = -1;
    do {
      const length = Math.min(segment, end - offset);
      if (decided < 0 || length < DECISIVE || !beginsAlike(view, offset, decided)) {
        network = this.#accept(row, offset, length, remote);
        // Each datagram's own: reserved bits are counted, and in a VLAN a tag is looked for.
        const isOwn = network === undefined || network.vlan !== 0;
        decided = isOwn || vxlan.hasReservedBits(view, offset) ? -1 : offset;
      }
      if (network !== undefined && this.#heedEcn(network, offset, length, ecn)) {
        if (network.clampMtu !== 0) {
          const mtu = this.#clampMtu(network, remote);
          tcp.clampMss(view, offset + vxlan.HEADER, length - vxlan.HEADER, mtu, false);
        }
        if (network.vlan === 0) {
          this.#toTap(network, offset + vxlan.HEADER, length - vxlan.HEADER, remote);
        } else {
          const frame = ethernet.enterVlan(view, offset + vxlan.HEADER, network.vlan);
          this.#toTap(network, frame, offset + length - frame, remote);
        }
      }
      offset += segment;
    } while (offset < end);
    return network;
  }

  /** Returns the network that it went to. */
  #decapMoved(row: number, remote: number): Network {
    const { inOffset, inLength, inTarget } = this.#batch;
    const network = this.#byIndex[inTarget[row]!]!;
    const frame = inOffset[row]! + vxlan.HEADER;
    this.#seeAgain(network, frame, remote);
    this.#toTap(network, frame, inLength[row]! - vxlan.HEADER, remote);
    return network;
  }

  /** One, also when it is empty, or those of a train. */
  #datagramsIn(row: number): number {
    const length = this.#batch.inLength[row]!;
    const segment = this.#batch.inSegment[row]!;
    return length <= segment ? 1 : ((length + segment - 1) / segment) | 0;
  }

  /** The network whose TAP is to get the frame in this datagram; undefined when it was dropped. */
  #accept(row: number, offset: number, length: number, remote: number): Network | undefined {
    const { view } = this.#batch;
    if (length < vxlan.HEADER || !vxlan.hasVni(view, offset)) {
      return this.#refuse(NO_NETWORK, Drop.VXLAN_INVALID_HDR);
    }
    const reserved = vxlan.hasReservedBits(view, offset);
    if (reserved && this.#strict) return this.#refuse(NO_NETWORK, Drop.VXLAN_INVALID_HDR);
    const network = this.#networks.get(vxlan.vni(view, offset));
    if (network === undefined) return this.#refuse(NO_NETWORK, Drop.VXLAN_VNI_NOT_FOUND);
    if (!network.allows(remote)) {
      this.#counters.setStranger(network.index, this.#batch.inAddress, row * ADDRESS_WORDS);
      return this.#refuse(network.index, Drop.VXLAN_REMOTE_NOT_ALLOWED);
    }
    if (reserved) this.#counters.add(network.index, Counter.reservedBits, 1);
    if (length < vxlan.HEADER + ethernet.HEADER) {
      return this.#refuse(network.index, Drop.PKT_TOO_SMALL);
    }
    const frame = offset + vxlan.HEADER;
    if (network.vlan !== 0 && ethernet.hasVlan(view, frame, length - vxlan.HEADER)) {
      return this.#refuse(network.index, Drop.VLAN_TAGGED);
    }
    const source = frame + ethernet.SOURCE;
    const sourceHigh = ethernet.macHigh(view, source);
    const sourceLow = ethernet.macLow(view, source);
    if (!ethernet.isValidSource(sourceHigh, sourceLow)) {
      return this.#refuse(network.index, Drop.MAC_INVALID_SOURCE);
    }
    if (sourceLow === network.macLow && sourceHigh === network.macHigh) {
      return this.#refuse(network.index, Drop.LOCAL_MAC);
    }
    if (this.#learn(network, sourceHigh, sourceLow, remote) === REFUSED) {
      return this.#refuse(network.index, Drop.VXLAN_ENTRY_EXISTS);
    }
    return network;
  }

  /** Passes on what the outer header says of congestion; false when the frame was dropped. */
  #heedEcn(network: Network, offset: number, length: number, ecn: number): boolean {
    if (ecn === NOT_ECT) return true;
    const { view } = this.#batch;
    if (decapsulate(view, offset + vxlan.HEADER, length - vxlan.HEADER, ecn)) return true;
    this.#drop(network.index, Drop.IP_TUNNEL_ECN);
    return false;
  }

  #toTap(network: Network, offset: number, length: number, remote: number): void {
    if (this.#out === OUT_ROWS) this.#deliver();
    const out = this.#out++;
    this.#batch.outOffset[out] = offset;
    this.#batch.outLength[out] = length;
    this.#batch.outTap[out] = network.index;
    this.#batch.outRemote[out] = remote; // who it came from
  }

  #deliver(): void {
    if (this.#out === 0) return;
    const failed = this.#taps.write(this.#batch, this.#out);
    this.#countWritten(FROM_REMOTE, 0, failed);
    this.#mirror?.written(this.#batch, this.#out, failed);
    this.#out = 0;
  }

  // both ways

  /** Writes to `repeat` what says that the MAC at this place is there; false where nothing does. */
  #guard(network: Network, mac: number, destination: number, at: number): boolean {
    const { view, repeat } = this.#batch;
    const high = ethernet.macHigh(view, mac);
    const low = ethernet.macLow(view, mac);
    return this.#fdb.guard(network.index, high, low, destination, repeat, at);
  }

  /** Of a frame that was moved the sender was there; if it has moved on since, that is the later news. */
  #seeAgain(network: Network, frame: number, destination: number): void {
    const { view } = this.#batch;
    const high = ethernet.macHigh(view, frame + ethernet.SOURCE);
    const low = ethernet.macLow(view, frame + ethernet.SOURCE);
    if (this.#fdb.lookup(network.index, high, low) !== destination) return;
    this.#learn(network, high, low, destination);
  }

  #learn(network: Network, macHigh: number, macLow: number, destination: number): Learnt {
    const learnt = this.#fdb.learn(network.index, macHigh, macLow, destination, this.#now);
    if (learnt === SEEN) return learnt;
    if (learnt === ADDED || learnt === EVICTED) {
      this.#counters.add(network.index, Counter.learned, 1);
    }
    if (learnt === EVICTED) this.#counters.add(network.index, Counter.evicted, 1);
    if (learnt === MOVED) this.#counters.add(network.index, Counter.moved, 1);
    return learnt;
  }

  /** Both ends of a connection have to hear it: what one asks for is what the other one sends. */
  #clampMtu(network: Network, remote: number): number {
    if (remote <= LOCAL || this.#remotes.pathMtu(remote) === 0) return network.clampMtu;
    return Math.min(network.clampMtu, this.#remotes.longestFrame(remote) - ethernet.HEADER);
  }

  /**
   * Counts the out rows that were written by network and remote, which a run of them has in common, and
   * those that were not by their reason; of the former the bytes of their frames, each behind a header.
   */
  #countWritten(way: Way, header: number, failed: number): void {
    const { outLength, outError, outRemote, outTap } = this.#batch;
    let network = outTap[0]!;
    let remote = outRemote[0]!;
    let frames = 0;
    let bytes = 0;
    let allFrames = 0;
    let allBytes = 0;
    for (let out = 0; out < this.#out; out++) {
      if (failed > 0 && outError[out] !== 0) {
        this.#counters.add(outTap[out]!, dropOfErrno(outError[out]!), 1);
        continue;
      }
      const isOther = outTap[out] !== network;
      if (isOther || outRemote[out] !== remote) {
        this.#traffic.add(remote, way, frames, bytes);
        allFrames += frames;
        allBytes += bytes;
        remote = outRemote[out]!;
        frames = 0;
        bytes = 0;
      }
      if (isOther) {
        this.#countFrames(network, way, allFrames, allBytes);
        network = outTap[out]!;
        allFrames = 0;
        allBytes = 0;
      }
      frames++;
      bytes += outLength[out]! - header;
    }
    this.#traffic.add(remote, way, frames, bytes);
    this.#countFrames(network, way, allFrames + frames, allBytes + bytes);
  }

  /** Whether frames cross it as they are, and nobody is to be shown them. */
  #isRepeatable({ vlan, clampMtu }: Network): boolean {
    return vlan === 0 && clampMtu === 0 && this.#mirror === undefined;
  }

  #countFrames(network: number, way: Way, frames: number, bytes: number): void {
    const isSent = way === TO_REMOTE;
    this.#counters.add(network, isSent ? Counter.encapFrames : Counter.decapFrames, frames);
    this.#counters.add(network, isSent ? Counter.encapBytes : Counter.decapBytes, bytes);
  }

  #refuse(network: number, reason: number): undefined {
    this.#drop(network, reason);
    return undefined;
  }

  #drop(network: number, reason: number): void {
    this.#counters.add(network, reason, 1);
    this.#mirror?.drop(network, reason);
  }

  // captured

  #mirrorDecap(rows: number, mirror: Mirror): void {
    for (let row = 0; row < rows; row++) this.#mirrorDecapRow(row, mirror);
    this.#deliver();
    mirror.publish();
  }

  /** As `#decapRow`, each datagram as a row of its own; of a row that is truncated, too. */
  #mirrorDecapRow(row: number, mirror: Mirror): void {
    const batch = this.#batch;
    const { inOffset, inLength, inSegment, inFlags } = batch;
    const begin = inOffset[row]!;
    const all = inLength[row]!;
    const segment = inSegment[row]!;
    const isTruncated = (inFlags[row]! & TRUNCATED) !== 0;
    const remote = isTruncated ? LOCAL : this.#remotes.find(batch.inAddress, row * ADDRESS_WORDS);
    let offset = begin;
    do {
      const length = Math.min(segment, begin + all - offset);
      if (mirror.isFull) {
        this.#deliver();
        mirror.publish();
      }
      mirror.fromUnderlay(batch, row, offset, length);
      if (isTruncated) {
        this.#drop(NO_NETWORK, Drop.PKT_TOO_BIG);
      } else {
        inOffset[row] = offset;
        inLength[row] = length;
        inSegment[row] = length;
        const network = this.#decapRow(row, remote);
        if (!mirror.isDropped) mirror.accept(network!, this.#out - 1);
      }
      offset += segment;
    } while (offset < begin + all);
  }
}

/** Whether two datagrams have the same VXLAN header and the same MACs. */
function beginsAlike(view: DataView, one: number, other: number): boolean {
  return sameWords(view, one, other, 0, vxlan.HEADER + 2 * ethernet.SOURCE);
}

/** Of a sum modulo 2^32: one that could not be read for once is less. */
function hasGrown(sum: number, before: number): boolean {
  return (sum - before) >>> 0 < 2 ** 31;
}
