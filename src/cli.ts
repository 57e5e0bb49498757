#!/usr/bin/env node
/** The command. What takes longest to load is the first forwarding thread, so that begins before all else. */
import { startThread } from "./workers.ts";

const first = process.argv[2] === "run" ? startThread() : undefined;
void import("./program.ts").then(({ main }) => main(first));
