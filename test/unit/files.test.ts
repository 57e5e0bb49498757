import {
  linkSync,
  lstatSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { replaceFile } from "../../src/files.ts";

const full = vi.hoisted(() => ({ is: false }));
vi.mock("node:fs", async (original) => {
  const fs = await original<typeof import("node:fs")>();
  const writeFileSync: typeof fs.writeFileSync = (file, ...rest) =>
    full.is ? fs.writeFileSync("/dev/full", "no room") : fs.writeFileSync(file, ...rest);
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

test.each([
  ["a symbolic link", symlinkSync],
  ["a hard link", linkSync],
])("what %s in the place of the new one leads to is left alone", (_, link) => {
  const file = join(directory, "state.json");
  const other = join(directory, "shadow");
  writeFileSync(other, "of root", { mode: 0o644 });
  link(other, `${file}.new`);
  replaceFile(file, "ours");
  expect(readFileSync(other, "utf8")).toBe("of root");
  expect(readFileSync(file, "utf8")).toBe("ours");
  expect(lstatSync(file).isFile() && lstatSync(file).mode & 0o777).toBe(0o600);
});

test("what one has left who was killed is in nobody's way", () => {
  const file = join(directory, "state.json");
  writeFileSync(`${file}.new`, "hal");
  replaceFile(file, "whole");
  expect(readFileSync(file, "utf8")).toBe("whole");
});

test("what the system names itself is named once", () => {
  const file = join(directory, "nowhere", "state.json");
  expect(() => replaceFile(file, "")).toThrow(`open '${file}.new'`);
});
