"""What this process has mapped, as the kernel tells it."""

from pathlib import Path


def permissions_at(address: int) -> str | None:
    """How the page at `address` is mapped ("rw-s", "---p"), or None if it is not."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, permissions, *_ = line.split()
        start, end = (int(bound, 16) for bound in span.split("-"))
        if start <= address < end:
            return permissions
    return None


def mapped_memfds() -> int:
    """How many areas belong to the memfds of these tests."""
    return Path("/proc/self/maps").read_text().count("xengrant-test")
