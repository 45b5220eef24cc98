"""A program that is its domain's kernel, to be killed: `python -m tests.embedded.kernel_process URL PEER PORT`."""

from __future__ import annotations

import json
import sys

import xengrant
from xengrant import UnmapNotify


def main() -> None:
    url, peer, port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    domain = xengrant.connect(url)
    domain.xenstore().write("data/here", "1")
    local = domain.evtchn().bind_interdomain(peer, port)
    notify = UnmapNotify(clear_byte=0, port=local)
    share = domain.gntshr().share_pages(peer, writable=True, notify=notify)
    share.mapping[:5] = b"alive"
    table, (page,) = domain.grant_table(), domain.alloc_pages(1)
    page.mapping[:4] = b"page"
    ref = table.get_nowait()
    assert ref is not None
    table.grant_access(ref, peer, page, writable=False)
    print(json.dumps([*share.refs, ref]), flush=True)
    sys.stdin.read()  # until it is killed


if __name__ == "__main__":
    main()
