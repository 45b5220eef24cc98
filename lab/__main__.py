"""`python3 -m lab`: the command line of the lab."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from lab import paths
from lab.errors import LabError
from lab.images import images
from lab.releases import RELEASES, Release


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m lab", description="Boot real Xen under QEMU and run jobs in it.")
    commands = parser.add_subparsers(dest="command", required=True)

    build = commands.add_parser("images", help="build what is missing in the cache")
    build.add_argument("--release", choices=[*RELEASES, "all"], help="default: those of `test` without --long")

    run = commands.add_parser("run", help="run lab/jobs/JOB.py in dom0; the exit status is the job's")
    run.add_argument("--release", choices=RELEASES, default="bookworm")
    run.add_argument("--guest", choices=("pv", "pvh"), help="kind of guest (default: pv on bookworm, else pvh)")
    run.add_argument("--timeout", type=float, default=420, metavar="S", help="seconds the job may take (default: 420)")
    run.add_argument("--qemu", action="store_true", help="give dom0 QEMU, for its own block back end")
    run.add_argument("--keep", action="store_true", help="afterwards, a shell in dom0 on this terminal")
    _add_requirements(run)
    run.add_argument("job", metavar="JOB", help="a file in lab/jobs, without .py")
    run.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS")

    project = commands.add_parser("project", help="run another project's tests in dom0; the exit status is theirs")
    project.add_argument("--release", choices=RELEASES, default="bookworm")
    project.add_argument("--guest", choices=("pv", "pvh"), help="kind of guest (default: pv on bookworm, else pvh)")
    project.add_argument("--timeout", type=float, default=420, metavar="S", help="seconds it may take (default: 420)")
    project.add_argument("--keep", action="store_true", help="afterwards, a shell in dom0 on this terminal")
    _add_requirements(project)
    project.add_argument("directory", metavar="DIR", type=Path, help="the project: what is in it is taken to dom0")
    project.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="COMMAND", help="run in it (default: python3 -m pytest)"
    )

    test = commands.add_parser("test", help="run lab/jobs/all.py, every job that judges, in several labs at once")
    test.add_argument("--release", choices=[*RELEASES, "all"], help="default: both of amd64, with --long all")
    test.add_argument("--long", action="store_true", help="the jobs that take minutes instead")

    shell = commands.add_parser("shell", help="a shell in dom0 on this terminal")
    shell.add_argument("--release", choices=RELEASES, default="bookworm")
    shell.add_argument("--guest", choices=("pv", "pvh"))
    shell.add_argument("--qemu", action="store_true", help="give dom0 QEMU")

    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        if options.command == "images":
            for release in _chosen(options.release, long=False):
                print(images(release).directory)
            return 0
        from lab import judging
        from lab import run as runs

        if options.command == "test":
            return judging.judge(_chosen(options.release, long=options.long), long=options.long)
        release = RELEASES[options.release]
        if options.command == "shell":
            return runs.shell(release, options.guest or release.guest, qemu=options.qemu)
        guest = options.guest or release.guest
        limits = {"timeout": options.timeout, "keep": options.keep}
        if options.command == "project":
            return _run_project(release, guest, options.directory, options.arguments, options.requirements, **limits)
        return runs.run(
            release,
            guest,
            options.job,
            options.arguments,
            qemu=options.qemu,
            requirements=options.requirements,
            **limits,
        )
    except LabError as error:
        paths.progress(str(error))
        return 70
    except KeyboardInterrupt:
        paths.progress("interrupted")
        return 130


def _add_requirements(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--with",
        dest="requirements",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="a package of PyPI for dom0's Python, as pip names it; may be repeated",
    )


def _run_project(
    release: Release, guest: str, directory: Path, command: list[str], requirements: list[str], **limits: Any
) -> int:
    from lab import run as runs

    if not directory.is_dir():
        raise LabError(f"there is no directory {directory}")
    if not any((paths.CHECKOUT / "src" / "xengrant").glob("_native*.so")):
        raise LabError(f"xengrant's extension is not built: first run `make demo` in {paths.CHECKOUT}")
    command = command[1:] if command[:1] == ["--"] else command
    return runs.run(
        release,
        guest,
        "project",
        command or ["python3", "-m", "pytest"],
        project=directory.resolve(),
        requirements=["pytest", *requirements],
        **limits,
    )


def _chosen(name: str | None, *, long: bool) -> list[Release]:
    if name is None:
        return [release for release in RELEASES.values() if long or not release.is_long]
    return list(RELEASES.values()) if name == "all" else [RELEASES[name]]


sys.exit(main())
