/** What the doctor says: stable for programs (`vtep doctor --json`), readable for people (`report.ts`). */

/** From harmless to bad. */
export const SEVERITIES = ["ok", "note", "warning", "error"] as const;
export type Severity = (typeof SEVERITIES)[number];

/** What was looked at. */
export type Check =
  | "start"
  | "capabilities"
  | "tun"
  | "local-address"
  | "port"
  | "source-ports"
  | "socket"
  | "metrics-listen"
  | "receive-buffer"
  | "firewall"
  | "conntrack"
  | "route"
  | "self-route"
  | "reachability"
  | "path-mtu"
  | "offloads"
  | "network"
  | "tap"
  | "bridge-netfilter"
  | "gateway"
  | "ranges"
  | "duplicate-mac"
  | "traffic";

export interface Finding {
  readonly check: Check;
  /** Whom or what it is about where there are several: a peer, a device, a network. */
  readonly subject?: string;
  readonly severity: Severity;
  /** A sentence without a full stop. */
  readonly finding: string;
  readonly remedy?: string;
  /** Lines for a shell that carry the remedy out. */
  readonly commands?: readonly string[];
}

export function worstOf(findings: readonly Finding[]): Severity {
  const worst = Math.max(0, ...findings.map(({ severity }) => SEVERITIES.indexOf(severity)));
  return SEVERITIES[worst]!;
}

/** Of what could not be looked at. */
export function unseenFinding(
  check: Check,
  what: string,
  { unseen, remedy }: { unseen: string; remedy: string },
): Finding {
  return { check, severity: "note", finding: `${what} not looked at: ${unseen}`, remedy };
}

/** A refusal of the program's, which ends with its remedy. */
export function inTwo(refusal: string): { finding: string; remedy: string } {
  const at = refusal.lastIndexOf(": ");
  return { finding: refusal.slice(0, at), remedy: refusal.slice(at + 2) };
}

/** "a, b and 5 more": as many as a line holds. */
export function listed(names: readonly string[], most = 3): string {
  if (names.length <= most) {
    return names.length < 2
      ? names.join("")
      : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
  }
  return `${names.slice(0, most).join(", ")} and ${names.length - most} more`;
}

/** "1 frame", "2 frames". */
export function counted(count: number, what: string): string {
  const ending = what.endsWith("s") ? "es" : "s";
  return `${count} ${what}${count === 1 ? "" : ending}`;
}
