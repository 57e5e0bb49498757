/**
 * The addon, loaded once and only here. It is the NIC: it moves batches between descriptors and
 * memory, knows no VNI and no policy, and repeats a decision only where TypeScript offers that and the
 * frame is alike in all that TypeScript decides by (test/native/flows.test.ts holds it to that).
 * `native/addon.cc` checks arguments so that no mistake can crash the process; defaults and the meaning
 * of errors are the business of tap.ts and native-underlay.ts.
 */
import { createRequire } from "node:module";
import { type Batch, LAYOUT } from "../batch.ts";
import { VtepError } from "../errors.ts";
import { REMOTE_LAYOUT } from "../remotes.ts";

/** The addon's own of a `Batch`, which it knows by its number; see `numberOf`. */
export interface NativeBatch {
  readonly number: number;
}

/** A flow table that devices of one thread share (`native/flows.h`). */
export interface FlowTable {
  forget(): void;
}

/** What has a descriptor: that, or −1 after close. */
interface Port {
  fd(): number;
  close(): void;
}

/** What can be waited for. */
interface WatchedPort extends Port {
  /**
   * Calls back with 0 whenever there is something to read, or once with a negative errno, after
   * which there is silence (libuv makes UV_EBADF of POLLERR). Keeps the event loop alive, and from
   * sleeping for `busyPollUs` microseconds after each call, in which it gives its core to whoever wants
   * it (`native/poll.h`). Throws ERR_WATCHED when it is watched already.
   */
  watch(onReadable: (status: number) => void, busyPollUs?: number): void;
  unwatch(): void;
}

export interface TapQueue extends Port {
  readonly name: string;
  /** TUN_F_ bits. 0, or −errno: EINVAL when the kernel does not know one, or not without another. */
  setOffloads(bits: number): number;
  /** Which trains are written as super-frames still: the kernel may have refused a kind. */
  coalesces(): { tcp: boolean; udp: boolean };
}

/** Queues of TAPs, each in a slot of its own, from 0 to 65535. */
export interface TapQueues extends WatchedPort {
  add(slot: number, tap: TapQueue): void;
  remove(slot: number): void;
  /** Rows read; 0 if nothing waits, or −errno of the queue in `inTap[0]`, which is of no use any more. */
  read(batch: number): number;
  /** Rows that failed: ENODEV for want of a queue. */
  write(batch: number, count: number): number;
  gather(): void;
  /** At most so many frames at once, 1 to IN_ROWS, of a slot; one that is free is left alone. */
  limit(slot: number, frames: number): void;
}

export interface UdpFamily extends WatchedPort {
  /** Rows received, 0 if nothing waits, or −errno. */
  receive(batch: number): number;
  /** Rows sent, of those whose remote is of this family; other rows are left alone. */
  send(batch: number, count: number): number;
  overflows(): number;
  /** ICMP errors about datagrams that had been sent, but for those about their size. */
  refusals(): number;
  /** Whether trains still leave as one message (the kernel may have refused), and arrive as one. */
  trains(): { segment: boolean; coalesce: boolean };
}

export interface TapQueueOptions {
  name: string;
  /** A queue of it that is open already, or −1; it is closed if it is not. */
  fd: number;
  multiQueue: boolean;
  furtherQueues: number;
  coalesceTcp: boolean;
  coalesceUdp: boolean;
}

export interface UdpFamilyOptions {
  family: 4 | 6;
  /** Local; an IPv6 link-local address with its %interface. */
  address: string;
  port: number;
  /** A socket that receives there already, or −1; it is closed if it does not. */
  fd: number;
  /** −1: nobody else may receive on the port; 0: the first of those that share it; above: one more. */
  sharer: number;
  /** Where the ports of the sending sockets are taken from, both ends included. */
  sourcePorts: readonly [low: number, high: number];
  /** Sending sockets wanted; there are fewer if the range has fewer free ports. */
  fan: number;
  /** The longest datagram that is received whole where no trains are; where they are, every one is. */
  slotBytes: number;
  receiveBuffer: number;
  sendBuffer: number;
  /** Whether datagrams leave with DF set. */
  whole: boolean;
  /** Whether trains leave as one message, and arrive as one, where the kernel can do it. */
  segment: boolean;
  coalesce: boolean;
  /** `Remotes.words`. */
  remotes: Int32Array;
  flows?: FlowTable | undefined;
}

export interface Addon {
  readonly layout: Readonly<Record<string, number>>;
  readonly Batch: new (columns: Int32Array, slab: Uint8Array) => NativeBatch;
  readonly Tap: new (options: TapQueueOptions) => TapQueue;
  /** Of `Fdb.words`. */
  readonly FlowTable: new (
    guards: Int32Array,
  ) => FlowTable;
  readonly Taps: new (flows?: FlowTable) => TapQueues;
  readonly Udp: new (options: UdpFamilyOptions) => UdpFamily;
  /** How often the kernel has refused a kind of super-frame, to all TAPs of this process. */
  tapDemotions(): number;
  /**
   * Whether a flow from a TAP with several queues stays in its own, whichever its answers are written
   * to: 0, or −errno.
   */
  canSteer(): number;
  /**
   * From now on the calling thread runs before other processes while it carries TCP in super-frames, and lets
   * them gather (native/pace.h). 0, or −errno: EPERM, or EBUSY when it has a scheduling policy of its own.
   */
  paceBegin(): number;
  /** To be called about once a second: for how many seconds the thread has slept so that more would gather, or rested. */
  paceTick(): number;
  /** As a NIC does for VNET_NEEDS_CSUM: 0, or −EINVAL if the field is not within the frame. */
  completeChecksum(frame: Uint8Array, csumStart: number, csumOffset: number): number;
  /** The segments of a super-frame, or −EINVAL where frame and virtio_net_hdr do not fit. */
  segment(frame: Uint8Array, vnet: Uint8Array): Buffer[] | number;
  /** What is written to a TAP in place of these frames, in that order. */
  coalesce(
    frames: readonly Uint8Array[],
    tcp: boolean,
    udp: boolean,
  ): { rows: number[]; parts: number; vnet: Buffer; frame: Buffer }[];
  /** All that is decided by on a lone frame of a TAP (`native/flows.h`); undefined where more may be. */
  flowKey(frame: Uint8Array): Buffer | undefined;
  /**
   * One datagram to a socket of the service manager's (`@` begins an abstract name), with copies of
   * descriptors. Never waits. 0, or −errno.
   */
  notify(path: string, message: string, descriptors: readonly number[]): number;
  /** Another descriptor of the same file; what the system refuses is thrown. */
  duplicate(descriptor: number): number;
}

/** An error that the addon threw because the system refused something. */
export interface SystemError extends Error {
  /** "EPERM" and the like, as Node spells them. */
  readonly code: string;
  /** What was refused, such as "bind" or "ioctl(TUNSETIFF)". */
  readonly syscall: string;
}

export function isSystemError(error: unknown): error is SystemError {
  return error instanceof Error && "syscall" in error && "code" in error;
}

/** What `open` makes of a descriptor that was kept, or of −1 where there is none. */
export function adopted<T>(
  { fd, keptOnly }: { readonly fd?: number | undefined; readonly keptOnly?: boolean | undefined },
  open: (fd: number) => T,
): T {
  if (fd === undefined && keptOnly) throw new RangeError("nothing was kept");
  if (fd === undefined) return open(-1);
  try {
    return open(fd);
  } catch (error) {
    if (keptOnly || !isSystemError(error)) throw error;
    return open(-1); // it is of no use
  }
}

// Two levels below the package, as source and as dist/ alike.
const PATH = "../../build/Release/vtep.node";
const REMEDY = "run: npm run build";

let loaded: Addon | undefined;

/** The addon. Throws VtepError ADDON when it is missing or does not fit. */
export function addon(): Addon {
  loaded ??= load();
  return loaded;
}

function load(): Addon {
  let found: Addon;
  try {
    found = createRequire(import.meta.url)(PATH);
  } catch (cause) {
    const missing = (cause as NodeJS.ErrnoException).code === "MODULE_NOT_FOUND";
    const what = missing ? "is missing" : `does not load into Node ${process.version}`;
    throw new VtepError("ADDON", `the native addon ${what}; ${REMEDY}`, cause);
  }
  checkLayout(found.layout);
  return found;
}

/** Throws VtepError ADDON unless `layout` is the memory layout of this source. */
export function checkLayout(layout: Readonly<Record<string, number>>): void {
  const expected: Record<string, number> = { ...LAYOUT, ...REMOTE_LAYOUT };
  for (const name of new Set([...Object.keys(expected), ...Object.keys(layout)])) {
    if (layout[name] === expected[name]) continue;
    const difference = `${name} is ${layout[name]} there and ${expected[name]} here`;
    const sentence = `the native addon was built for another memory layout (${difference})`;
    throw new VtepError("ADDON", `${sentence}; ${REMEDY}`);
  }
}

const known = new WeakMap<Batch, NativeBatch>();

/** The number by which the addon knows a batch, from its first use on and for as long as the batch lives. */
export function numberOf(batch: Batch): number {
  let own = known.get(batch);
  if (own === undefined) {
    own = new (addon().Batch)(batch.columns, batch.slab);
    known.set(batch, own);
  }
  return own.number;
}
