"""Two domains: dom0 and a guest where the tests run on real Xen, else dom0 and domain 1 of an embedded machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import xengrant

ON_XEN = Path("/dev/xen/gntdev").exists()
PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def guest() -> Iterator[Any]:
    """A guest of real Xen with the project in it."""
    from lab.dom0 import Guest

    with Guest.create("clipboard", files={"/opt/clipboard": PROJECT}) as guest:
        yield guest


@pytest.fixture
def here(request: pytest.FixtureRequest) -> Iterator[xengrant.Domain]:
    """The domain that the tests run in, dom0."""
    if not ON_XEN:
        yield request.getfixturevalue("domains").join(0)
        return
    with xengrant.connect() as domain:
        yield domain


@pytest.fixture
def there(request: pytest.FixtureRequest) -> int:
    """The other domain's domid."""
    if ON_XEN:
        return int(request.getfixturevalue("guest").domid)
    request.getfixturevalue("xen_machine").create(1)
    return 1


@pytest.fixture
def start(request: pytest.FixtureRequest, there: int) -> Iterator[Callable[..., Any]]:
    """Start the program with some arguments in the other domain; it is killed when the test is over.

    What it returns is called with a number of seconds, and returns what the program printed, once it has ended.
    """
    with ExitStack() as killing:

        def start_there(*arguments: str) -> Callable[[float], str]:
            program = subprocess.Popen(
                [sys.executable, str(PROJECT / "clipboard.py"), *arguments],
                env={**os.environ, "XENGRANT_URL": request.getfixturevalue("xen_machine").url(there)},
                stdout=subprocess.PIPE,
                text=True,
            )
            killing.enter_context(program)
            killing.callback(program.kill)
            return lambda timeout: program.communicate(timeout=timeout)[0]

        def start_in_guest(*arguments: str) -> Callable[[float], str]:
            guest = request.getfixturevalue("guest")
            command = guest.start(f"exec python3 /opt/clipboard/clipboard.py {' '.join(arguments)}")
            killing.callback(command.kill)
            return lambda timeout: str(command.wait(timeout).output)

        yield start_in_guest if ON_XEN else start_there
