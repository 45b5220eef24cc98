"""`demo`: what people see first."""

from __future__ import annotations

import json
import re
import sys

import pytest

from xengrant import cli
from xengrant.cli import actor

from .shell import User

STEPS = ["start", "share", "meet", "map", "write", "notify", "refuse", "revoke", "end"]


def test_every_step_is_shown_and_checked(nobody: User) -> None:
    done = nobody.run("demo", PYTHONIOENCODING="utf-8")
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert [line.split()[0] for line in lines if re.match("[a-z]", line) and line.split()[0] in STEPS] == STEPS
    facts = [line for line in lines if line.startswith("    ")]
    assert all(line.startswith("    ✓ ") for line in facts)
    assert lines[-1].startswith(f"all {len(facts)} checks passed in ")
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in done.stdout.decode()


def test_where_the_terminal_knows_no_check_marks_they_are_words(nobody: User) -> None:
    done = nobody.run("demo", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert b"    ok " in done.stdout


def test_json_has_a_line_for_each_fact(nobody: User) -> None:
    lines = [json.loads(line) for line in nobody.run("demo", "--json").stdout.splitlines()]
    *facts, end = lines
    assert [step for i, step in enumerate(f["step"] for f in facts) if i == 0 or facts[i - 1]["step"] != step] == STEPS
    assert all(fact["ok"] is True and fact["fact"] for fact in facts)
    assert {"event": "done", "ok": True, "checked": len(facts), "failed": 0} == {
        name: end[name] for name in ("event", "ok", "checked", "failed")
    }


def test_a_check_that_fails_is_shown_and_is_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("xengrant.cli.demo._HELLO", "\x1b[2Jhello" + "x" * 300)  # overwritten by what domain 2 writes
    assert cli.main(["demo"]) == 1
    out = capsys.readouterr().out
    assert "checks failed" in out
    assert "\x1b" not in out


def test_a_domain_that_dies_fails_the_demo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert cli.main(["demo"]) == 1
    assert "ended with status 1" in capsys.readouterr().out


def test_a_refusal_is_an_answer() -> None:
    class Refusing:
        def map(self) -> None:
            raise PermissionError(1, "no")

    assert actor.answer(Refusing(), {"do": "map"}) == {"error": "PermissionError", "text": "no", "statuses": []}  # type: ignore[arg-type]
