import { once } from "node:events";
import { request } from "node:http";
import { type AddressInfo, connect, createServer } from "node:net";
import { text } from "node:stream/consumers";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { listenForScrapes } from "../../src/api/metrics-listener.ts";
import { until } from "../lab/until.ts";

const TYPE = "text/plain; version=0.0.4; charset=utf-8";
const METRICS = "# HELP up Whether.\n# TYPE up gauge\nup 1\n";

let port: number;
let listener: AsyncDisposable;
let metrics: () => Promise<{ type: string; text: string }>;

beforeEach(async () => {
  metrics = async () => ({ type: TYPE, text: METRICS });
  port = await freePort();
  listener = await listenForScrapes({ address: "127.0.0.1", port }, () => metrics());
});
afterEach(() => listener[Symbol.asyncDispose]());

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}

async function ask(path: string, method = "GET", body?: string | Buffer) {
  const asked = request({ host: "127.0.0.1", port, path, method, agent: false });
  asked.on("error", () => undefined); // of writing a body that nobody reads to its end
  asked.end(body);
  const [response] = await once(asked, "response");
  return { status: response.statusCode, headers: response.headers, body: await text(response) };
}

describe("the listener for scrapes", () => {
  it("serves the metrics, with the type that Prometheus knows", async () => {
    const answer = await ask("/metrics");
    expect(answer).toMatchObject({ status: 200, body: METRICS });
    expect(answer.headers["content-type"]).toBe(TYPE);
    expect(await ask("/metrics?name[]=up")).toMatchObject({ status: 200 });
  });

  it.each([
    "/",
    "/v1/status",
    "/v1/reload",
    "/metrics/",
    "/Metrics",
    "//metrics",
    "/v1/../metrics",
  ])("serves nothing else: %s", async (path) => {
    for (const method of ["GET", "POST", "PUT", "DELETE"]) {
      expect(await ask(path, method)).toMatchObject({
        status: 404,
        body: "nothing but GET /metrics is served here\n",
      });
    }
  });

  it.each(["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])(
    "is not written to: %s",
    async (method) => {
      const answer = await ask("/metrics", method, "{}");
      expect(answer).toMatchObject({ status: 405, body: "/metrics is read with GET\n" });
      expect(answer.headers.allow).toBe("GET");
    },
  );

  it("answers with the reason when the metrics cannot be had, and goes on", async () => {
    metrics = async () => {
      throw new Error("no");
    };
    expect(await ask("/metrics")).toMatchObject({
      status: 500,
      body: "the metrics could not be read: no\n",
    });
    metrics = async () => ({ type: TYPE, text: METRICS });
    expect(await ask("/metrics")).toMatchObject({ status: 200 });
  });

  it("goes on after bodies of 10 MB, headers without end, no HTTP, and clients that hang up", async () => {
    await ask("/metrics", "POST", Buffer.alloc(10_000_000)).catch(() => undefined);
    for (const nonsense of [
      `GET /metrics HTTP/1.1\r\nX: ${"x".repeat(100_000)}`,
      "\x16\x03\x01\x02\x00\x01\x00",
      "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
    ]) {
      const socket = connect(port, "127.0.0.1");
      socket.on("error", () => undefined);
      await once(socket, "connect");
      socket.write(nonsense);
      socket.destroy();
    }
    expect(await ask("/metrics")).toMatchObject({ status: 200 });
  });

  it("answers 1,000 calls, few at a time, beside as many clients as may hang", async () => {
    const hanging = Array.from({ length: 32 }, () => connect(port, "127.0.0.1"));
    await Promise.all(hanging.map((socket) => once(socket, "connect")));
    for (const socket of hanging) socket.on("error", () => undefined);
    let answered = 0;
    const caller = async () => {
      for (let call = 0; call < 100; call++) {
        const { status } = await ask("/metrics");
        if (status === 200) answered++;
      }
    };
    await Promise.all(Array.from({ length: 10 }, caller));
    expect(answered).toBe(1000);
    for (const socket of hanging) socket.destroy();
  }, 60_000);

  it("turns away those above its limit of connections, until some have gone", async () => {
    const crowd = Array.from({ length: 100 }, () => connect(port, "127.0.0.1"));
    let gone = 0;
    for (const socket of crowd) socket.on("error", () => undefined).on("close", () => gone++);
    await until("36 turned away", () => gone === 36);
    for (const socket of crowd) socket.destroy();
    await until("an answer", async () => {
      return (await ask("/metrics").catch(() => undefined))?.status === 200;
    });
  });

  it("stops at once, whoever is connected, and leaves the port", async () => {
    const socket = connect(port, "127.0.0.1");
    await once(socket, "connect");
    await listener[Symbol.asyncDispose]();
    await once(socket, "close");
    listener = await listenForScrapes({ address: "127.0.0.1", port }, metrics);
    expect(await ask("/metrics")).toMatchObject({ status: 200 });
  });

  it("says what is in its way", async () => {
    const held = listenForScrapes({ address: "127.0.0.1", port }, metrics);
    await expect(held).rejects.toMatchObject({
      code: "PORT_IN_USE",
      message: `TCP 127.0.0.1:${port} for metrics is held by another program: choose another metrics-listen`,
    });
    const strange = listenForScrapes({ address: "2001:db8::1", port }, metrics);
    await expect(strange).rejects.toMatchObject({
      code: "ADDRESS",
      message: "2001:db8::1 for metrics is no address of this host: choose another metrics-listen",
    });
  });
});
