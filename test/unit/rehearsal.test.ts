import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterEach, describe, expect, it, vi } from "vitest";
import { Counters } from "../../src/counters.ts";
import { rehearse } from "../../src/rehearsal.ts";

afterEach(() => {
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
      expect(encapFrames).toBe(decapFrames / 2);
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
