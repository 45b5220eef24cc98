"""Keeping `seen.py` truthful: writes from the results of real runs which cases have passed on which machine."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from xengrant.testing import seen
from xengrant.testing.case import all_cases

__all__ = ["merged", "record"]


def record(results: Iterable[Mapping[str, Any]]) -> dict[str, frozenset[str]]:
    """Write what `results` (of `Result`, as plain values) show into `seen.py`; what it holds then.

    What a machine showed before is replaced by what it shows now, for the cases that were run; cases that are no more
    are dropped.
    """
    before = {machine: frozenset(names.split()) for machine, names in seen.SEEN.items()}
    found = merged(before, results)
    Path(seen.__file__).write_text(_source(found))
    return found


def merged(before: Mapping[str, frozenset[str]], results: Iterable[Mapping[str, Any]]) -> dict[str, frozenset[str]]:
    """`before`, brought up to date by `results`."""
    known = {case.name for case in all_cases()}
    found = {machine: set(names) & known for machine, names in before.items()}
    for result in results:
        names = found.setdefault(str(result["machine"]), set())
        if result["outcome"] == "passed":
            names.add(str(result["case"]))
        else:
            names.discard(str(result["case"]))
    return {machine: frozenset(names & known) for machine, names in sorted(found.items()) if names & known}


def _source(found: Mapping[str, frozenset[str]]) -> str:
    lines = [(seen.__doc__ or "").join(('"""', '"""')), "", "SEEN: dict[str, str] = {"]
    for machine, names in found.items():
        lines += [f'    "{machine}": """']
        lines += textwrap.wrap(" ".join(sorted(names)), 120, initial_indent=" " * 8, subsequent_indent=" " * 8)
        lines += ['    """,']
    return "\n".join([*lines, "}", ""])
