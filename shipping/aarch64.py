"""`python3 -m shipping.aarch64 [PYTEST'S ARGUMENTS]`: `_native` cross-compiled, and its tests run, for aarch64.

gcc-aarch64-linux-gnu compiles, and qemu-user runs Debian 12's Python for arm64 on tests/native, with Debian's
pytest and hypothesis. Real Xen on arm64 is the lab's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lab import paths, programs
from lab.architectures import ARM64
from lab.errors import LabError
from shipping import roots

__all__ = ["main"]

SUITE = "bookworm"
_QEMU = "qemu-aarch64-static"
_PACKAGES = ("python3", "libpython3-dev", "python3-pytest", "python3-hypothesis")
_PYTEST = "import sys, pytest; sys.executable = sys.argv.pop(1); sys.exit(pytest.main(sys.argv[1:]))"

# Debian's pytest is older than pyproject.toml asks for, and what lies above tests/native needs no look here.
_OPTIONS = (
    *("-p", "no:cacheprovider", "-p", "no:unraisableexception", "-c", "/dev/null", "--rootdir=."),
    "--confcutdir=tests/native",
)
# What qemu-user has not, and the lab's arm64 machine has: MADV_DONTFORK, ioctls of /dev/xen and their errors, and a
# preloaded library that the host's own compiler makes.
_NOT_HERE = {
    "test_mapping_fork.py": (
        "test_the_child_neither_unmaps_nor_tells_nor_warns",
        "test_the_holes_are_filled_before_anything_else_can_lie_there",
        "test_a_view_from_before_the_fork_faults_in_the_child",
        "test_no_mapping_that_another_thread_is_making_leaks_into_the_child",
        "test_a_fork_made_in_c_is_no_different",
    ),
    "test_descriptor.py": ("test_share_says_why_the_kernel_refused",),
    "test_descriptor_made.py": ("test_what_is_made",),
}


def main(arguments: list[str]) -> int:
    """Compile and test; pytest's exit status."""
    compiler = "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
    for program, packages in ((ARM64.compiler, compiler), (_QEMU, "qemu-user-static")):
        if not shutil.which(program):
            raise LabError(f"there is no {program}: as root, apt-get install {packages}")
    with roots.unpacked(SUITE, ARM64.name, *_PACKAGES) as root, tempfile.TemporaryDirectory() as work:
        package = Path(work, "xengrant")
        shutil.copytree(paths.CHECKOUT / "src/xengrant", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        programs.compile_extension(package / programs.EXTENSION, ARM64, root.directory)
        (python,) = (root.directory / "usr/bin").glob("python3.[0-9]*[0-9]")
        environment = {
            **os.environ,
            "PYTHONPATH": work,
            "PYTHONDONTWRITEBYTECODE": "1",
            "QEMU_LD_PREFIX": str(root.directory),
        }
        # What tests start as sys.executable the kernel could not run.
        started = Path(work, "python")
        started.write_text(f'#!/bin/sh\nexec {_QEMU} {python} "$@"\n')
        started.chmod(0o755)
        left = [f"--deselect=tests/native/{file}::{test}" for file, tests in _NOT_HERE.items() for test in tests]
        command = [str(started), "-c", _PYTEST, str(started), *_OPTIONS, *left, "tests/native", *arguments]
        return subprocess.run(command, env=environment, cwd=paths.CHECKOUT, check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except LabError as error:
        sys.exit(str(error))
