/**
 * The forwarding threads of an agent, as one: what is ordered is ordered of all of them.
 *
 * An order is answered by every thread before the next one is given, so that a thread has time for
 * frames in between. The first thread goes first: it finds out whether ports and names are free, and
 * the others join it. If one refuses, the order is the caller's to take back.
 */
import { setFlagsFromString } from "node:v8";
import { Worker } from "node:worker_threads";
import type { Offloads } from "./device.ts";
import { remedied, VtepError } from "./errors.ts";
import { Heartbeats } from "./heartbeats.ts";
import type { MirrorFilter } from "./mirror.ts";
import type { NetworkPlan, Plan } from "./vtep.ts";
import type { Order, Post, Report, Started } from "./worker.ts";

/** How long threads may take to close their devices before they are ended. */
const STOP_MS = 500;
/** The id of the order to stop. */
const LAST = -1;

/** A thread, and when it ended: with the error if that was why. */
export interface Thread {
  readonly worker: Worker;
  readonly ended: Promise<Error | undefined>;
}

/**
 * A thread that loads its program while there is no plan for it yet, on whatever core is idle: that saves
 * a third of the time to the first frame. It keeps nobody from ending.
 */
export function startThread(): Thread {
  // Forwarding allocates next to nothing, which V8 takes for idleness: every half minute it would stop
  // a thread in the middle of its traffic, for 10 to 40 ms, to give back a megabyte.
  setFlagsFromString("--no-memory-reducer");
  const worker = new Worker(new URL("./worker.js", import.meta.url));
  worker.unref();
  const ended = new Promise<Error | undefined>((resolve) => {
    worker.once("error", resolve);
    worker.once("exit", () => resolve(undefined));
  });
  return { worker, ended };
}

export class Workers {
  /** Resolves when forwarding broke down, with the reason; never when it was ended. */
  readonly lost: Promise<VtepError>;
  readonly #plan: Plan;
  readonly #heartbeats: Heartbeats;
  readonly #keep: boolean;
  readonly #unwanted: AbortSignal;
  #lose!: (error: VtepError) => void;
  /** Why forwarding was lost. */
  #reason: VtepError | undefined;
  /** Those that wait for an answer. Each would stay in memory if it waited for `lost`, which lasts. */
  readonly #waiting = new Set<(error: VtepError) => void>();
  #threads: Worker[] = [];
  /** The first, until it has a plan. */
  #idle: Thread | undefined;
  #opened = false;
  #orders = 0;

  /**
   * `first` is the first of the threads; `unwanted` calls off the start, not what comes after; `keep` has
   * the service manager keep descriptors over a restart.
   */
  constructor(plan: Plan, first: Thread, unwanted: AbortSignal, keep: boolean) {
    this.#plan = plan;
    this.#heartbeats = new Heartbeats(plan.heartbeats);
    this.#idle = first;
    this.#keep = keep;
    this.#unwanted = unwanted;
    this.lost = new Promise((resolve) => {
      this.#lose = (reason) => {
        this.#reason ??= reason;
        for (const fail of this.#waiting) fail(reason);
        resolve(reason);
      };
    });
  }

  get count(): number {
    return this.#threads.length;
  }

  /** How long each thread has not waited for something to do, as of its last tick. */
  busySeconds(): number[] {
    return this.#threads.map((_, worker) => this.#heartbeats.busySeconds(worker));
  }

  /** Opens the devices of the plan. Throws VtepError, or the reason of `unwanted`. */
  async open(): Promise<Started> {
    const { opened } = await this.#wanted(this.#reportOf(this.#spawn(), "opened"));
    const more = opened.underlay === "dgram" ? 0 : this.#plan.workers - 1; // Node 20 shares no port
    const others = Array.from({ length: more }, () => this.#spawn());
    await this.#wanted(Promise.all(others.map((thread) => this.#reportOf(thread, "opened"))));
    this.#opened = true;
    return opened;
  }

  /**
   * Begins to forward. `onOffloads` is told which are in use: at once, and when there are fewer;
   * `onTapLost` by every thread whose queue of a network's TAP went away.
   */
  async forward(
    onOffloads: (inUse: Offloads) => void,
    onTapLost: (index: number, error: VtepError) => void,
  ): Promise<void> {
    const begun = this.#threads.map((thread) => {
      thread.on("message", (report: Report) => {
        if (report.event === "lost") {
          const error = new VtepError(report.code, report.message);
          if (report.index === undefined) this.#lose(error);
          else onTapLost(report.index, error);
        }
        if (report.event === "offloads") onOffloads(report.inUse);
      });
      return this.#ask(thread, { order: "forward" });
    });
    await this.#wanted(Promise.all(begun));
  }

  /** A network more, whose TAP the first thread makes. */
  add(network: NetworkPlan): Promise<void> {
    return this.#order({ order: "add", network });
  }

  /** Other settings of a network; its VNI, index, TAP and MAC stay. */
  change(network: NetworkPlan): Promise<void> {
    return this.#order({ order: "change", network });
  }

  /** Forwards no more of this network. Its TAP stays until `discard`, or until it is deleted. */
  retire(index: number): Promise<void> {
    return this.#order({ order: "retire", index });
  }

  /** Closes the TAP of a network that was retired: some 20 ms a thread if it was not deleted before. */
  discard(index: number): Promise<void> {
    return this.#order({ order: "discard", index });
  }

  /** Shows every frame that matches to whoever reads these rings, one for each thread. */
  async mirror(rings: readonly SharedArrayBuffer[], filter: MirrorFilter): Promise<void> {
    const begun = this.#threads.map((thread, at) =>
      this.#ask(thread, { order: "mirror", mirroring: { ring: rings[at]!, filter } }),
    );
    await Promise.all(begun);
  }

  /** Shows frames to nobody any more. */
  unmirror(): Promise<void> {
    return this.#order({ order: "mirror", mirroring: undefined });
  }

  /** Forwarding is of no use any more; `lost` says why. */
  giveUp(reason: VtepError): void {
    this.#lose(reason);
  }

  /** Threads that have closed their devices end by themselves, or with the process: nobody waits for that. */
  async end(): Promise<void> {
    void this.#idle?.worker.terminate();
    const threads = this.#threads;
    this.#threads = [];
    // One that is still opening devices would finish first.
    const patience = this.#opened ? STOP_MS : 0;
    const ends = threads.map(async (thread) => {
      const gone = new Promise<void>((resolve) => {
        thread.once("exit", () => resolve());
        thread.on("message", (report: Report) => {
          if (report.event === "done" && report.id === LAST) resolve();
        });
      });
      thread.postMessage({ order: "stop", id: LAST } satisfies Order);
      const impatience = setTimeout(() => void thread.terminate(), patience);
      await gone;
      clearTimeout(impatience);
    });
    await Promise.all(ends);
  }

  #spawn(): Worker {
    const { worker: thread, ended } = this.#idle ?? startThread();
    this.#idle = undefined;
    thread.ref();
    const post: Post = { plan: this.#plan, worker: this.#threads.length, keep: this.#keep };
    thread.postMessage(post);
    void ended.then((error) => {
      if (!this.#threads.includes(thread)) return;
      this.#threads = this.#threads.filter((other) => other !== thread);
      const how = error === undefined ? "ended by itself" : `failed: ${error.message}`;
      this.#lose(new VtepError("SYSTEM", remedied(`a forwarding thread ${how}`), error));
    });
    this.#threads.push(thread);
    return thread;
  }

  async #order(order: WithoutId<Order>): Promise<void> {
    const [first, ...others] = this.#threads;
    if (first === undefined) throw new VtepError("CLOSED", "forwarding has ended: start again");
    await this.#ask(first, order);
    await Promise.all(others.map((thread) => this.#ask(thread, order)));
  }

  async #ask(thread: Worker, order: WithoutId<Order>): Promise<void> {
    const id = ++this.#orders;
    const answer = this.#answer(
      thread,
      (report) => report.event === "done" && report.id === id,
      id,
    );
    thread.postMessage({ ...order, id } as Order);
    await answer;
  }

  #reportOf<Event extends Report["event"]>(thread: Worker, event: Event) {
    return this.#answer(thread, (report) => report.event === event, 0) as Promise<
      Extract<Report, { event: Event }>
    >;
  }

  /** Waits for a report of a thread; throws what it failed with instead, or why forwarding was lost. */
  #answer(thread: Worker, is: (report: Report) => boolean, id: number): Promise<Report> {
    return new Promise<Report>((resolve, reject) => {
      if (this.#reason !== undefined) return reject(this.#reason);
      const end = () => {
        thread.off("message", listen);
        this.#waiting.delete(fail);
      };
      const fail = (error: VtepError) => {
        end();
        reject(error);
      };
      const listen = (report: Report) => {
        if (is(report)) {
          end();
          resolve(report);
        } else if (report.event === "failed" && report.id === id) {
          fail(new VtepError(report.code, report.message));
        }
      };
      thread.on("message", listen);
      this.#waiting.add(fail);
    });
  }

  /** While it starts: not waited for when it is called off. */
  async #wanted<T>(work: Promise<T>): Promise<T> {
    work.catch(() => undefined);
    const calledOff = new Promise<void>((resolve) => {
      this.#unwanted.addEventListener("abort", () => resolve(), { once: true });
    });
    const result = await Promise.race([work, calledOff]);
    this.#unwanted.throwIfAborted();
    return result as T;
  }
}

type WithoutId<T> = T extends unknown ? Omit<T, "id"> : never;
