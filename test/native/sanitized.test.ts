/**
 * Tests of this folder once more, over an addon that ends its process as soon as it touches memory that is not its
 * own, or does what C++ leaves undefined: a read beyond the end of a frame seldom changes what becomes of it, so
 * nothing else would tell. Those that run programs by the dozen are not among them, for each of these carries the
 * library along: `lifetime` and `tap` take minutes so, and are run by hand when what they test has changed.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { expect, it } from "vitest";
import { ADDON, ROOT } from "./fixture.ts";

const FILES = ["checksum", "flows", "flows-faults", "misuse", "offloads", "udp"].map(
  (name) => `test/native/${name}.test.ts`,
);
/** Thousands of frames, of which building takes longest; namespaces; and what has another library go first. */
const LEFT_OUT =
  "whatever the headers|undoes segmentation|joins no header|in a namespace of its own|blames neither";

const FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined";
const BUILT = "build/sanitized/Release/vtep.node";

it("touches no memory but its own", { timeout: 600_000 }, () => {
  const env = { ...process.env, CXXFLAGS: `${FLAGS} -Og -g1`, LDFLAGS: FLAGS };
  // As `npm run build:native` has configured it, beside what that builds; only what has changed is built again.
  const make = ["-j2", "-C", "build", "builddir_name=sanitized"];
  execFileSync("make", make, { cwd: ROOT, env, stdio: "pipe" });

  // It takes the other one's place for this command and what that starts. The library has to be there before Node's
  // own memory is; what Node does not free when it ends is no leak of the addon's.
  const library = execFileSync("g++", ["-print-file-name=libasan.so"], { encoding: "utf8" }).trim();
  const words = [
    "run",
    "--project=unit",
    "--bail=1",
    `--testNamePattern=^(?!.*(${LEFT_OUT}))`,
    ...FILES,
  ];
  const command =
    'mount --bind "$1" "$2" && shift 2 && LD_PRELOAD=$1 && export LD_PRELOAD && shift && exec "$@"';
  const vitest = [process.execPath, "node_modules/vitest/vitest.mjs", ...words];
  const { status, stdout, stderr } = spawnSync(
    "unshare",
    ["--mount", "sh", "-c", command, "sh", BUILT, ADDON, library, ...vitest],
    {
      cwd: ROOT,
      env: { ...process.env, ASAN_OPTIONS: "detect_leaks=0" },
      encoding: "utf8",
    },
  );
  expect(status, `${stdout}${stderr}`).toBe(0);
});
