"""Who plays a role of `roles.py`: a process, to be killed, or a thread, which survives. Each can be held at a step.

A step is a request to the machine (an open, ioctl, mmap, munmap or close of a device, a request to xenstore), an event
that is sent, or a place that the role itself names. An actor that is held has done all before the step, and nothing of
it. `Actor` is the test's end of a pipe and `play` the actor's; between them goes:

    to the test    held NAME GIVEN | waiting SINCE STAGE GIVEN | ended OUTCOME
    to the actor   go on | give up | again
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import xengrant
from tests.faults.lives import PLAYING, Life, Outcome, Part, played
from xengrant.abi import evtchn, gntalloc, gntdev
from xengrant.abi.xs_wire import Operation, Splitter
from xengrant.devices import wire
from xengrant.devices.client import Client
from xengrant.devices.socket_events import EvtchnDevice, XenbusDevice
from xengrant.devices.wire import Kind

__all__ = ["LONG", "Actor", "Outcome", "Part", "stoppable"]

LONG = 60.0  # seconds; no actor comes near it


@contextlib.contextmanager
def _playing_now(life: Life) -> Iterator[None]:
    """Have the requests of this thread be steps of `life`."""
    playing = PLAYING.set(life)
    try:
        yield
    finally:
        PLAYING.reset(playing)


def _step(name: str) -> None:
    life = PLAYING.get()
    if life is not None:
        life.at(name)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Have the requests of actors in this process be steps."""
    request, write, notify = Client._request, XenbusDevice.write, EvtchnDevice._notify

    def stepping_request(self: Client, kind: Kind, body: bytes) -> Any:
        _step(_name(kind, body))
        return request(self, kind, body)

    def stepping_write(self: XenbusDevice, data: bytes) -> int:
        splitter = Splitter()
        splitter.feed(data)
        message = splitter.next()
        _step(f"xenstore {Operation(message.operation).name}" if message else "xenstore, a part")
        return write(self, data)

    def stepping_notify(self: EvtchnDevice, number: int) -> int:
        _step("NOTIFY")
        return notify(self, number)

    with (
        mock.patch.object(Client, "_request", stepping_request),
        mock.patch.object(XenbusDevice, "write", stepping_write),
        mock.patch.object(EvtchnDevice, "_notify", stepping_notify),
    ):
        yield


_IOCTLS = {
    number: name
    for module in (gntalloc, gntdev, evtchn)
    for name, number in vars(module).items()
    if name.isupper() and isinstance(number, int) and number > 0xFFF
}


def _name(kind: Kind, body: bytes) -> str:
    if kind is Kind.HELLO:
        return f"open {wire.unpack_hello(body).device}"
    if kind is Kind.IOCTL:
        return _IOCTLS[wire.unpack_ioctl(body).request]
    return kind.name


class Actor:
    """A role, played in a process of its own (`victim`) or in a thread (`survivor`); the end of the block ends it."""

    def __init__(self, part: Part, *, process: bool) -> None:
        self.role = part.role
        self.given = b""
        ours, theirs = multiprocessing.Pipe()
        self._pipe = ours
        arguments = (part, theirs)
        self._process: multiprocessing.context.ForkServerProcess | None = None
        self._thread: threading.Thread | None = None
        if process:
            self._process = _context.Process(target=_in_process, args=arguments, daemon=True)
            self._process.start()
            theirs.close()
        else:
            self._thread = threading.Thread(target=play, args=arguments, name=f"survivor-{part.role}")
            self._thread.start()
        self._ended: Outcome | None = None

    def until_held(self) -> str:
        """Wait until it is held; the step's name."""
        while True:
            what, *rest = self._next()
            if what == "held":
                return str(rest[0])
            assert what == "waiting", f"the {self.role} was not held: {what} {rest}"

    def until_quiet(self, *, found: bool = False) -> bool:
        """Wait until it has waited for the other in vain, from now on; False where it has ended.

        `found`: the other is there to be found, so that a look for it which takes too long is no vain one.
        """
        now = time.monotonic()
        while self._ended is None:
            what, *rest = self._next()
            if what == "waiting" and rest[0] >= now and not (found and rest[1] in ("find", "connect")):
                break
        return self._ended is None

    def say(self, what: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._pipe.send(what)

    def outcome(self) -> Outcome:
        """Wait for its end."""
        deadline = time.monotonic() + LONG
        while self._ended is None:
            message = self._next()
            assert time.monotonic() < deadline, f"the {self.role} does not end: {message}"
        return self._ended

    def again(self) -> None:
        """Have a thread that has ended its role play it once more."""
        self._ended = None
        self.say("again")

    def kill(self) -> None:
        """As kill -9 does; when this returns the kernel has closed its files."""
        assert self._process is not None
        self._process.kill()
        self._process.join(LONG)
        assert not self._process.is_alive()

    def stop(self) -> None:
        """As kill -STOP does; when this returns it stands still."""
        os.kill(self._pid, signal.SIGSTOP)
        deadline = time.monotonic() + LONG
        while Path(f"/proc/{self._pid}/stat").read_text().rpartition(") ")[2][0] != "T":
            assert time.monotonic() < deadline, "it does not stop"
            os.sched_yield()

    def cont(self) -> None:
        os.kill(self._pid, signal.SIGCONT)

    def __enter__(self) -> Actor:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self.kill()
            self._process.close()
        if self._thread is not None:
            self.say("give up")
            self.say("end")
            self._thread.join(LONG)
            assert not self._thread.is_alive(), f"the {self.role} does not end"
        self._pipe.close()

    @property
    def _pid(self) -> int:
        assert self._process is not None
        assert self._process.pid is not None
        return self._process.pid

    def _next(self) -> tuple[Any, ...]:
        assert self._pipe.poll(LONG), f"the {self.role} says nothing"
        return self._take()

    def _take(self) -> tuple[Any, ...]:
        try:
            message: tuple[Any, ...] = self._pipe.recv()
        except EOFError:
            raise AssertionError(f"the {self.role} died") from None
        if message[0] == "ended":
            self._ended = message[1]
        self.given = message[1].given if message[0] == "ended" else message[-1]
        return message


def play(part: Part, pipe: Connection) -> None:
    """Play the part, tell how it ended, and again as often as is asked, without being held or short of anything."""
    with pipe, xengrant.connect(part.url) as domain:
        while True:
            life = Life(domain, part, pipe)
            with _few_descriptors(part.descriptors):
                outcome = played(life, part, partial(_playing_now, life))
            pipe.send(("ended", outcome))
            while (said := pipe.recv()) not in ("again", "end"):
                pass
            if said == "end":
                return
            part = part._replace(hold_at="", descriptors=None)


@contextlib.contextmanager
def _few_descriptors(count: int | None) -> Iterator[None]:
    """Let this process have so many descriptors more than it has; None: as before."""
    if count is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    fillers = []
    while (filler := os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)) <= highest:  # the limit is one of numbers
        fillers.append(filler)
    os.close(filler)
    resource.setrlimit(resource.RLIMIT_NOFILE, (filler + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)


def _in_process(part: Part, pipe: Connection) -> None:
    with stoppable(), warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        sys.unraisablehook = _unclosed
        play(part, pipe)


def _unclosed(unraisable: sys.UnraisableHookArgs) -> None:
    """What a finalizer has to say, such as of a device that nobody closed, ends the process; the test hears of it."""
    traceback.print_exception(unraisable.exc_value)
    os._exit(1)


_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])
