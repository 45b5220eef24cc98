"""Gntshr and Share against a scripted /dev/xen/gntalloc: the calls in their order, and what each failure leaves."""

from __future__ import annotations

import errno
import logging
import threading
from typing import Any

import pytest

from xengrant.abi import gntalloc, unmap_notify
from xengrant.errors import GrantTableFull, InterfaceClosed
from xengrant.gntshr import Gntshr, UnmapNotify
from xengrant.memory import PAGE_SIZE

from .fake import FakeSystem, error

_SHARED = ["ALLOC", "mmap", "DEALLOC"]
_NOTIFIED = ["ALLOC", "mmap", "NOTIFY", "DEALLOC"]


def test_sharing_makes_libxengnttabs_calls_in_its_order(system: FakeSystem, gntshr: Gntshr) -> None:
    with gntshr.share_pages(5, 3, writable=True) as share:
        assert system.journal == _SHARED
        assert (share.domid, share.refs, share.writable) == (5, (8, 9, 10), True)
        assert len(share.mapping) == 3 * PAGE_SIZE
        assert gntalloc.unpack_alloc(system.opened[0].asked["ALLOC"]) == (5, gntalloc.FLAG_WRITABLE, 3)
        assert not share.closed
    assert share.closed
    assert system.journal == [*_SHARED, "munmap"]


def test_a_read_only_share_is_read_only_for_the_peer_alone(system: FakeSystem, gntshr: Gntshr) -> None:
    with gntshr.share_pages(5, writable=False) as share:
        assert gntalloc.unpack_alloc(system.opened[0].asked["ALLOC"]) == (5, 0, 1)
        share.mapping[0] = 7


def test_the_notification_is_set_before_dealloc(system: FakeSystem, gntshr: Gntshr) -> None:
    gntshr.share_pages(5, 2, writable=True).close()  # so that the index is not 0
    notify = UnmapNotify(clear_byte=PAGE_SIZE + 3, port=9)
    with gntshr.share_pages(5, 2, writable=True, notify=notify):
        assert system.journal[-4:] == _NOTIFIED
        both = unmap_notify.CLEAR_BYTE | unmap_notify.SEND_EVENT
        packed = unmap_notify.unpack_notify(system.opened[0].asked["NOTIFY"])
        assert packed == (3 * PAGE_SIZE + 3, both, 9)


@pytest.mark.parametrize(
    ("notify", "packed"),
    [
        (UnmapNotify(clear_byte=0), (0, unmap_notify.CLEAR_BYTE, 0)),
        (UnmapNotify(clear_byte=4095), (4095, unmap_notify.CLEAR_BYTE, 0)),
        (UnmapNotify(port=0xFFFFFFFF), (0, unmap_notify.SEND_EVENT, 0xFFFFFFFF)),
    ],
)
def test_a_notification_does_what_was_asked_and_no_more(
    system: FakeSystem, gntshr: Gntshr, notify: UnmapNotify, packed: tuple[int, int, int]
) -> None:
    with gntshr.share_pages(5, writable=True, notify=notify):
        assert unmap_notify.unpack_notify(system.opened[0].asked["NOTIFY"]) == packed


@pytest.mark.parametrize("failure", [error(errno.ENOMEM), KeyboardInterrupt()])
def test_a_failed_mmap_gives_the_pages_back(system: FakeSystem, gntshr: Gntshr, failure: BaseException) -> None:
    system.failures["mmap"] = failure
    with pytest.raises(type(failure)) as caught:
        gntshr.share_pages(5, writable=True)
    assert caught.value is failure
    assert system.journal == _SHARED


@pytest.mark.parametrize(
    ("number", "raised", "text"),
    [
        (errno.EINVAL, ValueError, "holds no event channel port 9"),
        (errno.ENOENT, OSError, "No such file"),
        (errno.ENOMEM, OSError, "Cannot allocate"),
    ],
)
def test_a_refused_notification_gives_all_back(
    system: FakeSystem, gntshr: Gntshr, number: int, raised: type[Exception], text: str
) -> None:
    system.failures["NOTIFY"] = error(number)
    with pytest.raises(raised, match=text):
        gntshr.share_pages(5, writable=True, notify=UnmapNotify(port=9))
    assert sorted(system.journal) == sorted([*_NOTIFIED, "munmap"])


def test_a_failed_dealloc_gives_all_back(system: FakeSystem, gntshr: Gntshr) -> None:
    system.failures["DEALLOC"] = error(errno.EFAULT)
    with pytest.raises(OSError, match="Bad address"):
        gntshr.share_pages(5, writable=True)
    assert system.journal == [*_SHARED, "DEALLOC", "munmap"]


def test_closing_while_another_thread_shares_leaks_nothing(system: FakeSystem, gntshr: Gntshr) -> None:
    system.hooks["mmap"] = gntshr.close
    with pytest.raises(InterfaceClosed):
        gntshr.share_pages(5, writable=True)
    assert system.journal == ["ALLOC", "mmap", "close", "munmap"]


def test_a_share_outlives_its_interface(system: FakeSystem, gntshr: Gntshr) -> None:
    share = gntshr.share_pages(5, writable=True)
    gntshr.close()
    share.mapping[:5] = b"hello"
    with pytest.raises(InterfaceClosed, match=r"share.close"):
        gntshr.munmap(share)
    assert not share.closed
    share.close()
    share.close()
    assert system.journal == [*_SHARED, "close", "munmap"]


def test_any_open_interface_unmaps_any_share(system: FakeSystem, gntshr: Gntshr) -> None:
    share = gntshr.share_pages(5, writable=True)
    with Gntshr(system.open("gntalloc"), system) as other:
        other.munmap(share)
    assert share.closed


def test_a_share_with_a_live_view_does_not_close(gntshr: Gntshr) -> None:
    share = gntshr.share_pages(5, writable=True)
    view = memoryview(share.mapping)
    with pytest.raises(BufferError, match="1 view"):
        share.close()
    assert not share.closed
    view[0] = 1
    view.release()
    share.close()
    assert share.closed


def test_a_share_never_closed_warns_and_is_unmapped(system: FakeSystem, gntshr: Gntshr) -> None:
    dropped = [gntshr.share_pages(5, writable=True)]
    with pytest.warns(ResourceWarning, match="unclosed"):
        dropped.clear()
    assert system.journal[-1] == "munmap"


def test_a_closed_interface_says_so(system: FakeSystem, gntshr: Gntshr) -> None:
    gntshr.close()
    gntshr.close()
    assert gntshr.closed
    for call in (lambda: gntshr.share_pages(5, writable=True), gntshr.__enter__, gntshr.fileno):
        with pytest.raises(InterfaceClosed):
            call()
    assert system.journal == ["close"]


_BAD_DOMIDS: list[tuple[Any, type[Exception]]] = [
    (-1, ValueError),
    (0x7FF0, ValueError),
    (1 << 40, ValueError),
    (True, TypeError),
    (1.0, TypeError),
    ("1", TypeError),
    (None, TypeError),
]


@pytest.mark.parametrize(("domid", "raised"), _BAD_DOMIDS)
def test_a_bad_domid_is_refused_before_anything_is_allocated(
    system: FakeSystem, gntshr: Gntshr, domid: Any, raised: type[Exception]
) -> None:
    with pytest.raises(raised, match="domid"):
        gntshr.share_pages(domid, writable=True)
    assert system.journal == []


@pytest.mark.parametrize("domid", [0, 1, 0x7FEF])
def test_a_domid_may_be_anything_below_the_reserved_ones(gntshr: Gntshr, domid: int) -> None:
    gntshr.share_pages(domid, writable=True).close()


@pytest.mark.parametrize(
    ("count", "raised"),
    [(0, ValueError), (-1, ValueError), (1 << 24, ValueError), (1 << 70, ValueError), (True, TypeError)],
)
def test_a_bad_count_is_refused(system: FakeSystem, gntshr: Gntshr, count: int, raised: type[Exception]) -> None:
    with pytest.raises(raised, match="count"):
        gntshr.share_pages(5, count, writable=True)
    with pytest.raises(raised, match="count"):
        gntshr.try_share_pages(5, count, writable=True)
    assert system.journal == []


def test_writable_has_no_default(gntshr: Gntshr) -> None:
    unchecked: Any = gntshr
    with pytest.raises(TypeError, match="writable"):
        unchecked.share_pages(5)


@pytest.mark.parametrize(
    ("arguments", "raised", "text"),
    [
        ({}, ValueError, "clear_byte, a port, or both"),
        ({"clear_byte": -1}, ValueError, "clear_byte -1"),
        ({"clear_byte": 0.5}, TypeError, "clear_byte"),
        ({"clear_byte": False}, TypeError, "clear_byte"),
        ({"port": -1}, ValueError, "port -1"),
        ({"port": 1 << 32}, ValueError, "port 4294967296"),
        ({"port": True}, TypeError, "port"),
    ],
)
def test_a_notification_that_cannot_be_is_refused(
    arguments: dict[str, Any], raised: type[Exception], text: str
) -> None:
    with pytest.raises(raised, match=text):
        UnmapNotify(**arguments)


def test_a_byte_outside_the_share_is_refused_before_anything_is_allocated(system: FakeSystem, gntshr: Gntshr) -> None:
    with pytest.raises(ValueError, match="clear_byte 4096 lies outside the 4096 bytes"):
        gntshr.share_pages(5, writable=True, notify=UnmapNotify(clear_byte=4096))
    assert system.journal == []


def test_enospc_of_the_limit_names_it_and_the_setting(system: FakeSystem, gntshr: Gntshr) -> None:
    system.parameters["xen_gntalloc", "limit"] = "512"
    system.failures["ALLOC"] = error(errno.ENOSPC)
    with pytest.raises(GrantTableFull, match=r"512 pages.*parameters/limit") as caught:
        gntshr.share_pages(5, 3, writable=True)
    assert caught.value.limit == "gntalloc"
    assert caught.value.errno == errno.ENOSPC
    assert "cannot share 3 pages with domain 5" in str(caught.value)
    assert "max_grant_frames" in str(caught.value)  # 3 of 512: it may be the table, too


def test_enospc_beyond_the_limit_can_only_be_the_limit(system: FakeSystem, gntshr: Gntshr) -> None:
    system.log = ["xen/grant-table: max_grant_frames reached cur=64 extra=1 limit=64"]
    system.failures["ALLOC"] = error(errno.ENOSPC)
    with pytest.raises(GrantTableFull, match="1024 pages") as caught:
        gntshr.share_pages(5, 1025, writable=True)
    assert caught.value.limit == "gntalloc"
    assert "max_grant_frames" not in str(caught.value)


def test_enospc_of_the_table_is_told_by_the_kernels_log(system: FakeSystem, gntshr: Gntshr) -> None:
    system.log = ["usb 1-1: new device", "xen/grant-table: max_grant_frames reached cur=64 extra=1 limit=64"]
    system.failures["ALLOC"] = error(errno.ENOSPC)
    with pytest.raises(GrantTableFull, match=r"table is full \(max_grant_frames reached cur=64") as caught:
        gntshr.share_pages(5, writable=True)
    assert caught.value.limit == "table"
    assert "1 page with" in str(caught.value)


@pytest.mark.parametrize("limit", [None, "", "-1", "many"])
def test_enospc_with_no_limit_to_be_read_still_says_what_it_can(
    system: FakeSystem, gntshr: Gntshr, limit: str | None
) -> None:
    del system.parameters["xen_gntalloc", "limit"]
    if limit is not None:
        system.parameters["xen_gntalloc", "limit"] = limit
    system.failures["ALLOC"] = error(errno.ENOSPC)
    with pytest.raises(GrantTableFull, match="parameters/limit"):
        gntshr.share_pages(5, writable=True)


def test_other_errors_keep_their_errno(system: FakeSystem, gntshr: Gntshr) -> None:
    system.failures["ALLOC"] = error(errno.ENOTTY)
    with pytest.raises(OSError, match="Inappropriate") as caught:
        gntshr.share_pages(5, writable=True)
    assert caught.value.errno == errno.ENOTTY


def test_try_share_pages_logs_the_diagnosis(
    system: FakeSystem, gntshr: Gntshr, caplog: pytest.LogCaptureFixture
) -> None:
    system.failures["ALLOC"] = error(errno.ENOSPC)
    with caplog.at_level(logging.WARNING, "xengrant.gntshr"):
        assert gntshr.try_share_pages(5, writable=True) is None
    assert "1024 pages" in caplog.text
    share = gntshr.try_share_pages(5, writable=True)
    assert share is not None
    share.close()


def test_threads_share_at_once(system: FakeSystem, gntshr: Gntshr) -> None:
    def share() -> None:
        for _ in range(50):
            gntshr.share_pages(5, writable=True).close()

    threads = [threading.Thread(target=share) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "sharing did not end within 30 seconds"
    assert system.journal.count("munmap") == 200


def test_reprs_show_the_state(gntshr: Gntshr) -> None:
    share = gntshr.share_pages(5, 2, writable=False)
    assert repr(share) == "<Share of 2 pages with domain 5, read-only>"
    share.close()
    assert repr(share) == "<Share of 2 pages with domain 5, closed>"
    assert repr(gntshr) == "<Gntshr open on fake:>"
    gntshr.close()
    assert repr(gntshr) == "<Gntshr closed on fake:>"
