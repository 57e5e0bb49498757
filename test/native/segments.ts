/** Segments of a TCP or UDP flow and their super-frame, built by hand: what offloads are judged by. */
import {
  VNET_GSO_ECN,
  VNET_GSO_TCPV4,
  VNET_GSO_TCPV6,
  VNET_GSO_UDP_L4,
  VNET_NEEDS_CSUM,
} from "../../src/batch.ts";
import {
  bytes,
  documentationIpv4,
  documentationIpv6,
  extensionHeader,
  MAC_A,
  MAC_B,
  naiveChecksum,
  u16,
} from "../unit/wire/frames.ts";

export const FIN = 0x01;
export const SYN = 0x02;
export const RST = 0x04;
export const PSH = 0x08;
export const ACK = 0x10;
export const URG = 0x20;
export const ECE = 0x40;
export const CWR = 0x80;

export interface Segment {
  v6: boolean;
  tcp: boolean;
  port: number;
  tos: number;
  ttl: number;
  flowLabel: number;
  df: boolean;
  id: number;
  sequence: number;
  ack: number;
  window: number;
  flags: number;
  options: number[];
  tags: number[];
  ipOptions: number[];
  /** Bytes of a hop-by-hop options header, a multiple of 8; 0: without. */
  extension: number;
  fragment: number;
  payload: Uint8Array;
  destination: number[];
}

export const PLAIN: Segment = {
  v6: false,
  tcp: true,
  port: 40_000,
  tos: 0,
  ttl: 64,
  flowLabel: 0,
  df: true,
  id: 0,
  sequence: 1000,
  ack: 7,
  window: 501,
  flags: ACK,
  options: [],
  tags: [],
  ipOptions: [],
  extension: 0,
  fragment: 0,
  payload: new Uint8Array(100).fill(0x5a),
  destination: MAC_B,
};

function u32(value: number): number[] {
  return [...u16(value >>> 16), ...u16(value & 0xffff)];
}

function transportOf(s: Segment): Uint8Array {
  if (!s.tcp) return bytes(u16(s.port), u16(443), u16(8 + s.payload.length), [0, 0], s.payload);
  const offset = (20 + s.options.length) << 2;
  const fixed = [...u16(s.port), ...u16(443), ...u32(s.sequence), ...u32(s.ack), offset, s.flags];
  return bytes(fixed, u16(s.window), [0, 0, 0, 0], s.options, s.payload);
}

/** A whole frame. A partial checksum is what the kernel leaves behind: the pseudo header's sum. */
export function frameOf(
  given: Partial<Segment>,
  checksum: "whole" | "partial" = "whole",
): Uint8Array {
  const s = { ...PLAIN, ...given };
  const transport = transportOf(s);
  const field = s.tcp ? 16 : 6;
  const protocol = s.tcp ? 6 : 17;
  const addresses = s.v6
    ? [...documentationIpv6(1), ...documentationIpv6(2)]
    : [...documentationIpv4(1), ...documentationIpv4(2)];
  const pseudo = bytes(addresses, u32(transport.length), [0, 0, 0, protocol]);
  const sum =
    checksum === "partial"
      ? ~naiveChecksum(pseudo) & 0xffff
      : naiveChecksum(bytes(pseudo, transport)) || (s.tcp ? 0 : 0xffff);
  transport.set(u16(sum), field);
  const ethernet = bytes(s.destination, MAC_A, s.tags, u16(s.v6 ? 0x86dd : 0x0800));
  if (s.v6) {
    const extension = s.extension ? extensionHeader(protocol, s.extension / 8 - 1) : [];
    const length = extension.length + transport.length;
    const first = (0x60000000 | (s.tos << 20) | s.flowLabel) >>> 0;
    const next = s.extension ? 0 : protocol;
    const header = bytes(u32(first), u16(length), [next, s.ttl], addresses, extension);
    return bytes(ethernet, header, transport);
  }
  const headerLength = 20 + s.ipOptions.length;
  const header = bytes(
    [0x40 | (headerLength >> 2), s.tos],
    u16(headerLength + transport.length),
    u16(s.id),
    u16((s.df ? 0x4000 : 0) | s.fragment),
    [s.ttl, protocol, 0, 0],
    addresses,
    s.ipOptions,
  );
  header.set(u16(naiveChecksum(header)), 10);
  return bytes(ethernet, header, transport);
}

export function vnetOf(given: Partial<Segment>, size: number): Buffer {
  const s = { ...PLAIN, ...given };
  const network = 14 + s.tags.length;
  const start = network + (s.v6 ? 40 + s.extension : 20 + s.ipOptions.length);
  const kind = s.tcp ? (s.v6 ? VNET_GSO_TCPV6 : VNET_GSO_TCPV4) : VNET_GSO_UDP_L4;
  const vnet = Buffer.alloc(10);
  vnet[0] = VNET_NEEDS_CSUM;
  vnet[1] = s.tcp && (s.flags & CWR) !== 0 ? kind | VNET_GSO_ECN : kind;
  const hdrLen = start + (s.tcp ? 20 + s.options.length : 8);
  for (const [word, value] of [hdrLen, size, start, s.tcp ? 16 : 6].entries()) {
    if (new Uint8Array(Uint16Array.of(1).buffer)[0] === 1) vnet.writeUInt16LE(value, 2 + 2 * word);
    else vnet.writeUInt16BE(value, 2 + 2 * word);
  }
  return vnet;
}

/** The segments that a sender without offload would have sent. */
export function segmentsOf(given: Partial<Segment>, size: number): Uint8Array[] {
  const s = { ...PLAIN, ...given };
  const count = Math.ceil(s.payload.length / size);
  return Array.from({ length: count }, (_, at) => {
    let flags = s.flags;
    if (at > 0) flags &= ~CWR;
    if (at < count - 1) flags &= ~(FIN | PSH);
    return frameOf({
      ...s,
      flags,
      id: (s.id + at) & 0xffff,
      sequence: (s.sequence + at * size) >>> 0,
      payload: s.payload.subarray(at * size, (at + 1) * size),
    });
  });
}
