/**
 * ARP over Ethernet for IPv4 (RFC 826), to answer a request on behalf of the station that was asked
 * for, and to tell probes and announcements (RFC 5227) from questions.
 *
 *     frame +0   Ethernet header              +28  sender protocol address (IPv4)
 *           +14  hardware and protocol type   +32  target hardware address
 *           +18  their lengths                +38  target protocol address (IPv4)
 *           +20  operation                    +42  end; padding may follow
 *           +22  sender hardware address
 *
 * Only untagged frames are recognised. A VLAN within a VNI is a network of its own, whose addresses
 * may repeat, so a tagged request is flooded and its owner answers.
 *
 * `isPacket` and `isRequest` are the bounds checks; the others read a frame that one of them has
 * accepted. IPv4 addresses are signed int32.
 */
import * as ethernet from "./ethernet.ts";

/** Bytes of a frame without padding. */
export const FRAME = 42;

export const REQUEST = 1;
export const REPLY = 2;

/** Where the sender's MAC address lies in the frame: for `ethernet.macHigh` and `macLow`. */
export const SENDER_MAC = 22;
const SENDER_IP = 28;
const TARGET_MAC = 32;
const TARGET_IP = 38;

const TYPES = 14;
const LENGTHS = 18;
const OPERATION = 20;
/** Hardware type 1 (Ethernet), protocol type 0x0800 (IPv4). */
const ETHERNET_IPV4 = 0x0001_0800;
/** Addresses of 6 and 4 bytes. */
const SIX_FOUR = 0x0604;

/** Whether the frame is an untagged, whole ARP packet for IPv4 from a station that can exist. */
export function isPacket(view: DataView, frame: number, length: number): boolean {
  return (
    length >= FRAME &&
    ethernet.etherType(view, frame + ethernet.HEADER) === ethernet.ETHERTYPE_ARP &&
    view.getInt32(frame + TYPES) === ETHERNET_IPV4 &&
    view.getUint16(frame + LENGTHS) === SIX_FOUR &&
    hasValidSender(view, frame)
  );
}

/** A reply goes to the sender's address: were it a group's, one request would be answered to all. */
function hasValidSender(view: DataView, frame: number): boolean {
  const sender = frame + SENDER_MAC;
  return ethernet.isValidSource(ethernet.macHigh(view, sender), ethernet.macLow(view, sender));
}

/** Whether the frame is such a packet and asks who has an address. */
export function isRequest(view: DataView, frame: number, length: number): boolean {
  return isPacket(view, frame, length) && operation(view, frame) === REQUEST;
}

/** REQUEST, REPLY, or something else that is none of a switch's business. */
export function operation(view: DataView, frame: number): number {
  return view.getUint16(frame + OPERATION);
}

export function senderIp(view: DataView, frame: number): number {
  return view.getInt32(frame + SENDER_IP);
}

export function targetIp(view: DataView, frame: number): number {
  return view.getInt32(frame + TARGET_IP);
}

/**
 * Whether this asks if an address is free to take (RFC 5227 section 1.1): its sender has no address
 * yet, so there is none to learn, and an answer says "taken".
 */
export function isProbe(view: DataView, frame: number): boolean {
  return operation(view, frame) === REQUEST && senderIp(view, frame) === 0;
}

/**
 * Whether this announces its own sender (RFC 5227 section 3, "gratuitous ARP", as a request or as a
 * reply). It asks nothing: it goes to everybody and must not be answered.
 */
export function isGratuitous(view: DataView, frame: number): boolean {
  const sender = senderIp(view, frame);
  return sender !== 0 && sender === targetIp(view, frame);
}

/**
 * Writes the reply that the station with this MAC address would give to a request: from it, to the
 * sender of the request. Returns its length, always FRAME. The reply may take the place of the
 * request (equal offsets); otherwise the two must not overlap.
 */
export function writeReply(
  view: DataView,
  requestOffset: number,
  replyOffset: number,
  macHigh: number,
  macLow: number,
): number {
  const askerHigh = ethernet.macHigh(view, requestOffset + SENDER_MAC);
  const askerLow = ethernet.macLow(view, requestOffset + SENDER_MAC);
  const askerIp = senderIp(view, requestOffset);
  const askedIp = targetIp(view, requestOffset);

  ethernet.writeMac(view, replyOffset + ethernet.DESTINATION, askerHigh, askerLow);
  ethernet.writeMac(view, replyOffset + ethernet.SOURCE, macHigh, macLow);
  view.setInt16(replyOffset + ethernet.HEADER - 2, ethernet.ETHERTYPE_ARP);
  view.setInt32(replyOffset + TYPES, ETHERNET_IPV4);
  view.setInt16(replyOffset + LENGTHS, SIX_FOUR);
  view.setInt16(replyOffset + OPERATION, REPLY);
  ethernet.writeMac(view, replyOffset + SENDER_MAC, macHigh, macLow);
  view.setInt32(replyOffset + SENDER_IP, askedIp);
  ethernet.writeMac(view, replyOffset + TARGET_MAC, askerHigh, askerLow);
  view.setInt32(replyOffset + TARGET_IP, askerIp);
  return FRAME;
}
