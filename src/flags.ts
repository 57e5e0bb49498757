/** The keys of the configuration as flags of a command: they come from the schema. */
import { type Command, Option } from "commander";
import type { FlagValues } from "./config-file.ts";
import { VtepError } from "./errors.ts";
import { flags } from "./keys.ts";

/** Gives a command a flag for every key, or for those of one kind. */
export function addFlags(command: Command, of?: "network" | "endpoint"): Command {
  for (const { key, syntax, help, otherwise } of flags(of)) {
    const text = otherwise === undefined ? help : `${help} (default: ${otherwise})`;
    const option = new Option(syntax, text);
    const remedy =
      key === "vni" ? "several networks go into a file (--config FILE)" : "give it once";
    if (option.required && !option.variadic) option.argParser(once(option.long!, remedy));
    command.addOption(option);
  }
  return command;
}

/** Takes a value as it is, and refuses a second: commander would let the last one win. */
export function once(flag: string, remedy: string) {
  return (value: string, before: string | undefined): string => {
    if (before === undefined) return value;
    throw new VtepError("USAGE", `${flag} is given twice: ${remedy}`);
  };
}

/** What was given, by key: commander names values in camel case and by flag. */
export function valuesByKey(
  options: Readonly<Record<string, unknown>>,
  of?: "network" | "endpoint",
): FlagValues {
  const byKey = flags(of).flatMap(({ key, syntax }) => {
    const value = options[new Option(syntax).attributeName()];
    return value === undefined ? [] : [[key, value] as const];
  });
  return Object.fromEntries(byKey);
}
