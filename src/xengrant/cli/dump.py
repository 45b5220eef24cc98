"""Bytes of others made fit for a terminal: whatever a peer wrote, no control character of it gets there.

Called by everything in cli that prints; calls nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

__all__ = ["escape", "hexdump", "printable"]

_WIDTH = 16


def escape(data: bytes) -> str:
    r"""ASCII as it is, the rest as \xNN, a backslash as two: the bytes can be told from the text."""
    return "".join("\\\\" if byte == 0x5C else chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in data)


def printable(text: str) -> str:
    r"""Text in which every character that does not print (control, direction, line ends) is written \xNN or \uNNNN."""
    return "".join(
        char if char.isprintable() else f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{ord(char):04x}"
        for char in text
    )


def hexdump(pieces: Iterable[bytes]) -> Iterator[str]:
    """Lines as of ``hexdump -C``: offset, 16 bytes, their text; equal lines are one ``*``.

    Each piece but the last is a multiple of 16 bytes long.
    """
    offset = 0
    previous = b""
    starred = False
    for piece in pieces:
        for at in range(0, len(piece), _WIDTH):
            row = piece[at : at + _WIDTH]
            if row == previous:
                if not starred:
                    yield "*"
                starred = True
            else:
                yield _line(offset, row)
                starred = False
            previous = row
            offset += len(row)
    yield f"{offset:08x}"


def _line(offset: int, row: bytes) -> str:
    halves = f"{row[:8].hex(' '):23}  {row[8:].hex(' '):23}"
    text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
    return f"{offset:08x}  {halves}  |{text}|"
