"""The ends of a vchan's ring in C, right or broken, for the explorer: `src/native/ring.c` as `c_ring.c` runs it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sysconfig
from enum import IntFlag
from pathlib import Path

from tests.controls.tso import Answers, Done, Load, Modify, Outcome, Step, Store, Sync, Violation, explore
from xengrant.abi import libxenvchan as abi

__all__ = ["CRing", "build"]

_HERE = Path(__file__).parent
_NATIVE = _HERE.parents[1] / "src" / "native"
_SIZE = 4  # bytes of the ring


def build(directory: Path, source: str, name: str, *macros: str, program: bool = False) -> Path:
    """Compile a file of this folder with the library's ring in it, and with these macros."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler is not None, "the controls of the ring in C need a compiler: apt-get install gcc"
    made = directory / name
    command = [compiler, "-std=gnu11", "-O2", "-Wall", "-fno-strict-aliasing", "-fvisibility=hidden"]
    command += [f"-D{macro}" for macro in ("Py_LIMITED_API=0x030b0000", *macros)]
    command += [f"-I{_NATIVE}", f"-I{sysconfig.get_path('include')}", "-include", str(_HERE / "hooks.h")]
    command += [
        "-ffunction-sections",
        "-fdata-sections",
        "-Wl,--gc-sections",
    ]  # what needs the rest of the library goes
    command += ["-o", str(made), str(_HERE / source), *(["-pthread"] if program else ["-shared", "-fPIC"])]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert built.returncode == 0, built.stderr
    return made


class _Asked(IntFlag):
    LOAD, STORE, FETCH_OR, FETCH_AND, FENCE, BELL = 1, 2, 3, 4, 5, 6


_ENDS = {100: "goes on", 101: "sleeps", 102: "rang"}


class _End:
    """A side: an end that moves a byte, or waits for one."""

    def __init__(self, library: ctypes.CDLL, indices: tuple[int, int], *, writes: bool, moves: bool, own: int) -> None:
        """The server's end, which waits, or the client's, which moves a byte and looks where the server asks."""
        self._library = library
        self._writes, self._moves, self._own = writes, moves, own
        own_at, peer_at = reversed(indices) if writes else indices
        self._places = (ctypes.c_uint * 4)(own_at, peer_at, abi.CLI_NOTIFY, abi.CLI_NOTIFY)

    def next(self, answers: Answers) -> Step:
        known = (ctypes.c_uint64 * max(1, len(answers)))(*answers)
        step = (ctypes.c_uint64 * 4)()
        came_to = self._library.run_end(
            self._writes, self._moves, self._places, self._own, _SIZE, known, len(answers), step
        )
        if came_to in _ENDS:
            return Done(_ENDS[came_to])
        at, size, value = step[1], step[2], step[3]
        if came_to == _Asked.LOAD:
            return Load(at, size)
        if came_to == _Asked.STORE:
            return Store(at, value.to_bytes(size, "little"))
        if came_to == _Asked.FETCH_OR:
            return Modify(at, size, lambda old: old | value)
        if came_to == _Asked.FETCH_AND:
            return Modify(at, size, lambda old: old & value)
        return Sync("bell" if came_to == _Asked.BELL else "fence")


_LEFT, _RIGHT = (abi.LEFT_CONS, abi.LEFT_PROD), (abi.RIGHT_CONS, abi.RIGHT_PROD)


class CRing:
    """A vchan of which each end is the library's C, compiled with these macros.

    The server waits and asks the client to tell it, as the client does the other way.
    """

    def __init__(self, directory: Path, *macros: str) -> None:
        name = "-".join(("ring", *macros)).lower() + ".so"
        library = ctypes.PyDLL(str(build(directory, "c_ring.c", name, *macros)))
        nothing_to_read = _End(library, _LEFT, writes=False, moves=False, own=0)
        no_room = _End(library, _RIGHT, writes=True, moves=False, own=_SIZE)
        self._waits = {False: nothing_to_read, True: no_room}
        writes = _End(library, _LEFT, writes=True, moves=True, own=0)
        reads = _End(library, _RIGHT, writes=False, moves=True, own=0)
        self._moves = {False: writes, True: reads}
        memory = bytearray(abi.GRANTS)
        memory[abi.RIGHT_PROD] = _SIZE
        self._memory = bytes(memory)

    def move_and_wait(self, *, reads: bool) -> tuple[int, Violation | None]:
        """The client writes (or reads) a byte while the server, which found none (or no room), goes to sleep."""

        def judge(outcome: Outcome) -> str | None:
            lost = outcome.values == ("sleeps", "goes on")
            return f"the server sleeps, and was not told of the {'room' if reads else 'byte'}" if lost else None

        return explore([self._waits[reads], self._moves[reads]], self._memory, judge)

    def move_and_wait_twice(self, *, reads: bool) -> tuple[int, Violation | None]:
        """The same while another thread of the server waits for the other ring, and asks in the same byte."""

        def judge(outcome: Outcome) -> str | None:
            lost = outcome.values[0] == "sleeps" and outcome.values[2] == "goes on"
            return f"the server sleeps, and was not told of the {'room' if reads else 'byte'}" if lost else None

        return explore([self._waits[reads], self._waits[not reads], self._moves[reads]], self._memory, judge)
