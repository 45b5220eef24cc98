"""The suite on an embedded machine, all by itself: a machine, an agent and a runner, each in a process of its own.

Used by `xengrant selftest` without options and by the tests. Everything is forked while the process has one thread.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self
from urllib.parse import quote

from xengrant.devices.client import ask
from xengrant.domain import connect
from xengrant.embedded import Machine
from xengrant.errors import GrantError
from xengrant.testing.agent import Agent
from xengrant.testing.here import Kind
from xengrant.testing.runner import Runner, Victim

__all__ = ["EmbeddedSuite", "MachineProcess", "machine_name"]

_PAIRS = {"dom0": (0, 1), "guests": (1, 2)}
# What a case leaves is seen by: references, pages, ports and open files.
_COUNTED = ("grants", "mapped", "maps", "mmaps", "ports", "files", "deferred", "connections")


class MachineProcess:
    """An embedded machine in a process of its own, which ends with this one. `with` closes it."""

    def __init__(self, lifetime: Kind, version: int = 1) -> None:
        ready, tell = os.pipe2(os.O_CLOEXEC)
        held, self._alive = os.pipe2(os.O_CLOEXEC)
        self._pid = _fork(functools.partial(_serve_machine, lifetime, version, tell, held, (ready, self._alive)))
        os.close(tell)
        os.close(held)
        with open(ready) as told:
            self.directory = told.read()
        if not self.directory:
            raise RuntimeError("the embedded machine did not start")
        self._agents: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def url(self, domid: int, *, kernel: bool = False) -> str:
        return f"embedded:{quote(self.directory)}?domid={domid}{'&kernel=1' if kernel else ''}"

    def ask(self, operation: str, **arguments: Any) -> Any:
        """What the machine answers, as over its control connection."""
        return ask(self.directory, operation, **arguments)

    def start_agent(self, domid: int, runner: int, kind: Kind) -> int:
        """Serve the halves of domain `domid` for the runner in domain `runner`; the agent's process id."""
        url, alive = self.url(domid), self._alive
        pid = _fork(functools.partial(_serve_agent, url, runner, kind, alive))
        self._agents.append(pid)
        return pid

    def close(self) -> None:
        """End the agents and the machine. A second time does nothing."""
        if self._alive < 0:
            return
        for pid in self._agents:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(self._alive)
        self._alive = -1
        os.waitpid(self._pid, 0)


class EmbeddedSuite:
    """A runner on an embedded machine of its own. `with` closes it.

    `pair` is "dom0" (dom0 runs the cases with a guest) or "guests"; `version` that of the domains' grant tables;
    `seconds` a deadline instead of each case's own.
    """

    def __init__(self, lifetime: Kind, pair: str = "dom0", *, version: int = 1, seconds: float | None = None) -> None:
        here, peer = _PAIRS[pair]
        self._open = ExitStack()
        with self._open:
            self.machine = self._open.enter_context(MachineProcess(lifetime, version))
            for domid in (peer, 3):
                self.machine.ask("create", domid=domid)
            if here:
                self.machine.ask("create", domid=here)
            self.machine.start_agent(peer, here, lifetime)
            self._lifetime = lifetime
            self._victims = itertools.count(100)
            self.runner = self._open.enter_context(
                Runner(
                    functools.partial(connect, self.machine.url(here)),
                    peer,
                    lifetime,
                    machine_name(lifetime, "dom0 and a guest" if here == 0 else "two guests", version),
                    third=3,
                    victims=self._new_victim if here == 0 else None,
                    counts=self._counts,
                    seconds=seconds,
                )
            )
            self._open = self._open.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def _new_victim(self) -> Victim:
        domid = next(self._victims)
        self.machine.ask("create", domid=domid)
        self.machine.start_agent(domid, 0, self._lifetime)
        return Victim(domid, functools.partial(self.machine.ask, "destroy", domid=domid))

    def _counts(self) -> dict[str, int]:
        domains = self.machine.ask("status")["domains"]
        return {
            f"{name} of domain {domid}": int(domain[name])
            for domid, domain in domains.items()
            for name in _COUNTED
            if int(domid) < 100
        }


def machine_name(lifetime: Kind, who: str, version: int = 1) -> str:
    """What results call an embedded machine."""
    tables = ", v2 tables" if version == 2 else ""
    return f"embedded machine, {lifetime.upper()}{tables}, {who}"


def _fork(work: Callable[[], None]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def _serve_machine(lifetime: Kind, version: int, tell: int, held: int, others: tuple[int, ...]) -> None:
    """The machine's process: serves until its parent's end of the pipe is closed, by whatever."""
    for descriptor in others:
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Machine(lifetime=lifetime, grant_table_version=version, reclaim_interval=0.1) as machine:
        os.write(tell, machine.directory.encode())
        os.close(tell)
        os.read(held, 1)


def _serve_agent(url: str, runner: int, kind: Kind, alive: int) -> None:
    """An agent's process: serves until its machine or its domain ends."""
    os.close(alive)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        Agent(functools.partial(connect, url), runner, kind).serve()
    except GrantError:
        return
