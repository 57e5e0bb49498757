import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** A PATH on which other programs are found by the names of some. */
export interface Shim extends Disposable {
  /** As `env` takes it. */
  readonly path: string;
  /** For files of the script's. */
  readonly directory: string;
}

/** An `ip` that refuses every change to links while its directory has a file `armed`. */
export const REFUSING = '[ "$*" != "-batch -" ] || [ ! -e "$here/armed" ] || exit 2; real "$@"';

/**
 * Plays programs of the host that fail or take their time. In the `script`, which each of them is, the true one
 * is `real`, and `here` the directory.
 */
export function shim(script: string, programs: readonly string[] = ["ip"]): Shim {
  const directory = mkdtempSync(join(tmpdir(), "vtep-shim-"));
  for (const program of programs) {
    const real = execFileSync("sh", ["-c", `command -v ${program}`], { encoding: "utf8" }).trim();
    const shell = `#!/bin/sh\nhere=${directory}\nreal() { ${real} "$@"; }\n${script}\n`;
    writeFileSync(join(directory, program), shell, { mode: 0o755 });
  }
  return {
    path: `PATH=${directory}:${process.env.PATH}`,
    directory,
    [Symbol.dispose]: () => rmSync(directory, { recursive: true }),
  };
}
