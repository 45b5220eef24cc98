"""`python3 -m lab`: the command line of the lab."""

from __future__ import annotations

import argparse
import signal
import sys

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
    run.add_argument("job", metavar="JOB", help="a file in lab/jobs, without .py")
    run.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS")

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
        return runs.run(
            release,
            options.guest or release.guest,
            options.job,
            options.arguments,
            timeout=options.timeout,
            qemu=options.qemu,
            keep=options.keep,
        )
    except LabError as error:
        paths.progress(str(error))
        return 70
    except KeyboardInterrupt:
        paths.progress("interrupted")
        return 130


def _chosen(name: str | None, *, long: bool) -> list[Release]:
    if name is None:
        return [release for release in RELEASES.values() if long or not release.is_long]
    return list(RELEASES.values()) if name == "all" else [RELEASES[name]]


sys.exit(main())
