"""The drawings in docs/images are what docs/pictures.py draws, and fit on their cards."""

from __future__ import annotations

import runpy
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
DRAWN: dict[str, Callable[[], str]] = runpy.run_path(str(DOCS / "pictures.py"))["PICTURES"]


@pytest.mark.parametrize("name", DRAWN)
def test_a_committed_picture_is_what_is_drawn(name: str) -> None:
    assert (DOCS / "images" / f"{name}.svg").read_text() == DRAWN[name](), "draw them anew: make pictures"


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_well_formed_and_says_what_it_shows(name: str) -> None:
    picture = ElementTree.fromstring(DRAWN[name]())
    assert picture.findtext("{http://www.w3.org/2000/svg}title")
    width = float(picture.attrib["width"])
    for text in picture.iter("{http://www.w3.org/2000/svg}text"):
        assert 0 < float(text.attrib["x"]) < width
