/**
 * The entry of a forwarding thread. It opens its part of a plan's devices, tells the agent, forwards when
 * told to, and ends when told to: the main thread may pause, frames go on.
 */
import { parentPort, workerData } from "node:worker_threads";
import type { Offloads } from "./device.ts";
import { RAISE_FILES, VtepError } from "./errors.ts";
import { type Opened, type Plan, Vtep } from "./vtep.ts";

/** What a forwarding thread is started with. */
export interface Post {
  readonly plan: Plan;
  /** Which of the plan's threads it is, from 0. */
  readonly worker: number;
}

/** Agent → forwarding thread. */
export type Order = "forward" | "stop";

/** Forwarding thread → agent. An error crosses as its code and message. */
export type Report =
  | { readonly event: "opened"; readonly opened: Opened }
  | { readonly event: "forwarding" }
  | { readonly event: "offloads"; readonly inUse: Offloads }
  | {
      readonly event: "failed" | "lost";
      readonly code: VtepError["code"];
      readonly message: string;
    };

const port = parentPort!;

function report(message: Report): void {
  port.postMessage(message);
}

function reportError(event: "failed" | "lost", error: unknown): void {
  const code = error instanceof VtepError ? error.code : "SYSTEM";
  report({ event, code, message: sentenceOf(error) });
}

function sentenceOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const { code } = (error.cause ?? {}) as NodeJS.ErrnoException;
  if (code !== "EMFILE" && code !== "ENFILE") return error.message;
  return `${error.message}: ${RAISE_FILES}`;
}

try {
  const { plan, worker } = workerData as Post;
  const vtep = await Vtep.open(plan, worker);
  port.on("message", (order: Order) => {
    if (order === "forward") {
      vtep.forward(
        (error) => reportError("lost", error),
        (inUse) => report({ event: "offloads", inUse }),
      );
      report({ event: "forwarding" });
    } else {
      vtep.close();
      port.close();
    }
  });
  report({ event: "opened", opened: vtep.opened });
} catch (error) {
  reportError("failed", error);
  port.close();
}
