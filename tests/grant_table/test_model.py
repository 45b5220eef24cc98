"""A table beside the plain model of it, with peers that map: what Hypothesis finds, and what chance does."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import xengrant
from xengrant.embedded import Machine

from .model import Bench, Run, builders_bench, run_random

PAGES = 3
numbers = st.integers(0, 1000)


class Embedded:
    """An embedded machine that makes benches of new domains: a granter, whose kernel is this program, and two peers."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._domids = itertools.count(1)

    @contextlib.contextmanager
    def bench(self, *, mortal: bool = True) -> Iterator[Bench]:
        with contextlib.ExitStack() as stack:
            granter, *mappers = (next(self._domids) for _ in range(3))
            for domid in (granter, *mappers):
                self._machine.create(domid)
                stack.callback(self._destroy, domid)
            domain = stack.enter_context(xengrant.connect(self._machine.url(granter, kernel=True)))
            pages = domain.alloc_pages(PAGES)
            marks = [f"page {page.frame:#x}".encode() for page in pages]
            for page, mark in zip(pages, marks, strict=True):
                page.mapping[: len(mark)] = mark
                stack.callback(page.mapping.close)
            gnttabs = {
                domid: stack.enter_context(xengrant.connect(self._machine.url(domid))).gnttab() for domid in mappers
            }
            for gnttab in gnttabs.values():
                stack.callback(gnttab.close)
            domids = (granter, *mappers) if mortal else ()
            yield Bench(granter, domain.grant_table(), pages, marks, gnttabs, 0x7FEF, domids, self._machine.destroy)

    def _destroy(self, domid: int) -> None:
        with contextlib.suppress(LookupError):
            self._machine.destroy(domid)


@pytest.fixture(params=["pv", "hvm"])
def embedded(request: pytest.FixtureRequest, version: int) -> Iterator[Embedded]:
    with Machine(lifetime=request.param, grant_table_version=version, max_grant_frames=2) as machine:
        yield Embedded(machine)
        assert machine.leaks() == {}


class TableMachine(RuleBasedStateMachine):
    """What may be done in any order. `embedded` is set by the test."""

    embedded: Embedded

    @initialize()
    def begin(self) -> None:
        self.stack = contextlib.ExitStack()
        self.bench = self.stack.enter_context(self.embedded.bench())
        self.run = Run(self.bench)
        self.stack.callback(self.run.finish)

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "run"):
            self.run.check()

    def domid(self, number: int) -> int:
        return list(self.bench.gnttabs)[number % 2]

    @property
    def is_over(self) -> bool:
        return self.bench.granter in self.run.dead

    @rule(count=st.sampled_from([1, 2, 3, 700]))
    def get(self, count: int) -> None:
        if not self.is_over:
            self.run.get(count)

    @rule(number=numbers)
    def put(self, number: int) -> None:
        if not self.is_over:
            self.run.put(self.run.ref(number))

    @rule(number=numbers, domid=st.integers(0, 5), page=st.integers(0, PAGES - 1), writable=st.booleans())
    def grant(self, number: int, domid: int, page: int, writable: bool) -> None:
        if not self.is_over:
            to = self.domid(domid) if domid else self.bench.stranger
            self.run.grant(self.run.ref(number), to, page, writable=writable)

    @rule(number=numbers, domid=st.integers(0, 1), writable=st.booleans())
    def map(self, number: int, domid: int, writable: bool) -> None:
        self.run.map(self.domid(domid), self.run.known(number), writable=writable)

    @rule(number=numbers, domid=st.integers(0, 1), writable=st.booleans())
    def grant_and_map(self, number: int, domid: int, writable: bool) -> None:
        """A new one, so that much is mapped."""
        if self.is_over:
            return
        before = set(self.run.held)
        self.run.get(1)
        for ref in self.run.held.keys() - before:
            self.run.grant(ref, self.domid(domid), number % PAGES, writable=True)
            self.run.map(self.domid(domid), ref, writable=writable)

    @rule(number=numbers)
    def unmap(self, number: int) -> None:
        self.run.unmap(number)

    @rule(number=numbers)
    def end_access(self, number: int) -> None:
        if not self.is_over:
            self.run.end_access(self.run.ref(number))

    @rule(number=numbers)
    def make_readonly(self, number: int) -> None:
        if not self.is_over:
            self.run.make_readonly(self.run.ref(number))

    @rule(number=numbers)
    def make_writable(self, number: int) -> None:
        if not self.is_over:
            self.run.make_writable(self.run.ref(number))

    @rule()
    def fill(self) -> None:
        if not self.is_over:
            self.run.fill()

    @rule(number=numbers, really=st.integers(0, 3))
    def destroy(self, number: int, really: int) -> None:
        if really == 3:
            self.run.destroy(number)


def test_the_table_does_what_the_model_does(embedded: Embedded) -> None:
    class OnThis(TableMachine):
        pass

    OnThis.embedded = embedded
    run_state_machine_as_test(
        OnThis,
        settings=settings(
            max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_chance_finds_nothing_that_the_model_does_not_say(embedded: Embedded, seed: int) -> None:
    with embedded.bench(mortal=seed == 1) as bench:
        done = run_random(bench, seed, 1000)
    assert {"get", "get, too many", "fill", "put", "grant", "end", "end, GrantBusy", "unmap"} <= done.keys()
    assert {"put, InvalidGrant", "map, MapError", "make_readonly, GrantBusy", "map writable"} <= done.keys()
    assert ("destroy a mapper" in done or "destroy the granter" in done) == (seed == 1)


@pytest.mark.parametrize("lifetime", ["pv", "hvm"])
def test_a_builder_over_a_table_that_nobody_uses_yet_does_what_the_model_does(version: int, lifetime: str) -> None:
    """The same run as on real Xen."""
    with Machine(lifetime="pv" if lifetime == "pv" else "hvm", grant_table_version=version) as machine:
        machine.create(3)
        with xengrant.connect(machine.url(0)) as dom0, builders_bench(dom0, 3) as bench:
            done = run_random(bench, 1, 1000)
        assert {"map writable", "map read-only", "map, MapError", "end, GrantBusy", "end", "put"} <= done.keys()
        assert machine.leaks() == {}
