// Sends or receives content that can be checked, inside a container. Plain JavaScript: it starts in
// a fifth of the time that a TypeScript loader takes, and the tests start dozens of it.
//
//   tcp-receive                                prints {"port"}, then {"bytes","sha256"}
//   tcp-send ADDRESS PORT BYTES SEED           prints {"bytes","sha256"}
//   udp-receive                                prints {"port"}, then {"received",…} once the sender has said it ends
//   udp-send ADDRESS PORT COUNT SIZES SEED     prints {"sent"}; sizes in turn, separated by commas
//
// The content is an AES key stream: no two places in it are alike, so that what arrives in the wrong
// place is as wrong as what arrives altered. A datagram is
//
//   0  u32 sequence number     4  u32 CRC-32 of everything else     8… key stream
//
// so that one that was altered is told apart from one that was lost. The one with the sequence number
// 0xffffffff says that no more will come. The receiver reports every few datagrams how many it has, and
// the sender keeps no more than WINDOW on the way: a busy machine makes it slower, but loses nothing.
import { createCipheriv, createHash } from "node:crypto";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { connect, createServer, isIPv6 } from "node:net";
import { setTimeout as pause } from "node:timers/promises";
import { crc32 } from "node:zlib";

const CHUNK = 256 * 1024;
const END = 0xffffffff;
const WINDOW = 48;
const REPORT = 8;

const print = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);

function keyStream(seed) {
  const cipher = createCipheriv("aes-128-ctr", Buffer.alloc(16, seed), Buffer.alloc(16));
  const zeros = Buffer.alloc(CHUNK);
  return (bytes) => cipher.update(zeros.subarray(0, bytes));
}

async function tcpReceive() {
  const server = createServer().listen(0, "::");
  await once(server, "listening");
  print({ port: server.address().port });
  const [socket] = await once(server, "connection");
  server.close();
  const hash = createHash("sha256");
  let bytes = 0;
  for await (const chunk of socket) {
    hash.update(chunk);
    bytes += chunk.length;
  }
  print({ bytes, sha256: hash.digest("hex") });
}

async function tcpSend(address, port, bytes, seed) {
  const socket = connect(Number(port), address);
  await once(socket, "connect");
  const hash = createHash("sha256");
  const next = keyStream(seed);
  for (let left = Number(bytes); left > 0; left -= CHUNK) {
    const chunk = next(Math.min(left, CHUNK));
    hash.update(chunk);
    if (!socket.write(chunk)) await once(socket, "drain");
  }
  socket.end().resume();
  await once(socket, "close");
  print({ bytes: Number(bytes), sha256: hash.digest("hex") });
}

function checksum(datagram) {
  return crc32(datagram.subarray(8), crc32(datagram.subarray(0, 4)));
}

async function udpReceive() {
  const socket = createSocket({ type: "udp6", recvBufferSize: 4 << 20 });
  const seen = new Set();
  const result = { received: 0, corrupted: 0, duplicated: 0, reordered: 0 };
  let highest = -1;
  socket.on("message", (datagram, sender) => {
    const intact = datagram.length >= 8 && datagram.readUInt32BE(4) === checksum(datagram);
    const sequence = intact ? datagram.readUInt32BE(0) : -1;
    if (sequence === END) {
      socket.close();
      return;
    }
    if (!intact) result.corrupted++;
    else if (seen.has(sequence)) result.duplicated++;
    else result.received++;
    if (intact && sequence < highest) result.reordered++;
    seen.add(sequence);
    highest = Math.max(highest, sequence);
    const arrived = result.received + result.corrupted;
    if (arrived % REPORT === 0) socket.send(`${arrived}`, sender.port, sender.address);
  });
  socket.bind(0, "::");
  await once(socket, "listening");
  print({ port: socket.address().port });
  await once(socket, "close");
  print(result);
}

async function udpSend(address, port, count, sizes, seed) {
  const socket = createSocket(isIPv6(address) ? "udp6" : "udp4");
  const next = keyStream(seed);
  const inTurn = sizes.split(",").map(Number);
  const datagram = (sequence) => {
    const bytes = Buffer.from(next(inTurn[sequence % inTurn.length]));
    bytes.writeUInt32BE(sequence, 0);
    bytes.writeUInt32BE(checksum(bytes), 4);
    return bytes;
  };
  socket.on("error", () => {}); // the receiver has gone: it heard the first end
  socket.connect(Number(port), address);
  await once(socket, "connect");
  let arrived = 0;
  socket.on("message", (report) => {
    arrived = Math.max(arrived, Number(report));
  });
  const reported = (ms) =>
    once(socket, "message", { signal: AbortSignal.timeout(ms) }).then(
      () => true,
      () => false,
    );
  const send = (bytes) => new Promise((sent) => socket.send(bytes, sent));
  for (let sent = 1, lost = 0; sent <= Number(count); sent++) {
    await send(datagram(sent));
    while (sent - arrived - lost >= WINDOW) if (!(await reported(300))) lost = sent - arrived;
  }
  while (await reported(100)); // what is still on the way
  for (let i = 0; i < 5; i++) {
    await send(datagram(END)); // one may be lost
    await pause(20);
  }
  socket.close();
  print({ sent: Number(count) });
}

const programs = {
  "tcp-receive": tcpReceive,
  "tcp-send": tcpSend,
  "udp-receive": udpReceive,
  "udp-send": udpSend,
};
const [program, ...args] = process.argv.slice(2);
await programs[program](...args);
