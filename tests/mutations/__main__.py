"""Makes each mistake of the table in a copy of the sources, and demands that its case fails there.

`python -m tests.mutations [PATTERN]`, from the checkout. Several copies run beside each other. A case that hangs is
ended by its own deadline and by one here, and is no success if the suite did not say that it failed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from xengrant.testing import all_cases

from .table import MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]
DEADLINE = 90.0

_RUN = """
import json, sys
from xengrant.testing import EmbeddedSuite, find
with EmbeddedSuite(sys.argv[2], seconds=12) as suite:
    result = suite.runner.run(find(sys.argv[1]))
print(json.dumps({"outcome": result.outcome, "text": result.text}))
"""


class Verdict(NamedTuple):
    """What became of one mistake."""

    case: str
    killed: bool
    seconds: float
    text: str


def main() -> int:
    pattern = sys.argv[1] if len(sys.argv) > 1 else ""
    cases = [case.name for case in all_cases() if pattern in case.name]
    problems = [f"{case}: the table has no mistake for it" for case in cases if case not in MUTATIONS]
    problems += [f"{case}: there is no such case" for case in MUTATIONS.keys() - {case.name for case in all_cases()}]
    problems += [problem for case in cases if case in MUTATIONS and (problem := _misplaced(case))]
    started = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = list(pool.map(_judge, [case for case in cases if case in MUTATIONS and not _misplaced(case)]))
    for verdict in verdicts:
        print(f"{'killed' if verdict.killed else 'LIVES '} {verdict.seconds:5.1f} s  {verdict.case}: {verdict.text}")
    for problem in problems:
        print(f"ERROR  {problem}")
    killed = sum(verdict.killed for verdict in verdicts)
    print(f"{killed} of {len(cases)} cases found their mistake, in {time.monotonic() - started:.0f} s")
    return 0 if killed == len(cases) and not problems else 1


def _misplaced(case: str) -> str:
    mutation = MUTATIONS[case]
    text = (ROOT / "src" / "xengrant" / mutation.file).read_text()
    return "" if mutation.before in text else f"{case}: {mutation.file} has no {mutation.before!r}"


def _judge(case: str) -> Verdict:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="xengrant-mutant-") as directory:
        _copy(Path(directory), MUTATIONS[case])
        outcome, text = _run(directory, case, MUTATIONS[case].lifetime)
    return Verdict(case, outcome == "failed", time.monotonic() - started, f"{outcome}: {text}")


def _copy(directory: Path, mutation: Mutation) -> None:
    package = directory / "xengrant"
    shutil.copytree(ROOT / "src" / "xengrant", package, ignore=shutil.ignore_patterns("__pycache__"))
    mutated = package / mutation.file
    mutated.write_text(mutated.read_text().replace(mutation.before, mutation.after, 1))
    waits = package / "testing" / "here.py"  # what is to happen happens at once here, or not at all
    waits.write_text(re.sub(r"^SOON = .*", "SOON = 2.0", waits.read_text(), flags=re.MULTILINE))


def _run(directory: str, case: str, lifetime: str) -> tuple[str, str]:
    """(outcome, what the suite says); another outcome than the suite's where it did not come to one."""
    command = [sys.executable, "-P", "-c", _RUN, case, lifetime]
    environment = os.environ | {"PYTHONPATH": directory, "TMPDIR": directory}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        try:
            out, error = running.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, 9)
            return "hung", f"no result in {DEADLINE:g} s"
    try:
        result = json.loads(out)
    except ValueError:
        return "broken", (error.strip().splitlines() or ["no output"])[-1]
    return result["outcome"], result["text"]


sys.exit(main())
