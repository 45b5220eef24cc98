"""`Words` stands in for `_native` in the ring's and the table's own code, so that `tso.explore` orders its accesses.

`PythonSide` is a function of that code. The memory's bytes lie in `tso`; the buffers that the code is given only say
where in it they begin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from types import ModuleType
from unittest.mock import patch

from tests.controls.tso import Answers, Done, Load, Modify, Step, Store, Sync

__all__ = ["LoadAndStore", "LoadAndStoreNoFence", "NoFence", "PythonSide", "Words", "ZeroFirst"]


class _Asked(BaseException):
    """The access that has no answer yet; no `except Exception` of the code takes it."""

    def __init__(self, step: Step) -> None:
        self.step = step


class Words:
    """The functions of `_native` that the code calls, over buffers of which each begins somewhere."""

    def __init__(self, answers: Answers, begins: dict[int, int]) -> None:
        self._answers = iter(answers)
        self._begins = begins

    def do(self, step: Step) -> int:
        """The answer, or the end of this run."""
        for answer in self._answers:
            return answer
        raise _Asked(step)

    def load16(self, buffer: memoryview, at: int) -> int:
        return self.do(Load(self._at(buffer, at), 2))

    def load32(self, buffer: memoryview, at: int) -> int:
        return self.do(Load(self._at(buffer, at), 4))

    def store16(self, buffer: memoryview, at: int, value: int) -> None:
        self.do(Store(self._at(buffer, at), value.to_bytes(2, "little")))

    def store32(self, buffer: memoryview, at: int, value: int) -> None:
        self.do(Store(self._at(buffer, at), value.to_bytes(4, "little")))

    def fetch_or8(self, buffer: memoryview, at: int, bits: int) -> int:
        return self.do(Modify(self._at(buffer, at), 1, lambda old: old | bits))

    def fetch_and8(self, buffer: memoryview, at: int, bits: int) -> int:
        return self.do(Modify(self._at(buffer, at), 1, lambda old: old & bits))

    def compare_exchange16(self, buffer: memoryview, at: int, expected: int, desired: int) -> int:
        return self._compare_exchange(self._at(buffer, at), 2, expected, desired)

    def compare_exchange32(self, buffer: memoryview, at: int, expected: int, desired: int) -> int:
        return self._compare_exchange(self._at(buffer, at), 4, expected, desired)

    def fence(self) -> None:
        self.do(Sync())

    def _compare_exchange(self, at: int, size: int, expected: int, desired: int) -> int:
        return self.do(Modify(at, size, lambda old: desired if old == expected else None))

    def _at(self, buffer: memoryview, at: int) -> int:
        return self._begins[id(memoryview(buffer).obj)] + at


class NoFence(Words):
    """Broken: the fence is left out."""

    def fence(self) -> None:
        pass


class ZeroFirst(Words):
    """Broken: words are stored as struct.pack_into stores them."""

    def store32(self, buffer: memoryview, at: int, value: int) -> None:
        super().store32(buffer, at, 0)
        super().store32(buffer, at, value)


class LoadAndStore(Words):
    """Broken: what is to be one atomic operation is a load, a comparison and a store."""

    def _compare_exchange(self, at: int, size: int, expected: int, desired: int) -> int:
        seen = self.do(Load(at, size))
        if seen == expected:
            self.do(Store(at, desired.to_bytes(size, "little")))
        return seen


class LoadAndStoreNoFence(LoadAndStore, NoFence):
    """Broken in both ways."""


class PythonSide:
    """`make(...)` makes what the side does, over copies of `memories`; `modules` are those that call `_native`."""

    def __init__(
        self,
        make: Callable[..., Callable[[], object]],
        modules: Iterable[ModuleType],
        memories: Iterable[bytes],
        words: type[Words] = Words,
    ) -> None:
        self._make = make
        self._modules = list(modules)
        self._memories = list(memories)
        self._words = words

    def next(self, answers: Answers) -> Step:
        buffers = [bytearray(memory) for memory in self._memories]
        begins, at = {}, 0
        for buffer in buffers:
            begins[id(buffer)] = at
            at += len(buffer)
        run = self._make(*buffers)
        with ExitStack() as patched:
            for module in self._modules:
                patched.enter_context(patch.object(module, "_native", self._words(answers, begins)))
            try:
                return Done(run())
            except _Asked as asked:
                return asked.step
