/**
 * The service as operators have it: units written by `vtep service install`, started by a real systemd
 * that was booted in a host of the lab, beside a kernel VXLAN peer.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import {
  afterAll,
  afterEach,
  beforeAll,
  beforeEach,
  describe,
  expect,
  onTestFinished,
  test,
} from "vitest";
import { blast } from "../../bench/blast.ts";
import { unlessGone } from "../lab/gone.ts";
import { Lab } from "../lab/lab.ts";
import { Machine, PACKAGE } from "../lab/systemd.ts";
import { ping, reach, send, transferTcp } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import { ROOT } from "../native/fixture.ts";
import { underlays } from "./kinds.ts";

const lab = await Lab.draw({ hosts: 2 });
afterAll(() => lab[Symbol.asyncDispose]());
const [ours, theirs] = [lab.host(1), lab.host(2)];
const here = await ours.container();
const there = await theirs.container();
await theirs.kernelVxlan({ vni: 42, peers: [ours.address] });
const untouched = await ours.links();
const machine = await Machine.boot(ours);
afterAll(() => machine[Symbol.asyncDispose]());

const vtep = (...args: string[]) => machine.run("node", `${PACKAGE}/dist/cli.js`, ...args);
const systemctl = (...args: string[]) => machine.run("systemctl", ...args);
const isActive = async (unit = "vtep") =>
  (await machine.finish("systemctl", "is-active", unit)).stdout.trim();
const mainPid = async () => Number((await machine.show("vtep", "MainPID")).MainPID);

async function configure(yaml: string, path = "/etc/vtep/vtep.yaml"): Promise<void> {
  await machine.write(path, yaml);
}
const SOCKET = "/run/vtep/vtep.sock";
/** What the log says of the time before there was a plan. */
const MEANWHILE = "forwarded as before meanwhile";
const crossing = `networks: [{ vni: 42, peers: [${theirs.address}], bridge: br0 }]`;

/** Kills the service, and waits for the next one: at first systemd still takes the dead one for active. */
async function killed(): Promise<void> {
  const before = await mainPid();
  await systemctl("kill", "--kill-whom=main", "--signal=SIGKILL", "vtep");
  await until("another process", async () => ![0, before].includes(await mainPid()), 20_000);
  await until("it to be active", async () => (await isActive()) === "active", 20_000);
}

/** Settings on top of the unit's, for one test. */
async function override(...settings: string[]): Promise<void> {
  const directory = "/run/systemd/system/vtep.service.d";
  await machine.write(`${directory}/test.conf`, `[Service]\n${settings.join("\n")}\n`);
  await systemctl("daemon-reload");
  onTestFinished(async () => {
    await machine.run("rm", "-rf", directory);
    await systemctl("daemon-reload");
  });
}

describe("the service", () => {
  beforeAll(() => vtep("service", "install"));

  afterEach(async () => {
    await systemctl("stop", "vtep.socket", "vtep", "vtep@*");
    await machine.finish("systemctl", "reset-failed", "vtep");
    expect(await ours.links()).toEqual(untouched);
  });

  test("is started when frames can cross, says what it forwards, and cleans up", async () => {
    await configure(`networks: [{ vni: 42, peers: [${theirs.address}], bridge: br42 }]`);
    await systemctl("start", "vtep");
    expect(await isActive()).toBe("active");
    expect(await ours.links()).toEqual([...untouched, "br42", "vtep42"].sort());
    expect(await machine.run("stat", "--format=%a %U:%G", SOCKET)).toBe("660 vtep:vtep\n");
    expect(JSON.parse(await vtep("status", "--json")).networks).toHaveLength(1);
    const said = (await machine.finish("systemctl", "status", "vtep")).stdout;
    expect(said).toContain('Status: "forwarding network 42 (vtep42)"');
    expect(await vtep("service", "status")).toContain(
      "vtep.service: active (running), disabled: forwarding network 42 (vtep42)",
    );
    await systemctl("stop", "vtep");
    expect(await machine.show("vtep", "ActiveState", "Result")).toEqual({
      ActiveState: "inactive",
      Result: "success",
    });
    expect(await ours.links()).toEqual(untouched);
  });

  test.each(underlays)("crosses from its sandbox on the %s underlay", async (underlay) => {
    const workers = underlay === "native" ? 2 : 1; // with several, it loads a program
    await configure(`${crossing}\nunderlay: ${underlay}\nworkers: ${workers}`);
    await systemctl("start", "vtep");
    await reach(here, there.address);
    expect(await ping(here, there.address)).toMatchObject({ received: 3, duplicates: 0 });
    const lines = await messages();
    expect(lines.filter(({ priority }) => Number(priority) < 6)).toEqual([]);
  });

  test("may run a thread that streams before others, and says so where it may not", async () => {
    const told = async () =>
      (await messages()).flatMap(({ json }) =>
        /^round trips/.test(json?.msg) ? [json.reason] : [],
      );
    await configure(crossing);
    await override("LimitRTPRIO=0");
    await systemctl("start", "vtep");
    expect(await told()).toEqual(["EPERM"]);
    // In place of the unit's limit, which who boots this machine need not have the right to raise.
    await override("CapabilityBoundingSet=CAP_SYS_NICE", "AmbientCapabilities=CAP_SYS_NICE");
    await systemctl("restart", "vtep");
    await reach(here, there.address);
    expect(await told()).toEqual([]);
  });

  test("may keep the thread that sends half of what is flooded off the other one's core", async () => {
    const many = Array.from({ length: 300 }, (_, at) => `198.18.${at >> 8}.${at & 0xff}`);
    const peers = [theirs.address, ...many].join(", ");
    await configure(`networks: [{ vni: 42, peers: [${peers}], bridge: br0 }]\nworkers: 1`);
    await systemctl("start", "vtep");
    await here.ip("neighbour flush dev eth0");
    await reach(here, there.address); // for which its MAC is asked for
    const agent = `/proc/${await mainPid()}`;
    const comm = await machine.run("sh", "-c", `grep -lx vtep-flood ${agent}/task/*/comm`);
    const cores = async (thread: string) => {
      const status = await machine.run("cat", `${thread}/status`);
      return BigInt(`0x${/^Cpus_allowed:\s*(.+)$/m.exec(status)![1]!.replaceAll(",", "")}`);
    };
    const [all, its] = [await cores(agent), await cores(dirname(comm))];
    const spared = all ^ its;
    expect(its & ~all).toBe(0n);
    expect(spared).not.toBe(0n);
    expect(spared & (spared - 1n)).toBe(0n); // one core
  });

  test("has two capabilities and one device", async () => {
    await configure(crossing);
    await systemctl("start", "vtep");
    const status = await machine.run("cat", `/proc/${await mainPid()}/status`);
    const field = (name: string) => new RegExp(`^${name}:\\s+(\\S+)`, "m").exec(status)?.[1];
    expect(Number(field("Uid"))).toBeGreaterThan(0);
    const both = (2 ** 12 + 2 ** 39).toString(16).padStart(16, "0"); // CAP_NET_ADMIN, CAP_BPF
    const names = ["CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"];
    expect(names.map(field)).toEqual([both, both, both, "1", "2"]);
    const open = (device: string, cgroup: string) =>
      machine.finish("sh", "-euc", `echo $$ >${cgroup}/cgroup.procs; true <${device}`);
    const [root, its] = ["/sys/fs/cgroup/init.scope", "/sys/fs/cgroup/system.slice/vtep.service"];
    expect(await open("/dev/net/tun", its)).toMatchObject({ code: 0 });
    expect(await open("/dev/kmsg", root)).toMatchObject({ code: 0 });
    expect((await open("/dev/kmsg", its)).stderr).toContain("Operation not permitted");
    const devices = (await machine.run("ls", `/proc/${await mainPid()}/root/dev`)).split("\n");
    expect(devices).toContain("net");
    expect(devices).not.toContain("kmsg");
  });

  test("is offered no way out: exposure at most 2.0, and nothing to warn of", async () => {
    const services = ["vtep.service", "vtep@.service", "vtep-docker.service"];
    const units = [...services, "vtep.socket", "vtep-docker.socket"].map(
      (name) => `/etc/systemd/system/${name}`,
    );
    for (const unit of units.slice(0, services.length)) {
      await machine.run("systemd-analyze", "security", "--offline=true", "--threshold=20", unit);
    }
    const verified = await machine.finish("systemd-analyze", "verify", "--man=no", ...units);
    expect(verified).toEqual({ code: 0, stdout: "", stderr: "" });
  });

  test("logs JSON whose priorities the journal knows", async () => {
    await configure(crossing);
    await systemctl("start", "vtep");
    await send(theirs, { address: ours.address, port: 4789 }, [Buffer.alloc(60)]);
    await until("the drop", async () => {
      await systemctl("kill", "--kill-whom=main", "--signal=SIGUSR2", "vtep");
      const lines = await messages();
      return lines.some(({ json }) => json?.drops?.VXLAN_INVALID_HDR > 0);
    });
    await systemctl("stop", "vtep"); // drops are logged now at the latest
    const lines = await messages();
    const priorities = ["ready", "frames were dropped", "stopped"].map(
      (msg) => lines.find(({ json }) => json?.msg === msg)?.priority,
    );
    expect(priorities).toEqual(["6", "4", "6"]);
  });

  describe("is started anew", () => {
    beforeEach(async () => {
      await configure(crossing);
      await systemctl("start", "vtep");
      await reach(here, there.address);
    });
    const link = async () => JSON.parse(await ours.run("ip", "-json", "link", "show", "vtep42"))[0];
    const ask = async (...question: string[]) => JSON.parse(await vtep(...question, "--json"));
    const names = async () =>
      (await ask("network", "list")).map(({ name }: { name: string }) => name);
    const entries = async () => {
      const rows: { mac: string; destination: string }[] = await ask("fdb", "list");
      return rows.map(({ mac, destination }) => `${mac} ${destination}`).sort();
    };

    test.each([
      ["when it is told to", () => systemctl("restart", "vtep")],
      ["when it was killed", killed],
    ])(
      "%s, with the interface and the entries that it had, and a stream goes on",
      async (_, restart) => {
        const { ifindex } = await link();
        const known = await entries();
        expect(known).toContain(`${there.mac} ${theirs.address}`);
        const stream = transferTcp(here, there, { bytes: 300_000_000 });
        await until(
          "a stream",
          async () => {
            const [{ counters }] = await ask("network", "list");
            return counters.encapBytes > 20_000_000;
          },
          20_000,
        );
        await restart();
        expect(await link()).toMatchObject({ ifindex, master: "br0", operstate: "UNKNOWN" });
        const { sent, received } = await stream;
        expect(received).toEqual(sent);
        expect(await entries()).toEqual(known);
      },
      60_000,
    );

    test("with what was sent meanwhile, and then with the queue that it had", async () => {
      const txqlen = 1500;
      await ours.ip(`link set vtep42 txqueuelen ${txqlen}`);
      const paced = blast(here, there, { size: 200, rate: 5_000, seconds: 4 });
      const encapsulated = async () => (await ask("network", "list"))[0].counters.encapFrames;
      await until("some of it", async () => (await encapsulated()) > 1000);
      await systemctl("restart", "vtep");
      const { sent, lost, reordered } = await paced;
      expect(sent).toBeGreaterThan(15_000);
      expect(lost).toBeLessThan(txqlen / 2);
      expect(reordered).toBe(0);
      const { frames } = (await messages()).find(({ json }) => json?.msg === MEANWHILE)!.json;
      expect(frames).toBeGreaterThan(0);
      await until("the queue that it had", async () => (await link()).txqlen === txqlen);
    }, 30_000);

    test.each([
      ["more threads", "workers: 2"],
      ["another local address", "local: 10.77.0.1"],
      ["another port", "port: 4790"],
      ["another underlay", "underlay: dgram"],
    ])("with %s", async (_, setting) => {
      await ours.ip("addr add 10.77.0.1/32 dev lo");
      onTestFinished(() => ours.ip("addr del 10.77.0.1/32 dev lo"));
      await configure(`${crossing}\n${setting}`);
      await systemctl("restart", "vtep");
      expect((await machine.show("vtep", "NRestarts")).NRestarts).toBe("0");
      const { workers, local, port, underlay } = await ask("status");
      expect([
        ...[`workers: ${workers}`, `local: ${local}`],
        ...[`port: ${port}`, `underlay: ${underlay}`],
      ]).toContain(setting);
      if (workers > 1) await reach(here, there.address);
      await configure(crossing);
      await systemctl("restart", "vtep");
      await reach(here, there.address);
    });

    test("with several threads, without 256 queues in the kernel, unless somebody wants some", async () => {
      await configure(`${crossing}\nworkers: 2`);
      await systemctl("restart", "vtep");
      const qdiscs = async () => {
        const shown = await ours.run("tc", "-json", "qdisc", "show", "dev", "vtep42");
        return JSON.parse(shown).map(({ kind }: { kind: string }) => kind);
      };
      expect(await qdiscs()).toEqual(["noqueue"]);
      await ours.run("tc", "qdisc", "replace", "dev", "vtep42", "root", "pfifo");
      await systemctl("restart", "vtep");
      expect(await qdiscs()).toEqual(["pfifo"]);
      await reach(here, there.address);
    });

    test("and knows of who moved meanwhile", async () => {
      const mac = "02:00:00:00:00:aa";
      const other = "10.0.0.77";
      await theirs.ip(`addr add ${other}/32 dev lo`);
      onTestFinished(() => theirs.ip(`addr del ${other}/32 dev lo`));
      await configure(crossing.replace("peers: [", `peers: [${other}, `));
      await systemctl("restart", "vtep");
      const frame = Buffer.from(
        `0800000000002a00ffffffffffff${mac.replaceAll(":", "")}88b5`,
        "hex",
      );
      const from = (source?: string) =>
        send(theirs, { address: ours.address, port: 4789, ...(source && { source }) }, [
          Buffer.concat([frame, Buffer.alloc(46)]),
        ]);
      const place = async () => (await entries()).find((entry) => entry.startsWith(mac));
      await from();
      await until("it to be learned", async () => (await place()) === `${mac} ${theirs.address}`);
      const restarted = systemctl("restart", "vtep");
      const isTaken = async () =>
        (await machine.finish("test", "-e", "/var/lib/vtep/plan.json")).code !== 0;
      // The last one writes it as it ends: for a moment of that it is not there either.
      await until("the next one", async () => (await isTaken()) && (await isTaken()));
      await from(other);
      await restarted;
      expect(await place()).toBe(`${mac} ${other}`);
    });

    test("but does not, where it is called in a wrong way", async () => {
      const unit = await machine.run("systemctl", "cat", "vtep");
      const [exec] = /^ExecStart=.+$/m.exec(unit)!;
      await override("ExecStart=", `${exec} --bogus`);
      await machine.finish("systemctl", "restart", "vtep");
      await until("its end", async () => (await isActive()) === "failed");
      const { ExecMainStatus, Result } = await machine.show("vtep", "ExecMainStatus", "Result");
      expect([ExecMainStatus, Result]).toEqual(["2", "exit-code"]);
    });

    test("forgets nobody although nobody speaks", async () => {
      const known = await entries();
      await theirs.ip("link set vx42 down");
      onTestFinished(() => theirs.ip("link set vx42 up"));
      await systemctl("restart", "vtep");
      expect(await entries()).toEqual(known);
    });

    test("with what the API has changed, until a reload or another word in its file", async () => {
      await vtep("fdb", "add", "vtep42", "02:00:00:00:00:99", theirs.address);
      await vtep("peer", "add", "vtep42", "10.0.0.77");
      await vtep("network", "add", "--vni", "44", "--peer", theirs.address);
      const before = await ask("network", "list");
      await systemctl("restart", "vtep");
      expect((await entries()).join()).toContain("02:00:00:00:00:99");
      const told = (networks: { name: string; vni: number; peers: string[] }[]) => {
        return networks.map(({ name, vni, peers }) => ({ name, vni, peers }));
      };
      expect(told(await ask("network", "list"))).toEqual(told(before));
      await configure(crossing.replace("bridge: br0", "bridge: br0, age: 77"));
      await systemctl("restart", "vtep");
      const [own, added, ...more] = told(await ask("network", "list"));
      expect(own?.peers).toEqual([theirs.address]);
      expect(added?.vni).toBe(44);
      expect(more).toEqual([]);
      expect((await messages()).map(({ json }) => json?.msg)).toContain(
        "configured anew: what the API had changed is forgotten",
      );
      await vtep("reload");
      expect(told(await ask("network", "list"))).toEqual([own]);
      await systemctl("restart", "vtep");
      expect(told(await ask("network", "list"))).toEqual([own]);
    });

    test("with what the API has taken away, which a reload brings back", async () => {
      const { address6 } = theirs;
      const own = crossing.replace("bridge: br0 }]", "bridge: br0, mtu: 1400 }");
      await configure(`${own}, { vni: 43, peers: ["${address6}"] }]`);
      await systemctl("restart", "vtep");
      await vtep("network", "remove", "vtep43");
      await vtep("peer", "remove", "vtep42", theirs.address);
      await systemctl("restart", "vtep");
      expect(await names()).toEqual(["vtep42"]);
      expect((await ask("network", "list"))[0].peers).toEqual([]);
      await vtep("reload");
      expect(await names()).toEqual(["vtep42", "vtep43"]);
      await vtep("network", "remove", "vtep42");
      await vtep("network", "remove", "vtep43");
      await systemctl("restart", "vtep");
      expect(await names()).toEqual([]);
      await vtep("reload");
      expect(await names()).toEqual(["vtep42", "vtep43"]);
    });

    test("as its file has it, where what the API had changed cannot be, until it can", async () => {
      const add = ["--vni", "44", "--peer", theirs.address, "--bridge", "later"];
      await vtep("network", "add", ...add);
      await systemctl("stop", "vtep");
      await ours.ip("link add later type veth peer name later2");
      await systemctl("start", "vtep");
      expect(await names()).toEqual(["vtep42"]);
      const told = expect.objectContaining({
        network: "vtep44",
        reason: "network 44: later exists and is no bridge: name another",
      });
      expect((await messages()).map(({ json }) => json)).toContainEqual(told);
      await vtep("peer", "add", "vtep42", "10.0.0.77"); // writes the file anew
      await ours.ip("link delete later");
      await systemctl("restart", "vtep");
      expect(await names()).toEqual(["vtep42", "vtep44"]);
      await vtep("reload");
    });

    test("as the API left it, but for a network that cannot be, until it can", async () => {
      await vtep("network", "add", "--vni", "44", "--peer", theirs.address, "--bridge", "later");
      await vtep("network", "add", "--vni", "45", "--peer", theirs.address);
      await vtep("fdb", "add", "vtep42", "02:00:00:00:00:99", theirs.address);
      await ours.ip("link delete later", "link add later type veth peer name later2");
      await systemctl("restart", "vtep");
      expect(await names()).toEqual(["vtep42", "vtep45"]);
      expect((await entries()).join()).toContain("02:00:00:00:00:99");
      expect(await ours.links()).not.toContain("vtep44");
      await ours.ip("link delete later");
      await systemctl("restart", "vtep");
      expect(await names()).toEqual(["vtep42", "vtep44", "vtep45"]);
      await vtep("reload");
      expect(await names()).toEqual(["vtep42"]);
    });

    test("without the socket of a family that nobody is in any more", async () => {
      const sockets = async () => (await ours.run("ss", "-Hlun", "sport = :4789")).split("\n");
      const both = `networks: [{ vni: 42, peers: [${theirs.address}, "${theirs.address6}"], bridge: br0 }]`;
      await configure(both);
      await systemctl("restart", "vtep");
      expect((await sockets()).join()).toContain(`[${ours.address6}]:4789`);
      await configure(crossing);
      await systemctl("restart", "vtep");
      await until("no such socket", async () => !(await sockets()).join().includes("[fd00"));
    });

    test("out of a bridge that is not in its file any more, but not of somebody else's", async () => {
      const alone = `networks: [{ vni: 42, peers: [${theirs.address}] }]`;
      await configure(alone);
      await systemctl("restart", "vtep");
      expect(await link()).not.toHaveProperty("master");
      await ours.ip("link set vtep42 master br0");
      await systemctl("restart", "vtep");
      expect(await link()).toHaveProperty("master", "br0");
    });

    test("without a network that is not in its file any more, and with one that is new", async () => {
      await configure(`networks: [{ vni: 43, peers: [${theirs.address}], bridge: br0 }]`);
      await systemctl("restart", "vtep");
      expect(await ours.links()).toEqual([...untouched, "vtep43"].sort());
    });
  });

  test("leaves no plan by which it never forwarded", async () => {
    await configure(crossing);
    await ours.ip("link add held type vxlan id 9 dstport 4789", "link set held up");
    try {
      expect((await machine.finish("systemctl", "start", "vtep")).code).not.toBe(0);
      await systemctl("stop", "vtep");
    } finally {
      await ours.ip("link del held");
    }
    expect(await machine.run("ls", "/var/lib/vtep")).not.toContain("plan.json");
  });

  test("has more kept than its manager hears at once", async () => {
    const room = await machine.run("cat", "/proc/sys/net/unix/max_dgram_qlen");
    expect(Number(room)).toBeLessThan(100);
    const networks = Array.from({ length: 100 }, (_, at) => {
      return `{ vni: ${at + 1}, peers: [${theirs.address}] }`;
    });
    await configure(`networks: [${networks}]`);
    await systemctl("start", "vtep");
    expect(await machine.show("vtep", "StatusText")).toEqual({
      StatusText: expect.stringMatching(/^forwarding 100 networks: 1 \(vtep1\), .* and 92 more$/),
    });
    const kept = async () =>
      (await machine.show("vtep", "NFileDescriptorStore")).NFileDescriptorStore;
    await until("all of it", async () => (await kept()) === "101");
    await configure(crossing);
    await systemctl("restart", "vtep");
    await until("little of it", async () => (await kept()) === "2", 20_000);
    expect(await ours.links()).toEqual([...untouched, "vtep42"].sort());
  });

  test("routes for containers: forwards, masquerades, and stops to", async () => {
    await ours.sysctl({ "ipv4/ip_forward": 0 });
    const gateway = "gateway: [10.9.0.1/24], masquerade: true";
    await configure(
      `networks: [{ vni: 42, peers: [${theirs.address}], bridge: br42, ${gateway} }]`,
    );
    await systemctl("start", "vtep");
    expect(await ours.run("cat", "/proc/sys/net/ipv4/ip_forward")).toBe("1\n");
    expect(await ours.run("nft", "list", "tables")).toBe(`table inet vtep_${ours.address}_4789\n`);
    expect(await ours.run("ip", "addr", "show", "br42")).toContain("10.9.0.1/24");
    await systemctl("restart", "vtep");
    expect(await ours.run("nft", "list", "tables")).toBe(`table inet vtep_${ours.address}_4789\n`);
    const lines = await messages();
    expect(lines.filter(({ priority }) => Number(priority) < 6)).toEqual([]);
    await systemctl("stop", "vtep");
    expect(await ours.run("nft", "list", "tables")).toBe("");
  });

  test("takes a gateway that was configured away from a bridge that stays, and rules that were flushed back", async () => {
    const network = `vni: 42, peers: [${theirs.address}], bridge: brx`;
    const routed = `networks: [{ ${network}, gateway: [10.9.0.1/24, 192.0.2.1/24], masquerade: true }]`;
    await ours.ip("link add brx address 02:00:00:00:00:99 type bridge", "link set brx up");
    await ours.ip("addr add 192.0.2.1/24 dev brx"); // somebody's own
    const shown = () => ours.run("ip", "addr", "show", "brx");
    const tables = () => ours.run("nft", "list", "tables");
    try {
      await configure(routed);
      await systemctl("start", "vtep");
      expect(await shown()).toContain("10.9.0.1/24");
      await ours.run("nft", "flush", "ruleset");
      await systemctl("reload", "vtep");
      await until("the rules", async () => (await tables()) !== "");
      await configure(`networks: [{ ${network} }]`);
      await systemctl("restart", "vtep");
      expect(await shown()).not.toContain("10.9.0.1");
      expect(await shown()).toMatch(/02:00:00:00:00:99[\s\S]*192\.0\.2\.1\/24/);
      expect(await tables()).toBe("");
    } finally {
      await ours.ip("link del brx");
    }
  });

  test("makes a TAP anew that was deleted while nobody looked", async () => {
    await configure(crossing);
    await systemctl("start", "vtep");
    await reach(here, there.address);
    await systemctl("kill", "--signal=STOP", "vtep");
    await ours.ip("link del vtep42");
    await killed();
    await reach(here, there.address);
  });

  test("leaves a TAP the MTU that its stations have, over a restart on a narrower underlay", async () => {
    await configure(crossing);
    await systemctl("start", "vtep");
    await ours.ip("link set eth0 mtu 1400");
    onTestFinished(() => ours.ip("link set eth0 mtu 1500"));
    await systemctl("restart", "vtep");
    const [link] = JSON.parse(await ours.run("ip", "-json", "link", "show", "vtep42"));
    expect(link.mtu).toBe(1450);
    // As the others have not heard of it, a bridge would drop this one without a word.
    const long = ["-c", "1", "-W", "1", "-M", "do", "-s", `${1450 - 28}`, there.address];
    expect((await here.finish(["ping", "-n", ...long])).stdout).toContain("mtu = 1350");
  });

  test("leaves a TAP where it is over a restart, in its container", async () => {
    await configure(`networks: [{ vni: 42, name: blue, peers: [${theirs.address}] }]`);
    await systemctl("start", "vtep");
    await machine.run("ip", "netns", "add", "box");
    onTestFinished(() => machine.run("ip", "netns", "del", "box").then(() => undefined));
    const address = there.address.replace(/\d+$/, "205");
    const attached = () => vtep("attach", "list", "--json").then((text) => JSON.parse(text));
    const crosses = () => {
      const ping = ["ping", "-n", "-c", "1", "-W", "1", there.address];
      const once = () => machine.finish("ip", "netns", "exec", "box", ...ping);
      return until("an answer", async () => (await once()).code === 0);
    };
    await vtep("attach", "box", "--network", "blue", "--direct", "--ip", `${address}/24`);
    await crosses();
    const before = await attached();
    expect(before).toMatchObject([
      { ifname: "eth0", link: "vtep42", addresses: [`${address}/24`] },
    ]);
    await systemctl("restart", "vtep");
    await crosses();
    expect(await attached()).toEqual(before);
    await machine.run("rm", "/var/lib/vtep/state.json"); // whose it is is known no more
    await killed();
    await crosses();
    await configure(`networks: [{ vni: 42, name: blue, peers: [${theirs.address}], mtu: 1400 }]`);
    await expect(vtep("reload")).rejects.toThrow("the TAP is a container's, and can have neither");
    await vtep("detach", "box");
    await until("the TAP", async () => (await ours.links()).includes("vtep42"));
  });

  test("that cannot run says why, as an error, and is not tried again", async () => {
    await configure("networks: [{ vni: 42, pears: [192.0.2.2] }]");
    expect((await machine.finish("systemctl", "start", "vtep")).code).toBe(1);
    const why =
      '/etc/vtep/vtep.yaml:1:23: networks[0].pears is no key of a network: did you mean "peers"?';
    const state = await machine.show("vtep", "ActiveState", "NRestarts", "StatusText");
    expect(state).toEqual({ ActiveState: "failed", NRestarts: "0", StatusText: why });
    const line = (await messages()).findLast(({ text }) => text === `vtep: ${why}`);
    expect(line?.priority).toBe("3");
  });

  test("reads its configuration again while frames cross", async () => {
    await configure(crossing);
    await systemctl("start", "vtep");
    const pid = await mainPid();
    await reach(here, there.address);
    await configure(`${crossing.replace(/]$/, "")}, { vni: 43, peers: [${theirs.address}] }]`);
    await systemctl("reload", "vtep");
    await until(
      "both networks",
      async () => {
        const { ActiveState, StatusText } = await machine.show("vtep", "ActiveState", "StatusText");
        const both = "forwarding 2 networks: 42 (vtep42), 43 (vtep43)";
        return ActiveState === "active" && StatusText === both;
      },
      10_000,
    );
    expect(await mainPid()).toBe(pid);
    expect(await ping(here, there.address)).toMatchObject({ received: 3 });
  });

  test("is not reloaded from a file with a fault, which fails the reload, and goes on", async () => {
    await configure(crossing);
    await systemctl("start", "vtep");
    const pid = await mainPid();
    await configure("networks: [{ vni: 42, pears: [192.0.2.2] }]");
    expect((await machine.finish("systemctl", "reload", "vtep")).code).toBe(1);
    expect((await messages()).map(({ text }) => text)).toContain(
      'vtep: /etc/vtep/vtep.yaml:1:23: networks[0].pears is no key of a network: did you mean "peers"?',
    );
    expect([await isActive(), await mainPid()]).toEqual(["active", pid]);
    await reach(here, there.address);
    await configure(crossing, "/etc/vtep/blue.yaml");
    await systemctl("stop", "vtep");
    await systemctl("start", "vtep@blue");
    await systemctl("reload", "vtep@blue");
    await configure("networks: []", "/etc/vtep/blue.yaml");
    expect((await machine.finish("systemctl", "reload", "vtep@blue")).code).toBe(1);
  });

  test("is started again when it fails", async () => {
    await configure(`networks: [{ vni: 42, peers: [${theirs.address}], bridge: br42 }]`);
    await systemctl("start", "vtep");
    const ip = "/usr/local/sbin/ip"; // which is found first, and refuses every change
    const refuses = 'case "$*" in *-batch*) exit 2;; esac; PATH=/usr/sbin:/sbin exec ip "$@"';
    await machine.write(ip, `#!/bin/sh\n${refuses}\n`);
    await machine.run("chmod", "+x", ip);
    onTestFinished(async () => void (await machine.finish("rm", "-f", ip)));
    await ours.ip("link del vtep42");
    await until(
      "a restart",
      async () => (await machine.show("vtep", "NRestarts")).NRestarts !== "0",
      20_000,
    );
    await machine.run("rm", ip);
    await until("it to be active", async () => (await isActive()) === "active", 20_000);
    expect(await ours.links()).toEqual([...untouched, "br42", "vtep42"].sort());
  });

  test("has the socket of its API from systemd, which keeps it", async () => {
    await configure(crossing);
    await systemctl("start", "vtep.socket");
    const socket = () => machine.run("stat", "--format=%a %U:%G %i", SOCKET);
    const before = await socket();
    expect(before).toMatch(/^660 root:vtep \d+\n$/);
    await systemctl("start", "vtep");
    expect(JSON.parse(await vtep("status", "--json")).networks).toHaveLength(1);
    await systemctl("restart", "vtep");
    expect(JSON.parse(await vtep("status", "--json")).networks).toHaveLength(1);
    await systemctl("stop", "vtep");
    expect(await socket()).toBe(before);
  });

  test("serves Docker when that asks, from a sandbox of its own", async () => {
    await configure(crossing.replace("}", ", gateway: [192.0.2.1/24] }"));
    await systemctl("start", "vtep", "vtep-docker.socket");
    const call = async (method: string, body: object) => {
      const at = ["--unix-socket", "/run/docker/plugins/vtep.sock", `http://docker/${method}`];
      return JSON.parse(await machine.run("curl", "-s", ...at, "-d", JSON.stringify(body)));
    };
    expect(await call("Plugin.Activate", {})).toEqual({ Implements: ["NetworkDriver"] });
    const generic = { "com.docker.network.generic": { vni: "42" } };
    const [NetworkID, EndpointID] = ["net1", "end1"];
    expect(await call("NetworkDriver.CreateNetwork", { NetworkID, Options: generic })).toEqual({});
    await systemctl("restart", "vtep-docker"); // it remembers
    const address = { Address: "192.0.2.7/24" };
    const ids = { NetworkID, EndpointID };
    await call("NetworkDriver.CreateEndpoint", { ...ids, Interface: address });
    const joined = await call("NetworkDriver.Join", { ...ids, SandboxKey: "/run/docker/netns/x" });
    const { SrcName } = joined.InterfaceName;
    expect(await ours.links()).toContain(SrcName);
    expect(await call("NetworkDriver.Leave", ids)).toEqual({});
    expect(await ours.links()).not.toContain(SrcName);
    const port = { Proto: 6, Port: 80, HostPort: 7070 };
    const options = { Options: { "com.docker.network.portmap": [port] } };
    const server = ours.spawn("busybox", "nc", "-l", "-p", "7070");
    await until("a server", async () => (await ours.run("ss", "-Hltn", "sport = :7070")) !== "");
    await call("NetworkDriver.Join", { ...ids, SandboxKey: "/run/docker/netns/x" });
    expect(await call("NetworkDriver.ProgramExternalConnectivity", { ...ids, ...options })).toEqual(
      {
        Err: "vtep: port 7070/tcp is in use on this host: publish another",
      },
    );
    server.kill();
    await call("NetworkDriver.Leave", ids);
    await systemctl("stop", "vtep-docker.socket", "vtep-docker");
    await machine.run("rm", "/var/lib/vtep/docker.json");
  });

  test("is one for each configuration, side by side", async () => {
    const network = (vni: number) => `networks: [{ vni: ${vni}, peers: [${theirs.address}] }]`;
    await configure(`${network(43)}\nport: 4790`, "/etc/vtep/blue.yaml");
    await configure(`${network(44)}\nport: 4791`, "/etc/vtep/green.yaml");
    await systemctl("start", "vtep@blue", "vtep@green");
    expect((await ours.links()).filter((link) => link.startsWith("vtep"))).toEqual([
      "vtep43",
      "vtep44",
    ]);
    expect((await machine.show("vtep@blue", "StatusText")).StatusText).toBe(
      "forwarding network 43 (vtep43)",
    );
    for (const [name, vni] of [
      ["blue", 43],
      ["green", 44],
    ]) {
      const status = await vtep("status", "--json", "--socket", `/run/vtep/${name}/vtep.sock`);
      expect(JSON.parse(status).networks).toMatchObject([{ vni }]);
    }
    expect(await machine.run("ls", "-A", "/run/vtep", "/var/lib/vtep")).toMatch(
      /blue\ngreen\n.*blue\ngreen\n/s,
    );
  });

  describe("under its watchdog", { timeout: 60_000 }, () => {
    const FAST = "WatchdogSec=4";

    test("lives on while it forwards, idle or not", async () => {
      await configure(crossing);
      await override(FAST);
      await systemctl("start", "vtep");
      const pid = await mainPid();
      await reach(here, there.address);
      const began = performance.now();
      await until(
        "one and a half of its intervals",
        () => performance.now() - began > 6_000,
        8_000,
      );
      expect(await mainPid()).toBe(pid);
      await reach(here, there.address);
    });

    test("is killed and started again when all of it stands still", async () => {
      await configure(crossing);
      await override(FAST);
      await systemctl("start", "vtep");
      const before = await machine.show("vtep", "MainPID", "NRestarts");
      process.kill(machine.outerPid(Number(before.MainPID)), "SIGSTOP");
      await barked(before.NRestarts!);
      await reach(here, there.address);
    });

    test("is killed and started again when one of its forwarding threads stands still", async () => {
      await configure(`${crossing}\nworkers: 2`);
      await override(FAST);
      await systemctl("start", "vtep");
      const before = await machine.show("vtep", "MainPID", "NRestarts");
      await reach(here, there.address);
      const pid = machine.outerPid(Number(before.MainPID));
      const held = await hold(await forwardingThread(pid));
      expect(held).not.toBe(pid);
      const stuck = async () =>
        (await messages()).find(({ json }) => json?.msg === "forwarding threads are stuck");
      const { priority, json } = await until("it to say so", stuck, 15_000);
      expect([priority, json.threads.length]).toEqual(["3", 1]);
      await barked(before.NRestarts!);
      await reach(here, there.address);
    });

    async function barked(restarts: string): Promise<void> {
      const again = async () => (await machine.show("vtep", "NRestarts")).NRestarts !== restarts;
      await until("a restart", again, 20_000);
      const journal = await machine.journal("vtep.service");
      expect(journal.some(({ MESSAGE }) => MESSAGE?.includes("Watchdog timeout"))).toBe(true);
      await until("it to be active", async () => (await isActive()) === "active", 20_000);
    }

    /** The thread that waits for its TAPs: in a call whose first argument is what polls the poll of those. */
    function forwardingThread(pid: number): Promise<number> {
      const look = () => unlessGone(() => waitingForTaps(pid));
      return until("a thread that waits for its TAP", look);
    }

    function waitingForTaps(pid: number): number | undefined {
      const file = (fd: string) => readlinkSync(`/proc/${pid}/fd/${fd}`);
      const polled = (fd: string) => {
        const info = readFileSync(`/proc/${pid}/fdinfo/${fd}`, "utf8");
        return [...info.matchAll(/^tfd:\s*(\d+)/gm)].map((match) => match[1]!);
      };
      const polls = readdirSync(`/proc/${pid}/fd`).filter(
        (fd) => file(fd) === "anon_inode:[eventpoll]",
      );
      const taps = polls.filter((fd) => polled(fd).some((tap) => file(tap) === "/dev/net/tun"));
      const poll = polls.find((fd) => polled(fd).some((other) => taps.includes(other)));
      const call = (tid: string) => readFileSync(`/proc/${pid}/task/${tid}/syscall`, "utf8");
      const waits = new RegExp(`^\\d+ 0x${Number(poll).toString(16)} `);
      const thread = readdirSync(`/proc/${pid}/task`).find((tid) => waits.test(call(tid)));
      return thread === undefined ? undefined : Number(thread);
    }

    async function hold(tid: number): Promise<number> {
      const script = fileURLToPath(new URL("../lab/hold.py", import.meta.url));
      const holder = spawn("python3", [script, `${tid}`], { stdio: ["pipe", "pipe", "inherit"] });
      onTestFinished(() => void holder.kill());
      await once(holder.stdout, "data");
      return tid;
    }
  });

  /** What the service said since it was started last. */
  async function messages() {
    const journal = await machine.journal("vtep.service");
    const said = journal.filter(({ _TRANSPORT }) => _TRANSPORT === "stdout");
    const invocation = said.at(-1)?._SYSTEMD_INVOCATION_ID;
    return said
      .filter(({ _SYSTEMD_INVOCATION_ID }) => _SYSTEMD_INVOCATION_ID === invocation)
      .map(({ MESSAGE = "", PRIORITY }) => {
        const json = MESSAGE.startsWith("{") ? JSON.parse(MESSAGE) : undefined;
        return { priority: PRIORITY, text: MESSAGE, json };
      });
  }
});

describe("systemd", () => {
  const KEEPER = `
    import { openSync } from "node:fs";
    import * as systemd from "${PACKAGE}/build/keeper/systemd.mjs";
    const kept = systemd.handedOver().map(({ name, fd }) => name + " " + fd);
    if (kept.length === 0) systemd.storeDescriptors("one", [openSync("/etc/hostname")]);
    process.on("SIGHUP", () => systemd.notifyReloading());
    process.on("SIGUSR1", () => systemd.notifyReady("reloaded"));
    process.on("SIGUSR2", () => systemd.forgetDescriptors("one"));
    process.on("SIGTERM", () => systemd.notifyStopping());
    systemd.notifyReady(kept.length + " kept: " + kept);
    setInterval(() => undefined, 1000);`;
  const UNIT = `[Service]
Type=notify
ExecStart=/usr/bin/env node /run/keeper.mjs
ExecReload=/bin/kill -HUP $MAINPID
FileDescriptorStoreMax=4
TimeoutStopSec=1
`;
  const state = async () => (await machine.show("keeper", "ActiveState")).ActiveState;

  test("keeps descriptors, and knows of reloads and stops, as it is told", async () => {
    await build({
      entryPoints: [join(ROOT, "src/systemd.ts")],
      outfile: join(ROOT, "build/keeper/systemd.mjs"),
      bundle: true,
      format: "esm",
      platform: "node",
    });
    await machine.write("/run/keeper.mjs", KEEPER);
    await machine.write("/run/systemd/system/keeper.service", UNIT);
    await systemctl("daemon-reload");
    await systemctl("start", "keeper");
    expect(await machine.show("keeper", "StatusText", "NFileDescriptorStore")).toEqual({
      StatusText: "0 kept:",
      NFileDescriptorStore: "1",
    });
    await systemctl("restart", "keeper");
    expect((await machine.show("keeper", "StatusText")).StatusText).toBe("1 kept: one 3");

    const reload = systemctl("reload", "keeper"); // which may wait for its end
    // By its own word: systemd says so already while it runs what sends the signal.
    await until("a reload", async () => {
      const { ActiveState, ControlPID } = await machine.show("keeper", "ActiveState", "ControlPID");
      return ActiveState === "reloading" && ControlPID === "0";
    });
    await systemctl("kill", "--signal=SIGUSR1", "keeper");
    await reload;
    await until("its end", async () => (await state()) === "active");
    expect((await machine.show("keeper", "StatusText")).StatusText).toBe("reloaded");

    await systemctl("kill", "--signal=SIGUSR2", "keeper");
    await until("an empty store", async () => {
      const { NFileDescriptorStore } = await machine.show("keeper", "NFileDescriptorStore");
      return NFileDescriptorStore === "0";
    });

    await systemctl("kill", "--signal=SIGTERM", "keeper");
    await until("it to be stopping", async () => (await state()) === "deactivating");
    await systemctl("kill", "--signal=SIGKILL", "keeper");
  });
});

describe("vtep service", () => {
  const unit = "/etc/systemd/system/vtep.service";
  const refusal = async (...args: string[]) =>
    await machine.finish("node", `${PACKAGE}/dist/cli.js`, "service", ...args);

  test("installs once, and changes nothing when there is nothing to change", async () => {
    await vtep("service", "uninstall");
    await machine.run("rm", "-rf", "/etc/vtep");
    const none = await refusal("status");
    expect(none).toEqual({
      code: 1,
      stderr: "",
      stdout: "no service is installed; run: vtep service install\n",
    });
    const wrote = [
      `wrote ${unit}`,
      "wrote /etc/systemd/system/vtep@.service",
      "wrote /etc/systemd/system/vtep.socket",
      "wrote /etc/systemd/system/vtep-docker.service",
      "wrote /etc/systemd/system/vtep-docker.socket",
      "wrote /etc/sysusers.d/vtep.conf",
      "wrote /etc/tmpfiles.d/vtep.conf",
    ];
    const next = "next: edit /etc/vtep/vtep.yaml, then systemctl enable --now vtep";
    expect((await vtep("service", "install")).trim().split("\n")).toEqual([
      ...wrote,
      "wrote /etc/vtep/vtep.yaml",
      next,
    ]);
    await configure(crossing);
    const again = wrote.map((line) => line.replace("wrote", "unchanged"));
    expect((await vtep("service", "install")).trim().split("\n")).toEqual([...again, next]);
    expect(await machine.run("cat", "/etc/vtep/vtep.yaml")).toBe(crossing);
  });

  test("renews what another version wrote, and says where that is", async () => {
    await vtep("service", "install");
    await machine.run("sed", "-i", "s/RestartSec=1/RestartSec=2/", unit);
    const outdated = await refusal("status");
    expect(outdated.code).toBe(1);
    expect(outdated.stdout).toContain(
      `of another version or place (run: vtep service install): ${unit}\n`,
    );
    expect(await vtep("service", "install")).toMatch(new RegExp(`^wrote ${unit}\nunchanged `));
    expect(await systemctl("cat", "vtep")).toContain("RestartSec=100ms\n");
  });

  test("leaves alone what it did not write", async () => {
    await vtep("service", "install");
    await machine.write(unit, "[Service]\nExecStart=/bin/true\n");
    for (const act of ["install", "uninstall"]) {
      expect(await refusal(act)).toEqual({
        code: 2,
        stdout: "",
        stderr: `vtep: ${unit} was not written by "vtep service install": move it away first, and keep what you need in a drop-in (systemctl edit)\n`,
      });
    }
    expect(await machine.run("cat", unit)).toContain("/bin/true");
    await machine.run("rm", unit);
  });

  test("stops and removes what it installed, but no configuration", async () => {
    await vtep("service", "install");
    await configure(crossing);
    await configure(
      `networks: [{ vni: 43, peers: [${theirs.address}] }]\nport: 4790`,
      "/etc/vtep/blue.yaml",
    );
    await systemctl("enable", "--now", "vtep", "vtep@blue");
    const said = await vtep("service", "uninstall");
    expect(said).toContain(`removed ${unit}\n`);
    expect(said).toContain("left in place: /etc/vtep, /var/lib/vtep, the user vtep\n");
    expect(await ours.links()).toEqual(untouched);
    const left = await machine.run(
      "find",
      "/etc/systemd",
      "/run/systemd/system",
      "/etc/sysusers.d",
      "/etc/tmpfiles.d",
      "-name",
      "vtep*",
    );
    expect(left).toBe("");
    expect(await machine.run("cat", "/etc/vtep/vtep.yaml")).toBe(crossing);
    expect(await vtep("service", "uninstall")).toBe("no service is installed\n");
  });

  test("prepares another root without touching this system", async () => {
    await machine.run(
      "sh",
      "-euc",
      "mkdir -p /tmp/root/etc; cp /etc/passwd /etc/group /tmp/root/etc",
    );
    await vtep("service", "install", "--root", "/tmp/root");
    expect(await machine.run("grep", "-c", "^vtep:", "/tmp/root/etc/passwd")).toBe("1\n");
    expect((await machine.finish("test", "-e", unit)).code).toBe(1);
    expect(await vtep("service", "status", "--root", "/tmp/root")).toContain(
      "systemd does not run here",
    );
  });

  test("refuses to be the service of somebody's home, and needs root", async () => {
    await machine.run(
      "sh",
      "-euc",
      `mkdir -p /home/me/vtep; mount --bind ${PACKAGE} /home/me/vtep`,
    );
    const hidden = await machine.finish("node", "/home/me/vtep/dist/cli.js", "service", "install");
    expect(hidden.code).toBe(2);
    expect(hidden.stderr).toMatch(
      /^vtep: \/home\/me\/vtep is hidden from the service[^\n]*npm install --global[^\n]*\n$/,
    );
    const command = `node ${PACKAGE}/dist/cli.js service install`;
    const plain = await machine.finish("setpriv", "--reuid=65534", "sh", "-c", command);
    expect(plain).toMatchObject({
      code: 1,
      stderr: `vtep: writing ${unit} needs root: run it with sudo\n`,
    });
  });
});
