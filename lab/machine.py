"""One QEMU process that emulates a PC which boots Xen and dom0: its command line, and the certainty that it ends.

Called by `lab.run`. The command line is the one known to work in software emulation: no real-mode calls, no EDD, and
a CPU with SVM and nested paging, which PVH guests need (`-cpu max` crashes dom0). dom0's kernel is given
uncompressed: Xen would take 5 s to unpack it.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Self

from lab.images import Images
from lab.linux import QUICK

__all__ = ["Machine"]

# One processor for dom0: while its kernel patches its own code on one, the emulator may run the old code on another;
# and a clock that moves between emulated processors jumps.
_XEN = (
    "console=com1 com1=115200,8n1 dom0_mem=2048M,max:2048M dom0_max_vcpus=1 dom0_vcpus_pin no-real-mode edd=off"
)
_DOM0 = f"console=hvc0 rdinit=/init oops=panic {QUICK}"

_NICE = -10


class Machine:
    """A running QEMU. `with` ends it, and the kernel does if the lab itself is killed: it is never left behind."""

    def __init__(self, images: Images, initrd: Path, results: Path, work: Path, *, interactive: bool) -> None:
        self.boot_log = results / "boot.log"
        if interactive:
            console = f"stdio,id=console,mux=on,signal=off,logfile={self.boot_log}"
        else:
            console = f"file,id=console,path={self.boot_log}"
        command = [
            *("setpriv", "--pdeathsig", "KILL"),
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-machine", "q35"),
            *("-cpu", "qemu64,+svm,+npt,+rdrand"),
            *("-smp", "2", "-m", "5120", "-nodefaults", "-display", "none", "-no-reboot"),
            *("-chardev", console, "-serial", "chardev:console"),
            *(("-mon", "chardev=console") if interactive else ()),
            *("-kernel", str(images.xen), "-append", _XEN, "-initrd", f"{images.vmlinux} {_DOM0},{initrd}"),
            *("-virtfs", f"local,path={results},mount_tag=results,security_model=none"),
        ]
        stdin = None if interactive else subprocess.DEVNULL
        self._errors = open(work / "qemu.log", "w+")  # noqa: SIM115
        stdout = None if interactive else self._errors
        self._process = subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=self._errors, start_new_session=True
        )
        _favour(self._process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self) -> None:
        self._process.wait()

    def complaints(self) -> str:
        """What QEMU itself printed."""
        self._errors.seek(0)
        return self._errors.read().strip()


def _favour(pid: int) -> None:
    """Ask for more than a fair share of a busy host, if that is allowed.

    Where emulated processors get a quarter of a real one, Xen reads its clocks at wrong moments: they drift apart by
    seconds, and dom0 waits for timers that do not come.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, _NICE)
        Path(f"/proc/{pid}/autogroup").write_text(str(_NICE))
