/**
 * The VXLAN header, RFC 7348 section 5:
 *
 *      0                   1                   2                   3
 *     +-+-+-+-+-+-+-+-+-----------------------------------------------+
 *     |R|R|R|R|I|R|R|R|                   Reserved                    |
 *     +-----------------------------------------------+---------------+
 *     |          VXLAN Network Identifier (VNI)       |   Reserved    |
 *     +-----------------------------------------------+---------------+
 *
 * Reserved bits MUST be zero when sent and MUST be ignored when received. Linux, OVS and VPP drop
 * datagrams in which they are set, because extensions (GBP, GPE, remote checksum offload) live
 * there; so a caller that is strict asks `hasReservedBits`. No extension is read here.
 *
 * Readers read HEADER bytes at `offset`: the caller has seen that they are there.
 */
import * as ethernet from "./ethernet.ts";
import * as ip from "./ip.ts";

/** Bytes of the header. */
export const HEADER = 8;
/** The I flag, in the first byte: the VNI is valid. */
const FLAG_I = 0x08;
/** UDP port that IANA assigned. Linux's own default, 8472, is older than the assignment. */
export const DEFAULT_PORT = 4789;
/** VNIs are 24 bits. */
export const MAX_VNI = 0xff_ffff;

const UDP_HEADER = 8;
const FLAG_I_WORD = FLAG_I << 24;

/** What encapsulation takes from the underlay's MTU: 50 bytes over IPv4, 70 over IPv6. */
export const OVERHEAD_IPV4 = ip.IPV4_HEADER + UDP_HEADER + HEADER + ethernet.HEADER;
export const OVERHEAD_IPV6 = ip.IPV6_HEADER + UDP_HEADER + HEADER + ethernet.HEADER;

/** Writes a header with a valid VNI (0 to MAX_VNI) and nothing else set. */
export function writeHeader(view: DataView, offset: number, vni: number): void {
  view.setInt32(offset, FLAG_I_WORD);
  view.setInt32(offset + 4, vni << 8);
}

/** Whether the I flag is set. Without it the header MUST NOT be acted upon. */
export function hasVni(view: DataView, offset: number): boolean {
  return (view.getUint8(offset) & FLAG_I) !== 0;
}

/** The VNI; means something only where `hasVni`. */
export function vni(view: DataView, offset: number): number {
  return view.getInt32(offset + 4) >>> 8;
}

/** Whether any bit but I and the VNI is set. */
export function hasReservedBits(view: DataView, offset: number): boolean {
  return ((view.getInt32(offset) & ~FLAG_I_WORD) | view.getUint8(offset + 7)) !== 0;
}
