/**
 * Compiles src/ to dist/, with the modules that it uses: a start then reads a dozen files instead of some
 * four hundred, which is most of what starting takes.
 *
 * dist/cli.js and dist/vtep-cni.js are the commands; dist/parts/ holds what it loads, among it the entry of a forwarding thread.
 * Whatever finds a file by where its own is (`import.meta.url`) is in dist/parts/, which is as deep in
 * this package as the directories of src/ that it is in. Left outside are raw-socket, which is optional and has an addon of its own, and the
 * validators that hono-openapi would load for users of others than ours. dist/LICENSES.txt has the terms
 * of all that is inside.
 */
import { readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { chmod } from "node:fs/promises";
import { join } from "node:path";
import { build } from "esbuild";

rmSync("dist", { recursive: true, force: true });
const { metafile } = await build({
  entryPoints: {
    cli: "src/cli.ts",
    "vtep-cni": "src/vtep-cni.ts",
    "parts/worker": "src/worker.ts",
  },
  outdir: "dist",
  chunkNames: "parts/[name]-[hash]",
  bundle: true,
  splitting: true,
  format: "esm",
  platform: "node",
  target: "node20",
  sourcemap: true,
  sourcesContent: false,
  external: ["raw-socket"],
  // Modules in CommonJS ask for Node's own with require().
  banner: {
    js: 'import { createRequire as requireOf } from "node:module"; const require = requireOf(import.meta.url);',
  },
  metafile: true,
  logLevel: "warning",
});
for (const command of ["dist/cli.js", "dist/vtep-cni.js"]) {
  await chmod(command, 0o755);
  for (const file of Object.keys(metafile.outputs[command].inputs)) {
    if (!readFileSync(file, "utf8").includes("import.meta.url")) continue;
    throw new Error(`${file} would look for files from dist/, and not from dist/parts/`);
  }
}

const inside = new Set(
  Object.keys(metafile.inputs).flatMap((file) => {
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
