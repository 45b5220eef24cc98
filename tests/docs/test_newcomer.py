"""`make check-docs`: what is typed in the clone's shell, and that a command which is wrong, or late, is named."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.docs import newcomer
from tests.docs.parsing import PageError, blocks_of, commands_of

PAGE = """
<!-- run: needs checkout -->
```console
$ cd sub
$ export WORD=hello
$ echo $WORD $(basename $PWD)
hello sub
$ echo other
hello
$ false
$ sleep 600
```

<!-- run: needs tests -->
```console
$ make test
```
"""


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> newcomer.Newcomer:
    checkout = tmp_path / "checkout"
    (checkout / "sub").mkdir(parents=True)
    (checkout / "sub" / "file").touch()
    (checkout / "README.md").write_text(PAGE)
    author = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    for command in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "-m", "All"]):
        subprocess.run(["git", *command], cwd=checkout, check=True, timeout=60)
    monkeypatch.setattr(newcomer, "CHECKOUT", checkout)
    monkeypatch.setitem(newcomer.IN_CLONE, "checkout", 60.0)
    (tmp_path / "clean").mkdir()
    return newcomer.Newcomer(tmp_path / "clean", {"tests"})


def test_commands_are_typed_in_the_clone(
    reader: newcomer.Newcomer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_checkout, in_tests = blocks_of(reader.clone / "README.md")
    change, export, echo, other, wrong, late = commands_of(in_checkout)
    for command in (change, export, echo):
        reader.type("README.md", in_checkout, command)
    assert "README.md:3: $ echo $WORD" in capsys.readouterr().out
    with pytest.raises(PageError, match=r"README.md:3: \$ echo other: should have said\nhello"):
        reader.type("README.md", in_checkout, other)
    with pytest.raises(PageError, match=r"README.md:3: \$ false: ended with 1"):
        reader.type("README.md", in_checkout, wrong)
    monkeypatch.setitem(newcomer.IN_CLONE, "checkout", 1.0)
    with pytest.raises(PageError, match=r"README.md:3: \$ sleep 600: ended with -9 after"):
        reader.type("README.md", in_checkout, late)
    reader.type("README.md", in_tests, commands_of(in_tests)[0])
    assert reader.left_out == ["README.md:15: $ make test"]


def test_the_shell_has_nothing_of_this_one(reader: newcomer.Newcomer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENGRANT_URL", "embedded:/nowhere?domid=1")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    found = reader.run(["bash", "-c", "env; command -v python3"], "env", 60.0)
    assert "XENGRANT_URL" not in found
    assert "PYTHONPATH" not in found
    assert f"HOME={reader.clone.parent}" in found
    assert found.endswith(f"{reader.clone.parent}/bin/python3\n")
