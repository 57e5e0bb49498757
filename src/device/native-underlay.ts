/**
 * The underlay over batched kernel sockets: for each address family one socket that receives and a
 * fan of sockets that send, each from a source port of its own, chosen by the hash of the inner flow
 * (RFC 7348, section 5).
 *
 * The outer header forbids fragmentation, but to remotes whose path is narrow (remotes.ts); a datagram
 * that the path does not carry is EMSGSIZE of its row, and the kernel says what the path does carry:
 * native code writes it to the remote's row. The first datagram of all that is too long for a router on
 * the way is lost without a row to tell: its ICMP message is what the kernel learns from. Asking for such
 * errors (IP_RECVERR) also makes the kernel tell of datagrams that a full qdisc dropped (ENOBUFS). Outer
 * checksums are sent, and zero is accepted over both families (RFC 7348, RFC 6935).
 */
import { constants } from "node:os";
import type { Batch } from "../batch.ts";
import type { Capabilities, Offloads, Underlay, Watch } from "../device.ts";
import { VtepError } from "../errors.ts";
import type { Remotes } from "../remotes.ts";
import {
  addon,
  adopted,
  type FlowTable,
  isSystemError,
  numberOf,
  type UdpFamily,
  type UdpFamilyOptions,
} from "./native.ts";

/** Sending sockets of a family: enough for equal-cost paths, few enough to share their ports. */
export const FAN = 16;
/** What a burst at 10 Gbit/s leaves behind in some milliseconds of absence. */
const BUFFER_BYTES = 8 * 1024 * 1024;
/** Slots are of full cache lines, and never longer than a UDP datagram can be. */
const LARGEST_SLOT = 65_536;
/** So many errors, less than ERRORS_MS apart and with no datagram in between, are a loss. */
const LAST_STRAW = 16;
const ERRORS_MS = 1000;

/** Of a row that no family of this underlay took, and of all rows once it is lost. */
const { EAFNOSUPPORT, ENETDOWN } = constants.errno;

/** Those that are an underlay's. */
export type UnderlayOffloads = Pick<Offloads, "gso" | "gro">;

export interface NativeUnderlayOptions {
  /** Local IPv4 address; without it there is no IPv4. */
  local4?: string | undefined;
  /** Local IPv6 address, a link-local one with its %interface; without it there is no IPv6. */
  local6?: string | undefined;
  /** UDP port to receive on. */
  port: number;
  remotes: Remotes;
  flows?: FlowTable | undefined;
  /** Source ports are free ones of this range, both ends included; RFC 7348: 49152 to 65535. */
  sourcePorts?: readonly [low: number, high: number];
  /** Sending sockets wanted of each family; there are fewer if the range has fewer free ports. By default FAN. */
  fan?: number;
  /** Bytes of the longest UDP payload to receive whole where no trains are; where they are, every one is. */
  largestDatagram: number;
  /** The socket of a family that receives, if one was kept open. It is ours once asked for; one that does not fit is replaced. */
  kept?: (family: 4 | 6) => number | undefined;
  /** Whether none is replaced, or opened for want of one. */
  keptOnly?: boolean;
  /**
   * Which of the underlays that share the port this is, each on a thread of its own: 0 the first, which
   * has to be open before the others. By default nobody shares it.
   */
  sharer?: number;
  /** Microseconds for which the thread, once it was woken, asks for more before it sleeps; default 0. */
  busyPollUs?: number;
  /** Whether DF is set in what is sent; by default it is. */
  df?: "set" | "unset";
  /** What is wanted; by default all. */
  offloads?: Partial<UnderlayOffloads>;
}

export class NativeUnderlay implements Underlay {
  readonly capabilities: Capabilities;
  readonly #families: UdpFamily[] = [];
  /** The descriptors of the sockets that receive. */
  readonly fds: { 4?: number; 6?: number } = {};
  readonly #busyPollUs: number;
  readonly #flows: FlowTable | undefined;
  /** Whose turn it is to be asked first. */
  #next = 0;
  #watch: Watch | undefined;
  #errors = 0;
  #lastErrorMs = 0;
  #lost: VtepError | undefined;
  #told = false;
  #closed = false;

  /** Throws VtepError ADDON, PORT_IN_USE, ADDRESS, PERMISSION or SYSTEM. */
  constructor(options: NativeUnderlayOptions) {
    const { port, sourcePorts = [49_152, 65_535], remotes, largestDatagram } = options;
    const native = addon();
    const whole = options.df !== "unset";
    this.capabilities = {
      sourcePortEntropy: true,
      dontFragment: whole,
      zeroChecksum6: true,
      countsOverflows: true,
      carriesTos: true,
      cutsSuperFrames: true,
    };
    this.#busyPollUs = options.busyPollUs ?? 0;
    this.#flows = options.flows;
    for (const family of [4, 6] as const) {
      const address = family === 4 ? options.local4 : options.local6;
      if (address === undefined) continue;
      const socket: UdpFamilyOptions = {
        family,
        address,
        port,
        fd: -1,
        sharer: options.sharer ?? -1,
        sourcePorts,
        fan: options.fan ?? FAN,
        slotBytes: Math.min(largestDatagram, LARGEST_SLOT),
        receiveBuffer: BUFFER_BYTES,
        sendBuffer: BUFFER_BYTES,
        whole,
        segment: options.offloads?.gso ?? true,
        coalesce: options.offloads?.gro ?? true,
        remotes: remotes.words,
        flows: options.flows,
      };
      try {
        const open = (fd: number) => new native.Udp({ ...socket, fd });
        const opened = adopted({ fd: options.kept?.(family), keptOnly: options.keptOnly }, open);
        this.#families.push(opened);
        this.fds[family] = opened.fd();
      } catch (error) {
        this.close();
        throw explain(error, socket);
      }
    }
    if (this.#families.length === 0) throw new TypeError("local4, local6 or both must be given");
  }

  /** What is in use now, by every family. */
  offloads(): UnderlayOffloads {
    const trains = this.#families.map((family) => family.trains());
    return {
      gso: trains.every(({ segment }) => segment),
      gro: trains.every(({ coalesce }) => coalesce),
    };
  }

  receive(batch: Batch): number {
    this.#assertOpen();
    if (this.#lost !== undefined) return 0;
    const number = numberOf(batch);
    for (let turn = 0; turn < this.#families.length; turn++) {
      const family = this.#families[this.#next]!;
      this.#next = (this.#next + 1) % this.#families.length;
      const rows = family.receive(number);
      if (rows > 0) {
        this.#errors = 0;
        return rows;
      }
      if (rows < 0) this.#count(rows);
    }
    return 0;
  }

  send(batch: Batch, count: number): number {
    this.#assertOpen();
    batch.outError.fill(this.#lost === undefined ? EAFNOSUPPORT : ENETDOWN, 0, count);
    if (this.#lost !== undefined) return count;
    const number = numberOf(batch);
    let sent = 0;
    for (let i = 0; i < this.#families.length; i++) sent += this.#families[i]!.send(number, count);
    return count - sent;
  }

  overflows(): number {
    this.#assertOpen();
    let datagrams = 0;
    for (const family of this.#families) datagrams += family.overflows();
    return datagrams >>> 0;
  }

  refusals(): number {
    this.#assertOpen();
    let errors = 0;
    for (const family of this.#families) errors += family.refusals();
    return errors >>> 0;
  }

  watch(watch: Watch): void {
    this.#assertOpen();
    this.#watch = watch;
    if (this.#lost !== undefined) this.#tell();
    else for (const family of this.#families) this.#watchFamily(family);
  }

  close(): void {
    this.#closed = true;
    this.#watch = undefined;
    for (const family of this.#families) family.close();
  }

  #watchFamily(family: UdpFamily): void {
    family.unwatch();
    family.watch((status) => {
      if (status < 0) this.#mend(family, status);
      else this.#watch?.onReadable();
    }, this.#busyPollUs);
  }

  /**
   * A socket with an error pending is not lost: `ss --kill`, say, leaves one behind. Reading it
   * takes the error away (receive counts it), and libuv, which has stopped watching, starts anew.
   */
  #mend(family: UdpFamily, status: number): void {
    this.#count(status);
    if (this.#lost !== undefined) return;
    this.#watchFamily(family);
    this.#watch?.onReadable();
  }

  #count(status: number): void {
    const nowMs = performance.now();
    if (nowMs - this.#lastErrorMs > ERRORS_MS) this.#errors = 0;
    this.#lastErrorMs = nowMs;
    this.#errors++;
    if (this.#errors < LAST_STRAW || this.#lost !== undefined) return;
    for (const family of this.#families) family.unwatch();
    this.#flows?.forget(); // or what comes from the TAPs would go on leaving
    const sentence = `the underlay's sockets fail again and again (errno ${-status})`;
    this.#lost = new VtepError("LOST", `${sentence}; start again`);
    this.#tell();
  }

  /** Once, and never from within receive: the owner may well close everything. */
  #tell(): void {
    if (this.#told || this.#watch === undefined) return;
    this.#told = true;
    queueMicrotask(() => this.#watch?.onLost(this.#lost!));
  }

  #assertOpen(): void {
    if (this.#closed) throw new VtepError("CLOSED", "the underlay was used after close");
  }
}

function explain(error: unknown, socket: UdpFamilyOptions): unknown {
  if (!isSystemError(error)) return error;
  const { address, port, family } = socket;
  const [low, high] = socket.sourcePorts;
  const forSource = error.syscall === "bind(source port)";
  // What the socket itself, or an option of it, is refused for is not about the address or the port.
  const isOfPlace = forSource || error.syscall === "bind" || error.syscall === "inet_pton";
  if (error.syscall === "socket" && error.code === "EAFNOSUPPORT") {
    const sentence = `no IPv${family} socket can be had for ${address}`; // which may be this host's all the same
    const remedy =
      "allow them (RestrictAddressFamilies= in a systemd unit), or use the other family";
    return new VtepError("ADDRESS", `${sentence}: ${remedy}`, error);
  }
  switch (isOfPlace ? error.code : undefined) {
    case "EADDRINUSE": {
      if (forSource) {
        const sharing =
          socket.sharer > 0 ? " for one more worker, each of which needs its own" : "";
        const sentence = `no UDP port from ${low} to ${high} is free on ${address}${sharing}`;
        return new VtepError("PORT_IN_USE", `${sentence}: choose another range`, error);
      }
      const sentence = `UDP port ${port} of ${address} is held by another program or a kernel device`;
      const remedy = `find it with "ss -lunp sport = :${port}" or "ip -d link show type vxlan"`;
      return new VtepError("PORT_IN_USE", `${sentence}: ${remedy}, or choose another port`, error);
    }
    case "EADDRNOTAVAIL":
    case "EINVAL":
    case "ENODEV": {
      const remedy = 'choose one of those that "ip address" shows';
      return new VtepError("ADDRESS", `${address} is no address of this host: ${remedy}`, error);
    }
    case "EACCES": {
      const sentence = `UDP port ${forSource ? low : port} needs CAP_NET_BIND_SERVICE`;
      const remedy = "run as root or choose a port above 1023";
      return new VtepError("PERMISSION", `${sentence}: ${remedy}`, error);
    }
  }
  return new VtepError(
    "SYSTEM",
    `UDP over ${address} could not be opened: ${error.message}`,
    error,
  );
}
