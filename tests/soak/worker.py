"""A process of a domain in the soak: `python -m tests.soak.worker URL DOMID KIND[+KIND...] NUMBER SEED PEERS`.

The soak's processes have one kind of work each, those of lab/jobs/soak.py all, since there a process costs seconds.
It reads commands from stdin: `stop`, after which it begins no session and says when all that it began are over, then
`finish`, after which it says what it has more of than when it began, and ends. What it says is a line of JSON each:
that it has begun, counts every half a second, sessions that broke, what failed, and that its domain is gone.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import select
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import xengrant
from tests.soak import grants, store, streams
from tests.soak.links import LONG, Link, Setting
from tests.soak.machine import resident_kib

__all__ = ["KINDS"]

_NODES = {"grants": "data/soak/grants", "streams": "data/vchan", "store": store.HOME}
KINDS = tuple(_NODES)
_EVERY = 0.5  # seconds


class Worker:
    def __init__(self, url: str, domid: int, kinds: list[str], number: int, seed: str, peers: list[int]) -> None:
        self._lock = threading.Lock()
        self._lost = self._failed = False
        self._domain = xengrant.connect(url)
        self._kinds = kinds
        assert self._domain.domid == domid  # which opens the domain's own connection to xenstore
        self._remove_nodes()  # what a process of this domain left that was killed
        self._stopping, self._finishing = threading.Event(), threading.Event()
        look = 0.5 if url.startswith("embedded:") else 8.0  # real Xen, under emulation, takes seconds
        setting = Setting(self._domain, domid, number, seed, self._report, self._stopping, self._finishing, look)
        self._links: list[Link] = []
        for kind in kinds:
            if kind == "store":
                self._links.append(store.Bank(setting, peers))
            else:
                sides = grants.SIDES if kind == "grants" else streams.SIDES
                self._links += [side(setting, peer) for peer in peers for side in sides]
        self._at_start = _held()

    def run(self) -> int:
        self._say(ready=True)
        for link in self._links:
            link.start()
        commands = _Commands()
        is_idle = False
        while not (self._finishing.is_set() or self._lost or self._failed):
            command = commands.next(_EVERY)
            if command == "":
                return 1  # the soak is gone
            self._say(counts=self._counts())
            if command == "stop":
                self._stopping.set()
            elif command == "finish":
                self._finishing.set()
            began = [link for link in self._links if not link.answers]
            if self._stopping.is_set() and not is_idle and not any(link.is_alive() for link in began):
                is_idle = True
                self._say(idle=True)
        self._stopping.set()
        self._finishing.set()
        for link in self._links:
            link.join(LONG)
            if link.is_alive():
                self._report(failed=f"{link.name} does not end")
                faulthandler.dump_traceback()
                return 1
        self._say(counts=self._counts())
        if self._lost or self._failed:
            return 3 if self._lost else 1
        self._say(left=self._left())
        self._remove_nodes()
        self._domain.close()
        return 0

    def _remove_nodes(self) -> None:
        with self._domain.xenstore() as own:
            for kind in self._kinds:
                with suppress(xengrant.XenStoreError):
                    own.rm(_NODES[kind], timeout=LONG)

    def _left(self) -> dict[str, int]:
        """What this process has more of than when it began; a thread may need a moment to be gone."""
        deadline = time.monotonic() + 5
        while True:
            gc.collect()
            now = _held()
            more = {name: now[name] - before for name, before in self._at_start.items()}
            if not any(count for name, count in more.items() if name != "resident KiB"):
                return more
            if time.monotonic() > deadline:
                return more
            os.sched_yield()

    def _counts(self) -> dict[str, int]:
        total: Counter[str] = Counter()
        for link in self._links:
            total.update(dict(link.counts))
        return dict(total)

    def _report(self, **said: object) -> None:
        self._lost |= "lost" in said
        self._failed |= "failed" in said
        self._say(**said)

    def _say(self, **said: object) -> None:
        with self._lock, suppress(BrokenPipeError):
            os.write(1, json.dumps(said).encode() + b"\n")


class _Commands:
    """Lines of stdin, each waited for."""

    def __init__(self) -> None:
        self._rest = b""

    def next(self, seconds: float) -> str | None:
        """None where there is none in time, "" at the end."""
        if b"\n" not in self._rest:
            if not select.select([0], [], [], seconds)[0]:
                return None
            data = os.read(0, 4096)
            if not data:
                return ""
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()


def _held() -> dict[str, int]:
    maps = Path("/proc/self/maps").read_text()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count() - sum(isinstance(thread, Link) for thread in threading.enumerate()),
        "mappings": maps.count("/memfd:") + maps.count("/dev/xen/"),
        "resident KiB": resident_kib(),
    }


def main() -> None:
    url, domid, kinds, number, seed, peers = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # asked for when it should have ended long ago
    try:
        worker = Worker(url, int(domid), kinds.split("+"), int(number), seed, json.loads(peers))
    except xengrant.InterfaceUnavailable as error:
        print(json.dumps({"lost": str(error)}), flush=True)  # its domain was destroyed already
        sys.exit(3)
    sys.exit(worker.run())


if __name__ == "__main__":
    main()
