import ipaddr from "ipaddr.js";
import { expect, test, vi } from "vitest";
import { REMOTE_ROWS, Remotes } from "../../src/remotes.ts";

test("the remote for which there is no row is refused with what helps, and those known are still found", () => {
  const remotes = new Remotes();
  const address = (at: number) => `10.0.${at >> 8}.${at & 255}`;
  for (let at = 1; at < REMOTE_ROWS; at++) remotes.add(address(at), 4789);
  expect(() => remotes.add("192.0.2.1", 4789)).toThrow(
    expect.objectContaining({ code: "CONFLICT", message: expect.stringContaining(": restart ") }),
  );
  expect(remotes.count).toBe(REMOTE_ROWS - 1);
  expect(remotes.add(address(7), 4789)).toBe(7);
});

test.each([0, 1, 2, 3])(
  "remotes are told apart by 32 bits of their address, those from bit 32 * %i",
  (word) => {
    const remotes = new Remotes();
    const address = (at: number) =>
      ["2001:db8", "0:1", "0:2", "0:3"].with(word, `2001:${at.toString(16)}`).join(":");
    // So many that some of them begin their search in the same slot.
    const rows = Array.from({ length: REMOTE_ROWS - 1 }, (_, at) => at + 1);
    expect(rows.map((at) => remotes.add(address(at), 4789))).toEqual(rows);
  },
);

test("an address is put into words once, however many entries name it", () => {
  const remotes = new Remotes();
  const index = remotes.add("2001:db8::3", 4789);
  const written = vi.spyOn(ipaddr, "fromByteArray");
  for (let entry = 0; entry < 100; entry++) expect(remotes.place(index)).toBe("2001:db8::3");
  expect(written).toHaveBeenCalledTimes(1);
});
