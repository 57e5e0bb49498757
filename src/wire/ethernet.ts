/**
 * Ethernet II frames as they lie in a slab: addresses, 802.1Q tags, ethertypes.
 *
 * A MAC address never becomes an object on the hot path. It is two small integers, `high` (its first
 * 16 bits) and `low` (its last 32 bits as a signed int32), which V8 keeps unboxed; the FDB is keyed
 * by the same two. All functions but `formatMac` and `parseMac` read at an offset and allocate
 * nothing; they read only what the caller has seen to be there: HEADER bytes, or what is said.
 */

/** Bytes of a header without tags: destination, source, ethertype. */
export const HEADER = 14;
/** Bytes that one 802.1Q or 802.1ad tag adds to it. */
export const TAG = 4;

/** Where the addresses lie in a frame. */
export const DESTINATION = 0;
export const SOURCE = 6;

export const ETHERTYPE_IPV4 = 0x0800;
export const ETHERTYPE_ARP = 0x0806;
export const ETHERTYPE_IPV6 = 0x86dd;
/** Customer tag, IEEE 802.1Q. */
const ETHERTYPE_VLAN = 0x8100;
/** Service tag, IEEE 802.1ad ("QinQ"). */
const ETHERTYPE_SERVICE_VLAN = 0x88a8;
/** Below this the field is the length of an IEEE 802.3 frame, not a type. */
export const ETHERTYPE_MIN = 0x0600;

/** Bytes of both addresses, behind which a tag lies. */
const ADDRESSES = 12;
/** Of a tag, what names the VLAN. */
const VLAN_ID = 0xfff;

/** A customer tag within a service tag. Deeper stacks exist, but nothing here looks below them. */
const MAX_TAGS = 2;

/** The first 16 bits of the MAC address at `offset`. */
export function macHigh(view: DataView, offset: number): number {
  return view.getUint16(offset);
}

/** The last 32 bits of the MAC address at `offset`, as a signed int32. */
export function macLow(view: DataView, offset: number): number {
  return view.getInt32(offset + 2);
}

/** Writes a MAC address of 6 bytes at `offset`. */
export function writeMac(view: DataView, offset: number, high: number, low: number): void {
  view.setInt16(offset, high);
  view.setInt32(offset + 2, low);
}

/** Whether the address with this `high` is a group address: multicast or broadcast. */
export function isMulticast(high: number): boolean {
  return (high & 0x0100) !== 0;
}

/** Whether this is 00:00:00:00:00:00, which addresses nobody. */
export function isZero(high: number, low: number): boolean {
  return (high | low) === 0;
}

/** Whether a station may send from this address; the kernel drops others as MAC_INVALID_SOURCE. */
export function isValidSource(high: number, low: number): boolean {
  return !isMulticast(high) && !isZero(high, low);
}

/** Whether this ethertype announces a VLAN tag rather than a payload. */
export function isTag(type: number): boolean {
  return type === ETHERTYPE_VLAN || type === ETHERTYPE_SERVICE_VLAN;
}

/**
 * The offset of what follows the Ethernet header and up to two VLAN tags, or -1 when the frame of
 * `length` bytes ends before. It does not look behind a third tag: that one is then what follows,
 * as `etherType` says.
 */
export function networkOffset(view: DataView, frame: number, length: number): number {
  if (length < HEADER) return -1;
  const end = frame + length;
  let offset = frame + HEADER;
  for (let tags = 0; tags < MAX_TAGS && isTag(etherType(view, offset)); tags++) {
    offset += TAG;
    if (offset > end) return -1;
  }
  return offset;
}

/** The ethertype of what begins at `network`: it always lies in the two bytes before. */
export function etherType(view: DataView, network: number): number {
  return view.getUint16(network - 2);
}

/** Whether a frame, of HEADER bytes at least, has a VLAN tag of either kind. */
export function isTagged(view: DataView, frame: number): boolean {
  return isTag(etherType(view, frame + HEADER));
}

/**
 * Whether a frame, of HEADER bytes at least, is of a VLAN by what it says itself. A tag of VLAN 0 tells its priority
 * and nothing else: to a bridge such a frame is as one without a tag (IEEE 802.1Q, 6.9.1).
 */
export function hasVlan(view: DataView, frame: number, length: number): boolean {
  if (!isTagged(view, frame)) return false;
  const isOfPriority =
    length >= HEADER + TAG && view.getUint16(frame + ADDRESSES) === ETHERTYPE_VLAN;
  if (!isOfPriority || vlan(view, frame, length) !== 0) return true;
  return isTag(etherType(view, frame + HEADER + TAG));
}

/** The VLAN of a frame with a customer tag (IEEE 802.1Q), 0 where it has none, or only a priority. */
export function vlan(view: DataView, frame: number, length: number): number {
  if (length < HEADER + TAG || etherType(view, frame + HEADER) !== ETHERTYPE_VLAN) return 0;
  return view.getUint16(frame + HEADER) & VLAN_ID;
}

/** Takes the tag from a frame, which then begins TAG bytes later. */
export function removeTag(view: DataView, frame: number): void {
  for (let at = frame + ADDRESSES - 4; at >= frame; at -= 4) {
    view.setInt32(at + TAG, view.getInt32(at));
  }
}

/** Gives a tag to a frame that begins TAG bytes later, and then begins here; its priority is 0. */
export function addTag(view: DataView, frame: number, id: number): void {
  for (let at = frame; at < frame + ADDRESSES; at += 4) {
    view.setInt32(at, view.getInt32(at + TAG));
  }
  view.setUint16(frame + ADDRESSES, ETHERTYPE_VLAN);
  view.setUint16(frame + ADDRESSES + 2, id);
}

/**
 * Puts a frame that has no VLAN into one: its tag of priority says so then, or else it gets a tag, and begins TAG bytes
 * earlier. Returns where it begins.
 */
export function enterVlan(view: DataView, frame: number, id: number): number {
  if (!isTagged(view, frame)) {
    addTag(view, frame - TAG, id);
    return frame - TAG;
  }
  view.setUint16(frame + HEADER, view.getUint16(frame + HEADER) | id);
  return frame;
}

/** Each byte in two digits. */
const HEX = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, "0"));

/** `aa:bb:cc:dd:ee:ff`. */
export function formatMac(high: number, low: number): string {
  const first = `${HEX[(high >> 8) & 255]}:${HEX[high & 255]}:${HEX[low >>> 24]}`;
  return `${first}:${HEX[(low >> 16) & 255]}:${HEX[(low >> 8) & 255]}:${HEX[low & 255]}`;
}

const MAC = /^[0-9a-f]{2}([:-])[0-9a-f]{2}(?:\1[0-9a-f]{2}){4}$/i;

/** Reads `aa:bb:cc:dd:ee:ff` or `AA-BB-CC-DD-EE-FF`; undefined when it is neither. */
export function parseMac(text: string): { high: number; low: number } | undefined {
  if (!MAC.test(text)) return undefined;
  const digits = text.replace(/[:-]/g, "");
  return {
    high: Number.parseInt(digits.slice(0, 4), 16),
    low: Number.parseInt(digits.slice(4), 16) | 0,
  };
}
