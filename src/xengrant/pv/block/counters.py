"""What a back end has done, for whoever watches it: `Counters`, one for each ring and their sum."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from xengrant._native import BlockServer

__all__ = ["Counters"]


@dataclass(slots=True)
class Counters:
    """Since the back end was made. `depth` is how many requests are there and not answered; bytes are of the disk."""

    reads: int = 0
    writes: int = 0
    flushes: int = 0
    discards: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    discarded_bytes: int = 0
    errors: int = 0
    depth: int = 0

    @property
    def requests(self) -> int:
        """All that were answered, also with an error."""
        return self.reads + self.writes + self.flushes + self.discards + self.errors

    @classmethod
    def of_server(cls, server: BlockServer) -> Self:
        """What a ring of `_native` has done."""
        reads, writes, flushes, errors, read_bytes, written_bytes, depth = server.counts
        return cls(
            reads=reads,
            writes=writes,
            flushes=flushes,
            read_bytes=read_bytes,
            written_bytes=written_bytes,
            errors=errors,
            depth=depth,
        )

    @classmethod
    def sum(cls, counters: Iterable[Self]) -> Self:
        """All of them, field by field."""
        total = cls()
        for each in counters:
            for field in fields(cls):
                setattr(total, field.name, getattr(total, field.name) + getattr(each, field.name))
        return total

    def as_dict(self) -> dict[str, int]:
        """The fields by name, with `requests`."""
        return {"requests": self.requests, **asdict(self)}
