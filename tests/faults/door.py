"""A stand-in for the installed `ssfnas`, for shells and scripts: a door to the server of forks, zygote.py.

The stand-in is a program on the PATH. It hands its arguments, environment and open streams through a socket to a fork
of the server, passes on signals, and ends as the fork ends. Whoever starts it, or joins it by pipes, sees a process
like the installed program, which has imported torch already. What is about imports, closed streams, limits or the
locale of a process needs the installed program itself.
"""

import fcntl
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

HEADER = 8  # bytes of a request's length, and of an exit code
HIGH = 512  # no stream of a stand-in has a number like this
PASSED_ON = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")

STAND_IN = """#!{python} -ISs
import json, os, signal, socket, sys

passed_on = [getattr(signal, name) for name in {passed_on}]
streams = [number for number in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{{number}}")]
ignored = [int(number) for number in passed_on if signal.getsignal(number) == signal.SIG_IGN]
request = {{"argv": sys.argv[1:], "cwd": os.getcwd(), "environ": dict(os.environ), "ignored": ignored,
           "streams": streams, "program": {program!r}}}
text = json.dumps(request).encode()
door = socket.socket(socket.AF_UNIX)
signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)
door.connect({path!r})
socket.send_fds(door, [len(text).to_bytes({header})], streams)
door.sendall(text)
for number in passed_on:  # also those that are ignored: the fork has to decide
    signal.signal(number, lambda number, frame: door.send(bytes([number])))
signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
code = int.from_bytes(door.recv({header}), signed=True)
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def write_stand_in(folder: Path, path: Path) -> Path:
    """Write the program `ssfnas` into a folder; its door is the socket at `path`."""
    program = folder / "ssfnas"
    facts = {"python": sys.executable, "passed_on": PASSED_ON, "path": str(path), "program": str(program)}
    program.write_text(STAND_IN.format(header=HEADER, **facts))
    program.chmod(0o755)
    return program


def keep(path: str, parent: int, run: Callable[[dict], int]) -> None:
    """Let everybody in at the socket `path`, until the descriptor `parent` says that the server has ended.

    Args:
        path: where the socket is made.
        parent: a pipe's end that is readable once the server has ended.
        run: called in a fork with a request; it returns the exit code.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        os.write(1, b"0\n")  # the server's answer: the door is open
        while True:
            ready, _, _ = select.select([listener, parent], [], [], 0.2)
            while _reap():
                pass
            if parent in ready:
                return
            if listener in ready:
                visitor, _ = listener.accept()
                if os.fork() == 0:
                    listener.close()
                    _attend(visitor, run)
                visitor.close()


def _reap() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] > 0
    except ChildProcessError:
        return False


def _give_numbers(streams: list[int], numbers: list[int]) -> None:
    """Give open streams the numbers that they have in the stand-in, and close all others."""
    aside = [fcntl.fcntl(stream, fcntl.F_DUPFD, HIGH) for stream in streams]
    os.closerange(0, HIGH)
    for stream, number in zip(aside, numbers, strict=True):
        os.dup2(stream, number)
        os.close(stream)


def _attend(visitor: socket.socket, run: Callable[[dict], int]) -> None:
    """Run what a stand-in asks for in a fork, hand its signals on, and tell it the exit code."""
    head, streams, _, _ = socket.recv_fds(visitor, HEADER, 64)
    text = b""
    while len(text) < int.from_bytes(head):
        text += visitor.recv(1 << 16)
    request = json.loads(text)
    pid = os.fork()
    if pid == 0:
        visitor.close()
        _give_numbers(streams, request["streams"])
        run(request)
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(pid)
    while True:
        ready, _, _ = select.select([visitor, ended], [], [])
        if ended in ready:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            try:
                visitor.sendall(code.to_bytes(HEADER, signed=True))
            finally:
                os._exit(0)
        numbers = visitor.recv(16) or bytes([signal.SIGKILL])  # the stand-in has been killed
        for number in numbers:
            os.kill(pid, number)
        if signal.SIGKILL in numbers:
            os.waitpid(pid, 0)
            os._exit(0)
