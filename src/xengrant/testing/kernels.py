"""The suite between programs that are their domains' kernels, on an embedded machine: `KernelSuite`.

Used by `xengrant selftest --pair kernels` and the tests. Each case gets two new domains, whose kernels are the halves'
processes; what only the control domain may do runs in dom0, with one such domain as the peer. The halves need no agent:
this process forks both.
"""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Self

from xengrant.domain import connect
from xengrant.testing import exchange
from xengrant.testing.case import DOM0, LINUX, Case
from xengrant.testing.embedded import MachineProcess, machine_name
from xengrant.testing.exchange import Answer
from xengrant.testing.here import Kind, Place
from xengrant.testing.process import HalfProcess
from xengrant.testing.result import Result
from xengrant.testing.runner import together

__all__ = ["KernelSuite"]

_THIRD = 3
_FIRST = 100
# What a domain that a case is done with has none of.
_COUNTED = ("grants", "mapped", "maps", "ports")


class KernelSuite:
    """Runs cases on an embedded machine of its own. `with` closes it. Threads: one, and no other in the process.

    `version` is that of the domains' grant tables; `seconds` a deadline instead of each case's own.
    """

    def __init__(self, lifetime: Kind, *, version: int = 1, seconds: float | None = None) -> None:
        self._lifetime = lifetime
        self._seconds = seconds
        self._name = machine_name(lifetime, "two kernels", version)
        self._session = os.urandom(4).hex()
        self._domids = itertools.count(_FIRST)
        self._runs = itertools.count(1)
        with ExitStack() as opening:
            self.machine = opening.enter_context(MachineProcess(lifetime, version))
            self.machine.ask("create", domid=_THIRD)
            self._dom0 = opening.enter_context(connect(self.machine.url(0)))
            self._store = opening.enter_context(self._dom0.xenstore())
            self._open = opening.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def run_all(self, cases: Iterable[Case], report: Callable[[Result], None]) -> list[Result]:
        """Run the cases in order; `report` gets each result as it comes."""
        results = []
        for case in cases:
            results.append(self.run(case))
            report(results[-1])
        return results

    def run(self, case: Case) -> Result:
        """Run one case."""
        started = time.monotonic()
        if LINUX in case.requires:
            return self._result(case, started, Answer("", "skipped", LINUX.reason))
        here = 0 if DOM0 in case.requires else next(self._domids)
        peer = next(self._domids)
        for domid in (here, peer):
            if domid:
                self.machine.ask("create", domid=domid)
        for domid, other in ((here, peer), (peer, here)):
            exchange.prepare(self._store, domid, other, f"/local/domain/{domid}/")
        halves = self._start(case, here, peer)
        in_time = [half.listen() for half in halves]
        left = self._left_behind({here, peer} - {0}) if all(in_time) else ""
        answers = [half.end(heard) for half, heard in zip(halves, in_time, strict=True)]
        for domid in (here, peer):
            if str(domid) in self.machine.ask("status")["domains"] and domid:
                self.machine.ask("destroy", domid=domid)
        exchange.remove(self._store, f"/local/domain/{here}/{exchange.ROOT}/{peer}")
        outcome, text = together(answers[: 1 if case.destroys_peer else 2])  # a destroyed half has failed nothing
        if outcome == "passed" and left:
            outcome, text = "failed", f"{case.name}: left behind: {left}"
        return self._result(case, started, Answer("", outcome, text))

    def _start(self, case: Case, here: int, peer: int) -> list[HalfProcess]:
        run = f"{self._session}-{next(self._runs)}"
        seconds = self._seconds or case.seconds
        halves = []
        for half, domid, other in ((case.local, here, peer), (case.peer, peer, here)):
            if half is None:
                continue
            place = Place(
                functools.partial(connect, self.machine.url(domid, kernel=domid != 0)),
                domid,
                other,
                self._lifetime,
                _THIRD,
                functools.partial(self.machine.ask, "destroy", domid=other) if case.destroys_peer else None,
            )
            halves.append(HalfProcess(case, half, place, run, seconds, stays=domid != 0))
        return halves

    def _left_behind(self, domids: set[int]) -> str:
        """What the domains still have; deferred pages may need a moment."""
        deadline = time.monotonic() + 3
        while True:
            domains = self.machine.ask("status")["domains"]
            left = {
                f"{name} of domain {domid}": domains[str(domid)][name]
                for domid in domids
                if str(domid) in domains
                for name in _COUNTED
                if domains[str(domid)][name]
            }
            if not left or time.monotonic() > deadline:
                return ", ".join(f"{count} {what}" for what, count in left.items())
            time.sleep(0.01)

    def _result(self, case: Case, started: float, answer: Answer) -> Result:
        seconds = time.monotonic() - started
        return Result(case.name, case.title, self._name, answer.outcome, seconds, answer.text)  # type: ignore[arg-type]
