/** What an agent has to bear: clients without manners, and more MACs than a network needs. */
import { request } from "node:http";
import { connect } from "node:net";
import { setTimeout as pause } from "node:timers/promises";
import { isDeepStrictEqual } from "node:util";
import type { Client } from "../../src/api/client.ts";
import type { Namespace } from "./namespace.ts";
import { until } from "./until.ts";

/** Sends a frame from each of so many MACs out of an interface. */
function sendFromMacs(where: Namespace, device: string, count: number): Promise<string> {
  return where.run(
    "python3",
    "-c",
    `import errno, socket, struct
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("${device}", 0))
for at in range(${count}):
    try:
        s.send(b"\\xff" * 6 + struct.pack(">HI", 0x0202, at) + b"\\x88\\xb5" + bytes(46))
    except OSError as error: # a TAP without a queueing discipline says when its queue is full
        if error.errno != errno.ENOBUFS: raise`,
  );
}

/** Sends from more and more MACs, until an agent's network of that TAP has learned so many. */
export async function learnMacs(
  host: Namespace,
  client: Client,
  { network, tap, count }: { network: string; tap: string; count: number },
  deadlineMs: number,
): Promise<void> {
  const learned = async () => (await client.network(network)).fdb.learned;
  await until(
    `${count} entries`,
    async () => {
      if ((await learned()) >= count) return true;
      await sendFromMacs(host, tap, count + 10);
      return (await learned()) >= count;
    },
    deadlineMs,
  );
}

/**
 * Everything that a client should not do, over and over. Returns how many calls that were, and what was
 * answered where that was not what it should have been.
 */
export async function misuse(
  socket: string,
  end: AbortSignal,
): Promise<{ calls: number; wrong: number[][] }> {
  let calls = 0;
  const wrong: number[][] = [];
  const ask = (method: string, path: string, body?: string) =>
    new Promise<number>((resolve) => {
      const headers = body === undefined ? {} : { "Content-Type": "application/json" };
      const asked = request({ socketPath: socket, method, path, agent: false, headers });
      asked.on("error", () => resolve(0)); // told before it had said everything
      asked.on("response", (answer) => {
        answer.resume().on("close", () => resolve(answer.statusCode!));
      });
      asked.end(body);
    });
  const large = "x".repeat(10_000_000);
  while (!end.aborted) {
    const half = connect(socket);
    half.on("error", () => {});
    half.write("PUT /v1/networks/x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{"); // hangs
    const gone = connect(socket);
    gone.on("error", () => {});
    gone.write("GET /v1/fdb HTTP/1.1\r\nHost: x\r\n\r\n", () => gone.destroy());
    const statuses = await Promise.all([
      ask("PUT", "/v1/networks/x", large),
      ask("PUT", "/v1/networks/x", '{"vni":"x"}'),
      ask("PUT", "/v1/networks/x"),
      ask("PATCH", "/v1/nothing"),
      ...Array.from({ length: 1000 }, () => ask("GET", "/v1/networks/nobody")),
    ]);
    calls += statuses.length;
    const [, ...told] = statuses;
    if (!isDeepStrictEqual(told, [400, 415, 404, ...Array(1000).fill(404)])) wrong.push(told);
    half.destroy();
    await pause(200);
  }
  return { calls, wrong };
}
