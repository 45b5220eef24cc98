"""Whether the fuzzers find anything: `python -m tests.fuzz.planted` plants bugs, one at a time, and waits for each.

In a copy of the sources. A bug that its fuzzer does not find within `--seconds` fails the run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import xengrant

from .__main__ import run
from .targets import TARGETS

__all__ = ["BUGS", "Bug"]

_SOURCE = Path(xengrant.__file__).parent


class Bug(NamedTuple):
    """What is replaced by what, in a file below src/xengrant; `target` is to find it."""

    target: str
    file: str
    before: str
    after: str


_ANY = "return function(*args)\n        except Exception"

BUGS = [
    Bug("machine", "devices/wire.py", "if len(body) % _COOKIE.size:", "if False:"),
    Bug("xenstored", "embedded/xenstore_session.py", "_DOMID.fullmatch(string)", "_DOMID.match(string)"),
    Bug("xenstore-client", "xenstore_core.py", "if len(strings) < 2:", "if len(strings) < 1:"),
    Bug("xenstore-asyncio", "xenstore_core.py", "if not _CHILD.fullmatch(name):", "if not _CHILD.match(name):"),
    Bug(
        "vchan-offer", "vchan/keys.py", 're.fullmatch(rb"-?[0-9]{1,10}", text)', 're.fullmatch(rb"-?[0-9]{0,10}", text)'
    ),
    Bug("vchan-asyncio", "vchan/transport.py", _ANY, _ANY.replace("except Exception", "except OSError")),
    Bug("rpc-ring", "rings/rpc.py", "> _distance(self._seen, furthest):", "> _distance(self._seen, furthest) + 1:"),
    Bug("byte-ring", "rings/byte_ring_look.py", "max(0, len(self.tail) - self.held)", "-self.held"),
    Bug("block-back", "pv/block/requests.py", "if end > limits.sectors *", "if end > (limits.sectors + 1) *"),
    Bug("pv-bus", "pv/nodes.py", 're.fullmatch(rb"[0-8]", value)', 're.fullmatch(rb"[0-9]", value)'),
    Bug("names", "meeting.py", "if last < first or last > MAX_U32:", "if last > MAX_U32:"),
    Bug("terminal", "cli/dump.py", 'if 0x20 <= byte < 0x7F else f"', 'if 0x20 <= byte < 0xA0 else f"'),
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.planted", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="for each bug (default 300)")
    parser.add_argument("--target", help="only this one's bugs")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    missed = 0
    for bug in BUGS:
        if options.target in (None, bug.target):
            missed += not _is_found(bug, options.seconds, options.seed)
    return 1 if missed else 0


def _is_found(bug: Bug, seconds: float, seed: int) -> bool:
    with tempfile.TemporaryDirectory(prefix="xengrant-planted-") as directory:
        package = Path(directory) / "xengrant"
        shutil.copytree(_SOURCE, package, ignore=shutil.ignore_patterns("__pycache__"))
        file = package / bug.file
        text = file.read_text()
        assert bug.before in text, f"{bug.file} has no {bug.before!r}"
        file.write_text(text.replace(bug.before, bug.after, 1))
        path = os.pathsep.join([directory, os.environ.get("PYTHONPATH", "")])
        found = run(TARGETS[bug.target], seed, seconds, environment=os.environ | {"PYTHONPATH": path})
        if found.finding is None:
            print(f"MISSED {bug.target}: {bug.after!r} in {bug.file}, in {found.inputs:,} inputs", flush=True)
            return False
        found.finding.unlink()
        found.finding.with_suffix(".txt").unlink()
        what = found.text.strip().splitlines()[-1][:100]
        print(f"found  {bug.target}: {bug.file} after {found.inputs:,} inputs, {found.seconds:g} s: {what}", flush=True)
        return True


if __name__ == "__main__":
    raise SystemExit(main())
