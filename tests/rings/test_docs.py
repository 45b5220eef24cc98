"""The guide to rings: its front ends and its back end run against each other, as the domains that they are for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from xengrant.embedded import Machine

GUIDE = Path(__file__).parents[2] / "docs" / "rings.md"
SECTION = GUIDE.read_text().partition("\n## Requests and responses\n")[2].partition("\n## ")[0]
FRONT, BACK, ASYNC_FRONT = re.findall(r"^```python\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)


def _started(machine: Machine, program: str, domid: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program],
        env={"XENGRANT_URL": machine.url(domid)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("front", "says"),
    [(FRONT, "0 HELLO\n1 WORLD\n"), (ASYNC_FRONT, f"1000 {'TEXT 999':<28}\n")],
    ids=["blocking", "asyncio"],
)
def test_the_guides_programs_talk(machine: Machine, front: str, says: str) -> None:
    with _started(machine, front, 1) as asking, _started(machine, BACK, 2) as answering:
        assert asking.communicate(timeout=60) == (says, "")
        assert answering.communicate(timeout=60) == ("", "")
