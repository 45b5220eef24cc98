"""Keys that others replace while they are read."""

from __future__ import annotations

from typing import cast

from xengrant.vchan.keys import published, published_async
from xengrant.xenstore import AsyncXenStore, XenStore

from .ends import run


class Replaced:
    """A store in which another server puts its keys in place of the first one's after the first read."""

    def __init__(self) -> None:
        self._nodes = {"ring-ref": b"8", "event-channel": b"5"}

    def read(self, path: str) -> bytes:
        value = self._nodes[path.rpartition("/")[2]]
        self._nodes = {"ring-ref": b"9", "event-channel": b"6"}
        return value


class ReplacedAsync(Replaced):
    """As `Replaced`."""

    async def read(self, path: str) -> bytes:  # type: ignore[override]
        return super().read(path)


def test_a_ref_and_a_port_of_two_offers_are_no_keys() -> None:
    assert published(cast("XenStore", Replaced()), "here") is None


def test_nor_are_they_for_asyncio() -> None:
    assert run(published_async(cast("AsyncXenStore", ReplacedAsync()), "here")) is None
