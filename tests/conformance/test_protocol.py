"""The agent and what it takes from a runner: names of cases, small values, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

import xengrant
from xengrant import XenStore
from xengrant.embedded import Machine
from xengrant.testing import exchange
from xengrant.testing.exchange import Answer, Call, MalformedError, decode, encode

AGENT = """
import functools, sys, xengrant
from xengrant.testing import Agent
Agent(functools.partial(xengrant.connect, sys.argv[1]), 0, "pv").serve()
"""
MINE = "data/xengrant/selftest/1"
THEIRS = "/local/domain/1/data/xengrant/selftest/0"


@pytest.fixture(scope="module")
def store() -> Iterator[XenStore]:
    """dom0's xenstore, on a machine where domain 1's agent serves; a call of a runner long gone is left there."""
    with Machine() as machine, xengrant.connect(machine.url(0)) as domain, domain.xenstore() as store:
        machine.create(1)
        exchange.prepare(store, 0, 1)
        call(store, "00000000-1", "xenstore.relative_paths")
        agent = subprocess.Popen([sys.executable, "-c", AGENT, machine.url(1)], stderr=subprocess.DEVNULL)
        try:
            wait_for(store, f"{THEIRS}/state")
            yield store
        finally:
            agent.kill()
            agent.wait()


def call(store: XenStore, run: str, case: str) -> None:
    store.write(f"{MINE}/call", encode(Call(run, case, 10)))


def wait_for(store: XenStore, path: str) -> bytes:
    with store.watch(path) as watch:
        while (data := exchange.read(store, path)) is None:
            watch.wait(60)
    return data


def answer_to(store: XenStore, run: str) -> Answer:
    with store.watch(f"{THEIRS}/answer") as watch:
        while True:
            data = exchange.read(store, f"{THEIRS}/answer")
            if data is not None and Answer.parse(data).run == run:
                return Answer.parse(data)
            watch.wait(60)


def test_the_agent_runs_a_half_and_answers_but_not_for_a_call_from_before_it_came(store: XenStore) -> None:
    assert not store.exists(f"{THEIRS}/answer")
    call(store, "00000000-2", "xenstore.relative_paths")
    assert answer_to(store, "00000000-2") == Answer("00000000-2", "passed", "")


def test_the_agent_refuses_an_unknown_case(store: XenStore) -> None:
    call(store, "00000000-3", "os.system")
    answer = answer_to(store, "00000000-3")
    assert answer.outcome == "refused"
    assert "os.system" in answer.text


def test_the_agent_refuses_a_case_without_a_half_for_it(store: XenStore) -> None:
    call(store, "00000000-4", "share.bad_arguments")
    assert answer_to(store, "00000000-4").outcome == "refused"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff\xfe",
        b"import os",
        b"[]",
        b"{}",
        b'"xenstore.relative_paths"',
        b'{"run":"00000000-1","case":"xenstore.relative_paths"}',
        b'{"run":"00000000-1","case":"../x","seconds":5}',
        b'{"run":"../../x","case":"xenstore.relative_paths","seconds":5}',
        b'{"run":"00000000-1","case":"xenstore.relative_paths","seconds":1e9}',
        b'{"run":"00000000-1","case":"xenstore.relative_paths","seconds":NaN}',
        b'{"run":"00000000-1","case":"xenstore.relative_paths","seconds":true}',
        b'{"run":"00000000-1","case":"xenstore.relative_paths","seconds":5,"third":70000}',
        b'{"run":"00000000-1","case":["xenstore.relative_paths"],"seconds":5}',
        b"[" * 1800,
        b'{"run":"00000000-1","case":"' + b"x" * 4000 + b'","seconds":5}',
        b"9" * 1800,
    ],
    ids=range(17),
)
def test_the_agent_ignores_a_malformed_call_and_serves_on(store: XenStore, value: bytes) -> None:
    store.write(f"{MINE}/call", value[:4000])
    run = f"00000001-{len(value)}"
    call(store, run, "xenstore.relative_paths")
    assert answer_to(store, run).outcome == "passed"
    with pytest.raises(MalformedError):
        Call.parse(value)


def test_only_the_runner_may_read_what_the_agent_writes(store: XenStore) -> None:
    for path in (THEIRS, f"{THEIRS}/state"):
        assert [str(permission) for permission in store.get_permissions(path)] == ["n1", "r0"]


def test_values_are_bounded() -> None:
    assert decode(encode([1, "two", {"three": [None, True]}])) == [1, "two", {"three": [None, True]}]
    with pytest.raises(ValueError, match="bytes of JSON"):
        encode("x" * 2000)
    for value in (b"[[[[[1]]]]]", b"[" + b"1," * 900 + b"1]", b"1" * 30, b"Infinity", b"1." + b"0" * 100, b"x" * 1901):
        with pytest.raises(MalformedError):
            decode(value)


@pytest.mark.parametrize("name", ["", "A", "a/b", "../a", "a" * 41, "-a"])
def test_names_of_values_are_small(store: XenStore, name: str) -> None:
    mailbox = exchange.Mailbox(store, 0, 1, "00000000-9", 0.0)
    with pytest.raises(ValueError, match="small letters"):
        mailbox.tell(name)
