/**
 * Asks and tells a running agent, over its socket. Every call throws VtepError: with the agent's own
 * code and sentence when it refuses, UNREACHABLE when there is none or it does not answer.
 */
import { type ClientRequest, type IncomingMessage, request } from "node:http";
import { createInterface } from "node:readline";
import { text } from "node:stream/consumers";
import type { Attachment } from "../attachments.ts";
import { type ErrorCode, VtepError } from "../errors.ts";
import type { Explanation, Question } from "../explain.ts";
import type {
  AgentEvent,
  AgentStatus,
  CaptureFilter,
  Changes,
  FdbEntryStatus,
  FdbFilter,
  NetworkStatus,
  RemoteStatus,
} from "../operations.ts";

/** An agent's status, with the version of the program that it runs. */
export type ApiStatus = AgentStatus & { readonly version: string };

/** How long an agent may keep silent over a call. */
const PATIENCE_MS = 30_000;
/** After which whoever waits is told that nothing has gone wrong yet. */
const SILENCE_MS = 5_000;
const CONTINUE = "look into its log, continue it where ps says that it is stopped (T, kill -CONT)";

export class Client {
  readonly socket: string;
  readonly #patienceMs: number;
  readonly #tell: (sentence: string) => void;

  /**
   * `tell` is given a sentence where an agent takes long. Throws VtepError USAGE for an empty path, in whose
   * place node:http would ask port 80 of this host.
   */
  constructor(
    socket: string,
    patienceMs = PATIENCE_MS,
    tell: (sentence: string) => void = () => undefined,
  ) {
    if (socket === "") {
      throw new VtepError(
        "USAGE",
        "the path of the agent's socket is empty: give it with --socket PATH",
      );
    }
    this.socket = socket;
    this.#patienceMs = patienceMs;
    this.#tell = tell;
  }

  status(): Promise<ApiStatus> {
    return this.#call("GET", "/v1/status");
  }

  networks(): Promise<NetworkStatus[]> {
    return this.#call("GET", "/v1/networks");
  }

  network(name: string): Promise<NetworkStatus> {
    return this.#call("GET", at`/v1/networks/${name}`);
  }

  /** `described` in the shape that a configuration file has. Tells also whether there was none of that name. */
  async putNetwork(
    name: string,
    described: object,
  ): Promise<NetworkStatus & { readonly isNew: boolean }> {
    const answer = await this.#answer("PUT", at`/v1/networks/${name}`, described);
    const isNew = answer.statusCode === 201;
    return { ...(await this.#content<NetworkStatus>(answer)), isNew };
  }

  removeNetwork(name: string): Promise<void> {
    return this.#call("DELETE", at`/v1/networks/${name}`);
  }

  putPeer(network: string, address: string): Promise<NetworkStatus> {
    return this.#call("PUT", at`/v1/networks/${network}/peers/${address}`);
  }

  removePeer(network: string, address: string): Promise<void> {
    return this.#call("DELETE", at`/v1/networks/${network}/peers/${address}`);
  }

  putFdb(network: string, mac: string, remote: string): Promise<FdbEntryStatus> {
    return this.#call("PUT", at`/v1/networks/${network}/fdb/${mac}`, { remote });
  }

  removeFdb(network: string, mac: string): Promise<void> {
    return this.#call("DELETE", at`/v1/networks/${network}/fdb/${mac}`);
  }

  fdb(filter: FdbFilter = {}): Promise<FdbEntryStatus[]> {
    return this.#call("GET", `/v1/fdb${queryOf(filter)}`);
  }

  /** The same as JSON, as it comes. */
  async *fdbText(filter: FdbFilter = {}): AsyncGenerator<Buffer> {
    const answer = await this.#answer("GET", `/v1/fdb${queryOf(filter)}`);
    try {
      yield* answer;
    } catch (error) {
      throw this.#unreachable(error as NodeJS.ErrnoException);
    }
  }

  flushFdb(filter: Omit<FdbFilter, "origin"> = {}): Promise<{ readonly flushed: number }> {
    return this.#call("DELETE", `/v1/fdb${queryOf(filter)}`);
  }

  /** What is attached now; the agent looks. */
  attachments(): Promise<Attachment[]> {
    return this.#call("GET", "/v1/attachments");
  }

  remotes(): Promise<RemoteStatus[]> {
    return this.#call("GET", "/v1/remotes");
  }

  explain(network: string, question: Question): Promise<Explanation> {
    return this.#call("POST", "/v1/explain", { network, ...question });
  }

  /** Frames from now on, in pcapng. */
  capture(filter: CaptureFilter): Promise<IncomingMessage> {
    return this.#answer("GET", `/v1/capture${queryOf(filter)}`);
  }

  /** Of whoever it is; the rest of it still comes. */
  endCapture(): Promise<void> {
    return this.#call("DELETE", "/v1/capture");
  }

  reload(): Promise<Changes> {
    return this.#call("POST", "/v1/reload");
  }

  setLogLevel(level: string): Promise<{ readonly level: string }> {
    return this.#call("PUT", "/v1/log-level", { level });
  }

  /** Everything that happens from now on. Ends by throwing UNREACHABLE, when the agent does. */
  async *events(): AsyncGenerator<AgentEvent> {
    const answer = await this.#answer("GET", "/v1/events");
    try {
      for await (const line of createInterface(answer)) {
        if (line.startsWith("data: ")) yield JSON.parse(line.slice("data: ".length)) as AgentEvent;
      }
    } catch (error) {
      throw this.#unreachable(error as NodeJS.ErrnoException);
    } finally {
      answer.destroy();
    }
    throw this.#unreachable({ code: "ECONNRESET" });
  }

  async #call<Answer>(method: string, path: string, body?: object): Promise<Answer> {
    return this.#content(await this.#answer(method, path, body));
  }

  async #content<Answer>(answer: IncomingMessage): Promise<Answer> {
    const content = await this.#textOf(answer);
    try {
      return (content === "" ? undefined : JSON.parse(content)) as Answer;
    } catch (error) {
      throw this.#unreachable(error as NodeJS.ErrnoException);
    }
  }

  async #textOf(answer: IncomingMessage): Promise<string> {
    try {
      return await text(answer);
    } catch (error) {
      throw this.#unreachable(error as NodeJS.ErrnoException);
    }
  }

  /** The answer, once its headers say that the call came to something. */
  async #answer(method: string, path: string, body?: object): Promise<IncomingMessage> {
    const content = body === undefined ? "" : JSON.stringify(body);
    const length = Buffer.byteLength(content);
    const headers = { "Content-Type": "application/json", "Content-Length": length };
    const waiting = setTimeout(() => {
      const seconds = [SILENCE_MS, this.#patienceMs].map((ms) => `${ms / 1000} s`);
      this.#tell(
        `the agent has not answered for ${seconds[0]}, and is waited for until ${seconds[1]}: ${CONTINUE}`,
      );
    }, SILENCE_MS);
    const answer = await new Promise<IncomingMessage>((resolve, reject) => {
      const asked = request({
        socketPath: this.socket,
        method,
        path,
        agent: false,
        timeout: this.#patienceMs,
        headers: body === undefined ? {} : headers,
      });
      let silent: ClientRequest | IncomingMessage = asked;
      asked.on("response", (answer) => {
        silent = answer;
        resolve(answer);
      });
      asked.on("error", (error) => reject(this.#unreachable(error)));
      asked.on("timeout", () => silent.destroy(Object.assign(new Error(), { code: "ETIMEDOUT" })));
      asked.end(content);
    }).finally(() => clearTimeout(waiting));
    if (answer.statusCode! < 300) return answer;
    throw refusal(answer.statusCode!, await this.#textOf(answer));
  }

  #unreachable(error: {
    readonly code?: string | undefined;
    readonly message?: string;
  }): VtepError {
    const instead = "or name its socket with --socket PATH";
    const why = WHY[error.code ?? ""] ?? [error.message ?? "it failed", "start it with vtep run,"];
    const message = `the agent is not reachable at ${this.socket} (${why[0]}): ${why[1]} ${instead}`;
    return new VtepError("UNREACHABLE", message, error);
  }
}

const START = "start it with vtep run (systemctl start vtep),";
const WHY: Record<string, readonly [why: string, remedy: string]> = {
  ENOENT: ["there is no such socket", START],
  ENOTDIR: ["there is no such socket", START],
  ECONNREFUSED: ["nobody listens there", START],
  ENOTSOCK: ["that is no socket", START],
  EACCES: ["not permitted", "run as root or as a member of the socket's group,"],
  EPERM: ["not permitted", "run as root or as a member of the socket's group,"],
  ECONNRESET: ["it has ended", START],
  EPIPE: ["it has ended", START],
  ETIMEDOUT: ["it does not answer", `${CONTINUE},`],
};

function refusal(status: number, content: string): VtepError {
  try {
    const { code, message } = JSON.parse(content) as { code: ErrorCode; message: string };
    return new VtepError(code, message);
  } catch (error) {
    return new VtepError("SYSTEM", `the agent answered ${status}: ${content.slice(0, 200)}`, error);
  }
}

/** A path with its parts escaped. */
function at(parts: TemplateStringsArray, ...names: readonly string[]): string {
  return String.raw({ raw: parts }, ...names.map(encodeURIComponent));
}

function queryOf(filter: object): string {
  const given = Object.entries(filter).filter(([, value]) => value !== undefined);
  const query = new URLSearchParams(given as [string, string][]).toString();
  return query === "" ? "" : `?${query}`;
}
