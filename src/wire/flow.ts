/**
 * A hash of the inner flow, from which the outer UDP source port is chosen, so that routers and
 * NICs of the underlay spread flows over paths and queues without reordering one (RFC 7348
 * section 5, RFC 6335 for the range).
 *
 *     IPv4, IPv6    addresses, protocol, and ports of TCP, UDP and SCTP
 *     fragments     as the whole datagram would be, where the first fragment has been seen lately; else
 *                   addresses and protocol, for only the first has ports
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

/** Datagrams whose fragments are on their way at once: more forget each other. */
const DATAGRAMS = 256;

/**
 * What a flow is hashed with: a seed, any int32; and the hashes of datagrams by what all of their fragments have in
 * common, so that these stay with datagrams of the same flow that were not fragmented. Not helped is who sends
 * fragments out of order (the first is not first), or has extension headers in the fragmented part of IPv6, which a
 * whole datagram is looked at past.
 */
export class Flows {
  readonly seed: number;
  readonly #keys = new Int32Array(DATAGRAMS);
  readonly #hashes = new Int32Array(DATAGRAMS);

  constructor(seed: number) {
    this.seed = seed;
  }

  /** `key`: a hash of addresses, protocol and the datagram's identification. */
  remember(key: number, hash: number): number {
    this.#keys[key & (DATAGRAMS - 1)] = key;
    this.#hashes[key & (DATAGRAMS - 1)] = hash;
    return hash;
  }

  find(key: number, otherwise: number): number {
    const at = key & (DATAGRAMS - 1);
    return this.#keys[at] === key ? this.#hashes[at]! : otherwise;
  }
}

/**
 * Hashes the flow that the frame in [offset, offset + length) belongs to, to a signed int32.
 * Reads nothing outside of the frame, whatever is in it.
 */
export function flowHash(view: DataView, offset: number, length: number, flows: Flows): number {
  if (length < ethernet.HEADER) return finish(flows.seed);
  const network = ethernet.networkOffset(view, offset, length);
  if (network < 0) return linkHash(view, offset, 0, flows.seed);
  const type = ethernet.etherType(view, network);
  const rest = offset + length - network;
  if (type === ethernet.ETHERTYPE_IPV4 && ip.isIpv4(view, network, rest)) {
    return ipv4Hash(view, network, rest, flows);
  }
  if (type === ethernet.ETHERTYPE_IPV6 && ip.isIpv6(view, network, rest)) {
    return ipv6Hash(view, network, rest, flows);
  }
  return linkHash(view, offset, type, flows.seed);
}

/** The type of IPv4, then version 4 and a header of five words; the type of IPv6, then version 6. */
const PLAIN_IPV4 = 0x080045;
const IPV6 = 0x86dd6;
/** Where what tells of a flow ends in a frame, after the ports. */
const IPV4_TELLS = ethernet.HEADER + ip.IPV4_HEADER + PORTS;
const IPV6_TELLS = ethernet.HEADER + ip.IPV6_HEADER + PORTS;

/**
 * Whether others can be told to continue the flow of this frame: untagged IPv4 without options that is no fragment,
 * and IPv6 with ports right behind its header. That is most frames, and the others can be looked at one by one.
 */
export function tellsOfFlow(view: DataView, offset: number, length: number): boolean {
  if (length < IPV4_TELLS) return false;
  const kind = view.getInt32(offset + 12);
  if (kind >>> 8 === PLAIN_IPV4) return !ip.ipv4IsFragment(view, offset + ethernet.HEADER);
  return kind >>> 12 === IPV6 && length >= IPV6_TELLS && hasPorts(view.getUint8(offset + 20));
}

/**
 * Whether a frame goes between the same stations as the one at `before`, which tells of its flow, with the same
 * TOS and the same hash.
 */
export function continuesFlow(
  view: DataView,
  offset: number,
  length: number,
  before: number,
): boolean {
  if (length < IPV4_TELLS) return false;
  const kind = view.getInt32(offset + 12); // and the TOS
  if (kind !== view.getInt32(before + 12)) return false;
  const isIpv4 = kind >>> 8 === PLAIN_IPV4;
  const end = isIpv4 ? IPV4_TELLS : IPV6_TELLS;
  if (length < end) return false;
  // Addresses and ports; protocol or next header, TTL or hop limit, fragment; MACs.
  return (
    sameWords(view, offset, before, isIpv4 ? 26 : 22, end) &&
    sameWords(view, offset, before, 20, 24) &&
    sameWords(view, offset, before, 0, 12)
  );
}

/** Whether two places have the same 32-bit words in [begin, end) behind them. */
export function sameWords(
  view: DataView,
  one: number,
  other: number,
  begin: number,
  end: number,
): boolean {
  for (let at = begin; at < end; at += 4) {
    if (view.getInt32(one + at) !== view.getInt32(other + at)) return false;
  }
  return true;
}

function ipv4Hash(view: DataView, header: number, length: number, flows: Flows): number {
  const protocol = ip.ipv4Protocol(view, header);
  let hash = mix(flows.seed, ip.ipv4Source(view, header));
  hash = mix(hash, ip.ipv4Destination(view, header));
  const upper = ip.ipv4HeaderLength(view, header);
  if (!ip.ipv4IsFragment(view, header)) {
    return upperHash(view, header, upper, length, protocol, hash);
  }
  const common = mix(hash, protocol);
  const key = finish(mix(common, ip.ipv4Identification(view, header)));
  if (!ip.ipv4IsFirst(view, header)) return flows.find(key, finish(common));
  return flows.remember(key, upperHash(view, header, upper, length, protocol, hash));
}

function ipv6Hash(view: DataView, header: number, length: number, flows: Flows): number {
  let hash = flows.seed;
  for (let at = ip.IPV6_SOURCE; at < ip.IPV6_HEADER; at += 4) {
    hash = mix(hash, view.getInt32(header + at));
  }
  const upper = ip.ipv6UpperLayer(view, header, length);
  if (upper === ip.NO_UPPER_LAYER) return finish(hash);
  const offset = ip.upperOffset(upper);
  const protocol = ip.upperProtocol(upper);
  if (protocol !== ip.IPV6_FRAGMENT) {
    return upperHash(view, header, offset, length, protocol, hash);
  }
  const fragment = header + offset;
  const key = finish(mix(hash, ip.ipv6Identification(view, fragment)));
  if (!ip.ipv6IsFirst(view, fragment)) return flows.find(key, finish(mix(hash, protocol)));
  const behind = offset + ip.IPV6_FRAGMENT_HEADER;
  return flows.remember(
    key,
    upperHash(view, header, behind, length, ip.ipv6Behind(view, fragment), hash),
  );
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
