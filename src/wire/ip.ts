/**
 * IPv4 (RFC 791) and IPv6 (RFC 8200) headers as far as a switch needs them: to hash a flow, to sum
 * a checksum, to see that a packet is too big. A switch does not validate for a host: header
 * checksums, options and total lengths are not looked at.
 *
 * `isIpv4` and `isIpv6` are the bounds checks: all other functions read a header that one of them
 * has seen to be whole. `ip` is the offset of the header, `length` what the slab holds from there
 * to the end of the frame. It may exceed what the header says (Ethernet pads short frames), and it
 * may fall short of it.
 */
import * as ethernet from "./ethernet.ts";

/** Bytes of an IPv4 header without options. */
export const IPV4_HEADER = 20;
/** Bytes of the fixed IPv6 header. */
export const IPV6_HEADER = 40;

/** Where an IPv4 header's checksum lies. */
export const IPV4_CHECKSUM = 10;
/** Where the addresses lie in a header; the destination follows the source. */
export const IPV4_SOURCE = 12;
export const IPV4_DESTINATION = 16;
export const IPV6_SOURCE = 8;
export const IPV6_DESTINATION = 24;

export const PROTOCOL_TCP = 6;
export const PROTOCOL_UDP = 17;
export const PROTOCOL_ICMPV6 = 58;
export const PROTOCOL_SCTP = 132;

/** Where the IP header of a frame begins, by its ethertype, or −1 where it carries none. */
export function packetIn(view: DataView, frame: number, length: number): number {
  const at = ethernet.networkOffset(view, frame, length);
  if (at < 0) return -1;
  const rest = frame + length - at;
  const type = ethernet.etherType(view, at);
  if (type === ethernet.ETHERTYPE_IPV4) return isIpv4(view, at, rest) ? at : -1;
  if (type === ethernet.ETHERTYPE_IPV6) return isIpv6(view, at, rest) ? at : -1;
  return -1;
}

/** 4, 6, or garbage. Reads one byte. */
export function version(view: DataView, ip: number): number {
  return view.getUint8(ip) >>> 4;
}

/** TOS of IPv4, traffic class of IPv6: DSCP and ECN in one byte. */
export function tos(view: DataView, ip: number): number {
  if (version(view, ip) === 4) return view.getUint8(ip + 1);
  return (view.getUint16(ip) >>> 4) & 0xff;
}

/** Sets TOS or traffic class; IPv4's checksum is the caller's to adjust. */
export function setTos(view: DataView, ip: number, tos: number): void {
  if (version(view, ip) === 4) view.setUint8(ip + 1, tos);
  else view.setUint16(ip, (view.getUint16(ip) & 0xf00f) | (tos << 4));
}

/** Whether a whole IPv4 header, options included, lies in the `length` bytes at `ip`. */
export function isIpv4(view: DataView, ip: number, length: number): boolean {
  if (length < IPV4_HEADER || version(view, ip) !== 4) return false;
  const header = ipv4HeaderLength(view, ip);
  return header >= IPV4_HEADER && header <= length;
}

/** Bytes of the header, options included. */
export function ipv4HeaderLength(view: DataView, ip: number): number {
  return (view.getUint8(ip) & 0x0f) << 2;
}

export function ipv4Protocol(view: DataView, ip: number): number {
  return view.getUint8(ip + 9);
}

/** Whether this is a fragment, the first one included: more follow, or it has an offset. */
export function ipv4IsFragment(view: DataView, ip: number): boolean {
  return (view.getUint16(ip + 6) & 0x3fff) !== 0;
}

/** Whether a fragment is the first, or this is none. */
export function ipv4IsFirst(view: DataView, ip: number): boolean {
  return (view.getUint16(ip + 6) & 0x1fff) === 0;
}

/** What the fragments of a datagram have in common. */
export function ipv4Identification(view: DataView, ip: number): number {
  return view.getUint16(ip + 4);
}

/** The source address as a signed int32. */
export function ipv4Source(view: DataView, ip: number): number {
  return view.getInt32(ip + IPV4_SOURCE);
}

/** The destination address as a signed int32. */
export function ipv4Destination(view: DataView, ip: number): number {
  return view.getInt32(ip + IPV4_DESTINATION);
}

/** Whether a fixed IPv6 header lies in the `length` bytes at `ip`. */
export function isIpv6(view: DataView, ip: number, length: number): boolean {
  return length >= IPV6_HEADER && version(view, ip) === 6;
}

/** Bytes behind the fixed header as it claims; 0 in a super-frame over 64 KiB. */
export function ipv6PayloadLength(view: DataView, ip: number): number {
  return view.getUint16(ip + 4);
}

/** Protocol number of what follows the fixed header: often, but not always, the upper layer. */
export function ipv6NextHeader(view: DataView, ip: number): number {
  return view.getUint8(ip + 6);
}

export function ipv6HopLimit(view: DataView, ip: number): number {
  return view.getUint8(ip + 7);
}

const HOP_BY_HOP = 0;
const ROUTING = 43;
/** What `upperProtocol` is for a fragment. */
export const IPV6_FRAGMENT = 44;
/** Bytes of a fragment header. */
export const IPV6_FRAGMENT_HEADER = 8;
const AUTHENTICATION = 51;
const DESTINATION_OPTIONS = 60;
const MOBILITY = 135;
const HOST_IDENTITY = 139;
const SHIM6 = 140;

/** Extension headers that are walked. RFC 8200 section 4.1 foresees seven in the longest chain. */
const MAX_EXTENSION_HEADERS = 8;
/** All that are walked are at least this long, and a fragment header is exactly this long. */
const MIN_EXTENSION_HEADER = 8;

/** `ipv6UpperLayer` found none: the chain is cut short or longer than is worth following. */
export const NO_UPPER_LAYER = -1;

/**
 * Walks the extension headers and says what lies behind them and where: read the answer with
 * `upperProtocol` and `upperOffset`, or it is NO_UPPER_LAYER. (One integer, because a pair would
 * be an object.)
 *
 * A fragment is not looked into: its protocol is IPV6_FRAGMENT and the offset that of the fragment
 * header. Of all fragments only the first knows what is behind, and their next-header fields may
 * even differ (RFC 8200 section 4.5). An atomic fragment (RFC 6946) is a whole packet and is walked
 * through. ESP, an unknown protocol and "no next header" end the walk like any upper layer.
 */
export function ipv6UpperLayer(view: DataView, ip: number, length: number): number {
  let protocol = ipv6NextHeader(view, ip);
  let offset = IPV6_HEADER;
  for (let headers = 0; headers <= MAX_EXTENSION_HEADERS && offset <= length; headers++) {
    if (!isExtension(protocol)) return (offset << 8) | protocol;
    if (offset + MIN_EXTENSION_HEADER > length) return NO_UPPER_LAYER;
    const header = ip + offset;
    if (protocol === IPV6_FRAGMENT && !isAtomic(view, header)) return (offset << 8) | protocol;
    offset += extensionLength(view, header, protocol);
    protocol = view.getUint8(header);
  }
  return NO_UPPER_LAYER;
}

/** The same of an IPv4 header too, or NO_UPPER_LAYER; a fragment of IPv4 is not told apart. */
export function upperLayer(view: DataView, ip: number, length: number): number {
  if (isIpv4(view, ip, length)) return (ipv4HeaderLength(view, ip) << 8) | ipv4Protocol(view, ip);
  return isIpv6(view, ip, length) ? ipv6UpperLayer(view, ip, length) : NO_UPPER_LAYER;
}

/** Whether an authentication header is among those before `end`, which `ipv6UpperLayer` has walked. */
export function ipv6IsAuthenticated(view: DataView, ip: number, end: number): boolean {
  let protocol = ipv6NextHeader(view, ip);
  for (let header = ip + IPV6_HEADER; header < end; ) {
    if (protocol === AUTHENTICATION) return true;
    const next = view.getUint8(header);
    header += extensionLength(view, header, protocol);
    protocol = next;
  }
  return false;
}

/** Protocol number in an answer of `ipv6UpperLayer`. */
export function upperProtocol(upper: number): number {
  return upper & 0xff;
}

/** Offset from the start of the IPv6 header in an answer of `ipv6UpperLayer`; at most `length`. */
export function upperOffset(upper: number): number {
  return upper >> 8;
}

function isExtension(protocol: number): boolean {
  switch (protocol) {
    case HOP_BY_HOP:
    case ROUTING:
    case IPV6_FRAGMENT:
    case AUTHENTICATION:
    case DESTINATION_OPTIONS:
    case MOBILITY:
    case HOST_IDENTITY:
    case SHIM6:
      return true;
    default:
      return false;
  }
}

/** Whether a fragment, by its fragment header, is the first. */
export function ipv6IsFirst(view: DataView, fragmentHeader: number): boolean {
  return (view.getUint16(fragmentHeader + 2) & 0xfff8) === 0;
}

/** The protocol that is behind the fragment header of a first fragment. */
export function ipv6Behind(view: DataView, fragmentHeader: number): number {
  return view.getUint8(fragmentHeader);
}

/** What the fragments of a datagram have in common, by a fragment header. */
export function ipv6Identification(view: DataView, fragmentHeader: number): number {
  return view.getInt32(fragmentHeader + 4);
}

function isAtomic(view: DataView, fragmentHeader: number): boolean {
  return (view.getUint16(fragmentHeader + 2) & 0xfff9) === 0;
}

/** Bytes of an extension header. Its own length field counts in three ways. */
function extensionLength(view: DataView, header: number, protocol: number): number {
  if (protocol === IPV6_FRAGMENT) return IPV6_FRAGMENT_HEADER; // the field is reserved
  const units = view.getUint8(header + 1);
  if (protocol === AUTHENTICATION) return (units + 2) << 2; // RFC 4302 section 2.2
  return (units + 1) << 3; // RFC 6564 section 4
}
