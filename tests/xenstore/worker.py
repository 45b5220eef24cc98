"""Threads for tests: each ends within a deadline and hands back what it got or raised."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

LONG = 20.0  # seconds; no test comes near it


class Worker(threading.Thread):
    """A thread whose result, or error, is had by `get`."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.call = call
        self.result: object = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.call()
        except BaseException as error:
            self.error = error

    def get(self) -> object:
        self.join(LONG)
        assert not self.is_alive(), "the worker did not end within its deadline"
        if self.error is not None:
            raise self.error
        return self.result


def until(condition: Callable[[], bool], message: str) -> None:
    """Spin, yielding the processor, until another thread got somewhere that only it can tell."""
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, message
        os.sched_yield()
