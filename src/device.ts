/**
 * The two sides of a VTEP, as the dataplane sees them. Several implementations of each live in
 * `device/`; one conformance suite runs on all of them. What one cannot do is a declared
 * capability, never a special case in the dataplane.
 *
 * A device of either side may ask of a lone row what is decided on it (ASKS), and do the same for others like it, before
 * it hands them over, if that is offered (`Batch.repeat`). Those are REPEATED, and inTarget says where they went; written
 * there they count as written, and nothing else is done. What was REPEATED may be handed over, and its owner be told that
 * something can be read, some milliseconds later, when nothing can be any more.
 *
 * None of these interfaces ever waits, and nothing here throws once it is open: what could not be written
 * is counted by the caller from `outError`, and the loss of a device is told once, to `onLost`.
 */
import type { Batch } from "./batch.ts";
import type { VtepError } from "./errors.ts";

/** What an underlay tells its owner. */
export interface Watch {
  /** Something can be read. Called again, from the event loop, as long as that is so. */
  onReadable(): void;
  /** The device is gone for good. Called at most once. */
  onLost(error: VtepError): void;
  /**
   * An underlay that learns only later what became of a datagram: it was not sent, because of this
   * errno. `outError` had said 0.
   */
  onUnsent?(errno: number): void;
}

/** The queues of one TAP device that one thread has: the VTEP's port into the host's Layer 2, used by way of `Taps`. */
export interface Tap {
  readonly name: string;
  /** Removes the interface, unless it is persistent, and leaves its `Taps`. A second call does nothing. */
  close(): void;
}

/** The TAPs of a thread as one, so that it costs no more to wait for a thousand than for one. */
export interface Taps<T extends Tap = Tap> {
  /**
   * A TAP joins, by the index of its network. `onLost` is called at most once: when the device is gone for good
   * (its interface was deleted, say), after which the TAP has left.
   */
  add(index: number, tap: T, onLost: (error: VtepError) => void): void;
  /** It leaves: nothing is read from it or written to it, and nothing told of it, any more. */
  remove(index: number): void;
  /**
   * Reads frames to the batch's in rows (inTap, inOffset, inLength, inFlags, inVnet), each behind HEADROOM, until
   * nothing waits, or IN_ROWS or TURN_BYTES are used up; or sooner where super-frames make many datagrams, or of a
   * TAP that is limited. The frames of one flow are in their order, and no queue waits for ever behind others.
   * Returns the number of rows; 0 when nothing waits, of a device that lets frames gather after a moment. The batch
   * belongs to the caller.
   */
  read(batch: Batch): number;
  /** From now on no more than so many frames of this TAP are read at once, 1 to IN_ROWS (as from the beginning). */
  limit(index: number, frames: number): void;
  /**
   * Writes the frames of out rows 0 to `count` − 1 (outTap, outOffset, outLength) in that order, and sets
   * outError of each. Returns how many failed. The slab may be reused when it returns.
   */
  write(batch: Batch, count: number): number;
  /** `onReadable` is called, from the event loop, as long as something can be read. */
  watch(onReadable: () => void): void;
  /** TAPs leave, and stay open. A second call does nothing. */
  close(): void;
}

/**
 * Work on whole trains instead of single frames, by name. Each may be switched off, each is tried where
 * it is wanted, and one that the kernel refuses is done without.
 *
 *     csum           the host leaves checksums to us
 *     tso, uso       the host hands over super-frames of TCP, of UDP, which we cut
 *     gso            trains of datagrams leave as one message, which the kernel cuts (UDP_SEGMENT)
 *     gro            trains of datagrams arrive as one (UDP_GRO)
 *     coalesce-tcp   segments of a TCP flow are handed to the host as one super-frame
 *     coalesce-udp   datagrams of a UDP flow likewise
 */
export const OFFLOADS = [
  "csum",
  "tso",
  "uso",
  "gso",
  "gro",
  "coalesce-tcp",
  "coalesce-udp",
] as const;

/** Which of them are wanted, or in use. */
export type Offloads = Readonly<Record<(typeof OFFLOADS)[number], boolean>>;

export const ALL_OFFLOADS = Object.fromEntries(OFFLOADS.map((name) => [name, true])) as Offloads;

/** What an underlay can do beyond carrying datagrams; shown to the user, never tested for. */
export interface Capabilities {
  /** The outer source port follows the inner flow (RFC 7348, section 5). */
  readonly sourcePortEntropy: boolean;
  /** The outer header forbids fragmentation: a VTEP must not fragment (RFC 7348, section 4.3). */
  readonly dontFragment: boolean;
  /** An outer UDP checksum of zero is accepted over IPv6 too (RFC 6935). */
  readonly zeroChecksum6: boolean;
  /** What the socket's buffer had no room for is counted by `overflows`. */
  readonly countsOverflows: boolean;
  /** TOS and traffic class are sent as asked, and told of what arrives: DSCP and ECN cross. */
  readonly carriesTos: boolean;
  /** Super-frames are cut into segments, a datagram each; without it, a TAP must not read any. */
  readonly cutsSuperFrames: boolean;
}

/** The VTEP's port into the underlay: UDP over IPv4, IPv6 or both. */
export interface Underlay {
  readonly capabilities: Capabilities;
  /**
   * Receives datagrams to the batch's in rows (inOffset, inLength, inSegment, inFlags, inTos, inAddress).
   * Returns the number of rows; 0 when nothing waits. A device that lets datagrams gather takes a moment
   * before it looks. The batch belongs to the caller.
   */
  receive(batch: Batch): number;
  /**
   * Sends out rows 0 to `count` − 1 (outOffset, outLength, outRow, outRemote, outHash, outTos), completing
   * first the checksum of a frame whose virtio_net_hdr (of in row outRow) says that it is partial,
   * cutting it where that says that it is a super-frame, and sets outError of each. Order is kept
   * within one hash. Returns how many failed: a full socket (EAGAIN) and a full interface (ENOBUFS)
   * drop, nothing waits. The slab may be reused when it returns.
   *
   * Where fragmentation is forbidden, a datagram that the path does not carry is EMSGSIZE, and what
   * the path does carry is in the remote's row by then (`Remotes.learnPathMtu`). If that makes it narrow, what fits into
   * `Remotes.longestFrame` is sent all the same.
   */
  send(batch: Batch, count: number): number;
  /**
   * Datagrams that arrived and found the socket's buffer full, since it was opened here, modulo 2^32; a train of them
   * that the kernel had coalesced counts as one.
   */
  overflows(): number;
  /**
   * ICMP errors that came back about datagrams that had been sent, since it was opened, modulo 2^32: nobody listens
   * at a remote, or no way leads there. Always 0 where the kernel does not tell.
   */
  refusals(): number;
  watch(watch: Watch): void;
  /** A second call does nothing. */
  close(): void;
}
