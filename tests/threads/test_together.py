"""Eight threads over one interface of each kind, all at random: every result is right, and nothing is left."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

import xengrant
from tests.native.test_mapping_threads import run_together
from xengrant import Domain, Grant, _native, vchan
from xengrant.embedded import Machine
from xengrant.gnttab import CopySegment
from xengrant.memory import PAGE_SIZE
from xengrant.xenstore import Transaction

THREADS = 8
ROUNDS = 25
LONG = 60.0  # seconds; no test comes near it


def each(work: Callable[[int, random.Random], object], threads: int = THREADS) -> None:
    """Run `work(number, chance)` in so many threads at once."""
    numbers = iter(range(threads))
    lock = threading.Lock()

    def one() -> None:
        with lock:
            number = next(numbers)
        work(number, random.Random(number))

    run_together(one, threads)


def test_sharing(granter: Domain, mapper: Domain) -> None:
    """No ref is two shares', and what is in a share is its own."""
    live: set[int] = set()
    lock = threading.Lock()
    with granter.gntshr() as gntshr, mapper.gnttab() as gnttab:

        def work(number: int, chance: random.Random) -> None:
            for round_ in range(ROUNDS):
                share = gntshr.share_pages(2, chance.choice([1, 1, 2, 5]), writable=chance.random() < 0.5)
                with lock:
                    assert not live & set(share.refs)
                    live.update(share.refs)
                text = b"%d/%d" % (number, round_)
                share.mapping[: len(text)] = text
                grants = [Grant(1, ref) for ref in share.refs]
                with gnttab.map(grants, writable=share.writable) as mapped:
                    assert mapped.mapping[: len(text)] == text
                    if share.writable:
                        mapped.mapping[PAGE_SIZE - 1] = number
                        assert share.mapping[PAGE_SIZE - 1] == number
                with lock:
                    live.difference_update(share.refs)
                if chance.random() < 0.5:
                    share.close()
                else:
                    gntshr.munmap(share)

        each(work)
    assert not live


def test_mapping_and_copying(granter: Domain, mapper: Domain) -> None:
    """Each map shows the pages that were asked for, and each copy has their bytes."""
    with (
        granter.gntshr() as gntshr,
        gntshr.share_pages(2, 16, writable=True) as share,
        mapper.gnttab() as gnttab,
    ):
        for page in range(16):
            share.mapping[page * PAGE_SIZE : (page + 1) * PAGE_SIZE] = bytes([page + 1]) * PAGE_SIZE

        def work(number: int, chance: random.Random) -> None:
            for _ in range(ROUNDS):
                pages = chance.sample(range(16), chance.randint(1, 4))
                grants = [Grant(1, share.refs[page]) for page in pages]
                if chance.random() < 0.5:
                    with gnttab.map(grants, writable=False) as mapped:
                        assert mapped.grants == tuple(grants)
                        assert bytes(mapped.mapping[::PAGE_SIZE]) == bytes(page + 1 for page in pages)
                else:
                    copied = [bytearray(3) for _ in pages]
                    segments = [CopySegment(grant, own, 3) for grant, own in zip(grants, copied, strict=True)]
                    assert gnttab.copy(segments) == [0] * len(pages)
                    assert copied == [bytearray([page + 1] * 3) for page in pages]

        each(work)


def test_ports(granter: Domain, mapper: Domain) -> None:
    """Each wait is ended by its own port's event, whichever thread reads for all, while ports come and go."""
    with granter.evtchn() as ours, mapper.evtchn() as theirs:

        def work(number: int, chance: random.Random) -> None:
            for _ in range(ROUNDS // 5):
                with ours.bind_unbound(2) as port, theirs.bind_interdomain(1, port.number) as other:
                    other.wait(LONG)  # the first is nobody's
                    for _ in range(chance.randint(1, 5)):
                        port.notify()
                        other.wait(LONG)
                        other.notify()
                        port.wait(LONG)
                    for end in (port, other):
                        with pytest.raises(TimeoutError):
                            end.wait(0)

        each(work)
        assert "0 ports" in repr(ours)


def test_xenstore(granter: Domain) -> None:
    """Each answer is its own request's, and each watch is told of its own node."""
    with granter.xenstore() as store:

        def work(number: int, chance: random.Random) -> None:
            path = f"data/t{number}"
            with store.watch(path) as watch:
                assert watch.wait(LONG) == path
                for round_ in range(ROUNDS // 2):
                    value = b"%d/%d" % (number, round_)
                    store.write(f"{path}/value", value)
                    assert store.read(f"{path}/value") == value
                    assert watch.wait(LONG).startswith(path)
                    if chance.random() < 0.3:
                        with store.transaction() as transaction:
                            transaction.write(f"{path}/inside", value)
                            assert transaction.read(f"{path}/inside") == value
                            transaction.abort()
                        assert not store.exists(f"{path}/inside")

        def count(transaction: Transaction) -> None:
            transaction.write("data/count", str(int(transaction.read("data/count")) + 1))

        store.write("data/count", "0")
        each(work)
        each(lambda number, chance: store.run_transaction(count, attempts=1000, timeout=LONG))
        assert store.read("data/count") == b"8"


class _Read(int):
    """A number that two threads read before one has added to it, where nothing keeps them from that."""

    together = threading.Barrier(2)

    def __add__(self, other: int) -> _Read:
        with contextlib.suppress(threading.BrokenBarrierError):
            self.together.wait(0.2)
        return _Read(int(self) + other)


def test_watches_of_two_threads_are_two(granter: Domain) -> None:
    """Without a GIL two that began at once had one token, and each other's events."""
    with granter.xenstore() as store:
        _Read.together.reset()
        store._codec._last_token = _Read(0)

        def work(number: int, chance: random.Random) -> None:
            with store.watch(f"data/t{number}") as watch:
                assert watch.wait(LONG) == f"data/t{number}"

        each(work, threads=2)


def test_a_vchan(granter: Domain, mapper: Domain) -> None:
    """Four threads send and four receive: every message comes once and whole, and each sender's in order."""
    rounds, size = 200, 24
    came: list[list[tuple[int, int]]] = [[] for _ in range(4)]
    with (
        vchan.serve(2, "together", read_size=4096, write_size=1024, domain=granter) as server,
        vchan.connect(1, "together", timeout=LONG, domain=mapper) as client,
    ):

        def work(number: int, chance: random.Random) -> None:
            for round_ in range(rounds):
                if number < 4:
                    server.send((b"%d %d" % (number, round_)).ljust(size, b"."), LONG)
                else:
                    sender, sent = client.recv(size, LONG).rstrip(b".").split()
                    came[number - 4].append((int(sender), int(sent)))

        each(work)
    for mine in came:
        for sender in range(4):
            order = [sent for other, sent in mine if other == sender]
            assert order == sorted(order)
    messages = [(sender, sent) for sender in range(4) for sent in range(rounds)]
    assert sorted(message for mine in came for message in mine) == messages


def test_a_grant_table(machine: Machine, mapper: Domain) -> None:
    """No reference is two holders', and all of them come back."""
    holders: dict[int, int] = {}
    with xengrant.connect(machine.url(3, kernel=True)) as kernel, ExitStack() as pages:
        table = kernel.grant_table()
        own = [pages.enter_context(page) for page in kernel.alloc_pages(THREADS)]

        def work(number: int, chance: random.Random) -> None:
            for _ in range(ROUNDS * 4):
                refs = table.get_n_nowait(chance.randint(1, 3))
                for ref in refs:
                    assert holders.setdefault(ref, number) == number
                if chance.random() < 0.5:
                    table.grant_access(refs[0], 2, own[number], writable=True)
                    assert table.read(refs[0]).domid == 2
                    table.end_access(refs[0])
                for ref in refs:
                    assert holders.pop(ref) == number
                    table.put(ref)

        each(work)
        assert table.num_held == 0
        assert [entry.ref for entry in table] == [0, 1]  # the builder's


def test_another_domains_table(granter: Domain, machine: Machine) -> None:
    """A look shows whole entries, of whatever moment, while shares come and go."""
    with (
        xengrant.connect(machine.url(0)) as dom0,
        dom0.grant_table(of=1) as table,
        granter.gntshr() as gntshr,
        gntshr.share_pages(2, writable=True) as kept,
    ):

        def work(number: int, chance: random.Random) -> None:
            for _ in range(ROUNDS):
                if number < 4:
                    gntshr.share_pages(2, chance.randint(1, 4), writable=True).close()
                else:
                    entries = {entry.ref: entry for entry in table.grants()}
                    assert entries[kept.refs[0]].domid == 2

        each(work)


def test_a_domain(machine: Machine) -> None:
    """Everything is opened and closed through one `Domain`; its advertisements are found, its peers know."""
    with xengrant.connect(machine.url(1)) as domain, xengrant.connect(machine.url(2)) as other:

        def work(number: int, chance: random.Random) -> None:
            for round_ in range(4):
                path = f"data/a{number}/{round_}"
                with (
                    domain.gntshr() as gntshr,
                    gntshr.share_pages(2, writable=True) as share,
                    domain.advertise(share, path),
                    other.peer(1, path) as peer,
                ):
                    assert other.find(1, path, timeout=LONG) == [Grant(1, share.refs[0])]
                    assert not peer.gone()

        each(work)


def test_words() -> None:
    """Nothing that is added, set or cleared is lost."""
    memory = bytearray(64)

    def work(number: int, chance: random.Random) -> None:
        for _ in range(2000):
            seen = _native.load32(memory, 0)
            while (found := _native.compare_exchange32(memory, 0, seen, seen + 1)) != seen:
                seen = found
            before = _native.fetch_or8(memory, 8, 1 << number)
            assert not before & 1 << number
            assert _native.fetch_and8(memory, 8, 0xFF & ~(1 << number)) & 1 << number

    each(work)
    assert _native.load32(memory, 0) == 2000 * THREADS
    assert memory[8] == 0


def test_a_ring() -> None:
    """Four threads write a ring of bytes, four read it: as many bytes come as went, of each kind."""
    indices, data = bytearray(8), bytearray(256)
    writer = _native.RingWriter(indices, 0, 4, data, 0, 256)
    reader = _native.RingReader(indices, 0, 4, data, 0, 256)
    each_writes = 1000
    came = [0] * THREADS
    counts, lock = [0] * 4, threading.Lock()

    def work(number: int, chance: random.Random) -> None:
        left = each_writes
        while number < 4 and left:
            left -= writer.write(bytes([number]) * min(left, chance.randint(1, 100)))
            time.sleep(0)  # with a GIL whoever finds nothing to do would keep it
        while number >= 4 and sum(came) < 4 * each_writes:
            taken = reader.read(chance.randint(1, 100))
            came[number] += len(taken)
            with lock:
                for kind in range(4):
                    counts[kind] += taken.count(kind)
            time.sleep(0)

    each(work)
    assert counts == [each_writes] * 4
