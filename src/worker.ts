/**
 * The entry of a forwarding thread. It opens the devices of its plan, tells the agent, forwards when
 * told to, and ends when told to: the main thread may pause, frames go on.
 */
import { parentPort, workerData } from "node:worker_threads";
import { VtepError } from "./errors.ts";
import { type Opened, type Plan, Vtep } from "./vtep.ts";

/** Agent → forwarding thread. */
export type Order = "forward" | "stop";

/** Forwarding thread → agent. An error crosses as its code and message. */
export type Report =
  | { readonly event: "opened"; readonly opened: Opened }
  | { readonly event: "forwarding" }
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
  report({ event, code, message: error instanceof Error ? error.message : String(error) });
}

try {
  const vtep = await Vtep.open(workerData as Plan);
  port.on("message", (order: Order) => {
    if (order === "forward") {
      vtep.forward((error) => reportError("lost", error));
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
