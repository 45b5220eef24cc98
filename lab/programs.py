"""The C programs that jobs run in dom0 and in guests, compiled on the host into build/lab/bin, from where `lab.initrd`
takes all that is there; for arm64 into build/lab/bin-arm64, and the package's extension with them.

Called by `lab.run` and `lab.judging`, and for the extension alone by `shipping.aarch64`. One program serves all
releases, although libxenvchan's soname follows Xen's version: it is linked with an empty library of the name that
Debian's development package gives to the real one, and `lab.initrd` makes that name in each image. amd64 is compiled
with the host's own headers and libraries, arm64 with those that `lab.images` has unpacked.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from lab import paths, tools
from lab.architectures import AMD64, Architecture
from lab.images import Images

__all__ = ["EXTENSION", "VCHAN", "build", "compile_extension", "directory", "extension"]

EXTENSION = "_native.abi3.so"

VCHAN = "libxenvchan.so"
"""What programs are linked with. That it is the release's own library is the image's business."""

_PROGRAMS = {
    "disk-bench": ("benchmarks/c/disk_bench.c", "-lc"),
    "map-loop": ("benchmarks/c/map_loop.c", "-lxengnttab"),
    "share-loop": ("benchmarks/c/share_loop.c", "-lxengnttab"),
    "vchan-bench": ("benchmarks/c/vchan_bench.c", VCHAN),
    "vchan-peer": ("tests/c/vchan_peer.c", VCHAN),
}
_NATIVE = paths.CHECKOUT / "src" / "native"
_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra")
# As setup.py has them.
_EXTENSION_FLAGS = ("-shared", "-fPIC", "-fvisibility=hidden", "-fno-plt", "-flto", "-Wshadow")
_LIMITED_API = "-DPy_LIMITED_API=0x030b0000"


def directory(architecture: Architecture) -> Path:
    """Where its programs are."""
    suffix = "" if architecture is AMD64 else f"-{architecture.name}"
    return paths.CHECKOUT / "build" / "lab" / f"bin{suffix}"


def extension(architecture: Architecture) -> Path | None:
    """The package's extension for it, None where that is the checkout's own, as setup.py builds it."""
    if architecture is AMD64:
        return None
    return paths.CHECKOUT / "build" / "lab" / f"native-{architecture.name}" / EXTENSION


def build(images: Images) -> None:
    """Compile what is missing or older than its sources. A program appears when it is whole: others may build too."""
    compiler, root = images.architecture.compiler, Path("/")
    options: list[str] = []
    if images.architecture is not AMD64:
        root = images.devel
        libraries = root / "usr" / "lib" / images.architecture.triplet
        options = [f"-I{root}/usr/include", f"-L{libraries}", f"-Wl,-rpath-link={libraries}"]
    for name, (source, library) in _PROGRAMS.items():
        path = paths.CHECKOUT / source
        target = directory(images.architecture) / name
        if not _current(target, [path, *path.parent.glob("*.h")]):
            with tempfile.TemporaryDirectory() as work:
                linked = library if library.startswith("-l") else _stand_in(compiler, root, Path(work) / library)
                _compile(target, compiler, *_FLAGS, *options, str(path), linked)
    native = extension(images.architecture)
    if native is not None and not _current(native, _NATIVE.glob("*.[ch]")):
        compile_extension(native, images.architecture, root)


def compile_extension(target: Path, architecture: Architecture, root: Path) -> None:
    """`_native` for another processor than the host's, and every CPython from 3.11 on; `LabError` with gcc's words.

    libpython3-dev of that processor, and what it depends on, are unpacked below `root`.
    """
    include = root / "usr" / "include"
    (python,) = include.glob("python3.*")
    sources = sorted(map(str, _NATIVE.glob("*.c")))
    flags = (*_FLAGS, *_EXTENSION_FLAGS, _LIMITED_API, f"-I{python}", f"-I{include}")
    _compile(target, architecture.compiler, *flags, *sources)


def _current(made: Path, sources: Iterable[Path]) -> bool:
    made_of = [*sources, Path(__file__)]
    return made.is_file() and all(made.stat().st_mtime > file.stat().st_mtime for file in made_of)


def _compile(target: Path, *command: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".programs-", dir=target.parent.parent) as work:
        made = Path(work) / target.name
        tools.call(*command, "-o", str(made))
        os.replace(made, target)


def _stand_in(compiler: str, root: Path, target: Path) -> str:
    """An empty library with the functions that the header declares."""
    header = (root / "usr" / "include" / "libxenvchan.h").read_text()
    functions = sorted(set(re.findall(r"^\w.*?\b(libxenvchan_\w+)\(", header, re.MULTILINE)))
    code = "".join(f"void {name}(void) {{}}\n" for name in functions)
    tools.call(compiler, "-shared", f"-Wl,-soname,{VCHAN}", "-o", str(target), "-x", "c", "-", input=code.encode())
    return str(target)
