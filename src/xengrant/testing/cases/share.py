"""Sharing pages: what a granter may rely on, and what its peer sees."""

from __future__ import annotations

from xengrant.errors import GrantTableFull, InterfaceClosed, MapError
from xengrant.memory import PAGE_SIZE
from xengrant.testing.case import LINUX, Case
from xengrant.testing.expect import equal, eventually, raises, true
from xengrant.testing.here import SOON, Here

ALLOC = "Linux drivers/xen/gntalloc.c, gntalloc_ioctl_alloc"
CLOSE = "Linux drivers/xen/gntalloc.c, gntalloc_vma_close and __del_gref"
REVOKE = "Linux drivers/xen/grant-table.c, gnttab_end_foreign_access"
REFUSED = -1


class OnePage(Case):
    """A page that one domain shares is the page that the other maps: what either stores, the other loads"""

    source = f"{ALLOC}; Xen common/grant_table.c, map_grant_ref"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr, gntshr.share_pages(here.other, 1, writable=True) as share:
            share.mapping[:] = here.noise(PAGE_SIZE, "granter")
            here.offer(share)
            here.hear("stored")
            equal(share.mapping[:], here.noise(PAGE_SIZE, "mapper"), "what the mapper stored")

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab, gnttab.map(here.offered(), writable=True) as mapped:
            equal(mapped.mapping[:], here.noise(PAGE_SIZE, "granter"), "what the granter stored")
            mapped.mapping[:] = here.noise(PAGE_SIZE, "mapper")
            here.tell("stored")


class SixteenPages(Case):
    """Sixteen pages are mapped as one piece, in page order, each with its own content, in both directions"""

    source = f"{ALLOC}; drivers/xen/gntdev.c, gntdev_mmap"
    peer = "mapper"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr, gntshr.share_pages(here.other, 16, writable=True) as share:
            equal(len(share.refs), len(set(share.refs)), "the number of different refs of sixteen pages")
            equal(len(share.refs), 16, "the number of refs")
            equal(len(share.mapping), 16 * PAGE_SIZE, "the length of the share")
            share.mapping[:] = here.noise(16 * PAGE_SIZE, "granter")
            here.offer(share)
            here.hear("stored")
            for page in range(16):
                found = bytes(share.mapping.page(page))
                equal(found, here.noise(PAGE_SIZE, page), f"page {page} as the mapper stored it")

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab, gnttab.map(here.offered(), writable=True) as mapped:
            equal(len(mapped.mapping), 16 * PAGE_SIZE, "the length of the map")
            equal(mapped.mapping[:], here.noise(16 * PAGE_SIZE, "granter"), "what the granter stored")
            for page in range(16):
                mapped.mapping[page * PAGE_SIZE : (page + 1) * PAGE_SIZE] = here.noise(PAGE_SIZE, page)
            here.tell("stored")


class PagesAreZeroed(Case):
    """A page is zeroed before it is shared, though its last owner left it full"""

    source = "Linux drivers/xen/gntalloc.c, add_grefs: alloc_page(GFP_KERNEL|__GFP_ZERO) (XSA-403)"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr:
            for _ in range(4):
                with gntshr.share_pages(here.other, 8, writable=True) as share:
                    equal(share.mapping[:], bytes(8 * PAGE_SIZE), "a fresh share")
                    share.mapping[:] = b"\xa5" * len(share.mapping)
            with gntshr.share_pages(here.other, 8, writable=True) as share:
                here.offer(share)
                here.hear("read")

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab, gnttab.map(here.offered(), writable=False) as mapped:
            equal(mapped.mapping[:], bytes(8 * PAGE_SIZE), "a fresh share as the peer sees it")
            here.tell("read")


class ReadOnlyForThePeerOnly(Case):
    """A share that is read-only for the peer stays writable for its owner, and the peer sees what is stored later"""

    source = f"{ALLOC} (GNTALLOC_FLAG_WRITABLE)"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr, gntshr.share_pages(here.other, 1, writable=False) as share:
            here.offer(share)
            here.hear("mapped")
            share.mapping[:5] = b"later"
            here.meet("stored")
            here.hear("read")

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab, gnttab.map(here.offered(), writable=False) as mapped:
            equal(mapped.mapping[:5], bytes(5), "the page before the store")
            here.tell("mapped")
            here.meet("stored")
            equal(mapped.mapping[:5], b"later", "the page after the store")
            here.tell("read")


class GrantedToAnother(Case):
    """A page granted to one domain cannot be mapped by another: status -1"""

    source = "Xen common/grant_table.c, _set_status_v1: the entry's domid must be the mapper's"
    peer = "granter"

    def granter(self, here: Here) -> None:
        stranger = next(domid for domid in range(30000, 30003) if domid != here.other)
        with here.domain.gntshr() as gntshr, gntshr.share_pages(stranger, 1, writable=True) as share:
            here.offer(share)
            here.hear("tried")

    def mapper(self, here: Here) -> None:
        grants = here.offered()
        with here.domain.gnttab() as gnttab:
            for writable in (False, True):
                with raises(MapError, "mapping what another was granted") as caught:
                    gnttab.map(grants, writable=writable)
                equal(caught.error.statuses, (REFUSED,), "the status")
        here.tell("tried")


class CloseRevokes(Case):
    """A ref whose share was closed cannot be mapped any more: status -1"""

    source = f"{CLOSE}; {REVOKE}"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr:
            share = gntshr.share_pages(here.other, 3, writable=True)
            here.offer(share)
            here.hear("mapped and unmapped")
            share.close()
            true(share.closed and not share.mapping, "a closed share says so")
            here.tell("closed")
            here.hear("tried")

    def mapper(self, here: Here) -> None:
        grants = here.offered()
        with here.domain.gnttab() as gnttab:
            gnttab.map(grants, writable=True).close()
            here.tell("mapped and unmapped")
            here.hear("closed")
            with raises(MapError, "mapping a closed share") as caught:
                gnttab.map(grants, writable=True)
            equal(caught.error.statuses, (REFUSED,) * 3, "the statuses")
        here.tell("tried")


class MapSurvivesRevocation(Case):
    """What is mapped when its share is closed stays mapped and readable, and the owner can share anew meanwhile"""

    source = f"{REVOKE}: deferred while the entry is in use (XSA-396)"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr:
            share = gntshr.share_pages(here.other, 1, writable=True)
            share.mapping[:] = here.noise(PAGE_SIZE, "old")
            here.offer(share)
            here.hear("mapped")
            share.close()
            with gntshr.share_pages(here.other, 1, writable=True) as new:
                true(not set(new.refs) & set(share.refs), "a ref in use is not given out again")
                new.mapping[:] = here.noise(PAGE_SIZE, "new")
                here.offer(new, "new-refs")
                here.hear("read")

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab, gnttab.map(here.offered(), writable=True) as old:
            here.tell("mapped")
            with gnttab.map(here.offered("new-refs"), writable=True) as new:
                equal(old.mapping[:], here.noise(PAGE_SIZE, "old"), "the revoked page, still mapped")
                equal(new.mapping[:], here.noise(PAGE_SIZE, "new"), "the new page")
                old.mapping[:] = bytes(PAGE_SIZE)
                equal(new.mapping[:], here.noise(PAGE_SIZE, "new"), "the new page after a store into the old one")
            here.tell("read")


class DeferredRefComesBack(Case):
    """A ref whose share was closed while the peer mapped it is free again once the peer unmaps"""

    source = f"{REVOKE}; gnttab_handle_deferred, every second"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr:
            with gntshr.share_pages(here.other, 1, writable=True) as share:
                here.offer(share)
                here.hear("mapped")
            here.tell("closed")
            here.hear("unmapped")

            here.comes_back(gntshr, share, f"ref {share.refs[0]} is given out again")

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab, gnttab.map(here.offered(), writable=True) as mapped:
            here.tell("mapped")
            here.hear("closed")
            mapped.close()
            here.tell("unmapped")


class RefsAreReusedAtOnce(Case):
    """The ref that was freed last is given out first, so a stale ref may name a new page"""

    source = "Linux drivers/xen/grant-table.c, get_free_entries and put_free_entry: a LIFO list"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr:
            with gntshr.share_pages(here.other, 1, writable=True) as first:
                pass
            with gntshr.share_pages(here.other, 1, writable=True) as second:
                equal(second.refs, first.refs, "the ref of the next share")
                second.mapping[:3] = b"new"
                here.tell("stale", list(first.refs))
                here.hear("read")

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab, gnttab.map(here.offered("stale"), writable=False) as mapped:
            equal(mapped.mapping[:3], b"new", "what the old ref names now")
        here.tell("read")


class CloseTwice(Case):
    """Closing a share twice does nothing to the share that has its refs now"""

    source = "what munmap of an address twice would do: unmap somebody else's pages"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr:
            first = gntshr.share_pages(here.other, 1, writable=True)
            first.close()
            with gntshr.share_pages(here.other, 1, writable=True) as second:
                equal(second.refs, first.refs, "the ref of the next share")
                first.close()
                gntshr.munmap(first)
                second.mapping[:5] = b"alive"
                here.offer(second)
                here.hear("read")

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab, gnttab.map(here.offered(), writable=False) as mapped:
            equal(mapped.mapping[:5], b"alive", "the second share")
        here.tell("read")


class OutlivesItsInterface(Case):
    """A share lives on when the interface that made it is closed, and its close still revokes"""

    source = "libxengntshr, linux.c: ALLOC, mmap, DEALLOC, so that the mapping alone keeps the grant"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr:
            share = gntshr.share_pages(here.other, 2, writable=True)
        share.mapping[:] = here.noise(2 * PAGE_SIZE)
        here.offer(share)
        here.hear("mapped")
        share.close()
        here.tell("closed")
        here.hear("tried")

    def mapper(self, here: Here) -> None:
        grants = here.offered()
        with here.domain.gnttab() as gnttab:
            with gnttab.map(grants, writable=True) as mapped:
                equal(mapped.mapping[:], here.noise(2 * PAGE_SIZE), "the share of a closed interface")
            here.tell("mapped")
            here.hear("closed")
            with raises(MapError, "mapping after the close") as caught:
                gnttab.map(grants, writable=True)
            equal(caught.error.statuses, (REFUSED, REFUSED), "the statuses")
        here.tell("tried")


class MunmapThroughAnother(Case):
    """Any open interface may munmap any share"""

    source = "libxengntshr: unshare is munmap alone; xapi's rrd-transport relies on it"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as first:
            share = first.share_pages(here.other, 1, writable=True)
        with here.domain.gntshr() as second:
            second.munmap(share)
        true(share.closed, "the share is closed")
        here.offer(share)
        here.hear("tried")

    def mapper(self, here: Here) -> None:
        grants = here.offered()
        with here.domain.gnttab() as gnttab, raises(MapError, "mapping after munmap") as caught:
            gnttab.map(grants, writable=False)
        equal(caught.error.statuses, (REFUSED,), "the status")
        here.tell("tried")


class ClosedInterface(Case):
    """A closed interface shares and munmaps no more; its shares are closed by their own close"""

    source = "xengrant's own: libxengntshr uses freed memory here"

    def granter(self, here: Here) -> None:
        gntshr = here.domain.gntshr()
        share = gntshr.share_pages(here.other, 1, writable=True)
        gntshr.close()
        gntshr.close()
        true(gntshr.closed, "the interface is closed")
        with raises(InterfaceClosed, "sharing through a closed interface"):
            gntshr.share_pages(here.other, 1, writable=True)
        with raises(InterfaceClosed, "munmap through a closed interface"):
            gntshr.munmap(share)
        equal(gntshr.try_share_pages(here.other, 1, writable=True), None, "try_share_pages")
        share.mapping[:4] = b"live"
        share.close()
        true(share.closed, "the share is closed")


class BadArguments(Case):
    """A count below one and a domid that no domain can have are refused before the kernel is asked"""

    source = f"{ALLOC}: a count of 0 succeeds and is useless, the domid is not checked"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr:
            for count in (0, -1, -(2**31), 2**31, 2**64):
                with raises(ValueError, f"count {count}", says=str(count)):
                    gntshr.share_pages(here.other, count, writable=True)
            for domid in (-1, 0x7FF0, 0x7FFF, 0x10000):
                with raises(ValueError, f"domid {domid}", says=str(domid)):
                    gntshr.share_pages(domid, 1, writable=True)
            with raises(ValueError, "try_share_pages with a bad count"):
                gntshr.try_share_pages(here.other, 0, writable=True)


class NoSuchDomain(Case):
    """Pages can be shared with a domain that does not exist yet; their refs come back"""

    source = f"{ALLOC}: the domid is not checked"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr:
            with gntshr.share_pages(30001, 2, writable=True) as share:
                share.mapping[:5] = b"early"
            with gntshr.share_pages(here.other, 2, writable=True) as again:
                equal(set(again.refs), set(share.refs), "the refs of the next share")


class LimitIsNamed(Case):
    """Sharing more pages than gntalloc's limit fails, and the error names the limit and where to raise it"""

    source = f"{ALLOC}: ENOSPC where the count passes /sys/module/xen_gntalloc/parameters/limit"
    requires = (LINUX,)

    def granter(self, here: Here) -> None:
        limit = int(here.domain.system.parameter("xen_gntalloc", "limit") or 0)
        true(limit > 0, "gntalloc has a limit")
        with here.domain.gntshr() as gntshr:
            with raises(GrantTableFull, "one page too many", says=str(limit)) as caught:
                gntshr.share_pages(here.other, limit + 1, writable=True)
            equal(caught.error.limit, "gntalloc", "which limit")
            true("/sys/module/xen_gntalloc/parameters/limit" in str(caught.error), "the remedy is told")
            equal(gntshr.try_share_pages(here.other, limit + 1, writable=True), None, "try_share_pages")
            gntshr.share_pages(here.other, 1, writable=True).close()


class WholeLimit(Case):
    """The whole limit can be shared in one piece, again and again, and one page more cannot"""

    source = f"{CLOSE}: pages are uncounted when they go"
    requires = (LINUX,)
    peer = "mapper"

    def granter(self, here: Here) -> None:
        limit = int(here.domain.system.parameter("xen_gntalloc", "limit") or 0)
        with here.domain.gntshr() as gntshr:
            for _ in range(2):
                with gntshr.share_pages(here.other, limit, writable=True) as share:
                    pass
            with gntshr.share_pages(here.other, limit, writable=True) as share:
                equal(len(set(share.refs)), limit, "the number of different refs")
                with raises(GrantTableFull, "one page beyond the limit", says=str(limit)):
                    gntshr.share_pages(here.other, 1, writable=True)
                for page in (0, limit - 1):
                    share.mapping[page * PAGE_SIZE : page * PAGE_SIZE + 8] = page.to_bytes(8, "little")
                here.tell("refs", [share.refs[0], share.refs[-1]])
                here.tell("pages", [0, limit - 1])
                here.hear("read")

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab, gnttab.map(here.offered(), writable=False) as mapped:
            for at, page in enumerate(here.hear("pages")):
                equal(mapped.mapping.page(at)[:8], page.to_bytes(8, "little"), f"the first bytes of page {page}")
        here.tell("read")


class ProcessEndRevokes(Case):
    """A process that ends without closing its share leaves no grant behind, killed or not"""

    source = f"{CLOSE}: the kernel unmaps what the process had"
    requires = (LINUX,)
    peer = "granter"

    def granter(self, here: Here) -> None:
        share = here.domain.gntshr().share_pages(here.other, 2, writable=True)
        here.offer(share)
        here.hear("mapped")
        here.die()

    def mapper(self, here: Here) -> None:
        grants = here.offered()
        with here.domain.gnttab() as gnttab:
            gnttab.map(grants, writable=True).close()
            here.tell("mapped")

            def is_refused() -> bool:
                try:
                    gnttab.map(grants, writable=True).close()
                except MapError as error:
                    equal(error.statuses, (REFUSED, REFUSED), "the statuses")
                    return True
                return False

            eventually(is_refused, "the dead process's refs cannot be mapped", SOON)


class ViewsPinTheShare(Case):
    """While views of a share are alive its close is a BufferError that counts them, and nothing changes for the peer"""

    source = "xengrant's own: munmap under a view would crash the process"
    peer = "mapper"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr:
            share = gntshr.share_pages(here.other, 1, writable=True)
            first, second = memoryview(share.mapping), memoryview(share.mapping)
            with raises(BufferError, "close with two views alive", says="2"):
                share.close()
            true(not share.closed, "the share is still open")
            second.release()
            with raises(BufferError, "munmap with one view alive", says="1"):
                gntshr.munmap(share)
            first[:6] = b"pinned"
            here.offer(share)
            here.hear("read")
            first.release()
            share.close()

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab, gnttab.map(here.offered(), writable=False) as mapped:
            equal(mapped.mapping[:6], b"pinned", "the share that could not be closed")
        here.tell("read")


class LeavingWithViews(Case):
    """Leaving `with` raises BufferError while a view is alive; with an error in flight it adds a note to that error"""

    source = "xengrant's own: an error is never masked, and the last view's end unmaps"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr:
            share = gntshr.share_pages(here.other, 1, writable=True)
            with raises(KeyError, "the error in flight") as caught, share:
                view = memoryview(share.mapping)
                raise KeyError("in flight")
            true(any("1 view" in note for note in caught.error.__notes__), "a note counts the view")
            view[:4] = b"view"
            here.offer(share)
            here.hear("mapped")
            view.release()
            here.tell("released")
            here.hear("tried")
            again = gntshr.share_pages(here.other, 1, writable=True)
            with raises(BufferError, "leaving without an error"), again:
                view = memoryview(again.mapping)
            view.release()
            again.close()

    def mapper(self, here: Here) -> None:
        grants = here.offered()
        with here.domain.gnttab() as gnttab:
            with gnttab.map(grants, writable=False) as mapped:
                equal(mapped.mapping[:4], b"view", "the page that a view keeps")
            here.tell("mapped")
            here.hear("released")
            with raises(MapError, "mapping after the last view"):
                gnttab.map(grants, writable=False)
        here.tell("tried")
