"""Meeting through xenstore: a share is advertised on one side and found on the other."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager

from xengrant.errors import ProtocolError
from xengrant.gntshr import Share
from xengrant.memory import PAGE_SIZE
from xengrant.testing.case import GUEST_PEER, Case
from xengrant.testing.expect import equal, raises, true
from xengrant.testing.here import QUIET, SOON, Here
from xengrant.xenstore import Permission

PATH = "data/xengrant/met"
OWN = "xengrant's own: docs of advertise and find"


@contextmanager
def _share(here: Here, count: int = 1) -> Iterator[Share]:
    with here.domain.gntshr() as gntshr, gntshr.share_pages(here.other, count, writable=True) as share:
        yield share


class AdvertiseAndFind(Case):
    """What one domain advertises the other finds: the same refs in page order, which can be mapped"""

    source = OWN
    peer = "granter"

    def granter(self, here: Here) -> None:
        with _share(here, 3) as share, here.domain.advertise(share, PATH):
            share.mapping[:] = here.noise(3 * PAGE_SIZE)
            here.tell("advertised", list(share.refs))
            here.hear("read")

    def mapper(self, here: Here) -> None:
        refs = here.hear("advertised")
        grants = here.domain.find(here.other, PATH, timeout=SOON)
        equal([tuple(grant) for grant in grants], [(here.other, ref) for ref in refs], "the grants found")
        with here.domain.gnttab() as gnttab, gnttab.map(grants, writable=True) as mapped:
            equal(mapped.mapping[:], here.noise(3 * PAGE_SIZE), "the pages")
        here.tell("read")


class FindWaits(Case):
    """find waits for what is advertised late"""

    source = OWN
    peer = "mapper"

    def granter(self, here: Here) -> None:
        here.hear("finding")
        time.sleep(QUIET)
        with _share(here) as share, here.domain.advertise(share, PATH):
            equal(here.hear("found"), list(share.refs), "the refs found")

    def mapper(self, here: Here) -> None:
        with raises(TimeoutError, "finding what is not advertised yet", says=PATH):
            here.domain.find(here.other, PATH, timeout=QUIET)
        here.tell("finding")
        grants = here.domain.find(here.other, PATH, timeout=SOON)
        here.tell("found", [grant.ref for grant in grants])


class ManyRefs(Case):
    """Nine hundred refs in any order are advertised as ranges, in nodes below 2,000 bytes, and found in page order"""

    source = f"{OWN}; xenstored --entry-size"
    peer = "granter"

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr:
            share = gntshr.share_pages(here.other, 900, writable=True)
            if any(ref + 1 == after for ref, after in itertools.pairwise(share.refs)):
                share.close()  # freed in this order, they come back in the other one: no ranges
                share = gntshr.share_pages(here.other, 900, writable=True)
            with share, here.domain.advertise(share, PATH) as advertisement, here.domain.xenstore() as store:
                for page in (0, 450, 899):
                    share.mapping[page * PAGE_SIZE : page * PAGE_SIZE + 2] = page.to_bytes(2, "little")
                names = store.directory(f"{advertisement.path}/refs")
                true(2 <= len(names) < 20, f"{len(names)} nodes hold 900 refs in falling order")
                for name in names:
                    size = len(store.read(f"{advertisement.path}/refs/{name}"))
                    true(size < 2000, f"node {name} of {size} bytes")
                here.tell("advertised")
                here.hear("read")

    def mapper(self, here: Here) -> None:
        here.hear("advertised")
        grants = here.domain.find(here.other, PATH, timeout=SOON)
        equal(len(grants), 900, "the number of grants found")
        with (
            here.domain.gnttab() as gnttab,
            gnttab.map([grants[page] for page in (0, 450, 899)], writable=False) as mapped,
        ):
            for at, page in enumerate((0, 450, 899)):
                equal(bytes(mapped.mapping.page(at)[:2]), page.to_bytes(2, "little"), f"page {page}")
        here.tell("read")


class OnlyThePeerReads(Case):
    """An advertisement is for its share's peer: nobody else may read it, so another domain does not find it"""

    source = OWN
    peer = "mapper"
    requires = (GUEST_PEER,)

    def granter(self, here: Here) -> None:
        with (
            here.domain.gntshr() as gntshr,
            gntshr.share_pages(30001, 1, writable=True) as share,
            here.domain.advertise(share, PATH),
            here.domain.xenstore() as store,
        ):
            expected = [Permission(here.domid, "n"), Permission(30001, "r")]
            for node in ("", "/domid", "/writable", "/refs", "/refs/0"):
                equal(store.get_permissions(f"{PATH}{node}"), expected, f"the permissions of {node or PATH}")
            here.tell("advertised")
            here.hear("tried")

    def mapper(self, here: Here) -> None:
        here.hear("advertised")
        with raises(TimeoutError, "finding what another is shown"):
            here.domain.find(here.other, PATH, timeout=QUIET)
        here.tell("tried")


class RemovedOnClose(Case):
    """Closing an advertisement, or the domain, removes its nodes; a new one at the same path replaces the old"""

    source = OWN
    peer = "granter"

    def granter(self, here: Here) -> None:
        with _share(here) as share, here.connect() as domain, here.domain.xenstore() as store:
            first = domain.advertise(share, PATH)
            store.write(f"{PATH}/refs/1", b"4000")
            here.domain.advertise(share, PATH)
            here.tell("advertised", list(share.refs))
            here.hear("found")
            first.close()
            true(not store.exists(PATH), "the nodes are gone after the advertisement's close")
            domain.advertise(share, PATH)
            domain.close()
            true(not store.exists(PATH), "the nodes are gone after the domain's close")
        here.tell("closed")
        here.hear("tried")

    def mapper(self, here: Here) -> None:
        refs = here.hear("advertised")
        grants = here.domain.find(here.other, PATH, timeout=SOON)
        equal([grant.ref for grant in grants], refs, "the refs of the second advertisement")
        here.tell("found")
        here.hear("closed")
        with raises(TimeoutError, "finding what was removed"):
            here.domain.find(here.other, PATH, timeout=0.1)
        here.tell("tried")


class HostileNodes(Case):
    """Whatever a hostile peer writes is a ProtocolError, told within the deadline, and nothing of it is believed"""

    source = OWN
    peer = "granter"

    lies = (
        {"domid": "0x1", "refs/0": "8"},
        {"domid": "31999", "refs/0": "8"},
        {"domid": "{own}", "refs/0": ""},
        {"domid": "{own}", "refs/0": "8-"},
        {"domid": "{own}", "refs/0": "-8"},
        {"domid": "{own}", "refs/0": "9-8"},
        {"domid": "{own}", "refs/0": "8,,9"},
        {"domid": "{own}", "refs/0": "0-4294967295"},
        {"domid": "{own}", "refs/0": "4294967296"},
        {"domid": "{own}", "refs/0": "9" * 1000},
        {"domid": "{own}", "refs/0": "\x00\xff"},
        {"domid": "{own}", "refs/1": "8"},
        {"domid": "{own}", "refs/x": "8"},
    )

    def granter(self, here: Here) -> None:
        with here.domain.xenstore() as store:
            for number, nodes in enumerate(self.lies):
                path = f"{PATH}-{number}"
                store.mkdir(path)
                store.set_permissions(path, [Permission(here.domid, "n"), Permission(here.other, "r")])
                with store.transaction() as transaction:
                    for name, value in nodes.items():
                        transaction.write(f"{path}/{name}", value.replace("{own}", str(here.domid)))
            here.tell("written")
            here.hear("tried")
            for number in range(len(self.lies)):
                store.rm(f"{PATH}-{number}")

    def mapper(self, here: Here) -> None:
        here.hear("written")
        for number, nodes in enumerate(self.lies):
            with raises(ProtocolError, f"finding {str(nodes)[:60]}"):
                here.domain.find(here.other, f"{PATH}-{number}", timeout=1)
        here.tell("tried")


class Asyncio(Case):
    """For asyncio find does the same: it waits, it has a deadline, it finds"""

    source = OWN
    peer = "granter"

    def granter(self, here: Here) -> None:
        here.hear("finding")
        with _share(here, 2) as share, here.domain.advertise(share, PATH):
            equal(here.hear("found"), list(share.refs), "the refs found")

    def mapper(self, here: Here) -> None:
        asyncio.run(self._find(here))

    async def _find(self, here: Here) -> None:
        with raises(TimeoutError, "finding what is not advertised", says=PATH):
            await here.domain.aio.find(here.other, PATH, timeout=0.1)
        task = asyncio.create_task(here.domain.aio.find(here.other, PATH, timeout=SOON))
        await asyncio.sleep(0.05)
        here.tell("finding")
        here.tell("found", [grant.ref for grant in await task])
