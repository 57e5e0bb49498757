/**
 * A container's interface: a veth pair or a TAP that is made and set up in a namespace of its own, and taken away.
 *
 * Every function throws VtepError PERMISSION or LINK with one sentence when ip is missing or refuses.
 */
import { command } from "./command.ts";
import { VtepError } from "./errors.ts";
import type { Link } from "./host.ts";
import { batch, type Change, done, ip, parse, refused } from "./iproute.ts";
import { addressWords, unqueue } from "./links.ts";

/** A veth pair: one end is the port of a bridge here, the other the interface of a container. */
export interface Veth {
  /** Of the end that is here. */
  readonly name: string;
  readonly bridge: string;
  readonly alias: string;
  /** Path of the container's network namespace. */
  readonly namespace: string;
  /** What people call that. */
  readonly target: string;
  readonly ifname: string;
  readonly mac: string;
  readonly mtu: number;
  /** With prefix lengths. */
  readonly addresses: readonly string[];
  readonly routes: readonly RouteInside[];
}

/** Where packets go that leave a container by an interface. */
export interface RouteInside {
  /** Prefix. */
  readonly to: string;
  /** Undefined: straight out. */
  readonly via: string | undefined;
  /** Words of `ip route add`: what else it is to be. */
  readonly more?: readonly string[];
}

/**
 * Makes a veth pair and sets up both of its ends, or leaves nothing and throws.
 *
 * Last of all the container's end is given the MAC that it has: the kernel takes that for a change, and
 * announces the addresses (arp_notify, ndisc_notify). When the interface comes up, the bridge does not
 * forward from its port yet, and for a moment after it joined, until the kernel has heeded its carrier
 * (net/core/link_watch.c), neither does it, nor does the container's end send.
 *
 * The end that is here comes up as the bridge's port and not before: until then what the container sends would be
 * for this host, which would take it for its router (RFC 4861), and keep that route.
 */
export async function plug(veth: Veth): Promise<void> {
  const { name, alias, namespace, target, ifname, mac, mtu } = veth;
  const inside = { inside: { namespace, ifname } };
  const made = await batch([
    {
      does: `making ${ifname} in ${target}`,
      words: [
        ...["link", "add", "dev", name, "mtu", `${mtu}`, "type", "veth"],
        ...["peer", "name", ifname, "address", mac, "mtu", `${mtu}`, "netns", namespace],
      ],
    },
    {
      does: `noting what ${name} is`,
      words: ["link", "set", "dev", name, "alias", alias],
    },
  ]);
  if (made?.at === 0) throw ifTaken(made.error, veth);
  const error =
    made?.error ?? (await batch(settingsOf(veth), inside))?.error ?? (await joinAndAnnounce(veth));
  if (error === undefined) return;
  await unplug(name);
  throw error;
}

/** Why an interface could not be had by its name. */
function ifTaken(error: VtepError, { ifname, target }: Pick<Veth, "ifname" | "target">): VtepError {
  return error.message.endsWith("File exists") ? nameTaken({ ifname, target }, error) : error;
}

export function nameTaken(
  { ifname, target }: Pick<Veth, "ifname" | "target">,
  cause?: VtepError,
): VtepError {
  const message = `${target} has an interface ${ifname} already: choose another name (--ifname)`;
  return new VtepError("CONFLICT", message, cause);
}

/** Two steps in two namespaces, for the time of one. Where the port stays disabled, as of a bridge that is down, after 20 looks. */
async function joinAndAnnounce(veth: Veth): Promise<VtepError | undefined> {
  const { name, bridge, namespace, ifname, mac } = veth;
  const steps = `
ip link set dev "$0" master "$1" up || exit 3
looks=1
until case "$(ip -d link show dev "$0")" in *"state disabled"*) [ "$looks" = 20 ] ;; esac; do
  looks=$((looks + 1))
  sleep 0.05
done
exec nsenter --net="$2" ip link set dev "$3" address "$4"`;
  const words = ["sh", "-c", steps, name, bridge, namespace, ifname, mac];
  const { code, refusal } = await command(words, "", "iproute2");
  if (code === 0) return undefined;
  return refused(code === 3 ? `joining ${name} to ${bridge}` : `announcing ${ifname}`, refusal);
}

/** Gives addresses and routes to an interface of a container that has none yet. */
export async function addressInside(
  veth: Pick<Veth, "namespace" | "ifname" | "mac" | "addresses" | "routes">,
): Promise<void> {
  await done(batch([...settingsOf(veth), announcementOf(veth)], { inside: veth }));
}

/** Addresses and routes of a container's interface. */
function settingsOf({
  ifname,
  addresses,
  routes,
}: Pick<Veth, "ifname" | "addresses" | "routes">): Change[] {
  return [
    ...addresses.map((address) => ({
      does: `giving ${ifname} the address ${address}`,
      words: addressWords("add", address, ifname),
    })),
    { does: `bringing up ${ifname}`, words: ["link", "set", "dev", ifname, "up"] },
    ...routes.map(({ to, via, more = [] }) => ({
      does: /^(0\.0\.0\.0|::)\/0$/.test(to)
        ? `giving ${ifname} the default route (--gateway none, where there is one)`
        : `routing ${to} over ${ifname}`,
      words: [
        ...["route", "add", to, ...(via === undefined ? [] : ["via", via])],
        ...["dev", ifname, ...more],
      ],
    })),
  ];
}

function announcementOf({ ifname, mac }: Pick<Veth, "ifname" | "mac">): Change {
  return {
    does: `announcing ${ifname}`,
    words: ["link", "set", "dev", ifname, "address", mac],
  };
}

/** Notes what a link is. */
export async function noteAlias(name: string, alias: string): Promise<void> {
  const words = ["link", "set", "dev", name, "alias", alias];
  await done(batch([{ does: `noting what ${name} is`, words }]));
}

/** Moves a TAP into a container and sets it up there. Where it has moved and that fails, it is removed. */
export async function plugDirect(tap: Omit<Veth, "bridge" | "alias">): Promise<void> {
  const { name, namespace, target, ifname, mac, mtu } = tap;
  const moved = ["link", "set", "dev", name, "netns", namespace];
  await done(batch([{ does: `moving ${name} to ${target}`, words: moved }]));
  const changes = [
    {
      does: `naming ${name} ${ifname} in ${target}`,
      words: ["link", "set", "dev", name, "name", ifname],
    },
    {
      does: `setting up ${ifname}`,
      words: ["link", "set", "dev", ifname, "address", mac, "mtu", `${mtu}`],
    },
    ...settingsOf(tap),
    announcementOf(tap),
  ];
  const failed = await batch(changes, { inside: { namespace, ifname } });
  if (failed === undefined) return unqueue([ifname], namespace).catch(() => undefined); // it takes memory
  await unplugDirect(namespace, failed.at === 0 ? name : ifname);
  throw failed.at === 0 ? ifTaken(failed.error, tap) : failed.error;
}

/** Removes a link from a container. */
export async function unplugDirect(namespace: string, ifname: string): Promise<void> {
  const words = ["link", "del", "dev", ifname];
  await done(
    batch([{ does: `removing ${ifname} of the container`, words }], {
      inside: { namespace, ifname },
    }),
  );
}

/** A link of a container; undefined where it has none of that name. */
export async function linkInside(namespace: string, ifname: string): Promise<Link | undefined> {
  const words = ["-j", "-d", "addr", "show", "dev", ifname];
  const { code, stdout } = await ip(words, [], { inside: { namespace, ifname } });
  return code === 0 ? parse<Link>(stdout)[0] : undefined;
}

/** By an interface, of all tables. */
export async function routesInside(namespace: string, ifname: string): Promise<RouteInside[]> {
  const tables = await Promise.all(
    ["-4", "-6"].map((family) =>
      ip([family, "-j", "route", "show", "table", "all", "dev", ifname], [], {
        inside: { namespace, ifname },
      }),
    ),
  );
  return tables.flatMap(({ stdout }, at) => {
    const [everywhere, whole] = at === 0 ? ["0.0.0.0/0", 32] : ["::/0", 128];
    return parse<{ dst: string; gateway?: string }>(stdout).map(({ dst, gateway }) => {
      const to = dst === "default" ? everywhere : dst;
      return { to: to.includes("/") ? to : `${to}/${whole}`, via: gateway };
    });
  });
}

/** Makes a veth pair, one end of which is the port of a bridge; the other is left as it is. Or nothing, and throws. */
export async function pair(
  veth: Pick<Veth, "name" | "bridge" | "alias" | "mac" | "mtu"> & { readonly peer: string },
): Promise<void> {
  const { name, bridge, alias, peer, mac, mtu } = veth;
  const failed = await batch([
    {
      does: `making ${name}`,
      words: [
        ...["link", "add", "dev", name, "mtu", `${mtu}`, "type", "veth"],
        ...["peer", "name", peer, "address", mac, "mtu", `${mtu}`],
      ],
    },
    {
      does: `joining ${name} to ${bridge}`,
      words: ["link", "set", "dev", name, "alias", alias, "master", bridge, "up"],
    },
  ]);
  if (failed === undefined) return;
  if (failed.at > 0) await unplug(name);
  throw failed.error;
}

/** Removes a link, whose other end goes with it; false when there is none. */
export async function unplug(name: string): Promise<boolean> {
  const failed = await batch([{ does: `removing ${name}`, words: ["link", "del", "dev", name] }]);
  if (failed === undefined) return true;
  if (failed.error.message.includes("Cannot find device")) return false;
  throw failed.error;
}
