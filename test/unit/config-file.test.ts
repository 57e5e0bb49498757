import { execFileSync, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, onTestFinished } from "vitest";
import { parse as parseYaml } from "yaml";
import { example, reference, shown } from "../../src/commands/config.ts";
import { conflicts, networkConfig } from "../../src/config.ts";
import { check, type FlagValues, load, sourceText } from "../../src/config-file.ts";
import { VtepError } from "../../src/errors.ts";
import { flags, keys } from "../../src/keys.ts";

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "vtep-config-file-"));
});
afterEach(() => rmSync(root, { recursive: true }));

/** Writes files by their paths from the root; returns the path of the first. */
function write(files: Record<string, string>): string {
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), text);
  }
  return join(root, Object.keys(files)[0]!);
}

const one = (vni: number, more = "") => `{ vni: ${vni}, peers: [192.0.2.2]${more} }`;
const withoutRoot = (text: string) => text.replaceAll(`${root}/`, "");
/** All that is wrong, with paths from the root. */
const faults = (files: Record<string, string>, given: FlagValues = {}) =>
  check(write(files), given).faults.map(withoutRoot);

describe("entries of the FDB", () => {
  const mac = (at: number) =>
    `02:00:00:00:${(at >> 8).toString(16).padStart(2, "0")}:${(at & 255).toString(16).padStart(2, "0")}`;
  const network = (vni: number, first: number, count: number) => {
    const entries = Array.from({ length: count }, (_, at) => `"${mac(first + at)}": 192.0.2.2`);
    return one(vni, `, fdb: { ${entries.join(", ")} }`);
  };

  it("take no longer to read in one network than in forty", () => {
    const costOf = (networks: readonly string[]) => {
      const file = write({
        "vtep.yaml": `networks:\n${networks.map((each) => `  - ${each}\n`).join("")}`,
      });
      const before = process.cpuUsage(); // what others do beside is nothing of that
      load(file, {});
      const { user, system } = process.cpuUsage(before);
      return user + system;
    };
    const many = costOf(Array.from({ length: 40 }, (_, at) => network(at + 1, at * 1000, 1000)));
    expect(costOf([network(1, 0, 40_000)])).toBeLessThan(3 * many);
  }, 60_000);

  it("are refused where a MAC is there twice, with the place of the second", () => {
    const twice = `networks:\n  - ${one(1, ', fdb: { "02:00:00:00:00:01": 192.0.2.2, "02:00:00:00:00:01": 192.0.2.3 }')}`;
    expect(faults({ "vtep.yaml": twice })).toEqual([
      expect.stringMatching(
        /^vtep.yaml cannot be read: Map keys must be unique at line 2, column \d+$/,
      ),
    ]);
  });
});

describe("an included directory", () => {
  it("adds networks, in the order of the names of its files, wherever vtep is run", () => {
    const { config, files } = load(
      write({
        "vtep.yaml": `include: conf.d\nport: 4790\nnetworks: [${one(1)}]`,
        "conf.d/20.yaml": `networks: [${one(4)}]`,
        "conf.d/10.yml": `log-level: warn\nnetworks: [${one(3)}, ${one(2)}]`,
        "conf.d/.11.yaml": `networks: [${one(9)}]`,
        "conf.d/11.yaml.dpkg-old": `networks: [${one(9)}]`,
        "conf.d/README": "not read",
      }),
      {},
    );
    expect(config).toMatchObject({ port: 4790, logLevel: "warn" });
    expect(config.networks.map(({ vni }) => vni)).toEqual([1, 3, 2, 4]);
    expect(files.map(withoutRoot)).toEqual(["vtep.yaml", "conf.d/10.yml", "conf.d/20.yaml"]);
  });

  it("may be empty, be given by an absolute path, hold files of comments and be included by one", () => {
    mkdirSync(join(root, "empty"));
    const file = write({
      "vtep.yaml": `include: ${root}/a`,
      "a/1.yaml": "# networks will come",
      "a/2.yaml": `include: ../b\nnetworks: [${one(1)}]`,
      "b/1.yaml": `include: ../empty\nnetworks: [${one(2)}]`,
    });
    expect(load(file, {}).config.networks.map(({ vni }) => vni)).toEqual([1, 2]);
  });

  it.each([
    ["gone", "names gone, which is not there: create it, or leave the key out"],
    ["vtep.yaml", "names vtep.yaml, which is no directory: name the one that holds the files"],
    ["[conf.d]", "must be the path of a directory"],
    ["", "must be the path of a directory"],
    ['""', "names no directory: give the path of one"],
    [".", "leads to vtep.yaml again: name a directory without it, and none twice"],
  ])("that is %j is refused", (include, sentence) => {
    expect(faults({ "vtep.yaml": `include: ${include}\nnetworks: [${one(1)}]` })).toEqual([
      `vtep.yaml:1:10: include ${sentence}`,
    ]);
  });

  it("waits for nobody who would write to a pipe", () => {
    mkdirSync(join(root, "a"));
    const pipe = join(root, "a/1.yaml");
    execFileSync("mkfifo", [pipe]);
    const writer = spawn("sh", ["-c", 'exec >"$0"', pipe]); // or a reader would never come back
    onTestFinished(() => void writer.kill());
    expect(faults({ "vtep.yaml": `include: a\nnetworks: [${one(1)}]` })).toEqual([
      "a/1.yaml cannot be read: it is a pipe, and a reload would wait for who writes to it: put a file there",
    ]);
  });

  it("is refused where it leads in a circle, also through a link, or is included twice", () => {
    const circle = {
      "vtep.yaml": "include: a",
      "a/1.yaml": `include: ../b\nnetworks: [${one(1)}]`,
    };
    const again = (file: string, place: string) =>
      `${place}: include leads to ${file} again: name a directory without it, and none twice`;
    expect(faults({ ...circle, "b/1.yaml": "include: ../a" })).toEqual([
      again("a/1.yaml", "b/1.yaml:1:10"),
    ]);
    rmSync(join(root, "b/1.yaml"));
    symlinkSync("../vtep.yaml", join(root, "b/link.yaml"));
    expect(faults(circle)).toEqual([again("vtep.yaml", "a/1.yaml:1:10")]);
    rmSync(join(root, "b/link.yaml"));
    expect(faults({ ...circle, "b/1.yaml": "", "a/2.yaml": "include: ../b" })).toEqual([
      again("b/1.yaml", "a/2.yaml:1:10"),
    ]);
  });

  it("may set a key of the endpoint that no other file sets: both places are named", () => {
    const files = {
      "vtep.yaml": `include: conf.d\nport: 4790\nnetworks: [${one(1)}]`,
      "conf.d/a.yaml": "strict: true\nport: 4790",
    };
    const sentence =
      "conf.d/a.yaml:2:1: port is set already, at vtep.yaml:2:1: keep one of the two";
    expect(faults(files)).toEqual([sentence]);
    expect(faults(files, { port: "4791" })).toEqual([sentence]);
  });

  it("may not give a VNI, a TAP or a name a second time: both places are named", () => {
    const found = faults({
      "vtep.yaml": `include: conf.d\nnetworks:\n  - ${one(1)}\n  - ${one(2, ", name: blue")}`,
      "conf.d/a.yaml": `networks:\n  - ${one(1, ", tap: a")}\n  - ${one(3, ", tap: vtep2")}`,
      "conf.d/b.yaml": `networks:\n  - ${one(4, ", name: blue")}`,
    });
    const twice = (what: string, here: string, there: string) =>
      `${here}: ${what} is given to two networks, here and at ${there}: each needs its own`;
    expect(found).toEqual([
      twice("VNI 1", "conf.d/a.yaml:2:12", "vtep.yaml:3:12"),
      twice("TAP vtep2", "conf.d/a.yaml:3:40", "vtep.yaml:4:5"),
      twice("the name blue", "conf.d/b.yaml:2:41", "vtep.yaml:4:41"),
    ]);
  });

  it("says where in its files a fault is", () => {
    expect(
      faults({
        "vtep.yaml": `include: conf.d\nnetworks: [${one(1)}]`,
        "conf.d/a.yaml": "networks: [",
        "conf.d/b.yaml": "- list",
        "conf.d/c.yaml": "networks: 5\nnetwork: 6",
        "conf.d/d.yaml": `networks:\n  - ${one(2)}\n  - vni: 3\n    peers:\n      - host\n`,
      }),
    ).toEqual([
      "conf.d/a.yaml cannot be read: Flow sequence in block collection must be sufficiently indented and end with a ] at line 1, column 12",
      "conf.d/b.yaml must hold a mapping with a list of networks",
      "conf.d/c.yaml:1:11: networks must be a list of networks",
      'conf.d/c.yaml:2:1: network is no key of the configuration: did you mean "networks"?',
      'conf.d/d.yaml:5:9: networks[1].peers[0] "host" is not an IPv4 or IPv6 address',
    ]);
  });
});

describe("faults of one file", () => {
  it("are told together, from the top down, each with its place", () => {
    const text = [
      "networks:",
      "  - vni: 1",
      "    peers: [192.0.2.2, host, 224.0.0.1]",
      "    mtu: 3",
      "    tpa: x",
      "    pears: []",
      "  - vnj: 2",
      "    peers: [192.0.2.2]",
      "  - peers: [192.0.2.2]",
      "  -",
      "port: high",
      "colour: green",
      "offload: { tos: off }",
    ];
    expect(faults({ f: text.join("\n") }).map((each) => each.split(/: known|: did/)[0])).toEqual([
      'f:3:24: networks[0].peers[1] "host" is not an IPv4 or IPv6 address',
      "f:3:30: networks[0].peers[2] 224.0.0.1 is a multicast group, which no VTEP joins here: name each VTEP that is in it",
      "f:4:10: networks[0].mtu must be auto or a whole number from 68 to 65485",
      "f:5:5: networks[0].tpa is no key of a network",
      "f:6:5: networks[0].pears is no key of a network",
      "f:7:5: networks[1].vnj is no key of a network",
      "f:9:5: networks[2].vni is missing",
      "f:10:4: networks[3] must be a mapping with a vni",
      "f:11:7: port must be a whole number from 1 to 65535",
      "f:12:1: colour is no key of the configuration",
      'f:13:10: offload has no "tos"',
    ]);
  });

  it("are found where an alias leads, and at keys that JavaScript has uses for", () => {
    const yaml = "networks:\n  - &a { vni: 1, peers: [host] }\n  - *a\n__proto__: 1\ntoString: 2";
    expect(faults({ f: yaml }).map((each) => each.split(": known")[0])).toEqual([
      "f:2:15: VNI 1 is given to two networks, here and at f:2:15: each needs its own",
      'f:2:26: networks[0].peers[0] "host" is not an IPv4 or IPv6 address',
      'f:2:26: networks[1].peers[0] "host" is not an IPv4 or IPv6 address',
      "f:4:1: __proto__ is no key of the configuration",
      "f:5:1: toString is no key of the configuration",
    ]);
  });

  it("do not hide what is between networks, nor each other", () => {
    const text = [
      "include: nowhere",
      "underlay: dgram",
      "workers: 2",
      "port: high",
      "offload: { tso: maybe, usoo: off, csum: on, gro: 1 }",
      "networks:",
      "  - { vni: 1, name: a, peers: [host], masquerade: true }",
      "  - { vni: 1, name: a, tap: t, peers: [192.0.2.2] }",
      "  - { vni: 2, tap: t, mtu: 1, peers: [192.0.2.2] }",
      "  - { vni: 3 }",
      "  - { vni: x, name: a, tap: t }",
      "  - { vni: 4, tap: 'a b', name: a, bridge: vtep3 }",
      '  - { vni: 5, fdb: { no: host, "01:00:5e:00:00:01": 192.0.2.2, "02:00:00:00:00:01": 5 } }',
    ];
    const twice = (place: string, what: string, there: string) =>
      `${place}: ${what} is given to two networks, here and at ${there}: each needs its own`;
    expect(faults({ f: text.join("\n") }).map((each) => each.split(/, whose frames/)[0])).toEqual([
      "f:1:10: include names nowhere, which is not there: create it, or leave the key out",
      "f:3:10: --workers above 1 needs the native underlay: leave out --underlay dgram",
      "f:4:7: port must be a whole number from 1 to 65535",
      'f:5:10: offload has tso as "maybe": on or off',
      'f:5:10: offload has no "usoo": did you mean "uso"?',
      "f:5:10: offload has gro as 1: on or off",
      'f:7:32: networks[0].peers[0] "host" is not an IPv4 or IPv6 address',
      twice("f:8:12", "VNI 1", "f:7:12"),
      twice("f:8:21", "the name a", "f:7:21"),
      twice("f:9:20", "TAP t", "f:8:29"),
      "f:9:28: networks[2].mtu must be auto or a whole number from 68 to 65485",
      "f:10:5: network 3 has no peer: give one with --peer ADDR (peers:)",
      "f:11:12: networks[4].vni must be a whole number from 0 to 16777215",
      'f:12:20: networks[5].tap "a b" cannot name an interface: at most 15 characters, no spaces, "/", ":" or "%"',
      'f:13:20: networks[6].fdb "no" is not a MAC address (aa:bb:cc:dd:ee:ff)',
      "f:13:20: networks[6].fdb has 01:00:5e:00:00:01, a group address",
      'f:13:26: networks[6].fdb.no "host" is not an IPv4 or IPv6 address',
      "f:13:85: networks[6].fdb.02:00:00:00:00:01 must be an IPv4 or IPv6 address",
    ]);
  });

  it("of two networks are told once for each value that was given", () => {
    const both = (first: string, second: string) =>
      faults({ f: `networks:\n  - ${one(1, first)}\n  - ${one(1, second)}` }).map(
        (each) => each.split(" is given")[0],
      );
    expect(both("", "")).toEqual(["f:3:12: VNI 1"]);
    expect(both(", tap: t", ", tap: t")).toEqual(["f:3:12: VNI 1", "f:3:40: TAP t"]);
    const named = [", tap: t, name: a, vlan: 7", ", tap: t, name: a, vlan: 7"] as const;
    expect(both(...named)).toEqual(["f:3:12: VNI 1", "f:3:40: TAP t", "f:3:49: the name a"]);
    const bridged = ", bridge: b, vlan: 7";
    expect(both(bridged, bridged)).toEqual(["f:3:12: VNI 1", "f:3:52: VLAN 7 of b"]);
    const gateway = ", bridge: b, gateway: [10.9.0.1/24]";
    expect(both(gateway, gateway)).toEqual(["f:3:12: VNI 1", "f:3:55: the gateway of b"]);
  });

  it("are none where many networks share their peers", () => {
    const others = Array.from({ length: 200 }, (_, at) => `  - { vni: ${at + 2}, peers: *all }`);
    const file = write({
      f: `networks:\n  - { vni: 1, peers: &all [192.0.2.2] }\n${others.join("\n")}`,
    });
    const { networks } = load(file, {}).config;
    expect(networks).toHaveLength(201);
    for (const { peers } of networks) expect(peers).toEqual(["192.0.2.2"]);
  });

  it("between networks are told together as well, and none when there is none", () => {
    const networks = "networks: [{ vni: 1 }, { vni: 1 }]";
    expect(faults({ f: `local: 192.0.2.2\n${networks}` })).toHaveLength(3);
    expect(faults({ f: `networks: [${one(1)}]` })).toEqual([]);
  });

  it.each([
    ["a: 1\n---\nb: 2", "f cannot be read: it holds several documents (---): keep one"],
    ["port: !secret x", "f cannot be read: Unresolved tag: !secret at line 1, column 7"],
    [
      `a: &a [x, x]\n${["b", "c", "d", "e", "f", "g", "h"].map((n, at) => `${n}: &${n} [${Array(9).fill(`*${"abcdefgh"[at]}`)}]`).join("\n")}`,
      "f cannot be read: Excessive alias count indicates a resource exhaustion attack",
    ],
  ])("of its syntax: %j", (yaml, sentence) => {
    expect(faults({ f: yaml })).toEqual([sentence]);
  });
});

describe("the name of a network", () => {
  const nameOf = (more: object) => networkConfig({ vni: 7, peers: ["192.0.2.2"], ...more }).name;

  it("is that of its TAP, where that is one", () => {
    expect(nameOf({})).toBe("vtep7");
    expect(nameOf({ tap: "blue.1" })).toBe("blue.1");
    expect(nameOf({ tap: "blue", name: "green" })).toBe("green");
    for (const tap of ["a?b", "-a", "ü", 'a"b', "_a"]) expect(nameOf({ tap })).toBe("vtep7");
  });

  it("needs no escape in a URL, as a file and in a label", () => {
    for (const name of ["a", "0", "A-b_c.d", "x".repeat(63)]) expect(nameOf({ name })).toBe(name);
    for (const name of ["", ".", "..", "-a", "a/b", "a b", "a%b", "é", "a\n", "x".repeat(64)]) {
      expect(() => nameOf({ name }), name).toThrow(/^name ".*" cannot name a network: at most 63/s);
    }
  });
});

describe("a network as plain data", () => {
  it("is completed and checked as in a file, by the names of its keys", () => {
    expect(networkConfig({ vni: 7, peers: ["192.0.2.2"], "clamp-mss": true })).toEqual(
      load(undefined, { vni: "7", peers: ["192.0.2.2"], "clamp-mss": true }).config.networks[0],
    );
    const refused: [unknown, string][] = [
      [undefined, "a network must be a mapping with a vni"],
      [null, "a network must be a mapping with a vni"],
      [[], "a network must be a mapping with a vni"],
      ["x", "a network must be a mapping with a vni"],
      [{}, "vni is missing"],
      [{ vni: null }, "vni must be a whole number from 0 to 16777215"],
      [{ vni: 1, peer: [] }, 'peer is no key of a network: did you mean "peers"?'],
      [{ vni: 1, peers: [5] }, "peers[0] must be an IPv4 or IPv6 address"],
      [{ vni: 1 }, "network 1 has no peer: give one with --peer ADDR (peers:)"],
      [
        { vni: 1, peers: ["192.0.2.2"], bridge: "vtep1" },
        "network 1: vtep1 cannot name both a TAP and a bridge: choose another",
      ],
    ];
    for (const [value, sentence] of refused) {
      expect(() => networkConfig(value), sentence).toThrow(new VtepError("USAGE", sentence));
    }
  });

  it("is checked against the others with the whole configuration", () => {
    const { config } = load(undefined, { vni: "7", peers: ["192.0.2.2"], local: "192.0.2.1" });
    const and = (more: object) => {
      const added = networkConfig({ vni: 8, peers: ["192.0.2.2"], ...more });
      const all = { ...config, networks: [...config.networks, added] };
      return conflicts(all).map(({ message, remedy }) => `${message}: ${remedy}`);
    };
    expect(and({})).toEqual([]);
    expect(and({ vni: 7, tap: "x" })).toEqual([
      "VNI 7 is given to two networks: each needs its own",
    ]);
    expect(and({ name: "vtep7" })[0]).toMatch("the name vtep7 is given to two networks");
    expect(and({ peers: ["192.0.2.1"] })[0]).toMatch("this VTEP's own local address");
  });
});

describe("keys that others read", () => {
  const endpoint = (given: FlagValues) =>
    load(undefined, { vni: "7", peers: ["192.0.2.2"], ...given }).config;

  it("`socket` takes an absolute path that fits into an address, flags one from here", () => {
    const longest = `/${"x".repeat(106)}`;
    expect(endpoint({ socket: longest }).socket).toBe(longest);
    expect(endpoint({ socket: "a/../b.sock" }).socket).toBe(join(process.cwd(), "b.sock"));
    for (const socket of [
      "rel",
      "/",
      "/run/",
      `${longest}x`,
      '"/a\\0b"',
      "5",
      "[]",
      "/ü".repeat(40),
    ]) {
      const [fault] = faults({ f: `socket: ${socket}\nnetworks: [${one(1)}]` });
      expect(fault, socket).toMatch(
        /^f:1:9: socket .*(absolute, and at most 107 bytes|of a socket)$/,
      );
    }
  });

  it("`metrics-listen` takes an address and a port", () => {
    const taken: [string, object][] = [
      ["127.0.0.1:1", { address: "127.0.0.1", port: 1 }],
      ["0.0.0.0:65535", { address: "0.0.0.0", port: 65_535 }],
      ["[::]:9469", { address: "::", port: 9469 }],
      ["[2001:DB8:0::1]:80", { address: "2001:db8::1", port: 80 }],
    ];
    for (const [text, value] of taken) {
      expect(endpoint({ "metrics-listen": text }).metricsListen).toEqual(value);
    }
    for (const text of [
      "",
      "9469",
      ":9469",
      "127.0.0.1",
      "127.0.0.1:0",
      "127.0.0.1:65536",
      "::1:80",
      "[::1]",
      "[127.0.0.1]:80",
      "host:80",
      "127.0.0.1:x",
    ]) {
      expect(() => endpoint({ "metrics-listen": text }), text).toThrow(
        "--metrics-listen must be ADDR:PORT, as in 127.0.0.1:9469 or [::1]:9469",
      );
    }
  });
});

/** Every key has a value that is not its default. */
const EVERYTHING = `
local: 192.0.2.1
port: 4790
underlay: native
source-ports: 50000-50999
dscp: inherit
offload: { tso: off }
workers: 2
busy-poll: 50
strict: true
log-level: warn
socket: /run/other.sock
metrics-listen: "[::1]:9469"
networks:
  - vni: 100
    name: blue
    peers: [${Array.from({ length: 20 }, (_, at) => `2001:db8::${at + 2}`).join(", ")}]
    tap: green
    bridge: br-green
    mtu: 1400
    clamp-mss: true
    fdb: { 00:00:5e:00:53:01: 192.0.2.3, 00:00:5e:00:53:02: 2001:db8::3 }
    age: 10
    fdb-limit: 1000
  - { vni: 200, peers: [192.0.2.2] }
`;

describe("what is shown", () => {
  it("is the same configuration", () => {
    const loaded = load(write({ "vtep.yaml": EVERYTHING }), {});
    const again = load(write({ "again.yaml": shown(loaded) }), {});
    expect(again.config).toEqual(loaded.config);
    const defaults = load(undefined, { vni: "7", peers: ["192.0.2.2"] });
    expect(load(write({ "defaults.yaml": shown(defaults) }), {}).config).toEqual(defaults.config);
  });

  it("says of every value where it came from", () => {
    const file = write({
      "vtep.yaml": "include: conf.d\nport: 4790\nstrict: true",
      "conf.d/a.yaml": `dscp: 1\nnetworks:\n  - vni: 1\n    fdb:\n      00:00:5e:00:53:01: 192.0.2.3\n`,
    });
    const loaded = load(file, { port: "4791", vni: "2", peers: ["192.0.2.2"] });
    const { endpoint, networks } = loaded.sources;
    const said = (sources: object) =>
      Object.entries(sources)
        .map(([key, source]) => [key, withoutRoot(sourceText(source))])
        .filter(([, source]) => source !== "default");
    expect(Object.fromEntries(said(endpoint))).toEqual({
      port: "--port",
      strict: "vtep.yaml:3",
      dscp: "conf.d/a.yaml:1",
    });
    expect(networks.map((each) => Object.fromEntries(said(each)))).toEqual([
      { vni: "conf.d/a.yaml:3", fdb: "conf.d/a.yaml:4" },
      { vni: "--vni", peers: "--peer" },
    ]);
    const lines = withoutRoot(shown(loaded)).split("\n");
    expect(lines.find((line) => line.startsWith("port:"))).toMatch(/^port: 4791 +# --port$/);
    expect(lines.find((line) => line.includes("vni: 1"))).toMatch(
      /^ {2}- vni: 1 +# conf.d\/a.yaml:3$/,
    );
  });
});

describe("the example", () => {
  it("is a configuration as it stands", () => {
    const { config } = load(write({ "vtep.yaml": example() }), {});
    expect(config.networks).toHaveLength(1);
  });

  it("has every key, which can be switched on", () => {
    const all = example().replaceAll(/^( *)#(?=[a-z])/gm, "$1");
    mkdirSync(join(root, "conf.d"));
    // A VLAN has no gateway.
    for (const without of [/^ *vlan: .*$/gm, /^ *(gateway|masquerade): .*$/gm]) {
      expect(() => load(write({ "vtep.yaml": all.replaceAll(without, "") }), {})).not.toThrow();
    }
    const { networks, ...top } = parseYaml(all);
    const present = [...Object.keys(networks[0]), ...Object.keys(top)];
    expect(present.sort()).toEqual(
      keys()
        .map(({ key }) => key)
        .sort(),
    );
  });

  it("is no wider than a terminal of 100 columns", () => {
    for (const line of example().split("\n")) expect(line.length, line).toBeLessThanOrEqual(102);
  });
});

describe("the reference", () => {
  it("has a row for every key, with its sentence and its default", () => {
    const rows = reference()
      .split("\n")
      .filter((line) => line.startsWith("| `"));
    for (const { key, help, required, otherwise } of keys()) {
      const row = rows.find((each) => each.startsWith(`| \`${key}\` |`))!;
      expect(row.toLowerCase(), key).toContain(help.toLowerCase());
      const cell = required ? "required" : (otherwise ?? "none");
      expect(row).toContain(`| ${cell.replaceAll("<", "\\<")} |`);
      expect(row.match(/(?<!\\)\|/g), row).toHaveLength(5);
    }
    expect(rows).toHaveLength(keys().length + 1); // `networks`
  });

  it("names every flag that is called otherwise than its key", () => {
    const renamed = flags().filter(({ key, syntax }) => syntax.split(" ")[0] !== `--${key}`);
    expect(renamed.map(({ key }) => key)).toEqual(["peers", "ranges"]);
    for (const { key, syntax } of renamed)
      expect(reference()).toContain(`\`${key}\` is \`${syntax.split(" ")[0]}\``);
  });
});
