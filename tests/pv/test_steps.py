"""The rules of the bus, over every pair of states: what Linux's drivers do, and that no state is a dead end."""

from __future__ import annotations

from itertools import product

import pytest

from xengrant.pv import XenbusState as S
from xengrant.pv.steps import Step, back_step, front_step

BOOLS = (False, True)


@pytest.mark.parametrize(
    ("own", "front", "connected", "step"),
    [
        # xen-blkback's frontend_changed, and its probe.
        (S.INITIALISING, S.INITIALISING, False, Step.OFFER),
        (S.INITIALISING, S.UNKNOWN, False, Step.OFFER),
        (S.INIT_WAIT, S.INITIALISING, False, Step.WAIT),
        (S.INIT_WAIT, S.UNKNOWN, False, Step.WAIT),
        (S.INIT_WAIT, S.INITIALISED, False, Step.CONNECT),
        (S.INIT_WAIT, S.CONNECTED, False, Step.CONNECT),
        (S.CONNECTED, S.INITIALISED, True, Step.WAIT),
        (S.CONNECTED, S.CONNECTED, True, Step.WAIT),
        (S.CONNECTED, S.CLOSING, True, Step.CLOSING),
        (S.CLOSING, S.CLOSING, True, Step.WAIT_FOR_CLOSED),
        (S.CONNECTED, S.CLOSED, True, Step.CLOSED),
        (S.CLOSING, S.CLOSED, True, Step.CLOSED),
        (S.CLOSED, S.INITIALISING, False, Step.OFFER),
        (S.CLOSED, S.CONNECTED, False, Step.WAIT),
        # The toolstack unplugs.
        (S.CLOSING, S.CONNECTED, True, Step.WAIT_FOR_CLOSED),
        (S.CLOSING, S.INITIALISING, False, Step.CLOSED),
        (S.CLOSED, S.CONNECTED, True, Step.DISCONNECT),
        (S.INITIALISING, S.CONNECTED, True, Step.DISCONNECT),
        # A predecessor was killed.
        (S.CONNECTED, S.CONNECTED, False, Step.RESUME),
        (S.CONNECTED, S.INITIALISED, False, Step.RESUME),
        # The front end's domain has started over, or is gone.
        (S.CONNECTED, S.INITIALISING, True, Step.OFFER),
        (S.CONNECTED, S.UNKNOWN, True, Step.CLOSED),
    ],
)
def test_the_back_end_follows_the_front_end(own: S, front: S, connected: bool, step: Step) -> None:
    assert back_step(own, front, online=True, connected=connected) is step


def test_an_unplugged_back_end_is_offered_no_more() -> None:
    for own, front, connected in product(S, S, BOOLS):
        step = back_step(own, front, online=False, connected=connected)
        assert step is not Step.OFFER or own in (S.INITIALISING, S.INITIALISED)


def _states_after_back(own: S, step: Step) -> tuple[S, bool]:
    return {
        Step.OFFER: (S.INIT_WAIT, False),
        Step.CONNECT: (S.CONNECTED, True),
        Step.RESUME: (S.CONNECTED, True),
        Step.CLOSING: (S.CLOSING, True),
        Step.CLOSED: (S.CLOSED, False),
        Step.WAIT_FOR_CLOSED: (S.CLOSED, False),
        Step.DISCONNECT: (own, False),
    }[step]


@pytest.mark.parametrize("stopping", BOOLS)
@pytest.mark.parametrize("online", BOOLS)
def test_a_back_end_comes_to_rest_whatever_the_states_are(online: bool, stopping: bool) -> None:
    for own, front, connected in product(S, S, BOOLS):
        state, joined, steps = own, connected, 0
        while (step := back_step(state, front, online=online, connected=joined, stopping=stopping)) is not Step.WAIT:
            state, joined = _states_after_back(state, step)
            steps += 1
            assert steps < 6, f"{own.name}, {front.name}: no rest"
        if front in (S.UNKNOWN, S.INITIALISING, S.INITIALISED, S.CONNECTED, S.CLOSING, S.CLOSED):
            assert joined == (state is S.CONNECTED)
        if stopping and own in (S.INITIALISING, S.INIT_WAIT, S.CONNECTED, S.CLOSING, S.CLOSED):
            assert (state, joined) == (S.CLOSED, False)


@pytest.mark.parametrize(
    ("own", "back", "connected", "step"),
    [
        # xen-blkfront's blkback_changed, and its probe.
        (S.INITIALISING, S.INITIALISING, False, Step.WAIT),
        (S.INITIALISING, S.INIT_WAIT, False, Step.CONNECT),
        (S.INITIALISED, S.INIT_WAIT, True, Step.WAIT),
        (S.INITIALISED, S.CONNECTED, True, Step.ANNOUNCE),
        (S.CONNECTED, S.CONNECTED, True, Step.WAIT),
        (S.CONNECTED, S.INIT_WAIT, True, Step.WAIT),
        (S.CONNECTED, S.CLOSING, True, Step.CLOSED),
        (S.CONNECTED, S.CLOSED, True, Step.CLOSED),
        (S.CONNECTED, S.UNKNOWN, True, Step.CLOSED),
        # Of a predecessor: xenbus_reset_frontend.
        (S.CONNECTED, S.CONNECTED, False, Step.RESET),
        (S.CLOSING, S.CONNECTED, False, Step.RESET),
        (S.CLOSED, S.CONNECTED, False, Step.WAIT_FOR_CLOSED),
        (S.CLOSED, S.CLOSED, False, Step.START),
        # Its own nodes are gone.
        (S.UNKNOWN, S.CONNECTED, True, Step.END),
    ],
)
def test_the_front_end_follows_the_back_end(own: S, back: S, connected: bool, step: Step) -> None:
    assert front_step(own, back, online=True, connected=connected, again=True) is step


def test_a_front_end_starts_over_only_where_it_is_plugged_and_wants_to() -> None:
    for own, back, connected, stopping, again in product(S, S, BOOLS, BOOLS, BOOLS):
        step = front_step(own, back, online=False, connected=connected, again=again, stopping=stopping)
        assert step is not Step.START or (back is S.INITIALISING and again and not stopping)
    assert front_step(S.CLOSED, S.CLOSED, online=True, connected=False, again=False) is Step.END


@pytest.mark.parametrize("again", BOOLS)
def test_a_stopping_front_end_ends_whatever_the_states_are(again: bool) -> None:
    after = {
        Step.CONNECT: (S.INITIALISED, True),
        Step.ANNOUNCE: (S.CONNECTED, True),
        Step.CLOSING: (S.CLOSING, True),
        Step.CLOSED: (S.CLOSED, False),
        Step.RESET: (S.CLOSED, False),
    }
    for own, back, connected in product(S, S, BOOLS):
        state, joined, steps = own, connected, 0
        while True:
            step = front_step(state, back, online=True, connected=joined, again=again, stopping=True)
            if step is Step.END or (step is Step.WAIT_FOR_CLOSED and state is S.CLOSED):
                break
            if step is Step.DISCONNECT:
                joined = False
            elif step is Step.WAIT_FOR_CLOSED:
                state, joined = S.CLOSED, False
            else:
                state, joined = after[step]
            steps += 1
            assert steps < 6, f"{own.name}, {back.name}: no end"
