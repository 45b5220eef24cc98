"""The guide to rings: its front ends and its back end run against each other, as the domains that they are for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from xengrant.embedded import Machine

GUIDE = (Path(__file__).parents[2] / "docs" / "rings.md").read_text()


def _programs(section: str) -> list[str]:
    text = GUIDE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


FRONT, BACK, ASYNC_FRONT, ASYNC_BACK = _programs("Requests and responses")
GUEST, DAEMON = _programs("Bytes")


def _started(machine: Machine, program: str, domid: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program],
        env={"XENGRANT_URL": machine.url(domid)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("back", [BACK, ASYNC_BACK], ids=["blocking back", "asyncio back"])
@pytest.mark.parametrize(
    ("front", "says"),
    [(FRONT, "0 HELLO\n1 WORLD\n"), (ASYNC_FRONT, f"1000 {'TEXT 999':<28}\n")],
    ids=["blocking front", "asyncio front"],
)
def test_the_guides_programs_talk(machine: Machine, front: str, says: str, back: str) -> None:
    with _started(machine, front, 1) as asking, _started(machine, back, 2) as answering:
        assert asking.communicate(timeout=60) == (says, "")
        assert answering.communicate(timeout=60) == ("", "")


def test_the_guides_console_shows_what_was_written_and_gives_what_was_typed(machine: Machine) -> None:
    with _started(machine, GUEST, 1) as guest, _started(machine, DAEMON, 2) as daemon:
        assert guest.communicate(timeout=60) == ("root\n", "")
        assert daemon.communicate(timeout=60) == ("login: welcome\n", "")
