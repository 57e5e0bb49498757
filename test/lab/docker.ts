/** Debian's Docker Engine in a host of a lab, and the network driver beside it. */
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ROOT } from "../native/fixture.ts";
import type { Host } from "./host.ts";
import { busyboxImage } from "./image.ts";
import type { Child, Finished } from "./namespace.ts";
import { until } from "./until.ts";
import { cli, type Vtep } from "./vtep.ts";

const ENGINE = join(ROOT, "build/docker/usr");
const PLUGINS = "/run/docker/plugins";

export class Docker implements AsyncDisposable {
  /** What Docker calls the driver: the name of its socket. */
  readonly driver = `vtep-${process.pid}`;
  readonly plugin = join(PLUGINS, `${this.driver}.sock`);
  readonly socket: string;
  /** Where the driver keeps which network is which. */
  readonly state: string;
  readonly #host: Host;
  readonly #scratch = mkdtempSync(join(tmpdir(), "vtep-docker-"));
  #driver: Child | undefined;
  #daemon: Child | undefined;

  /** With the driver, asking that agent, and an image `box` that has busybox. */
  static async start(host: Host, vtep: Vtep): Promise<Docker> {
    const docker = new Docker(host);
    mkdirSync(PLUGINS, { recursive: true });
    await docker.startDriver(vtep);
    await docker.startDaemon();
    await docker.done("import", await busyboxImage(host, docker.#scratch), "box");
    return docker;
  }

  private constructor(host: Host) {
    this.#host = host;
    this.socket = join(this.#scratch, "docker.sock");
    this.state = join(this.#scratch, "state.json");
  }

  async startDriver(vtep: Vtep): Promise<void> {
    const where = ["--listen", this.plugin, "--state", this.state];
    this.#driver = this.#host.spawn(
      "node",
      cli,
      "docker-plugin",
      ...where,
      "--socket",
      vtep.socket,
    );
    this.#driver.stdin.end();
    await until("the driver", () => existsSync(this.plugin));
  }

  async stopDriver(): Promise<void> {
    await ended(this.#driver);
  }

  async startDaemon(): Promise<void> {
    const paths = `PATH=${ENGINE}/sbin:${ENGINE}/bin:${process.env.PATH}`;
    const at = (part: string) => join(this.#scratch, part);
    const settings = at("daemon.json");
    writeFileSync(settings, "{}");
    const args = [
      ...["--config-file", settings, "-H", `unix://${this.socket}`, "-p", at("pid")],
      ...["--data-root", at("root"), "--exec-root", at("exec"), "--bip", "172.29.0.1/24"],
      ...["--oom-score-adjust", "0"],
    ];
    const daemon = this.#host.spawn("env", paths, "dockerd", ...args);
    this.#daemon = daemon;
    daemon.stdin.end();
    let said = "";
    daemon.stdout.resume();
    daemon.stderr.setEncoding("utf8").on("data", (piece) => {
      said += piece;
    });
    const answers = async () => (await this.finish("version")).code === 0;
    await until("the daemon", answers, 20_000).catch((error: Error) => {
      throw new Error(`${error.message}: ${said.slice(-3000)}`);
    });
  }

  async stopDaemon(): Promise<void> {
    await ended(this.#daemon);
  }

  /** A command of the client to its end. */
  finish(...args: string[]): Promise<Finished> {
    const client = [join(ENGINE, "bin/docker"), "-H", `unix://${this.socket}`];
    return this.#host.finish([...client, ...args], { timeoutMs: 60_000 });
  }

  /** One that must succeed; returns what it printed. */
  async done(...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.finish(...args);
    if (code !== 0) throw new Error(`docker ${args.join(" ")}: ${stderr}`);
    return stdout.trim();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stopDaemon();
    await this.stopDriver();
    await until("no socket", () => !existsSync(this.plugin));
    rmSync(this.#scratch, { recursive: true, force: true });
  }
}

async function ended(child: Child | undefined): Promise<void> {
  child?.kill();
  await until("its end", () => child === undefined || child.exitCode !== null, 20_000);
}
