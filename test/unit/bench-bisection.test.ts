import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { highest } from "../../bench/bisection.ts";

const always = async (rate: number) => rate;

describe("the highest rate that passes", () => {
  it("is found as exactly as the steps allow, wherever it lies", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.double({ min: 10, max: 1_000, noNaN: true }),
        fc.integer({ min: 1, max: 12 }),
        async (limit, steps) => {
          const passes = async (rate: number) => rate <= limit;
          const found = (await highest(passes, always, { low: 10, high: 1_000, steps }))!;
          expect(found).toBeLessThanOrEqual(limit);
          expect(limit / found).toBeLessThanOrEqual(100 ** (1 / 2 ** steps) * (1 + 1e-9));
        },
      ),
    );
  });

  it("takes as many trials as it was given steps, and one that confirms", async () => {
    const tried: number[] = [];
    const confirmed: number[] = [];
    const passes = async (rate: number) => tried.push(rate) > 0 && rate <= 100;
    const confirm = async (rate: number) => confirmed.push(rate);
    await highest(passes, confirm, { low: 1, high: 10_000, steps: 7 });
    expect(tried).toHaveLength(7);
    expect(confirmed).toHaveLength(1);
  });

  it("is lowered until a confirmation succeeds, whose answer it is", async () => {
    const passes = async (rate: number) => rate <= 100;
    const confirm = async (rate: number) => (rate < 85 ? `${Math.round(rate)}` : undefined);
    expect(await highest(passes, confirm, { low: 1, high: 10_000, steps: 20 })).toBe("80");
  });

  it("is undefined when nothing is confirmed, after a bounded number of attempts", async () => {
    let attempts = 0;
    const confirm = async () => void attempts++;
    const search = { low: 1, high: 100, steps: 4 };
    expect(await highest(async () => false, confirm, search)).toBeUndefined();
    expect(attempts).toBeLessThan(10);
  });
});
