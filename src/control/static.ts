/**
 * The static control plane: remotes and MACs come from the configuration and never change.
 *
 * A peer is where flooded frames go. An entry for the all-zero MAC is the same thing in the words of
 * `bridge fdb append 00:00:00:00:00:00`.
 */
import type { NetworkConfig } from "../config.ts";
import { isZero } from "../wire/ethernet.ts";

/** Where a control plane puts what it knows of a network's remotes. */
export interface RouteSink {
  /** A copy of every flooded frame goes to this address; it may send. */
  addToFlood(address: string): void;
  /** Frames for this MAC go to this address; it may send. */
  setStatic(macHigh: number, macLow: number, address: string): void;
}

export function writeStaticRoutes(network: NetworkConfig, sink: RouteSink): void {
  for (const peer of network.peers) sink.addToFlood(peer);
  for (const { macHigh, macLow, address } of network.fdb) {
    if (isZero(macHigh, macLow)) sink.addToFlood(address);
    else sink.setStatic(macHigh, macLow, address);
  }
}
