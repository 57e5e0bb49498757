/** The keys of the configuration as people are told of them: in help, reference and example. */
import * as v from "valibot";
import { endpointEntries, fileEntries, networkEntries, type Traits } from "./schema.ts";

/** A key of the configuration, for help, reference and example. */
export interface Key {
  readonly key: string;
  /** Where it stands: at the top of a file, with or without a flag, or in a network. */
  readonly of: "network" | "endpoint" | "file";
  /** What it may be, as a file has it. */
  readonly values: string;
  readonly required: boolean;
  /** The default, for people; undefined: without it, there is none of it. */
  readonly otherwise: string | undefined;
  /** A value that shows how it is written: the default where there is one. */
  readonly sample: unknown;
  /** One sentence, without a full stop. */
  readonly help: string;
}

/** A key as a flag of `vtep run`. */
export interface FlagHelp {
  readonly key: string;
  /** As `--help` shows it: `--peer <ADDR...>`. */
  readonly syntax: string;
  readonly help: string;
  readonly otherwise: string | undefined;
}

type Entry = v.GenericSchema & { readonly default?: unknown };

/** Every key, in the order of the schema. */
export function keys(): Key[] {
  const sections = { network: networkEntries, endpoint: endpointEntries, file: fileEntries };
  return Object.entries(sections).flatMap(([of, entries]) =>
    Object.entries<Entry>(entries).map(([key, entry]): Key => {
      const { otherwise, sample }: Traits = v.getMetadata(entry);
      return {
        key,
        of: of as Key["of"],
        values: valuesOf(entry),
        required: entry.type !== "optional",
        otherwise: otherwise ?? (isPlain(entry.default) ? String(entry.default) : undefined),
        sample: sample ?? entry.default,
        help: v.getDescription(entry) ?? "",
      };
    }),
  );
}

/** The flags of a network, then those of the endpoint, or one of both, in the order of the schema. */
export function flags(of?: "network" | "endpoint"): FlagHelp[] {
  const kinds = { network: networkEntries, endpoint: endpointEntries };
  const entries: Record<string, Entry> =
    of === undefined ? { ...networkEntries, ...endpointEntries } : kinds[of];
  return keys().flatMap(({ key, help, otherwise }) => {
    const entry = entries[key];
    if (entry === undefined) return [];
    const { name = key, value }: Traits = v.getMetadata(entry);
    const syntax = value === undefined ? `--${name}` : `--${name} <${value}>`;
    const several = value?.endsWith("...") && !value.endsWith(",...");
    const isSwitch = otherwise === "false";
    return {
      key,
      syntax,
      help: several ? `${help}; several may follow` : help,
      otherwise: isSwitch ? undefined : otherwise,
    };
  });
}

function isPlain(value: unknown): boolean {
  return ["string", "number", "boolean"].includes(typeof value);
}

/** What a schema accepts, in a few words. Numbers as text are for flags only, so they are not told. */
function valuesOf(schema: v.GenericSchema): string {
  const title = v.getTitle(schema);
  if (title !== undefined) return title;
  const { wrapped, item, options, literal } = schema as Partial<{
    wrapped: v.GenericSchema;
    item: v.GenericSchema;
    options: readonly (v.GenericSchema | string)[];
    literal: string;
  }>;
  if (wrapped !== undefined) return valuesOf(wrapped);
  if (item !== undefined) return `[${valuesOf(item)}, ...]`;
  if (options !== undefined) {
    const said = options.map((each) => (typeof each === "string" ? each : valuesOf(each)));
    return `${said.slice(0, -1).join(", ")} or ${said.at(-1)}`;
  }
  return literal ?? (schema.type === "boolean" ? "true or false" : schema.type);
}
