import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const doomed = new Set<string>();

// An interrupted run leaves nothing behind either: a lab makes an exit of a signal.
process.once("exit", () => {
  for (const path of doomed) rmSync(path, { recursive: true, force: true });
});

/** A file or a folder that is removed now or, when it does not come to that, as the process exits. */
export class Scratch implements Disposable {
  readonly path: string;

  constructor(path: string) {
    this.path = path;
    doomed.add(path);
  }

  static folder(name: string): Scratch {
    return new Scratch(mkdtempSync(join(tmpdir(), `vtep-bench-${name}-`)));
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true });
    doomed.delete(this.path);
  }
}
