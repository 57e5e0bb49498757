/** Forwarding between two agents, over devices that the one leaves open and the other finds. */
import { execFileSync } from "node:child_process";
import { randomInt } from "node:crypto";
import type dgram from "node:dgram";
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import { Counters } from "../../src/counters.ts";
import { Fdb } from "../../src/fdb.ts";
import { Interim, writePlan } from "../../src/interim.ts";
import { Remotes } from "../../src/remotes.ts";
import { monotonicSeconds, type Plan, Vtep } from "../../src/vtep.ts";
import { until } from "../lab/until.ts";
import { descriptors, freePort, ip, networkPlan, planOf, receiver, uniqueName } from "./fixture.ts";

const VNI = 42;
const HERE = "127.0.0.1";
/** The two remotes that flooded frames go to, of indices 1 and 2. */
const THERE = ["127.0.0.2", "127.0.0.3"] as const;
const STATION = "02:00:00:00:00:02";

let namespace: string;
let directory: string;
let plan: Plan;
let last: Vtep;
let remotes: Remotes;
let fdb: Fdb;

beforeEach(async () => {
  namespace = uniqueName();
  directory = mkdtempSync(join(tmpdir(), "vtep-interim-"));
  const port = await freePort();
  remotes = new Remotes();
  for (const address of THERE) remotes.add(address, port);
  fdb = new Fdb(Fdb.allocate(1024, 1));
  fdb.setLimit(1, 100);
  const network = networkPlan({ vni: VNI, flood: [1, 2] });
  plan = planOf(fdb, remotes, { port, flowSeed: randomInt(2 ** 31), networks: [network] });
  last = await Vtep.open(plan, 0);
  ip("netns", "add", namespace);
  const { tap } = network;
  ip("link", "set", tap, "netns", namespace);
  within("sh", "-c", `echo 1 >/proc/sys/net/ipv6/conf/${tap}/disable_ipv6`);
  within("ip", "link", "set", tap, "up");
  within("ip", "address", "add", "192.0.2.1/24", "dev", tap);
  within("ip", "neighbour", "add", "192.0.2.2", "lladdr", STATION, "dev", tap);
});

afterEach(() => {
  last.close();
  ip("netns", "delete", namespace);
  rmSync(directory, { recursive: true });
});

function within(...words: string[]): void {
  execFileSync("nsenter", [`--net=/run/netns/${namespace}`, ...words], { stdio: "ignore" });
}

const kept = () => Object.entries(last.descriptors()).map(([name, fd]) => ({ name, fd }));

async function begin(descriptors = kept()): Promise<Interim | undefined> {
  const interim = await Interim.begin({ directory, descriptors });
  onTestFinished(() => {
    interim?.end();
  });
  return interim;
}

/** What the remotes receive, each in its order. */
async function listen(): Promise<{ sockets: dgram.Socket[]; received: Buffer[][] }> {
  const sockets = await Promise.all(THERE.map((address) => receiver(address, plan.port)));
  onTestFinished(() => {
    for (const socket of sockets) socket.close();
  });
  const received = sockets.map((socket) => {
    const datagrams: Buffer[] = [];
    socket.on("message", (datagram) => datagrams.push(datagram));
    return datagrams;
  });
  return { sockets, received };
}

/** One frame out of the TAP to the station. */
const speak = () => within("bash", "-c", "echo >/dev/udp/192.0.2.2/9");

const latest = (since: number) => [...fdb.rows()].filter(({ seenAt }) => seenAt >= since);
const none = () => [];

describe("between two agents", () => {
  it("forwards both ways as the last one did, by what that had learned, and leaves the devices open", async () => {
    fdb.learn(1, 0x0200, 2, 2, monotonicSeconds());
    writePlan(directory, plan, remotes, latest);
    const { sockets, received } = await listen();
    const interim = await begin();
    speak();
    await until("a datagram", () => received.flat().length > 0);
    expect(received.map(({ length }) => length)).toEqual([0, 1]); // not flooded
    const [datagram] = received[1] as [Buffer];
    expect(datagram.subarray(0, 14).toString("hex")).toBe(`08000000${"00002a00"}${"020000000002"}`);
    sockets[0]!.send(datagram, plan.port, HERE);
    await until("both", () => interim!.counts().frames === 2);
    interim!.end();
    const places = interim!.learned().get(VNI)!;
    expect(places.map(({ address }) => address)).toContain(THERE[0]); // it was local until this came
    sockets[0]!.send(datagram, plan.port, HERE);
    speak();
    last.forward(
      () => undefined,
      () => undefined,
    );
    const counters = new Counters(plan.counters, 1);
    await until("what came after", () => counters.events(1).encapFrames === 1);
    await until("what came after", () => counters.events(1).decapFrames === 1);
    expect(interim!.counts().frames).toBe(2);
  });

  it("floods what was not seen of late", async () => {
    fdb.learn(1, 0x0200, 2, 2, monotonicSeconds() - 60);
    writePlan(directory, plan, remotes, latest);
    const { received } = await listen();
    await begin();
    speak();
    await until("both remotes", () => received.every(({ length }) => length === 1));
  });

  it.each([
    ["no file", () => rmSync(join(directory, "plan.json"))],
    ["a file of no JSON", () => writeFileSync(join(directory, "plan.json"), "{")],
    ["a file of something else", () => writeFileSync(join(directory, "plan.json"), "{}")],
    [
      "the plan of another version",
      () => {
        const file = join(directory, "plan.json");
        writeFileSync(
          file,
          readFileSync(file, "utf8").replace(/"version":"[^"]+"/, '"version":"0"'),
        );
      },
    ],
  ])("does nothing, and opens nothing, with %s", async (_, spoil) => {
    writePlan(directory, plan, remotes, none);
    spoil();
    const before = descriptors();
    expect(await begin()).toBeUndefined();
    expect(descriptors()).toBe(before);
  });

  it.each(["tap", "udp"])("does nothing, and opens nothing, without a %s", async (kind) => {
    writePlan(directory, plan, remotes, none);
    const before = descriptors();
    expect(await begin(kept().filter(({ name }) => !name.startsWith(kind)))).toBeUndefined();
    expect(descriptors()).toBe(before);
    expect(readdirSync("/sys/class/net")).not.toContain(plan.networks[0]!.tap);
  });

  it("makes no TAP in place of one that was deleted", async () => {
    writePlan(directory, plan, remotes, none);
    within("ip", "link", "delete", plan.networks[0]!.tap);
    const before = descriptors();
    expect(await begin()).toBeUndefined();
    expect(descriptors()).toBe(before);
  });

  it("closes nothing that a thread opened when its own were closed already", async () => {
    writePlan(directory, plan, remotes, none);
    within("ip", "link", "delete", plan.networks[0]!.tap);
    const opened: number[] = [];
    const { close } = Vtep.prototype;
    const closing = vi.spyOn(Vtep.prototype, "close").mockImplementation(function (this: Vtep) {
      close.call(this);
      for (let file = 0; file < 4; file++) opened.push(openSync("/dev/null", "r"));
    });
    expect(await begin()).toBeUndefined();
    closing.mockRestore();
    expect(opened).toHaveLength(4);
    for (const fd of opened) closeSync(fd); // EBADF where it is none any more
  });

  it("does not forward by what is not so any more, where it cannot be written how it is", async () => {
    writePlan(directory, plan, remotes, none);
    mkdirSync(join(directory, "plan.json.new"));
    expect(() => writePlan(directory, { ...plan, port: 4790 }, remotes, none)).toThrow(
      /EISDIR.*plan\.json\.new/,
    );
    expect(await begin()).toBeUndefined();
  });

  it("leaves the threads their source ports", async () => {
    writePlan(directory, { ...plan, sourcePorts: [50_000, 50_030] }, remotes, none);
    expect(await begin()).toBeUndefined();
  });

  it("is begun once with what was written, whatever comes of it", async () => {
    writePlan(directory, plan, remotes, none);
    expect(await begin([])).toBeUndefined();
    expect(await begin()).toBeUndefined();
  });

  it("fits whoever opens the same devices in the same way, for whichever networks", async () => {
    writePlan(directory, plan, remotes, none);
    const interim = await begin();
    expect(interim!.fits({ ...plan, networks: [], largestMtu: 1400, flowSeed: 1 })).toBe(true);
    expect(interim!.fits({ ...plan, port: 4790 })).toBe(false);
    expect(interim!.fits({ ...plan, workers: 2 })).toBe(false);
    expect(interim!.fits({ ...plan, local4: "127.0.0.9" })).toBe(false);
    expect(interim!.fits({ ...plan, offloads: { ...plan.offloads, gro: false } })).toBe(false);
  });
});
