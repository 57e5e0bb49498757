import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Container } from "../lab/host.ts";
import { type Endpoints, Lab } from "../lab/lab.ts";
import { isSilent, ping, reach } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import { Vtep } from "../lab/vtep.ts";
import { kinds } from "./kinds.ts";

const lab = await Lab.draw({ hosts: 3 });
afterAll(() => lab[Symbol.asyncDispose]());
const [h1, h2, h3] = [lab.host(1), lab.host(2), lab.host(3)];
const containers = [await h1.container(), await h2.container(), await h3.container()] as const;
const [ours, second, third] = containers;
const peersOf1 = { vni: 42, peers: [h2.address, h3.address] };
const peersOf2 = { vni: 42, peers: [h1.address, h3.address] };

// One container that is at home on every host, but is awake on one at a time.
const traveller = { number: 9 };
const places = [
  await h1.container(traveller),
  await h2.container(traveller),
  await h3.container(traveller),
] as const;

async function echoRequests(at: Container): Promise<number> {
  const { kernel } = JSON.parse(await at.run("nstat", "-jasz", "IcmpInEchos"));
  return kernel.IcmpInEchos;
}

describe.each(kinds)("%s beside two hosts with kernel VXLAN", (kind) => {
  let endpoints: Endpoints;
  beforeAll(async () => {
    endpoints = await lab.join([kind, "kernel", "kernel"]);
    for (const place of places) await place.ip("link set eth0 down");
  });
  afterAll(() => endpoints[Symbol.asyncDispose]());

  test("every container reaches every other", async () => {
    for (const from of containers) {
      for (const to of containers.filter((container) => container !== from)) {
        const answered = { sent: 3, received: 3, duplicates: 0 };
        expect(await ping(from, to.address)).toMatchObject(answered);
        expect(await ping(from, to.address6, { size: 4_000 })).toMatchObject(answered);
      }
    }
  });

  const journeys = [
    { what: "from one peer to another", from: 2, to: 3, watcher: ours },
    { what: "from a peer to our host", from: 3, to: 1, watcher: second },
    { what: "from our host to a peer", from: 1, to: 2, watcher: third },
    { what: "within sight of the kernel only", from: 2, to: 3, watcher: second },
  ];
  test.each(journeys)("follows a MAC that moves $what during pings", async (journey) => {
    const from = places[journey.from - 1]!;
    const to = places[journey.to - 1]!;
    await from.ip("link set eth0 up");
    await reach(journey.watcher, from.address);
    const [left, came] = [await echoRequests(from), await echoRequests(to)];
    const pings = journey.watcher.spawn("ping", "-q", "-i", "0.02", from.address);
    await until("pings under way", async () => (await echoRequests(from)) >= left + 10);
    await from.ip("link set eth0 down");
    await to.ip("link set eth0 up");
    // As a machine does that has moved: it makes itself heard from where it is now.
    await ping(to, journey.watcher.address, { count: 1 });
    await until("pings to there", async () => (await echoRequests(to)) >= came + 10);
    pings.kill("SIGKILL");
    expect(await ping(journey.watcher, to.address)).toMatchObject({ received: 3, duplicates: 0 });
    for (const [i, endpoint] of endpoints.entries()) {
      if (i + 1 === journey.to) continue;
      expect(await endpoint.remoteOf(to.mac)).toBe(lab.host(journey.to).address);
    }
    await to.ip("link set eth0 down");
  });

  test("its peer restarts", async () => {
    await reach(ours, second.address);
    await endpoints[1]?.[Symbol.asyncDispose]();
    expect(await isSilent(ours, second.address)).toBe(true);
    endpoints[1] = await h2.join("kernel", peersOf2);
    await reach(ours, second.address);
    await reach(second, ours.address);
  });

  test.each([
    ["the container here", ours, second],
    ["the container there", third, ours],
  ])("it restarts, and %s speaks first", async (_, from, to) => {
    await reach(from, to.address);
    const endpoint = endpoints[0];
    await (endpoint instanceof Vtep ? endpoint.kill() : endpoint?.[Symbol.asyncDispose]());
    expect(await isSilent(from, to.address)).toBe(true);
    endpoints[0] = await h1.join(kind, peersOf1);
    await reach(from, to.address);
    await reach(to, from.address);
  });
});
