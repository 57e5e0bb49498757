import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { type Config, type NetworkConfig, networkConfig, parse } from "../../src/config.ts";
import { readEdits, writeEdits } from "../../src/edits.ts";

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "vtep-edits-"));
});
afterEach(() => rmSync(directory, { recursive: true }));

function network(given: object): NetworkConfig {
  return networkConfig({ peers: ["192.0.2.2"], ...given });
}

function configured(...networks: NetworkConfig[]): Config {
  const found = parse({ networks: [{ vni: 1, peers: ["192.0.2.2"] }] });
  if ("faults" in found) throw new Error(found.faults[0]!.message);
  return { ...found.config, networks };
}

const red = network({ vni: 100, name: "red", bridge: "br0", ranges: ["10.1.0.8-10.1.0.15/24"] });
const blue = network({ vni: 200, name: "blue" });

describe("what the API left", () => {
  test.each<[string, NetworkConfig[]]>([
    ["nothing but what is configured", [red, blue]],
    ["a network more", [red, blue, network({ vni: 300, name: "green", vlan: 7 })]],
    ["one less", [blue]],
    [
      "other peers and entries",
      [
        red,
        network({
          vni: 200,
          name: "blue",
          peers: ["2001:db8::2"],
          fdb: { "02:00:00:00:00:01": "192.0.2.9" },
        }),
      ],
    ],
    ["a network without a peer", [red, { ...blue, peers: [] }]],
  ])("is there again: %s", (_, live) => {
    writeEdits(directory, [red, blue], live);
    const found = readEdits(directory, configured(red, blue));
    expect(found.networks).toEqual(live);
    expect(found.outdated).toEqual([]);
    expect(found.kept.length > 0).toBe(live.length !== 2 || live[1] !== blue);
  });

  test("is forgotten of a network that is configured anew, and of no other", () => {
    const changed = { ...blue, peers: ["192.0.2.3"] };
    writeEdits(directory, [red, blue], [{ ...red, ageSeconds: 7 }, changed]);
    const anew = { ...red, fdbLimit: 8 };
    expect(readEdits(directory, configured(anew, blue))).toEqual({
      networks: [anew, changed],
      kept: ["blue"],
      outdated: ["red"],
    });
  });

  test("is forgotten where no network would be left", () => {
    writeEdits(directory, [red], []);
    expect(readEdits(directory, configured(red))).toEqual({
      networks: [red],
      kept: [],
      outdated: ["red"],
    });
  });

  test("is forgotten where what is configured has its VNI now", () => {
    writeEdits(directory, [red], [red, blue]);
    const taken = network({ vni: 200, name: "taken" });
    expect(readEdits(directory, configured(red, taken))).toEqual({
      networks: [red, taken],
      kept: [],
      outdated: ["blue"],
    });
  });

  test.each(["", "{", "[{}]", '[{"name":"red","said":null,"is":{"name":"red","vni":"x"}}]'])(
    "counts for nothing where the file is damaged: %j",
    (text) => {
      writeFileSync(join(directory, "edits.json"), text);
      expect(readEdits(directory, configured(blue)).networks).toEqual([blue]);
    },
  );
});
