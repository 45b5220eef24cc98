"""A `Vchan` as its user sees it: what waits and for how long, and what is left when it is closed."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack

import pytest

import xengrant
from xengrant import Domain, vchan
from xengrant._native import load8, store8, store16, store32
from xengrant.abi import libxenvchan as abi
from xengrant.embedded import Machine
from xengrant.errors import InterfaceClosed, InterfaceUnavailable, PeerClosed, ProtocolError
from xengrant.vchan import Vchan

from .conftest import SOON, Ends

SIZES = [(1024, 1024), (1024, 2048), (2048, 2048), (4096, 1024), (65536, 4096), (1 << 20, 1 << 20)]


@pytest.mark.parametrize(("read_size", "write_size"), SIZES)
def test_megabytes_both_ways_at_once(ends: Ends, read_size: int, write_size: int) -> None:
    """Four threads, two at each end: one event has both look."""
    server, client = ends(read_size=read_size, write_size=write_size)
    data = {end: os.urandom(1_500_007) for end in (server, client)}
    got: dict[Vchan, bytearray] = {server: bytearray(), client: bytearray()}

    def write(end: Vchan) -> None:
        view = memoryview(data[end])
        at = 0
        for size in (1, 100_000, 7, 3_000, len(view)):
            at += end.write(view[at : at + size], SOON)

    def read(end: Vchan) -> None:
        buffer = bytearray(50_000)
        while len(got[end]) < 1_500_007:
            count = end.readinto(buffer, SOON)
            got[end] += buffer[:count]

    threads = [threading.Thread(target=work, args=(end,)) for end in (server, client) for work in (write, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * SOON)
    assert got[client] == data[server]
    assert got[server] == data[client]


def test_a_message_comes_whole_or_not_at_all(ends: Ends) -> None:
    server, client = ends(read_size=1024, write_size=2048)
    client.send(b"x" * 1000, SOON)
    with pytest.raises(TimeoutError, match="domain 1 read nothing"):
        client.send(b"y" * 100, 0.05)
    assert server.data_ready() == 1000
    with pytest.raises(TimeoutError, match="domain 2 wrote nothing"):
        server.recv(1001, 0.05)
    assert server.recv(1000) == b"x" * 1000
    for call in (lambda: client.send(b"z" * 1025), lambda: server.recv(1025)):
        with pytest.raises(ValueError, match="1025 bytes at once do not fit in a ring of 1024"):
            call()
    client.send(b"", SOON)
    assert server.recv(0) == b""


def test_a_buffer_is_filled_over_many_rings_or_up_to_the_end(ends: Ends) -> None:
    server, client = ends(read_size=1024, write_size=2048)
    data = os.urandom(300_000)
    buffer = bytearray(len(data))
    writer = threading.Thread(target=client.write, args=(data, SOON))
    writer.start()
    assert server.fill(buffer, SOON) == len(data)
    writer.join(SOON)
    assert buffer == data
    assert server.fill(bytearray()) == 0
    with pytest.raises(TimeoutError, match="domain 2 wrote nothing"):
        server.fill(buffer, 0.01)
    client.send(b"half")
    assert server.fill(buffer, 0.01) == 4
    client.send(b"rest")
    client.close()
    assert server.fill(buffer) == 4
    assert server.fill(buffer) == 0
    assert buffer[:4] == b"rest"


def test_many_buffers_are_written_in_one_call(ends: Ends) -> None:
    server, client = ends(read_size=1024, write_size=2048)
    data = os.urandom(100_000)
    lines = [data[at : at + 1500] for at in range(0, len(data), 1500)]
    buffer = bytearray(len(data))
    written: list[int] = []
    writer = threading.Thread(target=lambda: written.append(client.writelines(lines, SOON)))
    writer.start()
    assert server.fill(buffer, SOON) == len(data)
    writer.join(SOON)
    assert written == [len(data)]
    assert buffer == data
    assert client.writelines([]) == client.writelines([b"", b""]) == 0
    assert client.writelines(line for line in (b"one", b" two")) == 7
    assert server.recv(7) == b"one two"


def test_of_many_buffers_it_says_how_much_went_when_the_time_is_out(ends: Ends) -> None:
    server, client = ends(read_size=1024, write_size=1024)
    assert client.writelines([b"x" * 600, b"y" * 600, b"z"], 0.05) == 1024
    with pytest.raises(TimeoutError, match="domain 1 read nothing"):
        client.writelines([b"z"], 0.01)
    assert server.recv(1024) == b"x" * 600 + b"y" * 424
    assert client.writelines([b"a" * 1024, b"b"], 0.05) == 1024
    assert server.recv(1024) == b"a" * 1024


def test_of_many_buffers_one_that_is_none_leaves_those_before_written(ends: Ends) -> None:
    server, client = ends(read_size=1024, write_size=1024)
    lines = [b"x"] * 40
    with pytest.raises(TypeError):
        client.writelines([*lines, "text"])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        client.writelines(7)  # type: ignore[arg-type]
    client.write(b".")
    assert server.read().strip(b"x") == b"."
    server.close()
    with pytest.raises(PeerClosed):
        client.writelines([b"x"])


def test_a_stream_says_how_much_went_when_the_time_is_out(ends: Ends) -> None:
    server, client = ends(read_size=1024, write_size=2048)
    assert client.write(b"x" * 5000, 0.05) == 1024
    with pytest.raises(TimeoutError):
        client.write(b"y", 0)
    assert server.read(1 << 20) == b"x" * 1024
    with pytest.raises(TimeoutError):
        server.read(1, 0)
    assert server.read(0) == b""


def test_select_and_wait_tell_of_data(ends: Ends) -> None:
    server, client = ends()
    server.wait(SOON)
    assert server.data_ready() == 0
    while select.select([server], [], [], 0)[0]:
        server.wait(0)
    assert server.data_ready() == 0, "and asks to be told"
    client.send(b"x")
    assert select.select([server], [], [], SOON)[0]
    server.wait(0)
    assert server.recv(1, 0) == b"x"


def test_either_end_is_told_of_the_first_bytes_without_asking(ends: Ends) -> None:
    """As libxenvchan's are, whose programs select before they look."""
    server, client = ends()
    for end, peer in ((server, client), (client, server)):
        while select.select([end], [], [], 0)[0]:
            end.wait(0)
        peer.send(b"x")
        assert select.select([end], [], [], SOON)[0]


def test_a_wait_for_an_event_that_does_not_come_ends_late(ends: Ends) -> None:
    server, _ = ends()
    server.wait(SOON)
    with contextlib.suppress(TimeoutError):
        server.wait(0.05)  # the bind's, which is spurious, may be another
    for timeout in (0.05, 0):
        with pytest.raises(TimeoutError, match="told of nothing"):
            server.wait(timeout)


def await_asked(client: Vchan, what: int) -> None:
    """Until threads of the server's wait to be told of these."""
    deadline = time.monotonic() + SOON
    while load8(client._channel.control, abi.CLI_NOTIFY) & what != what:
        assert time.monotonic() < deadline, "the threads do not wait"
        time.sleep(0.001)


@pytest.mark.parametrize("name", ["read", "peek", "write", "reserve", "wait_drained"])
def test_a_time_out_holds_while_another_thread_waits(ends: Ends, name: str) -> None:
    server, client = ends(read_size=1024, write_size=1024)
    server.write(bytes(server.write_size))
    reads = name in ("read", "peek")
    other = threading.Thread(target=lambda: server.recv(1, SOON) if reads else server.send(b"y", SOON))
    other.start()
    await_asked(client, abi.NOTIFY_WRITE if reads else abi.NOTIFY_READ)
    with pytest.raises(TimeoutError, match="another thread"):
        getattr(server, name)(*([b"z"] if name == "write" else []), timeout=0.0)
    assert other.is_alive(), "it had the turn no more"
    client.write(b"y")
    client.recv(1, SOON)
    other.join(SOON)
    assert not other.is_alive()


def test_closing_ends_the_waits_of_other_threads(ends: Ends) -> None:
    server, client = ends(read_size=1024, write_size=1024)
    server.write(b"x" * server.write_size)
    ended: list[BaseException] = []

    def wait(call: object) -> None:
        try:
            call()  # type: ignore[operator]
        except BaseException as error:
            ended.append(error)

    threads = [
        threading.Thread(target=wait, args=(call,))
        for call in (server.read, lambda: server.write(b"y"), lambda: server.recv(1))
    ]
    for thread in threads:
        thread.start()
    await_asked(client, 3)
    server.close()
    for thread in threads:
        thread.join(SOON)
    assert [type(error) for error in ended] == [InterfaceClosed] * 3
    assert server.closed
    assert not client.is_open
    for call in (server.read, server.data_ready, server.wait, lambda: server.send(b"x"), server.peek):
        with pytest.raises(InterfaceClosed):
            call()
    server.close()


def test_close_is_refused_while_views_are_alive(ends: Ends) -> None:
    server, client = ends()
    view = server.reserve(SOON)
    with pytest.raises(BufferError, match="1 views of its rings alive"):
        server.close()
    assert not server.closed
    view[:5] = b"hello"
    server.commit(5)
    assert client.recv(5, SOON) == b"hello"
    view.release()
    server.close()


def test_a_client_maps_the_ring_that_it_reads_for_reading_only(machine: Machine, ends: Ends) -> None:
    ends(read_size=4096, write_size=4096)
    with xengrant.connect(machine.url(0)) as dom0, dom0.grant_table(of=1) as table:
        written = [entry.writing for entry in table.grants() if entry.domid == 2]
    assert written == [True, True, False], "of the shared page, the server's incoming ring, the client's"


def test_what_is_read_in_place_wraps(ends: Ends) -> None:
    server, client = ends(read_size=1024, write_size=2048)
    client.send(b"a" * 1000)
    assert server.recv(1000) == b"a" * 1000
    client.send(b"b" * 100)
    with server.peek() as view:
        assert view == b"b" * 24
        assert view.readonly
    server.consume(24)
    with server.peek() as view:
        assert view == b"b" * 76
    with pytest.raises(ValueError, match="cannot consume 77 bytes"):
        server.consume(77)
    server.consume(76)


def test_what_a_signal_handler_raises_is_not_taken_for_the_time_that_is_out(machine: Machine) -> None:
    """Also where bytes were moved before: dom0 asks after the other domain each second, and goes on."""

    def out_of_time(number: int, frame: object) -> None:
        raise TimeoutError("the program's own")

    calls: list[Callable[[Vchan], object]] = [
        lambda end: end.write(bytes(100_000)),
        lambda end: end.writelines([bytes(100), bytes(100_000)]),
        lambda end: end.fill(bytearray(100)),
    ]
    for call in calls:
        with (
            xengrant.connect(machine.url(0)) as dom0,
            xengrant.connect(machine.url(2)) as guest,
            vchan.serve(2, "x", domain=dom0) as end,
            vchan.connect(0, "x", domain=guest, timeout=SOON) as other,
        ):
            other.write(b"half")
            old = signal.signal(signal.SIGALRM, out_of_time)
            try:
                signal.setitimer(signal.ITIMER_REAL, 1.2)
                with pytest.raises(TimeoutError, match="the program's own"):
                    call(end)
            finally:
                signal.signal(signal.SIGALRM, old)


def test_a_wait_that_comes_when_all_is_closed_does_not_begin(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `close` rings it rang before, and nobody rings again."""

    class Silent:
        changes = 0

        def wait(self, changes: int, left: float | None) -> int:
            raise AssertionError("waits at an end that is closed")

    server, _ = ends()
    with monkeypatch.context() as patch:
        patch.setattr(server, "_doorbell", Silent())
        patch.setattr(server, "_ended", True)
        with pytest.raises(xengrant.InterfaceClosed):
            server._await_events(lambda: False, None, "nothing came to")


def test_a_signal_handler_runs_and_may_close(ends: Ends) -> None:
    server, _ = ends()
    called: list[int] = []

    def close(number: int, frame: object) -> None:
        called.append(number)
        server.close()

    old = signal.signal(signal.SIGALRM, close)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(InterfaceClosed):
            server.read(timeout=SOON)
    finally:
        signal.signal(signal.SIGALRM, old)
    assert called == [signal.SIGALRM]


def test_the_end_of_the_machine_is_told(machine: Machine) -> None:
    with Machine() as other, xengrant.connect(other.url(1)) as domain:
        end = vchan.serve(2, "test", domain=domain)
        threading.Timer(0.1, other.close).start()
        with pytest.raises(InterfaceUnavailable, match="the machine is gone"):
            end.read(timeout=SOON)
        end.close()


def test_dom0_is_told_of_the_end_of_the_other_domain(machine: Machine) -> None:
    with (
        xengrant.connect(machine.url(0)) as dom0,
        xengrant.connect(machine.url(1)) as guest,
        vchan.serve(1, "test", domain=dom0) as server,
    ):
        client = vchan.connect(0, "test", domain=guest, timeout=SOON)
        client.send(b"before")
        threading.Timer(0.1, machine.destroy, (1,)).start()
        assert server.recv(6) == b"before"
        with pytest.raises(PeerClosed, match="domain 1 is gone"):
            server.read(timeout=SOON)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            client.close()


def test_who_never_waits_for_long_is_told_of_it_too(machine: Machine) -> None:
    with (
        xengrant.connect(machine.url(0)) as dom0,
        xengrant.connect(machine.url(1)) as guest,
        vchan.serve(1, "test", domain=dom0) as server,
    ):
        client = vchan.connect(0, "test", domain=guest, timeout=SOON)
        client.send(b"before")
        machine.destroy(1)
        assert server.recv(6, SOON) == b"before"

        def read_for_long() -> None:
            deadline = time.monotonic() + SOON
            while time.monotonic() < deadline:
                with contextlib.suppress(TimeoutError):
                    server.read(timeout=0.01)

        with pytest.raises(PeerClosed, match="domain 1 is gone"):
            read_for_long()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            client.close()


def test_a_connection_that_is_not_to_be_says_why(granter: Domain, mapper: Domain) -> None:
    with pytest.raises(TimeoutError, match=r"/local/domain/1/data/vchan/2/x in 0\.05 seconds: domain 1 offers"):
        vchan.connect(1, "x", domain=mapper, timeout=0.05)
    with (
        vchan.serve(2, "x", domain=granter),
        vchan.connect(1, "x", domain=mapper, timeout=SOON),
        pytest.raises(TimeoutError, match=r"another client's, or its server is gone .* is bound already"),
    ):
        vchan.connect(1, "x", domain=mapper, timeout=0.05)
    for wrong in ("", "/", "//"):
        with pytest.raises(ValueError, match="is no path"):
            vchan.connect(1, wrong, domain=mapper)


def test_a_client_waits_for_the_one_before_to_leave(granter: Domain, mapper: Domain) -> None:
    with vchan.serve(2, "x", domain=granter, persist=True) as server:
        first = vchan.connect(1, "x", domain=mapper, timeout=SOON)
        threading.Timer(0.1, first.close).start()
        with vchan.connect(1, "x", domain=mapper, timeout=SOON) as second:
            second.send(b"hello")
            assert server.recv(5, SOON) == b"hello"


def test_paths_are_absolute_relative_or_names(granter: Domain, mapper: Domain) -> None:
    for path in ("/local/domain/1/data/elsewhere", "data/relative", "name"):
        with (
            vchan.serve(2, path, domain=granter) as server,
            vchan.connect(1, path, domain=mapper, timeout=SOON) as client,
        ):
            client.send(b"x")
            assert server.recv(1, SOON) == b"x"
            assert server.path == client.path


def test_a_servers_keys_outlive_one_that_was_replaced(granter: Domain, mapper: Domain) -> None:
    first = vchan.serve(2, "x", domain=granter)
    with vchan.serve(2, "x", domain=granter) as second:
        first.close()
        with vchan.connect(1, "x", domain=mapper, timeout=SOON) as client:
            client.send(b"x")
            assert second.recv(1, SOON) == b"x"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ring-ref", b"none"),
        ("ring-ref", b""),
        ("event-channel", b"4294967296"),
        ("ring-ref", b"1 2"),
        ("ring-ref", "٣"),
    ],
)
def test_keys_that_are_no_numbers_are_the_servers_lie(
    granter: Domain, mapper: Domain, key: str, value: bytes | str
) -> None:
    with vchan.serve(2, "x", domain=granter) as server, granter.xenstore() as store:
        store.write(f"{server.path}/{key}", value)
        with pytest.raises(ProtocolError, match=f"{key} is .* no number"):
            vchan.connect(1, "x", domain=mapper, timeout=SOON)


@pytest.mark.parametrize("orders", [(10, 10), (9, 12), (12, 21), (10, 20), (65535, 65535)])
def test_orders_that_cannot_be_are_the_servers_lie(granter: Domain, mapper: Domain, orders: tuple[int, int]) -> None:
    with vchan.serve(2, "x", domain=granter) as server:
        for at, order in zip((abi.LEFT_ORDER, abi.RIGHT_ORDER), orders, strict=True):
            store16(server._channel.control, at, order)
        with pytest.raises(ProtocolError, match=f"rings of order {orders[0]} and {orders[1]}"):
            vchan.connect(1, "x", domain=mapper, timeout=SOON)


def test_orders_and_refs_changed_after_the_client_came_mean_nothing(ends: Ends) -> None:
    server, client = ends(read_size=4096, write_size=8192)
    control = server._channel.control
    store16(control, abi.LEFT_ORDER, 20)
    store16(control, abi.RIGHT_ORDER, 10)
    store32(control, abi.GRANTS, 0xFFFFFFFF)
    client.write(b"x" * 4096, SOON)
    server.write(b"y" * 8192, SOON)
    assert server.recv(4096, SOON) == b"x" * 4096
    assert client.recv(8192, SOON) == b"y" * 8192


def test_a_client_may_bring_what_the_page_is_worth(ends: Ends) -> None:
    """The live byte decides nothing but whether more may come: any value but 0 is a client."""
    server, client = ends()
    store8(client._channel.control, abi.CLI_LIVE, 77)
    assert server.is_open
    store8(client._channel.control, abi.CLI_LIVE, 0)
    assert server.read(timeout=SOON) == b""


def test_an_unclosed_vchan_warns_and_is_given_back(granter: Domain) -> None:
    end = vchan.serve(2, "x", domain=granter)
    path = end.path
    ends = [end]
    del end
    with pytest.warns(ResourceWarning, match="unclosed <Vchan server to domain 2"):
        ends.clear()
    with granter.xenstore() as store:
        assert not store.exists(path)


def test_a_vchan_that_connects_by_itself_closes_its_domain(
    machine: Machine, mapper: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENGRANT_URL", machine.url(1))
    with (
        vchan.serve(2, "x") as server,
        xengrant.connect(machine.url(2)) as mapper,
        vchan.connect(1, "x", domain=mapper, timeout=SOON) as client,
    ):
        client.send(b"x")
        assert server.recv(1, SOON) == b"x"


def test_a_failed_serve_leaves_nothing(machine: Machine, granter: Domain) -> None:
    machine.configure(1, gntalloc_limit=10)
    with pytest.raises(xengrant.GrantTableFull):
        vchan.serve(2, "x", domain=granter)
    assert machine.leaks() == {1: {"connections": 1}}, "the domain's own xenstore connection"


def test_a_forked_child_has_no_vchan_and_takes_nothing_along(ends: Ends) -> None:
    server, client = ends()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            server.send(b"x", 1)
        except InterfaceClosed:
            status = 0
        except BaseException:
            status = 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    server.send(b"still here")
    assert client.recv(10, SOON) == b"still here"


def test_two_hundred_connections_one_after_the_other(
    machine: Machine, eventually: Callable[[Callable[[], bool], Callable[[], str]], None]
) -> None:
    with ExitStack() as stack:
        one, two = (stack.enter_context(xengrant.connect(machine.url(domid))) for domid in (1, 2))
        assert (one.domid, two.domid) == (1, 2)  # which opens their own connections to xenstore
        before = len(os.listdir("/proc/self/fd"))
        for number in range(200):
            with vchan.serve(2, "x", domain=one, read_size=4096, write_size=4096) as server:
                with vchan.connect(1, "x", domain=two, timeout=SOON) as client:
                    client.send(b"%d" % number)
                assert server.read(timeout=SOON) == b"%d" % number
                assert server.read(timeout=SOON) == b""
        # The machine is in this process, and closes its ends of connections in its own time.
        eventually(
            lambda: len(os.listdir("/proc/self/fd")) <= before, lambda: f"{os.listdir('/proc/self/fd')}, {before}"
        )
