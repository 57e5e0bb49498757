/**
 * Proof of life of the forwarding threads: two cells each, in shared memory, into which a thread writes
 * the time whenever its event loop comes round to its tick, and how long it has been busy. It is the loop
 * that forwards, so one that is stuck, stopped or gone falls silent, however well the main thread may be.
 */

/** Threads tick every second; one that is silent for longer than this is not merely busy. */
export const SILENT_SECONDS = 3;

export class Heartbeats {
  readonly memory: SharedArrayBuffer;
  readonly #beats: Int32Array;
  readonly #busy: Float64Array;

  static allocate(threads: number): SharedArrayBuffer {
    return new SharedArrayBuffer(threads * (8 + 4));
  }

  constructor(memory: SharedArrayBuffer) {
    this.memory = memory;
    const threads = memory.byteLength / (8 + 4);
    this.#busy = new Float64Array(memory, 0, threads);
    this.#beats = new Int32Array(memory, threads * 8);
  }

  /** `now` in seconds on the clock that all threads share, never 0; `busy` in seconds since the thread began. */
  beat(thread: number, now: number, busy: number): void {
    this.#busy[thread] = busy;
    Atomics.store(this.#beats, thread, now);
  }

  /** Seconds in which a thread did not wait for something to do, as of its last beat. */
  busySeconds(thread: number): number {
    return this.#busy[thread]!;
  }

  /**
   * The threads that have beaten, but not within the last SILENT_SECONDS. One that has never beaten does
   * not forward, and is nobody's worry here: an agent is not ready before all that it wants do.
   */
  stale(now: number): number[] {
    const threads = [...this.#beats.keys()];
    return threads.filter((thread) => {
      const beat = Atomics.load(this.#beats, thread);
      return beat !== 0 && now - beat > SILENT_SECONDS;
    });
  }
}
