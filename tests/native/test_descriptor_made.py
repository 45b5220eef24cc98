"""What Descriptor.share and map make, over a kernel that is a library: it answers ioctls of a memfd as gntalloc and
gntdev do, and writes them down. Needs a C compiler; on real Xen the suite shows the same.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMPILER = shutil.which("gcc") or shutil.which("cc")

KERNEL = r"""
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
static unsigned next_ref = 4294967290u;
static int refuse;
void refuse_next(int number) { refuse = number; }
static int grant_device(int fd) {
    char path[64], name[64] = "";
    strcpy(path, "/proc/self/fd/"); char digits[12]; int i = 0; do digits[i++] = '0' + fd % 10; while (fd /= 10);
    char *end = path + strlen(path); while (i) *end++ = digits[--i]; *end = 0;
    return readlink(path, name, 63) > 0 && strncmp(name, "/memfd:grants", 13) == 0;
}
struct request { uint64_t index; uint32_t count, more; } unmapped;
int unmaps;
int ioctl(int fd, unsigned long number, ...) {
    va_list rest; va_start(rest, number); void *argument = va_arg(rest, void *); va_end(rest);
    if (!grant_device(fd)) return syscall(SYS_ioctl, fd, number, argument);
    if (refuse) { errno = refuse; refuse = 0; return -1; }
    if ((number & 0xffff) == 0x4705) { /* ALLOC_GREF: domid, flags, count, index, refs */
        uint32_t count = *(uint32_t *)((char *)argument + 4), *refs = (uint32_t *)((char *)argument + 16);
        *(uint64_t *)((char *)argument + 8) = 0;
        for (uint32_t i = 0; i < count; i++) refs[i] = next_ref + i;
    } else if ((number & 0xffff) == 0x4700) { /* MAP_GRANT_REF: count, pad, index, refs */
        *(uint64_t *)((char *)argument + 8) = 4096;
    } else if ((number & 0xffff) == 0x4701) { /* UNMAP_GRANT_REF: index, count, pad */
        unmapped = *(struct request *)argument;
        unmaps++;
    }
    return 0;
}
"""

PROGRAM = """
import ctypes, errno, gc, os, sys, threading, weakref
from typing import NamedTuple
from xengrant._native import Descriptor, Held
from xengrant.abi import gntdev
from xengrant.memory import Mapping

class Pair(NamedTuple):
    domid: int
    ref: int

class Made(Held):
    __slots__ = ()
    def __new__(cls, *arguments):
        raise AssertionError
    def __init__(self, *arguments):
        raise AssertionError

kernel = ctypes.CDLL(None)
unmaps = ctypes.c_int.in_dll(kernel, "unmaps")
def last_unmapped():
    index, count = (ctypes.c_uint64 * 2).in_dll(kernel, "unmapped")
    return index, count & 0xFFFFFFFF

fd = os.memfd_create("grants")
os.truncate(fd, 1 << 20)
file = Descriptor(fd)
whose = object()
"""

CASES = {
    "share": """
share = file.share(5, 3, True, Made)
assert type(share) is Made
assert (share._whose, share._names, share.writable) == (5, (4294967290, 4294967291, 4294967292), True)
assert len(share.mapping) == 3 * 4096 and share.mapping.writable
share.close()
assert share.closed and unmaps.value == 0
other = file.share(5, 3, False, Made)
assert other.writable is False and other.mapping.writable
other.close()
""",
    "map": """
one, two = Pair(1, 8), Pair(2, 9)
for grants, meant in ((one, (one,)), ((one, two), (one, two)), ([one, two], (one, two))):
    for writable in (True, False):
        mapped = file.map(grants, Pair, writable, Made, whose)
        assert type(mapped) is Made
        argument = gntdev.pack_map(meant)
        gntdev.fill_map(argument, 4096)
        assert type(mapped._names) is bytes and mapped._names == argument
        assert mapped._whose is whose and mapped.writable is mapped.mapping.writable is writable
        before = unmaps.value
        mapped.close()
        mapped.close()
        assert (unmaps.value, last_unmapped()) == (before + 1, (4096, len(meant)))
""",
    "the names are those of then": """
grants = [Pair(1, 8)]
with file.map(grants, Pair, True, Made, whose) as mapped:
    grants.append(Pair(1, 9))
    assert gntdev.unpack_map(mapped._names) == [(1, 8)]
""",
    "refused": """
for grants in (Pair(1, 8), [Pair(1, 8)]):
    kernel.refuse_next(errno.EINVAL)
    assert file.map(grants, Pair, True, Made, whose) is None
kernel.refuse_next(errno.ENOSPC)
try:
    file.share(5, 1, True, Made)
except OSError as error:
    assert error.errno == errno.ENOSPC
else:
    raise AssertionError
assert unmaps.value == 0
""",
    "nothing and too much leave nothing behind": """
one = Pair(1, 8)
much, before = [one] * 65537, sys.getrefcount(one)
for _ in range(3):
    assert file.map(much, Pair, True, Made, whose) is file.map((one, 8), Pair, True, Made, whose) is None
assert sys.getrefcount(one) == before
""",
    "references": """
grants, number = [Pair(1, 1008), Pair(1, 1009)], 1234
parts = (whose, Made, Held, Mapping, grants, *grants, file)
def cycle():
    file.map(grants, Pair, True, Made, whose).close()
    file.map(tuple(grants), Pair, True, Made, whose).close()
    file.map(grants[0], Pair, True, Made, whose).close()
    file.map([*grants, 8], Pair, True, Made, whose)
    kernel.refuse_next(errno.EINVAL)
    file.map(grants, Pair, True, Made, whose)
    file.share(number, 300, True, Made).close()
    kernel.refuse_next(errno.ENOMEM)
    try:
        file.share(number, 300, True, Made)
    except OSError:
        pass
    file.share(-1, 1, True, Made)
    for made in (object, None):
        try:
            file.map(grants, Pair, True, made, whose)
        except TypeError:
            pass
for _ in range(10):
    cycle()
before = [sys.getrefcount(part) for part in parts]
blocks = sys.getallocatedblocks()
for _ in range(1000):
    cycle()
assert [sys.getrefcount(part) for part in parts] == before
assert sys.getallocatedblocks() < blocks + 100, (blocks, sys.getallocatedblocks())
""",
    "the file closed before": """
mapped = file.map(Pair(1, 8), Pair, True, Made, whose)
file.close()
assert mapped.mapping[0] == 0
mapped.close()
assert unmaps.value == 0, "the last munmap was the file's release"
blocks = sys.getallocatedblocks()
for _ in range(1000):
    assert file.map(Pair(1, 8), Pair, True, Made, whose) is file.share(1, 1, True, Made) is None
assert sys.getallocatedblocks() < blocks + 100
""",
    "threads": """
def work():
    for _ in range(300):
        with file.map([Pair(1, 8)], Pair, True, Made, whose) as mapped, file.share(1, 1, True, Made) as share:
            mapped.mapping[0] = share.mapping[0] = 1
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert unmaps.value == 1200
""",
    "a cycle": """
class Owner:
    pass
owner = Owner()
owner.mapped = file.map(Pair(1, 8), Pair, True, Made, owner)
gone = weakref.ref(owner)
owner.mapped.close()
del owner
gc.collect()
assert gone() is None
""",
}


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("there is no C compiler (apt-get install gcc)")
    directory = tmp_path_factory.mktemp("kernel")
    (directory / "kernel.c").write_text(KERNEL)
    library = directory / "kernel.so"
    command = [COMPILER, "-O1", "-D_GNU_SOURCE", "-shared", "-fPIC", "-o", str(library), str(directory / "kernel.c")]
    subprocess.run(command, check=True)
    return library


@pytest.mark.parametrize("case", CASES)
def test_what_is_made(kernel: Path, case: str) -> None:
    preloaded = f"{os.environ.get('LD_PRELOAD', '')} {kernel}"  # after a sanitizer's runtime
    environment = os.environ | {"LD_PRELOAD": preloaded, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error", "-c", PROGRAM + CASES[case]]
    subprocess.run(command, env=environment, check=True, timeout=120)
