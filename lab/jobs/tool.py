"""The tool on real Xen, as a user types it: pages of `xengrant share` in a guest, dumped by `xengrant map` in dom0."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

from lab.dom0 import RESULTS, Guest

CONTENT = os.urandom(3 * 4096 - 100)


def main() -> int:
    passed = failed = 0
    with Guest.create("granter", files={"/opt/content": CONTENT}) as guest:
        for check in (doctor_is_content, share_is_dumped, advertised_share_is_found, read_only_is_refused):
            started = time.monotonic()
            try:
                check(guest)
            except AssertionError as error:
                failed += 1
                print(f"failed {check.__name__}: {error}", flush=True)
            else:
                passed += 1
                print(f"passed {check.__name__} in {time.monotonic() - started:.1f} s", flush=True)
    print(f"tool: {passed} passed, {failed} failed")
    return 1 if failed else 0


def doctor_is_content(guest: Guest) -> None:
    report = xengrant("doctor")
    assert report.returncode == 0, report.stdout + report.stderr
    (RESULTS / "doctor-dom0.txt").write_text(report.stdout)
    status, output = guest.run("python3 -m xengrant doctor")
    (RESULTS / "doctor-guest.txt").write_text(output)
    assert status == 0, output


def share_is_dumped(guest: Guest) -> None:
    """The refs that `share --json` prints; raw bytes to a file; and nothing is left after an interrupt."""
    sharing = guest.start("exec python3 -m xengrant share --to 0 --file /opt/content --json")
    refs = json.loads(wait_for(lambda: sharing.output().partition("\n")[0], "share printed nothing"))["refs"]
    dump = RESULTS / "pages.bin"
    mapped = xengrant("map", str(guest.domid), *map(str, refs), "--output", str(dump))
    assert mapped.returncode == 0, mapped.stderr
    assert dump.read_bytes() == CONTENT.ljust(3 * 4096, b"\0"), "other bytes than the guest shared"
    status, _ = guest.run(f"kill -INT {sharing.pid()}")
    assert status == 0, "the sharing process was gone before it was interrupted"
    status, output = sharing.wait(20)
    assert status == 0, f"an interrupted share ended with {status}: {output}"
    again = xengrant("map", str(guest.domid), str(refs[0]))
    assert again.returncode == 1, "a revoked page could be mapped"
    assert "not granted" in again.stderr, again.stderr


def advertised_share_is_found(guest: Guest) -> None:
    sharing = guest.start("exec python3 -m xengrant share --to 0 --file /opt/content --advertise data/lab")
    dump = RESULTS / "found.bin"
    found = xengrant("map", guest.name, "--at", "data/lab", "--timeout", "20", "--output", str(dump))
    assert found.returncode == 0, found.stderr
    assert dump.read_bytes() == CONTENT.ljust(3 * 4096, b"\0"), "other bytes than the guest shared"
    sharing.kill()


def read_only_is_refused(guest: Guest) -> None:
    sharing = guest.start("exec python3 -m xengrant share --to 0 --read-only --json")
    refs = json.loads(wait_for(lambda: sharing.output().partition("\n")[0], "share printed nothing"))["refs"]
    refused = xengrant("map", str(guest.domid), str(refs[0]), "--write")
    assert refused.returncode == 1, "a read-only grant was mapped writable"
    assert "read-only" in refused.stderr, refused.stderr
    assert xengrant("map", str(guest.domid), str(refs[0])).returncode == 0, "a read-only grant was not mapped"
    sharing.kill()


def xengrant(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "xengrant", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def wait_for(look: Callable[[], str], message: str) -> str:
    deadline = time.monotonic() + 30
    while not (found := look()):
        assert time.monotonic() < deadline, message
        time.sleep(0.1)
    return found


sys.exit(main())
