/** The one capture that may be under way: frames that the forwarding threads copy, read as a stream of bytes. */
import { Capture, type CapturedNetworks, WHOLE } from "./capture.ts";
import { VtepError } from "./errors.ts";
import { Mirror, type MirrorFilter } from "./mirror.ts";
import type { CaptureStream } from "./operations.ts";
import type { Workers } from "./workers.ts";

export class Captures {
  readonly #workers: Workers;
  readonly #networks: () => CapturedNetworks;
  #current: { end(): Promise<void> } | undefined;

  /** `networks` are those of now. */
  constructor(workers: Workers, networks: () => CapturedNetworks) {
    this.#workers = workers;
    this.#networks = networks;
  }

  /** Of the network of that VNI, or of all. Throws VtepError CONFLICT while there is another. */
  async begin(
    wanted: Omit<MirrorFilter, "snaplen"> & { readonly snaplen: number | undefined },
  ): Promise<CaptureStream> {
    const { snaplen = WHOLE } = wanted;
    if (this.#current !== undefined) {
      throw new VtepError(
        "CONFLICT",
        "somebody captures already, and there can be one at a time: end that capture first",
      );
    }
    const ending = new AbortController();
    let ended: Promise<void> | undefined;
    const end = () => {
      ended ??= (async () => {
        await this.#workers.unmirror().catch(() => undefined); // no thread, no mirror
        ending.abort();
        this.#current = undefined;
      })();
      return ended;
    };
    this.#current = { end };
    const rings = Array.from({ length: this.#workers.count }, () => Mirror.allocate());
    const capture = new Capture(rings, this.#networks, snaplen);
    const shown = [...this.#networks()].filter(([, { vni }]) => {
      return [vni, undefined].includes(wanted.vni);
    });
    const indices = shown.map(([index]) => index);
    const stream = capture.stream(indices, ending.signal);
    const fail = async (error: unknown) => {
      await end();
      throw error;
    };
    await this.#workers.mirror(rings, { ...wanted, snaplen }).catch(fail);
    const read = async () => {
      const { value, done } = await stream.next().catch(fail);
      return done ? undefined : value;
    };
    return { read, end };
  }

  /** Returns whether there was one. */
  async end(): Promise<boolean> {
    if (this.#current === undefined) return false;
    await this.#current.end();
    return true;
  }
}
