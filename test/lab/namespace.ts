import { type ChildProcessByStdio, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync } from "node:fs";
import type { Readable, Writable } from "node:stream";
import { text } from "node:stream/consumers";

export type Child = ChildProcessByStdio<Writable, Readable, Readable>;

export interface Finished {
  code: number | null;
  stdout: string;
  stderr: string;
}

/**
 * One network namespace and the processes that run in it.
 *
 * Processes enter with `nsenter`, which keeps the machine's /sys (`ip netns exec` would remount it),
 * and carry a parent-death signal, so that none outlives the lab even when that is killed outright.
 */
export class Namespace {
  readonly name: string;
  /** Told of every process as it is started. */
  onSpawn: (child: Child) => void = () => {};
  readonly #children = new Set<Child>();

  constructor(name: string) {
    this.name = name;
  }

  /** Starts a process; its pid is the command's own. It is ended with the lab at the latest. */
  spawn(command: string, ...args: string[]): Child {
    const enter = [`--net=/run/netns/${this.name}`, "setpriv", "--pdeathsig", "KILL"];
    const child = spawn("nsenter", [...enter, command, ...args], { stdio: "pipe" });
    this.#children.add(child);
    this.onSpawn(child);
    child.once("close", () => this.#children.delete(child));
    child.stdin.on("error", () => {}); // it may end without having read everything
    return child;
  }

  /** Runs a command to its end, whatever that is; killed after `timeoutMs`. */
  async finish(
    command: string[],
    { input = "", timeoutMs = 30_000 }: { input?: string; timeoutMs?: number } = {},
  ): Promise<Finished> {
    const child = this.spawn(command[0]!, ...command.slice(1));
    const timer = setTimeout(() => child.kill("SIGKILL"), timeoutMs);
    child.stdin.end(input);
    const closed = once(child, "close");
    const [stdout, stderr] = await Promise.all([text(child.stdout), text(child.stderr)]);
    const [code] = (await closed) as [number | null];
    clearTimeout(timer);
    return { code, stdout, stderr };
  }

  /** Runs a command that must succeed and returns what it printed. */
  async run(...command: string[]): Promise<string> {
    return succeeded(command.join(" "), await this.finish(command));
  }

  /** One `ip` command per line, all of which must succeed. */
  async ip(...lines: string[]): Promise<void> {
    succeeded(lines.join("; "), await this.finish(["ip", "-batch", "-"], { input: batch(lines) }));
  }

  /** Sets kernel parameters under /proc/sys/net; a `*` is expanded, a file that is absent left out. */
  async sysctl(parameters: Record<string, number | string>): Promise<void> {
    const lines = Object.entries(parameters).map(
      ([path, value]) =>
        `for f in /proc/sys/net/${path}; do [ ! -e "$f" ] || echo ${value} >"$f"; done`,
    );
    await this.run("sh", "-c", lines.join("\n"));
  }

  /** What the kernel has counted here under one of nstat's names. */
  async counted(name: string): Promise<number> {
    return JSON.parse(await this.run("nstat", "-asz", "--json")).kernel[name];
  }

  /** A rule of nftables, before what others do to packets that come in or pass through. */
  async rule(hook: "prerouting" | "forward", words: string): Promise<Rule> {
    const rule = new Rule(this);
    const chain = `type filter hook ${hook} priority -300;`;
    const input = `table inet ${rule.table} { chain c { ${chain} ${words}\n}\n}`;
    succeeded(words, await this.finish(["nft", "-f", "-"], { input }));
    return rule;
  }

  /** The names of the interfaces in this namespace, sorted. */
  async links(): Promise<string[]> {
    const links = JSON.parse(await this.run("ip", "-json", "link")) as { ifname: string }[];
    return links.map((link) => link.ifname).sort();
  }

  /** Ends every process at once. Synchronous, so that it works in an exit handler. */
  killAll(): void {
    for (const child of this.#children) child.kill("SIGKILL");
  }

  /** Ends every process and waits until none is left. */
  async quiesce(): Promise<void> {
    const gone = [...this.#children].map((child) => once(child, "close"));
    this.killAll();
    await Promise.all(gone);
  }
}

/** A rule that acts until it is disposed of. */
export class Rule implements AsyncDisposable {
  static #last = 0;
  readonly table = `rule${++Rule.#last}`;
  readonly #where: Namespace;

  constructor(where: Namespace) {
    this.#where = where;
  }

  /** The packets that its `counter` has met. */
  async count(): Promise<number> {
    return (await this.counted()).packets;
  }

  /** Those and their bytes, from the IP header on. */
  async counted(): Promise<{ packets: number; bytes: number }> {
    const listed = await this.#where.run("nft", "list", "table", "inet", this.table);
    const [, packets, bytes] = /counter packets (\d+) bytes (\d+)/.exec(listed) ?? [];
    return { packets: Number(packets), bytes: Number(bytes) };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#where.run("nft", "delete", "table", "inet", this.table);
  }
}

/** Creates the namespaces, each with its loopback up and set to add nothing of its own to a test. */
export async function create(...namespaces: Namespace[]): Promise<void> {
  const { status, stderr } = ipNetns(namespaces.map(({ name }) => `add ${name}`));
  if (status !== 0) throw new Error(`ip netns: ${stderr}`);
  await Promise.all(
    namespaces.map(async (namespace) => {
      await namespace.sysctl({
        "ipv6/conf/*/accept_dad": 0, // addresses are usable at once
        "ipv6/conf/*/router_solicitations": 0, // there is no router
        "bridge/bridge-nf-call-*": 0, // or iptables' hooks are measured too
      });
      await namespace.ip("link set lo up");
    }),
  );
}

/** Deletes every namespace whose name `matches`. Synchronous, so that it works in an exit handler. */
export function removeWhere(matches: (name: string) => boolean): void {
  const names = existsSync("/run/netns") ? readdirSync("/run/netns").filter(matches) : [];
  if (names.length === 0) return;
  const { status, signal, stderr } = ipNetns(names.map((name) => `del ${name}`));
  // An impatient second Ctrl-C ends `ip` half-way.
  if (signal !== null) return removeWhere(matches);
  // Another process may have removed some meanwhile: of a lab that is abandoned, whoever draws the next one.
  if (status !== 0 && names.some(exists)) throw new Error(`ip netns: ${stderr}`);
}

function exists(name: string): boolean {
  return existsSync(`/run/netns/${name}`);
}

function ipNetns(lines: string[]) {
  return spawnSync("ip", ["-force", "-batch", "-"], {
    input: batch(lines.map((line) => `netns ${line}`)),
    encoding: "utf8",
  });
}

function batch(lines: string[]): string {
  return `${lines.join("\n")}\n`;
}

/** What it printed. Throws what it said where it failed. */
export function succeeded(what: string, { code, stdout, stderr }: Finished): string {
  if (code !== 0) throw new Error(`${what}: exit ${code}: ${stderr || stdout}`);
  return stdout;
}
