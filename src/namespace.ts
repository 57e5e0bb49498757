/** Network namespaces of containers: what tells one from another, and how to keep to the same one. */
import { closeSync, fstatSync, openSync, statfsSync } from "node:fs";
import { VtepError } from "./errors.ts";

/** NSFS_MAGIC of linux/magic.h. What is left of a namespace's name is a file of another system. */
const NSFS = 0x6e736673;
/** Of asm-generic/fcntl.h: the file is found, and not opened, which might do something or wait for somebody. */
const O_PATH = 0o10000000;

/**
 * Stays the same namespace whatever its path leads to later: a link that its owner moves while root sets things up
 * there, or the number of a process that has ended.
 */
export class HeldNamespace implements Disposable {
  /** What tells it from any other, however it is called. */
  readonly id: string;
  readonly #fd: number;

  /** Throws VtepError NOT_FOUND, and PERMISSION. */
  constructor(path: string) {
    this.#fd = looking(path, () => openSync(path, O_PATH));
    try {
      const { dev, ino } = fstatSync(this.#fd);
      this.id = `${dev}:${ino}`;
      if (looking(path, () => statfsSync(this.path)).type === NSFS) return;
      throw new VtepError("NOT_FOUND", `${path} is no network namespace, or one no more: name one`);
    } catch (error) {
      closeSync(this.#fd);
      throw error;
    }
  }

  /** Where programs that this process starts find it. */
  get path(): string {
    return `/proc/${process.pid}/fd/${this.#fd}`;
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }
}

/** What tells a network namespace from any other, however it is called. Throws VtepError as `HeldNamespace` does. */
export function namespaceId(path: string): string {
  using held = new HeldNamespace(path);
  return held.id;
}

function looking<T>(path: string, look: () => T): T {
  try {
    return look();
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === "ENOENT") {
      throw new VtepError("NOT_FOUND", `${path} is not there: name a network namespace`, error);
    }
    throw new VtepError(
      "PERMISSION",
      `${path} cannot be looked at (${message}): run as root`,
      error,
    );
  }
}
