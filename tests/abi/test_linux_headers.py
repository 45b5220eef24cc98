"""xengrant.abi against Linux' own headers, /usr/include/xen: numbers, sizes, places, and samples byte by byte."""

from __future__ import annotations

from types import ModuleType

import pytest

from xengrant.abi import evtchn, gntalloc, gntdev, privcmd, unmap_notify

from . import c_program

pytestmark = c_program.need("xen/gntalloc.h", "xen/gntdev.h", "xen/evtchn.h", "xen/privcmd.h")

# The headers use the kernel's own types, which user space has to bring.
_TYPES = """
#include <sys/ioctl.h>
#include <linux/types.h>
typedef uint16_t domid_t;
typedef uint32_t grant_ref_t;
typedef uint64_t xen_pfn_t;
"""

_MODULES: dict[str, ModuleType] = {"GNTALLOC": gntalloc, "GNTDEV": gntdev, "EVTCHN": evtchn, "PRIVCMD": privcmd}

_SIZES = {
    "struct ioctl_gntalloc_alloc_gref": len(gntalloc.pack_alloc(1, 0, 1)),
    "struct ioctl_gntalloc_dealloc_gref": len(gntalloc.pack_dealloc(0, 1)),
    "struct ioctl_gntalloc_unmap_notify": len(unmap_notify.pack_notify(0, 0, 0)),
    "struct ioctl_gntdev_map_grant_ref": len(gntdev.pack_map([(0, 8)])),
    "struct ioctl_gntdev_unmap_grant_ref": len(gntdev.pack_unmap(0, 1)),
    "struct ioctl_gntdev_get_offset_for_vaddr": len(gntdev.pack_offset(0)),
    "struct ioctl_gntdev_unmap_notify": len(unmap_notify.pack_notify(0, 0, 0)),
    "struct ioctl_gntdev_grant_copy": len(gntdev.pack_copy(1)),
    "struct gntdev_grant_copy_segment": gntdev.SEGMENT_SIZE,
    "struct ioctl_evtchn_bind_virq": len(evtchn.pack_word(0)),
    "struct ioctl_evtchn_bind_interdomain": len(evtchn.pack_interdomain(0, 0)),
    "struct ioctl_evtchn_bind_unbound_port": len(evtchn.pack_word(0)),
    "struct ioctl_evtchn_unbind": len(evtchn.pack_word(0)),
    "struct ioctl_evtchn_notify": len(evtchn.pack_word(0)),
    "struct privcmd_hypercall": len(privcmd.pack_hypercall(0)),
    "struct privcmd_mmap_resource": len(privcmd.pack_resource(0, 0, 0, 0, 0)),
}

_PLACES = {
    "struct ioctl_gntdev_grant_copy, segments": gntdev.COPY_SEGMENTS_POINTER,
    "struct gntdev_grant_copy_segment, source": gntdev.SEGMENT_SOURCE,
    "struct gntdev_grant_copy_segment, dest": gntdev.SEGMENT_DEST,
    "struct privcmd_hypercall, arg[0]": privcmd.hypercall_argument(0),
    "struct privcmd_hypercall, arg[4]": privcmd.hypercall_argument(4),
    "struct privcmd_mmap_resource, addr": privcmd.RESOURCE_ADDR_POINTER,
}

_FLAGS = {
    "GNTALLOC_FLAG_WRITABLE": gntalloc.FLAG_WRITABLE,
    "UNMAP_NOTIFY_CLEAR_BYTE": unmap_notify.CLEAR_BYTE,
    "UNMAP_NOTIFY_SEND_EVENT": unmap_notify.SEND_EVENT,
}


def _include(device: str) -> tuple[str, str]:
    return _TYPES, f"#include <xen/{device.lower()}.h>"


# gntalloc.h and gntdev.h both define the unmap notification's flags.
_ALL = (_TYPES, *(f"#include <xen/{name}.h>" for name in ("gntalloc", "gntdev", "evtchn", "privcmd")))


def _ioctls(device: str) -> dict[str, int]:
    """By the header's name; what has an ioctl's letter and number is one."""
    return {
        f"IOCTL_{device}_{name}": value
        for name, value in vars(_MODULES[device]).items()
        if name.isupper() and isinstance(value, int) and value >> 8 & 0xFF in b"GEP"
    }


@pytest.mark.parametrize("device", _MODULES)
def test_ioctl_numbers_are_the_headers(device: str) -> None:
    ours = _ioctls(device)
    assert len(ours) >= 2
    theirs = c_program.numbers(_include(device), ours)
    newer = {"IOCTL_EVTCHN_BIND_STATIC"}  # of Linux 6.7; the header may be older
    assert theirs.keys() | newer >= ours.keys()
    assert theirs == {name: ours[name] for name in theirs}


def test_bind_static_continues_the_headers_numbers() -> None:
    assert evtchn.BIND_STATIC == evtchn.NOTIFY + 3
    assert evtchn.RESTRICT_DOMID & 0xFF == (evtchn.BIND_STATIC & 0xFF) - 1


def test_sizes_are_the_headers() -> None:
    theirs = c_program.numbers(_ALL, [f"sizeof({name})" for name in _SIZES])
    assert theirs == {f"sizeof({name})": size for name, size in _SIZES.items()}


def test_places_are_the_headers() -> None:
    theirs = c_program.numbers(_ALL, [f"offsetof({name})" for name in _PLACES])
    assert theirs == {f"offsetof({name})": place for name, place in _PLACES.items()}


def test_flags_are_the_headers() -> None:
    assert c_program.numbers(_ALL, _FLAGS) == _FLAGS


def test_an_argument_is_as_long_as_its_ioctl_says() -> None:
    for device in _MODULES:
        for name, number in _ioctls(device).items():
            size = number >> 16 & 0x3FFF
            assert size == 0 or size in {*_SIZES.values(), 2}, name


# Room for three refs: the structures end in an array of one.
_ALLOC = "union { struct ioctl_gntalloc_alloc_gref as; char room[16 + 3 * 4]; }"
_MAP = "union { struct ioctl_gntdev_map_grant_ref as; char room[16 + 3 * 8]; }"
_REFS = "uint32_t *refs = (uint32_t *)(s.room + 16);"
_GRANTS = "struct ioctl_gntdev_grant_ref *refs = (struct ioctl_gntdev_grant_ref *)(s.room + 16);"
_DOMID, _COUNT, _INDEX, _PORT = 0x1234, 0x89ABCDEF, 0x123456789ABCD000, 0xFEDCBA98

_SAMPLES = {
    "alloc": (_ALLOC, "s.as.domid = 0x1234; s.as.flags = GNTALLOC_FLAG_WRITABLE; s.as.count = 3;"),
    "alloc answered": (
        _ALLOC,
        f"{_REFS} s.as.domid = 0x1234; s.as.flags = 1; s.as.count = 3; s.as.index = 0x123456789abcd000;"
        "refs[0] = 8; refs[1] = 0xffffffff; refs[2] = 0x01020304;",
    ),
    "dealloc": ("struct ioctl_gntalloc_dealloc_gref", "s.index = 0x123456789abcd000; s.count = 0x89abcdef;"),
    "share notify": (
        "struct ioctl_gntalloc_unmap_notify",
        "s.index = 0x123456789abcd001; s.action = UNMAP_NOTIFY_CLEAR_BYTE; s.event_channel_port = 0xfedcba98;",
    ),
    "map notify": (
        "struct ioctl_gntdev_unmap_notify",
        "s.index = 0x123456789abcd001; s.action = UNMAP_NOTIFY_SEND_EVENT; s.event_channel_port = 0xfedcba98;",
    ),
    "map": (
        _MAP,
        f"{_GRANTS} s.as.count = 3; refs[0].domid = 0x1234; refs[0].ref = 8; refs[1].domid = 1;"
        "refs[1].ref = 0xffffffff; refs[2].domid = 2; refs[2].ref = 0x01020304;",
    ),
    "map answered": (
        _MAP,
        f"{_GRANTS} s.as.count = 3; s.as.index = 0x123456789abcd000; refs[0].domid = 0x1234; refs[0].ref = 8;"
        "refs[1].domid = 1; refs[1].ref = 0xffffffff; refs[2].domid = 2; refs[2].ref = 0x01020304;",
    ),
    "unmap": ("struct ioctl_gntdev_unmap_grant_ref", "s.index = 0x123456789abcd000; s.count = 0x89abcdef;"),
    "offset": ("struct ioctl_gntdev_get_offset_for_vaddr", "s.vaddr = 0x7fff00001000;"),
    "offset answered": (
        "struct ioctl_gntdev_get_offset_for_vaddr",
        "s.vaddr = 0x7fff00001000; s.offset = 0x123456789abcd000; s.count = 0x89abcdef;",
    ),
    "copy": ("struct ioctl_gntdev_grant_copy", "s.count = 0x89abcdef;"),
    "copy from a grant": (
        "struct gntdev_grant_copy_segment",
        "s.source.foreign.ref = 0x01020304; s.source.foreign.offset = 0x0506; s.source.foreign.domid = 0x1234;"
        "s.len = 0x0708; s.flags = 1 << 0;",
    ),
    "copy to a grant, refused": (
        "struct gntdev_grant_copy_segment",
        "s.dest.foreign.ref = 0x01020304; s.dest.foreign.offset = 0x0506; s.dest.foreign.domid = 0x1234;"
        "s.len = 0x0708; s.flags = 1 << 1; s.status = -3;",
    ),
    "port": ("struct ioctl_evtchn_notify", "s.port = 0xfedcba98;"),
    "remote domain": ("struct ioctl_evtchn_bind_unbound_port", "s.remote_domain = 0x1234;"),
    "interdomain": (
        "struct ioctl_evtchn_bind_interdomain",
        "s.remote_domain = 0x1234; s.remote_port = 0xfedcba98;",
    ),
    "hypercall": ("struct privcmd_hypercall", "s.op = 20; s.arg[0] = 6; s.arg[2] = 0x123456789abcd000;"),
    "resource": (
        "struct privcmd_mmap_resource",
        "s.dom = 0x1234; s.type = 1; s.id = 0x01020304; s.idx = 0x89abcdef; s.num = 0x123456789abcd000;",
    ),
}

_REF_LIST = [8, 0xFFFFFFFF, 0x01020304]
_GRANT_LIST = [(0x1234, 8), (1, 0xFFFFFFFF), (2, 0x01020304)]
_SIDE = (0x01020304, 0x0506, 0x1234)


def _answered_alloc() -> bytearray:
    arg = gntalloc.pack_alloc(_DOMID, gntalloc.FLAG_WRITABLE, 3)
    gntalloc.fill_alloc(arg, _INDEX, _REF_LIST)
    return arg


def _answered_map() -> bytearray:
    arg = gntdev.pack_map(_GRANT_LIST)
    gntdev.fill_map(arg, _INDEX)
    return arg


def _answered_offset() -> bytearray:
    arg = gntdev.pack_offset(0x7FFF00001000)
    gntdev.fill_offset(arg, _INDEX, _COUNT)
    return arg


def _refused_segment() -> bytearray:
    segment = bytearray(gntdev.pack_segment(None, _SIDE, 0x0708))
    gntdev.fill_segment(segment, 0, -3)
    return segment


def test_bytes_are_those_that_c_writes() -> None:
    theirs = c_program.dumps(_ALL, _SAMPLES)
    ours = {
        "alloc": gntalloc.pack_alloc(_DOMID, gntalloc.FLAG_WRITABLE, 3),
        "alloc answered": _answered_alloc(),
        "dealloc": gntalloc.pack_dealloc(_INDEX, _COUNT),
        "share notify": unmap_notify.pack_notify(_INDEX + 1, unmap_notify.CLEAR_BYTE, _PORT),
        "map notify": unmap_notify.pack_notify(_INDEX + 1, unmap_notify.SEND_EVENT, _PORT),
        "map": gntdev.pack_map(_GRANT_LIST),
        "map answered": _answered_map(),
        "unmap": gntdev.pack_unmap(_INDEX, _COUNT),
        "offset": gntdev.pack_offset(0x7FFF00001000),
        "offset answered": _answered_offset(),
        "copy": gntdev.pack_copy(_COUNT),
        "copy from a grant": gntdev.pack_segment(_SIDE, None, 0x0708),
        "copy to a grant, refused": _refused_segment(),
        "port": evtchn.pack_word(_PORT),
        "remote domain": evtchn.pack_word(_DOMID),
        "interdomain": evtchn.pack_interdomain(_DOMID, _PORT),
        "hypercall": privcmd.pack_hypercall(20, 6, 0, _INDEX),
        "resource": privcmd.pack_resource(_DOMID, 1, 0x01020304, _COUNT, _INDEX),
    }
    assert {name: bytes(sample).hex() for name, sample in ours.items()} == {
        # the compiler pads a union to its alignment: beyond the array nothing is meant
        name: sample[: len(ours[name])].hex()
        for name, sample in theirs.items()
    }


def test_answers_that_c_wrote_are_read() -> None:
    theirs = {name: bytearray(sample) for name, sample in c_program.dumps(_ALL, _SAMPLES).items()}
    assert gntalloc.alloc_result(theirs["alloc answered"], 3) == (_INDEX, tuple(_REF_LIST))
    assert gntdev.map_result(theirs["map answered"]) == _INDEX
    assert gntdev.offset_result(theirs["offset answered"]) == (_INDEX, _COUNT)
    assert gntdev.segment_status(theirs["copy to a grant, refused"], 0) == -3
    assert privcmd.resource_result(theirs["resource"]) == _INDEX
