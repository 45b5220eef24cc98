"""What reaches a terminal: dumps and escapes."""

from __future__ import annotations

import subprocess
from shutil import which

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xengrant.cli.dump import escape, hexdump, printable

HOSTILE = bytes(range(256)) + b"\x1b]0;owned\x07\x1b[2J\r\n\\x41"


def test_a_dump_shows_offsets_bytes_and_their_text() -> None:
    lines = list(hexdump([b"hello, world\n\x00\x1b[2J"]))
    assert lines == [
        "00000000  68 65 6c 6c 6f 2c 20 77  6f 72 6c 64 0a 00 1b 5b  |hello, world...[|",
        "00000010  32 4a                                             |2J|",
        "00000012",
    ]


def test_a_dump_squeezes_equal_lines_across_pieces() -> None:
    assert list(hexdump([bytes(4096), bytes(4096)])) == [
        "00000000  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|",
        "*",
        "00002000",
    ]


@pytest.mark.skipif(which("hexdump") is None, reason="hexdump (bsdextrautils) is not installed")
@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from([bytes(16), b"A" * 16, HOSTILE[:16], HOSTILE[16:32]]), min_size=1), st.binary(max_size=15)
)
def test_a_dump_is_hexdumps(rows: list[bytes], rest: bytes) -> None:
    data = b"".join(rows) + rest
    wanted = subprocess.run(["hexdump", "-C"], input=data, stdout=subprocess.PIPE, check=True).stdout
    assert "\n".join(hexdump([data])) + "\n" == wanted.decode()


@given(st.binary())
def test_escaped_bytes_are_printable_ascii_and_can_be_told_apart(data: bytes) -> None:
    text = escape(data)
    assert text.isascii()
    assert text == "" or text.isprintable()
    assert text.encode().decode("unicode_escape").encode("latin-1") == data


@given(st.text())
def test_printable_text_prints_on_one_line(text: str) -> None:
    assert all(char.isprintable() for char in printable(text))


def test_printable_text_keeps_what_prints() -> None:
    assert printable("größe ✓ \\") == "größe ✓ \\"
    assert printable("a\x1b[2Jb\u202ec\r\n") == "a\\x1b[2Jb\\u202ec\\x0d\\x0a"
