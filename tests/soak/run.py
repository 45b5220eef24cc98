"""The soak itself: the machine, the processes of its domains, what befalls them, and whether all was given back.

Called by `__main__` and the short form; calls `machine` and `worker`, each a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.soak.machine import MachineProcess
from tests.soak.worker import KINDS

__all__ = ["DOMIDS", "Outcome", "Soak"]

DOMIDS = (1, 2, 3, 4)
SOON = 120.0  # seconds in which a process ends that is to end, and everything has been given back
RSS_GROWTH = 16 << 10
"""KiB that the machine's process may have grown by since it had run for a while; a page for each of a run's millions of
shares, or 100 bytes for each of its xenstore requests, would be far more."""
_WORKER_RSS_GROWTH = 64 << 10  # since a process began, before its threads had their stacks and the allocator its arenas
_WARM = 60.0  # seconds, or a fifth of a shorter run, after which the machine is as large as it is to be
_RESIDENT = "resident KiB"


class Outcome(NamedTuple):
    """What a soak has come to: what was done, how often, and what is wrong."""

    seconds: float
    counts: Counter[str]
    wrong: list[str]
    at_start: dict[str, int]
    at_end: dict[str, int]


class _Process:
    """A process of a domain."""

    def __init__(self, url: str, domid: int, kind: str, number: int, seed: int) -> None:
        peers = [peer for peer in DOMIDS if peer != domid]
        arguments = [f"{url}{domid}", str(domid), kind, str(number), f"{seed}/{number}", json.dumps(peers)]
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the soak's
        )
        self.domid, self.kind, self.number = domid, kind, number
        self.counts: Counter[str] = Counter()
        self.is_ready = self.is_idle = False
        self.left: dict[str, int] | None = None
        self.ended = False
        self.rest = b""

    def __str__(self) -> str:
        return f"process {self.number} of domain {self.domid} ({self.kind})"

    def tell(self, command: str) -> None:
        assert self.popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.popen.stdin.write(command.encode() + b"\n")
            self.popen.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.popen.pid, number)


class Soak:
    """A run. `with` it, then `run`; at the end of the block no process is left."""

    def __init__(
        self, seed: int, *, pause: float = 0.7, leak: str = "", kills_only: bool = False, patience: float = SOON
    ) -> None:
        """Something befalls a domain every `pause` seconds, more or less, once all have come again. `leak`: see
        `MachineProcess`.

        `kills_only`: it is always that a process with a vchan is killed, since a leak of a domain goes with the domain.
        `patience` is how many seconds everything has at the end to be given back.
        """
        self.seed = seed
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._random = random.Random(seed)
        self._pause = pause
        self._kills_only = kills_only
        self._patience = patience
        self._machine = MachineProcess(leak)
        self._selector = selectors.DefaultSelector()
        self._processes: dict[tuple[int, str], _Process] = {}
        self._dead: set[int] = set()  # numbers of processes that were to die
        self._lives = 0
        self._numbers = 0
        self._continue: list[tuple[float, Callable[[], object]]] = []
        self._interrupted = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            self._forget(process)
        self._selector.close()
        self._machine.close()

    @property
    def interrupted(self) -> bool:
        return self._interrupted

    def interrupt(self) -> None:
        """Have `run` come to its end now: to be called by a signal's handler."""
        self._interrupted = True

    def run(
        self, seconds: float, progress: Callable[[float, Counter[str]], None], *, until: Iterable[str] = ()
    ) -> Outcome:
        """Soak for so many seconds, and until each of these has happened; `progress(seconds left, counts)` is called
        some times a second."""
        needed = set(until)
        for domid in DOMIDS:
            self._create(domid)
        at_start = self._machine.ask("counts")
        for domid in DOMIDS:
            for kind in KINDS:
                self._start(domid, kind)
        started = time.monotonic()
        warm_at, end = started + min(_WARM, seconds / 5), started + seconds
        warm = 0
        strike_at = started + min(3.0, seconds / 5)
        while not self._interrupted and not self.wrong:
            now = time.monotonic()
            if now >= end and (now >= end + SOON or needed <= self.totals().keys()):
                break
            if now >= strike_at and all(process.is_ready for process in self._processes.values()):
                self._strike()
                strike_at = time.monotonic() + self._random.uniform(0, 2 * self._pause)
            if not warm and now >= warm_at:
                warm = self._machine.ask("counts")[_RESIDENT]
            self._listen(min(0.2, max(0.01, strike_at - now)))
            progress(max(0.0, end - time.monotonic()), self.totals())
        for _, go_on in self._continue:
            go_on()
        self._continue.clear()
        taken = time.monotonic() - started
        at_end = dict(at_start)
        if not self.wrong:
            self._end_processes()
            at_end = self._compare(at_start, warm)
        return Outcome(taken, self.totals(), self.wrong, at_start, at_end)

    def totals(self) -> Counter[str]:
        """What was done so far, as far as it was told: of a process that was killed all but its last half a second."""
        total = Counter(self.counts)
        for process in self._processes.values():
            total.update(process.counts)
        return total

    # What befalls domains

    def _strike(self) -> None:
        processes = list(self._processes.values())
        if self._kills_only:
            processes = [process for process in processes if process.counts["vchan bytes"]]
            if not processes:
                return
        process = self._random.choice(processes)
        strikes = {self._destroy: 15, self._kill: 35, self._stop: 35, self._pause_domain: 15}
        (strike,) = [self._kill] if self._kills_only else self._random.choices(list(strikes), list(strikes.values()))
        strike(process)

    def _kill(self, process: _Process) -> None:
        """kill -9; another of its kind comes in its place."""
        self.counts["processes killed"] += 1
        self._dead.add(process.number)
        process.signal(signal.SIGKILL)
        self._await_end(process)
        self._start(process.domid, process.kind)

    def _stop(self, process: _Process) -> None:
        self.counts["processes stopped"] += 1
        process.signal(signal.SIGSTOP)
        self._later(lambda: process.signal(signal.SIGCONT))

    def _pause_domain(self, process: _Process) -> None:
        self.counts["domains paused"] += 1
        self._machine.ask("pause", domid=process.domid)
        self._later(lambda: self._unpause(process.domid))

    def _later(self, go_on: Callable[[], object]) -> None:
        self._continue.append((time.monotonic() + self._random.uniform(0.01, 0.8), go_on))

    def _unpause(self, domid: int) -> None:
        with contextlib.suppress(ValueError):  # it was destroyed meanwhile
            self._machine.ask("unpause", domid=domid)

    def _destroy(self, process: _Process) -> None:
        """Destroy its domain, whose processes find out by themselves. Then it comes again."""
        self.counts["domains destroyed"] += 1
        domid = process.domid
        lost = [other for other in self._processes.values() if other.domid == domid]
        self._dead |= {other.number for other in lost}
        self._machine.ask("destroy", domid=domid)
        for other in lost:
            # One that has just begun has nothing open that could tell it, and would join the next life.
            other.signal(signal.SIGCONT if other.is_ready else signal.SIGKILL)
        for other in lost:
            self._await_end(other)
        self._create(domid)
        for kind in KINDS:
            self._start(domid, kind)

    def _create(self, domid: int) -> None:
        """As soon as nobody maps its last life's pages."""
        self._lives += 1
        deadline = time.monotonic() + SOON
        while True:
            try:
                self._machine.ask("create", domid=domid, life=self._lives)
                return
            except ValueError as error:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"domain {domid} cannot come again: {error}") from None
            self._listen(0.02)

    # Processes

    def _start(self, domid: int, kind: str) -> None:
        self._numbers += 1
        process = _Process(self._machine.url, domid, kind, self._numbers, self.seed)
        self._processes[domid, kind] = process
        assert process.popen.stdout is not None
        os.set_blocking(process.popen.stdout.fileno(), False)
        self._selector.register(process.popen.stdout, selectors.EVENT_READ, process)

    def _await_end(self, process: _Process) -> None:
        deadline = time.monotonic() + SOON
        while not process.ended:
            if time.monotonic() > deadline:
                self.wrong.append(f"{process} does not end though its domain is gone; its stacks are on standard error")
                process.signal(signal.SIGUSR1)
                time.sleep(0.5)
                self._forget(process)
                return
            self._listen(0.1)

    def _forget(self, process: _Process) -> None:
        """Its end has been seen, or is made now."""
        if not process.ended:
            process.ended = True
            process.popen.kill()
            assert process.popen.stdout is not None
            assert process.popen.stdin is not None
            self._selector.unregister(process.popen.stdout)
            process.popen.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                process.popen.stdin.close()
            process.popen.wait()
            self.counts.update(process.counts)
            process.counts.clear()

    def _listen(self, seconds: float) -> None:
        """Take what the processes say, for at most so long; let go on what was stopped long enough."""
        now = time.monotonic()
        due = [go_on for at, go_on in self._continue if at <= now]
        self._continue = [(at, go_on) for at, go_on in self._continue if at > now]
        for go_on in due:
            go_on()
        for key, _ in self._selector.select(seconds):
            process: _Process = key.data
            data = os.read(key.fd, 65536)
            *lines, process.rest = (process.rest + data).split(b"\n")
            for line in lines:
                self._hear(process, json.loads(line))
            if not data:
                self._forget(process)
                status = process.popen.returncode
                if status and process.number not in self._dead:
                    self.wrong.append(f"{process} ended with {status}")

    def _hear(self, process: _Process, said: dict[str, Any]) -> None:
        if "counts" in said:
            process.counts = Counter(said["counts"])
        process.is_ready |= "ready" in said
        process.is_idle |= "idle" in said
        process.left = said.get("left", process.left)
        if process.number in self._dead:  # what it opens anew is of its domain's next life, and does not fit the rest
            if "AssertionError" in said.get("failed", ""):
                self.wrong.append(f"{process}, which was to end: {said['failed']}")
        elif "failed" in said or "lost" in said:
            self.wrong.append(f"{process}: {said.get('failed') or said['lost']}")
        elif "broken" in said:
            self.counts["sessions broken by a death"] += 1
            if said["other"] not in self._dead:
                self.wrong.append(f"{process} with process {said['other']}, which lives: {said['broken']}")

    # The end

    def _end_processes(self) -> None:
        """Have each end its sessions, say what it has left, and end."""
        for command, done in (("stop", self._are_idle), ("finish", self._have_ended)):
            for process in self._processes.values():
                process.tell(command)
            deadline = time.monotonic() + SOON
            while not done() and not self.wrong:
                if time.monotonic() > deadline:
                    late = [str(process) for process in self._processes.values() if not process.ended]
                    self.wrong.append(f"not done {SOON} seconds after {command}: {late}")
                    return
                self._listen(0.1)
        for process in self._processes.values():
            for name, more in (process.left or {"what it has left": -1}).items():
                if more > (_WORKER_RSS_GROWTH if name == _RESIDENT else 0) or (more < 0 and name != _RESIDENT):
                    self.wrong.append(f"{process} ends with {more:+} {name}")

    def _are_idle(self) -> bool:
        return all(process.is_idle for process in self._processes.values())

    def _have_ended(self) -> bool:
        return all(process.ended for process in self._processes.values())

    def _compare(self, at_start: dict[str, int], warm: int) -> dict[str, int]:
        """The machine's counts once all are what they were, or when time is over and some are not."""
        deadline = time.monotonic() + self._patience
        while True:
            at_end: dict[str, int] = self._machine.ask("counts")
            differing = [name for name in at_start if at_end[name] != at_start[name] and name != _RESIDENT]
            if not differing or time.monotonic() > deadline or self.wrong:
                break
            self._listen(0.05)
        self.wrong += [f"the machine has {at_end[name]} {name}, and had {at_start[name]}" for name in differing]
        grown = at_end[_RESIDENT] - warm
        if warm and grown > RSS_GROWTH:
            self.wrong.append(f"the machine's process has grown by {grown} KiB: at most {RSS_GROWTH} were to be")
        return at_end
