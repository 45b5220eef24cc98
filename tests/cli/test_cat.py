"""`xengrant cat` in one domain, and in another a second one or a program that uses the library."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

import xengrant
from xengrant import vchan
from xengrant.embedded import Machine

from .shell import DEADLINE, SIGNALS, TOOL, Running, User, one_line, until
from .test_terminal import on_a_terminal

Users = Callable[[int], User]
PATH = "/local/domain/1/data/vchan/2/x"
WAITING = f"waiting for domain 2 to connect to {PATH}"
HOSTILE = b"\x1b]0;owned\x07 \x1b[2J\tk\xc3\xb6nnen\r\n\xff\xe2\x80\xae\xe2\x82"


@pytest.fixture
def typing() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """A stdin that stays open, and what writes to it."""
    reader, writer = os.pipe()
    with open(reader, "rb") as its, open(writer, "wb", buffering=0) as own:
        yield its, own


@contextlib.contextmanager
def client(machine: Machine, domid: int = 2) -> Iterator[vchan.Vchan]:
    """A program in domain 2 at the other end."""
    with (
        xengrant.connect(machine.url(domid)) as domain,
        vchan.connect(1, "x", timeout=DEADLINE, domain=domain) as channel,
    ):
        yield channel


@contextlib.contextmanager
def server(machine: Machine, write_size: int = 1 << 16) -> Iterator[vchan.Vchan]:
    with (
        xengrant.connect(machine.url(1)) as domain,
        vchan.serve(2, "x", write_size=write_size, domain=domain) as channel,
    ):
        yield channel


def listening(user: User, *options: str, stdin: bytes | BinaryIO | None = None) -> Running:
    cat = user.start("cat", "--listen", "2", "x", *options, stdin=stdin)
    assert cat.line("stderr") == WAITING
    return cat


def noise(path: Path, seed: int, size: int = 3 << 20) -> bytes:
    data = random.Random(seed).randbytes(size)
    path.write_bytes(data)
    return data


@pytest.mark.parametrize("first", [1, 2], ids=["server first", "client first"])
def test_random_bytes_go_both_ways_at_once(user: Users, tmp_path: Path, first: int) -> None:
    arguments = {1: ["--listen", "2", "x"], 2: ["1", "x"]}
    sent = {domid: noise(tmp_path / f"{domid}.in", domid) for domid in arguments}
    cats = {}

    def size(name: str) -> int:
        return (tmp_path / name).stat().st_size

    with contextlib.ExitStack() as opened:
        for domid in (first, 3 - first):
            its = opened.enter_context(open(tmp_path / f"{domid}.in", "rb"))
            out = opened.enter_context(open(tmp_path / f"{domid}.out", "wb"))
            cats[domid] = user(domid).start("cat", *arguments[domid], stdin=its, stdout=out)
            if domid == first:
                assert cats[domid].line("stderr").startswith("waiting for domain ")
        until(lambda: all(size(f"{3 - domid}.out") == size(f"{domid}.in") for domid in cats), "all has arrived")
    assert [cat.poll() for cat in cats.values()] == [None, None], "the end of stdin is not the end"
    cats[1].signal(signal.SIGINT)
    assert cats[1].ended().returncode == 130
    assert cats[2].ended().returncode == 0
    assert (tmp_path / "2.out").read_bytes() == sent[1]
    assert (tmp_path / "1.out").read_bytes() == sent[2]


def test_with_shutdown_the_end_of_input_ends_both(user: Users, machine: Machine, tmp_path: Path) -> None:
    sent = noise(tmp_path / "in", 3)
    serving = listening(user(1))
    with open(tmp_path / "in", "rb") as its:
        sending = user(2).start("cat", "-N", "1", "x", stdin=its)
    done = serving.ended()
    assert (done.returncode, done.stdout) == (0, sent)
    done = sending.ended()
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    until(lambda: not machine.leaks(), "everything is given back")


def test_a_server_may_end_it_too(user: Users, tmp_path: Path) -> None:
    sent = noise(tmp_path / "in", 4)
    with open(tmp_path / "in", "rb") as its:
        serving = user(1).start("cat", "-lN", "2", "x", "--write-size", "1M", "--read-size", "1K", stdin=its)
    done = user(2).run("cat", "1", "x")
    assert (done.returncode, done.stdout) == (0, sent)
    assert serving.ended().returncode == 0


def test_empty_input_is_carried_too(user: Users) -> None:
    serving = listening(user(1))
    done = user(2).run("cat", "-N", "1", "x", stdin=b"")
    assert (done.returncode, done.stdout) == (0, b"")
    done = serving.ended()
    assert (done.returncode, done.stdout) == (0, b"")


def test_shutdown_waits_until_the_peer_has_read_all(user: Users, machine: Machine) -> None:
    sending = user(1).start("cat", "-lN", "2", "x", stdin=b"x" * 5000)
    with client(machine) as channel:
        channel.recv(4999, DEADLINE)
        channel.send(b"an answer")
        channel.wait_drained(DEADLINE)
        with pytest.raises(TimeoutError):  # not PeerClosed
            channel.recv(2, timeout=0.3)
        channel.recv(1, DEADLINE)
        done = sending.ended()
        assert (done.returncode, done.stdout) == (0, b"an answer")


def test_shutdown_takes_what_the_peer_had_sent_by_then(user: Users, machine: Machine) -> None:
    """Though it can be written only later."""
    with server(machine, write_size=1 << 20) as channel:
        answer = random.Random(5).randbytes(1 << 20)
        channel.send(answer)
        sending = user(2).start("cat", "-N", "1", "x", stdin=b"x")
        channel.recv(1, DEADLINE)
        with pytest.raises(TimeoutError):
            channel.recv(1, timeout=0.3)
        done = sending.ended()
        assert (done.returncode, done.stdout) == (0, answer)


def test_a_peer_that_closes_first_ends_it(user: Users, machine: Machine, typing: tuple[BinaryIO, BinaryIO]) -> None:
    serving = listening(user(1), stdin=typing[0])
    with client(machine) as channel:
        typing[1].write(b"typed")
        assert channel.recv(5, DEADLINE) == b"typed"
        channel.send(b"the last words")
    done = serving.ended()
    assert (done.returncode, done.stdout, done.stderr) == (0, b"the last words", b"")


def test_what_the_peer_did_not_read_is_an_error(user: Users, machine: Machine) -> None:
    serving = listening(user(1), stdin=b"not read")
    with client(machine) as channel:
        until(lambda: channel.data_ready() == 8, "the input is there")
    text = one_line(serving.ended(), 1)
    assert text == f"domain 2 closed the vchan at {PATH} before it had read all that was sent"


def test_a_peer_that_is_killed_ends_it(user: Users, machine: Machine, typing: tuple[BinaryIO, BinaryIO]) -> None:
    serving = listening(user(1), stdin=typing[0])
    killed = user(2).start("cat", "1", "x")
    typing[1].write(b"hello\n")
    assert killed.line() == "hello"
    killed.signal(signal.SIGKILL)
    assert serving.ended().returncode == 0
    until(lambda: not machine.leaks(), "everything is given back")


def test_dom0_is_told_that_the_peers_domain_is_gone(user: Users, machine: Machine) -> None:
    serving = user(0).start("cat", "--listen", "2", "x")
    serving.line("stderr")
    with (
        xengrant.connect(machine.url(2)) as two,
        vchan.connect(0, "x", timeout=DEADLINE, domain=two) as channel,
    ):
        channel.send(b"here")
        until(lambda: channel.buffer_space() == channel.write_size, "that is read")
        machine.destroy(2)
        done = serving.ended()
    assert (done.returncode, done.stdout) == (1, b"here")
    assert done.stderr == b"xengrant: domain 2 is gone\n"


def test_one_client_after_the_other_is_served(user: Users, machine: Machine) -> None:
    serving = listening(user(1), "--keep-open", "--json")
    for name in ("first", "second", "third"):
        assert user(2).run("cat", "-N", "1", "x", stdin=f"{name}\n".encode()).returncode == 0
        assert serving.line() == name
        told = json.loads(serving.line("stderr"))
        assert told.pop("seconds") >= 0
        assert told == {"event": "closed", "domid": 2, "path": PATH, "sent": 0, "received": len(name) + 1}
        assert serving.line("stderr") == WAITING
    serving.signal(signal.SIGTERM)
    assert serving.ended().returncode == 143
    until(lambda: not machine.leaks(), "everything is given back")


def test_a_client_that_lies_does_not_end_those_after_it(user: Users, machine: Machine) -> None:
    serving = listening(user(1), "--keep-open")
    with client(machine) as channel:
        channel._channel.control[4:8] = b"\xff\xff\xff\x7f"  # left.prod
        channel._port.notify()
        assert "xengrant: " in serving.line("stderr")
        assert serving.line("stderr") == WAITING
    assert user(2).run("cat", "-N", "1", "x", stdin=b"honest\n").returncode == 0
    assert serving.line() == "honest"


def test_a_second_client_waits_for_its_own_vchan(user: Users, machine: Machine) -> None:
    """Else, were the first to leave, its bytes would be taken for the first one's."""
    serving = listening(user(1), "--keep-open")
    with client(machine) as channel, xengrant.connect(machine.url(2)) as two:
        channel.send(b"1\n")
        assert serving.line() == "1"
        with pytest.raises(TimeoutError, match="offers this domain nothing there"):
            vchan.connect(1, "x", timeout=0, domain=two)


@pytest.mark.parametrize("arguments", [["-l", "2", "x"], ["1", "x"]], ids=["listen", "connect"])
def test_nobody_there_in_time_is_status_2(user: Users, machine: Machine, arguments: list[str]) -> None:
    done = user(3 - int(arguments[-2])).run("cat", "--timeout", "0.1", *arguments)
    waiting, text = done.stderr.decode().splitlines()
    assert done.returncode == 2
    assert waiting.startswith("waiting for domain ")
    assert text.startswith("xengrant: no ")
    assert PATH in text
    until(lambda: not machine.leaks(), "everything is given back")


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("arguments", [["-l", "2", "x"], ["1", "x"]], ids=["listen", "connect"])
def test_a_signal_ends_the_waiting(user: Users, machine: Machine, number: int, arguments: list[str]) -> None:
    domid = 3 - int(arguments[-2])
    cat = user(domid).start("cat", *arguments)
    cat.line("stderr")
    # Its own xenstore connection, the one that it waits on, and the event channel: before, one meets their opening.
    until(lambda: machine.leaks().get(domid, {}).get("connections", 0) >= 3, "it waits")
    cat.signal(number)
    done = cat.ended()
    assert (done.returncode, done.stderr) == (128 + number, b"")
    assert keys(machine) == []


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_the_middle_is_a_clean_end(user: Users, machine: Machine, number: int) -> None:
    with open("/dev/zero", "rb") as endless:
        serving = listening(user(1), stdin=endless)
        with client(machine) as channel:
            channel.send(b"x\n")
            assert serving.line() == "x"
            channel.recv(1 << 16, DEADLINE)
            serving.signal(number)
            done = serving.ended()
            assert (done.returncode, done.stdout, done.stderr) == (128 + number, b"", b"")
            assert not channel.is_open
    assert keys(machine) == []
    until(lambda: not machine.leaks(), "everything is given back")


def keys(machine: Machine) -> list[str]:
    with xengrant.connect(machine.url(0)) as dom0, dom0.xenstore() as store:
        return store.directory(os.path.dirname(PATH)) if store.exists(os.path.dirname(PATH)) else []


def test_a_closed_stdout_is_a_quiet_end(user: Users, machine: Machine, typing: tuple[BinaryIO, BinaryIO]) -> None:
    reader, writer = os.pipe()
    with open(writer, "wb") as out:
        serving = user(1).start("cat", "-l", "2", "x", stdin=typing[0], stdout=out)
    os.close(reader)
    assert serving.line("stderr") == WAITING
    with client(machine) as channel:
        channel.send(b"to nobody")
        done = serving.ended()
        assert (done.returncode, done.stderr) == (141, b"")
        assert channel.read(timeout=DEADLINE) == b""


def test_without_stdin_it_only_reads(machine: Machine) -> None:
    command = 'exec "$@" 0<&-'
    cat = subprocess.Popen(
        ["sh", "-c", command, "sh", *TOOL, "--url", machine.url(2), "cat", "1", "x"], stdout=subprocess.PIPE
    )
    with cat, server(machine) as channel:
        channel.wait_connected(DEADLINE)
        channel.send(b"read")
        channel.wait_drained(DEADLINE)
        channel.close()
        assert cat.communicate(timeout=DEADLINE)[0] == b"read"
        assert cat.returncode == 0


def test_input_that_cannot_be_read_is_an_error(user: Users, machine: Machine) -> None:
    with server(machine), open(os.devnull, "wb") as for_writing:
        done = user(2).run("cat", "1", "x", stdin=for_writing)
    assert one_line(done, 1) == "cannot read the input: Bad file descriptor"


def test_on_a_terminal_what_the_peer_sent_is_escaped(machine: Machine) -> None:
    with server(machine) as channel:
        channel.send(HOSTILE)
        status, shown = on_a_terminal("cat", "1", "x", "--url", machine.url(2), meanwhile=lambda: leave(channel))
    assert status == 0
    assert shown.replace("\r\n", "\n") == "\\x1b]0;owned\\x07 \\x1b[2J\tkönnen\\x0d\n\\xff\\u202e\\xe2\\x82"


def test_raw_bytes_are_for_who_asks_for_them(machine: Machine) -> None:
    with server(machine) as channel:
        channel.send(b"\x1b[1mbold")
        status, shown = on_a_terminal(
            "cat", "--raw", "1", "x", "--url", machine.url(2), meanwhile=lambda: leave(channel)
        )
    assert (status, shown) == (0, "\x1b[1mbold")


def leave(channel: vchan.Vchan) -> None:
    channel.wait_drained(DEADLINE)
    channel.close()


def test_dom0_may_name_the_domain(user: Users, machine: Machine) -> None:
    machine.create(7, name="web")
    serving = user(0).start("cat", "--listen", "web", "x")
    assert serving.line("stderr") == "waiting for domain 7 to connect to /local/domain/0/data/vchan/7/x"
    assert user(7).run("cat", "-N", "0", "x", stdin=b"named").returncode == 0
    assert serving.ended().stdout == b"named"
    assert "there is no domain 'nobody'" in one_line(user(0).run("cat", "nobody", "x"), 1)
    assert "only dom0 can look domains up by name" in one_line(user(1).run("cat", "web", "x"), 1)


def test_what_was_moved_is_told_on_request(user: Users, typing: tuple[BinaryIO, BinaryIO]) -> None:
    serving = listening(user(1), "--verbose", stdin=b"1\n")
    cat = user(2).start("cat", "-N", "1", "x", "--json", stdin=typing[0])
    assert cat.line() == "1"  # its own end would not wait for that
    typing[1].write(b"12345")
    typing[1].close()
    told = json.loads(cat.ended().stderr)
    assert told.pop("seconds") >= 0
    assert told == {"event": "closed", "domid": 1, "path": PATH, "sent": 5, "received": 2}
    assert re.search(rb"sent 2 bytes, received 5 in \d+\.\d\d s", serving.ended().stderr)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["1"], "PATH"),
        (["-k", "1", "x"], "--keep-open is for --listen"),
        (["-lkN", "1", "x"], "choose one"),
        (["1", "x", "--read-size", "64K"], "need --listen"),
        (["-l", "1", "x", "--read-size", "2M"], "at most 1M"),
        (["-l", "1", "x", "--write-size", "many"], "not a number"),
    ],
)
def test_wrong_usage_is_status_64(user: Users, arguments: list[str], text: str) -> None:
    done = user(2).run("cat", *arguments)
    assert done.returncode == 64
    assert text in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["2", "x"], "domain 2 is this domain: sharing with oneself crashes some kernels, name another"),
        (["1", ""], "'' is no path: give an absolute xenstore path, or a name of letters, digits, - and _"),
    ],
)
def test_an_argument_that_cannot_be_is_one_clear_line(user: Users, arguments: list[str], text: str) -> None:
    assert one_line(user(2).run("cat", *arguments), 64) == text


def waiting_bytes(pipe: int) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_stdout_that_is_full_and_does_not_wait_gets_everything(
    user: Users, machine: Machine, unbuffered: str
) -> None:
    """Whether Python has a buffer before it or hands on what write(2) said."""
    data = random.Random(12).randbytes(1 << 20)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with open(reader, "rb", buffering=0) as its, server(machine) as channel:
        with open(writer, "wb", buffering=0) as full:
            cat = user(2).start("cat", "1", "x", stdin=b"", stdout=full, PYTHONUNBUFFERED=unbuffered)

        def send() -> None:
            channel.write(data, DEADLINE)
            channel.close()

        sender = threading.Thread(target=send)
        sender.start()
        assert its.read(1) == data[:1]
        capacity = fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ)
        until(lambda: waiting_bytes(reader) > capacity - 4096, "the pipe is full, but for the page that was begun")
        assert its.read() == data[1:]
        sender.join(DEADLINE)
        assert cat.ended().returncode == 0
