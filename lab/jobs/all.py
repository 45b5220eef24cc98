"""What `make test-xen` runs in each lab, in one boot: every job that judges, or those named, one after the other.

With --long it is what `make test-xen-long` runs: jobs that take minutes. arm64 has its own list, long or not.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from lab.dom0 import ARM64

_FRONT = "block_front linux random --check info_is_right --check tool_copies_bytes --check random_requests"
JOBS = [
    *("suite", "table", "tool", "cycles", "vchan", "proxy", "block_faults", "faults", "pages", _FRONT),
    "block polling --check bytes_stay_in_their_place",
    "differential --examples 6 --steps 40",
]
LONG_JOBS = [
    "differential --examples 200",
    "soak --seconds 90",
    "block_faults --long",
    "block linux xl python polling",
    "block_front linux",
    "block_front random blkfront --random 300",
]

ARM64_JOBS = ["suite", "table", "tool", "cycles", "vchan", "block python"]

long = sys.argv[1:] == ["--long"]
if ARM64:
    JOBS = LONG_JOBS = ARM64_JOBS
jobs = LONG_JOBS if long else sys.argv[1:] or JOBS

failed = []
for job in jobs:
    started = time.monotonic()
    print(f"--- {job}", flush=True)
    name, *arguments = job.split()
    script = str(Path(__file__).with_name(f"{name}.py"))
    status = subprocess.run([sys.executable, script, *arguments], check=False).returncode
    print(f"--- {job} {'failed' if status else 'passed'} in {time.monotonic() - started:.0f} s", flush=True)
    if status:
        failed.append(job)
print(f"{len(jobs) - len(failed)} jobs passed, {len(failed)} failed{': ' + ', '.join(failed) if failed else ''}")
sys.exit(1 if failed else 0)
