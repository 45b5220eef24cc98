"""Speaking to a guest over its console: sends requests to init/agent.sh there, and picks its answers out of what comes back.

Called by `lab.dom0.guest`. The console is a terminal that the guest's kernel may write to as well, so answers are framed,
sent in base64 and checked for length; one that was cut into is asked for again.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import select
import threading
import time
import tty
from dataclasses import dataclass

__all__ = ["Answer", "Console", "ConsoleClosed"]

_LINE = 720
"""Characters of base64 in one request; a terminal's line may have 4095, and a multiple of 4 decodes by itself."""

_BEGIN = re.compile(rb"@lab begin (\d+) (\d+) (\d+)")
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
        self._ready = self._closed = False
        self._last = 0
        self._reader = threading.Thread(target=self._read, name=f"console {pty}", daemon=True)
        self._reader.start()

    def wait_ready(self, deadline: float) -> bool:
        """Wait until the agent in the guest answers; False if it does not by then."""
        while time.monotonic() < deadline:
            self._send("hello", deadline)
            with self._changed:
                if self._changed.wait_for(lambda: self._ready or self._closed, timeout=0.5):
                    return self._ready
        return False

    def start(self, command: str) -> int:
        """Start a command in the guest; returns the number by which it is known."""
        with self._changed:
            self._last += 1
            number = self._last
        text = base64.b64encode(command.encode()).decode()
        lines = [f"put {number} {text[begin : begin + _LINE]}" for begin in range(0, len(text), _LINE)]
        self._send("\n".join([*lines, f"run {number}"]), time.monotonic() + 60)
        return number

    def answered(self, number: int) -> bool:
        with self._changed:
            return number in self._answers

    def wait(self, number: int, deadline: float) -> Answer | None:
        """Wait for the end of a command; None if it has not ended by then. ConsoleClosed if the domain has."""
        with self._changed:
            done = self._changed.wait_for(
                lambda: number in self._answers or self._closed, timeout=max(0.0, deadline - time.monotonic())
            )
            if number in self._answers:
                return self._answers[number]
        if done:
            raise ConsoleClosed
        return None

    def kill(self, number: int) -> None:
        """Kill a command and its children with SIGKILL."""
        self._send(f"kill {number}", time.monotonic() + 10)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._reader.join(5)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _send(self, lines: str, deadline: float) -> None:
        data = memoryview(lines.encode() + b"\n")
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
                begin = _BEGIN.search(line)
                if begin:
                    number, status, size = map(int, begin.groups())
                    answer, body = (number, status, size), []
                elif answer and line == b"@lab end %d" % answer[0]:
                    self._complete(*answer, b"".join(body))
                    answer = None
                elif answer and _BASE64.fullmatch(line):
                    body.append(line)
                elif line.endswith(b"@lab ready"):
                    with self._changed:
                        self._ready = True
                        self._changed.notify_all()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _complete(self, number: int, status: int, size: int, body: bytes) -> None:
        try:
            output = base64.b64decode(body)
        except binascii.Error:
            output = b""
        with self._changed:
            if len(output) == size:
                self._answers[number] = Answer(status, output)
                self._changed.notify_all()
                return
        threading.Thread(target=self._send, args=(f"show {number}", time.monotonic() + 10), daemon=True).start()
