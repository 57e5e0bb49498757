import { expect, it } from "vitest";
import { natTable } from "../../src/nat.ts";

const HEAD = "table inet vtep_4789\ndelete table inet vtep_4789\n";

it("is no table where there is nothing to do", () => {
  const plain = [{ bridge: "br0", subnets: ["192.0.2.0/24"], masquerade: false }];
  expect(natTable("vtep_4789", [], [])).toBe(HEAD);
  expect(natTable("vtep_4789", plain, [])).toBe(HEAD);
});

it("masquerades what leaves, but between networks that are routed here", () => {
  const routed = [
    { bridge: "br0", subnets: ["192.0.2.0/24", "2001:db8::/64"], masquerade: true },
    { bridge: "br1", subnets: ["198.51.100.0/24"], masquerade: false },
  ];
  expect(natTable("vtep_4789", routed, [])).toBe(`${HEAD}table inet vtep_4789 {
  chain nat-postrouting {
    type nat hook postrouting priority 100; policy accept;
    oifname { "br0", "br1" } return
    ip saddr 192.0.2.0/24 masquerade
    ip6 saddr 2001:db8::/64 masquerade
  }
}
`);
});

it("grows as the networks do", () => {
  const size = (count: number) => {
    const routed = Array.from({ length: count }, (_, at) => {
      return { bridge: `br${1000 + at}`, subnets: ["192.0.2.0/24"], masquerade: true };
    });
    return natTable("vtep_4789", routed, []).length;
  };
  expect(size(400)).toBeLessThan(4 * size(100));
});

it("takes ports of the host to containers, from elsewhere, from here and from their neighbours", () => {
  const routed = [{ bridge: "br0", subnets: ["192.0.2.0/24"], masquerade: false }];
  const publications = [
    { protocol: "tcp" as const, port: 8080, to: "192.0.2.7", toPort: 80 },
    {
      protocol: "udp" as const,
      address: "2001:db8::1",
      port: 53,
      to: "2001:db8:2::7",
      toPort: 5353,
    },
    { protocol: "udp" as const, port: 53, to: "192.0.2.7", toPort: 53 },
    { protocol: "tcp" as const, port: 443, to: "2001:db8:2::7", toPort: 443 },
    { protocol: "tcp" as const, port: 8443, to: "192.0.2.8", toPort: 443 },
    { protocol: "udp" as const, port: 53, to: "192.0.2.99", toPort: 53 },
  ];
  const rules = [
    "tcp dport { 8080, 8443 } ip daddr != 127.0.0.0/8 fib daddr type local dnat ip to tcp dport map { 8080 : 192.0.2.7 . 80, 8443 : 192.0.2.8 . 443 }",
    "udp dport { 53 } ip6 daddr 2001:db8::1 dnat ip6 to udp dport map { 53 : 2001:db8:2::7 . 5353 }",
    "udp dport { 53 } ip daddr != 127.0.0.0/8 fib daddr type local dnat ip to udp dport map { 53 : 192.0.2.7 . 53 }",
    "tcp dport { 443 } ip6 daddr != ::1 fib daddr type local dnat ip6 to tcp dport map { 443 : 2001:db8:2::7 . 443 }",
  ].join("\n    ");
  const zones = [
    "udp dport { 53 } ip6 daddr 2001:db8::1 ct original zone set udp dport map { 53 : 27482 }",
    "meta l4proto icmpv6 @th,112,8 17 ip6 daddr 2001:db8::1 ct original zone set @th,384,16 map { 53 : 27482 }",
    "udp dport { 53 } ip daddr != 127.0.0.0/8 fib daddr type local ct original zone set udp dport map { 53 : 14523 }",
    "meta l4proto icmp @th,136,8 17 ip daddr != 127.0.0.0/8 fib daddr type local ct original zone set @th,224,16 map { 53 : 14523 }",
  ].join("\n    ");
  expect(natTable("vtep_4789", routed, publications)).toBe(`${HEAD}table inet vtep_4789 {
  chain filter-prerouting {
    type filter hook prerouting priority -300; policy accept;
    ${zones}
  }
  chain filter-output {
    type filter hook output priority -300; policy accept;
    ${zones}
  }
  chain nat-postrouting {
    type nat hook postrouting priority 100; policy accept;
    ip saddr 192.0.2.0/24 ip daddr 192.0.2.0/24 ct status dnat masquerade
  }
  chain nat-prerouting {
    type nat hook prerouting priority -100; policy accept;
    ${rules}
  }
  chain nat-output {
    type nat hook output priority -100; policy accept;
    ${rules}
  }
}
`);
});

it("has as many rules for many ports as for one, so that no packet is compared with each", () => {
  const rules = (count: number) => {
    const publications = Array.from({ length: count }, (_, at) => {
      return { protocol: "udp" as const, port: 1 + at, to: `192.0.2.${at % 9}`, toPort: 53 };
    });
    return natTable("vtep_4789", [], publications).split("\n").length;
  };
  expect(rules(500)).toBe(rules(1));
});
