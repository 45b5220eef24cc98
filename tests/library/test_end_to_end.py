"""The library on an embedded machine, domain 1 granting and domain 2 mapping, down to nothing left in use."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import xengrant
from xengrant import Domain, Grant, UnmapNotify
from xengrant.embedded import Machine

from . import LONG

Eventually = Callable[[Callable[[], bool], Callable[[], str]], None]


def _counts(machine: Machine, domid: int, *names: str) -> tuple[int, ...]:
    domain = machine.status()["domains"][domid]
    return tuple(domain[name] for name in names)


def _in_child(work: object) -> int:
    """Run `work` in a forked child; its exit code, 0 when it returned."""
    assert callable(work)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("count", [1, 3, 64])
def test_pages_are_shared_both_ways(machine: Machine, granter: Domain, mapper: Domain, count: int) -> None:
    with (
        granter.gntshr() as gntshr,
        mapper.gnttab() as gnttab,
        gntshr.share_pages(2, count, writable=True) as share,
        gnttab.map([(1, ref) for ref in share.refs], writable=True) as mapped,
    ):
        last = count * xengrant.PAGE_SIZE - 1
        share.mapping[0], share.mapping[last] = 11, 12
        assert (mapped.mapping[0], mapped.mapping[last]) == (11, 12)
        mapped.mapping[1:6] = b"hello"
        assert share.mapping[1:6] == b"hello"
        assert _counts(machine, 1, "grants", "mapped") == (count, count)
        assert _counts(machine, 2, "maps") == (count,)
    assert machine.leaks() == {}


def test_a_read_only_grant_is_read_only_and_the_error_says_so(granter: Domain, mapper: Domain) -> None:
    with granter.gntshr() as gntshr, mapper.gnttab() as gnttab, gntshr.share_pages(2, writable=False) as share:
        with pytest.raises(xengrant.MapError, match="writable=False") as caught:
            gnttab.map((1, share.refs[0]), writable=True)
        assert caught.value.statuses == (0,)
        with gnttab.map((1, share.refs[0]), writable=False) as mapped:
            share.mapping[:5] = b"hello"
            assert mapped.mapping[:5] == b"hello"


def test_each_reason_of_a_refused_map_is_told(machine: Machine, granter: Domain, mapper: Domain) -> None:
    with granter.gntshr() as gntshr, mapper.gnttab() as gnttab, gntshr.share_pages(2, writable=True) as share:
        ref = share.refs[0]
        with gntshr.share_pages(3, writable=True) as other:
            wanted = [(1, ref), (1, other.refs[0]), (1, 1 << 31), (999, ref)]
            with pytest.raises(xengrant.MapError, match="cannot map 4 grants") as caught:
                gnttab.map(wanted, writable=True)
        assert caught.value.statuses == (0, -1, -3, -2)
        assert _counts(machine, 2, "maps", "mmaps") == (0, 0)


def test_a_closed_share_is_freed_when_the_peer_lets_go(
    machine: Machine, granter: Domain, mapper: Domain, eventually: Eventually
) -> None:
    with granter.gntshr() as gntshr, mapper.gnttab() as gnttab:
        share = gntshr.share_pages(2, writable=True)
        mapped = gnttab.map((1, share.refs[0]), writable=True)
        mapped.mapping[0] = 5
        share.close()
        assert mapped.mapping[0] == 5
        assert _counts(machine, 1, "deferred") == (1,)
        mapped.close()
        eventually(lambda: _counts(machine, 1, "deferred") == (0,), lambda: "the page was not reclaimed")


def test_the_limit_is_named(machine: Machine, granter: Domain) -> None:
    machine.configure(1, gntalloc_limit=4)
    with granter.gntshr() as gntshr:
        with pytest.raises(xengrant.GrantTableFull, match="4 pages for all processes") as caught:
            gntshr.share_pages(2, 5, writable=True)
        assert caught.value.limit == "gntalloc"
        with pytest.raises(xengrant.GrantTableFull):
            gntshr.share_pages(2, (1 << 20), writable=True)
        gntshr.share_pages(2, 4, writable=True).close()


def test_a_full_table_is_told_from_the_limit(machine: Machine) -> None:
    machine.create(7, max_grant_frames=1, gntalloc_limit=100000)
    with xengrant.connect(machine.url(7)) as domain, domain.gntshr() as gntshr:
        with pytest.raises(xengrant.GrantTableFull, match="max_grant_frames") as caught:
            gntshr.share_pages(2, 600, writable=True)
        assert caught.value.limit == "table"
        gntshr.share_pages(2, writable=True).close()


def test_notification_comes_when_the_share_goes(granter: Domain, mapper: Domain) -> None:
    with granter.evtchn() as ours, mapper.evtchn() as theirs:
        port = ours.bind_unbound(2)
        peer_port = theirs.bind_interdomain(1, port.number)
        peer_port.wait(LONG)  # the first is spurious
        with granter.gntshr() as gntshr, mapper.gnttab() as gnttab:
            notify = UnmapNotify(clear_byte=7, port=port)
            share = gntshr.share_pages(2, writable=True, notify=notify)
            with gnttab.map((1, share.refs[0]), writable=True) as mapped:
                share.mapping[7] = share.mapping[8] = 1
                share.close()
                peer_port.wait(LONG)
                assert mapped.mapping[7:9] == b"\0\1"


def test_notification_comes_when_the_map_goes(granter: Domain, mapper: Domain) -> None:
    with granter.evtchn() as ours, mapper.evtchn() as theirs:
        port = ours.bind_unbound(2)
        peer_port = theirs.bind_interdomain(1, port.number)
        with granter.gntshr() as gntshr, mapper.gnttab() as gnttab, gntshr.share_pages(2, writable=True) as share:
            share.mapping[0] = 1
            gnttab.map((1, share.refs[0]), writable=True, notify=UnmapNotify(0, peer_port)).close()
            port.wait(LONG)
            assert share.mapping[0] == 0
            with pytest.raises(ValueError, match="no event channel port 999"):
                gnttab.map((1, share.refs[0]), writable=True, notify=UnmapNotify(port=999))
            with pytest.raises(ValueError, match="no byte to clear"):
                gnttab.map((1, share.refs[0]), writable=False, notify=UnmapNotify(clear_byte=0))


def test_refs_are_handed_over_through_xenstore(granter: Domain, mapper: Domain) -> None:
    with granter.gntshr() as gntshr:
        shares = [gntshr.share_pages(2, writable=True) for _ in range(5)]
        shares[1].close()
        shares[3].close()
        with gntshr.share_pages(2, 7, writable=True) as share:  # refs that do not run on
            advertisement = granter.advertise(share, "data/demo")
            assert mapper.find(1, "data/demo", timeout=LONG) == [Grant(1, ref) for ref in share.refs]
            advertisement.close()
            with pytest.raises(TimeoutError, match="domain 1 advertised nothing"):
                mapper.find(1, "data/demo", timeout=0.05)
        for share in shares:
            share.close()


def test_find_waits_until_it_is_advertised(granter: Domain, mapper: Domain) -> None:
    with ThreadPoolExecutor(1) as pool, granter.gntshr() as gntshr, gntshr.share_pages(2, writable=True) as share:
        finding = pool.submit(mapper.find, 1, "data/demo", LONG)
        with granter.advertise(share, "data/demo"):
            assert finding.result(LONG) == [Grant(1, share.refs[0])]


def test_only_the_peer_may_find(machine: Machine, granter: Domain) -> None:
    machine.create(3)
    with granter.gntshr() as gntshr, gntshr.share_pages(2, writable=True) as share:
        granter.advertise(share, "data/demo")
        with xengrant.connect(machine.url(3)) as stranger, pytest.raises(TimeoutError):
            stranger.find(1, "data/demo", timeout=0.05)


def test_closing_the_domain_takes_its_advertisements_back(machine: Machine, mapper: Domain) -> None:
    with xengrant.connect(machine.url(1)) as domain, domain.gntshr() as gntshr:
        share = gntshr.share_pages(2, writable=True)
        domain.advertise(share, "data/demo")
        assert mapper.find(1, "data/demo", timeout=LONG)
    share.close()
    with pytest.raises(TimeoutError):
        mapper.find(1, "data/demo", timeout=0.05)


def test_a_lie_in_xenstore_is_a_protocol_error(granter: Domain, mapper: Domain) -> None:
    with granter.gntshr() as gntshr, gntshr.share_pages(2, writable=True) as share:
        granter.advertise(share, "data/demo")
        with granter.xenstore() as store:
            for path, lie in (("domid", "2"), ("refs/0", "0-4294967295"), ("refs/0", "eight")):
                before = store.read(f"data/demo/{path}")
                store.write(f"data/demo/{path}", lie)
                with pytest.raises(xengrant.ProtocolError, match="data/demo"):
                    mapper.find(1, "data/demo", timeout=LONG)
                store.write(f"data/demo/{path}", before)
        assert mapper.find(1, "data/demo", timeout=LONG)


def test_dom0_and_a_guest_both_learn_that_a_domain_is_gone(
    machine: Machine, granter: Domain, mapper: Domain, eventually: Eventually
) -> None:
    with granter.gntshr() as gntshr:
        share = gntshr.share_pages(2, writable=True)
        granter.advertise(share, "data/demo")
        mapper.find(1, "data/demo", timeout=LONG)
        with (
            ThreadPoolExecutor(3) as pool,
            xengrant.connect(machine.url(0)) as dom0,
            mapper.evtchn() as channels,
            dom0.peer(1) as dom0s,
            mapper.peer(1) as guests,
            channels.bind_unbound(1) as port,
        ):
            assert not dom0s.gone()
            assert not guests.gone()
            waits = [pool.submit(peer.wait_gone, LONG) for peer in (dom0s, guests)]
            waiting = pool.submit(port.wait, LONG, peer=guests)
            eventually(lambda: len(guests._listeners) > 0, lambda: "the port does not wait")
            machine.destroy(1)
            for wait in waits:
                wait.result(LONG)
            assert isinstance(waiting.exception(LONG), xengrant.PeerClosed)
            assert dom0s.gone()
            assert guests.gone()
        share.close()


def test_a_guest_that_was_shown_nothing_cannot_wait(mapper: Domain) -> None:
    with mapper.peer(1) as peer, pytest.raises(xengrant.InterfaceUnavailable, match=r"only dom0.*path="):
        peer.wait_gone(LONG)


def test_a_domain_closed_while_its_peers_are_watched_ends_their_threads(
    machine: Machine, eventually: Eventually
) -> None:
    with xengrant.connect(machine.url(0)) as dom0, ThreadPoolExecutor(1) as pool:
        peer = dom0.peer(1)
        waiting = pool.submit(peer.wait_gone, LONG)
        eventually(lambda: peer._thread is not None, lambda: "the peer does not watch")
        dom0.close()
        assert isinstance(waiting.exception(LONG), xengrant.InterfaceClosed)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("peer-")]


def test_threads_ping_each_their_own_port(granter: Domain, mapper: Domain) -> None:
    with granter.evtchn() as ours, mapper.evtchn() as theirs, ThreadPoolExecutor(16) as pool:
        pairs = []
        for _ in range(8):
            port = ours.bind_unbound(2)
            pairs.append((port, theirs.bind_interdomain(1, port.number)))

        def ping(port: xengrant.Port) -> None:
            for _ in range(50):
                port.notify()
                port.wait(LONG)

        def pong(port: xengrant.Port) -> None:
            for _ in range(50):
                port.wait(LONG)
                port.notify()

        for _, peer_port in pairs:
            peer_port.wait(LONG)  # the first is spurious
        calls = [pool.submit(work, port) for pair in pairs for work, port in zip((ping, pong), pair, strict=True)]
        for call in calls:
            call.result(4 * LONG)


def test_threads_share_and_map_at_once(machine: Machine, granter: Domain, mapper: Domain) -> None:
    with granter.gntshr() as gntshr, mapper.gnttab() as gnttab, ThreadPoolExecutor(4) as pool:

        def cycle(nonce: int) -> None:
            for i in range(20):
                with gntshr.share_pages(2, 2, writable=True) as share:
                    share.mapping[0:2] = bytes([nonce, i])
                    with gnttab.map([(1, ref) for ref in share.refs], writable=False) as mapped:
                        assert mapped.mapping[0:2] == bytes([nonce, i])

        for call in [pool.submit(cycle, nonce) for nonce in range(4)]:
            call.result(4 * LONG)
    assert machine.status()["domains"][2]["maps"] == 0


def test_bind_errors_say_why(granter: Domain, mapper: Domain) -> None:
    with granter.evtchn() as ours, mapper.evtchn() as theirs:
        port = ours.bind_unbound(3)  # for another
        with pytest.raises(xengrant.GrantError, match="offered to another domain"):
            theirs.bind_interdomain(1, port.number)
        with pytest.raises(xengrant.PeerClosed, match="no domain 999"):
            theirs.bind_interdomain(999, 1)
        port = ours.bind_unbound(2)
        with theirs.bind_interdomain(1, port.number), pytest.raises(xengrant.GrantError, match="bound already"):
            theirs.bind_interdomain(1, port.number)


def test_asyncio_has_the_same_in_one_loop(granter: Domain, mapper: Domain) -> None:
    async def ping_pong() -> None:
        async with granter.aio.evtchn() as ours, mapper.aio.evtchn() as theirs:
            port = ours.bind_unbound(2)
            peer_port = theirs.bind_interdomain(1, port.number)
            await peer_port.wait(LONG)  # the first is spurious

            async def answer() -> None:
                for _ in range(100):
                    await peer_port.wait(LONG)
                    peer_port.notify()

            answering = asyncio.create_task(answer())
            for _ in range(100):
                port.notify()
                await port.wait(LONG)
            await answering
            with pytest.raises(TimeoutError):
                await port.wait(0.01)

    async def meet() -> None:
        with granter.gntshr() as gntshr, gntshr.share_pages(2, writable=True) as share:
            finding = asyncio.create_task(mapper.aio.find(1, "data/demo", LONG))
            await asyncio.sleep(0)
            granter.advertise(share, "data/demo").close()
            with granter.advertise(share, "data/demo"):
                assert await finding == [Grant(1, share.refs[0])]

    async def main() -> None:
        async with asyncio.timeout(4 * LONG):
            await ping_pong()
            await meet()

    asyncio.run(main())


def test_asyncio_learns_that_a_domain_is_gone(machine: Machine, granter: Domain, mapper: Domain) -> None:
    async def main() -> None:
        with granter.gntshr() as gntshr, gntshr.share_pages(2, writable=True) as share:
            granter.advertise(share, "data/demo")
            await mapper.aio.find(1, "data/demo", LONG)
            async with mapper.aio.peer(1) as peer, mapper.aio.evtchn() as channels:
                port = channels.bind_unbound(1)
                waits = [asyncio.create_task(peer.wait_gone(LONG)), asyncio.create_task(port.wait(LONG, peer=peer))]
                assert not await peer.gone()
                machine.destroy(1)
                outcomes = await asyncio.gather(*waits, return_exceptions=True)
                assert [type(outcome) for outcome in outcomes] == [type(None), xengrant.PeerClosed]

    asyncio.run(main())


def test_a_forked_child_has_nothing_and_takes_nothing(machine: Machine, granter: Domain, mapper: Domain) -> None:
    with (
        granter.gntshr() as gntshr,
        granter.evtchn() as channels,
        mapper.gnttab() as gnttab,
        gntshr.share_pages(2, writable=True) as share,
        gnttab.map((1, share.refs[0]), writable=True) as mapped,
        channels.bind_unbound(2) as port,
    ):

        def child() -> None:
            for call in (
                lambda: gntshr.share_pages(2, writable=True),
                lambda: gnttab.map((1, 8), writable=True),
                lambda: channels.bind_unbound(2),
                lambda: port.wait(0),
                port.notify,
            ):
                with pytest.raises(xengrant.InterfaceClosed):
                    call()
            with pytest.raises(ValueError, match="parent process"):
                mapped.mapping[0]
            for thing in (share, mapped, port, gntshr, gnttab, channels):
                thing.close()
            gc.collect()

        assert _in_child(child) == 0
        share.mapping[0] = 9
        assert mapped.mapping[0] == 9
        port.notify()
        assert _counts(machine, 1, "grants", "ports") == (1, 1)


def test_a_child_makes_its_own_devices(machine: Machine, mapper: Domain) -> None:
    def child() -> None:
        with xengrant.connect(machine.url(1)) as domain, domain.gntshr() as gntshr:
            share = gntshr.share_pages(2, writable=True)
            share.mapping[:5] = b"hello"
            domain.advertise(share, "data/demo")
            with domain.xenstore() as store, store.watch("data/done") as watch:
                while not store.exists("data/done"):
                    watch.wait(LONG)
            share.close()

    child_process = os.fork()
    if child_process == 0:
        status = 1
        try:
            child()
            status = 0
        finally:
            os._exit(status)
    with mapper.gnttab() as gnttab, gnttab.map(mapper.find(1, "data/demo", LONG), writable=False) as mapped:
        assert mapped.mapping[:5] == b"hello"
    with xengrant.connect(machine.url(0)) as dom0, dom0.xenstore() as store:
        store.write("/local/domain/1/data/done", "")
        store.set_permissions("/local/domain/1/data/done", [xengrant.Permission(1, "n")])
    assert os.waitstatus_to_exitcode(os.waitpid(child_process, 0)[1]) == 0


def test_a_machine_that_stops_is_told_and_closing_still_works() -> None:
    machine = Machine()
    domain = xengrant.connect(machine.url(1))
    gntshr, gnttab, channels = domain.gntshr(), domain.gnttab(), domain.evtchn()
    share = gntshr.share_pages(2, writable=True)
    port = channels.bind_unbound(2)
    domain.advertise(share, "data/demo")
    machine.close()
    with pytest.raises(xengrant.InterfaceUnavailable) as caught:
        gntshr.share_pages(2, writable=True)
    assert caught.value.errno in (errno.ENODEV, errno.EPIPE)
    share.close()
    port.close()
    for thing in (gntshr, gnttab, channels):
        thing.close()
    domain.close()
    assert domain.closed


def test_grants_are_copied_within_a_page_both_ways(granter: Domain, mapper: Domain) -> None:
    with granter.gntshr() as gntshr, mapper.gnttab() as gnttab, gntshr.share_pages(2, 2, writable=True) as share:
        first, second = (Grant(1, ref) for ref in share.refs)
        share.mapping[4090:4096] = b"border"
        local = bytearray(8)
        statuses = gnttab.copy(
            [
                xengrant.CopySegment(first, local, 6, source_offset=4090, dest_offset=1),
                xengrant.CopySegment(b"hello", second, 5, dest_offset=3),
                xengrant.CopySegment(first, second, 6, source_offset=4090, dest_offset=100),
                xengrant.CopySegment(Grant(1, 4000), local, 1),
                xengrant.CopySegment(first, local, 0),
            ]
        )
        assert statuses[:3] == [0, 0, 0]
        assert statuses[3] < 0
        assert local == b"\0border\0"
        assert share.mapping[4096 + 3 : 4096 + 8] == b"hello"
        assert share.mapping[4096 + 100 : 4096 + 106] == b"border"
