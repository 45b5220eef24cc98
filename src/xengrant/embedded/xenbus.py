"""Connections to the machine's xenstore: /dev/xen/xenbus of a domain, and Xen's own tools as dom0 (XENSTORED_PATH).

Ties a `Stream` to `xenstored.XenStored`, which knows nothing of sockets.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from xengrant.embedded.stream import Stream
from xengrant.embedded.xenstored import ProtocolViolation, XenStored

_log = logging.getLogger("xengrant.embedded")


class Xenbus:
    """One connection to xenstore, as domain `domid`."""

    def __init__(
        self, store: XenStored, domid: int, stream: Stream, failure: Callable[[], int] = lambda: 0
    ) -> None:
        self._stream = stream
        self._domid = domid
        self._connection = store.connect(
            domid, stream.send, backlog=lambda: stream.pending, give_way=stream.give_way, failure=failure
        )

    def received(self, data: bytes) -> None:
        self._run(lambda: self._connection.feed(data))

    def drained(self) -> None:
        self._run(self._connection.drained)

    def ended(self) -> None:
        self._connection.close()

    def _run(self, call: Callable[[], None]) -> None:
        try:
            call()
        except ProtocolViolation as error:
            _log.info("xenstore connection of domain %d dropped: %s", self._domid, error)
            self._stream.close()
        except Exception:
            _log.exception("xenstore connection of domain %d dropped: xenstored failed", self._domid)
            self._stream.close()


class XenstoreClient:
    """A connection to the socket of Xen's own tools, as dom0; `ended` is called when it is over."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        store: XenStored,
        ended: Callable[[XenstoreClient], None],
    ) -> None:
        self._ended = ended
        self.stream = Stream(loop, sock, self)
        self._xenbus = Xenbus(store, 0, self.stream)

    def received(self, data: bytes) -> None:
        self._xenbus.received(data)

    def drained(self) -> None:
        self._xenbus.drained()

    def ended(self) -> None:
        self._xenbus.ended()
        self._ended(self)
