"""Polling: how long whoever waits on a doorbell looks again and again before it sleeps, and what it does between looks.

Made by what opens a vchan or serves a disk, for its doorbells. The looking itself is `_native`'s (polling.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xengrant.descriptors import NO_DESCRIPTORS
from xengrant.errors import InterfaceUnavailable

if TYPE_CHECKING:
    from xengrant._native import Doorbell
    from xengrant.devices import Device, System

__all__ = ["Polling", "check_seconds"]

MOST = 10.0
"""Seconds."""


def check_seconds(seconds: float) -> None:
    """`ValueError` for no time that whoever waits may look for."""
    if not 0 <= seconds <= MOST:
        raise ValueError(f"poll is a number of seconds up to {MOST:g}, not {seconds!r}")


class Polling:
    """`seconds`, 0 to 10, of looking before each sleep.

    Between looks a domain that may gives its processor to other domains (Xen SCHEDOP_yield): dom0, to a program that
    may open /dev/xen/privcmd, which stays open until `close`. Elsewhere the processor is kept busy.
    """

    def __init__(self, system: System, seconds: float) -> None:
        check_seconds(seconds)
        self._seconds = seconds
        self._device = _open_yielder(system) if seconds and system.may_yield else None

    def at(self, doorbell: Doorbell) -> None:
        """Have who waits there look first."""
        doorbell.poll = self._seconds
        if self._device is not None and (yielder := self._device.yielder()) is not None:
            doorbell.yielder = yielder

    def close(self) -> None:
        """Let go of privcmd; what still waits keeps its processor busy from then on."""
        if self._device is not None:
            self._device.close()


def _open_yielder(system: System) -> Device | None:
    try:
        device = system.open("privcmd")
    except InterfaceUnavailable as error:
        if error.errno in NO_DESCRIPTORS:
            raise
        return None
    if device.yielder() is not None:
        return device
    device.close()
    return None
