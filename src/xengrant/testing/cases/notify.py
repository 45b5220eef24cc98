"""Unmap notifications: the byte cleared and the event sent when pages are unmapped, however that comes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from xengrant.evtchn import Port
from xengrant.gntshr import UnmapNotify
from xengrant.memory import PAGE_SIZE
from xengrant.testing.case import LINUX, Case
from xengrant.testing.expect import equal, eventually, raises, true
from xengrant.testing.here import QUIET, SOON, Here

GNTALLOC = "Linux drivers/xen/gntalloc.c, gntalloc_ioctl_unmap_notify and __del_gref"
GNTDEV = "Linux drivers/xen/gntdev.c, gntdev_ioctl_notify, unmap_grant_pages and gntdev_put_map"
BYTE = 16


@contextmanager
def _watching(here: Here) -> Iterator[Port]:
    """The watcher's side of the channel: it offers the port, since the other half may die."""
    with here.domain.evtchn() as channels, channels.bind_unbound(here.other) as port:
        here.tell("port", port.number)
        here.hear("bound")
        yield port


@contextmanager
def _notifying(here: Here) -> Iterator[Port]:
    with here.domain.evtchn() as channels, channels.bind_interdomain(here.other, here.hear("port")) as port:
        here.tell("bound")
        yield port


def _expect_end(port: Port, page: memoryview, noise: bytes) -> None:
    """The event comes, the byte is 0 by then, and no other byte has changed."""
    port.wait(SOON)
    equal(page[BYTE], 0, "the byte when the event has come")
    expected = bytearray(noise)
    expected[BYTE] = 0
    equal(bytes(page), bytes(expected), "the page when the event has come")


def _noise(here: Here) -> bytes:
    noise = bytearray(here.noise(PAGE_SIZE))
    noise[BYTE] = 0xEE
    return bytes(noise)


class ShareClosed(Case):
    """Closing a share with a notification clears its byte, then sends its event, and the peer's map shows both"""

    source = GNTALLOC
    peer = "granter"

    def granter(self, here: Here) -> None:
        with _notifying(here) as port, here.domain.gntshr() as gntshr:
            notify = UnmapNotify(clear_byte=BYTE, port=port)
            with gntshr.share_pages(here.other, 1, writable=True, notify=notify) as share:
                share.mapping[:] = _noise(here)
                here.offer(share)
                here.hear("mapped")
            here.hear("done")

    def mapper(self, here: Here) -> None:
        with (
            _watching(here) as port,
            here.domain.gnttab() as gnttab,
            gnttab.map(here.offered(), writable=False) as mapped,
        ):
            equal(mapped.mapping[:], _noise(here), "the page while it is shared")
            here.tell("mapped")
            with mapped.mapping.page(0) as page:
                _expect_end(port, page, _noise(here))
        here.tell("done")


class MapClosed(Case):
    """Unmapping a map with a notification clears its byte, then sends its event, and the share shows both"""

    source = GNTDEV
    peer = "mapper"

    def granter(self, here: Here) -> None:
        with (
            _watching(here) as port,
            here.domain.gntshr() as gntshr,
            gntshr.share_pages(here.other, 1, writable=True) as share,
        ):
            share.mapping[:] = _noise(here)
            here.offer(share)
            here.hear("mapped")
            here.tell("go on")
            with share.mapping.page(0) as page:
                _expect_end(port, page, _noise(here))
        here.tell("done")

    def mapper(self, here: Here) -> None:
        with _notifying(here) as port, here.domain.gnttab() as gnttab:
            notify = UnmapNotify(clear_byte=BYTE, port=port.number)
            with gnttab.map(here.offered(), writable=True, notify=notify):
                here.tell("mapped")
                here.hear("go on")
            here.hear("done")


class GranterKilled(Case):
    """A granter killed with kill -9 clears its byte and sends its event; the rest stays readable for the mapper"""

    source = f"{GNTALLOC}: the kernel closes what the process had"
    requires = (LINUX,)
    peer = "granter"

    def granter(self, here: Here) -> None:
        channels = here.domain.evtchn()
        port = channels.bind_interdomain(here.other, here.hear("port"))
        here.tell("bound")
        notify = UnmapNotify(clear_byte=BYTE, port=port)
        share = here.domain.gntshr().share_pages(here.other, 1, writable=True, notify=notify)
        share.mapping[:] = _noise(here)
        here.offer(share)
        here.hear("mapped")
        here.die()

    def mapper(self, here: Here) -> None:
        with (
            _watching(here) as port,
            here.domain.gnttab() as gnttab,
            gnttab.map(here.offered(), writable=True) as mapped,
            mapped.mapping.page(0) as page,
        ):
            here.tell("mapped")
            port.wait(SOON)
            eventually(lambda: page[BYTE] == 0, "the byte is cleared", SOON)
            expected = bytearray(_noise(here))
            expected[BYTE] = 0
            equal(bytes(page), bytes(expected), "the page when its granter is dead")


class MapperKilled(Case):
    """A mapper killed with kill -9 clears its byte and sends its event, and the granter can share anew"""

    source = f"{GNTDEV}: the kernel closes what the process had"
    requires = (LINUX,)
    peer = "mapper"

    def granter(self, here: Here) -> None:
        with _watching(here) as port, here.domain.gntshr() as gntshr:
            with gntshr.share_pages(here.other, 1, writable=True) as share:
                share.mapping[:] = _noise(here)
                here.offer(share)
                here.hear("mapped")
                here.tell("die")
                with share.mapping.page(0) as page:
                    port.wait(SOON)
                    eventually(lambda: page[BYTE] == 0, "the byte is cleared", SOON)
                    expected = bytearray(_noise(here))
                    expected[BYTE] = 0
                    equal(bytes(page), bytes(expected), "the page when its mapper is dead")

            here.comes_back(gntshr, share, "the ref is free again")

    def mapper(self, here: Here) -> None:
        channels = here.domain.evtchn()
        port = channels.bind_interdomain(here.other, here.hear("port"))
        here.tell("bound")
        notify = UnmapNotify(clear_byte=BYTE, port=port)
        mapped = here.domain.gnttab().map(here.offered(), writable=True, notify=notify)
        equal(mapped.mapping[:], _noise(here), "the page")
        here.tell("mapped")
        here.hear("die")
        here.die()


class NotBeforeTheLastUnmap(Case):
    """Closing the interface does not fire a share's notification; only the end of its pages does"""

    source = f"{GNTALLOC}: after DEALLOC the mapping alone holds the page"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with _notifying(here) as port:
            with here.domain.gntshr() as gntshr:
                notify = UnmapNotify(clear_byte=BYTE, port=port)
                share = gntshr.share_pages(here.other, 1, writable=True, notify=notify)
                share.mapping[:] = _noise(here)
                here.offer(share)
                here.hear("mapped")
            here.tell("interface closed")
            here.hear("looked")
            share.close()
            here.hear("done")

    def mapper(self, here: Here) -> None:
        with (
            _watching(here) as port,
            here.domain.gnttab() as gnttab,
            gnttab.map(here.offered(), writable=False) as mapped,
            mapped.mapping.page(0) as page,
        ):
            here.tell("mapped")
            here.hear("interface closed")
            with raises(TimeoutError, "waiting while the pages live"):
                port.wait(QUIET)
            equal(bytes(page), _noise(here), "the page of a closed interface")
            here.tell("looked")
            _expect_end(port, page, _noise(here))
        here.tell("done")


class AnyPage(Case):
    """The byte may lie in any page of a share"""

    source = f"{GNTALLOC}: one notification for each page"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with _notifying(here) as port, here.domain.gntshr() as gntshr:
            notify = UnmapNotify(clear_byte=2 * PAGE_SIZE + BYTE, port=port)
            with gntshr.share_pages(here.other, 4, writable=False, notify=notify) as share:
                share.mapping[:] = _noise(here) * 4
                here.offer(share)
                here.hear("mapped")
            here.hear("done")

    def mapper(self, here: Here) -> None:
        with (
            _watching(here) as port,
            here.domain.gnttab() as gnttab,
            gnttab.map(here.offered(), writable=False) as mapped,
        ):
            here.tell("mapped")
            with mapped.mapping.page(2) as page:
                _expect_end(port, page, _noise(here))
            for other in (0, 1, 3):
                equal(bytes(mapped.mapping.page(other)), _noise(here), f"page {other}")
        here.tell("done")


class ByteOnly(Case):
    """A notification may be a byte alone, and of a map it lies at any offset"""

    source = GNTDEV
    peer = "mapper"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr, gntshr.share_pages(here.other, 2, writable=True) as share:
            share.mapping[:] = b"\xff" * (2 * PAGE_SIZE)
            here.offer(share)
            here.hear("unmapped")
            eventually(lambda: share.mapping[PAGE_SIZE + 5] == 0, "the byte is cleared", SOON)
            share.mapping[PAGE_SIZE + 5] = 0xFF
            equal(share.mapping[:], b"\xff" * (2 * PAGE_SIZE), "the other bytes")

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab:
            notify = UnmapNotify(clear_byte=PAGE_SIZE + 5)
            with gnttab.map(here.offered(), writable=True, notify=notify) as mapped:
                equal(mapped.mapping[PAGE_SIZE + 5], 0xFF, "the byte while it is mapped")
        here.tell("unmapped")


class EventOnly(Case):
    """A notification may be an event alone, also of a read-only map, and then no byte changes"""

    source = GNTDEV
    peer = "mapper"

    def granter(self, here: Here) -> None:
        with (
            _watching(here) as port,
            here.domain.gntshr() as gntshr,
            gntshr.share_pages(here.other, 1, writable=False) as share,
        ):
            share.mapping[:] = _noise(here)
            here.offer(share)
            port.wait(SOON)
            equal(share.mapping[:], _noise(here), "the page when the event has come")
        here.tell("done")

    def mapper(self, here: Here) -> None:
        with _notifying(here) as port, here.domain.gnttab() as gnttab:
            with gnttab.map(here.offered(), writable=False, notify=UnmapNotify(port=port)):
                pass
            here.hear("done")


class ReadOnlyMapHasNoByte(Case):
    """A read-only map has no byte to clear: the map is refused, explained, and nothing stays mapped"""

    source = f"{GNTDEV}: EINVAL"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr:
            share = gntshr.share_pages(here.other, 1, writable=True)
            here.offer(share)
            here.hear("refused")
            share.close()
            with gntshr.share_pages(here.other, 1, writable=True) as new:
                equal(new.refs, share.refs, "the ref after the refused map")

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab, raises(ValueError, "a byte to clear in a read-only map", says="read-only"):
            gnttab.map(here.offered(), writable=False, notify=UnmapNotify(clear_byte=0))
        here.tell("refused")


class PortMustBeHeld(Case):
    """A notification through a port that this domain does not hold is refused, and nothing stays shared"""

    source = f"{GNTALLOC}: evtchn_get fails, EINVAL"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr:
            with raises(ValueError, "a port that is not held", says="1022"):
                gntshr.share_pages(here.other, 1, writable=True, notify=UnmapNotify(port=1022))
            first = gntshr.share_pages(here.other, 1, writable=True)
            first.close()
            with raises(ValueError, "a port that is not held", says="1022"):
                gntshr.share_pages(here.other, 1, writable=True, notify=UnmapNotify(clear_byte=0, port=1022))
            with gntshr.share_pages(here.other, 1, writable=True) as second:
                equal(second.refs, first.refs, "the ref after a refused share")


class BadArguments(Case):
    """A notification of nothing, and a byte outside of the pages, are refused before the kernel is asked"""

    source = "xengrant's own: the kernel would clear another page's byte"

    def granter(self, here: Here) -> None:
        with raises(ValueError, "neither byte nor port"):
            UnmapNotify()
        with here.domain.gntshr() as gntshr:
            for byte in (-1, 2 * PAGE_SIZE):
                with raises(ValueError, f"byte {byte}", says=str(byte)):
                    gntshr.share_pages(here.other, 2, writable=True, notify=UnmapNotify(clear_byte=byte))
            with gntshr.share_pages(here.other, 2, writable=True, notify=UnmapNotify(clear_byte=8191)) as share:
                share.mapping[8191] = 1
            true(share.closed, "the share is closed")
