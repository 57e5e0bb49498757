/** Turns of the event loop that others have while something is done, counted. */
export class Turns {
  count = 0;
  #next = setImmediate(() => this.#had());

  #had(): void {
    this.count++;
    this.#next = setImmediate(() => this.#had());
  }

  [Symbol.dispose](): void {
    clearImmediate(this.#next);
  }
}
