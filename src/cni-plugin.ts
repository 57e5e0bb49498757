/**
 * What the CNI plugin does for each command.
 *
 * Addresses are an IPAM plugin's: it is run as the specification says, with our environment and
 * configuration. Links are made by `attach.ts`, and belong to the container ID and the interface's name;
 * so what was made can be removed when the container's namespace, the agent or both are gone.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";
import { text } from "node:stream/consumers";
import { spelt, speltAddress, speltRoute } from "./addresses.ts";
import { Client } from "./api/client.ts";
import { address, attach, detach } from "./attach.ts";
import { attachmentOf, linkName } from "./attachments.ts";
import {
  type Call,
  CniError,
  CODE,
  type Configuration,
  type Ip,
  isObject,
  parsed,
  type Result,
  type Route,
  type RouteNumber,
} from "./cni.ts";
import { remedied } from "./errors.ts";
import { linksByName } from "./host.ts";
import { HeldNamespace, namespaceId } from "./namespace.ts";
import { linkInside, routesInside } from "./plug.ts";
import { bridgeOf, checkInterface } from "./wanted.ts";

/** Before an ADD, CHECK or STATUS gives up. */
const PATIENCE_MS = 10_000;

export class Plugin {
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
    using namespace = this.#checkedEnvironment(target, ifname);
    const link = linkName(owner, ifname);
    if ((await linksByName()).has(link)) {
      throw new CniError(
        CODE.other,
        `${ifname} was added to this container before: delete it first`,
      );
    }
    const wanted = { network, target, namespace, owner, by: `cni:${name}`, ifname, mac, mtu };
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
        routes: routes.map((route) => ({
          to: route.dst,
          via: gatewayOf(route, ips),
          more: wordsOf(route),
        })),
      };
      if (attached === undefined) attached = await attach(this.#client, { ...bare, ...given });
      else await address(this.#client, attached, { ...given, namespace });
      const size = cniVersion === "1.1.0" ? { mtu: attached.mtu } : {};
      return {
        cniVersion,
        interfaces: [
          { name: link, ...size },
          { name: ifname, mac: attached.mac, ...size, sandbox: target },
        ],
        ips: ips.map(({ address, gateway }) => ({
          ...(cniVersion.startsWith("0.") && { version: address.includes(":") ? "6" : "4" }),
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

  /** Succeeds whatever is there still, and without the agent. By the link a lease may have to be given back. */
  async del(): Promise<undefined> {
    const link = linkName(this.#owner(), this.#wanted("CNI_IFNAME"));
    await this.#ipam("DEL").finally(() => detach(this.#client, link));
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
    const network = await this.#client.network(this.#configuration.network);
    const bridge = bridgeOf(network);
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
    if (!inside.flags?.includes("LOWER_UP")) throw new CniError(CODE.other, `${ifname} is down`);
    const { address: mac, mtu, addr_info = [] } = inside;
    if (before?.mac !== undefined && before.mac.toLowerCase() !== mac) {
      throw new CniError(CODE.other, `${ifname} has the MAC ${mac}, and had ${before.mac}`);
    }
    // A smaller one may be of another plugin of the runtime's list, and is whole everywhere.
    const most = before?.mtu ?? this.#configuration.mtu ?? network.mtu;
    if (mtu > most) {
      throw new CniError(CODE.other, `${ifname} has the MTU ${mtu}, and is to have ${most}`);
    }
    const addresses = addr_info.map(({ local, prefixlen }) => `${local}/${prefixlen}`);
    for (const { address, interface: of } of prevResult.ips ?? []) {
      if (of !== undefined && of !== at) continue;
      if (addresses.includes(spelt(address))) continue;
      throw new CniError(CODE.other, `${ifname} has not the address ${address} any more`);
    }
    const { routes = [], ips = [] } = prevResult;
    const present = routes.length === 0 ? [] : await routesInside(target, ifname);
    for (const route of routes) {
      const gateway = gatewayOf(route, ips);
      const via = gateway === undefined ? undefined : speltAddress(gateway);
      if (present.some((each) => each.to === speltRoute(route.dst) && each.via === via)) continue;
      throw new CniError(CODE.other, `the route to ${route.dst} over ${ifname} is gone`);
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
      bridgeOf(await this.#client.network(this.#configuration.network));
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

  #checkedEnvironment(target: string, ifname: string): HeldNamespace {
    let namespace: HeldNamespace;
    try {
      checkInterface(ifname);
      namespace = new HeldNamespace(target);
    } catch (error) {
      throw new CniError(CODE.environment, (error as Error).message);
    }
    if (this.#call.environment.CNI_NETNS_OVERRIDE) return namespace;
    if (namespace.id !== namespaceId("/proc/self/ns/net")) return namespace;
    namespace[Symbol.dispose]();
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
    const ended = once(child, "close");
    if (child.pid === undefined) {
      // Throws why; it may not even have streams.
      await ended.catch(({ message }: Error) => {
        const sentence = `${ipam} ${command}: it could not be run: ${message}`;
        throw new CniError(CODE.other, remedied(sentence));
      });
    }
    child.stdin.on("error", () => undefined); // it may end without having read everything
    child.stdin.end(this.#call.input);
    const [output, [code]] = await Promise.all([text(child.stdout), ended]);
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

/** RT_SCOPE_LINK of linux/rtnetlink.h: straight out. */
const SCOPE_LINK = 253;

function gatewayOf({ dst, gw, scope }: Route, ips: readonly Ip[]): string | undefined {
  if (gw !== undefined || scope === SCOPE_LINK) return gw;
  const isV6 = dst.includes(":");
  return ips.find(({ address }) => address.includes(":") === isV6)?.gateway;
}

/** What iproute2 calls that of a route. */
const ROUTE_WORDS: Readonly<Record<RouteNumber, string>> = {
  mtu: "mtu",
  advmss: "advmss",
  priority: "metric",
  table: "table",
  scope: "scope",
};

function wordsOf(route: Route): string[] {
  return Object.entries(ROUTE_WORDS).flatMap(([key, word]) => {
    const number = route[key as RouteNumber];
    return number === undefined ? [] : [word, `${number}`];
  });
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
  const hasNumbers = (value: unknown, keys: readonly string[]) =>
    isObject(value) &&
    keys.every((key) => value[key] === undefined || Number.isInteger(value[key]));
  const { interfaces = [], ips = [], routes = [] } = isObject(result) ? result : {};
  const lists: [unknown, (each: unknown) => boolean][] = [
    [interfaces, (each) => has(each, "name", "mac", "sandbox")],
    [ips, (each) => has(each, "address", "gateway")],
    [routes, (each) => has(each, "dst", "gw") && hasNumbers(each, Object.keys(ROUTE_WORDS))],
  ];
  const isRight = lists.every(([list, is]) => Array.isArray(list) && list.every(is));
  if (isObject(result) && isRight) return;
  throw new CniError(
    code,
    `${what} has not the shape of a result: interfaces, ips and routes are lists`,
  );
}
