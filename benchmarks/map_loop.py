"""`python3 -m benchmarks.map_loop DOMID REF...`: a cycle maps the first of those refs, writable, and unmaps them.

Twin of c/map_loop.c.
"""

from __future__ import annotations

import sys

import xengrant
from benchmarks.turns import answer_turns
from xengrant import Grant


def main() -> None:
    domid, *refs = map(int, sys.argv[1:])
    with xengrant.connect("xen:") as domain, domain.gnttab() as gnttab:

        def cycles(pages: int, count: int) -> None:
            grants = [Grant(domid, ref) for ref in refs[:pages]]
            for _ in range(count):
                mapped = gnttab.map(grants, writable=True)
                mapped.close()

        answer_turns(cycles)


if __name__ == "__main__":
    main()
