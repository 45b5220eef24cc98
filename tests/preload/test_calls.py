"""What xengrant asks of /dev/xen, byte by byte beside what Xen's own libraries ask for the same work.

Each runs alone as domain 1 of a fresh machine, so refs, offsets and ports are the same and so is every byte that means
something. What differs is said here: `MEANING`, what C does beside (`ONLY_C`) and what we do beside (`ONLY_PYTHON`).
xengrant runs twice: on the kernel's devices, which the preload library serves, where sharing and mapping are native
calls, and on an embedded machine's own.
"""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path

import pytest

import xengrant
from xengrant.abi import gntdev
from xengrant.devices import open_system
from xengrant.embedded import Machine

from .calls import Call, Recorder, read_log
from .programs import LONG, Preload, need
from .scenarios import SCENARIOS, Scenario

pytestmark = need()

IN, OUT = 0, 1


def meaning(call: Call) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The bytes of an ioctl's argument that mean something, on the way in and out, as (from, to).

    The others C leaves as it found them: padding, what the kernel is to fill in, and the second ref's place in an
    argument for one, which is there since the kernel copies a whole struct.
    """
    size = len(call.before)
    match call.name:
        case "ALLOC_GREF":  # domid, flags, count; then index and refs, which are the answer
            count = int.from_bytes(call.before[4:8], "little")
            return [(0, 8)], [(0, 16 + 4 * count)]
        case "MAP_GRANT_REF":  # count, pad; index is the answer; then domids and refs
            return [(0, 4), (16, size)], [(0, 4), (8, size)]
        case "DEALLOC_GREF" | "UNMAP_GRANT_REF":  # index, count, pad
            return [(0, 12)], [(0, 12)]
        case "GRANT_COPY":  # count, pad, the segments' address
            return [(0, 4)], [(0, 4)]
        case "segments":  # one; local memory is an address, status the answer, and the end padding
            flags = int.from_bytes(call.before[18:20], "little")
            sides = [(0, 8)] * (flags & 1) + [(8, 16)] * (flags >> 1 & 1)
            return [*sides, (16, 20)], [*sides, (16, 22)]
    return [(0, size)], [(0, len(call.after))]


def means(call: Call) -> tuple[object, ...]:
    """A call without the bytes that mean nothing."""
    before, after = meaning(call)
    return (
        call.device,
        call.name,
        call.request,
        len(call.before),
        b"".join(call.before[start:end] for start, end in before),
        b"".join(call.after[start:end] for start, end in after),
        call.result,
        call.errno,
    )


def from_c(scenario: Scenario, preload: Preload, log: Path) -> list[Call]:
    with (
        Machine() as machine,
        xengrant.connect(machine.url(2)) as peer,
        scenario.peer(peer),
        preload.start_actor(machine.url(1), XENGRANT_IOCTL_LOG=str(log)) as actor,
    ):
        scenario.c(actor)
    return read_log(log)


def from_kernel_devices(name: str, preload: Preload, log: Path) -> list[Call]:
    with Machine() as machine, xengrant.connect(machine.url(2)) as peer, SCENARIOS[name].peer(peer):
        command = [sys.executable, "-m", "tests.preload.scenarios", name]
        process = preload.start(command, machine.url(1), XENGRANT_IOCTL_LOG=str(log))
        out, error = process.communicate(timeout=LONG)
        assert (process.returncode, out, error) == (0, "", "")
    return read_log(log)


def from_socket_devices(name: str) -> list[Call]:
    with Machine() as machine, xengrant.connect(machine.url(2)) as peer, SCENARIOS[name].peer(peer):
        recorder = Recorder(open_system(machine.url(1)))
        with xengrant.Domain(recorder) as domain:
            SCENARIOS[name].python(domain)
    return recorder.calls


# Whoever asks the kernel for the offset has not remembered it: libxengnttab only gets an address to unmap.
ONLY_C = {"GET_OFFSET_FOR_VADDR"}

# Before an interface's first copy xengrant maps what nobody can have granted, to be refused: Linux stops where the copy
# hypercall is missing. libxengnttab does not ask.
BEFORE_A_COPY = ["MAP_GRANT_REF", "mmap", "UNMAP_GRANT_REF"]

ORDER = {
    "share 1": ["ALLOC_GREF", "mmap", "DEALLOC_GREF", "munmap"],
    "share 3": ["ALLOC_GREF", "mmap", "DEALLOC_GREF", "munmap"],
    "share 1 read-only": ["ALLOC_GREF", "mmap", "DEALLOC_GREF", "munmap"],
    "share 1 with notify": ["BIND_UNBOUND_PORT", "ALLOC_GREF", "mmap", "SET_UNMAP_NOTIFY", "DEALLOC_GREF", "munmap"],
    "map 1": ["MAP_GRANT_REF", "mmap", "GET_OFFSET_FOR_VADDR", "munmap", "UNMAP_GRANT_REF"],
    "map 3": ["MAP_GRANT_REF", "mmap", "GET_OFFSET_FOR_VADDR", "munmap", "UNMAP_GRANT_REF"],
    "map 1 read-only": ["MAP_GRANT_REF", "mmap", "GET_OFFSET_FOR_VADDR", "munmap", "UNMAP_GRANT_REF"],
    "map 1 with notify": [
        "BIND_UNBOUND_PORT",
        "MAP_GRANT_REF",
        "mmap",
        "SET_UNMAP_NOTIFY",
        "GET_OFFSET_FOR_VADDR",
        "munmap",
        "UNMAP_GRANT_REF",
    ],
    "copy from a grant": ["segments", "GRANT_COPY"],
    "copy to a grant": ["segments", "GRANT_COPY"],
    "copy between grants": ["segments", "GRANT_COPY"],
    "event channel offered": ["BIND_UNBOUND_PORT", "NOTIFY", "UNBIND"],
    "event channel bound": ["BIND_INTERDOMAIN", "read", "write", "NOTIFY", "UNBIND"],
}
"""C's own order. xengrant's is the same, without ONLY_C and with BEFORE_A_COPY."""


def names(calls: list[Call]) -> list[str]:
    return [call.name for call in calls if call.name not in ("open", "close")]


def python_order(scenario: str) -> list[str]:
    order = [name for name in ORDER[scenario] if name not in ONLY_C]
    return (BEFORE_A_COPY if "copy" in scenario else []) + order


def comparable(calls: list[Call], scenario: str, *, without: set[str]) -> list[tuple[object, ...]]:
    calls = [call for call in calls if call.name not in {"open", "close"} | without]
    if "copy" in scenario and names(calls)[: len(BEFORE_A_COPY)] == BEFORE_A_COPY:
        calls = calls[len(BEFORE_A_COPY) :]
    return [means(call) for call in calls]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_kernels_devices_are_asked_what_c_asks(scenario: str, preload: Preload, tmp_path: Path) -> None:
    c = from_c(SCENARIOS[scenario], preload, tmp_path / "c")
    python = from_kernel_devices(scenario, preload, tmp_path / "python")
    assert names(c) == ORDER[scenario]
    assert names(python) == python_order(scenario)
    assert comparable(python, scenario, without=set()) == comparable(c, scenario, without=ONLY_C)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_embedded_machines_devices_are_asked_what_c_asks(scenario: str, preload: Preload, tmp_path: Path) -> None:
    c = from_c(SCENARIOS[scenario], preload, tmp_path / "c")
    python = from_socket_devices(scenario)
    assert names(python) == [name for name in python_order(scenario) if name != "munmap"]
    assert comparable(python, scenario, without=set()) == comparable(c, scenario, without={"munmap"} | ONLY_C)


def test_the_map_before_a_copy_is_of_what_nobody_can_grant(preload: Preload, tmp_path: Path) -> None:
    first, mapped, last = from_kernel_devices("copy to a grant", preload, tmp_path / "python")[1:4]
    assert (first.name, first.before) == ("MAP_GRANT_REF", bytes(gntdev.pack_map([(0, 0xFFFFFFFF)])))
    assert (mapped.name, mapped.errno) == ("mmap", errno.EINVAL)
    assert (last.name, last.result) == ("UNMAP_GRANT_REF", 0)


def opened(calls: list[Call]) -> dict[str, dict[str, bool]]:
    return {call.device: json.loads(call.before) for call in calls if call.name == "open"}


def test_files_are_opened_as_c_opens_them_but_for_two_flags(preload: Preload, tmp_path: Path) -> None:
    """libxengntshr's gntalloc would be inherited by programs that are started; nothing of ours is, nor ever blocks."""
    seen: dict[str, dict[str, bool]] = {}
    ours: dict[str, dict[str, bool]] = {}
    for scenario in ("share 1 with notify", "map 1"):
        seen |= opened(from_c(SCENARIOS[scenario], preload, tmp_path / f"c {scenario}"))
        ours |= opened(from_kernel_devices(scenario, preload, tmp_path / f"python {scenario}"))
    assert seen == {
        "gntalloc": {"cloexec": False, "nonblock": False},
        "gntdev": {"cloexec": True, "nonblock": False},
        "evtchn": {"cloexec": True, "nonblock": False},
    }
    assert ours == {device: {"cloexec": True, "nonblock": True} for device in seen}
