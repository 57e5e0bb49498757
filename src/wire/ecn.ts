/**
 * Explicit congestion notification and differentiated services across the tunnel. Both live in one
 * byte of the IP header, IPv4's TOS or IPv6's traffic class: six bits of DSCP, two of ECN.
 *
 *     encap   the outer ECN is the inner one: "normal mode" of RFC 6040, section 4.1
 *     decap   the table of RFC 6040, section 4.2, here with what arrives as columns:
 *
 *                       outer   Not-ECT    ECT(0)    ECT(1)    CE
 *             inner  Not-ECT    Not-ECT    Not-ECT   Not-ECT   drop
 *                    ECT(0)     ECT(0)     ECT(0)    ECT(1)    CE
 *                    ECT(1)     ECT(1)     ECT(1)    ECT(1)    CE
 *                    CE         CE         CE        CE        CE
 *
 * So a router of the underlay that marks instead of dropping is heard by the inner flow's ends. A frame
 * that is not IP is sent as Not-ECT, and passed on whatever it arrives with: ARP slows down for nobody.
 *
 * The kernel's decap is the same (include/net/inet_ecn.h, __INET_ECN_decapsulate). Its encap differs in
 * one cell: it sends CE as ECT(0) (RFC 3168's full functionality), which no receiver can tell.
 */
import { checksumAdjusted } from "./checksum.ts";
import * as ip from "./ip.ts";

export const NOT_ECT = 0;
export const ECT_1 = 1;
export const ECT_0 = 2;
export const CE = 3;
/** The bits of ECN in a TOS. */
export const ECN_MASK = 3;

/** TOS or traffic class of the packet in a frame; 0 where it carries none. */
export function innerTos(view: DataView, frame: number, length: number): number {
  const at = ip.packetIn(view, frame, length);
  return at < 0 ? 0 : ip.tos(view, at);
}

/** ECN of a TOS. */
export function ecnOf(tos: number): number {
  return tos & ECN_MASK;
}

/**
 * Applies what the outer header says (0 to 3) to the packet in a frame, as the table has it. False when
 * the frame must be dropped.
 */
export function decapsulate(view: DataView, frame: number, length: number, outer: number): boolean {
  const at = ip.packetIn(view, frame, length);
  if (at < 0) return true;
  const inner = ip.tos(view, at) & ECN_MASK;
  if (inner === NOT_ECT) return outer !== CE;
  if (outer === CE ? inner !== CE : outer === ECT_1 && inner === ECT_0) setEcn(view, at, outer);
  return true;
}

function setEcn(view: DataView, at: number, ecn: number): void {
  const before = view.getUint16(at);
  ip.setTos(view, at, (ip.tos(view, at) & ~ECN_MASK) | ecn);
  if (ip.version(view, at) !== 4) return; // IPv6 has no checksum to keep
  const sum = view.getUint16(at + ip.IPV4_CHECKSUM);
  view.setUint16(at + ip.IPV4_CHECKSUM, checksumAdjusted(sum, before, view.getUint16(at)));
}
