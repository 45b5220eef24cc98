"""Pages that hold something which looks into them: an array, a table. What `arrays.py` and `tables.py` share."""

from __future__ import annotations

import json
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from xengrant.errors import ProtocolError
from xengrant.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from xengrant.domain import Domain
    from xengrant.gntshr import Share
    from xengrant.gnttab import Mapped
    from xengrant.meeting import Advertisement

__all__ = ["Looking", "need", "parse_header", "share_bytes"]

_View = TypeVar("_View")


class Looking(Generic[_View]):
    """Shared or mapped pages and one view into them, which `look` makes.

    Closing drops the view and then the pages: `BufferError`, and nothing is changed, while others look into them.
    """

    def __init__(
        self, pages: Share | Mapped, look: Callable[[Any], _View], advertisement: Advertisement | None = None
    ) -> None:
        self._pages = pages
        self._look = look
        self._advertisement = advertisement
        self._view: _View | None = look(pages.mapping)

    @property
    def closed(self) -> bool:
        """Whether the pages were given back, or taken back."""
        return self._pages.closed

    def _seen(self) -> _View:
        if self._view is None:
            raise ValueError(f"{self!r} is closed")
        return self._view

    def close(self) -> None:
        """Take the pages back, or give them back. A second time does nothing."""
        if self.closed:
            return
        self._view = None
        try:
            self._pages.close()
        except BufferError:
            self._view = self._look(self._pages.mapping)
            raise
        if self._advertisement is not None:
            self._advertisement.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        self._view = None
        if self._advertisement is not None:
            self._advertisement.close()
        self._pages.__exit__(type(exc) if exc is not None else None, exc, None)


def share_bytes(domain: Domain, peer: int, size: int, *, writable: bool) -> Share:
    """Share enough zeroed pages for so many bytes, at least one."""
    with domain.gntshr() as gntshr:
        return gntshr.share_pages(peer, count=max(1, -(-size // PAGE_SIZE)), writable=writable)


def parse_header(header: bytes, kind: str) -> dict[str, Any]:
    """What a peer says that its pages hold, if that is such a thing; values are whatever it says."""
    try:
        found = json.loads(header)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("kind") != kind:
        what = f"{'an' if kind == 'array' else 'a'} {kind}"
        raise ProtocolError(f"the peer does not say that its pages hold {what}: {header[:64]!r}")
    return found


def need(module: str, extra: str) -> None:
    """Import what only this extra of xengrant brings; `ModuleNotFoundError` says how to install it."""
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ModuleNotFoundError(f"{module} is missing: pip install 'xengrant[{extra}]'", name=module) from None
