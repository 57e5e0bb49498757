import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** A library of functions that are called in place of the C library's. */
export interface Preload extends Disposable {
  /** What runs a program with it. */
  readonly way: readonly string[];
}

const PRELUDE = `#include <cerrno>
#include <dlfcn.h>
template <typename Function> static Function *next(Function *, const char *name) {
  return reinterpret_cast<Function *>(dlsym(RTLD_NEXT, name));
}
`;

/**
 * Plays what the kernel of this machine does not do. `source` is C++; `next(write, "write")` there is the
 * C library's own.
 */
export function preload(source: string): Preload {
  const directory = mkdtempSync(join(tmpdir(), "vtep-preload-"));
  const library = join(directory, "preload.so");
  execFileSync("g++", ["-shared", "-fPIC", "-x", "c++", "-", "-o", library, "-ldl"], {
    input: PRELUDE + source,
  });
  return {
    way: ["env", `LD_PRELOAD=${library}`],
    [Symbol.dispose]: () => rmSync(directory, { recursive: true }),
  };
}
