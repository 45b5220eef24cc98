"""Xenstore through Xen's own xenstore-* programs: what hand-made devices need, and nothing of the project.

Called by `lab.dom0.guest` and `lab.dom0.disks`.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping

__all__ = ["xenstore_list", "xenstore_permit", "xenstore_read", "xenstore_remove", "xenstore_wait", "xenstore_write"]


def xenstore_read(path: str) -> str | None:
    """The value of a xenstore node, or None if there is none."""
    done = subprocess.run(["xenstore-read", path], capture_output=True, check=False, text=True, timeout=30)
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


def xenstore_list(path: str) -> list[str]:
    """The names below a node; none if there is no such node."""
    done = subprocess.run(["xenstore-list", path], capture_output=True, check=False, text=True, timeout=30)
    return done.stdout.split()


def xenstore_write(values: Mapping[str, object]) -> None:
    """Write nodes, all of them in one transaction (Xen tools/xs-clients/xenstore_client.c)."""
    pairs = [str(word) for pair in values.items() for word in pair]
    subprocess.run(["xenstore-write", *pairs], check=True, timeout=30)


def xenstore_permit(path: str, *permissions: str) -> None:
    """Set a node's permissions, "n7" and the like, the owner's first. Nodes made below it afterwards inherit them."""
    subprocess.run(["xenstore-chmod", path, *permissions], check=True, timeout=30)


def xenstore_remove(path: str, *, tidy: bool = False) -> None:
    """Remove a node with all below it, and with `tidy` the nodes above that it leaves empty. None is no error."""
    options = ["-t"] if tidy else []
    subprocess.run(["xenstore-rm", *options, path], capture_output=True, check=False, timeout=30)


def xenstore_wait(path: str, wanted: Callable[[str | None], bool], timeout: float, what: str) -> str | None:
    """Wait until a node's value is `wanted` and return it; TimeoutError says `what` did not come and the last value."""
    deadline = time.monotonic() + timeout
    while not wanted(value := xenstore_read(path)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: after {timeout:g} s {path} is {value!r}")
        time.sleep(0.02)
    return value
