/**
 * Other tunnels in user space, as Debian packages them, without encryption and otherwise as they come.
 *
 * Each is set up on both hosts, unless told, and there makes a TAP, which joins the bridge where ours does:
 *
 * ```
 *  container ── br0 ── TAP ── its process ── eth0 ══ underlay
 * ```
 *
 * All of them are one process a host, except Open vSwitch, which has a database beside it, and vtun, which
 * forks. They run in the foreground, as children of the lab's namespaces: none outlives it. What they are
 * given by way of files lies in a scratch directory of the trial and goes with it.
 */
import { execFileSync } from "node:child_process";
import { generateKeyPairSync } from "node:crypto";
import { once } from "node:events";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import type { Host } from "../test/lab/host.ts";
import type { Lab } from "../test/lab/lab.ts";
import type { Child } from "../test/lab/namespace.ts";
import { reach } from "../test/lab/traffic.ts";
import { until } from "../test/lab/until.ts";
import { Scratch } from "./scratch.ts";

/** What a `Subject` of that family consists of. */
export interface Packaged {
  name: string;
  packages: string[];
  missing(): string | undefined;
  /** On both hosts unless told: the other one has something else there then. */
  start(lab: Lab, hosts?: readonly (1 | 2)[]): Promise<PackagedTunnel>;
}

interface PackagedTunnel extends AsyncDisposable {
  pids: number[];
  description: string;
}

/** Its interface into the bridge, on every host. */
const TAP = "tunnel";
const MTU = 1450;
const PORT = 4790;
/** Where setup.sh has unpacked Open vSwitch, unless it is installed. */
const OVS = fileURLToPath(new URL("../build/openvswitch", import.meta.url));
const PATH = `${process.env.PATH}:${OVS}/usr/bin:${OVS}/usr/sbin:${OVS}/usr/lib/openvswitch-switch`;
/** How long a process may take to end when asked. */
const PATIENCE_MS = 2_000;

export const packaged: Packaged[] = [
  tunnel("openvpn", ["openvpn"], "openvpn", ({ here, there, run }) =>
    run(
      ...["openvpn", "--dev", TAP, "--dev-type", "tap", "--tun-mtu", `${MTU}`, "--proto", "udp4"],
      ...["--local", here, "--remote", there, "--port", `${PORT}`],
      ...["--cipher", "none", "--auth", "none", "--verb", "1"],
    ),
  ),
  tunnel("tinc", ["tinc"], "tincd", tinc),
  tunnel("fastd", ["fastd"], "fastd", fastd),
  tunnel("socat", ["socat"], "socat", ({ here, there, run }) =>
    run(
      ...["socat", `TUN,tun-type=tap,tun-name=${TAP},iff-no-pi`],
      `UDP4-DATAGRAM:${there}:${PORT},bind=${here}:${PORT}`,
    ),
  ),
  tunnel("vxvde", ["vde2"], "vde_plug", async (site) => {
    const { host, run } = site;
    const groups = "239.0.0.0/8 dev eth0"; // where it meets its peers
    await host.ip(`route add ${groups}`);
    site.finally(() => host.ip(`route del ${groups}`));
    await run("vde_plug", `tap://${TAP}`, "vxvde://239.0.0.1/v4/if=eth0");
  }),
  tunnel("vtun", ["vtun"], "vtund", vtun),
  tunnel("ovs", ["openvswitch-switch"], "ovs-vswitchd", openVSwitch),
  {
    name: "n2n",
    packages: [],
    missing: () => "Debian 12 has version 1.3, which always encrypts",
    start: () => Promise.reject(new Error("it always encrypts")),
  },
];

/** One end of a tunnel that is being set up. */
interface Site {
  host: Host;
  /** Addresses in the underlay. */
  here: string;
  there: string;
  /** For its files, its own. */
  directory: string;
  /** Writes one of them, and returns its path. */
  write(name: string, content: string): string;
  /** Starts a process that lasts as long as the tunnel; the last is the one that describes it. */
  run(...command: string[]): Promise<void>;
  /** What has to be undone after the processes have ended. */
  finally(undo: () => Promise<void>): void;
  /** What both ends have to know of each other, made anew for each trial. */
  secrets: Secrets;
}

class Secrets {
  readonly #made = new Map<string, unknown>();

  /** The same for everyone who asks by that name. */
  get<T>(name: string, make: () => T): T {
    if (!this.#made.has(name)) this.#made.set(name, make());
    return this.#made.get(name) as T;
  }
}

function tunnel(
  name: string,
  packages: string[],
  command: string,
  setUp: (site: Site) => Promise<void>,
): Packaged {
  return {
    name,
    packages,
    missing: () =>
      isInstalled(command)
        ? undefined
        : `it is not installed: apt-get install ${packages.join(" ")}, or --install`,
    async start(lab, hosts = [1, 2]) {
      const scratch = Scratch.folder(name);
      const ends: End[] = [];
      const dispose = async () => {
        for (const end of ends) await end[Symbol.asyncDispose]();
        scratch[Symbol.dispose]();
      };
      const secrets = new Secrets();
      try {
        for (const number of hosts) {
          const end = new End(lab.host(number), join(scratch.path, `h${number}`));
          ends.push(end);
          await setUp(end.site(lab.host(3 - number).address, secrets));
        }
        // All of them up first: vtund ends when a frame comes for a TAP that is down.
        for (const end of ends) await end.bringUp();
        for (const end of ends) await end.joinBridge();
      } catch (error) {
        await dispose();
        throw error;
      }
      return {
        pids: ends.flatMap(({ pids }) => pids),
        description: ends[0]!.command.replaceAll(scratch.path, "…"),
        [Symbol.asyncDispose]: dispose,
      };
    },
  };
}

function isInstalled(command: string): boolean {
  try {
    const env = { PATH };
    execFileSync("/bin/sh", ["-c", `command -v ${command}`], { stdio: "ignore", env });
    return true;
  } catch {
    return false;
  }
}

/** The processes of a tunnel on one host. */
class End implements AsyncDisposable {
  readonly #host: Host;
  readonly #directory: string;
  readonly #children: { child: Child; closed: Promise<unknown>; command: string }[] = [];
  readonly #undo: (() => Promise<void>)[] = [];
  #said = "";

  constructor(host: Host, directory: string) {
    this.#host = host;
    this.#directory = directory;
    mkdirSync(directory);
  }

  /** Those it has started and what they have started, but for an unshare, which only waits for its child. */
  get pids(): number[] {
    return this.#children
      .flatMap(({ child }) => familyOf(child.pid!))
      .filter((pid) => !["unshare", undefined].includes(nameOf(pid)));
  }

  get command(): string {
    return this.#children.at(-1)?.command ?? "";
  }

  site(there: string, secrets: Secrets): Site {
    return {
      ...{ host: this.#host, here: this.#host.address, there, directory: this.#directory, secrets },
      write: (name, content) => {
        const path = join(this.#directory, name);
        mkdirSync(join(path, ".."), { recursive: true });
        writeFileSync(path, content, { mode: 0o600 });
        return path;
      },
      run: async (...command) => this.#run(command),
      finally: (undo) => this.#undo.push(undo),
    };
  }

  #run(command: string[]): void {
    const child = this.#host.spawn(command[0]!, ...command.slice(1));
    for (const output of [child.stdout, child.stderr]) {
      output.setEncoding("utf8").on("data", (text: string) => {
        this.#said = (this.#said + text).slice(-2_000);
      });
    }
    const words = command.slice(command[0] === "env" ? 1 : 0).filter((word) => !/^\w+=/.test(word));
    this.#children.push({ child, closed: once(child, "close"), command: words.join(" ") });
  }

  async bringUp(): Promise<void> {
    const appears = async () => {
      const ended = this.#children.find(({ child }) => child.exitCode !== null);
      if (ended) throw new Error(`${ended.command} ended: ${this.#said}`);
      return (await this.#host.links()).includes(TAP);
    };
    await until(`${TAP} in ${this.#host.name}`, appears, 10_000);
    await this.#host.ip(`link set ${TAP} mtu ${MTU} up`);
  }

  async joinBridge(): Promise<void> {
    await this.#host.bridge();
    await this.#host.ip(`link set ${TAP} master br0`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { child, closed } of this.#children.toReversed()) {
      // All of them: unshare lets SIGTERM wait while it waits for its child.
      for (const pid of child.exitCode === null ? familyOf(child.pid!).reverse() : []) ask(pid);
      await Promise.race([closed, pause(PATIENCE_MS, undefined, { ref: false })]);
      child.kill("SIGKILL");
      await closed;
    }
    for (const undo of this.#undo) await undo();
  }
}

/** A process and those that descend from it, itself first; none when it has ended. */
function familyOf(pid: number): number[] {
  try {
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim();
    return [pid, ...children.split(" ").filter(Boolean).map(Number).flatMap(familyOf)];
  } catch {
    return [];
  }
}

/** Of a process; undefined when it has ended. */
function nameOf(pid: number): string | undefined {
  try {
    return readFileSync(`/proc/${pid}/comm`, "utf8").trim();
  } catch {
    return undefined;
  }
}

/** Asks a process to end, unless it has. */
function ask(pid: number): void {
  try {
    process.kill(pid, "SIGTERM");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}

async function tinc({ host, here, there, directory, write, run, secrets }: Site): Promise<void> {
  const keys = (address: string) =>
    secrets.get(address, () =>
      generateKeyPairSync("rsa", {
        modulusLength: 2048,
        publicKeyEncoding: { type: "pkcs1", format: "pem" },
        privateKeyEncoding: { type: "pkcs1", format: "pem" },
      }),
    );
  const name = (address: string) => `h${address.split(".").at(-1)}`;
  write("rsa_key.priv", keys(here).privateKey);
  for (const address of [here, there]) {
    const options = [`Address = ${address}`, "Cipher = none", "Digest = none", "Compression = 0"];
    write(`hosts/${name(address)}`, `${options.join("\n")}\n${keys(address).publicKey}`);
  }
  const lines = [`Name = h${host.number}`, "Mode = switch", "DeviceType = tap"];
  lines.push(`Interface = ${TAP}`, `ConnectTo = ${name(there)}`, "AddressFamily = ipv4");
  write("tinc.conf", `${lines.join("\n")}\n`);
  await run("tincd", "--no-detach", `--config=${directory}`, `--pidfile=${directory}/pid`);
}

async function fastd({ here, there, write, run, secrets }: Site): Promise<void> {
  const keys = (address: string) =>
    secrets.get(address, () => {
      const text = execFileSync("fastd", ["--generate-key"], { encoding: "utf8", stdio: "pipe" });
      const of = (kind: string) => RegExp(`${kind}: (\\w+)`, "i").exec(text)![1]!;
      return { secret: of("secret"), public: of("public") };
    });
  const lines = [
    ...["log level warn;", "mode tap;", `interface "${TAP}";`, `mtu ${MTU};`, 'method "null";'],
    ...[`bind ${here}:${PORT};`, `secret "${keys(here).secret}";`],
    `peer "there" { key "${keys(there).public}"; remote ${there}:${PORT}; }`,
  ];
  await run("fastd", "--config", write("fastd.conf", `${lines.join("\n")}\n`));
}

/**
 * Host 1 answers and host 2 calls, when it is heard: it would wait for 5 s before it called again. Who answers
 * forks a process for its caller, which would outlive it. So each has a namespace of processes, which ends
 * with the first of them, and a `/run` of its own, where its locks lie whatever one says.
 */
async function vtun({ host, there, write, run }: Site): Promise<void> {
  const lines = [
    `options { port ${PORT}; }`,
    `lab { passwd lab; type ether; device ${TAP}; proto udp; encrypt no; compress no; keepalive no; }`,
  ];
  const file = write("vtund.conf", `${lines.join("\n")}\n`);
  const answers = host.number === 1;
  const role = answers ? "-s" : `lab ${there}`;
  await run(
    ...["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "sh", "-c"],
    `mount -t tmpfs none /run && mkdir -p /run/lock/vtund && exec vtund -n -f ${file} ${role}`,
  );
  if (!answers) return;
  const sockets = ["ss", "--no-header", "--tcp", "--listening", "--numeric"];
  const listens = async () => (await host.run(...sockets)).includes(`:${PORT} `);
  await until(`vtund on ${host.name}`, listens);
}

/** Where the libraries lie that were unpacked with it, whatever the architecture. */
function libraries(): string {
  const lib = join(OVS, "usr/lib");
  const found = existsSync(lib) ? readdirSync(lib) : [];
  return found.map((name) => join(lib, name)).join(":");
}

/**
 * Its user-space datapath sends through a bridge of its own that has taken over the underlay's device
 * and address. The interface into the host's bridge is a TAP too: a port of type internal.
 */
async function openVSwitch(site: Site): Promise<void> {
  const { host, here, there, directory, run } = site;
  const database = join(directory, "conf.db");
  const socket = `unix:${join(directory, "db.sock")}`;
  const here24 = `${here}/24`;
  const inDirectory = ["env", `PATH=${PATH}`, `LD_LIBRARY_PATH=${libraries()}`];
  for (const kind of ["RUN", "DB", "LOG"]) inDirectory.push(`OVS_${kind}DIR=${directory}`);
  const vsctl = (...args: string[]) =>
    host.run(...inDirectory, "ovs-vsctl", `--db=${socket}`, "--timeout=10", ...args);
  const schemas = ["", OVS].map((at) => `${at}/usr/share/openvswitch/vswitch.ovsschema`);
  const schema = schemas.find((path) => existsSync(path));
  if (schema === undefined) throw new Error("Open vSwitch is not there: npm run setup");
  await host.run(...inDirectory, "ovsdb-tool", "create", database, schema);
  const control = (name: string) => [`--unixctl=${directory}/${name}.ctl`, "--no-chdir"];
  await run(
    ...[...inDirectory, "ovsdb-server", database, ...control("ovsdb")],
    ...[`--remote=p${socket}`, `--pidfile=${directory}/ovsdb.pid`],
  );
  await until("the database", () =>
    vsctl("--no-wait", "init").then(
      () => true,
      () => false,
    ),
  );
  await run(
    ...[...inDirectory, "ovs-vswitchd", socket, ...control("vswitchd")],
    `--pidfile=${directory}/vswitchd.pid`,
  );
  site.finally(async () => {
    for (const device of await host.links()) {
      if (["ovs-netdev", "phy", "switch", TAP].includes(device))
        await host.ip(`link del ${device}`);
    }
    await host.ip(`addr replace ${here24} dev eth0`);
  });
  await host.ip(`addr del ${here24} dev eth0`);
  await vsctl(
    ...["add-br", "phy", "--", "set", "bridge", "phy", "datapath_type=netdev"],
    ...["--", "add-port", "phy", "eth0"],
    ...["--", "add-br", "switch", "--", "set", "bridge", "switch", "datapath_type=netdev"],
    ...["--", "add-port", "switch", TAP, "--", "set", "interface", TAP, "type=internal"],
    ...["--", "add-port", "switch", "vx", "--", "set", "interface", "vx", "type=vxlan"],
    ...[`options:remote_ip=${there}`, "options:key=42"],
  );
  await host.ip(`addr add ${here24} dev phy`, "link set phy mtu 1500 up");
  // It learns its peer's MAC from ARP that it sees; host 1 is set up first and has nobody to ask.
  if (host.number === 2) await reach(host, there);
}
