"""What the tool prints: data on stdout, messages on stderr, JSON lines where asked; called by every subcommand.

Tables and the spinner are rich's where it is installed and a terminal is there; otherwise plain text, so that what a
script reads never depends on what is installed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from xengrant.cli.dump import printable

__all__ = [
    "ReaderGoneError",
    "emit",
    "emit_json",
    "emit_raw",
    "emit_table",
    "emit_text",
    "naming",
    "open_closed",
    "rich_on",
    "say",
    "say_lines",
    "say_text",
    "style",
    "symbol",
    "waiting",
]

_SGR = {"green": "32", "red": "31", "yellow": "33", "cyan": "36", "bold": "1", "dim": "2"}
# rich draws a thousand rows a second, and a grant table may have half a million.
_RICH_ROWS = 500
_RICH_GAP = 3  # columns between two of a table's
_RICH_FOLDED = 24  # columns that are enough for the last one


class ReaderGoneError(Exception):
    """Whoever read stdout has gone: nothing is left to say."""


def emit(text: str = "") -> None:
    r"""One line of data on stdout, at once; what the charset there has not is written `\xNN` or `\uNNNN`."""
    emit_text(text + "\n")


def emit_text(text: str) -> None:
    """As `emit`, without the line's end."""
    with _reader_may_go():
        print(_encodable(text), end="", flush=True)


def emit_json(**fields: Any) -> None:
    """One JSON object on a line of its own; ASCII only, so no byte of a peer's reaches a terminal as it is."""
    emit(json.dumps(fields))


def emit_raw(data: bytes) -> None:
    """Bytes as they are. The caller has made sure that stdout is no terminal, or that they do it no harm."""
    with _reader_may_go():
        rest = memoryview(data)
        while rest:
            rest = rest[_accepted(rest) :]
        while not _flushed():
            pass


def open_closed() -> None:
    """Have stdin, stdout and stderr be something where the caller closed them (``>&-``): /dev/null.

    Else a device that is opened later would have their number, and messages would go there.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest that is free: its own
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def say(text: str) -> None:
    """A message on stderr, which may be gone too."""
    say_text(f"{printable(text)}\n")


def say_text(text: str) -> None:
    """As `say`, without the line's end, and of a text that does a terminal no harm."""
    try:
        print(text, end="", file=sys.stderr, flush=True)
    except OSError:
        _forget(sys.stderr)


def say_lines(pieces: Iterable[str]) -> None:
    """A traceback, say, on stderr."""
    for line in "".join(pieces).splitlines():
        say(line)


def emit_table(headers: Sequence[str], rows: Sequence[Sequence[str]], styles: Mapping[str, str] | None = None) -> None:
    """Aligned columns; a cell whose text is a key of `styles` has that colour."""
    rows = [[_encodable(printable(cell)) for cell in row] for row in rows]
    if len(rows) <= _RICH_ROWS and rich_on(sys.stdout) and _rich_table(headers, rows, styles or {}):
        return
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    for row in [headers, *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        for i, cell in enumerate(row):
            colour = (styles or {}).get(cell)
            if colour and row is not headers:
                cells[i] = style(cell, colour) + cells[i][len(cell) :]
        emit("  ".join(cells).rstrip())


def style(text: str, *names: str, stream: TextIO | None = None) -> str:
    """`text` in a colour where `stream` (stdout) shows colours and NO_COLOR is not set."""
    if not _coloured(stream or sys.stdout):
        return text
    return f"\x1b[{';'.join(_SGR[name] for name in names)}m{text}\x1b[0m"


def symbol(fancy: str, plain: str) -> str:
    """`fancy` where stdout can encode it."""
    try:
        fancy.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return plain
    return fancy


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Say on stderr what is being waited for: a spinner on a terminal that has rich, else one line."""
    if not rich_on(sys.stderr):
        say(text)
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(printable(text))):
        yield


@contextlib.contextmanager
def naming(file: str) -> Iterator[None]:
    """What goes wrong in the block goes wrong with this file, whatever others it takes to write it."""
    try:
        yield
    except OSError as error:
        error.filename = file
        raise


def _encodable(text: str) -> str:
    # Names are others' to choose, and the locale is not theirs: neither may end the tool halfway.
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding, sys.stdout.errors or "strict")
    except UnicodeEncodeError:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


@contextlib.contextmanager
def _reader_may_go() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _forget(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise ReaderGoneError from None
        raise OSError(error.errno, f"cannot write to stdout: {error.strerror}") from error


def _forget(stream: TextIO) -> None:
    """What is still buffered would fail again when the interpreter ends."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def _accepted(data: memoryview) -> int:
    """Offer it to stdout: how much was taken. Waits where nothing was."""
    try:
        # Without Python's buffer (-u) it is write(2): it may take a part, and None says that it is full.
        taken: int | None = sys.stdout.buffer.write(data)
    except BlockingIOError as full:
        taken = full.characters_written
    if not taken:
        _wait_writable()
    return taken or 0


def _flushed() -> bool:
    try:
        sys.stdout.buffer.flush()
    except BlockingIOError:
        _wait_writable()
        return False
    return True


def _wait_writable() -> None:
    poller = select.poll()
    poller.register(sys.stdout.buffer.fileno(), select.POLLOUT)
    poller.poll()


def _rich_table(headers: Sequence[str], rows: Sequence[Sequence[str]], styles: Mapping[str, str]) -> bool:
    """Whether it fits: only the last column is folded, and where that is not enough nothing is printed."""
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, header in enumerate(headers, 1):
        table.add_column(header, overflow="fold", no_wrap=i < len(headers))
    for row in rows:
        table.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row))
    console = Console()
    *widths, last = (max(map(cell_len, column)) for column in zip(headers, *rows, strict=True))
    if sum(widths) + _RICH_GAP * len(headers) + min(last, _RICH_FOLDED) > console.width:
        return False
    with _reader_may_go():
        console.print(table)
    return True


def rich_on(stream: TextIO) -> bool:
    """Whether rich may draw there."""
    # rich would still write bold and dim where NO_COLOR is set.
    return _coloured(stream) and importlib.util.find_spec("rich") is not None


def _coloured(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
