"""Runs the code of a page of the documentation from top to bottom, as a reader would.

    run(Path("docs/tutorial.md"))                        # PageError says the line that does not do what the page says
    python -m tests.docs.blocks docs/tutorial.md         # the same from a shell; --here root,xen runs what needs those

tests/docs/test_pages.py does so with every page of docs/ that has such blocks, and with README.md: a new page needs no
test of its own. A page has a directory of its own, which is empty at first and where everything runs, and an embedded
machine with domains 0, 1 and 2. `/tmp/` in a block means that directory, and $XDG_RUNTIME_DIR is in it. Blocks are

* ```` ```python ````: a program, as domain 1 unless the comment says another. It must end with 0, with no warning.
* ```` ```pycon ```` : the same, an interactive session whose output is compared by doctest (`...` is any text).
* ```` ```console ````: lines after `$ ` are typed into bash, one after the other; lines after `> ` continue one. The
  lines that follow are its output (stdout and stderr), compared if there are any: `...` within a line is any text, and
  alone on a line any lines. `export` and `cd` last until the end of the page. A command that ends with ` &` goes on in
  the background; where output is shown, the page goes on when that has come (so show what `xengrant machine --dir
  /tmp/machine &` says, and the next command finds the machine ready). `python`, `xengrant` and `pytest` are this
  checkout's.

Blocks of other languages are not run; `sh` and `bash` are refused. A comment on the line before a block says more, with
commas between:

    <!-- run: domain 2 -->            the program is domain 2 of the page's machine (XENGRANT_URL); or this terminal is,
                                      from now on
    <!-- run: file granter.py -->     the block is not run but is that file, for a later block
    <!-- run: stays -->               the program, or the last command, goes on; Ctrl-C ends it at the end of the page
    <!-- run: stays until Enter -->   the same, ended by Enter; it must end with 0
    <!-- run: terminal granter -->    in another terminal, with its own `cd` and `export`
    <!-- run: terminal granter, Enter -->   a text block: what the program that stays there prints when Enter is
                                      pressed (or Ctrl-C); it ends with that
    <!-- run: output -->              a text block: what the program before has printed (so far, if it stays)
    <!-- run: exits 2 -->             the exit code of the program, or of the last command (else 0)
    <!-- run: continues -->           goes on with the program of the block before: both are one program
    <!-- run: needs xen -->           not run where xen is not: the page's reader must have it. Counted by the test

Whatever still runs at the end of the page is ended, the last first, and must end well.
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
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from tests.docs.parsing import Block, Command, Options, PageError, blocks_of, commands_of, pattern_of
from xengrant.embedded import Machine

SOON = 120.0  # seconds; the host may be loaded
CHECKOUT = Path(__file__).parents[2]


class _Process:
    """A program or command in a session of its own; its stdout and stderr are read as they come."""

    def __init__(self, argv: Sequence[str], environment: dict[str, str], directory: Path) -> None:
        self._process = subprocess.Popen(
            argv,
            env=environment,
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._output, self._told, self._changed = bytearray(), 0, threading.Condition()
        self._reader = threading.Thread(target=self._read, name="output of a page's program", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while chunk := os.read(self._process.stdout.fileno(), 65536):
            with self._changed:
                self._output += chunk
                self._changed.notify_all()

    def output(self) -> str:
        """What it has said since `told`."""
        with self._changed:
            return self._output[self._told :].decode(errors="replace")

    def told(self) -> None:
        with self._changed:
            self._told = len(self._output)

    def shows(self, shown: str) -> bool:
        """Wait until its output begins with this; False where it ends or takes too long without."""
        pattern, deadline = pattern_of(shown), time.monotonic() + SOON
        with self._changed:
            while pattern.match(self.output()) is None:
                ended = not self._reader.is_alive()
                if ended or time.monotonic() > deadline:
                    return False
                self._changed.wait(0.1)  # the end of the reader is not notified
        return True

    def end(self) -> int:
        """Wait for its end; the exit code."""
        code = self._process.wait(SOON)
        self._reader.join(SOON)
        return code

    def press(self, key: str) -> None:
        if key == "Enter":
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(b"\n")
                self._process.stdin.flush()
        elif self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGINT)

    def close(self) -> None:
        """Kill what is left of its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(SOON)
        self._reader.join(SOON)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class _Reader:
    """Who reads a page: a directory, terminals, an embedded machine, and what runs in the background."""

    def __init__(self, page: Path, directory: Path, machine: Machine, say: Callable[[str], None]) -> None:
        self._page, self._directory, self._machine, self._say = page, directory, machine, say
        self._running: list[tuple[_Process, str, int]] = []  # the key that ends it, the line that started it
        self._staying: dict[str, _Process] = {}  # by terminal
        self._last: _Process | None = None
        self._lay_out()

    def _lay_out(self) -> None:
        tools = self._directory / ".bin"
        for part in (tools, self._directory / ".run", self._directory / "work"):
            part.mkdir(mode=0o700)
        python = shlex.quote(sys.executable)
        for name, command in {
            "python": python,
            "python3": python,
            "xengrant": f"{python} -m xengrant",
            "pytest": f"{python} -m pytest",
        }.items():
            (tools / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            (tools / name).chmod(0o755)

    def _environment(self, domid: int | None) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("XENGRANT_", "PYTEST_"))}
        paths = [str(CHECKOUT / "src"), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        return (
            kept
            | {
                "PATH": f"{self._directory}/.bin{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": os.pathsep.join(paths),
                "PYTHONUNBUFFERED": "1",
                "XDG_RUNTIME_DIR": f"{self._directory}/.run",
                "LC_ALL": "C.UTF-8",
                "TERM": "dumb",
                "COLUMNS": "120",
            }
            | ({} if domid is None else {"XENGRANT_URL": self._machine.url(domid)})
        )

    def here(self, text: str) -> str:
        """/tmp/ is the page's directory."""
        return text.replace("/tmp/", f"{self._directory}/")

    def wrong(self, line: int, message: str, process: _Process | None = None) -> PageError:
        said = "" if process is None else f"; it said\n{process.output()}"
        return PageError(f"{self._page}:{line}: {message}{said}")

    def do(self, block: Block) -> None:
        options = block.options
        if options.file:
            path = self._directory / "work" / options.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.here(block.text))
        elif options.key:
            self._press(block)
        elif options.output:
            self._compare(block)
        elif block.language == "console":
            self._type(block)
        else:
            self._program(block)

    def _program(self, block: Block) -> None:
        self._say(f"{self._page}:{block.line}: {block.language}")
        program = self._directory / "work" / f".line-{block.line}"
        program.write_text(self.here(block.text))
        argv = [sys.executable, "-W", "error"]
        if block.language == "pycon" or block.text.startswith(">>> "):
            argv += ["-m", "doctest", "-o", "ELLIPSIS"]
        domid = 1 if block.options.domain is None else block.options.domain
        process = self._start([*argv, str(program)], self._environment(domid))
        self._settle(process, block.line, block.options)

    def _type(self, block: Block) -> None:
        options, commands = block.options, commands_of(block)
        for command in commands:
            self._say(f"{self._page}:{block.line}: $ {command.typed}")
            last = command is commands[-1]
            process = self._bash(command, options)
            if command.background:
                self._running.append((process, "Ctrl-C", block.line))
            else:
                self._settle(process, block.line, options if last else Options(terminal=options.terminal))
            self._see(process, block.line, command.shown, all_of_it=not command.background and not options.stays)

    def _bash(self, command: Command, options: Options) -> _Process:
        state = shlex.quote(f"{self._directory}/.terminal-{options.terminal}")
        # What is exported, and where one is, goes from command to command.
        script = f"[ -e {state} ] && . {state}\n"
        if options.domain is not None:
            script += f"export XENGRANT_URL={shlex.quote(self._machine.url(options.domain))}\n"
        script += f"{self.here(command.typed)}\n"
        if not command.background:
            script += f'code=$?; {{ export -p; printf "cd %q\\n" "$PWD"; }} >{state}; exit $code\n'
        environment = self._environment(None)
        return self._start(["bash", "--noprofile", "--norc", "-c", script], environment)

    def _start(self, argv: Sequence[str], environment: dict[str, str]) -> _Process:
        self._last = _Process(argv, environment, self._directory / "work")
        return self._last

    def _settle(self, process: _Process, line: int, options: Options) -> None:
        """Let it stay, or see it end as it should."""
        if options.stays:
            self._running.append((process, "Enter" if options.until_enter else "Ctrl-C", line))
            self._staying[options.terminal] = process
            return
        try:
            code = process.end()
            if code != options.exits:
                raise self.wrong(line, f"ended with {code}, not {options.exits}", process)
        except subprocess.TimeoutExpired:
            raise self.wrong(line, "does not end", process) from None
        finally:
            process.close()

    def _see(self, process: _Process, line: int, shown: str, *, all_of_it: bool) -> None:
        if not shown:
            return
        shown = self.here(shown)
        right = pattern_of(shown).fullmatch(process.output()) is not None if all_of_it else process.shows(shown)
        if not right:
            raise self.wrong(line, f"should have said\n{shown}", process)

    def _compare(self, block: Block) -> None:
        if self._last is None:
            raise self.wrong(block.line, "no program before this output")
        stays = any(process is self._last for process, *_ in self._running)
        self._see(self._last, block.line, block.text, all_of_it=not stays)

    def _press(self, block: Block) -> None:
        process = self._staying.pop(block.options.terminal, None)
        if process is None:
            raise self.wrong(block.line, "nothing stays in this terminal")
        self._running = [entry for entry in self._running if entry[0] is not process]
        try:
            process.told()
            process.press(block.options.key)
            self._ended_well(process, block.line)
            self._see(process, block.line, block.text, all_of_it=True)
        finally:
            process.close()

    def _ended_well(self, process: _Process, line: int) -> None:
        try:
            code = process.end()
        except subprocess.TimeoutExpired:
            raise self.wrong(line, "does not end", process) from None
        if code not in {0, -signal.SIGINT, 128 + signal.SIGINT}:
            raise self.wrong(line, f"ended with {code}", process)

    def end(self) -> None:
        """End what still runs, the last first."""
        while self._running:
            process, key, line = self._running.pop()
            try:
                process.press(key)
                self._ended_well(process, line)
            finally:
                process.close()

    def close(self) -> None:
        for process, *_ in self._running:
            process.close()


def _programs(page: Path, here: Collection[str]) -> Iterator[Block]:
    """The blocks that are run, with those that continue one joined to it."""
    held: Block | None = None
    for block in blocks_of(page):
        if not block.runnable or (block.options.needs and block.options.needs not in here):
            continue
        if block.options.continues:
            if held is None or held.language != block.language:
                raise PageError(f"{page}:{block.line}: continues no program")
            held = Block(held.line, held.language, held.text + "\n" + block.text, held.options)
            continue
        if held is not None:
            yield held
        held = block
    if held is not None:
        yield held


def run(page: Path, here: Collection[str] = (), say: Callable[[str], None] = lambda text: None) -> None:
    """Run a page; `here` is what there is of what blocks may need, and `say` is told what is run, as it is.

    PageError says what is not as the page says.
    """
    with tempfile.TemporaryDirectory(prefix="page-") as directory, Machine(reclaim_interval=0.01) as machine:
        machine.create(1)
        machine.create(2)
        reader = _Reader(page, Path(directory), machine, say)
        try:
            for block in _programs(page, here):
                reader.do(block)
            reader.end()
        finally:
            reader.close()


def not_run(page: Path) -> list[str]:
    """What each block needs that is not run because of that."""
    return [block.options.needs for block in blocks_of(page) if block.options.needs]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.docs.blocks", description="Run the code of pages.")
    parser.add_argument("page", nargs="+", type=Path)
    parser.add_argument("--here", default="", metavar="WHAT,WHAT", help="what there is of what blocks need")
    args = parser.parse_args()
    for page in args.page:
        try:
            run(page, re.split(r",\s*", args.here), lambda text: print(text, flush=True))
        except PageError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
