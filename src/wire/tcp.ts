/**
 * TCP headers (RFC 9293) as far as a switch needs them.
 */

/** Bytes of a header without options. */
export const HEADER = 20;

const DATA_OFFSET = 12;

/** Bytes of the header at `tcp`, options included; 0 when it does not lie in `length` bytes. */
export function headerLength(view: DataView, tcp: number, length: number): number {
  if (length < HEADER) return 0;
  const header = (view.getUint8(tcp + DATA_OFFSET) >>> 4) << 2;
  return header >= HEADER && header <= length ? header : 0;
}
