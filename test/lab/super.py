"""Sends UDP super-frames (UDP_SEGMENT), which Node cannot, of datagrams in the form that stream.mjs receives.

  super.py ADDRESS PORT COUNT SIZE TOGETHER   prints {"sent"}

The last of those that are sent together is a short one. Two super-frames are on the way at most.
"""
import json, os, socket, struct, sys, time, zlib

UDP_SEGMENT = 103
END = 0xFFFFFFFF

address = sys.argv[1]
port, count, size, together = map(int, sys.argv[2:])
sender = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
sender.connect((address, port))
sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
sender.settimeout(0.3)


def datagram(sequence, length):
    number, content = struct.pack(">I", sequence), os.urandom(length - 8)
    return number + struct.pack(">I", zlib.crc32(content, zlib.crc32(number))) + content


arrived = 0


def wait_for(wanted):
    global arrived
    while arrived < wanted:
        try:
            arrived = max(arrived, int(sender.recv(64)))
        except TimeoutError:
            arrived = wanted  # the others are lost


for sent in range(0, count, together):
    lengths = [size] * (together - 1) + [size // 3]
    sender.send(b"".join(datagram(sent + 1 + i, length) for i, length in enumerate(lengths)))
    wait_for(sent)
wait_for(count)
try:
    for _ in range(5):  # one may be lost
        sender.send(datagram(END, 8))
        time.sleep(0.02)
except ConnectionRefusedError:
    pass  # the receiver has gone: it heard the first end
print(json.dumps({"sent": count}))
