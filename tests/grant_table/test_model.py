"""A table beside the plain model of it, with peers that map: what Hypothesis finds, and what chance does."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import pytest

import xengrant
from xengrant.embedded import Machine

from .model import Bench, builders_bench, run_random
from .state_machine import run_machine

PAGES = 3


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


def test_the_table_does_what_the_model_does(embedded: Embedded) -> None:
    run_machine(embedded.bench, examples=25, steps=40)


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
