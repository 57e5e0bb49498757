import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Config, reached } from "../../src/config.ts";
import { type FlagValues, load } from "../../src/config-file.ts";
import type { Offloads } from "../../src/device.ts";
import { EXIT_USAGE, exitCode, VtepError } from "../../src/errors.ts";
import { flags } from "../../src/keys.ts";

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "vtep-config-"));
});
afterAll(() => rmSync(directory, { recursive: true }));

const configure = (path: string | undefined, given: FlagValues): Config => load(path, given).config;

function file(yaml: string): string {
  const path = join(directory, "vtep.yaml");
  writeFileSync(path, yaml);
  return path;
}

const FLAGS: FlagValues = { vni: "7", peers: ["192.0.2.2"] };
const ONE_NETWORK = "networks:\n  - vni: 1\n    peers: [192.0.2.2]\n";

/** The network that flags describe, with these besides a VNI and a peer. */
function network(more: FlagValues = {}) {
  return configure(undefined, { ...FLAGS, ...more }).networks[0]!;
}

/** The sentence with which this is refused; FILE stands for the file's path and the place in it. */
function refusal(yaml: string | undefined, given: FlagValues = {}): string {
  try {
    configure(yaml === undefined ? undefined : file(yaml), given);
  } catch (error) {
    expect(error).toBeInstanceOf(VtepError);
    expect((error as VtepError).code).toBe("USAGE");
    expect(exitCode(error)).toBe(EXIT_USAGE);
    const { message } = error as VtepError;
    return message.replaceAll(`${directory}/vtep.yaml`, "FILE").replace(/^FILE:\d+:\d+:/, "FILE:");
  }
  throw new Error("it was accepted");
}

const ALL_ON: Offloads = {
  csum: true,
  tso: true,
  uso: true,
  gso: true,
  gro: true,
  "coalesce-tcp": true,
  "coalesce-udp": true,
};

describe("defaults", () => {
  it("are for everything but the VNI and a peer", () => {
    expect(configure(undefined, FLAGS)).toEqual({
      local: undefined,
      port: 4789,
      underlay: "auto",
      sourcePorts: [49152, 65535],
      dscp: 0,
      df: "set",
      offloads: ALL_ON,
      workers: "auto",
      busyPollUs: 0,
      strict: false,
      logLevel: "info",
      socket: "/run/vtep/vtep.sock",
      metricsListen: undefined,
      networks: [
        {
          name: "vtep7",
          vni: 7,
          peers: ["192.0.2.2"],
          tap: "vtep7",
          bridge: undefined,
          vlan: undefined,
          gateway: [],
          masquerade: false,
          ranges: [],
          mtu: "auto",
          clampMss: false,
          fdb: [],
          ageSeconds: 300,
          fdbLimit: 65_536,
        },
      ],
    });
  });

  it("are those that --help tells of", () => {
    const told = Object.fromEntries(flags().map(({ key, otherwise }) => [key, otherwise]));
    const { port, underlay, sourcePorts, logLevel } = configure(undefined, FLAGS);
    const { tap, mtu, ageSeconds, fdbLimit } = network();
    expect(told).toMatchObject({
      port: String(port),
      underlay,
      "source-ports": sourcePorts.join("-"),
      "log-level": logLevel,
      tap: tap.replace("7", "<VNI>"),
      mtu,
      age: String(ageSeconds),
      "fdb-limit": String(fdbLimit),
      strict: undefined,
    });
  });
});

describe("the flags", () => {
  it("are the documented command line", () => {
    const syntaxes = flags().map(({ syntax }) => syntax);
    for (const documented of [
      "--vni <N>",
      "--peer <ADDR...>",
      "--local <ADDR>",
      "--tap <NAME>",
      "--bridge <NAME>",
      "--mtu <N|auto>",
      "--port <N>",
      "--underlay <auto|native|dgram>",
      "--fdb <MAC=ADDR...>",
      "--age <SECONDS>",
      "--log-level <LEVEL>",
    ]) {
      expect(syntaxes).toContain(documented);
    }
    expect(new Set(syntaxes).size).toBe(syntaxes.length);
  });

  it("have one sentence of help each", () => {
    for (const { key, help } of flags()) {
      expect(help, key).toMatch(/^\S.*[^.\s]$/);
    }
  });

  it("give everything that can be configured", () => {
    const config = configure(undefined, {
      vni: "16777215",
      peers: ["192.0.2.2", "2001:db8::2", "192.0.2.2"],
      name: "Blue-1.x_y",
      tap: "tap0",
      bridge: "br0",
      gateway: ["10.9.0.1/24", "2001:DB8:9::1/64"],
      masquerade: true,
      ranges: ["10.9.0.64-10.9.0.127/24"],
      mtu: "1400",
      fdb: ["00:00:5e:00:53:01=192.0.2.3", "00-00-5E-00-53-FF=2001:DB8:0::3"],
      age: "0",
      "fdb-limit": "1",
      "clamp-mss": true,
      local: "192.0.2.1",
      port: "8472",
      underlay: "native",
      "source-ports": "1024-1024",
      dscp: "inherit",
      df: "unset",
      offload: "tso=off,coalesce-udp=off,gro=on",
      workers: "1",
      "busy-poll": "50",
      strict: true,
      "log-level": "debug",
      socket: "/run/../run/other.sock",
      "metrics-listen": "[0:0::1]:9469",
    });
    expect(config).toEqual({
      local: "192.0.2.1",
      port: 8472,
      underlay: "native",
      sourcePorts: [1024, 1024],
      dscp: "inherit",
      df: "unset",
      offloads: { ...ALL_ON, tso: false, "coalesce-udp": false },
      workers: 1,
      busyPollUs: 50,
      strict: true,
      logLevel: "debug",
      socket: "/run/other.sock",
      metricsListen: { address: "::1", port: 9469 },
      networks: [
        {
          name: "Blue-1.x_y",
          vni: 16_777_215,
          peers: ["192.0.2.2", "2001:db8::2"],
          tap: "tap0",
          bridge: "br0",
          vlan: undefined,
          gateway: ["10.9.0.1/24", "2001:db8:9::1/64"],
          masquerade: true,
          ranges: [{ low: "10.9.0.64", high: "10.9.0.127", length: 24 }],
          mtu: 1400,
          clampMss: true,
          fdb: [
            { macHigh: 0, macLow: 0x5e005301, address: "192.0.2.3" },
            { macHigh: 0, macLow: 0x5e0053ff, address: "2001:db8::3" },
          ],
          ageSeconds: 0,
          fdbLimit: 1,
        },
      ],
    });
    expect(reached(config.networks[0]!)).toEqual([
      "192.0.2.2",
      "2001:db8::2",
      "192.0.2.3",
      "2001:db8::3",
    ]);
  });

  it("need no peer where a static entry says where to send", () => {
    const given = { vni: "7", fdb: ["00:00:5e:00:53:01=192.0.2.3"] };
    expect(configure(undefined, given).networks[0]).toMatchObject({ peers: [] });
  });

  it("take numbers to their limits", () => {
    for (const vni of [0, 16_777_215]) expect(network({ vni: String(vni) }).vni).toBe(vni);
    for (const mtu of [68, 65_485]) expect(network({ mtu: String(mtu) }).mtu).toBe(mtu);
    for (const port of [1, 65_535]) {
      expect(configure(undefined, { ...FLAGS, port: String(port) }).port).toBe(port);
    }
    expect(network({ "fdb-limit": "2097152" }).fdbLimit).toBe(2_097_152);
  });

  it("take IPv4 link-local addresses, which are hosts' like any other", () => {
    expect(network({ peers: ["169.254.7.7"] }).peers).toEqual(["169.254.7.7"]);
  });

  it("take the MAC of zeros, as the kernel does: a flood entry", () => {
    expect(network({ peers: [], fdb: ["00:00:00:00:00:00=192.0.2.3"] }).fdb).toEqual([
      { macHigh: 0, macLow: 0, address: "192.0.2.3" },
    ]);
  });

  it("take addresses in every spelling, and know them by one", () => {
    const peers = ["::ffff:192.0.2.2", "2001:DB8:0:0::2", "2001:db8::0002", "192.0.2.2"];
    expect(network({ peers }).peers).toEqual(["192.0.2.2", "2001:db8::2"]);
    const names = ["a", "fifteen-letters", "eth0.100"];
    for (const tap of names) expect(network({ tap }).tap).toBe(tap);
  });

  it("does without super-frames where checksums are not left to it", () => {
    const without = { csum: false, tso: false, uso: false };
    for (const offload of ["csum=off", "csum=off,tso=off"]) {
      expect(configure(undefined, { ...FLAGS, offload }).offloads).toEqual({
        ...ALL_ON,
        ...without,
      });
    }
  });

  const VNI = "--vni must be a whole number from 0 to 16777215";
  const MTU = "must be auto or a whole number from 68 to 65485";
  const noAddress = (text: string) => `"${text}" is not an IPv4 or IPv6 address`;
  const noHost = (text: string) => `--peer ${text} is not the unicast address of a host`;
  const group = (text: string) =>
    `--peer ${text} is a multicast group, which no VTEP joins here: name each VTEP that is in it`;
  const noName = (text: string) =>
    `"${text}" cannot name an interface: at most 15 characters, no spaces, "/", ":" or "%"`;
  const ONE_PLACE = "a MAC is behind one VTEP, and more that get what is flooded are peers";

  const refused: [FlagValues, string][] = [
    ...["-1", "16777216", "abc", "1.5", "", "1e3", "0x10", " 7"].map(
      (vni): [FlagValues, string] => [{ vni }, VNI],
    ),
    ...["192.0.2", "1", "0x7f000001", "010.0.0.1", "192.0.2.256", "host", "", "192.0.2.2 "].map(
      (peer): [FlagValues, string] => [{ peers: [peer] }, `--peer ${noAddress(peer)}`],
    ),
    [{ peers: ["192.0.2.2", "2001:db8::1%eth0"] }, `--peer ${noAddress("2001:db8::1%eth0")}`],
    ...["0.0.0.0", "::", "255.255.255.255"].map((peer): [FlagValues, string] => [
      { peers: [peer] },
      noHost(peer),
    ]),
    ...["224.0.0.1", "239.1.1.7", "ff02::1"].map((peer): [FlagValues, string] => [
      { peers: [peer] },
      group(peer),
    ]),
    [
      { peers: ["fe80::1"] },
      "--peer fe80::1 is link-local, which no VTEP can be known by here: give another address of it",
    ],
    [
      { peers: ["192.0.2.2", "FE80::1%eth0"] },
      "--peer fe80::1 is link-local, which no VTEP can be known by here: give another address of it",
    ],
    ...["all", "default"].flatMap((name): [FlagValues, string][] => {
      const sentence = `"${name}" cannot name an interface: the kernel keeps it for settings (/proc/sys/net), choose another`;
      return [
        [{ tap: name }, `--tap ${sentence}`],
        [{ bridge: name }, `--bridge ${sentence}`],
      ];
    }),
    ...["ff:ff:ff:ff:ff:ff", "01-00-5e-00-00-01", "33:33:00:00:00:01"].map(
      (mac): [FlagValues, string] => [
        { fdb: [`${mac}=192.0.2.3`] },
        `--fdb has ${mac}, a group address, whose frames are flooded: name who is to get them as a peer`,
      ],
    ),
    [{ local: "here" }, `--local ${noAddress("here")}`],
    ...["a b", "a/b", "sixteen-letters-", ".", "..", "a:b", "", "a%d"].flatMap(
      (name): [FlagValues, string][] => [
        [{ tap: name }, `--tap ${noName(name)}`],
        [{ bridge: name }, `--bridge ${noName(name)}`],
      ],
    ),
    [{ mtu: "big" }, `--mtu ${MTU}`],
    [{ mtu: "67" }, `--mtu ${MTU}`],
    [{ mtu: "65486" }, `--mtu ${MTU}`],
    [
      { socket: `/${"a".repeat(107)}` },
      `--socket "/${"a".repeat(107)}" cannot be the path of a socket: absolute, and at most 107 bytes`,
    ],
    [
      { name: "a".repeat(64) },
      `--name "${"a".repeat(64)}" cannot name a network: at most 63 letters, digits, "-", "_" and ".", a letter or digit first`,
    ],
    [{ workers: "0" }, "--workers must be auto or a whole number from 1 to 64"],
    [{ port: "0" }, "--port must be a whole number from 1 to 65535"],
    [{ port: "65536" }, "--port must be a whole number from 1 to 65535"],
    [{ underlay: "Native" }, "--underlay must be one of auto, native, dgram"],
    [{ "source-ports": "50000" }, "--source-ports must be LOW-HIGH, as in 49152-65535"],
    [{ "source-ports": "1023-2000" }, "--source-ports must be LOW-HIGH within 1024-65535"],
    [{ "source-ports": "2000-1999" }, "--source-ports must be LOW-HIGH within 1024-65535"],
    [{ "source-ports": "2000-65536" }, "--source-ports must be LOW-HIGH within 1024-65535"],
    [{ dscp: "64" }, "--dscp must be inherit or a whole number from 0 to 63"],
    [{ dscp: "ef" }, "--dscp must be inherit or a whole number from 0 to 63"],
    [{ offload: "tso" }, '--offload "tso" must be NAME=on or NAME=off'],
    [{ offload: "tso=off,=on" }, '--offload "=on" must be NAME=on or NAME=off'],
    [{ offload: "tso=0" }, '--offload has tso as "0": on or off'],
    [{ offload: "tos=off" }, '--offload has no "tos": did you mean "tso"?'],
    [{ offload: "csum=off,tso=on" }, "--offload has tso on and csum off: tso needs csum"],
    [{ offload: "uso=on,csum=off" }, "--offload has uso on and csum off: uso needs csum"],
    [{ "log-level": "loud" }, "--log-level must be one of trace, debug, info, warn, error, fatal"],
    [{ age: "-1" }, "--age must be a whole number from 0 to 31536000"],
    [{ "fdb-limit": "0" }, "--fdb-limit must be a whole number from 1 to 2097152"],
    [{ "fdb-limit": "2097153" }, "--fdb-limit must be a whole number from 1 to 2097152"],
    [{ fdb: ["00:00:5e:00:53:01"] }, '--fdb "00:00:5e:00:53:01" must be MAC=ADDR'],
    [{ fdb: ["=192.0.2.3"] }, '--fdb "=192.0.2.3" must be MAC=ADDR'],
    [{ fdb: ["x=192.0.2.3"] }, '--fdb "x" is not a MAC address (aa:bb:cc:dd:ee:ff)'],
    [{ fdb: ["00:00:5e:00:53:01=host"] }, `--fdb ${noAddress("host")}`],
    [
      { fdb: ["00:00:5e:00:53:01=192.0.2.3", "00:00:5e:00:53:01=192.0.2.4"] },
      `--fdb has 00:00:5e:00:53:01 twice: ${ONE_PLACE}`,
    ],
    [
      { fdb: ["00:00:5e:00:53:01=192.0.2.3", "00-00-5E-00-53-01=192.0.2.4"] },
      `--fdb has 00:00:5e:00:53:01 twice: ${ONE_PLACE}`,
    ],
    [
      { local: "::ffff:192.0.2.2" },
      "network 7: peer 192.0.2.2 is this VTEP's own local address: name the other end",
    ],
    [
      { local: "192.0.2.3", fdb: ["00:00:5e:00:53:01=192.0.2.3"] },
      "network 7: peer 192.0.2.3 is this VTEP's own local address: name the other end",
    ],
    ...(
      [
        [{ workers: "2" }, "--workers above 1"],
        [{ dscp: "5" }, "--dscp"],
        [{ df: "unset" }, "--df unset"],
        [{ "source-ports": "5000-6000" }, "--source-ports"],
        [{ "busy-poll": "50" }, "--busy-poll"],
      ] as const
    ).map(([given, flag]): [Readonly<Record<string, unknown>>, string] => [
      { ...given, underlay: "dgram" },
      `${flag} needs the native underlay: leave out --underlay dgram`,
    ]),
    [{ tap: "x", bridge: "x" }, "network 7: x cannot name both a TAP and a bridge: choose another"],
    [{ bridge: "vtep7" }, "network 7: vtep7 cannot name both a TAP and a bridge: choose another"],
    [{ peers: [] }, "network 7 has no peer: give one with --peer ADDR (peers:)"],
    ...[
      "10.9.0.0/24",
      "10.9.0.255/24",
      "10.9.0.1",
      "10.9.0.1/33",
      "224.0.0.1/24",
      "127.0.0.1/8",
      "x",
    ].map((gateway): [FlagValues, string] => [
      { bridge: "br0", gateway: [gateway] },
      `--gateway "${gateway}" is not the address of a station with its prefix length (192.0.2.1/24)`,
    ]),
    ...[
      "10.9.0.64-10.9.1.7/24",
      "10.9.0.9-10.9.0.8/24",
      "10.9.0.0-10.9.0.8/24",
      "10.9.0.64/26",
      "10.9.0.7-fd00::1/24",
    ].map((range): [FlagValues, string] => [
      { ranges: [range] },
      `--range "${range}" is not LOW-HIGH/LENGTH, two addresses of stations in one subnet (192.0.2.64-192.0.2.127/24)`,
    ]),
    [
      { gateway: ["10.9.0.1/24"] },
      "network 7 has a gateway and no bridge: give one with --bridge NAME (bridge:)",
    ],
    [
      { bridge: "br0", gateway: ["10.9.0.1/24"], vlan: "10" },
      "network 7 has a gateway, which knows no VLAN: give it a bridge of its own instead",
    ],
    [
      { masquerade: true },
      "network 7 has no gateway: give one with --gateway ADDR/LENGTH (gateway:)",
    ],
    [
      { bridge: "br0", gateway: ["10.9.0.1/24"], ranges: ["10.9.0.1-10.9.0.9/24"] },
      "network 7: 10.9.0.1-10.9.0.9/24 has the gateway 10.9.0.1 in it: leave it out",
    ],
    [
      { bridge: "br0", gateway: ["10.9.0.1/24", "fd09::1/64"], ranges: ["10.9.1.2-10.9.1.9/24"] },
      "network 7: 10.9.1.2-10.9.1.9/24 is no part of its gateway's subnet: its gateway is 10.9.0.1/24",
    ],
    ...["0", "4095", "x"].map((vlan): [FlagValues, string] => [
      { vlan },
      "--vlan must be a whole number from 1 to 4094",
    ]),
  ];
  it.each(refused)("are refused by name: %o", (given, sentence) => {
    expect(refusal(undefined, { ...FLAGS, ...given })).toBe(sentence);
  });

  it("are asked for where there are none", () => {
    const none =
      "no network is given: name one with --vni N --peer ADDR, or some in /etc/vtep/vtep.yaml or another file (--config FILE)";
    expect(refusal(undefined)).toBe(none);
    expect(refusal(undefined, { port: "4790" })).toBe(none);
    expect(refusal(undefined, { peers: ["192.0.2.2"] })).toBe(
      "--vni is missing: vtep run --vni N --peer ADDR",
    );
  });
});

describe("a file", () => {
  it("has the same keys, for several networks", () => {
    const config = configure(
      file(`
        local: 192.0.2.1
        port: 4790
        underlay: native
        source-ports: 50000-50999
        dscp: 46
        offload: { gso: off, uso: false, csum: on }
        strict: true
        log-level: warn
        networks:
          - vni: 100
            peers: [192.0.2.2, 2001:db8::2]
            tap: green
            bridge: br-green
            gateway: [10.9.0.1/24]
            ranges: [10.9.0.64-10.9.0.127/24]
            mtu: 1400
            clamp-mss: true
            age: 10
            fdb-limit: 1000
            fdb: { 00:00:5e:00:53:01: 192.0.2.3 }
          - vni: 200
            peers: [192.0.2.2]
            mtu: auto
      `),
      {},
    );
    expect(config).toMatchObject({
      local: "192.0.2.1",
      port: 4790,
      underlay: "native",
      sourcePorts: [50_000, 50_999],
      dscp: 46,
      offloads: { ...ALL_ON, gso: false, uso: false },
      strict: true,
      logLevel: "warn",
    });
    expect(config.networks).toEqual([
      {
        name: "green",
        vni: 100,
        peers: ["192.0.2.2", "2001:db8::2"],
        tap: "green",
        bridge: "br-green",
        vlan: undefined,
        gateway: ["10.9.0.1/24"],
        masquerade: false,
        ranges: [{ low: "10.9.0.64", high: "10.9.0.127", length: 24 }],
        mtu: 1400,
        clampMss: true,
        fdb: [{ macHigh: 0, macLow: 0x5e005301, address: "192.0.2.3" }],
        ageSeconds: 10,
        fdbLimit: 1000,
      },
      expect.objectContaining({
        name: "vtep200",
        vni: 200,
        tap: "vtep200",
        mtu: "auto",
        bridge: undefined,
      }),
    ]);
  });

  it("can be written in terms of the flags: every key but `networks` is one", () => {
    const keys = flags().map(({ key }) => key);
    const values: Record<string, string> = {
      ...{ vni: "1", name: "n", peers: "[192.0.2.2]", tap: "t", bridge: "b", mtu: "1400" },
      ...{ gateway: "[10.9.0.1/24]", masquerade: "true" },
      ...{ ranges: "[10.9.0.64-10.9.0.127/24]" },
      ...{ fdb: "{}", age: "1", "fdb-limit": "1", "clamp-mss": "true" },
    };
    const inNetwork = keys.filter((key) => key in values);
    const lines = inNetwork.map((key) => `    ${key}: ${values[key]}\n`).join("");
    expect(() => configure(file(`networks:\n  -\n${lines}`), {})).not.toThrow();
    expect(keys.filter((key) => !inNetwork.includes(key)).sort()).toEqual([
      "busy-poll",
      "df",
      "dscp",
      "local",
      "log-level",
      "metrics-listen",
      "offload",
      "port",
      "socket",
      "source-ports",
      "strict",
      "underlay",
      "vlan", // has no gateway beside it
      "workers",
    ]);
  });

  it("may hold the whole endpoint while flags bring the network", () => {
    expect(configure(file("port: 4790"), FLAGS)).toMatchObject({
      port: 4790,
      networks: [{ vni: 7 }],
    });
  });

  const NOT_A_MAPPING = "FILE must hold a mapping with a list of networks";
  const EMPTY = "FILE: networks is empty: give one there, or with --vni N --peer ADDR";
  const refused: [yaml: string, sentence: string][] = [
    ["", NOT_A_MAPPING],
    ["[]", NOT_A_MAPPING],
    ["text", NOT_A_MAPPING],
    ["networks:", EMPTY],
    ["networks: []", EMPTY],
    ["port: 4790", EMPTY],
    ["networks: 5", "FILE: networks must be a list of networks"],
    ["networks: [5]", "FILE: networks[0] must be a mapping with a vni"],
    ["networks: [{}]", "FILE: networks[0].vni is missing"],
    ["networks: [{vni: 1}]", "FILE: network 1 has no peer: give one with --peer ADDR (peers:)"],
    [
      "networks: [{vni: 1, peer: [192.0.2.2]}]",
      'FILE: networks[0].peer is no key of a network: did you mean "peers"?',
    ],
    [
      "networks: [{vnj: 1, peers: [192.0.2.2]}]",
      'FILE: networks[0].vnj is no key of a network: did you mean "vni"?',
    ],
    [
      "network: [{vni: 1, peers: [192.0.2.2]}]",
      'FILE: network is no key of the configuration: did you mean "networks"?',
    ],
    [
      `underlai: native\n${ONE_NETWORK}`,
      'FILE: underlai is no key of the configuration: did you mean "underlay"?',
    ],
    [
      `colour: green\n${ONE_NETWORK}`,
      "FILE: colour is no key of the configuration: known are local, port, underlay, source-ports, dscp, df, offload, workers, busy-poll, strict, log-level, socket, metrics-listen, include, networks",
    ],
    [
      "networks: [{vni: 1, peers: [192.0.2.2], colour: green}]",
      "FILE: networks[0].colour is no key of a network: known are vni, name, peers, tap, bridge, vlan, gateway, masquerade, ranges, mtu, clamp-mss, fdb, age, fdb-limit",
    ],
    [
      "networks: [{vni: 1, peers: [192.0.2.2]}, {vni: .nan, peers: [192.0.2.2]}]",
      "FILE: networks[1].vni must be a whole number from 0 to 16777215",
    ],
    [
      "networks: [{vni: true, peers: [192.0.2.2]}]",
      "FILE: networks[0].vni must be a whole number from 0 to 16777215",
    ],
    [
      "networks: [{vni: 1, peers: 192.0.2.2}]",
      "FILE: networks[0].peers must be a list of addresses",
    ],
    [
      "networks: [{vni: 1, peers: [192.0.2.2, 5]}]",
      "FILE: networks[0].peers[1] must be an IPv4 or IPv6 address",
    ],
    [
      "networks: [{vni: 1, fdb: [192.0.2.2]}]",
      "FILE: networks[0].fdb must map MAC addresses to the addresses of VTEPs",
    ],
    [
      "networks: [{vni: 1, fdb: {00:00:5e:00:53: 192.0.2.2}}]",
      'FILE: networks[0].fdb "00:00:5e:00:53" is not a MAC address (aa:bb:cc:dd:ee:ff)',
    ],
    [
      "networks: [{vni: 1, fdb: {00:00:5e:00:53:01: host}}]",
      'FILE: networks[0].fdb.00:00:5e:00:53:01 "host" is not an IPv4 or IPv6 address',
    ],
    [
      "networks: [{vni: 1, fdb: {00:00:5e:00:53:0a: 192.0.2.2, 00:00:5E:00:53:0A: 192.0.2.2}}]",
      "FILE: networks[0].fdb has 00:00:5e:00:53:0a twice: a MAC is behind one VTEP, and more that get what is flooded are peers",
    ],
    [`strict: maybe\n${ONE_NETWORK}`, "FILE: strict must be true or false"],
    [`port: high\n${ONE_NETWORK}`, "FILE: port must be a whole number from 1 to 65535"],
    [
      "networks: [{vni: 1, peers: [192.0.2.2]}, {vni: 1, tap: b, peers: [192.0.2.2]}]",
      "FILE: VNI 1 is given to two networks, here and at FILE:1:18: each needs its own",
    ],
    [
      "networks: [{vni: 1, peers: [192.0.2.2]}, {vni: 2, tap: vtep1, peers: [192.0.2.2]}]",
      "FILE: TAP vtep1 is given to two networks, here and at FILE:1:12: each needs its own",
    ],
    [
      "networks: [{vni: 1, name: vtep2, peers: [192.0.2.2]}, {vni: 2, peers: [192.0.2.2]}]",
      "FILE: the name vtep2 is given to two networks, here and at FILE:1:27: each needs its own",
    ],
    [
      "networks: [{vni: 1, peers: [192.0.2.2], bridge: a, gateway: [10.9.0.1/24]}, {vni: 2, peers: [192.0.2.2], bridge: b, gateway: [10.9.0.2/24]}]",
      "FILE: the gateway's subnet 10.9.0.0/24 is given to two networks, here and at FILE:1:61: each needs its own",
    ],
    [
      'networks: [{vni: 1, peers: [192.0.2.2], bridge: a, gateway: ["fe80::1/64"]}, {vni: 2, peers: [192.0.2.2], bridge: b, gateway: ["fe80::1/64"]}]',
      "FILE: the gateway fe80::1 is given to two networks, here and at FILE:1:61: each needs its own",
    ],
    [
      "networks: [{vni: 1, peers: [192.0.2.2], bridge: a, vlan: 7}, {vni: 2, peers: [192.0.2.2], bridge: a, vlan: 7}]",
      "FILE: VLAN 7 of a is given to two networks, here and at FILE:1:58: each needs its own",
    ],
    [
      "networks: [{vni: 1, tap: br0, peers: [192.0.2.2]}, {vni: 2, bridge: br0, peers: [192.0.2.2]}]",
      "FILE: network 1: br0 cannot name both a TAP and a bridge, here and at FILE:1:69: choose another",
    ],
    [
      `port: 1\nport: 2\n${ONE_NETWORK}`,
      "FILE cannot be read: Map keys must be unique at line 2, column 1",
    ],
  ];
  it.each(refused)("is refused with one sentence: %j", (yaml, sentence) => {
    expect(refusal(yaml)).toBe(sentence);
  });

  it("that is not there, or cannot be read, is named", () => {
    expect(() => configure("/nonexistent/vtep.yaml", {})).toThrow(
      new VtepError(
        "USAGE",
        "/nonexistent/vtep.yaml cannot be read: there is no such file: vtep config example prints one to begin with",
      ),
    );
    expect(() => configure(directory, {})).toThrow(
      /cannot be read: it is a directory: name a file in it/,
    );
    expect(() => configure("", {})).toThrow(
      new VtepError("USAGE", "--config names no file: give the path of one"),
    );
  });
});

describe("a file and flags", () => {
  it("are one configuration: flags of the endpoint win, a network of flags joins the file's", () => {
    const yaml = `port: 4790\nlog-level: warn\n${ONE_NETWORK}`;
    const config = configure(file(yaml), { ...FLAGS, port: "4791", strict: true });
    expect(config).toMatchObject({ port: 4791, logLevel: "warn", strict: true });
    expect(config.networks.map(({ vni }) => vni)).toEqual([1, 7]);
  });

  it("refuse a file's bad value even where a flag does not, and a flag's by the flag's name", () => {
    expect(refusal(`port: high\n${ONE_NETWORK}`, { age: "1", ...FLAGS })).toBe(
      "FILE: port must be a whole number from 1 to 65535",
    );
    expect(refusal(ONE_NETWORK, { port: "high" })).toBe(
      "--port must be a whole number from 1 to 65535",
    );
    expect(refusal(ONE_NETWORK, { ...FLAGS, peers: ["host"] })).toBe(
      '--peer "host" is not an IPv4 or IPv6 address',
    );
    expect(refusal("networks: [{vni: x}]", FLAGS)).toBe(
      "FILE: networks[0].vni must be a whole number from 0 to 16777215",
    );
  });

  it("may not contradict each other about a network, nor leave one half told", () => {
    expect(refusal(ONE_NETWORK, { ...FLAGS, vni: "1", tap: "other" })).toBe(
      "VNI 1 is given to two networks, by --vni and at FILE:2:10: each needs its own",
    );
    expect(refusal(ONE_NETWORK, { mtu: "1400" })).toBe(
      "--vni is missing: vtep run --vni N --peer ADDR",
    );
    expect(refusal(ONE_NETWORK, { local: "192.0.2.2" })).toBe(
      "FILE: network 1: peer 192.0.2.2 is this VTEP's own local address: name the other end",
    );
  });
});
