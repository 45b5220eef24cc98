"""Refs handed over through xenstore: `advertise` on the granter's side, `find` on the mapper's.

Called by `Domain.advertise` and `Domain.find`; above gntshr and xenstore. Under the path lie

    domid       the granter's domid, decimal
    writable    0 or 1: the right that was granted
    refs/0 ...  the refs in page order as ranges, "8-23,40", each node below 2,000 bytes
    header      what the pages hold, where the granter says: a text of its own, at most 2,000 bytes

all readable by the peer only, written in one transaction, removed on close. What the peer wrote is bounded and checked
before it is believed.
"""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from xengrant.arguments import MAX_U32, checked_domid, checked_text
from xengrant.errors import InterfaceUnavailable, ProtocolError, XenStoreError
from xengrant.gnttab import MAX_GRANTS, Grant
from xengrant.peer import shown_path
from xengrant.waiting import deadline_after, seconds_until
from xengrant.xenstore import Permission

if TYPE_CHECKING:
    from xengrant.gntshr import Share
    from xengrant.xenstore import AsyncTransaction, AsyncXenStore, Transaction, XenStore

__all__ = ["Advertised", "Advertisement", "advertise", "find", "find_async"]

_NODE_BYTES = 2000
_MAX_NODES = 512
_ONE_LOOK = 1.0  # seconds that xenstore has for its answers where the caller waits for none
_NAMES = {"domid", "header", "refs", "writable"}


class Advertised(NamedTuple):
    """What a peer advertises: its grants in page order, and what it says of them, in its own words; b"" for nothing."""

    grants: list[Grant]
    header: bytes


class Advertisement:
    """Nodes in xenstore that tell the peer of a share; closing removes them. A second time does nothing.

    `path` is where they are, below this domain's directory; `closed` whether they were removed.
    """

    def __init__(self, store: XenStore, path: str) -> None:
        self._store = store
        self.path = path
        self.closed = False

    def close(self) -> None:
        """Remove the nodes; where xenstore refuses (`XenStoreError`), call it again."""
        if not self.closed:
            if not self._store.closed:  # else the domain was closed, or this is a forked child
                remove(self._store, self.path)
            self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Advertisement at {self.path}{', closed' if self.closed else ''}>"


def advertise(store: XenStore, domid: int, share: Share, path: str, header: str = "") -> Advertisement:
    """Write the share's refs under `path`, relative to domain `domid`'s (our own) directory, for its peer to read.

    Replaces an advertisement there; `XenStoreError` (EEXIST) where `path` holds other nodes: closing would remove them.
    `header` is for the peer, at most 2,000 bytes.
    """
    checked_text("path", path)
    if len(share.refs) > MAX_GRANTS:
        raise ValueError(f"{len(share.refs)} pages: the peer maps at most {MAX_GRANTS} at once")
    if len(header.encode()) > _NODE_BYTES:
        raise ValueError(f"a header of {len(header.encode())} bytes: xenstore takes {_NODE_BYTES}")
    nodes = {"domid": str(domid), "writable": str(int(share.writable))}
    nodes |= {f"refs/{i}": text for i, text in enumerate(format_refs(share.refs))}
    if header:
        nodes["header"] = header
    permissions = [Permission(domid, "n"), Permission(share.domid, "r")]

    def write(transaction: Transaction) -> None:
        if transaction.exists(path):
            others = sorted(set(transaction.directory(path)) - _NAMES)
            if others:
                raise XenStoreError(
                    errno.EEXIST,
                    f"{path} holds other nodes ({', '.join(others[:4])}): advertise at a path of its own",
                    path=path,
                )
            transaction.rm(path)
        transaction.mkdir(path)
        transaction.set_permissions(path, permissions)  # children inherit
        for name, value in nodes.items():
            transaction.write(f"{path}/{name}", value)

    store.run_transaction(write)
    return Advertisement(store, path)


def remove(store: XenStore, path: str) -> None:
    """Remove the nodes, which may be gone already: taken away, or with the domain or the machine."""
    try:
        store.rm(path)
    except InterfaceUnavailable:
        pass
    except XenStoreError as error:
        if error.errno != errno.ENOENT:
            raise


def find(store: XenStore, domid: int, path: str, timeout: float | None) -> Advertised:
    """What domain `domid` advertises at `path`, waiting until it does.

    A timeout of 0 looks once, and gives xenstore a second to answer. Raises `TimeoutError`, `ProtocolError` for values
    that make no sense, `XenStoreError`.
    """
    where = shown_path(checked_domid(domid), path)
    deadline = deadline_after(timeout if timeout != 0 else _ONE_LOOK)

    def read(transaction: Transaction) -> Advertised | None:
        return _drive(_reading(domid, where), transaction, deadline)

    try:
        with store.watch(where, timeout=seconds_until(deadline)) as watch:
            while True:
                found = store.run_transaction(read, timeout=seconds_until(deadline))
                if found is not None:
                    return found
                if timeout == 0 or seconds_until(deadline) == 0:  # the peer decides whether there is always an event
                    raise TimeoutError
                watch.wait(seconds_until(deadline))
    except TimeoutError:
        raise TimeoutError(_not_advertised(domid, where, timeout)) from None


async def find_async(store: AsyncXenStore, domid: int, path: str, timeout: float | None) -> Advertised:
    """As `find`."""
    where = shown_path(checked_domid(domid), path)
    deadline = deadline_after(timeout)

    async def read(transaction: AsyncTransaction) -> Advertised | None:
        return await _drive_async(_reading(domid, where), transaction)

    try:
        async with asyncio.timeout(timeout if timeout != 0 else _ONE_LOOK), await store.watch(where) as watch:
            while True:
                found = await store.run_transaction(read)
                if found is not None:
                    return found
                if timeout == 0:
                    raise TimeoutError
                await watch.wait(seconds_until(deadline))
    except TimeoutError:
        raise TimeoutError(_not_advertised(domid, where, timeout)) from None


_Steps = Generator[tuple[str, str], Any, Advertised | None]


def _reading(domid: int, where: str) -> _Steps:
    """Read the nodes, one call of the store at a time; None while they are not there, or not for us to read."""
    try:
        owner = yield "read", f"{where}/domid"  # first: until it is there, nothing else is asked
        names = yield "directory", f"{where}/refs"
        if not 0 < len(names) <= _MAX_NODES or set(names) != {str(i) for i in range(len(names))}:
            raise ProtocolError(f"{where}/refs does not hold the nodes 0, 1, ... but {names[:4]!r}")
        texts = []
        for i in range(len(names)):
            texts.append((yield "read", f"{where}/refs/{i}"))
        header = (yield "read", f"{where}/header") if (yield "exists", f"{where}/header") else b""
    except XenStoreError as error:
        if error.errno in (errno.ENOENT, errno.EACCES):
            return None
        raise
    return Advertised(parse(domid, where, owner, texts), header)


def _drive(steps: _Steps, store: Transaction, deadline: float | None) -> Advertised | None:
    try:
        operation, path = next(steps)
        while True:
            try:
                answer = getattr(store, operation)(path, timeout=seconds_until(deadline))
            except XenStoreError as error:
                operation, path = steps.throw(error)
            else:
                operation, path = steps.send(answer)
    except StopIteration as stop:
        found: Advertised | None = stop.value
        return found


async def _drive_async(steps: _Steps, store: AsyncTransaction) -> Advertised | None:
    try:
        operation, path = next(steps)
        while True:
            try:
                answer = await getattr(store, operation)(path)
            except XenStoreError as error:
                operation, path = steps.throw(error)
            else:
                operation, path = steps.send(answer)
    except StopIteration as stop:
        found: Advertised | None = stop.value
        return found


def parse(domid: int, where: str, owner: bytes, texts: list[bytes]) -> list[Grant]:
    """What the nodes of domain `domid` say, or `ProtocolError`."""
    if owner != str(domid).encode():
        raise ProtocolError(f"{where}/domid is {owner[:32]!r}, not {domid}, whose node it is")
    refs: list[int] = []
    for text in texts:
        refs.extend(_parse_ranges(where, text, MAX_GRANTS - len(refs)))
    if not refs:
        raise ProtocolError(f"{where} names no refs")
    return [Grant(domid, ref) for ref in refs]


def format_refs(refs: tuple[int, ...]) -> list[str]:
    """The refs in order, as ranges ("8-23,40"), one text for each node."""
    texts: list[str] = []
    line = ""
    for first, last in _runs(refs):
        item = str(first) if first == last else f"{first}-{last}"
        if line and len(line) + 1 + len(item) >= _NODE_BYTES:
            texts.append(line)
            line = ""
        line += f",{item}" if line else item
    return [*texts, line]


def _runs(refs: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """(first, last) of each ascending run, in order."""
    start = 0
    for i in range(1, len(refs) + 1):
        if i == len(refs) or refs[i] != refs[i - 1] + 1:
            yield refs[start], refs[i - 1]
            start = i


def _parse_ranges(where: str, text: bytes, room: int) -> Iterator[int]:
    for item in text.split(b","):
        match = re.fullmatch(rb"([0-9]{1,10})(?:-([0-9]{1,10}))?", item)
        if match is None:
            raise ProtocolError(f"{where}: {item[:32]!r} is not a ref or a range of refs")
        first = int(match[1])
        last = int(match[2] or match[1])
        if last < first or last > MAX_U32:
            raise ProtocolError(f"{where}: {item!r} is not a range of unsigned 32-bit refs")
        room -= last - first + 1
        if room < 0:
            raise ProtocolError(f"{where} names more than {MAX_GRANTS} refs")
        yield from range(first, last + 1)


def _not_advertised(domid: int, where: str, timeout: float | None) -> str:
    return f"domain {domid} advertised nothing that this domain may read at {where} in {timeout} seconds"
