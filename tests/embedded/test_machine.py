"""The machine as its owner sees it: status, pausing, closing, and xenstore beside the devices."""

from __future__ import annotations

import gc
import os
import threading

import pytest

from xengrant.abi.xs_wire import Message, Operation, Splitter, pack_message, pack_strings, unpack_error
from xengrant.devices import Device, open_system
from xengrant.embedded import Machine
from xengrant.embedded import machine as machine_module
from xengrant.errors import InterfaceClosed, InterfaceUnavailable

from .conftest import Open
from .ioctls import alloc, bind_unbound, eventually, map_grants, share
from .process import Process


def xenstore(device: Device, operation: Operation, *strings: bytes) -> Message:
    """One request over xenbus, and its reply."""
    device.write(pack_message(operation, 1, 0, pack_strings(*strings)))
    splitter = Splitter()
    while True:
        message = splitter.next()
        if message is not None:
            return message
        eventually(lambda: feed(splitter, device), "xenstore answers")


def feed(splitter: Splitter, device: Device) -> bool:
    try:
        splitter.feed(device.read(4096))
    except BlockingIOError:
        return False
    return True


def test_status_counts_what_each_domain_uses(opened: Open, machine: Machine) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2, 3)
    device = opened(2, "gntdev")
    _, theirs = map_grants(device, [(1, refs[0]), (1, refs[1])], writable=True)
    bind_unbound(opened(2, "evtchn"), 1)
    status = machine.status()
    assert status["pid"] == os.getpid()
    assert status["directory"] == machine.directory
    one, two = status["domains"][1], status["domains"][2]
    assert (one["grants"], one["mapped"], one["mmaps"], one["files"], one["connections"]) == (3, 2, 1, 1, 1)
    assert (two["maps"], two["mmaps"], two["ports"], two["files"], two["connections"]) == (2, 1, 1, 2, 2)
    assert (one["name"], one["state"], one["lifetime"]) == ("domain-1", "running", "pv")
    assert machine.leaks()[1] == {"grants": 3, "mapped": 2, "mmaps": 1, "files": 1, "connections": 1}
    theirs.close()
    mine.close()


def test_two_processes_as_two_domains(machine: Machine) -> None:
    with (
        Process(machine.url(1), "share_pages", peer=2, count=1, text="between processes") as sharer,
        Process(machine.url(2), "map_pages", peer=1, ref=sharer.result["refs"][0], writable=True) as mapper,
    ):
        assert mapper.result["text"] == "between processe"
        assert machine.status()["domains"][1]["mapped"] == 1
        sharer.kill()
        eventually(lambda: machine.status()["domains"][1]["deferred"] == 1, "the dead process's page is deferred")
        mapper.kill()
        eventually(lambda: not machine.leaks(), "nothing is left of the dead processes")


def test_a_paused_domain_stands_still(opened: Open, machine: Machine) -> None:
    device = opened(1, "gntalloc")
    machine.pause(1)
    done = threading.Event()
    answers: list[object] = []

    def work() -> None:
        answers.append(alloc(device, 2))
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert machine.status()["domains"][1]["state"] == "paused"
    _, mine = share(opened(2, "gntalloc"), 1)  # another one goes on
    mine.close()
    assert not done.is_set()
    machine.unpause(1)
    thread.join(10)
    assert answers == [(0, (8,))]


def test_a_paused_domain_can_be_destroyed(opened: Open, machine: Machine) -> None:
    device = opened(1, "gntalloc")
    machine.pause(1)
    failures: list[Exception] = []

    def work() -> None:
        try:
            alloc(device, 2)
        except InterfaceUnavailable as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    machine.destroy(1)
    thread.join(10)
    assert "destroyed" in str(failures)


def test_a_process_may_join_a_paused_domain(machine: Machine) -> None:
    machine.create(1)
    machine.pause(1)
    device = open_system(machine.url(1)).open("gntalloc")
    thread = threading.Thread(target=lambda: alloc(device, 2))
    thread.start()
    machine.unpause(1)
    thread.join(10)
    assert machine.status()["domains"][1]["grants"] == 1
    device.close()


def test_create_refuses_what_is_there_or_cannot_be(machine: Machine) -> None:
    machine.create(1, name="web", lifetime="hvm")
    assert machine.status()["domains"][1]["name"] == "web"
    with pytest.raises(ValueError, match="there already"):
        machine.create(1)
    for domid in (0x7FF0, -1):
        with pytest.raises(ValueError, match="domid"):
            machine.create(domid)
    for call in (machine.pause, machine.unpause, machine.kernel_log, machine.configure):
        with pytest.raises(LookupError, match="no domain 9"):
            call(9)


@pytest.mark.parametrize(("name", "value"), [("lifetime", "hvm"), ("max_grant_frames", 3), ("grant_table_version", 2)])
def test_configure_refuses_what_is_fixed_at_creation(machine: Machine, name: str, value: object) -> None:
    machine.create(5)
    machine.configure(5, max_pages=16)
    with pytest.raises(ValueError, match=f"{name}: fixed when a domain is created"):
        machine.configure(5, **{name: value})


def test_close_ends_every_connection_and_descriptor() -> None:
    gc.collect()  # what other tests left behind is not to be closed from here on
    before = len(os.listdir("/proc/self/fd"))
    machine = Machine()
    devices = [open_system(machine.url(domid)).open(name) for domid in (1, 2) for name in ("gntalloc", "evtchn")]
    _, mine = share(devices[0], 2)
    bind_unbound(devices[1], 2)
    machine.close()
    machine.close()
    assert repr(machine).endswith("closed>")
    mine.close()
    for device in devices:
        device.close()
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ValueError, match="closed"):
        machine.status()
    with pytest.raises(ValueError, match="closed"), machine:
        pass


def test_a_domain_has_its_xenstore(opened: Open, machine: Machine) -> None:
    device = opened(1, "xenbus")
    assert xenstore(device, Operation.READ, b"domid").payload == b"1"
    assert xenstore(device, Operation.READ, b"name").payload == b"domain-1"
    machine.destroy(1)
    eventually(lambda: device.read(100) == b"", "the connection ends")
    answer = xenstore(opened(0, "xenbus"), Operation.READ, b"/local/domain/1/domid")
    assert unpack_error(answer.payload)[1] == "ENOENT"


def test_what_is_shown_to_a_domain_before_anybody_joined_it_is_meant_for_it(opened: Open, machine: Machine) -> None:
    owner = opened(1, "xenbus")
    owner.write(pack_message(Operation.WRITE, 1, 0, b"data/demo\0value"))
    eventually(lambda: feed(Splitter(), owner), "the write is answered")
    assert xenstore(owner, Operation.SET_PERMS, b"data/demo", b"n1", b"r2").operation == Operation.SET_PERMS
    path = b"/local/domain/1/data/demo"
    assert xenstore(opened(2, "xenbus"), Operation.READ, path).payload == b"value"
    machine.destroy(2)  # the next one of that number is another
    answer = xenstore(opened(2, "xenbus"), Operation.READ, path)
    assert unpack_error(answer.payload)[1] == "EACCES"


def test_xenbus_takes_linuxs_messages_only(opened: Open) -> None:
    device = opened(1, "xenbus")
    message = pack_message(Operation.READ, 1, 0, pack_strings(b"domid"))
    for byte in message[:-1]:
        assert device.write(bytes([byte])) == 1
    assert device.write(message[-1:]) == 1
    splitter = Splitter()
    eventually(lambda: feed(splitter, device), "xenstore answers a message in single bytes")
    answer = splitter.next()
    assert answer is not None
    assert answer.payload == b"1"
    for data in (bytes(4097), pack_message(Operation.WRITE, 1, 0, bytes(4081)), b"\xff" * 16):
        with pytest.raises(OSError, match="bytes"):
            device.write(data)
    assert xenstore(device, Operation.READ, b"domid").payload == b"1"  # what was refused is forgotten


def test_a_forked_child_cannot_use_the_devices_and_harms_nothing(opened: Open, machine: Machine) -> None:
    device, events, bus = opened(1, "gntalloc"), opened(1, "evtchn"), opened(1, "xenbus")
    refs, mine = share(device, 2)
    port = bind_unbound(events, 2)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for call in (lambda: alloc(device, 2), lambda: events.read(4), lambda: bus.read(4), lambda: mine[0]):
                with pytest.raises(ValueError):  # noqa: PT011 - InterfaceClosed, and the mapping's own
                    call()
            assert issubclass(InterfaceClosed, ValueError)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    mine[0] = 1
    assert alloc(device, 2)[1] != refs
    assert bind_unbound(events, 2) == port + 1
    assert xenstore(bus, Operation.READ, b"domid").payload == b"1"
    mine.close()


def test_a_device_that_is_dropped_unclosed_warns_and_is_released(machine: Machine) -> None:
    device = open_system(machine.url(1)).open("gntalloc")
    alloc(device, 2)
    with pytest.warns(ResourceWarning, match="unclosed gntalloc"):
        del device
    eventually(lambda: not machine.leaks(), "the file is released")


def test_repr_shows_the_state(opened: Open, machine: Machine) -> None:
    device = opened(1, "gntdev")
    assert repr(device) == "<GntdevDevice gntdev open>"
    device.close()
    assert repr(device) == "<GntdevDevice gntdev closed>"
    assert repr(machine) == f"<Machine in {machine.directory}, running>"
    assert repr(open_system(machine.url(1))) == f"<SocketSystem {machine.url(1)}>"


def test_closing_a_machine_that_is_stuck_comes_to_an_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(machine_module, "_CLOSE_TIMEOUT", 0.05)
    stuck = Machine()
    go_on = threading.Event()
    stuck._loop.call_soon_threadsafe(go_on.wait)
    try:
        with pytest.warns(ResourceWarning, match="is stuck"):
            stuck.close()
        assert not os.path.exists(stuck.directory)
        assert "is stuck" in caplog.text
        stuck.close()
    finally:
        go_on.set()
        stuck._thread.join(10)
    assert not stuck._thread.is_alive()
