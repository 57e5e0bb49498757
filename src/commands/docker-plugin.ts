/** `vtep docker-plugin`: the calls of a Docker daemon, over a socket where it looks for plugins. */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { text } from "node:stream/consumers";
import type { Command } from "commander";
import { Client } from "../api/client.ts";
import { type Asked, disposable, listen } from "../api/socket.ts";
import { DockerDriver } from "../docker.ts";
import { sentenceOf, VtepError } from "../errors.ts";
import { handedOver, notifyReady, notifyStopping } from "../systemd.ts";
import { DEFAULT_SOCKET } from "./ask.ts";

const MOST_BODY = 1 << 20;
const MEDIA = "application/vnd.docker.plugins.v1.1+json";
const PATIENCE_MS = 10_000;

/** It is most often held by the unit that starts the driver when Docker asks. */
const DRIVER: Asked = {
  what: "Docker's driver",
  another: "another driver",
  end: "stop it (systemctl stop vtep-docker.socket vtep-docker)",
  flag: "--listen",
};

const EXAMPLES = `
Examples:
  docker network create -d vtep --subnet 192.0.2.0/24 -o network=blue web
  docker run --network web ...

  The same with Compose:
      networks:
        web:
          driver: vtep
          driver_opts: { network: blue }
          ipam: { config: [{ subnet: 192.0.2.0/24, ip_range: 192.0.2.64/26 }] }

Every host creates the network, with an --ip-range of its own: Docker gives out addresses on each by itself.`;

export function addDockerPluginCommand(vtep: Command): void {
  vtep
    .command("docker-plugin")
    .description("Serve Docker's network driver vtep, until it is told to stop")
    .option("--socket <PATH>", `socket of the agent (default: ${DEFAULT_SOCKET})`)
    .option("--listen <PATH>", "where Docker finds it", "/run/docker/plugins/vtep.sock")
    .option(
      "--state <FILE>",
      "where it is kept which network is which",
      "/var/lib/vtep/docker.json",
    )
    .addHelpText("after", EXAMPLES)
    .action(serve);
}

async function serve(options: { socket?: string; listen: string; state: string }): Promise<void> {
  const stopped = new Promise((resolve) => {
    for (const signal of ["SIGTERM", "SIGINT"] as const) process.on(signal, resolve);
  });
  const client = new Client(options.socket ?? DEFAULT_SOCKET, PATIENCE_MS);
  const driver = new DockerDriver(client, options.state);
  const server = createServer((request, response) => void answer(driver, request, response));
  const [handed] = handedOver();
  await listen(server, handed ?? { path: options.listen }, DRIVER);
  await using _ = disposable(server);
  process.stdout.write(
    `listening at ${handed === undefined ? options.listen : "the socket that was handed over"}\n`,
  );
  notifyReady("serving Docker");
  await stopped;
  notifyStopping();
}

async function answer(
  driver: DockerDriver,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const call = request.url?.slice(1) ?? "";
  const said = await answerTo(driver, call, request).catch((error: unknown) => {
    process.stderr.write(`vtep: ${call}: ${sentenceOf(error)}\n`);
    return { status: 500, body: { Err: `vtep: ${sentenceOf(error).split("\n")[0]}` } };
  });
  response.writeHead(said.status, { "Content-Type": MEDIA }).end(JSON.stringify(said.body));
}

function parsed(input: string): unknown {
  try {
    return JSON.parse(input);
  } catch (error) {
    throw new VtepError("USAGE", `the body is no JSON: ${(error as Error).message}`, error);
  }
}

async function answerTo(driver: DockerDriver, call: string, request: IncomingMessage) {
  const { "content-length": length = "0" } = request.headers;
  if (Number(length) > MOST_BODY) return { status: 413, body: { Err: "the body is too large" } };
  const input = await text(request);
  const body = await driver.answer(call, input === "" ? {} : parsed(input));
  if (body === undefined) return { status: 404, body: { Err: `there is no call ${call}` } };
  return { status: 200, body };
}
