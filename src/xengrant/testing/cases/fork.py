"""After a fork: the child has nothing of its parent's, and holds nothing of it back."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from xengrant.errors import InterfaceClosed
from xengrant.gntshr import UnmapNotify
from xengrant.memory import PAGE_SIZE
from xengrant.testing.case import LINUX, Case
from xengrant.testing.expect import equal, eventually, raises, true
from xengrant.testing.here import SOON, Here


def _in_child(work: Callable[[], None]) -> str:
    """Run `work` in a forked child; what went wrong there, or nothing."""
    pipe, child_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = "it ended without a word"
        try:
            work()
            text = ""
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        finally:
            os.write(child_end, text.encode())
            os._exit(0)
    os.close(child_end)
    with open(pipe, "rb") as reading:
        text = reading.read().decode()
    _, status = os.waitpid(pid, 0)
    return text or (f"it ended with status {status}" if status else "")


@contextmanager
def _living_child() -> Iterator[int]:
    """A forked child that does nothing, until the end of the block."""
    pid = os.fork()
    if pid == 0:
        try:
            while True:
                signal.pause()
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


class ChildCannotUse(Case):
    """In a forked child every interface, port and mapping of the parent is closed; the parent's work on"""

    source = "xengrant's own: an ioctl of the child would free what the parent uses"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr, gntshr.share_pages(here.other, 1, writable=True) as share:
            here.offer(share)
            here.hear("forked")
            equal(share.mapping[:6], b"parent", "what the mapper stored after its fork")

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab, here.domain.evtchn() as channels, here.domain.xenstore() as store:
            port = channels.bind_unbound(here.other)
            mapped = gnttab.map(here.offered(), writable=True)

            def work() -> None:
                calls: list[Callable[[], object]] = [
                    lambda: gnttab.map((here.other, 8), writable=True),
                    port.notify,
                    lambda: port.wait(0),
                    lambda: store.read("domid"),
                ]
                for number, call in enumerate(calls):
                    with raises(InterfaceClosed, f"call {number} in the child"):
                        call()
                true(mapped.closed, "the map is closed in the child")
                with raises(ValueError, "storing in the child"):
                    mapped.mapping[0] = 1
                mapped.close()

            equal(_in_child(work), "", "what the child has to say")
            mapped.mapping[:6] = b"parent"
            equal(store.read("domid"), str(here.domid).encode(), "xenstore in the parent")
            port.notify()
            port.close()
            mapped.close()
        here.tell("forked")


class ChildHoldsNoGrant(Case):
    """A child that lives on does not keep its parent's share: the parent's close revokes and notifies at once"""

    source = "Linux drivers/xen/gntalloc.c: without MADV_DONTFORK the child's copy of the VMA would hold it"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr, here.domain.evtchn() as channels:
            port = channels.bind_interdomain(here.other, here.hear("port"))
            share = gntshr.share_pages(here.other, 1, writable=True, notify=UnmapNotify(clear_byte=0, port=port))
            share.mapping[0] = 1
            here.offer(share)
            here.hear("mapped")
            with _living_child():
                share.close()
                here.hear("done")

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab, here.domain.evtchn() as channels:
            port = channels.bind_unbound(here.other)
            here.tell("port", port.number)
            with gnttab.map(here.offered(), writable=False) as mapped:
                here.tell("mapped")
                eventually(lambda: mapped.mapping[0] == 0, "the byte is cleared while the child lives", SOON)
            port.wait(SOON)
        here.tell("done")


class ChildHoldsNoMap(Case):
    """A child that lives on does not keep its parent's map: the parent's unmap releases the grant"""

    source = "Linux drivers/xen/gntdev.c: an HVM domain's VMA is copied on fork, and holds the grant"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr:
            share = gntshr.share_pages(here.other, 1, writable=True)
            here.offer(share)
            here.hear("unmapped")
            share.close()

            here.comes_back(gntshr, share, "the ref is free while the mapper's child lives")
            here.tell("done")

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab:
            mapped = gnttab.map(here.offered(), writable=True)
            with _living_child():
                mapped.close()
                gnttab.close()
                here.tell("unmapped")
                here.hear("done")


class ChildConnectsAfresh(Case):
    """A forked child that connects afresh shares and maps like any other process"""

    source = "xengrant's own"
    requires = (LINUX,)
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.noise_shared(1, writable=True) as share:
            here.hear("read")
            equal(share.mapping[:5], b"child", "what the mapper's child stored")

    def mapper(self, here: Here) -> None:
        grants = here.offered()
        with here.domain.gnttab() as gnttab, gnttab.map(grants, writable=True) as mapped:

            def work() -> None:
                with here.connect() as domain, domain.gnttab() as own, own.map(grants, writable=True) as again:
                    equal(again.mapping[:], here.noise(PAGE_SIZE), "the page in the child")
                    again.mapping[:5] = b"child"

            equal(_in_child(work), "", "what the child has to say")
            equal(mapped.mapping[:5], b"child", "the page in the parent")
        here.tell("read")
