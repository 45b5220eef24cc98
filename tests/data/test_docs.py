"""docs/data.md: its programs run, the granter's while the mapper's does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pytest

import xengrant
from xengrant import data, vchan
from xengrant.embedded import Machine

SOON = 60.0
GUIDE = Path(__file__).parents[2] / "docs" / "data.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


def test_array_programs(machine: Machine) -> None:
    command = [sys.executable, "-W", "error", "-c"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    one, two = (os.environ | {"XENGRANT_URL": machine.url(domid)} for domid in (1, 2))
    with (
        subprocess.Popen([*command, BLOCKS[0]], env=one, **pipes) as granter,
        subprocess.Popen([*command, BLOCKS[1]], env=two, **pipes) as mapper,
    ):
        try:
            assert mapper.communicate(timeout=SOON) == ("(480, 640) uint8 [0 1 2 3]\n", None)
            granter.communicate("\n", timeout=SOON)
        finally:
            granter.kill()
            mapper.kill()
    assert (granter.returncode, mapper.returncode) == (0, 0)


def test_table_programs(
    granter: xengrant.Domain, mapper: xengrant.Domain, capsys: pytest.CaptureFixture[str]
) -> None:
    def press_enter(prompt: str) -> None:
        exec(BLOCKS[3], {"domain": mapper, "data": data})

    exec(BLOCKS[2], {"domain": granter, "data": data, "input": press_enter})
    assert capsys.readouterr().out == "1000 False\n"


def test_table_is_written_again(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    names: dict[str, Any] = {"data": data, "pyarrow": pyarrow}
    exec(BLOCKS[4], names)
    first, second = (pyarrow.table({"a": pyarrow.array([n] * 9, "int64")}) for n in (1, 2))
    with data.share_table(granter, 2, first, "data/table") as shared, data.map_table(mapper, 1, "data/table") as there:
        assert there.table.equals(first)
        names["write_again"](shared, second)
        assert there.table.equals(second)


def test_object_programs(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    with (
        vchan.serve(2, "objects", domain=granter) as server,
        vchan.connect(1, "objects", domain=mapper, timeout=SOON) as client,
    ):
        names: dict[str, Any] = {"data": data, "vchan": client}
        receiving = threading.Thread(target=exec, args=(BLOCKS[6], names))
        receiving.start()
        exec(BLOCKS[5], {"data": data, "vchan": server, "weights": numpy.ones((300, 300))})
        receiving.join(SOON)
    assert names["step"]["step"] == 7
    assert names["step"]["weights"].sum() == 90_000


def test_every_program_of_the_guide_is_tried() -> None:
    assert len(BLOCKS) == 7
