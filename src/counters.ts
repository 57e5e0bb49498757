/**
 * What forwarding threads count: a row a network, of doubles in shared memory (exact to 2^53), and
 * row 0 for what happens before a datagram's network is known; and a row a remote (`Traffic`). Every
 * forwarding thread has rows of its own, which it alone writes; any thread reads the sum of all.
 *
 * The reasons for drops are one fixed list. Where the kernel has, or had, a name for a reason, that is
 * the name (include/net/dropreason-core.h, which has since renamed VXLAN_NO_REMOTE to NO_TX_TARGET).
 */
import { constants } from "node:os";
import { ADDRESS_WORDS } from "./batch.ts";
import { formatAddress, REMOTE_ROWS } from "./remotes.ts";

/** Columns of a row: events. */
export const Counter = {
  /** Frames and bytes of inner frames sent to remotes; each copy of a flooded frame counts. */
  encapFrames: 0,
  encapBytes: 1,
  /** Frames and bytes of inner frames written to the TAP. */
  decapFrames: 2,
  decapBytes: 3,
  /** Frames from the TAP that went to the flood list: broadcast, unknown unicast, multicast. */
  flooded: 4,
  learned: 5,
  moved: 6,
  aged: 7,
  evicted: 8,
  /** Datagrams accepted although reserved bits of their VXLAN header were set (RFC 7348, 5). */
  reservedBits: 9,
  /** Frames of the gateway, which stay on their host. */
  gateway: 10,
  /** Frames from the TAP without the tag of the network's VLAN: they are another's. */
  otherVlan: 11,
  /** Senders that were told that a frame was too big for a path, and what that carries. */
  toldTooBig: 12,
  /** ICMP errors about datagrams that had been sent: nobody listens there, or no way leads there. */
  refused: 13,
} as const;

/** Columns of a row: frames dropped, by reason. */
export const Drop = {
  /** From the underlay with a tag, into a network that is a VLAN itself (RFC 7348, section 6.1). */
  VLAN_TAGGED: 15,
  /** Shorter than an Ethernet header. */
  PKT_TOO_SMALL: 16,
  /** Longer than the path, or than the largest frame any network here may carry. */
  PKT_TOO_BIG: 17,
  /** Source MAC zero or multicast. */
  MAC_INVALID_SOURCE: 18,
  /** From the underlay with the TAP's own source MAC: a loop, a duplicate address, another host's gateway. */
  LOCAL_MAC: 19,
  /** No VXLAN header, I flag clear, or reserved bits set in strict mode. */
  VXLAN_INVALID_HDR: 20,
  VXLAN_VNI_NOT_FOUND: 21,
  /** From an address that is no remote of the network. The kernel would accept it. */
  VXLAN_REMOTE_NOT_ALLOWED: 22,
  /** Source MAC contradicts a static or control-plane entry. */
  VXLAN_ENTRY_EXISTS: 23,
  /** Nowhere to send: destination unknown and the flood list empty. */
  VXLAN_NO_REMOTE: 24,
  /** A send queue was full. */
  FULL_RING: 25,
  /** The TAP is down, or the underlay refused the frame. */
  DEV_READY: 26,
  IP_OUTNOROUTES: 27,
  /** The host's firewall refused the datagram. */
  NETFILTER_DROP: 28,
  /** Arrived and found the receive buffer full. */
  SOCKET_RCVBUFF: 29,
  /** Marked "congestion experienced" around a frame that cannot say so (RFC 6040, section 4.2). */
  IP_TUNNEL_ECN: 30,
} as const;

export type DropReason = keyof typeof Drop;

/**
 * Columns of row 0: how the forwarding threads work, whatever network it is for. Of these, what is a
 * mean (rows a batch, segments a super-frame, datagrams a train) is for the reader to divide.
 */
export const Work = {
  /** Reads of TAPs that found something, and the frames that they found. */
  encapBatches: 31,
  encapRows: 32,
  /** Reads of the underlay that found something, and the datagrams or trains that they found. */
  decapBatches: 33,
  decapRows: 34,
  /** Frames of those read from TAPs that are to be cut, and the segments that makes. */
  superFrames: 35,
  segments: 36,
  /** Those received that the kernel had joined, and the datagrams in them. */
  trains: 37,
  datagrams: 38,
} as const;

/** Bounds in seconds of the classes that `late` sorts into; above the last is one more. */
export const LATENESS_BOUNDS = [0.005, 0.01, 0.05, 0.1, 1] as const;
/** Columns of row 0: how often a thread was so late, in the classes; then the sum of seconds. */
const LATENESS = 39;
const LATENESS_SUM = LATENESS + LATENESS_BOUNDS.length + 1;

const ROW_WORDS = 48;
/** The last two doubles of a row: an address, as ADDRESS_WORDS words of int32. */
const STRANGER = 46;

export class Counters {
  readonly memory: SharedArrayBuffer;
  readonly #cells: Float64Array;
  readonly #words: Int32Array;
  /** Doubles of one forwarding thread's rows, and where those begin that this object writes. */
  readonly #block: number;
  readonly #own: number;

  static allocate(networks: number, workers: number): SharedArrayBuffer {
    return new SharedArrayBuffer(workers * (networks + 1) * ROW_WORDS * 8);
  }

  /** `workers` as it was allocated for; `worker`, from 0, is the forwarding thread that writes. */
  constructor(memory: SharedArrayBuffer, workers: number, worker = 0) {
    this.memory = memory;
    this.#cells = new Float64Array(memory);
    this.#words = new Int32Array(memory);
    this.#block = this.#cells.length / workers;
    this.#own = worker * this.#block;
  }

  /** Adds `amount` to a column (of Counter or Drop) of a network's row; network 0 is none. */
  add(network: number, column: number, amount: number): void {
    const cell = this.#own + network * ROW_WORDS + column;
    this.#cells[cell] = this.#cells[cell]! + amount;
  }

  /** Makes a row start anew, of all threads; none of them may be counting in it. */
  clear(network: number): void {
    for (let block = 0; block < this.#cells.length; block += this.#block) {
      const row = block + network * ROW_WORDS;
      this.#cells.fill(0, row, row + ROW_WORDS);
    }
  }

  /** What this thread alone has counted. */
  own(network: number, column: number): number {
    return this.#cells[this.#own + network * ROW_WORDS + column]!;
  }

  /** The sum over all forwarding threads. */
  get(network: number, column: number): number {
    let sum = 0;
    for (let cell = network * ROW_WORDS + column; cell < this.#cells.length; cell += this.#block) {
      sum += this.#cells[cell]!;
    }
    return sum;
  }

  /** What each forwarding thread has counted. */
  ofEach(network: number, column: number): number[] {
    const workers = Array.from({ length: this.#cells.length / this.#block });
    return workers.map((_, worker) => {
      return this.#cells[worker * this.#block + network * ROW_WORDS + column]!;
    });
  }

  /** Notes by how many seconds this thread came late to what it does once a second. */
  late(seconds: number): void {
    const above = LATENESS_BOUNDS.findIndex((bound) => seconds <= bound);
    this.add(0, LATENESS + (above < 0 ? LATENESS_BOUNDS.length : above), 1);
    this.add(0, LATENESS_SUM, seconds);
  }

  /** How often a thread was late, by class (LATENESS_BOUNDS), and by how many seconds in all. */
  lateness(worker: number): { classes: number[]; sum: number } {
    const cell = worker * this.#block + LATENESS;
    const sum = cell + LATENESS_BOUNDS.length + 1;
    return { classes: [...this.#cells.subarray(cell, sum)], sum: this.#cells[sum]! };
  }

  /** Remembers the address at `words[at…at + 3]` as the one that was refused last in a network. */
  setStranger(network: number, words: Int32Array, at: number): void {
    const cell = (this.#own + network * ROW_WORDS + STRANGER) * 2;
    for (let word = 0; word < ADDRESS_WORDS; word++) this.#words[cell + word] = words[at + word]!;
  }

  /** The address that a thread refused last (VXLAN_REMOTE_NOT_ALLOWED), if it refused any. */
  stranger(network: number, worker = 0): string | undefined {
    const row = worker * this.#block + network * ROW_WORDS;
    if (this.#cells[row + Drop.VXLAN_REMOTE_NOT_ALLOWED] === 0) return undefined;
    return formatAddress(this.#words, (row + STRANGER) * 2);
  }

  /** Every event of a network by name. */
  events(network: number): Record<keyof typeof Counter, number> {
    return this.#named(network, Counter);
  }

  /** The drops of a network by reason, those that happened. */
  drops(network: number): Partial<Record<DropReason, number>> {
    const all = Object.entries(this.#named(network, Drop));
    return Object.fromEntries(all.filter(([, count]) => count > 0));
  }

  #named<Name extends string>(
    network: number,
    columns: Record<Name, number>,
  ): Record<Name, number> {
    const names = Object.keys(columns) as Name[];
    const counts = names.map((name) => [name, this.get(network, columns[name])]);
    return Object.fromEntries(counts) as Record<Name, number>;
  }
}

/** Who was refused since it was asked last, and not whom some thread refused long before. */
export class Strangers {
  readonly #known = new Map<number, readonly number[]>();

  /** Its counters begin anew. */
  forget(network: number): void {
    this.#known.delete(network);
  }

  /** The last one of the thread that refused most since then. */
  since(counters: Counters, network: number): string | undefined {
    const now = counters.ofEach(network, Drop.VXLAN_REMOTE_NOT_ALLOWED);
    const before = this.#known.get(network);
    this.#known.set(network, now);
    const grown = now.map((count, worker) => count - (before?.[worker] ?? 0));
    return counters.stranger(network, grown.indexOf(Math.max(...grown)));
  }
}

/** The sum of drops by reason. */
export function sumOfDrops(
  all: Iterable<Readonly<Record<string, number>>>,
): Record<string, number> {
  const sum: Record<string, number> = {};
  for (const drops of all) {
    for (const [reason, count] of Object.entries(drops)) sum[reason] = (sum[reason] ?? 0) + count;
  }
  return sum;
}

/** What was added to each reason; those that nothing was added to are left out. */
export function growthOfDrops(
  now: Readonly<Record<string, number>>,
  before: Readonly<Record<string, number>>,
): Record<string, number> {
  const grown = Object.entries(now).map(([reason, count]) => {
    return [reason, count - (before[reason] ?? 0)] as const;
  });
  return Object.fromEntries(grown.filter(([, count]) => count > 0));
}

/** Of all reasons together. */
export function totalDrops(drops: Readonly<Record<string, number>>): number {
  return Object.values(drops).reduce((sum, count) => sum + count, 0);
}

/** Columns of a remote's row; each has the bytes behind the frames. */
export const TO_REMOTE = 0;
export const FROM_REMOTE = 2;
export type Way = typeof TO_REMOTE | typeof FROM_REMOTE;
const TRAFFIC_COLUMNS = 4;

/** Frames and bytes that crossed, by remote: as many in all as the networks' rows have. */
export class Traffic {
  readonly memory: SharedArrayBuffer;
  readonly #cells: Float64Array;
  readonly #block: number;
  readonly #own: number;

  /** Pages are taken from the system when they are first written: with the remotes that there are. */
  static allocate(workers: number): SharedArrayBuffer {
    return new SharedArrayBuffer(workers * REMOTE_ROWS * TRAFFIC_COLUMNS * 8);
  }

  /** As of `Counters`. */
  constructor(memory: SharedArrayBuffer, workers: number, worker = 0) {
    this.memory = memory;
    this.#cells = new Float64Array(memory);
    this.#block = this.#cells.length / workers;
    this.#own = worker * this.#block;
  }

  add(remote: number, way: Way, frames: number, bytes: number): void {
    const cell = this.#own + remote * TRAFFIC_COLUMNS + way;
    this.#cells[cell] = this.#cells[cell]! + frames;
    this.#cells[cell + 1] = this.#cells[cell + 1]! + bytes;
  }

  /** The sums over all forwarding threads. */
  get(remote: number, way: Way): { frames: number; bytes: number } {
    let [frames, bytes] = [0, 0];
    const first = remote * TRAFFIC_COLUMNS + way;
    for (let cell = first; cell < this.#cells.length; cell += this.#block) {
      frames += this.#cells[cell]!;
      bytes += this.#cells[cell + 1]!;
    }
    return { frames, bytes };
  }
}

const { errno } = constants;

/** The reason that a device's errno stands for. */
export function dropOfErrno(error: number): number {
  switch (error) {
    case errno.EMSGSIZE:
      return Drop.PKT_TOO_BIG;
    case errno.EAGAIN:
    case errno.ENOBUFS:
    case errno.ENOMEM:
      return Drop.FULL_RING;
    case errno.ENETUNREACH:
    case errno.EHOSTUNREACH:
    case errno.ENETDOWN:
      return Drop.IP_OUTNOROUTES;
    case errno.EPERM:
    case errno.EACCES:
      return Drop.NETFILTER_DROP;
    default:
      return Drop.DEV_READY;
  }
}
