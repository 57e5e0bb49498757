import { once } from "node:events";
import { mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { stripVTControlCharacters } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Client } from "../../src/api/client.ts";
import { disposable } from "../../src/api/socket.ts";
import { Lab } from "../lab/lab.ts";
import { Terminal } from "../lab/terminal.ts";
import { reach } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import { cli, type Vtep } from "../lab/vtep.ts";

const lab = await Lab.draw({ hosts: 2 });
const directory = await mkdtemp(join(tmpdir(), "vtep-commands-"));
const [ours, theirs] = [lab.host(1), lab.host(2)];
const here = await ours.container();
const there = await theirs.container();
const kernel = await theirs.kernelVxlan({ vni: 42, peers: [ours.address] });
afterAll(async () => {
  await kernel[Symbol.asyncDispose]();
  await lab[Symbol.asyncDispose]();
  await rm(directory, { recursive: true });
});

let agent: Vtep;
const file = join(directory, "vtep.yaml");
const network = `{ vni: 42, name: blue, peers: [${theirs.address}], bridge: br0 }`;
beforeAll(async () => {
  await writeFile(file, `networks: [${network}]`);
  agent = await ours.vtep("--config", file, "--offload", "coalesce-udp=off").ready();
  await reach(here, there.address);
});
afterAll(() => agent.stop());

const vtep = (...args: string[]) => ours.finish(["node", cli, ...args], { timeoutMs: 15_000 });
const ask = (words: string) => vtep(...words.split(" "), "--socket", agent.socket);
/** What a command prints that must succeed. */
async function said(words: string): Promise<string> {
  const { code, stdout, stderr } = await ask(words);
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  return stdout;
}
const json = async (words: string) => JSON.parse(await said(`${words} --json`));

/** Makes something happen until somebody has heard of it. */
async function heardOf(isHeard: () => boolean): Promise<void> {
  const client = new Client(agent.socket);
  await until("an event", async () => isHeard() || void (await client.reload()), 20_000);
}

describe("for people", () => {
  test("vtep status", async () => {
    const text = await said("status");
    expect(text).toMatch(new RegExp(`^agent +vtep [\\d.]+, process ${agent.pid}, for \\d`));
    expect(text).toContain(`\nlocal     ${ours.address}, port 4789\n`);
    expect(text).toContain("\noffloads  without coalesce-udp (switched off)\n");
    expect(text).toMatch(/\nNETWORK +VNI +BRIDGE +PEERS +FDB +ENCAP +DECAP +DROPPED\n/);
    expect(text).toMatch(/\nblue +42 +br0 +1 +\d+ +\d+ +\d+ +\d+\n$/);
  });

  test("vtep network list, add, show and remove", async () => {
    expect(await said("network list")).toMatch(/\nblue +42 +vtep42 +br0 +[0-9a-f:]{17} +1450 +1\n/);
    const flags = `--vni 7 --name red --peer ${theirs.address} 10.0.0.3 --fdb 02:00:00:00:00:07=10.0.0.7`;
    expect(await said(`network add ${flags}`)).toBe(
      "network red is forwarded through vtep7, MTU 1450\n",
    );
    expect(await ours.links()).toContain("vtep7");
    const shown = await said("network show red");
    expect(shown).toContain(`\npeers    ${theirs.address}, 10.0.0.3\n`);
    expect(shown).toContain("\nfdb      0 learned, 0 control, 1 static\n");
    expect(await said(`network add --vni 9 --name red --peer ${theirs.address}`)).toBe(
      "network red was there, has this configuration in place of its own, and is forwarded through vtep9, MTU 1450\n",
    );
    expect(await said("network remove red")).toBe("network red has ended\n");
    expect(await said("network list")).not.toContain("red");
  });

  test("vtep peer list, add and remove", async () => {
    expect(await said("peer list")).toBe(`NETWORK  PEER\nblue     ${theirs.address}\n`);
    expect(await said("peer add blue 10.0.0.3")).toBe("10.0.0.3 is a peer of network blue\n");
    expect(await said("peer list blue")).toContain("\nblue     10.0.0.3\n");
    const removed = "10.0.0.3 is no peer of network blue any more\n";
    expect(await said("peer remove blue 10.0.0.3")).toBe(removed);
  });

  test("vtep fdb list, add, remove and flush", async () => {
    await reach(here, there.address);
    const added = "frames for 02:00:00:00:00:77 go to 10.0.0.7\n";
    expect(await said("fdb add blue 02-00-00-00-00-77 10.0.0.7")).toBe(added);
    const lines = (await said("fdb list")).split("\n");
    expect(lines[0]).toMatch(/^NETWORK +MAC +DESTINATION +ORIGIN +AGE +MOVES$/);
    expect(lines).toContainEqual(
      expect.stringMatching(
        new RegExp(`^blue +${there.mac} +${theirs.address} +learned +\\d+ s +0$`),
      ),
    );
    expect(lines).toContainEqual(
      expect.stringMatching(/^blue +02:0+.*:77 +10\.0\.0\.7 +static +- +0$/),
    );
    expect([...lines.slice(1, -1)].sort()).toEqual(lines.slice(1, -1));
    expect(await said("fdb list --origin static")).not.toContain(there.mac);
    expect(await said(`fdb list --remote ${theirs.address}`)).toContain(there.mac);
    const gone = "there is no entry for 02:00:00:00:00:77 any more\n";
    expect(await said("fdb remove blue 02:00:00:00:00:77")).toBe(gone);
    expect(await said(`fdb flush --mac ${there.mac}`)).toBe("1 entry is forgotten\n");
  });

  test("vtep reload", async () => {
    expect(await said("reload")).toBe("no network has changed\n");
    await writeFile(file, `port: 4790\nnetworks: [${network}, { vni: 8, peers: [10.0.0.3] }]`);
    expect(await said("reload")).toBe("added vtep8; only a restart changes port\n");
    await writeFile(file, `networks: [${network}]`);
    expect(await said("reload")).toBe("removed vtep8\n");
  });

  test("vtep log-level", async () => {
    expect(await said("log-level info")).toBe("logging info and above\n");
  });

  test("vtep events", async () => {
    const child = ours.spawn("node", cli, "events", "--socket", agent.socket);
    let heard = "";
    child.stdout.on("data", (text) => {
      heard += text;
    });
    // A container may speak meanwhile, and be learned anew.
    await heardOf(() => /reloaded.*\n/.test(heard));
    child.kill();
    expect(heard).toMatch(/^\d\d:\d\d:\d\d {2}reloaded: no network has changed\n/m);
  });
});

describe("for programs", () => {
  test("every answer is JSON", { timeout: 60_000 }, async () => {
    expect(await json("status")).toMatchObject({ pid: agent.pid, networks: [{ name: "blue" }] });
    expect(await json("network list")).toMatchObject([{ name: "blue", vni: 42 }]);
    expect(await json("network show blue")).toMatchObject({ tap: "vtep42" });
    const added = await json(`network add --vni 7 --name red --peer ${theirs.address}`);
    expect(added).toMatchObject({ name: "red", tap: "vtep7" });
    expect(await json("network remove red")).toEqual({ removed: "red" });
    expect(await json("peer list")).toEqual([{ network: "blue", address: theirs.address }]);
    expect(await json("peer add blue 10.0.0.3")).toMatchObject({ name: "blue" });
    expect(await json("peer remove blue 10.0.0.3")).toEqual({ removed: "10.0.0.3" });
    const entry = { network: "blue", mac: "02:00:00:00:00:77", destination: "10.0.0.7" };
    expect(await json("fdb add blue 02:00:00:00:00:77 10.0.0.7")).toMatchObject(entry);
    expect(await json("fdb list --origin static")).toMatchObject([entry]);
    expect(await json("fdb remove blue 02:00:00:00:00:77")).toEqual({ removed: entry.mac });
    expect(await json("fdb flush")).toEqual({ flushed: expect.any(Number) });
    const changes = { added: [], changed: [], removed: [], restart: [] };
    expect(await json("reload")).toEqual(changes);
    expect(await json("log-level info")).toEqual({ level: "info" });
  });

  test("events are a line of JSON each", async () => {
    const child = ours.spawn("node", cli, "events", "--json", "--socket", agent.socket);
    let heard = "";
    child.stdout.on("data", (text) => {
      heard += text;
    });
    await heardOf(() => /reloaded.*\n/.test(heard));
    child.kill();
    const events = heard
      .split("\n")
      .slice(0, -1)
      .map((line) => JSON.parse(line));
    expect(events).toContainEqual(expect.objectContaining({ event: "reloaded" }));
  });

  test("events end when whoever reads has had enough", async () => {
    const first = `node ${cli} events --json --socket ${agent.socket} | head -n 1`;
    let isOver = false;
    const over = ours.finish(["sh", "-c", first]).finally(() => {
      isOver = true;
    });
    await heardOf(() => isOver);
    const { stdout, stderr } = await over;
    expect(JSON.parse(stdout)).toMatchObject({ event: expect.any(String) });
    expect(stderr).toBe("");
  });

  test("entries are not listed to a reader that has gone, nor into a disk that is full", async () => {
    const list = `node ${cli} fdb list --json --socket ${agent.socket}`;
    const nobody = await ours.finish(["sh", "-c", `${list} | true`]);
    expect(nobody).toMatchObject({ code: 0, stderr: "" });
    const { code, stderr } = await ours.finish(["sh", "-c", `${list} >/dev/full`]);
    expect(stderr).toMatch(/^vtep: standard output cannot be written: .*ENOSPC.*\n$/);
    expect(code).toBe(1);
  });
});

describe("exit codes", () => {
  const cases: [string, number, string][] = [
    ["network show blu", 1, 'there is no network "blu": did you mean "blue"?'],
    ["network remove nobody", 1, "known are blue"],
    ["peer remove blue 10.0.0.99", 1, "has no peer 10.0.0.99"],
    ["fdb remove blue 02:00:00:00:00:99", 1, "has no entry"],
    ["network add --vni 42 --name red --peer 10.0.0.3", 1, "VNI 42 is network blue's"],
    ["network add --vni 9 --peer 192.0.2.1", 1, "192.0.2.1"],
    ["fdb add blue 02:zz 10.0.0.3", 2, 'mac "02:zz" is not a MAC address'],
    ["fdb list --origin somewhere", 2, "learned, control, static"],
    ["peer add blue there", 2, 'address "there" is not an IPv4 or IPv6 address'],
    ["log-level loud", 2, "level must be one of"],
    ["network add --vni x", 2, "--vni must be a whole number"],
    ["network add --vni 9", 2, "no peer"],
    ["network add --vni 9 --vni 10", 2, "twice"],
    ["network show", 2, "NETWORK"],
    ["network lsit", 2, "Did you mean list?"],
    ["fdb lst", 2, "list"],
    ["statsu", 2, "status"],
  ];
  test.each(cases)("vtep %s", async (words, code, sentence) => {
    const last = words.split(" ").at(-1)!;
    const socket = ["lsit", "lst", "statsu"].includes(last) ? [] : ["--socket", agent.socket];
    const refused = await vtep(...words.split(" "), ...socket);
    expect(refused).toMatchObject({ code, stdout: "" });
    expect(refused.stderr).toMatch(/^vtep: [^\n]+\n$/);
    expect(refused.stderr).toContain(sentence);
  });

  test.each([
    "status",
    "network list",
    "network add --vni 1 --peer 10.0.0.2",
    "peer add blue 10.0.0.3",
    "fdb list",
    "fdb list --json",
    "events",
    "reload",
  ])("vtep %s without an agent ends with 3", async (words) => {
    const path = join(directory, "none.sock");
    const { code, stdout, stderr } = await vtep(...words.split(" "), "--socket", path);
    expect({ code, stdout }).toEqual({ code: 3, stdout: "" });
    const sentence = `vtep: the agent is not reachable at ${path} (there is no such socket): start it with vtep run`;
    expect(stderr.startsWith(sentence)).toBe(true);
    expect(stderr).toMatch(/, or name its socket with --socket PATH\n$/);
  });
});

test("vtep fdb list --json by an agent that ends meanwhile ends with 3", async () => {
  const path = join(directory, "mortal.sock");
  const mortal = createServer((_, answer) => {
    answer.write("[", () => answer.destroy());
  });
  await using _ = disposable(mortal.listen(path));
  const { code, stderr } = await vtep("fdb", "list", "--json", "--socket", path);
  expect(stderr).toMatch(/^vtep: the agent is not reachable at [^\n]* \(it has ended\): [^\n]*\n$/);
  expect(code).toBe(3);
});

test("while the agent is stopped, whoever asks is told what to look for, and answered when it goes on", async () => {
  process.kill(agent.pid, "SIGSTOP");
  try {
    const child = ours.spawn("node", cli, "network", "list", "--json", "--socket", agent.socket);
    const [errors, answer, ended] = [text(child.stderr), text(child.stdout), once(child, "exit")];
    let told = "";
    child.stderr.on("data", (piece) => {
      told += piece;
    });
    await until("what is said of silence", () => told.includes("kill -CONT"), 10_000);
    process.kill(agent.pid, "SIGCONT");
    expect(await ended).toEqual([0, null]);
    expect(await errors).toMatch(/^vtep: the agent has not answered for 5 s, [^\n]*\n$/);
    expect(JSON.parse(await answer)).toMatchObject([{ name: "blue" }]);
  } finally {
    process.kill(agent.pid, "SIGCONT");
  }
});

describe("on a terminal", () => {
  /** What a command prints on a terminal, whatever the tests' environment says of colours. */
  const shown = async (words: string, columns = 80) => {
    const environment = 'env --ignore-environment PATH="$PATH" TERM=xterm';
    const vtep = `node ${cli} ${words} --socket ${agent.socket}`;
    const command = `stty columns ${columns}; ${environment} ${vtep}`;
    const log = join(directory, "typescript");
    return ours.run("script", "--quiet", "--return", "--command", command, log);
  };

  test("headings stand out, and nothing is wider than it", { timeout: 60_000 }, async () => {
    const bridge = "a-long-bridge-1";
    const name = "a-network-with-a-name-that-is-longer-than-there-is-room-for-it";
    const client = new Client(agent.socket);
    const fdb = { "02:00:00:00:00:07": "10.0.0.7" };
    await client.putNetwork(name, { vni: 7, bridge, peers: ["10.0.0.3"], fdb });
    for (const words of ["status", "network list", "peer list", "fdb list"]) {
      const text = await shown(words);
      expect(text).toContain("\x1b[1mNETWORK");
      for (const line of stripVTControlCharacters(text).split(/\r?\n/)) {
        expect(line.length, line).toBeLessThanOrEqual(80);
      }
      if (words !== "peer list") expect(text).toContain("…");
    }
    const piped = await said("network list");
    expect(piped).toContain(name);
    expect(stripVTControlCharacters(piped)).toBe(piped);
    await client.removeNetwork(name);
  });

  test.each([
    ["", true],
    ["NO_COLOR=1", false],
  ])("the log of vtep run has colours, or not: %s", async (variable, hasColours) => {
    const words = `run --vni 9 --port 4790 --peer ${ours.address} --socket ${join(directory, "own.sock")}`;
    const run = `exec env --ignore-environment PATH="$PATH" TERM=xterm ${variable} node ${cli} ${words}`;
    const child = theirs.spawn("script", "--quiet", "--command", run, "/dev/null");
    let said = "";
    child.stdout.on("data", (text) => {
      said += text;
    });
    await until("its log", () => said.includes("ready"));
    child.kill();
    await until("its end", async () => !(await theirs.links()).includes("vtep9"));
    expect(stripVTControlCharacters(said) !== said).toBe(hasColours);
  });

  test("nothing is cut where it does not know its size", async () => {
    const text = stripVTControlCharacters(await shown("network list", 0));
    expect(text.trimEnd().split(/\r?\n/)).toEqual(
      (await said("network list")).trimEnd().split("\n"),
    );
  });
});

describe("completion", () => {
  const path = join(directory, "bin");
  beforeAll(async () => {
    await mkdir(path);
    await symlink(cli, join(path, "vtep"));
  });
  /** A shell in which vtep is a command. */
  const shell = (...command: string[]) =>
    ours.run("env", `PATH=${path}:${process.env.PATH}`, `HOME=${directory}`, ...command);

  test("knows commands, flags and the networks of the agent", async () => {
    const words = async (...line: string[]) => {
      const lines = (await shell("vtep", "complete", "--", ...line)).split("\n");
      return lines
        .filter((line) => line !== "" && !line.startsWith(":"))
        .map((line) => line.split("\t")[0]);
    };
    expect(await words("netw")).toEqual(["network"]);
    expect(await words("network", "")).toEqual(["list", "show", "add", "remove"]);
    expect(await words("network", "add", "--fdb-")).toEqual(["--fdb-limit"]);
    const socket = ["--socket", agent.socket];
    expect(await words("network", "show", ...socket, "")).toEqual(["blue"]);
    expect(await words("fdb", "list", ...socket, "--network", "")).toEqual(["blue"]);
    expect(await words("peer", "remove", `--socket=${agent.socket}`, "")).toEqual(["blue"]);
    expect(await words("fdb", "add", ...socket, "")).toEqual(["blue"]);
    expect(await words("fdb", "add", ...socket, "blue", "")).toEqual([]);
    expect(await words("network", "show", "--socket", join(directory, "none"), "")).toEqual([]);
  });

  test("knows what is to be chosen from", async () => {
    const words = async (line: string) => {
      const lines = await shell("vtep", "complete", "--", ...line.split(" "));
      return lines.replaceAll(/\t.*/g, "").trim().split("\n").join(" ");
    };
    expect(await words("run --underlay ")).toBe("auto native dgram :4");
    expect(await words("run --peer 192.0.2.2 192.0.2.3 --log-level=d")).toBe("debug :4");
    expect(await words("doctor --mtu ")).toBe("auto :4");
    expect(await words("config show --offload tso=off,u")).toBe("tso=off,uso=off :4");
    expect(await words("log-level w")).toBe("warn :4");
    expect(await words("fdb list --origin ")).toBe("learned control static :4");
    expect(await words("fdb flush --remote ")).toBe("local :4");
    expect(await words("attach there --ip ")).toBe("auto :4");
    expect(await words("attach there --gateway 192.0.2.1 n")).toBe("none :4");
    expect(await words("attach there --mtu ")).toBe("auto :4");
    expect(await words("run --vni ")).toBe(":4");
    for (const line of ["run --config ", "run --config=v", "doctor --socket ", "config check "]) {
      expect(await words(line)).toBe(":0"); // the shell knows what files there are
    }
  });

  describe.each([
    ["bash", "bash --norc", "source <(vtep completion bash)"],
    ["zsh", "zsh -f", "autoload -Uz compinit; compinit -D; source <(vtep completion zsh)"],
  ])("works in %s", (_, start, source) => {
    let terminal: Terminal;
    beforeAll(async () => {
      await writeFile(join(directory, "two words.yaml"), "");
      terminal = await Terminal.open({ columns: 200 });
      await terminal.line(`cd ${directory}; PS1='> ' PATH=${path}:$PATH HOME=$PWD ${start}`);
      await terminal.line("PS1='> '");
      await terminal.line(source);
    });
    afterAll(() => terminal[Symbol.asyncDispose]());

    test.each([
      ["run --conf", "run --config "],
      ["run --config vt", "run --config vtep.yaml "],
      ["run --config=vt", "run --config=vtep.yaml "],
      ["run --config two", "run --config two\\ words.yaml "],
      ["config check vt", "config check vtep.yaml "],
      ["run --underlay n", "run --underlay native "],
      ["run --underlay=n", "run --underlay=native "],
      ["run --offload tso=off,u", "run --offload tso=off,uso=off "],
      ["fdb list --mac 02:00:00:00:00:01 --ori", "fdb list --mac 02:00:00:00:00:01 --origin "],
      ["network remove --socket SOCKET ", "network remove --socket SOCKET blue "],
      ["peer list --socket=SOCKET b", "peer list --socket=SOCKET blue "],
      ["explain --socket SOCKET --network b", "explain --socket SOCKET --network blue "],
      ["network remove --socket nowhere ", "network remove --socket nowhere "],
      ["run --vni ", "run --vni "],
    ])("%s", async (typed, completed) => {
      const line = (words: string) => `vtep ${words.replace("SOCKET", agent.socket)}`;
      const after = line(completed).replaceAll(/[.\\]/g, "\\$&");
      // Keys of the line editor's, which it takes in turn: after Ctrl-C, what is typed may be lost.
      await terminal.press("C-u", "C-l");
      await terminal.shows(/^>\s*$/);
      await terminal.type(line(typed));
      await terminal.press("Tab");
      await terminal.type("!"); // what was completed is there by then
      await terminal.shows(new RegExp(`^> ${after}!$`, "m"));
    });
  });

  test("works in fish", async () => {
    const completed = async (line: string) => {
      const script = `cd ${directory}; vtep completion fish | source; complete --do-complete 'vtep ${line}'`;
      return shell("fish", "--no-config", "-c", script);
    };
    expect(await completed(`network show --socket ${agent.socket} `)).toMatch(/^blue\t/);
    expect(await completed("run --underlay n")).toMatch(/^native\b/);
    expect(await completed("run --config vt")).toMatch(/^vtep\.yaml\b/);
    expect(await completed("run --vni vt")).toBe("");
  });

  test("is refused for another shell", async () => {
    const refused = await vtep("completion", "tcsh");
    expect(refused).toMatchObject({ code: 2, stdout: "" });
    expect(refused.stderr).toMatch(/^vtep: [^\n]*bash, zsh, fish[^\n]*\n$/);
  });
});
