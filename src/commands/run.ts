/** `vtep run`: its flags, its help. What runs is in `run.ts`, which takes longer to load than all of this. */
import { type Command, Option } from "commander";
import { DEFAULT_FILE } from "../config-file.ts";
import { addFlags, once } from "../flags.ts";
import type { Interim } from "../interim.ts";
import { startThread, type Thread } from "../workers.ts";

const EXAMPLES = `
Examples:
  vtep run --vni 100 --peer 192.0.2.2
      joins this host to network 100 through the TAP vtep100
  vtep run --vni 100 --peer 192.0.2.2 192.0.2.3 --bridge br100
      the same with two peers, for whatever is joined to the bridge br100
  vtep run --config vtep.yaml
      several networks from a file ("vtep config example" prints one)
  vtep run
      what /etc/vtep/vtep.yaml says

Signals:
  SIGTERM, SIGINT  stop and remove what was made
  SIGHUP           read the file again; what is the same goes on undisturbed
  SIGUSR2          log the FDB, the counters and the drops by reason
`;

/** `first` is a forwarding thread that was started already; `interim` is what forwards meanwhile. */
export function addRunCommand(vtep: Command, first?: Thread, interim?: Interim): void {
  const command = vtep
    .command("run")
    .description("Forward frames between TAP devices and VXLAN peers, in the foreground")
    .addOption(
      new Option(
        "--config <FILE>",
        `take the configuration from a YAML file; flags of a network add one (default: ${DEFAULT_FILE}, unless flags give a network)`,
      ).argParser(once("--config", "one file holds all networks")),
    );
  addFlags(command)
    .addHelpText("after", EXAMPLES)
    .action(async (given: Record<string, unknown>) => {
      const { run } = await import("../run.ts");
      await run(given, first ?? startThread(), interim);
    });
}
