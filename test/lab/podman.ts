/** Podman with CNI as its network backend in a host of a lab. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Host } from "./host.ts";
import { busyboxImage } from "./image.ts";
import type { Finished } from "./namespace.ts";

/** Our CNI plugin, as it is built. */
export const PLUGIN = fileURLToPath(new URL("../../dist/vtep-cni.js", import.meta.url));

export class Podman implements AsyncDisposable {
  readonly #host: Host;
  readonly #root = mkdtempSync(join(tmpdir(), "vtep-podman-"));
  readonly #file = join(this.#root, "containers.conf");

  /** With one network, `web`, of these CNI plugins, and an image `box` that has busybox. */
  static async start(host: Host, plugins: readonly object[]): Promise<Podman> {
    const podman = new Podman(host);
    podman.#configure(plugins);
    await podman.done("import", await busyboxImage(host, podman.#root), "box");
    return podman;
  }

  private constructor(host: Host) {
    this.#host = host;
  }

  #configure(list: readonly object[]): void {
    const [networks, plugins] = [join(this.#root, "net.d"), join(this.#root, "plugins")];
    for (const directory of [networks, plugins]) mkdirSync(directory);
    const network = { cniVersion: "0.4.0", name: "web", plugins: list };
    writeFileSync(join(networks, "web.conflist"), JSON.stringify(network));
    const run = `#!/bin/sh\nexec node ${PLUGIN}\n`;
    writeFileSync(join(plugins, "vtep-cni"), run, { mode: 0o755 });
    writeFileSync(
      this.#file,
      `[containers]
default_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]
[network]
network_backend = "cni"
cni_plugin_dirs = ["${plugins}", "/usr/lib/cni"]
network_config_dir = "${networks}"
default_network = "web"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
`,
    );
  }

  finish(...args: string[]): Promise<Finished> {
    const own = ["--root", join(this.#root, "root"), "--runroot", join(this.#root, "run")];
    const command = ["env", `CONTAINERS_CONF=${this.#file}`, "podman", ...own, ...args];
    return this.#host.finish(command, { timeoutMs: 60_000 });
  }

  /** One that must succeed; returns what it printed. */
  async done(...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.finish(...args);
    if (code !== 0) throw new Error(`podman ${args.join(" ")}: ${stderr}`);
    return stdout.trim();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.finish("rm", "--all", "--force", "--time", "0");
    await this.#host.finish([
      "podman",
      "--root",
      join(this.#root, "root"),
      "system",
      "reset",
      "-f",
    ]);
    rmSync(this.#root, { recursive: true, force: true });
  }
}
