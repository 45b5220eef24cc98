"""A vchan's notify byte changed by a plain load and store loses what another thread asked for in the same byte."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.controls.c_ring import CRing
from tests.controls.conftest import Control


@pytest.mark.parametrize("reads", [False, True])
def test_two_threads_that_ask_in_one_byte_are_both_told(reads: bool, c_ring: Callable[..., CRing]) -> None:
    outcomes, violation = c_ring().move_and_wait_twice(reads=reads)
    assert violation is None, violation
    assert outcomes >= 4, "the ends never met"


@pytest.mark.parametrize("reads", [False, True])
def test_a_byte_that_is_stored_plainly_loses_one(reads: bool, c_ring: Callable[..., CRing], control: Control) -> None:
    how = "deterministic: every order that x86-TSO allows, of the accesses of native/ring.c and ring_wait.c"
    broken = f"a notify byte loaded and stored, and {'room' if reads else 'bytes'} waited for"
    with control(broken, how, "test_two_threads_that_ask_in_one_byte_are_both_told"):
        _, violation = c_ring("PLAIN_NOTIFY").move_and_wait_twice(reads=reads)
        assert violation is not None
