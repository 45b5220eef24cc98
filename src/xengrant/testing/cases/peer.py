"""The other domain's end: how it is found out, and what it leaves behind."""

from __future__ import annotations

import asyncio
import threading

from xengrant.errors import InterfaceUnavailable, MapError, PeerClosed
from xengrant.gntshr import UnmapNotify
from xengrant.memory import PAGE_SIZE
from xengrant.testing.case import DESTROYABLE_PEER, DOM0, GUEST_PEER, Case
from xengrant.testing.expect import equal, raises, true
from xengrant.testing.here import QUIET, SOON, Here
from xengrant.xenstore import Permission

PATH = "data/xengrant/alive"
DESTROY = "xl destroy: Xen common/domain.c, domain_kill; no process of the domain gets to run"


class StillThere(Case):
    """A domain that lives is not gone: wait_gone ends at its deadline and names it"""

    source = "Xen docs/misc/xenstore.txt, @releaseDomain"
    requires = (DOM0,)

    def watcher(self, here: Here) -> None:
        with here.domain.peer(here.other) as peer:
            equal(peer.gone(), False, "gone")
            with raises(TimeoutError, "waiting for a living domain's end", says=str(here.other)):
                peer.wait_gone(QUIET)
        with here.domain.peer(30000) as nobody:
            equal(nobody.gone(), True, "gone, of a domain that never was")
            nobody.wait_gone(SOON)


class GuestNeedsNode(Case):
    """A guest, which nobody tells of domains' ends, is asked for a node that the peer shows it"""

    source = "Xen tools/xenstored (XSA-115)"
    peer = "guest"
    requires = (GUEST_PEER,)

    def guest(self, here: Here) -> None:
        with here.domain.peer(here.other) as peer, raises(InterfaceUnavailable, "waiting without a node", says="path"):
            peer.wait_gone(SOON)


class NodeStandsForThePeer(Case):
    """To a guest a peer is gone when the node that it showed goes; wait_gone, Port.wait and asyncio tell it"""

    source = "xengrant's own; Xen tools/xenstored (XSA-115)"
    peer = "guest"
    requires = (GUEST_PEER,)

    def guest(self, here: Here) -> None:
        here.hear("shown")
        with (
            here.domain.evtchn() as channels,
            channels.bind_unbound(here.other) as port,
            here.domain.peer(here.other, PATH) as peer,
        ):
            equal(peer.gone(), False, "gone, while the node is there")
            with raises(TimeoutError, "waiting while the node is there"):
                peer.wait_gone(QUIET)
            here.tell("waiting")
            with raises(PeerClosed, "waiting for an event of a peer that goes", says=str(here.other)):
                port.wait(SOON, peer=peer)
            peer.wait_gone(SOON)
            equal(peer.gone(), True, "gone")
        asyncio.run(self._again(here))

    async def _again(self, here: Here) -> None:
        async with here.domain.aio.peer(here.other, PATH) as peer:
            await peer.wait_gone(SOON)
            equal(await peer.gone(), True, "gone, for asyncio")

    def watched(self, here: Here) -> None:
        with here.domain.xenstore() as store:
            store.write(PATH, b"1")
            store.set_permissions(PATH, [Permission(here.domid, "n"), Permission(here.other, "r")])
            here.tell("shown")
            here.hear("waiting")
            store.rm(PATH)


class GranterDestroyed(Case):
    """When the granter's domain is destroyed no byte is cleared, no event comes and the map stays readable; wait_gone
    and Port.wait tell of it"""

    source = DESTROY
    peer = "granter"
    requires = (DOM0, DESTROYABLE_PEER)
    seconds = 60

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr, here.domain.evtchn() as channels:
            port = channels.bind_interdomain(here.other, here.hear("port"))
            notify = UnmapNotify(clear_byte=0, port=port)
            with gntshr.share_pages(here.other, 2, writable=True, notify=notify) as share:
                share.mapping[:PAGE_SIZE] = b"\x01" + here.noise(PAGE_SIZE - 1)
                here.offer(share)
                here.hear("never")

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab, here.domain.evtchn() as channels, here.domain.peer(here.other) as peer:
            port = channels.bind_unbound(here.other)
            here.tell("port", port.number)
            grant, not_mapped = here.offered()
            with gnttab.map(grant, writable=True) as mapped:
                with raises(TimeoutError, "waiting while the peer lives"):
                    port.wait(QUIET, peer=peer)
                ended: list[str] = []
                waiting = threading.Thread(target=self._wait, args=(port, peer, ended))
                waiting.start()
                here.destroy_other()
                peer.wait_gone(SOON)
                waiting.join(SOON)
                equal(ended, ["PeerClosed"], "the end of Port.wait in another thread")
                equal(peer.gone(), True, "gone")
                with raises(TimeoutError, "an event of a destroyed domain"):
                    port.wait(QUIET)
                equal(mapped.mapping[:], b"\x01" + here.noise(PAGE_SIZE - 1), "the page of a destroyed domain")
                mapped.mapping[:4] = b"mine"
                port.notify()
                with here.domain.xenstore() as store:
                    equal(store.is_domain_introduced(here.other), False, "is_domain_introduced")
                    true(not store.exists(f"/local/domain/{here.other}"), "its xenstore nodes are gone")
                with raises(MapError, "mapping another page of a destroyed domain") as caught:
                    gnttab.map(not_mapped, writable=True)
                true(caught.error.statuses[0] != 0, f"the status {caught.error.statuses}")
            asyncio.run(self._again(here))

    def _wait(self, port: object, peer: object, ended: list[str]) -> None:
        try:
            port.wait(SOON, peer=peer)  # type: ignore[attr-defined]
        except Exception as error:
            ended.append(type(error).__name__)

    async def _again(self, here: Here) -> None:
        async with here.domain.aio.peer(here.other) as peer:
            await peer.wait_gone(SOON)


class MapperDestroyed(Case):
    """When the mapper's domain is destroyed its notification does not come, and the granter's ref is free again"""

    source = f"{DESTROY}; common/grant_table.c, gnttab_release_mappings"
    peer = "mapper"
    requires = (DOM0, DESTROYABLE_PEER)
    seconds = 60

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr, here.domain.evtchn() as channels, here.domain.peer(here.other) as peer:
            port = channels.bind_unbound(here.other)
            here.tell("port", port.number)
            share = gntshr.share_pages(here.other, 1, writable=True)
            share.mapping[0] = 1
            here.offer(share)
            here.hear("mapped")
            here.destroy_other()
            peer.wait_gone(SOON)
            with raises(PeerClosed, "waiting for a destroyed domain"):
                while True:
                    port.wait(SOON, peer=peer)
            equal(share.mapping[0], 1, "the byte that the mapper's kernel would have cleared")
            share.close()

            here.comes_back(gntshr, share, "the ref is free again")

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab, here.domain.evtchn() as channels:
            port = channels.bind_interdomain(here.other, here.hear("port"))
            notify = UnmapNotify(clear_byte=0, port=port)
            with gnttab.map(here.offered(), writable=True, notify=notify):
                here.tell("mapped")
                here.hear("never")
