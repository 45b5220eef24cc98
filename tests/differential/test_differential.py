"""The differential test's driver on two embedded machines: it finds what is planted in one, and nothing elsewhere.

On real Xen the same driver is run by `lab/jobs/differential.py`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.differential import actor
from tests.differential.actor import Actor, Step
from tests.differential.allowed import ALLOWED
from tests.differential.pair import Pair, embedded
from tests.differential.run import Difference, Record, replay, shortest
from tests.differential.state_machine import run_machine
from xengrant.embedded import event_channels, gntalloc, gntdev, xenstore_tree
from xengrant.embedded.linux import Linux
from xengrant.testing.embedded import MachineProcess
from xengrant.testing.here import Kind

GUEST = 7
SHARE: list[Step] = [
    {"do": "open", "side": "guest", "kind": "gntshr", "as": "gntshr1"},
    {"do": "share", "side": "guest", "with": "gntshr1", "as": "share1", "domid": 0, "count": 2, "writable": True},
    {"do": "open", "side": "dom0", "kind": "gnttab", "as": "gnttab1"},
]
PAGE = {"share": "share1", "page": 1}
MAP: list[Step] = [
    *SHARE,
    {"do": "map", "side": "dom0", "with": "gnttab1", "as": "map1", "grants": [PAGE], "writable": True},
]
PORTS: list[Step] = [
    {"do": "open", "side": "guest", "kind": "evtchn", "as": "evtchn1"},
    {"do": "offer", "side": "guest", "with": "evtchn1", "as": "port1", "domid": 0},
    {"do": "open", "side": "dom0", "kind": "evtchn", "as": "evtchn2"},
    {"do": "bind", "side": "dom0", "with": "evtchn2", "as": "port2", "domid": GUEST, "port": "port1"},
]
STORE: list[Step] = [{"do": "open", "side": "guest", "kind": "store", "as": "store1"}]


@contextlib.contextmanager
def machines(
    plant: Callable[[], object] = lambda: None, kinds: tuple[Kind, Kind] = ("pv", "pv"), gntalloc_limit: int = 1024
) -> Iterator[tuple[Pair, Pair]]:
    """Two machines; before the second one is made, whose code is this process's, `plant` changes that."""
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(MachineProcess(kinds[0]))]
        plant()
        processes.append(stack.enter_context(MachineProcess(kinds[1])))
        one, other = (
            stack.enter_context(embedded(process, GUEST, kind, name))
            for process, kind, name in zip(processes, kinds, ("one", "other"), strict=True)
        )
        for process in processes:
            for domid in (0, GUEST):
                process.ask("configure", domid=domid, gntalloc_limit=gntalloc_limit)
        yield one, other
        for process in processes:
            counts = process.ask("status")["domains"][str(GUEST)]
            assert {name: counts[name] for name in ("mapped", "maps", "ports")} == {"mapped": 0, "maps": 0, "ports": 0}


@pytest.mark.parametrize("kind", ["pv", "hvm"])
def test_two_machines_alike_do_the_same(kind: Kind) -> None:
    record = Record()
    with machines(kinds=(kind, kind)) as (one, other):
        run_machine(one, other, record, examples=8, steps=40, seed=3)
    assert record.differences == []
    assert record.done.keys() >= {"share", "map", "copy", "bind", "wait", "write", "look", "granted", "end"}
    assert sum(record.done.values()) > 150
    assert sum(record.refused.values()) > 30


def _errno_of_the_limit(patch: pytest.MonkeyPatch) -> None:
    check_limit = gntalloc.Gntalloc._check_limit

    def check(self: gntalloc.Gntalloc, count: int) -> None:
        try:
            check_limit(self, count)
        except OSError:
            raise OSError(errno.ENOMEM, "planted") from None

    patch.setattr(gntalloc.Gntalloc, "_check_limit", check)


def test_what_hypothesis_chooses_finds_another_errno(monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record()
    with machines(lambda: _errno_of_the_limit(monkeypatch), gntalloc_limit=4) as (one, other):
        run_machine(one, other, record, examples=8, steps=30, seed=1)
        found = [each for each in record.differences if each.steps[-1]["do"] == "share"]
        assert found, record.rows()
        assert {each.outcomes[1]["error"]["errno"] for each in found} == {errno.ENOMEM}
        assert {each.signature for each in found} == {"share: GrantTableFull 28 gntalloc / OSError 12"}
        least = shortest(one, other, min(found, key=lambda each: len(each.steps)), tries=40)
        told = json.loads(str(least).splitlines()[-1])
        assert {step["do"] for step in told} <= {"open", "offer", "share"}  # a port, where the share is to notify
        assert _signature(replay(one, other, told)) == least.signature


def _signature(difference: Difference | None) -> str:
    assert difference is not None, "no difference was found"
    return difference.signature


def _never_revokes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Linux, "end_grant", lambda self, ref, page: None)


def _writes_through_read_only(patch: pytest.MonkeyPatch) -> None:
    grant = Linux.grant
    patch.setattr(Linux, "grant", lambda self, domid, page, writable: grant(self, domid, page, writable=True))


def _sends_no_events(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(event_channels.Channel, "send", lambda self, side: None)


def _clears_another_byte(patch: pytest.MonkeyPatch) -> None:
    unmap = gntdev.Gntdev._unmap

    def wrong(self: gntdev.Gntdev, mapped: gntdev.Map) -> None:
        mapped.clear_byte = None if mapped.clear_byte is None else mapped.clear_byte + 1
        unmap(self, mapped)

    patch.setattr(gntdev.Gntdev, "_unmap", wrong)


def _lets_all_write(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(xenstore_tree.Caller, "rights", lambda self, node: xenstore_tree._EVERYTHING)


NOTIFIED = {"writable": True, "notify": {"byte": 9}, "with": "gnttab1", "as": "map1", "grants": [PAGE]}


@pytest.mark.parametrize(
    ("plant", "steps", "signature"),
    [
        (
            _never_revokes,
            [
                *SHARE,
                {"do": "close", "side": "guest", "of": "share1"},
                {"do": "map", "side": "dom0", "with": "gnttab1", "as": "map1", "grants": [PAGE], "writable": False},
            ],
            "map: MapError 22 -1 / done",
        ),
        (
            _writes_through_read_only,
            [SHARE[0], SHARE[1] | {"writable": False}, {"do": "granted"}],
            "granted: done / done",
        ),
        (_sends_no_events, [*PORTS, {"do": "wait", "side": "dom0", "of": "port2", "seconds": 0, "unmask": True}], ""),
        (
            _clears_another_byte,
            [
                *SHARE,
                {"do": "store", "side": "guest", "of": "share1", "at": 4096, "data": "11" * 32},
                {"do": "map", "side": "dom0"} | NOTIFIED,
                {"do": "close", "side": "dom0", "of": "map1"},
            ],
            "look: done / done",
        ),
        (
            _lets_all_write,
            [*STORE, {"do": "mkdir", "side": "guest", "with": "store1", "path": "nothing"}],
            "mkdir: XenStoreError 13 / done",
        ),
    ],
)
def test_what_is_planted_is_found(
    plant: Callable[[pytest.MonkeyPatch], None],
    steps: list[Step],
    signature: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if plant is _sends_no_events:
        monkeypatch.setattr("tests.differential.run.EVENT_SECONDS", 0.2)
        signature = "wait: done / TimeoutError"
    with machines(lambda: plant(monkeypatch)) as (one, other):
        assert _signature(replay(one, other, steps)) == signature
    monkeypatch.undo()


def test_a_guest_of_the_other_kind_is_found() -> None:
    """A PV domain pins each page that it maps twice, and Xen counts pins in seven bits."""
    steps: list[Step] = [
        SHARE[0] | {"side": "dom0"},
        SHARE[1] | {"side": "dom0", "domid": GUEST},
        SHARE[2] | {"side": "guest"},
        {"do": "map", "side": "guest"} | {"with": "gnttab1", "as": "map1", "grants": [PAGE] * 65, "writable": True},
    ]
    with machines(kinds=("pv", "hvm")) as (one, other):
        assert _signature(replay(one, other, steps)) == "map: MapError 22 0 / done"


def test_what_is_left_open_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[int] = []
    opening = Actor.open

    def open_and_lose(self: Actor, step: Step) -> Any:
        lost.append(os.dup(0))
        return opening(self, step)

    monkeypatch.setitem(actor._STEPS, "open", open_and_lose)
    try:
        with machines() as (one, other):
            assert _signature(replay(one, other, STORE)) == "end: done / done"
    finally:
        for descriptor in lost:
            os.close(descriptor)


def test_each_allowed_difference_is_pinned() -> None:
    for each in ALLOWED:
        file, _, name = each.pinned_by.partition("::")
        assert re.search(rf"^( *)(async )?(def|class) {name}\b", Path(file).read_text(), re.MULTILINE), each.pinned_by
        assert each.reason
