import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterEach, describe, expect, it, vi } from "vitest";
import { Counters } from "../../src/counters.ts";
import { rehearse, whileIdle } from "../../src/rehearsal.ts";

afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
});

describe("the rehearsal", () => {
  it("takes all of its frames both ways, and drops none", () => {
    const allocate = vi.spyOn(Counters, "allocate");
    for (const _ of rehearse());
    const all = allocate.mock.results.map(({ value }) => new Counters(value, 1));
    expect(all).toHaveLength(5);
    for (const counters of all) {
      expect([counters.drops(0), counters.drops(1)]).toEqual([{}, {}]);
      const { encapFrames, encapBytes, decapFrames, decapBytes, ...events } = counters.events(1);
      expect(decapFrames).toBeGreaterThan(1000); // two of each row
      const moved = encapFrames / 20; // a lone row, of every second four bursts
      expect(decapFrames).toBe(2 * encapFrames - moved);
      expect(encapBytes).toBeGreaterThan(decapBytes); // super-frames
      expect(events.flooded).toBeGreaterThan(0);
      expect(events.flooded).toBeLessThan(encapFrames / 5); // ARP alone
      const quiet = Object.fromEntries(Object.keys(events).map((name) => [name, 0]));
      expect(events).toEqual({ ...quiet, flooded: events.flooded, learned: 2 });
    }
  });

  it("leaves compiled code that stays when other devices come", async () => {
    const program = fileURLToPath(new URL("./rehearsed.ts", import.meta.url));
    const run = promisify(execFile);
    const args = ["--allow-natives-syntax", "--import", "tsx", program];
    const { stdout } = await run(process.execPath, args);
    const both = { encap: true, decap: true };
    const crossed = { encapFrames: 200, decapFrames: 600 };
    expect(JSON.parse(stdout)).toEqual({ rehearsed: both, later: both, ...crossed });
  }, 60_000);
});

describe("a thread that is idle", () => {
  /** Of a rehearsal, each of 0.4 ms. */
  const STEPS = 8;
  let bursts = 0;
  let steps = 0;

  /** It takes three steps a turn, which last for a millisecond at least. */
  function begin(failsAt = STEPS): Generator<void> {
    vi.useFakeTimers({ toFake: ["setTimeout", "setImmediate"] });
    vi.spyOn(performance, "now").mockImplementation(() => steps * 0.4);
    steps = 0;
    const rehearsal = (function* () {
      for (; steps < STEPS; steps++) {
        if (steps === failsAt) throw new Error("no memory");
        yield;
      }
    })();
    whileIdle(rehearsal, () => bursts);
    return rehearsal;
  }

  it("rehearses to the end, a millisecond at a time", () => {
    begin();
    vi.advanceTimersByTime(19);
    expect(steps).toBe(0);
    const seen: number[] = [];
    while (vi.getTimerCount() > 0) {
      vi.advanceTimersToNextTimer();
      seen.push(steps);
    }
    expect(seen).toEqual([3, 6, 8]);
  });

  it.each([
    { more: 1, ms: 20 },
    { more: 8, ms: 20 },
    { more: 9, ms: 2000 },
  ])("waits for $ms ms after $more bursts of frames", ({ more, ms }) => {
    begin();
    vi.advanceTimersToNextTimer();
    const before = steps;
    bursts += more;
    vi.advanceTimersToNextTimer(); // it looks
    vi.advanceTimersByTime(ms - 1);
    expect(steps).toBe(before);
    vi.advanceTimersByTime(1);
    expect(steps).toBeGreaterThan(before);
  });

  it("does not begin for as long as frames come", () => {
    begin();
    for (let ms = 0; ms < 200; ms += 10) {
      bursts++;
      vi.advanceTimersByTime(10);
    }
    expect(steps).toBe(0);
    vi.advanceTimersByTime(40);
    expect(steps).toBe(STEPS);
  });

  it("rehearses no more when it is told to end", () => {
    const rehearsal = begin();
    vi.advanceTimersToNextTimer();
    const before = steps;
    rehearsal.return(undefined);
    vi.advanceTimersToNextTimer();
    expect(steps).toBe(before);
    expect(vi.getTimerCount()).toBe(0);
  });

  it("goes on without a rehearsal that fails", () => {
    begin(3);
    vi.runAllTimers();
    expect(steps).toBe(3);
    expect(vi.getTimerCount()).toBe(0);
  });
});
