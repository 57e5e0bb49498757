/**
 * A hash of the inner flow, from which the outer UDP source port is chosen, so that routers and
 * NICs of the underlay spread flows over paths and queues without reordering one (RFC 7348
 * section 5, RFC 6335 for the range).
 *
 *     IPv4, IPv6    addresses, protocol, and ports of TCP, UDP and SCTP
 *     fragments     addresses and protocol: only the first fragment has ports, and a datagram
 *                   must take one path
 *     all else      MAC addresses and ethertype
 *
 * VLAN tags are skipped and do not count. What is malformed is hashed by what can be read safely.
 *
 * The mixing is that of MurmurHash3 (x86, 32 bits; A. Appleby, public domain) over 32-bit words: a
 * handful of multiplications per frame, and every input bit flips every output bit half of the
 * time. It spreads; it does not defend. Whoever may choose the headers can find flows that collide
 * under any seed. The two directions of a connection hash differently.
 */
import * as ethernet from "./ethernet.ts";
import * as ip from "./ip.ts";

/** Bytes that TCP, UDP and SCTP alike begin with: source port, destination port. */
const PORTS = 4;

/**
 * Hashes the flow that the frame in [offset, offset + length) belongs to, to a signed int32.
 * Reads nothing outside of the frame, whatever is in it. `seed` is any int32.
 */
export function flowHash(view: DataView, offset: number, length: number, seed: number): number {
  if (length < ethernet.HEADER) return finish(seed);
  const network = ethernet.networkOffset(view, offset, length);
  if (network < 0) return linkHash(view, offset, 0, seed);
  const type = ethernet.etherType(view, network);
  const rest = offset + length - network;
  if (type === ethernet.ETHERTYPE_IPV4 && ip.isIpv4(view, network, rest)) {
    return ipv4Hash(view, network, rest, seed);
  }
  if (type === ethernet.ETHERTYPE_IPV6 && ip.isIpv6(view, network, rest)) {
    return ipv6Hash(view, network, rest, seed);
  }
  return linkHash(view, offset, type, seed);
}

/** Bytes that `continuesFlow` reads of a frame. */
export const TELLING = ethernet.HEADER + ip.IPV4_HEADER + PORTS;
/** The type of IPv4, then version 4 and a header of five words. */
const PLAIN_IPV4 = 0x080045;

/**
 * Whether the frame at `offset` goes between the same stations as the one at `before`, with the same TOS and
 * the same hash. Of both there must be TELLING bytes. True only of untagged IPv4 without options: of most
 * frames, and the others can be looked at one by one.
 */
export function continuesFlow(view: DataView, offset: number, before: number): boolean {
  const kind = view.getInt32(offset + 12); // and the TOS
  return (
    kind >>> 8 === PLAIN_IPV4 &&
    kind === view.getInt32(before + 12) &&
    view.getInt32(offset + 20) === view.getInt32(before + 20) && // fragment, TTL, protocol
    view.getInt32(offset + 34) === view.getInt32(before + 34) &&
    view.getInt32(offset + 30) === view.getInt32(before + 30) &&
    view.getInt32(offset + 26) === view.getInt32(before + 26) &&
    view.getInt32(offset + 8) === view.getInt32(before + 8) &&
    view.getInt32(offset + 4) === view.getInt32(before + 4) &&
    view.getInt32(offset) === view.getInt32(before)
  );
}

function ipv4Hash(view: DataView, header: number, length: number, seed: number): number {
  const protocol = ip.ipv4Protocol(view, header);
  let hash = mix(seed, ip.ipv4Source(view, header));
  hash = mix(hash, ip.ipv4Destination(view, header));
  if (ip.ipv4IsFragment(view, header)) return finish(mix(hash, protocol));
  return upperHash(view, header, ip.ipv4HeaderLength(view, header), length, protocol, hash);
}

function ipv6Hash(view: DataView, header: number, length: number, seed: number): number {
  let hash = seed;
  for (let at = ip.IPV6_SOURCE; at < ip.IPV6_HEADER; at += 4) {
    hash = mix(hash, view.getInt32(header + at));
  }
  const upper = ip.ipv6UpperLayer(view, header, length);
  if (upper === ip.NO_UPPER_LAYER) return finish(hash);
  return upperHash(view, header, ip.upperOffset(upper), length, ip.upperProtocol(upper), hash);
}

function upperHash(
  view: DataView,
  header: number,
  offset: number,
  length: number,
  protocol: number,
  hash: number,
): number {
  const withProtocol = mix(hash, protocol);
  if (!hasPorts(protocol) || offset + PORTS > length) return finish(withProtocol);
  return finish(mix(withProtocol, view.getInt32(header + offset)));
}

function hasPorts(protocol: number): boolean {
  return (
    protocol === ip.PROTOCOL_TCP || protocol === ip.PROTOCOL_UDP || protocol === ip.PROTOCOL_SCTP
  );
}

/** The twelve bytes of both MAC addresses and the type. A length (802.3) is no type of traffic. */
function linkHash(view: DataView, frame: number, type: number, seed: number): number {
  let hash = mix(seed, view.getInt32(frame));
  hash = mix(hash, view.getInt32(frame + 4));
  hash = mix(hash, view.getInt32(frame + 8));
  return finish(mix(hash, type < ethernet.ETHERTYPE_MIN ? 0 : type));
}

/** MurmurHash3's body for one word. */
function mix(hash: number, word: number): number {
  let k = Math.imul(word, 0xcc9e2d51);
  k = (k << 15) | (k >>> 17);
  const h = hash ^ Math.imul(k, 0x1b873593);
  return (Math.imul((h << 13) | (h >>> 19), 5) + 0xe6546b64) | 0;
}

/** MurmurHash3's finalizer: the avalanche. */
function finish(hash: number): number {
  let h = hash | 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return h ^ (h >>> 16);
}
