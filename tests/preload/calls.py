"""What programs ask of /dev/xen, as a list of `Call`: read from the preload library's log, or taken down from an
embedded machine's own devices. `Recorder` is a `System` that does the latter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xengrant.abi import evtchn, gntalloc, gntdev
from xengrant.devices import Device, Pointer, System
from xengrant.memory import Mapping


@dataclass(frozen=True)
class Call:
    """One call of a file: `name` is the ioctl's or the system call's, `before` and `after` are the argument's bytes.

    A system call has its arguments, as JSON, in `before`.
    """

    device: str
    name: str
    before: bytes
    after: bytes = b""
    result: int = 0
    errno: int = 0
    request: int = 0


IOCTLS = {
    ("gntalloc", gntalloc.ALLOC_GREF): "ALLOC_GREF",
    ("gntalloc", gntalloc.DEALLOC_GREF): "DEALLOC_GREF",
    ("gntalloc", gntalloc.SET_UNMAP_NOTIFY): "SET_UNMAP_NOTIFY",
    ("gntdev", gntdev.MAP_GRANT_REF): "MAP_GRANT_REF",
    ("gntdev", gntdev.UNMAP_GRANT_REF): "UNMAP_GRANT_REF",
    ("gntdev", gntdev.GET_OFFSET_FOR_VADDR): "GET_OFFSET_FOR_VADDR",
    ("gntdev", gntdev.SET_UNMAP_NOTIFY): "SET_UNMAP_NOTIFY",
    ("gntdev", gntdev.GRANT_COPY): "GRANT_COPY",
    ("evtchn", evtchn.BIND_UNBOUND_PORT): "BIND_UNBOUND_PORT",
    ("evtchn", evtchn.BIND_INTERDOMAIN): "BIND_INTERDOMAIN",
    ("evtchn", evtchn.UNBIND): "UNBIND",
    ("evtchn", evtchn.NOTIFY): "NOTIFY",
}


def read_log(path: Path) -> list[Call]:
    return [_logged(json.loads(line)) for line in path.read_text().splitlines()]


def _logged(line: dict[str, Any]) -> Call:
    device, name = line.pop("device"), line.pop("call")
    if name == "ioctl":
        return Call(
            device,
            IOCTLS[device, line["request"]],
            bytes.fromhex(line["in"]),
            bytes.fromhex(line["out"]),
            line["result"],
            line["errno"],
            line["request"],
        )
    if name == "segments":
        return Call(device, name, bytes.fromhex(line["in"]), bytes.fromhex(line["out"]))
    return _system_call(device, name, **line)


def _system_call(device: str, name: str, **arguments: object) -> Call:
    number = arguments.pop("errno", 0)
    assert isinstance(number, int)
    return Call(device, name, json.dumps(arguments, sort_keys=True).encode(), errno=number)


class Recorder(System):
    """Another system, with all that its devices are asked for in `calls`, but for munmap, which they do not see."""

    def __init__(self, system: System) -> None:
        self.url = system.url
        self.calls: list[Call] = []
        self._system = system

    def open(self, name: str) -> Device:
        return _Recorded(self._system.open(name), self.calls)

    def parameter(self, module: str, name: str) -> str | None:
        return self._system.parameter(module, name)

    def kernel_log(self, seconds: float) -> list[str]:
        return self._system.kernel_log(seconds)


class _Recorded(Device):
    def __init__(self, device: Device, calls: list[Call]) -> None:
        super().__init__(device.name)
        self._device = device
        self._calls = calls

    def ioctl(self, request: int, arg: bytearray, pointers: Sequence[Pointer] = ()) -> int:
        before, result, number = bytes(arg), -1, 0
        segments = next((p.target for p in pointers if p.holder is arg), None)
        table = bytes(segments) if isinstance(segments, bytearray) else b""
        try:
            result = self._device.ioctl(request, arg, pointers)
        except OSError as error:
            number = error.errno or -1
            raise
        finally:
            if isinstance(segments, bytearray):
                self._calls.append(Call(self.name, "segments", table, bytes(segments)))
            name = IOCTLS[self.name, request]
            self._calls.append(Call(self.name, name, before, bytes(arg), result, number, request))
        return result

    def mmap(self, length: int, offset: int, *, writable: bool, unmapped: Callable[[], None] | None = None) -> Mapping:
        number = 0
        try:
            return self._device.mmap(length, offset, writable=writable, unmapped=unmapped)
        except OSError as error:
            number = error.errno or -1
            raise
        finally:
            arguments = {"length": length, "offset": offset, "writable": writable, "shared": True, "errno": number}
            self._calls.append(_system_call(self.name, "mmap", **arguments))

    def read(self, size: int) -> bytes:
        data = self._device.read(size)
        self._calls.append(_system_call(self.name, "read", ports=len(data) // evtchn.PORT_SIZE))
        return data

    def write(self, data: bytes) -> int:
        count = self._device.write(data)
        self._calls.append(_system_call(self.name, "write", ports=count // evtchn.PORT_SIZE))
        return count

    def fileno(self) -> int:
        return self._device.fileno()

    def close(self) -> None:
        self.closed = True
        self._device.close()

    def abandon(self) -> None:
        self.closed = True
        self._device.abandon()
