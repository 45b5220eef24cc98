"""`xengrant selftest` as a user types it."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

import xengrant
from xengrant import XenStore
from xengrant.embedded import Machine
from xengrant.testing import all_cases, exchange

TOOL = [sys.executable, "-m", "xengrant"]


def selftest(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*TOOL, "selftest", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine with agents in domains 1 and 2, for a runner in dom0."""
    with Machine() as machine, ExitStack() as stack:
        for domid in (1, 2):
            machine.create(domid)
            agent = subprocess.Popen(
                [*TOOL, "selftest", "--agent", "--url", machine.url(domid)], stderr=subprocess.DEVNULL
            )
            stack.callback(agent.wait)
            stack.callback(agent.kill)
        yield machine


@contextmanager
def agent(machine: Machine, domid: int) -> Iterator[tuple[subprocess.Popen[str], XenStore, str]]:
    """An agent that serves in a new domain, dom0's xenstore, and where the agent's nodes are."""
    machine.create(domid)
    path = f"/local/domain/{domid}/{exchange.ROOT}/0"
    command = [*TOOL, "selftest", "--agent", "--url", machine.url(domid)]
    with (
        xengrant.connect(machine.url(0)) as dom0,
        dom0.xenstore() as store,
        store.watch(f"{path}/state") as watch,
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running,
    ):
        try:
            while not store.exists(f"{path}/state"):
                watch.wait(60)
            yield running, store, path
        finally:
            running.kill()


def test_alone_it_runs_on_a_machine_of_its_own_with_both_lifetimes() -> None:
    done = selftest("-k", "munmap_alone")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == ["passed  lifetime.munmap_alone"] * 2
    assert lines[-1] == "2 passed, 0 failed, 0 skipped"


def test_several_patterns_choose_the_cases_of_each() -> None:
    listed = selftest("-k", "share.close_twice", "-k", "munmap_alone", "--list", "--json").stdout.splitlines()
    assert [json.loads(line)["case"] for line in listed] == ["lifetime.munmap_alone", "share.close_twice"]


def test_with_a_peer_its_agent_runs_the_other_halves(machine: Machine) -> None:
    done = selftest("--url", machine.url(0), "--peer", "1", "-k", "share.close", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    *results, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["case"] for result in results] == [
        "share.close_revokes",
        "share.close_twice",
        "share.closed_interface",
    ]
    assert {result["outcome"] for result in results} == {"passed"}
    assert {result["machine"] for result in results} == {"embedded machine, PV, dom0 and a guest"}
    assert last == {
        "event": "done",
        "summary": "3 passed, 0 failed, 0 skipped",
        "passed": 3,
        "failed": 0,
        "skipped": 0,
    }


def test_what_it_cannot_do_it_skips_and_says_why(machine: Machine) -> None:
    done = selftest("--url", machine.url(0), "--peer", "1", "-k", "destroyed")
    assert done.returncode == 0
    assert "only dom0's toolstack destroys a domain" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 passed, 0 failed, 3 skipped"


def test_it_destroys_domains_that_it_was_given(machine: Machine) -> None:
    command = shlex.join([*TOOL, "machine", "destroy", "--dir", machine.directory]) + " {domid}"
    victims = ["--victim", "1", "--victim", "2"]
    chosen = ("-k", "er_destroyed", "--destroy-command", command, *victims)
    done = selftest("--url", machine.url(0), "--peer", "1", *chosen)
    assert done.stdout.splitlines()[-1] == "2 passed, 0 failed, 0 skipped", done.stdout + done.stderr


def test_it_says_at_once_what_it_waits_for(machine: Machine) -> None:
    command = [*TOOL, "selftest", "--url", machine.url(0), "--peer", "3", "-k", "share.close_twice"]
    machine.create(3)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as waiting:
        try:
            assert waiting.stderr is not None
            line = waiting.stderr.readline()
        finally:
            waiting.kill()
    assert line == "waiting for an agent in domain 3: start `xengrant selftest --agent --peer 0` there\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_runner_believes_in_an_agent_that_was_ended(machine: Machine, number: signal.Signals) -> None:
    with agent(machine, 10 + number) as (running, store, path):
        running.send_signal(number)
        _, error = running.communicate(timeout=60)
        assert running.returncode == 128 + number, error
        assert not store.exists(path)


@pytest.mark.parametrize("missing", ["nodes", "domain"])
def test_an_agent_whose_nodes_are_gone_ends_as_it_would_have(machine: Machine, missing: str) -> None:
    domid = 40 + (missing == "domain")
    with agent(machine, domid) as (running, store, _path):
        if missing == "nodes":
            store.rm(f"/local/domain/{domid}/data")
            running.send_signal(signal.SIGINT)
        else:
            machine.destroy(domid)
        _, error = running.communicate(timeout=60)
        assert running.returncode == (130 if missing == "nodes" else 1), error
        assert "Traceback" not in error
        lost = "xenstore closed the connection" in error or f"domain {domid} was destroyed" in error
        assert lost == (missing == "domain"), error


def test_it_lists_every_case() -> None:
    done = selftest("--list", "--json")
    listed = [json.loads(line) for line in done.stdout.splitlines()]
    assert [entry["case"] for entry in listed] == [case.name for case in all_cases() if "bad_cases" not in case.name]
    assert all(entry["title"] and entry["source"] for entry in listed)


def test_a_pattern_that_nothing_has_is_an_error() -> None:
    done = selftest("-k", "no such thing")
    assert done.returncode == 64
    assert "no such thing" in done.stderr


def test_a_case_to_leave_out_that_is_none_is_an_error() -> None:
    done = selftest("-k", "munmap_alone", "--except", "share.close_twice,munmap_alone")
    assert (done.returncode, done.stdout) == (64, "")
    assert "no case is called 'munmap_alone'" in done.stderr
    listed = selftest("-k", "share.close", "--except", "share.close_twice,share.close_revokes", "--list").stdout
    assert [line.split(":")[0] for line in listed.splitlines()] == ["share.closed_interface"]
