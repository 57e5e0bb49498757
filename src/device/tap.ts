/**
 * Queues of TAP devices of this host, and those of a thread as one.
 *
 * The device exists as long as a queue of it is open, unless something made it persistent before.
 * An interface that is down is no failure: nothing arrives, and writing to it sets EIO. One that was
 * deleted is: reading and writing give EBADFD, polling gives POLLERR (tun_chr_poll in the kernel's
 * drivers/net/tun.c), and the owner hears `onLost`.
 */
import { readFileSync } from "node:fs";
import { constants } from "node:os";
import { getSystemErrorName } from "node:util";
import type { Batch } from "../batch.ts";
import type { Offloads, Tap, Taps } from "../device.ts";
import { VtepError } from "../errors.ts";
import {
  addon,
  adopted,
  type FlowTable,
  isSystemError,
  numberOf,
  type TapQueue,
  type TapQueues,
} from "./native.ts";

/**
 * TUN_F_ bits of <linux/if_tun.h>: what the host may leave to us. Checksums alone; super-frames of TCP
 * over IPv4 and IPv6, with CWR in them; super-frames of UDP (Linux 6.2).
 */
const TUN_F_CSUM = 0x01;
const TUN_F_TSO = 0x02 | 0x04 | 0x08;
const TUN_F_USO = 0x20 | 0x40;

/** "File descriptor in bad state": the interface behind it is gone. Not among os.constants. */
const EBADFD = 77;
const { EBUSY, ENODEV } = constants.errno;

export type { FlowTable };

/** Those that are a TAP's. */
export type TapOffloads = Pick<Offloads, "csum" | "tso" | "uso" | "coalesce-tcp" | "coalesce-udp">;

export interface NativeTapOptions {
  /** Name of the interface, 1 to 15 bytes. */
  name: string;
  /** What is wanted; by default all. */
  offloads?: Partial<TapOffloads>;
  /** A queue of the device that was kept open; if it turns out to be none, another is opened. */
  fd?: number | undefined;
  /** Whether no other is opened then, or for want of one. */
  keptOnly?: boolean;
  /** Whether more queues of the same device may be opened; by default not. */
  multiQueue?: boolean;
  /**
   * Queues more that are opened to be read, so that not every flow waits behind the one that has most to send; by
   * default none. The device is nobody else's then. There are none where flows cannot be told apart
   * (`steeringFault`), where the descriptor's device has a single queue, or is in another network namespace.
   */
  furtherQueues?: number;
}

export class NativeTap implements Tap {
  readonly name: string;
  /** @internal */
  readonly queue: TapQueue;
  readonly #bits: number;

  /** Throws VtepError ADDON, PERMISSION, TUN_MISSING, NAME_IN_USE or SYSTEM. */
  constructor(options: NativeTapOptions) {
    const { name, multiQueue = false, furtherQueues = 0 } = options;
    const wanted = options.offloads ?? {};
    const coalesceTcp = wanted["coalesce-tcp"] ?? true;
    const coalesceUdp = wanted["coalesce-udp"] ?? true;
    const native = addon();
    checkName(name);
    const use = { name, multiQueue, furtherQueues, coalesceTcp, coalesceUdp };
    const open = (fd: number) => new native.Tap({ ...use, fd });
    try {
      this.queue = adopted(options, open);
    } catch (error) {
      throw explain(error, name, multiQueue);
    }
    this.name = this.queue.name;
    this.#bits = agree(this.queue, wanted);
  }

  /** The descriptor of its queue. */
  get fd(): number {
    return this.queue.fd();
  }

  /** What is in use now. */
  offloads(): TapOffloads {
    const { tcp, udp } = this.queue.coalesces();
    return {
      csum: (this.#bits & TUN_F_CSUM) !== 0,
      tso: (this.#bits & TUN_F_TSO) !== 0,
      uso: (this.#bits & TUN_F_USO) !== 0,
      "coalesce-tcp": tcp,
      "coalesce-udp": udp,
    };
  }

  close(): void {
    this.queue.close();
  }
}

export class NativeTaps implements Taps<NativeTap> {
  readonly #queues: TapQueues;
  readonly #busyPollUs: number;
  /** By index. */
  readonly #members = new Map<number, Member>();

  /** `busyPollUs`: for how long the thread, once it was woken, asks for more before it sleeps. */
  constructor(busyPollUs = 0, flows?: FlowTable) {
    this.#queues = waitable(() => new (addon().Taps)(flows));
    this.#busyPollUs = busyPollUs;
  }

  add(index: number, tap: NativeTap, onLost: (error: VtepError) => void): void {
    waitable(() => this.#queues.add(index, tap.queue));
    this.#members.set(index, { tap, onLost, isLost: false });
  }

  remove(index: number): void {
    if (this.#members.delete(index)) this.#queues.remove(index);
  }

  read(batch: Batch): number {
    const number = numberOf(batch);
    let rows = this.#queues.read(number);
    while (rows < 0) {
      this.#lose(batch.inTap[0]!, -rows);
      rows = this.#queues.read(number);
    }
    return rows;
  }

  limit(index: number, frames: number): void {
    this.#queues.limit(index, frames);
  }

  write(batch: Batch, count: number): number {
    const failures = this.#queues.write(numberOf(batch), count);
    if (failures > 0) this.#loseThose(batch, count);
    return failures;
  }

  /** What comes from now on waits in the queues that have a descriptor; of TAPs with further ones only those are read. */
  gather(): void {
    this.#queues.gather();
  }

  watch(onReadable: () => void): void {
    this.#queues.unwatch();
    this.#queues.watch(onReadable, this.#busyPollUs); // epoll's descriptor never fails (eventpoll.c)
  }

  close(): void {
    this.#members.clear();
    this.#queues.close();
  }

  #loseThose({ outError, outTap }: Batch, count: number): void {
    for (let row = 0; row < count; row++) {
      if (isGone(outError[row]!)) this.#lose(outTap[row]!, outError[row]!);
    }
  }

  /** Told of once, and never from within read or write: the owner may well close everything. */
  #lose(index: number, errno: number): void {
    const lost = this.#members.get(index);
    if (lost === undefined || lost.isLost) return;
    lost.isLost = true;
    this.#queues.remove(index);
    const { tap, onLost } = lost;
    const what = isGone(errno) ? "was deleted while in use" : `cannot be read (errno ${errno})`;
    const error = new VtepError("LOST", `interface ${tap.name} ${what}`);
    queueMicrotask(() => {
      if (this.#members.get(index) !== lost) return;
      this.#members.delete(index);
      if (tap.fd >= 0) onLost(error); // or somebody has closed it meanwhile
    });
  }
}

interface Member {
  readonly tap: NativeTap;
  readonly onLost: (error: VtepError) => void;
  isLost: boolean;
}

/** What `join` returns; what the system refuses it is a VtepError SYSTEM. */
function waitable<T>(join: () => T): T {
  try {
    return join();
  } catch (error) {
    if (!isSystemError(error)) throw error;
    throw new VtepError("SYSTEM", `TAPs cannot be waited for: ${error.message}`, error);
  }
}

/** What the devices of a thread do by themselves (`native/flows.h`); `guards`: `Fdb.words`. */
export function flowTable(guards: Int32Array): FlowTable {
  return new (addon().FlowTable)(guards);
}

/** Changes when any TAP of this process does without an offload that it had. */
export function demotions(): number {
  return addon().tapDemotions();
}

/** Why a flow from a TAP with several queues may change its own when it is answered; undefined: it does not. */
export function steeringFault(): string | undefined {
  const error = addon().canSteer();
  return error === 0 ? undefined : getSystemErrorName(error);
}

/**
 * From now on this thread runs before others while it carries streams (native/pace.h). Returns why not; undefined:
 * it does, or somebody has given it a policy of its own.
 */
export function beginPace(): string | undefined {
  const error = addon().paceBegin();
  return error === 0 || error === -EBUSY ? undefined : getSystemErrorName(error);
}

/** To be called about once a second: for how many seconds this thread has slept so that more would gather, or rested. */
export function secondsAsleep(): number {
  return addon().paceTick();
}

/** Asks for all that is wanted, then for less and less until the kernel agrees; returns the bits. */
function agree(
  queue: TapQueue,
  wanted: Pick<Partial<TapOffloads>, "csum" | "tso" | "uso">,
): number {
  const { csum = true, tso = true, uso = true } = wanted;
  const steps = csum ? [TUN_F_CSUM] : []; // the kernel segments nothing whose checksum it completes
  if (csum && tso) steps.push(steps.at(-1)! | TUN_F_TSO);
  if (csum && uso) steps.push(steps.at(-1)! | TUN_F_USO);
  for (const bits of steps.reverse()) if (queue.setOffloads(bits) === 0) return bits;
  queue.setOffloads(0);
  return 0;
}

function isGone(errno: number): boolean {
  return errno === EBADFD || errno === ENODEV;
}

/** The kernel's dev_valid_name(), and no "%d", of which it would make a number. */
function checkName(name: string): void {
  if (/^[^\s/:%]+$/.test(name) && name !== "." && name !== ".." && Buffer.byteLength(name) < 16) {
    return;
  }
  throw new RangeError(`${JSON.stringify(name)} cannot be the name of an interface`);
}

/** A capability alone does not help whom the file's mode or a list of devices keeps out. */
const LET_IN =
  "run as root, or with CAP_NET_ADMIN where its mode (chmod 666), the unit (DeviceAllow=/dev/net/tun rw) or the container (--device /dev/net/tun) lets you in";

function explain(error: unknown, name: string, multiQueue: boolean): unknown {
  if (!isSystemError(error)) return error;
  switch (error.code) {
    case "EPERM":
    case "EACCES": {
      if (error.syscall.startsWith("open")) {
        const sentence = `/dev/net/tun cannot be opened (${error.code})`;
        return new VtepError("PERMISSION", `${sentence}: ${LET_IN}`, error);
      }
      const remedy = "run as root or with that capability";
      const sentence = `creating TAP ${name} needs CAP_NET_ADMIN`;
      return new VtepError("PERMISSION", `${sentence}: ${remedy}`, error);
    }
    case "ENOENT":
    case "ENODEV":
    case "ENXIO": {
      const remedy =
        "load the module (modprobe tun), or in a container pass the device on (--device /dev/net/tun)";
      return new VtepError("TUN_MISSING", `there is no /dev/net/tun: ${remedy}`, error);
    }
    case "EBUSY":
    case "EEXIST":
    case "EINVAL":
      if (!interfaceExists(name)) break;
      return new VtepError("NAME_IN_USE", inUse(name, multiQueue), error);
  }
  return new VtepError("SYSTEM", `TAP ${name} could not be opened: ${error.message}`, error);
}

function inUse(name: string, multiQueue: boolean): string {
  const unfit = multiQueue ? "no TAP with several queues" : "no TAP";
  const remedy = `choose another name, or delete it (ip link delete ${name})`;
  return `interface ${name} exists and is in use, or is ${unfit}: ${remedy}`;
}

/** Of this thread's network namespace; /sys shows that in which it was mounted. */
function interfaceExists(name: string): boolean {
  const lines = readFileSync("/proc/thread-self/net/dev", "utf8").split("\n");
  return lines.some((line) => line.trimStart().startsWith(`${name}:`));
}
