/**
 * Events on their way to one client, as server-sent events. A client that reads too slowly loses
 * events, not the agent its memory: what found no room is counted, and told in its place.
 */
import type { AgentEvent } from "../operations.ts";

/** Events that wait for one client. */
const MOST_WAITING = 4096;
/** A comment is sent this often, so that a dead connection is noticed by either end. */
const HEARTBEAT_MS = 10_000;

class Feed {
  #waiting: AgentEvent[] = [];
  #wake: (() => void) | undefined;

  /** Enters an event. Never waits. */
  push(event: AgentEvent): void {
    const last = this.#waiting.at(-1);
    const lost = event.event === "missed" ? event.count : 1;
    if (this.#waiting.length < MOST_WAITING) this.#waiting.push(event);
    else if (last?.event === "missed") this.#waiting.splice(-1, 1, missed(last.count + lost));
    else this.#waiting.push(missed(lost));
    this.#wake?.();
  }

  /** Everything that waits, as text; when nothing does, the next event, or a sign of life. */
  async next(): Promise<string> {
    if (this.#waiting.length === 0) await this.#something();
    const events = this.#waiting;
    this.#waiting = [];
    if (events.length === 0) return ": still here\n\n";
    return events.map(textOf).join("");
  }

  async #something(): Promise<void> {
    let patience: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
      patience = setTimeout(resolve, HEARTBEAT_MS).unref();
    });
    clearTimeout(patience);
    this.#wake = undefined;
  }
}

/** Of what is told to several, once. */
const texts = new WeakMap<AgentEvent, string>();

function textOf(event: AgentEvent): string {
  const known = texts.get(event);
  if (known !== undefined) return known;
  const text = `event: ${event.event}\ndata: ${JSON.stringify(event)}\n\n`;
  texts.set(event, text);
  return text;
}

function missed(count: number): AgentEvent {
  return { event: "missed", count };
}

/** A stream of what `listen` tells, for as long as somebody reads it. */
export function eventStream(listen: (listener: (event: AgentEvent) => void) => () => void) {
  const feed = new Feed();
  let end: () => void;
  return new ReadableStream<Uint8Array>({
    start(controller) {
      end = listen((event) => feed.push(event));
      controller.enqueue(Buffer.from(": listening\n\n"));
    },
    async pull(controller) {
      controller.enqueue(Buffer.from(await feed.next()));
    },
    cancel: () => end(),
  });
}
