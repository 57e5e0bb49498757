/** What a container's interface may be, and may not have: without a container, a host or an agent. */
import { describe, expect, onTestFinished, test, vi } from "vitest";
import type { Client } from "../../src/api/client.ts";
import { type Attachment, aliasOf } from "../../src/attachments.ts";
import { attachedHere, checkAlone, checkPorts, freeAddresses } from "../../src/conflicts.ts";
import type { Link } from "../../src/host.ts";
import type { NetworkStatus } from "../../src/operations.ts";
import {
  bridgeOf,
  checkDirect,
  checkRoutes,
  checkSubnets,
  fitted,
  routesOf,
} from "../../src/wanted.ts";
import { shim } from "../lab/shim.ts";

const OWN = "02:00:00:00:00:01";
const blue = {
  name: "blue",
  vni: 7,
  bridge: "br7",
  gateway: ["192.0.2.1/24"],
  ranges: ["192.0.2.8-192.0.2.11/24"],
  mac: "0e:00:00:00:00:07",
  mtu: 1450,
} as unknown as NetworkStatus;
const network = (given: Partial<NetworkStatus>) => ({ ...blue, ...given });

function attachment(given: Partial<Attachment> = {}): Attachment {
  const own = { network: "blue", target: "/run/netns/a", ifname: "eth0", mac: OWN };
  return { ...own, addresses: [], published: [], by: "attach", link: "vta", ...given };
}

describe("what is wanted", () => {
  const fitting = (given: object, found = blue, local = "192.0.2.100") => {
    const client = {
      status: async () => ({ local: [local], port: 4789 }),
      network: async () => found,
    };
    const wanted = { network: "blue", target: "/run/netns/a", owner: "a", by: "attach" };
    const rest = { ifname: "eth0", addresses: [], published: [], mac: undefined, mtu: undefined };
    return fitted(client as unknown as Client, { ...wanted, ...rest, ...given }, () => undefined);
  };

  test("is noted as it was given, but for what cannot be", async () => {
    const given = { ifname: "net7", addresses: ["192.0.2.7/24", "2001:DB8::7/64"] };
    const { attachment, network, port } = await fitting(given);
    expect(attachment).toMatchObject({
      network: "blue",
      target: "/run/netns/a",
      ifname: "net7",
      addresses: ["192.0.2.7/24", "2001:db8::7/64"],
      by: "attach",
    });
    expect([network, port]).toEqual([blue, 4789]);
    expect((await fitting({ addresses: "auto" })).attachment.addresses).toEqual([]);
    for (const ifname of ["", ".", "..", "a/b", "a b", "sixteen-letters!"]) {
      await expect(fitting({ ifname })).rejects.toThrow("cannot name an interface");
    }
    await expect(fitting({ addresses: ["192.0.2.0/24"] })).rejects.toThrow("of a station with its");
  });

  test("has the network's MTU, or one that is no larger", async () => {
    for (const mtu of [undefined, 1450]) expect((await fitting({ mtu })).mtu).toBe(1450);
    expect((await fitting({ mtu: 1449 })).mtu).toBe(1449);
    await expect(fitting({ mtu: 1451 })).rejects.toThrow("MTU 1451 is more than the 1450");
  });

  test("has the MAC of a station, and unless told one of its own", async () => {
    expect((await fitting({ mac: OWN.toUpperCase() })).attachment.mac).toBe(OWN);
    const { mac } = (await fitting({})).attachment;
    expect((await fitting({})).attachment.mac).toBe(mac);
    const others = [
      fitting({ owner: "b" }),
      fitting({ ifname: "eth1" }),
      fitting({}, network({ vni: 8 })),
      fitting({}, blue, "192.0.2.101"),
    ];
    for (const { attachment } of await Promise.all(others)) expect(attachment.mac).not.toBe(mac);
    for (const wrong of ["00:00:00:00:00:00", "01:00:5e:00:00:01", "x"]) {
      await expect(fitting({ mac: wrong })).rejects.toThrow("is not the MAC address of a station");
    }
  });

  test("has ports published only where a gateway is", async () => {
    const published = [{ protocol: "tcp", port: 80, toPort: 80 }];
    expect((await fitting({ published })).attachment.published).toBe(published);
    const none = network({ gateway: [] });
    await expect(fitting({ published }, none)).rejects.toThrow("has no gateway");
    expect((await fitting({}, none)).attachment.published).toEqual([]);
  });
});

test("a network is attached to by its bridge, or without one by its TAP, but not where it has a VLAN", () => {
  const alone = network({ bridge: undefined });
  expect(bridgeOf(blue)).toBe("br7");
  expect(() => bridgeOf(alone)).toThrow("network blue has no bridge");
  expect(checkDirect(alone)).toBeUndefined();
  expect(() => checkDirect(blue)).toThrow("is a port of br7");
  expect(() => bridgeOf({ ...blue, vlan: 9 })).toThrow("network blue is VLAN 9");
  expect(() => checkDirect({ ...alone, vlan: 9 })).toThrow("network blue is VLAN 9");
});

describe("routes", () => {
  const near = { to: "198.51.100.0/24", via: undefined };
  const through = { to: "203.0.113.0/24", via: "198.51.100.1" };

  test("to what is near come before those that may lead through it", () => {
    const of = (gateways: string[]) => {
      return routesOf({ routes: [through, near], gateways }, ["192.0.2.7/24"], blue);
    };
    expect(of(["192.0.2.1", "fe80::1"])).toEqual([
      near,
      through,
      { to: "0.0.0.0/0", via: "192.0.2.1" },
      { to: "::/0", via: "fe80::1" },
    ]);
    expect(of([])).toEqual([near, through]);
  });

  test("to elsewhere lead by the network's gateway of that subnet, one of each family", () => {
    const gateway = ["192.0.2.1/24", "198.51.100.1/24", "2001:db8::1/64"];
    const of = (...addresses: string[]) => {
      const routes = routesOf({ routes: [], gateways: undefined }, addresses, network({ gateway }));
      return routes.map(({ to, via }) => `${to} ${via}`);
    };
    expect(of("198.51.100.7/24")).toEqual(["0.0.0.0/0 198.51.100.1"]);
    expect(of("192.0.2.7/24", "2001:db8::7/64")).toEqual([
      "0.0.0.0/0 192.0.2.1",
      "::/0 2001:db8::1",
    ]);
    for (const far of ["203.0.113.7/24", "192.0.2.7/32"]) expect(of(far)).toEqual([]);
  });

  test.each<[string, string, string | undefined, string | undefined]>([
    ["in a subnet of the container's", "0.0.0.0/0", "192.0.2.1", undefined],
    ["in one that is routed straight out", "0.0.0.0/0", "198.51.100.1", undefined],
    ["that is link-local, of IPv6", "::/0", "fe80::1", undefined],
    ["that is link-local, of IPv4", "0.0.0.0/0", "169.254.0.1", "is in no subnet"],
    ["of the other family", "::/0", "2001:db8::1", "(192.0.2.7/24)"],
    ["that is none", "0.0.0.0/0", "x", '"x" is not an address'],
    ["to nowhere", "x", undefined, '"x" is not a network to route'],
  ])("have a gateway %s", (_, to, via, why) => {
    const check = () => checkRoutes([{ to, via }, near], ["192.0.2.7/24"]);
    if (why === undefined) expect(check()).toBeUndefined();
    else expect(check).toThrow(why);
  });

  test("of who has no address have no gateway", () => {
    expect(() => checkRoutes([through], [])).toThrow("(it has none)");
  });
});

describe("beside a gateway", () => {
  const check = (given: Partial<Attachment>, own = blue) => checkSubnets(attachment(given), own);

  test("addresses are of its subnets, but not its own, and those of another family any", () => {
    const gateway = ["192.0.2.1/24", "198.51.100.1/24"];
    const both = network({ gateway });
    expect(check({ addresses: ["198.51.100.7/24", "2001:db8::7/64"] }, both)).toBeUndefined();
    const elsewhere = { addresses: ["192.0.2.7/24", "203.0.113.7/24"] };
    expect(() => check(elsewhere, both)).toThrow("whose gateway is 192.0.2.1/24, 198.51.100.1/24");
    const wider = { addresses: ["192.0.3.7/16"] };
    expect(() => check(wider, both)).toThrow("192.0.3.7/16 is in no subnet of network blue");
    const taken = { addresses: ["198.51.100.1/25"] };
    expect(() => check(taken, both)).toThrow("198.51.100.1 is the gateway of network blue");
    expect(check(elsewhere, network({ gateway: [] }))).toBeUndefined();
  });

  test("a MAC is not its own, which is the TAP's where there is no gateway", () => {
    expect(() => check({ mac: blue.mac })).toThrow("is the MAC of the gateway of network blue");
    expect(check({ mac: blue.mac }, network({ gateway: [] }))).toBeUndefined();
  });
});

describe("what another one has", () => {
  const tcp = { protocol: "tcp", port: 80, toPort: 8080 } as const;
  const at = (address: string) => ({ ...tcp, address });
  const other = attachment({
    target: "/run/netns/b",
    mac: "02:00:00:00:00:02",
    addresses: ["192.0.2.9/24", "2001:db8::9/64"],
    published: [at("192.0.2.100")],
    link: "vtb",
  });

  test.each<[string, Partial<Attachment>, string | undefined]>([
    ["nothing", { addresses: ["192.0.2.8/24"], published: [{ ...tcp, port: 81 }] }, undefined],
    ["its MAC", { mac: other.mac }, `${other.mac} is the MAC of eth0 of /run/netns/b`],
    ["its MAC in another network", { mac: other.mac, network: "red" }, undefined],
    ["an address", { addresses: ["2001:db8::9/56"] }, "2001:db8::9 is used already, by eth0"],
    ["an address in another network", { ...other, network: "red", published: [] }, undefined],
    ["a port", { published: [at("192.0.2.100")] }, "port 192.0.2.100:80/tcp is published already"],
    ["a port in another network", { network: "red", published: [tcp] }, "port 192.0.2.100:80/tcp"],
    ["a port of any address", { published: [at("0.0.0.0")] }, "port 192.0.2.100:80/tcp"],
    ["a port of any address of IPv6", { published: [at("::")] }, undefined],
    ["a port of another address", { published: [at("192.0.2.101")] }, undefined],
    ["a port of the other protocol", { published: [{ ...tcp, protocol: "udp" }] }, undefined],
    ["all of it, being the same", { ...other, mac: OWN }, undefined],
  ])("is not to be had: %s", (_, given, why) => {
    const check = () => checkAlone(attachment(given), [attachment({ network: "green" }), other]);
    if (why === undefined) expect(check()).toBeUndefined();
    else
      expect(check).toThrow(
        expect.objectContaining({ code: "CONFLICT", message: expect.stringContaining(why) }),
      );
  });

  describe("of ports", () => {
    const listening = `udp UNCONN 0 0 0.0.0.0:4789 0.0.0.0:*
tcp LISTEN 0 5 127.0.0.1:80 0.0.0.0:*
tcp LISTEN 0 5 [::1]:80 [::]:*
tcp LISTEN 0 5 192.0.2.100:81 0.0.0.0:*
tcp LISTEN 0 5 *:82 *:*
tcp LISTEN 0 5 [::ffff:192.0.2.100]:83 *:*
tcp LISTEN 0 5 0.0.0.0%eth0:84 0.0.0.0:*
tcp LISTEN 0 5 [::]:85 [::]:*`;
    const own = { addresses: ["192.0.2.7/24"], link: "vta" };

    test.each<[string, Partial<Attachment>, string | undefined]>([
      ["none, and without an address", { addresses: [], published: [] }, undefined],
      ["without an address", { addresses: [], published: [tcp] }, "give one with --ip"],
      ["twice", { published: [tcp, at("192.0.2.100")] }, "192.0.2.100:80/tcp is published twice"],
      ["two of one address", { published: [tcp, { ...tcp, port: 79 }] }, undefined],
      ["another container's", { published: [{ ...tcp, port: 90 }] }, "published already, for eth0"],
      ["one of the host's own calls alone", { published: [tcp] }, undefined],
      [
        "an address's",
        { published: [{ ...tcp, port: 81 }] },
        "port 81/tcp is in use on this host:",
      ],
      ["another address's", { published: [{ ...at("192.0.2.9"), port: 81 }] }, undefined],
      [
        "everybody's",
        { published: [{ ...at("192.0.2.9"), port: 82 }] },
        "192.0.2.9:82/tcp is in use",
      ],
      [
        "an address's, held by a socket of IPv6",
        { published: [{ ...at("192.0.2.100"), port: 83 }] },
        "192.0.2.100:83/tcp is in use",
      ],
      ["one interface's", { published: [{ ...tcp, port: 84 }] }, "port 84/tcp is in use"],
      [
        "everybody's of IPv6",
        { published: [{ ...at("2001:db8::9"), port: 85 }] },
        ":85/tcp is in use on this host:",
      ],
      [
        "everybody's of the other family",
        { published: [{ ...at("192.0.2.9"), port: 85 }] },
        undefined,
      ],
      ["its own before", { published: [{ ...tcp, port: 82, toPort: 1 }] }, undefined],
      ["another's before", { published: [{ ...tcp, port: 82 }] }, "port 82/tcp is in use"],
      ["the VTEP's", { published: [{ ...tcp, protocol: "udp", port: 4790 }] }, "the VTEP itself"],
      ["of TCP, of the VTEP's number", { published: [{ ...tcp, port: 4790 }] }, undefined],
    ])("is found: %s", async (name, given, why) => {
      using ss = shim(`cat <<END\n${listening}\nEND`, ["ss"]);
      vi.stubEnv("PATH", ss.path.slice("PATH=".length));
      onTestFinished(() => void vi.unstubAllEnvs());
      const theirs = { ...other, addresses: ["192.0.2.7/24"], published: [{ ...tcp, port: 90 }] };
      const client = { attachments: async () => [theirs] } as unknown as Client;
      const before = { ...own, published: [{ ...tcp, port: 82 }] };
      const was = attachment(name === "its own before" ? before : { ...before, link: "vtc" });
      const check = checkPorts(client, attachment({ ...own, ...given }), 4790, was);
      if (why === undefined) await expect(check).resolves.toBeUndefined();
      else await expect(check).rejects.toThrow(why);
    });

    test("is not known where ss fails", async () => {
      using ss = shim("echo 'Cannot open netlink socket' >&2; exit 1", ["ss"]);
      vi.stubEnv("PATH", ss.path.slice("PATH=".length));
      onTestFinished(() => void vi.unstubAllEnvs());
      const client = { attachments: async () => [] } as unknown as Client;
      const check = checkPorts(client, attachment({ ...own, published: [tcp] }), 4790, undefined);
      await expect(check).rejects.toThrow('"ss" failed: Cannot open netlink socket');
    });
  });

  /** The ends of these on this host, on the network's bridge. */
  function links(...attached: Attachment[]): Map<string, Link> {
    const ends = attached.map((each) => {
      const link = { ifname: each.link, mtu: 1450, master: "br7", ifalias: aliasOf(each, {}) };
      return [each.link, link] as const;
    });
    return new Map<string, Link>([["eth0", { ifname: "eth0", mtu: 1500 }], ...ends]);
  }

  test("is found by the links, in the network whose bridge they are on, each once", () => {
    const ends = links({ ...other, network: "former" });
    ends.set("another name", ends.get("vtb")!);
    expect(attachedHere(blue, ends)).toEqual([other]);
    const elsewhere = attachedHere(network({ bridge: "br8" }), ends);
    expect(elsewhere).toEqual([{ ...other, network: "former" }]);
    const loose = new Map([["vtb", { ...ends.get("vtb")!, master: undefined as never }]]);
    expect(attachedHere(network({ bridge: undefined }), loose)[0]!.network).toBe("former");
  });

  test("is not among the addresses that are free, of which the lowest is taken", () => {
    const used = (...ends: number[]) => {
      return links(attachment({ addresses: ends.map((end) => `192.0.2.${end}/24`) }));
    };
    expect(freeAddresses(blue, used(8, 10), 1)).toEqual(["192.0.2.9/24"]);
    const two = network({ ranges: [...blue.ranges, "2001:db8::8-2001:db8::f/64"] });
    expect(freeAddresses(two, used(), 1)).toEqual(["192.0.2.8/24", "2001:db8::8/64"]);
    expect(() => freeAddresses(blue, used(8, 9, 10, 11), 1)).toThrow("every address of 192.0.2.8-");
    expect(() => freeAddresses(network({ ranges: [] }), used(), 1)).toThrow("has no range");
    const red = links(attachment({ network: "red", addresses: ["192.0.2.8/24"] }));
    expect(freeAddresses(network({ bridge: "br8" }), red, 1)).toEqual(["192.0.2.8/24"]);
  });

  test("is any of the free ones when others choose as well, and the last for who would skip more", () => {
    const chosen = Array.from({ length: 200 }, () => freeAddresses(blue, links(), 2)[0]);
    expect(new Set(chosen).size).toBe(4);
    const last = links(
      attachment({ addresses: ["192.0.2.8/24", "192.0.2.9/24", "192.0.2.10/24"] }),
    );
    expect(freeAddresses(blue, last, 6)).toEqual(["192.0.2.11/24"]);
  });
});
