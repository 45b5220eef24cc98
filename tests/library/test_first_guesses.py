"""What a newcomer types first, and gets wrong: the error says what the argument is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import xengrant
from xengrant import vchan
from xengrant.embedded import Machine


def _with(interface: Any, call: str, *arguments: object, **named: object) -> None:
    with interface:
        getattr(interface, call)(*arguments, **named)


@pytest.mark.parametrize(
    ("guess", "says"),
    [
        (lambda domain, _share: vchan.connect(2, 600, domain=domain), "path is text, not 600"),  # type: ignore[arg-type]
        (lambda domain, _share: vchan.serve(2, 600, domain=domain), "path is text, not 600"),  # type: ignore[arg-type]
        (lambda domain, _share: vchan.connect(2, "x", domain=domain, timeout="1"), "timeout is a number"),  # type: ignore[arg-type]
        (lambda domain, share: domain.advertise("path", share), "path is text, not <Share of"),
        (lambda domain, _share: domain.find(2, 3), "path is text, not 3"),
        (lambda domain, _share: domain.find(2, "x", timeout="1"), "timeout is a number of seconds, or None, not '1'"),
        (lambda domain, _share: _with(domain.gnttab(), "map", 8, writable=True), "pair of a domid and a ref, not 8"),
        (lambda domain, _share: _with(domain.xenstore(), "read", 1), "path is text, not 1"),
        (lambda domain, _share: _with(domain.xenstore(), "watch", 1), "path is text, not 1"),
        (lambda domain, _share: domain.peer(2, 3), "path is text, not 3"),
    ],
)
def test_an_argument_of_the_wrong_type_is_named(guess: Callable[[Any, Any], object], says: str) -> None:
    with (
        Machine() as machine,
        xengrant.connect(machine.url(1)) as domain,
        domain.gntshr() as gntshr,
        gntshr.share_pages(2, 1, writable=False) as share,
        pytest.raises(TypeError, match=says),
    ):
        guess(domain, share)


def test_a_machine_takes_numbers_for_domains() -> None:
    with Machine() as machine, pytest.raises(LookupError, match="there is no domain '1'"):
        machine.destroy("1")  # type: ignore[arg-type]
