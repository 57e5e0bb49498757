/** What `monitoring/` ships, as its tests read it. */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parse } from "yaml";

export const ALERTS = fileURLToPath(new URL("../../monitoring/vtep-alerts.yaml", import.meta.url));
const DASHBOARD = new URL("../../monitoring/vtep-dashboard.json", import.meta.url);

export interface Rule {
  readonly alert: string;
  readonly expr: string;
  readonly annotations: Readonly<Record<"summary" | "description", string>>;
}

export function alertRules(): Rule[] {
  return parse(readFileSync(ALERTS, "utf8")).groups.flatMap(
    ({ rules }: { rules: Rule[] }) => rules,
  );
}

export interface Panel {
  readonly id: number;
  readonly type: string;
  readonly title: string;
  readonly description?: string;
  readonly gridPos: {
    readonly x: number;
    readonly y: number;
    readonly w: number;
    readonly h: number;
  };
  readonly targets?: readonly { readonly expr: string; readonly legendFormat: string }[];
}

export function panels(): Panel[] {
  return JSON.parse(readFileSync(DASHBOARD, "utf8")).panels;
}

/** The queries of the dashboard's panels, as Grafana would send them with everything chosen. */
export function queries(): { panel: string; expr: string }[] {
  return panels().flatMap(({ title, targets = [] }) =>
    targets.map(({ expr }) => ({
      panel: title,
      expr: expr
        .replaceAll("$__rate_interval", "1m")
        .replaceAll("$instance", ".*")
        .replaceAll("$network", ".*"),
    })),
  );
}

/** The names of metrics in a query; a name is all that has our prefix or that of the process. */
export function metricsIn(expr: string): string[] {
  return expr.match(/\b(vtep|process)_[a-z_]+/g) ?? [];
}
