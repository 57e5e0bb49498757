// Sends or hears single UDP datagrams, inside a namespace. Plain JavaScript, as stream.mjs is.
//
//   send ADDRESS PORT [SOURCE-ADDRESS]   one datagram per line of standard input, in hex
//   hear PORT [GROUP…]                   prints {"port"}, then {"from","port","payload"} per datagram
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { isIPv6 } from "node:net";
import { text } from "node:stream/consumers";

async function send(address, port, source) {
  const lines = (await text(process.stdin)).split("\n");
  const socket = createSocket(isIPv6(address) ? "udp6" : "udp4");
  socket.bind(0, source);
  await once(socket, "listening");
  if (!isIPv6(address)) socket.setBroadcast(true);
  for (const line of lines.slice(0, -1)) {
    const payload = Buffer.from(line, "hex");
    await new Promise((resolve, reject) =>
      socket.send(payload, Number(port), address, (error) => (error ? reject(error) : resolve())),
    );
  }
  socket.close();
}

async function hear(port, ...groups) {
  const socket = createSocket({ type: groups.some(isIPv6) ? "udp6" : "udp4", reuseAddr: true });
  socket.on("message", (payload, { address, port }) =>
    console.log(JSON.stringify({ from: address, port, payload: payload.toString("hex") })),
  );
  socket.bind(Number(port));
  await once(socket, "listening");
  for (const group of groups) socket.addMembership(group, isIPv6(group) ? "::%eth0" : undefined);
  console.log(JSON.stringify({ port: socket.address().port }));
}

const [program, ...args] = process.argv.slice(2);
await { send, hear }[program](...args);
