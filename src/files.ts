/** Files that others find whole, as they were or as they are to be. */
import { renameSync, rmSync, writeFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";

/**
 * Readable by its owner only. Throws what the system says, and of which file. What a link in the place of the new
 * one leads to is left alone: root may write where another user may put one.
 */
export function replaceFile(file: string, text: string): void {
  try {
    rmSync(`${file}.new`, { force: true }); // of one who was killed
    writeFileSync(`${file}.new`, text, { mode: 0o600, flag: "wx" });
    renameSync(`${file}.new`, file);
  } catch (error) {
    removeIfPossible(`${file}.new`);
    throw named(error as NodeJS.ErrnoException, file);
  }
}

/** The same with a text in pieces, between which whoever else waits has a turn; one at a time of a file. */
export async function replaceFileInPieces(file: string, pieces: Iterable<string>): Promise<void> {
  try {
    rmSync(`${file}.new`, { force: true });
    await writeFile(`${file}.new`, pieces, { mode: 0o600, flag: "wx" });
    renameSync(`${file}.new`, file);
  } catch (error) {
    removeIfPossible(`${file}.new`);
    throw named(error as NodeJS.ErrnoException, file);
  }
}

/** A write is refused without a path (ENOSPC, EDQUOT, EIO): who is to make room has to know where. */
function named(error: NodeJS.ErrnoException, file: string): NodeJS.ErrnoException {
  if (error.path === undefined) error.message += ` '${file}'`;
  return error;
}

/** For what has failed already, and is to say why. */
function removeIfPossible(path: string): void {
  try {
    rmSync(path, { force: true });
  } catch {
    // it stays, as what it was
  }
}
