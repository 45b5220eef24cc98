"""NumPy arrays, Arrow tables and objects between dom0 and a guest, each granting in turn.

They are not in Debian, or too old: `python3 -m lab run --with numpy --with pyarrow data`. The guest gets them too.
"""

from __future__ import annotations

import subprocess
import sys
import time

from lab.dom0 import PROJECT, SITE, SITE_FILES, Guest

SECONDS = 300
PEER = PROJECT / "lab" / "data_peer.py"


def main() -> int:
    if not (SITE / "pyarrow").is_dir():
        sys.exit("this job needs NumPy and Arrow: python3 -m lab run --with numpy --with pyarrow data")
    failed = 0
    files = {"/opt/lab/data_peer.py": PEER, **SITE_FILES}
    started = time.monotonic()
    with Guest.create("data", memory=1536, files=files) as guest:
        print(f"a guest with NumPy and Arrow in {time.monotonic() - started:.0f} s", flush=True)
        for here, there in (("mapper", "granter"), ("granter", "mapper")):
            started = time.monotonic()
            other = guest.start(f"PYTHONPATH=/opt/xengrant:/opt/site exec python3 /opt/lab/data_peer.py {there} 0")
            run = subprocess.run([sys.executable, str(PEER), here, str(guest.domid)], timeout=SECONDS, check=False)
            status, output = other.wait(SECONDS if run.returncode == 0 else 10)
            print(f"the guest, {there}:\n{output}", end="")
            wrong = bool(run.returncode or status)
            failed += wrong
            print(f"{'failed' if wrong else 'passed'} in {time.monotonic() - started:.0f} s", flush=True)
    return 1 if failed else 0


sys.exit(main())
