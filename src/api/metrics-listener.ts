/**
 * Metrics over TCP, for a Prometheus on another host: `GET /metrics` and nothing else. What can change
 * the agent is served over its unix socket only.
 *
 * There is no authentication and no TLS: it is to listen where only friends can connect. A stranger who
 * gets there can keep the main thread busy, which forwards nothing, with one rendering at a time, since
 * all who ask meanwhile share it; holds a connection for REQUEST_MS at most; and is one of CONNECTIONS.
 */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { VtepError } from "../errors.ts";
import { disposable } from "./socket.ts";

/** What is served: the media type, and the text. */
type Read = () => Promise<{ readonly type: string; readonly text: string }>;

const PATH = "/metrics";
const CONNECTIONS = 64;
const REQUEST_MS = 5000;
const HEADER_BYTES = 8192;

/**
 * Resolves when it listens, which it does until it is disposed of. Throws VtepError ADDRESS, PORT_IN_USE
 * or PERMISSION.
 */
export async function listenForScrapes(
  listen: { readonly address: string; readonly port: number },
  metrics: Read,
): Promise<AsyncDisposable> {
  const server = createServer({
    maxHeaderSize: HEADER_BYTES,
    headersTimeout: REQUEST_MS,
    requestTimeout: REQUEST_MS,
    connectionsCheckingInterval: REQUEST_MS,
  });
  server.maxConnections = CONNECTIONS;
  server.setTimeout(2 * REQUEST_MS, (socket) => socket.destroy()); // who reads nothing
  server.on("request", (request, response) => void answer(request, response, metrics));
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error) => reject(explain(error, listen)));
    server.listen({ host: listen.address, port: listen.port }, resolve);
  });
  server.on("error", () => undefined); // of accepting: no descriptor was left
  return disposable(server);
}

async function answer(
  request: IncomingMessage,
  response: ServerResponse,
  metrics: Read,
): Promise<void> {
  request.resume(); // a body, if any, is nobody's
  const path = request.url?.split("?")[0];
  if (path !== PATH) return refuse(response, 404, `nothing but GET ${PATH} is served here\n`);
  if (request.method !== "GET") {
    response.setHeader("Allow", "GET");
    return refuse(response, 405, `${PATH} is read with GET\n`);
  }
  try {
    const { type, text } = await metrics();
    response.writeHead(200, { "Content-Type": type }).end(text);
  } catch (error) {
    refuse(response, 500, `the metrics could not be read: ${(error as Error).message}\n`);
  }
}

function refuse(response: ServerResponse, status: number, sentence: string): void {
  response.writeHead(status, { "Content-Type": "text/plain; charset=utf-8" }).end(sentence);
}

function explain(
  error: NodeJS.ErrnoException,
  { address, port }: { readonly address: string; readonly port: number },
): VtepError {
  const place = address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
  switch (error.code) {
    case "EADDRINUSE": {
      const sentence = `TCP ${place} for metrics is held by another program`;
      return new VtepError("PORT_IN_USE", `${sentence}: choose another metrics-listen`, error);
    }
    case "EADDRNOTAVAIL": {
      const sentence = `${address} for metrics is no address of this host`;
      return new VtepError("ADDRESS", `${sentence}: choose another metrics-listen`, error);
    }
    case "EACCES": {
      const sentence = `listening at TCP ${place} for metrics needs CAP_NET_BIND_SERVICE`;
      return new VtepError("PERMISSION", `${sentence}: choose a port from 1024 up`, error);
    }
  }
  return new VtepError("SYSTEM", `metrics at TCP ${place} failed: ${error.message}`, error);
}
