"""One end of what `xengrant.data` does between two domains: arrays, tables and objects. `jobs/data.py` runs both.

    python3 data_peer.py granter|mapper DOMID

Each end checks what it sees and prints a line for each thing; exit status 1 where something is not as it should be.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy
import pyarrow

import xengrant
from xengrant import data, vchan

SOON = 120.0
PICTURE = numpy.arange(300 * 400, dtype=">f4").reshape(300, 400)
NUMBERS = pyarrow.table({"frame": pyarrow.array(range(50_000)), "level": pyarrow.array([0.5] * 50_000)})
STRINGS = pyarrow.table({"name": ["one", None, "three"], "lists": [[1], [], [2, 3]]})
OBJECT = {"step": 7, "weights": numpy.ones((300, 300)), "labels": ["a", "b"]}


def grant(domain: xengrant.Domain, peer: int) -> None:
    with (
        data.share_array(domain, peer, PICTURE, "data/picture", writable=True) as picture,
        data.share_array(domain, peer, PICTURE, "data/fixed", writable=False),
        data.share_table(domain, peer, NUMBERS, "data/numbers"),
        data.share_table(domain, peer, STRINGS, "data/strings"),
        vchan.serve(peer, "objects", domain=domain) as ours,
    ):
        ours.wait_connected(SOON)
        data.send_object(ours, OBJECT, SOON)
        doubled = data.recv_object(ours, SOON)
        check(bool((doubled["weights"] == 2).all()), "the object comes back, its array doubled")
        check(float(picture.array[7, 7]) == -1.0, "the peer has written into the array")


def map_all(domain: xengrant.Domain, peer: int) -> None:
    deadline = time.monotonic() + SOON
    with data.map_array(domain, peer, "data/picture", writable=True, timeout=SOON) as picture:
        check(picture.array.dtype == PICTURE.dtype, "the array's elements are the peer's in kind")
        check(bool((picture.array == PICTURE).all()), "and in value")
        picture.array[7, 7] = -1
    with data.map_array(domain, peer, "data/fixed", writable=False, timeout=SOON) as fixed:
        check(not fixed.array.flags.writeable, "a read-only array is one")
    try:
        data.map_array(domain, peer, "data/fixed", writable=True, timeout=SOON)
    except xengrant.MapError as error:
        check(True, f"it cannot be mapped writable: {error}")
    else:
        check(False, "it could be mapped writable")
    for path, table, copied in (("data/numbers", NUMBERS, False), ("data/strings", STRINGS, True)):
        with data.map_table(domain, peer, path, timeout=SOON) as found:
            check(found.table.equals(table) and found.copied is copied, f"the table at {path} is the peer's")
    with vchan.connect(peer, "objects", domain=domain, timeout=deadline - time.monotonic()) as ours:
        found_object: dict[str, Any] = data.recv_object(ours, SOON)
        check(found_object["labels"] == ["a", "b"] and found_object["step"] == 7, "the object is the peer's")
        data.send_object(ours, {"weights": found_object["weights"] * 2}, SOON)


def check(holds: bool, what: str) -> None:
    print("yes" if holds else "NO", what, flush=True)
    if not holds:
        sys.exit(1)


if __name__ == "__main__":
    with xengrant.connect() as here:
        {"granter": grant, "mapper": map_all}[sys.argv[1]](here, int(sys.argv[2]))
