"""The package's arrows: who may import whom, and the few who may lay out bytes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import xengrant

ROOT = Path(xengrant.__file__).parent

# From the bottom; a layer imports what lies below it, never beside or above.
LAYERS = [
    {"errors", "abi", "_native"},
    {"memory", "arguments", "descriptors", "forks"},
    {"devices", "waiting", "polling"},
    {"grant_table", "gntshr", "gnttab", "evtchn", "xenstore"},
    {"peer", "foreign_table", "kernelspace"},
    {"meeting"},
    {"domain"},
    {"rings"},
    {"pv", "vchan"},
    {"data"},
    {"testing"},
    {"cli", "pytest"},
]
RANKS = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}

# The machine stands beside the library: the same bytes, and nothing that the library does with them.
EMBEDDED_NEEDS = {"abi", "devices.wire", "grant_table", "memory", "_native", "errors", "forks", "embedded"}
MAY_USE_EMBEDDED = {"embedded", "testing", "cli", "pytest"}

# Bytes have one home. Beside abi/, what no header of Xen knows: the socket's own format, struct ucred, pickles' sizes.
MAY_USE_STRUCT = {"devices/wire.py", "devices/client.py", "embedded/connection.py", "data/objects.py"}
_LAYING_OUT = {"Struct", "iter_unpack", "pack", "pack_into", "unpack", "unpack_from"}

FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def _tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run: what only a type checker sees is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from _run(node)


def _imported(file: str) -> set[str]:
    """Modules that the file imports when it runs, absolute."""
    names: set[str] = set()
    for node in _run(_tree(file)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = (
                ["xengrant", *Path(file).parent.parts][: len(Path(file).parts) + 1 - node.level] if node.level else []
            )
            module = ".".join([*above, *([node.module] if node.module else [])])
            names.update(f"{module}.{alias.name}" if module == "xengrant" else module for alias in node.names)
            names.update(f"{module}.{alias.name}" for alias in node.names if module == "xengrant.devices")
    return names


def _ours(file: str) -> set[str]:
    """Without the package's own name: "devices.wire"."""
    found = {name.removeprefix("xengrant.") for name in _imported(file) if name.startswith("xengrant.")}
    return found - {"__version__"}


def _part(module: str) -> str:
    """The layers' name of a module: its package, xenstore for all of xenstore_*, grant_table for all of grant_*."""
    part = module.split(".")[0].split("/")[0].removesuffix(".py")
    return "xenstore" if part.startswith("xenstore_") else "grant_table" if part.startswith("grant_") else part


@pytest.mark.parametrize("file", [file for file in FILES if not file.startswith(("embedded/", "__"))])
def test_imports_point_downwards(file: str) -> None:
    own = _part(file)
    assert own in RANKS, f"say in which layer {own} belongs"
    for module in _ours(file):
        part = _part(module)
        if part == own or (part == "embedded" and own in MAY_USE_EMBEDDED):
            continue
        assert part in RANKS, f"{file} imports {module}, whose layer is not known"
        assert RANKS[part] < RANKS[own], f"{file} imports {module}, which does not lie below it"


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("embedded/")])
def test_the_embedded_machine_needs_nothing_of_the_library_but_its_bytes(file: str) -> None:
    for module in _ours(file):
        first = ".".join(module.split(".")[:2]) if module.startswith("devices.") else module.split(".")[0]
        if module != "devices":  # `from xengrant.devices import wire`
            first = first if "." in first else _part(first)
            assert first in EMBEDDED_NEEDS, f"{file} imports {module}"


@pytest.mark.parametrize("file", FILES)
def test_only_abi_lays_out_bytes(file: str) -> None:
    if file.startswith("abi/") or file in MAY_USE_STRUCT:
        return
    for node in ast.walk(_tree(file)):
        used: set[str] = set()
        if isinstance(node, ast.ImportFrom) and node.module == "struct":
            used = {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "struct":
            used = {node.attr}
        assert not used & _LAYING_OUT, f"{file}:{node.lineno}: the layout belongs in abi/"  # type: ignore[attr-defined]


@pytest.mark.parametrize("file", FILES)
def test_nobody_packs_into_shared_memory(file: str) -> None:
    """struct.pack_into writes a transient 0, which the peer can see."""
    names = {node.attr for node in ast.walk(_tree(file)) if isinstance(node, ast.Attribute)}
    assert "pack_into" not in names


def test_the_library_needs_nothing_but_the_standard_library() -> None:
    import sys

    data = {"numpy": "data/", "pyarrow": "data/"}
    optional = {"prometheus_client": "cli/", "rich": "cli/", "pytest": "pytest.py", **data}
    for file in FILES:
        for name in _imported(file):
            top = name.split(".")[0]
            known = top == "xengrant" or top in sys.stdlib_module_names
            assert known or file.startswith(optional.get(top, "nowhere")), f"{file} imports {name}"


def test_what_is_optional_is_imported_by_the_call_that_needs_it() -> None:
    """So that `xengrant.data` can be imported without NumPy and Arrow, and costs nothing."""
    import subprocess
    import sys

    program = "import sys, xengrant.data; print(sorted({'numpy', 'pyarrow'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "[]\n"
