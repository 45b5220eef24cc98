"""What this process has mapped, as the kernel tells it."""

from collections.abc import Iterator
from pathlib import Path


def _areas() -> Iterator[tuple[int, int, str, bool]]:
    """Each area as (start, end, permissions, whether it is a memfd of these tests)."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, permissions, *_ = line.split()
        start, end = (int(bound, 16) for bound in span.split("-"))
        yield start, end, permissions, "xengrant-test" in line


def permissions_at(address: int) -> str | None:
    """How the page at `address` is mapped ("rw-s", "---p"), or None if it is not."""
    return next((permissions for start, end, permissions, _ in _areas() if start <= address < end), None)


def is_mapped(address: int) -> bool:
    """Whether a memfd of these tests is mapped at `address`. (Something else soon is, once it is not.)"""
    return any(ours and start <= address < end for start, end, _, ours in _areas())


def mapped_memfds() -> int:
    """How many areas belong to the memfds of these tests."""
    return sum(ours for *_, ours in _areas())
