/**
 * A thread of `fdb.test.ts`: does its part on a shared FDB for a while, as fast as it can, and tells
 * what it found wrong. The destinations that are ever written for a MAC carry its number, so that a
 * route of another MAC is known at sight.
 */
import { parentPort, workerData } from "node:worker_threads";
import { CONTROL, Fdb, LEARNED, PASSED, SEEN, STATIC } from "../../src/fdb.ts";

export interface Churn {
  readonly memory: SharedArrayBuffer;
  /** Threads that have come; all begin when all are there. */
  readonly start: Int32Array;
  readonly threads: number;
  readonly role: "look" | "learn" | "edit";
  readonly seed: number;
  readonly milliseconds: number;
}

export interface ChurnResult {
  readonly wrong: readonly string[];
  readonly operations: number;
  /** Operations that found or changed something. */
  readonly changes: number;
}

const MACS = 16;
const HIGH = 0x0000;
const LOW = 0x5e00_5300;

function churn({ memory, start, threads, role, seed, milliseconds }: Churn): ChurnResult {
  const fdb = new Fdb(memory);
  const wrong: string[] = [];
  let operations = 0;
  let changes = 0;
  let state = seed;
  const random = (below: number) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) | 0;
    return (state >>> 8) % below;
  };

  const check = (what: string, mac: number, destination: number) => {
    if (destination >> 4 !== mac && wrong.length < 10) wrong.push(`${what} ${mac}: ${destination}`);
  };
  const look = (network: number, mac: number) => {
    const destination = fdb.lookup(network, HIGH, LOW + mac);
    if (destination === -1) return;
    check("lookup", mac, destination);
    changes++;
    if (random(64) !== 0) return;
    for (const row of fdb.rows()) check("row", row.macLow - LOW, row.destination);
  };
  const learn = (network: number, mac: number) => {
    const destination = (mac << 4) | random(8);
    const learnt = fdb.learn(network, HIGH, LOW + mac, destination, operations >> 10);
    if (learnt !== SEEN && learnt !== PASSED) changes++;
    if (random(1000) === 0) changes += fdb.expire(network, operations >> 10, 2, 4);
  };
  const edit = (network: number, mac: number) => {
    const origin = random(2) === 0 ? CONTROL : STATIC;
    if (random(2) === 0) {
      if (fdb.set(network, HIGH, LOW + mac, (mac << 4) | (8 + random(8)), origin)) changes++;
    } else if (fdb.delete(network, HIGH, LOW + mac, random(4) === 0 ? LEARNED : origin)) changes++;
  };

  const turn = { look, learn, edit }[role];
  Atomics.add(start, 0, 1);
  while (Atomics.load(start, 0) < threads);
  const end = Date.now() + milliseconds;
  while (Date.now() < end) {
    for (let i = 0; i < 200; i++, operations++) turn(1 + random(2), 1 + random(MACS));
  }
  return { wrong, operations, changes };
}

parentPort!.postMessage(churn(workerData as Churn));
