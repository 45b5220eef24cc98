"""What the workloads of the soak have in common: sessions with one peer, one after the other, in a thread of its own.

A session that breaks is told to the soak with the number of the process at its other end: unless that was killed, or
its domain destroyed, before, the soak has found a defect.
"""

from __future__ import annotations

import os
import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import xengrant
from tests.soak.machine import LIFE
from xengrant import GrantError, InterfaceUnavailable, ProtocolError, XenStore

__all__ = ["LONG", "PATIENCE", "Link", "Setting", "Side"]

LONG = 60.0  # seconds; no wait of a process whose peer lives is as long
PATIENCE = 10.0  # seconds that a session is offered before another is
_PAUSE = 0.05  # seconds until the next try, where no session came about


class Setting(NamedTuple):
    """What a process of a domain is given: its domain, its own number in the soak, and whom it tells."""

    domain: xengrant.Domain
    domid: int
    number: int
    seed: str
    report: Callable[..., None]
    stopping: threading.Event  # begin no session
    finishing: threading.Event  # nor answer any
    look: float  # seconds in which what a peer has offered is found


class Link(threading.Thread):
    """One side of the sessions with one peer. Subclasses have `session`."""

    answers = False
    """Whether the other side begins the sessions: then this one goes on until all of those are over."""

    def __init__(self, setting: Setting, peer: int) -> None:
        super().__init__(name=f"{type(self).__name__}-{peer}", daemon=True)
        self.setting = setting
        self.domain = setting.domain
        self.peer = peer
        self.random = random.Random(f"{setting.seed}/{self.name}")
        self.counts: Counter[str] = Counter()
        self.other = 0  # the number of the process at the other end, once the session has begun
        self.over = setting.finishing if self.answers else setting.stopping

    def session(self) -> None:
        """One session from its beginning to its end; returns early, or raises what a caller may expect."""
        raise NotImplementedError

    def run(self) -> None:
        try:
            while not self.over.is_set():
                self.other = 0
                try:
                    self.session()
                    self.counts["sessions"] += self.other != 0
                except (InterfaceUnavailable, ProtocolError):
                    raise
                except (GrantError, OSError) as error:
                    if self.other:
                        self._tell_broken(error)
                if not self.other:
                    self.over.wait(_PAUSE)
        except InterfaceUnavailable as error:
            self.setting.report(lost=f"{self.name}: {error}")
        except BaseException:
            self.setting.report(failed=f"{self.name}: {traceback.format_exc()}")

    def _tell_broken(self, error: Exception) -> None:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(frame.filename)}:{frame.lineno}"
        text = f"{self.name}: {type(error).__name__}: {error} ({where})"
        self.setting.report(broken=text, other=self.other)

    def ends_at(self, most: float) -> Callable[[], bool]:
        """Whether a session that begins now is to end, after `most` seconds at the latest."""
        deadline = time.monotonic() + self.random.uniform(0.1, most)
        return lambda: self.over.is_set() or time.monotonic() > deadline


class Side(Link):
    """One of the two sides of sessions, each with one life of the peer's domain. Subclasses have `meet`."""

    def __init__(self, setting: Setting, peer: int) -> None:
        super().__init__(setting, peer)
        self._store = self.domain.xenstore()

    def session(self) -> None:
        life = _life_of(self._store, self.peer)
        if life is not None:
            try:
                self.meet(life)
            except AssertionError:
                # Where this domain was destroyed, pages that it had or mapped are emptied: InterfaceUnavailable then.
                _life_of(self._store, self.peer)
                raise

    def meet(self, life: str) -> None:
        """As `session`, with the peer whose node `life` is."""
        raise NotImplementedError


def _life_of(store: XenStore, domid: int) -> str | None:
    """The node of the domain's present life; None where it is not there."""
    home = f"/local/domain/{domid}/{LIFE}"
    try:
        names = store.directory(home, timeout=LONG)
    except xengrant.XenStoreError:
        return None
    return next((f"{home}/{name}" for name in names if name.startswith("life-")), None)
