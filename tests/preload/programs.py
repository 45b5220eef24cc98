"""C programs over Xen's own libraries, run as domains of an embedded machine: built here, and started with the preload
library in `library/`, which says what it does.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

HERE = Path(__file__).parent
TESTS = HERE.parent
LONG = 60.0  # seconds; no test comes near it
_BUILD = 300.0

COMPILER = shutil.which("gcc") or shutil.which("cc")

XENBUS = "/dev/xen/xenbus"
"""XENSTORED_PATH of a guest's process: libxenstore opens a device where it finds one, and connects to a socket."""


def need() -> pytest.MarkDecorator:
    """Skips where there is no compiler, or where the libraries are missing; the reason names the package."""
    if COMPILER is None:
        return pytest.mark.skip(reason="there is no C compiler (apt-get install gcc)")
    for header, package in (
        ("xengnttab.h", "libxen-dev"),
        ("libxenvchan.h", "libxen-dev"),
        ("xen/gntdev.h", "linux-libc-dev"),
    ):
        if not Path("/usr/include", header).exists():
            return pytest.mark.skip(reason=f"/usr/include/{header} is missing (apt-get install {package})")
    return pytest.mark.skipif(False, reason="")


def build(directory: Path, name: str, sources: list[Path], *options: str) -> Path:
    assert COMPILER is not None
    built = directory / name
    command = [COMPILER, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", str(built)]
    done = subprocess.run(
        [*command, *map(str, sources), *options], capture_output=True, text=True, check=False, timeout=_BUILD
    )
    assert done.returncode == 0, done.stderr
    return built


class Preload:
    """The built library and programs, and how to start one as a domain."""

    def __init__(self, directory: Path) -> None:
        self._library = build(
            directory, "preload.so", sorted((HERE / "library").glob("*.c")), "-shared", "-fPIC", "-ldl"
        )
        self._actor = build(directory, "actor", [HERE / "actor.c"], "-lxengnttab", "-lxenevtchn")
        self.vchan_peer = build(directory, "vchan_peer", [TESTS / "c" / "vchan_peer.c"], "-lxenvchan")

    def start_actor(self, url: str, **environment: str) -> Actor:
        return Actor(self.start([str(self._actor)], url, **environment))

    def start(self, command: list[str], url: str, **environment: str) -> subprocess.Popen[str]:
        """Run a program as the domain that `url` names."""
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.environment(url), **environment},
            cwd=TESTS.parent,
        )

    def environment(self, url: str) -> Mapping[str, str]:
        return {"LD_PRELOAD": str(self._library), "XENGRANT_PRELOAD_URL": url, "XENSTORED_PATH": XENBUS}


class Actor:
    """A process of `actor.c`, which says what can be asked. Killed at the end."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(LONG)

    def ask(self, *words: object) -> list[str]:
        """What it answers after "ok"; `OSError` with the errno that C had."""
        self.tell(*words)
        return self.answer(*words)

    def tell(self, *words: object) -> None:
        """Ask, and do not wait."""
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def answer(self, *words: object) -> list[str]:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        assert self.has_answered(LONG), f"{words}: no answer in {LONG:g} seconds"
        verdict, *rest = self.process.stdout.readline().split() or ["ended"]
        if verdict == "error":
            raise OSError(int(rest[0]), f"{words}: {os.strerror(int(rest[0]))}")
        assert verdict == "ok", f"{words}: {verdict} {rest} {self.process.stderr.read() if verdict == 'ended' else ''}"
        return rest

    def has_answered(self, seconds: float = 0) -> bool:
        """Whether there is a line to read; it holds while each line is read before the next is asked for."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        return bool(ready)

    def numbers(self, *words: object) -> list[int]:
        return [int(word) for word in self.ask(*words)]

    def wait_asleep(self) -> None:
        """Until it sleeps in a system call: with a question under way, in the one that the question led to."""
        deadline = time.monotonic() + LONG
        status = Path(f"/proc/{self.process.pid}/stat")
        while status.read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < deadline, "the actor does not wait"
            os.sched_yield()


def pattern(size: int, seed: int) -> bytes:
    """As actor.c has it."""
    return bytes((i * 131 + (i >> 8) * 7 + seed) & 0xFF for i in range(size))
