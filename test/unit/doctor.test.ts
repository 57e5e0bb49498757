import { describe, expect, expectTypeOf, test } from "vitest";
import { load } from "../../src/config-file.ts";
import { Counter, type DropReason } from "../../src/counters.ts";
import { ALL_OFFLOADS } from "../../src/device.ts";
import { diagnose } from "../../src/doctor/diagnose.ts";
import type { AgentFacts, Facts, PathFacts } from "../../src/doctor/facts.ts";
import { type Check, type Finding, worstOf } from "../../src/doctor/finding.ts";
import { report } from "../../src/doctor/report.ts";
import { readRuleset } from "../../src/doctor/ruleset.ts";
import type { Link } from "../../src/host.ts";
import type { AgentStatus } from "../../src/operations.ts";

const ZERO = Object.fromEntries(Object.keys(Counter).map((name) => [name, 0]));

const silent = { unseen: "nobody listens there", remedy: "start it" };

interface Seen {
  drops?: Partial<Record<DropReason, number>>;
  endpointDrops?: Partial<Record<DropReason, number>>;
  counters?: Partial<Record<keyof typeof Counter, number>>;
}

function agent({ drops = {}, endpointDrops = {}, counters = {} }: Seen = {}): AgentFacts {
  return {
    pid: 7,
    local: ["192.0.2.1"],
    drops: endpointDrops,
    paths: [],
    offloads: ALL_OFFLOADS,
    refusedOffloads: [],
    gone: [],
    networks: [
      {
        vni: 42,
        tap: "vtep42",
        mtu: 1450,
        counters: { ...ZERO, ...counters } as AgentFacts["networks"][0]["counters"],
        drops,
        bridge: undefined,
        gateway: [],
        mac: "02:00:5e:00:53:01",
      },
    ],
  };
}

const link = (ifname: string, more: Partial<Link> = {}): [string, Link] => [
  ifname,
  { ifname, mtu: 1500, flags: ["UP"], ...more },
];
const whole = (mtu: number): PathFacts => ({
  answers: true,
  mtu,
  narrowedBy: undefined,
  silently: false,
});
const features = (lacking: readonly string[] = [], fixed = false) =>
  Object.fromEntries(
    ["tx-checksumming", "tx-udp-segmentation", "generic-receive-offload"].map((name) => [
      name,
      { active: !lacking.includes(name), fixed },
    ]),
  );

/** Of a host on which all is well, but for what is given. */
function facts(given: Partial<Facts> = {}): Facts {
  return {
    config: load(undefined, { vni: "42", peers: ["192.0.2.2"], bridge: "br42" }).config,
    hasFile: false,
    agent: agent(),
    down: [],
    capabilities: ["CAP_NET_ADMIN", "CAP_NET_RAW"],
    isRoot: true,
    tun: { state: "openable" },
    sockets: [],
    sourceSockets: [],
    metricsSockets: [],
    links: new Map([link("eth0"), link("br42", { linkinfo: { info_kind: "bridge" } })]),
    addresses: ["192.0.2.1"],
    routes: new Map([["192.0.2.2", { device: "eth0", source: "192.0.2.1", mtu: 1500 }]]),
    filters: [],
    conntrack: { count: 0, max: 1000 },
    receiveBufferMax: 212_992,
    forwarding: [],
    unprivilegedPort: 1024,
    paths: new Map([["192.0.2.2", whole(1500)]]),
    ports: new Map([["192.0.2.2", "silent"]]),
    features: new Map([["eth0", features()]]),
    bridgeFilters: [],
    reservedPorts: [],
    refusal: undefined,
    socketRefusal: undefined,
    ...given,
  };
}

function of(check: Check, given: Partial<Facts>): Finding[] {
  return diagnose(facts(given)).filter((finding) => finding.check === check);
}

test("a host on which all is well has nothing but ok", () => {
  expect(diagnose(facts()).filter(({ severity }) => severity !== "ok")).toEqual([]);
});

test("a network of the file that the agent does not have is told of, and one of flags is not", () => {
  const networks: [] = [];
  const none = { ...agent(), networks };
  expect(of("network", { hasFile: true, agent: none })).toMatchObject([
    {
      severity: "warning",
      subject: "42",
      finding: "network vtep42 is configured, and the agent does not have it",
      commands: ["vtep reload"],
    },
  ]);
  const gone = [{ name: "vtep42", vni: 42, tap: "vtep42", reason: "adding vtep42 failed" }];
  expect(of("network", { hasFile: true, agent: { ...none, gone } })).toMatchObject([
    {
      finding: "network vtep42 is configured, and the agent does not have it: adding vtep42 failed",
    },
  ]);
  const sound = [
    { hasFile: true, agent: agent() },
    { agent: none },
    { hasFile: true, agent: silent },
  ];
  expect(sound.flatMap((given) => of("network", given))).toEqual([]);
});

test("what a running agent says of itself is understood", () => {
  expectTypeOf<AgentStatus>().toExtend<AgentFacts>();
});

test("where metrics cannot be had, no address is offered where they cannot be had either", () => {
  const given = { vni: "42", peers: ["192.0.2.2"], "metrics-listen": "[2001:db8::9]:9469" };
  const { config } = load(undefined, given);
  const addresses = ["192.0.2.1", "fe80::1", "2001:db8::1"];
  const [{ severity, remedy }] = of("metrics-listen", { config, addresses }) as [Finding];
  const choice = "choose one of 192.0.2.1 and 2001:db8::1 for --metrics-listen";
  expect([severity, remedy]).toEqual(["error", choice]);
});

describe("conntrack", () => {
  const rules = (statement: string) =>
    readRuleset(
      JSON.stringify({
        nftables: [
          { table: { family: "inet", name: "raw" } },
          ...["prerouting", "output"].flatMap((hook) => [
            {
              chain: { family: "inet", table: "raw", name: hook, hook, type: "filter", prio: -300 },
            },
            {
              rule: {
                family: "inet",
                table: "raw",
                chain: hook,
                handle: 2,
                expr: [{ [statement]: null }],
              },
            },
          ]),
        ],
      }),
      "",
    );
  test.each([
    [0, "ok", undefined],
    [1, "note", "do not track VXLAN"],
    [699, "note", "do not track VXLAN"],
    [700, "warning", "do not track VXLAN"],
    [900, "error", "do not track VXLAN"],
  ] as const)("with %d of 1000 entries is %s", (count, severity, remedy) => {
    const [finding] = of("conntrack", { conntrack: { count, max: 1000 } });
    expect(finding?.severity).toBe(severity);
    expect(finding?.remedy).toBe(remedy);
  });

  test("that does not track VXLAN is ok until it is crowded by others", () => {
    const filters = rules("notrack");
    const at = (count: number) => of("conntrack", { filters, conntrack: { count, max: 1000 } });
    expect(at(600)).toMatchObject([{ severity: "ok" }]);
    expect(at(950)).toMatchObject([
      { severity: "warning", commands: ["sysctl -w net.netfilter.nf_conntrack_max=2000"] },
    ]);
    const counted = { filters: rules("counter"), conntrack: { count: 600, max: 1000 } };
    expect(of("conntrack", counted)).toMatchObject([{ severity: "note" }]);
  });

  test("that the kernel lacks is ok", () => {
    expect(of("conntrack", { conntrack: undefined })).toMatchObject([{ severity: "ok" }]);
  });
});

test("packet filters are judged by where this VTEP is, not by where a route begins", () => {
  const [first, second] = ["192.0.2.2", "198.51.100.2"];
  const { config } = load(undefined, { vni: "42", peers: [first, second] });
  const routes = new Map([
    [first, { device: "eth0", source: "192.0.2.1", mtu: 1500 }],
    [second, { device: "eth1", source: "198.51.100.1", mtu: 1500 }],
  ]);
  const drops = (own: string) => {
    const left = { payload: { protocol: "ip", field: "saddr" } };
    const expr = [{ match: { op: "==", left, right: own } }, { drop: null }];
    const chain = { family: "inet", table: "f", name: "out", hook: "output", type: "filter" };
    const nftables = [
      { table: { family: "inet", name: "f" } },
      { chain },
      { rule: { family: "inet", table: "f", chain: "out", handle: 3, expr } },
    ];
    const filters = readRuleset(JSON.stringify({ nftables }), "");
    const found = of("firewall", { config, agent: silent, routes, filters });
    return found.map(({ severity, finding }) => [severity, finding.split(" is ")[0]]);
  };
  expect(drops("192.0.2.1")).toEqual([["error", `VXLAN to ${first} and ${second}`]]);
  expect(drops("198.51.100.1")).toMatchObject([["ok", expect.anything()]]);
});

describe("a ruleset whose nft tells less than it should", () => {
  const drop = (table: object, chain: object) =>
    readRuleset(
      JSON.stringify({
        nftables: [
          { table: { family: "inet", name: "t", ...table } },
          {
            chain: {
              family: "inet",
              table: "t",
              name: "c",
              hook: "input",
              type: "filter",
              prio: 0,
              ...chain,
            },
          },
          { rule: { family: "inet", table: "t", chain: "c", handle: 1, expr: [{ drop: null }] } },
        ],
      }),
      "",
    );
  test.each([
    ["dormant", { flags: "dormant" }, "ok"],
    ["dormant or owned: nft 1.0.6 says the name in place of it", { flags: "t" }, "note"],
    ["owned", { flags: ["owner"] }, "error"],
    ["of no flags", {}, "error"],
  ])("is judged with care: a table %s", (_, table, severity) => {
    const findings = of("firewall", { filters: drop(table, {}) });
    expect(worstOf(findings)).toBe(severity);
  });

  test.each([
    ["some device", {}, "note"],
    ["eth0", { dev: "eth0" }, "error"],
    ["eth0 and another", { dev: ["eth1", "eth0"] }, "error"],
    ["eth1", { dev: "eth1" }, "ok"],
  ])("is judged with care: a netdev chain of %s", (_, chain, severity) => {
    const filters = drop({}, { hook: "ingress", ...chain }).map((table) => ({
      ...table,
      family: "netdev",
    }));
    expect(worstOf(of("firewall", { filters }))).toBe(severity);
  });
});

describe("traffic that the agent has counted", () => {
  test.each<[string, Check, Seen, string, RegExp]>([
    [
      "a foreign VNI",
      "traffic",
      { endpointDrops: { VXLAN_VNI_NOT_FOUND: 5 } },
      "warning",
      /^5 .*VNI/,
    ],
    ["no valid header", "traffic", { endpointDrops: { VXLAN_INVALID_HDR: 5 } }, "note", /^5 /],
    [
      "reserved bits",
      "traffic",
      { counters: { reservedBits: 5 } },
      "note",
      /network 42: 5 .*reserved/,
    ],
    ["strangers", "traffic", { drops: { VXLAN_REMOTE_NOT_ALLOWED: 5 } }, "warning", /no peers/],
    ["our own MAC address", "duplicate-mac", { drops: { LOCAL_MAC: 5 } }, "warning", /our own TAP/],
  ])("of %s is told of", (_, check, seen, severity, words) => {
    const findings = of(check, { agent: agent(seen) });
    expect(findings).toMatchObject([{ severity, finding: expect.stringMatching(words) }]);
    expect(findings[0]?.remedy).toBeDefined();
  });

  test("is not known without an agent, which is noted", () => {
    expect(of("traffic", { agent: silent })).toMatchObject([
      { severity: "note", finding: expect.stringContaining("nobody listens there") },
    ]);
  });

  test("says why it would not start, with the remedy", () => {
    const refusal = "network 7: lo exists and is no bridge: name another";
    expect(of("start", { refusal })).toEqual([
      {
        check: "start",
        severity: "error",
        finding: "vtep run would not start: network 7: lo exists and is no bridge",
        remedy: "name another",
      },
    ]);
    expect(of("start", {})).toEqual([]);
  });

  test("shows what it does without, and which paths are narrow", () => {
    const limping = {
      ...agent(),
      offloads: { ...ALL_OFFLOADS, gso: false, tso: false, uso: false },
      refusedOffloads: ["gso" as const],
      paths: [{ address: "192.0.2.2", mtu: 1400 }],
    };
    const ours = of("offloads", { agent: limping }).slice(-2); // behind the interface's
    expect(ours.map(({ finding }) => finding)).toEqual([
      "the agent does without gso, which its kernel or its underlay refused",
      "the agent does without tso, uso, as configured",
    ]);
    expect(of("path-mtu", { agent: limping }).at(-1)?.finding).toContain("no more than 1400");
  });
});

describe("a TAP", () => {
  const bridged = { ...agent(), networks: [{ ...agent().networks[0]!, bridge: "br42" }] };
  const found = (tap: Partial<Link>, bridge: Partial<Link> = {}, running = bridged) => {
    const links = new Map([
      link("eth0"),
      link("br42", { linkinfo: { info_kind: "bridge" }, ...bridge }),
      link("vtep42", { mtu: 1450, master: "br42", linkinfo: { info_kind: "tun" }, ...tap }),
    ]);
    return of("tap", { agent: running, links });
  };
  const ownMac = `vtep42 address ${agent().networks[0]!.mac}`;
  test.each<[string, Partial<Link>, Partial<Link>, string, RegExp, string]>([
    ["that is down", { flags: [] }, {}, "error", /vtep42 is down/, "vtep42 up"],
    ["whose bridge is down", {}, { flags: [] }, "error", /br42 is down/, "br42 up"],
    ["in no bridge", { master: "eth0" }, {}, "error", /no port of br42/, "vtep42 master br42"],
    ["of another MTU", { mtu: 1000 }, {}, "warning", /1000, and not the 1450/, "vtep42 mtu 1450"],
    ["of another MAC", { address: "02:00:00:00:00:09" }, {}, "warning", /00:09, and not/, ownMac],
  ])("%s is told of", (_, tap, bridge, severity, words, setting) => {
    const commands = [`ip link set dev ${setting}`];
    const finding = expect.stringMatching(words);
    expect(found(tap, bridge)).toMatchObject([{ severity, finding, subject: "42", commands }]);
  });

  test.each([
    ["disabled", "error", ["bridge link set dev vtep42 state 3"]],
    ["blocking", "error", undefined],
    ["listening", "warning", undefined],
    ["learning", "warning", undefined],
  ])("whose state in its bridge is %s is told of", (state, severity, commands) => {
    const port = { info_kind: "tun", info_slave_kind: "bridge" };
    const linkinfo = { ...port, info_slave_data: { state } };
    const words = `br42 forwards nothing from and to vtep42, whose state there is ${state}`;
    const finding = `network 42: ${words}`;
    const [told, ...others] = found({ linkinfo });
    expect([told?.severity, told?.finding, told?.commands]).toEqual([severity, finding, commands]);
    expect(others).toEqual([]);
    const down = found({ linkinfo, flags: [] }); // which is why
    expect(down).toMatchObject([{ finding: "network 42: vtep42 is down, so nothing crosses" }]);
    const well = { ...port, info_slave_data: { state: "forwarding" } };
    expect(found({ linkinfo: well })).toMatchObject([{ severity: "ok" }]);
    const bonded = { ...port, info_slave_kind: "bond", info_slave_data: { state: "ACTIVE" } };
    expect(found({ linkinfo: bonded })).toMatchObject([{ severity: "ok" }]); // no bridge has it
  });

  test("whose bridge was removed is told of, with all that makes it as it was", () => {
    const links = new Map([link("vtep42", { mtu: 1450, linkinfo: { info_kind: "tun" } })]);
    expect(of("tap", { agent: bridged, links })).toMatchObject([
      {
        severity: "error",
        finding: "network 42: br42 was removed, so nothing is in the network by it",
        commands: ["ip link add name br42 up type bridge", "ip link set dev vtep42 master br42"],
      },
    ]);
  });

  test("that was renamed is told of by both names, and is no other link of its MAC", () => {
    const address = agent().networks[0]!.mac;
    const links = new Map([
      link("br42", { address, linkinfo: { info_kind: "bridge" } }),
      link("uplink0", { address, master: "br42", linkinfo: { info_kind: "tun" } }),
    ]);
    expect(of("tap", { agent: bridged, links })).toMatchObject([
      {
        severity: "warning",
        finding:
          "network 42: its TAP vtep42 is called uplink0 now, as which the agent cannot change it",
        commands: [
          "ip link set dev uplink0 down",
          "ip link set dev uplink0 name vtep42",
          "ip link set dev vtep42 up",
        ],
      },
    ]);
    expect(of("duplicate-mac", { agent: bridged, links })).toMatchObject([{ severity: "ok" }]);
    const other = { ...bridged.networks[0]!, vni: 43, tap: "uplink0" }; // of another gateway, then
    const two = { ...bridged, networks: [...bridged.networks, other] };
    const subjects = of("tap", { agent: two, links }).map(({ subject }) => subject);
    expect(subjects).not.toContain("42");
  });

  test("that is as the agent made it is well, as is one that somebody put in a bridge", () => {
    expect(found({})).toMatchObject([{ severity: "ok" }]);
    expect(found({ master: "br0" }, {}, agent() as typeof bridged)).toMatchObject([
      { severity: "ok" },
    ]);
  });

  test.each([
    [1450, "false", ["ok"]],
    [1500, "false", ["ok", "warning"]],
    [1500, "true", ["ok", "note"]],
  ])(
    "is told of where stations of its bridge have %i, and clamp-mss is %s",
    (mtu, clamp, severities) => {
      const links = new Map([
        link("eth0"), // no port of it
        link("br42", { linkinfo: { info_kind: "bridge" } }),
        link("vtep42", { mtu: 1450, master: "br42", linkinfo: { info_kind: "tun" } }),
        link("vm1", { mtu, master: "br42" }),
      ]);
      const given = {
        vni: "42",
        peers: ["192.0.2.2"],
        bridge: "br42",
        "clamp-mss": clamp === "true",
      };
      const { config } = load(undefined, given);
      const found = of("tap", { agent: bridged, links, config });
      expect(found.map(({ severity }) => severity)).toEqual(severities);
      if (mtu > 1450) expect(found[1]!.finding).toContain("vm1 (1500) a larger one: br42 drops");
    },
  );

  test("in its container is not looked for", () => {
    expect(of("tap", { agent: agent() })).toEqual([]);
  });
});

test("that all gateways have the same MAC address is as it is to be", () => {
  const address = "02:76:74:65:70:01";
  const links = new Map([
    link("br42", { address }),
    link("vtep42", { address, master: "br42" }),
    link("br43", { address }),
    link("vtep43", { address, master: "br43" }),
  ]);
  const gateway = ["198.51.100.1/24"];
  const { config } = load(undefined, { vni: "42", peers: ["192.0.2.2"], bridge: "br42", gateway });
  expect(of("duplicate-mac", { config, agent: silent, links })).toMatchObject([{ severity: "ok" }]);
});

describe("receive buffers", () => {
  const alone = { agent: silent, links: new Map([link("eth0")]) };
  const socket = { address: "192.0.2.1", port: 4789, pid: 7, command: "vtep run", isAgent: true };
  test.each<[string, Partial<Facts>, string]>([
    ["with CAP_NET_ADMIN", alone, "ok"],
    ["without it", { ...alone, capabilities: [] }, "warning"],
    [
      "without it, under a high limit",
      { ...alone, capabilities: [], receiveBufferMax: 2 ** 23 },
      "ok",
    ],
    [
      "without it, under a limit that is not shown",
      { ...alone, capabilities: [], receiveBufferMax: undefined },
      "note",
    ],
    ["of an agent, large", { sockets: [{ ...socket, receiveBuffer: 2 ** 24 }] }, "ok"],
    ["of an agent, small", { sockets: [{ ...socket, receiveBuffer: 425_984 }] }, "warning"],
    [
      "of an agent, overflown",
      { sockets: [{ ...socket, receiveBuffer: 2 ** 24, drops: 3 }] },
      "warning",
    ],
  ])("%s", (_, given, severity) => {
    expect(worstOf(of("receive-buffer", given))).toBe(severity);
  });
});

describe("a path", () => {
  const path = (found: PathFacts) => of("path-mtu", { paths: new Map([["192.0.2.2", found]]) });
  test("that was not measured to its end is a note with what is known", () => {
    expect(path({ answers: true, mtu: undefined, atLeast: 1300 })).toMatchObject([
      { severity: "note", finding: expect.stringContaining("1300 bytes at least") },
    ]);
  });

  test.each([
    [1500, "ok"],
    [1499, "warning"],
  ] as const)("of %d bytes for a TAP of 1450 is %s", (mtu, severity) => {
    expect(path(whole(mtu))[0]?.severity).toBe(severity);
  });

  test("that loses what is longer is no error where that is fragmented, which is named where it can be", () => {
    const mute: PathFacts = { answers: true, mtu: 1400, narrowedBy: undefined, silently: true };
    const found = (peer: string, keys: Record<string, string> = {}) => {
      const { config } = load(undefined, { vni: "42", peers: [peer], ...keys });
      const routes = new Map([[peer, { device: "eth0", source: "192.0.2.1", mtu: 1500 }]]);
      const [finding] = of("path-mtu", { config, routes, paths: new Map([[peer, mute]]) });
      return [finding?.severity, finding?.remedy?.includes("--df unset")];
    };
    expect(found("192.0.2.2")).toEqual(["error", true]);
    expect(found("192.0.2.2", { df: "unset" })).toEqual(["warning", false]);
    expect(found("192.0.2.2", { underlay: "dgram" })).toEqual(["error", false]);
    expect(found("2001:db8::2")).toEqual(["error", false]);
    expect(found("2001:db8::2", { df: "unset" })).toEqual(["error", false]);
  });
});

test("a route that begins elsewhere than the VTEP is a warning, unless it was said where that is", () => {
  const [first, other] = ["192.0.2.2", "198.51.100.2"];
  const routes = new Map([
    [first, { device: "eth0", source: "192.0.2.1", mtu: 1500 }],
    [other, { device: "eth1", source: "198.51.100.1", mtu: 1500 }],
  ]);
  const found = (keys: Record<string, string> = {}) => {
    const { config } = load(undefined, { vni: "42", peers: [first, other], ...keys });
    return of("route", { config, routes });
  };
  expect(found()).toMatchObject([{ subject: other, severity: "warning" }]);
  expect(found({ local: "192.0.2.1" })).toEqual([]);
});

test("features that a device does not offer are not to be switched on", () => {
  const lacking = ["tx-checksumming", "generic-receive-offload"];
  const [first] = of("offloads", { features: new Map([["eth0", features(lacking, true)]]) });
  expect(first).toMatchObject({ severity: "warning", remedy: "the device does not offer it" });
  expect(first?.commands).toBeUndefined();
});

test("a port below 1024 needs one more capability", () => {
  const config = load(undefined, { vni: "42", peers: ["192.0.2.2"], port: "479" }).config;
  const needs = { config, agent: silent, links: new Map([link("eth0")]) };
  expect(of("capabilities", needs)).toMatchObject([
    { severity: "error", finding: expect.stringContaining("CAP_NET_BIND_SERVICE") },
  ]);
  expect(of("capabilities", { ...needs, unprivilegedPort: 0 })).toMatchObject([{ severity: "ok" }]);
});

test("bridge netfilter names the chain whose policy drops what is forwarded", () => {
  const filters = readRuleset(
    JSON.stringify({
      nftables: [
        { table: { family: "ip", name: "filter" } },
        {
          chain: {
            family: "ip",
            table: "filter",
            name: "FORWARD",
            hook: "forward",
            type: "filter",
            prio: 0,
            policy: "drop",
          },
        },
      ],
    }),
    "",
  );
  const [finding] = of("bridge-netfilter", { filters, bridgeFilters: ["iptables"] });
  expect(finding).toMatchObject({ severity: "warning" });
  expect(finding?.finding).toContain("the policy of chain FORWARD (table ip filter)");
});

describe("the report", () => {
  const sample: Finding[] = [
    ...["192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6"].map(
      (subject): Finding => ({
        check: "reachability",
        subject,
        severity: "ok",
        finding: `${subject} answers`,
      }),
    ),
    {
      check: "port",
      severity: "error",
      finding: "UDP port 4789 is held by the kernel's VXLAN device vx7, which is a long story",
      remedy: "remove that device, or choose another --port here and at every peer",
      commands: ["ip link del vx7"],
    },
  ];

  test("groups, wraps, counts, and says what to do", () => {
    expect(report(sample, false)).toBe(`This host
  error    UDP port 4789 is held by the kernel's VXLAN device vx7, which is a
           long story
           → remove that device, or choose another --port here and at every peer
               ip link del vx7

Ways to the peers
  ok       192.0.2.2 answers
  ok       192.0.2.3 answers
  ok       192.0.2.4 answers
           … and 2 more like these (--json has them)

1 error.
`);
  });

  test("is coloured where asked, and its text is the same", () => {
    const coloured = report(sample, true);
    expect(coloured).toContain("  \x1b[31merror\x1b[0m    UDP");
    // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is looked for
    expect(coloured.replaceAll(/\x1b\[\d+m/g, "")).toBe(report(sample, false));
  });

  test("says so when all is well, and shows every kind of finding", () => {
    expect(report([sample[0]!], false)).toContain("All is well.");
    const gateway = { gateway: ["192.0.2.1/24"], ranges: ["192.0.2.64-192.0.2.127/24"] };
    const all = diagnose(facts({ config: configured(gateway), forwarding: [4] }));
    expect(all.map(({ check }) => check)).toEqual(expect.arrayContaining(["gateway", "ranges"]));
    const shown = report(all, false);
    for (const { finding } of all) {
      expect(shown).toContain(finding.split(" ").slice(0, 3).join(" "));
    }
  });

  test("what others have put into it tells the terminal nothing", () => {
    const text = "held by pid 9 (\x1b[2J\x9b31m\r\n\x07x)";
    const finding = { ...sample[0]!, finding: text, remedy: text, commands: [text] };
    expect(report([finding], false).match(/held by .*/g)).toEqual(
      new Array(3).fill("held by pid 9 (?[2J?31m???x)"),
    );
  });
});

/** The configuration of `facts`, with more said. */
const configured = (more: Record<string, unknown>) => {
  return load(undefined, { vni: "42", peers: ["192.0.2.2"], bridge: "br42", ...more }).config;
};
const held = (address: string, port: number, more = {}) => {
  return { address, port, pid: 9, command: "other", isAgent: false, ...more };
};
/** No agent runs, as far as can be seen. */
const alone = { agent: silent, links: new Map([link("eth0")]) };

describe("a peer that is an address of this host", () => {
  const addresses = ["127.0.0.1", "192.0.2.1", "192.0.2.9"];
  const peer = (address: string, more: Partial<Facts> = {}) => {
    const config = configured({ peers: ["192.0.2.2", address] });
    const route = { device: "lo", source: address, mtu: 65_536 };
    const routes = new Map([...facts().routes, [address, route]]);
    const paths = new Map([[address, whole(65_536)]]);
    return diagnose(facts({ config, addresses, routes, paths, ...more }));
  };

  test.each(["192.0.2.9", "127.0.0.7"])(
    "is an error, and nothing else is said of %s",
    (address) => {
      expect(peer(address).filter(({ subject }) => subject === address)).toEqual([
        {
          check: "route",
          subject: address,
          severity: "error",
          finding: `peer ${address} is an address of this host itself: nothing would leave it`,
          remedy: "name the other end",
        },
      ]);
    },
  );

  test("is one to note where a second VTEP has the port", () => {
    const sockets = [held("192.0.2.9", 4789)];
    const found = peer("192.0.2.9", { sockets }).filter(({ subject }) => subject === "192.0.2.9");
    expect(found.map(({ check, severity }) => [check, severity])).toEqual([
      ["route", "note"],
      ["reachability", "ok"],
      ["path-mtu", "ok"],
    ]);
  });
});

test("a second VTEP at another address, or ours at that one, makes no peer of it", () => {
  const config = configured({ peers: ["192.0.2.9"] });
  const of = (held: readonly unknown[], local: string) => {
    const routes = new Map([["192.0.2.9", { device: "lo", source: local, mtu: 65_536 }]]);
    const more = { ...alone, config, addresses: ["192.0.2.9"], routes, sockets: held as never };
    return diagnose(facts(more)).find(({ check }) => check === "route")?.severity;
  };
  expect(of([held("192.0.2.9", 4789)], "192.0.2.1")).toBe("note");
  expect(of([held("192.0.2.8", 4789)], "192.0.2.1")).toBe("error");
  expect(of([held("192.0.2.9", 4789)], "192.0.2.9")).toBe("error");
});

describe("the way to a peer", () => {
  test.each<[string, Partial<Link>[], string | undefined]>([
    ["by an interface", [], undefined],
    ["by the port of another bridge", [{ master: "br0" }], undefined],
    ["by what lies in a circle", [{ link: "top" }], undefined],
    ["by what lies on something that is elsewhere", [{ link: "gone" }], undefined],
    ["by a VLAN of an interface", [{ link: "eth0" }], undefined],
    ["by a port of our bridge", [{ master: "br42" }], "through top: "],
    ["by a VLAN of our TAP", [{ link: "vtep42" }], "through top, which lies on vtep42: "],
    ["by one of a VLAN of our bridge", [{ link: "mid" }, { link: "br42" }], "which lies on br42: "],
    ["by a veth whose end is a port", [{ link: "mid" }, { master: "br42" }], "which lies on mid: "],
  ])("is told where it leads through the overlay: %s", (_, [top = {}, mid = {}], finding) => {
    const links = new Map([
      link("eth0"),
      link("br42"),
      link("vtep42"),
      link("top", top),
      link("mid", mid),
    ]);
    const routes = new Map([["192.0.2.2", { device: "top", source: "192.0.2.1", mtu: 1500 }]]);
    const found = of("self-route", { links, routes });
    if (finding === undefined) return expect(found).toEqual([]);
    expect(found).toHaveLength(1);
    expect(found[0]!.finding).toContain(finding);
    const those = diagnose(facts({ links, routes })).filter(
      ({ subject }) => subject === "192.0.2.2",
    );
    expect(those).toEqual(found); // and nothing else of that peer
  });

  test("is told where it leads through a TAP that is not there, as the agent has it", () => {
    const routes = new Map([["192.0.2.2", { device: "vtep42", source: "192.0.2.1", mtu: 1500 }]]);
    expect(of("self-route", { links: new Map([link("eth0")]), routes })).toHaveLength(1);
  });

  test.each([
    [1500, "ok", "network 43 with its MTU of 1450 needs 1500"],
    [1499, "warning", "network 43 with its MTU of 1450 needs 1500"],
  ])("of %d bytes is judged by the network that needs most: %s", (mtu, severity, needs) => {
    const { config } = load(undefined, { vni: "42", peers: ["192.0.2.2"] });
    const [network] = config.networks;
    const others = [1400, 1450, 1300].map((mtu, at) => {
      return { ...network!, vni: 42 + at, name: `${42 + at}`, tap: `none${at}`, mtu };
    });
    const far = { ...network!, vni: 50, name: "50", tap: "none", peers: ["192.0.2.3"], mtu: 9000 };
    const given = { ...alone, config: { ...config, networks: [...others, far] } };
    const [found] = of("path-mtu", { ...given, paths: new Map([["192.0.2.2", whole(mtu)]]) });
    expect(found).toMatchObject({ severity, finding: expect.stringContaining(needs) });
  });
});

describe("source ports", () => {
  const range = (ports: string, more: Partial<Facts> = {}, keys = {}) => {
    const config = configured({ "source-ports": ports, ...keys });
    const found = of("source-ports", { ...alone, config, ...more });
    return found.map(({ severity, finding }) => `${severity} ${finding}`);
  };
  const free = (first: number, last: number, more = {}) => {
    const ports = Array.from({ length: last - first + 1 }, (_, at) => first + at);
    return { sourceSockets: ports.map((port) => held("192.0.2.1", port, more)) };
  };

  test.each<[string, string, Partial<Facts>, object, RegExp[]]>([
    ["that can be had", "49152-65535", {}, {}, [/^ok 16384 source ports of 49152-65535/]],
    ["just as many as are used", "50000-50015", {}, {}, [/^ok 16 /]],
    ["fewer", "50000-50014", {}, {}, [/^warning 15 .*less than the 16/]],
    ["fewer for several threads", "50000-50031", {}, { workers: "3" }, [/^warning 32 /]],
    ["as many as threads", "50000-50002", {}, { workers: "3" }, [/^warning 3 /]],
    ["fewer than threads", "50000-50002", {}, { workers: "4" }, [/^error 3 .*needs one/]],
    ["held by others", "50000-50019", free(50_000, 50_004), {}, [/^warning 15 /]],
    ["all held by others", "50000-50004", free(50_000, 50_004), {}, [/^error 0 /]],
    ["held by the agent", "50000-50019", free(50_000, 50_015, { isAgent: true }), {}, [/^ok/]],
    ["held elsewhere", "50000-50015", { sourceSockets: [held("127.0.0.1", 50_000)] }, {}, [/^ok/]],
    ["not looked at", "50000-50019", { sourceSockets: silent }, {}, [/^ok/]],
    ["with the VXLAN port", "4000-4999", {}, {}, [/^note .*include the VXLAN port 4789/]],
    ["the VXLAN port alone", "4789-4789", {}, {}, [/^note/, /^error 0 /]],
    ["reserved for us", "50000-50099", { reservedPorts: [[49_000, 51_000]] }, {}, [/^ok/]],
    ["reserved elsewhere", "50000-50099", { reservedPorts: [[50_100, 50_100]] }, {}, [/^ok/]],
  ])("%s", (_, ports, more, keys, said) => {
    expect(range(ports, more, keys)).toEqual(said.map((words) => expect.stringMatching(words)));
  });

  test("some of which are reserved are a warning, with a range beside them", () => {
    const reservedPorts = [
      [1000, 49_200],
      [50_000, 50_010],
      [60_000, 60_000],
    ] as const;
    expect(of("source-ports", { reservedPorts })).toMatchObject([
      {
        severity: "warning",
        finding: expect.stringContaining("include 49152-49200, 50000-50010 and 60000, which"),
        remedy: expect.stringContaining("such as 50011-59999"),
      },
    ]);
    const config = configured({ "source-ports": "50000-50020" });
    const [narrow] = of("source-ports", { reservedPorts, config });
    expect(narrow?.remedy).toBe("choose a range beside them with --source-ports");
    const beside = (ports: string, first: number, last: number) => {
      const given = { config: configured({ "source-ports": ports }) };
      const found = of("source-ports", { ...given, reservedPorts: [[first, last]] });
      return found.find(({ severity }) => severity === "warning")?.remedy?.split(", such as ")[1];
    };
    expect(beside("50000-50020", 50_016, 50_020)).toBe("50000-50015");
    expect(beside("4000-5000", 4000, 4100)).toBe("4101-4788"); // VXLAN's is none of them
    expect(beside("4000-5000", 4000, 4800)).toBe("4801-5000");
  });

  test("are not used by node:dgram", () => {
    const config = configured({ underlay: "dgram" });
    expect(of("source-ports", { config, reservedPorts: [[50_000, 50_001]] })).toEqual([]);
  });
});

describe("the socket", () => {
  test("of an agent that answers is its own", () => {
    const [found] = of("socket", { socketRefusal: "an agent already listens at it: stop it" });
    expect(found).toMatchObject({ severity: "ok" });
    expect(found?.finding).toBe("the agent (pid 7) answers at /run/vtep/vtep.sock");
  });

  test("of an agent that forwards other networks is noted", () => {
    const config = configured({ vni: "43" });
    expect(of("socket", { config })).toMatchObject([
      { severity: "note", remedy: expect.stringMatching(/vtep network add.*--socket/) },
    ]);
  });

  const refusal = "an agent already listens at /run/a.sock: stop it, or name another";
  test.each<[string, Partial<Facts>, string]>([
    ["is free", alone, "ok"],
    ["is refused", { ...alone, socketRefusal: refusal }, "error"],
    [
      "is refused to root while an agent runs",
      {
        agent: silent,
        socketRefusal: refusal,
        sockets: [held("192.0.2.1", 4789, { isAgent: true })],
      },
      "warning",
    ],
    [
      "is refused to another user while an agent runs",
      {
        agent: silent,
        socketRefusal: refusal,
        isRoot: false,
        links: new Map([link("vtep42", { linkinfo: { info_kind: "tun" } })]),
      },
      "note",
    ],
  ])("%s", (_, given, severity) => {
    const [found] = of("socket", given);
    expect(found?.severity).toBe(severity);
    if (severity === "ok") return;
    expect(found?.finding).toBe("an agent already listens at /run/a.sock");
    expect(found?.remedy).toBe("stop it, or name another");
  });
});

describe("where metrics are served", () => {
  const at = (place: string, given: Partial<Facts> = {}) => {
    return of("metrics-listen", {
      ...alone,
      config: configured({ "metrics-listen": place }),
      ...given,
    });
  };
  const by = (address: string, more = {}) => ({ metricsSockets: [held(address, 9469, more)] });

  test("is nothing to speak of where they are not", () => {
    expect(of("metrics-listen", {})).toEqual([]);
  });

  test.each<[string, string, Partial<Facts>, string]>([
    ["free", "127.0.0.1:9469", {}, "ok"],
    ["everywhere", "0.0.0.0:9469", {}, "ok"],
    ["at an address of ours", "192.0.2.1:9469", {}, "ok"],
    ["at an address of nobody's", "192.0.2.7:9469", {}, "error"],
    ["held", "192.0.2.1:9469", by("192.0.2.1"), "error"],
    ["held everywhere", "192.0.2.1:9469", by("*"), "error"],
    ["held for one address of all", "0.0.0.0:9469", by("127.0.0.1"), "error"],
    ["held for one address of both families", "[::]:9469", by("127.0.0.1"), "error"],
    ["held for another", "192.0.2.1:9469", by("127.0.0.1"), "note"],
    ["held for the other family", "0.0.0.0:9469", by("::1"), "note"],
    ["held by our agent", "192.0.2.1:9469", by("192.0.2.1", { isAgent: true }), "ok"],
    ["not seen", "192.0.2.1:9469", { metricsSockets: silent }, "note"],
  ])("%s: %s", (_, place, given, severity) => {
    expect(at(place, given)).toMatchObject([{ severity }]);
  });

  test("is said to be held with who does, and what to do", () => {
    expect(at("192.0.2.1:9469", by("192.0.2.1"))).toMatchObject([
      {
        finding: "TCP port 9469 (metrics) is held by pid 9 (other)",
        remedy: "end it, or choose another --metrics-listen",
      },
    ]);
  });

  test("below 1024 needs one more capability", () => {
    const config = configured({ "metrics-listen": "127.0.0.1:80" });
    expect(of("capabilities", { ...alone, config })).toMatchObject([
      { severity: "error", finding: expect.stringMatching(/BIND_SERVICE.* for TCP port 80$/) },
    ]);
  });
});

describe("a network with a gateway", () => {
  const flags = { vni: "42", peers: ["192.0.2.2"], bridge: "br42", gateway: ["10.9.0.1/24"] };
  const { config } = load(undefined, flags);
  const forwarding = [4] as const;
  const bridge = (...addresses: string[]) => {
    const addr_info = addresses.map((address) => {
      const [local, length] = address.split("/");
      return { local: local!, prefixlen: Number(length) };
    });
    return new Map([link("eth0"), link("br42", { linkinfo: { info_kind: "bridge" }, addr_info })]);
  };
  const links = bridge("10.9.0.1/24", "fd09::1/64");
  const complaints = (given: Partial<Facts>) =>
    of("gateway", { config, forwarding, links, ...given }).filter(
      ({ severity }) => severity !== "ok",
    );

  test("whose bridge has another MAC address than the gateway's is an error, once it is one", () => {
    const [network] = agent().networks;
    const there = new Map([...links, link("br42", { ...links.get("br42"), address: "02::9" })]);
    const told = (gateway: string[]) => {
      const running = { ...agent(), networks: [{ ...network!, gateway }] };
      return complaints({ agent: running, links: there });
    };
    const commands = [`ip link set dev br42 address ${network!.mac}`];
    expect(told(["10.9.0.1/24"])).toMatchObject([{ severity: "error", commands }]);
    expect(told([])).toEqual([]); // of a file that was not read yet
  });

  const forwardOf = (family: string, name: string, policy: string, ...rules: object[]) =>
    readRuleset(
      JSON.stringify({
        nftables: [
          { table: { family, name } },
          {
            chain: {
              ...{ family, table: name, name: "FORWARD", type: "filter" },
              ...{ hook: "forward", prio: 0, policy },
            },
          },
          { chain: { family, table: name, name: "DOCKER-USER" } },
          ...rules.map((expr) => ({
            rule: { family, table: name, chain: "FORWARD", expr: [expr].flat() },
          })),
        ],
      }),
      "",
    );
  const forward = forwardOf.bind(undefined, "ip");
  const from = (device: string) => ({
    match: { op: "==", left: { meta: { key: "iifname" } }, right: device },
  });

  test("has all it needs where IP is forwarded and nobody drops it", () => {
    expect(complaints({ filters: forward("filter", "accept") })).toEqual([]);
  });

  test.each([
    ["ends at it where nothing is forwarded", flags, "net.ipv4.ip_forward"],
    [
      "ends at it where IPv6 is not",
      { ...flags, gateway: ["fd09::1/64"] },
      "net.ipv6.conf.all.forwarding",
    ],
  ])("%s", (_, given, setting) => {
    const { config: its } = load(undefined, given);
    const off = { config: its, forwarding: setting.includes("ipv6") ? forwarding : [] };
    expect(complaints(off)).toMatchObject([
      { severity: "error", commands: [`sysctl -w ${setting}=1`] },
    ]);
    // Before it runs, that is what it will do.
    expect(complaints({ ...off, agent: silent })).toEqual([]);
  });

  test("is told of an address that the bridge has lost, while it runs", () => {
    const lost = { links: bridge("10.9.0.1/16") };
    const commands = ["ip addr add 10.9.0.1/24 dev br42"];
    expect(complaints(lost)).toMatchObject([{ severity: "error", subject: "42", commands }]);
    expect(complaints({ ...lost, agent: silent })).toEqual([]);
  });

  test("is told of whose policy drops what is forwarded, until a rule lets the bridge pass", () => {
    expect(complaints({ filters: forward("mine", "drop") })).toMatchObject([
      {
        severity: "warning",
        finding: expect.stringContaining(
          "is dropped by the policy of chain FORWARD (nft, table mine)",
        ),
        commands: [
          "nft insert rule ip mine FORWARD iifname br42 accept",
          "nft insert rule ip mine FORWARD oifname br42 accept",
        ],
      },
    ]);
    const lets = [from("br42"), { accept: null }];
    expect(complaints({ filters: forward("mine", "drop", lets) })).toEqual([]);
    expect(complaints({ filters: forward("mine", "drop"), config: facts().config })).toEqual([]);
  });

  test("is told of the rule that refuses what no other lets pass, as firewalld's last does", () => {
    const counter = { counter: { packets: 0, bytes: 0 } };
    const rest = [counter, { reject: { type: "icmpx", expr: "admin-prohibited" } }];
    expect(complaints({ filters: forward("mine", "accept", rest) })).toMatchObject([
      {
        severity: "warning",
        finding: expect.stringMatching(/is dropped by ".*reject.*" of chain FORWARD \(nft, table/),
      },
    ]);
    const lets = [from("br42"), { accept: null }];
    expect(complaints({ filters: forward("mine", "accept", lets, rest) })).toEqual([]);
    expect(complaints({ filters: forwardOf("inet", "firewalld", "accept", rest) })).toMatchObject([
      {
        commands: [
          "firewall-cmd --permanent --zone=trusted --add-interface=br42",
          "firewall-cmd --reload",
        ],
      },
    ]);
    const others = [from("docker0"), { drop: null }];
    expect(complaints({ filters: forward("mine", "accept", others, counter) })).toEqual([]);
  });

  test("is not told of a policy or a rule that nothing gets to", () => {
    for (const policy of ["accept", "drop"]) {
      const rules = [{ accept: null }, { drop: null }];
      expect(complaints({ filters: forward("mine", policy, ...rules) })).toEqual([]);
    }
  });

  test.each(["bridge", "ip6"])(
    "is not told of a table of family %s, which sees none of its packets",
    (family) => {
      expect(complaints({ filters: forwardOf(family, "mine", "drop") })).toEqual([]);
    },
  );
});

describe("a range of addresses", () => {
  const flags = { vni: "42", peers: ["192.0.2.2"], bridge: "br42" };
  const { config } = load(undefined, { ...flags, ranges: ["10.9.0.64-10.9.0.73/24"] });
  const used = (...addresses: string[]) =>
    of("ranges", {
      config,
      links: new Map(
        addresses.map((address, at) =>
          link(`vt${at}`, { ifalias: `vtep|vtep42|eth0|02:00:00:00:00:01|${address}||attach|x|y` }),
        ),
      ),
    });
  const first = (count: number) => Array.from({ length: count }, (_, at) => `10.9.0.${64 + at}/24`);

  test.each([
    [8, "ok"],
    [9, "warning"],
    [10, "error"],
  ])("of ten addresses of which %d are used is told of as %s", (count, severity) => {
    expect(used(...first(count))).toMatchObject([
      { severity, finding: expect.stringContaining(`${count} of 10 addresses`) },
    ]);
  });

  test("is no good to who has an address of none", () => {
    expect(used("10.9.0.64/24", "10.9.0.9/24")[0]).toMatchObject({
      severity: "warning",
      finding: expect.stringContaining("10.9.0.9 of containers here is in no range"),
    });
  });
});
