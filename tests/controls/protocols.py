"""What the controls have explored: the sides of a ring and of a table, as the library's own code performs them.

Each function takes the words that the code runs on, right or broken, and returns how many outcomes there are, and the
first of them that must not be.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from tests.controls.tso import Outcome, Violation, explore
from tests.controls.words import PythonSide, Words
from tests.rings.memory import pair, set_header, used_ring
from xengrant import _native, grant_entries
from xengrant.abi import grant_table as abi
from xengrant.embedded import grants
from xengrant.errors import GrantBusy, ProtocolError
from xengrant.grant_entries import Entries, EntriesV2, entries_of
from xengrant.rings import rpc
from xengrant.rings.rpc import BackRing, FrontRing

__all__ = ["Explored", "look_first", "make_readonly", "push_and_wait", "pushed_while", "revoke"]

Explored = tuple[int, Violation | None]

_ENTRY = 16
_PEER = 7
_REF = 1
_BUSY, _ENDED, _REFUSED, _MAPPED = "busy", "ended", "refused", "mapped"


# The ring of requests


def push_and_wait(front_words: type[Words], back_words: type[Words] = Words, start: int = 0) -> Explored:
    """A front pushes a request and looks whether to notify; a back that has nothing to do looks whether to wait.

    Were it neither notified nor aware of the request, it would wait for ever.
    """
    ring = used_ring(start, entries=4, entry_size=_ENTRY)
    set_header(ring, start, start, start, start)  # the back was busy, and did not ask to be notified of the next
    memory = bytes(ring)

    def push(buffer: bytearray) -> Callable[[], object]:
        front = FrontRing.attach(buffer, _ENTRY)
        front.next_request(b"request")
        return front.push_requests

    def wait(buffer: bytearray) -> Callable[[], object]:
        back = BackRing.attach(buffer, _ENTRY)

        def look() -> object:
            try:
                return "goes on" if back.more_to_do() else "waits"
            except ProtocolError as error:
                return error.args

        return look

    def judge(outcome: Outcome) -> str | None:
        notified, back = outcome.values
        if back == "waits" and not notified:
            return "the back waits, and was not notified of the request that is there"
        return f"the back says {back}" if isinstance(back, tuple) else None

    sides = [PythonSide(push, [rpc], [memory], front_words), PythonSide(wait, [rpc], [memory], back_words)]
    return explore(sides, memory, judge)


# The table


def revoke(version: int, words: type[Words], end_access: Callable[[Entries, int], None] | None = None) -> Explored:
    """An owner revokes a grant while the hypervisor maps it: one of them must see the other."""

    def own(entries: Entries) -> None:
        (end_access or type(entries).end_access)(entries, _REF)

    return _table(version, words, own, "the page was revoked and is mapped", readonly=True)


def look_first(entries: Entries, ref: int) -> None:
    """Broken: revokes without the order of version 2, by which each side marks first and looks then."""
    if entries.in_use(ref):
        raise GrantBusy(f"reference {ref} is mapped")
    buffer, at = entries.at(ref)
    words = vars(grant_entries)["_native"]  # those of the side that runs
    words.store16(buffer, at + abi.FLAGS, abi.GTF_INVALID)
    words.fence()


def make_readonly(version: int, words: type[Words]) -> Explored:
    """An owner takes back the right to write while the hypervisor maps the page writable."""

    def own(entries: Entries) -> None:
        entries.make_readonly(_REF)

    wrong = "the page is read-only from now on, and is mapped writable"
    return _table(version, words, own, wrong, readonly=False)


def _table(version: int, words: type[Words], own: Callable[[Entries], None], wrong: str, *, readonly: bool) -> Explored:
    """The owner does something that is busy while the page is mapped; the hypervisor maps it. Both cannot succeed."""
    frames, status = bytearray(4096), bytearray(4096)
    entries_of(version, [frames], [status]).grant(_REF, _PEER, 0x77, writable=True)
    memories = [bytes(frames), bytes(status)]

    def owner(frames: bytearray, status: bytearray) -> Callable[[], object]:
        entries = entries_of(version, [frames], [status])

        def change() -> object:
            try:
                own(entries)
            except GrantBusy:
                return _BUSY
            return _ENDED

        return change

    def hypervisor(frames: bytearray, status: bytearray) -> Callable[[], object]:
        entries = entries_of(version, [frames], [status])
        granter: Any = SimpleNamespace(table=SimpleNamespace(entries=entries))
        pin = grants._set_status_v2 if isinstance(entries, EntriesV2) else grants._set_status_v1

        def map_it() -> object:
            try:
                pin(granter, _REF, _PEER, pinned=False, readonly=readonly, mapping=True)
            except grants.GrantFailedError:
                return _REFUSED
            return _MAPPED

        return map_it

    def judge(outcome: Outcome) -> str | None:
        return wrong if outcome.values == (_ENDED, _MAPPED) else None

    sides = [
        PythonSide(owner, [grant_entries], memories, words),
        PythonSide(hypervisor, [grants], memories),
    ]
    return explore(sides, b"".join(memories), judge)


def pushed_while(look: Callable[[BackRing], object], store32: Callable[..., None]) -> list[object]:
    """What the back sees when it looks in the middle of the store of the front's index, and after it.

    The store converts the index first, which runs `look`; then it stores, or so it should.
    """
    front, back, _ = pair(5)
    seen: list[object] = []

    class Index:
        def __init__(self, value: int) -> None:
            self._value = value

        def __index__(self) -> int:
            try:
                seen.append(look(back))
            except ProtocolError as error:
                seen.append(error)
            return self._value

    words = SimpleNamespace(load32=_native.load32, fence=_native.fence)
    words.store32 = lambda buffer, at, value: store32(buffer, at, Index(value))
    front.next_request(b"request")
    with patch.object(rpc, "_native", words):
        front.push_requests()
    seen.append(look(back))
    return seen
