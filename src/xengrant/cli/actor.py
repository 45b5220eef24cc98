"""One domain of `xengrant demo`: a process that does what the demo asks, and answers with what it saw.

``python -m xengrant.cli.actor URL`` reads requests from stdin, one line of JSON each, and writes an answer for each on
stdout. It uses the library as any program would. The end of stdin ends it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any

import xengrant

__all__ = ["Actor"]


class Actor:
    """What one domain holds during the demo; its public methods are the requests."""

    def __init__(self, domain: xengrant.Domain, held: contextlib.ExitStack) -> None:
        self._domain = domain
        self._gntshr = held.enter_context(domain.gntshr())
        self._gnttab = held.enter_context(domain.gnttab())
        self._evtchn = held.enter_context(domain.evtchn())
        self._held = held
        self._pages: dict[str, xengrant.Share | xengrant.Mapped] = {}
        self._port: xengrant.Port | None = None

    def whoami(self) -> int:
        return self._domain.domid

    def share(self, name: str, to: int, pages: int, writable: bool) -> list[int]:
        share = self._held.enter_context(self._gntshr.share_pages(to, pages, writable=writable))
        self._pages[name] = share
        return list(share.refs)

    def advertise(self, name: str, path: str) -> None:
        share = self._pages[name]
        assert isinstance(share, xengrant.Share)
        self._domain.advertise(share, path)

    def find(self, domid: int, path: str, timeout: float) -> list[int]:
        return [grant.ref for grant in self._domain.find(domid, path, timeout)]

    def map(self, name: str, domid: int, refs: list[int], writable: bool) -> int:
        grants = [xengrant.Grant(domid, ref) for ref in refs]
        mapped = self._held.enter_context(self._gnttab.map(grants, writable=writable))
        self._pages[name] = mapped
        return len(mapped.mapping)

    def read(self, name: str, at: int, length: int) -> str:
        return self._pages[name].mapping[at : at + length].decode("latin-1")

    def write(self, name: str, at: int, text: str) -> None:
        self._pages[name].mapping[at : at + len(text)] = text.encode("latin-1")

    def close(self, name: str) -> None:
        self._pages.pop(name).close()

    def offer_port(self, to: int) -> int:
        self._port = self._held.enter_context(self._evtchn.bind_unbound(to))
        return self._port.number

    def bind_port(self, domid: int, remote_port: int) -> int:
        """Bind, and take the event that Xen makes pending at once: each later one was really sent."""
        self._port = self._held.enter_context(self._evtchn.bind_interdomain(domid, remote_port))
        self._port.wait(timeout=5)
        return self._port.number

    def notify(self) -> int:
        """The time of the notification, in ns of the clock that all processes share."""
        assert self._port is not None
        sent = time.monotonic_ns()
        self._port.notify()
        return sent

    def wait(self) -> int:
        """The time at which the event was here."""
        assert self._port is not None
        self._port.wait(timeout=5)
        return time.monotonic_ns()


def answer(actor: Actor, request: dict[str, Any]) -> dict[str, Any]:
    """Do one request. A refusal is an answer too."""
    started = time.perf_counter()
    try:
        result = getattr(actor, request.pop("do"))(**request)
    except (xengrant.GrantError, OSError, TypeError, ValueError) as error:
        return {
            "error": type(error).__name__,
            "text": getattr(error, "strerror", None) or str(error),
            "statuses": list(getattr(error, "statuses", ())),
        }
    return {"result": result, "seconds": time.perf_counter() - started}


def main() -> None:
    with contextlib.ExitStack() as held, xengrant.connect(sys.argv[1]) as domain:
        actor = Actor(domain, held.enter_context(contextlib.ExitStack()))
        for line in sys.stdin:
            print(json.dumps(answer(actor, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
