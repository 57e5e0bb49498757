/** `vtep doctor`: looks at the host and its peers, says what is wrong, and what to do. */
import { type Command, Option } from "commander";
import { Client } from "../api/client.ts";
import { refuseUnusable } from "../api/socket.ts";
import type { Config } from "../config.ts";
import { DEFAULT_FILE, defaultFile, load } from "../config-file.ts";
import { diagnose } from "../doctor/diagnose.ts";
import { examine } from "../doctor/examine.ts";
import type { Facts } from "../doctor/facts.ts";
import { type Severity, worstOf } from "../doctor/finding.ts";
import { report } from "../doctor/report.ts";
import { sentenceOf, VtepError } from "../errors.ts";
import { addFlags, once, valuesByKey } from "../flags.ts";
import { paper } from "./table.ts";

/** 1 to 3 are those of every command (`errors.ts`). */
const EXITS: Readonly<Record<Severity, number>> = { ok: 0, note: 0, warning: 4, error: 5 };

const HELP = `
Takes the configuration as "vtep run" does, looks and asks, and changes nothing.
Each peer gets ICMP echo requests of several lengths, and two empty datagrams
to its VXLAN port, which it drops and may count as invalid. As root it sees most.

Exit codes:
  0  all is well, or there is something to note
  4  the worst is a warning: it works, but not as well as it could
  5  the worst is an error: something does not work
  1, 2  it could not look; the command line or the configuration is wrong

Examples:
  vtep doctor
  vtep doctor --vni 100 --peer 192.0.2.2 --bridge br100
  vtep doctor --config /etc/vtep/vtep.yaml --json
`;

/** How long an agent may keep silent: one that does is worth a note. */
const PATIENCE_MS = 3_000;

export function addDoctorCommand(vtep: Command): void {
  const doctor = vtep
    .command("doctor")
    .description("Check this host, its peers and the ways to them, and say what to do")
    .option("--json", "print the findings as JSON")
    .addOption(
      new Option(
        "--config <FILE>",
        `the configuration; flags of a network add one (default: ${DEFAULT_FILE}, unless flags give a network)`,
      ).argParser(once("--config", "one file holds all networks")),
    );
  addFlags(doctor)
    .addHelpText("after", HELP)
    .action(async ({ json, config: named, ...options }: Record<string, unknown>) => {
      const given = valuesByKey(options);
      const file = (named as string | undefined) ?? defaultFile(given);
      const { config } = load(file, given);
      const [{ silence, ...said }, refusal] = await Promise.all([
        runningAgent(config),
        refuseUnusable(config.socket).then(() => undefined, sentenceOf),
      ]);
      const socketRefusal = silence ?? refusal;
      const findings = diagnose(
        await examine(config, { ...said, hasFile: file !== undefined, socketRefusal }),
      );
      const worst = worstOf(findings);
      process.stdout.write(
        json
          ? `${JSON.stringify({ worst, findings }, undefined, 2)}\n`
          : report(findings, paper().hasColours),
      );
      process.exitCode = EXITS[worst];
    });
}

type Said = Pick<Facts, "agent" | "down"> & { readonly silence?: string | undefined };

/** What an agent on this host says, or why none does; the sentence of one that keeps silent. */
async function runningAgent({ socket }: Config): Promise<Said> {
  try {
    const client = new Client(socket, PATIENCE_MS);
    const [agent, remotes] = await Promise.all([client.status(), client.remotes()]);
    const down = remotes.filter(({ state }) => state === "down");
    return { agent, down: down.map(({ address }) => address) };
  } catch (error) {
    if (!(error instanceof VtepError)) throw error;
    const { message } = error;
    const [, unseen = message, remedy = "see its log"] = /^(.*?\)): (.*)$/.exec(message) ?? [];
    const isSilent = (error.cause as NodeJS.ErrnoException | undefined)?.code === "ETIMEDOUT";
    const silence = isSilent ? message : undefined;
    return { agent: { unseen, remedy }, down: [], silence };
  }
}
