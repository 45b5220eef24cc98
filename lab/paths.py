"""Where things lie on the host: the checkout, its build directory and the cache outside of it."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["CHECKOUT", "LAB", "cache", "exclusive", "progress", "results"]

LAB = Path(__file__).resolve().parent
CHECKOUT = LAB.parent


def cache() -> Path:
    """The directory that outlives checkouts: images and locks."""
    chosen = os.environ.get("XENGRANT_LAB_CACHE")
    directory = Path(chosen) if chosen else Path.home() / ".cache" / "xengrant" / "lab"
    directory.mkdir(parents=True, exist_ok=True)
    return directory.resolve()


def results(release: str, job: str) -> Path:
    """Where a job's log, the boot log and the guests' consoles end up."""
    return CHECKOUT / "build" / "lab" / release / job


def progress(text: str) -> None:
    print(f"lab: {text}", file=sys.stderr, flush=True)


@contextmanager
def exclusive(name: str, waiting_for: str) -> Iterator[None]:
    """Hold a lock of the whole machine's cache; says what it waits for if another process holds it."""
    with open(cache() / f"{name}.lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            progress(f"waiting for {waiting_for} (process {lock.read().strip() or 'unknown'})")
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        yield
