"""Share a page with another domain, say hello in it, and wait for the answer: the granting half of map.py.

    xengrant machine --dir /tmp/machine &
    XENGRANT_URL='embedded:/tmp/machine?domid=1' python share.py 2 &
    XENGRANT_URL='embedded:/tmp/machine?domid=2' python map.py 1

On Xen leave XENGRANT_URL out and run each half in its domain.
"""

import sys

import xengrant

TEXT = slice(0, 64)  # of the granter
PORT = slice(64, 68)
ANSWER = slice(128, 192)  # of the peer


def main() -> None:
    peer = int(sys.argv[1])
    with (
        xengrant.connect() as domain,
        domain.gntshr() as gntshr,
        domain.evtchn() as evtchn,
        gntshr.share_pages(peer, 1, writable=True) as share,
        evtchn.bind_unbound(peer) as port,
    ):
        page = share.mapping
        page[TEXT] = f"hello from domain {domain.domid}".encode().ljust(64, b"\0")
        page[PORT] = port.number.to_bytes(4, "little")
        domain.advertise(share, "data/hello")
        print(f"shared ref {share.refs[0]} with domain {peer}, waiting for its answer", flush=True)
        while not page[ANSWER].rstrip(b"\0"):  # an event may be spurious: look, wait, look again
            port.wait(timeout=60)
        answer = page[ANSWER].rstrip(b"\0")  # one copy, and only the copy is used: the peer may write at any time
        print(f"domain {peer} answers {answer!r}")


if __name__ == "__main__":
    main()
