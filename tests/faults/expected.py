"""What one side sees when the other is killed or destroyed at a step, or was while it had not come to a step yet."""

from __future__ import annotations

from collections.abc import Mapping

from tests.faults.steps import ASYNC_STEPS, STEPS

__all__ = [
    "DESTROYED",
    "DESTROYED_ASYNC",
    "DESTROYED_MEANWHILE",
    "KILLED",
    "KILLED_ASYNC",
    "KILLED_MEANWHILE",
    "OFFERING",
    "Expected",
    "expected_of",
    "is_offered",
]

Expected = Mapping[str, tuple[tuple[str, str], ...]]
"""For each role, from which of its steps on what is seen: "late", a time-out, where nothing could tell; "told" that the
other side is gone; "refused", what it had offered; "whole", since all was done that takes two; or "seen": "whole" where
the other side has seen what was said without an event, else "told"; or "either": "told", or "whole" where that came to
its end before the machine, or xenstore, told."""

# By the step of the side that is struck. A process has nobody told of its end before it asked the kernel to do so
# (SET_UNMAP_NOTIFY), nor before it has been found.
KILLED: Expected = {
    "granter": (("share: open evtchn", "late"), ("notify: advertised", "told"), ("notify: NOTIFY", "whole")),
    "mapper": (("find: open xenbus", "late"), ("notify: mapped, not said", "told"), ("notify: NOTIFY 2", "whole")),
    "server": (
        ("connect: open xenbus", "late"),
        ("transfer: connected", "told"),
        ("transfer: published, not told", "whole"),
    ),
    "client": (("connect: open xenbus", "late"), ("connect: MAP_GRANT_REF 3", "told"), ("close: MUNMAP", "whole")),
}
# Destruction clears no byte and sends no event; xenstore tells, but only who waits for somebody that it has found.
KILLED_ASYNC: Expected = {
    **KILLED,
    "client": (
        ("connect: open xenbus", "late"),
        ("connect: MAP_GRANT_REF 3", "told"),
        ("transfer: 200 bytes written", "whole"),  # to write all and to close is all that a server can do there
    ),
}
DESTROYED: Expected = {
    "granter": (("share: open evtchn", "late"), ("notify: advertised", "told"), ("close: RELEASE", "whole")),
    "mapper": (("find: open xenbus", "told"), ("notify: NOTIFY 2", "whole")),
    "server": (
        ("connect: open xenbus", "late"),
        ("transfer: connected", "told"),
        ("close: xenstore TRANSACTION_START", "whole"),
    ),
    "client": (("connect: open xenbus", "told"), ("close: MUNMAP", "whole")),
}
DESTROYED_ASYNC: Expected = {
    **DESTROYED,
    "client": (("connect: open xenbus", "told"), ("transfer: 200 bytes written", "whole")),
}

# By the step of the side that survives. What a killed process offered stands in xenstore and leads nowhere.
KILLED_MEANWHILE: Expected = {
    "granter": (
        ("share: open evtchn", "late"),
        ("notify: advertised", "told"),
        ("notify: NOTIFY", "seen"),
        ("close: xenstore RM", "whole"),
    ),
    "mapper": (
        ("find: open xenbus", "refused"),
        ("map: SET_UNMAP_NOTIFY", "told"),
        ("notify: answered, not said", "whole"),
    ),
    "server": (
        ("connect: open xenbus", "late"),
        ("transfer: connected", "told"),
        ("transfer: published, not told", "whole"),
    ),
    "client": (
        ("connect: open xenbus", "late"),
        ("connect: MUNMAP", "told"),
        ("transfer: 200 bytes written", "whole"),
    ),
    "asyncio server": (
        ("connect: open xenbus", "late"),
        ("transfer: connected", "told"),
        ("transfer: 12288 bytes written", "either"),
        ("transfer: 12608 bytes written", "whole"),
    ),
    "asyncio client": (
        ("connect: open xenbus", "late"),
        ("connect: MUNMAP", "told"),
        ("transfer: 200 bytes written", "whole"),
    ),
}
DESTROYED_MEANWHILE: Expected = {
    "granter": (("share: open evtchn", "told"), ("notify: NOTIFY", "seen"), ("close: xenstore RM", "whole")),
    "mapper": (
        ("find: open xenbus", "late"),
        ("find: xenstore UNWATCH", "refused"),
        ("map: open evtchn", "told"),
        ("map: open gntdev", "refused"),
        ("map: SET_UNMAP_NOTIFY", "told"),
        ("notify: NOTIFY 2", "seen"),
        ("close: MUNMAP", "whole"),
    ),
    "server": (("connect: open xenbus", "told"), ("transfer: published, not told", "whole")),
    "client": (("connect: open xenbus", "late"), ("connect: xenstore UNWATCH", "told"), ("close: MUNMAP", "whole")),
    "asyncio server": (
        ("connect: open xenbus", "told"),
        ("transfer: 12288 bytes written", "either"),
        ("transfer: 12608 bytes written", "whole"),
    ),
    "asyncio client": (
        ("connect: open xenbus", "late"),
        ("connect: MUNMAP", "told"),
        ("transfer: 200 bytes written", "either"),
        ("close: all done", "whole"),
    ),
}


def expected_of(table: Expected, role: str, step: str) -> str:
    names = (STEPS | ASYNC_STEPS)[role]
    return [kind for first, kind in table[role] if names.index(first) <= names.index(step)][-1]


OFFERING = ("granter", "server", "asyncio server")


def is_offered(role: str, step: str) -> bool:
    """Whether the other side can find what the role offers, when that is at the step."""
    return role in OFFERING and step.partition(":")[0] in ("notify", "transfer", "close")
