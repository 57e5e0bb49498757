import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Endpoints, Lab } from "../lab/lab.ts";
import { ping, reach } from "../lab/traffic.ts";
import { until } from "../lab/until.ts";
import { kinds } from "./kinds.ts";

const lab = await Lab.draw({ hosts: 2 });
afterAll(() => lab[Symbol.asyncDispose]());
const ours = await lab.host(1).container();
const theirs = await lab.host(2).container();

describe.each(kinds)("%s beside kernel VXLAN", (kind) => {
  let endpoints: Endpoints;
  beforeAll(async () => {
    endpoints = await lab.join([kind, "kernel"]);
  });
  afterAll(() => endpoints[Symbol.asyncDispose]());

  const directions = [
    ["towards the kernel's host", ours, theirs],
    ["from the kernel's host", theirs, ours],
  ] as const;

  describe.each(directions)("%s", (_, from, to) => {
    test("resolves a neighbour from cold by ARP", async () => {
      await Promise.all([from.forgetNeighbours(), to.forgetNeighbours()]);
      expect(await ping(from, to.address, { count: 1 })).toMatchObject({ received: 1 });
      expect(await from.neighbour(to.address)).toBe(to.mac);
    });

    test("resolves a neighbour from cold by neighbour discovery", async () => {
      await Promise.all([from.forgetNeighbours(), to.forgetNeighbours()]);
      expect(await ping(from, to.address6, { count: 1 })).toMatchObject({ received: 1 });
      expect(await from.neighbour(to.address6)).toBe(to.mac);
    });

    // 1,422 bytes fill the overlay's MTU over IPv4, 1,402 over IPv6; one more makes two fragments.
    test.each([56, 1_000, 1_402, 1_403, 1_422, 1_423, 2_000, 4_000, 8_000])(
      "pings with a payload of %i bytes over IPv4 and IPv6",
      async (size) => {
        const answered = { sent: 5, received: 5, duplicates: 0 };
        expect(await ping(from, to.address, { size, count: 5 })).toMatchObject(answered);
        expect(await ping(from, to.address6, { size, count: 5 })).toMatchObject(answered);
      },
    );

    test("answers 200 pings at 500 a second", async () => {
      const pings = await ping(from, to.address, { count: 200, intervalMs: 2, size: 1_000 });
      expect(pings).toMatchObject({ sent: 200, received: 200, duplicates: 0 });
    });
  });

  test("learns behind which host a container is", async () => {
    await reach(ours, theirs.address);
    const [here, there] = endpoints;
    await until("the kernel's MAC learned", async () => {
      return (await here?.remoteOf(theirs.mac)) === lab.host(2).address;
    });
    await until("our MAC learned", async () => {
      return (await there?.remoteOf(ours.mac)) === lab.host(1).address;
    });
  });
});
