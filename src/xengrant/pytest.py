"""The pytest plugin: domains of an embedded machine as fixtures, faults on request, and nothing left behind.

pytest loads it by itself where xengrant is installed (entry point `pytest11`); it costs the import of `xengrant`, which
is lazy, and the machine is imported by the first test that asks for a fixture. It calls `embedded` and `connect`, and
nothing of xengrant calls it. docs/pytest.md is the guide.
"""

from __future__ import annotations

import gc
import re
import sys
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import xengrant
from xengrant.devices.socket import SocketSystem

if TYPE_CHECKING:
    from xengrant.embedded import Machine

__all__ = ["Domains", "Faults", "domains", "xen_faults", "xen_machine"]

_MARKER = (
    "xen_machine(may_leak=False, **settings): settings of the test's embedded machine (xengrant.embedded.Machine); "
    "may_leak=True lets the test leave things open"
)
_UNCLOSED = pytest.StashKey[list[str]]()
_PASSED = pytest.StashKey[bool]()

_OURS = r"(an )?unclosed (<Mapping|<Vchan|transport <Vchan|\w+ of an embedded machine|.+ on xenbus)"
"""What xengrant's ResourceWarnings say."""

# Seconds within which what was given back is counted no more: a killed process's last connection, deferred pages.
_SOON = 5.0


class Domains:
    """Makes domains of the test's machine and joins them: `granter, mapper = domains(2)`. Closed with the test."""

    def __init__(self, machine: Machine, closing: ExitStack) -> None:
        self._machine = machine
        self._closing = closing

    def __call__(self, count: int) -> list[xengrant.Domain]:
        """`count` guests that nobody has joined before, the first of a test with domid 1."""
        first = max(self._machine.status()["domains"]) + 1
        return [self.join(domid) for domid in range(first, first + count)]

    def join(self, domid: int, *, kernel: bool = False) -> xengrant.Domain:
        """Domain `domid`, which is made if there is none: 0 is dom0, and one that is there gets another process.

        `kernel` makes the test the domain's kernel, which owns its grant table.
        """
        if not kernel and domid not in self._machine.status()["domains"]:
            self._machine.create(domid)
        return self._closing.enter_context(xengrant.connect(self._machine.url(domid, kernel=kernel)))


class Faults:
    """What can happen to a domain. `domain` is a `Domain` or a domid."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def kill(self, domain: xengrant.Domain | int) -> None:
        """Its processes end as by kill -9: notifications are sent, grants revoked. The domain lives; join it again."""
        self._machine.kill(_domid(domain))

    def destroy(self, domain: xengrant.Domain | int) -> None:
        """`xl destroy`: no byte is cleared and no event sent; what others have mapped stays readable."""
        self._machine.destroy(_domid(domain))

    @contextmanager
    def paused(self, domain: xengrant.Domain | int) -> Iterator[None]:
        """Its processes stand still at their next call, for as long as the block runs."""
        domid = _domid(domain)
        self._machine.pause(domid)
        try:
            yield
        finally:
            self._machine.unpause(domid)

    @contextmanager
    def limited(self, domain: xengrant.Domain | int, **settings: Any) -> Iterator[None]:
        """It has other settings in the block (`Machine.configure`): `gntalloc_limit=0`, `unmap_delay=2.0`, ..."""
        domid = _domid(domain)
        before = self._machine.configure(domid, **settings)
        try:
            yield
        finally:
            self._machine.configure(domid, **before)

    @contextmanager
    def failing(self, domain: xengrant.Domain | int, device: str, number: int, *, after: int = 0) -> Iterator[None]:
        """Its next request of `device` fails with errno `number`, once, when `after` others have succeeded.

        `device` is "gntalloc", "gntdev", "evtchn", "privcmd" or "xenbus" (`Machine.fail`). At the end of the block a
        failure that nothing has met is an `AssertionError`.
        """
        domid = _domid(domain)
        self._machine.fail(domid, device, number, after=after)
        yield
        if self._machine.fail(domid, device, 0):
            raise AssertionError(f"{device} of domain {domid} was to fail, and nothing asked it for so much")


@pytest.fixture
def xen_machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """An embedded machine of the test's own (`xengrant.embedded.Machine`), with dom0 and no guest.

    When the test has passed, everything must have been given back, but with `@pytest.mark.xen_machine(may_leak=True)`;
    other keywords of the marker are the machine's settings.
    """
    from xengrant.embedded import Machine

    settings: dict[str, Any] = {"reclaim_interval": 0.01}
    for marker in reversed(list(request.node.iter_markers("xen_machine"))):
        settings |= marker.kwargs
    may_leak = settings.pop("may_leak", False)
    _forget_failed_test()
    unclosed = request.node.stash.setdefault(_UNCLOSED, [])
    with Machine(**settings) as machine:
        yield machine
        if not may_leak and request.node.stash.get(_PASSED, False):
            _check_all_given_back(machine, unclosed)


@pytest.fixture
def domains(xen_machine: Machine) -> Iterator[Domains]:
    """Makes domains of `xen_machine` and joins them: `granter, mapper = domains(2)`."""
    with ExitStack() as closing:
        yield Domains(xen_machine, closing)


@pytest.fixture
def xen_faults(xen_machine: Machine) -> Faults:
    """Faults for the domains of `xen_machine`: killed, destroyed, paused, out of something, refused."""
    return Faults(xen_machine)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARKER)


@pytest.hookimpl(hookwrapper=True, trylast=True)  # pytest 7, as Debian 12 has it, knows no other kind
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, None]:
    """Note what the test leaves to the garbage collector, which gives it back before anybody could count it."""
    unclosed = item.stash.get(_UNCLOSED, None)
    if unclosed is None:
        yield
        return
    with _noted(unclosed):
        outcome = yield
        gc.collect()
    item.stash[_PASSED] = outcome.excinfo is None


def _forget_failed_test() -> None:
    """What a test that failed before held is given back now, not in the middle of the next one.

    pytest keeps its traceback for debuggers until the next test's call.
    """
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        if hasattr(sys, name):
            delattr(sys, name)
    gc.collect()


@contextmanager
def _noted(unclosed: list[str]) -> Iterator[None]:
    """Collect the block's warnings of unclosed things of ours, and show them to whoever else collects warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", _OURS, ResourceWarning)
        show = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, ResourceWarning) and re.match(_OURS, str(message)):
                unclosed.append(str(message))
            show(message, category, *rest, **more)

        warnings.showwarning = note
        yield


def _check_all_given_back(machine: Machine, unclosed: list[str]) -> None:
    gc.collect()
    deadline = time.monotonic() + _SOON
    while (leaks := machine.leaks()) and time.monotonic() < deadline:
        time.sleep(0.001)
    said = [f"domain {domid} still holds {_counts(counts)}" for domid, counts in leaks.items()]
    said += [f"left to the garbage collector: {text}" for text in unclosed]
    if said:
        pytest.fail("\n".join(["the test did not give everything back:", *said]), pytrace=False)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())


def _domid(domain: xengrant.Domain | int) -> int:
    if isinstance(domain, int):
        return domain
    if isinstance(domain.system, SocketSystem):
        return domain.system.domid  # xenstore is not asked, which a paused domain cannot do
    raise TypeError(f"{domain!r} is no domain of an embedded machine")
