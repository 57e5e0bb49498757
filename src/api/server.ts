/**
 * Serves the API at a unix socket, for as long as the agent runs.
 *
 * It must never come into the way of forwarding, which is done by other threads: what a caller may hold of
 * this one is bounded in size and in time. The framework is loaded once the socket listens, which takes
 * longer than all else about it; callers that are that early wait for it.
 */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { setImmediate } from "node:timers/promises";
import { VtepError } from "../errors.ts";
import type { Served } from "./routes.ts";
import { disposable, listen, type Place } from "./socket.ts";

/** How long a caller may take over its question. */
const HEADERS_MS = 5_000;
const REQUEST_MS = 10_000;
/** How long it may not read on, or not ask again, while it holds a connection. */
const IDLE_MS = 30_000;
const MOST_CONNECTIONS = 2048;

/** What Node itself finds wrong with a request, before there is one. */
const FAULTS: Record<string, [status: string, message: string]> = {
  ERR_HTTP_REQUEST_TIMEOUT: ["408 Request Timeout", "the request did not arrive in time"],
  HPE_HEADER_OVERFLOW: [
    "431 Request Header Fields Too Large",
    "the headers are larger than 16 KiB",
  ],
};

/** Serves until it is disposed of. Throws VtepError when it cannot listen. */
export async function serve(
  place: Place,
  served: Served,
  idleMs = IDLE_MS,
): Promise<AsyncDisposable> {
  const { log } = served;
  let answer: Promise<Listener>;
  /** By caller: what it was answered last, or is to be. */
  const answers = new WeakMap<Socket, ServerResponse>();
  const server = createServer(
    {
      headersTimeout: HEADERS_MS,
      requestTimeout: REQUEST_MS,
      connectionsCheckingInterval: 1_000,
      keepAliveTimeout: HEADERS_MS,
    },
    async (request, response) => {
      answers.set(request.socket, response);
      return (await answer)(request, response);
    },
  );
  server.setTimeout(idleMs, (socket) => {
    if (!waits(answers.get(socket))) socket.destroy();
  });
  server.maxConnections = MOST_CONNECTIONS;
  server.on("clientError", turnAway);
  await listen(server, place);
  server.on("error", (error) => log.warn({ reason: error.message }, "the API refused a caller"));
  answer = setImmediate() // when all that is ready has been said to be
    .then(() => load(served))
    .catch((error: Error) => {
      log.error({ err: error }, "the API could not be loaded");
      return unloaded;
    });
  return disposable(server);
}

/** Whether somebody has asked all and heard nothing yet: it is the agent who takes long, over a reload perhaps. */
function waits(answer: ServerResponse | undefined): boolean {
  return answer?.req.complete === true && !answer.headersSent;
}

function unloaded(_request: IncomingMessage, response: ServerResponse): void {
  const message = "the API could not be loaded: the agent's log says why";
  response.writeHead(503, { "Content-Type": "application/json" });
  response.end(`${JSON.stringify({ code: "SYSTEM", message })}\n`);
}

type Listener = (request: IncomingMessage, response: ServerResponse) => unknown;

async function load(served: Served): Promise<Listener> {
  assertWebAssembly();
  const [{ getRequestListener }, { routes }] = await Promise.all([
    import("@hono/node-server"),
    import("./routes.ts"),
  ]);
  const { fetch } = routes(served);
  return getRequestListener(fetch, { hostname: "localhost", errorHandler: misunderstood });
}

/**
 * The framework is made of Node's own requests and answers, with which comes a parser in WebAssembly that nobody here
 * needs. Where there is no room for its memory, of which V8 sets 8 GB of addresses aside, nobody can catch what it
 * throws, and the process would end.
 */
function assertWebAssembly(): void {
  type Memory = new (descriptor: { readonly initial: number }) => unknown;
  const { WebAssembly } = globalThis as unknown as { WebAssembly: { Memory: Memory } };
  try {
    new WebAssembly.Memory({ initial: 1 });
  } catch (cause) {
    const remedy =
      "raise the limit of address space (ulimit -v; LimitAS= in a systemd unit), or give node --disable-wasm-trap-handler";
    throw new VtepError("SYSTEM", `Node has no room for WebAssembly: ${remedy}`, cause);
  }
}

/** What the framework makes no request of: its target or its host is none. */
function misunderstood(error: unknown): Response {
  const message = `this is no request: ${(error as Error).message}`;
  return Response.json({ code: "USAGE", message }, { status: 400 });
}

function turnAway({ code }: NodeJS.ErrnoException, socket: Socket): void {
  if (code === "ECONNRESET" || !socket.writable) return void socket.destroy();
  const [status, message] = FAULTS[code ?? ""] ?? [
    "400 Bad Request",
    "this is no HTTP/1.1 request",
  ];
  const body = `${JSON.stringify({ code: "USAGE", message })}\n`;
  const headers = `Content-Type: application/json\r\nContent-Length: ${body.length}\r\nConnection: close`;
  socket.end(`HTTP/1.1 ${status}\r\n${headers}\r\n\r\n${body}`);
}
