"""Another project's tests: runs a command in the project's own directory. `python3 -m lab project` starts it.

What the command finds is in lab/README.md: the project in `lab.dom0.UNDER_TEST`, packages of PyPI, xengrant with its
pytest plugin, and `lab.dom0` to make guests with.
"""

from __future__ import annotations

import os
import subprocess
import sys

from lab.dom0 import UNDER_TEST

paths = [str(UNDER_TEST / "src"), str(UNDER_TEST), os.environ["PYTHONPATH"]]
environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTEST_PLUGINS": "xengrant.pytest"}
sys.exit(subprocess.run(sys.argv[1:], cwd=UNDER_TEST, env=environment, check=False).returncode)
