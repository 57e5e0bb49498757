// Carries a file through one TCP connection, inside a container. Plain JavaScript: it starts in a
// fifth of the time that a TypeScript loader takes.
//
//   receive FILE              prints the port it listens on, and ends when the file is complete
//   send ADDRESS PORT FILE    ends when the receiver has taken everything
import { once } from "node:events";
import { createReadStream, createWriteStream } from "node:fs";
import { connect, createServer } from "node:net";
import { pipeline } from "node:stream/promises";

async function receive(file) {
  const server = createServer().listen(0, "::");
  await once(server, "listening");
  console.log(server.address().port);
  const [socket] = await once(server, "connection");
  server.close();
  await pipeline(socket, createWriteStream(file));
}

async function send(address, port, file) {
  const socket = connect(Number(port), address);
  await pipeline(createReadStream(file, { highWaterMark: 1 << 20 }), socket);
  socket.resume();
  if (!socket.closed) await once(socket, "close");
}

const [program, ...args] = process.argv.slice(2);
await { receive, send }[program](...args).catch(({ message }) => {
  console.error(message);
  process.exit(1);
});
