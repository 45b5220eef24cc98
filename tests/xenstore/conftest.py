from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from xengrant.errors import XenStoreError
from xengrant.xenstore import XenStore

from .store_server import SocketDevice, StoreServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StoreServer]:
    """A xenstored with dom0 and the guests 1 and 2."""
    server = StoreServer(tmp_path / "xenstored")
    server.call(lambda: server.store.introduce(1, "one"))
    server.call(lambda: server.store.introduce(2, "two"))
    yield server
    server.close()


@pytest.fixture
def open_store(server: StoreServer) -> Iterator[Callable[[int], XenStore]]:
    """Opens a blocking connection of a domain; closed after the test."""
    with ExitStack() as stack:
        yield lambda domid: stack.enter_context(XenStore(server.device(domid)))


@pytest.fixture
def dom0(open_store: Callable[[int], XenStore]) -> XenStore:
    return open_store(0)


@pytest.fixture
def guest(open_store: Callable[[int], XenStore]) -> XenStore:
    """Domain 1's."""
    return open_store(1)


@pytest.fixture
def pair() -> Iterator[tuple[SocketDevice, socket.socket]]:
    """A device, and the other end, where nobody answers."""
    ours, theirs = socket.socketpair()
    device = SocketDevice(ours)
    yield device, theirs
    device.close()
    theirs.close()


@contextmanager
def refused(number: int, says: str) -> Iterator[None]:
    with pytest.raises(XenStoreError, match=says) as caught:
        yield
    assert caught.value.errno == number
