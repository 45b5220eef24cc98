"""xen/include/public/io/xenbus.h: the states of the two ends of a device."""

from __future__ import annotations

from enum import IntEnum


class XenbusState(IntEnum):
    """What an end of a device writes into its node `state`, as a decimal number (Xen public/io/xenbus.h).

    INIT_WAIT waits for the other end, INITIALISED for it to connect; CLOSING is for an error or for unplugging.
    """

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2  # early initialisation is done; hotplug scripts may be what it waits for
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8
