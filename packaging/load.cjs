/**
 * An entry of dist/: X.js, of which this is a copy, runs X.code.js with what V8 made of it when it was built,
 * X.code.bin. V8 of another version, or with other flags, refuses that and compiles the text.
 */
"use strict";
const { readFileSync } = require("node:fs");
const { createRequire } = require("node:module");
const { Script } = require("node:vm");

const filename = __filename.replace(/\.js$/, ".code.js");
// The bundler escapes what is not ASCII: as such it is read three times as fast.
const script = new Script(readFileSync(filename, "latin1"), { filename, cachedData: compiled() });
script.runInThisContext()(exports, createRequire(filename), module, filename, __dirname);

function compiled() {
  try {
    return readFileSync(filename.replace(/js$/, "bin"));
  } catch {
    return undefined; // then it takes longer
  }
}
