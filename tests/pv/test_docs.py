"""The guide to devices: its two programs run against each other, as the domains that they are for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import xengrant
from xengrant.embedded import Machine

GUIDE = Path(__file__).parents[2] / "docs" / "pv.md"
BACK, FRONT = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


def _started(machine: Machine, program: str, domid: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program],
        env=os.environ | {"XENGRANT_URL": machine.url(domid)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_guides_programs_talk(machine: Machine, dom0: xengrant.Domain) -> None:
    made = "/local/domain/1/device/entropy/0"
    with dom0.xenstore() as store, store.watch(made) as watch, _started(machine, BACK, 0) as serving:
        while not store.exists(made):
            watch.wait(60)
        with _started(machine, FRONT, 1) as asking:
            assert asking.communicate(timeout=60) == ("56 bytes\n", "")
        assert serving.communicate(timeout=60) == ("", "")
        assert not store.exists(made)
