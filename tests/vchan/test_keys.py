"""Keys that others replace while they are read or withdrawn."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

import pytest

import xengrant
from xengrant import InterfaceUnavailable, XenStoreError, vchan
from xengrant.vchan.keys import Keys, hide, publish, published, published_async, withdraw, withdraw_async
from xengrant.xenstore import AsyncXenStore, XenStore

from .ends import run

PATH = "/local/domain/1/data/vchan/2/keys"
OLD, NEW = Keys(8, 5), Keys(9, 6)

Undo = Callable[[XenStore, str, Keys], None]


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


class Between:
    """A store, or a transaction of it, in which something happens once before what was looked at is removed."""

    def __init__(self, nodes: Any, happens: list[Callable[[], None]]) -> None:
        self._nodes = nodes
        self._happens = happens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._nodes, name)

    def rm(self, path: str) -> Any:
        while self._happens:
            self._happens.pop()()
        return self._nodes.rm(path)

    def run_transaction(self, function: Callable[[Any], Any]) -> Any:
        return self._nodes.run_transaction(lambda transaction: function(Between(transaction, self._happens)))


class Refusing:
    """A store that runs no transaction."""

    def __init__(self, store: Any, number: int = 0) -> None:
        self._store = store
        self._number = number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def run_transaction(self, function: object) -> None:
        raise XenStoreError(self._number, "refused", path=None)


class RefusingAsync(Refusing):
    """As `Refusing`."""

    async def run_transaction(self, function: object) -> None:  # type: ignore[override]
        super().run_transaction(function)


def in_asyncio(domain: xengrant.Domain, wrapped: Callable[[AsyncXenStore], Any], keys: Keys) -> None:
    """`withdraw_async` by a store of its own."""

    async def main() -> None:
        async with domain.aio.xenstore() as store:
            await withdraw_async(wrapped(store), PATH, keys)

    run(main())


@pytest.mark.parametrize("undo", [hide, withdraw])
def test_keys_that_come_between_stay(undo: Undo, granter: xengrant.Domain) -> None:
    with granter.xenstore() as store, granter.xenstore() as other:
        publish(store, PATH, 1, 2, OLD)
        undo(cast("XenStore", Between(store, [lambda: publish(other, PATH, 1, 2, NEW)])), PATH, OLD)
        assert published(store, PATH) == NEW


def test_keys_that_come_between_stay_for_asyncio(granter: xengrant.Domain) -> None:
    with granter.xenstore() as other:
        publish(other, PATH, 1, 2, OLD)
        in_asyncio(granter, lambda store: Between(store, [lambda: publish(other, PATH, 1, 2, NEW)]), OLD)
        assert published(other, PATH) == NEW


def test_keys_that_come_in_place_of_hidden_ones_stay(granter: xengrant.Domain) -> None:
    with granter.xenstore() as store, granter.xenstore() as other:
        publish(store, PATH, 1, 2, OLD)
        hide(store, PATH, OLD)
        withdraw(cast("XenStore", Between(store, [lambda: publish(other, PATH, 1, 2, NEW)])), PATH, OLD)
        assert published(store, PATH) == NEW


def test_hidden_keys_are_withdrawn_for_asyncio_too_and_anothers_are_not(granter: xengrant.Domain) -> None:
    with granter.xenstore() as store:
        publish(store, PATH, 1, 2, OLD)
        hide(store, PATH, OLD)
        in_asyncio(granter, lambda store: store, Keys(NEW.ring_ref, OLD.event_channel))
        assert store.exists(PATH)
        in_asyncio(granter, lambda store: store, OLD)
        assert not store.exists(PATH)
        publish(store, PATH, 1, 2, NEW)
        in_asyncio(granter, lambda store: store, Keys(NEW.ring_ref, OLD.event_channel))
        assert published(store, PATH) == NEW
        in_asyncio(granter, lambda store: store, NEW)
        assert not store.exists(PATH)
        in_asyncio(granter, lambda store: store, NEW)


def test_a_path_that_is_gone_has_no_keys_to_take_back(granter: xengrant.Domain) -> None:
    with granter.xenstore() as store:
        hide(store, PATH, OLD)
        withdraw(store, PATH, OLD)
        assert not store.exists(PATH)


def test_what_we_may_not_read_is_not_ours_to_take_back(granter: xengrant.Domain) -> None:
    path = "/local/domain/2/data/keys"
    with granter.xenstore() as store:
        hide(store, path, OLD)
        withdraw(store, path, OLD)

    async def main() -> None:
        async with granter.aio.xenstore() as store:
            await withdraw_async(store, path, OLD)

    run(main())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EAGAIN])
def test_keys_are_taken_back_without_a_transaction_where_there_is_none(number: int, granter: xengrant.Domain) -> None:
    with granter.xenstore() as store:
        refusing = cast("XenStore", Refusing(store, number))
        publish(store, PATH, 1, 2, OLD)
        hide(refusing, PATH, NEW)
        withdraw(refusing, PATH, NEW)
        assert published(store, PATH) == OLD
        hide(refusing, PATH, OLD)
        assert store.directory(PATH) == ["ring-ref"]
        withdraw(refusing, PATH, OLD)
        assert not store.exists(PATH)
        publish(store, PATH, 1, 2, OLD)
        in_asyncio(granter, lambda store: RefusingAsync(store, number), OLD)
        assert not store.exists(PATH)


def test_what_goes_meanwhile_with_all_above_it_is_gone(granter: xengrant.Domain) -> None:
    with granter.xenstore() as store, granter.xenstore() as other:
        gone = [lambda: other.rm("/local/domain/1/data/vchan")]
        publish(store, PATH, 1, 2, OLD)
        withdraw(cast("XenStore", Between(Refusing(store, errno.ENOSPC), [*gone])), PATH, OLD)
        publish(store, PATH, 1, 2, OLD)
        in_asyncio(granter, lambda store: Between(RefusingAsync(store, errno.ENOSPC), gone), OLD)
        assert not gone
        assert not store.exists("/local/domain/1/data/vchan")


def test_a_server_closes_though_all_transactions_are_taken(granter: xengrant.Domain) -> None:
    with ExitStack() as held:
        store = held.enter_context(granter.xenstore())
        with vchan.serve(2, "keys", domain=granter):
            for _ in range(11):  # the quota is 10, and xenstored looks before it counts
                held.enter_context(store.transaction())
            with pytest.raises(XenStoreError, match="as many xenstore transactions open as it may"):
                store.transaction()
        assert not store.exists(PATH)


def test_keys_went_with_their_machine(granter: xengrant.Domain) -> None:
    class Gone(Refusing):
        def run_transaction(self, function: object) -> None:
            raise InterfaceUnavailable(errno.EPIPE, "the machine is gone")

    class GoneAsync(Gone):
        async def run_transaction(self, function: object) -> None:  # type: ignore[override]
            super().run_transaction(function)

    with granter.xenstore() as store:
        withdraw(cast("XenStore", Gone(store)), PATH, OLD)
        in_asyncio(granter, GoneAsync, OLD)


def test_what_else_goes_wrong_is_raised(granter: xengrant.Domain) -> None:
    with granter.xenstore() as store:
        refusing = cast("XenStore", Refusing(store, errno.EIO))
        publish(store, PATH, 1, 2, OLD)
        for undo in (hide, withdraw):
            with pytest.raises(XenStoreError, match="refused"):
                undo(refusing, PATH, OLD)
        with pytest.raises(XenStoreError, match="refused"):
            in_asyncio(granter, lambda store: RefusingAsync(store, errno.EIO), OLD)
        withdraw(store, PATH, OLD)
