import { once } from "node:events";
import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { Client } from "../../src/api/client.ts";
import { disposable } from "../../src/api/socket.ts";
import { load } from "../../src/config-file.ts";
import { checkFilters } from "../../src/doctor/check-filters.ts";
import { type Check, type Finding, SEVERITIES, type Severity } from "../../src/doctor/finding.ts";
import { readSave } from "../../src/doctor/iptables.ts";
import { isObscure, readRuleset } from "../../src/doctor/ruleset.ts";
import type { Host } from "../lab/host.ts";
import { Lab } from "../lab/lab.ts";
import type { Child } from "../lab/namespace.ts";
import { reach, send } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import { cli, type Vtep } from "../lab/vtep.ts";

/*
 *  host 1, examined ── eth0 ══ router ══ eth0 ── host 2, whose VTEP runs
 */
const lab = await Lab.draw({ hosts: 2, routed: true });
afterAll(() => lab[Symbol.asyncDispose]());
const [here, there] = [lab.host(1), lab.host(2)];
const { router } = lab;

interface Visit {
  code: number | null;
  worst: Severity;
  findings: Finding[];
  of(check: Check, subject?: string): Finding[];
}

async function visit(command: string[], host: Host = here): Promise<Visit> {
  const { code, stdout, stderr } = await host.finish(command, { timeoutMs: 25_000 });
  expect(stderr).toBe("");
  const { worst, findings } = JSON.parse(stdout) as { worst: Severity; findings: Finding[] };
  const of = (check: Check, subject?: string) =>
    findings.filter((found) => found.check === check && (!subject || found.subject === subject));
  return { code, worst, findings, of };
}

const network = ["--vni", "42", "--peer", there.address, there.address6];
// Paths are not of a network namespace: whatever agent the machine runs is not to be asked.
const silent = ["--socket", "/nonexistent/vtep.sock"];
const command = (...args: string[]) => {
  const socket = args.includes("--socket") ? [] : silent;
  return ["node", cli, "doctor", "--json", ...network, ...socket, ...args];
};
const doctor = (...args: string[]) => visit(command(...args));

/** What is said of a check, worst first: only what is worse than ok. */
async function complaints(check: Check, ...args: string[]): Promise<Finding[]> {
  return (await doctor(...args)).of(check).filter(({ severity }) => severity !== "ok");
}

/** Does what the doctor prescribes, in the host. */
async function follow({ commands = [] }: Finding): Promise<void> {
  expect(commands).not.toEqual([]);
  await here.run("sh", "-ec", commands.join("\n"));
}

let peer: Vtep;
beforeAll(async () => {
  peer = await there.vtep("--vni", "42", "--peer", here.address, here.address6).ready();
});
afterAll(() => peer.stop());

describe("a host on which all is well", () => {
  test("gets 0, and every path's MTU", async () => {
    const { code, findings, of } = await doctor();
    expect(
      findings.filter(({ severity }) => severity === "warning" || severity === "error"),
    ).toEqual([]);
    expect(code).toBe(0);
    for (const address of [there.address, there.address6]) {
      expect(of("reachability", address)).toMatchObject([{ severity: "ok" }]);
      expect(of("path-mtu", address)).toMatchObject([
        { severity: "ok", finding: expect.stringContaining("carries 1500 bytes") },
      ]);
    }
  });

  test("is told so in lines of at most 80 columns, without escape sequences", async () => {
    const { code, stdout } = await here.finish(["node", cli, "doctor", ...network, ...silent]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^This host\n {2}ok {7}CAP_NET_ADMIN is there\n/);
    expect(stdout).not.toContain("\x1b");
    for (const line of stdout.split("\n")) expect(line.length).toBeLessThanOrEqual(80);
  });

  test("is left as it was", async () => {
    const state = async () => [await here.links(), await here.run("nft", "list", "ruleset")];
    const before = await state();
    await doctor("--bridge", "br42");
    expect(await state()).toEqual(before);
  });
});

test("bad usage ends with 2, as for vtep run", async () => {
  const { code, stdout, stderr } = await here.finish(["node", cli, "doctor", "--vni", "42"]);
  expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
  expect(stderr).toMatch(/^vtep: .*--peer[^\n]*\n$/);
});

describe("the port", () => {
  test("held by a kernel VXLAN device is an error that names it, and the remedy frees it", async () => {
    await here.ip("link add holder type vxlan id 7 dstport 4789 local 10.0.0.1");
    const [down] = await complaints("port");
    expect(down).toMatchObject({ severity: "warning", subject: "holder" });
    await here.ip("link set holder up");
    const { code, of } = await doctor();
    const [finding] = of("port");
    expect({ code, finding }).toMatchObject({
      code: 5,
      finding: { severity: "error", subject: "holder", finding: expect.stringContaining("4789") },
    });
    await follow(finding!);
    expect(await complaints("port")).toEqual([]);
  });

  const hold = (address: string) =>
    `require("dgram").createSocket("${address.includes(":") ? "udp6" : "udp4"}").bind(4789, "${address}", () => console.log("bound"))`;
  test.each([
    ["0.0.0.0", "error"],
    ["::", "error"],
    [here.address, "error"],
    ["127.0.0.1", "note"],
  ] as const)("held at %s by another program is a %s that names it", async (address, severity) => {
    const holder = here.spawn("node", "-e", hold(address));
    await once(createInterface(holder.stdout), "line");
    const [finding] = (await doctor()).of("port");
    expect(finding?.severity).toBe(severity);
    expect(finding?.finding).toContain(`pid ${holder.pid}`);
    expect(finding?.finding).toContain("node");
    holder.kill();
    await once(holder, "close");
  });

  test.each(["native", "dgram"])("held by our own agent, on %s, is no conflict", async (kind) => {
    await using agent = await here.vtep(...network, "--underlay", kind).ready();
    const { of } = await doctor();
    expect(of("port")).toMatchObject([
      { severity: "ok", finding: expect.stringContaining(`pid ${agent.pid}`) },
    ]);
  });
});

describe("source ports", () => {
  const said = async (...args: string[]) => {
    const { of } = await doctor(...args);
    return of("source-ports").map(({ severity, finding }) => `${severity} ${finding}`);
  };

  test("that are reserved for others are a warning, and those offered are not", async () => {
    await here.sysctl({ "ipv4/ip_local_reserved_ports": "50000-50010,60000" });
    const [finding] = await complaints("source-ports");
    expect(finding).toMatchObject({ severity: "warning" });
    expect(finding?.finding).toContain("include 50000-50010 and 60000, which");
    const [range] = /[\d-]+$/.exec(finding!.remedy!)!;
    expect(await complaints("source-ports", "--source-ports", range)).toEqual([]);
    await here.sysctl({ "ipv4/ip_local_reserved_ports": "" });
  });

  test("that are the VXLAN port alone, or all held, are an error, and vtep run is refused", async () => {
    const ports = (text: string) => ["--source-ports", text];
    expect(await said(...ports("4789-4789"))).toEqual([
      expect.stringMatching(/^note .* include the VXLAN port 4789/),
      expect.stringMatching(/^error 0 source ports of 4789-4789/),
    ]);
    const hold = `require("dgram").createSocket("udp4").bind(50000, "${here.address}", () => console.log())`;
    const holder = here.spawn("node", "-e", hold);
    await once(createInterface(holder.stdout), "line");
    expect(await said(...ports("50000-50000"))).toEqual([expect.stringMatching(/^error 0 /)]);
    for (const range of ["4789-4789", "50000-50000"]) {
      const start = here.vtep("--vni", "42", "--peer", there.address, ...ports(range));
      expect([range, await start.exited, start.stderr]).toEqual([
        ...[range, 1],
        expect.stringMatching(/no UDP port from .* is free/),
      ]);
    }
    expect(await said(...ports("50000-50001"))).toEqual([expect.stringMatching(/^warning 1 /)]);
    holder.kill();
    await once(holder, "close");
  });

  test("held by our own agent are no fault", async () => {
    const range = ["--source-ports", "50000-50015"];
    await using agent = await here.vtep(...network, ...range, "--workers", "1").ready();
    const few = ["--workers", "1", "--socket", agent.socket];
    expect(await said(...range, ...few)).toEqual([expect.stringMatching(/^ok 16 /)]);
  });
});

describe("the socket's path", () => {
  const at = async (path: string, ...args: string[]) =>
    (await doctor("--socket", path, ...args)).of("socket");
  let directory: string;
  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), "vtep-doctor-"));
  });
  afterAll(() => rm(directory, { recursive: true }));

  test("that is free, or that of an agent of ours, is ok, and nothing is made", async () => {
    const free = join(directory, "new", "vtep.sock");
    expect(await at(free)).toMatchObject([{ severity: "ok" }]);
    expect(await readdir(directory)).toEqual([]);
    await using agent = await here.vtep(...network).ready();
    const [finding] = await at(agent.socket);
    expect(finding).toMatchObject({ severity: "ok" });
    expect(finding?.finding).toContain(`pid ${agent.pid}`);
    process.kill(agent.pid, "SIGSTOP");
    const [silence] = await at(agent.socket).finally(() => process.kill(agent.pid, "SIGCONT"));
    expect(silence).toMatchObject({ severity: "warning" });
    expect(silence?.finding).toContain("(it does not answer)");
    expect(silence?.remedy).toContain("kill -CONT");
    const others = ["node", cli, "doctor", "--json", "--vni", "77", "--peer", there.address];
    expect((await visit([...others, "--socket", agent.socket])).of("socket")).toMatchObject([
      { severity: "note", finding: expect.stringContaining("forwards none of these networks") },
    ]);
  });

  test("that is a file, lies below one, or is another program's is an error", async () => {
    const file = join(directory, "file");
    await writeFile(file, "");
    const held = join(directory, "held.sock");
    await using _ = disposable(
      createServer((_, answer) => answer.writeHead(500).end()).listen(held),
    );
    for (const [path, words] of [
      [file, "is no socket"],
      [join(file, "vtep.sock"), "is no directory"],
      [held, "already listens"],
    ] as const) {
      const found = await at(path);
      expect(found).toMatchObject([
        { severity: "error", remedy: expect.stringContaining("--socket PATH") },
      ]);
      expect(found[0]?.finding).toContain(words);
    }
    await rm(file);
  });

  test("where one may not write is an error", async () => {
    const nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    const { of } = await visit([...nobody, ...command("--socket", "/run/vtep-none/vtep.sock")]);
    expect(of("socket")).toMatchObject([
      { severity: "error", finding: expect.stringContaining("not permitted") },
    ]);
  });
});

describe("the port for metrics", () => {
  const at = (place: string) => complaints("metrics-listen", "--metrics-listen", place);

  test("at no address of ours is an error", async () => {
    const [finding] = await at("192.0.2.7:9469");
    expect(finding).toMatchObject({
      severity: "error",
      remedy: expect.stringContaining(here.address),
    });
  });

  test("held by another program is an error that names it; by our own agent it is none", async () => {
    const holder = here.spawn(
      "node",
      "-e",
      `require("net").createServer().listen(9469, "127.0.0.1", () => console.log())`,
    );
    await once(createInterface(holder.stdout), "line");
    const [finding] = await at("0.0.0.0:9469");
    expect(finding).toMatchObject({ severity: "error" });
    expect(finding?.finding).toContain(
      `TCP port 9469 (metrics) is held by pid ${holder.pid} (node`,
    );
    expect(await at(`${here.address}:9469`)).toMatchObject([{ severity: "note" }]);
    holder.kill();
    await once(holder, "close");
    expect(await at("0.0.0.0:9469")).toEqual([]);
    await using _ = await here.vtep(...network, "--metrics-listen", "[::]:9469").ready();
    expect(await at("[::]:9469")).toEqual([]);
  });
});

describe("packet filters", () => {
  afterEach(async () => {
    await here.run("nft", "flush", "ruleset");
    for (const tool of ["iptables-legacy", "ip6tables-legacy"]) {
      await here.run("sh", "-c", `${tool} -F; ${tool} -X; ${tool} -P INPUT ACCEPT`);
    }
  });

  /** A base chain at that hook, and one beside it for the rules that begin with "aside:". */
  function table(hook: string, rules: readonly string[]): string {
    const aside = rules.flatMap((rule) => /^aside:(.*)/.exec(rule)?.[1] ?? []);
    const base = rules.filter((rule) => !rule.startsWith("aside:"));
    const chains = [
      ["chain aside {", ...aside, "}"],
      [`chain ${hook} {`, `type filter hook ${hook} priority 0;`, ...base, "}"],
    ];
    const ports = "set ports {\ntype inet_service; flags interval; elements = { 53, 4780-4790 }\n}";
    return ["table inet filter {", ports, ...chains.flat(), "}\n"].join("\n");
  }

  const counters = new Map<Host, { child: Child; lines: string[] }>();
  beforeAll(async () => {
    const count =
      'let n=0;require("dgram").createSocket("udp4").on("message",()=>n++).bind(4790,()=>console.log("bound"));process.stdin.on("data",()=>setTimeout(()=>{console.log(n);n=0},50))';
    for (const host of [here, there]) {
      const child = host.spawn("node", "-e", count);
      const lines: string[] = [];
      createInterface(child.stdout).on("line", (line) => lines.push(line));
      await until("a listener", () => lines.length > 0);
      counters.set(host, { child, lines });
    }
  });

  /** How many of five datagrams get to the port here, or from here to the peer's. */
  async function crossing(hook = "input"): Promise<number> {
    const [to, from] = hook.match(/output|postrouting/) ? [there, here] : [here, there];
    const send = `for i in 1 2 3 4 5; do echo x >/dev/udp/${to.address}/4790; done`;
    await from.finish(["bash", "-c", send]); // it may be refused
    const { child, lines } = counters.get(to)!;
    const before = lines.length;
    child.stdin.write("?");
    return Number(await until("a count", () => lines[before]));
  }

  /** What the doctor says of the filters that the host has: worse than ok, worst first. */
  async function judged(): Promise<Finding[]> {
    const list = (flag: string) => here.run("nft", flag, "list", "ruleset");
    const [legacy, saved, json, listing] = await Promise.all([
      here.run("iptables-legacy-save"),
      here.run("iptables-nft-save"),
      list("-j"),
      list("-a"),
    ]);
    const tables = readRuleset(json, listing).map((table) => {
      return isObscure(table) ? readSave(saved, "iptables")[0]! : table;
    });
    const findings = checkFilters({
      config: load(undefined, {
        vni: "42",
        peers: [there.address, there.address6],
        port: "4790",
      }).config,
      agent: { unseen: "there is none", remedy: "" },
      routes: new Map(
        [here, there].flatMap(({ address, address6 }) => {
          const way = { device: "eth0", mtu: 1500 };
          return [
            [address, { ...way, source: here.address }],
            [address6, { ...way, source: here.address6 }],
          ] as const;
        }),
      ),
      filters: [...readSave(legacy, "iptables-legacy"), ...tables],
      conntrack: undefined,
    });
    const order = ({ severity }: Finding) => SEVERITIES.indexOf(severity);
    return findings.filter(({ severity }) => severity !== "ok").sort((a, b) => order(b) - order(a));
  }

  // Each is also put to the proof with datagrams: what is an error stops all, what is none stops none.
  const RULES: [hook: string, rules: string[], severity: Severity | undefined][] = [
    ["input", ["udp dport 4790 drop"], "error"],
    ["input", ["udp dport 4790 reject"], "error"],
    ["input", ["meta l4proto udp th dport @ports drop"], "error"],
    ["input", ["udp dport { 53, 4000-5000 } counter drop"], "error"],
    ["input", ["udp dport vmap { 4790 : drop, 53 : accept }"], "error"],
    ["input", ["policy drop;"], "error"],
    ["input", ["policy drop; ct state established,related accept"], "error"],
    ["input", ["policy drop; ct state vmap { established : accept, invalid : drop }"], "error"],
    ["input", ["policy drop; tcp dport 4790 accept", "udp sport 1-9 drop"], "error"],
    ["input", ["policy drop; iifname lo accept", 'iifname "eth*" goto aside', "accept"], "error"],
    ["input", ["jump aside", "aside:ip saddr 10.0.0.0/24 drop"], "error"],
    ["input", ["udp dport 4790 jump aside", "drop", "aside:return", "aside:accept"], "error"],
    ["input", ["jump aside", "jump aside", "drop", "aside:tcp dport 22 accept"], "error"],
    ["input", ["ip saddr . udp dport { 10.0.0.2 . 4790 } drop"], "error"],
    ["input", ["ip saddr 10.0.0.1-10.0.0.9 drop"], "error"],
    ["input", ["udp dport != 22 drop"], "error"],
    ["input", ["udp dport >= 4790 drop"], "error"],
    ["input", ["udp dport <= 4790 drop"], "error"],
    ["input", ["fib daddr type local drop"], "error"],
    ["input", ["ip frag-off & 0x1fff != 0 drop", "drop"], "error"],
    ["prerouting", ["meta nfproto ipv4 udp dport 4790 drop"], "error"],
    ["output", ["udp dport 4790 drop"], "error"],
    ["output", ["oifname eth0 meta l4proto udp drop"], "error"],
    ["output", ["ip daddr 10.0.0.2 reject"], "error"],
    ["postrouting", ["udp dport 4790 drop"], "error"],
    ["input", ["udp dport 4789 drop", "udp dport < 4790 drop", "udp dport > 4790 drop"], undefined],
    ["input", ["tcp dport 4790 drop", "tcp dport != 22 drop"], undefined],
    ["input", ["policy drop; udp dport @ports accept"], undefined],
    ["input", ["policy drop; ct state new accept"], undefined],
    ["input", ["policy drop; ct state != established accept"], undefined],
    ["input", ["ip saddr 10.0.0.3-10.0.0.9 drop", "ip6 saddr fd00::2 udp dport 1 drop"], undefined],
    ["input", ["iifname != eth0 drop", "iif lo drop"], undefined],
    ["input", ["udp dport 4790 jump aside", "drop", "aside:accept"], undefined],
    ["input", ["udp dport vmap { 4790 : goto aside }", "aside:ip ttl 0 drop"], "note"],
    ["input", ["goto aside", "drop", "aside:counter"], undefined],
    ["input", ["ct state invalid drop", "ct state untracked drop"], undefined],
    ["input", ["fib daddr type != local drop", "fib saddr type local drop"], undefined],
    ["output", ["udp sport 4790 drop", "udp dport 4789 drop", "iifname eth0 drop"], undefined],
    ["forward", ["drop"], undefined],
    ["input", ["meta mark 1 drop"], "note"],
    ["input", ["meta mark 0 return", "drop"], "note"],
    ["input", ["udp dport 4790 meta length > 60000 drop"], "warning"],
  ];
  test.each(RULES)("of nft, %s: %j: %s", async (hook, rules, severity) => {
    const loaded = await here.finish(["nft", "-f", "-"], { input: table(hook, rules) });
    expect(loaded).toMatchObject({ code: 0, stderr: "" });
    const found = await judged();
    // What cannot be judged stops none of these.
    expect(await crossing(hook)).toBe(severity === "error" ? 0 : 5);
    expect(found[0]?.severity).toBe(severity);
    if (severity !== "error") return;
    expect(found[0]?.finding).toContain("table inet filter");
    for (const finding of found) if (finding.severity === "error") await follow(finding);
    expect(await crossing(hook)).toBe(5);
    expect((await judged()).map(({ severity }) => severity)).not.toContain("error");
  });

  test("that let in what peers may, or may not, send are a warning", async () => {
    const rules = ["policy drop; udp sport 4790 accept"];
    await here.finish(["nft", "-f", "-"], { input: table("input", rules) });
    expect(await judged()).toMatchObject([{ severity: "warning" }]);
    expect((await judged())[0]?.finding).toMatch(/may be dropped by the policy of nft/);
  });

  test.each<[string, Severity | undefined, ...[hook: string, priority: number, rule: string][]]>([
    ["lets in", undefined, ["prerouting", -300, "notrack"]],
    ["lets in", undefined, ["prerouting", -300, "notrack"], ["prerouting", -299, "mark 1 notrack"]],
    ["keeps out", "error", ["prerouting", 0, "notrack"]],
    ["keeps out", "error", ["input", -300, "notrack"]],
  ])("that ask for what is not tracked: notrack %s: %s: %j", async (_, severity, ...chains) => {
    const untracking = chains.map(([hook, priority, rule], at) => {
      return `table inet t${at} {\nchain c {\ntype filter hook ${hook} priority ${priority}; ${rule}\n}\n}\n`;
    });
    const input = table("input", ["policy drop; ct state untracked accept"]);
    const loaded = await here.finish(["nft", "-f", "-"], { input: untracking.join("") + input });
    expect(loaded).toMatchObject({ code: 0, stderr: "" });
    expect(await crossing()).toBe(severity === "error" ? 0 : 5);
    expect((await judged())[0]?.severity).toBe(severity);
  });

  test("are read by the command: nft's, and both kinds of iptables for both families", async () => {
    const rule = [
      "-A",
      "INPUT",
      "-p",
      "udp",
      "-m",
      "multiport",
      "--dports",
      "53,4789",
      "-j",
      "REJECT",
    ];
    await here.run(
      "nft",
      "add table inet t; add chain inet t c { type filter hook input priority 0; }; add rule inet t c udp dport 4789 limit rate 5/second accept; add rule inet t c udp dport 4789 drop",
    );
    const tools = ["iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"];
    for (const tool of tools) await here.run(tool, ...rule);
    const { code, of } = await doctor();
    const found = of("firewall").map(({ severity, finding }) => `${severity} ${finding}`);
    const places = ["iptables", "iptables-legacy", "ip6tables", "ip6tables-legacy"];
    for (const tool of places) {
      const from = tool.startsWith("ip6") ? there.address6 : there.address;
      expect(found).toContainEqual(
        expect.stringMatching(
          new RegExp(
            `^error VXLAN from ${from} is dropped by "-A INPUT .*--dports 53,4789.*\\(${tool}, table filter, chain INPUT\\)$`,
          ),
        ),
      );
    }
    const unsure =
      'warning VXLAN from 10.0.0.2 and fd00::2 may be dropped by "udp dport 4789 drop"';
    expect(found).toContainEqual(expect.stringContaining(unsure));
    expect(code).toBe(5);
  });

  test("that redirect the port are an error", async () => {
    const input =
      "table ip nat {\nchain prerouting {\ntype nat hook prerouting priority -100;\nudp dport 4790 redirect to :5000\n}\n}\n";
    expect(await here.finish(["nft", "-f", "-"], { input })).toMatchObject({ code: 0 });
    const [finding] = await judged();
    expect(finding).toMatchObject({ severity: "error" });
    expect(finding?.finding).toMatch(/sent elsewhere by "udp dport 4790 redirect/);
    await follow(finding!);
    expect(await judged()).toEqual([]);
  });

  const IPTABLES: [rules: string[][], severity: Severity | undefined][] = [
    [[["-A", "INPUT", "-p", "udp", "--dport", "4790", "-j", "DROP"]], "error"],
    [
      [["-A", "INPUT", "-p", "udp", "-m", "multiport", "--dports", "53,4780:4791", "-j", "REJECT"]],
      "error",
    ],
    [
      [["-A", "INPUT", "-m", "comment", "--comment", "-j ACCEPT", "-i", "eth+", "-j", "DROP"]],
      "error",
    ],
    [[["-A", "INPUT", "-m", "conntrack", "--ctstate", "NEW", "-j", "DROP"]], "error"],
    [
      [
        ["-N", "ASIDE"],
        ["-A", "ASIDE", "!", "-s", "10.9.0.0/16", "-j", "DROP"],
        ["-A", "INPUT", "-p", "udp", "-j", "ASIDE"],
      ],
      "error",
    ],
    [
      [
        ["-A", "INPUT", "-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "ACCEPT"],
        ["-P", "INPUT", "DROP"],
      ],
      "error",
    ],
    [
      [
        ["-A", "INPUT", "-p", "udp", "-m", "multiport", "--dports", "4790,4791", "-j", "ACCEPT"],
        ["-P", "INPUT", "DROP"],
      ],
      undefined,
    ],
    [
      [
        ["-A", "INPUT", "-p", "tcp", "--dport", "4790", "-j", "DROP"],
        ["-A", "INPUT", "-i", "lo", "-j", "DROP"],
      ],
      undefined,
    ],
    [[["-A", "INPUT", "-m", "mark", "--mark", "0x8000", "-j", "DROP"]], "note"],
  ];
  describe.each(["iptables-nft", "iptables-legacy"])("of %s", (tool) => {
    test.each(IPTABLES)("%j: %s", async (rules, severity) => {
      for (const rule of rules) await here.run(tool, ...rule);
      const found = await judged();
      expect(await crossing()).toBe(severity === "error" ? 0 : 5);
      expect(found[0]?.severity).toBe(severity);
      if (severity === "error") {
        expect(found).toHaveLength(1); // IPv6 has tables of its own
        expect(found[0]?.commands?.[0]).toMatch(/^iptables/);
        await follow(found[0]!);
        expect(await judged()).toEqual([]);
        expect(await crossing()).toBe(5);
      }
    });
  });
});

describe("conntrack", () => {
  test("that tracks VXLAN is noted, and the rules offered end it", async () => {
    const input =
      "table inet watch {\nchain input {\ntype filter hook input priority 0; ct state new counter\n}\n}\n";
    expect(await here.finish(["nft", "-f", "-"], { input })).toMatchObject({ code: 0 });
    await here.run("ping", "-c", "1", there.address);
    const [finding] = (await doctor()).of("conntrack");
    expect(finding).toMatchObject({ severity: "note", remedy: "do not track VXLAN" });
    await follow(finding!);
    const [after] = (await doctor()).of("conntrack");
    expect(after).toMatchObject({ severity: "ok", finding: expect.stringContaining("NOTRACK") });
    await here.run("nft", "flush", "ruleset");
  });
});

describe("a path that is narrower in its middle", () => {
  afterEach(async () => {
    await lab.setMtu(there, 1500);
    await router.run("nft", "flush", "ruleset");
    for (const family of ["-4", "-6"]) await here.run("ip", family, "route", "flush", "cache");
  });

  test.each([1499, 1400, 1280])(
    "at %d bytes is measured, and who said so is named",
    async (mtu) => {
      await lab.setMtu(there, mtu);
      const { code, of } = await doctor("--mtu", "1430");
      const [over4] = of("path-mtu", there.address);
      const [over6] = of("path-mtu", there.address6);
      expect(over4?.finding).toContain(`carries ${mtu} bytes`);
      expect(over6?.finding).toContain(`carries ${mtu} bytes`);
      // 1430 and 50 bytes fit into 1499, and with 70 they do not.
      expect(over4?.severity).toBe(mtu === 1499 ? "ok" : "warning");
      expect(over6).toMatchObject({
        severity: "warning",
        remedy: expect.stringContaining(`--mtu ${mtu - 70}`),
      });
      expect(over6?.finding).toContain("(fd00::fe says so)");
      expect(code).toBe(4);
    },
  );

  test("or is so at this host's interface, of IPv6 alone, is no wider", async () => {
    await here.sysctl({ "ipv6/conf/eth0/mtu": 1400 });
    const { of } = await doctor("--mtu", "1430");
    await here.sysctl({ "ipv6/conf/eth0/mtu": 1500 });
    const finding = expect.stringContaining("carries 1400 bytes");
    expect(of("path-mtu", there.address6)).toMatchObject([{ severity: "warning", finding }]);
    expect(of("path-mtu", there.address)).toMatchObject([{ severity: "ok" }]);
  });

  test("and whose router says nothing, is measured all the same, and is an error", async () => {
    await lab.setMtu(there, 1403);
    const input =
      "table inet mute {\nchain output {\ntype filter hook output priority 0;\nicmp type destination-unreachable drop\nicmpv6 type packet-too-big drop\n}\n}\n";
    expect(await router.finish(["nft", "-f", "-"], { input })).toMatchObject({ code: 0 });
    const began = performance.now();
    const { code, of } = await doctor();
    expect(performance.now() - began).toBeLessThan(12_000);
    for (const address of [there.address, there.address6]) {
      const [finding] = of("path-mtu", address);
      expect(finding).toMatchObject({ severity: "error" });
      expect(finding?.finding).toMatch(/carries 1403 bytes, .* without a word/);
    }
    expect(code).toBe(5);
  });
});

describe("a peer", () => {
  const about = async (address: string) =>
    visit(["node", cli, "doctor", "--json", ...silent, "--vni", "42", "--peer", address]);

  test("where nothing listens is an error", async () => {
    for (const [address, of] of [
      [there.address, await doctor("--port", "4999")],
      ["fd00::fe", await about("fd00::fe")],
    ] as const) {
      const [finding] = of.of("reachability", address);
      expect(finding).toMatchObject({ severity: "error" });
      expect(finding?.finding).toMatch(/is up, but nothing listens on its UDP port/);
    }
  });

  test("whose VTEP has ended while frames go to it is a warning, until one comes from there", async () => {
    const bridge = "br43";
    const [from, to] = [await here.container({ bridge }), await there.container({ bridge })];
    const own = ["--port", "4795", "--bridge", bridge]; // a VTEP runs there already
    await using agent = here.vtep(...network, ...own);
    await agent.ready();
    const said = async () => {
      const { of } = await doctor(...own, "--socket", agent.socket);
      return of("reachability", there.address).map(({ severity, finding }) => [severity, finding]);
    };
    const peer = { vni: 42, peers: [here.address], bridge, device: "vtep43", port: 4795 };
    const ending = await there.join("native", peer);
    await reach(from, to.address);
    from.spawn("ping", "-i", "0.01", "-q", to.address);
    await ending[Symbol.asyncDispose]();
    // An error where the doctor's datagram happened to get the refusal of that second.
    const [, finding] = await until("a warning", async () => {
      return (await said()).find(([severity]) => severity === "warning");
    });
    expect(finding).toContain(`nobody listens on UDP port 4795 of ${there.address}`);
    await using _again = await there.join("native", peer);
    await reach(from, to.address);
    await until("no refusal", async () => (await said())[0]?.[0] === "ok");
  });

  test("that could not be reached, and can be, is not said to have refused anything", async () => {
    const late = there.address.replace(/\d+$/, "77");
    const bridge = "br43";
    const from = await here.container({ bridge });
    const own = ["--port", "4795", "--bridge", bridge, "--peer", late];
    await using agent = here.vtep(...network, ...own);
    await agent.ready();
    from.spawn("ping", "-q", from.address.replace(/\d+$/, "99")); // every peer is asked for it
    const client = new Client(agent.socket);
    await until("no way there", async () => {
      return (await client.remotes()).some(
        (each) => each.address === late && each.state === "down",
      );
    });
    const listens = 'require("node:dgram").createSocket("udp4").bind(4795, () => console.log(1))';
    await once(there.spawn("node", "-e", listens).stdout, "data");
    await router.ip(`route add ${late} dev h2`);
    await there.ip(`addr add ${late}/32 dev eth0`);
    const { of } = await doctor(...own, "--socket", agent.socket);
    expect(of("reachability", late)).toMatchObject([
      { severity: "warning", finding: expect.stringContaining("or that no way leads there") },
    ]);
    await there.ip(`addr del ${late}/32 dev eth0`);
    await router.ip(`route del ${late}`);
  });

  test("that is an address of this host is an error, whichever it is", async () => {
    await here.ip("addr add 10.9.9.9/32 dev lo", "addr add fd09::9/128 dev lo");
    for (const address of ["10.9.9.9", "fd09::9", "127.0.0.7"]) {
      const own = ["--vni", "42", "--peer", there.address, there.address6, address];
      const { code, findings } = await visit(["node", cli, "doctor", "--json", ...silent, ...own]);
      const found = findings.filter(({ subject }) => subject === address);
      expect(found).toMatchObject([
        { check: "route", severity: "error", remedy: "name the other end" },
      ]);
      expect(code).toBe(5);
    }
    await here.ip("addr del 10.9.9.9/32 dev lo", "addr del fd09::9/128 dev lo");
  });

  test("that a router cannot reach is an error that names the router", async () => {
    const [finding] = (await about("192.0.2.7")).of("reachability");
    expect(finding).toMatchObject({ severity: "error" });
    expect(finding?.finding).toContain("10.0.0.254 says: network unreachable");
  });

  test("to which no route leads is an error", async () => {
    await here.ip("route add unreachable 192.0.2.7");
    expect((await about("192.0.2.7")).of("route")).toMatchObject([{ severity: "error" }]);
    await here.ip("route del unreachable 192.0.2.7");
  });

  test("that answers no ICMP is a warning", async () => {
    const input =
      "table inet mute {\nchain input {\ntype filter hook input priority 0;\nmeta l4proto { icmp, ipv6-icmp } drop\n}\n}\n";
    await there.finish(["nft", "-f", "-"], { input });
    const { of } = await doctor();
    expect(of("reachability", there.address)).toMatchObject([{ severity: "warning" }]);
    expect(of("path-mtu", there.address)).toEqual([]);
    await there.run("nft", "flush", "ruleset");
  });

  test("reached through our own TAP's bridge is an error", { timeout: 60_000 }, async () => {
    await using _ = await here.vtep(...network, "--bridge", "br42").ready();
    await here.ip(
      "link add on7 type veth peer name port7",
      "link set port7 master br42 up",
      "link set on7 up",
    );
    for (const device of ["vtep42", "br42", "on7"]) {
      await here.ip(`route add ${there.address} dev ${device} src ${here.address}`);
      const { code, of } = await doctor("--bridge", "br42");
      const [finding] = of("self-route");
      expect(finding).toMatchObject({ severity: "error", subject: there.address });
      expect(finding?.finding).toContain(`leads through ${device}`);
      expect(code).toBe(5);
      await here.ip(`route del ${there.address} dev ${device}`);
    }
    await here.ip("link del on7");
  });

  test("whose local address is none of ours is said so", async () => {
    const { of } = await doctor("--local", "192.0.2.1");
    const [finding] = of("local-address");
    const answers = { severity: "ok", finding: `${there.address} answers` };
    expect(of("reachability")).toContainEqual(expect.objectContaining(answers));
    expect(finding).toMatchObject({
      severity: "error",
      remedy: expect.stringContaining(here.address),
    });
    expect(finding!.remedy).not.toContain("127.0.0.1"); // from where no peer is reached
  });
});

describe("an agent whose local address has gone, as a provider's prefix may,", () => {
  test("is at it all the same, which is an error", async () => {
    const peers = ["--vni", "42", "--peer", there.address6];
    await using vtep = await here.vtep(...peers).ready();
    const asked = ["node", cli, "doctor", "--json", ...peers, "--socket", vtep.socket];
    const found = async () => {
      const { findings } = await visit(asked);
      return findings.filter(({ severity }) => severity === "error");
    };
    await here.ip("addr add fd00::77/128 dev eth0 nodad", `addr del ${here.address6}/128 dev eth0`);
    const [gone, ...more] = await found();
    await here.ip(`addr add ${here.address6}/128 dev eth0 nodad`, "addr del fd00::77/128 dev eth0");
    expect(gone).toMatchObject({
      check: "local-address",
      finding: expect.stringContaining(`the agent is at ${here.address6}, which`),
      remedy: expect.stringMatching(/^give .* restart .* \([^e]*fd00::77[^e]*\)$/),
    });
    expect(more).toEqual([]);
    expect(await found()).toEqual([]);
  });
});

describe("the interface towards a peer", () => {
  test.each([
    ["tx", "tx-checksumming", "warning"],
    ["tx-udp-segmentation", "tx-udp-segmentation", "note"],
  ])("without %s is told of, and the remedy switches it on", async (option, feature, severity) => {
    await here.run("ethtool", "-K", "eth0", option, "off");
    const found = await complaints("offloads");
    const finding = found.find(({ finding }) => finding.startsWith(feature));
    expect(finding).toMatchObject({ severity, subject: "eth0" });
    await follow(finding!);
    await here.run("ethtool", "-K", "eth0", "tx-udp-segmentation", "on");
    const after = await complaints("offloads");
    expect(after.map(({ finding }) => finding)).not.toContainEqual(
      expect.stringContaining(feature),
    );
  });
});

describe("a bridge", () => {
  test("whose frames packet filters see is a warning, and the remedy ends it", async () => {
    await here.ip("link add br7 type bridge");
    await here.sysctl({
      "bridge/bridge-nf-call-iptables": 1,
      "bridge/bridge-nf-call-arptables": 1,
    });
    const [finding] = await complaints("bridge-netfilter", "--bridge", "br7");
    expect(finding).toMatchObject({ severity: "warning" });
    expect(await complaints("bridge-netfilter")).toEqual([]); // no bridge, no matter
    await follow(finding!);
    expect(await complaints("bridge-netfilter", "--bridge", "br7")).toEqual([]);
    await here.ip("link del br7");
  });

  test("that was removed is an error, and the remedy joins the TAP to it again", async () => {
    await using agent = await here.vtep(...network, "--bridge", "br42").ready();
    const asked = ["--bridge", "br42", "--socket", agent.socket];
    expect(await complaints("tap", ...asked)).toEqual([]);
    await here.ip("link del br42");
    const [finding] = await complaints("tap", ...asked);
    expect(finding).toMatchObject({ severity: "error" });
    await follow(finding!);
    expect(await complaints("tap", ...asked)).toEqual([]);
  });

  test("that has shut the TAP's port is an error, and the remedy opens it; a spanning tree is named", async () => {
    await using agent = await here.vtep(...network, "--bridge", "br42").ready();
    const asked = ["--bridge", "br42", "--socket", agent.socket];
    await here.run("bridge", "link", "set", "dev", "vtep42", "state", "0");
    const [finding] = await complaints("tap", ...asked);
    expect(finding).toMatchObject({ severity: "error" });
    await follow(finding!);
    expect(await complaints("tap", ...asked)).toEqual([]);
    await here.ip("link set br42 type bridge stp_state 1", "link set vtep42 nomaster");
    await here.ip("link set vtep42 master br42");
    const [waiting] = await complaints("tap", ...asked);
    expect(waiting).toMatchObject({ severity: "warning" });
    expect(waiting?.remedy).toContain("br42 has a spanning tree");
  });

  test("whose TAP somebody gave another MAC address is a warning, and the remedy takes it back", async () => {
    await using agent = await here.vtep(...network, "--bridge", "br42").ready();
    const asked = ["--bridge", "br42", "--socket", agent.socket];
    await here.ip("link set vtep42 address 02:00:00:00:00:77");
    const [finding] = await complaints("tap", ...asked);
    expect(finding).toMatchObject({ severity: "warning" });
    await follow(finding!);
    expect(await complaints("tap", ...asked)).toEqual([]);
  });

  test("has a link with the TAP's own MAC address: a warning; the bridge itself may have it", async () => {
    await using _ = await here.vtep(...network, "--bridge", "br42").ready();
    expect(await complaints("duplicate-mac", "--bridge", "br42")).toEqual([]);
    const [{ address }] = JSON.parse(await here.run("ip", "-json", "link", "show", "vtep42"));
    await here.ip(`link add twin address ${address} type veth peer name twin2`);
    const found = await complaints("duplicate-mac", "--bridge", "br42");
    expect(found).toMatchObject([{ severity: "warning", subject: "42" }]);
    expect(found[0]?.finding).toContain(`twin has the MAC address of the TAP vtep42, ${address}`);
    await here.ip("link del twin");
  });
});

describe("what a running agent has counted", () => {
  const HEADERS = { "a foreign VNI": "0800000000002b00", "reserved bits": "0800000100002a00" };
  const frame = "ffffffffffff02000000000108000000000000000000000000000000";
  const say = (hex: string) =>
    send(there, { address: here.address, port: 4789 }, [Buffer.from(hex, "hex")]);

  test("is asked of it: foreign VNIs, reserved bits", async () => {
    await using agent = await here.vtep(...network).ready();
    const visited = () => doctor("--socket", agent.socket);
    expect((await visited()).of("traffic")).toMatchObject([{ severity: "ok" }]);
    for (const header of Object.values(HEADERS)) {
      await say(header + frame);
    }
    await agent.waitFor(({ networks: [network], drops }) => {
      return drops.VXLAN_VNI_NOT_FOUND === 1 && network!.counters.reservedBits === 1;
    });
    const { code, of } = await visited();
    expect(of("traffic").map(({ severity, finding }) => `${severity} ${finding}`)).toEqual([
      "warning 1 datagram came with a VNI that no network here has",
      "note network 42: 1 datagram had reserved bits of their VXLAN header set",
    ]);
    expect(code).toBe(4);
  });

  test("of our own MAC address is a warning", async () => {
    await using agent = await here.vtep(...network).ready();
    const [{ address }] = JSON.parse(await here.run("ip", "-json", "link", "show", "vtep42"));
    const looped = `0800000000002a00${"f".repeat(12)}${address.replaceAll(":", "")}${frame.slice(24)}`;
    await say(looped);
    await agent.waitFor(({ networks: [network] }) => network!.drops.LOCAL_MAC === 1);
    const found = await complaints("duplicate-mac", "--socket", agent.socket);
    expect(found).toMatchObject([{ severity: "warning", subject: "42" }]);
    expect(found[0]?.finding).toContain("1 frame came from a peer with the MAC address");
  });

  test("is noted as not known where nobody answers, with why", async () => {
    const { code, of } = await doctor();
    expect(of("traffic")).toMatchObject([{ severity: "note" }]);
    expect(of("traffic")[0]?.finding).toContain("not reachable at /nonexistent/vtep.sock");
    expect(of("traffic")[0]?.remedy).toContain("start it");
    expect(code).toBe(0);
  });
});

describe("what the doctor is not shown", () => {
  const nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
  test("as an unprivileged user is noted, with what would help", async () => {
    const { of, code } = await visit([...nobody, ...command()]);
    expect(of("capabilities")).toMatchObject([{ severity: "error" }]);
    for (const check of ["firewall", "path-mtu"] as const) {
      expect(of(check)).toMatchObject([
        { severity: "note", remedy: expect.stringContaining("root") },
      ]);
    }
    expect(of("reachability")).toMatchObject([{ severity: "note" }, { severity: "note" }]);
    expect(code).toBe(5);
  });

  test("by an agent that is another user's is presumed to be right", async () => {
    await using agent = await here.vtep(...network).ready();
    const beside = command("--socket", agent.socket);
    const { code, of, findings } = await visit([...nobody, ...beside]);
    const bad = findings.filter(({ severity }) => severity === "warning" || severity === "error");
    expect(bad).toEqual([]);
    expect(of("port")).toMatchObject([{ severity: "note" }]);
    expect(of("capabilities")).toMatchObject([{ severity: "note" }]);
    expect(of("traffic")[0]?.finding).toContain("not permitted");
    expect(code).toBe(0);
  });

  const package_ = fileURLToPath(new URL("../../node_modules/raw-socket", import.meta.url));
  test.each([
    ["not installed", package_, "npm install raw-socket"],
    ["not built", `${package_}/build`, "npm rebuild raw-socket"],
  ])("because raw-socket is %s is noted, and how to get it", async (_, hidden, remedy) => {
    const hide = `mount -t tmpfs none ${hidden} && exec "$@"`;
    const { code, of } = await visit(["unshare", "--mount", "sh", "-c", hide, "sh", ...command()]);
    expect(of("path-mtu")).toMatchObject([
      { severity: "note", remedy: expect.stringContaining(remedy) },
    ]);
    expect(code).toBe(0);
  });

  test.each([
    ["missing", "mount -t tmpfs none /dev/net", "is missing"],
    ["a file", "mount -t tmpfs none /dev/net && touch /dev/net/tun", "is no character device"],
    [
      "not allowed",
      "mount -t tmpfs -o nodev none /dev/net && mknod /dev/net/tun c 10 200",
      "EACCES",
    ],
  ])("by a /dev/net/tun that is %s is an error", async (_, hide, words) => {
    const shell = `${hide} && exec "$@"`;
    const { code, of } = await visit(["unshare", "--mount", "sh", "-c", shell, "sh", ...command()]);
    expect(of("tun")).toMatchObject([
      { severity: "error", finding: expect.stringContaining(words) },
    ]);
    expect(code).toBe(5);
  });

  test("without nft, ethtool, ss is noted, with the packages that have them", async () => {
    // Only ip and node are found.
    const bin =
      'mkdir /tmp/bin$$ && ln -s "$(command -v ip)" "$(command -v node)" /tmp/bin$$ && PATH=/tmp/bin$$ "$@"; code=$?; rm -r /tmp/bin$$; exit $code';
    const { of } = await visit(["sh", "-c", bin, "sh", ...command()]);
    expect(of("firewall")).toMatchObject([
      { severity: "note", remedy: expect.stringMatching(/^install (nf|ip)tables$/) },
    ]);
    expect(of("offloads")).toMatchObject([{ severity: "note", remedy: "install ethtool" }]);
    expect(of("port")).toMatchObject([{ severity: "note", remedy: "install iproute2" }]);
  });
});

describe("the gateway of a network", () => {
  const gateway = ["--bridge", "br0", "--gateway", "10.9.0.1/24"];

  test("whose bridge has lost an address or its MAC address is an error, and the remedies give them back", async () => {
    await using agent = await here.vtep(...network, ...gateway).ready();
    const asked = [...gateway, "--socket", agent.socket];
    expect(await complaints("gateway", ...asked)).toEqual([]);
    await here.ip("addr del 10.9.0.1/24 dev br0", "link set br0 address 02:00:00:00:00:77");
    const found = await complaints("gateway", ...asked);
    expect(found.map(({ severity, finding }) => `${severity} ${finding}`)).toEqual([
      "error network 42: br0 has lost the gateway's address 10.9.0.1/24",
      "error network 42: br0 has lost the gateway's MAC address 02:76:74:65:70:01",
    ]);
    for (const each of found) await follow(each);
    expect(await complaints("gateway", ...asked)).toEqual([]);
  });

  test.each([
    ["a policy", "nft", "type filter hook forward priority 0; policy drop"],
    ["a policy", "iptables-nft", ["-P", "FORWARD", "DROP"]],
    ["a policy", "iptables-legacy", ["-P", "FORWARD", "DROP"]],
    [
      "the last rule",
      "nft",
      "type filter hook forward priority 0; ct state established accept; reject",
    ],
    ["the last rule", "iptables-nft", ["-A", "FORWARD", "-j", "REJECT"]],
  ] as const)("is closed by %s of %s, and opened as prescribed", async (_, tool, closing) => {
    const native = `table ip mine { chain f { ${closing}; }; }\n`;
    if (tool === "nft") await here.finish(["nft", "-f", "-"], { input: native });
    else await here.run(tool, ...closing);
    try {
      const [found, ...others] = await complaints("gateway", ...gateway);
      expect([found?.severity, others]).toEqual(["warning", []]);
      await follow(found!);
      expect(await complaints("gateway", ...gateway)).toEqual([]);
    } finally {
      if (tool === "nft") await here.run("nft", "delete", "table", "ip", "mine");
      else {
        await here.run(tool, "-P", "FORWARD", "ACCEPT");
        await here.run(tool, "-F", "FORWARD");
      }
    }
  });
});
