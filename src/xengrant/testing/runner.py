"""The runner: runs cases, one half here and the other in the peer's agent, and says how each ended.

Used by `xengrant selftest`, the tests and the lab. Each half runs in a process of its own, also here; the runner itself
holds one connection to xenstore.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from xengrant.testing import exchange
from xengrant.testing.case import DESTROYABLE_PEER, DOM0, GUEST_PEER, LINUX, THIRD_DOMAIN, Case, Requirement
from xengrant.testing.exchange import ROOT, Answer, Call
from xengrant.testing.here import Kind, Place
from xengrant.testing.process import HalfProcess
from xengrant.testing.result import Outcome, Result

if TYPE_CHECKING:
    from xengrant.domain import Domain
    from xengrant.xenstore import Watch, XenStore

__all__ = ["NoAgentError", "Runner", "Victim", "together"]

_RECLAIMED = 15.0  # seconds
_SOON = 1.0  # seconds that an agent has to answer


class NoAgentError(Exception):
    """Nobody serves the peer's halves."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A domain with an agent in it that a case may destroy."""

    domid: int
    destroy: Callable[[], object]


class Runner:
    """Runs cases with the peer `peer`. `with` closes it.

    `connect` gives this domain, `kind` is how it unmaps, `third` another domain's domid where there is one. `victims`
    gives a `Victim` for each case that destroys its peer, None when there is none left. `counts` asks the machine
    what is in use; a case leaves no more than it found. `waiting` is told where no agent answers at once. Threads: one,
    and no other may run in the process.
    """

    def __init__(
        self,
        connect: Callable[[], Domain],
        peer: int,
        kind: Kind,
        machine: str,
        *,
        third: int | None = None,
        victims: Callable[[], Victim | None] | None = None,
        counts: Callable[[], Mapping[str, int]] | None = None,
        seconds: float | None = None,
        waiting: Callable[[str], object] | None = None,
    ) -> None:
        self._connect = connect
        self._peer = peer
        self._kind = kind
        self._machine = machine
        self._third = third
        self._victims = victims
        self._counts = counts
        self._seconds = seconds
        self._waiting = waiting
        self._session = os.urandom(4).hex()
        self._runs = 0
        self._watches: dict[int, Watch] = {}  # of each peer's answers
        self._domain = connect()
        self._store: XenStore = self._domain.xenstore()
        self._domid = self._domain.domid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove what the runner wrote into xenstore."""
        for peer in self._watches:
            exchange.remove(self._store, f"{ROOT}/{peer}")
        self._watches.clear()
        self._store.close()
        self._domain.close()

    def run_all(self, cases: Iterable[Case], report: Callable[[Result], None]) -> list[Result]:
        """Run the cases in order; `report` gets each result as it comes."""
        results = []
        for case in cases:
            results.append(self.run(case))
            report(results[-1])
        return results

    def run(self, case: Case) -> Result:
        """Run one case. Raises `NoAgentError` where nobody answers in the peer."""
        started = time.monotonic()
        missing = self._missing(case)
        victim = self._victims() if case.destroys_peer and self._victims is not None and missing is None else None
        if case.destroys_peer and victim is None and missing is None:
            missing = DESTROYABLE_PEER
        if missing is not None:
            return self._result(case, started, "skipped", missing.reason)
        self._prepare(self._peer if victim is None else victim.domid)
        before = self._counts() if self._counts is not None else {}
        outcome, text = self._run(case, victim)
        if outcome == "failed" and victim is None:
            self._check_agent(self._peer, case)
        if outcome == "passed" and (left := self._left_behind(before)):
            outcome, text = "failed", f"{case.name}: left behind: {left}"
        return self._result(case, started, outcome, text)

    def _left_behind(self, before: Mapping[str, int]) -> str:
        """What the machine has more of than before; deferred pages need some time, 100 of them a second."""
        if self._counts is None:
            return ""
        deadline = time.monotonic() + _RECLAIMED
        while True:
            more = {what: count for what, count in self._counts().items() if count > before.get(what, 0)}
            if not more or time.monotonic() > deadline:
                return ", ".join(f"{count - before.get(what, 0)} {what}" for what, count in more.items())
            time.sleep(0.01)

    def _missing(self, case: Case) -> Requirement | None:
        offered = {
            DOM0: self._domid == 0,
            GUEST_PEER: self._peer != 0,
            LINUX: True,
            THIRD_DOMAIN: self._third is not None,
            DESTROYABLE_PEER: self._victims is not None,
        }
        return next((requirement for requirement in case.requires if not offered[requirement]), None)

    def _run(self, case: Case, victim: Victim | None) -> tuple[Outcome, str]:
        peer = self._peer if victim is None else victim.domid
        seconds = self._seconds or case.seconds
        self._runs += 1
        run = f"{self._session}-{self._runs}"
        if case.peer is not None:
            self._store.write(f"{ROOT}/{peer}/call", exchange.encode(Call(run, case.name, seconds, self._third)))
        answers = []
        if case.local is not None:
            answers.append(self._run_local(case, peer, run, seconds, victim))
        if case.peer is not None and victim is None:
            answers.append(self._answer(case, peer, run, seconds))
        if self._runs % exchange.KEPT_RUNS == 0:
            exchange.remove(self._store, exchange.runs_path(peer))
        return together(answers)

    def _run_local(self, case: Case, peer: int, run: str, seconds: float, victim: Victim | None) -> Answer:
        assert case.local is not None
        place = Place(
            self._connect, self._domid, peer, self._kind, self._third, None if victim is None else victim.destroy
        )
        answer = HalfProcess(case, case.local, place, run, seconds).finish()
        if answer.outcome == "failed" and case.peer is not None:
            exchange.tell_failed(self._store, peer, run)
        return answer

    def _answer(self, case: Case, peer: int, run: str, seconds: float) -> Answer:
        """Wait for what the agent says of this run. `NoAgentError` where it has gone, with its domain perhaps."""
        path = f"{self._theirs(peer)}/answer"
        deadline = time.monotonic() + seconds + 10
        while True:
            try:
                self._watches[peer].wait(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                text = f"{case.name}: {case.peer}: the agent in domain {peer} did not answer in time"
                return Answer(run, "failed", text)
            data = exchange.read(self._store, path)
            if data is None:
                self._check_agent(peer, case)
            elif (answer := Answer.parse(data)).run == run:
                return answer

    def _check_agent(self, peer: int, case: Case) -> None:
        """A domain that is no more has failed nothing."""
        if exchange.read(self._store, f"{self._theirs(peer)}/state") is None:
            raise NoAgentError(f"the agent in domain {peer} has gone, in {case.name}")

    def _theirs(self, peer: int) -> str:
        """Where the peer's agent writes."""
        return f"/local/domain/{peer}/{ROOT}/{self._domid}"

    def _prepare(self, peer: int) -> None:
        """Make the nodes that the peer reads, and see that its agent serves."""
        if peer in self._watches:
            return
        exchange.prepare(self._store, self._domid, peer)
        theirs = self._theirs(peer)
        command = f"xengrant selftest --agent --peer {self._domid}"
        told = self._waiting is None
        deadline = time.monotonic() + 60
        with self._store.watch(f"{theirs}/state") as watch:
            while exchange.read(self._store, f"{theirs}/state") is None:
                try:
                    watch.wait(max(0.0, deadline - time.monotonic()) if told else _SOON)
                except TimeoutError:
                    if not told and self._waiting is not None:
                        told = True
                        self._waiting(f"waiting for an agent in domain {peer}: start `{command}` there")
                        continue
                    raise NoAgentError(f"no agent answers in domain {peer}: start `{command}` there") from None
        self._watches[peer] = self._store.watch(f"{theirs}/answer")

    def _result(self, case: Case, started: float, outcome: Outcome, text: str) -> Result:
        return Result(case.name, case.title, self._machine, outcome, time.monotonic() - started, text)


def together(answers: list[Answer]) -> tuple[Outcome, str]:
    """The halves' ends as the case's: the failure that came of itself goes first."""
    bad = [answer.text for answer in answers if answer.outcome in ("failed", "refused")]
    if bad:
        return "failed", "; ".join(sorted(bad, key=lambda text: "the other half failed" in text))
    skipped = [answer.text for answer in answers if answer.outcome == "skipped"]
    return ("skipped", skipped[0]) if skipped else ("passed", "")
