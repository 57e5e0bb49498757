import type { Kind } from "../lab/host.ts";

/**
 * The endpoints under test: ours on each of its underlays. `LAB_KINDS=kernel` puts the kernel's in
 * their place, which proves the tests that compare behaviour: what they expect, the kernel does.
 */
export const kinds = (process.env.LAB_KINDS ?? "native,dgram").split(",") as Kind[];

/** Those of them that are ours, for what only ours does. */
export const underlays = kinds.filter((kind) => kind !== "kernel");
