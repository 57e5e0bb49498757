import { spawn } from "node:child_process";
import { once } from "node:events";
import { text } from "node:stream/consumers";
import { expect, test } from "vitest";

const LINES = 3000;

/** Writes more than waits for a reader, and two lines when all of that was read. */
const WRITES = `
  import { setTimeout } from "node:timers/promises";
  import { pino } from "pino";
  const { logStream } = await import("./src/log.ts");
  const log = pino({}, await logStream());
  for (let at = 0; at < ${LINES}; at++) log.info("x".repeat(1000));
  console.error("written");
  while (process.stdout.writableLength > 0) await setTimeout(5);
  log.info("next");
  log.info("last");
`;

test("lines for which a reader that stalls has no room are left out, and counted in the next", {
  timeout: 30_000,
}, async () => {
  const words = ["--import", "tsx", "--input-type=module", "--eval", WRITES];
  const child = spawn(process.execPath, words, { stdio: ["ignore", "pipe", "pipe"] });
  await once(child.stderr, "data");
  const lines = (await text(child.stdout)).trimEnd().split("\n");
  const [next, last] = lines.splice(-2).map((line) => JSON.parse(line));
  const kept = lines.join("\n").length;
  expect(kept).toBeGreaterThan(2 ** 20);
  expect(kept).toBeLessThan(2 ** 21); // with what the pipe itself holds
  expect(next).toMatchObject({ msg: "next", linesLeftOut: LINES - lines.length });
  expect(last).not.toHaveProperty("linesLeftOut");
});
