"""Holding something until the user ends it: SIGINT, SIGTERM and SIGHUP become an ordinary return.

Called by the subcommands that hold pages or a machine. `terminates` is main's: a SIGTERM or SIGHUP outside of a hold
unwinds the `with` blocks, which remove what others would find in xenstore; `deferred` is for the moments in which such
a thing is made or removed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Self

from xengrant.errors import GrantError, InterfaceUnavailable

if TYPE_CHECKING:
    from xengrant.domain import Domain
    from xengrant.xenstore import Watch

__all__ = ["Hold", "deferred", "terminates"]

_AGAIN = 0.01  # seconds


class Hold:
    """From `with` on, a signal no longer interrupts but ends `wait`; a second signal interrupts after all.

    Entered before what is held is made, so that there is no moment in which a signal leaves it behind.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._caught = False
        nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._before = {
            number: signal.signal(number, self._catch)
            for number in self._SIGNALS
            if not (nohup and number == signal.SIGHUP)
        }
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)

    def wait(self, seconds: float | None = None) -> bool:
        """Until a signal came, also one before the call, or `end` was called; False where `seconds` passed first."""
        return bool(select.select([self._reader], [], [], seconds)[0])

    def wait_with(self, domain: Domain) -> None:
        """`wait`, but no longer than the domain's machine is there: its end is `InterfaceUnavailable`.

        Real Xen's end nobody waits for. Where xenstore cannot be had nobody tells, and this is `wait`.
        """
        ended: list[InterfaceUnavailable] = []

        def listen(watch: Watch) -> None:
            try:
                for _ in watch:
                    pass
            except InterfaceUnavailable as error:
                ended.append(error)
                self.end()
            except GrantError:  # the store was closed below, or tells nonsense
                pass

        with contextlib.ExitStack() as opened:
            with contextlib.suppress(GrantError, OSError):
                store = opened.enter_context(domain.xenstore())
                watch = store.watch("domid")
                listener = threading.Thread(target=listen, args=(watch,), daemon=True)
                listener.start()
                opened.callback(listener.join)
                opened.callback(store.close)
            self.wait()
        if ended:
            raise ended[0]

    def end(self) -> None:
        """End every `wait`, as a signal does; for another thread that has something to tell."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"!")

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self._caught:
            raise KeyboardInterrupt
        self._caught = True
        os.write(self._writer, b"!")


@contextlib.contextmanager
def terminates() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `SystemExit` with the status that a shell expects, 143 and 129; not under nohup.

    Neither they nor Ctrl-C are lost where they come while a finalizer runs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, _exit) for number in numbers}
    hook = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: _come_again(unraisable) or hook(unraisable)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _come_again(unraisable: sys.UnraisableHookArgs) -> bool:
    """Whether it is a signal that fell into a finalizer, where Python drops what is raised: then it comes once more."""
    raised = unraisable.exc_value
    if isinstance(raised, KeyboardInterrupt):
        number = int(signal.SIGINT)
    elif isinstance(raised, SystemExit) and raised.code in (128 + signal.SIGTERM, 128 + signal.SIGHUP):
        number = int(raised.code) - 128
    else:
        return False
    main = threading.main_thread().ident
    assert main is not None
    later = threading.Timer(_AGAIN, signal.pthread_kill, (main, number))  # at once it would fall into this
    later.daemon = True
    later.start()
    return True


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """A signal that comes in this block raises when it is over."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    before = {}
    for number in Hold._SIGNALS:
        handler = signal.getsignal(number)
        if callable(handler):
            before[number] = handler
            signal.signal(number, lambda number, frame: caught.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if caught:
            before[signal.Signals(caught[0])](caught[0], None)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
