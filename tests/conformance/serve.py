"""Runs cases of the suite for the tests, in a process that has one thread: `python -m conformance.serve pv dom0`.

Reads names of cases, a line each, and writes a result as JSON for each.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Literal, cast

from xengrant.testing import EmbeddedSuite, find

from . import bad_cases  # noqa: F401 - registers them


def main() -> None:
    with EmbeddedSuite(cast("Literal['pv', 'hvm']", sys.argv[1]), sys.argv[2]) as suite:
        print(json.dumps(suite.machine.directory), flush=True)
        for line in sys.stdin:
            case = find(line.strip())
            assert case is not None, line
            print(json.dumps(asdict(suite.runner.run(case))), flush=True)


if __name__ == "__main__":
    main()
