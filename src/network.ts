/**
 * One VNI as a forwarding thread knows it: its TAP, its rows of the FDB and of the counters (all by
 * index), its flood list, and which remotes may speak in it.
 *
 * The flood list holds the remotes that get a copy of every frame whose destination is broadcast,
 * multicast or unknown (head-end replication). Allowed are the flood list and whatever a static or
 * control-plane entry points to: who is not told of cannot inject. Control operations here
 * allocate; what the dataplane calls does not.
 */
import { IN_ROWS } from "./batch.ts";

/**
 * Answers a second: altogether about as many as Linux gives (net.ipv4.icmp_msgs_per_sec), and no more at once. A sender
 * that does not heed them is to keep nobody else from hearing: each flow has a share, by its hash, and where that is
 * spent each station.
 */
const SHARES = 64;
const ANSWERS_PER_SHARE = 8;

/** What may change while a network lasts. */
export interface Settings {
  readonly ageSeconds: number;
  readonly clampMtu: number;
  readonly vlan: number;
  /** Indices of remotes: those that get a copy of what is flooded, and others that may send. */
  readonly flood: readonly number[];
  readonly allowed: readonly number[];
}

export class Network {
  // What every frame asks for comes first: of thousands of networks none is in the cache, and this is a line or two.
  /** This network's row in the FDB and in the counters, from 1. */
  readonly index: number;
  /** The TAP's own MAC: its first 16 and its last 32 bits. */
  readonly macHigh: number;
  readonly macLow: number;
  /** The VLAN whose tag its frames have at the TAP, and only there; 0: none. */
  vlan = 0;
  /** What a packet of a TCP connection may have at most, by its MSS; 0: the host's affair. */
  clampMtu: number;
  /** A remote that is allowed, as was found last; −1: none was. */
  #known = -1;
  readonly vni: number;
  /** Seconds after which a learned entry that is not seen again is forgotten; 0: never. */
  ageSeconds: number;
  /** Whether frames from that MAC stay here: they are a gateway's, which is on every host. */
  readonly hasGateway: boolean;
  /** Answers to frames that were too big which may be given still: the shares of flows, then those of stations. */
  readonly answers = new Uint8Array(2 * SHARES).fill(ANSWERS_PER_SHARE);
  /** Frames that are read from its TAP at once, at most. */
  most = IN_ROWS;
  /** Of the burst that is being looked at: frames; and of the one in which it flooded last, which, datagrams more. */
  frames = 0;
  copiedIn = 0;
  copies = 0;
  /** Indices of remotes. */
  flood = new Int32Array(0);
  #allowed = new Uint8Array(0);

  constructor(options: {
    vni: number;
    index: number;
    ageSeconds: number;
    mac: { high: number; low: number };
    hasGateway?: boolean;
    clampMtu?: number;
  }) {
    this.vni = options.vni;
    this.index = options.index;
    this.ageSeconds = options.ageSeconds;
    this.macHigh = options.mac.high;
    this.macLow = options.mac.low;
    this.hasGateway = options.hasGateway ?? false;
    this.clampMtu = options.clampMtu ?? 0;
  }

  apply({ vlan, ageSeconds, clampMtu, flood, allowed }: Settings): void {
    this.vlan = vlan;
    this.ageSeconds = ageSeconds;
    this.clampMtu = clampMtu;
    this.#allowed = new Uint8Array(0);
    this.#known = -1;
    for (const remote of allowed) this.allow(remote);
    for (const remote of flood) this.allow(remote);
    this.flood = Int32Array.from(flood);
  }

  /** Adds a remote to the flood list and allows it; once, however often it is called. */
  addToFlood(remote: number): void {
    this.allow(remote);
    if (!this.flood.includes(remote)) this.flood = Int32Array.of(...this.flood, remote);
  }

  /** Accepts datagrams from this remote. */
  allow(remote: number): void {
    if (remote >= this.#allowed.length) {
      const grown = new Uint8Array(2 * remote + 1);
      grown.set(this.#allowed);
      this.#allowed = grown;
    }
    this.#allowed[remote] = 1;
  }

  /** Lets answers be given again; to be called with the seconds since the last time. */
  refillAnswers(seconds: number): void {
    if (seconds > 0) this.answers.fill(ANSWERS_PER_SHARE);
  }

  /** Which share an answer to a flow of a station, by the low half of its MAC, is to be taken from; -1: none is left. */
  answerShare(flow: number, station: number): number {
    const its = shareOf(flow);
    if (this.answers[its] !== 0) return its;
    const others = SHARES + shareOf(station);
    return this.answers[others] !== 0 ? others : -1;
  }

  allows(remote: number): boolean {
    if (remote === this.#known) return true;
    if (remote >= this.#allowed.length || this.#allowed[remote] !== 1) return false;
    this.#known = remote;
    return true;
  }
}

function shareOf(hash: number): number {
  return Math.imul(hash, 0x9e3779b1) >>> 26;
}
