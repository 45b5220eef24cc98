"""Two ends of a vchan, in two domains of one machine, with what belongs to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

import xengrant
from xengrant import vchan
from xengrant.embedded import Machine
from xengrant.vchan import Vchan

SOON = 20.0  # seconds; no test comes near it

Ends = Callable[..., tuple[Vchan, Vchan]]


@pytest.fixture
def ends(machine: Machine) -> Iterator[Ends]:
    """`ends(read_size=..., ...)`: the server in domain 1 and its client in domain 2."""
    with ExitStack() as stack:
        one, two = (stack.enter_context(xengrant.connect(machine.url(domid))) for domid in (1, 2))
        made = 0

        def make(**settings: object) -> tuple[Vchan, Vchan]:
            nonlocal made
            made += 1
            server = vchan.serve(2, f"test{made}", domain=one, **settings)  # type: ignore[arg-type]
            stack.enter_context(server)
            client = stack.enter_context(vchan.connect(1, f"test{made}", domain=two, timeout=SOON))
            return server, client

        yield make
