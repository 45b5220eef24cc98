"""`python -m tests.fuzz`: each fuzzer for some seconds, in a process of its own that may crash or hang.

What is found goes to build/fuzz/TARGET, and the exit status is 1. The last run of each is recorded for the docs.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests import evidence

from .child import Journal, News
from .engine import CORPUS, dump, load
from .reached import Reached
from .target import Steps, Target
from .targets import TARGETS

FOLDER = evidence.CHECKOUT / "build" / "fuzz"
_PATIENCE = 30.0  # seconds beyond a target's deadline in which a process does nothing, and then hangs
_POLL = 0.2
_BEGINNING = 120.0  # seconds until it tries its first input
_MOST_BYTES = 2500  # of an input there: they are to be read
_MOST_KEPT = 24  # inputs of a target in the repository, beside regressions


class Run(NamedTuple):
    """What came of one target; `finding` is the file of the input, if something was found."""

    target: str
    inputs: int
    seconds: float
    finding: Path | None
    text: str


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "--target", action="append", choices=list(TARGETS), metavar="NAME", help="only this; repeatable"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target (default 60)")
    parser.add_argument("--inputs", type=int, help="so many new ones for each target, however long that takes")
    parser.add_argument("--seed", type=int, help="for the same inputs again; default: another each time")
    parser.add_argument("--list", action="store_true", help="the targets, and their inputs in the repository")
    parser.add_argument("--keep", action="store_true", help="take the best of build/fuzz/TARGET/kept into the corpus")
    parser.add_argument("file", type=Path, nargs="*", help="inputs of the one --target to try, and nothing else")
    options = parser.parse_args(arguments)
    targets = [TARGETS[name] for name in options.target or TARGETS]
    if options.file and len(targets) != 1:
        parser.error("whose inputs are these? give one --target")
    if options.list:
        for target in targets:
            kept = len(list((CORPUS / target.name).glob("*.json")))
            print(f"{target.name:18} {kept:3} inputs  {target.about}")
        return 0
    if options.keep:
        for target in targets:
            keep(target)
        return 0
    return _fuzz(targets, options)


def _fuzz(targets: Sequence[type[Target]], options: argparse.Namespace) -> int:
    seed = options.seed if options.seed is not None else int(time.time())
    runs = []
    try:
        for target in targets:
            runs.append(run(target, seed, options.seconds, options.inputs, options.file))
            _tell(runs[-1], seed)
            if not options.file and options.inputs is None:
                _record(runs[-1])
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 1 if any(run.finding for run in runs) else 0


def _record(run: Run) -> None:
    """Put this run in place of its target's last one, which others may do at the same time for theirs."""
    columns = ("target", "inputs", "seconds", "found")
    file = evidence.RUNS / "fuzz-embedded-machine.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = json.loads(file.read_text())["rows"] if file.exists() else []
        rows = {row[0]: row for row in before if row[0] in TARGETS}
        rows[run.target] = [run.target, run.inputs, run.seconds, _found(run)]
        evidence.keep("fuzz", "embedded machine", columns, rows.values(), sum(row[2] for row in rows.values()))


def run(
    target: type[Target],
    seed: int,
    seconds: float = 0.0,
    inputs: int | None = None,
    files: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
) -> Run:
    """One target's run, to its end."""
    folder = FOLDER / target.name
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("journal", "result.json"):
        (folder / name).unlink(missing_ok=True)
    command = [sys.executable, "-W", "error", "-m", f"{__package__}.child"]
    command += [f"{target.__module__}:{target.__name__}", str(folder), *map(str, files)]
    command += ["--seed", str(seed), "--seconds", str(seconds)]
    command += [] if inputs is None else ["--inputs", str(inputs)]
    journal = Journal(folder / "journal")
    started = time.monotonic()
    with (folder / "log").open("w+b") as log, contextlib.closing(journal):
        process = subprocess.Popen(command, cwd=evidence.CHECKOUT, env=environment, stderr=log, start_new_session=True)
        try:
            hangs = not _followed(process, target, journal, seconds)
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        return _judged(target, folder, journal, process.returncode, hangs, log.read().decode(errors="replace"), started)


def _followed(process: subprocess.Popen[bytes], target: type[Target], journal: Journal, seconds: float) -> bool:
    """Wait for the end, showing how far it is; False where it hangs, of which its log then tells more."""
    started = heard = time.monotonic()
    last: News | None = None
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL)
            break
        news, now = journal.news(), time.monotonic()
        if news != last:
            heard, last = now, news
        elif now - heard > (target.deadline + _PATIENCE if news.beat else _BEGINNING):
            process.send_signal(signal.SIGABRT)  # faulthandler writes where every thread is
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
            return False
        if sys.stderr.isatty():
            left = max(0.0, seconds - (now - started))
            line = f"{target.name}: {news.inputs:,} inputs, {news.inputs / max(now - started, 0.1):,.0f}/s, "
            line += f"{news.lines:,} lines, {news.kept} kept, {int(left) // 60}:{int(left) % 60:02} left"
            print(f"\r{line:<90}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(f"\r{'':<90}\r", end="", file=sys.stderr, flush=True)
    return True


def _judged(
    target: type[Target], folder: Path, journal: Journal, status: int, hangs: bool, log: str, started: float
) -> Run:
    seconds = round(time.monotonic() - started, 1)
    if (folder / "result.json").exists():
        result = json.loads((folder / "result.json").read_text())
        found = result["found"]
        if found is None and status == 0:
            return Run(target.name, result["inputs"], result["seconds"], None, "")
        if found is not None:
            file = _saved(folder, found["steps"], found["text"])
            return Run(target.name, result["inputs"], result["seconds"], file, found["text"])
    what = "it hangs" if hangs else f"the process ended with status {status}"
    text = f"{log}\n{what}"
    return Run(target.name, journal.news().inputs, seconds, _saved(folder, journal.steps(), text), text)


def _saved(folder: Path, steps: Steps, text: str) -> Path:
    file = folder / f"found-{hashlib.sha256(dump(steps).encode()).hexdigest()[:12]}.json"
    file.write_text(dump(steps))
    file.with_suffix(".txt").write_text(text)
    return file


def _found(run: Run) -> str:
    replayed = len(list((CORPUS / run.target).glob("regression-*.json")))
    what = run.text.strip().splitlines()[-1] if run.finding else "nothing"
    return what + (f"; {replayed} mended before" if replayed else "")


def _tell(run: Run, seed: int) -> None:
    rate = run.inputs / max(run.seconds, 0.1)
    what = f"{run.target}: {run.inputs:,} inputs in {run.seconds:g} s ({rate:,.0f}/s)"
    if run.finding is None:
        print(f"{what}, nothing found", flush=True)
        return
    print(f"{what}, FOUND (seed {seed})\n{run.text.strip()}\n")
    print(f"again: python -m tests.fuzz --target {run.target} {run.finding}", flush=True)


def keep(kind: type[Target]) -> None:
    """Choose the inputs that reach most, the shortest first, and replace the corpus by them; regressions stay."""
    folder = CORPUS / kind.name
    folder.mkdir(parents=True, exist_ok=True)
    files = [*folder.glob("[!r]*.json"), *(FOLDER / kind.name / "kept").glob("*.json")]
    files = sorted((file for file in files if file.stat().st_size <= _MOST_BYTES), key=lambda file: file.stat().st_size)
    chosen: list[tuple[int, Path]] = []
    target = kind()
    with Reached(kind.guides) as reached, target.opened():
        for file in files:
            before = reached.lines
            target.run(load(file))
            if reached.lines > before:
                chosen.append((reached.lines - before, file))
    chosen.sort(key=lambda one: -one[0])
    texts = {file.name: file.read_text() for _, file in chosen[:_MOST_KEPT]}
    for file in folder.glob("[!r]*.json"):
        file.unlink()
    for name, content in texts.items():
        (folder / name).write_text(content)
    shutil.rmtree(FOLDER / kind.name / "kept", ignore_errors=True)
    print(f"{kind.name}: {len(texts)} inputs, {sum(map(len, texts.values()))} bytes")


if __name__ == "__main__":
    raise SystemExit(main())
