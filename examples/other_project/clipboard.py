"""A clipboard between domains: one offers a text, another takes it. The software of a project that uses xengrant.

    python3 clipboard.py offer 2 hello        in domain 1: offers until Ctrl-C
    python3 clipboard.py take 1               in domain 2: prints hello
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import xengrant

PATH = "data/clipboard"
MOST = 1 << 20


@contextmanager
def offer(domain: xengrant.Domain, peer: int, text: str) -> Iterator[None]:
    """Let domain `peer` read `text` for as long as the block runs."""
    content = text.encode()
    if len(content) > MOST:
        raise ValueError(f"{len(content)} bytes: the clipboard takes {MOST}")
    pages = -(-len(content) // xengrant.PAGE_SIZE) or 1
    with domain.gntshr() as gntshr, gntshr.share_pages(peer, pages, writable=False) as share:
        share.mapping[: len(content)] = content
        with domain.advertise(share, PATH, header=str(len(content))):
            yield


def take(domain: xengrant.Domain, owner: int, timeout: float = 10) -> str:
    """The text that domain `owner` offers, once it does. The owner is not trusted with its own idea of the length."""
    found = domain.find_advertised(owner, PATH, timeout)
    with domain.gnttab() as gnttab, gnttab.map(found.grants, writable=False) as mapped:
        length = int(found.header)
        if not 0 <= length <= len(mapped.mapping):
            raise xengrant.ProtocolError(f"a text of {length} bytes in {len(mapped.mapping)} bytes of pages")
        return bytes(mapped.mapping[:length]).decode()


if __name__ == "__main__":
    with xengrant.connect() as here:
        if sys.argv[1] == "offer":
            with offer(here, int(sys.argv[2]), sys.argv[3]), suppress(KeyboardInterrupt):
                signal.pause()
        else:
            print(take(here, int(sys.argv[2])))
