"""Started by dom0's init: runs the job this machine was booted for, as `python3 JOB.py ARGS` would."""

from __future__ import annotations

import runpy
import sys

from lab.dom0.overlay import add_package
from lab.dom0.places import PROJECT, request

if __name__ == "__main__":
    wanted = request()
    add_package()
    script = str(PROJECT / "lab" / "jobs" / f"{wanted['job']}.py")
    arguments = wanted["arguments"]
    assert isinstance(arguments, list)
    sys.argv = [script, *map(str, arguments)]
    sys.path[0] = str(PROJECT / "lab" / "jobs")
    runpy.run_path(script, run_name="__main__")
