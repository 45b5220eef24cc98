"""Learn that the peer's process has died, even by kill -9: its kernel clears a byte of the page and sends an event.

    XENGRANT_URL='embedded:/tmp/machine?domid=1' python crash.py hold 2 & HOLDER=$!
    XENGRANT_URL='embedded:/tmp/machine?domid=2' python crash.py watch 1 &
    kill -9 $HOLDER                                      # once it says that the peer is alive

A whole domain that is destroyed has no kernel left to do this: for that there is `domain.peer(domid)`.
"""

import signal
import sys

import xengrant

ALIVE = 0  # the byte that the kernel clears
PORT = slice(4, 8)


def hold(domain: xengrant.Domain, peer: int) -> None:
    with domain.gntshr() as gntshr, domain.evtchn() as evtchn, evtchn.bind_unbound(peer) as port:
        farewell = xengrant.UnmapNotify(clear_byte=ALIVE, port=port)
        with gntshr.share_pages(peer, 1, writable=True, notify=farewell) as share:
            share.mapping[ALIVE] = 1
            share.mapping[PORT] = port.number.to_bytes(4, "little")
            domain.advertise(share, "data/crash")
            print("sharing a page: kill me", flush=True)
            signal.pause()


def watch(domain: xengrant.Domain, peer: int) -> None:
    grants = domain.find(peer, "data/crash", timeout=60)
    with domain.gnttab() as gnttab, gnttab.map(grants, writable=True) as mapped, domain.evtchn() as evtchn:
        page = mapped.mapping
        with evtchn.bind_interdomain(peer, int.from_bytes(page[PORT], "little")) as port:
            print("the peer is alive", flush=True)
            while page[ALIVE]:
                port.wait(timeout=60)
            print("the peer has gone")


def main() -> None:
    role, peer = sys.argv[1], int(sys.argv[2])
    with xengrant.connect() as domain:
        {"hold": hold, "watch": watch}[role](domain, peer)


if __name__ == "__main__":
    main()
