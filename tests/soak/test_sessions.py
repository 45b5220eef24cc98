"""The soak's own sessions: what its processes must not take for a defect of what they use."""

from __future__ import annotations

import threading

import pytest

import xengrant
from tests.soak import grants
from tests.soak.links import Setting
from tests.soak.machine import LIFE
from xengrant import Grant, InterfaceUnavailable, Permission, UnmapNotify, _native
from xengrant.embedded import Machine
from xengrant.rings.rpc import FrontRing


def test_a_back_does_not_go_on_for_one_that_was_killed() -> None:
    """Its front may be stopped, and find a live byte set again, as if nothing had been."""
    with (
        Machine() as machine,
        xengrant.connect(machine.url(1)) as one,
        xengrant.connect(machine.url(2)) as two,
        one.evtchn() as channels,
        channels.bind_unbound(2) as port,
        one.gntshr() as gntshr,
        gntshr.share_pages(2, writable=True, notify=UnmapNotify(clear_byte=grants._FRONT_LIVE)) as control,
        gntshr.share_pages(2, writable=True) as pages,
        one.advertise(control, grants.path_to(2)),
    ):
        ring = FrontRing.init(pages.mapping, grants._ENTRY_SIZE)
        ring.next_request(grants._REQUEST.pack(grants._RELEASE, 240, 0, 1, *[pages.refs[0]] * grants._MOST_PAGES))
        ring.push_requests()
        for at, value in ((grants._PORT, port.number), (grants._RING_REF, pages.refs[0]), (grants._FRONT_NUMBER, 7)):
            _native.store32(control.mapping, at, value)
        control.mapping[grants._MAGIC_AT : grants._MAGIC_AT + 8] = grants._MAGIC
        _native.store8(control.mapping, grants._FRONT_LIVE, 1)
        _native.store8(control.mapping, grants._CAME, 1)
        over = threading.Event()
        back = grants.Back(Setting(two, 2, 8, "seed", lambda **told: None, over, over, 1.0), 1)
        with back._store, back._gnttab, back._channels:
            back.meet("/local/domain/1/data")
        assert back.other == 0
        assert not _native.load32(control.mapping, grants._BACK_NUMBER)


@pytest.mark.parametrize("is_destroyed", [True, False])
def test_pages_that_a_process_of_a_destroyed_domain_finds_empty_are_no_defect(is_destroyed: bool) -> None:
    """Nobody maps them any more then; where its domain lives they are one."""
    with (
        Machine() as machine,
        xengrant.connect(machine.url(1)) as one,
        xengrant.connect(machine.url(2)) as two,
        one.xenstore() as store,
        one.gntshr() as gntshr,
        gntshr.share_pages(2, 2, writable=True) as share,
    ):
        for path in (LIFE, f"{LIFE}/life-1"):
            store.mkdir(path)
            store.set_permissions(path, [Permission(1, "r")])
        share.mapping[:] = grants._pattern(7, 1, 2)

        class Holder(grants.Back):
            def meet(self, life: str) -> None:
                with self._gnttab.map([Grant(1, ref) for ref in share.refs], writable=False) as mapped:
                    if is_destroyed:
                        machine.destroy(2)  # its maps end with it
                        share.close()
                    else:
                        share.mapping[:4096] = bytes(4096)
                    grants._check(mapped.mapping[:], 7, 1)

        over = threading.Event()
        back = Holder(Setting(two, 2, 8, "seed", lambda **told: None, over, over, 1.0), 1)
        with back._store, back._gnttab, back._channels:
            error, text = (
                (InterfaceUnavailable, "destroyed") if is_destroyed else (AssertionError, "4096 of 8192 bytes")
            )
            with pytest.raises(error, match=text):
                back.session()
