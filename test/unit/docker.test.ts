/** What Docker's calls are answered, by an agent in memory on a host whose links are written down. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { Client } from "../../src/api/client.ts";
import { serve } from "../../src/api/server.ts";
import { aliasOf, linkName } from "../../src/attachments.ts";
import { networkConfig } from "../../src/config.ts";
import { DockerDriver } from "../../src/docker.ts";
import { type Shim, shim } from "../lab/shim.ts";
import { MemoryOperations } from "./operations.ts";

let directory: string;
let ip: Shim;
let client: Client;
let driver: DockerDriver;
let api: AsyncDisposable;
let operations: MemoryOperations;

const state = () => join(directory, "state", "docker.json");

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), "vtep-docker-"));
  ip = shim(`case "$*" in *show*) cat $here/links;; *) cat >>$here/asked;; esac`);
  vi.stubEnv("PATH", ip.path.slice("PATH=".length));
  has([]);
  operations = new MemoryOperations();
  const peers = ["192.0.2.2"];
  const gateway = ["10.9.0.1/24", "fd09::1/64"];
  for (const network of [
    { vni: 1, name: "blue", bridge: "br0", peers },
    { vni: 2, name: "red", bridge: "br1", peers, gateway },
    { vni: 3, name: "green", bridge: "br2", peers, gateway: gateway.slice(0, 1) },
  ]) {
    await operations.putNetwork(networkConfig(network));
  }
  const socket = join(directory, "vtep.sock");
  const metrics = async () => ({ type: "text/plain", text: "" });
  const log = pino({ level: "silent" });
  const reload = () => operations.reload();
  api = await serve({ path: socket }, { version: "1", operations, reload, metrics, log });
  client = new Client(socket);
  driver = new DockerDriver(client, state());
});
afterEach(async () => {
  await api[Symbol.asyncDispose]();
  vi.unstubAllEnvs();
  ip[Symbol.dispose]();
  rmSync(directory, { recursive: true });
});

function has(links: readonly object[]): void {
  writeFileSync(join(ip.directory, "links"), JSON.stringify(links));
}

const call = (name: string, body: object = {}) => driver.answer(`NetworkDriver.${name}`, body);
const endpoint = { NetworkID: "n1", EndpointID: "e1" };

function create(network: string, more: object = {}, options: object = {}) {
  const Options = { "com.docker.network.generic": { network }, ...options };
  return call("CreateNetwork", { NetworkID: "n1", Options, ...more });
}

describe("a network", () => {
  const internal = { "com.docker.network.internal": true };
  const pool = (Pool: string, Gateway: string) => [{ Pool, Gateway }];

  test("that is to be internal cannot have a gateway that leads out of it", async () => {
    await expect(create("red", {}, internal)).rejects.toThrow(
      /^network red has a gateway, so --int/,
    );
    expect(await create("blue", {}, internal)).toEqual({});
  });

  test("has the subnet and the gateway of the agent's, of each family that it has", async () => {
    const [four, own6] = [pool("10.9.0.0/24", "10.9.0.1/24"), pool("fd08::/64", "fd08::1/64")];
    expect(await create("green", { IPv4Data: four, IPv6Data: own6 })).toEqual({});
    expect(
      await create("red", { IPv4Data: four, IPv6Data: pool("fd09::/64", "fd09::1/64") }),
    ).toEqual({});
    for (const wrong of [pool("10.8.0.0/24", "10.8.0.1/24"), pool("10.9.0.0/24", "10.9.0.2/24")]) {
      await expect(create("red", { IPv4Data: wrong })).rejects.toThrow(/create it with/);
    }
    const six = create("red", { IPv4Data: four, IPv6Data: pool("fd09::/64", "fd09::2/64") });
    await expect(six).rejects.toThrow("has the gateway fd09::1: create it with --gateway fd09::1");
    expect(await create("blue", { IPv4Data: pool("10.8.0.0/24", "10.8.0.1/24") })).toEqual({});
  });

  test("that is gone is refused with the reason, and is not one that there is not", async () => {
    operations.gone.push({ name: "grey", vni: 7, tap: "vtep7", reason: "no TAP" });
    const options = (of: object) => ({ "com.docker.network.generic": of });
    for (const of of [{ network: "grey" }, { vni: "7" }]) {
      await expect(create("", {}, options(of))).rejects.toMatchObject({
        code: "LOST",
        message: "network grey is gone: no TAP",
      });
    }
    await expect(create("gray")).rejects.toMatchObject({ code: "NOT_FOUND" });
  });

  test("is remembered for the next driver until it is deleted, and no other is forgotten with it", async () => {
    await create("blue");
    await create("red", { NetworkID: "n2" });
    driver = new DockerDriver(client, state());
    await call("DeleteNetwork", { NetworkID: "n2" });
    expect(JSON.parse(readFileSync(state(), "utf8"))).toEqual({ n1: "blue" });
    await call("CreateEndpoint", endpoint);
    const lost = call("CreateEndpoint", { ...endpoint, NetworkID: "n2" });
    await expect(lost).rejects.toThrow(
      /^network n2 was not created by this driver, or .* was lost/,
    );
  });

  test("is not forgotten where its file cannot be read: there is no driver then", async () => {
    await create("blue");
    for (const content of ["{", '{"n1":1}']) {
      writeFileSync(state(), content);
      expect(() => new DockerDriver(client, state())).toThrow(`${state()} cannot be read (`);
      expect(readFileSync(state(), "utf8")).toBe(content);
    }
  });
});

describe("an endpoint", () => {
  beforeEach(() => create("blue"));

  test("has a MAC by its address, unless Docker has said one, which it is not told again", async () => {
    const made = (Interface?: object) => call("CreateEndpoint", { ...endpoint, Interface });
    expect(await made({ Address: "10.9.0.200/24" })).toEqual({
      Interface: { MacAddress: "02:42:0a:09:00:c8" },
    });
    expect(await made({ Address: "10.9.0.200/24", MacAddress: "02:00:00:00:00:07" })).toEqual({
      Interface: {},
    });
  });

  test("is joined only between its creation and its end", async () => {
    const join = () => call("Join", { ...endpoint, SandboxKey: "/run/netns/none" });
    await expect(join()).rejects.toThrow("endpoint e1 was not created: start the container again");
    await call("CreateEndpoint", endpoint);
    await call("Leave", endpoint); // it may join again
    await expect(join()).rejects.not.toThrow("was not created");
    await call("DeleteEndpoint", endpoint);
    await expect(join()).rejects.toThrow("was not created");
  });
});

describe("ports", () => {
  const link = linkName("docker e1", "eth");
  const attachment = {
    ...{ network: "red", target: "/run/netns/web", ifname: "eth", by: "docker", link },
    ...{ mac: "02:00:00:00:00:07", addresses: ["10.9.0.7/24"], published: [] },
  };
  const publish = (port: object) => {
    const given = { Proto: 6, Port: 80, HostPort: 9090, ...port };
    const Options = { "com.docker.network.portmap": [given] };
    return call("ProgramExternalConnectivity", { ...endpoint, Options });
  };
  const asked = () => {
    const path = join(ip.directory, "asked");
    const lines = readFileSync(path, { encoding: "utf8", flag: "a+" });
    rmSync(path);
    return lines;
  };

  beforeEach(() => {
    has([{ ifname: link, mtu: 1450, master: "br1", ifalias: aliasOf(attachment, 1450) }]);
  });

  test.each([
    [{}, "9090:80/tcp"],
    [{ Proto: 17, HostIP: "192.0.2.1" }, "192.0.2.1:9090:80/udp"],
    [{ HostIP: "2001:db8::1" }, "[2001:db8::1]:9090:80/tcp"],
    [{ HostIP: "::" }, "9090:80/tcp"],
  ])("%j are the container's, and then no more", async (port, published) => {
    await create("red");
    await publish(port);
    const noted = asked();
    expect(noted).toContain(published);
    const alias = /alias (.*)/.exec(noted)![1];
    has([{ ifname: link, mtu: 1450, master: "br1", ifalias: alias }]);
    await call("RevokeExternalConnectivity", endpoint);
    const less = asked();
    expect(less).toContain(`dev ${link} alias `);
    expect(less).not.toContain(published);
  });

  test.each([
    ["that the host is to choose", { HostPort: 0 }],
    ["of SCTP", { Proto: 132 }],
  ])("%s are refused", async (_, port) => {
    await create("red");
    await expect(publish(port)).rejects.toThrow("port 80 needs a port of the host, and TCP or UDP");
  });

  test("are left to Docker's own bridge where the network has no gateway", async () => {
    await create("blue");
    expect(await publish({ HostPort: 0 })).toEqual({});
    expect(asked()).toBe("");
  });
});
