// Preloaded by NODE_OPTIONS, in every thread of a process: says on standard error when V8 has collected a heap.
//
//     collected major|minor THREAD
const { writeSync } = require("node:fs");
const { constants, PerformanceObserver } = require("node:perf_hooks");
const { threadId } = require("node:worker_threads");

const { NODE_PERFORMANCE_GC_MAJOR, NODE_PERFORMANCE_GC_MINOR } = constants;

new PerformanceObserver((list) => {
  for (const { detail } of list.getEntries()) {
    if (detail.kind === NODE_PERFORMANCE_GC_MAJOR) writeSync(2, `collected major ${threadId}\n`);
    if (detail.kind === NODE_PERFORMANCE_GC_MINOR) writeSync(2, `collected minor ${threadId}\n`);
  }
}).observe({ entryTypes: ["gc"] });
