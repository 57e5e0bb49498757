/**
 * Flows (`native/flows.h`) where something else happens in the moment between a frame's leaving and TypeScript's
 * hearing of it, and where frames are like others only in part.
 */
import { execFileSync } from "node:child_process";
import type dgram from "node:dgram";
import { once } from "node:events";
import { setTimeout as pause } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import { Batch, HEADROOM, IN_ROWS } from "../../src/batch.ts";
import { Counters } from "../../src/counters.ts";
import { NativeTap } from "../../src/device/tap.ts";
import { ALL_OFFLOADS } from "../../src/device.ts";
import { Fdb, STATIC } from "../../src/fdb.ts";
import { LOCAL, Remotes } from "../../src/remotes.ts";
import { type NetworkPlan, Vtep } from "../../src/vtep.ts";
import { until } from "../lab/until.ts";
import {
  alone,
  freePort,
  ip,
  networkPlan,
  planOf,
  receiver,
  setRow,
  uniqueName,
} from "./fixture.ts";

vi.setConfig({ testTimeout: 10_000 });

const VNI = 42;
const HERE = "127.0.0.1";
const THERE = "127.0.0.2";
/** Of the remote, and of the network. */
const REMOTE = 1;
const INDEX = 1;
/** Stations on both sides, of which the FDB knows from the beginning where the other one is. */
const OURS = "020000000001";
const THEIRS = "020000000002";
const THEIRS_PLACE = [0x0200, 2] as const;

let namespace: string;
let port: number;
let counters: Counters;
let fdb: Fdb;
let vtep: Vtep;
/** Closes it, once. */
let close: () => void;
let own: NetworkPlan;
let peer: dgram.Socket;
/** Datagrams that it has got. */
let left: number;
/** A TAP of the test's, on a bridge with that of the VTEP. */
let station: NativeTap;
let batch: Batch;

beforeEach(async () => {
  namespace = uniqueName();
  port = await freePort();
  peer = await receiver(THERE, port);
  left = 0;
  close = () => undefined;
  peer.on("message", () => left++);
  batch = new Batch();
  ip("netns", "add", namespace);
  ip("-n", namespace, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0");
  silence("br0");
  ip("-n", namespace, "link", "set", "br0", "mtu", "9000", "up");
  station = new NativeTap({ name: uniqueName(), offloads: { csum: false } });
  join(station.name);
});

afterEach(() => {
  close();
  station.close();
  peer.close();
  ip("netns", "delete", namespace);
});

/** What it would say by itself is nobody's. */
function silence(link: string): void {
  const file = `/proc/sys/net/ipv6/conf/${link}/disable_ipv6`;
  execFileSync("nsenter", [`--net=/run/netns/${namespace}`, "sh", "-c", `echo 1 >${file}`]);
}

function join(tap: string): void {
  ip("link", "set", tap, "netns", namespace);
  silence(tap);
  ip("-n", namespace, "link", "set", tap, "mtu", "9000", "master", "br0", "up");
}

async function forward({ furtherQueues = 0, gro = true, ageSeconds = 300 } = {}): Promise<void> {
  const remotes = new Remotes();
  fdb = new Fdb(Fdb.allocate(1024, 1));
  expect(remotes.add(THERE, port)).toBe(REMOTE);
  fdb.setLimit(INDEX, 100);
  fdb.set(INDEX, ...THEIRS_PLACE, REMOTE, STATIC);
  own = networkPlan({ vni: VNI, furtherQueues, ageSeconds, flood: [REMOTE] });
  const offloads = { ...ALL_OFFLOADS, gro };
  const plan = planOf(fdb, remotes, { port, underlay: "native", offloads, networks: [own] });
  counters = new Counters(plan.counters, 1);
  vtep = await Vtep.open(plan, 0);
  close = () => {
    close = () => undefined;
    vtep.close();
  };
  join(own.tap);
  const none = () => undefined;
  vtep.forward(none, none);
}

/** UDP over IPv4 in Ethernet, so many bytes in all. */
function frame(to: string, from: string, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  bytes.write(`${to}${from}08004500`, "hex");
  bytes.writeUInt16BE(length - 14, 16);
  bytes.write("4011", 22, "hex");
  bytes.write("c0000201c0000202", 26, "hex");
  bytes.write("03e803e9", 34, "hex");
  bytes.writeUInt16BE(length - 34, 38);
  // Where br_netfilter is loaded, a bridge asks for it.
  let sum = 0;
  for (let at = 14; at < 34; at += 2) sum += bytes.readUInt16BE(at);
  bytes.writeUInt16BE(~(sum + (sum >> 16)) & 0xffff, 24);
  return bytes;
}

function datagram(length: number): Buffer {
  return Buffer.concat([Buffer.from("0800000000002a00", "hex"), frame(OURS, THEIRS, length)]);
}

function say(bytes: Uint8Array): void {
  batch.slab.set(bytes, HEADROOM);
  setRow(batch, 0, { offset: HEADROOM, length: bytes.length });
  alone(station).write(batch, 1);
  expect(batch.outError[0]).toBe(0);
}

/** The lengths of what has come to the station. */
function heard(): number[] {
  return Array.from({ length: alone(station).read(batch) }, (_, row) => batch.inLength[row]!);
}

const sent = () => counters.events(INDEX).encapFrames;

/** Says the same until it has left before it is counted, and is done in that moment. */
async function leaveUncounted(): Promise<void> {
  const repeat = setInterval(() => say(frame(THEIRS, OURS, 60)), 10); // in between the thread sleeps
  onTestFinished(() => clearInterval(repeat));
  do await once(peer, "message");
  while (sent() >= left);
  clearInterval(repeat);
}

describe("in the moment in which a frame has left and is not counted yet", () => {
  it("its network can go", async () => {
    await forward();
    await leaveUncounted();
    vtep.retire(INDEX);
    expect(close).not.toThrow();
  });

  it.each<[string, () => void]>([
    ["its network can have other settings", () => vtep.change({ ...own, vlan: 7 })],
    ["a capture can end", () => vtep.mirror(undefined)],
  ])("%s, and it is counted before", async (_, act) => {
    await forward();
    await leaveUncounted();
    const before = sent();
    act();
    expect(sent()).toBe(before + 1);
  });

  it("another network can have its place, and has no frame of it", async () => {
    await forward();
    await leaveUncounted();
    const before = sent();
    vtep.retire(INDEX);
    expect(sent(), "as the network goes").toBe(before + 1);
    vtep.discard(INDEX);
    vtep.add({ ...own, vni: VNI + 1, tap: uniqueName() });
    close();
    expect(sent()).toBe(before + 1);
  });
});

describe("a station that has just spoken", () => {
  it("does not age, although its frame is not counted yet", async () => {
    const clock = vi.spyOn(process, "hrtime").mockReturnValue([1000, 0]);
    onTestFinished(() => clock.mockRestore());
    const repeated = vi.spyOn(globalThis, "setInterval").mockReturnValueOnce(setTimeout(() => {}));
    await forward({ ageSeconds: 10 });
    const tick = repeated.mock.calls[0]![0];
    repeated.mockRestore();
    const tickFrom = (first: number, last: number) => {
      for (let now = first; now <= last; now++) {
        clock.mockReturnValue([now, 0]);
        tick();
      }
    };
    await leaveUncounted();
    await until("all of it counted", () => sent() === left);
    tickFrom(1001, 1010);
    await leaveUncounted();
    tickFrom(1011, 1011);
    expect(counters.events(INDEX).aged).toBe(0);
    expect(fdb.lookup(INDEX, 0x0200, 1)).toBe(LOCAL);
    await until("all of it counted", () => sent() === left);
    tickFrom(1012, 1021);
    expect(counters.events(INDEX).aged).toBe(1);
  });
});

describe("a frame of a TAP with further queues", () => {
  it("leaves before it is counted, also while the first queue has had none", async () => {
    await forward({ furtherQueues: 7 });
    await leaveUncounted();
  });
});

describe("frames of a TAP that is closed", () => {
  it("leave before, however many wait there", async () => {
    await forward();
    const several = 3 * IN_ROWS;
    for (let nth = 0; nth < several; nth++) say(frame(THEIRS, OURS, 1400));
    close();
    expect(sent()).toBe(several);
  });
});

describe("where no trains are received", () => {
  it("a datagram of the MTU with two tags is delivered, and none that is longer", async () => {
    await forward({ gro: false });
    const largest = own.mtu + 14 + 2 * 4;
    peer.send(datagram(largest), port, HERE);
    await until("it", () => counters.events(INDEX).decapFrames === 1);
    peer.send(datagram(largest + 1), port, HERE);
    await until("the longer one", () => counters.drops(0).PKT_TOO_BIG === 1);
    expect(heard()).toEqual([largest]);
  });

  it("a datagram that is too long is dropped, whatever it begins like", async () => {
    await forward({ gro: false });
    const drops = () => counters.drops(0).PKT_TOO_BIG ?? 0;
    for (let nth = 1; nth <= 20; nth++) {
      await pause(5); // the thread is to have slept
      peer.send(datagram(60), port, HERE);
      await until("the short one", () => counters.events(INDEX).decapFrames === nth);
      await pause(5);
      peer.send(datagram(1600), port, HERE);
      await until("the long one", () => drops() === nth);
    }
    expect(new Set(heard())).toEqual(new Set([60]));
  });
});
