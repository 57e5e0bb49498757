import { describe, expect, it } from "vitest";
import {
  freeIn,
  isIn,
  isWithin,
  parseRange,
  stationPrefix,
  subnetOf,
} from "../../src/addresses.ts";

describe("the address of a station", () => {
  it.each([
    ["192.0.2.7/24", "192.0.2.7/24"],
    ["2001:DB8:0::7/64", "2001:db8::7/64"],
    ["192.0.2.0/31", "192.0.2.0/31"], // RFC 3021
    ["192.0.2.7/32", "192.0.2.7/32"],
  ])("is taken, and spelt as the kernel does: %s", (text, spelt) => {
    expect(stationPrefix(text)).toBe(spelt);
  });

  it.each([
    "192.0.2.0/24",
    "192.0.2.255/24",
    "192.0.2.7",
    "192.0.2.7/0",
    "010.0.0.1/8",
    "::/64",
    "",
  ])("is none of %j", (text) => {
    expect(stationPrefix(text)).toBeUndefined();
  });

  it("is in its subnet", () => {
    expect(subnetOf("192.0.2.71/26")).toBe("192.0.2.64/26");
    expect(subnetOf("2001:db8::7/64")).toBe("2001:db8::/64");
    expect(isIn("192.0.2.99", "192.0.2.1/24")).toBe(true);
    expect(isIn("192.0.3.1/24", "192.0.2.1/24")).toBe(false);
    expect(isIn("2001:db8::1", "192.0.2.1/24")).toBe(false);
  });
});

describe("a range", () => {
  const range = parseRange("192.0.2.254-192.0.3.1/23")!;

  it("has both its ends, and what lies between them", () => {
    expect([...freeIn(range, new Set())]).toEqual([
      "192.0.2.254/23",
      "192.0.2.255/23",
      "192.0.3.0/23",
      "192.0.3.1/23",
    ]);
    expect(isWithin("192.0.2.254", range)).toBe(true);
    expect(isWithin("192.0.3.2", range)).toBe(false);
    expect(isWithin("2001:db8::1", range)).toBe(false);
  });

  it("gives what nobody has, IPv6 in its usual spelling", () => {
    const v6 = parseRange("2001:db8::ff-2001:db8::1:2/64")!;
    const used = new Set(["2001:db8::ff"]);
    expect(freeIn(v6, used).next().value).toBe("2001:db8::100/64");
    expect([...freeIn(parseRange("192.0.2.1-192.0.2.1/24")!, new Set(["192.0.2.1"]))]).toEqual([]);
  });
});
