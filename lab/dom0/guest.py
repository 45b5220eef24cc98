"""A guest domain, from `xl create` to `xl destroy`, and commands run in it.

What jobs are written against. Calls `xl`, the guest's console (`lab.dom0.console`) and `lab.dom0.overlay` for its
files.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

from lab.dom0 import overlay
from lab.dom0.console import Console, ConsoleClosed
from lab.dom0.places import ARM64, GUEST_KIND, IMAGES, RESULTS
from lab.dom0.xenstore import xenstore_read
from lab.dom0.xl import XlError, xl
from lab.linux import QUICK

__all__ = ["MEMORY", "Command", "Guest", "GuestError", "GuestTimeout", "Result"]

MEMORY = 320 if ARM64 else 256
"""What a guest has, in MiB, if its job does not say. A quarter less would not hold the unpacked image."""

# Else the kernel keeps 64 MiB for devices that there are none of, and a kernel that panics stays where it is.
_ARM64 = "cma=0 panic=-1" if ARM64 else ""

_ANSWERS = re.compile(r"^@lab answer .*?^@lab end \d+\n|^@lab started [^\n]*\n", re.MULTILINE | re.DOTALL)


class GuestError(Exception):
    """A guest did not do what it was asked to; the text ends with the last lines of its console."""


class GuestTimeout(GuestError, TimeoutError):
    """A command in a guest took too long; it was killed."""


class Result(NamedTuple):
    """How a command ended: its status (128 + n if signal n ended it) and what it printed, standard error included."""

    status: int
    output: str


class Command:
    """A command in a guest, running or done. Its output grows in the guest's file `output_path`."""

    def __init__(self, guest: Guest, text: str) -> None:
        self._guest = guest
        self._tag = guest._ask("run", text)
        self.text = text
        self.output_path = f"/run/lab/{self._tag}.out"

    @property
    def done(self) -> bool:
        return self._guest._talk().answered(self._tag)

    def pid(self) -> int:
        """Its process id in the guest: the shell's, or that of the program if the command begins with `exec`."""
        pid = self._guest._talk().pid(self._tag, time.monotonic() + 30)
        if pid is None:
            raise self._guest._error(f"the guest did not start {self.text!r}")
        return pid

    def output(self) -> str:
        """What it has printed so far."""
        return self._guest._answer(self._guest._ask("peek", self._tag), 30, f"peek at {self.text!r}").output

    def wait(self, timeout: float = 60) -> Result:
        """Wait for its end. GuestTimeout after `timeout` seconds (it keeps running), GuestError if the domain ended."""
        return self._guest._answer(self._tag, timeout, repr(self.text))

    def kill(self) -> None:
        """Kill it and its children with SIGKILL; returns when they have been."""
        self._guest._answer(self._guest._ask("kill", self._tag), 30, f"kill {self.text!r}")


class Guest:
    """A guest domain that this job made. `with` destroys it at the end."""

    def __init__(self, name: str, domid: int) -> None:
        self.name = name
        self.domid = domid
        self._console: Console | None = None

    @classmethod
    def create(
        cls,
        name: str,
        *,
        kind: str = GUEST_KIND,
        memory: int = MEMORY,
        vcpus: int = 1,
        cmdline_extra: str = "",
        config_extra: str = "",
        files: Mapping[str, Path | bytes] = {},
        paused: bool = False,
        timeout: float = 180,
    ) -> Guest:
        """Create a guest and wait until its shell answers, or leave it paused.

        `kind` is "pv" or "pvh" (default: what the run asked for), `memory` in MiB, `cmdline_extra` goes to its
        kernel, `config_extra` is xl.cfg text, `files` are added to its image. GuestError with the console's tail
        after `timeout` seconds.
        """
        config = Path(f"/run/lab/{name}.cfg")
        ramdisk = overlay.ramdisk(files)
        config.parent.mkdir(exist_ok=True)
        config.write_text(
            f'name = "{name}"\ntype = "{kind}"\nmemory = {memory}\nvcpus = {vcpus}\n'
            f'kernel = "{IMAGES}/vmlinux"\nramdisk = "{ramdisk}"\n'
            f'extra = "console=hvc0 rdinit=/init oops=panic loglevel=5 {QUICK} {_ARM64} {cmdline_extra}"\n'
            # Else each look at the clock leaves the guest: Xen does not know the emulated processor's to be steady.
            'tsc_mode = "native"\n'
            f'on_poweroff = "destroy"\non_reboot = "destroy"\non_crash = "destroy"\n{config_extra}\n'
        )
        xl("create", *(["-p"] if paused else []), str(config), timeout=timeout)
        if files:
            ramdisk.unlink()  # a copy, in dom0's memory, which the guest has by now
        guest = cls(name, int(xl("domid", name)))
        if not paused:
            try:
                guest._connect(time.monotonic() + timeout)
            except BaseException:
                guest.destroy()
                raise
        return guest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()

    def __repr__(self) -> str:
        return f"<Guest {self.name} domid={self.domid}>"

    def unpause(self, timeout: float = 180) -> None:
        """Let a guest created paused run, and wait until its shell answers."""
        xl("unpause", str(self.domid))
        if self._console is None:
            self._connect(time.monotonic() + timeout)

    def pause(self) -> None:
        xl("pause", str(self.domid))

    def run(self, command: str, timeout: float = 60) -> Result:
        """Run shell commands as root and wait for their end. After `timeout` seconds they are killed: GuestTimeout."""
        started = self.start(command)
        try:
            return started.wait(timeout)
        except GuestTimeout:
            started.kill()
            raise

    def check(self, command: str, timeout: float = 60) -> str:
        """`run`, and GuestError unless the exit status is 0; returns what was printed."""
        status, output = self.run(command, timeout)
        if status:
            raise GuestError(f"{self.name}: {command!r} ended with {status}:\n{output}")
        return output

    def start(self, command: str) -> Command:
        """Start shell commands in the background, beside others."""
        return Command(self, command)

    def console_log(self) -> str:
        """All the guest's kernel and init have written to the console so far, without the answers to commands."""
        try:
            with open(RESULTS / "console" / f"guest-{self.name}.log", "rb", buffering=0) as log:
                text = b"".join(iter(lambda: log.read(4096), b"")).decode(errors="replace")
        except FileNotFoundError:
            return ""
        return _ANSWERS.sub("", text.replace("\r", ""))

    def destroy(self) -> None:
        """End the domain at once, as `xl destroy`; nothing happens if it has ended already."""
        try:
            xl("destroy", str(self.domid))
        except XlError:
            if xenstore_read(f"/local/domain/{self.domid}/domid") is not None:
                raise
        if self._console is not None:
            self._console.close()

    def _connect(self, deadline: float) -> None:
        while (pty := xenstore_read(f"/local/domain/{self.domid}/console/tty")) is None:
            if time.monotonic() > deadline:
                raise self._error("xenconsoled gave it no console")
            time.sleep(0.05)
        self._console = Console(pty)
        try:
            ready = self._console.wait_ready(deadline)
        except ConsoleClosed:
            ready = False
        if not ready:
            raise self._error("its shell did not answer")

    def _talk(self) -> Console:
        if self._console is None:
            raise GuestError(f"{self.name} is paused and has not run yet")
        return self._console

    def _ask(self, verb: str, argument: int | str) -> int:
        console = self._talk()
        try:
            return console.start(str(argument)) if verb == "run" else console.ask(verb, argument)
        except ConsoleClosed:
            raise self._error("the domain has ended") from None

    def _answer(self, tag: int, timeout: float, what: str) -> Result:
        try:
            answer = self._talk().wait(tag, time.monotonic() + timeout)
        except ConsoleClosed:
            raise self._error(f"the domain ended before {what} was done") from None
        if answer is None:
            raise self._error(f"{what} was not done after {timeout:g} s", GuestTimeout)
        return Result(answer.status, answer.output.decode(errors="replace"))

    def _error(self, reason: str, kind: type[GuestError] = GuestError) -> GuestError:
        tail = "\n".join(f"    {line}" for line in self.console_log().splitlines()[-25:])
        return kind(f"{self.name} (domain {self.domid}): {reason}. Its console ends:\n{tail}")
