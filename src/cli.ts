#!/usr/bin/env node
/**
 * The command. Of an agent, what was kept over a restart comes first, for frames are waiting; then the first
 * forwarding thread, which takes longest to load.
 */
import { setImmediate } from "node:timers/promises";
import { startThread } from "./workers.ts";

async function begin(): Promise<void> {
  const runs = process.argv[2] === "run";
  const interim = runs && process.env.VTEP_KEEP === "1" ? await resumed() : undefined;
  if (interim !== undefined) await setImmediate(); // a turn of the loop, for what waits
  const first = runs ? startThread() : undefined;
  const { main } = await import("./program.ts");
  await main(first, interim);
}

async function resumed() {
  const { Interim } = await import("./interim.ts");
  return Interim.begin();
}

void begin();
