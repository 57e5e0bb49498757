import { once } from "node:events";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync } from "node:fs";
import { basename, join } from "node:path";
import { ROOT } from "../native/fixture.ts";
import { unlessGone } from "./gone.ts";
import type { Host } from "./host.ts";
import type { Child, Finished } from "./namespace.ts";
import { until } from "./until.ts";

/** Where a machine has this repository, read-only. */
export const PACKAGE = "/opt/vtep";

/**
 * A system whose first process is a real systemd, in the network namespace of a host.
 *
 * It has the files of this machine, and forgets what it does to them: they are the lower layer of an
 * overlay whose upper one is in memory. Processes, mounts, host name and cgroups are its own; /tmp, /run
 * and /dev are new. What is under /proc/sys is read-only, and whatever would set kernel
 * parameters, load modules or manage devices is masked: there is one kernel, and it is this machine's.
 */
export class Machine implements AsyncDisposable {
  readonly #host: Host;
  readonly #outer: Child;
  readonly #pid: number;
  readonly #cgroup: string;

  private constructor(host: Host, outer: Child, pid: number, cgroup: string) {
    this.#host = host;
    this.#outer = outer;
    this.#pid = pid;
    this.#cgroup = cgroup;
  }

  static async boot(host: Host): Promise<Machine> {
    removeAbandoned();
    const cgroup = join(cgroups(), host.name);
    mkdirSync(cgroup);
    const outer = host.spawn("sh", "-euc", ENTER, "sh", cgroup, BOOT, ROOT);
    let said = "";
    for (const stream of [outer.stdout, outer.stderr]) {
      stream.setEncoding("utf8").on("data", (text) => {
        said += text;
      });
    }
    outer.stdin.end();
    try {
      const pid = await until("a first process", () => {
        if (outer.exitCode !== null) throw new Error(`the machine did not boot: ${said}`);
        return childOf(outer.pid!);
      });
      const machine = new Machine(host, outer, pid, cgroup);
      await until("a booted machine", () => machine.#isRunning(said), 20_000);
      return machine;
    } catch (error) {
      outer.kill("SIGKILL");
      throw new Error(`${(error as Error).message}: ${said}`);
    }
  }

  /** Runs a command in it to its end, whatever that is. */
  finish(...command: string[]): Promise<Finished> {
    const enter = ["nsenter", `--target=${this.#pid}`, "--mount", "--uts", "--ipc", "--pid"];
    return this.#host.finish([...enter, "--cgroup", "--wdns=/", "--", ...command]);
  }

  /** Runs a command in it that must succeed, and returns what it printed. */
  async run(...command: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.finish(...command);
    if (code === 0) return stdout;
    throw new Error(`${command.join(" ")}: exit ${code}: ${stderr || stdout}`);
  }

  async write(path: string, text: string): Promise<void> {
    await this.run(
      "sh",
      "-euc",
      'mkdir -p "$(dirname "$1")"; printf %s "$2" >"$1"',
      "sh",
      path,
      text,
    );
  }

  /** Properties of a unit, by name. */
  async show(unit: string, ...properties: string[]): Promise<Record<string, string>> {
    const said = await this.run("systemctl", "show", `--property=${properties}`, unit);
    return Object.fromEntries(
      said
        .trim()
        .split("\n")
        .map((line) => line.split(/=(.*)/s)),
    );
  }

  /** The journal of a unit, oldest first. */
  async journal(unit: string): Promise<Record<string, string>[]> {
    await this.run("journalctl", "--sync");
    const lines = await this.run("journalctl", "--output=json", `--unit=${unit}`);
    return lines
      .trim()
      .split("\n")
      .filter(Boolean)
      .map((line) => JSON.parse(line));
  }

  /** A process of it, as this machine knows it. */
  outerPid(inner: number): number {
    const pids = readdirSync("/proc").filter((name) => /^\d+$/.test(name));
    const isIt = (pid: string) => {
      const ids = /^NSpid:\t(.*)$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
      return ids?.split("\t").at(-1) === `${inner}` && isIn(pid, this.#cgroup);
    };
    const pid = pids.find((pid) => unlessGone(() => isIt(pid)));
    if (pid === undefined) throw new Error(`the machine has no process ${inner}`);
    return Number(pid);
  }

  /** Powers it off. */
  async [Symbol.asyncDispose](): Promise<void> {
    const ended = once(this.#outer, "close");
    process.kill(this.#pid, 37); // SIGRTMIN+3: halt
    const impatience = setTimeout(() => this.#outer.kill("SIGKILL"), 10_000);
    await ended;
    clearTimeout(impatience);
    await until("no process in its cgroup", () => remove(this.#cgroup));
  }

  async #isRunning(said: string): Promise<boolean> {
    if (this.#outer.exitCode !== null) throw new Error(`the machine went down: ${said}`);
    const { stdout } = await this.finish("systemctl", "is-system-running");
    return /^(running|degraded)$/.test(stdout.trim());
  }
}

/** Moves itself into a cgroup, which then is the root of those that the machine sees, and boots it. */
const ENTER = `
echo $$ >"$1/cgroup.procs"
exec unshare --pid --fork --kill-child --mount --propagation private --uts --ipc --cgroup \\
  sh -euc "$2" sh "$3"
`;

const MASKED = [
  ...["sysctl", "modules-load", "udevd", "udev-trigger", "udev-settle", "networkd", "resolved"],
  ...["timesyncd", "logind", "binfmt", "random-seed", "hwdb-update"],
];

const BOOT = `
hostname machine
mount -t tmpfs -o size=512m tmpfs /mnt
cd /mnt
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
cd root
mkdir -p .${PACKAGE}
mount --bind "$1" .${PACKAGE}
mount -o remount,bind,ro .${PACKAGE}
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/net dev/pts dev/shm
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/zero c 1 5
mknod -m 666 dev/full c 1 7
mknod -m 666 dev/random c 1 8
mknod -m 666 dev/urandom c 1 9
mknod -m 666 dev/tty c 5 0
mknod -m 666 dev/kmsg c 1 11
mknod -m 666 dev/net/tun c 10 200
ln -s /proc/self/fd dev/fd
# PrivateDevices=yes takes over both.
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
for unit in ${MASKED.join(" ")}; do ln -sf /dev/null etc/systemd/system/systemd-$unit.service; done
# Nothing but what a test installs is to be there.
rm -rf etc/systemd/system/*.wants var/log/journal
mkdir -p old
pivot_root . old
umount -l /old
exec env -i container=x PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
  /lib/systemd/systemd --system --unit=basic.target --log-target=journal --show-status=false
`;

/** Where cgroups of version 2 are, beside those of version 1 or alone. */
function cgroups(): string {
  const mounts = readFileSync("/proc/self/mounts", "utf8").split("\n");
  const mount = mounts.map((line) => line.split(" ")).find(([, , type]) => type === "cgroup2");
  if (mount === undefined) throw new Error("a machine needs cgroups of version 2");
  return mount[1]!;
}

/** Removes a cgroup and those within; false while there are processes in it. */
function remove(cgroup: string): boolean {
  const within = unlessGone(() => readdirSync(cgroup, { withFileTypes: true })) ?? [];
  const groups = within.filter((entry) => entry.isDirectory());
  if (!groups.every(({ name }) => remove(join(cgroup, name)))) return false;
  try {
    unlessGone(() => rmdirSync(cgroup));
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EBUSY") return false;
    throw error;
  }
}

/** The cgroups of machines whose process was killed: a host's name begins with that of its lab. */
function removeAbandoned(): void {
  for (const name of readdirSync(cgroups())) {
    const pid = /^lab-(\d+)-/.exec(name)?.[1];
    if (pid !== undefined && !existsSync(`/proc/${pid}`)) remove(join(cgroups(), name));
  }
}

function isIn(pid: string, cgroup: string): boolean {
  return readFileSync(`/proc/${pid}/cgroup`, "utf8").includes(`/${basename(cgroup)}/`);
}

function childOf(pid: number): number | undefined {
  const children = unlessGone(() => readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8"));
  return Number(children?.split(" ")[0]) || undefined;
}
