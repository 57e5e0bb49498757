import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { text } from "node:stream/consumers";
import { afterAll, afterEach, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { Client } from "../../src/api/client.ts";
import { Lab } from "../lab/lab.ts";
import { REFUSING, shim } from "../lab/shim.ts";
import { iperf3, isSilent, ping, reach } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import { cli, Vtep } from "../lab/vtep.ts";
import { underlays } from "./kinds.ts";

const lab = await Lab.draw({ hosts: 2 });
afterAll(() => lab[Symbol.asyncDispose]());
const [ours, theirs] = [lab.host(1), lab.host(2)];
const here = await ours.container();
const there = await theirs.container();
const network = ["--vni", "42", "--peer", theirs.address];
const socket = join(tmpdir(), `vtep-lifecycle-${process.pid}.sock`);

/** What a run must leave as it was. */
async function state(): Promise<{ links: string[]; sockets: string }> {
  const sockets = await ours.run("ss", "--no-header", "--udp", "--listening", "--numeric");
  return { links: await ours.links(), sockets };
}
const untouched = await state();
const remove = (link: string) => ours.ip(`link del ${link}`);

describe.each(underlays)("vtep run on the %s underlay", (kind) => {
  const args = [...network, "--underlay", kind];

  afterEach(async () => {
    await ours.quiesce(); // one that did not end must fail its own test only
    const left = await state();
    for (const link of left.links) if (!untouched.links.includes(link)) await remove(link);
    expect(left).toEqual(untouched);
  });

  test("makes a TAP with the path's MTU, and a bridge if it is missing, and brings both up", async () => {
    await using vtep = await ours.vtep(...args, "--bridge", "br42", "--tap", "tap42").ready();
    const [tap] = JSON.parse(await ours.run("ip", "-json", "link", "show", "tap42"));
    expect(tap).toMatchObject({ mtu: 1450, master: "br42", flags: expect.arrayContaining(["UP"]) });
    const [bridge] = JSON.parse(await ours.run("ip", "-json", "link", "show", "br42"));
    expect(bridge.flags).toContain("UP");
    expect((await vtep.status()).networks).toEqual([
      expect.objectContaining({ vni: 42, tap: "tap42", mtu: 1450, fdb: expect.any(Array) }),
    ]);
  });

  test("makes a bridge by which nobody becomes the router of its host, and leaves another's as it is", async () => {
    const accepts = (bridge: string) =>
      ours.run("cat", `/proc/sys/net/ipv6/conf/${bridge}/accept_ra`);
    const before = await accepts("br0");
    await using vtep = await ours.vtep(...args, "--bridge", "br42").ready();
    expect(await accepts("br42")).toBe("0\n");
    await vtep.stop();
    await using _ = await ours.vtep(...args, "--bridge", "br0").ready();
    expect([await accepts("br0"), before]).toEqual(["1\n", "1\n"]);
  });

  test("forwards for the host itself when no bridge is named", async () => {
    await using _kernel = await theirs.kernelVxlan({ vni: 42, peers: [ours.address] });
    await using _vtep = await ours.vtep(...args).ready();
    await ours.ip("addr add 10.1.0.77/24 dev vtep42");
    expect(await ping(ours, there.address)).toMatchObject({ received: 3, duplicates: 0 });
  });

  test("logs one JSON line a message, the last before traffic being ready", async () => {
    const vtep = await ours.vtep(...args).ready();
    await vtep.status();
    await vtep.stop();
    expect(vtep.stderr).toBe("");
    for (const line of vtep.log) {
      expect(line).toMatchObject({ level: 30, time: expect.any(Number), msg: expect.any(String) });
    }
  });

  const signals = ["SIGTERM", "SIGINT"] as const;
  test.each(signals)("stops within a second on %s", async (signal) => {
    const vtep = await ours.vtep(...args, "--bridge", "br42").ready();
    const { code, ms } = await vtep.stop(signal);
    expect(code).toBe(0);
    expect(ms).toBeLessThan(1_000);
    expect(vtep.stderr).toBe("");
  });

  test("stops within a second under load", async () => {
    await using _kernel = await theirs.kernelVxlan({ vni: 42, peers: [ours.address] });
    await using vtep = await ours.vtep(...args, "--bridge", "br0").ready();
    await reach(here, there.address);
    const load = iperf3(here, there, { seconds: 10 }).catch(() => undefined);
    await vtep.waitFor(({ networks }) => networks[0]!.counters.encapBytes > 10_000_000);
    const { code, ms } = await vtep.stop();
    expect(code).toBe(0);
    expect(ms).toBeLessThan(1_000);
    await here.quiesce();
    await load;
  });

  test("a second signal changes nothing", async () => {
    const vtep = await ours.vtep(...args, "--bridge", "br42").ready();
    const stopped = vtep.stop("SIGINT");
    const { ms } = await vtep.stop("SIGTERM");
    expect(await stopped).toMatchObject({ code: 0 });
    expect(ms).toBeLessThan(1_000);
  });

  test("a signal while it starts leaves nothing behind", async () => {
    const vtep = ours.vtep(...args, "--bridge", "br42");
    await until("its first step", async () => (await ours.links()).includes("vtep42"));
    const { code, ms } = await vtep.stop();
    expect(code).toBe(0);
    expect(ms).toBeLessThan(1_000);
    expect(await state()).toEqual(untouched);
  });

  test("is asked for its status before there is one, and goes on", async () => {
    await using vtep = ours.vtep(...args, "--bridge", "br42");
    await until("its first step", async () => (await ours.links()).includes("br42"));
    process.kill(vtep.pid, "SIGUSR2");
    await vtep.ready();
    expect((await vtep.status()).networks).toHaveLength(1);
  });

  test("leaves a bridge that was there before, and its other ports", async () => {
    const vtep = await ours.vtep(...args, "--bridge", "br0").ready();
    await vtep.stop();
    expect(await state()).toEqual(untouched);
    const [port] = JSON.parse(await ours.run("ip", "-json", "link", "show", "c1"));
    expect(port).toMatchObject({ master: "br0" });
  });

  test("starts again after having been killed", async () => {
    const killed = await ours.vtep(...args, "--bridge", "br42").ready();
    await killed.kill();
    await using again = await ours.vtep(...args, "--bridge", "br42").ready();
    await again.stop();
    await remove("br42"); // it was there already when the second one came
  });

  const workers = kind === "native" ? ["1", "2"] : ["1"];
  test.each(workers)(
    "with as many workers, %s, makes a TAP anew that was deleted",
    async (many) => {
      const tap = "vtep42";
      await using _kernel = await theirs.kernelVxlan({ vni: 42, peers: [ours.address] });
      await using vtep = await ours.vtep(...args, "--bridge", "br0", "--workers", many).ready();
      await reach(here, there.address);
      for (let turn = 1; turn <= 2; turn++) {
        await remove(tap);
        const said = () => vtep.log.filter(({ msg }) => msg === "the TAP is there again").length;
        await until("a new TAP", () => said() === turn);
        await reach(here, there.address);
      }
      const reasons = vtep.log.filter(({ msg }) => msg === "the TAP is made anew");
      expect(reasons.map(({ reason }) => reason)).toEqual(
        Array(2).fill(`interface ${tap} was deleted while in use`),
      );
      expect((await vtep.stop()).code).toBe(0);
      expect(await ours.links()).not.toContain(tap);
    },
  );

  test("waits for nobody who reads its log: it answers, forwards and stops", async () => {
    await using _kernel = await theirs.kernelVxlan({ vni: 42, peers: [ours.address] });
    const socket = join(tmpdir(), `${ours.name}.sock`);
    const child = ours.spawn("node", cli, "run", ...args, "--bridge", "br0", "--socket", socket);
    child.stdin.end();
    const ended = once(child, "exit"); // its output is not read
    const client = new Client(socket);
    await until("an agent", () => client.status().catch(() => undefined));
    for (let times = 0; times < 600; times++) {
      child.kill("SIGUSR2"); // a long line each, more than is kept for who might read them
      await client.status();
    }
    await reach(here, there.address);
    child.kill("SIGTERM");
    expect(await ended).toEqual([0, null]);
    child.stdout.destroy();
  }, 30_000);

  test("makes a bridge of its own anew that was deleted with the TAP", async () => {
    await using vtep = await ours.vtep(...args, "--bridge", "br42").ready();
    await ours.ip("link del br42", "link del vtep42");
    const said = () => vtep.log.some(({ msg }) => msg === "the TAP is there again");
    await until("a new TAP", said);
    expect(await ours.run("ip", "link", "show", "master", "br42")).toContain("vtep42");
    expect((await vtep.stop()).code).toBe(0);
    expect(await state()).toEqual(untouched);
  });

  test("ends with one clear sentence when a TAP that was deleted cannot be made anew", async () => {
    using other = shim(REFUSING);
    const vtep = await ours.vtepBy(["env", other.path], ...args, "--bridge", "br0").ready();
    await writeFile(join(other.directory, "armed"), "");
    await remove("vtep42");
    expect(await vtep.exited).toBe(1);
    expect(vtep.stderr).toMatch(/^vtep: [^\n]*vtep42 was deleted while in use; start again\n$/);
    expect(await state()).toEqual(untouched);
  });

  test("lives through the underlay going down and coming up", async () => {
    await using _kernel = await theirs.kernelVxlan({ vni: 42, peers: [ours.address] });
    await using vtep = await ours.vtep(...args, "--bridge", "br0").ready();
    await reach(here, there.address);
    await ours.ip("link set eth0 down");
    expect(await isSilent(here, there.address)).toBe(true);
    await ours.ip("link set eth0 up", `addr replace ${ours.address6}/64 dev eth0 nodad`);
    await reach(here, there.address);
    await reach(there, here.address);
    expect(vtep.stderr).toBe("");
  });

  test("names the kernel VXLAN device that holds the port", async () => {
    await ours.ip(
      "link add holder type vxlan id 7 dstport 4789 local 10.0.0.1",
      "link set holder up",
    );
    const vtep = ours.vtep(...args, "--bridge", "br42");
    expect(await vtep.exited).toBe(1);
    expect(vtep.stderr).toMatch(/^vtep: [^\n]*4789[^\n]*\n$/);
    expect(vtep.stderr).toContain("holder");
    await remove("holder");
    expect(await state()).toEqual(untouched);
  });

  test("says that another program holds the port, and uses another when told", async () => {
    await using first = await ours.vtep(...args).ready();
    const second = ours.vtep("--vni", "43", "--peer", theirs.address, "--underlay", kind);
    expect(await second.exited).toBe(1);
    expect(second.stderr).toMatch(/^vtep: [^\n]*4789[^\n]*\n$/);
    const elsewhere = ["--vni", "43", "--peer", theirs.address, "--port", "4790"];
    await using third = await ours.vtep(...elsewhere, "--underlay", kind).ready();
    expect(await third.stop()).toMatchObject({ code: 0 });
    expect(await first.stop()).toMatchObject({ code: 0 });
  });
});

describe("twenty networks with a bridge each", () => {
  const bridges = Array.from({ length: 20 }, (_, at) => `br${at + 1}`);
  let file: string;
  beforeAll(async () => {
    file = join(await mkdtemp(join(tmpdir(), "vtep-lifecycle-")), "twenty.yaml");
    const networks = bridges.map(
      (bridge, at) => `  - { vni: ${at + 1}, peers: [${theirs.address}], bridge: ${bridge} }\n`,
    );
    await writeFile(file, `networks:\n${networks.join("")}`);
  });
  afterAll(() => rm(dirname(file), { recursive: true }));

  test("start, and stop within a second", async () => {
    const vtep = await ours.vtep("--config", file).ready();
    expect(await ours.links()).toEqual(expect.arrayContaining([...bridges, "vtep1", "vtep20"]));
    const { code, ms } = await vtep.stop();
    expect(code).toBe(0);
    expect(ms).toBeLessThan(1_000);
    expect(vtep.stderr).toBe("");
    expect(await state()).toEqual(untouched);
  });

  test("stop within a second while they start, and do not start first", async () => {
    // What sets them up goes on when it has been told to stop: else it might be over before.
    const waits = 'touch "$here/began"; while [ -e "$here/held" ]; do sleep 0.01; done';
    using slow = shim(`case "$*" in "-batch -") ${waits};; esac; real "$@"`);
    const [began, held] = [join(slow.directory, "began"), join(slow.directory, "held")];
    await writeFile(held, "");
    const vtep = ours.vtepBy(["env", slow.path], "--config", file);
    await until("their first step", () => existsSync(began));
    const stopped = vtep.stop();
    await rm(held);
    const { code, ms } = await stopped;
    expect(code).toBe(0);
    expect(ms).toBeLessThan(1_000);
    expect(vtep.log.map(({ msg }) => msg)).toEqual(["stopped while starting"]);
    expect(await state()).toEqual(untouched);
  });

  test("of which one cannot be made leave none, and it is named", async () => {
    // Else the kernel makes what `survey` lets pass.
    const edit = 'sed "/add name br20/s/bridge$/none/"';
    using other = shim(`if [ "$*" = "-batch -" ]; then ${edit} | real "$@"; else real "$@"; fi`);
    const words = ["run", "--config", file, "--socket", socket];
    const child = ours.spawn("env", other.path, "node", cli, ...words);
    child.stdout.resume();
    const [[code], stderr] = await Promise.all([once(child, "close"), text(child.stderr)]);
    expect(stderr).toMatch(/^vtep: creating bridge br20 failed: [^\n]+\n$/);
    expect(code).toBe(1);
    expect(await state()).toEqual(untouched);
  });
});

test("a TAP that is deleted again while it is made anew is made anew again", async () => {
  // Gone when it is to be set up.
  const deletes = '[ -e "$here/armed" ] && real link del vtep42 2>/dev/null && rm "$here/armed"';
  using other = shim(`${deletes}; real "$@"`);
  await using vtep = await ours.vtepBy(["env", other.path], ...network).ready();
  const said = (what: string) => vtep.log.filter(({ msg }) => msg === what).length;
  await writeFile(join(other.directory, "armed"), "");
  await remove("vtep42");
  await until("a new TAP", () => said("the TAP is there again") > 0);
  expect(said("the TAP is made anew")).toBe(2);
  expect(await ours.links()).toContain("vtep42");
  expect((await vtep.stop()).code).toBe(0);
});

test("a TAP of somebody else's, in place of one that was deleted, is left alone", async () => {
  using slow = shim('while [ -e "$here/held" ]; do sleep 0.01; done; real "$@"');
  const held = join(slow.directory, "held");
  await using vtep = await ours.vtepBy(["env", slow.path], ...network).ready();
  await writeFile(held, "");
  await ours.ip("link del vtep42", "tuntap add vtep42 mode tap");
  const index = async () =>
    JSON.parse(await ours.run("ip", "-json", "link", "show", "vtep42"))[0].ifindex;
  const before = await index();
  await rm(held);
  const ends = ["the network is gone", "the TAP is there again"];
  await until("its end", () => vtep.log.some(({ msg }) => ends.includes(msg)));
  expect(await index()).toBe(before);
  await remove("vtep42");
});

test("a TAP that cannot be had again takes no other network with it, and is tried again", async () => {
  using other = shim(REFUSING);
  const armed = join(other.directory, "armed");
  const words = [...network, "--name", "red", "--socket", socket];
  await using vtep = await ours.vtepBy(["env", other.path], ...words).ready();
  const said = (what: string) => vtep.log.filter(({ msg }) => msg === what);
  const client = new Client(vtep.socket);
  const names = async () => (await client.networks()).map(({ name }) => name);
  const events = await vtep.events();
  const told = () => events.filter(({ event }) => /^network-/.test(event));
  await client.putNetwork("blue", { vni: 43, peers: [theirs.address], bridge: "br0" });
  await using _kernel = await theirs.kernelVxlan({ vni: 43, peers: [ours.address] });
  await writeFile(armed, "");
  await remove("vtep42");
  await until("a network less", async () => (await names()).length === 1);
  await reach(here, there.address);
  await until("what is lost", () => said("the network is gone").length > 0);
  const { reason } = said("the network is gone")[0]!;
  const red = { name: "red", vni: 42, tap: "vtep42", reason };
  expect((await client.status()).gone).toEqual([red]);
  await until("word of it", () => told().length === 1);
  await expect(client.putPeer("red", "192.0.2.9")).rejects.toMatchObject({ code: "LOST" });
  for (const [what, config] of [
    ["VNI 42", { vni: 42, tap: "t0" }],
    ["TAP vtep42", { vni: 44, tap: "vtep42" }],
  ] as const) {
    await expect(
      client.putNetwork("green", { ...config, peers: [theirs.address] }),
    ).rejects.toMatchObject({
      code: "CONFLICT",
      message: `${what} is network red's: it is gone (vtep status says why): choose another, or remove red`,
    });
  }
  await rm(armed);
  await until("the network", () => said("the network is there again").length > 0, 40_000);
  expect((await names()).toSorted()).toEqual(["blue", "red"]);
  expect((await client.status()).gone).toEqual([]);
  expect(await ours.links()).toContain("vtep42");
  await until("word of that", () => told().length === 2);
  expect(told()).toEqual([
    { event: "network-gone", network: "red", reason },
    { event: "network-back", network: "red" },
  ]);
  await writeFile(armed, "");
  await remove("vtep42");
  await until("a network less", async () => (await names()).length === 1);
  await client.removeNetwork("red");
  expect((await client.status()).gone).toEqual([]);
  await expect(client.removeNetwork("red")).rejects.toMatchObject({ code: "NOT_FOUND" });
}, 60_000);

test("a network that is gone has another name after a reload, or is none any more", async () => {
  using other = shim(REFUSING);
  const armed = join(other.directory, "armed");
  const file = join(other.directory, "vtep.yaml");
  const configure = (...names: string[]) => {
    const networks = names.map((name, at) => ({ name, vni: 42 + at, peers: [theirs.address] }));
    return writeFile(file, JSON.stringify({ networks }));
  };
  await configure("red", "blue");
  const words = ["--config", file, "--socket", socket];
  await using vtep = await ours.vtepBy(["env", other.path], ...words).ready();
  const client = new Client(vtep.socket);
  const names = async () => {
    const { networks, gone } = await client.status();
    return [networks, gone].map((those) => those.map(({ name }) => name).toSorted());
  };
  const lose = async (tap: string, name: string) => {
    await writeFile(armed, "");
    await remove(tap);
    await until("what is gone", async () => (await names())[1]!.includes(name));
  };
  await lose("vtep42", "red");
  await rm(armed);
  await configure("green", "blue");
  expect(await client.reload()).toMatchObject({ added: ["green"], removed: ["red"] });
  expect(await names()).toEqual([["blue", "green"], []]);
  await lose("vtep43", "blue");
  const tries = () => vtep.log.filter(({ msg }) => msg === "the network is gone").length;
  const before = tries();
  await configure("green", "blue");
  expect(await client.reload()).toMatchObject({ added: [], changed: [], removed: [] });
  await until("another try", () => tries() > before);
  expect(await names()).toEqual([["green"], ["blue"]]);
  await rm(armed);
  expect(await client.reload()).toMatchObject({ added: ["blue"], changed: [], removed: [] });
  await lose("vtep43", "blue");
  await configure("green");
  expect(await client.reload()).toMatchObject({ added: [], removed: ["blue"] });
  expect(await names()).toEqual([["green"], []]);
});

test("who asks for something while many networks are tried again waits for one of them", async () => {
  const waits = 'touch "$here/began"; while [ -e "$here/held.$tap" ]; do sleep 0.01; done';
  using slow = shim(`case "$*" in *-batch*) ;; *) real "$@"; exit;; esac
  [ ! -e "$here/armed" ] || exit 2
  changes=$(cat)
  for tap in vtep42 vtep44; do case "$changes" in *$tap*) ${waits};; esac; done
  printf '%s\n' "$changes" | real "$@"`);
  const file = (name: string) => join(slow.directory, name);
  await using vtep = await ours.vtepBy(["env", slow.path], ...network, "--socket", socket).ready();
  const said = (what: string) => vtep.log.filter(({ msg }) => msg === what).length;
  const client = new Client(vtep.socket);
  for (const vni of [43, 44])
    await client.putNetwork(`vtep${vni}`, { vni, peers: [theirs.address] });
  await writeFile(file("armed"), "");
  await remove("vtep42");
  await remove("vtep44");
  await until("what is lost", () => said("the network is gone") === 2);
  for (const tap of ["vtep42", "vtep44"]) await writeFile(file(`held.${tap}`), "");
  await rm(file("began"));
  await rm(file("armed"));
  await until("another try", () => existsSync(file("began")), 40_000);
  const answer = client.attachments();
  for (let asked = 0; asked < 3; asked++) await client.status(); // by when that waits, too
  await rm(file("held.vtep42"));
  expect(await answer).toEqual([]); // while the other one is tried
  await rm(file("held.vtep44"));
  await until("the other one", () => said("the network is there again") === 2);
}, 60_000);

test("a bridge that was made here outlasts a restart with the address that somebody gave it", async () => {
  const directory = await mkdtemp(join(tmpdir(), "vtep-lifecycle-"));
  onTestFinished(() => rm(directory, { recursive: true }));
  const kept = ["env", "VTEP_KEEP=1", `STATE_DIRECTORY=${directory}`];
  const gateway = ["--bridge", "br42", "--gateway", "192.0.2.254/24"];
  const run = () => new Vtep(ours, [...network, ...gateway], kept).ready();
  const addresses = async () => {
    const [{ addr_info }] = JSON.parse(await ours.run("ip", "-j", "-4", "addr", "show", "br42"));
    return addr_info.map(({ local }: { local: string }) => local).sort();
  };
  await (await run()).stop();
  expect(await ours.links()).not.toContain("br42");
  const last = await run();
  await ours.ip("addr add 192.0.2.7/24 dev br42");
  await last.stop();
  const next = await run();
  expect(await addresses()).toEqual(["192.0.2.254", "192.0.2.7"]);
  await ours.ip("addr del 192.0.2.7/24 dev br42");
  await next.stop();
  expect(await ours.links()).toEqual(untouched.links);
});

test("a change is refused while the agent is at an address that the host has no more", async () => {
  await ours.ip("addr add 10.9.9.9/32 dev lo");
  await using vtep = await ours.vtep(...network, "--local", "10.9.9.9").ready();
  await ours.ip("addr del 10.9.9.9/32 dev lo");
  const refusal = /^the agent's sockets are at 10\.9\.9\.9, which .* or restart the agent$/;
  const change = new Client(vtep.socket).putPeer("vtep42", "192.0.2.9");
  await expect(change).rejects.toMatchObject({
    code: "ADDRESS",
    message: expect.stringMatching(refusal),
  });
});

test("reloads that wait for their turn when it is told to stop are refused", async () => {
  const script = 'while [ -e "$here/held" ]; do sleep 0.01; done; real "$@"';
  using slow = shim(script);
  const { directory } = slow;
  const [file, held] = [join(directory, "vtep.json"), join(directory, "held")];
  await writeFile(file, JSON.stringify({ networks: [{ vni: 42, peers: [theirs.address] }] }));
  await using vtep = await ours.vtepBy(["env", slow.path], "--config", file).ready();
  await writeFile(held, "");
  const asked = 10;
  for (let at = 0; at < asked; at++) {
    process.kill(vtep.pid, "SIGHUP");
    await vtep.status(); // two signals at once would be one
  }
  const stopped = vtep.stop();
  await rm(held);
  expect(await stopped).toMatchObject({ code: 0 });
  const said = (what: string) => vtep.log.filter(({ msg }) => msg === what);
  const refused = said("nothing was changed").map(({ reason }) => reason);
  expect(new Set(refused)).toEqual(new Set([expect.stringMatching(/^the agent is stopping/)]));
  expect(said("reloaded").length).toBeGreaterThan(0); // the one that was under way
  expect(said("reloaded").length + refused.length).toBe(asked);
});

describe("an ip that fails while vtep stops", () => {
  const busy = 'echo "RTNETLINK answers: Device or resource busy" >&2';
  test.each([
    ["to list links", `case "$*" in *"addr show"*) ${busy}; exit 2; esac`, ["port42"]],
    [
      "to remove them",
      `case "$*" in *-batch*) ${busy}; echo "Command failed -:1" >&2; exit 1; esac`,
      [],
    ],
  ])("%s costs no bridge that has ports, and is logged", async (_, refuses, ports) => {
    const script = `if [ -e "$here/broken" ]; then ${refuses}; fi; real "$@"`;
    using broken = shim(script);
    const words = ["run", ...network, "--bridge", "br42", "--socket", socket];
    const child = ours.spawn("env", broken.path, "node", cli, ...words);
    const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
    for (let line = ""; !line.includes('"ready"'); ) line = (await lines.next()).value;
    await ours.ip("link add port42 type veth peer name port43");
    await ours.ip(...ports.map((port) => `link set ${port} master br42`));
    await writeFile(join(broken.directory, "broken"), "");
    const ended = once(child, "close");
    child.kill();
    const log: string[] = [];
    for await (const line of lines) log.push(line);
    expect(await ended).toEqual([0, null]);
    expect(log[0]).toMatch(/Device or resource busy.*something is left in place/);
    expect(await ours.links()).toEqual([...untouched.links, "br42", "port42", "port43"].sort());
    await ours.ip("link del port42", "link del br42");
  });
});

// Node 26 finds room for it wherever it starts at all.
const isOlder = Number.parseInt(process.versions.node, 10) < 26;
test.runIf(isOlder)(
  "where no address space is left for its API, it says so and forwards",
  async () => {
    const limited = ["prlimit", "--as=2400000000"];
    await using vtep = await ours.vtepBy(limited, ...network).ready();
    await expect(new Client(vtep.socket).status()).rejects.toThrow("the API could not be loaded");
    const told = vtep.log.find(({ msg }) => msg === "the API could not be loaded");
    expect(told).toMatchObject({
      err: { message: expect.stringMatching(/WebAssembly: .*ulimit -v/) },
    });
    await using _kernel = await theirs.kernelVxlan({ vni: 42, peers: [ours.address] });
    await ours.ip("addr add 10.1.0.77/24 dev vtep42");
    expect(await ping(ours, there.address)).toMatchObject({ received: 3 });
    expect(await vtep.stop()).toMatchObject({ code: 0 });
  },
);

test("runs where /proc is not mounted", async () => {
  const hidden = ["unshare", "--mount", "sh", "-c", 'umount -l /proc && exec "$@"', "sh"];
  const vtep = await ours.vtepBy(hidden, ...network).ready();
  expect(await vtep.stop()).toMatchObject({ code: 0 });
});
