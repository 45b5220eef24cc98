"""Every public name has its place in docs/reference. `make docs` checks the members of classes too (docs/conf.py)."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import xengrant

DOCS = Path(__file__).parents[2] / "docs"


def _constant(name: str) -> tuple[str, ...]:
    """A constant of docs/conf.py, which itself needs Sphinx."""
    for statement in ast.parse((DOCS / "conf.py").read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            return tuple(ast.literal_eval(statement.value))
    raise AssertionError(f"docs/conf.py has no {name}")


PUBLIC = _constant("PUBLIC")

# Documented where they are used, not by their names; and what is no library: the tool, the conformance cases.
NOT_LIBRARY = {"xengrant.abi", "xengrant.cli", "xengrant.devices", "xengrant.rings"}


def _declared() -> set[str]:
    """What the reference has a directive for."""
    found: set[str] = set()
    for page in (DOCS / "reference").glob("*.md"):
        module = ""
        for line in page.read_text().splitlines():
            if match := re.match(r"\.\. currentmodule:: (\S+)", line):
                module = match[1]
            elif match := re.match(r"\.\. (?:auto(?:class|exception|function)|py:data):: (\w+)$", line):
                found.add(f"{module}.{match[1]}")
    return found


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_in_the_reference(module: str) -> None:
    public = {f"{module}.{name}" for name in importlib.import_module(module).__all__}
    assert public - _declared() == set()


def test_every_public_package_is_known() -> None:
    packages = {f"xengrant.{each.name}" for each in pkgutil.iter_modules(xengrant.__path__) if each.ispkg}
    assert packages - NOT_LIBRARY - set(PUBLIC) == set()


def _methods(value: type) -> set[str]:
    """The public methods and properties of a class, those of its bases in this package included."""
    ours = [base for base in value.__mro__ if base.__module__.startswith("xengrant")]
    found = {name for base in ours for name, what in vars(base).items() if _is_code(what)}
    return {name for name in found if not name.startswith("_")}


def _is_code(what: object) -> bool:
    plain = inspect.isfunction(what) or isinstance(what, property | classmethod | staticmethod)
    return plain or inspect.ismethoddescriptor(what) or inspect.isgetsetdescriptor(what)


@pytest.mark.parametrize("module", PUBLIC)
def test_public_members_have_docstrings(module: str) -> None:
    values = {name: getattr(importlib.import_module(module), name) for name in importlib.import_module(module).__all__}
    called = {name: value for name, value in values.items() if inspect.isclass(value) or inspect.isfunction(value)}
    members = {
        f"{name}.{member}": getattr(value, member)
        for name, value in called.items()
        if inspect.isclass(value)
        for member in _methods(value)
    }
    assert {name for name, value in (called | members).items() if not inspect.getdoc(value)} == set()


def test_the_reference_names_nothing_that_is_not_there() -> None:
    for name in _declared():
        module, _, what = name.rpartition(".")
        assert hasattr(importlib.import_module(module), what), name
