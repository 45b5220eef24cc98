"""Mapping grants: what a mapper may rely on, and how it is told of what it may not map."""

from __future__ import annotations

import errno
import threading

from xengrant import _native
from xengrant.errors import InterfaceClosed, InvalidGrant, MapError
from xengrant.gnttab import Grant, GrantRef
from xengrant.memory import PAGE_SIZE
from xengrant.testing.case import DOM0, THIRD_DOMAIN, Case
from xengrant.testing.expect import equal, raises, true
from xengrant.testing.here import Here

MAP = "Xen common/grant_table.c, map_grant_ref"
GNTDEV = "Linux drivers/xen/gntdev.c"
NO_SUCH_DOMAIN = 30002
BEYOND_ANY_TABLE = 0xFFFFFFF0


class OrderAsked(Case):
    """Pages lie in the map in the order asked, whatever their refs"""

    source = f"{GNTDEV}, gntdev_ioctl_map_grant_ref"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr, gntshr.share_pages(here.other, 4, writable=True) as share:
            share.mapping[:] = b"".join(bytes([page]) * PAGE_SIZE for page in range(4))
            here.offer(share)
            here.hear("read")

    def mapper(self, here: Here) -> None:
        grants = here.offered()
        order = (2, 0, 3, 1)
        with here.domain.gnttab() as gnttab, gnttab.map([grants[page] for page in order], writable=False) as mapped:
            expected = b"".join(bytes([page]) * PAGE_SIZE for page in order)
            equal(mapped.mapping[:], expected, "the pages in the order asked")
        here.tell("read")


class OneGrantTwice(Case):
    """One grant may be mapped twice, also within one map: both show the same page"""

    source = f"{MAP}: up to 127 pins of a kind"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr, gntshr.share_pages(here.other, 1, writable=True) as share:
            here.offer(share)
            here.hear("done")

    def mapper(self, here: Here) -> None:
        grant = here.offered()[0]
        with (
            here.domain.gnttab() as gnttab,
            here.domain.gnttab() as other,
            gnttab.map([grant, grant], writable=True) as both,
            other.map(grant, writable=True) as third,
        ):
            both.mapping[:5] = b"first"
            equal(both.mapping[PAGE_SIZE : PAGE_SIZE + 5], b"first", "the second page of the map")
            equal(third.mapping[:5], b"first", "the map of another interface")
            third.close()
            equal(both.mapping[:5], b"first", "the map after the other one's end")
        here.tell("done")


class SeveralDomains(Case):
    """Grants of several domains lie side by side in one map, and each ref is looked up in its own domain's table"""

    source = f"{GNTDEV}: each grant of a map has its own domid; every domain's ref 0 is its console's"
    peer = "granter"
    requires = (DOM0, THIRD_DOMAIN)

    def granter(self, here: Here) -> None:
        with here.noise_shared(40, writable=True):
            here.hear("read")

    def mapper(self, here: Here) -> None:
        assert here.third is not None
        grants = here.offered()
        console = Grant(here.third, GrantRef.CONSOLE)
        noise = here.noise(40 * PAGE_SIZE)
        with here.domain.gnttab() as gnttab:
            with gnttab.map([grants[0], console, grants[1]], writable=False) as mapped:
                equal(bytes(mapped.mapping.page(0)), noise[:PAGE_SIZE], "the first domain's first page")
                equal(bytes(mapped.mapping.page(2)), noise[PAGE_SIZE : 2 * PAGE_SIZE], "the first domain's second page")
            not_its_own = Grant(here.third, max(grants).ref)
            with raises(MapError, "the first domain's ref under the second one's domid") as caught:
                gnttab.map([grants[0], not_its_own], writable=False)
            true(caught.error.statuses[0] == 0 and caught.error.statuses[1] != 0, "each domain's own status")
        here.tell("read")


class AllOrNothing(Case):
    """Where one grant of many is bad nothing is mapped, and each grant's status is told"""

    source = f"{GNTDEV}, gntdev_map_grant_pages; {MAP}"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr:
            with gntshr.share_pages(here.other, 2, writable=True) as share:
                here.offer(share)
                here.hear("tried")
            with gntshr.share_pages(here.other, 2, writable=True) as again:
                equal(set(again.refs), set(share.refs), "the refs after a failed map of them")

    def mapper(self, here: Here) -> None:
        first, second = here.offered()
        bad = Grant(here.other, BEYOND_ANY_TABLE)
        with here.domain.gnttab() as gnttab:
            with raises(MapError, "a map with a bad grant in the middle", says=str(bad.ref)) as caught:
                gnttab.map([first, bad, second], writable=True)
            equal(caught.error.statuses, (0, -3, 0), "the statuses")
            equal(caught.error.errno, errno.EINVAL, "errno")
            gnttab.map([first, second], writable=True).close()
        here.tell("tried")


class NeverGranted(Case):
    """A ref that was never granted is status -1"""

    source = f"{MAP}: _set_status_v1, the entry is invalid"

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab, raises(MapError, "mapping reserved ref 5", says="not granted") as caught:
            gnttab.map((here.other, 5), writable=False)
        equal(caught.error.statuses, (-1,), "the status")


class NoSuchDomain(Case):
    """A domain that does not exist is status -2"""

    source = f"{MAP}: GNTST_bad_domain"

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab, raises(MapError, "mapping from nowhere", says="no such domain") as caught:
            gnttab.map((NO_SUCH_DOMAIN, 8), writable=True)
        equal(caught.error.statuses, (-2,), "the status")


class BeyondTheTable(Case):
    """A ref beyond the other domain's table is status -3; try_map is None then"""

    source = f"{MAP}: GNTST_bad_gntref"

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab:
            with raises(MapError, "mapping beyond the table", says="beyond") as caught:
                gnttab.map((here.other, BEYOND_ANY_TABLE), writable=False)
            equal(caught.error.statuses, (-3,), "the status")
            equal(gnttab.try_map((here.other, BEYOND_ANY_TABLE), writable=False), None, "try_map")


class ReadOnlyGrant(Case):
    """A grant that is read-only cannot be mapped writable: MapError with status 0, which says so; read-only it can"""

    source = f"{MAP}: -1 from the map, where a copy from the ref still succeeds"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.noise_shared(2, writable=False):
            here.hear("tried")

    def mapper(self, here: Here) -> None:
        grants = here.offered()
        with here.domain.gnttab() as gnttab:
            with raises(MapError, "a writable map of a read-only grant", says="read-only") as caught:
                gnttab.map(grants, writable=True)
            equal(caught.error.statuses, (0, 0), "the statuses")
            with gnttab.map(grants, writable=False) as mapped:
                equal(mapped.mapping[:], here.noise(2 * PAGE_SIZE), "the read-only map")
        here.tell("tried")


class ReadOnlyMap(Case):
    """Storing into a read-only map is a TypeError, also where the grant is writable, and changes nothing"""

    source = "xengrant's own: the store would kill the process"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr, gntshr.share_pages(here.other, 1, writable=True) as share:
            here.offer(share)
            here.hear("tried")
            equal(share.mapping[:], bytes(PAGE_SIZE), "the page")

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab, gnttab.map(here.offered(), writable=False) as mapped:
            mapping = mapped.mapping
            with raises(TypeError, "storing a byte"):
                mapping[0] = 1
            with raises(TypeError, "storing bytes"):
                mapping[:4] = b"oops"
            with raises(TypeError, "an atomic store"):
                _native.store32(mapping, 0, 1)
            with memoryview(mapping) as view:
                true(view.readonly, "a view of it is read-only")
            true(not mapped.writable and not mapping.writable, "the map says that it is read-only")
        here.tell("tried")


class UnmapReleases(Case):
    """Unmapping releases the grant: the owner's close then frees the ref, while before it could not"""

    source = f"{GNTDEV}: PV domains release at munmap, HVM ones after munmap and UNMAP_GRANT_REF"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr:
            held = gntshr.share_pages(here.other, 1, writable=True)
            freed = gntshr.share_pages(here.other, 1, writable=True)
            here.tell("refs", [*held.refs, *freed.refs])
            here.hear("unmapped")
            held.close()
            freed.close()
            with gntshr.share_pages(here.other, 2, writable=True) as new:
                true(freed.refs[0] in new.refs, "the unmapped page's ref is given out again")
                true(held.refs[0] not in new.refs, "the mapped page's ref is not")
            here.tell("looked")

    def mapper(self, here: Here) -> None:
        held, freed = here.offered()
        with here.domain.gnttab() as gnttab, gnttab.map(held, writable=True):
            mapped = gnttab.map(freed, writable=True)
            gnttab.unmap(mapped)
            true(mapped.closed, "the map says that it is closed")
            here.tell("unmapped")
            here.hear("looked")


class UnmapTwice(Case):
    """Unmapping twice is harmless: it does nothing to the map that came after"""

    source = "ocaml-vchan: a second unmap 'may actually unmap someone else's grant reference'"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr, gntshr.share_pages(here.other, 1, writable=True) as share:
            share.mapping[:4] = b"same"
            here.offer(share)
            here.hear("done")

    def mapper(self, here: Here) -> None:
        grants = here.offered()
        with here.domain.gnttab() as gnttab:
            first = gnttab.map(grants, writable=True)
            gnttab.unmap(first)
            with gnttab.map(grants, writable=True) as second:
                gnttab.unmap(first)
                first.close()
                equal(second.mapping[:4], b"same", "the second map")
                with raises(ValueError, "reading an unmapped page"):
                    _ = first.mapping[0]
        here.tell("done")


class UnmapThroughAnother(Case):
    """Unmapping through another interface than the one that mapped is refused, and the map stays"""

    source = "libxengnttab: GET_OFFSET_FOR_VADDR fails on another descriptor (xapi's rrd-transport)"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr, gntshr.share_pages(here.other, 1, writable=True) as share:
            share.mapping[:4] = b"stay"
            here.offer(share)
            here.hear("done")

    def mapper(self, here: Here) -> None:
        with (
            here.domain.gnttab() as gnttab,
            here.domain.gnttab() as another,
            gnttab.map(here.offered(), writable=True) as mapped,
        ):
            with raises(InvalidGrant, "unmapping through another interface", says="another"):
                another.unmap(mapped)
            equal(mapped.mapping[:4], b"stay", "the map after the refusal")
        here.tell("done")


class OutlivesItsInterface(Case):
    """A map lives on when its interface is closed, and its close releases the grant"""

    source = f"{GNTDEV}, gntdev_vma_close: the mapping holds the file"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr:
            share = gntshr.share_pages(here.other, 1, writable=True)
            share.mapping[:5] = b"still"
            here.offer(share)
            here.hear("closed")
            share.close()

            here.comes_back(gntshr, share, "the ref is free again")

    def mapper(self, here: Here) -> None:
        gnttab = here.domain.gnttab()
        mapped = gnttab.map(here.offered(), writable=True)
        gnttab.close()
        gnttab.close()
        equal(mapped.mapping[:5], b"still", "the map of a closed interface")
        with raises(InterfaceClosed, "mapping through a closed interface"):
            gnttab.map((here.other, 8), writable=True)
        with raises(InterfaceClosed, "unmapping through a closed interface"):
            gnttab.unmap(mapped)
        mapped.close()
        here.tell("closed")


class BadArguments(Case):
    """No grants, a domid that no domain can have and a ref beyond 32 bits are refused before the kernel is asked"""

    source = f"{GNTDEV}: a count of 0 is EINVAL, and the domid is cut to 16 bits unchecked"

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab:
            with raises(ValueError, "no grants"):
                gnttab.map([], writable=True)
            for domid in (-1, 0x7FF0, 0x10000 + here.other):
                with raises(InvalidGrant, f"domid {domid}", says=str(domid)):
                    gnttab.map((domid, 8), writable=True)
            for ref in (-1, 2**32):
                with raises(InvalidGrant, f"ref {ref}", says=str(ref)):
                    gnttab.map((here.other, ref), writable=True)


class ViewsPinTheMap(Case):
    """While views of a map are alive its unmapping is a BufferError that counts them, and the map stays"""

    source = "xengrant's own: munmap under a view would crash the process"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr, gntshr.share_pages(here.other, 1, writable=True) as share:
            here.offer(share)
            here.hear("done")
            equal(share.mapping[:4], b"view", "what was stored through the view")

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab:
            mapped = gnttab.map(here.offered(), writable=True)
            views = [memoryview(mapped.mapping) for _ in range(3)]
            with raises(BufferError, "unmapping with three views alive", says="3"):
                gnttab.unmap(mapped)
            true(not mapped.closed, "the map is still open")
            views[0][:4] = b"view"
            for view in views:
                view.release()
            gnttab.unmap(mapped)
            true(mapped.closed, "the map is closed")
        here.tell("done")


class LeavingWithViews(Case):
    """Leaving `with` with an error in flight and a view alive keeps the error, notes the view and unmaps later"""

    source = "xengrant's own: an error is never masked, and the last view's end unmaps"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr:
            share = gntshr.share_pages(here.other, 1, writable=True)
            here.offer(share)
            here.hear("released")
            share.close()
            with gntshr.share_pages(here.other, 1, writable=True) as new:
                equal(new.refs, share.refs, "the ref after the last view's end")

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab:
            mapped = gnttab.map(here.offered(), writable=True)
            with raises(KeyError, "the error in flight") as caught, mapped:
                view = memoryview(mapped.mapping)
                raise KeyError("in flight")
            true(any("1 view" in note for note in caught.error.__notes__), "a note counts the view")
            true(mapped.closed, "the map is closed to new views")
            view[:1] = b"x"
            view.release()
        here.tell("released")


class AtomicWords(Case):
    """Both domains add to one word with compare-and-exchange at once, and no addition is lost"""

    source = "the memory is one page for both: x86 lock cmpxchg, arm64 exclusives"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr, gntshr.share_pages(here.other, 1, writable=True) as share:
            here.offer(share)
            here.hear("mapped")
            here.meet("go")
            _add(share.mapping, 1500)
            here.meet("done")
            equal(_native.load32(share.mapping, 64), 3000, "the sum")

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab, gnttab.map(here.offered(), writable=True) as mapped:
            here.tell("mapped")
            here.meet("go")
            _add(mapped.mapping, 1500)
            here.meet("done")
            equal(_native.load32(mapped.mapping, 64), 3000, "the sum")


class ThreadsMapAtOnce(Case):
    """Threads map and unmap through one interface at once, each its own page"""

    source = f"{GNTDEV}: one list of maps for each descriptor, under a lock"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr, gntshr.share_pages(here.other, 4, writable=True) as share:
            share.mapping[:] = b"".join(bytes([page + 1]) * PAGE_SIZE for page in range(4))
            here.offer(share)
            here.hear("done")

    def mapper(self, here: Here) -> None:
        grants = here.offered()
        found: list[tuple[int, bytes]] = []

        def work(page: int) -> None:
            for _ in range(5):
                with gnttab.map(grants[page], writable=True) as mapped:
                    found.append((page, mapped.mapping[:4]))

        with here.domain.gnttab() as gnttab:
            threads = [threading.Thread(target=work, args=(page,)) for page in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(here.seconds)
        equal(sorted(found), [(page, bytes([page + 1]) * 4) for page in range(4) for _ in range(5)], "what they read")
        here.tell("done")


def _add(mapping: object, times: int) -> None:
    for _ in range(times):
        value = _native.load32(mapping, 64)  # type: ignore[arg-type]
        while (found := _native.compare_exchange32(mapping, 64, value, value + 1)) != value:  # type: ignore[arg-type]
            value = found
