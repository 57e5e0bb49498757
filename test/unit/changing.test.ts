import { expect, test } from "vitest";
import { Undo } from "../../src/changing.ts";

test("what was done is taken back last first, each step once, whatever becomes of the others", async () => {
  const undo = new Undo();
  const done: string[] = [];
  undo.push(() => void done.push("first"));
  undo.push(async () => {
    throw new Error("second");
  });
  undo.push(async () => {
    await Promise.resolve();
    done.push("third");
  });
  const faults: string[] = [];
  for (let times = 0; times < 2; times++) await undo.all(({ message }) => faults.push(message));
  expect(done).toEqual(["third", "first"]);
  expect(faults).toEqual(["second"]);
});
