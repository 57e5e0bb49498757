/**
 * The capture file format pcapng (draft-ietf-opsawg-pcapng), as far as a capture here needs it: one
 * section, little-endian, time in microseconds.
 *
 *     section header          who wrote it
 *     interface description   a network; what is captured in it names it by its number, from 0
 *     enhanced packet         a frame: when, which way, what became of it
 *     interface statistics    what was captured and what was missed; the last one of an interface holds
 *
 * Every block says its length at both ends, so a stream can be cut into blocks without understanding
 * them. Unlike the other codecs of this directory these allocate: no frame waits for them.
 */

const SECTION_HEADER = 0x0a0d0d0a;
const BYTE_ORDER_MAGIC = 0x1a2b3c4d;
const INTERFACE_DESCRIPTION = 1;
const INTERFACE_STATISTICS = 5;
const ENHANCED_PACKET = 6;

const OPT_COMMENT = 1;
const SHB_USERAPPL = 4;
const IF_NAME = 2;
const IF_DESCRIPTION = 3;
const EPB_FLAGS = 2;
const ISB_IFRECV = 4;
const ISB_IFDROP = 5;
const ISB_USRDELIV = 8;

/** Link types: https://www.tcpdump.org/linktypes.html */
export const LINKTYPE_ETHERNET = 1;
/** What a dissector gets, behind tags that name it: for bytes that are no frame of any link. */
export const LINKTYPE_UPPER_PDU = 252;

/** The direction in epb_flags. */
export const INBOUND = 1;
export const OUTBOUND = 2;

/** What frames every block: type and length before, length after. */
const FRAMING = 12;
/** Type and length: as much as cutting needs to see. */
const BLOCK_START = 8;
/** No block that is written here is longer than a frame of 64 KiB and a comment. */
const LONGEST_BLOCK = 1 << 20;

type Option = readonly [code: number, value: Uint8Array];

export function sectionHeader(application: string): Buffer {
  const body = Buffer.alloc(16);
  body.writeUInt32LE(BYTE_ORDER_MAGIC, 0);
  body.writeUInt16LE(1, 4); // version 1.0
  body.fill(0xff, 8); // how long the section is: nobody knows
  return block(SECTION_HEADER, body, [[SHB_USERAPPL, Buffer.from(application)]]);
}

/** The first one written is interface 0, and so on. */
export function interfaceDescription(described: {
  name: string;
  description: string;
  linkType: number;
  /** 0: frames are captured whole. */
  snaplen: number;
}): Buffer {
  const body = Buffer.alloc(8);
  body.writeUInt16LE(described.linkType, 0);
  body.writeUInt32LE(described.snaplen, 4);
  return block(INTERFACE_DESCRIPTION, body, [
    [IF_NAME, Buffer.from(described.name)],
    [IF_DESCRIPTION, Buffer.from(described.description)],
  ]);
}

export function packet(captured: {
  interface: number;
  /** Milliseconds since 1970, with a fraction. */
  timeMs: number;
  bytes: Uint8Array;
  /** Bytes it had before it was cut. */
  length: number;
  direction: typeof INBOUND | typeof OUTBOUND;
  comment: string;
}): Buffer {
  const body = Buffer.alloc(20 + padded(captured.bytes.length));
  body.writeUInt32LE(captured.interface, 0);
  writeTime(body, 4, captured.timeMs);
  body.writeUInt32LE(captured.bytes.length, 12);
  body.writeUInt32LE(captured.length, 16);
  body.set(captured.bytes, 20);
  const flags = Buffer.alloc(4);
  flags.writeUInt32LE(captured.direction);
  return block(ENHANCED_PACKET, body, [
    [EPB_FLAGS, flags],
    [OPT_COMMENT, Buffer.from(captured.comment)],
  ]);
}

export function statistics(counted: {
  interface: number;
  timeMs: number;
  /** Frames that matched, those of them that were missed, and those that are in the file. */
  received: number;
  missed: number;
  captured: number;
}): Buffer {
  const body = Buffer.alloc(12);
  body.writeUInt32LE(counted.interface, 0);
  writeTime(body, 4, counted.timeMs);
  return block(INTERFACE_STATISTICS, body, [
    [ISB_IFRECV, count(counted.received)],
    [ISB_IFDROP, count(counted.missed)],
    [ISB_USRDELIV, count(counted.captured)],
  ]);
}

/**
 * A datagram's payload as LINKTYPE_UPPER_PDU has it, to be dissected by UDP port: tags that say so,
 * then the bytes (wireshark, epan/exported_pdu.h; tags are big-endian).
 */
export function udpPayload(port: number, bytes: Uint8Array): Buffer {
  const table = Buffer.from("udp.port");
  const tags = Buffer.alloc(4 + table.length + 4 + 4 + 4);
  tags.writeUInt16BE(14, 0); // EXP_PDU_TAG_DISSECTOR_TABLE_NAME
  tags.writeUInt16BE(table.length, 2);
  tags.set(table, 4);
  tags.writeUInt16BE(32, 12); // EXP_PDU_TAG_DISSECTOR_TABLE_NAME_NUM_VAL
  tags.writeUInt16BE(4, 14);
  tags.writeUInt32BE(port, 16);
  return Buffer.concat([tags, bytes]); // the last four bytes of the tags are EXP_PDU_TAG_END_OF_OPT
}

/** A block that was read. */
export interface Block {
  readonly bytes: Buffer;
  readonly type: "section" | "interface" | "packet" | "statistics" | "other";
  /** Of a packet, and of statistics. */
  readonly interface: number;
  /** Of statistics. */
  readonly missed: number;
}

/**
 * Cuts what has come of a stream into blocks; the rest is the beginning of a block that has yet to
 * come. Throws RangeError where the bytes are no pcapng of ours.
 */
export function cut(stream: Buffer): { blocks: Block[]; rest: Buffer } {
  const blocks: Block[] = [];
  let at = 0;
  while (stream.length - at >= BLOCK_START) {
    const length = stream.readUInt32LE(at + 4);
    if (length < FRAMING || length > LONGEST_BLOCK || length % 4 !== 0) {
      throw new RangeError(`a block of ${length} bytes at byte ${at} of a capture`);
    }
    if (stream.length - at < length) break;
    blocks.push(read(stream.subarray(at, at + length)));
    at += length;
  }
  return { blocks, rest: stream.subarray(at) };
}

function read(bytes: Buffer): Block {
  const number = bytes.readUInt32LE(8);
  switch (bytes.readUInt32LE(0)) {
    case SECTION_HEADER:
      return { bytes, type: "section", interface: -1, missed: 0 };
    case INTERFACE_DESCRIPTION:
      return { bytes, type: "interface", interface: -1, missed: 0 };
    case ENHANCED_PACKET:
      return { bytes, type: "packet", interface: number, missed: 0 };
    case INTERFACE_STATISTICS:
      return { bytes, type: "statistics", interface: number, missed: missedIn(bytes) };
    default:
      return { bytes, type: "other", interface: -1, missed: 0 };
  }
}

function missedIn(bytes: Buffer): number {
  let at = 20;
  while (at + 4 <= bytes.length - 4) {
    const code = bytes.readUInt16LE(at);
    if (code === ISB_IFDROP) return Number(bytes.readBigUInt64LE(at + 4));
    at += 4 + padded(bytes.readUInt16LE(at + 2));
  }
  return 0;
}

function block(type: number, body: Buffer, options: readonly Option[]): Buffer {
  const size = options.reduce((sum, [, value]) => sum + 4 + padded(value.length), 4);
  const length = FRAMING + body.length + size;
  const bytes = Buffer.alloc(length); // opt_endofopt is zeros
  bytes.writeUInt32LE(type, 0);
  bytes.writeUInt32LE(length, 4);
  bytes.set(body, 8);
  let at = 8 + body.length;
  for (const [code, value] of options) {
    bytes.writeUInt16LE(code, at);
    bytes.writeUInt16LE(value.length, at + 2);
    bytes.set(value, at + 4);
    at += 4 + padded(value.length);
  }
  bytes.writeUInt32LE(length, length - 4);
  return bytes;
}

/** The high word first, unlike any other number of 64 bits in this format. */
function writeTime(body: Buffer, at: number, timeMs: number): void {
  const us = Math.round(timeMs * 1000);
  body.writeUInt32LE(Math.floor(us / 2 ** 32), at);
  body.writeUInt32LE(us % 2 ** 32, at + 4);
}

function count(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

function padded(length: number): number {
  return (length + 3) & ~3;
}
