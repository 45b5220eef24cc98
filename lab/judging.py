"""`python3 -m lab test`: every job that judges, in the labs of several releases at once.

A lab keeps one core of the host busy. So as many run at once as there are cores, each in a process of its own, which
ends with this one, even by kill -9; what they print goes to this one's output, each line with its release.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Collection

from lab import paths, programs, tools
from lab import run as runs
from lab.errors import LabError
from lab.images import images
from lab.releases import Release

__all__ = ["judge"]

_SECONDS = 1500
_LONG_SECONDS = 3000


def judge(releases: list[Release], *, long: bool = False) -> int:
    """0 where every lab passed, 1 where one failed, which is said at the end. `long` is for jobs of minutes instead."""
    options = ["--long"] if long else []
    if len(releases) == 1:
        statuses = {releases[0].name: _judge(releases[0], options)}
    else:
        for release in releases:  # what all of them need is made before they could get into each other's way
            tools.need(release.architecture, build=False)
            programs.build(images(release))
        statuses = _at_once([release.name for release in releases], options)
    for name, status in statuses.items():
        paths.progress(f"{name} {f'failed ({status})' if status else 'passed'}")
    return 1 if any(statuses.values()) else 0


def _judge(release: Release, options: list[str]) -> int:
    try:
        timeout = _LONG_SECONDS if options or release.is_long else _SECONDS
        return runs.run(release, release.guest, "all", options, timeout=timeout)
    except LabError as error:
        paths.progress(f"{release.name}: {error}")
        return 70


def _at_once(names: list[str], options: list[str]) -> dict[str, int]:
    """The exit status of each release's lab, once all have ended. An interrupt ends all of them."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name in names:
            _wait_for_a_core(running.values())
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


def _wait_for_a_core(running: Collection[subprocess.Popen[bytes]]) -> None:
    """Until fewer labs run than the host has cores; two always may."""
    cores = max(2, len(os.sched_getaffinity(0)))
    while sum(process.poll() is None for process in running) >= cores:
        time.sleep(0.5)
