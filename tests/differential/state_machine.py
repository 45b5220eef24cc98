"""The rules by which Hypothesis chooses the steps that two machines do alike: `run_machine`.

For pytest (`test_differential.py`), and for the labs, whose dom0 has Hypothesis and no pytest
(`lab/jobs/differential.py`). A rule draws numbers, and takes the objects that they mean from what the example has.
"""

from __future__ import annotations

from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.differential.actor import Outcome, Step
from tests.differential.pair import SIDES, Pair
from tests.differential.run import Record, Run
from tests.differential.store_rules import StoreRules
from tests.differential.things import Thing

__all__ = ["run_machine"]

TINY = 10 if hypothesis.__version_info__ < (6, 100) else 0
"""Examples that have hardly a step: Hypothesis begins with them in the version of Debian 12 (6.67)."""

STRANGER = 30000
"""A domid that no domain has."""

UNBOUND_PORT = 900
"""A port that neither a domain's kernel nor any program has."""

sides = st.sampled_from(SIDES)
numbers = st.integers(0, 1000)
seldom = st.sampled_from([False] * 7 + [True])
odd_domids = st.sampled_from([-1, 0x7FF0, 0xFFFF, 1 << 16, 1 << 32, 1 << 70, True, None, "0", 1.0])
odd_counts = st.sampled_from([1025, 0, -1, 5000, 1025, 1 << 24, 1 << 32, 1 << 70, True, None, "1", 1.0])
odd_refs = st.sampled_from([2, 7, 40000, 1 << 31, (1 << 32) - 1, -1, 1 << 32, 1 << 70, True, None, "8", 8.0])
odd_ports = st.sampled_from([0, -1, UNBOUND_PORT, 5000, 1 << 20, 1 << 32, True])


def run_machine(one: Pair, other: Pair, record: Record, *, examples: int, steps: int, seed: int) -> None:
    """Let Hypothesis try so many examples of so many steps; what they show is in `record`.

    The seed decides all choices. Nothing is raised for a difference, so that one example's does not end the others.
    """

    class OnThese(Differential):
        machines = (one, other)
        kept = record

    run_state_machine_as_test(
        hypothesis.seed(seed)(OnThese),
        settings=settings(
            max_examples=examples + TINY,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


class Differential(StoreRules, RuleBasedStateMachine):
    """What may be done in any order."""

    machines: tuple[Pair, Pair]
    kept: Record

    def __init__(self) -> None:
        super().__init__()
        self._run: Run | None = None
        self.made = []

    @property
    def run(self) -> Run:
        """Begun with the first step: an example may have none."""
        if self._run is None:
            self._run = Run(*self.machines, self.kept)
        return self._run

    def teardown(self) -> None:
        if self._run is not None:
            self._run.finish()

    def do(self, side: str, doing: str, **arguments: Any) -> Outcome:
        step: Step = {"do": doing, "side": side, **arguments}
        return self.run.do(
            {key: value for key, value in step.items() if value is not None or key in ("domid", "count")}
        )

    def some(self, *kinds: str, side: str | None = None, number: int) -> Thing | None:
        """One of these, mostly one that is open; None where there is none."""
        found = self.run.things.of_kind(*kinds, side=side, is_open=number % 8 != 7)
        return found[number // 8 % len(found)] if found else None

    def interface(self, kind: str, side: str, number: int) -> str | None:
        """One of these interfaces, opened where there is none yet."""
        found = self.some(kind, side=side, number=number)
        if found is None:
            self.do(side, "open", kind=kind, **{"as": self.name(kind)})
            found = self.some(kind, side=side, number=0)
        return found.name if found else None

    def memory(self, number: int) -> Thing | None:
        """A share or a map, shared where there is none."""
        found = self.some("share", "map", number=number)
        return found or self._shared(SIDES[number % 2])

    def port(self, number: int) -> Thing | None:
        """A port, offered where there is none."""
        found = self.some("port", number=number)
        if found is None:
            side = SIDES[number % 2]
            self.offer_to(side, self.other(side), number)
            found = self.some("port", number=0)
        return found

    def _shared(self, side: str) -> Thing | None:
        self.share_with(side, self.other(side), 2, writable=True, number=0)
        return self.some("share", side=side, number=0)

    def share_with(self, side: str, domid: Any, count: Any, *, writable: bool, number: int, notify: Any = None) -> None:
        interface = self.interface("gntshr", side, number)
        if interface:
            name = self.name("share")
            self.do(
                side,
                "share",
                domid=domid,
                count=count,
                writable=writable,
                notify=notify,
                **{"with": interface, "as": name},
            )

    def offer_to(self, side: str, domid: Any, number: int) -> None:
        interface = self.interface("evtchn", side, number)
        if interface:
            self.do(side, "offer", domid=domid, **{"with": interface, "as": self.name("port")})

    def name(self, kind: str) -> str:
        return self.run.things.new_name(kind)

    def other(self, side: str) -> int:
        """The other side's domid."""
        return next(domid for name, domid in self.machines[0].domids.items() if name != side)

    # Interfaces

    @rule(side=sides, kind=st.sampled_from(["gntshr", "gnttab", "evtchn", "store"]))
    def open_another(self, side: str, kind: str) -> None:
        self.do(side, "open", kind=kind, **{"as": self.name(kind)})

    @rule(side=sides, kind=st.sampled_from(["gntshr", "gnttab", "evtchn", "store"]), number=numbers, really=seldom)
    def close_interface(self, side: str, kind: str, number: int, really: bool) -> None:
        thing = self.some(kind, side=side, number=number) if really else None
        if thing is not None:
            self.do(side, "close", of=thing.name)

    @rule(number=numbers)
    def close(self, number: int) -> None:
        thing = self.some("share", "map", "port", number=number)
        if thing is not None:
            self.do(thing.side, "close", of=thing.name)

    # Sharing and mapping

    @rule(
        side=sides,
        number=numbers,
        count=st.sampled_from([1, 1, 2, 3, 5]),
        writable=st.booleans(),
        stranger=seldom,
        notify=numbers,
    )
    def share(self, side: str, number: int, count: int, writable: bool, stranger: bool, notify: int) -> None:
        domid = STRANGER if stranger else self.other(side)
        length = count * 4096
        self.share_with(side, domid, count, writable=writable, number=number, notify=self._notify(side, notify, length))

    @rule(side=sides, number=numbers, count=odd_counts, domid=odd_domids, which=st.integers(0, 3))
    def share_oddly(self, side: str, number: int, count: Any, domid: Any, which: int) -> None:
        if which:
            self.share_with(
                side,
                domid if which == 2 else self.other(side),
                1 if which == 2 else count,
                writable=True,
                number=number,
            )

    @rule(side=sides, number=numbers, really=st.integers(0, 31))
    def share_much(self, side: str, number: int, really: int) -> None:
        """Of gntalloc's 1024 pages there is room for this once."""
        if really == 31:
            self.share_with(side, self.other(side), 600, writable=True, number=number)

    @rule(number=numbers, interface=numbers)
    def munmap(self, number: int, interface: int) -> None:
        share = self.some("share", number=number)
        through = share and self.interface("gntshr", share.side, interface)
        if share and through:
            self.do(share.side, "munmap", of=share.name, **{"with": through})

    @rule(
        side=sides,
        number=numbers,
        pages=st.lists(numbers, min_size=1, max_size=4),
        writable=st.booleans(),
        odd=seldom,
        stray=odd_refs,
        notify=numbers,
    )
    def map(self, side: str, number: int, pages: list[int], writable: bool, odd: bool, stray: Any, notify: int) -> None:
        grants: list[Any] = self._pages(side, pages)
        if odd:
            grants.insert(pages[0] % (len(grants) + 1), [STRANGER if pages[0] % 3 == 0 else self.other(side), stray])
        interface = self.interface("gnttab", side, number)
        if interface and grants:
            self.do(
                side,
                "map",
                grants=grants,
                writable=writable,
                single=(len(grants) == 1 and pages[0] % 2 == 0) or None,
                notify=self._notify(side, notify, len(grants) * 4096),
                **{"with": interface, "as": self.name("map")},
            )

    @rule(
        side=sides,
        number=numbers,
        page=numbers,
        times=st.sampled_from([8, 63, 64, 65, 128, 129]),
        writable=st.booleans(),
    )
    def map_often(self, side: str, number: int, page: int, times: int, writable: bool) -> None:
        """The same grant again and again: Xen counts its pins in seven bits."""
        grants = self._pages(side, [page]) * times
        interface = self.interface("gnttab", side, number)
        if interface and grants:
            self.do(side, "map", grants=grants, writable=writable, **{"with": interface, "as": self.name("map")})

    @rule(number=numbers, interface=numbers)
    def unmap(self, number: int, interface: int) -> None:
        mapped = self.some("map", number=number)
        through = mapped and self.interface("gnttab", mapped.side, interface)
        if mapped and through:
            self.do(mapped.side, "unmap", of=mapped.name, **{"with": through})

    @rule(number=numbers, at=numbers, data=st.binary(min_size=0, max_size=9))
    def store(self, number: int, at: int, data: bytes) -> None:
        thing = self.memory(number)
        if thing is not None:
            self.do(thing.side, "store", of=thing.name, at=at * 4099 % (thing.length + 3), data=data.hex())

    @rule(number=numbers, at=numbers, length=st.sampled_from([0, 1, 16, 4096, 9000]))
    def load(self, number: int, at: int, length: int) -> None:
        thing = self.memory(number)
        if thing is not None:
            self.do(thing.side, "load", of=thing.name, at=at * 4099 % (thing.length + 3), length=length)

    @rule(number=numbers)
    def view(self, number: int) -> None:
        thing = self.memory(number)
        if thing is not None:
            self.do(thing.side, "view", of=thing.name, **{"as": self.name("view")})

    @rule(number=numbers)
    def release(self, number: int) -> None:
        view = self.some("view", number=number)
        if view is not None:
            self.do(view.side, "release", of=view.name)

    @rule(
        side=sides,
        number=numbers,
        drawn=st.lists(
            st.tuples(
                numbers,
                numbers,
                st.integers(0, 5),
                st.sampled_from([0, 1, 17, 900, 1024, 4097]),
                st.sampled_from([0, 0, 1, 100, 3196, 4095]),
            ),
            min_size=1,
            max_size=3,
        ),
    )
    def copy(self, side: str, number: int, drawn: list[tuple[int, int, int, int, int]]) -> None:
        interface = self.interface("gnttab", side, number)
        segments = [self._segment(side, *each) for each in drawn] if interface else []
        if interface and segments:
            self.do(side, "copy", segments=segments, **{"with": interface})

    def _segment(self, side: str, page: int, other: int, how: int, length: int, offset: int) -> dict[str, Any]:
        granted = [*self._pages(side, [page]), [STRANGER, 8]][0]
        memory = self.some("share", "map", side=side, number=other)
        if how < 2:
            sides = {"source": granted, "dest": None, "source_at": offset}
        elif how < 4:
            sides = {"source": None, "dest": granted, "dest_at": offset}
        elif how == 4:
            sides = {"source": granted, "dest": [*self._pages(side, [other]), [self.other(side), 40000]][0]}
        else:
            sides = {"source": granted, "dest": memory.name if memory else None, "dest_at": offset}
        return {"length": length, **sides}

    def _pages(self, side: str, drawn: list[int]) -> list[dict[str, Any]]:
        found = self.run.grants(side)
        if not found:
            self._shared(next(other for other in SIDES if other != side))
            found = self.run.grants(side)
        return [found[number % len(found)] for number in drawn] if found else []

    def _notify(self, side: str, number: int, length: int) -> dict[str, Any] | None:
        """None mostly; else a byte, which may lie outside, a port, which may be closed, or both."""
        if number % 3:
            return None
        chosen = number // 3
        port = self.some("port", side=side, number=chosen)
        notify: dict[str, Any] = {}
        if chosen % 4 != 1:
            notify["byte"] = chosen * 331 % (length + 40)
        if chosen % 4 != 2:
            notify["port"] = port.name if port else UNBOUND_PORT
        return notify

    # Event channels

    @rule(side=sides, number=numbers, whom=st.integers(0, 9), odd=odd_domids)
    def offer(self, side: str, number: int, whom: int, odd: Any) -> None:
        domids = [self.machines[0].domids[side], STRANGER, odd]
        self.offer_to(side, self.other(side) if whom < 7 else domids[whom - 7], number)

    @rule(same=seldom, number=numbers, port=numbers, odd=seldom, stray=odd_ports, stranger=seldom)
    def bind(self, same: bool, number: int, port: int, odd: bool, stray: Any, stranger: bool) -> None:
        to = self.port(port)
        if to is None:
            return
        side = to.side if same else next(other for other in SIDES if other != to.side)
        named: Any = to.name
        if odd or (not to.open and any(pair.port_is_used_again(to.name) for pair in self.machines)):
            named = stray
        interface = self.interface("evtchn", side, number)
        if interface:
            domid = STRANGER if stranger else self.machines[0].domids[to.side]
            self.do(side, "bind", domid=domid, port=named, **{"with": interface, "as": self.name("port")})

    @rule(number=numbers)
    def notify(self, number: int) -> None:
        port = self.port(number)
        if port is not None:
            self.do(port.side, "notify", of=port.name)

    @rule(number=numbers, unmask=st.booleans())
    def notify_and_wait(self, number: int, unmask: bool) -> None:
        """Every open port, where one was notified."""
        self.notify(number)
        for port in self.run.things.of_kind("port", is_open=True)[:4]:
            self.do(port.side, "wait", of=port.name, seconds=0, unmask=unmask)

    @rule(number=numbers, unmask=st.booleans())
    def wait(self, number: int, unmask: bool) -> None:
        port = self.port(number)
        if port is not None:
            self.do(port.side, "wait", of=port.name, seconds=0, unmask=unmask)

    @rule(number=numbers)
    def unmask(self, number: int) -> None:
        port = self.port(number)
        if port is not None:
            self.do(port.side, "unmask", of=port.name)

    # All of it

    @rule(side=sides, really=st.integers(0, 15))
    def fork(self, side: str, really: int) -> None:
        if really == 15:
            self.do(side, "fork")

    @rule(really=seldom)
    def look(self, really: bool) -> None:
        if really:
            self.run.look()
