/**
 * Docker's remote network driver, as moby's libnetwork asks for it (docs/remote.md, drivers/remote/api): what
 * each call does, without how calls arrive.
 *
 * A network of Docker's is one of a running agent's, named by `-o network=NAME` or `-o vni=N`. Docker gives
 * out the addresses, moves the interface that a Join names into the container and sets it up; we make the
 * veth pair before, and remove it after. Nobody announces an address then, so its MAC follows from it.
 * Outward a container goes by the gateway of the agent's network, and ports of the host are published to it
 * by the agent; where the network has none, both as with others of Docker's, by docker_gwbridge.
 *
 * Which network is which is all that has to outlive us, because Docker tells it once: it is in a file.
 */
import { mkdirSync, readFileSync } from "node:fs";
import { dirname } from "node:path";
import * as v from "valibot";
import { bare, isIn } from "./addresses.ts";
import type { Client } from "./api/client.ts";
import { attachPair, detach, publish, unpublish } from "./attach.ts";
import { linkName, type Published, parsePublished } from "./attachments.ts";
import { networkGone, VtepError } from "./errors.ts";
import { replaceFile } from "./files.ts";
import type { NetworkStatus } from "./operations.ts";
import { bridgeOf } from "./wanted.ts";

const GENERIC = "com.docker.network.generic";
const INTERNAL = "com.docker.network.internal";
const PORTS = "com.docker.network.portmap";
const OPTIONS = ["network", "vni"] as const;

const id = v.pipe(v.string(), v.regex(/^[\w-]{1,128}$/));
const ofNetwork = v.object({ NetworkID: id });
const ofEndpoint = v.object({ NetworkID: id, EndpointID: id });
const pools = v.nullish(
  v.array(v.object({ Pool: v.optional(v.string(), ""), Gateway: v.optional(v.string(), "") })),
);
const creation = v.object({
  NetworkID: id,
  Options: v.optional(v.nullable(v.record(v.string(), v.unknown()))),
  IPv4Data: pools,
  IPv6Data: pools,
});
/** Protocols by their numbers of IP. */
const PROTOCOLS: Readonly<Record<number, Published["protocol"]>> = { 6: "tcp", 17: "udp" };
const connectivity = v.object({
  NetworkID: id,
  EndpointID: id,
  Options: v.nullish(
    v.object({
      [PORTS]: v.nullish(
        v.array(
          v.object({
            Proto: v.number(),
            Port: v.number(),
            HostIP: v.optional(v.string(), ""),
            HostPort: v.number(),
          }),
        ),
      ),
    }),
  ),
});
const endpoint = v.object({
  NetworkID: id,
  EndpointID: id,
  Interface: v.nullish(
    v.object({
      Address: v.optional(v.string(), ""),
      AddressIPv6: v.optional(v.string(), ""),
      MacAddress: v.optional(v.string(), ""),
    }),
  ),
});
const joining = v.object({ NetworkID: id, EndpointID: id, SandboxKey: v.optional(v.string(), "") });
const state = v.record(v.string(), v.string());

type Interface = NonNullable<v.InferOutput<typeof endpoint>["Interface"]>;

const NO_INTERFACE: Interface = { Address: "", AddressIPv6: "", MacAddress: "" };

export class DockerDriver {
  readonly #client: Client;
  readonly #file: string;
  /** Names of the agent's networks by the IDs of Docker's. */
  #networks: ReadonlyMap<string, string>;
  /** What Docker wants of endpoints that have not joined yet. */
  readonly #endpoints = new Map<string, Interface>();

  /** `file` is where it is kept which network is which. Throws VtepError SYSTEM where it cannot be read. */
  constructor(client: Client, file: string) {
    this.#client = client;
    this.#file = file;
    this.#networks = new Map(Object.entries(readState(file)));
  }

  /** The answer to a call, "NetworkDriver.Join" or the like; undefined: there is no such call. */
  async answer(call: string, body: unknown): Promise<object | undefined> {
    switch (call) {
      case "Plugin.Activate":
        return { Implements: ["NetworkDriver"] };
      case "NetworkDriver.GetCapabilities":
        // Global scope would need Docker's own cluster; networks reach other hosts all the same.
        return { Scope: "local", ConnectivityScope: "global" };
      case "NetworkDriver.CreateNetwork":
        return this.#createNetwork(parsed(creation, body));
      case "NetworkDriver.DeleteNetwork":
        return this.#deleteNetwork(parsed(ofNetwork, body));
      case "NetworkDriver.CreateEndpoint":
        return this.#createEndpoint(parsed(endpoint, body));
      case "NetworkDriver.Join":
        return this.#join(parsed(joining, body));
      case "NetworkDriver.Leave":
      case "NetworkDriver.DeleteEndpoint":
        return this.#leave(parsed(ofEndpoint, body), call);
      case "NetworkDriver.EndpointOperInfo":
        return { Value: {} };
      case "NetworkDriver.ProgramExternalConnectivity":
        return this.#publish(parsed(connectivity, body));
      case "NetworkDriver.RevokeExternalConnectivity":
        return this.#unpublish(parsed(ofEndpoint, body));
      case "NetworkDriver.DiscoverNew":
      case "NetworkDriver.DiscoverDelete":
        return {};
    }
    return undefined;
  }

  async #createNetwork(wanted: v.InferOutput<typeof creation>): Promise<object> {
    const { NetworkID, Options, IPv4Data, IPv6Data } = wanted;
    const meant = await this.#meant((Options?.[GENERIC] ?? {}) as Record<string, unknown>);
    const { name, gateway } = meant;
    if (Options?.[INTERNAL] && gateway.length > 0) {
      throw new VtepError(
        "USAGE",
        `network ${name} has a gateway, so --internal cannot be promised: take a network without one`,
      );
    }
    for (const { Pool, Gateway } of [...(IPv4Data ?? []), ...(IPv6Data ?? [])]) {
      const family = gateway.filter((each) => each.includes(":") === Pool.includes(":"));
      const own = family.find((each) => isIn(each, Pool));
      if (own === undefined && family.length > 0) {
        throw new VtepError(
          "USAGE",
          `network ${name} has the gateway ${family.join(", ")}, which is not in ${Pool}: create it with that subnet`,
        );
      }
      if (own === undefined || bare(own) === bare(Gateway)) continue;
      // Docker gives that address to a container otherwise.
      throw new VtepError(
        "USAGE",
        `network ${name} has the gateway ${bare(own)}: create it with --gateway ${bare(own)}`,
      );
    }
    this.#keep(new Map([...this.#networks, [NetworkID, name]]));
    return {};
  }

  async #deleteNetwork({ NetworkID }: v.InferOutput<typeof ofNetwork>): Promise<object> {
    this.#keep(new Map([...this.#networks].filter(([each]) => each !== NetworkID)));
    return {};
  }

  async #createEndpoint(wanted: v.InferOutput<typeof endpoint>): Promise<object> {
    this.#nameOf(wanted.NetworkID);
    const { Address, AddressIPv6, MacAddress } = wanted.Interface ?? NO_INTERFACE;
    const mac = MacAddress || macOf(Address);
    this.#endpoints.set(wanted.EndpointID, { Address, AddressIPv6, MacAddress: mac });
    return { Interface: MacAddress ? {} : { MacAddress: mac } }; // nothing that Docker has said itself
  }

  async #join({
    NetworkID,
    EndpointID,
    SandboxKey,
  }: v.InferOutput<typeof joining>): Promise<object> {
    const wanted = this.#endpoints.get(EndpointID);
    if (wanted === undefined) {
      throw new VtepError(
        "NOT_FOUND",
        `endpoint ${EndpointID} was not created: start the container again`,
      );
    }
    const { Address, AddressIPv6, MacAddress } = wanted;
    const name = this.#nameOf(NetworkID);
    const { peer } = await attachPair(this.#client, {
      network: name,
      target: SandboxKey,
      owner: ownerOf(EndpointID),
      by: "docker",
      ifname: "eth",
      addresses: [Address, AddressIPv6].filter((each) => each !== ""),
      mac: MacAddress || undefined,
    });
    const { gateway } = await this.#client.network(name);
    const near = (address: string) =>
      gateway.filter((each) => address && isIn(each, address)).map(bare)[0];
    const [Gateway, GatewayIPv6] = [near(Address), near(AddressIPv6)];
    return {
      InterfaceName: { SrcName: peer, DstPrefix: "eth" },
      ...(Gateway && { Gateway, DisableGatewayService: true }),
      ...(GatewayIPv6 && (Gateway || !Address ? { GatewayIPv6 } : routedBeside(GatewayIPv6))),
    };
  }

  /** Docker says which ports only now, and of those of docker_gwbridge as well. */
  async #publish(wanted: v.InferOutput<typeof connectivity>): Promise<object> {
    const { gateway } = await this.#client.network(this.#nameOf(wanted.NetworkID));
    const ports = wanted.Options?.[PORTS] ?? [];
    if (ports.length === 0 || gateway.length === 0) return {};
    const published = ports.map(({ Proto, Port, HostIP, HostPort }): Published => {
      const protocol = PROTOCOLS[Proto];
      if (protocol === undefined || HostPort === 0) {
        throw new VtepError(
          "USAGE",
          `port ${Port} needs a port of the host, and TCP or UDP (-p 8080:${Port})`,
        );
      }
      const host = HostIP.includes(":") ? `[${HostIP}]` : HostIP;
      return parsePublished(`${host && `${host}:`}${HostPort}:${Port}/${protocol}`);
    });
    await publish(this.#client, linkName(ownerOf(wanted.EndpointID), "eth"), published);
    return {};
  }

  /** The container leaves, or another of its networks, by which it goes outward from now on, has its ports. */
  async #unpublish({ EndpointID }: v.InferOutput<typeof ofEndpoint>): Promise<object> {
    await unpublish(this.#client, linkName(ownerOf(EndpointID), "eth"));
    return {};
  }

  /** Both take away whatever is there: a daemon that was killed may have left out one. */
  async #leave({ EndpointID }: v.InferOutput<typeof ofEndpoint>, call: string): Promise<object> {
    if (call.endsWith("DeleteEndpoint")) this.#endpoints.delete(EndpointID);
    await detach(this.#client, linkName(ownerOf(EndpointID), "eth"));
    return {};
  }

  async #meant(options: Record<string, unknown>): Promise<NetworkStatus> {
    const strange = Object.keys(options).find((key) => !OPTIONS.includes(key as "vni"));
    if (strange !== undefined) {
      throw new VtepError(
        "USAGE",
        `-o ${strange} is no option of this driver: give network or vni`,
      );
    }
    const { network, vni } = options;
    if ((network === undefined) === (vni === undefined)) {
      throw new VtepError(
        "USAGE",
        "give one of -o network=NAME and -o vni=N: which network of the agent it is",
      );
    }
    const { networks: all, gone } = await this.#client.status();
    const isMeant = (each: { readonly name: string; readonly vni: number }) =>
      network === undefined ? `${each.vni}` === vni : each.name === network;
    const found = all.find(isMeant);
    if (found !== undefined) {
      bridgeOf(found); // or it is refused
      return found;
    }
    const lost = gone.find(isMeant);
    if (lost !== undefined) throw networkGone(lost.name, lost.reason);
    const which = network === undefined ? `of VNI ${vni}` : `named ${network}`;
    const known = all.map((each) => `${each.name} (VNI ${each.vni})`).join(", ") || "none";
    throw new VtepError("NOT_FOUND", `the agent forwards no network ${which}: it has ${known}`);
  }

  #nameOf(networkId: string): string {
    const name = this.#networks.get(networkId);
    if (name !== undefined) return name;
    throw new VtepError(
      "NOT_FOUND",
      `network ${networkId} was not created by this driver, or ${this.#file} was lost: create it anew`,
    );
  }

  #keep(networks: ReadonlyMap<string, string>): void {
    try {
      mkdirSync(dirname(this.#file), { recursive: true });
      replaceFile(this.#file, JSON.stringify(Object.fromEntries(networks)));
      this.#networks = networks;
    } catch (error) {
      throw new VtepError(
        "SYSTEM",
        `${this.#file} cannot be written: ${(error as Error).message}`,
        error,
      );
    }
  }
}

/** Of IPv4 it goes by docker_gwbridge, whose gateways count alone then: not ours of IPv6, but a route does. */
function routedBeside(gateway: string): object {
  const NEXT_HOP = 0; // of libnetwork's types.NEXTHOP
  return { StaticRoutes: [{ Destination: "::/0", RouteType: NEXT_HOP, NextHop: gateway }] };
}

function ownerOf(endpointId: string): string {
  return `docker ${endpointId}`;
}

/** As Docker makes one for its own bridges: whoever has the address later has the MAC that others know. */
function macOf(address: string): string {
  if (address === "") return "";
  const bytes = bare(address)
    .split(".")
    .map((byte) => Number(byte).toString(16).padStart(2, "0"));
  return ["02", "42", ...bytes].join(":");
}

function readState(file: string): Record<string, string> {
  try {
    return v.parse(state, JSON.parse(readFileSync(file, "utf8")));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return {};
    const message = `${file} cannot be read (${(error as Error).message}): remove it, and create Docker's networks anew`;
    throw new VtepError("SYSTEM", message, error);
  }
}

function parsed<const Schema extends v.GenericSchema>(schema: Schema, body: unknown) {
  const { success, output, issues } = v.safeParse(schema, body);
  if (success) return output as v.InferOutput<Schema>;
  const [{ path, message }] = issues as [v.BaseIssue<unknown>];
  const where = path?.map(({ key }) => key).join(".") ?? "the body";
  throw new VtepError("USAGE", `${where}: ${message}`);
}
