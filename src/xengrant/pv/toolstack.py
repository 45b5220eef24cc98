"""The toolstack's part of a device: making its nodes, unplugging it and removing them, as xl does.

Called in dom0, or by each of two guests for its own half. Calls xenstore.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from xengrant.abi.xenbus import XenbusState
from xengrant.arguments import checked_domid
from xengrant.errors import ProtocolError, XenStoreError
from xengrant.pv.device import remove_nodes
from xengrant.pv.nodes import Nodes, Value, write_nodes
from xengrant.xenstore import Permission

if TYPE_CHECKING:
    from xengrant.xenstore import AsyncTransaction, AsyncXenStore

__all__ = ["Slot", "back_directory", "create", "is_unplugged", "remove", "unplug"]

Halves = Literal["both", "front", "back"]


def back_directory(domid: int, name: str, within: str = "") -> str:
    """Where domain `domid` has its back ends of a kind."""
    return f"/local/domain/{domid}/{f'{within}/' if within else ''}backend/{name}"


@dataclass(frozen=True)
class Slot:
    """Where a device's nodes are: `front` and `back` are domids, `handle` its name among its kind, such as 51712.

    `back_name` is the back end's directory where it is not the kind: where the kernel's own driver claims that, or a
    program of its own is to serve it. With `within`, such as ``"data"``, both ends' nodes lie below that part of their
    domain's directory: where two guests make a device without a toolstack, each its own half.
    """

    kind: str
    handle: str | int
    front: int
    back: int = 0
    back_name: str | None = None
    within: str = ""

    def __post_init__(self) -> None:
        checked_domid(self.front)
        checked_domid(self.back)

    @property
    def front_path(self) -> str:
        """Where the front end's nodes are, absolute: ``/local/domain/FRONT/device/KIND/HANDLE``."""
        return f"{self._front_top}/device/{self.kind}/{self.handle}"

    @property
    def back_path(self) -> str:
        """Where the back end's nodes are, absolute: ``/local/domain/BACK/backend/KIND/FRONT/HANDLE``."""
        return f"{back_directory(self.back, self.back_name or self.kind, self.within)}/{self.front}/{self.handle}"

    @property
    def _front_top(self) -> str:
        return f"/local/domain/{self.front}{f'/{self.within}' if self.within else ''}"

    def _halves(self, halves: Halves) -> list[tuple[str, str]]:
        """(path, the node above it that stays) of each half."""
        front = self.front_path, f"{self._front_top}/device"
        back = self.back_path, back_directory(self.back, self.back_name or self.kind, self.within)
        return {"both": [front, back], "front": [front], "back": [back]}[halves]


async def create(
    store: AsyncXenStore,
    slot: Slot,
    *,
    front_nodes: Mapping[str, Value] | None = None,
    back_nodes: Mapping[str, Value] | None = None,
    halves: Halves = "both",
) -> None:
    """Make the device's nodes in one transaction: each end INITIALISING, online, readable by the other end.

    `front_nodes` and `back_nodes` are the kind's own. Where nodes of an earlier device are left, this is
    `XenStoreError` with EEXIST: `remove` them, and wait until both ends have noticed.
    """
    nodes: dict[str, tuple[list[Permission], dict[str, Value]]] = {
        slot.front_path: (
            [Permission(slot.front, "n"), Permission(slot.back, "r")],
            {"backend": slot.back_path, "backend-id": slot.back, **(front_nodes or {})},
        ),
        slot.back_path: (
            [Permission(slot.back, "n"), Permission(slot.front, "r")],
            {"frontend": slot.front_path, "frontend-id": slot.front, "online": 1, **(back_nodes or {})},
        ),
    }

    async def change(transaction: AsyncTransaction) -> None:
        for path, _ in slot._halves(halves):
            if await transaction.exists(path):
                raise XenStoreError(errno.EEXIST, f"there is a device at {path}: unplug it first", path=path)
            permissions, values = nodes[path]
            await transaction.mkdir(path)
            await transaction.set_permissions(path, permissions)  # what is made below it inherits them
            await write_nodes(transaction, path, {**values, "state": XenbusState.INITIALISING})

    await store.run_transaction(change)


async def unplug(store: AsyncXenStore, slot: Slot, *, timeout: float | None = 10.0) -> None:
    """Have both ends close the device, then remove its nodes.

    Linux' blkfront does not refuse, whatever is mounted. Raises `TimeoutError` where the back end has not closed it
    after `timeout` seconds, and then leaves the nodes: call it again, or `remove` them. Nodes that are gone already are
    no error.
    """
    nodes = Nodes(store, slot.back_path)

    async def begin(transaction: AsyncTransaction) -> None:
        state = await _state(Nodes(transaction, slot.back_path))
        if state is XenbusState.UNKNOWN:
            return
        await transaction.write(f"{slot.back_path}/online", "0")
        if state is not XenbusState.CLOSED:
            await transaction.write(f"{slot.back_path}/state", str(int(XenbusState.CLOSING)))

    async with await store.watch(f"{slot.back_path}/state") as watch:
        await store.run_transaction(begin)
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                while await _state(nodes) not in (XenbusState.CLOSED, XenbusState.UNKNOWN):
                    await watch.wait()
        except TimeoutError:
            if not limit.expired():
                raise
            front = await _state(Nodes(store, slot.front_path))
            raise TimeoutError(
                f"the back end has not closed {slot.back_path} in {timeout} seconds: does its program run? The front "
                f"end's state is {'none that there is' if front is None else front.name}"
            ) from None
    await remove(store, slot)


async def is_unplugged(store: AsyncXenStore, slot: Slot) -> bool:
    """Whether `unplug` has begun, and the nodes are there yet."""
    return await store.exists(slot.back_path) and not await Nodes(store, slot.back_path).flag("online")


async def _state(nodes: Nodes) -> XenbusState | None:
    """None where an end wrote what is no state."""
    try:
        return await nodes.state()
    except ProtocolError:
        return None


async def remove(store: AsyncXenStore, slot: Slot, *, halves: Halves = "both") -> None:
    """Remove the device's nodes, asking nobody: what ends still use stops. Nodes that are gone already are no error."""

    async def change(transaction: AsyncTransaction) -> None:
        for path, top in slot._halves(halves):
            await remove_nodes(transaction, path, top)

    try:
        await store.run_transaction(change)
    except XenStoreError as error:
        if error.errno != errno.EAGAIN:
            raise
        # An end that writes its nodes without a pause is in the way of any transaction, and of no single request.
        for path, _ in slot._halves(halves):
            with contextlib.suppress(XenStoreError):
                await store.rm(path)
        await store.run_transaction(change)
