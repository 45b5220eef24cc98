"""Bars: on a terminal only, with how far, how fast and for how long still; without escapes where NO_COLOR is set."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

import xengrant
from xengrant import vchan
from xengrant.cli import progress
from xengrant.embedded import Machine

from .shell import DEADLINE, TOOL, sharing


@pytest.mark.parametrize(
    ("done", "total", "seconds", "text"),
    [
        (0, 100, 0.0, "0 B of 100 B"),
        (1_000_000, 4_000_000, 2.0, "1.0 MB of 4.0 MB  500.0 kB/s  0:06 left"),
        (1_000_000_000, 100_000_000_000, 100.0, "1.0 GB of 100.0 GB  10.0 MB/s  2:45:00 left"),
        (4_000, 4_000, 2.0, "4.0 kB of 4.0 kB  2.0 kB/s  0:00 left"),
        (5_000, 4_000, 1.0, "5.0 kB of 4.0 kB  5.0 kB/s  0:00 left"),
        (3_000, None, 2.0, "3.0 kB  1.5 kB/s"),
    ],
)
def test_the_pace_says_how_far_how_fast_and_for_how_long(
    done: int, total: int | None, seconds: float, text: str
) -> None:
    assert progress.pace(done, total, seconds, progress.size) == text


def test_a_file_is_as_long_as_what_is_left_of_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    with open(tmp_path / "file", "rb", buffering=0) as file:
        assert progress.file_size(file.fileno()) == 5
        file.read(2)
        assert progress.file_size(file.fileno()) == 3
    reader, writer = os.pipe()
    assert progress.file_size(reader) is None
    os.close(reader)
    os.close(writer)


# -- as the tool shows it ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _error_terminal() -> Iterator[tuple[int, int]]:
    own, its = pty.openpty()
    try:
        yield own, its
    finally:
        for descriptor in (own, its):
            with contextlib.suppress(OSError):
                os.close(descriptor)


def shown(*arguments: str, stdin: bytes | BinaryIO = b"", **env: str) -> tuple[int, bytes, str]:
    """(status, stdout, what stderr, a terminal, showed) of `xengrant ARGUMENTS`."""
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "XENGRANT_URL", "COLUMNS")}
    with _error_terminal() as (own, its):
        process = subprocess.Popen(
            [*TOOL, *arguments],
            stdin=subprocess.PIPE if isinstance(stdin, bytes) else stdin,
            stdout=subprocess.PIPE,
            stderr=its,
            env={**environment, "TERM": "xterm", **env},
        )
        os.close(its)
        assert process.stdout is not None
        if process.stdin is not None and isinstance(stdin, bytes):
            process.stdin.write(stdin)
            process.stdin.close()
        streams = {own: b"", process.stdout.fileno(): b""}
        left = set(streams)
        try:
            while left:
                ready = select.select(left, [], [], DEADLINE)[0]
                assert ready, streams
                for stream in ready:
                    data = b""
                    with contextlib.suppress(OSError):  # EIO: everybody has closed the terminal
                        data = os.read(stream, 65536)
                    streams[stream] += data
                    if not data:
                        left.discard(stream)
            return process.wait(DEADLINE), streams[process.stdout.fileno()], streams[own].decode()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def test_the_selftest_says_how_far_it_is() -> None:
    status, out, said = shown("selftest", "-k", "page", "--lifetime", "pv", "--json", NO_COLOR="1")
    assert status == 0
    cases = len(out.splitlines()) - 1
    assert re.search(rf"\rselftest \[#*\.*\] 1 of {cases}  [0-9.]+/s  0:[0-9]+ left", said)
    assert "\x1b" not in said


def test_rich_draws_where_it_is(machine: Machine) -> None:
    pytest.importorskip("rich")
    with sharing(machine.url(1), 2, pages=512) as share:
        refs = f"{share.refs[0]}-{share.refs[-1]}"
        status, out, said = shown("map", "1", refs, "--output", "-", "--url", machine.url(2))
    assert (status, len(out)) == (0, 512 << 12)
    assert "━" in said
    assert "of 2.1 MB" in said
    assert " left" in said
    assert said.endswith("\x1b[2K"), "the bar is taken away"


def test_without_rich_it_is_text(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['rich'] = None\n")
    with sharing(machine.url(1), 2, pages=512) as share:
        refs = f"{share.refs[0]}-{share.refs[-1]}"
        path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
        status, out, said = shown("map", "1", refs, "--output", "-", "--url", machine.url(2), PYTHONPATH=path)
    assert (status, len(out)) == (0, 512 << 12)
    assert "\x1b" not in said
    assert "mapped pages [" in said
    assert said.rpartition("\r")[2] == "", "the bar is taken away"


@pytest.mark.parametrize(("known", "text"), [(True, "vchan [####################] 5 B of 5 B"), (False, "vchan 5 B")])
def test_what_goes_through_a_vchan_is_told(machine: Machine, tmp_path: Path, known: bool, text: str) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    with (
        open(tmp_path / "file", "rb") as file,
        xengrant.connect(machine.url(1)) as domain,
        vchan.serve(2, "x", domain=domain) as channel,
    ):
        reading = threading.Thread(target=channel.recv, args=(5, DEADLINE))
        reading.start()
        source = file if known else b"12345"
        status, _, said = shown("cat", "-N", "1", "x", "--url", machine.url(2), stdin=source, NO_COLOR="1")
        reading.join(DEADLINE)
    assert status == 0
    assert text in said


def test_a_disks_sectors_are_told(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    serving = [*TOOL, "block", "serve", str(tmp_path / "disk"), "--to", "1", "--url", machine.url(0)]
    with subprocess.Popen(serving, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline()
            attach = ("block", "attach", "0", "--url", machine.url(1))
            status, out, said = shown(*attach, "read", NO_COLOR="1")
            assert (status, len(out)) == (0, 1 << 20)
            assert "disk [####################] 1.0 MB of 1.0 MB" in said
            status, _, said = shown(*attach, "write", "--input", str(tmp_path / "disk"), NO_COLOR="1")
            assert status == 0
            assert "disk [####################] 1.0 MB of 1.0 MB" in said
        finally:
            server.terminate()


def test_nobody_is_told_where_stderr_is_no_terminal(machine: Machine) -> None:
    with sharing(machine.url(1), 2, pages=16) as share:
        refs = f"{share.refs[0]}-{share.refs[-1]}"
        command = [*TOOL, "map", "1", refs, "--output", "-", "--url", machine.url(2)]
        done = subprocess.run(command, capture_output=True, timeout=DEADLINE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    done = subprocess.run(
        [*TOOL, "selftest", "-k", "pages_are_zeroed", "--json"], capture_output=True, timeout=DEADLINE, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
