import { describe, expect, expectTypeOf, test } from "vitest";
import { load } from "../../src/config-file.ts";
import { Counter, type DropReason } from "../../src/counters.ts";
import { diagnose } from "../../src/doctor/diagnose.ts";
import type { Facts, PathFacts, Snapshot } from "../../src/doctor/facts.ts";
import { type Check, type Finding, worstOf } from "../../src/doctor/finding.ts";
import { report } from "../../src/doctor/report.ts";
import { readRuleset } from "../../src/doctor/ruleset.ts";
import type { Link } from "../../src/host.ts";
import type { AgentStatus } from "../../src/operations.ts";

const ALL_ON = Object.fromEntries(
  ["csum", "tso", "uso", "gso", "gro", "coalesce-tcp", "coalesce-udp"].map((name) => [name, true]),
) as Snapshot["offloads"];
const ZERO = Object.fromEntries(Object.keys(Counter).map((name) => [name, 0]));

const silent = { unseen: "nobody listens there", remedy: "start it" };

interface Seen {
  drops?: Partial<Record<DropReason, number>>;
  endpointDrops?: Partial<Record<DropReason, number>>;
  counters?: Partial<Record<keyof typeof Counter, number>>;
}

function agent({ drops = {}, endpointDrops = {}, counters = {} }: Seen = {}): Snapshot {
  return {
    pid: 7,
    drops: endpointDrops,
    paths: [],
    offloads: ALL_ON,
    networks: [
      {
        vni: 42,
        tap: "vtep42",
        mtu: 1450,
        counters: { ...ZERO, ...counters } as Snapshot["networks"][0]["counters"],
        drops,
        bridge: undefined,
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
    agent: agent(),
    capabilities: ["CAP_NET_ADMIN", "CAP_NET_RAW"],
    isRoot: true,
    tun: { state: "openable" },
    sockets: [],
    links: new Map([link("eth0"), link("br42", { linkinfo: { info_kind: "bridge" } })]),
    addresses: ["192.0.2.1"],
    routes: new Map([["192.0.2.2", { device: "eth0", source: "192.0.2.1", mtu: 1500 }]]),
    filters: [],
    conntrack: { count: 0, max: 1000 },
    receiveBufferMax: 212_992,
    unprivilegedPort: 1024,
    paths: new Map([["192.0.2.2", whole(1500)]]),
    ports: new Map([["192.0.2.2", "silent"]]),
    features: new Map([["eth0", features()]]),
    bridgeFilters: [],
    refusal: undefined,
    ...given,
  };
}

function of(check: Check, given: Partial<Facts>): Finding[] {
  return diagnose(facts(given)).filter((finding) => finding.check === check);
}

test("a host on which all is well has nothing but ok", () => {
  expect(diagnose(facts()).filter(({ severity }) => severity !== "ok")).toEqual([]);
});

test("what a running agent says of itself is understood", () => {
  expectTypeOf<AgentStatus>().toExtend<Snapshot>();
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
      offloads: { ...ALL_ON, gso: false },
      paths: [{ address: "192.0.2.2", mtu: 1400 }],
    };
    expect(of("offloads", { agent: limping }).at(-1)?.finding).toContain("does without gso");
    expect(of("path-mtu", { agent: limping }).at(-1)?.finding).toContain("no more than 1400");
  });
});

describe("receive buffers", () => {
  const alone = { agent: silent, links: new Map([link("eth0")]) };
  const socket = { address: "192.0.2.1", pid: 7, command: "vtep run", isAgent: true };
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
    const shown = report(diagnose(facts()), false);
    for (const { finding } of diagnose(facts())) {
      expect(shown).toContain(finding.split(" ").slice(0, 3).join(" "));
    }
  });
});
