/**
 * TCP headers (RFC 9293) as far as a switch needs them: how long one is, and which size of segments
 * a SYN asks for.
 *
 *     tcp +0   ports             +12  data offset, flags      +20  options: kind, length, value;
 *         +4   sequence          +14  window                       kinds 0 (the end) and 1 (nothing)
 *         +8   acknowledgement   +16  checksum                     are single bytes
 */
import { checksumAdjusted } from "./checksum.ts";
import * as ip from "./ip.ts";

/** Bytes of a header without options. */
export const HEADER = 20;

const DATA_OFFSET = 12;
const FLAGS = 13;
const CHECKSUM = 16;
const SYN = 0x02;

const OPTION_END = 0;
const OPTION_NOTHING = 1;
const OPTION_MSS = 2;
const MSS_LENGTH = 4;
const OPTION_AUTHENTICATION = 29;

/** Bytes of the header at `tcp`, options included; 0 when it does not lie in `length` bytes. */
export function headerLength(view: DataView, tcp: number, length: number): number {
  if (length < HEADER) return 0;
  const header = (view.getUint8(tcp + DATA_OFFSET) >>> 4) << 2;
  return header >= HEADER && header <= length ? header : 0;
}

/**
 * Lowers the size of segments that the frame in [frame, frame + length) asks for, if it is a SYN that
 * asks for more than fits into a packet of `mtu` bytes. Whether it did. A SYN that does not ask gets
 * segments of 536 bytes anyway (RFC 9293, 3.7.1), a fragment has no header that could be trusted. One that
 * is signed, options and all, would be refused: by TCP-AO (RFC 5925, 3.1) or behind IPv6's authentication header.
 *
 * The checksum follows by what has changed (RFC 1624), so that one that was wrong stays wrong. `partial`
 * says that the sender left it to us (VNET_NEEDS_CSUM): then it covers none of these bytes yet.
 */
export function clampMss(
  view: DataView,
  frame: number,
  length: number,
  mtu: number,
  partial: boolean,
): boolean {
  const network = ip.packetIn(view, frame, length);
  if (network < 0) return false;
  const rest = frame + length - network;
  const upper = ip.upperLayer(view, network, rest);
  if (upper === ip.NO_UPPER_LAYER || ip.upperProtocol(upper) !== ip.PROTOCOL_TCP) return false;
  const isIpv4 = ip.version(view, network) === 4;
  if (isIpv4 && ip.ipv4IsFragment(view, network)) return false;
  const tcp = network + ip.upperOffset(upper);
  const header = headerLength(view, tcp, frame + length - tcp);
  if (header === 0 || (view.getUint8(tcp + FLAGS) & SYN) === 0) return false;
  if (!isIpv4 && ip.ipv6IsAuthenticated(view, network, tcp)) return false;
  const at = mssOffset(view, tcp, header);
  const most = mtu - HEADER - (isIpv4 ? ip.IPV4_HEADER : ip.IPV6_HEADER);
  if (at === 0 || most <= 0 || view.getUint16(at) <= most) return false;
  if (!partial) follow(view, tcp + CHECKSUM, view.getUint16(at), most, (at - tcp) & 1);
  view.setInt16(at, most);
  return true;
}

/** Where the value of the option lies; 0 when there is none, or it is signed. */
function mssOffset(view: DataView, tcp: number, header: number): number {
  const end = tcp + header;
  let found = 0;
  for (let at = tcp + HEADER; at < end; ) {
    const kind = view.getUint8(at);
    if (kind === OPTION_END) return found;
    if (kind === OPTION_NOTHING) {
      at++;
      continue;
    }
    if (at + 2 > end) return found;
    const length = view.getUint8(at + 1);
    if (kind === OPTION_AUTHENTICATION) return 0;
    if (kind === OPTION_MSS && found === 0) {
      if (length !== MSS_LENGTH || at + length > end) return 0;
      found = at + 2;
    }
    if (length < 2) return found;
    at += length;
  }
  return found;
}

/** Where the value is not aligned, its bytes are halves of two words. */
function follow(view: DataView, at: number, before: number, after: number, odd: number): void {
  const old = odd === 0 ? before : swap(before);
  const value = odd === 0 ? after : swap(after);
  view.setInt16(at, checksumAdjusted(view.getUint16(at), old, value));
}

function swap(value: number): number {
  return ((value & 0xff) << 8) | (value >>> 8);
}
