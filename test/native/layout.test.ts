import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { Batch, LAYOUT } from "../../src/batch.ts";
import { addon, checkLayout, numberOf } from "../../src/device/native.ts";
import { REMOTE_LAYOUT } from "../../src/remotes.ts";
import { moduleChild, ROOT } from "./fixture.ts";

vi.setConfig({ testTimeout: 30_000 }); // child processes take their time on a busy host

describe("the memory layout", () => {
  it("is the same in TypeScript and in C++", () => {
    expect(addon().layout).toEqual({ ...LAYOUT, ...REMOTE_LAYOUT });
  });

  it("includes where the fields of a remote and of a virtio_net_hdr lie", () => {
    expect(addon().layout).toMatchObject({
      ...{ REMOTE_FAMILY: 0, REMOTE_PORT: 1, REMOTE_ADDRESS: 2 },
      ...{ VNET_CSUM_START: 6, VNET_CSUM_OFFSET: 8 },
    });
  });

  it("ends where the columns end", () => {
    const batch = new Batch();
    expect(batch.repeat.byteOffset + batch.repeat.byteLength).toBe(batch.columns.byteLength);
  });

  const whole = { ...LAYOUT, ...REMOTE_LAYOUT };
  const { REMOTE_WORDS, ...lacking } = whole;
  it.each([
    ["a number differs", { ...whole, HEADROOM: 12 }, "HEADROOM is 12 there and 10 here"],
    ["a number is missing", lacking, `REMOTE_WORDS is undefined there and ${REMOTE_WORDS} here`],
    ["there is one more", { ...whole, IN_QUEUE: 4 }, "IN_QUEUE is 4 there and undefined here"],
  ])("is refused when %s", (_, layout, difference) => {
    expect(() => checkLayout(layout)).toThrow(
      expect.objectContaining({ code: "ADDON", message: expect.stringContaining(difference) }),
    );
    expect(() => checkLayout(layout)).toThrow(/npm run build/);
  });
});

describe("the loader", () => {
  /** A copy of the package without its addon. */
  function copy(): string {
    const root = mkdtempSync(join(tmpdir(), "vtep-"));
    onTestFinished(() => rmSync(root, { recursive: true }));
    cpSync(join(ROOT, "src"), join(root, "src"), { recursive: true });
    cpSync(join(ROOT, "package.json"), join(root, "package.json"));
    symlinkSync(join(ROOT, "node_modules"), join(root, "node_modules"));
    return root;
  }

  function load(root: string): string {
    return moduleChild(`
      const { addon } = await import(${JSON.stringify(join(root, "src/device/native.ts"))});
      try { addon(); } catch ({ name, code, message }) { console.log(name, code, message); }
    `).output;
  }

  it("says what to do when the addon is missing", () => {
    expect(load(copy())).toBe("VtepError ADDON the native addon is missing; run: npm run build\n");
  });

  it("says what to do when the addon is for something else", () => {
    const root = copy();
    mkdirSync(join(root, "build/Release"), { recursive: true });
    writeFileSync(join(root, "build/Release/vtep.node"), "not an addon");
    expect(load(root)).toMatch(
      /^VtepError ADDON the native addon does not load into Node v.*; run: npm run build\n$/,
    );
  });

  it("gives a batch one number", () => {
    const batch = new Batch();
    expect(numberOf(batch)).toBe(numberOf(batch));
    expect(numberOf(batch)).not.toBe(numberOf(new Batch()));
  });
});
