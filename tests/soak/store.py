"""The soak's xenstore: a `Bank` of nodes in each domain, which it changes, and which it and its peers read.

Two nodes of which the sum stays the same are changed in transactions, and read in transactions by all. A write to a
node that is watched is told. And each asks its peers something in a node of its own, and they answer in theirs.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TypeVar

from tests.soak.links import LONG, Link, Setting
from xengrant import XenStore, XenStoreError
from xengrant.xenstore import Permission, Transaction, Watch

__all__ = ["HOME", "Bank"]

HOME = "data/soak/store"
_SUM = 1000
_ATTEMPTS = 1000  # others may be at the same nodes while this process has no turn
_T = TypeVar("_T")


class Bank(Link):
    """Domain `peer` is the first of those it reads; it has a thread for all, and one session."""

    answers = True  # its peers may ask until all others are over

    def __init__(self, setting: Setting, peers: list[int]) -> None:
        super().__init__(setting, setting.domid)
        self._peers = peers
        self._store: XenStore = self.domain.xenstore()
        self._own = f"/local/domain/{setting.domid}/{HOME}"
        self._asked: dict[int, tuple[int, float, int]] = {}  # by peer: which question, when, and of which process
        self._turn = 0

    def session(self) -> None:
        self.other = self.setting.number  # who is to blame where its own nodes fail it
        with ExitStack() as held:
            self._open()
            watch = held.enter_context(self._store.watch(f"{self._own}/turn"))
            theirs = {peer: held.enter_context(self._store.watch(self._theirs(peer))) for peer in self._peers}
            while not self.over.is_set():
                self._write_and_be_told(watch)
                self._move()
                peer = self.random.choice(self._peers)
                self._look_at(peer)
                for peer, changes in theirs.items():
                    self._talk(peer, changes)

    def _open(self) -> None:
        store = self._store
        with suppress(XenStoreError):
            store.rm(HOME, timeout=LONG)
        store.mkdir(HOME, timeout=LONG)
        store.set_permissions(HOME, [Permission(self.setting.domid, "r")], timeout=LONG)  # children inherit

        def write(transaction: Transaction) -> None:
            transaction.write(f"{HOME}/left", str(_SUM))
            transaction.write(f"{HOME}/right", "0")
            transaction.write(f"{HOME}/number", str(self.setting.number))

        self._in_transaction(write, 3)

    def _theirs(self, peer: int) -> str:
        """Where the peer asks and answers this domain."""
        return f"/local/domain/{peer}/{HOME}/for-{self.setting.domid}"

    def _write_and_be_told(self, watch: Watch) -> None:
        self._turn += 1
        self._ask(lambda: self._store.write(f"{self._own}/turn", str(self._turn), timeout=LONG))
        with suppress(TimeoutError):
            while True:
                watch.wait(0)
        self._ask(lambda: self._store.write(f"{self._own}/turn", str(-self._turn), timeout=LONG))
        watch.wait(LONG)
        self.counts["watch events"] += 1
        value = int(self._ask(lambda: self._store.read(f"{self._own}/turn", timeout=LONG)))
        assert value == -self._turn, f"{value} was read where {-self._turn} was written"

    def _move(self) -> None:
        amount = self.random.randint(1, 100)

        def move(transaction: Transaction) -> None:
            left, right = (int(transaction.read(f"{HOME}/{name}")) for name in ("left", "right"))
            assert left + right == _SUM, f"{left} and {right} in a transaction"
            give = amount if left >= amount else -right
            transaction.write(f"{HOME}/left", str(left - give))
            transaction.write(f"{HOME}/right", str(right + give))

        self._in_transaction(move, 4)

    def _look_at(self, peer: int) -> None:
        home = f"/local/domain/{peer}/{HOME}"

        def look(transaction: Transaction) -> tuple[int, int]:
            return int(transaction.read(f"{home}/left")), int(transaction.read(f"{home}/right"))

        found = self._if_there(lambda: self._in_transaction(look, 2))
        assert found is None or sum(found) == _SUM, f"domain {peer} has {found} in a transaction"

    def _talk(self, peer: int, changes: Watch) -> None:
        """Answer what the peer asked, and ask it the next thing once it has answered, which it must in time."""
        with suppress(TimeoutError):
            changes.wait(0)
            self._answer(peer)
        last = self._asked.get(peer)
        if last is not None:
            question, since, other = last
            answered = self._read_number(f"{self._theirs(peer)}/answer")
            if answered == question:
                self.counts["answers"] += 1
            elif self._read_number(f"/local/domain/{peer}/{HOME}/number") == other:
                if time.monotonic() - since > LONG:
                    self.other = other
                    raise TimeoutError(f"domain {peer} did not answer {question} in {LONG} seconds, but {answered}")
                return
        other = self._read_number(f"/local/domain/{peer}/{HOME}/number") or 0
        question = last[0] + 1 if last is not None else 1
        self._ask(lambda: self._store.write(f"{self._own}/for-{peer}/question", str(question), timeout=LONG))
        self._asked[peer] = question, time.monotonic(), other

    def _answer(self, peer: int) -> None:
        question = self._read_number(f"{self._theirs(peer)}/question")
        if question is not None:
            self._ask(lambda: self._store.write(f"{self._own}/for-{peer}/answer", str(question), timeout=LONG))

    def _read_number(self, path: str) -> int | None:
        """None where the node is not there, or its domain."""
        value = self._if_there(lambda: self._ask(lambda: self._store.read(path, timeout=LONG)))
        return None if value is None else int(value)

    def _if_there(self, ask: Callable[[], _T]) -> _T | None:
        try:
            return ask()
        except XenStoreError as error:
            if error.errno not in (errno.ENOENT, errno.EACCES):
                raise
            return None

    def _ask(self, ask: Callable[[], _T]) -> _T:
        self.counts["xenstore requests"] += 1
        return ask()

    def _in_transaction(self, function: Callable[[Transaction], _T], requests: int) -> _T:
        """With so many requests in it, its beginning and end apart."""
        self.counts["transactions"] += 1
        self.counts["xenstore requests"] += requests + 2
        return self._store.run_transaction(function, attempts=_ATTEMPTS, timeout=LONG)
