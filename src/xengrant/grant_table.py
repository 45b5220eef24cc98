"""The grant table itself: `GrantTable` hands out references and makes and ends grants in shared memory.

This is the kernelspace side, for whoever owns a table: a program attached to an embedded machine as its domain's
kernel (`Domain.grant_table`), the embedded machine's own guest kernels, and a domain builder over a table that nobody
uses yet. A process inside a Linux domain has no table, its kernel has. How entries are granted and revoked is in
`grant_entries.py`, what a table looks like at one moment in `grant_snapshot.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from xengrant.abi import grant_table as abi
from xengrant.abi.xen import DOMID_FIRST_RESERVED
from xengrant.arguments import checked_number
from xengrant.errors import GrantBusy, GrantTableFull, InvalidGrant
from xengrant.forks import abandon_in_child
from xengrant.grant_contexts import Granted, raise_first
from xengrant.grant_entries import GrantEntry, entries_of
from xengrant.grant_lock import FinalizerLock, locked
from xengrant.grant_snapshot import Snapshot

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["GrantTable", "Grantable", "NewFrames"]

# Of a reference: in the free list; handed out; its entry is granted; it is revoked, and a peer still maps the page.
_FREE, _HELD, _GRANTED, _ENDING = range(4)

# Seconds between two looks at an entry that a peer still maps, growing from the one to the other.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.1

_FIRST_REF = abi.NR_RESERVED_ENTRIES
_MAX_COUNT = 1 << 32


class Grantable(Protocol):
    """A page that a table can grant: from `hold` to `drop` it is not given back. `Page` is one."""

    @property
    def frame(self) -> int:
        """Its frame number in the domain."""

    def hold(self) -> None:
        """A grant begins."""

    def drop(self) -> None:
        """A grant has ended."""


class NewFrames(NamedTuple):
    """What a table grew by: a frame of entries and, in version 2, the status frame where one is needed with it."""

    frame: Buffer
    status: Buffer | None = None


class GrantTable:
    """A domain's own table: which references are free, and the entries of those that are held.

    `frames` are its first frames, buffers of one or more of 4096 bytes, `status_frames` those of version 2's status.
    `grow(n)` gives frame `n`, the next, or None where the hypervisor refuses, and is called until there are
    `max_frames`; where a signal handler raised, for the same frame once more.
    `max_domid` is the highest that may be granted to.
    References come and go last in, first out, as Linux's do, so a ref number is reused at once; 0 to 7 are the domain
    builder's and never handed out. Each operation takes constant time for each reference, at any table size.
    `max_frames` is how many frames there can be, `entries` what is in those that there are.

    Threads: any call from any thread, and from any number of event loops; waiters are woken in their own. Finalizers
    may call anything that `with` blocks do. A signal handler that raises leaves the table sound, and what the call that
    it interrupted was about to return stays held: a reference may be lost that way, never granted memory. Fork: in the
    child its calls raise `InterfaceClosed`.
    """

    def __init__(
        self,
        frames: Iterable[Buffer],
        *,
        version: int = 1,
        status_frames: Iterable[Buffer] = (),
        max_frames: int = 0,
        grow: Callable[[int], NewFrames | None] | None = None,
        max_domid: int = DOMID_FIRST_RESERVED - 1,
    ) -> None:
        self.entries = entries_of(version, frames, status_frames)
        if not len(self.entries):
            raise ValueError("a grant table has a frame at least")
        self.max_frames = max(max_frames, len(self.entries.frames)) if grow else len(self.entries.frames)
        self._grow = grow
        self._max_domid = max_domid
        self._lock = FinalizerLock()
        self._state = bytearray(len(self.entries))
        self._free = list(range(len(self.entries) - 1, abi.NR_RESERVED_ENTRIES - 1, -1))
        self._ended = bytearray(len(self.entries))  # 1 where a grant of this table's was ended, so that nobody maps it
        self._pages: dict[int, Grantable] = {}  # of the entries that are granted or ending
        self._waiters: dict[_Waiter, None] = {}  # in the order in which they came
        abandon_in_child(self)

    def _abandon(self) -> None:
        self._lock.abandon()

    def __repr__(self) -> str:
        frames = len(self.entries.frames)
        return f"<GrantTable v{self.version} of {frames} frames (max {self.max_frames}), {self.num_held} refs held>"

    @property
    def version(self) -> int:
        """1 or 2."""
        return self.entries.version

    # References

    @property
    def num_free_grants(self) -> int:
        """References that can be had now, growth included; none while others wait for more than there are."""
        if not all(waiter.is_lost for waiter in list(self._waiters)):
            return 0
        return len(self._free) + (self.max_frames - len(self.entries.frames)) * self.entries.per_frame

    @property
    def num_held(self) -> int:
        """References handed out and not yet put back."""
        return len(self.entries) - abi.NR_RESERVED_ENTRIES - len(self._free)

    @property
    def capacity(self) -> int:
        """References that the table can ever hand out at once."""
        return self.max_frames * self.entries.per_frame - abi.NR_RESERVED_ENTRIES

    def get_nowait(self) -> int | None:
        """A free reference, or None."""
        ref, lock = None, self._lock
        with lock.plain:  # the usual case, without a list
            if self._free and not self._waiters:
                ref = self._free.pop()
                self._state[ref] = _HELD
        if lock.late:
            lock.call_late()
        if ref is None and (refs := self.get_n_nowait(1)):
            return refs[0]
        return ref

    def get_n_nowait(self, count: int) -> list[int]:
        """`count` free references, or none of them: an empty list where there are too few."""
        return self._take_unless_waited(checked_number("count", count, 1, _MAX_COUNT))

    async def get(self) -> int:
        """A free reference, waiting for one; otherwise as `get_n`."""
        return (await self.get_n(1))[0]

    async def get_n(self, count: int) -> list[int]:
        """`count` free references at once, waiting until there are so many.

        Served in the order asked, each all or nothing, so that nobody waits while holding some. Raises `GrantTableFull`
        where the table can never have so many. Cancelled, it gives back what it was just served.
        """
        checked_number("count", count, 1, _MAX_COUNT)
        if count > self.capacity:
            text = f"{count} references at once, where this table has {self.capacity} in all (max_grant_frames)"
            raise GrantTableFull(errno.ENOSPC, text, limit="table")
        waiter = _Waiter(count, asyncio.get_running_loop())
        try:
            self._wait_in_line(waiter)
            if not waiter.refs:
                await waiter.served
        except BaseException:  # also GeneratorExit, which garbage collection may bring inside any call
            self._lock.call(partial(self._give_up, waiter))
            raise
        return waiter.refs

    def put(self, ref: int) -> None:
        """Give a reference back; whoever waits is served.

        `InvalidGrant` where it is reserved, beyond the table, not handed out by this table, still granted or mapped
        (`end_access` comes first), or where somebody else wrote to its entry.
        """
        lock = self._lock
        try:
            with lock.plain:
                self._check(ref, _HELD)
                if not (self.entries.is_invalid(ref) if self._ended[ref] else self.entries.is_free(ref)):
                    raise InvalidGrant(f"reference {ref} is used by somebody else: {self.entries.read(ref)}")
                self._state[ref] = _FREE
                self._free.append(ref)
                if self._waiters:
                    self._serve()
        finally:
            if lock.late:
                lock.call_late()

    @contextlib.asynccontextmanager
    async def ref(self) -> AsyncIterator[int]:
        """`async with table.ref() as ref`: a reference, put back in the end.

        One whose entry is still granted then, or mapped, stays held: `InvalidGrant`, or a note on the body's error.
        """
        async with self.refs(1) as refs:
            yield refs[0]

    @contextlib.asynccontextmanager
    async def refs(self, count: int) -> AsyncIterator[list[int]]:
        """`async with table.refs(n) as refs`: as `ref`, for several."""
        refs = await self.get_n(count)
        try:
            yield refs
        except BaseException as error:
            self._put_each(refs, error)
            raise
        self._put_each(refs)

    # Entries

    def __iter__(self) -> Iterator[GrantEntry]:
        """The entries in use, as they are at one moment: granted, or revoked and still mapped."""
        return iter(Snapshot(self.entries).grants())

    def read(self, ref: int) -> GrantEntry:
        """One entry as it is now; `InvalidGrant` beyond the table."""
        return self.entries.read(ref)

    @locked
    def grant_access(self, ref: int, domid: int, page: Grantable | int, *, writable: bool) -> None:
        """Let `domid` map `page` (or a frame number) through a reference that was gotten.

        The page is held until `end_access`. `InvalidGrant` where the reference is not held or in use, `ValueError`
        for a domid or frame that cannot be.
        """
        checked_number("domid", domid, 0, self._max_domid)
        if not isinstance(page, int) and not hasattr(page, "frame"):
            raise TypeError(f"a page is a Page of domain.alloc_pages or a frame number, not {page!r}")
        self._check(ref, _HELD)
        if isinstance(page, int):
            frame = page
        else:
            frame = page.frame
            page.hold()
            self._pages[ref] = page
        self._state[ref] = _GRANTED  # already, for a signal handler that raises as soon as the entry is
        try:
            self.entries.grant(ref, domid, frame, writable=writable, ended=bool(self._ended[ref]))
        except BaseException as error:
            if isinstance(error, InvalidGrant) or self.entries.is_invalid(ref):
                self._release(ref)
            raise

    @locked
    def end_access(self, ref: int) -> None:
        """Revoke; the reference stays held, its page is given up.

        `GrantBusy` while the peer maps the page: entry, reference and page then stay held, and it is to be called
        again; `InvalidGrant` where nothing is granted.
        """
        self._check(ref, _GRANTED, _ENDING)
        if self._state[ref] == _GRANTED:
            self._revoke(ref)
        elif self.entries.in_use(ref):
            raise GrantBusy(f"reference {ref} is revoked, and still mapped")
        self._end(ref)

    async def wait_end_access(self, ref: int, timeout: float | None = None) -> None:
        """`end_access` as soon as the peer has unmapped the page; `GrantBusy` where it has not after `timeout` seconds.

        It looks again after 1 ms, then after twice as long each time, up to 0.1 s: no event tells of an unmap.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while True:
            try:
                return self.end_access(ref)
            except GrantBusy:
                left = pause if deadline is None else min(pause, deadline - time.monotonic())
                if left <= 0:
                    raise
            await asyncio.sleep(left)
            pause = min(2 * pause, _LONGEST_PAUSE)

    @locked
    def make_readonly(self, ref: int) -> None:
        """Let the peer only read from now on; `GrantBusy` while it maps the page writable, and then nothing changed."""
        self._check(ref, _GRANTED)
        self.entries.make_readonly(ref)

    @locked
    def make_writable(self, ref: int) -> None:
        """Let the peer write too; it can when it maps the page anew."""
        self._check(ref, _GRANTED)
        self.entries.make_writable(ref)

    def grant(
        self, ref: int, domid: int, page: Grantable | int, *, writable: bool, timeout: float | None = None
    ) -> Granted[int]:
        """`with table.grant(...)`: granted inside the block, revoked at its end.

        While the peer still maps the page then, `with` raises `GrantBusy`, and entry, reference and page stay held;
        `async with` waits for at most `timeout` seconds before it does. An error of the body is never masked.
        """
        return Granted(self, [(ref, page)], domid, writable, timeout, ref)

    def grants(
        self,
        refs: Sequence[int],
        domid: int,
        pages: Sequence[Grantable | int],
        *,
        writable: bool,
        timeout: float | None = None,
    ) -> Granted[list[int]]:
        """As `grant`, for a page each through several references: all or none of them.

        `ValueError`, and nothing is touched, for lists of different lengths.
        """
        if len(refs) != len(pages):
            raise ValueError(f"{len(refs)} references for {len(pages)} pages")
        return Granted(self, list(zip(refs, pages, strict=True)), domid, writable, timeout, list(refs))

    # Within: the lock is held

    def _take(self, count: int) -> list[int]:
        """`count` free references in the order in which they come, or none."""
        free = self._free
        if count > len(free):
            self._expand(count - len(free))
        if count > len(free):
            return []
        refs = free[: -count - 1 : -1]
        del free[-count:]
        for ref in refs:
            self._state[ref] = _HELD
        return refs

    def _put_back(self, refs: Sequence[int]) -> None:
        for ref in refs:
            self._state[ref] = _FREE
            self._free.append(ref)

    def _serve(self) -> None:
        """Give the first waiters what they asked for, as far as it goes."""
        while self._waiters:
            waiter = next(iter(self._waiters))
            refs = [] if waiter.is_lost else self._take(waiter.count)
            if not refs and not waiter.is_lost:
                return
            del self._waiters[waiter]
            if refs and not waiter.serve(refs):
                self._put_back(refs)

    def _expand(self, missing: int) -> None:
        """Add the frames that `missing` more references need; theirs are handed out first (Linux gnttab_expand)."""
        extra = -(-missing // self.entries.per_frame)
        if self._grow is None or len(self.entries.frames) + extra > self.max_frames:
            return
        first = len(self.entries)
        try:
            for _ in range(extra):
                number = len(self.entries.frames)
                new = self._grow(number)
                if new is None:
                    break
                status_frames = self.entries.status_frames
                if new.status is not None and len(status_frames) == number // abi.V2_FRAMES_PER_STATUS_FRAME:
                    status_frames.add(new.status)
                self.entries.frames.add(new.frame)
        finally:
            self._state.extend(bytes(len(self.entries) - first))
            self._ended.extend(bytes(len(self.entries) - first))
            self._free.extend(range(len(self.entries) - 1, first - 1, -1))

    def _check(self, ref: int, state: int, or_state: int = _FREE) -> None:
        """`InvalidGrant` where the reference is in neither of the states."""
        if _FIRST_REF <= ref < len(self._state) and self._state[ref] and self._state[ref] in (state, or_state):
            return
        if 0 <= ref < abi.NR_RESERVED_ENTRIES:
            raise InvalidGrant(f"reference {ref} is reserved: 0 to {abi.NR_RESERVED_ENTRIES - 1} are the builder's")
        if not 0 <= ref < len(self._state):
            raise InvalidGrant(f"reference {ref} is beyond the table's {len(self._state)} entries")
        raise InvalidGrant(f"reference {ref} {_WHY_NOT[self._state[ref]]}")

    def _revoke(self, ref: int) -> None:
        try:
            self.entries.end_access(ref)
        except GrantBusy:
            if self.version == 2:
                self._state[ref] = _ENDING
            raise
        except InvalidGrant:  # somebody else wrote to the table: it grants nothing any more
            self._end(ref)
            raise

    def _end(self, ref: int) -> None:
        self._ended[ref] = 1
        self._release(ref)

    def _release(self, ref: int) -> None:
        """It is held again, its page given up."""
        self._state[ref] = _HELD
        page = self._pages.pop(ref, None)
        if page is not None:
            page.drop()

    # Within: the lock is not held

    def _call_outside(self, function: Callable[[], None]) -> None:
        """Call `function` as soon as nobody in this thread is inside a call of this table.

        That is what a finalizer does: it may run inside any call. Another thread that is in one may call `function`.
        """
        self._lock.call(function)

    @locked
    def _take_unless_waited(self, count: int) -> list[int]:
        if self._waiters:
            self._serve()
        return [] if self._waiters else self._take(count)

    @locked
    def _wait_in_line(self, waiter: _Waiter) -> None:
        self._waiters[waiter] = None
        self._serve()

    @locked
    def _give_up(self, waiter: _Waiter) -> None:
        """Take back what a waiter was served that is no more."""
        self._waiters.pop(waiter, None)
        refs, waiter.refs = waiter.refs, []
        self._put_back(refs)
        self._serve()

    def _put_each(self, refs: Sequence[int], error: BaseException | None = None) -> None:
        """Put back those that can be, at the end of a block that `error` ended; what is wrong as `raise_first` says."""
        if isinstance(error, GeneratorExit):  # the block may be garbage, collected inside any call
            self._call_outside(partial(self._put_each, refs, Exception()))
            return
        problems = []
        for ref in refs:
            try:
                self.put(ref)
            except InvalidGrant as problem:
                problems.append(problem)
        raise_first(problems, error)


_WHY_NOT = {
    _FREE: "is free: it was put back, or never gotten from this table",
    _HELD: "is not granted",
    _GRANTED: "is still granted: end_access comes first",
    _ENDING: "is revoked, and still mapped: end_access comes first",
}


class _Waiter:
    """Somebody who waits in `get_n`."""

    __slots__ = ("_loop", "count", "refs", "served")

    def __init__(self, count: int, loop: asyncio.AbstractEventLoop) -> None:
        self.count = count
        self.refs: list[int] = []
        self._loop = loop
        self.served: asyncio.Future[None] = loop.create_future()

    @property
    def is_lost(self) -> bool:
        """Whether its loop was closed while it waited, so that it will never go on."""
        return self._loop.is_closed()

    def serve(self, refs: list[int]) -> bool:
        """Wake it with what it asked for, from any thread; False where its loop is no more."""
        self.refs = refs
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:
            self.refs = []
            return False
        return True

    def _wake(self) -> None:
        if not self.served.done():
            self.served.set_result(None)
