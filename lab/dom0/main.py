"""Started by dom0's init: runs the job this machine was booted for, as `python3 JOB.py ARGS` would."""

from __future__ import annotations

import os
import sys

from lab.dom0.places import PROJECT, request

if __name__ == "__main__":
    wanted = request()
    script = str(PROJECT / "lab" / "jobs" / f"{wanted['job']}.py")
    arguments = wanted["arguments"]
    assert isinstance(arguments, list)
    os.environ["PYTHONUNBUFFERED"] = "1"
    os.execv(sys.executable, [sys.executable, script, *map(str, arguments)])
