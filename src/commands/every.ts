/** Every command but `vtep run`, which has no time to load them. */
import type { Command } from "commander";
import { addAttachCommands } from "./attach.ts";
import { addCaptureCommand } from "./capture.ts";
import { addCompletionCommand } from "./completion.ts";
import { addConfigCommand } from "./config.ts";
import { addControlCommands } from "./control.ts";
import { addDockerPluginCommand } from "./docker-plugin.ts";
import { addDoctorCommand } from "./doctor.ts";
import { addExplainCommand } from "./explain.ts";
import { addFdbCommands } from "./fdb.ts";
import { addNetworkCommands } from "./network.ts";
import { addServiceCommand } from "./service.ts";
import { addTopCommand } from "./top.ts";

export function addOtherCommands(vtep: Command): void {
  addNetworkCommands(vtep);
  addAttachCommands(vtep);
  addFdbCommands(vtep);
  addControlCommands(vtep);
  addCaptureCommand(vtep);
  addExplainCommand(vtep);
  addTopCommand(vtep);
  addConfigCommand(vtep);
  addDoctorCommand(vtep);
  addDockerPluginCommand(vtep);
  addServiceCommand(vtep);
  addCompletionCommand(vtep); // of all that are there
}
