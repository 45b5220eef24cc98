"""What a half gets: its domain, the other one's domid, and a way to talk to the other half.

Made by `process` in the half's own process; the cases use nothing else of the suite but `expect`.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

from xengrant.abi.xen import PAGE_SIZE
from xengrant.gnttab import Grant
from xengrant.testing.exchange import Mailbox
from xengrant.testing.expect import eventually

if TYPE_CHECKING:
    from xengrant.domain import Domain
    from xengrant.gntshr import Gntshr, Share

__all__ = ["QUIET", "SOON", "Here", "Kind", "Place", "SkipError"]

Kind = Literal["pv", "hvm"]

SOON = 10.0
"""Seconds within which what must happen has happened, also under emulation."""
QUIET = 0.3
"""Seconds after which what must not happen is taken not to happen."""


class SkipError(Exception):
    """The machine cannot show this behaviour; the text is the physical reason."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a half runs: how it reaches its domain, which domain is the other, and what is around."""

    connect: Callable[[], Domain]
    domid: int
    other: int
    kind: Kind
    third: int | None = None
    destroy_other: Callable[[], object] | None = None


class Here:
    """One half's surroundings. `with` opens and closes them."""

    def __init__(self, place: Place, run: str, seconds: float, report: Callable[[dict[str, object]], None]) -> None:
        self.kind = place.kind
        self.other = place.other
        self.third = place.third
        self._place = place
        self._run = run
        self._deadline = time.monotonic() + seconds
        self._report = report
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self.step("connecting")
        self.domain = self._open.enter_context(self._place.connect())
        store = self._open.enter_context(self.domain.xenstore())
        self._mailbox = Mailbox(store, self._place.domid, self.other, self._run, self._deadline)
        self._open.callback(self._mailbox.close)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        with self._open:
            if kind is not None:
                self._mailbox.tell_failed()

    @property
    def domid(self) -> int:
        """This half's own domid, as the suite was told."""
        return self._place.domid

    @property
    def seconds(self) -> float:
        """Seconds left until the run's deadline, for what waits."""
        return max(0.0, self._deadline - time.monotonic())

    def connect(self) -> Domain:
        """Another `Domain` of this half; the caller closes it."""
        return self._place.connect()

    def destroy_other(self) -> None:
        """Destroy the other domain; only in a case that requires it."""
        self.step("destroying the other domain")
        assert self._place.destroy_other is not None
        self._place.destroy_other()
        self.step("having destroyed the other domain")

    def step(self, text: str) -> None:
        """Say what comes next: a half that hangs or dies is told by its last step."""
        self._report({"step": text})

    def tell(self, name: str, value: object = True) -> None:
        """Say something to the other half, once under each name."""
        self.step(f"telling {name!r}")
        self._mailbox.tell(name, value)

    def hear(self, name: str) -> Any:
        """What the other half says under `name`; waits for it."""
        self.step(f"waiting for the other half's {name!r}")
        heard = self._mailbox.hear(name)
        self.step(f"having heard {name!r}")
        return heard

    def meet(self, name: str) -> None:
        """Go on when both halves are here."""
        self.tell(name)
        self.hear(name)

    def offer(self, share: Share, name: str = "refs") -> None:
        """Tell the other half a share's refs."""
        self.tell(name, list(share.refs))

    @contextmanager
    def noise_shared(self, pages: int, *, writable: bool) -> Iterator[Share]:
        """Pages full of `noise`, shared with the other half and offered to it."""
        with self.domain.gntshr() as gntshr, gntshr.share_pages(self.other, pages, writable=writable) as share:
            share.mapping[:] = self.noise(pages * PAGE_SIZE)
            self.offer(share)
            yield share

    def offered(self, name: str = "refs") -> list[Grant]:
        """The grants that the other half offers; waits for them."""
        return [Grant(self.other, ref) for ref in self.hear(name)]

    def comes_back(self, gntshr: Gntshr, share: Share, what: str) -> None:
        """The only ref of `share`, which is closed, is given out again soon.

        Each look keeps the page that it got: refs are last in, first out, so one that is closed just as the awaited ref
        comes back would lie above it from then on.
        """
        with ExitStack() as kept:

            def is_back() -> bool:
                return kept.enter_context(gntshr.share_pages(self.other, 1, writable=True)).refs == share.refs

            eventually(is_back, what, SOON)

    def die(self) -> NoReturn:
        """End this half's process as kill -9 does."""
        self._report({"dies": True})
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")

    def noise(self, length: int, seed: object = 0) -> bytes:
        """Bytes that look random, the same in both halves of one run for the same seed."""
        return random.Random(f"{self._run} {seed}").randbytes(length)
