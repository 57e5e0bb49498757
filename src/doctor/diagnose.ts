/** Facts in, findings out: the whole of the doctor's judgement, in the order in which it is told. */
import { checkFilters } from "./check-filters.ts";
import { checkGateways } from "./check-gateway.ts";
import { checkHost } from "./check-host.ts";
import { checkOverlay } from "./check-overlay.ts";
import { checkPaths } from "./check-paths.ts";
import { checkSockets } from "./check-sockets.ts";
import type { Facts } from "./facts.ts";
import type { Finding } from "./finding.ts";

export function diagnose(facts: Facts): Finding[] {
  return [
    ...checkHost(facts),
    ...checkSockets(facts),
    ...checkFilters(facts),
    ...checkPaths(facts),
    ...checkOverlay(facts),
    ...checkGateways(facts),
  ];
}
