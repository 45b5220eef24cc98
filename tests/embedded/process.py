"""A process of a domain, to be killed: `Process` in the test, `main` in the process."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

import xengrant
from xengrant.abi.xen import PAGE_SIZE
from xengrant.devices import Device, System, open_system

from . import ioctls


class Process:
    """Runs `scenario` of this module as a domain and waits until it has printed its result. Killed at the end."""

    def __init__(self, url: str, scenario: str, **arguments: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, url, scenario, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.__exit__(None, None, None)
            raise AssertionError(f"{scenario} ended with {self._process.returncode}")
        self.result: dict[str, Any] = json.loads(line)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


held: list[object] = []


def opened(system: System, name: str) -> Device:
    held.append(device := system.open(name))
    return device


def share_with_notify(system: System, peer: int, port: int, writable: bool) -> dict[str, Any]:
    """Share a page full of 0xff whose byte 0 and whose event tell the end."""
    local = ioctls.bind_interdomain(opened(system, "evtchn"), peer, port)
    device = opened(system, "gntalloc")
    index, refs = ioctls.alloc(device, peer, writable=writable)
    mapping = device.mmap(PAGE_SIZE, index, writable=True)
    mapping[:] = b"\xff" * PAGE_SIZE
    ioctls.notify_at(device, index, clear_byte=True, port=local)
    ioctls.dealloc(device, index)
    held.append(mapping)
    return {"refs": refs}


def map_with_notify(system: System, peer: int, port: int, ref: int) -> dict[str, Any]:
    """Map a page, with byte 0 and event as above."""
    local = ioctls.bind_interdomain(opened(system, "evtchn"), peer, port)
    device = opened(system, "gntdev")
    index, mapping = ioctls.map_grants(device, [(peer, ref)], writable=True)
    ioctls.notify_at(device, index, clear_byte=True, port=local)
    held.append(mapping)
    return {"index": index}


def share_pages(system: System, peer: int, count: int, text: str = "") -> dict[str, Any]:
    refs, mapping = ioctls.share(opened(system, "gntalloc"), peer, count)
    mapping[: len(text)] = text.encode()
    held.append(mapping)
    return {"refs": refs}


def map_without_descriptors(system: System, peer: int, refs: list[int]) -> dict[str, Any]:
    """Map grants in more memories than this process may have descriptors, then with enough; the first errno."""
    device = opened(system, "gntdev")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + len(refs) // 2, hard))
    try:
        ioctls.map_grants(device, [(peer, ref) for ref in refs], writable=True)
        number = 0
    except OSError as error:
        number = error.errno or -1
    left = len(os.listdir("/proc/self/fd")) - used
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    _, mapping = ioctls.map_grants(device, [(peer, ref) for ref in refs], writable=True)
    mapping.close()
    return {"errno": number, "left": left}


def open_without_descriptors(system: System, name: str) -> dict[str, Any]:
    """Open an interface of the domain with ever more descriptors until it can be; what was said, what is left open."""
    domain = xengrant.connect(system.url)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd")) - 1  # without the one that lists them
    said: list[str] = []
    interface = None
    while interface is None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + len(said), hard))
        try:
            interface = getattr(domain, name)()
        except xengrant.InterfaceUnavailable as error:
            said.append(str(error))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    interface.close()
    return {"said": said, "left": len(os.listdir("/proc/self/fd")) - 1 - used}


def map_pages(system: System, peer: int, ref: int, writable: bool) -> dict[str, Any]:
    """Map a page and say what is in it."""
    index = ioctls.add_map(device := opened(system, "gntdev"), [(peer, ref)])
    mapping = device.mmap(PAGE_SIZE, index, writable=writable)
    held.append(mapping)
    if writable:
        mapping[PAGE_SIZE - 4 :] = b"seen"
    return {"text": mapping[:16].rstrip(b"\0").decode()}


def main() -> None:
    url, scenario, arguments = sys.argv[1:]
    system = open_system(url)
    result = globals()[scenario](system, **json.loads(arguments))
    print(json.dumps(result), flush=True)
    sys.stdin.read()  # until the test is over


if __name__ == "__main__":
    main()
