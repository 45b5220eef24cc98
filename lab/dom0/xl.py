"""Xen's own tool: `xl`, and the list of domains."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

__all__ = ["DomainLine", "XlError", "xl", "xl_list"]


class XlError(Exception):
    """xl ended with an error; the text is what it printed."""


@dataclass(frozen=True)
class DomainLine:
    """A line of `xl list`. A dead domain whose pages are still mapped is called "(null)", in state "--p--d"."""

    name: str
    domid: int
    memory: int
    vcpus: int
    state: str


def xl(*arguments: str, timeout: float = 60) -> str:
    """Run xl and return what it printed; XlError if it fails."""
    done = subprocess.run(["xl", *arguments], capture_output=True, check=False, text=True, timeout=timeout)
    if done.returncode:
        raise XlError(f"xl {' '.join(arguments)}: exit status {done.returncode}\n{done.stdout}{done.stderr}".strip())
    return done.stdout


def xl_list() -> list[DomainLine]:
    """All domains, dom0 first."""
    domains = []
    for line in xl("list").splitlines()[1:]:
        name, domid, memory, vcpus, state, _seconds = line.rsplit(maxsplit=5)
        domains.append(DomainLine(name.strip(), int(domid), int(memory), int(vcpus), state))
    return domains
