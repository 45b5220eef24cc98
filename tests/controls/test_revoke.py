"""A table that revokes without compare-exchange, or without a fence, revokes pages that stay mapped."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.controls.conftest import Control
from tests.controls.protocols import Explored, look_first, make_readonly, revoke
from tests.controls.words import LoadAndStore, LoadAndStoreNoFence, NoFence, Words

_HOW = "deterministic: every order that x86-TSO allows, of the accesses of grant_entries.py and embedded/grants.py"


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("change", [revoke, make_readonly])
def test_what_was_revoked_is_not_mapped(version: int, change: Callable[..., Explored]) -> None:
    outcomes, violation = change(version, Words)
    assert violation is None, violation
    assert outcomes >= 2, "owner and hypervisor never met"


_BROKEN: dict[str, Callable[[], Explored]] = {
    "version 1 revoked without compare-exchange": lambda: revoke(1, LoadAndStore),
    "version 1 made read-only without compare-exchange": lambda: make_readonly(1, LoadAndStore),
    "version 2 revoked without its fence": lambda: revoke(2, NoFence),
    "version 2 revoked after a look, without a compare-exchange of both": lambda: revoke(2, Words, look_first),
    "version 2 made read-only with neither compare-exchange nor fence": lambda: make_readonly(2, LoadAndStoreNoFence),
}


@pytest.mark.parametrize("broken", _BROKEN)
def test_a_broken_table_revokes_what_is_mapped(broken: str, control: Control) -> None:
    with control(broken, _HOW, "test_what_was_revoked_is_not_mapped"):
        _, violation = _BROKEN[broken]()
        assert violation is not None
