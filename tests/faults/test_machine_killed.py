"""The embedded machine itself killed while either side is at any of its steps, and the other waits for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

import xengrant
from tests.evidence import Table
from tests.faults.actors import LONG, Actor, Part, stoppable
from tests.faults.conftest import chosen, show_each_other
from tests.faults.expected import KILLED, expected_of, is_offered
from tests.faults.roles import BLOCKING, OTHER, WHOLE
from tests.faults.steps import STEPS
from tests.faults.test_peers import COLUMNS


class MachineProcess:
    """`xengrant machine`, and another one in the same directory when it was killed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process = self._started()

    def url(self, domid: int) -> str:
        return f"embedded:{quote(str(self._directory))}?domid={domid}"

    def kill(self) -> None:
        """As kill -9 does."""
        self._process.kill()
        self._process.communicate(timeout=LONG)

    def start_again(self) -> None:
        self._process = self._started()

    def _started(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "xengrant", "machine", "--dir", str(self._directory), "--json"]
        environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "ready"
        for domid in (1, 2):
            xengrant.connect(self.url(domid)).gntshr().close()  # which makes the domain
        show_each_other(self.url, (1, 2))
        return process


@pytest.fixture(scope="module")
def lasting_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MachineProcess]:
    machine = MachineProcess(tmp_path_factory.mktemp("machine") / "xen")
    with stoppable():
        yield machine
    machine.kill()


@pytest.fixture
def process(lasting_process: MachineProcess) -> Iterator[MachineProcess]:
    """With no thread and no descriptor left in this process when the test is over."""
    before, threads = len(os.listdir("/proc/self/fd")), set(threading.enumerate())
    yield lasting_process
    assert set(threading.enumerate()) <= threads
    assert len(os.listdir("/proc/self/fd")) <= before


_GONE = ("unavailable",)
_SHARED = ("unavailable", "told", "whole")
"""Pages outlive the machine: what is all in them comes over, and who has noticed its end closes a vchan first."""

ROWS = [(role, step, OTHER[role]) for role, steps in STEPS.items() for step in range(len(steps))]
ASYNC_ROWS = [(role, step, f"asyncio {side}") for role, step, side in ROWS if role in BLOCKING.values()]


@pytest.mark.parametrize(("role", "step", "side"), chosen(ROWS, 13) + chosen(ASYNC_ROWS, 35))
def test_every_client_of_a_killed_machine_is_told_and_another_serves(
    process: MachineProcess, evidence: Callable[..., Table], role: str, step: int, side: str
) -> None:
    name = STEPS[role][step]
    other = Actor(Part(side, process.url(2), 1, peer="data/here"), process=False)
    with other:
        other.until_quiet()
        with Actor(Part(role, process.url(1), 2, hold_at=STEPS[role][step], patience=LONG), process=False) as one:
            assert one.until_held() == name
            other.until_quiet(found=is_offered(role, name))
            started = time.monotonic()
            process.kill()
            try:
                one.say("go on")
                outcomes = {role: one.outcome(), side: other.outcome()}
            finally:
                process.start_again()
    shared = expected_of(KILLED, role, name) != "late"
    for told, outcome in outcomes.items():
        assert outcome.kind in (_SHARED if shared else _GONE), f"{told}: {outcome}"
        assert outcome.kind != "unavailable" or "machine" in outcome.text, f"{told} is not told what is gone: {outcome}"
        assert outcome.kind != "whole" or outcome.received == WHOLE[BLOCKING.get(told, told)], f"{told}: {outcome}"
        fault = f"machine killed, the {role} at this step"
        evidence("faults", COLUMNS).add(name, fault, told, *outcome.since(started))
    with Actor(Part(OTHER[role], process.url(2), 1), process=False) as other:
        other.until_quiet()
        with Actor(Part(role, process.url(1), 2, patience=LONG), process=False) as one:
            assert one.outcome().received == WHOLE[role], one.outcome()
            assert other.outcome().received == WHOLE[OTHER[role]], other.outcome()
