/**
 * The bridges that an agent makes, where a network is to be in one that is not there, and removes when nobody
 * uses them.
 */
import type { Logger } from "pino";
import { beDeafTo } from "./gateways.ts";
import { createBridges, type Own, removeIdleBridges } from "./links.ts";

export class Bridges {
  readonly #made: Set<string>;
  readonly #isKept: boolean;
  readonly #log: Logger;

  /** `before` are those that the agent before had made; `isKept` says whether another one comes after this. */
  constructor(before: readonly string[], isKept: boolean, log: Logger) {
    this.#made = new Set(before);
    this.#isKept = isKept;
    this.#log = log;
  }

  /** Those that were made and not removed. */
  get names(): string[] {
    return [...this.#made];
  }

  /** All of them, or none and throws VtepError. */
  async make(names: readonly string[]): Promise<void> {
    await createBridges(names);
    for (const name of names) {
      this.#made.add(name);
      beDeafTo(name, this.#log);
    }
  }

  /** Those that no network has and nobody else uses: see `removeIdleBridges`. Throws VtepError. */
  async removeIdle(used: ReadonlySet<string | undefined>, own?: Own): Promise<void> {
    const names = this.names.filter((name) => !used.has(name));
    if (names.length === 0) return;
    const left = await removeIdleBridges(names, own);
    for (const name of names) if (!left.includes(name)) this.#made.delete(name);
    if (this.#isKept) return; // they are kept like all else
    for (const bridge of left) {
      this.#log.warn({ bridge }, "leaving the bridge in place: other ports are joined to it");
    }
  }
}
