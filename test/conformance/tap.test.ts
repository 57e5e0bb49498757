/**
 * One suite for every `Tap`. On the native one, frames of the test's own making come from a second
 * TAP on the same bridge, since Node has no raw sockets:
 *
 *     transmit ──► far ──┐
 *                        ├ bridge (floods) ── tap, which is tested
 *     received ◄── far ──┘
 */
import { execFileSync } from "node:child_process";
import { randomInt } from "node:crypto";
import dgram from "node:dgram";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { constants } from "node:os";
import { setImmediate as turn } from "node:timers/promises";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import {
  Batch,
  HEADROOM,
  IN_ROWS,
  OUT_ROWS,
  SLAB_BYTES,
  TURN_BYTES,
  VNET_NEEDS_CSUM,
  VNET_WORDS,
} from "../../src/batch.ts";
import { MemoryTap, MemoryTaps, MemoryWire } from "../../src/device/memory.ts";
import { NativeTap, NativeTaps } from "../../src/device/tap.ts";
import type { Tap, Taps } from "../../src/device.ts";
import type { VtepError } from "../../src/errors.ts";
import { until } from "../lab/until.ts";

/** Set aside for experiments (IEEE 802, 9.2.3): the kernel itself sends no such frame. */
const ETHERTYPE = [0x88, 0xb5];
const ETHERNET_HEADER = 14;

/** Of the TAP among its taps. */
const INDEX = 7;

/** What it takes to run the suite on one implementation. */
interface Rig {
  /** Some whose only member it is, by INDEX. */
  readonly taps: Taps;
  readonly tap: Tap;
  /** Hears of the loss of it. */
  onLost: (error: VtepError) => void;
  /** The host sends frames through the interface. */
  transmit(frames: Uint8Array[]): void;
  /** What the host has got through the interface since it was asked last. */
  received(): Uint8Array[];
  /** The host sends a UDP datagram, over IPv4, and leaves its checksum to the device. */
  transmitPartial(payload: Uint8Array): Promise<void>;
  /** The interface is deleted. */
  lose(): void;
  /** Whether the interface still exists on this host. */
  exists(): boolean;
  /** Lets pass what the event loop does by itself for a real device. */
  turn(): void;
  close(): void;
}

function ip(...commands: string[]): void {
  execFileSync("ip", ["-batch", "-"], {
    input: commands.join("\n"),
    stdio: ["pipe", "pipe", "pipe"],
  });
}

/** A rig whose TAP has joined its taps, and whose loss nobody expects yet. */
function joined<T extends Tap>(rig: Omit<Rig, "onLost"> & { tap: T; taps: Taps<T> }): Rig {
  const all: Rig = { ...rig, onLost: unexpected };
  rig.taps.add(INDEX, rig.tap, (error) => all.onLost(error));
  return all;
}

function unexpected(error: VtepError): void {
  throw error;
}

let nextName = 0;

const rigs: Record<string, (mtu: number) => Rig> = {
  native: (mtu) => {
    const suffix = `${process.pid.toString(36)}${(nextName++).toString(36)}`;
    const [near, far, bridge] = [`vtn${suffix}`, `vtf${suffix}`, `vtb${suffix}`];
    const tap = new NativeTap({ name: near });
    const other = new NativeTap({ name: far });
    const taps = new NativeTaps();
    const others = new NativeTaps();
    ip(`link add ${bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0`);
    for (const name of [near, far, bridge]) {
      // The host would greet its IPv6 neighbours through them.
      writeFileSync(`/proc/sys/net/ipv6/conf/${name}/disable_ipv6`, "1");
    }
    ip(
      `link set ${near} mtu ${mtu} master ${bridge} up`,
      `link set ${far} mtu ${mtu} master ${bridge} up`,
      `link set ${bridge} up`,
    );
    const batch = new Batch();
    others.add(INDEX, other, unexpected);
    return joined({
      tap,
      taps,
      transmit: (frames) => {
        for (let first = 0; first < frames.length; first += 60) {
          expect(new Burst(frames.slice(first, first + 60)).write(others)).toBe(0);
        }
      },
      received: () => {
        const frames: Uint8Array[] = [];
        for (let rows = others.read(batch); rows > 0; rows = others.read(batch)) {
          for (let row = 0; row < rows; row++) frames.push(frameOf(batch, row));
        }
        return frames;
      },
      transmitPartial: async (payload) => {
        // Addresses of RFC 2544, which no network of this host has.
        const net = `198.18.${randomInt(256)}.${4 * randomInt(64)}`;
        const [local, remote] = [1, 2].map((host) => net.replace(/\d+$/, (n) => `${+n + host}`));
        ip(
          `link set ${near} nomaster`,
          `address add ${local}/30 dev ${near}`,
          `neighbour replace ${remote} lladdr 02:00:00:00:00:02 dev ${near}`,
        );
        const socket = dgram.createSocket("udp4");
        try {
          socket.bind(0, local);
          await once(socket, "listening");
          await new Promise<void>((sent, failed) => {
            socket.send(payload, 4789, remote, (error) => (error ? failed(error) : sent()));
          });
        } finally {
          socket.close();
        }
      },
      lose: () => ip(`link delete ${near}`),
      exists: () => interfaces().includes(near),
      turn: () => {},
      close: () => {
        taps.close();
        tap.close();
        others.close();
        other.close();
        ip(`link delete ${bridge}`);
      },
    });
  },
  memory: () => {
    const wire = new MemoryWire();
    const tap = new MemoryTap({ wire, name: "vtep7" });
    const taps = new MemoryTaps();
    return joined({
      tap,
      taps,
      transmit: (frames) => {
        for (const frame of frames) tap.transmit(frame);
      },
      received: () => {
        const { received } = tap;
        tap.clear();
        return received;
      },
      transmitPartial: async (payload) => {
        const frame = partialFrame(payload);
        tap.transmit(frame, { flags: VNET_NEEDS_CSUM, csumStart: 34, csumOffset: 6 });
      },
      lose: () => tap.lose(),
      exists: () => tap.isOpen,
      turn: () => wire.turn(),
      close: () => {
        taps.close();
        tap.close();
      },
    });
  },
};

function interfaces(): string[] {
  const links = JSON.parse(execFileSync("ip", ["-json", "link"], { encoding: "utf8" }));
  return links.map(({ ifname }: { ifname: string }) => ifname);
}

// ---- frames

/** Frames to write, an out row each, one behind the other. */
class Burst {
  readonly batch = new Batch();
  readonly rows: number;

  constructor(frames: Uint8Array[]) {
    this.rows = frames.length;
    let offset = HEADROOM;
    for (const [row, frame] of frames.entries()) {
      this.batch.slab.set(frame, offset);
      this.batch.outOffset[row] = offset;
      this.batch.outLength[row] = frame.length;
      this.batch.outError[row] = 999;
      offset += frame.length;
    }
  }

  /** Writes all frames, and overwrites the slab at once, as the dataplane's next read would. */
  write(taps: Taps): number {
    this.batch.outTap.fill(INDEX, 0, this.rows);
    const failed = taps.write(this.batch, this.rows);
    this.batch.slab.fill(0xee);
    return failed;
  }

  get errors(): number[] {
    return [...this.batch.outError.subarray(0, this.rows)];
  }
}

/** A frame of `length` bytes to an unknown station; frames of different seeds differ if they can. */
function frame(length: number, seed: number): Uint8Array {
  const bytes = Uint8Array.from({ length }, (_, index) => (index * 7 + (index >> 8) + seed) & 0xff);
  bytes.set([0x02, 0, 0, 0, seed >> 8, seed & 0xff, 0x02, 0, 0, 0, 0xff, 0xfe, ...ETHERTYPE]);
  return bytes;
}

function partialFrame(payload: Uint8Array): Uint8Array {
  const udp = [0x12, 0xb5, 0x12, 0xb5, 0, 8 + payload.length, 0, 0];
  const addresses = [192, 0, 2, 1, 192, 0, 2, 2];
  const sum = naiveSum([...addresses, 0, 17, udp[4]!, udp[5]!]);
  udp[6] = sum >> 8;
  udp[7] = sum & 0xff;
  const header = [0x45, 0, 0, 28 + payload.length, 0, 0, 0, 0, 64, 17, 0, 0, ...addresses];
  const macs = frame(ETHERNET_HEADER, 1).subarray(0, 12);
  return Uint8Array.from([...macs, 0x08, 0x00, ...header, ...udp, ...payload]);
}

/** 16 bits at a time, folding after each. */
function naiveSum(data: readonly number[]): number {
  let sum = 0;
  for (let index = 0; index < data.length; index += 2) {
    sum += data[index]! * 256 + (data[index + 1] ?? 0);
    if (sum > 0xffff) sum -= 0xffff;
  }
  return sum;
}

function frameOf(batch: Batch, row: number): Uint8Array {
  const offset = batch.inOffset[row]!;
  return batch.slab.slice(offset, offset + batch.inLength[row]!);
}

function vnetOf(batch: Batch, row: number): { flags: number; gso: number; fields: number[] } {
  const at = batch.inVnet.byteOffset + row * VNET_WORDS * 4;
  const header = new Uint8Array(batch.inVnet.buffer, at, 10);
  const fields = [...new Uint16Array(batch.inVnet.buffer, at, 5).subarray(1)];
  return { flags: header[0]!, gso: header[1]!, fields };
}

const hex = (data: Uint8Array) => Buffer.from(data).toString("hex");

// ---- the suite

describe.each(Object.entries(rigs))("TAP %s", (_name, makeRig) => {
  let rig: Rig;

  beforeEach(() => {
    rig = makeRig(1500);
  });

  afterEach(() => {
    rig.close();
  });

  const batch = new Batch();

  const eventually = (what: string, ask: () => boolean) =>
    until(what, () => {
      rig.turn();
      return ask();
    });

  /** Reads until so many frames were read; the rows of each read beside them. */
  async function read(count: number): Promise<{ frames: Uint8Array[]; reads: number[] }> {
    const frames: Uint8Array[] = [];
    const reads: number[] = [];
    await eventually(`${count} frames`, () => {
      const rows = rig.taps.read(batch);
      if (rows > 0) reads.push(rows);
      for (let row = 0; row < rows; row++) frames.push(frameOf(batch, row));
      return frames.length >= count;
    });
    return { frames, reads };
  }

  async function received(count: number): Promise<string[]> {
    const frames: Uint8Array[] = [];
    await eventually(`${count} frames at the host`, () => {
      frames.push(...rig.received());
      return frames.length >= count;
    });
    return frames.map(hex);
  }

  describe("reads", () => {
    test("nothing while nothing waits", async () => {
      expect(rig.taps.read(batch)).toBe(0);
      rig.transmit([frame(100, 1)]);
      await read(1);
      expect(rig.taps.read(batch)).toBe(0);
    });

    test("frames in their order, without a virtio_net_hdr that says anything", async () => {
      const sent = Array.from({ length: 50 }, (_, seed) => frame(60 + seed, seed));
      rig.transmit(sent);
      let got = 0;
      await eventually("50 frames", () => {
        const rows = rig.taps.read(batch);
        for (let row = 0; row < rows; row++, got++) {
          expect(hex(frameOf(batch, row))).toBe(hex(sent[got]!));
          expect(vnetOf(batch, row)).toEqual({ flags: 0, gso: 0, fields: [0, 0, 0, 0] });
        }
        return got === sent.length;
      });
    });

    test.each([1500, 9000])("every size up to an MTU of %i", async (mtu) => {
      rig.close();
      rig = makeRig(mtu);
      const sizes = [14, 15, 16, 59, 60, 61, 64, 128, 1000, mtu + 13, mtu + 14];
      const sent = sizes.map((size, seed) => frame(size, seed));
      rig.transmit(sent);
      const { frames } = await read(sent.length);
      expect(frames.map(hex)).toEqual(sent.map(hex));
    });

    test("a burst longer than one read returns", async () => {
      const sent = Array.from({ length: 2 * IN_ROWS + 50 }, (_, seed) => frame(70, seed));
      rig.transmit(sent);
      const { frames, reads } = await read(sent.length);
      expect(frames.map(hex)).toEqual(sent.map(hex));
      expect(reads[0]).toBe(IN_ROWS);
      expect(Math.max(...reads)).toBe(IN_ROWS);
    });

    test("no more frames at once than it is limited to", async () => {
      const sent = Array.from({ length: 20 }, (_, seed) => frame(70, seed));
      rig.transmit(sent);
      rig.taps.limit(INDEX, 7);
      const frames: Uint8Array[] = [];
      await eventually("20 frames", () => {
        const rows = rig.taps.read(batch);
        expect(rows).toBeLessThanOrEqual(7);
        for (let row = 0; row < rows; row++) frames.push(frameOf(batch, row));
        return frames.length === sent.length;
      });
      expect(frames.map(hex)).toEqual(sent.map(hex));
    });

    test("as many full frames as take a turn's bytes, and the rest the next time", async () => {
      rig.close();
      rig = makeRig(9000);
      const sent = Array.from({ length: 100 }, (_, seed) => frame(9014, seed));
      rig.transmit(sent);
      const { frames, reads } = await read(sent.length);
      expect(frames.map(hex)).toEqual(sent.map(hex));
      // Between two frames is room for one's headroom, and little more.
      expect(reads[0]).toBeGreaterThanOrEqual(Math.ceil(TURN_BYTES / (9014 + 32)));
      expect(reads[0]).toBeLessThanOrEqual(Math.ceil(TURN_BYTES / 9014));
    });

    test("each frame behind headroom that belongs to it alone", async () => {
      const sent = Array.from({ length: 40 }, (_, seed) => frame(60 + (seed % 13), seed));
      rig.transmit(sent);
      let rows = 0;
      await eventually("frames", () => {
        rows = rig.taps.read(batch);
        return rows > 0;
      });
      for (let row = 0; row < rows; row++) {
        const offset = batch.inOffset[row]!;
        expect(offset).toBeGreaterThanOrEqual(HEADROOM);
        expect((offset + ETHERNET_HEADER) % 8).toBe(0); // as HEADROOM promises of the IP header
        batch.slab.fill(0xff, offset - HEADROOM, offset);
      }
      for (const [row, expected] of sent.slice(0, rows).entries()) {
        expect(hex(frameOf(batch, row))).toBe(hex(expected));
      }
    });

    test("where the kernel left a partial checksum, and that it did", async () => {
      const payload = Uint8Array.from([1, 2, 3, 4, 5, 6, 7]);
      await rig.transmitPartial(payload);
      let row = -1;
      await eventually("the datagram", () => {
        const rows = rig.taps.read(batch);
        for (let each = 0; each < rows; each++) {
          if (hex(frameOf(batch, each)).endsWith(hex(payload))) row = each;
        }
        return row >= 0;
      });
      const { flags, gso, fields } = vnetOf(batch, row);
      const [, gsoSize, csumStart, csumOffset] = fields;
      expect({ flags, gso, gsoSize }).toEqual({ flags: VNET_NEEDS_CSUM, gso: 0, gsoSize: 0 });
      expect({ csumStart, csumOffset }).toEqual({ csumStart: 34, csumOffset: 6 });
      // The field holds the pseudo-header's sum, so that adding the rest yields the checksum.
      const got = frameOf(batch, row);
      const udp = [...got.subarray(34)];
      const pseudo = [...got.subarray(26, 34), 0, 17, udp[4]!, udp[5]!];
      expect(got[40]! * 256 + got[41]!).toBe(naiveSum(pseudo));
      const checksum = ~naiveSum(udp) & 0xffff;
      udp[6] = checksum >> 8;
      udp[7] = checksum & 0xff;
      expect(naiveSum([...pseudo, ...udp])).toBe(0xffff);
    });

    test("what its queue had room for, and goes on after it was full", async () => {
      rig.transmit(Array.from({ length: 1500 }, (_, seed) => frame(60, seed)));
      const { frames } = await read(IN_ROWS);
      for (let rows = rig.taps.read(batch); rows > 0; rows = rig.taps.read(batch)) {
        for (let row = 0; row < rows; row++) frames.push(frameOf(batch, row));
      }
      expect(frames.length).toBeLessThan(1500);
      for (const [seed, got] of frames.entries()) expect(hex(got)).toBe(hex(frame(60, seed)));
      rig.transmit([frame(80, 9)]);
      const after = await read(1);
      expect(after.frames.map(hex)).toEqual([hex(frame(80, 9))]);
    });
  });

  describe("tells its watch", () => {
    test("again and again as long as something waits", async () => {
      let calls = 0;
      let got = 0;
      rig.taps.watch(() => {
        calls++;
        if (calls <= 3) return;
        for (let rows = rig.taps.read(batch); rows > 0; rows = rig.taps.read(batch)) got += rows;
      });
      rig.transmit(Array.from({ length: 5 }, (_, seed) => frame(60, seed)));
      await eventually("5 frames", () => got === 5);
      expect(calls).toBeGreaterThan(3);
      const before = calls;
      for (let round = 0; round < 5; round++) {
        await turn();
        rig.turn();
      }
      expect(calls).toBe(before);
    });

    test("once that its interface was deleted", async () => {
      const errors: VtepError[] = [];
      rig.onLost = (error) => {
        errors.push(error);
      };
      rig.taps.watch(() => {
        rig.taps.read(batch);
      });
      rig.lose();
      await eventually("the loss", () => errors.length > 0);
      const burst = new Burst([frame(60, 1), frame(60, 2)]);
      expect(burst.write(rig.taps)).toBe(2);
      for (const error of burst.errors) expect(error).toBeGreaterThan(0);
      expect(rig.taps.read(batch)).toBe(0);
      for (let round = 0; round < 5; round++) {
        await turn();
        rig.turn();
      }
      expect(errors).toEqual([expect.objectContaining({ name: "VtepError", code: "LOST" })]);
      expect(errors[0]?.message).toContain(rig.tap.name);
    });
  });

  describe("writes", () => {
    test("frames in their order", async () => {
      const sent = Array.from({ length: 200 }, (_, seed) => frame(60 + seed, seed));
      const burst = new Burst(sent);
      expect(burst.write(rig.taps)).toBe(0);
      expect(burst.errors).toEqual(sent.map(() => 0));
      expect(await received(sent.length)).toEqual(sent.map(hex));
    });

    test.each([1500, 9000])("every size up to an MTU of %i", async (mtu) => {
      rig.close();
      rig = makeRig(mtu);
      const sizes = [14, 15, 16, 59, 60, 61, 64, 128, 1000, mtu + 13, mtu + 14];
      const sent = sizes.map((size, seed) => frame(size, seed));
      expect(new Burst(sent).write(rig.taps)).toBe(0);
      expect(await received(sent.length)).toEqual(sent.map(hex));
    });

    test("as many rows as there are, and no more than it is told to", async () => {
      const sent = Array.from({ length: OUT_ROWS }, (_, seed) => frame(60, seed));
      const burst = new Burst(sent);
      burst.batch.outTap.fill(INDEX);
      const half = OUT_ROWS / 2;
      expect(rig.taps.write(burst.batch, half)).toBe(0);
      expect(burst.errors.slice(half)).toEqual(new Array(half).fill(999));
      expect(await received(half)).toEqual(sent.slice(0, half).map(hex));
      burst.batch.outOffset.copyWithin(0, half);
      expect(rig.taps.write(burst.batch, half)).toBe(0);
      expect(await received(half)).toEqual(sent.slice(half).map(hex));
      rig.taps.write(burst.batch, 0);
      expect(rig.received()).toEqual([]);
    });

    test("what it can: a row that fails does not harm its neighbours", async () => {
      const good = [0, 2, 4, 6].map((seed) => frame(60, seed));
      const burst = new Burst([
        good[0]!,
        frame(20, 1), // to be cut short
        good[1]!,
        frame(60, 3), // to be put beyond the slab
        good[2]!,
        frame(60, 5), // to be put before it
        good[3]!,
      ]);
      burst.batch.outLength[1] = ETHERNET_HEADER - 1;
      burst.batch.outOffset[3] = SLAB_BYTES - 59;
      burst.batch.outOffset[5] = -1;
      expect(burst.write(rig.taps)).toBe(3);
      expect(burst.errors.map((error) => error > 0)).toEqual([
        false,
        true,
        false,
        true,
        false,
        true,
        false,
      ]);
      expect(await received(4)).toEqual(good.map(hex));
    });

    test("any burst, there and back", async () => {
      const property = fc.asyncProperty(
        fc.array(fc.integer({ min: 14, max: 1514 }), { minLength: 1, maxLength: 80 }),
        async (sizes) => {
          const sent = sizes.map((size, seed) => frame(size, seed));
          expect(new Burst(sent).write(rig.taps)).toBe(0);
          rig.transmit(sent);
          expect(await received(sent.length)).toEqual(sent.map(hex));
          const { frames } = await read(sent.length);
          expect(frames.map(hex)).toEqual(sent.map(hex));
        },
      );
      await fc.assert(property, { numRuns: 40 });
    });
  });

  describe("leaves its taps", () => {
    test("and nothing is read from it, written to it or told of it", async () => {
      let calls = 0;
      rig.taps.watch(() => {
        calls++;
      });
      rig.taps.remove(INDEX);
      rig.taps.remove(INDEX);
      rig.transmit([frame(60, 1)]);
      const burst = new Burst([frame(60, 2)]);
      expect(burst.write(rig.taps)).toBe(1);
      expect(burst.errors).toEqual([constants.errno.ENODEV]);
      rig.lose(); // which would throw
      for (let round = 0; round < 5; round++) {
        await turn();
        rig.turn();
      }
      expect(rig.taps.read(batch)).toBe(0);
      expect(calls).toBe(0);
      expect(rig.received()).toEqual([]);
    });

    test("and may join them again, by whatever index is free", async () => {
      const add = (index: number) => rig.taps.add(index, rig.tap, unexpected);
      expect(() => add(INDEX)).toThrow(expect.objectContaining({ code: "SYSTEM" }));
      rig.taps.remove(INDEX);
      add(INDEX + 1);
      rig.transmit([frame(60, 1)]);
      const { frames } = await read(1);
      expect(frames.map(hex)).toEqual([hex(frame(60, 1))]);
      expect(batch.inTap[0]).toBe(INDEX + 1);
    });
  });

  describe("closes", () => {
    test("twice, and the interface is gone", () => {
      expect(rig.exists()).toBe(true);
      rig.tap.close();
      rig.tap.close();
      expect(rig.exists()).toBe(false);
    });

    test("for good: it has left its taps", () => {
      rig.tap.close();
      expect(rig.taps.read(batch)).toBe(0);
      expect(new Burst([frame(60, 1)]).write(rig.taps)).toBe(1);
    });

    test("in silence, also with frames waiting", async () => {
      let calls = 0;
      let lost = 0;
      rig.onLost = () => {
        lost++;
      };
      rig.taps.watch(() => {
        calls++;
      });
      rig.transmit([frame(60, 1), frame(60, 2)]);
      await eventually("readiness", () => calls > 0);
      rig.tap.close();
      const before = calls;
      for (let round = 0; round < 5; round++) {
        await turn();
        rig.turn();
      }
      expect({ calls, lost }).toEqual({ calls: before, lost: 0 });
    });

    test("out of its own onReadable", async () => {
      let calls = 0;
      rig.taps.watch(() => {
        calls++;
        rig.tap.close();
      });
      rig.transmit([frame(60, 1), frame(60, 2)]);
      await eventually("readiness", () => calls > 0);
      for (let round = 0; round < 5; round++) {
        await turn();
        rig.turn();
      }
      expect(calls).toBe(1);
    });
  });
});
