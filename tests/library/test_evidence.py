"""The page of what has been tried says what the records say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import evidence


def test_page_is_generated_from_the_records() -> None:
    assert evidence.PAGE.read_text() == evidence.tables(evidence._records()), "run python -m tests.evidence"


def test_record_comes_back_as_a_table(tmp_path: Path) -> None:
    file = evidence.keep("soak", "embedded machine", ("what", "count"), [("pages | shared", 1234567)], 1.25, tmp_path)
    assert file.name == "soak-embedded-machine.json"
    page = evidence.tables([evidence.Record(**json.loads(file.read_text()))])
    assert "| what | count |\n| --- | --- |\n| pages \\| shared | 1,234,567 |\n" in page
    assert "embedded machine" in page


def test_row_of_another_shape_is_refused() -> None:
    table = evidence.Table("faults", "embedded machine", ("step", "fault"))
    with pytest.raises(ValueError, match="1 cells"):
        table.add("map")


def test_many_rows_that_are_alike_are_one(tmp_path: Path) -> None:
    rows = [(f"step {number}", "kill", "PeerClosed", number / 100) for number in range(150)]
    file = evidence.keep("faults", "embedded machine", ("step", "fault", "saw", "seconds"), rows, 2.0, tmp_path)
    page = evidence.tables([evidence.Record(**json.loads(file.read_text()))])
    assert "| steps | fault | saw | seconds, at most |" in page
    assert "| 150 | kill | PeerClosed | 1.49 |" in page
