import { spawnSync } from "node:child_process";
import { expect, test } from "vitest";
import { command } from "../../src/command.ts";

test("a program that does not end is killed with what it has started, and named", async () => {
  const started = `sleep 98765.${process.pid}`; // no other run's
  const words = ["sh", "-c", `${started} & wait`];
  await expect(command(words, "", "dash", 1000)).rejects.toMatchObject({
    code: "LINK",
    message: expect.stringMatching(/^the command sh had not ended after 1 s, and was killed: see /),
  });
  await expect.poll(() => spawnSync("pgrep", ["-f", `^${started}`]).stdout.length).toBe(0);
});

test("a program that was killed says so where it said nothing", async () => {
  expect(await command(["sh", "-c", "kill -9 $$"], "", "dash")).toMatchObject({
    code: null,
    refusal: "it was ended by SIGKILL",
  });
});

test("a program's own words are its first line", async () => {
  expect(await command(["sh", "-c", "cat >&2; exit 3"], "one\ntwo\n", "dash")).toMatchObject({
    code: 3,
    refusal: "one",
  });
});
