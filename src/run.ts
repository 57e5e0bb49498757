/**
 * `vtep run`: an agent from a configuration, its API and its log, until it is told to stop.
 */
import { type Logger, pino } from "pino";
import { Agent } from "./agent.ts";
import { type Place, refuseHeld } from "./api/socket.ts";
import type { Config } from "./config.ts";
import { defaultFile, load } from "./config-file.ts";
import { sentenceOf, VtepError } from "./errors.ts";
import { valuesByKey } from "./flags.ts";
import type { Interim } from "./interim.ts";
import { isLogWritten, logStream } from "./log.ts";
import type { AgentStatus, Changes } from "./operations.ts";
import {
  feedWatchdog,
  handedOver,
  keptBefore,
  notifyReady,
  notifyReloading,
  notifyStopping,
} from "./systemd.ts";
import { version } from "./version.ts";
import type { Thread } from "./workers.ts";

/**
 * Runs until it is told to stop, or cannot go on. `first` is the first of the forwarding threads, `interim` what
 * forwards meanwhile.
 */
export async function run(
  given: Record<string, unknown>,
  first: Thread,
  interim: Interim | undefined,
): Promise<void> {
  let ended = false;
  try {
    await forward(given, first, interim);
    ended = true;
  } finally {
    // What waits to be written would keep the process, for as long as nobody reads, as does what takes itself
    // apart; frames may be waiting for the next one. The exit code is set by then.
    void isLogWritten().then((isWritten) => (isWritten && !ended) || process.exit());
  }
}

async function forward(
  given: Record<string, unknown>,
  first: Thread,
  interim: Interim | undefined,
): Promise<void> {
  const config = configuration(given);
  const log = pino({ level: config.logLevel }, await logStream());
  const unwanted = new AbortController();
  const stopped = new Promise<NodeJS.Signals>((resolve) => {
    for (const signal of ["SIGTERM", "SIGINT"] as const) process.on(signal, resolve);
  });
  void stopped.then(() => unwanted.abort());
  let agent: Agent | undefined;
  process.on("SIGUSR2", () => {
    if (agent === undefined) log.info("starting: there is no status yet");
    else log.info(agent.report(), "status");
  });
  const kept = keptBefore();
  const keeping = kept && { ...kept, interim };
  const socket = handedOver().find(({ name }) => name === "api");
  const place = socket ?? { path: config.socket };
  if ("path" in place) await refuseHeld(place.path);
  const starting = Agent.start(config, log, unwanted.signal, first, keeping);
  process.on("SIGHUP", () => {
    starting.then((started) => started && reload(started, given, log)).catch(() => undefined); // it is logged
  });
  agent = await starting;
  if (agent === undefined) return log.info({ signal: await stopped }, "stopped while starting");
  const reason = await ready(agent, config, place, given, log, stopped).finally(() => {
    notifyStopping();
    return agent?.stop();
  });
  if (reason instanceof VtepError) throw reason;
  log.info({ signal: reason }, "stopped");
}

/** While frames can cross: until it is told to stop, or cannot go on. */
async function ready(
  agent: Agent,
  { metricsListen }: Config,
  place: Place,
  given: Record<string, unknown>,
  log: Logger,
  stopped: Promise<NodeJS.Signals>,
): Promise<NodeJS.Signals | VtepError> {
  const reread = () => reload(agent, given, log);
  const metrics = () => agent.metrics();
  const { serve } = await import("./api/server.ts");
  const served = { version: version(), operations: agent, reload: reread, metrics, log };
  await using _api = await serve(place, served);
  await using _metrics = metricsListen && (await scraped(metricsListen, metrics));
  const status = agent.status();
  log.info(summary(status), "ready");
  notifyReady(forwarding(status));
  const leaveWatchdog = feedWatchdog(() => agent.forwards());
  try {
    return await Promise.race([stopped, agent.lost]);
  } finally {
    leaveWatchdog();
  }
}

async function scraped(at: NonNullable<Config["metricsListen"]>, metrics: Agent["metrics"]) {
  const { listenForScrapes } = await import("./api/metrics-listener.ts");
  return listenForScrapes(at, metrics);
}

/** A file that is wrong changes nothing: what is forwarded goes on, and the log says why. */
async function reload(agent: Agent, given: Record<string, unknown>, log: Logger): Promise<Changes> {
  try {
    const changes = await apply(agent, given);
    log.info(changes, "reloaded");
    return changes;
  } catch (error) {
    log.error({ reason: sentenceOf(error) }, "nothing was changed");
    throw error;
  }
}

/** Reads the file again. Throws where there is none, for then nothing can be new. */
async function apply(agent: Agent, given: Record<string, unknown>): Promise<Changes> {
  notifyReloading();
  try {
    if (fileOf(given) !== undefined) return await agent.reload(configuration(given));
    const message = "the agent was started by flags alone: there is no file to read again";
    throw new VtepError("CONFLICT", `${message}, so add and remove networks, peers and entries`);
  } finally {
    if (!agent.isStopping) notifyReady(forwarding(agent.status()));
  }
}

function summary({ local, port, underlay, networks }: AgentStatus) {
  const brief = networks.map(({ vni, tap, mtu, peers }) => ({ vni, tap, mtu, peers }));
  const more = brief.length > NAMED ? brief.length - NAMED : undefined;
  return { local, port, underlay, networks: brief.slice(0, NAMED), more };
}

/** Networks that are named in the log, whose lines journald cuts at 48 KiB, and in `systemctl status`; more are counted. */
const NAMED = 8;

function forwarding({ networks }: AgentStatus): string {
  const names = networks.map(({ vni, tap }) => `${vni} (${tap})`);
  const more = names.length > NAMED ? ` and ${names.length - NAMED} more` : "";
  const what = names.length === 1 ? "network" : `${names.length} networks:`;
  return `forwarding ${what} ${names.slice(0, NAMED).join(", ")}${more}`;
}

function configuration(given: Record<string, unknown>): Config {
  return load(fileOf(given), valuesByKey(given)).config;
}

function fileOf(given: Record<string, unknown>): string | undefined {
  return (given.config as string | undefined) ?? defaultFile(valuesByKey(given));
}
