"""What a thing is, `Thing`, the domains it is opened in, and what several kinds are made of."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import xengrant

__all__ = ["LONG", "Domains", "Thing", "at_it", "bound", "churning", "drain", "in_a_call", "silent", "until"]

LONG = 30.0  # seconds; nothing comes near it


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < deadline, f"not so in {LONG} seconds: {what}"
        time.sleep(0.001)


def in_a_call(thread: threading.Thread) -> None:
    """Wait until the thread sleeps, in a system call or for another thread."""
    until(lambda: b") S " in Path(f"/proc/self/task/{thread.native_id}/stat").read_bytes(), "the call waits")


class Domains(NamedTuple):
    """Domain 0, and two guests."""

    zero: xengrant.Domain
    one: xengrant.Domain
    two: xengrant.Domain
    url: Callable[..., str]

    @classmethod
    def join(cls, directory: str, held: ExitStack) -> Domains:
        def url(domid: int, rest: str = "") -> str:
            return f"embedded:{directory}?domid={domid}{rest}"

        zero, one, two = (held.enter_context(xengrant.connect(url(domid))) for domid in range(3))
        return cls(zero, one, two, url)


@dataclass
class Thing:
    """What is open, and how it is used."""

    wait: Callable[[], object]
    """Waits, or goes on and on, until `end` is called; then returns."""

    end: Callable[[], object]

    check: Callable[[], object] = lambda: None
    """Raises unless all of it works, and nobody was told of anything."""

    refused: dict[str, Callable[[], object]] = field(default_factory=dict)
    """Calls that raise an error of xengrant's in a forked child."""

    closed: list[Callable[[], object]] = field(default_factory=list)
    """Calls that do nothing in a forked child."""

    is_ready: threading.Event = field(default_factory=threading.Event)
    """Set where all is open, and what goes on and on has done so once: some are only opened by `wait`."""

    has_loop: bool = False

    is_steady: bool = True
    """Whether nothing comes and goes while it waits."""


def churning(
    step: Callable[[], object],
    check: Callable[[], object],
    refused: dict[str, Callable[[], object]],
    closed: list[Callable[[], object]],
) -> Thing:
    """Does something again and again: what does not wait for long is interrupted somewhere in it."""
    ended = threading.Event()

    def wait() -> None:
        while not ended.is_set():
            step()
            thing.is_ready.set()

    thing = Thing(wait, ended.set, check, refused, closed, is_steady=False)
    return thing


def drain(port: xengrant.Port) -> None:
    """Take what is pending: the first event after a bind is nobody's."""
    with contextlib.suppress(TimeoutError):
        while True:
            port.wait(0)


def silent(port: xengrant.Port) -> None:
    with contextlib.suppress(TimeoutError):
        port.wait(0)
        raise AssertionError(f"{port!r} was told of something")


@contextmanager
def bound(
    here: xengrant.Domain, there: xengrant.Domain
) -> Iterator[tuple[xengrant.EventChannels, xengrant.Port, xengrant.Port]]:
    """Event channels of `here`, a port of theirs, and the port of `there` at its other end, with nothing pending."""
    with (
        there.evtchn() as others,
        others.bind_unbound(here.domid) as other,
        here.evtchn() as channels,
        channels.bind_interdomain(there.domid, other.number) as port,
    ):
        drain(port)
        drain(other)
        yield channels, port, other


@contextmanager
def at_it(wait: Callable[[], object], end: Callable[[], object]) -> Iterator[None]:
    """Another thread is in the call, until the block ends, where this is not a child."""
    failures: list[Exception] = []

    def run() -> None:
        try:
            wait()
        except Exception as failure:
            failures.append(failure)

    thread, owner = threading.Thread(target=run, daemon=True), os.getpid()
    thread.start()
    in_a_call(thread)
    yield
    if os.getpid() == owner:
        end()
        thread.join(LONG)
        assert not thread.is_alive(), "the other thread's wait has not ended"
        assert not failures, failures
