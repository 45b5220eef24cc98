"""Connections to the machine's xenstore: /dev/xen/xenbus of a domain, and Xen's own tools as dom0 (XENSTORED_PATH).

Ties a `Stream` to `xenstored.XenStored`, which knows nothing of sockets.
"""

from __future__ import annotations

import asyncio
import logging

from xengrant.embedded.stream import Stream
from xengrant.embedded.xenstored import ProtocolViolation, XenStored

_log = logging.getLogger("xengrant.embedded")

# A client that lets so many bytes of answers and events lie is dropped.
_MAX_PENDING = 4 << 20


class Xenbus:
    """One connection to xenstore, as domain `domid`. Called with what arrives; with nothing when the client is gone."""

    def __init__(self, loop: asyncio.AbstractEventLoop, store: XenStored, domid: int, stream: Stream) -> None:
        self._loop = loop
        self._stream = stream
        self._domid = domid
        self._connection = store.connect(domid, self._send)

    def __call__(self, data: bytes) -> None:
        if not data:
            self._connection.close()
            return
        try:
            self._connection.feed(data)
        except ProtocolViolation as error:
            _log.info("xenstore connection of domain %d dropped: %s", self._domid, error)
            self._stream.close()
        except Exception:
            _log.exception("xenstore connection of domain %d dropped: xenstored failed", self._domid)
            self._stream.close()

    def _send(self, data: bytes) -> None:
        """Never closes at once: xenstored may be in the middle of telling others."""
        self._stream.send(data)
        if self._stream.pending > _MAX_PENDING:
            self._loop.call_soon(self._stream.close)
