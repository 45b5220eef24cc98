"""`make check-docs`: README, tutorial and a guide as a newcomer takes them, in a clean directory, every block.

    python -m tests.docs.newcomer                      # all of it: also make test, and the lab, which may need root
    python -m tests.docs.newcomer --skip tests,lab     # without the blocks that need those, which are named at the end

The checkout's HEAD is cloned; home, caches and the Python environment are empty. Commands of a clone (`needs checkout`,
`tests`, `lab`) are typed there, into one shell; all else goes on with the Python that they have made, by `blocks`. What
is done is printed as it is. The first thing that does not do what its page says ends it with status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.docs.parsing import Block, Command, PageError, blocks_of, commands_of, pattern_of

CHECKOUT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/tutorial.md", "docs/howto/test-on-real-xen.md")
IN_CLONE = {"checkout": 900.0, "tests": 3600.0, "lab": 1200.0}
"""What blocks need that are typed in the clone, and how many seconds each of their commands may take."""
_KEPT = r"PIP_|\w+_proxy$|XENGRANT_LAB_(MIRROR|CACHE)$"
"""What pip and the lab are told by the environment. The lab's cache is empty too where it is not named."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.docs.newcomer", description="Try what newcomers read.")
    parser.add_argument("--skip", default="", metavar="WHAT,WHAT", help="leave out blocks that need these: tests, lab")
    skipped = set(filter(None, parser.parse_args().skip.split(",")))
    if not skipped <= {"tests", "lab"}:
        parser.error("--skip takes tests and lab")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="newcomer-") as name:
        try:
            newcomer = Newcomer(Path(name), skipped)
            for page in PAGES:
                newcomer.read(page)
        except PageError as error:
            sys.exit(f"\n{error}")
    for what in newcomer.left_out:
        print(f"left out: {what}")
    print(f"{', '.join(PAGES)} do what they say, in {time.monotonic() - started:.0f} s")


class Newcomer:
    """A directory with a clone in it, a shell there, and what was left out."""

    def __init__(self, directory: Path, skipped: set[str]) -> None:
        self.clone, self._state, self._skipped = directory / "xengrant", directory / "shell", skipped
        self._environment = _clean_environment(directory)
        self.left_out: list[str] = []
        print(f"$ git clone {CHECKOUT} {self.clone}", flush=True)
        subprocess.run(["git", "clone", "--quiet", CHECKOUT, self.clone], check=True, timeout=300)
        self._state.write_text(f"cd {shlex.quote(str(self.clone))}\n")

    def read(self, page: str) -> None:
        for block in blocks_of(self.clone / page):
            if block.options.needs in IN_CLONE:
                for command in commands_of(block):
                    self.type(page, block, command)
        self.run(["python", "-m", "tests.docs.blocks", page], f"{page}: its other blocks", 1800.0)

    def type(self, page: str, block: Block, command: Command) -> None:
        """Type a command, or leave it out; PageError where it does not do what the page says."""
        where = f"{page}:{block.line}: $ {command.typed}"
        if block.options.needs in self._skipped:
            self.left_out.append(where)
            return
        output = self.run(["bash", "-c", command.typed], where, IN_CLONE[block.options.needs])
        if command.shown and pattern_of(command.shown).fullmatch(output) is None:
            raise PageError(f"{where}: should have said\n{command.shown}; it said\n{output}")

    def run(self, argv: list[str], what: str, seconds: float) -> str:
        """Run it in the clone's shell, whose `cd` and `export` last; what it printed, which is shown as it comes."""
        print(f"\n{what}", flush=True)
        started = time.monotonic()
        typed = argv[2] if argv[0] == "bash" else shlex.join(argv)
        state = shlex.quote(str(self._state))
        script = f'. {state}\n{typed}\ncode=$?; {{ export -p; printf "cd %q\\n" "$PWD"; }} >{state}; exit $code\n'
        lines: list[str] = []
        with _deadline(self._start(script), seconds) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                print(line, end="", flush=True)
        taken = time.monotonic() - started
        if process.returncode:
            late = f" after {taken:.0f} s, of which it may take {seconds:.0f}"
            raise PageError(f"{what}: ended with {process.returncode}{late if process.returncode < 0 else ''}")
        print(f"({taken:.1f} s)", flush=True)
        return "".join(lines)

    def _start(self, script: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-c", script],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )


@contextmanager
def _deadline(process: subprocess.Popen[str], seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Whatever is left of the process's session is killed in the end, or after so many seconds."""

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(seconds, kill)
    timer.start()
    try:
        with process:
            yield process
    finally:
        timer.cancel()
        kill()


def _clean_environment(directory: Path) -> dict[str, str]:
    """The system's programs and this Python's base, an empty home, no caches; and how pip finds its index here."""
    tools, home = directory / "bin", directory / "home"
    for made in (tools, home):
        made.mkdir()
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    (tools / "python3").symlink_to(base)
    kept = {name: value for name, value in os.environ.items() if re.match(_KEPT, name)}
    pip = Path.home() / ".config/pip/pip.conf"
    if pip.exists():
        kept.setdefault("PIP_CONFIG_FILE", str(pip))
    return kept | {
        "HOME": str(home),
        "PATH": f"{tools}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PIP_NO_CACHE_DIR": "1",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
    }


if __name__ == "__main__":
    main()
