"""The short form of `make sanitize`: rings, waits, words and mappings of the C extension, under each sanitizer."""

from __future__ import annotations

import pytest

from .__main__ import KINDS, run

_TESTS = [f"tests/native/test_{name}.py" for name in ("ring", "ring_wait", "words", "mapping_threads")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sanitizer_has_nothing_to_report_of_native(kind: str) -> None:
    assert run(kind, _TESTS), "its report is above"
