"""The guide to disks has the example in it, whole; tests/docs runs both of its programs."""

from __future__ import annotations

import re
from pathlib import Path

from .shell import EXAMPLES

GUIDE = Path(__file__).parents[2] / "docs" / "pv-block.md"


def test_the_guides_server_is_the_example() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks[0] == (EXAMPLES / "disk_in_40_lines.py").read_text()
