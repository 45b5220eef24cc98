"""`python3 -m benchmarks.share_loop DOMID`: a cycle shares pages with domain DOMID and unmaps them.

Twin of c/share_loop.c.
"""

from __future__ import annotations

import sys

import xengrant
from benchmarks.turns import answer_turns


def main() -> None:
    domid = int(sys.argv[1])
    with xengrant.connect("xen:") as domain, domain.gntshr() as gntshr:

        def cycles(pages: int, count: int) -> None:
            for _ in range(count):
                share = gntshr.share_pages(domid, pages, writable=True)
                share.close()

        answer_turns(cycles)


if __name__ == "__main__":
    main()
