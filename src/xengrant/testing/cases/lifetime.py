"""The two lifetimes of a map: a PV domain's ends with munmap, an HVM's (PVH's, Arm's) with UNMAP_GRANT_REF as well."""

from __future__ import annotations

from xengrant.abi import gntdev as abi
from xengrant.abi import unmap_notify
from xengrant.memory import PAGE_SIZE
from xengrant.testing.case import Case
from xengrant.testing.expect import equal, eventually, true
from xengrant.testing.here import SOON, Here

GNTDEV = "Linux drivers/xen/gntdev.c"


class MunmapAlone(Case):
    """munmap alone releases a PV domain's grant; an HVM domain holds it until UNMAP_GRANT_REF as well"""

    source = f"{GNTDEV}: use_ptemod, gntdev_vma_close against gntdev_put_map"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr:
            share = gntshr.share_pages(here.other, 1, writable=True)
            share.mapping[0] = 1
            here.offer(share)
            kind = here.hear("munmapped")
            if kind == "pv":
                eventually(lambda: share.mapping[0] == 0, "munmap alone clears the byte in a PV domain", SOON)
            else:
                equal(share.mapping[0], 1, "the byte after munmap alone in an HVM domain")
            share.close()
            if kind == "pv":  # soon: Linux puts off what something else refers to yet (gnttab_unmap_refs_async)
                here.comes_back(gntshr, share, "the ref is free after munmap alone in a PV domain")
            else:
                with gntshr.share_pages(here.other, 1, writable=True) as new:
                    true(new.refs != share.refs, "the ref is not free after munmap alone in an HVM domain")
            here.tell("looked")
            here.hear("unmapped")

            here.comes_back(gntshr, share, "the ref is free after UNMAP_GRANT_REF")

    def mapper(self, here: Here) -> None:
        device = here.domain.system.open("gntdev")
        arg = abi.pack_map(here.offered())
        device.ioctl(abi.MAP_GRANT_REF, arg)
        index = abi.map_result(arg)
        mapping = device.mmap(PAGE_SIZE, index, writable=True)
        device.ioctl(abi.SET_UNMAP_NOTIFY, unmap_notify.pack_notify(index, unmap_notify.CLEAR_BYTE, 0))
        mapping.close()
        here.tell("munmapped", here.kind)
        here.hear("looked")
        device.ioctl(abi.UNMAP_GRANT_REF, abi.pack_unmap(index, 1))
        here.tell("unmapped")
        device.close()


class UnmapFirst(Case):
    """UNMAP_GRANT_REF before munmap is put off: the memory stays until munmap, which then releases the grant"""

    source = f"{GNTDEV}, gntdev_ioctl_unmap_grant_ref: it only takes the map off the list"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr:
            share = gntshr.share_pages(here.other, 1, writable=True)
            here.offer(share)
            here.hear("stored")
            equal(share.mapping[:5], b"after", "what was stored after UNMAP_GRANT_REF")
            here.tell("seen")
            here.hear("munmapped")
            share.close()

            here.comes_back(gntshr, share, "the ref is free after munmap")

    def mapper(self, here: Here) -> None:
        device = here.domain.system.open("gntdev")
        arg = abi.pack_map(here.offered())
        device.ioctl(abi.MAP_GRANT_REF, arg)
        index = abi.map_result(arg)
        mapping = device.mmap(PAGE_SIZE, index, writable=True)
        device.ioctl(abi.UNMAP_GRANT_REF, abi.pack_unmap(index, 1))
        mapping[:5] = b"after"
        here.tell("stored")
        here.hear("seen")
        mapping.close()
        true(mapping.closed, "the mapping is closed")
        here.tell("munmapped")
        device.close()
