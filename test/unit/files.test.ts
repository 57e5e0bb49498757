import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { replaceFile } from "../../src/files.ts";

const full = vi.hoisted(() => ({ is: false }));
vi.mock("node:fs", async (original) => {
  const fs = await original<typeof import("node:fs")>();
  const writeFileSync: typeof fs.writeFileSync = (file, ...rest) =>
    fs.writeFileSync(full.is ? "/dev/full" : file, ...rest);
  return { ...fs, writeFileSync };
});

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "vtep-files-"));
});
afterEach(() => {
  full.is = false;
  rmSync(directory, { recursive: true });
});

test("a file that finds no room stays as it was, and is named", () => {
  const file = join(directory, "state.json");
  replaceFile(file, "before");
  full.is = true;
  expect(() => replaceFile(file, "after")).toThrow(
    expect.objectContaining({
      code: "ENOSPC",
      message: `ENOSPC: no space left on device, write '${file}'`,
    }),
  );
  expect(readFileSync(file, "utf8")).toBe("before");
  expect(readdirSync(directory)).toEqual(["state.json"]);
});

test("what the system names itself is named once", () => {
  const file = join(directory, "nowhere", "state.json");
  expect(() => replaceFile(file, "")).toThrow(`open '${file}.new'`);
});
