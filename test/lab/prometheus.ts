import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";

/** A program of Prometheus: as it is installed, or as setup.sh has unpacked it. */
export function prometheusProgram(name: "prometheus" | "promtool"): string {
  const unpacked = fileURLToPath(
    new URL(`../../build/prometheus/usr/bin/${name}`, import.meta.url),
  );
  return existsSync(unpacked) ? unpacked : name;
}

/** Runs promtool; what it said, and its exit code. */
export async function promtool(args: readonly string[], input = "") {
  const child = spawn(prometheusProgram("promtool"), args);
  child.stdin.end(input);
  const [said, complained, [code]] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
    once(child, "close"),
  ]);
  return { code: code as number, output: said + complained };
}

/** The samples in Prometheus' text format: name with labels as written, and value. */
export function samples(exposition: string): Map<string, number> {
  const lines = exposition.split("\n").filter((line) => line !== "" && !line.startsWith("#"));
  return new Map(
    lines.map((line) => {
      const at = line.lastIndexOf(" ");
      return [line.slice(0, at), Number(line.slice(at + 1))];
    }),
  );
}
