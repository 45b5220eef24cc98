"""The other process of the races in `test_races.py`: `Racer` in the test, `main` in the process.

Both see a page of control words; the process runs until it is told to stop, or its parent is gone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import xengrant
from xengrant import MapError, Mapping, _native
from xengrant.abi.grant_table import GTF_READING, GTF_WRITING
from xengrant.abi.xen import PAGE_SIZE
from xengrant.embedded import grants
from xengrant.grant_entries import EntriesV2, entries_of

# Control words: whether to stop; whether it runs; how often it mapped; how often what it saw cannot be.
STOP, RUNS, MAPPED, WRONG = 0, 4, 8, 12

PEER = 7
FIRST_FRAME = 0x100
LOOKS = 4


def shared(pages: int) -> int:
    """A descriptor of memory that both processes map."""
    fd = os.memfd_create("race", 0)
    os.ftruncate(fd, pages * PAGE_SIZE)
    return fd


def mapped(fd: int) -> Mapping:
    return Mapping([(fd, 0, os.fstat(fd).st_size)], writable=True)


class Racer:
    """A process that runs `scenario` of this module with these arguments, and may use these descriptors."""

    def __init__(self, scenario: str, *arguments: object, fds: Sequence[int] = ()) -> None:
        self._fd = shared(1)
        self.control = mapped(self._fd)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, scenario, str(self._fd), *map(str, arguments)],
            pass_fds=[self._fd, *fds],
            env={**os.environ, "PYTHONPATH": ":".join(path for path in sys.path if path)},
        )

    def word(self, at: int) -> int:
        return _native.load32(self.control, at)

    def check(self, deadline: float, what: str) -> None:
        """Fail where it saw what cannot be or has ended, or time is over."""
        assert not self.word(WRONG), f"{what}: {self.word(WRONG)} pages were used for something else while mapped"
        assert self._process.poll() is None, f"the other process ended with {self._process.returncode}"
        assert time.monotonic() < deadline, f"{what}: mapped {self.word(MAPPED)} times when time was over"

    def __enter__(self) -> Self:
        deadline = time.monotonic() + 30
        while not self.word(RUNS):
            self.check(deadline, "it does not start")
            os.sched_yield()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _native.store32(self.control, STOP, 1)
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._fd)
        wrong = self.word(WRONG)
        self.control.close()
        if error is None:
            assert self._process.returncode == 0
            assert not wrong, f"{wrong} pages were used for something else while they were mapped"


def main() -> None:
    scenario, control, *arguments = sys.argv[1:]
    step = SCENARIOS[scenario](*arguments)
    parent = os.getppid()
    with mapped(int(control)) as words:
        _native.store32(words, RUNS, 1)
        while not _native.load32(words, STOP) and os.getppid() == parent:
            outcome = step()
            if outcome is not None:
                _native.store32(words, MAPPED, _native.load32(words, MAPPED) + 1)
                _native.store32(words, WRONG, _native.load32(words, WRONG) + (not outcome))


def _is_whole(page: object, at: int) -> bool:
    """Whether a page that is mapped stays the one that was granted: it has an odd word, and no new one."""
    first = _native.load32(page, at)  # type: ignore[arg-type]
    return first % 2 == 1 and all(_native.load32(page, at) == first for _ in range(LOOKS))  # type: ignore[arg-type]


def hypervisor(version: str, ref: str, table: str, status: str, pages: str) -> Callable[[], bool | None]:
    """Map and unmap as Xen does, as fast as can be; whether the page was still the one that was granted."""
    entries = entries_of(int(version), [mapped(int(table))], [mapped(int(status))])
    granter: Any = SimpleNamespace(table=SimpleNamespace(entries=entries))
    set_status = grants._set_status_v2 if isinstance(entries, EntriesV2) else grants._set_status_v1
    memory, number = mapped(int(pages)), int(ref)
    turn = 0

    def step() -> bool | None:
        nonlocal turn
        turn += 1
        readonly = turn % 2 == 0
        try:
            set_status(granter, number, PEER, pinned=False, readonly=readonly, mapping=True)
        except grants.GrantFailedError:
            return None
        frame = entries.read(number).frame
        assert frame is not None
        whole = _is_whole(memory, (frame - FIRST_FRAME) * PAGE_SIZE)
        grants._clear_status(granter, number, GTF_READING | GTF_WRITING)
        return whole

    return step


def peer(url: str, domid: str, ref: str) -> Callable[[], bool | None]:
    """Map and unmap through an embedded machine."""
    gnttab = xengrant.connect(url).gnttab()
    grant = xengrant.Grant(int(domid), int(ref))
    turn = 0

    def step() -> bool | None:
        nonlocal turn
        turn += 1
        try:
            with gnttab.map(grant, writable=turn % 2 == 1) as page:
                return _is_whole(page.mapping, 0)
        except MapError:
            return None

    return step


def writer(table: str) -> Callable[[], None]:
    """Write entries whose domid and frame are alike, each whole in one store of 8 bytes."""
    memory = mapped(int(table))
    words = memoryview(memory).cast("Q")
    value = 0

    def step() -> None:
        nonlocal value
        value = (value + 1) % 0x7FF0
        entry = 1 | value << 16 | value << 32
        for ref in range(len(words)):
            words[ref] = entry

    return step


SCENARIOS: dict[str, Callable[..., Callable[[], bool | None]]] = {
    "hypervisor": hypervisor,
    "peer": peer,
    "writer": writer,
}

if __name__ == "__main__":
    main()
