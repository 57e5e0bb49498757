/**
 * One queue of a TAP device of this host.
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
import type { Offloads, Tap, Watch } from "../device.ts";
import { VtepError } from "../errors.ts";
import { addon, adopted, handleOf, isSystemError, type TapQueue } from "./native.ts";

/**
 * TUN_F_ bits of <linux/if_tun.h>: what the host may leave to us. Checksums alone; super-frames of TCP
 * over IPv4 and IPv6, with CWR in them; super-frames of UDP (Linux 6.2).
 */
const TUN_F_CSUM = 0x01;
const TUN_F_TSO = 0x02 | 0x04 | 0x08;
const TUN_F_USO = 0x20 | 0x40;

/** "File descriptor in bad state": the interface behind it is gone. Not among os.constants. */
const EBADFD = 77;
const { ENODEV } = constants.errno;

/** Those that are a TAP's. */
export type TapOffloads = Pick<Offloads, "csum" | "tso" | "uso" | "coalesce-tcp" | "coalesce-udp">;

/** So many reads that fail, with no frame in between, are a loss. */
const LAST_STRAW = 16;

export interface NativeTapOptions {
  /** Name of the interface, 1 to 15 bytes. */
  name: string;
  /** What is wanted; by default all. */
  offloads?: Partial<TapOffloads>;
  /** Microseconds for which the thread, once it was woken, asks for more before it sleeps; default 0. */
  busyPollUs?: number;
  /** A queue of the device that was kept open; if it turns out to be none, another is opened. */
  fd?: number | undefined;
  /** Whether no other is opened then, or for want of one. */
  keptOnly?: boolean;
  /** Whether more queues of the same device may be opened; by default not. */
  multiQueue?: boolean;
}

export class NativeTap implements Tap {
  readonly name: string;
  readonly #queue: TapQueue;
  readonly #bits: number;
  readonly #busyPollUs: number;
  #watch: Watch | undefined;
  #lost: VtepError | undefined;
  #told = false;
  #errors = 0;
  #closed = false;

  /** Throws VtepError ADDON, PERMISSION, TUN_MISSING, NAME_IN_USE or SYSTEM. */
  constructor(options: NativeTapOptions) {
    const { name, multiQueue = false } = options;
    const wanted = options.offloads ?? {};
    const coalesceTcp = wanted["coalesce-tcp"] ?? true;
    const coalesceUdp = wanted["coalesce-udp"] ?? true;
    const native = addon();
    checkName(name);
    const open = (fd: number) => new native.Tap({ name, fd, multiQueue, coalesceTcp, coalesceUdp });
    try {
      this.#queue = adopted(options, open);
    } catch (error) {
      throw explain(error, name, multiQueue);
    }
    this.name = this.#queue.name;
    this.#busyPollUs = options.busyPollUs ?? 0;
    this.#bits = agree(this.#queue, wanted);
  }

  /** The descriptor of its queue. */
  get fd(): number {
    return this.#queue.fd();
  }

  /** What is in use now. */
  offloads(): TapOffloads {
    const { tcp, udp } = this.#queue.coalesces();
    return {
      csum: (this.#bits & TUN_F_CSUM) !== 0,
      tso: (this.#bits & TUN_F_TSO) !== 0,
      uso: (this.#bits & TUN_F_USO) !== 0,
      "coalesce-tcp": tcp,
      "coalesce-udp": udp,
    };
  }

  read(batch: Batch): number {
    this.#assertOpen();
    if (this.#lost !== undefined) return 0;
    const rows = this.#queue.read(handleOf(batch));
    if (rows > 0) this.#errors = 0;
    if (rows >= 0) return rows;
    // One frame that the kernel cannot express is lost and the next one may be well; but a device that
    // does nothing else would be polled for ever.
    if (isGone(-rows)) this.#lose();
    else if (++this.#errors === LAST_STRAW) this.#lose(`cannot be read (errno ${-rows})`);
    return 0;
  }

  write(batch: Batch, first: number, end: number): number {
    this.#assertOpen();
    const failures = this.#queue.write(handleOf(batch), first, end);
    if (failures > 0 && this.#lost === undefined && isGone(batch.outError[end - 1]!)) this.#lose();
    return failures;
  }

  watch(watch: Watch): void {
    this.#assertOpen();
    this.#queue.unwatch();
    this.#watch = watch;
    if (this.#lost !== undefined) {
      this.#tell();
      return;
    }
    this.#queue.watch((status) => {
      if (status < 0) this.#lose();
      else watch.onReadable();
    }, this.#busyPollUs);
  }

  /** Hears no more, of readiness or of loss. */
  unwatch(): void {
    this.#watch = undefined;
    this.#queue.unwatch();
  }

  close(): void {
    this.#closed = true;
    this.#watch = undefined;
    this.#queue.close();
  }

  #lose(what = "was deleted while in use"): void {
    this.#queue.unwatch();
    this.#lost = new VtepError("LOST", `interface ${this.name} ${what}`);
    this.#tell();
  }

  /** Once, and never from within read or write: the owner may well close everything. */
  #tell(): void {
    if (this.#told || this.#watch === undefined) return;
    this.#told = true;
    queueMicrotask(() => this.#watch?.onLost(this.#lost!));
  }

  #assertOpen(): void {
    if (this.#closed) throw new VtepError("CLOSED", `TAP ${this.name} was used after close`);
  }
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

function explain(error: unknown, name: string, multiQueue: boolean): unknown {
  if (!isSystemError(error)) return error;
  switch (error.code) {
    case "EPERM":
    case "EACCES": {
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
