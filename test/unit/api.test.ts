import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { type IncomingHttpHeaders, type IncomingMessage, request } from "node:http";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { text } from "node:stream/consumers";
import { Validator } from "@seriousme/openapi-schema-validator";
import { Ajv2020 } from "ajv/dist/2020.js";
import { pino } from "pino";
import { afterEach, beforeEach, describe, expect, onTestFinished, test, vi } from "vitest";
import { Client } from "../../src/api/client.ts";
import { Feed } from "../../src/api/feed.ts";
import { routes } from "../../src/api/routes.ts";
import { serve } from "../../src/api/server.ts";
import { networkConfig } from "../../src/config.ts";
import { VtepError } from "../../src/errors.ts";
import { sectionHeader } from "../../src/wire/pcapng.ts";
import { until } from "../lab/until.ts";
import { MemoryOperations } from "./operations.ts";
import { Turns } from "./turns.ts";

let directory: string;
let socket: string;
let operations: MemoryOperations;
let client: Client;
let api: AsyncDisposable;

const served = () => ({
  version: "1.2.3",
  operations,
  reload: () => operations.reload(),
  metrics: async () => ({ type: "text/plain; version=0.0.4", text: "vtep_up 1\n" }),
  log: pino({ level: "silent" }),
});
const start = (place: { path: string } | { fd: number } = { path: socket }) =>
  serve(place, served());

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), "vtep-api-"));
  socket = join(directory, "run", "vtep.sock");
  operations = new MemoryOperations();
  await operations.putNetwork(networkConfig({ vni: 1, name: "blue", peers: ["192.0.2.2"] }));
  client = new Client(socket);
  api = await start();
});
afterEach(async () => {
  await api[Symbol.asyncDispose]();
  rmSync(directory, { recursive: true });
});

interface Answer {
  status: number;
  headers: IncomingHttpHeaders;
  text: string;
  json(): unknown;
}

interface Question {
  at?: string;
  body?: string | undefined;
  headers?: Record<string, string>;
}

const JSON_BODY = { "Content-Type": "application/json" };

/** As any program would ask. */
async function ask(
  method: string,
  path: string,
  { at = socket, body, headers }: Question = {},
): Promise<Answer> {
  const asked = request({ socketPath: at, method, path, headers, agent: false });
  asked.on("error", () => {}); // it may be told before it has said everything
  asked.end(body);
  const [answer] = (await once(asked, "response")) as [IncomingMessage];
  const content = await text(answer).catch(() => "");
  const { statusCode: status, headers: given } = answer;
  return { status: status!, headers: given, text: content, json: () => JSON.parse(content) };
}

/** Says something that need not be HTTP, and hears all that comes back. */
async function say(words: string): Promise<string> {
  const caller = connect(socket);
  caller.write(words);
  return text(caller);
}

test("what is asked of a network that is gone is refused with the reason, to be tried again", async () => {
  const gone = { name: "red", vni: 7, tap: "vtep7", reason: "adding vtep7 failed: try later" };
  operations.gone.push(gone);
  expect((await client.status()).gone).toEqual([gone]);
  for (const asking of [client.network("red"), client.putPeer("red", "192.0.2.9")]) {
    await expect(asking).rejects.toMatchObject({
      code: "LOST",
      message: "network red is gone: adding vtep7 failed: try later",
    });
  }
  expect((await ask("GET", "/v1/networks/red")).status).toBe(503);
});

test("the socket's directory is made, and the socket is for its owner and its group, whatever others get", async () => {
  const before = process.umask(0o077);
  onTestFinished(() => void process.umask(before));
  const path = join(directory, "own", "vtep.sock");
  await using _ = await start({ path });
  expect(statSync(path).mode & 0o777).toBe(0o660);
  expect(statSync(dirname(path)).mode & 0o777).toBe(0o755);
  expect(process.umask()).toBe(0o077);
});

test.each([
  ["GET", "/v1/networks/blue"],
  ["PUT", "/v1/networks/blue/peers/192.0.2.3"],
  ["DELETE", "/v1/networks/blue/peers/192.0.2.2"],
  ["PUT", "/v1/networks/blue/fdb/02:00:00:00:00:07", { remote: "192.0.2.2" }],
  ["DELETE", "/v1/networks/blue/fdb/02:00:00:00:00:07"],
  ["GET", "/v1/fdb?network=blue"],
  ["DELETE", "/v1/fdb?network=blue"],
  ["POST", "/v1/explain", { network: "blue", source: "02:00:00:00:00:01", from: "192.0.2.2" }],
])("%s %s waits for a change that has taken the network out for a moment", async (...asked) => {
  const [method, path, content] = asked;
  const config = operations.configs.get("blue")!;
  operations.configs.delete("blue");
  operations.settled = async () => void operations.configs.set("blue", config);
  const body = content && JSON.stringify(content);
  const { text } = await ask(method, path, { body, headers: body === undefined ? {} : JSON_BODY });
  expect(text).not.toContain("there is no network");
  await expect(client.network("red")).rejects.toThrow('there is no network "red"');
});

describe("a path", () => {
  test("that a live agent holds is refused", async () => {
    await expect(start()).rejects.toThrow(`an agent already listens at ${socket}: stop it, or`);
    expect((await client.status()).version).toBe("1.2.3");
  });

  test("that a dead agent left behind is taken over", async () => {
    const path = join(directory, "dead.sock");
    const listening = `require("net").createServer().listen("${path}", () => console.log())`;
    const agent = spawn(process.execPath, ["-e", listening]);
    await once(agent.stdout, "data");
    await expect(start({ path })).rejects.toThrow("an agent already listens");
    agent.kill("SIGKILL");
    await once(agent, "close");
    expect(existsSync(path)).toBe(true);
    await using _ = await start({ path });
    expect((await new Client(path).status()).version).toBe("1.2.3");
  });

  test("that is another file is refused, and the file is left", async () => {
    const file = join(directory, "file");
    writeFileSync(file, "precious");
    await expect(start({ path: file })).rejects.toThrow(`${file} exists and is no socket`);
    expect(statSync(file).size).toBe(8);
  });

  test("whose directory cannot be made is told with what helps", async () => {
    const file = join(directory, "file");
    writeFileSync(file, "");
    const path = join(file, "vtep.sock");
    await expect(start({ path })).rejects.toThrow(/cannot listen at .*--socket PATH/);
  });

  test("is free again when the agent has stopped", async () => {
    await api[Symbol.asyncDispose]();
    expect(existsSync(socket)).toBe(false);
    await expect(client.status()).rejects.toMatchObject({ code: "UNREACHABLE" });
    api = await start();
    expect((await client.status()).pid).toBe(process.pid);
  });
});

describe("the description", () => {
  const load = async () => (await ask("GET", "/v1/openapi.json")).json() as OpenApi;
  interface OpenApi {
    paths: Record<string, Record<string, { responses: Record<string, unknown> }>>;
    components: { schemas: Record<string, object> };
  }

  test("is worked out once, however often it is asked for", async () => {
    const app = routes(served());
    const asked = async () => (await app.request("/v1/openapi.json")).text();
    const first = await asked();
    app.routes.splice(0); // which it is worked out from
    expect(await asked()).toBe(first);
  });

  test("is valid OpenAPI 3.1, and holds every call", async () => {
    const document = await load();
    expect(await new Validator().validate(document as never)).toMatchObject({ valid: true });
    const calls = Object.entries(document.paths).flatMap(([path, methods]) =>
      Object.keys(methods).map((method) => `${method} ${path}`),
    );
    expect(calls.sort()).toEqual([
      "delete /v1/capture",
      "delete /v1/fdb",
      "delete /v1/networks/{name}",
      "delete /v1/networks/{name}/fdb/{mac}",
      "delete /v1/networks/{name}/peers/{address}",
      "get /metrics",
      "get /v1/attachments",
      "get /v1/capture",
      "get /v1/events",
      "get /v1/fdb",
      "get /v1/networks",
      "get /v1/networks/{name}",
      "get /v1/openapi.json",
      "get /v1/remotes",
      "get /v1/status",
      "post /v1/explain",
      "post /v1/reload",
      "put /v1/log-level",
      "put /v1/networks/{name}",
      "put /v1/networks/{name}/fdb/{mac}",
      "put /v1/networks/{name}/peers/{address}",
    ]);
  });

  test("has a network's keys from the configuration's own schema", async () => {
    const { paths } = await load();
    expect(paths["/v1/networks/{name}"]!.put).toMatchObject({
      requestBody: {
        required: true,
        content: {
          "application/json": {
            schema: {
              required: ["vni"],
              additionalProperties: false,
              properties: {
                vni: { type: "integer", minimum: 0, maximum: 16_777_215 },
                peers: { type: "array", items: { type: "string" } },
                fdb: { type: "object", additionalProperties: { type: "string" } },
                "fdb-limit": { type: "integer", default: 65_536 },
              },
            },
          },
        },
      },
    });
  });

  test("fits what is answered", async () => {
    operations.learn("blue", 3);
    const { components } = await load();
    const ajv = new Ajv2020({ strict: false, schemas: [{ $id: "api", components }] });
    const fits = (name: string, value: unknown) => {
      ajv.validate({ $ref: `api#/components/schemas/${name}` }, value);
      expect(ajv.errorsText()).toBe("No errors");
    };
    fits("AgentStatus", await client.status());
    fits("NetworkStatus", await client.network("blue"));
    for (const entry of await client.fdb()) fits("FdbEntry", entry);
    fits("Changes", await client.reload());
    fits("Refusal", (await ask("GET", "/v1/networks/red")).json());
    expect(() => fits("NetworkStatus", {})).toThrow("must have required property");
  });
});

describe("every call", () => {
  test("GET /v1/status", async () => {
    const { status, headers, json } = await ask("GET", "/v1/status");
    expect(status).toBe(200);
    expect(headers["content-type"]).toBe("application/json");
    expect(json()).toEqual(
      JSON.parse(JSON.stringify({ version: "1.2.3", ...operations.status() })),
    );
  });

  test("GET /v1/networks and /v1/networks/{name}", async () => {
    const network = { name: "blue", vni: 1, tap: "vtep1", peers: ["192.0.2.2"] };
    expect((await ask("GET", "/v1/networks")).json()).toMatchObject([network]);
    expect((await ask("GET", "/v1/networks/blue")).json()).toMatchObject(network);
  });

  test("of one network of thousands does not ask for all of them, and lists some where there is none", async () => {
    const blue = operations.configs.get("blue")!;
    for (let vni = 2; vni <= 4000; vni++) {
      operations.configs.set(`net${vni}`, { ...blue, name: `net${vni}`, vni, tap: `vtep${vni}` });
    }
    const status = vi.spyOn(operations, "status");
    await client.network("net77");
    await client.putFdb("net77", "02:00:00:00:00:01", "192.0.2.2");
    expect(status).not.toHaveBeenCalled();
    const { text: refusal } = await ask("GET", "/v1/networks/something-else");
    expect(refusal).toMatch(/: known are blue, net2, net3, [^:]* and 3980 more"/);
  });

  test("PUT /v1/networks/{name} adds one, and then changes it; DELETE ends it", async () => {
    const put = (described: object) => {
      return ask("PUT", "/v1/networks/red", {
        body: JSON.stringify(described),
        headers: JSON_BODY,
      });
    };
    const added = await put({ vni: 7, peers: ["192.0.2.9"], "fdb-limit": 10 });
    expect(added.status).toBe(201);
    expect(added.json()).toMatchObject({ name: "red", vni: 7, peers: ["192.0.2.9"] });
    expect(operations.configs.get("red")).toMatchObject({ fdbLimit: 10, ageSeconds: 300 });
    const changed = await put({ vni: 7, name: "red", peers: ["192.0.2.8"] });
    expect(changed.status).toBe(200);
    expect(operations.configs.get("red")).toMatchObject({ peers: ["192.0.2.8"] });
    expect(await ask("DELETE", "/v1/networks/red")).toMatchObject({ status: 204, text: "" });
    expect([...operations.configs.keys()]).toEqual(["blue"]);
  });

  test("PUT and DELETE /v1/networks/{name}/peers/{address}, in whatever spelling", async () => {
    const path = `/v1/networks/blue/peers/${encodeURIComponent("2001:DB8:0::3")}`;
    expect((await ask("PUT", path)).json()).toMatchObject({
      peers: ["192.0.2.2", "2001:db8::3"],
    });
    expect(await ask("DELETE", path)).toMatchObject({ status: 204 });
    expect(operations.configs.get("blue")!.peers).toEqual(["192.0.2.2"]);
  });

  test("DELETE of a peer that another change took away meanwhile names those that are left", async () => {
    await operations.putPeer("blue", "192.0.2.3");
    vi.spyOn(operations, "removePeer").mockImplementation(async (name, address) => {
      const config = operations.configs.get(name)!;
      operations.configs.set(name, { ...config, peers: ["192.0.2.2"] });
      return !address;
    });
    const { status, text } = await ask("DELETE", "/v1/networks/blue/peers/192.0.2.3");
    expect([status, text]).toEqual([404, expect.stringContaining('its peers are 192.0.2.2"')]);
  });

  test("PUT and DELETE /v1/networks/{name}/fdb/{mac}, in whatever spelling", async () => {
    const path = "/v1/networks/blue/fdb/02-00-00-00-00-AA";
    const entry = await ask("PUT", path, { body: '{"remote":"192.0.2.9"}', headers: JSON_BODY });
    const expected = { network: "blue", mac: "02:00:00:00:00:aa", destination: "192.0.2.9" };
    expect(entry.json()).toEqual({ ...expected, origin: "static", moves: 0 });
    expect(await ask("DELETE", path)).toMatchObject({ status: 204 });
    expect(operations.entries).toEqual([]);
  });

  test("GET /v1/fdb with each filter, DELETE /v1/fdb", async () => {
    operations.learn("blue", 4);
    await operations.putFdb("blue", "02:00:00:00:00:aa", "192.0.2.9");
    const count = async (query: string) => {
      return ((await ask("GET", `/v1/fdb${query}`)).json() as []).length;
    };
    expect(await count("")).toBe(5);
    expect(await count("?network=blue")).toBe(5);
    expect(await count("?mac=02-00-00-00-00-AA")).toBe(1);
    expect(await count("?remote=192.0.2.2")).toBe(2);
    expect(await count("?remote=local")).toBe(0);
    expect(await count("?origin=learned&remote=192.0.2.3")).toBe(2);
    expect((await ask("DELETE", "/v1/fdb?remote=192.0.2.2")).json()).toEqual({ flushed: 2 });
    expect((await ask("DELETE", "/v1/fdb")).json()).toEqual({ flushed: 2 });
    expect(await count("")).toBe(1);
  });

  test("GET /v1/remotes", async () => {
    expect((await ask("GET", "/v1/remotes")).json()).toEqual(operations.remotes());
  });

  test("POST /v1/explain", async () => {
    const question = { network: "blue", source: "02:00:00:00:00:01", from: "192.0.2.2" };
    const asked = { body: JSON.stringify(question), headers: JSON_BODY };
    const { network, ...rest } = question;
    expect((await ask("POST", "/v1/explain", asked)).json()).toEqual(
      operations.explain(network, rest),
    );
  });

  test("GET /v1/capture until its reader leaves, and DELETE /v1/capture", async () => {
    const filter = { network: "blue", mac: "02:00:00:00:00:01", remote: "192.0.2.2", snaplen: 64 };
    const answer = await client.capture(filter);
    const [piece] = (await once(answer, "data")) as [Buffer];
    expect(piece.equals(sectionHeader("memory"))).toBe(true);
    expect(operations.captures).toEqual([{ filter, isOver: false }]);
    answer.destroy();
    await until("its end", () => operations.captures[0]!.isOver);
    expect((await ask("DELETE", "/v1/capture")).status).toBe(404);
    const other = await client.capture({});
    await client.endCapture();
    expect(operations.captures[1]!.isOver).toBe(true);
    other.destroy();
  });

  test("HEAD of what has no end leaves nothing behind", async () => {
    for (const path of ["/v1/capture", "/v1/events", "/v1/fdb"]) {
      expect(await ask("HEAD", path)).toMatchObject({ status: 200, text: "" });
    }
    expect(operations.captures).toMatchObject([{ isOver: true }]);
    expect(operations.listeners.size).toBe(0);
  });

  test("POST /v1/reload", async () => {
    expect((await ask("POST", "/v1/reload")).json()).toEqual(await operations.reload());
  });

  test("PUT /v1/log-level", async () => {
    const asked = { body: '{"level":"debug"}', headers: JSON_BODY };
    expect((await ask("PUT", "/v1/log-level", asked)).json()).toEqual({ level: "debug" });
    expect(operations.logLevel).toBe("debug");
  });

  test("GET /metrics", async () => {
    const { headers, text } = await ask("GET", "/metrics");
    expect(headers["content-type"]).toBe("text/plain; version=0.0.4");
    expect(text).toBe("vtep_up 1\n");
  });
});

describe("bad input is refused in one sentence, and changes nothing", () => {
  const body = (value: unknown): Question => ({ body: JSON.stringify(value), headers: JSON_BODY });
  const peers = ["192.0.2.9"];
  const calls: [string, string, Question, number, string, string[]][] = [
    ["GET", "/", {}, 404, "NOT_FOUND", ["openapi.json"]],
    ["GET", "/v1/network", {}, 404, "NOT_FOUND", ["did you mean /v1/networks?"]],
    ["GET", "/v1/networks/blue/fbd/x", {}, 404, "NOT_FOUND", ["/v1/networks/blue/fdb/x"]],
    ["GET", "/v1/networks/", {}, 404, "NOT_FOUND", ["did you mean /v1/networks?"]],
    ["POST", "/v1/status", {}, 405, "USAGE", ["POST", "use GET"]],
    ["PATCH", "/v1/fdb", {}, 405, "USAGE", ["GET, DELETE"]],
    ["GET", "/v1/status?verbose=1", {}, 400, "USAGE", ['"verbose" is no parameter']],
    ["GET", "/v1/networks/blu", {}, 404, "NOT_FOUND", ['"blu"', 'did you mean "blue"?']],
    ["GET", "/v1/networks/%E0%A4%A", {}, 404, "NOT_FOUND", ["known are blue"]],
    ["DELETE", "/v1/networks/red", {}, 404, "NOT_FOUND", ["known are blue"]],
    ["GET", "/v1/capture?snaplen=3", {}, 400, "USAGE", ['snaplen "3"', "from 14 to 262144"]],
    ["GET", "/v1/capture?mac=x", {}, 400, "USAGE", ['mac "x" is not a MAC address']],
    ["GET", "/v1/capture?remote=x", {}, 400, "USAGE", ['remote "x" is not']],
    ["GET", "/v1/capture?network=red", {}, 404, "NOT_FOUND", ["known are blue"]],
    ["GET", "/v1/capture?net=red", {}, 400, "USAGE", ['"net" is no parameter']],
    ["POST", "/v1/explain", body({}), 400, "USAGE", ["network"]],
    ["POST", "/v1/explain", body({ network: "red" }), 404, "NOT_FOUND", ["known are blue"]],
    ["POST", "/v1/explain", body({ network: "blue", frame: 7 }), 400, "USAGE", ["hexadecimal"]],
    ["PUT", "/v1/networks/red", {}, 415, "USAGE", ["Content-Type: application/json"]],
    ["PUT", "/v1/networks/red", { body: "{}" }, 415, "USAGE", ["application/json"]],
    ["PUT", "/v1/networks/red", { headers: JSON_BODY }, 400, "USAGE", ["no JSON"]],
    ["PUT", "/v1/networks/red", { body: "{vni", headers: JSON_BODY }, 400, "USAGE", ["no JSON"]],
    ["PUT", "/v1/networks/red", body(null), 400, "USAGE", ["a network must be a mapping"]],
    ["PUT", "/v1/networks/red", body([]), 400, "USAGE", ["a network must be a mapping"]],
    ["PUT", "/v1/networks/red", body({ peers }), 400, "USAGE", ["vni is missing"]],
    ["PUT", "/v1/networks/red", body({ vni: "x", peers }), 400, "USAGE", ["vni", "16777215"]],
    ["PUT", "/v1/networks/red", body({ vni: 1.5, peers }), 400, "USAGE", ["vni", "16777215"]],
    ["PUT", "/v1/networks/red", body({ vni: 7 }), 400, "USAGE", ["no peer"]],
    ["PUT", "/v1/networks/red", body({ vni: 7, peers: "x" }), 400, "USAGE", ["peers", "list"]],
    ["PUT", "/v1/networks/red", body({ vni: 7, pears: peers }), 400, "USAGE", ['"peers"']],
    ["PUT", "/v1/networks/red", body({ vni: 7, name: "x", peers }), 400, "USAGE", ["in the path"]],
    ["PUT", "/v1/networks/r%20d", body({ vni: 7, peers }), 400, "USAGE", ["cannot name a network"]],
    ["PUT", "/v1/networks/red", body({ vni: 1, peers }), 409, "CONFLICT", ["VNI 1"]],
    ["PUT", "/v1/networks/red/peers/192.0.2.9", {}, 404, "NOT_FOUND", ["red"]],
    ["PUT", "/v1/networks/blue/peers/x", {}, 400, "USAGE", ['address "x"', "IPv4 or IPv6"]],
    ["PUT", "/v1/networks/blue/peers/239.1.1.1", {}, 400, "USAGE", ["multicast group"]],
    ["DELETE", "/v1/networks/blue/peers/192.0.2.9", {}, 404, "NOT_FOUND", ["192.0.2.2"]],
    ["PUT", "/v1/networks/blue/fdb/x", body({ remote: peers[0] }), 400, "USAGE", ['mac "x"']],
    ["PUT", "/v1/networks/blue/fdb/02:00:00:00:00:01", {}, 415, "USAGE", ["application/json"]],
    ["PUT", "/v1/networks/blue/fdb/02:00:00:00:00:01", body({}), 400, "USAGE", ["remote"]],
    ["PUT", "/v1/networks/blue/fdb/02:00:00:00:00:01", body(7), 400, "USAGE", ["remote"]],
    [
      "PUT",
      "/v1/networks/blue/fdb/02:00:00:00:00:01",
      body({ remote: 7 }),
      400,
      "USAGE",
      ["remote"],
    ],
    [
      "PUT",
      "/v1/networks/blue/fdb/ff:ff:ff:ff:ff:ff",
      body({ remote: peers[0] }),
      400,
      "USAGE",
      ["add a peer"],
    ],
    [
      "PUT",
      "/v1/networks/blue/fdb/00:00:00:00:00:00",
      body({ remote: peers[0] }),
      400,
      "USAGE",
      ["add a peer"],
    ],
    ["DELETE", "/v1/networks/blue/fdb/02:00:00:00:00:01", {}, 404, "NOT_FOUND", ["no entry"]],
    ["GET", "/v1/fdb?network=red", {}, 404, "NOT_FOUND", ["red"]],
    ["GET", "/v1/fdb?mac=02:00", {}, 400, "USAGE", ['mac "02:00"']],
    ["GET", "/v1/fdb?mac=a&mac=b", {}, 400, "USAGE", ["mac must be given once"]],
    ["GET", "/v1/fdb?remote=there", {}, 400, "USAGE", ['"local"']],
    ["GET", "/v1/fdb?origin=made-up", {}, 400, "USAGE", ["learned, control, static"]],
    ["GET", "/v1/fdb?macc=x", {}, 400, "USAGE", ['did you mean "mac"?']],
    ["DELETE", "/v1/fdb?network=red", {}, 404, "NOT_FOUND", ["known are blue"]],
    ["DELETE", "/v1/fdb?origin=static", {}, 400, "USAGE", ['"origin"']],
    ["PUT", "/v1/log-level", body({ level: "loud" }), 400, "USAGE", ["level must be one of"]],
    ["PUT", "/v1/log-level", body({ level: 7 }), 400, "USAGE", ["level must be one of"]],
    ["PUT", "/v1/log-level", body({ levle: "info" }), 400, "USAGE", ["level"]],
    ["PUT", "/v1/log-level", body({ __proto__: null, constructor: 1 }), 400, "USAGE", ["level"]],
  ];
  test.each(calls)("%s %s %j is a %i", async (method, path, question, status, code, words) => {
    const before = JSON.stringify([...operations.configs, operations.entries]);
    const answer = await ask(method, path, question);
    const refusal = answer.json() as { code: string; message: string };
    expect({ status: answer.status, ...refusal }).toMatchObject({ status, code });
    for (const word of words) expect(refusal.message).toContain(word);
    expect(refusal.message).toMatch(/^[^\n]+$/);
    expect(Object.keys(refusal)).toEqual(["code", "message"]);
    expect(JSON.stringify([...operations.configs, operations.entries])).toBe(before);
  });

  test("a body's type is known in whatever spelling, with parameters", async () => {
    for (const type of ["application/json; charset=utf-8", "Application/JSON;charset=UTF-8"]) {
      const question = { body: '{"level":"debug"}', headers: { "Content-Type": type } };
      expect((await ask("PUT", "/v1/log-level", question)).status).toBe(200);
    }
  });

  test("a method that is not served says which ones are", async () => {
    expect((await ask("PATCH", "/v1/fdb")).headers.allow).toBe("GET, DELETE");
  });

  const large = "x".repeat(10_000_000);
  test.each([
    ["with its length", { "Content-Length": `${large.length}` }],
    ["in chunks", { "Transfer-Encoding": "chunked" }],
  ])("a body of 10 MB, %s, is a 413", async (_, headers) => {
    const question = { body: large, headers: { ...JSON_BODY, ...headers } };
    const { status, json } = await ask("PUT", "/v1/networks/red", question);
    expect({ status, ...(json() as object) }).toMatchObject({ status: 413, code: "USAGE" });
    expect((await client.status()).networks).toHaveLength(1);
  });

  test.each([
    ["that is no HTTP", "hello\r\n\r\n", "400 Bad Request"],
    ["without a host", "GET /v1/status HTTP/1.1\r\n\r\n", "400 Bad Request"],
    ["of another host", "GET /v1/status HTTP/1.1\r\nHost: a b\r\n\r\n", "400 Bad Request"],
    [
      "with headers without end",
      `GET / HTTP/1.1\r\nHost: x\r\nX: ${"x".repeat(20_000)}\r\n\r\n`,
      "431 Request Header Fields Too Large",
    ],
  ])("a request %s", async (_, words, status) => {
    const answer = await say(words.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"));
    expect(answer).toContain(`HTTP/1.1 ${status}`);
  });

  test("a caller that never finishes its question is turned away, be it head or body", {
    timeout: 30_000,
  }, async () => {
    const head = "PUT /v1/log-level HTTP/1.1\r\nHost: x\r\n";
    const more = "Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{";
    for (const answer of await Promise.all([say(head), say(head + more)])) {
      expect(answer).toContain("HTTP/1.1 408 Request Timeout");
      const [head, body] = answer.split("\r\n\r\n");
      expect(body).toBe('{"code":"USAGE","message":"the request did not arrive in time"}\n');
      expect(head).toContain(`Content-Length: ${body!.length}\r\n`);
    }
  });

  test("a refusal is the host's, the agent's or the program's own, of which alone the log tells", async () => {
    const lines: { err: { message: string } }[] = [];
    const log = pino({}, { write: (line) => lines.push(JSON.parse(line)) });
    const path = join(directory, "refusing.sock");
    let error: Error;
    const reload = () => Promise.reject(error);
    await using _ = await serve({ path }, { ...served(), reload, log });
    const status = async (given: Error) => {
      error = given;
      return (await ask("POST", "/v1/reload", { at: path })).status;
    };
    for (const code of ["CONFLICT", "NAME_IN_USE", "ADDRESS", "MTU"] as const) {
      expect(await status(new VtepError(code, "it cannot be had here"))).toBe(409);
    }
    expect(await status(new VtepError("CLOSED", "the agent is stopping"))).toBe(503);
    expect(lines).toEqual([]);
    expect(await status(new VtepError("LINK", "ip refused"))).toBe(500);
    expect(await status(new TypeError("it was not thought of"))).toBe(500);
    const told = lines.map(({ err }) => err.message);
    expect(told).toEqual(["ip refused", "it was not thought of"]);
  });

  test("an agent that takes long over an answer is waited for, a caller that keeps silent is not", async () => {
    const idleMs = 50;
    const path = join(directory, "slow.sock");
    let [isAsked, hasEnded] = [false, false];
    const slowly = async () => {
      isAsked = true;
      await until("the silent caller's end", () => hasEnded);
      return operations.reload();
    };
    await using _ = await serve({ path }, { ...served(), reload: slowly }, idleMs);
    const changes = new Client(path).reload();
    await until("the question", () => isAsked);
    expect(await text(connect(path))).toBe("");
    hasEnded = true;
    expect(await changes).toEqual(await operations.reload());
  });

  test("a thousand calls at once are all answered", { timeout: 30_000 }, async () => {
    operations.learn("blue", 100);
    const answers = await Promise.all(
      Array.from({ length: 1000 }, (_, at) => (at % 2 === 0 ? client.status() : client.fdb())),
    );
    expect(answers).toHaveLength(1000);
  });
});

describe("a long list", () => {
  test.each([
    ["comes in pieces", {}, 100_000],
    ["is looked through in pieces for what is not in it", { remote: "192.0.2.77" }, 0],
  ])("%s, between which others have a turn", { timeout: 30_000 }, async (_, filter, count) => {
    operations.learn("blue", 100_000);
    let had = 0;
    const { fdb } = operations;
    operations.fdb = function* (filter) {
      using turns = new Turns();
      yield* fdb.call(operations, filter);
      had = turns.count;
    };
    expect(await client.fdb(filter)).toHaveLength(count);
    expect(had).toBeGreaterThan(40);
  });

  test("whose reader hangs up is not made to its end", { timeout: 30_000 }, async () => {
    operations.learn("blue", 100_000);
    let made = 0;
    const { fdb } = operations;
    operations.fdb = function* (filter) {
      for (const lot of fdb.call(operations, filter)) {
        made += lot.length;
        yield lot;
      }
    };
    const caller = connect(socket);
    caller.write("GET /v1/fdb HTTP/1.1\r\nHost: x\r\n\r\n");
    await once(caller, "data");
    caller.destroy();
    await client.status();
    const before = made;
    await client.status();
    await client.status();
    expect(made).toBeLessThan(50_000);
    expect(made).toBe(before);
  });
});

describe("events", () => {
  test("are told as they happen, and no more once nobody listens", async () => {
    const events = client.events();
    const first = events.next();
    await until("a listener", () => operations.listeners.size === 1);
    await operations.reload();
    expect((await first).value).toMatchObject({ event: "reloaded" });
    operations.tell({ event: "remote-down", remote: "192.0.2.2" });
    expect((await events.next()).value).toEqual({ event: "remote-down", remote: "192.0.2.2" });
    await events.return(undefined);
    await until("no listener", () => operations.listeners.size === 0);
  });

  test("are taken and put into words once, however many listen", async () => {
    const listening = Array.from({ length: 20 }, () => connect(socket));
    for (const caller of listening) {
      caller.write("GET /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
      await once(caller, "readable");
    }
    expect(operations.listeners.size).toBe(1);
    let times = 0;
    const event = { event: "remote-down", remote: "192.0.2.2" } as const;
    const toJSON = () => {
      times++;
      return event;
    };
    operations.tell({ ...event, toJSON } as typeof event);
    for (const caller of listening) {
      let heard = "";
      caller.on("data", (piece) => {
        heard += piece;
      });
      await until("the event", () => heard.includes('"remote-down"'));
    }
    expect(times).toBe(1);
    for (const caller of listening) caller.destroy();
    await until("no listener", () => operations.listeners.size === 0);
  });

  test("are under way to one who listens a few at a time, the last ones, in pieces that are the same for all, after what was lost", async () => {
    const feed = new Feed((listener) => operations.listen(listener));
    const [one, late] = [feed.stream().getReader(), feed.stream().getReader()];
    const next = async (reader: typeof one) => Buffer.from((await reader.read()).value!).toString();
    for (const reader of [one, late]) expect(await next(reader)).toBe(": listening\n\n");
    const numbers = (text: string) =>
      [...text.matchAll(/"remote":"(\d+)"/g)].map(([, at]) => Number(at));
    const tell = (from: number, to: number) => {
      for (let at = from; at < to; at++) operations.tell({ event: "remote-up", remote: `${at}` });
    };
    const read = one.read(); // it waits for the first
    tell(0, 1);
    expect(numbers(Buffer.from((await read).value!).toString())).toEqual([0]);
    operations.tell({ event: "missed", count: 30 });
    tell(1, 10_000);
    const heard: number[] = [];
    let missed = 0;
    while (heard.at(-1) !== 9999) {
      const text = await next(one);
      const found = numbers(text);
      expect(found.length).toBeLessThanOrEqual(256);
      heard.push(...found);
      for (const [, count] of text.matchAll(/"missed","count":(\d+)/g)) missed += Number(count);
    }
    expect(heard).toEqual(
      Array.from({ length: heard.length }, (_, at) => 10_000 - heard.length + at),
    );
    expect(heard.length + missed).toBe(9999 + 30);
    await one.cancel();
    const others = [feed.stream().getReader(), feed.stream().getReader()];
    for (const reader of others) await next(reader);
    tell(10_000, 11_000);
    const pieces = others.map(async (reader) => {
      await reader.read(); // up to where pieces begin for all
      return (await reader.read()).value!;
    });
    const [piece, same] = await Promise.all(pieces);
    expect(piece).toBe(same);
    expect(numbers(Buffer.from(piece!).toString())).toHaveLength(256);
    for (const reader of [late, ...others]) await reader.cancel();
    expect(operations.listeners.size).toBe(0);
  });

  test("come whole to one who reads later than another", async () => {
    const feed = new Feed((listener) => operations.listen(listener));
    const [early, late] = [feed.stream().getReader(), feed.stream().getReader()];
    const next = async (reader: typeof early) => String(Buffer.from((await reader.read()).value!));
    await next(early);
    operations.tell({ event: "remote-up", remote: "1" });
    expect(await next(early)).toContain('"remote":"1"');
    operations.tell({ event: "remote-up", remote: "2" });
    operations.tell({ event: "remote-up", remote: "3" });
    let heard = "";
    while (!heard.includes('"remote":"3"')) heard += await next(late);
    expect(heard).toMatch(/"remote":"1".*"remote":"2".*"remote":"3"/s);
    for (const reader of [early, late]) await reader.cancel();
  });

  test("are lost to a slow reader, who is told how many", async () => {
    const caller = connect(socket);
    caller.write("GET /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    await once(caller, "readable"); // and reads no further
    await until("a listener", () => operations.listeners.size === 1);
    const told = 50_000;
    for (let at = 0; at < told; at++) {
      operations.tell({ event: "remote-up", remote: `${at}` });
      if (at % 100 === 0) await new Promise(setImmediate);
    }
    operations.tell({ event: "missed", count: 1000 }); // as the agent missed some itself
    let heard = "";
    caller.on("data", (piece) => {
      heard += piece;
    });
    const count = () => {
      const missed = [...heard.matchAll(/"missed","count":(\d+)/g)].map(([, count]) =>
        Number(count),
      );
      const came = heard.split('"remote-up"').length - 1;
      return { came, missed: missed.reduce((sum, each) => sum + each, 0) };
    };
    await until("all accounted for", () => count().came + count().missed === told + 1000);
    expect(count().missed).toBeGreaterThan(10_000);
    caller.destroy();
  });

  test("end with the agent, in a sentence", async () => {
    const events = client.events();
    const next = events.next();
    await until("a listener", () => operations.listeners.size === 1);
    await api[Symbol.asyncDispose]();
    await expect(next).rejects.toMatchObject({ code: "UNREACHABLE" });
    api = await start();
  });
});

describe("the client says in one sentence why there is no agent", () => {
  const reasons: [string, () => string, string][] = [
    ["no socket", () => join(directory, "none.sock"), "there is no such socket"],
    ["no directory", () => join(directory, "none", "vtep.sock"), "there is no such socket"],
    ["another file", () => join(directory, "file"), "nobody listens there"],
  ];
  test.each(reasons)("%s", async (_, path, why) => {
    writeFileSync(join(directory, "file"), "");
    const message = `the agent is not reachable at ${path()} (${why}): start it with vtep run`;
    await expect(new Client(path()).status()).rejects.toThrow(message);
  });

  test("one that does not answer", async () => {
    const path = join(directory, "mute.sock");
    const mute = createServer().listen(path);
    await once(mute, "listening");
    await expect(new Client(path, 50).status()).rejects.toThrow("it does not answer");
    mute.close();
  });

  const midway: [string, string, "end" | "wait", string][] = [
    ["one that ends within an answer", "200 OK", "end", "it has ended"],
    ["one that ends within a refusal", "409 Conflict", "end", "it has ended"],
    ["one that stops within an answer", "200 OK", "wait", "it does not answer"],
    ["one that stops within a refusal", "409 Conflict", "wait", "it does not answer"],
  ];
  const calls: [string, (client: Client) => Promise<unknown>][] = [
    ["a call", (client) => client.status()],
    ["events", (client) => client.events().next()],
  ];
  const both = midway.flatMap((each) => calls.map((call) => [...each, ...call] as const));
  test.each(both)("%s (%s, %s, %s: %s)", async (_, status, then, why, _kind, call) => {
    const path = join(directory, "midway.sock");
    const half = createServer((caller) => {
      caller.on("error", () => undefined);
      caller.write(`HTTP/1.1 ${status}\r\nContent-Length: 9\r\n\r\n{"a"`);
      if (then === "end") caller.once("data", () => caller.destroy());
    }).listen(path);
    await once(half, "listening");
    onTestFinished(() => void half.close());
    const asked = call(new Client(path, 50));
    await expect(asked).rejects.toBeInstanceOf(VtepError);
    await expect(asked).rejects.toThrow(`(${why})`);
  });
});

test("where what answers cannot be loaded, each caller is told so, and nothing else ends", async () => {
  await api[Symbol.asyncDispose]();
  vi.resetModules();
  vi.doMock("../../src/api/routes.ts", () => {
    throw new Error("it is not there");
  });
  onTestFinished(() => void vi.doUnmock("../../src/api/routes.ts"));
  const anew = await import("../../src/api/server.ts");
  const served = { version: "1", operations, reload: () => operations.reload() };
  const metrics = async () => ({ type: "", text: "" });
  const log = pino({ level: "silent" });
  api = await anew.serve({ path: socket }, { ...served, metrics, log });
  for (const path of ["/v1/status", "/metrics"]) {
    const answer = await ask("GET", path);
    expect(answer.status).toBe(503);
    expect(answer.json()).toEqual({
      code: "SYSTEM",
      message: "the API could not be loaded: the agent's log says why",
    });
  }
});
