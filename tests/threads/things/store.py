"""A connection to xenstore, what is waited for there, and a domain that is just being opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import xengrant
from xengrant.meeting import Advertisement

from .thing import LONG, Domains, Thing, churning

__all__ = ["domain", "find", "peer", "requests", "watch"]


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
        yield churning(reads["XenStore.read"], reads["XenStore.read"], reads, [store.close])


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


@contextmanager
def peer(there: Domains) -> Iterator[Thing]:
    """Another domain whose end is waited for, in a thread of the library's too."""
    path = "data/peer"
    with there.two.xenstore() as store, there.one.peer(2, path) as peer:
        store.write(path, "here")
        store.set_permissions(path, [xengrant.Permission(2, "n"), xengrant.Permission(1, "r")])
        # The library's thread is there before the call: a fork inside Thread.start, which waits too, is CPython's own
        # defect, and has the child wait for a thread that it has not.
        with suppress(TimeoutError):
            peer.wait_gone(0)
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
def domain(there: Domains) -> Iterator[Thing]:
    """A domain that is just opening things, in one of its own locks; in the child it opens others."""

    def step() -> None:
        with xengrant.connect(there.one.url) as domain, domain.gntshr() as gntshr:
            assert domain.domid == 1
            with gntshr.share_pages(2, writable=True) as share:
                domain.advertise(share, "data/churned").close()

    yield churning(step, step, {}, [there.one.close])
