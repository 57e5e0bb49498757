/**
 * The underlay on `node:dgram`: one socket per address family, no addon. It works wherever Node
 * does; what it cannot do is said by its capabilities.
 *
 * Sending is immediate: addresses are never looked up (`lookup` below answers at once, where the
 * default one would put every datagram off to the next tick), so libuv tries sendmsg(2) within
 * `send`, and queues a datagram only when the socket is full. Node tells neither of the two until
 * later. Hence
 *
 * - the bytes are copied out of the slab, all rows of a burst with one copy, since a queued
 *   datagram is read after `send` has returned. The copy's memory, the outbox, is used from its
 *   start again as soon as nothing is queued, which is nearly always; when it is full, rows fail
 *   with EAGAIN;
 * - an errno of the kernel's (no route, say) comes after the row was reported as sent, and goes to
 *   `onUnsent`. Only what is certain beforehand becomes the row's `outError`.
 *
 * A datagram that the path does not carry is fragmented: Node cannot set IP_MTU_DISCOVER, and by
 * default (IP_PMTUDISC_WANT) the kernel forbids fragmentation only of what fits. So nothing is learned of
 * paths here, and no frame is too big; only the first one that a router finds too long is lost.
 *
 * Receiving: libuv reads 32 datagrams a turn of the event loop, whether they are wanted or not, so
 * there is a queue here. It drops when it is full, and counts. The kernel's own drops are read from
 * /proc/net/udp, where a socket is found by its address and port, which no other socket has.
 */
import dgram from "node:dgram";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { isIPv4, isIPv6 } from "node:net";
import { constants } from "node:os";
import { ADDRESS_WORDS, type Batch, IN_ROWS, OUT_ROWS, SLAB_BYTES, TRUNCATED } from "../batch.ts";
import type { Capabilities, Underlay, Watch } from "../device.ts";
import { VtepError } from "../errors.ts";
import { addressWords, REMOTE_WORDS, type Remotes } from "../remotes.ts";

const { EAFNOSUPPORT, EAGAIN, EINVAL, EMSGSIZE, ENETDOWN } = constants.errno;

/** Asked for; the kernel silently gives no more than net.core.rmem_max and wmem_max. */
const SOCKET_BUFFER_BYTES = 8 * 1024 * 1024;
/** What may wait here to be received, and the memory it may keep. */
const INBOX_ROWS = 16 * IN_ROWS;
const INBOX_BYTES = 8 * 1024 * 1024;
/** What may wait here to be sent, and the memory it may keep. */
const OUTBOX_ROWS = 4 * OUT_ROWS;
const OUTBOX_BYTES = 4 * SLAB_BYTES;
/** Senders whose address is remembered as words. Peers are few; strangers may be many. */
const SENDERS = 4096;

/** The largest payload of one datagram: 65,535 less the headers that the length counts in. */
const LARGEST_4 = 65_507;
const LARGEST_6 = 65_527;

/** fe80::/10 */
const LINK_LOCAL = /^fe[89ab]/;

/** 8 bytes of VXLAN and 14 of Ethernet further is a multiple of 8. */
const FIRST_OFFSET = 2;

export interface DgramUnderlayOptions {
  /** Addresses of this host to send from and receive at; at least one of the two. */
  readonly local4?: string | undefined;
  readonly local6?: string | undefined;
  /** UDP port to receive at; everything is sent from it too. */
  readonly port: number;
  readonly remotes: Remotes;
  /** Longer datagrams are received TRUNCATED to this. */
  readonly largestDatagram: number;
}

export class DgramUnderlay implements Underlay {
  readonly capabilities: Capabilities;
  readonly #socket4: dgram.Socket | undefined;
  readonly #socket6: dgram.Socket | undefined;
  readonly #remotes: Remotes;
  readonly #largestDatagram: number;
  readonly #drops: () => number;
  #watch: Watch | undefined;
  #state: "open" | "lost" | "closed" = "open";

  /** A ring of what has arrived: `#waiting` rows from `#oldest` on. */
  readonly #payloads: (Uint8Array | undefined)[] = new Array(INBOX_ROWS).fill(undefined);
  readonly #senders: Int32Array[] = new Array(INBOX_ROWS).fill(new Int32Array(ADDRESS_WORDS));
  readonly #sendersByText = new Map<string, Int32Array>();
  #oldest = 0;
  #waiting = 0;
  #waitingBytes = 0;
  #overflows = 0;
  #wakeup: NodeJS.Immediate | undefined;

  readonly #outbox = new Uint8Array(OUTBOX_BYTES);
  #outboxUsed = 0;
  /** "%eth0" when that is the end of local6: a link-local remote is on the same link. */
  readonly #zone: string;
  /** Texts of remotes by their index. */
  readonly #addresses: string[] = [];

  static async open(options: DgramUnderlayOptions): Promise<DgramUnderlay> {
    const { local4, local6, port } = options;
    if (local4 === undefined && local6 === undefined) {
      throw new TypeError("an underlay needs local4, local6 or both");
    }
    if (!(options.largestDatagram > 0)) throw new RangeError("largestDatagram is not positive");
    // Node would bind the port modulo 65536.
    if (!Number.isInteger(port) || port < 1 || port > 65_535) {
      throw new RangeError(`${port} is not a UDP port`);
    }
    const socket4 = local4 === undefined ? undefined : await bind("udp4", local4, port);
    try {
      const socket6 = local6 === undefined ? undefined : await bind("udp6", local6, port);
      return new DgramUnderlay(options, socket4, socket6);
    } catch (error) {
      socket4?.close();
      throw error;
    }
  }

  private constructor(
    options: DgramUnderlayOptions,
    socket4: dgram.Socket | undefined,
    socket6: dgram.Socket | undefined,
  ) {
    this.#socket4 = socket4;
    this.#socket6 = socket6;
    this.#remotes = options.remotes;
    this.#largestDatagram = Math.min(options.largestDatagram, LARGEST_6);
    for (const socket of [socket4, socket6]) {
      socket?.on("message", (payload, sender) => this.#arrived(payload, sender.address));
      socket?.on("error", (error) => this.#failed(error));
    }
    this.#zone = /%.*$/.exec(options.local6 ?? "")?.[0] ?? "";
    const drops = kernelDrops(options);
    this.#drops = drops ?? (() => 0);
    this.capabilities = {
      sourcePortEntropy: false,
      dontFragment: false,
      zeroChecksum6: false,
      countsOverflows: drops !== undefined,
      carriesTos: false,
      cutsSuperFrames: false,
    };
  }

  // ---- underlay → batch

  #arrived(payload: Uint8Array, address: string): void {
    if (this.#waiting === INBOX_ROWS || this.#waitingBytes + payload.length > INBOX_BYTES) {
      this.#overflows++;
      return;
    }
    const row = (this.#oldest + this.#waiting) % INBOX_ROWS;
    this.#payloads[row] = payload;
    this.#senders[row] = this.#senderOf(address);
    this.#waiting++;
    this.#waitingBytes += payload.length;
    this.#wake();
  }

  #senderOf(address: string): Int32Array {
    const known = this.#sendersByText.get(address);
    if (known !== undefined) return known;
    if (this.#sendersByText.size === SENDERS) this.#sendersByText.clear();
    const words = addressWords(address);
    this.#sendersByText.set(address, words);
    return words;
  }

  /**
   * Immediates run after all that the loop has polled was read: the reader gets a burst rather than
   * a datagram a call. Set again as long as something waits, since `Watch` promises that.
   */
  #wake(): void {
    if (this.#wakeup !== undefined || this.#watch === undefined || this.#waiting === 0) return;
    this.#wakeup = setImmediate(() => {
      this.#wakeup = undefined;
      this.#watch?.onReadable();
      if (this.#state === "open") this.#wake();
    });
  }

  receive(batch: Batch): number {
    this.#assertOpen();
    let rows = 0;
    let offset = FIRST_OFFSET;
    while (this.#waiting > 0 && rows < IN_ROWS && offset + this.#largestDatagram <= SLAB_BYTES) {
      const payload = this.#payloads[this.#oldest]!;
      const fits = payload.length <= this.#largestDatagram;
      const length = fits ? payload.length : this.#largestDatagram;
      batch.slab.set(fits ? payload : payload.subarray(0, length), offset);
      batch.inOffset[rows] = offset;
      batch.inLength[rows] = length;
      batch.inSegment[rows] = length;
      batch.inFlags[rows] = fits ? 0 : TRUNCATED;
      batch.inTos[rows] = 0;
      batch.inAddress.set(this.#senders[this.#oldest]!, rows * ADDRESS_WORDS);

      this.#payloads[this.#oldest] = undefined;
      this.#oldest = (this.#oldest + 1) % INBOX_ROWS;
      this.#waiting--;
      this.#waitingBytes -= payload.length;
      offset = nextOffset(offset + length);
      rows++;
    }
    return rows;
  }

  overflows(): number {
    this.#assertOpen();
    return this.#state === "open" ? this.#overflows + this.#drops() : this.#overflows;
  }

  /** An unconnected UDP socket hears of no ICMP error unless it asks, which Node cannot. */
  refusals(): number {
    this.#assertOpen();
    return 0;
  }

  // ---- batch → underlay

  send(batch: Batch, count: number): number {
    this.#assertOpen();
    let failed = 0;
    let low = SLAB_BYTES;
    let high = 0;
    for (let row = 0; row < count; row++) {
      const errno = this.#prepare(batch, row);
      batch.outError[row] = errno;
      if (errno !== 0) {
        failed++;
        continue;
      }
      const offset = batch.outOffset[row]!;
      low = Math.min(low, offset);
      high = Math.max(high, offset + batch.outLength[row]!);
    }
    if (failed === count) return failed;

    const at = this.#outboxAt(high - low, count - failed);
    if (at < 0) {
      for (let row = 0; row < count; row++) batch.outError[row] ||= EAGAIN;
      return count;
    }
    this.#outbox.set(batch.slab.subarray(low, high), at);
    for (let row = 0; row < count; row++) {
      if (batch.outError[row] !== 0) continue;
      const remote = batch.outRemote[row]!;
      const socket = this.#socketTo(remote)!;
      const offset = batch.outOffset[row]! - low + at;
      const length = batch.outLength[row]!;
      const port = this.#remotes.port(remote);
      socket.send(this.#outbox, offset, length, port, this.#addressOf(remote), this.#sent);
    }
    return failed;
  }

  /** Completes the row's checksum; 0 when the row can be sent, else why it cannot. */
  #prepare(batch: Batch, row: number): number {
    const remote = batch.outRemote[row]!;
    const socket = this.#socketTo(remote);
    if (this.#state === "lost") return ENETDOWN;
    if (socket === undefined) return EAFNOSUPPORT;
    const offset = batch.outOffset[row]!;
    const length = batch.outLength[row]!;
    if (length > (socket === this.#socket4 ? LARGEST_4 : LARGEST_6)) return EMSGSIZE;
    if (offset < 0 || length < 0 || offset + length > SLAB_BYTES) return EINVAL;
    if (this.#remotes.port(remote) === 0) return EINVAL;
    return batch.completeChecksum(batch.outRow[row]!) ? 0 : EINVAL;
  }

  /** Where `bytes` can be put in the outbox; −1 when these or so many `rows` find no room. */
  #outboxAt(bytes: number, rows: number): number {
    const queued =
      (this.#socket4?.getSendQueueCount() ?? 0) + (this.#socket6?.getSendQueueCount() ?? 0);
    if (queued === 0) this.#outboxUsed = 0;
    if (queued + rows > OUTBOX_ROWS || this.#outboxUsed + bytes > OUTBOX_BYTES) return -1;
    const at = this.#outboxUsed;
    this.#outboxUsed += bytes;
    return at;
  }

  #socketTo(remote: number): dgram.Socket | undefined {
    const family = this.#remotes.words[remote * REMOTE_WORDS];
    return family === 4 ? this.#socket4 : family === 6 ? this.#socket6 : undefined;
  }

  #addressOf(remote: number): string {
    const known = this.#addresses[remote];
    if (known !== undefined) return known;
    let address = this.#remotes.address(remote);
    if (LINK_LOCAL.test(address)) address += this.#zone;
    this.#addresses[remote] = address;
    return address;
  }

  /** One function for all datagrams, so that sending one makes no closure. */
  readonly #sent = (error: NodeJS.ErrnoException | null): void => {
    // After close, what was still queued comes back as ECANCELED: the caller wanted that.
    if (error !== null && this.#state === "open") this.#watch?.onUnsent?.(-(error.errno ?? 0));
  };

  // ---- life

  watch(watch: Watch): void {
    this.#assertOpen();
    this.#watch = watch;
    this.#wake();
  }

  /**
   * An unconnected UDP socket hears of no ICMP error, and libuv deals with EAGAIN and EINTR: what
   * arrives here will not pass.
   */
  #failed(error: Error): void {
    if (this.#state !== "open") return;
    this.#shut("lost");
    const message = "the underlay's UDP socket failed: restart vtep";
    this.#watch?.onLost(new VtepError("LOST", message, error));
  }

  close(): void {
    if (this.#state === "open") this.#shut("closed");
    this.#state = "closed";
  }

  #shut(state: "lost" | "closed"): void {
    this.#overflows += this.#drops();
    this.#state = state;
    if (this.#wakeup !== undefined) clearImmediate(this.#wakeup);
    this.#wakeup = undefined;
    this.#waiting = 0;
    this.#waitingBytes = 0;
    this.#payloads.fill(undefined);
    this.#socket4?.close();
    this.#socket6?.close();
  }

  #assertOpen(): void {
    if (this.#state === "closed") {
      throw new VtepError("CLOSED", "the underlay was closed: open another one");
    }
  }
}

/** The next place in the slab for a datagram: so that its inner IP header is 8-byte aligned. */
function nextOffset(end: number): number {
  return ((end - FIRST_OFFSET + 7) & ~7) + FIRST_OFFSET;
}

async function bind(type: "udp4" | "udp6", address: string, port: number): Promise<dgram.Socket> {
  if (!(type === "udp4" ? isIPv4 : isIPv6)(address)) {
    const wanted = type === "udp4" ? "IPv4" : "IPv6";
    throw new VtepError("ADDRESS", `"${address}" is not an ${wanted} address: give one as --local`);
  }
  const family = type === "udp4" ? 4 : 6;
  const socket = dgram.createSocket({
    type,
    ipv6Only: type === "udp6",
    lookup: (hostname, _options, callback) => callback(null, hostname, family),
  });
  try {
    // With such a lookup, bind may succeed or fail before it returns: listen first.
    const listening = once(socket, "listening");
    socket.bind({ address, port, exclusive: true });
    await listening;
    socket.setRecvBufferSize(SOCKET_BUFFER_BYTES);
    socket.setSendBufferSize(SOCKET_BUFFER_BYTES);
    return socket;
  } catch (error) {
    socket.close();
    throw bindError(error, address, port);
  }
}

function bindError(error: unknown, address: string, port: number): unknown {
  switch ((error as NodeJS.ErrnoException).code) {
    case "EADDRINUSE":
      return new VtepError(
        "PORT_IN_USE",
        `UDP port ${port} of ${address} is held by another program or a kernel VXLAN device: stop it, or choose another with --port`,
        error,
      );
    case "EADDRNOTAVAIL":
    case "EINVAL": // an IPv6 link-local address that lacks its %interface
      return new VtepError(
        "ADDRESS",
        `${address} is not an address of this host: give one that "ip address" lists as --local`,
        error,
      );
    case "EAFNOSUPPORT":
      return new VtepError(
        "ADDRESS",
        `this host has no IPv${isIPv4(address) ? 4 : 6}: give an address of the other family as --local`,
        error,
      );
    case "EACCES":
      return new VtepError(
        "PERMISSION",
        `binding UDP port ${port} needs CAP_NET_BIND_SERVICE: run as root, or choose a port above 1023 with --port`,
        error,
      );
    case "EPERM": // no port asks for that
      return new VtepError(
        "SYSTEM",
        `UDP port ${port} of ${address} is forbidden: allow UDP sockets where a sandbox keeps them away (seccomp, a security module)`,
        error,
      );
    default:
      // Node's own TypeError is about the caller's arguments.
      if ((error as NodeJS.ErrnoException).syscall === undefined) return error;
      return new VtepError(
        "SYSTEM",
        `the kernel refused UDP port ${port} of ${address}: ${(error as Error).message}`,
        error,
      );
  }
}

/**
 * How to read the datagrams that the kernel dropped on these sockets; undefined where /proc does
 * not tell. Reading takes about 0.1 ms: enough for a figure that is shown, too much for a frame.
 */
function kernelDrops(options: DgramUnderlayOptions): (() => number) | undefined {
  const { local4, local6, port } = options;
  const hex = (number: number, digits: number) =>
    (number >>> 0).toString(16).toUpperCase().padStart(digits, "0");
  const tables: [table: string, socket: string][] = [];
  if (local4 !== undefined) {
    const word = addressWords(local4)[3]!;
    tables.push(["/proc/thread-self/net/udp", `: ${hex(word, 8)}:${hex(port, 4)} `]);
  }
  if (local6 !== undefined) {
    const words = [...addressWords(local6)].map((word) => hex(word, 8)).join("");
    tables.push(["/proc/thread-self/net/udp6", `: ${words}:${hex(port, 4)} `]);
  }
  const read = ([table, socket]: [string, string]): number => {
    try {
      const line = readFileSync(table, "latin1")
        .split("\n")
        .find((line) => line.includes(socket));
      return Number(line?.trim().split(/\s+/).at(-1)); // the last column is "drops"
    } catch {
      return Number.NaN;
    }
  };
  const sum = () => tables.reduce((total, table) => total + read(table), 0);
  return Number.isNaN(sum()) ? undefined : () => sum() || 0;
}
