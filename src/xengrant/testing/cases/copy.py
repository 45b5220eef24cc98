"""Grant copy: the hypervisor copies, and nobody maps."""

from __future__ import annotations

from xengrant.gnttab import CopySegment, Grant
from xengrant.memory import PAGE_SIZE
from xengrant.testing.case import Case
from xengrant.testing.expect import equal, raises, true
from xengrant.testing.here import Here

COPY = "Xen common/grant_table.c, gnttab_copy"
BAD_PAGE = -9
GNTDEV = "Linux drivers/xen/gntdev.c, gntdev_ioctl_grant_copy"


class FromGrant(Case):
    """Bytes are copied from a grant into local memory, also from a read-only grant"""

    source = COPY
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.noise_shared(2, writable=False):
            here.hear("copied")

    def mapper(self, here: Here) -> None:
        grants = here.offered()
        pages = bytearray(2 * PAGE_SIZE)
        halves = [memoryview(pages)[:PAGE_SIZE], memoryview(pages)[PAGE_SIZE:]]
        with here.domain.gnttab() as gnttab:
            statuses = gnttab.copy(
                [CopySegment(grant, half, PAGE_SIZE) for grant, half in zip(grants, halves, strict=True)]
            )
        equal(statuses, [0, 0], "the statuses")
        equal(bytes(pages), here.noise(2 * PAGE_SIZE), "what was copied")
        here.tell("copied")


class ToGrant(Case):
    """Bytes are copied from local memory into a grant"""

    source = COPY
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr, gntshr.share_pages(here.other, 1, writable=True) as share:
            here.offer(share)
            here.hear("copied")
            equal(share.mapping[:], here.noise(PAGE_SIZE), "what was copied")

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab:
            equal(gnttab.copy([CopySegment(here.noise(PAGE_SIZE), here.offered()[0], PAGE_SIZE)]), [0], "the status")
        here.tell("copied")


class BetweenGrants(Case):
    """Bytes are copied from one grant to another without passing through this domain's memory"""

    source = f"{GNTDEV}: both sides may be grants"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr, gntshr.share_pages(here.other, 2, writable=True) as share:
            share.mapping[:PAGE_SIZE] = here.noise(PAGE_SIZE)
            here.offer(share)
            here.hear("copied")
            equal(bytes(share.mapping.page(1)), here.noise(PAGE_SIZE), "the second page")

    def mapper(self, here: Here) -> None:
        first, second = here.offered()
        with here.domain.gnttab() as gnttab:
            equal(gnttab.copy([CopySegment(first, second, PAGE_SIZE)]), [0], "the status")
        here.tell("copied")


class Offsets(Case):
    """A copy touches the bytes that it names and no others, at any offset on either side"""

    source = COPY
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.noise_shared(1, writable=True) as share:
            here.hear("copied")
            expected = bytearray(here.noise(PAGE_SIZE))
            expected[4091:] = b"12345"
            expected[3:4] = b"x"
            equal(share.mapping[:], bytes(expected), "the page afterwards")

    def mapper(self, here: Here) -> None:
        grant = here.offered()[0]
        into = bytearray(b"." * 40)
        with here.domain.gnttab() as gnttab:
            statuses = gnttab.copy(
                [
                    CopySegment(grant, into, 17, source_offset=1001, dest_offset=9),
                    CopySegment(b"__12345__", grant, 5, source_offset=2, dest_offset=4091),
                    CopySegment(b"x", grant, 1, dest_offset=3),
                    CopySegment(grant, into, 0),
                ]
            )
        equal(statuses, [0, 0, 0, 0], "the statuses")
        expected = b"." * 9 + here.noise(PAGE_SIZE)[1001:1018] + b"." * 14
        equal(bytes(into), expected, "the local memory afterwards")
        here.tell("copied")


class EachHasItsStatus(Case):
    """Each segment has its own status: bad ones are refused beside good ones and leave memory as it is"""

    source = f"{COPY}: one status for each operation"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.noise_shared(1, writable=True):
            here.hear("copied")

    def mapper(self, here: Here) -> None:
        good = here.offered()[0]
        sources = [good, Grant(here.other, 0xFFFFFFF0), Grant(30003, 8), Grant(here.other, 5), good]
        before = b"before\0!"
        into = [bytearray(before) for _ in sources]
        with here.domain.gnttab() as gnttab:
            statuses = gnttab.copy([CopySegment(source, dest, 8) for source, dest in zip(sources, into, strict=True)])
        equal(statuses, [0, -3, -2, -1, 0], "the statuses")
        first = here.noise(PAGE_SIZE)[:8]
        equal([bytes(dest) for dest in into], [first, before, before, before, first], "what was copied")
        here.tell("copied")


class ReadOnlyDestination(Case):
    """A read-only grant is refused as a destination and keeps its bytes"""

    source = f"{COPY}: acquire_grant_for_copy, write through a read-only grant"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.noise_shared(1, writable=False) as share:
            here.hear("tried")
            equal(share.mapping[:], here.noise(PAGE_SIZE), "the page afterwards")

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab:
            statuses = gnttab.copy([CopySegment(b"never", here.offered()[0], 5)])
        equal(statuses, [-1], "the status")
        here.tell("tried")


class ManySegments(Case):
    """A hundred segments are copied in one call, in order"""

    source = f"{GNTDEV}: batches of 16"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.noise_shared(1, writable=True):
            here.hear("copied")

    def mapper(self, here: Here) -> None:
        grant = here.offered()[0]
        into = bytearray(4000)
        segments = [CopySegment(grant, into, 40, source_offset=at, dest_offset=at) for at in range(0, 4000, 40)]
        with here.domain.gnttab() as gnttab:
            equal(gnttab.copy(segments), [0] * 100, "the statuses")
            equal(gnttab.copy([]), [], "the statuses of no segments")
        equal(bytes(into), here.noise(PAGE_SIZE)[:4000], "what was copied")
        here.tell("copied")


class MappedDestination(Case):
    """Nothing is copied into memory that is mapped from another domain, status -9; out of it is no different"""

    source = f"{COPY}: gnttab_copy_claim_buf wants a destination of the caller's own"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.noise_shared(2, writable=True) as share:
            here.hear("copied")
            equal(bytes(share.mapping.page(0)), here.noise(2 * PAGE_SIZE)[:PAGE_SIZE], "the page that was mapped")
            equal(share.mapping[PAGE_SIZE + 8 : PAGE_SIZE + 16], here.noise(2 * PAGE_SIZE)[:8], "the other page")

    def mapper(self, here: Here) -> None:
        mapped_grant, grant = here.offered()
        with here.domain.gnttab() as gnttab, gnttab.map(mapped_grant, writable=True) as mapped:
            into, out = CopySegment(grant, mapped.mapping, 8), CopySegment(mapped.mapping, grant, 8, dest_offset=8)
            equal(gnttab.copy([into, out]), [BAD_PAGE, 0], "the statuses")
            equal(mapped.mapping[:8], here.noise(2 * PAGE_SIZE)[:8], "the memory that was not copied into")
        here.tell("copied")


class BadSegments(Case):
    """A segment that leaves its page, has no grant or stores into read-only memory is refused at once"""

    source = f"{GNTDEV}: EINVAL"

    def mapper(self, here: Here) -> None:
        grant = Grant(here.other, 8)
        page = bytearray(2 * PAGE_SIZE)
        bad = [
            CopySegment(grant, page, PAGE_SIZE, source_offset=1),
            CopySegment(page, grant, 1, dest_offset=PAGE_SIZE),
            CopySegment(grant, page, -1),
            CopySegment(grant, page, 1, source_offset=-1),
            CopySegment(grant, bytearray(4), 5),
            CopySegment(page, bytearray(8), 8),
        ]
        with here.domain.gnttab() as gnttab:
            for segment in bad:
                with raises(ValueError, f"{segment.length} bytes at {segment.source_offset}, {segment.dest_offset}"):
                    gnttab.copy([segment])
            with raises(TypeError, "a read-only destination"):
                gnttab.copy([CopySegment(grant, memoryview(bytes(8)), 8)])
            true(not gnttab.closed, "the interface is still open")
