from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import clipboard
import pytest

import xengrant

SOON = 60.0


def test_text_is_taken_from_another_domain(
    here: xengrant.Domain, there: int, start: Callable[..., Any]
) -> None:
    start("offer", str(here.domid), "hello")
    assert clipboard.take(here, there, SOON) == "hello"


def test_text_of_many_pages_is_taken_by_another_domain(
    here: xengrant.Domain, there: int, start: Callable[..., Any]
) -> None:
    with clipboard.offer(here, there, "grant " * 10_000):
        printed = start("take", str(here.domid))(SOON)
    assert printed == "grant " * 10_000 + "\n"


def test_an_owner_that_lies_is_not_believed(domains: Any) -> None:
    owner, taker = domains(2)
    with (
        owner.gntshr() as gntshr,
        gntshr.share_pages(taker.domid, 1, writable=False) as share,
        owner.advertise(share, clipboard.PATH, header="4097"),
        pytest.raises(xengrant.ProtocolError),
    ):
        clipboard.take(taker, owner.domid)


def test_an_owner_without_memory_is_told_and_offers_nothing(domains: Any, xen_faults: Any) -> None:
    owner, taker = domains(2)
    with (
        xen_faults.failing(owner, "gntalloc", errno.ENOMEM),
        pytest.raises(OSError, match="memory"),
        clipboard.offer(owner, taker.domid, "hello"),
    ):
        pass
    with pytest.raises(TimeoutError):
        clipboard.take(taker, owner.domid, timeout=0)
