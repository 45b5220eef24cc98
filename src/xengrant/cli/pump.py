"""Bytes between a vchan and two local ends, both ways at once: what `cat` and `proxy` have in common.

A vchan has no half-close. When the local source ends, the peer is not told: either the vchan goes on one way until
the peer closes, or (`ends`) it is closed once the peer has read everything. Not sooner, since Xen's vchan-socket-proxy
drops what it has not read when it sees its peer close.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from xengrant import vchan
from xengrant.cli.hold import deferred
from xengrant.errors import InterfaceClosed, PeerClosed

if TYPE_CHECKING:
    from xengrant.domain import Domain
    from xengrant.vchan import Vchan

__all__ = ["Pump", "client_of", "served"]

_CHUNK = 65536
_PATIENCE = 1.0  # seconds for a feeder that reads what somebody else has read from the same source meanwhile


class Pump:
    """The traffic of one vchan: from the descriptor `source` into it, and out of it into `sink`.

    `run` is for the main thread: a signal that raises there ends everything. `sent` and `received` count bytes of the
    vchan; `lost` says that the peer closed before it had read all that was for it. `moved` is told of each piece: how
    many bytes were sent, and how many received.
    """

    def __init__(
        self,
        channel: Vchan,
        source: int,
        sink: Callable[[bytes], None],
        *,
        ends: bool,
        moved: Callable[[int, int], object] = lambda sent, received: None,
    ) -> None:
        self.sent = 0
        self.received = 0
        self.lost = False
        self.seconds = 0.0
        self._channel = channel
        self._source = source
        self._sink = sink
        self._ends = ends
        self._moved = moved
        self._stopped = False
        self._failure: Exception | None = None
        self._arrived = threading.Condition()

    def run(self) -> None:
        """Go on until the peer has closed and all that it wrote is in the sink, or the source ended and `ends`.

        The vchan is closed then. Raises what the vchan, the sink or reading the source raised.
        """
        started = time.monotonic()
        self._stopper = os.eventfd(0, os.EFD_CLOEXEC)
        feeder = threading.Thread(target=self._feed, name="feeder", daemon=True)
        try:
            feeder.start()
            with contextlib.suppress(InterfaceClosed):  # the feeder was through
                while data := self._channel.read(_CHUNK):
                    self._count(len(data))
                    self._sink(data)
                    self._moved(0, len(data))
                if self._channel.buffer_space() < self._channel.write_size:
                    self.lost = True  # never False: the feeder may know better
        finally:
            with deferred():
                self._stopped = True
                os.eventfd_write(self._stopper, 1)
                self._count(0)
                self._channel.close()
                feeder.join(_PATIENCE)
                if not feeder.is_alive():
                    os.close(self._stopper)
            self.seconds = time.monotonic() - started
        if self._failure is not None:
            raise self._failure

    def _feed(self) -> None:
        try:
            while data := self._next():
                try:
                    self._channel.write(data)
                except InterfaceClosed:
                    self.lost = True  # `run` saw the peer's end first, and this was still for it
                    return
                self.sent += len(data)
                self._moved(len(data), 0)
            if self._ends and not self._stopped:
                self._channel.wait_drained()
                self._let_arrive()
                self._channel.close()
        except InterfaceClosed:
            pass
        except PeerClosed:
            self.lost = True  # `run` reads what the peer left, and then sees it
        except Exception as failure:
            self._failure = failure
            self._channel.close()

    def _next(self) -> bytes:
        """What the source has next; b"" at its end and ours."""
        poller = select.poll()
        poller.register(self._source, select.POLLIN)
        poller.register(self._stopper, select.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._stopper in ready:
                return b""
            try:
                return os.read(self._source, _CHUNK)
            except BlockingIOError:
                continue
            except ConnectionResetError:  # a socket's other side has gone, and nothing more will come
                return b""
            except OSError as error:
                raise OSError(error.errno, f"cannot read the input: {error.strerror}") from error

    def _let_arrive(self) -> None:
        """Wait until `run` has taken what is in the ring now; a peer that goes on writing does not prolong that."""
        # A chunk may be in run's hands and not be counted yet: so twice the ring is surely all.
        enough = self.received + 2 * self._channel.read_size
        with self._arrived:
            self._arrived.wait_for(
                lambda: self._stopped or self._channel.data_ready() == 0 or self.received >= enough,
            )

    def _count(self, received: int) -> None:
        with self._arrived:
            self.received += received
            self._arrived.notify()


@contextlib.contextmanager
def served(args: argparse.Namespace, domain: Domain, domid: int, path: str) -> Iterator[Vchan]:
    """A vchan served for one client, which does not stay behind in xenstore whenever a signal comes."""
    sizes = {name: getattr(args, name) for name in ("read_size", "write_size") if getattr(args, name) is not None}
    channel = None
    try:
        with deferred():
            channel = vchan.serve(domid, path, domain=domain, **sizes)
        yield channel
    finally:
        if channel is not None:
            with deferred():
                channel.close()


def client_of(channel: Vchan, timeout: float | None) -> None:
    """Wait for the client, and see to it that it is the only one; `TimeoutError`."""
    channel.wait_connected(timeout)
    channel.hide()
