/** What is asked of ip, and what is made of its answers and refusals: an `ip` of the test's own. */
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pino } from "pino";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { Bridges } from "../../src/bridges.ts";
import { surroundings, vxlanDeviceOn } from "../../src/host.ts";
import { batch, batchOfEach } from "../../src/iproute.ts";
import { ParkedQueues } from "../../src/keeping.ts";
import { createBridges, removeIdleBridges, removeTaps } from "../../src/links.ts";
import { type Shim, shim } from "../lab/shim.ts";

let ip: Shim;
const file = (name: string) => join(ip.directory, name);

/** Links are as written; a batch, or a change by itself, ends as `ends` says, or well. */
beforeEach(() => {
  ip = shim(`case "$*" in
    *show*) cat $here/links;;
    *get*|*-batch*) { echo "$*"; cat; } | grep -v '^$' >>$here/asked;;
    *) echo "$*" >>$here/asked;;
  esac
  case "$*" in
    *"-j -batch"*) if grep -q fibmatch $here/asked; then cat $here/matches; else cat $here/routes; fi; [ ! -e $here/says ] || cat $here/says >&2; exit $(cat $here/code);; *show*) ;; *) [ ! -e $here/ends ] || . $here/ends "$@";; esac`);
  vi.stubEnv("PATH", ip.path.slice("PATH=".length));
  has([]);
});
afterEach(() => {
  vi.unstubAllEnvs();
  ip[Symbol.dispose]();
});

/** `matches` are of what is asked of routes, `routes` else. */
function has(
  links: readonly object[],
  routes: readonly object[] = [],
  matches: readonly object[] = [],
): void {
  writeFileSync(file("links"), JSON.stringify(links));
  for (const [name, rows] of Object.entries({ routes, matches })) {
    writeFileSync(file(name), rows.map((row) => `${JSON.stringify([row])}\n`).join(""));
  }
  writeFileSync(file("code"), "0");
}

/** In the words of a shell. */
function ends(script: string): void {
  writeFileSync(file("ends"), script);
}

/** In lines; the first of a batch is how ip was called. */
function asked(): string[] {
  if (!existsSync(file("asked"))) return [];
  const lines = readFileSync(file("asked"), "utf8").trimEnd().split("\n");
  rmSync(file("asked"));
  return lines;
}

describe("the way to peers", () => {
  const eth0 = (...addr_info: object[]) => ({ ifname: "eth0", mtu: 1500, addr_info });
  const to = (dst: string, prefsrc: string) => ({ dst, dev: "eth0", prefsrc });

  test.each([
    ["is", "192.0.2.1", " from 192.0.2.1", ""],
    ["is, of IPv6,", "2001:db8::1", "", " from 2001:db8::1"],
    ["is not", "192.0.2.7", "", ""],
  ])("is asked for from a local address that %s this host's", async (_, local, from4, from6) => {
    const addresses = [{ local: "192.0.2.1" }, { local: "2001:db8::1" }];
    const routes = [to("198.51.100.2", "192.0.2.9"), to("2001:db8:1::2", "2001:db8::9")];
    has([eth0(...addresses)], routes);
    const found = await surroundings(["198.51.100.2", "2001:db8:1::2"], { local, port: 4789 });
    expect(asked()).toEqual([
      "-force -j -batch -",
      `route get 198.51.100.2${from4} ipproto udp dport 4789`,
      `route get 2001:db8:1::2${from6} ipproto udp dport 4789`,
    ]);
    expect([...found.routes.values()].map(({ source }) => source)).toEqual([
      from4 === "" ? "192.0.2.9" : "192.0.2.1",
      from6 === "" ? "2001:db8::9" : "2001:db8::1",
    ]);
  });

  test.each([
    ["one that lasts", {}, "2001:db8::1"],
    ["none that is temporary too", { temporary: true }, "2001:db8::9"],
    ["none from which nothing new is to be sent", { deprecated: true }, "2001:db8::9"],
    ["none that may be another's", { tentative: true }, "2001:db8::9"],
    ["one that may be used meanwhile", { tentative: true, optimistic: true }, "2001:db8::1"],
    ["none of another subnet", { local: "2001:db8:0:1::1" }, "2001:db8::9"],
  ])("begins, beside a temporary address, at %s", async (_, given, source) => {
    const temporary = { local: "2001:db8::9", prefixlen: 64, temporary: true };
    const other = { local: "2001:db8::1", prefixlen: 64, ...given };
    has([eth0(temporary, other)], [to("2001:db8:1::2", "2001:db8::9")]);
    const { routes } = await surroundings(["2001:db8:1::2"], { local: undefined, port: 4789 });
    expect(routes.get("2001:db8:1::2")!.source).toBe(source);
  });
});

describe("the MTU of the way to a peer", () => {
  const peers = ["192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6"];
  const of = async (addresses: readonly string[]) => {
    const { routes } = await surroundings(addresses, { local: undefined, port: 4789 });
    return [...routes.values()].map(({ mtu }) => mtu);
  };

  test("is its route's, but no more than its device's, and not what ICMP has told", async () => {
    const [one, two, three, four, five] = peers.map((dst) => {
      return { dst, dev: "also", prefsrc: "192.0.2.1" };
    });
    const links = [{ ifname: "eth0", altnames: ["also"], mtu: 1450 }];
    const learned = { expires: 60, metrics: [{ mtu: 600 }] };
    const routes = [
      one!,
      { ...two, metrics: [{}, { mtu: 1400 }] },
      { ...three, metrics: [{ mtu: 9000 }] },
      { ...four, ...learned },
      { ...five, ...learned },
    ];
    const prefix = { dst: "192.0.2.0/24" };
    has(links, routes, [{ ...prefix, metrics: [{ mtu: 1300 }] }, prefix]);
    expect(await of(peers)).toEqual([1450, 1400, 1450, 1300, 1450]);
    expect(asked().filter((line) => line.includes("fibmatch"))).toEqual([
      "route get fibmatch 192.0.2.5 ipproto udp dport 4789",
      "route get fibmatch 192.0.2.6 ipproto udp dport 4789",
    ]);
  });

  test("is none where the kernel says that no route leads there; else ip has failed", async () => {
    has([{ ifname: "eth0", mtu: 1500 }], [{ dst: "192.0.2.3", dev: "eth0", prefsrc: "192.0.2.1" }]);
    writeFileSync(file("code"), "2");
    writeFileSync(file("says"), "RTNETLINK answers: Network is unreachable\n");
    expect(await of(peers.slice(0, 2))).toEqual([1500]);
    writeFileSync(file("says"), "Cannot open netlink socket\n");
    await expect(of(peers)).rejects.toThrow('"ip route get" failed: Cannot open netlink socket');
  });
});

test("a kernel VXLAN device is told by its port", async () => {
  const device = (ifname: string, port?: number) => {
    return { ifname, mtu: 1450, linkinfo: { info_kind: "vxlan", info_data: { port } } };
  };
  has([{}, device("vx0"), device("vx1", 8472), device("vx2", 4789)]);
  expect(await vxlanDeviceOn(4789)).toBe("vx2");
  expect(await vxlanDeviceOn(4790)).toBeUndefined();
});

describe("changes", () => {
  const change = (name: string, ...more: string[]) => {
    return { does: `changing ${name}`, words: ["link", "set", "dev", name, ...more] };
  };
  const plain = [change("a"), change("b"), change("c")];
  /** One that a batch cannot be told, so that each is made by itself. */
  const odd = [change("a"), change("b", "alias", "x y"), change("c")];

  test("are said at once, and none at all is not said", async () => {
    expect(await batch([])).toBeUndefined();
    expect(await batchOfEach([])).toEqual([]);
    expect(asked()).toEqual([]);
    expect(await batch(plain)).toBeUndefined();
    const lines = ["link set dev a", "link set dev b", "link set dev c"];
    expect(asked()).toEqual(["-batch -", ...lines]);
  });

  test.each([
    ["the line that failed", "Command failed -:2", 1, "changing b failed: no"],
    ["no line", "", 3, "changing links failed: no"],
  ])("fail at %s", async (_, line, at, message) => {
    ends(`echo no >&2; echo "${line}" >&2; exit 1`);
    expect(await batch(plain)).toMatchObject({ at, error: { code: "LINK", message } });
  });

  test.each([
    "RTNETLINK answers: Operation not permitted",
    "nsenter: cannot open /run/netns/a: Permission denied",
  ])("fail for want of a right: %s", async (refusal) => {
    ends(`echo "${refusal}" >&2; exit 2`);
    expect((await batch(plain))!.error).toMatchObject({ code: "PERMISSION" });
  });

  test.each(["", "x y", "x\ty", "x#y", "x'y", 'x"y', "x\\y"])(
    "are made one by one where a batch would read %j as something else",
    async (word) => {
      expect(await batch([change("a", "alias", word), change("b")])).toBeUndefined();
      expect(asked()).toEqual([`link set dev a alias ${word}`, "link set dev b"]);
    },
  );

  test.each([
    ["stop at the first that fails", {}, 2],
    ["go on after one that fails where they are to", { options: ["-force"] }, 3],
  ])("that are made one by one %s", async (_, manner, count) => {
    ends(`case "$*" in *" a") ;; *) echo "no $4" >&2; exit 1;; esac`);
    const failed = await batch(odd, manner);
    expect(failed).toMatchObject({ at: 1, error: { message: "changing b failed: no b" } });
    const lines = ["link set dev a", "link set dev b alias x y", "link set dev c"];
    expect(asked()).toEqual(lines.slice(0, count));
  });

  test("that are made each by itself have failed, too, where ip does not say which", async () => {
    ends("echo no >&2; exit 1");
    expect(await batchOfEach(plain)).toMatchObject([{ message: "changing links failed: no" }]);
  });

  test.each([
    ["at once", plain],
    ["one by one", odd],
  ])("that are made each by itself tell of each that failed: %s", async (_, changes) => {
    ends(`case "$*" in
      *-batch*) printf 'no a\\nCommand failed -:1\\nno c\\nat all\\nCommand failed -:3\\n' >&2; exit 1;;
      *" a"|*" c") echo "no $4" >&2; exit 1;;
    esac`);
    expect((await batchOfEach(changes)).map(({ message }) => message)).toEqual([
      "changing a failed: no a",
      "changing c failed: no c",
    ]);
  });
});

test("a queue is longer while nobody reads it, unless it is long or none, and then as it was", async () => {
  const tap = (ifname: string, txqlen?: number) => ({ ifname, mtu: 1450, txqlen });
  has([tap("a", 1000), tap("b", 10_000), tap("c", 0), tap("d"), tap("e", 9_999), tap("f", 500)]);
  const queues = new ParkedQueues({ f: 500, g: 7 });
  await queues.lengthen(new Set(["a", "b", "c", "d", "e", "gone"]));
  const called = "-force -batch -";
  const set = (name: string, length: number) => `link set dev ${name} txqueuelen ${length}`;
  expect(asked()).toEqual([called, set("a", 10_000), set("e", 10_000)]);
  expect(queues.lengths).toEqual({ a: 1000, e: 9_999, f: 500, g: 7 });
  await queues.restore(new Set(["a", "f"]));
  expect(asked()).toEqual([called, set("f", 500), set("a", 1000)]);
  expect(queues.lengths).toEqual({});
});

test("TAPs are removed that are ours, and nothing else that has their names", async () => {
  const tap = (name: string) => ({ name, mac: "02:00:00:00:00:01", mtu: 1450, bridge: undefined });
  const there = (ifname: string, info_kind: string, address: string) => {
    return { ifname, mtu: 1450, address, linkinfo: { info_kind } };
  };
  const { mac } = tap("a");
  has([there("a", "tun", mac), there("b", "tun", "02:00:00:00:00:02"), there("c", "veth", mac)]);
  await removeTaps(["b", "c", "gone"].map(tap));
  expect(asked()).toEqual([]);
  await removeTaps(["a", "b", "c", "gone"].map(tap));
  const [, set, del] = asked();
  expect([set, del].map((line) => line!.replace(/\d+$/, "N"))).toEqual([
    "link set dev a group N",
    "link del group N",
  ]);
});

describe("bridges", () => {
  const bridge = (ifname: string, more: object = {}) => {
    return { ifname, mtu: 1500, linkinfo: { info_kind: "bridge" }, ...more };
  };

  test("that were made before one could not be are removed, and no other", async () => {
    has([bridge("br1"), bridge("br2"), bridge("br3")]);
    ends(
      `[ -e $here/once ] && exit; touch $here/once; printf 'no\\nCommand failed -:3\\n' >&2; exit 1`,
    );
    const made = createBridges(["br1", "br2", "br3"]);
    await expect(made).rejects.toThrow("creating bridge br3 failed: no");
    const lines = asked();
    expect(lines.at(-1)).toMatch(/^link del group \d+$/);
    const grouped = lines.filter((line) => line.includes(" group "));
    expect(grouped.slice(0, -1).map((line) => line.split(" ")[3])).toEqual(["br1", "br2"]);
    for (const name of ["br1", "br2", "br3"]) expect(lines).toContain(`link set dev ${name} up`);
    rmSync(file("once"));
    ends(`printf 'no\\nCommand failed -:3\\n' >&2; exit 1`);
    const left = createBridges(["br1", "br2", "br3"]);
    await expect(left).rejects.toThrow(
      /^creating bridge br3 failed: no, and removing br1, br2 failed/,
    );
    ends("exit 0");
    asked();
    await createBridges(["br1"]);
    expect(asked().slice(1)).toEqual(["link add name br1 type bridge", "link set dev br1 up"]);
  });

  test("stay where somebody else has a port, or gave them an address", async () => {
    const address = (local: string, more: object = {}) => {
      return { addr_info: [{ local, prefixlen: 24, scope: "global", ...more }] };
    };
    has([
      bridge("idle"),
      bridge("linked", address("fe80::1", { scope: "link" })),
      bridge("routed", address("2001:db8::1", { dynamic: true })),
      bridge("ours", address("192.0.2.1")),
      bridge("theirs", address("192.0.2.1")),
      bridge("used"),
      { ifname: "vtep1", mtu: 1450, master: "ours" },
      { ifname: "eth1", mtu: 1450, master: "used" },
      { ifname: "none", mtu: 1450 },
    ]);
    const names = ["idle", "linked", "routed", "ours", "theirs", "used", "none", "gone"];
    const own = { ports: new Set(["vtep1"]), addresses: new Set(["ours 192.0.2.1/24"]) };
    const removed = () => asked().at(-1) !== undefined;
    expect(await removeIdleBridges(names, own)).toEqual(["theirs", "used"]);
    const lines = asked();
    expect(lines[0]).toBe("-force -batch -");
    expect(lines.slice(1, -1).map((line) => line.split(" ")[3])).toEqual([
      "idle",
      "linked",
      "routed",
      "ours",
    ]);
    expect(await removeIdleBridges(["ours", "theirs", "used"])).toEqual(["ours", "used"]);
    expect(removed()).toBe(true);
    expect(await removeIdleBridges(["used"])).toEqual(["used"]);
    expect(removed()).toBe(false);
  });

  test("that were made go when no network has them, and are nobody's then; those in use are told of", async () => {
    const lines: object[] = [];
    const log = pino({}, { write: (line) => lines.push(JSON.parse(line)) });
    const bridges = new Bridges(["before"], false, log);
    await bridges.make(["made"]);
    expect(bridges.names).toEqual(["before", "made"]);
    has([bridge("before"), bridge("made"), { ifname: "eth1", mtu: 1450, master: "made" }]);
    asked();
    await bridges.removeIdle(new Set(["before", "made"]));
    expect(asked()).toEqual([]);
    await bridges.removeIdle(new Set());
    expect(asked()).toContainEqual(expect.stringMatching(/^link set dev before group/));
    expect(bridges.names).toEqual(["made"]);
    expect(lines).toMatchObject([{ bridge: "made" }]);
    has([bridge("before"), bridge("made")]);
    await bridges.removeIdle(new Set(["made"])); // and another has the name of the one that went
    expect(asked()).toEqual([]);
  });

  test("that stay over a restart are no news", async () => {
    const lines: string[] = [];
    const bridges = new Bridges(["made"], true, pino({}, { write: (line) => lines.push(line) }));
    has([bridge("made"), { ifname: "eth1", mtu: 1450, master: "made" }]);
    await bridges.removeIdle(new Set());
    expect([bridges.names, lines]).toEqual([["made"], []]);
  });
});
