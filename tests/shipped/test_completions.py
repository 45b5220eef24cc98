"""Completions: every subcommand and option is in each script, and the shells themselves say so."""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from shipping import completions
from xengrant.cli.commands import COMMANDS, whole_parser

from .test_manual import ALL

DEADLINE = 60.0
SCRIPTS = completions.scripts(whole_parser())
BASH, ZSH, FISH = SCRIPTS


@pytest.mark.parametrize("parser", ALL, ids=lambda parser: parser.prog)
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_subcommand_and_option_is_in_each_script(script: str, parser: argparse.ArgumentParser) -> None:
    text = SCRIPTS[script]
    for action in parser._actions:
        names = list(action.choices or ()) if isinstance(action, argparse._SubParsersAction) else action.option_strings
        for name in names:
            wanted = re.sub("^--", "-l ", name) if script == FISH and name.startswith("--") else name
            wanted = re.sub("^-(?=.$)", "-s ", wanted) if script == FISH else wanted
            assert re.search(rf"(?<![\w-]){re.escape(wanted)}(?![\w-])", text), name


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    for name, text in SCRIPTS.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def _shell(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        # .ci/run installs all three.
        assert "CI" not in os.environ, f"there is no {name}"
        pytest.skip(f"there is no {name}: apt-get install {name}")
    return found


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_shell_can_read_its_script(script: str, prefix: Path) -> None:
    shell = {BASH: "bash", ZSH: "zsh", FISH: "fish"}[script]
    subprocess.run([_shell(shell), "-n", prefix / script], check=True, timeout=DEADLINE)


TYPED = [
    ("", set(COMMANDS)),
    ("--u", {"--url"}),
    ("share --", {"--to", "--pages", "--read-only", "--url"}),
    ("block ", {"serve", "attach"}),
    ("block serve --vd", {"--vdev"}),
    ("block serve --data ", {"copy", "map"}),
    ("machine --lifetime ", {"pv", "hvm"}),
]


@pytest.mark.parametrize(("typed", "offered"), TYPED, ids=[typed for typed, _ in TYPED])
def test_bash_completes(typed: str, offered: set[str], prefix: Path) -> None:
    words = typed.split(" ")
    script = f"""
        source {prefix / BASH}
        COMP_WORDS=(xengrant "$@") COMP_CWORD=$#
        eval "$(complete -p xengrant | sed -E 's/.*-F ([^ ]+) .*/\\1/')" xengrant "${{@: -1}}" x
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        [_shell("bash"), "-c", script, "bash", *words], capture_output=True, text=True, timeout=DEADLINE, check=True
    )
    assert offered <= {line.strip() for line in done.stdout.splitlines()}, done


@pytest.mark.parametrize(("typed", "offered"), TYPED, ids=[typed for typed, _ in TYPED])
def test_fish_completes(typed: str, offered: set[str], prefix: Path) -> None:
    script = f"source {prefix / FISH}; complete -C 'xengrant {typed}'"
    environment = {**os.environ, "HOME": str(prefix)}
    done = subprocess.run(
        [_shell("fish"), "--no-config", "-c", script],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
        env=environment,
    )
    assert offered <= {line.split("\t")[0] for line in done.stdout.splitlines()}, done


@pytest.mark.parametrize(("typed", "offered"), TYPED, ids=[typed for typed, _ in TYPED])
def test_zsh_completes(typed: str, offered: set[str], prefix: Path) -> None:
    shell = _shell("zsh")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(shell, ["zsh", "-f", "-i"], {"HOME": str(prefix), "TERM": "dumb", "PATH": os.environ["PATH"]})
    shown = ""

    def until(*texts: str) -> None:
        nonlocal shown
        deadline = time.monotonic() + DEADLINE
        while not all(text in shown for text in texts):
            assert select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0], (texts, shown)
            shown += os.read(terminal, 65536).decode(errors="replace")

    try:
        site = prefix / "share/zsh/site-functions"
        # The prompt is written so that its echo is not taken for it.
        setup = f"fpath=({site} $fpath); autoload -Uz compinit; compinit -u -D; LISTMAX=1000 COLUMNS=80 LINES=200"
        setup += " PS1='rea''dy> '"
        os.write(terminal, f"{setup}\n".encode())
        until("ready> ")
        shown = ""
        os.write(terminal, f"xengrant {typed}\t\t\t".encode())
        until(*offered)
    finally:
        os.close(terminal)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
