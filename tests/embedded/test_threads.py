"""Devices used from many threads, mappings that end in finalizers, and requests that a signal handler breaks off."""

from __future__ import annotations

import gc
import os
import random
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from xengrant.abi.xen import PAGE_SIZE
from xengrant.devices import client
from xengrant.embedded import Machine
from xengrant.errors import InterfaceClosed
from xengrant.memory import Mapping

from .conftest import Open
from .ioctls import add_map, alloc, connected, eventually, map_grants, notify, read_ports, share, unmask


class InterruptedByTestError(Exception):
    """What the handlers raise."""


@pytest.fixture
def interrupt() -> Iterator[Callable[[float], None]]:
    """Has a signal handler raise after so many seconds."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise InterruptedByTestError

    before = signal.signal(signal.SIGALRM, handler)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def run_all(*works: Callable[[], None]) -> None:
    """Each in a thread of its own, `works` times at once; the first failure is raised."""
    failures: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    if failures:
        raise failures[0]


def test_many_threads_share_and_map_through_two_devices(opened: Open, machine: Machine) -> None:
    gntalloc, gntdev = opened(1, "gntalloc"), opened(2, "gntdev")

    def work() -> None:
        for i in range(40):
            refs, mine = share(gntalloc, 2, 1 + i % 3, writable=i % 2 == 0)
            mine[0] = i
            _, theirs = map_grants(gntdev, [(1, ref) for ref in refs], writable=i % 2 == 0)
            assert theirs[0] == i
            theirs.close()
            mine.close()

    run_all(*[work] * 6)
    eventually(lambda: machine.status()["domains"][1]["grants"] == 0, "every grant is revoked")


def test_a_mapping_dropped_inside_a_request_is_told_after_it(
    opened: Open, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = opened(1, "gntalloc")
    dropped = [share(device, 2)[1]]
    told: list[str] = []
    dropped.append(device.mmap(PAGE_SIZE, alloc(device, 2)[0], writable=True, unmapped=lambda: told.append("told")))
    original = client._Exchange.finish

    def finish(self: client._Exchange, sock: socket.socket) -> tuple[client.Reply, bool]:
        if dropped:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                dropped.clear()  # as the garbage collector would, in the middle of a request
        return original(self, sock)

    monkeypatch.setattr(client._Exchange, "finish", finish)
    alloc(device, 2)
    assert machine.status()["domains"][1]["mmaps"] == 0
    assert told == ["told"]


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_mapping_dropped_in_the_machines_own_thread_is_told(opened: Open, machine: Machine) -> None:
    """Without a GIL it is the thread that made it which finalises it, later, whoever dropped it."""
    device = opened(1, "gntalloc")
    dropped = [share(device, 2)[1]]

    def drop(server: object) -> None:
        dropped.clear()

    machine._do(drop)
    eventually(lambda: machine.status()["domains"][1]["grants"] == 0, "the grant is revoked")


def test_closing_from_many_threads_leaves_nothing(opened: Open, machine: Machine) -> None:
    device = opened(1, "gntalloc")
    mappings = [share(device, 2)[1] for _ in range(100)]

    def work(part: list[Mapping]) -> None:
        for mapping in part:
            mapping.close()

    run_all(*[lambda part=mappings[i::5]: work(part) for i in range(5)])
    eventually(lambda: machine.status()["domains"][1]["grants"] == 0, "every grant is revoked")


def test_the_file_ends_whoever_comes_last(opened: Open, machine: Machine) -> None:
    for round_ in range(10):
        device = opened(1, "gntalloc")
        mappings = [share(device, 2)[1] for _ in range(4)]
        works = [*[mapping.close for mapping in mappings], device.close]
        random.Random(round_).shuffle(works)
        run_all(*works)
    eventually(lambda: machine.leaks() == {}, "every file is released")


def test_a_callback_may_use_the_device_that_calls_it(opened: Open, machine: Machine) -> None:
    device = opened(1, "gntalloc")
    index, _ = alloc(device, 2)
    got: list[object] = []
    mapping = device.mmap(PAGE_SIZE, index, writable=True, unmapped=lambda: got.append(alloc(device, 2)))
    mapping.close()
    assert len(got) == 1


def test_events_in_many_threads(opened: Open) -> None:
    left, right = opened(1, "evtchn"), opened(2, "evtchn")
    pairs = [connected(left, 1, right, 2) for _ in range(8)]
    by_port = {port: [] for _, port in pairs}  # type: ignore[var-annotated]
    done = threading.Event()

    def send(port: int) -> None:
        for _ in range(50):
            notify(left, port)

    def receive() -> None:
        while not done.is_set():
            for port in read_ports(right):
                by_port[port].append(1)
                unmask(right, port)

    readers = [threading.Thread(target=receive) for _ in range(3)]
    for reader in readers:
        reader.start()
    run_all(*[lambda port=port: send(port) for port, _ in pairs])
    eventually(lambda: all(by_port.values()), "every port got an event")
    done.set()
    for reader in readers:
        reader.join(10)


def test_a_request_that_a_signal_handler_breaks_off_is_finished_by_the_next(
    opened: Open, machine: Machine, interrupt: Callable[[float], None]
) -> None:
    device = opened(1, "gntalloc")
    machine.pause(1)
    interrupt(0.1)
    with pytest.raises(InterruptedByTestError):
        alloc(device, 2)
    machine.unpause(1)
    refs, mine = share(device, 2)
    assert refs == (9,)  # 8 was allocated, and nobody heard of it
    mine.close()
    device.close()
    assert machine.leaks() == {}


def test_an_mmap_that_a_signal_handler_breaks_off_is_undone(
    opened: Open, machine: Machine, interrupt: Callable[[float], None]
) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2)
    device = opened(2, "gntdev")
    index = add_map(device, [(1, refs[0])])
    machine.pause(2)
    interrupt(0.1)
    with pytest.raises(InterruptedByTestError):
        device.mmap(PAGE_SIZE, index, writable=True)
    machine.unpause(2)
    add_map(device, [(1, refs[0])])
    eventually(lambda: machine.status()["domains"][2]["maps"] == 0, "the mapping that nobody got is gone")
    mine.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_mmap_whose_request_is_forked_in_is_refused_in_the_child(
    opened: Open, machine: Machine, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """As by a signal handler, which Python may run between any two of its steps."""
    device = opened(1, "gntalloc")
    offset = alloc(device, 2)[0]
    original = client._Exchange.finish
    children: list[int] = []

    def finish(self: client._Exchange, sock: socket.socket) -> tuple[client.Reply, bool]:
        if not children and when == "before":
            children.append(os.fork())
        reply = original(self, sock)
        if not children:
            children.append(os.fork())
        return reply

    monkeypatch.setattr(client._Exchange, "finish", finish)
    try:
        mapping = device.mmap(PAGE_SIZE, offset, writable=True)
        status = 1
    except InterfaceClosed:
        status = 7
    except BaseException:
        status = 2
    if children == [0]:
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 7
    assert status == 1
    mapping.close()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_storm_of_signals(opened: Open, machine: Machine) -> None:
    """Whenever a handler raises, the connection stays in step and nothing is left behind."""
    gntalloc, gntdev = opened(1, "gntalloc"), opened(2, "gntdev")
    armed = True

    def handler(number: int, frame: FrameType | None) -> None:
        if not armed or frame is None or frame.f_code.co_filename != client.__file__:
            return
        if frame.f_code.co_name not in ("__del__", "close_fds"):  # Python would only print what is raised there
            raise InterruptedByTestError

    before = signal.signal(signal.SIGALRM, handler)
    interrupted = 0
    rng = random.Random(1)
    try:
        for _ in range(400):
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 2e-3))
            mine = theirs = None
            try:
                refs, mine = share(gntalloc, 2, 2, writable=rng.random() < 0.5)
                _, theirs = map_grants(gntdev, [(1, refs[0])], writable=False)
            except InterruptedByTestError:
                interrupted += 1
            armed = False
            for mapping in (theirs, mine):
                if mapping is not None:
                    mapping.close()
            armed = True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    gc.collect()
    gntalloc.close()
    gntdev.close()
    assert interrupted > 10
    eventually(lambda: machine.leaks() == {}, "nothing is left behind")
