"""What `with` and `async with` do with grants: `Granted`, which `GrantTable.grant` and `grants` give."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from xengrant.errors import GrantBusy

if TYPE_CHECKING:
    from xengrant.grant_table import Grantable, GrantTable

__all__ = ["Granted", "raise_first"]

T = TypeVar("T")


class Granted(Generic[T]):
    """Pages that are granted inside the block, all or none, and revoked at its end."""

    def __init__(
        self,
        table: GrantTable,
        wanted: Sequence[tuple[int, Grantable | int]],
        domid: int,
        writable: bool,
        timeout: float | None,
        value: T,
    ) -> None:
        self._table = table
        self._wanted = wanted
        self._domid = domid
        self._writable = writable
        self._timeout = timeout
        self._value = value
        self._granted: list[int] = []

    def __enter__(self) -> T:
        if self._granted:
            raise RuntimeError("these pages are granted already, by a block that is entered")
        try:
            for ref, page in self._wanted:
                self._table.grant_access(ref, self._domid, page, writable=self._writable)
                self._granted.append(ref)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self._value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, GeneratorExit):  # the block may be garbage, collected inside any call
            self._table._call_outside(self._end_quietly)
            return
        problems = self._end_each()
        self._granted.clear()
        raise_first(problems, error)

    async def __aenter__(self) -> T:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, GeneratorExit):  # nobody awaits it any more
            self.__exit__(kind, error, trace)
            return
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        problems: list[Exception] = []
        problems += (problem for problem in self._end_each() if not isinstance(problem, GrantBusy))
        try:
            while self._granted:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                try:
                    await self._table.wait_end_access(self._granted[-1], left)
                except Exception as problem:
                    problems.append(problem)
                self._granted.pop()
        except BaseException as stop:  # cancelled
            self.__exit__(type(stop), stop, None)
            raise
        raise_first(problems, error)

    def _end_quietly(self) -> None:
        self._end_each()
        self._granted.clear()

    def _end_each(self) -> list[Exception]:
        """End those that can be ended, the last first, and forget them; what is wrong with the others."""
        problems: list[Exception] = []
        busy: list[int] = []
        for ref in reversed(self._granted):
            try:
                self._table.end_access(ref)
            except GrantBusy as problem:
                busy.append(ref)
                problems.append(problem)
            except Exception as problem:  # InvalidGrant, or the table's memory is closed, or what a page raised
                problems.append(problem)
        self._granted[:] = reversed(busy)
        return problems


def raise_first(problems: Sequence[Exception], error: BaseException | None) -> None:
    """Note what is wrong on the body's error; without one, raise it: a busy one first, which needs care."""
    if error is None and problems:
        first, *others = sorted(problems, key=lambda problem: not isinstance(problem, GrantBusy))
        raise_first(others, first)
        raise first
    for problem in problems:
        assert error is not None
        error.add_note(str(problem))
