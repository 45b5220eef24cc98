"""NumPy and pyarrow are extras: where one is not installed, the error says how it is."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

import xengrant
from xengrant import data
from xengrant.data.arrays import check_dtype

CALLS: list[tuple[str, str, Callable[[xengrant.Domain], object]]] = [
    ("numpy", "numpy", lambda domain: data.share_array(domain, 2, [1], "data/x", writable=False)),
    ("numpy", "numpy", lambda domain: data.new_array(domain, 2, 1, "u1", "data/x", writable=False)),
    ("numpy", "numpy", lambda domain: data.map_array(domain, 2, "data/x", writable=False, timeout=0)),
    ("numpy", "numpy", lambda domain: check_dtype("<u1")),  # of an array that recv_object makes
    ("pyarrow", "arrow", lambda domain: data.share_table(domain, 2, None, "data/x")),
    ("pyarrow", "arrow", lambda domain: data.map_table(domain, 2, "data/x", timeout=0)),
]


@pytest.mark.parametrize(
    ("module", "extra", "call"),
    CALLS,
    ids=["share_array", "new_array", "map_array", "recv_object", "share_table", "map_table"],
)
def test_what_is_not_installed_is_named_with_its_extra(
    granter: xengrant.Domain,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    extra: str,
    call: Callable[[xengrant.Domain], object],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError) as raised:
        call(granter)
    assert str(raised.value) == f"{module} is missing: pip install 'xengrant[{extra}]'"
    assert raised.value.name == module
