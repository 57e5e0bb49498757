import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: "unit",
          include: ["test/**/*.test.ts"],
          exclude: ["test/lab/**", "test/netns/**"],
          sequence: { groupOrder: 0 },
        },
      },
      {
        // Both cores belong to one test: what a lab measures and awaits is real time.
        test: {
          name: "netns",
          include: ["test/netns/**/*.test.ts"],
          pool: "forks",
          maxWorkers: 1,
          fileParallelism: false,
          testTimeout: 30_000,
          hookTimeout: 30_000,
          sequence: { groupOrder: 1 },
        },
      },
    ],
  },
});
