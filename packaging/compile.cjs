/**
 * `node packaging/compile.cjs ENTRY [ARGUMENT…]`: runs what is in dist/ as it is run otherwise, a forwarding
 * thread in a thread, and writes what V8 has compiled when that ends beside the text (see load.cjs).
 *
 * Functions are compiled when they are first called. What is run is to call those of a start, and to end
 * before it changes anything.
 */
"use strict";
const { writeFileSync } = require("node:fs");
const { resolve } = require("node:path");
const vm = require("node:vm");
const { isMainThread, Worker } = require("node:worker_threads");

const [entry, ...args] = process.argv.slice(2);
if (entry === "dist/parts/worker.js" && isMainThread) {
  // A plan of nothing, which it refuses.
  new Worker(__filename, { argv: [entry] }).postMessage({ plan: {}, worker: 0, keep: false });
} else {
  const { Script } = vm;
  vm.Script = class extends Script {
    constructor(source, { filename }) {
      super(source, { filename });
      const file = filename.replace(/js$/, "bin");
      process.once("exit", () => writeFileSync(file, this.createCachedData()));
    }
  };
  const path = resolve(entry);
  process.argv = [process.execPath, path, ...args];
  require(path);
}
