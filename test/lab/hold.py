"""Stops one thread of a process, and no other, until that is killed or this is: a debugger's way.

A signal would stop all of them, and a frozen cgroup keeps what is to be killed alive.
"""
import ctypes, os, sys

ATTACH, TRACED_THREADS = 16, 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
thread = int(sys.argv[1])
if libc.ptrace(ATTACH, thread, None, None) != 0:
    raise OSError(ctypes.get_errno(), "ptrace")
os.waitpid(thread, TRACED_THREADS)
print("held", flush=True)
os.waitpid(thread, TRACED_THREADS)  # or the dead thread would stay a zombie, and its process with it
