"""One of each thing that xengrant opens, with a call in the middle of which forks and ends of a program come: `KINDS`.

Both ends of each are in one program, in domains of one machine. What asyncio has is in `async_things.py`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import xengrant
from xengrant import vchan
from xengrant.gntshr import UnmapNotify
from xengrant.gnttab import CopySegment
from xengrant.meeting import Advertisement

LONG = 30.0  # seconds; nothing comes near it


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < deadline, f"not so in {LONG} seconds: {what}"
        time.sleep(0.001)


def in_a_call(thread: threading.Thread) -> None:
    """Wait until the thread sleeps, in a system call or for another thread."""
    until(lambda: b") S " in Path(f"/proc/self/task/{thread.native_id}/stat").read_bytes(), "the call waits")


class Domains(NamedTuple):
    """Domain 0, and two guests."""

    zero: xengrant.Domain
    one: xengrant.Domain
    two: xengrant.Domain
    url: Callable[..., str]

    @classmethod
    def join(cls, directory: str, held: ExitStack) -> Domains:
        def url(domid: int, rest: str = "") -> str:
            return f"embedded:{directory}?domid={domid}{rest}"

        zero, one, two = (held.enter_context(xengrant.connect(url(domid))) for domid in range(3))
        return cls(zero, one, two, url)


@dataclass
class Thing:
    """What is open, and how it is used."""

    wait: Callable[[], object]
    """Waits, or goes on and on, until `end` is called; then returns."""

    end: Callable[[], object]

    check: Callable[[], object] = lambda: None
    """Raises unless all of it works, and nobody was told of anything."""

    refused: dict[str, Callable[[], object]] = field(default_factory=dict)
    """Calls that raise an error of xengrant's in a forked child."""

    closed: list[Callable[[], object]] = field(default_factory=list)
    """Calls that do nothing in a forked child."""

    is_ready: threading.Event = field(default_factory=threading.Event)
    """Set where all is open, and what goes on and on has done so once: some are only opened by `wait`."""

    has_loop: bool = False

    is_steady: bool = True
    """Whether nothing comes and goes while it waits."""


def _churning(
    step: Callable[[], object],
    check: Callable[[], object],
    refused: dict[str, Callable[[], object]],
    closed: list[Callable[[], object]],
) -> Thing:
    """Does something again and again: what does not wait for long is interrupted somewhere in it."""
    ended = threading.Event()

    def wait() -> None:
        while not ended.is_set():
            step()
            thing.is_ready.set()

    thing = Thing(wait, ended.set, check, refused, closed, is_steady=False)
    return thing


def _drain(port: xengrant.Port) -> None:
    """Take what is pending: the first event after a bind is nobody's."""
    with contextlib.suppress(TimeoutError):
        while True:
            port.wait(0)


def silent(port: xengrant.Port) -> None:
    with contextlib.suppress(TimeoutError):
        port.wait(0)
        raise AssertionError(f"{port!r} was told of something")


def _write(memory: Any, value: int = 1) -> None:
    memory[0] = value


@contextmanager
def share(there: Domains) -> Iterator[Thing]:
    """A share with a notification, mapped by its peer, while others are shared and closed."""
    with (
        there.two.evtchn() as others,
        others.bind_unbound(1) as other,
        there.one.evtchn() as channels,
        channels.bind_interdomain(2, other.number) as port,
        there.one.gntshr() as gntshr,
        gntshr.share_pages(2, 2, writable=True, notify=UnmapNotify(clear_byte=0, port=port)) as share,
        there.two.gnttab() as gnttab,
        gnttab.map([(1, ref) for ref in share.refs], writable=True) as mapped,
    ):
        _drain(other)
        share.mapping[:5] = b"\x07kept"

        def check() -> None:
            assert mapped.mapping[:5] == share.mapping[:5] == b"\x07kept"
            silent(other)
            gntshr.share_pages(2, writable=False).close()

        yield _churning(
            lambda: gntshr.share_pages(2, writable=True).close(),
            check,
            {
                "share_pages": lambda: gntshr.share_pages(2, writable=True),
                "share_pages with notify": lambda: gntshr.share_pages(2, writable=True, notify=UnmapNotify(0)),
                "load of a Share": lambda: share.mapping[0],
                "store in a Share": lambda: _write(share.mapping),
                "a view of a Share": lambda: memoryview(share.mapping),
                "Gntshr.munmap": lambda: gntshr.munmap(share),
                "Gntshr.fileno": gntshr.fileno,
                "with share": share.__enter__,
            },
            [share.close, gntshr.close, port.close, channels.close],
        )


@contextmanager
def mapped(there: Domains) -> Iterator[Thing]:
    """A map with a notification, while others are mapped, copied and unmapped."""
    with (
        there.one.evtchn() as others,
        others.bind_unbound(2) as other,
        there.two.evtchn() as channels,
        channels.bind_interdomain(1, other.number) as port,
        there.one.gntshr() as gntshr,
        gntshr.share_pages(2, 2, writable=True) as share,
        there.two.gnttab() as gnttab,
        gnttab.map((1, share.refs[0]), writable=True, notify=UnmapNotify(clear_byte=0, port=port)) as mapped,
    ):
        _drain(other)
        share.mapping[:5] = b"\x07kept"
        second = xengrant.Grant(1, share.refs[1])
        copied = bytearray(8)

        def step() -> None:
            with gnttab.map(second, writable=False) as again:
                assert again.mapping[0] == 0
            assert gnttab.copy([CopySegment(second, copied, 8)]) == [0]

        def check() -> None:
            assert mapped.mapping[:5] == share.mapping[:5] == b"\x07kept"
            silent(other)
            step()

        yield _churning(
            step,
            check,
            {
                "map": lambda: gnttab.map(second, writable=False),
                "copy": lambda: gnttab.copy([CopySegment(second, bytearray(8), 8)]),
                "load of a Mapped": lambda: mapped.mapping[0],
                "store in a Mapped": lambda: _write(mapped.mapping),
                "Gnttab.unmap": lambda: gnttab.unmap(mapped),
                "Gnttab.fileno": gnttab.fileno,
            },
            [mapped.close, gnttab.close],
        )


@contextmanager
def port(there: Domains) -> Iterator[Thing]:
    """A port that is waited on."""
    with (
        there.one.evtchn() as others,
        others.bind_unbound(2) as other,
        there.two.evtchn() as channels,
        channels.bind_interdomain(1, other.number) as port,
    ):
        _drain(port)
        _drain(other)

        yield Thing(
            partial(port.wait, LONG),
            other.notify,
            partial(silent, other),
            {
                "Port.wait": lambda: port.wait(0),
                "Port.notify": port.notify,
                "Port.unmask": port.unmask,
                "Port.doorbell": port.doorbell,
                "bind_unbound": lambda: channels.bind_unbound(1),
                "bind_interdomain": lambda: channels.bind_interdomain(1, other.number),
                "EventChannels.fileno": channels.fileno,
            },
            [port.close, channels.close, other.close],
        )


@contextmanager
def following_port(there: Domains) -> Iterator[Thing]:
    """A port that is waited on while another thread, which waits on another one, reads for both."""
    with there.one.evtchn() as others, there.two.evtchn() as channels:
        ports = []
        for _ in range(2):
            other = others.bind_unbound(2)
            ports.append((channels.bind_interdomain(1, other.number), other))
            _drain(ports[-1][0])
        (port, other), (leaders, leaders_other) = ports
        with _at_it(partial(leaders.wait, LONG), leaders_other.notify):
            refused: dict[str, Callable[[], object]] = {"Port.wait": lambda: port.wait(0)}
            yield Thing(partial(port.wait, LONG), other.notify, lambda: None, refused, [port.close, channels.close])


@contextmanager
def _at_it(wait: Callable[[], object], end: Callable[[], object]) -> Iterator[None]:
    """Another thread is in the call, until the block ends, where this is not a child."""
    failures: list[Exception] = []

    def run() -> None:
        try:
            wait()
        except Exception as failure:
            failures.append(failure)

    thread, owner = threading.Thread(target=run, daemon=True), os.getpid()
    thread.start()
    in_a_call(thread)
    yield
    if os.getpid() == owner:
        end()
        thread.join(LONG)
        assert not thread.is_alive(), "the other thread's wait has not ended"
        assert not failures, failures


@contextmanager
def watch(there: Domains) -> Iterator[Thing]:
    """A watch that is waited on, an open transaction, and an advertisement."""
    path = "data/thing"
    with there.one.xenstore() as store, there.one.gntshr() as gntshr, gntshr.share_pages(2, writable=True) as share:
        store.write(path, "before")
        transaction = store.transaction()
        transaction.write("data/other", "seen")
        advertised = there.one.advertise(share, "data/advertised")
        with store.watch(path) as watch:
            watch.wait(LONG)

            def check() -> None:
                assert store.read(path) == b"before"
                assert not advertised.closed
                assert [grant.ref for grant in there.two.find(1, "data/advertised", timeout=LONG)] == list(share.refs)
                transaction.write("data/other", "seen")

            yield Thing(
                partial(watch.wait, LONG),
                lambda: store.write(path, "after"),
                check,
                {
                    "Watch.wait": lambda: watch.wait(0),
                    "XenStore.read": lambda: store.read(path),
                    "XenStore.write": lambda: store.write(path, "child"),
                    "XenStore.watch": lambda: store.watch(path),
                    "run_transaction": lambda: store.run_transaction(lambda inside: inside.read(path)),
                    "Transaction.write": lambda: transaction.write(path, "child"),
                    "Transaction.commit": transaction.commit,
                    "XenStore.fileno": store.fileno,
                },
                [watch.close, transaction.abort, advertised.close, store.close],
            )


@contextmanager
def requests(there: Domains) -> Iterator[Thing]:
    """A connection to xenstore with a request under way, most of the time."""
    with there.one.xenstore() as store:
        store.write("data/asked", "before")
        reads: dict[str, Callable[[], object]] = {
            "XenStore.read": lambda: store.read("data/asked"),
            "XenStore.read in time": lambda: store.read("data/asked", timeout=1),
        }
        yield _churning(reads["XenStore.read"], reads["XenStore.read"], reads, [store.close])


@contextmanager
def find(there: Domains) -> Iterator[Thing]:
    """A wait for what a peer has not advertised yet."""
    with there.one.gntshr() as gntshr, gntshr.share_pages(2, writable=True) as share:
        advertised: list[Advertisement] = []
        yield Thing(
            lambda: there.two.find(1, "data/later", timeout=LONG),
            lambda: advertised.append(there.one.advertise(share, "data/later")),
            lambda: share.mapping[0],
            {"load of a Share": lambda: share.mapping[0]},
        )


def _vchan_thing(
    end: vchan.Vchan, other: vchan.Vchan, wait: Callable[[], object], finish: Callable[[], object]
) -> Thing:
    def check() -> None:
        assert end.is_open
        assert other.is_open

    return Thing(
        wait,
        finish,
        check,
        {
            "Vchan.read": lambda: end.read(1, 0),
            "Vchan.recv": lambda: end.recv(1, 0),
            "Vchan.readinto": lambda: end.readinto(bytearray(1), 0),
            "Vchan.fill": lambda: end.fill(bytearray(1), 0),
            "Vchan.peek": lambda: end.peek(0),
            "Vchan.consume": lambda: end.consume(0),
            "Vchan.write": lambda: end.write(b"child", 0),
            "Vchan.write, other end": lambda: other.write(b"child", 0),
            "Vchan.send": lambda: end.send(b"child", 0),
            "Vchan.reserve": lambda: end.reserve(0),
            "Vchan.commit": lambda: end.commit(0),
            "Vchan.wait": lambda: end.wait(0),
            "Vchan.wait for ever": end.wait,
            "Vchan.wait_drained": lambda: end.wait_drained(0),
            "Vchan.data_ready": end.data_ready,
            "Vchan.buffer_space": end.buffer_space,
            "Vchan.is_open": lambda: end.is_open,
            "Vchan.fileno": end.fileno,
            "with vchan": end.__enter__,
        },
        [end.close, other.close],
    )


@contextmanager
def _vchan(there: Domains, path: str) -> Iterator[tuple[vchan.Vchan, vchan.Vchan]]:
    with (
        vchan.serve(2, path, read_size=4096, write_size=4096, domain=there.one) as server,
        vchan.connect(1, path, timeout=LONG, domain=there.two) as client,
    ):
        server.wait_connected(LONG)
        yield server, client


@contextmanager
def vchan_read(there: Domains) -> Iterator[Thing]:
    """A vchan that is read from while it is empty, with no deadline."""
    with _vchan(there, "read") as (server, client):

        def wait() -> None:
            assert client.read(100) == b"the parent's"

        yield _vchan_thing(client, server, wait, lambda: server.write(b"the parent's"))


@contextmanager
def vchan_turn(there: Domains) -> Iterator[Thing]:
    """A vchan that is read from while another thread does, whose turn comes first."""
    with _vchan(there, "turn") as (server, client):

        def read() -> None:
            assert client.read(12) == b"the parent's"

        with _at_it(read, lambda: None):
            server_writes = partial(server.write, b"the parent's" * 2)
            yield _vchan_thing(client, server, read, server_writes)


@contextmanager
def vchan_recv(there: Domains) -> Iterator[Thing]:
    """A vchan's server that waits for a whole message, of which a part is there, with a deadline."""
    with _vchan(there, "recv") as (server, client):
        client.write(b"the ")

        def wait() -> None:
            assert server.recv(12, LONG) == b"the parent's"

        yield _vchan_thing(server, client, wait, lambda: client.write(b"parent's"))


@contextmanager
def vchan_write(there: Domains) -> Iterator[Thing]:
    """A vchan that is written to while it is full."""
    with _vchan(there, "write") as (server, client):
        server.write(bytes(4096))

        def finish() -> None:
            assert client.recv(4096, LONG) == bytes(4096)
            assert client.recv(12, LONG) == b"the parent's"

        yield _vchan_thing(server, client, lambda: server.write(b"the parent's", LONG), finish)


@contextmanager
def vchan_connect(there: Domains) -> Iterator[Thing]:
    """A vchan's server that waits for its client."""
    with ExitStack() as held:
        server = held.enter_context(vchan.serve(2, "later", domain=there.one))

        def finish() -> None:
            held.enter_context(vchan.connect(1, "later", timeout=LONG, domain=there.two))

        refused: dict[str, Callable[[], object]] = {
            "Vchan.wait_connected": lambda: server.wait_connected(0),
            "Vchan.hide": server.hide,
        }
        yield Thing(partial(server.wait_connected, LONG), finish, server.data_ready, refused, [server.close])


@contextmanager
def peer(there: Domains) -> Iterator[Thing]:
    """Another domain whose end is waited for, in a thread of the library's too."""
    path = "data/peer"
    with there.two.xenstore() as store, there.one.peer(2, path) as peer:
        store.write(path, "here")
        store.set_permissions(path, [xengrant.Permission(2, "n"), xengrant.Permission(1, "r")])
        yield Thing(
            partial(peer.wait_gone, LONG),
            lambda: store.rm(path),
            peer.check,
            {
                "Peer.wait_gone": lambda: peer.wait_gone(0),
                "Peer.check": peer.check,
                "Peer.on_gone": lambda: peer.on_gone(lambda: None),
            },
            [peer.close],
        )


@contextmanager
def table(there: Domains) -> Iterator[Thing]:
    """The grant table of a program that is its domain's kernel, while references come and go."""
    with xengrant.connect(there.url(3, "&kernel=1")) as kernel, there.two.gnttab() as gnttab:
        table = kernel.grant_table()
        held, other = table.get_n_nowait(2)
        page = kernel.alloc_pages(1)[0]
        table.grant_access(held, 2, page, writable=True)

        def step() -> None:
            ref = table.get_nowait()
            assert ref is not None
            table.grant_access(ref, 2, page, writable=False)
            table.end_access(ref)
            table.put(ref)

        def check() -> None:
            page.mapping[0] = 7
            with gnttab.map((3, held), writable=True) as mapped:
                assert mapped.mapping[0] == 7
            step()

        yield _churning(
            step,
            check,
            {
                "GrantTable.get_nowait": table.get_nowait,
                "GrantTable.get_n_nowait": lambda: table.get_n_nowait(2),
                "GrantTable.put": lambda: table.put(other),
                "GrantTable.grant_access": lambda: table.grant_access(other, 2, page, writable=True),
                "GrantTable.end_access": lambda: table.end_access(held),
                "GrantTable.read": lambda: table.read(held),
                "list(GrantTable)": lambda: list(table),
                "load of a Page": lambda: page.mapping[0],
                "grant_table": kernel.grant_table,
                "alloc_pages": lambda: kernel.alloc_pages(1),
            },
            [page.close, kernel.close],
        )
        table.end_access(held)
        page.close()


@contextmanager
def foreign_table(there: Domains) -> Iterator[Thing]:
    """dom0's view of another domain's table, while it looks."""
    with (
        there.one.gntshr() as gntshr,
        gntshr.share_pages(2, 3, writable=True) as share,
        there.zero.grant_table(of=1) as table,
    ):

        def check() -> None:
            assert set(share.refs) <= {entry.ref for entry in table.grants()}

        refused: dict[str, Callable[[], object]] = {
            "ForeignGrantTable.refresh": table.refresh,
            "ForeignGrantTable.grants": table.grants,
            "ForeignGrantTable.read": lambda: table.read(share.refs[0]),
        }
        yield _churning(table.refresh, check, refused, [table.close])


@contextmanager
def domain(there: Domains) -> Iterator[Thing]:
    """A domain that is just opening things, in one of its own locks; in the child it opens others."""

    def step() -> None:
        with xengrant.connect(there.one.url) as domain, domain.gntshr() as gntshr:
            assert domain.domid == 1
            with gntshr.share_pages(2, writable=True) as share:
                domain.advertise(share, "data/churned").close()

    yield _churning(step, step, {}, [there.one.close])


KINDS: dict[str, Callable[[Domains], AbstractContextManager[Thing]]] = {
    made.__name__: made
    for made in (
        share,
        mapped,
        port,
        following_port,
        watch,
        requests,
        find,
        vchan_read,
        vchan_turn,
        vchan_recv,
        vchan_write,
        vchan_connect,
        peer,
        table,
        foreign_table,
        domain,
    )
}
