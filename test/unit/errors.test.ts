import { expect, test } from "vitest";
import { sentenceOf, VtepError } from "../../src/errors.ts";

test.each([
  ["spawn ip EMFILE", "spawn ip EMFILE: raise the limit of open files (ulimit -n; "],
  [
    "Cannot read package config /x/package.json: too many open files.", // as Node 24 has it
    "Cannot read package config /x/package.json: too many open files: raise the limit of open ",
  ],
  [
    "Array buffer allocation failed",
    "Array buffer allocation failed: raise the limit of address space (ulimit -v; ",
  ],
])("of a limit is said how to raise it: %s", (message, sentence) => {
  expect(sentenceOf(new RangeError(message))).toContain(sentence);
  expect(sentenceOf(new RangeError(message))).not.toMatch(/RangeError|\n/);
});

test("of our own faults is said where they were, of what we refuse why", () => {
  expect(sentenceOf(new TypeError("no such thing"))).toMatch(/^TypeError: no such thing\n +at /);
  expect(sentenceOf(new VtepError("LOST", "it is gone"))).toBe("it is gone");
});
