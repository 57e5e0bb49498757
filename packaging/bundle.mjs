/**
 * Compiles src/ to dist/, with the modules that it uses: a start then reads a few files instead of some
 * four hundred, and what V8 made of them before.
 *
 * dist/cli.js and dist/vtep-cni.js are the commands; dist/parts/ holds what they load, and the entry of a
 * forwarding thread: of each part its text (X.code.js), what V8 made of that (X.code.bin), and what loads
 * both (X.js, see load.cjs). All is CommonJS, for Node 20 takes no compiled code for other modules.
 *
 * Whatever finds a file by where its own is (`import.meta.url`) is told that it is in dist/parts/, which is
 * as deep in this package as the directories of src/ that it is in. Left outside is raw-socket, which is
 * optional and has an addon of its own. dist/LICENSES.txt has the terms of all that is inside.
 */
import { spawnSync } from "node:child_process";
import {
  chmodSync,
  cpSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { build, transformSync } from "esbuild";

const PARTS = ["program", "interim", "worker", "vtep-cni"];

rmSync("dist", { recursive: true, force: true });
const options = {
  bundle: true,
  format: "cjs",
  platform: "node",
  target: "node20",
  // What is loaded later is in the same part; Node's own import() would look for modules in other ways.
  supported: { "dynamic-import": false },
  sourcemap: true,
  sourcesContent: false,
  external: ["raw-socket"],
  define: { "import.meta.url": "importMetaUrl" },
  metafile: true,
  logLevel: "warning",
};
const urlOf = (path) => `const importMetaUrl = require("node:url").pathToFileURL(${path}).href;`;
const elsewhere = {
  name: "parts",
  setup: ({ onResolve }) =>
    onResolve({ filter: /^\.\/(program|interim)\.ts$/ }, ({ path }) => ({
      path: `./parts/${path.slice(2, -3)}.js`,
      external: true,
    })),
};
const results = [
  await build({
    ...options,
    entryPoints: ["src/cli.ts"],
    outfile: "dist/cli.js",
    banner: { js: urlOf('__dirname + "/parts/cli.js"') },
    plugins: [elsewhere],
  }),
  await build({
    ...options,
    entryPoints: PARTS.map((part) => ({ in: `src/${part}.ts`, out: `parts/${part}.code` })),
    outdir: "dist",
    banner: {
      js: `(function (exports, require, module, __filename, __dirname) {${urlOf("__filename")}`,
    },
    footer: { js: "})" },
  }),
];
writeFileSync("dist/package.json", '{ "type": "commonjs" }\n');
for (const part of PARTS) cpSync("packaging/load.cjs", `dist/parts/${part}.js`);
writeFileSync("dist/vtep-cni.js", '#!/usr/bin/env node\nrequire("./parts/vtep-cni.js");\n');
for (const command of ["dist/cli.js", "dist/vtep-cni.js"]) chmodSync(command, 0o755);

for (const part of PARTS) {
  const text = readFileSync(`dist/parts/${part}.code.js`, "utf8");
  const { code } = transformSync(text, { minifyWhitespace: true, legalComments: "none" });
  if (/[^\0-\x7f]/.test(code)) throw new Error(`${part} is read as Latin-1, but is more than that`);
}

// A start, as far as it goes for an agent that is its own peer.
const itself = ["--peer", "192.0.2.2", "--local", "192.0.2.2", "--socket", "dist/none.sock"];
compile("dist/cli.js", "run", "--vni", "1", ...itself);
compile("dist/parts/interim.js");
compile("dist/parts/worker.js");
compile("dist/vtep-cni.js");
for (const part of PARTS) statSync(`dist/parts/${part}.code.bin`); // throws unless it was made

function compile(...words) {
  spawnSync(process.execPath, ["packaging/compile.cjs", ...words], {
    env: { ...process.env, CNI_COMMAND: "VERSION" },
    input: '{ "cniVersion": "1.1.0" }',
  });
}

const inside = new Set(
  results
    .flatMap(({ metafile }) => Object.keys(metafile.inputs))
    .flatMap((file) => {
      return /^node_modules\/(?:@[^/]+\/)?[^/]+/.exec(file)?.[0] ?? [];
    }),
);
const terms = [...inside].sort().map((directory) => {
  const { name, version, license, author } = JSON.parse(
    readFileSync(join(directory, "package.json"), "utf8"),
  );
  const file = readdirSync(directory).find((each) => /^licen[cs]e/i.test(each));
  const text =
    file === undefined
      ? `By ${author?.name ?? author ?? "its contributors"}; its package has no text of the license.`
      : readFileSync(join(directory, file), "utf8").trim();
  return `${name} ${version} (${license})\n\n${text}\n`;
});
writeFileSync("dist/LICENSES.txt", terms.join(`\n${"-".repeat(72)}\n\n`));
