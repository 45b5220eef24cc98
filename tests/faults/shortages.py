"""What a domain can be short of: each a block in which domain `VICTIM` has so much `left` of it."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import xengrant
from tests.faults.actors import LONG
from tests.faults.conftest import SURVIVOR, VICTIM, introduce
from xengrant.abi.xen import PAGE_SIZE
from xengrant.embedded import Machine

_DIRECTORIES = 20
_REFS = 512 - 8  # of a table of one frame, without the reserved ones


@contextmanager
def gntalloc_limit(machine: Machine, left: int) -> Iterator[None]:
    machine.configure(VICTIM, gntalloc_limit=left)
    yield
    machine.configure(VICTIM, gntalloc_limit=1024)


@contextmanager
def full_table(machine: Machine, left: int) -> Iterator[None]:
    machine.destroy(VICTIM)
    introduce(machine, VICTIM, max_grant_frames=1)
    with (
        xengrant.connect(machine.url(VICTIM)) as domain,
        domain.gntshr() as gntshr,
        gntshr.share_pages(SURVIVOR, _REFS - left, writable=True),
    ):
        yield


@contextmanager
def no_ports(machine: Machine, left: int) -> Iterator[None]:
    machine.configure(VICTIM, max_event_channels=8)
    with xengrant.connect(machine.url(VICTIM)) as domain, domain.evtchn() as channels:
        ports: list[xengrant.Port] = []
        _take_all(lambda: ports.append(channels.bind_unbound(SURVIVOR)), errno.ENOSPC)
        for port in ports[len(ports) - left :]:
            port.close()
        yield
    machine.configure(VICTIM, max_event_channels=1023)


@contextmanager
def maptrack(machine: Machine, left: int) -> Iterator[None]:
    machine.configure(VICTIM, max_maptrack_frames=left)
    yield
    machine.configure(VICTIM, max_maptrack_frames=1024)


@contextmanager
def gntdev_total(machine: Machine, left: int) -> Iterator[None]:
    machine.configure(VICTIM, gntdev_total=left)
    yield
    machine.configure(VICTIM, gntdev_total=262144)


@contextmanager
def xenstore_nodes(machine: Machine, left: int) -> Iterator[None]:
    with xengrant.connect(machine.url(VICTIM)) as domain, domain.xenstore() as store:
        for directory in range(_DIRECTORIES):  # one alone would be full before the quota of nodes is reached
            store.mkdir(f"data/filler/{directory}")
        places = (f"data/filler/{number % _DIRECTORIES}/{number}" for number in itertools.count())
        _take_all(lambda: store.mkdir(next(places)), errno.ENOSPC)
        for number in range(left):
            store.rm(f"data/filler/{number}/{number}")
        yield
        store.rm("data/filler")


@contextmanager
def xenstore_watches(machine: Machine, left: int) -> Iterator[None]:
    with xengrant.connect(machine.url(VICTIM)) as domain, domain.xenstore() as store, ExitStack() as stack:
        _take_all(lambda: stack.enter_context(store.watch("data/here")), errno.E2BIG)
        yield


@contextmanager
def xenstore_transactions(machine: Machine, left: int) -> Iterator[None]:
    with xengrant.connect(machine.url(VICTIM)) as domain, domain.xenstore() as store, ExitStack() as stack:
        _take_all(lambda: stack.callback(store.transaction().abort), errno.ENOSPC)
        yield


@contextmanager
def short_of_memory(
    url: str, other: int, count: int, refs: list[int] | None
) -> Iterator[Callable[[], tuple[str, int]]]:
    """A process with room for half of `count` pages shares, or maps what `refs` are, and then again with more room.

    What each came to, by the call that is given: what it saw, and errno.
    """
    ours, theirs = multiprocessing.Pipe()
    with ours:
        context = multiprocessing.get_context("forkserver")
        process = context.Process(target=_try_twice, args=(url, other, count, refs, theirs), daemon=True)
        process.start()
        theirs.close()

        def told() -> tuple[str, int]:
            ours.send("go on")
            assert ours.poll(LONG), "it says nothing"
            saw: tuple[str, int] = ours.recv()
            return saw

        yield told
        process.join(LONG)
        assert process.exitcode == 0
        process.close()


def _try_twice(url: str, other: int, count: int, refs: list[int] | None, pipe: Connection) -> None:
    with xengrant.connect(url) as domain, domain.gntshr() as gntshr, domain.gnttab() as gnttab:
        unlimited = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0])
        for limit in ((used + count // 2) * PAGE_SIZE, unlimited[0]):
            pipe.recv()
            resource.setrlimit(resource.RLIMIT_AS, (limit, unlimited[1]))
            try:
                if refs is None:
                    gntshr.share_pages(other, count, writable=True).close()
                else:
                    gnttab.map([(other, ref) for ref in refs], writable=True).close()
            except OSError as error:
                pipe.send((type(error).__name__, error.errno))
            else:
                pipe.send(("all of it", 0))


def _take_all(take: Callable[[], object], number: int) -> None:
    """Take until that is refused with errno `number`."""
    refused = 0
    while not refused:
        try:
            take()
        except OSError as error:
            refused = error.errno or -1
    assert refused == number, errno.errorcode.get(refused)
