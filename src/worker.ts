/**
 * The entry of a forwarding thread. It waits for a plan, opens its part of the devices, tells the agent,
 * forwards when told to, changes networks, and ends when told to: the main thread may pause, frames go on.
 */
import { once } from "node:events";
import { parentPort } from "node:worker_threads";
import type { Offloads } from "./device.ts";
import { remedied, VtepError } from "./errors.ts";
import { rehearse, whileIdle } from "./rehearsal.ts";
import { AGAIN_MS, forgetDescriptors, storeDescriptors } from "./systemd.ts";
import { type Mirroring, type NetworkPlan, type Opened, type Plan, pace, Vtep } from "./vtep.ts";

/** What a forwarding thread is told first. */
export interface Post {
  readonly plan: Plan;
  /** Whether the service manager is to keep descriptors over a restart. */
  readonly keep: boolean;
  /** Which of the plan's threads it is, from 0. */
  readonly worker: number;
}

/** Agent → forwarding thread. Each is answered by "done" or "failed" of its id. */
export type Order =
  | { readonly order: "forward" | "stop"; readonly id: number }
  | { readonly order: "add" | "change"; readonly id: number; readonly network: NetworkPlan }
  | { readonly order: "retire" | "discard"; readonly id: number; readonly index: number }
  | { readonly order: "mirror"; readonly id: number; readonly mirroring: Mirroring | undefined };

/** What a forwarding thread has when it is about to forward. */
export interface Started extends Opened {
  /** Why it waits for its turn behind other processes even while it carries streams. */
  readonly paceFault: string | undefined;
}

/** Forwarding thread → agent. An error crosses as its code and message; of the start its id is 0. */
export type Report =
  | { readonly event: "opened"; readonly opened: Started }
  | { readonly event: "done"; readonly id: number }
  | { readonly event: "offloads"; readonly inUse: Offloads }
  | {
      readonly event: "lost";
      /** Of the network whose TAP it was; undefined: the underlay, without which nothing crosses. */
      readonly index: number | undefined;
      readonly code: VtepError["code"];
      readonly message: string;
    }
  | {
      readonly event: "failed";
      readonly id: number;
      readonly code: VtepError["code"];
      readonly message: string;
    };

const rehearsal = rehearse();
const port = parentPort!;

function report(message: Report): void {
  port.postMessage(message);
}

/** An error as what can be posted. */
function described(error: unknown): { code: VtepError["code"]; message: string } {
  const code = error instanceof VtepError ? error.code : "SYSTEM";
  return { code, message: error instanceof Error ? remedied(error.message) : String(error) };
}

function obey(vtep: Vtep, order: Order): void {
  switch (order.order) {
    case "forward":
      vtep.forward(
        (error, index) => report({ event: "lost", index, ...described(error) }),
        (inUse) => report({ event: "offloads", inUse }),
      );
      return whileIdle(rehearsal, () => vtep.bursts());
    case "add":
      return vtep.add(order.network);
    case "change":
      return vtep.change(order.network);
    case "retire":
      return vtep.retire(order.index);
    case "discard":
      return vtep.discard(order.index);
    case "mirror":
      return vtep.mirror(order.mirroring);
    case "stop":
      rehearsal.return(undefined);
      return vtep.close();
  }
}

/** What the service manager has of ours, what it is to have, and what it has and is to close: by name. */
const stored = new Set<string>();
const untold = new Map<string, number>();
const unwanted = new Set<string>();
let again: NodeJS.Timeout | undefined;

/** What was kept and was of use, the service manager has; what was of none, it is to close. */
function recall(vtep: Vtep, kept: Plan["kept"]): void {
  for (const [name, fd] of Object.entries(vtep.descriptors())) {
    if (kept[name] === fd) {
      stored.add(name);
      continue;
    }
    untold.set(name, fd);
    if (name in kept) unwanted.add(name);
  }
}

/** A TAP that goes is not to stay because the manager has it. */
function forget(vtep: Vtep, index: number): void {
  for (const name of Object.keys(vtep.descriptorsOf(index))) {
    untold.delete(name);
    if (stored.delete(name)) unwanted.add(name);
  }
}

function keepOf(vtep: Vtep, index: number): void {
  for (const [name, fd] of Object.entries(vtep.descriptorsOf(index))) untold.set(name, fd);
}

/** What its queue has no room for is said again. */
function store(): void {
  clearTimeout(again);
  if (!tellManager()) again = setTimeout(store, AGAIN_MS).unref();
}

/** First what it is to close, for another may have the name. False when its queue is full. */
function tellManager(): boolean {
  for (const name of unwanted) {
    if (forgetDescriptors(name) === "full") return false;
    unwanted.delete(name);
  }
  for (const [name, fd] of untold) {
    const answer = storeDescriptors(name, [fd]);
    if (answer === "full") return false;
    if (answer === "unheard") return true; // nor would the others be, until the next change
    untold.delete(name);
    stored.add(name);
  }
  return true;
}

async function main(): Promise<void> {
  try {
    const [{ plan, worker, keep }] = (await once(port, "message")) as [Post];
    const vtep = await Vtep.open(plan, worker);
    const opened = { ...vtep.opened, paceFault: pace(plan) };
    if (keep) {
      recall(vtep, plan.kept);
      store();
    }
    port.on("message", (order: Order) => {
      try {
        if (keep && order.order === "discard") forget(vtep, order.index);
        obey(vtep, order);
        if (keep && order.order === "add") keepOf(vtep, order.network.index);
        if (keep && (order.order === "add" || order.order === "discard")) store();
        report({ event: "done", id: order.id });
        if (order.order === "stop") {
          clearTimeout(again);
          port.close();
        }
      } catch (error) {
        report({ event: "failed", id: order.id, ...described(error) });
      }
    });
    report({ event: "opened", opened });
  } catch (error) {
    report({ event: "failed", id: 0, ...described(error) });
    port.close();
  }
}

void main();
