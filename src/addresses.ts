/** Addresses of stations with the prefix lengths of their subnets, as people and the kernel write them. */
import ipaddr from "ipaddr.js";

/** Addresses of a subnet that are given out, both ends included. */
export interface Range {
  readonly low: string;
  readonly high: string;
  /** Prefix length of the subnet. */
  readonly length: number;
}

/** An address with its prefix length, as the kernel spells it; what is none, as it is. */
export function spelt(prefix: string): string {
  if (!ipaddr.isValidCIDR(prefix)) return prefix;
  const [address, length] = ipaddr.parseCIDR(prefix);
  return `${address.toString()}/${length}`;
}

/** The destination of a route as the kernel has it, which clears what of IPv6 is behind the prefix; what is none, as it is. */
export function speltRoute(prefix: string): string {
  return ipaddr.IPv6.isValidCIDR(prefix) ? subnetOf(prefix) : spelt(prefix);
}

/** An address as the kernel spells it; what is none, as it is. */
export function speltAddress(address: string): string {
  return ipaddr.isValid(address) ? ipaddr.parse(address).toString() : address;
}

/**
 * The address of a station with its prefix length (192.0.2.7/24), as the kernel spells it: neither a group,
 * a loopback, nor what stands for the whole subnet, or for all of its stations. Undefined: it is none.
 */
export function stationPrefix(text: string): string | undefined {
  const isSpelt = text.includes(":") || ipaddr.IPv4.isValidFourPartDecimal(bare(text));
  if (!isSpelt || !ipaddr.isValidCIDR(text)) return undefined;
  const [address, length] = ipaddr.parseCIDR(text);
  const others = ["multicast", "unspecified", "broadcast", "loopback"];
  if (others.includes(address.range()) || length === 0) return undefined;
  if (address.kind() === "ipv6" || length >= 31) return spelt(text);
  const whole = [
    ipaddr.IPv4.networkAddressFromCIDR(text),
    ipaddr.IPv4.broadcastAddressFromCIDR(text),
  ];
  return whole.some((each) => each.toString() === address.toString()) ? undefined : spelt(text);
}

/** Without its prefix length. */
export function bare(prefix: string): string {
  return prefix.split("/")[0]!;
}

/** `192.0.2.0/24` of `192.0.2.7/24`. */
export function subnetOf(prefix: string): string {
  const { [prefix.includes(":") ? "IPv6" : "IPv4"]: family } = ipaddr;
  return `${family.networkAddressFromCIDR(prefix).toString()}/${prefix.split("/")[1]}`;
}

/** Whether an address, with or without a prefix length, lies in the subnet of another. */
export function isIn(address: string, prefix: string): boolean {
  const one = ipaddr.parse(bare(address));
  const [other, length] = ipaddr.parseCIDR(prefix);
  return one.kind() === other.kind() && one.match([other, length] as never);
}

/** What `192.0.2.64-192.0.2.127/24` means; undefined: nothing, or other than stations of one subnet. */
export function parseRange(text: string): Range | undefined {
  const [, from = "", to = "", length] = /^([^-/\s]+)-([^-/\s]+)\/(\d{1,3})$/.exec(text) ?? [];
  const [low, high] = [from, to].map((end) => stationPrefix(`${end}/${length}`));
  if (low === undefined || high === undefined || subnetOf(low) !== subnetOf(high)) return undefined;
  if (toNumber(low) > toNumber(high)) return undefined;
  return { low: bare(low), high: bare(high), length: Number(length) };
}

export function formatRange({ low, high, length }: Range): string {
  return `${low}-${high}/${length}`;
}

export function isWithin(address: string, { low, high }: Range): boolean {
  if (address.includes(":") !== low.includes(":")) return false;
  const number = toNumber(address);
  return toNumber(low) <= number && number <= toNumber(high);
}

/** How many addresses a range has. */
export function sizeOf({ low, high }: Range): number {
  return Number(toNumber(high) - toNumber(low)) + 1;
}

/** Those of a range that are free, the lowest first, with their prefix length. */
export function* freeIn(range: Range, used: ReadonlySet<string>): Generator<string> {
  const isV6 = range.low.includes(":");
  const last = toNumber(range.high);
  for (let number = toNumber(range.low); number <= last; number++) {
    const address = toText(number, isV6);
    if (!used.has(address)) yield `${address}/${range.length}`;
  }
}

function toNumber(address: string): bigint {
  const bytes = ipaddr.parse(bare(address)).toByteArray();
  return BigInt(`0x${Buffer.from(bytes).toString("hex")}`);
}

function toText(number: bigint, isV6: boolean): string {
  const hex = number.toString(16).padStart(isV6 ? 32 : 8, "0");
  return ipaddr.fromByteArray([...Buffer.from(hex, "hex")]).toString();
}

/** Needs an interface beside it; IPv4's link-local addresses are routed like any other. */
export function isScoped(text: string): boolean {
  const parsed = ipaddr.process(text);
  return parsed.kind() === "ipv6" && parsed.range() === "linkLocal";
}
