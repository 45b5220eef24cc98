"""What every command has: help with examples, --version, one line for an error, streams that may go away."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

import pytest

import xengrant
from xengrant.embedded import Machine

from .shell import DEADLINE, TOOL, User, one_line, sharing

Users = Callable[[int], User]
COMMANDS = [
    [],
    ["demo"],
    ["doctor"],
    ["share"],
    ["map"],
    ["ls"],
    ["metrics"],
    ["machine"],
    ["machine", "status"],
    ["machine", "destroy"],
    ["selftest"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_examples_and_the_common_options(nobody: User, command: list[str]) -> None:
    done = nobody.run(*command, "--help")
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert "examples:" in text
    assert "xengrant " + " ".join(command) in text.partition("examples:")[2]
    for option in ("--url", "--json", "--verbose"):
        assert option in text


def test_every_command_is_in_the_help(nobody: User) -> None:
    text = nobody.run("--help").stdout.decode()
    for command in COMMANDS:
        if len(command) == 1:
            assert f"\n    {command[0]} " in text


def test_the_version_is_printed(nobody: User) -> None:
    assert nobody.run("--version").stdout.decode() == f"xengrant {xengrant.__version__}\n"


def test_no_command_is_wrong_usage(nobody: User) -> None:
    assert nobody.run().returncode == 64


@pytest.mark.parametrize(
    ("command", "prog", "error"),
    [
        (["ls", "--wach", "1"], "xengrant ls", "unrecognized arguments: --wach; did you mean --watch?"),
        (["ls", "1", "--filds=ref"], "xengrant ls", "unrecognized arguments: --filds=ref; did you mean --fields?"),
        (["demo", "foo"], "xengrant demo", "unrecognized arguments: foo"),
        (["machine", "status", "--zzz"], "xengrant machine status", "unrecognized arguments: --zzz"),
        (["block", "attach", "0", "read", "--countt", "1"], "xengrant block attach DOMAIN read",
         "unrecognized arguments: --countt 1; did you mean --count?"),
    ],
)  # fmt: skip
def test_wrong_usage_of_a_command_shows_its_own_usage(
    nobody: User, command: list[str], prog: str, error: str
) -> None:
    done = nobody.run(*command)
    assert done.returncode == 64
    said = done.stderr.decode()
    assert said.startswith(f"usage: {prog} ")
    assert said.endswith(f"\n{prog}: error: {error}\n")


def test_without_xen_the_error_says_what_to_do(nobody: User) -> None:
    text = one_line(nobody.run("share", "--to", "2"), 1)
    assert "does not run on Xen" in text
    assert "xengrant machine" in text


@pytest.mark.parametrize("url", ["nonsense", "embedded:", "embedded:/tmp?domid=x", "xen:1"])
def test_a_url_that_names_no_machine_is_wrong_usage(nobody: User, url: str) -> None:
    for arguments in (["share", "--to", "2", "--url", url], ["--url", url, "share", "--to", "2"]):
        done = nobody.run(*arguments)
        assert done.returncode == 64
        assert b"error: argument --url: " in done.stderr
        assert b"embedded:DIR" in done.stderr
    assert "embedded:DIR" in one_line(nobody.run("share", "--to", "2", XENGRANT_URL=url), 1)


def test_a_url_may_stand_before_or_after_the_command(nobody: User, machine: Machine) -> None:
    for arguments in (["--url", machine.url(1), "map", "9", "8"], ["map", "9", "8", "--url", machine.url(1)]):
        assert "no such domain" in one_line(nobody.run(*arguments), 1)


def test_the_option_wins_over_the_environment(user: Users, machine: Machine) -> None:
    share = user(1).start("share", "--to", "2", "--url", machine.url(5), "--json")
    assert '"domid": 5' in share.line()


def test_debug_shows_where_an_error_came_from(user: Users) -> None:
    for arguments in (["map", "9", "8", "--debug"], ["--debug", "map", "9", "8"]):
        done = user(1).run(*arguments)
        assert done.returncode == 1
        assert "Traceback" in done.stderr.decode()
        assert done.stderr.decode().splitlines()[-1].startswith("xengrant: ")
    assert "Traceback" not in user(1).run("map", "9", "8", "-v").stderr.decode()


def test_a_reader_that_goes_away_ends_it_quietly(user: Users, machine: Machine) -> None:
    with sharing(machine.url(1), 2, pages=256) as share:
        share.mapping[:] = os.urandom(len(share.mapping))
        tool = f"{' '.join(TOOL)} map 1 {share.refs[0]}-{share.refs[-1]} --url '{machine.url(2)}'"
        done = subprocess.run(
            ["bash", "-c", f'{tool} | head -n 1; exit "${{PIPESTATUS[0]}}"'],
            check=False,
            capture_output=True,
            timeout=DEADLINE,
        )
    assert done.stdout.count(b"\n") == 1
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")
