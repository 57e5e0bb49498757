import { vxlan } from "./frame.ts";
import type { Host } from "./host.ts";
import { create, Namespace } from "./namespace.ts";
import { Ear, send } from "./traffic.ts";

const into = 4790;
const outOf = 4791;

/**
 * Puts frames on a bridge byte for byte as a test wrote them, and hears every frame that the bridge
 * sends its way.
 *
 * Node has no raw sockets, but the kernel turns datagrams into frames and back: the probe is a
 * namespace in which a VXLAN device of the kernel's, whose both ends are UDP sockets on the loopback,
 * is tied to a port of the bridge. It is as transparent as a hub: it learns nothing.
 *
 * ```
 *  send() → UDP 4790 → ┐
 *                      ├ kernel VXLAN ── hub ── eth0 ══ bridge of the host
 *  heard  ← UDP 4791 ← ┘
 * ```
 */
export class Probe extends Namespace {
  #ear: Ear | undefined;

  static async attach(host: Host, bridge = "br0"): Promise<Probe> {
    const probe = new Probe(`${host.name}probe`);
    host.guests.push(probe);
    await create(probe);
    await host.bridge(bridge);
    await host.ip(
      `link add probe mtu 1450 type veth peer name eth0 mtu 1450 netns ${probe.name}`,
      `link set probe master ${bridge} up`,
    );
    await probe.sysctl({ "ipv6/conf/*/disable_ipv6": 1 }); // it says nothing of its own
    await probe.ip(
      "link add hub type bridge mcast_snooping 0",
      `link add frames mtu 1500 type vxlan id 1 dstport ${into} local 127.0.0.1 nolearning`,
      "link set eth0 master hub up",
      "link set frames master hub up",
      "link set hub up",
    );
    await probe.run(
      ...["bridge", "fdb", "append", "00:00:00:00:00:00", "dev", "frames"],
      // To an address of its own the kernel would not encapsulate; a broadcast is not one.
      ...["dst", "127.255.255.255", "port", `${outOf}`],
    );
    for (const port of ["eth0", "frames"]) {
      await probe.run("bridge", "link", "set", "dev", port, "learning", "off");
    }
    probe.#ear = await Ear.open(probe, outOf);
    return probe;
  }

  async send(...frames: Uint8Array[]): Promise<void> {
    const datagrams = frames.map((frame) => vxlan(1, frame));
    await send(this, { address: "127.0.0.1", port: into }, datagrams);
  }

  /** How often a frame was heard. */
  count(frame: Uint8Array): number {
    const payload = vxlan(1, frame);
    return this.#ear?.heard.filter((heard) => heard.payload.equals(payload)).length ?? 0;
  }
}
