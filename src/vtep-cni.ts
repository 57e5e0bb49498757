/** The command that container runtimes run: environment and standard input in, JSON and an exit code out. */
import { text } from "node:stream/consumers";
import { answer, CniError, errorText } from "./cni.ts";

async function main(): Promise<void> {
  const call = { environment: process.env, input: await text(process.stdin) };
  try {
    const said = await answer(call);
    if (said !== undefined) process.stdout.write(`${JSON.stringify(said)}\n`);
  } catch (error) {
    const told = error instanceof CniError ? error : new CniError(100, String(error));
    process.stdout.write(`${JSON.stringify(errorText(told, call))}\n`);
    process.exitCode = 1;
  }
}

void main();
