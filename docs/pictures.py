"""`python docs/pictures.py`: draws the pictures in docs/images that explain: domains and a page, rings, a grant's life.

Each is a card with a background of its own, so that it reads on light and on dark pages. tests/docs/test_pictures.py
sees that what is committed is what this draws. Standard library only.
"""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

IMAGES = Path(__file__).parent / "images"

INK, FAINT, PAPER = "#1f2937", "#6b7280", "#ffffff"
BLUE, ORANGE, GREEN, RED, GREY = "#2563eb", "#c2410c", "#15803d", "#b91c1c", "#9ca3af"
PALE = {BLUE: "#dbeafe", ORANGE: "#ffedd5", GREEN: "#dcfce7", RED: "#fee2e2", GREY: "#f3f4f6"}
SANS = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, 'SF Mono', Menlo, 'DejaVu Sans Mono', monospace"


class Picture:
    """A card of `width` by `height` on which shapes are drawn one over the other; positions are in pixels."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-label="{escape(title)}">\n<title>{escape(title)}</title>\n'
        )
        self._shapes: list[str] = []
        self.box(1, 1, width - 2, height - 2, line="#d1d5db", fill=PAPER, round=12)

    def box(self, x: float, y: float, w: float, h: float, *, line: str, fill: str, round: float = 8) -> None:
        self._shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{round:g}" fill="{fill}" stroke="{line}" '
            'stroke-width="1.5"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 14,
        color: str = INK,
        at: str = "middle",
        bold: bool = False,
        mono: bool = False,
    ) -> None:
        weight = ' font-weight="600"' if bold else ""
        family = MONO if mono else SANS
        self._shapes.append(
            f'<text x="{x:g}" y="{y:g}" font-family="{family}" font-size="{size:g}" fill="{color}" '
            f'text-anchor="{at}"{weight}>{escape(words)}</text>'
        )

    def arrow(self, *points: tuple[float, float], color: str = INK, both: bool = False, dash: str = "") -> None:
        """A line through the points with a head at its end, or at both."""
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self._shapes.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2" stroke-linejoin="round"{dashed}/>'
        )
        self._head_of_arrow(points[-2], points[-1], color)
        if both:
            self._head_of_arrow(points[1], points[0], color)

    def _head_of_arrow(self, before: tuple[float, float], tip: tuple[float, float], color: str) -> None:
        angle = math.atan2(tip[1] - before[1], tip[0] - before[0])
        corners = [tip]
        for side in (2.65, -2.65):
            corners.append((tip[0] + 10 * math.cos(angle + side), tip[1] + 10 * math.sin(angle + side)))
        self._shapes.append(f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in corners)}" fill="{color}"/>')

    def slice(self, cx: float, cy: float, inner: float, outer: float, start: float, end: float, fill: str) -> None:
        """A piece of a ring between two angles, in turns clockwise from the top."""

        def on(radius: float, turn: float) -> str:
            angle = (turn - 0.25) * math.tau
            return f"{cx + radius * math.cos(angle):.1f},{cy + radius * math.sin(angle):.1f}"

        self._shapes.append(
            f'<path d="M{on(outer, start)} A{outer:g},{outer:g} 0 0 1 {on(outer, end)} L{on(inner, end)} '
            f'A{inner:g},{inner:g} 0 0 0 {on(inner, start)} Z" fill="{fill}" stroke="{PAPER}" stroke-width="2"/>'
        )

    def svg(self) -> str:
        return self._head + "\n".join(self._shapes) + "\n</svg>\n"


def two_domains() -> str:
    """A page of domain 1 that domain 2 maps, the entry that lets it, and the event channel."""
    picture = Picture(760, 420, "Two domains and a page: domain 1 grants it, domain 2 maps it")
    for x, name, color in ((24, "domain 1", BLUE), (496, "domain 2", ORANGE)):
        picture.box(x, 20, 240, 176, line=color, fill=PALE[color])
        picture.text(x + 120, 44, name, bold=True, size=16, color=color)
    for x, lines in (
        (144, ("share = gntshr.share_pages(2, …)", "share.mapping[:5] = b\"hello\"", "port.notify()")),
        (616, ("mapped = gnttab.map((1, 8), …)", "port.wait()", "mapped.mapping[:5]   # b\"hello\"")),
    ):  # fmt: skip
        picture.box(x - 112, 58, 224, 78, line=GREY, fill=PAPER)
        for i, line in enumerate(lines):
            picture.text(x - 104, 80 + 22 * i, line, mono=True, size=11, at="start")
    picture.text(144, 160, "a program", size=12, color=FAINT)
    picture.text(616, 160, "a program", size=12, color=FAINT)
    picture.text(144, 180, "Linux: /dev/xen/gntalloc", size=12, color=FAINT)
    picture.text(616, 180, "Linux: /dev/xen/gntdev", size=12, color=FAINT)

    picture.arrow((266, 96), (494, 96), color=GREEN, dash="6 4")
    picture.text(380, 84, "an event, through a", size=12, color=GREEN)
    picture.text(380, 116, "pair of ports", size=12, color=GREEN)

    picture.box(24, 300, 712, 100, line=GREY, fill=PALE[GREY])
    picture.text(44, 324, "Xen", bold=True, size=16, color=FAINT, at="start")
    picture.text(44, 346, "domain 1's grant table", size=12, color=FAINT, at="start")
    picture.text(44, 384, "ref", size=12, color=FAINT, at="start")
    for x, w, cell in ((70, 34, "8"), (104, 120, "for domain 2"), (224, 100, "may write"), (324, 130, "frame 0x4a31f")):
        picture.box(x, 366, w, 26, line=BLUE, fill=PAPER, round=0)
        picture.text(x + w / 2, 384, cell, size=12, mono=cell == "8")
    picture.arrow((454, 379), (520, 379), (520, 284), color=BLUE)

    picture.box(320, 226, 200, 58, line=INK, fill=PAPER, round=4)
    picture.text(420, 250, "one page of memory, 4096 bytes", size=12)
    picture.text(420, 270, "h e l l o …", mono=True, size=13)
    picture.arrow((144, 196), (144, 255), (318, 255), color=BLUE, both=True)
    picture.text(214, 246, "its own page", size=12, color=BLUE)
    picture.arrow((616, 196), (616, 255), (522, 255), color=ORANGE, both=True)
    picture.text(668, 246, "mapped", size=12, color=ORANGE)
    return picture.svg()


def ring() -> str:
    """A ring of 16 entries: who owns which, and the indices, shared and private."""
    picture = Picture(760, 360, "A ring of requests and responses: its slots and its indices")
    cx, cy, inner, outer = 190.0, 180.0, 72.0, 126.0
    owners = [*[GREEN] * 3, *[ORANGE] * 4, *[BLUE] * 4, *[GREY] * 5]
    for slot, color in enumerate(owners):
        picture.slice(cx, cy, inner, outer, slot / 16, (slot + 1) / 16, PALE[color] if color != GREY else "#e5e7eb")
        angle = ((slot + 0.5) / 16 - 0.25) * math.tau
        middle = (inner + outer) / 2
        picture.text(cx + middle * math.cos(angle), cy + middle * math.sin(angle) + 4, str(slot), size=12, color=color)
    picture.text(cx, cy - 4, "16 slots", size=14, bold=True)
    picture.text(cx, cy + 16, "index mod 16", size=12, color=FAINT)
    for turn, name, color in ((3, "rsp_prod", GREEN), (11, "req_prod", BLUE)):
        angle = (turn / 16 - 0.25) * math.tau
        tip = (cx + (outer + 4) * math.cos(angle), cy + (outer + 4) * math.sin(angle))
        tail = (cx + (outer + 26) * math.cos(angle), cy + (outer + 26) * math.sin(angle))
        picture.arrow(tail, tip, color=color)
        picture.text(tail[0], tail[1] + (-8 if turn == 3 else 18), name, size=12, color=color, mono=True)
    lines = (
        (GREEN, "0-2: responses; the front end takes them"),
        (ORANGE, "3-6: requests that the back end has taken"),
        (BLUE, "7-10: requests that nobody has taken yet"),
        (GREY, "11-15: free"),
    )
    for i, (color, words) in enumerate(lines):
        picture.box(404, 34 + 28 * i, 18, 18, line=color, fill=PALE[color] if color != GREY else "#e5e7eb", round=3)
        picture.text(432, 48 + 28 * i, words, size=13, at="start")
    picture.box(404, 160, 164, 170, line=INK, fill=PAPER)
    picture.text(486, 182, "in the shared page", size=13, bold=True)
    for i, (name, index, color) in enumerate(
        (("req_prod", 11, BLUE), ("req_event", 8, FAINT), ("rsp_prod", 3, GREEN), ("rsp_event", 1, FAINT))
    ):
        picture.text(424, 208 + 22 * i, name, mono=True, size=13, at="start", color=color)
        picture.text(546, 208 + 22 * i, str(index), mono=True, size=13, at="end", color=color)
    picture.text(486, 300, "both can write it all,", size=11, color=RED)
    picture.text(486, 316, "at any time", size=11, color=RED)
    for y, title, rows, color in (
        (160, "front end's own", (("pushed", 11), ("taken", 0)), BLUE),
        (250, "back end's own", (("pushed", 3), ("taken", 7)), ORANGE),
    ):
        picture.box(584, y, 152, 80, line=color, fill=PALE[color])
        picture.text(660, y + 22, title, size=13, bold=True)
        for i, (name, index) in enumerate(rows):
            picture.text(604, y + 46 + 20 * i, name, mono=True, size=13, at="start")
            picture.text(716, y + 46 + 20 * i, str(index), mono=True, size=13, at="end")
    return picture.svg()


def vchan() -> str:
    """The page, the two rings and the event channel of a vchan."""
    picture = Picture(760, 340, "A vchan: one page of indices, a ring each way, an event channel")
    for x, name, color in ((24, "server", BLUE), (576, "client", ORANGE)):
        picture.box(x, 24, 160, 292, line=color, fill=PALE[color])
        picture.text(x + 80, 52, name, bold=True, size=16, color=color)
    picture.text(104, 76, "shares all the pages", size=12, color=FAINT)
    picture.text(656, 76, "maps them", size=12, color=FAINT)
    picture.box(264, 24, 232, 128, line=INK, fill=PAPER)
    picture.text(380, 46, "the page behind ring-ref", size=13, bold=True)
    for i, (name, words) in enumerate(
        (
            ("left, right", "each ring's indices"),
            ("order", "how large each is"),
            ("live", "who is there"),
            ("notify", "who wants an event"),
            ("grants", "refs of their pages"),
        )
    ):
        picture.text(276, 68 + 18 * i, name, mono=True, size=11, at="start")
        picture.text(358, 68 + 18 * i, words, size=11, at="start", color=FAINT)
    for y, words, from_left, color in (
        (178, "left: the server reads", False, ORANGE),
        (236, "right: the server writes", True, BLUE),
    ):
        picture.box(264, y, 232, 42, line=color, fill=PAPER, round=4)
        picture.text(380, y + 26, words, size=13, color=color)
        left, right = ((186, y + 21), (262, y + 21)), ((498, y + 21), (574, y + 21))
        for start, end in (left, right):
            picture.arrow(*((start, end) if from_left else (end, start)), color=color)
    picture.text(224, 192, "read", size=11, color=ORANGE)
    picture.text(536, 192, "write", size=11, color=ORANGE)
    picture.text(224, 250, "write", size=11, color=BLUE)
    picture.text(536, 250, "read", size=11, color=BLUE)
    picture.arrow((186, 302), (574, 302), color=GREEN, both=True, dash="6 4")
    picture.text(380, 296, "events, only where they were asked for", size=12, color=GREEN)
    picture.arrow((186, 88), (262, 88), both=True)
    picture.arrow((498, 88), (574, 88), both=True)
    return picture.svg()


def grant_life() -> str:
    """What becomes of a reference and its page, from share_pages to the free list."""
    picture = Picture(760, 400, "The life of a grant: free, granted, mapped, and deferred where it ends too early")
    states = {
        "free": (24, 60, "free", "no page", GREY),
        "granted": (296, 60, "granted", "the peer may map it", BLUE),
        "mapped": (568, 60, "mapped", "both use the page", GREEN),
        "deferred": (568, 260, "deferred", "kept by the kernel", RED),
    }
    for x, y, name, words, color in states.values():
        picture.box(x, y, 168, 66, line=color, fill=PALE[color])
        picture.text(x + 84, y + 28, name, bold=True, size=14, color=INK)
        picture.text(x + 84, y + 48, words, size=11, color=FAINT)
    picture.arrow((192, 80), (294, 80), color=BLUE)
    picture.text(243, 50, "share_pages:", size=11, mono=True)
    picture.text(243, 66, "a zeroed page", size=11, color=FAINT)
    picture.arrow((464, 80), (566, 80), color=GREEN)
    picture.text(515, 50, "the peer's", size=11, color=FAINT)
    picture.text(515, 66, "gnttab.map", size=11, mono=True)
    picture.arrow((566, 112), (466, 112), color=ORANGE)
    picture.text(516, 132, "mapped.close()", size=11, mono=True)
    picture.text(516, 148, "or the peer's end", size=11, color=FAINT)
    picture.arrow((330, 128), (330, 200), (108, 200), (108, 128), color=BLUE)
    picture.text(219, 190, "share.close(): at once", size=11, mono=True)
    picture.arrow((652, 128), (652, 258), color=RED)
    picture.text(644, 190, "share.close(),", size=11, at="end", mono=True)
    picture.text(644, 206, "or the granter's end", size=11, at="end", color=FAINT)
    picture.arrow((566, 293), (60, 293), (60, 128), color=ORANGE)
    picture.text(330, 284, "the peer unmaps; the kernel looks once a second", size=11, color=FAINT)
    for i, words in enumerate(
        (
            "No page is used for anything else while the peer can still reach it. close() never waits for the peer:",
            "what is left to do is the kernel's. The death of a process, on either side, changes nothing of this.",
        )
    ):
        picture.text(24, 360 + 18 * i, words, size=12, at="start")
    return picture.svg()


PICTURES = {"two-domains": two_domains, "ring": ring, "vchan": vchan, "grant-life": grant_life}


def main() -> None:
    for name, draw in PICTURES.items():
        (IMAGES / f"{name}.svg").write_text(draw())


if __name__ == "__main__":
    main()
