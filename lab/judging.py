"""`python3 -m lab test`: every job that judges, in the labs of several releases at once.

A lab keeps one core of the host busy. So each gets a process of its own, which ends with this one, even by kill -9;
what they print goes to this one's output, each line with its release.
"""

from __future__ import annotations

import subprocess
import sys

from lab import paths, programs, tools
from lab import run as runs
from lab.errors import LabError
from lab.images import images
from lab.releases import Release

__all__ = ["judge"]

_SECONDS = 900
_LONG_SECONDS = 2400


def judge(releases: list[Release], *, long: bool = False) -> int:
    """0 where every lab passed, 1 where one failed, which is said at the end. `long` is for jobs of minutes instead."""
    options = ["--long"] if long else []
    if len(releases) == 1:
        statuses = {releases[0].name: _judge(releases[0], options)}
    else:
        tools.need(build=False)  # what all of them need is made before they could get into each other's way
        for release in releases:
            images(release)
        programs.build()
        statuses = _at_once([release.name for release in releases], options)
    for name, status in statuses.items():
        paths.progress(f"{name} {f'failed ({status})' if status else 'passed'}")
    return 1 if any(statuses.values()) else 0


def _judge(release: Release, options: list[str]) -> int:
    try:
        return runs.run(release, release.guest, "all", options, timeout=_LONG_SECONDS if options else _SECONDS)
    except LabError as error:
        paths.progress(f"{release.name}: {error}")
        return 70


def _at_once(names: list[str], options: list[str]) -> dict[str, int]:
    """The exit status of each release's lab, once all have ended. An interrupt ends all of them."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name in names:
            command = [
                "setpriv",
                "--pdeathsig",
                "KILL",
                sys.executable,
                "-m",
                "lab",
                "test",
                "--release",
                name,
                *options,
            ]
            running[name] = subprocess.Popen(command, cwd=paths.CHECKOUT)
        return {name: process.wait() for name, process in running.items()}
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
