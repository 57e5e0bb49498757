/**
 * Frames to test codecs with, built from bytes and never with the code under test; an arbitrary of
 * each kind; frames that Linux 6.18 sent over a veth pair; and a checksum that is slow and plain.
 *
 * Addresses are for documentation: RFC 5737, RFC 3849, RFC 7042.
 */
import fc from "fast-check";

export function bytes(...parts: (number | number[] | Uint8Array)[]): Uint8Array {
  return Uint8Array.from(parts.flatMap((part) => (typeof part === "number" ? [part] : [...part])));
}

export function u16(value: number): number[] {
  return [value >> 8, value & 0xff];
}

export function hex(digits: string): Uint8Array {
  return Uint8Array.from(Buffer.from(digits.replace(/\s/g, ""), "hex"));
}

/** 00:00:5e:00:53:xx */
export function documentationMac(last: number): number[] {
  return [0x00, 0x00, 0x5e, 0x00, 0x53, last];
}

/** 192.0.2.x */
export function documentationIpv4(last: number): number[] {
  return [192, 0, 2, last];
}

/** 2001:db8::x */
export function documentationIpv6(last: number): number[] {
  return [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
}

export const ALL_NODES = [0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
export const UNSPECIFIED: number[] = Array(16).fill(0);

export const MAC_A = documentationMac(1);
export const MAC_B = documentationMac(2);

/** An Ethernet frame; `tags` are the four bytes of each VLAN tag. */
export function ethernetFrame(frame: {
  destination?: number[];
  source?: number[];
  tags?: number[][];
  type: number;
  payload: Uint8Array;
}): Uint8Array {
  const { destination = MAC_B, source = MAC_A, tags = [], type, payload } = frame;
  return bytes(destination, source, tags.flat(), u16(type), payload);
}

export const CUSTOMER_TAG = [0x81, 0x00, 0x00, 0x64];
export const SERVICE_TAG = [0x88, 0xa8, 0x20, 0x07];

export function ipv4Packet(packet: {
  source?: number[];
  destination?: number[];
  protocol: number;
  payload: Uint8Array;
  options?: number[];
  id?: number;
  /** The 16 bits of flags and fragment offset. */
  fragment?: number;
}): Uint8Array {
  const { source = documentationIpv4(1), destination = documentationIpv4(2) } = packet;
  const { protocol, payload, options = [], id = 0, fragment = 0x4000 } = packet;
  const headerLength = 20 + options.length;
  const header = bytes(
    [0x40 | (headerLength / 4), 0],
    u16(headerLength + payload.length),
    u16(id),
    u16(fragment),
    [64, protocol, 0, 0],
    source,
    destination,
    options,
  );
  header.set(u16(naiveChecksum(header)), 10);
  return bytes(header, payload);
}

export function ipv6Packet(packet: {
  source?: number[];
  destination?: number[];
  next: number;
  hopLimit?: number;
  payload: Uint8Array;
}): Uint8Array {
  const { source = documentationIpv6(1), destination = documentationIpv6(2) } = packet;
  const { next, hopLimit = 64, payload } = packet;
  return bytes(
    [0x60, 0, 0, 0],
    u16(payload.length),
    [next, hopLimit],
    source,
    destination,
    payload,
  );
}

/** An extension header of the common kind (RFC 6564) with `units` times 8 bytes behind the first. */
export function extensionHeader(next: number, units = 0): number[] {
  return [next, units, ...Array(6 + units * 8).fill(0xee)];
}

export function fragmentHeader(next: number, offset: number, more: boolean): number[] {
  return [next, 0, ...u16((offset & 0xfff8) | (more ? 1 : 0)), 0xde, 0xad, 0xbe, 0xef];
}

/** An authentication header (RFC 4302) with an integrity check value of 12 bytes. */
export function authenticationHeader(next: number): number[] {
  return [next, 4, ...Array(22).fill(0xaa)];
}

/** Ports, and behind them bytes that are no part of the flow. */
export function ports(source: number, destination: number, rest = 16): Uint8Array {
  return bytes(u16(source), u16(destination), Array(rest).fill(0x5a));
}

/** RFC 1071 to the letter: add 16-bit words, then add the carries, then complement. */
export function naiveSum(data: Uint8Array): number {
  let total = 0n;
  for (let i = 0; i < data.length; i += 2) {
    total += (BigInt(data[i]!) << 8n) | BigInt(data[i + 1] ?? 0);
  }
  while (total > 0xffffn) total = (total & 0xffffn) + (total >> 16n);
  return Number(total);
}

export function naiveChecksum(data: Uint8Array): number {
  return ~naiveSum(data) & 0xffff;
}

/** Bytes on both sides of a placed frame, that no reader may look at and no writer may touch. */
export const MARGIN = 96;

/**
 * The frame in a slab of shared memory among bytes of `poison`, at an offset that is aligned to
 * nothing unless told otherwise.
 */
export function place(frame: Uint8Array, poison = 0xa5, shift = 1): { view: DataView; at: number } {
  const at = MARGIN + shift;
  const slab = new Uint8Array(new SharedArrayBuffer(at + frame.length + MARGIN)).fill(poison);
  slab.set(frame, at);
  return { view: new DataView(slab.buffer), at };
}

/** A view that ends where the frame ends, and begins where it begins: reading outside throws. */
export function fence(frame: Uint8Array): DataView {
  const { view, at } = place(frame);
  return new DataView(view.buffer, at, frame.length);
}

export function read(view: DataView, at: number, length: number): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset + at, length).slice();
}

/** All that is in the view but the `length` bytes at `at`. */
export function surroundings(view: DataView, at: number, length: number): Uint8Array {
  const end = at + length;
  return bytes(read(view, 0, at), read(view, end, view.byteLength - end));
}

export const anyMac = fc.uint8Array({ minLength: 6, maxLength: 6 }).map((mac) => [...mac]);
export const anyPort = fc.integer({ min: 0, max: 0xffff });
export const anyInt32 = fc.integer({ min: -0x8000_0000, max: 0x7fff_ffff });
export const anyIpv4 = fc.uint8Array({ minLength: 4, maxLength: 4 }).map((ip) => [...ip]);
export const anyIpv6 = fc.uint8Array({ minLength: 16, maxLength: 16 }).map((ip) => [...ip]);
export const anyTags = fc.constantFrom<number[][][]>(
  [],
  [CUSTOMER_TAG],
  [SERVICE_TAG],
  [SERVICE_TAG, CUSTOMER_TAG],
);

/** Who asks for 192.0.2.2 and 2001:db8::2, and what their owner answers, as Linux 6.18 does. */
export const LINUX_ARP_REQUEST = hex(`
  ffffffffffff 00005e005301 0806 0001 0800 06 04 0001
  00005e005301 c0000201 000000000000 c0000202`);
export const LINUX_ARP_REPLY = hex(`
  00005e005301 00005e005302 0806 0001 0800 06 04 0002
  00005e005302 c0000202 00005e005301 c0000201`);
export const LINUX_SOLICITATION = hex(`
  3333ff000002 00005e005301 86dd 60000000 0020 3a ff
  20010db8000000000000000000000001 ff0200000000000000000001ff000002
  87 00 6d26 00000000 20010db8000000000000000000000002 01 01 00005e005301`);
export const LINUX_ADVERTISEMENT = hex(`
  00005e005301 00005e005302 86dd 60000000 0020 3a ff
  20010db8000000000000000000000002 20010db8000000000000000000000001
  88 00 db70 60000000 20010db8000000000000000000000002 02 01 00005e005302`);
/** Duplicate address detection, with the nonce option of RFC 7527. */
export const LINUX_DAD = hex(`
  3333ff000002 00005e005302 86dd 60000000 0020 3a ff
  00000000000000000000000000000000 ff0200000000000000000001ff000002
  87 00 1b06 00000000 20010db8000000000000000000000002 0e 01 9ebefcca8852`);
/** UDP whose checksum is partial, as a TAP hands it over with NEEDS_CSUM. */
export const LINUX_PARTIAL_UDP4 = hex(`
  00005e005302 00005e005301 0800 45000023f3b840004011c30d c0000201 c0000202
  8908 0009 000f 8424 7061727469616c`);
export const LINUX_PARTIAL_UDP6 = hex(`
  00005e005302 00005e005301 86dd 600c80e1 0010 11 40
  20010db8000000000000000000000001 20010db8000000000000000000000002
  8eb4 0009 0010 5b96 7061727469616c21`);
/** An echo request, whose checksums are complete. */
export const LINUX_PING4 = hex(`
  00005e005302 00005e005301 0800 4500005494d24000400121d3 c0000201 c0000202
  0800 2bdb 1bcd 0001 fe0f056b00000000ed08010000000000
  101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f3031323334353637`);
