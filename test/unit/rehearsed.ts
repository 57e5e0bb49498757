/**
 * The program that `rehearsal.test.ts` runs in a process of its own: rehearses, then has frames cross between two
 * dataplanes on devices that were not rehearsed with. Prints which functions V8 has compiled, before and after.
 *
 *     node --allow-natives-syntax --import tsx …
 */
import { setTimeout } from "node:timers/promises";
import { Dataplane } from "../../src/dataplane.ts";
import { rehearse } from "../../src/rehearsal.ts";
import { World } from "./sim.ts";
import { documentationMac, ethernetFrame, ipv4Packet, ports } from "./wire/frames.ts";

const statusOf = new Function("of", "return %GetOptimizationStatus(of)") as (of: unknown) => number;
/** Of a function that TurboFan has compiled: that it is a function, optimized, by TurboFan. Node 26 has other bits. */
const example = new Function(`
  const example = () => 7;
  %PrepareFunctionForOptimization(example);
  example();
  %OptimizeFunctionOnNextCall(example);
  example();
  return %GetOptimizationStatus(example);`)() as number; // OptimizationStatus in V8's runtime.h
const [, optimized] = Array.from({ length: 31 }, (_, bit) => 1 << bit).filter(
  (bit) => example & bit,
);
/** By TurboFan, or by Maglev, which is there since Node 22 and comes before. */
const isCompiled = (of: unknown) => (statusOf(of) & optimized!) !== 0;
const { encap, decap } = Dataplane.prototype;
const compiled = () => ({ encap: isCompiled(encap), decap: isCompiled(decap) });

// What is compiled is compiled on another thread, which may have little time on a busy machine: then it is done again.
for (let rehearsal = 0; rehearsal < 4 && !(compiled().encap && compiled().decap); rehearsal++) {
  for (const _ of rehearse());
  await setTimeout(500);
}
const rehearsed = compiled();

const world = new World();
const hosts = world.mesh(2);
const [near, far] = [documentationMac(0x10), documentationMac(0x40)];
const payload = ports(40_000, 443, 100);
const packet = { type: 0x0800, payload: ipv4Packet({ protocol: 6, payload }) };
const there = ethernetFrame({ source: near, destination: far, ...packet });
const back = ethernetFrame({ source: far, destination: near, ...packet });
for (let turn = 0; turn < 200; turn++) {
  world.transmit(hosts[0]!, there, there, there);
  world.transmit(hosts[1]!, back);
}
const { encapFrames, decapFrames } = hosts[1]!.counters.events(1);
process.stdout.write(JSON.stringify({ rehearsed, later: compiled(), encapFrames, decapFrames }));
