"""xengrant.abi.ring against Xen's io/ring.h: where the header's words are, what an empty one is, how many entries."""

from __future__ import annotations

import pytest

from xengrant.abi import ring
from xengrant.rings.rpc import FrontRing

from . import c_program

pytestmark = c_program.need("xen/io/ring.h")

_INCLUDES = (
    "#include <string.h>",
    "#define mb() __sync_synchronize()",
    "#define rmb() __sync_synchronize()",
    "#define wmb() __sync_synchronize()",
    "#include <xen/io/ring.h>",
    *(
        f"struct of{size} {{ unsigned char bytes[{size}]; }}; DEFINE_RING_TYPES(of{size}, struct of{size}, struct of1);"
        for size in (1, 8, 12, 16, 64, 108, 112, 2016, 2017, 4032)
    ),
)
_SIZES = [(4096, size) for size in (1, 8, 12, 16, 64, 108, 112, 2016, 2017, 4032)]
_SIZES += [(pages * 4096, 112) for pages in (2, 3, 4, 16)] + [(64 + 112, 112), (64 + 223, 112), (64 + 224, 112)]


def test_places_are_the_headers() -> None:
    ours = {
        "offsetof(struct of16_sring, req_prod)": ring.REQ_PROD,
        "offsetof(struct of16_sring, req_event)": ring.REQ_EVENT,
        "offsetof(struct of16_sring, rsp_prod)": ring.RSP_PROD,
        "offsetof(struct of16_sring, rsp_event)": ring.RSP_EVENT,
        "offsetof(struct of16_sring, pvt)": ring.PRIVATE,
        "offsetof(struct of16_sring, ring)": ring.HEADER_SIZE,
    }
    assert c_program.numbers(_INCLUDES, ours) == ours


def test_the_number_of_entries_is_the_headers() -> None:
    ours = {f"__CONST_RING_SIZE(of{size}, {length})": ring.ring_entries(length, size) for length, size in _SIZES}
    assert c_program.numbers(_INCLUDES, ours) == ours


@pytest.mark.parametrize(("length", "size"), [(64, 1), (63, 1), (0, 1), (4096, 4033), (64 + 15, 16)])
def test_where_nothing_fits_there_are_no_entries(length: int, size: int) -> None:
    assert ring.ring_entries(length, size) == 0


def test_an_empty_ring_is_what_c_makes_of_it() -> None:
    filling = "memset(&s, 0xff, sizeof s); SHARED_RING_INIT(&s);"
    theirs = c_program.dumps(_INCLUDES, {"ring": ("struct of64_sring", filling)})["ring"]
    memory = bytearray(b"\xff" * len(theirs))
    FrontRing.init(memory, 64)
    assert memory.hex() == theirs.hex()
