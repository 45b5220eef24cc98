"""The device `kernel`: who may be a domain's kernel, what it may ask, and how its end is the domain's."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from struct import Struct

import pytest

import xengrant
from xengrant import _native
from xengrant.abi import kernelspace as abi
from xengrant.abi.grant_table import GNTST_BAD_DOMAIN
from xengrant.abi.xen import PAGE_SIZE
from xengrant.devices import Device, open_system, wire
from xengrant.devices.client import Client
from xengrant.devices.wire import Kind
from xengrant.embedded import Machine, connection
from xengrant.errors import InterfaceUnavailable

from .conftest import Open
from .ioctls import bind_unbound, connected, copy, eventually, map_grants, read_ports, refused, unbind, unmask

MMAP = Struct("<QQQB7x")  # cookie, length, offset, flags: see devices/wire.py
ALL_IOCTLS = (abi.ALLOC_PAGES, abi.FREE_PAGES, abi.TABLE, abi.GET_PORT, abi.PUT_PORT)


def open_kernel(machine: Machine, domid: int, name: str = "kernel") -> Device:
    return open_system(machine.url(domid, kernel=True)).open(name)


@pytest.fixture
def kernel(machine: Machine) -> Iterator[Device]:
    """Domain 5's."""
    machine.create(5, max_grant_frames=3, max_pages=16)
    device = open_kernel(machine, 5)
    yield device
    device.close()


def alloc(device: Device, count: int) -> int:
    arg = abi.pack_run(count)
    device.ioctl(abi.ALLOC_PAGES, arg)
    return abi.unpack_run(arg)[1]


def free(device: Device, frame: int, count: int = 1) -> None:
    device.ioctl(abi.FREE_PAGES, abi.pack_run(count, frame))


def pages_in_use(machine: Machine) -> int:
    return int(machine.status()["pages"])


# Who


def test_a_domain_has_one_kernel(machine: Machine, kernel: Device) -> None:
    with pytest.raises(InterfaceUnavailable, match=f"domain 5 has a kernel, process {os.getpid()}"):
        open_kernel(machine, 5)
    assert machine.status()["domains"][5]["kernel"] == os.getpid()


def test_a_process_that_the_machine_cannot_see_is_no_kernel(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process in a pid namespace that the machine has no part of, Linux says that it is process 0."""
    monkeypatch.setattr(connection, "credentials", lambda sock: (0, os.getuid(), os.getgid()))
    for name in ("kernel", "gntdev"):
        with pytest.raises(InterfaceUnavailable, match=r"cannot see the process .* pid namespaces") as error:
            open_kernel(machine, 5, name)
        assert error.value.errno == errno.EPERM
    assert 5 not in machine.status()["domains"]


@pytest.mark.parametrize("name", ["gntalloc", "gntdev", "evtchn", "privcmd", "xenbus"])
def test_a_domain_with_a_kernel_has_no_processes(opened: Open, kernel: Device, name: str) -> None:
    with pytest.raises(InterfaceUnavailable, match="domain 5 has no processes: its kernel is process"):
        opened(5, name)


def test_a_domain_with_processes_has_its_own_kernel(opened: Open, machine: Machine) -> None:
    opened(5, "gntdev").close()
    with pytest.raises(InterfaceUnavailable, match="domain 5 runs Linux"):
        open_kernel(machine, 5)


def test_domain_0_runs_linux(machine: Machine) -> None:
    with pytest.raises(InterfaceUnavailable, match="domain 0 is the machine's own"):
        open_kernel(machine, 0)


@pytest.mark.parametrize("name", ["gntalloc", "privcmd"])
def test_a_kernel_has_no_devices_of_linux(machine: Machine, kernel: Device, name: str) -> None:
    with pytest.raises(InterfaceUnavailable, match="is a device of Linux"):
        open_kernel(machine, 5, name)


@pytest.mark.parametrize("name", ["gntdev", "evtchn", "xenbus"])
def test_a_kernel_has_the_other_devices(machine: Machine, kernel: Device, name: str) -> None:
    open_kernel(machine, 5, name).close()


def test_who_is_no_kernel_cannot_open_as_one(machine: Machine) -> None:
    machine.create(5)
    with pytest.raises(InterfaceUnavailable, match="is not the kernel of domain 5"):
        open_kernel(machine, 5, "gntdev")
    with pytest.raises(InterfaceUnavailable, match="is not the kernel of domain 6"):
        open_kernel(machine, 6, "gntdev")


def test_another_process_is_not_the_kernel(machine: Machine, kernel: Device) -> None:
    code = (
        "import sys; from xengrant.devices import open_system; from xengrant.errors import InterfaceUnavailable\n"
        "for name in ('gntdev', 'evtchn', 'xenbus', 'kernel'):\n"
        "    try: open_system(sys.argv[1]).open(name)\n"
        "    except InterfaceUnavailable as error: print(name, error.errno)\n"
    )
    url = machine.url(5, kernel=True)
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, timeout=30, check=True)
    expected = [("gntdev", errno.EPERM), ("evtchn", errno.EPERM), ("xenbus", errno.EPERM), ("kernel", errno.EBUSY)]
    assert done.stdout.split() == [str(word) for pair in expected for word in pair], done.stderr


# Memory


def test_pages_are_zeroed_and_can_be_mapped_and_freed(machine: Machine, kernel: Device) -> None:
    before = pages_in_use(machine)
    frame = alloc(kernel, 3)
    assert pages_in_use(machine) == before + 3
    with kernel.mmap(3 * PAGE_SIZE, frame * PAGE_SIZE, writable=True) as pages:
        assert pages[:] == bytes(3 * PAGE_SIZE)
        pages[PAGE_SIZE] = 7
        with kernel.mmap(PAGE_SIZE, (frame + 1) * PAGE_SIZE, writable=False) as again:
            assert again[0] == 7
            with pytest.raises(TypeError):
                again[0] = 1
    free(kernel, frame + 1)
    with refused(errno.EINVAL):
        kernel.mmap(PAGE_SIZE, (frame + 1) * PAGE_SIZE, writable=False)
    with refused(errno.EINVAL):
        free(kernel, frame, 3)
    free(kernel, frame)
    free(kernel, frame + 2)
    assert pages_in_use(machine) == before


def test_a_domain_has_so_many_pages_and_no_more(machine: Machine, kernel: Device) -> None:
    frame = alloc(kernel, 16)
    for count in (1, 0xFFFFFFFF, 0):
        with refused(errno.ENOMEM):
            alloc(kernel, count)
    free(kernel, frame, 4)
    alloc(kernel, 4)


def test_the_table_is_mapped_as_far_as_it_goes(machine: Machine, kernel: Device) -> None:
    arg = abi.pack_table()
    kernel.ioctl(abi.TABLE, arg)
    assert abi.unpack_table(arg) == (1, 3)
    for number in range(3):
        kernel.mmap(PAGE_SIZE, abi.TABLE_OFFSET + number * PAGE_SIZE, writable=True).close()
        assert machine.status()["domains"][5]["frames"] == number + 1
    for length, offset in ((1, 3), (2, 2), (4, 0), (1, 1 << 30)):
        with refused(errno.EINVAL):
            kernel.mmap(length * PAGE_SIZE, abi.TABLE_OFFSET + offset * PAGE_SIZE, writable=True)
    with refused(errno.EINVAL):  # version 1 has no status
        kernel.mmap(PAGE_SIZE, abi.STATUS_OFFSET, writable=False)


def test_version_2_has_status_frames(machine: Machine) -> None:
    machine.create(6, max_grant_frames=9, grant_table_version=2)
    device = open_kernel(machine, 6)
    for number in range(2):
        kernel = device.mmap(PAGE_SIZE, abi.STATUS_OFFSET + number * PAGE_SIZE, writable=True)
        kernel.close()
    with refused(errno.EINVAL):
        device.mmap(PAGE_SIZE, abi.STATUS_OFFSET + 2 * PAGE_SIZE, writable=True)
    device.close()


# Ports


def test_a_port_is_held_until_it_is_put(opened: Open, machine: Machine, kernel: Device) -> None:
    events, far = open_kernel(machine, 5, "evtchn"), opened(2, "evtchn")
    port, theirs = connected(events, 5, far, 2)
    for number in (0, 77, 0xFFFFFFFF):
        with refused(errno.EINVAL):
            kernel.ioctl(abi.GET_PORT, abi.pack_port(number))
    with refused(errno.EINVAL):
        kernel.ioctl(abi.PUT_PORT, abi.pack_port(port, send=True))
    for _ in range(2):
        kernel.ioctl(abi.GET_PORT, abi.pack_port(port))
    unbind(events, port)
    assert machine.status()["domains"][5]["ports"] == 1
    kernel.ioctl(abi.PUT_PORT, abi.pack_port(port, send=True))
    assert read_ports(far) == (theirs,)
    unmask(far, theirs)
    kernel.ioctl(abi.PUT_PORT, abi.pack_port(port, send=False))
    assert read_ports(far) == ()
    assert machine.status()["domains"][5]["ports"] == 0
    events.close()


def test_ports_that_are_held_go_with_the_kernel(opened: Open, machine: Machine, kernel: Device) -> None:
    events, far = open_kernel(machine, 5, "evtchn"), opened(2, "evtchn")
    port, _ = connected(events, 5, far, 2)
    for _ in range(2):
        kernel.ioctl(abi.GET_PORT, abi.pack_port(port))
    kernel.close()
    assert 5 not in machine.status()["domains"]
    events.close()


# The end


def test_the_end_of_the_device_ends_the_domain(machine: Machine, kernel: Device) -> None:
    frame = alloc(kernel, 2)
    mapping = kernel.mmap(PAGE_SIZE, frame * PAGE_SIZE, writable=True)
    kernel.close()
    assert machine.status()["domains"][5]["state"] == "running"  # a mapping holds it
    mapping.close()
    eventually(lambda: 5 not in machine.status()["domains"], "the domain ends with the last mapping")
    machine.create(5)
    open_kernel(machine, 5).close()


def test_a_kernel_that_is_killed_ends_its_domain(opened: Open, machine: Machine) -> None:
    events = opened(2, "evtchn")
    port = bind_unbound(events, 5)
    command = [sys.executable, "-m", "tests.embedded.kernel_process", machine.url(5, kernel=True), "2", str(port)]
    environment = {**os.environ, "PYTHONPATH": ":".join(path for path in sys.path if path)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert process.stdin is not None
    assert process.stdout is not None
    with process, xengrant.connect(machine.url(0)) as dom0, dom0.xenstore() as store:
        refs = json.loads(process.stdout.readline())
        read_ports(events)
        unmask(events, port)
        assert store.read("/local/domain/5/data/here") == b"1"
        with store.watch("@releaseDomain") as watch:
            watch.wait(10)  # the first tells nothing
            device = opened(2, "gntdev")
            _, shared = map_grants(device, [(5, refs[0])], writable=True)
            _, page = map_grants(device, [(5, refs[1])], writable=False)
            process.kill()
            watch.wait(10)
        assert not store.exists("/local/domain/5")
        assert machine.status()["domains"][5]["state"] == "dying"
        assert shared[:5] == b"alive"  # no byte cleared, no event: as `xl destroy`
        assert page[:4] == b"page"
        assert read_ports(events) == ()
        shared.close()
        page.close()
        eventually(lambda: 5 not in machine.status()["domains"], "the last unmap ends the dying domain")
        assert copy(device, [((refs[0], 0, 5), bytearray(1), 1)]) == [GNTST_BAD_DOMAIN]


@pytest.mark.parametrize("version", [1, 2])
def test_a_granter_that_keeps_writing_its_entries_keeps_no_unmap_waiting(
    opened: Open, machine: Machine, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    tries = 0

    def beaten(buffer: bytearray, at: int, expected: int, wanted: int) -> int:
        """What a compare-exchange sees that the granter was always faster than; for a while, so that the test ends."""
        nonlocal tries
        tries += 1
        return compare_exchange(buffer, at, expected, wanted) if tries > 1000 else expected ^ 1 << 15

    compare_exchange = _native.compare_exchange16
    machine.create(5, grant_table_version=version)
    device = opened(2, "gntdev")
    with (
        xengrant.connect(machine.url(5, kernel=True)) as domain,
        domain.gntshr() as gntshr,
        gntshr.share_pages(2, writable=True) as share,
    ):
        monkeypatch.setattr(_native, "compare_exchange16", beaten)
        _, mapping = map_grants(device, [(5, share.refs[0])], writable=True)
        mapping.close()
        device.close()
        eventually(lambda: machine.status()["domains"][2]["files"] == 0, "the device is closed")
        monkeypatch.undo()
    assert tries == 0


def test_a_domain_that_is_destroyed_takes_its_kernel_along(machine: Machine, kernel: Device) -> None:
    alloc(kernel, 2)
    machine.destroy(5)
    with pytest.raises(InterfaceUnavailable, match="destroyed"):
        alloc(kernel, 1)


# Hostile requests


def test_an_unknown_ioctl_is_refused(kernel: Device) -> None:
    for number in (0, 1, 0x4B00, 0x4B06, 0xFFFFFFFF):
        with refused(errno.ENOTTY):
            kernel.ioctl(number, bytearray(16))


@pytest.mark.parametrize("number", ALL_IOCTLS)
def test_an_argument_of_another_length_is_refused(kernel: Device, number: int) -> None:
    for length in (0, 1, 7, 9, 15, 17, 4096):
        with refused(errno.EFAULT):
            kernel.ioctl(number, bytearray(length))


def test_frames_that_are_not_its_own_are_not_freed(machine: Machine, kernel: Device) -> None:
    own = alloc(kernel, 2)
    before = pages_in_use(machine)
    for frame, count in itertools.product((0, 1, 0xFFF, own + 1, 1 << 32, (1 << 64) - 1), (0, 2, 0xFFFFFFFF)):
        with refused(errno.EINVAL):
            free(kernel, frame, count)
    assert pages_in_use(machine) == before


def test_another_domains_frames_are_refused(opened: Open, machine: Machine, kernel: Device) -> None:
    machine.create(6)
    other = open_kernel(machine, 6)
    frame = alloc(other, 1)
    with refused(errno.EINVAL):
        free(kernel, frame)
    with refused(errno.EINVAL):
        kernel.mmap(PAGE_SIZE, frame * PAGE_SIZE, writable=False)
    other.close()


def test_absurd_mmaps_are_refused(machine: Machine) -> None:
    """Straight to the machine, since a device would not send them."""
    client = Client(machine.directory, 5, "kernel", kernel=True)
    most = 1 << 64
    for length, offset in (
        *((0, 0), (1, 0), (PAGE_SIZE, 0), (PAGE_SIZE, most - PAGE_SIZE), (PAGE_SIZE, most - 1)),
        *((most - 1, 0), (most - 1, most - 1), (0, abi.TABLE_OFFSET), (most // 2, abi.TABLE_OFFSET)),
        *((0, abi.STATUS_OFFSET), (most // 2, abi.STATUS_OFFSET)),
    ):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - which errno is not so important here
            client.request(Kind.MMAP, MMAP.pack(1, length, offset, 1))
        assert not isinstance(caught.value, InterfaceUnavailable)  # it did not hang up
    client.request(Kind.IOCTL, wire.pack_ioctl(abi.TABLE, abi.pack_table(), []))
    client.close()


def test_noise_never_ends_the_machine(machine: Machine) -> None:
    rng = random.Random(1)
    for domid in range(10, 20):
        client = Client(machine.directory, domid, "kernel", kernel=True)
        for _ in range(60):
            number = rng.choice((*ALL_IOCTLS, rng.getrandbits(32)))
            arg = bytearray(rng.randbytes(rng.choice((8, 16, 16, rng.randrange(40)))))
            if number == abi.ALLOC_PAGES and len(arg) == 16:
                arg[1:4] = bytes(3)  # not all the memory there is
            length, offset = rng.choice((0, 1, 4096, 8192, rng.getrandbits(64))), rng.getrandbits(64)
            for kind, body in (
                (Kind.IOCTL, wire.pack_ioctl(number, arg, [])),
                (Kind.MMAP, MMAP.pack(rng.getrandbits(64), length, offset, 1)),
            ):
                try:
                    client.request(kind, body).close_fds()
                except InterfaceUnavailable:
                    raise
                except OSError:
                    pass
        client.close()
    eventually(lambda: not machine.leaks(), "nothing is left in use")
    open_kernel(machine, 5).close()


@pytest.mark.parametrize("kind", [Kind.CONTROL, Kind.HELLO])
def test_requests_of_other_connections_end_this_one(machine: Machine, kind: Kind) -> None:
    client = Client(machine.directory, 5, "kernel", kernel=True)
    with pytest.raises(InterfaceUnavailable, match="has ended this connection"):
        client.request(kind, bytes(12))
    client.close()
    eventually(lambda: 5 not in machine.status()["domains"], "the domain ends with its kernel")


def test_memory_is_not_prepared_for_a_kernel(machine: Machine) -> None:
    client = Client(machine.directory, 5, "kernel", kernel=True)
    with refused(errno.ENOTTY):
        client.request(Kind.PREPARE, bytes(16))
    client.close()
