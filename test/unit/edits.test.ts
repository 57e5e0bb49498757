import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { type Config, type NetworkConfig, networkConfig, parse } from "../../src/config.ts";
import { different, readEdits, writeEdits } from "../../src/edits.ts";
import { Notes, surveyEdited } from "../../src/keeping.ts";

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
    writeEdits(directory, [red, blue], live, []);
    const found = readEdits(directory, configured(red, blue));
    expect(found.networks).toEqual(live);
    expect(found).toMatchObject({ outdated: [], fault: undefined });
    expect(found.kept.length > 0).toBe(live.length !== 2 || live[1] !== blue);
  });

  test("is forgotten of a network that is configured anew, and of no other", () => {
    const changed = { ...blue, peers: ["192.0.2.3"] };
    writeEdits(directory, [red, blue], [{ ...red, ageSeconds: 7 }, changed], []);
    const anew = { ...red, fdbLimit: 8 };
    expect(readEdits(directory, configured(anew, blue))).toMatchObject({
      networks: [anew, changed],
      kept: ["blue"],
      outdated: ["red"],
    });
  });

  test.each<[string, NetworkConfig[]]>([
    ["no network", []],
    ["another one with its VNI", [network({ vni: 100, name: "again" }), blue]],
    [
      "two that have swapped their VNIs and TAPs",
      [
        { ...red, vni: 200, tap: "vtep200" },
        { ...blue, vni: 100, tap: "vtep100" },
      ],
    ],
    ["one with the VNI of one that is gone", [{ ...red, vni: 200, tap: "vtep200" }]],
  ])("is there again as a whole: %s", (_, live) => {
    writeEdits(directory, [red, blue], live, []);
    const { networks, outdated } = readEdits(directory, configured(red, blue));
    expect(new Set(networks)).toEqual(new Set(live));
    expect(outdated).toEqual([]);
  });

  test("is forgotten where what is configured has its VNI now", () => {
    writeEdits(directory, [red], [red, blue], []);
    const taken = network({ vni: 200, name: "taken" });
    expect(readEdits(directory, configured(red, taken))).toMatchObject({
      networks: [red, taken],
      kept: [],
      outdated: ["blue"],
    });
  });

  test("is forgotten where a newer edit has its VNI", () => {
    const newer = network({ vni: 200, name: "newer" });
    writeEdits(directory, [red], [red, newer], different([red], [red, blue]));
    expect(readEdits(directory, configured(red))).toMatchObject({
      networks: [red, newer],
      outdated: ["blue"],
    });
  });

  test("is forgotten where a bridge has the name of its TAP now", () => {
    writeEdits(directory, [red], [red, blue], []);
    const bridged = { ...red, bridge: "vtep200" };
    const { networks, outdated } = readEdits(directory, configured(bridged));
    expect([networks, outdated]).toEqual([[bridged], ["blue"]]);
  });

  const file = () => join(directory, "edits.json");

  test.each(["", "{", "7", '[{"name":'])("is put aside where it is damaged: %j", (text) => {
    writeFileSync(file(), text);
    const { networks, fault } = readEdits(directory, configured(blue));
    expect(networks).toEqual([blue]);
    expect(fault).toContain(`it is ${file()}.bad now`);
    expect(readFileSync(`${file()}.bad`, "utf8")).toBe(text);
  });

  test("waits where this version cannot read it, and holds up no other", () => {
    writeEdits(directory, [red, blue], [red], []);
    const [edit] = JSON.parse(readFileSync(file(), "utf8"));
    const later = { name: "red", said: { vni: 100, later: 1 }, is: null };
    writeFileSync(file(), JSON.stringify([later, {}, null, edit]));
    const { networks, unread } = readEdits(directory, configured(red, blue));
    expect(networks).toEqual([red]);
    const superseded = { name: "blue", said: null, is: null };
    writeEdits(directory, [red, blue], networks, [...unread, superseded]);
    expect(JSON.parse(readFileSync(file(), "utf8"))).toEqual([edit, later, {}, null]);
  });

  test("is not tried again, if it could not be done, of a network that the API has changed since", () => {
    writeEdits(directory, [red], [red, blue], []);
    const given = configured(red);
    const edited = readEdits(directory, given);
    let live = [red];
    const present = { networks: () => live } as never;
    const notes = new Notes(
      directory,
      given.networks,
      edited,
      new Map([["blue", "because"]]),
      present,
      pino({ level: "silent" }),
    );
    notes.rememberEdits();
    expect(readEdits(directory, given).kept).toEqual(["blue"]);
    for (live of [[red, { ...blue, ageSeconds: 7 }], [red]]) notes.rememberEdits();
    expect(readEdits(directory, given)).toMatchObject({ networks: [red], kept: [] });
  });

  describe("is done but for what the host refuses", () => {
    const impossible = { bridge: "lo", mtu: 1400 }; // there is no host where that is a bridge
    const here = (given: object) => network({ peers: ["127.0.0.2"], ...given });
    const surveyed = (said: NetworkConfig[], left: NetworkConfig[]) => {
      writeEdits(directory, said, left, []);
      const given = configured(...said);
      const edited = readEdits(directory, given);
      const before = { edited, kept: {}, snapshot: undefined, unwanted: [], haveToGoFirst: false };
      return surveyEdited(given, before);
    };
    const done = async (said: NetworkConfig[], left: NetworkConfig[]) => {
      const { config, refused } = await surveyed(said, left);
      return [config.networks, Object.fromEntries(refused)];
    };
    const one = here({ vni: 1, name: "one" });
    const two = here({ vni: 2, name: "two" });
    const three = here({ vni: 3, name: "three" });
    const no = "network 9: lo exists and is no bridge: name another";

    test("a network more", async () => {
      const wrong = here({ vni: 9, name: "wrong", ...impossible });
      expect(await done([one], [one, two, wrong, three])).toEqual([
        [one, two, three],
        { wrong: no },
      ]);
    });

    test("but nothing where the host refuses what is configured, too", async () => {
      const wrong = here({ vni: 9, name: "wrong", ...impossible });
      const worse = here({ vni: 8, name: "worse", ...impossible });
      await expect(done([wrong], [wrong, worse])).rejects.toThrow(no);
      const alone = { ...one, peers: [], mtu: 1400 };
      await expect(done([alone], [alone])).rejects.toThrow("no network has a peer");
    });

    test("with sockets that are large enough for what is configured otherwise, and nothing else of it", async () => {
      const small = here({ vni: 1, name: "one", mtu: 1300 });
      const large = here({ vni: 2, name: "two", mtu: 1400, bridge: "vtepnone" });
      const { config, found, largestMtu } = await surveyed([small, large], [small]);
      expect(config).toEqual(configured(small));
      expect([found.mtus, largestMtu, found.missingBridges]).toEqual([[1300], 1400, []]);
      const both = await surveyed([small], [small, large]);
      expect([both.found.mtus, both.found.missingBridges]).toEqual([[1300, 1400], ["vtepnone"]]);
    });

    test("another that needs the VNI of one that was refused", async () => {
      const moved = here({ vni: 9, name: "two", ...impossible });
      const heir = here({ vni: 2, name: "heir" });
      expect(await done([one, two], [one, moved, heir, three])).toEqual([
        [one, two, three],
        { two: no, heir: "what is as configured instead has its VNI, TAP, VLAN or gateway" },
      ]);
    });

    test("one without which nothing would start", async () => {
      const mended = here({ vni: 9, name: "wrong" });
      const wrong = here({ vni: 9, name: "wrong", ...impossible });
      expect(await done([wrong], [mended, two])).toEqual([[mended, two], {}]);
      const worse = here({ vni: 8, name: "worse", ...impossible });
      expect(await done([wrong], [mended, two, worse])).toEqual([
        [mended, two],
        { worse: no.replace("9", "8") },
      ]);
    });
  });

  test("counts where an older version had fewer keys", () => {
    writeEdits(directory, [blue], [{ ...blue, ageSeconds: 7 }], []);
    const [edit] = JSON.parse(readFileSync(file(), "utf8"));
    delete edit.said["clamp-mss"];
    writeFileSync(file(), JSON.stringify([edit]));
    expect(readEdits(directory, configured(blue)).kept).toEqual(["blue"]);
  });

  test("is read in no time, however much it is", () => {
    const many = Array.from({ length: 4_000 }, (_, at) => network({ vni: 1_000 + at }));
    writeEdits(directory, [red], [red, ...many], []);
    const began = performance.now();
    expect(readEdits(directory, configured(red)).networks).toHaveLength(4_001);
    expect(performance.now() - began).toBeLessThan(5_000);
  });
});
