"""A peer that writes whatever it likes, whenever it likes, into all that it shares with us.

The victim is a `Vchan`, server or client; the peer's own end is used only for its mapping of the pages. Nothing may
come of it but typed errors, in bounded time. `XENGRANT_FUZZ_S=600` fuzzes for so many seconds.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import xengrant
from xengrant import vchan
from xengrant.embedded import Machine
from xengrant.errors import GrantError
from xengrant.vchan import Vchan

from .conftest import SOON

_SECONDS = float(os.environ.get("XENGRANT_FUZZ_S", "0"))
_BOUND = 5.0  # seconds that no call takes, whose timeout is 10 ms

_words = st.one_of(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 1023, 1024, 1025, 2048, 4096, 2**31 - 1, 2**31, 2**32 - 1]),
)
_writes = st.one_of(
    st.tuples(st.just("index"), st.sampled_from([0, 4, 8, 12]), _words),
    st.tuples(st.just("nudge"), st.sampled_from([0, 4, 8, 12]), st.integers(-2000, 2000)),
    st.tuples(st.just("byte"), st.integers(16, 40), st.integers(0, 255)),
    st.tuples(st.just("noise"), st.integers(0, 4000), st.integers(1, 96)),
)
_calls = st.tuples(
    st.sampled_from(
        [
            "send",
            "write",
            "recv",
            "read",
            "readinto",
            "data_ready",
            "buffer_space",
            "peek",
            "reserve",
            "wait",
            "is_open",
        ]
    ),
    st.integers(0, 3000),
)
_actions = st.lists(st.one_of(_writes, _calls), max_size=60)
_sizes = st.sampled_from([(1024, 1024), (2048, 1024), (4096, 8192)])


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """One machine for all examples: each has a vchan of its own."""
    with Machine(reclaim_interval=0.01) as machine:
        machine.create(1)
        machine.create(2)
        yield machine


def _scribble(end: Vchan, action: tuple[str, int, int]) -> None:
    kind, at, value = action
    control = end._channel.control
    if kind == "index":
        control[at : at + 4] = value.to_bytes(4, "little")
    elif kind == "nudge":
        now = int.from_bytes(control[at : at + 4], "little")
        control[at : at + 4] = ((now + value) % 2**32).to_bytes(4, "little")
    elif kind == "byte":
        control[at : at + 1] = bytes([value])
    else:
        control[at : at + value] = random.Random(at).randbytes(value)


def _call(victim: Vchan, name: str, size: int) -> None:
    if name in ("send", "write"):
        getattr(victim, name)(b"x" * size, 0.01)
    elif name == "recv":
        assert len(victim.recv(size, 0.01)) == size
    elif name == "read":
        assert len(victim.read(size, 0.01)) <= size
    elif name == "readinto":
        assert victim.readinto(bytearray(size), 0.01) <= size
    elif name in ("data_ready", "buffer_space"):
        assert 0 <= getattr(victim, name)() <= (1 << 16)
    elif name == "peek":
        with victim.peek(0.01) as view:
            taken = min(size, len(view))
        victim.consume(taken)
    elif name == "reserve":
        with victim.reserve(0.01) as view:
            taken = min(size, len(view))
        victim.commit(taken)
    elif name == "wait":
        victim.wait(0.005)
    else:
        assert victim.is_open in (True, False)


def _fuzz(
    machine: Machine, actions: list[tuple[str, int, int] | tuple[str, int]], sizes: tuple[int, int], *, server: bool
) -> None:
    with xengrant.connect(machine.url(1)) as one, xengrant.connect(machine.url(2)) as two:
        serving = vchan.serve(2, "lies", domain=one, read_size=sizes[0], write_size=sizes[1])
        with serving, vchan.connect(1, "lies", domain=two, timeout=SOON) as client:
            victim, liar = (serving, client) if server else (client, serving)
            for action in actions:
                started = time.monotonic()
                if len(action) == 3:
                    _scribble(liar, action)
                else:
                    with contextlib.suppress(GrantError, TimeoutError, ValueError):
                        _call(victim, *action)
                assert time.monotonic() - started < _BOUND, f"{action} took {time.monotonic() - started:.1f} s"


def _long(arguments: Callable[[Callable[..., None]], Callable[[], None]], lies: Callable[..., None]) -> None:
    """Run it again and again, each time with another seed, until the time is out."""
    end = time.monotonic() + _SECONDS
    number = 0
    while True:
        bounded = settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        bounded(seed(number)(arguments(lies)))()
        number += 1
        if time.monotonic() >= end:
            break


@pytest.mark.parametrize("server", [True, False], ids=["server", "client"])
def test_an_end_survives_whatever_its_peer_writes(machine: Machine, server: bool) -> None:
    def lies(actions: list[tuple[str, int, int] | tuple[str, int]], sizes: tuple[int, int]) -> None:
        _fuzz(machine, actions, sizes, server=server)

    _long(given(actions=_actions, sizes=_sizes), lies)


def test_a_client_survives_whatever_page_it_is_offered(machine: Machine) -> None:
    def lies(page: list[tuple[str, int, int]], sizes: tuple[int, int], keys: tuple[int, int, bool]) -> None:
        with xengrant.connect(machine.url(1)) as one, xengrant.connect(machine.url(2)) as two:
            serving = vchan.serve(2, "lies", domain=one, read_size=sizes[0], write_size=sizes[1])
            with serving, one.xenstore() as store:
                if keys[2]:
                    store.write(f"{serving.path}/ring-ref", str(keys[0]))
                if keys[1] % 2:
                    store.write(f"{serving.path}/event-channel", str(keys[1]))
                for action in page:
                    _scribble(serving, action)
                started = time.monotonic()
                with (
                    contextlib.suppress(GrantError, TimeoutError),
                    vchan.connect(1, "lies", domain=two, timeout=0.01) as client,
                ):
                    _call(client, "read", 100)
                assert time.monotonic() - started < _BOUND

    _long(given(page=st.lists(_writes, max_size=12), sizes=_sizes, keys=st.tuples(_words, _words, st.booleans())), lies)


@pytest.mark.parametrize("server", [True, False], ids=["server", "client"])
def test_an_end_survives_a_peer_that_scribbles_while_it_works(machine: Machine, server: bool) -> None:
    """From another thread, so that words change between any two instructions."""
    chance = random.Random(7)
    end = time.monotonic() + max(1.0, _SECONDS)
    calls = errors = 0
    while time.monotonic() < end:
        with xengrant.connect(machine.url(1)) as one, xengrant.connect(machine.url(2)) as two:
            serving = vchan.serve(2, "lies", domain=one, read_size=1024, write_size=4096)
            with serving, vchan.connect(1, "lies", domain=two, timeout=SOON) as client:
                victim, liar = (serving, client) if server else (client, serving)
                stop = threading.Event()

                def scribble(liar: Vchan = liar, stop: threading.Event = stop) -> None:
                    while not stop.is_set():
                        kind = chance.choice(["nudge", "nudge", "nudge", "byte", "index"])
                        at = chance.choice([0, 4, 8, 12]) if kind != "byte" else chance.randrange(20, 24)
                        _scribble(liar, (kind, at, chance.randrange(200 if kind == "nudge" else 256)))
                        liar._channel.doorbell.ring()

                scribbler = threading.Thread(target=scribble)
                scribbler.start()
                try:
                    for _ in range(200):
                        started = time.monotonic()
                        try:
                            _call(
                                victim,
                                chance.choice(["read", "write", "recv", "peek", "reserve"]),
                                chance.randrange(900),
                            )
                        except (GrantError, TimeoutError, ValueError):
                            errors += 1
                        calls += 1
                        assert time.monotonic() - started < _BOUND
                finally:
                    stop.set()
                    scribbler.join(SOON)
    assert calls > errors > 0, f"{errors} of {calls} calls failed: it did not lie, or nothing worked"
