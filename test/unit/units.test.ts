import { readFileSync } from "node:fs";
import { expect, test } from "vitest";

const unit = (name: string) =>
  readFileSync(new URL(`../../systemd/${name}`, import.meta.url), "utf8").replace(/^#.*\n/gm, "");

test("the template unit is the unit, but for whose configuration it is", () => {
  const instance = unit("vtep@.service")
    .replace("endpoint %i", "endpoint")
    .replace(" --socket /run/vtep/%i/vtep.sock", "")
    .replaceAll("/etc/vtep/%i.yaml", "/etc/vtep/vtep.yaml")
    .replaceAll("Directory=vtep/%i\n", "Directory=vtep\n");
  expect(instance).toBe(unit("vtep.service"));
});
