"""Mistakes: each is a line that says what is wrong, without a traceback. What is none says that it is a bug."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import xengrant
from xengrant.embedded import Machine

from .shell import DEADLINE, TOOL, User, one_line, sharing

Users = Callable[[int], User]

# What is run in domain 0, its status, and what it says. FILE is a text file, DIR a directory.
MISTAKES = [
    (["map", "1", "REF", "--output", "FOLDER"], 1, "FOLDER: Is a directory"),
    (["map", "1", "REF", "--output", "FOLDER/no/file"], 1, "FOLDER/no/file: No such file or directory"),
    (["map", "1", "REF", "--input", "FOLDER"], 1, "FOLDER: Is a directory"),
    (["map", "1", "7"], 1, "ref 7 of domain 1: not granted"),
    (["map", "-1", "8"], 64, "domid -1 is outside 0..32751"),
    (["share", "--to", "1", "--file", "FOLDER"], 1, "FOLDER: Is a directory"),
    (["share", "--to", "1", "--file", "FOLDER/none"], 1, "FOLDER/none: No such file or directory"),
    (["share", "--to", "1", "--advertise", "//"], 64, "'//' is no xenstore path"),
    (["share", "--to", "1", "--advertise", ""], 64, "'' is no xenstore path"),
    (["share", "--to", "1", "--advertise", "data/a b"], 64, "'data/a b' is no xenstore path"),
    (["map", "1", "--at", "a/../b"], 64, "'a/../b' is no xenstore path"),
    (["share", "--to", "0"], 64, "domain 0 is this domain"),
    (["share", "--to", "1", "--url", "embedded:FOLDER?domid=1"], 1, "the embedded machine does not run"),
    (["cat", "1", "../x"], 64, "'../x' is no xenstore path"),
    (["cat", "-l", "1", "a/../b"], 64, "'a/../b' is no xenstore path"),
    (["cat", "1", "/"], 64, "'/' is no path"),
    (["cat", "0", "x"], 64, "domain 0 is this domain"),
    (["proxy", "--listen", "FOLDER/x", "--connect-vchan", "1", "a b"], 64, "'a b' is no xenstore path"),
    (["proxy", "--listen", "FOLDER/no/x", "--connect-vchan", "1", "x"], 1, "cannot listen at FOLDER/no/x"),
    (["proxy", "--listen", "TEXT/x", "--connect-vchan", "1", "x"], 1, "cannot listen at TEXT/x"),
    (["block", "serve", "FOLDER/none", "--to", "1"], 1, "FOLDER/none: No such file or directory"),
    (["block", "serve", "FOLDER", "--to", "1"], 1, "FOLDER: Is a directory"),
    (["block", "attach", "0", "info"], 64, "domain 0 is this domain"),
    (["block", "attach", "1", "write", "--input", "FOLDER/none"], 2, "has no disk xvdb"),
    (["ls", "77"], 1, "there is no domain 77"),
    (["ls", "0"], 1, "nobody maps its own grant table"),
    (["peek", "console", "77"], 1, "there is no domain 77"),
    (["metrics", "--output", "FOLDER"], 1, "FOLDER is not a regular file"),
    (["metrics", "--output", "FOLDER/no/file"], 1, "FOLDER/no/file: No such file or directory"),
    (["machine", "--dir", "TEXT"], 1, "TEXT"),
    (["machine", "status", "--dir", "FOLDER"], 1, "the embedded machine does not run"),
    (["machine", "destroy", "77", "--dir", "MACHINE"], 1, "there is no domain 77; domains here: 0 Domain-0, "),
    (["machine", "destroy", "1", "--dir", "FOLDER/none"], 1, "no embedded machine here"),
    (["selftest", "--record", "TEXT"], 1, "TEXT has not what `xengrant selftest --json` prints"),
    (["selftest", "--record", "FOLDER/none"], 1, "FOLDER/none: No such file or directory"),
    (["selftest", "-k", "no such case"], 64, "no case has 'no such case'"),
    (["selftest", "--peer", "1", "--destroy-command", "'"], 64, "--destroy-command: "),
]


@pytest.mark.parametrize(("arguments", "status", "text"), MISTAKES, ids=[" ".join(words) for words, _, _ in MISTAKES])
def test_a_mistake_is_one_line(
    user: Users, machine: Machine, tmp_path: Path, arguments: list[str], status: int, text: str
) -> None:
    (tmp_path / "file").write_text("text\n")
    with sharing(machine.url(1), 0) as share:

        def put(words: str) -> str:
            words = words.replace("FOLDER", str(tmp_path)).replace("TEXT", str(tmp_path / "file"))
            words = words.replace("MACHINE", machine.directory)
            return words.replace("REF", str(share.refs[0]))

        assert put(text) in one_line(user(0).run(*map(put, arguments)), status)


def test_a_ref_that_is_none_says_how_refs_are_written(user: Users) -> None:
    for text in ("x", "8-", "-8-9", "0x8", "8 9"):
        done = user(2).run("map", "1", text)
        assert done.returncode == 64
        assert "Traceback" not in done.stderr.decode()
    assert b"'x' is no ref and no range of refs" in user(2).run("map", "1", "x").stderr


def test_a_file_that_takes_no_more_is_named(user: Users, machine: Machine) -> None:
    ref = user(1).start("share", "--to", "2").line()
    assert one_line(user(2).run("map", "1", ref, "--output", "/dev/full"), 2) == "/dev/full: No space left on device"


_SOMEBODY_ELSE = """
import os, sys
from xengrant.cli import main
first = main(sys.argv[1:])  # imports all it needs, which another user might not read
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
print(first, main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_machine_that_another_user_runs_is_one_line(machine: Machine) -> None:
    command = [sys.executable, "-c", _SOMEBODY_ELSE, "map", "1", "8", "--url", machine.url(2)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=True)
    assert done.stdout == "1 1\n"
    mine, others = done.stderr.splitlines()
    assert mine.startswith("xengrant: cannot map 1 grant: ")
    assert "belongs to another user" in others


# -- what is no user's mistake ----------------------------------------------------------------------------------------

_BROKEN = """
import sys
from xengrant.cli import doctor, main
def run(args):
    {"a": 1}["\x1b[2J"]
doctor.run = run
sys.exit(main(sys.argv[1:]))
"""


def _broken(*arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _BROKEN, *arguments], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "\x1b" not in done.stderr
    return done.stderr.splitlines()


def test_what_nobody_expected_is_a_bug_and_says_how_to_report_it() -> None:
    what, bug = _broken("doctor")
    assert what == r"xengrant: KeyError: '\x1b[2J'"
    assert bug.startswith(f"This is a bug in xengrant {xengrant.__version__}, Python {sys.version.split()[0]}, Linux ")
    assert bug.endswith("with what the same command prints with --debug.")


@pytest.mark.parametrize("arguments", [["doctor", "--debug"], ["--debug", "doctor"]], ids=" ".join)
def test_debug_shows_all_of_a_bug(arguments: list[str]) -> None:
    lines = _broken(*arguments)
    assert "Traceback (most recent call last):" in lines
    assert lines[-1].endswith("with all of the above.")


# -- streams that are not there ---------------------------------------------------------------------------------------


def _in_a_shell(line: str, url: str | None = None) -> tuple[int, bytes, bytes]:
    """(status, stdout, stderr) of a line of bash in which ``xengrant`` is this tool."""
    tool = " ".join(TOOL)
    environment = {k: v for k, v in os.environ.items() if k not in ("XENGRANT_URL", "PYTHONUNBUFFERED")}
    if url is not None:
        environment["XENGRANT_URL"] = url
    done = subprocess.run(
        ["bash", "-c", f'xengrant() {{ {tool} "$@"; }}; {line}'],
        capture_output=True,
        timeout=DEADLINE,
        check=False,
        env=environment,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("command", ["--help", "--version", "ls --help", "ls", "ls 1", "doctor", "selftest --list"])
def test_closed_streams_are_dev_null(machine: Machine, command: str) -> None:
    for closed in (">&-", ">&- 2>&-", "<&- >&- 2>&-"):
        assert _in_a_shell(f"xengrant {command} {closed}", machine.url(0))[0] == 0, closed
    assert b"Traceback" not in _in_a_shell(f"xengrant {command} >&-", machine.url(0))[2]


def test_a_device_does_not_take_the_number_of_a_closed_stream(machine: Machine) -> None:
    status, _, said = _in_a_shell("xengrant map 1 8 <&- >&- 2> >(cat >&2)", machine.url(2))
    assert status == 1
    assert said.startswith(b"xengrant: cannot map 1 grant")


@pytest.mark.parametrize(
    "command", ["--help", "ls --help", "ls", "ls 1 --json", "doctor", "selftest --list", "metrics"]
)
def test_a_full_stdout_is_one_line(machine: Machine, command: str) -> None:
    status, _, said = _in_a_shell(f"xengrant {command} > /dev/full", machine.url(0))
    assert (status, said) == (2, b"xengrant: cannot write to stdout: No space left on device\n")


@pytest.fixture
def nobody_reads() -> Iterator[int]:
    """A pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize(
    "command", ["--help", "--version", "ls --help", "ls", "ls --json", "metrics", "selftest --list"]
)
def test_a_reader_that_has_gone_ends_it_quietly(machine: Machine, nobody_reads: int, command: str) -> None:
    assert _piped(machine, command, stdout=nobody_reads) == (141, b"")


@pytest.mark.parametrize(("command", "status"), [("share", 64), ("share --to nobody", 1), ("top -b --sort x", 64)])
def test_a_stderr_that_nobody_reads_changes_no_status(
    machine: Machine, nobody_reads: int, command: str, status: int
) -> None:
    assert _piped(machine, command, stderr=nobody_reads)[0] == status


def _piped(
    machine: Machine, command: str, stdout: int = subprocess.DEVNULL, stderr: int = subprocess.PIPE
) -> tuple[int, bytes | None]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [*TOOL, *command.split()],
        stdout=stdout,
        stderr=stderr,
        env={**environment, "XENGRANT_URL": machine.url(0)},
        timeout=DEADLINE,
        check=False,
    )
    return done.returncode, done.stderr
