"""The tool on real Xen, as a user types it: pages of `xengrant share` in a guest, dumped by `xengrant map` in dom0, and
the guest's console and xenstore rings as `xengrant peek` sees them while their daemons use them.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from lab.dom0 import RESULTS, Guest

CONTENT = os.urandom(3 * 4096 - 100)


def main() -> int:
    passed = failed = 0
    with Guest.create("granter", files={"/opt/content": CONTENT}) as guest:
        checks = (
            doctor_is_content,
            share_is_dumped,
            advertised_share_is_found,
            read_only_is_refused,
            peeked_console_is_its_log,
            peeked_console_is_followed,
            xenstore_is_peeked_while_it_is_used,
        )
        for check in checks:
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


def peeked_console_is_its_log(guest: Guest) -> None:
    """What peek shows of a live guest's console is what xenconsoled has logged of it, all 2048 bytes."""
    guest.check("printf 'peek \\033[1mhere\\033[0m \\\\ %s\\n' $(seq 600) > /dev/hvc0")

    def compare() -> str:
        shown, raw = xengrant("peek", "console", guest.name), xengrant("peek", "console", guest.name, "--json")
        log = console_log(guest)
        assert (shown.returncode, raw.returncode) == (0, 0), shown.stderr + raw.stderr
        (RESULTS / "peek-console.txt").write_text(shown.stdout)
        output = json.loads(raw.stdout)["output"]
        tail = base64.b64decode(output["base64"])
        same = tail == log[-2048:] and text_of(shown.stdout) == tail.replace(b"\r\n", b"\n")
        return "same" if same and len(tail) == 2048 and not output["held"] else ""

    wait_for(compare, "peek console shows other text than the console's log ends with")
    shown = (RESULTS / "peek-console.txt").read_text()
    assert "\x1b" not in shown
    guest.check("true")  # the guest's agent, which speaks through that console


def peeked_console_is_followed(guest: Guest) -> None:
    command = [sys.executable, "-m", "xengrant", "peek", "console", guest.name, "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follow:
        assert follow.stderr is not None
        assert follow.stderr.readline().startswith("following domain"), "it did not begin"
        guest.check("for i in 1 2 3; do echo followed $i; sleep 0.3; done > /dev/hvc0")
        time.sleep(0.5)
        follow.send_signal(signal.SIGINT)
        shown, said = follow.communicate(timeout=30)
    assert follow.returncode == 0, said
    assert [f"| followed {i}" in shown.splitlines() for i in (1, 2, 3)] == [True] * 3, shown + said
    assert "followed 3\n" in guest.console_log(), "what a job is told of the console lacks its end"


def xenstore_is_peeked_while_it_is_used(guest: Guest) -> None:
    """Each look finds the guest's messages, and the guest goes on undisturbed."""
    program = (
        "import xengrant\n"
        "store = xengrant.connect().xenstore()\n"
        "for i in range(400): store.write('data/peek', b'%d' % i)\n"
        "print(store.read('data/peek').decode())\n"
    )
    using = guest.start(f'python3 -c "{program}"')
    found: list[dict[str, object]] = []
    looks = 0
    while not using.done:
        looked = xengrant("peek", "xenstore", guest.name, "--json")
        assert looked.returncode == 0, looked.stderr
        rings = json.loads(looked.stdout)
        found += [message for ring in ("requests", "replies") for message in rings[ring]["messages"]]
        looks += 1
    status, output = using.wait(60)
    assert (status, output.strip()) == (0, "399"), f"the guest was disturbed: {status}, {output}"
    writes = [message for message in found if message["operation"] == "WRITE"]
    asked = [base64.b64decode(str(message["base64"])) for message in writes]
    assert any(payload.startswith(b"data/peek\0") for payload in asked), f"{looks} looks found {found}"
    shown = xengrant("peek", "xenstore", guest.name)
    (RESULTS / "peek-xenstore.txt").write_text(shown.stdout + shown.stderr)
    assert shown.returncode == 0, shown.stderr
    assert "READ" in shown.stdout, shown.stdout


def console_log(guest: Guest) -> bytes:
    """The log as xenconsoled writes it; the share that it lies on is read in pieces."""
    with open(RESULTS / "console" / f"guest-{guest.name}.log", "rb", buffering=0) as log:
        return b"".join(iter(lambda: log.read(4096), b""))


def text_of(shown: str) -> bytes:
    """The console's text, from the lines in which `peek` shows it."""
    text = b""
    for line in shown.splitlines():
        if line[0] not in "|>":
            continue
        unescaped = re.sub(
            rb"\\(?:\\|x(..))",
            lambda match: bytes.fromhex(match[1].decode()) if match[1] else b"\\",
            line[2:].removesuffix("\\").encode() if goes_on(line) else line[2:].encode(),
        )
        text += unescaped + (b"" if goes_on(line) else b"\n")
    return text


def goes_on(line: str) -> bool:
    """Whether it ends with a single backslash; escaped ones come in pairs."""
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


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
