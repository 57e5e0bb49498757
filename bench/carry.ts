import { once } from "node:events";
import { createInterface } from "node:readline";
import { text } from "node:stream/consumers";
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import type { Container } from "../test/lab/host.ts";
import { succeeded } from "../test/lab/namespace.ts";

const program = fileURLToPath(new URL("file.mjs", import.meta.url));

/** How long a receiver that has failed may take to say why. */
const LAST_WORDS_MS = 2000;

/** How many seconds a file took to get from one container to another. */
export async function carry(
  from: Container,
  to: Container,
  original: string,
  copy: string,
): Promise<number> {
  const receiver = to.spawn("node", program, "receive", copy);
  const ended = Promise.all([once(receiver, "close"), text(receiver.stderr)]);
  const received = ended.then(([[code], stderr]) =>
    succeeded(`receiving ${copy}`, { code, stdout: "", stderr }),
  );
  received.catch(() => {}); // it is asked for below
  const { value: port, done } = await createInterface(receiver.stdout)
    [Symbol.asyncIterator]()
    .next();
  if (done) throw new Error(await received);
  const began = performance.now();
  const sent = await from.finish(["node", program, "send", to.address, port, original]);
  // Who receives knows why, say that the disk is full: who sends knows of a reset only.
  if (sent.code !== 0) await Promise.race([received, pause(LAST_WORDS_MS)]);
  succeeded(`sending ${original}`, sent);
  await received;
  return (performance.now() - began) / 1000;
}
