"""`xengrant top` on a terminal: reads keys, looks at each delay, and paints the lines that changed. All of curses."""

from __future__ import annotations

import contextlib
import curses
import locale
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from xengrant.cli.top.keys import press
from xengrant.cli.top.state import State, next_look
from xengrant.cli.top.text import FANCY, Line
from xengrant.cli.top.view import fitted, lines

__all__ = ["lacking", "show"]

_ESCDELAY = 100  # ms that the rest of a key's sequence may take; curses would wait a second for a lone Esc

_NAMES: dict[int | str, str] = {
    curses.KEY_UP: "up",
    curses.KEY_DOWN: "down",
    curses.KEY_LEFT: "left",
    curses.KEY_RIGHT: "right",
    curses.KEY_PPAGE: "pgup",
    curses.KEY_NPAGE: "pgdn",
    curses.KEY_HOME: "home",
    curses.KEY_END: "end",
    curses.KEY_ENTER: "enter",
    curses.KEY_BACKSPACE: "backspace",
    "\n": "enter",
    "\r": "enter",
    "\x1b": "esc",
    "\x7f": "backspace",
    "\b": "backspace",
    "\x15": "clear",
    "\x0c": "redraw",
}

# Style: the colour of text and background among 256, the same among 8 (-1 is the terminal's own), attributes.
_STYLES: dict[str, tuple[int, int, int, int, int]] = {
    "title": (81, -1, curses.COLOR_CYAN, -1, curses.A_BOLD),
    "number": (-1, -1, -1, -1, curses.A_BOLD),
    "name": (-1, -1, -1, -1, curses.A_BOLD),
    "dim": (245, -1, -1, -1, 0),
    "head": (252, 237, -1, -1, 0),
    "sorted": (221, 237, -1, -1, curses.A_BOLD),
    "cursor": (231, 24, -1, -1, curses.A_BOLD),
    "key": (81, -1, curses.COLOR_CYAN, -1, curses.A_BOLD),
    "alert": (16, 221, curses.COLOR_BLACK, curses.COLOR_YELLOW, curses.A_BOLD),
    "good": (78, -1, curses.COLOR_GREEN, -1, 0),
    "warn": (221, -1, curses.COLOR_YELLOW, -1, 0),
    "bad": (203, -1, curses.COLOR_RED, -1, curses.A_BOLD),
    "up": (78, -1, curses.COLOR_GREEN, -1, 0),
    "down": (176, -1, curses.COLOR_MAGENTA, -1, 0),
    "spark": (81, -1, curses.COLOR_CYAN, -1, 0),
}
# What must be told apart without colours, too.
_ATTRIBUTES = {
    "head": curses.A_REVERSE,
    "sorted": curses.A_REVERSE | curses.A_BOLD,
    "cursor": curses.A_REVERSE | curses.A_BOLD,
    "alert": curses.A_REVERSE | curses.A_BOLD,
    "dim": curses.A_DIM,
}


def lacking() -> str | None:
    """Why this terminal cannot show it, if it cannot."""
    term = os.environ.get("TERM") or "dumb"
    try:
        curses.setupterm(term, sys.stdout.fileno())
    except curses.error:
        return f"nothing is known of a terminal {term!r}"
    return None if curses.tigetstr("cup") else f"on a terminal {term!r} nothing can be painted"


def show(state: State, look: Callable[[State], State], ending: int, *, iterations: int | None = None) -> None:
    """Show the state and what becomes of it, until q, or so many looks (the one in `state` counts).

    It ends, too, when the descriptor `ending` can be read.
    """
    locale.setlocale(locale.LC_CTYPE, "")
    state = replace(state, ascii=not _encodes_marks())
    with _Events(ending) as events, _terminal() as window:
        painter = _Painter(window)
        looks, due = 1, time.monotonic() + state.delay
        while not state.quit:
            height, width = window.getmaxyx()
            state = fitted(state, width, height)
            painter.paint(lines(state, width, height))
            events.wait(max(due - time.monotonic(), 0))
            if events.ended:
                return
            if events.resized():
                painter.resize()
            was = state
            state = _typed(state, window, painter)
            if state.delay != was.delay:
                due = min(due, time.monotonic() + state.delay)
            elif was.paused and not state.paused:
                due = time.monotonic()
            if time.monotonic() >= due and not state.quit:
                if looks == iterations:
                    return
                looked = look(state)  # in a pause too, since it lets go of the tables of domains that are gone
                if not state.paused:
                    state, looks = looked, looks + 1
                due = next_look(due, state.delay, time.monotonic())


class _Events:
    """What `show` waits for: keys, signals that end it, a new size, and the end of the terminal itself."""

    def __init__(self, ending: int) -> None:
        self.ended = False
        self._ending = ending
        self._size_reader, self._size_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # Before curses starts, which else takes this signal, and tells of it only where it is asked for a key.
        self._before = signal.signal(signal.SIGWINCH, self._on_resize)
        self._poll = select.poll()
        for descriptor in (sys.stdin.fileno(), ending, self._size_reader):
            self._poll.register(descriptor, select.POLLIN)

    def wait(self, seconds: float | None) -> None:
        for descriptor, event in self._poll.poll(None if seconds is None else seconds * 1000):
            if descriptor == self._ending or event & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
                self.ended = True

    def resized(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            return bool(os.read(self._size_reader, 4096))
        return False

    def _on_resize(self, number: int, frame: object) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._size_writer, b"!")

    def __enter__(self) -> _Events:
        return self

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGWINCH, self._before)
        os.close(self._size_reader)
        os.close(self._size_writer)


class _Painter:
    """The window, and which lines it shows."""

    def __init__(self, window: curses.window) -> None:
        self._window = window
        self._shown: list[Line] = []
        self._attributes = _attributes()

    def paint(self, wanted: list[Line]) -> None:
        shown = self._shown if len(self._shown) == len(wanted) else [None] * len(wanted)
        for y, (line, old) in enumerate(zip(wanted, shown, strict=True)):
            if line != old:
                self._paint_line(y, line)
        self._shown = wanted
        self._window.refresh()

    def forget(self) -> None:
        """Paint everything again: something else wrote to the terminal."""
        self._shown = []
        self._window.clear()

    def resize(self) -> None:
        with contextlib.suppress(OSError, curses.error):
            size = os.get_terminal_size(sys.stdout.fileno())
            if size.lines and size.columns:
                curses.resize_term(size.lines, size.columns)
        self.forget()

    def _paint_line(self, y: int, line: Line) -> None:
        self._window.move(y, 0)
        self._window.clrtoeol()
        with contextlib.suppress(curses.error):  # after the last column of the last line there is no place to go
            for text, style in line:
                self._window.addstr(text, self._attributes.get(style, curses.A_NORMAL))


def _typed(state: State, window: curses.window, painter: _Painter) -> State:
    """The state after all keys that were pressed by now."""
    while True:
        try:
            pressed = window.get_wch()
        except curses.error:
            return state
        key = _NAMES.get(pressed, pressed)
        if key == "redraw":
            painter.forget()
        elif isinstance(key, str):
            state = press(state, key)


@contextlib.contextmanager
def _terminal() -> Iterator[curses.window]:
    """The terminal in curses' hands, and as it was afterwards."""
    window = curses.initscr()
    try:
        curses.noecho()
        curses.cbreak()
        window.keypad(True)
        window.nodelay(True)
        if "ESCDELAY" not in os.environ:
            curses.set_escdelay(_ESCDELAY)
        with contextlib.suppress(curses.error):
            curses.curs_set(0)
        yield window
    finally:
        with contextlib.suppress(curses.error):  # the terminal may be gone
            window.keypad(False)
            curses.nocbreak()
            curses.echo()
            curses.endwin()


def _attributes() -> dict[str, int]:
    """What each style is on this terminal."""
    coloured = curses.has_colors() and not os.environ.get("NO_COLOR")
    if not coloured:
        return {style: rest[-1] for style, rest in _STYLES.items()} | _ATTRIBUTES
    curses.start_color()
    curses.use_default_colors()
    many = curses.COLORS >= 256
    found = {}
    for pair, (style, (text, ground, text8, ground8, attributes)) in enumerate(_STYLES.items(), 1):
        curses.init_pair(pair, *((text, ground) if many else (text8, ground8)))
        marked = attributes if many or ground8 != -1 else _ATTRIBUTES.get(style, attributes)
        found[style] = curses.color_pair(pair) | marked
    return found


def _encodes_marks() -> bool:
    # The locale's, which curses writes in; Python's own stdout may be of another mind.
    try:
        "".join(FANCY).encode(locale.nl_langinfo(locale.CODESET))
    except (LookupError, UnicodeEncodeError):
        return False
    return True
