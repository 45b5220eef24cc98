"""Runs commands in a guest for `lab.dom0.console`, which speaks to it over the console. Started by init/guest.sh.

Requests are lines "TAG VERB ARGUMENT"; a tag is a number used once:
    TAG hello             answered at once
    TAG run TEXT          starts shell commands (zlib, base64); says "@lab started TAG PID"; answered when they end
    TAG peek RUN          answered with what the commands of that tag have printed so far
    TAG kill RUN          kills them and their children (their session's process group) with SIGKILL
    TAG again OLD         the answer to that tag once more
An answer is "@lab answer TAG STATUS BYTES", the output (zlib, base64), and "@lab end TAG". Only modules that start
fast are imported.
"""

import os
import select
import signal
import sys
import termios
import zlib
from binascii import a2b_base64, b2a_base64

_DIRECTORY = "/run/lab"
_LINE = 384


class Agent:
    def __init__(self) -> None:
        self._running: dict[int, tuple[int, int]] = {}
        self._pids: dict[int, int] = {}
        self._statuses: dict[int, int] = {}
        self._poll = select.poll()

    def serve(self) -> None:
        self._poll.register(0, select.POLLIN)
        pending = b""
        while True:
            for fd, _events in self._poll.poll():
                if fd:
                    self._ended(fd)
                    continue
                *lines, pending = (pending + os.read(0, 4096)).split(b"\n")
                for line in lines:
                    try:
                        tag, verb, *rest = line.split()
                        self._request(int(tag), verb, rest[0] if rest else b"")
                    except Exception as error:  # a spoilt line must not end the agent; its sender waits in vain
                        print(f"lab: request {line[:60]!r}: {error!r}", file=sys.stderr)

    def _request(self, tag: int, verb: bytes, argument: bytes) -> None:
        if verb == b"run":
            self._run(tag, zlib.decompress(a2b_base64(argument)).decode())
        elif verb == b"peek":
            self._answer(tag, 0, _content(int(argument)))
        elif verb == b"again":
            self._answer(int(argument), self._statuses[int(argument)], _content(int(argument)))
        elif verb == b"kill":
            if int(argument) not in self._statuses:
                os.killpg(self._pids[int(argument)], signal.SIGKILL)
            self._answer(tag, 0, b"")
        elif verb == b"hello":
            self._answer(tag, 0, b"")

    def _run(self, tag: int, text: str) -> None:
        pid = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", text],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, _output(tag), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
        self._pids[tag] = pid
        fd = os.pidfd_open(pid)
        self._running[fd] = (tag, pid)
        self._poll.register(fd, select.POLLIN)
        _write(b"\n@lab started %d %d\n" % (tag, pid))

    def _ended(self, fd: int) -> None:
        tag, pid = self._running.pop(fd)
        self._poll.unregister(fd)
        os.close(fd)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self._statuses[tag] = code if code >= 0 else 128 - code
        self._answer(tag, self._statuses[tag], _content(tag))

    def _answer(self, tag: int, status: int, output: bytes) -> None:
        body = b2a_base64(zlib.compress(output, 6), newline=False)
        lines = [body[begin : begin + _LINE] for begin in range(0, len(body), _LINE)]
        frame = [b"", b"@lab answer %d %d %d" % (tag, status, len(output)), *lines, b"@lab end %d" % tag, b""]
        _write(b"\n".join(frame))


def _output(tag: int) -> str:
    return f"{_DIRECTORY}/{tag}.out"


def _content(tag: int) -> bytes:
    with open(_output(tag), "rb") as file:
        return file.read()


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def main() -> None:
    os.makedirs(_DIRECTORY, exist_ok=True)
    settings = termios.tcgetattr(0)
    settings[0] = settings[1] = settings[3] = 0  # no flow control, no "\r" before "\n", no echo, no lines, no signals
    settings[6][termios.VMIN] = 1
    termios.tcsetattr(0, termios.TCSAFLUSH, settings)
    Agent().serve()


main()
