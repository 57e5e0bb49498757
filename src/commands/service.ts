/**
 * `vtep service`: makes this package a service of systemd's, from wherever it is installed. The units are
 * those of `systemd/`, which the Debian package brings along as they are; here they are written for the
 * place where this package and its Node are.
 *
 * What was changed by hand is not overwritten: whatever is written begins with a line that says so, and
 * drop-ins (`systemctl edit`) are the place for changes. A configuration is never touched.
 */
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import type { Command } from "commander";
import { EXIT_FAILURE, VtepError } from "../errors.ts";
import { group } from "./ask.ts";
import { example } from "./config.ts";

/** From `systemd/`, and where each goes. */
const FILES = [
  ["vtep.service", "/etc/systemd/system/vtep.service"],
  ["vtep@.service", "/etc/systemd/system/vtep@.service"],
  ["vtep.socket", "/etc/systemd/system/vtep.socket"],
  ["vtep-docker.service", "/etc/systemd/system/vtep-docker.service"],
  ["vtep-docker.socket", "/etc/systemd/system/vtep-docker.socket"],
  ["sysusers.conf", "/etc/sysusers.d/vtep.conf"],
  ["tmpfiles.conf", "/etc/tmpfiles.d/vtep.conf"],
] as const;
/** Those that are no template; each socket before its service, which it would start again. */
const UNITS = ["vtep-docker.socket", "vtep-docker.service", "vtep.socket", "vtep.service"];
const CONFIGURATION = "/etc/vtep/vtep.yaml";
const LEFT = ["/etc/vtep", "/var/lib/vtep", "the user vtep"];

/** As the Debian package installs it. */
const PACKAGED = "/lib/systemd/system/vtep.service";
const MARK =
  '# Written by "vtep service install", which writes it again: make changes with systemctl edit.\n';

/** What the unit hides from the service (ProtectHome=, PrivateTmp=). */
const HIDDEN = /^\/(home|root|run\/user|tmp|var\/tmp)\//;

/** Where things are: this package, the Node that runs it, and the root of the system that is meant. */
export interface Place {
  readonly home: string;
  readonly runtime: string;
  readonly root: string;
}

export function addServiceCommand(vtep: Command): void {
  const description = "Make this package a service of systemd, or say what became of it";
  const service = group(vtep, "service", description);
  const add = (name: string, description: string, act: (place: Place) => readonly string[]) => {
    service
      .command(name)
      .description(description)
      .option("--root <DIR>", "work on the system whose root is there, and start nothing")
      .action(({ root = "/" }: { root?: string }) => {
        for (const line of act({ ...here(), root: resolve(root) })) console.log(line);
      });
  };
  add("install", "write the units, the user and the directories; start nothing", install);
  add("uninstall", "stop the service and remove its units; leave the configuration", uninstall);
  add("status", "say what is installed, and what systemd makes of it", status);
}

function here(): Place {
  const home = fileURLToPath(new URL("../..", import.meta.url)).replace(/\/$/, "");
  return { home, runtime: process.execPath, root: "/" };
}

// ---- install

/** What it did, a line each. Throws VtepError. */
export function install(place: Place): string[] {
  refusePackaged(place);
  for (const path of [place.home, place.runtime]) {
    if (!HIDDEN.test(path)) continue;
    throw new VtepError(
      "USAGE",
      `${path} is hidden from the service by its sandbox: install Node and this package for all users (npm install --global), outside of /home, /root and /tmp`,
    );
  }
  const files = FILES.map(([name, path]) => ({ path, text: unit(place, name) }));
  for (const { path } of files) refuseForeign(join(place.root, path));
  const said = files.map(({ path, text }) => put(place, path, text));
  if (!existsSync(join(place.root, CONFIGURATION))) {
    said.push(put(place, CONFIGURATION, example()));
  }
  const root = place.root === "/" ? [] : [`--root=${place.root}`];
  run("systemd-sysusers", [...root, "vtep.conf"]);
  run("systemd-tmpfiles", [...root, "--create", "vtep.conf"]);
  if (isBooted(place)) run("systemctl", ["daemon-reload"]);
  return [...said, `next: edit ${CONFIGURATION}, then systemctl enable --now vtep`];
}

/** A file of `systemd/` for this place. */
function unit({ home, runtime }: Place, name: string): string {
  const text = readFileSync(join(home, "systemd", name), "utf8");
  const command = [runtime, join(home, "dist/cli.js")].map(quoted).join(" ");
  const readme = encodeURI(join(home, "README.md")).replaceAll("%", "%%");
  return (
    MARK +
    text
      .replaceAll("=/usr/bin/vtep ", () => `=${command} `)
      .replaceAll("file:/usr/share/doc/vtep/README.md", () => `file:${readme}`)
  );
}

/** A word of a unit's command line (systemd.service(5), "Command lines"). */
function quoted(word: string): string {
  const escaped = word.replaceAll("%", "%%").replaceAll("$", "$$$$").replace(/[\\"]/g, "\\$&");
  return /[^\w/.:@+-]/.test(word) ? `"${escaped}"` : escaped;
}

function put({ root }: Place, path: string, text: string): string {
  const target = join(root, path);
  if (contentOf(target) === text) return `unchanged ${path}`;
  privileged(`writing ${path}`, () => {
    mkdirSync(dirname(target), { recursive: true });
    writeFileSync(target, text);
  });
  return `wrote ${path}`;
}

// ---- uninstall

/** What it did, a line each. Throws VtepError. */
export function uninstall(place: Place): string[] {
  refusePackaged(place);
  const there = FILES.filter(([, path]) => existsSync(join(place.root, path)));
  if (there.length === 0) return ["no service is installed"];
  for (const [, path] of there) refuseForeign(join(place.root, path));
  if (isBooted(place)) {
    // A template stands for its instances when it is disabled, but not when it is stopped.
    run("systemctl", ["stop", ...UNITS, "vtep@*.service"]);
    run("systemctl", ["disable", "--quiet", ...UNITS, "vtep@.service"]);
  }
  for (const [, path] of there) {
    privileged(`removing ${path}`, () => rmSync(join(place.root, path)));
  }
  if (isBooted(place)) run("systemctl", ["daemon-reload"]);
  return [...there.map(([, path]) => `removed ${path}`), `left in place: ${LEFT.join(", ")}`];
}

// ---- status

/** What there is, a line each; sets the exit code to 1 unless it is installed as it should be. */
export function status(place: Place): string[] {
  if (existsSync(join(place.root, PACKAGED))) {
    return [`installed by the Debian package: ${PACKAGED}`, ...states(place)];
  }
  const files = FILES.map(([name, path]) => {
    const content = contentOf(join(place.root, path));
    if (content === undefined) return { path, is: "missing" };
    return {
      path,
      is: content === unit(place, name) ? "installed" : "of another version or place",
    };
  });
  const remedy = "run: vtep service install";
  if (files.some(({ is }) => is !== "installed")) process.exitCode = EXIT_FAILURE;
  if (files.every(({ is }) => is === "missing")) return [`no service is installed; ${remedy}`];
  const said = files.map(({ path, is }) => {
    return `${is === "installed" ? is : `${is} (${remedy})`}: ${path}`;
  });
  return [...said, ...states(place)];
}

/** What systemd says of the units that it knows. */
function states(place: Place): string[] {
  if (!isBooted(place)) return ["systemd does not run here"];
  const shown = run("systemctl", [
    ...["show", "--property=Id,ActiveState,SubState,UnitFileState,StatusText"],
    ...UNITS.toReversed(),
    "vtep@*.service",
  ]);
  return shown.split("\n\n").map((text) => {
    const lines = text.trim().split("\n");
    const unit = Object.fromEntries(lines.map((line) => line.split(/=(.*)/s)));
    const { Id, ActiveState, SubState, UnitFileState, StatusText } = unit;
    const enabled = UnitFileState ? `, ${UnitFileState}` : "";
    return `${Id}: ${ActiveState} (${SubState})${enabled}${StatusText ? `: ${StatusText}` : ""}`;
  });
}

// ---- the system

/** sd_booted(3) */
function isBooted({ root }: Place): boolean {
  return root === "/" && existsSync("/run/systemd/system");
}

function refusePackaged({ root }: Place): void {
  if (!existsSync(join(root, PACKAGED))) return;
  throw new VtepError(
    "USAGE",
    `the service belongs to the Debian package (${PACKAGED}): install and remove it with apt`,
  );
}

function refuseForeign(path: string): void {
  const content = contentOf(path);
  if (content === undefined || content.startsWith(MARK)) return;
  throw new VtepError(
    "USAGE",
    `${path} was not written by "vtep service install": move it away first, and keep what you need in a drop-in (systemctl edit)`,
  );
}

function contentOf(path: string): string | undefined {
  return existsSync(path) ? readFileSync(path, "utf8") : undefined;
}

function privileged(what: string, act: () => void): void {
  try {
    act();
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code !== "EACCES" && code !== "EPERM") {
      throw new VtepError("SYSTEM", `${what} failed: ${message}`, error);
    }
    throw new VtepError("PERMISSION", `${what} needs root: run it with sudo`, error);
  }
}

function run(command: string, args: readonly string[]): string {
  try {
    return execFileSync(command, args, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
  } catch (error) {
    const { code, stderr = "", message } = error as NodeJS.ErrnoException & { stderr?: string };
    if (code === "ENOENT") {
      throw new VtepError("SYSTEM", `the command ${command} is missing: install systemd`, error);
    }
    const refusal = stderr.trim().split("\n")[0] || message;
    throw new VtepError("SYSTEM", `"${command} ${args.join(" ")}" failed: ${refusal}`, error);
  }
}
