import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { onTestFinished, test } from "vitest";
import { unlessGone } from "../lab/gone.ts";
import { until } from "../lab/until.ts";
import { ROOT } from "../native/fixture.ts";

/** The namespaces that processes of this session drew: a lab's name tells who drew it. */
function drawnBy(session: number): string[] {
  return readdirSync("/run/netns").filter((name) => {
    const stat = `/proc/${/^lab-(\d+)-/.exec(name)?.[1]}/stat`;
    const fields = unlessGone(() => readFileSync(stat, "utf8").split(" "));
    return Number(fields?.[5]) === session;
  });
}

// npm passes a signal on to the shell that it runs, and to nobody else.
test("npm run demo stops when npm is told to, and removes what it drew", async () => {
  const npm = spawn("npm", ["run", "demo"], { cwd: ROOT, detached: true, stdio: "ignore" });
  const session = npm.pid!;
  onTestFinished(() => {
    try {
      process.kill(-session, "SIGKILL");
    } catch {} // as it should be: nobody of it is left
  });
  const ended = once(npm, "close");
  const [name] = await until(
    "a namespace",
    () => drawnBy(session).length > 0 && drawnBy(session),
    20_000,
  );
  const prefix = /^lab-\d+-/.exec(name!)![0];
  npm.kill("SIGTERM");
  await ended;
  const left = () => readdirSync("/run/netns").filter((name) => name.startsWith(prefix));
  await until("none left", () => left().length === 0);
});
