"""xenstore: nodes, who may see them, transactions, watches and quotas."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from xengrant.errors import InterfaceClosed, XenStoreError
from xengrant.testing.case import DOM0, GUEST_PEER, Case
from xengrant.testing.expect import equal, raises, true
from xengrant.testing.here import QUIET, SOON, Here
from xengrant.xenstore import Permission, Transaction, XenStore

DOCS = "Xen docs/misc/xenstore.txt"
DAEMON = "Xen tools/xenstored"
BASE = "data/xengrant/case"


@contextmanager
def _store(here: Here) -> Iterator[XenStore]:
    """A connection and a directory `BASE` that the other half may read."""
    with here.domain.xenstore() as store:
        store.mkdir(BASE)
        store.set_permissions(BASE, [Permission(here.domid, "n"), Permission(here.other, "r")])
        try:
            yield store
        finally:
            store.rm(BASE)


def _others(here: Here, name: str = "") -> str:
    path = f"/local/domain/{here.other}/{BASE}"
    return f"{path}/{name}" if name else path


@contextmanager
def _refused(number: int, what: str) -> Iterator[None]:
    with raises(XenStoreError, what) as caught:
        yield
    equal(errno.errorcode.get(caught.error.errno or 0), errno.errorcode[number], f"{what}: errno")


class ReadAndWrite(Case):
    """What one domain writes the other reads, byte for byte, and sees replaced and removed"""

    source = DOCS
    peer = "writer"

    def writer(self, here: Here) -> None:
        with _store(here) as store:
            store.write(f"{BASE}/bytes", bytes(range(256)))
            store.write(f"{BASE}/text", "gr\u00fc\u00df dich")
            store.write(f"{BASE}/empty", b"")
            store.write(f"{BASE}/a/b/c", b"deep")
            here.tell("written")
            here.hear("read")
            store.write(f"{BASE}/bytes", b"new")
            store.rm(f"{BASE}/a")
            here.tell("changed")
            here.hear("read again")

    def reader(self, here: Here) -> None:
        with here.domain.xenstore() as store:
            here.hear("written")
            equal(store.read(_others(here, "bytes")), bytes(range(256)), "a value of all bytes")
            equal(store.read(_others(here, "text")).decode(), "gr\u00fc\u00df dich", "a value of text")
            equal(store.read(_others(here, "empty")), b"", "an empty value")
            equal(store.read(_others(here, "a/b/c")), b"deep", "a deep node's value")
            equal(store.read(_others(here, "a/b")), b"", "a node made on the way")
            here.tell("read")
            here.hear("changed")
            equal(store.read(_others(here, "bytes")), b"new", "the replaced value")
            true(not store.exists(_others(here, "a")), "the removed node is gone")
            with _refused(errno.ENOENT, "reading below the removed node"):
                store.read(_others(here, "a/b/c"))
        here.tell("read again")


class RelativePaths(Case):
    """A relative path is one's own domain's: both names are one node"""

    source = f"{DOCS}: relative to /local/domain/DOMID"
    peer = "guest"

    def guest(self, here: Here) -> None:
        with _store(here) as store:
            own = store.get_domain_path(here.domid)
            equal(own, f"/local/domain/{here.domid}", "this domain's directory")
            store.write(f"{BASE}/relative", b"1")
            equal(store.read(f"{own}/{BASE}/relative"), b"1", "the same node by its absolute path")
            store.write(f"{own}/{BASE}/absolute", b"2")
            equal(store.read(f"{BASE}/absolute"), b"2", "the same node by its relative path")
            equal(store.read("domid"), str(here.domid).encode(), "this domain's domid")


class Directory(Case):
    """A directory lists its children, mkdir leaves what is there, and rm takes all below it"""

    source = DOCS

    def owner(self, here: Here) -> None:
        with _store(here) as store:
            equal(store.directory(BASE), [], "the children of an empty node")
            store.write(f"{BASE}/one", b"1")
            store.mkdir(f"{BASE}/two/three")
            store.mkdir(f"{BASE}/one")
            equal(sorted(store.directory(BASE)), ["one", "two"], "the children")
            equal(store.read(f"{BASE}/one"), b"1", "a node after mkdir of it")
            equal(store.directory(f"{BASE}/two"), ["three"], "the children of a child")
            store.rm(f"{BASE}/two")
            equal(store.directory(BASE), ["one"], "the children after rm")
            store.rm(f"{BASE}/two")
            with _refused(errno.ENOENT, "the directory of a node that is not there"):
                store.directory(f"{BASE}/two")


class MissingNode(Case):
    """A node that is not there is ENOENT, and the error names its path; a path that cannot be is refused"""

    source = DOCS

    def owner(self, here: Here) -> None:
        with _store(here) as store:
            with raises(XenStoreError, "reading a missing node", says="nowhere") as caught:
                store.read(f"{BASE}/nowhere")
            equal(caught.error.errno, errno.ENOENT, "errno")
            equal(caught.error.path, f"{BASE}/nowhere", "the error's path")
            true(not store.exists(f"{BASE}/nowhere"), "it does not exist")
            for path in ("", "with space", "two//slashes", "slash/", "x" * 4000):
                with raises((ValueError, OSError), f"reading {path[:20]!r}"):  # type: ignore[arg-type]
                    store.read(path)


class ManyChildren(Case):
    """A directory whose listing exceeds one message is listed whole"""

    source = f"{DOCS}: DIRECTORY_PART; payload at most 4096 bytes"
    requires = (DOM0,)

    def owner(self, here: Here) -> None:
        names = [f"{'n' * 40}-{number:03}" for number in range(120)]
        with _store(here) as store:
            for name in names:
                store.write(f"{BASE}/{name}", b"")
            equal(sorted(store.directory(BASE)), names, "the children")


class OthersMayNotWrite(Case):
    """A node that another domain may read it may not write, remove or open to others: EACCES"""

    source = f"{DOCS}: permissions"
    peer = "guest"
    requires = (GUEST_PEER,)

    def guest(self, here: Here) -> None:
        here.hear("written")
        path = _others(here, "theirs")
        with here.domain.xenstore() as store:
            equal(store.read(path), b"safe", "the node")
            calls: list[Callable[[], None]] = [
                lambda: store.write(path, b"mine"),
                lambda: store.rm(path),
                lambda: store.mkdir(f"{path}/below"),
                lambda: store.set_permissions(path, [Permission(here.domid, "b")]),
            ]
            for number, call in enumerate(calls):
                with _refused(errno.EACCES, f"call {number} on another domain's node"):
                    call()
        here.tell("tried")

    def owner(self, here: Here) -> None:
        with _store(here) as store:
            store.write(f"{BASE}/theirs", b"safe")
            here.tell("written")
            here.hear("tried")
            equal(store.read(f"{BASE}/theirs"), b"safe", "the node afterwards")
            equal(store.directory(f"{BASE}/theirs"), [], "its children")


class HiddenNodes(Case):
    """A node that shows itself to nobody cannot be read, listed or seen by another guest: EACCES"""

    source = f"{DOCS}: permissions"
    peer = "guest"
    requires = (GUEST_PEER,)

    def guest(self, here: Here) -> None:
        here.hear("written")
        with here.domain.xenstore() as store:
            for call in (store.read, store.directory, store.get_permissions):
                with _refused(errno.EACCES, f"{call.__name__} of a hidden node"):
                    call(_others(here, "hidden"))
            equal(store.read(_others(here, "shown")), b"shown", "the node beside it")
            here.tell("tried")
            here.hear("shown")
            equal(store.read(_others(here, "hidden")), b"hidden", "the node when it is shown")
        here.tell("read")

    def owner(self, here: Here) -> None:
        with _store(here) as store:
            store.write(f"{BASE}/shown", b"shown")
            store.write(f"{BASE}/hidden", b"hidden")
            store.set_permissions(f"{BASE}/hidden", [Permission(here.domid, "n")])
            here.tell("written")
            here.hear("tried")
            store.set_permissions(f"{BASE}/hidden", [Permission(here.domid, "n"), Permission(here.other, "r")])
            here.tell("shown")
            here.hear("read")


class Permissions(Case):
    """Permissions read back as they were set, children inherit them, and whom they name to write may write"""

    source = f"{DOCS}: SET_PERMS; a new node has its parent's permissions"
    peer = "guest"

    def guest(self, here: Here) -> None:
        path = here.hear("path")
        with here.domain.xenstore() as store:
            store.write(path, b"written by the other")
        here.tell("written")

    def owner(self, here: Here) -> None:
        with _store(here) as store:
            expected = [Permission(here.domid, "n"), Permission(here.other, "b")]
            store.mkdir(f"{BASE}/open")
            store.set_permissions(f"{BASE}/open", expected)
            equal(store.get_permissions(f"{BASE}/open"), expected, "the permissions")
            store.write(f"{BASE}/open/child", b"")
            equal(store.get_permissions(f"{BASE}/open/child"), expected, "a child's permissions")
            here.tell("path", f"/local/domain/{here.domid}/{BASE}/open/child")
            here.hear("written")
            equal(store.read(f"{BASE}/open/child"), b"written by the other", "the child")


class TransactionIsHidden(Case):
    """What a transaction writes nobody else sees before its end, and then all of it; its own reads see it at once"""

    source = f"{DOCS}: transactions"
    peer = "writer"

    def writer(self, here: Here) -> None:
        with _store(here) as store:
            store.write(f"{BASE}/a", b"old")
            with store.transaction() as transaction:
                transaction.write(f"{BASE}/a", b"new")
                transaction.write(f"{BASE}/b", b"new")
                equal(transaction.read(f"{BASE}/a"), b"new", "the node inside the transaction")
                equal(store.read(f"{BASE}/a"), b"old", "the node outside, on the same connection")
                here.tell("written")
                here.hear("looked")
            here.tell("committed")
            here.hear("done")

    def reader(self, here: Here) -> None:
        with here.domain.xenstore() as store:
            here.hear("written")
            equal(store.read(_others(here, "a")), b"old", "the node before the end")
            true(not store.exists(_others(here, "b")), "the new node is not there before the end")
            here.tell("looked")
            here.hear("committed")
            equal(store.read(_others(here, "a")), b"new", "the node after the end")
            equal(store.read(_others(here, "b")), b"new", "the new node after the end")
        here.tell("done")


class TransactionAborted(Case):
    """A transaction that is aborted, or left by an error, leaves nothing behind; one that has ended is closed"""

    source = f"{DOCS}: TRANSACTION_END F"

    def owner(self, here: Here) -> None:
        with _store(here) as store:
            with raises(KeyError, "the error in the block"), store.transaction() as transaction:
                transaction.write(f"{BASE}/left", b"1")
                raise KeyError
            aborted = store.transaction()
            aborted.write(f"{BASE}/aborted", b"1")
            aborted.abort()
            aborted.abort()
            with raises(InterfaceClosed, "a write after the end"):
                aborted.write(f"{BASE}/late", b"1")
            equal(store.directory(BASE), [], "the children afterwards")


class TransactionConflict(Case):
    """Where the other domain changes what a transaction read, its end is EAGAIN; run_transaction does it again"""

    source = f"{DOCS}: EAGAIN"
    peer = "counter"

    def counter(self, here: Here) -> None:
        path = here.hear("path")
        with here.domain.xenstore() as store:
            with raises(XenStoreError, "a commit after a conflict") as caught, store.transaction() as transaction:
                _increment(transaction, path)
                here.tell("read")
                here.hear("interfered")
            equal(caught.error.errno, errno.EAGAIN, "errno")
            equal(store.read(path), b"10", "the node after the conflict")
            attempts = []

            def work(transaction: Transaction) -> int:
                attempts.append(transaction)
                value = _increment(transaction, path)
                if len(attempts) == 1:
                    here.tell("read again")
                    here.hear("interfered again")
                return value

            equal(store.run_transaction(work), 21, "what run_transaction returns")
            equal(len(attempts), 2, "the number of attempts")
            equal(store.read(path), b"21", "the node at the end")
        here.tell("done")

    def interferer(self, here: Here) -> None:
        with _store(here) as store:
            store.write(f"{BASE}/count", b"1")
            permissions = [Permission(here.domid, "n"), Permission(here.other, "b")]
            store.set_permissions(f"{BASE}/count", permissions)
            here.tell("path", f"/local/domain/{here.domid}/{BASE}/count")
            here.hear("read")
            store.write(f"{BASE}/count", b"10")
            here.tell("interfered")
            here.hear("read again")
            store.write(f"{BASE}/count", b"20")
            here.tell("interfered again")
            here.hear("done")


class WatchTellsAtOnce(Case):
    """A new watch fires once at once, also for a node that is not there yet, and then not without a change"""

    source = f"{DOCS}: WATCH"

    def owner(self, here: Here) -> None:
        with _store(here) as store, store.watch(f"{BASE}/later") as watch:
            equal(watch.wait(SOON), f"{BASE}/later", "the first event")
            with raises(TimeoutError, "waiting without a change", says=f"{BASE}/later"):
                watch.wait(QUIET)
            store.write(f"{BASE}/later", b"now")
            equal(watch.wait(SOON), f"{BASE}/later", "the event of the node's making")
            store.rm(f"{BASE}/later")
            equal(watch.wait(SOON), f"{BASE}/later", "the event of its end")


class WatchTellsOfTheOther(Case):
    """A watch tells of what the other domain makes, changes and removes below its node, naming the path"""

    source = f"{DOCS}: WATCH"
    peer = "writer"

    def writer(self, here: Here) -> None:
        with _store(here) as store:
            here.tell("made")
            here.hear("watching")
            store.write(f"{BASE}/child/deep", b"1")
            here.hear("told-0")
            store.write(f"{BASE}/child/deep", b"2")
            here.hear("told-1")
            store.rm(f"{BASE}/child")
            here.hear("told-2")

    def watcher(self, here: Here) -> None:
        here.hear("made")
        with here.domain.xenstore() as store, store.watch(_others(here)) as watch:
            equal(watch.wait(SOON), _others(here), "the first event")
            here.tell("watching")
            for step, name in enumerate(("child/deep", "child/deep", "child")):
                told = [watch.wait(SOON)]
                while told[-1] != _others(here, name):
                    told.append(watch.wait(SOON))
                here.tell(f"told-{step}")


class EachWatchItsEvents(Case):
    """Watches of one connection get their own events: neither another's node nor a sibling whose name begins alike"""

    source = f"{DOCS}: tokens"

    def owner(self, here: Here) -> None:
        with _store(here) as store:
            names = ("a", "ab", "b")
            watches = {name: store.watch(f"{BASE}/{name}") for name in names}
            for name in names:
                equal(watches[name].wait(SOON), f"{BASE}/{name}", "the first event")
            store.write(f"{BASE}/ab/child", b"")
            equal(watches["ab"].wait(SOON).startswith(f"{BASE}/ab"), True, "the event of the node that changed")
            for name in ("a", "b"):
                with raises(TimeoutError, f"waiting on {name}"):
                    watches[name].wait(0.1)
            for watch in watches.values():
                watch.close()


class ClosedWatch(Case):
    """A closed watch tells nothing more, while a second one of the same node goes on"""

    source = f"{DOCS}: UNWATCH takes path and token"

    def owner(self, here: Here) -> None:
        with _store(here) as store:
            first, second = store.watch(BASE), store.watch(BASE)
            first.wait(SOON)
            second.wait(SOON)
            first.close()
            first.close()
            with raises(InterfaceClosed, "waiting on a closed watch"):
                first.wait(0)
            store.write(f"{BASE}/x", b"")
            equal(second.wait(SOON), f"{BASE}/x", "the other watch's event")
            second.close()


class WatchesAmongRequests(Case):
    """Watches are set and ended while other requests of the same connection are under way, by threads and by asyncio"""

    source = (
        "Linux drivers/xen/xenbus/xenbus_dev_frontend.c: xenbus_write_watch waits under the lock that answers need, so "
        "that a client which does not wait stops its kernel's xenstore"
    )

    def owner(self, here: Here) -> None:
        with _store(here) as store:
            store.write(f"{BASE}/node", b"1")
            ended = threading.Event()

            def read() -> None:
                while not ended.is_set():
                    equal(store.read(f"{BASE}/node", timeout=SOON), b"1", "the node, read by another thread")

            threads = [threading.Thread(target=read) for _ in range(2)]
            for thread in threads:
                thread.start()
            for _ in range(5):
                watch = store.watch(f"{BASE}/node", timeout=SOON)
                equal(watch.wait(SOON), f"{BASE}/node", "the first event")
                watch.close()
                with raises(KeyError, "the error in the block"), store.transaction() as transaction:
                    transaction.read(f"{BASE}/node")
                    raise KeyError
            ended.set()
            for thread in threads:
                thread.join(SOON)
            equal(store.read(f"{BASE}/node"), b"1", "the node afterwards")
            asyncio.run(self._at_once(here))

    async def _at_once(self, here: Here) -> None:
        async with here.domain.aio.xenstore() as store, asyncio.timeout(SOON):
            reads = [asyncio.ensure_future(store.read(f"{BASE}/node")) for _ in range(5)]
            watching = asyncio.ensure_future(store.watch(f"{BASE}/node"))
            equal(await asyncio.gather(*reads), [b"1"] * 5, "the reads that a watch came after")
            (await watching).close()
            equal(await store.read(f"{BASE}/node"), b"1", "the read after it")


class WatchQuota(Case):
    """A guest has so many watches and no more; the error names the quota, and a closed watch makes room"""

    source = f"{DAEMON}: --watch-nb 128; E2BIG or ENOSPC"
    peer = "guest"
    requires = (GUEST_PEER,)

    def guest(self, here: Here) -> None:
        with _store(here) as store, ExitStack() as stack, raises(XenStoreError, "one watch too many", says="128"):
            for number in range(200):
                stack.enter_context(store.watch(f"{BASE}/{number}"))
        with _store(here) as store:
            store.watch(BASE).close()


class TransactionQuota(Case):
    """A guest has so many transactions open and no more; the error names the quota, and an end makes room"""

    source = f"{DAEMON}: --transaction 10; ENOSPC"
    peer = "guest"
    requires = (GUEST_PEER,)

    def guest(self, here: Here) -> None:
        with _store(here) as store:
            transactions = []
            with raises(XenStoreError, "one transaction too many", says="10"):
                for _ in range(20):
                    transactions.append(store.transaction())
            true(5 <= len(transactions) <= 15, f"about ten transactions, not {len(transactions)}")
            for transaction in transactions:
                transaction.abort()
            with store.transaction() as transaction:
                transaction.write(f"{BASE}/room", b"1")
            equal(store.read(f"{BASE}/room"), b"1", "the node of the next transaction")


class NodeSizeQuota(Case):
    """A guest's value of two thousand bytes fits, one of three thousand does not, and the error names the limit"""

    source = f"{DAEMON}: --entry-size 2048; ENOSPC"
    peer = "guest"
    requires = (GUEST_PEER,)

    def guest(self, here: Here) -> None:
        with _store(here) as store:
            store.write(f"{BASE}/fits", b"x" * 1900)
            equal(store.read(f"{BASE}/fits"), b"x" * 1900, "a value of 1900 bytes")
            with raises(XenStoreError, "a value of 3000 bytes", says="2048"):
                store.write(f"{BASE}/big", b"x" * 3000)
            true(not store.exists(f"{BASE}/big"), "nothing was written")
            with raises((XenStoreError, ValueError), "a value of 5000 bytes"):  # type: ignore[arg-type]
                store.write(f"{BASE}/big", b"x" * 5000)
            equal(store.read("domid"), str(here.domid).encode(), "the connection afterwards")


class Introduced(Case):
    """dom0 is told which domains exist"""

    source = f"{DOCS}: IS_DOMAIN_INTRODUCED"
    requires = (DOM0,)

    def owner(self, here: Here) -> None:
        with here.domain.xenstore() as store:
            equal(store.is_domain_introduced(here.other), True, "the peer")
            equal(store.is_domain_introduced(30000), False, "a domain that is not")


class ReleasesAreForDom0(Case):
    """A guest is not told when domains go: watching @releaseDomain is refused instead of staying silent"""

    source = f"{DAEMON} (XSA-115)"
    peer = "guest"
    requires = (GUEST_PEER,)

    def guest(self, here: Here) -> None:
        with here.domain.xenstore() as store:
            with _refused(errno.EACCES, "watching @releaseDomain in a guest"):
                store.watch("@releaseDomain")
            equal(store.read("domid"), str(here.domid).encode(), "the connection afterwards")


class Asyncio(Case):
    """For asyncio the same: nodes, transactions, watches, and many calls at once on one connection"""

    source = DOCS
    peer = "writer"

    def writer(self, here: Here) -> None:
        with _store(here) as store:
            here.tell("made")
            here.hear("watching")
            store.write(f"{BASE}/node", b"1")
            here.hear("done")

    def watcher(self, here: Here) -> None:
        here.hear("made")
        asyncio.run(self._watch(here))
        here.tell("done")

    async def _watch(self, here: Here) -> None:
        async with here.domain.aio.xenstore() as store:
            async with await store.watch(_others(here)) as watch:
                equal(await watch.wait(SOON), _others(here), "the first event")
                with raises(TimeoutError, "waiting without a change"):
                    await watch.wait(0.05)
                here.tell("watching")
                equal(await watch.wait(SOON), _others(here, "node"), "the event")
            values = await asyncio.gather(*(store.read(_others(here, "node")) for _ in range(20)))
            equal(values, [b"1"] * 20, "twenty reads at once")
            path = "data/xengrant/aio"
            async with await store.transaction() as transaction:
                await transaction.write(f"{path}/in", b"2")
                true(not await store.exists(f"{path}/in"), "the transaction is hidden")
            equal(await store.read(f"{path}/in"), b"2", "the node after the commit")
            await store.rm(path)
            with raises(XenStoreError, "reading the removed node") as caught:
                await store.read(f"{path}/in")
            equal(caught.error.errno, errno.ENOENT, "errno")


def _increment(transaction: Transaction, path: str) -> int:
    value = int(transaction.read(path)) + 1
    transaction.write(path, str(value))
    return value
