"""One run: boots a machine, shows what the job prints as it prints it, and says in plain words how it ended.

Called by `python3 -m lab`. dom0 reports through files in the results directory, which both see (9p): `.stage` what
its init is doing, `job.log` the job's output, `.status` its exit status.
"""

from __future__ import annotations

import re
import shutil
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lab import initrd, paths, programs, tools, wheels
from lab.errors import LabError
from lab.images import images
from lab.initrd import Luggage
from lab.machine import Machine
from lab.releases import Release

__all__ = ["run", "shell"]

BOOT_SECONDS = 300
"""How long Xen, dom0 and its toolstack may take; about 15 s on two idle cores, minutes on busy ones."""

_PANIC = re.compile(r"Kernel panic|Panic on CPU|Domain 0 crashed|BUG: unable|general protection fault|FATAL TRAP")


def run(
    release: Release,
    guest: str,
    job: str,
    arguments: list[str],
    *,
    timeout: float,
    qemu: bool = False,
    keep: bool = False,
    project: Path | None = None,
    requirements: Sequence[str] = (),
) -> int:
    """Run lab/jobs/JOB.py in dom0. Returns its exit status; raises LabError for whatever kept it from having one.

    `project` is a directory that the job finds in UNDER_TEST, `requirements` are packages of PyPI, as pip names them.
    """
    if not (paths.LAB / "jobs" / f"{job}.py").is_file():
        known = ", ".join(sorted(file.stem for file in (paths.LAB / "jobs").glob("[a-z]*.py")))
        raise LabError(f"there is no lab/jobs/{job}.py; there are: {known}")
    _check(release, guest, qemu=qemu)
    request: dict[str, object] = {"job": job, "arguments": arguments, "guest": guest, "release": release.name}
    luggage = Luggage(qemu, project, wheels.site(release, requirements) if requirements else None)
    with _started(release, request, job, luggage, interactive=keep) as (machine, results, booting):
        if keep:
            machine.wait()
            return int(_read(results / ".status") or 70)
        output = _Output(results / "job.log", release.name)
        try:
            booted = _wait_for_job(machine, results, booting)
            return _follow(machine, results, output, timeout, booted - booting)
        finally:
            output.show(end=True)


def shell(release: Release, guest: str, *, qemu: bool = False) -> int:
    """An interactive shell in dom0, with the project and the lab's Python at hand."""
    _check(release, guest, qemu=qemu)
    request: dict[str, object] = {"guest": guest, "release": release.name}
    with _started(release, request, "shell", Luggage(qemu), interactive=True) as (machine, _results, _booting):
        machine.wait()
    return 0


def _check(release: Release, guest: str, *, qemu: bool) -> None:
    """`LabError` for what was asked and is not there."""
    kinds = release.architecture.guests
    if guest not in kinds:
        raise LabError(f"there are no {guest} guests on {release.architecture.name}, only {', '.join(kinds)}")
    if qemu and not release.qemu_packages:
        raise LabError(f"Debian builds no QEMU for Xen's dom0 on {release.architecture.name}")


@contextmanager
def _started(
    release: Release, request: dict[str, object], name: str, luggage: Luggage, *, interactive: bool
) -> Iterator[tuple[Machine, Path, float]]:
    """A machine, its results directory and when it was started. One of each release at a time on this host."""
    tools.need(release.architecture, build=False)
    built = images(release)
    programs.build(built)
    with ExitStack() as stack:
        stack.enter_context(paths.exclusive(f"machine-{release.name}", f"another run of {release.name}'s lab to end"))
        results = paths.results(release.name, name)
        shutil.rmtree(results, ignore_errors=True)
        results.mkdir(parents=True)
        work = paths.cache() / f"run-{release.name}"
        shutil.rmtree(work, ignore_errors=True)  # what a killed run left
        work.mkdir()
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        if interactive and sys.stdin.isatty():
            stack.callback(termios.tcsetattr, 0, termios.TCSADRAIN, termios.tcgetattr(0))
        initrd.write(work / "dom0.cpio", release, built, request, luggage, interactive=interactive)
        paths.progress(f"booting Xen {release.xen} and Debian {release.name}; log: {results / 'boot.log'}")
        booting = time.monotonic()
        machine = stack.enter_context(Machine(built, work / "dom0.cpio", results, work, interactive=interactive))
        yield machine, results, booting


def _wait_for_job(machine: Machine, results: Path, booting: float) -> float:
    """Wait until dom0's init starts the job; returns when that was."""
    while _read(results / ".stage") != "running the job":
        reason = ""
        if machine.ended():
            reason = "the machine stopped while booting"
        elif time.monotonic() - booting > BOOT_SECONDS:
            reason = f"dom0 did not come up within {BOOT_SECONDS} s"
        if reason:
            raise LabError(_explain(machine, results, reason))
        time.sleep(0.05)
    return time.monotonic()


def _follow(machine: Machine, results: Path, output: _Output, timeout: float, boot_time: float) -> int:
    started = time.monotonic()
    while True:
        ended, status, taken = machine.ended(), _read(results / ".status"), time.monotonic() - started
        output.show(end=bool(status))
        if status:
            paths.progress(f"boot {boot_time:.1f} s, job {taken:.1f} s, exit status {status}; results: {results}")
            return int(status)
        if ended:
            raise LabError(_explain(machine, results, f"the machine stopped {taken:.0f} s into the job"))
        if taken > timeout:
            raise LabError(_explain(machine, results, f"the job was not done within {timeout:g} s and was stopped"))
        time.sleep(0.05)


class _Output:
    """The job's log, shown line by line as it grows."""

    def __init__(self, log: Path, prefix: str) -> None:
        self._log, self._prefix, self._shown, self._partial = log, prefix, 0, b""

    def show(self, *, end: bool) -> None:
        """Print what is new; at the `end` also a last line that was not completed."""
        try:
            with open(self._log, "rb") as log:
                log.seek(self._shown)
                new = log.read()
        except FileNotFoundError:
            return
        self._shown += len(new)
        *lines, self._partial = (self._partial + new).split(b"\n")
        if end and self._partial:
            lines, self._partial = [*lines, self._partial], b""
        for line in lines:
            print(f"{self._prefix} | {line.decode(errors='replace')}", flush=True)


def _explain(machine: Machine, results: Path, reason: str) -> str:
    """The reason, and the part of the boot log that shows it: around a panic if there is one, else its end."""
    log = machine.boot_log.read_text(errors="replace") if machine.boot_log.exists() else ""
    lines = [line for line in log.splitlines() if line.strip()]
    panic = next((number for number, line in enumerate(lines) if _PANIC.search(line)), None)
    shown = lines[-25:] if panic is None else lines[max(0, panic - 5) : panic + 25]
    if panic is not None:
        reason += f": {lines[panic].strip()}"
    stage = _read(results / ".stage") or "booting"
    parts = [f"{reason} (dom0 was {stage})", *(f"    {line}" for line in shown)]
    if machine.complaints():
        parts.append(f"QEMU says: {machine.complaints()[-1000:]}")
    parts.append(f"everything: {results}")
    return "\n".join(parts)


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        return ""
