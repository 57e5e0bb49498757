/** The Debian package: built, and installed in a machine of the lab, with systemd running and without. */
import { execFileSync } from "node:child_process";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Lab } from "../lab/lab.ts";
import { Machine, PACKAGE } from "../lab/systemd.ts";
import { reach } from "../lab/traffic.ts";
import { ROOT } from "../native/fixture.ts";

const lab = await Lab.draw({ hosts: 2 });
afterAll(() => lab[Symbol.asyncDispose]());
const [ours, theirs] = [lab.host(1), lab.host(2)];
const here = await ours.container();
const there = await theirs.container();
await theirs.kernelVxlan({ vni: 42, peers: [ours.address] });
const untouched = await ours.links();
const machine = await Machine.boot(ours);
afterAll(() => machine[Symbol.asyncDispose]());

const systemctl = (...args: string[]) => machine.run("systemctl", ...args);
const configuration = "/etc/vtep/vtep.yaml";
let package_: string;

beforeAll(async () => {
  const built = execFileSync("npm", ["run", "--silent", "deb"], { cwd: ROOT, encoding: "utf8" });
  package_ = `${PACKAGE}/${built.trim().split("\n").at(-1)}`;
  await machine.run("rm", "-f", "/usr/sbin/policy-rc.d"); // which keeps packages from restarting services
}, 120_000);

test("holds what runs, and nothing that only builds or tests", () => {
  const built = package_.replace(PACKAGE, ROOT);
  const listed = execFileSync("dpkg-deb", ["--contents", built], { encoding: "utf8" });
  const files = listed.split("\n").map((line) => line.split(/\s+/)[5] ?? "");
  const modules = files.flatMap(
    (file) => /node_modules\/((?:@[^/]+\/)?[^/]+)\/package.json$/.exec(file)?.[1] ?? [],
  );
  expect(modules).toEqual(["nan", "raw-socket"]); // the others are inside dist/
  const results = files.filter((file) => /\/raw-socket\/build\/.*[^/]$/.test(file));
  expect(results.filter((file) => !file.endsWith(".node"))).toEqual([]);
  const owners = listed
    .trim()
    .split("\n")
    .map((line) => line.split(/\s+/)[1]);
  expect(new Set(owners)).toEqual(new Set(["root/root"]));
  const depends = execFileSync("dpkg-deb", ["--field", built, "Depends"], { encoding: "utf8" });
  expect(depends).toMatch(/nodejs \(>= 20\.4\), iproute2, .*libc6 \(>= [\d.]+\)/);
});

test("is installed, runs, and is removed where systemd does not", async () => {
  const hidden = async (command: string) =>
    machine.run(
      "unshare",
      "--mount",
      "sh",
      "-euc",
      `mount -t tmpfs tmpfs /run/systemd; ${command}`,
    );
  await hidden(`dpkg --install ${package_}`);
  const { version } = JSON.parse(await machine.run("cat", "/usr/lib/vtep/package.json"));
  expect(await machine.run("vtep", "--version")).toBe(`${version}\n`);
  expect(await machine.run("id", "vtep")).toContain("(vtep)");
  await hidden("dpkg --purge vtep");
  expect((await machine.finish("vtep", "--version")).code).not.toBe(0);
  expect((await machine.finish("ls", "/usr/lib/vtep", "/etc/vtep")).stdout).toBe("");
});

describe("where systemd runs", () => {
  test("is installed without being started, with an example for its configuration", async () => {
    await machine.run("dpkg", "--install", package_);
    expect(await machine.run("vtep", "config", "check")).toBe(
      `${configuration}: fine, 1 network\n`,
    );
    expect(await machine.show("vtep", "ActiveState", "UnitFileState")).toEqual({
      ActiveState: "inactive",
      UnitFileState: "disabled",
    });
    const units = ["vtep.service", "vtep@.service", "vtep.socket"];
    const paths = units.map((unit) => `/lib/systemd/system/${unit}`);
    expect(await machine.finish("systemd-analyze", "verify", "--man=no", ...paths)).toEqual({
      code: 0,
      stdout: "",
      stderr: "",
    });
  });

  test("crosses when its configuration says where to", async () => {
    await machine.write(
      configuration,
      `networks: [{ vni: 42, peers: [${theirs.address}], bridge: br0 }]`,
    );
    await systemctl("enable", "--now", "vtep");
    await reach(here, there.address);
    expect(await machine.run("vtep", "service", "status")).toBe(
      "installed by the Debian package: /lib/systemd/system/vtep.service\n" +
        "vtep.service: active (running), enabled: forwarding network 42 (vtep42)\n" +
        "vtep.socket: inactive (dead), disabled\n" +
        "vtep-docker.service: inactive (dead), static\n" +
        "vtep-docker.socket: inactive (dead), disabled\n",
    );
    for (const act of ["install", "uninstall"]) {
      expect(await machine.finish("vtep", "service", act)).toMatchObject({
        code: 2,
        stderr: expect.stringMatching(/^vtep: [^\n]*Debian package[^\n]*with apt\n$/),
      });
    }
  });

  test("is restarted by an upgrade, and keeps its configuration", async () => {
    const pid = async () => (await machine.show("vtep", "MainPID")).MainPID;
    const before = await pid();
    const newer = `
      dpkg-deb --raw-extract ${package_} /tmp/newer
      find /tmp/newer -name vtep.yaml -exec sed --in-place '$ a # newer' {} +
      sed --in-place 's/^Version: .*/&+1/' /tmp/newer/DEBIAN/control
      dpkg-deb -Znone --build /tmp/newer /tmp/newer.deb`;
    await machine.run("sh", "-euc", newer);
    await machine.run("dpkg", "--install", "/tmp/newer.deb"); // which nobody is there to answer
    expect(await pid()).not.toBe(before);
    expect(await machine.show("vtep", "ActiveState", "UnitFileState")).toEqual({
      ActiveState: "active",
      UnitFileState: "enabled",
    });
    expect(await machine.run("cat", configuration)).toContain("vni: 42");
    expect(await machine.run("ls", "/etc/vtep")).toBe("vtep.yaml\n");
    await reach(here, there.address);
  });

  test("is left alone by what becomes of it in another root (dpkg --root)", async () => {
    const scripts =
      "cd /var/lib/dpkg/info; ./vtep.prerm remove; ./vtep.postrm remove; ./vtep.postrm purge";
    await machine.run("env", "DPKG_ROOT=/nowhere", "sh", "-euc", scripts);
    expect(await machine.show("vtep", "ActiveState")).toEqual({ ActiveState: "active" });
    expect(await machine.run("cat", configuration)).toContain("vni: 42");
  });

  test("stops when it is removed, and is gone but for its configuration until that is purged", async () => {
    await machine.run("dpkg", "--remove", "vtep");
    expect(await ours.links()).toEqual(untouched);
    expect(await machine.run("cat", configuration)).toContain("vni: 42");
    await machine.run("dpkg", "--purge", "vtep");
    const left = await machine.run(
      "find",
      "/etc",
      "/lib",
      "/usr/lib",
      "/var/lib",
      "-name",
      "vtep*",
      "-not",
      "-path",
      "*/node_modules/*",
    );
    expect(left).toBe("");
  });
});
