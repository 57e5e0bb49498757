import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Client } from "../../src/api/client.ts";
import { cut } from "../../src/wire/pcapng.ts";
import { Lab } from "../lab/lab.ts";
import type { Child, Finished } from "../lab/namespace.ts";
import { ping, reach, transferTcp } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import { cli, type Vtep } from "../lab/vtep.ts";

const lab = await Lab.draw({ hosts: 3 });
const directory = await mkdtemp(join(tmpdir(), "vtep-capture-"));
afterAll(async () => {
  await lab[Symbol.asyncDispose]();
  await rm(directory, { recursive: true });
});
const [ours, theirs, strangers] = [lab.host(1), lab.host(2), lab.host(3)];
const [here, there, stranger] = [
  await ours.container(),
  await theirs.container(),
  await strangers.container(),
];
await theirs.kernelVxlan({ vni: 42, peers: [ours.address] });
await strangers.kernelVxlan({ vni: 42, peers: [ours.address] });

const file = join(directory, "file.pcapng");

describe.each(["native", "dgram"])("%s", (underlay) => {
  let vtep: Vtep;
  let client: Client;
  beforeAll(async () => {
    const blue = ["--name", "blue", "--vni", "42", "--peer", theirs.address, "--bridge", "br0"];
    vtep = await ours.vtep(...blue, "--underlay", underlay).ready();
    client = new Client(vtep.socket);
    await reach(here, there.address);
  });
  afterAll(() => vtep[Symbol.asyncDispose]());

  const command = (...args: string[]) => ["node", cli, "capture", "--socket", vtep.socket, ...args];

  /** Captures to the file while something happens, once it has begun, and until it is interrupted. */
  async function captured(args: string[], during: () => Promise<unknown>): Promise<Finished> {
    const child = ours.spawn(...(command("--write", file, ...args) as [string, ...string[]]));
    const ended = finished(child);
    await until("the file to begin", async () => (await readFile(file).catch(() => "")).length > 0);
    await during();
    child.kill("SIGINT");
    return ended;
  }

  /** The stranger asks for a neighbour, and is dropped. */
  async function intrude(): Promise<void> {
    const dropped = async () => (await client.network("blue")).drops.VXLAN_REMOTE_NOT_ALLOWED ?? 0;
    const before = await dropped();
    await stranger.forgetNeighbours();
    const asking = stranger.spawn("ping", "-q", here.address);
    await until("a drop", async () => (await dropped()) > before);
    asking.kill();
  }

  async function frames(...fields: string[]): Promise<string[][]> {
    const columns = fields.flatMap((field) => ["-e", field]);
    const out = await ours.run("tshark", "-r", file, "-T", "fields", ...columns);
    return out
      .split("\n")
      .filter(Boolean)
      .map((line) => line.split("\t"));
  }

  test("captures what crosses both ways, and why it is dropped where it is", async () => {
    await rm(file, { force: true });
    const { code, stderr } = await captured([], async () => {
      expect(await ping(here, there.address, { count: 3 })).toMatchObject({ received: 3 });
      await intrude();
    });
    expect([code, stderr]).toEqual([
      0,
      expect.stringMatching(/^vtep: \d+ frames captured, 0 missed\n$/),
    ]);
    const all = await frames(
      "frame.interface_name",
      "frame.packet_flags_direction",
      "frame.comment",
      "icmp.type",
    );
    const [IN, OUT] = ["0x00000001", "0x00000002"];
    expect(all).toContainEqual(["blue", OUT, `to ${theirs.address}`, "8"]);
    expect(all).toContainEqual(["blue", IN, `from ${theirs.address}`, "0"]);
    const dropped = `from ${strangers.address}; dropped: VXLAN_REMOTE_NOT_ALLOWED`;
    expect(all.map(([, , comment]) => comment)).toContain(dropped);
  });

  test.each([
    ["a remote", ["--remote", strangers.address]],
    ["a MAC", ["--mac", stranger.mac]],
  ])("captures only what has to do with %s", async (_, filter) => {
    await rm(file, { force: true });
    await captured(["--network", "blue", ...filter], async () => {
      await ping(here, there.address, { count: 2 });
      await intrude();
    });
    const all = await frames("eth.src", "frame.comment");
    expect(all.length).toBeGreaterThan(0);
    for (const [source, comment] of all) {
      expect(source).toBe(stranger.mac);
      expect(comment).toMatch(`from ${strangers.address}`);
    }
  });

  test("passes on a number of frames and ends", async () => {
    const echo = here.spawn("ping", "-q", "-i", "0.05", there.address);
    const line = `${command("--count", "4", "--snaplen", "40").join(" ")} | cat >${file}`;
    const { code, stderr } = await ours.finish(["sh", "-c", line]);
    echo.kill();
    expect([code, stderr]).toEqual([0, "vtep: 4 frames captured, 0 missed\n"]);
    const lengths = await frames("frame.cap_len", "frame.len");
    expect(lengths).toHaveLength(4);
    for (const [kept, length] of lengths) expect([kept, Number(length) > 40]).toEqual(["40", true]);
  });

  test("ends when nobody reads on", async () => {
    const echo = here.spawn("ping", "-q", "-i", "0.05", there.address);
    const { code, stderr } = await ours.finish(["sh", "-c", `${command().join(" ")} | head -c 99`]);
    echo.kill();
    expect([code, stderr]).toEqual([0, expect.stringMatching(/captured, 0 missed\n$/)]);
  });

  test("counts every frame as captured or missed, and stands in no frame's way", async () => {
    const count = async () => {
      const { counters, drops } = (await client.network("blue")) as never as {
        counters: Record<string, number>;
        drops: Record<string, number>;
      };
      expect(drops.FULL_RING ?? 0).toBe(0);
      const dropped = Object.values(drops).reduce((sum, count) => sum + count, 0);
      return counters.encapFrames! + counters.decapFrames! + dropped;
    };
    await rm(file, { force: true });
    const atFirst = await count();
    let crossed = 0;
    const { stderr } = await captured([], async () => {
      const before = await count();
      await transferTcp(here, there, { bytes: 30_000_000 });
      await until("silence", async () => {
        const one = await count();
        await new Promise((resolve) => setTimeout(resolve, 100));
        return one === (await count());
      });
      crossed = (await count()) - before;
    });
    const [, taken, missed] = /(\d+) frames? captured, (\d+) missed/.exec(stderr)!.map(Number);
    // A neighbour may be asked for while the capture begins or ends; a frame that is dropped is shown, too.
    expect(taken! + missed!).toBeGreaterThanOrEqual(crossed);
    expect(taken! + missed!).toBeLessThanOrEqual((await count()) - atFirst);
    const packets = cut(await readFile(file)).blocks.filter(({ type }) => type === "packet");
    expect(packets).toHaveLength(taken!);
  });

  test("is one at a time, and given free when the one who captures has gone", async () => {
    const echo = here.spawn("ping", "-q", "-i", "0.05", there.address);
    await rm(file, { force: true });
    const child = ours.spawn(...(command("--write", file) as [string, ...string[]]));
    await until("the file to begin", async () => (await readFile(file).catch(() => "")).length > 0);
    const second = await ours.finish(command("--write", join(directory, "none")));
    expect([second.code, second.stderr]).toEqual([
      1,
      "vtep: somebody captures already, and there can be one at a time: end that capture first\n",
    ]);
    child.kill("SIGKILL");
    const again = async () => (await ours.finish(command("--count", "1", "--write", file))).code;
    await until("a capture", async () => (await again()) === 0);
    echo.kill();
  });

  test("can be ended by whoever is in the agent's group, and is read to its end", async () => {
    await rm(file, { force: true });
    const args = command("--write", file) as [string, ...string[]];
    const ended = finished(ours.spawn(...args));
    await until("the file to begin", async () => (await readFile(file).catch(() => "")).length > 0);
    await client.endCapture();
    const { code, stderr } = await ended;
    expect([code, stderr]).toEqual([0, expect.stringContaining("; somebody else ended it\n")]);
  });

  test("explains what then happens", async () => {
    const words = ["--socket", vtep.socket, "--network", "blue"];
    const explain = async (...args: string[]) => {
      return (await ours.run("node", cli, "explain", ...words, ...args)).trimEnd().split("\n");
    };
    await reach(here, there.address);
    expect((await explain(here.mac, there.mac)).at(-1)).toBe(
      `=> Sent to ${theirs.address}, with VNI 42.`,
    );
    const strange = await explain("--from", strangers.address, stranger.mac, here.mac);
    expect(strange.at(-1)).toMatch(/^=> Dropped as VXLAN_REMOTE_NOT_ALLOWED/);
    const data = JSON.parse((await explain("--json", here.mac, "ff:ff:ff:ff:ff:ff"))[0]!);
    expect(data.verdict).toMatchObject({ outcome: "sent", remotes: [theirs.address] });
  });

  test.each([
    [["--count", "0"], 2, '"0" is not a number'],
    [["--snaplen", "3"], 2, 'snaplen "3" is not a number of bytes from 14 to 262144'],
    [["--network", "blu"], 1, 'there is no network "blu": did you mean "blue"?'],
    [["--mac", "02:00"], 2, 'mac "02:00" is not a MAC address'],
    [["--remote", "here"], 2, "is not"],
    [["--write", "/nowhere/file"], 1, "writing the capture: ENOENT"],
    [["--network", "blue", "--network", "red"], 2, "--network is given twice"],
  ] as const)("refuses %j", async (args, code, sentence) => {
    const precious = join(directory, "precious");
    await writeFile(precious, "x");
    const given = args.includes("--write" as never) ? args : [...args, "--write", precious];
    const refused = await ours.finish(command(...given));
    expect(refused.stderr).toContain(sentence);
    expect(refused.code).toBe(code);
    expect(await readFile(precious, "utf8")).toBe("x");
  });

  test("is cut off when the agent ends, with what was captured: exit code 3", async () => {
    await using other = await ours.vtep("--vni", "7", "--peer", theirs.address, "--port", "4700");
    await other.ready();
    await rm(file, { force: true });
    const args = ["node", cli, "capture", "--socket", other.socket, "--write", file] as const;
    const ended = finished(ours.spawn(...args));
    await until("the file to begin", async () => (await readFile(file).catch(() => "")).length > 0);
    await other.stop();
    const { code, stderr } = await ended;
    const why =
      /^vtep: 0 frames captured, 0 or more missed\nvtep: the agent ended while it was captured, or nothing was read of it for 30 s: /;
    expect([code, stderr]).toEqual([3, expect.stringMatching(why)]);
    const { blocks, rest } = cut(await readFile(file));
    expect(blocks.map(({ type }) => type)).not.toContain("statistics");
    expect(rest).toHaveLength(0);
  });
});

async function finished(child: Child): Promise<Finished> {
  let [stdout, stderr] = ["", ""];
  child.stdout.setEncoding("utf8").on("data", (piece) => {
    stdout += piece;
  });
  child.stderr.setEncoding("utf8").on("data", (piece) => {
    stderr += piece;
  });
  const code = await new Promise<number | null>((resolve) => child.once("close", resolve));
  return { code, stdout, stderr };
}
