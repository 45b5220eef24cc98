"""Polling: how long whoever waits on a doorbell looks again and again before it sleeps, and what it does between looks.

Made by what opens a vchan or serves a disk, for its doorbells. The looking itself is `_native`'s (polling.c).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from xengrant.descriptors import NO_DESCRIPTORS
from xengrant.errors import InterfaceUnavailable

if TYPE_CHECKING:
    from xengrant._native import Doorbell
    from xengrant.devices import Device, System

__all__ = ["MOST_SECONDS", "Polling", "check_seconds"]

MOST_SECONDS = 0.1
"""Who looks for longer is a bad neighbour, and hears late of a signal or that the other domain is gone."""

_log = logging.getLogger("xengrant.polling")


def check_seconds(seconds: float) -> None:
    """`ValueError` for no time that whoever waits may look for."""
    if not 0 <= seconds <= MOST_SECONDS:
        raise ValueError(f"poll is a number of seconds from 0 to {MOST_SECONDS:g}, not {seconds!r}")


class Polling:
    """`seconds`, 0 to 0.1, of looking before each sleep.

    Between looks a domain that may gives its processor to other domains (Xen SCHEDOP_yield): dom0, to a program that
    may open /dev/xen/privcmd, which stays open until `close`, and until looks that are under way then end. Elsewhere
    the processor is kept busy, which the log says (xengrant.polling, INFO).
    """

    def __init__(self, system: System, seconds: float) -> None:
        check_seconds(seconds)
        self._seconds = seconds
        self._device = _open_privcmd(system) if seconds and system.may_yield else None

    def at(self, doorbell: Doorbell) -> None:
        """Have who waits there look first. Once for a doorbell."""
        doorbell.poll = self._seconds
        if self._device is not None:
            try:
                self._device.yield_at(doorbell)
            except OSError as error:
                _log.info("polling keeps the processor busy, since this domain may not yield: %s", error)
                self.close()

    def close(self) -> None:
        """Let go of privcmd. A second time does nothing."""
        device, self._device = self._device, None
        if device is not None:
            device.close()


def _open_privcmd(system: System) -> Device | None:
    try:
        return system.open("privcmd")
    except InterfaceUnavailable as error:
        if error.errno in NO_DESCRIPTORS:
            raise
        _log.info("polling keeps the processor busy: %s", error)
        return None
