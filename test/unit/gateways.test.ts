/** The table of the gateways as nft is given it: an `nft` of the test's own. */
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type Logger, pino } from "pino";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import type { Attachment } from "../../src/attachments.ts";
import { Gateways } from "../../src/gateways.ts";
import { type Shim, shim } from "../lab/shim.ts";

let nft: Shim;
let lines: { level: number; table?: string }[];
let log: Logger;
const file = (name: string) => join(nft.directory, name);

beforeEach(() => {
  nft = shim(
    `{ echo "$*"; cat; } >>$here/asked; [ ! -e $here/refuses ] || { echo no >&2; exit 1; }`,
    ["nft"],
  );
  vi.stubEnv("PATH", nft.path.slice("PATH=".length));
  lines = [];
  log = pino({}, { write: (line) => lines.push(JSON.parse(line)) });
});
afterEach(() => {
  vi.unstubAllEnvs();
  nft[Symbol.dispose]();
});

function asked(): string[] {
  if (!existsSync(file("asked"))) return [];
  const words = readFileSync(file("asked"), "utf8").trimEnd().split("\n");
  rmSync(file("asked"));
  return words;
}

const TABLE = "table inet vtep_2001-db8--1_4789";
const published = [{ protocol: "tcp" as const, port: 8080, toPort: 80 }];
const attached: Attachment[] = [
  {
    ...{ network: "blue", target: "/run/netns/web", ifname: "eth0", by: "attach", link: "vt1" },
    ...{ mac: "02:00:00:00:00:07", addresses: ["192.0.2.7/24"], published },
  },
];
const gateways = (hasTable = false) =>
  new Gateways("2001:db8::1", 4789, log, { addresses: [], macs: {}, hasTable });

test("is named by the endpoint, as nft can name one, and is set when it changes", async () => {
  const own = gateways();
  await own.publish([]);
  expect([asked(), own.isIdle]).toEqual([[], true]); // who needs no table needs no nft
  await own.publish(attached);
  const words = asked();
  expect(words.slice(0, 4)).toEqual(["-f -", TABLE, `delete ${TABLE}`, `${TABLE} {`]);
  expect(words.join("\n")).toContain("8080 : 192.0.2.7 . 80");
  await own.publish(attached);
  expect([asked(), own.traces.hasTable]).toEqual([[], true]);
  await own.publish([]);
  expect([asked(), own.isIdle]).toEqual([["-f -", TABLE, `delete ${TABLE}`], true]);
});

test("of an agent before is deleted where there is nothing to do", async () => {
  await gateways(true).publish([]);
  expect(asked()).toEqual(["-f -", TABLE, `delete ${TABLE}`]);
});

test("that is refused is told of, and given again the next time", async () => {
  const own = gateways();
  writeFileSync(file("refuses"), "");
  const refusal = { code: "LINK", message: '"nft" refused the rules of gateways: no' };
  await expect(own.publish(attached)).rejects.toMatchObject(refusal);
  expect(own.isIdle).toBe(true);
  rmSync(file("refuses"));
  asked();
  await own.publish(attached);
  expect(asked()[0]).toBe("-f -");
});

test("that somebody flushed is looked for, told of, and set again", async () => {
  const own = gateways();
  await own.renew();
  expect(asked()).toEqual([]);
  await own.publish(attached);
  const set = asked();
  await own.renew();
  expect(asked()).toEqual([`list ${TABLE}`]);
  writeFileSync(file("refuses"), "");
  await expect(own.renew()).rejects.toMatchObject({ code: "LINK" });
  expect(lines).toMatchObject([{ table: "vtep_2001-db8--1_4789", reason: "no" }]);
  rmSync(file("refuses"));
  asked();
  await own.publish(attached);
  expect(asked()).toEqual(set);
});
