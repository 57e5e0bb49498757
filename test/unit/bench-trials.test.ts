import { describe, expect, it, onTestFinished, test, vi } from "vitest";
import { type Figure, measurements, type Reading, type Scene } from "../../bench/measurements.ts";
import { disposeAll } from "../../bench/subjects.ts";
import { takeInTurns } from "../../bench/trials.ts";

const FIGURES: Figure[] = [
  { name: "rate", unit: "kpps", digits: 1, better: "more" },
  { name: "median", unit: "ms", digits: 3, better: "less", ofRtts: 50 },
  { name: "retransmits", unit: "", digits: 0, isCount: true },
];

/** By the process that a scene is of, which says who had its turn. */
const KERNEL = 1;
const NATIVE = 2;

const runners = [
  { name: "kernel", where: "kernel", scene: { pids: [KERNEL] } as unknown as Scene },
  { name: "native", where: "native", scene: { pids: [NATIVE] } as unknown as Scene },
];

/** What each turn took, and what comes out: `read` is given who has how manieth turn, from 0. */
async function taken(seconds: number, read: (pid: number, turn: number) => Reading) {
  const turns: [pid: number, seconds: number][] = [];
  const measurement = {
    ...{ name: "it", figures: FIGURES, turn: 0.25 },
    async take({ pids: [pid], seconds }: Scene) {
      const before = turns.filter(([of]) => of === pid).length;
      turns.push([pid!, seconds]);
      return read(pid!, before);
    },
  };
  const found = await takeInTurns(measurement, runners, seconds);
  return { turns, found: Object.fromEntries(found) };
}

const at = (rate: number, ...rtts: number[]): Reading => ({ values: [rate, Number.NaN, 1], rtts });

/** What is said from now on, until the test ends; nor is the exit code that goes with it the tests'. */
function unheard() {
  const spy = vi.spyOn(process.stderr, "write").mockReturnValue(true);
  const code = process.exitCode;
  onTestFinished(() => {
    spy.mockRestore();
    process.exitCode = code;
  });
  return spy;
}

describe("a measurement that is taken in turns", () => {
  it("goes to and fro, and takes no longer than it was told to", async () => {
    unheard();
    const { turns } = await taken(0.75, () => at(1));
    expect(turns.map(([pid]) => pid)).toEqual([KERNEL, NATIVE, NATIVE, KERNEL, KERNEL, NATIVE]);
    expect(turns.every(([, seconds]) => seconds === 0.25)).toBe(true);
  });

  it("has turns of one length, none longer than a turn is", async () => {
    unheard();
    const { turns } = await taken(0.6, () => at(1));
    expect(turns.map(([, seconds]) => seconds)).toEqual(Array(6).fill(0.6 / 3));
  });

  it("is a single one when it is shorter", async () => {
    unheard();
    const { turns } = await taken(0.1, () => at(1));
    expect(turns.map(([, seconds]) => seconds)).toEqual([0.1, 0.1]);
  });

  it("means what its turns do on average, but for counts, and percentiles, which are of all round trips", async () => {
    unheard();
    const { found } = await taken(0.5, (pid, turn) =>
      turn === 0 ? at(10 * pid, 1, 2, 3) : at(30 * pid, 7),
    );
    expect(found).toEqual({
      kernel: { values: [20, 2, 2], rtts: [1, 2, 3, 7] },
      native: { values: [40, 2, 2], rtts: [1, 2, 3, 7] },
    });
  });

  it("is of a second or two, or of a quarter, where nothing is searched for", () => {
    const turns = new Map(measurements.map(({ name, turn }) => [name, turn]));
    for (const name of ["tcp1", "tcp1-reverse", "tcp4", "tcp4-reverse"]) {
      expect(turns.get(name), name).toBe(2);
    }
    expect([turns.get("rtt"), turns.get("udp64"), turns.get("udp1300")]).toEqual([1, 0.25, 0.25]);
    for (const { name, unit, ofRtts } of measurements.flatMap(({ figures }) => figures)) {
      const wanted = name.startsWith("p99") ? 99 : name.startsWith("RTT") ? 50 : undefined;
      expect(ofRtts, `${name} in ${unit}`).toBe(wanted);
    }
  });

  it("leaves out whoever fails, from then on, and tells of it", async () => {
    const said = unheard();
    const { turns, found } = await taken(0.75, (pid, turn) => {
      if (pid === NATIVE && turn === 1) throw new Error("broken");
      return at(1);
    });
    expect(turns.map(([pid]) => pid)).toEqual([KERNEL, NATIVE, NATIVE, KERNEL, KERNEL]);
    expect(Object.keys(found)).toEqual(["kernel"]);
    expect(said.mock.calls.join("")).toContain("native: no figure for it: broken\n");
    expect(process.exitCode).toBe(1);
  });
});

test("what is taken apart goes last first, and one that fails keeps no other", async () => {
  const said = unheard();
  const gone: number[] = [];
  const things = [1, 2, 3].map((number) => ({
    async [Symbol.asyncDispose]() {
      if (number === 2) throw new Error("stuck");
      gone.push(number);
    },
  }));
  await disposeAll(things);
  expect(gone).toEqual([3, 1]);
  expect(said.mock.calls.join("")).toContain("stuck\n");
  expect(process.exitCode).toBe(1);
});
