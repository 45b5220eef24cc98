"""xengrant.abi.blkif against Xen's io/blkif.h, natively and with the alignment that i386 gives to 64-bit numbers."""

from __future__ import annotations

import pytest

from xengrant.abi import blkif
from xengrant.abi.blkif import Head, Layout

from . import c_program

pytestmark = c_program.need("xen/io/blkif.h", "xen/io/protocols.h", "xen/io/ring.h", "xen/xen.h")

_BEFORE = (
    "#include <string.h>",
    "#define mb() __sync_synchronize()",
    "#define rmb() __sync_synchronize()",
    "#define wmb() __sync_synchronize()",
    "#include <xen/xen.h>",
    "#include <xen/grant_table.h>",
    "#include <xen/event_channel.h>",
    "#include <xen/io/ring.h>",
)
_NATIVE = (*_BEFORE, "#include <xen/io/blkif.h>")
# i386 aligns a 64-bit number to 4 bytes, and so does this where all the others are aligned as they are anyway.
_I386 = (*_BEFORE, "#pragma pack(push, 4)", "#define __i386__ 1", "#include <xen/io/blkif.h>", "#pragma pack(pop)")
# What arm64 aligns is what x86-64 does.
_HEADERS = {"x86_64-abi": _NATIVE, "arm-abi": _NATIVE, "x86_32-abi": _I386}

_NAMES = {
    "BLKIF_OP_READ": blkif.READ,
    "BLKIF_OP_WRITE": blkif.WRITE,
    "BLKIF_OP_WRITE_BARRIER": blkif.WRITE_BARRIER,
    "BLKIF_OP_FLUSH_DISKCACHE": blkif.FLUSH_DISKCACHE,
    "BLKIF_OP_DISCARD": blkif.DISCARD,
    "BLKIF_OP_INDIRECT": blkif.INDIRECT,
    "BLKIF_RSP_OKAY": blkif.RSP_OKAY,
    "BLKIF_RSP_ERROR": blkif.RSP_ERROR,
    "BLKIF_RSP_EOPNOTSUPP": blkif.RSP_EOPNOTSUPP,
    "BLKIF_DISCARD_SECURE": blkif.DISCARD_SECURE,
    "BLKIF_MAX_SEGMENTS_PER_REQUEST": blkif.MAX_SEGMENTS_PER_REQUEST,
    "BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST": blkif.MAX_INDIRECT_PAGES_PER_REQUEST,
    "VDISK_CDROM": blkif.VDISK_CDROM,
    "VDISK_REMOVABLE": blkif.VDISK_REMOVABLE,
    "VDISK_READONLY": blkif.VDISK_READONLY,
    "sizeof(struct blkif_request_segment)": blkif.SEGMENT_SIZE,
}

_ID, _SECTOR = 0x0123456789ABCDEF, 0x00FEDCBA98765432
_REFS = tuple(0x01020304 * number for number in range(1, 12))
_SPANS = tuple(blkif.span(number % 4, number % 4 + 4) for number in range(11))

_FILL_RW = "".join(
    f"s.seg[{i}].gref = {ref}u; s.seg[{i}].first_sect = {span & 255}; s.seg[{i}].last_sect = {span >> 8};"
    for i, (ref, span) in enumerate(zip(_REFS, _SPANS, strict=True))
)
_FILL_COMMON = f"s.id = {_ID:#x}; s.sector_number = {_SECTOR:#x};"
_SAMPLES = {
    "rw": (
        "struct blkif_request",
        f"s.operation = BLKIF_OP_WRITE; s.nr_segments = 11; s.handle = 0xca10; {_FILL_COMMON}{_FILL_RW}",
    ),
    "discard": (
        "struct blkif_request_discard",
        f"s.operation = BLKIF_OP_DISCARD; s.flag = BLKIF_DISCARD_SECURE; s.handle = 0xca10; {_FILL_COMMON}"
        "s.nr_sectors = 0x123456789a;",
    ),
    "indirect": (
        "struct blkif_request_indirect",
        "s.operation = BLKIF_OP_INDIRECT; s.indirect_op = BLKIF_OP_WRITE; s.nr_segments = 4096; s.handle = 0xca10;"
        f"{_FILL_COMMON}" + "".join(f"s.indirect_grefs[{i}] = {_REFS[i]}u;" for i in range(8)),
    ),
    "response": (
        "struct blkif_response",
        f"s.id = {_ID:#x}; s.operation = BLKIF_OP_INDIRECT; s.status = BLKIF_RSP_EOPNOTSUPP;",
    ),
}


def _ours(layout: Layout) -> dict[str, bytes]:
    return {
        "rw": layout.pack_rw(Head(blkif.WRITE, 11, 0xCA10, _ID, _SECTOR), blkif.pack_segments(_REFS, _SPANS)),
        "discard": layout.pack_discard(Head(blkif.DISCARD, blkif.DISCARD_SECURE, 0xCA10, _ID, _SECTOR), 0x123456789A),
        "indirect": layout.pack_indirect(Head(blkif.INDIRECT, blkif.WRITE, 4096, _ID, _SECTOR), 0xCA10, _REFS[:8]),
        "response": layout.pack_response(_ID, blkif.INDIRECT, blkif.RSP_EOPNOTSUPP),
    }


def test_numbers_are_the_headers() -> None:
    assert c_program.numbers(_NATIVE, _NAMES) == _NAMES


def test_protocols_have_the_headers_names() -> None:
    body = "".join(f'printf("\\"%s\\": 1,\\n", XEN_IO_PROTO_ABI_{name});' for name in ("X86_64", "ARM", "X86_32"))
    assert set(c_program.run(["#include <xen/io/protocols.h>"], body)) == set(blkif.LAYOUTS)


def test_what_is_native_here_is_the_headers() -> None:
    body = 'printf("\\"%s\\": 1,\\n", XEN_IO_PROTO_ABI_NATIVE);'
    assert set(c_program.run(["#include <xen/io/protocols.h>"], body)) == {blkif.NATIVE.protocol}


@pytest.mark.parametrize("layout", blkif.LAYOUTS.values(), ids=blkif.LAYOUTS)
def test_bytes_are_those_that_c_writes(layout: Layout) -> None:
    theirs = c_program.dumps(_HEADERS[layout.protocol], _SAMPLES)
    for name, ours in _ours(layout).items():
        # C pads a struct at its end; beyond the fields there is nothing.
        assert ours.ljust(len(theirs[name]), b"\0").hex() == theirs[name].hex(), name


@pytest.mark.parametrize("layout", blkif.LAYOUTS.values(), ids=blkif.LAYOUTS)
def test_a_slot_is_as_long_as_the_headers(layout: Layout) -> None:
    ours = {"sizeof(union blkif_sring_entry)": layout.entry_size}
    assert c_program.numbers(_HEADERS[layout.protocol], ours) == ours


@pytest.mark.parametrize("layout", blkif.LAYOUTS.values(), ids=blkif.LAYOUTS)
def test_what_was_packed_is_unpacked(layout: Layout) -> None:
    ours = _ours(layout)
    assert layout.unpack_head(ours["rw"]) == (blkif.WRITE, 11, 0xCA10, _ID, _SECTOR)
    assert blkif.segments_reader(11)(ours["rw"], layout.tail)[::2] == _REFS
    assert blkif.segments_reader(11)(ours["rw"], layout.tail)[1::2] == _SPANS
    assert layout.discard_sectors(ours["discard"]) == 0x123456789A
    assert layout.indirect_refs(ours["indirect"]) == _REFS[:8]
    assert layout.unpack_response(ours["response"]) == (_ID, blkif.INDIRECT, blkif.RSP_EOPNOTSUPP)


@pytest.mark.parametrize(("count", "pages"), [(1, 1), (512, 1), (513, 2), (4096, 8)])
def test_indirect_pages(count: int, pages: int) -> None:
    assert blkif.indirect_pages(count) == pages
