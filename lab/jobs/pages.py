"""The programs of the documentation on real Xen, as they stand there, between a guest and dom0 and the other way round.

The tutorial's two and, where the run has NumPy (`python3 -m lab run --with numpy pages`), README's frame.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lab.dom0 import PROJECT, SITE, SITE_FILES, Guest
from tests.docs.parsing import blocks_of

SECONDS = 120.0
PROGRAMS = Path("/opt/pages")
PAIRS = [("granter.py", "mapper.py")]
if SITE.exists():
    PAIRS.append(("frame.py share", "frame.py map"))


def main() -> None:
    PROGRAMS.mkdir()
    for page in ("README.md", "docs/tutorial.md"):
        for block in blocks_of(PROJECT / page):
            if block.options.file:
                (PROGRAMS / block.options.file).write_text(block.text)
    files: dict[str, Path | bytes] = {str(PROGRAMS): PROGRAMS}
    if SITE.exists():
        files |= SITE_FILES
    with Guest.create("pages", files=files, memory=1024 if SITE.exists() else 256) as guest:
        for granter, mapper in PAIRS:
            _run(guest, in_guest=granter, in_dom0=mapper)
            _run(guest, in_guest=mapper, in_dom0=granter)


def _run(guest: Guest, *, in_guest: str, in_dom0: str) -> None:
    """Start both; whoever waits for Enter gets it when the other one has ended."""
    guest.check("rm -f /run/enter")
    enter = "(until [ -e /run/enter ]; do sleep 0.1; done; echo) | "
    there = guest.start(
        f"{enter if 'share' in in_guest else ''}"
        f"PYTHONPATH=/opt/xengrant:{SITE} python3 -u {PROGRAMS}/{_command(in_guest, 0)}"
    )
    with subprocess.Popen(
        [sys.executable, *f"{PROGRAMS}/{_command(in_dom0, guest.domid)}".split()],
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as here:
        try:
            if "share" in in_dom0:
                there.wait(SECONDS)
                said_here = here.communicate("\n", timeout=SECONDS)[0]
            else:
                said_here = here.communicate(timeout=SECONDS)[0]
                guest.check("touch /run/enter")
        finally:
            here.kill()
    status, said_there = there.wait(SECONDS)
    for where, text in ((f"guest {guest.domid}", said_there), ("dom0", said_here)):
        for line in text.splitlines():
            print(f"{where}: {line}", flush=True)
    if status or here.returncode:
        sys.exit(f"{in_guest} in the guest ended with {status}, {in_dom0} in dom0 with {here.returncode}")


def _command(program: str, peer: int) -> str:
    return f"{program} {peer}"


main()
