/**
 * The CNI plugin's words: what a container runtime asks, and what it is answered, by the specification
 * 1.1.0 (github.com/containernetworking/cni, SPEC.md), from 0.3.0 on. What is done is `cni-plugin.ts`, which
 * is loaded only then: runtimes ask for the VERSION before every call.
 *
 *     { "cniVersion": "1.0.0", "name": "web", "type": "vtep-cni",
 *       "network": "blue",                  the agent's; unless given, `name`
 *       "socket": "/run/vtep/vtep.sock",    the agent's; unless given, this one
 *       "mtu": 1400,                        unless given, the network's
 *       "ipam": { "type": "host-local", ... } }
 */
import { VtepError } from "./errors.ts";

const VERSIONS = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] as const;
type Version = (typeof VERSIONS)[number];

/** The specification's codes for what goes wrong, and our own from 100 on. */
export const CODE = {
  version: 1,
  container: 3,
  environment: 4,
  io: 5,
  content: 6,
  configuration: 7,
  again: 11,
  unavailable: 50,
  other: 100,
} as const;

/** What is answered on standard output when something went wrong. */
export class CniError extends Error {
  readonly code: number;

  constructor(code: number, message: string) {
    super(message);
    this.code = code;
  }
}

export interface Call {
  readonly environment: Readonly<Record<string, string | undefined>>;
  /** Standard input: the configuration. */
  readonly input: string;
}

export interface Configuration {
  readonly cniVersion: Version;
  readonly name: string;
  readonly network: string;
  readonly socket: string;
  readonly mtu: number | undefined;
  readonly mac: string | undefined;
  readonly ipam: string | undefined;
  readonly prevResult: Result | undefined;
  readonly valid: readonly { readonly containerID: string; readonly ifname: string }[] | undefined;
}

/** Of an IPAM plugin, and of ours. */
export interface Result {
  readonly cniVersion?: string;
  readonly interfaces?: readonly Interface[];
  readonly ips?: readonly Ip[];
  readonly routes?: readonly Route[];
  readonly dns?: object;
}

/** All but the first two are of 1.1.0. */
export interface Route extends Partial<Readonly<Record<RouteNumber, number>>> {
  readonly dst: string;
  readonly gw?: string;
}

export type RouteNumber = "mtu" | "advmss" | "priority" | "table" | "scope";

interface Interface {
  readonly name: string;
  readonly mac?: string;
  readonly mtu?: number;
  readonly sandbox?: string;
}

export interface Ip {
  readonly address: string;
  readonly gateway?: string;
  readonly interface?: number;
  readonly version?: string;
}

const DEFAULT_SOCKET = "/run/vtep/vtep.sock";

/** What is to be printed; undefined: nothing. Throws CniError. */
export async function answer(call: Call): Promise<object | undefined> {
  const { CNI_COMMAND: command } = call.environment;
  if (command === "VERSION") return version(call);
  const configuration = configurationOf(call);
  const { Plugin } = await import("./cni-plugin.ts");
  const plugin = new Plugin(call, configuration);
  try {
    switch (command) {
      case "ADD":
        return await plugin.add();
      case "DEL":
        return await plugin.del();
      case "CHECK":
        return await plugin.check();
      case "GC":
        return await plugin.gc();
      case "STATUS":
        return await plugin.status();
    }
  } catch (error) {
    throw cniError(error);
  }
  throw new CniError(
    CODE.environment,
    `CNI_COMMAND is ${JSON.stringify(command ?? "")}: it must be ADD, DEL, CHECK, GC, STATUS or VERSION`,
  );
}

/** The error as a runtime is told of it. */
export function errorText({ code, message }: CniError, { input }: Call): object {
  const { cniVersion = VERSIONS.at(-1) } = parsed(input) ?? {};
  return { cniVersion, code, msg: message };
}

function version({ input }: Call): object {
  const { cniVersion } = parsed(input) ?? {};
  return { cniVersion: cniVersion ?? VERSIONS.at(-1), supportedVersions: VERSIONS };
}

function configurationOf({ input, environment }: Call): Configuration {
  const raw = parsed(input);
  if (raw === undefined) {
    throw new CniError(CODE.content, "the configuration on standard input is no JSON object");
  }
  const cniVersion = String(raw.cniVersion ?? "0.1.0") as Version;
  if (!VERSIONS.includes(cniVersion)) {
    throw new CniError(
      CODE.version,
      `cniVersion ${cniVersion} is not known here: use one of ${VERSIONS.join(", ")}`,
    );
  }
  const wrong = (key: string, what: string) =>
    new CniError(CODE.configuration, `${key} must be ${what}`);
  const { name, network = name, socket = DEFAULT_SOCKET, mtu, ipam, prevResult } = raw;
  if (typeof name !== "string" || !/^[A-Za-z0-9][\w.-]*$/.test(name)) {
    throw wrong("name", 'a name of letters, digits, "_", "." and "-"');
  }
  if (typeof network !== "string") throw wrong("network", "the name of a network of the agent");
  if (typeof socket !== "string") throw wrong("socket", "the path of the agent's socket");
  if (mtu !== undefined && !(Number.isInteger(mtu) && (mtu as number) >= 68)) {
    throw wrong("mtu", "a whole number from 68");
  }
  const type = (ipam as { type?: unknown } | undefined)?.type;
  const isEmpty = ipam === undefined || (isObject(ipam) && Object.keys(ipam).length === 0);
  if (!isEmpty && (typeof type !== "string" || !/^\w[\w.-]*$/.test(type))) {
    throw wrong("ipam", "an object whose type is the name of a plugin");
  }
  const valid = raw["cni.dev/valid-attachments"];
  if (valid !== undefined && !Array.isArray(valid)) {
    throw wrong("cni.dev/valid-attachments", "a list");
  }
  return {
    cniVersion,
    name,
    network,
    socket,
    mtu: mtu as number | undefined,
    mac: macOf(raw, environment.CNI_ARGS),
    ipam: type as string | undefined,
    prevResult: prevResult as Result | undefined,
    valid: valid as Configuration["valid"],
  };
}

/** By the capability, by the convention for `args`, or by what runtimes had before both. */
function macOf(raw: Readonly<Record<string, unknown>>, args = ""): string | undefined {
  const { runtimeConfig, args: conventional } = raw as {
    runtimeConfig?: { mac?: string };
    args?: { cni?: { mac?: string } };
  };
  const old = args.split(";").find((pair) => pair.startsWith("MAC="));
  const ways = [runtimeConfig?.mac, conventional?.cni?.mac, old?.slice("MAC=".length)];
  return ways.find((mac) => mac); // an empty one is none, as tuning and bridge have it
}

export function parsed(input: string): Readonly<Record<string, unknown>> | undefined {
  try {
    const value: unknown = JSON.parse(input);
    return isObject(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function cniError(error: unknown): CniError {
  if (error instanceof CniError) return error;
  if (!(error instanceof VtepError)) {
    return new CniError(CODE.other, (error as Error).message);
  }
  const codes: Partial<Record<VtepError["code"], number>> = {
    USAGE: CODE.configuration,
    NOT_FOUND: CODE.configuration,
    UNREACHABLE: CODE.again,
    LOST: CODE.again,
    SYSTEM: CODE.io,
  };
  const message = error.message.replace("--socket PATH", 'the key "socket"'); // here there are no flags
  return new CniError(codes[error.code] ?? CODE.other, message);
}
