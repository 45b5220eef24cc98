"""The guide to the grant table: each of its programs runs, in order, as the domain that it is for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import xengrant
from xengrant.embedded import Machine

GUIDE = Path(__file__).parents[2] / "docs" / "grant-table.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)

SAYS = [
    "version 1, 1 of at most 64 frames\n0 0 read-write mapped\n1 0 read-write mapped\n8 2 read-only \n",
    f"{bytes(16)!r}\n",
    "domain 2 may map reference 8 of domain 5\n[]\n",
]


@pytest.mark.parametrize("number", range(len(SAYS)))
def test_the_guides_programs_run(number: int) -> None:
    program = BLOCKS[number].replace("asyncio.sleep(10)", "asyncio.sleep(0)")
    with (
        Machine() as machine,
        xengrant.connect(machine.url(3)) as guest,
        guest.gntshr() as gntshr,
        gntshr.share_pages(2, 1, writable=False),
    ):
        where = {"XENGRANT_URL": machine.url(5, kernel=True) if "alloc_pages" in program else machine.url(0)}
        command = [sys.executable, "-W", "error", "-c", program]
        run = subprocess.run(command, env=where, capture_output=True, text=True, timeout=60, check=False)
    assert (run.stdout, run.stderr) == (SAYS[number], "")


def test_every_program_of_the_guide_is_tried() -> None:
    assert len(BLOCKS) == len(SAYS)
