"""xen/include/public/io/xenbus.h: the states of the two ends of a device."""

from __future__ import annotations

from enum import IntEnum


class XenbusState(IntEnum):
    """What an end of a device writes into its node `state`, as a decimal number."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2  # early initialisation is done, and it waits for the other end or for hotplug scripts
    INITIALISED = 3  # it waits for the other end to connect
    CONNECTED = 4
    CLOSING = 5  # for an error, or for unplugging
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8
