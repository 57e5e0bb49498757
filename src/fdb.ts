/**
 * The forwarding database: (network, MAC) → destination, for all networks of a process in one block
 * of shared memory.
 *
 * **Shape.** A seeded hash table of chains over a pool of entries that fills from its start, so a
 * small FDB stays in the cache and memory that was never used is never touched. An entry is eight
 * words of int32; entry 0 is "none". Its route is one word, destination << 2 | origin, hence read
 * and replaced whole.
 *
 * **Who may do what.** Any thread looks up, learns and edits. Lookups never wait and never lock: an
 * entry's key is cleared before its route changes meaning and written after, and a reader reads the
 * key on both sides of the route. A reader that meets an entry while it is being recycled takes it
 * for a miss, and that frame is flooded: correct, if not thrifty. Writers exclude each other by one
 * lock word. The dataplane only ever *tries* it, for when another thread was put to sleep inside,
 * forwarding must go on: the frame is forwarded, and the next one from that MAC is learned. The
 * agent's edits wait for it.
 *
 * **Ageing.** Learned entries of a network form a list in the order in which they were last seen,
 * to the second. The oldest is its head: ageing looks there until it meets one that is young enough,
 * and eviction (a network at its limit, or no entry left in the pool) takes it. No sweep.
 *
 * **Precedence.** static > control plane > learned. A learned entry follows its MAC to a new remote
 * at once; one with a higher origin stays where it is and the frame that contradicts it is refused
 * (the kernel's VXLAN_ENTRY_EXISTS, drivers/net/vxlan/vxlan_core.c, vxlan_snoop). Only learned
 * entries age, count against the limit, or are evicted.
 *
 * **Limits.** A chain longer than CHAIN_LIMIT is not followed; the seed makes that a matter of
 * 10^-100 rather than of an attacker's choice of MACs. A reader that follows a recycled entry into
 * another chain is stopped by the same limit.
 */
/** Origins, the weightiest last. */
export const LEARNED = 1;
export const CONTROL = 2;
export const STATIC = 3;
export type Origin = typeof LEARNED | typeof CONTROL | typeof STATIC;

/** What `learn` did. */
export const SEEN = 0; // known at that destination
export const ADDED = 1;
export const EVICTED = 2; // added, and the oldest learned entry went for it
export const MOVED = 3; // it was behind another destination
export const REFUSED = 4; // an entry of higher origin says otherwise
export const PASSED = 5; // not noted: another writer was at work, or no entry is to be had
export type Learnt =
  | typeof SEEN
  | typeof ADDED
  | typeof EVICTED
  | typeof MOVED
  | typeof REFUSED
  | typeof PASSED;

/** Networks that one FDB can hold; a network is known here by its index, from 1. */
export const NETWORKS = 65_536;

const LOCK = 0;
const SEED = 1;
const CAPACITY = 2;
/** Free entries that were used before, chained by CHAIN. */
const FREE = 3;
/** Entries from here on were never used. */
const FRESH = 4;
const HEADER_WORDS = 16;

const NETWORK_WORDS = 8;
const OLDEST = 0;
const NEWEST = 1;
const LEARNED_COUNT = 2;
const LIMIT = 3;

const ENTRY_WORDS = 8;
const KEY_LOW = 0;
/** MAC bits 47…32 << 16 | network index; 0 while the entry is not in use. */
const KEY_HIGH = 1;
const ROUTE = 2;
const SEEN_AT = 3;
const MOVES = 4;
const CHAIN = 5;
const OLDER = 6;
const NEWER = 7;

const CHAIN_LIMIT = 64;

/** One row of a listing. */
export interface FdbRow {
  readonly network: number;
  readonly macHigh: number;
  readonly macLow: number;
  /** LOCAL or the index of a remote. */
  readonly destination: number;
  readonly origin: Origin;
  /** Seconds on the dataplane's clock; of learned entries only. */
  readonly seenAt: number;
  readonly moves: number;
}

export class Fdb {
  readonly memory: SharedArrayBuffer;
  readonly #words: Int32Array;
  readonly #capacity: number;
  readonly #seed: number;
  readonly #mask: number;
  /** Word offsets of the regions behind the header and the networks; entry 0 is never used. */
  readonly #buckets: number;
  readonly #entries: number;

  /** Memory for `capacity` entries; pages are taken from the system when they are first written. */
  static allocate(capacity: number, seed: number): SharedArrayBuffer {
    const words =
      HEADER_WORDS + NETWORKS * NETWORK_WORDS + bucketsFor(capacity) + (capacity + 1) * ENTRY_WORDS;
    const memory = new SharedArrayBuffer(words * 4);
    const header = new Int32Array(memory, 0, HEADER_WORDS);
    header[SEED] = seed;
    header[CAPACITY] = capacity;
    header[FRESH] = 1;
    return memory;
  }

  constructor(memory: SharedArrayBuffer) {
    this.memory = memory;
    this.#words = new Int32Array(memory);
    this.#seed = this.#words[SEED]!;
    this.#capacity = this.#words[CAPACITY]!;
    const buckets = bucketsFor(this.#capacity);
    this.#mask = buckets - 1;
    this.#buckets = HEADER_WORDS + NETWORKS * NETWORK_WORDS;
    this.#entries = this.#buckets + buckets;
  }

  /**
   * Where frames for this MAC go: LOCAL, the index of a remote, or −1 when it is unknown.
   * `macHigh` are the MAC's first 16 bits, `macLow` its last 32 as a signed number.
   */
  lookup(network: number, macHigh: number, macLow: number): number {
    const route = this.#route(this.#find(network, macHigh, macLow), network, macHigh, macLow);
    return route === 0 ? -1 : route >> 2;
  }

  /**
   * Notes that a frame from this MAC came from `destination` at `now` (seconds). Never waits.
   */
  learn(
    network: number,
    macHigh: number,
    macLow: number,
    destination: number,
    now: number,
  ): Learnt {
    const entry = this.#find(network, macHigh, macLow);
    const route = this.#route(entry, network, macHigh, macLow);
    if (route === ((destination << 2) | LEARNED) && this.#words[entry + SEEN_AT] === now) {
      return SEEN;
    }
    if ((route & 3) > LEARNED) return route >> 2 === destination ? SEEN : REFUSED;
    if (!this.#tryLock()) return PASSED;
    const learnt = this.#learnLocked(network, macHigh, macLow, destination, now);
    this.#unlock();
    return learnt;
  }

  /**
   * Enters or replaces an entry of the control plane or of the configuration. Returns false when an
   * entry of higher origin is there, or no entry is left. May wait for another writer.
   */
  set(
    network: number,
    macHigh: number,
    macLow: number,
    destination: number,
    origin: typeof CONTROL | typeof STATIC,
  ): boolean {
    this.#lock();
    const words = this.#words;
    let entry = this.#find(network, macHigh, macLow);
    let done = true;
    if (entry === 0) {
      entry = this.#take(network);
      if (entry === 0) done = false;
      else this.#enter(entry, network, macHigh, macLow, (destination << 2) | origin);
    } else if ((words[entry + ROUTE]! & 3) > origin) {
      done = false;
    } else {
      if ((words[entry + ROUTE]! & 3) === LEARNED) this.#unlist(entry, network);
      Atomics.store(words, entry + ROUTE, (destination << 2) | origin);
    }
    this.#unlock();
    return done;
  }

  /** Removes the entry if it is of this origin; returns whether it was. May wait for a writer. */
  delete(network: number, macHigh: number, macLow: number, origin: Origin): boolean {
    this.#lock();
    const entry = this.#find(network, macHigh, macLow);
    const found = entry !== 0 && (this.#words[entry + ROUTE]! & 3) === origin;
    if (found) this.#remove(entry);
    this.#unlock();
    return found;
  }

  /** The most learned entries a network may have. */
  setLimit(network: number, limit: number): void {
    this.#words[this.#networkAt(network) + LIMIT] = limit;
  }

  /**
   * Removes learned entries of a network that were last seen more than `age` seconds before `now`,
   * `budget` at most; returns how many. Never waits: what is left over goes next time.
   */
  expire(network: number, now: number, age: number, budget: number): number {
    const head = this.#networkAt(network) + OLDEST;
    const words = this.#words;
    if (words[head] === 0 || !this.#tryLock()) return 0;
    let aged = 0;
    while (aged < budget) {
      const entry = words[head]!;
      if (entry === 0 || now - words[entry + SEEN_AT]! <= age) break;
      this.#remove(entry);
      aged++;
    }
    this.#unlock();
    return aged;
  }

  /** All entries, in no order; safe beside writers, which it may or may not see. */
  *rows(): Generator<FdbRow> {
    const words = this.#words;
    const end = this.#entries + Atomics.load(words, FRESH) * ENTRY_WORDS;
    for (let entry = this.#entries + ENTRY_WORDS; entry < end; entry += ENTRY_WORDS) {
      const keyHigh = Atomics.load(words, entry + KEY_HIGH);
      const network = keyHigh & 0xffff;
      const macHigh = keyHigh >>> 16;
      const macLow = words[entry + KEY_LOW]!;
      const route = this.#route(entry, network, macHigh, macLow);
      if (network === 0 || route === 0) continue;
      yield {
        network,
        macHigh,
        macLow,
        destination: route >> 2,
        origin: (route & 3) as Origin,
        seenAt: words[entry + SEEN_AT]!,
        moves: words[entry + MOVES]!,
      };
    }
  }

  /** The route of an entry if the entry still has this key, else 0. */
  #route(entry: number, network: number, macHigh: number, macLow: number): number {
    if (entry === 0) return 0;
    const route = Atomics.load(this.#words, entry + ROUTE);
    return this.#matches(entry, keyHighOf(network, macHigh), macLow) ? route : 0;
  }

  #matches(entry: number, keyHigh: number, keyLow: number): boolean {
    return (
      Atomics.load(this.#words, entry + KEY_LOW) === keyLow &&
      Atomics.load(this.#words, entry + KEY_HIGH) === keyHigh
    );
  }

  /** Word offset of the entry with this key, or 0. */
  #find(network: number, macHigh: number, macLow: number): number {
    const keyHigh = keyHighOf(network, macHigh);
    let entry = Atomics.load(this.#words, this.#bucketOf(keyHigh, macLow));
    for (let hops = 0; entry !== 0 && hops < CHAIN_LIMIT; hops++) {
      if (this.#matches(entry, keyHigh, macLow)) return entry;
      entry = Atomics.load(this.#words, entry + CHAIN);
    }
    return 0;
  }

  #bucketOf(keyHigh: number, keyLow: number): number {
    let hash = Math.imul(keyHigh ^ this.#seed, 0x85ebca6b | 0);
    hash = Math.imul(hash ^ (hash >>> 15) ^ keyLow, 0xc2b2ae35 | 0);
    hash = Math.imul(hash ^ (hash >>> 13), 0x27d4eb2f);
    return this.#buckets + ((hash ^ (hash >>> 16)) & this.#mask);
  }

  #networkAt(network: number): number {
    return HEADER_WORDS + network * NETWORK_WORDS;
  }

  // From here on: with the lock held.

  #learnLocked(
    network: number,
    macHigh: number,
    macLow: number,
    destination: number,
    now: number,
  ): Learnt {
    const words = this.#words;
    const entry = this.#find(network, macHigh, macLow);
    if (entry === 0) return this.#add(network, macHigh, macLow, destination, now);
    const route = words[entry + ROUTE]!;
    if ((route & 3) > LEARNED) return route >> 2 === destination ? SEEN : REFUSED;
    this.#unlist(entry, network);
    this.#list(entry, network, now);
    if (route >> 2 === destination) return SEEN;
    Atomics.store(words, entry + ROUTE, (destination << 2) | LEARNED);
    words[entry + MOVES] = words[entry + MOVES]! + 1;
    return MOVED;
  }

  #add(network: number, macHigh: number, macLow: number, destination: number, now: number): Learnt {
    const words = this.#words;
    const row = this.#networkAt(network);
    const before = words[row + LEARNED_COUNT]!;
    if (words[row + LIMIT] === 0) return PASSED;
    if (before >= words[row + LIMIT]!) this.#remove(words[row + OLDEST]!);
    const entry = this.#take(network);
    if (entry === 0) return PASSED;
    const evicted = words[row + LEARNED_COUNT]! < before;
    this.#enter(entry, network, macHigh, macLow, (destination << 2) | LEARNED);
    this.#list(entry, network, now);
    return evicted ? EVICTED : ADDED;
  }

  /** An entry out of the pool, or the network's oldest learned one when the pool is used up. */
  #take(network: number): number {
    const words = this.#words;
    if (words[FREE] === 0 && words[FRESH]! > this.#capacity) {
      const oldest = words[this.#networkAt(network) + OLDEST]!;
      if (oldest === 0) return 0;
      this.#remove(oldest);
    }
    const freed = words[FREE]!;
    if (freed !== 0) {
      words[FREE] = words[freed + CHAIN]!;
      return freed;
    }
    const fresh = this.#entries + words[FRESH]! * ENTRY_WORDS;
    words[FRESH] = words[FRESH]! + 1;
    return fresh;
  }

  /** Puts an entry at the head of its chain, its key last of all. */
  #enter(entry: number, network: number, macHigh: number, macLow: number, route: number): void {
    const words = this.#words;
    const keyHigh = keyHighOf(network, macHigh);
    const bucket = this.#bucketOf(keyHigh, macLow);
    Atomics.store(words, entry + ROUTE, route);
    words[entry + MOVES] = 0;
    Atomics.store(words, entry + CHAIN, words[bucket]!);
    Atomics.store(words, entry + KEY_LOW, macLow);
    Atomics.store(words, entry + KEY_HIGH, keyHigh);
    Atomics.store(words, bucket, entry);
  }

  #remove(entry: number): void {
    const words = this.#words;
    const keyHigh = words[entry + KEY_HIGH]!;
    if ((words[entry + ROUTE]! & 3) === LEARNED) this.#unlist(entry, keyHigh & 0xffff);
    let link = this.#bucketOf(keyHigh, words[entry + KEY_LOW]!);
    while (words[link] !== entry) link = words[link]! + CHAIN;
    Atomics.store(words, link, words[entry + CHAIN]!);
    Atomics.store(words, entry + KEY_HIGH, 0);
    words[entry + CHAIN] = words[FREE]!;
    words[FREE] = entry;
  }

  /** Appends a learned entry to its network's list as the one seen last. */
  #list(entry: number, network: number, now: number): void {
    const words = this.#words;
    const row = this.#networkAt(network);
    const newest = words[row + NEWEST]!;
    words[entry + SEEN_AT] = now;
    words[entry + OLDER] = newest;
    words[entry + NEWER] = 0;
    if (newest === 0) words[row + OLDEST] = entry;
    else words[newest + NEWER] = entry;
    words[row + NEWEST] = entry;
    words[row + LEARNED_COUNT] = words[row + LEARNED_COUNT]! + 1;
  }

  #unlist(entry: number, network: number): void {
    const words = this.#words;
    const row = this.#networkAt(network);
    const older = words[entry + OLDER]!;
    const newer = words[entry + NEWER]!;
    if (older === 0) words[row + OLDEST] = newer;
    else words[older + NEWER] = newer;
    if (newer === 0) words[row + NEWEST] = older;
    else words[newer + OLDER] = older;
    words[row + LEARNED_COUNT] = words[row + LEARNED_COUNT]! - 1;
  }

  #tryLock(): boolean {
    return Atomics.compareExchange(this.#words, LOCK, 0, 1) === 0;
  }

  #lock(): void {
    while (!this.#tryLock()) Atomics.wait(this.#words, LOCK, 1, 1);
  }

  #unlock(): void {
    Atomics.store(this.#words, LOCK, 0);
  }
}

/** Buckets for a capacity: the power of two that gives at most one entry a bucket on average. */
function bucketsFor(capacity: number): number {
  return 2 ** Math.ceil(Math.log2(capacity));
}

function keyHighOf(network: number, macHigh: number): number {
  return (macHigh << 16) | network;
}
