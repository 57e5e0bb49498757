import { describe, expect, it } from "vitest";
import {
  brief,
  draw,
  FIRST_VIEW,
  History,
  type Key,
  press,
  type Status,
  sparkline,
  type View,
} from "../../src/commands/screen.ts";
import { Counter } from "../../src/counters.ts";
import type { Counts, Drops, NetworkStatus } from "../../src/operations.ts";

const SIZE = { rows: 24, columns: 80, hasColours: false, isUtf8: true };
const NONE = Object.fromEntries(Object.keys(Counter).map((name) => [name, 0])) as Counts;

function network(name: string, counters: Partial<Counts> = {}, drops: Drops = {}): NetworkStatus {
  return {
    name,
    vni: 100,
    tap: "vtep100",
    bridge: undefined,
    vlan: undefined,
    gateway: [],
    ranges: [],
    mac: "02:00:00:00:00:01",
    mtu: 1450,
    peers: [],
    counters: { ...NONE, ...counters },
    drops,
    fdb: { learned: 3, control: 0, static: 1 },
  };
}

function status(networks: NetworkStatus[], more: Partial<Status> = {}): Status {
  return {
    version: "0.1.0",
    pid: 1,
    uptimeSeconds: 3700,
    local: ["192.0.2.1"],
    port: 4789,
    underlay: "native",
    workers: 2,
    capabilities: {} as never,
    offloads: {} as never,
    refusedOffloads: [],
    drops: {},
    refused: 0,
    paths: [],
    networks,
    gone: [],
    remotes: [],
    ...more,
  };
}

/** Statuses one second apart. */
function history(...statuses: Status[]): History {
  const [first, ...others] = statuses;
  const made = new History(first!, 1000);
  for (const [at, one] of others.entries()) made.add(one, 2000 + 1000 * at);
  return made;
}

function pressed(made: History, ...keys: (string | Key)[]): View {
  return keys.reduce((view: View, key) => {
    const real = typeof key === "string" ? { sequence: key, name: key.toLowerCase() } : key;
    return press(view, real, made)!;
  }, FIRST_VIEW);
}

/** The first words of the rows of a table. */
function names(lines: readonly string[], title = "NETWORK"): string[] {
  const from = lines.findIndex((line) => line.startsWith(title)) + 1;
  const end = lines.findIndex((line, at) => at >= from && line === "");
  return lines.slice(from, end).map((line) => line.split(" ")[0]!);
}

const THREE = history(
  status([network("blue"), network("green"), network("red10"), network("red9")]),
  status([
    network("blue", { encapFrames: 2000, encapBytes: 2_000_000, decapFrames: 10 }),
    network("green", { encapFrames: 500, encapBytes: 50_000, decapFrames: 900 }, { FULL_RING: 7 }),
    network("red10"),
    network("red9"),
  ]),
);

describe("the screen of top", () => {
  it("shows rates of each network and of all, and the reasons of drops", () => {
    const lines = draw(THREE, FIRST_VIEW, SIZE);
    expect(lines[0]).toBe("vtep 0.1.0  192.0.2.1 port 4789  native, 2 workers  up 1 h 1 min");
    expect(lines[1]).toMatch(/^encap 2\.50k frames\/s 16\.4Mbit\/s .*decap {3}910 frames\/s/);
    expect(lines[2]).toBe("drops     7/s FULL_RING 7");
    expect(lines[4]).toBe(
      "NETWORK            VNI    FDB ENCAP/s  bit/s▾ DECAP/s   bit/s DROP/s TREND".padEnd(80),
    );
    expect(lines[5]).toBe(
      "blue               100      4   2.00k   16.0M      10       0      0           █",
    );
    expect(lines[6]).toBe(
      "green              100      4     500    400k     900       0      7           █",
    );
  });

  it.each([
    [24, 80],
    [8, 40],
    [3, 20],
    [60, 200],
  ])("fits into %i rows and %i columns", (rows, columns) => {
    const many = Array.from({ length: 100 }, (_, at) => network(`network-${at}-with-a-long-name`));
    const made = history(status(many), status(many));
    for (const view of [FIRST_VIEW, pressed(made, "?"), pressed(made, "/", "a")]) {
      const lines = draw(made, view, { ...SIZE, rows, columns });
      expect(lines).toHaveLength(rows);
      for (const line of lines) expect(line.length).toBeLessThanOrEqual(columns);
    }
  });

  it("sorts by the column that is chosen, down or up, numbers in names as numbers", () => {
    const shown = (...keys: string[]) => names(draw(THREE, pressed(THREE, ...keys), SIZE));
    expect(shown()).toEqual(["blue", "green", "red9", "red10"]);
    expect(shown("s")).toEqual(["green", "blue", "red9", "red10"]);
    expect(shown("s", "r")).toEqual(["red9", "red10", "blue", "green"]);
    expect(shown("S", "S", "S", "S")).toEqual(["blue", "green", "red9", "red10"]);
    expect(shown("S", "S", "S", "S", "r")).toEqual(["red10", "red9", "green", "blue"]);
  });

  it("shows what contains the text that is typed, until Escape", () => {
    const shown = (...keys: (string | Key)[]) => {
      const lines = draw(THREE, pressed(THREE, ...keys), SIZE);
      return [names(lines), lines.at(-1)];
    };
    expect(shown("/", "r", "e", "d")).toEqual([["red9", "red10"], "show only what contains: red_"]);
    const back = { name: "backspace" };
    expect(shown("/", "r", "e", "d", "1", back)[0]).toEqual(["red9", "red10"]);
    expect(shown("/", "q", { name: "return" })[0]).toEqual([]);
    expect(shown("/", "b", { name: "return" }, "r")[1]).toContain('only "b" (Esc: all)');
    expect(shown("/", "b", { name: "return" }, { name: "escape" })[0]).toHaveLength(4);
  });

  it("scrolls the table in focus, no further than it is long", () => {
    const many = Array.from({ length: 50 }, (_, at) => network(`n${at}`));
    const made = history(status(many), status(many));
    const shown = (...keys: Key[]) => names(draw(made, pressed(made, ...keys), SIZE));
    expect(shown()[0]).toBe("n0");
    expect(shown({ name: "down" }, { name: "pagedown" })[0]).toBe("n11");
    const far = Array(60).fill({ name: "pagedown" });
    expect(shown(...far).at(-1)).toBe("n49");
    expect(shown(...far, { name: "home" })[0]).toBe("n0");
    expect(draw(made, FIRST_VIEW, SIZE).join("\n")).toMatch(/ \d+ of 50 /);
  });

  it("shows remotes with what they sent and got, and the path that was learned", () => {
    const remote = (address: string, toFrames: number, state: "up" | "down" = "up") => {
      const sent = { toFrames, toBytes: toFrames * 100, fromFrames: 0, fromBytes: 0 };
      return { address, ...sent, refused: 0, state };
    };
    const paths = [{ address: "2001:db8::2", mtu: 1400 }];
    const remotes = [remote("192.0.2.2", 0), remote("2001:db8::2", 0)];
    const later = [remote("192.0.2.2", 5, "down"), remote("2001:db8::2", 1000)];
    const made = history(status([], { remotes, paths }), status([], { remotes: later, paths }));
    const lines = draw(made, pressed(made, { name: "tab" }), SIZE);
    const at = lines.findIndex((line) => line.startsWith("REMOTE"));
    expect(lines[at + 1]).toMatch(/^2001:db8::2 +1400 +1\.00k +800k +0 +0 +█$/);
    expect(lines[at + 2]).toMatch(/^\(down\) 192\.0\.2\.2 +- +5 +4\.00k +0 +0 +█$/);
  });

  it("has no rate over a restart, and goes on after it", () => {
    const at = (encapFrames: number) => status([network("blue", { encapFrames })]);
    const made = history(at(1000), at(3000), at(10));
    expect(made.rates("network blue").map(({ toFrames }) => toFrames)).toEqual([2000]);
    made.add(at(110), 5000);
    expect(made.latest("network blue").toFrames).toBe(50);
  });

  it("forgets a network that is gone", () => {
    const made = history(status([network("blue")]), status([]));
    expect(names(draw(made, FIRST_VIEW, SIZE))).toEqual([]);
    expect(made.rates("network blue")).toEqual([]);
  });

  it("names networks that are to be and are not, for as long as that is", () => {
    const gone = ["blue", "red"].map((name) => ({ name, vni: 7, tap: "t", reason: "no TAP" }));
    const made = history(status([network("a")], { gone }), status([network("a")], { gone }));
    const line = "gone  2, vtep status says why: blue, red";
    expect(draw(made, FIRST_VIEW, SIZE)).toContain(line);
    made.add(status([network("a")]), 3000);
    expect(draw(made, FIRST_VIEW, SIZE)).not.toContain(line);
  });

  it("says how many networks are gone, and who knows why, where it cannot name all of them", () => {
    const gone = Array.from({ length: 4000 }, (_, at) => {
      return { name: `net${at}`, vni: at, tap: "t", reason: "no TAP" };
    });
    const made = history(status([network("a")], { gone }));
    const lines = draw(made, FIRST_VIEW, { ...SIZE, columns: 80 });
    expect(
      lines.filter((line) => /^gone {2}4000, vtep status says why: net0, net1/.test(line)),
    ).toHaveLength(1);
  });

  it("says why there is nothing new, until there is", () => {
    const made = history(status([network("blue")]));
    made.trouble = "the agent is not reachable";
    expect(draw(made, FIRST_VIEW, SIZE).at(-1)).toBe("the agent is not reachable");
    made.add(status([network("blue")]), 3000);
    expect(draw(made, FIRST_VIEW, SIZE).at(-1)).toMatch(/^q quit/);
  });

  it.each([
    [80, 24],
    [40, 24],
    [20, 5],
  ])("says all of why, in lines of %i columns", (columns, rows) => {
    const made = history(status([network("blue")]));
    const path = `/run/${"long/".repeat(18)}vtep.sock`;
    made.trouble = `the agent is not reachable at ${path} (it has ended): start it with vtep run`;
    const lines = draw(made, FIRST_VIEW, { ...SIZE, columns, rows });
    expect(lines).toHaveLength(rows);
    for (const line of lines) expect(line.length).toBeLessThanOrEqual(columns);
    const words = made.trouble.replaceAll(" ", "");
    const said = lines.join("").replaceAll(" ", "");
    if (rows > 5) expect(said.endsWith(words)).toBe(true);
    else expect(said).toMatch(/^theagentisnotreachable/); // its beginning, where all is too much
  });

  it("is helped with, and ended, by keys", () => {
    const help = draw(THREE, pressed(THREE, "?"), SIZE);
    expect(help.join("\n")).toContain("Ctrl-C    quit");
    expect(names(draw(THREE, pressed(THREE, "?", "x"), SIZE))).toHaveLength(4);
    expect(press(FIRST_VIEW, { name: "q", sequence: "q" }, THREE)).toBeUndefined();
    expect(press(pressed(THREE, "/"), { name: "c", ctrl: true }, THREE)).toBeUndefined();
    expect(press(FIRST_VIEW, { name: "f5" }, THREE)).toBe(FIRST_VIEW);
  });

  it("is plain where there is neither UTF-8 nor colour", () => {
    const lines = draw(THREE, FIRST_VIEW, { ...SIZE, isUtf8: false });
    expect(lines.join("")).toMatch(/^[\x20-\x7e]*$/);
    expect(draw(THREE, FIRST_VIEW, { ...SIZE, hasColours: true }).join("")).toContain("\x1b[");
  });
});

describe("a sparkline", () => {
  it("is in proportion to its greatest value, the last one to the right", () => {
    expect(sparkline([0, 1, 50, 100], 6, true)).toBe("  ▁▂▅█");
    expect(sparkline([9, 9, 0, 100], 2, true)).toBe("▁█");
    expect(sparkline([], 3, true)).toBe("   ");
    expect(sparkline([0, 0], 2, true)).toBe("▁▁");
  });
});

describe("a number", () => {
  it.each([
    [0, "0"],
    [0.04, "0"],
    [0.5, "0.5"],
    [9.94, "9.9"],
    [12.4, "12"],
    [999.4, "999"],
    [999.6, "1.00k"],
    [12_345, "12.3k"],
    [999_499, "999k"],
    [999_500, "1.00M"],
    [1.2e9, "1.20G"],
  ])("%d has at most five characters: %s", (value, text) => {
    expect(brief(value)).toBe(text);
  });
});
