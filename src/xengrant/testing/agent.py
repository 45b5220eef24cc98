"""The agent: runs the peer's halves on the runner's request (`xengrant selftest --agent`).

It takes names of cases, never code, from one domain only, and forks for each half. What is malformed or unknown is not
run. See `exchange` for the nodes.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from xengrant.errors import GrantError, InterfaceUnavailable
from xengrant.testing import case as cases
from xengrant.testing import exchange
from xengrant.testing.exchange import ROOT, Answer, Call, MalformedError
from xengrant.testing.here import Kind, Place
from xengrant.testing.process import HalfProcess

if TYPE_CHECKING:
    from xengrant.domain import Domain
    from xengrant.xenstore import XenStore

__all__ = ["Agent"]

_log = logging.getLogger("xengrant.testing")

_REMOVED = 5.0  # seconds that xenstore has for it


class Agent:
    """Serves the halves of one runner, which is in domain `runner`.

    `connect` gives this domain, `kind` is how this domain unmaps. Threads: one, and no other may run in the process.
    """

    def __init__(self, connect: Callable[[], Domain], runner: int, kind: Kind) -> None:
        self._connect = connect
        self._runner = runner
        self._kind = kind
        self._runs = 0

    def serve(self) -> None:
        """Serve until this domain is destroyed or the process is told to end, and remove what it wrote."""
        cases.all_cases()
        with self._connect() as domain:
            try:
                with domain.xenstore() as store:
                    self._take_all(store, domain.domid)
            except InterfaceUnavailable:  # this domain is gone, and its nodes
                raise
            except BaseException:  # a runner would believe that it still serves
                self._remove(domain)
                raise

    def _remove(self, domain: Domain) -> None:
        """By a connection of its own: a signal may have taken an answer with it that the other one waits for."""
        with contextlib.suppress(GrantError, OSError), domain.xenstore() as store:
            store.rm(f"{ROOT}/{self._runner}", timeout=_REMOVED)

    def _take_all(self, store: XenStore, domid: int) -> None:
        exchange.prepare(store, domid, self._runner)
        path = f"/local/domain/{self._runner}/{ROOT}/{domid}/call"
        stale = exchange.read(store, path)
        with store.watch(path) as watch:
            store.write(f"{ROOT}/{self._runner}/state", exchange.encode({"version": exchange.VERSION}))
            while True:
                watch.wait()
                data = exchange.read(store, path)
                if data is not None and data != stale:
                    stale = data
                    self._take(store, domid, data)

    def _take(self, store: XenStore, domid: int, data: bytes) -> None:
        try:
            call = Call.parse(data)
        except MalformedError as error:
            _log.warning("a call from domain %d was ignored: %s", self._runner, error)
            return
        self._runs += 1
        if self._runs % exchange.KEPT_RUNS == 0:  # nobody reads them any more: the runner has gone on
            exchange.remove(store, exchange.runs_path(self._runner))
        answer = self._answer(domid, call)
        try:
            if answer.outcome == "failed":
                exchange.tell_failed(store, self._runner, call.run)
            store.write(f"{ROOT}/{self._runner}/answer", exchange.encode(answer))
        except GrantError as error:
            _log.info("the answer to %s could not be given: %s", call.case, error)

    def _answer(self, domid: int, call: Call) -> Answer:
        case = cases.find(call.case)
        if case is None or case.peer is None:
            return Answer(call.run, "refused", f"there is no half of {call.case} to run here")
        place = Place(self._connect, domid, self._runner, self._kind, call.third)
        return HalfProcess(case, case.peer, place, call.run, call.seconds).finish()
