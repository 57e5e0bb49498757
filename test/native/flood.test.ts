/** One frame to hundreds of remotes, half of it sent by a second thread: each remote gets it once, whatever fails. */
import { expect, it, vi } from "vitest";
import { preload } from "../lab/preload.ts";
import { moduleChild } from "./fixture.ts";

vi.setConfig({ testTimeout: 30_000 }); // child processes take their time on a busy host

const EMSGSIZE = 90;
const EHOSTUNREACH = 113;

/** What leaves by a TAP: [number of the frame, number of the remote] in their order. */
type Arrived = [frame: number, remote: number][];

interface Flooded {
  arrived: Arrived;
  /** By row. */
  errors: Record<number, number>;
  /** The cores that each thread may use which was not there before. */
  threads: string[];
  /** Learned, of those that have one. */
  paths: { address: string; mtu: number }[];
}

/** In a child: `flood` sends frames to so many remotes each, in one call. */
const FLOODING = `import { execFileSync } from "node:child_process";
  import { readdirSync, readFileSync } from "node:fs";
  import { Batch, HEADROOM } from "./src/batch.ts";
  import { NativeTap, NativeTaps } from "./src/device/tap.ts";
  import { addon, numberOf } from "./src/device/native.ts";
  import { Remotes } from "./src/remotes.ts";
  import { setRow, udpOptions } from "./test/native/fixture.ts";
  const tap = new NativeTap({ name: "vtep7" });
  const taps = new NativeTaps();
  taps.add(1, tap, () => {});
  for (const line of ["link set vtep7 addrgenmode none", "link set vtep7 txqueuelen 2000 arp off up",
    "address add 192.0.2.1/24 dev vtep7", "route add 198.18.0.0/15 dev vtep7"]) execFileSync("ip", line.split(" "));
  const remotes = new Remotes();
  const known = Array.from({ length: 900 }, (_, at) => remotes.add("198.18." + (at >> 8) + "." + (at & 255), 4789));
  const udp = new (addon().Udp)(udpOptions(4789, { address: "192.0.2.1", sendBuffer: 8 << 20, remotes: remotes.words }));
  const [batch, out] = [new Batch(), new Batch()];
  const atFirst = readdirSync("/proc/self/task");
  const threads = () => readdirSync("/proc/self/task").filter((thread) => !atFirst.includes(thread)).map((thread) =>
    /^Cpus_allowed_list:\\s*(.*)$/m.exec(readFileSync("/proc/self/task/" + thread + "/status", "latin1"))[1]);
  const rest = (ms) => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
  let length = 100;
  const flood = (...counts) => {
    let rows = 0;
    for (const [frame, count] of counts.entries()) {
      const offset = HEADROOM + 2048 * frame;
      batch.slab.fill(frame, offset, offset + length);
      for (const remote of known.slice(0, count)) setRow(batch, rows++, { offset, length, remote, inRow: frame });
    }
    udp.send(numberOf(batch), rows);
    const arrived = [];
    for (let count; (count = taps.read(out)) > 0; ) {
      for (let row = 0; row < count; row++) {
        const packet = out.slab.subarray(out.inOffset[row] + 14);
        arrived.push([packet[20 + 8], 256 * packet[18] + packet[19]]);
      }
    }
    const errors = Object.fromEntries([...batch.outError.subarray(0, rows).entries()].filter(([, error]) => error !== 0));
    console.log(JSON.stringify({ arrived, errors, threads: threads(), paths: remotes.paths() }));
  };`;

/**
 * Played around `sendmmsg`, with other functions beside it. How much each call is to send is told on a line, of the
 * second thread's below zero.
 */
const shim = (body: string, beside: string) => `#include <atomic>
  #include <cstdio>
  #include <cstdlib>
  #include <ctime>
  #include <netinet/in.h>
  #include <pthread.h>
  #include <sys/socket.h>
  #include <unistd.h>
  static std::atomic<bool> helped{false};
  static void wait_ms(int ms) {
    timespec time = {0, ms * 1000000L};
    nanosleep(&time, nullptr);
  }
  ${beside}
  extern "C" int sendmmsg(int fd, mmsghdr *messages, unsigned count, int flags) {
    bool second = gettid() != getpid();
    dprintf(2, "%d\\n", second ? -static_cast<int>(count) : static_cast<int>(count));
    ${body}
    return next(sendmmsg, "sendmmsg")(fd, messages, count, flags);
  }`;

/** The first thread goes on with a frame to many only when the second one has begun with it. */
const TOGETHER = `if (second) helped = true;
    else if (count == 2) helped = false;
    for (int ms = 0; !second && count == 32 && !helped; ms++) {
      if (ms == 10000) abort();
      wait_ms(1);
    }`;

function child(code: string, body = "", prefix: string[] = [], beside = "") {
  using shimmed = preload(shim(body, beside));
  const { output } = moduleChild(`${FLOODING}\n${code}`, [
    ...["unshare", "--net", ...prefix],
    ...shimmed.way,
  ]);
  const told = output.split("\n").filter((line) => line !== "");
  const lines = told.map((line) => JSON.parse(line) as number | Flooded);
  return {
    calls: lines.filter((line) => typeof line === "number"),
    floods: lines.filter((line) => typeof line === "object"),
  };
}

/** As they were handed over. */
function all(...counts: number[]): Arrived {
  return counts.flatMap((count, frame) =>
    Array.from({ length: count }, (_, remote): [number, number] => [frame, remote]),
  );
}

const inOrder = (arrived: Arrived) =>
  arrived.toSorted(([frame, remote], [other, another]) => frame - other || remote - another);

it("reaches each remote once, between what is before it and what is after it", () => {
  const { calls, floods } = child("flood(255, 300, 2, 300, 2);", TOGETHER);
  // The second time the other thread may have been late the first time.
  expect(calls.filter((count) => count > 32 || count === 2).slice(0, 2)).toEqual([255, 2]);
  const [{ arrived, errors }] = floods as [Flooded];
  expect(errors).toEqual({});
  expect(inOrder(arrived)).toEqual(all(255, 300, 2, 300, 2));
  const frames = arrived.map(([frame]) => frame);
  expect(frames).toEqual(frames.toSorted());
});

it("is sent from where it lies, whoever sends it to whomever", () => {
  const { calls, floods } = child(
    "flood(900);",
    `${TOGETHER}
    static std::atomic<const void *> frame{nullptr};
    const void *first = nullptr;
    frame.compare_exchange_strong(first, messages->msg_hdr.msg_iov->iov_base);
    for (unsigned at = 0; at < count; at++) {
      const msghdr *header = &messages[at].msg_hdr;
      if (header->msg_iovlen != 1 || header->msg_iov->iov_base != frame) abort();
    }`,
  );
  expect(calls.some((count) => count < 0)).toBe(true);
  expect(inOrder(floods[0]!.arrived)).toEqual(all(900));
});

it("fails for those alone that it does not reach", () => {
  const { floods } = child(
    "flood(900);",
    `${TOGETHER}
    for (unsigned at = 0; at < count; at++) {
      if ((ntohl(static_cast<sockaddr_in *>(messages[at].msg_hdr.msg_name)->sin_addr.s_addr) & 63) != 40) continue;
      if (at == 0) return errno = EHOSTUNREACH, -1;
      count = at;
    }`,
  );
  const isMissed = ([, remote]: [number, number]) => (remote & 63) === 40;
  const [{ arrived, errors }] = floods as [Flooded];
  expect(inOrder(arrived)).toEqual(all(900).filter((one) => !isMissed(one)));
  const missed = all(900).filter(isMissed);
  expect(errors).toEqual(Object.fromEntries(missed.map(([, at]) => [at, EHOSTUNREACH])));
});

it("of one that says what ICMP had told of another fails for nobody", () => {
  const { floods } = child(
    "flood(900);",
    `${TOGETHER}
    static std::atomic<unsigned> calls{0};
    if (calls++ % 2 == 0) return errno = ECONNREFUSED, -1;`,
  );
  const [{ arrived, errors }] = floods as [Flooded];
  expect(inOrder(arrived)).toEqual(all(900));
  expect(errors).toEqual({});
});

it("learns what a path carries of its own remote, also when ICMP tells of another one meanwhile", () => {
  const { floods } = child(
    `for (let at = 72; at < 900; at += 64) {
      const to = "198.18." + (at >> 8) + "." + (at & 255);
      execFileSync("ip", ["route", "add", to, "dev", "vtep7", "mtu", "1400"]);
    }
    length = 1420;
    flood(900);`,
    `${TOGETHER}
    static std::atomic<int> told{2};
    if ((ntohl(static_cast<sockaddr_in *>(messages->msg_hdr.msg_name)->sin_addr.s_addr) & 0xffff) == 32 && told-- > 0) {
      return errno = EMSGSIZE, -1;
    }`,
  );
  const isShort = ([, remote]: [number, number]) => remote > 64 && (remote & 63) === 8;
  const [{ arrived, errors, paths }] = floods as [Flooded];
  const short = all(900).filter(isShort);
  expect(errors).toEqual(Object.fromEntries(short.map(([, at]) => [at, EMSGSIZE])));
  const address = (at: number) => `198.18.${at >> 8}.${at & 255}`;
  expect(paths).toEqual(short.map(([, at]) => ({ address: address(at), mtu: 1400 })));
  expect(inOrder(arrived)).toEqual(all(900).filter((one) => !isShort(one)));
});

it("is left to the first thread for a while when the second one was late, and longer each time", () => {
  const { calls, floods } = child(
    `const often = () => { for (let at = 0; at < 30; at++) flood(2, 900); };
    often();
    rest(1100);
    often();`,
    `${TOGETHER} if (second) wait_ms(20);`,
  );
  expect(floods.map(({ arrived }) => inOrder(arrived))).toEqual(new Array(60).fill(all(2, 900)));
  // After the first time 10 ms, then 80, then 640, then a second.
  const late = calls.filter((count) => count < 0).length;
  expect(late).toBeGreaterThanOrEqual(2);
  expect(late).toBeLessThanOrEqual(6);
});

it("is left to it no less for floods of which the second one heard nothing", () => {
  const { calls } = child(
    `for (let round = 0; round < 10; round++) {
      flood(2, 900);
      rest(15);
      for (let at = 0; at < 4; at++) flood(3, 900);
    }`,
    `if (count == 3) unheard = true;
    if (unheard) {
      if (count == 4 || count == 900) unheard = false; // the last of 900 by 32, or all of them
      return count;
    }
    ${TOGETHER} if (second) wait_ms(20);`,
    [],
    `static std::atomic<bool> unheard{false};
    extern "C" int pthread_cond_signal(pthread_cond_t *condition) {
      if (unheard && gettid() == getpid()) return 0;
      return next(pthread_cond_signal, "pthread_cond_signal")(condition);
    }`,
  );
  const late = calls.filter((count) => count < 0).length;
  expect(late).toBeGreaterThanOrEqual(2);
  expect(late).toBeLessThanOrEqual(6);
});

it("is the first thread's own where there is but one core", () => {
  const { calls, floods } = child("flood(900);", "", ["taskset", "--cpu-list", "0"]);
  expect(calls).toEqual([900]);
  expect(floods[0]!.arrived).toEqual(all(900));
});

it("has a second thread from 256 remotes on, on another core, until its sockets are closed", () => {
  const { floods } = child(
    `flood(255); flood(256); flood(256);
    udp.close();
    while (threads().length > 0) rest(1);
    console.log(JSON.stringify({ threads: threads() }));`,
    "",
    ["taskset", "--cpu-list", "0,1"],
  );
  const another = [expect.stringMatching(/^[01]$/)];
  expect(floods.map(({ threads }) => threads)).toEqual([[], another, another, []]);
});

it("keeps the second thread off the core that the first one is on by now", () => {
  const { floods } = child(
    // Rests long enough for one that was late, and then for one that was so twice.
    `flood(900);
    for (let at = 0; at < 2; at++) {
      rest(150);
      flood(2);
      flood(900);
    }`,
    "if (count == 2) core = 1 - core;",
    ["taskset", "--cpu-list", "0,1"],
    `static std::atomic<int> core{0};
    extern "C" int sched_getcpu() { return core; }`,
  );
  const flooded = floods.filter(({ arrived }) => arrived.length === 900);
  expect(flooded.map(({ threads }) => threads)).toEqual([["1"], ["0"], ["1"]]);
});

it("is the first thread's own while no other can be had", () => {
  const { calls, floods } = child(
    "flood(2); flood(900); flood(900);",
    "begun = true;",
    [],
    `static std::atomic<bool> begun{false};
    extern "C" int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *data) {
      static bool refused = false;
      if (begun && !refused) return refused = true, EAGAIN;
      return next(pthread_create, "pthread_create")(thread, attributes, run, data);
    }`,
  );
  expect(calls.slice(0, 2)).toEqual([2, 900]);
  expect(floods.map(({ threads }) => threads.length)).toEqual([0, 0, 1]);
  expect(floods.map(({ arrived }) => inOrder(arrived))).toEqual([all(2), all(900), all(900)]);
});
