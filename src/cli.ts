#!/usr/bin/env node
/** The command line: flags in, exit code out. What runs is in `agent.ts`. */
import { Command, CommanderError, Option } from "commander";
import { type Logger, pino } from "pino";
import pretty from "pino-pretty";
import { Agent, type Keeping, version } from "./agent.ts";
import { listenForScrapes } from "./api/metrics-listener.ts";
import { serve } from "./api/server.ts";
import { type Place, refuseHeld } from "./api/socket.ts";
import { addCaptureCommand } from "./commands/capture.ts";
import { addCompletionCommand } from "./commands/completion.ts";
import { addConfigCommand } from "./commands/config.ts";
import { addControlCommands } from "./commands/control.ts";
import { addDoctorCommand } from "./commands/doctor.ts";
import { addExplainCommand } from "./commands/explain.ts";
import { addFdbCommands } from "./commands/fdb.ts";
import { addNetworkCommands } from "./commands/network.ts";
import { addServiceCommand } from "./commands/service.ts";
import { addTopCommand } from "./commands/top.ts";
import type { Config } from "./config.ts";
import { DEFAULT_FILE, defaultFile, load } from "./config-file.ts";
import { EXIT_USAGE, exitCode, VtepError } from "./errors.ts";
import { addFlags, once, valuesByKey } from "./flags.ts";
import type { Changes } from "./operations.ts";
import {
  feedWatchdog,
  type HandedOver,
  handedOver,
  isJournal,
  journalStream,
  notifyReady,
  notifyReloading,
  notifyStatus,
  notifyStopping,
  priorityPrefix,
} from "./systemd.ts";

const ERROR = pino.levels.values.error!;

const EXAMPLES = `
Examples:
  vtep run --vni 100 --peer 192.0.2.2
      joins this host to network 100 through the TAP vtep100
  vtep run --vni 100 --peer 192.0.2.2 192.0.2.3 --bridge br100
      the same with two peers, for whatever is joined to the bridge br100
  vtep run --config vtep.yaml
      several networks from a file ("vtep config example" prints one to begin with)
  vtep run
      what /etc/vtep/vtep.yaml says

Signals:
  SIGTERM, SIGINT  stop and remove what was made
  SIGHUP           read the file again and apply it: what is the same goes on undisturbed
  SIGUSR2          log the FDB, the counters and the drops by reason
`;

function program(): Command {
  const vtep = new Command("vtep")
    .description("A VXLAN tunnel endpoint (RFC 7348) in user space, over a TAP device")
    .version(version(), "--version", "print the version")
    .helpOption("--help", "print this help")
    .helpCommand(false)
    .exitOverride()
    .configureOutput({ outputError: () => undefined });
  vtep.addCommand(runCommand().copyInheritedSettings(vtep));
  addNetworkCommands(vtep);
  addFdbCommands(vtep);
  addControlCommands(vtep);
  addCaptureCommand(vtep);
  addExplainCommand(vtep);
  addTopCommand(vtep);
  addConfigCommand(vtep);
  addDoctorCommand(vtep);
  addServiceCommand(vtep);
  addCompletionCommand(vtep); // of all that are there
  return vtep;
}

function runCommand(): Command {
  const run = new Command("run")
    .description("Forward frames between TAP devices and VXLAN peers, in the foreground")
    .addOption(
      new Option(
        "--config <FILE>",
        `take the configuration from a YAML file; flags of a network add one (default: ${DEFAULT_FILE}, unless flags give a network)`,
      ).argParser(once("--config", "one file holds all networks")),
    );
  return addFlags(run).addHelpText("after", EXAMPLES).action(forward);
}

function configuration(given: Record<string, unknown>): Config {
  return load(fileOf(given), valuesByKey(given)).config;
}

function fileOf(given: Record<string, unknown>): string | undefined {
  return (given.config as string | undefined) ?? defaultFile(valuesByKey(given));
}

/** Runs until it is told to stop, or cannot go on. */
async function forward(given: Record<string, unknown>): Promise<void> {
  const config = configuration(given);
  const log = pino({ level: config.logLevel }, logStream());
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
  const descriptors = handedOver();
  const socket = descriptors.find(({ name }) => name === "api");
  const place = socket ?? { path: config.socket };
  if ("path" in place) await refuseHeld(place.path);
  const starting = Agent.start(config, log, unwanted.signal, keeping(descriptors));
  process.on("SIGHUP", () => {
    starting.then((started) => started && reload(started, given, log)).catch(() => undefined);
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

/** Our units keep what a restart would lose: descriptors in the manager's store, the rest in a file. */
function keeping(handed: readonly HandedOver[]): Keeping | undefined {
  const { VTEP_KEEP, STATE_DIRECTORY } = process.env;
  if (VTEP_KEEP !== "1") return undefined;
  const descriptors = handed.filter(({ name }) => name !== "api");
  return { descriptors, directory: STATE_DIRECTORY?.split(":")[0] };
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
  const reread = () => apply(agent, given);
  const metrics = () => agent.metrics();
  const served = { version: version(), operations: agent, reload: reread, metrics, log };
  await using _api = await serve(place, served);
  await using _metrics = metricsListen && (await listenForScrapes(metricsListen, metrics));
  const brief = summary(agent);
  log.info(brief, "ready");
  notifyReady(forwarding(brief.networks));
  const leaveWatchdog = feedWatchdog(() => agent.forwards());
  try {
    return await Promise.race([stopped, agent.lost]);
  } finally {
    leaveWatchdog();
  }
}

/** A file that is wrong changes nothing: what is forwarded goes on, and the log says why. */
async function reload(agent: Agent, given: Record<string, unknown>, log: Logger): Promise<void> {
  try {
    log.info(await apply(agent, given), "reloaded");
  } catch (error) {
    log.error({ reason: sentenceOf(error) }, "nothing was changed");
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
    notifyReady(forwarding(agent.status().networks));
  }
}

/** One JSON line a message, or colours for people. A log that is full must not stop frames. */
function logStream() {
  if (process.stdout.isTTY) return pretty({ colorize: true, ignore: "pid,hostname", sync: true });
  const lines = pino.destination({ sync: true }).on("error", () => undefined);
  return isJournal(process.stdout.fd) ? journalStream(lines) : lines;
}

function summary(agent: Agent) {
  const { local, port, underlay, networks } = agent.status();
  const brief = networks.map(({ vni, tap, mtu, peers }) => ({ vni, tap, mtu, peers }));
  return { local, port, underlay, networks: brief };
}

/** Networks that the line of `systemctl status` names; more are counted. */
const NAMED = 8;

function forwarding(networks: readonly { vni: number; tap: string }[]): string {
  const names = networks.map(({ vni, tap }) => `${vni} (${tap})`);
  const more = names.length > NAMED ? ` and ${names.length - NAMED} more` : "";
  const what = names.length === 1 ? "network" : `${names.length} networks:`;
  return `forwarding ${what} ${names.slice(0, NAMED).join(", ")}${more}`;
}

/** Why it ends, for people and, where it is a service, for its manager and the journal. */
function complain(sentence: string): void {
  notifyStatus(sentence);
  const prefix = isJournal(process.stderr.fd) ? priorityPrefix(ERROR) : "";
  process.stderr.write(`${prefix}vtep: ${sentence}\n`);
}

/** One sentence, whoever found the fault. */
function sentenceOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  // commander puts its suggestion of a near name on a line of its own.
  const text = error.message.replace(/^error: /, "").replace(/\n\((.*)\)$/, ": $1");
  return error instanceof VtepError || error instanceof CommanderError
    ? text
    : (error.stack ?? text);
}

// Whoever reads may have had enough ("vtep run --help | head").
process.stdout.on("error", () => undefined);
process.stderr.on("error", () => undefined);

try {
  await program().parseAsync();
} catch (error) {
  const usage = error instanceof CommanderError;
  // Help that was asked for ends with 0; commander prints it also when the command is missing.
  const said = usage && (error.exitCode === 0 || error.code === "commander.help");
  if (!said) complain(sentenceOf(error));
  if (!usage) process.exitCode = exitCode(error);
  else if (error.exitCode !== 0) process.exitCode = EXIT_USAGE;
}
