/** What the tests of this folder stand on: names, ports, descriptors, child processes. */
import { execFileSync, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import dgram from "node:dgram";
import { once } from "node:events";
import { readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { Batch } from "../../src/batch.ts";
import { Counters, Traffic } from "../../src/counters.ts";
import type { UdpFamilyOptions } from "../../src/device/native.ts";
import { type NativeTap, NativeTaps } from "../../src/device/tap.ts";
import { ALL_OFFLOADS } from "../../src/device.ts";
import type { VtepError } from "../../src/errors.ts";
import { type Fdb, NETWORKS } from "../../src/fdb.ts";
import { Heartbeats } from "../../src/heartbeats.ts";
import { Remotes } from "../../src/remotes.ts";
import type { NetworkPlan, Plan } from "../../src/vtep.ts";

export const ROOT = fileURLToPath(new URL("../..", import.meta.url));
export const ADDON = `${ROOT}build/Release/vtep.node`;

/** An interface name that nothing else has. */
export function uniqueName(): string {
  return `vt${randomBytes(5).toString("hex")}`;
}

export async function freePort(address = "127.0.0.1"): Promise<number> {
  const socket = await receiver(address);
  const { port } = socket.address();
  socket.close();
  return port;
}

/** A socket of Node's own, as the other side. */
export async function receiver(address: string, port = 0): Promise<dgram.Socket> {
  const socket = dgram.createSocket(address.includes(":") ? "udp6" : "udp4");
  socket.bind(port, address);
  await once(socket, "listening");
  socket.setRecvBufferSize(1 << 20); // a train that is cut up takes more memory than its datagrams
  return socket;
}

export function ip(...words: string[]): void {
  execFileSync("ip", words, { stdio: ["ignore", "ignore", "pipe"] });
}

/** The index of a TAP among taps of its own. */
export const ALONE = 1;

const taps = new WeakMap<NativeTap, NativeTaps>();

/** Taps whose only member this TAP is: the same ones again. */
export function alone(tap: NativeTap, onLost: (error: VtepError) => void = () => {}): NativeTaps {
  let its = taps.get(tap);
  if (its === undefined) {
    its = new NativeTaps();
    its.add(ALONE, tap, onLost);
    taps.set(tap, its);
  }
  return its;
}

/** Open descriptors of this process. Reading the folder opens one itself, every time alike. */
export function descriptors(): number {
  return readdirSync("/proc/self/fd").length;
}

export interface Ended {
  /** Exit code, or the name of the signal that ended it. */
  status: number | string | null;
  output: string;
}

/** Runs CommonJS code, with the addon as `addon`, in a Node of its own. */
export function child(code: string, ...flags: string[]): Ended {
  const prelude = `const addon = require(${JSON.stringify(ADDON)}), fs = require("node:fs");`;
  return ended(process.execPath, [...flags, "-e", `${prelude}\n${code}`]);
}

/** Runs TypeScript modules of this package, as ES module code; relative to its root. It has these descriptors from 3 on. */
export function moduleChild(
  code: string,
  prefix: string[] = [],
  descriptors: number[] = [],
): Ended {
  const node = [process.execPath, "--import", "tsx", "--input-type=module", "-e", code];
  const [command, ...words] = [...prefix, ...node];
  return ended(command!, words, descriptors);
}

function ended(command: string, words: string[], descriptors: number[] = []): Ended {
  const { status, signal, stdout, stderr, error } = spawnSync(command, words, {
    cwd: ROOT,
    stdio: ["pipe", "pipe", "pipe", ...descriptors],
    encoding: "utf8",
    timeout: 120_000,
  });
  if (error !== undefined) throw error;
  return { status: signal ?? status, output: `${stdout}${stderr}` };
}

/** Options that the addon accepts, over loopback. */
export function udpOptions(port: number, changes: Partial<UdpFamilyOptions> = {}) {
  return {
    family: 4,
    address: "127.0.0.1",
    port,
    sourcePorts: [20_000, 30_000],
    fd: -1,
    sharer: -1,
    fan: 16,
    slotBytes: 1500,
    receiveBuffer: 1 << 20,
    sendBuffer: 1 << 20,
    whole: true,
    segment: true,
    coalesce: true,
    remotes: new Remotes().words,
    ...changes,
  } satisfies UdpFamilyOptions;
}

/** Rows 0 to n − 1, one behind the other in the slab, filled with their own number. */
export function fillRows(batch: Batch, lengths: readonly number[], remote: number): void {
  let offset = 0;
  lengths.forEach((length, row) => {
    batch.slab.fill(row, offset, offset + length);
    setRow(batch, row, { offset, length, remote });
    offset += length;
  });
}

export interface Row {
  offset: number;
  length: number;
  remote?: number;
  hash?: number;
  inRow?: number;
  /** By default the one that is alone. */
  tap?: number;
}

export function setRow(batch: Batch, row: number, fields: Row): void {
  const { offset, length, remote = 0, hash = 0, inRow = 0, tap = ALONE } = fields;
  batch.outOffset[row] = offset;
  batch.outLength[row] = length;
  batch.outRow[row] = inRow;
  batch.outRemote[row] = remote;
  batch.outHash[row] = hash;
  batch.outTap[row] = tap;
  batch.outError[row] = -1;
}

/** A network of index 1, with a TAP of its own. */
export function networkPlan(
  own: Pick<NetworkPlan, "vni" | "flood"> & Partial<NetworkPlan>,
): NetworkPlan {
  return {
    index: 1,
    tap: uniqueName(),
    furtherQueues: 0,
    mac: { high: 0x0200, low: 9 },
    hasGateway: false,
    vlan: 0,
    mtu: 1450,
    clampMss: false,
    ageSeconds: 300,
    allowed: [],
    ...own,
  };
}

/** For one thread, with its underlay on loopback. */
export function planOf(
  fdb: Fdb,
  remotes: Remotes,
  own: Pick<Plan, "port" | "networks"> & Partial<Plan>,
): Plan {
  return {
    workers: 1,
    fdb: fdb.memory,
    counters: Counters.allocate(NETWORKS - 1, 1),
    traffic: Traffic.allocate(1),
    heartbeats: Heartbeats.allocate(1),
    remotes: remotes.words.buffer as SharedArrayBuffer,
    underlay: "auto",
    local4: "127.0.0.1",
    local6: undefined,
    sourcePorts: [49_152, 65_535],
    offloads: ALL_OFFLOADS,
    busyPollUs: 0,
    paced: false,
    strict: false,
    flowSeed: 1,
    dscp: 0,
    df: "set",
    kept: {},
    keptOnly: false,
    largestMtu: 1450,
    ...own,
  };
}
