"""XenStored, request by request: what is there, reading and writing, and directories beyond one message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xengrant.abi import xs_wire
from xengrant.abi.xs_wire import Operation
from xengrant.embedded.xenstored import XenStored

from ..asker import Asker, refused


def test_a_domain_finds_what_libxl_makes(one: Asker) -> None:
    assert one.read("domid") == b"1"
    assert one.read("name") == b"one"
    assert one.read("/local/domain/1/name") == b"one"
    assert one.read(one.read("vm").decode() + "/name") == b"one"
    assert one.get_perms("data") == ["n1"]
    assert one.get_perms("device") == ["n0", "r1"]
    assert one.get_perms("control/shutdown") == ["n1"]


def test_dom0_has_a_name_and_relative_paths_too(dom0: Asker) -> None:
    assert dom0.read("domid") == b"0"
    assert dom0.read("/local/domain/0/name") == b"Domain-0"


def test_the_machines_own_calls(store: XenStored) -> None:
    store.write("/m/a", b"1", [xs_wire.Permission(0, "n"), xs_wire.Permission(1, "r")])
    assert Asker(store, 1).read("/m/a") == b"1"
    assert store.read("/m/a") == b"1"
    assert store.ls("/m") == ["a"]
    store.rm("/m")
    assert store.read("/m/a") is None
    assert store.ls("/m") == []


def test_a_domain_is_introduced_once(store: XenStored) -> None:
    with pytest.raises(ValueError, match="introduced already"):
        store.introduce(1, "again")


def test_write_makes_the_nodes_above(dom0: Asker) -> None:
    dom0.write("/a/b/c", b"1\0\xff2")
    assert dom0.read("/a/b/c") == b"1\0\xff2"
    assert dom0.read("/a/b") == b""
    assert dom0.directory("/a") == ["b"]


def test_mkdir_leaves_a_value_alone(dom0: Asker) -> None:
    dom0.write("/a", b"1")
    dom0.mkdir("/a")
    assert dom0.read("/a") == b"1"


def test_children_are_listed_as_they_were_made(dom0: Asker) -> None:
    for name in ("z", "a", "m"):
        dom0.mkdir(f"/d/{name}")
    dom0.rm("/d/a")
    dom0.mkdir("/d/a")
    assert dom0.directory("/d") == ["z", "m", "a"]


def test_rm_of_what_is_not_there(dom0: Asker) -> None:
    dom0.mkdir("/a")
    dom0.rm("/a/b")
    with refused("ENOENT"):
        dom0.rm("/nowhere/b")


def test_the_root_stays(dom0: Asker) -> None:
    with refused("EINVAL"):
        dom0.rm("/")


@pytest.mark.parametrize(
    "path",
    ["", "a/", "/a//b", "/a b", "/a\n", "//", "/\u00e9", "/a.b", "@foo", "/" + "a" * 2048],
)
def test_a_path_that_xenstored_takes_no_part_in(dom0: Asker, path: str) -> None:
    with refused("EINVAL"):
        dom0.read(path)


def test_a_path_may_have_2048_bytes_after_the_domains_directory(one: Asker) -> None:
    longest = "data/" + "a" * (2048 - 5)
    with refused("ENOENT"):
        one.read(longest)
    with refused("EINVAL"):
        one.read(longest + "a")


@pytest.mark.parametrize(
    ("operation", "payload"),
    [
        (Operation.READ, b"/a"),
        (Operation.READ, b"/a\0b\0"),
        (Operation.READ, b""),
        (Operation.WRITE, b"/a"),
        (Operation.SET_PERMS, b"/a\0"),
        (Operation.SET_PERMS, b"/a\0x0\0"),
        (Operation.SET_PERMS, b"/a\0r\0"),
        (Operation.SET_PERMS, b"/a\0r-1\0"),
        (Operation.WATCH, b"/a\0"),
        (Operation.WATCH, b"/a\0t\0001\0"),
        (Operation.UNWATCH, b"/a\0"),
        (Operation.DIRECTORY_PART, b"/\0"),
        (Operation.TRANSACTION_END, b"X\0"),
        (Operation.GET_DOMAIN_PATH, b"one\0"),
        (Operation.IS_DOMAIN_INTRODUCED, b"\0"),
    ],
)
def test_arguments_that_are_none(dom0: Asker, operation: Operation, payload: bytes) -> None:
    dom0.mkdir("/a")
    with refused("EINVAL"):
        dom0.ask_raw(operation, payload)


@pytest.mark.parametrize(
    "operation",
    [Operation.CONTROL, Operation.INTRODUCE, Operation.RELEASE, Operation.RESUME, Operation.SET_TARGET, 15, 16, 20, 99],
)
def test_operations_that_are_not_served(dom0: Asker, operation: int) -> None:
    with refused("ENOSYS"):
        dom0.ask(operation, "check")


def test_get_domain_path(one: Asker) -> None:
    assert one.ask(Operation.GET_DOMAIN_PATH, "007") == b"/local/domain/7\0"


def test_only_dom0_learns_which_domains_there_are(dom0: Asker, one: Asker) -> None:
    assert dom0.ask(Operation.IS_DOMAIN_INTRODUCED, "2") == b"T\0"
    assert dom0.ask(Operation.IS_DOMAIN_INTRODUCED, "9") == b"F\0"
    with refused("EACCES"):
        one.ask(Operation.IS_DOMAIN_INTRODUCED, "2")


def in_parts(asker: Asker, path: str) -> list[str]:
    names = b""
    while not names.endswith(b"\0\0") and names != b"\0":
        payload = asker.ask(Operation.DIRECTORY_PART, path, str(len(names)))
        assert len(payload) <= xs_wire.PAYLOAD_MAX
        names += payload.partition(b"\0")[2]
    return [name.decode() for name in names[:-1].split(b"\0")[:-1]]


@pytest.mark.parametrize("prefix", ["", "child-"])
def test_a_directory_beyond_a_message_is_read_in_parts(dom0: Asker, prefix: str) -> None:
    names = [f"{prefix}{i}" for i in range(1500)]
    for name in names:
        dom0.mkdir(f"/many/{name}")
    with refused("E2BIG"):
        dom0.directory("/many")
    assert in_parts(dom0, "/many") == names
    assert in_parts(dom0, f"/many/{prefix}1") == []


def test_the_parts_tell_that_the_directory_changed(dom0: Asker) -> None:
    dom0.mkdir("/d/a")
    first = dom0.ask(Operation.DIRECTORY_PART, "/d", "0").partition(b"\0")[0]
    assert dom0.ask(Operation.DIRECTORY_PART, "/d", "0").partition(b"\0")[0] == first
    dom0.mkdir("/d/b")
    assert dom0.ask(Operation.DIRECTORY_PART, "/d", "0").partition(b"\0")[0] != first


@given(st.lists(st.integers(1, 300), unique=True, max_size=60))
def test_parts_of_any_directory(lengths: list[int]) -> None:
    dom0 = Asker(XenStored(), 0)
    dom0.mkdir("/d")
    names = [chr(97 + length % 26) * length for length in lengths]
    for name in names:
        dom0.mkdir(f"/d/{name}")
    assert in_parts(dom0, "/d") == names
