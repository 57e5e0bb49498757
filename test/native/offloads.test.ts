/**
 * Segmentation and coalescing as pure functions: one undoes the other, byte for byte, and what must
 * not be joined is not. Frames are built here, and judged by a checksum that is slow and plain.
 */
import fc from "fast-check";
import { describe, expect, it, vi } from "vitest";
import { VNET_GSO_NONE, VNET_GSO_TCPV6 } from "../../src/batch.ts";
import { addon } from "../../src/device/native.ts";
import { bytes, CUSTOMER_TAG, MAC_A, MAC_B, naiveChecksum, u16 } from "../unit/wire/frames.ts";
import {
  ACK,
  CWR,
  ECE,
  FIN,
  frameOf,
  PLAIN,
  PSH,
  RST,
  type Segment,
  SYN,
  segmentsOf,
  URG,
  vnetOf,
} from "./segments.ts";

vi.setConfig({ testTimeout: 30_000 }); // thousands of frames of thousands of bytes, on a busy host

const EINVAL = 22;
const SERVICE_TAG = [0x88, 0xa8, 0, 10];

function expectSame(got: readonly Uint8Array[], wanted: readonly Uint8Array[]): void {
  expect(got.length).toBe(wanted.length);
  for (const [at, frame] of got.entries()) expect(Buffer.compare(frame, wanted[at]!)).toBe(0);
}

type Kind = Pick<Segment, "v6" | "tcp" | "tags" | "options">;

/** Makes the checksums of a frame right that has neither IPv4's options nor IPv6's extensions. */
function setChecksums(frame: Uint8Array, { v6, tcp, tags }: Kind): void {
  const network = 14 + tags.length;
  const transport = network + (v6 ? 40 : 20);
  const field = transport + (tcp ? 16 : 6);
  if (!v6) {
    frame.set([0, 0], network + 10);
    frame.set(u16(naiveChecksum(frame.subarray(network, transport))), network + 10);
  }
  frame.set([0, 0], field);
  const addresses = frame.subarray(network + (v6 ? 8 : 12), transport);
  const length = u16(frame.length - transport);
  const pseudo = bytes(addresses, [0, 0], length, [0, 0, 0, tcp ? 6 : 17]);
  const sum = naiveChecksum(bytes(pseudo, frame.subarray(transport)));
  frame.set(u16(sum), field);
}

const header = fc.record({
  v6: fc.boolean(),
  tcp: fc.boolean(),
  port: fc.integer({ min: 1, max: 65_535 }),
  tos: fc.nat(255),
  ttl: fc.integer({ min: 1, max: 255 }),
  flowLabel: fc.nat(0xfffff),
  df: fc.boolean(),
  id: fc.nat(0xffff),
  sequence: fc.nat(0xffffffff),
  ack: fc.nat(0xffffffff),
  window: fc.nat(0xffff),
  options: fc
    .nat(10)
    .chain((words) => fc.array(fc.nat(255), { minLength: 4 * words, maxLength: 4 * words })),
});
const payload = (max: number) => fc.uint8Array({ minLength: 1, maxLength: max, size: "max" });

describe("segmentation", () => {
  it("makes what a sender without offload would have sent, whatever the headers", () => {
    const flags = fc.constantFrom(ACK, ACK | PSH, ACK | FIN, ACK | CWR, ACK | ECE | PSH);
    const more = fc.record({
      flags,
      tags: fc.constantFrom<number[][]>([], CUSTOMER_TAG, [...SERVICE_TAG, ...CUSTOMER_TAG]),
      ipOptions: fc.constantFrom<number[][]>([], [1, 1, 1, 0]),
      extension: fc.constantFrom(0, 8, 256, 2048),
      payload: payload(6000),
    });
    fc.assert(
      fc.property(header, more, fc.integer({ min: 1, max: 1500 }), (h, m, size) => {
        const given = { ...h, ...m };
        const got = addon().segment(frameOf(given, "partial"), vnetOf(given, size));
        expectSame(got as Buffer[], segmentsOf(given, size));
      }),
      { numRuns: 300 },
    );
  });

  it("makes 47 segments of 64 KiB, all checksums right", () => {
    const given = { payload: Uint8Array.from({ length: 65_000 }, (_, at) => at * 7) };
    const got = addon().segment(frameOf(given, "partial"), vnetOf(given, 1386)) as Buffer[];
    expect(got.length).toBe(47);
    expectSame(got, segmentsOf(given, 1386));
  });

  it.each([
    ["no Ethernet header", (frame: Uint8Array) => frame.subarray(0, 13), {}],
    ["no IP header", (frame: Uint8Array) => frame.subarray(0, 30), {}],
    ["no TCP header", (frame: Uint8Array) => frame.subarray(0, 50), {}],
    ["no payload", (frame: Uint8Array) => frame.subarray(0, 54), {}],
    ["IPv4 where IPv6 is said", (frame: Uint8Array) => frame, { 1: VNET_GSO_TCPV6 }],
    ["an unknown kind", (frame: Uint8Array) => frame, { 1: 3 }],
    ["segments of no size", (frame: Uint8Array) => frame, { 4: 0, 5: 0 }],
    ["a TCP header of less than it has", (frame: Uint8Array) => frame.with(46, 0x40), {}],
    ["a checksum before the IP header ends", (frame: Uint8Array) => frame, { 6: 20, 7: 0 }],
    ["a checksum far behind the frame", (frame: Uint8Array) => frame, { 6: 0xff, 7: 0xff }],
  ])("refuses a super-frame with %s", (_, cut, changes) => {
    const vnet = vnetOf({}, 50);
    for (const [at, value] of Object.entries(changes)) vnet[Number(at)] = value;
    expect(addon().segment(cut(frameOf({}, "partial")), vnet)).toBe(-EINVAL);
  });

  it("never says that a datagram has no checksum", () => {
    const zeroed = frameOf({ tcp: false, payload: new Uint8Array(2) });
    // With its own checksum for payload the sum is 0xffff, of which the complement is zero.
    const given = { tcp: false, payload: bytes(zeroed.subarray(40, 42), [1, 2]) };
    const got = addon().segment(frameOf(given, "partial"), vnetOf(given, 2)) as Buffer[];
    expect(got[0]!.readUInt16BE(40)).toBe(0xffff);
    expectSame(got, segmentsOf(given, 2));
  });

  it("refuses to write more headers for every segment than any socket could ask for", () => {
    const segments = (extension: number) => {
      const given = { v6: true, extension };
      return addon().segment(frameOf(given, "partial"), vnetOf(given, 50));
    };
    expect(segments(2224)).toHaveLength(2);
    expect(segments(2232)).toBe(-EINVAL);
  });

  it("refuses to make more segments than any stack would ask for", () => {
    const segments = (bytes: number) => {
      const given = { payload: new Uint8Array(bytes) };
      return addon().segment(frameOf(given, "partial"), vnetOf(given, 1));
    };
    expect(segments(8192)).toHaveLength(8192);
    expect(segments(8193)).toBe(-EINVAL);
  });

  it.each([
    { v6: false, tcp: false },
    { v6: false, tcp: true },
    { v6: true, tcp: false },
    { v6: true, tcp: true },
  ])("reads no header beyond the frame, wherever that ends: %o", (kind) => {
    const frame = frameOf(kind, "partial");
    const headers = frame.length - PLAIN.payload.length;
    for (let end = 0; end <= frame.length; end++) {
      const got = addon().segment(frame.slice(0, end), vnetOf(kind, 30));
      if (end <= headers) expect(got).toBe(-EINVAL);
      else expect(got).toHaveLength(Math.ceil((end - headers) / 30));
    }
  });

  it("reads no header beyond the frame, whatever it is given", () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ maxLength: 300 }),
        fc.uint8Array({ minLength: 10, maxLength: 10 }),
        (frame, vnet) => {
          const got = addon().segment(frame, vnet);
          if (typeof got === "number") expect(got).toBe(-EINVAL);
          else expect(got.length).toBeGreaterThan(0);
        },
      ),
      { numRuns: 5000 },
    );
  });
});

function coalesce(frames: readonly Uint8Array[], tcp = true, udp = true) {
  return addon().coalesce(frames, tcp, udp);
}

/** What a train becomes when it is cut up again. */
function cutUp({ vnet, frame }: { vnet: Buffer; frame: Buffer }): Uint8Array[] {
  return vnet[1] === VNET_GSO_NONE ? [frame] : (addon().segment(frame, vnet) as Buffer[]);
}

/** With DF the ID means nothing (RFC 6864), and cutting up makes it count. */
function withoutAtomicIds(frame: Uint8Array): Uint8Array {
  const copy = Uint8Array.from(frame);
  const isIpv4 = copy[12] === 0x08 && copy[13] === 0x00;
  if (isIpv4 && (copy[20]! & 0x40) !== 0) copy.set([0, 0], 18);
  if (isIpv4) copy.set([0, 0], 24);
  return copy;
}

describe("coalescing", () => {
  it("undoes segmentation, byte for byte", () => {
    const size = fc.integer({ min: 20, max: 1448 });
    fc.assert(
      fc.property(header, size, payload(20_000), fc.boolean(), (h, wanted, payload, push) => {
        const size = Math.max(wanted, Math.ceil(payload.length / 64));
        const given = { ...h, payload, flags: push ? ACK | PSH : ACK };
        const segments = segmentsOf(given, size);
        const [train, ...others] = coalesce(segments);
        expect(others).toEqual([]);
        expect(train!.rows).toEqual(segments.map((_, row) => row));
        if (segments.length === 1) {
          expect(train!.vnet.every((byte) => byte === 0)).toBe(true);
          expectSame([train!.frame], segments);
        } else {
          expectSame([train!.frame], [frameOf(given, "partial")]);
          expect(train!.vnet).toEqual(vnetOf(given, size));
        }
      }),
      { numRuns: 300 },
    );
  });

  it("is undone by segmentation, whatever comes, and keeps the order within a flow", () => {
    // Few values for each field, so that neighbours often fit together, and often do not.
    const field = fc.record({
      v6: fc.boolean(),
      tcp: fc.boolean(),
      port: fc.constantFrom(1, 2),
      tos: fc.constantFrom(0, 0, 0, 3),
      ttl: fc.constantFrom(64, 64, 64, 63),
      df: fc.constantFrom(true, true, false),
      flags: fc.constantFrom(
        ACK,
        ACK,
        ACK,
        ACK | PSH,
        ACK | FIN,
        SYN,
        ACK | CWR,
        ACK | URG,
        ACK | RST,
      ),
      ack: fc.constantFrom(7, 7, 7, 8),
      window: fc.constantFrom(9, 9, 9, 10),
      options: fc.constantFrom<number[][]>([], [], [1, 1, 1, 1]),
      tags: fc.constantFrom<number[][]>([], [], CUSTOMER_TAG, [...CUSTOMER_TAG, ...CUSTOMER_TAG]),
      fragment: fc.constantFrom(0, 0, 0, 0, 0x2000),
      extension: fc.constantFrom(0, 0, 0, 8),
      length: fc.constantFrom(100, 100, 100, 60, 140, 0),
      gap: fc.constantFrom(0, 0, 0, 0, 5),
      spoilt: fc.constantFrom(false, false, false, false, true),
    });
    fc.assert(
      fc.property(fc.array(field, { maxLength: 120 }), (fields) => {
        const next = new Map<string, { sequence: number; id: number }>();
        const frames = fields.map(({ length, gap, spoilt, ...f }, at) => {
          const flow = `${f.v6} ${f.tcp} ${f.port}`;
          const state = next.get(flow) ?? { sequence: 0xffffff00, id: 0xfff0 };
          const sequence = (state.sequence + gap) >>> 0;
          next.set(flow, { sequence: (sequence + length) >>> 0, id: (state.id + 1) & 0xffff });
          const payload = new Uint8Array(length).fill(at);
          const frame = frameOf({ ...f, sequence, id: state.id, payload });
          if (spoilt) frame[frame.length - 1]! ^= 0x40;
          return frame;
        });
        const trains = coalesce(frames);
        const got = trains.flatMap((train) =>
          cutUp(train).map((frame, at) => ({ row: train.rows[at]!, frame })),
        );
        expect(got.map(({ row }) => row).sort((a, b) => a - b)).toEqual(
          frames.map((_, row) => row),
        );
        for (const { row, frame } of got) {
          expect(Buffer.compare(withoutAtomicIds(frame), withoutAtomicIds(frames[row]!))).toBe(0);
        }
        const order = (flow: string) =>
          got
            .map(({ row }) => row)
            .filter(
              (row) => `${fields[row]!.v6} ${fields[row]!.tcp} ${fields[row]!.port}` === flow,
            );
        for (const flow of next.keys()) {
          expect(order(flow)).toEqual([...order(flow)].sort((a, b) => a - b));
        }
        for (const { rows } of trains) {
          if (rows.length > 1) for (const row of rows) expect(fields[row]!.spoilt).toBe(false);
        }
      }),
      { numRuns: 1000 },
    );
  });

  const TWO_TAGS = [...CUSTOMER_TAG, ...CUSTOMER_TAG];
  const tail = PLAIN.payload.length;
  const next: Partial<Segment> = { sequence: PLAIN.sequence + tail, id: 1 };
  const together = [[0, 1]];
  const apart = [[0], [1]];
  const ids = { df: false };

  it.each<[string, Partial<Segment>, Partial<Segment>, number[][]]>([
    ["the next segment", {}, next, together],
    ["the next segment over IPv6", { v6: true }, { ...next, v6: true }, together],
    ["the next datagram", { tcp: false }, { tcp: false }, together],
    ["a shorter one", {}, { ...next, payload: new Uint8Array(1) }, together],
    ["one that pushes", {}, { ...next, flags: ACK | PSH }, together],
    ["IDs that count up", ids, { ...next, ...ids }, together],
    [
      "what has the same VLAN tag",
      { tags: CUSTOMER_TAG },
      { ...next, tags: CUSTOMER_TAG },
      together,
    ],
  ])("joins %s", (_, first, second, rows) => {
    expect(coalesce([frameOf(first), frameOf(second)]).map((train) => train.rows)).toEqual(rows);
  });

  it.each<[string, Partial<Segment>, Partial<Segment>]>([
    ["a gap", {}, { ...next, sequence: PLAIN.sequence + tail + 1 }],
    ["a segment sent again", {}, {}],
    ["another acknowledgement", {}, { ...next, ack: 8 }],
    ["another window", {}, { ...next, window: 502 }],
    ["options", {}, { ...next, options: [1, 1, 1, 1] }],
    ["other options", { options: [1, 1, 1, 0] }, { ...next, options: [1, 1, 1, 1] }],
    ["another TOS", {}, { ...next, tos: 8 }],
    ["congestion experienced", { tos: 2 }, { ...next, tos: 3 }],
    ["another TTL", {}, { ...next, ttl: 63 }],
    ["another hop limit", { v6: true }, { ...next, v6: true, ttl: 63 }],
    ["another traffic class", { v6: true }, { ...next, v6: true, tos: 3 }],
    ["another flow label", { v6: true }, { ...next, v6: true, flowLabel: 1 }],
    ["another destination MAC", {}, { ...next, destination: MAC_A }],
    ["DF cleared", {}, { ...next, df: false }],
    ["an ID that does not count up", ids, { ...next, ...ids, id: 5 }],
    ["a longer one", {}, { ...next, payload: new Uint8Array(101) }],
    ["what follows a push", { flags: ACK | PSH }, next],
    ["what follows a shorter one", { payload: new Uint8Array(5) }, { ...next, sequence: 1005 }],
    ["FIN", {}, { ...next, flags: ACK | FIN }],
    ["SYN", {}, { ...next, flags: ACK | SYN }],
    ["RST", {}, { ...next, flags: ACK | RST }],
    ["URG", {}, { ...next, flags: ACK | URG }],
    ["CWR", {}, { ...next, flags: ACK | CWR }],
    ["ECE", {}, { ...next, flags: ACK | ECE }],
    ["no ACK", {}, { ...next, flags: 0 }],
    ["no payload", {}, { ...next, payload: new Uint8Array(0) }],
    ["IPv4 options", { ipOptions: [1, 1, 1, 0] }, { ...next, ipOptions: [1, 1, 1, 0] }],
    ["IPv6 extensions", { v6: true, extension: 8 }, { ...next, v6: true, extension: 8 }],
    ["a fragment", {}, { ...next, df: false, fragment: 0x2000 }],
    ["another VLAN", { tags: CUSTOMER_TAG }, { ...next, tags: [0x81, 0, 0, 99] }],
    ["a VLAN tag and none", { tags: CUSTOMER_TAG }, next],
    ["a service tag", { tags: SERVICE_TAG }, { ...next, tags: SERVICE_TAG }],
    ["two tags", { tags: TWO_TAGS }, { ...next, tags: TWO_TAGS }],
    ["another flow", {}, { ...next, port: 40_001 }],
    ["another protocol", {}, { tcp: false }],
    ["a longer datagram", { tcp: false }, { tcp: false, payload: new Uint8Array(101) }],
  ])("does not join %s", (_, first, second) => {
    const frames = [frameOf(first), frameOf(second)];
    const trains = coalesce(frames);
    expect(trains.map((train) => train.rows)).toEqual(apart);
    expectSame(
      trains.map((train) => train.frame),
      frames,
    );
  });

  it("copies the payload of one train at a time to one piece, and leaves that of others in several", () => {
    const [one, other] = [40_000, 40_001].map((port) =>
      segmentsOf({ port, payload: new Uint8Array(300).map((_, at) => at + port) }, 100),
    ) as [Uint8Array[], Uint8Array[]];
    const interleaved = one.flatMap((segment, at) => [segment, other[at]!]);
    const frames = [...interleaved, one[0]!, one[1]!]; // sent once more, which ends the first train
    const trains = coalesce(frames);
    expect(trains.map(({ rows, parts }) => ({ rows, parts }))).toEqual([
      { rows: [0, 2, 4], parts: 3 }, // virtio_net_hdr, headers, payload
      { rows: [1, 3, 5], parts: 2 + 3 },
      { rows: [6, 7], parts: 3 },
    ]);
    expectSame(trains.flatMap(cutUp), [...one, ...other, one[0]!, one[1]!]);
  });

  it.each([0, 1, 2])("hands on a corrupted segment as it came, segment %i of three", (spoilt) => {
    const frames = segmentsOf({ payload: new Uint8Array(300).fill(7) }, 100);
    frames[spoilt]![60]! ^= 0x10;
    const trains = coalesce(frames);
    const alone = trains.find(({ rows }) => rows.includes(spoilt))!;
    expect(alone.rows).toEqual([spoilt]);
    expect(Buffer.compare(alone.frame, frames[spoilt]!)).toBe(0);
  });

  const KINDS = [false, true].flatMap((v6) =>
    [
      { tcp: false, tags: [], options: [] },
      { tcp: true, tags: [], options: [] },
      { tcp: true, tags: CUSTOMER_TAG, options: [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2] },
    ].map((kind): Kind => ({ ...kind, v6 })),
  );
  const threeOf = (kind: Partial<Segment>) =>
    segmentsOf({ ...kind, payload: new Uint8Array(300).fill(7) }, 100);
  const bitsOf = (from: number, to: number) =>
    Array.from({ length: (to - from) * 8 }, (_, at) => [from + (at >> 3), 1 << (at & 7)] as const);
  const whole = (frames: readonly Uint8Array[]) =>
    coalesce(frames).some(({ rows }) => rows.length === 3);

  it.each(KINDS)("joins no header of which a bit is spoilt: %o", (kind) => {
    const headers = threeOf(kind)[0]!.length - 100;
    for (const [byte, bit] of bitsOf(0, headers)) {
      // No checksum is about Ethernet's header, nor about IPv6's but for the addresses.
      const isSummed = byte >= 14 + kind.tags.length + (kind.v6 ? 8 : 0);
      for (const spoilt of isSummed ? [[0], [1], [2], [0, 1, 2]] : [[0], [1], [2]]) {
        const frames = threeOf(kind);
        for (const at of spoilt) frames[at]![byte]! ^= bit;
        expect(whole(frames), `byte ${byte}, bit ${bit} of ${spoilt}`).toBe(false);
      }
    }
  });

  it.each(KINDS)("joins no header that differs, its checksums right: %o", (kind) => {
    const headers = threeOf(kind)[0]!.length - 100;
    const joined = new Set<number>();
    for (const [byte, bit] of bitsOf(0, headers)) {
      const frames = threeOf(kind);
      frames[1]![byte]! ^= bit;
      setChecksums(frames[1]!, kind);
      if (whole(frames)) joined.add(byte);
    }
    // The checksums themselves are as before; an ID means nothing beside DF.
    const network = 14 + kind.tags.length;
    const transport = network + (kind.v6 ? 40 : 20);
    const sums = [0, 1].map((at) => transport + (kind.tcp ? 16 : 6) + at);
    const free = kind.v6 ? sums : [...[4, 5, 10, 11].map((at) => network + at), ...sums];
    expect([...joined].sort((a, b) => a - b)).toEqual(free.sort((a, b) => a - b));
  });

  it("does not join what is for a DHCP server or client, which read from packet sockets", () => {
    const joined = (port: number) => {
      const frames = segmentsOf({ tcp: false }, 50);
      for (const frame of frames) {
        frame.set(u16(port), 36);
        setChecksums(frame, { ...PLAIN, tcp: false });
      }
      return coalesce(frames).map(({ rows }) => rows);
    };
    expect([66, 67, 68, 69].map(joined)).toEqual([[[0, 1]], apart, apart, [[0, 1]]]);
  });

  // Ones' complement has two zeros, and segmentation writes one of them (RFC 1624).
  it.each([
    ["TCP over IPv4", {}, true],
    ["TCP over IPv6", { v6: true }, true],
    ["IPv4", {}, false],
  ] as const)("does not join what has the other zero for a checksum of %s", (_, kind, isOfTcp) => {
    const given = { ...PLAIN, ...kind };
    const field = isOfTcp ? (given.v6 ? 70 : 50) : 24;
    const changed = isOfTcp ? field + 4 : 18; // payload, or the ID, which DF leaves to mean nothing
    for (const spoilt of [0, 1, 2]) {
      const rows = (zero: number) => {
        const frames = threeOf(kind);
        const frame = frames[spoilt]!;
        frame.set([0, 0], changed);
        setChecksums(frame, given);
        frame.set(frame.subarray(field, field + 2), changed);
        setChecksums(frame, given);
        expect(frame.subarray(field, field + 2)).toEqual(Uint8Array.of(0, 0));
        frame.set(u16(zero), field);
        return coalesce(frames).map(({ rows }) => rows.length);
      };
      expect(rows(0)).toEqual([3]);
      expect(rows(0xffff)).not.toContain(3);
    }
  });

  it("does not join datagrams without checksum", () => {
    const frames = [frameOf({ tcp: false }), frameOf({ tcp: false })];
    for (const frame of frames) frame.set([0, 0], 40);
    expect(coalesce(frames).map((train) => train.rows)).toEqual(apart);
  });

  it("lets streams interleave: one train for each flow, the older first", () => {
    const flows = [1, 2, 3].map((port) => segmentsOf({ port, payload: new Uint8Array(400) }, 100));
    const frames = [0, 1, 2, 3].flatMap((at) => flows.map((flow) => flow[at]!));
    const rows = coalesce(frames).map((train) => train.rows);
    expect(rows).toEqual([0, 1, 2].map((flow) => [0, 3, 6, 9].map((row) => row + flow)));
  });

  it("closes the oldest train for one more than there may be", () => {
    const flows = Array.from({ length: 17 }, (_, port) =>
      segmentsOf({ port, payload: new Uint8Array(200) }, 100),
    );
    const frames = [
      ...flows.map(([first]) => first!),
      ...flows.slice(1).map(([, second]) => second!),
    ];
    const rows = coalesce(frames).map((train) => train.rows);
    expect(rows).toEqual([[0], ...Array.from({ length: 16 }, (_, at) => [1 + at, 17 + at])]);
  });

  it("closes every train for a fragment, and none for ARP", () => {
    const [first, second] = segmentsOf({ payload: new Uint8Array(200) }, 100) as [
      Uint8Array,
      Uint8Array,
    ];
    const arp = bytes(MAC_B, MAC_A, [0x08, 0x06], new Uint8Array(46));
    const fragment = frameOf({ df: false, fragment: 3, port: 9 });
    const rows = (between: Uint8Array) =>
      coalesce([first, between, second]).map((train) => train.rows);
    expect(rows(arp)).toEqual([[1], [0, 2]]);
    expect(rows(fragment)).toEqual([[0], [1], [2]]);
  });

  it("ends a train at 64 segments and at 64 KiB", () => {
    const many = coalesce(segmentsOf({ payload: new Uint8Array(6500) }, 100));
    expect(many.map(({ rows }) => rows.length)).toEqual([64, 1]);
    const large = coalesce(segmentsOf({ payload: new Uint8Array(70_000) }, 1400));
    expect(large.map(({ rows }) => rows.length)).toEqual([46, 4]);
    expect(large[0]!.frame.length).toBeLessThanOrEqual(14 + 65_535);
    const [most, more] = [65_535 - 40, 65_536 - 40].map((length) => new Uint8Array(length));
    const fitting = coalesce(segmentsOf({ payload: most! }, most!.length / 5));
    expect(fitting.map(({ rows }) => rows.length)).toEqual([5]);
    const exceeding = coalesce(segmentsOf({ payload: more! }, more!.length / 24));
    expect(exceeding.map(({ rows }) => rows.length)).toEqual([23, 1]);
  });

  it("joins nothing of a kind that is switched off", () => {
    const tcp = segmentsOf({ payload: new Uint8Array(200) }, 100);
    const udp = segmentsOf({ tcp: false, payload: new Uint8Array(200) }, 100);
    expect(coalesce([...tcp, ...udp], false, true).map(({ rows }) => rows)).toEqual([
      [0],
      [1],
      [2, 3],
    ]);
    expect(coalesce([...tcp, ...udp], true, false).map(({ rows }) => rows)).toEqual([
      [2],
      [3],
      [0, 1],
    ]);
  });

  it("reads nothing beyond a frame, and hands on what it does not understand", () => {
    const anything = fc.uint8Array({ maxLength: 80 });
    const begun = fc.tuple(anything, fc.nat(120)).map(([noise, length]) => {
      const frame = bytes(frameOf({}), noise);
      return frame.subarray(0, length);
    });
    fc.assert(
      fc.property(fc.array(fc.oneof(anything, begun), { maxLength: 20 }), (frames) => {
        const trains = coalesce(frames);
        expect(trains.reduce((sum, { rows }) => sum + rows.length, 0)).toBe(frames.length);
      }),
      { numRuns: 1000 },
    );
  });
});
