import { beforeEach, expect, test } from "vitest";
import { type NetworkConfig, networkConfig } from "../../src/config.ts";
import { LiveNetworks } from "../../src/live.ts";
import { Remotes } from "../../src/remotes.ts";

const [red, blue, green] = ["red", "blue", "green"].map((name, at) =>
  networkConfig({ name, vni: at + 1, peers: ["192.0.2.2"] }),
) as [NetworkConfig, NetworkConfig, NetworkConfig];

let networks: LiveNetworks;
beforeEach(() => {
  const endpoint = { local4: "192.0.2.1", local6: undefined, port: 4789 };
  networks = new LiveNetworks(endpoint, new Remotes(), false);
});

function put(config: NetworkConfig): number {
  const index = networks.freeIndex();
  networks.put(networks.planned(config, index, 1450));
  return index;
}

test("a row is free again when its network is removed, and not when that has another name", () => {
  expect([red, blue].map(put)).toEqual([1, 2]);
  expect(networks.rename([{ ...red, name: "pink" }, blue])).toEqual(["pink"]);
  expect(networks.freeIndex()).toBe(3);
  networks.remove("pink");
  expect(put(green)).toBe(1);
  expect(networks.freeIndex()).toBe(3);
});

test("of networks that are missing, those have a reason of which it is not known yet why", () => {
  put(red);
  networks.noteGone(blue, "its own");
  networks.noteMissing([red, blue, green], "another");
  expect(networks.gone().map(({ config, reason }) => [config.name, reason])).toEqual([
    ["blue", "its own"],
    ["green", "another"],
  ]);
});

test("a network that keeps its name is not another one which has its VNI from now on", () => {
  put(red);
  const pink = { ...red, name: "pink" };
  expect(networks.rename([{ ...red, vni: 9 }, pink])).toEqual([]);
});

test("a TAP's MAC is its host's and its VNI's own, whatever else is different", () => {
  const macOn = (local4: string, config: NetworkConfig, index = 1, mtu = 1450) => {
    const endpoint = { local4, local6: "2001:db8::1", port: 4789 };
    return new LiveNetworks(endpoint, new Remotes(), false).planned(config, index, mtu).link.mac;
  };
  const mac = macOn("192.0.2.1", red);
  expect(macOn("192.0.2.1", { ...blue, vni: red.vni }, 2, 1400)).toBe(mac);
  expect(macOn("192.0.2.1", blue)).not.toBe(mac);
  expect(macOn("192.0.2.3", red)).not.toBe(mac);
});

test("the first sixteen networks have further queues, where there may be any", () => {
  const queues = [true, false].flatMap((hasQueues) => {
    const endpoint = { local4: "192.0.2.1", local6: undefined, port: 4789 };
    const some = new LiveNetworks(endpoint, new Remotes(), hasQueues);
    return [1, 16, 17].map((index) => some.planned(red, index, 1450).plan.furtherQueues);
  });
  expect(queues).toEqual([15, 15, 0, 0, 0, 0]);
});
