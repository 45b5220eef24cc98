"""examples/other_project: its tests pass on an embedded machine; on real Xen `python3 -m lab project` runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import xengrant

EXAMPLE = Path(__file__).parents[2] / "examples" / "other_project"


def test_its_tests_pass() -> None:
    where = {**os.environ, "PYTHONPATH": str(Path(xengrant.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "xengrant.pytest", "-p", "no:cacheprovider", "-q"]
    run = subprocess.run(command, cwd=EXAMPLE, env=where, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "4 passed" in run.stdout
