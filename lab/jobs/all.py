"""What `make test-xen` runs in each lab, in one boot: every job that judges, or those named, one after the other."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

jobs = sys.argv[1:] or ["suite", "table", "tool", "cycles", "vchan", "proxy"]

failed = []
for job in jobs:
    started = time.monotonic()
    print(f"--- {job}", flush=True)
    status = subprocess.run([sys.executable, str(Path(__file__).with_name(f"{job}.py"))], check=False).returncode
    print(f"--- {job} {'failed' if status else 'passed'} in {time.monotonic() - started:.0f} s", flush=True)
    if status:
        failed.append(job)
print(f"{len(jobs) - len(failed)} jobs passed, {len(failed)} failed{': ' + ', '.join(failed) if failed else ''}")
sys.exit(1 if failed else 0)
