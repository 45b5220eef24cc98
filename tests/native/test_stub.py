"""The stub says what the module has."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import xengrant.memory

# What Python code cannot name before 3.12, although the type has it.
BEFORE_3_12 = "xengrant\\._native\\.Mapping\\.__(release_)?buffer__\n"


def test_stubtest_finds_no_difference(tmp_path: Path) -> None:
    pytest.importorskip("mypy.stubtest")
    stubs = tmp_path / "xengrant"  # alone, so that no error elsewhere in the package fails this
    stubs.mkdir()
    (stubs / "__init__.pyi").touch()
    shutil.copy(Path(xengrant.memory.__file__).with_name("_native.pyi"), stubs)
    allowed = tmp_path / "allowed.txt"
    allowed.write_text(BEFORE_3_12 if sys.version_info < (3, 12) else "")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "MYPYPATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "xengrant._native", "--allowlist", str(allowed)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
