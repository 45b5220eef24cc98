"""One QEMU process that emulates a computer which boots Xen and dom0: its command line, and the certainty that it ends.

Called by `lab.run`. The command lines are those known to work in software emulation. For a PC: no real-mode calls, no
EDD, and a CPU with SVM and nested paging, which PVH guests need (`-cpu max` crashes dom0). dom0's kernel is given
uncompressed: Xen would take 5 s to unpack it. For arm64, QEMU's `virt` with what Xen needs of it, EL2 and a GICv3; its
guest-loader puts kernel and initrd into memory, and tells Xen by the device tree.

The computer has one processor. With two, each a thread of QEMU's, PVH guests of a PC died of triple faults, dom0's
kernel was lost while it patched its own code, and the two clocks disagreed by up to hundreds of milliseconds. None of
that has been seen with one. Nor is it slower: the domains mostly wait for each other, and the other core of the host is
free for the lab of another release.

A byte comes over the serial line every few seconds. Now and then, with PVH guests, a PC's processor has halted while an
interrupt of its timer was pending, which nobody delivered any more: the whole computer stood still for ever. Another
interrupt has QEMU look again.
"""

from __future__ import annotations

import os
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

from lab.architectures import AMD64
from lab.images import Images
from lab.linux import QUICK

__all__ = ["Machine"]

# The scheduler credit lets a domain run for 30 ms, the default one for 2 ms at most; each change of domains makes the
# emulator forget its translations. Two busy PVH guests take half the time with it.
_XEN = "dom0_mem=2048M,max:2048M sched=credit"
_XEN_ON_A_PC = "console=com1 com1=115200,8n1 no-real-mode edd=off"
# Else guests reach dom0 and no other guest: on arm64 Xen is built for that (CONFIG_XSM_SILO_DEFAULT).
_XEN_ON_ARM64 = "xsm=dummy"
_DOM0 = f"console=hvc0 rdinit=/init oops=panic {QUICK}"

# Which wheels of PyPI, such as NumPy's, take for granted.
_X86_64_V2 = "+ssse3,+sse4.1,+sse4.2,+popcnt"

_NICE = -10

_BEAT = 2.0  # seconds
_NOTHING = b"\x11"  # XON: dom0's terminal takes it, and shows nothing


class Machine:
    """A running QEMU. `with` ends it, and the kernel does if the lab itself is killed: it is never left behind."""

    def __init__(self, images: Images, initrd: Path, results: Path, work: Path, *, interactive: bool) -> None:
        self.boot_log = results / "boot.log"
        if interactive:
            console = f"stdio,id=console,mux=on,signal=off,logfile={self.boot_log}"
        else:
            console = f"stdio,id=console,signal=off,logfile={self.boot_log}"
        command = [
            *("setpriv", "--pdeathsig", "KILL"),
            *(images.architecture.qemu, "-accel", "tcg,thread=single", "-smp", "1", "-m", "5120"),
            *("-nodefaults", "-display", "none", "-no-reboot"),
            *(_pc(images, initrd) if images.architecture is AMD64 else _virt(images, initrd)),
            *("-chardev", console, "-serial", "chardev:console"),
            *(("-mon", "chardev=console") if interactive else ()),
            *("-virtfs", f"local,path={results},mount_tag=results,security_model=none"),
        ]
        stdin, stdout = (None, None) if interactive else (subprocess.PIPE, subprocess.DEVNULL)
        self._errors = open(work / "qemu.log", "w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=self._errors, start_new_session=True
        )
        _favour(self._process.pid)
        self._ends = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        if not interactive:
            self._beating.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def _beat(self) -> None:
        line = self._process.stdin
        assert line
        with suppress(OSError), line:
            while not self._ends.wait(_BEAT):
                line.write(_NOTHING)
                line.flush()

    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self) -> None:
        self._process.wait()

    def complaints(self) -> str:
        """What QEMU itself printed."""
        self._errors.seek(0)
        return self._errors.read().strip()


def _pc(images: Images, initrd: Path) -> list[str]:
    """A PC, where Xen is a multiboot kernel, and dom0's kernel and initrd are its modules."""
    return [
        *("-machine", "q35", "-cpu", f"qemu64,+svm,+npt,+rdrand,{_X86_64_V2}"),
        *("-kernel", str(images.xen), "-append", f"{_XEN} {_XEN_ON_A_PC}"),
        *("-initrd", f"{images.vmlinux} {_DOM0},{initrd}"),
    ]


def _virt(images: Images, initrd: Path) -> list[str]:
    """An arm64 board. Its memory begins at 1 GiB, with Xen; dom0's kernel and initrd lie clear of it and each other."""
    return [
        *("-machine", "virt,virtualization=on,gic-version=3", "-cpu", "cortex-a57"),
        *("-kernel", str(images.xen), "-append", f"{_XEN} {_XEN_ON_ARM64}"),
        *("-device", f"guest-loader,addr=0x49000000,kernel={images.vmlinux},bootargs={_DOM0}"),
        *("-device", f"guest-loader,addr=0x60000000,initrd={initrd}"),
    ]


def _favour(pid: int) -> None:
    """Ask for more than a fair share of a busy host, if that is allowed: the deadlines inside are by its clock."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, _NICE)
        Path(f"/proc/{pid}/autogroup").write_text(str(_NICE))
