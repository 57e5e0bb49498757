import { execFile, execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";
import { promisify } from "node:util";
import { until } from "./until.ts";

const run = promisify(execFile);

/** A real terminal with a shell in it, by tmux: keys are typed, and the screen is read. */
export class Terminal implements AsyncDisposable {
  readonly #server = `vtep-${process.pid}-${randomBytes(3).toString("hex")}`;

  static async open({ columns = 80, rows = 24 } = {}): Promise<Terminal> {
    const terminal = new Terminal();
    const size = ["-x", `${columns}`, "-y", `${rows}`];
    const shell = ["env", "LC_ALL=C.UTF-8", "PS1=$ ", "sh"];
    await terminal.#tmux("-f", "/dev/null", "new-session", "-d", ...size, ...shell);
    await terminal.#tmux("set-option", "-g", "status", "off");
    await terminal.#tmux("set-option", "-g", "window-size", "manual");
    await terminal.resize(columns, rows);
    process.once("exit", terminal.#kill);
    await terminal.shows(/^\$/);
    return terminal;
  }

  /** What can be read on it, a line a row. */
  async screen(): Promise<string> {
    return this.#tmux("capture-pane", "-p");
  }

  /** Types keys as tmux names them: "q", "Enter", "C-c". */
  async press(...keys: string[]): Promise<void> {
    for (const key of keys) await this.#tmux("send-keys", key);
  }

  async type(text: string): Promise<void> {
    await this.#tmux("send-keys", "-l", text);
  }

  /** Types a line. */
  async line(text: string): Promise<void> {
    await this.type(text);
    await this.press("Enter");
  }

  /** Waits until the screen has it; returns the screen. */
  async shows(what: RegExp, deadlineMs?: number): Promise<string> {
    let last = "";
    const matching = async () => {
      last = await this.screen();
      return what.test(last) ? last : undefined;
    };
    try {
      return await until(`${what} on the screen`, matching, deadlineMs);
    } catch (error) {
      throw new Error(`${(error as Error).message}; it shows:\n${last}`);
    }
  }

  async resize(columns: number, rows: number): Promise<void> {
    await this.#tmux("resize-window", "-x", `${columns}`, "-y", `${rows}`);
  }

  /** Whether the screen's application has it in another mode: alternate screen, hidden cursor. */
  async modes(): Promise<string> {
    const modes = "#{alternate_on} #{cursor_flag} #{wrap_flag}";
    return (await this.#tmux("display-message", "-p", modes)).trim();
  }

  /** The process that its shell waits for. */
  async foreground(): Promise<number> {
    const shell = (await this.#tmux("display-message", "-p", "#{pane_pid}")).trim();
    const children = await readFile(`/proc/${shell}/task/${shell}/children`, "utf8");
    return Number(children.trim().split(" ").at(-1));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    process.off("exit", this.#kill);
    await this.#tmux("kill-server").catch(() => undefined);
  }

  readonly #kill = (): void => {
    execFileSync("tmux", ["-L", this.#server, "kill-server"], { stdio: "ignore" });
  };

  async #tmux(...args: string[]): Promise<string> {
    return (await run("tmux", ["-L", this.#server, ...args])).stdout;
  }
}
