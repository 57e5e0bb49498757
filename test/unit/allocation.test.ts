import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { beforeAll, describe, expect, it } from "vitest";
import type { Growth } from "./allocation-ways.ts";

/**
 * The smallest thing on V8's heap has 12 bytes, so one allocation a frame is 12 bytes a frame or
 * more, and one for a burst of 64 frames still 0.19. What the runtime itself allocates in a window
 * (two calls of memoryUsage, an iterator a tick) is under 20 kB in a million frames, or 0.02.
 */
const BOUND = 0.1;
const SMALLEST_OBJECT = 12;

const growths = new Map<string, Growth>();

beforeAll(async () => {
  const program = fileURLToPath(new URL("./allocation-ways.ts", import.meta.url));
  const heap = ["--expose-gc", "--min-semi-space-size=64", "--max-semi-space-size=64"];
  const run = promisify(execFile);
  const { stdout } = await run(process.execPath, [...heap, "--import", "tsx", program]);
  for (const line of stdout.trim().split("\n")) {
    const growth = JSON.parse(line) as Growth;
    growths.set(growth.way, growth);
  }
}, 120_000);

describe("a million frames in steady state", () => {
  it.each([
    "encap, known unicast",
    "encap, flood to ten",
    "encap, nowhere to go",
    "encap, refused",
    "encap, too big",
    "encap, fragments",
    "decap, known",
    "decap, trains",
    "decap, dropped",
    "decap, refused",
    "decap, moving",
    "decap, evicting",
    "encap, asked about",
    "decap, asked about",
    "encap, repeated",
    "decap, repeated",
    "encap, captured",
    "decap, captured",
  ])("allocate nothing: %s", (way) => {
    const growth = growths.get(way)!;
    expect(growth.frames).toBeGreaterThanOrEqual(1_000_000);
    expect(growth.collections).toBe(0);
    expect(growth.bytesPerFrame).toBeLessThan(BOUND);
  });
});

describe("the measurement", () => {
  it.each(["wasteful", "boxing"])("finds a device that allocates for every frame: %s", (way) => {
    const { collections, bytesPerFrame } = growths.get(way)!;
    expect(collections > 0 || bytesPerFrame >= SMALLEST_OBJECT).toBe(true);
  });

  it("is of nothing else", () => {
    expect(growths.size).toBe(20);
  });
});
