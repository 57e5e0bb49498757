/**
 * What a service manager and its service say to each other: systemd, or whoever else speaks its
 * protocols, which are datagrams and environment variables and need no library.
 *
 * | who tells whom          | how                                  | described in                      |
 * | ----------------------- | ------------------------------------ | --------------------------------- |
 * | what state we are in    | a datagram to `NOTIFY_SOCKET`        | sd_notify(3)                      |
 * | that we are alive       | `WATCHDOG=1`, within `WATCHDOG_USEC` | sd_watchdog_enabled(3)            |
 * | keep these descriptors  | `FDSTORE=1`, by `SCM_RIGHTS`         | sd_pid_notify_with_fds(3)         |
 * | here are descriptors    | `LISTEN_FDS`, numbers from 3         | sd_listen_fds(3)                  |
 * | how grave a log line is | `<4>` before it                      | sd-daemon(3)                      |
 *
 * Without a manager each of these does nothing. With one that does not answer nothing waits and nothing
 * throws either: forwarding is never worth less than telling somebody about it.
 */
import { fstatSync } from "node:fs";
import { constants } from "node:os";
import { addon } from "./device/native.ts";

type Environment = Readonly<Record<string, string | undefined>>;

// ---- states

/** States that did not fit into the manager's queue, the first to be said first. */
const unsaid: string[] = [];
const MOST_UNSAID = 16;
/** When a queue that was full is tried again. */
export const AGAIN_MS = 100;
let again: NodeJS.Timeout | undefined;

/** Frames can cross; `status` is the line of `systemctl status`. Ends a reload, too. */
export function notifyReady(status: string): void {
  tell("READY=1", statusLine(status));
}

/** The configuration is being read again: notifyReady() is to follow, whatever comes of it. */
export function notifyReloading(): void {
  // The manager's monotonic clock is the one of hrtime; a reload is told apart by when it began.
  tell("RELOADING=1", `MONOTONIC_USEC=${process.hrtime.bigint() / 1000n}`);
}

export function notifyStopping(): void {
  tell("STOPPING=1", statusLine("stopping"));
}

export function notifyStatus(status: string): void {
  tell(statusLine(status));
}

function statusLine(status: string): string {
  return `STATUS=${status.replaceAll("\n", " ")}`;
}

/** Says it in its turn, which is at once unless the manager is far behind. */
function tell(...lines: string[]): void {
  unsaid.push(lines.join("\n"));
  if (unsaid.length > MOST_UNSAID) unsaid.shift();
  sayUnsaid();
}

function sayUnsaid(): void {
  clearTimeout(again);
  for (; unsaid.length > 0; unsaid.shift()) {
    if (send(unsaid[0]!) !== "full") continue;
    again = setTimeout(sayUnsaid, AGAIN_MS).unref();
    return;
  }
}

/** What became of a message: a queue that is full has room again soon; nobody may be there to hear it. */
export type Answer = "said" | "full" | "unheard";

function send(message: string, descriptors: readonly number[] = []): Answer {
  const path = process.env.NOTIFY_SOCKET;
  if (!path) return "unheard";
  try {
    const error = addon().notify(path, message, descriptors);
    if (error === 0) return "said";
    return error === -constants.errno.EAGAIN ? "full" : "unheard";
  } catch {
    return "unheard"; // whoever has more use for the addon says that it is missing
  }
}

// ---- watchdog

/** While nothing proves that we are alive, it is asked for this often. */
const DOUBT_MS = 500;

/** Within how many milliseconds the manager wants to hear that we are alive, if it does. */
export function watchdogMs(env: Environment = process.env): number | undefined {
  const { WATCHDOG_USEC, WATCHDOG_PID = `${process.pid}` } = env;
  const ms = Number(WATCHDOG_USEC) / 1000;
  return ms > 0 && WATCHDOG_PID === `${process.pid}` ? ms : undefined;
}

/**
 * Tells the manager's watchdog that we are alive for as long as `alive` says so, from now until the
 * answer is called; nothing without a watchdog. One that barks ends the process.
 */
export function feedWatchdog(alive: () => boolean): () => void {
  const ms = watchdogMs();
  if (ms === undefined) return () => undefined;
  let timer: NodeJS.Timeout;
  const feed = () => {
    const fed = alive() && send("WATCHDOG=1") === "said";
    timer = setTimeout(feed, fed ? ms / 2 : Math.min(DOUBT_MS, ms / 8)).unref();
  };
  feed();
  return () => clearTimeout(timer);
}

// ---- descriptors

/** A descriptor that the manager opened or kept for us. */
export interface HandedOver {
  /** Of its socket unit (`FileDescriptorName=`), or what it was stored as. */
  readonly name: string;
  readonly fd: number;
}

const FIRST_FD = 3;

/** The descriptors that we were started with, in their order. */
export function handedOver(env: Environment = process.env): HandedOver[] {
  const { LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES = "" } = env;
  // Children inherit the variables, but not the descriptors.
  if (LISTEN_PID !== `${process.pid}` || !/^\d{1,5}$/.test(LISTEN_FDS ?? "")) return [];
  const names = LISTEN_FDNAMES.split(":");
  return Array.from({ length: Number(LISTEN_FDS) }, (_, at) => {
    return { name: names[at] || "unknown", fd: FIRST_FD + at };
  });
}

/**
 * What our units keep over a restart: descriptors in the manager's store, all else in files of a directory.
 * Undefined where nothing is to be kept.
 */
export function keptBefore(
  env: Environment = process.env,
):
  | { readonly descriptors: readonly HandedOver[]; readonly directory: string | undefined }
  | undefined {
  if (env.VTEP_KEEP !== "1") return undefined;
  const descriptors = handedOver(env).filter(({ name }) => name !== "api");
  return { descriptors, directory: env.STATE_DIRECTORY?.split(":")[0] };
}

/**
 * Has the manager keep copies of descriptors over a restart, under a name of up to 255 printable
 * characters but colons.
 */
export function storeDescriptors(name: string, descriptors: readonly number[]): Answer {
  // Polled, a UDP socket with an ICMP error in its queue would pass for broken, and be closed.
  return send(`FDSTORE=1\nFDNAME=${name}\nFDPOLL=0`, descriptors);
}

/** Has the manager close what it keeps under a name. */
export function forgetDescriptors(name: string): Answer {
  return send(`FDSTOREREMOVE=1\nFDNAME=${name}`);
}

/** Another descriptor of the same file, socket or device. Throws what the system refuses. */
export function copyOf(descriptor: number): number {
  return addon().duplicate(descriptor);
}

// ---- log

/** The least pino level of each of syslog's priorities, the gravest first. */
const PRIORITIES = [
  [60, 2], // fatal: critical
  [50, 3], // error
  [40, 4], // warn
  [30, 6], // info
  [0, 7], // debug, trace
] as const;

/** Whether what is written to a descriptor goes to the journal: the service may have been redirected. */
export function isJournal(fd: number, env: Environment = process.env): boolean {
  if (!env.JOURNAL_STREAM) return false;
  try {
    const { dev, ino } = fstatSync(fd);
    return env.JOURNAL_STREAM === `${dev}:${ino}`;
  } catch {
    return false; // it is closed
  }
}

/** The level of an error, as pino counts. */
export const ERROR = 50;

/** What the journal takes for the priority of a line, before it. */
export function priorityPrefix(level: number): string {
  return `<${PRIORITIES.find(([least]) => level >= least)![1]}>`;
}

/** A stream for pino that prefixes each line, JSON as it is, with its priority. */
export function journalStream(to: { write(line: string): unknown }) {
  return {
    // pino leaves the level of each line in `lastLevel` where it finds this.
    [Symbol.for("pino.metadata")]: true,
    lastLevel: 30,
    write(line: string) {
      to.write(`${priorityPrefix(this.lastLevel)}${line}`);
    },
  };
}
