"""The soak's own sessions: what its processes must not take for a defect of what they use."""

from __future__ import annotations

import threading

import xengrant
from tests.soak import grants
from tests.soak.links import Setting
from xengrant import UnmapNotify, _native
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
