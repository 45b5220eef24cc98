"""Each test here is an attempt of domain 3 to do what it must not. After it an honest pair of domains is served.

What was tried becomes a row of the evidence, all cases of a test together: its docstring, the module's `THROUGH`, and
the outcomes, which are the errno of `refused`, or what the test has said by `outcome`.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import pytest

import xengrant
from tests import evidence as records
from tests.embedded.conftest import opened
from xengrant.embedded import Machine

__all__ = ["Outcome", "opened"]

LONG = 30.0  # seconds
_PASSED = pytest.StashKey[bool]()

Outcome = Callable[[str], None]
Tried = defaultdict[tuple[str, str], list[list[str]]]
Refused = Callable[..., contextlib.AbstractContextManager[None]]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if call.when == "call":
        item.stash[_PASSED] = call.excinfo is None
    return report


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """An embedded machine with the honest domains 1 and 2, and the hostile domain 3: the same for all of a module."""
    gc.collect()  # what other modules left behind is not to be closed while `_judged` counts
    threads = set(threading.enumerate())
    with Machine(reclaim_interval=0.01) as machine:
        for domid in (1, 2, 3):
            machine.create(domid)
        yield machine
    for thread in set(threading.enumerate()) - threads:
        thread.join(LONG)
        assert not thread.is_alive(), f"a thread was left behind: {thread}"


@pytest.fixture
def outcome(request: pytest.FixtureRequest) -> Outcome:
    """`outcome(text)` says what came of the attempt, where it is no errno."""
    said: list[str] = request.node.stash.setdefault(_OUTCOMES, [])
    return said.append


@pytest.fixture
def refused(outcome: Outcome) -> Refused:
    """`with refused(errno, ...):` the block fails with one of them, and that is the outcome."""

    @contextlib.contextmanager
    def refused(*numbers: int) -> Iterator[None]:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is compared below
            yield
        name = errno.errorcode.get(caught.value.errno or 0, "no errno")
        assert name in [errno.errorcode[number] for number in numbers], str(caught.value)
        outcome(name)

    return refused


@pytest.fixture(scope="session")
def tried(evidence: Callable[[str, Sequence[str]], records.Table]) -> Iterator[Tried]:
    """What came of each case, by attempt and where it went through."""
    tried: Tried = defaultdict(list)
    yield tried
    table = evidence("attacks", ["attempt", "through", "outcome"])
    for (attempt, through), cases in tried.items():
        said = ", ".join(dict.fromkeys(text for case in cases for text in case))
        many = f" ({len(cases)} cases)" if len(cases) > 1 else ""
        table.add(attempt + many, through, said or "dropped or refused, and nobody else notices")


@pytest.fixture(autouse=True)
def _judged(
    request: pytest.FixtureRequest,
    machine: Machine,
    tried: Tried,
    eventually: Callable[..., None],
) -> Iterator[None]:
    """What must hold after each attempt; and its row."""
    eventually(lambda: not machine.leaks(), lambda: f"in use before it began: {machine.leaks()}")
    before = _in_use(machine)
    yield
    if not request.node.stash.get(_PASSED, False):
        return
    check_served(machine)
    eventually(lambda: not machine.leaks(), lambda: f"still in use: {machine.leaks()}")
    eventually(lambda: _in_use(machine) == before, lambda: f"in use: {_in_use(machine)}, before {before}")
    tried[_attempt(request), request.module.THROUGH].append(request.node.stash.get(_OUTCOMES, []))


_OUTCOMES = pytest.StashKey[list[str]]()


def check_served(machine: Machine) -> None:
    """Domains 1 and 2 do together what domains are there for: pages, events, names."""
    with contextlib.ExitStack() as stack:
        one, two = (stack.enter_context(xengrant.connect(machine.url(domid))) for domid in (1, 2))
        share = stack.enter_context(stack.enter_context(one.gntshr()).share_pages(2, 2, writable=True))
        port = stack.enter_context(stack.enter_context(one.evtchn()).bind_unbound(2))
        share.mapping[:5] = b"hello"
        stack.enter_context(one.advertise(share, "data/served"))
        grants = two.find(1, "data/served", timeout=LONG)
        mapped = stack.enter_context(stack.enter_context(two.gnttab()).map(grants, writable=True))
        assert mapped.mapping[:5] == b"hello"
        other = stack.enter_context(stack.enter_context(two.evtchn()).bind_interdomain(1, port.number))
        mapped.mapping[:5] = b"there"
        other.notify()
        port.wait(LONG)
        assert share.mapping[:5] == b"there"


def _in_use(machine: Machine) -> tuple[int, int]:
    status = machine.status()
    return status["pages"], status["descriptors"]


def _attempt(request: pytest.FixtureRequest) -> str:
    """What the test says that it tries."""
    said: str = request.function.__doc__ or request.function.__name__.removeprefix("test_").replace("_", " ")
    return said.strip().rstrip(".")
