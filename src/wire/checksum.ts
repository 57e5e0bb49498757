/**
 * The internet checksum (RFC 1071): the complement of the one's-complement sum of 16-bit words, a
 * last odd byte being the high half of a word.
 *
 * Sums here are folded to 16 bits and not inverted, so that they can be chained: the `initial` of
 * one may be the result of another, as long as every range but the last has an even length. The
 * one's-complement sum does not mind how its words are grouped (RFC 1071 section 2 C), so the loop
 * reads 32 bits at a time and leaves the carries to the end. A double would hold the total of whole
 * words and be faster by a third, but it is boxed wherever V8 does not inline.
 */
import * as ip from "./ip.ts";

/** The longest range whose total cannot exceed 32 bits: 65,536 words of 0xffff, and `initial`. */
export const MAX_RANGE = 128 * 1024;

/**
 * The folded sum (0 to 0xffff) of `length` bytes at `offset`, MAX_RANGE at most, and of `initial`
 * (0 to 0xffff).
 */
export function sum(view: DataView, offset: number, length: number, initial: number): number {
  const end = offset + length;
  let total = initial;
  let at = offset;
  for (; at + 32 <= end; at += 32) {
    const first =
      halves(view.getInt32(at)) +
      halves(view.getInt32(at + 4)) +
      halves(view.getInt32(at + 8)) +
      halves(view.getInt32(at + 12));
    const second =
      halves(view.getInt32(at + 16)) +
      halves(view.getInt32(at + 20)) +
      halves(view.getInt32(at + 24)) +
      halves(view.getInt32(at + 28));
    total = (total + first + second) | 0;
  }
  for (; at + 2 <= end; at += 2) total = (total + view.getUint16(at)) | 0;
  if (at < end) total = (total + (view.getUint8(at) << 8)) | 0;
  return fold(total);
}

function halves(word: number): number {
  return (word & 0xffff) + (word >>> 16);
}

/** The checksum (0 to 0xffff): 0 over a range that holds its own correct checksum. */
export function checksum(view: DataView, offset: number, length: number, initial: number): number {
  return ~sum(view, offset, length, initial) & 0xffff;
}

/** A checksum after one of the words that it covers has changed (RFC 1624, equation 3). */
export function checksumAdjusted(checksum: number, before: number, after: number): number {
  return ~fold((~checksum & 0xffff) + (~before & 0xffff) + after) & 0xffff;
}

/** Adds the carries of an unsigned 32-bit total back in, twice: the first time may carry again. */
function fold(total: number): number {
  return halves(halves(total));
}

/**
 * Completes a checksum that the kernel left to the device (`virtio_net_hdr` with NEEDS_CSUM).
 * `csumStart` counts from the start of the frame, `csumOffset` from `csumStart`. The field holds the
 * folded sum of the pseudo-header, not inverted; from there to the end of the frame all is summed.
 * Does what the kernel's skb_checksum_help does, and like it writes 0xffff for 0: in UDP, 0 would
 * mean "no checksum" (RFC 768), and elsewhere the two are equal.
 *
 * False, and nothing written, when the field does not lie in the frame.
 */
export function completeChecksum(
  view: DataView,
  frameOffset: number,
  length: number,
  csumStart: number,
  csumOffset: number,
): boolean {
  if ((csumStart | csumOffset) < 0 || csumStart + csumOffset + 2 > length) return false;
  const start = frameOffset + csumStart;
  const value = checksum(view, start, length - csumStart, 0);
  view.setInt16(start + csumOffset, value === 0 ? 0xffff : value);
  return true;
}

/** Writes the checksum of an IPv4 header (one that `ip.isIpv4` has seen) that is complete otherwise. */
export function writeIpv4HeaderChecksum(view: DataView, header: number): void {
  view.setInt16(header + ip.IPV4_CHECKSUM, 0);
  const value = checksum(view, header, ip.ipv4HeaderLength(view, header), 0);
  view.setInt16(header + ip.IPV4_CHECKSUM, value);
}

/**
 * The folded sum of the pseudo-header (RFC 8200 section 8.1) of an upper layer of `upperLength` bytes
 * under the IPv6 header at `header`. The destination is the header's: a packet that still has a
 * routing header ahead of it is summed by its final one, which is not looked for.
 */
export function ipv6PseudoHeaderSum(
  view: DataView,
  header: number,
  protocol: number,
  upperLength: number,
): number {
  return sum(view, header + ip.IPV6_SOURCE, 32, fold(protocol + upperLength));
}
