"""How a back end gets at a front end's pages: `KeptPages` maps each once, `MappedPages` for a batch, `CopiedPages` not.

A ring's queue has one of them and calls it in its thread, for batches of requests: `read_tables` has the segments of
indirect requests read, `open` gives each request its `buffers`, `close` takes them back when the disk is done. A page
that is not granted has its request answered with an error, and only that.
"""

from __future__ import annotations

import abc
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xengrant.abi import blkif
from xengrant.abi.xen import PAGE_SIZE
from xengrant.errors import GrantError
from xengrant.gnttab import Gnttab, Grant

if TYPE_CHECKING:
    from xengrant._native import BlockServer
    from xengrant.gnttab import Mapped
    from xengrant.pv.block.requests import Reader, Request

__all__ = ["CopiedPages", "KeptPages", "MappedPages", "Pages"]

_NOT_HAD = (GrantError, OSError)  # or this process has no memory, or has as many maps as the system gives one
_MOST_GROUPS, _MOST_IN_ALL = 1024, 32768
"""A generation of pages that were kept one by one is full with so many, and all rings of this process keep so many
together: it has 65,530 maps, whoever's disks it serves (Linux vm.max_map_count)."""


class Pages(abc.ABC):
    """The pages of domain `domid`, through `gnttab`, which stays its owner's. Threads: one at a time."""

    def __init__(self, gnttab: Gnttab, domid: int) -> None:
        self._gnttab = gnttab
        self._domid = domid

    @abc.abstractmethod
    def read_tables(self, reader: Reader, requests: Iterable[Request]) -> None:
        """Have `reader` read the segments of requests that have `tables`."""

    @abc.abstractmethod
    def open(self, requests: Sequence[Request]) -> None:
        """Give `buffers` to requests that have `refs`, filled with what the front end writes; or refuse them."""

    @abc.abstractmethod
    def close(self, requests: Sequence[Request]) -> None:
        """Take the buffers back; what was read is in the front end's pages then."""

    @abc.abstractmethod
    def end(self) -> None:
        """Let go of every page."""

    def _map(self, refs: Sequence[int], *, writable: bool) -> Mapped:
        return self._gnttab.map([Grant(self._domid, ref) for ref in refs], writable=writable)


class _Count:
    """A number that any thread may add to."""

    def __init__(self) -> None:
        self.value = 0
        self._lock = threading.Lock()

    def add(self, number: int) -> None:
        with self._lock:
            self.value += number


_kept_in_all = _Count()  # groups


@dataclass(frozen=True, slots=True)
class _Group:
    """Pages that were mapped at once, and are unmapped at once."""

    whole: memoryview
    pages: dict[int, memoryview]  # by ref


class KeptPages(Pages):
    """Pages that stay mapped, for a front end that uses the same ones again and again (feature-persistent).

    They are mapped in groups, as requests bring them, and kept in two generations. When the younger has `most` pages,
    or 1024 groups, it becomes the old one, and what of the old one nobody has used meanwhile is unmapped: so many of
    those used last stay mapped at least, and never more than twice as many, or twice the pages of the largest request
    where those are more. Where the rings of this process keep 32,768 groups together, one that needs another lets go of
    all its own first: no front end can use up the maps of the others'. A `BlockServer` that is told of them knows the
    younger generation.
    """

    def __init__(self, gnttab: Gnttab, domid: int, most: int) -> None:
        super().__init__(gnttab, domid)
        self._most = most
        self._groups: list[_Group] = []  # the younger generation
        self._views: dict[int, memoryview] = {}  # its pages by ref
        self._old: dict[int, _Group] = {}  # the group of each ref of the older
        self._server: BlockServer | None = None

    @property
    def kept(self) -> int:
        """How many pages are mapped."""
        return len(self._views) + len(self._old)

    def read_tables(self, reader: Reader, requests: Iterable[Request]) -> None:
        for request in requests:
            try:
                pages = self._pages(request.tables)
            except _NOT_HAD as error:
                request.refuse(str(error))
            else:
                reader.read_segments(request, pages)

    def open(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if not request.refs:
                continue
            try:
                views = self._pages(request.refs)
            except _NOT_HAD as error:
                request.refuse(str(error))
            else:
                request.buffers = views if request.whole else _cut(views, request.spans)

    def close(self, requests: Sequence[Request]) -> None:
        for request in requests:
            request.buffers = []

    def end(self) -> None:
        _kept_in_all.add(-len(self._groups))
        self._forget()
        self._drop_old()

    def tell(self, server: BlockServer) -> None:
        """Have it serve requests for the pages that are kept, from now on."""
        self._server = server
        for group in self._groups:
            server.keep(tuple(group.pages), group.whole)

    def _pages(self, refs: Sequence[int]) -> list[memoryview]:
        try:
            return list(map(self._views.__getitem__, refs))
        except KeyError:
            return self._find(refs)

    def _find(self, refs: Sequence[int]) -> list[memoryview]:
        """As `_pages`, where some are not in the younger generation; those get there."""
        found: dict[int, memoryview] = {}
        missing = []
        for ref in dict.fromkeys(refs):
            view = self._views.get(ref)
            if view is None and ref in self._old:
                group = self._old[ref]
                for other in group.pages:
                    del self._old[other]
                self._add(group)
                view = group.pages[ref]
            if view is None:
                missing.append(ref)
            else:
                found[ref] = view
        if missing:
            group = self._keep(missing)
            self._add(group)
            found |= group.pages
        return [found[ref] for ref in refs]

    def _keep(self, refs: Sequence[int]) -> _Group:
        if _kept_in_all.value >= _MOST_IN_ALL:
            self.end()
        mapping = self._map(refs, writable=True).mapping
        _kept_in_all.add(1)
        whole = memoryview(mapping)
        views = [whole[at : at + PAGE_SIZE] for at in range(0, len(whole), PAGE_SIZE)]
        mapping.close_on_release()  # the views alone keep it, here or in requests under way
        return _Group(whole, dict(zip(refs, views, strict=True)))

    def _add(self, group: _Group) -> None:
        if len(self._views) + len(group.pages) > self._most or len(self._groups) >= _MOST_GROUPS:
            self._drop_old()
            self._old = {ref: group for group in self._groups for ref in group.pages}
            self._forget()
        self._groups.append(group)
        self._views |= group.pages
        if self._server is not None:
            self._server.keep(tuple(group.pages), group.whole)

    def _drop_old(self) -> None:
        _kept_in_all.add(-len({id(group) for group in self._old.values()}))
        self._old = {}

    def _forget(self) -> None:
        """All of the younger generation."""
        self._groups = []
        self._views = {}
        if self._server is not None:
            self._server.forget()


class MappedPages(Pages):
    """Pages that are mapped for one batch of requests, those to be written to apart from those only read."""

    def __init__(self, gnttab: Gnttab, domid: int) -> None:
        super().__init__(gnttab, domid)
        self._mapped: list[Mapped] = []

    def read_tables(self, reader: Reader, requests: Iterable[Request]) -> None:
        for request in requests:
            try:
                mapped = self._map(request.tables, writable=False)
            except _NOT_HAD as error:
                request.refuse(str(error))
                continue
            with mapped, memoryview(mapped.mapping) as pages:
                reader.read_segments(request, [pages])

    def open(self, requests: Sequence[Request]) -> None:
        for writable in (True, False):
            batch = [request for request in requests if request.refs and (request.action == blkif.READ) == writable]
            if not batch:
                continue
            try:
                self._open_all(batch, writable=writable)
            except _NOT_HAD:
                for request in batch:
                    try:
                        self._open_all([request], writable=writable)
                    except _NOT_HAD as error:
                        request.refuse(str(error))

    def close(self, requests: Sequence[Request]) -> None:
        for request in requests:
            request.buffers = []
        while self._mapped:
            # A disk that keeps a buffer of ours keeps the page mapped, and nothing more.
            self._mapped.pop().mapping.close_on_release()

    def end(self) -> None:
        self.close(())

    def _open_all(self, batch: Sequence[Request], *, writable: bool) -> None:
        mapped = self._map([ref for request in batch for ref in request.refs], writable=writable)
        self._mapped.append(mapped)
        whole = memoryview(mapped.mapping)
        at = 0
        for request in batch:
            end = at + len(request.refs) * PAGE_SIZE
            if request.whole:
                request.buffers = [whole[at:end]]
            else:
                views = [whole[page : page + PAGE_SIZE] for page in range(at, end, PAGE_SIZE)]
                request.buffers = _cut(views, request.spans)
            at = end


class CopiedPages(Pages):
    """Pages that the hypervisor copies (grant copy), to and from a buffer of this process, `most` pages at once."""

    def __init__(self, gnttab: Gnttab, domid: int, most: int) -> None:
        super().__init__(gnttab, domid)
        self._buffer = memoryview(bytearray(most * PAGE_SIZE))
        self._at: dict[Request, int] = {}  # where in it each request's data is

    def read_tables(self, reader: Reader, requests: Iterable[Request]) -> None:
        for request in requests:
            table = self._buffer[: len(request.tables) * PAGE_SIZE]
            pieces = [(ref, 0, PAGE_SIZE) for ref in request.tables]
            try:
                refused = any(self._gnttab.copy_run(self._domid, pieces, table, to_grants=False))
            except _NOT_HAD as error:
                request.refuse(str(error))
                continue
            if refused:
                request.refuse("a page of segments is not granted")
            else:
                reader.read_segments(request, [table])

    def open(self, requests: Sequence[Request]) -> None:
        with_data = [request for request in requests if request.refs]
        writes = [request for request in with_data if request.action != blkif.READ]
        reads = [request for request in with_data if request.action == blkif.READ]
        at = 0
        for request in writes + reads:  # what is copied at once lies side by side
            self._at[request] = at
            request.buffers = [self._buffer[at : at + request.length]]
            at += request.length
        self._copy(writes, to_grants=False)

    def close(self, requests: Sequence[Request]) -> None:
        run: list[Request] = []
        for request in requests:
            if request in self._at and request.action == blkif.READ:
                if request.status == blkif.RSP_OKAY:
                    run.append(request)
                    continue
                self._copy(run, to_grants=True)
                run = []
        self._copy(run, to_grants=True)
        for request in requests:
            request.buffers = []
        self._at.clear()

    def end(self) -> None:
        """There is none."""

    def _copy(self, requests: Sequence[Request], *, to_grants: bool) -> None:
        """Between the pages and the requests' buffers, which lie side by side. A request whose page is refused is."""
        if not requests:
            return
        pieces: list[tuple[int, int, int]] = []
        for request in requests:
            pieces += _pieces(request)
        start = self._at[requests[0]]
        memory = self._buffer[start : self._at[requests[-1]] + requests[-1].length]
        try:
            statuses = self._gnttab.copy_run(self._domid, pieces, memory, to_grants=to_grants)
        except _NOT_HAD as error:
            for request in requests:
                request.refuse(str(error))
            return
        if not any(statuses):
            return
        at = 0
        for request in requests:
            end = at + request.count
            if any(statuses[at:end]):
                request.refuse("a page is not granted")
            at = end


def _pieces(request: Request) -> list[tuple[int, int, int]]:
    """(ref, offset, length) of its pages, in bytes."""
    if request.whole:
        return [(ref, 0, PAGE_SIZE) for ref in request.refs]
    size = blkif.SECTOR_SIZE
    return [
        (ref, (span & 0xFF) * size, ((span >> 8) + 1 - (span & 0xFF)) * size)
        for ref, span in zip(request.refs, request.spans, strict=True)
    ]


def _cut(views: Sequence[memoryview], spans: Sequence[int]) -> list[memoryview]:
    """The sectors of each page that are meant."""
    size = blkif.SECTOR_SIZE
    return [view[(span & 0xFF) * size : ((span >> 8) + 1) * size] for view, span in zip(views, spans, strict=True)]
