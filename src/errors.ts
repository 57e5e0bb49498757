/**
 * The one error that leaves this program on purpose. `code` is stable, the message is one sentence
 * that ends with the remedy, `cause` is the system's own error where there was one. Programmer
 * mistakes are TypeError or RangeError instead.
 */
export class VtepError extends Error {
  override readonly name = "VtepError";
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.code = code;
  }
}

/** Exit codes of the command: bad usage is the caller's to mend, failure the host's. */
export const EXIT_FAILURE = 1;
export const EXIT_USAGE = 2;
/** There is no agent to be asked: a script may want to start one, or to wait. */
const EXIT_UNREACHABLE = 3;

export type ErrorCode =
  | "USAGE" // unknown flag or key, value out of range, contradiction: exit code 2
  | "ADDON" // native addon missing, or built for another memory layout
  | "PERMISSION" // a capability is missing
  | "TUN_MISSING" // no /dev/net/tun
  | "NOT_FOUND" // no network, peer, entry or path of that name
  | "CONFLICT" // another network has it already
  | "UNREACHABLE" // no agent answers at the socket: exit code 3
  | "SOCKET_IN_USE" // somebody listens, or another file is, where a socket is to be
  | "NAME_IN_USE" // an interface of that name exists
  | "ADDRESS" // not an address of this host, or no route to a peer
  | "PORT_IN_USE" // another program or a kernel VXLAN device holds the UDP port
  | "MTU" // larger than the underlay carries
  | "LINK" // iproute2 refused
  | "LOST" // a device went away while it was in use
  | "CLOSED" // used after close, or asked for while the agent stops
  | "SYSTEM"; // anything else that the kernel refused

/** One sentence where it is our own, whatever else is known where it is a fault of the program. */
export function sentenceOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  if (error instanceof VtepError) return error.message;
  const sentence = remedied(error.message);
  return sentence === error.message ? (error.stack ?? sentence) : sentence;
}

/** Of a network that is to be, and cannot: whoever asked for it may ask again. */
export function networkGone(name: string, reason: string): VtepError {
  return new VtepError("LOST", `network ${name} is gone: ${reason}`);
}

/** The exit code that goes with an error. */
export function exitCode(error: unknown): number {
  const code = error instanceof VtepError ? error.code : undefined;
  if (code === "USAGE") return EXIT_USAGE;
  return code === "UNREACHABLE" ? EXIT_UNREACHABLE : EXIT_FAILURE;
}

/** What helps against limits, whatever it was that they did not allow, by how the system, Node and V8 name them. */
const RAISE = [
  [/\bE[MN]FILE\b|too many open files/, "open files (ulimit -n; LimitNOFILE= in a systemd unit)"],
  [/buffer allocation failed/, "address space (ulimit -v; LimitAS= in a systemd unit)"],
] as const;

/** A message, with what helps where it tells of a limit. */
export function remedied(message: string): string {
  const limit = RAISE.find(([telling]) => telling.test(message))?.[1];
  return limit === undefined
    ? message
    : `${message.replace(/\.$/, "")}: raise the limit of ${limit}`;
}
