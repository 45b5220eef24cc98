"""docs/troubleshooting.md: it quotes what the code can say, and whatever the code raises of its own it explains."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from xengrant import errors

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
SOURCES = [path for path in sorted((ROOT / "src" / "xengrant").rglob("*.py")) if "testing" not in path.parts]
HOLE = "\0"
OURS = [*errors.__all__, "TimeoutError"]
_MARKS = " :;,.()"


def template(node: ast.expr) -> str | None:
    """A text of the code with HOLE for each value in it; None for what is none."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return f"{template(left) or HOLE}{template(right) or HOLE}"
        case _:
            return None


def texts(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        text = template(node) if isinstance(node, ast.expr) else None
        if text is not None:
            yield from text.split(HOLE)


def raised(path: Path) -> Iterator[tuple[int, str]]:
    """The line of each error of xengrant's own that is made there, and the longest fixed part of its message."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in OURS:
            for text in filter(None, map(template, node.args)):
                yield node.lineno, max(text.split(HOLE), key=len).strip(" :;,.")


def quoted() -> list[str]:
    """The messages in the first column."""
    cells = re.findall(r"^\| (`.*?`) \|", PAGE.read_text(), re.MULTILINE)
    return [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]


def is_said(part: str, said: set[str]) -> bool:
    """Whether the code says this, in one piece or in several, between which stand colons."""
    pieces = [part.strip(_MARKS)] if any(part.strip(_MARKS) in text for text in said) else re.split("[:;] ", part)
    return all(any(piece.strip(_MARKS) in text for text in said) for piece in pieces)


def test_each_message_is_one_that_the_code_can_print() -> None:
    said = {text for path in SOURCES for text in texts(path)}
    for path in (ROOT / "src/native").glob("*.c"):
        for text in re.findall(r'"([^"\n]*)"', path.read_text()):
            said |= set(re.split(r"%(?:lu|zd|[sudUR])", text))
    unknown = [(message, part) for message in quoted() for part in message.split("...") if not is_said(part, said)]
    assert unknown == []


def test_each_error_of_the_code_is_explained() -> None:
    page = PAGE.read_text()
    missing = [
        f"{path.relative_to(ROOT)}:{line}: {part}"
        for path in SOURCES
        if path.name != "demo.py"
        for line, part in raised(path)
        if part not in page
    ]
    assert missing == []


def test_each_type_has_its_heading() -> None:
    headings = re.findall(r"^## (\w+)", PAGE.read_text(), re.MULTILINE)
    assert set(errors.__all__) <= set(headings)
