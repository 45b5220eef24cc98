"""The first proof that the lab is real: a guest shares two pages, dom0 maps them, and each sees what the other writes.

Bare ioctl and mmap on both sides, nothing of xengrant: if this fails the lab is broken, not the library. Numbers and
layouts: Linux include/uapi/xen/gntalloc.h and gntdev.h.
"""

import fcntl
import mmap
import os
import platform
import struct
import sys
import time

from lab.dom0 import GUEST_KIND, RELEASE, Guest, xl

MAP_GRANT_REF = 0x00184700
PAGE = 4096

SHARE = """
import fcntl, mmap, os, struct, sys, time
ALLOC_GREF = 0x00184705
device = os.open("/dev/xen/gntalloc", os.O_RDWR | os.O_CLOEXEC)
request = bytearray(struct.pack("<HHIQ", 0, 1, 2, 0) + bytes(8))
fcntl.ioctl(device, ALLOC_GREF, request)
_, _, _, index, *refs = struct.unpack("<HHIQ2I", request)
pages = mmap.mmap(device, 8192, offset=index)
pages[:5] = b"guest"
pages[4096:4101] = b"GUEST"
print(*refs, flush=True)
deadline = time.monotonic() + 30
while pages[100:104] != b"dom0" or pages[4196:4200] != b"DOM0":
    if time.monotonic() > deadline:
        sys.exit("dom0's bytes did not come")
    time.sleep(0.05)
pages[:5] = b"seen!"
time.sleep(1)
"""


def map_pages(domid: int, refs: list[int]) -> mmap.mmap:
    device = os.open("/dev/xen/gntdev", os.O_RDWR | os.O_CLOEXEC)
    request = bytearray(struct.pack("<IIQ", len(refs), 0, 0) + b"".join(struct.pack("<II", domid, ref) for ref in refs))
    fcntl.ioctl(device, MAP_GRANT_REF, request)
    index = struct.unpack_from("<IIQ", request)[2]
    return mmap.mmap(device, len(refs) * PAGE, offset=index)


def main() -> None:
    started = time.monotonic()
    version = next(line.split(":")[1].strip() for line in xl("info").splitlines() if line.startswith("xen_version"))
    print(f"{RELEASE}: Xen {version}, Linux {platform.release()}, Python {platform.python_version()}")
    with Guest.create("smoke") as guest:
        print(f"{GUEST_KIND} guest answers after {time.monotonic() - started:.1f} s")
        print(xl("list"), end="")
        print("in the guest:", guest.check("uname -sr; python3 -V; ls /dev/xen").split())
        sharing = guest.start(f"exec python3 -u - <<'END'\n{SHARE}\nEND")
        while not (line := sharing.output()).endswith("\n"):
            if sharing.done:
                sys.exit(f"the guest could not share: {sharing.wait()}")
        refs = [int(word) for word in line.split()]
        pages = map_pages(guest.domid, refs)
        assert pages[:5] == b"guest", pages[:16]
        assert pages[PAGE : PAGE + 5] == b"GUEST", pages[PAGE : PAGE + 16]
        print(f"dom0 maps refs {refs} of domain {guest.domid} and reads what the guest wrote")
        pages[PAGE + 100 : PAGE + 104] = b"DOM0"
        pages[100:104] = b"dom0"
        deadline = time.monotonic() + 30
        while pages[:5] != b"seen!":
            assert time.monotonic() < deadline, "the guest did not see dom0's bytes"
            time.sleep(0.01)
        print("the guest read what dom0 wrote")
        status, output = sharing.wait()
        assert status == 0, output
        pages.close()
    print(f"passed in {time.monotonic() - started:.1f} s")


main()
