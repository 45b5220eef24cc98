"""How the two ends of a vchan meet: the nodes `ring-ref` and `event-channel` in xenstore, below a path.

Written in one transaction and readable by the client only, as libxenvchan's server does (tools/libs/vchan/init.c,
init_xs_srv). What the peer wrote is parsed here and nowhere else.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from xengrant.arguments import MAX_U32, checked_text
from xengrant.errors import InterfaceUnavailable, ProtocolError, XenStoreError
from xengrant.peer import shown_path
from xengrant.xenstore import Permission

if TYPE_CHECKING:
    from xengrant.xenstore import AsyncTransaction, AsyncXenStore, Transaction, XenStore

__all__ = [
    "Keys",
    "hide",
    "key_path",
    "publish",
    "publish_async",
    "published",
    "published_async",
    "withdraw",
    "withdraw_async",
]

# No transaction, or not this one: too many are open, memory is short, or others came between each time.
_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EAGAIN}


class Keys(NamedTuple):
    """What the client has to know: the ref of the shared page, and the port that the server offers."""

    ring_ref: int
    event_channel: int


def key_path(server: int, client: int, path: str) -> str:
    """The absolute path of a vchan between two domains.

    `path` as libxenvchan takes it, absolute or relative to the server's own directory, or a bare name below
    ``data/vchan/CLIENT``, where programs meet by convention. `ValueError` for an empty one.
    """
    if not checked_text("path", path).strip("/"):
        raise ValueError(f"{path!r} is no path: give an absolute xenstore path, or a name of letters, digits, - and _")
    return shown_path(server, path.rstrip("/") if "/" in path else f"data/vchan/{client}/{path}")


def publish(store: XenStore, path: str, server: int, client: int, keys: Keys) -> None:
    """Show the client the keys; whatever another server left there is replaced."""

    def write(transaction: Transaction) -> None:
        for name, value in _nodes(path, keys):
            transaction.write(name, value)
            transaction.set_permissions(name, _permissions(server, client))

    store.run_transaction(write)


async def publish_async(store: AsyncXenStore, path: str, server: int, client: int, keys: Keys) -> None:
    """As `publish`."""

    async def write(transaction: AsyncTransaction) -> None:
        for name, value in _nodes(path, keys):
            await transaction.write(name, value)
            await transaction.set_permissions(name, _permissions(server, client))

    await store.run_transaction(write)


def hide(store: XenStore, path: str, keys: Keys) -> None:
    """Remove what a client cannot do without, if it still stands there; `withdraw` removes the rest."""

    def change(nodes: XenStore | Transaction) -> None:
        if _read(nodes, f"{path}/event-channel") == b"%d" % keys.event_channel:
            nodes.rm(f"{path}/event-channel")

    _change_at_once(store, change)


def withdraw(store: XenStore, path: str, keys: Keys) -> None:
    """Remove the path, if these keys still stand there, hidden or not."""

    def change(nodes: XenStore | Transaction) -> None:
        event_channel = _read(nodes, f"{path}/event-channel")
        hidden = event_channel is None and _read(nodes, f"{path}/ring-ref") == b"%d" % keys.ring_ref
        if hidden or event_channel == b"%d" % keys.event_channel:
            nodes.rm(path)

    try:
        _change_at_once(store, change)
    except InterfaceUnavailable:
        pass  # an embedded machine's end took them along
    except XenStoreError as error:
        if error.errno != errno.ENOENT:
            raise


async def withdraw_async(store: AsyncXenStore, path: str, keys: Keys) -> None:
    """As `withdraw`."""

    async def change(nodes: AsyncXenStore | AsyncTransaction) -> None:
        event_channel = await _read_async(nodes, f"{path}/event-channel")
        hidden = event_channel is None and await _read_async(nodes, f"{path}/ring-ref") == b"%d" % keys.ring_ref
        if hidden or event_channel == b"%d" % keys.event_channel:
            await nodes.rm(path)

    try:
        try:
            await store.run_transaction(change)
        except XenStoreError as error:
            _check_refused(error)
            await change(store)
    except InterfaceUnavailable:
        pass
    except XenStoreError as error:
        if error.errno != errno.ENOENT:
            raise


def published(store: XenStore, path: str) -> Keys | None:
    """The keys that stand there; None while there are none, or none for us. `ProtocolError` for what is no number."""
    ring_ref, event_channel = f"{path}/ring-ref", f"{path}/event-channel"
    try:
        before = store.read(event_channel)
        keys = _parse(path, store.read(ring_ref), before)
        return keys if store.read(event_channel) == before else None  # else others came between, and an event tells
    except XenStoreError as error:
        _check_not_there(error)
        return None


async def published_async(store: AsyncXenStore, path: str) -> Keys | None:
    """As `published`."""
    ring_ref, event_channel = f"{path}/ring-ref", f"{path}/event-channel"
    try:
        before = await store.read(event_channel)
        keys = _parse(path, await store.read(ring_ref), before)
        return keys if await store.read(event_channel) == before else None
    except XenStoreError as error:
        _check_not_there(error)
        return None


def _change_at_once(store: XenStore, change: Callable[[XenStore | Transaction], None]) -> None:
    """In a transaction, so that another server's keys do not come between; where none is to be had, without."""
    try:
        store.run_transaction(change)
    except XenStoreError as error:
        _check_refused(error)
        change(store)  # keys that stay are worse


def _check_refused(error: XenStoreError) -> None:
    if error.errno not in _REFUSED:
        raise error


def _read(nodes: XenStore | Transaction, path: str) -> bytes | None:
    """None where there is none; nor is what we may not read ours."""
    try:
        return nodes.read(path)
    except XenStoreError as error:
        _check_not_there(error)
        return None


async def _read_async(nodes: AsyncXenStore | AsyncTransaction, path: str) -> bytes | None:
    try:
        return await nodes.read(path)
    except XenStoreError as error:
        _check_not_there(error)
        return None


def _nodes(path: str, keys: Keys) -> list[tuple[str, str]]:
    return [(f"{path}/ring-ref", str(keys.ring_ref)), (f"{path}/event-channel", str(keys.event_channel))]


def _permissions(server: int, client: int) -> list[Permission]:
    return [Permission(server, "n"), Permission(client, "r")]


def _check_not_there(error: XenStoreError) -> None:
    if error.errno not in (errno.ENOENT, errno.EACCES):
        raise error


def _parse(path: str, ring_ref: bytes, event_channel: bytes) -> Keys:
    numbers = []
    for name, text in (("ring-ref", ring_ref), ("event-channel", event_channel)):
        # libxenvchan writes them with %d: a ref of 2**31 and more has a sign.
        if not re.fullmatch(rb"-?[0-9]{1,10}", text) or not -(1 << 31) <= int(text) <= MAX_U32:
            raise ProtocolError(f"{path}/{name} is {text[:32]!r}, which is no number of 32 bits")
        numbers.append(int(text) & MAX_U32)
    return Keys(*numbers)
