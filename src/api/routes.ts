/**
 * The API: what each call takes, does and answers. The OpenAPI description at /v1/openapi.json follows from
 * the same declarations as the checks.
 *
 * Every answer is JSON but for events, captures and metrics; one that says why a call came to nothing is
 * `{ code, message }`. What may be long is told in pieces, between which other callers have their turn.
 */
import { setImmediate } from "node:timers/promises";
import { closest, distance } from "fastest-levenshtein";
import { type Context, Hono, type MiddlewareHandler } from "hono";
import { bodyLimit } from "hono/body-limit";
import { HTTPException } from "hono/http-exception";
import type { ContentfulStatusCode } from "hono/utils/http-status";
import { describeRoute, generateSpecs, resolver, validator } from "hono-openapi";
import type { Logger } from "pino";
import * as v from "valibot";
import { networkConfig } from "../config.ts";
import { type ErrorCode, networkGone, VtepError } from "../errors.ts";
import type {
  CaptureStream,
  Changes,
  FdbEntryStatus,
  NetworkStatus,
  Operations,
} from "../operations.ts";
import { isMapping, nearest } from "../schema.ts";
import type { ApiStatus } from "./client.ts";
import { Feed } from "./feed.ts";
import * as schemas from "./schemas.ts";

/** What is served. */
export interface Served {
  readonly version: string;
  readonly operations: Operations;
  /** Reads the configuration again and applies it. Throws VtepError. */
  reload(): Promise<Changes>;
  /** For Prometheus. */
  metrics(): Promise<{ readonly type: string; readonly text: string }>;
  readonly log: Logger;
}

const JSON_MEDIA = "application/json";
const EVENTS = "text/event-stream";
const PCAPNG = "application/x-pcapng";

/** A network with 20,000 static entries; more of them are entered one by one. */
const MOST_BODY = 1024 * 1024;

const STATUS: Partial<Record<ErrorCode, ContentfulStatusCode>> = {
  USAGE: 400,
  NOT_FOUND: 404,
  // The request may be fine elsewhere: this host, as it is now, cannot have it.
  CONFLICT: 409,
  NAME_IN_USE: 409,
  ADDRESS: 409,
  MTU: 409,
  CLOSED: 503,
  LOST: 503,
};

export function routes({ version, operations, reload, metrics, log }: Served): Hono {
  const feed = new Feed((listener) => operations.listen(listener));
  const app = new Hono();
  let described: ReturnType<typeof description> | undefined;
  app.use(leftUnread);
  app.use(bodyLimit({ maxSize: MOST_BODY, onError: tooLarge }));

  app.get(
    "/v1/status",
    describe("the agent, and what it forwards", { 200: schemas.agentStatus }),
    query(schemas.nothing),
    (c) => c.json({ version, ...operations.status() } satisfies ApiStatus),
  );

  app.get(
    "/v1/remotes",
    describe(
      "each remote that a network names, and what crossed between here and there in all networks",
      {
        200: v.array(schemas.remoteStatus),
      },
    ),
    query(schemas.nothing),
    (c) => c.json(operations.remotes()),
  );

  app.get(
    "/v1/attachments",
    describe("containers' interfaces in networks, as the host has them now", {
      200: v.array(schemas.attachment),
    }),
    query(schemas.nothing),
    async (c) => c.json(await operations.attachments()),
  );

  app.get(
    "/v1/networks",
    describe("all networks", { 200: v.array(schemas.networkStatus) }),
    query(schemas.nothing),
    (c) => c.json(operations.status().networks),
  );

  app.get(
    "/v1/networks/:name",
    describe("one network", { 200: schemas.networkStatus }),
    path(schemas.networkPath),
    async (c) => c.json(await settled(c.req.valid("param").name)),
  );

  app.put(
    "/v1/networks/:name",
    describe(
      "adds a network (201), or gives it this configuration (200)",
      { 200: schemas.networkStatus, 201: schemas.networkStatus },
      { body: schemas.networkBody },
    ),
    path(schemas.networkPath),
    json,
    async (c) => {
      const { name } = c.req.valid("param");
      const isNew = await operations.putNetwork(network(name, await c.req.json()));
      return c.json(known(name), isNew ? 201 : 200);
    },
  );

  app.delete(
    "/v1/networks/:name",
    describe("ends a network", { 204: undefined }),
    path(schemas.networkPath),
    async (c) => {
      const { name } = c.req.valid("param");
      if (await operations.removeNetwork(name)) return c.body(null, 204);
      throw unknownNetwork(name);
    },
  );

  app.put(
    "/v1/networks/:name/peers/:address",
    describe("adds a peer: it may send, and gets what is flooded", { 200: schemas.networkStatus }),
    path(schemas.peerPath),
    async (c) => {
      const { name, address } = c.req.valid("param");
      await settled(name);
      await operations.putPeer(name, address);
      return c.json(known(name));
    },
  );

  app.delete(
    "/v1/networks/:name/peers/:address",
    describe("removes a peer", { 204: undefined }),
    path(schemas.peerPath),
    async (c) => {
      const { name, address } = c.req.valid("param");
      await settled(name);
      if (await operations.removePeer(name, address)) return c.body(null, 204);
      const { peers } = known(name); // when its turn had come, other changes were done
      const those = peers.length === 0 ? "it has none" : `its peers are ${peers.join(", ")}`;
      throw new VtepError("NOT_FOUND", `network ${name} has no peer ${address}: ${those}`);
    },
  );

  app.put(
    "/v1/networks/:name/fdb/:mac",
    describe("enters a static entry, in place of any that is there", { 200: schemas.fdbEntry }),
    path(schemas.fdbPath),
    json,
    body(schemas.fdbBody),
    async (c) => {
      const { name, mac } = c.req.valid("param");
      await settled(name);
      const { remote } = c.req.valid("json");
      await operations.putFdb(name, mac, remote);
      const entry = {
        network: name,
        mac,
        destination: remote,
        origin: "static",
        moves: 0,
      } as const;
      return c.json(entry satisfies FdbEntryStatus);
    },
  );

  app.delete(
    "/v1/networks/:name/fdb/:mac",
    describe("removes an entry, static or learned", { 204: undefined }),
    path(schemas.fdbPath),
    async (c) => {
      const { name, mac } = c.req.valid("param");
      await settled(name);
      if (await operations.removeFdb(name, mac)) return c.body(null, 204);
      const message = `network ${name} has no entry for ${mac}: list those it has (vtep fdb list, GET /v1/fdb)`;
      throw new VtepError("NOT_FOUND", message);
    },
  );

  app.get(
    "/v1/fdb",
    describe("entries of the FDB, in no order", { 200: v.array(schemas.fdbEntry) }),
    query(schemas.fdbFilter),
    async (c) => {
      const filter = c.req.valid("query");
      if (filter.network !== undefined) await settled(filter.network);
      return stream(inPieces(operations.fdb(filter)), JSON_MEDIA);
    },
  );

  app.delete(
    "/v1/fdb",
    describe("forgets what was learned", { 200: schemas.flushed }),
    query(schemas.flushFilter),
    async (c) => {
      const filter = c.req.valid("query");
      if (filter.network !== undefined) await settled(filter.network);
      return c.json({ flushed: await operations.flushFdb(filter) });
    },
  );

  app.post(
    "/v1/explain",
    describe("says what would become of a frame, which does not happen", {
      200: schemas.explanation,
    }),
    json,
    body(schemas.question),
    async (c) => {
      const { network, ...question } = c.req.valid("json");
      await settled(network);
      return c.json(operations.explain(network, question));
    },
  );

  app.get(
    "/v1/capture",
    describe(
      "frames from now on, as pcapng; one capture at a time",
      { 200: v.string() },
      { media: PCAPNG },
    ),
    query(schemas.captureFilter),
    async (c) => {
      const filter = c.req.valid("query");
      if (filter.network !== undefined) await settled(filter.network);
      return stream(captured(await operations.capture(filter)), PCAPNG);
    },
  );

  app.delete(
    "/v1/capture",
    describe("ends the capture that is under way, whose reader gets the rest of it", {
      204: undefined,
    }),
    async (c) => {
      if (await operations.endCapture()) return c.body(null, 204);
      throw new VtepError("NOT_FOUND", "nobody captures: GET /v1/capture would begin to");
    },
  );

  app.post(
    "/v1/reload",
    describe("reads the configuration again and applies what is new in it", {
      200: schemas.changes,
    }),
    query(schemas.nothing),
    async (c) => c.json(await reload()),
  );

  app.put(
    "/v1/log-level",
    describe("sets the least level that is logged", { 200: schemas.levelBody }),
    json,
    body(schemas.levelBody),
    (c) => {
      const { level } = c.req.valid("json");
      operations.setLogLevel(level);
      return c.json({ level });
    },
  );

  app.get(
    "/v1/events",
    describe(
      "what happens from now on, as server-sent events",
      { 200: schemas.event },
      { media: EVENTS },
    ),
    query(schemas.nothing),
    () => stream(feed.stream(), EVENTS),
  );

  app.get(
    "/metrics",
    describe("metrics for Prometheus", { 200: v.string() }, { media: "text/plain" }),
    async (c) => {
      const { type, text } = await metrics();
      return c.body(text, 200, { "Content-Type": type });
    },
  );

  app.get(
    "/v1/openapi.json",
    describe("this description", { 200: v.looseObject({}) }),
    // Worked out once: it takes some 10 ms, and nothing in it changes.
    async (c) => {
      described ??= description(app, version);
      return c.json(await described);
    },
  );

  app.notFound((c) => {
    throw misdirected(app, c.req.method, c.req.path);
  });
  app.onError((error, c) => refused(c, error, log));
  return app;

  /** One that a change has taken out for a moment, as for a TAP anew, is there again when that has ended. */
  async function settled(name: string): Promise<NetworkStatus> {
    if (operations.network(name) === undefined) await operations.settled();
    return known(name);
  }

  function known(name: string): NetworkStatus {
    const found = operations.network(name);
    if (found === undefined) throw unknownNetwork(name);
    return found;
  }

  function unknownNetwork(name: string): VtepError {
    const { networks, gone } = operations.status();
    const reason = gone.find((network) => network.name === name)?.reason;
    if (reason !== undefined) return networkGone(name, reason);
    const names = networks.map((network) => network.name);
    const hint = names.length === 0 ? ": there is none" : nearest(name, names);
    return new VtepError("NOT_FOUND", `there is no network ${JSON.stringify(name)}${hint}`);
  }
}

// ---- What a call says of itself

type Schemas = Readonly<Record<number, v.GenericSchema | undefined>>;

/** A summary, the answers by status, and what a body holds that is not described by its check. */
function describe(
  summary: string,
  answers: Schemas,
  { body, media = JSON_MEDIA }: { body?: v.GenericSchema; media?: string } = {},
): MiddlewareHandler {
  const responses = Object.entries(answers).map(([status, schema]) => {
    const content = schema && { [media]: { schema: resolver(schema, { options: CONVERSION }) } };
    const help = schema === undefined ? "it is gone" : (v.getDescription(schema) ?? "done");
    return [status, { description: help, ...(content && { content }) }];
  });
  const refusal = { [JSON_MEDIA]: { schema: resolver(schemas.refusal) } };
  return describeRoute({
    summary,
    responses: {
      ...Object.fromEntries(responses),
      "4XX": { description: "refused, and nothing has changed", content: refusal },
      "5XX": { description: "the host refused", content: refusal },
    },
    ...(body && {
      requestBody: {
        required: true,
        content: { [JSON_MEDIA]: { schema: resolver(body, { options: BODY_CONVERSION }) } },
      },
    }),
  });
}

/** What a schema accepts: code that looks at a mapping comes before what the mapping holds. */
const CONVERSION = {
  overrideSchema: ({ valibotSchema }: { valibotSchema: v.GenericSchema }) => {
    if (valibotSchema.type === "custom") return { type: "object" };
    // A number as text is for flags only, so it is not told.
    const { options } = valibotSchema as Partial<{ options: readonly v.GenericSchema[] }>;
    return options?.[0]?.type === "number" ? { type: "number" } : undefined;
  },
};

/** The same without what a key needs to be a flag. */
const BODY_CONVERSION = {
  ...CONVERSION,
  overrideAction: ({
    valibotAction,
    jsonSchema,
  }: {
    valibotAction: Action;
    jsonSchema: object;
  }) => {
    if (valibotAction.type !== "metadata") return undefined;
    const flag = Object.keys(valibotAction.metadata!);
    const { sample } = valibotAction.metadata!;
    const rest = Object.entries(jsonSchema).filter(([key]) => !flag.includes(key));
    return { ...Object.fromEntries(rest), ...(sample !== undefined && { examples: [sample] }) };
  },
};

interface Action {
  readonly type: string;
  readonly metadata?: { readonly sample?: unknown };
}

function description(app: Hono, version: string) {
  return generateSpecs(app, {
    defaultValidationErrorResponse: false,
    excludeStaticFile: false,
    documentation: {
      openapi: "3.1.0",
      info: {
        title: "vtep",
        version,
        description: "Asks and tells a running VXLAN tunnel endpoint, over its unix socket.",
        license: { name: "MIT", identifier: "MIT" },
      },
      servers: [{ url: "http://localhost", description: "at /run/vtep/vtep.sock, say" }],
    },
  });
}

// ---- What comes in

/** A check of the path, the query or the body, which says in one sentence what is wrong. */
function checked<Target extends "param" | "query" | "json">(target: Target) {
  return <Schema extends v.GenericSchema>(schema: Schema) =>
    validator(
      target,
      schema,
      (result) => {
        if (!result.success)
          throw new VtepError("USAGE", sentence(target, result.error, schema as Keyed));
      },
      { options: CONVERSION },
    );
}

const path = checked("param");
const query = checked("query");
const body = checked("json");

/** Before a body is read: without it, what is none would pass for an empty one. */
const json: MiddlewareHandler = async (c, next) => {
  if (!/^application\/json\s*(;|$)/i.test(c.req.header("Content-Type") ?? "")) {
    const message = `${c.req.method} ${c.req.path} needs a body of JSON: send it with "Content-Type: ${JSON_MEDIA}"`;
    throw new HTTPException(415, { message });
  }
  try {
    await c.req.json();
  } catch (error) {
    throw new VtepError("USAGE", `the body is no JSON: ${(error as Error).message}`, error);
  }
  return next();
};

/** The network that a body describes, in the words of a configuration file. */
function network(name: string, described: unknown) {
  if (!isMapping(described)) return networkConfig(described);
  const { name: other = name } = described;
  if (other === name) return networkConfig({ ...described, name });
  throw new VtepError("USAGE", `name must be ${name}, as in the path, or be left out`);
}

function sentence(target: string, [issue]: readonly StandardIssue[], schema: Keyed): string {
  const keys = Object.keys(schema.entries ?? {});
  const [at] = issue!.path ?? [];
  if (at === undefined) return `the body must be an object with ${keys.join(" and ")}`;
  const key = String(typeof at === "object" ? at.key : at);
  if (issue!.received === "undefined") return `${key} is missing`;
  if (keys.includes(key)) return `${key} ${issue!.message}`;
  const what = target === "query" ? "parameter" : "key";
  return `${JSON.stringify(key)} is no ${what} of this call${keys.length === 0 ? ": it has none" : nearest(key, keys)}`;
}

interface Keyed {
  readonly entries?: object;
}

interface StandardIssue {
  readonly message: string;
  /** As valibot has it. */
  readonly received?: string;
  readonly path?: readonly (PropertyKey | { readonly key: PropertyKey })[] | undefined;
}

// ---- What goes out

/** Answers with what a stream holds, at the pace of whoever reads it. */
function stream(text: ReadableStream<Uint8Array>, media: string): Response {
  return new Response(text, { headers: { "Content-Type": media, "Cache-Control": "no-store" } });
}

/** HEAD is answered as GET is, but for what the answer holds, which nobody reads then: a stream has to be told. */
const leftUnread: MiddlewareHandler = async (c, next) => {
  await next();
  if (c.req.method === "HEAD") await c.res.body?.cancel();
};

/** A list in pieces: what else waits has its turn between two of them, and while there are none. */
function inPieces(lots: Generator<readonly FdbEntryStatus[]>): ReadableStream<Uint8Array> {
  async function* pieces(): AsyncGenerator<Uint8Array> {
    let separator = "[";
    for (const lot of lots) {
      if (lot.length > 0) {
        const piece = lot.map((entry) => JSON.stringify(entry)).join(",\n");
        yield Buffer.from(`${separator}${piece}`);
        separator = ",\n";
      }
      await setImmediate();
    }
    yield Buffer.from(separator === "[" ? "[]\n" : "]\n");
  }
  return ReadableStream.from(pieces()) as ReadableStream<Uint8Array>;
}

/** A capture for as long as somebody reads it. */
function captured({ read, end }: CaptureStream): ReadableStream<Uint8Array> {
  return new ReadableStream({
    async pull(controller) {
      const piece = await read();
      if (piece === undefined) controller.close();
      else controller.enqueue(piece);
    },
    cancel: () => end(),
  });
}

/** Nothing is there, or not by that method. */
function misdirected(app: Hono, method: string, asked: string): HTTPException {
  const served = app.routes.filter(({ method }) => method !== "ALL");
  const fits = served.filter(({ path }) => filled(path, asked) === asked);
  const methods = [...new Set(fits.map((route) => route.method))];
  if (methods.length > 0) {
    const allowed = methods.join(", ");
    return new HTTPException(405, {
      message: `${method} does nothing at ${asked}: use ${allowed}`,
      res: new Response(null, { headers: { Allow: allowed } }),
    });
  }
  const near = closest(asked, [...new Set(served.map(({ path }) => filled(path, asked)))]);
  const hint =
    distance(asked, near) <= Math.max(2, asked.length / 3)
      ? `did you mean ${near}?`
      : "GET /v1/openapi.json says what there is";
  return new HTTPException(404, { message: `there is no ${asked}: ${hint}` });
}

/** A route's path with its parameters taken from what was asked for. */
function filled(path: string, asked: string): string {
  const given = asked.split("/");
  return path
    .split("/")
    .map((part, at) => (part.startsWith(":") ? given[at] || part : part))
    .join("/");
}

function tooLarge(c: Context): never {
  const message = `the body of ${c.req.method} ${c.req.path} is larger than ${MOST_BODY / 1024} KiB: send less`;
  throw new HTTPException(413, { message });
}

function refused(c: Context, error: Error, log: Logger): Response {
  const [status, code] = kindOf(error);
  const { message } = error;
  if (status === 500) log.error({ err: error, method: c.req.method, path: c.req.path }, "API call");
  const headers =
    error instanceof HTTPException ? Object.fromEntries(error.res?.headers ?? []) : {};
  return c.json({ code, message }, status, headers);
}

function kindOf(error: Error): [ContentfulStatusCode, ErrorCode] {
  if (error instanceof VtepError) return [STATUS[error.code] ?? 500, error.code];
  if (!(error instanceof HTTPException)) return [500, "SYSTEM"];
  return [error.status, error.status === 404 ? "NOT_FOUND" : "USAGE"];
}
