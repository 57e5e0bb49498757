import { setTimeout as pause } from "node:timers/promises";

/**
 * Asks again and again until the answer is neither undefined nor false, and returns that answer.
 * Throws when it never is within `deadlineMs`; `what` completes "never saw …".
 */
export async function until<T>(
  what: string,
  ask: () => T | Promise<T>,
  deadlineMs = 5_000,
): Promise<Exclude<T, undefined | false>> {
  const deadline = performance.now() + deadlineMs;
  for (;;) {
    const answer = await ask();
    if (answer !== undefined && answer !== false) return answer as Exclude<T, undefined | false>;
    if (performance.now() > deadline) throw new Error(`never saw ${what} within ${deadlineMs} ms`);
    await pause(10);
  }
}
