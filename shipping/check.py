"""`python3 -m shipping.check`: judges what `make dist` left in dist/, by using it as its users would.

The wheel keeps to the stable ABI; the sdist holds the repository; wheel and deb are installed in clean roots of the
Debian releases, one for each Python there is, where the tool, its machine and every module then work. On the host the
wheel is installed with its extras for each CPython on PATH, and the sdist is built and tested.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

from lab import paths, tools
from lab.errors import LabError
from lab.paths import progress
from shipping import roots

__all__ = ["main"]

DIST = paths.CHECKOUT / "dist"
SUITES = ("bookworm", "trixie", "sid")
"""Python 3.11, 3.13, and the newest that Debian has."""

_INSTALLED = ("python3", "python3-venv", "man-db", "zsh", "fish", "bash-completion")
# Neither is in the sdist: the one is a maintainer's of Debian, the other are this repository's own.
_NOT_IN_SDIST = ("debian/", ".ci/", ".gitignore")

_OF_SDIST = (
    ("tests/native", "tests/abi", "tests/shipped", "tests/library"),
    ("tests/conformance/test_cases.py", "-k", "share"),
)

# Arguments: modules to leave out.
_IMPORT_ALL = """
import importlib, pkgutil, sys, xengrant
names = {found.name for found in pkgutil.walk_packages(xengrant.__path__, "xengrant.")} - set(sys.argv[1:])
for name in names:
    importlib.import_module(name)
print(f"Python {sys.version.split()[0]}: {len(names)} modules")
"""
_NEED_PYTEST = ("xengrant.pytest",)
_NEED_EXTRAS = ("xengrant.cli.metrics_http",)

_EXTRAS = ("numpy", "arrow", "rich", "metrics")
_USE_EXTRAS = """
import numpy, prometheus_client, pyarrow, rich, xengrant
from xengrant import data
from xengrant.embedded import Machine
with Machine() as machine, xengrant.connect(machine.url(1)) as one, xengrant.connect(machine.url(2)) as two:
    with data.share_array(one, 2, numpy.arange(12.0), "data/array", writable=False):
        with data.map_array(two, 1, "data/array", writable=False) as mapped:
            assert mapped.array.sum() == 66
    table = pyarrow.table({"square": [n * n for n in range(12)]})
    with data.share_table(one, 2, table, "data/table"), data.map_table(two, 1, "data/table") as mapped:
        assert mapped.table == table
print(f"with NumPy {numpy.__version__} and pyarrow {pyarrow.__version__}")
"""


def main() -> None:
    (wheel,) = DIST.glob("xengrant-*.whl")
    (sdist,) = DIST.glob("xengrant-*.tar.gz")
    (deb,) = DIST.glob("python3-xengrant_*.deb")
    _stable_abi(wheel)
    _whole(sdist)
    for suite in SUITES:
        _wheel_works(suite, wheel)
        _deb_works(suite, deb)
    for python in _pythons():
        _extras_work(python, wheel)
    _sdist_works(sdist)
    print("every package works")


def _stable_abi(wheel: Path) -> None:
    assert "-cp311-abi3-" in wheel.name, wheel.name
    here = Path(sys.executable).parent
    print(tools.call(str(here / "abi3audit"), "--strict", "--report", str(wheel)).decode(), end="")
    print(tools.call(str(here / "auditwheel"), "show", str(wheel)).decode().strip())


def _whole(sdist: Path) -> None:
    """What git tracks is in it, but for what it leaves out by intent."""
    tracked = tools.call("git", "-C", str(paths.CHECKOUT), "ls-files").decode().splitlines()
    with tarfile.open(sdist) as archive:
        there = {name.partition("/")[2] for name in archive.getnames()}
    missing = [name for name in tracked if name not in there and not name.startswith(_NOT_IN_SDIST)]
    if missing:
        raise LabError(f"{sdist.name} lacks {', '.join(missing)}: see MANIFEST.in")
    print(f"{sdist.name}: {len(there)} files and directories, all of git's")


def _wheel_works(suite: str, wheel: Path) -> None:
    """In a new environment, without a network's help."""
    progress(f"the wheel in {suite}")
    with roots.clean(suite, *_INSTALLED) as root:
        root.run("python3", "-m", "venv", "/opt/new")
        root.run("/opt/new/bin/pip", "install", "--no-index", root.put(wheel))
        _works(root, "/opt/new/bin/", "/opt/new", "site-functions")
        root.run("/opt/new/bin/pip", "uninstall", "--yes", "xengrant")
        if left := root.run("find", "/opt/new", "-name", "*xengrant*").strip():
            raise LabError(f"uninstalling leaves {left}")


def _deb_works(suite: str, deb: Path) -> None:
    progress(f"the deb in {suite}")
    with roots.clean(suite, *_INSTALLED) as root:
        root.run("dpkg", "--install", root.put(deb))
        _works(root, "/usr/bin/", "/usr", "vendor-completions", "-k", "share")
        if (page := root.run("man", "-w", "xengrant").strip()) != "/usr/share/man/man1/xengrant.1.gz":
            raise LabError(f"man finds {page!r}")
        if "selftest" not in root.run("fish", "-c", "complete -C 'xengrant '"):
            raise LabError("fish completes no subcommand")


def _works(root: roots.Root, programs: str, prefix: str, zsh: str, *cases: str) -> None:
    """What was installed below `prefix`, in `programs`; selftest with these arguments, all of it without any."""
    python = f"{programs}python3"
    print(f"  {root.run(python, '-c', _IMPORT_ALL, *_NEED_PYTEST, *_NEED_EXTRAS).strip()}")
    root.run(f"{programs}xengrant", "demo")
    selftest = f"set -o pipefail; {programs}xengrant selftest {' '.join(cases)} | grep -v ^passed"
    print(f"  {root.run('bash', '-c', selftest).strip()}")
    for name in (
        "bash-completion/completions/xengrant",
        f"zsh/{zsh}/_xengrant",
        "fish/vendor_completions.d/xengrant.fish",
    ):
        if not (root.directory / f".{prefix}/share/{name}").is_file():
            raise LabError(f"there is no {prefix}/share/{name}")
    text = root.run("man", "--manpath", f"{prefix}/share/man", "xengrant-share")
    if "--read-only" not in text:
        raise LabError(f"xengrant-share(1) is not that:\n{text[:500]}")


def _pythons() -> Iterator[str]:
    """Those on PATH that run and are new enough."""
    for minor in range(11, 20):
        found = shutil.which(f"python3.{minor}")
        if found and not subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode:
            yield found


def _extras_work(python: str, wheel: Path) -> None:
    """In an environment of their own, with what pip finds."""
    progress(f"the wheel and its extras by {python}")
    with tempfile.TemporaryDirectory() as directory:
        tools.call(python, "-m", "venv", f"{directory}/new")
        new = f"{directory}/new/bin/python"
        tools.call(new, "-m", "pip", "install", "--only-binary", ":all:", f"{wheel}[{','.join(_EXTRAS)}]")
        for program in ((_IMPORT_ALL, *_NEED_PYTEST), (_USE_EXTRAS,)):
            print(f"  {tools.call(new, '-c', *program).decode().strip()}")


def _sdist_works(sdist: Path) -> None:
    """Unpacked, built and tested in an environment of its own, with what its metadata asks for."""
    progress("the sdist in a new environment")
    with tempfile.TemporaryDirectory() as directory:
        venv.create(f"{directory}/new", with_pip=True)
        with tarfile.open(sdist) as archive:
            archive.extractall(directory, filter="data")
        (tree,) = Path(directory).glob("xengrant-*")
        python = f"{directory}/new/bin/python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"{tree}[test]"], check=True)
        for tests in _OF_SDIST:
            subprocess.run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], cwd=tree, check=True)


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        sys.exit(str(error))
