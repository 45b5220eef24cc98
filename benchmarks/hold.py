"""`python3 -m benchmarks.hold DOMID PAGES`: shares pages with domain DOMID, prints their refs and keeps them."""

from __future__ import annotations

import signal
import sys

import xengrant


def main() -> None:
    domid, pages = map(int, sys.argv[1:])
    with (
        xengrant.connect("xen:") as domain,
        domain.gntshr() as gntshr,
        gntshr.share_pages(domid, pages, writable=True) as share,
    ):
        print(*share.refs, flush=True)
        while True:
            signal.pause()


if __name__ == "__main__":
    main()
