"""A service manager's notify socket: prints each message, and what came with it, as a line of JSON.

Node can neither listen on a datagram socket of AF_UNIX nor receive descriptors. Reads only after a line
on standard input when its second argument is "slow": one whose queue is full.
"""
import array, json, os, socket, sys

path, slow = sys.argv[1], sys.argv[2:] == ["slow"]
receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
receiver.bind("\0" + path[1:] if path[0] == "@" else path)
print("ready", flush=True)
if slow:
    sys.stdin.readline()
while True:
    message, control, _, _ = receiver.recvmsg(65536, socket.CMSG_SPACE(4 * 253))
    fds = array.array("i")
    for level, kind, data in control:
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        fds.frombytes(data)
    files = [os.readlink(f"/proc/self/fd/{fd}") for fd in fds]
    for fd in fds:
        os.close(fd)
    print(json.dumps({"lines": message.decode().split("\n"), "files": files}), flush=True)
