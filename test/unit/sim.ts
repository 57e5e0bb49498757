/**
 * Dataplanes to test, without a kernel and without real time.
 *
 *     World      any number of VTEPs on one in-memory wire under one clock, as `vtep.ts` and
 *                `agent.ts` would put them together
 *     script     one dataplane between a TAP and an underlay that do what a test says: rows to read,
 *                errors to return, all that was written to look at
 *
 * Addresses are for documentation: RFC 5737, RFC 3849, RFC 7042.
 */
import { ADDRESS_WORDS, Batch, GUARD_WORDS, HEADROOM, IN_ROWS } from "../../src/batch.ts";
import { writeStaticRoutes } from "../../src/control/static.ts";
import { Counters, Traffic } from "../../src/counters.ts";
import { Dataplane } from "../../src/dataplane.ts";
import { MemoryTap, MemoryTaps, MemoryUnderlay, MemoryWire } from "../../src/device/memory.ts";
import type { Tap, Taps, Underlay, Watch } from "../../src/device.ts";
import { Fdb, type FdbRow, STATIC } from "../../src/fdb.ts";
import { Network } from "../../src/network.ts";
import { addressWords, LOCAL, Remotes } from "../../src/remotes.ts";
import { formatMac, parseMac } from "../../src/wire/ethernet.ts";
import { bytes, documentationMac } from "./wire/frames.ts";

export const PORT = 4789;
/** More than any frame here: 8 + 14 + 1500 and to spare. */
export const LARGEST_DATAGRAM = 2048;

/** 00:00:5e:00:53:`last` as text. */
export function mac(last: number): string {
  return Buffer.from(documentationMac(last))
    .toString("hex")
    .replace(/..(?=.)/g, "$&:");
}

export const BROADCAST = "ff:ff:ff:ff:ff:ff";
/** The group of 00:00:5e:00:53:01 … for multicast: 01:00:5e:90:10:01 (RFC 7042, 2.1.2). */
export const MULTICAST = "01:00:5e:90:10:01";

/** 192.0.2.`last` */
export function address(last: number): string {
  return `192.0.2.${last}`;
}

/** A frame of `length` bytes, its payload filled with `mark`. */
export function frame(to: string, from: string, { mark = 0x5a, length = 60 } = {}): Uint8Array {
  const rest = new Uint8Array(Math.max(0, length - 14)).fill(mark);
  return bytes(macBytes(to), macBytes(from), [0x88, 0xb5], rest).subarray(0, length);
}

function macBytes(text: string): number[] {
  return [...Buffer.from(text.replaceAll(":", ""), "hex")];
}

/** A datagram's payload: a VXLAN header, written by hand, and the frame. */
export function vxlan(vni: number, inner: Uint8Array, flags = 0x08, reserved = 0): Uint8Array {
  return bytes([flags, 0, 0, 0, vni >> 16, (vni >> 8) & 0xff, vni & 0xff, reserved], inner);
}

export interface NetworkOptions {
  readonly vni: number;
  readonly peers: readonly string[];
  /** Static entries: MAC to address. */
  readonly fdb?: readonly (readonly [mac: string, address: string])[];
  readonly age?: number;
  readonly limit?: number;
  /** Address of the TAP itself. */
  readonly tapMac?: string;
  /** Whether the TAP's MAC is every host's gateway's. */
  readonly hasGateway?: boolean;
  readonly vlan?: number;
  /** MTU to which the MSS of TCP is clamped. */
  readonly clampMtu?: number;
}

interface Parts {
  readonly fdb: Fdb;
  readonly remotes: Remotes;
  readonly counters: Counters;
  readonly traffic: Traffic;
}

function parts(networks: number): Parts {
  return {
    fdb: new Fdb(Fdb.allocate(4096, 0x5eed)),
    remotes: new Remotes(),
    counters: new Counters(Counters.allocate(networks, 1), 1),
    traffic: new Traffic(Traffic.allocate(1), 1),
  };
}

function networkOf(options: NetworkOptions, index: number, parts: Parts): Network {
  const { fdb, remotes } = parts;
  const entries = (options.fdb ?? []).map(([text, address]) => {
    const { high, low } = parseMac(text)!;
    return { macHigh: high, macLow: low, address };
  });
  const tapMac = parseMac(options.tapMac ?? mac(0xf0))!;
  const ageSeconds = options.age ?? 300;
  const { vni, hasGateway = false, vlan = 0, clampMtu = 0 } = options;
  const network = new Network({ vni, index, ageSeconds, mac: tapMac, hasGateway, clampMtu });
  network.vlan = vlan;
  fdb.setLimit(index, options.limit ?? 1024);
  const sink: Parameters<typeof writeStaticRoutes>[1] = {
    addToFlood: (address) => network.addToFlood(remotes.add(address, PORT)),
    setStatic: (macHigh, macLow, address) => {
      const remote = remotes.add(address, PORT);
      network.allow(remote);
      fdb.set(index, macHigh, macLow, remote, STATIC);
    },
  };
  writeStaticRoutes(
    {
      name: "",
      vni: options.vni,
      tap: "",
      bridge: undefined,
      mtu: "auto",
      vlan: undefined,
      gateway: [],
      masquerade: false,
      ranges: [],
      clampMss: false,
      ageSeconds,
      fdbLimit: 1024,
      peers: options.peers,
      fdb: entries,
    },
    sink,
  );
  return network;
}

/** What an FDB says of a MAC in words: an address, "local", or undefined when it is unknown. */
function knows(parts: Parts, network: number, text: string): string | undefined {
  const { high, low } = parseMac(text)!;
  const destination = parts.fdb.lookup(network, high, low);
  if (destination === -1) return undefined;
  return destination === LOCAL ? "local" : parts.remotes.address(destination);
}

// ---- a world of VTEPs

/** A datagram that crossed the wire. */
export interface Crossing {
  readonly from: string;
  readonly to: string;
  readonly payload: Uint8Array;
}

export class World {
  readonly wire = new MemoryWire();
  readonly hosts: Host[] = [];
  /** All that crossed, in order. */
  readonly crossings: Crossing[] = [];
  now = 0;

  constructor() {
    this.wire.loses = (payload, from, to) => {
      this.crossings.push({ from, to, payload: payload.slice() });
      return false;
    };
  }

  host(options: {
    address: string;
    networks: readonly NetworkOptions[];
    strict?: boolean;
    /** Datagrams that its socket holds. */
    queueRows?: number;
  }): Host {
    const host = new Host(this.wire, options);
    this.hosts.push(host);
    return host;
  }

  /** Hosts 192.0.2.1 … of one network, each with all others as its peers. */
  mesh(count: number, options: Partial<NetworkOptions> = {}): Host[] {
    const all = Array.from({ length: count }, (_, index) => address(index + 1));
    return all.map((local) => {
      const peers = all.filter((other) => other !== local);
      return this.host({ address: local, networks: [{ vni: 100, peers, ...options }] });
    });
  }

  /** Lets everything cross that waits. */
  run(): void {
    this.wire.run();
  }

  /** Lets time pass, and everybody notice. */
  pass(seconds: number): void {
    this.now += seconds;
    for (const { dataplane } of this.hosts) dataplane.tick(this.now);
  }

  /** The host's side of a TAP sends frames, and everything crosses. */
  transmit(host: Host, ...frames: Uint8Array[]): void {
    for (const one of frames) host.tap().transmit(one);
    this.run();
  }

  /** Who got a frame since the last `clear`: how many, by the last byte of a host's address. */
  received(): Record<string, number> {
    const counts = this.hosts.map((host) => [host.address, host.tap().receivedCount] as const);
    return Object.fromEntries(counts.filter(([, count]) => count > 0));
  }

  clear(): void {
    for (const host of this.hosts) for (const tap of host.taps) tap.clear();
    this.crossings.length = 0;
  }

  /** Somebody who is no VTEP and can send datagrams from an address of his own. */
  sender(from: string): (to: string, ...payloads: Uint8Array[]) => void {
    const remotes = new Remotes();
    const underlay = new MemoryUnderlay({
      wire: this.wire,
      local4: from,
      port: PORT,
      remotes,
      largestDatagram: LARGEST_DATAGRAM,
    });
    const batch = new Batch();
    return (to, ...payloads) => {
      for (const payload of payloads) {
        batch.slab.set(payload, 64);
        batch.outOffset[0] = 64;
        batch.outLength[0] = payload.length;
        batch.outRow[0] = 0;
        batch.outRemote[0] = remotes.add(to, PORT);
        underlay.send(batch, 1);
      }
      this.run();
    };
  }
}

export class Host implements Parts {
  readonly address: string;
  readonly fdb: Fdb;
  readonly remotes: Remotes;
  readonly counters: Counters;
  readonly traffic: Traffic;
  /** In the order of the networks. */
  readonly taps: readonly MemoryTap[];
  readonly underlay: MemoryUnderlay;
  readonly networks: readonly Network[];
  readonly dataplane: Dataplane;

  constructor(wire: MemoryWire, options: Parameters<World["host"]>[0]) {
    this.address = options.address;
    const { fdb, remotes, counters, traffic } = parts(options.networks.length);
    this.fdb = fdb;
    this.remotes = remotes;
    this.counters = counters;
    this.traffic = traffic;
    this.underlay = new MemoryUnderlay({
      wire,
      local4: options.address,
      port: PORT,
      remotes,
      largestDatagram: LARGEST_DATAGRAM,
      ...(options.queueRows !== undefined && { queueRows: options.queueRows }),
    });
    const taps = new MemoryTaps();
    this.taps = options.networks.map(({ vni }) => new MemoryTap({ wire, name: `vtep${vni}` }));
    this.networks = options.networks.map((network, at) => networkOf(network, at + 1, this));
    this.dataplane = new Dataplane({
      fdb,
      remotes,
      counters,
      traffic,
      taps,
      underlay: this.underlay,
      strict: options.strict ?? false,
      flowSeed: 1,
      dscp: 0,
    });
    const onLost = () => undefined;
    this.underlay.watch({ onReadable: () => this.dataplane.decap(), onLost });
    for (const [at, network] of this.networks.entries()) {
      this.dataplane.add(network);
      taps.add(network.index, this.taps[at]!, onLost);
    }
    taps.watch(() => this.dataplane.encap());
  }

  network(vni = this.networks[0]!.vni): Network {
    return this.networks.find((network) => network.vni === vni)!;
  }

  tap(vni?: number): MemoryTap {
    return this.taps[this.network(vni).index - 1]!;
  }

  /** Where this host sends frames for a MAC: an address, "local", or undefined. */
  knows(text: string, vni?: number): string | undefined {
    return knows(this, this.network(vni).index, text);
  }

  events(vni?: number) {
    return this.counters.events(this.network(vni).index);
  }

  /** Drops by reason: of a network, and of datagrams that belong to none. */
  drops(vni?: number) {
    return { ...this.counters.drops(0), ...this.counters.drops(this.network(vni).index) };
  }
}

// ---- a dataplane between scripted devices

/** A row to be read. */
export interface Row {
  readonly bytes: Uint8Array;
  /** TAP: whose frame it is, by its network's index; by default that of the TAP whose burst it is in. */
  readonly tap?: number;
  /** Underlay: who sent it. */
  readonly from?: string;
  /** Underlay: stride of the datagrams in it. */
  readonly segment?: number;
  readonly flags?: number;
  /** Of what was moved: to whom. */
  readonly moved?: number;
  /** Underlay: TOS or traffic class that it came with. */
  readonly tos?: number;
}

/** What was written: the bytes, and to which remote where that means something. */
export interface Written {
  readonly bytes: Uint8Array;
  readonly remote: number;
  readonly hash: number;
  readonly tos: number;
}

/** Where in the FDB something is said, and what. */
export interface Guard {
  readonly at: number;
  readonly words: readonly number[];
}

class ScriptedDevice {
  /** Of its network, if it is a TAP. */
  index = 0;
  /** Bursts to be read, the next one first. */
  readonly bursts: Row[][] = [];
  readonly written: Written[] = [];
  /** Calls of `write` or `send`, by how many rows each wrote. */
  readonly writes: number[] = [];
  /** What it was offered to repeat: where in the FDB that is said, and what. */
  readonly offers: Guard[][] = [];
  /** The errno with which the device drops a row, 0 for none; by how many rows came before. */
  errnoOf: (nth: number) => number = () => 0;
  reads = 0;
  /** Rows that are read at once. */
  most = IN_ROWS;
  #nth = 0;

  /** A burst, or as much of it as is read at once. */
  protected fill(batch: Batch): number {
    this.reads++;
    const burst = this.bursts.shift() ?? [];
    const rows = burst.slice(0, this.most);
    if (this.most < burst.length) this.bursts.unshift(burst.slice(this.most));
    // What a burst left behind must not matter to the next one.
    batch.columns.fill(-1);
    batch.repeat[0] = 0;
    batch.slab.fill(0xa5);
    let offset = HEADROOM;
    for (const [row, { bytes, tap, from, segment, flags, moved, tos }] of rows.entries()) {
      batch.slab.set(bytes, offset);
      batch.inOffset[row] = offset;
      batch.inLength[row] = bytes.length;
      batch.inSegment[row] = segment ?? bytes.length;
      batch.inFlags[row] = flags ?? 0;
      if (moved !== undefined) batch.inTarget[row] = moved;
      batch.inTos[row] = tos ?? 0;
      batch.inTap[row] = tap ?? this.index;
      for (let at = 0; at < 16; at++) batch.inVnet.setUint8(row * 16 + at, 0);
      if (from !== undefined) batch.inAddress.set(addressWords(from), row * ADDRESS_WORDS);
      offset += bytes.length + HEADROOM;
    }
    return rows.length;
  }

  protected take(batch: Batch, first: number, end: number): number {
    let failed = 0;
    this.writes.push(end - first);
    const guards = [0, GUARD_WORDS].map((at) => {
      const [place, ...words] = batch.repeat.subarray(at, at + GUARD_WORDS);
      return { at: place!, words };
    });
    if (guards[0]!.at !== 0) this.offers.push(guards);
    for (let out = first; out < end; out++) {
      const error = this.errnoOf(this.#nth++);
      batch.outError[out] = error;
      if (error !== 0) {
        failed++;
        continue;
      }
      const offset = batch.outOffset[out]!;
      this.written.push({
        bytes: batch.slab.slice(offset, offset + batch.outLength[out]!),
        remote: batch.outRemote[out]!,
        hash: batch.outHash[out]!,
        tos: batch.outTos[out]!,
      });
    }
    return failed;
  }

  close(): void {}
}

export class ScriptedTap extends ScriptedDevice implements Tap {
  readonly name = "vtep100";

  read(batch: Batch): number {
    return this.fill(batch);
  }

  /** @internal For `ScriptedTaps`. */
  write(batch: Batch, first: number, end: number): number {
    return this.take(batch, first, end);
  }
}

class ScriptedTaps implements Taps<ScriptedTap> {
  readonly #members: ScriptedTap[] = [];

  add(index: number, tap: ScriptedTap): void {
    this.#members.push(tap);
    tap.index = index;
  }

  remove(): void {}

  /** One TAP's burst at a time; the first one's end of them when there is none. */
  read(batch: Batch): number {
    const tap = this.#members.find(({ bursts }) => bursts.length > 0) ?? this.#members[0]!;
    return tap.read(batch);
  }

  limit(index: number, frames: number): void {
    this.#members.find((tap) => tap.index === index)!.most = frames;
  }

  write(batch: Batch, count: number): number {
    let failed = 0;
    for (let row = 0; row < count; ) {
      const index = batch.outTap[row]!;
      let end = row + 1;
      while (end < count && batch.outTap[end] === index) end++;
      failed += this.#members.find((tap) => tap.index === index)!.write(batch, row, end);
      row = end;
    }
    return failed;
  }

  watch(): void {}
  close(): void {}
}

export class ScriptedUnderlay extends ScriptedDevice implements Underlay {
  readonly capabilities = {
    sourcePortEntropy: true,
    dontFragment: true,
    zeroChecksum6: true,
    countsOverflows: true,
    carriesTos: true,
    cutsSuperFrames: false,
  };
  overflowed = 0;
  refused = 0;

  receive(batch: Batch): number {
    return this.fill(batch);
  }

  send(batch: Batch, count: number): number {
    return this.take(batch, 0, count);
  }

  overflows(): number {
    return this.overflowed;
  }

  refusals(): number {
    return this.refused;
  }

  watch(_watch: Watch): void {}
}

/** A dataplane between scripted devices, with as many networks as are given. */
export function script(
  networks: readonly NetworkOptions[],
  { strict = false, dscp = 0 as number | "inherit" } = {},
) {
  const underlay = new ScriptedUnderlay();
  const made = parts(networks.length);
  const taps = networks.map(() => new ScriptedTap());
  const wired = networks.map((options, at) => networkOf(options, at + 1, made));
  const together = new ScriptedTaps();
  const dataplane = new Dataplane({
    ...made,
    taps: together,
    underlay,
    strict,
    flowSeed: 1,
    dscp,
  });
  for (const [at, network] of wired.entries()) {
    together.add(network.index, taps[at]!);
    dataplane.add(network);
  }
  return {
    ...made,
    dataplane,
    underlay,
    taps,
    networks: wired,
    /** Lets the TAP of the first network, or of another one, have frames to read. */
    encap(frames: readonly Uint8Array[], at = 0): void {
      taps[at]!.bursts.push(frames.map((bytes) => ({ bytes })));
      dataplane.encap();
    },
    decap(...rows: Row[]): void {
      underlay.bursts.push(rows);
      dataplane.decap();
    },
    events: (at = 0) => made.counters.events(wired[at]!.index),
    drops: (at = 0) => ({
      ...made.counters.drops(0),
      ...made.counters.drops(wired[at]!.index),
    }),
    knows: (text: string, at = 0) => knows(made, wired[at]!.index, text),
  };
}

/** A listing's rows by MAC. */
export function byMac(rows: Iterable<FdbRow>): Record<string, FdbRow> {
  return Object.fromEntries(
    [...rows].map((row) => [formatMac(row.macHigh, row.macLow), row] as const),
  );
}
