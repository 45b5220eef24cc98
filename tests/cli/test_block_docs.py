"""The guide to disks: its two programs run against each other, in dom0 and a guest."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path

from .shell import EXAMPLES, User

GUIDE = Path(__file__).parents[2] / "docs" / "pv-block.md"
SERVER, USER = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_guides_server_is_the_example() -> None:
    assert (EXAMPLES / "disk_in_40_lines.py").read_text() == SERVER


def test_the_guides_programs_talk(user: Callable[[int], User], tmp_path: Path) -> None:
    server, program = tmp_path / "server.py", tmp_path / "user.py"
    server.write_text(SERVER)
    program.write_text(USER)
    serving = user(0).example(str(server), "1")
    assert serving.line() == "plugged"
    done = user(1).example(str(program)).ended()
    assert (done.stdout, done.stderr) == (b"67108864 bytes, writable\nb'hello'\n", b"")
    serving.signal(signal.SIGINT)
    assert serving.ended().stdout == b"512 bytes at 1024\nflush\n"
