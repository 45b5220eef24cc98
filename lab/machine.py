"""One QEMU process that emulates a PC which boots Xen and dom0: its command line, and the certainty that it ends.

Called by `lab.run`. The command line is the one known to work in software emulation: no real-mode calls, no EDD, and a CPU
with SVM and nested paging, which PVH guests need (`-cpu max` crashes dom0).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from lab.images import Images

__all__ = ["Machine"]

_XEN = "console=com1 com1=115200,8n1 dom0_mem=2048M,max:2048M no-real-mode edd=off"
_DOM0 = "console=hvc0 rdinit=/init oops=panic"


class Machine:
    """A running QEMU. `with` ends it, and the kernel does if the lab itself is killed: it is never left behind."""

    def __init__(self, images: Images, overlay: bytes, results: Path, work: Path, *, interactive: bool) -> None:
        initrd = work / "dom0.cpio"
        shutil.copyfile(images.dom0, initrd)
        with open(initrd, "ab") as out:
            out.write(overlay)
        self.boot_log = results / "boot.log"
        if interactive:
            console = f"stdio,id=console,mux=on,signal=off,logfile={self.boot_log}"
        else:
            console = f"file,id=console,path={self.boot_log}"
        command = [
            *("setpriv", "--pdeathsig", "KILL"),
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "qemu64,+svm,+npt"),
            *("-smp", "2", "-m", "5120", "-nodefaults", "-display", "none", "-no-reboot"),
            *("-chardev", console, "-serial", "chardev:console"),
            *(("-mon", "chardev=console") if interactive else ()),
            *("-kernel", str(images.xen), "-append", _XEN, "-initrd", f"{images.vmlinuz} {_DOM0},{initrd}"),
            *_share("results", results),
            *_share("images", images.directory, "readonly=on"),
        ]
        stdin = None if interactive else subprocess.DEVNULL
        self._errors = open(work / "qemu.log", "w+")
        self._process = subprocess.Popen(command, stdin=stdin, stdout=None if interactive else self._errors, stderr=self._errors)

    def __enter__(self) -> Machine:
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


def _share(tag: str, directory: Path, *options: str) -> tuple[str, str]:
    return "-virtfs", ",".join(("local", f"path={directory}", f"mount_tag={tag}", "security_model=none", *options))
