"""Where a program starts: the domain that it runs in."""

from __future__ import annotations

from xengrant.errors import InterfaceClosed
from xengrant.testing.case import Case
from xengrant.testing.expect import equal, raises, true
from xengrant.testing.here import Here


class KnowsItsDomid(Case):
    """A domain knows its own domid, and it is the one that the other domain reaches it by"""

    source = "Xen docs/misc/xenstore-paths.pandoc, ~/domid"
    peer = "guest"

    def guest(self, here: Here) -> None:
        here.tell("domid", here.domain.domid)
        equal(here.domain.domid, here.hear("expected"), "this domain's domid")

    def runner(self, here: Here) -> None:
        equal(here.hear("domid"), here.other, "what the other domain takes itself for")
        here.tell("expected", here.other)
        equal(here.domain.domid, here.domid, "this domain's domid")
        with here.domain.xenstore() as store:
            equal(store.get_domain_path(here.domid), f"/local/domain/{here.domid}", "this domain's directory")
            equal(int(store.read(f"/local/domain/{here.domid}/domid")), here.domid, "its domid node")


class CloseEndsNothingElse(Case):
    """A closed domain opens nothing more, while what was opened through it works on"""

    source = "xengrant's own"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.connect() as domain:
            gntshr = domain.gntshr()
            share = gntshr.share_pages(here.other, 1, writable=True)
        for call in (domain.gntshr, domain.gnttab, domain.evtchn, domain.xenstore):
            with raises(InterfaceClosed, f"{call.__name__} of a closed domain"):
                call()
        domain.close()
        true(domain.closed, "the domain is closed")
        share.mapping[:5] = b"alive"
        here.offer(share)
        here.hear("read")
        share.close()
        gntshr.close()

    def mapper(self, here: Here) -> None:
        with here.connect() as domain:
            gnttab = domain.gnttab()
        with gnttab, gnttab.map(here.offered(), writable=False) as mapped:
            equal(mapped.mapping[:5], b"alive", "a share of a closed domain")
        here.tell("read")
