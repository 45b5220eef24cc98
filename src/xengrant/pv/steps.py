"""What an end of a device does next, from its own state and the other's: pure rules, with no I/O.

Called by `BackendDevice` and `FrontendDevice`, which look again after each step. The states are what xenstore says, so
either end may jump to any of them at any time, and so may the toolstack (Linux drivers/block/xen-blkback/xenbus.c,
frontend_changed, and drivers/block/xen-blkfront.c, blkback_changed).
"""

from __future__ import annotations

from enum import Enum, auto

from xengrant.abi.xenbus import XenbusState

__all__ = ["Step", "back_step", "front_step"]

_UNKNOWN, _INITIALISING, _INIT_WAIT = XenbusState.UNKNOWN, XenbusState.INITIALISING, XenbusState.INIT_WAIT
_INITIALISED, _CONNECTED = XenbusState.INITIALISED, XenbusState.CONNECTED
_CLOSING, _CLOSED = XenbusState.CLOSING, XenbusState.CLOSED


class Step(Enum):
    """One step of a device's life."""

    WAIT = auto()  # for news
    DISCONNECT = auto()  # what is connected is so no more
    OFFER = auto()  # write the features, then INIT_WAIT
    CONNECT = auto()
    RESUME = auto()  # connect where both were connected, in place of a predecessor
    CLOSING = auto()
    WAIT_FOR_CLOSED = auto()  # for the other end's CLOSED, or a deadline
    CLOSED = auto()  # disconnect, then CLOSED
    ANNOUNCE = auto()  # the front end: the back end is connected, so we are too
    RESET = auto()  # the front end: CLOSED, since a predecessor left another state
    START = auto()  # the front end: INITIALISING
    END = auto()  # the front end: there is nothing to come


def back_step(own: XenbusState, front: XenbusState, *, online: bool, connected: bool, stopping: bool = False) -> Step:
    """The back end's next step. `stopping` is the program's own wish to close the device."""
    if connected and own not in (_CONNECTED, _CLOSING):
        return Step.DISCONNECT  # somebody else wrote the state: the toolstack starts over, or gives up
    if own is _CLOSED:
        return Step.OFFER if front is _INITIALISING and online and not stopping else Step.WAIT
    if own is _CLOSING:
        return Step.WAIT_FOR_CLOSED if front in (_INITIALISED, _CONNECTED, _CLOSING) else Step.CLOSED
    if own not in (_INITIALISING, _INIT_WAIT, _INITIALISED, _CONNECTED):
        return Step.DISCONNECT if connected else Step.WAIT
    if front is _CLOSED:
        return Step.CLOSED
    if front is _CLOSING or stopping:
        return Step.CLOSING
    if own is _CONNECTED:
        return _connected_back_step(front, online=online, connected=connected)
    if own is _INIT_WAIT:
        return Step.CONNECT if front in (_INITIALISED, _CONNECTED) else Step.WAIT
    return Step.OFFER


def _connected_back_step(front: XenbusState, *, online: bool, connected: bool) -> Step:
    if front is _UNKNOWN:
        return Step.CLOSED  # its nodes are gone
    if front is _INITIALISING:
        return Step.OFFER if online else Step.CLOSED  # it has started over without a word
    if front in (_INITIALISED, _CONNECTED) and not connected:
        return Step.RESUME
    return Step.WAIT


def front_step(
    own: XenbusState, back: XenbusState, *, online: bool, connected: bool, again: bool, stopping: bool = False
) -> Step:
    """The front end's next step. `again` says that CLOSED is not the end for it, `stopping` that the program ends."""
    if own is _CLOSED:
        return Step.DISCONNECT if connected else _closed_front_step(back, online=online, again=again and not stopping)
    if own is _CLOSING and connected:
        return Step.CLOSED if back in (_UNKNOWN, _CLOSING, _CLOSED) else Step.WAIT_FOR_CLOSED
    if own is _INITIALISING:
        if stopping or (back in (_CLOSING, _CLOSED) and not online):
            return Step.CLOSED
        return Step.CONNECT if back is _INIT_WAIT else Step.WAIT
    if own in (_INITIALISED, _CONNECTED) and connected:
        if back in (_UNKNOWN, _CLOSING, _CLOSED):
            return Step.CLOSED
        if stopping:
            return Step.CLOSING
        return Step.ANNOUNCE if own is _INITIALISED and back is _CONNECTED else Step.WAIT
    return Step.END if own is _UNKNOWN else Step.RESET


def _closed_front_step(back: XenbusState, *, online: bool, again: bool) -> Step:
    if not again:
        return Step.END if back in (_UNKNOWN, _INITIALISING, _CLOSED) else Step.WAIT_FOR_CLOSED
    if back is _UNKNOWN:
        return Step.WAIT
    if back is _INITIALISING or (back is _CLOSED and online):
        return Step.START
    return Step.END if back is _CLOSED else Step.WAIT_FOR_CLOSED
