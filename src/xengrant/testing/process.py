"""One half in a process of its own: forked, watched until its deadline, and asked what it left open.

Used by `runner` and `agent`, both of one thread. The child connects afresh and tells its steps and its end over a pipe,
so that a half may hang, leak or die by SIGKILL and the parent can say after which step.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import select
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import NoReturn

from xengrant.testing.case import Case
from xengrant.testing.exchange import Answer, OtherHalfFailedError
from xengrant.testing.here import Here, Place, SkipError

__all__ = ["HalfProcess"]

_GRACE = 5.0
_MAX_TEXT = 900  # as JSON it must fit in a xenstore node
# Where a mapping of shared pages comes from: the kernel's devices, or an embedded machine's memory; and what of it is
# the table of a domain whose kernel the process is, which grows.
_SHARED = (b"/dev/xen/", b"/memfd:")
_OWN_TABLE = b"/memfd:xengrant-grant-"


class HalfProcess:
    """A half that runs. `finish` waits for its end.

    `stays`: its process is its domain's kernel, and lives on after the half, until `end`; `listen` tells of the half.
    """

    def __init__(
        self, case: Case, half: str, place: Place, run: str, seconds: float, *, stays: bool = False
    ) -> None:
        self._name = f"{case.name}: {half}"
        self._run = run
        self._deadline = time.monotonic() + seconds + _GRACE
        self._seconds = seconds
        self._stays = stays
        self._step = "starting"
        self._said: dict[str, object] = {}
        sys.stdout.flush()
        sys.stderr.flush()
        gc.freeze()  # what is here already needs no look in the child, where each look copies a page
        self._pipe, child_end = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            os.setpgid(0, 0)
            os.close(self._pipe)
            _run_half(case, half, place, run, seconds, child_end, stays=stays)
        os.close(child_end)

    def finish(self) -> Answer:
        """Wait for the end; kills the half and what it started when its deadline passes."""
        in_time = self.listen()
        return self.end(in_time)

    def listen(self) -> bool:
        """Wait until the half has said how it ended; whether it did before its deadline."""
        try:
            return self._listen()
        except BaseException:  # an interrupt: nothing of ours outlives it
            self._kill()
            os.waitpid(self._pid, 0)
            raise

    def end(self, in_time: bool) -> Answer:
        """End its process, and say how the half ended."""
        if not in_time or self._stays:
            self._kill()
        _, status = os.waitpid(self._pid, 0)
        os.close(self._pipe)
        self._kill()
        if in_time and self._stays and "outcome" in self._said:
            status = 0
        if not in_time:
            return self._answer("failed", f"not done after {self._seconds:g} seconds; its last step: {self._step}")
        if os.WIFSIGNALED(status):
            if self._said.get("dies") and os.WTERMSIG(status) == signal.SIGKILL:
                return self._answer("passed", "")
            return self._answer("failed", f"killed by signal {os.WTERMSIG(status)}; its last step: {self._step}")
        outcome, text = self._said.get("outcome"), str(self._said.get("text", ""))
        if outcome is None:
            return self._answer("failed", f"ended with status {status >> 8} and no word; its last step: {self._step}")
        if outcome == "failed":
            text = f"{text} (its last step: {self._step})"
        return self._answer(str(outcome), text)

    def _answer(self, outcome: str, text: str) -> Answer:
        text = f"{self._name}: {text}"[:_MAX_TEXT] if text else ""
        return Answer(self._run, outcome, text.encode("ascii", "replace").decode())

    def _listen(self) -> bool:
        """Take what the child says until it ends; False when the deadline passes first."""
        rest = b""
        while (left := self._deadline - time.monotonic()) > 0:
            if not select.select([self._pipe], [], [], left)[0]:
                continue
            data = os.read(self._pipe, 65536)
            if not data:
                return True
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                said = json.loads(line)
                self._step = said.get("step", self._step)
                self._said |= said
                if "outcome" in said:  # what the half forked may hold the pipe open
                    return True
        return False

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGKILL)


def _run_half(
    case: Case, half: str, place: Place, run: str, seconds: float, pipe: int, *, stays: bool
) -> NoReturn:
    """In the child: never returns, whatever happens."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        warnings.simplefilter("ignore")
        logging.disable()

        def report(said: dict[str, object]) -> None:
            os.write(pipe, json.dumps(said).encode() + b"\n")

        kernel = place.connect() if stays else None
        if kernel is not None:
            kernel.grant_table()  # the domain lives as long as this
        descriptors, mappings = _descriptors(), _mappings(kernel is not None)
        try:
            with Here(place, run, seconds, report) as here:
                case.half(half)(here)
        except SkipError as reason:
            report({"outcome": "skipped", "text": str(reason)})
        except OtherHalfFailedError as error:
            report({"outcome": "failed", "text": str(error)})
        except BaseException as error:
            report({"outcome": "failed", "text": _told(error)})
        else:
            del here
            left = _left_open(descriptors, mappings, is_kernel=kernel is not None)
            report({"outcome": "failed", "text": left} if left else {"outcome": "passed"})
        while kernel is not None:
            signal.pause()
    finally:
        os._exit(0)


def _told(error: BaseException) -> str:
    """The error and where it came from, in a line."""
    frames = traceback.extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames) if "/cases/" in frame.filename), frames[-1])
    text = f"{type(error).__name__}: {error} at {Path(last.filename).name}:{last.lineno}"
    cause = error.__cause__
    return f"{text}; from {type(cause).__name__}: {cause}" if cause is not None else text


def _left_open(descriptors: set[str], mappings: int, *, is_kernel: bool) -> str:
    """What this process has open that it had not before; a thread may need a moment to close its own."""
    deadline = time.monotonic() + 2
    while True:
        gc.collect()
        more = _descriptors() - descriptors
        mapped = _mappings(is_kernel) - mappings
        if not more and mapped <= 0:
            return ""
        if time.monotonic() > deadline:
            return f"left open: descriptors {sorted(more)}, {mapped} mappings of shared pages"
        time.sleep(0.02)


def _descriptors() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
        except FileNotFoundError:  # the one that listed the directory
            continue
    return found


def _mappings(is_kernel: bool) -> int:
    maps = Path("/proc/self/maps").read_bytes()
    return sum(maps.count(source) for source in _SHARED) - (maps.count(_OWN_TABLE) if is_kernel else 0)
