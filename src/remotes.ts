/**
 * The remote VTEPs this process knows, each a row that both the dataplane (by index) and native
 * code (as a socket address) read from shared memory.
 *
 * One thread adds (the agent's); any thread looks up, without waiting: a row is complete before its
 * slot of the hash table points to it. Rows are not removed: an index, once given, means the same
 * address for as long as the process lives, so a stale index in a batch is at worst an old address.
 *
 * What the path to a remote carries is learned by the underlay (in native code by itself) and
 * forgotten after ten minutes, since only a datagram that is too long shows whether it still holds.
 * Any forwarding thread may learn and forget: the last one is right.
 *
 * Anybody can send the ICMP message by which it is learned. So a path that carries less than a station may be told
 * is believed to be **narrow**, no more: datagrams to it may be fragmented, and nothing is lost if that was a lie.
 *
 * Native code also counts, by remote, the ICMP errors that answered what was sent there.
 *
 * Index 0 is no remote: in the FDB it stands for the TAP.
 */
import ipaddr from "ipaddr.js";
import { ADDRESS_WORDS } from "./batch.ts";
import { VtepError } from "./errors.ts";
import { HEADER as ETHERNET_HEADER, TAG } from "./wire/ethernet.ts";
import { OVERHEAD_IPV4, OVERHEAD_IPV6 } from "./wire/vxlan.ts";

/** The destination "behind this VTEP's own TAP" in the FDB; never the index of a remote. */
export const LOCAL = 0;

/** Rows, the unused row 0 included. */
export const REMOTE_ROWS = 65_536;
/**
 * Words of a row: family (4 or 6), UDP port, address (ADDRESS_WORDS), the path's MTU where it was
 * learned, and the second in which that was noted.
 */
export const REMOTE_WORDS = 8;
const FAMILY = 0;
const PORT = 1;
const ADDRESS = 2;
const PATH_MTU = 6;
const LEARNED_AT = 7;
/** As long as the kernel keeps what it learned (net.ipv4.route.mtu_expires). */
const PATH_SECONDS = 600;

/** RFC 8200, section 5: every link carries packets of 1280 bytes, so no station is told less; they may be tagged twice. */
const LEAST = 1280 + 2 * TAG;
/** With an MTU of less, a path is narrow. */
const NARROW_IPV4 = LEAST + OVERHEAD_IPV4;
const NARROW_IPV6 = LEAST + OVERHEAD_IPV6;

/** What an outer header takes from the MTU of a path, that of the inner Ethernet not included. */
const OUTER_IPV4 = OVERHEAD_IPV4 - ETHERNET_HEADER;
const OUTER_IPV6 = OVERHEAD_IPV6 - ETHERNET_HEADER;

/** Behind the rows, for each of them: ICMP errors, modulo 2^32. */
const REFUSED = REMOTE_ROWS * REMOTE_WORDS;

/** What native code must agree with, as with `LAYOUT`. */
export const REMOTE_LAYOUT = {
  REMOTE_ROWS,
  REMOTE_WORDS,
  REMOTE_FAMILY: FAMILY,
  REMOTE_PORT: PORT,
  REMOTE_ADDRESS: ADDRESS,
  REMOTE_PATH_MTU: PATH_MTU,
  REMOTE_LEARNED_AT: LEARNED_AT,
  REMOTE_REFUSED: REFUSED,
  NARROW_IPV4,
  NARROW_IPV6,
} as const;

const COUNT = REFUSED + REMOTE_ROWS;
const SLOTS = 2 * REMOTE_ROWS;
const FIRST_SLOT = COUNT + 1;

/** The address as 16 bytes in network order, IPv4 as ::ffff:a.b.c.d, read as host-order words. */
export function addressWords(text: string): Int32Array {
  const address = ipaddr.process(text);
  const v6 = address.kind() === "ipv4" ? (address as ipaddr.IPv4).toIPv4MappedAddress() : address;
  return new Int32Array(Uint8Array.from(v6.toByteArray()).buffer);
}

/** The address in its one canonical spelling (RFC 5952), a mapped IPv4 address as IPv4. */
export function canonicalAddress(text: string): string {
  return ipaddr.process(text).toString();
}

/** 4 or 6. */
export function addressFamily(text: string): 4 | 6 {
  return ipaddr.process(text).kind() === "ipv4" ? 4 : 6;
}

/** Bytes that are around a packet on the way to this address. */
export function overheadTo(address: string): number {
  return addressFamily(address) === 4 ? OVERHEAD_IPV4 : OVERHEAD_IPV6;
}

export class Remotes {
  /** Rows, then what was refused by row, then the number of rows in use, then the hash table. */
  readonly words: Int32Array;
  /** What was added here, as it was written: a network's thousands of entries name a few over and over. */
  readonly #added = new Map<string, number>();
  /** By index, as text: a million entries of the FDB name a few over and over. */
  readonly #texts: string[] = [];

  constructor(memory = new SharedArrayBuffer((FIRST_SLOT + SLOTS) * 4)) {
    this.words = new Int32Array(memory);
  }

  /**
   * The index of this address, added if it is new. UDP `port` is where datagrams to it go. Throws VtepError
   * CONFLICT where every row is taken.
   */
  add(address: string, port: number): number {
    const index = this.#added.get(address) ?? this.#add(address, port);
    this.#added.set(address, index);
    return index;
  }

  #add(address: string, port: number): number {
    const words = addressWords(address);
    const known = this.find(words, 0);
    if (known !== LOCAL) return known;
    const index = this.words[COUNT]! + 1;
    if (index === REMOTE_ROWS) {
      throw new VtepError(
        "CONFLICT",
        `${REMOTE_ROWS - 1} remotes have been named since the start, and no more can be had: restart the agent, which forgets those that are not in use, or name fewer`,
      );
    }
    const row = index * REMOTE_WORDS;
    this.words[row + FAMILY] = addressFamily(address);
    this.words[row + PORT] = port;
    this.words.set(words, row + ADDRESS);
    let slot = slotOf(words, 0);
    while (this.words[FIRST_SLOT + slot] !== 0) slot = (slot + 1) % SLOTS;
    Atomics.store(this.words, FIRST_SLOT + slot, index);
    this.words[COUNT] = index;
    return index;
  }

  /** The index of the address at `words[at…at + 3]`, or LOCAL (0) when it is unknown. */
  find(words: Int32Array, at: number): number {
    for (let slot = slotOf(words, at); ; slot = (slot + 1) % SLOTS) {
      const index = Atomics.load(this.words, FIRST_SLOT + slot);
      if (index === 0 || this.#holds(index, words, at)) return index;
    }
  }

  /** Where in `words` the address of a remote begins. */
  addressAt(index: number): number {
    return index * REMOTE_WORDS + ADDRESS;
  }

  /** The address of a remote as text. */
  address(index: number): string {
    this.#texts[index] ??= formatAddress(this.words, this.addressAt(index));
    return this.#texts[index];
  }

  /** A destination of the FDB as users read it: "local", or the address of a remote. */
  place(destination: number): string {
    return destination === LOCAL ? "local" : this.address(destination);
  }

  /** Those that there are have the indices 1 to this. */
  get count(): number {
    return this.words[COUNT]!;
  }

  port(index: number): number {
    return this.words[index * REMOTE_WORDS + PORT]!;
  }

  /** ICMP errors about datagrams to a remote: nobody listens there, or no way leads there. */
  refused(index: number): number {
    return this.words[REFUSED + index]! >>> 0;
  }

  /** The MTU of the path to a remote, as learned; 0 while it has shown no limit of its own. */
  pathMtu(index: number): number {
    return this.words[index * REMOTE_WORDS + PATH_MTU]!;
  }

  /** Whether that is so little that datagrams may be fragmented. */
  isNarrow(index: number): boolean {
    const mtu = this.pathMtu(index);
    return mtu !== 0 && mtu < this.#leastMtu(index);
  }

  /** Bytes of the longest frame that is sent on the path whose MTU was learned. */
  longestFrame(index: number): number {
    const outer = this.words[index * REMOTE_WORDS] === 4 ? OUTER_IPV4 : OUTER_IPV6;
    return Math.max(this.pathMtu(index), this.#leastMtu(index)) - outer;
  }

  learnPathMtu(index: number, mtu: number): void {
    this.words[index * REMOTE_WORDS + LEARNED_AT] = 0;
    this.words[index * REMOTE_WORDS + PATH_MTU] = mtu;
  }

  /**
   * Forgets what was learned ten minutes ago; to be called about once a second, with the seconds of a
   * clock that never goes back. Who learns knows no clock, so it is noted here when that was.
   */
  forgetPaths(now: number): void {
    const end = (this.words[COUNT]! + 1) * REMOTE_WORDS;
    for (let row = REMOTE_WORDS; row < end; row += REMOTE_WORDS) {
      if (this.words[row + PATH_MTU] === 0) continue;
      const learnedAt = this.words[row + LEARNED_AT]!;
      if (learnedAt === 0) this.words[row + LEARNED_AT] = now;
      else if (now - learnedAt >= PATH_SECONDS) this.words[row + PATH_MTU] = 0;
    }
  }

  /** The remotes whose path has a known MTU: address and MTU. */
  paths(): { address: string; mtu: number }[] {
    const all = Array.from({ length: this.words[COUNT]! }, (_, at) => at + 1);
    const narrow = all.filter((index) => this.pathMtu(index) !== 0);
    return narrow.map((index) => ({ address: this.address(index), mtu: this.pathMtu(index) }));
  }

  #leastMtu(index: number): number {
    return this.words[index * REMOTE_WORDS] === 4 ? NARROW_IPV4 : NARROW_IPV6;
  }

  #holds(index: number, words: Int32Array, at: number): boolean {
    const row = index * REMOTE_WORDS + ADDRESS;
    return (
      this.words[row] === words[at] &&
      this.words[row + 1] === words[at + 1] &&
      this.words[row + 2] === words[at + 2] &&
      this.words[row + 3] === words[at + 3]
    );
  }
}

/** The address at `words[at…at + 3]` as text. */
export function formatAddress(words: Int32Array, at: number): string {
  const bytes = new Uint8Array(words.slice(at, at + ADDRESS_WORDS).buffer);
  return canonicalAddress(ipaddr.fromByteArray([...bytes]).toString());
}

function slotOf(words: Int32Array, at: number): number {
  let hash = words[at]! ^ Math.imul(words[at + 1]!, 0x9e3779b1 | 0);
  hash = Math.imul(hash ^ words[at + 2]!, 0x85ebca6b | 0);
  hash = Math.imul(hash ^ words[at + 3]! ^ (hash >>> 15), 0xc2b2ae35 | 0);
  return (hash ^ (hash >>> 16)) & (SLOTS - 1);
}
