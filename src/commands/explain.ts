/** `vtep explain`: what a running agent would do with a frame, and why. */
import type { Command } from "commander";
import type { Client } from "../api/client.ts";
import { VtepError } from "../errors.ts";
import { type Answer, ask, type Options } from "./ask.ts";

const EXAMPLES = `
Nothing is sent, learned or counted. Without --from the frame comes from the host's side.

Examples:
  vtep explain --network blue 02:00:00:00:00:01 02:00:00:00:00:02
  vtep explain --network blue --from 192.0.2.2 02:00:00:00:00:02 02:00:00:00:00:01
  vtep explain --network blue --frame "ffffffffffff 020000000001 0806 0001…"
`;

export function addExplainCommand(vtep: Command): void {
  ask(
    vtep,
    "explain [SRC_MAC] [DST_MAC]",
    "Say what would become of a frame here, and why",
    explain,
  )
    .requiredOption("--network <NETWORK>", "the network that it is in")
    .option("--frame <HEX>", "the frame itself, in hexadecimal, in place of its MACs")
    .option("--from <ADDR>", "the remote that it comes from")
    .addHelpText("after", EXAMPLES);
}

async function explain(
  client: Client,
  [source, destination]: readonly string[],
  options: Options,
): Promise<Answer> {
  const { network, frame, from } = options as Record<string, string | undefined>;
  if (frame === undefined && destination === undefined) {
    const message = "explain needs a frame: give its source and destination MAC, or --frame HEX";
    throw new VtepError("USAGE", message);
  }
  const data = await client.explain(network!, { frame, source, destination, from });
  const steps = data.steps.map((step, at) => `${at + 1}. ${step}`);
  return { data, text: [...steps, `=> ${data.verdict.sentence}`].join("\n") };
}
