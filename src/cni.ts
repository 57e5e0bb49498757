/**
 * The CNI plugin: what a container runtime asks of it, by the specification 1.1.0
 * (github.com/containernetworking/cni, SPEC.md), from 0.4.0 on.
 *
 * Addresses are an IPAM plugin's: it is run as the specification says, with our environment and
 * configuration. Links are made by `attach.ts`, and belong to the container ID and the interface's name;
 * so what was made can be removed when the container's namespace, the agent or both are gone.
 *
 *     { "cniVersion": "1.0.0", "name": "web", "type": "vtep-cni",
 *       "network": "blue",                  the agent's; unless given, `name`
 *       "socket": "/run/vtep/vtep.sock",    the agent's; unless given, this one
 *       "mtu": 1400,                        unless given, the network's
 *       "ipam": { "type": "host-local", ... } }
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";
import { text } from "node:stream/consumers";
import { spelt } from "./addresses.ts";
import { Client } from "./api/client.ts";
import { address, attach, checkInterface, detach, namespaceId } from "./attach.ts";
import { attachmentOf, linkName } from "./attachments.ts";
import { VtepError } from "./errors.ts";
import { linkInside, linksByName, routesInside } from "./host.ts";

export const VERSIONS = ["0.4.0", "1.0.0", "1.1.0"] as const;
type Version = (typeof VERSIONS)[number];

/** The specification's codes for what goes wrong, and our own from 100 on. */
const CODE = {
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

interface Configuration {
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
interface Result {
  readonly cniVersion?: string;
  readonly interfaces?: readonly Interface[];
  readonly ips?: readonly Ip[];
  readonly routes?: readonly { readonly dst: string; readonly gw?: string }[];
  readonly dns?: object;
}

interface Interface {
  readonly name: string;
  readonly mac?: string;
  readonly mtu?: number;
  readonly sandbox?: string;
}

interface Ip {
  readonly address: string;
  readonly gateway?: string;
  readonly interface?: number;
  readonly version?: string;
}

const DEFAULT_SOCKET = "/run/vtep/vtep.sock";
/** Before an ADD, CHECK or STATUS gives up. */
const PATIENCE_MS = 10_000;

/** What is to be printed; undefined: nothing. Throws CniError. */
export async function answer(call: Call): Promise<object | undefined> {
  const { CNI_COMMAND: command } = call.environment;
  if (command === "VERSION") return version(call);
  const configuration = configurationOf(call);
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

class Plugin {
  readonly #call: Call;
  readonly #configuration: Configuration;
  readonly #client: Client;

  constructor(call: Call, configuration: Configuration) {
    this.#call = call;
    this.#configuration = configuration;
    this.#client = new Client(configuration.socket, PATIENCE_MS);
  }

  /** The addresses of the IPAM plugin are given back when anything fails after it. */
  async add(): Promise<Result> {
    const { cniVersion, name, network, mtu, mac } = this.#configuration;
    const ifname = this.#wanted("CNI_IFNAME");
    const target = this.#wanted("CNI_NETNS");
    const owner = this.#owner();
    this.#checkEnvironment(target, ifname);
    const link = linkName(owner, ifname);
    if ((await linksByName()).has(link)) {
      throw new CniError(
        CODE.other,
        `${ifname} was added to this container before: delete it first`,
      );
    }
    const wanted = { network, target, owner, by: `cni:${name}`, ifname, mac, mtu };
    const bare = { ...wanted, addresses: [], gateways: [], routes: [], published: [] };
    // It asks by the interface, so that has to be there.
    const asks = this.#configuration.ipam === "dhcp";
    try {
      let attached = asks ? await attach(this.#client, bare) : undefined;
      const found = await this.#ipam("ADD");
      if (found !== undefined) checkResult(found, CODE.content, "the IPAM plugin's result");
      const { ips = [], routes = [], dns } = found ?? {};
      if (found !== undefined && ips.length === 0) {
        throw new CniError(CODE.content, "the IPAM plugin gave no address");
      }
      const given = {
        addresses: ips.map(({ address }) => address),
        routes: routes.map(({ dst, gw }) => ({ to: dst, via: gw ?? gatewayFor(dst, ips) })),
      };
      if (attached === undefined) attached = await attach(this.#client, { ...bare, ...given });
      else await address(this.#client, attached, given);
      const size = cniVersion === "1.1.0" ? { mtu: attached.mtu } : {};
      return {
        cniVersion,
        interfaces: [
          { name: link, ...size },
          { name: ifname, mac: attached.mac, ...size, sandbox: target },
        ],
        ips: ips.map(({ address, gateway }) => ({
          ...(cniVersion === "0.4.0" && { version: address.includes(":") ? "6" : "4" }),
          address,
          ...(gateway !== undefined && { gateway }),
          interface: 1,
        })),
        ...(routes.length > 0 && { routes }),
        ...(dns !== undefined && { dns }),
      };
    } catch (error) {
      // The first error is the one to tell.
      await this.#ipam("DEL").catch(() => undefined);
      if (asks) await detach(this.#client, link).catch(() => undefined);
      throw error;
    }
  }

  /** Succeeds whatever is there still, and without the agent. The link goes first: it needs nobody. */
  async del(): Promise<undefined> {
    const ifname = this.#wanted("CNI_IFNAME");
    await detach(this.#client, linkName(this.#owner(), ifname));
    await this.#ipam("DEL");
  }

  async check(): Promise<undefined> {
    const { prevResult } = this.#configuration;
    const ifname = this.#wanted("CNI_IFNAME");
    const target = this.#wanted("CNI_NETNS");
    if (prevResult === undefined) {
      throw new CniError(CODE.configuration, "prevResult is missing: CHECK compares with it");
    }
    checkResult(prevResult, CODE.configuration, "prevResult");
    await this.#ipam("CHECK");
    const { bridge } = await this.#client.network(this.#configuration.network);
    const link = (await linksByName()).get(linkName(this.#owner(), ifname));
    if (link === undefined || attachmentOf(link) === undefined) {
      throw new CniError(CODE.container, `${ifname} of this container is attached no more`);
    }
    if (link.master !== bridge) {
      const where = link.master === undefined ? "no bridge" : `the bridge ${link.master}`;
      throw new CniError(CODE.other, `${link.ifname} is a port of ${where}, and not of ${bridge}`);
    }
    const inside = await linkInside(target, ifname);
    if (inside === undefined) {
      throw new CniError(CODE.other, `${target} has no interface ${ifname} any more`);
    }
    const at = prevResult.interfaces?.findIndex(({ name, sandbox }) => name === ifname && sandbox);
    const before = prevResult.interfaces?.[at ?? -1];
    if (!inside.flags?.includes("UP")) throw new CniError(CODE.other, `${ifname} is down`);
    const { address: mac, mtu, addr_info = [] } = inside;
    if (before?.mac !== undefined && before.mac.toLowerCase() !== mac) {
      throw new CniError(CODE.other, `${ifname} has the MAC ${mac}, and had ${before.mac}`);
    }
    if (before?.mtu !== undefined && before.mtu !== mtu) {
      throw new CniError(CODE.other, `${ifname} has the MTU ${mtu}, and had ${before.mtu}`);
    }
    const addresses = addr_info.map(({ local, prefixlen }) => `${local}/${prefixlen}`);
    for (const { address, interface: of } of prevResult.ips ?? []) {
      if (of !== undefined && of !== at) continue;
      if (addresses.includes(spelt(address))) continue;
      throw new CniError(CODE.other, `${ifname} has not the address ${address} any more`);
    }
    const { routes = [], ips = [] } = prevResult;
    const present = routes.length === 0 ? [] : await routesInside(target, ifname);
    for (const { dst, gw = gatewayFor(dst, ips) } of routes) {
      const to = spelt(dst);
      if (present.some((route) => route.to === to && route.via === gw)) continue;
      throw new CniError(CODE.other, `the route to ${dst} over ${ifname} is gone`);
    }
  }

  /** Removes what this network attached to containers that there are no more. */
  async gc(): Promise<undefined> {
    const { valid, name } = this.#configuration;
    if (valid === undefined) {
      throw new CniError(
        CODE.configuration,
        "cni.dev/valid-attachments is missing: GC keeps those",
      );
    }
    if (!valid.every(isAttachment)) {
      const what = "must list objects with containerID and ifname";
      throw new CniError(CODE.configuration, `cni.dev/valid-attachments ${what}`);
    }
    const kept = new Set(valid.map((each) => linkName(ownerOf(each.containerID), each.ifname)));
    for (const link of new Set((await linksByName()).values())) {
      const attachment = attachmentOf(link);
      if (attachment?.by !== `cni:${name}` || kept.has(attachment.link)) continue;
      await detach(this.#client, attachment.link);
    }
    await this.#ipam("GC");
  }

  async status(): Promise<undefined> {
    try {
      await this.#client.network(this.#configuration.network);
    } catch (error) {
      throw new CniError(CODE.unavailable, (error as Error).message);
    }
    await this.#ipam("STATUS");
  }

  #owner(): string {
    return ownerOf(this.#wanted("CNI_CONTAINERID"));
  }

  #wanted(name: string): string {
    const value = this.#call.environment[name];
    if (value) return value;
    throw new CniError(CODE.environment, `${name} is not set: the runtime has to say it`);
  }

  #checkEnvironment(target: string, ifname: string): void {
    let id: string;
    try {
      checkInterface(ifname);
      id = namespaceId(target);
    } catch (error) {
      throw new CniError(CODE.environment, (error as Error).message);
    }
    if (this.#call.environment.CNI_NETNS_OVERRIDE) return;
    if (id !== namespaceId("/proc/self/ns/net")) return;
    throw new CniError(CODE.environment, `${target} is the host's own network namespace`);
  }

  /** Runs the IPAM plugin, if there is one, as the specification has it: with all that we were given. */
  async #ipam(command: string): Promise<Result | undefined> {
    const { ipam } = this.#configuration;
    if (ipam === undefined) return undefined;
    const environment = { ...this.#call.environment, CNI_COMMAND: command };
    const child = spawn(this.#pathOf(ipam), {
      env: environment,
      stdio: ["pipe", "pipe", "inherit"],
    });
    child.stdin.on("error", () => undefined); // it may end without having read everything
    child.stdin.end(this.#call.input);
    const [output, [code]] = await Promise.all([text(child.stdout), once(child, "close")]);
    const said = output.trim() === "" ? {} : parsed(output);
    if (code === 0 && said !== undefined) return said as Result;
    const { code: theirs, msg } = (said ?? {}) as { code?: number; msg?: string };
    throw new CniError(
      theirs ?? CODE.other,
      `${ipam} ${command}: ${msg ?? (code === 0 ? "its answer is no JSON object" : `it ended with ${code}`)}`,
    );
  }

  #pathOf(plugin: string): string {
    const directories = (this.#call.environment.CNI_PATH ?? "").split(delimiter);
    for (const directory of directories.filter(Boolean)) {
      const path = join(directory, plugin);
      try {
        accessSync(path, constants.X_OK);
        return path;
      } catch {
        // perhaps in the next
      }
    }
    throw new CniError(
      CODE.configuration,
      `ipam.type is ${JSON.stringify(plugin)}, which is in none of ${directories.join(", ") || "no directory"} (CNI_PATH)`,
    );
  }
}

function ownerOf(containerId: string): string {
  return `cni ${containerId}`;
}

function gatewayFor(destination: string, ips: readonly Ip[]): string | undefined {
  const isV6 = destination.includes(":");
  return ips.find(({ address }) => address.includes(":") === isV6)?.gateway;
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
  return runtimeConfig?.mac ?? conventional?.cni?.mac ?? old?.slice("MAC=".length);
}

function parsed(input: string): Readonly<Record<string, unknown>> | undefined {
  try {
    const value: unknown = JSON.parse(input);
    return isObject(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isAttachment(value: unknown): boolean {
  return (
    isObject(value) && [value.containerID, value.ifname].every((each) => typeof each === "string")
  );
}

/** As far as it is read here. */
function checkResult(result: unknown, code: number, what: string): void {
  const has = (value: unknown, key: string, ...optional: string[]) =>
    isObject(value) &&
    typeof value[key] === "string" &&
    optional.every((each) => ["string", "undefined"].includes(typeof value[each]));
  const { interfaces = [], ips = [], routes = [] } = isObject(result) ? result : {};
  const lists: [unknown, (each: unknown) => boolean][] = [
    [interfaces, (each) => has(each, "name", "mac", "sandbox")],
    [ips, (each) => has(each, "address", "gateway")],
    [routes, (each) => has(each, "dst", "gw")],
  ];
  const isRight = lists.every(([list, is]) => Array.isArray(list) && list.every(is));
  if (isObject(result) && isRight) return;
  throw new CniError(
    code,
    `${what} has not the shape of a result: interfaces, ips and routes are lists`,
  );
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
    SYSTEM: CODE.io,
  };
  return new CniError(codes[error.code] ?? CODE.other, error.message);
}
