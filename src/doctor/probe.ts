/**
 * What only sending tells: whether a peer answers, what the path to it carries, whether anything
 * listens on its VXLAN port.
 *
 * **Paths** are measured with ICMP echo requests that routers must not fragment (DF), each as long as
 * the datagrams of VXLAN would be. A router that cannot pass one on says what it can, and that is tried
 * next. Where nothing is said, eight lengths at once narrow the answer down; four rounds do for 1,500
 * bytes, six for the longest. A path's way back is not measured: Linux answers in fragments where it is narrower.
 *
 * This needs raw sockets, which Node does not have: the package `raw-socket`, an optional dependency,
 * and CAP_NET_RAW. IP_PMTUDISC_PROBE keeps the kernel from using what it has learned of a path before.
 * The package knows only Node's main event loop, so it is of no use in a worker thread.
 */

import { randomInt } from "node:crypto";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { setTimeout as pause } from "node:timers/promises";
import ipaddr from "ipaddr.js";
import { addressFamily } from "../remotes.ts";
import { checksum } from "../wire/checksum.ts";
import type { PathFacts, PortFacts, Seen } from "./facts.ts";

export interface Target {
  readonly address: string;
  /** Where the datagrams come from; the kernel chooses when it is not given. */
  readonly source: string | undefined;
}

/** Peers that are asked at the same time. */
const AT_ONCE = 32;

async function each<Of extends Target, Found>(
  targets: readonly Of[],
  ask: (target: Of) => Promise<Found>,
): Promise<Map<string, Found>> {
  const found = new Map<string, Found>();
  const left = [...targets];
  const askers = Array.from({ length: Math.min(AT_ONCE, left.length) }, async () => {
    for (let target = left.shift(); target !== undefined; target = left.shift()) {
      found.set(target.address, await ask(target));
    }
  });
  await Promise.all(askers);
  return found;
}

// ---- The port

const REFUSAL_MS = 300;

/**
 * Sends each two empty datagrams, which every VTEP drops: a host where nothing listens says so. One that
 * answers nothing may be right or wrong.
 */
export function askPorts(
  targets: readonly Target[],
  port: number,
): Promise<ReadonlyMap<string, PortFacts>> {
  return each(targets, ({ address, source }) => askPort(address, port, source));
}

async function askPort(
  address: string,
  port: number,
  source: string | undefined,
): Promise<PortFacts> {
  const socket = createSocket(address.includes(":") ? "udp6" : "udp4");
  try {
    const failed = once(socket, "error") as Promise<[NodeJS.ErrnoException]>;
    const refusal = failed.then(
      ([error]) => answerOf(error.code),
      () => "silent" as const,
    );
    socket.bind(0, source);
    socket.connect(port, address);
    const tries = async () => {
      await once(socket, "connect");
      for (let left = 2; left > 0; left--) {
        socket.send(new Uint8Array(0));
        await pause(REFUSAL_MS);
      }
      return "silent" as const;
    };
    return await Promise.race([refusal, tries().catch(() => refusal)]);
  } finally {
    socket.close();
  }
}

function answerOf(code: string | undefined): PortFacts {
  if (code === "ECONNREFUSED") return "refused";
  return code === "EPERM" || code === "EACCES" ? "blocked" : "silent";
}

// ---- The path

export interface PathTarget extends Target {
  /** The longest packet that its route lets out. */
  readonly upper: number;
}

/** Measures every path in at most about `limitMs`; what is not known by then says so. */
export async function measurePaths(
  targets: readonly PathTarget[],
  limitMs: number,
): Promise<Seen<ReadonlyMap<string, PathFacts>>> {
  const raw = await rawSockets();
  if ("unseen" in raw) return raw;
  const echoes = new Map<4 | 6, Echo>();
  try {
    for (const family of new Set(targets.map(({ address }) => addressFamily(address)))) {
      echoes.set(family, new Echo(raw, family));
    }
    const deadline = performance.now() + limitMs;
    return await each(targets, (target) => {
      return measure(echoes.get(addressFamily(target.address))!, target, deadline);
    });
  } catch (error) {
    if (!/not permitted|denied/.test((error as Error).message)) throw error;
    return {
      unseen: "raw sockets need CAP_NET_RAW",
      remedy: "run vtep doctor as root or with that capability",
    };
  } finally {
    for (const echo of echoes.values()) echo.close();
  }
}

/** The part of `raw-socket` that is used; it brings no types. */
interface RawSockets {
  createSocket(options: { protocol: number; addressFamily: number; bufferSize: number }): RawSocket;
}

interface RawSocket {
  on(event: "message", listener: (packet: Buffer, source: string) => void): void;
  on(event: "error", listener: (error: Error) => void): void;
  setOption(level: number, option: number, value: number): void;
  setOption(level: number, option: number, value: Buffer, length: number): void;
  send(
    packet: Buffer,
    offset: number,
    length: number,
    address: string,
    done: (error: Error | null) => void,
  ): void;
  close(): void;
}

async function rawSockets(): Promise<Seen<RawSockets>> {
  try {
    // @ts-expect-error: it has no types, and may not be there
    const { default: found } = (await import("raw-socket")) as { default: RawSockets };
    return found;
  } catch (error) {
    // And not what that package does not find: import() and require() have codes of their own for both.
    const missing = /Cannot find (module|package) 'raw-socket'/.test((error as Error).message);
    return {
      unseen: missing
        ? "the optional package raw-socket is not installed"
        : "the addon of the optional package raw-socket was not built, or does not load",
      remedy: `install python3, make and g++, then run where vtep is installed: npm ${missing ? "install" : "rebuild"} raw-socket`,
    };
  }
}

type Answer =
  | { readonly kind: "reply"; readonly ms: number }
  /** `mtu` is 0 where that was not said. */
  | { readonly kind: "too big"; readonly mtu: number; readonly by: string | undefined }
  | { readonly kind: "unreachable"; readonly why: string }
  | { readonly kind: "silence" };

/** Of the first packets, which tell whether anybody answers. */
const SMALL = 84;
const LARGEST = 65_535;
const FIRST_MS = 400;
const FIRST_TRIES = 3;
const LENGTHS_AT_ONCE = 8;
const QUIET_MS = 1_100;

async function measure(
  echo: Echo,
  { address, source, upper }: PathTarget,
  deadline: number,
): Promise<PathFacts> {
  const ask = async (bytes: number, ms: number, tries: number): Promise<Answer> => {
    let answer: Answer = { kind: "silence" };
    for (let left = tries; left > 0 && answer.kind === "silence"; left--) {
      answer = await echo.request(address, source, bytes, ms);
    }
    return answer;
  };
  const first = await ask(SMALL, FIRST_MS, FIRST_TRIES);
  if (first.kind === "unreachable") return { answers: false, why: first.why };
  if (first.kind !== "reply") return { answers: false, why: undefined };
  const ms = Math.min(1000, 100 + 4 * first.ms);
  let low = SMALL;
  let high = Math.min(upper, LARGEST);
  let narrowedBy: string | undefined;
  for (;;) {
    const answer = await ask(high, ms, 2);
    if (answer.kind === "reply") return { answers: true, mtu: high, narrowedBy, silently: false };
    if (answer.kind === "too big") narrowedBy = answer.by ?? narrowedBy;
    if (answer.kind !== "too big" || answer.mtu <= low || answer.mtu >= high) break;
    high = answer.mtu;
  }
  // From here on `low` crosses and `high` does not.
  while (high - low > 1) {
    if (performance.now() > deadline) return { answers: true, mtu: undefined, atLeast: low };
    const lengths = between(low, high);
    const answers = await Promise.all(lengths.map((bytes) => ask(bytes, ms, 2)));
    for (const answer of answers) if (answer.kind === "too big") narrowedBy ??= answer.by;
    const crossed = lengths.filter((_, at) => answers[at]!.kind === "reply");
    low = Math.max(low, ...crossed);
    high = Math.min(high, ...lengths.filter((bytes) => bytes > low));
  }
  if (narrowedBy === undefined) {
    // Routers say so at most once a second to each (icmp_ratelimit of Linux), and may just have.
    await pause(QUIET_MS);
    const answer = await ask(low + 1, ms, 1);
    if (answer.kind === "too big") narrowedBy = answer.by ?? "this host";
  }
  return { answers: true, mtu: low, narrowedBy, silently: narrowedBy === undefined };
}

/** Lengths strictly between the two, evenly spread. */
function between(low: number, high: number): number[] {
  const count = Math.min(LENGTHS_AT_ONCE, high - low - 1);
  return Array.from({ length: count }, (_, at) => {
    return low + Math.max(at + 1, Math.floor(((high - low) * (at + 1)) / (count + 1)));
  });
}

const IPPROTO_ICMP = 1;
const IPPROTO_IP = 0;
const IPPROTO_IPV6 = 41;
const IPPROTO_ICMPV6 = 58;
const IP_HDRINCL = 3;
const IP_MTU_DISCOVER = 10;
const IPV6_MTU_DISCOVER = 23;
const IPV6_PKTINFO = 50;
const IPV6_DONTFRAG = 62;
const PMTUDISC_PROBE = 3;
const DONT_FRAGMENT = 0x4000;
const TTL = 64;

/** Sends echo requests of one family, and tells answers apart. */
class Echo {
  readonly #family: 4 | 6;
  readonly #socket: RawSocket;
  readonly #id = randomInt(2 ** 16);
  readonly #waiting = new Map<number, (answer: Answer) => void>();
  #sequence = 0;

  /** Throws what the system says. */
  constructor(raw: RawSockets, family: 4 | 6) {
    this.#family = family;
    this.#socket = raw.createSocket({
      protocol: family === 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6,
      addressFamily: family === 4 ? 1 : 2,
      bufferSize: LARGEST,
    });
    if (family === 4) {
      // With a header of our own, which says where it comes from: the socket cannot be bound.
      this.#socket.setOption(IPPROTO_IP, IP_HDRINCL, 1);
      this.#socket.setOption(IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE);
    } else {
      this.#socket.setOption(IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE);
      this.#socket.setOption(IPPROTO_IPV6, IPV6_DONTFRAG, 1);
    }
    this.#socket.on("message", (packet, source) => this.#hear(packet, source));
    this.#socket.on("error", () => undefined); // of a datagram that came; nobody waits for its text
  }

  close(): void {
    this.#socket.close();
  }

  /** Sends a request in an IP packet of so many bytes, and waits so long for an answer. */
  request(to: string, from: string | undefined, bytes: number, ms: number): Promise<Answer> {
    const sequence = this.#sequence++ & 0xffff;
    return new Promise((resolve) => {
      const settle = (answer: Answer) => {
        clearTimeout(timer);
        this.#waiting.delete(sequence);
        resolve(answer.kind === "reply" ? { ...answer, ms: performance.now() - sent } : answer);
      };
      const timer = setTimeout(() => settle({ kind: "silence" }), ms);
      const sent = performance.now();
      this.#waiting.set(sequence, settle);
      const packet =
        this.#family === 4 ? this.#packet4(to, from, bytes) : this.#packet6(from, bytes);
      const icmp = this.#family === 4 ? packet.subarray(20) : packet;
      icmp.writeUInt8(this.#family === 4 ? 8 : 128, 0);
      icmp.writeUInt16BE(this.#id, 4);
      icmp.writeUInt16BE(sequence, 6);
      // The kernel writes ICMPv6's, whose pseudo-header it alone knows.
      if (this.#family === 4) icmp.writeUInt16BE(checksum(viewOf(icmp), 0, icmp.length, 0), 2);
      this.#socket.send(packet, 0, packet.length, to, (error) => {
        if (error === null) return;
        const tooBig = /too long/.test(error.message);
        settle(
          tooBig
            ? { kind: "too big", mtu: 0, by: undefined }
            : { kind: "unreachable", why: `this host refuses to send: ${error.message}` },
        );
      });
    });
  }

  /** The kernel fills in length, identification and checksum, and the source where it is zero. */
  #packet4(to: string, from: string | undefined, bytes: number): Buffer {
    const packet = Buffer.alloc(bytes);
    packet.writeUInt8(0x45, 0);
    packet.writeUInt16BE(DONT_FRAGMENT, 6);
    packet.writeUInt8(TTL, 8);
    packet.writeUInt8(IPPROTO_ICMP, 9);
    if (from !== undefined) packet.set(ipaddr.parse(from).toByteArray(), 12);
    packet.set(ipaddr.parse(to).toByteArray(), 16);
    return packet;
  }

  #packet6(from: string | undefined, bytes: number): Buffer {
    if (from !== undefined) {
      const info = Buffer.alloc(20); // struct in6_pktinfo: address, interface
      info.set(ipaddr.parse(from).toByteArray());
      this.#socket.setOption(IPPROTO_IPV6, IPV6_PKTINFO, info, info.length);
    }
    return Buffer.alloc(bytes - 40);
  }

  /** Of IPv4, a raw socket gets the IP header too. */
  #hear(packet: Buffer, source: string): void {
    const icmp = this.#family === 4 ? packet.subarray((packet[0]! & 0xf) * 4) : packet;
    if (icmp.length < 8) return;
    const type = icmp.readUInt8(0);
    if (type === (this.#family === 4 ? 0 : 129))
      return this.#settle(icmp, { kind: "reply", ms: 0 });
    const answer = this.#family === 4 ? error4(icmp, source) : error6(icmp, source);
    const quoted = icmp.subarray(8);
    const header = this.#family === 4 ? ((quoted[0] ?? 0) & 0xf) * 4 : 40;
    const request = quoted.subarray(header);
    const asked = request[0] === (this.#family === 4 ? 8 : 128);
    if (answer !== undefined && asked) this.#settle(request, answer);
  }

  #settle(echo: Buffer, answer: Answer): void {
    if (echo.length < 8 || echo.readUInt16BE(4) !== this.#id) return;
    this.#waiting.get(echo.readUInt16BE(6))?.(answer);
  }
}

function viewOf(bytes: Buffer): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

const UNREACHABLE4: Readonly<Record<number, string>> = {
  0: "network unreachable",
  1: "host unreachable",
  9: "prohibited",
  10: "prohibited",
  13: "prohibited",
};
const UNREACHABLE6: Readonly<Record<number, string>> = {
  0: "no route",
  1: "prohibited",
  3: "address unreachable",
};

function error4(icmp: Buffer, by: string): Answer | undefined {
  const [type, code] = [icmp.readUInt8(0), icmp.readUInt8(1)];
  if (type === 3 && code === 4) return { kind: "too big", mtu: icmp.readUInt16BE(6), by };
  if (type === 3) return unreachable(UNREACHABLE4[code] ?? `unreachable (code ${code})`, by);
  return type === 11 ? unreachable("time exceeded, as in a loop of routes", by) : undefined;
}

function error6(icmp: Buffer, by: string): Answer | undefined {
  const [type, code] = [icmp.readUInt8(0), icmp.readUInt8(1)];
  if (type === 2) return { kind: "too big", mtu: icmp.readUInt32BE(4), by };
  if (type === 1) return unreachable(UNREACHABLE6[code] ?? `unreachable (code ${code})`, by);
  return type === 3 ? unreachable("time exceeded, as in a loop of routes", by) : undefined;
}

function unreachable(what: string, by: string): Answer {
  return { kind: "unreachable", why: `${by} says: ${what}` };
}
