/**
 * Events on their way to clients, as server-sent events. A client that reads too slowly loses events, not
 * the agent its memory or its time: the last ones are kept once for all, each client has a place among them,
 * and what it had not read when it went is counted, and told in its place.
 */
import type { AgentEvent } from "../operations.ts";

/** Events that are kept for who reads slowly. */
const MOST_KEPT = 4096;
/** Events that are under way to one client at once, and as many again that wait for them: the same piece for all. */
const MOST_AT_ONCE = 256;
/** A comment is sent this often, so that a dead connection is noticed by either end. */
const HEARTBEAT_MS = 10_000;

type Listen = (listener: (event: AgentEvent) => void) => () => void;

interface Told {
  readonly event: AgentEvent;
  /** Events before it, with those that were missed. */
  readonly before: number;
  /** In words, as soon as anybody reads it. */
  text?: string;
  /** Of the first of MOST_AT_ONCE: all of them. */
  piece?: Uint8Array;
}

/** Up to where a client has read: the events that were told until then, and those of them that it is to know of. */
interface Place {
  at: number;
  count: number;
}

export class Feed {
  readonly #listen: Listen;
  /** The last ones, each at its number modulo MOST_KEPT. */
  readonly #kept: Told[] = [];
  #told = 0;
  #count = 0;
  #clients = 0;
  /** Ends what tells, which is asked to for as long as there are clients. */
  #end: (() => void) | undefined;
  readonly #waiting = new Set<() => void>();

  constructor(listen: Listen) {
    this.#listen = listen;
  }

  /** What `listen` tells from now on, for as long as somebody reads it. */
  stream(): ReadableStream<Uint8Array> {
    if (this.#clients++ === 0) this.#end = this.#listen((event) => this.#tell(event));
    const place = { at: this.#told, count: this.#count };
    return new ReadableStream<Uint8Array>({
      start: (controller) => controller.enqueue(Buffer.from(": listening\n\n")),
      pull: async (controller) => controller.enqueue(await this.#next(place)),
      cancel: () => {
        if (--this.#clients === 0) this.#end!();
      },
    });
  }

  #tell(event: AgentEvent): void {
    this.#kept[this.#told % MOST_KEPT] = { event, before: this.#count };
    this.#told++;
    this.#count += event.event === "missed" ? event.count : 1;
    for (const wake of this.#waiting) wake();
    this.#waiting.clear();
  }

  /** What comes next; when nothing does, a sign of life. */
  async #next(place: Place): Promise<Uint8Array> {
    if (place.at === this.#told) await this.#something();
    if (place.at === this.#told) return Buffer.from(": still here\n\n");
    const from = Math.max(place.at, this.#told - MOST_KEPT);
    const to = Math.min(from - (from % MOST_AT_ONCE) + MOST_AT_ONCE, this.#told);
    const missed = this.#countAt(from) - place.count;
    place.at = to;
    place.count = this.#countAt(to);
    const piece = this.#piece(from, to);
    if (missed === 0) return piece;
    return Buffer.concat([Buffer.from(textOf({ event: "missed", count: missed })), piece]);
  }

  #piece(from: number, to: number): Uint8Array {
    const first = this.#kept[from % MOST_KEPT]!;
    if (first.piece !== undefined) return first.piece;
    let text = "";
    for (let at = from; at < to; at++) {
      const told = this.#kept[at % MOST_KEPT]!;
      told.text ??= textOf(told.event);
      text += told.text;
    }
    const piece = Buffer.from(text);
    if (to - from === MOST_AT_ONCE) first.piece = piece;
    return piece;
  }

  #countAt(at: number): number {
    return at === this.#told ? this.#count : this.#kept[at % MOST_KEPT]!.before;
  }

  async #something(): Promise<void> {
    let patience: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      this.#waiting.add(resolve);
      patience = setTimeout(() => {
        this.#waiting.delete(resolve);
        resolve();
      }, HEARTBEAT_MS).unref();
    });
    clearTimeout(patience);
  }
}

function textOf(event: AgentEvent): string {
  return `event: ${event.event}\ndata: ${JSON.stringify(event)}\n\n`;
}
