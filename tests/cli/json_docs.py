"""docs/json.md as JSON Schema: a schema for each kind of line that a command prints, made of its tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

__all__ = ["COMMANDS", "schema_of"]

_TEXT = (Path(__file__).parents[2] / "docs/json.md").read_text()
_SIMPLE = {"integer", "number", "string", "boolean"}


def _tables() -> dict[str, dict[str, dict[str, str]]]:
    """The type of each field, of each table by its heading, of each command."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for section in re.split(r"^## ", _TEXT, flags=re.MULTILINE)[1:]:
        command, _, rest = section.partition("\n")
        tables = found[command] = {}
        for part in re.split(r"^### ", rest, flags=re.MULTILINE)[1:]:
            name, _, body = part.partition("\n")
            assert name not in tables, f"{command} has two tables {name}"
            rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in body.splitlines() if line[:1] == "|"]
            assert rows[0] == ["field", "type", "unit", "what"], (command, name)
            tables[name] = {row[0].strip("`"): row[1] for row in rows[2:]}
            assert all(len(row) == 4 for row in rows[2:]), (command, name)
    return found


_TABLES = _tables()
_PARTS = {name: table for tables in _TABLES.values() for name, table in tables.items() if name[0].isupper()}
COMMANDS = {command: [name for name in tables if name[0].islower()] for command, tables in _TABLES.items()}
"""The kinds of line that each command prints."""


def schema_of(command: str, kind: str, fields: list[str] | None = None) -> dict[str, Any]:
    """The JSON Schema of such a line; with `fields`, of one that has these and its `event`."""
    table = _TABLES[command][kind]
    if fields is not None:
        table = {name: table[name].removesuffix(", optional") for name in (*fields, *({"event"} & table.keys()))}
    return _object(table)


def _object(table: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: _schema(type.removesuffix(", optional")) for name, type in table.items()},
        "required": [name for name, type in table.items() if not type.endswith(", optional")],
        "additionalProperties": False,
    }


def _schema(text: str) -> dict[str, Any]:
    if text.endswith(" or null"):
        return {"anyOf": [_schema(text.removesuffix(" or null")), {"type": "null"}]}
    if text in _SIMPLE:
        return {"type": text}
    if text.startswith("`"):
        words = re.findall(r'`"([^"]*)"`', text)
        assert ", ".join(f'`"{word}"`' for word in words) == text, text
        return {"enum": words}
    if found := re.fullmatch(r"\[(\w+)\]\(#(\w+)\)", text):
        assert found[2] == found[1].lower(), text
        return _object(_PARTS[found[1]])
    if text[0] + text[-1] == "[]":
        return {"type": "array", "items": _schema(text[1:-1])}
    if text[0] + text[-1] == "{}":
        return {"type": "object", "patternProperties": {"^[0-9]+$": _schema(text[1:-1])}, "additionalProperties": False}
    raise AssertionError(f"{text!r} is no type")
