"""Serving metrics on 127.0.0.1 through prometheus-client, which `metrics` imports this module only to use."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from xengrant.cli import output
from xengrant.cli.metrics import Family, families
from xengrant.errors import GrantError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from xengrant.cli.survey import DomainGrants

__all__ = ["serving"]

_ADDRESS = "127.0.0.1"
# Of a client that says nothing, or takes nothing.
_SECONDS = 60
_MAX_CLIENTS = 32
# Where no descriptor is left, clients wait so many seconds for one to come free.
_ACCEPT_PAUSE = 0.1
_OWN_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]*)?", re.IGNORECASE)


@contextlib.contextmanager
def serving(look: Callable[[], list[DomainGrants]], port: int) -> Iterator[str]:
    """Serve what `look` finds at each scrape, one at a time, for as long as the block runs; the URL.

    `OSError` where the port is taken.
    """
    registry = CollectorRegistry()
    registry.register(_Fresh(look))
    if not 0 <= port < 1 << 16:
        raise ValueError(f"port {port} is outside 0..65535")
    try:
        server = make_server(_ADDRESS, port, _guarded(make_wsgi_app(registry)), _Server, _Handler)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{_ADDRESS}:{port}") from None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True)
    thread.start()
    try:
        yield f"http://{_ADDRESS}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Fresh(Collector):
    """The figures of the moment in which they are collected."""

    def __init__(self, look: Callable[[], list[DomainGrants]]) -> None:
        self._look = look
        self._lock = threading.Lock()

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The names, which are known without a look."""
        return map(_gauge, families(()))

    def collect(self) -> Iterator[GaugeMetricFamily]:
        with self._lock:
            looked = self._look()
        return map(_gauge, families(looked))


def _gauge(family: Family) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(family.name, family.help, labels=family.labels)
    for labels, value in family.samples:
        gauge.add_metric(labels, value)
    return gauge


def _guarded(app: WSGIApplication) -> WSGIApplication:
    """`app` at /metrics only; where it cannot look, 503 and why.

    A page of any site may have its own name resolve to 127.0.0.1 and so be let read the answer by the browser: the Host
    that the browser then sends is the site's.
    """

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not _OWN_HOST.fullmatch(environ.get("HTTP_HOST", _ADDRESS)):
            return _say(start_response, "403 Forbidden", "the Host must be 127.0.0.1, localhost or [::1]")
        if environ["PATH_INFO"] != "/metrics":
            return _say(start_response, "404 Not Found", "the metrics are at /metrics")
        try:
            return app(environ, start_response)
        except (GrantError, OSError, ValueError) as error:
            text = getattr(error, "strerror", None) or str(error)
            output.say(f"xengrant: {text}")
            return _say(start_response, "503 Service Unavailable", text)

    return guarded


def _say(start_response: StartResponse, status: str, text: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{text}\n".encode(errors="backslashreplace")]


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each scrape, so that a client that stops halfway keeps no other from its figures.

    Clients beyond `_MAX_CLIENTS` are hung up on.
    """

    daemon_threads = True
    request_queue_size = _MAX_CLIENTS

    def __init__(self, *args: Any) -> None:
        self._places = threading.BoundedSemaphore(_MAX_CLIENTS)
        super().__init__(*args)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            # The client is still there to be accepted, so the loop would come back at once.
            time.sleep(_ACCEPT_PAUSE)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Handler(WSGIRequestHandler):
    timeout = _SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are no news."""
