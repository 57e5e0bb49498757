/**
 * What a bridge that leads through a tunnel says of a frame that is too big: ICMP "fragmentation
 * needed" (RFC 792, RFC 1191) and ICMPv6 "packet too big" (RFC 4443), as Linux says it in
 * skb_tunnel_check_pmtu() (net/ipv4/ip_tunnel_core.c).
 *
 *     Ethernet   as the frame's, MAC addresses exchanged, VLAN tags kept
 *     IP         from the packet's destination to its source: the tunnel has no address of its own,
 *                and this one every station accepts answers from
 *     ICMP       type 3 code 4, or type 2; MTU; as much of the packet as 576 or 1280 bytes hold
 *
 * Never answered, by RFC 1122 3.2.2 and RFC 4443 2.4 (e): what is itself an ICMP error, what goes to
 * several, what comes from no single station, fragments but the first. Of IPv6, what is said to be
 * carried is never less than 1280 bytes: a sender would not heed it.
 *
 * Three differences to Linux. It answers IPv4 only where DF is set, because it has the outer packet
 * fragmented otherwise; here little is fragmented (RFC 7348, 4.3), so those are answered too, and
 * Linux and others as senders do heed it, by fragmenting before they send. It does not answer below
 * 576 and 1280 bytes, for the same reason. And the answer's TTL is 64 instead of the packet's, which
 * may have come from further than it had left to go.
 */
import { checksum, ipv6PseudoHeaderSum, writeIpv4HeaderChecksum } from "./checksum.ts";
import * as ethernet from "./ethernet.ts";
import * as ip from "./ip.ts";

/** Bytes of the longest answer: an IPv6 packet of 1280 behind two VLAN tags. */
export const LONGEST_ANSWER = ethernet.HEADER + 2 * ethernet.TAG + 1280;

/** Type, code, checksum, and a word that holds the MTU. */
const HEADER = 8;
const CHECKSUM = 2;
const MTU = 4;

/** RFC 1812 4.3.2.3 and RFC 4443 2.4 (c): an answer is no longer than every path carries. */
const LONGEST_IPV4 = 576;
const LONGEST_IPV6 = 1280;
const LEAST_IPV4_MTU = 68;
const LEAST_IPV6_MTU = 1280;
const HOP_LIMIT = 64;

const DESTINATION_UNREACHABLE = 3;
const FRAGMENTATION_NEEDED = 4;
const PACKET_TOO_BIG = 2;
const DONT_FRAGMENT = 0x4000;
const PROTOCOL_ICMP = 1;

const NOT_TO_BE_ANSWERED = 0;

/**
 * Writes the answer to the frame in [frame, frame + length) of `view` to `answer` of `to`, where there
 * is room for LONGEST_ANSWER and nothing of the frame. `room` is the longest frame that the path carries.
 * Returns the length of the answer, 0 where there is to be none.
 */
export function writeTooBig(
  view: DataView,
  frame: number,
  length: number,
  room: number,
  to: DataView,
  answer: number,
): number {
  if (length < ethernet.HEADER) return NOT_TO_BE_ANSWERED;
  if (!ethernet.isValidSource(view.getUint16(frame), view.getInt32(frame + 2))) {
    return NOT_TO_BE_ANSWERED;
  }
  const network = ethernet.networkOffset(view, frame, length);
  if (network < 0) return NOT_TO_BE_ANSWERED;
  const type = ethernet.etherType(view, network);
  const rest = frame + length - network;
  const link = network - frame;
  const mtu = room - link;
  if (mtu < LEAST_IPV4_MTU) return NOT_TO_BE_ANSWERED;
  let written = NOT_TO_BE_ANSWERED;
  if (type === ethernet.ETHERTYPE_IPV4 && isAnswerableIpv4(view, network, rest)) {
    written = writeIpv4(view, network, rest, mtu, to, answer + link);
  } else if (type === ethernet.ETHERTYPE_IPV6 && isAnswerableIpv6(view, network, rest)) {
    written = writeIpv6(view, network, rest, mtu, to, answer + link);
  }
  if (written === NOT_TO_BE_ANSWERED) return NOT_TO_BE_ANSWERED;
  writeLink(view, frame, link, to, answer);
  return link + written;
}

function writeLink(view: DataView, frame: number, link: number, to: DataView, answer: number) {
  copy(view, frame + ethernet.SOURCE, to, answer + ethernet.DESTINATION, ethernet.SOURCE);
  copy(view, frame + ethernet.DESTINATION, to, answer + ethernet.SOURCE, ethernet.SOURCE);
  const rest = 2 * ethernet.SOURCE;
  copy(view, frame + rest, to, answer + rest, link - rest);
}

// ---- IPv4

function isAnswerableIpv4(view: DataView, packet: number, length: number): boolean {
  if (!ip.isIpv4(view, packet, length)) return false;
  if (!ip.ipv4IsFirst(view, packet)) return false;
  if (!isStation(ip.ipv4Source(view, packet)) || !isStation(ip.ipv4Destination(view, packet))) {
    return false;
  }
  if (ip.ipv4Protocol(view, packet) !== PROTOCOL_ICMP) return true;
  const header = ip.ipv4HeaderLength(view, packet);
  return header < length && !isError(view.getUint8(packet + header));
}

/** Not 0/8, 127/8, 224/4 or 255.255.255.255. */
function isStation(address: number): boolean {
  const first = address >>> 24;
  return first !== 0 && first !== 127 && address >>> 28 !== 0xe && address !== -1;
}

/** Destination unreachable, source quench, redirect, time exceeded, parameter problem. */
function isError(type: number): boolean {
  return type === 3 || type === 4 || type === 5 || type === 11 || type === 12;
}

function writeIpv4(
  view: DataView,
  packet: number,
  length: number,
  mtu: number,
  to: DataView,
  at: number,
): number {
  const quoted = Math.min(length, LONGEST_IPV4 - ip.IPV4_HEADER - HEADER);
  const total = ip.IPV4_HEADER + HEADER + quoted;
  const icmp = at + ip.IPV4_HEADER;
  copy(view, packet, to, icmp + HEADER, quoted);
  to.setInt32(icmp, (DESTINATION_UNREACHABLE << 24) | (FRAGMENTATION_NEEDED << 16));
  to.setInt32(icmp + MTU, Math.min(mtu, 0xffff));
  to.setInt16(icmp + CHECKSUM, checksum(to, icmp, HEADER + quoted, 0));

  to.setInt32(at, (0x45 << 24) | total);
  to.setInt32(at + 4, DONT_FRAGMENT);
  to.setInt32(at + 8, (HOP_LIMIT << 24) | (PROTOCOL_ICMP << 16));
  to.setInt32(at + ip.IPV4_SOURCE, ip.ipv4Destination(view, packet));
  to.setInt32(at + ip.IPV4_DESTINATION, ip.ipv4Source(view, packet));
  writeIpv4HeaderChecksum(to, at);
  return total;
}

// ---- IPv6

function isAnswerableIpv6(view: DataView, packet: number, length: number): boolean {
  if (!ip.isIpv6(view, packet, length)) return false;
  if (!isStation6(view, packet + ip.IPV6_SOURCE)) return false;
  if (!isStation6(view, packet + ip.IPV6_DESTINATION)) return false;
  const upper = ip.ipv6UpperLayer(view, packet, length);
  if (upper === ip.NO_UPPER_LAYER) return false;
  let protocol = ip.upperProtocol(upper);
  let at = ip.upperOffset(upper);
  if (protocol === ip.IPV6_FRAGMENT) {
    if (!ip.ipv6IsFirst(view, packet + at)) return false;
    protocol = ip.ipv6Behind(view, packet + at);
    at += ip.IPV6_FRAGMENT_HEADER;
  }
  if (protocol !== ip.PROTOCOL_ICMPV6) return true;
  return at < length && !isErrorOrRedirect(view.getUint8(packet + at));
}

/** Neither multicast, nor ::, nor ::1. */
function isStation6(view: DataView, at: number): boolean {
  if (view.getUint8(at) === 0xff) return false;
  const high = view.getInt32(at) | view.getInt32(at + 4) | view.getInt32(at + 8);
  return high !== 0 || view.getInt32(at + 12) >>> 1 !== 0;
}

function isErrorOrRedirect(type: number): boolean {
  return type < 128 || type === 137;
}

function writeIpv6(
  view: DataView,
  packet: number,
  length: number,
  mtu: number,
  to: DataView,
  at: number,
): number {
  const quoted = Math.min(length, LONGEST_IPV6 - ip.IPV6_HEADER - HEADER);
  const icmp = at + ip.IPV6_HEADER;
  copy(view, packet, to, icmp + HEADER, quoted);
  to.setInt32(icmp, PACKET_TOO_BIG << 24);
  to.setInt32(icmp + MTU, Math.max(mtu, LEAST_IPV6_MTU));

  to.setInt32(at, 0x60 << 24);
  to.setInt32(at + 4, ((HEADER + quoted) << 16) | (ip.PROTOCOL_ICMPV6 << 8) | HOP_LIMIT);
  copy(view, packet + ip.IPV6_DESTINATION, to, at + ip.IPV6_SOURCE, 16);
  copy(view, packet + ip.IPV6_SOURCE, to, at + ip.IPV6_DESTINATION, 16);
  const pseudo = ipv6PseudoHeaderSum(to, at, ip.PROTOCOL_ICMPV6, HEADER + quoted);
  to.setInt16(icmp + CHECKSUM, checksum(to, icmp, HEADER + quoted, pseudo));
  return ip.IPV6_HEADER + HEADER + quoted;
}

/** By hand, since `set` would need a `subarray`, which is an allocation. */
function copy(from: DataView, at: number, to: DataView, toAt: number, length: number): void {
  let index = 0;
  for (; index + 4 <= length; index += 4) to.setInt32(toAt + index, from.getInt32(at + index));
  for (; index < length; index++) to.setInt8(toAt + index, from.getInt8(at + index));
}
