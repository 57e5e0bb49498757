import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Container, Host } from "../lab/host.ts";
import { Lab } from "../lab/lab.ts";
import { Ear, isSilent, ping, send, transferTcp } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import type { Vtep } from "../lab/vtep.ts";
import { underlays } from "./kinds.ts";

// Two networks whose containers have the same addresses and the same MACs: what leaks is answered.
const lab = await Lab.draw({ hosts: 2 });
const directory = await mkdtemp(join(tmpdir(), "vtep-networks-"));
afterAll(async () => {
  await lab[Symbol.asyncDispose]();
  await rm(directory, { recursive: true });
});
const [ours, theirs] = [lab.host(1), lab.host(2)];
const red = { vni: 100, bridge: "red" };
const blue = { vni: 16_777_215, bridge: "blue", mtu: 1400 };
const containers = {
  red: [await ours.container(red), await theirs.container(red)],
  blue: [await ours.container(blue), await theirs.container(blue)],
} as { [color: string]: [here: Container, there: Container] };

async function startFromFile(underlay: string): Promise<Vtep> {
  const file = join(directory, `${underlay}.yaml`);
  await writeFile(
    file,
    `
local: ${ours.address}
underlay: ${underlay}
networks:
  - vni: ${red.vni}
    peers: [${theirs.address}]
    bridge: red
    age: 60
  - vni: ${blue.vni}
    peers:
      - ${theirs.address}
    tap: blue-overlay
    bridge: blue
    mtu: 1400
    fdb:
      02:00:00:00:00:63: ${theirs.address}
`,
  );
  return ours.vtep("--config", file).ready();
}

async function mtuOf(host: Host, link: string): Promise<number> {
  const [{ mtu }] = JSON.parse(await host.run("ip", "-json", "link", "show", link));
  return mtu;
}

describe.each(underlays)("two networks of one file over one socket, %s", (underlay) => {
  let vtep: Vtep;
  beforeAll(async () => {
    vtep = await startFromFile(underlay);
    for (const network of [red, blue]) {
      await theirs.kernelVxlan({ ...network, device: network.bridge + 0, peers: [ours.address] });
    }
  });
  afterAll(async () => {
    await vtep.stop();
    await theirs.ip("link del red0", "link del blue0");
  });

  test("have what the file says", async () => {
    const { networks } = await vtep.status();
    expect(networks).toEqual([
      expect.objectContaining({ vni: red.vni, tap: "vtep100", mtu: 1450 }),
      expect.objectContaining({ vni: blue.vni, tap: "blue-overlay", mtu: 1400 }),
    ]);
    expect(await mtuOf(ours, "vtep100")).toBe(1450);
    expect(await mtuOf(ours, "blue-overlay")).toBe(1400);
    expect(networks[1]?.fdb).toContainEqual(
      expect.objectContaining({ mac: "02:00:00:00:00:63", origin: "static" }),
    );
  });

  test.each(Object.entries(containers))("%s crosses both ways", async (_, [here, there]) => {
    const answered = { received: 3, duplicates: 0 };
    expect(await ping(here, there.address)).toMatchObject(answered);
    expect(await ping(there, here.address)).toMatchObject(answered);
  });

  test("carry their own content at the same time", async () => {
    const transfers = await Promise.all(
      Object.values(containers).map(([here, there]) =>
        transferTcp(here, there, { bytes: 20_000_000 }),
      ),
    );
    for (const { sent, received } of transfers) expect(received).toEqual(sent);
    expect(transfers[0]?.sent).not.toEqual(transfers[1]?.sent);
  });

  test.each([0, 1])("do not leak into each other (from end %i)", async (end) => {
    const ears = await Promise.all(
      Object.entries(containers).map(async ([color, ends]) => ({
        color,
        ear: await Ear.open(ends[1 - end]!, 5_000),
      })),
    );
    for (const [color, ends] of Object.entries(containers)) {
      const words = Array.from({ length: 10 }, () => Buffer.from(color));
      await send(ends[end]!, { address: "10.1.0.255", port: 5_000 }, words);
    }
    await until("both", () => ears.every(({ ear }) => ear.heard.length >= 10));
    for (const { color, ear } of ears) {
      expect(ear.count(color)).toBe(10);
      expect(ear.heard).toHaveLength(10);
      await ear[Symbol.asyncDispose]();
    }
  });

  test("go on when the other's container falls silent", async () => {
    await containers.red?.[1].ip("link set eth0 down");
    const [here, there] = containers.blue!;
    expect(await ping(here, there.address)).toMatchObject({ received: 3 });
    // The red one has the same address; had it answered for blue, it would show here.
    await containers.blue?.[1].ip("link set eth0 down");
    expect(await isSilent(here, there.address)).toBe(true);
    for (const [, end] of Object.values(containers)) {
      await end.ip("link set eth0 up", "route replace 224.0.0.0/4 dev eth0");
    }
  });

  test("are removed together", async () => {
    expect(await vtep.stop()).toMatchObject({ code: 0 });
    expect(await ours.links()).toEqual(["blue", "c1", "c2", "eth0", "lo", "red"]);
    vtep = await startFromFile(underlay);
  });
});

test("a status lists a thousand entries of each network's FDB, and says how many there are", async () => {
  const file = join(directory, "large.yaml");
  const entry = (at: number) => {
    const digits = at.toString(16).padStart(4, "0");
    return `"02:00:00:01:${digits.slice(0, 2)}:${digits.slice(2)}": ${theirs.address}`;
  };
  const entries = (count: number) => Array.from({ length: count }, (_, at) => entry(at)).join(", ");
  const network = (vni: number, count: number) => `{ vni: ${vni}, fdb: { ${entries(count)} } }`;
  await writeFile(file, `networks: [${network(1, 1_500)}, ${network(2, 3)}]`);
  await using vtep = await ours.vtep("--config", file).ready();
  const { networks } = await vtep.status();
  expect(networks.map(({ fdb, fdbEntries }) => [fdb.length, fdbEntries])).toEqual([
    [1_000, 1_500],
    [3, 3],
  ]);
});
