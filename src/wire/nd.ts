/**
 * IPv6 neighbour discovery (RFC 4861), as far as a switch takes part in it: it recognises a valid
 * Neighbour Solicitation and answers on behalf of the station that was asked for.
 *
 *     frame +0   Ethernet header
 *           +14  IPv6 header (+22 source, +38 destination)
 *           +54  ICMPv6: type, code, checksum
 *           +58  flags in an advertisement, reserved in a solicitation
 *           +62  target address
 *           +78  options: type, length in units of 8 bytes, and for type 1 and 2 a MAC address
 *
 * Not recognised, hence flooded so that the owner answers: tagged frames (a VLAN within a VNI is a
 * network of its own) and solicitations behind extension headers (nobody sends them, and RFC 6980
 * forbids to fragment them).
 *
 * `isSolicitation` is the bounds check; the others read a frame that it has accepted. An address is
 * handed out as the offset of its 16 bytes, because it does not fit into a number.
 */
import { checksum, ipv6PseudoHeaderSum } from "./checksum.ts";
import * as ethernet from "./ethernet.ts";
import * as ip from "./ip.ts";

const IP = ethernet.HEADER;
const SOURCE = IP + ip.IPV6_SOURCE;
const DESTINATION = IP + ip.IPV6_DESTINATION;
const ICMP = IP + ip.IPV6_HEADER;
const CHECKSUM = ICMP + 2;
const FLAGS = ICMP + 4;
const TARGET = ICMP + 8;
const OPTIONS = ICMP + 24;

/** Bytes of an option that holds a MAC address; options come in units of as many. */
const OPTION = 8;
const SOURCE_LINK_LAYER = 1;
const TARGET_LINK_LAYER = 2;
const NO_OPTION = -1;

/** Types of ICMPv6 messages; their code is 0. */
const SOLICITATION = 135;
const ADVERTISEMENT = 136;

/** First word of all that is multicast here: ff02::/32. */
const LINK_LOCAL_MULTICAST = 0xff02_0000 | 0;

const FLAG_ROUTER = 0x80 << 24;
const FLAG_SOLICITED = 0x40 << 24;
const FLAG_OVERRIDE = 0x20 << 24;

/** Routers do not forward link-local messages: 255 proves that it was never decremented. */
const HOP_LIMIT = 255;

/** Bytes of the frame that `writeAdvertisement` writes. */
export const ADVERTISEMENT_FRAME = OPTIONS + OPTION;

/**
 * Whether the frame is an untagged Neighbour Solicitation that is valid by RFC 4861 section 7.1.1
 * and that could be answered: whoever is to get the answer has a MAC address of its own.
 */
export function isSolicitation(view: DataView, frame: number, length: number): boolean {
  if (!looksLikeSolicitation(view, frame, length)) return false;
  const icmpLength = ip.ipv6PayloadLength(view, frame + IP);
  return (
    icmpLength >= OPTIONS - ICMP &&
    icmpLength <= length - ICMP &&
    ip.ipv6HopLimit(view, frame + IP) === HOP_LIMIT &&
    !isMulticastAddress(view, frame + SOURCE) &&
    !isMulticastAddress(view, frame + TARGET) &&
    hasWholeOptions(view, frame) &&
    (!isDad(view, frame) || isValidDad(view, frame)) &&
    hasValidAsker(view, frame) &&
    isIntact(view, frame, icmpLength)
  );
}

/** The cheap part, which tells a solicitation from nearly all other traffic. */
function looksLikeSolicitation(view: DataView, frame: number, length: number): boolean {
  return (
    length >= OPTIONS &&
    ethernet.etherType(view, frame + IP) === ethernet.ETHERTYPE_IPV6 &&
    ip.version(view, frame + IP) === 6 &&
    ip.ipv6NextHeader(view, frame + IP) === ip.PROTOCOL_ICMPV6 &&
    view.getUint16(frame + ICMP) === SOLICITATION << 8
  );
}

/** Offset of the address that is asked for. */
export function targetOffset(frame: number): number {
  return frame + TARGET;
}

/** Offset of the address that asks; all zero in duplicate address detection. */
export function sourceOffset(frame: number): number {
  return frame + SOURCE;
}

/**
 * Offset of the MAC address of whoever asks: its source link-layer address option, or the frame's
 * own source where it has none.
 */
export function askerMacOffset(view: DataView, frame: number): number {
  const option = sourceLinkLayerOption(view, frame);
  return option === NO_OPTION ? frame + ethernet.SOURCE : option + 2;
}

/**
 * Whether this is duplicate address detection (RFC 4862 section 5.4): its sender has no address yet,
 * so there is none to learn, and an answer says "taken" to all nodes.
 */
export function isDad(view: DataView, frame: number): boolean {
  const source = frame + SOURCE;
  return (
    (view.getInt32(source) |
      view.getInt32(source + 4) |
      view.getInt32(source + 8) |
      view.getInt32(source + 12)) ===
    0
  );
}

/** It must be sent to a solicited-node address, ff02::1:ff00:0/104, and name no MAC address. */
function isValidDad(view: DataView, frame: number): boolean {
  const destination = frame + DESTINATION;
  return (
    view.getInt32(destination) === LINK_LOCAL_MULTICAST &&
    view.getInt32(destination + 4) === 0 &&
    view.getInt32(destination + 8) === 1 &&
    view.getUint8(destination + 12) === 0xff &&
    sourceLinkLayerOption(view, frame) === NO_OPTION
  );
}

function isMulticastAddress(view: DataView, address: number): boolean {
  return view.getUint8(address) === 0xff;
}

/** The answer goes there: were it a group's address, one question would be answered to all. */
function hasValidAsker(view: DataView, frame: number): boolean {
  const asker = askerMacOffset(view, frame);
  return ethernet.isValidSource(ethernet.macHigh(view, asker), ethernet.macLow(view, asker));
}

function isIntact(view: DataView, frame: number, icmpLength: number): boolean {
  const pseudo = ipv6PseudoHeaderSum(view, frame + IP, ip.PROTOCOL_ICMPV6, icmpLength);
  return checksum(view, frame + ICMP, icmpLength, pseudo) === 0;
}

function optionsEnd(view: DataView, frame: number): number {
  return frame + ICMP + ip.ipv6PayloadLength(view, frame + IP);
}

function optionLength(view: DataView, option: number): number {
  return view.getUint8(option + 1) * OPTION;
}

/** No option is empty (it would be walked forever), cut short, or a MAC address of other size. */
function hasWholeOptions(view: DataView, frame: number): boolean {
  const end = optionsEnd(view, frame);
  let option = frame + OPTIONS;
  while (option < end) {
    if (option + OPTION > end) return false;
    const length = optionLength(view, option);
    if (length === 0 || option + length > end) return false;
    if (view.getUint8(option) === SOURCE_LINK_LAYER && length !== OPTION) return false;
    option += length;
  }
  return true;
}

function sourceLinkLayerOption(view: DataView, frame: number): number {
  const end = optionsEnd(view, frame);
  for (let option = frame + OPTIONS; option < end; option += optionLength(view, option)) {
    if (view.getUint8(option) === SOURCE_LINK_LAYER) return option;
  }
  return NO_OPTION;
}

/**
 * Writes the Neighbour Advertisement that the station with this MAC address would give to a
 * solicitation: to whoever asked, or to all nodes when that is detecting duplicates (RFC 4861
 * section 7.2.4). Override is set, because it is the station's own word and not a proxy's. A router
 * must be known as one: an advertisement without the flag makes hosts forget it as their default
 * router (section 7.2.5).
 *
 * Returns its length, always ADVERTISEMENT_FRAME, which is 8 more than the shortest solicitation.
 * The advertisement may take the place of the solicitation (equal offsets) where there is room for
 * those; otherwise the two must not overlap.
 */
export function writeAdvertisement(
  view: DataView,
  solicitationOffset: number,
  replyOffset: number,
  macHigh: number,
  macLow: number,
  isRouter: boolean,
): number {
  const solicited = addressToAsker(view, solicitationOffset, replyOffset);
  ethernet.writeMac(view, replyOffset + ethernet.SOURCE, macHigh, macLow);
  view.setInt16(replyOffset + IP - 2, ethernet.ETHERTYPE_IPV6);
  copyAddress(view, solicitationOffset + TARGET, replyOffset + SOURCE);
  copyAddress(view, solicitationOffset + TARGET, replyOffset + TARGET);
  writeIpv6(view, replyOffset);
  view.setInt32(replyOffset + ICMP, ADVERTISEMENT << 24);
  view.setInt32(replyOffset + FLAGS, (isRouter ? FLAG_ROUTER : 0) | solicited | FLAG_OVERRIDE);
  view.setInt16(replyOffset + OPTIONS, (TARGET_LINK_LAYER << 8) | 1);
  ethernet.writeMac(view, replyOffset + OPTIONS + 2, macHigh, macLow);
  writeChecksum(view, replyOffset);
  return ADVERTISEMENT_FRAME;
}

/**
 * Writes both destinations and returns the solicited flag: set for an answer to one asker. Comes
 * first, because where the reply takes the place of the solicitation, the rest overwrites the asker.
 */
function addressToAsker(view: DataView, solicitation: number, reply: number): number {
  if (isDad(view, solicitation)) {
    ethernet.writeMac(view, reply + ethernet.DESTINATION, 0x3333, 1);
    view.setInt32(reply + DESTINATION, LINK_LOCAL_MULTICAST);
    view.setInt32(reply + DESTINATION + 4, 0);
    view.setInt32(reply + DESTINATION + 8, 0);
    view.setInt32(reply + DESTINATION + 12, 1);
    return 0;
  }
  const asker = askerMacOffset(view, solicitation);
  const high = ethernet.macHigh(view, asker);
  const low = ethernet.macLow(view, asker);
  ethernet.writeMac(view, reply + ethernet.DESTINATION, high, low);
  copyAddress(view, solicitation + SOURCE, reply + DESTINATION);
  return FLAG_SOLICITED;
}

function writeIpv6(view: DataView, frame: number): void {
  view.setInt32(frame + IP, 6 << 28);
  view.setInt16(frame + IP + 4, ADVERTISEMENT_FRAME - ICMP);
  view.setInt16(frame + IP + 6, (ip.PROTOCOL_ICMPV6 << 8) | HOP_LIMIT);
}

function copyAddress(view: DataView, from: number, to: number): void {
  for (let word = 0; word < 16; word += 4) view.setInt32(to + word, view.getInt32(from + word));
}

/** The field is still zero: it was written together with the type. */
function writeChecksum(view: DataView, frame: number): void {
  const length = ADVERTISEMENT_FRAME - ICMP;
  const pseudo = ipv6PseudoHeaderSum(view, frame + IP, ip.PROTOCOL_ICMPV6, length);
  view.setInt16(frame + CHECKSUM, checksum(view, frame + ICMP, length, pseudo));
}
