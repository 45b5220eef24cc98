"""docs/from-c.md and docs/from-ocaml.md: each name of xengrant's in their tables is there, and takes what they pass."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import xengrant
from xengrant import embedded, kernelspace, vchan
from xengrant.rings import byte_ring, rpc, rpc_back, rpc_front
from xengrant.xenstore import Transaction, Watch

DOCS = Path(__file__).parents[2] / "docs"
INCLUDE = Path("/usr/include")

ARE = {
    "back": rpc.BackRing,
    "channels": xengrant.EventChannels,
    "domain": xengrant.Domain,
    "domain.aio": xengrant.AsyncDomain,
    "end": vchan.Vchan,
    "evtchn": xengrant.EventChannels,
    "front": rpc.FrontRing,
    "gntshr": xengrant.Gntshr,
    "gnttab": xengrant.Gnttab,
    "mapped": xengrant.Mapped,
    "page": kernelspace.Page,
    "port": xengrant.Port,
    "reader": byte_ring.ByteReader,
    "share": xengrant.Share,
    "store": xengrant.XenStore,
    "table": xengrant.GrantTable,
    "transaction": Transaction,
    "vchan": vchan,
    "watch": Watch,
    "writer": byte_ring.ByteWriter,
    "xengrant": xengrant,
}
"""What the names in the tables stand for."""

HOMES = (xengrant, embedded, rpc, rpc_front, rpc_back, byte_ring)


def named(page: str) -> list[str]:
    """What stands in backticks in the second column."""
    rows = re.findall(r"^\|([^|]*)\|([^|]*)\|", (DOCS / page).read_text(), re.MULTILINE)
    return [code for _, here in rows for code in re.findall(r"`([^`]+)`", here)]


def meant(node: ast.expr) -> object:
    """The object that an expression of the tables names; AttributeError, KeyError where there is none."""
    match node:
        case ast.Call():
            return meant(node.func)
        case ast.Attribute():
            whole = ast.unparse(node)
            return ARE[whole] if whole in ARE else attribute(meant(node.value), node.attr)
        case ast.Name(id=name) if name in ARE:
            return ARE[name]
        case ast.Name(id=name):
            return next(getattr(home, name) for home in HOMES if name in home.__all__)
    raise AssertionError(ast.unparse(node))


def attribute(owner: object, name: str) -> object:
    """An attribute, also one that the class sets in its objects."""
    if isinstance(owner, type) and not hasattr(owner, name):
        assert any(f"self.{name} = " in inspect.getsource(kind) for kind in owner.__mro__[:-1]), f"{owner}.{name}"
        return None
    return getattr(owner, name)


@pytest.mark.parametrize("page", ["from-c.md", "from-ocaml.md"])
def test_each_name_is_there(page: str) -> None:
    codes = named(page)
    assert len(codes) > 50
    for code in codes:
        expression = ast.parse(code, mode="eval").body
        meant(expression)
        if isinstance(expression, ast.Call):
            check_arguments(expression)


def check_arguments(call: ast.Call) -> None:
    """TypeError where what is called does not take these arguments."""
    function = meant(call.func)
    assert callable(function)
    is_method = isinstance(call.func, ast.Attribute) and isinstance(meant(call.func.value), type)
    arguments = [None] * (is_method and not inspect.ismethod(function)) + call.args
    try:
        inspect.signature(function).bind(*arguments, **{word.arg: None for word in call.keywords if word.arg})
    except TypeError as error:
        raise TypeError(f"{ast.unparse(call)}: {error}") from None
    for inner in [*call.args, *(word.value for word in call.keywords)]:
        if isinstance(inner, ast.Call):
            check_arguments(inner)


@pytest.mark.parametrize("header", ["xengnttab.h", "xenevtchn.h", "libxenvchan.h"])
def test_each_function_of_the_c_library_is_there(header: str) -> None:
    path = INCLUDE / header
    if not path.exists():
        pytest.skip("libxen-dev is not installed")
    text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    functions = set(re.findall(r"\b((?:xengnttab|xengntshr|xenevtchn|libxenvchan)_\w+)\s*\(", text))
    assert len(functions) > 8
    page = (DOCS / "from-c.md").read_text()
    assert sorted(name for name in functions if f"`{name}`" not in page) == []
