/**
 * The terminal of `vtep top`: keys in, screens out (`screen.ts` says what is on them).
 *
 * A page of escape sequences of our own: ink, the one library for this that is well kept (8.0), needs Node 22,
 * React and 23 packages to redraw a table once a second; blessed and its forks have ended. Keys are
 * decoded by node:readline.
 *
 * Whatever ends this leaves the terminal as it was found: a key, a signal, an error, Ctrl-Z.
 */
import { once } from "node:events";
import { writeSync } from "node:fs";
import { emitKeypressEvents } from "node:readline";
import { setTimeout } from "node:timers/promises";
import type { Command } from "commander";
import { Client } from "../api/client.ts";
import { VtepError } from "../errors.ts";
import { DEFAULT_SOCKET } from "./ask.ts";
import { draw, FIRST_VIEW, History, type Key, press, type Status, type View } from "./screen.ts";

const PERIOD_MS = 1000;
/** An agent that says nothing for so long is not waited for on a screen that moves. */
const PATIENCE_MS = 2000;

const ALTERNATE_SCREEN = "\x1b[?1049h";
const NORMAL_SCREEN = "\x1b[?1049l";
const HIDE_CURSOR = "\x1b[?25l";
const SHOW_CURSOR = "\x1b[?25h";
const HOME = "\x1b[H";
const ERASE_LINE = "\x1b[K";
const ERASE_BELOW = "\x1b[J";

export function addTopCommand(vtep: Command): void {
  vtep
    .command("top")
    .description("Show what a running agent forwards, live, until q is pressed (? shows keys)")
    .option("--socket <PATH>", "socket of the agent", DEFAULT_SOCKET)
    .action(({ socket }: { socket: string }) => {
      const client = new Client(socket, PATIENCE_MS);
      return top(async () => {
        const [status, remotes] = await Promise.all([client.status(), client.remotes()]);
        return { ...status, remotes };
      });
    });
}

/** Shows what `poll` finds until it is ended by a key. Throws what the first poll throws. */
async function top(poll: () => Promise<Status>): Promise<void> {
  if (!process.stdin.isTTY || !process.stdout.isTTY) {
    const message = "vtep top draws on a terminal: for a pipe or a file take vtep status --json";
    throw new VtepError("USAGE", message);
  }
  const history = new History(await poll(), performance.now());
  const terminal = new Terminal(history);
  try {
    const ended = once(terminal.ended, "abort");
    for (let due = performance.now() + PERIOD_MS; !terminal.ended.aborted; due += PERIOD_MS) {
      const wait = Math.max(0, due - performance.now());
      await setTimeout(wait, undefined, { signal: terminal.ended }).catch(() => undefined);
      // A key ends it also while the agent keeps silent.
      await Promise.race([look(poll, history), ended]);
      terminal.redraw();
    }
  } finally {
    terminal.close();
  }
}

async function look(poll: () => Promise<Status>, history: History): Promise<void> {
  try {
    history.add(await poll(), performance.now());
  } catch (error) {
    history.trouble = (error as Error).message;
  }
}

class Terminal {
  readonly #history: History;
  readonly #end = new AbortController();
  #view: View = FIRST_VIEW;
  #isTaken = false;
  /** What ended it, when that was a signal. */
  #signal: NodeJS.Signals | undefined;

  constructor(history: History) {
    this.#history = history;
    emitKeypressEvents(process.stdin);
    process.stdin.on("keypress", this.#onKey);
    process.stdin.on("end", this.#onGone);
    process.stdout.on("resize", this.redraw);
    process.on("exit", this.#leave); // also after an error that nobody catches
    for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const)
      process.on(signal, this.#onSignal);
    process.on("SIGCONT", this.#onContinued);
    this.#take();
  }

  get ended(): AbortSignal {
    return this.#end.signal;
  }

  readonly redraw = (): void => {
    if (!this.#isTaken) return;
    const { columns, rows } = process.stdout; // 0 on a serial line, which does not know
    const hasColours = process.stdout.hasColors();
    const size = { columns: columns || 80, rows: rows || 24, hasColours, isUtf8: isUtf8() };
    const text = draw(this.#history, this.#view, size).join(`${ERASE_LINE}\r\n`);
    process.stdout.write(`${HOME}${text}${ERASE_LINE}${ERASE_BELOW}`);
  };

  close(): void {
    this.#leave();
    process.stdin.off("keypress", this.#onKey).off("end", this.#onGone).pause();
    process.stdout.off("resize", this.redraw);
    process.off("exit", this.#leave).off("SIGCONT", this.#onContinued);
    for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const)
      process.off(signal, this.#onSignal);
    // Who sent it wants to see that it was heard.
    if (this.#signal !== undefined) process.kill(process.pid, this.#signal);
  }

  #take(): void {
    process.stdin.setRawMode(true).resume();
    this.#isTaken = true;
    process.stdout.write(`${ALTERNATE_SCREEN}${HIDE_CURSOR}`);
    this.redraw();
  }

  readonly #leave = (): void => {
    if (!this.#isTaken) return;
    this.#isTaken = false;
    try {
      process.stdin.setRawMode(false);
      writeSync(process.stdout.fd, `${SHOW_CURSOR}${NORMAL_SCREEN}`); // there may be no later
    } catch {
      // The terminal has gone: there is nothing to restore.
    }
  };

  readonly #onKey = (_: string | undefined, key: Key): void => {
    if (key.ctrl && key.name === "z") return this.#suspend();
    const view = press(this.#view, key, this.#history);
    if (view === undefined) return this.#end.abort();
    this.#view = view;
    this.redraw();
  };

  readonly #onSignal = (signal: NodeJS.Signals): void => {
    this.#signal = signal;
    this.#leave();
    this.#end.abort();
  };

  readonly #onGone = (): void => this.#end.abort();

  /** As the terminal itself does it, which in raw mode it does not. */
  #suspend(): void {
    this.#leave();
    process.kill(0, "SIGTSTP");
  }

  readonly #onContinued = (): void => {
    if (!this.#end.signal.aborted && !this.#isTaken) this.#take();
  };
}

/** As the C library decides it. */
function isUtf8(): boolean {
  const { LC_ALL, LC_CTYPE, LANG } = process.env;
  return /utf-?8/i.test(LC_ALL || LC_CTYPE || LANG || "");
}
