/**
 * Copies of frames for whoever captures: what a forwarding thread writes into a ring in shared memory,
 * and the main thread reads from it.
 *
 * **Shape.** One ring a thread, so there is one writer and one reader, and neither waits: TAIL is the
 * writer's alone, HEAD the reader's. A record is a header of words and then bytes; none wraps, the rest
 * of a lap is skipped. Where the ring has no room the frame is missed, counted by its network, and
 * forwarded all the same.
 *
 * **When.** A frame is copied before anything is done to it: before ECN and MSS are rewritten, and
 * before a checksum is completed. So a TSO or USO super-frame is captured whole, with the
 * checksum that the host left to us; its record says so. What became of it is known only later (a
 * device may refuse it), so records are pending until their burst is done, and then published
 * together. All frames of a burst carry the time at which it was published.
 *
 * **Which.** What is wanted is decided here, so that a narrow filter leaves the ring to what it wants.
 * Only where a frame from the TAP goes is not known beforehand: with a filter by remote it is copied,
 * and made void when it went elsewhere.
 *
 * Nothing here allocates, but for the reading.
 */
import { ADDRESS_WORDS, type Batch, IN_ROWS, OUT_ROWS } from "./batch.ts";
import { dropOfErrno } from "./counters.ts";
import { NETWORKS } from "./fdb.ts";
import type { Network } from "./network.ts";
import type { Remotes } from "./remotes.ts";
import * as ethernet from "./wire/ethernet.ts";
import * as vxlan from "./wire/vxlan.ts";

/** What is to be captured; plain data. What is undefined excludes nothing. */
export interface MirrorFilter {
  readonly vni: number | undefined;
  /** Source or destination. */
  readonly mac: { readonly high: number; readonly low: number } | undefined;
  /** ADDRESS_WORDS words. */
  readonly remote: Int32Array | undefined;
  /** Bytes of a frame that are kept. */
  readonly snaplen: number;
}

/** Bytes of a ring: 30 ms of 1 Gbit/s. */
const RING_BYTES = 4 * 1024 * 1024;

/** Words before the ring: positions; and, in doubles, frames missed by network (0: of none). */
const TAIL = 0;
const HEAD = 1;
const MISSED = 16;
const RING_WORDS = MISSED + 2 * NETWORKS;

/** Words of a record's header. */
const SIZE = 0;
const KIND = 1;
const NETWORK = 2;
const KEPT = 3;
const LENGTH = 4;
const REASON = 5;
const COPIES = 6;
const FAILED = 7;
const ADDRESS = 8;
const SEGMENT = 12;
const PARTIAL = 13;
/** A double. */
const TIME = 14;
const HEADER_BYTES = 64;

/** What a record is. */
const VOID = 0;
const ENCAP = 1;
const DECAP = 2;

/** Frames that may be pending: what is delivered at once, and as many that were dropped. */
const PENDING = 2 * OUT_ROWS;
const NOWHERE = -1;

/** One frame that was captured. */
export interface Mirrored {
  readonly direction: "encap" | "decap";
  /** 0 where it belongs to none; then the bytes are a datagram's, VXLAN header and all. */
  readonly network: number;
  readonly timeMs: number;
  readonly bytes: Uint8Array;
  /** Bytes that it had, of which the first are here. */
  readonly length: number;
  /** A column of `Drop`, or 0. */
  readonly reason: number;
  /** To how many remotes it was to go. */
  readonly copies: number;
  /** Of those, how many it did not go to. */
  readonly failed: number;
  /** The remote, or the first of them; ADDRESS_WORDS words, zero where there is none. */
  readonly address: Int32Array;
  /** Bytes of payload a segment, where it is a super-frame; else 0. */
  readonly segment: number;
  /** Its checksum is the VTEP's to complete. */
  readonly partialChecksum: boolean;
}

/** The writer's end of a ring. */
export class Mirror {
  readonly #words: Int32Array;
  readonly #cells: Float64Array;
  readonly #ring: DataView;
  readonly #size: number;
  readonly #filter: MirrorFilter;
  readonly #remotes: Remotes;
  readonly #clock: () => number;
  #tail: number;
  #pending = 0;
  /** The pending frame that is being decided on, or NOWHERE when nobody wants it. */
  #current = NOWHERE;
  #isDropped = false;
  /** Of pending frames: where the record begins, or NOWHERE when it found no room. */
  readonly #at = new Int32Array(PENDING);
  readonly #wanted = new Int32Array(PENDING);
  readonly #network = new Int32Array(PENDING);
  /** Where a frame is a pending one: by its in row (encap), by its out row (decap). */
  readonly #ofRow = new Int32Array(Math.max(IN_ROWS, OUT_ROWS));

  static allocate(bytes = RING_BYTES): SharedArrayBuffer {
    return new SharedArrayBuffer(RING_WORDS * 4 + bytes);
  }

  /** `clock` says milliseconds since 1970. */
  constructor(
    memory: SharedArrayBuffer,
    filter: MirrorFilter,
    remotes: Remotes,
    clock: () => number,
  ) {
    this.#words = new Int32Array(memory);
    this.#cells = new Float64Array(memory);
    this.#ring = new DataView(memory, RING_WORDS * 4);
    this.#size = this.#ring.byteLength;
    this.#filter = filter;
    this.#remotes = remotes;
    this.#clock = clock;
    this.#tail = this.#words[TAIL]!;
  }

  /** Whether what is pending has to be published before another frame may come. */
  get isFull(): boolean {
    return this.#pending === PENDING;
  }

  /** A frame from the TAP, to which nothing was done yet. It is the current one until the next. */
  fromTap(batch: Batch, row: number, network: Network): void {
    const { vni, mac, remote } = this.#filter;
    const offset = batch.inOffset[row]!;
    const length = batch.inLength[row]!;
    this.#begin();
    this.#ofRow[row] = NOWHERE;
    if (vni !== undefined && vni !== network.vni) return;
    if (mac !== undefined && !this.#hasMac(batch.view, offset, length)) return;
    const pending = this.#hold(batch.view, offset, length, ENCAP, network.index);
    this.#ofRow[row] = pending;
    this.#wanted[pending] = remote === undefined ? 1 : 0;
    const at = this.#at[pending]!;
    if (at !== NOWHERE) {
      this.#words[at + SEGMENT] = batch.segmentBytes(row);
      this.#words[at + PARTIAL] = batch.needsChecksum(row) ? 1 : 0;
    }
  }

  /** A datagram from the underlay, to which nothing was done yet; likewise. */
  fromUnderlay(batch: Batch, row: number, offset: number, length: number): void {
    const { vni, mac, remote } = this.#filter;
    const { view, inAddress } = batch;
    const from = row * ADDRESS_WORDS;
    const inner = offset + vxlan.HEADER;
    this.#begin();
    if (vni !== undefined) {
      if (length < vxlan.HEADER || !vxlan.hasVni(view, offset)) return;
      if (vxlan.vni(view, offset) !== vni) return;
    }
    if (mac !== undefined && !this.#hasMac(view, inner, length - vxlan.HEADER)) return;
    if (remote !== undefined && !isAddress(remote, inAddress, from)) return;
    const pending = this.#hold(view, offset, length, DECAP, 0);
    this.#wanted[pending] = 1;
    const at = this.#at[pending]!;
    if (at !== NOWHERE) copyAddress(this.#words, at + ADDRESS, inAddress, from);
  }

  /** The current frame was dropped, or a copy of it. */
  drop(network: number, reason: number): void {
    this.#isDropped = true;
    if (this.#current === NOWHERE) return;
    this.#network[this.#current] = network;
    const at = this.#at[this.#current]!;
    if (at !== NOWHERE) this.#words[at + REASON] = reason;
  }

  /** What was dropped of the current frame was its copy to this remote. */
  dropCopy(remote: number): void {
    if (this.#current !== NOWHERE) this.#copy(this.#current, remote, true);
  }

  /** Whether the current frame was dropped, or a copy of it. */
  get isDropped(): boolean {
    return this.#isDropped;
  }

  /** The current frame, from the underlay, was accepted, and is to be written as this out row. */
  accept(network: Network, out: number): void {
    this.#ofRow[out] = this.#current;
    if (this.#current !== NOWHERE) this.#network[this.#current] = network.index;
  }

  /** The underlay sent these out rows; outError says which it did not, where any has `failed`. */
  sent(batch: Batch, count: number, failed: number): void {
    const { outRow, outRemote, outError } = batch;
    for (let out = 0; out < count; out++) {
      const pending = this.#ofRow[outRow[out]!]!;
      if (pending === NOWHERE) continue;
      const error = failed === 0 ? 0 : outError[out]!;
      this.#copy(pending, outRemote[out]!, error !== 0);
      if (error !== 0) this.#fail(pending, error);
    }
  }

  /** TAPs were written these out rows; likewise. */
  written(batch: Batch, count: number, failed: number): void {
    if (failed === 0) return;
    for (let out = 0; out < count; out++) {
      const pending = this.#ofRow[out]!;
      const error = batch.outError[out]!;
      if (pending !== NOWHERE && error !== 0) this.#fail(pending, error);
    }
  }

  /** Hands the pending frames to the reader. */
  publish(): void {
    this.#begin();
    if (this.#pending === 0) return;
    const words = this.#words;
    const now = this.#clock();
    for (let pending = 0; pending < this.#pending; pending++) {
      const at = this.#at[pending]!;
      const network = this.#network[pending]!;
      const wanted = this.#wanted[pending] === 1;
      if (at === NOWHERE) {
        if (wanted) this.#cells[missedAt(network)] = this.#cells[missedAt(network)]! + 1;
        continue;
      }
      if (!wanted) words[at + KIND] = VOID;
      words[at + NETWORK] = network;
      this.#cells[(at + TIME) >> 1] = now;
    }
    this.#pending = 0;
    Atomics.store(words, TAIL, this.#tail);
  }

  #begin(): void {
    this.#current = NOWHERE;
    this.#isDropped = false;
  }

  #hasMac(view: DataView, frame: number, length: number): boolean {
    if (length < ethernet.HEADER) return false;
    const { high, low } = this.#filter.mac!;
    for (let at = frame; at <= frame + ethernet.SOURCE; at += ethernet.SOURCE) {
      if (ethernet.macLow(view, at) === low && ethernet.macHigh(view, at) === high) return true;
    }
    return false;
  }

  /** Makes a frame pending, and its copy where there is room; returns which it is. */
  #hold(view: DataView, offset: number, length: number, kind: number, network: number): number {
    const pending = this.#pending++;
    this.#current = pending;
    this.#network[pending] = network;
    const snaplen = kind === DECAP ? this.#filter.snaplen + vxlan.HEADER : this.#filter.snaplen;
    const kept = Math.min(length, snaplen);
    const at = this.#reserve((HEADER_BYTES + kept + 7) & ~7);
    this.#at[pending] = at;
    if (at === NOWHERE) return pending;
    const words = this.#words;
    words.fill(0, at + KIND, at + TIME);
    words[at + KIND] = kind;
    words[at + KEPT] = kept;
    words[at + LENGTH] = length;
    copy(view, offset, this.#ring, at * 4 - RING_WORDS * 4 + HEADER_BYTES, kept);
    return pending;
  }

  /** The word at which a record of so many bytes may begin, or NOWHERE. */
  #reserve(bytes: number): number {
    const words = this.#words;
    const place = this.#tail & (this.#size - 1);
    const skipped = place + bytes > this.#size ? this.#size - place : 0;
    const used = (this.#tail - Atomics.load(words, HEAD)) | 0;
    if (used + skipped + bytes > this.#size) return NOWHERE;
    if (skipped > 0) {
      const rest = RING_WORDS + (place >> 2);
      words[rest + SIZE] = skipped;
      words[rest + KIND] = VOID;
    }
    const at = RING_WORDS + (((this.#tail + skipped) & (this.#size - 1)) >> 2);
    words[at + SIZE] = bytes;
    this.#tail = (this.#tail + skipped + bytes) | 0;
    return at;
  }

  #copy(pending: number, remote: number, failed: boolean): void {
    const words = this.#words;
    const at = this.#at[pending]!;
    const from = this.#remotes.addressAt(remote);
    const { remote: wanted } = this.#filter;
    const isWanted = wanted !== undefined && isAddress(wanted, this.#remotes.words, from);
    if (isWanted) this.#wanted[pending] = 1;
    if (at === NOWHERE) return;
    // The one that is asked for is the one to name.
    if (words[at + COPIES] === 0 || isWanted) {
      copyAddress(words, at + ADDRESS, this.#remotes.words, from);
    }
    words[at + COPIES] = words[at + COPIES]! + 1;
    if (failed) words[at + FAILED] = words[at + FAILED]! + 1;
  }

  #fail(pending: number, errno: number): void {
    const at = this.#at[pending]!;
    if (at !== NOWHERE) this.#words[at + REASON] = dropOfErrno(errno);
  }
}

/** The reader's end of a ring. */
export class MirrorReader {
  readonly #memory: SharedArrayBuffer;
  readonly #words: Int32Array;
  readonly #cells: Float64Array;
  readonly #size: number;

  constructor(memory: SharedArrayBuffer) {
    this.#memory = memory;
    this.#words = new Int32Array(memory);
    this.#cells = new Float64Array(memory);
    this.#size = memory.byteLength - RING_WORDS * 4;
  }

  /** The frame that waits, or undefined. Its bytes are good until `advance`. */
  next(): Mirrored | undefined {
    for (;;) {
      const at = this.#record();
      if (at === NOWHERE) return undefined;
      if (this.#words[at + KIND] !== VOID) return this.#read(at);
      this.advance();
    }
  }

  /** Gives the room of the frame that `next` returned back to the writer. */
  advance(): void {
    const at = this.#record();
    if (at === NOWHERE) return;
    Atomics.store(this.#words, HEAD, (this.#words[HEAD]! + this.#words[at + SIZE]!) | 0);
  }

  /** Frames of a network that were wanted and found no room. */
  missed(network: number): number {
    return this.#cells[missedAt(network)]!;
  }

  #record(): number {
    const head = this.#words[HEAD]!;
    if (head === Atomics.load(this.#words, TAIL)) return NOWHERE;
    return RING_WORDS + ((head & (this.#size - 1)) >> 2);
  }

  #read(at: number): Mirrored {
    const words = this.#words;
    const whole = new Uint8Array(this.#memory, at * 4 + HEADER_BYTES, words[at + KEPT]!);
    const network = words[at + NETWORK]!;
    const isDatagram = words[at + KIND] === DECAP;
    // Of a network's frame the VXLAN header says nothing more.
    const outer = isDatagram && network !== 0 ? vxlan.HEADER : 0;
    return {
      direction: isDatagram ? "decap" : "encap",
      network,
      timeMs: this.#cells[(at + TIME) >> 1]!,
      bytes: whole.subarray(outer),
      length: words[at + LENGTH]! - outer,
      reason: words[at + REASON]!,
      copies: words[at + COPIES]!,
      failed: words[at + FAILED]!,
      address: words.slice(at + ADDRESS, at + ADDRESS + ADDRESS_WORDS),
      segment: words[at + SEGMENT]!,
      partialChecksum: words[at + PARTIAL] === 1,
    };
  }
}

/** The double in which is counted what was missed of a network: a reader that has stopped may miss more than 2^31. */
function missedAt(network: number): number {
  return (MISSED >> 1) + network;
}

/** `TypedArray.set` would need a view of the source, which is an object a frame. */
function copy(from: DataView, offset: number, to: DataView, target: number, bytes: number): void {
  const words = bytes & ~3;
  for (let at = 0; at < words; at += 4) {
    to.setInt32(target + at, from.getInt32(offset + at, true), true);
  }
  for (let at = words; at < bytes; at++) to.setUint8(target + at, from.getUint8(offset + at));
}

function copyAddress(to: Int32Array, target: number, from: Int32Array, at: number): void {
  for (let word = 0; word < ADDRESS_WORDS; word++) to[target + word] = from[at + word]!;
}

function isAddress(wanted: Int32Array, words: Int32Array, at: number): boolean {
  for (let word = 0; word < ADDRESS_WORDS; word++) {
    if (wanted[word] !== words[at + word]) return false;
  }
  return true;
}
