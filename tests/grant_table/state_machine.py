"""The rules by which Hypothesis drives a table and the plain model of it: `TableMachine`.

For pytest (`test_model.py`), and for the labs, whose dom0 has Hypothesis and no pytest (`lab/jobs/table.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from .model import Bench, Run

numbers = st.integers(0, 1000)


def run_machine(new_bench: Callable[[], AbstractContextManager[Bench]], *, examples: int, steps: int) -> None:
    """Let Hypothesis try so many runs of so many steps, each on a bench of its own."""

    class OnThis(TableMachine):
        bench_of = staticmethod(new_bench)

    checks = list(HealthCheck)
    run_state_machine_as_test(
        OnThis,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=checks,
        ),
    )


class TableMachine(RuleBasedStateMachine):
    """What may be done in any order, on a new bench of `bench_of`."""

    bench_of: Callable[[], AbstractContextManager[Bench]]

    @initialize()
    def begin(self) -> None:
        self.stack = contextlib.ExitStack()
        self.bench = self.stack.enter_context(self.bench_of())
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
        return list(self.bench.gnttabs)[number % len(self.bench.gnttabs)]

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

    @rule(number=numbers, domid=st.integers(0, 5), page=numbers, writable=st.booleans())
    def grant(self, number: int, domid: int, page: int, writable: bool) -> None:
        if not self.is_over:
            to = self.domid(domid) if domid else self.bench.stranger
            self.run.grant(self.run.ref(number), to, page % len(self.bench.pages), writable=writable)

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
            self.run.grant(ref, self.domid(domid), number % len(self.bench.pages), writable=True)
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
