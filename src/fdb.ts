/**
 * The forwarding database: (network, MAC) → destination, for all networks of a process in one block
 * of shared memory.
 *
 * **Shape.** A seeded hash table of chains over a pool of entries that fills from its start, so a
 * small FDB stays in the cache and memory that was never used is never touched. An entry is eight
 * words of int32; entry 0 is "none". Its route is one word, generation << 18 | destination << 2 |
 * origin, hence read and replaced whole; the generation counts how often the entry was recycled.
 *
 * **Who may do what.** Any thread looks up, learns and edits. Lookups never wait and never lock: an
 * entry's key is cleared before its route changes meaning and written after, its high word last and
 * read first, and a reader reads the generation on both sides of the key. A reader that meets an
 * entry while it is being recycled takes it for a miss, and that frame is flooded: correct, if not
 * thrifty. Writers exclude each other by one lock word. The dataplane only ever *tries* it, for when
 * another thread was put to sleep inside, forwarding must go on: the frame is forwarded, and the
 * next one from that MAC is learned. The agent's edits wait for it.
 *
 * **Ageing.** Learned entries of a network form a list in the order in which they were last seen,
 * to the second. The oldest is its head: ageing looks there until it meets one that is young enough,
 * and eviction (a network at its limit, or no entry left in the pool) takes it. No sweep. Where the pool is used up by
 * other networks, a MAC is not learned; an entry of higher origin takes the place of one of whoever has the most.
 *
 * **Precedence.** static > control plane > learned. A learned entry follows its MAC to a new remote
 * at once; one with a higher origin stays where it is and the frame that contradicts it is refused
 * (the kernel's VXLAN_ENTRY_EXISTS, drivers/net/vxlan/vxlan_core.c, vxlan_snoop). Only learned
 * entries age, count against the limit, or are evicted.
 *
 * **Journal.** What is learned, moves, ages or is evicted is also written to a ring, by whoever holds the
 * lock. Whoever wants to know what happens reads that now and then, and learns how much of it was
 * overwritten meanwhile. What the agent removes, or overrides by a weightier entry, is not in it.
 *
 * **Limits.** A chain longer than CHAIN_LIMIT is not followed; the seed makes that a matter of
 * 10^-90 rather than of an attacker's choice of MACs, because the hash is a keyed one: a multiplying
 * hash has sets of MACs that collide under every seed. A reader that follows a recycled entry into
 * another chain is stopped by the same limit.
 */
/** Origins, the weightiest last. */
export const LEARNED = 1;
export const CONTROL = 2;
export const STATIC = 3;
/** As users read them. */
export const ORIGIN_NAMES = {
  [LEARNED]: "learned",
  [CONTROL]: "control",
  [STATIC]: "static",
} as const;
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

/** What became of a learned entry, besides ADDED, MOVED and EVICTED. */
export const AGED = 6;

/** Networks that one FDB can hold; a network is known here by its index, from 1. */
export const NETWORKS = 65_536;

const LOCK = 0;
const SEED = 1;
const CAPACITY = 2;
/** Free entries that were used before, chained by CHAIN. */
const FREE = 3;
/** Entries from here on were never used. */
const FRESH = 4;
/** Changes that were ever written to the journal, modulo 2^32. */
const WRITTEN = 5;
/** The last network that ever had a limit, and so could learn. */
const LAST = 6;
const HEADER_WORDS = 16;

const NETWORK_WORDS = 8;
const OLDEST = 0;
const NEWEST = 1;
const LEARNED_COUNT = 2;
const LIMIT = 3;
/** Entries of the control plane, and of the configuration. */
const CONTROL_COUNT = 4;
const STATIC_COUNT = 5;
const COUNTS = { [LEARNED]: LEARNED_COUNT, [CONTROL]: CONTROL_COUNT, [STATIC]: STATIC_COUNT };

/** Changes that the journal holds, a power of two. */
export const JOURNAL_ROWS = 4096;
const JOURNAL_WORDS = 8;
/** Rows before the one that is overwritten next are not trusted: processors may write ahead of their word. */
const JOURNAL_MARGIN = 16;
const CHANGE = 2;
const DESTINATION = 3;
const BEFORE = 4;
const MOVED_TIMES = 5;

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

/** Destination and origin in a route; the bits above count generations. */
const ROUTE_MASK = 0x3ffff;
const NEXT_GENERATION = ROUTE_MASK + 1;

const CHAIN_LIMIT = 64;

/** Entries that are looked through at once: a millisecond's work, or some where each is told. */
export const LOT = 2048;

/** HalfSipHash-1-3: a round for each word of the message and one for its length, then three. */
const HASH_ROUNDS = 6;
const HASH_LENGTH = 8 << 24;

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
  /** Modulo 2^32. */
  readonly moves: number;
}

/** What became of a learned entry. */
export interface FdbChange {
  readonly change: typeof ADDED | typeof MOVED | typeof AGED | typeof EVICTED;
  readonly network: number;
  readonly macHigh: number;
  readonly macLow: number;
  /** Where it is now, or was until it went: LOCAL or the index of a remote. */
  readonly destination: number;
  /** Where it was before it moved. */
  readonly before: number;
  /** Modulo 2^32. */
  readonly moves: number;
}

export class Fdb {
  readonly memory: SharedArrayBuffer;
  readonly #words: Int32Array;
  readonly #capacity: number;
  readonly #seed: number;
  readonly #mask: number;
  /** Word offsets of the regions behind the header and the networks; entry 0 is never used. */
  readonly #journal: number;
  readonly #buckets: number;
  readonly #entries: number;

  /** Memory for `capacity` entries; pages are taken from the system when they are first written. */
  static allocate(capacity: number, seed: number): SharedArrayBuffer {
    const fixed = HEADER_WORDS + NETWORKS * NETWORK_WORDS + JOURNAL_ROWS * JOURNAL_WORDS;
    const words = fixed + bucketsFor(capacity) + (capacity + 1) * ENTRY_WORDS;
    const memory = new SharedArrayBuffer(words * 4);
    const header = new Int32Array(memory, 0, HEADER_WORDS);
    header[SEED] = seed;
    header[CAPACITY] = capacity;
    header[FRESH] = 1;
    return memory;
  }

  /** All of it, as native code sees it. */
  get words(): Int32Array {
    return this.#words;
  }

  constructor(memory: SharedArrayBuffer) {
    this.memory = memory;
    this.#words = new Int32Array(memory);
    this.#seed = this.#words[SEED]!;
    this.#capacity = this.#words[CAPACITY]!;
    const buckets = bucketsFor(this.#capacity);
    this.#mask = buckets - 1;
    this.#journal = HEADER_WORDS + NETWORKS * NETWORK_WORDS;
    this.#buckets = this.#journal + JOURNAL_ROWS * JOURNAL_WORDS;
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
   * What says that this MAC is at `destination`: into `guard`, from `at` on, come the place of the entry's three first
   * words in `words`, and what they are for as long as it says so. False where no entry does.
   */
  guard(
    network: number,
    macHigh: number,
    macLow: number,
    destination: number,
    guard: Int32Array,
    at: number,
  ): boolean {
    const entry = this.#find(network, macHigh, macLow);
    const route = this.#route(entry, network, macHigh, macLow);
    const whole = Atomics.load(this.#words, entry + ROUTE);
    if (route === 0 || route >> 2 !== destination || (whole & ROUTE_MASK) !== route) return false;
    guard[at] = entry;
    guard[at + 1 + KEY_LOW] = macLow;
    guard[at + 1 + KEY_HIGH] = keyHighOf(network, macHigh);
    guard[at + 1 + ROUTE] = whole;
    return true;
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
   * Enters what was learned before all else that the network has learned, seen last at `seenAt`, as the first to age;
   * nothing where anything is known of the MAC, or no room is left. Returns whether it was entered. It is no news, so the
   * journal has nothing of it. May wait for another writer.
   */
  recall(
    network: number,
    macHigh: number,
    macLow: number,
    destination: number,
    seenAt: number,
  ): boolean {
    this.#lock();
    const words = this.#words;
    const row = this.#networkAt(network);
    const hasRoom = words[row + LEARNED_COUNT]! < words[row + LIMIT]! && !this.#isUsedUp();
    const isEntered = hasRoom && this.#find(network, macHigh, macLow) === 0;
    if (isEntered) {
      const entry = this.#take(network);
      this.#enter(entry, network, macHigh, macLow, (destination << 2) | LEARNED);
      this.#listFirst(entry, network, seenAt);
    }
    this.#unlock();
    return isEntered;
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
      // It weighs more than what any network has learned.
      entry = this.#take(network) || this.#take(this.#fullest());
      if (entry === 0) done = false;
      else {
        this.#enter(entry, network, macHigh, macLow, (destination << 2) | origin);
        this.#tally(network, origin, 1);
      }
    } else if ((words[entry + ROUTE]! & 3) > origin) {
      done = false;
    } else {
      const before = (words[entry + ROUTE]! & 3) as Origin;
      if (before === LEARNED) this.#unlist(entry, network);
      else this.#tally(network, before, -1);
      this.#reroute(entry, destination, origin);
      this.#tally(network, origin, 1);
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

  /** How many entries of an origin a network has. */
  count(network: number, origin: Origin): number {
    return this.#words[this.#networkAt(network) + COUNTS[origin]]!;
  }

  limit(network: number): number {
    return this.#words[this.#networkAt(network) + LIMIT]!;
  }

  /** The most learned entries a network may have; those beyond go, the oldest first. */
  setLimit(network: number, limit: number): void {
    const row = this.#networkAt(network);
    const words = this.#words;
    this.#lock();
    words[row + LIMIT] = limit;
    words[LAST] = Math.max(words[LAST]!, network);
    while (words[row + LEARNED_COUNT]! > limit) this.#forget(words[row + OLDEST]!, EVICTED);
    this.#unlock();
  }

  /**
   * Removes the entries that are chosen, among all or among `rows`; returns how many. May wait for a writer, but
   * holds none up.
   */
  clear(chosen: (row: FdbRow) => boolean, rows: Iterable<FdbRow> = this.rows()): number {
    let removed = 0;
    for (const row of rows) {
      const { network, macHigh, macLow, origin } = row;
      if (chosen(row) && this.delete(network, macHigh, macLow, origin)) removed++;
    }
    return removed;
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
      this.#forget(entry, AGED);
      aged++;
    }
    this.#unlock();
    return aged;
  }

  /** The entry of a MAC, or undefined when there is none. */
  entry(network: number, macHigh: number, macLow: number): FdbRow | undefined {
    const row = this.#row(this.#find(network, macHigh, macLow));
    const isIt = row?.network === network && row.macHigh === macHigh && row.macLow === macLow;
    return isIt ? row : undefined;
  }

  /**
   * What would become of a MAC that a network does not know, were it learned now: ADDED, PASSED, or
   * added in place of the entry that is returned.
   */
  prospect(network: number): typeof ADDED | typeof PASSED | FdbRow {
    const words = this.#words;
    const row = this.#networkAt(network);
    if (words[row + LIMIT] === 0) return PASSED;
    if (words[row + LEARNED_COUNT]! < words[row + LIMIT]! && !this.#isUsedUp()) return ADDED;
    const oldest = words[row + OLDEST]!;
    return oldest === 0 ? PASSED : (this.#row(oldest) ?? ADDED);
  }

  /** How far the journal has come. */
  get written(): number {
    return Atomics.load(this.#words, WRITTEN);
  }

  /**
   * What changed since the journal had come as far as `since`: how many changes were overwritten before
   * they could be read, and those after them.
   */
  changes(since: number): { missed: number; changes: FdbChange[]; written: number } {
    const written = this.written;
    const all = (written - since) | 0;
    const held = Math.min(all, JOURNAL_ROWS);
    const read = Array.from({ length: held }, (_, at) => this.#changeAt(written - held + at));
    // Some were overwritten while they were read, and some more may be in part.
    const meanwhile = ((this.written - written) | 0) + JOURNAL_MARGIN;
    const spoilt = Math.min(held, Math.max(0, held + meanwhile - JOURNAL_ROWS));
    return { missed: all - held + spoilt, changes: read.slice(spoilt), written };
  }

  #changeAt(position: number): FdbChange {
    const words = this.#words;
    const row = this.#journalRow(position);
    const keyHigh = words[row + KEY_HIGH]!;
    return {
      change: words[row + CHANGE] as FdbChange["change"],
      network: keyHigh & 0xffff,
      macHigh: keyHigh >>> 16,
      macLow: words[row + KEY_LOW]!,
      destination: words[row + DESTINATION]!,
      before: words[row + BEFORE]!,
      moves: words[row + MOVED_TIMES]! >>> 0,
    };
  }

  #journalRow(position: number): number {
    return this.#journal + (position & (JOURNAL_ROWS - 1)) * JOURNAL_WORDS;
  }

  /** All entries, in no order; safe beside writers, which it may or may not see. */
  *rows(): Generator<FdbRow> {
    for (const lot of this.lots()) yield* lot;
  }

  /** The same in lots: each is soon looked through, however many entries there are, and is to be before the next. */
  *lots(): Generator<Iterable<FdbRow>> {
    for (let first = 1; first < Atomics.load(this.#words, FRESH); first += LOT) {
      yield this.#lot(first);
    }
  }

  /**
   * What a network has learned, what was seen last first. Beside writers one that is seen again meanwhile may be left
   * out, or come twice with those after it; there are never more than it has.
   */
  *newest(network: number): Generator<FdbRow> {
    const words = this.#words;
    const row = this.#networkAt(network);
    let entry = Atomics.load(words, row + NEWEST);
    for (let left = words[row + LEARNED_COUNT]!; entry !== 0 && left > 0; left--) {
      const found = this.#row(entry);
      if (found?.network === network && found.origin === LEARNED) yield found;
      entry = Atomics.load(words, entry + OLDER);
    }
  }

  *#lot(first: number): Generator<FdbRow> {
    const end = Math.min(first + LOT, Atomics.load(this.#words, FRESH));
    for (let at = first; at < end; at++) {
      const row = this.#row(this.#entries + at * ENTRY_WORDS);
      if (row !== undefined) yield row;
    }
  }

  /** What an entry says, unless it is not in use or is being recycled. */
  #row(entry: number): FdbRow | undefined {
    const words = this.#words;
    const keyHigh = Atomics.load(words, entry + KEY_HIGH);
    const network = keyHigh & 0xffff;
    const macHigh = keyHigh >>> 16;
    const macLow = words[entry + KEY_LOW]!;
    const route = this.#route(entry, network, macHigh, macLow);
    if (network === 0 || route === 0) return undefined;
    return {
      network,
      macHigh,
      macLow,
      destination: route >> 2,
      origin: (route & 3) as Origin,
      seenAt: words[entry + SEEN_AT]!,
      moves: words[entry + MOVES]! >>> 0,
    };
  }

  /** The route of an entry if the entry still has this key, else 0. */
  #route(entry: number, network: number, macHigh: number, macLow: number): number {
    if (entry === 0) return 0;
    const route = Atomics.load(this.#words, entry + ROUTE);
    if (!this.#matches(entry, keyHighOf(network, macHigh), macLow)) return 0;
    const changes = Atomics.load(this.#words, entry + ROUTE) ^ route;
    return (changes & ~ROUTE_MASK) === 0 ? route & ROUTE_MASK : 0;
  }

  /** The high word first: while it is what it was, so is the low word, which is written before. */
  #matches(entry: number, keyHigh: number, keyLow: number): boolean {
    return (
      Atomics.load(this.#words, entry + KEY_HIGH) === keyHigh &&
      Atomics.load(this.#words, entry + KEY_LOW) === keyLow
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

  /** By HalfSipHash-1-3, which is what Linux keys hash tables with (lib/siphash.c, hsiphash_2u32). */
  #bucketOf(keyHigh: number, keyLow: number): number {
    let v0 = this.#seed;
    let v1 = 0;
    let v2 = this.#seed ^ 0x6c796765;
    let v3 = 0x74656462;
    for (let round = 0; round < HASH_ROUNDS; round++) {
      const word = round === 0 ? keyHigh : round === 1 ? keyLow : round === 2 ? HASH_LENGTH : 0;
      v3 ^= word;
      v0 = (v0 + v1) | 0;
      v1 = rotated(v1, 5) ^ v0;
      v0 = rotated(v0, 16);
      v2 = (v2 + v3) | 0;
      v3 = rotated(v3, 8) ^ v2;
      v0 = (v0 + v3) | 0;
      v3 = rotated(v3, 7) ^ v0;
      v2 = (v2 + v1) | 0;
      v1 = rotated(v1, 13) ^ v2;
      v2 = rotated(v2, 16);
      v0 ^= word;
      if (round === 2) v2 ^= 0xff;
    }
    return this.#buckets + ((v1 ^ v3) & this.#mask);
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
    const route = words[entry + ROUTE]! & ROUTE_MASK;
    if ((route & 3) > LEARNED) return route >> 2 === destination ? SEEN : REFUSED;
    this.#unlist(entry, network);
    this.#list(entry, network, now);
    if (route >> 2 === destination) return SEEN;
    this.#reroute(entry, destination, LEARNED);
    words[entry + MOVES] = words[entry + MOVES]! + 1;
    this.#write(entry, MOVED, route >> 2);
    return MOVED;
  }

  #add(network: number, macHigh: number, macLow: number, destination: number, now: number): Learnt {
    const words = this.#words;
    const row = this.#networkAt(network);
    const before = words[row + LEARNED_COUNT]!;
    if (words[row + LIMIT] === 0) return PASSED;
    if (before >= words[row + LIMIT]!) this.#forget(words[row + OLDEST]!, EVICTED);
    const entry = this.#take(network);
    if (entry === 0) return PASSED;
    const evicted = words[row + LEARNED_COUNT]! < before;
    this.#enter(entry, network, macHigh, macLow, (destination << 2) | LEARNED);
    this.#list(entry, network, now);
    this.#write(entry, ADDED, destination);
    return evicted ? EVICTED : ADDED;
  }

  /** An entry out of the pool, or the network's oldest learned one when the pool is used up. */
  #take(network: number): number {
    const words = this.#words;
    if (this.#isUsedUp()) {
      const oldest = words[this.#networkAt(network) + OLDEST]!;
      if (oldest === 0) return 0;
      this.#forget(oldest, EVICTED);
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

  /** Whether the pool has no entry that is not in use. */
  #isUsedUp(): boolean {
    return this.#words[FREE] === 0 && this.#words[FRESH]! > this.#capacity;
  }

  /** The network with the most learned entries. */
  #fullest(): number {
    const words = this.#words;
    let fullest = 1;
    for (let network = 2; network <= words[LAST]!; network++) {
      const most = words[this.#networkAt(fullest) + LEARNED_COUNT]!;
      if (words[this.#networkAt(network) + LEARNED_COUNT]! > most) fullest = network;
    }
    return fullest;
  }

  /** Puts an entry at the head of its chain, its key last of all. */
  #enter(entry: number, network: number, macHigh: number, macLow: number, route: number): void {
    const words = this.#words;
    const keyHigh = keyHighOf(network, macHigh);
    const bucket = this.#bucketOf(keyHigh, macLow);
    const generation = (words[entry + ROUTE]! & ~ROUTE_MASK) + NEXT_GENERATION;
    Atomics.store(words, entry + ROUTE, generation | route | 0);
    words[entry + MOVES] = 0;
    Atomics.store(words, entry + CHAIN, words[bucket]!);
    Atomics.store(words, entry + KEY_LOW, macLow);
    Atomics.store(words, entry + KEY_HIGH, keyHigh);
    Atomics.store(words, bucket, entry);
  }

  /** Gives an entry that stays in use another destination or origin. */
  #reroute(entry: number, destination: number, origin: Origin): void {
    const generation = this.#words[entry + ROUTE]! & ~ROUTE_MASK;
    Atomics.store(this.#words, entry + ROUTE, generation | (destination << 2) | origin);
  }

  /** Removes a learned entry that nobody asked to be removed. */
  #forget(entry: number, change: typeof AGED | typeof EVICTED): void {
    this.#write(entry, change, (this.#words[entry + ROUTE]! & ROUTE_MASK) >> 2);
    this.#remove(entry);
  }

  /** Notes in the journal what becomes of an entry, while the entry says it. */
  #write(entry: number, change: FdbChange["change"], before: number): void {
    const words = this.#words;
    const position = words[WRITTEN]!;
    const row = this.#journalRow(position);
    words[row + KEY_LOW] = words[entry + KEY_LOW]!;
    words[row + KEY_HIGH] = words[entry + KEY_HIGH]!;
    words[row + CHANGE] = change;
    words[row + DESTINATION] = (words[entry + ROUTE]! & ROUTE_MASK) >> 2;
    words[row + BEFORE] = before;
    words[row + MOVED_TIMES] = words[entry + MOVES]!;
    Atomics.store(words, WRITTEN, (position + 1) | 0);
  }

  #remove(entry: number): void {
    const words = this.#words;
    const keyHigh = words[entry + KEY_HIGH]!;
    const origin = (words[entry + ROUTE]! & 3) as Origin;
    if (origin === LEARNED) this.#unlist(entry, keyHigh & 0xffff);
    else this.#tally(keyHigh & 0xffff, origin, -1);
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

  /** The same as the one that was seen longest ago. */
  #listFirst(entry: number, network: number, seenAt: number): void {
    const words = this.#words;
    const row = this.#networkAt(network);
    const oldest = words[row + OLDEST]!;
    words[entry + SEEN_AT] = seenAt;
    words[entry + OLDER] = 0;
    words[entry + NEWER] = oldest;
    if (oldest === 0) words[row + NEWEST] = entry;
    else words[oldest + OLDER] = entry;
    words[row + OLDEST] = entry;
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

  /** Learned entries are counted where they are listed. */
  #tally(network: number, origin: Origin, change: number): void {
    const count = this.#networkAt(network) + COUNTS[origin];
    this.#words[count] = this.#words[count]! + change;
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

function rotated(word: number, bits: number): number {
  return (word << bits) | (word >>> (32 - bits));
}
