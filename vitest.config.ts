import { defineConfig } from "vitest/config";

/**
 * What measures, counts what is lost, or has daemons or namespaces of the machine's: both cores are theirs.
 * What the others await is a condition, whenever it comes.
 */
const ALONE = [
  "api",
  "bench",
  "congestion",
  "containers",
  "content",
  "deb",
  "docker",
  "floors",
  "lab",
  "offloads",
  "pace",
  "reload",
  "service",
  "top",
  "workers",
].map((name) => `test/netns/${name}.test.ts`);

/** Takes both cores too, for another build of the addon. */
const SANITIZED = "test/native/sanitized.test.ts";

const netns = { pool: "forks", testTimeout: 30_000, hookTimeout: 30_000 } as const;

export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: "unit",
          include: ["test/**/*.test.ts"],
          exclude: ["test/lab/**", "test/netns/**", SANITIZED],
          sequence: { groupOrder: 0 },
        },
      },
      {
        test: {
          ...netns,
          name: "netns",
          include: ["test/netns/**/*.test.ts"],
          exclude: ALONE,
          maxWorkers: 2,
          sequence: { groupOrder: 1 },
        },
      },
      {
        test: {
          ...netns,
          name: "alone",
          include: [...ALONE, SANITIZED],
          maxWorkers: 1,
          fileParallelism: false,
          sequence: { groupOrder: 2 },
        },
      },
    ],
  },
});
