"""`xengrant proxy` between sockets and vchans: programs at the sockets, another proxy or a program at the vchan."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import random
import re
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import xengrant
from xengrant import vchan
from xengrant.abi.libxenvchan import CLI_LIVE, LIVE_GONE
from xengrant.cli import sockets
from xengrant.embedded import Machine

from .shell import DEADLINE, SIGNALS, Running, User, one_line, until

Users = Callable[[int], User]
PATH = "/local/domain/1/data/vchan/2/x"


class Target:
    """A program that listens at a socket."""

    def __init__(self, where: str | None = None, *, receive_buffer: int | None = None) -> None:
        if where is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            if receive_buffer is not None:
                self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self.where = f"127.0.0.1:{self._listener.getsockname()[1]}"
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(where)
            self._listener.listen()
            self.where = where
        self._listener.settimeout(DEADLINE)

    def accept(self) -> socket.socket:
        client = self._listener.accept()[0]
        client.settimeout(DEADLINE)
        return client

    def close(self) -> None:
        self._listener.close()


@pytest.fixture(params=["unix", "tcp"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Target]:
    with contextlib.closing(Target(str(tmp_path / "target") if request.param == "unix" else None)) as target:
        yield target


def dial(where: str) -> socket.socket:
    if "/" in where:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(DEADLINE)
        client.connect(where)
        return client
    host, _, port = where.rpartition(":")
    return socket.create_connection((host, int(port)), DEADLINE)


def from_vchan(user: User, target: str, *options: str) -> Running:
    proxy = user.start("proxy", "--listen-vchan", "2", "x", "--connect", target, *options)
    assert proxy.line("stderr") == f"listening at {PATH}; Ctrl-C ends it"
    return proxy


def from_socket(user: User, where: str, *options: str) -> tuple[Running, str]:
    """The proxy, and where it listens."""
    proxy = user.start("proxy", "--listen", where, "--connect-vchan", "1", "x", *options)
    match = re.fullmatch(r"listening at (.*); Ctrl-C ends it", proxy.line("stderr"))
    assert match
    return proxy, match[1]


def end_of(proxy: Running) -> str:
    """The line of a connection, without its seconds."""
    return re.sub(r", \d+\.\d\d s", "", proxy.line("stderr"))


@contextlib.contextmanager
def client(machine: Machine) -> Iterator[vchan.Vchan]:
    with (
        xengrant.connect(machine.url(2)) as domain,
        vchan.connect(1, "x", timeout=DEADLINE, domain=domain) as channel,
    ):
        yield channel


@contextlib.contextmanager
def server(machine: Machine) -> Iterator[vchan.Vchan]:
    with xengrant.connect(machine.url(1)) as domain, vchan.serve(2, "x", domain=domain) as channel:
        yield channel


def all_of(read: Callable[[int], bytes], size: int) -> bytes:
    data = b""
    while len(data) < size and (more := read(min(size - len(data), 1 << 16))):
        data += more
    return data


def exchange(near: socket.socket, far: socket.socket, there: bytes, back: bytes) -> None:
    """Both at once, exactly."""
    senders = [threading.Thread(target=end.sendall, args=(data,)) for end, data in ((near, there), (far, back))]
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(all_of(far.recv, len(there))))
    for thread in (*senders, reader):
        thread.start()
    assert all_of(near.recv, len(back)) == back
    for thread in (*senders, reader):
        thread.join(DEADLINE)
    assert got == [there]


@pytest.mark.parametrize("near", ["unix", "tcp"])
def test_several_connections_in_turn_are_carried_both_ways(
    user: Users, machine: Machine, target: Target, near: str, tmp_path: Path
) -> None:
    far_proxy = from_vchan(user(1), target.where)
    near_proxy, where = from_socket(user(2), str(tmp_path / "near") if near == "unix" else "127.0.0.1:0")
    for number, size in enumerate((0, 1, 1 << 20, 300), 1):
        there, back = (random.Random(number * way).randbytes(size) for way in (1, -1))
        with dial(where) as here, target.accept() as far:
            exchange(here, far, there, back)
            if number % 2:
                here.shutdown(socket.SHUT_WR)
            else:
                far.shutdown(socket.SHUT_WR)
            assert far.recv(1) == here.recv(1) == b""
        assert end_of(near_proxy) == f"connection {number}: {size} bytes to the vchan, {size} from it"
        assert end_of(far_proxy) == f"connection {number}: {size} bytes to the vchan, {size} from it"
    for proxy in (near_proxy, far_proxy):
        proxy.signal(signal.SIGINT)
        done = proxy.ended()
        assert (done.returncode, done.stderr) == (0, b"stopped after 4 connections\n")
    until(lambda: not machine.leaks(), "everything is given back")


def test_clients_in_quick_succession_are_not_mixed_up(user: Users, target: Target) -> None:
    far_proxy = from_vchan(user(1), target.where)
    _, where = from_socket(user(2), "127.0.0.1:0")
    clients = [dial(where) for _ in range(10)]
    for number, here in enumerate(clients):
        here.sendall(b"%d" % number * 1000)
        here.close()
    for number in range(10):
        with target.accept() as far:
            assert all_of(far.recv, 1 << 20) == b"%d" % number * 1000
        assert "1000 from it" in far_proxy.line("stderr")


def test_what_the_target_sends_last_arrives_before_the_end(user: Users, machine: Machine, target: Target) -> None:
    from_vchan(user(1), target.where)
    data = random.Random(7).randbytes(1 << 20)
    with client(machine) as channel, target.accept() as far:

        def send() -> None:
            far.sendall(data)
            far.shutdown(socket.SHUT_RDWR)

        sender = threading.Thread(target=send)
        sender.start()
        assert all_of(lambda most: channel.read(most, DEADLINE), len(data)) == data
        assert channel.read(1, DEADLINE) == b""
        sender.join(DEADLINE)


def test_what_a_client_of_the_socket_sends_last_arrives(user: Users, machine: Machine) -> None:
    with server(machine) as channel:
        proxy, where = from_socket(user(2), "127.0.0.1:0", "--once")
        data = random.Random(8).randbytes(1 << 20)
        with dial(where) as here:
            sender = threading.Thread(target=here.sendall, args=(data,))
            sender.start()
            got = all_of(lambda most: channel.read(most, DEADLINE), len(data) - 1)
            sender.join(DEADLINE)
        assert channel.is_open, "it closes when everything was read"
        assert got + channel.recv(1, DEADLINE) == data
        assert channel.read(1, DEADLINE) == b""
        assert proxy.ended().returncode == 0


def test_a_client_that_left_is_still_heard_to_the_end(user: Users, machine: Machine, tmp_path: Path) -> None:
    """Though what is for it goes nowhere any more."""
    data = random.Random(10).randbytes(100_000)
    with server(machine) as channel:
        _, where = from_socket(user(2), str(tmp_path / "near"))
        with dial(where) as here:
            here.sendall(data)
        channel.send(b"to nobody")
        channel.wait_drained(DEADLINE)
        assert all_of(lambda most: channel.read(most, DEADLINE), len(data)) == data
        assert channel.read(1, DEADLINE) == b""


def test_a_target_that_goes_on_sending_gets_all_that_was_for_it(user: Users, machine: Machine) -> None:
    """Closing over bytes that came too late for the vchan would reset its connection, and drop what it had to read."""
    data = random.Random(11).randbytes(200_000)
    with contextlib.closing(Target(receive_buffer=4096)) as target:
        from_vchan(user(1), target.where)
        with client(machine) as channel, target.accept() as far:
            channel.write(data, DEADLINE)
            channel.wait_drained(DEADLINE)
            channel.close()
            got = b""
            while len(got) < len(data) and (more := far.recv(10_000)):
                got += more
                far.sendall(b"so far so good")
            assert got == data
            assert far.recv(1) == b""


def test_a_server_that_stays_the_same_can_see_each_client_leave(user: Users, machine: Machine, tmp_path: Path) -> None:
    """As Xen's vchan-socket-proxy, which takes one that comes too soon for the last one."""
    with (
        xengrant.connect(machine.url(1)) as one,
        vchan.serve(2, "x", persist=True, domain=one) as channel,
    ):
        _, where = from_socket(user(2), str(tmp_path / "near"))
        clients = [dial(where) for _ in range(5)]
        for number, here in enumerate(clients):
            here.sendall(b"%d" % number)
            here.close()
        for number in range(5):
            assert channel.recv(1, DEADLINE) == b"%d" % number
            until(lambda: channel._channel.control[CLI_LIVE] == LIVE_GONE, f"client {number} has left")


def test_a_client_that_is_killed_ends_its_connection_only(user: Users, machine: Machine, target: Target) -> None:
    proxy = from_vchan(user(1), target.where)
    killed = user(2).start("cat", "1", "x")
    with target.accept() as far:
        far.sendall(b"hello\n")
        assert killed.line() == "hello"
        killed.signal(signal.SIGKILL)
        assert far.recv(1) == b""
    assert end_of(proxy) == "connection 1: 6 bytes to the vchan, 0 from it"
    with client(machine) as channel, target.accept() as far:
        channel.send(b"next")
        assert far.recv(4) == b"next"


def test_without_a_target_the_client_is_told_by_the_end(user: Users, machine: Machine, tmp_path: Path) -> None:
    where = str(tmp_path / "target")
    proxy = from_vchan(user(1), where)
    with client(machine) as channel:
        assert channel.read(1, DEADLINE) == b""
    reason = f"cannot connect to {where}: No such file or directory"
    assert end_of(proxy) == f"connection 1: 0 bytes to the vchan, 0 from it: {reason}"
    with contextlib.closing(Target(where)) as target, client(machine) as channel, target.accept() as far:
        far.sendall(b"now there")
        assert channel.recv(9, DEADLINE) == b"now there"


def test_without_a_server_the_socket_is_closed_in_time(user: Users, machine: Machine) -> None:
    proxy, where = from_socket(user(2), "127.0.0.1:0", "--timeout", "0.2")
    with dial(where) as here:
        assert here.recv(1) == b""
    assert "no vchan at" in end_of(proxy)
    with dial(where) as here, server(machine) as channel:
        channel.send(b"late")
        assert all_of(here.recv, 4) == b"late"


def test_a_peer_that_lies_ends_its_connection_only(user: Users, machine: Machine, target: Target) -> None:
    proxy = from_vchan(user(1), target.where)
    with client(machine) as channel, target.accept():
        channel._channel.control[4:8] = b"\xff\xff\xff\x7f"  # left.prod
        channel._port.notify()
        assert "connection 1: 0 bytes to the vchan, 0 from it: " in end_of(proxy)
    with client(machine) as channel, target.accept() as far:
        channel.send(b"honest")
        assert far.recv(6) == b"honest"


def test_what_the_peer_did_not_read_is_told(user: Users, machine: Machine, target: Target) -> None:
    proxy = from_vchan(user(1), target.where)
    with client(machine) as channel, target.accept() as far:
        far.sendall(b"not read")
        until(lambda: channel.data_ready() == 8, "it is there")
    assert end_of(proxy).endswith("8 bytes to the vchan, 0 from it: domain 2 closed before it had read everything")


def test_http_goes_through(user: Users, tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(random.Random(9).randbytes(500_000))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        try:
            from_vchan(user(1), f"localhost:{served.server_port}")
            _, where = from_socket(user(2), str(tmp_path / "sock"))
            for _ in range(2):
                connection = http.client.HTTPConnection("xen")
                connection.sock = dial(where)
                connection.request("GET", "/page")
                assert connection.getresponse().read() == (tmp_path / "page").read_bytes()
                connection.close()
        finally:
            served.shutdown()
            thread.join()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_clean_end_also_in_the_middle(user: Users, machine: Machine, tmp_path: Path, number: int) -> None:
    near = tmp_path / "near"
    with contextlib.closing(Target()) as target:
        far_proxy = from_vchan(user(1), target.where)
        near_proxy, _ = from_socket(user(2), str(near))
        assert stat.S_ISSOCK(near.stat().st_mode)
        with dial(str(near)) as here, target.accept() as far:
            far.sendall(b"x")
            assert here.recv(1) == b"x"
            for proxy in (near_proxy, far_proxy):
                proxy.signal(number)
                assert proxy.ended().returncode == 0
            assert far.recv(1) == here.recv(1) == b""
    assert not near.exists()
    with xengrant.connect(machine.url(0)) as dom0, dom0.xenstore() as store:
        assert not store.exists(PATH)
    until(lambda: not machine.leaks(), "everything is given back")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_waiting_for_a_server(user: Users, machine: Machine, tmp_path: Path, number: int) -> None:
    near = tmp_path / "near"
    proxy, _ = from_socket(user(2), f"unix:{near}")
    idle = machine.status()["domains"][2]["files"]
    with dial(str(near)) as here:
        until(lambda: machine.status()["domains"][2]["files"] > idle, "it looks for the server")
        proxy.signal(number)
        assert proxy.ended().returncode == 0
        assert here.recv(1) == b""
    assert not near.exists()


def test_a_live_socket_is_not_replaced_and_a_dead_one_is(user: Users, tmp_path: Path) -> None:
    where = str(tmp_path / "near")
    proxy, _ = from_socket(user(2), where)
    again = ["proxy", "--listen", where, "--connect-vchan", "1", "x"]
    assert one_line(user(2).run(*again), 2) == f"cannot listen at {where}: somebody listens there already"
    proxy.signal(signal.SIGKILL)
    proxy.ended()
    assert os.path.exists(where)
    proxy, _ = from_socket(user(2), where)
    os.unlink(where)
    Path(where).write_text("precious")
    proxy.signal(signal.SIGTERM)
    assert proxy.ended().returncode == 0
    text = one_line(user(2).run(*again), 1)
    assert text == f"cannot listen at {where}: it is there already and no socket"
    assert Path(where).read_text() == "precious"


def test_json_has_stable_names(user: Users, machine: Machine, target: Target) -> None:
    proxy = from_vchan(user(1), target.where, "--json")
    assert json.loads(proxy.line()) == {"event": "listening", "at": PATH, "domid": 2, "path": PATH}
    with client(machine) as channel, target.accept() as far:
        channel.send(b"12")
        far.sendall(b"345")
        assert far.recv(2) == b"12"
        assert channel.recv(3, DEADLINE) == b"345"
    told = json.loads(proxy.line())
    assert told.pop("seconds") >= 0
    assert told == {"event": "closed", "connection": 1, "to_vchan": 3, "from_vchan": 2, "error": None}
    proxy.signal(signal.SIGTERM)
    assert json.loads(proxy.ended().stdout) == {"event": "stopped", "connections": 1}


def test_once_ends_with_the_connection(user: Users, machine: Machine, tmp_path: Path) -> None:
    where = str(tmp_path / "target")
    proxy = from_vchan(user(1), where, "--once")
    with client(machine) as channel:
        assert channel.read(1, DEADLINE) == b""
    assert one_line(proxy.ended(), 1) == f"cannot connect to {where}: No such file or directory"
    proxy, near = from_socket(user(2), "localhost:0", "--once", "--timeout", "0")
    with dial(near) as here:
        assert here.recv(1) == b""
    assert one_line(proxy.ended(), 2).startswith(f"no vchan at {PATH} in 0.0 seconds")
    with contextlib.closing(Target(where)) as target:
        proxy = from_vchan(user(1), where, "--once")
        with client(machine), target.accept():
            pass
        assert proxy.ended().returncode == 0


def test_the_state_path_says_that_it_runs(user: Users, machine: Machine, tmp_path: Path) -> None:
    from_vchan(user(1), str(tmp_path / "target"), "--state-path", "data/proxy")
    with xengrant.connect(machine.url(0)) as dom0, dom0.xenstore() as store:
        assert store.read("/local/domain/1/data/proxy") == b"running"


def test_an_end_of_the_machine_ends_it(user: Users, machine: Machine, target: Target) -> None:
    proxy = from_vchan(user(1), target.where)
    with client(machine), target.accept() as far:
        machine.destroy(1)
        assert far.recv(1) == b""
        assert proxy.ended().returncode == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "give --listen SOCKET and --connect-vchan"),
        (["--listen", "/x"], "give --listen SOCKET and --connect-vchan"),
        (["--listen", "/x", "--connect", "/y"], "give --listen SOCKET and --connect-vchan"),
        (["--listen-vchan", "1", "x", "--connect-vchan", "1", "x"], "give --listen SOCKET and --connect-vchan"),
        (
            ["--listen", "/x", "--connect-vchan", "1", "x", "--listen-vchan", "1", "x", "--connect", "/y"],
            "give --listen SOCKET and --connect-vchan",
        ),
        (
            ["--listen", "/x", "--connect-vchan", "1", "x", "--connect", "/y"],
            "give --listen SOCKET and --connect-vchan",
        ),
        (["--listen", "8080", "--connect-vchan", "1", "x"], "'8080' is no socket"),
        (["--listen", "host:70000", "--connect-vchan", "1", "x"], "is no socket"),
        (["--listen", "/x", "--connect-vchan", "1", "x", "--read-size", "64K"], "need --listen-vchan"),
    ],
)
def test_wrong_usage_is_status_64(user: Users, arguments: list[str], text: str) -> None:
    done = user(2).run("proxy", *arguments)
    assert done.returncode == 64
    assert text in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--listen", "/no/such/x", "--connect-vchan", "1", "x"], "cannot listen at /no/such/x: No such file"),
        (["--listen", "/" + "x" * 200, "--connect-vchan", "1", "x"], "AF_UNIX path too long"),
        (["--listen", "192.0.2.1:1", "--connect-vchan", "1", "x"], "cannot listen at 192.0.2.1:1: "),
    ],
)
def test_an_argument_that_cannot_be_is_one_clear_line(user: Users, arguments: list[str], text: str) -> None:
    assert text in one_line(user(2).run("proxy", *arguments), 1)


def test_the_other_end_is_another_domains(user: Users) -> None:
    itself = user(2).run("proxy", "--listen", "/tmp/x", "--connect-vchan", "2", "x")
    assert "domain 2 is this domain" in one_line(itself, 64)


def test_a_server_whose_keys_are_wrong_ends_its_connection_only(user: Users, machine: Machine) -> None:
    proxy, where = from_socket(user(2), "127.0.0.1:0")
    with xengrant.connect(machine.url(1)) as domain, domain.xenstore() as store:
        for name, value in (("ring-ref", "junk"), ("event-channel", "1")):
            store.write(f"{PATH}/{name}", value)
            store.set_permissions(f"{PATH}/{name}", [xengrant.Permission(1, "n"), xengrant.Permission(2, "r")])
        with dial(where) as here:
            assert here.recv(1) == b""
        line = end_of(proxy)
        assert line.startswith("connection 1: 0 bytes to the vchan, 0 from it: ")
        assert line.endswith("which is no number of 32 bits")
        store.rm(PATH)
    with dial(where) as here, server(machine) as channel:
        channel.send(b"honest")
        assert all_of(here.recv, 6) == b"honest"


def test_keys_that_become_wrong_meanwhile_do_not_end_the_proxy(user: Users, machine: Machine) -> None:
    proxy, where = from_socket(user(2), "127.0.0.1:0")
    with server(machine) as channel, xengrant.connect(machine.url(1)) as domain, domain.xenstore() as store:
        with dial(where) as here:
            channel.send(b"x")
            assert here.recv(1) == b"x"
            store.write(f"{PATH}/ring-ref", "junk")
        assert end_of(proxy) == "connection 1: 0 bytes to the vchan, 1 from it"
        assert "which is no number" in proxy.line("stderr")
        store.rm(PATH)
    with dial(where) as here, server(machine) as channel:
        channel.send(b"honest")
        assert all_of(here.recv, 6) == b"honest"


def test_a_target_that_never_stops_sending_does_not_keep_the_next_one_waiting() -> None:
    ours, theirs = socket.socketpair()
    stop = threading.Event()

    def chatter() -> None:
        with contextlib.suppress(OSError):
            while not stop.wait(0.02):
                theirs.sendall(b"and another thing")

    talker = threading.Thread(target=chatter)
    goodbye = threading.Thread(target=sockets.say_goodbye, args=(ours,), daemon=True)
    with theirs:
        talker.start()
        goodbye.start()
        goodbye.join(DEADLINE)
        stop.set()
        talker.join()
        assert not goodbye.is_alive()
