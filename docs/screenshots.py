"""`python docs/screenshots.py`: takes the pictures in docs/images, of the tool as it runs in a terminal.

An embedded machine has some domains that share pages; what the tool paints goes to a terminal emulator (pyte), whose
cells become SVG. Bars and sparks are drawn, since not every browser has them in its fonts.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from html import escape
from itertools import groupby
from pathlib import Path

import pyte
from pyte.screens import Char

import xengrant
from xengrant.embedded import Machine

IMAGES = Path(__file__).parent / "images"
DIRECTORY = "/tmp/xen-demo"
DELAY = 0.25
LOOKS = 60

NAMES = ("web", "database", "mail", "router", "builder", "desktop", "vault", "monitor", "backup")
# Who grants to whom how many pages, how many of them are mapped, and whether the peer may write.
GRANTS = (
    (1, 0, 1150, 900, True),
    (1, 2, 384, 384, True),
    (1, 4, 96, 64, False),
    (1, 3, 48, 32, True),
    (1, 7, 16, 16, False),
    (1, 8, 24, 24, False),
    (2, 0, 11200, 10400, True),
    (2, 9, 1024, 700, False),
    (3, 0, 420, 380, True),
    (3, 4, 32, 32, True),
    (4, 0, 2048, 2048, True),
    (4, 1, 256, 200, True),
    (4, 6, 256, 128, True),
    (5, 0, 640, 512, True),
    (6, 0, 30300, 28800, True),
    (6, 4, 64, 64, True),
    (7, 0, 48, 40, False),
    (8, 0, 128, 128, False),
    (8, 2, 16, 16, False),
    (9, 0, 2600, 2300, True),
)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with demo() as machine:
        with Terminal(machine, 118, 15, "top", "-d", str(DELAY)) as terminal:
            terminal.read(DELAY * LOOKS)
            save("top", terminal.screen, "xengrant top")
        with Terminal(machine, 100, 22, "top", "-d", str(DELAY)) as terminal:
            terminal.press("/web\r\r")
            terminal.read(DELAY * 90)
            save("top-peers", terminal.screen, "xengrant top: the peers of a domain")
        with Terminal(machine, 110, 16, "ls") as terminal:
            terminal.read(math.inf)
            save("ls", terminal.screen, "xengrant ls")


@contextlib.contextmanager
def demo() -> Iterator[Machine]:
    """A machine whose domains share pages, some of them all the time others."""
    with contextlib.ExitStack() as stack:
        machine = stack.enter_context(Machine(DIRECTORY, gntalloc_limit=40_000))
        for domid, name in enumerate(NAMES, 1):
            machine.create(domid, name=name)
        domains = [stack.enter_context(xengrant.connect(machine.url(domid))) for domid in range(len(NAMES) + 1)]
        for granter, peer, pages, mapped, writable in GRANTS:
            gntshr = stack.enter_context(domains[granter].gntshr())
            share = stack.enter_context(gntshr.share_pages(peer, pages, writable=writable))
            gnttab = stack.enter_context(domains[peer].gnttab())
            grants = [xengrant.Grant(granter, ref) for ref in share.refs[:mapped]]
            stack.enter_context(gnttab.map(grants, writable=writable))
        end = threading.Event()
        busy = [
            threading.Thread(target=vary, args=(domains[granter], peer, pages, end))
            for granter, peer, pages in (
                (1, 4, lambda turn: 600 + 500 * math.sin(turn / 9) + 90 * math.sin(turn * 1.3)),
                (5, 0, lambda turn: 70 * (turn % 12)),
                (4, 1, lambda turn: 90 + 60 * math.sin(turn / 2) + 30 * math.sin(turn * 1.7)),
                (9, 2, lambda turn: 300 if turn // 9 % 2 else 4),
                (2, 1, lambda turn: 40 * min(turn, 50)),
                (7, 0, lambda turn: 8 if turn % 7 else 20),
            )
        ]
        for thread in busy:
            thread.start()
        try:
            yield machine
        finally:
            end.set()
            for thread in busy:
                thread.join()


def vary(domain: xengrant.Domain, peer: int, pages: Callable[[int], float], end: threading.Event) -> None:
    """Share as many pages as it says for each turn."""
    with domain.gntshr() as gntshr, contextlib.ExitStack() as stack:
        shares: list[xengrant.Share] = []
        turn = 0
        while not end.is_set():
            wanted = max(round(pages(turn)), 0) // 4
            while len(shares) < wanted:
                shares.append(stack.enter_context(gntshr.share_pages(peer, 4, writable=True)))
            while len(shares) > wanted:
                shares.pop().close()
            turn += 1
            end.wait(DELAY)


class _Screen(pyte.Screen):
    """pyte's, and the scrolling that curses makes use of on other terminals than Linux' console."""

    def scroll_up(self, lines: int = 1) -> None:
        before = self.cursor.y
        self.cursor.y = self.margins.bottom if self.margins else self.lines - 1
        for _ in range(lines):
            self.index()
        self.cursor.y = before

    def scroll_down(self, lines: int = 1) -> None:
        before = self.cursor.y
        self.cursor.y = self.margins.top if self.margins else 0
        for _ in range(lines):
            self.reverse_index()
        self.cursor.y = before


class _Stream(pyte.ByteStream):
    csi = {**pyte.ByteStream.csi, "S": "scroll_up", "T": "scroll_down"}  # noqa: RUF012
    events = pyte.ByteStream.events | {"scroll_up", "scroll_down"}


class Terminal:
    """A terminal in which dom0's user has typed `xengrant ARGUMENTS`."""

    def __init__(self, machine: Machine, columns: int, lines: int, *arguments: str) -> None:
        self.screen = _Screen(columns, lines)
        self._stream = _Stream(self.screen)
        self._stream.feed(f"\x1b[1;32mdom0#\x1b[0m xengrant {' '.join(arguments)}\r\n".encode())
        self._own, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
        environment |= {"TERM": "screen-256color", "LC_ALL": "C.UTF-8", "XENGRANT_URL": machine.url(0)}
        command = [sys.executable, "-m", "xengrant", *arguments]
        self._process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment)
        os.close(its)

    def press(self, keys: str) -> None:
        os.write(self._own, keys.encode())

    def read(self, seconds: float) -> None:
        """Let it go on for so long, at most to its end."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if select.select([self._own], [], [], min(left, 60))[0]:
                try:
                    self._stream.feed(os.read(self._own, 65536))
                except OSError:  # EIO: it has ended
                    return

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._own)


CELL, LINE, PAD, BAR = 8.4, 19, 18, 34
TEXT, GROUND, FRAME, DIM = "#d5dbe7", "#12161f", "#1b212d", "#8b95a7"
COLOURS = {
    "black": "#12161f",
    "red": "#ff6b6b",
    "green": "#5fd787",
    "brown": "#f2c55c",
    "blue": "#6aa8ff",
    "magenta": "#d787d7",
    "cyan": "#5fd7ff",
    "white": TEXT,
}
# Parts of a cell: x, y, width, height.
LEVELS = {char: (0.04, 1 - level / 8, 0.92, level / 8) for level, char in enumerate("▁▂▃▄▅▆▇█", 1)}
SHAPES = LEVELS | {"━": (0, 0.42, 1, 0.2), "╾": (0, 0.42, 0.5, 0.2), "─": (0, 0.49, 1, 0.06)}


def save(name: str, screen: pyte.Screen, title: str) -> None:
    (IMAGES / f"{name}.svg").write_text(svg(screen, title))


def svg(screen: pyte.Screen, title: str) -> str:
    """The screen as a window."""
    width, height = round(screen.columns * CELL + 2 * PAD), screen.lines * LINE + BAR + PAD
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' role="img" aria-label="{escape(title)}">',
        "<style>text{font:14px ui-monospace,'SF Mono','JetBrains Mono','DejaVu Sans Mono',Menlo,Consolas,monospace;"
        "white-space:pre}</style>",
        f'<rect width="{width}" height="{height}" rx="9" fill="{GROUND}"/>',
        f'<path d="M0 {BAR - 8}V9a9 9 0 0 1 9-9h{width - 18}a9 9 0 0 1 9 9v{BAR - 17}z" fill="{FRAME}"/>',
        *(f'<circle cx="{18 + 19 * at}" cy="13" r="5.5" fill="{fill}"/>' for at, fill in enumerate(_BUTTONS)),
        f'<text x="{width / 2:g}" y="18" text-anchor="middle" fill="{DIM}" font-size="12">{escape(title)}</text>',
    ]
    for y in range(screen.lines):
        parts += _line([screen.buffer[y][x] for x in range(screen.columns)], BAR + y * LINE)
    return "\n".join([*parts, "</svg>", ""])


_BUTTONS = ("#ff5f57", "#febc2e", "#28c840")


def _line(cells: list[Char], y: int) -> Iterator[str]:
    """The grounds of a line's cells, then what is on them; neighbours that look alike are one element."""
    x = 0
    runs = []
    for (look, drawn), run in groupby(cells, lambda cell: (_look(cell), cell.data if cell.data in SHAPES else "")):
        text = "".join(cell.data or " " for cell in run)
        runs.append((x, len(text), look, drawn, text))
        x += len(text)
    for x, length, (_, ground, _), _, _ in runs:
        if ground != GROUND:
            left, wide = PAD + x * CELL - 0.2, length * CELL + 0.4
            yield f'<rect x="{left:.1f}" y="{y}" width="{wide:.1f}" height="{LINE}" fill="{ground}"/>'
    for x, length, (ink, _, bold), drawn, text in runs:
        if drawn:
            yield from _shape(drawn, x, y, length, ink)
        else:
            yield from _words(text, x, y, ink, bold=bold)


def _words(text: str, x: int, y: int, ink: str, *, bold: bool) -> Iterator[str]:
    """Each word at its place, whatever the font's width is."""
    weight = ' font-weight="700"' if bold else ""
    for word in re.finditer(r"\S+", text):
        yield (
            f'<text x="{PAD + (x + word.start()) * CELL:.1f}" y="{y + 14}" textLength="{len(word[0]) * CELL:.1f}" '
            f'fill="{ink}"{weight}>{escape(word[0])}</text>'
        )


def _shape(char: str, x: int, y: int, length: int, ink: str) -> Iterator[str]:
    """A bar or a spark. Lines go through; the columns of a chart stand apart, and on the line below."""
    if char == "╾":
        yield from _shape("─", x, y, length, DIM)
    left, top, width, height = SHAPES[char]
    wide = [(x + at, 1) for at in range(length)] if char in LEVELS else [(x, length)]
    high = height * LINE + (0.5 if char in LEVELS else 0)
    for at, cells in wide:
        yield (
            f'<rect x="{PAD + (at + left) * CELL:.1f}" y="{y + top * LINE:.1f}" '
            f'width="{(width + cells - 1) * CELL:.1f}" height="{high:.1f}" fill="{ink}"/>'
        )


def _look(cell: Char) -> tuple[str, str, bool]:
    """(ink, ground, bold) of a cell."""
    ink, ground = _colour(cell.fg, TEXT), _colour(cell.bg, GROUND)
    return (ground, ink, cell.bold) if cell.reverse else (ink, ground, cell.bold)


def _colour(name: str, default: str) -> str:
    if name == "default":
        return default
    return COLOURS.get(name.removeprefix("bright"), f"#{name}")


if __name__ == "__main__":
    main()
