/** What is true of the underlay on node:dgram alone: its socket's events, its queues, its errors. */
import { randomInt } from "node:crypto";
import dgram from "node:dgram";
import { setImmediate as turn } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { Batch, OUT_ROWS, SLAB_BYTES } from "../../src/batch.ts";
import { DgramUnderlay, type DgramUnderlayOptions } from "../../src/device/dgram-underlay.ts";
import { VtepError } from "../../src/errors.ts";
import { formatAddress, Remotes } from "../../src/remotes.ts";
import { until } from "../lab/until.ts";

const EAGAIN = 11;
const LOCAL = `127.${randomInt(256)}.${randomInt(256)}.1`;

let nextPort = 30_500 + randomInt(2000);
let sockets: dgram.Socket[];
let opened: DgramUnderlay[];
/** What a test does to each socket before it is used. */
let tamper: (socket: dgram.Socket) => void;

beforeEach(() => {
  sockets = [];
  opened = [];
  tamper = () => {};
  const create = dgram.createSocket;
  vi.spyOn(dgram, "createSocket").mockImplementation((...args) => {
    const socket = Reflect.apply(create, dgram, args) as dgram.Socket;
    sockets.push(socket);
    tamper(socket);
    return socket;
  });
});

afterEach(() => {
  for (const underlay of opened) underlay.close();
  vi.restoreAllMocks();
});

type Changes = Partial<DgramUnderlayOptions>;

async function open(changes: Changes = {}) {
  const remotes = new Remotes();
  const options = { local4: LOCAL, port: nextPort++, remotes, largestDatagram: 9000, ...changes };
  const underlay = await DgramUnderlay.open(options);
  opened.push(underlay);
  return { underlay, remotes, port: options.port };
}

/** Why it does not open. */
function refusal(changes: Changes = {}): Promise<unknown> {
  return open(changes).then(
    () => "it opened",
    (error) => error,
  );
}

function oneRow(batch: Batch, remote: number, length = 100): void {
  batch.outLength[0] = length;
  batch.outRemote[0] = remote;
}

describe("opening", () => {
  test.each([
    ["EADDRINUSE", "PORT_IN_USE"],
    ["EADDRNOTAVAIL", "ADDRESS"],
    ["EAFNOSUPPORT", "ADDRESS"],
    ["EINVAL", "ADDRESS"],
    ["EACCES", "PERMISSION"],
    ["EPERM", "SYSTEM"],
    ["ENOMEM", "SYSTEM"],
  ])("makes %s a VtepError %s, in a sentence with a remedy", async (errno, code) => {
    const cause = Object.assign(new Error(errno), { code: errno, syscall: "bind" });
    tamper = (socket) => {
      socket.bind = () => {
        socket.emit("error", cause);
        return socket;
      };
    };
    const error = await refusal();
    if (!(error instanceof VtepError)) throw error;
    expect(error).toMatchObject({ code, cause });
    expect(error.message).toMatch(/^\S.*: \S.*[^.]$/);
    expect(() => sockets[0]!.address()).toThrow(); // closed
  });

  test("leaves the caller's mistakes as they are", async () => {
    expect(await refusal({ port: 70_000 })).toBeInstanceOf(RangeError);
    expect(await refusal({ port: 0 })).toBeInstanceOf(RangeError);
    expect(await refusal({ largestDatagram: 0 })).toBeInstanceOf(RangeError);
    expect(await refusal({ local4: undefined })).toBeInstanceOf(TypeError);
    expect(sockets).toEqual([]);
  });

  test.each([{ local4: "::1" }, { local6: "127.0.0.1" }, { local4: "localhost" }])(
    "looks no name up: %o is no address",
    async (changes) => {
      expect(await refusal(changes)).toMatchObject({ name: "VtepError", code: "ADDRESS" });
      for (const socket of sockets) expect(() => socket.address()).toThrow();
    },
  );

  test("says what dgram cannot do", async () => {
    const { underlay } = await open();
    expect(underlay.capabilities).toEqual({
      sourcePortEntropy: false,
      dontFragment: false,
      zeroChecksum6: false,
      countsOverflows: true,
      carriesTos: false,
      cutsSuperFrames: false,
    });
  });
});

describe("receiving", () => {
  test("tells senders apart, however many there are", async () => {
    const { underlay } = await open();
    const senders = Array.from({ length: 4500 }, (_, n) => `10.1.${n >> 8}.${n & 255}`);
    const batch = new Batch();
    const got: string[] = [];
    for (const [index, address] of [...senders, ...senders.slice(0, 10)].entries()) {
      sockets[0]!.emit("message", Buffer.of(index), { address });
      expect(underlay.receive(batch)).toBe(1);
      got.push(formatAddress(batch.inAddress, 0));
    }
    expect(got.join(" ")).toBe([...senders, ...senders.slice(0, 10)].join(" "));
  });

  test("hears a link-local sender, whose address names an interface", async () => {
    const { underlay } = await open({ local6: "::1" });
    sockets[1]!.emit("message", Buffer.of(1), { address: "fe80::1%eth0" });
    const batch = new Batch();
    expect(underlay.receive(batch)).toBe(1);
    expect(formatAddress(batch.inAddress, 0)).toBe("fe80::1");
  });

  test("keeps a bounded number of datagrams, and of bytes, and counts the others", async () => {
    const { underlay } = await open();
    const batch = new Batch();
    const drain = () => {
      let total = 0;
      for (let rows = underlay.receive(batch); rows > 0; rows = underlay.receive(batch))
        total += rows;
      return total;
    };
    for (let index = 0; index < 5000; index++) {
      sockets[0]!.emit("message", Buffer.of(1), { address: "192.0.2.1" });
    }
    expect(drain()).toBe(4096);
    expect(underlay.overflows()).toBe(5000 - 4096);
    for (let index = 0; index < 200; index++) {
      sockets[0]!.emit("message", Buffer.alloc(65_000), { address: "192.0.2.1" });
    }
    const bytes = 8 * 1024 * 1024;
    expect(drain()).toBe(Math.floor(bytes / 65_000));
    expect(underlay.overflows()).toBe(5000 - 4096 + 200 - Math.floor(bytes / 65_000));
  });

  test("counts what the kernel dropped, also after others had the port", async () => {
    const first = await open();
    const { port } = first;
    const filled = first.remotes.add(LOCAL, port);
    const batch = new Batch();
    for (let row = 0; row < OUT_ROWS; row++) {
      batch.outLength[row] = 8000;
      batch.outRemote[row] = filled;
    }
    // All in one turn of the event loop: nobody reads, so the kernel's buffer fills.
    for (let round = 0; round < 3; round++) first.underlay.send(batch, OUT_ROWS);
    expect(first.underlay.overflows()).toBeGreaterThan(0);
    first.underlay.close();
    const second = await open({ port });
    expect(second.underlay.overflows()).toBe(0);
  });
});

describe("sending", () => {
  test("tells afterwards of what the kernel refused", async () => {
    const { underlay, remotes } = await open();
    const unsent: number[] = [];
    underlay.watch({
      onReadable() {},
      onLost() {},
      onUnsent: (errno) => {
        unsent.push(errno);
      },
    });
    const batch = new Batch();
    oneRow(batch, remotes.add("203.0.113.1", 4789));
    expect(underlay.send(batch, 1)).toBe(0);
    expect(unsent).toEqual([]);
    await until("a reason", () => unsent.length > 0);
    expect(unsent).toHaveLength(1);
    expect(unsent[0]).toBeGreaterThan(0);
  });

  /** Sockets that are full: what is sent stays queued, in the memory it was sent from. */
  function congest(): { release(): string[]; queued: () => number } {
    type Sent = [Uint8Array, number, number, number, string, (error: Error | null) => void];
    let queue: Sent[] = [];
    tamper = (socket) => {
      socket.send = ((...args: Sent) => {
        queue.push(args);
      }) as unknown as typeof socket.send;
      socket.getSendQueueCount = () => queue.length;
    };
    return {
      queued: () => queue.length,
      release: () => {
        const texts = queue.map(([bytes, offset, length]) =>
          Buffer.from(bytes.subarray(offset, offset + length)).toString("latin1"),
        );
        for (const [, , , , , callback] of queue) callback(null);
        queue = [];
        return texts;
      },
    };
  }

  test("keeps queued datagrams as they were, whatever is written to the slab", async () => {
    const sockets = congest();
    const { underlay, remotes } = await open();
    const batch = new Batch();
    const text = (n: number) => `${n}`.repeat(10);
    for (let n = 0; n < 10; n++) {
      batch.slab.set(Buffer.from(text(n)), n);
      oneRow(batch, remotes.add(LOCAL, 4789), 10);
      batch.outOffset[0] = n;
      expect(underlay.send(batch, 1)).toBe(0);
      batch.slab.fill(0);
    }
    expect(sockets.release()).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9].map(text));
  });

  test("bounds the bytes that are queued: the row fails with EAGAIN until there is room", async () => {
    const sockets = congest();
    const { underlay, remotes } = await open();
    const batch = new Batch();
    const fill = () => {
      let sent = 0;
      for (let n = 0; n < 100; n++) {
        oneRow(batch, remotes.add(LOCAL, 4789), 65_000);
        const failed = underlay.send(batch, 1);
        expect(batch.outError[0]).toBe(failed === 0 ? 0 : EAGAIN);
        sent += 1 - failed;
      }
      return sent;
    };
    const room = Math.floor((4 * SLAB_BYTES) / 65_000);
    expect(fill()).toBe(room);
    expect(fill()).toBe(0);
    expect(sockets.release()).toHaveLength(room);
    expect(fill()).toBe(room);
  });

  test("bounds the rows that are queued, however short", async () => {
    const sockets = congest();
    const { underlay, remotes } = await open();
    const batch = new Batch();
    for (let row = 0; row < OUT_ROWS; row++) {
      batch.outLength[row] = 50;
      batch.outRemote[row] = remotes.add(LOCAL, 4789);
    }
    batch.outRemote[7] = 0;
    const failures = Array.from({ length: 6 }, () => underlay.send(batch, OUT_ROWS));
    expect(failures).toEqual([1, 1, 1, 1, OUT_ROWS, OUT_ROWS]);
    expect(batch.outError[7]).not.toBe(EAGAIN);
    expect(batch.outError[8]).toBe(EAGAIN);
    expect(sockets.queued()).toBe(4 * (OUT_ROWS - 1));
  });
});

describe("losing a socket", () => {
  const failure = Object.assign(new Error("recvmsg EBADF"), { code: "EBADF", errno: -9 });

  test("tells once, and does nothing more", async () => {
    const { underlay, remotes, port } = await open({ local6: "::1" });
    const lost: VtepError[] = [];
    let calls = 0;
    underlay.watch({
      onReadable: () => {
        calls++;
      },
      onLost: (error) => {
        lost.push(error);
      },
    });
    sockets[0]!.emit("message", Buffer.of(1), { address: LOCAL });
    sockets[0]!.emit("error", failure);
    sockets[1]!.emit("error", failure);
    expect(lost).toEqual([expect.objectContaining({ code: "LOST", cause: failure })]);
    const batch = new Batch();
    oneRow(batch, remotes.add(LOCAL, port));
    expect(underlay.send(batch, 1)).toBe(1);
    expect(batch.outError[0]).toBeGreaterThan(0);
    expect(underlay.receive(batch)).toBe(0);
    await turn();
    expect(calls).toBe(0);
    underlay.close();
    underlay.close();
  });

  test("has no unheard error, whether anybody watches or not", async () => {
    const { underlay } = await open();
    sockets[0]!.emit("error", failure);
    underlay.close();
    sockets[0]!.emit("error", failure);
  });
});
