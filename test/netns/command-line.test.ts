import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, describe, expect, test } from "vitest";
import { disposable } from "../../src/api/socket.ts";
import { OFFLOADS } from "../../src/device.ts";
import { flags } from "../../src/keys.ts";
import { Lab } from "../lab/lab.ts";
import type { Finished } from "../lab/namespace.ts";
import { shim } from "../lab/shim.ts";
import { until } from "../lab/until.ts";
import { cli } from "../lab/vtep.ts";

const lab = await Lab.draw({ hosts: 3 });
const directory = await mkdtemp(join(tmpdir(), "vtep-command-line-"));
afterAll(async () => {
  await lab[Symbol.asyncDispose]();
  await rm(directory, { recursive: true });
});
const [host, peer, fresh] = [lab.host(1), lab.host(2), lab.host(3)];
await host.ip("link add taken type bridge", "link add plain type veth peer name plain2");
const links = await host.links();

const vtep = (...args: string[]) => host.finish(["node", cli, ...args], { timeoutMs: 15_000 });
const socket = ["--socket", join(directory, "vtep.sock")];
const run = (args: string) => vtep("run", ...args.split(" "), ...socket);
const good = `--vni 42 --peer ${peer.address}`;

/** One sentence on standard error with these words in it, and nothing on standard output. */
function expectRefused({ code, stdout, stderr }: Finished, exit: number, words: string[]): void {
  expect(stderr).toMatch(/^vtep: [^\n]+\n$/);
  for (const word of words) expect(stderr).toContain(word);
  expect(stdout).toBe("");
  expect(code).toBe(exit);
}

afterEach(async () => {
  expect(await host.links()).toEqual(links);
});

describe.concurrent("bad usage ends with 2", () => {
  test.each([
    ["--vnii 42", ["--vnii", "--vni"]],
    [`${good} --pear 192.0.2.1`, ["--pear", "--peer"]],
    [`--peer ${peer.address}`, ["--vni"]],
    ["--vni 42", ["--peer"]],
    [`--vni 16777216 --peer ${peer.address}`, ["--vni", "16777215"]],
    [`--vni -1 --peer ${peer.address}`, ["--vni"]],
    [`--vni 4x2 --peer ${peer.address}`, ["--vni"]],
    ["--vni 42 --peer 10.0.0.256", ["--peer", "10.0.0.256"]],
    ["--vni 42 --peer example.net", ["--peer", "example.net"]],
    ["--vni 42 --peer 239.1.1.7", ["--peer", "239.1.1.7", "multicast group"]],
    [`--vni 42 --peer ${host.address}`, [host.address, "own"]],
    [`--vni 42 --peer ${peer.address} --local ${peer.address}`, [peer.address, "own"]],
    [`${good} --local nowhere`, ["--local", "nowhere"]],
    [`${good} --fdb 02:00:00:00:00=${peer.address}`, ["--fdb", "02:00:00:00:00", "MAC"]],
    [`${good} --fdb 02:00:00:00:00:01`, ["--fdb", "MAC=ADDR"]],
    [`${good} --fdb 02:00:00:00:00:01=there`, ["--fdb", "there"]],
    [`${good} --port 0`, ["--port", "65535"]],
    [`${good} --port 70000`, ["--port", "65535"]],
    [`${good} --mtu 1`, ["--mtu", "68"]],
    [`${good} --mtu big`, ["--mtu", "auto"]],
    [`${good} --age never`, ["--age"]],
    [`${good} --underlay kernel`, ["--underlay", "native", "dgram"]],
    [`${good} --source-ports 5-1`, ["--source-ports", "LOW-HIGH"]],
    [`${good} --log-level loud`, ["--log-level", "debug"]],
    [`${good} --tap a-name-of-16-bytes`, ["--tap", "15"]],
    [`${good} --bridge with/slash`, ["--bridge"]],
    [`${good} --config /nonexistent.yaml`, ["/nonexistent.yaml"]],
    [`${good} --config `, ["--config", "no file"]],
    [`${good} --vni`, ["--vni"]],
    [`${good} --vni 43`, ["--vni", "twice", "--config FILE"]],
    [`${good} --quietly`, ["--quietly", "--help"]],
    [`extra ${good}`, ["too many", "--help"]],
    [`${good} --offload tso=off,tso=on`, ["--offload", "tso", "twice", "leave one out"]],
    [`${good} --tap a --tap b`, ["--tap", "twice", "once"]],
    [`${good} --port 1 --port 2`, ["--port", "twice", "once"]],
    [`${good} --config a --config b`, ["--config", "twice", "one file"]],
    [`${good} --tap all`, ["--tap", '"all"', "kernel"]],
    [`${good} --bridge default`, ["--bridge", '"default"', "kernel"]],
    [`${good} --fdb ff:ff:ff:ff:ff:ff=${peer.address}`, ["--fdb", "ff:ff:ff:ff:ff:ff", "peer"]],
  ])("vtep run %s", async (args, words) => {
    expectRefused(await run(args), 2, words);
  });

  test("vtep rum", async () => {
    expectRefused(await vtep("rum"), 2, ["rum", "run"]);
  });

  test.each([
    [["detach", ""], "TARGET is empty"],
    [["network", "show", ""], "NETWORK is empty"],
    [["detach", "there", "--ifname", ""], "--ifname is empty"],
    [["status", "--socket", ""], "--socket is empty"],
    [["top", "--socket", ""], "socket is empty"],
    [["network", "add"], "--vni N"],
    [["network", "--json"], "'--json': the commands of vtep network are list, show, add, remove"],
    [["fdb", "--socket", "X"], "'--socket': the commands of vtep fdb are list, "],
    [["peer", "everybody"], "'everybody': the commands of vtep peer are list, add, remove"],
    [["peer", "list", "--jsonp"], "--json"],
    [["peer", "list", "--colour"], "'--colour': see --help"],
  ])("vtep %j", async (args, word) => {
    expectRefused(await vtep(...args), 2, [word]);
  });

  test("vtep, which then says how it is used", async () => {
    const { code, stdout, stderr } = await vtep();
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expect(stderr).toMatch(/^Usage: vtep/);
    expect(stderr).not.toMatch(/^vtep: /m);
  });
});

describe.concurrent("a bad configuration file ends with 2", () => {
  const network = (vni: number, more = "") => `{ vni: ${vni}, peers: [${peer.address}]${more} }`;
  const files: [string, string, string[]][] = [
    ["an unknown key", `locall: 10.0.0.1\nnetworks: [${network(1)}]`, ["locall", "local"]],
    ["a network's unknown key", `networks: [{ vni: 1, pears: [10.0.0.2] }]`, ["pears", "peers"]],
    ["one VNI twice", `networks: [${network(7)}, ${network(7, ", tap: b")}]`, ["VNI 7"]],
    [
      "one TAP twice",
      `networks: [${network(7, ", tap: t")}, ${network(8, ", tap: t")}]`,
      ["TAP t"],
    ],
    ["a VNI too large", `networks: [${network(16_777_216)}]`, ["vni", "16777215"]],
    ["no network", `local: ${host.address}`, ["networks"]],
    ["an empty list of networks", `networks: []`, ["networks"]],
    ["a list in place of a mapping", "- vni: 1", ["networks"]],
    ["a network without peers", "networks: [{ vni: 1 }]", ["peer"]],
    ["a port as a word", `port: many\nnetworks: [${network(1)}]`, ["port", "65535"]],
    ["a MAC that is none", `networks: [${network(1, ", fdb: { nobody: 10.0.0.2 }")}]`, ["nobody"]],
    ["a tab for indentation", "networks:\n\t- vni: 1", ["Tabs", "line 2"]],
    ["an unclosed bracket", "networks: [", ["line 1"]],
    ["nothing in it", "", ["networks"]],
  ];
  test.each(files)("%s", async (what, text, words) => {
    const file = join(directory, `${what}.yaml`);
    await writeFile(file, text);
    expectRefused(await vtep("run", "--config", file), 2, words);
  });

  test("a directory", async () => {
    expectRefused(await run(`--config ${directory}`), 2, [directory, "name a file in it"]);
  });
});

describe.concurrent("what the system refuses ends with 1", () => {
  // Some have opened it when they are refused.
  let ports = 20_000;
  const ownPort = () => ["--port", `${++ports}`];

  test.each([
    [`${good} --local 192.0.2.1`, ["192.0.2.1", "interface", host.address]],
    ["--vni 42 --peer 192.0.2.1", ["192.0.2.1", "route"]],
    [`${good} --mtu 1451`, ["1451", "1450", "--mtu"]],
    [`--vni 42 --peer ${peer.address6} --mtu 1431`, ["1431", "1430", "--mtu"]],
    [`${good} --tap taken`, ["taken", "--tap"]],
    [`${good} --tap eth0`, ["eth0", "--tap"]],
    [`${good} --bridge plain`, ["plain exists and is no bridge"]],
    [`${good} --bridge eth0`, ["eth0 exists and is no bridge"]],
  ])("vtep run %s", async (args, words) => {
    expectRefused(await run([args, ...ownPort()].join(" ")), 1, words);
  });

  test("run at an IPv6 address that another host may have, or has", async () => {
    const refusal = (...args: string[]) => {
      const words = ["node", cli, "run", "--vni", "42", "--peer", host.address6, ...args];
      return fresh.finish([...words, ...socket, ...ownPort()], { timeoutMs: 15_000 });
    };
    // Who has it is asked at once, and an answer is waited for as long as this lasts.
    await fresh.sysctl({
      "ipv6/conf/eth0/accept_dad": 1,
      "ipv6/conf/eth0/router_solicitation_delay": 0,
      "ipv6/neigh/eth0/retrans_time_ms": 600_000,
    });
    await fresh.ip("addr add fd00::77/64 dev eth0", `addr add ${peer.address6}/64 dev eth0`);
    await until("the answer of who has it", async () => {
      return (await fresh.run("ip", "addr", "show", "dev", "eth0")).includes("dadfailed");
    });
    const tentative = ["fd00::77 cannot be used yet", "tentative", "start again"];
    expectRefused(await refusal("--local", "fd00::77"), 1, tentative);
    const failed = [`another host has ${peer.address6} too`, "another address"];
    expectRefused(await refusal("--local", peer.address6), 1, failed);
    const elsewhere = await refusal("--local", "2001:db8::9");
    expectRefused(elsewhere, 1, ["2001:db8::9 is an address of no interface", fresh.address6]);
    for (const useless of ["fe80:", " ::1"]) expect(elsewhere.stderr).not.toContain(useless);
    await fresh.ip(`addr del ${fresh.address6}/64 dev eth0`);
    expectRefused(await refusal(), 1, ["begins at fe80:", "link-local", "tentative"]);
    await fresh.sysctl({ "ipv6/conf/all/disable_ipv6": 1 });
    const off = ["no route leads to peer", "disable_ipv6=0), then add one, or say with --local"];
    expectRefused(await refusal(), 1, off);
  });

  const start = () => ["node", cli, "run", ...good.split(" "), ...socket, ...ownPort()];
  const nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
  test.each([
    ["root without CAP_NET_ADMIN", ["setpriv", "--bounding-set=-net_admin"]],
    ["an unprivileged user", ["setpriv", ...nobody]],
  ])("run by %s", async (_, wrapper) => {
    const refused = await host.finish([...wrapper, ...start()], { timeoutMs: 15_000 });
    expectRefused(refused, 1, ["CAP_NET_ADMIN"]);
    const bridge = [...wrapper, ...start(), "--bridge", "new"];
    const words = ["bridge new", "CAP_NET_ADMIN", "run as root"];
    expectRefused(await host.finish(bridge, { timeoutMs: 15_000 }), 1, words);
  });

  test("run where iproute2 is not installed", async () => {
    const wrapper = ["env", "PATH=/nonexistent", process.execPath, ...start().slice(1)];
    const refused = await host.finish(wrapper, { timeoutMs: 15_000 });
    expectRefused(refused, 1, ["command ip is missing", "install iproute2"]);
  });

  test.each([
    ["BusyBox", 'exec busybox ip "$@"', ["ip is that of BusyBox"]],
    ["words for people", "echo 1: lo: mtu 65536", ["printed no JSON", '"1: lo: mtu']],
  ])("run where ip is another's: %s", async (_, script, words) => {
    using other = shim(script);
    const refused = await host.finish(["env", other.path, ...start()], { timeoutMs: 15_000 });
    expectRefused(refused, 1, [...words, "install iproute2"]);
  });

  test("docker-plugin where it cannot listen", async () => {
    const listen = (path: string) => {
      return vtep("docker-plugin", "--listen", path, "--state", join(directory, "state.json"));
    };
    const held = join(directory, "plugin.sock");
    await using _ = disposable(createServer().listen(held));
    const words = ["another driver", held, "stop it", "vtep-docker.socket", "--listen PATH"];
    expectRefused(await listen(held), 1, words);
    const file = join(directory, "file");
    await writeFile(file, "precious");
    expectRefused(await listen(file), 1, ["no socket", "--listen PATH"]);
    expectRefused(await listen("/proc/plugin.sock"), 1, ["Docker's driver", "--listen PATH"]);
  });

  test("run where /dev/net/tun is missing", async () => {
    const hidden = 'mount -t tmpfs none /dev/net && exec "$@"';
    const wrapper = ["unshare", "--mount", "sh", "-c", hidden, "sh"];
    const refused = await host.finish([...wrapper, ...start()], { timeoutMs: 15_000 });
    expectRefused(refused, 1, ["/dev/net/tun"]);
  });
});

describe.concurrent("asked for help", () => {
  test("vtep --help names the commands", async () => {
    const { code, stdout, stderr } = await vtep("--help");
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(stdout).toMatch(/Usage: vtep/);
    expect(stdout).toMatch(/\brun\b/);
  });

  test("vtep run --help names every flag", async () => {
    const { code, stdout, stderr } = await vtep("run", "--help");
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(stdout).toContain("--config <FILE>");
    for (const { syntax } of flags()) expect(stdout).toContain(`${syntax} `);
    for (const name of OFFLOADS) expect(stdout).toMatch(RegExp(`\\b${name}\\b`));
    for (const line of stdout.split("\n")) expect(line.length, line).toBeLessThanOrEqual(80);
  });

  test.each(["", "run "])(
    "vtep %s--help says nothing to a reader that has gone",
    async (command) => {
      const script = `{ sleep 1; exec node ${cli} ${command}--help; } | true`;
      const { stdout, stderr } = await host.finish(["sh", "-c", script], { timeoutMs: 15_000 });
      expect({ stdout, stderr }).toEqual({ stdout: "", stderr: "" });
    },
  );

  test.each(["--help", "config example", "config reference"])(
    "%s into a disk that is full is a failure",
    async (words) => {
      const { code, stderr } = await host.finish(["sh", "-c", `node ${cli} ${words} >/dev/full`]);
      expect([code, stderr]).toEqual([
        1,
        expect.stringMatching(/^vtep: standard output cannot be written: .*ENOSPC.*\n$/),
      ]);
    },
  );

  test("vtep --version is that of the package", async () => {
    const { code, stdout } = await vtep("--version");
    const { default: manifest } = await import("../../package.json", { with: { type: "json" } });
    expect({ code, stdout }).toEqual({ code: 0, stdout: `${manifest.version}\n` });
  });
});

describe("vtep config", () => {
  const written = async (name: string, text: string) => {
    const file = join(directory, name);
    await writeFile(file, text);
    return file;
  };

  test("check tells every fault, a line each, and ends with 2", async () => {
    const file = await written(
      "three.yaml",
      "port: high\nnetworks:\n  - vni: 7\n    peer: []\n  -",
    );
    const { code, stdout, stderr } = await vtep("config", "check", file);
    expect(stderr.split("\n")).toEqual([
      `vtep: ${file}:1:7: port must be a whole number from 1 to 65535`,
      `vtep: ${file}:4:5: networks[0].peer is no key of a network: did you mean "peers"?`,
      `vtep: ${file}:5:4: networks[1] must be a mapping with a vni`,
      "",
    ]);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expectRefused(await vtep("config", "show", file), 2, [`${file}:1:7: port`]);
    expectRefused(await run(`--config ${file}`), 2, [`${file}:1:7: port`]);
  });

  test("check says of a good one what is in it, and ends with 0", async () => {
    const file = await written("good.yaml", `networks: [{ vni: 7, peers: [${peer.address}] }]`);
    expect(await vtep("config", "check", file)).toMatchObject({
      ...{ code: 0, stderr: "", stdout: `${file}: fine, 1 network\n` },
    });
    expectRefused(await vtep("config", "check", file, "--port", "0"), 2, ["--port", "65535"]);
  });

  test("show prints what would be run with, and for programs where it came from", async () => {
    const file = await written(
      "shown.yaml",
      `port: 4790\nnetworks:\n  - { vni: 7, peers: [${peer.address}] }`,
    );
    const args = ["config", "show", file, "--dscp", "inherit"];
    const shown = await vtep(...args);
    expect(shown).toMatchObject({ code: 0, stderr: "" });
    expect(shown.stdout).toContain(`# ${file}:1\n`);
    const again = await written("again.yaml", shown.stdout);
    expect(await vtep("config", "check", again)).toMatchObject({ code: 0, stderr: "" });
    const json = await vtep(...args, "--json");
    expect(json).toMatchObject({ code: 0, stderr: "" });
    expect(JSON.parse(json.stdout)).toMatchObject({
      local: { value: null, source: { from: "default" } },
      port: { value: 4790, source: { from: "file", file, line: 1, column: 1 } },
      dscp: { value: "inherit", source: { from: "flag", flag: "--dscp" } },
      networks: [
        {
          vni: { value: 7, source: { from: "file", file, line: 3, column: 7 } },
          name: { value: "vtep7", source: { from: "default" } },
        },
      ],
    });
  });

  test("example and reference are there to be redirected", async () => {
    const example = await vtep("config", "example");
    expect(example).toMatchObject({ code: 0, stderr: "" });
    const file = await written("example.yaml", example.stdout);
    expect(await vtep("config", "check", file)).toMatchObject({ code: 0, stderr: "" });
    const reference = await vtep("config", "reference");
    expect(reference).toMatchObject({ code: 0, stderr: "" });
    expect(reference.stdout).toContain("| `vni` | 0 to 16777215 | required |");
  });

  test.each([
    [
      ["config", "chek"],
      ["chek", "check"],
    ],
    [
      ["config", "check", "a", "b"],
      ["check", "1 argument"],
    ],
    [["config", "check", ""], ["names no file"]],
    [["config", "check", "/nonexistent.yaml"], ["/nonexistent.yaml"]],
    [["config", "example", "--jsn"], ["--jsn"]],
  ])("%j ends with 2", async (args, words) => {
    expectRefused(await vtep(...args), 2, words);
  });

  test("alone says how it is used", async () => {
    const { code, stdout, stderr } = await vtep("config");
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expect(stderr).toMatch(/^Usage: vtep config/);
  });
});

describe("/etc/vtep/vtep.yaml", () => {
  /** Runs vtep where this is in /etc, and nothing else. */
  const within = (yaml: string | undefined, ...args: string[]) => {
    const write =
      yaml === undefined ? "" : `&& mkdir /etc/vtep && echo '${yaml}' >/etc/vtep/vtep.yaml`;
    const script = `mount -t tmpfs none /etc ${write} && exec "$@"`;
    // Nothing of the environment leads to files that are gone.
    const command = ["env", "--ignore-environment", process.execPath, cli, ...args];
    return host.finish(["unshare", "--mount", "sh", "-c", script, "sh", ...command], {
      timeoutMs: 15_000,
    });
  };
  const BAD = "networks: [{ vni: 7, peers: [nobody] }]";

  test("is read where no other file and no network is given", async () => {
    const words = ["vtep: /etc/vtep/vtep.yaml:1:30: networks[0].peers[0]", "nobody"];
    expectRefused(await within(BAD, "run"), 2, words);
    expectRefused(await within(BAD, "run", "--port", "4790"), 2, words);
    expectRefused(await within(BAD, "config", "check"), 2, words);
    const fine = await within(BAD.replace("nobody", peer.address), "config", "check");
    expect(fine.stdout).toBe("/etc/vtep/vtep.yaml: fine, 1 network\n");
  });

  test("is not read where either is", async () => {
    const flags = ["--vni", "7", "--peer", peer.address];
    const shown = await within(BAD, "config", "show", ...flags);
    expect(shown).toMatchObject({ code: 0, stderr: "" });
    expectRefused(await within(BAD, "run", "--config", "/none.yaml"), 2, ["/none.yaml"]);
  });

  test("is one of two ways that are named where there is nothing", async () => {
    for (const command of [["run"], ["config", "check"]]) {
      const words = ["--vni N --peer ADDR", "/etc/vtep/vtep.yaml", "--config FILE"];
      expectRefused(await within(undefined, ...command), 2, words);
    }
  });
});

// By itself: some of its TAPs are there for a moment.
test("vtep run with too few open files allowed", async () => {
  const file = join(directory, "many.yaml");
  const vnis = Array.from({ length: 60 }, (_, at) => at + 1);
  const networks = vnis.map((vni) => `{ vni: ${vni}, peers: [${peer.address}] }`);
  await writeFile(file, `networks: [${networks}]`);
  const wrapper = ["prlimit", "--nofile=64", "node", cli, "run", "--config", file, ...socket];
  const refused = await host.finish(wrapper, { timeoutMs: 15_000 });
  expectRefused(refused, 1, ["EMFILE", "ulimit -n"]);
});

// With few it does without some, with fewer it does not run.
test("vtep run says what helps, whichever open file it is that is not allowed", async () => {
  const said: string[] = [];
  for (let most = 28; most <= 60; most += 2) {
    const limited = ["prlimit", `--nofile=${most}`];
    const agent = host.vtepBy(limited, ...good.split(" "), ...socket, "--workers", "2");
    const refusal = await agent.ready().then(
      () => agent.log.find(({ msg }) => msg === "native underlay refused, using dgram")?.reason,
      () => agent.stderr,
    );
    await agent.stop();
    if (refusal !== undefined) said.push(`${refusal}`);
  }
  expect(said).not.toEqual([]);
  for (const refusal of said) expect(refusal).toMatch(/(EMFILE|too many open files).*ulimit -n/);
}, 60_000);
