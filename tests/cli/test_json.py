"""Every line that `--json` prints is as docs/json.md says, and every line that is described there is printed."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import xengrant
from xengrant import GrantRef, vchan
from xengrant.embedded import Machine
from xengrant.rings.byte_ring import ConsoleRing

from .json_docs import COMMANDS, schema_of
from .shell import DEADLINE, Running, User, sharing
from .test_peek import page_of

Users = Callable[[int], User]


def check(line: str, command: str, kind: str, fields: list[str] | None = None) -> dict[str, Any]:
    """The line, which is of that kind."""
    found: dict[str, Any] = json.loads(line)
    jsonschema.validate(found, schema_of(command, kind, fields))
    assert line.isascii()
    return found


def printed(user: User, command: str, *arguments: str, status: int = 0) -> list[str]:
    done = user.run(*command.split(), *arguments, "--json")
    assert done.returncode == status, done
    return done.stdout.decode().splitlines()


def stopped(running: Running) -> list[str]:
    """What it still prints when a signal has come."""
    running.signal(signal.SIGINT)
    done = running.ended()
    assert done.returncode == 0, done
    return done.stdout.decode().splitlines()


def test_each_kind_of_line_is_seen_here() -> None:
    seen = set(re.findall(r'"([a-z ]+)", "([a-z]+)"', re.sub(r"\n\s*", " ", Path(__file__).read_text())))
    for command, kinds in COMMANDS.items():
        for kind in kinds:
            assert (command, kind) in seen, f"{command}: {kind}"


def test_a_line_with_another_field_is_refused() -> None:
    good = {"event": "released", "refs": [8]}
    check(json.dumps(good), "share", "released")
    for bad in ({"event": "released"}, {**good, "ref": 8}, {**good, "refs": ["8"]}, {**good, "event": "gone"}):
        with pytest.raises(jsonschema.ValidationError):
            check(json.dumps(bad), "share", "released")


def test_demo(nobody: User) -> None:
    *facts, done = printed(nobody, "demo")
    for line in facts:
        check(line, "demo", "fact")
    assert check(done, "demo", "done")["checked"] == len(facts)


def test_doctor(nobody: User, user: Users) -> None:
    for domid in (0, 1):
        (line,) = printed(user(domid), "doctor")
        assert set(check(line, "doctor", "report")["works"]) == {"share", "map", "notify", "meet"}
    (line,) = printed(nobody, "doctor", status=1)
    assert check(line, "doctor", "report")["kind"] == "none"


def test_share_and_map(user: Users, tmp_path: Path) -> None:
    share = user(1).start("share", "--to", "2", "--advertise", "data/x", "--json")
    shared = check(share.line(), "share", "shared")
    (line,) = printed(user(2), "map", "1", shared["ranges"])
    assert "base64" in check(line, "map", "mapped")
    (line,) = printed(user(2), "map", "1", "--at", "data/x", "--output", str(tmp_path / "file"))
    assert "base64" not in check(line, "map", "mapped")
    holding = user(2).start("map", "1", shared["ranges"], "--hold", "--json")
    check(holding.line(), "map", "mapped")
    (line,) = stopped(holding)
    check(line, "map", "unmapped")
    (line,) = stopped(share)
    check(line, "share", "released")


def test_cat(user: Users, machine: Machine) -> None:
    with xengrant.connect(machine.url(1)) as one, vchan.serve(2, "x", domain=one) as channel:
        cat = user(2).start("cat", "-N", "1", "x", "--json", stdin=b"hello")
        assert channel.recv(5, DEADLINE) == b"hello"
        (line,) = cat.ended().stderr.decode().splitlines()
    assert check(line, "cat", "closed")["sent"] == 5


def test_proxy(user: Users, machine: Machine, tmp_path: Path) -> None:
    where = str(tmp_path / "socket")
    proxy = user(2).start("proxy", "--listen", where, "--connect-vchan", "1", "x", "--timeout", "30", "--json")
    check(proxy.line(), "proxy", "listening")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(where)
        with xengrant.connect(machine.url(1)) as one, vchan.serve(2, "x", domain=one) as channel:
            client.sendall(b"hello")
            assert channel.recv(5, DEADLINE) == b"hello"
    assert check(proxy.line(), "proxy", "closed")["to_vchan"] == 5
    (line,) = stopped(proxy)
    check(line, "proxy", "stopped")


def test_block(user: Users, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 16))
    serving = user(0).start("block", "serve", str(tmp_path / "disk"), "--to", "1", "--interval", "0.05", "--json")
    check(serving.line(), "block serve", "serving")
    check(serving.line(), "block serve", "stats")
    (line,) = printed(user(1), "block attach", "0", "info")
    check(line, "block attach", "info")
    for line in printed(user(1), "block attach", "0", "read", "--count", "3"):
        assert check(line, "block attach", "read")["sectors"] == 3
    (tmp_path / "disk").write_bytes(bytes(1 << 17))
    while (line := serving.line()) and '"grown"' not in line:
        check(line, "block serve", "stats")
    assert check(line, "block serve", "grown")["bytes"] == 1 << 17
    done = user(1).run("block", "attach", "0", "write", "--json", stdin=bytes(512))
    check(done.stdout.decode().strip(), "block attach", "written")
    *lines, last = stopped(serving)
    for line in lines:
        check(line, "block serve", "stats")
    check(last, "block serve", "stopped")


def test_ls(user: Users, machine: Machine) -> None:
    with sharing(machine.url(1), 2, 2):
        lines = printed(user(0), "ls")
        assert [check(line, "ls", "domain")["domid"] for line in lines] == [1, 2, 3]
        *entries, summary = printed(user(0), "ls", "1")
        for line in entries:
            check(line, "ls", "entry")
        check(summary, "ls", "summary")
        fields = ["role", "ref", "name", "state", "access"]
        for line in printed(user(0), "ls", "1", "--fields", ",".join(fields))[:-1]:
            assert list(check(line, "ls", "entry", fields)) == fields
        fields = ["domid", "peers"]
        for line in printed(user(0), "ls", "--fields", ",".join(fields)):
            check(line, "ls", "domain", fields)


def test_ls_watch(user: Users, machine: Machine) -> None:
    watching = user(0).start("ls", "1", "--watch", "-i", "0.02", "--json")
    watching.line("stderr")
    with sharing(machine.url(1), 2) as share:
        check(watching.line(), "ls", "granted")
        with (
            xengrant.connect(machine.url(2)) as two,
            two.gnttab() as gnttab,
            gnttab.map((1, share.refs[0]), writable=True),
        ):
            assert check(watching.line(), "ls", "changed")["writing"]
        assert not check(watching.line(), "ls", "changed")["writing"]
    check(watching.line(), "ls", "revoked")
    machine.destroy(1)
    lines = watching.ended().stdout.decode().splitlines()
    for line in lines[:-1]:
        check(line, "ls", json.loads(line)["event"])
    check(lines[-1], "ls", "gone")


def test_peek(user: Users, machine: Machine) -> None:
    with page_of(machine, 1, GrantRef.CONSOLE) as page:
        ConsoleRing.front(page).output.write(b"login: ")
        following = user(0).start("peek", "console", "1", "--follow", "-i", "0.02", "--json")
        check(following.line(), "peek console", "looked")
        following.line("stderr")
        ConsoleRing.front(page).output.write(b"root\r\n")
        check(following.line(), "peek console", "output")
    machine.destroy(1)
    check(following.ended().stdout.decode().splitlines()[-1], "peek console", "gone")
    with xengrant.connect(machine.url(2)) as two, two.xenstore() as store:
        store.read("domid")
    (line,) = printed(user(0), "peek xenstore", "2")
    check(line, "peek xenstore", "looked")


def test_metrics(user: Users, machine: Machine, tmp_path: Path) -> None:
    with sharing(machine.url(1), 2):
        lines = printed(user(0), "metrics")
    assert any("peer" in check(line, "metrics", "sample")["labels"] for line in lines)
    (line,) = printed(user(0), "metrics", "--output", str(tmp_path / "file"))
    check(line, "metrics", "written")
    pytest.importorskip("prometheus_client")
    serving = user(0).start("metrics", "--listen", "0", "--json")
    check(serving.line(), "metrics", "serving")
    assert stopped(serving) == []


def test_top(user: Users, machine: Machine) -> None:
    with sharing(machine.url(1), 2):
        first, second = printed(user(0), "top", "-i", "2", "-d", "0.1")
    assert check(first, "top", "look")["seconds"] is None
    assert check(second, "top", "look")["domains"][0]["rate"] is not None


def test_machine(nobody: User, tmp_path: Path) -> None:
    where = ("--dir", str(tmp_path / "m"))
    running = nobody.start("machine", *where, "--json")
    url = check(running.line(), "machine", "ready")["url"]
    with xengrant.connect(url.replace("=N", "=3")) as domain:
        assert domain.domid == 3
    (line,) = printed(nobody, "machine status", *where)
    assert set(check(line, "machine status", "status")["domains"]) == {"0", "3"}
    (line,) = printed(nobody, "machine destroy", "3", *where)
    assert check(line, "machine destroy", "destroyed")["domid"] == 3
    (line,) = stopped(running)
    check(line, "machine", "stopped")


def test_selftest(nobody: User) -> None:
    *results, done = printed(nobody, "selftest", "-k", "pages_are_zeroed")
    for line in results:
        check(line, "selftest", "result")
    assert check(done, "selftest", "done")["passed"] == len(results) == 2
    for line in printed(nobody, "selftest", "--list"):
        check(line, "selftest", "case")


def test_selftest_record(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from xengrant.cli import main, selftest

    (tmp_path / "results").write_text('{"case": "x", "machine": "m", "outcome": "passed"}\n{"event": "done"}\n')
    monkeypatch.setattr(selftest, "record", lambda results: {"m": frozenset(result["case"] for result in results)})
    assert main(["selftest", "--record", str(tmp_path / "results"), "--json"]) == 0
    assert check(capsys.readouterr().out.strip(), "selftest", "recorded")["cases"] == 1
