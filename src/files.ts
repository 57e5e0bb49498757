/** Files that others find whole, as they were or as they are to be. */
import { renameSync, rmSync, writeFileSync } from "node:fs";

/** Readable by its owner only. Throws what the system says. */
export function replaceFile(file: string, text: string): void {
  try {
    writeFileSync(`${file}.new`, text, { mode: 0o600 });
    renameSync(`${file}.new`, file);
  } catch (error) {
    rmSync(`${file}.new`, { force: true });
    throw error;
  }
}
