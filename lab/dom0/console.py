"""Speaking to a guest over its console: sends requests to init/agent.py there, picks answers out of what comes back.

Called by `lab.dom0.guest`. The console is a terminal that the guest's kernel may write to as well, so answers are
framed, compressed (a console carries some 10 KiB a second under emulation), sent in base64 and checked; one that was
cut into is asked for again. The requests are described in init/agent.py.
"""

from __future__ import annotations

import binascii
import os
import re
import select
import threading
import time
import tty
import zlib
from dataclasses import dataclass

__all__ = ["Answer", "Console", "ConsoleClosed"]

_STARTED = re.compile(rb"@lab started (\d+) (\d+)")
_ANSWER = re.compile(rb"@lab answer (\d+) (\d+) (\d+)")
_BASE64 = re.compile(rb"[A-Za-z0-9+/]+={0,2}")


class ConsoleClosed(Exception):
    """The guest's console is gone: the domain has ended."""


@dataclass(frozen=True)
class Answer:
    """How a command in the guest ended: its exit status and all it printed."""

    status: int
    output: bytes


class Console:
    """A guest's console pty. One thread reads it from beginning to end; requests may come from any thread."""

    def __init__(self, pty: str) -> None:
        self._fd = os.open(pty, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        tty.setraw(self._fd)
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._answers: dict[int, Answer] = {}
        self._pids: dict[int, int] = {}
        self._closed = False
        self._last = 0
        self._reader = threading.Thread(target=self._read, name=f"console {pty}", daemon=True)
        self._reader.start()

    def wait_ready(self, deadline: float) -> bool:
        """Wait until the agent in the guest answers; False if it does not by then. It drops what it got before."""
        while time.monotonic() < deadline:
            self.ask("hello")
            with self._changed:
                if self._changed.wait_for(lambda: bool(self._answers) or self._closed, timeout=0.5):
                    return not self._closed
        return False

    def ask(self, verb: str, argument: int | str = "") -> int:
        """Send a request; returns its tag, under which the answer will be found."""
        with self._changed:
            self._last += 1
            tag = self._last
        self._send(f"{tag} {verb} {argument}\n".encode(), time.monotonic() + 60)
        return tag

    def start(self, command: str) -> int:
        """Start shell commands in the guest; returns their tag."""
        return self.ask("run", binascii.b2a_base64(zlib.compress(command.encode()), newline=False).decode())

    def pid(self, tag: int, deadline: float) -> int | None:
        """The process id in the guest of started commands; None if it is not known by then."""
        with self._changed:
            left = max(0.0, deadline - time.monotonic())
            self._changed.wait_for(lambda: tag in self._pids or self._closed, timeout=left)
            return self._pids.get(tag)

    def answered(self, tag: int) -> bool:
        with self._changed:
            return tag in self._answers

    def wait(self, tag: int, deadline: float) -> Answer | None:
        """Wait for an answer; None if it has not come by then. ConsoleClosed if the domain has ended."""
        with self._changed:
            left = max(0.0, deadline - time.monotonic())
            done = self._changed.wait_for(lambda: tag in self._answers or self._closed, timeout=left)
            if tag in self._answers:
                return self._answers[tag]
        if done:
            raise ConsoleClosed
        return None

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._reader.join(5)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _send(self, request: bytes, deadline: float) -> None:
        data = memoryview(request)
        with self._sending:
            while data and not self._closed:
                if time.monotonic() > deadline:
                    raise TimeoutError("the guest does not read its console")
                if select.select([], [self._fd], [], 0.5)[1]:
                    try:
                        data = data[os.write(self._fd, data[:512]) :]
                    except BlockingIOError:
                        continue
                    except OSError:
                        break
        if self._closed:
            raise ConsoleClosed

    def _read(self) -> None:
        partial = b""
        answer: tuple[int, int, int] | None = None
        body: list[bytes] = []
        while not self._closed:
            if not select.select([self._fd], [], [], 0.5)[0]:
                continue
            try:
                data = os.read(self._fd, 65536)
            except BlockingIOError:
                continue
            except OSError:  # EIO: xenconsoled has closed its side, since the domain is gone
                data = b""
            if not data:
                break
            *lines, partial = (partial + data).split(b"\n")
            for line in map(bytes.strip, lines):
                if begin := _ANSWER.search(line):
                    answer, body = (int(begin[1]), int(begin[2]), int(begin[3])), []
                elif answer and line == b"@lab end %d" % answer[0]:
                    self._complete(*answer, b"".join(body))
                    answer = None
                elif answer and _BASE64.fullmatch(line):
                    body.append(line)
                elif started := _STARTED.search(line):
                    with self._changed:
                        self._pids[int(started[1])] = int(started[2])
                        self._changed.notify_all()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _complete(self, tag: int, status: int, size: int, body: bytes) -> None:
        try:
            output = zlib.decompress(binascii.a2b_base64(body))
        except (binascii.Error, zlib.error):
            output = None
        if output is not None and len(output) == size:
            with self._changed:
                self._answers[tag] = Answer(status, output)
                self._changed.notify_all()
        else:
            threading.Thread(target=self.ask, args=("again", tag), daemon=True).start()
