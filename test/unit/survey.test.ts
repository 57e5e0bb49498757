import { describe, expect, test } from "vitest";
import { type Config, parse } from "../../src/config.ts";
import type { Link, Surroundings } from "../../src/host.ts";
import { LARGEST_MTU } from "../../src/schema.ts";
import { judge } from "../../src/survey.ts";

const OURS = "192.0.2.1";
const OURS6 = "2001:db8::1";
const PEER = "192.0.2.2";
const PEER6 = "2001:db8::2";

function config(given: object, network: object = {}): Config {
  const found = parse({ ...given, networks: [{ vni: 7, peers: [PEER], ...network }] });
  if ("faults" in found) throw new Error(found.faults[0]!.message);
  return found.config;
}

/** A host with one uplink, and these links beside it. */
function host(
  routes: Record<string, { device?: string; source?: string; mtu?: number }> = { [PEER]: {} },
  others: readonly Link[] = [],
): Surroundings {
  const addr_info = [OURS, OURS6].map((local) => ({ local }));
  const links = [{ ifname: "eth0", mtu: 1500, addr_info }, ...others];
  const ways = Object.entries(routes).map(([to, { device = "eth0", source, mtu = 1500 }]) => {
    const chosen = source ?? (to.includes(":") ? OURS6 : OURS);
    return [to, { device, source: chosen, mtu }] as const;
  });
  return {
    links: new Map(links.map((link) => [link.ifname, link])),
    addresses: links.flatMap(({ addr_info = [] }) => addr_info.map(({ local }) => local!)),
    routes: new Map(ways),
  };
}

const look = (given: Config, around = host(), bound?: Parameters<typeof judge>[3]) =>
  judge(given, around, new Map(), bound);

describe("the MTU", () => {
  test("is no more than what sockets take, however much the path carries", () => {
    const wide = host({ [PEER]: { mtu: 65_536 } });
    expect(look(config({}), wide).mtus).toEqual([LARGEST_MTU]);
  });

  test.each([117, 118])("is refused where a path carries too little for a TAP: %i", (mtu) => {
    const found = () => look(config({}), host({ [PEER]: { mtu } })).mtus;
    if (mtu === 118) expect(found()).toEqual([68]);
    else expect(found).toThrow(expect.objectContaining({ code: "MTU" }));
  });

  test("is by itself no less than that of the TAP which is there, whose stations have it", () => {
    const mtus = (carried: number, network: object, own: [string, number][]) =>
      judge(config({}, network), host({ [PEER]: { mtu: carried } }), new Map(own)).mtus;
    expect(mtus(1400, {}, [["vtep7", 1450]])).toEqual([1450]);
    expect(mtus(9000, {}, [["vtep7", 1450]])).toEqual([8950]);
    expect(mtus(1400, {}, [["vtep8", 1450]])).toEqual([1350]);
    expect(mtus(1400, { mtu: 1300 }, [["vtep7", 1450]])).toEqual([1300]);
  });

  test("has to be given where no route leads to a peer", () => {
    const nowhere = host({});
    expect(look(config({ local: OURS }, { mtu: 1400 }), nowhere).mtus).toEqual([1400]);
    for (const [peers, why] of [
      [[], "it has no peer"],
      [[PEER], `no route leads to peer ${PEER}`],
      [[PEER, "192.0.2.3"], `no route leads to any peer, as ${PEER}`],
    ] as const) {
      const given = config({ local: OURS }, { peers });
      expect(() => look(given, nowhere)).toThrow(`${why}, so its MTU is unknown`);
    }
  });
});

describe("where this VTEP is", () => {
  test("may be any address of 127/8", () => {
    const given = config({ local: "127.0.0.7" });
    expect(look(given, host({ [PEER]: { source: "127.0.0.7" } })).local4).toBe("127.0.0.7");
  });

  test("is asked whether another host has it, but not while sockets are there", () => {
    const addr_info = [{ local: "2001:db8::7", tentative: true }];
    const given = config({}, { peers: [PEER6] });
    const around = host({ [PEER6]: { source: "2001:db8::7" } }, [
      { ifname: "eth1", mtu: 1500, addr_info },
    ]);
    expect(() => look(given, around)).toThrow('cannot be used yet (tentative in "ip address")');
    const bound = { local4: undefined, local6: "2001:db8::7" };
    expect(look(given, around, bound).local6).toBe("2001:db8::7");
  });

  test("is usable where one interface has it for good", () => {
    const given = config({}, { peers: [PEER6] });
    const around = host({ [PEER6]: {} }, [
      { ifname: "eth1", mtu: 1500, addr_info: [{ local: OURS6, tentative: true }] },
    ]);
    expect(look(given, around).local6).toBe(OURS6);
  });

  test("is where its sockets are, and what helps is told when the host has that no more", () => {
    const bound = { local4: "192.0.2.9", local6: undefined };
    expect(() => look(config({}), host(), bound)).toThrow(
      "the agent's sockets are at 192.0.2.9, which is an address of no interface here any more",
    );
  });

  test.each([
    ["of another source", {}, { [PEER]: {}, "192.0.2.3": { source: "198.51.100.1" } }, 1],
    [
      "to this host itself",
      {},
      { [PEER]: {}, "192.0.2.3": { device: "lo", source: "192.0.2.3" } },
      0,
    ],
    ["beside one of IPv6", {}, { [PEER]: {}, "192.0.2.3": {}, [PEER6]: {} }, 0],
    ["where it was said", { local: OURS }, { [PEER]: { source: "198.51.100.1" } }, 0],
  ])("is told where it is not that of a route: %s", (_, given, routes, count) => {
    const { astray } = look(config(given, { peers: Object.keys(routes) }), host(routes));
    expect(astray).toHaveLength(count);
  });
});

describe("a peer is refused", () => {
  test.each([OURS, OURS6])("that is this VTEP itself: %s", (peer) => {
    const peers = [PEER, PEER6, peer];
    const routes = Object.fromEntries(peers.map((each) => [each, {}]));
    expect(() => look(config({}, { peers }), host(routes))).toThrow("own local address");
  });

  test("to which the overlay leads", () => {
    const bridge = { ifname: "br0", mtu: 1450, linkinfo: { info_kind: "bridge" } };
    const around = host({ [PEER]: { device: "br0" } }, [bridge]);
    expect(() => look(config({}, { bridge: "br0" }), around)).toThrow(
      `the way to peer ${PEER} leads through br0, the overlay itself`,
    );
    expect(look(config({}), around).mtus).toEqual([1450]);
  });
});

test.each([
  ["tun", ', or remove it with "ip link del vtep7"'],
  ["veth", ""],
])("a name that a %s has is refused with what helps", (info_kind, remedy) => {
  const taken = { ifname: "vtep7", mtu: 1500, linkinfo: { info_kind } };
  expect(() => look(config({}), host({ [PEER]: {} }, [taken]))).toThrow(
    expect.objectContaining({
      code: "NAME_IN_USE",
      message: expect.stringMatching(new RegExp(`choose another name with --tap${remedy}$`)),
    }),
  );
});
