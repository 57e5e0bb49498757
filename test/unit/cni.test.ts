import { execFile } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, expect, test } from "vitest";

const directory = mkdtempSync(join(tmpdir(), "vtep-cni-"));
afterAll(() => rmSync(directory, { recursive: true }));

/** What is answered to a DEL, in a process of its own, when `before` has run there. */
async function deleted(ipam: string, before: string): Promise<string> {
  const input = { cniVersion: "1.0.0", name: "blue", ipam: { type: ipam } };
  const environment = {
    CNI_COMMAND: "DEL",
    CNI_CONTAINERID: "c",
    CNI_IFNAME: "eth0",
    CNI_PATH: directory,
  };
  const call = JSON.stringify({ environment, input: JSON.stringify(input) });
  const script = `
    const { answer } = await import("./src/cni.ts");
    await import("./src/cni-plugin.ts");
    ${before}
    await answer(${call}).then(
      () => console.log("done"),
      ({ name, message }) => console.log(name, message),
    );
  `;
  const words = ["--import", "tsx", "--input-type=module", "--eval", script];
  return (await promisify(execFile)(process.execPath, words)).stdout;
}

test("an IPAM plugin that cannot be run is named", async () => {
  writeFileSync(join(directory, "lost"), "#!/none/sh\n", { mode: 0o755 });
  expect(await deleted("lost", "")).toMatch(
    /^Error lost DEL: it could not be run: spawn .* ENOENT$/m,
  );
});

test("where no descriptor is left for one, it is said what helps", async () => {
  writeFileSync(join(directory, "fine"), "#!/bin/sh\necho {}\n", { mode: 0o755 });
  const fill = `
    const { openSync } = await import("node:fs");
    process.stdout.write(""); // which has its own
    try {
      for (;;) openSync("/dev/null");
    } catch {}
  `;
  expect(await deleted("fine", fill)).toMatch(/EMFILE: raise the limit of open files/);
});
