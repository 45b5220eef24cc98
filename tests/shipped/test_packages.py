"""The sdist and the wheel as a release has them, built from a copy of the checkout and used in a new environment.

`make check-dist` does the same, and the Debian package, in clean systems of Debian's releases; here it is what a minute
shows.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import xengrant
from shipping import completions, manual
from xengrant.cli.commands import whole_parser

ROOT = Path(__file__).parents[2]
DEADLINE = 600.0
VERSION = xengrant.__version__

# What is made in a checkout, and what is the checkout's own.
_LEFT = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.so", "*.egg-info")


def _hook(tree: Path, name: str, target: Path) -> Path:
    """What pip calls in an environment of its own, called in this one, so that no network is needed."""
    program = f"import sys; from setuptools import build_meta; print(build_meta.{name}(sys.argv[1]))"
    return target / _run(tree, sys.executable, "-c", program, target).splitlines()[-1]


def _run(directory: Path, *command: str | Path) -> str:
    """Its output; what it said is in the failure. A path to the checkout's package would lead past the wheel's."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sdist")
    tree = shutil.copytree(ROOT, made / "tree", ignore=_LEFT)
    return _hook(tree, "build_sdist", made)


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the sdist, so that this has all that is needed."""
    made = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(made, filter="data")
    return _hook(made / f"xengrant-{VERSION}", "build_wheel", made)


@pytest.fixture(scope="session")
def new(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with nothing but the wheel."""
    directory = tmp_path_factory.mktemp("new")
    venv.create(directory)
    python = directory / "bin" / "python"
    _run(directory, sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", wheel)
    return directory


def test_the_sdist_has_what_the_repository_has(sdist: Path) -> None:
    wanted = {
        path.relative_to(ROOT).as_posix()
        for top in ("benchmarks", "docs", "examples", "lab", "shipping", "src/native", "src/xengrant", "tests")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }
    wanted |= {"pyproject.toml", "setup.py", "Makefile", "MANIFEST.in", "LICENSE", *(p.name for p in ROOT.glob("*.md"))}
    with tarfile.open(sdist) as archive:
        assert wanted - {name.partition("/")[2] for name in archive.getnames()} == set()


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    package = ROOT / "src" / "xengrant"
    sources = {path.relative_to(package.parent).as_posix() for path in package.rglob("*.py*") if path.suffix != ".pyc"}
    parser = whole_parser()
    shared = {*manual.pages(parser, VERSION), *completions.scripts(parser)}
    info, data = f"xengrant-{VERSION}.dist-info", f"xengrant-{VERSION}.data/data"
    about = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    (native,) = (name for name in names if name.endswith(".so"))
    assert names == {
        *sources,
        "xengrant/py.typed",
        native,
        *(f"{data}/{name}" for name in shared),
        *(f"{info}/{name}" for name in about),
    }
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        assert "-cp311-abi3-" in wheel.name
        assert native == "xengrant/_native.abi3.so"


def test_the_wheel_works_where_there_is_nothing_else(new: Path, tmp_path: Path) -> None:
    for words in (["--version"], ["demo"], ["selftest", "-k", "share", "--lifetime", "pv"]):
        _run(tmp_path, new / "bin" / "xengrant", *words)
    for name in (*manual.pages(whole_parser(), VERSION), *completions.scripts(whole_parser())):
        assert (new / name).is_file(), name
