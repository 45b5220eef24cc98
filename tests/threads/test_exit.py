"""A program that ends, in whatever way, with everything open and daemon threads in every call: it ends, and quietly.

Nothing else is held back: the machine has everything back, and no thread, lock or finalizer keeps the program.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Sequence

import pytest

from tests.evidence import Table
from xengrant.embedded import Machine

from .exiting import WAYS
from .program import run
from .test_fork import COLUMNS

# What Python ends with; and what it has to say, beside warnings of what was not closed.
EXPECTED = {
    "the end of the program": (0, None),
    "sys.exit in a thread": (0, None),
    "an exception in a loop": (1, "LookupError: the program's own"),
    "SIGINT": (-signal.SIGINT, "KeyboardInterrupt"),
    "SIGTERM": (-signal.SIGTERM, None),
    "os._exit": (4, None),
    "kill -9": (-signal.SIGKILL, None),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_program_ends_with_everything_open(
    way: str,
    machine: Machine,
    evidence: Callable[[str, Sequence[str]], Table],
    eventually: Callable[[Callable[[], bool], Callable[[], str]], None],
) -> None:
    ran = run(machine.directory, way, module="tests.threads.exiting")
    status, last = EXPECTED[way]
    assert ran.told == "open\n", f"it ended with {ran.status}\n{ran.errors}"
    assert ran.status == status, ran.errors
    lines = [line for line in ran.errors.splitlines() if not _is_of_a_warning(line)]
    if last is None:
        assert lines == [], ran.errors
    else:
        assert lines[0] == "Traceback (most recent call last):"
        assert lines[-1] == last
    eventually(lambda: not machine.leaks(), lambda: f"still in use: {machine.leaks()}")
    warned = len(re.findall("ResourceWarning: .*unclosed", ran.errors))
    seen = f"it ends with {ran.status}; {warned} warnings of what was not closed; the machine has everything back"
    evidence("faults", COLUMNS).add("everything open, a thread in each call", way, "both", seen, ran.seconds)


def _is_of_a_warning(line: str) -> bool:
    return "ResourceWarning: " in line or line.startswith("  ")


SUBINTERPRETER = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

def run(code):
    own = interpreters.create()
    try:
        failure = interpreters.run_string(own, code)
    except Exception as error:
        failure = error
    interpreters.destroy(own)
    return failure

import xengrant
url = sys.argv[1]
with xengrant.connect(url) as domain, domain.gntshr() as gntshr, gntshr.share_pages(2, writable=True) as share:
    share.mapping[0] = 7
    failure = run(f'''
import sys
sys.path[:] = {sys.path!r}
import xengrant
with xengrant.connect({url!r}) as domain, domain.gntshr() as gntshr:
    with gntshr.share_pages(2, writable=True) as share:
        share.mapping[0] = 8
        assert share.mapping[0] == 8
    left = gntshr.share_pages(2, writable=True)
''')
    if failure is not None:
        assert "xengrant._native does not support loading in subinterpreters" in str(failure), failure
    share.mapping[1] = 9
    assert share.mapping[:2] == bytes([7, 9])
print("refused" if failure else "used")
"""


def test_a_subinterpreter_has_it_or_is_told_that_it_cannot(
    machine: Machine, eventually: Callable[[Callable[[], bool], Callable[[], str]], None]
) -> None:
    """CPython up to 3.11 lends it the GIL; later ones give it one of its own, which the extension does not serve."""
    ran = run(machine.url(1), module=None, flags=("-W", "ignore", "-c", SUBINTERPRETER))
    assert (ran.status, ran.errors) == (0, ""), ran.errors
    assert ran.told.strip() == ("used" if sys.version_info < (3, 12) else "refused")
    eventually(lambda: not machine.leaks(), lambda: f"still in use: {machine.leaks()}")
