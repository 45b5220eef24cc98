"""Runs cases of the suite for the tests, in a process that has one thread: `python -m conformance.serve pv dom0 1`.

Reads names of cases, a line each, and writes a result as JSON for each.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Literal, cast

from xengrant.testing import EmbeddedSuite, KernelSuite, find

from . import bad_cases  # noqa: F401 - registers them


def main() -> None:
    lifetime, pair, version = cast("Literal['pv', 'hvm']", sys.argv[1]), sys.argv[2], int(sys.argv[3])
    with (
        KernelSuite(lifetime, version=version)
        if pair == "kernels"
        else EmbeddedSuite(lifetime, pair, version=version) as suite
    ):
        run = suite.run if isinstance(suite, KernelSuite) else suite.runner.run
        print(json.dumps(suite.machine.directory), flush=True)
        for line in sys.stdin:
            case = find(line.strip())
            assert case is not None, line
            print(json.dumps(asdict(run(case))), flush=True)


if __name__ == "__main__":
    main()
