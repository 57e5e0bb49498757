/**
 * A burst of frames: one slab of bytes and the columns that say where in it things are.
 *
 *     in rows    what a device read: the TAPs' frames, or the underlay's datagrams
 *     out rows   what is to be written: datagrams to a remote, or frames to TAPs
 *
 * Both directions use it alike: a device fills the in rows, the dataplane decides and fills the out
 * rows, the other device writes them. In the slab payload bytes never move: an out row points into the slab
 * that an in row was read to. One in row may become many out rows (flooding to several remotes; a
 * train of datagrams that UDP_GRO delivered as one buffer), or none (a drop).
 *
 * TAPs pack frames one behind the other, each behind HEADROOM, so that a burst of small frames
 * and a few 64 KiB super-frames alike stay within the second-level cache. The underlay receives to
 * slots of a fixed stride, because recvmmsg(2) wants its buffers beforehand.
 *
 * Everything lies in one SharedArrayBuffer, because such memory can be neither moved nor detached
 * while native code holds its address. `native/layout.h` repeats the numbers of `LAYOUT`; the
 * loader of the addon refuses to start when they differ.
 */

import { endianness } from "node:os";
import { completeChecksum } from "./wire/checksum.ts";
import * as ethernet from "./wire/ethernet.ts";
import * as ip from "./wire/ip.ts";
import * as tcp from "./wire/tcp.ts";

/** Rows of the in columns: frames or datagrams that one read may return, or datagrams that what it returns is cut into. */
export const IN_ROWS = 256;
/** Rows of the out columns: a flood to a thousand remotes fits. */
export const OUT_ROWS = 1024;
/** 8 bytes for the VXLAN header, and 2 so that the inner IP header is 8-byte aligned. */
export const HEADROOM = 10;
/** Room for nine 64 KiB slots: a working set that stays in a second-level cache. */
export const SLAB_BYTES = 640 * 1024;
/** When a read of TAPs ends, and when a turn of either way does: the other one is not to wait for more. */
export const TURN_BYTES = 256 * 1024;
/**
 * Of a super-frame; one of more is refused. A segment of Linux's TCP has 8 bytes or more (TCP_MIN_SND_MSS without
 * options), a super-frame of its UDP no more than 128 (UDP_MAX_SEGMENTS). Packet sockets can ask for segments of a
 * byte, which would take tens of milliseconds.
 */
export const MOST_SEGMENTS = 8192;
/** Words of a virtio_net_hdr's row; the header itself takes the first 10 bytes. */
export const VNET_WORDS = 4;
/** Words of an address: 16 bytes in network order, IPv4 as ::ffff:a.b.c.d. */
export const ADDRESS_WORDS = 4;
/** Words of a guard in `Batch.repeat`, of which there are two. */
export const GUARD_WORDS = 4;

/**
 * `inFlags`: the datagram is longer than any that is wanted, and what is there may be only its
 * beginning. Of a train it is said of every datagram in the row.
 */
export const TRUNCATED = 1;
/** `inFlags`: what is decided on it the device would do by itself for others like it (`repeat`). */
export const ASKS = 2;
/** `inFlags`, underlay: frames from the TAPs wait too, most likely because this datagram was answered. */
export const ANSWERED = 4;
/** `inFlags`: the device has moved it already (`inTarget`), as was decided on one like it. */
export const REPEATED = 8;

/** `virtio_net_hdr.flags`: the checksum at csum_start + csum_offset is the sender's to complete. */
export const VNET_NEEDS_CSUM = 1;
/** `virtio_net_hdr.gso_type`: a super-frame of TCP or UDP, to be cut into gso_size bytes each. */
export const VNET_GSO_NONE = 0;
export const VNET_GSO_TCPV4 = 1;
export const VNET_GSO_TCPV6 = 4;
export const VNET_GSO_UDP_L4 = 5;
/** Added to `gso_type`: CWR is set in the TCP header, and stays with the first segment. */
export const VNET_GSO_ECN = 0x80;

/** Offsets in a virtio_net_hdr, which is in host byte order. */
const GSO_TYPE = 1;
const GSO_SIZE = 4;
const CSUM_START = 6;
const CSUM_OFFSET = 8;
const LITTLE_ENDIAN = endianness() === "LE";

const UDP_HEADER = 8;

const IN_OFFSET = 0;
const IN_LENGTH = IN_OFFSET + IN_ROWS;
const IN_SEGMENT = IN_LENGTH + IN_ROWS;
const IN_FLAGS = IN_SEGMENT + IN_ROWS;
const IN_TOS = IN_FLAGS + IN_ROWS;
const IN_TAP = IN_TOS + IN_ROWS;
const IN_VNET = IN_TAP + IN_ROWS;
const IN_ADDRESS = IN_VNET + IN_ROWS * VNET_WORDS;
const IN_TARGET = IN_ADDRESS + IN_ROWS * ADDRESS_WORDS;
const OUT_OFFSET = IN_TARGET + IN_ROWS;
const OUT_LENGTH = OUT_OFFSET + OUT_ROWS;
const OUT_ROW = OUT_LENGTH + OUT_ROWS;
const OUT_REMOTE = OUT_ROW + OUT_ROWS;
const OUT_HASH = OUT_REMOTE + OUT_ROWS;
const OUT_TOS = OUT_HASH + OUT_ROWS;
const OUT_TAP = OUT_TOS + OUT_ROWS;
const OUT_ERROR = OUT_TAP + OUT_ROWS;
const REPEAT = OUT_ERROR + OUT_ROWS;
const COLUMN_WORDS = REPEAT + 2 * GUARD_WORDS;

/** What native code must agree with: `native/layout.h` holds the same names and numbers. */
export const LAYOUT = {
  IN_ROWS,
  OUT_ROWS,
  HEADROOM,
  SLAB_BYTES,
  TURN_BYTES,
  MOST_SEGMENTS,
  VNET_WORDS,
  ADDRESS_WORDS,
  TRUNCATED,
  ASKS,
  ANSWERED,
  REPEATED,
  VNET_NEEDS_CSUM,
  VNET_GSO_NONE,
  VNET_GSO_TCPV4,
  VNET_GSO_TCPV6,
  VNET_GSO_UDP_L4,
  VNET_GSO_ECN,
  IN_OFFSET,
  IN_LENGTH,
  IN_SEGMENT,
  IN_FLAGS,
  IN_TOS,
  IN_TAP,
  IN_VNET,
  IN_ADDRESS,
  IN_TARGET,
  OUT_OFFSET,
  OUT_LENGTH,
  OUT_ROW,
  OUT_REMOTE,
  OUT_HASH,
  OUT_TOS,
  OUT_TAP,
  OUT_ERROR,
  REPEAT,
  GUARD_WORDS,
  COLUMN_WORDS,
  VNET_CSUM_START: CSUM_START,
  VNET_CSUM_OFFSET: CSUM_OFFSET,
} as const;

export class Batch {
  /** All columns in one array of int32, as native code sees them. */
  readonly columns: Int32Array;
  /** Frame and datagram bytes. */
  readonly slab: Uint8Array;
  /** The same bytes as `slab`, for codecs. */
  readonly view: DataView;

  /** Where the frame (TAP) or the datagram's payload (underlay) begins in the slab. */
  readonly inOffset: Int32Array;
  readonly inLength: Int32Array;
  /** Underlay: stride of the datagrams in this row; equal to `inLength` where there is only one. */
  readonly inSegment: Int32Array;
  readonly inFlags: Int32Array;
  /** Underlay: TOS or traffic class that it came with, 0 where that is not known. */
  readonly inTos: Int32Array;
  /** TAP: which of a thread's, by its network's index. */
  readonly inTap: Int32Array;
  /** TAP: the frame's virtio_net_hdr in host byte order, VNET_WORDS words a row. */
  readonly inVnet: DataView;
  /** Underlay: who sent it, ADDRESS_WORDS words a row. */
  readonly inAddress: Int32Array;
  /** Of what is REPEATED: the index of the remote or of the network that has it. */
  readonly inTarget: Int32Array;

  readonly outOffset: Int32Array;
  readonly outLength: Int32Array;
  /** Towards the underlay: the in row that this was read as, whose virtio_net_hdr applies. */
  readonly outRow: Int32Array;
  /** Towards the underlay: index into `Remotes`. */
  readonly outRemote: Int32Array;
  /** Towards the underlay: hash of the inner flow, which chooses the outer source port. */
  readonly outHash: Int32Array;
  /** Towards the underlay: TOS or traffic class to send it with. */
  readonly outTos: Int32Array;
  /** Which TAP it goes to, or came from, by its network's index. */
  readonly outTap: Int32Array;
  /** Set by the device that wrote the row: 0, or the errno because of which it was dropped. */
  readonly outError: Int32Array;
  /**
   * That what is decided on the only row may be done again, for others like it: where in the FDB it says so, and what,
   * of the MAC that the decision is by and, of a frame from a TAP, of its sender's (`Fdb.guard`); what others have to be
   * like is in `native/flows.cc`. A device that asks has set the first word to 0, which says nothing.
   */
  readonly repeat: Int32Array;

  constructor() {
    const memory = new SharedArrayBuffer(COLUMN_WORDS * 4 + SLAB_BYTES);
    const column = (word: number, rows: number) => new Int32Array(memory, word * 4, rows);
    this.columns = column(0, COLUMN_WORDS);
    this.slab = new Uint8Array(memory, COLUMN_WORDS * 4, SLAB_BYTES);
    this.view = new DataView(memory, COLUMN_WORDS * 4, SLAB_BYTES);
    this.inOffset = column(IN_OFFSET, IN_ROWS);
    this.inLength = column(IN_LENGTH, IN_ROWS);
    this.inSegment = column(IN_SEGMENT, IN_ROWS);
    this.inFlags = column(IN_FLAGS, IN_ROWS);
    this.inTos = column(IN_TOS, IN_ROWS);
    this.inTap = column(IN_TAP, IN_ROWS);
    this.inVnet = new DataView(memory, IN_VNET * 4, IN_ROWS * VNET_WORDS * 4);
    this.inAddress = column(IN_ADDRESS, IN_ROWS * ADDRESS_WORDS);
    this.inTarget = column(IN_TARGET, IN_ROWS);
    this.outOffset = column(OUT_OFFSET, OUT_ROWS);
    this.outLength = column(OUT_LENGTH, OUT_ROWS);
    this.outRow = column(OUT_ROW, OUT_ROWS);
    this.outRemote = column(OUT_REMOTE, OUT_ROWS);
    this.outHash = column(OUT_HASH, OUT_ROWS);
    this.outTos = column(OUT_TOS, OUT_ROWS);
    this.outTap = column(OUT_TAP, OUT_ROWS);
    this.outError = column(OUT_ERROR, OUT_ROWS);
    this.repeat = column(REPEAT, 2 * GUARD_WORDS);
  }

  /** Whether a frame that was read is to be cut into segments. */
  isSuperFrame(row: number): boolean {
    return this.#gsoType(row) !== VNET_GSO_NONE;
  }

  /** Segments that a super-frame makes; 1 of what is none, or has no such headers, and of what is refused. */
  segments(row: number): number {
    const type = this.#gsoType(row);
    const length = this.inLength[row]!;
    const size = this.inVnet.getUint16(row * VNET_WORDS * 4 + GSO_SIZE, LITTLE_ENDIAN);
    if (type === VNET_GSO_NONE || size === 0) return 1;
    const headers = headersLength(this.view, this.inOffset[row]!, length, type);
    if (headers >= length) return 1;
    const segments = ((length - headers + size - 1) / size) | 0;
    return segments > MOST_SEGMENTS ? 1 : segments;
  }

  /**
   * Bytes of the longest frame that a row leaves as: of itself, or of a segment where it is a
   * super-frame. (Its virtio_net_hdr does not tell how long its headers are, or not reliably.)
   */
  longestFrame(row: number): number {
    const length = this.inLength[row]!;
    const type = this.#gsoType(row);
    if (type === VNET_GSO_NONE) return length;
    const headers = headersLength(this.view, this.inOffset[row]!, length, type);
    const size = this.inVnet.getUint16(row * VNET_WORDS * 4 + GSO_SIZE, LITTLE_ENDIAN);
    return Math.min(length, headers + size);
  }

  /** Takes the VLAN tag from a frame that was read: what is before it moves, and its virtio_net_hdr follows. */
  removeTag(row: number): void {
    const { inVnet } = this;
    const offset = this.inOffset[row]!;
    ethernet.removeTag(this.view, offset);
    this.inOffset[row] = offset + ethernet.TAG;
    this.inLength[row] = this.inLength[row]! - ethernet.TAG;
    const start = row * VNET_WORDS * 4 + CSUM_START;
    if (!this.needsChecksum(row)) return;
    inVnet.setUint16(start, inVnet.getUint16(start, LITTLE_ENDIAN) - ethernet.TAG, LITTLE_ENDIAN);
  }

  #gsoType(row: number): number {
    return this.inVnet.getUint8(row * VNET_WORDS * 4 + GSO_TYPE) & ~VNET_GSO_ECN;
  }

  /** Bytes of payload in a segment of a super-frame that was read; 0 where it is none. */
  segmentBytes(row: number): number {
    const vnet = row * VNET_WORDS * 4;
    if (this.inVnet.getUint8(vnet + GSO_TYPE) === VNET_GSO_NONE) return 0;
    return this.inVnet.getUint16(vnet + GSO_SIZE, LITTLE_ENDIAN);
  }

  /** Whether the checksum of a frame that was read is left to us still. */
  needsChecksum(row: number): boolean {
    return (this.inVnet.getUint8(row * VNET_WORDS * 4) & VNET_NEEDS_CSUM) !== 0;
  }

  /**
   * Completes the checksum of a frame that was read, if its virtio_net_hdr says that it is partial.
   * The flag is cleared: one in row may leave many times, and summing a completed checksum would
   * spoil it. False when the header points outside of the frame, or `row` outside of the columns.
   * (Native code does this itself.)
   */
  completeChecksum(row: number): boolean {
    if (row < 0 || row >= IN_ROWS) return false;
    const vnet = row * VNET_WORDS * 4;
    const flags = this.inVnet.getUint8(vnet);
    if ((flags & VNET_NEEDS_CSUM) === 0) return true;
    const start = this.inVnet.getUint16(vnet + CSUM_START, LITTLE_ENDIAN);
    const offset = this.inVnet.getUint16(vnet + CSUM_OFFSET, LITTLE_ENDIAN);
    const frame = this.inOffset[row]!;
    const length = this.inLength[row]!;
    if (frame < 0 || length < 0 || frame + length > SLAB_BYTES) return false;
    if (!completeChecksum(this.view, frame, length, start, offset)) return false;
    this.inVnet.setUint8(vnet, flags & ~VNET_NEEDS_CSUM);
    return true;
  }
}

/** Bytes before the payload of a super-frame; all of it where it has no such headers. */
function headersLength(view: DataView, frame: number, length: number, type: number): number {
  const network = ethernet.networkOffset(view, frame, length);
  if (network < 0) return length;
  const upper = ip.upperLayer(view, network, frame + length - network);
  if (upper === ip.NO_UPPER_LAYER) return length;
  const transport = network + ip.upperOffset(upper);
  if (type === VNET_GSO_UDP_L4) return transport + UDP_HEADER - frame;
  const header = tcp.headerLength(view, transport, frame + length - transport);
  return header === 0 ? length : transport + header - frame;
}
