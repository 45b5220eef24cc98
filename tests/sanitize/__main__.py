"""Builds `src/native` with gcc's sanitizers and runs the tests that use it most: there must be no report.

    python -m tests.sanitize [address] [thread] [--tests TEST...]

`address` is AddressSanitizer with UndefinedBehaviorSanitizer, `thread` ThreadSanitizer. The interpreter is not
instrumented, and need not be: a sanitizer's runtime is preloaded and sees what it allocates, which is all from malloc
here, and the locks that it takes, the GIL among them. So what the GIL orders is in order, and what runs without it is
looked at. First each has to report faults that are there (`control.c`).

Nothing is suppressed. What is switched off, or not run, stands here with its reason.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parent.parent.parent
BUILD = CHECKOUT / "build" / "sanitize"

FLAGS = ["-g", "-O1", "-std=gnu11", "-fno-omit-frame-pointer", "-fvisibility=hidden", "-shared", "-fPIC", "-w"]


# Of which the sanitizers' own memory takes more than it leaves.
LITTLE_SPACE = (
    "tests/native/test_mapping_place.py::test_where_there_is_little_address_space_pages_are_mapped_all_the_same"
)


class Kind(NamedTuple):
    """One sanitizer: how to compile for it, what to preload, its options, and what it is to run."""

    flags: list[str]
    runtimes: list[str]
    options: dict[str, str]
    faults: dict[str, str]  # a call of control.c, and what the report of it says
    tests: list[str]


KINDS = {
    "address": Kind(
        ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
        ["libasan.so", "libubsan.so"],
        {
            # CPython keeps much until it ends, and is not told apart from us; leaks are what the tests' counts are for.
            # And a test has a child die of SIGSEGV, which a forked child's report of it would wait in for ever.
            "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
        {"overrun(8)": "heap-buffer-overflow", "overflow(1)": "signed integer overflow"},
        ["tests/native", "tests/rings", "tests/vchan/test_endpoint.py", "tests/threads/test_together.py"],
    ),
    "thread": Kind(
        ["-fsanitize=thread"],
        ["libtsan.so"],
        # Else it ends children of processes with threads as soon as they start one, which tests of forks do.
        {"TSAN_OPTIONS": "die_after_fork=0"},
        {"race()": "data race"},
        ["tests/native", "tests/rings", "tests/vchan/test_endpoint.py", "tests/threads/test_together.py"],
    ),
}


def build(name: str) -> Path:
    """A folder to import xengrant from, with `_native` as the sanitizer wants it; beside it `control.so`."""
    directory = BUILD / name
    shutil.rmtree(directory, ignore_errors=True)
    package = directory / "xengrant"
    package.mkdir(parents=True)
    for file in (CHECKOUT / "src" / "xengrant").iterdir():
        if file.suffix != ".so":
            (package / file.name).symlink_to(file)
    limited = [] if sysconfig.get_config_var("Py_GIL_DISABLED") else ["-DPy_LIMITED_API=0x030b0000"]
    include = f"-I{sysconfig.get_path('include')}"
    gcc = ["gcc", *FLAGS, *KINDS[name].flags]
    sources = map(str, sorted((CHECKOUT / "src" / "native").glob("*.c")))
    subprocess.run([*gcc, *limited, include, *sources, "-o", str(package / "_native.so")], check=True)
    exported = "-fvisibility=default"
    control = str(Path(__file__).with_name("control.c"))
    subprocess.run([*gcc, exported, control, "-o", str(directory / "control.so")], check=True)
    return directory


def environment(name: str, directory: Path, reports: Path) -> dict[str, str]:
    """Of a Python that imports from there, and whose sanitizers write their reports where they are looked for."""
    kind = KINDS[name]
    runtimes = [
        subprocess.check_output(["gcc", f"-print-file-name={runtime}"], text=True).strip() for runtime in kind.runtimes
    ]
    log = f":log_path={reports}"
    return os.environ | {
        "LD_PRELOAD": " ".join(runtimes),
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(directory),
        **{option: value + log for option, value in kind.options.items()},
    }


def found(reports: Path) -> str:
    """What was reported."""
    return "\n".join(file.read_text() for file in sorted(reports.parent.glob(f"{reports.name}*")))


def check_controls(name: str, directory: Path) -> None:
    """The sanitizer reports what is wrong in `control.c`."""
    for number, (call, said) in enumerate(KINDS[name].faults.items()):
        reports = directory / f"control-{number}"
        code = f"import ctypes; ctypes.CDLL({str(directory / 'control.so')!r}).{call}"
        command = [sys.executable, "-c", code]
        ran = subprocess.run(command, env=environment(name, directory, reports), check=False, capture_output=True)
        if said not in found(reports) + ran.stderr.decode():  # UndefinedBehaviorSanitizer ends the program there
            sys.exit(f"{name}: {call} of control.c was not reported as {said!r}: the sanitizer does not work here")


def run(name: str, arguments: list[str]) -> bool:
    """Whether the tests passed without a report."""
    started = time.monotonic()
    directory = build(name)
    check_controls(name, directory)
    reports = directory / "report"
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--deselect", LITTLE_SPACE]
    command = [*pytest, *(arguments or KINDS[name].tests)]
    status = subprocess.run(command, env=environment(name, directory, reports), cwd=CHECKOUT, check=False).returncode
    reported = found(reports)
    print(reported, end="")
    said = "no report" if not reported else f"reports in {directory}"
    print(f"{name}: pytest {status}, {said}, {time.monotonic() - started:.0f} s", flush=True)
    return status == 0 and not reported


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sanitize", description="Run _native under sanitizers.")
    parser.add_argument("kind", nargs="*", choices=[[], *KINDS], help="address, thread; none: both")
    parser.add_argument("--tests", nargs="+", default=[], help="what pytest is to run instead")
    options = parser.parse_args()
    results = [run(name, options.tests) for name in options.kind or KINDS]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
