/**
 * The path that the agent, or Docker's driver, is asked at: a live one holds it, and a dead one's is taken over.
 *
 * A socket file outlives its process, and tells nothing of it; whether somebody listens is found out
 * by connecting. The file is made with mode 0660 from its first moment: who is in its group may ask.
 */
import { once } from "node:events";
import {
  accessSync,
  chmodSync,
  constants,
  existsSync,
  lstatSync,
  mkdirSync,
  rmSync,
  type Stats,
  statSync,
} from "node:fs";
import type { Server as HttpServer } from "node:http";
import { connect, type Server } from "node:net";
import { dirname } from "node:path";
import { VtepError } from "../errors.ts";

/** Not for others: umask while the file is made. */
const MASK = 0o117;
/** Callers that may wait for their turn; net.core.somaxconn has the last word (4096 by default). */
const BACKLOG = 4096;

/** A descriptor that already listens (systemd's socket activation), or a path to listen at. */
export type Place = { readonly fd: number } | { readonly path: string };

/** Who is to listen, in the words for people when it cannot. */
export interface Asked {
  readonly what: string;
  /** Another of its kind, and how that is ended. */
  readonly another: string;
  readonly end: string;
  /** That names the path. */
  readonly flag: string;
}

const AGENT: Asked = { what: "the API", another: "an agent", end: "stop it", flag: "--socket" };

/** Throws VtepError unless the path is free, or a dead one's. */
export async function refuseHeld(path: string, asked = AGENT): Promise<void> {
  const { another, end, flag } = asked;
  const file = found(path);
  if (file === undefined) return;
  if (!file.isSocket()) {
    throw new VtepError(
      "SOCKET_IN_USE",
      `${path} exists and is no socket: remove it, or name another with ${flag} PATH`,
    );
  }
  const fault = await knock(path);
  if (fault?.code === "ECONNREFUSED" || fault?.code === "ENOENT") return;
  throw new VtepError(
    "SOCKET_IN_USE",
    fault?.code === "EACCES"
      ? `${path} belongs to somebody else: run as root, or name another with ${flag} PATH`
      : `${another} already listens at ${path}: ${end}, or name another with ${flag} PATH`,
    fault,
  );
}

/** Throws VtepError unless a socket could be made there; it makes nothing. */
export async function refuseUnusable(path: string): Promise<void> {
  await refuseHeld(path);
  let directory = dirname(path);
  while (!existsSync(directory)) directory = dirname(directory); // which listening would make
  try {
    if (!statSync(directory).isDirectory()) throw new Error(`${directory} is no directory`);
    accessSync(directory, constants.W_OK | constants.X_OK);
  } catch (error) {
    const reason = explained(path, AGENT, error as NodeJS.ErrnoException);
    throw new VtepError("SYSTEM", reason, error);
  }
}

/** Makes a server listen there. Throws VtepError. */
export async function listen(server: Server, place: Place, asked = AGENT): Promise<void> {
  const where = "fd" in place ? `descriptor ${place.fd}` : place.path;
  try {
    if ("path" in place) await makeRoom(place.path, asked);
    const listening = once(server, "listening");
    const mask = process.umask(MASK);
    try {
      server.listen({ ...place, backlog: BACKLOG });
    } finally {
      process.umask(mask);
    }
    await listening;
  } catch (error) {
    if (error instanceof VtepError) throw error;
    throw new VtepError("SYSTEM", explained(where, asked, error as NodeJS.ErrnoException), error);
  }
}

/** An HTTP server until it is disposed of, with whoever is connected to it. */
export function disposable(server: HttpServer): AsyncDisposable {
  return {
    async [Symbol.asyncDispose]() {
      const closed = new Promise((resolve) => server.close(resolve));
      server.closeAllConnections();
      await closed;
    },
  };
}

async function makeRoom(path: string, asked: Asked): Promise<void> {
  await refuseHeld(path, asked);
  rmSync(path, { force: true });
  const made = mkdirSync(dirname(path), { recursive: true });
  if (made !== undefined) chmodSync(dirname(path), 0o755); // whatever the umask
}

function explained(
  where: string,
  { what, flag }: Asked,
  { code, message }: NodeJS.ErrnoException,
): string {
  const denied = code === "EACCES" || code === "EPERM" || code === "EROFS";
  const why = denied ? "not permitted" : message;
  return `${what} cannot listen at ${where} (${why}): run as root, or name another path with ${flag} PATH`;
}

function found(path: string): Stats | undefined {
  try {
    return lstatSync(path);
  } catch {
    return undefined; // or its directory cannot be looked into: listening will say so
  }
}

/** Undefined when somebody listens, or the error of connecting. */
async function knock(path: string): Promise<NodeJS.ErrnoException | undefined> {
  const socket = connect(path);
  try {
    await once(socket, "connect");
    return undefined;
  } catch (error) {
    return error as NodeJS.ErrnoException;
  } finally {
    socket.destroy();
  }
}
