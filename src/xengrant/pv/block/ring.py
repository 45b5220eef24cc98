"""The back end of a block device's ring, whose answers survive the end of the process: `BlockRing`.

A response overwrites the slot of a request, which may be another's. A back end that dies after it wrote a response and
before it published `rsp_prod` would leave its successor a slot that is no request any more. So each response is noted
in the header's padding first, which nobody else uses and a front end zeroes with the ring: the successor finds either
the request, or the note of its answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from xengrant import _native
from xengrant.abi import blkif_note as note
from xengrant.abi import ring as abi
from xengrant.abi.blkif import Layout
from xengrant.arguments import MAX_U32
from xengrant.memory import Mapping
from xengrant.rings.rpc import BackRing

if TYPE_CHECKING:
    from xengrant.pv.block.requests import Limits

__all__ = ["BlockRing"]


class BlockRing(BackRing):
    """`BackRing` for requests of a `Layout`, answered in the order of the ring, one by one.

    Made by `attach_to`. Threads: one at a time.
    """

    @classmethod
    def attach_to(cls, memory: Mapping, layout: Layout) -> Self:
        """Attach at the first request that is not answered, and finish the answer that a predecessor began.

        `ProtocolError` where more requests are unanswered than the ring has entries.
        """
        ring = cls.attach(memory, layout.entry_size)
        ring._finish_answer()
        _native.store32(memory, note.INDEX_AT, ring._prod - 1 & MAX_U32)  # a front end's zeros would answer request 0
        memory[note.MAGIC_AT : note.MAGIC_AT + len(note.MAGIC)] = note.MAGIC
        ring._told = ring._prod
        ring._layout = layout
        return ring

    def server(self, doorbell: _native.Doorbell, file: _native.Descriptor) -> _native.BlockServer:
        """What does this ring's usual requests on a file, in `serve`."""
        layout = self._layout
        return _native.BlockServer(self._memory, self.entries, layout.entry_size, layout.tail, doorbell, file)

    def serve(self, server: _native.BlockServer, limits: Limits, wakes: int) -> bool:
        """Have it do, answer and wait for requests, until one is not usual, or the doorbell's `wakes` is another.

        Every request that was taken must be answered. False where no event can come any more.
        """
        place = self._prod, self._seen, self._told
        sectors, size = limits.sectors, limits.sector_size
        prod, seen, told, more = server.serve(place, wakes, sectors, size, limits.writable, limits.max_segments)
        self._start_at(prod, prod)
        self._seen, self._told = seen, told
        return more

    def look(self, doorbell: _native.Doorbell, wakes: int) -> bool:
        """Look for as long as the doorbell's `poll` says: whether a request has come, or `wakes` is another."""
        return doorbell.look(self._memory, abi.REQ_PROD, self._seen, wakes)

    def take_unanswered(self) -> list[bytes]:
        """Take all requests that have no answer, also those that were taken before. Raises as `take_requests`."""
        self._cons = self._prod
        return self.take_requests()

    def answer(self, response: bytes) -> None:
        """Note, write and publish the response to the next request that was taken; `to_notify` says whether to tell."""
        memory, index = self._memory, self._prod
        memory[note.RESPONSE_AT : note.RESPONSE_AT + note.RESPONSE_SIZE] = response[: note.RESPONSE_SIZE]
        _native.store32(memory, note.INDEX_AT, index)  # from here on the slot may be overwritten
        at = self._at(index)
        memory[at : at + len(response)] = response
        self._prod = self._pushed = index = index + 1 & MAX_U32
        _native.store32(memory, abi.RSP_PROD, index)

    def to_notify(self) -> bool:
        """Whether the front end waits for one of the answers since the last call (RING_PUSH_..._AND_CHECK_NOTIFY)."""
        old, self._told = self._told, self._prod
        _native.fence()
        event = _native.load32(self._memory, abi.RSP_EVENT)
        return (self._prod - event & MAX_U32) < (self._prod - old & MAX_U32)

    def _finish_answer(self) -> None:
        noted = note.unpack_note(bytes(self._memory[: abi.HEADER_SIZE]))
        if noted is not None and noted[0] == self._prod != self._seen:
            self._cons = self._cons + 1 & MAX_U32
            self.answer(noted[1])

    _told: int
    _layout: Layout
