"""Pages and grant tables, each in the middle of being used again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import xengrant
from xengrant.gntshr import UnmapNotify
from xengrant.gnttab import CopySegment

from .thing import Domains, Thing, bound, churning, silent

__all__ = ["foreign_table", "mapped", "share", "table"]


def _write(memory: Any, value: int = 1) -> None:
    memory[0] = value


@contextmanager
def share(there: Domains) -> Iterator[Thing]:
    """A share with a notification, mapped by its peer, while others are shared and closed."""
    with (
        bound(there.one, there.two) as (channels, port, other),
        there.one.gntshr() as gntshr,
        gntshr.share_pages(2, 2, writable=True, notify=UnmapNotify(clear_byte=0, port=port)) as share,
        there.two.gnttab() as gnttab,
        gnttab.map([(1, ref) for ref in share.refs], writable=True) as mapped,
    ):
        share.mapping[:5] = b"\x07kept"

        def check() -> None:
            assert mapped.mapping[:5] == share.mapping[:5] == b"\x07kept"
            silent(other)
            gntshr.share_pages(2, writable=False).close()

        yield churning(
            lambda: gntshr.share_pages(2, writable=True).close(),
            check,
            {
                "share_pages": lambda: gntshr.share_pages(2, writable=True),
                "share_pages with notify": lambda: gntshr.share_pages(2, writable=True, notify=UnmapNotify(0)),
                "load of a Share": lambda: share.mapping[0],
                "store in a Share": lambda: _write(share.mapping),
                "a view of a Share": lambda: memoryview(share.mapping),
                "Gntshr.munmap": lambda: gntshr.munmap(share),
                "Gntshr.fileno": gntshr.fileno,
                "with share": share.__enter__,
            },
            [share.close, gntshr.close, port.close, channels.close],
        )


@contextmanager
def mapped(there: Domains) -> Iterator[Thing]:
    """A map with a notification, while others are mapped, copied and unmapped."""
    with (
        bound(there.two, there.one) as (_, port, other),
        there.one.gntshr() as gntshr,
        gntshr.share_pages(2, 2, writable=True) as share,
        there.two.gnttab() as gnttab,
        gnttab.map((1, share.refs[0]), writable=True, notify=UnmapNotify(clear_byte=0, port=port)) as mapped,
    ):
        share.mapping[:5] = b"\x07kept"
        second = xengrant.Grant(1, share.refs[1])
        copied = bytearray(8)

        def step() -> None:
            with gnttab.map(second, writable=False) as again:
                assert again.mapping[0] == 0
            assert gnttab.copy([CopySegment(second, copied, 8)]) == [0]

        def check() -> None:
            assert mapped.mapping[:5] == share.mapping[:5] == b"\x07kept"
            silent(other)
            step()

        yield churning(
            step,
            check,
            {
                "map": lambda: gnttab.map(second, writable=False),
                "copy": lambda: gnttab.copy([CopySegment(second, bytearray(8), 8)]),
                "load of a Mapped": lambda: mapped.mapping[0],
                "store in a Mapped": lambda: _write(mapped.mapping),
                "Gnttab.unmap": lambda: gnttab.unmap(mapped),
                "Gnttab.fileno": gnttab.fileno,
            },
            [mapped.close, gnttab.close],
        )


@contextmanager
def table(there: Domains) -> Iterator[Thing]:
    """The grant table of a program that is its domain's kernel, while references come and go."""
    with xengrant.connect(there.url(3, "&kernel=1")) as kernel, there.two.gnttab() as gnttab:
        table = kernel.grant_table()
        held, other = table.get_n_nowait(2)
        page = kernel.alloc_pages(1)[0]
        table.grant_access(held, 2, page, writable=True)

        def step() -> None:
            ref = table.get_nowait()
            assert ref is not None
            table.grant_access(ref, 2, page, writable=False)
            table.end_access(ref)
            table.put(ref)

        def check() -> None:
            page.mapping[0] = 7
            with gnttab.map((3, held), writable=True) as mapped:
                assert mapped.mapping[0] == 7
            step()

        yield churning(
            step,
            check,
            {
                "GrantTable.get_nowait": table.get_nowait,
                "GrantTable.get_n_nowait": lambda: table.get_n_nowait(2),
                "GrantTable.put": lambda: table.put(other),
                "GrantTable.grant_access": lambda: table.grant_access(other, 2, page, writable=True),
                "GrantTable.end_access": lambda: table.end_access(held),
                "GrantTable.read": lambda: table.read(held),
                "list(GrantTable)": lambda: list(table),
                "load of a Page": lambda: page.mapping[0],
                "grant_table": kernel.grant_table,
                "alloc_pages": lambda: kernel.alloc_pages(1),
            },
            [page.close, kernel.close],
        )
        table.end_access(held)
        page.close()


@contextmanager
def foreign_table(there: Domains) -> Iterator[Thing]:
    """dom0's view of another domain's table, while it looks."""
    with (
        there.one.gntshr() as gntshr,
        gntshr.share_pages(2, 3, writable=True) as share,
        there.zero.grant_table(of=1) as table,
    ):

        def check() -> None:
            assert set(share.refs) <= {entry.ref for entry in table.grants()}

        refused: dict[str, Callable[[], object]] = {
            "ForeignGrantTable.refresh": table.refresh,
            "ForeignGrantTable.grants": table.grants,
            "ForeignGrantTable.read": lambda: table.read(share.refs[0]),
        }
        yield churning(table.refresh, check, refused, [table.close])
