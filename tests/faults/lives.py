"""A role of `roles.py` as it is played: `Life` says where it is and waits, `played` how it ended.

`actors.py` has them in processes and threads on an embedded machine, lab/fault_peer.py in processes on real Xen.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from contextvars import ContextVar
from typing import NamedTuple, Protocol, TypeVar

import xengrant
from tests.faults.roles import BLOCKING, ROLES, EndOfFile
from xengrant.errors import GrantError, InterfaceUnavailable

__all__ = ["PLAYING", "SLICE", "Life", "Outcome", "Part", "Pipe", "played"]

SLICE = 0.03  # seconds

PLAYING: ContextVar[Life | None] = ContextVar("PLAYING", default=None)
"""Whose steps the requests of this thread, or task, are."""

_T = TypeVar("_T")


class Pipe(Protocol):
    """How a role and its test speak: what `actors` says that goes there, and comes back."""

    def send(self, message: tuple[object, ...], /) -> None: ...
    def recv(self) -> object: ...
    def poll(self) -> bool: ...


class Part(NamedTuple):
    """What an actor is to play, and where."""

    role: str
    url: str | None
    other: int  # the other side's domid
    peer: str | None = None  # the node of the other side that tells of its domain's life
    name: str = ""  # what sets its nodes in xenstore apart from those of others
    hold_at: str = ""  # a step
    patience: float = SLICE  # see Life.meet
    pace: float = SLICE  # seconds that it waits before it says that it is still waiting
    descriptors: int | None = None  # how many its process may open, where they are to run out


class Outcome(NamedTuple):
    """How a role ended: "whole", "told" that the other is gone, "late", "refused", "unavailable" (a machine), "?"."""

    kind: str
    saw: str  # for people
    text: str
    given: bytes
    received: bytes
    steps: list[str]
    seconds: float  # time.monotonic()

    def since(self, struck: float) -> tuple[str, float]:
        """What it saw, and how many seconds after the fault; who had ended before cannot have seen it."""
        if self.seconds < struck:
            return f"{self.saw}, before the fault", 0.0
        return self.saw, self.seconds - struck

    def __repr__(self) -> str:
        """Without the bytes, of which there are many."""
        last = self.steps[-1] if self.steps else "no step"
        return (
            f"<{self.kind} at {last!r}, {len(self.given)} bytes given, {len(self.received)} received: "
            f"{self.saw}: {self.text}>"
        )


class Life:
    """A part as it is played: where it is, how it waits, what it gave and got."""

    def __init__(self, domain: xengrant.Domain, part: Part, pipe: Pipe) -> None:
        self.domain = domain
        self.other = part.other
        self.name = part.name
        self.shown = part.peer
        self.peer: xengrant.Peer | None = None
        self.stage = ""
        self.patience = part.patience
        self.pace = part.pace
        self.given = b""
        self.received = b""
        self.steps: list[str] = []
        self._pipe = pipe
        self._hold_at = part.hold_at
        self._times: Counter[str] = Counter()

    def at(self, name: str) -> None:
        """A step begins; who is to be held here is."""
        name = f"{self.stage}: {name}"
        self._times[name] += 1
        self.steps.append(name if self._times[name] == 1 else f"{name} {self._times[name]}")
        if self.steps[-1] == self._hold_at:
            self._hold_at = ""
            self._pipe.send(("held", self.steps[-1], self.given))
            self._pipe.recv()

    def meet(self, call: Callable[[float], _T]) -> _T:
        """As `wait`, where calling again makes steps again: not after a moment, where the other side was first."""
        return self._wait(call, self.patience)

    def wait(self, call: Callable[[float], _T]) -> _T:
        """What `call(timeout)` gives, however often it is late, until the test says that enough was waited."""
        return self._wait(call, self.pace)

    def _wait(self, call: Callable[[float], _T], seconds: float) -> _T:
        while True:
            began = time.monotonic()
            try:
                return call(seconds)
            except TimeoutError:
                if self.is_enough(began):
                    raise

    def is_enough(self, began: float) -> bool:
        """Tell the test that it has waited in vain since `began`; whether the test says that this was enough."""
        self._pipe.send(("waiting", began, self.stage, self.given))
        return self._pipe.poll() and self._pipe.recv() == "give up"


def played(life: Life, part: Part, begin: Callable[[], AbstractContextManager[object]] = nullcontext) -> Outcome:
    """Play the role; `begin()` is around it alone."""
    kind, saw, text = "whole", "all of it", ""
    try:
        with ExitStack() as stack:
            if part.peer is not None and part.role not in BLOCKING:
                life.peer = stack.enter_context(life.domain.peer(life.other, part.peer))
                life.peer.on_gone(lambda: None)  # it watches from now on, which is no step of the role
            with begin():
                _role(part.role)(life)
    except Exception as error:
        kind, saw = _seen(error)
        text = str(error) if kind != "?" else traceback.format_exc()
    if part.role in BLOCKING:
        gc.collect()  # an error that left asyncio.run is in a cycle with its task, and has the domain by its frames
    return Outcome(kind, saw, text, life.given, life.received, life.steps, time.monotonic())


def _role(name: str) -> Callable[[Life], None]:
    if name in ROLES:
        return ROLES[name]
    from tests.faults.async_roles import ASYNC  # with asyncio, which takes seconds under emulation

    return ASYNC[name]


def _seen(error: Exception) -> tuple[str, str]:
    if isinstance(error, EndOfFile):
        return "told", "end of file"
    for of, kind in (
        (ConnectionError, "told"),  # PeerClosed, or what asyncio's `drain` says after the end
        (InterfaceUnavailable, "unavailable"),
        (GrantError, "refused"),
        (TimeoutError, "late"),
    ):
        if isinstance(error, of):
            return kind, type(error).__name__
    return "?", type(error).__name__
