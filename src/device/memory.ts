/**
 * A TAP and an underlay without a kernel, so that many VTEPs run in one process under a virtual
 * clock.
 *
 *     const wire = new MemoryWire();
 *     const tap = new MemoryTap({ wire, name: "vtep7" });
 *     const underlay = new MemoryUnderlay({ wire, local4: "192.0.2.1", port: 4789, remotes, … });
 *     const taps = new MemoryTaps();
 *     taps.add(1, tap, onLost);
 *     …                       // a dataplane on the two, and more of them on the same wire
 *     tap.transmit(frame);    // the host sends a frame
 *     wire.run();             // until nothing waits anywhere
 *     other.received          // what another VTEP wrote to its TAP
 *
 * `MemoryWire` is both the network between underlays and the event loop: a datagram lies in its
 * receiver's queue as soon as `send` returns, but nobody is told before `run` (or `turn`) calls
 * `onReadable`. Devices have their turns in the order of their making, so a run is repeatable. Frames
 * that go in circles do not hang a test: `run` throws after a bounded number of turns.
 *
 * Queues have a fixed size and drop when they are full. Moving a frame allocates nothing, so that an
 * allocation test measures the dataplane alone (`received` copies, and is not for such a test).
 *
 * Not simulated: delay, reordering, the kernel's answers (ICMP), multicast, fragmentation, ports to
 * send from.
 */
import { constants, endianness } from "node:os";
import {
  ADDRESS_WORDS,
  type Batch,
  HEADROOM,
  IN_ROWS,
  SLAB_BYTES,
  TRUNCATED,
  TURN_BYTES,
} from "../batch.ts";
import type { Capabilities, Tap, Taps, Underlay, Watch } from "../device.ts";
import { VtepError } from "../errors.ts";
import { addressWords, canonicalAddress, REMOTE_WORDS, type Remotes } from "../remotes.ts";
import { HEADER as VXLAN_HEADER } from "../wire/vxlan.ts";

const { EAFNOSUPPORT, EAGAIN, EINVAL, EMSGSIZE, ENETDOWN, ENETUNREACH, ENODEV } = constants.errno;

/** Turns after which `run` takes it that frames go in circles. */
const TURNS = 1000;

/** As long as a TAP's transmit queue is by default. */
const QUEUE_ROWS = 1000;
const QUEUE_BYTES = 1024 * 1024;

/** A super-frame: 64 KiB of IP packet behind its Ethernet header. */
const LARGEST_FRAME = 65_535 + 14;
const ETHERNET_HEADER = 14;
/** The largest payload of one datagram: 65,535 less the headers that the length counts in. */
const LARGEST_4 = 65_507;
const LARGEST_6 = 65_527;
/** Headers of IP and UDP. */
const OUTER_4 = 28;
const OUTER_6 = 48;
/** A datagram's place in the slab: its inner IP header, 8 + 14 bytes further, is 8-byte aligned. */
const DATAGRAM_OFFSET = 2;

const LITTLE_ENDIAN = endianness() === "LE";

export class MemoryWire {
  /**
   * Set to lose datagrams: called for each one that has a receiver. The payload is a view of the
   * sender's slab, good during the call only.
   */
  loses: ((payload: Uint8Array, from: string, to: string) => boolean) | undefined;

  /** Set to narrow paths: the MTU of the one between two addresses. A sender learns it at once. */
  carries: ((from: string, to: string) => number) | undefined;

  readonly #ports: Port[] = [];
  readonly #places = new Map<string, Place>();

  /** Calls `onReadable` once of everything that can be read. Returns how many were called. */
  turn(): number {
    let called = 0;
    // A port that opens meanwhile has its turn in the next one.
    const count = this.#ports.length;
    for (let index = 0; index < count; index++) {
      const port = this.#ports[index];
      if (port === undefined || port.watch === undefined || port.queue.rows === 0) continue;
      port.watch.onReadable();
      called++;
    }
    return called;
  }

  /** Turns until nothing waits; how many it took. A reader that never reads is an endless loop too. */
  run(limit = TURNS): number {
    for (let turns = 0; turns < limit; turns++) {
      if (this.turn() === 0) return turns;
    }
    throw new Error(`something still waits after ${limit} turns: do frames go in circles?`);
  }

  /** @internal */
  plug(port: Port): void {
    this.#ports.push(port);
  }

  /** @internal */
  unplug(port: Port): void {
    const index = this.#ports.indexOf(port);
    if (index >= 0) this.#ports.splice(index, 1);
  }

  /** @internal The place of an address and port: the same one for as long as the wire lives. */
  place(address: string, port: number): Place {
    const key = `${canonicalAddress(address)} ${port}`;
    let place = this.#places.get(key);
    if (place === undefined) {
      place = { address: canonicalAddress(address), exists: false, receiver: undefined };
      this.#places.set(key, place);
    }
    return place;
  }
}

/** What a device reads from, and who is to be told. */
interface Port {
  readonly queue: Queue;
  watch: Watch | undefined;
}

interface Place {
  readonly address: string;
  /** Somebody has had this address: what is sent to it may get lost, but there is a route. */
  exists: boolean;
  receiver: Queue | undefined;
}

/** The fields of a virtio_net_hdr; 0 unless given. */
export interface VnetHeader {
  readonly flags?: number;
  readonly gsoType?: number;
  readonly hdrLen?: number;
  readonly gsoSize?: number;
  readonly csumStart?: number;
  readonly csumOffset?: number;
}

export interface MemoryTapOptions {
  readonly wire: MemoryWire;
  readonly name: string;
  /** Frames that may wait, on either side; more are dropped. */
  readonly queueRows?: number;
}

export class MemoryTap implements Tap {
  readonly name: string;
  /** Frames that `transmit` dropped since its queue was full: tx_dropped of the interface. */
  dropped = 0;
  readonly #wire: MemoryWire;
  readonly #port: Port;
  readonly #received: Queue;
  readonly #vnet = new DataView(new ArrayBuffer(WORD_BYTES));
  readonly #words = new Int32Array(this.#vnet.buffer);
  #state: "open" | "lost" | "closed" = "open";

  constructor(options: MemoryTapOptions) {
    this.name = options.name;
    this.#wire = options.wire;
    this.#port = { queue: new Queue(options.queueRows ?? QUEUE_ROWS), watch: undefined };
    this.#received = new Queue(options.queueRows ?? QUEUE_ROWS);
    this.#wire.plug(this.#port);
  }

  // ---- the host's side

  /** The host sends a frame through this interface. False when the queue was full. */
  transmit(frame: Uint8Array, vnet?: VnetHeader): boolean {
    if (frame.length < ETHERNET_HEADER || frame.length > LARGEST_FRAME) {
      throw new RangeError(`a frame of ${frame.length} bytes`);
    }
    if (this.#state !== "open") return false;
    this.#vnet.setUint8(0, vnet?.flags ?? 0);
    this.#vnet.setUint8(1, vnet?.gsoType ?? 0);
    this.#vnet.setUint16(2, vnet?.hdrLen ?? 0, LITTLE_ENDIAN);
    this.#vnet.setUint16(4, vnet?.gsoSize ?? 0, LITTLE_ENDIAN);
    this.#vnet.setUint16(6, vnet?.csumStart ?? 0, LITTLE_ENDIAN);
    this.#vnet.setUint16(8, vnet?.csumOffset ?? 0, LITTLE_ENDIAN);
    const taken = this.#port.queue.push(frame, 0, frame.length, this.#words);
    if (!taken) this.dropped++;
    return taken;
  }

  get isOpen(): boolean {
    return this.#state === "open";
  }

  /** Copies of the frames that the VTEP wrote since the last `clear`. */
  get received(): Uint8Array[] {
    return this.#received.copies();
  }

  /** How many frames `received` holds. */
  get receivedCount(): number {
    return this.#received.rows;
  }

  clear(): void {
    this.#received.clear();
  }

  /** As if somebody had deleted the interface. */
  lose(): void {
    if (this.#state !== "open") return;
    this.#shut("lost");
    this.#port.watch?.onLost(
      new VtepError("LOST", `interface ${this.name} was deleted: restart vtep`),
    );
  }

  // ---- the VTEP's side

  /** @internal Reads frames to in rows `first` to `end` − 1, for `MemoryTaps`; the first row behind them. */
  read(batch: Batch, index: number, first: number, end: number): number {
    const queue = this.#port.queue;
    let rows = first;
    let offset = first === 0 ? HEADROOM : offsetAfter(batch, first - 1);
    while (queue.rows > 0 && rows < end && offset < TURN_BYTES) {
      const length = queue.oldestLength;
      batch.inTap[rows] = index;
      batch.inOffset[rows] = offset;
      batch.inLength[rows] = length;
      batch.inSegment[rows] = length;
      batch.inFlags[rows] = 0;
      queue.shift(batch.slab, offset, length, this.#words, 0);
      for (let word = 0; word < QUEUE_WORDS; word++) {
        const value = this.#words[word]!;
        batch.inVnet.setInt32(rows * WORD_BYTES + word * 4, value, LITTLE_ENDIAN);
      }
      offset = offsetAfter(batch, rows);
      rows++;
    }
    return rows;
  }

  /** @internal Writes a frame, for `MemoryTaps`; 0 or an errno. */
  write(batch: Batch, offset: number, length: number): number {
    if (this.#state !== "open") return ENODEV;
    // As the kernel's tun_get_user says of a frame without a whole Ethernet header.
    if (!isInSlab(offset, length) || length < ETHERNET_HEADER) return EINVAL;
    return this.#received.push(batch.slab, offset, length, NO_WORDS) ? 0 : EAGAIN;
  }

  /** @internal For `MemoryTaps`. */
  watch(watch: Watch | undefined): void {
    this.#port.watch = watch;
  }

  close(): void {
    if (this.#state === "open") this.#shut("closed");
    this.#state = "closed";
  }

  #shut(state: "lost" | "closed"): void {
    this.#state = state;
    this.#port.queue.clear();
    this.#wire.unplug(this.#port);
  }
}

/** Where the frame behind that of a row begins. */
function offsetAfter(batch: Batch, row: number): number {
  return ((batch.inOffset[row]! + batch.inLength[row]! + 7) & ~7) + HEADROOM;
}

export class MemoryTaps implements Taps<MemoryTap> {
  readonly #members: Member[] = [];
  /** Whose turn it is to be read first. */
  #next = 0;
  #onReadable: (() => void) | undefined;

  add(index: number, tap: MemoryTap, onLost: (error: VtepError) => void): void {
    if (this.#find(index) >= 0) throw new VtepError("SYSTEM", `index ${index} is taken`);
    const member = { index, tap, onLost, most: IN_ROWS };
    this.#members.push(member);
    if (this.#onReadable !== undefined) this.#watch(member);
  }

  remove(index: number): void {
    const at = this.#find(index);
    if (at < 0) return;
    this.#members[at]!.tap.watch(undefined);
    this.#members.splice(at, 1);
  }

  limit(index: number, frames: number): void {
    const member = this.#members[this.#find(index)];
    if (member !== undefined) member.most = frames;
  }

  read(batch: Batch): number {
    const count = this.#members.length;
    const first = this.#next;
    let rows = 0;
    for (let turn = 0; turn < count; turn++) {
      const at = (first + turn) % count;
      const { index, tap, most } = this.#members[at]!;
      const before = rows;
      rows = tap.read(batch, index, rows, Math.min(rows + most, IN_ROWS));
      if (rows > before) this.#next = (at + 1) % count;
    }
    return rows;
  }

  write(batch: Batch, count: number): number {
    let failed = 0;
    for (let row = 0; row < count; row++) {
      const tap = this.#members[this.#find(batch.outTap[row]!)]?.tap;
      const errno = tap?.write(batch, batch.outOffset[row]!, batch.outLength[row]!) ?? ENODEV;
      batch.outError[row] = errno;
      if (errno !== 0) failed++;
    }
    return failed;
  }

  watch(onReadable: () => void): void {
    this.#onReadable = onReadable;
    for (const member of this.#members) this.#watch(member);
  }

  close(): void {
    for (const { tap } of this.#members.splice(0)) tap.watch(undefined);
  }

  #find(index: number): number {
    for (let at = 0; at < this.#members.length; at++) {
      if (this.#members[at]!.index === index) return at;
    }
    return -1;
  }

  #watch({ index, tap, onLost }: Member): void {
    tap.watch({
      onReadable: this.#onReadable!,
      onLost: (error) => {
        this.remove(index);
        onLost(error);
      },
    });
  }
}

interface Member {
  readonly index: number;
  readonly tap: MemoryTap;
  most: number;
  readonly onLost: (error: VtepError) => void;
}

export interface MemoryUnderlayOptions {
  readonly wire: MemoryWire;
  /** Addresses on the wire; at least one of the two. */
  readonly local4?: string | undefined;
  readonly local6?: string | undefined;
  readonly port: number;
  readonly remotes: Remotes;
  /** Longer datagrams are received TRUNCATED to this. */
  readonly largestDatagram: number;
  /** Datagrams that may wait; more are dropped and counted by `overflows`. */
  readonly queueRows?: number;
}

export class MemoryUnderlay implements Underlay {
  readonly capabilities: Capabilities = {
    sourcePortEntropy: false,
    dontFragment: true,
    zeroChecksum6: true,
    countsOverflows: true,
    carriesTos: true,
    cutsSuperFrames: false,
  };
  /** As if the socket's send buffer were full: nothing is sent, every row fails with EAGAIN. */
  congested = false;
  readonly #wire: MemoryWire;
  readonly #port: Port;
  readonly #remotes: Remotes;
  readonly #largestDatagram: number;
  readonly #place4: Place | undefined;
  readonly #place6: Place | undefined;
  readonly #words4: Int32Array;
  readonly #words6: Int32Array;
  /** Places of remotes by their index. */
  readonly #remotePlaces: Place[] = [];
  #state: "open" | "lost" | "closed" = "open";

  constructor(options: MemoryUnderlayOptions) {
    const { wire, local4, local6, port } = options;
    if (local4 === undefined && local6 === undefined) {
      throw new TypeError("an underlay needs local4, local6 or both");
    }
    this.#wire = wire;
    this.#port = { queue: new Queue(options.queueRows ?? QUEUE_ROWS), watch: undefined };
    this.#remotes = options.remotes;
    this.#largestDatagram = options.largestDatagram;
    this.#place4 = freePlace(wire, local4, port);
    this.#place6 = freePlace(wire, local6, port);
    this.#words4 = local4 === undefined ? NO_WORDS : addressWords(local4);
    this.#words6 = local6 === undefined ? NO_WORDS : addressWords(local6);
    for (const place of [this.#place4, this.#place6]) {
      if (place === undefined) continue;
      place.exists = true;
      place.receiver = this.#port.queue;
    }
    wire.plug(this.#port);
  }

  receive(batch: Batch): number {
    this.#assertOpen();
    const queue = this.#port.queue;
    let rows = 0;
    let offset = DATAGRAM_OFFSET;
    while (queue.rows > 0 && rows < IN_ROWS && offset + this.#largestDatagram <= SLAB_BYTES) {
      const whole = queue.oldestLength;
      const length = Math.min(whole, this.#largestDatagram);
      batch.inOffset[rows] = offset;
      batch.inLength[rows] = length;
      batch.inSegment[rows] = length;
      batch.inFlags[rows] = length < whole ? TRUNCATED : 0;
      batch.inTos[rows] = queue.oldestTos;
      queue.shift(batch.slab, offset, length, batch.inAddress, rows * ADDRESS_WORDS);
      offset = ((offset + length - DATAGRAM_OFFSET + 7) & ~7) + DATAGRAM_OFFSET;
      rows++;
    }
    return rows;
  }

  send(batch: Batch, count: number): number {
    this.#assertOpen();
    let failed = 0;
    for (let row = 0; row < count; row++) {
      const errno = this.#sendRow(batch, row);
      batch.outError[row] = errno;
      if (errno !== 0) failed++;
    }
    return failed;
  }

  #sendRow(batch: Batch, row: number): number {
    if (this.#state === "lost") return ENETDOWN;
    const remote = batch.outRemote[row]!;
    const family = this.#remotes.words[remote * REMOTE_WORDS];
    const from = family === 4 ? this.#place4 : family === 6 ? this.#place6 : undefined;
    if (from === undefined) return EAFNOSUPPORT;
    const offset = batch.outOffset[row]!;
    const length = batch.outLength[row]!;
    if (length > (family === 4 ? LARGEST_4 : LARGEST_6)) return EMSGSIZE;
    if (!isInSlab(offset, length)) return EINVAL;
    if (!batch.completeChecksum(batch.outRow[row]!)) return EINVAL;
    if (this.congested) return EAGAIN;

    const to = this.#placeOf(remote);
    if (!to.exists) return ENETUNREACH;
    if (this.#wire.carries !== undefined) {
      const mtu = this.#wire.carries(from.address, to.address);
      if (length + (family === 4 ? OUTER_4 : OUTER_6) > mtu) {
        this.#remotes.learnPathMtu(remote, mtu);
        if (length - VXLAN_HEADER > this.#remotes.longestFrame(remote)) return EMSGSIZE;
      }
    }
    // What nobody receives is lost without a word, as on any network.
    if (to.receiver === undefined) return 0;
    if (this.#wire.loses !== undefined) {
      const payload = batch.slab.subarray(offset, offset + length);
      if (this.#wire.loses(payload, from.address, to.address)) return 0;
    }
    const words = family === 4 ? this.#words4 : this.#words6;
    to.receiver.push(batch.slab, offset, length, words, batch.outTos[row]!);
    return 0;
  }

  #placeOf(remote: number): Place {
    const known = this.#remotePlaces[remote];
    if (known !== undefined) return known;
    const place = this.#wire.place(this.#remotes.address(remote), this.#remotes.port(remote));
    this.#remotePlaces[remote] = place;
    return place;
  }

  overflows(): number {
    this.#assertOpen();
    return this.#port.queue.overflows;
  }

  refusals(): number {
    this.#assertOpen();
    return 0;
  }

  watch(watch: Watch): void {
    this.#assertOpen();
    this.#port.watch = watch;
  }

  /** As if the socket had failed for good. */
  lose(): void {
    if (this.#state !== "open") return;
    this.#shut("lost");
    const message = "the underlay's UDP socket failed: restart vtep";
    this.#port.watch?.onLost(new VtepError("LOST", message));
  }

  close(): void {
    if (this.#state === "open") this.#shut("closed");
    this.#state = "closed";
  }

  #shut(state: "lost" | "closed"): void {
    this.#state = state;
    if (this.#place4 !== undefined) this.#place4.receiver = undefined;
    if (this.#place6 !== undefined) this.#place6.receiver = undefined;
    this.#port.queue.clear();
    this.#wire.unplug(this.#port);
  }

  #assertOpen(): void {
    if (this.#state === "closed") {
      throw new VtepError("CLOSED", "the underlay was closed: open another one");
    }
  }
}

function freePlace(wire: MemoryWire, local: string | undefined, port: number): Place | undefined {
  if (local === undefined) return undefined;
  if (NO_HOST.test(canonicalAddress(local))) {
    throw new VtepError("ADDRESS", `${local} is no host's own address: give one that is`);
  }
  const place = wire.place(local, port);
  if (place.receiver !== undefined) {
    throw new VtepError(
      "PORT_IN_USE",
      `UDP port ${port} of ${local} is held by another underlay on this wire: close it, or choose another port`,
    );
  }
  return place;
}

/** Unspecified, multicast and broadcast addresses. */
const NO_HOST = /^(0\.0\.0\.0|::|22[4-9]\..*|23\d\..*|255\.255\.255\.255|ff..:.*)$/;

function isInSlab(offset: number, length: number): boolean {
  return offset >= 0 && length >= 0 && offset + length <= SLAB_BYTES;
}

// ---- queue

/** Words that a queue keeps beside each row: a virtio_net_hdr, or a sender's address. */
const QUEUE_WORDS = 4;
const WORD_BYTES = QUEUE_WORDS * 4;
const NO_WORDS = new Int32Array(QUEUE_WORDS);

/** A bounded queue of byte strings: a ring of rows, whose bytes lie whole in a ring of bytes. */
class Queue {
  rows = 0;
  overflows = 0;
  readonly #bytes = new Uint8Array(QUEUE_BYTES);
  readonly #offsets: Int32Array;
  readonly #lengths: Int32Array;
  readonly #tos: Int32Array;
  readonly #words: Int32Array;
  #oldest = 0;
  /** Where the newest row's bytes end. */
  #end = 0;

  constructor(capacity: number) {
    this.#offsets = new Int32Array(capacity);
    this.#lengths = new Int32Array(capacity);
    this.#tos = new Int32Array(capacity);
    this.#words = new Int32Array(capacity * QUEUE_WORDS);
  }

  /** False, and counted, when there is no room. */
  push(from: Uint8Array, at: number, length: number, words: Int32Array, tos = 0): boolean {
    const start = this.#room(length);
    if (start < 0 || this.rows === this.#offsets.length) {
      this.overflows++;
      return false;
    }
    const row = (this.#oldest + this.rows) % this.#offsets.length;
    this.#offsets[row] = start;
    this.#lengths[row] = length;
    this.#tos[row] = tos;
    for (let word = 0; word < QUEUE_WORDS; word++) {
      this.#words[row * QUEUE_WORDS + word] = words[word]!;
    }
    copy(from, at, this.#bytes, start, length);
    this.#end = start + length;
    this.rows++;
    return true;
  }

  /** Where so many bytes can lie; −1 when they cannot. */
  #room(length: number): number {
    if (this.rows === 0) return length <= QUEUE_BYTES ? 0 : -1;
    const begin = this.#offsets[this.#oldest]!;
    if (this.#end >= begin) {
      if (this.#end + length <= QUEUE_BYTES) return this.#end;
      return length < begin ? 0 : -1;
    }
    // One byte stays free: an end that met the beginning would look like an empty ring's.
    return this.#end + length < begin ? this.#end : -1;
  }

  get oldestLength(): number {
    return this.#lengths[this.#oldest]!;
  }

  get oldestTos(): number {
    return this.#tos[this.#oldest]!;
  }

  /** Takes the oldest row out: its first `length` bytes to `to`, its words to `words`. */
  shift(to: Uint8Array, at: number, length: number, words: Int32Array, wordsAt: number): void {
    copy(this.#bytes, this.#offsets[this.#oldest]!, to, at, length);
    for (let word = 0; word < QUEUE_WORDS; word++) {
      words[wordsAt + word] = this.#words[this.#oldest * QUEUE_WORDS + word]!;
    }
    this.#oldest = (this.#oldest + 1) % this.#offsets.length;
    this.rows--;
  }

  copies(): Uint8Array[] {
    return Array.from({ length: this.rows }, (_, index) => {
      const row = (this.#oldest + index) % this.#offsets.length;
      const start = this.#offsets[row]!;
      return this.#bytes.slice(start, start + this.#lengths[row]!);
    });
  }

  clear(): void {
    this.rows = 0;
    this.#end = 0;
  }
}

/** By hand, since `set` would need a `subarray`, which is an allocation. */
function copy(from: Uint8Array, at: number, to: Uint8Array, toAt: number, length: number): void {
  for (let index = 0; index < length; index++) to[toAt + index] = from[at + index]!;
}
