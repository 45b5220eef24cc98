"""xenstore nodes of others, as a guest, in the protocol's own bytes."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest

from tests.attacks.conftest import Outcome, Refused
from tests.attacks.raw import Store
from xengrant.abi import xs_wire
from xengrant.abi.xs_wire import Operation
from xengrant.embedded import Machine

THROUGH = "xenbus's connection"

PRIVATE = "/local/domain/1/data/private"
SECRET = f"{PRIVATE}/name-that-is-secret"


@pytest.fixture
def honest(machine: Machine) -> Iterator[Store]:
    """Domain 1's, with nodes that are its own alone."""
    with Store(machine, 1) as store:
        store.do(Operation.MKDIR, PRIVATE)
        store.do(Operation.WRITE, SECRET, tail=b"the secret")
        yield store
        assert store.do(Operation.READ, SECRET) == b"the secret"
        assert store.do(Operation.DIRECTORY, PRIVATE) == b"name-that-is-secret\0"
        assert store.do(Operation.GET_PERMS, SECRET) == b"n1\0"
        store.do(Operation.RM, PRIVATE)


@pytest.fixture
def hostile(machine: Machine) -> Iterator[Store]:
    with Store(machine, 3) as store:
        yield store


ASKS: dict[str, tuple[Operation, tuple[str, ...], bytes]] = {
    "read": (Operation.READ, (SECRET,), b""),
    "list": (Operation.DIRECTORY, (PRIVATE,), b""),
    "list in parts": (Operation.DIRECTORY_PART, (PRIVATE, "0"), b""),
    "write": (Operation.WRITE, (SECRET,), b"mine"),
    "write a new one below": (Operation.WRITE, (f"{PRIVATE}/new",), b"mine"),
    "write a new one beside": (Operation.WRITE, ("/local/domain/1/data/new",), b"mine"),
    "mkdir": (Operation.MKDIR, (f"{PRIVATE}/new",), b""),
    "rm": (Operation.RM, (SECRET,), b""),
    "rm from above": (Operation.RM, ("/local/domain/1",), b""),
    "rm of all": (Operation.RM, ("/",), b""),
    "permissions": (Operation.GET_PERMS, (SECRET,), b""),
    "allow oneself": (Operation.SET_PERMS, (SECRET, "n1", "b3"), b""),
    "own it": (Operation.SET_PERMS, (SECRET, "n3"), b""),
    "own the domain": (Operation.SET_PERMS, ("/local/domain/1", "n3"), b""),
    "own what is special": (Operation.SET_PERMS, ("@secret", "n3"), b""),
    "permissions of what is special": (Operation.GET_PERMS, ("@secret",), b""),
    "own the news of domains": (Operation.SET_PERMS, ("@releaseDomain", "n3"), b""),
    "list all domains": (Operation.DIRECTORY, ("/local/domain",), b""),
    "write one's own name": (Operation.WRITE, ("name",), b"dom0"),
    "write to dom0": (Operation.WRITE, ("/local/domain/0/data/x",), b"mine"),
    "write to the toolstack": (Operation.WRITE, ("/libxl/3/type",), b"hvm"),
    "make a device": (Operation.WRITE, ("device/vbd/51712/backend", ), b"/local/domain/1"),
}  # fmt: skip


@pytest.mark.parametrize("inside", [False, True], ids=["at once", "in a transaction"])
@pytest.mark.parametrize("what", ASKS)
def test_nodes_of_others(honest: Store, hostile: Store, what: str, inside: bool, refused: Refused) -> None:
    """reach into another domain's nodes, or the toolstack's"""
    operation, strings, tail = ASKS[what]
    with refused(errno.EACCES):
        hostile.do(operation, *strings, tail=tail, transaction=hostile.start() if inside else 0)


def test_what_is_not_there_is_not_told_from_what_is(honest: Store, hostile: Store, refused: Refused) -> None:
    """find out whether a private node exists"""
    for path in (SECRET, f"{PRIVATE}/no-such-name", "/local/domain/1/data/none", "/local/domain/77/data"):
        with refused(errno.EACCES):
            hostile.do(Operation.READ, path)


def test_another_connections_transaction(machine: Machine, honest: Store, hostile: Store, refused: Refused) -> None:
    """read, write or end in another connection's transaction"""
    with Store(machine, 3) as neighbour:
        for other in (honest, neighbour):
            number = other.start()
            for operation, strings in (
                (Operation.READ, (SECRET,)),
                (Operation.WRITE, ("data/x",)),
                (Operation.TRANSACTION_END, ("T",)),
                (Operation.TRANSACTION_END, ("F",)),
            ):
                with refused(errno.ENOENT):
                    hostile.do(operation, *strings, transaction=number)
            other.do(Operation.TRANSACTION_END, "F", transaction=number)


@pytest.mark.parametrize(
    "path", ["/", "/local", "/local/domain", "/local/domain/1", "/local/domain/1/data", PRIVATE, SECRET]
)
def test_a_watch_that_would_tell_names(honest: Store, hostile: Store, path: str, outcome: Outcome) -> None:
    """watch a node, or what is above it, to be told private names"""
    hostile.do(Operation.WATCH, path, "token")
    honest.do(Operation.WRITE, SECRET, tail=b"the secret")
    honest.do(Operation.WRITE, f"{PRIVATE}/another", tail=b"x")
    number = honest.start()
    honest.do(Operation.WRITE, f"{PRIVATE}/another", tail=b"y", transaction=number)
    honest.do(Operation.TRANSACTION_END, "T", transaction=number)
    honest.do(Operation.SET_PERMS, f"{PRIVATE}/another", "n1", "r2")
    honest.do(Operation.RM, f"{PRIVATE}/another")
    hostile.do(Operation.WRITE, "data/fence", tail=b"")  # whatever was to be told has been by its answer
    assert [event for event in hostile.events if b"private" in event and event != path.encode() + b"\0token\0"] == []
    outcome("silence")


@pytest.mark.parametrize("path", ["@releaseDomain", "@introduceDomain"])
def test_news_of_domains(machine: Machine, hostile: Store, path: str, outcome: Outcome) -> None:
    """watch other domains come and go"""
    hostile.do(Operation.WATCH, path, "token")
    hostile.do(Operation.WRITE, "data/fence", tail=b"")
    hostile.events.clear()  # of the first, which each watch is told
    machine.create(4)
    machine.destroy(4)
    hostile.do(Operation.WRITE, "data/fence", tail=b"")
    assert hostile.events == []
    outcome("silence")


def test_a_node_whose_reader_is_taken_back(honest: Store, hostile: Store, outcome: Outcome) -> None:
    """go on reading and watching after the right was taken back"""
    shown = "/local/domain/1/data/shown"
    honest.do(Operation.WRITE, shown, tail=b"1")
    honest.do(Operation.SET_PERMS, shown, "n1", "r3")
    hostile.do(Operation.WATCH, shown, "token")
    assert hostile.do(Operation.READ, shown) == b"1"
    honest.do(Operation.SET_PERMS, shown, "n1")
    hostile.do(Operation.WRITE, "data/fence", tail=b"")
    hostile.events.clear()  # of the change, which who could read it is told
    honest.do(Operation.WRITE, shown, tail=b"2")
    with pytest.raises(PermissionError):
        hostile.do(Operation.READ, shown)
    assert hostile.events == []
    honest.do(Operation.RM, shown)
    outcome("EACCES, and silence")


def test_rights_of_a_domain_that_is_gone(machine: Machine, honest: Store, refused: Refused) -> None:
    """come as the next domain of a number that had rights"""
    shown = "/local/domain/1/data/shown"
    machine.create(4)
    honest.do(Operation.WRITE, f"{shown}/old", tail=b"1")
    for path in (shown, f"{shown}/old"):
        honest.do(Operation.SET_PERMS, path, "n1", "b4")
    number = honest.start()
    honest.do(Operation.WRITE, f"{shown}/later", tail=b"1", transaction=number)
    machine.destroy(4)
    machine.create(4)
    with pytest.raises(OSError, match=errno.errorcode[errno.EAGAIN]):
        honest.do(Operation.TRANSACTION_END, "T", transaction=number)
    honest.do(Operation.WRITE, shown, tail=b"2")
    honest.do(Operation.WRITE, f"{shown}/new", tail=b"2")
    with Store(machine, 4) as hostile:
        for path in (shown, f"{shown}/old", f"{shown}/new"):
            with refused(errno.EACCES):
                hostile.do(Operation.READ, path)
            with refused(errno.EACCES):
                hostile.do(Operation.WRITE, path, tail=b"mine")
    machine.destroy(4)
    honest.do(Operation.RM, shown)


@pytest.mark.parametrize(
    "path",
    ["/local/domain/3/../1/data/private", "../1/data/private", "/local/domain/3/data/..", ".", "..", "//",
     "/local//domain/1", "/local/domain/1/data/", "/local/domain/1/data/private ", "/local/domain/1/data/priv%61te",
     b"/local/domain/1/data/private\xff", b"/local/domain/1/data/\xc3\xa9", "data/*", "data\n", "data\\x",
     "", b"/local/domain/3/data/x\0/local/domain/1/data", "/" + "x" * 3072, "x" * 2049,
     "/local/domain/3/" + "y" * 2049, "/local/domain/123456/" + "z" * 2048],
)  # fmt: skip
def test_paths_that_go_elsewhere(honest: Store, hostile: Store, path: str | bytes, refused: Refused) -> None:
    """get round the check of a path"""
    for operation in (Operation.READ, Operation.DIRECTORY, Operation.MKDIR, Operation.RM, Operation.GET_PERMS):
        with refused(errno.EINVAL):
            hostile.do(operation, path)
    for operation, rest in ((Operation.WATCH, "token"), (Operation.SET_PERMS, "n3")):
        if isinstance(path, str) or b"\0" not in path:  # else the strings would be other ones, not another path
            with refused(errno.EINVAL):
                hostile.do(operation, path, rest)


def test_giving_a_node_away(hostile: Store, refused: Refused) -> None:
    """have another domain own one's nodes, and so pay for them"""
    hostile.do(Operation.WRITE, "data/gift", tail=b"")
    for owner in ("n1", "b0"):
        with refused(errno.EPERM):
            hostile.do(Operation.SET_PERMS, "data/gift", owner, "b3")
    with refused(errno.ENOENT):
        hostile.do(Operation.SET_PERMS, "data/gift", "n77")
    hostile.do(Operation.RM, "data/gift")


def test_making_nodes_in_a_directory_of_others(honest: Store, hostile: Store, refused: Refused) -> None:
    """use up another domain's quota, in a directory where it lets others write"""
    honest.do(Operation.MKDIR, "data/open")
    honest.do(Operation.SET_PERMS, "data/open", "n1", "b3")
    made = 0
    with refused(errno.ENOSPC):
        while made < 2000:
            hostile.do(Operation.WRITE, f"/local/domain/1/data/open/{made}", tail=b"")
            made += 1
    assert hostile.do(Operation.GET_PERMS, "/local/domain/1/data/open/0").startswith(b"n3\0")
    for number in range(20):
        honest.do(Operation.WRITE, f"data/{number}", tail=b"still")
        honest.do(Operation.RM, f"data/{number}")
    honest.do(Operation.RM, "data/open")


@pytest.mark.parametrize(
    "operation",
    [Operation.CONTROL, Operation.INTRODUCE, Operation.RELEASE, Operation.IS_DOMAIN_INTRODUCED, Operation.RESUME,
     Operation.SET_TARGET],
)  # fmt: skip
def test_what_is_the_toolstacks(hostile: Store, operation: Operation, refused: Refused) -> None:
    """ask what only the toolstack may"""
    with refused(errno.EACCES):
        hostile.do(operation, "1", "1", "1")


@pytest.mark.parametrize("operation", [20, 23, 128, 0x7FFFFFFF, 0xFFFFFFFF, Operation.ERROR, Operation.WATCH_EVENT])
def test_operations_that_are_none(hostile: Store, operation: int, refused: Refused) -> None:
    """ask for an operation that is none"""
    with refused(errno.ENOSYS):
        hostile.do(operation, "data")


def test_more_of_everything_than_the_quota(
    machine: Machine, hostile: Store, refused: Refused, outcome: Outcome
) -> None:
    """make endless nodes, watches, transactions and permissions, over several connections"""
    said = {}
    with Store(machine, 3) as second:
        kinds: list[tuple[str, int, Callable[[Store, int], object]]] = [
            ("nodes", errno.ENOSPC, lambda store, i: store.do(Operation.WRITE, f"data/n/{i}", tail=bytes(100))),
            ("transactions", errno.ENOSPC, lambda store, i: store.start()),
            ("watches", errno.E2BIG, lambda store, i: store.do(Operation.WATCH, f"/{i}", "token")),
        ]
        for name, number, once in kinds:
            made = 0
            with refused(number):
                while made < 1100:
                    once((hostile, second)[made % 2], made)
                    made += 1
            said[name] = made
        with refused(errno.ENOSPC):
            hostile.do(Operation.SET_PERMS, "data/n", "n3", *(f"r{number}" for number in range(10, 20)))
        with refused(errno.ENOSPC):
            hostile.do(Operation.WRITE, "data/n/0", tail=bytes(2048))
        with Store(machine, 1) as honest:
            honest.start()
            honest.do(Operation.WATCH, "data", "token")
            honest.do(Operation.WRITE, "data/mine", tail=b"")
            honest.do(Operation.RM, "data/mine")
    with Store(machine, 3) as store:
        store.do(Operation.RM, "data/n")
    outcome(", ".join(f"{count} {name}" for name, count in said.items()))


def test_a_message_longer_than_any(machine: Machine, outcome: Outcome) -> None:
    """announce a message longer than any"""
    for length in (xs_wire.PAYLOAD_MAX + 1, 1 << 31, (1 << 32) - 1):
        with Store(machine, 3) as store:
            head = bytearray(xs_wire.pack_message(Operation.READ, 1, 0, b""))
            head[12:16] = length.to_bytes(4, "little")
            store.sock.sendall(head)
            assert store.sock.recv(1) == b""
    outcome("dropped")
