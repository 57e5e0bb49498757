/**
 * `npm run demo`: three machines on one Ethernet, each behind another kind of VTEP; everything that
 * can cross does, and is checked; then all of it is removed, whatever happened in between.
 *
 * Exit code 0: everything crossed. 1: something did not, and is named. 128 + signal: interrupted.
 */
import { createHash, randomFillSync } from "node:crypto";
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { styleText } from "node:util";
import type { Container, Host, Kind } from "../test/lab/host.ts";
import { type Endpoints, Lab } from "../test/lab/lab.ts";
import type { Namespace } from "../test/lab/namespace.ts";
import { iperf3, ping } from "../test/lab/traffic.ts";
import { Vtep } from "../test/lab/vtep.ts";
import { carry } from "./carry.ts";
import { benchmark, exitOnSignals, say } from "./command-line.ts";
import { table } from "./table.ts";

/** What the hosts run, in their order. */
const kinds: Kind[] = ["native", "dgram", "kernel"];
const titles: Record<Kind, string> = {
  native: "vtep (native)",
  dgram: "vtep (dgram)",
  kernel: "kernel VXLAN",
};
const PINGS = 10;
const FILE_MIB = 64;
const IPERF_SECONDS = 2;

benchmark("npm run demo --")
  .description("Three hosts on one Ethernet, two of them by vtep, the third by kernel VXLAN")
  .parse();

/** One way that frames have to go. */
interface Way {
  from: Container;
  to: Container;
  names: [from: string, to: string];
}

/** What should have crossed and did not, as sentences. */
const failures: string[] = [];

async function main(): Promise<void> {
  const scratch = mkdtempSync(join(tmpdir(), "vtep-demo-"));
  process.on("exit", () => rmSync(scratch, { recursive: true, force: true }));
  {
    step("Three machines", "Each is a network namespace: as far as Linux is concerned, a host.");
    await using lab = await Lab.draw({ hosts: kinds.length });
    const containers = await Promise.all(lab.hosts.map((host) => host.container()));
    for (const host of lab.hosts) await completeChecksums(host);
    await using endpoints = await lab.join(kinds);
    say(picture(lab, containers));
    const ways = waysBetween(containers);
    await showPings(ways);
    await showFile(ways, scratch);
    await showThroughput(ways);
    await showInside(lab, containers, endpoints);
    step("Removing everything", `${namespaces().length} namespaces, their links and processes.`);
  }
  const left = namespaces();
  if (left.length === 0) say("  Nothing is left.");
  else failures.push(`these network namespaces could not be removed: ${left.join(" ")}`);
}

/** Those of this process. */
function namespaces(): string[] {
  return readdirSync("/run/netns").filter((name) => name.startsWith(`lab-${process.pid}-`));
}

/**
 * As network cards do. A veth passes on what kernel VXLAN leaves to the card, which is the checksum
 * and the segmentation of the inner packet, and a UDP socket takes it as it comes.
 */
async function completeChecksums(host: Host): Promise<void> {
  await host.run("ethtool", "-K", "eth0", "tx", "off");
}

function picture(lab: Lab, containers: Container[]): string {
  const column = 22;
  const row = (cells: string[]) => {
    const centred = cells.map((cell) => {
      const left = (column + cell.length) >> 1;
      return cell.padStart(left).padEnd(column);
    });
    return centred.join("").trimEnd();
  };
  const everywhere = (text: string) => row(kinds.map(() => text));
  const wire = "═".repeat(column - 1);
  return [
    "",
    row(containers.map((_, i) => `container ${i + 1}`)),
    row(containers.map(({ address }) => address)),
    row(containers.map(({ address6 }) => address6)),
    everywhere("│"),
    everywhere("bridge br0"),
    everywhere("│"),
    paint("bold", row(kinds.map((kind) => titles[kind]))),
    everywhere("│"),
    row(lab.hosts.map(({ address }) => address)),
    everywhere("║"),
    `${" ".repeat((column - 1) >> 1)}╚${wire}╩${wire}╝`,
    row(["", "underlay: UDP port 4789", ""]),
    "",
    "  The containers think that they share one Ethernet. They do not: what a container sends is",
    "  wrapped in UDP by its host's VTEP (VXLAN, RFC 7348) and unwrapped by the other's. Two hosts",
    "  run ours, one with native sockets and one with node:dgram; the third is Linux's own.",
  ].join("\n");
}

/** Every ordered pair. */
function waysBetween(containers: Container[]): Way[] {
  const name = (i: number) => `${i + 1} ${kinds[i]}`;
  return containers.flatMap((from, i) =>
    containers.flatMap((to, j): Way[] =>
      from === to ? [] : [{ from, to, names: [name(i), name(j)] }],
    ),
  );
}

async function showPings(ways: Way[]): Promise<void> {
  step("Every pair pings", `${PINGS} echo requests each way, over IPv4 and IPv6, starting cold.`);
  const rows: string[][] = [];
  for (const { from, to, names } of ways) {
    const cells: string[] = [];
    for (const address of [to.address, to.address6]) {
      const { sent, received, rttMs } = await ping(from, address, { count: PINGS });
      const lost = sent - received;
      cells.push(lost === 0 ? good("0") : bad(`${lost}`), milliseconds(rttMs));
      check(lost === 0, `${lost} of ${sent} pings from ${names[0]} to ${names[1]} (${address})`);
    }
    rows.push([...names, ...cells]);
  }
  say(table(["from", "to", "IPv4 lost", "RTT, ms", "IPv6 lost", "RTT, ms"], rows));
}

async function showFile(ways: Way[], scratch: string): Promise<void> {
  step(
    `A file of ${FILE_MIB} MiB crosses`,
    "Random bytes, through one TCP connection; sha256sum says on the far side whether they arrived.",
  );
  const content = randomFillSync(Buffer.alloc(FILE_MIB << 20));
  const sha256 = createHash("sha256").update(content).digest("hex");
  const original = join(scratch, "original");
  const copy = join(scratch, "copy");
  writeFileSync(original, content);
  say(`  SHA-256 of the original: ${sha256}`);
  const rows: string[][] = [];
  for (const { from, to, names } of ways) {
    const seconds = await carry(from, to, original, copy);
    const arrived = (await to.run("sha256sum", copy)).slice(0, sha256.length);
    rmSync(copy);
    const same = arrived === sha256;
    const verdict = same ? good("same") : bad("differs");
    rows.push([...names, seconds.toFixed(1), gigabits((content.length * 8) / seconds), verdict]);
    check(same, `the file sent from ${names[0]} to ${names[1]} (it arrived as ${arrived})`);
  }
  say(table(["from", "to", "seconds", "Gbit/s", "SHA-256"], rows));
}

async function showThroughput(ways: Way[]): Promise<void> {
  step("How fast", `iperf3, one TCP stream, ${IPERF_SECONDS} seconds each way.`);
  const rows: string[][] = [];
  for (const { from, to, names } of ways) {
    const { sent, received } = await iperf3(from, to, {
      seconds: IPERF_SECONDS,
      args: ["--congestion", "cubic"],
    });
    rows.push([...names, gigabits(received.bits_per_second), `${sent.retransmits}`]);
    check(received.bytes > 0, `iperf3's stream from ${names[0]} to ${names[1]}`);
  }
  say(table(["from", "to", "Gbit/s", "retransmits"], rows));
  say(
    "  All hosts and both ends of each stream share this machine; `npm run bench` compares fairly.",
  );
}

async function showInside(lab: Lab, containers: Container[], endpoints: Endpoints): Promise<void> {
  step(
    "What our VTEPs know",
    "Nobody configured these addresses: they were learned from the frames that passed.",
  );
  const owners = new Map(containers.map(({ mac }, i) => [mac, `container ${i + 1}`]));
  for (const host of lab.hosts) {
    for (const { name, mac } of await interfaces(host)) {
      if (!owners.has(mac)) owners.set(mac, `${name} of host ${host.number}`);
    }
  }
  const places = new Map(lab.hosts.map(({ address, number }) => [address, ` (host ${number})`]));
  const counters: Map<string, string[]> = new Map();
  const ours = endpoints.flatMap((endpoint, i) =>
    endpoint instanceof Vtep ? [{ endpoint, i }] : [],
  );
  for (const [column, { endpoint, i }] of ours.entries()) {
    const { networks, drops } = await endpoint.status();
    const network = networks[0]!;
    const rows = network.fdb
      .map(({ mac, destination, origin, ageSeconds }) => [
        mac,
        owners.get(mac) ?? "",
        `${destination}${places.get(destination) ?? ""}`,
        origin,
        `${ageSeconds ?? ""}`,
      ])
      .sort((a, b) => a[1]!.localeCompare(b[1]!));
    say(`\n  FDB of host ${i + 1}, ${titles[kinds[i]!]}, VNI ${network.vni}`);
    say(table(["MAC", "whose", "behind", "origin", "age, s"], rows));
    const counted = Object.entries({
      ...network.counters,
      ...dropped(drops),
      ...dropped(network.drops),
    });
    for (const [name, count] of counted) {
      const row = counters.get(name) ?? ours.map(() => "0");
      row[column] = count.toLocaleString("en");
      counters.set(name, row);
    }
  }
  say("\n  Counters");
  const heading = ours.map(({ i }) => `host ${i + 1}, ${titles[kinds[i]!]}`);
  say(
    table(
      ["", ...heading],
      [...counters].map(([name, row]) => [name, ...row]),
    ),
  );
}

function dropped(drops: Record<string, number>): Record<string, number> {
  return Object.fromEntries(
    Object.entries(drops).map(([reason, count]) => [`dropped: ${reason}`, count]),
  );
}

async function interfaces(namespace: Namespace): Promise<{ name: string; mac: string }[]> {
  const links = JSON.parse(await namespace.run("ip", "-json", "link")) as {
    ifname: string;
    address: string;
  }[];
  return links.map(({ ifname, address }) => ({ name: ifname, mac: address }));
}

// ---- words

let steps = 0;

function step(title: string, explanation?: string): void {
  say(`\n${paint("bold", `${++steps}. ${title}`)}`);
  if (explanation) say(paint("dim", `  ${explanation}`));
}

/** `what` completes "… did not cross". */
function check(crossed: boolean, what: string): void {
  if (!crossed) failures.push(`${what} did not cross`);
}

function milliseconds(ms: number): string {
  return Number.isNaN(ms) ? "–" : ms.toFixed(2);
}

function gigabits(bitsPerSecond: number): string {
  return (bitsPerSecond / 1e9).toFixed(2);
}

function good(text: string): string {
  return paint("green", text);
}

function bad(text: string): string {
  return paint("red", text);
}

function paint(format: Parameters<typeof styleText>[0], text: string): string {
  const colours = process.stdout.isTTY && process.stdout.hasColors();
  return colours ? styleText(format, text) : text;
}

exitOnSignals(() => process.stderr.write("\nInterrupted: everything was removed.\n"));

const began = performance.now();
try {
  await main();
} catch (error) {
  failures.push(`the demo could not go on: ${(error as Error).message}`);
}
for (const failure of failures) process.stderr.write(`demo: ${failure}\n`);
if (failures.length > 0) process.exitCode = 1;
else {
  const seconds = Math.round((performance.now() - began) / 1000);
  say(`\n${good("Everything crossed.")} ${seconds} seconds.`);
}
