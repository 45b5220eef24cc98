"""The xenstore nodes of one end of a device, read as what they must be: `Nodes`.

Used by kinds of devices and by the bus. What the other end wrote is bounded, parsed strictly and read once; all else is
`ProtocolError`.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Collection, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Final, TypeAlias

from xengrant.abi.xenbus import XenbusState
from xengrant.arguments import MAX_U32
from xengrant.errors import ProtocolError, XenStoreError

if TYPE_CHECKING:
    from xengrant.xenstore import AsyncTransaction, AsyncXenStore

__all__ = ["Nodes", "Value", "write_nodes"]

Value: TypeAlias = str | int | bool | None
"""What a node can be given: text, a decimal number, a flag that is 1 or 0; or None, which removes it."""

_MAX_TEXT = 1024  # bytes: paths, names of protocols, parameters
_MAX_DIGITS = 20  # of 64 bits
_NOT_THERE = (errno.ENOENT, errno.EACCES)


class _Missing(Enum):
    MISSING = 0


_MISSING: Final = _Missing.MISSING


class Nodes:
    """The nodes below `path`, which is absolute. A name may have slashes: ``queue-0/ring-ref``.

    What its owner hides from this domain counts as missing. Each call reads the node anew; a value that decides
    something is to be read once. Beside what each method says it raises, `XenStoreError` where xenstore fails.
    """

    def __init__(self, store: AsyncXenStore | AsyncTransaction, path: str) -> None:
        self._store = store
        self.path = path

    async def number(
        self, name: str, *, least: int = 0, most: int = MAX_U32, default: int | _Missing = _MISSING
    ) -> int:
        """A decimal number of `least` to `most`; `default` where the node is missing.

        `ProtocolError` where it is missing and there is no default, or is no such number.
        """
        value = await self._read(name)
        if value is None:
            if default is _MISSING:
                raise self._absent(name)
            return default
        if not re.fullmatch(rb"[0-9]{1,%d}" % _MAX_DIGITS, value) or not least <= int(value) <= most:
            raise ProtocolError(f"{self.path}/{name} is {value[:32]!r}, not a number of {least} to {most}")
        return int(value)

    async def flag(self, name: str) -> bool:
        """Whether the node says 1; it says 0, or is missing, where not. `ProtocolError` for anything else."""
        return bool(await self.number(name, most=1, default=0))

    async def text(
        self,
        name: str,
        *,
        choices: Collection[str] | None = None,
        default: str | _Missing = _MISSING,
        most: int = _MAX_TEXT,
    ) -> str:
        """Printable ASCII of at most `most` bytes, one of `choices` if they are given.

        `ProtocolError` where it is missing and there is no default, or is no such text.
        """
        value = await self._read(name)
        if value is None:
            if default is _MISSING:
                raise self._absent(name)
            return default
        if len(value) > most or not re.fullmatch(rb"[ -~]*", value):
            raise ProtocolError(f"{self.path}/{name} is {value[:32]!r}, not a text of at most {most} bytes")
        text = value.decode("ascii")
        if choices is not None and text not in choices:
            raise ProtocolError(f"{self.path}/{name} is {text[:64]!r}, none of {', '.join(choices)}")
        return text

    async def exists(self, name: str) -> bool:
        """Whether the node is there, for this domain to see."""
        return await self._read(name) is not None

    async def state(self) -> XenbusState:
        """The end's state, UNKNOWN where there is none (yet, or any more). `ProtocolError` for what is no state."""
        value = await self._read("state")
        if not value:
            return XenbusState.UNKNOWN
        if not re.fullmatch(rb"[0-8]", value):
            raise ProtocolError(f"{self.path}/state is {value[:32]!r}, which is no state")
        return XenbusState(int(value))

    async def _read(self, name: str) -> bytes | None:
        try:
            return await self._store.read(f"{self.path}/{name}")
        except XenStoreError as error:
            if error.errno not in _NOT_THERE:
                raise
            return None

    def _absent(self, name: str) -> ProtocolError:
        return ProtocolError(f"there is no {self.path}/{name}, or it is hidden from this domain")

    def __repr__(self) -> str:
        return f"<Nodes {self.path}>"


async def write_nodes(transaction: AsyncTransaction, path: str, nodes: Mapping[str, Value]) -> None:
    """Write the nodes below `path`, each inheriting the permissions of the one above it."""
    for name, value in nodes.items():
        if value is None:
            if await transaction.exists(f"{path}/{name}"):
                await transaction.rm(f"{path}/{name}")
        else:
            await transaction.write(f"{path}/{name}", str(int(value)) if isinstance(value, int) else value)
