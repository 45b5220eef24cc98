"""The C programs that jobs run in dom0 and in guests: compiled on the host into build/lab/bin, from where `lab.initrd`
takes all that is there.

Called by `lab.run` and `lab.judging`. One program serves both releases, although libxenvchan's soname follows Xen's
version: it is linked with an empty library of the name that Debian's development package gives to the real one,
and `lab.initrd` makes that name in each image.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from lab import paths, tools

__all__ = ["BIN", "VCHAN", "build"]

BIN = paths.CHECKOUT / "build" / "lab" / "bin"

VCHAN = "libxenvchan.so"
"""What programs are linked with. That it is the release's own library is the image's business."""

_PROGRAMS = {
    "disk-bench": ("benchmarks/c/disk_bench.c", "-lc"),
    "map-loop": ("benchmarks/c/map_loop.c", "-lxengnttab"),
    "share-loop": ("benchmarks/c/share_loop.c", "-lxengnttab"),
    "vchan-bench": ("benchmarks/c/vchan_bench.c", VCHAN),
    "vchan-peer": ("tests/c/vchan_peer.c", VCHAN),
}
_HEADER = Path("/usr/include/libxenvchan.h")
_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra")


def build() -> None:
    """Compile what is missing or older than its sources. A program appears when it is whole: others may build too."""
    for name, (source, library) in _PROGRAMS.items():
        path = paths.CHECKOUT / source
        if _current(BIN / name, path):
            continue
        BIN.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".programs-", dir=BIN.parent) as work:
            linked = library if library.startswith("-l") else str(_stand_in(Path(work) / library))
            made = Path(work) / name
            tools.call("gcc", *_FLAGS, "-o", str(made), str(path), linked)
            os.replace(made, BIN / name)


def _current(program: Path, source: Path) -> bool:
    made_of = [source, *source.parent.glob("*.h"), Path(__file__)]
    return program.is_file() and all(program.stat().st_mtime > file.stat().st_mtime for file in made_of)


def _stand_in(target: Path) -> Path:
    """An empty library with the functions that the header declares."""
    functions = sorted(set(re.findall(r"^\w.*?\b(libxenvchan_\w+)\(", _HEADER.read_text(), re.MULTILINE)))
    code = "".join(f"void {name}(void) {{}}\n" for name in functions)
    tools.call("gcc", "-shared", f"-Wl,-soname,{VCHAN}", "-o", str(target), "-x", "c", "-", input=code.encode())
    return target
